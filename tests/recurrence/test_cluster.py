"""The cluster backend without a GPU: its schedules on the host against float64, its layout, its compiled code.

The kernels of ``csrc/cuda`` are templates over the block, a GPU's or the host's. Here it is the host's: each block of a
cluster is a thread, the threads wait for each other where the blocks would, and matrix instructions are computed lane
by lane in the layout of the PTX ISA. This checks the schedule and the arithmetic. ``test_gpu.py`` checks the hardware.
"""

import ctypes
import os
import re
import runpy
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tagrank import lstm_recurrence
from tagrank.kernels.choice import BACKENDS
from tagrank.kernels.variants import Gpu
from tagrank.recurrence import explain, library
from tagrank.recurrence.backends import FUSED, cluster
from tagrank.recurrence.backends.eager import lstm_loop

ROOT = Path(__file__).parents[2]
CALLS = runpy.run_path(str(ROOT / "benchmarks" / "cluster_calls.py"))
ForwardCall, BackwardCall = CALLS["ForwardCall"], CALLS["BackwardCall"]
backend = FUSED["cluster"]
COMPILER = shutil.which(os.environ.get("CXX", "c++").split()[0])
#: The tiles of the forward pass in the host's program. The backward pass has at most four.
SIZES = {128: (1, 2, 4, 8), 256: (2, 8), 384: (1, 8), 512: (2, 4)}
#: The numbers of csrc/cuda/recurrence.h in their order, and the largest error of each relative to the reference's norm.
#: In 16 bit, h and the gates' gradients are rounded at each step.
TOLERANCE = {"float16": 2e-3, "bfloat16": 1.5e-2, "tf32": 1e-3, "tf32x3": 1e-6}
#: The first two are dtypes. The others are float32.
HALF = ("float16", "bfloat16")


def dtype_of(numbers: str) -> torch.dtype:
    return getattr(torch, numbers) if numbers in HALF else torch.float32


Build = Callable[..., Path]


