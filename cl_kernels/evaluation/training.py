"""What one looks at while a contrastive loss trains: of one batch, in O(N D) memory."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from cl_kernels._numbers import check_flag
from cl_kernels.checks import as_alike, as_scalar, check_count
from cl_kernels.losses.labels import as_labels

from .checks import check_finite_embeddings
from .drift import Norms
from .geometry import of_geometry
from .matches import Matches, evenly

_SOLVED = 0.99  # probability of the positives above which a batch teaches little
_ALIKE = 0.9  # mean cosine of different rows above which they are one
_LOW_RANK = 0.02  # of the largest rank that is possible


@dataclass(frozen=True)
class ContrastiveMetrics:
    """Of one batch; see ``contrastive_metrics``. A mean over nothing is NaN.

    Attributes:
        queries: How many were looked at: those sampled that have a positive.
        negatives: Mean number of a query's negatives.
        top1, top5: Share of the queries whose positive is among the 1 or 5 most similar keys.
        rank: Mean rank of the positive among the query's negatives, from 1.
        positive_similarity: Mean similarity of a query to its positives.
        hardest_negative_similarity: Mean similarity of a query to its most similar negative.
        mean_similarity: Mean cosine of all pairs of different rows of one side.
        alignment: Mean squared distance of positive pairs on the unit sphere, 0 to 4.
        uniformity: Logarithm of the mean Gaussian potential of all pairs of one side; 0 where all
            rows are one, lower is more uniform.
        effective_rank: From 1 to the smaller of rows and width.
        full_rank: The smaller of rows and width.
        norms: Of the rows as they came.
        duplicates: Share of the rows of one side that equal an earlier one.
        identical_positives: Share of the queries that equal their positive.
        normalize: Whether similarities are cosines.
        temperature: As given.
        positive_probability: Mean softmax probability of the positive against the negatives.
        effective_negatives: Mean number of negatives that a query's gradient is made of, those
            that weigh little counting little: ``(sum w)^2 / sum w^2``.
    """

    queries: int
    negatives: float
    top1: float
    top5: float
    rank: float
    positive_similarity: float
    hardest_negative_similarity: float
    mean_similarity: float
    alignment: float
    uniformity: float
    effective_rank: float
    full_rank: int
    norms: Norms
    duplicates: float
    identical_positives: float
    normalize: bool
    temperature: float | None = None
    positive_probability: float | None = None
    effective_negatives: float | None = None

    def as_dict(self, prefix: str = "") -> dict[str, float]:
        """Numbers by name, for a logger; what is not known is left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        del values["normalize"]
        values |= {f"norm_{name}": x for name, x in values.pop("norms")._asdict().items()}
        return {prefix + name: float(x) for name, x in values.items() if x is not None}

    def warnings(self) -> list[str]:
        """What looks wrong, a sentence each."""
        return [*self._of_geometry(), *self._of_batch()]

    def _of_geometry(self) -> list[str]:
        found = []
        if self.mean_similarity > _ALIKE:
            found.append(
                f"Collapse: different rows have a mean cosine of {self.mean_similarity:.3f}."
            )
        if self.effective_rank < max(1.5, _LOW_RANK * self.full_rank) and self.full_rank > 1:
            found.append(
                f"Collapse: the effective rank is {self.effective_rank:.1f} of {self.full_rank}."
            )
        shortest, longest = self.norms.min, self.norms.max
        if not self.normalize and (abs(shortest - 1) > 0.01 or abs(longest - 1) > 0.01):
            found.append(
                f"Rows are not of unit length but from {shortest:.3g} to {longest:.3g} long, and "
                "normalize is False: similarities are no cosines."
            )
        return found

    def _of_batch(self) -> list[str]:
        found = []
        if self.identical_positives > 0.01:
            found.append(
                f"{self.identical_positives:.0%} of the positives are identical to their anchors: "
                "there is nothing to learn from them."
            )
        if self.duplicates > 0.01:
            found.append(
                f"{self.duplicates:.0%} of the rows are duplicates of others, which may be "
                "negatives of their own copies."
            )
        if self.positive_probability is None or self.effective_negatives is None:
            return found
        if self.positive_probability > _SOLVED:
            found.append(
                f"Starved batch: at temperature {self.temperature:g} the positives have a "
                f"probability of {self.positive_probability:.3f} against {self.negatives:.0f} "
                "negatives; use more, or harder ones."
            )
        if self.negatives >= 8 and self.effective_negatives < 2:
            found.append(
                f"Starved batch: at temperature {self.temperature:g} a query's gradient comes from "
                f"{self.effective_negatives:.1f} of {self.negatives:.0f} negatives; use more, or "
                "a higher temperature."
            )
        return found


