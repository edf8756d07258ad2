"""Losses of two views: what their options mean, and their numbers."""

import pytest
import torch

import cl_kernels
from cl_kernels import decoupled, hard_negative, weighted_decoupled

B, D = 6, 5
of_views = pytest.mark.parametrize(
    "loss", [decoupled, weighted_decoupled, hard_negative], ids=lambda f: f.__name__
)


def trained(*shape):
    return torch.randn(*shape, requires_grad=True)


def rows(*shape, count=2):
    return [trained(*shape) for _ in range(count)]


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs, materialize_grads=True)


def test_decoupled_is_not_bounded_below():
    x = torch.eye(4)
    assert decoupled(x, x, 0.1) < 0


def test_partitions_differ_by_the_second_log_sum_exp():
    x, y = rows(2, D)  # one negative in each view
    x, y = (torch.nn.functional.normalize(z) for z in (x, y))
    joint, apart = (
        decoupled(x, y, 1.0, partition=p, reduction="none") for p in ("joint", "per_view")
    )
    within, across = (x[0] * x[1]).sum(), (x[0] * y[1]).sum()
    torch.testing.assert_close(
        (apart - joint)[0], within + across - torch.logaddexp(within, across)
    )


def test_weights_average_to_one():
    x, y = rows(B, D)
    even = weighted_decoupled(x, y, sigma=1e6)
    torch.testing.assert_close(even, decoupled(x, y), rtol=1e-4, atol=1e-5)


@of_views
def test_bad_options_of_views(loss):
    x, y = rows(B, D)
    with pytest.raises(ValueError, match="temperature: expected a finite number other than zero"):
        loss(x, y, 0.0)
    if loss is hard_negative:
        for name, value in (("beta", -1.0), ("beta", float("inf")), ("tau_plus", 1.0)):
            with pytest.raises(ValueError, match=f"{name}: expected"):
                loss(x, y, **{name: value})
        with pytest.raises(TypeError, match="tau_plus: expected a number"):
            loss(x, y, tau_plus=torch.tensor(0.1))
        return
    with pytest.raises(ValueError, match='partition: expected "joint" or "per_view"'):
        loss(x, y, partition="both")
    if loss is weighted_decoupled:
        with pytest.raises(ValueError, match="sigma: expected"):
            loss(x, y, sigma=0.0)


# Hard negatives.


def test_without_weights_and_correction_it_is_nt_xent():
    x, y = rows(B, D)
    plain = hard_negative(x, y, 0.2, beta=0.0, tau_plus=0.0)
    torch.testing.assert_close(plain, cl_kernels.nt_xent(x, y, 0.2))


def test_what_is_left_of_the_negatives_is_clamped():
    """Of pairs that are equal the correction takes more than there is."""
    x = torch.eye(4).requires_grad_()
    each = hard_negative(x, x.detach(), 0.01, tau_plus=0.5, reduction="none")
    # log(1 + N exp(-1 / t - 1 / t)) = 0 in float32.
    assert torch.equal(each, torch.zeros_like(each))
    assert gradients(each.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("temperature", [0.001, 0.01])
def test_hard_negatives_do_not_overflow(temperature):
    x, y = rows(B, D)
    loss = hard_negative(x, y, temperature, beta=2.0, tau_plus=0.2)
    exact = hard_negative(x.double(), y.double(), temperature, beta=2.0, tau_plus=0.2)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-3)
    assert all(grad.isfinite().all() for grad in gradients(loss, x, y))


# Multiple negatives ranking.