@pytest.fixture(scope="session")
def build(once: Callable[[str, Callable[[Path], None]], Path]) -> Build:
    """Compiles the host's program; skips if the compiler has no such option."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")

    def build(name: str, *options: str) -> Path:
        def compile_into(folder: Path) -> None:
            command = [COMPILER, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-pthread"]
            sources = [f"-I{ROOT}/csrc/cuda", f"{ROOT}/tests/recurrence/cluster_host.cpp", "-o", str(folder / name)]
            done = subprocess.run([*command, *options, *sources], capture_output=True, text=True)
            if "_Float16" in done.stderr or "tsan" in done.stderr:
                pytest.skip("this compiler has no _Float16, or no thread sanitizer")
            assert done.returncode == 0, done.stderr

        return once(name, compile_into) / name

    return build


@pytest.fixture(scope="session")
def host(build: Build) -> ctypes.CDLL:
    library = ctypes.CDLL(str(build("cluster.so", "-shared", "-fPIC")))
    library.cluster_forward.restype = library.cluster_backward.restype = ctypes.c_bool
    return library


def size(padded: int, tiles: int) -> list[str]:
    """The options that leave out all other sizes."""
    return [f"-DTAGRANK_PADDED={padded}", f"-DTAGRANK_TILES={tiles}"]


def pointer(tensor: Tensor | None) -> int | None:
    assert tensor is None or tensor.is_contiguous()
    return None if tensor is None else tensor.data_ptr()


def nan(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


Problem = dict[str, Any]


def make_problem(
    batch: int, hidden: int, steps: int, constant: bool, states: bool, numbers: str, addend: str = "none"
) -> Problem:
    dtype = dtype_of(numbers)
    generator = torch.Generator().manual_seed(batch * hidden + steps)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    return {
        "gates_x": normal(batch, 4 * hidden) if constant else normal(steps, batch, 4 * hidden),
        "weight_hh": normal(4 * hidden, hidden, scale=1.5 / hidden**0.5),
        "h0": normal(batch, hidden, scale=0.5) if states else None,
        "c0": normal(batch, hidden) if states else None,
        "addend": {"none": None, "row": normal(4 * hidden), "rows": normal(batch, 4 * hidden)}[addend],
        "grad_output": normal(steps, batch, hidden),
        "grad_h_n": normal(batch, hidden),
        "grad_c_n": normal(batch, hidden),
        "steps": steps,
        "numbers": numbers,
    }


def reference(problem: Problem) -> dict[str, Tensor]:
    """Both passes in float64, with an input for each step, whose gradients are those of the gates."""
    p = {name: value.double() if isinstance(value, Tensor) else value for name, value in problem.items()}
    _, batch, hidden = p["grad_output"].shape
    gates_x = p["gates_x"].expand(p["steps"], batch, 4 * hidden).clone()
    gates_x = (gates_x if p["addend"] is None else gates_x + p["addend"]).requires_grad_()
    zeros = p["weight_hh"].new_zeros(batch, hidden)
    h0 = zeros if p["h0"] is None else p["h0"]
    c0 = (zeros if p["c0"] is None else p["c0"]).requires_grad_()
    output, c_n = lstm_loop(gates_x, p["weight_hh"], h0, c0, p["steps"])
    loss = (output * p["grad_output"]).sum()
    loss += 0 if p["grad_h_n"] is None else (output[-1] * p["grad_h_n"]).sum()
    loss += 0 if p["grad_c_n"] is None else (c_n * p["grad_c_n"]).sum()
    d_gates, d_c0 = torch.autograd.grad(loss, [gates_x, c0])
    result = {"output": output.detach(), "h_n": output[-1].detach(), "c_n": c_n.detach(), "d_gates": d_gates}
    if problem["gates_x"].dim() == 2:
        result["d_gates_x"] = d_gates.sum(0)
    if problem["c0"] is not None:
        result["d_c0"] = d_c0
    return result


def run(host: ctypes.CDLL, problem: Problem, tiles: int, recompute: bool = False, save: bool = True) -> Problem:
    """The forward pass on the host, and the backward pass if ``save``."""
    gates_x, weight_hh, steps = problem["gates_x"], problem["weight_hh"], problem["steps"]
    dtype, (_, batch, hidden) = gates_x.dtype, problem["grad_output"].shape
    constant, numbers = gates_x.dim() == 2, list(TOLERANCE).index(problem["numbers"])
    output, (h_n, c_n) = nan(steps, batch, hidden, dtype=dtype), nan(2, batch, hidden, dtype=dtype)
    gates = nan(steps, batch, 4 * hidden, dtype=dtype) if save and not recompute else None
    cells = nan(steps, batch, hidden, dtype=torch.float32) if save else None
    states, addend = [problem["h0"], problem["c0"]], problem["addend"]
    stride = 0 if addend is None or addend.dim() == 1 else 4 * hidden
    inputs = map(pointer, (gates_x, weight_hh, *states, addend))
    call = ForwardCall(batch, steps, hidden, constant, *inputs, stride, *map(pointer, (output, h_n, c_n, gates, cells)))
    assert host.cluster_forward(ctypes.byref(call), numbers, tiles)
    result = {"output": output, "h_n": h_n, "c_n": c_n}
    if not save:
        return result
    if recompute:
        previous = torch.cat([torch.zeros_like(output[:1]) if states[0] is None else states[0][None], output[:-1]])
        gates = (previous.double() @ weight_hh.double().T).to(dtype)
    d_gates = gates if recompute else torch.full_like(gates, torch.nan)
    d_gates_x = nan(batch, 4 * hidden, dtype=dtype) if constant else None
    d_c0 = None if states[1] is None else nan(batch, hidden, dtype=dtype)
    again = gates_x if recompute else None
    grad_output = problem["grad_output"]
    grads = (problem["grad_h_n"], problem["grad_c_n"])
    pointers = map(pointer, (*grads, weight_hh, states[1], gates, again, cells, d_gates, d_gates_x, d_c0))
    strides = (ctypes.c_int * 3)(*grad_output.stride())
    call = BackwardCall(batch, steps, hidden, constant, grad_output.data_ptr(), strides, *pointers)
    assert host.cluster_backward(ctypes.byref(call), numbers, tiles)
    result |= {"d_gates": d_gates, "d_gates_x": d_gates_x, "d_c0": d_c0}
    return {name: value for name, value in result.items() if value is not None}


def errors(result: Problem, expected: Problem) -> dict[str, float]:
    return {
        name: ((result[name].double() - value).norm() / value.norm()).item()
        for name, value in expected.items()
        if name in result
    }


@settings(max_examples=40)
@given(
    padded=st.sampled_from(sorted(SIZES)),
    short=st.integers(0, 127),
    batch=st.integers(1, 40),
    steps=st.integers(1, 6),
    constant=st.booleans(),
    states=st.booleans(),
    recompute=st.booleans(),
    numbers=st.sampled_from(list(TOLERANCE)),
    data=st.data(),
)
def test_both_passes(host, padded, short, batch, steps, constant, states, recompute, numbers, data) -> None:
    padded = padded if numbers in HALF else min(padded, 256)
    tiles = data.draw(st.sampled_from(SIZES[padded]))
    batch = min(batch, 20) if padded > 256 else batch
    # A backward pass that computes the gates again reads no addend.
    addend = "none" if recompute else data.draw(st.sampled_from(("none", "row", "rows")))
    problem = make_problem(batch, padded - short, steps, constant, states, numbers, addend)
    for name in data.draw(st.sets(st.sampled_from(("grad_h_n", "grad_c_n")))):
        problem[name] = None
    match data.draw(st.sampled_from(("contiguous", "transposed", "expanded"))):
        case "transposed":
            problem["grad_output"] = problem["grad_output"].transpose(0, 1).contiguous().transpose(0, 1)
        case "expanded":
            problem["grad_output"] = problem["grad_output"][0, 0, 0].expand(problem["grad_output"].shape)
    expected = reference(problem)
    found = errors(run(host, problem, tiles, recompute), expected)
    assert set(found) == set(expected)
    assert max(found.values()) < TOLERANCE[numbers], found


@pytest.mark.parametrize(("tiles", "others"), [(1, 1), (8, 4)])
@pytest.mark.parametrize("numbers", ["float16", "tf32"])
def test_inference_saves_nothing(host: ctypes.CDLL, tiles: int, others: int, numbers: str) -> None:
    """And the rows of a cluster do not change the numbers. Only with one tile each number is made of more sums."""
    problem = make_problem(70, 96, 3, True, True, numbers)
    result = run(host, problem, tiles, save=False)
    trained = run(host, problem, others)
    assert torch.equal(result["output"], trained["output"])
    assert torch.equal(result["c_n"], trained["c_n"])


@pytest.mark.parametrize("numbers", ["float16", "tf32"])
@pytest.mark.parametrize("name", ["weight_hh", "h0"])
def test_rows_that_begin_anywhere(host: ctypes.CDLL, name: str, numbers: str) -> None:
    """A contiguous tensor may begin at any number, for example as a slice of a larger tensor."""
    problem = make_problem(9, 96, 3, True, True, numbers)
    expected = run(host, problem, 1)
    memory = problem[name].new_empty(problem[name].numel() + 1)
    moved = memory[1:].view_as(problem[name]).copy_(problem[name])
    assert moved.data_ptr() % 16
    result = run(host, problem | {name: moved}, 1)
    assert all(torch.equal(result[key], expected[key]) for key in expected)


MAILBOX = """
#include <thread>
#include "cluster.h"
int main(int, char** arguments) {
  tagrank::cuda::Mailbox mailbox;
  mailbox.await(-1);  // what is before the first phase is over
  for (const char* step = arguments[1]; *step; ++step) {
    if (*step == 'o') mailbox.open(16);
    if (*step == 'r') mailbox.receive(8);
    if (*step >= '0' && *step <= '9') mailbox.await(*step - '0');
  }
}
"""


@pytest.mark.parametrize(
    ("steps", "ends"),
    [
        ("orr0orr1", "right"),
        ("rro0rorr1", "right"),  # bytes of a phase before it is opened
        ("oo", "aborts"),  # opened twice in one phase
        ("orrorrorr0", "aborts"),  # two phases ahead of who waits: on a GPU the parity is that of a phase before
        ("or0", "hangs"),
        ("rr0", "hangs"),  # nobody opened it
        ("orrorr0", "hangs"),
    ],
)
def test_a_mailbox_of_the_host_is_strict(once: Any, steps: str, ends: str) -> None:
    """As a mailbox of a GPU: phases that are opened and awaited out of turn end the program or never end."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")

    def compile_into(folder: Path) -> None:
        (folder / "mailbox.cpp").write_text(MAILBOX)
        command = [str(COMPILER), "-std=c++17", "-pthread", f"-I{ROOT}/csrc/cuda", str(folder / "mailbox.cpp")]
        subprocess.run([*command, "-o", str(folder / "mailbox")], check=True)

    program = once("mailbox", compile_into) / "mailbox"
    try:
        code = subprocess.run([program, steps], timeout=20 if ends == "right" else 1).returncode
    except subprocess.TimeoutExpired:
        code = None
    assert code == {"right": 0, "aborts": -signal.SIGABRT, "hangs": None}[ends]


