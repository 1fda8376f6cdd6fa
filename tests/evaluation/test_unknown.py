"""The report's account of photographs that are unlike those of training, and of the percentages of tags."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tagrank import Annotator, TagRanker
from tagrank.data.manifest import Example
from tagrank.data.vocabulary import Vocabulary
from tagrank.evaluation.judgement import judge
from tagrank.evaluation.reliability_chart import draw_reliability
from tagrank.evaluation.report_html import ReportExample, write_report
from tagrank.features.labelled import LabelledImages
from tagrank.metrics import Calibration, reliability

TAGS = ("dog", "ball", "grass")


@pytest.fixture
def images() -> LabelledImages:
    lists = (("dog", "ball"), ("dog",), ("grass", "zebra"))
    examples = [Example(f"{i}.jpg", ("dog", "ball", "grass", "zebra"), lists) for i in range(6)]
    return LabelledImages(examples, torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))


def test_what_came_true_is_the_share_of_lists(images: LabelledImages) -> None:
    torch.manual_seed(0)
    annotator = Annotator(TagRanker(4, 3, max_length=3, embedding_size=4, hidden_size=4), Vocabulary(TAGS))
    ours = judge(annotator, images)
    scores = [s for ranking in annotator.rank(images.inputs, top_k=10) for s in ranking.scores]
    shares = {0: 2 / 3, 1: 1 / 3, 2: 1 / 3}
    truth = [shares[tag] for ranking in ours.rankings for tag in ranking]
    expected = reliability(scores, truth)
    assert ours.calibration is not None
    np.testing.assert_allclose(ours.calibration.observed, expected.observed)
    assert ours.calibration.counts.sum() == 18
    assert ours.calibration.error == pytest.approx(expected.error)
    annotator.calibration = Calibration(0.5, 2.0)
    again = judge(annotator, images)
    assert again.rankings == ours.rankings
    assert again.calibration is not None
    assert again.calibration.error != pytest.approx(expected.error)


def test_the_diagram_in_its_own_units() -> None:
    drawn = draw_reliability(reliability([0.05] * 90 + [0.5] * 10, [0.0] * 90 + [1.0] * 10))
    assert drawn is not None
    (small, _, _), *_, (large, _, _) = drawn["ticks"]  # type: ignore[misc]
    low, high = drawn["dots"]  # type: ignore[misc]
    assert low["x"] == pytest.approx(small + 0.05 * (large - small), abs=0.1)
    assert (low["y"], high["y"]) == (drawn["bottom"], drawn["top"])
    assert low["radius"] / high["radius"] == pytest.approx(3, abs=0.1)
    assert low["title"] == "90 tags with 5% on average: 0% were on a person’s list"
    assert (drawn["error"], drawn["count"]) == ("9.5%", 100)
    assert draw_reliability(reliability([], [])) is None


def page(path: Path, **options: object) -> str:
    cards = [
        ReportExample("horse.jpg", None, [], [], [], 0.5, unlike=0.9999),
        ReportExample("dog.jpg", None, [], [], [], 0.5, unlike=0.314),
        ReportExample("old.jpg", None, [], [], [], 0.5),
    ]
    rows: list[dict[str, float | str]] = [{"name": "ours", "ndcg@5": 0.5}]
    write_report(path, title="A report", summary={}, rows=rows, history=[], examples=cards, **options)  # type: ignore[arg-type]
    return path.read_text(encoding="utf-8")


def test_the_page(tmp_path: Path) -> None:
    html = page(tmp_path / "r.html", calibration=reliability([0.05] * 90 + [0.5] * 10, [0.0] * 90 + [1.0] * 10))
    cards = html.split('<figure class="card pair">')[1:]
    assert '<p class="unlike unknown">Unknown: 99% unlike</p>' in cards[0]
    assert '<p class="unlike">31% unlike</p>' in cards[1]
    assert "unlike" not in cards[2].split("</figure>")[0]
    assert html.count("the share of validation photographs that are nearer") == 1
    assert "over all 100 tags, is <strong>9.5%</strong>" in html
    assert 'id="calibration"' not in page(tmp_path / "r.html")
    assert math.isnan(ReportExample("a", None, [], [], [], 0.5).unlike)
