"""The table of everyone at everything: who is tuned by what, and whether each column measures what it says."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from tagrank.annotator import Annotator
from tagrank.data.manifest import Example, merge_lists
from tagrank.data.vocabulary import Vocabulary
from tagrank.evaluation import contest as module
from tagrank.evaluation.contest import CANDIDATES, above, best_threshold, contest
from tagrank.evaluation.judgement import Row
from tagrank.features.labelled import LabelledImages
from tagrank.metrics import evaluate_lengths, summarise
from tagrank.ranker.presets import Preset
from tagrank.training.completing import fit_completer
from tagrank.training.fit import fit_ranker

VOCABULARY = Vocabulary([*"abcdefgh"])
PRESET = Preset(embedding_size=16, hidden_size=16, bias=True, skip=True, learning_rate=0.03, batch_size=32, epochs=12)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(count: int, seed: int) -> LabelledImages:
    """The image says whether a or b is likely to come first. a is followed by c e g, b by d f."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(count, 8, generator=generator)
    examples = []
    for i, row in enumerate(features):
        firsts = (torch.rand(3, generator=generator) < 0.2 + 0.6 * (row[0] > 0.5)).tolist()
        lists = tuple(tuple("aceg" if first else "bdf") for first in firsts)
        examples.append(Example(f"{i}.png", merge_lists(lists), lists))
    return LabelledImages(examples, features)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    train, val, test = images(300, 0), images(60, 1), images(80, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tagrank.evaluation.baselines.MIN_STEPS", 60)
        patch.setattr(module, "CANDIDATES", {name: made[:2] for name, made in CANDIDATES.items()})
        ranker = fit_ranker(train, val, VOCABULARY, PRESET, tmp_path_factory.mktemp("run"))
        annotator = Annotator(ranker, VOCABULARY, completer=fit_completer(train, VOCABULARY, PRESET))
        return contest(annotator, train, val, test, PRESET, progress=False)


def test_all_are_judged_by_everything(rows: list[Row]) -> None:
    assert [row["name"] for row in rows] == [
        "tagrank, headline",
        "frequency prior",
        "nearest neighbours",
        "linear classifier",
        "two-layer classifier",
        "captioning LSTM, expected gain",
    ]
    keys = {"ndcg@1", "ndcg@5", "first_tag", "list_f1", "length_error", "next_tag@2", "next_tag@3", "next_tag@4"}
    for row in rows:
        assert keys <= row.keys()
        for key in keys:
            low, high = row["intervals"][key]
            assert low <= row[key] <= high, (row["name"], key)


def test_the_columns_tell_what_each_can_do(rows: list[Row]) -> None:
    ours, prior, *seeing = rows
    # The first tag says everything of what follows. All read it: ours, or by co-occurrence, or in neighbours' lists.
    for row in rows:
        assert row["next_tag@2"] == row["next_tag@3"] == 1.0, row["name"]
    for row in (ours, *seeing):
        assert row["first_tag"] > prior["first_tag"] + 0.05, row["name"]
    # Of lists of three or four tags none is off by more than one, whichever list it is.
    assert ours["length_error"] <= 1.0


def test_the_threshold_is_that_of_the_best_lists() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(40, 6, generator=generator)
    lists = [[[tag for tag in range(6) if row[tag] > 0.7] or [int(row.argmax())]] for row in values]
    threshold = best_threshold(values, lists)
    assert threshold == pytest.approx(0.7, abs=0.05)

    def f1(at: float) -> float:
        return summarise(evaluate_lengths(above(values, at), lists))["list_f1"]

    assert f1(threshold) > 0.97
    assert f1(threshold) >= max(f1(at) for at in (0.1, 0.3, 0.5, 0.9))


def test_tags_above_a_threshold_are_ranked_and_at_least_one() -> None:
    values = torch.tensor([[0.2, 0.9, 0.5], [0.1, 0.3, 0.3], [0.5, 0.5, 0.5]])
    assert above(values, 0.5) == [[1, 2], [1], [0, 1, 2]]


class Fixed:
    """A baseline whose order is given."""

    name = "fixed"

    def __init__(self, order: Sequence[int]) -> None:
        self._order = list(order)

    def fit(self, features: Tensor, lists_per_image: object, num_tags: int, seed: int = 0) -> None:
        pass

    def scores(self, features: Tensor) -> Tensor:
        raise NotImplementedError

    def rank(self, features: Tensor, top_k: int | None = None) -> list[list[int]]:
        return [self._order[:top_k]] * len(features)


def test_the_best_candidate_is_the_best_on_the_validation_images() -> None:
    candidates = [Fixed([2, 1, 0]), Fixed([0, 1, 2]), Fixed([0, 2, 1])]
    assert module._best(candidates, torch.zeros(2, 1), [[0, 1], [0, 1, 2]]) is candidates[1]
