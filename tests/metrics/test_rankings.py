import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau
from sklearn.metrics import ndcg_score
from torchmetrics.functional.retrieval import retrieval_precision, retrieval_recall

from tagrank.data.targets import IGNORE, ListTargets, encode_lists
from tagrank.metrics import (
    GAINS,
    evaluate_lengths,
    evaluate_order,
    evaluate_rankings,
    negative_log_likelihood,
    summarise,
)

TAGS = 12
tag_lists = st.permutations(range(TAGS)).flatmap(lambda tags: st.integers(0, TAGS).map(lambda n: tags[:n]))
references = tag_lists.filter(len)


def ndcg_by_hand(ranking: list[int], reference: list[int], k: int, gain: str) -> float:
    """NDCG@k as a loop over positions."""
    n = len(reference)
    gains = {
        "reciprocal_log": [1 / math.log2(1 + r) for r in range(1, n + 1)],
        "linear": [float(n + 1 - r) for r in range(1, n + 1)],
        "exponential": [2.0 ** (n + 1 - r) - 1 for r in range(1, n + 1)],
    }[gain]
    of = dict(zip(reference, gains, strict=True))
    dcg = sum(of.get(tag, 0.0) / math.log2(1 + p) for p, tag in enumerate(ranking[:k], start=1))
    ideal = sum(g / math.log2(1 + p) for p, g in enumerate(gains[:k], start=1))
    return dcg / ideal


def test_values_computed_by_hand() -> None:
    # Ranking (7, 3, 9), reference (3, 7). Gains of the ranking: .63093, 1, 0; ideal gains: 1, .63093; discounts: 1,
    # .63093, .5.
    scores = evaluate_rankings([[7, 3, 9]], [[3, 7]], ks=(1, 2, 3))
    a = 1 / math.log2(3)
    assert scores["ndcg@1"] == pytest.approx([a])
    assert scores["ndcg@2"] == pytest.approx([2 * a / (1 + a * a)])
    assert scores["ndcg@3"] == pytest.approx([2 * a / (1 + a * a)])
    assert scores["precision@3"] == pytest.approx([2 / 3])
    assert scores["recall@1"] == pytest.approx([1 / 2])
    assert scores["f1@3"] == pytest.approx([2 * (2 / 3) * 1 / (2 / 3 + 1)])
    assert scores["first_tag"] == pytest.approx([0.0])


def test_linear_and_exponential_gains_computed_by_hand() -> None:
    # The reference has three tags, of relevances 3, 2, 1. The ranking has the second tag first, and then the first.
    linear = evaluate_rankings([[5, 4]], [[4, 5, 6]], ks=(2,), gain="linear")
    assert linear["ndcg@2"] == pytest.approx([(2 + 3 / math.log2(3)) / (3 + 2 / math.log2(3))])
    exponential = evaluate_rankings([[5, 4]], [[4, 5, 6]], ks=(2,), gain="exponential")
    assert exponential["ndcg@2"] == pytest.approx([(3 + 7 / math.log2(3)) / (7 + 3 / math.log2(3))])


@pytest.mark.parametrize("gain", GAINS)
@given(data=st.lists(st.tuples(tag_lists, references), min_size=1, max_size=6), k=st.integers(1, 15))
def test_ndcg_agrees_with_a_loop(gain: str, data: list[tuple[list[int], list[int]]], k: int) -> None:
    rankings, refs = zip(*data, strict=True)
    got = evaluate_rankings(rankings, refs, ks=(k,), gain=gain)[f"ndcg@{k}"]
    expected = [ndcg_by_hand(ranking, ref, k, gain) for ranking, ref in data]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@settings(max_examples=30)
@given(ranking=st.permutations(range(TAGS)), reference=references, k=st.integers(1, TAGS))
def test_ndcg_of_a_full_ranking_agrees_with_scikit_learn(ranking: list[int], reference: list[int], k: int) -> None:
    # scikit-learn gives false credit to tags that were not predicted, so it is right only if all tags are ranked.
    relevance, score = np.zeros(TAGS), np.zeros(TAGS)
    relevance[reference] = 1 / np.log2(np.arange(len(reference)) + 2)
    score[ranking] = np.arange(TAGS, 0, -1)
    expected = ndcg_score(relevance[None], score[None], k=k)
    assert evaluate_rankings([ranking], [reference], ks=(k,))[f"ndcg@{k}"] == pytest.approx([expected])


