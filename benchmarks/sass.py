"""Machine code of NVIDIA GPUs: the instructions of a kernel, with what the compiler tells the hardware of their timing.

From Volta on, an instruction has 16 bytes. 17 bits of them say how long its warp waits before the next one, and which
of six counters (scoreboards) it sets or waits for. Jia et al., "Dissecting the NVIDIA Volta GPU Architecture via
Microbenchmarking" (arXiv:1804.06826), section 2.1, describes them. They hold the compiler's own knowledge of latencies.
"""

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_FUNCTION = re.compile(r"\s+Function : (\S+)")
_FIRST = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;?\s+/\* 0x[0-9a-f]{16} \*/")
_SECOND = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")
_NONE = 7


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        address: in bytes, from the start of the kernel.
        text: as ``cuobjdump`` prints it, with its predicate.
        stall: clocks until the warp may issue the next instruction.
        waits: the scoreboards that must be clear before it issues.
        written: the scoreboard that is clear once its result is there, or ``None``.
        read: the scoreboard that is clear once its operands were read, or ``None``.
    """

    address: int
    text: str
    stall: int
    waits: tuple[int, ...]
    written: int | None
    read: int | None

    @property
    def name(self) -> str:
        """``HMMA.16816.F32.BF16`` of ``@P0 HMMA.16816.F32.BF16 R4, ...``."""
        words = self.text.split()
        return words[1] if words[0].startswith("@") else words[0]

    @property
    def conditional(self) -> bool:
        # A branch may also have its predicate as an operand: BRA P1, 0x990.
        return self.text.startswith("@") or bool(re.search(r"\b!?U?P\d", self.text))

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = re.search(r"0x([0-9a-f]+)$", self.text) if self.name == "BRA" else None
        return int(found[1], 16) if found else None


Kernels = dict[str, list[Instruction]]


def disassemble(library: Path) -> Kernels:
    """The kernels of a library by their mangled names. Takes seconds for each ten megabytes, and needs no GPU."""
    import triton

    command = [triton.knobs.nvidia.cuobjdump.path, "-sass", str(library)]
    return parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())


def resources(library: Path) -> dict[str, tuple[int, int]]:
    """The registers of a thread, and its bytes of stack and local memory, of the same kernels."""
    import triton

    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    return {name: (int(registers), int(stack) + int(local)) for name, registers, stack, local in found}


def parse(lines: Sequence[str]) -> Kernels:
    """The kernels in the output of ``cuobjdump -sass``."""
    kernels: Kernels = {}
    current: list[Instruction] = []
    first: tuple[int, str] | None = None
    for line in lines:
        if found := _FUNCTION.match(line):
            current = kernels.setdefault(found[1], [])
        elif found := _FIRST.match(line):
            first = int(found[1], 16), found[2]
        elif first is not None and (found := _SECOND.match(line)):
            current.append(_instruction(*first, int(found[1], 16) >> 41))
            first = None
    return kernels


def _instruction(address: int, text: str, control: int) -> Instruction:
    """``control`` begins with the stall: 4 bits, a bit that hints at other warps, 3, 3 and 6 bits."""
    written, read = control >> 5 & 7, control >> 8 & 7
    return Instruction(
        address,
        text,
        stall=control & 15,
        waits=tuple(board for board in range(6) if control >> 11 + board & 1),
        written=None if written == _NONE else written,
        read=None if read == _NONE else read,
    )


def loop(kernel: Sequence[Instruction]) -> list[Instruction]:
    """The loop over time steps: the smallest one that has a matrix instruction, and a look at a mailbox if any has one.

    A branch back without a condition ends no loop: it comes from code that waits, which is behind the kernel's end.
    """
    loops = []
    for end, instruction in enumerate(kernel):
        if instruction.conditional and instruction.target is not None and instruction.target < instruction.address:
            start = next(i for i, other in enumerate(kernel) if other.address == instruction.target)
            body = list(kernel[start : end + 1])
            if any(other.name.startswith("HMMA") for other in body):
                loops.append(body)
    if not loops:
        raise ValueError("expected a kernel with a loop that has matrix instructions; it has none")
    looking = [body for body in loops if any("TRYWAIT" in other.name for other in body)]
    return min(looking or loops, key=len)


def path(body: Sequence[Instruction], *, training: bool) -> Iterator[Instruction]:
    """The instructions that a warp executes in one step in the middle of a sequence.

    No forward branch is taken: these skip what is not there (rows, blocks, the steps before the first). Without
    ``training``, those are taken that skip four or more stores to global memory: a kernel of the forward pass saves
    gates there.
    """
    places = {instruction.address: i for i, instruction in enumerate(body)}
    at = 0
    while at < len(body):
        instruction = body[at]
        yield instruction
        at += 1
        if (target := instruction.target) is None or target not in places or places[target] < at:
            continue
        skipped = [other.name for other in body[at : places[target]]]
        stores = sum(name.startswith("STG") for name in skipped)
        saves = stores >= 4 and not any(name.startswith("STAS") for name in skipped)
        if not instruction.conditional or (saves and not training and stores < 8):
            at = places[target]


def backward_path(body: Sequence[Instruction], tiles: int) -> Iterator[Instruction]:
    """The same for a kernel of the backward pass that finds the gates saved.

    Forward branches are taken that skip four or more special functions or the loads of four gates: what would compute
    the gates again. A loop in the loop is one over ``tiles``.
    """
    places = {instruction.address: i for i, instruction in enumerate(body)}
    turns: dict[int, int] = {}
    at = 0
    while at < len(body):
        instruction, here = body[at], at
        yield instruction
        at += 1
        if (target := instruction.target) is None or target not in places or at == len(body):
            continue
        to = places[target]
        if to <= here:
            turns[here] = turns.get(here, 0) + 1
            if turns[here] < tiles:
                at = to
            continue
        loads = [other.name for other in body[at:to] if other.name.startswith("LDG")]
        again = sum(other.name.startswith("MUFU") for other in body[at:to]) >= 4
        again |= len(loads) == 4 and {*loads} == {"LDG.E.U16"}
        if not instruction.conditional or again:
            at = to
