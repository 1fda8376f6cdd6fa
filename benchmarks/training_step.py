"""The ranker with the sizes of the default preset, checked against float64, and a step of its training in stages."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.contestants import TOLERANCE, error
from benchmarks.timing import Laps, Seconds
from tagrank import TagRanker
from tagrank.data.targets import ListTargets, encode_lists
from tagrank.ranker.presets import PRESETS
from tagrank.recurrence import trace

# As in Flickr8k: tags, tags of the longest list, lists per image, and how long these are.
TAGS, MAX_LENGTH, LISTS, LIST_LENGTHS = 124, 8, 5, (1, 1, 2, 2, 2, 2, 3, 3, 3, 4)
PRESET = PRESETS["default"]


def make_ranker(feature_size: int, backend: str) -> TagRanker:
    """A member of the default preset's ensemble, without its auxiliary loss; the same weights each time."""
    torch.manual_seed(0)
    options = PRESET.ranker_options() | {"auxiliary": 0.0}
    return TagRanker(feature_size, TAGS, max_length=MAX_LENGTH, backend=backend, **options).eval()


def make_batch(feature_size: int) -> tuple[Tensor, ListTargets]:
    """Features ``[B, D]`` and lists for a step of the default preset."""
    torch.manual_seed(0)
    lengths = torch.tensor(LIST_LENGTHS)[torch.randint(len(LIST_LENGTHS), (PRESET.batch_size, LISTS))].tolist()
    lists = [[torch.randperm(TAGS)[:length].tolist() for length in image] for image in lengths]
    return torch.rand(PRESET.batch_size, feature_size), encode_lists(lists, TAGS, MAX_LENGTH + 1)


def check(ranker: TagRanker, features: Tensor, lists: ListTargets) -> list[str]:
    """Compare probabilities and gradients with the eager loop in float64; return the kernels that ran."""

    def results(ranker: TagRanker, features: Tensor) -> list[Tensor]:
        gradients = torch.autograd.grad(ranker.loss(features, lists), list(ranker.parameters()))
        return [ranker.predict(features), *gradients]

    want = results(make_ranker(features.shape[1], "eager").double(), features.double())
    with trace() as kernels:
        deviation = error(results(ranker, features), want)
    if not deviation <= TOLERANCE[features.dtype]:
        raise SystemExit(f"WRONG: {ranker.lstm.backend}: relative error {deviation:.1e}")
    return sorted(set(kernels))


def training_step(ranker: TagRanker, features: Tensor, lists: ListTargets) -> Callable[[], Seconds]:
    """A function that makes a step like those of ``tagrank train``."""
    from tagrank.training.module import RankerModule

    # A schedule costs next to nothing.
    optimizer, _ = RankerModule(ranker.train(), replace(PRESET, schedule="constant"), references=[]).optimizer(1)
    laps = Laps()
    ranker.lstm.register_forward_pre_hook(lambda *_: laps.mark("forward, the rest"))
    ranker.lstm.register_forward_hook(lambda *_: laps.mark("forward, recurrence"))
    ranker.classifier.register_forward_hook(lambda *_: laps.mark("forward, the rest"))

    def run() -> Seconds:
        nonlocal laps
        laps = Laps()
        loss = ranker.loss(features, lists)
        laps.mark("loss")
        loss.backward()
        laps.mark("backward")
        optimizer.step()
        optimizer.zero_grad()
        laps.mark("optimizer")
        return laps.seconds

    return run
