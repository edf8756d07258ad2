"""Retrieval metrics against scikit-learn, and against definitions written out densely."""

import json
import math
import pickle
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

import cl_kernels
from cl_kernels import CSR
from cl_kernels.evaluation import (
    label_relevance,
    mean_average_precision,
    retrieval,
    retrieval_metrics,
)
from python_tests.evaluation.oracle import textbook
from python_tests.helpers import unit_rows

CUTOFFS = (1, 3, 10)


@pytest.fixture(autouse=True, params=["one block", "ragged blocks"])
def blocks(request, monkeypatch):
    """Blocks of few queries, the last one ragged, and a first look that finds few."""
    if request.param == "ragged blocks":
        monkeypatch.setattr(retrieval, "_BLOCK", 7 * 40 + 3)
        monkeypatch.setattr(retrieval, "_FIRST_LOOK", 5)


def whole_numbers(rows, width=4, most=12):
    """Embeddings whose scores are exact in any order of summation, so that ties are ties."""
    return torch.randint(-most, most + 1, (rows, width)).float()


def assert_metrics(ours, truth):
    assert list(ours) == list(truth)
    for name, expected in truth.items():
        torch.testing.assert_close(
            ours.per_query[name], expected, rtol=1e-12, atol=0, equal_nan=True, msg=name
        )
        assert ours[name] == pytest.approx(float(expected.nanmean()), rel=1e-12)
    answerable = ~truth["map"].isnan()
    assert ours.queries == answerable.sum() and ours.skipped == (~answerable).sum()


def as_padded(mask):
    rows = [row.nonzero().flatten() for row in mask]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def as_csr(mask):
    return CSR(F.pad(mask.sum(1).cumsum(0), (1, 0)), mask.nonzero()[:, 1])


@pytest.mark.parametrize("form", [as_padded, as_csr])
@pytest.mark.parametrize("share", [0.02, 0.4])
def test_metrics_with_ties_and_exclusions(form, share, backend):
    query, key = whole_numbers(31), whole_numbers(40)
    relevant = torch.rand(31, 40) < share
    excluded = torch.rand(31, 40) < 0.2
    ours = retrieval_metrics(
        query, key, form(relevant), at=CUTOFFS, exclude=form(excluded), normalize=False,
        backend=backend,
    )  # fmt: skip
    left = relevant & ~excluded
    assert_metrics(ours, textbook(query @ key.T, left, CUTOFFS, excluded))


def test_metrics_by_label_without_the_query_itself():
    x, labels = whole_numbers(40), torch.randint(-3, 4, (40,)) * 2**60
    same = labels[:, None] == labels
    itself = torch.eye(40, dtype=torch.bool)
    relevance = label_relevance(labels, labels)
    also = torch.stack([torch.arange(40), torch.arange(40).roll(1)], 1)  # itself a second time
    excluded = itself | F.one_hot(also[:, 1], 40).bool()
    for exclude, mask in ((None, itself), (also, excluded)):
        ours = retrieval_metrics(
            x, x, relevance, at=CUTOFFS, exclude=exclude, exclude_self=True, normalize=False
        )
        assert_metrics(ours, textbook(x @ x.T, same & ~mask, CUTOFFS, mask))


def test_one_positive_each():
    query, key = whole_numbers(31), whole_numbers(40)
    positive = torch.randint(0, 40, (31,))
    ours = retrieval_metrics(query, key, positive, at=(1, 10), normalize=False)
    truth = textbook(query @ key.T, F.one_hot(positive, 40).bool(), (1, 10))
    assert_metrics(ours, truth)
    for k in (1, 10):
        assert ours[f"recall@{k}"] == ours[f"hit@{k}"]
        assert ours[f"mrr@{k}"] == ours[f"map@{k}"]
    repeated = positive[:, None].expand(31, 3).contiguous()
    assert retrieval_metrics(query, key, repeated, at=(1, 10), normalize=False) == ours


