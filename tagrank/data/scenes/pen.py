"""Tools that draw scenes: a canvas, larger than the final picture, and a pen that draws one object on it."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

Colour: TypeAlias = tuple[int, int, int]
Points: TypeAlias = Sequence[tuple[float, float]]

OVERSAMPLING = 3

_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 28)[:-1]), np.sin(np.linspace(0, 2 * np.pi, 28)[:-1])], axis=1)
_T = np.arange(6) / 6
# A Catmull-Rom spline: the weights of four neighbouring points for six points between the middle two.
_SPLINE = 0.5 * np.stack(
    [-_T + 2 * _T**2 - _T**3, 2 - 5 * _T**2 + 3 * _T**3, _T + 4 * _T**2 - 3 * _T**3, _T**3 - _T**2]
)


def shade(colour: Colour, factor: float) -> Colour:
    """A darker colour (``factor`` below 1), or a lighter one (above 1, white at 2)."""
    if factor <= 1:
        r, g, b = (round(c * factor) for c in colour)
    else:
        r, g, b = (round(c + (255 - c) * (factor - 1)) for c in colour)
    return r, g, b


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """``(1 - share) * a + share * b``."""
    r, g, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return r, g, blue


class Canvas:
    """A square RGB picture under construction, with a map of which object each pixel shows.

    Attributes:
        picture: mode RGB, ``OVERSAMPLING`` times as wide and high as the final picture.
        owners: mode L, the same size as ``picture``: the label of the topmost object, 0 for the backdrop.
    """

    def __init__(self, size: int) -> None:
        self.pixels = size * OVERSAMPLING
        self.picture = Image.new("RGB", (self.pixels, self.pixels))
        self.owners = Image.new("L", (self.pixels, self.pixels))
        self.draw = ImageDraw.Draw(self.picture)
        self.glaze = ImageDraw.Draw(self.picture, "RGBA")
        self.draw_owner = ImageDraw.Draw(self.owners)

    def gradient(self, top: float, bottom: float, first: Colour, last: Colour) -> None:
        """Fill the rows from ``top`` to ``bottom``, fractions of the height, with a gradient between two colours."""
        start, end = round(top * self.pixels), round(bottom * self.pixels)
        column = np.linspace(first, last, max(end - start, 1)).round().astype(np.uint8)[:, None]
        self.picture.paste(Image.fromarray(column).resize((self.pixels, len(column))), (0, start))

    def polygon(self, points: ArrayLike, colour: Colour) -> None:
        """Draw a filled polygon. Points are fractions of the picture's size, from its upper left corner."""
        self.draw.polygon((np.asarray(points) * self.pixels).ravel().tolist(), fill=colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        """Draw a filled rectangle."""
        self.draw.rectangle([x0 * self.pixels, y0 * self.pixels, x1 * self.pixels, y1 * self.pixels], fill=colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """Draw a filled ellipse."""
        self.draw.ellipse([v * self.pixels for v in (x - rx, y - ry, x + rx, y + ry)], fill=colour)

    def reduced(self) -> Image.Image:
        """The picture, scaled down to its final size."""
        return self.picture.reduce(OVERSAMPLING)

    def reduced_owners(self) -> NDArray[np.uint8]:
        """``[size, size]``: the label at the centre of each pixel of the final picture."""
        return np.asarray(self.owners)[OVERSAMPLING // 2 :: OVERSAMPLING, OVERSAMPLING // 2 :: OVERSAMPLING]


class Pen:
    """Draws one object in its own coordinates: the foot is at (0, 0), x points right, y points up, the height is 1."""

    def __init__(
        self,
        canvas: Canvas,
        x: float,
        y: float,
        height: float,
        *,
        label: int,
        mirror: bool = False,
        tilt: float = 0.0,
    ) -> None:
        """Place the object.

        Args:
            canvas: the canvas to draw on.
            x: x coordinate of the foot, as a fraction of the picture's width, from the left.
            y: y coordinate of the foot, as a fraction of the picture's height, from the top.
            height: the object's height, as a fraction of the picture's height.
            label: the object's number in the map of owners, 1..255.
            mirror: whether to swap left and right.
            tilt: counter-clockwise rotation about the object's middle, in radians, applied after ``mirror``.
        """
        self._canvas = canvas
        self._label = label
        scale = height * canvas.pixels
        cos, sin = np.cos(tilt), np.sin(tilt)
        flip = -1.0 if mirror else 1.0
        self._matrix = scale * np.array([[flip * cos, -sin], [-flip * sin, -cos]])
        middle = np.array([0.0, 0.5])
        foot = np.array([x, y]) * canvas.pixels
        self._origin = foot + scale * np.array([0.0, -0.5]) - self._matrix @ middle
        self._scale = scale
        self._upright = tilt == 0

    def _pixels(self, points: ArrayLike) -> list[float]:
        placed: list[float] = (np.asarray(points) @ self._matrix.T + self._origin).ravel().tolist()
        return placed

    def _bounds(self, x: float, y: float, rx: float, ry: float) -> list[float]:
        """The bounding box of an upright ellipse, in pixels."""
        px, py = self._pixels((x, y))
        rx, ry = rx * self._scale, ry * self._scale
        return [px - rx, py - ry, px + rx, py + ry]

    def polygon(self, points: ArrayLike, colour: Colour) -> None:
        """Draw a filled polygon."""
        pixels = self._pixels(points)
        self._canvas.draw.polygon(pixels, fill=colour)
        self._canvas.draw_owner.polygon(pixels, fill=self._label)

    def blob(self, points: Points, colour: Colour) -> None:
        """Draw a filled closed smooth curve through the points (Catmull-Rom spline)."""
        p = np.asarray(points)
        around = np.stack([np.roll(p, 1, axis=0), p, np.roll(p, -1, axis=0), np.roll(p, -2, axis=0)])
        self.polygon(np.einsum("kt,knd->ntd", _SPLINE, around).reshape(-1, 2), colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, angle: float = 0.0) -> None:
        """Draw a filled ellipse, turned by ``angle`` radians."""
        if angle == 0 and self._upright:
            bounds = self._bounds(x, y, rx, ry)
            self._canvas.draw.ellipse(bounds, fill=colour)
            self._canvas.draw_owner.ellipse(bounds, fill=self._label)
            return
        cos, sin = np.cos(angle), np.sin(angle)
        self.polygon(_CIRCLE * (rx, ry) @ np.array([[cos, sin], [-sin, cos]]) + (x, y), colour)

    def circle(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Draw a filled circle."""
        self.ellipse(x, y, radius, radius, colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        """Draw a filled rectangle."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def sector(self, x: float, y: float, radius: float, start: float, end: float, colour: Colour) -> None:
        """Draw a slice of a disc between two angles in radians, counter-clockwise from the right."""
        angles = np.linspace(start, end, 2 + int(abs(end - start) * 5))
        rim = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius + (x, y)
        self.polygon(np.vstack([rim, [(x, y)]]), colour)

    def line(self, points: Points, width: float, colour: Colour) -> None:
        """Draw a line with round joints and ends, at least one pixel of the canvas wide."""
        pixels = self._pixels(points)
        radius = max(width * self._scale / 2, 0.5)
        for draw, fill in ((self._canvas.draw, colour), (self._canvas.draw_owner, self._label)):
            draw.line(pixels, fill=fill, width=round(2 * radius))
            for x, y in zip(pixels[::2], pixels[1::2], strict=True):
                draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)

    def veil(self, x: float, y: float, rx: float, ry: float, colour: tuple[int, int, int, int]) -> None:
        """Draw a translucent ellipse, such as a shadow or a gleam. It ignores tilt and owns no pixels."""
        self._canvas.glaze.ellipse(self._bounds(x, y, rx, ry), fill=colour)
