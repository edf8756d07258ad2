"""Losses against their textbook N x N forms in float64."""

import pytest
import torch

import cl_kernels
from python_tests.helpers import (
    LOSSES,
    assert_frobenius,
    call_loss,
    leaf,
    unit_rows,
    views,
)

pytestmark = pytest.mark.usefixtures("nan_filled_memory")
each_loss = pytest.mark.parametrize("loss", LOSSES)
B, D = 70, 24


CASES = [(loss, options) for loss, case in LOSSES.items() for options in case.options]


def evaluate(form, loss, first, second, scale, options, dtype, **more):
    """Loss, and gradients by name, of one form: "ours" or the "textbook"."""
    case = LOSSES[loss]
    leaves = {"first": leaf(first, True, dtype), "second": leaf(second, True, dtype)}
    leaves["scale"] = leaf(torch.tensor(case.argument(scale)), True, dtype)
    for name, value in options.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            leaves[name] = leaf(value, True, dtype)
    options = options | {name: leaves[name] for name in leaves if name in options}
    options |= {case.scale: leaves["scale"]} | more
    result = getattr(case, form)(leaves["first"], leaves["second"], **options)
    torch.manual_seed(1)
    upstream = torch.randn(result.shape).to(result.dtype) if result.dim() else None
    grads = torch.autograd.grad(result, list(leaves.values()), upstream)
    return result.detach(), dict(zip(leaves, grads, strict=True))


def check(loss, first, second, scale, options, *, backend, **more):
    """The float32 rule; ``scale`` is kept exactly representable, temperatures follow from it."""
    ours, grads = evaluate(
        "ours", loss, first, second, scale, options, None, backend=backend, **more
    )
    truth, expected = evaluate(
        "textbook", loss, first, second, scale, options, torch.float64, **more
    )
    assert ours.shape == truth.shape
    assert ours.dtype == torch.float32
    size = max(1, abs(scale))
    allowed = 3e-7 * size * truth.abs().clamp_min(1)
    assert ((ours - truth).abs() <= allowed).all(), ((ours - truth).abs() / allowed).max()
    for name in expected:
        # The temperature's gradient and a bias' are one number each.
        tolerance = 1e-5 * max(1, size / 100)
        if grads[name].dim():
            assert_frobenius(grads[name], expected[name], tolerance, name)
        elif name == "logit_bias" and LOSSES[loss].softmax:  # which does not see it
            assert grads[name] == 0 and expected[name].abs() < 1e-12
        else:
            torch.testing.assert_close(
                grads[name].double(), expected[name], rtol=5 * tolerance, atol=1e-6 * size
            )


@pytest.mark.parametrize(("reduction", "scale"), [("mean", 2.0), ("sum", -4.0), ("none", 16.0)])
@pytest.mark.parametrize("normalize", [True, False], ids=["normalize", "as they come"])
@pytest.mark.parametrize(("loss", "case"), CASES)
def test_textbook(backend, loss, case, normalize, reduction, scale):
    options = LOSSES[loss].options[case](B, D)
    first, second = views(B)
    if not normalize:
        first, second = unit_rows(B, D) * 1.2, unit_rows(B, D)
    settings = {"normalize": normalize, "reduction": reduction, "backend": backend}
    check(loss, first, second, scale, options, **settings)


@each_loss
@pytest.mark.parametrize("rows", [2, 3, 300])
@pytest.mark.parametrize("width", [1, 2, 65])
def test_sizes(backend, loss, rows, width):
    # A number divided by its length is a sign: its gradient is nothing but rounding.
    check(loss, *views(rows, width), 0.25, {}, normalize=width > 1, backend=backend)


@each_loss
@pytest.mark.parametrize("trained", ["first", "second", "scale", "first scale", "second scale"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_is_trained(backend, loss, trained, reduction):
    """Nobody else gets a gradient, and whoever is trained gets the same one."""
    inputs = dict(zip(("first", "second", "scale"), (*views(40), torch.tensor(5.0)), strict=True))
    outcomes = []
    for names in (trained, "first second scale"):
        leaves = {name: leaf(x, name in names) for name, x in inputs.items()}
        losses = call_loss(loss, *leaves.values(), reduction=reduction, backend=backend)
        losses.backward(torch.linspace(-1, 2, len(losses)) if losses.dim() else None)
        outcomes.append({name: x.grad for name, x in leaves.items()})
    for name, grad in outcomes[0].items():
        if name in trained:
            torch.testing.assert_close(grad, outcomes[1][name], rtol=1e-5, atol=1e-6)
        else:
            assert grad is None


@each_loss
def test_backward_may_run_twice_and_from_any_upstream(backend, loss):
    first, second = (x.requires_grad_() for x in views(40))
    value = call_loss(loss, first, second, 5.0, backend=backend)
    plain = torch.autograd.grad(value, (first, second), retain_graph=True)
    again = torch.autograd.grad(value, (first, second), retain_graph=True)
    scaled = torch.autograd.grad(-4 * value, (first, second))  # a power of two: exact
    for a, b, c in zip(plain, again, scaled, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(-4 * a, c)


@each_loss
@pytest.mark.parametrize("layout", [lambda x: x.T.contiguous().T, lambda x: x.repeat(1, 2)[:, :24]])
def test_not_contiguous(backend, loss, layout):
    pair = views(40)
    strided = [layout(x) for x in pair]
    assert not strided[0].is_contiguous()
    expected = call_loss(loss, *pair, 5.0, backend=backend)
    assert torch.equal(call_loss(loss, *strided, 5.0, backend=backend), expected)


@each_loss
def test_the_same_tensor_on_both_sides(backend, loss):
    """Its two gradients add up."""
    x = torch.randn(20, 8, dtype=torch.float64, requires_grad=True)
    value = call_loss(loss, x, x, 5.0, backend=backend)
    truth = call_loss(loss, x, x, 5.0, "textbook")
    torch.testing.assert_close(value, truth)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(truth, x))


def test_shapes_of_reductions(backend):
    first, second = views(6)
    kept = {"reduction": "none", "backend": backend}
    assert cl_kernels.nt_xent(first, second, **kept).shape == (12,)
    assert cl_kernels.info_nce(first, second, **kept).shape == (6,)
    assert cl_kernels.info_nce(first[:4], second, target=torch.arange(4), **kept).shape == (4,)
    assert cl_kernels.clip(first, second, 1.0, **kept).shape == (6,)
    assert cl_kernels.clip(first, second, 1.0, backend=backend).shape == ()
