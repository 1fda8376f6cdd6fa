"""Images with lists as tensors: where inputs come from, which lists are judged, and how images are named in a store."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from tagrank.data.manifest import Example, read_manifest, write_manifest
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.features.backbones import load_backbone
from tagrank.features.labelled import LabelledImages, load_labelled, named_images, write_features
from tagrank.features.store import FeatureWriter, open_features

EXAMPLES = (
    Example("a.png", ("dog", "kite", "sea"), (("dog", "kite"), ("kite",), ("dog", "sea"))),
    Example("b.png", ("sea",), (("sea",),)),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_manifest(tmp_path / "images.jsonl", EXAMPLES)
    for name, color in (("a.png", (255, 0, 0)), ("b.png", (0, 255, 0))):
        Image.new("RGB", (64, 64), color).save(tmp_path / name)
    return tmp_path


def test_lists_and_references_by_index() -> None:
    images = LabelledImages(EXAMPLES, torch.zeros(2, 4))
    vocabulary = Vocabulary(("sea", "dog"))
    assert images.lists(vocabulary) == [[[1], [1, 0]], [[0]]]
    ((first, unknown, third), second) = images.references(vocabulary)
    assert (first, third, second) == (1, 0, [0])
    assert unknown == len(vocabulary)
    more = LabelledImages([*EXAMPLES, Example("c.png", ("quilt", "kite", "sea"), ())], torch.zeros(3, 4))
    assert more.references(vocabulary)[2] == [unknown + 1, unknown, 0]
    part = images.take([1])
    assert len(part) == 1
    assert part.examples == [EXAMPLES[1]]


def test_features_are_taken_by_name(folder: Path) -> None:
    with FeatureWriter(folder / "store", {"backbone": "x"}, 2) as writer:
        writer.add(["b.png", "a.png"], torch.tensor([[3.0, 4.0], [1.0, 2.0]]))
    images = load_labelled(read_manifest(folder / "images.jsonl"), features=folder / "store")
    assert images.inputs.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert images.spec == {"backbone": "x"}


def test_a_trainable_backbone_leaves_pixels(folder: Path) -> None:
    images = load_labelled(read_manifest(folder / "images.jsonl"), backbone=load_backbone("small_cnn"), progress=False)
    assert images.inputs.shape == (2, 3, 64, 64)
    assert images.inputs[:, :, 5, 5].tolist() == [[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]]


def test_a_frozen_backbone_computes_features_and_keeps_them(folder: Path) -> None:
    backbone = load_backbone("small_cnn").requires_grad_(False).eval()
    manifest = read_manifest(folder / "images.jsonl")
    at_once = load_labelled(manifest, backbone=backbone, progress=False)
    kept = load_labelled(manifest, backbone=backbone, store=folder / "store", progress=False)
    assert at_once.inputs.shape == (2, 256)
    torch.testing.assert_close(kept.inputs, at_once.inputs, rtol=1e-3, atol=1e-3)  # float16 in the store
    assert open_features(folder / "store").names == ("a.png", "b.png")
    assert write_features(backbone, {"a.png": folder / "a.png"}, folder / "store", progress=False) == 0


@pytest.mark.parametrize("kept", ["pixels", "features", "store"])
def test_an_image_that_cannot_be_read(folder: Path, kept: str) -> None:
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:60])
    backbone = load_backbone("small_cnn").requires_grad_(kept == "pixels")
    manifest = read_manifest(folder / "images.jsonl")
    options = {"backbone": backbone, "store": folder / "store" if kept == "store" else None, "progress": False}
    errors: list[InputError] = []
    images = load_labelled(manifest, **options, on_error=errors.append)
    assert [example.image for example in images.examples] == ["b.png"]
    assert images.inputs.shape == (1, *((3, 64, 64) if kept == "pixels" else (256,)))
    (error,) = errors
    assert str(error).startswith(f"{folder / 'a.png'}: damaged image")
    with pytest.raises(InputError, match=r"a\.png: damaged image"):
        load_labelled(manifest, **options)
    with pytest.raises(InputError, match=r"nowhere: none of the 2 images of .* is in this folder, such as a\.png"):
        load_labelled(manifest, backbone=backbone, images=folder / "nowhere", progress=False, on_error=errors.append)
    (folder / "b.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"images\.jsonl: none of 2 images is left; the first: .*a\.png: damaged"):
        load_labelled(manifest, backbone=backbone, progress=False, on_error=errors.append)
    assert len(errors) == 1


def test_an_image_without_features(folder: Path) -> None:
    manifest = read_manifest(folder / "images.jsonl")
    for name in ("b.png", "c.png"):
        with FeatureWriter(folder / name[0], {"backbone": "x"}, 2) as writer:
            writer.add([name], torch.tensor([[3.0, 4.0]]))
    errors: list[InputError] = []
    images = load_labelled(manifest, features=folder / "b", on_error=errors.append)
    assert [example.image for example in images.examples] == ["b.png"]
    assert images.inputs.tolist() == [[3.0, 4.0]]
    assert [str(error) for error in errors] == [f"{folder / 'b'}: no features of 'a.png'"]
    with pytest.raises(InputError, match=r"none of 2 images is left; the first: .*: no features of 'a\.png'$"):
        load_labelled(manifest, features=folder / "c", on_error=errors.append)


def test_without_features_or_a_backbone(folder: Path) -> None:
    with pytest.raises(InputError, match="features are needed"):
        load_labelled(read_manifest(folder / "images.jsonl"))


def test_names_in_a_store(folder: Path) -> None:
    (folder / "deep").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "deep" / "c.png")
    by_manifest = named_images([folder / "images.jsonl"])
    assert by_manifest == {"a.png": folder / "a.png", "b.png": folder / "b.png"}
    assert set(named_images([folder])) == {"a.png", "b.png", "deep/c.png"}
    assert named_images([folder / "deep" / "c.png"]) == {"c.png": folder / "deep" / "c.png"}
    Image.new("RGB", (8, 8)).save(folder / "deep" / "a.png")
    with pytest.raises(InputError, match=r"would both be stored as 'a\.png'"):
        named_images([folder, folder / "deep"])


def test_names_that_no_store_can_have(folder: Path) -> None:
    foreign = Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png"))
    (folder / "a.png").rename(foreign)
    errors: list[InputError] = []
    assert named_images([folder], on_error=errors.append) == {"b.png": folder / "b.png"}
    assert len(errors) == 1
    assert "its name is not UTF-8" in str(errors[0])
    for paths, on_error in (([folder], None), ([foreign], errors.append)):
        with pytest.raises(InputError, match="its name is not UTF-8"):
            named_images(paths, on_error=on_error)


def test_spellings_of_one_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is computed twice, and each spelling finds it."""
    monkeypatch.chdir(folder)
    (folder / "dotted.jsonl").write_text('{"image": "./a.png", "tags": ["dog"]}\n')
    backbone = load_backbone("small_cnn").requires_grad_(False)
    for paths, added in (["."], 2), ([str(folder)], 0), (["dotted.jsonl", str(folder / "dotted.jsonl"), "./."], 0):
        images = named_images([Path(path) for path in paths])
        assert write_features(backbone, images, "store", progress=False) == added
    table = open_features("store")
    assert table.names == ("a.png", "b.png")
    assert "./a.png" in table
    assert "./c.png" not in table
    assert torch.equal(table.rows(["./a.png", ".//b.png", "a.png"]), table.rows(["a.png", "b.png", "a.png"]))
    assert len(load_labelled(read_manifest("dotted.jsonl"), features="store")) == 1


def test_a_name_in_another_normal_form(folder: Path) -> None:
    (folder / "a.png").rename(folder / "e\u0301.png")
    (folder / "composed.jsonl").write_text('{"image": "\u00e9.png", "tags": ["dog"]}\n')
    backbone = load_backbone("small_cnn").requires_grad_(False)
    manifest = read_manifest(folder / "composed.jsonl")
    assert len(load_labelled(manifest, backbone=backbone, progress=False)) == 1
    write_features(backbone, named_images([folder / "e\u0301.png"]), folder / "store", progress=False)
    assert write_features(backbone, named_images([folder / "composed.jsonl"]), folder / "store", progress=False) == 0
    assert len(load_labelled(manifest, features=folder / "store")) == 1
