"""RankerEnsemble mixes the lists of its members, and trains each member as if it were the only one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tagrank.data.targets import encode_lists
from tagrank.ranker.ensemble import RankerEnsemble, build_ranker
from tagrank.ranker.tag_ranker import TagRanker

LISTS = [[[0, 3, 1], [2]], [[4, 0]], [[1, 2, 3], [3], [0]]]
OPTIONS: dict[str, Any] = {
    "feature_size": 8, "num_tags": 5, "max_length": 3, "embedding_size": 6, "hidden_size": 7, "skip": True,
    "auxiliary": 0.5, "signed_root": True, "standardise": True, "activation": "relu",
}  # fmt: skip


def make(members: int = 3, seed: int = 0) -> RankerEnsemble:
    torch.manual_seed(seed)
    return RankerEnsemble(members, **OPTIONS).double()


def features(batch: int = 3) -> Tensor:
    return torch.randn(batch, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_list_of_the_ensemble_is_by_a_member_drawn_at_random() -> None:
    model = make().eval()
    for member in model.members:  # lists of different lengths
        torch.nn.init.normal_(member.classifier.bias, std=2)
    tables = [member.predict(features()) for member in model.members]
    got = model.predict(features())
    torch.testing.assert_close(got.sum(-1), torch.ones(3, 4).double())
    for image in range(3):
        reached = torch.tensor([[float((1 - p[image, :t, -1]).prod()) for t in range(4)] for p in tables]).double()
        at = torch.stack([p[image] for p in tables])
        marginal = (reached.unsqueeze(-1) * at).mean(0)
        ours = torch.tensor([float((1 - got[image, :t, -1]).prod()) for t in range(4)]).double()
        torch.testing.assert_close(ours.unsqueeze(-1) * got[image], marginal)


def test_each_member_learns_as_without_the_others() -> None:
    model = make()
    encoded = encode_lists(LISTS, 5, model.steps)
    loss = model.loss(features(), encoded)
    torch.testing.assert_close(loss, sum(m.loss(features(), encoded) for m in model.members) / 3)
    loss.backward()
    for member in model.members:
        single = TagRanker(**OPTIONS).double()
        single.load_state_dict(member.state_dict())
        single.loss(features(), encoded).backward()
        for ours, theirs in zip(member.parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(3 * ours.grad, theirs.grad)


def test_members_differ_but_start_from_the_same_data() -> None:
    model = make()
    model.standardise_by(features(20))
    model.start_at_frequencies(encode_lists(LISTS, 5, model.steps))
    first, second = model.members[0].state_dict(), model.members[1].state_dict()
    assert not torch.equal(first["embedding.weight"], second["embedding.weight"])
    for name in ("feature_mean", "feature_deviation", "classifier.bias"):
        assert torch.equal(first[name], second[name])
    assert first["feature_mean"].abs().min() > 0


def test_config_builds_the_same_model() -> None:
    model = make(2)
    twin = build_ranker(model.config()).double()
    assert isinstance(twin, RankerEnsemble)
    twin.load_state_dict(model.state_dict())
    assert twin.config() == model.config()
    torch.testing.assert_close(twin.eval().predict(features()), model.eval().predict(features()))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="members: expected a positive int, got 0"):
        RankerEnsemble(0, **OPTIONS)
    with pytest.raises(ValueError, match="feedback: expected False in an ensemble, got True"):
        RankerEnsemble(2, **OPTIONS, feedback=True)
    with pytest.raises(TypeError, match="colour"):
        build_ranker({**OPTIONS, "colour": "red"})
