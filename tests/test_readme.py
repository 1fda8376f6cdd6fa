"""The README's figures are those of the result files."""

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
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


def test_speed() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    cpu = result("cpu.json")
    assert len(cpu["summary"]) == 2, "a wrong result, or a backend that the README does not speak of"
    assert all(row["right"] for row in cpu["rows"])
    for line in cpu["summary"]:
        assert line in readme
    assert cpu["environment"]["cpu"] in readme
