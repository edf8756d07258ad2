"""Every statistic with every option of ``Pairs``, against the dense float64 truth."""

import itertools

import pytest
import torch

import cl_kernels
from cl_kernels.statistics.table import STATISTICS
from python_tests.helpers import (
    SUMS,
    check_primitive,
    embeddings,
    filters,
    leaf,
    some_options,
    statistics,
    unit_rows,
)

pytestmark = pytest.mark.usefixtures("nan_filled_memory")
each_statistic = pytest.mark.parametrize("primitive", STATISTICS)
each_sum = pytest.mark.parametrize("primitive", SUMS)
OPTIONS = ("below", "above", "query_bias", "key_bias", "guide")
SETS = (*((name,) for name in OPTIONS), ("below", "above"), ("query_bias", "key_bias"), OPTIONS)


@each_sum
@pytest.mark.parametrize("scale", [0.3, 14.0, 100.0, -20.0])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
def test_sums(backend, primitive, dtype, scale):
    query, key = embeddings(190, 130, 48, dtype, peaked=True)
    check_primitive(primitive, query, key, scale, backend=backend)


@each_sum
@pytest.mark.parametrize("size", [(1, 1, 1), (37, 1, 5), (257, 129, 33), (700, 1300, 48)], ids=str)
@pytest.mark.parametrize("kind", ["none", "not me, same", "nothing left"])
def test_sums_of_other_sizes(backend, primitive, size, kind):
    M, N, D = size
    N = M if STATISTICS[primitive].of_one else N
    query, key = embeddings(M, N, D)
    where = filters(kind, M, N)
    check_primitive(primitive, query, key, 10.0, where=where, backend=backend)


@each_statistic
@pytest.mark.parametrize("names", SETS, ids="+".join)
@pytest.mark.parametrize("kind", ["not me, same"])
@pytest.mark.parametrize("size", [(300, 180, 24)], ids=str)
def test_options(backend, primitive, names, kind, size):
    M, N, D = size
    N = M if STATISTICS[primitive].of_one else N
    query, key = embeddings(M, N, D, peaked=True)
    options = some_options(names, M, N)
    check_primitive(
        primitive, query, key, 12.0, where=filters(kind, M, N), options=options, backend=backend
    )


@each_statistic
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_options_in_other_dtypes(backend, primitive, dtype):
    query, key = embeddings(130, 130, 16, dtype, peaked=True)
    options = some_options(OPTIONS, 130, 130, dtype)
    check_primitive(primitive, query, key, 12.0, options=options, backend=backend)


@each_statistic
@pytest.mark.parametrize("trained", ["", "query", "key", "scale", "query scale"])
def test_biases_are_trained_whatever_else_is(backend, primitive, trained):
    query, key = embeddings(70, 70, 12)
    options = some_options(("query_bias", "key_bias"), 70, 70)
    check_primitive(primitive, query, key, 5.0, trained=trained, options=options, backend=backend)


@each_statistic
def test_gradcheck(backend, primitive):
    M, N = 6, 6 if STATISTICS[primitive].of_one else 5
    query, key = (leaf(x, True) for x in embeddings(M, N, 4, torch.float64))
    scale = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    options = some_options(OPTIONS, M, N, torch.float64)
    biases = [options.pop(name).requires_grad_() for name in ("query_bias", "key_bias")]

    def f(query, key, scale, query_bias, key_bias):
        results = statistics(
            primitive, query, key, scale, query_bias=query_bias, key_bias=key_bias,
            normalize=True, backend=backend, **options,
        )  # fmt: skip
        results = (r for r in results if r.is_floating_point())
        return tuple(r.masked_fill(r == -torch.inf, 0) for r in results)

    assert torch.autograd.gradcheck(f, (query, key, scale, *biases))


