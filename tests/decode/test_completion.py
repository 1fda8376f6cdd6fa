"""Lists that people began: against all lists of a tiny vocabulary, scored by the model's own forward pass."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tagrank import TagRanker
from tagrank.annotator import Annotator
from tagrank.data.targets import ListTargets, encode_lists
from tagrank.data.vocabulary import Vocabulary
from tagrank.decode import OutputTags
from tagrank.decode.completion import complete_lists, positions_after
from tagrank.errors import InputError
from tagrank.ranker.ensemble import RankerEnsemble

TAGS, LONGEST = 4, 3
VOCABULARY = Vocabulary(["ant", "bee", "cat", "dog"])
ALL = OutputTags(VOCABULARY)
ANT, BEE, CAT, DOG = range(TAGS)
VARIANTS: list[dict[str, Any]] = [
    {"feedback": True, "bias": True, "skip": True, "activation": "relu"},
    {"conditioning": "initial", "bias": True},
]


def make(options: dict[str, Any], seed: int = 0) -> TagRanker:
    torch.manual_seed(seed)
    model = TagRanker(5, TAGS, max_length=LONGEST, embedding_size=6, hidden_size=7, **options).double().eval()
    with torch.no_grad():  # an untrained model is nearly uniform
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def features(batch: int = 3) -> Tensor:
    return torch.randn(batch, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def after(model: TagRanker, image: Tensor, tags: tuple[int, ...], given: tuple[int, ...]) -> np.ndarray:
    """``[V + 1]``: what comes after these tags, by the forward pass, if the given tags cannot come again."""
    previous = torch.zeros(1, model.steps - 1, dtype=torch.int64)
    previous[0, : len(tags)] = torch.tensor(tags, dtype=torch.int64)
    p = model(image.unsqueeze(0), previous)[0, len(tags)].softmax(-1).detach().numpy().copy()
    p[list(given)] = 0
    return np.asarray(p / p.sum())


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("given", [(), (CAT,), (DOG, ANT), (ANT, DOG)])
def test_the_next_tag_is_the_models_without_those_given(options: dict[str, Any], given: tuple[int, ...]) -> None:
    model = make(options)
    found = complete_lists(model, features(), [given] * 3, "greedy", output=ALL, top_k=TAGS)
    for image, completion in zip(features(), found, strict=True):
        expected = after(model, image, given, given)
        assert completion.end == pytest.approx(expected[TAGS])
        order = [v for v in np.argsort(-expected[:TAGS], kind="stable").tolist() if v not in given]
        assert completion.next.tags == order
        assert completion.next.scores == pytest.approx(expected[order].tolist())
        assert sum(completion.next.scores) + completion.end == pytest.approx(1.0)


def test_the_order_of_the_given_tags_matters() -> None:
    one, other = (
        complete_lists(make(VARIANTS[0]), features(1), [given], "greedy", output=ALL)[0].end
        for given in ((DOG, ANT), (ANT, DOG))
    )
    assert abs(one - other) > 0.01


@pytest.mark.parametrize("options", VARIANTS)
def test_scores_are_probabilities_over_all_ways_to_go_on(options: dict[str, Any]) -> None:
    model, given = make(options), (CAT,)
    (completion,) = complete_lists(model, features(1), [given], "expected_gain", output=ALL, top_k=4, samples=4096)
    on_rest = np.zeros(TAGS)
    for n in range(model.steps - len(given) + 1):
        for rest in itertools.product((ANT, BEE, DOG), repeat=n):
            ways = [after(model, features(1)[0], (*given, *rest[:t]), given) for t in range(n)]
            p = math.prod(float(way[tag]) for way, tag in zip(ways, rest, strict=True))
            if n < model.steps - len(given):
                p *= float(after(model, features(1)[0], (*given, *rest), given)[TAGS])
            on_rest[list(set(rest))] += p
    assert sorted(completion.rest.tags) == [ANT, BEE, DOG]
    assert completion.rest.scores == pytest.approx(on_rest[completion.rest.tags].tolist(), abs=2e-3)


def test_greedy_goes_on_with_the_most_likely_tags() -> None:
    model = make(VARIANTS[0])
    (completion,) = complete_lists(model, features(1), [(BEE,)], "greedy", output=ALL, top_k=3)
    tags: tuple[int, ...] = (BEE,)
    for _ in range(3):
        p = after(model, features(1)[0], tags[: model.steps - 1], tags)
        tags = (*tags, int(p[:TAGS].argmax()))
    assert completion.rest.tags == list(tags[1:])


def test_without_feedback_the_given_tags_are_removed_from_the_positions_after() -> None:
    torch.manual_seed(0)
    model = RankerEnsemble(2, feature_size=5, num_tags=TAGS, max_length=LONGEST, embedding_size=6, hidden_size=7)
    model = model.double().eval()
    (completion,) = complete_lists(model, features(1), [(DOG, BEE)], "headline", output=ALL, top_k=4)
    expected = model.predict(features(1))[0, 2].numpy().copy()
    expected[[DOG, BEE]] = 0
    expected /= expected.sum()
    assert completion.end == pytest.approx(expected[TAGS])
    assert dict(zip(*completion.next, strict=True)) == pytest.approx({ANT: expected[ANT], CAT: expected[CAT]})
    assert sorted(completion.rest.tags) == [ANT, CAT]


def test_positions_beyond_the_longest_list_and_nothing_left() -> None:
    p = torch.tensor([[[0.5, 0.2, 0.3], [1.0, 0.0, 0.0]]])
    torch.testing.assert_close(positions_after(p, [[1]]), torch.tensor([[[1.0, 0.0, 0.0]]]))
    torch.testing.assert_close(positions_after(p, [[1], [0], [0]]), torch.tensor([[[0.0, 0.0, 1.0]]]))


@pytest.mark.parametrize("given", [(ANT, BEE, CAT, DOG), (DOG, CAT, BEE, ANT)])
@pytest.mark.parametrize("options", [VARIANTS[0], {}])
def test_when_all_tags_are_given_the_list_ends(options: dict[str, Any], given: tuple[int, ...]) -> None:
    decoder = "expected_gain"
    (completion,) = complete_lists(make(options), features(1), [given], decoder, output=ALL, top_k=2)
    assert completion.rest.tags == completion.next.tags == []
    assert completion.end == pytest.approx(1.0)


def test_a_list_that_is_likely_over_has_no_rest() -> None:
    model = make(VARIANTS[0])
    with torch.no_grad():
        model.classifier.bias[TAGS] = 30.0
    (completion,) = complete_lists(model, features(1), [(ANT,)], "expected_gain", output=ALL)
    assert completion.end > 0.99
    assert completion.rest.tags == []
    assert len(completion.next.tags) == 3
    (forced,) = complete_lists(model, features(1), [(ANT,)], "expected_gain", output=ALL, top_k=2)
    assert len(forced.rest.tags) == 2


def test_tags_that_are_not_shown_may_be_given_but_do_not_come() -> None:
    model = make(VARIANTS[0])
    (everything,) = complete_lists(model, features(1), [(CAT,)], "greedy", output=ALL, top_k=4)
    output = OutputTags(VOCABULARY, exclude=["cat", "dog"])
    (completion,) = complete_lists(model, features(1), [(CAT,)], "greedy", output=output, top_k=4)
    assert sorted(completion.rest.tags) == sorted(completion.next.tags) == [ANT, BEE]
    chances = dict(zip(*everything.next, strict=True))
    assert dict(zip(*completion.next, strict=True)) == pytest.approx({ANT: chances[ANT], BEE: chances[BEE]})
    assert completion.end == everything.end


def test_a_given_synonym_is_read_as_its_most_likely_tag_and_used_as_a_whole() -> None:
    model, image = make(VARIANTS[0]), features(1)
    output = OutputTags(VOCABULARY, synonyms={"insect": ["ant", "bee"]})
    (completion,) = complete_lists(model, image, [(output.index("given", "insect"),)], "greedy", output=output, top_k=4)
    likely = ANT if after(model, image[0], (), ())[ANT] > after(model, image[0], (), ())[BEE] else BEE
    expected = after(model, image[0], (likely,), (ANT, BEE))
    assert dict(zip(*completion.next, strict=True)) == pytest.approx({CAT: expected[CAT], DOG: expected[DOG]})


def test_thresholds_are_for_the_rest() -> None:
    model = make(VARIANTS[0])
    (whole,) = complete_lists(model, features(1), [(BEE,)], "expected_gain", output=ALL, top_k=4)
    limit = sorted(whole.rest.scores)[1]
    (cut,) = complete_lists(model, features(1), [(BEE,)], "expected_gain", output=ALL, top_k=4, threshold=limit)
    assert cut.rest.tags == [t for t, s in zip(*whole.rest, strict=True) if s >= limit]
    assert cut.next == whole.next


def test_follow_is_the_forward_pass() -> None:
    """Lists of different lengths for some of the images, in any order."""
    for options in VARIANTS:
        model = make(options)
        lists = [[[DOG], [ANT, CAT]], [], [[BEE, ANT]]]
        encoded = encode_lists(lists, TAGS, model.steps)
        backwards = ListTargets(encoded.targets.flip(0), encoded.image_index.flip(0))
        p = model.follow(features(), backwards)
        assert p.shape == (3, 3, TAGS + 1)
        tags = backwards.targets[:, :-1].clamp(min=0)
        expected = model(features()[backwards.image_index], tags).softmax(-1)[:, :3]
        torch.testing.assert_close(p[0], expected[0])
        torch.testing.assert_close(p[1], expected[1])
        torch.testing.assert_close(p[2, :2], expected[2, :2])  # END comes second


def test_one_beginning_for_all_or_one_for_each() -> None:
    annotator = Annotator(make(VARIANTS[0]), VOCABULARY)
    each = annotator.complete(features(), [["dog"], [], ["cat", "ant"]])
    assert [s.given for s in each] == [["dog"], [], ["cat", "ant"]]
    for suggestion, row in zip(each, features(), strict=True):
        (alone,) = annotator.complete(row.unsqueeze(0), suggestion.given)
        assert suggestion == alone
        assert suggestion.next == alone.next
        assert [tag.rank for tag in suggestion] == [len(suggestion.given) + 1 + i for i in range(len(suggestion))]
    assert annotator.complete(features()[:0], ["dog"]) == []


def test_the_completer_goes_on_and_the_ranker_does_not() -> None:
    torch.manual_seed(3)
    ranker = TagRanker(5, TAGS, max_length=LONGEST, embedding_size=6, hidden_size=7).double()
    alone = Annotator(ranker, VOCABULARY)
    both = Annotator(ranker, VOCABULARY, completer=make(VARIANTS[0]))
    assert (alone.reads_given, both.reads_given) == (False, True)
    assert alone.complete(features(1), ["dog"])[0].reads_given is False
    (suggestion,) = both.complete(features(1), ["dog"])
    assert suggestion.reads_given
    assert suggestion.end == pytest.approx(after(make(VARIANTS[0]), features(1)[0], (DOG,), (DOG,))[TAGS])
    assert both.rank(features(1)) == alone.rank(features(1))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["dgo"], "given: 'dgo' is not one of the model's 4 tags; did you mean 'dog'?"),
        (["dog", "cat", "dog"], "given: expected each tag once, got 'dog' twice"),
        ("dog", "given: expected a list of tags such as"),
        ([["dog"], ["cat"]], "given: expected a list of tags for each of 3 images, got 2"),
        ([["dog"], ["cat"], 3], "given: expected a list of tags such as"),
    ],
)
def test_beginnings_that_are_none(given: Any, reason: str) -> None:
    with pytest.raises(InputError) as error:
        Annotator(make(VARIANTS[0]), VOCABULARY).complete(features(), given)
    assert str(error.value).startswith(reason)


def test_completers_of_another_kind() -> None:
    ranker = TagRanker(5, TAGS, max_length=LONGEST)
    for completer in (ranker, TagRanker(5, TAGS + 1, max_length=LONGEST, feedback=True)):
        with pytest.raises(ValueError, match="completer: expected a model with feedback"):
            Annotator(ranker, VOCABULARY, completer=completer)
    with pytest.raises(InputError, match="this model reads its own tags: expected one of expected_gain, beam, greedy"):
        Annotator(ranker, VOCABULARY, completer=make(VARIANTS[0]).float()).complete(
            features().float(), ["dog"], decoder="headline"
        )
