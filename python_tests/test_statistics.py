"""The torch-free C++ (tile kernels, running log-sum-exps) against numpy."""

import numpy as np
import pytest
import torch

cl_testing = pytest.importorskip(
    "cl_testing",
    reason="cl_testing is not built (python setup.py build_ext --inplace, with pybind11)",
)

KERNELS = [*cl_testing.TileKernels32.usable, *cl_testing.TileKernels64.usable]
LOWEST = -3e38  # where a running maximum starts (csrc/statistics.h)


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


def values(max, sum, scale):
    """The statistic of each (max, sum), as ``RunningLogSumExp.value``."""
    running = {4: cl_testing.RunningLogSumExp32, 8: cl_testing.RunningLogSumExp64}
    result = []
    for top, total in zip(max, sum, strict=True):
        state = running[max.itemsize]()
        state.merge(top, total, scale)
        result.append(state.value(scale))
    return np.array(result)


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
    return lambda x: kernels.exp_rows(x[None], 1, np.zeros(1, x.dtype))[0][0]


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
            expected[64:-64] = -2 * x.T.ravel()
            kernels.transpose(x, -2, y)
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


# Folds and weights

SHAPES = ((1, 1), (3, 63), (2, 64), (5, 65), (64, 7), (33, 200))
SCALES = (1.0, 0.03, 100.0)


def tile(random, shape, dtype):
    """Similarities of which some pairs are dropped, and a whole row and a whole column."""
    s = random.uniform(-1, 1, shape).astype(dtype)
    s[random.random(shape) < 0.3] = -np.inf
    if min(shape) > 1:
        s[1] = -np.inf
        s[:, 0] = -np.inf
    return s


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", SCALES)
def test_folds(kernels, dtype, random, shape, scale):
    s = tile(random, shape, dtype)
    logits = s.astype(np.float64) * scale
    for axis, fold in ((1, kernels.fold_rows), (0, kernels.fold_cols)):
        ours, exact = values(*fold(s, scale), scale), logsumexp(logits, axis)
        empty = exact == -np.inf
        assert np.array_equal(ours == -np.inf, empty)
        ours, exact = ours[~empty], exact[~empty]
        assert (np.abs(ours - exact) <= tolerance(dtype) * np.maximum(np.abs(exact), 1)).all()
    assert np.array_equal(kernels.max_rows(s), np.maximum(s.max(1), dtype(LOWEST)))


@pytest.mark.parametrize("place", [0, 64, 129])
def test_folds_keep_nan(kernels, dtype, random, place):
    s = tile(random, (5, 130), dtype)
    s[2, place] = np.nan
    rows = values(*kernels.fold_rows(s, 3.0), 3.0)
    cols = values(*kernels.fold_cols(s, 3.0), 3.0)
    assert np.array_equal(np.isnan(rows), np.arange(5) == 2)
    assert np.array_equal(np.isnan(cols), np.arange(130) == place)


def test_exp_rows(kernels, dtype, random):
    s = tile(random, (9, 130), dtype)
    top = np.maximum(s.max(1), dtype(LOWEST)) + dtype(0.5)
    ours, sums = kernels.exp_rows(s, 7.0, top)
    exact = np.exp(7.0 * (s.astype(np.float64) - top[:, None].astype(np.float64)))
    assert np.allclose(ours, exact, rtol=tolerance(dtype), atol=np.finfo(dtype).tiny)
    assert np.allclose(sums, exact.sum(1), rtol=tolerance(dtype), atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", SCALES)
def test_weights(kernels, dtype, random, shape, scale):
    s, mirrored = tile(random, shape, dtype), tile(random, shape, dtype)
    row_grad, col_grad = (random.standard_normal(n).astype(dtype) for n in shape)
    # Statistics no smaller than any of their logits; +inf is what an empty row is given.
    row_lse, col_lse = (scale + random.random(n).astype(dtype) for n in shape)
    row_lse[-1] = np.inf

    def exact(logits, grad, lse):
        return grad * np.exp(logits.astype(np.float64) * scale - lse.astype(np.float64))

    rows = exact(s, row_grad[:, None], row_lse[:, None])
    cols = exact(s, col_grad, col_lse)
    mirrored_cols = exact(mirrored, col_grad, col_lse)
    both = (row_grad, row_lse, col_grad, col_lse)
    for ours, expected in (
        (kernels.row_weights(s, scale, row_grad, row_lse), rows),
        (kernels.col_weights(s, scale, col_grad, col_lse), cols),
        (kernels.row_col_weights(s, None, scale, *both), rows + cols),
        (kernels.row_col_weights(s, mirrored, scale, *both), rows + mirrored_cols),
    ):
        allowed = tolerance(dtype) * max(scale, 1) * np.abs(expected).max(initial=0)
        assert (np.abs(ours - expected) <= allowed).all()
    assert (kernels.row_weights(s, scale, row_grad, row_lse)[s == -np.inf] == 0).all()


@pytest.mark.parametrize("keep_same", [True, False])
def test_drop(kernels, dtype, random, keep_same):
    for shape in SHAPES:
        x = random.standard_normal(shape).astype(dtype)
        x[0, -1] = np.nan
        row_ids, col_ids = (random.integers(-2, 2, n) * 2**62 for n in shape)
        kept = (row_ids[:, None] == col_ids) == keep_same
        ours = kernels.drop(x, row_ids, col_ids, keep_same, -np.inf)
        assert np.array_equal(ours, np.where(kept, x, dtype(-np.inf)), equal_nan=True)


# Running log-sum-exps


@pytest.fixture(params=[32, 64])
def running(request):
    return {32: cl_testing.RunningLogSumExp32, 64: cl_testing.RunningLogSumExp64}[request.param]


def merged(running, numbers, scale=1.0):
    state = running()
    for number in numbers:
        state.merge(number, 1.0, scale)
    return state.value(scale)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_running_logsumexp(running, random, scale, order):
    s = random.uniform(-1, 1, 400)
    s[::7] = -np.inf
    s = {"random": s, "ascending": np.sort(s), "descending": -np.sort(-s)}[order]
    dtype = np.float32 if running is cl_testing.RunningLogSumExp32 else np.float64
    s = s.astype(dtype)
    exact = logsumexp(s.astype(np.float64) * scale, 0)
    error = abs(merged(running, s, scale) - exact)
    assert error <= 100 * np.finfo(dtype).eps * max(abs(exact), 1)


def test_running_logsumexp_of_nothing(running):
    assert running().value(1.0) == -np.inf
    assert merged(running, [-np.inf] * 3) == -np.inf
    assert merged(running, [-np.inf, 2.0, -np.inf]) == 2.0
    state = running()
    state.merge(LOWEST, 0.0, 5.0)  # what a fold makes of a tile that was dropped
    assert state.value(5.0) == -np.inf
    state.merge(0.25, 1.0, 4.0)
    state.merge(LOWEST, 0.0, 4.0)
    assert state.value(4.0) == 1.0


def test_running_logsumexp_keeps_nan(running):
    for numbers in ([np.nan], [1.0, np.nan], [np.nan, 1.0], [-np.inf, np.nan, 3.0, -np.inf]):
        assert np.isnan(merged(running, numbers))


def test_running_logsumexp_of_large_logits(running):
    assert merged(running, [1e4, 1e4]) == pytest.approx(1e4 + np.log(2), rel=1e-7)
    assert merged(running, [-1e4, -1e4]) == pytest.approx(-1e4 + np.log(2), rel=1e-7)
