"""Files on their way from a browser to its user's page.

Gradio keeps the files that it receives in a folder, and gives each to whoever names its path. So files do not go
through Gradio here. A file is in memory, under a ticket that only who sent it gets, until the page takes it with the
ticket. It can be taken once, and there is no address at which it can be fetched.
"""

import asyncio
import secrets
import unicodedata
from collections.abc import AsyncIterator
from pathlib import PurePath, PureWindowsPath

from tagrank.errors import InputError

MEGABYTE = 1_000_000
LONGEST_NAME = 120
"""So many characters of a file's name are kept."""


class Uploads:
    """Files that wait to be taken.

    Args:
        most_bytes: of a file.
        most_waiting: bytes of all files that wait or are coming.
        patience: seconds after which a file that nobody took is forgotten.
    """

    def __init__(self, most_bytes: int, most_waiting: int = 512 * MEGABYTE, patience: float = 120.0) -> None:
        self.most_bytes = most_bytes
        self._most_waiting = max(most_bytes, most_waiting)
        self._patience = patience
        self._files: dict[str, tuple[str, bytes]] = {}
        self._coming = 0

    def __len__(self) -> int:
        return len(self._files)

    def check_size(self, size: int) -> None:
        """Check the size of a file, which may be known before it comes.

        Raises:
            InputError: it is too large.
        """
        if size > self.most_bytes:
            raise InputError(too_large(self.most_bytes))

    async def receive(self, name: str, chunks: AsyncIterator[bytes]) -> str:
        """Keep a file.

        Args:
            name: what its user calls it.
            chunks: its content.

        Returns:
            The ticket.

        Raises:
            InputError: the file is too large or empty, or too much is waiting. What has come of it is forgotten.
        """
        content = bytearray()
        try:
            async for chunk in chunks:
                content += chunk
                self._coming += len(chunk)
                self.check_size(len(content))
                waiting = sum(len(file) for _, file in list(self._files.values()))
                if waiting + self._coming > self._most_waiting:
                    raise InputError("too many photographs are waiting; try again in a minute")
            if not content:
                raise InputError("the file is empty")
            ticket = secrets.token_urlsafe(24)
            self._files[ticket] = name, bytes(content)
            asyncio.get_running_loop().call_later(self._patience, self._files.pop, ticket, None)
            return ticket
        finally:
            self._coming -= len(content)

    def take(self, ticket: str) -> tuple[str, bytes]:
        """The name and the content of a file, which is forgotten here. Safe to call from any thread.

        Raises:
            InputError: there is no file with this ticket.
        """
        file = self._files.pop(ticket, None)
        if file is None:
            raise InputError("the photograph waited too long; drop it again")
        return file


def too_large(most_bytes: int) -> str:
    """What is said of a file that is too large."""
    return f"too large: expected at most {most_bytes / MEGABYTE:g} MB"


def clean_name(name: str) -> str:
    """The last part of a path, of any system, without control characters, and not too long."""
    last = PureWindowsPath(PurePath(name).name).name
    visible = "".join(c for c in last if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")).strip(" .")
    path = PurePath(visible or "photograph")
    return f"{path.stem[: LONGEST_NAME - len(path.suffix[:20])]}{path.suffix[:20]}"
