"""pytorch-metric-learning's losses: its constructors, its calls, its reducers, our computation.

The classes inherit from the library's own and keep their names, by which its wrappers know them. A
matrix of all pairs, or a list of all triplets, is never made where the distance is a cosine or an
inner product and no miner says which pairs count (``indices_tuple``). Elsewhere the library
computes the loss, as it would have: ``streams(loss)`` tells for ``NTXentLoss``, ``SupConLoss`` and
``MultiSimilarityLoss`` which it will be.
"""

from cl_kernels.integrations.versions import require

require("pytorch-metric-learning", (2, 9), (3, 0))

from . import classes, memory, pairs, triplets  # noqa: E402
from .classes import ArcFaceLoss, CosFaceLoss, NormalizedSoftmaxLoss  # noqa: E402
from .compared import streams  # noqa: E402
from .memory import CrossBatchMemory  # noqa: E402
from .pairs import MultiSimilarityLoss, NTXentLoss, SupConLoss  # noqa: E402
from .triplets import TripletMarginLoss  # noqa: E402

REPLACED = [*pairs.REPLACED, *triplets.REPLACED, *classes.REPLACED, *memory.REPLACED]

__all__ = [
    "ArcFaceLoss",
    "CosFaceLoss",
    "CrossBatchMemory",
    "MultiSimilarityLoss",
    "NTXentLoss",
    "NormalizedSoftmaxLoss",
    "SupConLoss",
    "TripletMarginLoss",
    "streams",
]
