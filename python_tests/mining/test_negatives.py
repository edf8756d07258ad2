"""mine_hard_negatives against an oracle that holds the matrix, on every CPU backend."""

import itertools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import mining
from cl_kernels import CSR, PairFilter
from cl_kernels.mining import mine_hard_negatives
from python_tests.helpers import accumulator
from python_tests.mining import oracle

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


def whole_numbers(rows, width, dtype=torch.float32):
    """Embeddings whose inner products, halves and quarters are exact: ties and exact bounds."""
    return torch.randint(-2, 3, (rows, width)).to(dtype)


def lists_of(M, N, most=4):
    """Positives of each query as lists, some of them empty, and as CSR."""
    lists = [random.sample(range(N), random.randint(0, min(most, N))) for _ in range(M)]
    offsets = torch.tensor([0, *itertools.accumulate(map(len, lists))])
    return lists, CSR(offsets, torch.tensor([j for row in lists for j in row], dtype=torch.int64))


def random_filters(M, N):
    labels_q, labels_k = torch.randint(0, 4, (M,)), torch.randint(0, 4, (N,))
    groups_q, groups_k = torch.randint(0, 3, (M,)) * 2**61, torch.randint(0, 3, (N,)) * 2**61
    filters = (
        PairFilter(labels_q, labels_k, "different"),
        PairFilter(groups_q, groups_k, random.choice(["same", "different"])),
    )
    return filters[: random.randint(0, 2)]


def random_bounds():
    """Arguments that bound scores; any may be missing."""
    maybe = random.random
    bounds = {"margin_against": random.choice(["min", "max", "mean"])}
    if maybe() < 0.4:
        bounds["max_score"] = float(random.randint(-2, 6))
    if maybe() < 0.4:
        bounds["absolute_margin"] = float(random.randint(0, 3))
    if maybe() < 0.4:
        bounds["relative_margin"] = random.choice([0.0, 0.25, 0.5])
    if maybe() < 0.4:
        bounds["min_score"] = float(random.randint(-9, -3))
    return bounds


def clusters(queries, documents, topics, positives=1, width=32):
    """Queries, texts and positives of the benchmark; [queries] if there is one positive each."""
    query, corpus, known = mining.clusters(
        mining.Case(queries, documents, topics, positives, width)
    )
    return query, corpus, known.squeeze(1)


def check(mined, scores, rows, num_negatives, range_min=0):
    """Holds indices, scores, counts and the whole account of the shortfall against the oracle."""
    short = []
    for i, row in enumerate(rows):
        expected = row.survivors[range_min : range_min + num_negatives]
        got = mined.indices[i]
        assert got[: len(expected)].tolist() == expected
        assert (got[len(expected) :] == -1).all()
        assert mined.counts[i] == len(expected)
        values = mined.scores[i].double()
        assert torch.equal(values[: len(expected)], scores[i, expected])
        assert (values[len(expected) :] == -torch.inf).all()
        if len(expected) == num_negatives:
            assert mined.shortfall.of(i) == {}
            continue
        short.append(i)
        row.removed["rank_window"] = len(row.survivors) - len(expected)
        assert mined.shortfall.of(i) == row.removed
    assert mined.shortfall.queries.tolist() == short
    assert torch.equal(mined.shortfall.missing, num_negatives - mined.counts[short])
    total = sum(mined.shortfall.removed.values()) + mined.counts[short]
    assert torch.equal(total, mined.shortfall.candidates)
    assert (total == scores.shape[1]).all()


