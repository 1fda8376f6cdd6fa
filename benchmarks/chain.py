"""The clocks of one step of a cluster kernel: a model that runs the kernel's own instructions, warp by warp.

It knows from the machine code what the compiler knows (:mod:`benchmarks.sass`): how long a warp waits after an
instruction, and for which results it waits. To this it adds what only the hardware knows (:data:`LATENCIES`): how long
a load, a barrier or a message takes, and how long each pipe is busy with an instruction. All warps of a block run. All
blocks are alike, so a block receives when it sends.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.sass import Instruction, loop, path

#: Clocks from the issue of an instruction until its result is there, by the start of its name; the longest that fits.
#: Published for H100s: shared memory 29, and 33 for 16 bytes a lane; a load from another block's shared memory 180 (Luo
#: et al., arXiv:2402.13499 and arXiv:2501.12084) or 196 to 213 (Jin et al., "Uncovering Real GPU NoC Characteristics",
#: MICRO 2024). No figures for Hopper were found for the others; they are from earlier GPUs (Jia et al., arXiv:1903.07486;
#: Abdelkhalik et al., arXiv:2208.11174), rounded.
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
#: Clocks from the issue until the operands were read, so that their registers may be written again. Of the same kind.
READ = {"STAS": 16, "STG": 14, "STS": 12, "": 12}
#: From the issue of a send until the bytes are counted in another block. A load from there is a request and an answer; a
#: send is one way, and then changes a mailbox.
MESSAGE = 200
PACKET = 2.5
#: From the last warp's arrival at a barrier of the block.
BARRIER = 20
#: Clocks for which an instruction keeps its pipe busy. There is one for shared memory and messages in a multiprocessor,
#: of 128 bytes a clock; the others are one for each of its four schedulers. Matrix instructions that read registers
#: reach 62 % of the tensor cores' rate (Luo et al.): 4 clocks / 0.62.
SHARED = {"LDS": 1, "LDS.64": 2, "LDS.128": 4, "STS": 1, "STS.64": 2, "STS.128": 4, "SHFL": 1, "STAS": 1, "STAS.128": 4}
BUSY = {"HMMA": 6.4, "MUFU": 8}
SCHEDULERS = 4
#: Clocks of an H100 in a microsecond: its highest, which it keeps where few multiprocessors are busy.
CLOCKS = 1980


@dataclass
class Chain:
    """The clocks of one step.

    Attributes:
        clocks: from one step to the next.
        links: the clocks of its parts one after another, in the warp that sends last.
    """

    clocks: float
    links: dict[str, float] = field(default_factory=dict)

    @property
    def microseconds(self) -> float:
        return self.clocks / CLOCKS


@dataclass
class _Warp:
    at: int = 0  # the next instruction
    ready: float = 0.0
    boards: list[float] = field(default_factory=lambda: [0.0] * 6)
    waiting: float | None = None  # at a barrier of the block, since then
    step: int = 0


def _longest(table: dict[str, float] | dict[str, int], name: str) -> float | None:
    fitting = [start for start in table if name.startswith(start)]
    return table[max(fitting, key=len)] if fitting else None


def chain(kernel: Sequence[Instruction], warps: int, packets: int, *, training: bool = False, steps: int = 12) -> Chain:
    """The model of a kernel whose blocks have so many warps, and whose sends make so many packets each."""
    code = list(path(loop(kernel), training=training))
    return simulate(code, warps, packets, steps)


def simulate(code: Sequence[Instruction], warps: int, packets: int, steps: int) -> Chain:
    """Run ``steps`` steps in all warps of a block, always the warp next that can issue first."""
    network = 0.0
    sends = [i for i, one in enumerate(code) if one.name.startswith("STAS")]
    pairs = any(one.name.startswith("BAR") and one.text.endswith("0x40") for one in code)
    states = [_Warp() for _ in range(warps)]
    issue = [0.0] * SCHEDULERS  # when each scheduler is free
    pipes = {name: [0.0] * SCHEDULERS for name in BUSY}
    shared = 0.0
    sent = [[0.0] * (steps + 1) for _ in range(warps)]  # when each warp has sent its share of a step
    marks: list[dict[int, dict[int, float]]] = [{} for _ in range(warps)]  # warp, step, place in the code: issued

    def earliest(index: int) -> float:
        state = states[index]
        one = code[state.at]
        time = max(state.ready, issue[index % SCHEDULERS], *(state.boards[board] for board in one.waits), 0.0)
        if pipe := next((name for name in BUSY if one.name.startswith(name)), None):
            time = max(time, pipes[pipe][index % SCHEDULERS])
        if "TRYWAIT" in one.name and state.step > 0 and sends:
            time = max(time, *(times[state.step - 1] + MESSAGE for times in sent))
        return time

    def blocked(index: int) -> bool:
        """Whether it waits for a message that was not sent yet, or at a barrier."""
        state = states[index]
        if state.waiting is not None or state.step == steps:
            return True
        waits = "TRYWAIT" in code[state.at].name and state.step > 0 and bool(sends)
        return waits and any(other.step < state.step for other in states)

    while any(state.step < steps for state in states):
        free = [index for index in range(warps) if not blocked(index)]
        index = min(free, key=earliest)
        time, state = earliest(index), states[index]
        one, lane = code[state.at], index % SCHEDULERS
        issue[lane] = time + 1
        state.ready = time + max(one.stall, 1)
        marks[index].setdefault(state.step, {})[state.at] = time
        done, read = time + (_longest(LATENCIES, one.name) or 0), time + (_longest(READ, one.name) or 0)
        for name, busy in BUSY.items():
            if one.name.startswith(name):
                pipes[name][lane] = time + busy
        if (busy := SHARED.get(one.name.split("+")[0])) is not None or (busy := _longest(SHARED, one.name)) is not None:
            begin = max(time, shared)
            shared = begin + busy
            done, read = done + begin - time, read + begin - time
        if one.written is not None:
            state.boards[one.written] = max(state.boards[one.written], done)
        if one.read is not None:
            state.boards[one.read] = max(state.boards[one.read], read)
        if state.at in sends:
            network = max(network, time) + PACKET * packets
            sent[index][state.step] = network
        state.at += 1
        if one.name.startswith("BAR"):
            state.waiting = time
            others = [index ^ 1, index] if pairs else range(warps)
            if all(states[other].waiting is not None for other in others):
                for other in others:
                    states[other].ready = max(states[other].ready, time + BARRIER)
                    states[other].waiting = None
        if state.at == len(code):
            state.at, state.step = 0, state.step + 1
    return _summary(code, marks, sends, steps)


def _summary(code, marks, sends, steps) -> Chain:
    last = steps - 2
    period = (marks[0][last][0] - marks[0][last - 4][0]) / 4
    first = {name: next((i for i, one in enumerate(code) if name in one.name), None) for name in ("TRYWAIT", "LDS", "MUFU")}
    ends = {name: max((i for i, one in enumerate(code) if one.name.startswith(name)), default=None) for name in ("HMMA", "MUFU", "STAS")}
    slow = max(range(len(marks)), key=lambda warp: marks[warp][last].get(ends["STAS"], 0.0))
    at = marks[slow][last]
    links: dict[str, float] = {}
    if first["TRYWAIT"] is not None and ends["STAS"] is not None:
        points = [
            ("the mailbox is seen to be full", first["TRYWAIT"], first["LDS"]),
            ("the products", first["LDS"], ends["HMMA"]),
            ("sums, and their exchange in a pair of warps", ends["HMMA"], first["MUFU"]),
            ("activations", first["MUFU"], ends["MUFU"]),
            ("lanes put together neighbours", ends["MUFU"], sends[0]),
            ("sends", sends[0], ends["STAS"]),
        ]
        links = {name: at[after] - at[before] for name, before, after in points}
        links["what is left of the step: a message takes %d" % MESSAGE] = period - sum(links.values())
        own = marks[slow][last + 1][first["TRYWAIT"]] - at[ends["STAS"]]
        links["(of which the warp is busy with stores and the next input)"] = marks[slow][last + 1][0] - at[ends["STAS"]]
    return Chain(period, links)
