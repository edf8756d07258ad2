"""Losses that make their gradients in one step: contexts that autograd sees to elsewhere."""

import pytest
import torch

import cl_kernels
from catalogue.family import FAMILY
from python_tests.helpers import assert_frobenius

NAMES = (
    "supcon",
    "hard_negative",
    "multi_similarity",
    "triplet",
    "pairwise_contrastive",
    "mega_batch_margin",
    "proxy_anchor",
)
each_loss = pytest.mark.parametrize("name", NAMES)
of_rows = pytest.mark.parametrize("name", [n for n in NAMES if FAMILY[n].reductions])


def arguments(name, dtype=torch.float32):
    given = FAMILY[name].arguments("plain", 24, 16)
    return {k: x.to(dtype).requires_grad_() if floating(x) else x for k, x in given.items()}


def floating(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def trained(given):
    return [x for x in given.values() if floating(x) and x.requires_grad]


@each_loss
def test_a_scaled_loss_keeps_small_gradients_in_float16(name):
    """What a GradScaler multiplies the loss by reaches the gradient before it is rounded."""
    given = arguments(name, torch.float16)
    scale = 2.0**14
    found = torch.autograd.grad(scale * FAMILY[name].ours(**given), trained(given))
    exact = {
        k: x.detach().double().requires_grad_() if floating(x) else x for k, x in given.items()
    }
    truth = torch.autograd.grad(scale * FAMILY[name].textbook(**exact), trained(exact))
    for grad, expected in zip(found, truth, strict=True):
        assert grad.dtype == torch.float16
        assert_frobenius(grad, expected, 3e-3)


@of_rows
def test_rows_losses_pull_twice_alike(name):
    given = arguments(name)
    losses = FAMILY[name].ours(**given, reduction="none")
    upstream = torch.randn_like(losses)
    once, again = (
        torch.autograd.grad(losses, trained(given), upstream, retain_graph=True) for _ in range(2)
    )
    assert all(map(torch.equal, once, again))
    torch.autograd.grad(losses, trained(given), upstream)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(losses, trained(given), upstream)


@pytest.mark.parametrize("name", ["supcon", "multi_similarity", "triplet", "mega_batch_margin"])
def test_rows_changed_in_place_are_noticed(name):
    given = arguments(name)
    x = next(iter(trained(given)))
    losses = FAMILY[name].ours(**given, reduction="none", normalize=False)
    with torch.no_grad():
        x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


@pytest.mark.parametrize("name", ["supcon", "multi_similarity", "triplet"])
def test_labels_changed_in_place_are_noticed(name):
    given = arguments(name)
    losses = FAMILY[name].ours(**given, reduction="none")
    given["labels"].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


@each_loss
def test_a_total_is_made_of_what_was_there(name):
    """Its gradient is there already: what changes after it does not matter."""
    given = arguments(name)
    expected = torch.autograd.grad(FAMILY[name].ours(**given), trained(given))
    loss = FAMILY[name].ours(**given)
    with torch.no_grad():
        for x in trained(given):
            x.zero_()
    assert all(map(torch.equal, torch.autograd.grad(loss, trained(given)), expected))


@pytest.mark.parametrize("frozen", ["x", "proxies"])
def test_frozen_sides(frozen):
    given = arguments("proxy_anchor", torch.float64)
    given |= {"margin": torch.tensor(0.2, dtype=torch.float64, requires_grad=True)}
    given[frozen] = given[frozen].detach()
    found, truth = (
        torch.autograd.grad(form(**given), trained(given))
        for form in (cl_kernels.proxy_anchor, FAMILY["proxy_anchor"].textbook)
    )
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)


@each_loss
def test_only_a_number_is_trained(name):
    case = FAMILY[name]
    learned = [option for option in case.options if "learned" in option]
    for option in learned:
        given = {
            k: x.double().requires_grad_(x.dim() == 0) if floating(x) else x
            for k, x in case.arguments(option, 24, 16).items()
        }
        found, truth = (
            torch.autograd.grad(form(**given), trained(given))
            for form in (case.ours, case.textbook)
        )
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12)
    assert learned or name == "hard_negative"


def test_the_same_tensor_twice():
    x = torch.randn(12, 8, dtype=torch.float64, requires_grad=True)
    found, truth = (
        torch.autograd.grad(form(x, x, negative_margin=-0.5), x)
        for form in (cl_kernels.mega_batch_margin, FAMILY["mega_batch_margin"].textbook)
    )
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)
    found, truth = (
        torch.autograd.grad(form(x, x), x)
        for form in (cl_kernels.hard_negative, FAMILY["hard_negative"].textbook)
    )
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)


def test_second_derivatives_are_refused():
    given = arguments("multi_similarity")
    loss = cl_kernels.multi_similarity(**given)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(loss, trained(given), create_graph=True)
