"""Each query's positive against its negatives: what most losses come down to.

``loss = softplus(negatives - positive)``, where ``negatives`` is a log-sum-exp over negatives only
and the positive is one dot product. ``-log softmax`` over all keys is the same number, but in
float32 ``lse_all - positive`` loses every digit of a small loss.

``SelfContrast`` and ``PairContrast`` are the composition of ``stack_rows``, a statistic and
``contrast``, differentiated by hand: the positives' gradient is added into the statistic's own
buffer. ``fused`` is the same in one call of the compiled CPU library: at small batches torch's
bookkeeping costs more than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels import _recording
from cl_kernels._dispatch import choose
from cl_kernels._ops import overload
from cl_kernels._tracing import in_graph
from cl_kernels._transforms import check_backward, differentiable
from cl_kernels.calls import CallOptions, call_options, note_call, scale_tensor
from cl_kernels.losses.common import total
from cl_kernels.losses.rows import stack_rows, unstack_gradient
from cl_kernels.pairs import PairFilter


def contrast(negatives: Tensor, positive: Tensor) -> Tensor:
    """``softplus(negatives - positive)``; no negative at all (-inf) gives loss 0."""
    return F.softplus(negatives - positive, threshold=40)


def _halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of both views. (``chunk`` would have torch.export take the batch for a constant.)"""
    half = rows.shape[0] // 2
    return rows[:half], rows[half:]


class SelfContrast(NamedTuple):
    """Every row of two stacked views: its other view against the rows that are kept."""

    normalize: bool
    backend: str
    options: CallOptions
    statistic: str

    def count(self, views: Sequence[Tensor]) -> int:
        return views[0].shape[0] + views[1].shape[0]

    def losses(self, views: Sequence[Tensor], scale: Tensor) -> tuple[Tensor, tuple]:
        """Losses of all rows, [2B], and what their gradients need."""
        rows, norm = stack_rows(views, self.normalize)
        lse = overload(self.statistic, self.backend)(rows, scale, *self.options)
        first, second = _halves(rows)
        similarity = (first * second).sum(1)  # [B]
        margin = lse.view(2, -1) - scale * similarity  # [2, B]
        losses = F.softplus(margin, threshold=40).view(-1)
        return losses, (rows, norm, scale, lse, similarity, margin)

    def fused(self, views, scale: Tensor, mean: bool, needs: Sequence[bool]) -> tuple:
        """Losses of all rows, and gradients of their mean or sum."""
        compute = overload("self_contrast", self.backend)
        losses, grad_scale, grad_rows = compute(
            *views, scale, *self.options, self.normalize, mean, needs
        )
        return losses, grad_scale, *_halves(grad_rows)

    def gradients(self, state: tuple, grad: Tensor, needs: Sequence[bool]) -> tuple:
        """Of the scale and the views, in float32, for ``grad`` [2B] or [] of the losses."""
        rows, norm, scale, lse, similarity, margin = state
        pull = margin.sigmoid() * (grad.view(2, -1) if grad.dim() else grad)
        compute = overload(f"{self.statistic}_backward", self.backend)
        grad_rows, grad_scale = compute(pull.view(-1), lse, rows, scale, *self.options)
        pull = pull.sum(0)  # d loss / d positive is its negative
        weight = (scale * pull)[:, None]
        (first, second), (grad_first, grad_second) = _halves(rows), _halves(grad_rows)
        grad_first.addcmul_(second, weight, value=-1)
        grad_second.addcmul_(first, weight, value=-1)
        grad_scale = grad_scale - (pull * similarity).sum() if needs[0] else None
        return grad_scale, *_halves(unstack_gradient(grad_rows, rows, norm))


class PairContrast(NamedTuple):
    """Query i: key i against the keys that are kept; of two directions, the mean."""

    normalize: bool
    backend: str
    options: CallOptions
    statistic: str

    def count(self, pair: Sequence[Tensor]) -> int:
        return pair[0].shape[0]

    def losses(self, pair: Sequence[Tensor], scale: Tensor) -> tuple[Tensor, tuple]:
        """Losses of all queries, [B], and what their gradients need."""
        rows, row_norm = stack_rows(pair[:1], self.normalize)
        keys, key_norm = stack_rows(pair[1:], self.normalize)
        lse = overload(self.statistic, self.backend)(rows, keys, scale, *self.options)
        lse = torch.stack(lse) if isinstance(lse, tuple) else lse[None]  # [directions, B]
        similarity = (rows * keys).sum(1)  # [B]
        margin = lse - scale * similarity  # [directions, B]
        losses = F.softplus(margin, threshold=40)
        losses = losses.mean(0) if len(losses) > 1 else losses[0]
        return losses, (rows, row_norm, keys, key_norm, scale, lse, similarity, margin)

    def fused(self, pair, scale: Tensor, mean: bool, needs: Sequence[bool]) -> tuple:
        """Losses of all queries, and gradients of their mean or sum."""
        compute = overload("pair_contrast", self.backend)
        symmetric = self.statistic == "row_col_logsumexp"
        return compute(*pair, scale, *self.options, self.normalize, mean, needs, symmetric)

    def gradients(self, state: tuple, grad: Tensor, needs: Sequence[bool]) -> tuple:
        """Of the scale, the query and the key, in float32, for ``grad`` [B] or [] of the losses."""
        rows, row_norm, keys, key_norm, scale, lse, similarity, margin = state
        needs_scale, needs_query, needs_key = needs
        pull = margin.sigmoid() * (grad / len(margin))
        compute = overload(f"{self.statistic}_backward", self.backend)
        by_query = needs_query or not needs_key  # <query, grad> gives the scale's
        grad_rows, grad_keys, grad_scale = compute(
            *pull.unbind(), *lse.unbind(), rows, keys, scale, *self.options, by_query, needs_key
        )
        pull = pull.sum(0)  # d loss / d positive is its negative
        weight = (scale * pull)[:, None]
        grad_query = grad_key = None
        if needs_query:
            grad_rows.addcmul_(keys, weight, value=-1)
            grad_query = unstack_gradient(grad_rows, rows, row_norm)
        if needs_key:
            grad_keys.addcmul_(rows, weight, value=-1)
            grad_key = unstack_gradient(grad_keys, keys, key_norm)
        grad_scale = grad_scale - (pull * similarity).sum() if needs_scale else None
        return grad_scale, grad_query, grad_key


