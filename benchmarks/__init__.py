"""Measurements. Run them from the repository's root, for example ``python -m benchmarks.recurrence``."""
