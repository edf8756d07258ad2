"""The kernels behind the package's own functions: autograd, torch.compile, refusals."""

from itertools import product

import pytest
import torch

import cl_kernels
from cl_kernels._dispatch import Request
from cl_kernels.backends import triton as kernels
from cl_kernels.pairs import OPTIONS
from python_tests.helpers import assert_own_memory

from .cases import DEVICE, random_case, unit_rows, upstream


def step(query, key, scale, backend):
    query, key, scale = (t.detach().clone().requires_grad_() for t in (query, key, scale))
    row, col = cl_kernels.row_col_logsumexp(query, key, scale, backend=backend)
    gram = cl_kernels.self_logsumexp(query, scale, backend=backend)
    (row.mean() + 2 * col.mean() - gram.sum()).backward()
    return query.grad, key.grad, scale.grad


def test_gradients_through_autograd():
    args = unit_rows(40, 24), unit_rows(30, 24), torch.tensor(8.0, device=DEVICE)
    for actual, expected in zip(step(*args, "triton"), step(*args, "reference"), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_frozen_keys():
    """The query's gradient is made in the forward visit."""
    query, key = unit_rows(20, 24), unit_rows(90, 24)
    grads = []
    for backend in ("triton", "reference"):
        q = query.clone().requires_grad_()
        scale = torch.tensor(8.0, device=DEVICE, requires_grad=True)
        cl_kernels.row_logsumexp(q, key, scale, backend=backend).sum().backward()
        grads.append((q.grad, scale.grad))
    for actual, expected in zip(*grads, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_compiled_without_a_graph_break():
    def loss(query, key):
        return cl_kernels.row_logsumexp(query, key, 5.0, backend="triton").mean()

    query, key = unit_rows(20, 16).requires_grad_(), unit_rows(30, 16)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    compiled(query, key).backward()
    grad, query.grad = query.grad, None
    loss(query, key).backward()
    torch.testing.assert_close(grad, query.grad)


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a CUDA GPU")
def test_captured_in_a_cuda_graph():
    query, key = unit_rows(200, 64), unit_rows(300, 64)
    scale = torch.tensor(8.0, device=DEVICE)
    expected = step(query, key, scale, "triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = step(query, key, scale, "triton")
    graph.replay()
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-6)


def test_float64_is_refused():
    assert "float64" in kernels.unsupported(DEVICE, torch.float64)
    x = torch.randn(4, 4, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match="float64"):
        cl_kernels.row_logsumexp(x, x, backend="triton")


def test_a_width_beyond_the_table_is_refused():
    x = torch.randn(4, 5000, device=DEVICE)
    with pytest.raises(ValueError, match="up to 4096 columns, got 5000"):
        cl_kernels.row_logsumexp(x, x, backend="triton")
    cl_kernels.topk(x, x, 2, backend="triton")


def test_what_a_call_asks_for_is_refused_in_words():
    request = Request("row_logsumexp", DEVICE, torch.float32, torch.float32, 64)
    assert kernels.refuses(request) is None
    assert kernels.refuses(request._replace(options=OPTIONS)) is None
    search = request._replace(operation="topk", options=("below", "ceiling"))
    assert "searches do not take ceiling" in kernels.refuses(search)
    assert "float64" in kernels.refuses(request._replace(compute_dtype=torch.float64))


@pytest.mark.parametrize(("M", "N"), [(20, 30), (0, 5), (5, 0)])
def test_results_have_memory_of_their_own(M, N):
    case, square = (random_case(M, n, 16, peaked=False) for n in (N, M))
    grads, values = upstream(M, N), case.forward(kernels, "row_col_logsumexp")
    found = [values, case.forward(kernels, "row_logsumexp"), case.weighted_key(kernels)]
    found.append(square.forward(kernels, "self_logsumexp"))
    found.append(square.backward(kernels, "self_logsumexp", grads[:1], values[:1]))
    for need in product([True, False], repeat=2):
        found.append(case.backward(kernels, "row_logsumexp", grads[:1], values[:1], need))
        found.append(case.backward(kernels, "row_col_logsumexp", grads, values, need))
    found.append(kernels.topk(case.query, case.key, 3, None, None, None, None, case.pairs))
    for results in found:
        assert_own_memory(results, (*grads, *case.arguments()[:3], square.key))
