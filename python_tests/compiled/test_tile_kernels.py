"""The torch-free C++ of a tile's arithmetic (tile kernels) against numpy."""

import numpy as np
import pytest
import torch

from .conftest import LOWEST, SHAPES

cl_testing = pytest.importorskip(
    "cl_testing",
    reason="cl_testing is not built (python setup.py build_ext --inplace, with pybind11)",
)

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
