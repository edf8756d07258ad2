"""Which pairs of a tile count."""

from __future__ import annotations

from torch import Tensor


def add_biases(pairs, logits: Tensor, i: slice, j: slice) -> Tensor:
    """The logits of queries i and keys j, in place."""
    if pairs.query_bias is not None:
        logits += pairs.query_bias[i, None]
    if pairs.key_bias is not None:
        logits += pairs.key_bias[j]
    return logits


def dropped(pairs, similarity: Tensor, i: slice, j: slice) -> Tensor | None:
    """Pairs of queries i and keys j that do not count, [i, j]; None where all do."""
    conditions = [
        (query_ids[i, None] == key_ids[None, j]) != same
        for query_ids, key_ids, same in pairs.filters
    ]
    if pairs.below is not None:
        conditions.append(~(similarity < pairs.below[i, None]))
    if pairs.above is not None:
        conditions.append(~(similarity > pairs.above[i, None]))
    if pairs.ceiling is not None:
        guide = pairs.query_guide[i] @ pairs.key_guide[j].T
        conditions.append(~(guide <= pairs.ceiling[i, None]))
    if not conditions:
        return None
    result = conditions[0]
    for condition in conditions[1:]:
        result |= condition
    return result
