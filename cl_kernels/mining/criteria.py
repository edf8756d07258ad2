"""What makes a candidate a negative: bounds on its score, a window of ranks, a way to draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cl_kernels._numbers import check_integer, check_number
from cl_kernels._precision import widest
from cl_kernels.csr import CSR
from cl_kernels.search import TopK

DRAWN_FROM = 100  # ranks that random and softmax draw from, unless told otherwise


@dataclass(frozen=True)
class Criteria:
    """The arguments of ``mine_hard_negatives`` that concern scores and ranks, checked."""

    num_negatives: int = 3
    range_min: int = 0
    range_max: int | None = None
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    margin_against: Literal["min", "max", "mean"] = "min"
    sampling: Literal["top", "random", "softmax"] = "top"
    sampling_temperature: float = 0.05

    def __post_init__(self) -> None:
        check_integer("num_negatives", self.num_negatives, least=1)
        check_integer("range_min", self.range_min, least=0)
        if self.range_max is not None:
            least = self.range_min + self.num_negatives
            check_integer("range_max", self.range_max, least, ", range_min + num_negatives")
        for name in ("max_score", "min_score", "absolute_margin", "relative_margin"):
            _check_number(name, getattr(self, name))
        low, high = self.min_score, self.max_score
        if low is not None and high is not None and low >= high:
            raise ValueError(f"min_score: expected less than max_score, {high}, got {low}")
        _check_word("margin_against", self.margin_against, ("min", "max", "mean"))
        _check_word("sampling", self.sampling, ("top", "random", "softmax"))
        _check_number("sampling_temperature", self.sampling_temperature)
        if self.sampling_temperature is None or self.sampling_temperature <= 0:
            raise ValueError(
                f"sampling_temperature: expected a positive number, got {self.sampling_temperature}"
            )

    @property
    def has_margin(self) -> bool:
        return self.absolute_margin is not None or self.relative_margin is not None

    @property
    def last_rank(self) -> int:
        """Ranks from here on are never chosen."""
        least = self.range_min + self.num_negatives
        if self.sampling == "top":
            return least
        return max(DRAWN_FROM, least) if self.range_max is None else self.range_max

    def ceilings(self, positives: CSR, scores: Tensor) -> dict[str, Tensor]:
        """By name, what each query's negatives must score below, [M].

        ``scores`` are the positives', [nnz]; those that are not finite are passed over.
        """
        M = len(positives.offsets) - 1
        ceilings = {}
        if self.max_score is not None:
            ceilings["max_score"] = scores.new_full((M,), self.max_score)
        if M == 0 or not self.has_margin:
            return ceilings
        finite = scores.isfinite()
        counts = positives.rows()[finite].bincount(minlength=M)
        chosen = torch.segment_reduce(scores[finite], self.margin_against, lengths=counts)
        unbounded = counts == 0
        if self.absolute_margin is not None:
            ceiling = chosen - self.absolute_margin
            ceilings["absolute_margin"] = ceiling.masked_fill(unbounded, torch.inf)
        if self.relative_margin is not None:
            # chosen * (1 - margin) would raise the ceiling of a positive that scores below zero.
            ceiling = chosen - chosen.abs() * self.relative_margin
            ceilings["relative_margin"] = ceiling.masked_fill(unbounded, torch.inf)
        return ceilings

    def choose(self, found: TopK, generator: torch.Generator | None) -> TopK:
        """The negatives among each query's survivors, [M, >= last_rank] best first, by rank."""
        window = slice(self.range_min, self.last_rank)
        values, indices = found.values[:, window], found.indices[:, window]
        if self.sampling != "top":
            # The largest of score / temperature + Gumbel noise are a draw without replacement.
            device = torch.device("cpu") if generator is None else generator.device
            noise = torch.empty(values.shape, dtype=widest(values.device), device=device)
            weight = -noise.exponential_(generator=generator).log_().to(values.device)
            if self.sampling == "softmax":
                weight += values.to(weight.dtype) / self.sampling_temperature
            weight.masked_fill_(indices < 0, -torch.inf)
            ranks = weight.topk(self.num_negatives, 1).indices.sort(1).values
            values, indices = values.gather(1, ranks), indices.gather(1, ranks)
        return TopK(values.contiguous(), indices.contiguous())


def _check_number(name: str, value: float | None) -> None:
    if value is None:
        return
    check_number(name, value)
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")


def _check_word(name: str, value: str, words: tuple[str, ...]) -> None:
    if value not in words:
        expected = ", ".join(f'"{w}"' for w in words[:-1]) + f' or "{words[-1]}"'
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
