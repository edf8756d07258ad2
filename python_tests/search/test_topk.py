"""topk on every CPU backend against an oracle that holds the matrix."""

import numpy as np
import pytest
import torch

from cl_kernels import CSR, PairFilter, topk
from python_tests.helpers import accumulator, unit_rows
from python_tests.search import oracle

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [(1, 1, 1), (3, 50, 7), (70, 300, 33), (65, 4200, 16)]


def whole_numbers(rows, width, dtype=torch.float32):
    """Embeddings whose inner products are exact in every dtype, and full of ties."""
    return torch.randint(-2, 3, (rows, width)).to(dtype)


def random_lists(M, N, most=6):
    counts = torch.randint(0, most + 1, (M,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return CSR(offsets, torch.randint(0, N, (int(offsets[-1]),)))


def assert_found(found, values, indices):
    np.testing.assert_array_equal(found.indices.numpy(), indices)
    np.testing.assert_array_equal(found.values.double().numpy(), values)


def assert_close(found, query, key, keep, k, *, normalize, largest=True):
    """Any k kept keys whose scores are the best up to rounding, in the order of their values."""
    exact = oracle.scores(query, key, normalize=normalize)
    values, indices = oracle.topk(exact, keep, k, largest=largest)
    size = np.abs(exact).max(initial=1.0)
    eps = torch.finfo(accumulator(query.dtype)).eps
    allowed = 4 * eps * size * max(1, query.shape[1]) ** 0.5
    filled = indices >= 0
    ours = found.indices.numpy()
    np.testing.assert_array_equal(ours >= 0, filled)
    ours_values = found.values.double().numpy()
    np.testing.assert_array_equal(ours_values[~filled], values[~filled])
    np.testing.assert_allclose(ours_values[filled], values[filled], atol=allowed, rtol=0)
    for i, row in enumerate(ours):
        row = row[row >= 0]
        assert len(set(row)) == len(row)
        assert keep[i, row].all()
        np.testing.assert_allclose(ours_values[i, : len(row)], exact[i, row], atol=allowed, rtol=0)
    better, worse = ours_values[:, :-1][filled[:, 1:]], ours_values[:, 1:][filled[:, 1:]]
    assert (better >= worse).all() if largest else (better <= worse).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("largest", [True, False])
def test_exact_with_ties(backend, dtype, shape, largest):
    M, N, D = shape
    query, key = whole_numbers(M, D, dtype), whole_numbers(N, D, dtype)
    exact = oracle.scores(query, key, normalize=False)
    for k in (1, 10, N + 3):
        found = topk(query, key, k, normalize=False, largest=largest, backend=backend)
        keep = np.ones((M, N), dtype=bool)
        assert_found(found, *oracle.topk(exact, keep, k, largest=largest))
        assert found.values.dtype == accumulator(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("largest", [True, False])
def test_cosines(backend, dtype, largest):
    query = (torch.randn(40, 48, dtype=torch.float64) * 3).to(dtype)
    key = (torch.randn(700, 48, dtype=torch.float64) * torch.rand(700, 1) * 5).to(dtype)
    key[100:140] = query  # each finds its twin
    found = topk(query, key, 20, largest=largest, backend=backend)
    keep = np.ones((40, 700), dtype=bool)
    assert_close(found, query, key, keep, 20, normalize=True, largest=largest)
    if largest:
        assert torch.equal(found.indices[:, 0], torch.arange(100, 140))


def filters_of(kind, M, N):
    labels = PairFilter(torch.randint(0, 7, (M,)), torch.randint(0, 7, (N,)), "different")
    groups = PairFilter(torch.randint(-3, 3, (M,)) << 40, torch.randint(-3, 3, (N,)) << 40, "same")
    return {"none": (), "labels": (labels,), "labels, groups": (labels, groups)}[kind]


@pytest.mark.parametrize("kind", ["none", "labels", "labels, groups"])
@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("bounds", ["none", "below", "above", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_filters_inside_the_scan(backend, kind, excluded, bounds, dtype):
    M, N, D = 67, 900, 12
    query, key = whole_numbers(M, D, dtype), whole_numbers(N, D, dtype)
    exact = oracle.scores(query, key, normalize=False)
    options = {"where": filters_of(kind, M, N)}
    if excluded:
        options["exclude"] = random_lists(M, N, 40)
    if bounds in ("below", "both"):
        options["below"] = torch.randint(-2, 9, (M,)).to(accumulator(dtype))
    if bounds in ("above", "both"):
        options["above"] = -3.0
    keep = oracle.kept((M, N), of=exact, **options)
    for largest in (True, False):
        found = topk(query, key, 25, normalize=False, largest=largest, backend=backend, **options)
        assert_found(found, *oracle.topk(exact, keep, 25, largest=largest))


def test_bounds_hold_for_the_normalized_score(backend):
    query, key = 5 * unit_rows(20, 16), 3 * unit_rows(400, 16)
    exact = oracle.scores(query, key, normalize=True)
    found = topk(query, key, 400, below=0.25, above=-0.5, backend=backend)
    keep = (exact < 0.25) & (exact > -0.5)
    assert (np.abs(exact - 0.25).min() > 1e-6) and (np.abs(exact + 0.5).min() > 1e-6)
    assert_close(found, query, key, keep, 400, normalize=True)


def test_many(backend):
    query, key = whole_numbers(3, 9), whole_numbers(5000, 9)
    exact = oracle.scores(query, key, normalize=False)
    keep = np.ones(exact.shape, dtype=bool)
    for k in (256, 257, 4096, 6000):
        found = topk(query, key, k, normalize=False, backend=backend)
        assert_found(found, *oracle.topk(exact, keep, k))


@pytest.mark.parametrize("order", ["ascending", "descending", "all equal"])
def test_ordered_corpora(backend, order):
    """The worst cases of a running threshold."""
    key = torch.arange(3000.0)[:, None] / 3000
    key = {"ascending": key, "descending": key.flip(0), "all equal": torch.ones(3000, 1)}[order]
    query = torch.tensor([[1.0], [-1.0], [0.0]])
    exact = oracle.scores(query, key, normalize=False)
    found = topk(query, key, 70, normalize=False, backend=backend)
    values, indices = oracle.topk(exact, np.ones(exact.shape, dtype=bool), 70)
    np.testing.assert_array_equal(found.indices.numpy(), indices)
    np.testing.assert_allclose(found.values.numpy(), values, rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_result_does_not_depend_on_its_batch(backend, dtype):
    if backend == "reference":
        pytest.skip("BLAS picks its instructions by the shape of the whole product")
    query, key = torch.randn(300, 37, dtype=dtype), torch.randn(4500, 37, dtype=dtype)
    key[4400:] = key[:100]  # ties must fall alike as well
    whole = topk(query, key, 30, backend=backend)
    twins = whole.indices[:, :-1] < 100
    assert torch.equal(whole.indices[:, 1:][twins], whole.indices[:, :-1][twins] + 4400)
    for rows in ([0], [299], [5, 17], list(range(64)), list(range(100, 229))):
        part = topk(query[rows], key, 30, backend=backend)
        assert torch.equal(part.indices, whole.indices[rows])
        assert torch.equal(part.values, whole.values[rows])


@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_not_finite(backend, normalize):
    query, key = whole_numbers(6, 8).abs() + 1, whole_numbers(50, 8)
    query[2, 3] = torch.nan
    key[[4, 9], 0] = torch.nan
    key[11] = -torch.inf
    found = topk(query, key, 50, normalize=normalize, backend=backend)
    assert (found.indices[2] == -1).all() and (found.values[2] == -torch.inf).all()
    others = found.indices[[0, 1, 3, 4, 5]]
    lost = [4, 9, 11]  # -inf never beats an empty place; its cosine is not a number
    for row in others.tolist():
        assert sorted(i for i in row if i >= 0) == [i for i in range(50) if i not in lost]


def test_an_infinite_score_can_be_found(backend):
    query, key = torch.ones(2, 3), torch.randn(10, 3)
    key[7] = torch.inf
    found = topk(query, key, 2, normalize=False, backend=backend)
    assert found.indices[:, 0].tolist() == [7, 7] and (found.values[:, 0] == torch.inf).all()


def test_zero_vectors_score_zero_under_normalize(backend):
    query, key = torch.randn(3, 5), torch.randn(8, 5)
    query[1], key[6] = 0, 0
    found = topk(query, key, 8, backend=backend)
    assert (found.values[1] == 0).all() and found.indices[1].tolist() == list(range(8))
    assert (found.values[found.indices == 6] == 0).all()


def test_zeros_of_the_smallest_have_no_sign(backend):
    query, key = torch.tensor([[1.0, -1.0]]), torch.ones(3, 2)
    found = topk(query, key, 3, normalize=False, largest=False, backend=backend)
    assert not found.values.signbit().any() and found.indices.tolist() == [[0, 1, 2]]


def test_minus_zero_is_zero(backend):
    query = torch.tensor([[1.0]])
    key = torch.tensor([[-0.0], [0.0], [-0.0], [0.0]])
    assert topk(query, key, 4, normalize=False, backend=backend).indices.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("M, N", [(0, 5), (4, 0), (0, 0)])
def test_nothing_to_find(backend, M, N):
    values, indices = topk(torch.randn(M, 3), torch.randn(N, 3), 2, backend=backend)
    assert values.shape == indices.shape == (M, 2)
    assert (values == -torch.inf).all() and (indices == -1).all()
    smallest = topk(torch.randn(M, 3), torch.randn(N, 3), 2, largest=False, backend=backend)
    assert (smallest.values == torch.inf).all() and (smallest.indices == -1).all()


def test_everything_filtered(backend):
    query, key, ids = torch.randn(5, 3), torch.randn(9, 3), torch.zeros(9, dtype=torch.int64)
    found = topk(query, key, 3, where=PairFilter(ids[:5], ids, "different"), backend=backend)
    assert (found.indices == -1).all()
    all_of_them = CSR(torch.arange(0, 46, 9), torch.arange(9).repeat(5))
    assert (topk(query, key, 3, exclude=all_of_them, backend=backend).indices == -1).all()


def test_rows_of_any_stride(backend):
    query, key = torch.randn(20, 2, 9)[:, 1], torch.randn(9, 60).T
    found = topk(query, key, 5, backend=backend)
    expected = topk(query.contiguous(), key.contiguous(), 5, backend=backend)
    assert torch.equal(found.indices, expected.indices)


def test_unwritten_memory_does_not_show(backend, nan_filled_memory):
    query, key = whole_numbers(67, 5), whole_numbers(130, 5)
    exact = oracle.scores(query, key, normalize=False)
    found = topk(query, key, 140, normalize=False, backend=backend)
    assert_found(found, *oracle.topk(exact, np.ones(exact.shape, dtype=bool), 140))


def test_against_faiss():
    """As multisets of scores: faiss orders ties its own way."""
    faiss = pytest.importorskip("faiss")
    query, key = whole_numbers(50, 24), whole_numbers(2000, 24)
    index = faiss.IndexFlatIP(24)
    index.add(key.numpy())
    theirs, _ = index.search(query.numpy(), 100)
    ours = topk(query, key, 100, normalize=False)
    np.testing.assert_array_equal(ours.values.numpy(), theirs)
    query, key = unit_rows(50, 24), unit_rows(2000, 24)
    index = faiss.IndexFlatIP(24)
    index.add(key.numpy())
    theirs, _ = index.search(query.numpy(), 100)
    np.testing.assert_allclose(topk(query, key, 100).values.numpy(), theirs, atol=1e-6)
