"""Searches and metrics of keys in shards: the bits of one process that has all of them."""

import pytest
import torch
import torch.distributed as dist

import cl_kernels as cl
from cl_kernels import PairFilter
from cl_kernels.csr import CSR
from cl_kernels.evaluation import (
    knn_accuracy,
    knn_classify,
    label_relevance,
    mean_average_precision,
    retrieval_metrics,
)
from python_tests.distributed.processes import needs_gloo, run

pytestmark = needs_gloo

QUERIES, KEYS = [5, 0, 8], [70, 33, 0]
LISTS = [[0, 71, 102], [5], [], [70]]


class Parts:
    """All rows, and where those of each rank lie."""

    def __init__(self, rank):
        generator = torch.Generator().manual_seed(0)
        M, N = sum(QUERIES), sum(KEYS)
        self.query = torch.randn(M, 16, generator=generator)
        self.key = torch.randn(N, 16, generator=generator)
        self.key[80:90] = self.key[:10]  # scores that are equal, on two ranks
        self.query_labels = torch.randint(4, (M,), generator=generator)
        self.key_labels = torch.randint(4, (N,), generator=generator)
        self.kept = torch.rand(M, N, generator=generator) < 0.7
        self.bound = torch.rand(M, generator=generator)
        self.lists = [LISTS[row % 4] for row in range(M)]
        self.rows, self.keys = (
            slice(sum(counts[:rank]), sum(counts[: rank + 1])) for counts in (QUERIES, KEYS)
        )

    def filters(self, rows, keys):
        return PairFilter(self.query_labels[rows], self.key_labels[keys], "different")


def searches(x):
    """Options as of these queries (and these keys), by ``(rows, keys)``."""
    yield {}, lambda rows, keys: {}
    yield {"largest": False, "normalize": False}, lambda rows, keys: {}
    yield {}, lambda rows, keys: {"where": x.filters(rows, keys)}
    yield {"below": 0.3, "above": -0.2}, lambda rows, keys: {}
    yield {}, lambda rows, keys: {"below": x.bound[rows], "exclude": x.lists[rows]}
    yield {}, lambda rows, keys: {"keep": x.kept[rows]}
    yield {}, lambda rows, keys: {"exclude": CSR.from_lists(x.lists[rows]), "keep": x.kept[rows]}


def found_alike(rank):
    x, group, everything = Parts(rank), dist.group.WORLD, slice(None)
    for backend in (None, "chunked"):
        for k in (1, 7, 200):
            for settings, of in searches(x):
                settings = settings | {"backend": backend}
                whole = cl.topk(x.query, x.key, k, **settings, **of(everything, everything))
                mine = of(x.rows, x.keys)
                found = cl.topk(x.query[x.rows], x.key[x.keys], k, group=group, **settings, **mine)
                for got, expected in zip(found, whole, strict=True):
                    assert torch.equal(got, expected[x.rows]), (k, settings, mine)
    numpy_key = x.key[x.keys].numpy()
    found = cl.topk(x.query[x.rows], numpy_key, 3, group=group)
    assert torch.equal(found.indices, cl.topk(x.query, x.key, 3).indices[x.rows])


def in_range_alike(rank):
    x, group, everything = Parts(rank), dist.group.WORLD, slice(None)
    for settings, of in (
        ({"above": -0.1}, lambda rows, keys: {}),  # more than are looked for at first
        ({"above": 0.2, "normalize": False}, lambda rows, keys: {"where": x.filters(rows, keys)}),
        ({"below": 0.6}, lambda rows, keys: {"above": x.bound[rows] - 0.6}),
        ({"above": 0.0}, lambda rows, keys: {"exclude": x.lists[rows]}),
    ):
        whole = cl.range_search(x.query, x.key, **settings, **of(everything, everything))
        mine = settings | of(x.rows, x.keys)
        found = cl.range_search(x.query[x.rows], x.key[x.keys], **mine, group=group)
        of_rows = torch.arange(len(x.query))[x.rows]
        scores = whole.scores[torch.isin(whole.keys.rows(), of_rows)]
        assert torch.equal(found.scores, scores) and len(whole.scores)
        assert all(map(torch.equal, found.keys, whole.keys.gather(of_rows)))
    query, key = x.query[:4], x.key[:9]
    for wrong in (
        lambda: cl.range_search(query, key if rank else key[:, :7], above=0.1, group=group),
        lambda: cl.range_search(query, key, above=None if rank == 1 else 0.1, group=group),
        lambda: cl.range_search(query, above=0.1, group=group),
    ):
        with pytest.raises((TypeError, ValueError)):
            wrong()
    cl.range_search(query, key, above=0.1, group=group)