def contrastive_metrics(
    query: Tensor,
    key: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor | None = None,
    normalize: bool = True,
    sample: int | None = None,
    backend: str | None = None,
) -> ContrastiveMetrics:
    """What to log while a contrastive loss trains. No matrix of pairs is held; no gradient.

    - top-1 and top-5 accuracy and the mean rank of the positive among a query's negatives. A
      negative whose similarity is the positive's to within rounding is before it or behind it with
      equal chance, so that collapsed embeddings score by chance and not 1;
    - similarities of positives and of the hardest negatives;
    - alignment (alpha = 2) and uniformity (t = 2) of Wang and Isola, "Understanding Contrastive
      Representation Learning through Alignment and Uniformity on the Hypersphere" (2020), over
      pairs of different rows, uniformity as the mean of both sides;
    - the effective rank of Roy and Vetterli, "The Effective Rank" (2007): the exponential of the
      entropy of the singular values of all rows (not centred: rows around one point have rank 1).

    Args:
        query: Embeddings, shape [B, D], finite.
        key: Row i is the positive of query i, shape [B, D], same dtype and device. Default: the
            other rows of the same label are positives, the most similar one for accuracy and rank.
        labels: Integer labels, shape [B]: rows of the same label are no negatives. Default: all
            other keys are.
        temperature: The loss's, for what depends on it; positive.
        normalize: Similarities are cosines, else inner products. Alignment, uniformity, the mean
            similarity and the effective rank are always those of unit rows.
        sample: Look at so many queries only, evenly spaced, against all keys; uniformity is then
            that of the sampled rows. Default: at all.
        backend: Which backend serves the calls.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        metrics = contrastive_metrics(view_0, view_1, temperature=0.1)
        logger.log(metrics.as_dict("train/"))
        for sentence in metrics.warnings():
            logger.warning(sentence)
    """
    check_finite_embeddings("query", query)
    if key is not None:
        check_finite_embeddings("key", key)
        query, key = as_alike(query=query, key=key)
        if len(key) != len(query):
            raise ValueError(f"key: expected as many rows as query, {len(query)}, got {len(key)}")
    if labels is not None:
        labels = as_labels("labels", labels, query, "query")
    elif key is None:
        raise ValueError("labels: expected labels without key, got None")
    check_flag("normalize", normalize)
    if sample is not None:
        check_count("sample", sample)
    if temperature is not None:
        number = as_scalar("temperature", temperature, query)
        temperature = number.item() if isinstance(number, Tensor) else number
        if temperature <= 0:
            raise ValueError(f"temperature: expected a number above 0, got {temperature}")
    with torch.no_grad():
        index = evenly(len(query), sample, query.device)
        arguments = query, key, labels, index, normalize, backend
        batch = Matches.in_pairs(*arguments) if key is not None else Matches.of_labels(*arguments)
        return ContrastiveMetrics(
            **batch.of_ranking(),
            **batch.of_temperature(temperature),
            **of_geometry([query] if key is None else [query, key], index, backend),
            norms=Norms.of(query if key is None else torch.cat((query, key))),
            normalize=normalize,
        )
