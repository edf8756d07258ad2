"""What is checked: which calls, of which inputs. ``correct`` judges what they give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import cl_kernels
from benchmarks.gpu.device import device
from cl_kernels import PairFilter
from cl_kernels.statistics.table import SIDES
from cl_kernels.statistics.table import STATISTICS as TABLE

SCALE = 20.0
BIAS = -10.0  # of SigLIP, where its paper starts
GUIDE_WIDTH = 24
OPTIONS = "bounds", "biases", "guide", "normalize"


class Check(NamedTuple):
    name: str  # of an entry of OPERATIONS
    precision: str  # of products and inputs
    width: int
    filtered: bool = False
    ragged: bool = False
    bounded: bool = False  # a logit bound: a fixed shift, no running maximum
    deterministic: bool = False
    options: tuple[str, ...] = ()
    backend: str = "triton"

    def __str__(self) -> str:
        flags = ("filtered", "ragged", "bounded", "deterministic")
        words = [self.name, self.precision, f"D={self.width}"]
        words += [flag for flag in flags if getattr(self, flag)]
        words += ["every option"] if self.options == OPTIONS else self.options
        return " ".join(words) + f" ({self.backend})" * (self.backend != "triton")

    @property
    def sizes(self) -> tuple[int, int]:
        return (1000, 1431) if self.ragged else (1024, 1536)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        M, N = self.sizes
        return (N, N) if self.name.startswith("self") else (M, N)

    @property
    def scale(self) -> float:
        """Small where every row meets itself, which would drown all its other pairs."""
        return 3.0 if self.name == "self" and not self.filtered else SCALE

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "tf32" else getattr(torch, self.precision)

    @property
    def exact(self) -> bool:
        """Whether a comparison decides, whose two sides must not be within rounding: rows are
        such that products have no rounding, and thresholds lie between the values they take."""
        return "hinge" in self.name or bool(self.options)

    @property
    def steps(self) -> int:
        """Similarities of exact rows are multiples of 1 / steps: a power of 4, up to the width."""
        return 4 ** ((self.width.bit_length() - 1) // 2)


def rows(count: int, width: int, dtype: torch.dtype) -> Tensor:
    return F.normalize(torch.randn(count, width, device=device(), dtype=torch.float32)).to(dtype)


def exact_rows(count: int, check: Check) -> Tensor:
    """Of length 1, and every product of two of them is a multiple of 1 / steps."""
    places = torch.rand(count, check.width, device=device()).topk(check.steps).indices
    signs = torch.randint(0, 2, places.shape, device=device()) * 2.0 - 1
    zeros = torch.zeros(count, check.width, device=device())
    return zeros.scatter(1, places, signs / check.steps**0.5).to(check.dtype)


def embeddings(check: Check) -> tuple[Tensor, Tensor]:
    """Every other query finds its twin among the keys: each tile has peaked rows and flat ones."""
    M, N = check.sizes
    if check.exact:
        query, key = exact_rows(M, check), exact_rows(N, check)
    else:
        query, key = rows(M, check.width, check.dtype), rows(N, check.width, check.dtype)
    key[:M:2] = query[::2]
    return query, key


def integers(least: int, most: int, *shape: int) -> Tensor:
    return torch.randint(least, most + 1, shape, device=device()).float()


def trained(check: Check) -> dict[str, Tensor]:
    """The inputs whose gradients are asked for."""
    query, key = embeddings(check)
    leaves = {"query": query, "key": key, "scale": torch.tensor(check.scale, device=device())}
    if "biases" in check.options:
        # Logits are multiples of 1 / 64 and a half of that: none is 0.
        query_bias, key_bias = (integers(-64, 64, n) / 64 for n in check.shape)
        leaves |= {"query_bias": query_bias + 1 / 128, "key_bias": key_bias}
    if check.name == "siglip":
        leaves["logit_bias"] = torch.tensor(BIAS, device=device())
    return leaves


def filters(check: Check, M: int, N: int) -> dict[str, Any]:
    if not check.filtered:
        return {}
    queries, keys = (torch.arange(n, device=device()) for n in (M, N))
    same = PairFilter(queries % 7, keys % 7, "same")
    return {"where": (same, PairFilter(queries, keys, "different"))}


def bounds(check: Check) -> dict[str, Any]:
    """Halfway between two similarities; some queries keep their twins, some nearly nothing."""
    M, _ = check.shape
    below, above = ((integers(*ends, M) + 0.5) / check.steps for ends in ((4, 20), (-12, 3)))
    return {"below": torch.where(integers(0, 1, M) > 0, below, 2.0), "above": above}


def guide(check: Check) -> dict[str, Any]:
    """Of small integers, with ceilings between two of them."""
    query, key = (integers(-2, 2, n, GUIDE_WIDTH) for n in check.shape)
    return {"guide": (query, key, integers(4, 12, len(query)) + 0.5)}


def options(check: Check) -> dict[str, Any]:
    """Those of the call whose gradients are not asked for."""
    if check.name in LOSSES:
        return {}
    found = filters(check, *check.shape)
    if check.bounded:
        found["logit_bound"] = check.scale * 1.05
    found |= bounds(check) if "bounds" in check.options else {}
    found |= guide(check) if "guide" in check.options else {}
    return found | ({"normalize": True} if "normalize" in check.options else {})


Outputs = tuple[Tensor, ...]
Operation = Callable[..., Outputs]  # of what is trained and of options, by name


def _flat(found: Any) -> Outputs:
    return (found,) if isinstance(found, Tensor) else tuple(x for y in found for x in _flat(y))


def _statistic(name: str, frozen: bool = False) -> Operation:
    def statistic(query: Tensor, key: Tensor, scale: Tensor, **options) -> Outputs:
        function = getattr(cl_kernels, name)
        if name.startswith("self"):
            return _flat(function(key, scale, **options))
        return _flat(function(query, key.detach() if frozen else key, scale, **options))

    return statistic


def nt_xent(query: Tensor, key: Tensor, scale: Tensor, **options) -> Outputs:
    return (cl_kernels.nt_xent(query, key[: len(query)], temperature=1 / scale, **options),)


def info_nce(query: Tensor, key: Tensor, scale: Tensor, **options) -> Outputs:
    return (cl_kernels.info_nce(query, key[: len(query)], temperature=1 / scale, **options),)


def clip(query: Tensor, key: Tensor, scale: Tensor, **options) -> Outputs:
    return (cl_kernels.clip(query, key[: len(query)], scale, **options),)


def siglip(query: Tensor, key: Tensor, scale: Tensor, logit_bias: Tensor, **options) -> Outputs:
    return (cl_kernels.siglip(query, key[: len(query)], scale, logit_bias, **options),)


def contrast(query: Tensor, key: Tensor, scale: Tensor, **options) -> Outputs:
    """A loss of one's own: gradients are added before they are rounded."""
    wide = torch.promote_types(query.dtype, torch.float32)
    ids = torch.arange(len(query), device=query.device)
    query, key, dtype = query.to(wide), key[: len(query)].to(wide), query.dtype
    options |= {"where": PairFilter(ids, ids, "different"), "compute_dtype": dtype}
    negatives = cl_kernels.row_logsumexp(query, key, scale, **options)
    return (cl_kernels.contrast(negatives, cl_kernels.pair_logits(query, key, scale)).mean(),)


