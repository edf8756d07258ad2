"""What the loss, or a training step, takes of memory.

The loss is measured in a fresh process (``python -m examples.simclr.memory ROWS DIM TEMPERATURE
DEVICE``), because the heap of an old one hides what it reuses.
"""

import ctypes
import json
import re
import subprocess
import sys
from pathlib import Path

import torch

from cl_kernels import NTXentLoss

UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class PeakMemory:
    """The most memory held since it was made, beyond what was held then.

    A process' own memory on the CPU (Linux only: it takes ``/proc``), torch's on a GPU.

    Raises:
        OSError: ``/proc`` cannot be used.
    """

    def __init__(self, device: str) -> None:
        self._on_gpu = torch.device(device).type == "cuda"
        self.restart()
        self._before = torch.cuda.memory_allocated() if self._on_gpu else _resident_peak()

    def restart(self) -> None:
        """Forgets earlier peaks; what counts as held before stays."""
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
                libc.malloc_trim(0)  # what the heap keeps for reuse counts as held
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is held now

    def bytes(self) -> int:
        peak = torch.cuda.max_memory_allocated() if self._on_gpu else _resident_peak()
        return peak - self._before


def parse_size(text: str) -> int:
    """Bytes of ``512MiB``, ``1.5G`` and the like, by powers of 1024."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if found is None or float(found[1]) == 0:
        raise ValueError(f"expected a size such as 512MiB or 2GiB, got {text!r}")
    return int(float(found[1]) * UNITS[found[2]])


def show_size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


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
    memory = PeakMemory(device)
    _step(rows, dim, temperature, device)
    return memory.bytes() - rows * dim * 4


def _resident_peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    rows, dim, temperature, device = sys.argv[1:]
    print(json.dumps(_measure_here(int(rows), int(dim), float(temperature), device)))
