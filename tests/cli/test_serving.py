"""``tagrank app`` on the command line: what it refuses before it serves. What it serves is tested in tests/app."""

import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tagrank import Annotator, TagRanker
from tagrank.cli import app
from tagrank.data.vocabulary import Vocabulary
from tagrank.features.backbones import load_backbone
from tagrank.retrieval import IndexWriter


@pytest.fixture(scope="module")
def folder(once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model``, ``index`` of another model, and ``features``, a model that does not know its backbone."""

    def fill(folder: Path) -> None:
        torch.manual_seed(0)
        backbone = load_backbone("small_cnn")
        for name in ("model", "other"):
            ranker = TagRanker(backbone.feature_size, 2, max_length=2, embedding_size=4, hidden_size=4)
            annotator = Annotator(ranker, Vocabulary(("dog", "ball")), backbone.spec, backbone=backbone)
            annotator.save(folder / name)
        Annotator(ranker, annotator.vocabulary).save(folder / "features")
        with IndexWriter(folder / "index", annotator) as writer:
            writer.add(["a.jpg"], annotator.probabilities(torch.randn(1, backbone.feature_size)))

    return Path(shutil.copytree(once("serving", fill), tmp_path_factory.mktemp("serving") / "copy"))


def fails(*args: Any) -> str:
    result = CliRunner().invoke(app, ["app", *map(str, args)])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    return line


def test_what_is_not_there(folder: Path) -> None:
    model = folder / "model"
    assert "nothing: expected the folder of a trained model" in fails(folder / "nothing")
    assert fails(model, "--index", folder / "nothing").endswith("nothing: no such file or directory")
    assert fails(model, "--root", folder) == "tagrank: --root goes with --index"


def test_gradio_is_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert fails(folder / "model").endswith(": pip install 'tagrank[app]'")


def test_the_port_is_taken(folder: Path) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed (pip install 'tagrank[app]')")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert fails(folder / "model", "--port", port).startswith(
            f"tagrank: --port: {port} is taken by another program"
        )
    assert fails(folder / "model", "--host", "nowhere.invalid").startswith("tagrank: --host: expected")


def test_what_does_not_go_with_the_model(folder: Path) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed (pip install 'tagrank[app]')")
    free = (folder / "model", "--port", 0)
    assert fails(*free, "--index", folder / "index").endswith("index: the index was made with another model")
    assert "'unicorn'" in fails(*free, "--exclude", "unicorn")
    assert "decoder" in fails(*free, "--decoder", "beam")
    assert "features of an unknown backbone" in fails(folder / "features", "--port", 0)
