"""Who is measured on a GPU; each is one forward and backward pass, ready to be called, or one
search for the best keys.

"ours" and "eager" are those of the CPU benchmarks. Other packages are measured where they are
installed. Those that know one direction only serve CLIP with two calls.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.cases import GpuCase
from benchmarks.losses import contestants
from benchmarks.losses.cases import Case
from benchmarks.losses.contestants import LOGIT_SCALE, TEMPERATURE
from catalogue import eager

Step = Callable[[], Any]
PEERS = {
    "cut_cross_entropy": "Cut Cross-Entropy",
    "liger_kernel": "Liger",
    "inf_cl": "Inf-CL",
}


def make_inputs(case: GpuCase, device: str) -> list[Tensor]:
    """Unit embeddings in bfloat16 and, for clip, the learned scale: the leaves."""
    torch.manual_seed(0)
    rows = case.rows // 2 if case.name == "nt_xent" else case.rows
    count = 1 if case.name == "self_logsumexp" else 2
    shape = rows, case.width
    shapes = [shape, (case.keys, case.width)] if case.is_search else [shape] * count
    inputs = [torch.randn(shape, device=device, dtype=torch.bfloat16) for shape in shapes]
    for x in inputs:
        # In place and in parts: the largest case must not need room for float32 copies.
        for part in x.split(65536):
            part.copy_(F.normalize(part.float()))
    if case.name == "clip":
        inputs.append(torch.tensor(LOGIT_SCALE, device=device))
    return [x.requires_grad_(not case.forward_only) for x in inputs]


def _passes(case: GpuCase, loss: Callable[..., Any], inputs: list[Tensor]) -> Step:
    def step() -> Any:
        outputs = loss(*inputs)
        return outputs if case.forward_only else torch.autograd.grad(outputs, inputs)

    return step


def filters(case: GpuCase, inputs: list[Tensor]) -> dict[str, Any]:
    """A label in 1000 dropped, 64 keys excluded, and a ceiling that few pairs reach: a row each."""
    import cl_kernels

    device = inputs[0].device
    row_labels, key_labels = (torch.arange(n, device=device) % 1000 for n in (case.rows, case.keys))
    excluded = min(64, case.keys)
    first = torch.randint(case.keys - excluded + 1, (case.rows, 1), device=device)
    return {
        "where": cl_kernels.PairFilter(row_labels, key_labels, "different"),
        "exclude": first + torch.arange(excluded, device=device),
        "below": torch.full((case.rows,), 0.4, device=device),
    }


def our_search(case: GpuCase, inputs: list[Tensor]) -> Step:
    import cl_kernels

    query, key = inputs
    options = filters(case, inputs) if case.name == "topk_filtered" else {}
    return lambda: cl_kernels.topk(query, key, case.k, normalize=False, **options)


def ours(case: GpuCase, inputs: list[Tensor]) -> Step:
    if case.is_search:
        return our_search(case, inputs)
    if case.forward_only:
        import cl_kernels

        function = getattr(cl_kernels, case.name)
        return lambda: function(*inputs, LOGIT_SCALE, logit_bound=LOGIT_SCALE * 1.01)
    cpu_case = Case(case.name, case.rows, case.width)
    return _passes(case, lambda *x: contestants.forward(cpu_case, "ours", list(x))[0], inputs)


def _eager_loss(case: GpuCase) -> Callable[..., Any]:
    function = eager.STATISTICS.get(case.name) or getattr(eager, case.name)
    if case.name == "clip":
        return function
    constant = TEMPERATURE.get(case.name, LOGIT_SCALE)
    return lambda *inputs: function(*inputs, constant)


def eager_torch(case: GpuCase, inputs: list[Tensor]) -> Step:
    if case.is_search:
        query, key = inputs
        return lambda: (query @ key.T).topk(min(case.k, case.keys), dim=1)
    return _passes(case, _eager_loss(case), inputs)


def compiled_torch(case: GpuCase, inputs: list[Tensor]) -> Step:
    backend = "inductor" if inputs[0].is_cuda else "eager"
    compiled = torch.compile(_eager_loss(case), dynamic=False, backend=backend)
    return _passes(case, compiled, inputs)


def product(case: GpuCase, inputs: list[Tensor]) -> Step:
    """The bare product of cuBLAS, into a buffer."""
    query = torch.cat([x.detach() for x in inputs[:2]]) if case.name == "nt_xent" else inputs[0]
    key = query if case.name in ("nt_xent", "self_logsumexp") else inputs[1]
    query, key = query.detach(), key.detach()
    buffer = query.new_empty(len(query), len(key))
    return lambda: torch.mm(query, key.T, out=buffer)


def _from_linear(loss: Callable[..., Any], case: GpuCase, inputs: list[Tensor]) -> Step:
    """InfoNCE or CLIP by a linear cross-entropy, whose weights are the keys."""
    target = torch.arange(case.rows, device=inputs[0].device)

    def one_way(query: Tensor, key: Tensor, scale: Tensor | float) -> Tensor:
        return loss(query * scale, key, target)

    def both(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        return (one_way(image, text, scale) + one_way(text, image, scale)) / 2

    if case.name == "clip":
        return _passes(case, both, inputs)
    scale = 1 / TEMPERATURE["info_nce"]
    return _passes(case, lambda q, k: one_way(F.normalize(q), F.normalize(k), scale), inputs)


def _torch_linear(query: Tensor, key: Tensor, target: Tensor) -> Tensor:
    function: Any = vars(F)["linear_cross_entropy"]
    options = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    return function(query, key, target, **({"options": options()} if options else {}))


def _cut(query: Tensor, key: Tensor, target: Tensor) -> Any:
    from cut_cross_entropy import linear_cross_entropy  # type: ignore[import-not-found]

    return linear_cross_entropy(query, key, target)


def _liger(query: Tensor, key: Tensor, target: Tensor) -> Any:
    from liger_kernel.ops.fused_linear_cross_entropy import (  # type: ignore[import-not-found]
        LigerFusedLinearCrossEntropyFunction as Function,
    )

    loss = Function.apply(query, key, target)
    return loss[0] if isinstance(loss, tuple) else loss


def _inf_cl(query: Tensor, key: Tensor, target: Tensor) -> Any:
    from inf_cl import cal_flash_loss  # type: ignore[import-not-found]

    return cal_flash_loss(query, key, scale=torch.ones((), device=query.device))


def others(case: GpuCase) -> dict[str, Callable[[GpuCase, list[Tensor]], Step]]:
    """Rivals beside eager PyTorch that are installed and can compute the case."""
    found: dict[str, Callable[[GpuCase, list[Tensor]], Step]] = {}
    if case.name not in ("info_nce", "clip"):
        return found
    if hasattr(F, "linear_cross_entropy"):
        found["linear_cross_entropy"] = partial(_from_linear, _torch_linear)
    for package, loss in zip(PEERS, (_cut, _liger, _inf_cl), strict=True):
        if find_spec(package):
            found[PEERS[package]] = partial(_from_linear, loss)
    return found


def left_out() -> list[str]:
    """Rivals that are not installed here."""
    missing = [name for package, name in PEERS.items() if not find_spec(package)]
    return missing + ["linear_cross_entropy"] * (not hasattr(F, "linear_cross_entropy"))
