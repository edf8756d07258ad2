"""Losses of deep metric learning: edges, numerics and bad inputs that no textbook form shows."""

import pytest
import torch

import cl_kernels
from catalogue.family import metric
from python_tests.helpers import frobenius, unit_rows

pytestmark = pytest.mark.usefixtures("nan_filled_memory")


def trained(x):
    return x.detach().clone().requires_grad_()


def graded(loss, x, *others, **settings):
    """The value, and the gradient of x."""
    x = trained(x)
    value = loss(x, *others, **settings)
    (grad,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), grad


def assert_as_textbook(name, x, *others, tolerance=1e-5, **settings):
    """Value and gradient of x against the dense form of the same numbers in float64."""
    value, grad = graded(getattr(cl_kernels, name), x, *others, **settings)
    exact = [o.double() if torch.is_floating_point(o) else o for o in others]
    truth, expected = graded(getattr(metric, name), x.double(), *exact, **settings)
    assert value.isfinite().all() and grad.isfinite().all()
    torch.testing.assert_close(value.double(), truth, rtol=tolerance, atol=tolerance)
    assert frobenius(grad, expected) <= tolerance or (grad - expected).norm() <= tolerance


LABELLED = {
    "multi_similarity": {},
    "multi_similarity, mined": {"mining_margin": 0.1},
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
        "more", [{"normalize": 1}, {"reduction": "all"}, {"backend": "none such"}]
    )
    def test_bad_settings(self, loss, settings, more):
        with pytest.raises((TypeError, ValueError), match=next(iter(more))):
            loss(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), **settings, **more)


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
