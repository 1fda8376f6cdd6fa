"""The command line as a user sees it: from files to stdout, stderr and exit codes."""

import csv
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

from tagrank.annotator import Annotator
from tagrank.cli import app
from tagrank.data.manifest import read_manifest, write_manifest
from tagrank.data.scenes import write_scenes
from tagrank.features.backbones import Backbone
from tagrank.features.computing import CPU_BATCH
from tagrank.features.extraction import extract_features
from tagrank.features.familiarity import Familiarity
from tagrank.features.labelled import load_labelled
from tagrank.ranker.presets import PRESETS


def tagrank(*args: Any, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in args], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def fails(*args: Any, code: int = 2) -> str:
    """Run a command that must fail with nothing on stdout, and return its only line on stderr."""
    result = tagrank(*args)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def world(once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, and a model trained on them for two epochs."""

    def train(folder: Path) -> None:
        manifest = write_scenes(folder / "scenes", 120, seed=0)
        command = ("train", manifest, "--backbone", "small_cnn", "--preset", "scenes", "--epochs", 2)
        with pytest.MonkeyPatch.context() as patch:
            small = replace(PRESETS["scenes"], embedding_size=16, hidden_size=16, batch_size=16)
            patch.setitem(PRESETS, "scenes", small)
            result = tagrank(*command, "--out", folder / "model")
        assert result.exit_code == 0
        assert f"{folder / 'model'}: validation NDCG@5 0." in result.stdout

    return Path(shutil.copytree(once("world", train), tmp_path_factory.mktemp("world") / "copy"))


@pytest.fixture(scope="module")
def photos(world: Path) -> list[Path]:
    return sorted((world / "scenes").rglob("*.png"))[:3]


def test_every_command_has_help_with_an_example() -> None:
    for command in (
        "demo",
        "features",
        "train",
        "evaluate",
        "annotate",
        "write",
        "report",
        "env",
        "index",
        "search",
        "app",
    ):
        result = tagrank(command, "--help")
        assert result.exit_code == 0
        assert f"tagrank {command}" in result.stdout.split("Example:")[1]


def test_annotate_writes_text_json_lines_and_csv(world: Path, photos: list[Path]) -> None:
    text = tagrank("annotate", world / "model", *photos, "--top-k", 3)
    lines = tagrank("annotate", world / "model", *photos, "--top-k", 3, "--format", "jsonl")
    table = tagrank("annotate", world / "model", *photos, "--top-k", 3, "--format", "csv")
    assert text.exit_code == lines.exit_code == table.exit_code == 0
    assert text.stderr == lines.stderr == table.stderr == ""
    rows = list(csv.DictReader(io.StringIO(table.stdout)))
    assert len(rows) == 9
    for i, (path, line, plain) in enumerate(
        zip(photos, lines.stdout.splitlines(), text.stdout.splitlines(), strict=True)
    ):
        record = json.loads(line)
        assert record["image"] == str(path)
        assert [tag["rank"] for tag in record["tags"]] == [1, 2, 3]
        assert all(0 <= tag["score"] <= 1 for tag in record["tags"])
        assert plain == f"{path}: " + ", ".join(f"{t['tag']} ({t['score']:.2f})" for t in record["tags"])
        assert [(r["tag"], r["image"]) for r in rows[3 * i : 3 * i + 3]] == [
            (t["tag"], str(path)) for t in record["tags"]
        ]


def test_photographs_unlike_those_of_training(world: Path, photos: list[Path], tmp_path: Path) -> None:
    annotator = Annotator.load(world / "model")
    assert annotator.familiarity is not None, "a trained model knows its training photographs"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "noise.png")
    # As if all training photographs had been like the first, and 200 validation photographs nearer than noise is.
    both = extract_features(annotator.backbone(), [photos[0], tmp_path / "noise.png"])
    first, noise = (torch.nn.functional.normalize(row, dim=0) for _, row in both if isinstance(row, torch.Tensor))
    nearer = np.full(200, 0.5 * float(1 - first @ noise))
    annotator.familiarity = Familiarity(first[None].half(), nearer)
    annotator.save(tmp_path / "model")
    command = ("annotate", tmp_path / "model", photos[0], tmp_path / "noise.png", "--top-k", 1)
    known, unknown = (list_.unlike for _, list_ in annotator.annotate([photos[0], tmp_path / "noise.png"]))
    assert known < 0.99 <= unknown < 1
    text, lines, rows = (tagrank(*command, "--format", form).stdout.splitlines() for form in ("text", "jsonl", "csv"))
    assert [line.endswith("; unlike the training photographs (0.995)") for line in text] == [False, True]
    assert [json.loads(line)["unlike"] for line in lines] == pytest.approx([known, unknown], abs=1e-6)
    assert [float(row["unlike"]) for row in csv.DictReader(rows)] == pytest.approx([known, unknown], abs=1e-6)
    skipped = tagrank(*command, "--unknown", "skip")
    assert skipped.exit_code == 0
    assert skipped.stdout == text[0] + "\n"
    assert skipped.stderr == f"tagrank: {tmp_path / 'noise.png'}: skipped: unlike the training photographs (0.995)\n"


def test_a_model_that_does_not_know_its_training_photographs(world: Path, photos: list[Path], tmp_path: Path) -> None:
    annotator = Annotator.load(world / "model")
    annotator.familiarity = None
    annotator.save(tmp_path / "model")
    command = ("annotate", tmp_path / "model", photos[0], "--format")
    assert json.loads(tagrank(*command, "jsonl").stdout)["unlike"] is None
    assert next(csv.DictReader(tagrank(*command, "csv").stdout.splitlines()))["unlike"] == ""
    assert "unlike" not in tagrank(*command, "text").stdout
    line = fails(*command, "text", "--unknown", "skip")
    assert line.startswith(f"tagrank: --unknown skip: {tmp_path / 'model'} does not say what its training photographs")


def test_annotate_writes_a_page(
    world: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    command = ("annotate", world / "model", photos[0], broken, photos[1], "--format", "html")
    page = tagrank(*command)
    assert (page.exit_code, page.stderr.count("\n")) == (1, 1)
    assert "Tagged by model." in page.stdout
    assert "2 photographs; 1 could not be read." in page.stdout
    first = tagrank("annotate", world / "model", photos[0], "--format", "jsonl").stdout
    tags = ", ".join(tag["tag"] for tag in json.loads(first)["tags"])
    assert f'alt="{tags}"' in page.stdout
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr("tagrank.cli.annotating.sys", SimpleNamespace(stdout=terminal, stderr=terminal))
    assert "--format html: expected a file for the page" in tagrank(*command).stderr


def test_annotate_takes_folders_and_stdin(world: Path, photos: list[Path]) -> None:
    folder = tagrank("annotate", world / "model", photos[0].parent, "--format", "jsonl")
    piped = tagrank("annotate", world / "model", "-", "--format", "jsonl", stdin="".join(f"{p}\n" for p in photos))
    assert folder.exit_code == piped.exit_code == 0
    # Another batch size rounds differently, so the last digits of scores may differ.
    tags = {r["image"]: [t["tag"] for t in r["tags"]] for r in map(json.loads, folder.stdout.splitlines())}
    for record in map(json.loads, piped.stdout.splitlines()):
        assert [t["tag"] for t in record["tags"]] == tags[record["image"]]
    assert [json.loads(line)["image"] for line in piped.stdout.splitlines()] == [str(p) for p in photos]


def test_annotate_with_threshold(world: Path, photos: list[Path]) -> None:
    result = tagrank("annotate", world / "model", *photos, "--threshold", 0.3, "--format", "jsonl")
    every = tagrank("annotate", world / "model", *photos, "--threshold", 0.0, "--format", "jsonl")
    for kept, full in zip(result.stdout.splitlines(), every.stdout.splitlines(), strict=True):
        tags = {t["tag"] for t in json.loads(full)["tags"] if t["score"] >= 0.3}
        assert {t["tag"] for t in json.loads(kept)["tags"]} == tags


def test_annotate_reports_broken_files_and_goes_on(world: Path, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(photos[0].read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("not an image")
    bomb = Image.new("1", (20000, 20000))
    bomb.save(tmp_path / "bomb.png")
    broken = [tmp_path / name for name in ("empty.png", "cut.png", "text.jpg", "bomb.png", "missing.png")]
    result = tagrank("annotate", world / "model", broken[0], photos[0], *broken[1:], photos[1], "--format", "jsonl")
    assert result.exit_code == 1
    assert [json.loads(line)["image"] for line in result.stdout.splitlines()] == [str(photos[0]), str(photos[1])]
    errors = result.stderr.splitlines()
    assert len(errors) == 5
    for path, line in zip(broken, errors, strict=True):
        assert line.startswith(f"tagrank: {path}: ")


@pytest.mark.exhaustive
def test_file_names_that_are_not_utf8(world: Path, photos: list[Path], tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(name)).write_bytes(photos[0].read_bytes())
    command = [sys.executable, "-m", "tagrank", "annotate", str(world / "model"), "-", "--format"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    for form in ("text", "jsonl", "csv"):
        result = subprocess.run([*command, form], input=name + b"\n", capture_output=True, env=environment, check=False)
        assert result.returncode == 0, result.stderr
        if form == "jsonl":
            assert json.loads(result.stdout)["image"] == os.fsdecode(name)
        else:
            assert name in result.stdout
    line = fails("features", tmp_path, "--backbone", "efficientnet_lite0", "--out", tmp_path / "store")
    assert "its name is not UTF-8" in line


def test_a_broken_model_folder(world: Path, photos: list[Path], tmp_path: Path) -> None:
    assert "not a model: config.json is missing" in fails("annotate", tmp_path, photos[0])
    assert "it is not a folder" in fails("annotate", tmp_path / "nothing", photos[0])
    assert "no images in this folder" in fails("annotate", world / "model", tmp_path)


def test_evaluate_compares_with_baselines(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    manifest = world / "scenes" / "manifest.jsonl"
    result = tagrank("evaluate", world / "model", manifest, "--baselines", "--json", out)
    assert result.exit_code == 0
    record = json.loads(out.read_text())
    rows = record["rows"]
    assert record["seen"] == 0
    weights = hashlib.sha256((world / "model" / "model.safetensors").read_bytes()).hexdigest()
    judged = {
        "images": len(read_manifest(manifest).select("test").examples),
        "manifest": manifest.name,
        "split": "test",
    }
    assert record["model"] == {"weights": weights, "name": "model", "judged": judged}
    assert 0 < record["calibration"]["error"] < 1
    assert sum(record["calibration"]["counts"]) == 12 * 10
    assert result.stdout.startswith(f"Judged by 12 images of the split 'test' of {manifest}\n")
    assert [row["name"] for row in rows] == [
        "tagrank, headline",
        "frequency prior",
        "nearest neighbours",
        "linear classifier",
        "two-layer classifier",
        "captioning LSTM, expected gain",
    ]
    for row in rows:
        assert row["name"] in result.stdout
        assert {"ndcg@1", "ndcg@3", "ndcg@5", "ndcg@10", "first_tag"} < row.keys()
        assert f"{row['ndcg@5']:.3f}" in result.stdout
    assert "was trained" not in result.stderr
    greedy = tagrank("evaluate", world / "model", manifest, "--decoder", "greedy", "--split", "val")
    assert "tagrank, greedy" in greedy.stdout
    assert "was trained or validated on 12 of the 12 images that it is judged by" in greedy.stderr


def test_report_is_one_file(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report.html"
    result = tagrank("report", world / "model", world / "scenes" / "manifest.jsonl", "--out", out, "--examples", 4)
    assert result.exit_code == 0
    assert result.stdout == f"{out}\n"
    page = out.read_text()
    assert page.count("data:image/jpeg") == 4 + 12  # the examples, and the pictures with the worst lists
    assert "tagrank, headline" in page
    assert "12 images of the split &#39;test&#39; of " in page
    assert "Whether the percentages are right" in page
    assert "<dt>unlike the training photographs</dt><dd>0 of 12 images</dd>" in page


def test_the_worst_images_are_the_worst_of_all(world: Path, tmp_path: Path) -> None:
    """Also if their pictures are not here; one that is here is shown among the others."""
    manifest = read_manifest(world / "scenes" / "manifest.jsonl")
    judged = manifest.select("test").examples
    one = tmp_path / judged[-1].image
    one.parent.mkdir(parents=True)
    shutil.copy(manifest.image_path(judged[-1]), one)
    store, out = tmp_path / "x.npz", tmp_path / "report.html"
    annotator = Annotator.load(world / "model")
    images = load_labelled(manifest.select("test"), backbone=annotator.backbone(), progress=False)
    np.savez(store, images=[e.image for e in judged], features=images.inputs.numpy())
    options = ("--features", store, "--images", tmp_path, "--worst", 12)
    assert tagrank("report", world / "model", manifest.path, *options, "--out", out).exit_code == 0
    worst, spread = out.read_text().split('id="worst"')[1].split('id="images"')
    shown = re.findall(r'<div class="head"><span>(.*?)</span>.*?<b>(.*?)</b>', worst)
    assert sorted(name for name, _ in shown) == sorted(example.image for example in judged)
    scores = [float(score) for _, score in shown]
    assert scores == sorted(scores)
    assert (worst.count("The photograph is not here."), worst.count("data:image/jpeg")) == (11, 1)
    assert re.findall(r'<div class="head"><span>(.*?)</span>', spread) == [judged[-1].image]


def test_features_resume_and_skip_broken_images(photos: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in photos[:2]:
        (folder / path.name).write_bytes(path.read_bytes())
    args = ("features", folder, "--backbone", "efficientnet_lite0", "--out", tmp_path / "store")
    first = tagrank(*args)
    assert first.exit_code == 0
    assert first.stdout == f"{tmp_path / 'store'}: 2 images added, 0 were there, 0 failed\n"
    (folder / photos[2].name).write_bytes(photos[2].read_bytes())
    (folder / "zero.jpg").touch()
    second = tagrank(*args)
    assert second.exit_code == 1
    assert second.stdout == f"{tmp_path / 'store'}: 1 images added, 2 were there, 1 failed\n"
    assert "zero.jpg: " in second.stderr


def test_features_of_other_weights_are_not_mixed(world: Path, photos: list[Path], tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    for name in ("a", "b"):
        torch.save(timm.create_model("test_vit").state_dict(), tmp_path / f"{name}.pth")
    args = ("features", *photos[:2], "--backbone", "timm:test_vit", "--out", tmp_path / "store")
    assert tagrank(*args, "--weights", tmp_path / "a.pth").exit_code == 0
    assert tagrank(*args, "--weights", tmp_path / "a.pth").stdout.endswith("0 images added, 2 were there, 0 failed\n")
    assert "holds features of backbone='timm:test_vit', weights='sha256:" in fails(
        *args, "--weights", tmp_path / "b.pth"
    )
    manifest = next((world / "scenes").glob("*.jsonl"))
    assert "such as test_vit" in fails("train", manifest, "--backbone", "timm:test_vjt", "--out", tmp_path / "model")


def test_training_goes_on_without_what_cannot_be_read(world: Path, tmp_path: Path) -> None:
    """It is reported, and the exit code says so; or training stops, if that is wanted."""
    manifest = write_scenes(tmp_path / "scenes", 60, seed=0)
    by_split = {split: read_manifest(manifest).select(split).examples for split in ("train", "val")}
    for example in [*by_split["train"][:25], by_split["val"][0]]:
        (manifest.parent / example.image).write_bytes(b"no image")
    train = ("train", manifest, "--backbone", "small_cnn", "--epochs", 1, "--out", tmp_path / "model")
    assert "not a JPEG" in fails(*train, "--no-skip-unreadable")
    result = tagrank(*train, "--overwrite")
    assert result.exit_code == 1
    assert "validation NDCG@5" in result.stdout
    lines = [line for line in result.stderr.splitlines() if line.startswith("tagrank: ")]
    assert len(lines) == 21
    assert all("not a JPEG" in line for line in lines[:20])
    assert lines[20] == "tagrank: and 6 more"
    for example in by_split["val"]:
        (manifest.parent / example.image).write_bytes(b"no image")
    result = tagrank(*train, "--overwrite")
    assert result.exit_code == 2
    assert f"manifest.jsonl: none of {len(by_split['val'])} images is left; the first: " in result.stderr


def test_paths_on_stdin(world: Path, photos: list[Path], tmp_path: Path) -> None:
    """A byte order mark is none of the first path; paths may have any byte but NUL."""
    odd = tmp_path / os.fsdecode(b"new\nline \xff.png")
    odd.write_bytes(photos[0].read_bytes())

    def images(stdin: bytes, *options: str, code: int = 0) -> list[str]:
        result = CliRunner().invoke(app, ["annotate", str(world / "model"), "-", *options, "--format", "jsonl"], stdin)
        assert result.exit_code == code, result.output
        return [json.loads(line)["image"] for line in result.stdout.splitlines()]

    plain = [str(path) for path in photos]
    assert images(("\ufeff" + "\r\n".join(plain)).encode()) == plain
    assert images(b"\0".join(map(os.fsencode, [odd, *photos])) + b"\0", "-0") == [str(odd), *plain]
    assert images(os.fsencode(photos[0]) + b"\0", code=2) == []
    assert "-0 goes with -" in fails("annotate", world / "model", photos[0], "-0")


def test_a_folder_that_cannot_be_read(
    world: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "locked/b.png", "private/c.png"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(photos[0].read_bytes())
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for command in (
        ("annotate", world / "model", tmp_path / "p"),
        ("index", world / "model", tmp_path / "p", "--out", tmp_path / "index"),
        ("features", tmp_path / "p", "--backbone", "efficientnet_lite0", "--out", tmp_path / "store"),
    ):
        result = tagrank(*command, "--exclude-folder", "private")
        assert result.exit_code == 1, result.output
        assert "locked: permission denied" in result.stderr
        assert result.stdout.count(f"{tmp_path / 'p' / 'a.png'}: ") or "1 failed" in result.stdout
        assert "c.png" not in result.stdout
        assert " 2 " not in result.stdout.partition(": ")[2] or command[0] == "annotate"


def test_features_of_an_untrained_backbone(photos: list[Path], tmp_path: Path) -> None:
    line = fails("features", photos[0], "--backbone", "small_cnn", "--out", tmp_path / "store")
    assert "small_cnn is trained with a ranker" in line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a.png", "tags": ["dog"', "line 2: not valid JSON"),
        ('{"image": "a.png", "tags": []}', "line 2: "),
        ('{"image": "a.png", "tags": ["dog"], "colour": 1}', "line 2: "),
        ('{"image": "a.png", "tags": ["dog", "dog"]}', "line 2: "),
        ('{"image": "../a.png", "tags": ["dog"]}', "line 2: "),
    ],
)
def test_a_broken_manifest(tmp_path: Path, line: str, message: str) -> None:
    manifest = tmp_path / "images.jsonl"
    manifest.write_text('{"image": "b.png", "tags": ["cat"]}\n' + line + "\n")
    assert message in fails("train", manifest, "--backbone", "small_cnn", "--out", tmp_path / "model")


def test_a_wrong_folder_of_images_is_one_line(world: Path, tmp_path: Path) -> None:
    """Every command that reads pictures of a manifest says where it looked, and which option names the folder."""
    manifest, elsewhere = world / "scenes" / "manifest.jsonl", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(manifest, elsewhere)
    new = ("--backbone", "small_cnn", "--out", tmp_path / "out")
    lite = ("--backbone", "efficientnet_lite0", "--out", tmp_path / "out")
    commands: list[tuple[Any, ...]] = [
        ("train", "MANIFEST", *new, "--epochs", 1, "--preset", "scenes"),
        ("evaluate", world / "model", "MANIFEST"),
        ("report", world / "model", "MANIFEST", "--out", tmp_path / "report.html"),
        ("index", world / "model", "MANIFEST", "--out", tmp_path / "index"),
    ]
    if importlib.util.find_spec("efficientnet_lite_pytorch"):
        commands.append(("features", "MANIFEST", *lite))
    first = read_manifest(manifest).examples[0].image
    for command in commands:
        looked = tmp_path if command[0] != "index" else elsewhere
        moved = [elsewhere / "manifest.jsonl" if word == "MANIFEST" else word for word in command]
        given = [] if looked is elsewhere else ["--images", tmp_path]
        line = fails(*moved, *given)
        assert line.startswith(f"tagrank: {looked}: none of the "), command
        assert f"images of {elsewhere / 'manifest.jsonl'} is in this folder, such as " in line
        assert line.endswith("name the folder that their paths begin in (--images)")
    assert first in fails("index", *commands[3][1:2], elsewhere / "manifest.jsonl", *commands[3][3:])
    for command in commands:
        moved = [elsewhere / "manifest.jsonl" if word == "MANIFEST" else word for word in command]
        if command[0] not in ("train", "features"):  # which take longer than they teach
            assert tagrank(*moved, "--images", world / "scenes").exit_code == 0


def test_features_that_do_not_name_their_backbone(tmp_path: Path) -> None:
    """What the user must know of the model is one line, not a place in the code."""
    (tmp_path / "m.jsonl").write_text("".join(f'{{"image": "{i}.jpg", "tags": ["dog"]}}\n' for i in range(20)))
    np.savez(tmp_path / "x.npz", images=[f"{i}.jpg" for i in range(20)], features=np.eye(20, 3, dtype=np.float32))
    features = ("--features", tmp_path / "x.npz", "--epochs", 1)
    result = tagrank("train", tmp_path / "m.jsonl", *features, "--out", tmp_path / "m")
    assert result.exit_code == 0
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("tagrank: ")]
    assert line.startswith("tagrank: features: of an unknown backbone: ")


def test_bad_options(world: Path, tmp_path: Path) -> None:
    manifest = world / "scenes" / "manifest.jsonl"
    assert "there is a model or an unfinished run already" in fails("train", manifest, "--out", world / "model")
    assert "go with --baselines" in fails("evaluate", world / "model", manifest, "--train", manifest)
    assert "no example of split 'night'" in fails("evaluate", world / "model", manifest, "--split", "night")
    assert "backbone: expected" in fails("train", manifest, "--backbone", "vgg17", "--out", tmp_path / "m")
    assert tagrank("annotate", world / "model", manifest, "--top-k", 0).exit_code == 2
    examples = [replace(e, split=None) for e in read_manifest(manifest).examples]
    write_manifest(world / "scenes" / "plain.jsonl", examples)
    assert "say which to judge by (--split)" in fails(
        "evaluate", world / "model", write_scenes(tmp_path / "s", 20, seed=1, splits={"train": 0.5, "val": 0.5})
    )
    assert "is among the images to train on" in fails(
        "evaluate", world / "model", manifest, "--split", "train", "--baselines"
    )
    assert fails("demo", "--out", "/dev/null/x").startswith("tagrank: ")
    assert "--baselines needs --train" in fails(
        "evaluate", world / "model", world / "scenes" / "plain.jsonl", "--baselines"
    )


@pytest.mark.exhaustive
def test_demo_twice_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("scenes", "default"):
        small = replace(PRESETS[name], embedding_size=16, hidden_size=16, members=1, epochs=2)
        monkeypatch.setitem(PRESETS, name, small)
    monkeypatch.setattr("tagrank.demo.TRIES", 2)
    monkeypatch.setattr("tagrank.evaluation.baselines.MIN_STEPS", 10)
    first, second = (tagrank("demo", "--out", tmp_path, "--scenes", 100) for _ in range(2))
    assert first.exit_code == second.exit_code == 0
    assert first.stdout == second.stdout
    assert first.stdout.splitlines()[-1] == f"report: {tmp_path / 'report.html'}"
    assert "frequency prior" in first.stdout
    table = [line for line in first.stdout.splitlines() if line.startswith("│")]
    assert table[0].startswith("│ tagrank, headline")
    assert [line for line in table if " - " in line] == []  # everyone is judged by everything
    assert (tmp_path / "report.html").read_text().count("data:image/jpeg") == 20 + 12
    report = tagrank("evaluate", tmp_path / "model", tmp_path / "scenes" / "manifest.jsonl", "--json", tmp_path / "e")
    assert (report.exit_code, report.stderr) == (0, "")
    saved = json.loads((tmp_path / "e").read_text())["rows"][0]
    assert f"{saved['ndcg@5']:.3f}" in table[0]  # the model that was saved is the one that was judged


def test_env() -> None:
    described = json.loads(tagrank("env").stdout)
    assert described["backends"]["eager"] is None
    assert set(described["versions"]) == {"tagrank", "python", "torch", "triton", "torchvision"}


@pytest.mark.parametrize("code", ["raise KeyboardInterrupt", 'exec("raise KeyboardInterrupt")'])
def test_ctrl_c_during_an_import(tmp_path: Path, code: str) -> None:
    """Dataclasses and named tuples are made by ``exec``, where Python remembers an interrupt although it is caught."""
    (tmp_path / "typer.py").write_text(code)
    paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "tagrank", "--help"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_ends_training_and_resume_goes_on(tmp_path: Path) -> None:
    manifest = write_scenes(tmp_path / "scenes", 50)
    command = [
        sys.executable,
        "-m",
        "tagrank",
        "train",
        str(manifest),
        "--backbone",
        "small_cnn",
        "--out",
        str(tmp_path / "m"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # With so few pictures, the default preset would stop early.
    command += ["--preset", "scenes", "--epochs", "12"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    last = tmp_path / "m" / "training" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "tagrank: interrupted; the same command with --resume goes on" in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "m" / "config.json").exists()
    arguments = (
        "train",
        manifest,
        "--backbone",
        "small_cnn",
        "--preset",
        "scenes",
        "--out",
        tmp_path / "m",
        "--resume",
    )
    line = fails(*arguments, "--epochs", 3)
    assert "cannot resume with other settings: was epochs 12, now 3" in line
    result = tagrank(*arguments, "--epochs", 12)
    assert result.exit_code == 0, result.output
    assert re.search(
        r"training, epoch 12/12: training loss .*, validation loss .*, validation NDCG@5 0\.", result.stderr
    )
    assert "epoch 1/12" not in result.stderr
    history = json.loads((tmp_path / "m" / "training" / "history.json").read_text())
    assert [epoch["epoch"] for epoch in history] == list(range(1, 13))


def test_ctrl_c_while_features_are_computed(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Means(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            batches.append(len(images))
            if len(batches) == 2:
                raise KeyboardInterrupt
            return images.mean((2, 3))

    def pixels(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image, np.float32)).movedim(-1, 0)

    def load(*_: Any) -> Backbone:
        backbone = Backbone(Means(), pixels, 3, {"backbone": "means"})
        backbone.register_parameter("weight", nn.Parameter(torch.zeros(1), requires_grad=False))
        return backbone

    batches: list[int] = []
    monkeypatch.setattr("tagrank.training.run.load_backbone", load)
    monkeypatch.setattr("tagrank.features.extraction.cores", lambda: 1)  # one batch after another
    command = ("train", world / "scenes" / "manifest.jsonl", "--out", tmp_path / "m", "--epochs", 1)
    line = fails(*command, code=130)
    assert line == "tagrank: interrupted; the same command with --resume goes on where this one stopped"
    assert "an unfinished run already" in fails(*command)
    first, cut, *_ = batches
    batches.clear()
    batches.extend([0, 0])
    assert tagrank(*command, "--resume").exit_code == 0
    images = [e for e in read_manifest(world / "scenes" / "manifest.jsonl").examples if e.split != "test"]
    assert first == cut == CPU_BATCH
    assert first + sum(batches) == len(images)  # what was computed before is not computed again


def test_ctrl_c_before_there_is_a_run(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tagrank.training.run.read_manifest", interrupt)
    manifest = world / "scenes" / "manifest.jsonl"
    assert fails("train", manifest, "--out", tmp_path / "m", code=130) == "tagrank: interrupted"


@pytest.mark.exhaustive
def test_a_closed_pipe_is_no_error(world: Path, photos: list[Path]) -> None:
    command = f"{sys.executable} -m tagrank annotate {world / 'model'} {photos[0].parent} --format csv | head -n 1"
    result = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert result.stdout == "image,rank,tag,score,unlike\n"
    assert "Traceback" not in result.stderr
    assert result.returncode == 0
