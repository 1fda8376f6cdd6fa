"""Scores are compared with an enumeration of lists, and rankings with a sort of all scores."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from tagrank import TagRanker
from tagrank.annotator import Annotator
from tagrank.data.manifest import Example
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.features.labelled import LabelledImages
from tagrank.retrieval import IndexWriter, PhotoIndex, ndcg, open_index
from tagrank.retrieval.ndcg import evaluate_retrieval, list_similarity, retrieval_ndcg

VOCABULARY = Vocabulary(["ant", "bee", "cat", "dog", "elk"])
COUNT = 50
P = torch.randn(COUNT, 4, 6, generator=torch.Generator().manual_seed(0)).mul(2).softmax(-1)


def make(**options: bool) -> Annotator:
    torch.manual_seed(0)
    ranker = TagRanker(8, 5, max_length=3, embedding_size=6, hidden_size=7, **options)  # type: ignore[arg-type]
    return Annotator(ranker, VOCABULARY)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> PhotoIndex:
    folder = tmp_path_factory.mktemp("index")
    with IndexWriter(folder, make(), 7) as writer:
        writer.add([f"{i}.jpg" for i in range(COUNT)], P)
    return open_index(folder)


def test_spellings_of_a_tag(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Annotator(TagRanker(8, 2, max_length=3, embedding_size=6, hidden_size=7), Vocabulary(["dog", "caf\u00e9"]))
    with IndexWriter(tmp_path, model) as writer:
        writer.add(["a.jpg"], P[:1, :, :3] / P[:1, :, :3].sum(-1, keepdim=True))
    photos = open_index(tmp_path)
    assert photos.search(["cafe\u0301"]) == photos.search(["caf\u00e9"])
    with pytest.raises(InputError, match="expected each tag once"):
        photos.search(["cafe\u0301", "caf\u00e9"])


QUERIES = [("dog",), ("cat", "ant"), ("elk", "dog", "bee"), ("ant", "bee", "cat", "dog")]


@pytest.mark.parametrize("query", QUERIES)
def test_the_score_is_the_probability_of_a_list_that_starts_so(index: PhotoIndex, query: tuple[str, ...]) -> None:
    tags = [VOCABULARY.index(tag) for tag in query]
    expected = np.zeros(COUNT)
    for rest in itertools.product(range(6), repeat=4 - len(tags)):
        sequence = [*tags, *rest]
        expected += [math.prod(float(image[t, v]) for t, v in enumerate(sequence)) for image in P]
    np.testing.assert_allclose(index.scores(query), expected, rtol=len(tags) * 8 * 2**-11)


@pytest.mark.parametrize("query", QUERIES)
def test_any_order_is_the_sum_over_all_orders(index: PhotoIndex, query: tuple[str, ...]) -> None:
    got = index.scores(query, ordered=False)
    np.testing.assert_allclose(got, sum(index.scores(order) for order in itertools.permutations(query)), rtol=1e-9)


@pytest.mark.parametrize("top_k", [1, 5, 7, COUNT, 1000])
@pytest.mark.parametrize("ordered", [True, False])
def test_the_best_are_those_of_a_full_sort(index: PhotoIndex, top_k: int, ordered: bool) -> None:
    scores = index.scores(("cat", "dog"), ordered=ordered)
    expected = sorted(range(COUNT), key=lambda i: -scores[i])[:top_k]
    got = index.search(("cat", "dog"), ordered=ordered, top_k=top_k)
    assert [m.image for m in got] == [f"{i}.jpg" for i in expected]
    assert [m.score for m in got] == [scores[i] for i in expected]
    assert [m.rank for m in got] == list(range(1, len(expected) + 1))


def test_ties_keep_the_order_of_the_index(tmp_path: Path) -> None:
    with IndexWriter(tmp_path, make(), 4) as writer:
        writer.add([f"{i}.jpg" for i in range(30)], P[:1].expand(30, -1, -1))
    assert [m.image for m in open_index(tmp_path).search(["dog"], top_k=9)] == [f"{i}.jpg" for i in range(9)]


def test_photographs_alike(index: PhotoIndex) -> None:
    gains = torch.tensor(np.stack([index.gains(f"{i}.jpg") for i in range(COUNT)])).double()
    for i in range(COUNT):
        (first, *others) = index.similar(index.gains(f"{i}.jpg"), top_k=COUNT)
        assert first.image == f"{i}.jpg"
        assert first.score == pytest.approx(1.0, abs=2e-3)
        assert first.score <= 1
        expected = torch.nn.functional.cosine_similarity(gains, gains[i : i + 1])
        for match in others:
            assert match.score == pytest.approx(float(expected[int(match.image.split(".")[0])]), abs=2e-3)
        assert all(a.score >= b.score for a, b in itertools.pairwise(others))
    with pytest.raises(InputError, match=r"no photograph 'none\.jpg' in this index"):
        index.gains("none.jpg")
    assert "3.jpg" in index
    assert "none.jpg" not in index


def test_a_photograph_from_outside_is_searched_as_if_it_were_inside(tmp_path: Path) -> None:
    annotator, features = make(), torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    with IndexWriter(tmp_path, annotator) as writer:
        writer.add([f"{i}.jpg" for i in range(6)], annotator.probabilities(features))
    index = open_index(tmp_path)
    np.testing.assert_allclose(index.gains_of(annotator, features[2]), index.gains("2.jpg"), atol=1e-3)


def test_a_query_in_any_order_is_bounded(tmp_path: Path) -> None:
    """The work doubles with each tag: 24 tags took minutes, and more memory than there is."""
    torch.manual_seed(0)
    tags = [f"tag {i}" for i in range(24)]
    annotator = Annotator(TagRanker(8, 24, max_length=24, embedding_size=6, hidden_size=7), Vocabulary(tags))
    with IndexWriter(tmp_path, annotator) as writer:
        writer.add(["a.jpg", "b.jpg"], annotator.probabilities(torch.randn(2, 8)))
    index = open_index(tmp_path)
    with pytest.raises(InputError, match="query: expected at most 10 tags in any order, got 11"):
        index.search(tags[:11], ordered=False)
    assert len(index.search(tags)) == len(index.search(tags[:10], ordered=False)) == 2


@pytest.mark.parametrize(("query", "meant"), [("DOG", "'dog'"), ("Cats", "'cat'"), ("elks", "'elk'"), ("be", "'bee'")])
def test_an_unknown_tag_suggests_the_nearest(index: PhotoIndex, query: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"is not one of the 5 tags of this index; did you mean {meant}"):
        index.search([query])
    with pytest.raises(InputError, match=r"of this index$"):
        index.search(["motorway"])


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ((), "query: expected 1 to 4 tags, got 0"),
        (("ant", "bee", "cat", "dog", "elk"), "query: expected 1 to 4 tags, got 5"),
        (("dgo",), r"query: 'dgo' is not one of the 5 tags of this index; did you mean 'dog'\?"),
        (("dog", "ant", "dog"), "query: expected each tag once, got dog, ant, dog"),
    ],
)
def test_wrong_queries(index: PhotoIndex, query: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        index.search(query)
    with pytest.raises(InputError, match="top_k: expected at least 1, got 0"):
        index.search(["dog"], top_k=0)


def test_similarity_of_lists() -> None:
    # The cosine of (dog, ball) and (ball, dog) is 2 a / (1 + a^2) with a = 1/log2(3).
    a = 1 / math.log2(3)
    got = list_similarity([[3, 7]], [[3, 7], [7, 3], [3], [5]])
    np.testing.assert_allclose(got, [[1.0, 2 * a / (1 + a * a), 1 / math.sqrt(1 + a * a), 0.0]])


def test_retrieval_ndcg_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores, similarity = rng.random((20, 30)), rng.random((20, 30))
    for k in (1, 5, 30, 99):
        expected = [ndcg_score(2 ** s[None] - 1, q[None], k=k) for q, s in zip(scores, similarity, strict=True)]
        np.testing.assert_allclose(retrieval_ndcg(scores, similarity, (k,))[f"ndcg@{k}"], expected)
    hidden = scores.copy()
    hidden[:, 0] = -np.inf
    without = retrieval_ndcg(scores[:, 1:], similarity[:, 1:], (5,))["ndcg@5"]
    np.testing.assert_allclose(retrieval_ndcg(hidden, similarity, (5,))["ndcg@5"], without)
    assert np.isnan(retrieval_ndcg(scores, np.zeros_like(scores), (5,))["ndcg@5"]).all()


def test_a_model_that_knows_the_lists_finds_the_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    lists = [rng.permutation(5)[: rng.integers(1, 4)].tolist() for _ in range(40)]
    p = torch.full((40, 4, 6), 0.002)
    for image, tags in enumerate(lists):
        for t in range(4):
            p[image, t, tags[t] if t < len(tags) else 5] = 0.99
    named = [tuple(VOCABULARY.tag(v) for v in tags) for tags in lists]
    examples = [Example(f"{i}.jpg", tags, (tags,)) for i, tags in enumerate(named)]
    annotator = make()
    monkeypatch.setattr(annotator, "probabilities", lambda _: p)
    features = torch.randn(40, 8)
    got = evaluate_retrieval(annotator, LabelledImages(examples, features))
    means = {name: values["ndcg@5"].mean() for name, values in got.items()}
    assert len(got["tags, in order"]["ndcg@5"]) == len(set(named))
    assert means["tags, in order"] > 0.85
    assert means["photograph"] > 0.97
    assert means["tags, by chance"] < 0.7
    assert means["photograph, by chance"] < 0.7
    assert means["tags, in any order"] > 0.85
    monkeypatch.setattr(ndcg, "CHUNK", 7)
    chunked = evaluate_retrieval(annotator, LabelledImages(examples, features))
    for name, values in got.items():
        for key in values:
            np.testing.assert_allclose(chunked[name][key], values[key], rtol=1e-6)
    with pytest.raises(InputError, match="this model reads its own tags"):
        evaluate_retrieval(make(feedback=True), LabelledImages(examples, torch.randn(40, 8)))


def test_two_unknown_tags_are_not_the_same() -> None:
    lists = [("zebra", "ant"), ("quilt", "bee"), ("ant",), ("bee",)]
    images = LabelledImages([Example(f"{i}.jpg", tags, (tags,)) for i, tags in enumerate(lists)], torch.randn(4, 8))
    found = evaluate_retrieval(make(), images)["photograph"]["ndcg@5"]
    # The first list is similar only to the third. If zebra and quilt had the same index, the second would be closer.
    assert list_similarity(images.references(VOCABULARY)[:1], images.references(VOCABULARY))[0, 1] == 0.0
    assert np.isfinite(found).all()