@settings(max_examples=30)
@given(ranking=st.permutations(range(TAGS)), reference=references, k=st.integers(1, TAGS))
def test_precision_and_recall_agree_with_torchmetrics(ranking: list[int], reference: list[int], k: int) -> None:
    # All scores are above zero, because torchmetrics drops tags without a positive score from its precision.
    score, target = torch.zeros(TAGS), torch.zeros(TAGS, dtype=torch.bool)
    score[ranking] = torch.arange(TAGS, 0, -1).float()
    target[reference] = True
    got = summarise(evaluate_rankings([ranking], [reference], ks=(k,)))
    assert got[f"precision@{k}"] == pytest.approx(retrieval_precision(score, target, top_k=k).item())
    assert got[f"recall@{k}"] == pytest.approx(retrieval_recall(score, target, top_k=k).item())


@given(reference=references, more=st.integers(0, 3))
def test_the_reference_itself_is_ideal(reference: list[int], more: int) -> None:
    scores = evaluate_rankings([reference + [TAGS + i for i in range(more)]], [reference])
    for k in (1, 3, 5, 10):
        assert scores[f"ndcg@{k}"] == pytest.approx([1.0])
    assert scores["first_tag"] == [1.0]


@given(data=st.lists(st.tuples(tag_lists, references), min_size=1, max_size=6))
def test_bounds_and_the_harmonic_mean(data: list[tuple[list[int], list[int]]]) -> None:
    rankings, refs = zip(*data, strict=True)
    scores = evaluate_rankings(rankings, refs)
    for values in scores.values():
        assert values.shape == (len(data),)
        assert (values >= 0).all()
        assert (values <= 1 + 1e-12).all()
    for k in (1, 3, 5, 10):
        p, r, f1 = (scores[f"{name}@{k}"] for name in ("precision", "recall", "f1"))
        np.testing.assert_allclose(f1 * (p + r), 2 * p * r, atol=1e-12)


@given(ranking=tag_lists, reference=references, k=st.integers(1, 10), data=st.data())
def test_the_tail_beyond_k_does_not_matter(
    ranking: list[int], reference: list[int], k: int, data: st.DataObject
) -> None:
    shuffled = ranking[:k] + data.draw(st.permutations(ranking[k:]))
    a = evaluate_rankings([ranking], [reference], ks=(k,))
    b = evaluate_rankings([shuffled], [reference], ks=(k,))
    assert a == b


@given(ranking=tag_lists.filter(lambda tags: len(tags) > 1), reference=references, data=st.data())
def test_putting_the_more_important_of_two_tags_first_never_hurts(
    ranking: list[int], reference: list[int], data: st.DataObject
) -> None:
    i = data.draw(st.integers(0, len(ranking) - 2))
    swapped = ranking.copy()
    swapped[i], swapped[i + 1] = swapped[i + 1], swapped[i]
    order = {tag: rank for rank, tag in enumerate(reference)}
    better, worse = (ranking, swapped)
    if order.get(swapped[i], TAGS) < order.get(ranking[i], TAGS):
        better, worse = swapped, ranking
    assert (
        evaluate_rankings([better], [reference], ks=(TAGS,))[f"ndcg@{TAGS}"]
        >= evaluate_rankings([worse], [reference], ks=(TAGS,))[f"ndcg@{TAGS}"]
    )


def test_images_do_not_mix() -> None:
    rng = np.random.default_rng(0)
    rankings = [rng.permutation(50)[: rng.integers(0, 20)].tolist() for _ in range(40)]
    refs = [rng.permutation(50)[: rng.integers(1, 9)].tolist() for _ in range(40)]
    together = evaluate_rankings(rankings, refs)
    for image in range(40):
        single = evaluate_rankings([rankings[image]], [refs[image]])
        for name, values in together.items():
            assert values[image] == single[name][0]


def test_empty_and_short_rankings_leave_positions_open() -> None:
    scores = evaluate_rankings([[], [4]], [[4, 5], [4, 5]], ks=(1, 3))
    np.testing.assert_array_equal(scores["first_tag"], [0, 1])
    np.testing.assert_array_equal(scores["ndcg@1"], [0, 1])
    np.testing.assert_allclose(scores["precision@3"], [0, 1 / 3])
    np.testing.assert_allclose(scores["recall@3"], [0, 1 / 2])
    np.testing.assert_allclose(scores["f1@3"], [0, 2 / 5])


