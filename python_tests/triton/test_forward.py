"""Forward kernels: rows, rows and columns, the Gram matrix's rows, and weighted keys."""

import pytest
import torch

from cl_kernels.backends import reference
from cl_kernels.backends import triton as kernels
from cl_kernels.backends.gpu import cuts
from cl_kernels.backends.triton import configs
from cl_kernels.backends.triton.pairs import guide_rows
from cl_kernels.statistics.table import SIDES

from .cases import (
    DEVICE,
    DTYPES,
    OPTION_SETS,
    SUMS,
    Case,
    assert_gradient,
    assert_value,
    bounds_of,
    filters_of,
    options_of,
    random_case,
    unit_rows,
)  # fmt: skip


def check_forward(case, gram=True, fold="logsumexp"):
    for sides in SIDES[: 2 + gram]:
        name = f"{sides}_{fold}"
        pairs = zip(case.forward(kernels, name), case.exact.forward(reference, name), strict=True)
        for actual, expected in pairs:
            if expected.is_floating_point():
                assert_value(actual, expected, case.scale)
            else:
                assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scale", "bound"), [(10.0, 10.5), (-70.0, 75.0), (100.0, None)])
def test_values(dtype, scale, bound):
    check_forward(random_case(dtype=dtype, scale=scale, bound=bound))


@pytest.mark.parametrize("name", ["different", "same", "two", "three"])
@pytest.mark.parametrize("bound", [None, 20.0])
def test_filters(name, bound):
    check_forward(random_case(40, 50, filters=filters_of(name, 40, 50), bound=bound), gram=False)
    check_forward(random_case(40, 40, filters=filters_of(name, 40, 40), bound=bound))


@pytest.mark.parametrize(
    ("M", "N", "D"),
    [(1, 1, 1), (1, 100, 3), (100, 1, 16), (64, 96, 17), (33, 31, 100), (40, 40, 300)],
)
def test_shapes(M, N, D):
    check_forward(random_case(M, N, D, scale=5.0))


@pytest.mark.parametrize("bound", [None, 20.0])
def test_width_read_in_chunks(monkeypatch, bound):
    monkeypatch.setattr(configs, "candidates", lambda *_: [configs.Config(32, 16, 16, 4, 1)])
    check_forward(random_case(50, 70, 100, bound=bound))


@pytest.mark.parametrize("bound", [None, 20.0])
def test_column_sums_in_waves(monkeypatch, bound):
    """Workspace for the partial sums of two row blocks at a time."""
    monkeypatch.setattr(cuts, "PARTIAL_BYTES", 2 * 50 * 4)
    check_forward(random_case(110, 50, bound=bound))


def test_scale_zero_counts_keys():
    case = random_case(40, 50, scale=0.0)
    (row,) = case.forward(kernels, "row_logsumexp")
    torch.testing.assert_close(row, torch.full((40,), 50.0, device=DEVICE).log())


def test_logits_far_from_zero():
    """Vectors that are not unit: exponentials without a running maximum would overflow."""
    case = Case(40 * unit_rows(50, 24), 30 * unit_rows(60, 24), scale=-1.5)
    check_forward(case)


@pytest.mark.parametrize("bound", [None, 20.0])
def test_rows_without_a_key(bound):
    query_ids = torch.arange(40, device=DEVICE) % 7
    filters = [(query_ids, query_ids.clamp_max(5), True)]
    case = random_case(40, 40, filters=filters, bound=bound)
    (row,) = case.forward(kernels, "row_logsumexp")
    assert (row[query_ids == 6] == -torch.inf).all()
    check_forward(case)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["none", "different", "same"])
def test_rows_that_are_not_finite(value, name):
    """They reach what keeps them and nothing else."""
    case = random_case(40, 40, filters=filters_of(name, 40, 40))
    case.query[3], case.key[33, 2], case.key[39] = value, value, value
    check_forward(case)


def test_filters_that_are_not_symmetric():
    M = 40
    query_ids, key_ids = torch.arange(M, device=DEVICE) % 3, torch.arange(M, device=DEVICE) % 4
    for same in (True, False):
        for bound in (None, 20.0):
            check_forward(random_case(M, M, filters=[(query_ids, key_ids, same)], bound=bound))


@pytest.mark.parametrize(("M", "N"), [(0, 5), (5, 0), (0, 0)])
def test_empty(M, N):
    case = random_case(M, N, 8, peaked=False)
    row, col = case.forward(kernels, "row_col_logsumexp")
    assert row.shape == (M,)
    assert col.shape == (N,)
    assert (row == -torch.inf).all() and (col == -torch.inf).all()
    assert case.weighted_key(kernels)[1].shape == (M, 8)
    assert case.forward(kernels, "self_logsumexp")[0].shape == (M,)


