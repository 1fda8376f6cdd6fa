"""Progress on stderr, so that stdout has results alone."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


def progress_bar() -> "Progress":
    """A bar with the time that is left; it shows on a terminal alone, and leaves nothing there."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def track(items: Iterable[T], what: str, show: bool = True, total: int | None = None) -> Iterator[T]:
    """The items, with a progress bar while they go by.

    Args:
        items: what is gone through; its length is the total where it has one.
        what: what is being done, in a few words.
        show: whether to show the bar at all.
        total: how many items come.
    """
    if not show:
        yield from items
        return
    with progress_bar() as bar:
        yield from bar.track(items, total, description=what)
