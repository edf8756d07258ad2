"""The torch-free C++ (tile kernels, folds) against numpy."""

import numpy as np
import pytest
import torch

cl_testing = pytest.importorskip(
    "cl_testing",
    reason="cl_testing is not built (python setup.py build_ext --inplace, with pybind11)",
)

KERNELS = [*cl_testing.TileKernels32.usable, *cl_testing.TileKernels64.usable]
LOWEST = -3e38  # where a maximum starts (csrc/statistics.h)


def dtype_of(kernels):
    return np.float32 if isinstance(kernels, cl_testing.TileKernels32) else np.float64


def name_of(kernels):
    return f"{kernels.instruction_set}-{dtype_of(kernels).__name__}"


@pytest.fixture(params=KERNELS, ids=name_of)
def kernels(request):
    """Every instruction set of this machine, in float and double."""
    return request.param


@pytest.fixture
def dtype(kernels):
    return dtype_of(kernels)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def tolerance(dtype):
    return 16 * np.finfo(dtype).eps


def logsumexp(logits, axis):
    return np.logaddexp.reduce(logits.astype(np.float64), axis=axis)


# exp


def errors_in_ulp(ours, x):
    exact = np.exp(x.astype(np.longdouble))
    if np.finfo(np.longdouble).eps == np.finfo(np.float64).eps and x.dtype == np.float64:
        pytest.skip("numpy has nothing more precise than float64 here")
    return np.abs((ours - exact) / np.spacing(exact.astype(x.dtype)))


def arguments(dtype, random):
    lowest = -87.3 if dtype == np.float32 else -707.9
    special = np.log(2) * np.arange(0, lowest, -0.5)  # where the polynomial's pieces meet
    tiny = -np.logspace(-45 if dtype == np.float32 else -308, 0, 500)
    x = np.concatenate([np.linspace(lowest, 0, 20000), random.uniform(lowest, 0, 20000), tiny])
    return np.concatenate([x, special[special > lowest], [0.0, -0.0]]).astype(dtype)


def exp_by(kernels):
    """The exponential inside the tile kernels: the logits of one row, shifted by 0."""
    return lambda x: kernels.exp_rows(x[None], np.zeros(1, x.dtype))[0][0]


def test_exp_accuracy(kernels, dtype, random):
    x = arguments(dtype, random)
    for exp in (cl_testing.exp_nonpositive, exp_by(kernels)):
        ours = exp(x)
        assert ours.dtype == dtype
        assert errors_in_ulp(ours, x).max() < (1.02 if dtype == np.float32 else 1.2)
        assert (ours[x == 0] == 1).all()


def test_exp_of_special_arguments(kernels, dtype):
    limit = -87.4 if dtype == np.float32 else -708.1
    x = np.array([np.nan, -np.inf, limit, -1e30, LOWEST, np.finfo(dtype).min], dtype)
    for exp in (cl_testing.exp_nonpositive, exp_by(kernels)):
        ours = exp(x)
        assert np.isnan(ours[0])
        assert (ours[1:] == 0).all() and not np.signbit(ours[1:]).any()


def test_exp_is_monotone_at_the_underflow():
    x = np.linspace(-87.5, -87.0, 10001, dtype=np.float32)
    ours = cl_testing.exp_nonpositive(x)
    assert (np.diff(ours) >= 0).all()
    assert ours[0] == 0 and ours[-1] >= np.finfo(np.float32).tiny


# Half-precision conversions

TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def same_bits(ours, expected):
    """Equal bit for bit, signs of zeros too; any NaN equals any other."""
    assert ours.dtype == expected.dtype
    unsigned = {4: np.uint32, 8: np.uint64}[ours.itemsize]
    same = ours.view(unsigned) == expected.view(unsigned)
    return (same | (np.isnan(ours) & np.isnan(expected))).all()


@pytest.mark.parametrize("half", TORCH)
def test_widening_of_every_pattern(kernels, dtype, half):
    patterns = np.arange(65536, dtype=np.uint16)
    expected = torch.from_numpy(patterns.view(np.int16)).view(TORCH[half])
    expected = expected.to(torch.from_numpy(np.zeros(0, dtype)).dtype).numpy()
    assert same_bits(getattr(kernels, f"widen_{half}")(patterns), expected)


