"""How good a search for photographs is: the retrieval NDCG after Hwang and Grauman.

Hwang and Grauman (2012, "Learning the Relative Importance of Objects from Tagged Images for Retrieval and Cross-Modal
Search") judge a ranking of photographs by

    NDCG@k = 1/Z sum over p <= k of (2^s(p) - 1) / log2(1 + p)

``Z`` is the sum for the best possible ranking. ``s(p)`` in [0, 1] says how alike two ordered lists are: the query and
the list of the photograph at position ``p``. Here ``s`` is the cosine of the lists' absolute ranks: vectors with
``1/log2(1 + rank)`` for each tag of a list, and 0 for other tags. (Hwang and Grauman average this cosine with one of
relative ranks, which compare a tag's rank with its ranks in a training set.)

The gain ``2^s - 1`` and the discount are NDCG's usual ones. That the paper uses them and the cosine was written from
memory; the text of the paper was not available for a check.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tagrank.annotator import Annotator
from tagrank.errors import InputError
from tagrank.features.labelled import LabelledImages
from tagrank.metrics import FloatArray
from tagrank.retrieval.index import photo_tables
from tagrank.retrieval.search import in_any_order, in_order

KS = (5, 10, 50)
QUERY_TAGS = 3
CHUNK = 256
"""How many queries are scored at a time; the scores of all queries may not fit into memory."""


def list_similarity(queries: Sequence[Sequence[int]], lists: Sequence[Sequence[int]]) -> FloatArray:
    """The cosines ``[Q, N]`` of the absolute ranks of queries and lists: non-empty lists of distinct tag indices."""
    from scipy.sparse import csr_array

    width = 1 + max(tag for group in (queries, lists) for tags in group for tag in tags)

    def ranks(group: Sequence[Sequence[int]]) -> Any:
        ends = np.cumsum([0, *map(len, group)])
        place = np.arange(ends[-1]) - np.repeat(ends[:-1], np.diff(ends))
        weights = 1.0 / np.log2(place + 2.0)
        lengths = np.sqrt(np.add.reduceat(weights**2, ends[:-1]))
        data = weights / np.repeat(lengths, np.diff(ends))
        return csr_array((data, np.fromiter(chain.from_iterable(group), np.int64), ends), shape=(len(group), width))

    # The table of all lists is sparse. It may have many columns: tags that the model does not know have one too.
    similarity: FloatArray = np.clip((ranks(lists) @ ranks(queries).toarray().T).T, 0.0, 1.0)
    return similarity


def retrieval_ndcg(
    scores: NDArray[np.floating], similarity: FloatArray, ks: Sequence[int] = KS
) -> dict[str, FloatArray]:
    """The NDCG of each query's ranking of photographs.

    Args:
        scores: ``[Q, N]``. Photographs are ranked by decreasing score, ties by their order. A photograph with score
            ``-inf`` is not ranked.
        similarity: ``[Q, N]``, ``s`` in [0, 1].
        ks: the cut-offs, each at least 1.

    Returns:
        ``"ndcg@k"`` ``[Q]`` for each ``k``; NaN for a query that has similarity 0 with every photograph.
    """
    gains = np.where(np.isneginf(scores), 0.0, np.exp2(similarity) - 1.0)
    discount = 1.0 / np.log2(np.arange(gains.shape[1]) + 2.0)
    dcg = (np.take_along_axis(gains, np.argsort(-scores, axis=1, kind="stable"), axis=1) * discount).cumsum(axis=1)
    ideal = (-np.sort(-gains, axis=1) * discount).cumsum(axis=1)
    result = {}
    for k in ks:
        last = min(k, gains.shape[1]) - 1
        best = ideal[:, last]
        result[f"ndcg@{k}"] = np.divide(dcg[:, last], best, out=np.full(len(gains), np.nan), where=best > 0)
    return result


def evaluate_retrieval(annotator: Annotator, images: LabelledImages, seed: int = 0) -> dict[str, dict[str, FloatArray]]:
    """Search photographs by the beginnings of people's lists and by each other, and judge the rankings.

    Args:
        annotator: the model, without feedback.
        images: the photographs, with features. The queries are the first three tags of each list (all tags of a
            shorter list). Queries with tags that the model does not have are left out, and repetitions too.
        seed: for the rankings by chance.

    Returns:
        :func:`retrieval_ndcg` for each way of searching. One value per query of tags: ``"tags, in order"``,
        ``"tags, in any order"`` and ``"tags, by chance"``. One value per photograph, which is not ranked itself:
        ``"photograph"`` (cosine of expected gains), ``"photograph, features alone"`` (cosine of features) and
        ``"photograph, by chance"``.

    Raises:
        InputError: the model has feedback, or there are fewer than two photographs, or no queries.
    """
    if annotator.ranker.feedback:
        raise InputError("retrieval: this model reads its own tags; expected a model without feedback")
    references = images.references(annotator.vocabulary)
    starts = (tags[:QUERY_TAGS] for tags in references)
    queries = list(dict.fromkeys(tuple(s) for s in starts if max(s) < len(annotator.vocabulary)))
    if len(images) < 2 or not queries:
        raise InputError(
            "retrieval: expected at least two photographs, and a list whose first tags are all tags of the model"
        )
    queries = [query[: annotator.ranker.steps] for query in queries]
    tables, gains = photo_tables(annotator.probabilities(images.inputs))
    log_p = np.ascontiguousarray(tables.transpose(1, 2, 0))
    features = torch.nn.functional.normalize(images.inputs.flatten(1).float()).numpy()
    gains32 = gains.astype(np.float32)
    rng = np.random.default_rng(seed)
    found: defaultdict[str, list[dict[str, FloatArray]]] = defaultdict(list)
    scores: NDArray[np.floating]

    for start in range(0, len(queries), CHUNK):
        some = queries[start : start + CHUNK]
        similarity = list_similarity(some, references)
        for name, scores in (
            ("tags, in order", np.stack([in_order([log_p[t, tag] for t, tag in enumerate(query)]) for query in some])),
            ("tags, in any order", np.stack([in_any_order(log_p[: len(query), list(query)]) for query in some])),
            ("tags, by chance", rng.random(similarity.shape)),
        ):
            found[name].append(retrieval_ndcg(scores, similarity))
    for start in range(0, len(images), CHUNK):
        rows = slice(start, start + CHUNK)
        similarity = list_similarity(references[rows], references)
        others = np.zeros(similarity.shape)
        others[np.arange(len(others)), np.arange(len(others)) + start] = -np.inf
        for name, scores in (
            ("photograph", gains32[rows] @ gains32.T),
            ("photograph, features alone", features[rows] @ features.T),
            ("photograph, by chance", rng.random(similarity.shape)),
        ):
            found[name].append(retrieval_ndcg(scores + others, similarity))
    return {name: {key: np.concatenate([p[key] for p in parts]) for key in parts[0]} for name, parts in found.items()}
