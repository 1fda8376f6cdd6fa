"""The Triton backend: all variants against the oracle in float64, in the interpreter if there is no GPU.

``test_op.py`` has what every backend must do. Here are tiles, launches, and what only Triton has.
"""

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import problems
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import TOLERANCE, assert_matches_the_oracle, results
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tagrank import lstm_recurrence
from tagrank.kernels.choice import RULES
from tagrank.kernels.variants import Gpu, Kernel, Rule, Variant
from tagrank.recurrence import trace
from tagrank.recurrence.backends import FUSED, BackwardInputs, triton_kernels
from tagrank.recurrence.backends.eager import lstm_loop

pytestmark = pytest.mark.usefixtures("poisoned")

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
backend = FUSED["triton"]
make_inputs = partial(problems.make_inputs, device=DEVICE)

RESIDENT = Variant("resident", 16, 32, 32, 4)
GROUPED = Variant("grouped", 16, 16, 16, 4)
STEP = Variant("step", 16, 16, 16, 4, 2)
PRODUCT = Variant("product", 4, 16, 1, 4)
VARIANTS = {"resident": RESIDENT, "grouped": GROUPED, "step": STEP, "product": PRODUCT}


@pytest.fixture(autouse=True, scope="module")
def a_launch_for_each_step() -> Iterator[None]:
    """For grouped variants in the interpreter: it runs one program after another, and one step needs no barrier.

    ``test_grouped.py`` is about the barrier.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not GPU:
            launches = triton_kernels._launches
            patch.setattr(triton_kernels, "_launches", lambda v, steps: launches(STEP if v.cooperative else v, steps))
        yield


@pytest.mark.parametrize("name", VARIANTS)
@given(
    batch=st.integers(1, 36),
    hidden=st.integers(1, 32),
    steps=st.integers(1, 4),
    constant=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
)
@settings(max_examples=8)
def test_matches_the_oracle(name: str, batch: int, hidden: int, steps: int, constant: bool, dtype: torch.dtype) -> None:
    inputs = make_inputs(batch, hidden, None if constant else steps, dtype)
    with backend.forced(forward=VARIANTS[name], backward=VARIANTS[name]), trace() as kernels:
        got = results(*lstm_recurrence(*inputs, steps=steps, backend="triton"), inputs)
    assert kernels == [f"triton.forward.{name}", f"triton.backward.{name}"]
    assert_matches_the_oracle(got, inputs, steps, TOLERANCE[dtype])


TILES = [
    (Variant("resident", 16, 64, 64, 4), (2, 1)),
    (Variant("grouped", 16, 32, 16, 4), (2, 2)),
    (Variant("grouped", 32, 16, 32, 4), (1, 3)),
    (Variant("step", 16, 16, 16, 4, 2), (2, 3)),
    (Variant("step", 32, 16, 64, 4, 4), (1, 3)),
    (Variant("step", 16, 32, 32, 4, 3), (2, 2)),
    (PRODUCT, (6, 3)),
]


@pytest.mark.parametrize(
    ("variant", "grid", "dtype", "constant"),
    [
        # Half of them are exhaustive: each variant meets each dtype and each kind of input, and each dtype meets both.
        pytest.param(
            *(variant, grid, dtype, constant),
            marks=[] if (i + j + constant) % 2 else pytest.mark.exhaustive,
            id=f"{variant.name}{i}-{dtype}-{'constant' if constant else 'varying'}",
        )
        for i, (variant, grid) in enumerate(TILES)
        for j, dtype in enumerate((torch.float16, torch.float32, torch.float64))
        for constant in (True, False)
    ],
)
def test_many_programs(variant: Variant, grid: tuple[int, int], dtype: torch.dtype, constant: bool) -> None:
    """Three steps, so that the launches read and write what they hand on more than once."""
    batch, hidden, steps = 21, 40, 3
    assert variant.grid(batch, hidden) == grid
    inputs = make_inputs(batch, hidden, None if constant else steps, dtype)
    with backend.forced(forward=variant, backward=variant), trace() as kernels:
        got = results(*lstm_recurrence(*inputs, steps=steps, backend="triton"), inputs)
    assert kernels == [f"triton.forward.{variant.name}", f"triton.backward.{variant.name}"]
    assert_matches_the_oracle(got, inputs, steps, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("first", "second"), [(RESIDENT, STEP), (STEP, GROUPED), (GROUPED, PRODUCT), (PRODUCT, RESIDENT)]
)
def test_one_variant_reads_what_the_other_saved(first: Variant, second: Variant) -> None:
    inputs = make_inputs(18, 20, None, torch.float32)
    with backend.forced(forward=first, backward=second):
        got = results(*lstm_recurrence(*inputs, steps=3, backend="triton"), inputs)
    assert_matches_the_oracle(got, inputs, 3, TOLERANCE[torch.float32])


@pytest.mark.parametrize("save_gates", [True, False])
@pytest.mark.parametrize("save_cells", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_saves_what_is_requested(name: str, save_gates: bool, save_cells: bool) -> None:
    steps, batch, hidden = 3, 17, 9
    inputs = make_inputs(batch, hidden, None, torch.float32)
    before = [t.detach().clone() for t in inputs]
    with backend.forced(forward=VARIANTS[name]):
        output, c_n, gates, cells = backend.forward(*inputs, steps, save_gates, save_cells)
    gates_x, weight_hh, h0, c0 = (t.detach() for t in inputs)
    expected, expected_c = lstm_loop(gates_x.double(), weight_hh.double(), h0.double(), c0.double(), steps)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(c_n.double(), expected_c, rtol=0, atol=1e-6)
    assert gates.shape == ((steps, batch, 4 * hidden) if save_gates else (0,))
    assert cells.shape == ((steps, batch, hidden) if save_cells else (0,))
    if save_cells:
        assert torch.equal(cells[-1], c_n)
    if save_gates and save_cells:
        i, f, g, o = gates.chunk(4, dim=-1)
        torch.testing.assert_close(f * torch.cat([c0[None], cells[:-1]]) + i * g, cells)
        torch.testing.assert_close(o * cells.tanh(), output)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_backward_leaves_what_was_saved(name: str, constant: bool) -> None:
    inputs = make_inputs(17, 9, None if constant else 3, torch.float32)
    with backend.forced(forward=VARIANTS[name], backward=VARIANTS[name]):
        output, c_n, gates, cells = backend.forward(*inputs, 3, True, True)
        arguments = (torch.ones_like(output), torch.ones_like(c_n), *inputs, output, gates, cells)
        before = [t.clone() for t in arguments]
        first = backend.backward(BackwardInputs(*arguments, constant, True))
        second = backend.backward(BackwardInputs(*arguments, constant, True))
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_retain_graph(name: str) -> None:
    inputs = make_inputs(17, 20, None, torch.float32)
    with backend.forced(forward=VARIANTS[name], backward=VARIANTS[name]):
        output, _ = lstm_recurrence(*inputs, steps=3, backend="triton")
        first = torch.autograd.grad(output.sum(), inputs, retain_graph=True)
        second = torch.autograd.grad(output.sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("states", [True, False])
def test_recompute(name: str, constant: bool, steps: int, states: bool) -> None:
    inputs = make_inputs(17, 20, None if constant else steps, torch.float64)
    if not states:
        inputs = (*inputs[:2], *(torch.zeros_like(t).requires_grad_() for t in inputs[2:]))
    given = inputs if states else inputs[:2]
    with backend.forced(forward=VARIANTS[name], backward=VARIANTS[name]):
        got = results(*lstm_recurrence(*given, steps=steps, backend="triton", recompute=True), given)
    assert_matches_the_oracle(got, inputs, steps, TOLERANCE[torch.float64])


def test_recompute_allocates_no_second_array_of_gates() -> None:
    """The gradients of recomputed gates overwrite the gates."""
    steps, batch, hidden = 3, 17, 20
    inputs = [t.detach() for t in make_inputs(batch, hidden, steps, torch.float32)]
    output, c_n, _, cells = backend.forward(*inputs, steps, False, True)
    empty = cells.new_empty(0)
    shapes = []

    class Allocations(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if function in (torch.ops.aten.new_empty.default, torch.ops.aten.empty_like.default):
                shapes.append(list(result.shape))
            return result

    gradients = torch.ones_like(output), torch.ones_like(c_n)
    with Allocations():
        backend.backward(BackwardInputs(*gradients, *inputs, output, empty, cells, False, True))
    assert shapes.count([steps, batch, 4 * hidden]) == 1


@pytest.mark.parametrize("states", [True, False])
def test_without_the_weights_gradient_its_products_are_left_out(states: bool) -> None:
    """PyTorch computes these products after the kernel, for both backends for GPUs. The product of d_h0 stays."""
    steps, batch, hidden = 3, 17, 20
    inputs = [t.detach() for t in make_inputs(batch, hidden, steps, torch.float64)]
    given = [*inputs[:2], *(inputs[2:] if states else (None, None))]
    output, c_n, gates, cells = backend.forward(*given, steps, True, True)
    products = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default):
                products.append(list(result.shape))
            return result

    found = []
    for weight_wanted in (True, False):
        products.clear()
        inputs = BackwardInputs(output, c_n, *given, output, gates, cells, False, weight_wanted)
        with Products():
            found.append(backend.backward(inputs))
        of_weight = [[4 * hidden, hidden]] * (1 + states) if weight_wanted else []
        assert sorted(products) == [[batch, hidden]] * states + of_weight
    with_weight, without = found
    assert without[1].shape == (0,)
    for index in (0, 2, 3):
        assert torch.equal(with_weight[index], without[index])


@pytest.mark.parametrize("name", VARIANTS)
def test_the_sum_over_time_is_taken_before_rounding(name: str) -> None:
    """8 pairs of gradients 1 + 2^-12 and -1, which float16 rounds to 1 and -1: rounded first, the sum would be 0."""
    pairs, hidden = 8, 16
    zeros = torch.zeros(1, hidden, device=DEVICE, dtype=torch.float16)
    weight_hh = torch.zeros(4 * hidden, hidden, device=DEVICE, dtype=torch.float16)
    # With o = 1/2 and no way through c, the gradient of o is grad_output * tanh(c) / 4.
    gates = torch.zeros(2 * pairs, 1, 4 * hidden, device=DEVICE, dtype=torch.float16)
    gates[..., 3 * hidden :] = 0.5
    cells = torch.tensor([0.5 + 2**-13, 0.5]).atanh().repeat(pairs).to(DEVICE)[:, None, None].expand(-1, 1, hidden)
    grad_output = torch.tensor([8.0, -8.0]).repeat(pairs).to(zeros)[:, None, None].expand(-1, 1, hidden)
    output = torch.zeros_like(grad_output.contiguous())
    saved = weight_hh, zeros, zeros, output, gates, cells.contiguous()
    with backend.forced(backward=VARIANTS[name]):
        d_gates, *_ = backend.backward(BackwardInputs(grad_output.contiguous(), zeros, gates, *saved, False, True))
        d_gates_x, *_ = backend.backward(BackwardInputs(grad_output.contiguous(), zeros, gates[0], *saved, True, True))
    assert set(d_gates[..., 3 * hidden :].flatten().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(
        d_gates_x[0, 3 * hidden :].float(), torch.full((hidden,), 2**-9, device=DEVICE), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize(
    ("kernel", "rule"),
    [
        pytest.param(kernel, rule, id=f"{kernel}-{str(rule.variant).replace(' ', '-')}")
        for kernel, rules in RULES.items()
        for rule in rules
        if "float32" in rule.dtypes and rule.variant.name != "step"
    ],
)
def test_the_tiles_for_float32(kernel: Kernel, rule: Rule) -> None:
    """Two tiles of rows, and where the table allows it two tiles of units and two chunks of U, none of them full."""
    inputs = make_inputs(rule.variant.block_b + 1, 40, None, torch.float32)
    with backend.forced(**{kernel: rule.variant}), trace() as kernels:
        got = results(*lstm_recurrence(*inputs, steps=2, backend="triton"), inputs)
    assert f"triton.{kernel}.{rule.variant.name}" in kernels
    assert_matches_the_oracle(got, inputs, 2, 2e-3 if GPU else 1e-6)


def test_an_empty_batch() -> None:
    inputs = make_inputs(0, 5, None, torch.float32)
    output, c_n = lstm_recurrence(*inputs, steps=3, backend="triton")
    assert output.shape == (3, 0, 5)
    grads = torch.autograd.grad(output.sum() + c_n.sum(), inputs)
    assert torch.equal(grads[1], torch.zeros_like(inputs[1]))


def test_the_table_chooses_the_step_variant_until_more_is_verified() -> None:
    inputs = make_inputs(2, 16, None, torch.float16)
    with trace() as kernels:
        lstm_recurrence(*inputs, steps=2, backend="triton")
    assert kernels == ["triton.forward.step"]


def test_forced_ends_with_its_block() -> None:
    inputs = make_inputs(2, 16, None, torch.float32)
    with trace() as kernels:
        with backend.forced(forward=RESIDENT):
            with backend.forced(forward=STEP):
                lstm_recurrence(*inputs, steps=1, backend="triton")
            lstm_recurrence(*inputs, steps=1, backend="triton")
        lstm_recurrence(*inputs, steps=1, backend="triton")
    assert [kernel.split(".")[-1] for kernel in kernels] == ["step", "resident", "step"]


@pytest.mark.skipif(GPU, reason="on a GPU nothing is interpreted")
def test_the_interpreter_refuses_bfloat16() -> None:
    inputs = make_inputs(2, 4, None, torch.bfloat16)
    with pytest.raises(
        RuntimeError, match="backend='triton' cannot run this: Triton's interpreter multiplies bfloat16"
    ):
        lstm_recurrence(*inputs, steps=1, backend="triton")


def test_refuses_cpu_tensors_where_kernels_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernels, "_kernels_are_interpreted", lambda: False)
    reason = backend.unsupported(torch.zeros(2, 16))
    assert reason is not None
    assert "TRITON_INTERPRET=1" in reason
    assert "gates_x is on cpu" in reason


def test_refuses_other_devices() -> None:
    assert backend.unsupported(torch.zeros(2, 16, device="meta")) == "it runs on NVIDIA GPUs, and gates_x is on meta"


@pytest.mark.parametrize(
    ("capability", "reason"),
    [((7, 5), "it needs compute capability 8.0, and cuda:0 has 7.5"), ((8, 0), None), ((9, 0), None), ((12, 0), None)],
)
def test_gpus_by_capability(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], reason: str | None) -> None:
    monkeypatch.setattr(triton_kernels, "_kernels_are_interpreted", lambda: False)
    monkeypatch.setattr(triton_kernels, "gpu_of", lambda device: Gpu(capability, 108))
    with FakeTensorMode():
        assert backend.unsupported(torch.empty(2, 16, device="cuda:0")) == reason


def test_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason() -> str:
        return backend.unavailable() or "available"

    missing = "triton is not installed (torch's CUDA wheels bring it): pip install 'tagrank[triton]'"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert reason() == "available"
    monkeypatch.setattr(triton_kernels, "_INSTALLED", False)
    assert reason() == missing
    # Without a GPU that it could run on, installing Triton would be in vain.
    monkeypatch.delenv("TRITON_INTERPRET")
    assert reason().startswith("this PyTorch is built without CUDA")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reason().startswith("no NVIDIA GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert reason() == missing
    monkeypatch.setattr(triton_kernels, "_INSTALLED", True)
    assert reason() == "available"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "AMD" in reason()


#: With the argument ``each kind of flags`` all that makes different code of a variant; else a case of each variant.
LAUNCH_WITHOUT_A_GPU = """
import sys
import torch, triton
from triton.backends.compiler import GPUTarget

