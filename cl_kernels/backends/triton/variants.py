"""What the table's configurations compile to: for tools and tests, which need no GPU for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import triton.language as tl

from . import configs
from .backward import row_col_bwd_kernel
from .configs import Config
from .folds import BOUNDED_LOGSUMEXP, FOLDS, LOGSUMEXP, Fold
from .forward import row_col_fwd_kernel
from .gram import self_bwd_kernel, self_fwd_kernel
from .pairs import BOUNDS, KEEP_ALL, KEEP_DIFFERENT, KEEP_SAME, MAX_FILTERS, Side
from .search import stored_config
from .slabs import row_col_weights_kernel, self_weights_kernel
from .tiles import INTEGERS, Tile
from .topk import topk_scan_kernel
from .weighted_key import row_weighted_key_kernel
from .weights import Upstream

KERNELS: dict[str, tuple[Any, ...]] = {
    "row_forward": (row_col_fwd_kernel,),
    "row_col_forward": (row_col_fwd_kernel,),
    "self_forward": (self_fwd_kernel,),
    "mean_key": (row_weighted_key_kernel,),
    "backward": (row_col_bwd_kernel, self_bwd_kernel),
    "backward_both": (row_col_bwd_kernel,),
    "self_backward": (self_bwd_kernel,),
    "weights": (row_col_weights_kernel, self_weights_kernel),
    "topk": (topk_scan_kernel,),
}
GUIDE_WIDTH = 3 * 384  # of sentence encoders, in parts
FLOATS, INT32, INT64 = "*fp32", "*i32", "*i64"


class Use(NamedTuple):
    """What of a kernel a call asks for."""

    name: str
    even: bool = True
    keeps: tuple[int, ...] = ()  # what each filter keeps
    fold: Fold = LOGSUMEXP
    bounds: bool = False  # of queries' similarities
    biases: bool = False
    guide: bool = False
    rows_only: bool = False  # weights have no term of the columns
    options: bool = True  # of a search: factors, bounds, exclusions
    stored: bool = False  # a search keeps all pairs

    @property
    def keeps_all(self) -> bool:
        return not (self.keeps or self.bounds or self.guide)

    @property
    def plain(self) -> bool:
        """There are filters at most."""
        return not (self.bounds or self.biases or self.guide)


SHIFTED = Use("even, fixed shift", fold=BOUNDED_LOGSUMEXP)
PLAIN = Use("even")
RAGGED = Use("ragged", even=False)
FILTERED = Use("ragged, two filters", even=False, keeps=(KEEP_SAME, KEEP_DIFFERENT))
SUMS = tuple(
    FILTERED._replace(name=f"{FILTERED.name}, {name}", fold=fold)
    for name, (fold, _) in FOLDS.items()
    if fold is not LOGSUMEXP
)
OPTIONED = SUMS[0]._replace(
    name="ragged, a filter, every option", keeps=(KEEP_DIFFERENT,),
    bounds=True, biases=True, guide=True,
)  # fmt: skip
BARE = Use("even, no options", options=False)


@dataclass
class Variant:
    """One compilation: ``ASTSource(kernel, signature, constexprs, attrs)`` and its options."""

    kernel: Any
    family: str
    tile: Tile
    config: Config
    label: str
    of_table: Config  # which the configuration is, unless calls as this one have narrower tiles
    arguments: dict[str, Any]  # types, and constexprs as they are

    @property
    def narrow(self) -> bool:
        return self.config != self.of_table

    def __post_init__(self) -> None:
        self.signature: dict[str, Any] = {}
        self.constexprs: dict[tuple[int, ...], Any] = {}  # by their place, in tuples too
        self.attrs: dict[tuple[int, ...], list] = {}
        for i, name in enumerate(self.kernel.arg_names):
            self.signature[name] = self._typed(self.arguments[name], (i,))
            if name == "pitch":
                self.attrs[(i,)] = [["tt.divisibility", 16]]

    def _typed(self, argument: Any, place: tuple[int, ...]) -> Any:
        if isinstance(argument, str):
            if argument.startswith("*"):
                self.attrs[place] = [["tt.divisibility", 16]]
            return argument
        if isinstance(argument, tuple):
            parts = [self._typed(part, (*place, i)) for i, part in enumerate(argument)]
            return argument._make(parts) if hasattr(argument, "_make") else tuple(parts)  # pyright: ignore[reportAttributeAccessIssue]
        value = argument.value if isinstance(argument, tl.constexpr) else argument
        self.constexprs[place] = value
        return "constexpr"

    @property
    def options(self) -> dict[str, Any]:
        limit = configs.register_limit(self.tile.PRECISION, self.narrow)
        return {
            "num_warps": self.config.num_warps, "num_stages": self.config.num_stages,
            "enable_fp_fusion": True,
            "maxnreg": configs.MOST_REGISTERS if self.family == "topk" else limit,
        }  # fmt: skip


def sides(use: Use, bounds: bool) -> tuple[Side, Side]:
    """Of queries, with bounds of their similarities or without, and of keys."""
    width = tl.constexpr(GUIDE_WIDTH if use.guide else 0)
    guide, bias = FLOATS if use.guide else None, FLOATS if use.biases else None
    missing = MAX_FILTERS - len(use.keeps)
    ids = (INT32,) * len(use.keeps) + (None,) * missing
    keep = use.keeps + (KEEP_ALL,) * missing
    keys = Side(ids, keep, bias=bias, guide=guide, GUIDE_WIDTH=width)
    given = dict.fromkeys(BOUNDS, FLOATS if bounds else None)
    return keys._replace(ceiling=guide, **given), keys


def values(fold: Fold) -> tuple[str, ...]:
    return tuple(INT64 if isinstance(x, int) else FLOATS for x in fold.empty)


def states(fold: Fold) -> tuple[str, ...]:
    return tuple(INT32 if isinstance(x, int) else FLOATS for x in fold.nothing)


def pair_arguments(family: str, use: Use, operand: str) -> dict[str, Any]:
    """Of kernels that visit pairs for a statistic."""
    fold = use.fold
    forward = family.endswith("forward")
    taint = FLOATS if not (use.keeps_all or forward) or family == "weights" else None
    upstream = Upstream(FLOATS, FLOATS, taint, FLOATS if operand == "*fp16" else None)
    of_cols = upstream._replace(grad=None, value=None) if use.rows_only else upstream
    queries, keys = sides(use, use.bounds)
    if use.bounds and not forward:
        keys = keys._replace(below=FLOATS)  # of keys that were zeroed
    return {
        "SCALE": FLOATS, "queries": queries, "keys": keys, "x_side": queries, "y_side": keys,
        "upstream": upstream, "x_upstream": upstream, "y_upstream": of_cols,
        "ROW": FLOATS if family == "mean_key" else values(fold),
        "COL": states(fold) if family == "row_col_forward" else None,
        "STATES": states(fold), "shift": "fp32",
        "MEAN": FLOATS, "TAINT_X": taint, "TAINT_Y": taint,
        "SUM": FLOATS, "SUM_X": FLOATS, "SUM_Y": None if family == "backward" else FLOATS,
        "BIAS_X": FLOATS if use.biases else None,
        "BIAS_Y": FLOATS if use.biases and family != "backward" else None,
        "W": operand, "pitch": "i32",
        "WHOLE": True, "SYMMETRIC": use.plain, "UPPER": family == "self_backward",
        "FOLD": tl.constexpr(fold),
    }  # fmt: skip


def search_arguments(use: Use) -> dict[str, Any]:
    factor = FLOATS if use.options else None
    lists = INT64 if use.options and not use.stored else None
    queries, keys = sides(use, use.options)
    return {
        "queries": queries, "keys": keys,
        "QUERY_FACTOR": factor, "KEY_FACTOR": factor, "BOUND": None if use.stored else INT64,
        "SURVIVORS": INT64, "COUNTS": INT32, "OFFSETS": lists, "KEYS": lists,
    }  # fmt: skip


def variant(
    kernel, family: str, kind: str, width: int, config: Config, use: Use, dtype: str = "bf16"
) -> Variant:
    """One use of a kernel with one configuration of the table."""
    of_table = config
    if configs.narrows(use.plain, use.fold.is_sum):
        config = configs.narrowed(family, kind, config)
    D = width if width < configs.WIDE else 768
    operand = f"*{dtype}" if kind == "half" else FLOATS
    tile = Tile(
        config.BLOCK_M, config.BLOCK_N, min(config.BLOCK_D or D, D), D, D, use.even,
        configs.precision(kind), UPCAST=False,
    )  # fmt: skip
    arguments: dict[str, Any] = dict.fromkeys(INTEGERS, "i32")
    arguments |= {"X": operand, "Y": operand, "TILE": tl.constexpr(tile)}
    arguments |= search_arguments(use) if family == "topk" else pair_arguments(family, use, operand)
    label = f"{family} {kernel.__name__} {kind} D={D} {tuple(config)} {use.name}"
    return Variant(kernel, family, tile, config, label, of_table, arguments)


def variants(arch: int) -> Iterator[Variant]:
    """Every kernel with every configuration that the table has for an architecture."""
    for (table_arch, family, kind, width), config in configs.TABLE.items():
        if table_arch != arch:
            continue
        base = family.removesuffix("_masked")
        special = configs.family_for(arch, base, kind, True) != base
        if base == "topk":
            yield from topk_variants(kind, width, config)
            continue
        plain = (SHIFTED, PLAIN) if base == family else ()
        masked = () if base == family and special else (RAGGED, *SUMS, FILTERED)
        for kernel in KERNELS[base]:
            for use in (*plain, *masked):
                if is_called(base, use):
                    yield variant(kernel, base, kind, width, config, use)
            if masked:
                use = OPTIONED._replace(guide=takes_guides(kernel))
                yield variant(kernel, base, kind, width, config, use)


def is_called(family: str, use: Use) -> bool:
    if family == "mean_key":
        return use.fold is LOGSUMEXP
    return use.fold is not BOUNDED_LOGSUMEXP or family.endswith("forward")


def takes_guides(kernel) -> bool:
    """Others leave such calls to these: see ``Problem.wide``, gram.py and weighted_key.py."""
    return kernel in (row_col_fwd_kernel, row_col_weights_kernel)


def topk_variants(kind: str, width: int, config: Config) -> Iterator[Variant]:
    """Scans with bounds, and those that store all pairs."""
    for use in (BARE, PLAIN, FILTERED):
        yield variant(topk_scan_kernel, "topk", kind, width, config, use)
    for use in (BARE, PLAIN, FILTERED):
        use = use._replace(name=use.name + ", all stored", stored=True)
        yield variant(topk_scan_kernel, "topk", kind, width, stored_config(config), use)
