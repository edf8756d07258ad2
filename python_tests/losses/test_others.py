"""Losses of scored pairs and of distillation: what the generic tests of the family do not see."""

import sys

import pytest
import torch
from torch import is_tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cl_kernels
from catalogue.family import FAMILY, others
from python_tests.losses.edges import assert_as_in_float64, assert_nothing, value_and_gradients

pytestmark = pytest.mark.usefixtures("nan_filled_memory")
B, D = 12, 8
soft_targets = sys.modules["cl_kernels.losses.soft_targets"]


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
        with pytest.raises(TypeError, match=r"similarity: expected real numbers, got .*complex64"):
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


class TestDistill:
    def inputs(self, rows=B, keys=B, width=D):
        return (
            torch.randn(rows, D),
            torch.randn(keys, D),
            torch.randn(rows, width),
            torch.randn(keys, width),
        )

    def test_bad_inputs(self):
        loss, (x, y, p, q) = cl_kernels.distill, self.inputs(width=5)
        with pytest.raises(ValueError, match="key: expected the width of query, 8, got 3"):
            loss(x, y[:, :3], p, q)
        with pytest.raises(ValueError, match=r"teacher_query: .* as many rows as query, 12, got 2"):
            loss(x, y, p[:2], q)
        with pytest.raises(ValueError, match=r"teacher_key: .* as many rows as key, 12, got 2"):
            loss(x, y, p, q[:2])
        with pytest.raises(ValueError, match=r"teacher_key: .* width of teacher_query, 5, got 4"):
            loss(x, y, p, q[:, :4])
        with pytest.raises(TypeError, match=r"teacher_query: expected one of .*, got torch\.int64"):
            loss(x, y, p.long(), q)
        with pytest.raises(ValueError, match='divergence: expected "kl" or "cross_entropy"'):
            loss(x, y, p, q, divergence="mse")
        with pytest.raises(ValueError, match=r"key: .* as query, 12, with symmetric, got 3"):
            loss(x, y[:3], p, q[:3], symmetric=True)
        with pytest.raises(TypeError, match="symmetric: expected True or False, got 1"):
            loss(x, y, p, q, symmetric=1)
        with pytest.raises(TypeError, match="normalize: expected True or False, got 1"):
            loss(x, y, p, q, normalize=1)
        with pytest.raises(ValueError, match=r"teacher_temperature: .* other than zero, got 0"):
            loss(x, y, p, q, teacher_temperature=0)
        with pytest.raises(ValueError, match="reduction"):
            loss(x, y, p, q, reduction="batchmean")

    @pytest.mark.parametrize("symmetric", [False, True])
    def test_nothing_to_learn(self, symmetric):
        for rows in (0, 1):
            inputs = self.inputs(rows, rows)
            assert_nothing(cl_kernels.distill, *inputs, symmetric=symmetric)
        x, y, *_ = self.inputs()
        value, grads = value_and_gradients(cl_kernels.distill, x, y, x, y, symmetric=symmetric)
        assert value.abs() < 1e-6 and all(grad.norm() < 1e-6 for grad in grads)

    def test_no_keys(self):
        assert_nothing(cl_kernels.distill, *self.inputs(3, 0))

    @pytest.mark.parametrize("symmetric", [False, True])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_by_blocks(self, symmetric, reduction, monkeypatch):
        """Of a few queries each, the last one shorter; also without gradients."""
        inputs = self.inputs(50, 50)
        options = {"symmetric": symmetric, "reduction": reduction}
        expected = value_and_gradients(cl_kernels.distill, *inputs, **options)
        monkeypatch.setattr(soft_targets, "_ON_CPU", 100)
        monkeypatch.setattr(soft_targets, "_LEAST_ROWS", 7)
        found = value_and_gradients(cl_kernels.distill, *inputs, **options)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            cl_kernels.distill(*inputs, **options), expected[0], rtol=1e-5, atol=1e-6
        )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("temperature", [0.01, -0.01])
    def test_cold(self, dtype, temperature):
        """Teacher and student of opposite opinions."""
        x, y, *_ = self.inputs()
        options = {"temperature": temperature, "symmetric": True, "rtol": 1e-4, "dtype": dtype}
        for teacher in ((x, y), (x, -y)):
            assert_as_in_float64(cl_kernels.distill, others.distill, x, y, *teacher, **options)

    def test_rows_losses(self):
        losses = cl_kernels.distill(*self.inputs(5, 9), reduction="none")
        assert losses.shape == (5,) and (losses >= 0).all()

    def test_the_teacher_may_be_of_another_dtype(self):
        x, y, p, q = self.inputs()
        loss = cl_kernels.distill(x, y, p.double(), q.double())
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, cl_kernels.distill(x, y, p, q))

    def test_only_what_is_trained_gets_a_gradient(self):
        x, y, p, q = self.inputs()
        temperature = torch.tensor(0.2, requires_grad=True)
        y.requires_grad_()
        for reduction in ("mean", "none"):
            loss = cl_kernels.distill(x, y, p, q, temperature=temperature, reduction=reduction)
            grads = torch.autograd.grad(loss.sum(), [y, temperature])
            assert all(grad.abs().sum() > 0 for grad in grads)

    def test_no_matrix_is_held(self):
        """The largest tensor of a call."""
        largest = 0

        class Sizes(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                nonlocal largest
                out = function(*args, **(kwargs or {}))
                largest = max([largest, *(x.numel() for x in tree_leaves(out) if is_tensor(x))])
                return out

        inputs = [x.requires_grad_() for x in self.inputs(2048, 2048)]
        with Sizes():
            cl_kernels.distill(*inputs, symmetric=True).backward()
        assert largest <= 2048 * 64


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_distill_is_in_full_under_autocast(symmetric, reduction):
    x, y, of_x, of_y = (torch.randn(12, 6) for _ in range(4))
    x.requires_grad_()
    options = {"symmetric": symmetric, "reduction": reduction}
    outcomes = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = cl_kernels.distill(x, y, of_x, of_y, **options)
        outcomes.append((loss, *torch.autograd.grad(loss.sum(), x)))
    torch.testing.assert_close(*outcomes, rtol=0, atol=0)