def test_against_scikit_learn():
    query, key = unit_rows(25, 8), unit_rows(60, 8)
    labels_q, labels_k = torch.randint(0, 4, (25,)), torch.randint(0, 4, (60,))
    relevant = (labels_q[:, None] == labels_k).numpy()
    scores = (query.double() @ key.double().T).numpy()
    ours = retrieval_metrics(3 * query, 2 * key, label_relevance(labels_q, labels_k), at=(7,))
    each = [average_precision_score(r, s) for r, s in zip(relevant, scores, strict=True)]
    np.testing.assert_allclose(ours.per_query["map"].numpy(), each, rtol=1e-12)
    assert ours["ndcg@7"] == pytest.approx(ndcg_score(relevant, scores, k=7), rel=1e-12)


@given(data=st.data())
def test_any_small_problem(data):
    M, N = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    torch.manual_seed(data.draw(st.integers(0, 2**32 - 1)))
    query, key = whole_numbers(M, 2, 1), whole_numbers(N, 2, 1)
    relevant = torch.rand(M, N) < data.draw(st.sampled_from([0.1, 0.5, 1.0]))
    excluded = torch.rand(M, N) < data.draw(st.sampled_from([0.0, 0.3]))
    if not bool((relevant & ~excluded).any()):
        return
    ours = retrieval_metrics(
        query, key, as_csr(relevant), at=(1, 4), exclude=as_csr(excluded), normalize=False
    )
    assert_metrics(ours, textbook(query @ key.T, relevant & ~excluded, (1, 4), excluded))


def test_worst_and_best_rankings():
    key = torch.linspace(0, 1, 40)[:, None]
    query = torch.ones(3, 1)
    best, worst = torch.tensor([39] * 3), torch.tensor([0] * 3)
    first = retrieval_metrics(query, key, best, at=(2,), normalize=False)
    assert set(first.values()) == {1.0}
    last = retrieval_metrics(query, key, worst, at=(2,), normalize=False)
    assert last["map"] == pytest.approx(1 / 40) and last["recall@2"] == 0


def test_the_order_of_the_corpus_does_not_matter():
    query, key = whole_numbers(20, 2, 2), whole_numbers(300, 2, 2)
    labels_q, labels_k = torch.randint(0, 9, (20,)), torch.randint(0, 9, (300,))
    shuffled = torch.randperm(300)
    ours, again = (
        retrieval_metrics(query, key[order], label_relevance(labels_q, labels_k[order]), at=(1, 7))
        for order in (torch.arange(300), shuffled)
    )
    assert ours == pytest.approx(again, rel=1e-12)


@pytest.mark.parametrize("exact_map", [True, False])
def test_collapsed_embeddings_are_worth_a_guess(exact_map):
    x = torch.ones(400, 3)
    labels = (torch.arange(400) >= 100).long()  # queries of the label 1 have 299 relevant keys
    ours = retrieval_metrics(
        x, x, label_relevance(labels, labels), at=(10,), exclude_self=True, exact_map=exact_map
    )
    shares = torch.tensor([99 / 399] * 100 + [299 / 399] * 300, dtype=torch.float64)
    torch.testing.assert_close(ours.per_query["recall@10"], torch.full_like(shares, 10 / 399))
    missed = math.comb(100, 10) / math.comb(399, 10)
    assert ours.per_query["hit@10"][-1].item() == pytest.approx(1 - missed, rel=1e-12)
    torch.testing.assert_close(ours.per_query["ndcg@10"], shares)


def test_a_key_with_a_nan_is_missed():
    key = unit_rows(20, 8)
    query = key.clone()
    key[3] = torch.nan
    ours = retrieval_metrics(query, key, torch.arange(20), at=(1, 30))
    assert ours.per_query["map"][3] == 0 and ours.per_query["recall@30"][3] == 0
    assert ours["hit@1"] == 0.95 and ours.queries == 20


def test_what_is_ranked_at_a_time_is_bounded(monkeypatch):
    ranked = []

    def topk(query, key, k, **options):
        ranked.append(len(query) * k)
        return cl_kernels.topk(query, key, k, **options)

    monkeypatch.setattr(retrieval, "topk", topk)
    x, labels = unit_rows(300, 4), torch.randint(0, 2, (300,))
    monkeypatch.setattr(retrieval, "_BLOCK", 1000)
    mean_average_precision(x, labels)
    assert max(ranked) <= 1000 and sum(ranked) >= 300 * 300


