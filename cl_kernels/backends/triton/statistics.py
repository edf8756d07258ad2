"""The backend's statistics: a call's problem, handed to the kernels that serve its sides."""

from __future__ import annotations

from torch import Tensor

from .backward import row_col_backward
from .forward import row_col_forward
from .gram import self_backward, self_forward
from .problem import Problem
from .weighted_key import row_weighted_key


def forward(statistic, query, key, scale, call) -> tuple[Tensor, ...]:
    problem = Problem(query, key, scale, *call, fold=statistic.fold.name)
    if statistic.of_one:
        return self_forward(problem)
    return row_col_forward(problem, both=statistic.sides == "row_col")


def weighted_key(statistic, query, key, scale, call) -> tuple[Tensor, Tensor]:
    assert statistic.fold.name == "logsumexp", statistic
    return row_weighted_key(Problem(query, key, scale, *call))


def backward(statistic, grads, values, query, key, scale, call, needs):
    problem = Problem(query, key, scale, *call, fold=statistic.fold.name)
    given = list(zip(grads, values, strict=True))
    if statistic.of_one:
        return self_backward(problem, *given[0], needs[2:])
    of_rows, of_cols = (*given, None)[:2]
    return row_col_backward(problem, of_rows, of_cols, needs)
