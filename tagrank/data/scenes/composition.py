"""Drawn scenes with ranked tags: a data set of any size that needs no download.

A scene shows two to seven of a dozen kinds of objects in front of a backdrop. Simulated people then name the kinds, the
most important first, and leave out negligible kinds.

Importance is computed from the 64 x 64 picture, for any size of the returned picture. All objects of a kind are taken
together:

    area        (visible pixels of the kind, not covered by other objects) / (all pixels)
    centrality  1 - (mean distance of the visible pixels from the centre) / (distance of a corner from the centre)
    contrast    min(1, mean |visible pixels - backdrop behind them| / 128)
    importance  weight * sqrt(area) * (0.4 + 0.6 centrality) * (0.4 + 0.6 contrast), or 0 if area < ``MIN_AREA``

``weight`` is the kind's weight in ``KINDS``: people are named first, then animals. A kind with an importance below
``NEGLIGIBLE`` is negligible.

Each person sees log importance plus Gaussian noise (standard deviation ``NOISE``), and first names the kind that looks
most important. What comes next depends on what was named: a kind that goes with the last one (``GOES_WITH``) gains
``PULL`` in log importance. How many kinds are named does not depend on this: as many as are seen above a limit, which
differs between people (log ``NEGLIGIBLE`` plus Gaussian noise, standard deviation ``LIMIT_NOISE``), or with probability
``FORGETS`` one less, but at least one. ``ANNOTATORS`` people look at each scene, and ``tags`` merges their lists.

``NOISE`` and ``PULL`` are those of people's lists of Flickr8k: two people agree as often on the first tag, and what was
named tells as much about what comes next (``benchmarks/list_dependence.py``, docs/decisions.md).

Kinds are drawn uniformly, in sizes that let each kind come first or stay unnamed. A tagger that does not see the
picture reaches an NDCG@5 of about 0.4. Ranking by noiseless importance reaches about 0.93.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import NDArray
from PIL import Image

from tagrank.data.manifest import merge_lists
from tagrank.data.scenes import objects
from tagrank.data.scenes.backdrops import Backdrop
from tagrank.data.scenes.pen import Canvas, Pen

ANNOTATORS = 3
MIN_AREA = 0.004
NEGLIGIBLE = 0.08
NOISE = 0.32
LIMIT_NOISE = 0.15
PULL = 0.3
FORGETS = 0.15
SEEN_SIZE = 64
"""Importance is measured on a picture of this size, so that the tags do not depend on the size of the result."""


@dataclass(frozen=True)
class Kind:
    """A kind of object.

    Attributes:
        draw: draws an object of this kind with a pen.
        weight: how readily people name this kind.
        height: the height of an object in the foreground, as a fraction of the picture's height.
        width: width / height of an object.
        zone: where objects of this kind are: ``"sky"``, ``"ground"`` or ``"water"``.
    """

    draw: Callable[[Pen, Generator], None]
    weight: float
    height: float
    width: float
    zone: str = "ground"


KINDS: Mapping[str, Kind] = {
    "person": Kind(objects.person, 2.0, 0.55, 0.6),
    "dog": Kind(objects.dog, 1.5, 0.38, 1.5),
    "bird": Kind(objects.bird, 1.5, 0.3, 1.5, "sky"),
    "car": Kind(objects.car, 1.0, 0.3, 2.2),
    "house": Kind(objects.house, 1.0, 0.55, 1.2),
    "tree": Kind(objects.tree, 1.0, 0.75, 0.8),
    "boat": Kind(objects.boat, 1.0, 0.55, 1.1, "water"),
    "balloon": Kind(objects.balloon, 1.0, 0.52, 0.8, "sky"),
    "ball": Kind(objects.ball, 1.0, 0.33, 1.0),
    "sun": Kind(objects.sun, 1.0, 0.5, 1.0, "sky"),
    "flower": Kind(objects.flower, 1.0, 0.58, 0.6),
    "umbrella": Kind(objects.umbrella, 1.0, 0.54, 1.2),
}

GOES_WITH: frozenset[frozenset[str]] = frozenset(
    map(
        frozenset,
        (
            ("person", "dog"),
            ("person", "umbrella"),
            ("person", "boat"),
            ("dog", "ball"),
            ("house", "tree"),
            ("house", "car"),
            ("house", "flower"),
            ("tree", "bird"),
            ("bird", "balloon"),
            ("balloon", "sun"),
            ("sun", "boat"),
        ),
    )
)
"""Kinds that are readily named one after the other."""


@dataclass(frozen=True)
class Scene:
    """A picture and the lists that people made of it.

    Attributes:
        image: RGB, ``size`` x ``size``.
        lists: one ordered list of kinds per person.
        tags: the lists, merged by :func:`tagrank.data.manifest.merge_lists`.
        importance: the noiseless importance of each kind in the scene, the highest first.
    """

    image: Image.Image
    lists: tuple[tuple[str, ...], ...]
    tags: tuple[str, ...]
    importance: dict[str, float]


@dataclass(frozen=True)
class _Thing:
    kind: str
    x: float
    y: float
    height: float
    mirror: bool
    tilt: float
    seed: int

    @property
    def depth(self) -> float:
        """Objects are drawn in increasing depth: sun, balloons, the other objects by the y of their foot, birds."""
        return {"sun": -2.0, "balloon": -1.0, "bird": 2.0}.get(self.kind, self.y)


def draw_scene(index: int, seed: int = 0, size: int = 64) -> Scene:
    """Draw scene number ``index`` of the endless series with the seed ``seed``.

    Args:
        index: the scene's number, from 0. A scene does not depend on how many others are drawn.
        seed: the seed of the series, from 0.
        size: the width and height of the picture in pixels. It does not change lists, tags or importance.

    Raises:
        ValueError: ``index`` or ``seed`` is negative, or ``size`` is below 8.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"index, seed: expected numbers >= 0, got {index}, {seed}")
    if size < 8:
        raise ValueError(f"size: expected at least 8 pixels, got {size}")
    rng = default_rng(SeedSequence(seed, spawn_key=(index,)))
    while True:
        backdrop, things = _compose(rng)
        empty, picture, owners = _render(backdrop, things, SEEN_SIZE)
        importance = _importance(things, np.asarray(empty), np.asarray(picture), owners)
        if max(importance.values()) >= NEGLIGIBLE:
            break
    lists = tuple(annotate(importance, rng) for _ in range(ANNOTATORS))
    if size != SEEN_SIZE:
        picture = _render(backdrop, things, size)[1]
    return Scene(picture, lists, merge_lists(lists), importance)


