"""TagRanker: an image feature in, a distribution over tags for each position of the list out.

Yan, Wang and Liao (2016), "LSTM for Image Annotation with Relative Visual Importance"; equation numbers are theirs.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagrank.data.targets import IGNORE, ListTargets, class_counts, rank_weights
from tagrank.nn import ContextGates, ContextLSTM, ContextLSTMCell
from tagrank.ranker.config import Conditioning, RankerConfig, RankerOptions, positive
from tagrank.ranker.dropout import dropout
from tagrank.ranker.scaling import mean_and_deviation, signed_root
from tagrank.recurrence import lstm_recurrence

if TYPE_CHECKING:
    from typing_extensions import Unpack


class DecoderState(NamedTuple):
    """What a model with feedback knows of ``N`` lists after some tags.

    Attributes:
        cell: runs the recurrence step by step, on the model's own parameters.
        gates: the context's share of the gates, of ``N`` rows.
        logits: the embedding's share of the logits ``[N, V + 1]``; ``None`` for a model without ``skip``.
        hx: the hidden and the cell state, each ``[N, H]``; ``None`` before the first step of a model that starts from
            zeros.
    """

    cell: ContextLSTMCell
    gates: ContextGates
    logits: Tensor | None
    hx: tuple[Tensor, Tensor] | None

    def take(self, rows: Tensor) -> "DecoderState":
        """The states of the given rows, in the given order; a row may occur more than once."""
        logits = None if self.logits is None else self.logits[rows]
        hx = None if self.hx is None else (self.hx[0][rows], self.hx[1][rows])
        return DecoderState(self.cell, self.gates.take(rows), logits, hx)


class TagRanker(nn.Module):
    """Ranks tags by running an LSTM over the positions of the list.

    Equation (1) embeds the feature. Equations (2)-(7) are a :class:`tagrank.ContextLSTM`. Equations (8) and (9)
    classify each hidden state into one of ``V`` tags or END, which follows the last tag.

    In the paper's model (``conditioning="every_step"``) the gates read the embedding at each step and do not read the
    previous tag, so that the distributions are known before any tag is chosen. ``feedback=True`` adds the previous tag
    as an input. ``conditioning="initial"`` is the captioning LSTM that the paper compares with: its first step reads
    only the embedding and starts the state, and each later step reads only the previous tag.

    Args:
        feature_size: number of features ``D`` of an image.
        num_tags: size ``V`` of the vocabulary.
        max_length: the longest list that the model can write, in tags; it runs ``S = max_length + 1`` steps.
        conditioning: ``"every_step"`` or ``"initial"``.
        feedback: whether the previous tag is an input; always so with ``conditioning="initial"``.
        backend: of the recurrence, as for :class:`tagrank.ContextLSTM`.
        **options: hyper-parameters: the fields of :class:`tagrank.ranker.config.RankerConfig`, with its defaults.
            ``skip`` does not go with ``conditioning="initial"``: it would show the classifier the image at every step.

    Raises:
        TypeError: an option is not known.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        feature_size: int,
        num_tags: int,
        *,
        max_length: int,
        conditioning: Conditioning = "every_step",
        feedback: bool = False,
        backend: str = "auto",
        **options: "Unpack[RankerOptions]",
    ) -> None:
        super().__init__()
        feature_size, num_tags = positive("feature_size", feature_size), positive("num_tags", num_tags)
        max_length = positive("max_length", max_length)
        config = RankerConfig(**options)
        if not isinstance(feedback, bool):
            raise ValueError(f"feedback: expected True or False, got {feedback!r:.60}")
        if conditioning not in ("every_step", "initial"):
            raise ValueError(f"conditioning: expected 'every_step' or 'initial', got {conditioning!r}")
        if config.skip and conditioning == "initial":
            raise ValueError("skip: expected False with conditioning='initial', got True")
        self.options = config
        self.feature_size = feature_size
        self.num_tags = num_tags
        self.max_length = max_length
        self.hidden_size = config.hidden_size
        self.conditioning = conditioning
        self.feedback = feedback or conditioning == "initial"
        self.activation = config.activation
        self.dropout = config.dropout
        self.hidden_dropout = config.dropout if config.hidden_dropout is None else config.hidden_dropout
        self.auxiliary = config.auxiliary
        self.signed_root = config.signed_root
        self.standardise = config.standardise
        self.feature_mean: Tensor
        self.feature_deviation: Tensor
        if config.standardise:
            self.register_buffer("feature_mean", torch.zeros(feature_size))
            self.register_buffer("feature_deviation", torch.ones(()))

        embedding_size = config.embedding_size
        self.embedding = nn.Linear(feature_size, embedding_size)
        self.lstm = ContextLSTM(
            embedding_size if conditioning == "every_step" else 0,
            config.hidden_size,
            input_size=embedding_size if self.feedback else 0,
            bias=config.bias,
            backend=backend,
        )
        self.classifier = nn.Linear(config.hidden_size, num_tags + 1)
        self.skip = nn.Linear(embedding_size, num_tags + 1, bias=False) if config.skip else None
        self.tag_classifier = nn.Linear(embedding_size, num_tags) if config.auxiliary else None
        if self.feedback:
            # The row of END is what the first position reads, which no tag precedes.
            self.tag_embedding = nn.Embedding(num_tags + 1, embedding_size)

    @property
    def steps(self) -> int:
        """``S``: the positions of the longest list, and one for the END after it."""
        return self.max_length + 1

    def config(self) -> dict[str, Any]:
        """The arguments that build this model again, without the backend, which depends on the machine.

        ``config.json`` has them in this order.
        """
        return {
            "feature_size": self.feature_size,
            "num_tags": self.num_tags,
            "max_length": self.max_length,
            "embedding_size": self.options.embedding_size,
            "hidden_size": self.options.hidden_size,
            "conditioning": self.conditioning,
            "feedback": self.feedback,
            **asdict(self.options),
            "hidden_dropout": self.hidden_dropout,
        }

    @torch.no_grad()
    def standardise_by(self, features: Tensor) -> None:
        """Measure what ``standardise=True`` subtracts and divides by; with ``standardise=False``, do nothing.

        Args:
            features: ``[N, D]``, all training images.

        Raises:
            ValueError: ``features`` is not ``[N, D]``.
        """
        self._check_features(features)
        if self.standardise:
            mean, deviation = mean_and_deviation(self._root(features.float()))
            self.feature_mean.copy_(mean)
            self.feature_deviation.copy_(deviation)

    @torch.no_grad()
    def start_at_frequencies(self, lists: ListTargets) -> None:
        """Set the output layer to what is known without looking at an image.

        Its weights become 0, its bias ``log(1 + n)`` minus the mean of this over the classes, where ``n`` is how often
        a class occurs in the training lists, at any position. Training then only learns how an image differs from the
        average image. The bias of the auxiliary classifier becomes the log-odds of the mean rank weights.

        Args:
            lists: the lists of all training images.
        """
        counts = lists.targets[lists.targets != IGNORE].bincount(minlength=self.num_tags + 1)
        log_counts = (counts + 1.0).log()
        self.classifier.weight.zero_()
        self.classifier.bias.copy_(log_counts - log_counts.mean())
        if self.skip is not None:
            self.skip.weight.zero_()
        if self.tag_classifier is not None:
            self.tag_classifier.weight.zero_()
            self.tag_classifier.bias.copy_(rank_weights(lists, self.num_tags).mean(0).logit(eps=1e-5))

    def forward(self, features: Tensor, tags: Tensor | None = None) -> Tensor:
        """Equations (1)-(8): the logits of each position.

        Args:
            features: ``[B, D]``.
            tags: int64 ``[B, S - 1]``, the tags of the positions before the last; only for models with feedback.

        Returns:
            ``[B, S, V + 1]``; class ``V`` is END.

        Raises:
            ValueError: ``features`` is not ``[B, D]``, ``tags`` is not ``[B, S - 1]``, is missing for a model with
                feedback, or is given to a model without.
        """
        self._check_features(features)
        if (tags is None) == self.feedback:
            raise ValueError(
                f"tags: expected {'the previous tags' if self.feedback else 'None'} because feedback={self.feedback}, "
                f"got {'None' if tags is None else list(tags.shape)}"
            )
        if tags is not None and tags.shape != (len(features), self.steps - 1):
            raise ValueError(
                f"tags: expected shape [B, S - 1] = [{len(features)}, {self.steps - 1}], got {list(tags.shape)}"
            )
        return self._logits(self._embed(self.scale(features)), tags).transpose(0, 1)

    def loss(self, features: Tensor, lists: ListTargets, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
        """Equation (10): the negative log-likelihood of people's lists, END included.

        In training mode a model with ``auxiliary`` adds its auxiliary loss, summed over the images or averaged over
        them. Without feedback the recurrence runs once per image, however many lists an image has.

        Args:
            features: ``[B, D]``.
            lists: the lists of these images; ``image_index`` has rows of ``features``.
            reduction: ``"sum"`` over all lists, as in the paper; ``"mean"`` divides the sum by the number of lists.

        Returns:
            A scalar, in nats.

        Raises:
            ValueError: ``features`` is not ``[B, D]``, or ``lists`` has no list or is for another ``S``.
        """
        self.check_lists(lists)
        count = len(lists.targets)
        embedded = self._embed(self.scale(features))
        if self.feedback:
            loss = self._feedback_loss(embedded, lists)
        else:
            counts = class_counts(lists, len(features), self.num_tags + 1)
            loss = -(self._logits(embedded).log_softmax(-1) * counts).sum()
        if reduction == "mean":
            loss = loss / count
        if self.training and self.tag_classifier is not None:
            logits = self.tag_classifier(embedded)
            weights = rank_weights(lists, self.num_tags, len(features)).to(logits.dtype)
            tags = F.binary_cross_entropy_with_logits(logits, weights, reduction="sum")
            loss = loss + self.auxiliary * (tags / len(features) if reduction == "mean" else tags)
        return loss

    def _feedback_loss(self, embedded: Tensor, lists: ListTargets) -> Tensor:
        """Equation (10) of a model with feedback, summed over the lists."""
        hidden = self._read(embedded, lists)
        targets = lists.targets[:, : len(hidden)].t().flatten()
        # Only where a list has a tag or its END: most lists are shorter than the longest.
        (where,) = (targets != IGNORE).nonzero(as_tuple=True)
        read = hidden.flatten(0, 1).index_select(0, where)
        logits = self.classifier(dropout(read, self.hidden_dropout, self.training))
        if self.skip is not None:
            image = lists.image_index[where % len(lists.targets)]
            logits = logits + self.skip(embedded).index_select(0, image)
        return F.cross_entropy(logits, targets[where], reduction="sum")

    def check_lists(self, lists: ListTargets) -> None:
        """Raises a ValueError if there is no list, or the lists are for another ``S``."""
        if len(lists.targets) == 0 or lists.targets.shape[1] != self.steps:
            raise ValueError(
                f"lists: expected targets of shape [L, S] with L > 0 and S = {self.steps}, "
                f"got {list(lists.targets.shape)}"
            )

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """Equation (9): the distribution over tags and END at each position.

        A model with feedback follows the greedy list: each position reads the most likely tag not yet used. Dropout is
        off only in evaluation mode (``model.eval()``).

        Args:
            features: ``[B, D]``.

        Returns:
            Probabilities ``[B, S, V + 1]``.
        """
        if not self.feedback:
            return self.predict_by(self.scale(features))
        self._check_features(features)
        state, tag = self.start(features), None
        used = torch.zeros(len(features), self.num_tags, dtype=torch.bool, device=features.device)
        probabilities = []
        for _ in range(self.steps):
            log_p, state = self.step(state, tag)
            p = log_p.exp()
            probabilities.append(p)
            # When all tags are used, any of them can be chosen again.
            tag = (p[:, :-1] - 2.0 * (used & ~used.all(1, keepdim=True))).argmax(1)
            used[torch.arange(len(tag)), tag] = True
        return torch.stack(probabilities, dim=1)

    @torch.no_grad()
    def predict_by(self, scaled: Tensor) -> Tensor:
        """:meth:`predict` of a model without feedback, for features that :meth:`scale` returned."""
        return self._logits(self._embed(scaled)).softmax(-1).transpose(0, 1)

    @torch.no_grad()
    def follow(self, features: Tensor, lists: ListTargets) -> Tensor:
        """Equation (9) of a model with feedback at each position of given lists (teacher forcing), in evaluation mode.

        Args:
            features: ``[B, D]``.
            lists: ``L`` lists of these images.

        Returns:
            Probabilities ``[L, n, V + 1]``, where ``n`` is the number of positions of the longest list with its END.
        """
        embedded = self._embed(self.scale(features))
        logits: Tensor = self.classifier(self._read(embedded, lists))
        logits = logits if self.skip is None else logits + self.skip(embedded)[lists.image_index]
        return logits.softmax(-1).transpose(0, 1)

    @torch.no_grad()
    def start(self, features: Tensor) -> DecoderState:
        """The state before the first position, for decoders that choose each tag from those before it.

        Args:
            features: ``[B, D]``.

        Raises:
            ValueError: the model has no feedback, or ``features`` is not ``[B, D]``.
        """
        if not self.feedback:
            raise ValueError("start: a model without feedback reads no tags; predict() has all its distributions")
        embedded = self._embed(self.scale(features))
        context, state = self._start(embedded)
        cell = self.lstm.cell()
        gates = cell.context_gates(embedded[:, :0] if context is None else context)
        hx = None if state is None else (state[0][0], state[1][0])
        return DecoderState(cell, gates, None if self.skip is None else self.skip(embedded), hx)

    @torch.no_grad()
    def step(self, state: DecoderState, tag: Tensor | None) -> tuple[Tensor, DecoderState]:
        """Equations (2)-(9) for one position.

        Args:
            state: of the position before, ``N`` rows.
            tag: int64 ``[N]``, the tag at the position before; ``None`` where there is none yet.

        Returns:
            Log probabilities ``[N, V + 1]`` and the state of this position.
        """
        cell, gates, share, hx = state
        if tag is None:
            tag = torch.full((len(gates.gates),), self.num_tags, device=gates.gates.device)
        h, c = cell(gates, self.tag_embedding(tag), hx)
        logits = self.classifier(h)
        logits = logits if share is None else logits + share
        return logits.log_softmax(-1), DecoderState(cell, gates, share, (h, c))

    def scale(self, features: Tensor) -> Tensor:
        """The features ``[B, D]`` as equation (1) reads them: rooted and standardised, if the model does that.

        Raises:
            ValueError: ``features`` is not ``[B, D]``.
        """
        self._check_features(features)
        features = self._root(features)
        return (features - self.feature_mean) / self.feature_deviation if self.standardise else features

    def _embed(self, scaled: Tensor) -> Tensor:
        """Equation (1)."""
        embedded = self.embedding(scaled)
        if self.activation == "relu":
            embedded = embedded.relu()
        return dropout(embedded, self.dropout, self.training)

    def _root(self, features: Tensor) -> Tensor:
        return signed_root(features) if self.signed_root else features

    def _classify(self, h: Tensor, embedded: Tensor) -> Tensor:
        """Equation (8) for hidden states ``[..., B, H]``, plus ``W_s I`` for a model with ``skip``."""
        logits: Tensor = self.classifier(h)
        return logits if self.skip is None else logits + self.skip(embedded)

    def _start(self, embedded: Tensor) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
        """The context and the initial state of the recurrence."""
        if self.conditioning == "every_step":
            return embedded, None
        return None, self.lstm(None, input=embedded.unsqueeze(0))[1]

    def _logits(self, embedded: Tensor, tags: Tensor | None = None) -> Tensor:
        """Equations (2)-(8), ``[S, B, V + 1]``."""
        hidden = dropout(self._hidden(embedded, tags), self.hidden_dropout, self.training)
        return self._classify(hidden, embedded)

    def _hidden(self, embedded: Tensor, tags: Tensor | None = None) -> Tensor:
        """Equations (2)-(7), ``[S, B, H]``."""
        context, state = self._start(embedded)
        if tags is None:
            output, _ = self.lstm(context, steps=self.steps)
        else:
            first = tags.new_full((len(tags), 1), self.num_tags)
            read = self.tag_embedding(torch.cat([first, tags], dim=1))
            output, _ = self.lstm(context, input=read.transpose(0, 1), hx=state)
        hidden: Tensor = output
        return hidden

    def _read(self, embedded: Tensor, lists: ListTargets) -> Tensor:
        """The hidden states of a model with feedback at the positions of lists, ``[n, L, H]``; none is longer than n.

        The image's share of the gates is computed once for all its lists, and a tag's share once for all places where
        the tag is read.
        """
        steps = int((lists.targets != IGNORE).any(0).sum())
        tags = lists.targets[:, : steps - 1].clamp(min=0)
        if self.conditioning == "initial":
            return self._hidden(embedded[lists.image_index], tags)
        first = tags.new_full((len(tags), 1), self.num_tags)
        read, places_read = torch.cat([first, tags], dim=1).t().unique(return_inverse=True)
        of_tags = F.embedding(places_read, self.lstm.input_gates(self.tag_embedding(read)))
        gates = self.lstm.context_gates(embedded)[lists.image_index] + of_tags
        return lstm_recurrence(gates, self.lstm.all_weights[0][1], steps=steps, backend=self.lstm.backend)[0]

    def _check_features(self, features: Tensor) -> None:
        if features.dim() != 2 or features.shape[1] != self.feature_size:
            raise ValueError(
                f"features: expected shape [B, D] with D = {self.feature_size}, got {list(features.shape)}"
            )
