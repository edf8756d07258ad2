"""Training in a process that is killed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def killed_after_a_checkpoint(module, call, path):
    """Runs ``call`` of what ``module`` has, with ``path`` for PATH, until there is a checkpoint."""
    script = (
        f"import pathlib, torch\nfrom {module} import *\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        f"PATH = pathlib.Path({str(path)!r})\n{call}\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not path.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
