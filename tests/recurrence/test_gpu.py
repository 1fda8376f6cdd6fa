"""On an NVIDIA GPU: every kernel in every dtype and regime, against the loop in float64. ``make gpu`` runs it.

Each test may hang where a barrier is wrong, so that each has to end within its timeout.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from math import prod
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from tagrank import lstm_recurrence
from tagrank.kernels.choice import RULES, choose
from tagrank.kernels.variants import Kernel, Rule
from tagrank.recurrence import trace
from tagrank.recurrence.backends import FUSED, cluster
from tagrank.recurrence.backends import triton_kernels as backend
from tagrank.recurrence.backends.eager import lstm_loop

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(60)]

#: Of the norm of the reference, for results and gradients. In 16 bit, h and the gates are rounded at each step.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
TF32_TOLERANCE = 2e-3
Name = Literal["resident", "grouped", "step", "cluster"]
#: The variants of the Triton kernels, and the kernels in CUDA C++.
KERNELS: tuple[Name, ...] = ("resident", "grouped", "step", "cluster")
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]

#: B, T, H
REGIMES = [
    (1, 20, 1024),
    (1, 1, 512),
    (16, 20, 64),
    (16, 5, 128),
    (33, 7, 100),
    (40, 5, 1000),
    (64, 10, 512),
    (100, 3, 2048),
    (256, 5, 1024),
    (256, 20, 256),
    (4096, 4, 128),
    (4096, 3, 512),
]


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty returns NaN, so that what is read before it is written, or never written, shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["highest", "high"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def make_inputs(batch: int, hidden: int, steps: int | None, dtype: torch.dtype, seed: int = 0) -> Inputs:
    """gates_x (constant where steps is None), weight_hh, h0, c0; the spread of U keeps gradients from exploding."""
    generator = torch.Generator("cuda").manual_seed(seed)
    gates = (batch, 4 * hidden) if steps is None else (steps, batch, 4 * hidden)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(size, generator=generator, device="cuda") * scale
        return values.to(dtype).requires_grad_()

    states = normal(batch, hidden), normal(batch, hidden)
    return normal(*gates), normal(4 * hidden, hidden, scale=hidden**-0.5), *states


def results(output: Tensor, c_n: Tensor, inputs: Sequence[Tensor], retain_graph: bool = False) -> list[Tensor]:
    """Both outputs, and the gradients of a sum in which each of their elements has a weight of its own."""
    weights = [weight(t.shape, t.dtype) for t in (output, c_n)]
    return [output, c_n, *torch.autograd.grad([output, c_n], inputs, weights, retain_graph=retain_graph)]


@lru_cache(maxsize=8)
def weight(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The same each time; kept, as nothing can be drawn while a CUDA graph is captured."""
    generator = torch.Generator("cuda").manual_seed(1)
    # A short mantissa, so that it is the same in every dtype.
    numbers = torch.randn(shape, generator=generator, device="cuda").bfloat16().to(dtype)
    # Other streams use it too.
    torch.cuda.synchronize()
    return numbers


def assert_matches_the_oracle(got: list[Tensor], inputs: Inputs, steps: int, tolerance: float) -> None:
    gates_x, weight_hh, h0, c0 = (t.detach().double().requires_grad_() for t in inputs)
    exact = gates_x, weight_hh, h0, c0
    want = results(*lstm_loop(*exact, steps), exact)
    names = ("output", "c_n", "gates_x", "weight_hh", "h0", "c0")
    for name, result, reference in zip(names, got, want, strict=True):
        error = ((result.double() - reference).norm() / reference.norm()).item()
        assert error <= tolerance, f"{name}: {error}"


def backend_of(name: Name) -> str:
    return "cluster" if name == "cluster" else "triton"


def only(name: Name) -> AbstractContextManager[Any]:
    """Inside it, the backend of these kernels runs no others."""
    return nullcontext() if name == "cluster" else backend.forced(forward=name, backward=name)


def traced(name: Name) -> list[str]:
    end = "" if name == "cluster" else f".{name}"
    return [f"{backend_of(name)}.{kernel}{end}" for kernel in ("forward", "backward")]


def skip_unless_served(name: Name, batch: int, hidden: int, dtype: torch.dtype) -> None:
    if name == "cluster":
        reason = cluster.UNAVAILABLE or cluster.unsupported(torch.empty(batch, 4 * hidden, dtype=dtype, device="cuda"))
        if reason is not None:
            pytest.skip(reason)
        return
    gpu = backend.gpu_of(torch.device("cuda", torch.cuda.current_device()))
    for kernel in ("forward", "backward"):
        try:
            choose(kernel, hidden, batch, str(dtype).removeprefix("torch."), gpu, name=name)
        except ValueError as error:
            pytest.skip(str(error))


