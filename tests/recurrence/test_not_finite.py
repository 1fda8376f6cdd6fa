"""Infinities and NaN stay where mathematics puts them: the same as in the eager loop, whatever H and B are."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tagrank import lstm_recurrence
from tagrank.kernels.variants import Variant
from tagrank.recurrence.backends import FUSED

ROOT = Path(__file__).parents[2]
NAMES = ("gates_x", "weight_hh", "h0", "c0", "grad_output", "grad_c_n")
RESULTS = ("output", "c_n", "d_gates_x", "d_weight_hh", "d_h0", "d_c0")
VALUES = (float("inf"), float("-inf"), float("nan"))


def run(tensors: list[Tensor], steps: int, backend: str, recompute: bool = False) -> list[Tensor]:
    *inputs, grad_output, grad_c_n = tensors
    leaves = [t.clone().requires_grad_() for t in inputs]
    results = lstm_recurrence(*leaves, steps=steps, backend=backend, recompute=recompute)
    return [t.detach() for t in results] + list(torch.autograd.grad(results, leaves, [grad_output, grad_c_n]))


def kinds(tensor: Tensor, coarse: bool = False) -> Tensor:
    """For each element 0 if it is finite, and other numbers for the two infinities and NaN; one if ``coarse``."""
    if coarse:
        return ~tensor.isfinite()
    return tensor.isposinf() * 1 + tensor.isneginf() * 2 + tensor.isnan() * 4


def check(backend: str, batch: int, hidden: int, steps: int, dtype: torch.dtype, seed: int) -> None:
    """One element of each tensor in turn is not finite. A gradient may also be one row's number, expanded."""
    generator = torch.Generator().manual_seed(seed)
    choose = random.Random(seed)
    constant, recompute = choose.random() < 0.5, choose.random() < 0.5
    gates = (batch, 4 * hidden) if constant else (steps, batch, 4 * hidden)
    state, grad = (batch, hidden), (steps, batch, hidden)
    # Small, so that no gate and no cell is 0 or 1 after it is rounded to bfloat16.
    shapes = (gates, (4 * hidden, hidden), state, state, grad, state)
    finite = [(torch.randn(shape, generator=generator) * 0.5).to(dtype) for shape in shapes]
    finite[1] *= hidden**-0.5
    for name in (*NAMES, "expanded grad_output"):
        tensors = [t.clone() for t in finite]
        value = choose.choice(VALUES)
        if name == "expanded grad_output":
            tensors[4] = tensors[4][..., :1].clone()
            tensors[4][choose.randrange(steps), choose.randrange(batch)] = value
            tensors[4] = tensors[4].expand(steps, batch, hidden)
        else:
            at = tensors[NAMES.index(name)].view(-1)
            at[choose.randrange(len(at))] = value
        wide = [t if dtype.itemsize > 2 else t.float() for t in tensors]
        got, want = run(tensors, steps, backend, recompute), run(wide, steps, "eager")
        for result, a, b in zip(RESULTS, got, want, strict=True):
            case = f"{value} in {name}: {result} for B={batch}, H={hidden}, T={steps}, {dtype}, seed {seed}"
            # A gate that rounds to 0 or 1 in bfloat16 makes NaN of an infinity that it would only have scaled.
            coarse = dtype == torch.bfloat16
            assert torch.equal(kinds(a, coarse), kinds(b, coarse)), case


def check_native(seed: int, every: int) -> None:
    """Every H up to 40, each with batches of all sizes up to 70. One of ``every`` cases is tried."""
    number = seed
    for hidden in range(1, 41):
        for batch in (1, 2, 3, 7, 8, 12, 24, 25, 31, 32, 33, 40, 64, 70):
            for steps in (1, 3):
                for dtype in (torch.float32, torch.float64, torch.bfloat16):
                    number += 1
                    if number % every == 0:
                        check("native", batch, hidden, steps, dtype, number)


CAPABILITIES = ["portable", "avx2", "avx512", "amx"]
FEW = ["portable", pytest.param("avx2", marks=pytest.mark.exhaustive), "avx512", "amx"]


