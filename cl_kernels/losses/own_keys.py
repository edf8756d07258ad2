"""Log-sum-exp over negatives that each query has for itself: there is no tile to share."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_kernels.statistics.operations import Gradients


class OwnKeys:
    """Keys [B * K, D] of queries [B, D], and which of each query's count, bool [B, K]."""

    def __init__(self, query: Tensor, keys: Tensor, counted: Tensor, scale: Tensor, bias):
        self.query, self.scale = query, scale
        self.keys = keys.view(*counted.shape, query.shape[1])  # [B, K, D]
        self.similarity = torch.matmul(self.keys, query.unsqueeze(-1)).squeeze(-1)  # [B, K]
        logits = scale * self.similarity
        logits = logits if bias is None else logits + bias[:, None]
        self.logits = torch.where(counted, logits, -torch.inf)

    def logsumexp(self) -> Tensor:
        return self.logits.logsumexp(1)

    def gradients(self, grad: Tensor, value: Tensor) -> Gradients:
        """For ``grad`` of the ``value`` that these negatives are part of, [B] each."""
        weight = grad[:, None] * (self.logits - value[:, None]).exp()
        weight = torch.where(self.logits == -torch.inf, 0, weight)
        scaled = self.scale * weight
        return Gradients(
            query=torch.matmul(scaled[:, None], self.keys).squeeze(1),
            key=(scaled[:, :, None] * self.query[:, None]).flatten(0, 1),
            scale=(weight * self.similarity).sum(),
            query_bias=weight.sum(1),
            key_bias=grad.new_empty(0),
        )