_KINDS = {
    "self_logsumexp": SelfContrast,
    "row_logsumexp": PairContrast,
    "row_col_logsumexp": PairContrast,
}


def contrast_of(
    statistic: str,
    embeddings: tuple[Tensor, Tensor],
    scale: float | Tensor,
    excluded: Tensor,
    where: tuple[PairFilter, ...],
    *,
    normalize: bool,
    logit_bound: float | None,
    reduction: str,
    backend: str | None,
) -> Tensor:
    """The reduced losses, or those of all rows for ``reduction="none"``.

    ``excluded``: ids of queries and keys alike; pairs of equal ids are no negatives.
    """
    first, second = embeddings
    M, N = first.shape[0], second.shape[0]
    if _KINDS[statistic] is SelfContrast:
        M = N = M + N
    options = call_options(first, (M, N), where, None, logit_bound, (excluded, excluded))
    name = choose(backend, first.device, first.dtype)
    if _recording.active():
        rows, _ = note_call(statistic, name, backend, first, (M, N), options.compute_dtype)
        return total(rows, reduction)
    return _contrast_of(statistic, normalize, reduction, name, options, scale, first, second)


@in_graph
def _contrast_of(
    statistic: str,
    normalize: bool,
    reduction: str,
    backend: str,
    options: CallOptions,
    scale: float | Tensor,
    *embeddings: Tensor,
) -> Tensor:
    contrast = _KINDS[statistic](normalize, backend, options.concrete(), statistic)
    factor = scale_tensor(scale, embeddings[0])
    if reduction == "none":
        return differentiable(_RowLosses, contrast, factor, *embeddings)
    needs = tuple(torch.is_grad_enabled() and x.requires_grad for x in (factor, *embeddings))
    if not any(needs):
        return _total_and_gradients(contrast, reduction, needs, factor, embeddings)[0]
    return differentiable(_TotalLoss, contrast, reduction, needs, factor, *embeddings)


def _total_and_gradients(contrast, reduction: str, needs, scale: Tensor, embeddings) -> tuple:
    mean = reduction == "mean"
    if contrast.backend == "native" and scale.device.type == "cpu":
        embeddings = [x.contiguous() for x in embeddings]
        losses, *gradients = contrast.fused(embeddings, scale, mean, needs)
    else:
        losses, state = contrast.losses(embeddings, scale)
        gradients = needs  # none is wanted
        if any(needs):
            share = losses.new_ones(()) / max(contrast.count(embeddings) if mean else 1, 1)
            gradients = contrast.gradients(state, share, needs)
    wanted = (g if need else None for g, need in zip(gradients, needs, strict=True))
    return total(losses, reduction), *wanted


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, contrast, scale, first, second):
        losses, state = contrast.losses((first, second), scale)
        contrast.options.save(ctx, *state)
        ctx.contrast, ctx.dtype = contrast, first.dtype
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        needs = ctx.needs_input_grad[1:]
        state, options = CallOptions.saved(ctx)
        contrast = ctx.contrast._replace(options=options)
        grad_scale, *rest = contrast.gradients(state, grads[0], needs)
        return None, grad_scale, *(None if g is None else g.to(ctx.dtype) for g in rest)


class _TotalLoss(torch.autograd.Function):
    """Makes the gradients in the forward pass: of a total they are known up to one factor, and
    keeping them takes no more memory than what they are made from."""

    @staticmethod
    def forward(ctx: Any, contrast, reduction, needs, scale, first, second):
        loss, *gradients = _total_and_gradients(contrast, reduction, needs, scale, (first, second))
        ctx.save_for_backward(*gradients)
        ctx.dtype = first.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        (grad,) = grads
        grad_scale, *rest = ctx.saved_tensors
        grad_scale = None if grad_scale is None else grad * grad_scale
        rest = (None if g is None else (grad * g).to(ctx.dtype) for g in rest)
        return None, None, None, grad_scale, *rest
