"""The native kernels again, under other instruction sets and with poisoned memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from python_tests.conftest import skip_unless_usable

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("instruction_set", "modules"),
    [("avx2", ("primitives", "nonfinite", "determinism")), ("baseline", ("options",))],
)
def test_lower_instruction_sets(instruction_set, modules):
    """Whatever the machine has; memory from malloc comes filled with 3e38, not with zeros.

    ``torch.empty`` is covered by ``nan_filled_memory``; this is for the kernels' own buffers.
    """
    skip_unless_usable("native")
    environment = {
        "CL_KERNELS_ISA": instruction_set,
        "GLIBC_TUNABLES": "glibc.malloc.perturb=128",  # bytes 0x7f
        "MALLOC_MMAP_THRESHOLD_": str(2**25),  # pages fresh from the kernel are not perturbed
        "MALLOC_TOP_PAD_": str(2**26),
    }
    files = [f"python_tests/statistics/test_{name}.py" for name in modules]
    tests = "(native or determinism) and not biases"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", tests, "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-4000:]
