"""Metrics of a training batch against dense definitions, and on batches of known faults."""

import math

import pytest
import torch
import torch.nn.functional as F

from cl_kernels.evaluation import contrastive_metrics, geometry

B, D = 40, 6


@pytest.fixture(autouse=True)
def ragged_blocks(monkeypatch):
    monkeypatch.setattr(geometry, "_ROWS", 17)


def dense(query, key, labels, temperature, normalize, chosen):
    """By the whole matrix, in float64."""
    query = query.double()
    sides = [query] if key is None else [query, key.double()]
    q, k = (F.normalize(x) if normalize else x for x in (sides[0], sides[-1]))
    S, me = q @ k.T, torch.eye(len(q), dtype=torch.bool)
    same = me if labels is None else labels[:, None] == labels
    positive = same & ~me if key is None else me
    chosen = [i for i in chosen if positive[i].any()]
    ranks, first, fifth, hardest, probability, effective, means, alignment = ([] for _ in range(8))
    units = [F.normalize(x) for x in sides]
    distances = (units[0][:, None] - units[-1]).square().sum(-1)
    for i in chosen:
        negatives, best = S[i][~same[i]], S[i][positive[i]].max()
        ranks.append(1 + int((negatives > best).sum()))
        first.append(ranks[-1] <= 1)
        fifth.append(ranks[-1] <= 5)
        hardest.append(negatives.max())
        weights = (negatives / temperature).exp()
        probability.append(
            (best / temperature).exp() / ((best / temperature).exp() + weights.sum())
        )
        effective.append(weights.sum() ** 2 / weights.square().sum())
        means.append(S[i][positive[i]].mean())
        alignment.append(distances[i][positive[i]].mean())
    pdist = [torch.pdist(u) for u in units]
    sigma = torch.linalg.svdvals(torch.cat(units))
    share = sigma / sigma.sum()
    return {
        "queries": len(chosen),
        "negatives": sum(int((~same[i]).sum()) for i in chosen) / len(chosen),
        "top1": mean(first),
        "top5": mean(fifth),
        "rank": mean(ranks),
        "positive_similarity": mean(means),
        "hardest_negative_similarity": mean(hardest),
        "mean_similarity": mean([(1 - p.square() / 2).mean() for p in pdist]),
        "alignment": mean(alignment),
        "uniformity": mean([p.square().mul(-2).exp().mean().log() for p in pdist]),
        "effective_rank": (-(share * share.log()).sum()).exp().item(),
        "full_rank": min(D, sum(map(len, units))),
        "duplicates": 0.0,
        "identical_positives": 0.0,
        "temperature": temperature,
        "positive_probability": mean(probability),
        "effective_negatives": mean(effective),
    }


def mean(values):
    return sum(map(float, values)) / len(values)


def pairs(noise=1.0):
    query = torch.randn(B, D)
    return query, query + noise * torch.randn(B, D)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", ["pairs", "labelled pairs", "labels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_against_definitions(backend, kind, normalize, dtype):
    query, key = (x.to(dtype) for x in pairs())
    labels = None if kind == "pairs" else torch.arange(B) % 15
    if kind == "labels":
        key, labels[-1] = None, 99
    ours = contrastive_metrics(
        query, key, labels, temperature=0.5, normalize=normalize, backend=backend
    ).as_dict()
    expected = dense(query, key, labels, 0.5, normalize, range(B))
    norms = torch.cat([query] if key is None else [query, key]).double().norm(dim=1)
    expected |= {"norm_mean": norms.mean(), "norm_std": norms.std(correction=0)}
    expected |= {"norm_min": norms.min(), "norm_max": norms.max(), "norm_median": norms.median()}
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert ours[name] == pytest.approx(float(value), rel=2e-5, abs=2e-6), name


@pytest.mark.parametrize("labelled", [False, True])
def test_sample(labelled):
    query, key = pairs()
    labels = torch.arange(B) % 10 if labelled else None
    key = None if labelled else key
    chosen = [0, 5, 11, 17, 22, 28, 34]
    ours = contrastive_metrics(query, key, labels, temperature=0.5, sample=7).as_dict()
    expected = dense(query, key, labels, 0.5, True, chosen)
    for name in ("top1", "rank", "positive_similarity", "alignment", "positive_probability"):
        assert ours[name] == pytest.approx(expected[name], rel=1e-5), name
    assert ours["queries"] == 7
    sides = [query] if labelled else [query, key]
    sampled = [torch.pdist(F.normalize(x[chosen].double())) for x in sides]
    uniformity = mean([p.square().mul(-2).exp().mean().log() for p in sampled])
    assert ours["uniformity"] == pytest.approx(uniformity, rel=1e-5)
    everything = contrastive_metrics(query, key, labels, sample=1000)
    assert everything == contrastive_metrics(query, key, labels)