SUMS = {
    f"{s.sides} {s.fold.name.removesuffix('_sum')}": s.name
    for s in TABLE.values()
    if s.fold.name.endswith("_sum")
}
STATISTICS = {
    "row": _statistic("row_logsumexp"),
    "row, frozen key": _statistic("row_logsumexp", frozen=True),
    "row_col": _statistic("row_col_logsumexp"),
    "self": _statistic("self_logsumexp"),
    **{name: _statistic(function) for name, function in SUMS.items()},
}
LOSSES: dict[str, Operation] = {
    "nt_xent": nt_xent, "info_nce": info_nce, "clip": clip, "siglip": siglip, "contrast": contrast,
}  # fmt: skip
OPERATIONS = STATISTICS | LOSSES
SEARCHES = {"topk": 10, "topk, all stored": 1500}  # and their k


def of_logsumexps() -> Iterator[Check]:
    """Fused kernels, the widest of them, and slabs."""
    for name in ("row", "row, frozen key", "row_col", "self"):
        for width in (64, 128, 768):
            plain, worst = Check(name, "bfloat16", width), {"filtered": True, "ragged": True}
            yield from (plain._replace(bounded=True), plain._replace(**worst), plain)
            yield plain._replace(ragged=True, bounded=True)
            for precision in ("float16", "float32", "tf32"):
                yield plain._replace(precision=precision, bounded=True)
                yield plain._replace(precision=precision, **worst)
    for name in SIDES:
        for filtered in (False, True):
            yield Check(name, "bfloat16", 128, filtered, filtered, deterministic=True)
        yield Check(name, "float32", 48, backend="native")
        yield Check(name, "bfloat16", 320, True, True, backend="native")


def of_sums() -> Iterator[Check]:
    """Each in every precision, narrow and wide; float32 and float16 share the two widths."""
    for i, name in enumerate(SUMS):
        widths = (64, 512) if i % 2 else (512, 64)
        yield Check(name, "bfloat16", 64)
        yield Check(name, "bfloat16", 512, filtered=True, ragged=True)
        yield Check(name, "float32", widths[0], filtered=True, ragged=True)
        yield Check(name, "float16", widths[1], ragged=True)


def of_options() -> Iterator[Check]:
    for name in SIDES:
        yield Check(name, "bfloat16", 64, ragged=True, options=("bounds",))
        yield Check(name, "float32", 64, ragged=True, options=("biases",))
        yield Check(name, "float16", 64, ragged=True, options=("guide",))
        yield Check(name, "bfloat16", 512, True, True, options=OPTIONS)
    yield Check("row_col", "float32", 64, True, True, options=OPTIONS, backend="chunked")


def of_losses() -> Iterator[Check]:
    for name in ("nt_xent", "info_nce", "clip", "siglip"):
        for precision, width in (("bfloat16", 128), ("bfloat16", 768), ("float32", 128)):
            yield Check(name, precision, width)
    yield Check("contrast", "float32", 128)


def of_searches() -> Iterator[Check]:
    for name in SEARCHES:
        for width in (128, 256, 384):
            for precision in ("bfloat16", "float32"):
                yield Check(name, precision, width)
                yield Check(name, precision, width, filtered=True, ragged=True)
        yield Check(name, "bfloat16", 128, backend="native")
        yield Check(name, "float32", 100, filtered=True, ragged=True, backend="native")


ALL = [*of_logsumexps(), *of_sums(), *of_options(), *of_losses(), *of_searches()]
CHECKS = {str(check): check for check in ALL}