def floats_to_round(half, random):
    """Every number of the half type, every tie between two, their neighbours, and random bits."""
    patterns = np.arange(65536, dtype=np.uint16).view(np.int16)
    exact = torch.from_numpy(patterns).view(TORCH[half]).float().numpy()
    exact = np.sort(exact[np.isfinite(exact)])
    ties = (exact[:-1].astype(np.float64) + exact[1:]) / 2  # fits a float
    largest = exact[-1].astype(np.float64)
    overflow = (
        largest + np.spacing(np.float32(largest) if half == "bfloat16" else np.float16(6e4)) / 2
    )
    at = np.concatenate([exact, ties, [overflow, -overflow]]).astype(np.float32)
    beside = [np.nextafter(at, np.float32(side)) for side in (-np.inf, np.inf)]
    bits = random.integers(0, 2**32, 200000, dtype=np.uint32).view(np.float32)
    specials = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45], np.float32)
    payloads = np.array([0x7F800001, 0x7FC12345, 0xFFFFFFFF, 0x7FFFFFFF], np.uint32)
    return np.concatenate([at, *beside, bits, specials, payloads.view(np.float32)])


@pytest.mark.parametrize("half", TORCH)
def test_rounding(kernels, dtype, half, random):
    x = floats_to_round(half, random)
    expected = torch.from_numpy(x).to(TORCH[half]).to(torch.float32).numpy().astype(dtype)
    with np.errstate(invalid="ignore"):  # a signalling NaN is quieted
        x = x.astype(dtype)
    assert same_bits(getattr(kernels, f"round_{half}")(x), expected)


# Matrices: ragged edges, and nothing written beside them

SIZES = (1, 2, 3, 5, 6, 7, 8, 13, 15, 16, 17, 31, 33, 64, 65, 130)


def inside(random, shape, dtype, *, margin=64):
    """A matrix of small integers in the middle of a larger memory, and the memory."""
    size = shape[0] * shape[1]
    memory = random.integers(-4, 5, size + 2 * margin).astype(dtype)
    return memory[margin : margin + size].reshape(shape), memory


def integers(random, shape, dtype):
    return random.integers(-4, 5, shape).astype(dtype)  # their sums of products are exact


@pytest.mark.parametrize("product", ["multiply", "add_product"])
@pytest.mark.parametrize("transposed", [False, True])
def test_products(kernels, dtype, random, product, transposed):
    for m in SIZES[:9]:
        for n in SIZES:
            for k in (0, 1, 4, 17):
                a = integers(random, (k, m) if transposed else (m, k), dtype)
                b = integers(random, (k, n), dtype)
                c, memory = inside(random, (m, n), dtype)
                expected = memory.copy()
                before = memory[64:-64] if product == "add_product" else 0
                expected[64:-64] = before + ((a.T if transposed else a) @ b).ravel()
                getattr(kernels, product)(a, b, c, transposed)
                assert np.array_equal(memory, expected), (m, n, k)


@pytest.mark.parametrize("depth", [40, 64, 300, 512, 513, 2000, 8192])
def test_products_round_little_at_any_depth(kernels, dtype, random, depth):
    """Of positive terms: one running sum of the most of them is off by 50 eps in float32."""
    a, b = (random.uniform(0.5, 1.5, shape).astype(dtype) for shape in ((19, depth), (depth, 45)))
    exact = a.astype(np.longdouble) @ b.astype(np.longdouble)
    c = np.full((19, 45), np.nan, dtype)
    kernels.multiply(a, b, c)
    assert (np.abs(c - exact) < 5 * np.finfo(dtype).eps * exact).all()
    kernels.add_product(-a, b, c)
    assert (np.abs(c) < 10 * np.finfo(dtype).eps * exact).all()


@pytest.mark.parametrize("depth", [1, 64, 65, 512, 513, 600, 1025])
def test_factor_of_a_product(kernels, dtype, random, depth):
    """Products of scaled and of swapped matrices are the same, bit for bit, and symmetric."""
    a = random.standard_normal((70, depth)).astype(dtype)
    plain, scaled = np.full((2, 70, 70), np.nan, dtype)
    kernels.multiply(a, a.T.copy(), plain)
    kernels.multiply(a, a.T.copy(), scaled, factor=dtype(-0.3))
    assert np.array_equal(plain, plain.T)
    assert np.array_equal(scaled, plain * dtype(-0.3))


