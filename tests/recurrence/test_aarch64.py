"""The kernels for CPUs on aarch64, where they are NEON: cross-compiled, run in QEMU, compared with the oracle.

Debian's packages ``g++-aarch64-linux-gnu`` and ``qemu-user-static`` have what it takes.
"""

import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from problems import RESULTS, assert_matches_the_oracle, grad_weights, make_inputs, tolerance
from torch import Tensor

CPU = Path(__file__).parents[2] / "csrc" / "cpu"
COMPILER = shutil.which("aarch64-linux-gnu-g++")
OBJDUMP = shutil.which("aarch64-linux-gnu-objdump")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(None in (COMPILER, OBJDUMP, EMULATOR), reason="no compiler for aarch64, or no QEMU"),
]


@pytest.fixture(scope="session")
def program(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """cpu_passes.cpp with csrc/cpu, compiled with the flags of setup.py."""

    def build(folder: Path) -> None:
        names = ("portable", "recurrence", "capability", "team", "workspace")
        sources = [Path(__file__).with_name("cpu_passes.cpp"), *(CPU / f"{name}.cpp" for name in names)]
        flags = ["-std=c++17", "-O3", "-Wall", "-Wextra", "-Werror", "-fno-math-errno", "-fno-trapping-math"]
        command = [str(COMPILER), *flags, "-pthread", "-static", f"-I{CPU}", *sources]
        subprocess.run([*command, "-o", folder / "cpu_passes"], check=True)

    return once("aarch64", build) / "cpu_passes"


def content(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


def test_products_are_of_vectors(program: Path) -> None:
    """A loop over lanes would compute the same."""
    listed = subprocess.run([str(OBJDUMP), "-d", program], capture_output=True, text=True, check=True).stdout
    for lanes in ("4s", "2d"):
        assert len(re.findall(rf"\bfmla\s+v\d+\.{lanes}", listed)) > 100


# 5 rows and 37 columns fill neither the tiles nor the vectors; 3 threads meet at the barrier of each step.
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "varying"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_both_passes(program: Path, dtype: torch.dtype, constant: bool, threads: int) -> None:
    batch, hidden, steps = 5, 37, 6
    inputs = make_inputs(batch, hidden, None if constant else steps, dtype)
    shapes = [(steps, batch, hidden), (batch, hidden), *(t.shape for t in inputs)]
    given = [*inputs, *(grad_weights(torch.Size(shape), dtype, torch.device("cpu")) for shape in shapes[:2])]
    header = struct.pack("6q", DTYPES.index(dtype), threads, batch, hidden, steps, constant)
    command = [str(EMULATOR), str(program)]
    done = subprocess.run(command, input=header + b"".join(map(content, given)), capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    numbers = torch.frombuffer(bytearray(done.stdout), dtype=dtype)
    got = numbers.split([torch.Size(shape).numel() for shape in shapes])
    assert len(got) == len(RESULTS)
    shaped = [result.view(shape) for result, shape in zip(got, shapes, strict=True)]
    assert_matches_the_oracle(shaped, inputs, steps, tolerance(dtype, hidden))
