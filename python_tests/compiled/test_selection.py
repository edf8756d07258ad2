"""The torch-free selection (csrc/selection.h) and the search of a tile against numpy."""

import numpy as np
import pytest

cl_testing = pytest.importorskip(
    "cl_testing",
    reason="cl_testing is not built (python setup.py build_ext --inplace, with pybind11)",
)

BEST = {np.float32: cl_testing.best32, np.float64: cl_testing.best64}
STRIP = 64  # columns of a tile that is searched (csrc/cpu/tile_kernels.h)


def best_first(scores, indices):
    return np.lexsort((indices, -scores))


# Packed pairs


def packed(scores, indices):
    """The definition: the score's bits in the order of the scores, then the index upside down."""
    bits = (scores + np.float32(0)).view(np.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.astype(np.int64) << 32) | (0xFFFFFFFF - indices)


def scores_of_every_kind(random):
    top = np.finfo(np.float32).max
    special = [0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, top, -top, np.inf, -np.inf]
    bits = random.integers(0, 2**32, 20000, dtype=np.uint32).view(np.float32)
    return np.concatenate([np.array(special, np.float32), bits[~np.isnan(bits)]])


def test_packed_pairs_are_ordered_by_score_then_index(random):
    scores = np.repeat(scores_of_every_kind(random), 2)
    indices = random.integers(0, 2**32, len(scores))
    indices[:4] = [0, 1, 2**32 - 1, 2**31]
    pairs = cl_testing.pack(scores, indices)
    np.testing.assert_array_equal(pairs, packed(scores, indices))
    np.testing.assert_array_equal(np.argsort(-pairs, kind="stable"), best_first(scores, indices))
    np.testing.assert_array_equal(cl_testing.index_of(pairs), indices)
    np.testing.assert_array_equal(cl_testing.score_of(pairs), scores)
    assert not np.signbit(cl_testing.score_of(pairs)[scores == 0]).any()
    assert (pairs > cl_testing.EMPTY).all()


# The k best of many


def pairs_of(kind, count, random):
    scores = {
        "spread": random.standard_normal(count),
        "close": 0.25 + 1e-3 * random.random(count),
        "tied": np.ones(count),
        "two groups": random.choice([-1e30, 0.5], count),
        "one far away": np.where(np.arange(count) == count // 2, np.inf, random.random(count)),
        "both signs of nothing": random.choice([0.0, -0.0, 1e-45, -1e-45], count),
    }[kind]
    return scores.astype(np.float32), random.permutation(count)


KINDS = ("spread", "close", "tied", "two groups", "one far away", "both signs of nothing")


@pytest.mark.parametrize("kind", KINDS)
def test_keep_best(kind, random):
    for count in (1, 2, 3, 50, 256, 1000):
        pairs = cl_testing.pack(*pairs_of(kind, count, random))
        for k in {1, 2, count // 3 + 1, count - 1, count} & set(range(1, count + 1)):
            expected = np.sort(pairs)[::-1][:k]
            kept, worst = cl_testing.keep_best(pairs, k)
            np.testing.assert_array_equal(np.sort(kept)[::-1], expected)
            assert worst == expected[-1]
            assert (pairs >= cl_testing.radix_threshold(pairs, k)).sum() == k


@pytest.mark.parametrize("dtype", BEST)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["any", "ascending", "descending"])
def test_reservoir(dtype, kind, order, random):
    scores, indices = pairs_of(kind, 700, random)
    scores = scores.astype(dtype)
    best = best_first(scores, indices)
    arrival = {"any": np.arange(700), "ascending": best[::-1], "descending": best}[order]
    for k in (1, 10, 333, 700, 900):
        for capacity in (k + 1, cl_testing.reservoir_capacity(k, 700), 1000):
            if capacity < 700 and capacity <= k:
                continue
            values, places = BEST[dtype](scores[arrival], indices[arrival], k, capacity, -np.inf)
            count = min(k, 700)
            np.testing.assert_array_equal(places[:count], indices[best[:count]])
            np.testing.assert_array_equal(values[:count], scores[best[:count]])
            assert (places[count:] == -1).all() and (values[count:] == -np.inf).all()


@pytest.mark.parametrize("dtype", BEST)
@pytest.mark.parametrize("above", [0.0, 1.0, -0.0, np.inf])
def test_reservoir_with_a_bound(dtype, above, random):
    """Strictly above, whatever the index."""
    scores = random.integers(-3, 4, 300).astype(dtype)
    indices = random.permutation(300)
    wanted = best_first(scores, indices)
    wanted = wanted[scores[wanted] > above][:20]
    values, places = BEST[dtype](scores, indices, 20, 52, above)
    np.testing.assert_array_equal(places[: len(wanted)], indices[wanted])
    np.testing.assert_array_equal(values[: len(wanted)], scores[wanted])
    assert (places[len(wanted) :] == -1).all()


def test_reservoir_capacity():
    for k in (1, 10, 1000):
        assert cl_testing.reservoir_capacity(k, 10**6) > k
        assert cl_testing.reservoir_capacity(k, 0) == 1
        assert cl_testing.reservoir_capacity(k, k + 5) == k + 5


# The search of a tile


def test_find(kernels, dtype, random):
    m, first = 90, 1000
    products = random.integers(-3, 4, (m, STRIP)).astype(dtype)
    col_factor = random.choice([0.5, 1.0, 2.0], STRIP).astype(dtype)
    factor = random.choice([-1.0, 0.25, 1.0], m).astype(dtype)
    floor = random.choice([-np.inf, -1.0, 0.0, 1.0, 2.0, 100.0, np.inf], m).astype(dtype)
    ceiling = random.choice([np.nan, 0.0, 1.5, 3.0, np.inf], m).astype(dtype)
    floor_index = random.choice([0, first, first + 1, first + 2 * STRIP], m)
    products[5, 7] = np.nan
    products[6, 8] = np.inf
    col_factor[3] = np.nan  # a key that does not exist
    rows = list(zip(factor, floor, ceiling, floor_index.tolist(), strict=True))
    found = kernels.find(products, col_factor, first, rows)

    scores = (products * col_factor) * factor[:, None]
    under = ~(scores >= ceiling[:, None])
    above = (scores > floor[:, None]) & under
    # Ties with the floor may be left out only where they all come after it.
    equal = (scores == floor[:, None]) & under & (floor_index > first)[:, None]
    i, j = np.nonzero(above | equal)
    assert [(r, c) for r, c, _ in found] == list(zip(i, j, strict=True))
    np.testing.assert_array_equal([s for *_, s in found], scores[i, j])
    assert 0 < len(found) < products.size and not kernels.find(products[:0], col_factor, 0, [])
