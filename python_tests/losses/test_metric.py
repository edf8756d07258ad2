"""Losses of deep metric learning: edges, numerics and bad inputs that no textbook form shows."""

import inspect

import pytest
import torch

import cl_kernels
from catalogue.family import metric
from python_tests.helpers import unit_rows
from python_tests.losses.edges import assert_as_textbook, graded

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


LABELLED = {
    "multi_similarity": {},
    "multi_similarity, mined": {"mining_margin": 0.1},
    "pairwise_contrastive": {},
    "triplet": {},
    "triplet, squared": {"distance": "squared_euclidean", "normalize": False},
    "triplet, soft": {"soft": True},
    "triplet, hard": {"mining": "batch_hard", "distance": "euclidean"},
    "triplet, semi-hard": {"mining": "semi_hard", "distance": "euclidean", "normalize": False},
}
each_labelled = pytest.mark.parametrize(
    ("loss", "settings"),
    [(getattr(cl_kernels, name.split(",")[0]), more) for name, more in LABELLED.items()],
    ids=LABELLED,
)


@each_labelled
class TestOfLabelledRows:
    def test_empty_batch(self, loss, settings, backend):
        no_labels = torch.empty(0, dtype=torch.int64)
        value, grad = graded(loss, torch.empty(0, 5), no_labels, backend=backend, **settings)
        assert value == 0 and grad.shape == (0, 5)

    def test_one_row(self, loss, settings, backend):
        value, grad = graded(
            loss, torch.randn(1, 5), torch.tensor([3]), backend=backend, **settings
        )
        assert value == 0 and not grad.any()

    def test_no_positive(self, loss, settings, backend):
        value, grad = graded(loss, torch.randn(6, 5), torch.arange(6), backend=backend, **settings)
        assert value.isfinite() and grad.isfinite().all()

    def test_no_negative(self, loss, settings, backend):
        labels = torch.zeros(6, dtype=torch.int64)
        value, grad = graded(loss, torch.randn(6, 5), labels, backend=backend, **settings)
        assert value.isfinite() and grad.isfinite().all()

    def test_a_zero_row(self, loss, settings, backend):
        x = torch.randn(8, 5)
        x[3] = 0
        value, grad = graded(loss, x, torch.arange(8) % 3, backend=backend, **settings)
        assert value.isfinite() and grad.isfinite().all()

    def test_ids_may_be_any_integers(self, loss, settings):
        x, labels = torch.randn(8, 5), torch.arange(8) % 3
        far = (labels - 1) * 2**61
        assert torch.equal(loss(x, far, **settings), loss(x, labels, **settings))
        assert torch.equal(loss(x, labels.int(), **settings), loss(x, labels, **settings))

    @pytest.mark.parametrize(
        ("labels", "error", "said"),
        [
            (torch.zeros(4, dtype=torch.int64), ValueError, "for each of the 5 rows of x"),
            (torch.zeros(5, 1, dtype=torch.int64), ValueError, r"got shape \[5, 1\]"),
            (torch.zeros(5), TypeError, "labels: expected an integer tensor"),
            ([0] * 5, TypeError, "labels: expected an integer tensor, got list"),
            (torch.zeros(5, dtype=torch.int64, device="meta"), ValueError, "device of x"),
        ],
        ids=["count", "shape", "dtype", "list", "device"],
    )
    def test_bad_labels(self, loss, settings, labels, error, said):
        with pytest.raises(error, match=said):
            loss(torch.randn(5, 3), labels, **settings)

    @pytest.mark.parametrize("x", [torch.ones(5), torch.ones(5, 3, dtype=torch.int64), [1.0]])
    def test_bad_rows(self, loss, settings, x):
        with pytest.raises((TypeError, ValueError), match=r"^x: expected"):
            loss(x, torch.zeros(5, dtype=torch.int64), **settings)

    @pytest.mark.parametrize(
        "more", [{"normalize": "yes"}, {"reduction": "all"}, {"backend": "none such"}]
    )
    def test_bad_settings(self, loss, settings, more):
        if not more.keys() <= inspect.signature(loss).parameters.keys():
            return
        with pytest.raises((TypeError, ValueError), match=next(iter(more))):
            loss(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), **settings | more)

    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_reductions(self, loss, settings, reduction):
        if "reduction" in inspect.signature(loss).parameters:
            value = loss(torch.randn(7, 4), torch.arange(7) % 3, reduction=reduction, **settings)
            assert value.shape == ((7,) if reduction == "none" else ())


