"""The README's figures are those of the result files."""

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
GPU_KERNELS = ("triton", "triton grouped", "cluster")
COLUMNS = ("ndcg@1", "ndcg@3", "ndcg@5", "ndcg@10", "first_tag")


def result(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))
    return record


@pytest.mark.parametrize("name", ["flickr8k.json", "scenes.json"])
def test_tables_of_quality(name: str) -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    for row in result(name)["rows"]:
        cells = " | ".join(f"{row[column]:.3f}" for column in COLUMNS)
        assert f"| {row['name']} | {cells} |" in lines


def readme() -> str:
    return " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_speed() -> None:
    cpu = result("cpu.json")
    whom = {line.split(",")[0] for line in cpu["summary"]}
    assert whom == {"tagrank native"}, "a wrong result, or a backend that the README does not speak of"
    assert {row["name"] for row in cpu["rows"] if row["kind"] == "peer"} >= {"nn.LSTM (oneDNN)", "torch.compile"}
    assert all(row["right"] for row in cpu["rows"] if row["kind"] != "floor")
    for line in cpu["summary"]:
        assert line in readme()
    assert cpu["environment"]["cpu"] in readme()


def test_decoders() -> None:
    decoder = result("decoder.json")
    assert all(row["right"] for row in decoder["rows"])
    for row in decoder["summary"]:
        line = f"{row['name']}, {row['mode']}: {row['median']:.2f}x {row['peer']}, worst {row['worst']:.2f}x"
        assert line in readme()
    assert decoder["environment"]["cpu"] in readme()
    slower = {(r["B"], r["H"], r["C"], r["kind"], r["mode"]) for r in decoder["rows"] if r["speedup"] < 1}
    assert slower == {(1, 256, 256, "steps", "inference"), (1, 256, 256, "steps", "training")}


def test_memory() -> None:
    rows = {row["name"]: f"{row['megabytes']:.0f} MB" for row in result("memory.json")["rows"]}
    assert f"needs {rows['tagrank native']} beyond its parameters" in readme()
    assert f"with `recompute=True` {rows['tagrank native, recompute']}" in readme()
    assert f"where `nn.LSTM` needs {rows['nn.LSTM (oneDNN)']}" in readme()


def test_bfloat16() -> None:
    rows = result("cpu-bfloat16.json")["rows"]
    assert all(row["right"] for row in rows)
    ours = [row for row in rows if row["kind"] == "ours"]
    assert max(row["error"] for row in ours) <= 1e-2
    speedups = {row["B"]: row["speedup"] for row in ours if row["mode"] == "inference"}
    assert f"inference is {speedups[1]:.2f}x (B = 1) and {speedups[64]:.2f}x (B = 64) as fast as nn.LSTM's" in readme()


def test_annotator() -> None:
    rows = {(row["name"], row["stage"]): row for row in result("annotate.json")["rows"]}
    whole = rows["stage by stage", "all"]["ms"]
    assert f"{1000 / rows['Annotator.annotate', 'all']['ms']:.1f} photographs per second" in readme()
    shares = {
        stage: f"{rows['stage by stage', stage]['ms'] / whole:.1%}" for stage in ("backbone", "ranker", "decoder")
    }
    said = f"backbone takes {shares['backbone']}, the ranker {shares['ranker']} and the decoder {shares['decoder']}"
    assert said in readme()
    assert (
        f"is {rows['eager', 'all']['ms'] / rows['auto', 'all']['ms']:.2f}x as fast as with the eager loop" in readme()
    )


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
    assert sum(line.startswith("| ") for line in page.splitlines()) == len(quality["rows"]) + 2
    for row in quality["rows"]:
        name = row["name"] if row["decoder"] is None else f"{row['name']}, {row['decoder'].replace('_', ' ')}"
        assert f"| {name} | {row['seeds']} | {quality_cells(row)} |" in page
    assert (
        f"| default, headline, minus the best | | {' | '.join(f'{m:+.4f}' for m in quality['margins'].values())} |"
        in page
    )


def quality_cells(row: dict[str, Any]) -> str:
    """Mean and deviation, where there are several seeds."""
    deviation = {c: "" if row["deviation"][c] is None else f" ± {row['deviation'][c]:.3f}" for c in COLUMNS}
    return " | ".join(f"{row['mean'][c]:.4f}{deviation[c]}" for c in COLUMNS)