def test_keys_in_a_memory_map(tmp_path):
    query, key = unit_rows(9, 8), unit_rows(50, 8)
    np.save(tmp_path / "keys.npy", key.numpy())
    mapped = np.load(tmp_path / "keys.npy", mmap_mode="r")
    positive = torch.randint(0, 50, (9,))
    assert retrieval_metrics(query, mapped, positive) == retrieval_metrics(query, key, positive)


def test_the_result_is_a_dict_of_floats():
    x = unit_rows(12, 8)
    labels = torch.arange(12) // 2
    labels[-1] = 99
    ours = retrieval_metrics(x, x, label_relevance(labels, labels), at=(1,), exclude_self=True)
    assert json.loads(json.dumps(ours)) == ours
    again = pickle.loads(pickle.dumps(ours))
    assert again == ours and again.queries == 10
    assert "10 queries (2 without a relevant key left out)" in str(ours)
    assert re.search(rf"^map +{ours['map']:.4f}$", str(ours), re.M)
    fast = retrieval_metrics(
        x, x, label_relevance(labels, labels), at=(1,), exclude_self=True, exact_map=False
    )
    assert "map" not in fast and fast["mrr@1"] == ours["mrr@1"]


def test_mean_average_precision_of_a_labelled_set():
    x, labels = 5 * unit_rows(40, 8), torch.randint(0, 5, (40,))
    labels[0] = 77  # alone: no query
    same = (labels[:, None] == labels) & ~torch.eye(40, dtype=torch.bool)
    unit = F.normalize(x.double())
    each = []
    for i in range(1, 40):
        others = np.delete(np.arange(40), i)
        each.append(average_precision_score(same[i, others], (unit @ unit[i])[others]))
    assert mean_average_precision(x, labels) == pytest.approx(np.mean(each), rel=1e-12)


X, KEY, POSITIVE = torch.ones(4, 3), torch.ones(5, 3), torch.arange(4)
LABELS = label_relevance(torch.arange(4), torch.arange(5))
WRONG = [
    ({"query": torch.full((4, 3), torch.nan)}, ValueError, "query: expected finite"),
    ({"query": torch.ones(0, 3)}, ValueError, "query: expected at least one row"),
    ({"key": torch.ones(0, 3), "relevant": POSITIVE}, ValueError, "key: expected at least one"),
    ({"key": torch.ones(5, 2)}, ValueError, "key: expected the width of query, 3, got 2"),
    ({"key": None}, TypeError, "key: expected a tensor or a NumPy array, got NoneType"),
    ({"key": KEY[0].numpy()}, ValueError, r"key: expected embeddings of shape \[N, D\], got shape"),
    ({"relevant": POSITIVE.numpy()}, TypeError, "relevant: expected a CSR .* got ndarray"),
    ({"at": 10}, TypeError, "at: expected a sequence"),
    ({"at": (0,)}, ValueError, "at: expected at least 1, got 0"),
    ({"at": (1.5,)}, TypeError, "at: expected an integer, got float"),
    ({"relevant": torch.arange(3)}, ValueError, "relevant: expected one row for each of the 4"),
    ({"relevant": torch.arange(4) + 2}, ValueError, r"relevant: expected keys in \[0, 5\)"),
    ({"relevant": torch.full((4, 2), -1)}, ValueError, "relevant: expected a query with"),
    ({"relevant": LABELS, "key": X}, ValueError, "relevant.key_labels: expected one label"),
    ({"relevant": LABELS, "query": KEY}, ValueError, "relevant.query_labels: expected one label"),
    ({"exclude": torch.arange(4) + 2}, ValueError, r"exclude: expected keys in \[0, 5\)"),
    ({"exclude": POSITIVE}, ValueError, "relevant: expected a query with a relevant key, got none"),
    ({"exclude_self": True}, ValueError, "exclude_self: expected as many keys as queries, 4"),
]


@pytest.mark.parametrize(("changes", "error", "message"), WRONG)
def test_wrong_arguments(changes, error, message):
    arguments = {"query": X, "key": KEY, "relevant": POSITIVE} | changes
    with pytest.raises(error, match=message):
        retrieval_metrics(**arguments)


def test_wrong_labels():
    with pytest.raises(TypeError, match="key_labels: expected an integer tensor"):
        label_relevance(POSITIVE, torch.ones(4))
    with pytest.raises(ValueError, match=r"labels: expected one label for each of the 4 rows"):
        mean_average_precision(X, torch.arange(5))
