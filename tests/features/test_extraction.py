"""The stream of features: in order, with errors in their places, decoded a little ahead."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tagrank.errors import InputError
from tagrank.features.backbones import load_backbone
from tagrank.features.extraction import extract_features, only_features
from tagrank.features.images import read_image


@pytest.fixture
def folder(tmp_path: Path) -> list[Path]:
    """Seven pictures, of which the third is empty and the sixth missing."""
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for number, path in enumerate(paths):
        Image.new("RGB", (64, 64), (30 * number, 10, 10)).save(path)
    paths[2].write_bytes(b"")
    paths[5].unlink()
    return paths


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (2, 3), (5, 2), (64, 2)])
def test_extract_features(folder: list[Path], batch_size: int, workers: int) -> None:
    backbone = load_backbone("small_cnn")
    found = list(extract_features(backbone, iter(folder), batch_size=batch_size, workers=workers))
    assert [path for path, _ in found] == folder
    errors = [(path, str(error)) for path, error in found if isinstance(error, InputError)]
    assert errors == [
        (folder[2], f"{folder[2]}: the file is empty"),
        (folder[5], f"{folder[5]}: no such file or directory"),
    ]
    # As it was before; in between, batch normalisation has to use its running statistics.
    assert backbone.training
    backbone.eval()
    features = [(path, feature) for path, feature in found if isinstance(feature, Tensor)]
    assert len(features) == 5
    for path, feature in features:
        expected = backbone(backbone.transform(read_image(path)).unsqueeze(0))[0]
        torch.testing.assert_close(feature, expected)
        assert feature.dtype == torch.float32
        assert not feature.is_inference()
        assert not feature.requires_grad
        assert feature.untyped_storage().nbytes() == 4 * 256


def test_only_features(folder: list[Path]) -> None:
    backbone = load_backbone("small_cnn")
    found = only_features(extract_features(backbone, folder, batch_size=1))
    assert [next(found)[0], next(found)[0]] == folder[:2]
    with pytest.raises(InputError, match="the file is empty"):
        next(found)
    assert list(extract_features(backbone, [])) == []
    with pytest.raises(ValueError, match="batch_size, workers: expected at least 1, got 0 and 2"):
        next(extract_features(backbone, folder, batch_size=0))


def test_files_that_are_all_unreadable(folder: list[Path]) -> None:
    """Each is reported in its batch, not at the end."""
    backbone = load_backbone("small_cnn")
    found = extract_features(backbone, [folder[2]] * 1000, batch_size=4)
    assert [str(next(found)[1]) for _ in range(3)] == [f"{folder[2]}: the file is empty"] * 3
    found.close()  # type: ignore[attr-defined]
    assert backbone.training


def test_extract_features_left_early(folder: list[Path]) -> None:
    backbone = load_backbone("small_cnn")
    found = extract_features(backbone, folder[:2] * 1000, batch_size=1)
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert backbone.training
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_extract_features_reads_a_little_ahead(folder: list[Path]) -> None:
    asked = 0

    def paths() -> Any:
        nonlocal asked
        for _ in range(1000):
            asked += 1
            yield folder[0]

    found = extract_features(load_backbone("small_cnn"), paths(), batch_size=4)
    next(found)
    assert 4 <= asked <= 12
