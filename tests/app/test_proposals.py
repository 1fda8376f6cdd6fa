"""What the page shows of a list, against what the annotator says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tagrank import Annotator, TagRanker
from tagrank.app.proposals import MOST, SHARES, propose
from tagrank.data.vocabulary import Vocabulary
from tagrank.features.extraction import all_readable, extract_features
from tagrank.options import ListOptions


@pytest.fixture(scope="module")
def features(annotator: Annotator, world: Path) -> Tensor:
    ((_, row),) = all_readable(extract_features(annotator.backbone(), [world / "photos" / "a.jpg"]))
    return row


def test_a_list_that_nobody_began_is_the_models(annotator: Annotator, features: Tensor, world: Path) -> None:
    proposal = propose(annotator, features)
    tags = annotator.annotate(world / "photos" / "a.jpg")
    assert list(proposal.listed) == tags
    assert (proposal.unlike, proposal.unknown) == (tags.unlike, False)
    assert 0 < tags.unlike < 0.99
    assert proposal.accepted == ()
    longer = annotator.annotate(world / "photos" / "a.jpg", top_k=MOST)
    assert [tag.tag for tag in (*proposal.listed, *proposal.further)] == [tag.tag for tag in longer]
    assert [tag.rank for tag in (*proposal.listed, *proposal.further)] == list(range(1, MOST + 1))


def test_accepted_tags_change_the_rest(annotator: Annotator, features: Tensor) -> None:
    accepted = ["cat", "salt, pepper"]
    proposal = propose(annotator, features, accepted)
    (suggestion,) = annotator.complete(features[None], accepted)
    assert proposal.accepted == tuple(accepted)
    assert list(proposal.listed) == list(suggestion)
    shown = [tag.tag for tag in (*proposal.listed, *proposal.further)]
    assert len(shown) == MOST == len({*shown} - {*accepted})
    assert [tag.rank for tag in (*proposal.listed, *proposal.further)] == list(range(3, MOST + 3))
    assert proposal.reads_accepted
    other = propose(annotator, features, ["salt, pepper", "cat"])
    assert [tag.score for tag in other.listed] != [tag.score for tag in proposal.listed], "the order is read"


def test_each_position_follows_the_tags_before_it(annotator: Annotator, features: Tensor) -> None:
    proposal = propose(annotator, features, ["cat"])
    named = ["cat", *(tag.tag for tag in proposal.listed)]
    assert len(proposal.positions) == min(len(named) + 1, annotator.ranker.steps)
    for number, position in enumerate(proposal.positions, 1):
        (told,) = annotator.complete(features[None], named[: number - 1], top_k=SHARES)
        assert position.number == number
        assert [share.tag for share in position.shares] == [tag.tag for tag in told.next]
        assert [share.probability for share in position.shares] == pytest.approx([t.probability for t in told.next])
        assert position.end == pytest.approx(told.end)
        total = position.end + position.others + sum(share.probability for share in position.shares)
        assert total == pytest.approx(1)
        here = [share.tag for share in position.shares if share.here]
        assert here in ([], named[number - 1 : number])
    assert any(share.here for position in proposal.positions for share in position.shares)


def test_more_accepted_tags_than_any_list_has(annotator: Annotator, features: Tensor) -> None:
    tags = annotator.vocabulary.tags
    proposal = propose(annotator, features, tags[:9])
    assert len(proposal.positions) == annotator.ranker.steps
    assert {tag.tag for tag in (*proposal.listed, *proposal.further)} == {*tags[9:]}
    everything = propose(annotator, features, tags)
    assert everything.listed == everything.further == ()


def test_a_model_that_only_leaves_them_out(annotator: Annotator, features: Tensor) -> None:
    alone = Annotator(annotator.ranker, annotator.vocabulary)
    proposal = propose(alone, features, ["cat"])
    assert not proposal.reads_accepted
    assert proposal.unlike is None
    assert "cat" not in [tag.tag for tag in (*proposal.listed, *proposal.further)]
    # Its positions do not depend on each other.
    assert proposal.positions[0].end == pytest.approx(float(alone.probabilities(features[None])[0, 0, -1]))


def test_a_model_with_feedback(features: Tensor) -> None:
    torch.manual_seed(1)
    ranker = TagRanker(len(features), 5, max_length=3, embedding_size=8, hidden_size=8, feedback=True)
    annotator = Annotator(ranker, Vocabulary(tuple("vwxyz")))
    proposal = propose(annotator, features)
    assert {tag.tag for tag in (*proposal.listed, *proposal.further)} == {*"vwxyz"}
    assert propose(annotator, features, ["y"]).reads_accepted


def test_options_say_what_is_shown(annotator: Annotator, features: Tensor) -> None:
    lists = replace(ListOptions(), exclude=("dog", "sky"), synonyms={"animal": ["cat", "fox", "owl"]})
    proposal = propose(annotator, features, ["animal"], annotator.rank_options(lists))
    shown = {tag.tag for tag in (*proposal.listed, *proposal.further)}
    assert shown == {*annotator.vocabulary.tags} - {"dog", "sky", "cat", "fox", "owl"}
