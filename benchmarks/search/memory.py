"""Peak memory of one search beyond its inputs and results, in a fresh process.

The meter is that of ``benchmarks.memory``, which says how it works.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.memory import PeakMeter
from benchmarks.search.cases import SearchCase, embeddings, filters


def measure(case: SearchCase) -> int:
    """Bytes, in this process, which should be a fresh one."""
    from cl_kernels import topk

    small = case._replace(queries=300, keys=2000)
    topk(*embeddings(small), case.k, **filters(small))  # libraries are loaded, threads started
    (query, key), options = embeddings(case), filters(case)
    _return_free_memory()
    meter = PeakMeter()
    found = topk(query, key, case.k, **options)
    return meter.extra_bytes() - found.values.nbytes - found.indices.nbytes


def _return_free_memory() -> None:
    """What making the inputs left on the heap would be used again, and not be seen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def measure_fresh(case: SearchCase, threads: int) -> int:
    """``measure`` in a process of its own."""
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.search.memory", json.dumps([list(case), threads])],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    if child.returncode:
        raise RuntimeError(f"{case} in a fresh process failed:\n{child.stderr}")
    return int(child.stdout)


if __name__ == "__main__":
    import torch

    case, threads = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    print(measure(SearchCase(*case)))
