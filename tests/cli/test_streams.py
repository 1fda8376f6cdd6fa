"""Streams that are not UTF-8: what has no encoding is an escape, and file names are the bytes that they are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tagrank import Annotator, TagRanker
from tagrank.data.vocabulary import Vocabulary
from tagrank.features.backbones import load_backbone
from tagrank.retrieval import IndexWriter

TAGS = ("café", "日本", "dog")
ENCODINGS = ["ascii", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("latin-1", "cp437"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and an index with tags and names that few encodings have."""
    folder = tmp_path_factory.mktemp("streams")
    backbone = load_backbone("small_cnn")
    ranker = TagRanker(backbone.feature_size, 3, max_length=3, embedding_size=4, hidden_size=4)
    annotator = Annotator(ranker, Vocabulary(TAGS), backbone.spec, backbone=backbone)
    annotator.save(folder / "model")
    (folder / "écran").mkdir()
    photo = folder / "écran" / "日.png"
    Image.new("RGB", (8, 8), "teal").save(photo)
    with IndexWriter(folder / "index", annotator) as writer:
        features = annotator.backbone()(annotator.backbone().transform(Image.open(photo))[None])
        writer.add(["écran/日.png"], annotator.probabilities(features.detach()))
    return folder


def run(folder: Path, encoding: str, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "tagrank", *arguments]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "NO_COLOR": "1"}
    return subprocess.run(command, cwd=folder, env=environment, input=stdin, capture_output=True, check=False)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "command",
    ["annotate model écran --top-k 3", "annotate model écran --top-k 3 --format csv", "search index café", "--help"],
)
def test_what_has_no_encoding_is_an_escape(folder: Path, encoding: str, command: str) -> None:
    done = run(folder, encoding, *command.split())
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode(encoding)
    for word in ("日", "é"):
        assert word not in text or word.encode(encoding)
    if command.startswith("annotate"):
        assert r"\u65e5\u672c" in text
    if "search" in command:
        assert "cran/\\u65e5.png" in text


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_errors_are_one_line(folder: Path, encoding: str) -> None:
    for arguments in (("search", "index", "日本語"), ("annotate", "modèle", "x"), ("evaluate", "model", "日.jsonl")):
        done = run(folder, encoding, *arguments)
        assert (done.returncode, done.stdout) == (2, b"")
        (line,) = done.stderr.splitlines()
        assert line.startswith(b"tagrank: ")


@pytest.mark.parametrize("encoding", [*ENCODINGS, "utf-16"])
def test_paths_on_stdin_are_bytes(folder: Path, encoding: str) -> None:
    names = os.fsencode("écran/日.png") + b"\n"
    done = run(folder, encoding, "annotate", "model", "-", "--format", "jsonl", stdin=names)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout.decode(encoding))["image"] == "écran/日.png"
