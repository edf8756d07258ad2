"""What the table's configurations compile to: for tools and tests, which need no GPU for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import configs
from .configs import Config
from .gradients import row_col_logsumexp_bwd_kernel
from .logsumexp import (
    row_col_logsumexp_fwd_kernel,
    row_logsumexp_fwd_kernel,
    row_logsumexp_mean_key_kernel,
)
from .self_logsumexp import (
    self_logsumexp_bwd_kernel,
    self_logsumexp_fwd_kernel,
    self_weights_kernel,
)
from .slabs import GROUP, row_col_weights_kernel
from .tiles import INTEGERS, KEEP_ALL, KEEP_DIFFERENT, KEEP_SAME
from .topk import Search, stored_config, topk_scan_kernel

KERNELS: dict[str, tuple[Any, ...]] = {
    "row_forward": (row_logsumexp_fwd_kernel,),
    "row_col_forward": (row_col_logsumexp_fwd_kernel,),
    "self_forward": (self_logsumexp_fwd_kernel,),
    "mean_key": (row_logsumexp_mean_key_kernel,),
    "backward": (row_col_logsumexp_bwd_kernel, self_logsumexp_bwd_kernel),
    "backward_both": (row_col_logsumexp_bwd_kernel,),
    "self_backward": (self_logsumexp_bwd_kernel,),
    "weights": (row_col_weights_kernel, self_weights_kernel),
    "topk": (topk_scan_kernel,),
}
OPERANDS = ("Q", "K", "X", "Y", "W")
IDS = ("QID0", "KID0", "QID1", "KID1", "XID0", "YID0", "XID1", "YID1")
INT32 = (*IDS, "COUNTS")
INT64 = ("BOUND", "SURVIVORS", "OFFSETS", "KEYS")
TAINTS = ("TX", "TY", "TAINT", "TAINT_Q", "TAINT_K")


@dataclass
class Variant:
    """One compilation: ``ASTSource(kernel, signature, constexprs, attrs)`` and its options."""

    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    attrs: dict[tuple[int], list]
    config: Config
    label: str
    options: dict[str, Any]


class Use(NamedTuple):
    """What of a kernel a call asks for."""

    name: str
    filtered: bool
    even: bool
    fixed: bool
    without: tuple[str, ...] = ()  # more arguments that are None


SHIFTED = Use("even, fixed shift", False, True, True)
PLAIN = Use("even", False, True, False)
RAGGED = Use("ragged", False, False, False)
FILTERED = Use("ragged, two filters", True, False, False)
BARE = Use(
    "even, no options", False, True, False,
    ("QUERY_FACTOR", "KEY_FACTOR", "BELOW", "ABOVE", "OFFSETS", "KEYS"),
)  # fmt: skip


def pointed_type(name: str, operand: str) -> str:
    if name in OPERANDS:
        return operand
    return "i32" if name in INT32 else "i64" if name in INT64 else "fp32"


def variant(kernel, family, kind, width, config, use: Use, dtype="bf16") -> Variant:
    """One use of a kernel with one configuration."""
    filtered = use.filtered
    absent = use.without if filtered else (*use.without, *IDS)
    if not filtered and family != "weights":
        absent += TAINTS
    if dtype != "fp16":
        absent += ("GAIN",)
    if family == "backward":
        absent += ("SUM_Y",)
    D = width if width < configs.WIDE else 768
    operand = {"half": dtype}.get(kind, "fp32")
    constexprs = {
        "D": D, "KEEP0": KEEP_SAME if filtered else KEEP_ALL,
        "KEEP1": KEEP_DIFFERENT if filtered else KEEP_ALL, "FIXED": use.fixed,
        "WIDTH": None, "EVEN": use.even, "SYMMETRIC": True, "UPPER": family == "self_backward",
        "PRECISION": configs.precision(kind), "UPCAST": False, "GROUP": GROUP,
        "BLOCK_M": config.BLOCK_M, "BLOCK_N": config.BLOCK_N,
        "BLOCK_D": min(config.BLOCK_D or D, D),
    }  # fmt: skip
    constexprs = {name: value for name, value in constexprs.items() if name in kernel.arg_names}
    signature, attrs = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constexprs:
            signature[name] = "constexpr"
        elif name in absent:
            signature[name] = "constexpr"
            constexprs[name] = None
        elif name in INTEGERS or name == "pitch":
            signature[name] = "i32"
        elif name == "shift":
            signature[name] = "fp32"
        else:
            signature[name] = f"*{pointed_type(name, operand)}"
        if name == "pitch" or signature[name].startswith("*"):
            attrs[(i,)] = [["tt.divisibility", 16]]
    label = f"{kernel.__name__} {kind} D={D} {tuple(config)} {use.name}"
    options = {
        "num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True,
        "maxnreg": Search.maxnreg if family == "topk" else None,
    }  # fmt: skip
    return Variant(kernel, signature, constexprs, attrs, config, label, options)


def variants(arch: int) -> Iterator[Variant]:
    """Every kernel with every configuration that the table has for an architecture."""
    for (table_arch, family, kind, width), config in configs.TABLE.items():
        if table_arch != arch:
            continue
        base = family.removesuffix("_masked")
        special = configs.family_for(arch, base, kind, True) != base
        if base != family:
            uses = (RAGGED, FILTERED)
        elif special:
            uses = (SHIFTED, PLAIN)
        else:
            uses = (SHIFTED, PLAIN, RAGGED, FILTERED)
        if base == "topk":
            yield from topk_variants(kind, width, config, (BARE, *uses))
            continue
        for kernel in KERNELS[base]:
            for use in uses:
                if use is SHIFTED and "FIXED" not in kernel.arg_names:
                    continue
                yield variant(kernel, base, kind, width, config, use)


def topk_variants(kind, width, config, uses) -> Iterator[Variant]:
    """Scans with bounds, and those that store all pairs."""
    stored = ("BOUND", "OFFSETS", "KEYS")
    for of_config, without in ((config, ()), (stored_config(config), stored)):
        for use in uses:
            if use not in (SHIFTED, RAGGED):
                use = use._replace(
                    name=use.name + ", all stored" * bool(without), without=use.without + without
                )
                yield variant(topk_scan_kernel, "topk", kind, width, of_config, use)
