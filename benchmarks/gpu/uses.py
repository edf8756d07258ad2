"""What people build on the kernels, on a GPU once each: against the same on the CPU or by eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import cl_kernels
from benchmarks.gpu.compare import largest, relative
from benchmarks.gpu.device import device, rehearsed

AGREE = 2e-3


def judged(**differences: float) -> dict[str, Any]:
    wrong = {name: x for name, x in differences.items() if not x <= AGREE}
    found: dict[str, Any] = dict(differences)
    if wrong and not rehearsed():
        found["error"] = ", ".join(f"{name} differs by {x:.1e}" for name, x in wrong.items())
    return found


def grad_cache() -> dict[str, Any]:
    """One step in chunks gives the gradients of the whole batch at once."""
    x, y = torch.randn(512, 64, device=device()), torch.randn(512, 48, device=device())
    gradients = []
    for cached in (True, False):
        torch.manual_seed(0)
        towers = [torch.nn.Linear(n, 32).to(device()) for n in (64, 48)]
        loss = cl_kernels.ClipLoss(normalize=True)
        if cached:
            cl_kernels.GradCache(towers, loss, chunk_size=128).step(x, y, logit_scale=20.0)
        else:
            loss(towers[0](x), towers[1](y), logit_scale=20.0).backward()
        gradients.append([p.grad for tower in towers for p in tower.parameters()])
    pairs = zip(*gradients, strict=True)
    return judged(gradient=largest(relative(a, b) for a, b in pairs))


def streamed_keys() -> dict[str, Any]:
    """Keys that stay in the host's memory are searched as those on the device are."""
    query = torch.randint(-3, 4, (256, 64)).float()
    key = torch.randint(-3, 4, (50_000, 64)).float()
    streamed = cl_kernels.topk(query.to(device()), key, 10, normalize=False)
    whole = cl_kernels.topk(query, key, 10, normalize=False, backend="chunked")
    return judged(
        values=relative(streamed.values, whole.values),
        indices=float((streamed.indices.cpu() != whole.indices).sum()),
    )


def cuda_graph() -> dict[str, Any]:
    """A captured step gives what the step gives, on other data too."""
    x, y = (torch.randn(512, 64, device=device(), requires_grad=True) for _ in range(2))

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(cl_kernels.info_nce(x, y), (x, y))

    step()  # compiles
    if rehearsed():
        return {}
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.normal_()
    graph.replay()
    expected = step()
    return judged(gradient=largest(map(relative, captured, expected)))


def another_stream() -> dict[str, Any]:
    """A loss on a side stream, right after its inputs were made there."""
    if rehearsed():
        return {}
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = torch.randn(4096, 128, device=device())
        y = x + 0.1 * torch.randn_like(x)
        ours = cl_kernels.nt_xent(x, y)
    torch.cuda.current_stream().wait_stream(stream)
    return judged(loss=relative(ours, cl_kernels.nt_xent(x, y, backend="chunked")))


def compiled() -> dict[str, Any]:
    """``torch.compile(fullgraph=True)`` with the inductor, forward and backward."""
    if rehearsed():
        return {}
    x, y = (torch.randn(512, 64, device=device(), requires_grad=True) for _ in range(2))
    grads = [
        torch.autograd.grad(loss(x, y), (x, y))
        for loss in (torch.compile(cl_kernels.nt_xent, fullgraph=True), cl_kernels.nt_xent)
    ]
    return judged(gradient=largest(map(relative, *grads)))


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "GradCache": grad_cache,
    "streamed keys": streamed_keys,
    "CUDA graph": cuda_graph,
    "side stream": another_stream,
    "torch.compile": compiled,
}


def work(case: str) -> dict[str, Any]:
    torch.manual_seed(0)
    return CASES[case]()
