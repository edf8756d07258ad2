"""The k-nearest-neighbour classifier against scikit-learn and a dense oracle."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from cl_kernels.evaluation import knn_accuracy, knn_classify
from python_tests.helpers import unit_rows

CLASSES = 5


def problem(M=40, N=90, D=8):
    labels = torch.randint(0, CLASSES, (N,))
    return 2 * unit_rows(M, D), 3 * unit_rows(N, D), labels


def dense(query, key, labels, k, temperature, itself=False):
    """Shares of the vote, [M, CLASSES], in float64."""
    cosine = F.normalize(query.double()) @ F.normalize(key.double()).T
    if itself:
        cosine.fill_diagonal_(-torch.inf)
    shares = torch.zeros(len(query), CLASSES, dtype=torch.float64)
    for i, row in enumerate(cosine):
        best = torch.from_numpy(np.argsort(-row.numpy(), kind="stable"))[:k]
        best = best[row[best] > -torch.inf]
        weight = (row[best] / temperature).exp() if temperature else torch.ones(len(best))
        for j, w in zip(best, weight, strict=True):
            shares[i, labels[j]] += w / weight.sum()
    return shares


@pytest.mark.parametrize("temperature", [0.07, 1.0, None])
@pytest.mark.parametrize("k", [1, 7, 90, 1000])
def test_shares_of_the_vote(k, temperature, backend):
    query, key, labels = problem()
    predicted = knn_classify(query, key, labels, k, temperature=temperature, backend=backend)
    truth = dense(query, key, labels, k, temperature)
    torch.testing.assert_close(predicted.scores.double(), truth, rtol=2e-5, atol=1e-7)
    # Shares that tie in exact arithmetic are bitwise equal only without weights.
    best = truth.argmax(1) if temperature else predicted.scores.argmax(1)
    assert torch.equal(predicted.labels, best)


@pytest.mark.parametrize("k", [1, 4])
def test_votes_agree_with_scikit_learn(k):
    query, key, labels = problem()
    theirs = KNeighborsClassifier(k, metric="cosine").fit(key.numpy(), labels.numpy())
    ours = knn_classify(query, key, labels, k, temperature=None)
    np.testing.assert_array_equal(ours.labels.numpy(), theirs.predict(query.numpy()))
    np.testing.assert_allclose(ours.scores.numpy(), theirs.predict_proba(query.numpy()), rtol=1e-6)


def test_leave_one_out():
    _, key, labels = problem()
    ours = knn_classify(key, key, labels, 5, exclude_self=True)
    truth = dense(key, key, labels, 5, 0.07, itself=True)
    torch.testing.assert_close(ours.scores.double(), truth, rtol=2e-5, atol=1e-7)
    accuracy = (ours.labels == labels).double().mean().item()
    assert knn_accuracy(key, labels, k=5) == accuracy
    assert knn_accuracy(key, labels, key, labels, k=1) == 1  # each finds itself


@pytest.mark.filterwarnings("ignore:k. neighbour")
def test_ties():
    key = torch.ones(6, 4)  # equally near: the first three keys vote
    labels = torch.tensor([3, 1, 1, 3, 3, 3])
    assert knn_classify(key[:1], key, labels, 3, temperature=None).labels == 1
    assert knn_classify(key[:1], key, labels, 2, temperature=None).labels == 1  # a draw
    assert knn_classify(key[:1], key, labels, 2).labels == 1
    assert knn_classify(key[:1], key, labels, 1).labels == 3


def test_nobody_to_ask():
    key = unit_rows(3, 4)
    key[1] = torch.nan
    alone = knn_classify(key[:1], key[1:2], torch.tensor([2]), 3, num_classes=4)
    assert alone.labels.tolist() == [-1] and alone.scores.tolist() == [[0.0] * 4]
    with_others = knn_classify(key[:1], key, torch.tensor([0, 1, 1]), 3)
    assert with_others.scores.sum() == 1  # the key with a NaN has no vote
    one = knn_classify(key[:1], key[:1], torch.tensor([2]), exclude_self=True)
    assert one.labels.tolist() == [-1]


HASHES = torch.tensor([-(2**63), -1, 0, 7, 2**61, 2**62, 2**63 - 1])  # rising: draws fall alike


@pytest.mark.parametrize("temperature", [0.07, None])
def test_labels_of_any_size(temperature, backend):
    query, key, labels = problem()
    truth = torch.randint(0, len(HASHES), (len(query),))  # of some there is no key
    ours = knn_classify(query, key, labels, 6, temperature=temperature)
    options = {"k": 6, "temperature": temperature, "backend": backend}
    expected = (ours.labels == truth).double().mean().item()
    assert knn_accuracy(query, HASHES[truth], key, HASHES[labels], **options) == expected > 0

    alone = knn_classify(query, query, truth, 6, temperature=temperature, exclude_self=True)
    expected = (alone.labels == truth).double().mean().item()
    assert knn_accuracy(query, HASHES[truth], **options) == expected > 0


def test_neighbours_that_tie_are_told():
    query, key, labels = problem()
    with warnings.catch_warnings(action="error"):
        knn_classify(query, key, labels, 7)
        knn_classify(torch.ones(2, 3), torch.ones(3, 3), torch.arange(3), 3)  # all there are vote
    angle = torch.tensor([0.0, 0.1, 0.3, 0.7, 1.5])
    apart = torch.stack([angle.cos(), angle.sin(), 0 * angle], 1)
    x = torch.cat([apart, torch.tensor([[0.0, 0.0, 1.0]] * 5)])
    with pytest.warns(UserWarning, match=r"^k: neighbour 3 of 50% of the rows is as near") as told:
        knn_classify(x, x, torch.arange(10), 3)
    assert told[0].filename == __file__


def test_a_cold_vote_does_not_overflow():
    query, key, labels = problem()
    scores = knn_classify(100 * query, key, labels, 5, temperature=1e-3, normalize=False).scores
    torch.testing.assert_close(scores.sum(1), torch.ones(len(query)))


X, LABELS = torch.ones(4, 3), torch.arange(4)
WRONG = [
    ({"query": torch.full((4, 3), torch.inf)}, ValueError, "query: expected finite embeddings"),
    ({"key": X[:0], "key_labels": LABELS[:0]}, ValueError, "key: expected at least one row"),
    ({"key": torch.ones(4, 2)}, ValueError, "key: expected the width of query"),
    ({"k": 0}, ValueError, "k: expected at least 1, got 0"),
    ({"k": True}, TypeError, "k: expected an integer, got bool"),
    ({"temperature": 0}, ValueError, "temperature: expected a positive number, got 0"),
    ({"temperature": "cold"}, TypeError, "temperature: expected a number, got str"),
    ({"key_labels": LABELS[:3]}, ValueError, "key_labels: expected one label for each of the 4"),
    ({"key_labels": LABELS.float()}, TypeError, "key_labels: expected an integer tensor"),
    ({"key_labels": LABELS - 1}, ValueError, r"key_labels: expected classes in \[0, 3\), got -1"),
    ({"key_labels": LABELS + 2**62}, ValueError, r"expected classes in \[0, 16777216\).*unique"),
    ({"key_labels": LABELS.numpy()}, TypeError, "key_labels: expected an integer tensor, got ndar"),
    ({"query": X.numpy()}, TypeError, "query: expected a tensor, got ndarray"),
    ({"key": X.tolist()}, TypeError, "key: expected a tensor or a NumPy array, got list"),
    ({"key": X[0].numpy()}, ValueError, r"key: expected embeddings of shape \[N, D\], got shape"),
    ({"num_classes": 3}, ValueError, r"key_labels: expected classes in \[0, 3\), got 0 to 3"),
    ({"num_classes": 0}, ValueError, "num_classes: expected at least 1"),
    ({"query": X[:2], "exclude_self": True}, ValueError, "exclude_self: expected as many keys"),
]


@pytest.mark.parametrize(("changes", "error", "message"), WRONG)
def test_wrong_arguments(changes, error, message):
    with pytest.raises(error, match=message):
        knn_classify(**{"query": X, "key": X, "key_labels": LABELS} | changes)


def test_wrong_arguments_of_the_accuracy():
    with pytest.raises(ValueError, match="query_labels: expected one label for each of the 4 rows"):
        knn_accuracy(X, LABELS[:3])
    with pytest.raises(ValueError, match="key_labels: expected it together with key, got None"):
        knn_accuracy(X, LABELS, X)
