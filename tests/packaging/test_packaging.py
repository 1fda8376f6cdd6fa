"""What ``pip`` makes of the source: a platform wheel beside torch, one line if something is missing, or pure Python."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import tomllib
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_citation_is_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for key in ("version", "license"):
        assert re.findall(rf"^{key}: (.+)$", citation, re.MULTILINE) == [PROJECT[key]]


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


@pytest.mark.exhaustive
def test_pure_python(source: Path) -> None:
    done = build(source, TAGRANK_BUILD_EXT="0")
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
@pytest.mark.skipif(not shutil.which("clang++"), reason="no clang")
def test_build_with_clang(source: Path) -> None:
    """As it is built for use; ``test_wheel.py`` does so with the system's compiler, which is mostly gcc."""
    done = build(source, "--no-build-isolation", TAGRANK_BUILD_EXT="1", CFLAGS="-Werror", CC="clang", CXX="clang++")
    assert done.returncode == 0, done.stderr
    assert_has_the_library(source)


@pytest.mark.exhaustive
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


@pytest.mark.parametrize(
    "wish", [pytest.param("0", marks=pytest.mark.exhaustive), "auto", pytest.param("1", marks=pytest.mark.exhaustive)]
)
def test_compiler_that_fails(source: Path, wish: str) -> None:
    done = build(source, "--no-build-isolation", "-v", TAGRANK_BUILD_EXT=wish, CC="false", CXX="false")
    output = done.stdout + done.stderr
    assert ("-c csrc/cpu/" in output) == (wish != "0")
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