def test_perfect_and_reversed():
    x = torch.eye(8)
    found = contrastive_metrics(x, 2 * x, temperature=0.05)
    assert (found.top1, found.rank, found.alignment) == (1, 1, 0)
    assert found.effective_rank == pytest.approx(8)
    assert any("Starved" in s and "probability" in s for s in found.warnings())
    found = contrastive_metrics(x, -x)
    assert (found.top1, found.top5, found.rank) == (0, 0, 8)
    assert found.alignment == 4
    assert found.temperature is None and "temperature" not in found.as_dict()


def test_collapsed_embeddings_score_by_chance():
    x = torch.randn(1, D) + 1e-9 * torch.randn(B, D)
    found = contrastive_metrics(x, x.clone(), temperature=0.1)
    assert found.top1 == pytest.approx(1 / B) and found.top5 == pytest.approx(5 / B)
    assert found.rank == pytest.approx((B + 1) / 2)
    assert found.effective_rank == pytest.approx(1, abs=1e-3)
    assert found.uniformity == pytest.approx(0, abs=1e-5)
    assert found.mean_similarity == pytest.approx(1)
    assert sum("Collapse" in s for s in found.warnings()) == 2


def test_a_healthy_batch_has_no_warnings():
    query, key = pairs(0.3)
    assert contrastive_metrics(query, key, temperature=0.5).warnings() == []


def test_warnings_of_inputs():
    query, key = pairs()
    key[: B // 2] = query[: B // 2]
    key[-1] = key[-2]
    found = contrastive_metrics(query, key, temperature=0.001, normalize=False)
    assert found.identical_positives == 0.5 and found.duplicates == pytest.approx(1 / B)
    text = "\n".join(found.warnings())
    for part in (
        "50% of the positives",
        "of the rows are duplicates",
        "of unit length",
        "Starved",
    ):
        assert part in text
    unit = F.normalize(query)
    found = contrastive_metrics(unit, F.normalize(key), normalize=False)
    assert not any("unit length" in s for s in found.warnings())


def test_as_dict_has_a_prefix():
    names = contrastive_metrics(*pairs()).as_dict("train/")
    assert all(name.startswith("train/") for name in names)


class TestEdges:
    def test_one_row(self):
        found = contrastive_metrics(*torch.randn(2, 1, D), temperature=0.1)
        assert found.top1 == 1 and found.negatives == 0 and found.positive_probability == 1
        for value in (found.hardest_negative_similarity, found.uniformity, found.mean_similarity):
            assert math.isnan(value)
        found.warnings()

    def test_no_positive(self):
        found = contrastive_metrics(torch.randn(5, D), labels=torch.arange(5), temperature=0.1)
        assert found.queries == 0 and math.isnan(found.top1) and math.isnan(found.rank)
        found.warnings()

    def test_no_negative(self):
        found = contrastive_metrics(torch.randn(5, D), labels=torch.zeros(5).long(), temperature=1)
        assert found.top1 == 1 and math.isnan(found.hardest_negative_similarity)
        found.warnings()

    def test_zero_rows(self):
        found = contrastive_metrics(*torch.zeros(2, 5, D), temperature=0.1)
        assert found.effective_rank == 1 and found.top1 == pytest.approx(1 / 5)

    def test_no_gradient(self):
        query, key = (x.requires_grad_() for x in pairs())
        contrastive_metrics(query, key, temperature=torch.tensor(0.1, requires_grad=True))
        assert query.grad is None

    def test_bad_inputs(self):
        query, key = pairs()
        with pytest.raises(ValueError, match="labels: expected labels without key, got None"):
            contrastive_metrics(query)
        with pytest.raises(ValueError, match="key: expected as many rows as query, 40, got 3"):
            contrastive_metrics(query, key[:3])
        with pytest.raises(ValueError, match="key: expected the width of query, 6, got 5"):
            contrastive_metrics(query, key[:, :5])
        with pytest.raises(ValueError, match="query: expected at least one row"):
            contrastive_metrics(query[:0], key[:0])
        with pytest.raises(ValueError, match="key: expected finite embeddings"):
            contrastive_metrics(query, key * torch.nan)
        with pytest.raises(ValueError, match="labels: expected one label for each of the 40 rows"):
            contrastive_metrics(query, labels=torch.arange(3))
        with pytest.raises(ValueError, match=r"temperature: expected a number above 0, got -0\.1"):
            contrastive_metrics(query, key, temperature=-0.1)
        with pytest.raises(TypeError, match="normalize"):
            contrastive_metrics(query, key, normalize=1)
        with pytest.raises(ValueError, match="sample: expected at least 1, got 0"):
            contrastive_metrics(query, key, sample=0)
