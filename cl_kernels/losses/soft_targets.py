"""Two models' softmaxes over the same keys, compared a block of queries at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cl_kernels.ranks.group import Ranks
from cl_kernels.ranks.round import Visitors, counts_of_all, go_round

# Logits held at a time: what stays in a core's cache, or what keeps a GPU busy.
_ON_CPU, _ELSEWHERE = 1 << 16, 1 << 24
_LEAST_ROWS = 64  # each block of queries reads all keys


class BothRows(NamedTuple):
    """As they are multiplied; queries are divided by the temperature."""

    query: Tensor
    key: Tensor
    teacher_query: Tensor
    teacher_key: Tensor

    @property
    def queries_at_once(self) -> int:
        most = _ON_CPU if self.query.device.type == "cpu" else _ELSEWHERE
        return max(_LEAST_ROWS, most // max(self.key.shape[0], 1))


class _Logits:
    """Of both models, by blocks of queries."""

    def __init__(self, rows: BothRows) -> None:
        self.rows, self.kept = rows, (slice(0), [])
        count, step = rows.query.shape[0], rows.queries_at_once
        self.blocks = [slice(i, min(i + step, count)) for i in range(0, count, step)]

    def of(self, block: slice) -> list[Tensor]:
        """The student's and the teacher's, [b, N]. The last ones are kept: one block is all of a
        small batch."""
        if self.kept[0] != block:
            x = self.rows
            teacher = x.teacher_query[block] @ x.teacher_key.T
            self.kept = block, [x.query[block] @ x.key.T, teacher]
        return self.kept[1]

    def of_columns(self) -> list[Tensor]:
        """Log-sum-exps over all queries, [N] each."""
        lse = [self.rows.key.new_full((len(self.rows.key),), -torch.inf)] * 2
        for block in self.blocks:
            of_block = (x.logsumexp(0) for x in self.of(block))
            lse = [torch.logaddexp(*pair) for pair in zip(lse, of_block, strict=True)]
        return lse


def _terms(student: Tensor, teacher: Tensor, divergence: str) -> Tensor:
    """Whose mean by the teacher's probabilities is the loss, of log-probabilities."""
    return teacher - student if divergence == "kl" else -student


