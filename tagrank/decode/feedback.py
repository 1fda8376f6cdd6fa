"""From a model that reads its own tags to one ranked list of distinct tags for each image.

Such a model has no table of distributions: ``p_t`` depends on the tags before position ``t``. A list ``y_1..y_n``,
followed by END, has the probability ``prod_t p_t(y_t | y_1..y_{t-1}) * p_{n+1}(END | y_1..y_n)``.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tagrank.data.vocabulary import Vocabulary
from tagrank.decode.output import OutputTags
from tagrank.decode.ranking import Array, Ranking, check_options, list_length, order_by_gain
from tagrank.decode.reader import Reader
from tagrank.metrics import Calibration

ELEMENTS = 2**24
"""The largest number of rows times classes that are computed at once. It bounds the memory."""

FEEDBACK_DECODERS = ("expected_gain", "beam", "greedy")


class Expectations(NamedTuple):
    """Expectations over a model's lists, float64: ``gain`` and ``on_list`` ``[B, G]``, ``length`` ``[B]``."""

    gain: Array
    on_list: Array
    length: Array


def decode_feedback(
    ranker: Reader,
    features: Tensor,
    decoder: str,
    output: OutputTags | None = None,
    *,
    top_k: int | None = None,
    threshold: float | None = None,
    beams: int = 8,
    samples: int = 64,
    calibration: Calibration = Calibration(),
) -> list[Ranking]:
    """Choose a ranked list for each image with a model with feedback.

    Args:
        ranker: the model.
        features: ``[B, D]``, on the model's device.
        decoder:
            ``"greedy"``: at each position the most likely unused tag, until END is more likely.
            ``"beam"``: the most likely list of distinct tags with its END that a search with ``beams`` lists finds. It
            compares probabilities of whole lists, not divided by their lengths: a longer list wins if it, with its END,
            is more likely. The search is exact if ``beams`` is at least the number of all lists.
            ``"expected_gain"``: tags by ``sum_t w_t E[p_t(v | tags before t)]``, ``w_t = 1/log2(1+t)``, over lists
            drawn from the model. The number of tags is the expected length, rounded.
        output: which tags may be on the list; all ``V`` if left out.
        top_k: this many tags (or all, if there are fewer), instead of a length chosen by the model. ``"beam"`` then
            looks for the most likely first ``top_k`` tags. For positions beyond ``S`` the model runs more steps.
        threshold: as for :func:`tagrank.decode.decode`.
        beams: lists kept at each position by ``"beam"``.
        samples: lists drawn per image, for ``"expected_gain"`` and for the scores of any decoder. The
            lists drawn for an image are the same in each call, whatever other images are in the batch.
        calibration: as for :func:`tagrank.decode.decode`.

    Returns:
        A :class:`Ranking` for each image.

    Raises:
        ValueError: an argument is out of range.
    """
    check_options(decoder, FEEDBACK_DECODERS, top_k, threshold)
    for name, count in (("beams", beams), ("samples", samples)):
        if count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count}")
    if output is None:
        output = OutputTags(Vocabulary([str(tag) for tag in range(ranker.num_tags)]))
    length = list_length(decoder, top_k, threshold, ranker.steps, len(output.tags))
    search: Callable[[Tensor], list[list[int]]] | None = None
    if decoder != "expected_gain":
        search = partial(_greedy if decoder == "greedy" else partial(_beam, width=beams), ranker, output, length)
    rankings = []
    for batch in features.split(max(1, ELEMENTS // (max(beams, samples) * (ranker.num_tags + 1)))):
        expected = expectations(ranker, batch, output, samples)
        lists = order_by_gain(expected.gain, expected.length, length) if search is None else search(batch)
        rankings += [
            output.ranking(tags, scores, threshold)
            for tags, scores in zip(lists, calibration(expected.on_list), strict=True)
        ]
    return rankings


@torch.no_grad()
def expectations(ranker: Reader, features: Tensor, output: OutputTags, samples: int) -> Expectations:
    """Expectations over the lists that the model writes, estimated from lists drawn from the model.

    A drawn list contributes the whole distribution at each position that it reaches, not only the tag drawn there.
    Lists are drawn by inversion from the points of a scrambled Sobol sequence with one dimension per position; all
    images use the same points. Lists with the same beginning share the model's steps for that beginning.

    Args:
        ranker: the model.
        features: ``[B, D]``.
        output: the classes that count.
        samples: lists per image; a power of two suits the Sobol sequence.

    Returns:
        ``gain``: ``sum_t w_t E[p_t(v)]``; ``on_list``: the probability that a class is on the list, counted at
        its first occurrence; ``length``: the expected number of tags.
    """
    batch, num_tags, classes = len(features), ranker.num_tags, len(output.tags)
    points = torch.quasirandom.SobolEngine(ranker.steps, scramble=True, seed=0).draw(samples, dtype=torch.float64)
    points = points.to(features.device)
    group = torch.from_numpy(output.group).to(features.device)
    target = torch.where(group < 0, classes, group)
    gain, on_list = torch.zeros(2, batch, classes, dtype=torch.float64, device=features.device)
    length = gain.new_zeros(batch)

    # A prefix is a distinct beginning of drawn lists, and a row of the model's state. prefix[i] is the prefix of the
    # list that is drawn from point[i]. Lists that have ended are removed.
    state, tag = ranker.start(features), None
    image = torch.arange(batch, device=features.device)
    seen = torch.zeros(batch, classes + 1, dtype=torch.bool, device=features.device)
    prefix = image.repeat_interleave(samples)
    point = torch.arange(samples, device=features.device).repeat(batch)
    for t in range(ranker.steps):
        log_p, state = ranker.step(state, tag)
        p = log_p.double().exp()
        share = prefix.bincount(minlength=len(image)).double().unsqueeze(1) / samples
        # The last column collects the tags that are not shown.
        merged = share * p.new_zeros(len(p), classes + 1).index_add_(1, target, p[:, :num_tags])
        gain.index_add_(0, image, merged[:, :classes] / np.log2(t + 2))
        on_list.index_add_(0, image, (merged * ~seen)[:, :classes])
        length.index_add_(0, image, merged[:, :classes].sum(1))

        cumulated = p.cumsum(1)[prefix]
        drawn = torch.searchsorted(cumulated, points[point, t : t + 1] * cumulated[:, -1:], right=True).squeeze(1)
        goes_on = drawn < num_tags
        if not goes_on.any():
            break
        point = point[goes_on]
        beginnings, prefix = (prefix * num_tags + drawn)[goes_on].unique(return_inverse=True)
        before, tag = beginnings // num_tags, beginnings % num_tags
        state, image, seen = state.take(before), image[before], seen[before]
        seen[torch.arange(len(tag), device=tag.device), target[tag]] = True
    return Expectations(gain.cpu().numpy(), on_list.clamp(0, 1).cpu().numpy(), length.cpu().numpy())


@torch.no_grad()
def _greedy(ranker: Reader, output: OutputTags, length: int | None, features: Tensor) -> list[list[int]]:
    group = torch.from_numpy(output.group).to(features.device)
    used = (group < 0).expand(len(features), -1)
    open_ = torch.ones(len(features), dtype=torch.bool, device=features.device)
    lists: list[list[int]] = [[] for _ in features]
    state, tag = ranker.start(features), None
    for t in range(min(ranker.steps, len(output.tags)) if length is None else length):
        log_p, state = ranker.step(state, tag)
        best, tag = log_p[:, :-1].masked_fill(used, -torch.inf).max(1)
        if length is None and t > 0:
            open_ &= best >= log_p[:, -1]
        for row in open_.nonzero().flatten().tolist():
            lists[row].append(int(group[tag[row]]))
        used = used | (group == group[tag].unsqueeze(1))
    return lists


@torch.no_grad()
def _beam(ranker: Reader, output: OutputTags, length: int | None, features: Tensor, *, width: int) -> list[list[int]]:
    """The most likely lists with their END if ``length`` is ``None``; else the most likely first ``length`` tags."""
    group = torch.from_numpy(output.group).to(features.device)
    hidden = group < 0
    ended: list[tuple[float, list[int]]] = [(-np.inf, []) for _ in features]
    # The images whose best list is not known yet, and their hypotheses: log probabilities [B, K] and tags [B, K, t].
    image = torch.arange(len(features), device=features.device)
    total = torch.zeros(len(features), 1, dtype=torch.float64, device=features.device)
    tags = torch.empty(len(features), 1, 0, dtype=torch.int64, device=features.device)
    state, last = ranker.start(features), None
    # A list of S tags leaves no position for END, so the longest list with a probability has S - 1 tags.
    longest = min(max(1, ranker.steps - 1), len(output.tags)) if length is None else length
    for t in range(longest + 1):
        if t == longest and length is not None:
            best = total.argmax(1)
            for i, k in zip(image.tolist(), best.tolist(), strict=True):
                ended[i] = 0.0, tags[i, k].tolist()
            break
        log_p, state = ranker.step(state, last)
        log_p = log_p.double().view(len(image), -1, ranker.num_tags + 1)
        if length is None and t > 0:
            finished, k = (total + log_p[..., -1]).max(1)
            for row, i in enumerate(image.tolist()):
                if finished[row] > ended[i][0]:
                    ended[i] = float(finished[row]), tags[row, k[row]].tolist()
        if t == longest:
            break
        used = hidden | (group[tags].unsqueeze(-1) == group).any(2)
        longer = (total.unsqueeze(2) + log_p[..., :-1]).masked_fill(used, -torch.inf)
        beams, longer = longer.shape[1], longer.flatten(1)
        total, chosen = longer.topk(min(width, longer.shape[1]))
        parent, tag = chosen // ranker.num_tags, chosen % ranker.num_tags
        tags = torch.cat([tags.gather(1, parent.unsqueeze(2).expand(-1, -1, t)), tag.unsqueeze(2)], 2)
        # Log probabilities never rise: if no hypothesis is above the best list that has ended, none ever will be.
        alive = total[:, 0] > torch.tensor([ended[i][0] for i in image.tolist()], device=total.device)
        rows = (torch.arange(len(image), device=image.device).unsqueeze(1) * beams + parent)[alive]
        image, total, tags, state = image[alive], total[alive], tags[alive], state.take(rows.flatten())
        last = tags[:, :, -1].flatten()
        if len(image) == 0:
            break
    return [[int(output.group[v]) for v in found] for _, found in ended]
