"""Where and with what the numbers were made."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import cl_kernels

ROOT = Path(__file__).parents[1]


def _cpu_field(field: str) -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    match = re.search(rf"^{field}\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def cpu_model() -> str:
    name = _cpu_field("model name") or platform.processor() or platform.machine()
    return " ".join(re.sub(r"\((R|TM)\)|CPU|Processor|@.*", " ", name).split())


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def available_bytes() -> int:
    """Memory a benchmark may still take without pushing the machine into swap."""
    meminfo = Path("/proc/meminfo")
    match = re.search(r"MemAvailable:\s*(\d+)", meminfo.read_text()) if meminfo.exists() else None
    return int(match[1]) * 1024 if match else 2**62


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def commit() -> str:
    """The commit measured; "-dirty" if sources differ from it (results do not count)."""
    changed = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return (_git("rev-parse", "--short=12", "HEAD") or "unknown") + ("-dirty" if changed else "")


def backend() -> str:
    """The backend that serves float32 embeddings on this machine."""
    x = torch.ones(2, 2)
    return cl_kernels.explain(cl_kernels.row_logsumexp, x, x).plans[0].call.backend


def describe() -> dict[str, Any]:
    model = cpu_model()
    served_by = backend()
    family = f"family {_cpu_field('cpu family')}, model {_cpu_field('model')}"
    return {
        "kind": f"cpu-{slug(model)}-{cores()}c" + f"-{served_by}" * (served_by != "native"),
        "device": model + (f" ({family})" if _cpu_field("cpu family") else ""),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "backend": served_by,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "cl_kernels": cl_kernels.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
