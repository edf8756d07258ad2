"""Predicted times of whole losses at the sizes we aim for, on an H100 SXM; see ``tools.cost``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tools.compiled import Compiled
from tools.cost import Tile

if TYPE_CHECKING:
    from cl_kernels.backends.triton.variants import Variant

CUBLAS_FLOPS = 700e12  # assumed of cuBLAS where it adds a product to float32 sums
SLAB_EDGE = 11_520  # rows of a square block of weights


@dataclass
class Call:
    """A kernel as a loss calls it: whole tiles, bfloat16, the filter that drops the positives."""

    family: str
    width: int
    kernel: int = 0  # which of the family's
    filtered: bool = True
    fixed: bool = False  # logits are bounded: a fixed shift, no running maximum
    without: tuple[str, ...] = ()  # arguments that are None
    candidate: bool = False  # with the line that is tried beside the table's

    def variant(self) -> Variant:
        from cl_kernels.backends.triton import configs, table, variants

        padded = configs.padded_width(self.width)
        if self.candidate:
            config = table.CANDIDATES[configs.line(90, self.family, "half", padded)]
        else:
            family = configs.family_for(90, self.family, "half", self.filtered)
            config = configs.configured(90, family, "half", padded)
        use = variants.Use("as a loss calls it", self.filtered, True, self.fixed)
        kernel = variants.KERNELS[self.family][self.kernel]
        made = variants.variant(kernel, self.family, "half", padded, config, use)
        for name in ("QID1", "KID1", "XID1", "YID1", *self.without):  # one filter, not two
            if name in made.signature:
                made.signature[name] = "constexpr"
                made.constexprs[name] = None
                made.attrs.pop((kernel.arg_names.index(name),), None)
        made.constexprs["KEEP1"] = variants.KEEP_ALL
        if self.filtered:
            made.constexprs["KEEP0"] = variants.KEEP_DIFFERENT
        return made


ROWS_ONLY = "GY", "RY"
CALLS: dict[str, Call] = {
    "forward 512": Call("row_forward", 512, filtered=False, fixed=True),
    "forward 768": Call("row_forward", 768, filtered=False, fixed=True),
    "forward 1024": Call("row_forward", 1024, filtered=False, fixed=True),
    "info_nce forward": Call("row_forward", 1024, fixed=True),
    "info_nce weights": Call("weights", 1024, without=ROWS_ONLY),
    "nt_xent forward": Call("self_forward", 512, fixed=True),
    "nt_xent weights": Call("weights", 512, kernel=1),
    "clip 512 forward": Call("row_col_forward", 512),
    "clip 512 weights": Call("weights", 512),
    "clip 768 forward": Call("row_col_forward", 768),
    "clip 768 weights": Call("weights", 768),
}

_TRIED = ("nt_xent", "clip", "info_nce weights")
NO_OPTIONS = "QUERY_FACTOR", "KEY_FACTOR", "BELOW", "ABOVE", "OFFSETS", "KEYS"
CANDIDATES = {
    f"candidate {name}": replace(call, candidate=True)
    for name, call in CALLS.items()
    if name.startswith(_TRIED)
} | {
    f"candidate topk {width}": Call(
        "topk", width, filtered=False, without=NO_OPTIONS, candidate=True
    )
    for width in (128, 256)
}


@dataclass
class Goal:
    """A loss (or a forward pass) at one size, and how many pairs each of its kernels visits."""

    name: str
    seconds: float  # to reach
    rows: int
    width: int
    pairs: dict[str, float] = field(default_factory=dict)  # by call
    products: float = 0.0  # of cuBLAS, in units of rows * rows * width multiplications


def _forward(width: int, teraflops: float) -> Goal:
    rows = 65536
    seconds = 2 * rows**2 * width / teraflops / 1e12
    return Goal("row_logsumexp, forward", seconds, rows, width, {f"forward {width}": rows**2})


def _both(name: str, seconds: float, rows: int, width: int, calls: str) -> Goal:
    pairs = {f"{calls} forward": float(rows**2), f"{calls} weights": float(rows**2)}
    return Goal(name, seconds, rows, width, pairs, 2)


def _self(seconds: float, rows: int, width: int) -> Goal:
    # Half of the pairs, and the other half of what stands on the diagonal.
    forward, weights = (rows * (rows + edge) / 2 for edge in (128, SLAB_EDGE))
    pairs = {"nt_xent forward": forward, "nt_xent weights": weights}
    return Goal("nt_xent", seconds, rows, width, pairs, 1)


GOALS = (
    _both("clip", 46e-3, 65536, 768, "clip 768"),
    _self(16.5e-3, 65536, 512),
    _both("info_nce, deterministic", 15.7e-3, 32768, 1024, "info_nce"),
    _both("clip", 8.5, 2**20, 512, "clip 512"),
    _forward(512, 650),
    _forward(768, 690),
    _forward(1024, 710),
)


def parts(goal: Goal, compiled: Mapping[str, Compiled]) -> dict[str, tuple[Tile, float]] | None:
    """Tile and number of tiles of each of the goal's kernels; None if one has no prediction."""
    found = {}
    for name, pairs in goal.pairs.items():
        tile = compiled[name].tile
        if tile is None:
            return None
        per_tile = tile.flop / (2 * goal.width)  # one product a tile
        found[name] = tile, pairs / per_tile
    return found


def cublas_seconds(goal: Goal) -> float:
    return goal.products * 2 * goal.rows**2 * goal.width / CUBLAS_FLOPS


def predicted_seconds(goal: Goal, compiled: Mapping[str, Compiled]) -> float:
    found = parts(goal, compiled)
    assert found is not None, goal.name
    return cublas_seconds(goal) + sum(tile.seconds(tiles) for tile, tiles in found.values())