@pytest.mark.parametrize("seed", range(25))
def test_oracle(backend, seed):
    random.seed(seed), torch.manual_seed(seed)
    M, N, D = random.choice([(1, 1, 2), (7, 20, 3), (30, 60, 4), (70, 300, 6)])
    dtype = random.choice([torch.float32, torch.bfloat16, torch.float16, torch.float64])
    query, corpus = whole_numbers(M, D, dtype), whole_numbers(N, D, dtype)
    if random.random() < 0.3:
        corpus[random.randrange(N)] = torch.nan
    if random.random() < 0.2:
        query[random.randrange(M)] = torch.nan
    lists, positives = lists_of(M, N)
    # A NaN has no score to keep a margin from; the oracle knows positives with scores only.
    scores = oracle.scores_of(query, corpus, normalize=False)
    for row, some in zip(scores, lists, strict=True):
        some[:] = [j for j in some if not row[j].isnan()]
    positives = CSR(
        torch.tensor([0, *itertools.accumulate(map(len, lists))]),
        torch.tensor([j for some in lists for j in some], dtype=torch.int64),
    )
    where, bounds = random_filters(M, N), random_bounds()
    num_negatives, range_min = random.choice([1, 3, 10, N + 2]), random.choice([0, 0, 2, 7])
    if bounds.get("min_score", -99) >= bounds.get("max_score", 99):
        del bounds["min_score"]
    mined = mine_hard_negatives(
        query, corpus, positives, num_negatives=num_negatives, range_min=range_min, where=where,
        normalize=False, backend=backend, **bounds,
    )  # fmt: skip
    assert mined.scores.dtype == accumulator(dtype)
    check(
        mined, scores, oracle.mine(scores, lists, where=where, **bounds), num_negatives, range_min
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_cosines(backend, dtype):
    """Rounding may swap what is equal to it; every number of the account still adds up."""
    query, corpus, positive = clusters(60, 900, 6)
    query, corpus = (3 * query).to(dtype), (corpus * (1 + torch.rand(900, 1))).to(dtype)
    bounds = {"relative_margin": 0.2, "max_score": 0.75, "min_score": 0.7}
    mined = mine_hard_negatives(
        query, corpus, positive, num_negatives=5, range_min=1, backend=backend, **bounds
    )
    scores = oracle.scores_of(query, corpus)
    rows = oracle.mine(scores, positive[:, None].tolist(), **bounds)
    eps = 1e-12 if dtype == torch.float64 else 1e-6
    for i, row in enumerate(rows):
        expected = row.survivors[1:6]
        assert mined.counts[i] == len(expected)
        got = mined.indices[i, : len(expected)]
        torch.testing.assert_close(scores[i, got], scores[i, expected], rtol=0, atol=eps)
        torch.testing.assert_close(
            mined.scores[i, : len(expected)].double(), scores[i, got], rtol=0, atol=eps
        )
        if len(expected) < 5:
            row.removed["rank_window"] = len(row.survivors) - len(expected)
            assert mined.shortfall.of(i) == row.removed
    assert 0 < len(mined.shortfall) < 60
    torch.testing.assert_close(
        mined.positive_scores.double(), scores[torch.arange(60), positive], rtol=0, atol=eps
    )


@pytest.mark.parametrize("form", ["index", "padded", "CSR", "tuple"])
def test_forms_of_positives(form):
    query, corpus, positive = clusters(20, 100, 5)
    expected = mine_hard_negatives(query, corpus, positive, relative_margin=0.1)
    padded = torch.stack([torch.full_like(positive, -1), positive], 1)
    csr = CSR(torch.arange(21), positive)
    given = {"index": positive.int(), "padded": padded, "CSR": csr, "tuple": tuple(csr)}[form]
    mined = mine_hard_negatives(query, corpus, given, relative_margin=0.1)
    assert torch.equal(mined.indices, expected.indices)
    assert torch.equal(mined.scores, expected.scores)
    assert torch.equal(mined.positives.keys, positive)


@pytest.mark.parametrize("sampling", ["random", "softmax"])
class TestSampling:
    def mine(self, sampling, seed=0, **options):
        torch.manual_seed(0)
        query, corpus, positive = clusters(40, 400, 8)
        generator = torch.Generator().manual_seed(seed)
        options = {"num_negatives": 4, "range_min": 3, "range_max": 30} | options
        return mine_hard_negatives(
            query, corpus, positive, sampling=sampling, generator=generator, **options
        )

    def test_draws_from_the_window_without_replacement(self, sampling):
        mined = self.mine(sampling, candidates=30)
        ranks = (mined.indices[:, :, None] == mined.candidates.indices[:, None]).int().argmax(2)
        assert torch.equal(mined.candidates.indices.gather(1, ranks), mined.indices)
        assert ((ranks >= 3) & (ranks < 30)).all()
        assert (ranks.diff(dim=1) > 0).all()  # by rank, nobody twice
        assert torch.equal(mined.candidates.values.gather(1, ranks), mined.scores)

    def test_seed(self, sampling):
        first, again, other = (self.mine(sampling, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(first.indices, again.indices)
        assert not torch.equal(first.indices, other.indices)

    def test_without_a_generator_torchs_seed_counts(self, sampling):
        query, corpus, positive = clusters(40, 400, 8)
        drawn = []
        for seed in (5, 5, 6):
            torch.manual_seed(seed)
            drawn.append(mine_hard_negatives(query, corpus, positive, sampling=sampling).indices)
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])

    def test_default_window(self, sampling):
        mined = self.mine(sampling, range_max=None, range_min=0, candidates=400)
        ranks = (mined.indices[:, :, None] == mined.candidates.indices[:, None]).int().argmax(2)
        assert ranks.max() < 100
        wide = self.mine(sampling, range_max=None, range_min=0, num_negatives=150)
        assert wide.indices.shape == (40, 150)
        assert (wide.counts == 150).all()

    def test_takes_all_there_are(self, sampling):
        mined = self.mine(sampling, max_score=0.0, min_score=-0.05, num_negatives=27)
        everyone = self.mine("top", max_score=0.0, min_score=-0.05, num_negatives=27)
        some = mined.counts < 27
        assert some.any()
        assert torch.equal(mined.indices[some], everyone.indices[some])

    def test_frequencies(self, sampling):
        """One query asked 20,000 times draws by its weights, to within five deviations."""
        corpus = F.normalize(torch.randn(12, 8))
        query = F.normalize(torch.randn(1, 8))
        asked = 20_000
        mined = mine_hard_negatives(
            query.expand(asked, 8).contiguous(), corpus, torch.zeros(asked, dtype=torch.int64),
            num_negatives=1, range_min=1, range_max=8, sampling=sampling,
            sampling_temperature=0.3, generator=torch.Generator().manual_seed(0), candidates=11,
        )  # fmt: skip
        ranks = (mined.candidates.indices == mined.indices).int().argmax(1)
        scores = mined.candidates.values[0, 1:8].double()
        weights = (scores / 0.3).softmax(0) if sampling == "softmax" else torch.full((7,), 1 / 7)
        counts = torch.bincount(ranks - 1, minlength=7)
        assert len(counts) == 7
        deviation = (asked * weights * (1 - weights)).sqrt()
        assert ((counts - asked * weights).abs() < 5 * deviation).all()


def test_softmax_near_zero_temperature_is_top():
    query, corpus, positive = clusters(40, 400, 8)
    top = mine_hard_negatives(query, corpus, positive)
    cold = mine_hard_negatives(
        query, corpus, positive, sampling="softmax", sampling_temperature=1e-9
    )
    assert torch.equal(cold.indices, top.indices)


def test_a_corpus_in_a_memory_map(tmp_path):
    query, corpus, positive = clusters(30, 300, 6)
    path = tmp_path / "corpus.npy"
    np.save(path, corpus.numpy())
    options = {"relative_margin": 0.1, "max_score": 0.5, "min_score": 0.45}
    expected = mine_hard_negatives(query, corpus, positive, **options)
    mined = mine_hard_negatives(query, np.load(path, mmap_mode="r"), positive, **options)
    assert torch.equal(mined.indices, expected.indices)
    assert str(mined.shortfall) == str(expected.shortfall)
    assert len(mined.shortfall)


def test_what_is_not_asked_for_is_not_kept():
    query, corpus, positive = clusters(10, 50, 5)
    mined = mine_hard_negatives(query, corpus, positive, return_scores=False)
    assert mined.scores is None and mined.positive_scores is None and mined.candidates is None
    assert mined.indices.dtype == torch.int64


@pytest.mark.parametrize(("M", "N"), [(0, 5), (4, 0), (0, 0)])
def test_nothing_to_mine(backend, M, N):
    positives = torch.full((M, 2), -1)
    mined = mine_hard_negatives(
        torch.randn(M, 3), torch.randn(N, 3), positives, relative_margin=0.1, backend=backend
    )
    assert mined.indices.shape == (M, 3)
    assert (mined.indices == -1).all()
    assert len(mined.shortfall) == M
    assert len(mined.triplets().anchor) == 0
    assert str(mined)


def test_gradients_do_not_flow():
    query, corpus, positive = clusters(10, 50, 5)
    mined = mine_hard_negatives(query.requires_grad_(), corpus, positive, candidates=5)
    assert not mined.scores.requires_grad and not mined.candidates.values.requires_grad
