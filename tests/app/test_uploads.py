"""Files on their way to a page: one ticket each, once, for a while, and not too large."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tagrank.app.uploads import Uploads
from tagrank.errors import InputError


async def chunks(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield b"x" * size


def test_a_ticket_serves_once() -> None:
    uploads = Uploads(10)
    ticket = asyncio.run(uploads.receive("a.jpg", chunks(4, 0, 6)))
    other = asyncio.run(uploads.receive("a.jpg", chunks(1)))
    assert len(ticket) >= 32 <= len(other)
    assert ticket != other
    assert uploads.take(ticket) == ("a.jpg", b"x" * 10)
    with pytest.raises(InputError, match="drop it again"):
        uploads.take(ticket)
    with pytest.raises(InputError, match="drop it again"):
        uploads.take("guessed")
    assert len(uploads) == 1


@pytest.mark.parametrize(
    ("sizes", "why"), [((4, 7), "expected at most 1e-05 MB"), ((), "the file is empty"), ((0,), "the file is empty")]
)
def test_what_is_refused_is_forgotten(sizes: tuple[int, ...], why: str) -> None:
    uploads = Uploads(10, most_waiting=15)
    with pytest.raises(InputError, match=why):
        asyncio.run(uploads.receive("a.jpg", chunks(*sizes)))
    assert len(uploads) == 0
    asyncio.run(uploads.receive("a.jpg", chunks(10)))
    with pytest.raises(InputError, match="too many photographs are waiting"):
        asyncio.run(uploads.receive("a.jpg", chunks(6)))
    asyncio.run(uploads.receive("a.jpg", chunks(5)))
    assert len(uploads) == 2


def test_files_on_their_way_count() -> None:
    uploads = Uploads(10, most_waiting=15)

    async def both() -> list[str | BaseException]:
        async def slow(size: int) -> AsyncIterator[bytes]:
            yield b"x" * size
            await asyncio.sleep(0.01)
            yield b"x"

        return await asyncio.gather(*(uploads.receive("a", slow(size)) for size in (7, 8)), return_exceptions=True)

    first, second = asyncio.run(both())
    assert isinstance(first, InputError) != isinstance(second, InputError)


def test_nobody_comes_for_it() -> None:
    uploads = Uploads(10, patience=0.01)

    async def wait() -> str:
        ticket = await uploads.receive("a.jpg", chunks(3))
        assert len(uploads) == 1
        await asyncio.sleep(0.05)
        return ticket

    ticket = asyncio.run(wait())
    assert len(uploads) == 0
    with pytest.raises(InputError):
        uploads.take(ticket)
