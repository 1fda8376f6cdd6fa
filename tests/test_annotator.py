"""An annotator in Python: what it takes, where it computes, and what it says of itself."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tagrank import Annotator, TagRanker
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError, InputWarning
from tagrank.features.backbones import load_backbone

TAGS = ("dog", "ball", "<grass>", "cat", "tree", "sky")


@pytest.fixture
def annotator() -> Annotator:
    torch.manual_seed(0)
    backbone = load_backbone("small_cnn")
    ranker = TagRanker(backbone.feature_size, len(TAGS), max_length=3, embedding_size=8, hidden_size=8)
    training = {"preset": "scenes", "seed": 3}
    return Annotator(ranker, Vocabulary(TAGS), backbone.spec, backbone=backbone, training=training)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def sources(path: Path) -> dict[str, Any]:
    """One image in every form."""
    image = Image.open(path)
    pixels = np.asarray(image)
    return {
        "path": path,
        "text": str(path),
        "bytes": path.read_bytes(),
        "view": memoryview(path.read_bytes()),
        "opened": Image.open(path),
        "image": image,
        "with transparency": image.convert("RGBA"),
        "array": pixels,
        "array with transparency": np.asarray(image.convert("RGBA")),
        "slice": np.repeat(pixels, 2, axis=1)[:, ::2],
        "tensor": torch.from_numpy(pixels.copy()),
    }


def test_one_image_in_any_form_gives_its_tags(annotator: Annotator, path: Path) -> None:
    expected = annotator.annotate(path, top_k=3)
    assert [tag.rank for tag in expected] == [1, 2, 3]
    for form, source in sources(path).items():
        assert annotator.annotate(source, top_k=3) == expected, form


def test_several_images_in_any_form_come_with_themselves(annotator: Annotator, path: Path) -> None:
    given = list(sources(path).values())
    expected = annotator.annotate(path)
    found = list(annotator.annotate(iter(given)))
    assert all(key is source for (key, _), source in zip(found, given, strict=True))
    for _, tags in found:
        assert isinstance(tags, list)
        assert [(t.tag, t.rank) for t in tags] == [(t.tag, t.rank) for t in expected]
        np.testing.assert_allclose([t.score for t in tags], [t.score for t in expected], rtol=1e-4)
    assert list(annotator.annotate([])) == []


def test_an_image_in_memory_is_turned_upright_and_left_as_it_is(annotator: Annotator, path: Path) -> None:
    upright = Image.open(path).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    upright.rotate(90, expand=True).save(buffer, "PNG", exif=exif)
    turned = Image.open(io.BytesIO(buffer.getvalue()))
    assert annotator.annotate(turned) == annotator.annotate(buffer.getvalue()) == annotator.annotate(upright)
    assert turned.size == (40, 64)
    grey = np.full((9, 5), 77, np.uint8)
    assert annotator.annotate(grey) == annotator.annotate(np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Path("no.jpg"), "no.jpg: no such file or directory"),
        (b"", "image of 0 bytes: the file is empty"),
        (b"no image", "image of 8 bytes: not a JPEG"),
        (np.zeros((4, 4, 3)), r"got float64 \[4, 4, 3\]"),
        (np.zeros((3, 40, 40), np.uint8), r"got uint8 \[3, 40, 40\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"got uint8 \[2, 4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"expected pixels, got an array of shape \[0, 4, 3\]"),
    ],
)
def test_what_is_no_image(annotator: Annotator, path: Path, source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        annotator.annotate(source)
    (_, first), (_, second) = annotator.annotate([source, path])
    assert isinstance(first, InputError)
    assert isinstance(second, list)


def test_no_image_at_all(annotator: Annotator, path: Path) -> None:
    ((_, error),) = annotator.annotate([3])  # type: ignore[list-item]
    assert str(error) == "image: expected a path, bytes, a PIL image or an array of pixels, got int"
    with pytest.raises(InputError, match="image: expected grey values from 0 to 1, 255, 65535, got -1 to -1"):
        annotator.annotate(Image.new("F", (4, 4), -1.0))
    cut = Image.open(io.BytesIO(path.read_bytes()[:3000]))
    with pytest.raises(InputError, match=r"image: damaged \("):
        annotator.annotate(cut)


def test_wrong_options_are_found_before_the_first_image(annotator: Annotator) -> None:
    with pytest.raises(InputError, match="decoder: expected one of"):
        annotator.annotate(iter([]), decoder="best")


def test_it_computes_where_it_is_told_to(annotator: Annotator, path: Path) -> None:
    assert annotator.device == torch.device("cpu")
    assert annotator.to("meta") is annotator
    assert annotator.device == torch.device("meta")
    assert {p.device.type for p in annotator.backbone().parameters()} == {"meta"}


def test_a_backbone_that_is_loaded_later_computes_there_too(annotator: Annotator, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    later = Annotator(annotator.ranker, annotator.vocabulary, {"backbone": "efficientnet_lite0"}).to("meta")
    assert {p.device.type for p in later.backbone().parameters()} == {"meta"}


def test_weights_for_a_backbone_that_came_with_the_model(annotator: Annotator) -> None:
    with pytest.warns(InputWarning, match="^weights: are not used: the model has its backbone with it$"):
        annotator.backbone("weights.pth")


def test_it_says_what_it_knows(annotator: Annotator) -> None:
    assert repr(annotator) == (
        "Annotator(tags: 6 (dog, ball, <grass>, cat, tree, ...); longest list: 3; features: 256, of small_cnn; "
        "decoder: headline; given tags: left out; training: preset scenes, seed 3; device: cpu)"
    )
    page = annotator._repr_html_()
    assert "<tr><th>tags</th><td>6 (dog, ball, &lt;grass&gt;, cat, tree, ...)</td></tr>" in page
    little = Annotator(TagRanker(4, 2, max_length=1), Vocabulary(("a", "b")))
    assert "features: 4, of any backbone" in repr(little)
    assert "training: not recorded" in repr(little)
