"""Models as one file: the same tags and scores as from the folder, by onnxruntime, torch alone, and a stranger."""

import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models
from typer.testing import CliRunner, Result

from tagrank import Annotator
from tagrank.cli import app
from tagrank.data.vocabulary import Vocabulary
from tagrank.decode import TagList
from tagrank.errors import InputError
from tagrank.exporting import export_model, load_exported
from tagrank.exporting.preprocessing import preprocessing_of
from tagrank.features.backbones import Backbone, load_backbone
from tagrank.features.familiarity import Familiarity
from tagrank.metrics import Calibration
from tagrank.model_files import model_digest
from tagrank.ranker.ensemble import build_ranker
from tagrank.recurrence import library

NO_ONNX = "ONNX is not installed: pip install 'tagrank[onnx]'"
onnx = pytest.importorskip("onnx", reason=NO_ONNX)
onnxruntime = pytest.importorskip("onnxruntime", reason=NO_ONNX)
pytest.importorskip("onnxscript", reason=NO_ONNX)

TAGS = ("dog", "ball", "grass", "sky", "a, b")


def make(spec: dict[str, str] | None = None, size: int = 6, **options: Any) -> Annotator:
    """An untrained model whose distributions differ from image to image. Without ``spec`` it has a backbone."""
    torch.manual_seed(0)
    backbone = load_backbone("small_cnn", "none") if spec is None else None
    size = size if backbone is None else backbone.feature_size
    ranker = build_ranker({"feature_size": size, "num_tags": len(TAGS), "max_length": 3, "hidden_size": 8} | options)
    with torch.no_grad():
        for name, parameter in ranker.named_parameters():
            parameter.mul_(3 if "classifier" in name else 2)
    features = torch.rand(80, size) if backbone is None else backbone(torch.rand(80, 3, 64, 64) * 2 - 1).detach()
    ranker.standardise_by(features)
    return Annotator(
        ranker,
        Vocabulary(TAGS),
        spec or {"backbone": "small_cnn", "weights": "none", "preprocessing": "RGB, 64 x 64 bilinear, x / 127.5 - 1"},
        backbone=backbone,
        training={"preset": "scenes", "seed": 0},
        calibration=Calibration(1.5, 0.2),
        familiarity=Familiarity.fit(features[:60], features[60:]),
    )


@pytest.fixture(scope="module")
def world(once: Callable[..., Path]) -> Path:
    """A folder of a model with a backbone, an ensemble; its file; and photographs, one of which is damaged."""

    def fill(folder: Path) -> None:
        options = {"members": 2, "embedding_size": 8, "skip": True, "signed_root": True, "standardise": True}
        make(bias=True, activation="relu", **options).save(folder / "model")
        assert tagrank("export", folder / "model", "--out", folder / "model.onnx").exit_code == 0
        random = np.random.default_rng(0)
        (folder / "photographs").mkdir()
        for number, size in enumerate([(64, 64), (80, 50), (33, 200)] * 2):
            pixels = random.integers(0, 256, (*size, 3)) * np.linspace(0, 1, size[1])[:, None] ** number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "photographs" / f"{number}.png")
        (folder / "photographs" / "x.png").write_bytes(b"no image")

    return once("exported", fill)


