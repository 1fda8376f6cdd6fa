"""Counts how often the parts of the images were begun. Imports nothing, because it is a process of its own."""


class Attempts:
    """Runs in a process of the cluster that computes nothing, and so survives the workers."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def begin(self, number: int) -> int:
        """Count a part, and say how often it was begun."""
        self._counts[number] = self._counts.get(number, 0) + 1
        return self._counts[number]
