"""TagRanker against the paper's equations written out by hand."""

import json
import math
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor

from tagrank import TagRanker
from tagrank.data.targets import encode_lists
from tagrank.decode import decode
from tagrank.ranker.config import RankerConfig, RankerOptions
from tagrank.ranker.ensemble import RankerEnsemble, build_ranker
from tagrank.recurrence import trace

LISTS = [[[0, 3, 1], [2]], [[4, 0]], [[1, 2, 3], [3], [0]]]


def make(seed: int = 0, **options: Any) -> TagRanker:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"max_length": 4, "embedding_size": 6, "hidden_size": 7}
    model = TagRanker(8, 5, **(sizes | options)).double()
    model.standardise_by(3 * torch.randn(20, 8, dtype=torch.float64) + 1)
    return model


def features(batch: int = 3) -> Tensor:
    return torch.randn(batch, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_hand(model: TagRanker, image: Tensor, previous: list[int]) -> Tensor:
    """Equations (1)-(9) for one image, step by step.

    Args:
        model: the model whose parameters to use.
        image: features ``[D]``.
        previous: the tags at all positions except the last; a model with feedback reads each at the next position.

    Returns:
        Log probabilities ``[S, V + 1]``.
    """
    w = dict(model.named_parameters())
    size = model.lstm.hidden_size
    if model.signed_root:
        image = torch.where(image < 0, -((-image).clamp(min=0) ** 0.5), image.clamp(min=0) ** 0.5)
    if model.standardise:
        image = (image - model.feature_mean) / model.feature_deviation
    embedded = w["embedding.weight"] @ image + w["embedding.bias"]
    if model.activation == "relu":
        embedded = embedded.clamp(min=0)
    h, c = torch.zeros(size).double(), torch.zeros(size).double()

    def step(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        gates = w["lstm.weight_ih_l0"] @ x + w["lstm.weight_hh_l0"] @ h
        if model.lstm.bias:
            gates = gates + w["lstm.bias_ih_l0"] + w["lstm.bias_hh_l0"]
        i, f, g, o = gates.view(4, size)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    if model.conditioning == "initial":
        h, c = step(embedded, h, c)
    rows = []
    for tag in [model.num_tags, *previous]:
        if model.conditioning == "initial":
            x = w["tag_embedding.weight"][tag]
        elif model.feedback:
            x = torch.cat([w["tag_embedding.weight"][tag], embedded])
        else:
            x = embedded
        h, c = step(x, h, c)
        logits = w["classifier.weight"] @ h + w["classifier.bias"]
        if "skip.weight" in w:
            logits = logits + w["skip.weight"] @ embedded
        rows.append(logits.log_softmax(-1))
    return torch.stack(rows)


VARIANTS = [
    {},
    {"bias": True, "activation": "relu"},
    {"feedback": True},
    {"conditioning": "initial", "bias": True},
    {"skip": True, "activation": "relu"},
    {"skip": True, "feedback": True, "signed_root": True, "standardise": True},
]


@pytest.mark.parametrize("options", VARIANTS)
def test_loss_is_equation_10(options: dict[str, Any]) -> None:
    model, images = make(**options), features()
    expected = torch.zeros(()).double()
    for image, lists in zip(images, LISTS, strict=True):
        for tags in lists:
            previous = (tags + [0] * model.steps)[: model.steps - 1]
            log_p = by_hand(model, image, previous)
            for t, tag in enumerate([*tags, model.num_tags]):
                expected = expected - log_p[t, tag]
    encoded = encode_lists(LISTS, model.num_tags, model.steps)
    got = model.loss(images, encoded, reduction="sum")
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(model.loss(images, encoded), expected / 6)
    # Each parameter has a gradient, which is the gradient of the equations.
    ours = torch.autograd.grad(got, list(model.parameters()))
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("options", VARIANTS)
def test_predict_is_equation_9_along_the_greedy_list(options: dict[str, Any]) -> None:
    model, images = make(**options), features()
    probabilities = model.predict(images)
    assert probabilities.shape == (3, 5, 6)
    for image, p in zip(images, probabilities, strict=True):
        used: list[int] = []
        for _ in range(model.steps - 1):
            at = by_hand(model, image, used)[-1].exp()
            used.append(max((v for v in range(5) if v not in used), key=lambda v: at[v].item()))
        torch.testing.assert_close(p, by_hand(model, image, used).exp())
        assert decode(p.unsqueeze(0), "greedy", top_k=4)[0].tags == used


def test_what_standardise_by_measures() -> None:
    model, images = make(signed_root=True, standardise=True), 4 * features(9) + 1
    model.standardise_by(images)
    rooted = np.sign(images.numpy()) * np.sqrt(np.abs(images.numpy()))
    np.testing.assert_allclose(model.feature_mean.numpy(), rooted.mean(0), rtol=1e-6)
    deviation = np.sqrt(((rooted - rooted.mean(0)) ** 2).mean())
    np.testing.assert_allclose(model.feature_deviation.item(), deviation, rtol=1e-6)
    with pytest.raises(ValueError, match=r"features: expected shape \[B, D\] with D = 8, got \[2, 9\]"):
        model.standardise_by(torch.zeros(2, 9))


@pytest.mark.parametrize("skip", [True, False])
def test_starts_at_the_frequencies(skip: bool) -> None:
    model = make(skip=skip, auxiliary=1.0)
    model.start_at_frequencies(encode_lists(LISTS, 5, model.steps))
    # The number of times that tags 0 to 4 and END occur in LISTS, plus one.
    counts = np.array([3, 2, 2, 3, 1, 6]) + 1
    want = torch.from_numpy(counts / counts.sum()).expand(3, model.steps, 6)
    torch.testing.assert_close(model.eval().predict(features()), want)
    assert model.tag_classifier is not None
    start = model.tag_classifier.bias.sigmoid()
    # Of three images, the second has one list, and tag 4 is first in it. Tag 1 is third in one of two lists of the
    # first image, and first in one of three lists of the third image.
    torch.testing.assert_close(start[4].item(), 1 / 3, rtol=1e-6, atol=0)
    torch.testing.assert_close(start[1].item(), (0.5 / 2 + 1 / 3) / 3, rtol=1e-6, atol=0)


def test_the_auxiliary_loss_counts_only_in_training() -> None:
    model, images = make(auxiliary=0.7, activation="relu"), features()
    encoded = encode_lists(LISTS, 5, model.steps)
    w = dict(model.named_parameters())
    weights = torch.zeros(3, 5).double()  # of LISTS
    for image, lists in enumerate(LISTS):
        for tags in lists:
            for t, tag in enumerate(tags):
                weights[image, tag] += 1 / math.log2(2 + t) / len(lists)
    odds = (images @ w["embedding.weight"].T + w["embedding.bias"]).clamp(min=0) @ w["tag_classifier.weight"].T
    p = torch.sigmoid(odds + w["tag_classifier.bias"])
    tags = -(weights * p.log() + (1 - weights) * (1 - p).log()).sum()
    for reduction, images_in in (("sum", 1), ("mean", 3)):
        with_tags = model.train().loss(images, encoded, reduction)  # type: ignore[arg-type]
        without = model.eval().loss(images, encoded, reduction)  # type: ignore[arg-type]
        torch.testing.assert_close(with_tags - without, 0.7 * tags / images_in)


def test_hidden_states_can_have_another_dropout() -> None:
    model = make(dropout=0.0, hidden_dropout=0.5)
    assert torch.equal(model._embed(features()), model._embed(features()))
    assert not torch.equal(model(features()), model(features()))


def test_a_configuration_without_the_newer_options() -> None:
    model = make()
    newer = ("hidden_dropout", "skip", "auxiliary", "signed_root", "standardise")
    config = {name: value for name, value in model.config().items() if name not in newer}
    twin = build_ranker(config)
    assert isinstance(twin, TagRanker)
    twin.load_state_dict(model.state_dict())
    assert twin.config() == model.config()


def test_without_feedback_the_recurrence_runs_once_per_image() -> None:
    model = make()
    many = [[[0, 1], [1], [2], [3, 4], [0]]]
    with trace() as kernels:
        model.loss(features(1), encode_lists(many, 5, model.steps))
    assert kernels == ["native.forward"]
    with pytest.raises(ValueError, match="tags: expected None because feedback=False"):
        model(features(), torch.zeros(3, 4, dtype=torch.int64))


def test_the_paper_model_has_no_biases_in_the_gates() -> None:
    names = {name for name, _ in make().named_parameters()}
    assert names == {
        "embedding.weight", "embedding.bias", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "classifier.weight",
        "classifier.bias",
    }  # fmt: skip


@pytest.mark.parametrize("options", VARIANTS)
def test_config_builds_the_same_model(options: dict[str, Any]) -> None:
    model = make(dropout=0.25, **options)
    twin = TagRanker(**model.config()).double()
    twin.load_state_dict(model.state_dict())
    assert twin.config() == model.config()
    torch.testing.assert_close(twin.eval().predict(features()), model.eval().predict(features()))


def test_dropout_acts_only_in_training() -> None:
    model = make(dropout=0.5)
    assert not torch.equal(model(features()), model(features()))
    model.eval()
    torch.testing.assert_close(model(features()), model(features()), rtol=0, atol=0)


def test_overfits_lists_whose_order_differs_by_image() -> None:
    model = make(hidden_size=32).float()
    images, lists = torch.eye(3, 8), [[[0, 1, 2]], [[2, 1, 0]], [[3]]]
    encoded = encode_lists(lists, 5, model.steps)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        model.loss(images, encoded).backward()
        optimizer.step()
    for decoder in ("greedy", "assignment", "expected_gain"):
        assert [r.tags for r in decode(model.predict(images), decoder)] == [x[0] for x in lists]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "hidden_size: expected a positive int, got 0"),
        ({"max_length": 2.5}, "max_length: expected a positive int, got 2.5"),
        ({"conditioning": "always"}, "conditioning: expected 'every_step' or 'initial', got 'always'"),
        ({"activation": "gelu"}, "activation: expected None or 'relu', got 'gelu'"),
        ({"dropout": 1.0}, r"dropout: expected a probability in \[0, 1\), got 1.0"),
        ({"hidden_dropout": -0.1}, r"hidden_dropout: expected a probability in \[0, 1\), got -0.1"),
        ({"auxiliary": -1.0}, "auxiliary: expected a finite weight of at least 0, got -1.0"),
        ({"skip": True, "conditioning": "initial"}, "skip: expected False with conditioning='initial', got True"),
    ],
)
def test_bad_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_bad_features() -> None:
    model = make()
    with pytest.raises(ValueError, match=r"lists: expected targets of shape .* S = 5, got \[6, 1\]"):
        model.loss(features(), encode_lists(LISTS, 5, 1))
    with pytest.raises(ValueError, match=r"lists: .* got \[0, 5\]"):
        model.loss(features(), encode_lists([[], [], []], 5, 5))
    with pytest.raises(ValueError, match=r"tags: expected shape \[B, S - 1\] = \[3, 4\], got \[3, 9\]"):
        make(feedback=True)(features(), torch.zeros(3, 9, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"features: expected shape \[B, D\] with D = 8, got \[3, 9\]"):
        make().predict(torch.zeros(3, 9))
    with pytest.raises(ValueError, match="tags: expected the previous tags because feedback=True, got None"):
        make(feedback=True)(features())


def test_the_keywords_for_type_checkers_are_the_fields() -> None:
    assert list(get_type_hints(RankerOptions)) == list(get_type_hints(RankerConfig))
    assert get_type_hints(RankerOptions) == get_type_hints(RankerConfig)
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        make(colour="red")


def test_any_integer_and_any_number() -> None:
    """NumPy's, too: sizes often come from a shape or a table. The configuration has Python's, which JSON takes."""
    sizes = {"feature_size": 6, "num_tags": 4, "max_length": 3, "embedding_size": 5, "hidden_size": 7}
    ranker = TagRanker(**{name: np.int64(size) for name, size in sizes.items()}, dropout=np.float64(0.25))
    assert json.loads(json.dumps(ranker.config())) == TagRanker(**sizes, dropout=0.25).config()
    ensemble = RankerEnsemble(np.int32(2), **sizes)
    assert json.loads(json.dumps(ensemble.config())) == RankerEnsemble(2, **sizes).config()
