"""A statistic of queries that every process has, over keys of which each has its own."""

from __future__ import annotations

from cl_kernels._spread import Spread
from cl_kernels.ranks.group import Ranks
from cl_kernels.ranks.round import counts_of_all
from cl_kernels.statistics.operations import backward, forward


class OfSharedQueries(Spread):
    """Nothing goes round: values are united. Gradients of the queries are a rank's part of all."""

    ranks: Ranks
    weighs_keys = False

    @classmethod
    def of(cls, backend: str, ranks: Ranks, *_) -> OfSharedQueries:
        spread = cls(backend)
        spread.ranks = ranks
        return spread

    def forward(self, statistic, query, key, scale, call):
        if statistic.sides != "row":
            raise NotImplementedError(f"{statistic.name} of queries that every process has")
        counts_of_all(self.ranks, "values of shared queries", 0, query.device)
        value, *counts = forward(statistic, str(self), query, key, scale, call)
        unite = self.ranks.logsumexp if statistic.fold.of_none else self.ranks.sum
        return unite(value), *map(self.ranks.sum, counts)

    def backward(self, statistic, grads, values, query, key, scale, call, needs):
        counts_of_all(self.ranks, "gradients of shared queries", 0, query.device)
        grads = [self.ranks.sum(grad.clone()) for grad in grads]  # of what every rank made of them
        return backward(statistic, str(self), grads, values, query, key, scale, call, needs)
