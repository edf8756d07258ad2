"""What went wrong in other miners, one test each.

The numbers are those of the threads: sentence-transformers (ST) and FlagEmbedding (Flag).
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import mining as benchmark
from cl_kernels import CSR, PairFilter
from cl_kernels.mining import mine_hard_negatives
from python_tests.mining import oracle
from python_tests.mining.test_negatives import clusters, whole_numbers


def on_the_circle(*cosines):
    """Unit vectors in the plane at these cosines to the x axis."""
    x = torch.tensor(cosines)
    return torch.stack([x, (1 - x * x).sqrt()], 1)


X_AXIS = torch.tensor([[1.0, 0.0]])


@pytest.mark.parametrize(("topics", "positives", "least", "most"), [
    (8, 1, 0.25, 0.5),
    (8, 3, 0.5, 0.9),
])  # fmt: skip
def test_nobody_is_short_while_candidates_exist(backend, topics, positives, least, most):
    """Post-filtering runs out of its first hundred where a topic has more texts than that."""
    query, corpus, known = clusters(200, 4000, topics, positives)
    short = benchmark.post_filtered(query, corpus, known.view(200, -1)) < 3
    assert least < short.float().mean() < most
    mined = mine_hard_negatives(query, corpus, known, relative_margin=0.05, backend=backend)
    assert (mined.counts == 3).all()
    assert len(mined.shortfall) == 0
    scores = oracle.scores_of(query, corpus)
    lowest = scores.gather(1, known.view(200, -1)).amin(1)
    assert (scores.gather(1, mined.indices) < 0.95 * lowest[:, None] + 1e-6).all()


def test_the_benchmark_shows_it():
    """All of its miners see the same data; only ours leaves nobody short without need."""
    measured = benchmark.measure(benchmark.Case(60, 1500, 3, 2, 16))
    text = benchmark.report([measured])
    ours, *others = measured["miners"].values()
    assert ours["short"] == ours["short_without_need"] == 0
    assert others and all(other["short_without_need"] > 0.25 for other in others)
    assert all(name in text for name in measured["miners"])


class LargestTensor(TorchDispatchMode):
    """The most elements that any result inside the block had."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return result


@pytest.mark.parametrize("bounds", [{}, {"min_score": -2.0}], ids=["one bound", "two"])
def test_st_3164_memory_does_not_grow_as_queries_times_corpus(bounds):
    """Not even where every query is short and all of its candidates are accounted for."""
    query, corpus, positive = clusters(1500, 20_000, 50, width=8)
    with LargestTensor() as largest:
        mined = mine_hard_negatives(query, corpus, positive, max_score=-1.0, **bounds)
    assert len(mined.shortfall) == 1500
    assert largest.elements < 1500 * 20_000 / 10


@pytest.mark.parametrize("against", ["min", "max", "mean"])
def test_st_3819_a_margin_is_below_a_positive_that_scores_below_zero(against):
    """``score * (1 - margin)`` lies above a score of -0.5, and lets everything pass."""
    corpus = on_the_circle(-0.5, -0.51, -0.6, -0.49, 0.9)
    mined = mine_hard_negatives(
        X_AXIS, corpus, torch.tensor([0]), relative_margin=0.1, margin_against=against
    )
    assert mined.indices.tolist() == [[2, -1, -1]]
    assert mined.shortfall.of(0)["relative_margin"] == 3


@pytest.mark.parametrize("sampling", ["top", "random", "softmax"])
def test_st_3872_positives_take_no_places(sampling):
    """Queries with many positives, all of them at the top, still get all their negatives."""
    corpus = on_the_circle(*torch.linspace(0.99, 0.1, 60).tolist())
    positives = torch.full((3, 50), -1)
    for row, count in enumerate((1, 20, 50)):
        positives[row, :count] = torch.arange(count)
    mined = mine_hard_negatives(
        X_AXIS.repeat(3, 1), corpus, positives, num_negatives=10, range_max=10, sampling=sampling
    )
    assert (mined.counts == 10).all()
    assert mined.indices.tolist() == [[*range(c, c + 10)] for c in (1, 20, 50)]


def test_st_4053_margins_delete_no_positives():
    """A positive beyond the margin of another is still a positive: in triplets and in tuples."""
    corpus = on_the_circle(0.9, 0.5, 0.4, 0.3, 0.2)
    mined = mine_hard_negatives(
        X_AXIS, corpus, torch.tensor([[0, 1]]), relative_margin=0.05, num_negatives=2
    )
    assert mined.indices.tolist() == [[2, 3]]
    assert [x.tolist() for x in mined.triplets()] == [[0] * 4, [0, 0, 1, 1], [2, 3, 2, 3]]
    columns = mined.columns(["q"], list("abcde"), "n-tuple", scores=True)
    assert columns["positive"] == ["a", "b"]
    torch.testing.assert_close(columns["scores"], [[0.9, 0.4, 0.3], [0.5, 0.4, 0.3]])


