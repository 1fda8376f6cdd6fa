"""What ``make wheel`` builds: one wheel for all supported torch, installed beside the oldest and the newest."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

import pytest
import tomllib
import torch

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.timeout(1800),  # for the compilers
    pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++").split()[0]) is None, reason="no C++ compiler"),
]


@pytest.fixture(scope="module")
def built(
    once: Callable[[str, Callable[[Path], None]], Path], copy_source: Callable[[Path], None], path_without_nvcc: str
) -> Path:
    """The folder dist/ of ``make wheel``: with the nvcc of the package index, and no other.

    Without a package index there is a file ``without-cuda``.
    """

    def make(folder: Path) -> None:
        copy_source(folder)
        environment = os.environ | {"PATH": path_without_nvcc, "CFLAGS": "-Werror", "TAGRANK_BUILD_CUDA": "1"}
        environment.pop("CUDA_HOME", None)
        with tempfile.TemporaryDirectory() as packages:
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "-c", str(ROOT / "constraints.txt")]
            install = [*pip, "--target", packages, *PROJECT["optional-dependencies"]["cuda-build"]]
            installed = subprocess.run(install, capture_output=True, text=True)
            if "No matching distribution found" in installed.stderr:
                environment["TAGRANK_BUILD_CUDA"] = "0"
                (folder / "dist").mkdir()
                (folder / "dist" / "without-cuda").touch()
            else:
                assert installed.returncode == 0, installed.stderr
                environment["PYTHONPATH"] = packages
            # Without what `make wheel` installs before it builds.
            command = ["make", "wheel", "STAMP=", f"BIN={sys.prefix}/bin"]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]

    return once("wheel", make) / "dist"


def the_wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def test_the_tag_and_the_files(built: Path) -> None:
    path = the_wheel(built)
    name = f"tagrank-{PROJECT['version']}"
    found = re.fullmatch(rf"{re.escape(name)}-py3-none-manylinux_2_(\d+)_{platform.machine()}\.whl", path.name)
    assert found, path.name
    # It cannot need a newer glibc than the one that it was linked with.
    assert int(found[1]) <= int(platform.libc_ver()[1].split(".")[1])
    assert (built / f"{name}.tar.gz").exists()
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        metadata = message_from_bytes(archive.read(f"{name}.dist-info/METADATA"))
        tags = message_from_bytes(archive.read(f"{name}.dist-info/WHEEL"))
    assert [file for file in names if ".so" in file] == ["tagrank/_C.so"]
    assert {file.split("/")[0] for file in names} == {"tagrank", f"{name}.dist-info"}
    assert tags["Root-Is-Purelib"] == "false"
    # What a torch for CPUs has no use for is not required beside it.
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert required == PROJECT["dependencies"] == ["torch>=2.10", "numpy"]


def site_packages(which: str) -> Path:
    """Where the newest torch is, that of these tests, or the oldest, that of ``make test-oldest``."""
    if which == "newest":
        return Path(torch.__file__).parents[1]
    release = re.findall(r"^TORCH := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0]
    place = ROOT / "build" / f"torch-{release}" / sysconfig.get_path("purelib", vars={"base": "."})
    if not (place / "torch").exists():
        pytest.skip("no environment with the oldest torch; make test-oldest makes it")
    return place


@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_beside_torch(built: Path, tmp_path: Path, which: str) -> None:
    """In a new environment that sees that torch; nothing of torch, gigabytes, is installed again."""
    place = site_packages(which)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "new")
    python = tmp_path / "new" / "bin" / "python"
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))").strip())
    (own / "torch.pth").write_text(f"{place}\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps"]
    run(*pip, the_wheel(built))
    shutil.copy(Path(__file__).with_name("installed_wheel.py"), tmp_path)
    found = json.loads(run(python, "installed_wheel.py"))
    assert found["package"] == str(own / "tagrank")
    assert f"torch-{found['versions']['torch'].split('+')[0]}" in {p.stem.split("+")[0] for p in place.glob("torch-*")}
    assert found["versions"]["tagrank"] == PROJECT["version"]
    assert found["backends"]["native"] is None
    assert found["cuda"] == (not (built / "without-cuda").exists())
