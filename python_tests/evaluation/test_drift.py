"""Embedding drift against dense definitions, and on changes whose effect is known."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import orthogonal_procrustes

from cl_kernels.evaluation import drift, embedding_drift


@pytest.fixture(autouse=True)
def ragged_blocks(monkeypatch):
    monkeypatch.setattr(drift, "_ROWS", 17)


def snapshots(N=60, D1=6, D2=6, noise=0.3):
    """Two snapshots that are related, of rows of many lengths, off the origin."""
    before = torch.randn(N, D1) * torch.rand(N, 1) * 3 + 0.5
    return before, before @ torch.randn(D1, D2) + noise * torch.randn(N, D2)


def neighbours(x, k):
    unit = F.normalize(x.double())
    return (unit @ unit.T).fill_diagonal_(-torch.inf).topk(k).indices.tolist()


@pytest.mark.parametrize("widths", [(6, 6), (6, 9), (9, 6)])
@pytest.mark.parametrize("k", [1, 5, 59])
def test_against_definitions(widths, k, backend):
    before, after = snapshots(60, *widths)
    ours = embedding_drift(before, after, k=k, backend=backend)
    old, new = neighbours(before, k), neighbours(after, k)
    kept = [len(set(a) & set(b)) / k for a, b in zip(old, new, strict=True)]
    changed = [a[0] != b[0] for a, b in zip(old, new, strict=True)]
    assert ours.neighbour_overlap == pytest.approx(np.mean(kept), rel=1e-12)
    assert ours.nearest_changed == pytest.approx(np.mean(changed), rel=1e-12)

    width = max(widths)
    X, Y = (
        F.pad(F.normalize(x.double()), (0, width - x.shape[1])).numpy() for x in (before, after)
    )
    rotation = orthogonal_procrustes(X, Y)[0]
    assert ours.aligned_cosine == pytest.approx(((X @ rotation) * Y).sum(1).mean(), rel=1e-9)
    if widths[0] == widths[1]:
        assert ours.cosine == pytest.approx((X * Y).sum(1).mean(), rel=1e-9)
    else:
        assert ours.cosine is None

    center = np.eye(60) - 1 / 60  # linear CKA by its kernels (Kornblith et al., equations 2 to 4)
    K, L = (center @ (Z @ Z.T) @ center for Z in (X, Y))
    cka = (K * L).sum() / math.sqrt((K * K).sum() * (L * L).sum())
    assert ours.linear_cka == pytest.approx(cka, rel=1e-9)

    for norms, x in ((ours.norms_before, before), (ours.norms_after, after)):
        lengths = np.linalg.norm(x.double().numpy(), axis=1)
        median = np.quantile(lengths, 0.5, method="lower")
        expected = lengths.mean(), lengths.std(), lengths.min(), median, lengths.max()
        assert tuple(norms) == pytest.approx(expected, rel=1e-9)


def test_a_rotation_is_no_drift():
    before, _ = snapshots()
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    ours = embedding_drift(before.double(), 3 * before.double() @ rotation)
    assert ours.neighbour_overlap == 1 and ours.nearest_changed == 0 and not ours.drifted(1.0)
    assert ours.aligned_cosine == pytest.approx(1, abs=1e-12)
    assert ours.linear_cka == pytest.approx(1, abs=1e-12)
    assert ours.cosine < 0.9
    assert ours.norms_after.mean == pytest.approx(3 * ours.norms_before.mean)


def test_unrelated_embeddings_drifted():
    ours = embedding_drift(torch.randn(200, 6), torch.randn(200, 6), k=5)
    assert ours.neighbour_overlap < 0.1 and ours.nearest_changed > 0.9 and ours.drifted()
    assert abs(ours.cosine) < 0.2 and ours.linear_cka < 0.2


def test_the_threshold_is_the_share_kept():
    ours = embedding_drift(*snapshots(), k=5)
    assert not ours.drifted(ours.neighbour_overlap)
    assert ours.drifted(ours.neighbour_overlap + 1e-9)
    with pytest.raises(ValueError, match="threshold: expected a share from 0 to 1, got 80"):
        ours.drifted(80)


def test_report():
    text = str(embedding_drift(*snapshots(), k=5))
    assert "60 items, 5 nearest neighbours" in text
    text = str(embedding_drift(*snapshots(D2=9), k=5))
    assert "widths differ" in text


def test_a_collapsed_snapshot():
    before, _ = snapshots()
    with pytest.warns(UserWarning, match="k: neighbour 5 of 100% of the rows") as told:
        ours = embedding_drift(before, torch.randn(6).expand(60, 6), k=5)
    assert told[0].filename == __file__
    assert math.isnan(ours.linear_cka) and ours.drifted() and ours.tied == 1
    assert embedding_drift(before, before, k=5).tied == 0
    assert embedding_drift(before, before, k=59).tied == 0  # all the others


X = torch.randn(9, 3)
WRONG = [
    ({"before": X.numpy()}, TypeError, "before: expected a tensor, got ndarray"),
    ({"after": X[:, 0]}, ValueError, "after: expected embeddings of shape"),
    ({"after": X[:4]}, ValueError, "after: expected one row for each of the 9 of before, got 4"),
    ({"after": X / 0}, ValueError, "after: expected finite embeddings, got NaN or infinity in 9"),
    ({"before": X[:1], "after": X[:1]}, ValueError, "before: expected at least two rows, got 1"),
    ({"k": 9}, ValueError, "k: expected 1 to 8, got 9"),
    ({"k": 0}, ValueError, "k: expected 1 to 8, got 0"),
    ({"k": 2.0}, TypeError, "k: expected an integer, got float"),
]


@pytest.mark.parametrize(("changes", "error", "message"), WRONG)
def test_wrong_arguments(changes, error, message):
    with pytest.raises(error, match=message):
        embedding_drift(**{"before": X, "after": X, "k": 3} | changes)
