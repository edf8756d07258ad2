"""Whole commands as cases: compute-sanitizer over small calls of everything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Any

from benchmarks.gpu import smoke
from benchmarks.gpu.device import device, rehearsed

# Every tensor an allocation of its own, so that reading past one shows.
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
SECONDS = 80
CASES = {  # tool and part of ``benchmarks.gpu.smoke``
    "memcheck searches": ("memcheck", "searches"),
    "memcheck slabs": ("memcheck", "slabs"),
    "racecheck selection": ("racecheck", "selection"),
    "memcheck fused": ("memcheck", "fused"),
}


def work(case: str) -> dict[str, Any]:
    tool, part = CASES[case]
    sanitizer = shutil.which("compute-sanitizer")
    if rehearsed():
        smoke.PARTS[part](device())
        return {}
    if sanitizer is None:
        return {"error": "compute-sanitizer not found"}
    command = [
        *(sanitizer, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"),
        *("--target-processes", "application-only"),
        *(sys.executable, "-m", "benchmarks.gpu.smoke", "--part", part),
    ]
    done = subprocess.run(
        command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS
    )
    print(done.stdout, done.stderr, flush=True)
    if done.returncode == 0:
        return {"clean": True}
    lines = [x for x in done.stdout.splitlines() if x.startswith("=====") and x.strip("= ")]
    return {"error": f"exit {done.returncode}: {' | '.join(lines[:3]) or done.stderr[-200:]}"}
