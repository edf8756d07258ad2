"""Whether embeddings still use their space: the numbers to look at when training goes nowhere."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels.evaluation import contrastive_metrics

# What ``warning`` warns below. Runs that learned had a rank of 19 and more, one that did not 2.4.
STD, RANK = 0.1, 4.0

FROM_METRICS = (
    "top1", "positive_similarity", "hardest_negative_similarity", "alignment", "uniformity",
)  # fmt: skip


@torch.no_grad()
def embedding_health(view_0: Tensor, view_1: Tensor) -> dict[str, float]:
    """Statistics of the unit embeddings of a batch.

    - ``std``: of each dimension, on average, times sqrt(D): 1 where directions are uniform, 0 where
      all are alike.
    - ``effective_rank``: exp of the entropy of the normalised singular values of the centred
      embeddings (Roy and Vetterli 2007); at most D.
    - of ``contrastive_metrics``: how often the other view is the most similar row (``top1``), the
      similarity of positives and of hardest negatives, ``alignment`` and ``uniformity``.

    Args:
        view_0: Embeddings, shape [B, D].
        view_1: Those of the other view, shape [B, D].
    """
    both = F.normalize(torch.cat([view_0, view_1]).float(), dim=1)  # [2B, D]
    image = torch.arange(len(view_0), device=view_0.device).repeat(2)
    centred = both - both.mean(0)
    spectrum = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0).sqrt()
    share = spectrum / spectrum.sum().clamp_min(1e-12)
    found = contrastive_metrics(both, labels=image).as_dict()
    return {
        "std": float(both.std(0).mean()) * math.sqrt(both.shape[1]),
        "effective_rank": float(torch.special.entr(share).sum().exp()),
        **{name: found[name] for name in FROM_METRICS},
    }


def warning(health: dict[str, float], width: int) -> str | None:
    """What to tell the user about embeddings [N, width] that have collapsed, or None."""
    what_to_do = "try a lower learning rate, a longer warm-up, or another temperature"
    if health["std"] < STD:
        return (
            f"the embeddings have collapsed to a point (std per dimension {health['std']:.3f} of "
            f"1): {what_to_do}"
        )
    if health["effective_rank"] < min(RANK, width / 2):
        return (
            "the embeddings have collapsed to a few directions (effective rank "
            f"{health['effective_rank']:.1f} of {width}): {what_to_do}"
        )
    return None
