"""Builds csrc/ into tagrank/_C.so where torch and a compiler are there. Everything else is in pyproject.toml.

The environment variable TAGRANK_BUILD_EXT says how much that matters: ``auto`` (the default) goes on without the
library where it cannot be built, ``1`` makes that an error, ``0`` does not try. torch is seen only by builds without
isolation (``pip install --no-build-isolation .``); it is looked for, never imported.

TAGRANK_BUILD_CUDA, with the same values, is about csrc/cuda, and nvcc: that of CUDA_HOME, or else the one on the PATH.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError
from setuptools.modified import newer_group

LIBRARY = os.path.join("tagrank", "_C.so")
#: The library runs with this torch and every later one.
OLDEST_TORCH = (2, 10)


#: For x86-64, what the kernels of each instruction set are compiled with; the rest of the library runs on any.
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
INSTRUCTION_SETS = {
    "avx2.cpp": ["-mavx2", "-mfma"],
    "avx512.cpp": AVX512,
    "amx.cpp": [*AVX512, "-mamx-tile", "-mamx-bf16"],
}


#: Machine code for Hopper, the first GPUs with clusters, and PTX for those after it.
NVCC = ["-std=c++17", "-O3", "-gencode", "arch=compute_90,code=[sm_90,compute_90]", "-Werror", "all-warnings"]


class BuildLibrary(build_ext):
    """Builds a library for ``torch.ops.load_library``: no Python module, so its name carries no Python's ABI."""

    def build_extension(self, extension: Extension) -> None:
        sources = extension.sources
        if self.force or newer_group([*sources, *extension.depends], self.get_ext_fullpath(extension.name)):
            self._add_cuda(extension)
            extension.extra_objects += self._objects(extension)
            extension.sources = []  # they are compiled, and what is left is to link them
            extension.depends = [*sources, *extension.depends]
        super().build_extension(extension)

    def _objects(self, extension: Extension) -> list[str]:
        """Compile the sources side by side, each for its instruction set: two of them take nearly all of the time."""
        sets = INSTRUCTION_SETS if platform.machine() == "x86_64" else {}
        # AMX is younger than some compilers; without it amx.cpp is empty, and nothing calls it.
        if sets and self._compiles(sets["amx.cpp"]):
            extension.define_macros.append(("TAGRANK_AMX", "1"))
        else:
            sets = {name: flags for name, flags in sets.items() if name != "amx.cpp"}

        def compile_one(source: str) -> list[str]:
            flags = [*extension.extra_compile_args, *sets.get(os.path.basename(source), [])]
            macros = extension.define_macros
            return self.compiler.compile([source], self.build_temp, macros=macros, extra_postargs=flags)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [name for names in pool.map(compile_one, extension.sources) for name in names]

    def _add_cuda(self, extension: Extension) -> None:
        """Compile csrc/cuda into the extension, where it is wished and nvcc can."""
        wish = _wish("TAGRANK_BUILD_CUDA")
        if wish == "0":
            return
        nvcc = _nvcc()
        if nvcc is None:
            _without("csrc/cuda", wish, "there is no nvcc in CUDA_HOME/bin or on the PATH")
            return
        sources = sorted(glob("csrc/cuda/*.cu"))
        folder = Path(self.build_temp, "cuda")
        folder.mkdir(parents=True, exist_ok=True)
        objects = [str(folder / f"{Path(source).stem}.o") for source in sources]
        with ThreadPoolExecutor() as pool:
            done = list(pool.map(lambda pair: _run_nvcc(nvcc, *pair), zip(sources, objects, strict=True)))
        failed = next((run for run in done if run.returncode != 0), None)
        if failed is not None:
            _without("csrc/cuda", wish, f"{nvcc} failed: {failed.stdout}{failed.stderr}")
            return
        extension.extra_objects += objects
        extension.define_macros.append(("TAGRANK_CUDA", "1"))
        # The runtime is part of the library, which so loads where there is no CUDA.
        extension.library_dirs += [str(nvcc.parent.parent / "lib64"), str(nvcc.parent.parent / "lib")]
        extension.libraries += ["cudart_static", "pthread", "dl", "rt"]

    def _compiles(self, flags: list[str]) -> bool:
        """Whether the compiler knows these flags."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "empty.cpp")
            source.touch()
            try:
                self.compiler.compile([str(source)], output_dir=folder, extra_postargs=flags)
            except CompileError:
                return False
        return True

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"


class BuildWheel(bdist_wheel):
    """Tags the wheel ``py3-none-<platform>`` with the library in it and ``py3-none-any`` without."""

    def run(self) -> None:
        self.run_command("build")
        if self.distribution.ext_modules:
            build_lib = self.get_finalized_command("build_ext").build_lib
            if not os.path.exists(os.path.join(build_lib, LIBRARY)):
                self.distribution.ext_modules = []
                self.root_is_pure = True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def extensions() -> list[Extension]:
    """What to compile: the library, or nothing."""
    wish = _wish("TAGRANK_BUILD_EXT")
    _wish("TAGRANK_BUILD_CUDA")
    if wish == "0":
        return []
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return _without(LIBRARY, wish, "there is no torch in this build environment (pip: --no-build-isolation)")
    version = importlib.metadata.version("torch")
    if tuple(map(int, version.split(".")[:2])) < OLDEST_TORCH:
        return _without(LIBRARY, wish, f"torch {version} is older than {'.'.join(map(str, OLDEST_TORCH))}")
    root = Path(torch.origin).parent
    return [
        Extension(
            "tagrank._C",
            sources=["csrc/bindings.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
            depends=sorted(glob("csrc/*/*.h") + glob("csrc/cuda/*.cu*")),
            language="c++",
            define_macros=[("TORCH_TARGET_VERSION", "0x{:02x}{:02x}000000000000".format(*OLDEST_TORCH))],
            extra_compile_args=[
                *("-std=c++17", "-O3", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden"),
                # What makes vector instructions cheaper, at no cost in accuracy.
                *("-fno-math-errno", "-fno-trapping-math"),
                # As system headers, so that torch's warnings are not ours.
                *("-isystem", str(root / "include")),
            ],
            library_dirs=[str(root / "lib")],
            libraries=["torch_cpu"],
            optional=wish == "auto",
        )
    ]


def _wish(variable: str) -> str:
    """``auto``, ``1`` or ``0``, as the environment says."""
    wish = os.environ.get(variable, "auto")
    if wish not in ("auto", "1", "0"):
        raise SystemExit(f"{variable}: expected auto, 1 or 0; got {wish!r}")
    return wish


def _without(part: str, wish: str, reason: str) -> list[Extension]:
    """Go on without ``part``, unless it is required."""
    message = f"tagrank: {part} cannot be built: {reason}"
    if wish == "1":
        raise SystemExit(message)
    print(f"{message}; going on without it", file=sys.stderr)
    return []


def _nvcc() -> Path | None:
    """The compiler itself: what the PATH has may be a script that runs it from elsewhere."""
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=os.path.join(home, "bin")) if home else shutil.which("nvcc")
    if found is None:
        return None
    told = subprocess.run([found, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True).stderr
    folder = next((line.split("=", 1)[1].strip() for line in told.splitlines() if line.startswith("#$ _HERE_=")), None)
    return Path(folder, "nvcc") if folder else Path(found)


def _run_nvcc(nvcc: Path, source: str, target: str) -> subprocess.CompletedProcess[str]:
    command = [str(nvcc), *NVCC, "-Xcompiler", "-fPIC,-fvisibility=hidden", "-c", source, "-o", target]
    return subprocess.run(command, capture_output=True, text=True)


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildLibrary, "bdist_wheel": BuildWheel})
