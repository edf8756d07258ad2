"""Exact searches of the similarity matrix, which is never held."""

from .duplicates import duplicate_groups
from .pairs import BestPairs, best_pairs
from .ranges import InRange, range_search
from .scores import TopK
from .topk import as_tensor, topk

__all__ = [
    "BestPairs",
    "InRange",
    "TopK",
    "as_tensor",
    "best_pairs",
    "duplicate_groups",
    "range_search",
    "topk",
]
