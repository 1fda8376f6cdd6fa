"""The command line: search, comparison of models, and the options that restrict lists."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from tagrank import TagRanker
from tagrank.annotator import Annotator
from tagrank.cli import app
from tagrank.data.manifest import Example, read_manifest, write_manifest
from tagrank.data.targets import encode_lists
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.evaluation.judgement import judge
from tagrank.features.backbones import load_backbone
from tagrank.features.extraction import all_readable, extract_features
from tagrank.features.labelled import load_labelled
from tagrank.features.store import FeatureWriter
from tagrank.metrics import evaluate_rankings
from tagrank.ranker.presets import PRESETS

VOCABULARY = Vocabulary(["dog", "ball", "man", "woman", "grass"])
COUNT = 24


def tagrank(*args: Any, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def fails(*args: Any) -> str:
    result = tagrank(*args, code=2)
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    return line


def make(folder: Path, seed: int, **options: Any) -> None:
    torch.manual_seed(seed)
    backbone = load_backbone("small_cnn", "none")
    ranker = TagRanker(backbone.feature_size, 5, max_length=3, embedding_size=8, hidden_size=8, **options)
    with torch.no_grad():
        ranker.classifier.weight.mul_(8.0)
    spec = backbone.spec | {"weights": "trained with the ranker"}
    Annotator(ranker, VOCABULARY, spec, backbone=backbone).save(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models without feedback, one model with feedback, and photographs with lists."""
    folder = tmp_path_factory.mktemp("search")
    make(folder / "a", 0)
    make(folder / "b", 1)
    make(folder / "feedback", 2, feedback=True)
    generator = torch.Generator().manual_seed(0)
    (folder / "photos").mkdir()
    examples = []
    for i in range(COUNT):
        colour = tuple(torch.randint(256, (3,), generator=generator).tolist())
        Image.new("RGB", (64, 64), colour).save(folder / "photos" / f"{i:02d}.png")
        order = torch.randperm(5, generator=generator).tolist()[: 2 + i % 3]
        tags = tuple(VOCABULARY.tag(v) for v in order)
        examples.append(Example(f"photos/{i:02d}.png", tags, (tags,)))
    write_manifest(folder / "photos.jsonl", examples)
    return folder


@pytest.fixture(scope="module")
def index(world: Path) -> Path:
    result = tagrank("index", world / "a", world / "photos", "--out", world / "index")
    assert result.stdout == f"{world / 'index'}: {COUNT} photographs added, 0 were there, 0 failed; {COUNT} in all\n"
    return world / "index"


def test_search_agrees_with_the_model(world: Path, index: Path) -> None:
    result = tagrank("search", index, "dog, ball", "--top-k", COUNT, "--format", "jsonl")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [match["rank"] for match in found] == list(range(1, COUNT + 1))
    annotator = Annotator.load(world / "a")
    paths = [Path(match["image"]) for match in found]
    features = torch.stack([row for _, row in all_readable(extract_features(annotator.backbone(), paths))])
    p = annotator.probabilities(features)
    expected = (p[:, 0, 0] * p[:, 1, 1]).tolist()
    assert [m["score"] for m in found] == pytest.approx(expected, rel=0.02)
    either = tagrank("search", index, "ball,dog", "--unordered", "--top-k", 1, "--format", "jsonl")
    best = max(float(a + b) for a, b in zip(p[:, 0, 0] * p[:, 1, 1], p[:, 0, 1] * p[:, 1, 0], strict=True))
    assert json.loads(either.stdout)["score"] == pytest.approx(best, rel=0.02)


def test_formats(index: Path) -> None:
    lines = tagrank("search", index, "dog", "--top-k", 3, "--format", "jsonl").stdout.splitlines()
    records = [json.loads(line) for line in lines]
    assert [list(record) for record in records] == [["image", "rank", "score"]] * 3
    table = list(csv.DictReader(io.StringIO(tagrank("search", index, "dog", "--top-k", 3, "--format", "csv").stdout)))
    assert [{**row, "rank": int(row["rank"]), "score": float(row["score"])} for row in table] == records
    text = tagrank("search", index, "dog", "--top-k", 3).stdout.splitlines()
    assert text == [f"{r['rank']}. {r['image']} ({r['score']:.3g})" for r in records]


