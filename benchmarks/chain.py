"""The clocks of one step of a cluster kernel: a model that runs the kernel's own instructions, warp by warp.

It knows from the machine code what the compiler knows (:mod:`benchmarks.sass`): how long a warp waits after an
instruction, and for which results. To this it adds what only the hardware knows: how long a load, a barrier or a
message takes (:data:`LATENCIES`, :data:`MESSAGE`), and how long an instruction keeps its pipe busy (:data:`BUSY`,
:data:`SHARED`, :data:`PACKET`). All warps of a block run. All blocks are alike, so a block receives when it sends.

:data:`PACKET` is fitted to benchmarks/results/cluster-steps-9.0.json, nothing else is. ``python -m benchmarks.chain
CUBIN`` prints the model of the kernels of that file beside what was measured. They are in the history: in a tree of
commit c5135dc, ``nvcc -std=c++17 -O3 -arch=sm_90 -cubin -Icsrc/cuda benchmarks/cluster_variants.cu`` makes the CUBIN.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.sass import Instruction, Kernels, backward_path, disassemble, loop, path

#: Clocks from the issue of an instruction to its result, by how its name begins. Published of H100s: shared
#: memory 29, and 33 for 16 bytes a lane (Luo et al., arXiv:2402.13499 and arXiv:2501.12084). For the others no figures
#: of Hopper were found: these are rounded from earlier GPUs (Jia et al., arXiv:1804.06826 and arXiv:1903.07486;
#: Abdelkhalik et al., arXiv:2208.11174), SYNCS and MOVM are assumed to be like shared memory.
LATENCIES = {
    "LDS": 29,
    "LDS.128": 33,
    "MUFU": 20,
    "SHFL": 24,
    "MOVM": 30,
    "S2R": 24,
    "SYNCS": 26,
    "LDG": 0,  # a step ahead: it is there
    "": 20,
}
#: Clocks until the operands were read, so that their registers may be written again. Assumed.
READ = {"STAS": 16, "STG": 14, "": 12}
#: From the issue of a send until another block may see that its mailbox is full. A load from another block's shared
#: memory takes 180 (Luo et al.) or 196 to 213 clocks (Jin et al., MICRO 2024, doi:10.1109/MICRO61859.2024.00070).
MESSAGE = 200
#: For which a multiprocessor's port to the others is busy with each packet, of up to 32 bytes. Fitted. Luo et al.
#: measured 3.3 TB/s in clusters of two and less in larger ones: 32 bytes in at least 2.2 clocks.
PACKET = 2.5
#: From the last warp's arrival at a barrier of the block. Assumed.
BARRIER = 20
#: For which an instruction keeps the pipe of shared memory busy, which all warps share: 128 bytes a clock.
SHARED = {"LDS": 1, "LDS.64": 2, "LDS.128": 4, "STS": 1, "STS.64": 2, "STS.128": 4, "SHFL": 1, "STAS": 1, "STAS.128": 4}
#: The same for the pipes of each scheduler. Matrix instructions that read registers reach 62 % of the tensor cores'
#: rate (Luo et al.), 4 clocks / 0.62; four special functions a clock.
BUSY = {"HMMA": 6.4, "MUFU": 8}
SCHEDULERS = 4
#: Clocks of an H100 in a microsecond: the most, which it reaches while few multiprocessors are busy.
CLOCKS = 1980


@dataclass(frozen=True)
class Chain:
    """The clocks of one step.

    Attributes:
        clocks: from one step to the next.
        links: the clocks of its parts, one after another, in the warp that sends last. Empty if nothing is sent.
    """

    clocks: float
    links: dict[str, int] = field(default_factory=dict)

    @property
    def microseconds(self) -> float:
        return self.clocks / CLOCKS


#: A barrier among some warps of a block ends with how many threads they have.
_NAMED = re.compile(r"^(?:@\S+ )?BAR\.SYNC\S* \S+, 0x[0-9a-f]+$")


@dataclass
class _Warp:
    at: int = 0  # the next instruction
    step: int = 0
    ready: float = 0.0
    boards: list[float] = field(default_factory=lambda: [0.0] * 6)  # when each scoreboard is clear
    arrived: bool = False  # at a barrier of the block


#: When the instruction at a place in the code was issued, by warp and step.
_Marks = list[dict[int, dict[int, float]]]
#: What is made of these, and of when each send of each step was received.
_Summary = Callable[[Sequence[Instruction], _Marks, list[list[float]]], Chain]


def chain(kernel: Sequence[Instruction], warps: int, packets: int, boxes: int = 1, *, training: bool = False) -> Chain:
    """The model of a kernel of the forward pass.

    Args:
        kernel: its instructions.
        warps: of a block.
        packets: that each of its sends makes.
        boxes: mailboxes that count what comes in a step. A warp awaits those that it needs, one after another.
        training: whether it saves what backward needs.
    """
    return simulate(list(path(loop(kernel), training=training)), warps, packets, boxes)


def backward_chain(kernel: Sequence[Instruction], warps: int, packets: int, tiles: int) -> Chain:
    """The model of a kernel of the backward pass, with gates that were saved.

    Args:
        kernel: its instructions.
        warps: of a block.
        packets: that each of its sends makes.
        tiles: of eight rows, of a cluster. A loop over them may be in the loop over steps.
    """
    return simulate(list(backward_path(loop(kernel), tiles)), warps, packets, summary=_backward_summary)


def simulate(
    code: Sequence[Instruction],
    warps: int,
    packets: int = 0,
    boxes: int = 1,
    steps: int = 6,
    summary: _Summary | None = None,
) -> Chain:
    """Run ``steps`` steps of this code in all warps of a block, always that warp next which can issue first."""
    sends = [i for i, one in enumerate(code) if one.name.startswith("STAS")]
    awaits = [i for i, one in enumerate(code) if "TRYWAIT" in one.name] if sends else []
    meeting = next((int(one.text.split()[-1], 16) // 32 for one in code if _NAMED.search(one.text)), warps)
    states = [_Warp() for _ in range(warps)]
    issue = [0.0] * SCHEDULERS  # when each scheduler is free
    pipes = {name: [0.0] * SCHEDULERS for name in BUSY}
    shared = network = 0.0
    received = [[0.0] * len(sends) for _ in range(steps)]  # when what each send of a step has sent has come from all
    marks: _Marks = [{} for _ in range(warps)]

    def blocked(state: _Warp) -> bool:
        """Whether it has to wait for another warp."""
        waits = state.at in awaits and state.step > 0
        return state.step == steps or state.arrived or (waits and any(other.step < state.step for other in states))

    def earliest(index: int) -> float:
        state = states[index]
        one = code[state.at]
        times = [state.ready, issue[index % SCHEDULERS], *(state.boards[board] for board in one.waits)]
        times += [free[index % SCHEDULERS] for name, free in pipes.items() if one.name.startswith(name)]
        if state.at in awaits and state.step > 0:
            # If a warp does not look at all mailboxes, the second one of a pair awaits those of the second half.
            box = awaits.index(state.at) + (len(awaits) * (index % 2) if len(awaits) < boxes else 0)
            needed = -(-(box + 1) * len(sends) // boxes)
            times += received[state.step - 1][:needed]
        return max(times)

    while any(state.step < steps for state in states):
        index = min((i for i in range(warps) if not blocked(states[i])), key=earliest)
        time, state, scheduler = earliest(index), states[index], index % SCHEDULERS
        one = code[state.at]
        marks[index].setdefault(state.step, {})[state.at] = time
        issue[scheduler] = time + 1
        state.ready = time + max(one.stall, 1)
        for name in BUSY:
            if one.name.startswith(name):
                pipes[name][scheduler] = time + BUSY[name]
        begin = time
        if busy := _of(SHARED, one.name):
            begin = max(time, shared)
            shared = begin + busy
        for board, latency in ((one.written, _of(LATENCIES, one.name)), (one.read, _of(READ, one.name))):
            if board is not None:
                state.boards[board] = max(state.boards[board], begin + latency)
        if state.at in sends:
            network = max(network, time) + PACKET * packets
            send = sends.index(state.at)
            received[state.step][send] = max(received[state.step][send], network + MESSAGE)
        if one.name.startswith("BAR"):
            state.arrived = True
            first = index // meeting * meeting
            met = states[first : first + meeting]
            if all(other.arrived for other in met):
                for other in met:
                    other.arrived, other.ready = False, max(other.ready, time + BARRIER)
        state.at += 1
        if state.at == len(code):
            state.at, state.step = 0, state.step + 1
    return (summary or _summary)(code, marks, received)


def _of(table: dict[str, int], name: str) -> int:
    """The figure of the longest beginning of a name in a table, or 0."""
    return table.get(max((start for start in table if name.startswith(start)), key=len, default="-"), 0)


def _clocks(marks: _Marks, last: int) -> float:
    return (marks[0][last][0] - marks[0][last // 2][0]) / (last - last // 2)


def _places(code: Sequence[Instruction]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for i, one in enumerate(code):
        kind = "TRYWAIT" if "TRYWAIT" in one.name else one.name.split(".")[0]
        places.setdefault(kind, []).append(i)
    return places


def _summary(code: Sequence[Instruction], marks: _Marks, received: list[list[float]]) -> Chain:
    last = len(received) - 2  # the last step that is followed by another
    clocks, places = _clocks(marks, last), _places(code)
    if not {"TRYWAIT", "LDS", "HMMA", "MUFU", "STAS"} <= places.keys():
        return Chain(clocks)
    seen = next(i for i in places["LDS"] if i > places["TRYWAIT"][0])  # some of U may have been read before
    at = max((of_warp[last] for of_warp in marks), key=lambda of_step: of_step[places["STAS"][-1]])
    links = {
        "the mailbox is seen to be full": (places["TRYWAIT"][0], seen),
        "products": (seen, places["HMMA"][-1]),
        "sums": (places["HMMA"][-1], places["MUFU"][0]),
        "activations": (places["MUFU"][0], places["MUFU"][-1]),
        "lanes put together neighbours": (places["MUFU"][-1], places["STAS"][0]),
        "sends": (places["STAS"][0], places["STAS"][-1]),
    }
    found = {name: round(at[after] - at[before]) for name, (before, after) in links.items()}
    return Chain(clocks, found | {"packets and the message": round(clocks) - sum(found.values())})


def _backward_summary(code: Sequence[Instruction], marks: _Marks, received: list[list[float]]) -> Chain:
    last = len(received) - 2
    clocks, places = _clocks(marks, last), _places(code)
    late = max(marks, key=lambda of_step: of_step[last][places["STAS"][-1]])
    at, looks = late[last], places["TRYWAIT"][0]
    meets = places["BAR"][0]
    # Where each link ends.
    ends = {
        "the mailbox is seen to be full": next(i for i in places["LDS"] if i > looks),
        "slots added up, the cell": max(i for i in places["STS"] if i < meets),
        "the block meets, d_gates are read": places["HMMA"][0],
        "products": places["HMMA"][-1],
        "the last sends": places["STAS"][-1],
    }
    found, before = {}, looks
    for name, after in ends.items():
        found[name], before = round(at[after] - at[before]), after
    arrival = max(received[last])
    found["packets and the message"] = round(arrival - at[before])
    found["other work of the warp"] = max(0, round(clocks) - sum(found.values()))
    return Chain(clocks, found)


#: How the mangled name of a kernel of c5135dc has its sizes and its policy, and what these mean: its name, how many
#: warps it has, and how many bytes of a row of h lie together in a send.
_NAME = re.compile(r"SizesILi(\d+)ELi(\d)E.*DivisionE(\d)ELNS\d_11ActivationsE2ELi(\d+)ELb0E")
_DIVISIONS = {"0": ("pairs", 8, 16), "1": ("quarters", 8, 8), "2": ("whole", 4, 16)}
_MEASURED = Path(__file__).parent / "results" / "cluster-steps-9.0.json"


def measured(kernels: Kernels) -> Iterator[tuple[str, int, int, float, float]]:
    """Name, H, rows, and the microseconds a step as measured and as modelled, in inference."""
    rows = json.loads(_MEASURED.read_bytes())["results"]
    known = {(row["variant"], row["hidden"], row["batch"]): row for row in rows}
    for name, kernel in kernels.items():
        if not (found := _NAME.search(name)):
            continue
        hidden, tiles, piece = int(found[1]), int(found[2]), int(found[4])
        division, warps, together = _DIVISIONS[found[3]]
        variant = f"{division}-approximate-{piece}"
        row = known.get((variant, hidden, 16 if tiles == 1 else 64))
        if row is not None and row["rows"] == 8 * tiles:
            model = chain(kernel, warps, 32 * piece // together)
            yield variant, hidden, 8 * tiles, row["inference"]["us_a_step"], model.microseconds


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cubin", type=Path, help="the compiled kernels of commit c5135dc")
    args = parser.parse_args()
    if not args.cubin.is_file():
        parser.error(f"cubin: expected a file, got {args.cubin}")
    for *what, was, model in measured(disassemble(args.cubin)):
        print(*what, f"{was:.3f} us measured, {model:.3f} modelled: {model / was:.2f}")


if __name__ == "__main__":
    main()
