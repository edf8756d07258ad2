"""Every kernel family against the float64 reference on the same rounded inputs, one line each.

A check calls public functions with one backend and the reference in float64, and gives the largest
error in units of what the accuracy rule allows: at most 1 is right. It fails on NaN as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import cl_kernels
from benchmarks.gpu.compare import or_infinite
from benchmarks.gpu.device import device, rehearsed
from cl_kernels import PairFilter
from cl_kernels._dispatch import reason_against

VALUE = 3e-7
# The rule; for TF32 products, which it does not cover, what ten bits of mantissa give.
GRADIENT = {"float32": 1e-5, "tf32": 2e-3, "float16": 1e-3, "bfloat16": 4e-3}
TF32_VALUE = 1e-3
ROW = 8.0  # times the rule, for the worst row of a gradient
LOSS_GRADIENT = 3.0  # losses round their gradient to the inputs' dtype as well
SCALE = 20.0


class Check(NamedTuple):
    name: str  # of an entry of OPERATIONS
    precision: str  # an entry of GRADIENT
    width: int
    filtered: bool = False
    ragged: bool = False
    bounded: bool = False  # a logit bound: a fixed shift, no running maximum
    deterministic: bool = False
    backend: str = "triton"

    def __str__(self) -> str:
        flags = ("filtered", "ragged", "bounded", "deterministic")
        words = [self.name, self.precision, f"D={self.width}"]
        words += [flag for flag in flags if getattr(self, flag)]
        return " ".join(words) + f" ({self.backend})" * (self.backend != "triton")

    @property
    def sizes(self) -> tuple[int, int]:
        return (1000, 1431) if self.ragged else (1024, 1536)

    @property
    def scale(self) -> float:
        """Small where every row meets itself, which would drown all its other pairs."""
        return 3.0 if self.name == "self" and not self.filtered else SCALE

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "tf32" else getattr(torch, self.precision)


def rows(count: int, width: int, dtype: torch.dtype) -> Tensor:
    return F.normalize(torch.randn(count, width, device=device(), dtype=torch.float32)).to(dtype)


def embeddings(check: Check) -> tuple[Tensor, Tensor]:
    """Every other query finds its twin among the keys: each tile has peaked rows and flat ones."""
    M, N = check.sizes
    query, key = rows(M, check.width, check.dtype), rows(N, check.width, check.dtype)
    key[:M:2] = query[::2]
    return query, key


def filters(check: Check, M: int, N: int) -> dict[str, Any]:
    if not check.filtered:
        return {}
    queries, keys = (torch.arange(n, device=device()) for n in (M, N))
    same = PairFilter(queries % 7, keys % 7, "same")
    return {"where": (same, PairFilter(queries, keys, "different"))}


def bound(check: Check) -> dict[str, Any]:
    return {"logit_bound": check.scale * 1.05} if check.bounded else {}


Outputs = tuple[Tensor, ...]
# Results and gradients of a check's leaves, by one backend.
Operation = Callable[..., Outputs]


def row(check: Check, query: Tensor, key: Tensor, scale: Tensor, **options) -> Outputs:
    options |= filters(check, len(query), len(key)) | bound(check)
    return (cl_kernels.row_logsumexp(query, key, scale, **options),)


def frozen_key(check: Check, query: Tensor, key: Tensor, scale: Tensor, **options) -> Outputs:
    return row(check, query, key.detach(), scale, **options)


def row_col(check: Check, query: Tensor, key: Tensor, scale: Tensor, **options) -> Outputs:
    options |= filters(check, len(query), len(key)) | bound(check)
    return cl_kernels.row_col_logsumexp(query, key, scale, **options)


def gram(check: Check, query: Tensor, key: Tensor, scale: Tensor, **options) -> Outputs:
    options |= filters(check, len(key), len(key)) | bound(check)
    return (cl_kernels.self_logsumexp(key, scale, **options),)


def _loss(name: str) -> Operation:
    def loss(check: Check, query: Tensor, key: Tensor, scale: Tensor, **options) -> Outputs:
        function = getattr(cl_kernels, name)
        if name == "clip":
            return (function(query, key[: len(query)], scale, **options),)
        return (function(query, key[: len(query)], temperature=1 / scale, **options),)

    return loss


LOSSES = ("nt_xent", "info_nce", "clip")
STATISTICS: dict[str, Operation] = {
    "row": row, "row, frozen key": frozen_key, "row_col": row_col, "self": gram,
}  # fmt: skip
OPERATIONS = STATISTICS | {name: _loss(name) for name in LOSSES}
SEARCHES = {"topk": 10, "topk, all stored": 1500}  # and their k


def _checks() -> Iterator[Check]:
    # Fused kernels, the widest of them, and slabs.
    for name in STATISTICS:
        for width in (64, 128, 768):
            plain, worst = Check(name, "bfloat16", width), {"filtered": True, "ragged": True}
            yield from (plain._replace(bounded=True), plain._replace(**worst), plain)
            yield plain._replace(ragged=True, bounded=True)
            for precision in ("float16", "float32", "tf32"):
                yield plain._replace(precision=precision, bounded=True)
                yield plain._replace(precision=precision, **worst)
    for name in ("row", "row_col", "self"):
        for filtered in (False, True):
            yield Check(name, "bfloat16", 128, filtered, filtered, deterministic=True)
        yield Check(name, "float32", 48, backend="native")
        yield Check(name, "bfloat16", 320, True, True, backend="native")
    for name in LOSSES:
        for precision, width in (("bfloat16", 128), ("bfloat16", 768), ("float32", 128)):
            yield Check(name, precision, width)
    for name in SEARCHES:
        for width in (128, 256, 384):
            for precision in ("bfloat16", "float32"):
                yield Check(name, precision, width)
                yield Check(name, precision, width, filtered=True, ragged=True)
        yield Check(name, "bfloat16", 128, backend="native")
        yield Check(name, "float32", 100, filtered=True, ragged=True, backend="native")


CHECKS = {str(check): check for check in _checks()}


def results(check: Check, inputs: list[Tensor], backend: str) -> list[Tensor | None]:
    """Values, and gradients of the leaves with upstream gradients of both signs.

    Their mean is not zero, so that the scale's gradient is not a small difference.
    """
    leaves = [x.detach().requires_grad_() for x in inputs]
    values = OPERATIONS[check.name](check, *leaves, backend=backend)
    torch.manual_seed(1)
    grads = [torch.randn(v.shape, device="cpu").to(v.device, v.dtype) for v in values]
    upstream = [(g + 1) / max(1, len(g)) if g.ndim else torch.ones_like(g) for g in grads]
    return [*values, *torch.autograd.grad(values, leaves, upstream, allow_unused=True)]


def value_error(ours: Tensor, truth: Tensor, precision: str) -> float:
    """In units of what is allowed; infinite where one is finite and the other is not."""
    finite = truth.isfinite()
    if not torch.equal(finite, ours.isfinite()):
        return math.inf
    rule = TF32_VALUE if precision == "tf32" else VALUE
    allowed = rule * SCALE * truth.abs().clamp_min(1.0)
    return float(((ours.double() - truth).abs() / allowed)[finite].max())


def gradient_error(ours: Tensor, truth: Tensor, allowed: float) -> float:
    if not bool(ours.isfinite().all()):
        return math.inf
    difference, whole = ours.double() - truth, truth.norm().clamp_min(1e-30)
    # One row that is wrong is little of the whole: each counts by itself too, more generously.
    rows = truth.norm(dim=1).clamp_min(float(whole) / len(truth) ** 0.5)
    worst_row = float((difference.norm(dim=1) / rows).max()) / ROW
    return max(float(difference.norm() / whole), worst_row) / allowed


def differences(check: Check) -> dict[str, float]:
    """Each result's error in units of what is allowed."""
    scale = torch.tensor(check.scale, device=device())
    inputs = [*embeddings(check), scale]
    ours = results(check, inputs, check.backend)
    if rehearsed():
        return {}
    exact = results(check, [x.double() for x in inputs], "reference")
    names = [*("row", "col")[: len(ours) - 3], "grad query", "grad key", "grad scale"]
    is_loss = check.name in LOSSES
    # Losses are made of float32 statistics; half types round their gradients once more.
    allowed = GRADIENT[check.precision] * (LOSS_GRADIENT if is_loss else 1.0)
    found = {}
    for name, mine, truth in zip(names, ours, exact, strict=True):
        if mine is None and truth is None:
            continue
        if mine is None or truth is None:
            found[name] = math.inf
            continue
        if name == "grad scale":
            error = float((mine.double() - truth).abs() / truth.abs().clamp_min(1e-3))
            found[name] = error / ((2 * ROW if is_loss else 1.0) * allowed)
        elif name in ("row", "col"):
            rule = check.precision if not is_loss or check.precision == "float32" else "tf32"
            found[name] = value_error(mine.detach(), truth.detach(), rule)
        else:
            found[name] = gradient_error(mine, truth, allowed)
    return found


