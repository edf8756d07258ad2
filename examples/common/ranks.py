"""One process, or several that torchrun started, each with its part of every batch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Ranks(NamedTuple):
    """Where this process stands among all."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether it writes files and messages."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Its rows of a batch of ``count``.

        Raises:
            ValueError: The batch cannot be cut into parts of one size.
        """
        if count % self.size:
            raise ValueError(
                f"batch_size: expected a multiple of the {self.size} processes, got {count}"
            )
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, with gradients that are means over the processes where there are several."""
        return module if self.size == 1 else DistributedDataParallel(module)

    def wait(self) -> None:
        """For all others to come this far."""
        if self.size > 1:
            dist.barrier()


ALONE = Ranks()


def started_first() -> bool:
    """Whether this is the one process that speaks, before any group is there."""
    return os.environ.get("RANK", "0") == "0"


def expect_alone(what: str) -> None:
    """For what starts processes of its own.

    Raises:
        ValueError: torchrun started several.
    """
    if (count := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ValueError(f"{what}: expected one process, got {count}")


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Meets the other processes, if torchrun started this one; of GPUs each takes its own.

    Raises:
        ValueError: Several processes, and one GPU named for all.
    """
    if not dist.is_torchelastic_launched():
        yield ALONE
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    elif device != "cpu":
        raise ValueError(f"device: expected cpu or cuda with torchrun, got {device}")
    dist.init_process_group()  # gloo for tensors of the CPU, NCCL for a GPU's
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
