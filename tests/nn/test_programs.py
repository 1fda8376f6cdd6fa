"""Saved programs in processes that have the C++ library, and not tagrank's Python."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tagrank import ContextLSTM, lstm_recurrence
from tagrank.recurrence import library
from tagrank.recurrence.backends import FUSED

pytestmark = pytest.mark.skipif(not FUSED["native"].by_library(), reason="the library is not built")

D = Dim.DYNAMIC
SHAPES = ({0: D}, {0: D, 1: D})


class Decoder(nn.Module):
    """Layers with an input, a layer without, and the recurrence with states."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = ContextLSTM(3, 5, input_size=2, num_layers=2)
        self.only_context = ContextLSTM(3, 5)
        self.weight = nn.Parameter(torch.randn(20, 5))

    def forward(self, context: Tensor, input: Tensor) -> tuple[Tensor, ...]:
        output, (h_n, c_n) = self.lstm(context, input=input)
        other, _ = self.only_context(context, input.shape[0])
        return output, h_n, c_n, other, *lstm_recurrence(output.repeat(1, 1, 4), self.weight, h_n[0], c_n[0])


def arguments(batch: int, steps: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3), torch.randn(steps, batch, 2)


RUN = """
import sys, torch
torch.ops.load_library(sys.argv[1])
load = {load}
program = load(sys.argv[2])
for given, expected in torch.load(sys.argv[3]):
    with torch.no_grad():
        torch.testing.assert_close(program(*given), expected)
assert "tagrank" not in sys.modules
print("agrees")
"""


def run(load: str, program: Path, module: nn.Module) -> None:
    """Run a program in another process, in a folder where it finds no tagrank, on batches of several sizes."""
    folder = program.parent
    with torch.no_grad():
        torch.save([(given, module(*given)) for given in (arguments(2, 6), arguments(3, 9))], folder / "expected.pt")
    command = [sys.executable, "-W", "ignore", "-c", RUN.format(load=load)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*command, str(library.LIBRARY), str(program), str(folder / "expected.pt")],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "agrees\n"


@pytest.mark.parametrize("grad", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_an_exported_program_runs_with_the_library_alone(grad: bool, tmp_path: Path) -> None:
    module, path = Decoder(), tmp_path / "program.pt2"
    with torch.set_grad_enabled(grad):
        program = torch.export.export(module, arguments(2, 6), dynamic_shapes=SHAPES)
    torch.export.save(program, path)
    run("lambda path: torch.export.load(path).module()", path, module)


@pytest.mark.exhaustive
def test_a_traced_program_runs_with_the_library_alone(tmp_path: Path) -> None:
    class WithInput(Decoder):
        """Only what has an input at each step: the number of steps is otherwise a constant of the trace."""

        def forward(self, context: Tensor, input: Tensor) -> tuple[Tensor, ...]:
            output, (h_n, c_n) = self.lstm(context, input=input)
            return output, h_n, c_n

    module, path = WithInput(), tmp_path / "program.pt"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.trace(module, arguments(2, 6)).save(path)
    run("torch.jit.load", path, module)


@pytest.mark.exhaustive
def test_a_package_of_aot_inductor_runs_with_the_library_alone(tmp_path: Path) -> None:
    module, path = Decoder(), tmp_path / "package.pt2"
    with torch.no_grad():
        program = torch.export.export(module, arguments(2, 6), dynamic_shapes=SHAPES)
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    run("torch._inductor.aoti_load_package", path, module)
    without_python(path, module)


MAIN = """
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>
#include <iostream>

int main(int, char** argv) {
  if (dlopen(argv[1], RTLD_NOW) == nullptr) { std::cerr << dlerror(); return 1; }
  c10::InferenceMode mode;
  torch::inductor::AOTIModelPackageLoader loader(argv[2]);
  const auto results = loader.run({torch::ones({3, 3}), torch::ones({9, 3, 2})});
  std::cout.precision(9);
  for (const auto& result : results) std::cout << result.sum().item<double>() << "\\n";
}
"""


def without_python(package: Path, module: nn.Module) -> None:
    """The same package in a C++ program."""
    source, program = package.with_name("main.cpp"), package.with_name("main")
    source.write_text(MAIN)
    root = Path(torch.__file__).parent
    includes = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    libraries = [
        f"-L{root / 'lib'}",
        f"-Wl,-rpath,{root / 'lib'}",
        "-Wl,--no-as-needed",
        "-ltorch",
        "-ltorch_cpu",
        "-lc10",
    ]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    subprocess.run(
        ["c++", "-std=c++20", "-O0", abi, *includes, str(source), "-o", str(program), *libraries], check=True
    )
    done = subprocess.run([str(program), str(library.LIBRARY), str(package)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        expected = module(torch.ones(3, 3), torch.ones(9, 3, 2))
    got = [float(line) for line in done.stdout.split()]
    torch.testing.assert_close(
        torch.tensor(got), torch.stack([result.sum() for result in expected]), rtol=1e-5, atol=1e-5
    )


def test_the_library_says_what_it_cannot_run() -> None:
    """Its own operator, in a process without Python's: wrong shapes, and tensors on other devices."""
    code = (
        "import sys, torch\n"
        "torch.ops.load_library(sys.argv[1])\n"
        "run = torch.ops.tagrank.lstm_forward\n"
        "for gates in (torch.ones(2, 21), torch.ones(2, 20, dtype=torch.float16), torch.ones(2, 20, device='meta')):\n"
        "    try: run(gates, torch.ones(20, 5), None, None, 3, 'triton', False, False)\n"
        "    except (RuntimeError, NotImplementedError) as error: print(str(error).splitlines()[0])\n"
        "output, c_n, gates, cells = run(torch.ones(2, 20), torch.ones(20, 5), None, None, 3, 'native', True, True)\n"
        "print(output.shape, c_n.shape, gates.shape, cells.shape)\n"
        "output, c_n, gates, cells = run(torch.ones(2, 20), torch.ones(20, 5), None, None, 3, 'native', False, False)\n"
        "print(gates.shape, cells.shape)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(library.LIBRARY)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]
    shape, dtype, device, *shapes = done.stdout.splitlines()
    assert "context: expected" in shape
    assert "float" in dtype
    assert "import tagrank" in device
    assert shapes == [
        "torch.Size([3, 2, 5]) torch.Size([2, 5]) torch.Size([3, 2, 20]) torch.Size([3, 2, 5])",
        "torch.Size([0]) torch.Size([0])",
    ]
