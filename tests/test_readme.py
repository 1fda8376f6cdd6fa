"""The README: its code runs, and its figures, like docs/'s, are of the result files."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from typer.main import get_command

from tagrank import Annotator, TagRanker
from tagrank.cli import app
from tagrank.data.scenes.composition import PULL
from tagrank.data.vocabulary import Vocabulary
from tagrank.evaluation.tables import CONTEST_COLUMNS
from tagrank.features.backbones import load_backbone

ROOT = Path(__file__).parents[1]
GPU_KERNELS = ("triton", "triton grouped", "cluster")
COLUMNS = ("ndcg@1", "ndcg@3", "ndcg@5", "ndcg@10", "first_tag")


def result(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))
    return record


def page(name: str) -> str:
    """A page with single spaces instead of line ends."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


@pytest.mark.parametrize(
    ("name", "columns", "what", "said"),
    [
        ("flickr8k.json", COLUMNS, "Flickr8k, NDCG@5; first tag", ("ndcg@5", "first_tag")),
        (
            "scenes.json",
            (*CONTEST_COLUMNS,),
            "drawn scenes, NDCG@5; list F1; tag 4",
            ("ndcg@5", "list_f1", "next_tag@4"),
        ),
    ],
)
def test_tables_of_quality(name: str, columns: Sequence[str], what: str, said: Sequence[str]) -> None:
    lines = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8").splitlines()
    ours, *baselines = result(name)["rows"]
    for row in (ours, *baselines):
        cells = " | ".join(f"{row[column]:.3f}" for column in columns)
        assert f"| {row['name']} | {cells} |" in lines
    line = page("README.md").split(f"| {what} | ")[1].partition("[")[0]
    own = "; ".join(f"{ours[key]:.3f}" for key in said)
    best = "; ".join(f"{max(row[key] for row in baselines):.3f}" for key in said)
    assert line.startswith(f"{own}. The best baseline")
    assert f": {best} |" in line


def test_dependence_of_lists() -> None:
    """The table of decisions.md, and that the drawn scenes have what real lists have."""
    measured = result("list-dependence.json")["measured"]
    lines = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8").splitlines()
    for name, of in measured.items():
        cells = [f"{of[t]['nats']:.3f} ({of[t]['error']:.3f}), {of[t]['hits']:.3f}" for t in "234"]
        assert f"  | {name} | {of['agreement']:.3f} | {' | '.join(cells)} |" in lines
    real, scenes = measured["real lists"], measured[f"scenes, pull {PULL:g}"]
    assert scenes["agreement"] == pytest.approx(real["agreement"], abs=0.01)
    assert scenes["2"]["nats"] == pytest.approx(real["2"]["nats"], abs=2 * (scenes["2"]["error"] + real["2"]["error"]))


def test_speed() -> None:
    cpu = result("cpu.json")
    whom = {line.split(",")[0] for line in cpu["summary"]}
    assert whom == {"tagrank native"}, "a wrong result, or a backend that the pages do not speak of"
    assert {row["name"] for row in cpu["rows"] if row["kind"] == "peer"} >= {"nn.LSTM (oneDNN)", "torch.compile"}
    assert all(row["right"] for row in cpu["rows"] if row["kind"] != "floor")
    said = {}
    for line in cpu["summary"]:
        assert line in page("docs/speed.md")
        mode, figures = re.fullmatch(r"tagrank native, (\w+): (.*?x.*?, worst .*?x), .*", line).groups()  # type: ignore[union-attr]
        said[mode] = figures
    inference, training = said["inference"], said["training"].replace(" the fastest peer", "")
    assert f"| `ContextLSTM` without inputs, inference; training | {inference}; {training} |" in page("README.md")
    for name in ("README.md", "docs/speed.md"):
        assert cpu["environment"]["cpu"] in page(name)


def test_backbones() -> None:
    """The tables of quality and of speed."""
    lines = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8").splitlines()
    for row in result("backbone-quality.json")["rows"]:
        means = [f"{row['mean'][metric]:.3f}" for metric in COLUMNS]
        differences = [f"{row['difference'][metric]:+.3f} ({row['error'][metric]:.3f})" for metric in COLUMNS]
        cells = means if row["name"].endswith("_lite0") else differences
        assert f"| {row['name']} | {' | '.join(cells)} |" in lines
    speed = result("backbones.json")["rows"]
    lines = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8").splitlines()
    for row in speed:
        height, width = row["input_size"]
        cells = [f"{row['feature_size']}", f"{height} x {width}", f"{row['ratio']:.2f}", row["licence"]]
        assert f"| `{row['name']}` | {' | '.join(cells)} |" in lines
    first = (
        f"`{speed[0]['name']}` takes {speed[0]['per_processor_second']:.1f} photographs per second of processor time"
    )
    assert first in page("docs/backbones.md")


