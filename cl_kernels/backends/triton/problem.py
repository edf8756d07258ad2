"""One call of an operation, as the kernels take it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from . import configs
from .configs import Config
from .ids import Ids, compact_ids
from .launch import first_that_fits, launch
from .prepare import prepared_rows
from .tiles import INTERPRETED, KEEP_ALL, KEEP_DIFFERENT, KEEP_SAME, LOG2E

FIXED_SHIFT_BOUND = 78.0  # logits up to this in size are summed with a fixed shift
LARGEST_BLOCK = 256  # of the table: sizes it divides leave no ragged tile
HEADROOM = 70.0  # exp(70) times any number of keys stays below float32's largest number


class Problem:
    """One call: its two sides, filters and precision, as the kernels take them."""

    widest = configs.WIDE  # rows
    maxnreg: int | None = None  # a limit for the assembler, where not its own

    def __init__(
        self, query, key, scale, query_ids, key_ids, keep_same, below, key_bias,
        guide_query, guide_key, compute_dtype, logit_bound,
    ):  # fmt: skip
        for name, option in (("below", below), ("key_bias", key_bias), ("guide", guide_query)):
            if option is not None:
                raise NotImplementedError(f"{name}: the Triton kernels do not take it yet")
        if query.shape[1] > self.widest:
            raise ValueError(
                f"query: the Triton kernels take rows of up to {self.widest} columns, "
                f"got {query.shape[1]}"
            )
        self.query, self.key, self.scale = query, key, scale
        self.M, self.N, self.D = query.shape[0], key.shape[0], query.shape[1]
        self.width = configs.padded_width(self.D)
        self.compute_dtype = compute_dtype
        self.kind = configs.kind(compute_dtype)
        self.device = query.device
        self.arch = configs.architecture(self.device)
        self.keeps = [KEEP_SAME if same else KEEP_DIFFERENT for same in keep_same]
        self.keeps += [KEEP_ALL] * (2 - len(self.keeps))
        compact: list[Ids] = [compact_ids(*pair) for pair in zip(query_ids, key_ids, strict=True)]
        compact += [(None, None)] * (2 - len(compact))
        self.query_ids: Ids
        self.key_ids: Ids
        self.query_ids = (compact[0][0], compact[1][0])
        self.key_ids = (compact[0][1], compact[1][1])
        self.fixed = logit_bound is not None and logit_bound <= FIXED_SHIFT_BOUND
        self.shift = max(0.0, (logit_bound or 0.0) - HEADROOM) * LOG2E.value if self.fixed else 0.0
        self.deterministic = torch.are_deterministic_algorithms_enabled()

    @property
    def filtered(self) -> bool:
        return self.keeps != [KEEP_ALL, KEEP_ALL]

    @property
    def wide(self) -> bool:
        """Products with the weights are made in slabs."""
        return self.width > configs.KNEE[self.kind]

    @property
    def symmetric(self) -> bool:
        """The filters say the same of (i, j) and of (j, i)."""
        pairs = zip(self.query_ids, self.key_ids, strict=True)
        return all(q is k for q, k in pairs)

    @property
    def ids(self) -> tuple[Tensor | None, ...]:
        (query0, query1), (key0, key1) = self.query_ids, self.key_ids
        return query0, key0, query1, key1

    @cached_property
    def logit_operands(self) -> tuple[Tensor, Tensor]:
        """Queries and keys in the compute dtype, of a width that kernels take: for logits only."""
        query, _ = prepared_rows(self.query, self.compute_dtype, self.width)
        if self.key is self.query:
            return query, query
        return query, prepared_rows(self.key, self.compute_dtype, self.width)[0]

    @cached_property
    def product_operands(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Queries and keys that weights are multiplied with too, and their taints.

        A weight of zero times a NaN is NaN: where a filter drops pairs, rows that are not finite
        are zeroed and the taints put NaN back where they are kept. Without filters every pair is
        kept, IEEE arithmetic does it by itself, and ``finish_gradient`` widens one NaN to its row.
        """
        clean = self.filtered or self.wide
        query, taint_query = prepared_rows(self.query, self.compute_dtype, self.width, clean)
        if self.key is self.query:
            return query, query, taint_query, taint_query
        key, taint_key = prepared_rows(self.key, self.compute_dtype, self.width, clean)
        return query, key, taint_query, taint_key

    def empty(self, *size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device=self.device)

    def full(self, size: tuple[int, ...], value: float) -> Tensor:
        return torch.full(size, value, dtype=torch.float32, device=self.device)

    def with_config(self, family: str, run: Callable[[Config], Any]) -> Any:
        """``run`` with the table's configuration, or with the first after it that fits."""
        masked = self.filtered or self.M % LARGEST_BLOCK != 0 or self.N % LARGEST_BLOCK != 0
        family = configs.family_for(self.arch, family, self.kind, masked)
        width = min(self.width, configs.WIDE)
        return first_that_fits(self.device, self.arch, family, self.kind, width, run)

    def launch(self, kernel, programs: int, config: Config, *args, M=None, N=None, **constexprs):
        M, N = self.M if M is None else M, self.N if N is None else N
        even = M % config.BLOCK_M == 0 and N % config.BLOCK_N == 0
        constexprs = {
            "D": self.width, "KEEP0": self.keeps[0], "KEEP1": self.keeps[1], "FIXED": self.fixed,
            "EVEN": even, "PRECISION": configs.precision(self.kind), "UPCAST": INTERPRETED,
            "BLOCK_M": config.BLOCK_M, "BLOCK_N": config.BLOCK_N,
            "BLOCK_D": min(config.BLOCK_D or self.width, self.width), **constexprs,
        }  # fmt: skip
        constexprs = {name: constexprs[name] for name in kernel.arg_names if name in constexprs}
        launch(
            kernel, programs, args, constexprs, config.num_warps, config.num_stages, self.maxnreg
        )
