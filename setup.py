"""Builds csrc/ into tagrank/_C.so where torch and a compiler are there. Everything else is in pyproject.toml.

The environment variable TAGRANK_BUILD_EXT says how much that matters: ``auto`` (the default) goes on without the
library where it cannot be built, ``1`` makes that an error, ``0`` does not try. torch is seen only by builds without
isolation (``pip install --no-build-isolation .``); it is looked for, never imported.
"""

import importlib.metadata
import importlib.util
import os
import platform
import sys
import tempfile
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

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


class BuildLibrary(build_ext):
    """Builds a library for ``torch.ops.load_library``: no Python module, so its name carries no Python's ABI."""

    def build_extensions(self) -> None:
        compile_one = self.compiler._compile
        sets = INSTRUCTION_SETS if platform.machine() == "x86_64" else {}
        # AMX is younger than some compilers; without it amx.cpp is empty, and nothing calls it.
        if sets and self._compiles(sets["amx.cpp"]):
            for extension in self.extensions:
                extension.define_macros.append(("TAGRANK_AMX", "1"))
        else:
            sets = {name: flags for name, flags in sets.items() if name != "amx.cpp"}

        def compile_for_its_cpu(obj, src, ext, cc_args, extra_postargs, pp_opts):
            compile_one(obj, src, ext, cc_args, [*extra_postargs, *sets.get(os.path.basename(src), [])], pp_opts)

        self.compiler._compile = compile_for_its_cpu
        super().build_extensions()

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
    wish = os.environ.get("TAGRANK_BUILD_EXT", "auto")
    if wish not in ("auto", "1", "0"):
        raise SystemExit(f"TAGRANK_BUILD_EXT: expected auto, 1 or 0; got {wish!r}")
    if wish == "0":
        return []
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return _without_library(wish, "there is no torch in this build environment (pip: --no-build-isolation)")
    version = importlib.metadata.version("torch")
    if tuple(map(int, version.split(".")[:2])) < OLDEST_TORCH:
        return _without_library(wish, f"torch {version} is older than {'.'.join(map(str, OLDEST_TORCH))}")
    root = Path(torch.origin).parent
    # CUDA sources go to csrc/cuda; nvcc's objects for them would be added here as extra_objects.
    return [
        Extension(
            "tagrank._C",
            sources=["csrc/bindings.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
            depends=sorted(glob("csrc/cpu/*.h")),
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


def _without_library(wish: str, reason: str) -> list[Extension]:
    message = f"tagrank: {LIBRARY} cannot be built: {reason}"
    if wish == "1":
        raise SystemExit(message)
    print(f"{message}; going on without it", file=sys.stderr)
    return []


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildLibrary, "bdist_wheel": BuildWheel})
