"""``benchmarks.quality``: the figures that it computes from its runs, and that an interrupted run continues."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tagrank.ranker.presets import PRESETS

ROOT = Path(__file__).parents[2]
TAGS = ("sea", "dog", "boat", "tree")


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module. The repository's root is on the path only while the module is imported."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(ROOT)])
        import benchmarks.quality

    small = replace(PRESETS["default"], embedding_size=8, hidden_size=8, members=2, epochs=2)
    monkeypatch.setitem(PRESETS, "default", small)
    return benchmarks.quality


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images whose first tag is that of the largest of three features."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 60), ("val", 20)):
        features = torch.randn(count, 6, generator=generator)
        lines = []
        for i, row in enumerate(features):
            first = TAGS[int(row[:3].argmax())]
            lists = [[first, "tree"], [first]]
            lines.append(json.dumps({"image": f"{part}{i}.jpg", "tags": [first, "tree"], "lists": lists}))
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
        names = np.array([f"{part}{i}.jpg" for i in range(count)])
        np.savez(tmp_path / f"{part}_features.npz", images=names, features=features.numpy().astype(np.float16))
    return tmp_path


def run(quality: Any, folder: Path, *options: str) -> Mapping[str, Any]:
    result = folder / "quality.json"
    assert quality.main(["--data", str(folder), "--json", str(result), *options]) == 0
    written: Mapping[str, Any] = json.loads(result.read_text())
    return written


def test_an_interrupted_run_goes_on(quality: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("--only", "two-layer classifier", "--only", "default")
    original = quality.fit_variant

    def stop_at_the_second_seed(variant: Any, data: Any, seed: int) -> Any:
        if seed == 1:
            raise RuntimeError("stop")
        return original(variant, data, seed)

    with monkeypatch.context() as patch:
        patch.setattr(quality, "fit_variant", stop_at_the_second_seed)
        with pytest.raises(RuntimeError, match="stop"):
            run(quality, folder, *names, "--seeds", "2")
    first = json.loads((folder / "quality.json").read_text())
    assert [len(first["runs"][name]) for name in names[1::2]] == [2, 1]

    trained = []
    monkeypatch.setattr(quality, "fit_variant", lambda *given: trained.append(given[2]) or original(*given))
    result = run(quality, folder, *names, "--seeds", "2")
    assert trained == [1]
    assert result["runs"]["default"][0] == first["runs"]["default"][0]

    rows = {(row["name"], row["decoder"]): row for row in result["rows"]}
    assert set(rows) == {("two-layer classifier", None)} | {
        ("default", decoder) for decoder in ("headline", "expected_gain", "greedy", "assignment")
    }
    seeds = [run["scores"]["headline"]["ndcg@5"] for run in result["runs"]["default"]]
    row = rows["default", "headline"]
    assert row["mean"]["ndcg@5"] == pytest.approx(np.mean(seeds), abs=1e-6)
    assert row["deviation"]["ndcg@5"] == pytest.approx(np.std(seeds, ddof=1), abs=1e-6)
    for metric, margin in result["margins"].items():
        theirs = rows["two-layer classifier", None]["mean"][metric]
        assert margin == pytest.approx(row["mean"][metric] - theirs, abs=1e-6)


def test_other_settings_are_measured_anew(quality: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run(quality, folder, "--only", "single", "--seeds", "1")["runs"]["single"]
    assert run(quality, folder, "--only", "single", "--seeds", "1")["runs"]["single"] == before
    monkeypatch.setitem(PRESETS, "default", replace(PRESETS["default"], epochs=1))
    (after,) = run(quality, folder, "--only", "single", "--seeds", "1")["runs"]["single"]
    assert after["settings"] != before[0]["settings"]


def test_bad_arguments(quality: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.main(["--data", str(folder), "--only", "best", "--json", str(folder / "q.json")]) == 2
    assert "--only: expected names of rows" in capsys.readouterr().err
    assert quality.main(["--data", str(folder), "--seeds", "0", "--json", str(folder / "q.json")]) == 2
    assert "--seeds: expected at least 1, got 0" in capsys.readouterr().err
    assert not (folder / "q.json").exists()


def test_every_variant_differs(quality: Any) -> None:
    settings = [quality.settings(contestant) for contestant in quality.contestants().values()]
    assert len(set(settings)) == len(settings)
