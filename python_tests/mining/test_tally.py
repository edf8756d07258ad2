"""The account of a shortfall where it is counted without a look at the scores, and where not."""

import gc
import itertools
import pickle
import weakref

import pytest
import torch

from cl_kernels import CSR, PairFilter
from cl_kernels.mining import mine_hard_negatives, tally
from python_tests.mining import oracle
from python_tests.mining.test_negatives import whole_numbers

M, N = 20, 90
TWO = list(itertools.product(("same", "different"), repeat=2))


@pytest.fixture
def looked_at(monkeypatch):
    """The number of times that scores were computed again."""
    calls, compare = [], tally.CorpusTally._compare
    monkeypatch.setattr(tally.CorpusTally, "_compare", lambda *a: (calls.append(1), compare(*a)))
    return calls


def check(query, corpus, lists, **options):
    """Every query is short, and each count is the oracle's."""
    offsets = torch.tensor([0, *itertools.accumulate(map(len, lists))])
    positives = CSR(offsets, torch.tensor([j for some in lists for j in some]))
    mined = mine_hard_negatives(
        query, corpus, positives, num_negatives=N + 1, normalize=False, **options
    )
    scores = oracle.scores_of(query, corpus, normalize=False)
    rows = oracle.mine(scores, [list(set(some)) for some in lists], **options)
    assert [mined.shortfall.of(i) for i in range(len(rows))] == [row.removed for row in rows]
    return mined.shortfall.removed


def data():
    query, corpus = whole_numbers(M, 4), whole_numbers(N, 4)
    return query, corpus, [[i, (7 * i) % N, i] for i in range(M)]  # a positive is named twice


def filters(*keep):
    ids = [(torch.arange(M) % n - n, torch.arange(N) % (n + 2) - n) for n in (2, 3)]
    return [PairFilter(*each, word) for each, word in zip(ids, keep, strict=False)]


@pytest.mark.parametrize("keep", [(), ("same",), ("different",), *TWO])
@pytest.mark.parametrize("bound", [{}, {"max_score": 1.0}, {"min_score": 0.0}], ids=str)
def test_one_bound_is_accounted_for_without_scores(looked_at, keep, bound):
    removed = check(*data(), where=filters(*keep), **bound)
    assert not looked_at
    assert bool(removed["where"].any()) == bool(keep)


@pytest.mark.parametrize("keep", TWO)
def test_bounds_that_compete(looked_at, monkeypatch, keep):
    monkeypatch.setattr(tally, "_ROWS", 7)
    monkeypatch.setattr(tally, "_COLUMNS", 13)
    bounds = {"max_score": 3.0, "absolute_margin": 1.0, "min_score": -2.0}
    removed = check(*data(), where=filters(*keep), **bounds)
    assert looked_at == [1]
    assert all(removed[name].any() for name in bounds)


@pytest.mark.parametrize("bound", [{}, {"max_score": 1.0}, {"min_score": 0.0}], ids=str)
@pytest.mark.parametrize("spoiled", ["query", "corpus"])
def test_scores_that_are_not_finite_belong_to_no_bound(looked_at, spoiled, bound):
    query, corpus, positives = data()
    (query if spoiled == "query" else corpus)[3] = torch.nan
    removed = check(query, corpus, positives, **bound)
    assert looked_at == [1] * len(bound)
    assert removed["non_finite"].any()


# Counted when asked for


def competing(query, corpus):
    bounds = {"max_score": 3.0, "min_score": -2.0, "num_negatives": N}
    return mine_hard_negatives(query, corpus, torch.arange(M), normalize=False, **bounds)


def test_competing_bounds_are_counted_when_asked_for_and_once(looked_at):
    query, corpus, _ = data()
    shortfall = competing(query, corpus).shortfall
    assert len(shortfall) == M and bool((shortfall.missing > 0).all())
    assert not looked_at
    held = weakref.ref(corpus)
    del corpus
    assert held() is not None
    assert shortfall.of(3) and str(shortfall) and shortfall.removed is shortfall.removed
    assert looked_at == [1]
    gc.collect()
    assert held() is None


def test_autocast_does_not_round_what_is_compared():
    query, corpus = torch.randn(M, 64), torch.randn(2000, 64)

    def mined():
        bounds = {"max_score": 0.02, "min_score": 0.01, "num_negatives": 2000}
        return mine_hard_negatives(query, corpus, torch.arange(M), **bounds).shortfall

    plain = str(mined())
    with torch.autocast("cpu", torch.bfloat16):
        assert str(mined()) == plain


def test_an_interrupted_count_begins_anew(monkeypatch):
    query, corpus, _ = data()
    expected, again = (competing(query, corpus).shortfall for _ in range(2))
    monkeypatch.setattr(tally, "_ROWS", 7)
    add = tally.Tally.add
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def interrupt(self, rows, *rest):
            add(self, rows, *rest)
            if rows.start:
                raise KeyboardInterrupt

        patch.setattr(tally.Tally, "add", interrupt)
        again.removed  # noqa: B018
    assert str(again) == str(expected)


def test_a_pickle_holds_the_counts_and_no_corpus():
    query, corpus = torch.randn(M, 64), torch.randn(4000, 64)
    mined = mine_hard_negatives(query, corpus, torch.arange(M), max_score=-0.9, min_score=-0.95)
    data = pickle.dumps(mined)
    assert len(data) < corpus.nbytes / 10
    assert str(pickle.loads(data)) == str(mined)


@pytest.mark.parametrize("changed", ["query", "corpus"])
def test_embeddings_changed_in_between_are_not_counted(changed):
    query, corpus, _ = data()
    early, late = competing(query, corpus), competing(query, corpus)
    text = str(early)
    (query if changed == "query" else corpus).mul_(2)
    assert str(early) == text
    assert len(late.shortfall) == M
    with pytest.raises(RuntimeError, match="shortfall: expected query and corpus as they were"):
        late.shortfall.of(0)
