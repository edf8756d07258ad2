"""Values and gradients of every primitive against the dense float64 truth, by the accuracy rule."""

import pytest
import torch

import cl_kernels
from cl_kernels import PairFilter
from python_tests.helpers import (
    FILTERS,
    PRIMITIVES,
    TEMPERATURES,
    check_primitive,
    embeddings,
    filters,
    gradients,
    leaf,
    statistics,
    unit_rows,
    upstream_like,
)

pytestmark = pytest.mark.usefixtures("nan_filled_memory")
each_primitive = pytest.mark.parametrize("primitive", PRIMITIVES)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIZES = (  # M, N, D
    (1, 1, 1),
    (1, 1, 40),
    (1, 37, 5),
    (37, 1, 5),
    (300, 310, 1),
    (5, 3, 2),
    (64, 64, 64),
    (257, 129, 33),
    (513, 1025, 16),
    (700, 1300, 48),
    (96, 2300, 7),
    (70, 50, 300),
)


@each_primitive
@pytest.mark.parametrize("peaked", [False, True], ids=["flat", "peaked"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_temperatures(backend, primitive, dtype, temperature, peaked):
    query, key = embeddings(190, 130, 48, dtype, peaked=peaked)
    check_primitive(primitive, query, key, 1 / temperature, backend=backend)


@each_primitive
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sizes(backend, primitive, dtype, size):
    query, key = embeddings(*size, dtype, peaked=size[0] % 2 == 1)
    if primitive == "self_logsumexp":
        query = torch.cat([query, key])  # both sizes count
    check_primitive(primitive, query, key, 10.0, backend=backend)


@each_primitive
@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("size", [(9, 6), (300, 180), (700, 1300)], ids=str)
def test_filters(backend, primitive, kind, size):
    M, N = size if primitive != "self_logsumexp" else (sum(size), sum(size))
    query, key = embeddings(M, N, 24, peaked=True)
    where = filters(kind, M, N)
    check_primitive(primitive, query, key, 20.0, where=where, backend=backend)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8], ids=str)
def test_ids_of_small_integer_types(backend, dtype):
    x, ids = unit_rows(9, 4), torch.arange(9) % 4
    results = [
        cl_kernels.self_logsumexp(x, where=PairFilter(i, i, "different"), backend=backend)
        for i in (ids, ids.to(dtype))
    ]
    assert torch.equal(*results)


@each_primitive
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", FILTERS)
def test_filters_in_other_dtypes(backend, primitive, kind, dtype):
    query, key = embeddings(130, 130, 16, dtype, peaked=True)
    where = filters(kind, 130, 130)
    check_primitive(primitive, query, key, 20.0, where=where, backend=backend)


TRAINED = ("", "query", "key", "scale", "query key", "query scale", "key scale")


