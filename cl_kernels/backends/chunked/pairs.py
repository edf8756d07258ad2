"""Which pairs of a tile count."""

from __future__ import annotations

from torch import Tensor


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
    if not conditions:
        return None
    result = conditions[0]
    for condition in conditions[1:]:
        result |= condition
    return result
