"""What the loss takes, forward and backward, beyond the embeddings it is given.

Measured in a fresh process (``python -m examples.simclr.memory ROWS DIM TEMPERATURE DEVICE``),
because the heap of an old one hides what it reuses.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import torch

from cl_kernels import NTXentLoss


def dense_bytes(rows: int) -> int:
    """Computed, not measured: one ``rows x rows`` similarity matrix in float32."""
    return rows * rows * 4


def measure(rows: int, dim: int, temperature: float, device: str) -> tuple[int | None, str]:
    """Peak bytes of one step of the loss on ``rows`` embeddings, their gradients included.

    None, and why, where it cannot be measured: on a CPU it takes Linux and its ``/proc``.
    """
    command = [sys.executable, "-m", "examples.simclr.memory"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*command, str(rows), str(dim), str(temperature), device],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return json.loads(done.stdout), ""


def _step(rows: int, dim: int, temperature: float, device: str) -> None:
    views = torch.randn(2, rows // 2, dim, device=device).requires_grad_()
    NTXentLoss(temperature=temperature)(views[0], views[1]).backward()


def _measure_here(rows: int, dim: int, temperature: float, device: str) -> int:
    _step(64, dim, temperature, device)  # libraries, threads and their buffers
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        _step(rows, dim, temperature, device)
        peak = torch.cuda.max_memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
        before = _resident_peak()
        _step(rows, dim, temperature, device)
        peak = _resident_peak()
    return peak - before - rows * dim * 4


def _resident_peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    rows, dim, temperature, device = sys.argv[1:]
    print(json.dumps(_measure_here(int(rows), int(dim), float(temperature), device)))
