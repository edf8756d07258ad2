"""Losses of the wider family against their textbook forms in float64."""

import inspect

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

import cl_kernels
from catalogue.family import FAMILY
from python_tests.helpers import assert_frobenius, frobenius

pytestmark = pytest.mark.usefixtures("nan_filled_memory")
each_loss = pytest.mark.parametrize("case", FAMILY.values(), ids=FAMILY)
CASES = [(case, option) for case in FAMILY.values() for option in case.options]
each_option = pytest.mark.parametrize(
    ("case", "option"), CASES, ids=[f"{case.name}-{option}" for case, option in CASES]
)
B, D = 44, 24


def is_trained(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def cast(arguments, dtype):
    """With leaves in place of floating tensors; of half types only matrices are so."""
    return {
        name: (x.to(dtype if x.dim() > 1 or dtype == torch.float64 else x.dtype))
        .detach()
        .requires_grad_()
        if is_trained(x)
        else x
        for name, x in arguments.items()
    }


def evaluate(form, arguments, dtype, **more):
    """The value, and the gradients of all floating tensors by name."""
    arguments = cast(arguments, dtype)
    value = form(**arguments, **more)
    leaves = {name: x for name, x in arguments.items() if is_trained(x)}
    torch.manual_seed(1)
    upstream = torch.randn(value.shape).to(value.dtype) if value.dim() else None
    grads = torch.autograd.grad(value, list(leaves.values()), upstream, materialize_grads=True)
    return value.detach(), dict(zip(leaves, grads, strict=True))


def settings(case, **more):
    return {name: x for name, x in more.items() if name in inspect.signature(case.ours).parameters}


@each_option
def test_textbook_in_float64(backend, case, option):
    arguments = case.arguments(option, B, D)
    for reduction in case.reductions or (None,):
        chosen = {} if reduction is None else {"reduction": reduction}
        ours, grads = evaluate(
            case.ours, arguments, torch.float64, **chosen, **settings(case, backend=backend)
        )
        truth, expected = evaluate(case.textbook, arguments, torch.float64, **chosen)
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-11)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, expected[name], rtol=1e-8, atol=1e-10, msg=name)


@each_option
def test_float32(backend, case, option):
    arguments = case.arguments(option, B, D)
    ours, grads = evaluate(case.ours, arguments, torch.float32, **settings(case, backend=backend))
    truth, expected = evaluate(case.textbook, arguments, torch.float64)
    assert ours.dtype == torch.float32
    # Scales here are 20 at most.
    torch.testing.assert_close(ours.double(), truth, rtol=6e-6 * case.softer, atol=6e-6)
    for name, grad in grads.items():
        if grad.dim() > 1:
            assert_frobenius(grad, expected[name], 1e-5 * case.softer, name)
        else:
            atol = 2e-5 * max(1.0, float(expected[name].abs().max())) * case.softer
            torch.testing.assert_close(grad.double(), expected[name], rtol=1e-4, atol=atol)


@each_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_no_worse_than_eager(backend, case, dtype):
    arguments = case.arguments("plain", 64, 32)
    rounded = {k: x.to(dtype) if is_trained(x) and x.dim() > 1 else x for k, x in arguments.items()}
    ours = evaluate(case.ours, rounded, dtype, **settings(case, backend=backend))
    eager = evaluate(case.textbook, rounded, dtype)
    truth = evaluate(case.textbook, rounded, torch.float64)
    luck = torch.finfo(dtype).eps / 8
    assert frobenius(ours[0], truth[0]) <= max(frobenius(eager[0], truth[0]), luck)
    for name, grad in ours[1].items():
        if grad.dim() > 1:
            exact = truth[1][name]
            assert grad.dtype == dtype
            assert frobenius(grad, exact) <= max(1.2 * frobenius(eager[1][name], exact), 4 * luck)


@each_loss
def test_compiled(case):
    """For a batch, and once more for all others."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(case.ours, backend=backend)
    for rows in (B, B + 4, B + 9, B + 12):
        arguments = case.arguments("plain", rows, D)
        expected = evaluate(case.ours, arguments, torch.float32)
        found = evaluate(compiled, arguments, torch.float32)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(graphs) <= 3


@each_loss
def test_not_contiguous(case):
    arguments = case.arguments("plain", B, D)
    expected = evaluate(case.ours, arguments, torch.float32)
    strided = {
        name: x.T.contiguous().T if is_trained(x) and x.dim() == 2 else x
        for name, x in arguments.items()
    }
    found = evaluate(case.ours, strided, torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "case", [c for c in FAMILY.values() if c.module], ids=[n for n, c in FAMILY.items() if c.module]
)
def test_the_module_is_the_function(case):
    arguments = case.arguments("plain", B, D)
    module = case.module()
    assert torch.equal(module(**arguments), case.ours(**arguments))
    assert eval(repr(module), vars(cl_kernels)).__dict__.keys() == module.__dict__.keys()
    assert getattr(cl_kernels, case.module.__name__) is case.module


@each_loss
def test_its_source_is_named_in_its_docstring(case):
    assert getattr(cl_kernels, case.name) is case.ours
    documented = " ".join(inspect.getdoc(case.ours).split())
    title = case.paper.split("(")[0].split(",", 1)[1].strip()
    assert title.split(",")[0] in documented, title


@each_loss
def test_the_textbook_takes_what_the_function_takes(case):
    ours = inspect.signature(case.ours).parameters
    theirs = inspect.signature(case.textbook).parameters
    assert theirs.keys() <= ours.keys()
    for option in case.options:
        assert case.arguments(option, B, D).keys() <= theirs.keys()


@each_loss
def test_inside_torch_func(case):
    arguments = case.arguments("plain", B, D)
    name = next(iter(arguments))
    reductions = ("mean", "none") if "none" in case.reductions else (None,)
    for reduction in reductions:
        chosen = {} if reduction is None else {"reduction": reduction}

        def loss(x, chosen=chosen):
            return case.ours(**arguments | {name: x}, **chosen).sum()

        x = arguments[name].clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(x), x)
        torch.testing.assert_close(torch.func.grad(loss)(x.detach()), expected)
