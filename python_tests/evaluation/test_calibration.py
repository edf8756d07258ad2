"""Verification thresholds against scikit-learn's ROC curve and against counting every pair."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from cl_kernels.evaluation import calibrate_gallery, calibrate_threshold, pair_scores
from python_tests.helpers import unit_rows

RATES = (0.001, 0.01, 0.1, 0.25, 0.5, 0.999)
KINDS = ("continuous", "ties", "alike", "apart", "negative", "float64")


def scores(kind, genuine=1000, impostors=3000):
    dtype = torch.float64 if kind == "float64" else torch.float32
    same = torch.randn(genuine, dtype=dtype) + 2
    different = torch.randn(impostors, dtype=dtype)
    if kind == "ties":
        same, different = same.round(), different.round()
        different[different == 0] = -0.0  # scores as much as 0
    elif kind == "alike":
        same, different = torch.zeros(genuine), torch.zeros(impostors)
    elif kind == "apart":
        same += 100
    elif kind == "negative":  # distances, negated, of many magnitudes
        same, different = -same.exp().reciprocal(), -different.exp()
    elif kind == "float64":  # differences that float32 cannot tell
        same, different = 1e-12 * same + 1, 1e-12 * different + 1
    return same, different


def errors(same, different, threshold):
    return int((different >= threshold).sum()), int((same < threshold).sum())


def assert_counts(ours, same, different):
    assert (ours.genuine, ours.impostors) == (len(same), len(different))
    assert (ours.false_accepts, ours.false_rejects) == errors(same, different, ours.threshold)
    assert ours.false_accept_rate == ours.false_accepts / len(different)
    assert ours.false_reject_rate == ours.false_rejects / len(same)


def step(same, threshold, direction):
    """The next number of the scores' dtype."""
    start = torch.tensor(threshold, dtype=same.dtype)
    return torch.nextafter(start, torch.full_like(start, direction * torch.inf)).item()


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", KINDS)
def test_false_accept_rate(kind, rate):
    same, different = scores(kind)
    ours = calibrate_threshold(same, different, false_accept_rate=rate)
    assert_counts(ours, same, different)
    assert ours.false_accept_rate <= rate
    lower = errors(same, different, step(same, ours.threshold, -1))
    assert lower[0] / len(different) > rate  # the lowest such threshold


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", KINDS)
def test_false_reject_rate(kind, rate):
    same, different = scores(kind)
    ours = calibrate_threshold(same, different, false_reject_rate=rate)
    assert_counts(ours, same, different)
    assert ours.false_reject_rate <= rate
    higher = errors(same, different, step(same, ours.threshold, 1))
    assert higher[1] / len(same) > rate  # the highest such threshold


@pytest.mark.parametrize("kind", KINDS)
def test_equal_error_rate(kind):
    same, different = scores(kind)
    ours = calibrate_threshold(same, different, false_accept_rate=0.1)
    truth = torch.cat([torch.ones(len(same)), torch.zeros(len(different))])
    accepted, found, _ = roc_curve(truth, torch.cat([same, different]), drop_intermediate=False)
    rejected = 1 - found
    closest = np.abs(accepted - rejected).min()
    equal = np.abs(accepted - rejected) < closest + 1e-12
    assert np.isclose(ours.equal_error_rate, ((accepted + rejected) / 2)[equal], rtol=1e-12).any()
    a, r = errors(same, different, ours.equal_error_threshold)
    assert ours.equal_error_rate == (a / len(different) + r / len(same)) / 2


