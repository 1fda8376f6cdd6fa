"""How much the next tag of a person's list depends on the tag before it: real lists beside those of drawn scenes.

Two people who look at the same image have each named some tags, and go on with the tags ``b1`` and ``b2``. If what is
named next depended only on the image, and on not repeating a tag, then both would be as likely to go on with the tag of
the other: ``p(b1) p(b2)``, each divided by the share of the tags that are left, is the same product either way. The
image cancels, so no model of it is needed. For the swaps that change something and repeat no tag, a logistic model of
the last tags ``a1`` and ``a2`` before them,

    P(the lists are not swapped) = sigmoid(w[a1, b1] + w[a2, b2] - w[a1, b2] - w[a2, b1]),

is fitted to other images (five parts, ridge penalty). Its *information* is log 2 less its negative log-likelihood, in
nats a swap: 0 if nothing depends on the tag before, at most log 2. Its *hits* are the share of swaps that it sees
through; 0.5 is chance. Both are bounds from below, because the weights are estimated.

The real lists are those of ``train.jsonl`` in a folder. More people look at a scene here than in the data set, so that
there are about as many swaps. ``agreement`` is how often two people name the same tag first.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import describe, write
from benchmarks.quality import DEFAULT_DATA
from tagrank.data.manifest import read_manifest
from tagrank.data.scenes import draw_scene
from tagrank.data.scenes.composition import PULL, annotate
from tagrank.errors import InputError

RESULT = Path(__file__).parent / "results" / "list-dependence.json"
POSITIONS = (2, 3, 4)
PENALTIES = (1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
PARTS = 5
PEOPLE = 10
SEED = 1_000
"""Of the scenes: not the series that the demonstration draws."""

Lists = Sequence[Sequence[Sequence[str]]]
"""For each image the list of each person."""


class Swap(NamedTuple):
    """Two people's lists at one position: the image, and of each person the tag before and the tag there."""

    image: int
    before: tuple[str, str]
    there: tuple[str, str]


def swaps(lists: Lists, position: int) -> tuple[list[Swap], int]:
    """The swaps at a position (the first is 1) that change something and repeat no tag, and how many were tried."""
    found, tried = [], 0
    for image, people in enumerate(lists):
        for one, other in combinations([tags[:position] for tags in people if len(tags) >= position], 2):
            tried += 1
            changes = one[-1] != other[-1] and one[-2] != other[-2]
            if changes and one[-1] not in other and other[-1] not in one:
                found.append(Swap(image, (one[-2], other[-2]), (one[-1], other[-1])))
    return found, tried


def agreement(lists: Lists) -> float:
    """How often two people name the same tag first."""
    return float(np.mean([a[0] == b[0] for people in lists for a, b in combinations(filter(len, people), 2)]))


def design(found: Sequence[Swap]) -> Tensor:
    """What the weights ``w`` of pairs of tags are multiplied with, ``[swaps, pairs]``, sparse."""
    pairs: dict[tuple[str, str], int] = {}
    entries = []
    for row, (_, (a1, a2), (b1, b2)) in enumerate(found):
        for pair, sign in (((a1, b1), 1.0), ((a2, b2), 1.0), ((a1, b2), -1.0), ((a2, b1), -1.0)):
            entries.append((row, pairs.setdefault(pair, len(pairs)), sign))
    rows, columns, signs = zip(*entries, strict=True)
    return torch.sparse_coo_tensor(
        torch.tensor([rows, columns]), torch.tensor(signs), (len(found), len(pairs)), check_invariants=True
    ).coalesce()


def fit(x: Tensor, penalty: float) -> Tensor:
    """The weights ``[pairs]`` with the least negative log-likelihood plus ``penalty / 2`` times their squares."""
    weights = torch.zeros(x.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.softplus(-(x @ weights)).sum() + penalty / 2 * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def information(found: Sequence[Swap], parts: int = PARTS) -> dict[str, float]:
    """Nats a swap, its standard error over images, and hits, of the penalty that does best."""
    x, image = design(found), np.array([swap.image for swap in found])
    part = torch.from_numpy(image % parts)
    best: dict[str, float] = {"nats": -math.inf}
    for penalty in PENALTIES:
        margins = torch.zeros(len(found))
        for held_out in range(parts):
            here = (part == held_out).nonzero().flatten()
            weights = fit(x.index_select(0, (part != held_out).nonzero().flatten()), penalty)
            margins[here] = x.index_select(0, here) @ weights
        gains = (math.log(2) - F.softplus(-margins)).double().numpy()
        hits = ((margins > 0) + 0.5 * (margins == 0)).double().mean()
        if gains.mean() > best["nats"]:
            by_image = np.bincount(image, gains - gains.mean())
            error = math.sqrt(float((by_image**2).sum())) / len(found)
            best = {"nats": float(gains.mean()), "error": error, "hits": float(hits), "penalty": penalty}
    return {key: round(value, 4) for key, value in best.items()}


def measure(lists: Lists) -> dict[str, Any]:
    """What the result file has of one set of lists."""
    result: dict[str, Any] = {"images": len(lists), "agreement": round(agreement(lists), 4)}
    for position in POSITIONS:
        found, tried = swaps(lists, position)
        result[str(position)] = {"pairs of lists": tried, "swaps": len(found), **information(found)}
    return result


def simulated(importances: Iterable[dict[str, float]], pull: float) -> Lists:
    """The lists of ``PEOPLE`` people for each scene."""
    rng = np.random.default_rng(0)
    return [[annotate(importance, rng, pull) for _ in range(PEOPLE)] for importance in importances]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.list_dependence", description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with train.jsonl")
    parser.add_argument("--scenes", type=int, default=4000, help="how many scenes to draw")
    parser.add_argument(
        "--pull", type=float, nargs="+", default=[0.0, PULL], help="strengths of the simulated people to measure"
    )
    parser.add_argument("--json", type=Path, default=RESULT, help="the result file")
    args = parser.parse_args(argv)
    try:
        real = [example.lists for example in read_manifest(args.data / "train.jsonl").examples]
    except InputError as error:
        print(f"benchmarks.list_dependence: {error}", file=sys.stderr)
        return 2
    measured = {"real lists": measure(real)}
    importances = [draw_scene(index, SEED).importance for index in range(args.scenes)]
    for pull in args.pull:
        measured[f"scenes, pull {pull:g}"] = measure(simulated(importances, pull))
    write(args.json, describe() | {"people": PEOPLE, "measured": measured})
    for name, values in measured.items():
        print(f"{name}: {values['images']} images, agreement {values['agreement']:.3f}")
        for position in map(str, POSITIONS):
            of = values[position]
            rate = of["swaps"] / max(1, of["pairs of lists"])
            nats = f"{of['nats']:.3f} ({of['error']:.3f}) nats, hits {of['hits']:.3f}"
            print(f"  position {position}: {of['swaps']} swaps, {rate:.3f} of the pairs of lists; {nats}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
