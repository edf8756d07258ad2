"""sentence-transformers' losses and searches: its constructors, its calls, our computation.

The classes inherit from the library's own, so that trainers, model cards and wrappers such as
``MatryoshkaLoss`` take them for what they replace. Embeddings are compared in tiles that are never
held. A loss is float32 (float64 of float64 embeddings), also where the library's would be rounded
to a half type.

With ``gather_across_devices`` a loss is that of all processes' rows on every process; the library's
is that of the process's own anchors. Their gradients, after DDP's mean, are the same.
"""

from cl_kernels.integrations.versions import require

require("sentence-transformers", (6, 2), (7, 0))

from . import gist, ranking, scored, search, triplets  # noqa: E402
from .gist import CachedGISTEmbedLoss, GISTEmbedLoss  # noqa: E402
from .ranking import (  # noqa: E402
    CachedMultipleNegativesRankingLoss,
    CachedMultipleNegativesSymmetricRankingLoss,
    MultipleNegativesRankingLoss,
    MultipleNegativesSymmetricRankingLoss,
)
from .scored import AnglELoss, CoSENTLoss, MegaBatchMarginLoss  # noqa: E402
from .search import (  # noqa: E402
    community_detection,
    paraphrase_mining,
    paraphrase_mining_embeddings,
    semantic_search,
)
from .triplets import (  # noqa: E402
    BatchAllTripletLoss,
    BatchHardSoftMarginTripletLoss,
    BatchHardTripletLoss,
    BatchSemiHardTripletLoss,
)

REPLACED = [*ranking.REPLACED, *gist.REPLACED, *scored.REPLACED, *triplets.REPLACED]
REPLACED += search.REPLACED

__all__ = [
    "AnglELoss",
    "BatchAllTripletLoss",
    "BatchHardSoftMarginTripletLoss",
    "BatchHardTripletLoss",
    "BatchSemiHardTripletLoss",
    "CachedGISTEmbedLoss",
    "CachedMultipleNegativesRankingLoss",
    "CachedMultipleNegativesSymmetricRankingLoss",
    "CoSENTLoss",
    "GISTEmbedLoss",
    "MegaBatchMarginLoss",
    "MultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
    "community_detection",
    "paraphrase_mining",
    "paraphrase_mining_embeddings",
    "semantic_search",
]
