"""What people pass: dtypes mixed by autocast, numbers of NumPy and FSDP, lists, masks, padding."""

import numpy as np
import pytest
import torch

import cl_kernels
from cl_kernels import CSR, PairFilter, clip, info_nce, nt_xent, row_logsumexp, topk
from python_tests.helpers import unit_rows

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32


def mixed(*dtypes):
    return tuple(torch.randn(6, 8).to(dtype).requires_grad_() for dtype in dtypes)


MIXED = {
    "bfloat16 query, float32 queue": (
        lambda q, k, n: info_nce(q, k, n), (BFLOAT16, BFLOAT16, FLOAT32),
    ),
    "float32 image, bfloat16 text": (lambda i, t: clip(i, t, 10.0), (FLOAT32, BFLOAT16)),
    "float16 view, bfloat16 view": (nt_xent, (torch.float16, BFLOAT16)),
    "float32 queue of NT-Xent": (
        lambda a, b, q: nt_xent(a, b, negative_keys=q), (BFLOAT16, BFLOAT16, FLOAT32),
    ),
    "statistic": (lambda q, k: row_logsumexp(q, k).sum(), (BFLOAT16, FLOAT32)),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_dtypes_that_autocast_mixes(name):
    """As in eager products under autocast: multiplied in its dtype, gradients in each one's own."""
    call, dtypes = MIXED[name]
    inputs = mixed(*dtypes)
    with torch.autocast("cpu", BFLOAT16):
        loss = call(*inputs)
    gradients = torch.autograd.grad(loss, inputs)
    assert [g.dtype for g in gradients] == list(dtypes)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = call(*exact)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-2, atol=2e-2)
    for found, truth in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
        assert (found.double() - truth).norm() <= 0.05 * truth.norm()


@pytest.mark.parametrize("name", MIXED)
def test_mixed_dtypes_without_autocast_are_refused(name):
    call, dtypes = MIXED[name]
    with pytest.raises(TypeError, match=r"expected the dtype of .*, got"):
        call(*mixed(*dtypes))


def test_topk_casts_the_query_to_the_corpus_dtype(backend):
    query, corpus = unit_rows(5, 16), unit_rows(40, 16)
    for dtype in (torch.float16, BFLOAT16, torch.float64):
        found = topk(query, corpus.to(dtype), 3, backend=backend)
        expected = topk(query.to(dtype), corpus.to(dtype), 3, backend=backend)
        torch.testing.assert_close(tuple(found), tuple(expected))


NUMBERS = (0.25, np.float32(0.25), np.float64(0.25), torch.tensor(0.25), torch.tensor([0.25]),
           torch.tensor([0.25], dtype=torch.float64))  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
def test_numbers_of_any_kind(number):
    x, y = unit_rows(6, 4), unit_rows(6, 4)
    for call in (
        lambda n: nt_xent(x, y, n),
        lambda n: info_nce(x, y, temperature=n),
        lambda n: clip(x, y, n),
        lambda n: row_logsumexp(x, y, n).sum(),
        lambda n: cl_kernels.pair_logits(x, y, n).sum(),
        lambda n: cl_kernels.NTXentLoss(n)(x, y),
    ):
        assert call(number).shape == ()
        torch.testing.assert_close(call(number), call(0.25))


def test_a_scale_of_one_element_is_trained():
    """FSDP has no parameters without a dimension."""
    x, y = unit_rows(6, 4), unit_rows(6, 4)
    flat, scalar = (torch.tensor(v, requires_grad=True) for v in ([2.0], 2.0))
    for scale in (flat, scalar):
        clip(x, y, scale).backward()
    assert flat.grad.shape == (1,)
    torch.testing.assert_close(flat.grad[0], scalar.grad)


@pytest.mark.parametrize(
    ("value", "dtype", "error"),
    [
        (1e-40, FLOAT32, r"temperature: expected a number whose inverse is finite in torch.fl"),
        (torch.tensor(1e-40), FLOAT32, r"temperature: expected a number whose inverse is finite"),
        (0.0, FLOAT32, r"temperature: expected a finite number other than zero, got 0.0"),
        (1e-320, torch.float64, r"temperature: expected a number whose inverse is finite"),
    ],
)  # fmt: skip
def test_temperatures_whose_inverse_overflows(value, dtype, error):
    x, y = unit_rows(4, 3, dtype), unit_rows(4, 3, dtype)
    for call in (nt_xent, lambda x, y, t: info_nce(x, y, temperature=t)):
        with pytest.raises(ValueError, match=error):
            call(x, y, value)


