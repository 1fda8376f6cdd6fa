"""Which tags a list may show: merged probabilities against the sum over the merged lists, and wrong options."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tagrank.data.vocabulary import Vocabulary
from tagrank.decode import OutputTags, decode, read_synonyms, read_thresholds
from tagrank.errors import InputError

VOCABULARY = Vocabulary(["man", "dog", "woman", "ball", "puppy"])
# First position: man .3, woman .35, dog .3, END .05. Second position: ball .5, dog .2, END .3. Third: END.
P = torch.tensor([[[0.30, 0.30, 0.35, 0.0, 0.0, 0.05], [0.0, 0.2, 0.0, 0.5, 0.0, 0.3], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]])


def shown(output: OutputTags, **options: Any) -> list[tuple[str, float]]:
    (ranking,) = decode(P, output=output, **options)
    return [(output.vocabulary.tag(v), score) for v, score in zip(*ranking, strict=True)]


@pytest.mark.parametrize("decoder", ["greedy", "assignment", "expected_gain"])
def test_synonyms_add_up(decoder: str) -> None:
    output = OutputTags(VOCABULARY, synonyms={"person": ["man", "woman"], "dog": ["puppy"]})
    ranked = shown(output, decoder=decoder, top_k=3)
    order = ["person", "dog", "ball"] if decoder == "expected_gain" else ["person", "ball", "dog"]
    assert [tag for tag, _ in ranked] == order
    # Scores. person: .65, first position. dog: .3 there, or .65 for a person there and then .2. ball: .95 * .5.
    assert dict(ranked) == pytest.approx({"person": 0.65, "ball": 0.95 * 0.5, "dog": 0.3 + 0.65 * 0.2})


def test_a_name_outside_the_vocabulary_stands_at_its_first_member() -> None:
    output = OutputTags(VOCABULARY, synonyms={"person": ["woman", "man"]})
    assert output.vocabulary.tags == ("person", "dog", "woman", "ball", "puppy")
    assert output.group.tolist() == [0, 1, 0, 2, 3]
    assert output.tags.tolist() == [0, 1, 3, 4]
    assert output.rename(["ball", "woman", "man", "sky"]) == ("ball", "person", "sky")


def test_a_name_of_the_vocabulary_keeps_its_place() -> None:
    output = OutputTags(VOCABULARY, synonyms={"woman": ["man", "woman"]})
    assert output.group.tolist() == [1, 0, 1, 2, 3]
    assert output.rename(["man", "woman"]) == ("woman",)


def test_spellings_of_a_tag() -> None:
    one, two = "caf\u00e9", "cafe\u0301"
    output = OutputTags(
        Vocabulary([one, "dog", "bar"]), include=[two], thresholds={f"{two} ": 0.5}, synonyms={two: ["bar "]}
    )
    assert output.vocabulary.tags[0] == one
    assert output.group.tolist() == [0, -1, 0]
    assert output.index("include", two) == 0
    for option in ("synonyms", "thresholds"):
        with pytest.raises(InputError, match=f"{option}: expected each name once, got '{one}' in two spellings"):
            OutputTags(Vocabulary([one, "dog"]), **{option: {one: ["dog"], two: ["dog"]}})


def test_include_and_exclude() -> None:
    assert [tag for tag, _ in shown(OutputTags(VOCABULARY, include=["dog", "ball"]), top_k=9)] == ["dog", "ball"]
    output = OutputTags(VOCABULARY, exclude=["dog", "person"], synonyms={"person": ["man", "woman"]})
    assert [tag for tag, _ in shown(output, top_k=1)] == ["ball"]
    # Only "ball" and "puppy" are left. The expected length is 0.475, but a list has at least one tag.
    assert len(shown(output)) == 1
    everything = OutputTags(VOCABULARY)
    (plain,) = decode(P, top_k=5)
    assert [tag for tag, _ in shown(everything, top_k=5)] == [VOCABULARY.tag(v) for v in plain.tags]


def test_the_expected_length_counts_what_is_shown() -> None:
    p = torch.tensor([[[0.5, 0.5, 0.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]]])
    both = OutputTags(VOCABULARY)
    one = OutputTags(VOCABULARY, include=["man", "woman", "ball"])
    assert [len(r.tags) for r in decode(p, output=both)] == [2]
    assert [len(r.tags) for r in decode(p, output=one)] == [1]


def test_thresholds_per_tag() -> None:
    output = OutputTags(VOCABULARY, thresholds={"dog": 0.9, "ball": 0.1})
    scores = dict(shown(OutputTags(VOCABULARY), threshold=0.0))
    kept = [tag for tag, _ in shown(output, threshold=0.32)]
    assert kept == [tag for tag in scores if scores[tag] >= {"dog": 0.9, "ball": 0.1}.get(tag, 0.32)]
    assert "ball" in kept
    assert "dog" not in kept
    # Without a threshold for all tags, the model chooses the length.
    (own,) = decode(P)
    assert [tag for tag, _ in shown(output)] == [t for t in map(VOCABULARY.tag, own.tags) if t != "dog"]


def test_merging_is_a_sum_of_columns() -> None:
    output = OutputTags(VOCABULARY, exclude=["ball"], synonyms={"person": ["man", "woman"]})
    p = np.random.default_rng(0).dirichlet(np.ones(6), (2, 3))
    np.testing.assert_allclose(
        output.merge(p), np.stack([p[..., 0] + p[..., 2], p[..., 1], p[..., 4], p[..., 5]], axis=-1)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": ["dgo"]}, r"include: 'dgo' is not one of the model's 5 tags; did you mean 'dog'\?"),
        ({"exclude": ["zebra"]}, "exclude: 'zebra' is not one of the model's 5 tags$"),
        ({"exclude": VOCABULARY.tags}, "expected to leave at least one tag to show, got none"),
        ({"thresholds": {"dog": 1.5}}, r"thresholds: 'dog': expected a probability in \[0, 1\], got 1.5"),
        ({"thresholds": {"cow": 0.5}}, "thresholds: 'cow' is not one of"),
        ({"synonyms": {"person": ["men"]}}, r"synonyms of 'person': 'men' is not one of .* did you mean 'man'"),
        ({"synonyms": {"person": []}}, "synonyms: expected tags for 'person' other than itself, got none"),
        ({"synonyms": {"dog": ["dog"]}}, "synonyms: expected tags for 'dog' other than itself, got none"),
        ({"synonyms": {"a": ["man"], "b": ["man"]}}, "synonyms: expected one name for 'man', got 'a' and 'b'"),
        ({"synonyms": {"dog": ["puppy"], "animal": ["dog"]}}, "'dog' has synonyms and is itself a synonym of 'animal'"),
        (
            {"synonyms": {"a": ["man"]}, "exclude": ["man"]},
            "exclude: 'man' is shown as 'a', because of the synonyms; use that name",
        ),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OutputTags(VOCABULARY, **options)


@pytest.mark.parametrize(
    ("reader", "good", "bad"),
    [
        (read_synonyms, {"person": ["man"]}, [[], {"person": "man"}, {"person": [1]}]),
        (read_thresholds, {"dog": 0.5, "ball": 1}, [[0.5], {"dog": "high"}, {"dog": True}]),
    ],
)
def test_files(reader: Any, good: Any, bad: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(good))
    assert reader(path) == good
    for wrong in bad:
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=r"file\.json: expected "):
            reader(path)
    with pytest.raises(InputError, match="no such file"):
        reader(tmp_path / "none.json")