@pytest.mark.exhaustive
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
@pytest.mark.parametrize(
    "where",
    [
        "CUDA_HOME",
        pytest.param("PATH", marks=pytest.mark.exhaustive),
        pytest.param("package", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_nvcc_required(
    source: Path, broken_nvcc: str, path_without_nvcc: str, tmp_path: Path, where: str, there: bool
) -> None:
    """It is in CUDA_HOME, on the PATH or a package of pip; ``test_wheel.py`` compiles with the last."""
    chosen = {"PATH": path_without_nvcc, "CUDA_HOME": ""}
    if where == "CUDA_HOME":
        chosen["CUDA_HOME"] = broken_nvcc if there else str(source)
    elif where == "PATH":
        folder = f"{broken_nvcc}/bin" if there else str(source)
        chosen["PATH"] = os.pathsep.join([folder, chosen["PATH"]])
    elif there:
        shutil.copytree(broken_nvcc, tmp_path / "packages" / "nvidia" / "cu99")
        chosen["PYTHONPATH"] = str(tmp_path / "packages")
    if where != "CUDA_HOME" and not there and packaged_nvcc():
        pytest.skip("the extra cuda-build is installed")
    done = build(source, "--no-build-isolation", TAGRANK_BUILD_EXT="1", TAGRANK_BUILD_CUDA="1", **chosen)
    assert done.returncode != 0
    (requirement,) = PROJECT["optional-dependencies"]["cuda-build"]
    missing = f"no nvcc on the PATH; pip install '{requirement.split(';')[0]}' brings one"
    missing = "no nvcc in CUDA_HOME/bin" if where == "CUDA_HOME" else missing
    assert ("no such GPU" if there else missing) in done.stdout + done.stderr


def packaged_nvcc() -> bool:
    """Whether an nvcc is installed in this environment, as a package."""
    return any(nvcc for entry in sys.path for nvcc in Path(entry).glob("nvidia/cu*/bin/nvcc"))


def setup(source: Path, before: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``setup.py`` as pip runs it first, in a Python that has run the code ``before``."""
    (source / "sitecustomize.py").write_text(before)
    clean = {name: value for name, value in os.environ.items() if name not in ("TAGRANK_BUILD_EXT", "CXX")}
    return subprocess.run(
        [sys.executable, "setup.py", "dist_info"],
        cwd=source,
        env=clean | {"PYTHONPATH": str(source)} | environment,
        capture_output=True,
        text=True,
    )


#: What an environment may lack: how to take it away, and the line that names it.
MISSING = {
    "setuptools of Python 3.11's venv": (
        "import setuptools; setuptools.__version__ = '65.5.0'; import sys; sys.modules['setuptools.modified'] = None",
        {},
        "tagrank: setuptools 65.5.0 is too old to build it: pip install 'setuptools>=77'",
    ),
    "setuptools that does not know license expressions": (
        "import setuptools; setuptools.__version__ = '76.1.0'",
        {},
        "tagrank: setuptools 76.1.0 is too old to build it: pip install 'setuptools>=77'",
    ),
    "torch": (
        "import sys; sys.modules['torch'] = None",
        {},
        "tagrank: tagrank/_C.so cannot be built: there is no torch in this build environment: pip install torch, then "
        "pip install --no-build-isolation (TAGRANK_BUILD_EXT=0 installs tagrank without it)",
    ),
    "new torch": (
        "import setuptools; import importlib.metadata as m; m.version = lambda name: '2.9.1+cpu'",
        {},
        "tagrank: tagrank/_C.so cannot be built: torch 2.9.1+cpu is too old: pip install 'torch>=2.10' "
        "(TAGRANK_BUILD_EXT=0 installs tagrank without it)",
    ),
    "compiler": (
        "",
        {"CXX": "no-such-compiler -O2"},
        "tagrank: tagrank/_C.so cannot be built: there is no C++ compiler: no-such-compiler is not on the PATH "
        "(TAGRANK_BUILD_EXT=0 installs tagrank without it)",
    ),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_named_in_one_line(source: Path, what: str) -> None:
    before, environment, line = MISSING[what]
    done = setup(source, before, **environment)
    assert (done.returncode, done.stderr.strip()) == (1, line)


@pytest.mark.parametrize("what", ["torch", "new torch", "compiler"])
def test_going_on_without_what_is_missing(source: Path, what: str) -> None:
    before, environment, line = MISSING[what]
    done = setup(source, before, **environment, TAGRANK_BUILD_EXT="auto")
    assert done.returncode == 0, done.stderr
    assert line.removesuffix(" (TAGRANK_BUILD_EXT=0 installs tagrank without it)") in done.stderr
    assert "cannot be built" not in setup(source, before, **environment, TAGRANK_BUILD_EXT="0").stderr


def test_a_source_distribution(source: Path, tmp_path: Path) -> None:
    """It is made without torch, and the wheel that is made of it is that of the clone."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None")
    environment = os.environ | {"PYTHONPATH": str(blocked)}
    subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=source, env=environment, check=True)
    (archive,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    # What the library is built from. Everything else is in the wheel.
    assert contents(unpacked / "csrc") == contents(source / "csrc")
    assert contents(unpacked / "csrc")
    wheels = []
    for folder in (unpacked, source):
        done = build(folder, "--no-build-isolation", TAGRANK_BUILD_EXT="0")
        assert done.returncode == 0, done.stderr
        with zipfile.ZipFile(next((folder / "dist").glob("*.whl"))) as files:
            wheels.append({info.filename: info.CRC for info in files.infolist()})
    assert wheels[0] == wheels[1]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def installation() -> list[str]:
    """The commands of the README's section on installation."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("\n## Installation\n")[1].split("\n## ")[0]
    block = section.split("```sh\n")[1].split("```")[0]
    return block.strip().splitlines()


def test_installation_asks_for_what_the_build_needs() -> None:
    """Builds without isolation do not read these versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (torch,) = (r for r in project["project"]["dependencies"] if re.match(r"torch\W", r))
    needed = [*project["build-system"]["requires"], torch]
    assert shlex.split(installation()[1]) == ["pip", "install", *needed]


@pytest.mark.exhaustive
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
def test_the_commands_of_the_readme(source: Path) -> None:
    """They are run one after the other in one shell, with a new environment that has only pip and an old setuptools.

    torch and the other requirements, gigabytes, are not fetched again: the environment sees those of this one.
    """
    make, *install = installation()
    see = f"echo {shlex.quote(sysconfig.get_path('purelib'))} > $(python -c {shlex.quote(PURELIB)})/others.pth"
    use = "import sys, tagrank.kernels; tagrank.ContextLSTM(2, 3); assert tagrank.env()['backends']['native'] is None; "
    use += "found = tagrank.kernels.__file__; assert found.startswith(sys.prefix), found"
    in_the_clone = f"tagrank --version && python -m tagrank env && python -c {shlex.quote(use)}"
    script = "\n".join(["set -ex", make, see, *install, in_the_clone, f"cd / && {in_the_clone}"])
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TAGRANK_BUILD", "PYTHONPATH", "VIRTUAL"))}
    # The Python that made this environment. nvcc takes its time.
    environment |= {"PATH": f"{sys.base_prefix}/bin:{os.environ['PATH']}", "TAGRANK_BUILD_CUDA": "0"}
    done = subprocess.run(["bash", "-c", script], cwd=source, env=environment, capture_output=True, text=True)
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("no package index to fetch setuptools from")
    assert done.returncode == 0, done.stdout + done.stderr


PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"


@pytest.mark.exhaustive
@pytest.mark.parametrize("installed", [True, False])
def test_python_started_in_the_clone(source: Path, tmp_path: Path, installed: bool) -> None:
    """There the clone's folder ``tagrank`` comes before what pip installed, which has the kernels and the library."""
    site = tmp_path / "site"
    if installed:
        shutil.copytree(source / "tagrank", site / "tagrank")
        shutil.copytree(source / "kernels", site / "tagrank" / "kernels")
    code = "import tagrank.kernels, tagrank.recurrence.library as l; print(tagrank.kernels.__file__, l.__file__)"
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=True)
    kernels, library = done.stdout.split()
    assert Path(kernels) == (site / "tagrank" if installed else source) / "kernels" / "__init__.py"
    assert Path(library) == (site if installed else source) / "tagrank" / "recurrence" / "library.py"


@pytest.mark.parametrize("variable", ["TAGRANK_BUILD_EXT", "TAGRANK_BUILD_CUDA"])
def test_unknown_wish(source: Path, variable: str) -> None:
    done = build(source, "--no-build-isolation", **{variable: "yes"})
    assert done.returncode != 0
    assert f"{variable}: expected auto, 1 or 0; got 'yes'" in done.stderr


def test_the_oldest_versions_that_may_be_installed_are_those_that_are_tested() -> None:
    """``make test-oldest`` takes the releases that pyproject.toml and setup.py name."""
    project, setup, makefile = ((ROOT / name).read_text() for name in ("pyproject.toml", "setup.py", "Makefile"))
    tested = dict(re.findall(r"^(TORCH|TRITON) := (\d+\.\d+)\.\d+$", makefile, re.MULTILINE))
    allowed = dict(re.findall(r'"(torch|triton)>=([\d.]+)[;"]', project))
    assert tested == {name.upper(): version for name, version in allowed.items()}
    major, minor = tested["TORCH"].split(".")
    assert f"OLDEST_TORCH = ({major}, {minor})" in setup


def test_the_builds_of_a_release() -> None:
    """cibuildwheel installs what pyproject.toml requires, and tries what is tested here. Nothing starts by itself."""
    read = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    settings, makefile = read["tool"]["cibuildwheel"], (ROOT / "Makefile").read_text()
    (torch,) = (r for r in PROJECT["dependencies"] if r.startswith("torch"))
    (compiler,) = PROJECT["optional-dependencies"]["cuda-build"]
    needed = [*read["build-system"]["requires"], "wheel", torch, compiler.split(";")[0]]
    assert shlex.split(settings["before-build"]) == ["pip", "install", *needed]
    (oldest,) = re.findall(r"^TORCH := (\S+)$", makefile, re.MULTILINE)
    program = "python {project}/tests/packaging/installed_wheel.py"
    assert settings["test-command"] == [program, f"pip install torch=={oldest}", program]
    assert (ROOT / "tests" / "packaging" / "installed_wheel.py").exists()
    # Both leave out the same of torch's libraries.
    excluded = re.findall(r"--exclude '(\S+)'", makefile)
    assert re.findall(r"--exclude '(\S+)'", settings["repair-wheel-command"]) == excluded != []
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "wheels.yml").read_text())
    # YAML 1.1 takes the key "on" for a truth value.
    assert [*workflow[True]] == ["workflow_dispatch"]
    assert any("cibuildwheel" in step.get("run", "") for step in workflow["jobs"]["wheel"]["steps"])


def test_each_requirement_is_imported() -> None:
    """What is installed with tagrank and its extras, apart from the tools to build and to develop it, is used."""
    extras = PROJECT["optional-dependencies"]
    tools = ("dev", "docs", "cuda-build")
    ours = [requirement for extra, required in extras.items() if extra not in tools for requirement in required]
    wanted = [*PROJECT["dependencies"], *ours]
    modules = {re.split(r"[^\w-]", requirement)[0].replace("-", "_") for requirement in wanted}
    sources = [*(ROOT / "tagrank").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    names = {{"pillow": "PIL", "open_clip_torch": "open_clip"}.get(module, module) for module in modules}
    # The libraries of backbones are imported by import_library("name").
    assert {name for name in names if not re.search(rf"\b(import|from) {name}\b|\"{name}\"", code)} == set()