def test_decoders() -> None:
    decoder = result("decoder.json")
    assert all(row["right"] for row in decoder["rows"])
    figures = []
    for row in decoder["summary"]:
        figures.append(f"{row['median']:.2f}x {row['peer']}, worst {row['worst']:.2f}x")
        assert f"{row['name']}, {row['mode']}: {figures[-1]}" in page("docs/speed.md")
    layer = [f for f, row in zip(figures, decoder["summary"], strict=True) if row["name"] == "ContextLSTM"]
    assert f"| `ContextLSTM` with inputs, inference; training | {'; '.join(layer)} |" in page("README.md")
    assert decoder["environment"]["cpu"] in page("docs/speed.md")
    slower = {(r["B"], r["H"], r["C"], r["kind"], r["mode"]) for r in decoder["rows"] if r["speedup"] < 1}
    assert slower == {(1, 256, 256, "steps", "inference"), (1, 256, 256, "steps", "training")}


def test_memory() -> None:
    rows = {row["name"]: f"{row['megabytes']:.0f} MB" for row in result("memory.json")["rows"]}
    ours, less, peer = (rows[n] for n in ("tagrank native", "tagrank native, recompute", "nn.LSTM (oneDNN)"))
    assert f"needs {ours} beyond its parameters, with `recompute=True` {less}" in page("docs/speed.md")
    assert f"where `nn.LSTM` needs {peer}" in page("docs/speed.md")
    assert f"| {ours}, with `recompute=True` {less}; `nn.LSTM` {peer} |" in page("README.md")


def test_bfloat16() -> None:
    rows = result("cpu-bfloat16.json")["rows"]
    assert all(row["right"] for row in rows)
    ours = [row for row in rows if row["kind"] == "ours"]
    assert max(row["error"] for row in ours) <= 1e-2
    fast = {row["B"]: row["speedup"] for row in ours if row["mode"] == "inference"}
    said = f"inference is {fast[1]:.2f}x (B = 1) and {fast[64]:.2f}x (B = 64) as fast as nn.LSTM's"
    assert said in page("docs/speed.md")


def test_annotator() -> None:
    rows = result("annotate.json")["rows"]
    lines = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8").splitlines()
    order = ("loop", "DataLoader", "timm", "tagrank before", "tagrank features", "tagrank annotate", "command line")
    for size, said in (("small", "500 x 375"), ("2 MP", "2 megapixels"), ("12 MP", "12 megapixels")):
        rates = {r["name"]: r["per_second"] for r in rows if (r["part"], r.get("size")) == ("annotation", size)}
        assert f"| {said} | {' | '.join(f'{rates[name]:.1f}' for name in order)} |" in lines
        assert min(rates[name] for name in order[4:]) > max(rates[name] for name in order[:4])
    whole = {r["name"]: r["ms"] for r in rows if r["part"] == "training" and r["stage"] == "all"}
    assert f"is {whole['eager'] / whole['auto']:.2f}x as fast as with the eager loop" in page("docs/speed.md")
    rates = {r["name"]: r["per_second"] for r in rows if (r["part"], r.get("size")) == ("annotation", "small")}
    peer = max(rates[name] for name in order[:3])
    said = f"{rates['tagrank annotate']:.1f} photographs per second; a loop of one's own at most {peer:.1f}"
    assert said in page("README.md")


def test_growth() -> None:
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    for row in result("growth.json")["rows"]:
        exponents = " ".join(f"{e:.2f}" for e in row["exponents"])
        assert f"| {row['axis']} | {row['mode']} | {row['sizes'][0]} to {row['sizes'][-1]} | {exponents} |" in page


def test_gpu() -> None:
    """The tables of the GPU page, from the runs that it names."""
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    names = ("nn.LSTM (cuDNN)", "eager loop, CUDA graph", *(f"tagrank {n}, CUDA graph" for n in GPU_KERNELS))
    cases: dict[tuple[int, int, str], dict[str, float]] = {}
    for row in result("gpu-9.0-292029f.json")["benchmark"]["rows"]:
        if row["T"] == 20 and row["name"] in names:
            assert row["right"]
            cases.setdefault((row["B"], row["H"], row["mode"]), {})[row["name"]] = row["ms"]
    assert len(cases) == 16
    for (batch, hidden, mode), times in cases.items():
        cells = " | ".join(f"{times[name]:.2f}" if name in times else "" for name in names)
        assert f"| {batch} | {hidden} | {mode} | {cells} |".replace("|  |", "| |").replace("|  |", "| |") in page
    steps = {
        (row["variant"], row["hidden"]): row["inference"]["us_a_step"]
        for row in result("cluster-steps-9.0.json")["results"]
        if row["batch"] == 16 and "inference" in row
    }
    for hidden, (before, after) in {128: ("1.40", "0.54"), 256: ("1.52", "0.66"), 512: ("1.76", "1.16")}.items():
        after_name = "whole-approximate-16" if hidden < 512 else "pairs-approximate-4"
        assert (f"{steps['forward', hidden]:.2f}", f"{steps[after_name, hidden]:.2f}") == (before, after)