@each_statistic
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_normalize(backend, primitive, dtype):
    """As of unit rows that are never rounded before the products."""
    query, key = (leaf(3 * x.float(), True, dtype) for x in embeddings(40, 40, 8))
    unit = [torch.nn.functional.normalize(x.float()) for x in (query, key)]
    settings = {"compute_dtype": dtype, "backend": backend}
    ours = statistics(primitive, query, key, 7.0, normalize=True, **settings)
    expected = statistics(primitive, *unit, 7.0, **settings)
    floating = [[x for x in results if x.is_floating_point()] for results in (ours, expected)]
    for x, y in zip(*floating, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
    wanted = (query,) if STATISTICS[primitive].of_one else (query, key)
    grads = [torch.autograd.grad(sum(x.sum() for x in xs), wanted) for xs in floating]
    for x, y in zip(*grads, strict=True):
        assert x.dtype == dtype
        torch.testing.assert_close(x, y, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)


def test_one_number_for_all_rows(backend):
    x = unit_rows(9, 4)
    bias = torch.tensor(-1.5, requires_grad=True)
    ours = cl_kernels.row_softplus_sum(x, x, 4.0, query_bias=bias, below=0.7, backend=backend)
    many = cl_kernels.row_softplus_sum(
        x, x, 4.0, query_bias=bias.expand(9), below=torch.full((9,), 0.7), backend=backend
    )
    assert torch.equal(ours, many)
    (grad,) = torch.autograd.grad(ours.sum(), bias)
    logits = 4 * x @ x.T - 1.5
    expected = torch.where(x @ x.T < 0.7, logits.sigmoid(), 0).sum()
    torch.testing.assert_close(grad, expected)


def test_bounds_keep_nothing_that_equals_them(backend):
    x = torch.eye(3)
    ours = cl_kernels.row_hinge_sum(x, x, 1.0, below=1.0, query_bias=1.0, backend=backend)
    assert torch.equal(ours.active, torch.full((3,), 2))
    ours = cl_kernels.row_hinge_sum(x, x, 1.0, above=0.0, query_bias=1.0, backend=backend)
    assert torch.equal(ours.active, torch.full((3,), 1))


def test_a_ceiling_keeps_what_equals_it(backend):
    x, guide = torch.eye(3), torch.eye(3)
    ours = cl_kernels.row_hinge_sum(
        x, x, query_bias=1.0, guide=(guide, guide, 1.0), backend=backend
    )
    assert torch.equal(ours.active, torch.full((3,), 3))
    ours = cl_kernels.row_hinge_sum(
        x, x, query_bias=1.0, guide=(guide, guide, 0.5), backend=backend
    )
    assert torch.equal(ours.active, torch.full((3,), 2))


@pytest.mark.parametrize("primitive", ["row_hinge_sum", "self_hinge_sum"])
def test_counts_have_no_gradient(backend, primitive):
    x = unit_rows(8, 4).requires_grad_()
    total, active = statistics(primitive, x, x, 3.0, backend=backend)
    assert total.requires_grad and not active.requires_grad and active.dtype == torch.int64
    grad = torch.func.grad(lambda x: statistics(primitive, x, x, 3.0, backend=backend)[0].sum())
    (expected,) = torch.autograd.grad(total.sum(), x)
    torch.testing.assert_close(grad(x.detach()), expected)


BAD = {
    "below": ({"below": torch.ones(3)}, ValueError, r"below: .*4 queries.*\[3\]"),
    "above, integers": ({"above": torch.arange(4)}, TypeError, "above: .*int64"),
    "above, NaN": ({"above": float("nan")}, ValueError, "above: expected numbers, got a NaN"),
    "contradiction": (
        {"below": 0.5, "above": torch.tensor([0.1, 0.2, 0.5, 0.3])},
        ValueError,
        "below: expected more than above, got 0.5 and 0.5 for query 2",
    ),
    "query_bias": ({"query_bias": torch.ones(5)}, ValueError, r"query_bias: .*4 queries.*\[5\]"),
    "key_bias": ({"key_bias": torch.ones(4)}, ValueError, r"key_bias: .*5 keys.*\[4\]"),
    "infinite bias": ({"key_bias": torch.inf}, ValueError, "key_bias: expected finite numbers"),
    "bias, a word": ({"query_bias": "1"}, TypeError, "query_bias: expected a number or a tensor"),
    "guide, no triple": ({"guide": (1, 2)}, TypeError, "guide: expected"),
    "guide, no ceiling": (
        {"guide": (torch.ones(4, 2), torch.ones(5, 2), None)}, TypeError, "guide: .*ceiling",
    ),
    "guide, rows": (
        {"guide": (torch.ones(4, 2), torch.ones(4, 2), 0.5)}, ValueError, "guide: .*5 keys, got 4",
    ),
    "guide, widths": (
        {"guide": (torch.ones(4, 2), torch.ones(5, 3), 0.5)}, ValueError, "guide: key: .*width",
    ),
    "guide, ceiling": (
        {"guide": (torch.ones(4, 2), torch.ones(5, 2), torch.ones(2))}, ValueError,
        "guide: .*4 queries",
    ),
    "unknown": ({"belw": 1.0}, TypeError, "row_logsumexp: got an unexpected option, 'belw'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_options(case):
    options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        cl_kernels.row_logsumexp(*embeddings(4, 5, 3), **options)


def test_every_option_of_pairs_is_tested():
    from cl_kernels.pairs import OPTIONS as FIELDS

    assert set(FIELDS) - {"query_guide", "key_guide", "ceiling"} == set(OPTIONS) - {"guide"}
    assert {name for names, _ in itertools.product(SETS, [0]) for name in names} == set(OPTIONS)