class Driver:
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

triton.runtime.driver.set_active(Driver())

from tagrank.kernels.offline import cases, compile_case
from tagrank.recurrence.backends.base import BackwardCall, ForwardCall
from tagrank.recurrence.backends.triton_kernels import _compile

B, T = 40, 3
DEVICE, DTYPE = torch.device("cuda", 0), torch.float16
seen = set()
for case in cases((9, 0)):
    variant, flags = case.rule.variant, case.flags
    kind = (case.kernel, variant.name, *(flags.values() if sys.argv[1] == "each kind of flags" else ()))
    if kind in seen or case.dtype != "float16":
        continue
    seen.add(kind)
    size = DEVICE, DTYPE, B, case.hidden, T, flags["CONSTANT"]
    if case.kernel == "forward":
        call = ForwardCall(*size, flags["ADDEND"], True, True, flags["SAVE_GATES"], flags["SAVE_CELLS"])
        without = call._replace(h0=False, c0=False)
    else:
        call = BackwardCall(*size, flags["SUM"], flags["RECOMPUTE"], True, flags["GRAD_STRIDE"], True, True, True)
        without = call._replace(c0=False, c0_wanted=False)
    expected = compile_case(case).asm["cubin"]
    assert _compile(variant, call).asm["cubin"] == expected, case
    # Without initial states the code is another.
    assert _compile(variant, without).asm["cubin"] != expected, case
    print(case.kernel, variant.name)