def test_quality() -> None:
    page = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
    quality = result("quality.json")
    table = page.split("## What it says")[0]
    assert sum(line.startswith("| ") for line in table.splitlines()) == len(quality["rows"]) + 2
    for row in quality["rows"]:
        name = row["name"] if row["decoder"] is None else f"{row['name']}, {row['decoder'].replace('_', ' ')}"
        assert f"| {name} | {row['seeds']} | {quality_cells(row)} |" in page
    assert (
        f"| default, headline, minus the best | | {' | '.join(f'{m:+.4f}' for m in quality['margins'].values())} |"
        in page
    )


def test_completion() -> None:
    record = result("completion.json")
    lines = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8").splitlines()
    for row in record["rows"]:
        cells = " | ".join(f"{row['mean'][key]:.3f} ± {row['deviation'][key]:.3f}" for key in row["mean"])
        assert f"| {row['name']} | {cells} |" in lines
    margins = record["margins"].values()
    ahead = " | ".join(f"{margin['ahead']:+.3f}" for margin in margins)
    assert f"| completer, ahead of the best baseline | {ahead} |" in lines
    intervals = " | ".join("{:+.3f} to {:+.3f}".format(*margin["interval"]) for margin in margins)
    assert f"| 95% interval | {intervals} |" in lines
    assert all(margin["ahead"] > 0 for margin in margins)
    assert sum(margin["interval"][0] > 0 for margin in margins) == 8, "docs/quality.md says: in eight of them"
    counts = [f"{record['judged'][t]['lists']:,}" for t in "234"]
    assert f"{counts[0]}, {counts[1]} and {counts[2]} lists have a tag there" in page("docs/quality.md")


def quality_cells(row: dict[str, Any]) -> str:
    """Mean and deviation, where there are several seeds."""
    deviation = {c: "" if row["deviation"][c] is None else f" ± {row['deviation'][c]:.3f}" for c in COLUMNS}
    return " | ".join(f"{row['mean'][c]:.4f}{deviation[c]}" for c in COLUMNS)


def blocks() -> list[str]:
    """The README's code in Python."""
    return re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def test_the_layer_of_the_readme_is_the_lstm_that_it_replaces() -> None:
    layer, _ = blocks()
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(layer, names)
    (was,) = re.findall(r"# was: (nn\.LSTM\(.*\))", layer)
    (call,) = re.findall(r"# was: lstm\((.*)\)", layer)
    lstm: nn.LSTM = eval(was, {"nn": nn})
    lstm.load_state_dict(names["lstm"].state_dict())
    output, (h, c) = lstm(eval(call, {"cat": torch.cat, **names}))
    torch.testing.assert_close(names["output"], output, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close((names["h"], names["c"]), (h, c), atol=1e-4, rtol=1e-4)


def test_the_annotator_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, annotate = blocks()
    torch.manual_seed(0)
    backbone = load_backbone("small_cnn")
    vocabulary = Vocabulary([f"tag {i}" for i in range(7)])
    ranker = TagRanker(backbone.feature_size, 7, max_length=6, embedding_size=4, hidden_size=4)
    Annotator(ranker, vocabulary, backbone.spec, backbone=backbone).save(tmp_path / "models" / "photos")
    (tmp_path / "holiday").mkdir()
    Image.new("RGB", (8, 8), "teal").save(tmp_path / "holiday" / "a.jpg")
    monkeypatch.chdir(tmp_path)
    exec(annotate, {})
    lines = capsys.readouterr().out.splitlines()
    assert [re.fullmatch(r"(\d) tag \d [01]\.\d\d", line).group(1) for line in lines] == list("12345")  # type: ignore[union-attr]


def test_commands_of_the_readme() -> None:
    """Each has the options that the README gives it."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## The annotator\n")[1].split("\n### ")[0]
    commands = re.findall(r"^    tagrank (\w+)([^#\n]*)", section, re.MULTILINE)
    assert [name for name, _ in commands] == [
        "prepare", "features", "train", "evaluate", "annotate", "annotate", "annotate", "report", "index", "search",
        "export",
    ]  # fmt: skip
    for name, rest in commands[1:]:
        options = {o for p in get_command(app).commands[name].params for o in p.opts}  # type: ignore[attr-defined]
        assert set(re.findall(r"--[\w-]+", rest)) <= options


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
