"""Backward kernels: fused and in slabs, one side or both, ordered or not."""

from itertools import product

import pytest
import torch

from cl_kernels.backends import reference
from cl_kernels.backends import triton as kernels
from cl_kernels.backends.gpu import cuts
from cl_kernels.backends.triton import configs
from cl_kernels.statistics.table import STATISTICS

from .cases import (
    DEVICE,
    DTYPES,
    SUMS,
    assert_gradient,
    biases_of,
    bounds_of,
    filters_of,
    options_of,
    random_case,
    upstream,
)  # fmt: skip

SIDES = [(True, True), (True, False), (False, True), (False, False)]


@pytest.fixture(params=["fused", "ordered", "slabs"])
def path(request, monkeypatch, small_tiles):
    """Each way gradients are made, at widths where the table would choose another."""
    if request.param == "slabs":
        monkeypatch.setattr(configs, "KNEE", dict.fromkeys(configs.KNEE, 0))
        monkeypatch.setattr(cuts, "SLAB_BYTES", 32 * 32 * 4)
        monkeypatch.setattr(cuts, "SLAB_UNIT", 32)
    elif small_tiles:  # the table has no line for fused kernels beyond the knee
        monkeypatch.setattr(configs, "KNEE", dict.fromkeys(configs.KNEE, 256))
    torch.use_deterministic_algorithms(request.param == "ordered")
    yield request.param
    torch.use_deterministic_algorithms(False)


def differentiable(case, module, name):
    return STATISTICS[name].differentiable(case.forward(module, name))


def check_pair(case, need=(True, True), rows_only=False, grads=None, fold="logsumexp"):
    M, N, dtype = len(case.query), len(case.key), case.query.dtype
    name = f"{'row' if rows_only else 'row_col'}_{fold}"
    grads = upstream(M, N) if grads is None else grads
    given = grads[:1] if rows_only else grads
    values = differentiable(case, kernels, name)
    actual = case.backward(kernels, name, given, values, need)
    exact = differentiable(case.exact, reference, name)
    expected = case.exact.backward(reference, name, [g.double() for g in given], exact, need)
    for a, e in zip((*actual[:2], *actual[3:]), (*expected[:2], *expected[3:]), strict=True):
        assert_gradient(a, e, dtype, case.scale)
    # The scale's gradient is a small difference of large terms; those of a sum weigh up to 1 each.
    size = expected[2].abs() + grads[0].nan_to_num().norm() + grads[1].norm()
    size *= 1 if fold == "logsumexp" else max(M, N) ** 0.5
    assert torch.equal(actual[2].isnan(), expected[2].isnan())
    assert actual[2].isnan() or (actual[2] - expected[2]).abs() <= 4e-3 * size
    if dtype == torch.float32 and not actual[2].isnan():
        assert (actual[2] - expected[2]).abs() <= 1e-5 * size


def check_gram(case, grad=None, fold="logsumexp"):
    name = f"self_{fold}"
    (value,) = differentiable(case, kernels, name)
    (exact,) = differentiable(case.exact, reference, name)
    (grad,) = upstream(len(value)) if grad is None else [grad]
    actual = case.backward(kernels, name, [grad], [value])
    expected = case.exact.backward(reference, name, [grad.double()], [exact])
    for n in (0, 3, 4):
        assert_gradient(actual[n], expected[n], case.query.dtype, case.scale)
    assert actual[1].shape == expected[1].shape == (0,)
    assert torch.equal(actual[2].isnan(), expected[2].isnan())
    error = 1e-5 if case.query.dtype == torch.float32 else 4e-3
    assert actual[2].isnan() or (actual[2] - expected[2]).abs() <= error * (
        expected[2].abs() + grad.nan_to_num().norm()
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(path, dtype):
    case = random_case(dtype=dtype, scale=-20.0 if dtype == torch.float16 else 20.0)
    check_pair(case)
    check_pair(case, rows_only=True)
    check_gram(case)


def test_peaked_softmax(path):
    case = random_case(scale=100.0)
    check_pair(case)
    check_gram(case)


@pytest.mark.parametrize("need", SIDES)
def test_one_side(path, need):
    for (M, N), rows_only in product([(40, 50), (50, 40)], [True, False]):
        check_pair(random_case(M, N), need, rows_only)


@pytest.mark.parametrize("name", ["different", "same", "two", "three"])
def test_filters(path, name):
    for rows_only in (True, False):
        check_pair(random_case(40, 50, filters=filters_of(name, 40, 50)), rows_only=rows_only)
    check_gram(random_case(40, 40, filters=filters_of(name, 40, 40)))


def test_filters_that_are_not_symmetric(path):
    M = 70
    query_ids, key_ids = torch.arange(M, device=DEVICE) % 3, torch.arange(M, device=DEVICE) % 4
    for same in (True, False):
        check_gram(random_case(M, M, filters=[(query_ids, key_ids, same)]))


@pytest.mark.parametrize(
    ("M", "N", "D"), [(1, 1, 1), (1, 100, 3), (100, 1, 16), (64, 96, 17), (33, 31, 100)]
)
def test_shapes(path, M, N, D):
    case = random_case(M, N, D, scale=5.0)
    check_pair(case)
    check_pair(case, rows_only=True)
    check_gram(case)


def test_width_beyond_the_fused_kernels():
    case = random_case(50, 60, 300, scale=5.0, dtype=torch.bfloat16)
    check_pair(case)
    check_gram(case)


@pytest.mark.parametrize(("M", "N"), [(0, 5), (5, 0)])
def test_empty(path, M, N):
    case = random_case(M, N, 8, peaked=False)
    check_pair(case)
    check_gram(case)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["none", "different", "same"])
