"""How well photographs are found, by a retrieval NDCG after Hwang and Grauman.

Hwang and Grauman (2012, "Learning the Relative Importance of Objects from Tagged Images for Retrieval and Cross-Modal
Search") judge a ranking of photographs by

    NDCG@k = 1/Z sum over p <= k of (2^s(p) - 1) / log2(1 + p)

where ``Z`` is the sum for the best ranking there is, and ``s(p)`` in [0, 1] says how alike the ordered lists of the
query and of the photograph at position ``p`` are. Here ``s`` is the cosine of the lists' absolute ranks, vectors that
have ``1/log2(1 + rank)`` for each tag of a list and 0 for others. (They average it with that of relative ranks, which
compare a tag's rank with its ranks in a training set.)

The gain ``2^s - 1`` and the discount are NDCG's usual ones. That their paper takes just these, and the cosine, is by
memory of it: its text was not to be had for a check.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tagrank.annotator import Annotator
from tagrank.data.labelled import LabelledImages
from tagrank.errors import InputError
from tagrank.metrics import FloatArray
from tagrank.retrieval.search import in_any_order, in_order
from tagrank.retrieval.store import photo_tables

KS = (5, 10, 50)
QUERY_TAGS = 3


def list_similarity(queries: Sequence[Sequence[int]], lists: Sequence[Sequence[int]]) -> FloatArray:
    """The cosine of absolute ranks, ``[Q, N]``, of non-empty lists of distinct tag indices."""
    width = 1 + max(tag for group in (queries, lists) for tags in group for tag in tags)

    def ranks(group: Sequence[Sequence[int]]) -> FloatArray:
        table = np.zeros((len(group), width))
        for row, tags in enumerate(group):
            table[row, list(tags)] = 1.0 / np.log2(np.arange(len(tags)) + 2.0)
        scaled: FloatArray = table / np.linalg.norm(table, axis=1, keepdims=True)
        return scaled

    similarity: FloatArray = np.clip(ranks(queries) @ ranks(lists).T, 0.0, 1.0)
    return similarity


def retrieval_ndcg(
    scores: NDArray[np.floating], similarity: FloatArray, ks: Sequence[int] = KS
) -> dict[str, FloatArray]:
    """NDCG of rankings of photographs, for each query.

    Args:
        scores: ``[Q, N]``, the higher the earlier; ties in the order of the photographs. A photograph whose score is
            ``-inf`` is not ranked at all.
        similarity: ``[Q, N]``, ``s`` in [0, 1].
        ks: the cut-offs, each at least 1.

    Returns:
        ``"ndcg@k"`` ``[Q]`` for each ``k``; NaN where no photograph is like the query at all.
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
    """Find photographs among these by the beginnings of people's lists, and by each other.

    Args:
        annotator: the model, without feedback.
        images: those to find, with features, and to take queries from: the first three tags of each list that the
            model has all of (or of all tags, where there are fewer), each query once.
        seed: of the order by chance.

    Returns:
        For each way of searching :func:`retrieval_ndcg`, by query: ``"tags, in order"``, ``"tags, in any order"``, and
        ``"tags, by chance"``; ``"photograph"`` (expected gains), ``"photograph, features alone"`` (their cosine), and
        ``"photograph, by chance"``, the photograph itself being left out.

    Raises:
        InputError: the model has feedback, or there are no two photographs or no queries.
    """
    if annotator.ranker.feedback:
        raise InputError("retrieval: this model reads its own tags, and has no table of distributions to search")
    references = images.references(annotator.vocabulary)
    starts = (tags[:QUERY_TAGS] for tags in references)
    queries = list(dict.fromkeys(tuple(s) for s in starts if max(s) < len(annotator.vocabulary)))
    if len(images) < 2 or not queries:
        raise InputError("retrieval: expected at least two photographs, and a list that starts with tags of the model")
    queries = [query[: annotator.ranker.steps] for query in queries]
    tables, gains = photo_tables(annotator.probabilities(images.inputs))
    log_p = torch.from_numpy(tables).permute(1, 2, 0).contiguous()
    rng = np.random.default_rng(seed)

    by_tags = list_similarity(queries, references)
    result = {
        "tags, in order": retrieval_ndcg(np.stack([in_order(log_p, query) for query in queries]), by_tags),
        "tags, in any order": retrieval_ndcg(np.stack([in_any_order(log_p, query) for query in queries]), by_tags),
        "tags, by chance": retrieval_ndcg(rng.random(by_tags.shape), by_tags),
    }
    by_photograph = list_similarity(references, references)
    features = torch.nn.functional.normalize(images.inputs.flatten(1).float()).numpy()
    gains32 = gains.astype(np.float32)
    others = np.where(np.eye(len(images), dtype=bool), -np.inf, 0.0)
    result["photograph"] = retrieval_ndcg(gains32 @ gains32.T + others, by_photograph)
    result["photograph, features alone"] = retrieval_ndcg(features @ features.T + others, by_photograph)
    result["photograph, by chance"] = retrieval_ndcg(rng.random(by_photograph.shape) + others, by_photograph)
    return result
