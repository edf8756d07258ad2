"""Static cost model of kernels on an H100 SXM: predictions from machine code, not measurements.

A tile costs each unit of a processor so many cycles, counted in the instructions of the tile loop
(of the whole program, where a program makes one tile). Loops inside it, over a wide row's columns,
count as often as the tile's known number of operations says.

    tensor   HGMMA: 4096 FLOP a cycle in half precision, 2048 in TF32
    shared   operands of HGMMA, LDS, STS, LDGSTS, LDG (from L1) and shuffles: 128 bytes a cycle
    mufu     MUFU: 16 lanes a cycle
    alu      comparisons, selections, minima, logic, integers, conversions: 64 lanes a cycle
    issue    every instruction: 4 warps a cycle
    l2       LDGSTS and stores, of which those narrower than a word take a sector each; atomic
             additions twice, for reading and writing
    hbm      stores: what is read comes from L2, since programs of a wave read the same rows

A program makes products and then works on their result: ``products`` (tensor, its operands and
their loads, and the latency of the first load) and ``results`` (the rest) follow one another, and
overlap only with other programs on the same processor. So a tile takes the largest of all units
and of (products + results) / resident programs.

Sources: the arithmetic throughput table (9.0) of the CUDA programming guide; the H100 white paper
(132 processors, 989 TFLOP/s at 1.83 GHz, hence 4096 FLOP a cycle; 3.35 TB/s). Assumptions: 1.755
GHz; power lets 84 % of the tensor peak last (800 TFLOP/s is what large half-precision products
reach); 3.0 TB/s of HBM (a copy); an L2 of 5120 bytes a cycle, which NVIDIA states for the A100 and
not for the H100 (the least certain number here: it limits tiles of 128 x 128); 300 cycles to the
first load. Left out: partly filled last waves, bank conflicts,
stalls on dependent instructions, contention of atomics.

Beside an H200 (its kernels' times at commit 7e49939, in ``benchmarks/results``): forward kernels
took 0.81 to 1.12 of the prediction, kernels that stored weights two bytes at a time 0.81 to 0.96
with a sector for each such store, and 1.5 to 2.6 as this model was before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tools.sass import Function, Instruction, Resources

PROCESSORS = 132
CLOCK = 1.755e9
TENSOR_SHARE = 0.84
TENSOR_FLOP = {"F16": 4096.0, "BF16": 4096.0, "TF32": 2048.0}  # a cycle
L2_BYTES = 5120 / PROCESSORS  # a cycle and processor, as the next
HBM_BYTES = 3.0e12 / CLOCK / PROCESSORS
SHARED_BYTES = 128
MUFU_LANES, ALU_LANES, ISSUED = 16, 64, 4
FIRST_LOAD = 300  # cycles
SECTOR = 32  # bytes of L2 that a store takes which is narrower than a word
REGISTERS, SHARED, RESERVED, WARPS = 65536, 227 * 1024, 1024, 64

_HGMMA = re.compile(r"HGMMA\.(\d+)x(\d+)x(\d+)\.F32\.(\w+)")
_ALU = re.compile(
    r"(IADD|VIADD|UIADD|LOP3|PLOP3|SHF|LEA|ISETP|FSETP|FSEL|SEL|FMNMX|IMNMX|VIMNMX|F2FP|PRMT|"
    r"I2FP|P2R|R2P|SGXT|BMSK)"
)
PRODUCTS = "tensor", "operands", "l2"
RESULTS = "mufu", "alu", "issue", "shared"


def _flop(i: Instruction) -> float:
    shape = _HGMMA.match(i.opcode)
    return 2.0 * int(shape[1]) * int(shape[2]) * int(shape[3]) if shape else 0.0


def _instruction_cycles(i: Instruction, warps: int) -> dict[str, float]:
    """What one instruction of a program of so many warps costs each unit."""
    cycles = {"issue": warps / ISSUED}
    if i.never:
        return cycles
    lanes = 32 * warps
    if shape := _HGMMA.match(i.opcode):
        # Four warps together multiply 64 rows; both operands are 16-bit or both 32-bit.
        groups, (m, n, k) = warps / 4, map(int, shape.groups()[:3])
        peak = TENSOR_FLOP[shape[4]]
        read = n * k + (0 if re.match(r"R\d+, R\d+", i.operands) else m * k)
        cycles["tensor"] = groups * _flop(i) / peak / TENSOR_SHARE
        cycles["operands"] = groups * read * (4 if shape[4] == "TF32" else 2) / SHARED_BYTES
    elif i.name == "MUFU":
        cycles["mufu"] = lanes / MUFU_LANES
    elif i.name in ("LDS", "STS", "LDSM", "STSM", "SHFL", "LDG"):
        width = {"LDSM": 16, "STSM": 16}.get(i.name, i.bytes)
        cycles["shared"] = lanes * width / SHARED_BYTES
    elif i.name == "LDGSTS":
        cycles["operands"] = lanes * i.bytes / SHARED_BYTES
        cycles["l2"] = lanes * i.bytes / L2_BYTES
    elif i.name in ("STG", "RED", "REDG", "ATOMG"):
        vector = re.search(r"x(\d)", i.opcode)  # RED.E.ADD.F32x4, say
        moved = lanes * (4 * int(vector[1]) if vector else i.bytes)
        if i.name == "STG":
            cycles["hbm"] = moved / HBM_BYTES
            moved = max(moved, lanes * SECTOR) if i.bytes < 4 else moved
        cycles["l2"] = moved / L2_BYTES * (1 if i.name == "STG" else 2)
    elif _ALU.match(i.opcode):
        cycles["alu"] = lanes / ALU_LANES
    return cycles


@dataclass
class Tile:
    """What one tile is predicted to take on one processor."""

    flop: float  # of the products
    cycles: dict[str, float]  # by unit
    resident: int  # programs on a processor
    counted: float = 0.0  # FLOP in the machine code: more than ``flop`` where warps repeat work

    @property
    def products(self) -> float:
        return FIRST_LOAD + max(self.cycles.get(unit, 0.0) for unit in PRODUCTS)

    @property
    def results(self) -> float:
        return max(self.cycles.get(unit, 0.0) for unit in RESULTS)

    @property
    def limits(self) -> dict[str, float]:
        serial = (self.products + self.results) / self.resident
        shared = self.cycles.get("shared", 0.0) + self.cycles.get("operands", 0.0)
        units = {k: v for k, v in self.cycles.items() if k != "operands"}
        return {**units, "shared": shared, "no overlap": serial}

    @property
    def limit(self) -> str:
        return max(self.limits, key=self.limits.__getitem__)

    def seconds(self, tiles: float) -> float:
        return tiles * self.limits[self.limit] / (PROCESSORS * CLOCK)

    @property
    def teraflops(self) -> float:
        """Of the whole GPU."""
        return self.flop / self.seconds(1) / 1e12


def resident_programs(resources: Resources, shared: int, warps: int) -> int:
    """How many programs fit one processor. Registers are given out eight to a thread."""
    registers = -(-resources.registers // 8) * 8 * 32 * warps
    return max(1, min(REGISTERS // registers, SHARED // (shared + RESERVED), WARPS // warps))


def _inside(loop: range, outer: range) -> bool:
    return loop != outer and loop.start >= outer.start and loop.stop <= outer.stop


def tile_instructions(
    function: Function, flop: float, groups: float, looped: bool
) -> list[tuple[Instruction, float]]:
    """A tile's instructions, and how often each runs, for a tile of so many operations."""
    code = function.instructions
    loops = [r for r in function.loops() if any(_flop(code[i]) for i in r)]
    whole = loops[0] if looped and loops else range(len(code))
    inner = next((loop for loop in reversed(loops) if _inside(loop, whole)), range(0))
    once = groups * sum(_flop(code[i]) for i in whole if i not in inner)
    repeated = groups * sum(_flop(code[i]) for i in inner)
    trips = (flop - once) / repeated if repeated else 1.0
    fills = any(code[i].name == "LDGSTS" for i in inner)  # the loop; its first loads stand before

    def times(i: int) -> float:
        if i in inner:
            return trips
        return 0.0 if fills and code[i].name == "LDGSTS" else 1.0

    return [(code[i], times(i)) for i in whole]


def predict(
    function: Function, resources: Resources, shared: int, warps: int, flop: float, looped: bool
) -> Tile | None:
    """A tile's cost; None for a kernel without HGMMA. ``looped``: a program makes many tiles."""
    if not function.count("HGMMA"):
        return None
    cycles: dict[str, float] = {}
    counted = 0.0
    for instruction, times in tile_instructions(function, flop, warps / 4, looped):
        counted += times * warps / 4 * _flop(instruction)
        for unit, spent in _instruction_cycles(instruction, warps).items():
            cycles[unit] = cycles.get(unit, 0.0) + times * spent
    return Tile(flop, cycles, resident_programs(resources, shared, warps), counted)
