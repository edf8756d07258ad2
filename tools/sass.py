"""Machine code of kernels: disassembled, cut into functions and loops, counted.

Reads what ``nvdisasm -c`` prints of a cubin. Both it and ``cuobjdump`` come with Triton.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

_SECTION = re.compile(r"\.section\s+\.text\.([\w$.]+)")
_LABEL = re.compile(r"^\.(L_x_\d+|L_\w+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P[\dT]+\s+)?([A-Z]\w*(?:\.\w+)*)\s*([^;]*);")
_TARGET = re.compile(r"`\(\.(L\w+)\)")
_USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")

# Each architecture's matrix instruction: of a warp, a group of four warps, and Tensor Memory.
MATRIX = {80: re.compile(r"HMMA"), 90: re.compile(r"HGMMA"), 100: re.compile(r"UTC\w*MMA")}


class Instruction(NamedTuple):
    opcode: str
    operands: str
    never: bool = False  # issued, but switched off by a constant predicate

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def is_matrix(self) -> bool:
        return any(pattern.fullmatch(self.name) for pattern in MATRIX.values())

    @property
    def discards(self) -> bool:
        """Whether its result goes to the register that is always zero: an assembler leaves such a
        matrix instruction where it has taken a product for zero."""
        return self.operands.startswith("RZ,")

    @property
    def bytes(self) -> int:
        """What a load or store moves for each thread."""
        width = re.search(r"\.(?:[US]?(8|16)|(64|128))(?:\.|$)", self.opcode)
        return int(width[1] or width[2]) // 8 if width else 4


@dataclass
class Function:
    """One kernel's instructions; ``labels`` says before which of them each label stands."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def count(self, pattern: str | re.Pattern[str]) -> int:
        return sum(bool(re.match(pattern, i.opcode)) for i in self.instructions)

    def loops(self) -> list[range]:
        """Instructions between each backward branch and its target, outermost first."""
        found = set()
        for end, instruction in enumerate(self.instructions):
            target = _TARGET.search(instruction.operands)
            if target and instruction.name == "BRA":
                start = self.labels.get(target[1], end + 1)
                if start < end:  # a branch to itself is padding behind the end
                    found.add((start, end + 1))
        return [range(*loop) for loop in sorted(found, key=lambda loop: loop[0] - loop[1])]


class Resources(NamedTuple):
    """What one function of a cubin takes."""

    registers: int
    stack: int  # bytes a thread
    shared: int  # bytes a block, static


def parse(text: str) -> dict[str, Function]:
    """The functions in what ``nvdisasm -c`` prints."""
    functions: dict[str, Function] = {}
    function = Function()
    for line in text.splitlines():
        if section := _SECTION.search(line):
            function = functions.setdefault(section[1], Function())
        elif label := _LABEL.match(line):
            function.labels[label[1]] = len(function.instructions)
        elif instruction := _INSTRUCTION.search(line):
            predicate, opcode, operands = instruction.groups(default="")
            operands = operands.strip()
            # LDGSTS takes as its last operand whether it loads at all.
            skips = opcode.startswith("LDGSTS") and operands.endswith(", !PT")
            never = predicate.startswith("@!PT") or skips
            function.instructions.append(Instruction(opcode, operands, never))
    return functions


def _tool(name: str) -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def read_cubin(cubin: bytes) -> Iterator[tuple[str, Resources, Function]]:
    """Name, resources and machine code of each kernel in a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
        file.write(cubin)
    try:
        usage, code = (
            subprocess.run([_tool(tool), option, file.name], capture_output=True, text=True)
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    finally:
        os.unlink(file.name)
    for done in (usage, code):
        if done.returncode:
            raise RuntimeError(f"{' '.join(done.args)}: {done.stderr.strip()}")
    functions = parse(code.stdout)
    for name, *numbers in _USAGE.findall(usage.stdout + usage.stderr):
        yield name, Resources(*map(int, numbers)), functions[name]