def tagrank(*arguments: Any) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def fails(*arguments: Any) -> str:
    result = tagrank(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr


def close(got: TagList, want: TagList) -> None:
    assert [tag[:2] for tag in got] == [tag[:2] for tag in want]
    assert [tag.score for tag in got] == pytest.approx([tag.score for tag in want], abs=1e-4)
    assert got.unlike == pytest.approx(want.unlike, abs=1e-6, nan_ok=True)


def test_the_file_annotates_as_the_folder(world: Path) -> None:
    command = ("annotate", world / "photographs", "--format", "jsonl")
    for options in ((), ("--top-k", 3), ("--decoder", "greedy", "--exclude", "ball"), ("--threshold", 0.4)):
        ours, theirs = (tagrank(command[0], world / name, *command[1:], *options) for name in ("model.onnx", "model"))
        assert ours.exit_code == theirs.exit_code == 1  # one is damaged
        assert ours.stderr == theirs.stderr
        lines = zip(ours.stdout.splitlines(), theirs.stdout.splitlines(), strict=True)
        records = [(json.loads(one), json.loads(other)) for one, other in lines]
        assert len({str(record) for record, _ in records}) == 6
        for got, want in records:
            assert (got["image"], [t["tag"] for t in got["tags"]]) == (want["image"], [t["tag"] for t in want["tags"]])
            scores = ([tag["score"] for tag in record["tags"]] for record in (got, want))
            assert next(scores) == pytest.approx(next(scores), abs=1e-4)
            assert got["unlike"] == pytest.approx(want["unlike"], abs=1e-6)


def test_keywords_of_the_file_are_those_of_the_folder(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("exiv2")
    shutil.copy(world / "photographs" / "0.png", tmp_path / "a.png")
    done = tagrank("annotate", world / "model.onnx", tmp_path / "a.png", "--write", "sidecar", "--top-k", 2)
    assert done.exit_code == 0, done.output
    written = (tmp_path / "a.png.xmp").read_bytes()
    assert model_digest(*of(Annotator.load(world / "model"))).encode() in written
    assert model_digest(*of(load_exported(world / "model.onnx"))).encode() in written


def of(annotator: Annotator) -> tuple[Any, tuple[str, ...]]:
    return annotator.ranker, annotator.vocabulary.tags


def test_an_exported_model_in_python(world: Path) -> None:
    ours, theirs = load_exported(world / "model.onnx"), Annotator.load(world / "model")
    assert ours.vocabulary == theirs.vocabulary
    assert ours.calibration == theirs.calibration
    assert ours.training == theirs.training
    path = world / "photographs" / "1.png"
    close(ours.annotate(path), theirs.annotate(path))
    close(ours.annotate(path.read_bytes(), top_k=5), theirs.annotate(path, top_k=5))
    close(pickle.loads(pickle.dumps(ours)).annotate(path), theirs.annotate(path))  # as it goes to other processes
    with pytest.raises(InputError, match="an exported model cannot be saved as a folder"):
        ours.save(world / "again")


def test_a_stranger_can_run_the_file(world: Path) -> None:
    """With onnxruntime, Pillow and NumPy, by what the metadata says."""
    session = onnxruntime.InferenceSession(world / "model.onnx")
    card = json.loads(session.get_modelmeta().custom_metadata_map["tagrank"])
    steps = card["preprocessing"]
    assert (card["input"], steps["crop"], steps["resample"]) == ("photographs", None, "bilinear")
    height, width = steps["resize"]
    images = []
    for number in range(6):
        image = Image.open(world / "photographs" / f"{number}.png").resize((width, height), Image.Resampling.BILINEAR)
        pixels = (np.float32(image) - np.float32(steps["subtract"])) / np.float32(steps["divide"])
        images.append(pixels.transpose(2, 0, 1))
    for batch in (images, images[:1]):
        p, unlike = session.run(["probabilities", "unlike"], {"images": np.stack(batch)})
        assert p.shape == (len(batch), 4, len(card["vocabulary"]) + 1)
        assert unlike.shape == (len(batch),)
        assert p.sum(-1) == pytest.approx(1, abs=1e-5)
    first = Annotator.load(world / "model").annotate(world / "photographs" / "0.png", decoder="greedy")
    assert card["vocabulary"][p[0, 0, :-1].argmax()] == first[0].tag


@pytest.mark.parametrize("familiar", [True, False])
def test_features_are_the_input_where_the_backbone_is_not_known(familiar: bool, tmp_path: Path) -> None:
    theirs = make({"backbone": "given"})
    theirs.backbone_spec = None
    theirs.familiarity = theirs.familiarity if familiar else None
    line = export_model(theirs, tmp_path / "model.onnx", format="onnx")
    assert "features [batch, 6] to probabilities [batch, 4, 6]" in line
    assert ("unlike" in line) == familiar
    ours, features = load_exported(tmp_path / "model.onnx"), torch.rand(5, 6)
    torch.testing.assert_close(ours.probabilities(features), theirs.probabilities(features), rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.unlike(features), theirs.unlike(features), atol=1e-6)
    for got, want in zip(ours.rank(features), theirs.rank(features), strict=True):
        assert got.tags == want.tags
        assert got.scores == pytest.approx(want.scores, abs=1e-4)
    with pytest.raises(InputError, match="the model takes 6 per image"):
        ours.probabilities(torch.rand(5, 7))
    for annotator in (ours, theirs):
        with pytest.raises(InputError, match="features of an unknown backbone"):
            annotator.annotate(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="features of an unknown backbone"):
        export_model(theirs, tmp_path / "x.onnx", format="onnx", input="photographs")


PROGRAM = """
import sys, json, torch
torch.ops.load_library(sys.argv[1])
extra = {"tagrank.json": ""}
program = torch.export.load(sys.argv[2], extra_files=extra).module()
features, expected = torch.load(sys.argv[3])
torch.testing.assert_close(program(features)[0], expected)
assert "tagrank" not in sys.modules
print(json.loads(extra["tagrank.json"])["vocabulary"])
"""


@pytest.mark.exhaustive
def test_a_program_of_torch_runs_without_tagrank(tmp_path: Path) -> None:
    if not library.LIBRARY.exists():
        pytest.skip("the library is not built")
    annotator, path = make({"backbone": "vgg16"}), tmp_path / "model.pt2"
    assert "features [batch, 6]" in export_model(annotator, path, format="pt2", input="features")
    features = torch.rand(5, 6)
    torch.save((features, annotator.probabilities(features)), tmp_path / "expected.pt")
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(library.LIBRARY), str(path)]
    done = subprocess.run([*command, str(tmp_path / "expected.pt")], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{list(TAGS)}\n"), done.stderr[-2000:]
    assert "a program of torch.export runs in torch itself" in fails("annotate", path, tmp_path)


def test_a_file_does_not_say_where_the_code_is(tmp_path: Path) -> None:
    annotator, here = make({"backbone": "vgg16"}), str(library.LIBRARY.parent).encode()
    export_model(annotator, tmp_path / "model.onnx", format="onnx", input="features")
    export_model(annotator, tmp_path / "model.pt2", format="pt2", input="features")
    assert here not in (tmp_path / "model.onnx").read_bytes()
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        assert not any(here in archive.read(name) for name in archive.namelist())


def test_what_cannot_be_exported_is_said(tmp_path: Path, world: Path) -> None:
    make({"backbone": "vgg16"}, feedback=True).save(tmp_path / "feedback")
    assert "reads its own tags (--feedback)" in fails("export", tmp_path / "feedback", "--out", tmp_path / "a.onnx")
    model = world / "model"
    assert "ends in .onnx or .pt2, got" in fails("export", model, "--out", tmp_path / "a.bin")
    assert "ends in .pt2, got" in fails("export", model, "--out", tmp_path / "a.onnx", "--format", "pt2")
    assert "--out" in fails("export", model, "--out", tmp_path / "missing" / "a.onnx")
    assert "expected the folder of a trained model" in fails(
        "export", world / "model.onnx", "--out", tmp_path / "a.onnx"
    )
    assert list(tmp_path.glob("a.*")) == []


def test_files_that_are_no_exported_models(world: Path, tmp_path: Path) -> None:
    photographs, path = world / "photographs", tmp_path / "model.onnx"
    assert "no such file" in fails("annotate", path, photographs)
    line = fails("annotate", world / "model.onnx", photographs, "--device", "cuda")
    assert "runs on the CPU, by onnxruntime; expected auto or cpu, got 'cuda'" in line
    content = (world / "model.onnx").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "damaged, or not an ONNX file" in fails("annotate", path, photographs)
    model = onnx.load_from_string(content)

    def changed(edit: Callable[[Any], None]) -> str:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        edit(copy)
        path.write_bytes(copy.SerializeToString())
        return fails("annotate", path, photographs)

    def without_metadata(copy: Any) -> None:
        del copy.metadata_props[:]

    def replaced(old: str, new: str) -> Callable[[Any], None]:
        def edit(copy: Any) -> None:
            (prop,) = (prop for prop in copy.metadata_props if prop.key == "tagrank")
            assert old in prop.value
            prop.value = prop.value.replace(old, new)

        return edit

    def resealed(**values: Any) -> Callable[[Any], None]:
        def edit(copy: Any) -> None:
            (prop,) = (prop for prop in copy.metadata_props if prop.key == "tagrank")
            card = json.loads(prop.value) | values
            del card["checksum"]
            prop.value = json.dumps(card)

        return edit

    assert "expected a file that tagrank export wrote" in changed(without_metadata)
    assert "its checksum is that of something else" in changed(replaced('"dog"', '"dig"'))
    assert "not valid JSON" in changed(replaced('"vocabulary"', "vocabulary"))
    assert "expected format 1, got 2" in changed(resealed(format=2))
    assert "does not fit its metadata" in changed(resealed(vocabulary=["dog", "ball"]))
    assert "preprocessing.resample" in changed(resealed(preprocessing={"resample": "nearest"})).replace(
        "longest", "resample"
    )


#: A network of torchvision for each kind of preprocessing that torchvision has.
NETWORKS = ("vgg16", "efficientnet_b0", "efficientnet_b3", "inception_v3", "swin_v2_b", "regnet_y_16gf", "vit_l_16")


def test_preprocessing_is_written_as_data() -> None:
    for name in NETWORKS:
        for weights in models.get_model_weights(name):
            transforms = weights.transforms()
            spec = {"backbone": name, "weights": weights.name, "preprocessing": " ".join(repr(transforms).split())}
            # Compared there with what the backbone does, for images of several sizes.
            found = preprocessing_of(Backbone(nn.Identity(), transforms, 1, spec), 32)
            assert (found.resize, found.crop) == (tuple(transforms.resize_size), transforms.crop_size[0])


@pytest.mark.parametrize(
    "text", ["anything", "RGB, 32 x 32 bilinear, x / 127.5 - 1", "RGB, 64 x 64 bicubic, x / 127.5 - 1"]
)
def test_preprocessing_that_is_not_what_the_text_says(text: str) -> None:
    backbone = load_backbone("small_cnn", "none")
    backbone.spec = backbone.spec | {"preprocessing": text}
    with pytest.raises(InputError, match=r"cannot be written into a file.*--input features"):
        preprocessing_of(backbone, 32)


def test_missing_packages_are_named(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for command in (("annotate", world / "model.onnx", world), ("export", world / "model", "--out", world / "b.onnx")):
        assert "pip install 'tagrank[onnx]'" in fails(*command)


@pytest.mark.exhaustive
def test_efficientnet_lite0_is_exported(tmp_path: Path) -> None:
    backbone = load_backbone("efficientnet_lite0")
    theirs = make(backbone.spec, backbone.feature_size)
    export_model(theirs, tmp_path / "model.onnx", format="onnx")
    ours = load_exported(tmp_path / "model.onnx")
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (301, 200, 3), dtype=np.uint8)).save(file, "PNG")
    close(ours.annotate(file.getvalue()), theirs.annotate(file.getvalue()))
