"""What ``pip`` makes of the source: a pure-Python wheel without torch, a platform wheel with it."""

import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("csrc", "kernels", "tagrank", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what a wheel is built from, without what earlier builds have left there."""
    copy = tmp_path / "source"
    copy.mkdir()
    for part in PARTS:
        path = ROOT / part
        if path.is_dir():
            shutil.copytree(path, copy / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(path, copy)
    return copy


def build(source: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``pip wheel`` into ``source/dist``."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", "dist", *options, "."]
    clean = {name: value for name, value in os.environ.items() if name != "TAGRANK_BUILD_EXT"}
    # nvcc takes its time.
    clean["TAGRANK_BUILD_CUDA"] = "0"
    return subprocess.run(command, cwd=source, env=clean | environment, capture_output=True, text=True)


def wheel(source: Path) -> tuple[str, list[str]]:
    """The tag of the one wheel that was built, and the files in it."""
    (path,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return path.stem.split("-", 2)[2], archive.namelist()


def has_compiler() -> bool:
    return shutil.which(os.environ.get("CXX", "c++").split()[0]) is not None


@pytest.fixture(params=[{}, {"CC": "clang", "CXX": "clang++"}], ids=["default", "clang"])
def compiler(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment that chooses a compiler, of those that are here: the system's, which is mostly gcc, and clang."""
    chosen: dict[str, str] = request.param
    if not all(map(shutil.which, chosen.values())):
        pytest.skip("no clang")
    return chosen


def test_isolated_build_is_pure_python(source: Path) -> None:
    done = build(source)
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("no package index to fetch setuptools from")
    assert done.returncode == 0, done.stderr
    tag, files = wheel(source)
    assert tag == "py3-none-any"
    assert {"tagrank/__init__.py", "tagrank/kernels/__init__.py", "tagrank/py.typed"} <= set(files)
    assert {"tagrank/data/sets/coco.py", "tagrank/data/sets/coco_words.txt"} <= set(files)
    assert not [name for name in files if name.endswith((".so", ".cpp", ".h")) or name.startswith(("csrc", "kernels"))]


def assert_has_the_library(source: Path) -> None:
    """The wheel has it, and it can be loaded."""
    tag, files = wheel(source)
    assert tag.startswith("py3-none-")
    assert tag != "py3-none-any"
    assert [name for name in files if name.endswith(".so")] == ["tagrank/_C.so"]
    with zipfile.ZipFile(next((source / "dist").glob("*.whl"))) as archive:
        library = archive.extract("tagrank/_C.so", source / "unpacked")
    code = f"import torch; torch.ops.load_library({library!r}); print(torch.ops.tagrank.cpu_capability())"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=source.parent, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() in ("portable", "avx2", "avx512", "amx")


@pytest.mark.exhaustive
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_build_beside_torch_has_the_library(source: Path, compiler: dict[str, str]) -> None:
    """As it is built for use; ``test_nvcc_that_fails`` builds it without optimization, which is quick."""
    done = build(source, "--no-build-isolation", TAGRANK_BUILD_EXT="1", CFLAGS="-Werror", **compiler)
    assert done.returncode == 0, done.stderr
    assert_has_the_library(source)


@pytest.mark.skipif(not (has_compiler() and shutil.which("nm")), reason="no C++ compiler, or no nm")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="its instruction sets are those of x86-64")
@pytest.mark.parametrize("name", ["avx2", "avx512"])
def test_instruction_sets_keep_to_themselves(name: str, compiler: dict[str, str], tmp_path: Path) -> None:
    """The linker keeps one of several equal functions: none may be compiled for a CPU that has more than others."""
    flags = {"avx2": "-mavx2 -mfma", "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma"}[name]
    chosen = os.environ | compiler
    command = [chosen.get("CXX", "c++").split()[0], "-std=c++17", "-O3", "-fPIC", *flags.split()]
    source, target = ROOT / "csrc" / "cpu" / f"{name}.cpp", tmp_path / "object.o"
    subprocess.run([*command, "-fno-math-errno", "-fno-trapping-math", "-c", source, "-o", target], check=True)
    listed = subprocess.run(["nm", "-C", "--defined-only", target], capture_output=True, text=True, check=True).stdout
    shared = [line.split(maxsplit=2) for line in listed.splitlines()]
    # clang's way to std::terminate is two calls, whatever the CPU.
    functions = [symbol for _, kind, symbol in shared if kind in "WuT" and symbol != "__clang_call_terminate"]
    assert len(functions) > 10
    assert [symbol for symbol in functions if f"tagrank::cpu::{name}::" not in symbol] == []


