"""Progress bars on stderr; stdout is for results."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


def progress_bar() -> "Progress":
    """A bar that shows the remaining time. It appears only on a terminal, and disappears at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def track(items: Iterable[T], what: str, show: bool = True, total: int | None = None) -> Iterator[T]:
    """Iterate over items, and show a progress bar meanwhile.

    Args:
        items: any iterable.
        what: what is being done, in a few words.
        show: whether to show the bar.
        total: how many items come, if ``items`` has no length.
    """
    if not show:
        yield from items
        return
    with progress_bar() as bar:
        yield from bar.track(items, total, description=what)