def test_a_long_reference_does_not_overflow() -> None:
    reference = list(range(3000))
    scores = evaluate_rankings([reference], [reference], gain="exponential")
    assert scores["ndcg@10"] == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("rankings", "refs", "options", "message"),
    [
        ([[1]], [[1], [2]], {}, "rankings: expected 2"),
        ([[1], [2, 3, 2]], [[1], [2]], {}, "rankings: expected distinct tags, image 1 has tag 2 twice"),
        ([[1]], [[4, 4]], {}, "references: expected distinct tags, image 0 has tag 4 twice"),
        ([[1], [1]], [[1], []], {}, "references: .* image 1 is empty"),
        ([[1], [0, -1]], [[1], [1]], {}, "rankings: expected tag indices from 0, image 1 has -1"),
        ([[1]], [[1]], {"ks": (0,)}, "ks: expected cut-offs of at least 1"),
        ([[1]], [[1]], {"ks": ()}, "ks: expected cut-offs of at least 1"),
        ([[1]], [[1]], {"gain": "cubic"}, "gain: expected one of reciprocal_log, linear, exponential; got 'cubic'"),
    ],
)
def test_invalid_lists_are_errors(
    rankings: list[list[int]], refs: list[list[int]], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_rankings(rankings, refs, **options)  # type: ignore[arg-type]


def test_the_same_tag_in_neighbouring_images_is_no_duplicate() -> None:
    assert evaluate_rankings([[3], [3]], [[3], [3]])["first_tag"].tolist() == [1, 1]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), lists=st.lists(st.lists(tag_lists, min_size=1, max_size=3), min_size=1, max_size=4))
def test_likelihood_agrees_with_a_loop(seed: int, lists: list[list[list[int]]]) -> None:
    generator = torch.Generator().manual_seed(seed)
    steps = TAGS + 1
    log_p = torch.randn(len(lists), steps, TAGS + 1, generator=generator, dtype=torch.float64).log_softmax(dim=2)
    expected = []
    for image, ranked_lists in enumerate(lists):
        nll = [-sum(log_p[image, t, tag].item() for t, tag in enumerate([*r, TAGS])) for r in ranked_lists]
        expected.append(sum(nll) / len(nll))
    got = negative_log_likelihood(log_p, encode_lists(lists, end=TAGS, steps=steps))
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_likelihood_agrees_with_pytorch_and_takes_lists_in_any_order() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, generator=generator)
    lists = ListTargets(torch.tensor([[4, -100, -100], [0, 1, 4], [2, 4, -100]]), torch.tensor([1, 0, 1]))
    rows = torch.nn.functional.cross_entropy(
        logits[lists.image_index].transpose(1, 2), lists.targets, reduction="none", ignore_index=IGNORE
    ).sum(dim=1)
    expected = [rows[1].item(), (rows[0] + rows[2]).item() / 2]
    got = negative_log_likelihood(logits.log_softmax(dim=2), lists)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_an_impossible_class_after_the_list_has_ended_costs_nothing() -> None:
    log_p = torch.tensor([[[-math.inf, 0.0], [-math.inf, -math.inf]]])
    got = negative_log_likelihood(log_p, ListTargets(torch.tensor([[1, IGNORE]]), torch.tensor([0])))
    assert got.tolist() == [0.0]


@pytest.mark.parametrize(
    ("targets", "image_index", "message"),
    [
        ([[0, 1]], [0], "log_probabilities: expected shape"),
        ([[0, 1, 9]], [0], "lists.targets: expected classes 0..4"),
        ([[0, 1, -1]], [0], "lists.targets: expected classes 0..4"),
        ([[0, 1, 2]], [2], r"lists.image_index: expected one index in 0..1"),
        ([[0, 1, 2]], [0, 1], r"lists.image_index: expected one index in 0..1 for each of 1 lists"),
        ([[0, 1, 2]], [0], "expected at least one list per image; image 1 has none"),
    ],
)
def test_invalid_targets_are_errors(targets: list[list[int]], image_index: list[int], message: str) -> None:
    lists = ListTargets(torch.tensor(targets), torch.tensor(image_index))
    with pytest.raises(ValueError, match=message):
        negative_log_likelihood(torch.zeros(2, 3, 5), lists)


