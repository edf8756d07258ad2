"""Every primitive and loss once, forward and backward, at small sizes: for compute-sanitizer."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F

import cl_kernels
from cl_kernels import PairFilter


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


def losses(batch: int, width: int, dtype: torch.dtype, device: str) -> None:
    x, y = rows(batch, width, dtype, device), rows(batch, width, dtype, device)
    scale = torch.tensor(14.0, device=device, requires_grad=True)
    total = cl_kernels.nt_xent(x, y) + cl_kernels.info_nce(x, y) + cl_kernels.clip(x, y, scale)
    total.backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.smoke", description=__doc__)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    torch.manual_seed(0)
    for width in (24, 128, 320):  # one tile a row, and rows in chunks, whose weights go by slabs
        primitives(40, 150, width, torch.bfloat16, device)
    primitives(256, 256, 128, torch.bfloat16, device, filtered=False)  # whole tiles
    primitives(70, 90, 64, torch.float32, device)
    primitives(70, 90, 64, torch.float16, device)
    torch.use_deterministic_algorithms(True)
    primitives(70, 90, 64, torch.bfloat16, device)
    torch.use_deterministic_algorithms(False)
    losses(96, 64, torch.bfloat16, device)
    if device == "cuda":
        torch.cuda.synchronize()
    print("every primitive and loss ran")


if __name__ == "__main__":
    main()
