"""What mining found, as indices, triplets and columns of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_kernels.csr import CSR
from cl_kernels.mining.columns import Format, columns
from cl_kernels.mining.criteria import Criteria
from cl_kernels.mining.shortfall import Shortfall
from cl_kernels.mining.tally import Tally
from cl_kernels.search import TopK


class Triplets(NamedTuple):
    """Indices of queries (``anchor``) and of documents, int64 [T] each."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor


@dataclass(frozen=True)
class MinedNegatives:
    """Each query's negatives, and why there are no more of them where there are too few.

    Args:
        indices: Which documents, int64 [M, num_negatives] by rank; -1 where none was left.
        scores: Their scores, same shape, -inf where none was left; None if not asked for.
        counts: How many each query got, [M].
        shortfall: For the queries that got too few, what removed how many candidates; print it.
        positives: The positives of each query.
        positive_scores: Their scores, [nnz]; None if not asked for.
        candidates: ``TopK`` of the best candidates that pass the filters, [M, candidates], before
            ranks are cut and drawn; None if not asked for.
        criteria: What was asked of a negative.
        num_documents: Documents in the corpus.
    """

    indices: Tensor
    scores: Tensor | None
    counts: Tensor
    shortfall: Shortfall
    positives: CSR
    positive_scores: Tensor | None
    candidates: TopK | None
    criteria: Criteria
    num_documents: int

    def __str__(self) -> str:
        return (
            f"{int(self.counts.sum()):,} of {self.indices.numel():,} negatives found; "
            f"{self.shortfall}"
        )

    def of_queries(self, part: slice) -> MinedNegatives:
        """Those of some of the queries, which are counted from the first of them."""
        pairs = slice(*(int(self.positives.offsets[i]) for i in (part.start, part.stop)))
        lists = self.positives.offsets[part.start : part.stop + 1] - pairs.start

        def cut(x: Tensor | None, place: slice = part) -> Tensor | None:
            return None if x is None else x[place]

        return replace(
            self,
            indices=self.indices[part],
            scores=cut(self.scores),
            counts=self.counts[part],
            shortfall=self.shortfall.of_queries(part),
            positives=CSR(lists, self.positives.keys[pairs]),
            positive_scores=cut(self.positive_scores, pairs),
            candidates=self.candidates and TopK(*(x[part] for x in self.candidates)),
        )

    def triplets(self) -> Triplets:
        """Every negative of a query with every positive of it: tensors to index embeddings with."""
        anchor = self.positives.rows()  # [nnz]
        negative = self.indices[anchor]  # [nnz, num_negatives]
        pair, place = (negative >= 0).nonzero(as_tuple=True)
        return Triplets(anchor[pair], self.positives.keys[pair], negative[pair, place])

    def columns(
        self,
        queries: Sequence[Any],
        documents: Sequence[Any],
        format: Format = "triplet",
        *,
        scores: bool = False,
    ) -> dict[str, list]:
        """Columns of texts for ``datasets.Dataset.from_dict``, as sentence-transformers trains on.

        Args:
            queries: Texts (or anything else) of the M queries.
            documents: Those of the corpus.
            format: ``"triplet"``: anchor, positive, negative; a row for each. ``"n-tuple"``:
                anchor, positive, negative_1, ...; a row for each positive of a query that is not
                short. ``"labeled-pair"``: anchor, document, label (1 for positives).
                ``"labeled-list"``: anchor, documents, labels; a row for each positive, which
                comes first.
            scores: Add a column of the row's scores, positive first; takes the place of labels.

        Raises:
            ValueError: For another format, if the lengths are not those of the queries and the
                corpus, or if scores were not kept.
        """
        return columns(self, queries, documents, format, scores)

    def candidate_pairs(self) -> tuple[list[int], list[int]]:
        """Query and document of each candidate, by query and rank: what another model scores."""
        rows, places = (self._candidates().indices >= 0).nonzero(as_tuple=True)
        return rows.tolist(), self._candidates().indices[rows, places].tolist()

    def positive_pairs(self) -> tuple[list[int], list[int]]:
        """Query and document of each positive."""
        return self.positives.rows().tolist(), self.positives.keys.tolist()

    def rescore(
        self,
        scores: Any,
        positive_scores: Any = None,
        *,
        generator: torch.Generator | None = None,
        **criteria: Any,
    ) -> MinedNegatives:
        """Picks the negatives again from the candidates, by another model's scores::

            mined = mine_hard_negatives(query, corpus, positives, candidates=50)
            candidates = [(questions[i], texts[j]) for i, j in zip(*mined.candidate_pairs())]
            known = [(questions[i], texts[j]) for i, j in zip(*mined.positive_pairs())]
            scores, known_scores = model.predict(candidates), model.predict(known)
            mined = mined.rescore(scores, known_scores, relative_margin=0.05)

        Margins, bounds and ranks are those of the new scores; equal ones keep their order.

        Args:
            scores: One for each of ``candidate_pairs()``, or [M, candidates]. A candidate with a
                NaN is dropped.
            positive_scores: One for each of ``positive_pairs()``; needed for margins.
            generator: For the draw.
            criteria: Criteria of ``mine_hard_negatives`` that change, from ``num_negatives`` to
                ``sampling_temperature``; the others stay.

        Raises:
            TypeError, ValueError: The message names the argument, what was expected and what came.
        """
        candidates = self._candidates()
        rule = replace(self.criteria, **criteria)
        filled = candidates.indices >= 0
        scores = _of_candidates(scores, candidates.values, filled)
        positive_scores = self._of_positives(positive_scores, scores, rule)
        ceilings = rule.ceilings(self.positives, positive_scores)
        survived = filled & scores.isfinite()
        for ceiling in ceilings.values():
            survived &= scores < ceiling[:, None]
        if rule.min_score is not None:
            survived &= scores > rule.min_score
        found = _ranked(TopK(scores, candidates.indices), survived, rule.last_rank)
        chosen = rule.choose(found, generator)
        counts = (chosen.indices >= 0).sum(1)
        short = Tally(counts, found, rule, ceilings)
        some = short.queries
        open_pairs = filled[some] & ~survived[some] & scores[some].isfinite()
        short.begin()
        short.add(slice(None), scores[some].masked_fill(~open_pairs, torch.nan), short.bounds)
        had = filled[some].sum(1)
        short.rest("non_finite", had)
        return replace(
            self,
            indices=chosen.indices,
            scores=chosen.values,
            counts=counts,
            shortfall=short.shortfall(had, short.removed),
            positive_scores=positive_scores,
            candidates=TopK(scores, candidates.indices),
            criteria=rule,
        )

    def _of_positives(self, scores: Any, like: Tensor, rule: Criteria) -> Tensor:
        """The scores of ``positive_pairs()``, checked; NaN where no margin needs them."""
        shape = self.positives.keys.shape
        if scores is None:
            if rule.has_margin:
                raise ValueError("positive_scores: expected scores to keep a margin from, got None")
            return like.new_full(shape, torch.nan)
        scores = torch.as_tensor(scores, dtype=like.dtype, device=like.device)
        if scores.shape != shape:
            raise ValueError(
                f"positive_scores: expected one for each of the {len(self.positives.keys)} "
                f"positives, got shape {list(scores.shape)}"
            )
        return scores

    def _candidates(self) -> TopK:
        if self.candidates is None:
            raise ValueError("candidates: expected some to rescore; mine with candidates=")
        return self.candidates


def _of_candidates(scores: Any, like: Tensor, filled: Tensor) -> Tensor:
    """The scores of ``candidate_pairs()`` by query and rank, [M, candidates]."""
    scores = torch.as_tensor(scores, dtype=like.dtype, device=like.device)
    if scores.shape == (int(filled.sum()),):
        return torch.full_like(like, -torch.inf).masked_scatter_(filled, scores)
    if scores.shape != like.shape:
        raise ValueError(
            f"scores: expected one for each of the {int(filled.sum())} candidates or shape "
            f"{list(like.shape)}, got {list(scores.shape)}"
        )
    return scores


def _ranked(found: TopK, survived: Tensor, places: int) -> TopK:
    """The survivors by their scores, in at least so many places."""
    values = found.values.masked_fill(~survived, -torch.inf)
    values, order = torch.sort(values, stable=True, dim=1, descending=True)
    indices = found.indices.masked_fill(~survived, -1).gather(1, order)
    empty = (0, max(0, places - values.shape[1]))
    pad = torch.nn.functional.pad
    return TopK(pad(values, empty, value=-torch.inf), pad(indices, empty, value=-1))
