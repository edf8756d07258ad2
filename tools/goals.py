"""Predicted times of whole losses at the sizes we aim for, on an H100 SXM; see ``tools.cost``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.gpu import cases
from benchmarks.gpu.cases import GpuCase
from cl_kernels.backends.gpu.cuts import Slabs
from tools.compiled import Compiled
from tools.cost import Tile

if TYPE_CHECKING:
    from cl_kernels.backends.triton.configs import Config
    from cl_kernels.backends.triton.variants import Variant

CUBLAS_FLOPS = 700e12  # assumed of cuBLAS where it adds a product to float32 sums


@dataclass
class Call:
    """A kernel as a loss calls it: whole tiles, bfloat16, the filter that drops the positives."""

    family: str
    width: int
    kernel: int = 0  # which of the family's
    filtered: bool = True
    bounded: bool = False  # logits: a fixed shift, no running maximum
    rows_only: bool = False  # no term of the columns
    candidate: bool = False  # with the line that is tried beside the table's

    @property
    def config(self) -> Config:
        from cl_kernels.backends.triton import configs, table

        padded = configs.padded_width(self.width)
        if self.candidate:
            return table.CANDIDATES[configs.line(90, self.family, "half", padded)]
        family = configs.family_for(90, self.family, "half", self.filtered)
        return configs.configured(90, family, "half", padded)

    def variant(self) -> Variant:
        from cl_kernels.backends.triton import configs, variants

        keeps = (variants.KEEP_DIFFERENT,) if self.filtered else ()
        fold = variants.BOUNDED_LOGSUMEXP if self.bounded else variants.LOGSUMEXP
        use = variants.Use(
            "as a loss calls it", keeps=keeps, fold=fold, rows_only=self.rows_only, options=False
        )
        kernel = variants.KERNELS[self.family][self.kernel]
        padded = configs.padded_width(self.width)
        return variants.variant(kernel, self.family, "half", padded, self.config, use)


CALLS: dict[str, Call] = {
    "forward 512": Call("row_forward", 512, filtered=False, bounded=True),
    "forward 768": Call("row_forward", 768, filtered=False, bounded=True),
    "forward 1024": Call("row_forward", 1024, filtered=False, bounded=True),
    "info_nce forward": Call("row_forward", 1024, bounded=True),
    "info_nce weights": Call("weights", 1024, rows_only=True),
    "nt_xent forward": Call("self_forward", 512, bounded=True),
    "nt_xent weights": Call("weights", 512, kernel=1),
    "clip 512 forward": Call("row_col_forward", 512),
    "clip 512 weights": Call("weights", 512),
    "clip 768 forward": Call("row_col_forward", 768),
    "clip 768 weights": Call("weights", 768),
}

_TRIED = "nt_xent weights", "clip 768 weights", "info_nce"
CANDIDATES = {
    f"candidate {name}": replace(call, candidate=True)
    for name, call in CALLS.items()
    if name.startswith(_TRIED)
}
CANDIDATES["candidate topk 256"] = Call("topk", 256, filtered=False, candidate=True)


class Goal(NamedTuple):
    """A loss (or a forward pass) at one size, and the kernels that serve it."""

    case: GpuCase
    calls: tuple[str, ...]
    products: int  # of cuBLAS with all pairs' weights

    @property
    def name(self) -> str:
        words = ["deterministic"] * self.case.deterministic + ["forward"] * self.case.forward_only
        return ", ".join([self.case.name, *words])

    @property
    def seconds(self) -> float:
        assert self.case.goal is not None
        return self.case.goal

    def pairs(self, call: str) -> float:
        """How many a kernel visits; of a Gram matrix, half of them and the other half of what
        stands on the diagonal."""
        rows = self.case.rows
        if self.case.name != "nt_xent":
            return float(rows**2)
        slabs = Slabs.of(rows, rows, itemsize=2)
        weights = CALLS[call].family == "weights"
        edge = slabs.row_step if weights else CALLS[call].config.BLOCK_M
        return rows * (rows + edge) / 2


def _goal(case: GpuCase) -> Goal:
    if case.forward_only:
        return Goal(case, (f"forward {case.width}",), 0)
    calls = f"clip {case.width}" if case.name == "clip" else case.name
    return Goal(case, (f"{calls} forward", f"{calls} weights"), 1 if case.name == "nt_xent" else 2)


GOALS = tuple(map(_goal, (*cases.GOALS, cases.HUGE)))


def parts(goal: Goal, compiled: Mapping[str, Compiled]) -> dict[str, tuple[Tile, float]] | None:
    """Tile and number of tiles of each of the goal's kernels; None if one has no prediction."""
    found = {}
    for name in goal.calls:
        tile = compiled[name].tile
        if tile is None:
            return None
        per_tile = tile.flop / (2 * goal.case.width)  # one product a tile
        found[name] = tile, goal.pairs(name) / per_tile
    return found


def cublas_seconds(goal: Goal) -> float:
    return goal.products * goal.case.product_flop / CUBLAS_FLOPS


def predicted_seconds(goal: Goal, compiled: Mapping[str, Compiled]) -> float:
    found = parts(goal, compiled)
    assert found is not None, goal.name
    return cublas_seconds(goal) + sum(tile.seconds(tiles) for tile, tiles in found.values())
