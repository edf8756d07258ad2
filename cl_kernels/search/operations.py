"""The operations of a search: the scan of all keys, and the selection among its survivors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cl_kernels._ops import define, define_overloads, new_like, overload
from cl_kernels.backends.packed import select_topk
from cl_kernels.pairs import PAIRS, Pairs


def scan_by(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The backend's ``topk``."""
    return overload("topk", backend)


def _topk_fake(query, key, k, *_):
    places = query.shape[0], k
    return new_like(query, *places), query.new_empty(places, dtype=torch.int64)


def _topk(module, query, key, k, query_factor, key_factor, exclude_offsets, exclude_keys, *pairs):
    lists = exclude_offsets, exclude_keys
    return module.topk(query, key, k, query_factor, key_factor, *lists, Pairs(*pairs))


define_overloads(
    "topk",
    "(Tensor query, Tensor key, SymInt k, Tensor? query_factor, Tensor? key_factor,"
    f" Tensor? exclude_offsets, Tensor? exclude_keys, {PAIRS}) -> (Tensor, Tensor)",
    _topk_fake,
    _topk,
)


def _select_topk_fake(packed, counts, k):
    places = packed.shape[0], k
    return packed.new_empty(places, dtype=torch.float32), packed.new_empty(places)


# Of no backend: where a compiled library is loaded torch's dispatcher calls its own.
define(
    "select_topk(Tensor packed, Tensor counts, SymInt k) -> (Tensor, Tensor)",
    select_topk,
    _select_topk_fake,
)
