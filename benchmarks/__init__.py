"""Measurements. Run from the repository: ``python -m benchmarks.recurrence``."""
