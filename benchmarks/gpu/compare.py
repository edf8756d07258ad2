"""How far results are from others, and never NaN, which comparisons and ``max`` may pass over."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor


def relative(ours: Tensor, truth: Tensor) -> float:
    """Relative in the Frobenius norm; infinite where that is no number."""
    truth = truth.to(ours.device).double()
    return or_infinite(float((ours.double() - truth).norm() / truth.norm().clamp_min(1e-30)))


def or_infinite(difference: float) -> float:
    return math.inf if math.isnan(difference) else difference


def largest(differences: Iterable[float]) -> float:
    return max(map(or_infinite, differences))
