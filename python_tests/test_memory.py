"""Peak extra memory of forward and backward stays far below the M x N matrix."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from python_tests.conftest import skip_unless_usable

ROOT = Path(__file__).parent.parent
MEGABYTE = 2**20
ROWS, WIDTH = 8192, 64  # the matrix takes 256 MB, several times what is allowed

# Runs alone in a fresh process: its resident memory is the measurement.
# Writing 5 to clear_refs sets the high-water mark VmHWM back to the present size.
PROGRAM = """
import json, sys
from pathlib import Path
import torch, cl_kernels

name, rows, width, dtype, trained, backend = json.loads(sys.argv[1])
torch.set_num_threads(4)

def inputs(rows):
    unit = lambda: torch.nn.functional.normalize(torch.randn(rows, width)).to(getattr(torch, dtype))
    return [unit().requires_grad_(side in trained) for side in ("query", "key")]

def run(query, key):
    arguments = (query, 10.0) if name == "self_logsumexp" else (query, key)
    if name == "clip":
        arguments += (10.0,)
    result = getattr(cl_kernels, name)(*arguments, backend=backend)
    results = result if isinstance(result, tuple) else (result,)
    sum(r.sum() for r in results).backward()

def resident(field):
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if field + ":" in x]
    return int(line.split()[1]) * 1024

run(*inputs(32))
measured = inputs(rows)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
run(*measured)
gradients = sum(x.grad.nbytes for x in measured if x.grad is not None)
print(resident("VmHWM") - before - gradients)
"""


def peak_extra(name, rows=ROWS, width=WIDTH, dtype="float32", trained="query key", *, backend):
    skip_unless_usable(backend)
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system has no /proc/self/clear_refs")
    request = json.dumps([name, rows, width, dtype, trained, backend])
    command = [sys.executable, "-c", PROGRAM, request]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.mark.parametrize("primitive", ["row_logsumexp", "row_col_logsumexp", "self_logsumexp"])
def test_primitives(primitive):
    assert peak_extra(primitive, backend="native") <= 64 * MEGABYTE


def test_chunked_backend():
    assert peak_extra("row_col_logsumexp", ROWS // 2, backend="chunked") <= 64 * MEGABYTE


def test_frozen_key():
    assert peak_extra("row_logsumexp", trained="query", backend="native") <= 64 * MEGABYTE


@pytest.mark.slow
def test_four_times_the_pairs_in_bfloat16():
    extra = peak_extra("row_col_logsumexp", 2 * ROWS, dtype="bfloat16", backend="native")
    assert extra <= 64 * MEGABYTE


@pytest.mark.parametrize("loss", ["nt_xent", "info_nce", "clip"])
def test_losses(loss):
    """Beside the primitives' memory, three float32 copies of all rows of embeddings."""
    rows = ROWS // 2 if loss == "nt_xent" else ROWS
    allowed = 3 * 2 * rows * WIDTH * 4 + 64 * MEGABYTE
    assert peak_extra(loss, rows=rows, backend="native") <= allowed


def test_the_measurement_sees_a_dense_matrix():
    assert peak_extra("row_logsumexp", rows=ROWS // 2, backend="reference") > 64 * MEGABYTE
