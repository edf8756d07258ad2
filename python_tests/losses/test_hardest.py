"""info_nce over only the hardest negatives: the dense form in value and gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cl_kernels
from catalogue import textbook
from cl_kernels import InfoNCELoss, PairFilter
from python_tests.helpers import assert_frobenius, frobenius, leaf, views

pytestmark = pytest.mark.usefixtures("nan_filled_memory")
B, D, K = 40, 16, 33


def labels(rows, classes=6):
    return torch.arange(rows) * 7 % classes


CASES = {
    "in-batch": {},
    "queue": {"negative_keys": 2},
    "queue and batch": {"negative_keys": 2, "in_batch_negatives": True},
    "own": {"negative_keys": 3},
    "own and batch": {"negative_keys": 3, "in_batch_negatives": True},
    "target": {"target": torch.arange(B) * 3 % (B - 4)},
    "target and queue": {"target": torch.arange(B) * 3 % (B - 4), "negative_keys": 2},
    "where": {"where": PairFilter(labels(B), labels(B), "different")},
    "where and target": {
        "where": PairFilter(labels(B), labels(B), "different"),
        "target": torch.arange(B) * 3 % (B - 4),
    },
    "where on the queue": {
        "where": (
            PairFilter(labels(B), labels(K), "different"),
            PairFilter(labels(B, 3), labels(K, 3), "same"),
        ),
        "negative_keys": 2,
    },
    "one sided": {"where": PairFilter(torch.arange(B) % 2, torch.ones(B).long(), "same")},
}


def dense(query, positive_key, negative_keys, temperature, hardest, *, normalize, target=None,
          where=(), in_batch_negatives=None, reduction="mean"):  # fmt: skip
    """Textbook: all logits, all but the largest ``hardest`` negatives dropped, cross-entropy."""
    q, p = textbook.rows(query, normalize), textbook.rows(positive_key, normalize)
    target = torch.arange(len(q)) if target is None else target
    rows = torch.arange(len(q))
    negatives = []
    if in_batch_negatives or (in_batch_negatives is None and negative_keys is None):
        keep = textbook.kept(where, len(q), len(p))
        keep[rows, target] = False
        negatives.append((q @ p.T / temperature).masked_fill(~keep, -torch.inf))
        where = ()
    if negative_keys is not None:
        n = textbook.rows(negative_keys, normalize)
        logits = (n @ q[:, :, None]).squeeze(2) if n.dim() == 3 else q @ n.T
        keep = textbook.kept(where, *logits.shape)
        negatives.append((logits / temperature).masked_fill(~keep, -torch.inf))
    negatives = torch.cat(negatives, 1)
    least = negatives.topk(min(hardest, negatives.shape[1]), 1).values[:, -1:]
    negatives = negatives.masked_fill(negatives < least, -torch.inf)
    positive = (q * p[target]).sum(1, keepdim=True) / temperature
    logits = torch.cat([positive, negatives], 1)
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64), reduction=reduction)


def inputs(case, dtype):
    """Leaves: query, key, temperature and, where the case has them, negatives."""
    options = dict(CASES[case])
    first, second = views(B, D)
    dims = options.pop("negative_keys", None)
    further = torch.randn(B, 9, D) if dims == 3 else torch.randn(K, D) if dims == 2 else None
    leaves = [leaf(x, True, dtype) for x in (first, second)]
    return leaves, None if further is None else leaf(further, True, dtype), options


@pytest.mark.parametrize(("hardest", "temperature", "reduction", "normalize"), [
    (1, 0.07, "mean", True),
    (5, 0.5, "none", True),
    (17, -0.25, "sum", True),
    (5, 2.0, "mean", False),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_dense_form(backend, case, dtype, hardest, temperature, reduction, normalize):
    (query, key), further, options = inputs(case, dtype)
    settings = options | {"normalize": normalize, "reduction": reduction}
    heat = leaf(torch.tensor(temperature), True, dtype)
    ours = cl_kernels.info_nce(
        query, key, further, temperature=heat, hardest=hardest, backend=backend, **settings
    )
    exact = [leaf(x, True, torch.float64) for x in (query, key, heat)]
    more = None if further is None else leaf(further, True, torch.float64)
    truth = dense(*exact[:2], more, exact[2], hardest, **settings)
    tight = dtype == torch.float64
    torch.testing.assert_close(
        ours.double(), truth, rtol=1e-12 if tight else 4e-6, atol=1e-12 if tight else 4e-6
    )
    upstream = torch.randn(ours.shape, dtype=torch.float64)
    grads = torch.autograd.grad(ours, drop_none(query, key, heat, further), upstream.to(dtype))
    wanted = torch.autograd.grad(truth, drop_none(*exact, more), upstream)
    for grad, want in zip(grads, wanted, strict=True):
        assert_frobenius(grad, want, 1e-11 if tight else 2e-5)


def drop_none(*tensors):
    return [x for x in tensors if x is not None]


@pytest.mark.parametrize("case", CASES)
def test_all_negatives_are_the_plain_loss(backend, case):
    (query, key), further, options = inputs(case, torch.float64)
    leaves = drop_none(query, key, further)
    losses = [
        cl_kernels.info_nce(query, key, further, hardest=k, backend=backend, **options)
        for k in (None, 80, 10_000)
    ]
    grads = [torch.autograd.grad(loss, leaves) for loss in losses]
    for loss, grad in zip(losses[1:], grads[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-13, atol=0)
        torch.testing.assert_close(grad, grads[0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("further", [None, torch.empty(0, D), torch.empty(4, 0, D)], ids=str)
def test_no_negatives(backend, further):
    first, second = (x[:4].requires_grad_() for x in views(5, D))
    heat = torch.tensor(0.2, requires_grad=True)
    ids = torch.zeros(4, dtype=torch.int64)
    where = PairFilter(ids, ids, "different") if further is None else ()
    loss = cl_kernels.info_nce(
        first, second, further, temperature=heat, where=where, hardest=3, backend=backend
    )
    assert loss == 0
    for grad in torch.autograd.grad(loss, (first, second, heat), allow_unused=True):
        assert grad is None or (grad == 0).all()


def test_rows_without_negatives_beside_others(backend):
    """One query of eight has none: loss 0, gradient 0, and no NaN for the temperature."""
    first, second = (x.requires_grad_() for x in views(8, D))
    heat = torch.tensor(0.2, requires_grad=True)
    where = PairFilter(torch.tensor([1] * 7 + [0]), torch.zeros(8).long(), "different")
    losses = cl_kernels.info_nce(
        first, second, temperature=heat, where=where, hardest=3, reduction="none", backend=backend
    )
    assert losses[7] == 0
    assert (losses[:7] > 0).all()
    losses.sum().backward()
    assert (first.grad[7] == 0).all()
    assert heat.grad.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("hardest", [3, 20])
def test_half_types_are_no_worse_than_eager(backend, dtype, hardest):
    first, second = views(100, 32, dtype)

    def outcome(leaves, form):
        value = form(leaves)
        return value, *torch.autograd.grad(value, leaves)

    def textbook_form(leaves):
        return dense(*leaves, None, 0.1, hardest, normalize=True)

    def our_form(leaves):
        return cl_kernels.info_nce(*leaves, temperature=0.1, hardest=hardest, backend=backend)

    ours = outcome([leaf(x, True) for x in (first, second)], our_form)
    eager = outcome([leaf(x, True) for x in (first, second)], textbook_form)
    exact = outcome([leaf(x, True, torch.float64) for x in (first, second)], textbook_form)
    assert ours[0].dtype == torch.float32
    assert ours[1].dtype == dtype
    for mine, theirs, truth in zip(ours, eager, exact, strict=True):
        assert frobenius(mine, truth) <= frobenius(theirs, truth)


def test_autocast_searches_in_its_dtype(backend):
    """The logits of what was found stay float32."""
    first, second = views(60, 32)
    exact = cl_kernels.info_nce(first, second, hardest=59, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = cl_kernels.info_nce(first, second, hardest=59, backend=backend)
    torch.testing.assert_close(mixed, exact, rtol=1e-6, atol=0)


def test_what_is_trained(backend):
    """A frozen key gets no gradient, and the query's is the same."""
    first, second = views(B, D)
    grads = []
    for trained in (False, True):
        query, key = leaf(first, True), leaf(second, trained)
        cl_kernels.info_nce(query, key, hardest=4, backend=backend).backward()
        assert (key.grad is not None) == trained
        grads.append(query.grad)
    torch.testing.assert_close(*grads)


def test_module():
    first, second = views(B, D)
    loss = InfoNCELoss(0.2, hardest=4)
    expected = cl_kernels.info_nce(first, second, temperature=0.2, hardest=4)
    assert torch.equal(loss(first, second), expected)
    loss.hardest = None
    assert torch.equal(loss(first, second), cl_kernels.info_nce(first, second, temperature=0.2))
    learned = InfoNCELoss(nn.Parameter(torch.tensor(0.2)), hardest=4)
    learned(first, second).backward()
    assert learned.temperature.grad != 0


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (2.0, TypeError), (True, TypeError)])
def test_refused(value, error):
    with pytest.raises(error, match=r"hardest: expected .*, got"):
        cl_kernels.info_nce(*views(4), hardest=value)
    with pytest.raises(error, match=r"hardest: expected .*, got"):
        InfoNCELoss(hardest=value)


def test_explain_names_the_search():
    text = str(cl_kernels.explain(cl_kernels.info_nce, *views(B, D), hardest=4))
    assert "topk" in text
