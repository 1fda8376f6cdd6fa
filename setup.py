"""Builds csrc/ into tagrank/_C.so. Everything else is in pyproject.toml.

The environment variable TAGRANK_BUILD_EXT says what happens if the library cannot be built: ``1`` (the default) makes
that an error, because pip does not show warnings; ``auto`` goes on without it. ``0`` does not try to build it. Only
builds without isolation (``pip install --no-build-isolation .``) can find torch, which is never imported.

TAGRANK_BUILD_CUDA has the same values, for csrc/cuda; its default is ``auto``. That part needs nvcc: that of CUDA_HOME
if it is set, else the one on the PATH, else that of the package nvidia-cuda-nvcc.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import setuptools

#: As in pyproject.toml, which builds without isolation do not obey.
OLDEST_SETUPTOOLS = 77
if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:
    raise SystemExit(
        f"tagrank: setuptools {setuptools.__version__} is too old to build it: "
        f"pip install 'setuptools>={OLDEST_SETUPTOOLS}'"
    )

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError
from setuptools.modified import newer_group

LIBRARY = os.path.join("tagrank", "_C.so")
CUDA = "csrc/cuda"
#: The library runs with this version of torch and every later one.
OLDEST_TORCH = (2, 10)


#: The compiler flags for the file of each instruction set of x86-64. The other files run on any CPU.
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
INSTRUCTION_SETS = {
    "avx2.cpp": ["-mavx2", "-mfma"],
    "avx512.cpp": AVX512,
    "amx.cpp": [*AVX512, "-mamx-tile", "-mamx-bf16"],
}


#: The packages with nvcc and what it needs, as in pyproject.toml.
NVCC_PACKAGES = "cuda-toolkit[nvcc,cccl]>=13,<14"
#: Machine code for Hopper, the first GPUs with clusters, and PTX for later GPUs.
NVCC = ["-std=c++17", "-O3", "-gencode", "arch=compute_90,code=[sm_90,compute_90]", "-Werror", "all-warnings"]


class BuildLibrary(build_ext):
    """Builds a library for ``torch.ops.load_library``. It is no Python module: its name has no tag of a Python ABI."""

    def build_extension(self, extension: Extension) -> None:
        sources = extension.sources
        if self.force or newer_group([*sources, *extension.depends], self.get_ext_fullpath(extension.name)):
            self._add_cuda(extension)
            extension.extra_objects += self._objects(extension)
            extension.sources = []  # they are compiled, only linking is left
            extension.depends = [*sources, *extension.depends]
        super().build_extension(extension)

    def _objects(self, extension: Extension) -> list[str]:
        """Compile the sources in parallel, each for its instruction set. Two of them take nearly all of the time."""
        sets = INSTRUCTION_SETS if platform.machine() == "x86_64" else {}
        # Old compilers do not know AMX. Then amx.cpp is empty, and nothing calls it.
        if sets and self._compiles(sets["amx.cpp"]):
            extension.define_macros.append(("TAGRANK_AMX", "1"))
        else:
            sets = {name: flags for name, flags in sets.items() if name != "amx.cpp"}

        def compile_one(source: str) -> list[str]:
            flags = [*extension.extra_compile_args, *sets.get(os.path.basename(source), [])]
            macros = extension.define_macros
            return self.compiler.compile([source], self.build_temp, macros=macros, extra_postargs=flags)

        # The long ones first: if one began last, the other cores would wait for it.
        sources = sorted(extension.sources, key=lambda source: not source.startswith("csrc/cpu"))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [name for names in pool.map(compile_one, sources) for name in names]

    def _add_cuda(self, extension: Extension) -> None:
        """Compile csrc/cuda and add it to the extension, unless TAGRANK_BUILD_CUDA is 0 or it cannot be built."""
        wish = _wish("TAGRANK_BUILD_CUDA", "auto")
        if wish == "0":
            return
        nvcc = _nvcc()
        if nvcc is None:
            nowhere = f"there is no nvcc on the PATH; pip install '{NVCC_PACKAGES}' brings one"
            _without(CUDA, wish, "there is no nvcc in CUDA_HOME/bin" if os.environ.get("CUDA_HOME") else nowhere)
            return
        sources = sorted(glob("csrc/cuda/*.cu"))
        folder = Path(self.build_temp, "cuda")
        folder.mkdir(parents=True, exist_ok=True)
        objects = [str(folder / f"{Path(source).stem}.o") for source in sources]
        with ThreadPoolExecutor() as pool:
            done = list(pool.map(lambda pair: _run_nvcc(nvcc, *pair), zip(sources, objects, strict=True)))
        failed = next((run for run in done if run.returncode != 0), None)
        if failed is not None:
            _without(CUDA, wish, f"{nvcc} failed: {failed.stdout}{failed.stderr}")
            return
        extension.extra_objects += objects
        extension.define_macros.append(("TAGRANK_CUDA", "1"))
        # The CUDA runtime is linked statically, so that the library also loads on machines without CUDA.
        extension.library_dirs += [str(nvcc.parent.parent / "lib64"), str(nvcc.parent.parent / "lib")]
        extension.libraries += ["cudart_static", "pthread", "dl", "rt"]

    def _compiles(self, flags: list[str]) -> bool:
        """Whether the compiler accepts these flags."""
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
    """Tags the wheel ``py3-none-<platform>`` if the library is in it, else ``py3-none-any``."""

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
    """The extensions to compile: the library, or none."""
    wish = _wish("TAGRANK_BUILD_EXT", "1")
    _wish("TAGRANK_BUILD_CUDA", "auto")
    # Source distributions need neither torch nor a compiler, and get the sources from MANIFEST.in.
    if wish == "0" or {"egg_info", "sdist"} & {*sys.argv}:
        return []
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        reason = "there is no torch in this build environment: pip install torch, then pip install --no-build-isolation"
        return _without(LIBRARY, wish, reason)
    version = importlib.metadata.version("torch")
    if tuple(map(int, version.split(".")[:2])) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return _without(LIBRARY, wish, f"torch {version} is too old: pip install 'torch>={oldest}'")
    compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")[0]
    if shutil.which(compiler) is None:
        return _without(LIBRARY, wish, f"there is no C++ compiler: {compiler} is not on the PATH")
    root = Path(torch.origin).parent
    return [
        Extension(
            "tagrank._C",
            sources=["csrc/bindings.cpp", *sorted(glob("csrc/operators/*.cpp") + glob("csrc/cpu/*.cpp"))],
            depends=sorted(glob("csrc/*/*.h") + glob("csrc/cuda/*.cu*")),
            language="c++",
            define_macros=[("TORCH_TARGET_VERSION", "0x{:02x}{:02x}000000000000".format(*OLDEST_TORCH))],
            extra_compile_args=[
                *("-std=c++17", "-O3", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden"),
                # These make vector instructions cheaper, at no cost in accuracy.
                *("-fno-math-errno", "-fno-trapping-math"),
                # As system headers, so that the compiler does not warn about torch's code.
                *("-isystem", str(root / "include")),
            ],
            library_dirs=[str(root / "lib")],
            libraries=["torch_cpu", "dl"],
            optional=wish == "auto",
        )
    ]


def _wish(variable: str, default: str) -> str:
    """The value of an environment variable: ``auto``, ``1`` or ``0``."""
    wish = os.environ.get(variable, default)
    if wish not in ("auto", "1", "0"):
        raise SystemExit(f"{variable}: expected auto, 1 or 0; got {wish!r}")
    return wish


def _without(part: str, wish: str, reason: str) -> list[Extension]:
    """Go on without ``part``, or exit with an error if ``wish`` is ``1``."""
    message = f"tagrank: {part} cannot be built: {reason}"
    if wish == "1":
        variable = "TAGRANK_BUILD_CUDA" if part == CUDA else "TAGRANK_BUILD_EXT"
        raise SystemExit(f"{message} ({variable}=0 installs tagrank without it)")
    print(f"{message}; going on without it", file=sys.stderr)
    return []


def _nvcc() -> Path | None:
    """The path of nvcc itself. What is on the PATH may be a script that runs an nvcc in another folder."""
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=os.path.join(home, "bin")) if home else shutil.which("nvcc") or _packaged_nvcc()
    if found is None:
        return None
    told = subprocess.run([found, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True).stderr
    folder = next((line.split("=", 1)[1].strip() for line in told.splitlines() if line.startswith("#$ _HERE_=")), None)
    return Path(folder, "nvcc") if folder else Path(found)


def _packaged_nvcc() -> str | None:
    """The nvcc of the package nvidia-cuda-nvcc, which is in ``nvidia/cu13/bin``; the newest, if there are several."""
    nvidia = importlib.util.find_spec("nvidia")
    folders = [] if nvidia is None else [*(nvidia.submodule_search_locations or [])]
    found = [path for folder in folders for path in Path(folder).glob("cu[0-9]*/bin/nvcc")]
    return str(max(found, key=lambda path: int(path.parts[-3][2:]))) if found else None


def _run_nvcc(nvcc: Path, source: str, target: str) -> subprocess.CompletedProcess[str]:
    command = [str(nvcc), *NVCC, "-Xcompiler", "-fPIC,-fvisibility=hidden", "-c", source, "-o", target]
    return subprocess.run(command, capture_output=True, text=True)


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildLibrary, "bdist_wheel": BuildWheel})
