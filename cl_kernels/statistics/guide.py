"""Another model's judgement of which pairs count."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_kernels._precision import accumulator
from cl_kernels._transforms import refuse_transforms
from cl_kernels.checks import as_bound, check_embeddings, check_matches

Guide = tuple[Tensor, Tensor, float | Tensor]


def as_guide(guide: Guide | None, like: Tensor, shape: tuple[int, int]) -> dict[str, Tensor | None]:
    """The guide's embeddings of queries and keys and the ceiling, checked, as ``Pairs`` names them.

    They are kept in the accumulation type of the embeddings that are judged: a half type would
    decide near the ceiling by its rounding.
    """
    if guide is None:
        return {}
    if not isinstance(guide, tuple) or len(guide) != 3 or guide[2] is None:
        raise TypeError("guide: expected (query embeddings, key embeddings, ceiling)")
    *embeddings, ceiling = guide
    for name, x, rows in zip(("query", "key"), embeddings, shape, strict=True):
        check_embeddings(f"guide: {name}", x, streamed=False)
        if x.shape[0] != rows:
            raise ValueError(
                f"guide: expected one embedding for each of the {rows} "
                f"{'queries' if name == 'query' else 'keys'}, got {x.shape[0]}"
            )
        if x.device != like.device:
            raise ValueError(
                f"guide: expected the device of the embeddings, {like.device}, got {x.device}"
            )
        refuse_transforms(f"guide: {name}", x.detach())  # tangents end here, as gradients do
    query, key = embeddings
    check_matches("guide: key", key, "guide: query", query)
    dtype: torch.dtype = accumulator(like)
    same = key is query
    query = query.detach().to(dtype).contiguous()
    key = query if same else key.detach().to(dtype).contiguous()
    return {"query_guide": query, "key_guide": key, "ceiling": as_bound("guide", ceiling, like)}
