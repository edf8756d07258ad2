"""NT-Xent of this library, and as it is usually written, to compare with."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels import PairFilter, nt_xent

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # two views [B, D], groups [B]


def make_loss(name: str, temperature: float) -> Loss:
    """The loss called ``name`` in the settings; this library's is that of all processes' batches.

    Two images of one group show the same thing (a letter in two fonts): they are no negatives.
    """
    compute = {"cl_kernels": _streamed, "eager": _eager}[name]
    return lambda view_0, view_1, groups: compute(view_0, view_1, temperature, groups)


def _streamed(view_0: Tensor, view_1: Tensor, temperature: float, groups: Tensor | None) -> Tensor:
    where = ()
    if groups is not None:
        both = torch.cat([groups, groups])
        where = PairFilter(both, both, "different")
    return nt_xent(view_0, view_1, temperature, where=where, gather="all")


def _eager(view_0: Tensor, view_1: Tensor, temperature: float, groups: Tensor | None) -> Tensor:
    z = F.normalize(torch.cat([view_0, view_1]).float())  # [2B, D]
    logits = z @ z.T / temperature
    batch = len(view_0)
    positive = torch.arange(2 * batch, device=z.device).roll(batch)
    if groups is None:
        return F.cross_entropy(logits.fill_diagonal_(-torch.inf), positive)
    both = torch.cat([groups, groups])
    same = both[:, None] == both
    same[torch.arange(2 * batch, device=z.device), positive] = False
    return F.cross_entropy(logits.masked_fill(same, -torch.inf), positive)
