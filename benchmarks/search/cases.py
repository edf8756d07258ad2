"""What is searched: one case is a corpus, its queries and what is asked of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.memory import MEGABYTE
from cl_kernels import CSR, PairFilter

MEMORY_LIMIT = 40 * MEGABYTE  # beyond the inputs and the results
FILTERED_LIMIT = 1.10  # a filtered search over the same search without filters
RANGE_LIMIT = 1.3  # a range search over one for 10 keys
RANGE_ABOVE = 0.25  # some five standard deviations of a cosine
EXCLUSIONS = 64  # a query


class SearchCase(NamedTuple):
    """``queries`` x ``keys`` unit vectors, from which each query's best ``k`` are wanted.

    kind: ``"random"``; ``"ascending"``, where every query likes each key more than those before
    it; ``"filtered"``, random with a ceiling, 64 exclusions a query and labels; ``"range"``,
    random, and wanted are all keys above a score instead, which few reach.
    """

    k: int
    kind: str = "random"
    queries: int = 4096
    keys: int = 100_000
    width: int = 384

    def __str__(self) -> str:
        return f"{self.kind}-k{self.k}-{self.queries}x{self.keys}x{self.width}"


# Times the bare product, as the median of pairs.
GOALS = {
    SearchCase(10): 1.15,
    SearchCase(100): 1.20,
    SearchCase(1000): 1.5,
    SearchCase(100, "ascending"): 1.5,
}
FILTERED, RANGE = SearchCase(100, "filtered"), SearchCase(10, "range")
OVER_PLAIN = {FILTERED: FILTERED_LIMIT, RANGE: RANGE_LIMIT}


def cases(quick: bool) -> list[SearchCase]:
    return [of_size(case, quick) for case in (*GOALS, FILTERED)]


def of_size(case: SearchCase, quick: bool) -> SearchCase:
    return case._replace(queries=512, keys=20_000) if quick else case


def embeddings(case: SearchCase) -> tuple[Tensor, Tensor]:
    """Queries [M, D] and keys [N, D]."""
    generator = torch.Generator().manual_seed(0)
    query = F.normalize(torch.randn(case.queries, case.width, generator=generator))
    key = F.normalize(torch.randn(case.keys, case.width, generator=generator))
    if case.kind == "ascending":
        direction = F.normalize(torch.randn(1, case.width, generator=generator))
        query = F.normalize(direction + 0.3 * query)
        key = F.normalize(torch.linspace(-1, 1, case.keys)[:, None] * direction + 0.2 * key)
    return query, key


def filters(case: SearchCase) -> dict:
    """Options of ``topk`` for a filtered case: none that empties a query's list."""
    if case.kind != "filtered":
        return {}
    generator = torch.Generator().manual_seed(1)

    def draw(high: int, *size: int) -> Tensor:
        return torch.randint(0, high, size, generator=generator)

    labels = PairFilter(draw(1000, case.queries), draw(1000, case.keys), "different")
    offsets = torch.arange(case.queries + 1) * EXCLUSIONS
    exclude = CSR(offsets, draw(case.keys, case.queries * EXCLUSIONS))
    below = 0.15 + 0.1 * torch.rand(case.queries, generator=generator)
    return {"where": labels, "exclude": exclude, "below": below}
