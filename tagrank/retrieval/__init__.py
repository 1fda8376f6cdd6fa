"""Search for photographs by the lists that a model expects people to write about them.

``index`` keeps a model's predictions for many photographs, ``update`` replaces those that changed, ``search`` ranks the
photographs by a query or by another photograph, and ``ndcg`` measures how good the rankings are.
"""

from tagrank.retrieval.index import IndexWriter, photo_tables
from tagrank.retrieval.search import Match, PhotoIndex, open_index
from tagrank.retrieval.update import IndexUpdate

__all__ = ["IndexUpdate", "IndexWriter", "Match", "PhotoIndex", "open_index", "photo_tables"]
