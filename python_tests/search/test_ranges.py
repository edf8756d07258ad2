"""Searches for all pairs above a threshold, for groups and for the best pairs, against a matrix
that ``topk`` fills."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from cl_kernels import PairFilter, best_pairs, duplicate_groups, range_search, topk
from cl_kernels.search import ranges

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def matrix(query, key, **options):
    """The scores that ``topk`` gives, -inf of pairs that it leaves out."""
    values, indices = topk(query, key, len(key), **options)
    scores = values.new_full((len(query), len(key)), -torch.inf)
    found = indices >= 0
    rows = torch.arange(len(query))[:, None].expand_as(found)
    scores[rows[found], indices[found]] = values[found]
    return scores


def assert_in_range(found, scores, above, bits=True):
    """All of a matrix that is above, best first, with its bits (but of the reference's, which
    depend on the batch)."""
    (offsets, keys), values = found
    assert offsets[0] == 0 and offsets[-1] == len(keys) == len(values)
    above = torch.as_tensor(above).expand(len(scores))
    for row, (start, stop) in enumerate(pairwise(offsets.tolist())):
        ordered, order = scores[row].sort(descending=True, stable=True)
        kept = ordered > above[row]
        if bits:
            assert torch.equal(keys[start:stop], order[kept])
            assert torch.equal(values[start:stop], ordered[kept])
        else:
            assert torch.equal(keys[start:stop].sort().values, order[kept].sort().values)
            torch.testing.assert_close(values[start:stop], ordered[kept])


def alike(rows, width, dtype=torch.float32):
    """Rows of some clusters, and some that are equal."""
    x = torch.randn(rows, width) * 0.6 + torch.randn(5, width)[torch.randint(5, (rows,))]
    x[rows // 2 : rows // 2 + rows // 6] = x[0]
    return x.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("above", [-0.2, 0.5, 0.95])
def test_pairs_of_queries_and_keys(backend, dtype, normalize, above):
    query, key = alike(40, 12, dtype), alike(330, 12, dtype)
    options = {"normalize": normalize, "backend": backend}
    found = range_search(query, key, above=above, **options)
    assert_in_range(found, matrix(query, key, **options), above, backend != "reference")


@pytest.mark.parametrize("rows", [0, 1, 30, 700])
@pytest.mark.parametrize("least", [16, 512])
def test_pairs_of_rows_are_found_once(monkeypatch, rows, least):
    monkeypatch.setattr(ranges, "_LEAST_ROWS", least)
    x = alike(rows, 12) if rows else torch.empty(0, 12)
    labels = torch.arange(rows) % 3
    for where in ((), PairFilter(labels, labels, "same")):
        found = range_search(x, above=0.3, where=where)
        expected = matrix(x, x, where=where) if rows else torch.empty(0, 0)
        expected = expected.where(torch.ones_like(expected).triu(1) > 0, -torch.inf)
        assert_in_range(found, expected, 0.3)


def test_everything_beside_the_threshold(backend):
    query, key = alike(60, 12), alike(500, 12)
    above, below = torch.linspace(-1.2, 1.0, 60), torch.linspace(0.9, 1.1, 60)
    exclude = [[row, 3 * row, 250] for row in range(60)]
    ids = PairFilter(torch.arange(60) % 4, torch.arange(500) % 4, "different")
    options = {"below": below, "where": ids, "exclude": exclude, "backend": backend}
    found = range_search(query, key, above=above, **options)
    assert_in_range(found, matrix(query, key, **options), above)
    padded = torch.tensor([[row, -1, 3 * row] for row in range(60)])
    assert_in_range(
        range_search(query, key, above=above, exclude=padded, backend=backend),
        matrix(query, key, exclude=padded, backend=backend), above, backend != "reference",
    )  # fmt: skip
    rows = range_search(query, above=0.2, exclude=[[(row + 1) % 60] for row in range(60)])
    assert not (rows.keys.keys == rows.keys.rows() + 1).any() and len(rows.scores)


def test_results_are_made_some_at_a_time(monkeypatch):
    query, key = alike(60, 12), alike(500, 12)
    whole = range_search(query, key, above=0.0)
    monkeypatch.setattr(ranges, "_HELD", 300)
    parts = range_search(query, key, above=0.0)
    assert torch.equal(parts.scores, whole.scores)
    assert all(map(torch.equal, parts.keys, whole.keys))


def test_more_pairs_than_wanted_are_counted():
    x = alike(300, 12)
    count = int((matrix(x, x) > 0.1).sum())
    assert len(range_search(x, x, above=0.1, max_pairs=count).scores) == count
    with pytest.raises(ValueError, match=f"max_pairs: expected at least about {count}, so many"):
        range_search(x, x, above=0.1, max_pairs=count - 1)
    once = (count - 300) // 2
    with pytest.raises(ValueError, match=f"max_pairs: expected at least about {once}, so many"):
        range_search(x, above=0.1, max_pairs=7)
    with pytest.raises(ValueError, match="max_pairs: expected at least about 44850, so many"):
        range_search(x, above=-torch.inf, max_pairs=7)
    with pytest.raises(ValueError, match=r"expected more than \d+, so many are in range"):
        range_search(x, x, above=0.1, max_pairs=7, exclude=torch.arange(300))


def test_rows_of_host_arrays_and_with_nan(tmp_path):
    x, key = alike(20, 12), alike(400, 12)
    np.save(tmp_path / "keys.npy", key.numpy())
    mapped = np.load(tmp_path / "keys.npy", mmap_mode="r")
    whole, streamed = (range_search(x, k, above=0.4) for k in (key, mapped))
    assert all(map(torch.equal, whole.keys, streamed.keys))
    assert torch.equal(whole.scores, streamed.scores)
    key[7], x[3] = torch.nan, torch.nan
    (offsets, keys), _ = range_search(x, key, above=-2.0)
    assert offsets[4] == offsets[3] and not (keys == 7).any() and len(keys) == 19 * 399
    found = range_search(x.requires_grad_(), key, above=0.4)
    assert not found.scores.requires_grad


@pytest.mark.parametrize("above", [0.6, 0.9, 0.999, 1.1])
def test_groups(backend, above):
    coo_matrix = pytest.importorskip("scipy.sparse").coo_matrix
    connected_components = pytest.importorskip("scipy.sparse.csgraph").connected_components
    x = alike(400, 12)
    pairs = range_search(x, above=above).keys
    edges = np.ones(len(pairs.keys)), (pairs.rows().numpy(), pairs.keys.numpy())
    _, component = connected_components(coo_matrix(edges, shape=(400, 400)), directed=False)
    _, first = np.unique(component, return_index=True)
    group = duplicate_groups(x, above, backend=backend)
    assert torch.equal(group, torch.from_numpy(first)[torch.from_numpy(component).long()])


def test_groups_of_chains_and_of_filtered_pairs():
    angle = torch.arange(200) * 0.01  # each row is near the next alone
    chain = torch.stack((angle.cos(), angle.sin()), 1)[torch.randperm(200)]
    assert not duplicate_groups(chain, 0.9999).any()
    assert torch.equal(duplicate_groups(chain, 0.99999), torch.arange(200))
    half = torch.arange(200) % 2
    group = duplicate_groups(torch.ones(200, 3), 0.5, where=PairFilter(half, half, "same"))
    assert torch.equal(group, half)
    assert duplicate_groups(torch.empty(0, 3), 0.5).shape == (0,)


@pytest.mark.parametrize("k", [1, 40, 2000, 30_000, 10**6])
@pytest.mark.parametrize("itself", [True, False])
def test_the_best_pairs(backend, k, itself):
    x = torch.randn(300, 12)
    key = None if itself else torch.randn(200, 12)
    scores = matrix(x, x if itself else key)
    counted = torch.ones_like(scores).triu(1) > 0 if itself else scores > -torch.inf
    values, order = scores[counted].sort(descending=True, stable=True)
    places = counted.nonzero()[order[:k]]
    found = best_pairs(x, key, k, backend=backend)
    if backend == "reference":  # whose bits depend on the batch
        return torch.testing.assert_close(found.values, values[:k])
    assert torch.equal(found.values, values[:k])
    assert torch.equal(torch.stack((found.queries, found.keys), 1), places)


def test_the_best_pairs_of_equal_ones():
    found = best_pairs(torch.ones(500, 4), k=70)
    assert len(set(zip(*(x.tolist() for x in found[1:]), strict=True))) == 70
    assert (found.values == found.values[0]).all() and (found.queries < found.keys).all()
    labels = torch.arange(40)
    none = best_pairs(torch.randn(40, 4), k=3, where=PairFilter(labels, labels, "same"))
    assert len(none.values) == 0


@pytest.mark.parametrize(("call", "said"), [
    (lambda x: range_search(x, above=None), "above: expected a number or a tensor, got None"),
    (lambda x: range_search(x, above="much"), "above"),
    (lambda x: range_search(x, above=0.5, max_pairs=0), "max_pairs"),
    (lambda x: range_search(x, x[:, :2], above=0.5), "key: expected the width of query, 4, got 2"),
    (lambda x: range_search(x, x[0], above=0.5), r"key: expected embeddings \[N, D\]"),
    (lambda x: range_search(x, above=torch.zeros(3)), "above"),
    (lambda x: range_search(x.long(), above=0.5), "query"),
    (lambda x: duplicate_groups(x, None), "above"),
    (lambda x: duplicate_groups(x[0], 0.5), "x"),
    (lambda x: duplicate_groups(x, 0.5, where=(PairFilter(*[torch.arange(9)] * 2, "same"),) * 3),
     "where: expected at most 2 filters, got 3"),
    (lambda x: best_pairs(x, 9), r"key: expected embeddings \[N, D\], got int"),
    (lambda x: range_search(x, 9, above=0.5), r"key: expected embeddings \[N, D\], got int"),
    (lambda x: best_pairs(x, k=0), "k"),
    (lambda x: best_pairs(x, k=2.5), "k"),
    (lambda x: best_pairs(x, x[:, :2]), "key: expected the width of query, 4, got 2"),
])  # fmt: skip
def test_what_is_refused(call, said):
    with pytest.raises((TypeError, ValueError), match=f"^{said}"):
        call(torch.randn(9, 4))