@pytest.mark.parametrize("numbers", ["bfloat16", "tf32x3"])
def test_every_run_gives_the_same_bits(host: ctypes.CDLL, numbers: str) -> None:
    """The parts of a sum come from many blocks, and are added up in one order."""
    problem = make_problem(11, 250, 5, True, True, numbers)
    first, second = run(host, problem, 2), run(host, problem, 2)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("hidden", [250, pytest.param(380, marks=pytest.mark.exhaustive)])
def test_if_blocks_do_not_wait_it_fails(build: Build, hidden: int) -> None:
    padded = (hidden + 127) // 128 * 128
    options = ["-shared", "-fPIC", "-DTAGRANK_WITHOUT_WAITS", *size(padded, 2)]
    library = ctypes.CDLL(str(build(f"without-{padded}.so", *options)))
    problem = make_problem(11, hidden, 5, True, True, "float16")
    found = errors(run(library, problem, 2), reference(problem))
    assert not max(found["output"], found["d_gates"]) < 10 * TOLERANCE["float16"]


@pytest.mark.parametrize("padded", [128, pytest.param(384, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("waits", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_blocks_do_not_race(build: Build, waits: bool, padded: int) -> None:
    """The thread sanitizer sees every access to another block's memory that no mailbox orders."""
    options = [
        "-fsanitize=thread",
        "-DTAGRANK_MAIN",
        *size(padded, 2),
        *([] if waits else ["-DTAGRANK_WITHOUT_WAITS"]),
    ]
    program = build(f"sanitized-{waits}-{padded}", *options)
    done = subprocess.run([program], capture_output=True, text=True)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run on this kernel")
    assert (done.returncode == 0) == waits, done.stderr
    assert ("data race" in done.stderr) != waits


@settings(max_examples=30)
@given(batch=st.integers(1, 70), hidden=st.integers(1, 512), tiles=st.sampled_from((1, 2, 4, 8)), single=st.booleans())
def test_everything_is_covered_once(host: ctypes.CDLL, batch: int, hidden: int, tiles: int, single: bool) -> None:
    hidden = (hidden + 1) // 2 if single else hidden
    weights = [torch.zeros(4 * hidden, hidden, dtype=torch.int32) for _ in range(2)]
    states = [torch.zeros(batch, hidden, dtype=torch.int32) for _ in range(2)]
    put = torch.zeros(host.cluster_blocks(hidden), hidden, dtype=torch.int32)
    counts = (*weights, *states, put)
    host.cluster_coverage(batch, hidden, single, tiles, *(ctypes.c_void_p(count.data_ptr()) for count in counts))
    assert all((count == 1).all() for count in counts)


@pytest.mark.exhaustive
@pytest.mark.skipif(backend.not_built is not None, reason=str(backend.not_built))
def test_compiled_kernels_keep_to_registers() -> None:
    """Each dtype and size of both passes keeps U in registers and computes the products on tensor cores."""
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(library.LIBRARY)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    # In 16 bit: two dtypes, four sizes, 1 to 8 tiles forward and 1 to 4 backward. In float32: two precisions, two
    # sizes, 1 to 4 tiles.
    assert len([name for name, *_ in found if "forward_kernel" in name]) == 2 * 4 * 4 + 2 * 2 * 3
    assert len([name for name, *_ in found if "backward_kernel" in name]) == 2 * 4 * 3 + 2 * 2 * 3
    for name, registers, stack, local in found:
        row = int(re.search(r"SizesILi(\d+)E", name)[1]) * (4 if "Tf32" in name else 2)
        # U takes at least this many: a thread's share of 128 rows of `row` bytes. A block has 128 threads in a forward
        # pass whose rows have up to 512 bytes, otherwise 256.
        share = row // 4 if "forward_kernel" in name and row <= 512 else row // 8
        assert share < int(registers) <= 255, name
        assert (stack, local) == ("0", "0"), name
    code = subprocess.run([command[0], "-sass", command[2]], capture_output=True, text=True, check=True).stdout
    functions = re.split(r"\n\s+Function : ", code)[1:]
    assert len(functions) == len(found)
    for function in functions:
        wanted = "HMMA.1688.F32.TF32" if "Tf32" in function.split("\n", 1)[0] else "HMMA.16816.F32"
        assert {wanted} == {found.removesuffix(".BF16") for found in re.findall(r"\bHMMA\S+", function)}
        assert not re.search(r"\b(?:LDL|STL)\b", function)


def gates(hidden: int, dtype: torch.dtype) -> Tensor:
    """Gates on a GPU that need not be here."""
    with FakeTensorMode():
        return torch.empty(16, 4 * hidden, dtype=dtype, device="cuda")


@pytest.mark.parametrize(
    ("dtype", "hidden", "capability", "reason"),
    [
        (torch.float16, 512, (9, 0), None),
        (torch.bfloat16, 1, (10, 0), None),
        (torch.float32, 256, (9, 0), None),
        (torch.float64, 64, (9, 0), "it takes float16, bfloat16, float32; got float64"),
        (torch.float16, 513, (9, 0), "it takes H up to 512, what the registers of 16 blocks hold in float16; got 513"),
        (torch.float32, 257, (9, 0), "it takes H up to 256, what the registers of 8 blocks hold in float32; got 257"),
        (torch.float16, 64, (8, 0), "it needs compute capability 9.0, and the GPU has 8.0"),
    ],
)
def test_what_it_takes(dtype: torch.dtype, hidden: int, capability: tuple[int, int], reason: str | None) -> None:
    assert backend.unsupported(gates(hidden, dtype), Gpu(capability, 132)) == reason


def test_not_by_itself_unless_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    half, hopper = gates(512, torch.float16), Gpu((9, 0), 132)
    monkeypatch.setattr(cluster, "VERIFIED", frozenset())
    assert backend.unproven(half, hopper) == "it was not verified in float16 on compute capability 9.0"
    monkeypatch.setattr(cluster, "VERIFIED", frozenset({((9, 0), "forward", "cluster", "float16")}))
    assert backend.unproven(half, hopper) is not None
    both = frozenset(((9, 0), kernel, "cluster", "float16") for kernel in ("forward", "backward"))
    monkeypatch.setattr(cluster, "VERIFIED", both)
    assert backend.unproven(half, hopper) is None
    assert backend.unproven(half, Gpu((10, 0), 132)) is not None
    assert backend.unproven(gates(512, torch.bfloat16), hopper) is not None
    lines = explain(16, 20, 512, torch.float16, gpu=hopper).splitlines()
    assert lines[1:] == ["native: no, it runs on the CPU, and gates_x is on cuda:0", "cluster: taken"]
    lines = explain(65, 20, 512, torch.float16, gpu=hopper).splitlines()
    assert lines[2].startswith("cluster: no, it is for B up to 64, as with more rows the grouped variant of triton is")
    assert lines[3] == "triton: taken"


def test_the_table_of_backends_has_its_bounds() -> None:
    lines = [line for line in BACKENDS if line.backend == "cluster"]
    most = {}
    for line in lines:
        assert line.oldest == cluster.OLDEST
        for dtype in line.dtypes:
            most[getattr(torch, dtype)] = max(line.max_hidden, most.get(getattr(torch, dtype), 0))
    assert most == cluster.MAX_HIDDEN
    assert backend.dtypes == tuple(most)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_why() -> None:
    gates_x, weight_hh = torch.zeros(2, 16, dtype=torch.float16), torch.zeros(16, 4, dtype=torch.float16)
    with pytest.raises(RuntimeError, match=r"backend='cluster' cannot run this: (no NVIDIA GPU|tagrank)"):
        lstm_recurrence(gates_x, weight_hh, steps=2, backend="cluster")
    assert backend.unsupported(gates_x) == "it runs on NVIDIA GPUs, and gates_x is on cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.skipif(library.load() is not None or library.without_cuda() is not None, reason="built without CUDA")
def test_a_driver_for_an_earlier_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA says of no driver what it says of one that is too old for its runtime."""
    monkeypatch.setattr(cluster, "no_gpu", lambda: None)
    assert backend.unavailable() == (
        "the driver of the GPU is for an earlier CUDA than the one that tagrank's C++ library was built with"
    )


def test_sizes_of_a_cluster(host: ctypes.CDLL) -> None:
    assert [host.cluster_blocks(hidden) for hidden in (1, 32, 33, 256, 500, 512)] == [1, 1, 2, 8, 16, 16]
    assert [host.cluster_padded(hidden) for hidden in (1, 128, 129, 512)] == [128, 128, 256, 512]
    # The shared memory of a block of compute capability 9.0.
    assert max(host.cluster_forward_bytes(), host.cluster_backward_bytes()) <= 227 * 1024
    assert host.cluster_blocks(max(cluster.MAX_HIDDEN.values())) == 16


def kinds(tensor: Tensor) -> Tensor:
    """For each element 0 if it is finite, and other numbers for the two infinities and NaN."""
    return tensor.isposinf() * 1 + tensor.isneginf() * 2 + tensor.isnan() * 4


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["gates_x", "h0", "c0", "weight_hh", "grad_output", "grad_c_n"])
@pytest.mark.parametrize("numbers", ["bfloat16", "tf32", "tf32x3"])
def test_infinities_and_nan_stay_where_they_belong(host: ctypes.CDLL, numbers: str, name: str, value: float) -> None:
    """Neither the units beyond H nor other rows get them, nor a sum of a float's two parts."""
    problem = make_problem(11, 100, 3, False, True, numbers)
    # Small, so that no gate is 0 or 1 after it is rounded to 16 bit: an infinity times 0 would be NaN.
    problem = {key: item * 0.3 if isinstance(item, Tensor) else item for key, item in problem.items()}
    problem[name].view(-1)[137] = value
    result, expected = run(host, problem, 2), reference(problem)
    for key, right in expected.items():
        assert torch.equal(kinds(result[key]), kinds(right)), key
