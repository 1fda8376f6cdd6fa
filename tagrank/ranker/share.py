"""A process's share of a batch, if several processes train one model."""

from typing import NamedTuple


class Share(NamedTuple):
    """Every ``size``-th row of a batch, from the row number ``rank`` on; by default all rows."""

    rank: int = 0
    size: int = 1

    def rows(self, start: int, count: int) -> slice:
        """Which of ``count`` rows are in the share, if the first of them is the row ``start`` of the batch."""
        return slice((self.rank - start) % self.size, count, self.size)

    def row_count(self, start: int, count: int) -> int:
        """How many of these rows are in the share."""
        return len(range(count)[self.rows(start, count)])


WHOLE = Share()
