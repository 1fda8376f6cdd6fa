"""Photographs with their ranked tags as one HTML file that opens anywhere.

It refers to nothing outside of it but the photographs, which its pictures lead to. It is written a photograph at a
time, so any number of photographs takes no more memory than one. There is no script.
"""

import math
from importlib.resources import files
from pathlib import Path
from typing import Any, TextIO, cast
from urllib.parse import quote_from_bytes

from jinja2 import Environment, StrictUndefined

from tagrank.decode import TagList
from tagrank.evaluation.thumbnails import thumbnail

SIDE = 256
"""The longer side of a picture, in pixels."""
MOST_BYTES = 12 * 1024
"""A picture with more bytes is compressed again with a lower quality: 2,000 of them are at most 32 MB of HTML."""


class Gallery:
    """Writes a page.

    Args:
        stream: where the page goes.
        title: its heading.
        summary: what the tags come from, such as the model's name.
    """

    def __init__(self, stream: TextIO, title: str, summary: str) -> None:
        environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
        template = files("tagrank.evaluation").joinpath("gallery.html.j2").read_text(encoding="utf-8")
        self._parts = cast(Any, environment.from_string(template).module)
        self._stream = stream
        self._shown = self._unknown = 0
        self._write(self._parts.head(title, summary))

    def add(self, path: Path, tags: TagList) -> None:
        """Add a photograph.

        Raises:
            InputError: its file cannot be read any more. The page is as it was.
        """
        rows = []
        for tag in tags:
            text = "<1%" if 0 < tag.score < 0.005 else f"{100 * tag.score:.0f}%"
            rows.append({"tag": tag.tag, "score": text, "percent": round(100 * min(max(tag.score, 0.0), 1.0), 1)})
        unlike = None if math.isnan(tags.unlike) else f"{int(100 * tags.unlike)}%"
        picture = thumbnail(path, SIDE, MOST_BYTES)
        self._write(self._parts.card(str(path), _link(path), picture, rows, unlike, tags.unknown))
        self._shown += 1
        self._unknown += tags.unknown

    def close(self, failed: int = 0) -> None:
        """End the page.

        Args:
            failed: how many photographs could not be read.
        """
        self._write(self._parts.foot(self._shown, self._unknown, failed))

    def _write(self, html: str) -> None:
        # In Python, file names that are not UTF-8 have lone surrogates, which no encoding has. All that is not ASCII
        # becomes a reference, because the stream may have any encoding.
        text = str(html).encode("utf-8", "replace").decode("utf-8")
        self._stream.write(text.encode("ascii", "xmlcharrefreplace").decode("ascii"))
        self._stream.flush()


def _link(path: Path) -> str:
    """The address of a photograph, relative to the page if its path is relative to the folder that one is in."""
    return ("file://" if path.is_absolute() else "") + quote_from_bytes(str(path).encode("utf-8", "surrogateescape"))
