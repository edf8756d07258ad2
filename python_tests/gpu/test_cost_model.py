"""The reader of machine code and the static cost model, on hand-made machine code."""

import pytest

from tools import cost
from tools.sass import Instruction, Resources, parse

# A kernel of 4 warps. Its tile loop (.L_x_1) holds a loop over chunks of columns (.L_x_0): four
# loads, one of them switched off, and a product of 64 x 128 x 16; then 2 exponentials, a shuffle,
# two other instructions and a store.
TEXT = """
\t.section\t.text.fwd_kernel,"ax",@progbits
fwd_kernel:
        /*0000*/                   S2R R0, SR_CTAID.X ;
        /*0010*/                   LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64] ;
.L_x_1:
        /*0020*/                   IADD3 R1, R1, 0x1, RZ ;
.L_x_0:
        /*0030*/                   LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64] ;
        /*0040*/              @!P3 LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64+0x80] ;
        /*0050*/                   LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64+0x100], !PT ;
        /*0060*/              @!PT LDS RZ, [RZ] ;
        /*0070*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, !UPT ;
        /*0080*/               @P0 BRA `(.L_x_0) ;
        /*0090*/                   MUFU.EX2 R8, R8 ;
        /*00a0*/                   MUFU.EX2 R9, R9 ;
        /*00b0*/                   SHFL.BFLY PT, R9, R8, 0x1, 0x1f ;
        /*00c0*/                   FADD R8, R8, R9 ;
        /*00d0*/                   STG.E.128 desc[UR4][R2.64], R8 ;
        /*00e0*/              @!P1 BRA `(.L_x_1) ;
        /*00f0*/                   EXIT ;
.L_x_2:
        /*0100*/                   BRA `(.L_x_2);
        /*0110*/                   NOP;
\t.section\t.text.other_kernel,"ax",@progbits
        /*0000*/                   STL [R1], R2 ;
"""
WARPS = 4
STEP = 2.0 * 64 * 128 * 16  # operations of one HGMMA


def test_functions_instructions_and_loops():
    functions = parse(TEXT)
    assert list(functions) == ["fwd_kernel", "other_kernel"]
    kernel = functions["fwd_kernel"]
    assert len(kernel.instructions) == 18
    assert kernel.loops() == [range(2, 15), range(3, 9)]  # the padding is none
    assert [i.never for i in kernel.instructions[3:7]] == [False, False, True, True]
    assert not kernel.instructions[7].never
    assert kernel.count(r"MUFU\.EX2") == 2 and kernel.count("HGMMA") == 1
    assert functions["other_kernel"].count(r"STL\b") == 1


@pytest.mark.parametrize(
    ("opcode", "moved"), [("LDG.E", 4), ("LDG.E.U16", 2), ("STG.E.64", 8), ("LDS.U.128", 16)]
)
def test_bytes_of_loads_and_stores(opcode, moved):
    assert Instruction(opcode, "").bytes == moved


def test_what_a_tile_costs_each_unit():
    chunks = 12  # known from the tile's operations, not from the machine code
    tile = cost.predict(
        parse(TEXT)["fwd_kernel"], Resources(80, 0, 0), 50_000, WARPS, chunks * STEP, looped=True
    )
    assert tile is not None
    cycles = tile.cycles
    assert cycles["tensor"] == pytest.approx(chunks * 64 / cost.TENSOR_SHARE)
    # Both operands from shared memory, and 2 of 4 loads written to it; 16 bytes a thread.
    read, loaded = (64 + 128) * 16 * 2, 2 * 16 * 128
    assert cycles["operands"] == pytest.approx(chunks * (read + loaded) / 128)
    # The load before the loop fills the pipeline: it is one of the loop's.
    assert cycles["l2"] == pytest.approx((chunks * loaded + 16 * 128) / cost.L2_BYTES)
    assert cycles["hbm"] == pytest.approx(16 * 128 / cost.HBM_BYTES)
    assert cycles["mufu"] == 2 * 128 / 16
    assert cycles["alu"] == 128 / 64
    assert cycles["shared"] == 128 * 4 / 128
    assert cycles["issue"] == (chunks * 6 + 7) * WARPS / 4
    assert tile.resident == 4  # shared memory; registers would let 6 in


def test_what_limits_and_how_long_it_takes():
    cycles = {"tensor": 1000.0, "mufu": 800.0, "l2": 100.0}
    alone = cost.Tile(flop=1e6, cycles=cycles, resident=1)
    assert alone.limit == "no overlap"
    assert alone.limits["no overlap"] == 1000 + cost.FIRST_LOAD + 800
    together = cost.Tile(flop=1e6, cycles=cycles, resident=2)
    assert (together.limit, together.limits["no overlap"]) == ("no overlap", 1050)
    three = cost.Tile(flop=1e6, cycles=cycles, resident=3)
    assert three.limit == "tensor"
    # One tile for each processor takes its cycles.
    assert three.seconds(cost.PROCESSORS) == pytest.approx(1000 / cost.CLOCK)
    assert three.teraflops == pytest.approx(1e6 * 132 / (1000 / 1.755e9) / 1e12)


def test_a_program_of_one_tile_counts_whole():
    kernel = parse(TEXT)["fwd_kernel"]
    tile = cost.predict(kernel, Resources(64, 0, 0), 1024, WARPS, 4 * STEP, looped=False)
    assert tile is not None
    assert tile.cycles["issue"] == (18 - 6 - 1) + 4 * 6  # but the first load
    assert cost.predict(parse(TEXT)["other_kernel"], Resources(8, 0, 0), 0, 4, 1, True) is None


def test_resident_programs():
    assert cost.resident_programs(Resources(128, 0, 0), 1024, 8) == 2
    assert cost.resident_programs(Resources(129, 0, 0), 1024, 8) == 1
    assert cost.resident_programs(Resources(32, 0, 0), 113 * 1024, 4) == 1
    assert cost.resident_programs(Resources(16, 0, 0), 0, 8) == 8
