"""What several programs found for one row or column: states of a fold, and their merging."""

from __future__ import annotations

from functools import cached_property

import torch
import triton
import triton.language as tl
from torch import Tensor

from .folds import Fold
from .launch import launch
from .problem import Problem
from .tiles import kernel, load_vector, store_each

BLOCK = 256
STATES = {float: torch.float32, int: torch.int32}  # of a state's numbers, by what a fold says
VALUES = {float: torch.float32, int: torch.int64}  # and of a statistic's values


@triton.jit
def load_state(STATE, offset, cols, N, like):
    # Triton 3.6 compiles what stands behind a return, unless that is in the other branch.
    first = load_vector(STATE[0] + offset, cols, N, False)
    if len(like) == 1:
        return (first,)
    elif len(like) == 2:
        return first, load_vector(STATE[1] + offset, cols, N, False)
    else:
        second = load_vector(STATE[1] + offset, cols, N, False)
        return first, second, load_vector(STATE[2] + offset, cols, N, False)


@kernel
def merge_kernel(
    PARTS, SUM, OUT, N, count, shift, RESUME: tl.constexpr, FOLD: tl.constexpr, BLOCK: tl.constexpr
):
    """OUT[n][j] = values of ``count`` states PARTS[n][part, j], merged in order.

    SUM[n][j]: the merged state, with which the next call begins if it is to RESUME.
    """
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    state = FOLD.begin(BLOCK)
    if RESUME:
        state = load_state(SUM, 0, cols, N, state)
    for part in range(count):
        offset = (tl.zeros((), tl.int64) + part) * N
        state = FOLD.merge(state, load_state(PARTS, offset, cols, N, state), shift)
    store_each(SUM, cols, state, cols < N)
    store_each(OUT, cols, FOLD.end(state, shift), cols < N)


class States:
    """Partial states of N rows, [parts, N] of each number, and the values they merge to, [N]."""

    def __init__(self, problem: Problem, fold: Fold, parts: int, N: int):
        self.problem, self.fold, self.N = problem, fold, N
        self.count = parts
        self.values = tuple(problem.empty(N, dtype=VALUES[type(x)]) for x in fold.empty)
        self.resume = False

    @cached_property
    def parts(self) -> tuple[Tensor, ...]:
        return self._empty(self.count, self.N)

    @cached_property
    def merged(self) -> tuple[Tensor, ...]:
        return self._empty(self.N)

    def _empty(self, *size: int) -> tuple[Tensor, ...]:
        return tuple(self.problem.empty(*size, dtype=STATES[type(x)]) for x in self.fold.nothing)

    def clear(self) -> None:
        """For kernels that write some of the parts."""
        for part, nothing in zip(self.parts, self.fold.nothing, strict=True):
            part.fill_(nothing)

    def merge(self, count: int) -> None:
        """Into ``values``: the first ``count`` parts, after what was merged before."""
        launch(
            merge_kernel, triton.cdiv(self.N, BLOCK), self.problem.device,
            (self.parts, self.merged, self.values, self.N, count, self.problem.shift),
            {"RESUME": self.resume, "FOLD": self.fold, "BLOCK": BLOCK},
        )  # fmt: skip
        self.resume = True
