"""The precision boundary: embeddings become float32 rows of unit length once, and their gradients
are rounded to the embeddings' dtype once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cl_kernels._numbers import check_flag
from cl_kernels._tracing import in_graph
from cl_kernels._transforms import check_backward, differentiable

# As torch.nn.functional.normalize: a zero row stays zero instead of becoming NaN.
_SMALLEST_NORM = 1e-12


def stack_rows(inputs: Sequence[Tensor], normalize: bool) -> tuple[Tensor, Tensor | None]:
    """The inputs' rows stacked, in float32 (or float64), and the norms they were divided by."""
    rows = torch.cat(tuple(inputs)) if len(inputs) > 1 else inputs[0].contiguous()
    if rows.dtype != torch.float64:
        rows = rows.float()
    if not normalize:
        return rows, None
    norm = norms_of(rows)[:, None]
    return rows / norm, norm


def norms_of(rows: Tensor) -> Tensor:
    """[R]; of a zero row almost zero."""
    return torch.linalg.vector_norm(rows, dim=1).clamp_min_(_SMALLEST_NORM)


def unstack_gradient(grad_rows: Tensor, rows: Tensor, norm: Tensor | None) -> Tensor:
    """The gradient of the inputs, still stacked, from that of their rows, which it overwrites."""
    if norm is not None:
        along = (rows * grad_rows).sum(1, keepdim=True)
        grad_rows.addcmul_(rows, along, value=-1).div_(norm)
    return grad_rows


class _UnitRows(torch.autograd.Function):
    """Composed from torch's operations the same takes three more copies of the embeddings."""

    @staticmethod
    def forward(ctx: Any, x: Tensor):
        rows, norm = stack_rows((x,), normalize=True)
        ctx.save_for_backward(rows, norm)
        ctx.dtype = x.dtype
        return rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        rows, norm = ctx.saved_tensors
        along = (rows * grads[0]).sum(1, keepdim=True)
        return torch.addcmul(grads[0], rows, along, value=-1).div_(norm).to(ctx.dtype)


def float_rows(x: Tensor, *, normalize: bool) -> Tensor:
    """Differentiable rows of x in float32 (or float64), of unit length if ``normalize``."""
    check_flag("normalize", normalize)
    if normalize:
        return _unit_rows(x)
    return x if x.dtype == torch.float64 else x.float()


def float_rows_of(*inputs: Tensor, normalize: bool) -> tuple[Tensor, ...]:
    """``float_rows`` of each, made in one call: at small batches it is calls that take the time."""
    check_flag("normalize", normalize)
    if not normalize:
        return tuple(float_rows(x, normalize=False) for x in inputs)
    rows = _unit_rows(torch.cat(inputs))
    return torch.split_with_sizes(rows, [x.shape[0] for x in inputs])


@in_graph
def _unit_rows(x: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and x.requires_grad):
        return stack_rows((x,), normalize=True)[0]
    return differentiable(_UnitRows, x)