@given(
    same=st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    different=st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    rate=st.floats(0.05, 0.95),
    by_accepts=st.booleans(),
)
def test_any_few_scores(same, different, rate, by_accepts):
    same, different = torch.tensor(same).double(), torch.tensor(different).double()
    rate = max(rate, 1 / len(different if by_accepts else same))
    if rate >= 1:
        return
    target = "false_accept_rate" if by_accepts else "false_reject_rate"
    ours = calibrate_threshold(same, different, **{target: rate})
    assert_counts(ours, same, different)
    assert getattr(ours, target) <= rate
    # No threshold that keeps to the rate makes fewer errors of the other kind.
    candidates = [errors(same, different, t / 2) for t in range(-8, 9)]
    allowed = [
        (a, r)
        for a, r in candidates
        if (a / len(different) if by_accepts else r / len(same)) <= rate
    ]
    other = 1 if by_accepts else 0
    assert min(e[other] for e in allowed) == (ours.false_accepts, ours.false_rejects)[other]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gallery(dtype, normalize, monkeypatch):
    monkeypatch.setattr(pair_scores, "_TILE", 16)
    labels = torch.randint(-4, 4, (75,)) * 2**60
    x = (2 * unit_rows(75, 12) + 0.5 * unit_rows(8, 12)[labels // 2**60 + 4]).to(dtype)
    x[40], x[7] = x[3], 0  # row 7 is unlike itself: that is no pair
    rows = x.double() if dtype == torch.float64 else x.float()
    rows = F.normalize(rows) if normalize else rows
    # The products of a tile as they were computed: another shape may round them otherwise.
    tiles = [
        (rows[a : a + 16] @ rows[b : b + 16].T, a, b)
        for a in range(0, 75, 16)
        for b in range(a, 75, 16)
    ]
    S = torch.full((75, 75), torch.nan, dtype=rows.dtype)
    for tile, a, b in tiles:
        S[a : a + len(tile), b : b + tile.shape[1]] = tile
    torch.testing.assert_close(S.triu(), (rows @ rows.T).triu(), equal_nan=False)
    upper = torch.ones_like(S, dtype=torch.bool).triu(1)
    same = labels[:, None] == labels
    for target in ({"false_accept_rate": 0.01}, {"false_reject_rate": 0.05}):
        ours = calibrate_gallery(x, labels, normalize=normalize, **target)
        assert ours == calibrate_threshold(S[same & upper], S[~same & upper], **target)


def test_report():
    ours = calibrate_threshold(*scores("continuous"), false_accept_rate=0.01)
    assert f"score is >= {ours.threshold:.9g}" in str(ours)
    assert "30 of 3000 impostor pairs" in str(ours)
    assert f"{ours.false_rejects} of 1000 genuine pairs" in str(ours)


GENUINE, IMPOSTOR = torch.rand(10), torch.rand(20)
WRONG = [
    ({"genuine": GENUINE[:0]}, ValueError, "genuine: expected scores of at least one pair"),
    ({"impostor": IMPOSTOR[None]}, ValueError, r"impostor: expected .*, got shape \[1, 20\]"),
    ({"impostor": IMPOSTOR.tolist()}, TypeError, "impostor: expected a tensor, got list"),
    ({"impostor": IMPOSTOR.double()}, TypeError, "impostor: expected the dtype of genuine"),
    ({"genuine": GENUINE.half()}, TypeError, "genuine: expected float32 or float64 scores"),
    ({"genuine": GENUINE / 0}, ValueError, "genuine: expected finite scores, got 10"),
    ({"false_accept_rate": 0.0}, ValueError, "false_accept_rate: expected a rate between 0 and 1"),
    ({"false_accept_rate": 1}, ValueError, "false_accept_rate: expected a rate between 0 and 1"),
    ({"false_accept_rate": "low"}, TypeError, "false_accept_rate: expected a number"),
    ({"false_accept_rate": 0.04}, ValueError, "20 impostor pairs, 0.05, got 0.04"),
    ({"false_reject_rate": 0.1}, ValueError, "expected exactly one of them, got both"),
    ({"false_accept_rate": None}, ValueError, "expected exactly one of them, got neither"),
    (
        {"false_accept_rate": None, "false_reject_rate": 0.09},
        ValueError,
        "false_reject_rate: expected at least one of the 10 genuine pairs, 0.1, got 0.09",
    ),
]


@pytest.mark.parametrize(("changes", "error", "message"), WRONG)
def test_wrong_arguments(changes, error, message):
    arguments = {"genuine": GENUINE, "impostor": IMPOSTOR, "false_accept_rate": 0.1} | changes
    with pytest.raises(error, match=message):
        calibrate_threshold(**arguments)


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (torch.full((4, 3), torch.nan), torch.arange(4), "embeddings: expected finite"),
        (torch.ones(4, 3), torch.arange(3), "labels: expected one label for each of the 4 rows"),
        (torch.ones(4, 3), torch.arange(4), "same label and pairs of different ones, got 0 and 6"),
        (torch.ones(4, 3), torch.zeros(4).long(), "different ones, got 6 and 0"),
    ],
)
def test_wrong_galleries(x, labels, message):
    with pytest.raises(ValueError, match=message):
        calibrate_gallery(x, labels, false_accept_rate=0.5)
