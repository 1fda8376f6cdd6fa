"""Readers of published data sets: one module for each, with what they share beside them.

A reader is a function that returns a generator of :data:`~tagrank.data.sets.records.Record`, in the order of the set's
files; :func:`~tagrank.data.sets.records.write_records` makes a manifest of them. Which files a set has, and what its
order means, is in ``docs/data-sets.md``.
"""
