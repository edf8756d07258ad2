"""One word for data or weights: equal words, equal bytes."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

_DIGITS = 16  # of 64: enough to tell runs apart, short enough to read out


def fingerprint(parts: Iterable[Tensor | str | bytes | None]) -> str:
    """The first hexadecimal digits of the SHA-256 of the parts, in order.

    A tensor counts with dtype, shape and values, wherever it lies in memory.
    """
    digest = hashlib.sha256()
    for part in parts:
        head, body = _bytes(part)
        digest.update(f"{head} {len(body)}\n".encode())  # no part runs into the next
        digest.update(body)
    return digest.hexdigest()[:_DIGITS]


def _bytes(part: Tensor | str | bytes | None) -> tuple[str, bytes | memoryview]:
    if isinstance(part, Tensor):
        values = part.detach().cpu().contiguous().flatten().view(torch.uint8)
        return f"{part.dtype} {list(part.shape)}", values.numpy().data
    if isinstance(part, str):
        return "str", part.encode("utf-8", "surrogatepass")
    return ("None", b"") if part is None else ("bytes", part)
