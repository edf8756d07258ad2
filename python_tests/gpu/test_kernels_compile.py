"""Every kernel compiles for every architecture: no spills, shared memory that a block may have,
and the architecture's matrix instruction. Needs Triton and no GPU.

Of each kernel, type and precision the use that takes the most registers is compiled here, at the
widest line of the table, and for sm_90 of half types that with every option. ``make kernels``
compiles every use of every line: run it when a kernel or the table has changed.
"""

from dataclasses import replace

import pytest

pytest.importorskip("triton.backends.nvidia", reason="Triton is not installed")

from benchmarks import machine
from cl_kernels.backends.triton.variants import OPTIONED
from tools import cuda, goals
from tools.compiled import ARCHITECTURES, Compiled, Task, compile_all, examine, tasks
from tools.sass import Function, Instruction, Resources

JOBS = min(machine.cores(), 8)
CANDIDATES_MAY_SPILL = 16  # instructions; the table's own lines may spill none


def problems(compiled: list[Compiled], spills: int = 0) -> list[str]:
    return [
        f"sm_{c.arch} {c.label}: {'; '.join(c.problems)}"
        for c in compiled
        if c.problems and not (c.only_spills and sum(c.spilled) <= spills)
    ]


@pytest.mark.slow
def test_every_kernel():
    """One test, so that however tests are spread over processes kernels are compiled once."""
    by_arch = [task for arch in ARCHITECTURES for task in tasks(arch, representative=True)]
    calls = [Task(90, call=name) for name in goals.CALLS]
    tried = [Task(90, call=name) for name in goals.CANDIDATES]
    results = list(compile_all([*by_arch, *calls, *tried], JOBS))
    compiled, results = results[: len(by_arch)], results[len(by_arch) :]
    called, candidates = results[: len(calls)], results[len(calls) :]
    assert {c.arch for c in compiled} == set(ARCHITECTURES) and candidates
    found = [*problems(compiled), *problems(called), *problems(candidates, CANDIDATES_MAY_SPILL)]
    assert not found, "\n".join(found)
    check_predictions([*compiled, *called], dict(zip(goals.CALLS, called, strict=True)))


def check_predictions(compiled: list[Compiled], calls: dict[str, Compiled]) -> None:
    """They are within what a GPU can do, and those that a GPU's measurements are shown beside."""
    unpredicted = "topk", OPTIONED.name
    products = [c for c in compiled if c.arch == 90 and c.needs_matrix]
    tiles = {c.label: c.tile for c in products if not any(name in c.label for name in unpredicted)}
    assert tiles and all(tiles.values()), [label for label, tile in tiles.items() if not tile]
    for label, tile in tiles.items():
        # Every product was found in the machine code; both halves of a program may make the same.
        assert 0.99 < tile.counted / tile.flop < 2.01, label
        assert 10 < tile.teraflops < 831, label
    for goal in goals.GOALS:
        predicted = goals.predicted_seconds(goal, calls)
        assert predicted == pytest.approx(goal.case.predicted, rel=0.02), goal.name


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


def test_products_that_an_assembler_dropped():
    kept = Instruction("HGMMA.64x128x16.F32.BF16", "R24, gdesc[UR8], R24, !UPT")
    dropped = Instruction("HGMMA.64x8x16.F16", "RZ, gdesc[URZ], RZ, !UPT, gsb0")
    assert not examine(90, "k", Resources(64, 0, 0), 0, Function([kept])).problems
    (problem,) = examine(90, "k", Resources(64, 0, 0), 0, Function([kept, dropped])).problems
    assert problem == "1 products were dropped by the assembler"


def test_stores_of_less_than_a_word():
    def problems_of(kind, tiles):
        store = Instruction(f"STG.E{kind}", "[R2.64], R4")
        kernel = examine(90, "k", Resources(64, 0, 0), 0, Function([store]))
        return replace(kernel, needs_matrix=tiles, matrix={"HGMMA": 1}).problems

    assert not problems_of(".128", True) and not problems_of(".U16", False)
    (problem,) = problems_of(".U16", True)
    assert problem == "1 stores of less than a word"


def test_what_a_candidate_may_spill():
    spilling = Compiled(90, "k", Resources(64, 16, 0), spilled=(2, 1))
    assert problems([spilling]) and problems([spilling], spills=2)
    assert not problems([spilling], spills=3)
    assert problems([Compiled(90, "k", spilled=(1, 0), shared=10**6)], spills=3)


def test_what_a_line_may_spill_that_a_gpu_found_faster():
    spilling = Resources(255, 16, 0)
    assert not Compiled(90, "k", spilling, spilled=(2, 1), may_spill=3).problems
    assert Compiled(90, "k", spilling, spilled=(2, 2), may_spill=3).problems
    assert Compiled(90, "k", spilling, spilled=(0, 0), may_spill=3).problems


@pytest.mark.skipif(not cuda.sources() or cuda.nvcc() is None, reason="no .cu files or no nvcc")
@pytest.mark.slow
def test_cuda_sources_compile_without_spills():
    compiled = list(cuda.compile_sources(JOBS))
    assert {c.arch for c in compiled} == set(ARCHITECTURES)
    problems = [f"sm_{c.arch} {c.label}: {c.problems}" for c in compiled if c.problems]
    assert not problems, "\n".join(problems)
