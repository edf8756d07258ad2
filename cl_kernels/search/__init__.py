"""Exact top-K of the similarity matrix, which is never held."""

from .scores import TopK
from .topk import topk

__all__ = ["TopK", "topk"]