def test_rows_that_are_not_finite(path, value, name):
    filters = filters_of(name, 40, 40)
    for rows_only in (True, False):
        case = random_case(40, 40, filters=filters)
        case.query[3], case.key[33, 2] = value, value
        check_pair(case, rows_only=rows_only)
        case.query[39] = value
        check_gram(case)


def test_a_dropped_row_that_is_not_finite_poisons_nothing(path):
    query_ids = torch.zeros(40, dtype=torch.int64, device=DEVICE)
    key_ids = query_ids.clone()
    key_ids[5] = 1
    case = random_case(40, 40, filters=[(query_ids, key_ids, True)])
    case.key[5] = torch.nan
    check_pair(case)
    query_ids[5] = 1
    case = random_case(40, 40, filters=[(query_ids, key_ids, True), (query_ids, query_ids, False)])
    case.query[5] = torch.nan
    check_gram(case)


@pytest.mark.parametrize("name", ["none", "two"])
def test_bounds_of_similarities(path, name):
    case = random_case(40, 40, filters=filters_of(name, 40, 40), **bounds_of(40))
    for _ in range(2):
        check_pair(case)
        check_pair(case, rows_only=True)
        check_gram(case)
        case.key[7], case.query[9] = torch.nan, torch.nan  # neither below nor above anything


def test_a_query_that_is_infinite_in_one_place(path):
    """Its similarities are infinities of both signs, its log-sum-exp is infinity."""
    for name in ("none", "different"):
        case = random_case(40, 40, filters=filters_of(name, 40, 40))
        case.query[3, 2] = torch.inf
        check_pair(case, rows_only=True)


def test_rows_without_a_key(path):
    """The gradient that reaches them is ignored, even NaN."""
    query_ids = torch.arange(40, device=DEVICE) % 7
    case = random_case(40, 40, filters=[(query_ids, query_ids.clamp_max(5), True)])
    g, h = upstream(40, 40)
    g[query_ids == 6] = torch.nan
    check_pair(case, grads=(g, h))
    check_gram(case, g)


@pytest.mark.parametrize("size", [1e-7, 1e4])
def test_float16_weights_of_any_size(path, size):
    case = random_case(dtype=torch.float16)
    g, h = torch.rand(40, device=DEVICE) * size, torch.rand(50, device=DEVICE) * size
    name = "row_col_logsumexp"
    values = case.forward(kernels, name)
    actual = case.backward(kernels, name, [g, h], values)
    expected = case.exact.backward(
        reference, name, [g.double(), h.double()], [x.double() for x in values]
    )
    for a, e in zip(actual[:2], expected[:2], strict=True):
        assert_gradient(a, e, torch.float16, 100.0)


def test_expanded_upstream_gradient(path):
    case = random_case()
    ones = [torch.ones((), device=DEVICE).expand(n) for n in (40, 50)]
    check_pair(case, grads=ones)
    check_gram(case, ones[0])


def test_repeats_bit_for_bit(path):
    if path == "fused" and DEVICE == "cuda":
        pytest.skip("atomic additions have no order")
    case = random_case(dtype=torch.bfloat16)
    name = "row_col_logsumexp"
    values, grads = case.forward(kernels, name), upstream(40, 50)
    first, second = (case.backward(kernels, name, grads, values) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("fold", SUMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["none", "two"])
def test_sums(path, fold, dtype, name):
    for rows_only in (True, False):
        case = random_case(40, 50, dtype=dtype, filters=filters_of(name, 40, 50))
        check_pair(case, rows_only=rows_only, fold=fold)
    check_gram(random_case(40, 40, dtype=dtype, filters=filters_of(name, 40, 40)), fold=fold)


@pytest.mark.parametrize(("fold", "value"), zip(SUMS, (float("nan"), float("inf")), strict=True))
def test_sums_of_rows_that_are_not_finite(path, fold, value):
    for name, bounds in (("none", {}), ("different", {}), ("different", bounds_of(40))):
        case = random_case(40, 40, filters=filters_of(name, 40, 40), **bounds)
        case.query[3], case.key[33, 2] = value, value
        for rows_only in (True, False):
            check_pair(case, rows_only=rows_only, fold=fold)
        check_gram(case, fold=fold)


@pytest.mark.parametrize("fold", ["logsumexp", *SUMS])
def test_options(path, fold):
    """The gradients of biases are among those that are compared; guides go through slabs anyhow."""
    options = "biases+bounds+guide" if path == "slabs" else "biases+bounds"
    for rows_only in (True, False):
        case = random_case(40, 50, filters=filters_of("two", 40, 50), **options_of(options, 40, 50))
        check_pair(case, rows_only=rows_only, fold=fold)
    check_gram(random_case(40, 40, **options_of(options, 40, 40)), fold=fold)


def test_biases_are_trained_whatever_else_is(path):
    biases = biases_of(40, 50)
    for need in SIDES if path == "fused" else SIDES[-1:]:
        check_pair(random_case(40, 50, **biases), need)
        for name, bias in biases.items():
            check_pair(random_case(40, 50, **{name: bias}), need, rows_only=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_options_of_rows_that_are_not_finite(path, dtype):
    case = random_case(40, 40, dtype=dtype, **options_of("biases+bounds+guide", 40, 40))
    case.key[7], case.query[9, 2] = torch.nan, torch.inf
    check_pair(case)
    check_gram(case)


@pytest.mark.parametrize(("M", "N"), [(0, 5), (5, 0)])
def test_biases_of_nothing(path, M, N):
    check_pair(random_case(M, N, 8, peaked=False, **biases_of(M, N)))
