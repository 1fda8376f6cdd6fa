"""MATLAB files that kill or delay who reads them."""

import struct
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from tagrank.data.sets import mat_files, mat_reader
from tagrank.data.sets.mat_files import load_mat
from tagrank.errors import InputError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    cells = np.array(["dog", "ball"], dtype=object)
    savemat(tmp_path / "a.mat", {"words": cells, "numbers": np.ones(1000, np.uint8)})
    return tmp_path / "a.mat"


def test_variables(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder has no say in what is imported."""
    (path.parent / "scipy.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(path.parent)
    assert load_mat(path).keys() == {"words", "numbers"}
    (numbers,) = load_mat(Path("a.mat"), ("numbers",)).values()
    assert np.array_equal(numbers, np.ones((1, 1000)))
    assert [str(cell[0]) for cell in load_mat(path)["words"].ravel()] == ["dog", "ball"]


def test_a_file_that_asks_for_memory(path: Path) -> None:
    """A flipped bit in the size of an array."""
    content = path.read_bytes()
    tag = struct.pack("<II", 2, 1000)  # 1000 bytes
    assert content.count(tag) == 1
    path.write_bytes(content.replace(tag, struct.pack("<II", 2, 0xC00003E8)))
    with pytest.raises(InputError, match=r"a\.mat: not a MATLAB file, or damaged \(MemoryError"):
        load_mat(path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"or damaged \(its reader ended: Segmentation fault\)$"),
        ("raise RuntimeError('x')", r"or damaged \(its reader ended: RuntimeError: x\)$"),
        ("time.sleep(60)", r"damaged, or too large: it cannot be read in 1 s$"),
        ("while True: pass", r"damaged, or too large|CPU time limit exceeded"),
    ],
)
def test_a_reader_that_dies(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    reader = tmp_path / "reader.py"
    reader.write_text(f"import os, signal, time\n{code}\n")
    monkeypatch.setattr(mat_reader, "__file__", str(reader))
    monkeypatch.setattr(mat_files, "SECONDS", 1)
    with pytest.raises(InputError, match=rf"^{path}: .*{message}"):
        load_mat(path)


def test_the_limits_are_set(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mat_files, "MEMORY", 1 << 20)
    with pytest.raises(InputError, match="not a MATLAB file, or damaged"):
        load_mat(path)


def test_files_that_cannot_be_read(path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.mat: no such file or directory$"):
        load_mat(path.with_name("none.mat"))
    with pytest.raises(InputError, match=r": is a directory$"):
        load_mat(path.parent)
