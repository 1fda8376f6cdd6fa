"""What the command line does without torch, which takes seconds to import: help, errors of usage, checks, search."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tagrank import Annotator, TagRanker
from tagrank.data.vocabulary import Vocabulary
from tagrank.retrieval import IndexWriter

COMMANDS = (
    "demo",
    "features",
    "train",
    "evaluate",
    "annotate",
    "write",
    "export",
    "report",
    "env",
    "index",
    "search",
    "app",
    "publish",
    "prepare",
)


@pytest.fixture(scope="module")
def folder(once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a manifest, and an index. An import of torch is an error in processes that start here."""

    def fill(folder: Path) -> None:
        (folder / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None")
        ranker = TagRanker(4, 2, max_length=2, embedding_size=4, hidden_size=4)
        annotator = Annotator(ranker, Vocabulary(("dog", "ball")), {"backbone": "vgg16"})
        annotator.save(folder / "model")
        (folder / "m.jsonl").write_text('{"image": "a.jpg", "tags": ["dog"]}\n')
        with IndexWriter(folder / "index", annotator) as writer:
            writer.add(["a.jpg", "b.jpg"], annotator.probabilities(torch.randn(2, 4)))

    return Path(shutil.copytree(once("quick", fill), tmp_path_factory.mktemp("quick") / "copy"))


def tagrank(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths, "NO_COLOR": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "tagrank", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("-h",), *(pytest.param((name, "-h"), marks=pytest.mark.exhaustive) for name in COMMANDS)],
    ids=" ".join,
)
def test_help(folder: Path, arguments: tuple[str, ...]) -> None:
    done = tagrank(folder, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage:" in done.stdout


def test_version(folder: Path) -> None:
    done = tagrank(folder, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, "tagrank 0.1.0\n", "")


#: How each shell installs the completion and then completes "tagrank an".
SHELLS = {
    "bash": "tagrank --install-completion && . ~/.bashrc && COMP_WORDS=(tagrank an) COMP_CWORD=1 && "
    "_tagrank_completion tagrank && echo ${COMPREPLY[@]}",
    "fish": "tagrank --install-completion && complete -C 'tagrank an'",
    # It completes only while a person types. This asks for what it would then read, and for the file's last line.
    "zsh": "tagrank --install-completion && tail -n 1 ~/.zfunc/_tagrank && "
    "_TAGRANK_COMPLETE=complete_zsh _TYPER_COMPLETE_ARGS='tagrank an' tagrank",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_completion(folder: Path, tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    program = tmp_path / "bin" / "tagrank"
    program.parent.mkdir()
    code = "import sys; sys.argv[0] = 'tagrank'; from tagrank.__main__ import main; main()"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    program.chmod(0o755)
    paths = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths, "HOME": str(tmp_path), "NO_COLOR": "1"}
    environment |= {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    environment = {name: value for name, value in environment.items() if not name.startswith("XDG_")}
    command = [shell, "-c", SHELLS[shell]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{shell} completion installed in {tmp_path}")
    answer = done.stdout.split("restart the terminal\n")[1]
    assert "annotate" in answer
    assert "search" not in answer
    if shell == "zsh":
        assert answer.startswith("compdef _tagrank_completion tagrank")
    assert "--show-completion" in tagrank(folder, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("annotat", "No such command 'annotat'"),
        ("annotate", "Missing argument"),
        ("annotate model a.jpg --top-k 0", "'--top-k'"),
        ("search index dog --format xml", "'xml' is not one of"),
        ("annotate no a.jpg", "tagrank: no: expected the folder of a trained model, it is not a folder"),
        ("annotate . a.jpg", "tagrank: .: not a model: config.json is missing"),
        ("annotate model .", "tagrank: .: no images in this folder"),
        ("annotate model a.jpg --synonyms no.json", "tagrank: no.json: no such file or directory"),
        ("annotate model a.jpg --thresholds no.json", "tagrank: no.json: no such file or directory"),
        ("features no.jsonl --out f", "tagrank: no.jsonl: no such file or directory"),
        ("train no.jsonl --out m", "tagrank: no.jsonl: no such file or directory"),
        ("train m.jsonl --features no.npz --out m", "tagrank: no.npz: no such file or directory"),
        ("train m.jsonl --val no.jsonl --out m", "tagrank: no.jsonl: no such file or directory"),
        ("train m.jsonl --val-features no --out m", "tagrank: no: no such file or directory"),
        ("evaluate no m.jsonl", "tagrank: no: expected the folder of a trained model"),
        ("evaluate model no.jsonl", "tagrank: no.jsonl: no such file or directory"),
        ("evaluate model m.jsonl --features no", "tagrank: no: no such file or directory"),
        ("evaluate model m.jsonl --images no", "tagrank: no: no such file or directory"),
        ("evaluate model m.jsonl --against no", "tagrank: no: no such file or directory"),
        ("evaluate model m.jsonl --baselines --train no", "tagrank: no: no such file or directory"),
        ("evaluate model m.jsonl --json no/x.json", "tagrank: --json: no/x.json: cannot be written"),
        ("report no m.jsonl --out r.html", "tagrank: no: expected the folder of a trained model"),
        ("report model no.jsonl --out r.html", "tagrank: no.jsonl: no such file or directory"),
        ("index no . --out i", "tagrank: no: expected the folder of a trained model"),
        ("index model no.jsonl --out i", "tagrank: no.jsonl: no such file or directory"),
        ("index model --out i", "tagrank: expected photographs, or --features instead; not both"),
        ("index model . --out i", "tagrank: .: no images in this folder"),
        ("index model m.jsonl --out i", "tagrank: .: none of the 1 images of m.jsonl is in this folder, such as a.jpg"),
        ("index model --features no --out i", "tagrank: no: no such file or directory"),
        ("search no dog", "tagrank: no: expected an index of photographs"),
        ("search index", "tagrank: expected either a query or --like"),
        ("search index --like a.jpg --unordered", "tagrank: --unordered goes with a query of tags"),
        ("search index dog --model model", "tagrank: --model goes with --like"),
        ("search index dog --weights w.pth", "tagrank: --weights goes with --like and --model"),
        ("search index --like a.jpg --weights w.pth", "tagrank: --weights goes with --like and --model"),
        (
            "index model --features f --weights w --out i",
            "tagrank: --weights goes with photographs, not with --features",
        ),
        (
            "evaluate model m.jsonl --features m.jsonl --weights w",
            "tagrank: --weights goes with photographs, not with --features",
        ),
        (
            "report model m.jsonl --out r --features m.jsonl --weights w",
            "tagrank: --weights goes with photographs, not with --features",
        ),
        ("index model --features f --compile --out i", "tagrank: --compile goes with photographs, not with --features"),
        ("search index --like a.jpg --model no", "tagrank: no: expected the folder of a trained model"),
        ("search index cat", "tagrank: query: 'cat' is not one of the 2 tags of this index"),
    ],
)
def test_errors(folder: Path, arguments: str, error: str) -> None:
    done = tagrank(folder, *arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert error in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", ["dog", "dog,ball", "dog,ball --unordered", "--like a.jpg"])
def test_search(folder: Path, arguments: str) -> None:
    done = tagrank(folder, "search", "index", *arguments.split(), "--format", "csv")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("image,rank,score\n")
    assert "b.jpg" in done.stdout


@pytest.mark.parametrize("arguments", ["--help", "train --help", "search index dog", "env"])
def test_a_reader_that_stops_reading_is_no_error(folder: Path, arguments: str) -> None:
    tagrank = [sys.executable, "-m", "tagrank", *arguments.split()]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(tagrank, cwd=folder, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
