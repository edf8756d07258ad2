"""Losses of scored pairs, of distillation and without negatives: what the generic tests of the
family do not see."""

import sys

import pytest
import torch
from torch import is_tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cl_kernels
from catalogue.family import FAMILY, others

pytestmark = pytest.mark.usefixtures("nan_filled_memory")
B, D = 12, 8
distill_module = sys.modules[cl_kernels.distill.__module__]  # not the function of its name


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
        monkeypatch.setattr(distill_module, "_ON_CPU", 100)
        monkeypatch.setattr(distill_module, "_LEAST_ROWS", 7)
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


class TestMatryoshka:
    dims, weights = (8, 2, 5), (1.0, 0.25, 2.0)

    def test_is_the_sum_over_prefixes(self):
        x, y, labels = *torch.randn(2, B, D), torch.arange(B) % 3
        cases = [
            (cl_kernels.nt_xent, (x, y), {"temperature": 0.2}),
            (cl_kernels.supcon, (x, labels), {}),
            (cl_kernels.info_nce, (x,), {"positive_key": y, "negative_keys": torch.randn(B, 3, D)}),
            (lambda a, b: (a - b).square().sum(), (x, y), {}),
        ]
        for loss, inputs, options in cases:
            expected = sum(
                weight
                * loss(
                    *(z[:, :d] if z.is_floating_point() else z for z in inputs),
                    **{k: z[..., :d] if is_tensor(z) else z for k, z in options.items()},
                )
                for d, weight in zip(self.dims, self.weights, strict=True)
            )
            settings = {"dims": self.dims, "weights": self.weights}
            assert torch.equal(
                cl_kernels.matryoshka(loss, *inputs, **settings, **options), expected
            )
            module = cl_kernels.MatryoshkaLoss(loss, **settings)
            assert torch.equal(module(*inputs, **options), expected)

    def test_what_is_cut(self):
        """Matrices of the full width; not vectors, other widths, integers, or numbers."""
        seen = []

        def loss(*inputs, **options):
            seen.append([x.shape[-1] for x in (*inputs, *options.values()) if is_tensor(x)])
            return inputs[0].sum() * options["scale"]

        x = torch.randn(B, D)
        passed = torch.randn(D), torch.randn(B, 5), torch.ones(B, D, dtype=torch.int64)
        cl_kernels.matryoshka(loss, x, *passed, dims=[3], scale=2.0, more=torch.randn(2, 4, D))
        assert seen == [[3, D, 5, D, 3]]

    def test_only_prefixes_are_trained(self):
        x = torch.randn(B, D, requires_grad=True)
        cl_kernels.MatryoshkaLoss(cl_kernels.nt_xent, dims=(2, 5))(x, torch.randn(B, D)).backward()
        assert x.grad[:, :5].all() and not x.grad[:, 5:].any()

    def test_a_module_is_part_of_it(self):
        inner = cl_kernels.NTXentLoss(nn.Parameter(torch.tensor(0.5)))
        module = cl_kernels.MatryoshkaLoss(inner, self.dims)
        assert list(module.state_dict()) == ["loss.temperature"]
        assert "NTXentLoss" in repr(module) and "dims=(8, 2, 5)" in repr(module)
        assert "loss=nt_xent" in repr(cl_kernels.MatryoshkaLoss(cl_kernels.nt_xent, [4]))
        module(*torch.randn(2, B, D)).backward()
        assert inner.temperature.grad != 0

    def test_rows_losses(self):
        x, y = torch.randn(2, B, D)
        losses = cl_kernels.matryoshka(cl_kernels.info_nce, x, y, dims=(D,), reduction="none")
        assert torch.equal(losses, cl_kernels.info_nce(x, y, reduction="none"))

    def test_bad_inputs(self):
        x, loss = torch.randn(B, D), cl_kernels.nt_xent
        for make in (
            lambda loss, **settings: cl_kernels.matryoshka(loss, x, x, **settings),
            cl_kernels.MatryoshkaLoss,
        ):
            with pytest.raises(TypeError, match="loss: expected a function or a module, got int"):
                make(3, dims=(4,))
            with pytest.raises(ValueError, match="dims: expected at least one width, got none"):
                make(loss, dims=())
            with pytest.raises(ValueError, match="dims: expected at least 1, got 0"):
                make(loss, dims=(4, 0))
            with pytest.raises(TypeError, match="dims: expected an integer, got float"):
                make(loss, dims=(4.0,))
            with pytest.raises(TypeError, match=r"dims: expected a list or a tuple .*, got int"):
                make(loss, dims=4)
            with pytest.raises(ValueError, match=r"dims: expected different .*, got \[4, 4\]"):
                make(loss, dims=(4, 4))
            with pytest.raises(ValueError, match=r"weights: .* each of the 2 dims, got 1"):
                make(loss, dims=(4, 2), weights=(1,))
            with pytest.raises(ValueError, match=r"weights: expected finite .* 0, got -1"):
                make(loss, dims=(4, 2), weights=(1, -1))
            with pytest.raises(TypeError, match="weights: expected a number, got str"):
                make(loss, dims=(4,), weights=("much",))
        with pytest.raises(ValueError, match="dims: expected widths of at most 8, got 9"):
            cl_kernels.matryoshka(loss, x, x, dims=(9,))
        with pytest.raises(ValueError, match="embeddings: expected a floating-point tensor"):
            cl_kernels.matryoshka(loss, torch.arange(3), dims=(1,))
        with pytest.raises(TypeError, match="dims: expected when the module is made"):
            cl_kernels.MatryoshkaLoss(loss, (4,))(x, x, dims=(2,))
