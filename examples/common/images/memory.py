"""What the loss, or a training step, takes of memory.

The loss is measured in a fresh process (``python -m examples.common.images.memory SIZE DEVICE``,
with the size as JSON), because the heap of an old one hides what it reuses.
"""

import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from cl_kernels import info_nce, nt_xent

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt
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


@contextmanager
def freed_at_once() -> Iterator[None]:
    """Within it tensors have pages of their own, which go back to the system with them.

    The heap keeps room for reuse, as much as the tensors themselves and another amount in each
    run. Afterwards it is as it has become anyway once large tensors have been freed. glibc only.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, 2**16)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, 2**25)
        libc.mallopt(_TRIM_THRESHOLD, 2**26)


def parse_size(text: str) -> int:
    """Bytes of ``512MiB``, ``1.5G`` and the like, by powers of 1024."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if found is None or float(found[1]) == 0:
        raise ValueError(f"expected a size such as 512MiB or 2GiB, got {text!r}")
    return int(float(found[1]) * UNITS[found[2]])


def show_size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


class LossSize(NamedTuple):
    """A loss on so many pairs of views, each of its queries against all its keys.

    ``loss``: ``nt_xent`` (queries are the keys), ``queue`` (MoCo v2: frozen keys of earlier
    batches) or ``keys`` (MoCo v3: frozen keys of the batch).
    """

    loss: str
    pairs: int
    queries: int
    keys: int
    dim: int
    temperature: float

    def dense_bytes(self) -> int:
        """Computed, not measured: one ``queries x keys`` similarity matrix in float32."""
        return self.queries * self.keys * 4


class LossFacts(NamedTuple):
    """What a report says of a run's loss."""

    name: str
    all_alike: float  # its value where all embeddings are alike
    sizes: list[LossSize]  # of the run, and of something larger


def measure(size: LossSize, device: str) -> tuple[int | None, str]:
    """Peak bytes of one step of the loss beyond its embeddings, their gradients included.

    None, and why, where it cannot be measured: on a CPU it takes Linux and its ``/proc``.
    """
    command = [sys.executable, "-m", "examples.common.images.memory", json.dumps(size), device]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return json.loads(done.stdout), ""


def _step(size: LossSize, device: str) -> int:
    """Takes a step on random embeddings; returns their bytes."""
    views = torch.randn(2, size.pairs, size.dim, device=device)
    if size.loss == "nt_xent":
        views.requires_grad_()
        nt_xent(views[0], views[1], size.temperature).backward()
        return views.nbytes
    query, key = views[0].clone().requires_grad_(), views[1].clone()
    queue = None
    if size.loss == "queue":
        queue = torch.randn(size.keys, size.dim, device=device)
    del views
    info_nce(query, key, queue, temperature=size.temperature).backward()
    return query.nbytes + key.nbytes + (0 if queue is None else queue.nbytes)


def _measure_here(size: LossSize, device: str) -> int:
    _step(size._replace(pairs=32, queries=32, keys=32), device)  # libraries, threads and buffers
    memory = PeakMemory(device)
    embeddings = _step(size, device)
    return memory.bytes() - embeddings


def _resident_peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    size, device = sys.argv[1:]
    print(json.dumps(_measure_here(LossSize(*json.loads(size)), device)))
