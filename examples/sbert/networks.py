"""Networks from token ids to embeddings, trained from scratch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.sbert.text import PAD

_GAIN = 10.0


def occurrences(ids: Tensor, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row, token and count of each different token of each text, in this order."""
    rows, places = (ids != PAD).nonzero(as_tuple=True)
    occurring, count = (rows * vocabulary + ids[rows, places]).unique(return_counts=True)
    return occurring // vocabulary, occurring % vocabulary, count


class Bag(nn.Module):
    """Sum over a text's tokens of ``weight[t] (1 + log count[t]) vector[t]``.

    With inverse document frequencies as first weights and random vectors this is a random
    projection of TF-IDF: untrained, it already retrieves. Training moves weights and vectors.

    Args:
        idf: First weights, shape [vocabulary], positive.
        dim: Width of the vectors.
        dropout: Share of the tokens left out in training.
    """

    def __init__(self, idf: Tensor, dim: int, dropout: float) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(len(idf), dim) / dim**0.5)
        # Adam moves every parameter by about the learning rate: weights need more than coordinates.
        self.log_weight = nn.Parameter(idf.log() / _GAIN)
        self.dropout = dropout

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [N, L], padded with ``PAD``, to embeddings [N, dim]."""
        rows, tokens, count = occurrences(ids, len(self.vectors))
        weight = (_GAIN * self.log_weight[tokens]).exp() * (1 + count.log())
        weight = F.dropout(weight, self.dropout, self.training)
        first = torch.searchsorted(rows, torch.arange(len(ids), device=ids.device))
        return F.embedding_bag(
            tokens, self.vectors, first, mode="sum", per_sample_weights=weight.to(self.vectors)
        )


class Transformer(nn.Module):
    """Pre-norm transformer encoder; the mean over a text's tokens."""

    def __init__(
        self, vocabulary: int, dim: int, layers: int, heads: int, max_tokens: int, dropout: float
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = nn.Parameter(torch.randn(max_tokens, dim) * 0.02)
        nn.init.normal_(self.tokens.weight, std=dim**-0.5)
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(dim), False)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [N, L], padded with ``PAD``, to embeddings [N, dim]."""
        kept = ids != PAD
        kept[:, 0] = True  # attention over nothing is NaN: an empty text keeps one padding token
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        x = self.layers(x, src_key_padding_mask=~kept)
        return (x * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