def test_multiply_keeps_nan_in_its_row(kernels, dtype, random):
    a, b = integers(random, (13, 9), dtype), integers(random, (9, 37), dtype)
    a[7, 3] = np.nan
    c = np.zeros((13, 37), dtype)
    kernels.multiply(a, b, c)
    assert np.isnan(c[7]).all()
    assert np.isfinite(np.delete(c, 7, 0)).all()


def test_transpose(kernels, dtype, random):
    for rows in SIZES:
        for cols in SIZES:
            x = random.standard_normal((rows, cols)).astype(dtype)
            y, memory = inside(random, (cols, rows), dtype)
            expected = memory.copy()
            expected[64:-64] = x.T.ravel()
            kernels.transpose(x, y)
            assert np.array_equal(memory, expected), (rows, cols)


def test_dot_combine_and_scale(kernels, dtype, random):
    for count in (0, 1, 63, 64, 65, 200):
        x, y = integers(random, count, dtype), integers(random, count, dtype)
        assert kernels.dot(x, y) == x @ y
        assert np.array_equal(kernels.combine(2, y, -3, x), 2 * y - 3 * x)
        scaled, inner = kernels.scale_and_dot(x, y, 0.5)
        assert np.array_equal(scaled, y / 2)
        assert inner == x @ y


def test_scale_and_dot_skips_zeros(kernels, dtype):
    rows = np.array([np.nan, np.inf, 2], dtype)
    assert kernels.scale_and_dot(rows, np.array([0, -0.0, 3], dtype), 1)[1] == 6
    assert np.isnan(kernels.scale_and_dot(rows, np.array([1, 0, 3], dtype), 1)[1])


def test_all_finite(kernels, dtype):
    for count in (0, 1, 64, 200):
        assert kernels.all_finite(np.full(count, np.finfo(dtype).max / 512, dtype))
        for bad in (np.nan, np.inf, -np.inf):
            for place in {0, count // 2, count - 1} if count else ():
                x = np.ones(count, dtype)
                x[place] = bad
                assert not kernels.all_finite(x)


# Dropped pairs

SHAPES = ((1, 1), (3, 63), (2, 64), (5, 65), (64, 7), (33, 200))


@pytest.mark.parametrize("keep_same", [True, False])
def test_drop(kernels, dtype, random, keep_same):
    for shape in SHAPES:
        z = random.standard_normal(shape).astype(dtype)
        z[0, -1] = np.nan
        row_ids, col_ids = (random.integers(-2, 2, n) * 2**62 for n in shape)
        kept = (row_ids[:, None] == col_ids) == keep_same
        ours = kernels.drop(z, row_ids, col_ids, keep_same)
        assert np.array_equal(ours, np.where(kept, z, dtype(-np.inf)), equal_nan=True)


@pytest.mark.parametrize("bounded", ["", "below", "above", "below above"])
@pytest.mark.parametrize("scale", [3.0, -2.0, 0.0])
def test_scale_within_bounds(kernels, dtype, random, bounded, scale):
    """Strictly: an equal similarity is dropped, as is a NaN, and all of a bound that is NaN."""
    for shape in SHAPES:
        s = random.integers(-3, 4, shape).astype(dtype)
        s[0, -1] = np.nan
        for by_rows in (True, False):
            size = shape[0] if by_rows else shape[1]
            bounds = {name: random.integers(-3, 4, size).astype(dtype) for name in bounded.split()}
            for bound in bounds.values():
                bound[size // 2] = np.nan
            kept = np.ones(shape, bool)
            for name, bound in bounds.items():
                bound = bound[:, None] if by_rows else bound
                kept &= s < bound if name == "below" else s > bound
            scale_within = kernels.scale_within_rows if by_rows else kernels.scale_within_cols
            ours = scale_within(s, scale, bounds.get("below"), bounds.get("above"))
            assert np.array_equal(ours, np.where(kept, s * dtype(scale), -np.inf), equal_nan=True)


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
