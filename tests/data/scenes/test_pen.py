from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ImageOps

from tagrank.data.scenes import KINDS, objects
from tagrank.data.scenes.pen import Canvas, Colour, Pen, mix, shade

RED, BLUE = (200, 30, 30), (30, 30, 200)


def canvas(size: int = 64, colour: Colour = (90, 160, 90)) -> Canvas:
    new = Canvas(size)
    new.gradient(0.0, 1.0, colour, colour)
    return new


def test_shade_and_mix() -> None:
    assert shade((100, 200, 50), 0.5) == (50, 100, 25)
    assert shade((100, 200, 50), 1.0) == (100, 200, 50)
    assert shade((100, 200, 50), 2.0) == (255, 255, 255)
    assert mix((0, 100, 200), (100, 100, 0), 0.25) == (25, 100, 150)


def test_gradient_goes_from_one_colour_to_the_other() -> None:
    c = Canvas(60)
    c.gradient(0.0, 0.5, (0, 0, 0), (200, 100, 50))
    rows = np.asarray(c.reduced())
    assert (rows[0] < 5).all()
    assert np.abs(rows[29].astype(int) - (200, 100, 50)).max() < 5
    assert (rows[31:] == 0).all()
    assert (np.diff(rows[:30].astype(int), axis=0) >= 0).all()


@pytest.mark.parametrize("tilt", [0.0, 0.6])
def test_areas(tilt: float) -> None:
    """A shape owns the pixels of its area. With height 0.5, one unit of the pen is half the picture."""
    octagon = [(0.4 * np.cos(a), 0.5 + 0.4 * np.sin(a)) for a in np.arange(8) * np.pi / 4]
    shapes: dict[str, tuple[Callable[[Pen], None], float]] = {
        "circle": (lambda pen: pen.circle(0.1, 0.5, 0.4, RED), np.pi * 0.4**2),
        "ellipse": (lambda pen: pen.ellipse(0.0, 0.5, 0.5, 0.2, RED, angle=0.7), np.pi * 0.5 * 0.2),
        "box": (lambda pen: pen.box(-0.3, 0.1, 0.4, 0.9, RED), 0.7 * 0.8),
        "sector": (lambda pen: pen.sector(0, 0.4, 0.5, 0, np.pi / 2, RED), np.pi * 0.5**2 / 4),
        "line": (lambda pen: pen.line([(-0.4, 0.5), (0.4, 0.5)], 0.2, RED), 0.8 * 0.2 + np.pi * 0.1**2),
        "blob": (lambda pen: pen.blob(octagon, RED), np.pi * 0.4**2),
    }
    for name, (draw, area) in shapes.items():
        c = canvas(128)
        draw(Pen(c, 0.5, 0.75, 0.5, label=3, tilt=tilt))
        owned = c.reduced_owners() == 3
        assert owned.mean() == pytest.approx(area / 4, rel=0.06), name
        assert (np.asarray(c.reduced())[owned] == RED).all(axis=1).mean() > 0.9, name


def test_position_and_mirror() -> None:
    c = canvas(100)
    Pen(c, 0.2, 0.9, 0.5, label=1).box(0.0, 0.0, 0.4, 1.0, RED)
    rows, columns = np.nonzero(c.reduced_owners())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == pytest.approx((40, 90, 20, 40), abs=1)
    c = canvas(100)
    Pen(c, 0.6, 0.9, 0.5, label=1, mirror=True).box(0.0, 0.0, 0.4, 1.0, RED)
    _, columns = np.nonzero(c.reduced_owners())
    assert (columns.min(), columns.max()) == pytest.approx((40, 60), abs=1)


def test_a_quarter_turn_about_the_middle_is_counter_clockwise() -> None:
    c = canvas(100)
    # The middle of the pole is the centre of the picture. The turn moves its upper end to the left.
    Pen(c, 0.5, 0.9, 0.8, label=1, tilt=np.pi / 2).box(-0.05, 0.8, 0.05, 1.0, RED)
    rows, columns = np.nonzero(c.reduced_owners())
    assert rows.mean() == pytest.approx(49.5, abs=1)
    assert columns.mean() == pytest.approx(50 - 0.4 * 80, abs=1)


def test_later_objects_cover_earlier_ones_and_veils_own_nothing() -> None:
    c = canvas()
    first, second = Pen(c, 0.5, 0.9, 0.8, label=1), Pen(c, 0.5, 0.9, 0.8, label=2)
    first.box(-0.4, 0.0, 0.4, 1.0, RED)
    second.box(-0.4, 0.0, 0.0, 1.0, BLUE)
    second.veil(0.2, 0.5, 0.15, 0.3, (255, 255, 255, 128))
    owners = c.reduced_owners()
    assert (owners == 2).sum() == pytest.approx((owners == 1).sum(), rel=0.1)
    assert owners[32, 20] == 2
    assert owners[32, 40] == 1
    assert np.asarray(c.reduced())[32, 40].tolist() == pytest.approx([228, 142, 142], abs=3)


def drawn(kind: str, seed: int, size: int = 64, mirror: bool = False) -> tuple[Canvas, NDArray[np.int64]]:
    c = canvas(size, (120, 170, 210))
    height = 0.8 / max(1.0, KINDS[kind].width)
    pen = Pen(c, 0.5, 0.5 + height / 2, height, label=1, mirror=mirror)
    KINDS[kind].draw(pen, np.random.default_rng(seed))
    return c, np.asarray(c.reduced()).astype(int)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_owns_the_pixels_it_paints_and_keeps_to_its_size(kind: str) -> None:
    height = 0.8 / max(1.0, KINDS[kind].width)
    for seed in range(12):
        c, picture = drawn(kind, seed)
        painted = np.abs(picture - (120, 170, 210)).max(axis=2) > 12
        owned = c.reduced_owners() > 0
        assert 0.05 < owned.mean() < 0.7, seed
        # Painted pixels that it does not own are edges and veils: shadow, smoke, and the sun's wide glow.
        assert (painted & ~owned).mean() < (3.0 if kind == "sun" else 0.5) * owned.mean() + 0.02, seed
        rows, columns = np.nonzero(owned)
        assert np.ptp(rows) <= 64 * height * 1.2, seed
        assert np.ptp(columns) <= 64 * height * KINDS[kind].width * 1.2, seed
        assert len(np.unique(picture[owned], axis=0)) > 4, seed


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_looks_the_same_at_any_size_and_mirrored(kind: str) -> None:
    for seed in range(4):
        _, small = drawn(kind, seed)
        large = np.asarray(drawn(kind, seed, size=192)[0].reduced().reduce(3)).astype(int)
        assert np.abs(small - large).mean() < 3, seed
        mirrored = np.asarray(ImageOps.mirror(drawn(kind, seed, mirror=True)[0].reduced())).astype(int)
        assert np.abs(small - mirrored).mean() < 3, seed


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_of_a_kind_are_alike(kind: str) -> None:
    pictures = {drawn(kind, seed)[1].tobytes() for seed in range(10)}
    assert len(pictures) >= 6


def test_every_kind_has_its_drawing() -> None:
    assert all(KINDS[kind].draw is getattr(objects, kind) for kind in KINDS)
    assert len(KINDS) == 12