def entries() -> list[object]:
    """Each entry of the table in each of its dtypes."""
    return [
        pytest.param(kernel, rule, getattr(torch, dtype), id=f"{kernel}-{str(rule.variant).replace(' ', '-')}-{dtype}")
        for kernel, rules in RULES.items()
        for rule in rules
        for dtype in rule.dtypes
    ]


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "varying"])
@pytest.mark.parametrize(("kernel", "rule", "dtype"), entries())
def test_every_entry(kernel: Kernel, rule: Rule, dtype: torch.dtype, precision: str, constant: bool) -> None:
    if precision == "high" and dtype != torch.float32:
        pytest.skip("TF32 is for float32")
    gpu = backend.gpu_of(torch.device("cuda", torch.cuda.current_device()))
    steps, variant = 20, rule.variant
    widths = (rule.max_hidden - 8, rule.max_hidden) if rule.max_hidden else (136, 512) if rule.aligned else (1, 100)
    rows = (1, variant.block_b + 1)
    served = [
        (batch, hidden)
        for batch, hidden in itertools.product(rows, widths)
        if rule.compiles_for(gpu.capability)
        and rule.shared_memory(hidden) <= gpu.shared_memory
        and not (variant.cooperative and prod(variant.grid(batch, hidden)) > gpu.multiprocessors)
    ]
    if not served:
        pytest.skip("not for this GPU")
    for batch, hidden in served:
        inputs = make_inputs(batch, hidden, None if constant else steps, dtype)
        with backend.forced(**{kernel: variant}), trace() as kernels:
            got = results(*lstm_recurrence(*inputs, steps=steps, backend="triton"), inputs)
        assert f"triton.{kernel}.{variant.name}" in kernels
        tf32 = precision == "high" and dtype == torch.float32
        assert_matches_the_oracle(got, inputs, steps, TF32_TOLERANCE if tf32 else TOLERANCE[dtype])


@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recomputed"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("batch", "steps", "hidden"), REGIMES)
def test_auto(batch: int, steps: int, hidden: int, dtype: torch.dtype, recompute: bool) -> None:
    inputs = make_inputs(batch, hidden, None, dtype)
    with trace() as kernels:
        got = results(*lstm_recurrence(*inputs, steps=steps, recompute=recompute), inputs)
    assert [kernel.split(".")[1] for kernel in kernels] == ["forward", "backward"]
    assert {kernel.split(".")[0] for kernel in kernels} <= {"triton", "cluster"}
    assert_matches_the_oracle(got, inputs, steps, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("batch", "steps", "hidden"), REGIMES)
@pytest.mark.parametrize("name", KERNELS)
def test_by_name(name: Name, batch: int, steps: int, hidden: int, dtype: torch.dtype) -> None:
    skip_unless_served(name, batch, hidden, dtype)
    inputs = make_inputs(batch, hidden, steps, dtype)
    for recompute in (False, True):
        with only(name), trace() as kernels:
            output = lstm_recurrence(*inputs, steps=steps, backend=backend_of(name), recompute=recompute)
            got = results(*output, inputs)
        assert kernels == traced(name)
        assert_matches_the_oracle(got, inputs, steps, TOLERANCE[dtype])


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "varying"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("hidden", [1, 100, 128, 250, 256, 384, 500, 512])
def test_cluster(hidden: int, dtype: torch.dtype, constant: bool) -> None:
    """Each size of kernel in each number of rows, with H that fills it, that does not, and that 8 does not divide."""
    skip_unless_served("cluster", 1, hidden, dtype)
    clusters = torch.ops.tagrank.active_clusters(torch.cuda.current_device(), hidden, False)
    for batch in (1, 8 * clusters + 1, 16 * clusters + 1, 64 * clusters + 1):
        inputs = make_inputs(batch, hidden, None if constant else 7, dtype)
        with trace() as kernels:
            got = results(*lstm_recurrence(*inputs, steps=7, backend="cluster"), inputs)
        assert kernels == traced("cluster")
        assert_matches_the_oracle(got, inputs, 7, TOLERANCE[dtype])


def test_cluster_takes_rows_that_begin_anywhere() -> None:
    skip_unless_served("cluster", 9, 128, torch.float16)
    inputs = make_inputs(9, 128, None, torch.float16)
    expected = results(*lstm_recurrence(*inputs, steps=3, backend="cluster"), inputs)
    moved = []
    for tensor in inputs:
        memory = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype, device="cuda")
        moved.append(memory[1:].view_as(tensor).copy_(tensor.detach()).requires_grad_())
        assert moved[-1].data_ptr() % 16
    got = results(*lstm_recurrence(*moved, steps=3, backend="cluster"), moved)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_cluster_leaves_the_current_device_alone() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    skip_unless_served("cluster", 2, 64, torch.float16)
    inputs = [tensor.detach().to("cuda:1") for tensor in make_inputs(2, 64, None, torch.float16)]
    output, _ = lstm_recurrence(*inputs, steps=2, backend="cluster")
    assert output.device.index == 1
    assert torch.cuda.current_device() == 0
    assert torch.zeros(1, device="cuda").device.index == 0