def test_scales_that_overflow():
    x = unit_rows(4, 3)
    with pytest.raises(ValueError, match="logit_scale: expected a number that is finite in"):
        clip(x, x, 1e39)
    with pytest.raises(ValueError, match="scale: expected a number that is finite in"):
        row_logsumexp(x, x, 1e39)
    clip(x.double(), x.double(), 1e39)


@pytest.mark.parametrize("logits", [1e3, 1e5, 1e7, 1e9])
def test_gradients_at_large_logits(logits, backend):
    """Of float32 they keep what plain torch keeps, however large the logits."""
    x, y = unit_rows(60, 16), unit_rows(60, 16)
    for call in (
        lambda a, b: row_logsumexp(a, b, logits).sum(),
        lambda a, b: clip(a, b, logits),
        lambda a, b: nt_xent(a, b, 1 / logits, reduction="none").sum(),
    ):
        leaves = [z.clone().requires_grad_() for z in (x, y)]
        exact = [z.double().requires_grad_() for z in (x, y)]
        with cl_kernels.use_backend(backend):
            gradients = torch.autograd.grad(call(*leaves), leaves)
        for found, truth in zip(gradients, torch.autograd.grad(call(*exact), exact), strict=True):
            assert (found - truth).norm() <= 3e-4 * truth.norm()


def test_a_temperature_in_float16_is_inverted_in_float32():
    x, y = unit_rows(4, 8, torch.float16), unit_rows(4, 8, torch.float16)
    temperature = torch.tensor(1e-7, dtype=torch.float16)
    found = nt_xent(x, y, temperature)
    torch.testing.assert_close(found, nt_xent(x, y, temperature.item()))
    assert found.isfinite()


def test_integers_of_numpy():
    x, y = unit_rows(6, 4), unit_rows(9, 4)
    torch.testing.assert_close(tuple(topk(x, y, np.int64(3))), tuple(topk(x, y, 3)))
    torch.testing.assert_close(
        info_nce(x, y[:6], hardest=np.int32(2)), info_nce(x, y[:6], hardest=2)
    )


def test_queries_of_numpy():
    x, y = unit_rows(6, 4), unit_rows(9, 4)
    torch.testing.assert_close(tuple(topk(x.numpy(), y.numpy(), 3)), tuple(topk(x, y, 3)))
    mined, expected = (
        cl_kernels.mine_hard_negatives(q, y.numpy(), [[i] for i in range(6)], num_negatives=2)
        for q in (x.numpy(), x)
    )
    assert mined.indices.equal(expected.indices)


def test_no_filter():
    x, y = unit_rows(6, 4), unit_rows(6, 4)
    for call in (nt_xent, info_nce, row_logsumexp, lambda *a, where: topk(*a, 2, where=where)[0]):
        torch.testing.assert_close(call(x, y, where=None), call(x, y, where=()))


def test_ids_in_lists():
    x, y, labels = unit_rows(6, 4), unit_rows(6, 4), [0, 1, 2, 0, 1, 2]
    expected = row_logsumexp(
        x, y, where=PairFilter(torch.tensor(labels), torch.tensor(labels), "different")
    )
    for ids in (labels, tuple(labels), np.array(labels), np.array(labels, dtype=np.int32)):
        found = row_logsumexp(x, y, where=PairFilter(ids, ids, "different"))
        torch.testing.assert_close(found, expected)


LEFT_OUT = [[3, 1], [], [0], [8, 2, 4], [], [5]]


def as_mask(lists, columns):
    mask = torch.zeros(len(lists), columns, dtype=torch.bool)
    for row, keys in enumerate(lists):
        mask[row, keys] = True
    return mask


def test_what_to_leave_out_in_every_form(backend):
    query, key = unit_rows(6, 4), unit_rows(9, 4)
    expected = topk(query, key, 9, exclude=CSR.from_lists(LEFT_OUT), backend=backend)
    scores = (query @ key.T).masked_fill(as_mask(LEFT_OUT, 9), -torch.inf)
    torch.testing.assert_close(expected.values, scores.sort(1, descending=True).values)
    padded = torch.tensor([[*keys, -1, -1, -1][:3] for keys in LEFT_OUT])
    named = {row: keys for row, keys in enumerate(LEFT_OUT) if keys}
    for form in (LEFT_OUT, named, padded, padded.flip(1), as_mask(LEFT_OUT, 9)):
        found = topk(query, key, 9, exclude=form, backend=backend)
        torch.testing.assert_close(tuple(found), tuple(expected), rtol=0, atol=0)
    kept = topk(query, key, 9, keep=~as_mask(LEFT_OUT, 9), backend=backend)
    torch.testing.assert_close(tuple(kept), tuple(expected), rtol=0, atol=0)


