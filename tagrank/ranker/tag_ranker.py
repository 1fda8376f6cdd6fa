"""TagRanker: an image feature in, a distribution over tags for each position of the list out.

Yan, Wang and Liao (2016), "LSTM for Image Annotation with Relative Visual Importance"; equation numbers are theirs.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagrank.data.targets import IGNORE, ListTargets, rank_weights
from tagrank.nn import ContextGates, ContextLSTM, ContextLSTMCell

Conditioning = Literal["every_step", "initial"]


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

    Equation (1) embeds the feature, (2)-(7) are a :class:`tagrank.ContextLSTM`, (8) and (9) classify each hidden
    state into one of ``V`` tags or END, which follows the last tag. In the paper's model
    (``conditioning="every_step"``) the embedding enters the gates at each step and the previous tag does not, so that
    the distributions are known before any tag is chosen. ``feedback=True`` adds the previous tag as an input.
    ``conditioning="initial"`` is what the paper compares with, the captioning LSTM: the embedding starts the state in
    a step of its own, and each later step reads the previous tag.

    Args:
        feature_size: number of features ``D`` of an image.
        num_tags: size ``V`` of the vocabulary.
        max_length: the longest list the model can write, in tags; it runs ``S = max_length + 1`` steps.
        embedding_size: size ``d`` of the embedding, of images and of tags.
        hidden_size: size ``H`` of the hidden state.
        conditioning: ``"every_step"`` or ``"initial"``.
        feedback: whether the previous tag is an input; always so with ``conditioning="initial"``.
        bias: whether the gates have biases; the paper's (2)-(5) have none.
        activation: of the embedding: ``None``, as in (1), or ``"relu"``.
        dropout: probability of dropout on the embedding and on the hidden states, in training.
        hidden_dropout: of the hidden states, where it differs.
        skip: whether the classifier reads the embedding too: ``z_t = W_z h_t + W_s I + b_z`` in place of (8). Not with
            ``conditioning="initial"``, where it would show the image at every step.
        auxiliary: weight, in training, of the loss of a second classifier on the embedding alone: binary cross-entropy
            of each tag with its rank weight (:func:`tagrank.data.targets.rank_weights`), summed over the tags. It only
            helps to shape the embedding; no list is read from it.
        signed_root: whether the feature's entries are replaced by ``sign(x) sqrt(|x|)``, which tames activations with
            long tails (Perronnin et al., 2010).
        standardise: whether the mean over the training images is then subtracted, and all entries divided by one common
            deviation; :meth:`standardise_by` measures both.
        backend: of the recurrence, as in :class:`tagrank.ContextLSTM`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        feature_size: int,
        num_tags: int,
        *,
        max_length: int,
        embedding_size: int = 512,
        hidden_size: int = 512,
        conditioning: Conditioning = "every_step",
        feedback: bool = False,
        bias: bool = False,
        activation: Literal["relu"] | None = None,
        dropout: float = 0.0,
        hidden_dropout: float | None = None,
        skip: bool = False,
        auxiliary: float = 0.0,
        signed_root: bool = False,
        standardise: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        sizes = {
            "feature_size": feature_size,
            "num_tags": num_tags,
            "max_length": max_length,
            "embedding_size": embedding_size,
            "hidden_size": hidden_size,
        }
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name}: expected a positive int, got {size!r}")
        if conditioning not in ("every_step", "initial"):
            raise ValueError(f"conditioning: expected 'every_step' or 'initial', got {conditioning!r}")
        if activation not in (None, "relu"):
            raise ValueError(f"activation: expected None or 'relu', got {activation!r}")
        for name, rate in {"dropout": dropout, "hidden_dropout": hidden_dropout or 0.0}.items():
            if not 0 <= rate < 1:
                raise ValueError(f"{name}: expected a probability in [0, 1), got {rate!r}")
        if not 0 <= auxiliary < float("inf"):
            raise ValueError(f"auxiliary: expected a finite weight of at least 0, got {auxiliary!r}")
        if skip and conditioning == "initial":
            raise ValueError("skip: expected False with conditioning='initial', got True")
        self.feature_size = feature_size
        self.num_tags = num_tags
        self.max_length = max_length
        self.hidden_size = hidden_size
        self.conditioning = conditioning
        self.feedback = feedback or conditioning == "initial"
        self.activation = activation
        self.dropout = dropout
        self.hidden_dropout = dropout if hidden_dropout is None else hidden_dropout
        self.auxiliary = auxiliary
        self.signed_root = signed_root
        self.standardise = standardise
        self.feature_mean: Tensor
        self.feature_deviation: Tensor
        if standardise:
            self.register_buffer("feature_mean", torch.zeros(feature_size))
            self.register_buffer("feature_deviation", torch.ones(()))

        self.embedding = nn.Linear(feature_size, embedding_size)
        self.lstm = ContextLSTM(
            embedding_size if conditioning == "every_step" else 0,
            hidden_size,
            input_size=embedding_size if self.feedback else 0,
            bias=bias,
            backend=backend,
        )
        self.classifier = nn.Linear(hidden_size, num_tags + 1)
        self.skip = nn.Linear(embedding_size, num_tags + 1, bias=False) if skip else None
        self.tag_classifier = nn.Linear(embedding_size, num_tags) if auxiliary else None
        if self.feedback:
            # END's row is what the first position reads: before the first tag there is none.
            self.tag_embedding = nn.Embedding(num_tags + 1, embedding_size)

    @property
    def steps(self) -> int:
        """``S``: the positions of the longest list, and one for the END after it."""
        return self.max_length + 1

    def config(self) -> dict[str, Any]:
        """The arguments that build this model again, but for the backend, which is the machine's affair."""
        return {
            "feature_size": self.feature_size,
            "num_tags": self.num_tags,
            "max_length": self.max_length,
            "embedding_size": self.embedding.out_features,
            "hidden_size": self.hidden_size,
            "conditioning": self.conditioning,
            "feedback": self.feedback,
            "bias": self.lstm.bias,
            "activation": self.activation,
            "dropout": self.dropout,
            "hidden_dropout": self.hidden_dropout,
            "skip": self.skip is not None,
            "auxiliary": self.auxiliary,
            "signed_root": self.signed_root,
            "standardise": self.standardise,
        }

    @torch.no_grad()
    def standardise_by(self, features: Tensor) -> None:
        """Measure mean and deviation for ``standardise=True``; without it there is nothing to do.

        Args:
            features: ``[N, D]``, all training images.

        Raises:
            ValueError: ``features`` is not ``[N, D]``.
        """
        self._check_features(features)
        if self.standardise:
            variance, mean = torch.var_mean(self._root(features.float()), dim=0, correction=0)
            self.feature_mean.copy_(mean)
            self.feature_deviation.copy_(variance.mean().sqrt().clamp(min=1e-12))

    @torch.no_grad()
    def start_at_frequencies(self, lists: ListTargets) -> None:
        """Let the output layer start without weights, and with ``b_z = log(1 + n)``, less its mean.

        ``n`` is how often a class occurs in the training lists, at any position. What is left to learn is how an image
        differs from the average one. The auxiliary classifier starts at the log-odds of the mean rank weights.
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
            tags: int64 ``[B, S - 1]``, the tags of the positions before the last, for models with feedback alone.

        Returns:
            ``[B, S, V + 1]``; class ``V`` is END.

        Raises:
            ValueError: ``features`` is not ``[B, D]``, or ``tags`` are given or missing where they should not be.
        """
        self._check_features(features)
        if (tags is None) == self.feedback:
            raise ValueError(
                f"tags: expected {'the previous tags' if self.feedback else 'None'} as feedback={self.feedback}, "
                f"got {'None' if tags is None else list(tags.shape)}"
            )
        if tags is not None and tags.shape != (len(features), self.steps - 1):
            raise ValueError(
                f"tags: expected shape [B, S - 1] = [{len(features)}, {self.steps - 1}], got {list(tags.shape)}"
            )
        return self._logits(self._embed(features), tags)

    def loss(self, features: Tensor, lists: ListTargets, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
        """Equation (10): the negative log-likelihood of people's lists, END included.

        In training mode the auxiliary loss is added where there is one, summed or averaged over the images.
        Without feedback the recurrence runs once per image, however many lists an image has.

        Args:
            features: ``[B, D]``.
            lists: the lists of these images, ``image_index`` being rows of ``features``.
            reduction: ``"sum"`` over all lists, as the paper; ``"mean"`` divides by their number.

        Returns:
            A scalar, in nats.

        Raises:
            ValueError: ``features`` is not ``[B, D]``, or ``lists`` has no list, or lists for another ``S``.
        """
        self._check_features(features)
        if len(lists.targets) == 0 or lists.targets.shape[1] != self.steps:
            raise ValueError(
                f"lists: expected targets of shape [L, S] with L > 0 and S = {self.steps}, "
                f"got {list(lists.targets.shape)}"
            )
        embedded = self._embed(features)
        if self.feedback:
            previous = lists.targets[:, :-1].clamp(min=0)
            log_p = self._logits(embedded[lists.image_index], previous).log_softmax(-1)
            rows = torch.arange(len(lists.targets), device=log_p.device)
        else:
            log_p = self._logits(embedded).log_softmax(-1)
            rows = lists.image_index
        positions = torch.arange(self.steps, device=log_p.device)
        picked = log_p[rows.unsqueeze(1), positions, lists.targets.clamp(min=0)]
        loss = -(picked * (lists.targets != IGNORE)).sum()
        if reduction == "mean":
            loss = loss / len(lists.targets)
        if self.training and self.tag_classifier is not None:
            weights = rank_weights(lists, self.num_tags, len(features)).to(embedded.dtype)
            tags = F.binary_cross_entropy_with_logits(self.tag_classifier(embedded), weights, reduction="sum")
            loss = loss + self.auxiliary * (tags / len(features) if reduction == "mean" else tags)
        return loss

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """Equation (9): the distribution over tags and END at each position.

        For a model with feedback, along the greedy list: each position reads the most likely tag not yet used. Without
        dropout in evaluation mode alone (``model.eval()``).

        Args:
            features: ``[B, D]``.

        Returns:
            Probabilities ``[B, S, V + 1]``.
        """
        self._check_features(features)
        if not self.feedback:
            return self._logits(self._embed(features)).softmax(-1)
        state, tag = self.start(features), None
        used = torch.zeros(len(features), self.num_tags, dtype=torch.bool, device=features.device)
        probabilities = []
        for _ in range(self.steps):
            log_p, state = self.step(state, tag)
            p = log_p.exp()
            probabilities.append(p)
            # Where more positions than tags are asked for, the used ones come round again.
            tag = (p[:, :-1] - 2.0 * (used & ~used.all(1, keepdim=True))).argmax(1)
            used[torch.arange(len(tag)), tag] = True
        return torch.stack(probabilities, dim=1)

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
        self._check_features(features)
        embedded = self._embed(features)
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

    def _embed(self, features: Tensor) -> Tensor:
        """Equation (1)."""
        features = self._root(features)
        if self.standardise:
            features = (features - self.feature_mean) / self.feature_deviation
        embedded = self.embedding(features)
        if self.activation == "relu":
            embedded = embedded.relu()
        return F.dropout(embedded, self.dropout, self.training)

    def _root(self, features: Tensor) -> Tensor:
        return features.sign() * features.abs().sqrt() if self.signed_root else features

    def _classify(self, h: Tensor, embedded: Tensor) -> Tensor:
        """Equation (8) for hidden states ``[..., B, H]``, with the embedding's share where there is one."""
        logits: Tensor = self.classifier(h)
        return logits if self.skip is None else logits + self.skip(embedded)

    def _start(self, embedded: Tensor) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
        """The context and the initial state of the recurrence."""
        if self.conditioning == "every_step":
            return embedded, None
        return None, self.lstm(None, input=embedded.unsqueeze(0))[1]

    def _logits(self, embedded: Tensor, tags: Tensor | None = None) -> Tensor:
        """Equations (2)-(8)."""
        context, state = self._start(embedded)
        if tags is None:
            output, _ = self.lstm(context, steps=self.steps)
        else:
            first = tags.new_full((len(tags), 1), self.num_tags)
            read = self.tag_embedding(torch.cat([first, tags], dim=1))
            output, _ = self.lstm(context, input=read.transpose(0, 1), hx=state)
        return self._classify(F.dropout(output, self.hidden_dropout, self.training), embedded).transpose(0, 1)

    def _check_features(self, features: Tensor) -> None:
        if features.dim() != 2 or features.shape[1] != self.feature_size:
            raise ValueError(
                f"features: expected shape [B, D] with D = {self.feature_size}, got {list(features.shape)}"
            )
