"""Losses of scored pairs, of distillation and without negatives: what the generic tests of the
family do not see."""

import pytest
import torch
from torch import nn

import cl_kernels
from catalogue.family import FAMILY, others

pytestmark = pytest.mark.usefixtures("nan_filled_memory")
B, D = 12, 8


def value_and_gradients(loss, *inputs, dtype=torch.float32, **options):
    """The matrices among the inputs in a dtype, and their gradients."""
    leaves = [
        x.to(dtype).detach().requires_grad_() if x.is_floating_point() and x.dim() > 1 else x
        for x in inputs
    ]
    value = loss(*leaves, **options)
    trained = [x for x in leaves if x.requires_grad]
    return value.detach(), torch.autograd.grad(value.sum(), trained, materialize_grads=True)


def assert_nothing(loss, *inputs, **options):
    """No loss, and gradients of zero."""
    value, grads = value_and_gradients(loss, *inputs, **options)
    assert torch.equal(value, torch.zeros_like(value))
    for grad in grads:
        assert torch.equal(grad, torch.zeros_like(grad))


def assert_as_in_float64(loss, textbook, *inputs, dtype=torch.float32, rtol=1e-5, **options):
    rounded = [x.to(dtype) if x.is_floating_point() and x.dim() > 1 else x for x in inputs]
    value, grads = value_and_gradients(loss, *rounded, dtype=dtype, **options)
    truth, expected = value_and_gradients(textbook, *rounded, dtype=torch.float64, **options)
    assert value.isfinite().all()
    torch.testing.assert_close(value.double(), truth.double(), rtol=rtol, atol=rtol)
    for grad, exact in zip(grads, expected, strict=True):
        error = (grad.double() - exact).norm()
        assert error <= max(rtol, torch.finfo(dtype).eps) * exact.norm() + 1e-12


@pytest.mark.parametrize("name", ["cosent", "angle"])
class TestRanked:
    def test_bad_inputs(self, name):
        loss = getattr(cl_kernels, name)
        x, y, scores = torch.randn(B, D), torch.randn(B, D), torch.rand(B)
        with pytest.raises(ValueError, match=r"second: expected as many rows as first, 12, got 3"):
            loss(x, y[:3], scores)
        with pytest.raises(ValueError, match=r"similarity: .* each of the 12 rows .* shape \[5\]"):
            loss(x, y, scores[:5])
        with pytest.raises(ValueError, match=r"similarity: .* got shape \[12, 1\]"):
            loss(x, y, scores[:, None])
        with pytest.raises(TypeError, match="similarity: expected a tensor, got list"):
            loss(x, y, scores.tolist())
        with pytest.raises(TypeError, match="similarity: expected real numbers, got .*complex64"):
            loss(x, y, scores.to(torch.complex64))
        with pytest.raises(ValueError, match="similarity: expected numbers, got a NaN"):
            loss(x, y, scores.index_fill(0, torch.tensor([3]), torch.nan))
        with pytest.raises(ValueError, match="scale: expected a finite number, got inf"):
            loss(x, y, scores, scale=float("inf"))
        with pytest.raises(TypeError, match="normalize"):
            loss(x, y, scores, normalize=1)

    def test_nothing_to_rank(self, name):
        loss = getattr(cl_kernels, name)
        for rows in (0, 1, B):
            assert_nothing(loss, torch.randn(rows, D), torch.randn(rows, D), torch.ones(rows))

    def test_equal_rows(self, name):
        loss, x = getattr(cl_kernels, name), torch.randn(1, D).expand(4, D)
        similarity = torch.tensor([0, 0, 1, 1])  # four ordered pairs of equal scores
        torch.testing.assert_close(loss(x, x, similarity), torch.tensor(5.0).log())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("scale", [20.0, 100.0, -100.0])
    @pytest.mark.parametrize("alike", [1, -1])
    def test_extreme_scores(self, name, dtype, scale, alike):
        """Scores at both ends; in the right order nearly, and in the wrong one."""
        similarity = torch.arange(B) // 4
        x = torch.randn(B, D)
        signs = torch.where(torch.arange(B) < 6, -alike, alike)[:, None]
        y = signs * x + 0.05 * torch.randn(B, D)
        loss, textbook = getattr(cl_kernels, name), getattr(others, name)
        assert_as_in_float64(loss, textbook, x, y, similarity, dtype=dtype, scale=scale, rtol=1e-4)

    def test_a_small_loss_keeps_its_digits(self, name):
        loss, x = getattr(cl_kernels, name), torch.eye(2, 4)
        y = x * torch.tensor([[1.0], [0.0]])  # scores 1 and 0
        value, _ = value_and_gradients(loss, x, y, torch.tensor([1, 0]), scale=30.0)
        torch.testing.assert_close(value, torch.tensor(-30.0).exp(), rtol=1e-5, atol=0)

    def test_only_the_order_of_the_targets_counts(self, name):
        loss, x, y = getattr(cl_kernels, name), torch.randn(B, D), torch.randn(B, D)
        scores = torch.randint(0, 4, (B,))
        expected = loss(x, y, scores)
        assert torch.equal(loss(x, y, scores.double().exp()), expected)
        assert torch.equal(loss(x, y, scores.to(torch.bfloat16)), expected)
        mixed = torch.randperm(B)
        torch.testing.assert_close(loss(x[mixed], y[mixed], scores[mixed]), expected)

    def test_the_scale_is_learned(self, name):
        module = FAMILY[name].module(scale=nn.Parameter(torch.tensor(3.0)))
        module(torch.randn(B, D), torch.randn(B, D), torch.rand(B)).backward()
        assert module.scale.grad != 0

    def test_no_second_derivative(self, name):
        x = torch.randn(B, D, requires_grad=True)
        loss = getattr(cl_kernels, name)(x, torch.randn(B, D), torch.rand(B))
        with pytest.raises(RuntimeError, match="double backward"):
            torch.autograd.grad(loss, x, create_graph=True)
