"""What the library's losses have in common."""

from __future__ import annotations

from typing import Any

from sentence_transformers import util
from torch import Tensor

from cl_kernels.ranks.group import world_size

Similarities = dict[Any, bool]  # functions of the library, and whether rows are normalized first

_OF_ALL: Similarities = {util.cos_sim: True, util.pytorch_cos_sim: True, util.dot_score: False}


def normalizes(function: Any, known: Similarities = _OF_ALL, name: str = "similarity_fct") -> bool:
    """Whether a similarity is the cosine.

    Raises:
        ValueError: It is neither that nor another that tiles are made of.
    """
    if function not in known:
        names = ", ".join(dict.fromkeys(f.__name__ for f in known))
        got = getattr(function, "__name__", repr(function))
        raise ValueError(f"{name}: expected one of sentence-transformers' {names}, got {got}")
    return known[function]


def gathered(across_devices: bool) -> dict[str, Any]:
    """The argument of our losses for ``gather_across_devices``."""
    return {"gather": "all"} if across_devices and world_size() > 1 else {}


def backpropagated(loss: Tensor, with_backward: bool) -> Tensor:
    """As gradient caching asks for it: with the embeddings' gradients filled, and detached."""
    if not with_backward:
        return loss
    loss.backward()
    return loss.detach()


def check_labels(loss: Any, labels: Tensor, rows: int) -> Tensor:
    """One for each row, [rows]."""
    if labels.numel() != rows:
        raise ValueError(
            f"labels: expected one for each of the {rows} rows of {type(loss).__name__}, "
            f"got shape {list(labels.shape)}"
        )
    return labels.view(-1)
