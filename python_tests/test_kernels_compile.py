"""Every kernel compiles for every architecture: no spills, shared memory that a block may have,
and the architecture's matrix instruction. Needs Triton and no GPU.

Of each kernel and line of the table the use that takes the most registers is compiled here;
``make kernels`` compiles every use.
"""

from collections import defaultdict

import pytest

pytest.importorskip("triton.backends.nvidia", reason="Triton is not installed")

from benchmarks import machine
from tools import cuda, goals
from tools.compiled import ARCHITECTURES, Compiled, Task, compile_all, tasks
from tools.sass import Function, Instruction, Resources

JOBS = min(machine.cores(), 8)


@pytest.fixture(scope="module")
def compiled():
    """By architecture; the last are the calls that whole losses are predicted from."""
    wanted = [task for arch in ARCHITECTURES for task in tasks(arch, representative=True)]
    wanted += [Task(90, call=name) for name in goals.CALLS]
    found = defaultdict(list)
    for task, result in zip(wanted, compile_all(wanted, JOBS), strict=True):
        found["calls" if task.call else task.arch].append(result)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("arch", [*ARCHITECTURES, "calls"])
def test_no_configuration_spills_or_misses_its_matrix_instruction(compiled, arch):
    assert compiled[arch]
    problems = [f"{c.label}: {'; '.join(c.problems)}" for c in compiled[arch] if c.problems]
    assert not problems, "\n".join(problems)


@pytest.mark.slow
def test_predictions_are_within_what_a_gpu_can_do(compiled):
    products = [c for c in compiled[90] if c.needs_matrix and "topk" not in c.label]
    tiles = {c.label: c.tile for c in products}
    assert tiles and all(tiles.values()), [label for label, tile in tiles.items() if not tile]
    for label, tile in tiles.items():
        # Every product was found in the machine code; both halves of a program may make the same.
        assert 0.99 < tile.counted / tile.flop < 2.01, label
        assert 10 < tile.teraflops < 831, label
    known = dict(zip(goals.CALLS, compiled["calls"], strict=True))
    assert all(goals.parts(goal, known) for goal in goals.GOALS)


def test_what_counts_as_a_problem():
    code = Function([Instruction("HMMA.16816.F32.BF16", "R0, R4, R8, R0")])
    good = Compiled(80, "k", Resources(64, 0, 0), 1024, matrix={"HMMA": 4}, needs_matrix=True)
    assert not good.problems and code.count("HMMA") == 1
    assert "16 bytes of stack" in Compiled(90, "k", Resources(64, 16, 0)).problems[0]
    assert "spills" in Compiled(90, "k", spilled=(2, 0)).problems[0]
    assert "of 166912" in Compiled(80, "k", shared=170_000).problems[0]
    assert not Compiled(90, "k", shared=170_000).problems
    slow_path = Compiled(90, "k", matrix={"HMMA": 4}, needs_matrix=True)
    assert "no HGMMA" in slow_path.problems[0]
    assert Compiled(90, "k", error="boom").problems == ["boom"]


@pytest.mark.skipif(not cuda.sources() or cuda.nvcc() is None, reason="no .cu files or no nvcc")
@pytest.mark.slow
def test_cuda_sources_compile_without_spills():
    compiled = list(cuda.compile_sources(JOBS))
    assert {c.arch for c in compiled} == set(ARCHITECTURES)
    problems = [f"sm_{c.arch} {c.label}: {c.problems}" for c in compiled if c.problems]
    assert not problems, "\n".join(problems)
