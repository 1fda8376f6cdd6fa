"""``annotate --given`` and ``Annotator.suggest``, as users call them; what models say is tested in tests/decode."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from tagrank import Annotator, TagRanker
from tagrank.cli import app
from tagrank.data.manifest import Example, write_manifest
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.features.backbones import load_backbone

TAGS = ("dog", "ball", "salt, pepper", "cat", "tree", "sky")


def tagrank(*args: Any) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args])


@pytest.fixture
def annotator() -> Annotator:
    torch.manual_seed(0)
    backbone = load_backbone("small_cnn")
    sizes = {"max_length": 3, "embedding_size": 8, "hidden_size": 8}
    ranker = TagRanker(backbone.feature_size, len(TAGS), **sizes)
    completer = TagRanker(backbone.feature_size, len(TAGS), **sizes, feedback=True)
    return Annotator(ranker, Vocabulary(TAGS), backbone.spec, backbone=backbone, completer=completer)


@pytest.fixture
def model(annotator: Annotator, tmp_path: Path) -> Path:
    annotator.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 64, 3), np.uint8)).save(path)
    return paths


def test_text_json_lines_and_csv(model: Path, photos: list[Path]) -> None:
    command = ("annotate", model, *photos, "--given", 'cat, "salt, pepper"', "--top-k", 2)
    text, lines, table = (tagrank(*command, "--format", form) for form in ("text", "jsonl", "csv"))
    assert [result.exit_code for result in (text, lines, table)] == [0, 0, 0]
    assert text.stderr == lines.stderr == table.stderr == ""
    loaded = Annotator.load(model)
    rows = list(csv.DictReader(table.stdout.splitlines()))
    for path, plain, line in zip(photos, text.stdout.splitlines(), lines.stdout.splitlines(), strict=True):
        expected = loaded.suggest(path, ["cat", "salt, pepper"], top_k=2)
        record = json.loads(line)
        assert record["image"] == str(path)
        assert record["given"] == ["cat", "salt, pepper"]
        assert record["reads_given"] is True
        assert [(tag["tag"], tag["rank"]) for tag in record["tags"]] == [(t.tag, t.rank) for t in expected]
        assert [tag["rank"] for tag in record["tags"]] == [3, 4]
        assert [tag["probability"] for tag in record["next"]] == pytest.approx(
            [tag.probability for tag in expected.next], abs=1e-5
        )
        assert record["end"] == pytest.approx(expected.end, abs=1e-5)
        rest = ", ".join(f"{t['tag']} ({t['score']:.2f})" for t in record["tags"])
        following = ", ".join(f"{t['tag']} {t['probability']:.2f}" for t in record["next"])
        assert plain == f"{path}: cat, salt, pepper | {rest}; next: {following}; end {record['end']:.2f}"
        of_path = [row for row in rows if row["image"] == str(path)]
        assert [(row["tag"], row["rank"]) for row in of_path[:2]] == [(t.tag, str(t.rank)) for t in expected]
        assert {row["tag"]: float(row["next"]) for row in of_path if row["next"]} == pytest.approx(
            {tag["tag"]: tag["probability"] for tag in record["next"]}
        )
        assert {float(row["end"]) for row in of_path} == {record["end"]}


def test_which_tags_are_shown(model: Path, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('{"pet": ["dog", "cat"]}')
    command = ("annotate", model, photos[0], "--format", "jsonl", "--top-k", 6, "--synonyms", tmp_path / "names.json")
    record = json.loads(tagrank(*command, "--given", "pet", "--exclude", "sky").stdout)
    assert {tag["tag"] for tag in record["tags"]} == {"ball", "salt, pepper", "tree"}
    assert {tag["tag"] for tag in record["next"]} == {"ball", "salt, pepper", "tree"}
    wrong = tagrank(*command, "--given", "dog")
    assert wrong.exit_code == 2
    assert "given: 'dog' is shown as 'pet'" in wrong.stderr


def test_a_model_that_does_not_read_the_given_tags_says_so(
    annotator: Annotator, photos: list[Path], tmp_path: Path
) -> None:
    annotator.completer = None
    annotator.save(tmp_path / "plain")
    result = tagrank("annotate", tmp_path / "plain", photos[0], "--given", "dog", "--format", "jsonl")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["reads_given"] is False
    assert result.stderr == (
        f"tagrank: {tmp_path / 'plain'}: does not read the given tags, it only leaves them out "
        "(train without --no-completion)\n"
    )


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("dgo", "given: 'dgo' is not one of the model's 6 tags; did you mean 'dog'?"),
        ("dog, cat,dog", "given: expected each tag once, got 'dog' twice"),
        ('"dog', "--given: expected tags separated by commas"),
    ],
)
def test_beginnings_that_are_none(model: Path, photos: list[Path], given: str, reason: str) -> None:
    result = tagrank("annotate", model, *photos, "--given", given)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_broken_photograph_does_not_stop_the_others(model: Path, photos: list[Path]) -> None:
    photos[1].write_bytes(b"no picture")
    result = tagrank("annotate", model, *photos, "--given", "dog")
    assert result.exit_code == 1
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [str(photos[0]), str(photos[2])]
    assert str(photos[1]) in result.stderr


def test_several_photographs_from_python(annotator: Annotator, photos: list[Path]) -> None:
    one = {path: annotator.suggest(path, ["dog"]) for path in photos}
    for path, suggestion in annotator.suggest(iter(photos), ["dog"], batch_size=2):
        assert not isinstance(suggestion, InputError)
        assert [t.tag for t in suggestion.next] == [t.tag for t in one[path].next]
        assert suggestion.end == pytest.approx(one[path].end, abs=1e-5)
    photos[1].write_bytes(b"no picture")
    each = list(annotator.suggest(iter(photos), [["dog"], ["cat"], []], batch_size=2))
    assert [path for path, _ in each] == photos
    assert isinstance(each[1][1], InputError)
    assert [s.given for _, s in each if not isinstance(s, InputError)] == [["dog"], []]
    with pytest.raises(InputError, match="given: expected a list of tags for each of 3 images, got 2"):
        annotator.suggest(photos, [["dog"], []])
    with pytest.raises(InputError, match="did you mean 'tree'"):
        annotator.suggest(photos, [["dog"], [], ["tre"]])


def test_evaluate_judges_the_next_tag(model: Path, photos: list[Path], tmp_path: Path) -> None:
    lists = (("dog", "ball", "tree"), ("cat", "sky"))
    write_manifest(tmp_path / "photos.jsonl", [Example(path.name, lists[0], lists) for path in photos])
    command = ("evaluate", model, tmp_path / "photos.jsonl", "--json", tmp_path / "scores.json")
    result = tagrank(*command, "--completion")
    assert result.exit_code == 0
    rows = json.loads((tmp_path / "scores.json").read_text())["completion"]
    assert [row["name"] for row in rows] == ["tagrank, reads the given tags", "tagrank, leaves the given tags out"]
    for row in rows:
        assert row.keys() == {"name", "intervals", *(f"{m}/{t}" for m in ("hit@1", "hit@3", "nll") for t in (2, 3))}
        assert f"{row['nll/2']:.3f}" in result.stdout
    assert "2: hit@1" in result.stdout
    assert tagrank(*command).exit_code == 0
    assert "completion" not in json.loads((tmp_path / "scores.json").read_text())
