"""What mining must find, said a second time: dense scores and one candidate after the other."""

from dataclasses import dataclass, field

import torch.nn.functional as F

from catalogue import textbook

REASONS = (
    "positive",
    "where",
    "non_finite",
    "max_score",
    "absolute_margin",
    "relative_margin",
    "min_score",
    "rank_window",
)


@dataclass
class Row:
    """One query: its survivors, best first, and what removed the others."""

    survivors: list
    removed: dict = field(default_factory=lambda: dict.fromkeys(REASONS, 0))


def scores_of(query, corpus, *, normalize=True):
    """float64 scores [M, N] of the embeddings as they are."""
    query, corpus = query.double(), corpus.double()
    if normalize:
        query, corpus = F.normalize(query), F.normalize(corpus)
    return query @ corpus.T


def ceilings_of(scores, positives, *, max_score=None, absolute_margin=None, relative_margin=None,
                margin_against="min"):  # fmt: skip
    """By name what one query's negatives must score below; ``scores`` [N] of its candidates."""
    ceilings = {}
    if max_score is not None:
        ceilings["max_score"] = max_score
    if positives:
        known = [float(scores[j]) for j in positives]
        mean = sum(known) / len(known)
        chosen = {"min": min(known), "max": max(known), "mean": mean}[margin_against]
        if absolute_margin is not None:
            ceilings["absolute_margin"] = chosen - absolute_margin
        if relative_margin is not None:
            ceilings["relative_margin"] = chosen - abs(chosen) * relative_margin
    return ceilings


def mine(scores, positives, *, where=(), min_score=None, **bounds):
    """A ``Row`` for each query, before ranks are cut; ``positives`` is a list of lists."""
    M, N = scores.shape
    keep = textbook.kept(where, M, N)
    rows = []
    for i in range(M):
        row = Row([])
        ceilings = ceilings_of(scores[i], positives[i], **bounds)
        for j in range(N):
            score = float(scores[i, j])
            if j in positives[i]:
                reason = "positive"
            elif not keep[i, j]:
                reason = "where"
            elif not abs(score) < float("inf"):
                reason = "non_finite"
            else:
                beyond = [name for name, ceiling in ceilings.items() if score >= ceiling]
                too_low = min_score is not None and score <= min_score
                reason = beyond[0] if beyond else "min_score" if too_low else None
            if reason is None:
                row.survivors.append(j)
            else:
                row.removed[reason] += 1
        row.survivors.sort(key=lambda j, i=i: (-float(scores[i, j]), j))
        rows.append(row)
    return rows
