"""The members of an ensemble as one batched model, for training: one product for all members instead of one each."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tagrank.data.targets import ListTargets, class_counts, rank_weights
from tagrank.ranker.dropout import Part, dropout
from tagrank.ranker.ensemble import Ranker, RankerEnsemble, mixture
from tagrank.ranker.share import WHOLE, Share
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
        self._stacks: dict[str, Tensor] = {}
        self._parts: list[tuple[Tensor, list[Tensor]]] = []
        for name, _ in self.members[0].named_parameters():
            parts: list[Tensor] = [member.get_parameter(name) for member in self.members]
            stack = torch.stack([part.detach() for part in parts])
            for part, data in zip(parts, stack, strict=True):
                part.data = data
            self._stacks[name] = stack.requires_grad_(parts[0].requires_grad)
            self._parts.append((stack, parts))

    def losses(
        self,
        scaled: Tensor,
        lists: ListTargets,
        spans: Sequence[Span],
        share: Share = WHOLE,
        list_count: Tensor | None = None,
    ) -> Tensor:
        """The loss of each member, :meth:`tagrank.TagRanker.loss`, ``[M]``. It reads no value from its device.

        Positions that no list of an image reaches have no share in the loss, and are left out where the spans allow.

        Args:
            scaled: ``[B, D]``, features that :meth:`tagrank.TagRanker.scale` returned.
            lists: the lists of these images; some of its rows may be no lists.
            spans: of the rows, in their order: together ``B`` rows.
            share: which rows of a batch these are, if other processes have the others. The spans are those of the
                batch, and the loss is these rows' share in its loss: all shares together are the batch's.
            list_count: how many lists the batch has; by default as many as ``lists``.
        """
        first, images = self.members[0], sum(span.rows for span in spans)
        embedded = self._embed(scaled, images, share)
        total = self._likelihood(self._logits(embedded, spans, share), lists, list_count)
        if first.training and first.tag_classifier is not None:
            logits = self._linear("tag_classifier", embedded)
            wanted = rank_weights(lists, first.num_tags, len(scaled)).to(logits.dtype).expand_as(logits)
            tags = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum((1, 2))
            total = total + first.auxiliary * tags / images
        return total

    @torch.no_grad()
    def evaluate(self, scaled: Tensor, lists: ListTargets) -> tuple[Tensor, Tensor]:
        """The losses of :meth:`losses` and the model's distributions ``[B, S, V + 1]``, from the same logits."""
        logits = self._logits(self._embed(scaled, len(scaled)), [Span(len(scaled), self.members[0].steps)])
        return self._likelihood(logits, lists), mixture(logits[0].softmax(-1).transpose(1, 2))

    def hand_out_gradients(self) -> None:
        """Give each parameter of the rankers its part of the gradients, and take them from the stack."""
        for stack, parts in self._parts:
            gradients = [None] * len(parts) if stack.grad is None else stack.grad.unbind()
            for part, gradient in zip(parts, gradients, strict=True):
                part.grad = gradient
            stack.grad = None

    def _embed(self, scaled: Tensor, images: int, share: Share = WHOLE) -> Tensor:
        """Equation (1), ``[M, B, d]``, for a share of so many images."""
        first, weight, bias = self.members[0], self._stacks["embedding.weight"], self._stacks["embedding.bias"]
        flat = F.linear(scaled, weight.flatten(0, 1), bias.flatten())
        flat = flat.relu() if first.activation == "relu" else flat
        part = None if share == WHOLE else Part(0, images, share.rows(0, images))
        dropped = dropout(flat, first.dropout, first.training, part)
        return dropped.view(len(scaled), *weight.shape[:2]).transpose(0, 1)

    def _logits(self, embedded: Tensor, spans: Sequence[Span], share: Share = WHOLE) -> list[Tensor]:
        """Equations (2)-(8): of each span with ``B'`` rows and ``T`` steps the logits ``[M, T, B', V + 1]``."""
        first = self.members[0]
        starts = list(accumulate((span.rows for span in spans), initial=0))
        rows = [share.row_count(start, span.rows) for start, span in zip(starts, spans, strict=False)]
        gates = self._linear("lstm", embedded).split(rows, 1)
        skips = [None] * len(spans) if first.skip is None else self._linear("skip", embedded).split(rows, 1)
        weights = self._stacks["lstm.weight_hh_l0"].unbind()
        logits = []
        for start, (batch, steps), here, of_members, skip in zip(starts, spans, rows, gates, skips, strict=False):
            runs = zip(of_members.unbind(), weights, strict=True)
            outputs = [
                lstm_recurrence(g, weight, steps=steps, backend=first.lstm.backend)[0]
                if here
                else g.new_zeros(steps, 0, first.hidden_size)
                for g, weight in runs
            ]
            part = None if share == WHOLE else Part(2, batch, share.rows(start, batch))
            output = dropout(torch.stack(outputs), first.hidden_dropout, first.training, part).flatten(1, 2)
            of_span = self._linear("classifier", output).view(len(weights), steps, here, first.num_tags + 1)
            logits.append(of_span if skip is None else of_span + skip.unsqueeze(1))
        return logits

    def _likelihood(self, logits: Sequence[Tensor], lists: ListTargets, count: Tensor | None = None) -> Tensor:
        """Equation (10), ``[M]``, divided by so many lists, by default by as many as there are."""
        rows = [of_span.shape[2] for of_span in logits]
        counts = class_counts(lists, sum(rows), logits[0].shape[-1]).to(logits[0].dtype).split(rows, 1)
        shares = [
            (of_span.log_softmax(-1) * of_rows[: of_span.shape[1]]).sum((1, 2, 3))
            for of_span, of_rows in zip(logits, counts, strict=True)
        ]
        count = lists.there.sum() if count is None else count
        return -torch.stack(shares).sum(0) / count.clamp(min=1)

    def _linear(self, layer: str, x: Tensor) -> Tensor:
        """A layer of each member for its part of ``x`` ``[M, R, in]``: ``[M, R, out]``."""
        stacks = self._stacks
        if layer == "lstm":
            both = (stacks.get("lstm.bias_ih_l0"), stacks.get("lstm.bias_hh_l0"))
            bias = None if both[0] is None or both[1] is None else both[0] + both[1]
            return _Linear.apply(x, stacks["lstm.weight_ih_l0"], bias)  # type: ignore[no-any-return]
        return _Linear.apply(x, stacks[f"{layer}.weight"], stacks.get(f"{layer}.bias"))  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    """``x W^T + b`` for each member. Autograd's own gradient of ``W`` is that of ``W^T``, to be copied afterwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if bias is None:
            return x.bmm(weight.transpose(1, 2))
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        d_x = grad.bmm(weight) if ctx.needs_input_grad[0] else None
        return d_x, grad.transpose(1, 2).bmm(x), grad.sum(1) if ctx.needs_input_grad[2] else None