@pytest.mark.skipif(FUSED["native"].unavailable() is not None, reason=str(FUSED["native"].unavailable()))
@pytest.mark.parametrize("every", [23, pytest.param(7, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("capability", FEW)
def test_native(capability: str, every: int) -> None:
    here = torch.ops.tagrank.cpu_capability()
    if here not in CAPABILITIES[CAPABILITIES.index(capability) :]:
        pytest.skip(f"this CPU has {here}")
    code = f"import test_not_finite; test_not_finite.check_native({every // 2}, {every})"
    environment = {
        "TAGRANK_CPU_CAPABILITY": capability,
        "PYTHONPATH": str(Path(__file__).parent),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.exhaustive
@pytest.mark.skipif(FUSED["native"].unavailable() is not None, reason=str(FUSED["native"].unavailable()))
def test_native_on_an_emulated_matrix_unit(tmp_path: Path) -> None:
    """The library for AMX with the unit's instructions in plain C++ (``emulated_tiles.h``), on a CPU without AMX."""
    if torch.ops.tagrank.cpu_capability() != "avx512":
        pytest.skip("it needs AVX-512, and no AMX")
    package, built = tmp_path / "site" / "tagrank", tmp_path / "built"
    shutil.copytree(ROOT / "tagrank", package, ignore=shutil.ignore_patterns("*.so", "__pycache__", "kernels"))
    shutil.copytree(ROOT / "kernels", package / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "csrc", built)
    capability = built / "cpu" / "capability.cpp"
    text, asked = capability.read_text(), "if (may_use_tiles()) return"
    assert asked in text
    capability.write_text(text.replace(asked, "if (may_use_tiles() || true) return"))
    torch_files = Path(torch.__file__).parent
    flags = ["-std=c++17", "-O2", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-DTAGRANK_AMX=1"]
    flags += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(torch_files / "include")]
    wide = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
    own = {
        "amx": [*wide, "-include", str(Path(__file__).with_name("emulated_tiles.h"))],
        "avx512": wide,
        "avx2": ["-mavx2", "-mfma"],
    }
    compiler, objects = os.environ.get("CXX", "c++").split()[0], []
    for source in [*built.glob("*.cpp"), *built.glob("operators/*.cpp"), *built.glob("cpu/*.cpp")]:
        objects.append(source.with_suffix(".o"))
        subprocess.run([compiler, *flags, *own.get(source.stem, []), "-c", source, "-o", objects[-1]], check=True)
    linked = [f"-L{torch_files / 'lib'}", "-ltorch_cpu", "-ldl", "-lpthread"]
    subprocess.run([compiler, "-shared", *objects, "-o", package / "_C.so", *linked], check=True)
    code = (
        "import torch, test_not_finite\n"
        "assert torch.ops.tagrank.cpu_capability() == 'amx'\n"
        "test_not_finite.check_native(3, 13)\n"
        "import test_packed\n"
        "for dtype in (torch.float32, torch.bfloat16):\n"
        "    for lengths in test_packed.LENGTHS:\n"
        "        given = test_packed.arguments(lengths, 33, ('gates_x', 'h0', 'c0'))\n"
        "        test_packed.assert_is_right(lengths, given, dtype, 'native')\n"
        "        some = ((1, 33, 20), (3, 40, 70), (3, 70, 5)) if len(lengths) >= 32 else ()\n"
        "        for threads, hidden, projected in some:\n"
        "            torch.set_num_threads(threads)\n"
        "            sizes = lengths, hidden, projected, ('gates_x', 'h0', 'c0'), dtype, 'native'\n"
        "            test_packed.assert_projection_is_right(*sizes)\n"
        "        torch.set_num_threads(1)"
    )
    paths = os.pathsep.join([str(package.parent), str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TAGRANK_CPU_CAPABILITY": "amx"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(FUSED["native"].unavailable() is not None, reason=str(FUSED["native"].unavailable()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("hidden", [7, 16, 20, 33])
def test_a_row_does_not_depend_on_its_batch(hidden: int, dtype: torch.dtype) -> None:
    """The gates are finite again after one step with an infinite ``h0``, alone and in a batch."""
    gates_x, weight_hh, h0 = torch.randn(31, 4 * hidden), torch.randn(4 * hidden, hidden), torch.zeros(31, hidden)
    h0[5, 0] = float("inf")
    gates_x, weight_hh, h0 = (t.to(dtype) for t in (gates_x, weight_hh, h0))
    many, _ = lstm_recurrence(gates_x, weight_hh, h0, steps=5, backend="native")
    one, _ = lstm_recurrence(gates_x[5:6], weight_hh, h0[5:6], steps=5, backend="native")
    assert many.isfinite().all()
    torch.testing.assert_close(many[:, 5:6], one)


@pytest.mark.skipif(not FUSED["triton"].interpreted(), reason="with a GPU, test_gpu.py does it")
@pytest.mark.parametrize(
    "hidden", [1, 7, pytest.param(16, marks=pytest.mark.exhaustive), pytest.param(33, marks=pytest.mark.exhaustive)]
)
def test_triton_in_the_interpreter(hidden: int) -> None:
    for seed, batch in enumerate((1, 3, 17)):
        check("triton", batch, hidden, 3, torch.float32, seed)


@pytest.mark.skipif(not FUSED["triton"].interpreted(), reason="with a GPU, test_on_a_gpu does it")
@pytest.mark.parametrize("name", ["resident", "grouped"])
def test_triton_in_one_launch(name: str) -> None:
    """Units beyond H fill the tile up. What they compute must not reach the others."""
    variant = Variant(name, 16, 16, 16, 4)
    for seed in range(3):
        with FUSED["triton"].forced(forward=variant, backward=variant):
            check("triton", 3, 7, 3, torch.float32, seed)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("hidden", [7, 100, 250])
@pytest.mark.parametrize("name", ["triton", "cluster"])
def test_on_a_gpu(name: str, hidden: int, dtype: torch.dtype) -> None:
    """An infinite ``h0`` in one row leaves the other rows and the later steps finite, as in the eager loop."""
    backend = FUSED[name]
    if backend.unavailable() is not None or dtype not in backend.dtypes:
        pytest.skip(str(backend.unavailable() or f"{name} does not take {dtype}"))
    shapes = (40, 4 * hidden), (4 * hidden, hidden), (40, hidden)
    gates_x, weight_hh, h0 = ((torch.randn(shape, device="cuda") * 0.3).to(dtype) for shape in shapes)
    h0[5, 0] = float("inf")
    for variant, forced in backend.variants().items():
        with forced():
            if backend.unsupported(gates_x) is not None:
                continue
            got = lstm_recurrence(gates_x, weight_hh, h0, steps=3, backend=name)
        want = lstm_recurrence(gates_x.float(), weight_hh.float(), h0.float(), steps=3, backend="eager")
        for result, a, b in zip(("output", "c_n"), got, want, strict=True):
            assert torch.equal(kinds(a), kinds(b)), f"{variant}: {result}"
