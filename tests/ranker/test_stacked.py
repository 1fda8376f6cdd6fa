"""StackedRankers: the losses and gradients of all members at once are those of each member by itself."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tagrank.data.targets import IGNORE, ListTargets, encode_lists
from tagrank.ranker.dropout import dropout
from tagrank.ranker.ensemble import RankerEnsemble
from tagrank.ranker.share import WHOLE, Share
from tagrank.ranker.stacked import Span, StackedRankers
from tagrank.ranker.tag_ranker import TagRanker

#: The images with the longest lists first; the last has none.
LISTS = [[[0, 3, 1], [2]], [[1, 2], [3], [0]], [[4, 0]], [[]], []]
OPTIONS: dict[str, Any] = {"feature_size": 8, "num_tags": 5, "max_length": 5, "embedding_size": 6, "hidden_size": 7}
FULL: dict[str, Any] = OPTIONS | {
    "skip": True, "auxiliary": 0.5, "signed_root": True, "standardise": True, "activation": "relu", "bias": True,
}  # fmt: skip


def features() -> Tensor:
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def padded() -> ListTargets:
    """The lists, with rows that are none: three for each image."""
    lists = encode_lists(LISTS, 5, 6)
    targets = torch.full((15, 6), IGNORE)
    targets[torch.tensor([0, 1, 3, 4, 5, 6, 9])] = lists.targets
    return ListTargets(targets, torch.arange(5).repeat_interleave(3))


@pytest.mark.parametrize("options", [OPTIONS, FULL], ids=["paper", "default"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("spans", [[(5, 6)], [(1, 4), (2, 3), (2, 1)]], ids=["one span", "three spans"])
def test_losses_and_gradients_are_those_of_the_members(
    options: dict[str, Any], training: bool, spans: list[tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    model = RankerEnsemble(3, **options).double().train(training)
    model.standardise_by(features())
    alone = copy.deepcopy(model)
    stack = StackedRankers(model)
    losses = stack.losses(model.scale(features()), padded(), [Span(*span) for span in spans])
    torch.testing.assert_close(
        losses, torch.stack([m.loss(features(), encode_lists(LISTS, 5, 6)) for m in alone.rankers()])
    )
    losses.sum().backward()
    stack.hand_out_gradients()
    for mine, member in zip(model.rankers(), alone.rankers(), strict=True):
        member.loss(features(), encode_lists(LISTS, 5, 6)).backward()
        for (name, ours), theirs in zip(mine.named_parameters(), member.parameters(), strict=True):
            want = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
            got = torch.zeros_like(ours) if ours.grad is None else ours.grad
            torch.testing.assert_close(got, want, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("members", [1, 3])
def test_evaluates_as_the_model_does(members: int) -> None:
    torch.manual_seed(0)
    model = RankerEnsemble(members, **FULL).double().eval()
    lists = encode_lists(LISTS, 5, 6)
    losses, p = StackedRankers(model).evaluate(model.scale(features()), padded())
    torch.testing.assert_close(p, model.predict(features()))
    torch.testing.assert_close(losses.mean(), model.loss(features(), lists))


def test_a_single_ranker_and_its_stack_share_their_parameters() -> None:
    torch.manual_seed(0)
    ranker = TagRanker(**FULL).double()
    before = {name: value.clone() for name, value in ranker.state_dict().items()}
    stack = StackedRankers(ranker)
    assert all(torch.equal(value, before[name]) for name, value in ranker.state_dict().items())
    spans = [Span(5, 6)]
    ranker.eval()
    first = stack.losses(ranker.scale(features()), padded(), spans)
    with torch.no_grad():  # as an optimizer does
        for parameter in ranker.parameters():
            parameter.mul_(0.5)
    second = stack.losses(ranker.scale(features()), padded(), spans)
    assert not torch.equal(first, second)
    torch.testing.assert_close(second[0], ranker.loss(features(), encode_lists(LISTS, 5, 6)))


def test_lists_of_no_image() -> None:
    """Validation images may have no tag of the vocabulary."""
    ranker = TagRanker(**FULL).double().eval()
    nothing = ListTargets(torch.full((5, 6), IGNORE), torch.arange(5))
    assert StackedRankers(ranker).losses(ranker.scale(features()), nothing, [Span(5, 6)]).tolist() == [0.0]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_each_element_as_often(rate: float) -> None:
    torch.manual_seed(0)
    x = torch.full((401, 503), 2.0, requires_grad=True)
    y = dropout(x, rate)
    dropped = y == 0
    assert float(dropped.double().mean()) == pytest.approx(rate, abs=5 * (0.25 / x.numel()) ** 0.5)
    torch.testing.assert_close(y[~dropped], torch.full((int((~dropped).sum()),), 2 / (1 - rate)), rtol=1e-3, atol=0)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient == 0, dropped)
    # Four elements share a random number, but none depends on another.
    flat = dropped.view(-1)[: x.numel() // 4 * 4].view(-1, 4).double()
    correlation = torch.corrcoef(flat.T) - torch.eye(4)
    assert float(correlation.abs().max()) < 5 / len(flat) ** 0.5


def test_dropout_of_nearly_everything() -> None:
    y = dropout(torch.ones(1000), 1 - 1e-9)
    assert set(y.tolist()) <= {0.0, 2.0**16}


def test_dropout_that_does_nothing() -> None:
    x = torch.randn(3, 4)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0) is x


@pytest.mark.parametrize("size", [2, 3, 7])
def test_the_shares_of_processes_together_are_the_whole(size: int) -> None:
    """Losses, gradients, and what dropout drops; with seven processes some have no row."""
    torch.manual_seed(0)
    model = RankerEnsemble(3, **FULL | {"dropout": 0.5, "hidden_dropout": 0.3}).double()
    scaled, lists = model.scale(features()), padded()
    spans = [Span(1, 4), Span(2, 3), Span(2, 1)]

    def shared(share: Share) -> tuple[Tensor, list[Tensor]]:
        part = copy.deepcopy(model)
        stack = StackedRankers(part)
        rows = share.rows(0, 5)
        targets = lists.targets.view(5, 3, 6)[rows]
        index = torch.arange(len(targets)).repeat_interleave(3)
        here = ListTargets(targets.reshape(-1, 6), index)
        torch.manual_seed(1)
        losses = stack.losses(scaled[rows], here, spans, share, lists.there.sum())
        drawn = torch.rand(())
        losses.sum().backward()
        stack.hand_out_gradients()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in part.parameters()]
        return torch.cat([losses.detach(), drawn.view(1).double()]), gradients

    whole, gradients = shared(WHOLE)
    parts = [shared(Share(rank, size)) for rank in range(size)]
    torch.testing.assert_close(sum(losses[:3] for losses, _ in parts), whole[:3])
    assert {float(losses[3]) for losses, _ in parts} == {float(whole[3])}, "all have drawn as many numbers"
    for together, gradient in zip(zip(*(g for _, g in parts), strict=True), gradients, strict=True):
        torch.testing.assert_close(sum(together), gradient)
