"""Exact top-K of the similarity matrix, which is never held."""

from .scores import TopK
from .topk import as_tensor, topk

__all__ = ["TopK", "as_tensor", "topk"]