def _compared(
    both: list[Tensor], dim: int, divergence: str, grad: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The losses along a dimension of the student's and the teacher's log-probabilities, and the
    student's logits' gradient for ``grad`` of these losses. The student's memory is taken."""
    student, teacher = both
    probability = teacher.exp()
    losses = torch.linalg.vecdot(probability, _terms(student, teacher, divergence), dim=dim)
    if grad is None:
        return losses, None
    return losses, student.exp_().sub_(probability).mul_(grad.unsqueeze(dim))


def compared_rows(
    rows: BothRows, divergence: str, symmetric: bool, grad: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The losses of all queries, and the gradient of the student's queries and keys, stacked, for
    ``grad`` of them."""
    count = rows.query.shape[0]
    if 0 < count <= rows.queries_at_once:
        return _at_once(rows, divergence, symmetric, grad)
    logits = _Logits(rows)
    columns = logits.of_columns() if symmetric else []
    of_keys = rows.key.new_zeros(len(rows.key) if symmetric else 0)
    losses, gradient = rows.query.new_empty(count), None
    if grad is not None:
        grad = grad / 2 if symmetric else grad
        gradient = rows.key.new_zeros(count + len(rows.key), rows.key.shape[1])
    for block in logits.blocks:
        both = logits.of(block)
        part = None if grad is None else grad[block]
        losses[block], pull = _compared([x.log_softmax(1) for x in both], 1, divergence, part)
        if symmetric:
            of_columns = [x - lse for x, lse in zip(both, columns, strict=True)]
            more, further = _compared(of_columns, 0, divergence, grad)
            of_keys += more
            pull = pull if pull is None or further is None else further.add_(pull)
        if pull is not None and gradient is not None:
            torch.mm(pull, rows.key, out=gradient[block])
            gradient[count:].addmm_(pull.T, rows.query[block])
    return (losses + of_keys) / 2 if symmetric else losses, gradient


def _at_once(
    rows: BothRows, divergence: str, symmetric: bool, grad: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Of a small batch, whose time is that of the calls."""
    query, key, *teacher = rows
    count = query.shape[0]
    logits = query.new_empty(2, count, key.shape[0])
    of_student, of_teacher = logits.unbind()
    torch.mm(query, key.T, out=of_student)
    torch.mm(teacher[0], teacher[1].T, out=of_teacher)
    if symmetric:
        both_ways = torch.stack((logits.log_softmax(2), logits.log_softmax(1)), 1)
        student, teacher = both_ways.unbind()  # [2, B, N] each
        probability = teacher.exp()
        by_row, by_column = _terms(student, teacher, divergence).mul_(probability).unbind()
        losses = by_row.sum(1).add_(by_column.sum(0)).div_(2)
    else:
        student, teacher = logits.log_softmax(2).unbind()
        probability = teacher.exp()
        losses = torch.linalg.vecdot(probability, _terms(student, teacher, divergence))
    if grad is None:
        return losses, None
    pull = student.exp_().sub_(probability)
    if symmetric:
        grad = grad / 2
        pull, of_columns = pull.unbind()
        pull.mul_(grad[:, None]).addcmul_(of_columns, grad)
    else:
        pull.mul_(grad[:, None])
    gradient = key.new_empty(count + key.shape[0], key.shape[1])
    of_query, of_key = gradient.split_with_sizes((count, key.shape[0]))
    torch.mm(pull, key, out=of_query)
    torch.mm(pull.T, query, out=of_key)
    return losses, gradient


def compared_in_a_ring(
    rows: BothRows, divergence: str, symmetric: bool, grad: Tensor | None, ranks: Ranks
) -> tuple[Tensor, Tensor | None]:
    """As ``compared_rows``, of this rank's queries over the keys of all ranks."""
    if not symmetric:
        losses, *parts = _one_way(rows, divergence, grad, ranks)
        return losses, torch.cat(parts) if parts else None
    grad = None if grad is None else grad / 2
    losses, *parts = _one_way(rows, divergence, grad, ranks)
    swapped = BothRows(rows.key, rows.query, rows.teacher_key, rows.teacher_query)
    of_keys, *more = _one_way(swapped, divergence, grad, ranks)
    gradient = torch.cat(parts).add_(torch.cat(more[::-1])) if parts else None
    return (losses + of_keys) / 2, gradient


def _one_way(
    rows: BothRows, divergence: str, grad: Tensor | None, ranks: Ranks
) -> tuple[Tensor, ...]:
    """The losses of the queries and, for ``grad``, the gradients of the queries and of the keys:
    keys go round twice, the second time with the log-sum-exps known."""
    count = len(rows.query)
    lse = [rows.query.new_full((count,), -torch.inf) for _ in range(2)]
    losses, of_query = rows.query.new_zeros(count), torch.zeros_like(rows.query)

    def with_visitors(visitors: Visitors) -> _Logits:
        key, teacher_key = visitors.rows
        return _Logits(rows._replace(key=key, teacher_key=teacher_key))

    def sum_up(visitors: Visitors) -> list[Tensor]:
        logits = with_visitors(visitors)
        for block in logits.blocks:
            for total, more in zip(lse, logits.of(block), strict=True):
                total[block] = torch.logaddexp(total[block], more.logsumexp(1))
        return []

    def compare(visitors: Visitors) -> list[Tensor]:
        logits = with_visitors(visitors)
        key, of_key = visitors.rows[0], torch.zeros_like(visitors.rows[0])
        for block in logits.blocks:
            both = [x - total[block, None] for x, total in zip(logits.of(block), lse, strict=True)]
            part = None if grad is None else grad[block]
            found, pull = _compared(both, 1, divergence, part)
            losses[block] += found
            if pull is not None:
                of_query[block] += pull @ key
                of_key.addmm_(pull.T, rows.query[block])
        return [] if grad is None else [of_key]

    sides = [rows.key, rows.teacher_key]
    counts = counts_of_all(ranks, "two softmaxes", len(rows.key), rows.key.device)
    go_round(ranks, sides, counts, sum_up)
    of_key = go_round(ranks, sides, counts, compare)
    return losses, *([of_query, *of_key] if grad is not None else [])