def test_summary_is_the_mean_over_images() -> None:
    got = summarise({"ndcg@1": np.array([1.0, 0.5]), "first_tag": np.array([0.0, 1.0])})
    assert got == {"ndcg@1": 0.75, "first_tag": 0.5}
    assert all(type(value) is float for value in got.values())


def test_a_summary_of_nothing_is_an_error() -> None:
    scores = evaluate_rankings([], [])
    assert scores["ndcg@5"].shape == (0,)
    assert all(values.shape == (0,) for values in evaluate_order([], []).values())
    with pytest.raises(ValueError, match="'ndcg@1' has none"):
        summarise(scores)


def rbo_by_hand(a: list[int], b: list[int], p: float) -> float:
    """Equation (32) of Webber, Moffat and Zobel (2010), with sets."""
    short, long = sorted((a, b), key=len)
    s, n = len(short), len(long)
    x = [len(set(short[:d]) & set(long[:d])) for d in range(n + 1)]
    total = sum(x[d] / d * p**d for d in range(1, n + 1))
    total += sum(x[s] * (d - s) / (s * d) * p**d for d in range(s + 1, n + 1))
    return (1 - p) / p * total + ((x[n] - x[s]) / n + x[s] / s) * p**n


@given(data=st.lists(st.tuples(tag_lists, references), min_size=1, max_size=6), p=st.floats(0.1, 0.99))
def test_rank_biased_overlap_agrees_with_sets(data: list[tuple[list[int], list[int]]], p: float) -> None:
    rankings, refs = zip(*data, strict=True)
    got = evaluate_order(rankings, refs, p)["rbo"]
    np.testing.assert_allclose(got, [rbo_by_hand(a, b, p) if a else 0.0 for a, b in data], rtol=1e-9, atol=1e-12)


def test_rank_biased_overlap_of_long_lists_is_the_infinite_sum() -> None:
    # Two endless lists that differ in the order of each pair: they share d tags at even depths and d - 1 at odd depths.
    n, p = 2000, 0.9
    a = list(range(n))
    b = [v + 1 if v % 2 == 0 else v - 1 for v in a]
    expected = (1 - p) * sum(p ** (d - 1) * ((d - d % 2) / d) for d in range(1, n))
    assert evaluate_order([a], [b], p)["rbo"] == pytest.approx([expected], abs=1e-12)


@given(data=st.lists(st.tuples(tag_lists, references), min_size=1, max_size=6))
def test_kendall_tau_agrees_with_scipy(data: list[tuple[list[int], list[int]]]) -> None:
    rankings, refs = zip(*data, strict=True)
    got = evaluate_order(rankings, refs)
    for row, (a, b) in enumerate(data):
        common = [v for v in a if v in b]
        assert got["overlap"][row] == len(common)
        expected = kendalltau(range(len(common)), [b.index(v) for v in common]).statistic if len(common) > 1 else None
        if expected is None:
            assert np.isnan(got["kendall_tau"][row])
        else:
            assert got["kendall_tau"][row] == pytest.approx(expected)


def test_equal_and_reversed_lists() -> None:
    got = evaluate_order([[3, 1, 2], [2, 1, 3], []], [[3, 1, 2]] * 3)
    assert got["rbo"][0] == pytest.approx(1.0)
    assert got["rbo"][2] == 0.0
    np.testing.assert_array_equal(got["kendall_tau"], [1.0, -1.0, np.nan])
    with pytest.raises(ValueError, match=r"persistence: expected a number in \(0, 1\), got 1"):
        evaluate_order([[1]], [[1]], 1.0)


def test_means_are_over_the_images_that_have_a_measure() -> None:
    nothing = np.full(3, np.nan)
    assert summarise({"tau": np.array([1.0, np.nan, 0.0]), "nll": nothing}) == {"tau": 0.5}


def test_lists_of_a_chosen_length_by_hand() -> None:
    got = evaluate_lengths([[0, 1, 2], [4], []], [[[1, 0], [3, 4, 5, 0]], [], [[1]]])
    # 2 of 3 and 2 of 2 tags are shared with the first person, 1 of 3 and 1 of 4 with the second.
    np.testing.assert_allclose(got["list_f1"], [(4 / 5 + 2 / 7) / 2, np.nan, 0.0])
    np.testing.assert_allclose(got["length_error"], [(1 + 1) / 2, np.nan, 1.0])
    with pytest.raises(ValueError, match="shorter"):
        evaluate_lengths([[0]], [])
