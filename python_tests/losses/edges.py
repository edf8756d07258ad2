"""What tests of a loss's edges share: values and gradients, of nothing, and against float64."""

import torch

import cl_kernels
from catalogue.family import metric
from python_tests.helpers import frobenius


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


def trained(x):
    return x.detach().clone().requires_grad_()


def graded(loss, x, *others, **settings):
    """The value, and the gradient of x."""
    x = trained(x)
    value = loss(x, *others, **settings)
    (grad,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), grad


def assert_as_textbook(name, x, *others, tolerance=1e-5, **settings):
    """Value and gradient of x against the dense form of the same numbers in float64."""
    value, grad = graded(getattr(cl_kernels, name), x, *others, **settings)
    exact = [o.double() if torch.is_floating_point(o) else o for o in others]
    truth, expected = graded(getattr(metric, name), x.double(), *exact, **settings)
    assert value.isfinite().all() and grad.isfinite().all()
    torch.testing.assert_close(value.double(), truth, rtol=tolerance, atol=tolerance)
    assert frobenius(grad, expected) <= tolerance or (grad - expected).norm() <= tolerance
