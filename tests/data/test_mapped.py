"""Mapped arrays are compared with what safetensors reads; damaged and wrong files are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tagrank.data.mapped import map_arrays, will_need
from tagrank.errors import InputError

EXPECTED: dict[str, tuple[type, list[int | None]]] = {
    "table": (np.float16, [3, 5, 7]),
    "names": (np.uint8, [None]),
    "offsets": (np.int64, [4]),
}


@pytest.fixture
def file(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "table": torch.randn(3, 5, 7, generator=generator).half(),
        "names": torch.randint(256, (11,), generator=generator, dtype=torch.uint8),
        "offsets": torch.tensor([0, 3, 3, 11]),
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata={"is": "ignored"})
    return tmp_path / "a.safetensors", tensors


def test_the_tensors_are_those_of_the_file(file: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, tensors = file
    got = map_arrays(path, EXPECTED)
    for part in (got["table"][1, 2], got["names"], got["names"][:0]):
        will_need(part)
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert got[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(got[name], tensor)


def test_what_is_written_to_them_stays_out_of_the_file(file: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, _ = file
    before = path.read_bytes()
    path.chmod(0o400)
    map_arrays(path, EXPECTED)["table"][:] = 0
    assert path.read_bytes() == before


def test_damaged_files(file: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    path, _ = file
    content = path.read_bytes()
    renamed, resized = content.replace(b'"F16"', b'"F61"'), content.replace(b"[3,5,7]", b"[3,5,8]")
    for damaged in (content[:-1], content[:40], (10**9).to_bytes(8, "little") + content[8:], bytes(8) + content[8:],
                    renamed, resized, content[:5]):  # fmt: skip
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.safetensors: damaged \("):
            map_arrays(path, EXPECTED)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.safetensors: (missing or unreadable|damaged)"):
        map_arrays(path, EXPECTED)
    with pytest.raises(InputError, match=r"b\.safetensors: missing or unreadable \(no such file"):
        map_arrays(tmp_path / "b.safetensors", EXPECTED)
    path.write_bytes(content)
    resized_text = r"table: expected float16 \[3, 5, 8\] according to the index, got .* \[3, 5, 7\]"
    with pytest.raises(InputError, match=resized_text):
        map_arrays(path, EXPECTED | {"table": (np.float16, [3, 5, 8])})
    with pytest.raises(InputError, match="damaged \\('more'\\)"):
        map_arrays(path, EXPECTED | {"more": (np.uint8, [None])})
