"""Where a loss could lose its digits: tiny losses, half types, autocast, gradients that cancel."""

import pytest
import torch
from torch import nn

import cl_kernels
from catalogue import textbook
from python_tests.helpers import LOSSES, assert_frobenius, call_loss, frobenius, leaf, views

pytestmark = pytest.mark.usefixtures("nan_filled_memory")
each_loss = pytest.mark.parametrize("loss", LOSSES)


@pytest.mark.parametrize("loss", [name for name, case in LOSSES.items() if case.softmax])
@pytest.mark.parametrize("normalize", [False, True], ids=["unit inputs", "normalize"])
@pytest.mark.parametrize("noise", [0.3, 0.03, 1e-3])
def test_small_losses_keep_their_digits(backend, loss, noise, normalize):
    """At scale 100 ``logsumexp - positive`` cancels, even to negative losses; ours must not."""
    first, second = views(256, 64, noise=noise)
    if not normalize:
        first, second = nn.functional.normalize(first), nn.functional.normalize(second)
    first, second = first.requires_grad_(), second.requires_grad_()
    settings = {"normalize": normalize, "reduction": "none", "backend": backend}
    losses = call_loss(loss, first, second, 100.0, **settings)
    exact = [x.detach().double().requires_grad_() for x in (first, second)]
    truth = small_loss(loss, *exact, normalize)
    assert (losses >= 0).all()
    some = truth > 1e-36  # about where float32 ends
    assert some.any()
    assert (losses.mean() - truth.mean()).abs() <= 2e-5 * truth.mean()
    # One row may be unlucky: its positive, a logit of 100, is a float32 sum of 64 products.
    assert ((losses - truth)[some].abs() <= 4e-5 * truth[some]).all()
    assert (losses[~some] <= 1e-35).all()
    # Gradients in the same units: divided by the losses they are of order scale.
    grads = torch.autograd.grad((losses[some] / truth[some].float()).sum(), (first, second))
    expected = torch.autograd.grad((truth[some] / truth[some].detach()).sum(), exact)
    for ours, theirs in zip(grads, expected, strict=True):
        assert_frobenius(ours, theirs, 2e-5)


def small_loss(loss, first, second, normalize):
    """Negatives only, in float64: there ``F.cross_entropy`` cancels too once losses reach 1e-13."""
    first, second = textbook.rows(first, normalize), textbook.rows(second, normalize)
    queries = torch.cat([first, second]) if loss == "nt_xent" else first
    keys = queries if loss == "nt_xent" else second
    similarity = 100.0 * queries @ keys.T
    drop = torch.eye(len(first), dtype=torch.bool)
    if loss == "nt_xent":
        drop = drop.repeat(2, 2)
    positive = 100.0 * (first * second).sum(1)
    rest = similarity.masked_fill(drop, -torch.inf)
    if loss == "clip":
        both = [nn.functional.softplus(rest.logsumexp(dim) - positive) for dim in (1, 0)]
        return sum(both) / 2
    return nn.functional.softplus(rest.logsumexp(1) - positive.repeat(len(queries) // len(first)))


@each_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [2.0, 14.0, 100.0])
def test_half_types_are_no_worse_than_eager(backend, loss, dtype, scale):
    first, second = views(200, 64, dtype)

    def evaluate(form, dtype, **options):
        leaves = leaf(first, True, dtype), leaf(second, True, dtype)
        value = call_loss(loss, *leaves, scale, form, **options)
        return value, *torch.autograd.grad(value, leaves)

    ours = evaluate("ours", dtype, backend=backend)
    eager = evaluate("textbook", dtype)
    truth = evaluate("textbook", torch.float64)
    assert ours[0].dtype == torch.float32
    assert ours[1].dtype == dtype
    # What the last rounding of theirs hits by luck is not asked of ours.
    luck = torch.finfo(dtype).eps / 16
    for mine, theirs, exact in zip(ours, eager, truth, strict=True):
        assert frobenius(mine, exact) <= max(frobenius(theirs, exact), luck)


@each_loss
def test_autocast_rounds_only_the_tile_products(backend, loss):
    first, second = (x.requires_grad_() for x in views(100, 32))
    exact = call_loss(loss, first, second, 10.0, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = call_loss(loss, first, second, 10.0, backend=backend)
        eager = call_loss(loss, first, second, 10.0, "textbook")
    assert mixed.dtype == torch.float32
    assert mixed != exact
    assert (mixed - exact).abs() <= (eager - exact).abs()
    grads = [torch.autograd.grad(x, first)[0] for x in (mixed, exact)]
    assert grads[0].dtype == torch.float32
    assert frobenius(*grads) < 1e-2


@each_loss
def test_float16_gradients_of_a_large_batch(backend, loss):
    """Weights of about 1/N**2 are subnormal in float16; the gradient itself is not lost."""
    rows = 1500
    first, second = (torch.randn(rows, 8).half() for _ in range(2))
    reference = leaf(first, True, torch.float64)
    (truth,) = torch.autograd.grad(
        call_loss(loss, reference, second.double(), 2.0, "textbook"), reference
    )
    x = leaf(first, True)
    (grad,) = torch.autograd.grad(call_loss(loss, x, second, 2.0, backend=backend), x)
    stored = frobenius(truth.half(), truth)  # float16's own rounding of such small numbers
    assert frobenius(grad, truth) <= 1e-3 + 1.1 * stored


def test_one_rounding_of_positives_and_negatives(backend):
    """Their gradients nearly cancel at a high mean cosine: they are added before rounding."""
    first, second = views(128, 64, torch.bfloat16, noise=0.1)
    common = 3 * torch.randn(64)
    first, second = (first + 3 * common).bfloat16(), (second + common).bfloat16()
    x = leaf(first, True)
    (grad,) = torch.autograd.grad(cl_kernels.clip(x, second, 20.0, normalize=True), x)
    exact = leaf(first, True, torch.float64)
    loss = textbook.clip(exact, second.double(), 20.0, normalize=True)
    (truth,) = torch.autograd.grad(loss, exact)
    assert frobenius(grad, truth) < 2e-2