def check_weighted_key(case):
    lse, key = case.weighted_key(kernels)
    exact_lse, exact_key = case.exact.weighted_key(reference)
    assert_value(lse, exact_lse, case.scale)
    assert_gradient(key, exact_key, case.query.dtype, case.scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["none", "two"])
@pytest.mark.parametrize("D", [40, 300])
def test_weighted_key(dtype, name, D):
    check_weighted_key(random_case(40, 50, D, dtype=dtype, filters=filters_of(name, 40, 50)))


def test_weighted_key_of_few_queries_is_split():
    check_weighted_key(random_case(5, 300, 32))


def test_weighted_key_of_rows_that_are_not_finite():
    case = random_case(40, 40, filters=filters_of("different", 40, 40))
    case.key[7] = torch.nan
    case.query[9] = torch.nan
    check_weighted_key(case)


@pytest.mark.parametrize("bound", [None, 20.0])
@pytest.mark.parametrize("name", ["none", "two"])
def test_bounds_of_similarities(name, bound):
    filters = filters_of(name, 40, 40)
    bounds = bounds_of(40)
    for chosen in (bounds, {"below": bounds["below"]}, {"above": bounds["above"]}):
        case = random_case(40, 40, filters=filters, bound=bound, **chosen)
        check_forward(case)
        check_weighted_key(case)
    case.key[7] = torch.nan  # neither below nor above anything
    case.query[9] = torch.nan
    check_forward(case)
    check_weighted_key(case)


@pytest.mark.parametrize("fold", SUMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [10.0, -3.0, 100.0])
def test_sums(fold, dtype, scale):
    case = random_case(40, 40, dtype=dtype, scale=scale, filters=filters_of("two", 40, 40))
    check_forward(case, fold=fold)
    check_forward(random_case(dtype=dtype, scale=scale), gram=False, fold=fold)


@pytest.mark.parametrize("fold", SUMS)
@pytest.mark.parametrize(("M", "N"), [(1, 1), (5, 300), (110, 50), (0, 5), (5, 0)])
def test_sums_of_other_sizes(monkeypatch, fold, M, N):
    """Split over programs, and columns in waves."""
    monkeypatch.setattr(cuts, "PARTIAL_BYTES", 2 * 50 * 4)
    check_forward(random_case(M, N, 8, peaked=False), fold=fold)


@pytest.mark.parametrize("fold", SUMS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_sums_of_rows_that_are_not_finite(fold, value):
    for name in ("none", "different"):
        case = random_case(40, 40, filters=filters_of(name, 40, 40), **bounds_of(40))
        case.query[3], case.key[33, 2], case.key[39] = value, value, value
        check_forward(case, fold=fold)
        case.below = case.above = None
        check_forward(case, fold=fold)


def test_a_sum_of_many_tiles(monkeypatch):
    """More than float32 could add up one by one."""
    monkeypatch.setattr(cuts, "processors", lambda device: 1)
    monkeypatch.setattr(configs, "candidates", lambda *_: [configs.Config(16, 64, 0, 4, 1)])
    case = Case(*(torch.ones(n, 1, device=DEVICE) for n in (3, 16_000)), 0.1)
    for ours, truth in zip(
        case.forward(kernels, "row_hinge_sum"),
        case.exact.forward(reference, "row_hinge_sum"),
        strict=True,
    ):
        assert_value(ours, truth, case.scale)


@pytest.mark.parametrize("fold", ["logsumexp", *SUMS])
@pytest.mark.parametrize("options", OPTION_SETS)
def test_options(fold, options):
    case = random_case(40, 50, filters=filters_of("two", 40, 50), **options_of(options, 40, 50))
    check_forward(case, gram=False, fold=fold)
    check_forward(random_case(40, 40, **options_of(options, 40, 40)), fold=fold)


@pytest.mark.parametrize("options", OPTION_SETS)
def test_options_of_weighted_keys(options):
    check_weighted_key(random_case(40, 50, **options_of(options, 40, 50)))


def test_guides_are_sums_of_numbers_that_tf32_holds():
    """The interpreter multiplies in float32; a GPU rounds the factors to ten bits."""
    x, y = unit_rows(20, 50), unit_rows(30, 50)
    left, right = guide_rows(x, 0, 0, 1), guide_rows(y, 0, 1, 0)
    assert left.shape[1] % 32 == right.shape[1] % 32 == 0
    exact, first = x.double() @ y.double().T, left[:, :50].double() @ right[:, :50].double().T
    assert ((left[:, :50].contiguous().view(torch.int32) & 0x1FFF) == 0).all()
    assert (left.double() @ right.double().T - exact).abs().max() < 2.0**-20
    assert (first - exact).abs().max() > 2.0**-16  # rounding once is not enough
