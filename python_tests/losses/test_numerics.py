"""Where other implementations overflow, saturate or return NaN."""

import pytest
import torch
import torch.nn.functional as F

import cl_kernels
from catalogue import textbook
from catalogue.family.labels import supcon as textbook_supcon
from cl_kernels import PairFilter
from python_tests.helpers import frobenius, unit_rows

pytestmark = pytest.mark.usefixtures("nan_filled_memory")
B, D = 24, 16
HALF = (torch.float32, torch.bfloat16, torch.float16)
each_dtype = pytest.mark.parametrize("dtype", HALF, ids=str)


def by_labels(form):
    """SupCon of two views of images as a loss of two sets."""
    labels = torch.arange(B).repeat(2)
    return lambda first, second, t, **more: form(
        torch.cat([first, second]), labels, temperature=t, **more
    )


# By name: ours and the textbook's, of (first, second, temperature).
FORMS = {
    "nt_xent": (cl_kernels.nt_xent, textbook.nt_xent),
    "info_nce": (
        lambda x, y, t, **more: cl_kernels.info_nce(x, y, temperature=t, **more),
        lambda x, y, t: textbook.info_nce(x, y, temperature=t),
    ),
    "clip": (
        lambda x, y, t, **more: cl_kernels.clip(x, y, 1 / t, normalize=True, **more),
        lambda x, y, t: textbook.clip(x, y, 1 / t, normalize=True),
    ),
    "siglip": (
        lambda x, y, t, **more: cl_kernels.siglip(x, y, 1 / t, -10.0, normalize=True, **more),
        lambda x, y, t: textbook.siglip(x, y, 1 / t, -10.0, normalize=True),
    ),
    "supcon": (by_labels(cl_kernels.supcon), by_labels(textbook_supcon)),
}
each_form = pytest.mark.parametrize("form", FORMS)


def evaluate(form, first, second, temperature, **more):
    leaves = [x.detach().clone().requires_grad_() for x in (first, second)]
    value = form(*leaves, temperature, **more)
    return value.detach(), torch.autograd.grad(value, leaves)


def check(form, first, second, temperature, backend):
    """float32 by the rule of accuracy; half types, whose rows are rounded before their products,
    no worse than eager PyTorch in that dtype. Returns the truth's value and gradients."""
    ours, truth = FORMS[form]
    value, grads = evaluate(ours, first, second, temperature, backend=backend)
    exact, expected = evaluate(truth, first.double(), second.double(), temperature)
    eager, eager_grads = evaluate(truth, first, second, temperature)
    single = first.dtype == torch.float32
    luck = torch.finfo(first.dtype).eps / 4
    worst = 3e-7 / temperature if single else max(frobenius(eager, exact), luck)
    assert (value - exact).abs() <= worst * exact.abs().clamp_min(1 if single else 0)
    for mine, theirs, correct in zip(grads, eager_grads, expected, strict=True):
        assert mine.isfinite().all()
        size = max(float(correct.norm()), 1e-2)
        error = float((theirs.double() - correct).norm()) / size
        error = error if error == error else float("inf")  # some have NaN
        allowed = 1e-5 / temperature / 100 if single else max(1.2 * error, 4 * luck)
        assert float((mine.double() - correct).norm()) / size <= allowed
    return exact, expected


@each_dtype
@each_form
def test_anti_aligned_pairs_at_a_low_temperature(backend, form, dtype):
    """Losses of 2 / T = 200 and more, whose gradient does not vanish."""
    first = unit_rows(B, D).to(dtype)
    value, grads = check(form, first, -first, 0.01, backend)
    assert value > 100
    assert all(grad.norm() > 0 for grad in grads)


def test_two_rows_and_their_opposites():
    """An implementation that clamps its exponents stops at 87.3, with a gradient of zero."""
    x = F.normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), dim=1)
    value, (grad, _) = evaluate(cl_kernels.nt_xent, x, -x, 0.0158)
    exact, (correct, _) = evaluate(textbook.nt_xent, x.double(), -x.double(), 0.0158)
    assert value > 87.4
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)
    assert frobenius(grad, correct) <= 1e-5 and correct.norm() > 1


@each_dtype
@each_form
def test_duplicates_of_the_anchor(backend, form, dtype):
    """Of half types the negatives' rows are rounded once more: logits of duplicates may differ
    from the positive's by as much."""
    first = unit_rows(B, D).to(dtype)
    second = (first.float() + 0.1 * torch.randn(B, D)).to(dtype)
    first[1], second[1], second[2] = first[0], second[0], first[0]
    ours, truth = FORMS[form]
    value, grads = evaluate(ours, first, second, 0.01, backend=backend)
    exact, expected = evaluate(truth, first.double(), second.double(), 0.01)
    rounding = 3e-5 if dtype == torch.float32 else 100 * torch.finfo(dtype).eps
    assert (value - exact).abs() <= rounding * max(1.0, float(exact))
    for grad, correct in zip(grads, expected, strict=True):
        assert frobenius(grad, correct) <= rounding


@each_dtype
@each_form
def test_all_rows_are_one(backend, form, dtype):
    """As after a collapse: the loss of a guess, and a gradient that is finite."""
    x = torch.ones(B, D, dtype=dtype)
    ours, truth = FORMS[form]
    value, grads = evaluate(ours, x, x, 0.1, backend=backend)
    exact, _ = evaluate(truth, x.double(), x.double(), 0.1)
    torch.testing.assert_close(value.double(), exact, rtol=2e-5, atol=0)
    assert all(grad.isfinite().all() for grad in grads)


@each_dtype
def test_padded_negatives_and_a_learned_temperature(backend, dtype):
    """Padding that is NaN, and a query with no negative at all, leave every gradient finite."""
    query, key, own = (unit_rows(n, D).to(dtype) for n in (B, B, 5 * B))
    own = own.view(B, 5, D)
    count = torch.arange(B) % 6
    own[torch.arange(5) >= count[:, None]] = torch.nan
    temperature = torch.tensor(0.02, requires_grad=True)
    leaves = [x.requires_grad_() for x in (query, key, own)]
    loss = cl_kernels.info_nce(
        *leaves, temperature=temperature, negative_mask=count, backend=backend
    )
    grads = torch.autograd.grad(loss, [*leaves, temperature])
    assert all(grad.isfinite().all() for grad in grads)
    exact = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    terms = []
    for i in range(B):
        rows = [key[i], *own[i, : count[i]]]
        keys = F.normalize(torch.stack(rows).detach().double(), dim=1)
        logits = keys @ F.normalize(query[i].detach().double(), dim=0) / exact
        terms.append(F.cross_entropy(logits, torch.tensor(0)))
    truth = torch.stack(terms).mean()
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-7)
    (expected,) = torch.autograd.grad(truth, exact)
    torch.testing.assert_close(grads[-1].double(), expected, rtol=1e-4, atol=1e-5)


@each_dtype
def test_rows_with_everything_masked(backend, dtype):
    x, y = (unit_rows(B, D).to(dtype).requires_grad_() for _ in range(2))
    ids = torch.zeros(B, dtype=torch.int64)
    nobody, views = PairFilter(ids, ids, "different"), ids.repeat(2)
    both = PairFilter(views, views, "different")
    for loss in (
        cl_kernels.info_nce(x, y, where=nobody, temperature=0.01, backend=backend),
        cl_kernels.clip(x, y, 100.0, where=nobody, backend=backend),
        cl_kernels.nt_xent(x, y, 0.01, where=both, backend=backend),
    ):
        assert loss == 0
        for grad in torch.autograd.grad(loss, (x, y)):
            assert (grad == 0).all()
