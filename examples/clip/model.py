"""What is trained: both towers, and the scale and bias of the logits."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_kernels import PairFilter, clip, siglip
from examples.clip.augment import as_float
from examples.clip.config import START, WIDEST_SCALE, Config
from examples.clip.glyphs import SIZE
from examples.clip.towers import ImageTower, TextTower, make_text_tower


class Contrast(nn.Module):
    """The loss, with a learned temperature: Radford et al. 2021, or Zhai et al. 2023.

    Pictures of characters that look alike are no negatives of each other's names (``clip``), or
    are positives (``siglip``).
    """

    def __init__(self, loss: str, gather: str) -> None:
        super().__init__()
        scale, bias = START[loss]
        self.loss, self.gather = loss, gather
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(bias)) if loss == "siglip" else None

    def forward(self, pictures: Tensor, names: Tensor, groups: Tensor) -> Tensor:
        """The loss of embeddings [n, dim] and look-alike groups [n], of all processes' batches."""
        scale = self.log_scale.exp()
        options = {"normalize": True, "gather": self.gather}
        if self.loss == "siglip":
            return siglip(pictures, names, scale, self.bias, ids=groups, **options)
        others = PairFilter(groups, groups, "different")
        return clip(pictures, names, scale, where=others, **options)

    @torch.no_grad()
    def limit(self) -> None:
        """After a step: as in CLIP, a sharper softmax than this is not stable."""
        self.log_scale.clamp_(max=math.log(WIDEST_SCALE))


class Clip(nn.Module):
    """Both towers and the loss."""

    def __init__(self, image: ImageTower, text: TextTower, contrast: Contrast) -> None:
        super().__init__()
        self.image, self.text, self.contrast = image, text, contrast


def make_model(config: Config, names: Sequence[str]) -> Clip:
    """The untrained model: the same weights for the same seed and training ``names``."""
    torch.manual_seed(config.seed)
    image = ImageTower(config.width, config.stages, SIZE, config.dim)
    text = make_text_tower(names, config.dim)
    model = Clip(image, text, Contrast(config.loss, config.gather))
    if config.precision == "float64":
        model.double()
    return model.to(config.device)


@torch.no_grad()
def embed_pictures(tower: ImageTower, pixels: Tensor, at_once: int = 512) -> Tensor:
    """Unit vectors [N, dim] in float32, on the CPU, of pictures [N, H, W] uint8."""
    weight = next(tower.parameters())
    parts = [tower(as_float(part.to(weight.device)).to(weight)) for part in pixels.split(at_once)]
    return F.normalize(torch.cat(parts).float().cpu(), dim=1)


@torch.no_grad()
def embed_names(tower: TextTower, names: Sequence[str], at_once: int = 512) -> Tensor:
    """Unit vectors [N, dim] in float32, on the CPU, of texts."""
    ids = tower.vocabulary.ids(names).to(next(tower.parameters()).device)
    return F.normalize(torch.cat([tower(part) for part in ids.split(at_once)]).float().cpu(), dim=1)
