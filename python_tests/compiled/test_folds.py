"""The torch-free C++ of the statistics (folds) against numpy."""

import numpy as np
import pytest

from .conftest import LOWEST, SHAPES

cl_testing = pytest.importorskip(
    "cl_testing",
    reason="cl_testing is not built (python setup.py build_ext --inplace, with pybind11)",
)


def tolerance(dtype):
    return 16 * np.finfo(dtype).eps


def logsumexp(logits, axis):
    return np.logaddexp.reduce(logits.astype(np.float64), axis=axis)


# Folds: tiles of logits


def tile(random, shape, dtype, most=1.0):
    """Logits of which some are dropped, and a whole row and a whole column."""
    z = (most * random.uniform(-1, 1, shape)).astype(dtype)
    z[random.random(shape) < 0.3] = -np.inf
    if min(shape) > 1:
        z[1] = -np.inf
        z[:, 0] = -np.inf
    return z


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("most", [0.03, 1.0, 100.0, 1e5])
def test_folds(kernels, dtype, random, shape, most):
    z = tile(random, shape, dtype, most)
    for dim in (0, 1):
        (ours, _), exact = kernels.fold_logsumexp(z, dim), logsumexp(z, 1 - dim)
        empty = exact == -np.inf
        assert np.array_equal(ours == -np.inf, empty)
        ours, exact = ours[~empty], exact[~empty]
        assert (np.abs(ours - exact) <= tolerance(dtype) * np.maximum(np.abs(exact), 1)).all()
    assert np.array_equal(kernels.max_rows(z), np.maximum(z.max(1), dtype(LOWEST)))


@pytest.mark.parametrize("place", [0, 64, 129])
def test_folds_keep_nan(kernels, dtype, random, place):
    z = tile(random, (5, 130), dtype)
    z[2, place] = np.nan
    rows, cols = (kernels.fold_logsumexp(z, dim)[0] for dim in (0, 1))
    assert np.array_equal(np.isnan(rows), np.arange(5) == 2)
    assert np.array_equal(np.isnan(cols), np.arange(130) == place)