class TestMultiSimilarity:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_steep(self, dtype):
        """Scales of 100 on rows that are equal, opposite and unrelated."""
        x = torch.randn(12, 16, dtype=torch.float64)
        x[4], x[5], x[6] = x[0], -x[0], -x[1]
        tolerance = 1e-4 if dtype == torch.float32 else 0.02
        assert_as_textbook(
            "multi_similarity", x.to(dtype), torch.arange(12) % 3, alpha=100.0, beta=100.0,
            tolerance=tolerance,
        )  # fmt: skip

    def test_rows_all_equal(self, backend):
        x = torch.ones(6, 4)
        value, grad = graded(cl_kernels.multi_similarity, x, torch.arange(6) % 2, backend=backend)
        expected = metric.multi_similarity(x.double(), torch.arange(6) % 2)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
        assert grad.abs().max() < 1e-5

    def test_an_empty_set_has_no_term_but_the_row_counts(self):
        x = unit_rows(5, 6)
        rows = cl_kernels.multi_similarity(x, torch.arange(5), reduction="none")
        assert rows.shape == (5,) and (rows > 0).all()  # of negatives only
        mean = cl_kernels.multi_similarity(x, torch.tensor([0, 0, 1, 2, 3]))
        each = cl_kernels.multi_similarity(
            x, torch.tensor([0, 0, 1, 2, 3]), reduction="none", backend="reference"
        )
        torch.testing.assert_close(mean, each.sum() / 5)

    def test_mining_needs_both_sets(self):
        x = unit_rows(5, 6)
        labels = torch.tensor([0, 0, 1, 2, 3])
        rows = cl_kernels.multi_similarity(x, labels, mining_margin=5.0, reduction="none")
        assert (rows[:2] > 0).all() and not rows[2:].any()
        alone = torch.zeros(5, dtype=torch.int64)
        assert cl_kernels.multi_similarity(x, alone, mining_margin=5.0) == 0

    @pytest.mark.parametrize(
        ("settings", "error"),
        [
            ({"alpha": 0.0}, ValueError),
            ({"beta": -1.0}, ValueError),
            ({"beta": torch.tensor(1.0)}, TypeError),
            ({"base": float("nan")}, ValueError),
            ({"base": torch.ones(2)}, ValueError),
            ({"mining_margin": "0.1"}, TypeError),
            ({"mining_margin": float("nan")}, ValueError),
        ],
        ids=str,
    )
    def test_bad_numbers(self, settings, error):
        with pytest.raises(error, match=f"^{next(iter(settings))}: expected"):
            cl_kernels.multi_similarity(torch.randn(4, 3), torch.arange(4) % 2, **settings)


class TestPairwiseContrastive:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_equal_and_opposite_rows(self, dtype):
        x = torch.randn(12, 16)
        x[3], x[4] = x[1], -x[2]
        x[6] = -x[0]
        margins = {"positive_margin": 0.95, "negative_margin": 0.11}
        tolerance = 1e-5 if dtype == torch.float32 else 0.03
        labels = torch.arange(12) % 3
        assert_as_textbook(
            "pairwise_contrastive", x.to(dtype), labels, tolerance=tolerance, **margins
        )

    def test_a_set_that_is_satisfied_adds_nothing(self):
        x, labels = unit_rows(6, 4), torch.arange(6) % 2
        settled = cl_kernels.pairwise_contrastive(
            x, labels, positive_margin=-1.1, negative_margin=1.1
        )
        assert settled == 0
        rows = x @ x.T
        other = rows[labels[:, None] != labels]
        half = cl_kernels.pairwise_contrastive(
            x, labels, positive_margin=-1.1, negative_margin=-1.1
        )
        torch.testing.assert_close(half, other.mean() + 1.1)

    @pytest.mark.parametrize("name", ["positive_margin", "negative_margin"])
    @pytest.mark.parametrize(
        ("value", "error"), [(float("nan"), ValueError), ("1", TypeError), (None, TypeError)]
    )
    def test_bad_margins(self, name, value, error):
        with pytest.raises(error, match=f"^{name}: expected"):
            cl_kernels.pairwise_contrastive(torch.randn(4, 3), torch.arange(4), **{name: value})


class TestMegaBatchMargin:
    def test_empty_batch(self, backend):
        empty = torch.empty(0, 5)
        value, grad = graded(cl_kernels.mega_batch_margin, empty, empty, backend=backend)
        assert value == 0 and grad.shape == (0, 5)

    def test_a_single_pair_has_no_negative(self, backend):
        x, y = unit_rows(1, 5), unit_rows(1, 5)
        value, grad = graded(
            cl_kernels.mega_batch_margin, x, y, negative_margin=-2, backend=backend
        )
        torch.testing.assert_close(value, (0.8 - (x * y).sum()).relu())
        assert grad.isfinite().all()

    def test_the_positive_is_no_negative_but_its_copy_is(self):
        x = torch.eye(4)
        assert cl_kernels.mega_batch_margin(x, x) == 0
        copied = torch.eye(4)[[0, 1, 2, 2]]  # row 3 is a copy of row 2's positive
        rows = cl_kernels.mega_batch_margin(x, copied, reduction="none")
        torch.testing.assert_close(rows, torch.tensor([0, 0, 0.7, 0.8]))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_opposite_pairs_and_zero_rows(self, dtype):
        x, y = torch.randn(10, 12), torch.randn(10, 12)
        y[2], y[3], x[4] = -x[2], x[3], 0
        tolerance = 1e-5 if dtype == torch.float32 else 0.02
        assert_as_textbook("mega_batch_margin", x.to(dtype), y.to(dtype), tolerance=tolerance)

    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_reductions(self, reduction):
        value = cl_kernels.mega_batch_margin(
            torch.randn(7, 4), torch.randn(7, 4), reduction=reduction
        )
        assert value.shape == ((7,) if reduction == "none" else ())

    @pytest.mark.parametrize(
        ("more", "error"),
        [
            ({"positives": torch.randn(4, 3)}, ValueError),
            ({"positives": torch.randn(5, 4)}, ValueError),
            ({"positives": torch.randn(5, 3).double()}, TypeError),
            ({"anchors": torch.randn(5)}, ValueError),
            ({"positive_margin": float("inf")}, ValueError),
            ({"negative_margin": "0"}, TypeError),
            ({"normalize": 1}, TypeError),
            ({"reduction": None}, ValueError),
        ],
        ids=["rows", "width", "dtype", "shape", "infinite", "text", "flag", "reduction"],
    )
    def test_bad_inputs(self, more, error):
        given = {"anchors": torch.randn(5, 3), "positives": torch.randn(5, 3)} | more
        with pytest.raises(error, match=f"^{next(iter(more))}: expected"):
            cl_kernels.mega_batch_margin(**given)


