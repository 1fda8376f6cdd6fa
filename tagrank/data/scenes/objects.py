"""The drawing of each kind of object in a scene.

Each function draws one object with a pen, in the object's own coordinates. A random generator chooses the object's
colours and variant, so the same generator state gives the same object at any size.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.random import Generator

from tagrank.data.scenes.pen import Colour, Pen, shade

T = TypeVar("T")

RED, ORANGE, YELLOW, GREEN = (222, 56, 49), (244, 132, 38), (250, 204, 46), (62, 152, 72)
TEAL, BLUE, PURPLE, PINK = (30, 160, 160), (45, 105, 205), (132, 74, 178), (238, 110, 160)
WHITE, CREAM, BROWN, DARK = (250, 250, 246), (246, 226, 180), (122, 78, 44), (44, 42, 50)
BRIGHT = (RED, ORANGE, YELLOW, GREEN, TEAL, BLUE, PURPLE, PINK)
SKINS = ((255, 219, 186), (240, 190, 150), (205, 145, 100), (150, 98, 64), (104, 68, 46))
HAIRS = ((40, 30, 28), (92, 58, 34), (168, 110, 52), (226, 186, 96), (186, 74, 38), (120, 118, 120))


def pick(rng: Generator, options: Sequence[T]) -> T:
    """One of the options, uniformly at random."""
    return options[int(rng.integers(len(options)))]


def two(rng: Generator, colours: Sequence[Colour]) -> tuple[Colour, Colour]:
    """Two different colours, at random."""
    a, b = rng.choice(len(colours), size=2, replace=False)
    return colours[int(a)], colours[int(b)]


def person(pen: Pen, rng: Generator) -> None:
    """A person, standing or waving, in trousers or a dress, with one of four kinds of hair."""
    skin, hair = pick(rng, SKINS), pick(rng, HAIRS)
    shirt, trousers = two(rng, (*BRIGHT, WHITE, (52, 66, 110)))
    dress, waving, style = rng.random() < 0.4, rng.random() < 0.45, int(rng.integers(4))
    pen.veil(0, 0.01, 0.26, 0.035, (0, 0, 0, 70))
    if style == 1:
        pen.blob([(-0.18, 0.84), (-0.2, 0.55), (0, 0.5), (0.2, 0.55), (0.18, 0.84)], shade(hair, 0.85))
    legs = skin if dress else trousers
    for side in (-1, 1):
        pen.line([(side * 0.07, 0.36), (side * 0.085, 0.06)], 0.105, shade(legs, 1.0 if side > 0 else 0.88))
        pen.ellipse(side * 0.1, 0.032, 0.075, 0.034, DARK)
    hand = (0.31, 0.74) if waving else (0.25, 0.36)
    elbow = (0.25, 0.55) if waving else (0.22, 0.5)
    for shoulder, bend, end in (((-0.13, 0.6), (-0.21, 0.5), (-0.24, 0.36)), ((0.13, 0.6), elbow, hand)):
        pen.line([shoulder, bend, end], 0.08, shade(shirt, 0.82))
        pen.circle(*end, 0.048, skin)
    if dress:
        pen.blob(
            [(-0.13, 0.64), (0.13, 0.64), (0.17, 0.45), (0.25, 0.23), (0, 0.2), (-0.25, 0.23), (-0.17, 0.45)], shirt
        )
    else:
        pen.blob([(-0.14, 0.64), (0.14, 0.64), (0.165, 0.48), (0.15, 0.33), (-0.15, 0.33), (-0.165, 0.48)], shirt)
    pen.circle(0, 0.8, 0.165, skin)
    _hair(pen, style, hair, pick(rng, BRIGHT))
    for side in (-1, 1):
        pen.circle(0.02 + side * 0.065, 0.785, 0.02, DARK)
        pen.veil(0.02 + side * 0.105, 0.735, 0.035, 0.025, (240, 90, 90, 80))
    pen.line([(-0.03, 0.725), (0.02, 0.708), (0.07, 0.725)], 0.016, (170, 60, 50))


def _hair(pen: Pen, style: int, hair: Colour, cap: Colour) -> None:
    if style == 3:
        pen.sector(0, 0.83, 0.18, 0, np.pi, cap)
        pen.ellipse(0.15, 0.835, 0.13, 0.025, shade(cap, 0.75))
        return
    if style == 2:
        pen.circle(0, 1.0, 0.075, hair)
    pen.blob([(-0.185, 0.74), (-0.15, 0.95), (0, 1.0), (0.15, 0.95), (0.185, 0.78), (0.1, 0.9), (-0.06, 0.9)], hair)


def dog(pen: Pen, rng: Generator) -> None:
    """A dog, from the side, with a hanging or pointed ear, a collar, and perhaps spots."""
    coats = ((176, 116, 62), (96, 64, 44), (62, 58, 62), (238, 214, 170), (222, 160, 82), (248, 244, 236))
    coat, patch = two(rng, coats)
    collar, spotted, pointed = pick(rng, (RED, BLUE, TEAL, PINK)), rng.random() < 0.4, rng.random() < 0.4
    wag = rng.uniform(-0.1, 0.12)
    far = shade(coat, 0.78)
    pen.veil(0, 0.01, 0.62, 0.05, (0, 0, 0, 70))
    pen.line([(-0.47, 0.54), (-0.62, 0.7 + wag), (-0.6, 0.88 + wag)], 0.1, far)
    for x in (-0.31, 0.34):
        pen.line([(x, 0.36), (x + 0.02, 0.06)], 0.13, far)
    pen.blob(
        [(-0.55, 0.5), (-0.4, 0.65), (0, 0.62), (0.3, 0.68), (0.46, 0.5), (0.32, 0.3), (0, 0.29), (-0.42, 0.28)], coat
    )
    if spotted:
        pen.ellipse(-0.16, 0.5, 0.17, 0.11, patch, 0.2)
    for x in (-0.43, 0.24):
        pen.line([(x, 0.36), (x, 0.06)], 0.14, coat)
        pen.ellipse(x + 0.04, 0.045, 0.1, 0.045, shade(coat, 1.25))
    pen.line([(0.33, 0.52), (0.45, 0.74)], 0.27, coat)
    pen.line([(0.29, 0.66), (0.5, 0.56)], 0.065, collar)
    pen.ellipse(0.68, 0.69, 0.19, 0.1, shade(coat, 1.2), -0.15)
    pen.circle(0.49, 0.79, 0.205, coat)
    pen.circle(0.85, 0.71, 0.055, DARK)
    pen.circle(0.57, 0.84, 0.036, DARK)
    ear = patch if spotted else shade(coat, 0.62)
    if pointed:
        pen.polygon([(0.3, 0.88), (0.5, 0.97), (0.32, 1.14)], ear)
    else:
        pen.blob([(0.28, 0.9), (0.42, 0.95), (0.45, 0.76), (0.36, 0.58), (0.25, 0.66)], ear)


def car(pen: Pen, rng: Generator) -> None:
    """A small car or a van, from the side."""
    paint = pick(rng, (*BRIGHT, WHITE, (90, 96, 108)))
    van, glass = rng.random() < 0.35, (190, 226, 242)
    pen.veil(0, 0.02, 1.2, 0.06, (0, 0, 0, 80))
    if van:
        pen.blob([(-1.05, 0.25), (-1.05, 0.9), (-0.9, 1.0), (0.4, 1.0), (0.78, 0.68), (1.08, 0.56), (1.1, 0.22)], paint)
        windows = [
            [(-0.9, 0.62), (-0.9, 0.88), (-0.4, 0.88), (-0.4, 0.62)],
            [(-0.3, 0.62), (-0.3, 0.88), (0.1, 0.88), (0.1, 0.62)],
        ]
        windows.append([(0.2, 0.62), (0.2, 0.88), (0.4, 0.88), (0.66, 0.62)])
    else:
        pen.blob([(-0.78, 0.5), (-0.52, 0.95), (-0.1, 1.0), (0.26, 0.96), (0.62, 0.55), (0, 0.5)], shade(paint, 0.92))
        pen.blob(
            [(-1.1, 0.24), (-1.1, 0.52), (-0.8, 0.62), (0, 0.6), (0.62, 0.6), (1.02, 0.5), (1.12, 0.24), (0, 0.2)],
            paint,
        )
        windows = [
            [(-0.62, 0.6), (-0.44, 0.88), (-0.12, 0.9), (-0.12, 0.6)],
            [(-0.04, 0.6), (-0.04, 0.9), (0.2, 0.87), (0.46, 0.6)],
        ]
    for window in windows:
        pen.polygon(window, glass)
    pen.box(-1.1, 0.24, 1.12, 0.32, shade(paint, 0.72))
    pen.line([(-0.08, 0.56), (-0.08, 0.3)], 0.025, shade(paint, 0.65))
    pen.box(-0.28, 0.47, -0.16, 0.5, shade(paint, 0.6))
    pen.circle(1.04, 0.43, 0.075, (255, 244, 180))
    pen.box(-1.13, 0.38, -1.05, 0.5, (200, 30, 30))
    for x in (-0.62, 0.64):
        pen.circle(x, 0.21, 0.23, (36, 36, 42))
        pen.circle(x, 0.21, 0.115, (205, 208, 214))
        pen.circle(x, 0.21, 0.04, (90, 94, 102))


def house(pen: Pen, rng: Generator) -> None:
    """A cottage, from the front, with a gable roof, a chimney, a door and windows."""
    wall = pick(rng, (CREAM, (240, 240, 236), (238, 190, 150), (186, 214, 226), (236, 206, 110), (214, 130, 110)))
    roof = pick(rng, ((176, 62, 48), (120, 72, 52), (84, 92, 112), (60, 112, 104), (150, 60, 92)))
    door = pick(rng, (BROWN, RED, TEAL, BLUE))
    pen.veil(0, 0.0, 0.6, 0.035, (0, 0, 0, 60))
    pen.box(0.2, 0.66, 0.33, 1.0, shade(roof, 0.8))
    pen.box(0.18, 0.97, 0.35, 1.02, shade(roof, 0.65))
    pen.box(-0.47, 0.0, 0.47, 0.58, wall)
    pen.box(-0.47, 0.0, 0.47, 0.06, shade(wall, 0.8))
    pen.box(-0.47, 0.51, 0.47, 0.58, shade(wall, 0.82))
    pen.polygon([(-0.6, 0.54), (0, 0.98), (0.6, 0.54)], roof)
    pen.polygon([(-0.6, 0.54), (-0.54, 0.54), (0, 0.93), (0.54, 0.54), (0.6, 0.54), (0, 0.98)], shade(roof, 0.7))
    pen.circle(0, 0.7, 0.075, (250, 240, 214))
    pen.circle(0, 0.7, 0.055, (120, 176, 210))
    pen.box(-0.11, 0.0, 0.11, 0.34, shade(door, 0.7))
    pen.box(-0.09, 0.0, 0.09, 0.32, door)
    pen.circle(0.055, 0.15, 0.018, YELLOW)
    for x in (-0.3, 0.3):
        pen.box(x - 0.11, 0.2, x + 0.11, 0.43, (252, 250, 240))
        pen.box(x - 0.09, 0.22, x + 0.09, 0.41, (122, 182, 218))
        pen.line([(x, 0.22), (x, 0.41)], 0.02, (252, 250, 240))
        pen.line([(x - 0.09, 0.315), (x + 0.09, 0.315)], 0.02, (252, 250, 240))


def tree(pen: Pen, rng: Generator) -> None:
    """A broad-leaved tree, perhaps with fruit, a fir, or a palm."""
    variant = rng.choice(3, p=[0.55, 0.3, 0.15])
    trunk = pick(rng, ((116, 76, 46), (92, 62, 44), (134, 98, 66)))
    pen.veil(0, 0.0, 0.3, 0.035, (0, 0, 0, 70))
    if variant == 1:
        leaf = pick(rng, ((36, 104, 74), (28, 88, 66), (58, 122, 76)))
        pen.box(-0.055, 0.0, 0.055, 0.2, trunk)
        for base, top, width, tone in ((0.12, 0.56, 0.34, 0.82), (0.36, 0.78, 0.27, 1.0), (0.6, 1.02, 0.2, 1.15)):
            pen.polygon([(-width, base), (0, base - 0.04), (width, base), (0, top)], shade(leaf, tone))
            pen.polygon([(-width, base), (0, base - 0.04), (0, top)], shade(leaf, tone * 1.1))
    elif variant == 2:
        leaf = (66, 150, 70)
        pen.line([(0.0, 0.02), (0.03, 0.3), (0.1, 0.55), (0.2, 0.78)], 0.075, (160, 120, 76))
        for angle in (0.15, 0.75, 1.5, 2.3, 2.95, -0.35, 3.5):
            dx, dy = np.cos(angle), np.sin(angle)
            tip = (0.2 + 0.4 * dx, 0.76 + 0.26 * dy - 0.06 * abs(dx))
            mid = (0.2 + 0.22 * dx, 0.85 + 0.17 * dy)
            low = (0.2 + 0.2 * dx, 0.77 + 0.13 * dy)
            pen.blob([(0.2, 0.79), mid, tip, low], shade(leaf, float(0.8 + 0.3 * (angle % 1))))
        pen.circle(0.17, 0.75, 0.035, BROWN)
        pen.circle(0.23, 0.75, 0.035, BROWN)
    else:
        leaf = pick(rng, ((82, 160, 62), (112, 172, 60), (54, 136, 70), (214, 128, 42), (236, 150, 176)))
        fruit = pick(rng, (None, None, RED, YELLOW))
        pen.polygon([(-0.075, 0.0), (0.075, 0.0), (0.045, 0.5), (-0.045, 0.5)], trunk)
        pen.line([(0.0, 0.34), (0.15, 0.5)], 0.045, trunk)
        puffs = ((-0.2, 0.55, 0.19), (0.22, 0.56, 0.18), (0.0, 0.6, 0.24), (-0.14, 0.74, 0.2), (0.16, 0.74, 0.19))
        for x, y, r in puffs:
            pen.circle(x, y - 0.03, r, shade(leaf, 0.8))
        for x, y, r in (*puffs, (0.0, 0.84, 0.165)):
            pen.circle(x, y, r * 0.94, leaf)
        for x, y, r in ((-0.15, 0.78, 0.1), (0.02, 0.88, 0.08), (-0.22, 0.6, 0.08)):
            pen.circle(x, y, r, shade(leaf, 1.22))
        if fruit:
            for x, y in ((-0.24, 0.5), (0.0, 0.56), (0.2, 0.66), (-0.1, 0.72), (0.1, 0.82), (0.26, 0.5), (-0.06, 0.46)):
                pen.circle(x, y, 0.037, fruit)


def boat(pen: Pen, rng: Generator) -> None:
    """A sailing boat or a small steamer."""
    hull, sail = two(rng, (*BRIGHT, WHITE))
    sails = rng.random() < 0.65
    pen.veil(0, 0.0, 0.58, 0.045, (20, 50, 90, 90))
    if sails:
        pen.line([(0.0, 0.2), (0.0, 0.99)], 0.028, BROWN)
        pen.blob([(0.035, 0.27), (0.03, 0.6), (0.04, 0.96), (0.28, 0.6), (0.43, 0.27)], sail)
        pen.polygon([(0.035, 0.46), (0.37, 0.46), (0.3, 0.57), (0.035, 0.57)], shade(sail, 0.8))
        pen.polygon([(-0.035, 0.27), (-0.035, 0.86), (-0.37, 0.27)], WHITE if sail != WHITE else CREAM)
        pen.polygon([(0.0, 0.99), (0.0, 0.9), (0.14, 0.945)], RED)
    else:
        pen.box(-0.3, 0.22, 0.2, 0.46, WHITE)
        pen.box(-0.34, 0.44, 0.24, 0.49, shade(sail, 0.8))
        for x in (-0.2, -0.05, 0.1):
            pen.circle(x, 0.35, 0.045, (90, 140, 180))
        pen.box(-0.17, 0.49, 0.03, 0.86, sail)
        pen.box(-0.17, 0.7, 0.03, 0.78, WHITE)
        pen.veil(-0.16, 0.94, 0.12, 0.07, (245, 245, 245, 170))
        pen.veil(-0.3, 1.03, 0.15, 0.08, (245, 245, 245, 120))
    pen.blob([(-0.54, 0.25), (0, 0.22), (0.6, 0.29), (0.44, 0.07), (0.34, -0.02), (-0.36, -0.02), (-0.46, 0.08)], hull)
    pen.polygon([(-0.53, 0.25), (0.58, 0.28), (0.55, 0.21), (-0.52, 0.18)], shade(hull, 1.35))
    pen.polygon([(-0.46, 0.05), (0.43, 0.05), (0.37, -0.02), (-0.4, -0.02)], shade(hull, 0.7))


def balloon(pen: Pen, rng: Generator) -> None:
    """A striped hot-air balloon."""
    a, b = two(rng, (*BRIGHT, WHITE))
    for x in (-0.07, 0.07):
        pen.line([(x, 0.13), (x * 1.7, 0.3)], 0.014, DARK)
    pen.box(-0.085, 0.0, 0.085, 0.13, BROWN)
    pen.box(-0.095, 0.11, 0.095, 0.145, shade(BROWN, 1.35))
    pen.line([(-0.08, 0.055), (0.08, 0.055)], 0.014, shade(BROWN, 0.7))
    outline = ((0.12, 0.26), (0.34, 0.52), (0.39, 0.7), (0.28, 0.92), (0.0, 1.0))
    for stripe, share in enumerate((1.0, 0.78, 0.5, 0.2)):
        right = [(x * share, y) for x, y in outline]
        colour = (a, b)[stripe % 2]
        left = [(-x, y) for x, y in right[-2::-1]]
        pen.blob([*right, *left], colour if share < 1 else shade(colour, 0.88))
    pen.box(-0.12, 0.24, 0.12, 0.28, shade(a, 0.65))
    pen.veil(-0.16, 0.78, 0.09, 0.1, (255, 255, 255, 60))


def ball(pen: Pen, rng: Generator) -> None:
    """A beach ball, a football or a basketball."""
    variant, turn = int(rng.integers(3)), rng.uniform(0, 2 * np.pi)
    pen.veil(0, 0.01, 0.46, 0.06, (0, 0, 0, 80))
    if variant == 0:
        a, b = two(rng, BRIGHT)
        pen.circle(0, 0.5, 0.5, WHITE)
        for i, colour in enumerate((a, WHITE, b, WHITE, a, b)):
            start = turn + i * np.pi / 3
            rim = np.linspace(start, start + np.pi / 3, 8)
            points = np.stack([np.cos(rim) * 0.5, np.sin(rim) * 0.5 + 0.5], axis=1)
            pen.polygon(np.vstack([points, [(0.1, 0.62)]]), colour)
        pen.circle(0.1, 0.62, 0.07, WHITE)
    elif variant == 1:
        pen.circle(0, 0.5, 0.5, WHITE)
        pen.sector(0, 0.5, 0.5, np.pi * 1.1, np.pi * 1.9, (222, 224, 230))
        pen.circle(0.02, 0.56, 0.4, WHITE)
        for radius, size, count in ((0.0, 0.17, 1), (0.42, 0.12, 5)):
            for i in range(count):
                angle = turn + i * 2 * np.pi / 5
                corners = angle + np.arange(5) * 2 * np.pi / 5
                centre = np.array([radius * np.cos(angle), radius * np.sin(angle) + 0.5])
                corners_xy = np.stack([np.cos(corners), np.sin(corners)], axis=1) * size + centre
                pen.polygon(corners_xy, DARK)
                if radius:
                    pen.line([(0.0, 0.5), (float(centre[0]), float(centre[1]))], 0.025, DARK)
    else:
        pen.circle(0, 0.5, 0.5, (232, 118, 42))
        dx, dy = np.cos(turn), np.sin(turn)
        pen.line([(-0.5 * dx, 0.5 - 0.5 * dy), (0.5 * dx, 0.5 + 0.5 * dy)], 0.035, DARK)
        pen.line([(-0.5 * dy, 0.5 + 0.5 * dx), (0.5 * dy, 0.5 - 0.5 * dx)], 0.035, DARK)
        for side in (-1, 1):
            angles = np.linspace(-0.9, 0.9, 7)
            x, y = side * (0.62 - 0.42 * np.cos(angles)), 0.42 * np.sin(angles)
            arc = np.stack([x * dx - y * dy, x * dy + y * dx + 0.5], axis=1)
            pen.line([(float(p), float(q)) for p, q in arc], 0.035, DARK)
    pen.veil(-0.17, 0.72, 0.13, 0.1, (255, 255, 255, 110))


def bird(pen: Pen, rng: Generator) -> None:
    """A flying bird, from the side."""
    coat = pick(rng, ((56, 120, 214), (214, 62, 54), (248, 200, 50), (246, 246, 244), (54, 50, 60), (232, 120, 60)))
    wing, up = shade(coat, 0.74), rng.random() < 0.6
    belly = shade(coat, 1.45)
    tip = 1.0 if up else -0.02
    pen.blob([(0.1, 0.48), (-0.12, 0.5), (-0.34, tip * 0.92 + 0.05), (-0.02, tip * 0.8 + 0.1)], shade(wing, 0.8))
    pen.polygon([(-0.34, 0.47), (-0.74, 0.62), (-0.68, 0.46), (-0.76, 0.34)], wing)
    pen.blob([(-0.46, 0.47), (-0.1, 0.62), (0.3, 0.62), (0.44, 0.5), (0.24, 0.32), (-0.12, 0.32)], coat)
    pen.blob([(-0.2, 0.4), (0.1, 0.43), (0.34, 0.44), (0.22, 0.335), (-0.08, 0.33)], belly)
    pen.circle(0.42, 0.6, 0.165, coat)
    pen.polygon([(0.54, 0.66), (0.78, 0.575), (0.55, 0.53)], (246, 150, 36))
    pen.circle(0.47, 0.64, 0.036, DARK if sum(coat) > 250 else WHITE)
    pen.blob([(0.18, 0.52), (-0.16, 0.53), (-0.46, tip), (-0.2, tip * 0.94 + 0.03), (0.1, tip * 0.6 + 0.2)], wing)


def sun(pen: Pen, rng: Generator) -> None:
    """A sun: a disc with a glow, perhaps with rays and a face."""
    disc, turn = pick(rng, ((255, 212, 56), (255, 190, 40), (255, 232, 110))), rng.uniform(0, np.pi)
    for radius, alpha in ((0.66, 34), (0.54, 50)):
        pen.veil(0, 0.5, radius, radius, (255, 240, 170, alpha))
    if rng.random() < 0.6:
        for angle in turn + np.arange(12) * np.pi / 6:
            ends = angle + np.array([-0.13, 0.0, 0.13])
            radii = np.array([0.36, 0.5, 0.36])
            pen.polygon(np.stack([np.cos(ends) * radii, np.sin(ends) * radii + 0.5], axis=1), shade(disc, 0.94))
    pen.circle(0, 0.5, 0.33, shade(disc, 0.95))
    pen.circle(-0.015, 0.515, 0.3, disc)
    if rng.random() < 0.5:
        for side in (-1, 1):
            pen.circle(side * 0.11, 0.55, 0.032, (150, 90, 20))
        pen.line([(-0.12, 0.43), (-0.05, 0.385), (0.05, 0.385), (0.12, 0.43)], 0.03, (150, 90, 20))


def flower(pen: Pen, rng: Generator) -> None:
    """A daisy, a sunflower or a tulip, with a stem and two leaves."""
    variant, stem = int(rng.integers(3)), (58, 140, 62)
    petal = pick(rng, (RED, PINK, PURPLE, WHITE, ORANGE, YELLOW, (120, 150, 240)))
    sway = rng.uniform(-0.07, 0.07)
    top = (sway, 0.72)
    pen.line([(0.0, 0.0), (sway * 0.3, 0.4), top], 0.06, stem)
    pen.blob([(0.0, 0.1), (0.16, 0.2), (0.3, 0.38), (0.12, 0.3)], shade(stem, 1.12))
    pen.blob([(0.0, 0.06), (-0.16, 0.15), (-0.28, 0.31), (-0.12, 0.25)], shade(stem, 0.88))
    if variant == 2:
        x, y = top
        pen.blob(
            [
                (x - 0.2, y + 0.26),
                (x - 0.22, y + 0.02),
                (x, y - 0.12),
                (x + 0.22, y + 0.02),
                (x + 0.2, y + 0.26),
                (x, y + 0.1),
            ],
            shade(petal, 0.85),
        )
        pen.blob([(x, y + 0.29), (x - 0.13, y + 0.08), (x, y - 0.12), (x + 0.13, y + 0.08)], petal)
        return
    petals, heart, size = (9, (250, 196, 40), 0.1) if variant == 0 else (10, (104, 66, 36), 0.14)
    if variant == 1:
        petal = (252, 196, 36)
    for ring, tone in ((0.5, 0.82), (0.0, 1.0)):
        for angle in (np.arange(petals) + ring) * 2 * np.pi / petals:
            x, y = top[0] + 0.17 * np.cos(angle), top[1] + 0.17 * np.sin(angle)
            pen.ellipse(x, y, 0.115, 0.062, shade(petal, tone), angle)
    pen.circle(*top, size, heart)
    pen.circle(top[0] - 0.01, top[1] + 0.015, size * 0.7, shade(heart, 1.2))


def umbrella(pen: Pen, rng: Generator) -> None:
    """An open umbrella, with coloured panels and a crook."""
    a, b = two(rng, (*BRIGHT, WHITE))
    centre = 0.52
    pen.line([(0.0, 0.08), (0.0, 0.98)], 0.032, BROWN)
    pen.line([(0.0, 0.08), (0.025, 0.025), (0.08, 0.02), (0.115, 0.075)], 0.036, BROWN)
    for i, (left, right) in enumerate(((-0.58, -0.36), (-0.36, -0.12), (-0.12, 0.12), (0.12, 0.36), (0.36, 0.58))):
        rows = np.linspace(0, np.pi / 2, 7)
        rise = centre + 0.42 * np.sin(rows)
        hem = np.linspace(right, left, 6)
        scallop = centre + 0.07 * np.sin(np.linspace(0, np.pi, 6))
        outer, inner = np.cos(rows) * right, np.cos(rows[::-1]) * left
        panel = np.vstack(
            [
                np.stack([outer, rise], axis=1),
                np.stack([inner, rise[::-1]], axis=1),
                np.stack([hem[::-1], scallop], axis=1),
            ]
        )
        pen.polygon(panel, shade((a, b)[i % 2], (0.86, 0.95, 1.0, 0.95, 0.86)[i]))
    pen.line([(0.0, 0.92), (0.0, 0.99)], 0.034, BROWN)
