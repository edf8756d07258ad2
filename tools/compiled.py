"""Compiles configurations of the Triton kernels' table without a GPU, and reads what came out."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.gpu.offline import GPUS
from tools.cost import Tile, predict
from tools.sass import MATRIX, Function, Resources, read_cubin

if TYPE_CHECKING:
    from cl_kernels.backends.triton.configs import Config
    from cl_kernels.backends.triton.variants import Variant

ARCHITECTURES = tuple(MATRIX)
NOTHING = Resources(0, 0, 0)
SHARED_LIMIT = {arch: gpu.shared for arch, gpu in GPUS.items()}  # bytes a block may have


@dataclass
class Compiled:
    """One kernel for one architecture."""

    arch: int
    label: str
    resources: Resources = NOTHING
    shared: int = 0  # bytes a block
    spilled: tuple[int, int] = (0, 0)  # loads, stores
    may_spill: int = 0  # of both together
    matrix: dict[str, int] = field(default_factory=dict)  # instructions found
    discarded: int = 0  # of these, whose product goes nowhere
    narrow_stores: int = 0  # of less than a word: each takes a whole sector of L2
    needs_matrix: bool = False
    tile: Tile | None = None  # what a tile is predicted to cost
    error: str = ""

    @property
    def spills(self) -> bool:
        return self.resources.stack > 0 or any(self.spilled)

    @property
    def only_spills(self) -> bool:
        return len(self.problems) == 1 and self.problems[0].startswith("spills")

    @property
    def problems(self) -> list[str]:
        """Why it must not stay in the table."""
        if self.error:
            return [self.error]
        found = []
        if self.spills and not 0 < sum(self.spilled) <= self.may_spill:
            found.append(
                f"spills: {self.resources.stack} bytes of stack, "
                f"{self.spilled[0]} loads and {self.spilled[1]} stores"
            )
        if self.shared > SHARED_LIMIT[self.arch]:
            found.append(f"{self.shared} bytes of shared memory, of {SHARED_LIMIT[self.arch]}")
        wanted = MATRIX[self.arch]
        if self.needs_matrix and not any(map(wanted.fullmatch, self.matrix)):
            found.append(f"no {wanted.pattern}, but {self.matrix or 'nothing of the kind'}")
        if self.discarded:
            found.append(f"{self.discarded} products were dropped by the assembler")
        if self.needs_matrix and self.narrow_stores:  # of tiles; others may be of one element
            found.append(f"{self.narrow_stores} stores of less than a word")
        return found


def examine(arch: int, label: str, resources: Resources, shared: int, code: Function) -> Compiled:
    products = [i for i in code.instructions if i.is_matrix]
    matrix = dict(Counter(i.name for i in products))
    discarded = sum(i.discards for i in products)
    narrow_stores = sum(i.name == "STG" and i.bytes < 4 for i in code.instructions)
    spilled = code.count(r"LDL\b"), code.count(r"STL\b")
    return Compiled(
        arch, label, resources, shared, spilled, matrix=matrix, discarded=discarded,
        narrow_stores=narrow_stores,
    )  # fmt: skip


class Task(NamedTuple):
    """A configuration by its place in ``variants(arch)``, or a call of ``goals`` by name."""

    arch: int
    place: int = 0
    call: str = ""


def products(variant: Variant) -> int:
    """Matrix products a kernel makes of each tile: logits, and sums of weighted rows."""
    return {"mean_key": 2, "backward": 2, "backward_both": 3, "self_backward": 3}.get(
        variant.family, 1
    )


def tile_flop(variant: Variant) -> float:
    tile = variant.tile
    return 2.0 * products(variant) * tile.D * tile.BLOCK_M * tile.BLOCK_N


@cache
def _variants(arch: int) -> list[Variant]:
    from cl_kernels.backends.triton.variants import variants

    return list(variants(arch))


def may_spill(variant: Variant, arch: int) -> int:
    """What is excused of its line, unless it is one of the narrower tiles."""
    from cl_kernels.backends.triton import configs, table

    half = "*bf16" in map(str, variant.signature.values())
    if not half or variant.narrow:
        return 0
    return table.MAY_SPILL.get(configs.line(arch, variant.family, "half", variant.tile.D), 0)


def compile_variant(variant: Variant, arch: int) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(variant.kernel, variant.signature, variant.constexprs, variant.attrs)
    try:
        made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=variant.options)
    except Exception as error:  # whatever the compiler raises is what the table should say
        return Compiled(arch, variant.label, error=f"{type(error).__name__}: {error}")
    ((_, resources, code),) = read_cubin(made.asm["cubin"])
    result = examine(arch, variant.label, resources, made.metadata.shared, code)
    result.may_spill = may_spill(variant, arch)
    result.needs_matrix = variant.tile.PRECISION == "tf32"  # "ieee" products are sums
    # How often a search appends survivors depends on its data, and narrow tiles may be too narrow
    # for some of sm_90's matrix instructions: no prediction.
    if arch == 90 and result.needs_matrix and variant.family != "topk" and not variant.narrow:
        looped = variant.family != "weights"
        result.tile = predict(
            code, resources, result.shared, variant.config.num_warps, tile_flop(variant), looped
        )
    return result


def _compile(task: Task) -> Compiled:
    if task.call:
        from tools.goals import CALLS, CANDIDATES

        return compile_variant((CALLS | CANDIDATES)[task.call].variant(), task.arch)
    return compile_variant(_variants(task.arch)[task.place], task.arch)


def tasks(arch: int, representative: bool = False) -> Iterator[Task]:
    """The configurations of an architecture; ``representative``: of each kernel's lines of a
    family, type and precision the last use of the widest, which masks and filters most and takes
    the most registers, and on sm_90 that of half types with every option."""
    variants = _variants(arch)
    places = range(len(variants))
    if representative:
        last = {
            (_table_line(v), v.narrow): place for v, place in zip(variants, places, strict=True)
        }
        places = {
            (line.kernel, line.family, line.half, line.precision, narrow): place
            for (line, narrow), place in last.items()
            if not narrow or (arch == 90 and line.half)
        }.values()
    yield from (Task(arch, place) for place in places)


class _TableLine(NamedTuple):
    kernel: str
    family: str
    config: Config
    half: bool
    D: int
    precision: str


def _table_line(v: Variant) -> _TableLine:
    half = v.signature["X"] == "*bf16"
    tile = v.tile
    return _TableLine(v.kernel.__name__, v.family, v.of_table, half, tile.D, tile.PRECISION)


def compile_all(wanted: Iterable[Task], jobs: int) -> Iterator[Compiled]:
    """Each compiled, in order, in processes that do not interpret."""
    environment = os.environ.pop("TRITON_INTERPRET", None)
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            yield from pool.map(_compile, wanted)
    finally:
        if environment is not None:
            os.environ["TRITON_INTERPRET"] = environment
