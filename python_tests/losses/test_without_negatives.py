"""MarginMSE and losses without negatives: what the generic tests of the family do not see."""

import pytest
import torch

import cl_kernels
from catalogue.family import others
from python_tests.losses.edges import assert_as_in_float64, assert_nothing, value_and_gradients

pytestmark = pytest.mark.usefixtures("nan_filled_memory")
B, D = 12, 8


class TestMarginMSE:
    def test_bad_inputs(self):
        loss, x, y, z = cl_kernels.margin_mse, *torch.randn(3, B, D)
        own, margin = torch.randn(B, 3, D), torch.randn(B)
        with pytest.raises(ValueError, match="positive: expected as many rows as query, 12, got 2"):
            loss(x, y[:2], z, margin)
        with pytest.raises(ValueError, match="negatives: expected as many rows as query, 12"):
            loss(x, y, z[:2], margin)
        with pytest.raises(ValueError, match=r"negatives: expected \[B, K, D\] with B = 12"):
            loss(x, y, own[:2], margin)
        with pytest.raises(ValueError, match="negatives: expected the width of query, 8, got 5"):
            loss(x, y, own[..., :5], margin)
        with pytest.raises(ValueError, match=r"teacher_margin: .*, \[12, 3\], got shape \[12\]"):
            loss(x, y, own, margin)
        with pytest.raises(ValueError, match=r"teacher_margin: .*, \[12\], got shape \[12, 1\]"):
            loss(x, y, z, margin[:, None])
        with pytest.raises(TypeError, match=r"teacher_margin: .* tensor, got torch\.int64"):
            loss(x, y, z, margin.long())
        with pytest.raises(TypeError, match="normalize"):
            loss(x, y, z, margin, normalize=1)
        with pytest.raises(ValueError, match="reduction"):
            loss(x, y, z, margin, reduction="all")

    def test_nothing(self):
        for shape in ((0,), (0, 3), (4, 0)):
            x = torch.randn(shape[0], D)
            assert_nothing(cl_kernels.margin_mse, x, x, torch.randn(*shape, D), torch.randn(shape))

    def test_equal_rows(self):
        x = torch.randn(B, D)
        loss = cl_kernels.margin_mse(x, x, x, torch.full((B,), 3.0))
        torch.testing.assert_close(loss, torch.tensor(9.0))

    def test_one_of_several_is_one(self):
        x, y, z, margin = *torch.randn(3, B, D), torch.randn(B)
        losses = cl_kernels.margin_mse(x, y, z, margin.double(), reduction="none")
        several = cl_kernels.margin_mse(x, y, z[:, None], margin[:, None], reduction="none")
        assert losses.dtype == torch.float32 and several.shape == (B, 1)
        torch.testing.assert_close(several[:, 0], losses)

    def test_half(self):
        inputs = *torch.randn(3, B, D), torch.randn(B)
        assert_as_in_float64(
            cl_kernels.margin_mse, others.margin_mse, *inputs, dtype=torch.bfloat16
        )


@pytest.mark.parametrize("name", ["vicreg", "barlow_twins"])
class TestMoments:
    def test_bad_inputs(self, name):
        loss, x = getattr(cl_kernels, name), torch.randn(B, D)
        with pytest.raises(ValueError, match="second: expected as many rows as first, 12, got 3"):
            loss(x, x[:3])
        for rows in (0, 1):
            with pytest.raises(ValueError, match=f"first: expected at least two rows, got {rows}"):
                loss(x[:rows], x[:rows])
        with pytest.raises(ValueError, match="eps: expected a finite number above 0, got 0"):
            loss(x, x, eps=0)
        with pytest.raises(TypeError, match="eps: expected a number, got str"):
            loss(x, x, eps="small")
        weights = ("redundancy",) if name == "barlow_twins" else ("invariance", "covariance")
        for weight in weights:
            with pytest.raises(ValueError, match=f"{weight}: expected a finite number, at least 0"):
                loss(x, x, **{weight: -1})

    def test_collapsed(self, name):
        """All rows equal: finite gradients."""
        x = torch.ones(B, D)
        value, grads = value_and_gradients(getattr(cl_kernels, name), x, x)
        assert value > 1 and all(grad.isfinite().all() for grad in grads)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_half(self, name, dtype):
        inputs = 30 * torch.randn(2, B, D)  # squares and their sums would overflow float16
        loss, textbook = getattr(cl_kernels, name), getattr(others, name)
        assert_as_in_float64(loss, textbook, *inputs, dtype=dtype, rtol=1e-4)


class TestNegativeCosine:
    def test_bad_inputs(self):
        loss, x = cl_kernels.negative_cosine, torch.randn(B, D)
        with pytest.raises(ValueError, match="target: expected as many rows as prediction, 12"):
            loss(x, x[:3])
        with pytest.raises(TypeError, match="stop_gradient"):
            loss(x, x, stop_gradient=None)
        with pytest.raises(TypeError, match="squared_distance"):
            loss(x, x, squared_distance=2)
        with pytest.raises(ValueError, match="reduction"):
            loss(x, x, reduction="max")

    def test_edges(self):
        loss, x = cl_kernels.negative_cosine, torch.randn(B, D)
        assert_nothing(loss, x[:0], x[:0])
        torch.testing.assert_close(loss(x, 3 * x), torch.tensor(-1.0))
        torch.testing.assert_close(loss(x, -x, squared_distance=True), torch.tensor(4.0))
        assert loss(torch.zeros(B, D), x) == 0
        assert loss(x, x, reduction="none").shape == (B,)

    @pytest.mark.parametrize("stop", [True, False])
    def test_the_targets_gradient(self, stop):
        x, y = torch.randn(2, B, D)
        _, grads = value_and_gradients(cl_kernels.negative_cosine, x, y, stop_gradient=stop)
        assert grads[0].any() and bool(grads[1].any()) != stop


@pytest.mark.parametrize("name", ["vicreg", "barlow_twins"])
def test_statistics_are_in_full_under_autocast(name):
    x, y = torch.randn(12, 6, requires_grad=True), torch.randn(12, 6)
    outcomes = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = getattr(cl_kernels, name)(x, y)
        outcomes.append((loss, *torch.autograd.grad(loss, x)))
    torch.testing.assert_close(*outcomes, rtol=0, atol=0)
