"""The HTML of the page's parts. All that comes from users, models and files is escaped."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, cast

from jinja2 import Environment, StrictUndefined

from tagrank.app.finding import Found
from tagrank.app.session import Session
from tagrank.app.uploads import MEGABYTE, clean_name
from tagrank.features.camera_files import readable_suffixes


def percent(probability: float) -> str:
    """A probability in words: ``<1%`` if it is small, and ``>99%`` if it is large, but not certain."""
    if 0 < probability < 0.005:
        return "<1%"
    if 0.995 <= probability < 1:
        return ">99%"
    return f"{100 * min(max(probability, 0.0), 1.0):.0f}%"


def digits(probability: float) -> str:
    """A probability with two significant digits: those of several tags are small, and compared with each other."""
    return f"{float(f'{100 * probability:.2g}'):g}%"


def resource(name: str) -> str:
    """The text of a file of this package."""
    return files("tagrank.app").joinpath(name).read_text(encoding="utf-8")


@cache
def _macros() -> Any:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["percent"] = percent
    environment.filters["digits"] = digits
    environment.filters["percent_down"] = lambda share: f"{int(100 * share)}%"
    # The folders of the machine on which the page runs concern nobody else.
    environment.filters["last_part"] = clean_name
    return cast(Any, environment.from_string(resource("parts.html.j2")).module)


def _html(rendered: object) -> str:
    return str(rendered).strip()


def head(about: str) -> str:
    """The heading, and what the model is."""
    return _html(_macros().head(about))


def dropzone(session: Session, most_bytes: int) -> str:
    """Where photographs are dropped."""
    accept = ",".join(("image/*", *readable_suffixes()))
    return _html(_macros().dropzone(len(session) > 0, session.received, accept, f"{most_bytes / MEGABYTE:g} MB"))


def notices(texts: Sequence[str]) -> str:
    """What went wrong."""
    return _html(_macros().notices(texts))


def stage(session: Session) -> str:
    """The photograph that was chosen, large."""
    return _html(_macros().stage(session.photograph, session.chosen))


def strip(session: Session) -> str:
    """All photographs, small."""
    return _html(_macros().strip(list(session), session.chosen))


def tags(session: Session) -> str:
    """The list of the photograph that was chosen."""
    photograph = session.photograph
    return "" if photograph is None else _html(_macros().tags(photograph.proposal, session.chosen))


def positions(session: Session) -> str:
    """The positions of that list."""
    photograph = session.photograph
    return "" if photograph is None else _html(_macros().positions(photograph.proposal))


def downloads(session: Session, searchable: bool, xmp: bool) -> str:
    """What can be downloaded, and searched."""
    return _html(_macros().downloads(len(session), searchable, xmp))


def found(title: str, hint: str, matches: Sequence[Found]) -> str:
    """Photographs of an index. Nothing if none is there."""
    return _html(_macros().found(title, hint, matches))
