"""An encoder, and the layers above it that only training uses."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class Tower(nn.Module):
    """An encoder and the head whose outputs a loss compares.

    ``encoder`` is what training is for; everything else is dropped afterwards.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings for the loss, shape [N, projection]."""
        return self.head(self.encoder(images))


def features_of(encoder: nn.Module) -> int:
    """The width of what an encoder gives."""
    return int(encoder.features)  # type: ignore[arg-type]


def mlp(widths: Sequence[int], norm: str = "batch", last_norm: bool = False) -> nn.Sequential:
    """Linear layers from each width to the next, with a norm and a ReLU between them.

    Args:
        widths: Of the input, the hidden layers and the output.
        norm: ``batch``, ``group`` (of one row: layer norm) or ``none``.
        last_norm: A norm without weights after the last layer.
    """
    layers: list[nn.Module] = []
    *hidden, last = pairwise(widths)
    for inputs, outputs in hidden:
        layers.append(nn.Linear(inputs, outputs, bias=norm == "none"))
        if norm != "none":
            layers.append(_norm_1d(norm, outputs))
        layers.append(nn.ReLU())
    layers.append(nn.Linear(*last, bias=not last_norm))
    if last_norm:
        layers.append(_norm_1d(norm, last[1], weights=False))
    return nn.Sequential(*layers)


def _norm_1d(norm: str, width: int, weights: bool = True) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm1d(width, affine=weights)
    return nn.LayerNorm(width, elementwise_affine=weights)
