"""Every kernel family against the float64 reference on the same rounded inputs, one line each.

A check calls public functions with one backend and the reference in float64, and gives the largest
error in units of what the accuracy rule allows: at most 1 is right. It fails on NaN as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import cl_kernels
from benchmarks.gpu.checks import (
    CHECKS,
    LOSSES,
    OPERATIONS,
    SCALE,
    SEARCHES,
    Check,
    filters,
    options,
    trained,
)
from benchmarks.gpu.compare import or_infinite
from benchmarks.gpu.device import device, rehearsed

VALUE = 3e-7
# The rule; for TF32 products, which it does not cover, what ten bits of mantissa give.
GRADIENT = {"float32": 1e-5, "tf32": 2e-3, "float16": 1e-3, "bfloat16": 4e-3}
TF32_VALUE = 1e-3
ROW = 8.0  # times the rule, for the worst row of a gradient
LOSS_GRADIENT = 3.0  # losses round their gradient to the inputs' dtype as well
REFUSED = "cannot serve this call"  # as a backend says that was asked for by name


def results(
    check: Check, inputs: Mapping[str, Tensor], given: Mapping[str, Any], backend: str
) -> dict[str, Tensor | None]:
    """Values, counts, and gradients of the inputs with upstream gradients of both signs.

    Their mean is not zero, so that the scale's gradient is not a small difference, and they are
    large enough for gradients that float16 holds.
    """
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    found = OPERATIONS[check.name](**leaves, **given, backend=backend)
    values = [x for x in found if x.is_floating_point()]
    counts = [x for x in found if not x.is_floating_point()]
    torch.manual_seed(1)
    grads = [torch.randn(v.shape, device="cpu").to(v.device, v.dtype) for v in values]
    upstream = [g + 1 if g.ndim else torch.ones_like(g) for g in grads]
    grads = torch.autograd.grad(values, list(leaves.values()), upstream, allow_unused=True)
    return {
        **dict(zip(("row", "col"), values, strict=False)),
        **dict(zip(("row count", "col count"), counts, strict=False)),
        **{f"grad {name}": grad for name, grad in zip(leaves, grads, strict=True)},
    }


def places_that_differ(ours: Tensor, truth: Tensor) -> float:
    """Above what is allowed if there is one."""
    count = int((ours.double() != truth.double()).sum())
    return 1.0 + count if count else 0.0


def value_error(ours: Tensor, truth: Tensor, precision: str) -> float:
    """In units of what is allowed; infinite where one is finite and the other is not."""
    finite = truth.isfinite()
    if not torch.equal(finite, ours.isfinite()):
        return math.inf
    rule = TF32_VALUE if precision == "tf32" else VALUE
    allowed = rule * SCALE * truth.abs().clamp_min(1.0)
    return float(((ours.double() - truth).abs() / allowed)[finite].max())


def gradient_error(ours: Tensor, truth: Tensor, allowed: float) -> float:
    """Of a matrix, or of a vector, whose rows are its elements."""
    if not bool(ours.isfinite().all()):
        return math.inf
    ours, truth = (x.reshape(len(x), -1) for x in (ours, truth))
    difference, whole = ours.double() - truth, truth.norm().clamp_min(1e-30)
    # One row that is wrong is little of the whole: each counts by itself too, more generously.
    rows = truth.norm(dim=1).clamp_min(float(whole) / len(truth) ** 0.5)
    worst_row = float((difference.norm(dim=1) / rows).max()) / ROW
    return max(float(difference.norm() / whole), worst_row) / allowed


def error(check: Check, name: str, ours: Tensor | None, truth: Tensor | None) -> float:
    """Of one result, in units of what is allowed."""
    if ours is None and truth is None:
        return 0.0
    if ours is None or truth is None:
        return math.inf
    is_loss = check.name in LOSSES
    if name in ("row", "col"):
        rule = check.precision if not is_loss or check.precision == "float32" else "tf32"
        return value_error(ours.detach(), truth.detach(), rule)
    if name.endswith("count"):
        return places_that_differ(ours, truth)
    # Losses are made of float32 statistics; half types round their gradients once more.
    allowed = GRADIENT[check.precision] * (LOSS_GRADIENT if is_loss else 1.0)
    if truth.ndim:
        return gradient_error(ours, truth, allowed)
    difference = float((ours.double() - truth).abs() / truth.abs().clamp_min(1e-3))
    return difference / ((2 * ROW if is_loss else 1.0) * allowed)


def differences(check: Check) -> dict[str, float]:
    """Each result's error in units of what is allowed."""
    inputs, given = trained(check), options(check)
    ours = results(check, inputs, given, check.backend)
    if rehearsed():
        return {}
    exact = {name: x.double() for name, x in inputs.items()}
    truth = results(check, exact, given, "reference")
    return {name: error(check, name, ours[name], truth[name]) for name in truth}


def search_differences(check: Check) -> dict[str, float]:
    """Small integers: every score is exact, many are equal, and the results must be too."""
    M, N = check.sizes
    N *= 4
    query, key = (
        torch.randint(-2, 3, (n, check.width), device=device()).to(check.dtype) for n in (M, N)
    )
    given: dict[str, Any] = filters(check, M, N)
    if check.filtered:
        given["exclude"] = torch.arange(M, device=device())[:, None] + torch.arange(
            3, device=device()
        )
        given["below"] = torch.full((M,), 30.0, device=device())
    k = SEARCHES[check.name]
    ours = cl_kernels.topk(query, key, k, normalize=False, backend=check.backend, **given)
    if rehearsed():
        return {}
    if "below" in given:
        given["below"] = given["below"].double()
    truth = cl_kernels.topk(
        query.double(), key.double(), k, normalize=False, backend="reference", **given
    )
    return {
        "values": places_that_differ(ours.values, truth.values),
        "indices": places_that_differ(ours.indices, truth.indices),
    }


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
    find = search_differences if check.name in SEARCHES else differences
    try:
        with settings(check):
            found = find(check)
    except ValueError as error:
        if rehearsed() and check.backend == "native" and REFUSED in str(error):
            return {"ok": None, "why": str(error)}  # another library serves it on a GPU
        raise
    if not found:
        return {"ok": None}  # rehearsed
    found = {name: or_infinite(error) for name, error in found.items()}
    worst = max(found, key=found.__getitem__)
    return {
        "ok": found[worst] <= 1.0,
        "worst": worst,
        "times_allowed": found[worst],
        "errors": found,
    }