def search_differences(check: Check) -> dict[str, float]:
    """Small integers: every score is exact, many are equal, and the results must be too."""
    M, N = check.sizes
    N *= 4
    query, key = (
        torch.randint(-2, 3, (n, check.width), device=device()).to(check.dtype) for n in (M, N)
    )
    options: dict[str, Any] = filters(check, M, N)
    if check.filtered:
        options["exclude"] = torch.arange(M, device=device())[:, None] + torch.arange(
            3, device=device()
        )
        options["below"] = torch.full((M,), 30.0, device=device())
    k = SEARCHES[check.name]
    ours = cl_kernels.topk(query, key, k, normalize=False, backend=check.backend, **options)
    if rehearsed():
        return {}
    if "below" in options:
        options["below"] = options["below"].double()
    truth = cl_kernels.topk(
        query.double(), key.double(), k, normalize=False, backend="reference", **options
    )
    wrong = (ours.values.double() != truth.values) | (ours.indices != truth.indices)
    return {"places that are wrong": float(wrong.sum())}


@contextmanager
def settings(check: Check) -> Iterator[None]:
    """float32 products in the check's precision; memory that shows what was never written."""
    matmul: Any = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if check.precision == "tf32" else "ieee"
    torch.use_deterministic_algorithms(check.deterministic)
    filling: Any = torch.utils.deterministic
    filling.fill_uninitialized_memory = True
    try:
        yield
    finally:
        matmul.fp32_precision = before
        torch.use_deterministic_algorithms(False)


def work(case: str) -> dict[str, Any]:
    check = CHECKS[case]
    torch.manual_seed(0)
    if rehearsed() and (reason := reason_against(check.backend, device(), check.dtype)):
        return {"ok": None, "why": reason}  # on a GPU another library serves it
    with settings(check):
        find = search_differences if check.name in SEARCHES else differences
        found = find(check)
    if not found:
        return {"ok": None}  # rehearsed
    found = {name: or_infinite(error) for name, error in found.items()}
    worst = max(found, key=found.__getitem__)
    error = found[worst]
    return {"ok": error <= 1.0, "worst": worst, "times_allowed": error, "errors": found}
