"""The two towers, from pictures and from names to embeddings of the same width."""

from collections.abc import Sequence

from torch import Tensor, nn

from examples.clip.names import Vocabulary
from examples.common.images.encoders import Block, norm_2d
from examples.sbert.networks import Bag
from examples.sbert.text import PAD


class ImageTower(nn.Module):
    """A small residual network.

    The last map is not averaged: whether a dot is above or below a letter is a matter of place.
    Group norm, as batch norm would see the other pictures of a chunk and of a process.

    Args:
        width: Channels of the first stage; each later one doubles them and halves the side.
        stages: How many.
        size: Pixels a side.
        dim: Width of the embeddings.
    """

    def __init__(self, width: int, stages: int, size: int, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 5, 2, padding=2, bias=False)]
        layers += [norm_2d("group", width), nn.ReLU()]
        channels = width
        for stage in range(stages):
            before, channels = channels, width * 2**stage
            layers.append(Block(before, channels, 1 if stage == 0 else 2, "group"))
        self.body = nn.Sequential(*layers)
        left = channels * (size // 2**stages) ** 2
        self.head = nn.Sequential(nn.LayerNorm(left), nn.Linear(left, dim, bias=False))

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [n, 1, size, size] in [0, 1] to embeddings [n, dim]."""
        return self.head(self.body(pictures).flatten(1))


class TextTower(nn.Module):
    """A sum over the words of a name, and over each two neighbours, of weighted vectors.

    Args:
        vocabulary: Words and neighbours that count.
        idf: First weights of its ids, [len(vocabulary)].
        dim: Width of the embeddings.
    """

    def __init__(self, vocabulary: Vocabulary, idf: Tensor, dim: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.bag = Bag(idf, dim, dropout=0.0)  # what is left out would differ between processes
        self.head = nn.Linear(dim, dim, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [n, L] of names to embeddings [n, dim]."""
        return self.head(self.bag(ids))


def make_text_tower(names: Sequence[str], dim: int) -> TextTower:
    """Untrained, with the words of ``names``; rare words weigh more, as in TF-IDF."""
    vocabulary = Vocabulary.of(names)
    count = vocabulary.ids(names).flatten().bincount(minlength=len(vocabulary))
    count[PAD] = 0
    return TextTower(vocabulary, 1 + ((1 + len(names)) / (1 + count)).log(), dim)
