"""No loss of the family holds rows x rows of anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from catalogue.family import FAMILY
from python_tests.conftest import skip_unless_usable

ROOT = Path(__file__).parents[2]
MEGABYTE = 2**20
ROWS, WIDTH = 5000, 8  # a matrix of them takes 95 MB

# Each loss in turn, in a process of its own: see test_memory.py.
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from catalogue.family import FAMILY

names, rows, width = json.loads(sys.argv[1])
torch.set_num_threads(2)

def step(case, rows):
    arguments = case.arguments("plain", rows, width)
    leaves = [x.requires_grad_() for x in arguments.values()
              if torch.is_tensor(x) and x.is_floating_point()]
    torch.autograd.grad(case.ours(**arguments).sum(), leaves, materialize_grads=True)

def resident(field):
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if field + ":" in x]
    return int(line.split()[1]) * 1024

found = {}
for name in names:
    step(FAMILY[name], 64)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step(FAMILY[name], rows)
    found[name] = resident("VmHWM") - before
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def peaks():
    skip_unless_usable("native")
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system has no /proc/self/clear_refs")
    names = [name for name, case in FAMILY.items() if case.rows_matrix]
    command = [sys.executable, "-c", PROGRAM, json.dumps([names, ROWS, WIDTH])]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", [name for name, case in FAMILY.items() if case.rows_matrix])
def test_peak(peaks, name):
    assert peaks[name] <= 48 * MEGABYTE


OVERLAPPING = """
import torch, cl_kernels
from pathlib import Path

def step(rows):
    x, y = torch.randn(rows, 8, requires_grad=True), torch.randn(rows, 8)
    lists = torch.stack((torch.zeros(rows, dtype=torch.int64), torch.arange(rows)), 1)
    cl_kernels.info_nce(x, y, target=lists).backward()

def resident(field):
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if field + ":" in x]
    return int(line.split()[1]) * 1024

step(64)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
step(12000)
print(resident("VmHWM") - before)
"""


def test_lists_that_overlap():
    """Their matrix would take 549 MB."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system has no /proc/self/clear_refs")
    command = [sys.executable, "-c", OVERLAPPING]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) <= 128 * MEGABYTE
