"""A step that fails: what it had changed is put back, and no rank is left waiting for another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cl_kernels.grad_cache.replay import ModuleState, RandomStates


@contextmanager
def undone_by_errors(
    states: Iterable[ModuleState], leaves: Iterable[Tensor] = ()
) -> Iterator[None]:
    """Whatever ends the block: buffers and random numbers are as before, and no ``.grad`` is new.

    To put back a ``.grad`` that was there would take a copy of it.
    """
    random_state = RandomStates(1)
    without = [x for x in leaves if x.is_leaf and x.grad is None]
    try:
        yield
    except BaseException:
        random_state.restore(0)
        for state in states:
            state.restore()
        for x in without:
            x.grad = None
        raise


def check_finite(loss: Tensor, ddp: list[DistributedDataParallel]) -> None:
    """Raises if the loss of this rank, or of another one in the same DDP, is not finite.

    The others would wait in their backward passes for one that raised alone: hence one all-reduce
    of a number, where there are others.
    """
    failed = not bool(torch.isfinite(loss))
    last = _last_failed(failed, ddp[0]) if ddp else -1
    if failed:
        raise FloatingPointError(f"loss: expected a finite number, got {loss.item()}")
    if last >= 0:
        raise FloatingPointError(
            f"loss: expected a finite number on every rank, got another on rank {last}"
        )


def _last_failed(failed: bool, ddp: DistributedDataParallel) -> int:
    """The last rank of the group that failed, or -1."""
    group = ddp.process_group
    if dist.get_world_size(group) == 1:
        return -1
    device = next(ddp.parameters()).device
    rank = torch.tensor(dist.get_rank(group) if failed else -1, device=device)
    dist.all_reduce(rank, dist.ReduceOp.MAX, group)
    return int(rank)
