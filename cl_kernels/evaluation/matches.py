"""How a batch's queries find their positives among its keys."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_kernels._precision import widest
from cl_kernels.losses.labels import mean_similarity_of_label
from cl_kernels.pairs import PairFilter, count_same
from cl_kernels.search import topk
from cl_kernels.statistics.functions import row_hinge_sum, row_logsumexp
from cl_kernels.statistics.rows import float_rows

_ROUNDING = 1e-6  # of an inner product of unit rows in float32


def evenly(count: int, sample: int | None, device: torch.device) -> Tensor:
    """Indices of so many of the rows, or of all."""
    wanted = count if sample is None else min(sample, count)
    return torch.arange(wanted, device=device) * count // wanted


class Matches(NamedTuple):
    """M queries that have a positive, and all N keys.

    Args:
        query: Rows [M, D].
        key: Rows [N, D].
        positive: The row that each query is matched with, [M, D].
        similarity: Mean similarity to a query's positives, [M].
        distance: Mean squared distance to them on the unit sphere, [M].
        identical: Whether a query equals its positive, bool [M].
        negatives: Which keys are some.
        backend: Which backend serves the calls.
    """

    query: Tensor
    key: Tensor
    positive: Tensor
    similarity: Tensor
    distance: Tensor
    identical: Tensor
    negatives: PairFilter
    backend: str | None

    @classmethod
    def in_pairs(cls, query, key, labels, index: Tensor, normalize: bool, backend) -> Matches:
        """Key i is the positive of query i."""
        ids = torch.arange(len(key), device=key.device) if labels is None else labels
        keys = float_rows(key, normalize=normalize)
        chosen = float_rows(query[index], normalize=normalize)
        positive, given = keys[index], key[index]
        unit, unit_positive = (float_rows(x, normalize=True) for x in (query[index], given))
        return cls(
            chosen,
            keys,
            positive,
            similarity=(chosen * positive).sum(1),
            distance=(unit - unit_positive).square().sum(1),
            identical=(query[index] == given).all(1),
            negatives=PairFilter(ids[index], ids, "different"),
            backend=backend,
        )

    @classmethod
    def of_labels(cls, query, _, labels, index: Tensor, normalize: bool, backend) -> Matches:
        """Positives are the other rows of the same label; the match is the most similar one."""
        same = PairFilter(labels[index], labels, "same")
        itself = torch.arange(len(query), device=query.device)
        where = same, PairFilter(index, itself, "different")
        options = {"where": where, "normalize": normalize, "backend": backend}
        match = topk(query[index], query, 1, **options).indices[:, 0]
        index, match = index[match >= 0], match[match >= 0]
        rows, unit = (float_rows(query, normalize=n) for n in (normalize, True))
        similarity, cosine = (mean_similarity_of_label(x, labels)[index] for x in (rows, unit))
        return cls(
            rows[index],
            rows,
            rows[match],
            similarity=similarity,
            distance=(2 - 2 * cosine).clamp_min(0),
            identical=(query[index] == query[match]).all(1),
            negatives=PairFilter(labels[index], labels, "different"),
            backend=backend,
        )

    def of_ranking(self) -> dict[str, Any]:
        """Counts of negatives that are above the positive, and of those that are as similar to
        within rounding; similarities."""
        options = {"where": self.negatives, "backend": self.backend}
        similarity = (self.query * self.positive).sum(1)
        longest = torch.linalg.vector_norm(self.key, dim=1).max()
        rounding = _ROUNDING * torch.linalg.vector_norm(self.query, dim=1) * longest
        rounding = rounding.clamp_min(torch.finfo(rounding.dtype).tiny)
        above, not_below = (
            row_hinge_sum(self.query, self.key, query_bias=bias, **options).active
            for bias in (-similarity - rounding, -similarity + rounding)
        )
        tied = not_below - above

        def share_within(k: int) -> float:
            return _mean(((k - above) / (tied + 1)).clamp(0, 1))

        hardest = topk(self.query, self.key, 1, normalize=False, **options).values[:, 0]
        ids = self.negatives.query_ids, self.negatives.key_ids
        return {
            "queries": len(self.query),
            "negatives": _mean(len(self.key) - count_same(*ids)),
            "top1": share_within(1),
            "top5": share_within(5),
            "rank": 1 + _mean(above + tied / 2),
            "positive_similarity": _mean(self.similarity),
            "hardest_negative_similarity": _mean(hardest[hardest > -torch.inf]),
            "alignment": _mean(self.distance),
            "identical_positives": _mean(self.identical),
        }

    def of_temperature(self, temperature: float | None) -> dict[str, Any]:
        if temperature is None:
            return {}
        options = {"where": self.negatives, "backend": self.backend}
        once, twice = (
            row_logsumexp(self.query, self.key, power / temperature, **options) for power in (1, 2)
        )
        positive = (self.query * self.positive).sum(1) / temperature
        return {
            "temperature": temperature,
            "positive_probability": _mean((positive - once).sigmoid()),
            "effective_negatives": _mean((2 * once - twice)[once > -torch.inf].exp()),
        }


def _mean(x: Tensor) -> float:
    return x.to(widest(x.device)).mean().item()