class TestProxyAnchor:
    def test_empty_batch(self, backend):
        no_labels = torch.empty(0, dtype=torch.int64)
        value, grad = graded(
            lambda p: cl_kernels.proxy_anchor(torch.empty(0, 5), no_labels, p, backend=backend),
            torch.randn(4, 5),
        )
        assert value == 0 and not grad.any()

    def test_one_class_has_no_negative(self, backend):
        x, proxies = unit_rows(3, 5), unit_rows(1, 5)
        labels = torch.zeros(3, dtype=torch.int64)
        value, grad = graded(cl_kernels.proxy_anchor, x, labels, proxies, backend=backend)
        expected = (1 + (-32 * ((x @ proxies.T) - 0.1)).exp().sum()).log()
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
        assert grad.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("alpha", [32.0, 100.0])
    def test_opposite_equal_and_zero_rows(self, dtype, alpha):
        proxies = torch.randn(6, 16)
        labels = torch.tensor([0, 1, 1, 2, 3, 3, 3, 0])
        x = proxies[labels] + torch.randn(8, 16)
        x[0], x[1], x[3] = -proxies[0], proxies[1], 0
        x, proxies = x.to(dtype), proxies.to(dtype)
        tolerance = 2e-5 if dtype == torch.float32 else 0.03
        assert_as_textbook("proxy_anchor", x, labels, proxies, alpha=alpha, tolerance=tolerance)

    def test_what_is_right_by_far_still_pulls(self):
        """A loss of e^-40 is not rounded to 0."""
        x = proxies = torch.eye(3)
        settings = {"alpha": 50.0, "margin": 0.2}
        value = cl_kernels.proxy_anchor(x, torch.arange(3), proxies, **settings)
        exact = metric.proxy_anchor(x.double(), torch.arange(3), proxies.double(), **settings)
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)
        alone = cl_kernels.proxy_anchor(x[:1], torch.tensor([0]), proxies[:1], alpha=40.0)
        assert float(alone) == pytest.approx(torch.tensor(-36.0).exp().item(), rel=1e-4)

    @pytest.mark.parametrize(
        ("more", "error"),
        [
            ({"labels": torch.tensor([0, 1, 2, 4, 0])}, ValueError),
            ({"labels": torch.tensor([0, 1, 2, -1, 0])}, ValueError),
            ({"labels": torch.zeros(4, dtype=torch.int64)}, ValueError),
            ({"labels": torch.zeros(5)}, TypeError),
            ({"proxies": torch.randn(4, 2)}, ValueError),
            ({"proxies": torch.randn(4, 3).half()}, TypeError),
            ({"alpha": 0}, ValueError),
            ({"margin": float("nan")}, ValueError),
            ({"normalize": None}, TypeError),
        ],
        ids=lambda x: "-".join(x) if isinstance(x, dict) else x.__name__,
    )
    def test_bad_inputs(self, more, error):
        labels, proxies = torch.arange(5) % 4, torch.randn(4, 3)
        given = {"x": torch.randn(5, 3), "labels": labels, "proxies": proxies} | more
        with pytest.raises(error, match=f"^{next(iter(more))}: expected"):
            cl_kernels.proxy_anchor(**given)

    def test_the_module_learns_its_proxies(self):
        loss = cl_kernels.ProxyAnchorLoss(4, 8, alpha=16.0)
        assert [name for name, _ in loss.named_parameters()] == ["proxies"]
        assert loss.proxies.shape == (4, 8)
        x, labels = torch.randn(6, 8), torch.arange(6) % 4
        value = loss(x, labels)
        assert torch.equal(value, cl_kernels.proxy_anchor(x, labels, loss.proxies, alpha=16.0))
        value.backward()
        assert loss.proxies.grad.abs().sum() > 0

    def test_proxies_start_as_of_he(self):
        proxies = cl_kernels.ProxyAnchorLoss(200, 300).proxies
        assert float(proxies.detach().std()) == pytest.approx((2 / 200) ** 0.5, rel=0.05)
