"""One call of a statistic or a search, as the kernels take it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cl_kernels.backends.gpu import cuts

from . import configs
from .configs import Config
from .folds import FOLDS, Fold
from .launch import first_that_fits, launch
from .pairs import Side, sides, symmetric
from .prepare import prepared_rows
from .tiles import INTERPRETED, LOG2E, Tile

FIXED_SHIFT_BOUND = 78.0  # logits up to this in size are summed with a fixed shift
LARGEST_BLOCK = 256  # of the table: sizes it divides leave no ragged tile
HEADROOM = 70.0  # exp(70) times any number of keys stays below float32's largest number


class Problem:
    """One call: its two sides, which of their pairs count, and the precision of products."""

    def __init__(
        self, query: Tensor, key: Tensor | None, scale: Tensor | None,
        pairs, compute_dtype: torch.dtype, logit_bound: float | None, fold: str = "logsumexp",
    ):  # fmt: skip
        self.query, self.key = query, query if key is None else key
        self.scale: Any = scale
        self.M, self.N, self.D = len(self.query), len(self.key), self.query.shape[1]
        self.width = configs.padded_width(self.D)
        self.compute_dtype = compute_dtype
        self.kind = configs.kind(compute_dtype)
        self.device = query.device
        self.arch = configs.architecture(self.device)
        self.queries, self.keys = sides(pairs)
        self.bounded = logit_bound is not None and logit_bound <= FIXED_SHIFT_BOUND
        shift = max(0.0, (logit_bound or 0.0) - HEADROOM) if self.bounded else 0.0
        self.shift = shift * LOG2E.value
        self.fold_name = fold
        self.deterministic = torch.are_deterministic_algorithms_enabled()

    @property
    def forward_fold(self) -> Fold:
        """That of a forward pass; the weights of both are the same."""
        return FOLDS[self.fold_name][self.bounded]

    @property
    def fold(self) -> Fold:
        return FOLDS[self.fold_name][False]

    @property
    def narrow(self) -> bool:
        return configs.narrows(self.plain, self.fold.is_sum)

    @property
    def maxnreg(self) -> int | None:
        return configs.register_limit(configs.precision(self.kind), self.narrow)

    @property
    def wide(self) -> bool:
        """Products with the weights are made in slabs: no registers are left for them."""
        return self.width > configs.KNEE[self.kind] or self.guided

    @property
    def keeps_all(self) -> bool:
        return self.queries.keeps_all

    @property
    def plain(self) -> bool:
        """There are filters at most."""
        return self.queries.plain and self.keys.plain

    @property
    def guided(self) -> bool:
        return self.queries.guide is not None

    @property
    def symmetric(self) -> bool:
        return symmetric(self.queries, self.keys)

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

        A weight of zero times a NaN is NaN: where pairs are dropped, rows that are not finite are
        zeroed and the taints put NaN back where they are kept. Where every pair is kept, IEEE
        arithmetic does it by itself, and ``finish_gradient`` widens one NaN to its row.
        """
        clean = self.wide or not self.keeps_all
        query, taint_query = prepared_rows(self.query, self.compute_dtype, self.width, clean)
        if self.key is self.query:
            return query, query, taint_query, taint_query
        key, taint_key = prepared_rows(self.key, self.compute_dtype, self.width, clean)
        return query, key, taint_query, taint_key

    @property
    def product_sides(self) -> tuple[Side, Side]:
        """Which pairs of ``product_operands`` count."""
        _, _, taint_query, taint_key = self.product_operands
        if not self.queries.bounded or taint_query is None or taint_key is None:
            return self.queries, self.keys
        return self.queries.tainted(taint_query), self.keys.tainted(taint_key)

    def empty(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=dtype, device=self.device)

    def full(self, size: tuple[int, ...], value: float) -> Tensor:
        """In float32; of a count, in int64."""
        dtype = torch.int64 if isinstance(value, int) else torch.float32
        return torch.full(size, value, dtype=dtype, device=self.device)

    def with_config(self, family: str, run: Callable[[Config], Any]) -> Any:
        """``run`` with the table's configuration, or with the first after it that fits."""
        ragged = self.M % LARGEST_BLOCK != 0 or self.N % LARGEST_BLOCK != 0
        masked = ragged or not (self.keeps_all and self.plain)
        family = configs.family_for(self.arch, family, self.kind, masked)
        width = min(self.width, configs.WIDE)
        return first_that_fits(self.device, self.arch, family, self.kind, width, self.narrow, run)

    def spans(self, blocks: int, config: Config, per_processor: int, N: int | None = None):
        """Into how many spans of how many keys so many programs a processor visit them."""
        wanted = per_processor * cuts.processors(self.device)
        return cuts.spans(blocks, self.N if N is None else N, config.BLOCK_N, wanted)

    def tile(self, config: Config, M: int, N: int, pitch: int | None = None) -> Tile:
        even = M % config.BLOCK_M == 0 and N % config.BLOCK_N == 0
        block_d = min(config.BLOCK_D or self.width, self.width)
        return Tile(
            config.BLOCK_M, config.BLOCK_N, block_d, self.width, pitch or self.width,
            even, configs.precision(self.kind), INTERPRETED,
        )  # fmt: skip

    def launch(
        self, kernel, programs: int, config: Config, *args, M=None, N=None, pitch=None, **constexprs
    ) -> None:
        M, N = self.M if M is None else M, self.N if N is None else N
        constexprs["TILE"] = self.tile(config, M, N, pitch)
        warps, stages = config.num_warps, config.num_stages
        launch(kernel, programs, self.device, args, constexprs, warps, stages, self.maxnreg)
