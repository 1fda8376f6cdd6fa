"""The members of an ensemble as one batched model, for training: same numbers, a product for all instead of one each."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tagrank.data.targets import ListTargets, class_counts, rank_weights
from tagrank.ranker.dropout import dropout
from tagrank.ranker.ensemble import Ranker, RankerEnsemble
from tagrank.ranker.tag_ranker import TagRanker
from tagrank.recurrence import lstm_recurrence


class Span(NamedTuple):
    """Rows of a batch, one after another, whose lists have at most so many positions.

    Attributes:
        rows: how many rows.
        steps: how many positions.
    """

    rows: int
    steps: int


class StackedRankers:
    """``M`` rankers without feedback, whose parameters are parts of common tensors ``[M, ...]``.

    From now on the parameters of the rankers lie in these tensors, so that whoever changes the ones changes the others:
    the optimizer and the files of a model know nothing of the stack.

    Args:
        ranker: an ensemble, or a single ranker (``M`` = 1). It has no feedback.
    """

    def __init__(self, ranker: Ranker) -> None:
        self.members: list[TagRanker] = ranker.rankers() if isinstance(ranker, RankerEnsemble) else [ranker]
        self.stacks: dict[str, Tensor] = {}
        self._parts: list[list[Tensor]] = []
        for name, _ in self.members[0].named_parameters():
            parts = [member.get_parameter(name) for member in self.members]
            stack = torch.stack([part.detach() for part in parts])
            for part, data in zip(parts, stack, strict=True):
                part.data = data
            self.stacks[name] = stack.requires_grad_(parts[0].requires_grad)
            self._parts.append(list(parts))

    def losses(self, features: Tensor, lists: ListTargets, spans: Sequence[Span]) -> Tensor:
        """The loss of each member, :meth:`tagrank.TagRanker.loss`, ``[M]``. It reads no value from its device.

        Positions that no list of an image reaches have no share in the loss, and are left out where the spans allow.

        Args:
            features: ``[B, D]``.
            lists: the lists of these images; some of its rows may be no lists.
            spans: of the rows, in their order: together ``B`` rows.
        """
        first = self.members[0]
        weights, members, classes = self.stacks, len(self.members), first.num_tags + 1
        count = lists.there.sum().clamp(min=1)
        counts = class_counts(lists, len(features), classes)

        embedding = weights["embedding.weight"].flatten(0, 1), weights["embedding.bias"].flatten()
        flat = F.linear(first.scale(features), *embedding)  # [B, M d]
        flat = flat.relu() if first.activation == "relu" else flat
        embedded = dropout(flat, first.dropout, first.training).view(len(features), members, -1).transpose(0, 1)

        weight_ih = weights["lstm.weight_ih_l0"].transpose(1, 2)
        if first.lstm.bias:
            bias = (weights["lstm.bias_ih_l0"] + weights["lstm.bias_hh_l0"]).unsqueeze(1)
            gates = torch.baddbmm(bias, embedded, weight_ih)
        else:
            gates = embedded.bmm(weight_ih)
        weights_hh = weights["lstm.weight_hh_l0"].unbind()
        skip = None if first.skip is None else embedded.bmm(weights["skip.weight"].transpose(1, 2))

        rows = [span.rows for span in spans]
        parts = zip(spans, gates.split(rows, 1), counts.split(rows, 1), strict=True)
        shares = [None] * len(spans) if skip is None else skip.split(rows, 1)
        weight, bias = weights["classifier.weight"].transpose(1, 2), weights["classifier.bias"].unsqueeze(1)
        total = features.new_zeros(members)
        for (span, gates_of, counts_of), share in zip(parts, shares, strict=True):
            runs = zip(gates_of.unbind(), weights_hh, strict=True)
            outputs = [lstm_recurrence(g, w, steps=span.steps, backend=first.lstm.backend)[0] for g, w in runs]
            output = dropout(torch.stack(outputs), first.hidden_dropout, first.training)  # [M, T, B', H]
            logits = torch.baddbmm(bias, output.flatten(1, 2), weight).view(members, span.steps, span.rows, classes)
            logits = logits if share is None else logits + share.unsqueeze(1)
            total = total - (logits.log_softmax(-1) * counts_of[: span.steps]).sum((1, 2, 3))
        total = total / count

        if first.training and first.tag_classifier is not None:
            weight, bias = weights["tag_classifier.weight"].transpose(1, 2), weights["tag_classifier.bias"].unsqueeze(1)
            logits = torch.baddbmm(bias, embedded, weight)
            wanted = rank_weights(lists, first.num_tags, len(features)).to(logits.dtype).expand_as(logits)
            tags = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum((1, 2))
            total = total + first.auxiliary * tags / len(features)
        return total

    def gradients(self) -> list[tuple[Tensor, Tensor | None]]:
        """Each parameter of the rankers with its part of the gradient of the stack."""
        pairs: list[tuple[Tensor, Tensor | None]] = []
        for stack, parts in zip(self.stacks.values(), self._parts, strict=True):
            grads = [None] * len(parts) if stack.grad is None else stack.grad.unbind()
            pairs += zip(parts, grads, strict=True)
        return pairs
