"""Offsets past 2**31 elements, in a subprocess: what a 32-bit one reads may end the process."""

import os
import subprocess
import sys

import pytest
import torch

from python_tests.devices import DEVICE

PROGRAM = """
import torch, triton, triton.language as tl
from cl_kernels.backends.triton.configs import Config
from cl_kernels.backends.triton.folds import LOGSUMEXP
from cl_kernels.backends.triton.forward import row_col_fwd_kernel
from cl_kernels.backends.triton.problem import Problem
from cl_kernels.backends.triton.states import States
from cl_kernels.backends.triton.tiles import Tile, load_rows
from cl_kernels.pairs import Pairs

D, R = 4096, 2**31 // 4096 + 40
# Untouched memory is not there: only the last rows are written and read.
x = torch.empty(R, D, dtype=torch.float16, device=DEVICE)
x[-50:] = torch.randn(50, D, device=DEVICE)

@triton.jit
def copy_kernel(X, OUT, first, bound, TILE: tl.constexpr):
    tile = load_rows(X, first, bound, 64, 32, 64, TILE)
    tl.store(OUT + tl.arange(0, 32)[:, None] * 64 + tl.arange(0, 64)[None, :], tile)

for even, first in ((True, R - 32), (False, R - 20)):
    out = torch.zeros(32, 64, dtype=torch.float16, device=DEVICE)
    copy_kernel[(1,)](x, out, first, R, Tile(32, 16, 64, D, D, even, "ieee", False))
    n = min(32, R - first)
    assert torch.equal(out[:n], x[first:first + n, 64:128])

# The last block of rows alone, against a few columns.
y = torch.randn(16, D, dtype=torch.float16, device=DEVICE)
scale = torch.tensor(0.05, device=DEVICE)
problem = Problem(x, y, scale, Pairs(), torch.float16, None)
config = Config(32, 16, 64, 4, 1)
blocks = triton.cdiv(R, 32)
row, cols = problem.empty(R), States(problem, LOGSUMEXP, 1, 16)
problem.launch(
    row_col_fwd_kernel, 1, config, x, y, scale, (row,), cols.parts,
    problem.queries, problem.keys, R, 16, 16, 0.0, blocks - 1, 1, WHOLE=True, FOLD=LOGSUMEXP,
)
first = (blocks - 1) * 32
exact = (0.05 * x[first:].double() @ y.double().T).logsumexp(1)
torch.testing.assert_close(row[first:].double(), exact, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="counts on memory as Linux gives it"
)
def test_offsets_past_two_to_the_31():
    if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] < 2**33:
        pytest.skip("needs 8 GB of free GPU memory")
    # Triton reads the source of its kernels from a file.
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = {**os.environ, "PYTHONPATH": root}
    program = f"DEVICE = {DEVICE!r}\n" + PROGRAM
    code = (
        "import tempfile, runpy, sys\n"
        "with tempfile.NamedTemporaryFile('w', suffix='.py') as f:\n"
        "    f.write(sys.stdin.read()); f.flush(); runpy.run_path(f.name)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], input=program, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
