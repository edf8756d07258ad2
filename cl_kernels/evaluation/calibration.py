"""The threshold of a verification system, for a wanted rate of errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_kernels._precision import accumulator

from .checks import check_finite_embeddings, check_labels, check_number
from .pair_scores import Operating, Pairs, Source, pairs_within, thresholds


@dataclass(frozen=True)
class Calibration:
    """A threshold, and the errors it makes on the pairs it was calibrated on.

    A pair is accepted if and only if its score is ``threshold`` or more. The counts say how much a
    rate rests on: 30 errors of independent pairs give it to within 30 % with 90 % confidence
    (Doddington's rule of 30).

    Attributes:
        threshold: In the scores' own precision.
        false_accepts: Impostor pairs with a score of ``threshold`` or more.
        impostors: Pairs of different identities.
        false_rejects: Genuine pairs with a score below ``threshold``.
        genuine: Pairs of the same identity.
        equal_error_rate: The mean of both rates where they are closest to each other.
        equal_error_threshold: A threshold with these rates.
    """

    threshold: float
    false_accepts: int
    impostors: int
    false_rejects: int
    genuine: int
    equal_error_rate: float
    equal_error_threshold: float

    @property
    def false_accept_rate(self) -> float:
        return self.false_accepts / self.impostors

    @property
    def false_reject_rate(self) -> float:
        return self.false_rejects / self.genuine

    def __str__(self) -> str:
        return (
            f"accept a pair if its score is >= {self.threshold:.9g}\n"
            f"false accept rate  {self.false_accept_rate:.4g}  "
            f"({self.false_accepts} of {self.impostors} impostor pairs)\n"
            f"false reject rate  {self.false_reject_rate:.4g}  "
            f"({self.false_rejects} of {self.genuine} genuine pairs)\n"
            f"equal error rate   {self.equal_error_rate:.4g}  "
            f"(threshold {self.equal_error_threshold:.9g})"
        )


def calibrate_threshold(
    genuine: Tensor,
    impostor: Tensor,
    *,
    false_accept_rate: float | None = None,
    false_reject_rate: float | None = None,
) -> Calibration:
    """The threshold on the scores of pairs that keeps one kind of error at a target rate.

    A pair is accepted if its score is the threshold or more. Of the thresholds with at most the
    wanted rate the one with the fewest errors of the other kind is taken: the lowest for
    ``false_accept_rate``, the highest for ``false_reject_rate``. Equal scores fall on the same
    side, so that ties never push the rate above the target. The rates are those of ISO/IEC
    19795-1 (false match and false non-match rate).

    Args:
        genuine: Scores of pairs of the same identity, larger for more alike (negate distances),
            shape [G]. float32 or float64, finite.
        impostor: Scores of pairs of different identities, shape [I], same dtype.
        false_accept_rate: Largest share of the impostors that may be accepted.
        false_reject_rate: Largest share of the genuine pairs that may be rejected. Exactly one of
            the two targets is given; it lies in (0, 1).

    Returns:
        ``Calibration`` with the threshold and the rates it achieves.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came. A
            target below one error among the pairs given is refused: they cannot show it.
    """
    _check_scores("genuine", genuine)
    _check_scores("impostor", impostor)
    if impostor.dtype != genuine.dtype:
        raise TypeError(
            f"impostor: expected the dtype of genuine, {genuine.dtype}, got {impostor.dtype}"
        )

    def pairs() -> Iterator[Pairs]:
        for scores, same in ((genuine, True), (impostor, False)):
            yield Pairs(scores.detach(), torch.tensor(same, device=scores.device))

    return _calibrate(
        pairs, genuine.dtype, len(genuine), len(impostor), false_accept_rate, false_reject_rate
    )


def calibrate_gallery(
    embeddings: Tensor,
    labels: Tensor,
    *,
    false_accept_rate: float | None = None,
    false_reject_rate: float | None = None,
    normalize: bool = True,
) -> Calibration:
    """``calibrate_threshold`` on all pairs of a labelled gallery, without holding their scores.

    Exact: every pair i < j is scored (in float32; float64 for float64 embeddings), a tile at a
    time, once to find the leading bits of the threshold and once more (thrice for float64) for
    the others.

    Args:
        embeddings: Shape [N, D], finite.
        labels: Integer identities, shape [N].
        false_accept_rate, false_reject_rate: As in ``calibrate_threshold``.
        normalize: Score by cosine.
    """
    check_finite_embeddings("embeddings", embeddings)
    labels = check_labels("labels", labels, len(embeddings), "embeddings", embeddings.device)
    items = torch.unique(labels, return_counts=True)[1]
    genuine = int((items * (items - 1) // 2).sum())
    impostors = len(labels) * (len(labels) - 1) // 2 - genuine
    if genuine == 0 or impostors == 0:
        raise ValueError(
            "labels: expected pairs of the same label and pairs of different ones, "
            f"got {genuine} and {impostors}"
        )
    dtype = accumulator(embeddings)
    pairs = pairs_within(embeddings, labels, normalize)
    return _calibrate(pairs, dtype, genuine, impostors, false_accept_rate, false_reject_rate)


def _calibrate(
    pairs: Source,
    dtype: torch.dtype,
    genuine: int,
    impostors: int,
    false_accept_rate: float | None,
    false_reject_rate: float | None,
) -> Calibration:
    if false_accept_rate is not None and false_reject_rate is None:
        _check_target("false_accept_rate", false_accept_rate, impostors, "impostor")

        def passed(accepted: Tensor, rejected: Tensor) -> Tensor:
            return accepted.double() / impostors <= false_accept_rate

    elif false_reject_rate is not None and false_accept_rate is None:
        _check_target("false_reject_rate", false_reject_rate, genuine, "genuine")

        def passed(accepted: Tensor, rejected: Tensor) -> Tensor:
            return rejected.double() / genuine > false_reject_rate

    else:
        given = "neither" if false_accept_rate is None else "both"
        raise ValueError(
            f"false_accept_rate, false_reject_rate: expected exactly one of them, got {given}"
        )

    def crossed(accepted: Tensor, rejected: Tensor) -> Tensor:
        return rejected.double() / genuine >= accepted.double() / impostors

    def rates(point: Operating) -> tuple[float, float]:
        return point.accepted / impostors, point.rejected / genuine

    (last_failing, first_passing), around_crossing = thresholds(pairs, dtype, [passed, crossed])
    chosen = last_failing if false_accept_rate is None else first_passing
    equal = min(around_crossing, key=lambda point: abs(rates(point)[0] - rates(point)[1]))
    return Calibration(
        threshold=chosen.threshold,
        false_accepts=chosen.accepted,
        impostors=impostors,
        false_rejects=chosen.rejected,
        genuine=genuine,
        equal_error_rate=sum(rates(equal)) / 2,
        equal_error_threshold=equal.threshold,
    )


def _check_target(name: str, target: float, pairs: int, kind: str) -> None:
    check_number(name, target, "a rate between 0 and 1", lambda rate: 0 < rate < 1)
    if target < 1 / pairs:
        raise ValueError(
            f"{name}: expected at least one of the {pairs} {kind} pairs, {1 / pairs:.3g}, "
            f"got {target:g}: so few pairs cannot show so low a rate"
        )


def _check_scores(name: str, scores: Tensor) -> None:
    if not isinstance(scores, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(scores).__name__}")
    if scores.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: expected float32 or float64 scores, got {scores.dtype}")
    if scores.dim() != 1 or len(scores) == 0:
        raise ValueError(
            f"{name}: expected scores of at least one pair (1-D), got shape {list(scores.shape)}"
        )
    broken = int((~scores.isfinite()).sum())
    if broken:
        raise ValueError(f"{name}: expected finite scores, got {broken} that are not")
