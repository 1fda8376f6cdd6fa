"""What csrc/operators/cublas.cpp asks of cuBLASLt: layouts, transpositions, options. A stand-in multiplies on CPUs."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "c++").split()[0])
FAKE = "libtagrank_fake_cublaslt.so"
#: Of cublasComputeType_t.
FLOAT32, TF32 = 68, 77


@pytest.fixture(scope="module")
def fake(once: Callable[[str, Callable[[Path], None]], Path]) -> SimpleNamespace:
    """``multiply``, and how often the stand-in was asked for a plan and with which compute type it multiplied last."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    root = Path(torch.__file__).parent

    def compile_into(folder: Path) -> None:
        shared = [COMPILER, "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
        sources = [f"{ROOT}/csrc/{name}.cpp" for name in ("operators/cublas", "operators/tensors", "cpu/workspace")]
        macros = ["-DTORCH_TARGET_VERSION=0x020a000000000000", f'-DTAGRANK_CUBLASLT="{FAKE}"']
        linked = ["-isystem", f"{root}/include", f"-L{root}/lib", "-ltorch_cpu", "-ldl"]
        for name, options in (
            (FAKE, [f"-Wl,-soname,{FAKE}", f"{ROOT}/tests/recurrence/fake_cublaslt.cpp"]),
            ("operator.so", [*macros, f"{ROOT}/tests/recurrence/cublas_operator.cpp", *sources, *linked]),
        ):
            done = subprocess.run([*shared, "-o", str(folder / name), *options], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr

    folder = once("cublas", compile_into)
    library = ctypes.CDLL(str(folder / FAKE))
    torch.ops.load_library(str(folder / "operator.so"))
    return SimpleNamespace(
        multiply=torch.ops.tagrank_test.multiply.default, plans=library.fake_plans, compute=library.fake_compute
    )


def layouts(rows: int, columns: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same matrix as it may lie in memory."""
    matrix = torch.randn(rows, columns).to(dtype)
    wide = torch.randn(rows, columns + 5).to(dtype)
    wide[:, 2 : 2 + columns] = matrix
    return {"rows": matrix, "columns": matrix.t().contiguous().t(), "part of wider rows": wide[:, 2 : 2 + columns]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 5, 4), (1, 5, 4), (6, 1, 4), (6, 5, 1), (1, 1, 1)], ids=str)
def test_layouts(fake: SimpleNamespace, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, inner, columns = shape
    for a in layouts(rows, inner, dtype).values():
        for b in layouts(inner, columns, dtype).values():
            expected = a.float() @ b.float()
            for name, out in layouts(rows, columns, dtype).items():
                # In one row or column both orders are the same.
                if name == "columns" and 1 not in (rows, columns):
                    assert not fake.multiply(out, a, b, None, False, False)
                    continue
                before = out.float().clone()
                assert fake.multiply(out, a, b, None, True, False)
                torch.testing.assert_close(out.float(), before + expected, atol=0.05, rtol=0.02)
                assert fake.multiply(out, a, b, None, False, False)
                torch.testing.assert_close(out, expected.to(dtype))
            sums = torch.empty(rows, columns)
            assert fake.multiply(sums, a, b, None, False, False)
            torch.testing.assert_close(sums, expected)


def test_bias(fake: SimpleNamespace) -> None:
    x, weight, out = torch.randn(6, 5), torch.randn(8, 5), torch.empty(6, 8)
    for bias in torch.randn(3, 8):  # one plan, each time another pointer
        assert fake.multiply(out, x, weight.t(), bias, False, False)
        torch.testing.assert_close(out, torch.nn.functional.linear(x, weight, bias))
    assert not fake.multiply(torch.empty(6, 1), x, weight[:1].t(), torch.randn(1), False, False)


def test_precision(fake: SimpleNamespace) -> None:
    a, b, out = torch.randn(6, 5), torch.randn(5, 4), torch.empty(6, 4)
    for tf32, expected in ((True, TF32), (False, FLOAT32)):
        assert fake.multiply(out, a, b, None, False, tf32)
        assert fake.compute() == expected
    assert fake.multiply(out.bfloat16(), a.bfloat16(), b.bfloat16(), None, False, True)
    assert fake.compute() == FLOAT32  # of 16-bit factors, always


def test_plans_are_kept(fake: SimpleNamespace) -> None:
    a, b, out = torch.randn(7, 5), torch.randn(5, 3), torch.empty(7, 3)
    before = fake.plans()
    for _ in range(3):
        assert fake.multiply(out, a, b, None, False, False)
    assert fake.plans() == before + 1
    assert fake.multiply(out, a, b.t().contiguous().t(), None, False, False)
    assert fake.plans() == before + 2
    torch.testing.assert_close(out, a @ b)


def test_not_taken(fake: SimpleNamespace) -> None:
    """torch multiplies these."""
    a, b, out = torch.randn(6, 5), torch.randn(5, 4), torch.empty(6, 4)
    assert not fake.multiply(out.double(), a.double(), b.double(), None, False, False)
    assert not fake.multiply(out[:0], a[:0], b, None, False, False)
    assert not fake.multiply(out, a[:, :0], b[:0], None, False, False)
    assert not fake.multiply(out, torch.randn(6, 10)[:, ::2], b, None, False, False)
    assert not fake.multiply(out, torch.randn(5).expand(6, 5), b, None, False, False)
