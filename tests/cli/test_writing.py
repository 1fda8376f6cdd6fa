"""The command line: tags into photographs, from a model's lists or from lists in a file."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

pytest.importorskip("exiv2", reason="exiv2 is not installed (pip install 'tagrank[xmp]')")

from tagrank import TagRanker
from tagrank.annotator import Annotator
from tagrank.cli import app
from tagrank.data.vocabulary import Vocabulary
from tagrank.features.backbones import load_backbone
from tagrank.features.familiarity import Familiarity
from tagrank.metadata.exiv2_image import NAMESPACE

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
SUBJECT = "{http://purl.org/dc/elements/1.1/}subject"
PATHS = "{http://ns.adobe.com/lightroom/1.0/}hierarchicalSubject"


def tagrank(*args: Any, code: int = 0, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in args], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def listed(path: Path, name: str = SUBJECT) -> list[str]:
    if path.suffix == ".xmp":
        xmp = path.read_bytes()
    else:
        with Image.open(path) as image:
            xmp = image.info.get("xmp", b"<none/>")
    return [str(item.text) for item in ElementTree.fromstring(xmp.strip(b"\0")).findall(f".//{name}/*/{RDF}li")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    backbone = load_backbone("small_cnn", "none")
    ranker = TagRanker(backbone.feature_size, 5, max_length=3, embedding_size=8, hidden_size=8)
    with torch.no_grad():
        ranker.classifier.weight.mul_(8.0)
    folder = tmp_path_factory.mktemp("model") / "model"
    vocabulary = Vocabulary(["dog", "ball", "man", "woman", "grass"])
    spec = backbone.spec | {"weights": "trained with the ranker"}
    features = torch.rand(200, backbone.feature_size) * 1e-3 - 100.0
    Annotator(ranker, vocabulary, spec, backbone=backbone, familiarity=Familiarity.fit(features, features)).save(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name in ("a.jpg", "b.png", "c.webp"):
        pixels = torch.randint(256, (48, 48, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / name)
    return folder


def lines(result: Result) -> dict[str, list[str]]:
    records = map(json.loads, result.stdout.splitlines())
    return {Path(record["image"]).name: [tag["tag"] for tag in record["tags"]] for record in records}


@pytest.mark.parametrize("place", ["embed", "sidecar"])
def test_what_is_printed_is_written(model: Path, photos: Path, place: str) -> None:
    arguments = ("annotate", model, photos, "--format", "jsonl", "--top-k", 3, "--write", place)
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    result = tagrank(*arguments)
    assert result.stderr == "tagrank: tags of photographs: 3 written\n"
    printed = lines(result)
    assert printed.keys() == before.keys()
    assert lines(tagrank(*arguments[:7])) == printed
    for name, tags in printed.items():
        assert len(tags) == 3
        assert listed(photos / (name if place == "embed" else f"{name}.xmp")) == tags
        assert (photos / name).read_bytes() == before[name] or place == "embed"
    stats = {path.name: (path.stat().st_ino, path.stat().st_ctime_ns) for path in photos.iterdir()}
    again = tagrank(*arguments)
    assert again.stderr == "tagrank: tags of photographs: 3 unchanged\n"
    assert {path.name: (path.stat().st_ino, path.stat().st_ctime_ns) for path in photos.iterdir()} == stats
    fewer = tagrank("annotate", model, photos, "--format", "csv", "--top-k", 1, "--write", place)
    assert fewer.stderr == "tagrank: tags of photographs: 3 written\n"
    assert listed(photos / ("a.jpg" if place == "embed" else "a.jpg.xmp")) == printed["a.jpg"][:1]
    removed = tagrank("annotate", model, photos, "--write", place, "--remove")
    assert (removed.stdout, removed.stderr) == ("", "tagrank: tags of photographs: 3 removed\n")
    left = {path.name: path.read_bytes() for path in photos.iterdir()}
    assert left.keys() == before.keys()
    assert {name for name in left if left[name] != before[name]} <= {"c.webp"}
    nothing = tagrank("annotate", model, photos, "--write", place, "--remove")
    assert nothing.stderr == "tagrank: tags of photographs: 3 unchanged\n"


def test_the_model_and_its_scores(model: Path, photos: Path) -> None:
    result = tagrank("annotate", model, photos / "a.jpg", "--format", "jsonl", "--write", "sidecar")
    record = json.loads(result.stdout)
    xmp = ElementTree.fromstring((photos / "a.jpg.xmp").read_bytes())
    scores = [float(str(item.text)) for item in xmp.findall(f".//{{{NAMESPACE}}}Scores/*/{RDF}li")]
    assert scores == pytest.approx([tag["score"] for tag in record["tags"]], abs=6e-5)
    (about,) = xmp.iter(f"{RDF}Description")
    assert float(str(about.get(f"{{{NAMESPACE}}}Unlike"))) == pytest.approx(record["unlike"], abs=6e-5)
    digest = about.get(f"{{{NAMESPACE}}}Model")
    tagrank("index", model, photos, "--out", photos / "index")
    assert json.loads((photos / "index" / "index.json").read_text())["model"] == digest


def test_synonyms_give_parents(model: Path, photos: Path, tmp_path: Path) -> None:
    """The children are the tags that the list has without synonyms."""
    synonyms = tmp_path / "synonyms.json"
    synonyms.write_text('{"person": ["man", "woman"]}')
    plain = lines(tagrank("annotate", model, photos, "--format", "jsonl"))
    options = ("--synonyms", synonyms, "--write", "sidecar", "--format", "jsonl")
    shown = lines(tagrank("annotate", model, photos, *options))
    paths = 0
    for name, tags in shown.items():
        assert "man" not in tags
        assert "woman" not in tags
        sidecar = photos / f"{name}.xmp"
        assert listed(sidecar) == tags
        people = [f"person|{tag}" for tag in plain[name] if tag in ("man", "woman")]
        expected = [path for tag in tags for path in (people if tag == "person" and people else [tag])]
        assert listed(sidecar, PATHS) == (expected if "person" in tags and people else [])
        paths += len(people)
    assert paths >= 3
    assert tagrank("annotate", model, photos, *options).stderr == "tagrank: tags of photographs: 3 unchanged\n"


def test_thresholds_and_unknown_photographs(model: Path, photos: Path) -> None:
    """What is not on the list is not written; a photograph that is skipped is not touched."""
    tagrank("annotate", model, photos, "--write", "embed", "--threshold", 0.9999)
    none = tagrank("annotate", model, photos, "--threshold", 1, "--write", "embed")
    assert "3 " in none.stderr
    assert listed(photos / "a.jpg") == []
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    skipped = tagrank("annotate", model, photos, "--unknown", "skip", "--write", "embed")
    assert skipped.stderr.count("skipped: unlike the training photographs") == 3
    assert skipped.stderr.endswith("tagrank: tags of photographs: none written\n")
    assert {path.name: path.read_bytes() for path in photos.iterdir()} == before


def test_one_file_of_many(model: Path, photos: Path) -> None:
    """A file that is read-only, cannot have XMP or cannot be read: the others are written."""
    Image.new("RGB", (8, 8)).save(photos / "d.bmp")
    (photos / "e.jpg").write_text("no image")
    os.chmod(photos / "a.jpg", 0o444)
    result = tagrank("annotate", model, photos, "--write", "embed", "--format", "jsonl", code=1)
    assert lines(result).keys() == {"a.jpg", "b.png", "c.webp", "d.bmp"}
    assert f"tagrank: {photos}/a.jpg: is read-only\n" in result.stderr
    assert f"tagrank: {photos}/d.bmp: tags can be embedded in JPEG, PNG, WebP and TIFF files" in result.stderr
    assert f"tagrank: {photos}/e.jpg: not a " in result.stderr
    assert result.stderr.endswith("tagrank: tags of photographs: 2 written, 2 failed\n")
    assert listed(photos / "b.png") == lines(result)["b.png"]


def test_a_photograph_that_is_given_twice(model: Path, photos: Path) -> None:
    """Under another name, too: it is printed as often, and written once."""
    (photos.parent / "link.jpg").symlink_to(photos / "a.jpg")
    photo = photos / "a.jpg"
    result = tagrank("annotate", model, photo, photo, photos.parent / "link.jpg", "--write", "sidecar")
    assert len(result.stdout.splitlines()) == 3
    assert result.stderr == "tagrank: tags of photographs: 1 written\n"
    assert [path.name for path in photos.parent.rglob("*.xmp")] == ["a.jpg.xmp"]


def test_adobe_names(model: Path, photos: Path) -> None:
    Image.new("RGB", (8, 8)).save(photos / "a.png")
    result = tagrank("annotate", model, photos, "--write", "sidecar", "--sidecar-name", "stem", code=1)
    assert sorted(path.name for path in photos.glob("*.xmp")) == ["b.xmp", "c.xmp"]
    assert result.stderr.count("a.xmp would be the sidecar of other pictures too; use --sidecar-name full") == 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--remove",), "--remove goes with --write"),
        (("--sidecar-name", "stem"), "--sidecar-name goes with --write"),
        (("--write", "embed", "--sidecar-name", "stem"), "--sidecar-name goes with sidecars, not with embed"),
    ],
)
def test_options_that_do_not_go_together(model: Path, photos: Path, options: tuple[str, ...], reason: str) -> None:
    assert tagrank("annotate", model, photos, *options, code=2).stderr == f"tagrank: {reason}\n"


def test_lists_of_a_manifest(photos: Path) -> None:
    """Needs no model, and no photograph that can be read: HEIC."""
    (photos / "x.heic").write_bytes(b"\0\0\0\x18ftypheic")
    manifest = photos / "photos.jsonl"
    records = [
        {"image": "x.heic", "tags": ["zebra", "ball"]},
        {"image": "a.jpg", "lists": [["dog", "ball"], ["dog"]]},
        {"image": "none.jpg", "tags": ["dog"]},
    ]
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records))
    result = tagrank("write", manifest, "--to", "sidecar", code=1)
    missing = f"tagrank: {photos}/none.jpg: expected a photograph, got no file\n"
    assert result.stderr == f"{missing}tagrank: tags of photographs: 2 written, 1 failed\n"
    assert listed(photos / "x.heic.xmp") == ["zebra", "ball"]
    assert listed(photos / "a.jpg.xmp") == ["dog", "ball"]
    assert "Model" not in (photos / "x.heic.xmp").read_text()
    moved = shutil.copy(manifest, photos.parent)
    again = tagrank("write", moved, "--to", "sidecar", "--images", photos, code=1)
    assert again.stderr.endswith("2 unchanged, 1 failed\n")
    removed = tagrank("write", manifest, "--to", "sidecar", "--remove", code=1)
    assert removed.stderr.endswith("2 removed, 1 failed\n")
    assert not list(photos.glob("*.xmp"))


def test_lists_of_annotate(model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    result = tagrank("annotate", model, "photos", "--format", "jsonl")
    Path("elsewhere").mkdir()
    lists = Path("elsewhere", "lists.jsonl")
    lists.write_text(result.stdout)
    assert tagrank("write", lists, "--to", "embed").stderr == "tagrank: tags of photographs: 3 written\n"
    assert {name: listed(photos / name) for name in ("a.jpg", "b.png", "c.webp")} == lines(result)
    lists.write_text(result.stdout.replace('"rank": 2', '"rank": "b"'))
    error = tagrank("write", lists, "--to", "embed", code=2).stderr
    assert error.startswith(
        "tagrank: elsewhere/lists.jsonl, line 1: expected what annotate --format jsonl writes: tags[1]"
    )
    lists.write_text("no JSON\n")
    assert "line 1: not valid JSON" in tagrank("write", lists, "--to", "embed", code=2).stderr
    assert (
        tagrank("write", "none.jsonl", "--to", "embed", code=2).stderr
        == "tagrank: none.jsonl: no such file or directory\n"
    )


def test_ctrl_c(model: Path, photos: Path) -> None:
    """Between two files: those before it are written, and counted; no file is half."""
    folder = photos.parent / "many"
    folder.mkdir()
    for i in range(2000):
        shutil.copy(photos / "a.jpg", folder / f"{i:04d}.jpg")
    lists = photos.parent / "lists.jsonl"
    lists.write_text("".join(json.dumps({"image": f"many/{i:04d}.jpg", "tags": ["dog"]}) + "\n" for i in range(2000)))
    command = [sys.executable, "-m", "tagrank", "write", lists, "--to", "sidecar"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (folder / "0020.jpg.xmp").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    written = sorted(folder.glob("*.xmp"))
    assert process.returncode == 130
    assert 20 < len(written) < 2000
    *_, counted, last = errors.splitlines()
    assert last == "tagrank: interrupted"
    assert counted in (f"tagrank: tags of photographs: {n} written" for n in (len(written), len(written) - 1))
    assert all(listed(path) == ["dog"] for path in written)
    assert not list(folder.glob(".*"))
