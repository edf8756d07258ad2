"""SupCon at its edges: anchors alone, classes of one, what does not go together."""

import re

import pytest
import torch

from catalogue.family.labels import supcon as textbook
from cl_kernels import CSR, supcon
from python_tests.helpers import unit_rows

pytestmark = pytest.mark.usefixtures("nan_filled_memory")
D = 8
each_way = pytest.mark.parametrize("positives", ["outside", "inside"])


@each_way
@pytest.mark.parametrize("rows", [0, 1])
def test_nobody_to_compare_with(backend, positives, rows):
    x = torch.randn(rows, D, requires_grad=True)
    temperature = torch.tensor(0.5, requires_grad=True)
    labels = torch.zeros(rows, dtype=torch.int64)
    loss = supcon(x, labels, temperature=temperature, positives=positives, backend=backend)
    assert loss == 0
    loss.backward()
    assert (x.grad == 0).all() and temperature.grad == 0


@each_way
def test_anchors_without_a_positive_leave_the_mean(backend, positives):
    x = unit_rows(9, D).requires_grad_()
    labels = torch.tensor([0, 0, 1, 2, 3, 3, 3, 4, 5])
    options = {"positives": positives, "backend": backend}
    losses = supcon(x, labels, reduction="none", **options)
    alone = torch.tensor([False, False, True, True, False, False, False, True, True])
    assert torch.equal(losses == 0, alone)
    torch.testing.assert_close(supcon(x, labels, **options), losses[~alone].mean())
    assert supcon(x, torch.arange(9), **options) == 0


@each_way
def test_all_rows_equal(backend, positives):
    x = torch.ones(6, D, requires_grad=True)
    loss = supcon(x, torch.arange(6) // 2, positives=positives, backend=backend)
    torch.testing.assert_close(loss, torch.tensor(5.0).log())
    loss.backward()
    assert x.grad.isfinite().all()


@each_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_low_temperature(backend, positives, dtype):
    x = (unit_rows(40, D) + 1).to(dtype).requires_grad_()
    x.data[1] = -x.data[0]  # anti-aligned positives
    labels = torch.arange(40) // 2
    loss = supcon(x, labels, temperature=0.01, positives=positives, backend=backend)
    exact = x.detach().double().requires_grad_()
    truth = textbook(exact, labels, temperature=0.01, positives=positives)
    (grad,), (expected,) = torch.autograd.grad(loss, x), torch.autograd.grad(truth, exact)
    rtol = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(loss.double(), truth, rtol=rtol, atol=0)
    assert (grad.double() - expected).norm() <= 4 * rtol * expected.norm()


def test_forms_of_lists(backend):
    x = unit_rows(6, D)
    lists = [[1, 2], [], [5], [0], [3, 5, 1], [4]]
    expected = supcon(x, CSR.from_lists(lists), backend=backend)
    assert torch.equal(supcon(x, lists, backend=backend), expected)


def test_labels_of_any_values(backend):
    """Hashes and negative ones too: they are compared, not counted."""
    x, labels = unit_rows(12, D), torch.arange(12) % 5
    expected = supcon(x, labels, backend=backend)
    hashed = (labels - 2) * 2**61
    torch.testing.assert_close(supcon(x, hashed, backend=backend), expected)
    torch.testing.assert_close(supcon(x, labels.to(torch.uint8), backend=backend), expected)


X, LABELS = torch.randn(4, D), torch.arange(4)


@pytest.mark.parametrize(
    ("error", "changes", "message"),
    [
        (ValueError, {"labels": None}, "labels: expected them for x of shape [B, D], got None"),
        (
            ValueError,
            {"labels": torch.zeros(4, 1).long()},
            "a column of labels is labels.squeeze(1)",
        ),
        (TypeError, {"labels": [0, 1, 0, 1]}, "labels: expected a tensor of labels, or a list of"),
        (ValueError, {"labels": torch.arange(3)}, "labels: expected one label for each of the 4"),
        (TypeError, {"labels": torch.zeros(4)}, "labels: expected an integer tensor, got"),
        (ValueError, {"labels": torch.arange(4).to("meta")}, "labels: expected the device of x"),
        (ValueError, {"labels": [[0], [2], [3], [1]]}, "labels: expected lists of other rows"),
        (ValueError, {"labels": [[1], [4], [], []]}, "labels: expected keys in [0, 4), got 1 to 4"),
        (ValueError, {"keys": X}, "key_labels: expected together with keys and labels"),
        (ValueError, {"key_labels": LABELS}, "keys: expected together with key_labels"),
        (ValueError, {"keys": X, "key_labels": torch.arange(3)}, "key_labels: expected one label"),
        (ValueError, {"keys": X[:, 1:], "key_labels": LABELS}, "keys: expected the width of x"),
        (ValueError, {"positives": "both"}, 'positives: expected "outside" or "inside"'),
        (ValueError, {"in_batch": False}, "in_batch: expected True without keys, got False"),
        (TypeError, {"in_batch": 1}, "in_batch: expected True or False, got 1"),
        (ValueError, {"temperature": 0.0}, "temperature: expected a finite number other than zero"),
        (ValueError, {"base_temperature": 0.0}, "base_temperature: expected a finite number other"),
        (TypeError, {"x": [1.0]}, "x: expected a tensor, got list"),
        (ValueError, {"x": torch.randn(4)}, "x: expected embeddings of shape"),
        (ValueError, {"reduction": "max"}, 'reduction: expected "mean", "sum" or "none"'),
        (
            ValueError,
            {"labels": [[1], [], [], []], "keys": X, "in_batch": True},
            "labels: expected labels where rows and keys are compared with, got lists",
        ),
    ],
)
def test_bad_arguments(error, changes, message):
    with pytest.raises(error, match=re.escape(message)):
        supcon(**{"x": X, "labels": LABELS} | changes)


@pytest.mark.parametrize("labels", [LABELS % 2, [[0, 1], [1], [], [2]]], ids=["labels", "lists"])
def test_the_rows_themselves_as_a_reference_set(labels, backend):
    """The same tensor in both places is still a set of keys, in which each row finds itself."""
    by_labels = isinstance(labels, torch.Tensor)
    given = {"key_labels": labels} if by_labels else {}
    options = {"normalize": False, "backend": backend}
    found = supcon(X, labels, X, **given, **options)
    assert torch.equal(found, supcon(X, labels, X.clone(), **given, **options))
