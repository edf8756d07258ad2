"""Hard negatives for text pairs, and an account of what the miner rejected."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cl_kernels import PairFilter, topk
from cl_kernels.mining import MinedNegatives, mine_hard_negatives
from examples.sbert.config import Config
from examples.sbert.data import Pairs

SHOWN = 12  # best documents of a query that are accounted for
WIDTH = 76

CHOSEN, POSITIVE, SAME, CEILING, NOT_DRAWN, BEYOND = range(6)
VERDICTS = (
    "chosen",
    "its positive",
    "asked in the same words",
    "above the ceiling",
    "not drawn",
    "beyond the ranks drawn from",
)


def mine(
    queries: Tensor,
    documents: Tensor,
    pairs: Pairs,
    config: Config,
    generator: torch.Generator | None = None,
) -> MinedNegatives:
    """Negatives of every query [N, dim] among ``documents`` [N, dim], drawn from the hardest.

    Documents whose own query asks the same are left out by group, and those that score too near
    the positive by a margin: both are more likely unmarked answers than negatives.
    """
    return mine_hard_negatives(
        queries,
        documents,
        torch.arange(len(pairs)),
        num_negatives=config.negatives,
        range_max=config.range_max,
        relative_margin=config.relative_margin,
        where=PairFilter(pairs.groups, pairs.groups, "different"),
        sampling="random",
        generator=generator,
    )


def filled(mined: MinedNegatives) -> Tensor:
    """Indices [N, K]; a place that mining left empty gets a random document, not the positive."""
    N, K = mined.indices.shape
    others = (torch.arange(N)[:, None] + torch.randint(1, N, (N, K))) % N
    return torch.where(mined.indices < 0, others, mined.indices)


class Account(NamedTuple):
    """The best documents of each query before any filter, and what became of them."""

    documents: Tensor  # [N, R]
    scores: Tensor  # [N, R]
    verdicts: Tensor  # [N, R], indices of VERDICTS
    ceilings: Tensor  # [N]


def account(
    queries: Tensor, documents: Tensor, pairs: Pairs, mined: MinedNegatives, ranks: int
) -> Account:
    """Says of the ``ranks`` best documents of each query why they became negatives or did not.

    A document is named after the first filter that removes it, in the miner's order.
    """
    best = topk(queries, documents, ranks)
    positive = best.indices == torch.arange(len(queries))[:, None]
    same = pairs.groups[best.indices] == pairs.groups[:, None]
    assert mined.positive_scores is not None
    ceilings = mined.criteria.ceilings(mined.positives, mined.positive_scores)["relative_margin"]
    too_high = best.values >= ceilings[:, None]
    chosen = (best.indices[:, :, None] == mined.indices[:, None, :]).any(2)
    survivor_rank = (~(positive | same | too_high)).cumsum(1) - 1
    verdicts = torch.full_like(best.indices, NOT_DRAWN)
    verdicts[survivor_rank >= mined.criteria.last_rank] = BEYOND
    for verdict, removed in ((CEILING, too_high), (SAME, same), (POSITIVE, positive)):
        verdicts[removed] = verdict
    verdicts[chosen] = CHOSEN
    return Account(best.indices, best.values, verdicts, ceilings)


def samples(found: Account, count: int, generator: torch.Generator) -> list[int]:
    """Queries to show: at random among those with a rejected document besides the positive."""
    rejected = torch.isin(found.verdicts[:, :SHOWN], torch.tensor([CEILING, SAME])).any(1)
    order = torch.randperm(len(rejected), generator=generator)
    return order[(~rejected[order]).int().argsort(stable=True)][:count].tolist()


def describe(pairs: Pairs, found: Account, mined: MinedNegatives, shown: list[int]) -> str:
    """The account of some queries in words, then totals over all of them."""
    lines = [line for query in shown for line in _query(pairs, found, mined, query)]
    return "\n".join([*lines, *_totals(found, mined)])


def _query(pairs: Pairs, found: Account, mined: MinedNegatives, query: int) -> Iterator[str]:
    yield f"query     {_short(pairs.queries[query])}"
    yield f"positive  {pairs.places[query]}, negatives must score below {found.ceilings[query]:.3f}"
    rows = zip(*(part[query, :SHOWN].tolist() for part in found[:3]), strict=True)
    for rank, (document, score, verdict) in enumerate(rows):
        mark = "->" if verdict == CHOSEN else "  "
        yield f" {mark} {rank:2}  {score:6.3f}  {VERDICTS[verdict]:28}{pairs.places[document]}"
        yield f"{'':16}{_short(pairs.queries[document])}"
    elsewhere = int(mined.counts[query]) - int((found.verdicts[query, :SHOWN] == CHOSEN).sum())
    if elsewhere:
        yield f"     and {elsewhere} chosen from further down"
    if removed := mined.shortfall.of(query):
        reasons = ", ".join(f"{name} {count:,}" for name, count in removed.items() if count)
        yield f"     short of {mined.criteria.num_negatives} negatives; removed: {reasons}"
    yield ""


def _totals(found: Account, mined: MinedNegatives) -> Iterator[str]:
    N, R = found.verdicts.shape
    wanted = mined.criteria.num_negatives
    yield f"The {R} best documents of all {N:,} queries before any filter:"
    counts = found.verdicts.flatten().bincount(minlength=len(VERDICTS))
    for name, count in zip(VERDICTS, counts.tolist(), strict=True):
        yield f"  {name:28}{count:>10,}  {count / (N * R):6.1%}"
    survivors = torch.isin(found.verdicts, torch.tensor([CHOSEN, NOT_DRAWN, BEYOND])).sum(1)
    short = float((survivors < wanted).double().mean())
    yield f"Filtering those {R} afterwards leaves {short:.1%} of the queries short of {wanted}."
    yield f"Filtering inside the search: {mined}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."