@pytest.mark.parametrize(
    ("command", "closed"),
    [
        ("search", ">&-"),
        ("annotate", "2>&-"),
        ("annotate", "<&- >&- 2>&-"),
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in (("annotate", ">&-"), ("search", "2>&-"), ("search", "<&- >&- 2>&-"))
        ),
    ],
)
def test_streams_may_be_closed(world: Path, index: Path, command: str, closed: str) -> None:
    arguments = {
        "search": f"{index} dog",
        "annotate": f"{world / 'a'} {world / 'photos' / '00.png'} - --format csv",
    }[command]
    line = f"{sys.executable} -m tagrank {command} {arguments} {closed}"
    result = subprocess.run(line, shell=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert result.stderr == ""
    assert (result.stdout == "") == (closed != "2>&-")


def test_an_index_is_added_to(world: Path, tmp_path: Path) -> None:
    photos = sorted((world / "photos").iterdir())
    tagrank("index", world / "a", *photos[:4], "--out", tmp_path / "i")
    (tmp_path / "broken.png").write_text("no image")
    result = tagrank("index", world / "a", *photos[:6], tmp_path / "broken.png", "--out", tmp_path / "i", code=1)
    assert result.stdout == f"{tmp_path / 'i'}: 2 photographs added, 4 were there, 1 failed; 6 in all\n"
    assert "broken.png: " in result.stderr
    named = tagrank("index", world / "a", world / "photos.jsonl", "--out", tmp_path / "i")
    assert "18 photographs added, 6 were there" in named.stdout


def test_photographs_like_one_of_the_index_or_another(world: Path, index: Path, tmp_path: Path) -> None:
    photo = world / "photos" / "03.png"
    inside = tagrank("search", index, "--like", photo, "--top-k", 5, "--format", "jsonl").stdout.splitlines()
    assert str(photo) not in [json.loads(line)["image"] for line in inside]
    assert [json.loads(line)["rank"] for line in inside] == [1, 2, 3, 4, 5]
    copy = tmp_path / "copy.png"
    copy.write_bytes(photo.read_bytes())
    outside = tagrank("search", index, "--like", copy, "--model", world / "a", "--top-k", COUNT, "--format", "jsonl")
    scores = {m["image"]: m["score"] for m in map(json.loads, outside.stdout.splitlines())}
    assert scores[str(photo)] == pytest.approx(1.0, abs=2e-3)
    for match in map(json.loads, inside):
        assert match["score"] == pytest.approx(scores[match["image"]], abs=2e-3)


def test_spellings_of_one_path(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A photograph is in an index once, and found by any path to it."""
    shutil.copytree(world / "photos", tmp_path / "photos")
    write_manifest(tmp_path / "some.jsonl", [Example("photos/00.png", ("dog",), (("dog",),))])
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    model, out = world / "a", ("--out", tmp_path / "index")
    first = tagrank("index", model, "./photos/00.png", "photos/01.png", tmp_path / "photos" / "01.png", *out)
    assert "2 photographs added, 0 were there" in first.stdout
    again = tagrank("index", model, "photos", tmp_path / "photos", "some.jsonl", "../" + tmp_path.name, *out)
    assert f"{COUNT - 2} photographs added, 2 were there" in again.stdout

    def like(name: Any) -> list[str]:
        lines = tagrank("search", tmp_path / "index", "--like", name, "--top-k", COUNT, "--format", "jsonl").stdout
        return [json.loads(line)["image"] for line in lines.splitlines()]

    expected = like("photos/00.png")
    assert len(expected) == COUNT - 1
    assert "photos/00.png" not in expected
    for name in ("./photos/00.png", tmp_path / "photos" / "00.png", "link/photos/00.png", "photos//../photos/00.png"):
        assert like(name) == expected
    assert "no photograph 'photos/nowhere.png'" in fails("search", tmp_path / "index", "--like", "photos/nowhere.png")


def test_an_index_is_updated(world: Path, tmp_path: Path) -> None:
    """Photographs that are gone leave it, and those that changed are computed again; nothing else is."""
    photos = shutil.copytree(world / "photos", tmp_path / "photos")
    shutil.copytree(world / "photos", tmp_path / "others")
    arguments = ("index", world / "a", photos, "--out", tmp_path / "index")
    tagrank("index", world / "a", photos, tmp_path / "others", "--out", tmp_path / "index")

    def found() -> dict[str, float]:
        lines = tagrank("search", tmp_path / "index", "dog", "--top-k", 99, "--format", "jsonl").stdout.splitlines()
        return {match["image"]: match["score"] for match in map(json.loads, lines)}

    before = found()
    (photos / "00.png").unlink()
    shutil.copy(photos / "02.png", photos / "01.png")
    (tmp_path / "others" / "00.png").unlink()
    kept = tagrank(*arguments, "--no-update").stdout
    assert kept.endswith(f": 0 photographs added, {COUNT - 1} were there, 0 failed; {2 * COUNT} in all\n")
    assert found() == before
    line = tagrank(*arguments).stdout
    assert line.endswith(
        f"1 photographs added, {COUNT - 2} were there, 0 failed; {2 * COUNT - 1} in all; 2 left, gone or changed"
        "; 1 were computed before\n"
    )
    after = found()
    assert after.keys() == before.keys() - {str(photos / "00.png")}
    assert after.pop(str(photos / "01.png")) == before[str(photos / "02.png")] != before[str(photos / "01.png")]
    assert after.items() <= before.items()
    again = tagrank(*arguments).stdout
    assert again.endswith(f": 0 photographs added, {COUNT - 1} were there, 0 failed; {2 * COUNT - 1} in all\n")


def test_photographs_that_only_seem_gone_stay(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = shutil.copytree(world / "photos", tmp_path / "photos")
    (photos / "locked").mkdir()
    (photos / "00.png").rename(photos / "locked" / "00.png")
    arguments = ("index", world / "a", photos, "--out", tmp_path / "index")
    tagrank(*arguments)
    stat, scandir = os.stat, os.scandir

    def refuse(call: Any, path: Any, *more: Any, **options: Any) -> Any:
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return call(path, *more, **options)

    monkeypatch.setattr(os, "scandir", partial(refuse, scandir))
    monkeypatch.setattr(os, "stat", partial(refuse, stat))
    result = tagrank(*arguments, code=1)
    assert "locked: permission denied" in result.stderr
    assert f"; {COUNT} in all\n" in result.stdout
    photos.rename(tmp_path / "away")
    photos.mkdir()
    assert "no images in this folder" in fails(*arguments)


def test_features_instead_of_photographs(world: Path, tmp_path: Path) -> None:
    annotator = Annotator.load(world / "a")
    spec = dict(annotator.backbone_spec or {})
    with FeatureWriter(tmp_path / "store", spec, annotator.ranker.feature_size) as writer:
        writer.add(["x.jpg", "y.jpg"], torch.randn(2, annotator.ranker.feature_size))
    result = tagrank("index", world / "a", "--features", tmp_path / "store", "--out", tmp_path / "i")
    assert "2 photographs added" in result.stdout
    found = tagrank("search", tmp_path / "i", "dog", "--format", "jsonl").stdout.splitlines()
    assert sorted(json.loads(line)["image"] for line in found) == ["x.jpg", "y.jpg"]


def test_wrong_input(world: Path, index: Path, tmp_path: Path) -> None:
    assert "query: 'dgo' is not one of the 5 tags of this index; did you mean 'dog'?" in fails("search", index, "dgo")
    assert "query: expected 1 to 4 tags, got 0" in fails("search", index, " , ")
    assert "expected either a query or --like" in fails("search", index)
    assert "expected either a query or --like" in fails("search", index, "dog", "--like", "a.png")
    assert "no photograph 'a.png' in this index" in fails("search", index, "--like", "a.png")
    assert "--unordered goes with a query" in fails("search", index, "--like", "a.png", "--unordered")
    assert "--model goes with --like" in fails("search", index, "dog", "--model", world / "a")
    assert "index.json is not there" in fails("search", tmp_path, "dog")
    photo = next((world / "photos").iterdir())
    assert "made with another model" in fails("search", index, "--like", photo, "--model", world / "b")
    assert "is the index of another model" in fails("index", world / "b", photo, "--out", index)
    assert "this model reads its own tags" in fails("index", world / "feedback", photo, "--out", tmp_path / "i")
    assert "expected photographs, or --features" in fails("index", world / "a", "--out", tmp_path / "i")
    assert "no such file" in fails("search", index, "--like", tmp_path / "none.png", "--model", world / "a")


def test_comparison_of_two_models(world: Path, tmp_path: Path) -> None:
    out, arguments = tmp_path / "scores.json", ("evaluate", world / "a", world / "photos.jsonl")
    result = tagrank(*arguments, "--against", world / "feedback", "--retrieval", "--json", out)
    record = json.loads(out.read_text())
    ours, other = record["rows"]
    assert ours["name"] == "tagrank, headline"
    assert other["name"] == f"{world / 'feedback'}, expected gain"
    assert {"ndcg@1", "ndcg@3", "ndcg@5", "ndcg@10", "first_tag", "rbo", "kendall_tau", "nll"} < ours.keys()
    assert ours["intervals"].keys() == ours.keys() - {"name", "intervals"}
    for key in ("ndcg@5", "rbo", "nll"):
        low, high = ours["intervals"][key]
        assert low < ours[key] < high
        found = record["comparison"][key]
        assert found["difference"] == pytest.approx(ours[key] - other[key])
        assert found["interval"][0] <= found["difference"] <= found["interval"][1]
        assert found["images"] == COUNT
        assert f"{found['difference']:+.4f}" in result.stdout
    assert record["retrieval"][0]["name"] == "tags, in order"
    assert "photograph, by chance" in result.stdout
    same = tagrank(*arguments, "--against", world / "a")
    assert "may be chance" in same.stdout
    assert "real" not in same.stdout.replace("may be chance", "")
    assert "--against-features goes with --against" in fails(*arguments, "--against-features", out)
    assert "this model reads its own tags" in fails("evaluate", world / "feedback", *arguments[2:], "--retrieval")


def test_the_likelihood_of_a_model_with_feedback(world: Path) -> None:
    annotator = Annotator.load(world / "feedback")
    images = load_labelled(read_manifest(world / "photos.jsonl"), backbone=annotator.backbone())
    lists = images.lists(VOCABULARY)
    per_image = judge(annotator, images).per_image["nll"]
    for row in range(0, COUNT, 5):
        single = encode_lists([lists[row]], 5, annotator.ranker.steps)
        with torch.no_grad():
            expected = float(annotator.ranker.loss(images.inputs[row : row + 1], single))
        assert per_image[row] == pytest.approx(expected, rel=1e-5)


def test_what_a_list_shows(world: Path, tmp_path: Path) -> None:
    photos = sorted((world / "photos").iterdir())[:4]
    (tmp_path / "synonyms.json").write_text('{"person": ["man", "woman"]}')
    (tmp_path / "thresholds.json").write_text('{"person": 0.999999}')
    for model, decoders in (("a", ("greedy", "assignment", "expected_gain")), ("feedback", ("greedy", "beam"))):
        for decoder in decoders:
            command = ("annotate", world / model, *photos, "--decoder", decoder, "--top-k", 5, "--format", "jsonl")

            def tags(*options: Any, command: tuple[Any, ...] = command) -> list[set[str]]:
                lines = tagrank(*command, *options).stdout.splitlines()
                return [{tag["tag"] for tag in json.loads(line)["tags"]} for line in lines]

            assert tags("--include", "dog, ball") == [{"dog", "ball"}] * 4
            assert tags("--exclude", "dog,man") == [{"ball", "woman", "grass"}] * 4
            merged = ("--synonyms", tmp_path / "synonyms.json")
            assert tags(*merged) == [{"dog", "ball", "person", "grass"}] * 4
            assert tags(*merged, "--thresholds", tmp_path / "thresholds.json") == [{"dog", "ball", "grass"}] * 4
    photo = photos[0]
    assert "include: 'cat' is not one of the model's 5 tags" in fails(
        "annotate", world / "a", photo, "--include", "cat"
    )
    assert "'beam'" in fails("annotate", world / "a", photo, "--decoder", "beam")
    assert "'assignment'" in fails("annotate", world / "feedback", photo, "--decoder", "assignment")
    assert "synonyms.json: expected tags with probabilities" in fails(
        "annotate", world / "a", photo, "--thresholds", tmp_path / "synonyms.json"
    )
    assert "no such file" in fails("annotate", world / "a", photo, "--synonyms", tmp_path / "none.json")


def test_tags_with_commas(world: Path, tmp_path: Path) -> None:
    a = Annotator.load(world / "a")
    vocabulary = Vocabulary(["dog", "car, motor", 'the "red" ball', "woman", "grass"])
    Annotator(a.ranker, vocabulary, a.backbone_spec, backbone=a.backbone()).save(tmp_path / "m")
    photos = sorted((world / "photos").iterdir())[:3]

    def shown(option: str, tags: str) -> set[str]:
        lines = tagrank("annotate", tmp_path / "m", *photos, option, tags, "--top-k", 5, "--format", "jsonl").stdout
        (found,) = {frozenset(tag["tag"] for tag in json.loads(line)["tags"]) for line in lines.splitlines()}
        return set(found)

    assert shown("--include", ' "car, motor", dog ,') == {"dog", "car, motor"}
    assert shown("--exclude", 'dog,"car, motor"') == {'the "red" ball', "woman", "grass"}
    assert shown("--include", 'the "red" ball') == {'the "red" ball'}
    tagrank("index", tmp_path / "m", *photos, "--out", tmp_path / "i")
    assert len(tagrank("search", tmp_path / "i", 'dog, "car, motor"').stdout.splitlines()) == 3
    assert "query: expected tags separated by commas, and quotes around a tag with a comma" in fails(
        "search", tmp_path / "i", 'dog, "car, motor'
    )
    assert "--include: expected tags separated by commas" in fails(
        "annotate", tmp_path / "m", *photos, "--include", '"dog" cat'
    )


def test_people_are_judged_under_the_same_names(world: Path, tmp_path: Path) -> None:
    (tmp_path / "synonyms.json").write_text('{"tag": ["dog", "ball", "man", "woman", "grass"]}')
    result = tagrank(
        "evaluate", world / "a", world / "photos.jsonl", "--synonyms", tmp_path / "synonyms.json",
        "--json", tmp_path / "scores.json",
    )  # fmt: skip
    assert result.stdout
    (row,) = json.loads((tmp_path / "scores.json").read_text())["rows"]
    assert row["ndcg@5"] == row["first_tag"] == row["rbo"] == 1.0


def test_the_report_shows_mistakes(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    tagrank("report", world / "feedback", world / "photos.jsonl", "--out", out, "--examples", 2, "--worst", 3)
    page = out.read_text()
    assert page.count("data:image/jpeg") == 5
    assert "Tags in the wrong order" in page
    assert "Where the model is most wrong" in page
    tagrank("report", world / "a", world / "photos.jsonl", "--out", out, "--examples", COUNT + 1, "--worst", 0)
    names = re.findall('<div class="head"><span>(.*?)</span>', out.read_text())
    assert len(set(names)) == len(names) == COUNT


def test_a_photograph_that_cannot_be_read_is_reported(world: Path, tmp_path: Path) -> None:
    annotator = Annotator.load(world / "a")
    images = read_manifest(world / "photos.jsonl")
    rows = load_labelled(images, backbone=annotator.backbone()).inputs
    with FeatureWriter(tmp_path / "features", annotator.backbone().spec, rows.shape[1]) as writer:
        writer.add([e.image for e in images.examples], rows)
    shutil.copytree(world / "photos", tmp_path / "photos")
    broken = tmp_path / "photos" / "00.png"
    broken.write_text("no image")
    out = tmp_path / "report.html"
    result = tagrank(
        "report", world / "a", world / "photos.jsonl", "--features", tmp_path / "features", "--images", tmp_path,
        "--worst", COUNT, "--out", out, code=1,
    )  # fmt: skip
    assert result.stdout == f"{out}\n"
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"tagrank: {broken}: not a ")
    assert out.read_text().count("data:image/jpeg") == 2 * (COUNT - 1)


def test_judged_without_a_photograph_that_cannot_be_read(world: Path, tmp_path: Path) -> None:
    """Two models are compared by the photographs that both have."""
    shutil.copytree(world / "photos", tmp_path / "photos")
    manifest = Path(shutil.copy(world / "photos.jsonl", tmp_path))
    (tmp_path / "photos" / "03.png").write_bytes(b"no image")
    for command in (("evaluate",), ("report", "--out", tmp_path / "report.html")):
        result = tagrank(command[0], world / "a", manifest, *command[1:], code=1)
        assert "03.png: not a JPEG" in result.stderr
        assert "not a JPEG" in fails(command[0], world / "a", manifest, *command[1:], "--no-skip-unreadable")
    names = [f"photos/{i:02d}.png" for i in range(COUNT) if i != 5]
    np.savez(tmp_path / "f.npz", images=names, features=np.random.default_rng(0).random((COUNT - 1, 256)))
    against = ("--against", world / "b", "--against-features", tmp_path / "f.npz", "--json", tmp_path / "s.json")
    result = tagrank("evaluate", world / "a", manifest, *against, code=1)
    assert "no features of 'photos/05.png'" in result.stderr
    examples = [e for e in read_manifest(manifest).examples if e.image[-6:-4] not in ("03", "05")]
    write_manifest(tmp_path / "rest.jsonl", examples)
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    alone = tagrank("evaluate", world / "a", tmp_path / "rest.jsonl", "--json", tmp_path / "alone.json")
    assert alone.stderr == ""
    assert json.loads((tmp_path / "alone.json").read_text())["rows"] == rows[:1]


@pytest.mark.parametrize(("model", "decoder"), [("a", "headline"), ("a", "assignment"), ("feedback", "greedy")])
def test_the_report_shows_what_was_judged(world: Path, tmp_path: Path, model: str, decoder: str) -> None:
    out = tmp_path / "report.html"
    options = ("--decoder", decoder, "--examples", 4, "--worst", COUNT)
    tagrank("report", world / model, world / "photos.jsonl", "--out", out, *options)
    cards = out.read_text().split('<figure class="card pair">')[1:]
    assert len(cards) == COUNT + 4
    annotator = Annotator.load(world / model)
    scores, beyond = [], 0
    for card in cards:
        (name,) = re.findall('<div class="head"><span>(.*?)</span>', card)
        tags = re.findall('<span class="tag">(.*?)<span class="unseen">, ((?:not )?(?:on people|predicted))', card)
        predicted = [VOCABULARY.index(tag) for tag, what in tags if what.endswith("people")]
        people = [VOCABULARY.index(tag) for tag, what in tags if what.endswith("predicted")]
        scores.append(float(re.findall("NDCG@5 <b>(.*?)</b>", card)[0]))
        assert scores[-1] == round(float(evaluate_rankings([predicted], [people], ks=(5,))["ndcg@5"][0]), 2)
        ((_, own),) = annotator.annotate([world / name], decoder=decoder)
        assert isinstance(own, list)
        set_off = re.findall(r'class="[^"]*beyond">.*?<span class="tag">(.*?)<', card, re.DOTALL)
        assert set(set_off) == {VOCABULARY.tag(v) for v in predicted} - {tag.tag for tag in own}
        beyond += len(set_off)
    assert scores[:COUNT] == sorted(scores[:COUNT])
    assert beyond > 0


@pytest.fixture
def stored(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of an unknown backbone, a manifest to train on and one to judge by, and features of each and of both."""
    small = replace(PRESETS["default"], embedding_size=8, hidden_size=8, epochs=1)
    monkeypatch.setitem(PRESETS, "default", small)  # the preset of the captioning LSTM
    a = Annotator.load(world / "a")
    Annotator(a.ranker, VOCABULARY).save(tmp_path / "m")
    generator = torch.Generator().manual_seed(4)
    stores: dict[str, tuple[list[str], list[Any]]] = {name: ([], []) for name in ("both", "train", "test")}
    for name, count in (("train", 30), ("test", 20)):
        examples = []
        for i in range(count):
            tags = tuple(VOCABULARY.tag(v) for v in torch.randperm(5, generator=generator).tolist()[: 2 + i % 3])
            examples.append(Example(f"{name}{i}.jpg", tags, (tags,)))
        write_manifest(tmp_path / f"{name}.jsonl", examples)
        rows = torch.randn(count, a.ranker.feature_size, generator=generator)
        for store in ("both", name):
            stores[store][0].extend(e.image for e in examples)
            stores[store][1].append(rows.numpy())
    for store, (names, parts) in stores.items():
        np.savez(tmp_path / f"{store}.npz", images=np.array(names), features=np.concatenate(parts))
    return tmp_path


def test_features_to_fit_the_baselines_on(stored: Path) -> None:
    arguments = ("evaluate", stored / "m", stored / "test.jsonl", "--baselines", "--train", stored / "train.jsonl")
    assert "frequency prior" in tagrank(*arguments, "--features", stored / "both.npz").stdout
    line = fails(*arguments, "--features", stored / "test.npz")
    assert line == (
        f"tagrank: {stored / 'test.npz'}: does not have the images of {stored / 'train.jsonl'}: give --train-features"
    )


def test_the_split_to_judge_by_is_as_the_help_says(stored: Path) -> None:
    def judged(*splits: str | None) -> Result:
        examples = read_manifest(stored / "test.jsonl").examples
        chosen = [replace(e, split=splits[i % len(splits)]) for i, e in enumerate(examples)]
        write_manifest(stored / "split.jsonl", chosen)
        options = ("--features", stored / "both.npz", "--json", stored / "scores.json")
        return CliRunner().invoke(app, ["evaluate", *map(str, (stored / "m", stored / "split.jsonl", *options))])

    assert "or all images if the manifest has no splits" in " ".join(
        tagrank("evaluate", "--help").stdout.replace("│", " ").split()
    )
    assert judged(None).exit_code == judged("test", "train").exit_code == 0
    assert "say which to judge by (--split)" in judged("val", None).stderr


@pytest.mark.parametrize(("command", "option"), [("evaluate", "--json"), ("report", "--out")])
def test_if_nothing_can_be_written_nothing_is_judged(
    stored: Path, monkeypatch: pytest.MonkeyPatch, command: str, option: str
) -> None:
    arguments = (command, stored / "m", stored / "test.jsonl", "--features", stored / "both.npz", option)
    with monkeypatch.context() as patch:
        patch.setattr("tagrank.evaluation.judgement.judge", lambda *_, **__: pytest.fail("was judged"))
        for target, problem in (
            (stored, "expected a file or an unused path"),
            (stored / "test.jsonl" / "x", "cannot be written: not a directory"),
            (stored / ("x" * 300), "cannot be written: file name too long"),
            (Path("/proc/x"), "cannot be written: "),
        ):
            assert fails(*arguments, target).startswith(f"tagrank: {option}: {target}: {problem}")
    before = sorted(stored.iterdir())
    tagrank(*arguments, stored / "written")
    assert sorted(stored.iterdir()) == sorted([*before, stored / "written"])


def test_the_table_is_printed_before_it_is_written(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise InputError("no space left on device")

    monkeypatch.setattr("tagrank.evaluation.tables.write_rows", full)
    options = ("--features", stored / "both.npz", "--json", stored / "scores.json")
    result = tagrank("evaluate", stored / "m", stored / "test.jsonl", *options, code=2)
    assert "tagrank, headline" in result.stdout
    assert result.stderr == "tagrank: no space left on device\n"


def test_all_rows_of_a_table_are_of_one_task(stored: Path) -> None:
    (stored / "synonyms.json").write_text('{"anything": ["dog", "ball", "man", "woman", "grass"]}')
    (stored / "person.json").write_text('{"person": ["man", "woman"]}')
    arguments = ("evaluate", stored / "m", stored / "test.jsonl", "--features", stored / "both.npz")

    def rows(*options: Any) -> list[dict[str, Any]]:
        tagrank(*arguments, "--baselines", "--train", stored / "train.jsonl", "--json", stored / "s.json", *options)
        found: list[dict[str, Any]] = json.loads((stored / "s.json").read_text())["rows"]
        assert len(found) == 6
        return found

    for row in rows("--synonyms", stored / "synonyms.json"):
        assert row["ndcg@5"] == row["first_tag"] == row["recall@1"] == 1.0
    # Only one list is possible.
    for options in (("--include", "dog"), ("--synonyms", stored / "person.json", "--exclude", "dog, ball, grass")):
        ours, *baselines = rows(*options)
        assert 0 < ours["ndcg@5"] < 1
        for row in baselines:
            assert row["ndcg@5"] == ours["ndcg@5"]
            assert row["overlap"] == ours["overlap"]
    report = stored / "report.html"
    tagrank(
        "report", *arguments[1:], "--baselines", "--train", stored / "train.jsonl", "--out", report,
        "--synonyms", stored / "synonyms.json",
    )  # fmt: skip
    assert report.read_text().count(">1.000<") >= 6


def test_judged_by_images_that_were_trained_on(stored: Path) -> None:
    store = ("--features", stored / "both.npz")
    tagrank("train", stored / "train.jsonl", *store, "--val", stored / "test.jsonl", "--out", stored / "trained")
    copy = stored / "elsewhere" / "copy.jsonl"
    copy.parent.mkdir()
    examples = read_manifest(stored / "train.jsonl").examples
    validated = read_manifest(stored / "test.jsonl").examples
    write_manifest(copy, [*examples[:7], *validated[:4]])
    judged = ("evaluate", stored / "trained", copy, *store)
    warning = f"tagrank: {stored / 'trained'}: was trained or validated on 11 of the 11 images that it is judged by\n"
    assert warning in tagrank(*judged).stderr
    assert tagrank(*judged, "--against", stored / "trained").stderr.count(warning) == 2
    assert warning in tagrank("report", *judged[1:], "--out", stored / "report.html").stderr
    said = "The model was trained or validated on 11 of the 11 images that it is judged by."
    assert said in (stored / "report.html").read_text()
    tagrank(*judged, "--json", stored / "scores.json")
    assert json.loads((stored / "scores.json").read_text())["seen"] == 11
    line = fails(*judged, "--baselines", "--train", stored / "train.jsonl")
    assert line == f"tagrank: {copy}: train0.jpg is among the images to train on, in {stored / 'train.jsonl'}"
    # Other images with the same names are not recognised, and older models have no record of what they have seen.
    others = torch.randn(11, Annotator.load(stored / "m").ranker.feature_size)
    np.savez(stored / "others.npz", images=[e.image for e in read_manifest(copy).examples], features=others.numpy())
    others_judged = tagrank("evaluate", stored / "trained", copy, "--features", stored / "others.npz")
    assert "was trained" not in others_judged.stderr
    (stored / "trained" / "seen.safetensors").unlink()
    assert "was trained" not in tagrank(*judged).stderr
