"""The hardest pairs of a batch by labels, and the schedule that keeps them from collapsing it."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import cl_kernels
from cl_kernels.mining import (
    MiningSchedule,
    hardest_negative,
    hardest_positive,
    mine_hard_negatives,
    semi_hard_negative,
)
from python_tests.helpers import assert_frobenius, leaf

MINERS = {
    "hardest_negative": hardest_negative,
    "hardest_positive": hardest_positive,
    "semi_hard_negative": semi_hard_negative,
}


def batch(rows=70, width=12, classes=9):
    """Embeddings by label; the last label occurs once, so that its row has no positive."""
    labels = torch.arange(rows) % (classes - 1)
    labels[-1] = classes
    centers = torch.randn(classes + 1, width)
    return 3 * (centers[labels] + 1.5 * torch.randn(rows, width)), labels * 2**58


def similarities(query, key, normalize):
    return (F.normalize(query) if normalize else query) @ (F.normalize(key) if normalize else key).T


def expected(name, query, labels, key, key_labels, *, normalize=True, positive=None, margin=None):
    """(values, indices) said densely in float64; values are differentiable."""
    itself = key is None
    key, key_labels = (query, labels) if itself else (key, key_labels)
    s = similarities(query, key, normalize)
    same = labels[:, None] == key_labels
    if name == "hardest_positive":
        allowed = same & ~torch.eye(len(s), dtype=torch.bool) if itself else same
        values, indices = s.masked_fill(~allowed, torch.inf).min(1)
        return values, indices.masked_fill(~allowed.any(1), -1)
    allowed = ~same
    if name == "semi_hard_negative":
        if positive is None:
            known, index = expected(
                "hardest_positive", query, labels, *((None, None) if itself else (key, key_labels)),
                normalize=normalize,
            )  # fmt: skip
            known = known.masked_fill(index < 0, -torch.inf)
        else:
            known = s.gather(1, positive.clamp_min(0)[:, None])[:, 0]
            known = known.masked_fill(positive < 0, -torch.inf)
        allowed &= s < known[:, None]
        if margin is not None:
            allowed &= s > known[:, None] - margin
    values, indices = s.masked_fill(~allowed, -torch.inf).max(1)
    return values, indices.masked_fill(~allowed.any(1), -1)


def check(found, truth):
    values, indices = truth
    assert torch.equal(found.indices, indices)
    assert found.values.shape == indices.shape
    values = values.detach()
    size = values[indices >= 0].abs().amax().clamp_min(1)  # products of this size were added up
    torch.testing.assert_close(found.values.double() / size, values / size, rtol=0, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("keys", ["itself", "others"])
@pytest.mark.parametrize("name", MINERS)
def test_values_and_gradients(backend, name, keys, normalize):
    z, labels = batch()
    other, other_labels = batch(50) if keys == "others" else (None, None)
    settings = {"normalize": normalize}
    ours = [leaf(z, True), None if other is None else leaf(other, True)]
    exact = [None if x is None else leaf(x, True, torch.float64) for x in ours]
    found = MINERS[name](ours[0], labels, ours[1], other_labels, backend=backend, **settings)
    truth = expected(name, exact[0], labels, exact[1], other_labels, **settings)
    assert (found.indices >= 0).sum() > 0
    check(found, truth)
    some = found.indices >= 0
    upstream = torch.randn(len(z))[some]
    trained = [i for i, x in enumerate(ours) if x is not None]
    grads = torch.autograd.grad(found.values[some], [ours[i] for i in trained], upstream)
    wanted = torch.autograd.grad(truth[0][some], [exact[i] for i in trained], upstream.double())
    for grad, want in zip(grads, wanted, strict=True):
        assert_frobenius(grad, want, 1e-5)


def test_rows_without_a_partner():
    z, labels = batch()
    assert hardest_positive(z, labels).indices[-1] == -1
    assert hardest_positive(z, labels).values[-1] == torch.inf
    assert semi_hard_negative(z, labels).indices[-1] == -1
    alone = hardest_negative(z, torch.zeros_like(labels))
    assert (alone.indices == -1).all()
    assert (alone.values == -torch.inf).all()


def test_the_triplet_loss_of_the_docstring():
    """Rows that lack a partner add nothing, and no NaN, to it or to its gradient."""
    z, labels = batch()
    losses = []
    for x in (leaf(z, True), leaf(z, True, torch.float64)):
        positive, negative = hardest_positive(x, labels), hardest_negative(x, labels)
        loss = torch.relu(negative.values - positive.values + 0.2).mean()
        loss.backward()
        losses.append((loss.detach(), x.grad))
    s = similarities(z.double(), z.double(), True)
    same = labels[:, None] == labels
    me = torch.eye(len(z), dtype=torch.bool)
    gap = s.masked_fill(same, -9).amax(1) - s.masked_fill(~same | me, 9).amin(1)
    dense = torch.relu(gap + 0.2)[:-1].sum() / len(z)
    for value, _ in losses:
        torch.testing.assert_close(value.double(), dense, rtol=1e-6, atol=1e-7)
    assert_frobenius(losses[0][1], losses[1][1], 1e-5)


@pytest.mark.parametrize("margin", [None, 0.1])
def test_semi_hard_for_given_positives(backend, margin):
    z, labels = batch()
    positive = torch.full((len(z),), -1)
    for i in range(0, len(z) - 1, 2):
        positive[i] = next(j for j in range(len(z)) if j != i and labels[j] == labels[i])
    settings = {"positive": positive, "margin": margin}
    found = semi_hard_negative(z, labels, backend=backend, **settings)
    check(found, expected("semi_hard_negative", z.double(), labels, None, None, **settings))
    assert (found.indices[positive < 0] == -1).all()
    assert (found.indices >= 0).any()


def test_a_copy_of_the_positive_is_not_semi_hard(backend):
    """It is as similar as the positive, to the last bit."""
    z, labels = batch(40, 100)
    positive = (torch.arange(40) + 8) % 40
    key, key_labels = torch.cat([z, z[positive]]), torch.cat([labels, labels[positive] + 1])
    found = semi_hard_negative(z, labels, key, key_labels, positive=positive, backend=backend)
    assert (found.indices != torch.arange(40) + 40).all()


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"labels": torch.arange(4)}, ValueError, "query_ids"),
    ({"labels": torch.arange(5.0)}, TypeError, "an integer tensor"),
    ({"key": torch.randn(3, 2)}, ValueError, "key_labels: expected together with key, got None"),
    ({"key_labels": torch.arange(3)}, ValueError, "key: expected together with key_labels"),
    ({"margin": "wide"}, TypeError, "margin: expected a number"),
    ({"positive": torch.arange(4)}, ValueError, "positive: expected one index for each of the 5"),
    ({"positive": torch.full((5,), 5)}, ValueError, r"positive: expected indices in \[0, 5\)"),
])  # fmt: skip
def test_refused(arguments, error, message):
    arguments = {"query": torch.randn(5, 2), "labels": torch.arange(5) % 2} | arguments
    with pytest.raises(error, match=message):
        semi_hard_negative(**arguments)


class TestSchedule:
    def test_linear(self):
        schedule = MiningSchedule(start=1.0, end=0.2, steps=8, wait=2)
        values = [schedule.value(step) for step in (0, 2, 4, 6, 10, 99)]
        assert values == pytest.approx([1.0, 1.0, 0.8, 0.6, 0.2, 0.2])

    def test_cosine(self):
        schedule = MiningSchedule(start=0.0, end=1.0, steps=4, curve="cosine")
        values = [schedule.value(step) for step in range(5)]
        assert values == pytest.approx([0, 0.5 - 0.125**0.5, 0.5, 0.5 + 0.125**0.5, 1])

    def test_count(self):
        schedule = MiningSchedule(start=1.0, end=0.0, steps=10)
        assert [schedule.count(step, 20) for step in (0, 1, 5, 10)] == [20, 18, 10, 1]

    def test_hardens_a_loss(self):
        """Fewer and fewer negatives, from all of them to the hardest alone."""
        query, key = torch.randn(30, 8), torch.randn(30, 8)
        schedule = MiningSchedule(start=1.0, end=0.0, steps=5)
        losses = [
            cl_kernels.info_nce(query, key, hardest=schedule.count(step, 29)) for step in range(6)
        ]
        torch.testing.assert_close(losses[0], cl_kernels.info_nce(query, key))
        assert all(a > b for a, b in itertools.pairwise(losses))

    def test_cools_the_draw(self):
        query, corpus = torch.randn(50, 8), torch.randn(500, 8)
        heat = MiningSchedule(start=10.0, end=1e-6, steps=3)
        means = []
        for epoch in range(4):
            mined = mine_hard_negatives(
                query, corpus, torch.arange(50), sampling="softmax", range_max=200,
                sampling_temperature=heat.value(epoch),
            )  # fmt: skip
            means.append(mined.scores.mean())
        assert means[0] < means[3]
        top = mine_hard_negatives(query, corpus, torch.arange(50))
        assert torch.equal(mined.indices, top.indices)
