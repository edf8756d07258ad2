"""Losses at the edges of their domain: empty batches, no negatives, zero rows."""

import pytest
import torch

import cl_kernels
from catalogue import textbook
from cl_kernels import PairFilter
from python_tests.helpers import LOSSES, call_loss, unit_rows, views

pytestmark = pytest.mark.usefixtures("nan_filled_memory")
each_loss = pytest.mark.parametrize("loss", LOSSES)
D = 24


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@each_loss
def test_empty_batch(backend, loss, reduction):
    first, second = (torch.empty(0, 4, requires_grad=True) for _ in range(2))
    temperature = torch.tensor(0.5, requires_grad=True)
    options = {LOSSES[loss].scale: temperature, "reduction": reduction, "backend": backend}
    result = getattr(cl_kernels, loss)(first, second, **options)
    assert result.shape == ((0,) if reduction == "none" else ())
    assert (result == 0).all()
    result.sum().backward()
    assert first.grad.shape == (0, 4)
    assert temperature.grad == 0


@pytest.mark.parametrize("loss", [name for name, case in LOSSES.items() if case.softmax])
def test_a_single_pair_has_no_negatives(backend, loss):
    first, second = (x.requires_grad_() for x in views(1))
    scale = torch.tensor(3.0, requires_grad=True)
    result = call_loss(loss, first, second, scale, backend=backend)
    assert result == 0
    result.backward()
    for x in (first, second, scale):
        assert torch.equal(x.grad, torch.zeros_like(x))


def test_rows_without_negatives(backend):
    """Two classes: nobody of one's own class is a negative; one query has none at all."""
    first, second = (x.requires_grad_() for x in views(8))
    ids = torch.tensor([0] * 8)
    query_ids = torch.tensor([1] * 7 + [0])
    where = PairFilter(query_ids, ids, "different")
    losses = cl_kernels.info_nce(first, second, where=where, reduction="none", backend=backend)
    assert losses[7] == 0
    assert (losses[:7] > 0).all()
    losses.sum().backward()
    assert torch.equal(first.grad[7], torch.zeros(D))
    assert (first.grad[:7] != 0).any(1).all()


def test_no_negatives_at_all(backend):
    first, second = (x.requires_grad_() for x in views(5))
    plain = {"in_batch_negatives": False, "backend": backend}
    for result in (
        cl_kernels.info_nce(first, second, **plain),
        cl_kernels.info_nce(first, second, torch.empty(0, D), **plain),
        cl_kernels.info_nce(first, second, torch.empty(5, 0, D), **plain),
    ):
        assert result == 0
        (grad,) = torch.autograd.grad(result, first)
        assert (grad == 0).all()


def test_an_empty_queue_changes_nothing(backend):
    first, second = views(9)
    plain = cl_kernels.nt_xent(first, second, backend=backend)
    queued = cl_kernels.nt_xent(first, second, negative_keys=torch.empty(0, D), backend=backend)
    torch.testing.assert_close(queued, plain, rtol=1e-6, atol=0)


def test_zero_rows_stay_zero(backend):
    """As ``F.normalize`` has it: no NaN from an all-zero embedding."""
    first, second = views(9)
    first[2] = 0
    first.requires_grad_()
    result = cl_kernels.nt_xent(first, second, backend=backend)
    truth = textbook.nt_xent(first.double(), second.double(), 0.5)
    torch.testing.assert_close(result.double(), truth, rtol=1e-6, atol=0)
    result.backward()
    assert first.grad.isfinite().all()


def test_an_empty_queue_has_a_gradient():
    x, queue = unit_rows(4, 3), torch.zeros(0, 3, requires_grad=True)
    for hardest in (None, 2):
        for in_batch in (True, False):
            loss = cl_kernels.info_nce(x, x, queue, hardest=hardest, in_batch_negatives=in_batch)
            (grad,) = torch.autograd.grad(loss, queue)
            assert grad.shape == (0, 3)


def test_a_temperature_of_float64_embeddings():
    """Its inverse has the embeddings' digits."""
    x = unit_rows(6, 3, torch.float64)
    for function in (cl_kernels.nt_xent, cl_kernels.info_nce):
        number = torch.tensor(0.05)
        ours = function(x, x.roll(1, 0), temperature=number)
        expected = function(x, x.roll(1, 0), temperature=number.item())
        assert torch.equal(ours, expected)
