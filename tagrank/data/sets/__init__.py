"""Readers of published data sets, one module for each set. The modules that they share are in the same folder.

A reader is a generator function: it yields a :data:`~tagrank.data.sets.records.Record` per image, in the order of the
set's files. :func:`~tagrank.data.sets.records.write_records` writes the records to a manifest. ``docs/data-sets.md``
says which files each set has and what the order of its tags means.
"""