def test_exp_rows(kernels, dtype, random):
    z = tile(random, (9, 130), dtype, 7.0)
    top = np.maximum(z.max(1), dtype(LOWEST)) + dtype(0.5)
    ours, sums = kernels.exp_rows(z, top)
    exact = np.exp(z.astype(np.float64) - top[:, None].astype(np.float64))
    assert np.allclose(ours, exact, rtol=tolerance(dtype), atol=np.finfo(dtype).tiny)
    assert np.allclose(sums, exact.sum(1), rtol=tolerance(dtype), atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("most", [0.03, 1.0, 100.0])
def test_weights(kernels, dtype, random, shape, most):
    z, mirrored = tile(random, shape, dtype, most), tile(random, shape, dtype, most)
    row_grad, col_grad = (random.standard_normal(n).astype(dtype) for n in shape)
    # Statistics no smaller than any of their logits.
    row_lse, col_lse = (most + random.random(n).astype(dtype) for n in shape)

    def exact(logits, grad, lse):
        return grad * np.exp(logits.astype(np.float64) - lse.astype(np.float64))

    rows = exact(z, row_grad[:, None], row_lse[:, None])
    cols = exact(z, col_grad, col_lse)
    mirrored_cols = exact(mirrored, col_grad, col_lse)
    row, col = (row_grad, row_lse), (col_grad, col_lse)
    for ours, expected in (
        (kernels.logsumexp_weights(z, *row), rows),
        (kernels.logsumexp_weights(z, *row, *col), rows + cols),
        (kernels.logsumexp_weights(z, *row, *col, mirrored), rows + mirrored_cols),
    ):
        allowed = tolerance(dtype) * max(most, 1) * np.abs(expected).max(initial=0)
        assert (np.abs(ours - expected) <= allowed).all()
    assert (kernels.logsumexp_weights(z, *row)[z == -np.inf] == 0).all()


@pytest.mark.parametrize("grad", [1.0, np.nan, np.inf])
@pytest.mark.parametrize("lse", [2.0, np.nan, np.inf, -np.inf])
def test_dropped_pairs_weigh_nothing(kernels, dtype, random, grad, lse):
    """Whatever comes from upstream: 0 x NaN would poison what the pair does not touch."""
    z = tile(random, (33, 70), dtype)
    dropped = z == -np.inf
    bad = [np.full(n, x, dtype) for n in z.shape for x in (grad, lse)]
    good = [np.full(n, x, dtype) for n in z.shape for x in (1, 2)]
    for ours in (
        kernels.logsumexp_weights(z, *bad[:2]),
        kernels.logsumexp_weights(z, *bad),
        kernels.logsumexp_weights(z, *good[:2], *bad[2:]),
    ):
        assert (ours[dropped] == 0).all()
        assert np.isfinite(ours[~dropped]).all() == bool(np.isfinite(grad) and lse in (2, np.inf))


# Folds: one logit at a time

FOLD_DTYPES = pytest.mark.parametrize("number", [np.float32, np.float64])


def value(logits, number=np.float32, **options):
    return cl_testing.logsumexp(np.asarray(logits, number), **options)[0][0]


@FOLD_DTYPES
@pytest.mark.parametrize("most", [0.03, 1.0, 100.0])
@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
@pytest.mark.parametrize("split", [False, True])
def test_merged_logsumexp(number, random, most, order, split):
    z = most * random.uniform(-1, 1, 400)
    z[::7] = -np.inf
    z = {"random": z, "ascending": np.sort(z), "descending": -np.sort(-z)}[order].astype(number)
    exact = logsumexp(z, 0)
    assert abs(value(z, number, split=split) - exact) <= 100 * np.finfo(number).eps * max(
        abs(exact), 1
    )


@FOLD_DTYPES
def test_logsumexp_of_nothing(number):
    for split in (False, True):
        assert value([], number, split=split) == -np.inf
        assert value([-np.inf] * 3, number, split=split) == -np.inf
        assert value([-np.inf, 2.0, -np.inf], number, split=split) == 2.0
        assert value([-np.inf, -np.inf, 2.0], number, split=split) == 2.0


@FOLD_DTYPES
def test_logsumexp_keeps_nan(number):
    for logits in ([np.nan], [1.0, np.nan], [np.nan, 1.0], [-np.inf, np.nan, 3.0, -np.inf]):
        for split in (False, True):
            assert np.isnan(value(logits, number, split=split))


def test_logsumexp_of_large_logits():
    assert value([1e4, 1e4]) == pytest.approx(1e4 + np.log(2), rel=1e-7)
    assert value([-1e4, -1e4]) == pytest.approx(-1e4 + np.log(2), rel=1e-7)


@FOLD_DTYPES
def test_weight_of_a_logit(number, random):
    """As the tile kernels have it, for any logit above -inf."""
    z = random.uniform(-20, 1, 500).astype(number)
    lse = (1 + random.random(500)).astype(number)
    exact = np.exp(z.astype(np.float64) - lse.astype(np.float64))
    assert np.allclose(cl_testing.logsumexp_weight(z, lse), exact, rtol=tolerance(number) * 20)


def softplus(z):
    return np.logaddexp(z.astype(np.float64), 0)


def hinge(z):
    return np.maximum(z.astype(np.float64), 0)


SUMS = {
    "softplus_sum": (softplus, lambda z: np.exp(-softplus(-z))),
    "hinge_sum": (hinge, lambda z: (z > 0).astype(np.float64)),
}
each_sum = pytest.mark.parametrize("name", SUMS)


@each_sum
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("most", [0.03, 1.0, 100.0])
def test_sums(kernels, dtype, random, name, shape, most):
    z = tile(random, shape, dtype, most)
    term, weight = SUMS[name]
    for dim in (0, 1):
        (ours, counts), exact = getattr(kernels, f"fold_{name}")(z, dim), term(z).sum(1 - dim)
        assert (np.abs(ours - exact) <= tolerance(dtype) * np.maximum(exact, 1)).all()
        if name == "hinge_sum":
            assert np.array_equal(counts, (z > 0).sum(1 - dim))
    grad, value = (random.standard_normal(shape[0]).astype(dtype) for _ in range(2))
    ours = getattr(kernels, f"{name}_weights")(z, grad, value)
    exact = grad[:, None] * np.where(z == -np.inf, 0, weight(z.astype(np.float64)))
    assert np.allclose(ours, exact, rtol=10 * tolerance(dtype), atol=tolerance(dtype) * 1e-3)


@each_sum
@FOLD_DTYPES
@pytest.mark.parametrize("split", [False, True])
def test_merged_sums(number, random, name, split):
    z = 30 * random.uniform(-1, 1, 500).astype(number)
    z[::7] = -np.inf
    (ours,), counts = getattr(cl_testing, name)(z, split=split)
    exact = SUMS[name][0](z).sum()
    assert abs(ours - exact) <= 10 * np.finfo(number).eps * exact
    if name == "hinge_sum":
        assert counts == [(z > 0).sum()]


@each_sum
@FOLD_DTYPES
def test_sums_keep_nan(number, name):
    z = np.asarray([1.0, np.nan, -np.inf], number)
    assert np.isnan(getattr(cl_testing, name)(z)[0][0])
    assert np.isnan(getattr(cl_testing, f"{name}_weight")(z, z)[1])
