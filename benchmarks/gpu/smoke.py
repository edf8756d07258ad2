"""Everything once, forward and backward, at small sizes: for compute-sanitizer."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F

import cl_kernels
from benchmarks.gpu import checks
from cl_kernels import PairFilter
from cl_kernels._dispatch import reason_against


def rows(count: int, width: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, device=device)).to(dtype).requires_grad_()


def primitives(
    M: int, N: int, width: int, dtype: torch.dtype, device: str, filtered: bool = True
) -> None:
    query, key = rows(M, width, dtype, device), rows(N, width, dtype, device)
    scale = torch.tensor(14.0, device=device, requires_grad=True)
    ids = torch.arange(max(M, N), device=device)
    where = (PairFilter(ids[:M], ids[:N], "different"),) if filtered else ()
    own = (PairFilter(ids[:M], ids[:M], "different"),) if filtered else ()
    row, col = cl_kernels.row_col_logsumexp(query, key, scale, where=where)
    (row.sum() + col.sum()).backward()
    cl_kernels.row_logsumexp(query, key, 14.0, where=where, logit_bound=15.0).sum().backward()
    cl_kernels.row_logsumexp(query, key.detach(), scale, where=where).sum().backward()
    cl_kernels.self_logsumexp(query, scale, where=own).sum().backward()
    for tensor in (query, key, scale):
        assert tensor.grad is not None and bool(tensor.grad.isfinite().all())


def statistics(M: int, N: int, width: int, dtype: torch.dtype, device: str) -> None:
    """Every statistic with every option."""
    query, key = rows(M, width, dtype, device), rows(N, width, dtype, device)
    for name in (name for name in checks.STATISTICS if "frozen" not in name):
        first = key if name.startswith("self") else query
        below = torch.rand(len(first), device=device)
        query_bias, key_bias = (torch.rand(len(x), device=device) for x in (first, key))
        values = checks.STATISTICS[name](
            query, key, torch.tensor(14.0, device=device, requires_grad=True),
            below=below, above=below - 0.5, guide=(first[:, :8], key[:, :8], 0.1),
            query_bias=query_bias.requires_grad_(), key_bias=key_bias.requires_grad_(),
        )  # fmt: skip
        kept = [x[x > -torch.inf] for x in values if x.is_floating_point()]
        torch.cat(kept).sum().backward()
        for bias in (query_bias, key_bias):
            assert bias.grad is not None and bool(bias.grad.isfinite().all())


def losses(batch: int, width: int, dtype: torch.dtype, device: str) -> None:
    x, y = rows(batch, width, dtype, device), rows(batch, width, dtype, device)
    scale = torch.tensor(14.0, device=device, requires_grad=True)
    total = cl_kernels.nt_xent(x, y) + cl_kernels.info_nce(x, y)
    total += cl_kernels.clip(x, y, scale) + cl_kernels.siglip(x, y, scale, -10.0)
    total.backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


def searches(M: int, N: int, k: int, dtype: torch.dtype, device: str, backend: str | None) -> None:
    query, key = rows(M, 24, dtype, device), rows(N, 24, dtype, device)
    labels = torch.arange(max(M, N), device=device) % 7
    options = {
        "where": PairFilter(labels[:M], labels[:N], "different"),
        "exclude": torch.randint(0, N, (M, 3), device=device),
        "below": torch.full((M,), 0.9, device=device),
    }
    for filters in ({}, options):
        found = cl_kernels.topk(query, key, k, backend=backend, **filters)
        found.values.masked_fill(found.indices < 0, 0).sum().backward()
    assert key.grad is not None and bool(key.grad.isfinite().all())


def fused(device: str) -> None:
    """Rows whose width one tile holds, in every dtype, ragged and whole tiles."""
    for width in (24, 128):
        primitives(40, 150, width, torch.bfloat16, device)
    primitives(256, 256, 128, torch.bfloat16, device, filtered=False)
    primitives(70, 90, 64, torch.float32, device)
    primitives(70, 90, 64, torch.float16, device)
    torch.use_deterministic_algorithms(True)
    primitives(70, 90, 64, torch.bfloat16, device)
    torch.use_deterministic_algorithms(False)
    statistics(70, 90, 64, torch.bfloat16, device)
    losses(96, 64, torch.bfloat16, device)


def slabs(device: str) -> None:
    """Rows in chunks, whose weights are written and multiplied."""
    for filtered in (False, True):
        primitives(40, 150, 320, torch.bfloat16, device, filtered)
    primitives(256, 256, 320, torch.float16, device, filtered=False)
    statistics(70, 90, 320, torch.bfloat16, device)
    losses(96, 320, torch.bfloat16, device)


def backends(device: str) -> list[str | None]:
    """The device's own choice and, beside it, the compiled library."""
    return [None, *["native"] * (reason_against("native", device, torch.float32) is None)]


def all_searches(device: str) -> None:
    for backend in backends(device):
        for M, N, k in ((3, 900, 10), (70, 3000, 10), (20, 2000, 300), (600, 700, 10)):
            searches(M, N, k, torch.bfloat16, device, backend)
        searches(4, 6000, 5000, torch.float32, device, backend)


def selection(device: str) -> None:
    """A warp a row, a block a row in shared memory, and in global memory."""
    for backend in backends(device)[1:]:
        for M, N, k in ((70, 3000, 10), (20, 2000, 300), (4, 6000, 5000)):
            searches(M, N, k, torch.float32, device, backend)


PARTS = {"fused": fused, "slabs": slabs, "searches": all_searches, "selection": selection}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.smoke", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    options = parser.parse_args()
    torch.manual_seed(0)
    for part in options.part:
        PARTS[part](options.device)
    if options.device == "cuda":
        torch.cuda.synchronize()
    print(f"ran: {', '.join(options.part)}")


if __name__ == "__main__":
    main()
