"""Rows of all ranks, for losses of one's own."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_kernels._precision import accumulator
from cl_kernels.ranks.agreement import Entry, agree, described, together
from cl_kernels.ranks.gathering import gather
from cl_kernels.ranks.group import Group, Ranks, without_compiling, world_size


@without_compiling
def gather_rows(*tensors: Tensor, group: Group | None = None) -> tuple[Tensor, ...]:
    """The rows of all ranks, rank 0's first; differentiable.

    Compute the same loss of them on every rank: the mean over the ranks of its gradients, which
    DistributedDataParallel takes, is then the gradient of one process with all rows.

    Args:
        tensors: Each [n, ...], of a number of rows that may differ from rank to rank: embeddings,
            labels, masks. All else of their shapes and dtypes must not differ.
        group: Of torch.distributed; default: all processes.

    Returns:
        As many tensors, [N, ...]; floating-point ones in float32 (float64 stays): a gradient is
        rounded once, after the ranks' parts are added. Alone, without a group, the rows given.

    Raises:
        TypeError, ValueError: On every rank; the message names what differs.

    Example::

        z, labels = gather_rows(encoder(images), labels)
        loss = my_loss(z, labels)
    """
    if group is None and world_size() == 1:
        for x in tensors:
            _check(x)
        return tuple(x.to(accumulator(x)) if x.is_floating_point() else x for x in tensors)
    ranks = Ranks(group)
    found = (x.device for x in tensors if isinstance(x, Tensor))
    device = next(found, torch.device("cpu"))
    together(ranks, "tensors", lambda: [_check(x) for x in tensors], device)
    entries = [Entry("tensors", described(x, cut=True), x.shape[0]) for x in tensors]
    counts = agree(ranks, "gather_rows", entries, device)
    return tuple(gather(ranks, tensors, counts))


def _check(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"tensors: expected tensors, got {type(x).__name__}")
    if x.dim() == 0 or x.layout != torch.strided:
        raise ValueError(f"tensors: expected dense rows [n, ...], got {described(x)}")
