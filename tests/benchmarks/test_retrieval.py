"""``python -m benchmarks.retrieval`` on a small index; docs/search.md has the figures of its result file."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.mark.exhaustive
def test_table_and_file(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.retrieval", "--photographs", "5000", "--queries", "2"]
    command += ["--folder", str(tmp_path), "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert [row["search"] for row in record["rows"]] == [
        "1 tags, in order",
        "2 tags, in order",
        "2 tags, in any order",
        "3 tags, in order",
        "3 tags, in any order",
        "5 tags, in order",
        "5 tags, in any order",
        "like a photograph",
    ]
    for row in record["rows"]:
        assert row["search"] in done.stdout
        assert 0 < row["ms"] < 10_000
    assert list(tmp_path.iterdir()) == [out]


def test_wrong_scores_are_not_timed(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    retrieval = load("retrieval")
    right = retrieval.fill
    monkeypatch.setattr(retrieval, "fill", lambda *a: (right(*a)[0], torch.full((100, 9, 125), 1 / 125)))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        retrieval.measure(tmp_path / "index", 100, 1)


def test_the_figures_of_the_page_are_those_of_the_result_file() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "retrieval.json").read_text())
    page = (ROOT / "docs" / "search.md").read_text()
    for row in result["rows"]:
        assert f"| {row['search']} | {row['ms']:.0f} ms |" in page
    assert f"{result['gigabytes']:.1f} GB" in page
    for milliseconds in result["from_disk_ms"].values():
        assert f"{milliseconds:.0f} ms" in page
        assert milliseconds < 1000
