"""Photographs by the lists that a model expects people to write about them.

``store`` keeps what a model says of many photographs, ``search`` ranks them by a query or by another photograph, and
``evaluation`` measures how well.
"""

from tagrank.retrieval.index import IndexWriter, photo_tables
from tagrank.retrieval.search import Match, PhotoIndex, open_index

__all__ = ["IndexWriter", "Match", "PhotoIndex", "open_index", "photo_tables"]
