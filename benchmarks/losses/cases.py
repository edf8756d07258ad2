"""What is measured: one case is a loss or primitive at one size; grids say which cases."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.memory import MEGABYTE
from catalogue.losses import LOSSES, Goal
from cl_kernels.statistics.table import STATISTICS

PRIMITIVES = tuple(STATISTICS)
NAMES = *LOSSES, *PRIMITIVES

PLOTTED_WIDTH = 128
OTHER_WIDTHS = (64, 256, 768, 1024)


class Case(NamedTuple):
    """A loss or primitive whose similarity matrix is rows x rows, from embeddings of one width.

    ``nt_xent`` with 8192 rows is a batch of 4096 images in two views; ``clip`` and ``info_nce``
    with 8192 rows are 8192 pairs.
    """

    name: str
    rows: int
    width: int

    def __str__(self) -> str:
        return f"{self.name}-{self.rows}x{self.width}"

    @property
    def embedding_rows(self) -> int:
        """Rows of all embeddings together: two sets, or one that meets itself."""
        return self.rows if self.of_one else 2 * self.rows

    @property
    def of_one(self) -> bool:
        """Whether the similarity matrix is that of one set with itself."""
        if self.name in LOSSES:
            return LOSSES[self.name].views
        return STATISTICS[self.name].of_one

    @property
    def matrix_bytes(self) -> int:
        """Bytes of the similarity matrix in float32."""
        return 4 * self.rows**2

    @property
    def memory_limit(self) -> int:
        """Most bytes allowed beyond the inputs and their gradients."""
        if self.name in PRIMITIVES:
            return 64 * MEGABYTE
        return 3 * self.embedding_rows * self.width * 4 + 64 * MEGABYTE


GOALS: dict[Case, Goal] = {
    Case(name, *size): goal for name, case in LOSSES.items() for size, goal in case.goals.items()
}

# A 64 GB matrix: only what never makes it can run this.
HUGE = Case("nt_xent", 131072, 64)


def _rows(name: str, width: int, quick: bool) -> tuple[int, ...]:
    loss = name in LOSSES
    if quick:
        return (16, 64, 256, 1024, 4096) if loss else (256, 4096)
    if width != PLOTTED_WIDTH:
        return (16, 64, 256, 1024, 2048) if loss else (256, 2048)
    return tuple(2**i for i in range(4, 15)) if loss else (16, 64, 256, 1024, 4096, 16384)


def time_cases(names: Iterable[str] = NAMES, quick: bool = False) -> list[Case]:
    """The cases to time, smallest first for each name."""
    widths = (PLOTTED_WIDTH,) if quick else (PLOTTED_WIDTH, *OTHER_WIDTHS)
    cases = {
        Case(n, rows, width) for n in names for width in widths for rows in _rows(n, width, quick)
    }
    if not quick:
        cases |= {goal for goal in GOALS if goal.name in names}
    return sorted(cases, key=lambda case: (NAMES.index(case.name), case.rows, case.width))


def memory_cases(names: Iterable[str] = NAMES, quick: bool = False) -> list[tuple[Case, str]]:
    """The (case, contestant) pairs to weigh: ours everywhere, eager where its curve is plotted."""
    cases: list[tuple[Case, str]] = []
    for name in names:
        for rows in (1024, 4096) if quick else (256, 1024, 4096, 8192, 16384):
            case = Case(name, rows, PLOTTED_WIDTH)
            cases += [(case, "ours"), (case, "eager")]
        if not quick:
            # Wide enough that what grows with the embeddings is not hidden in the 64 MB.
            cases += [(Case(name, 8192, 768), "ours"), (Case(name, 16384, 1024), "ours")]
            cases += [(HUGE, "ours")] if name == HUGE.name else []
    return cases