"""


@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_the_driver_gets_the_parameters_in_the_kernels_order(kernel: str) -> None:
    """csrc/operators/gpu.cpp passes each argument of the Python function that is no constant, pointers first."""
    root = Path(__file__).parents[2]
    source = (root / "csrc" / "operators" / "gpu.cpp").read_text(encoding="utf-8")
    (body,) = re.findall(rf"void {kernel}_by_triton\(.*?\n}}\n", source, re.DOTALL)
    passed = re.findall(r"parameters\.(add|add_number)\((.*?)\);", body)
    tree = ast.parse((root / "kernels" / f"{kernel}.py").read_text(encoding="utf-8"))
    (function,) = [f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name == f"lstm_{kernel}"]
    names = [argument.arg for argument in function.args.args if argument.annotation is None]
    assert len(passed) == len(names)
    for (method, value), name in zip(passed, names, strict=True):
        is_number = name in ("t0", "steps", "length", "batch", "hidden_over_align", "cell_slots") or "stride" in name
        assert (method == "add_number") == is_number, name
        same = {
            "gates": "saved",
            "d_gates_x": "gradients.gates_sum",
            "d_c0": "gradients.c0",
            "t0": "0",
            "steps": "count",
        }
        same |= {"length": "steps", "hidden_over_align": "hidden / ", "cell_slots": "slots"}
        same |= {"step_stride_over_unit": "stride(0)", "row_stride_over_unit": "stride(1)"}
        assert value.removeprefix("pass.") == name or same.get(name, name) in value, (name, value)


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.parametrize("cases", ["each variant", "each kind of flags"])
def test_what_is_launched_is_what_is_compiled_offline(tmp_path: Path, cases: str) -> None:
    """What is compiled for a call is bit for bit the code of ``offline``."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    # A cache from another folder would have the same code with other paths for the debugger.
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", LAUNCH_WITHOUT_A_GPU, cases],
        capture_output=True,
        text=True,
        env=environment,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr
    lines = Counter(result.stdout.splitlines())
    assert set(lines) == {f"{kernel} {name}" for kernel in ("forward", "backward") for name in VARIANTS}


def test_a_capture_leaves_no_counters_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be the graph's memory, and zero only once the graph has run."""
    backend, device = triton_kernels.Triton(), torch.device("cpu")
    capturing = True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    assert backend._counters_on(device, 7, 3) is None
    capturing = False
    counters = backend._counters_on(device, 7, 3)
    assert counters is not None
    assert len(counters) >= 3
    assert not counters.any()
    capturing = True
    assert backend._counters_on(device, 7, 3) is counters
    assert backend._counters_on(device, 7, len(counters) + 1) is None
    assert backend._counters_on(device, 8, 3) is None