@pytest.mark.parametrize("wish", ["0", "auto", "1"])
def test_compiler_that_fails(source: Path, wish: str) -> None:
    done = build(source, "--no-build-isolation", "-v", TAGRANK_BUILD_EXT=wish, CC="false", CXX="false")
    output = done.stdout + done.stderr
    assert ("csrc/bindings.cpp" in output) == (wish != "0")
    assert ('building extension "tagrank._C" failed' in output) == (wish == "auto")
    if wish == "1":
        assert done.returncode != 0
    else:
        assert done.returncode == 0, output
        tag, files = wheel(source)
        assert tag == "py3-none-any"
        assert "tagrank/__init__.py" in files


@pytest.fixture
def broken_nvcc(tmp_path: Path) -> str:
    """A CUDA_HOME whose nvcc compiles nothing."""
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho no such GPU >&2\nexit 1\n")
    nvcc.chmod(0o755)
    return str(tmp_path / "cuda")


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_nvcc_that_fails(source: Path, broken_nvcc: str, tmp_path: Path) -> None:
    # Of several options -O the compiler takes the last.
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -O0\n')
    compiler.chmod(0o755)
    chosen = {"CC": str(compiler), "CXX": str(compiler), "CFLAGS": "-Werror", "CUDA_HOME": broken_nvcc}
    done = build(source, "--no-build-isolation", "-v", TAGRANK_BUILD_EXT="1", TAGRANK_BUILD_CUDA="auto", **chosen)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "csrc/cuda cannot be built" in output
    assert "no such GPU" in output
    assert_has_the_library(source)


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize("there", [True, False])
def test_nvcc_required(source: Path, broken_nvcc: str, there: bool) -> None:
    home = broken_nvcc if there else str(source)
    done = build(source, "--no-build-isolation", TAGRANK_BUILD_EXT="1", TAGRANK_BUILD_CUDA="1", CUDA_HOME=home)
    assert done.returncode != 0
    output = done.stdout + done.stderr
    assert ("no such GPU" if there else "no nvcc in CUDA_HOME/bin") in output


def test_library_required_without_torch(source: Path) -> None:
    (source / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None\n")
    environment = os.environ | {"TAGRANK_BUILD_EXT": "1", "PYTHONPATH": str(source)}
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "no torch in this build environment" in done.stderr
    assert "--no-build-isolation" in done.stderr


def test_setuptools_that_is_too_old(source: Path) -> None:
    """Before version 70.1 it has no bdist_wheel. Builds without isolation ignore what pyproject.toml requires."""
    (source / "sitecustomize.py").write_text("import sys; sys.modules['setuptools.command.bdist_wheel'] = None\n")
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(
        command, cwd=source, env=os.environ | {"PYTHONPATH": str(source)}, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "is too old to build it: pip install 'setuptools>=77'" in done.stderr


@pytest.mark.parametrize("variable", ["TAGRANK_BUILD_EXT", "TAGRANK_BUILD_CUDA"])
def test_unknown_wish(source: Path, variable: str) -> None:
    done = build(source, "--no-build-isolation", **{variable: "yes"})
    assert done.returncode != 0
    assert f"{variable}: expected auto, 1 or 0; got 'yes'" in done.stderr


def test_the_oldest_versions_that_may_be_installed_are_those_that_are_tested() -> None:
    """``make test-oldest`` takes the releases that pyproject.toml and setup.py name."""
    project, setup, makefile = ((ROOT / name).read_text() for name in ("pyproject.toml", "setup.py", "Makefile"))
    tested = dict(re.findall(r"^(TORCH|TRITON) := (\d+\.\d+)\.\d+$", makefile, re.MULTILINE))
    allowed = dict(re.findall(r'^    "(torch|triton)>=([\d.]+)[;"]', project, re.MULTILINE))
    assert tested == {name.upper(): version for name, version in allowed.items()}
    major, minor = tested["TORCH"].split(".")
    assert f"OLDEST_TORCH = ({major}, {minor})" in setup