@pytest.mark.parametrize("against", ["min", "max", "mean"])
def test_margins_belong_to_their_query_when_the_number_of_positives_varies(backend, against):
    """In one flat list the positives of one query were read as those of the next."""
    query, corpus = whole_numbers(60, 5), whole_numbers(200, 5)
    counts = torch.arange(60) % 5  # some have none
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    positives = CSR(offsets, torch.randint(0, 200, (int(offsets[-1]),)))
    lists = [keys.tolist() for keys in positives.keys.split(counts.tolist())]
    options = {"absolute_margin": 1.0, "margin_against": against}
    mined = mine_hard_negatives(
        query, corpus, positives, normalize=False, backend=backend, **options
    )
    rows = oracle.mine(oracle.scores_of(query, corpus, normalize=False), lists, **options)
    for got, row in zip(mined.indices, rows, strict=True):
        assert got[got >= 0].tolist() == row.survivors[:3]
    unbounded = counts == 0
    assert (mined.scores[unbounded, 0] == (query @ corpus.T)[unbounded].amax(1)).all()


@pytest.mark.parametrize("sampling", ["top", "random", "softmax"])
def test_flag_empty_places_are_not_filled_at_random(sampling):
    """Who is short stays short: nothing that a filter removed comes back."""
    corpus = on_the_circle(0.9, 0.89, 0.88, 0.5, -0.5, 0.87)
    mined = mine_hard_negatives(
        X_AXIS, corpus, torch.tensor([0]), relative_margin=0.05, min_score=0.0, num_negatives=4,
        sampling=sampling,
    )  # fmt: skip
    assert mined.indices.tolist() == [[3, -1, -1, -1]]
    assert mined.scores[0, 1:].tolist() == [-torch.inf] * 3
    removed = {name: n for name, n in mined.shortfall.of(0).items() if n}
    assert removed == {"positive": 1, "relative_margin": 3, "min_score": 1}


@pytest.mark.parametrize("sampling", ["top", "random"])
def test_flag_779_the_same_everywhere(backend, sampling):
    """On every backend, with any threads, in any batch; equal scores by index."""
    query, corpus, positive = clusters(90, 700, 7, width=48)
    corpus[350:] = corpus[:350]  # every text twice
    # A score that is a sum of 48 rounded products depends on their order; one of 24 bits does not.
    query, corpus = (x.mul(64).round().div(64) for x in (query, corpus))
    options = {"absolute_margin": 0.125, "normalize": False, "sampling": sampling}

    def mine(rows=slice(None), **more):
        draw = {"generator": torch.Generator().manual_seed(3)} if sampling == "random" else {}
        return mine_hard_negatives(query[rows], corpus, positive[rows], **options, **draw, **more)

    expected = mine(backend="reference")
    assert torch.equal(mine(backend=backend).indices, expected.indices)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(mine(backend=backend).indices, expected.indices)
    finally:
        torch.set_num_threads(threads)
    if sampling == "top":
        parts = [mine(slice(i, i + 11), backend=backend) for i in range(0, 90, 11)]
        assert torch.equal(torch.cat([part.indices for part in parts]), expected.indices)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_copy_of_the_positive_is_not_below_the_positive(backend, normalize):
    """A margin of 0 keeps what scores below the positive. A copy of it does not, to the last bit,
    though a dot product by itself is rounded otherwise than one of a matrix product."""
    query, corpus, positive = clusters(300, 1000, 10, width=100)
    copies = torch.randperm(1300)
    corpus = torch.cat([corpus, corpus[positive]])[copies]
    place = copies.argsort()
    mined = mine_hard_negatives(
        query, corpus, place[positive], absolute_margin=0.0, normalize=normalize, backend=backend,
        num_negatives=20,
    )  # fmt: skip
    twins = (corpus[mined.indices] == corpus[place[positive]][:, None]).all(2)
    assert not (twins & (mined.indices >= 0)).any()


def test_duplicates_go_by_their_hashes():
    """Copies of positives under other indices, without any margin."""
    query, corpus, positive = clusters(50, 100, 5)
    corpus = corpus.repeat(2, 1)
    text = torch.arange(200) % 100 * 2**55
    where = PairFilter(text[positive], text, "different")
    mined = mine_hard_negatives(query, corpus, positive, where=where)
    assert (mined.indices % 100 != positive[:, None] % 100).all()
    assert (mined.counts == 3).all()
    unfiltered = mine_hard_negatives(query, corpus, positive)
    assert (unfiltered.indices % 100 == positive[:, None] % 100).any()