def make_scenes(count: int, seed: int = 0, size: int = 64) -> list[Scene]:
    """Draw the first ``count`` scenes of a series. See :func:`draw_scene`."""
    return [draw_scene(index, seed, size) for index in range(count)]


def _compose(rng: Generator) -> tuple[Backdrop, list[_Thing]]:
    """Choose the backdrop, the objects and their places."""
    kinds = [list(KINDS)[i] for i in rng.choice(len(KINDS), size=int(rng.integers(2, 8)), replace=False)]
    backdrop = Backdrop.choose(rng, needs_water="boat" in kinds)
    slots = rng.permutation(len(kinds))
    things = []
    for slot, kind in zip(slots, kinds, strict=True):
        more = int(rng.integers(1, 3)) if kind != "sun" and rng.random() < 0.15 else 0
        scale = 0.35 if rng.random() < 0.25 else 1.0
        x = (slot + rng.random()) / len(kinds)
        things.append(_place(kind, x, scale, backdrop, rng))
        things.extend(_place(kind, rng.random(), scale * 0.7, backdrop, rng) for _ in range(more))
    return backdrop, sorted(things, key=lambda thing: thing.depth)


def _place(name: str, x: float, scale: float, backdrop: Backdrop, rng: Generator) -> _Thing:
    kind = KINDS[name]
    near = rng.random()
    height = kind.height * scale * (0.45 + 0.65 * near) * float(np.exp(rng.normal(0, 0.2)))
    if kind.zone == "sky":
        y = rng.uniform(0.02, max(0.05, backdrop.horizon - height * 0.8)) + height
    else:
        top, bottom = (backdrop.water if kind.zone == "water" else None) or backdrop.ground
        y = top + (bottom - top) * near
    margin = min(0.5, 0.35 * kind.width * height)
    tilt = rng.uniform(-0.2, 0.2) if name in ("bird", "umbrella") else 0.0
    return _Thing(
        name, float(np.clip(x, margin, 1 - margin)), y, height, rng.random() < 0.5, tilt, int(rng.integers(2**32))
    )


def _render(backdrop: Backdrop, things: list[_Thing], size: int) -> tuple[Image.Image, Image.Image, NDArray[np.uint8]]:
    """Draw the backdrop only, the scene, and the map of owners: each pixel's 1-based number of its thing, or 0."""
    canvas = Canvas(size)
    backdrop.draw(canvas)
    empty = canvas.reduced()
    for label, thing in enumerate(things, start=1):
        pen = Pen(canvas, thing.x, thing.y, thing.height, mirror=thing.mirror, tilt=thing.tilt, label=label)
        KINDS[thing.kind].draw(pen, default_rng(thing.seed))
    return empty, canvas.reduced(), canvas.reduced_owners()


def _importance(
    things: list[_Thing], empty: NDArray[np.uint8], picture: NDArray[np.uint8], owners: NDArray[np.uint8]
) -> dict[str, float]:
    """The importance of each kind in the scene by the formula in the module's docstring, the highest first."""
    size = len(owners)
    offset = (np.arange(size) + 0.5) / size - 0.5
    distance = np.hypot(offset[:, None], offset[None, :]) / np.hypot(0.5, 0.5)
    difference = np.abs(picture.astype(np.int16) - empty).mean(axis=2) / 128
    importance = {}
    for kind in dict.fromkeys(thing.kind for thing in things):
        labels = [label for label, thing in enumerate(things, start=1) if thing.kind == kind]
        visible = np.isin(owners, labels)
        area = float(visible.mean())
        if area < MIN_AREA:
            importance[kind] = 0.0
            continue
        centrality = 1 - float(distance[visible].mean())
        contrast = min(1.0, float(difference[visible].mean()))
        importance[kind] = KINDS[kind].weight * area**0.5 * (0.4 + 0.6 * centrality) * (0.4 + 0.6 * contrast)
    return dict(sorted(importance.items(), key=lambda item: (-item[1], item[0])))


def annotate(importance: Mapping[str, float], rng: Generator, pull: float = PULL) -> tuple[str, ...]:
    """Simulate one person's list of the kinds in a scene, by their noiseless importance."""
    kinds = [kind for kind, value in importance.items() if value > 0]
    noisy = np.log([importance[kind] for kind in kinds]) + rng.normal(0, NOISE, len(kinds))
    seen = dict(zip(kinds, noisy.tolist(), strict=True))
    limit = np.log(NEGLIGIBLE) + rng.normal(0, LIMIT_NOISE)
    count = max(1, int((noisy > limit).sum()))
    if count > 1 and rng.random() < FORGETS:
        count -= 1
    named: list[str] = []
    for _ in range(count):
        following = max(seen, key=lambda kind: seen[kind] + pull * ({kind, *named[-1:]} in GOES_WITH))
        named.append(following)
        del seen[following]
    return tuple(named)
