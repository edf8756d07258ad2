"""Triplets: what is mined, in rounds, at distance 0, and bad inputs."""

import sys

import pytest
import torch

import cl_kernels
from python_tests.helpers import unit_rows
from python_tests.losses.edges import assert_as_textbook, graded

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


TRIPLETS = [
    {"mining": mining, "distance": distance, "normalize": normalize, "soft": soft}
    for mining in ("batch_all", "batch_hard", "semi_hard")
    for distance in ("cosine", "squared_euclidean", "euclidean")
    for normalize in (True, False)
    for soft in (False, True)
]
each_triplet = pytest.mark.parametrize(
    "settings", TRIPLETS, ids=lambda s: "-".join(map(str, s.values()))
)


class TestTriplet:
    @each_triplet
    @pytest.mark.parametrize("average", ["active", "all"])
    def test_every_kind(self, settings, average):
        """Of classes of 1 to 5 rows, in any order."""
        x = torch.randn(15, 6)
        labels = torch.tensor([4, 2, 2, 0, 4, 3, 4, 1, 3, 4, 3, 2, 4, 2, 7])
        assert_as_textbook("triplet", x, labels, average=average, **settings)

    @pytest.mark.parametrize("few", [0, 40, 110])
    @pytest.mark.parametrize("distance", ["cosine", "squared_euclidean", "euclidean"])
    def test_pairs_in_rounds(self, monkeypatch, few, distance):
        monkeypatch.setattr(sys.modules["cl_kernels.losses.all_triplets"], "FEW", few)
        labels = torch.tensor([4, 2, 2, 0, 4, 3, 4, 1, 3, 4, 3, 2, 4, 2, 7])
        assert_as_textbook("triplet", torch.randn(15, 6), labels, distance=distance)
        rows = {"reduction": "none", "distance": distance}
        assert_as_textbook("triplet", torch.randn(15, 6), labels, **rows)

    @each_triplet
    def test_duplicates_of_the_anchor(self, settings):
        """At distance 0 the Euclidean distance has no gradient: it is taken to be 0."""
        x = torch.randn(9, 5)
        x[3], x[1] = x[0], x[0]  # of its own label, and of another
        value, grad = graded(cl_kernels.triplet, x, torch.arange(9) % 3, **settings)
        assert value.isfinite() and grad.isfinite().all()

    @each_triplet
    def test_rows_all_equal(self, settings):
        value, grad = graded(cl_kernels.triplet, torch.ones(6, 4), torch.arange(6) % 2, **settings)
        assert grad.isfinite().all()
        if settings["mining"] != "semi_hard":  # which has no farther negative, but for rounding
            expected = 0.2 if not settings["soft"] else torch.tensor(0.2).exp().log1p()
            assert value == pytest.approx(float(expected), rel=1e-4)

    @pytest.mark.parametrize("distance", ["squared_euclidean", "euclidean"])
    def test_far_from_the_origin(self, distance):
        x = torch.randn(12, 6) + 100
        settings = {"distance": distance, "normalize": False, "margin": 3.0}
        assert_as_textbook("triplet", x, torch.arange(12) % 3, **settings)

    def test_a_far_row(self):
        """A soft loss of 1000 does not overflow."""
        x = torch.tensor([[0.0, 1.0], [1000.0, 0.0], [0.0, 0.0]])
        assert_as_textbook(
            "triplet", x, torch.tensor([0, 0, 1]), soft=True, distance="euclidean",
            normalize=False, mining="batch_hard",
        )  # fmt: skip

    def test_rows_that_lack_one_leave_the_mean(self):
        x = unit_rows(4, 3)
        labels = torch.tensor([0, 0, 1, 2])
        settings = {"mining": "batch_hard", "margin": 3.0}
        rows = cl_kernels.triplet(x, labels, reduction="none", **settings)
        assert (rows[:2] > 0).all() and not rows[2:].any()
        mean = cl_kernels.triplet(x, labels, average="all", **settings)
        torch.testing.assert_close(mean, rows.sum() / 2)

    @pytest.mark.parametrize("settings", [{}, {"mining": "batch_hard"}], ids=str)
    def test_bfloat16(self, settings):
        x, labels = torch.randn(24, 16).bfloat16(), torch.arange(24) % 5
        assert_as_textbook("triplet", x, labels, tolerance=0.03, average="all", **settings)

    @pytest.mark.parametrize(
        ("settings", "error"),
        [
            ({"margin": float("inf")}, ValueError),
            ({"margin": torch.ones(3)}, ValueError),
            ({"mining": "hard"}, ValueError),
            ({"mining": None}, ValueError),
            ({"soft": 1}, TypeError),
            ({"distance": "l2"}, ValueError),
            ({"average": "none"}, ValueError),
        ],
        ids=str,
    )
    def test_bad_settings(self, settings, error):
        with pytest.raises(error, match=f"^{next(iter(settings))}: expected"):
            cl_kernels.triplet(torch.randn(4, 3), torch.arange(4) % 2, **settings)


@pytest.mark.parametrize("mining", ["batch_all", "batch_hard", "semi_hard"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_embeddings_that_are_not_finite(mining, bad):
    x = torch.randn(6, 4)
    x[2, 1] = bad
    with pytest.raises(ValueError, match="x: expected finite embeddings, got others"):
        cl_kernels.triplet(x, torch.arange(6) % 2, mining=mining)
