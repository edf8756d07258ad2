"""What positives need: no tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_kernels.checks import as_pair, as_scalar


def pair_logits(query: Tensor, key: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """``scale * <query[i], key[i]>`` of matching rows: positives need no tiles.

    Args:
        query: Embeddings, shape [M, D].
        key: Embeddings, shape [M, D], same dtype and device.
        scale: A float or a 0-d tensor.

    Returns:
        Tensor of shape [M], in float32 (float64 for float64 embeddings).
    """
    query, key = as_pair(query, key, streamed=False)
    scale = as_scalar("scale", scale, query, streamed=False)
    if query.shape != key.shape:
        raise ValueError(
            f"key: expected as many rows as query, {query.shape[0]}, got {key.shape[0]}"
        )
    if query.dtype != torch.float64:
        query, key = query.float(), key.float()
    return scale * (query * key).sum(-1)