@pytest.mark.parametrize("keys", [[True, False], [0.5], [torch.tensor(1.5)]], ids=str)
def test_lists_that_are_no_indices(keys):
    with pytest.raises(TypeError, match=r"exclude: lists: expected lists of integers, got"):
        topk(unit_rows(1, 4), unit_rows(9, 4), 2, exclude=[keys])


def test_kept_and_left_out_together(backend):
    query, key = unit_rows(6, 4), unit_rows(9, 4)
    keep = torch.rand(6, 9) < 0.7
    both = as_mask(LEFT_OUT, 9) | ~keep
    found = topk(query, key, 9, keep=keep, exclude=LEFT_OUT, backend=backend)
    expected = topk(query, key, 9, exclude=both, backend=backend)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=0, atol=0)


class TestOwnNegatives:
    """Each query's own negatives, of which some are padding."""

    COUNTS = torch.tensor([3, 0, 5, 1])

    def setup_method(self):
        self.query, self.key = unit_rows(4, 6), unit_rows(4, 6)
        self.negatives = torch.randn(4, 5, 6)
        self.mask = torch.arange(5) < self.COUNTS[:, None]

    def expected(self, **options):
        """Query by query, on the negatives it has."""
        rows = []
        for i, count in enumerate(self.COUNTS.tolist()):
            own = self.negatives[None, i, :count]
            one = slice(i, i + 1)
            rows.append(
                info_nce(self.query[one], self.key[one], own, **options)
                if count
                else self.query.new_zeros(())
            )
        return torch.stack(rows)

    @pytest.mark.parametrize("options", [{}, {"hardest": 2}, {"temperature": -0.3}], ids=str)
    @pytest.mark.parametrize("padding", [0.0, float("nan"), float("inf")])
    def test_padding_is_no_negative(self, options, padding):
        padded = self.negatives.masked_fill(~self.mask[..., None], padding)
        leaves = [x.requires_grad_() for x in (self.query, self.key, padded)]
        for mask in (self.mask, self.COUNTS, self.COUNTS.int()):
            found = info_nce(*leaves, negative_mask=mask, reduction="none", **options)
            torch.testing.assert_close(found, self.expected(**options))
            for gradient in torch.autograd.grad(found.sum(), leaves):
                assert gradient.isfinite().all()
            assert (gradient[~self.mask] == 0).all()
        module = cl_kernels.InfoNCELoss(
            options.get("temperature", 0.1), hardest=options.get("hardest")
        )
        total = module(*leaves, negative_mask=self.mask)
        torch.testing.assert_close(total, found.mean())

    def test_refused(self):
        arguments = self.query, self.key
        for mask, negatives, error in (
            (self.mask, None, "negative_mask: expected negative_keys of shape"),
            (self.mask, self.negatives[0], "negative_mask: expected negative_keys of shape"),
            (self.mask[:, :2], self.negatives, r"negative_mask: expected bool of shape \[4, 5\]"),
            (self.COUNTS.float(), self.negatives, "negative_mask: expected .* got torch.float32"),
        ):
            with pytest.raises(ValueError, match=error):
                info_nce(*arguments, negatives, negative_mask=mask)
        with pytest.raises(TypeError, match="negative_mask: expected a tensor, got list"):
            info_nce(*arguments, self.negatives, negative_mask=[1, 2, 3, 4])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_that_are_not_dense():
    x = unit_rows(4, 4)
    nested = torch.nested.nested_tensor([x[:2], x[2:]])
    others = {"torch.sparse_coo": x.to_sparse(), "nested": nested}
    for kind, other in others.items():
        for call in (nt_xent, info_nce, row_logsumexp, lambda a, b: topk(a, b, 1)):
            for pair in ((x, other), (other, x)):
                with pytest.raises(TypeError, match=f"expected a dense tensor, got a {kind} one"):
                    call(*pair)
