"""Photographs by the lists that a model expects people to write about them.

``store`` keeps what a model says of many photographs, ``search`` ranks them by a query or by another photograph, and
``evaluation`` measures how well.
"""

from tagrank.retrieval.search import Match, PhotoIndex, open_index
from tagrank.retrieval.store import IndexWriter, photo_tables

__all__ = ["IndexWriter", "Match", "PhotoIndex", "open_index", "photo_tables"]