def test_cluster_says_what_it_cannot_take() -> None:
    skip_unless_served("cluster", 1, 128, torch.float16)
    for hidden, dtype, reason in ((513, torch.float16, "H up to 512"), (64, torch.float32, "float16 and bfloat16")):
        with pytest.raises(RuntimeError, match=reason):
            lstm_recurrence(*make_inputs(2, hidden, None, dtype), steps=2, backend="cluster")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_eager(dtype: torch.dtype) -> None:
    inputs = make_inputs(16, 128, None, dtype)
    got = results(*lstm_recurrence(*inputs, steps=5, backend="eager"), inputs)
    assert_matches_the_oracle(got, inputs, 5, max(TOLERANCE[dtype], 5e-6))


@pytest.mark.parametrize("name", KERNELS)
def test_results_repeat_bit_for_bit(name: Name) -> None:
    """With the graph retained, and in a hundred runs, of which some might come when others are late."""
    skip_unless_served(name, 33, 128, torch.bfloat16)
    inputs = make_inputs(33, 128, None, torch.bfloat16)
    with only(name):
        output = lstm_recurrence(*inputs, steps=20, backend=backend_of(name))
        expected = results(*output, inputs, retain_graph=True)
        for _ in range(100):
            again = results(*lstm_recurrence(*inputs, steps=20, backend=backend_of(name)), inputs)
            assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
        again = results(*output, inputs)
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))


@pytest.mark.parametrize("name", KERNELS)
def test_several_streams(name: Name) -> None:
    """At once, with other numbers in each: they must not share counters or scratch memory."""
    skip_unless_served(name, 16, 128, torch.bfloat16)
    problems = [make_inputs(16, 128, None, torch.bfloat16, seed) for seed in range(4)]

    def run(inputs: Inputs) -> list[Tensor]:
        return results(*lstm_recurrence(*inputs, steps=20, backend=backend_of(name)), inputs)

    with only(name):
        expected = [run(inputs) for inputs in problems]
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in problems]
        got: list[list[Tensor]] = []
        for _ in range(10):
            got.clear()
            for stream, inputs in zip(streams, problems, strict=True):
                with torch.cuda.stream(stream):
                    got.append(run(inputs))
        torch.cuda.synchronize()
    for one, other in zip(expected, got, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("hidden", [128, 512])
@pytest.mark.parametrize("name", KERNELS)
def test_captured_in_a_cuda_graph(name: Name, hidden: int) -> None:
    """Forward and backward, replayed on other numbers, on streams that are not the one of the capture."""
    skip_unless_served(name, 20, hidden, torch.float16)
    inputs = make_inputs(20, hidden, None, torch.float16)

    def run() -> list[Tensor]:
        return results(*lstm_recurrence(*inputs, steps=5, backend=backend_of(name)), inputs)

    with only(name):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()  # compiles
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run()
        for seed, replayed_on in enumerate((torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream())):
            with torch.no_grad():
                for tensor, other in zip(inputs, make_inputs(20, hidden, None, torch.float16, seed), strict=True):
                    tensor.copy_(other)
            expected = run()
            torch.cuda.synchronize()
            with torch.cuda.stream(replayed_on):
                graph.replay()
            torch.cuda.synchronize()
            assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_no_synchronisation_and_no_more_memory_than_the_results() -> None:
    batch, hidden, steps = 16, 512, 20
    inputs = [t.detach() for t in make_inputs(batch, hidden, None, torch.bfloat16)]
    for name in ("grouped", "step", "cluster"):
        if name == "cluster" and cluster.UNAVAILABLE:
            continue
        with only(name):
            lstm_recurrence(*inputs, steps=steps, backend=backend_of(name))
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.set_sync_debug_mode("error")
            try:
                output, c_n = lstm_recurrence(*inputs, steps=steps, backend=backend_of(name))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        # Two slots for c go from launch to launch; each allocation is rounded up to 512 bytes.
        scratch = 2 * 4 * batch * hidden if name == "step" else 0
        assert torch.cuda.max_memory_allocated() - before <= output.nbytes + c_n.nbytes + scratch + 4 * 512
        del output, c_n


@pytest.mark.parametrize("name", ["resident", "step", "cluster"])
def test_offsets_beyond_32_bits(name: Name) -> None:
    """5 x 2^29 gates; the last rows, whose offsets do not fit into 32 bits, against the same rows by themselves."""
    steps, batch, hidden = 5, 2**20, 128
    skip_unless_served(name, batch, hidden, torch.float16)
    free, _ = torch.cuda.mem_get_info()
    if free < 20 * 2**30:
        pytest.skip("this GPU has too little memory for it")
    gates_x, weight_hh, h0, c0 = (t.detach() for t in make_inputs(batch, hidden, None, torch.float16))
    run = FUSED[backend_of(name)].forward
    with only(name):
        output, _, gates, _ = run(gates_x, weight_hh, h0, c0, steps, True, True)
        assert gates.numel() > 2**31
        rows = slice(batch - 32, batch)
        few = gates_x[rows].contiguous(), weight_hh, h0[rows].contiguous(), c0[rows].contiguous()
        expected, _, expected_gates, _ = run(*few, steps, True, True)
    torch.testing.assert_close(output[:, rows], expected, rtol=0, atol=2e-3)
    torch.testing.assert_close(gates[:, rows], expected_gates, rtol=0, atol=2e-3)