def measured_alike(rank):
    x, group = Parts(rank), dist.group.WORLD
    rows = slice(4 * rank, 4 * rank + 4) if rank else slice(0, 4)  # no rank without a query
    keys = slice(33 * rank, 33 * rank + 33)
    key, key_labels = x.key[:99], x.key_labels[:99]
    query, labels = x.query[:12], x.query_labels[:12]
    whole = retrieval_metrics(query, key, label_relevance(labels, key_labels), at=(1, 5, 60))
    of_shard = label_relevance(labels[rows], key_labels[keys])
    found = retrieval_metrics(query[rows], key[keys], of_shard, at=(1, 5, 60), group=group)
    assert found == whole and found.queries == whole.queries
    for name, values in whole.per_query.items():
        assert torch.equal(found.per_query[name], values), name
    lists = [[row, (7 * row) % 99] for row in range(12)]
    whole = retrieval_metrics(query, key, lists, exclude=lists[::-1])
    some = {"relevant": lists[rows], "exclude": lists[::-1][rows]}
    assert retrieval_metrics(query[rows], key[keys], **some, group=group) == whole
    items = mean_average_precision(key, key_labels)
    assert mean_average_precision(key[keys], key_labels[keys], group=group) == items
    for k in (3, 150):
        prediction = knn_classify(query, key, key_labels, k)
        found = knn_classify(query[rows], key[keys], key_labels[keys], k, group=group)
        for got, expected in zip(found, prediction, strict=True):
            assert torch.equal(got, expected[rows])
        accuracy = knn_accuracy(query, labels, key, key_labels, k)
        given = query[rows], labels[rows], key[keys], key_labels[keys]
        assert knn_accuracy(*given, k, group=group) == accuracy
        alone = knn_accuracy(key[keys], key_labels[keys], k=k, group=group)
        assert alone == knn_accuracy(key, key_labels, k=k)


def minings(x):
    yield {"num_negatives": 3}
    yield {"num_negatives": 4, "relative_margin": 0.1, "max_score": 0.6, "min_score": -0.1}
    yield {"num_negatives": 60, "range_min": 3, "absolute_margin": 0.05, "max_score": 0.4}
    yield {"num_negatives": 2, "sampling": "random", "range_max": 9, "candidates": 12}
    yield {"num_negatives": 90, "normalize": False, "return_scores": False}


def mined(x, rows, keys, filtered, settings):
    where = x.filters(rows, keys) if filtered else ()
    given = settings | {"where": where, "generator": torch.Generator().manual_seed(1)}
    return cl.mine_hard_negatives(x.query[rows], x.key[keys], x.lists[rows], **given)


def mined_alike(rank):
    x, group, everything = Parts(rank), dist.group.WORLD, slice(None)
    for filtered in (False, True):
        for settings in minings(x):
            whole = mined(x, everything, everything, filtered, settings)
            found = mined(x, x.rows, x.keys, filtered, settings | {"group": group})
            expected = whole.of_queries(x.rows)
            assert str(found) == str(expected)
            assert found.num_documents == len(x.key)
            names = "indices", "scores", "counts", "positive_scores"
            pairs = [(getattr(found, n), getattr(expected, n)) for n in names]
            pairs += [*zip(found.positives, expected.positives, strict=True)]
            if settings.get("candidates"):
                pairs += [*zip(found.candidates, expected.candidates, strict=True)]
            for got, exact in pairs:
                assert got is exact or torch.equal(got, exact), settings
            for name, removed in found.shortfall.removed.items():
                assert torch.equal(removed, expected.shortfall.removed[name]), name
            for place, query in enumerate(found.shortfall.queries.tolist()):
                assert whole.shortfall.of(query + x.rows.start) == found.shortfall.of(query), place
            assert found.triplets()[0].equal(expected.triplets()[0])


def told_to_all(rank):
    x, group, odd = Parts(rank), dist.group.WORLD, rank == 1
    query, key = x.query[:4], x.key[:9]
    for named, call in (
        ("key", lambda: cl.topk(query, key[:, :7] if odd else key, 2, group=group)),
        ("k", lambda: cl.topk(query, key, 2 + rank, group=group)),
        ("(query|topk)", lambda: cl.topk(query[0] if odd else query, key, 2, group=group)),
        ("exclude", lambda: cl.topk(query, key, 2, exclude=[[99 * rank]] * 4, group=group)),
        ("where", lambda: cl.topk(query, key, 2, where="no" if odd else (), group=group)),
        (
            "(query|retrieval_metrics)",
            lambda: retrieval_metrics(query[:0] if odd else query, key, [[1]] * 4, group=group),
        ),
        (
            "positives",
            lambda: cl.mine_hard_negatives(query, key, [[99 * rank]] * 4, group=group),
        ),
        ("corpus", lambda: cl.mine_hard_negatives(query, key[:, 1:], [[]] * 4, group=group)),
        ("query", lambda: cl.topk(query.clone().requires_grad_(), key, 2, group=group)),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^({named}|topk)"):
            call()
    assert len(cl.topk(query, key, 2, group=group).indices) == 4


def all_of_it(rank):
    found_alike(rank)
    in_range_alike(rank)
    measured_alike(rank)
    mined_alike(rank)
    told_to_all(rank)


def test_with_three_ranks():
    run(all_of_it, 3)