@each_primitive
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("kind", ["none", "not me, same"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_what_is_trained(backend, primitive, trained, kind, dtype):
    query, key = embeddings(140, 160, 20, dtype, peaked=True)
    if primitive == "self_logsumexp":
        key = query
    where = filters(kind, len(query), len(key))
    check_primitive(primitive, query, key, 5.0, trained=trained, where=where, backend=backend)


def strided(x):
    """The same numbers, neither contiguous nor transposed."""
    wide = x.new_zeros(2 * x.shape[0], 3 * x.shape[1])
    wide[::2, 1::3] = x
    return wide[::2, 1::3]


def transposed(x):
    return x.T.contiguous().T


@each_primitive
@pytest.mark.parametrize("layout", [strided, transposed])
@pytest.mark.parametrize("trained", ["query", "query key scale"])
def test_not_contiguous(backend, primitive, layout, trained):
    query, key = (layout(x) for x in embeddings(70, 90, 12, peaked=True))
    assert not query.is_contiguous()
    check_primitive(primitive, query, key, 5.0, trained=trained, backend=backend)


@each_primitive
def test_expanded_and_offset_inputs(backend, primitive):
    query = unit_rows(1, 12).expand(40, 12)
    key = unit_rows(33, 12)[3:]  # contiguous, but its data starts elsewhere
    check_primitive(primitive, query, key, 5.0, backend=backend)
    check_primitive(primitive, key, query, 5.0, backend=backend)


@each_primitive
def test_expanded_upstream_gradient(backend, primitive):
    x, key = embeddings(50, 50, 8)
    grads = []
    for reduce in (lambda r: r.sum(), lambda r: (r * torch.ones(50)).sum()):
        query = leaf(x, True)
        sum(map(reduce, statistics(primitive, query, key, 3.0, backend=backend))).backward()
        grads.append(query.grad)
    assert torch.equal(*grads)


@each_primitive
@pytest.mark.parametrize("products", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compute_dtype(backend, primitive, dtype, products):
    query, key = embeddings(150, 200, 32, dtype, peaked=True)
    rule = products if dtype == torch.float32 else torch.bfloat16
    if products == torch.float16 and dtype == torch.bfloat16:
        query, key = query.half().to(dtype), key.half().to(dtype)  # no product may round again
    options = {"compute_dtype": products, "backend": backend}
    check_primitive(primitive, query, key, 14.0, rule=rule, **options)


@each_primitive
@pytest.mark.parametrize("products", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(backend, primitive, products):
    query, key = embeddings(150, 200, 32, peaked=True)
    with torch.autocast("cpu", products):
        check_primitive(primitive, query, key, 14.0, rule=products, backend=backend)
    with torch.autocast("cpu", products):
        asked = {"compute_dtype": torch.float32, "backend": backend}
        check_primitive(primitive, query, key, 14.0, **asked)


@each_primitive
@pytest.mark.parametrize("products", [torch.bfloat16, torch.float16], ids=str)
def test_backward_outside_autocast(backend, primitive, products):
    """The backward pass uses the forward's products wherever it runs."""
    query, key = embeddings(60, 70, 16)
    grads = []
    for inside in (True, False):
        q = leaf(query, True)
        with torch.autocast("cpu", products):
            results = statistics(primitive, q, key, 9.0, backend=backend)
            if inside:
                torch.autograd.backward(results, [torch.ones_like(r) for r in results])
        if not inside:
            torch.autograd.backward(results, [torch.ones_like(r) for r in results])
        grads.append(q.grad)
    assert torch.equal(*grads)


@each_primitive
@pytest.mark.parametrize("products", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_tiny_upstream_gradients(backend, primitive, products):
    """1/N of a large batch, times a small weight, must not round to zero in float16."""
    query, key = embeddings(100, 120, 16, peaked=True)
    leaves, grads = (), []
    for factor in (1.0, 2.0**-30):  # a power of two: exact in every dtype that can hold it
        torch.manual_seed(1)
        leaves = leaf(query, True), leaf(key, True)
        options = {"compute_dtype": products, "backend": backend}
        results = statistics(primitive, *leaves, 9.0, **options)
        upstream = [g * factor for g in upstream_like(results)]
        trained = leaves if primitive != "self_logsumexp" else leaves[:1]
        grads.append([g / factor for g in gradients(results, upstream, trained)])
    for normal, tiny in zip(*grads, strict=True):
        assert (normal - tiny).norm() <= 1e-6 * normal.norm()


@each_primitive
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_zero(backend, primitive, dtype):
    query, key = embeddings(40, 50, 8, dtype)
    check_primitive(primitive, query, key, 0.0, backend=backend)


@each_primitive
@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("trained", ["query", "query key scale"])
def test_empty(backend, primitive, size, trained):
    M, N = size
    query, key = unit_rows(M, 4), unit_rows(N, 4)
    check_primitive(primitive, query, key, 2.0, trained=trained, backend=backend)
    where = filters("not me, same", M, M if primitive == "self_logsumexp" else N)
    check_primitive(primitive, query, key, 2.0, where=where, backend=backend)


@each_primitive
@pytest.mark.parametrize("length", [1e-3, 5.0, 30.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vectors_that_are_not_unit(backend, primitive, dtype, length):
    """Logits up to 1e4: only running maxima keep the sums in range."""
    query, key = torch.randn(300, 16) * length, torch.randn(400, 16) * length
    lengths = torch.logspace(-2, 0, 300)[:, None]  # rows of very different size
    query, key = (query * lengths).to(dtype), key.to(dtype)
    check_primitive(primitive, query, key, 1.0, backend=backend)
    check_primitive(primitive, query, key, -1.0, backend=backend)


@each_primitive
def test_maximum_grows_and_shrinks_along_the_keys(backend, primitive):
    """Sorted logits of +-1e4: every tile's maximum beats the last one, or none does."""
    ramp = torch.linspace(-100, 100, 1500)[:, None]
    query = torch.tensor([100.0, -100.0, 1.0, -1.0] * 3)[:, None]
    check_primitive(primitive, query, ramp, 1.0, backend=backend)
    check_primitive(primitive, ramp, query, 1.0, backend=backend)


@each_primitive
@pytest.mark.parametrize("bound", [20.0, 20.02, 1e6])
def test_logit_bound_changes_nothing(backend, primitive, bound):
    query, key = embeddings(70, 90, 12, peaked=True)
    check_primitive(primitive, query, key, 20.0, logit_bound=bound, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pair_logits(dtype):
    query, key = embeddings(30, 30, 12, dtype)
    result = cl_kernels.pair_logits(query, key, 2.0)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = 2 * (query.double() * key.double()).sum(1)
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-6)
