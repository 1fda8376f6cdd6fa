"""Set up for the tests of what is built and installed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("csrc", "kernels", "tagrank", "LICENSE", "MANIFEST.in", "Makefile", "README.md", "pyproject.toml", "setup.py")


@pytest.fixture(scope="session")
def copy_source() -> Callable[[Path], None]:
    """Copies what a wheel is built from, without what earlier builds have left there."""

    def copy(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for part in PARTS:
            path = ROOT / part
            if path.is_dir():
                shutil.copytree(path, folder / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
            else:
                shutil.copy(path, folder)

    return copy


@pytest.fixture
def source(copy_source: Callable[[Path], None], tmp_path: Path) -> Path:
    """A copy of the source."""
    copy_source(tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture(scope="session")
def path_without_nvcc() -> str:
    """The PATH without the folders that have an nvcc."""
    folders = os.environ["PATH"].split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if not Path(folder, "nvcc").exists())
