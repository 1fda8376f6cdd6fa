"""benchmarks.completion: what it computes from its runs, from the files to the result."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tagrank.ranker.presets import PRESETS


@pytest.fixture
def completion(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with models that train in a moment."""
    small = replace(PRESETS["default"], embedding_size=8, hidden_size=8, epochs=2)
    monkeypatch.setitem(PRESETS, "default", small)
    monkeypatch.setattr("tagrank.evaluation.baselines.MIN_STEPS", 2)
    monkeypatch.setattr("tagrank.evaluation.baselines.EPOCHS", 1)
    return load("completion")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, count in (("train", 40), ("val", 10)):
        lists = [["sea", "boat", "sky", "sand"], ["dog", "ball"]]
        lines = [json.dumps({"image": f"{part}{i}.jpg", "tags": lists[0], "lists": lists}) for i in range(count)]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
        names = np.array([f"{part}{i}.jpg" for i in range(count)])
        features = np.random.default_rng(0).normal(size=(count, 6)).astype(np.float16)
        np.savez(tmp_path / f"{part}_features.npz", images=names, features=features)
    return tmp_path


def test_from_files_to_the_result(completion: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    assert completion.main(["--data", str(folder), "--seeds", "2", "--json", str(folder / "result.json")]) == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["judged"] == {
        "2": {"lists": 20, "images": 10},
        "3": {"lists": 10, "images": 10},
        "4": {"lists": 10, "images": 10},
    }
    ours, *baselines = result["rows"]
    assert ours["name"] == "completer"
    assert len(baselines) == 3
    crossed = result["cross_validation"]
    assert crossed["judged"] == {
        "2": {"lists": 80, "images": 40},
        "3": {"lists": 40, "images": 40},
        "4": {"lists": 40, "images": 40},
    }
    assert [row["name"] for row in crossed["rows"]] == [row["name"] for row in result["rows"]]
    assert crossed["margins"].keys() == result["margins"].keys()
    for key, margin in result["margins"].items():
        sign = -1 if key.startswith("nll") else 1
        best = max(baselines, key=lambda row: sign * row["mean"][key])
        assert margin["best"] == best["name"]
        assert margin["ahead"] == pytest.approx(sign * (ours["mean"][key] - best["mean"][key]), abs=3e-6)
        assert margin["interval"][0] <= margin["ahead"] + 1e-6
        assert margin["ahead"] <= margin["interval"][1] + 1e-6


def test_the_interval_is_over_images_and_seeds(completion: Any) -> None:
    """The variance of a two-way bootstrap is, nearly, the sum of that over seeds and that over images."""
    rng = np.random.default_rng(1)
    of_images = 0.5 + rng.normal(size=400)
    of_seeds = 0.1 * rng.normal(size=(5, 1))
    missing = np.full((5, 50), np.nan)
    low, high = completion.interval(np.concatenate([of_images + of_seeds, missing], axis=1))
    width = 2 * 1.96 * np.sqrt(of_images.var() / 400 + of_seeds.var() / 5)
    assert high - low == pytest.approx(width, rel=0.1)
    assert (low + high) / 2 == pytest.approx(np.mean(of_images + of_seeds), abs=0.02)


def test_each_part_is_judged_by_what_learnt_from_the_others(
    completion: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[str], set[str], int]] = []

    def judge_all(data: Any, seed: int) -> Any:
        seen.append((*({e.image for e in part.examples} for part in (data.train, data.val)), seed))
        assert torch.equal(data.val.inputs, whole.inputs[seed::3])
        return {"completer": {"hit@1/2": np.full(len(data.val), float(seed))}}, {}

    whole = completion.Data(folder).train
    monkeypatch.setattr(completion, "judge_all", judge_all)
    parts = [completion.run_part(folder, 3, part)[0] for part in range(3)]
    assert [seed for _, _, seed in seen] == [0, 1, 2]
    assert all(not train & val and len(train | val) == 40 for train, val, _ in seen)
    assert set.union(*(val for _, val, _ in seen)) == {e.image for e in whole.examples}
    assert completion.pooled(parts)["completer"]["hit@1/2"].mean() == pytest.approx((13 + 2 * 13) / 40)


def test_bad_arguments(completion: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert completion.main(["--data", str(folder), "--seeds", "1", "--json", str(folder / "r.json")]) == 2
    assert completion.main(["--data", str(folder / "none"), "--json", str(folder / "r.json")]) == 2
    assert "--seeds: expected at least 2" in capsys.readouterr().err
    assert not (folder / "r.json").exists()
