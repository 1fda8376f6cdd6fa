"""The backdrops of drawn scenes: sky, land, water, and clutter that nobody names.

A backdrop draws itself from its own seed, so that it looks the same at any size.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.random import Generator, default_rng

from tagrank.data.scenes.objects import pick
from tagrank.data.scenes.pen import Canvas, Colour, mix, shade

Band: TypeAlias = tuple[float, float]

SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((96, 170, 232), (206, 234, 250)),
    ((70, 146, 220), (178, 222, 246)),
    ((130, 196, 238), (250, 232, 206)),
    ((108, 116, 190), (252, 190, 150)),
    ((150, 170, 190), (220, 228, 232)),
)
GRASSES: tuple[Colour, ...] = ((126, 184, 84), (104, 168, 82), (150, 190, 96), (170, 184, 100))
SANDS: tuple[Colour, ...] = ((240, 218, 168), (232, 204, 150), (246, 228, 190))
WATERS: tuple[Colour, ...] = ((58, 138, 196), (46, 152, 176), (72, 120, 180))
DRY = ("meadow", "street", "snow")
WET = ("lake", "beach", "pier")


@dataclass(frozen=True)
class Backdrop:
    """A place, with the bands of the picture in which objects may stand.

    Heights are fractions of the picture's height, from the top.

    Attributes:
        name: one of ``DRY`` and ``WET``.
        horizon: the height at which the sky ends.
        ground: the band in which the feet of objects on land may be.
        water: the band in which boats may float; None if there is no water.
        seed: the seed of the colours and the clutter.
    """

    name: str
    horizon: float
    ground: Band
    water: Band | None
    seed: int

    @classmethod
    def choose(cls, rng: Generator, needs_water: bool) -> "Backdrop":
        """Choose a random place, with water if ``needs_water``."""
        name = pick(rng, WET if needs_water else DRY + WET)
        horizon = rng.uniform(0.38, 0.6)
        shore = horizon + rng.uniform(0.14, 0.2) if name in WET else horizon
        if name == "pier":
            shore = rng.uniform(0.76, 0.82)
        ground = (shore + 0.05, 0.97)
        water = (horizon + 0.05, shore) if name in WET else None
        return cls(name, horizon, ground, water, int(rng.integers(2**32)))

    def draw(self, canvas: Canvas) -> None:
        """Fill the canvas."""
        rng = default_rng(self.seed)
        sky = pick(rng, SKIES)
        canvas.gradient(0.0, self.horizon + 0.01, *sky)
        _clouds(canvas, rng, self.horizon, sky[1])
        _PLACES[self.name](canvas, rng, self, sky[1])


def _meadow(canvas: Canvas, rng: Generator, place: Backdrop, haze: Colour) -> None:
    grass = pick(rng, GRASSES)
    _hills(canvas, rng, place.horizon, mix(shade(grass, 0.8), haze, 0.5))
    canvas.gradient(place.horizon, 1.0, shade(grass, 1.12), shade(grass, 0.86))
    _hills(canvas, rng, place.horizon + 0.01, mix(grass, haze, 0.25), height=0.06)
    _blades(canvas, rng, place.horizon + 0.05, shade(grass, 0.8))


def _snow(canvas: Canvas, rng: Generator, place: Backdrop, haze: Colour) -> None:
    _peaks(canvas, rng, place.horizon, mix((120, 140, 170), haze, 0.35))
    canvas.gradient(place.horizon, 1.0, (236, 242, 250), (210, 222, 238))
    _hills(canvas, rng, place.horizon + 0.02, (228, 236, 246), height=0.05)
    _pebbles(canvas, rng, place.horizon + 0.08, ((196, 210, 230), (248, 250, 255)))
    for x, y in rng.random((24, 2)):
        canvas.ellipse(x, y, 0.006, 0.006, (252, 253, 255))


def _street(canvas: Canvas, rng: Generator, place: Backdrop, haze: Colour) -> None:
    x = -0.05
    while x < 1:
        width, height = rng.uniform(0.09, 0.2), rng.uniform(0.1, 0.3)
        tone = mix(pick(rng, ((120, 130, 150), (140, 130, 140), (110, 130, 140))), haze, rng.uniform(0.35, 0.6))
        canvas.box(x, place.horizon - height, x + width, place.horizon + 0.02, tone)
        for row in np.arange(place.horizon - height + 0.03, place.horizon - 0.03, 0.05):
            for column in np.arange(x + 0.02, x + width - 0.025, 0.04):
                canvas.box(column, row, column + 0.016, row + 0.022, shade(tone, 1.25 if rng.random() < 0.5 else 0.85))
        x += width
    kerb = place.horizon + rng.uniform(0.16, 0.22)
    canvas.gradient(place.horizon, kerb, (198, 194, 188), (178, 174, 170))
    canvas.box(0, kerb, 1, kerb + 0.018, (222, 220, 214))
    canvas.gradient(kerb + 0.018, 1.0, (104, 106, 114), (84, 86, 94))
    middle, offset = (kerb + 1.0) / 2, rng.uniform(0, 0.2)
    for start in np.arange(-0.2, 1.0, 0.22) + offset:
        canvas.box(start, middle - 0.008, start + 0.11, middle + 0.008, (214, 208, 180))
    _pebbles(canvas, rng, kerb + 0.04, ((96, 98, 106), (116, 118, 124)))


def _lake(canvas: Canvas, rng: Generator, place: Backdrop, haze: Colour) -> None:
    grass = pick(rng, GRASSES)
    shore = place.ground[0] - 0.05
    _hills(canvas, rng, place.horizon, mix(shade(grass, 0.75), haze, 0.4))
    _sea(canvas, rng, place.horizon, shore + 0.03, haze)
    canvas.gradient(shore + 0.02, 1.0, shade(grass, 1.1), shade(grass, 0.86))
    _hills(canvas, rng, shore + 0.03, shade(grass, 1.1), height=0.025)
    _blades(canvas, rng, shore + 0.04, shade(grass, 0.78))


def _beach(canvas: Canvas, rng: Generator, place: Backdrop, haze: Colour) -> None:
    sand = pick(rng, SANDS)
    shore = place.ground[0] - 0.05
    _sea(canvas, rng, place.horizon, shore + 0.03, haze)
    canvas.gradient(shore + 0.03, 1.0, shade(sand, 0.95), shade(sand, 1.15))
    _hills(canvas, rng, shore + 0.03, (246, 250, 250), height=0.024, shift=-0.004)
    _hills(canvas, rng, shore + 0.032, shade(sand, 0.93), height=0.016)
    _pebbles(canvas, rng, shore + 0.08, (shade(sand, 0.84), (236, 190, 170), (250, 246, 236)))


def _pier(canvas: Canvas, rng: Generator, place: Backdrop, haze: Colour) -> None:
    wood = pick(rng, ((170, 128, 88), (152, 120, 94), (186, 150, 106)))
    edge = place.ground[0] - 0.05
    _sea(canvas, rng, place.horizon, edge, haze)
    for x in np.arange(rng.uniform(0.02, 0.12), 1.0, 0.3):
        canvas.box(x, edge - 0.05, x + 0.045, edge + 0.06, shade(wood, 0.62))
    canvas.gradient(edge, 1.0, shade(wood, 1.15), wood)
    canvas.box(0, edge, 1, edge + 0.012, shade(wood, 0.75))
    for y in np.geomspace(edge + 0.045, 1.0, 4):
        canvas.box(0, y, 1, y + 0.005, shade(wood, 0.78))


def _sea(canvas: Canvas, rng: Generator, top: float, bottom: float, haze: Colour) -> None:
    water = pick(rng, WATERS)
    canvas.gradient(top, bottom, mix(water, haze, 0.35), water)
    for _ in range(26):
        x, depth = rng.random(2)
        y = top + 0.015 + (bottom - top - 0.02) * depth
        canvas.box(x, y, x + 0.02 + 0.07 * depth * rng.random(), y + 0.003 + 0.004 * depth, mix(water, haze, 0.6))


def _clouds(canvas: Canvas, rng: Generator, horizon: float, sky: Colour) -> None:
    for _ in range(int(rng.integers(0, 4))):
        x, y, size = rng.uniform(0, 1), rng.uniform(0.06, horizon * 0.75), rng.uniform(0.05, 0.11)
        puffs = ((-1.1, 0.14, 0.5, 0.38), (-0.4, -0.18, 0.7, 0.62), (0.4, -0.02, 0.65, 0.5), (1.1, 0.16, 0.55, 0.36))
        for tone, shift in ((mix(sky, (255, 255, 255), 0.5), 0.1), (mix(sky, (255, 255, 255), 0.82), 0.0)):
            for dx, dy, rx, ry in puffs:
                canvas.ellipse(x + dx * size, y + (dy + shift) * size, rx * size, ry * size, tone)


def _hills(
    canvas: Canvas, rng: Generator, base: float, colour: Colour, height: float = 0.12, shift: float = 0.0
) -> None:
    x = np.linspace(0, 1, 25)
    phase = rng.uniform(0, 2 * np.pi, 2)
    wave = 0.5 + 0.3 * np.sin(x * rng.uniform(4, 8) + phase[0]) + 0.2 * np.sin(x * rng.uniform(9, 14) + phase[1])
    canvas.polygon([(0.0, base), *zip(x, base + shift - height * wave, strict=True), (1.0, base)], colour)


def _peaks(canvas: Canvas, rng: Generator, base: float, colour: Colour) -> None:
    for x in np.arange(-0.05, 1.1, 0.24):
        middle, top, half = x + rng.uniform(-0.05, 0.05), base - rng.uniform(0.12, 0.26), rng.uniform(0.16, 0.24)
        canvas.polygon([(middle - half, base), (middle, top), (middle + half, base)], colour)
        drop = (base - top) * 0.35
        cap = half * 0.35
        canvas.polygon(
            [(middle - cap, top + drop), (middle, top), (middle + cap, top + drop), (middle, top + drop * 0.7)],
            (244, 248, 252),
        )


def _blades(canvas: Canvas, rng: Generator, top: float, colour: Colour) -> None:
    for x, depth, lean in rng.random((34, 3)):
        y, height = top + (1 - top) * depth, 0.012 + 0.03 * depth
        for side in (-0.6, 0.5):
            tip = x + (side + lean - 0.5) * height
            canvas.polygon([(x - 0.004, y), (tip, y - height), (x + 0.004, y)], colour)


def _pebbles(canvas: Canvas, rng: Generator, top: float, colours: tuple[Colour, ...]) -> None:
    for x, depth, size in rng.random((16, 3)):
        radius = 0.004 + 0.007 * size * (0.4 + depth)
        canvas.ellipse(x, top + (1 - top) * depth, radius, radius / 2, pick(rng, colours))


_PLACES = {"meadow": _meadow, "snow": _snow, "street": _street, "lake": _lake, "beach": _beach, "pier": _pier}
