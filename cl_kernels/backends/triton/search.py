"""The k best keys of each query: waves of queries, and rounds of scans."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from cl_kernels.backends.gpu import cuts, rounds

from . import configs
from .configs import Config
from .launch import launch
from .problem import Problem
from .topk import carry_best_kernel, drop_listed_pairs_kernel, topk_scan_kernel

BLOCK = 128


def stored_config(config: Config) -> Config:
    """Tiles where all pairs are stored, which takes more registers."""
    return config._replace(BLOCK_M=min(config.BLOCK_M, 64))


class Search(Problem):
    """One call of ``topk``."""

    def __init__(
        self, query, key, k, query_factor, key_factor, exclude_offsets, exclude_keys, pairs
    ):
        super().__init__(query, key, None, pairs, query.dtype, None)
        self.k = k
        self.query_factor, self.key_factor = query_factor, key_factor
        self.offsets, self.excluded = exclude_offsets, exclude_keys
        if exclude_keys is None or len(exclude_keys) == 0:
            self.offsets = self.excluded = None

    @property
    def narrow(self) -> bool:
        """The table's tiles have room for what a search takes."""
        return False

    @property
    def maxnreg(self) -> int:
        return configs.MOST_REGISTERS

    def run(self, config: Config) -> tuple[Tensor, Tensor]:
        tile = config.BLOCK_M, config.BLOCK_N
        plan = rounds.plan(self.M, self.N, self.k, tile, cuts.processors(self.device))
        plan.check(self.k, config.BLOCK_N)
        size = plan.rows, plan.buffers, plan.capacity
        buffers = torch.empty(size, dtype=torch.int64, device=self.device)
        values = torch.empty(self.M, self.k, dtype=torch.float32, device=self.device)
        indices = torch.empty(self.M, self.k, dtype=torch.int64, device=self.device)
        for first in range(0, self.M, plan.rows):
            rows = slice(first, min(first + plan.rows, self.M))
            values[rows], indices[rows] = Wave(self, plan, config, rows, buffers).run()
        return values, indices


class Wave:
    """The search of some queries."""

    def __init__(self, search: Search, plan: rounds.ScanPlan, config: Config, rows: slice, buffers):
        self.search, self.plan, self.config, self.rows = search, plan, config, rows
        self.M = rows.stop - rows.start
        self.tiles = triton.cdiv(search.N, config.BLOCK_N)
        self.stride = rounds.stride(self.tiles)
        self.buffers = buffers[: self.M]  # [M, buffers, capacity]
        self.counts = buffers.new_zeros(self.M, plan.buffers, dtype=torch.int32)

    def run(self) -> tuple[Tensor, Tensor]:
        *earlier, last = zip((0, *self.plan.ends), self.plan.ends, strict=False)
        bound = None
        for begin, end in earlier:
            bound = self.carry(*self.visit(begin, end, bound))
        return self.visit(*last, bound)

    def visit(self, begin: int, end: int, bound: Tensor | None) -> tuple[Tensor, Tensor]:
        """One round; the best pairs up to its end."""
        search, plan, rows, M = self.search, self.plan, self.rows, self.M
        stored = bound is None or not plan.bounded
        config = stored_config(self.config) if stored else self.config
        query_factor = None if search.query_factor is None else search.query_factor[rows]
        offsets = None if search.offsets is None else search.offsets[rows.start : rows.stop + 1]
        listed = (None, None) if stored else (offsets, search.excluded)
        steps = 0 if search.excluded is None else len(search.excluded).bit_length()
        span = triton.cdiv(end - begin, plan.parts)
        search.launch(
            topk_scan_kernel, plan.parts * triton.cdiv(M, config.BLOCK_M), config,
            search.query[rows], search.key, query_factor, search.key_factor,
            search.queries.of_rows(rows), search.keys, None if stored else bound,
            self.buffers, self.counts, *listed, M, search.N, search.k,
            begin, end, span, self.stride, plan.buffers, plan.capacity, steps,
            M=M, pitch=search.D,
        )  # fmt: skip
        if stored and offsets is not None:
            inverse = pow(self.stride, -1, self.tiles)
            launch(
                drop_listed_pairs_kernel, M, self.buffers.device,
                (self.buffers, offsets, search.excluded, self.tiles, begin, end, span, inverse,
                 plan.buffers, plan.capacity),
                {"BLOCK_N": config.BLOCK_N, "BLOCK": BLOCK},
            )  # fmt: skip
        return torch.ops.cl_kernels.select_topk(self.buffers, self.counts, search.k)

    def carry(self, values: Tensor, indices: Tensor) -> Tensor:
        """Keeps the best pairs for the next round; its bound."""
        plan = self.plan
        bound = self.buffers.new_empty(self.M)
        launch(
            carry_best_kernel, self.M, self.buffers.device,
            (values, indices, self.buffers, self.counts, bound, self.search.k,
             plan.parts, plan.buffers, plan.capacity),
            {"BLOCK": BLOCK},
        )  # fmt: skip
        return bound


def topk(query, key, k, *arguments) -> tuple[Tensor, Tensor]:
    """The k best keys of each query: scores [M, k] and indices [M, k]."""
    M, N = query.shape[0], key.shape[0]
    if M == 0 or N == 0:
        values = query.new_full((M, k), -torch.inf, dtype=torch.float32)
        return values, torch.full_like(values, -1, dtype=torch.int64)
    search = Search(query, key, k, *arguments)
    return search.with_config("topk", search.run)
