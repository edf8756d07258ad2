"""InfoNCE as a loss of sentence-transformers: ``SentenceTransformerTrainer(loss=InfoNCE(model))``.

The value of ``MultipleNegativesRankingLoss(model, scale=1 / temperature)`` without the matrix:
other texts' positives and all given negatives are the negatives of each anchor.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cl_kernels import info_nce


class InfoNCE(nn.Module):
    """Columns anchor, positive and any number of negatives; labels are not used."""

    def __init__(self, model: nn.Module, temperature: float = 0.05) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Any = None) -> Tensor:
        texts = [self.model(features)["sentence_embedding"] for features in sentence_features]
        anchor, positive, *negatives = texts
        return info_nce(
            anchor,
            positive,
            torch.cat(negatives) if negatives else None,
            temperature=self.temperature,
            in_batch_negatives=True,
        )
