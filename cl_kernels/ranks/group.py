"""Collectives of a group, with the errors of whoever waits for another process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup

# The second is its name before torch 2.13.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class OthersGone(RuntimeError):
    """Raised while waiting for another process: there is nobody left to be told anything."""


def world_size(group: Group | None = None) -> int:
    """1 where no group is initialised."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(group)


class Ranks:
    """The processes of a group.

    Args:
        group: None: all processes.

    Raises:
        TypeError, ValueError: It is no group, it was destroyed, or this process is not in it.
    """

    def __init__(self, group: Group | None = None):
        if group is not None and not isinstance(group, dist.ProcessGroup):
            kind = type(group).__name__
            if group is dist.GroupMember.NON_GROUP_MEMBER:
                raise ValueError("group: expected one that this process is in, got another")
            raise TypeError(f"group: expected a torch.distributed group or None, got {kind}")
        try:
            self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        except (RuntimeError, ValueError) as error:
            raise ValueError("group: expected a living one, got one that was destroyed") from error
        if self.rank < 0:
            raise ValueError("group: expected one that this process is in, got another")
        self.group = group

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Names what the others failed to do in time."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise OthersGone(
                f"group: rank {self.rank} of {self.size} waited for the others in vain: one has "
                "died or raised, is later than the group's timeout, or makes other calls"
            ) from error

    def all(self, x: Tensor) -> Tensor:
        """What every rank has, of one shape everywhere, stacked: [size, ...]."""
        gathered = x.new_empty((self.size, *x.shape))
        with self.waiting():
            # As bytes: not every backend takes every dtype.
            _all_gather(_bytes(gathered), _bytes(x), self.group)
        return gathered

    def rows(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all ranks, so many of each, one after the other."""
        most = max(counts)
        if min(counts) == most:
            return self.all(x.contiguous()).flatten(0, 1)
        padded = x.new_zeros((most, *x.shape[1:]))
        padded[: x.shape[0]] = x
        return torch.cat([part[:n] for part, n in zip(self.all(padded), counts, strict=True)])

    def sum_of_own(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Of rows that belong to the ranks, so many to each: the sum of all ranks' versions of this
        rank's, in the order of the ranks."""
        total, *others = self.versions_of_own(x, counts)
        for other in others:
            total += other
        return total

    def versions_of_own(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Of rows that belong to the ranks, so many to each: every rank's version of this rank's,
        [size, ...]."""
        own = counts[self.rank]
        versions = x.new_empty((self.size * own, *x.shape[1:]))
        sent = [own] * self.size, list(counts)
        with self.waiting():
            dist.all_to_all_single(versions, x.contiguous(), *sent, self.group)
        return versions.view(self.size, own, *x.shape[1:])

    def sum(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        with self.waiting():
            dist.all_reduce(x, group=self.group)
        return x

    def logsumexp(self, x: Tensor) -> Tensor:
        """Element by element; where one rank alone has more than -inf, its own bits."""
        top = x.nan_to_num(torch.inf, torch.inf, -torch.inf).contiguous()
        with self.waiting():
            dist.all_reduce(top, dist.ReduceOp.MAX, group=self.group)
        top.masked_fill_(top == -torch.inf, 0)
        return self.sum((x - top).exp_()).log_().add_(top)

    def pass_on(self, tensors: Sequence[Tensor], rows: int) -> Callable[[], list[Tensor]]:
        """Sends these to the next rank and receives such of so many rows from the one before; what
        is returned waits for them."""
        following, previous = ((self.rank + step) % self.size for step in (1, -1))
        received = [x.new_empty((rows, *x.shape[1:])) for x in tensors]
        each = [(dist.isend, x.contiguous(), following) for x in tensors if x.numel()]
        each += [(dist.irecv, x, previous) for x in received if x.numel()]
        operations = [dist.P2POp(f, _bytes(x), self._global(r), self.group) for f, x, r in each]
        with self.waiting():
            works = dist.batch_isend_irecv(operations) if operations else []

        def wait() -> list[Tensor]:
            with self.waiting():
                for work in works:
                    work.wait()
            operations.clear()  # what is on its way must not be freed before
            return received

        return wait

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


def _bytes(x: Tensor) -> Tensor:
    # A tensor of one number may have any stride and is contiguous.
    return x.as_strided((x.numel(),), (1,)).view(torch.uint8)


def without_compiling(function: Callable[..., Any]) -> Callable[..., Any]:
    """What torch.compile leaves to Python, with all that it calls: ``torch.compiler.disable``,
    which would import torch._dynamo for everybody who imports this package."""

    @wraps(function)
    def call(*args, **options):
        dynamo = sys.modules.get("torch._dynamo")
        return (function if dynamo is None else dynamo.disable(function))(*args, **options)

    vars(call)["_torchdynamo_disable"] = True
    return call
