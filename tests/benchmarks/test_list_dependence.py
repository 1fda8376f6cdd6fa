"""benchmarks.list_dependence: swaps by hand, and lists whose dependence is known."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

LISTS = [
    [("sea", "boat", "sky"), ("sky", "sand"), ("boat", "sea")],
    [("dog", "ball"), ("dog", "grass"), ("cat",)],
]


@pytest.fixture
def module(load: Callable[[str], Any]) -> Any:
    return load("list_dependence")


def test_swaps_by_hand(module: Any) -> None:
    """Of (sea, boat), (sky, sand), (boat, sea) the first and the last would repeat; two dogs change nothing."""
    found, tried = module.swaps(LISTS, 2)
    assert tried == 3 + 1
    assert [tuple(swap) for swap in found] == [
        (0, ("sea", "sky"), ("boat", "sand")),
        (0, ("sky", "boat"), ("sand", "sea")),
    ]
    assert module.swaps(LISTS, 3) == ([], 0)
    assert module.agreement(LISTS) == pytest.approx(1 / 6)


def lists_of(odds: float, images: int = 800) -> list[list[tuple[str, str]]]:
    """Four people an image: p(b | a) is that of the image, times ``odds`` if the tags go together (a-c, b-d)."""
    rng = np.random.default_rng(0)
    lists = []
    for _ in range(images):
        first, second = rng.uniform(0.2, 0.8, 2)
        people = []
        for _ in range(4):
            a = "a" if rng.random() < first else "b"
            weight = second * (odds if a == "a" else 1), (1 - second) * (odds if a == "b" else 1)
            people.append((a, "c" if rng.random() < weight[0] / sum(weight) else "d"))
        lists.append(people)
    return lists


@pytest.mark.parametrize("odds", [1.0, 2.0, 4.0])
def test_the_information_is_that_of_the_odds_whatever_the_image(module: Any, odds: float) -> None:
    """Of two lists that a swap changes, the true pairs have ``odds ** 2`` times the probability of the others."""
    found, _ = module.swaps(lists_of(odds), 2)
    measured = module.information(found)
    p = odds**2 / (1 + odds**2)
    nats = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    assert measured["nats"] == pytest.approx(nats, abs=4 * measured["error"] + 0.002)
    if odds > 1:
        assert measured["hits"] == pytest.approx(p, abs=0.05)


def test_from_files_to_the_result(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POSITIONS", (2,))
    lines = [json.dumps({"image": f"{i}.jpg", "lists": LISTS[0]}) for i in range(20)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    options = ["--data", str(tmp_path), "--scenes", "60", "--pull", "2"]
    assert module.main([*options, "--json", str(tmp_path / "out.json")]) == 0
    measured = json.loads((tmp_path / "out.json").read_text())["measured"]
    assert set(measured) == {"real lists", "scenes, pull 2"}
    assert measured["real lists"]["2"]["swaps"] == 40
    assert module.main(["--data", str(tmp_path / "none")]) == 2
