"""A conditional sequence VAE, whose decoder reads z and the class at each point, as sketch-rnn (Ha and Eck, 2018)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tagrank import ContextLSTM


class Sizes(NamedTuple):
    """How large the model and its data are."""

    point: int = 3
    classes: int = 10
    condition: int = 64
    latent: int = 128
    encoder: int = 256
    decoder: int = 512
    batch: int = 32
    steps: int = 40


class SequenceVAE(nn.Module):
    """Drawings as sequences of points, of different lengths: encoded into z, and decoded from z and the class."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        context = sizes.latent + sizes.condition
        self.condition = nn.Embedding(sizes.classes, sizes.condition)
        # --8<-- [start:lstm]
        self.encoder = nn.LSTM(sizes.point + sizes.condition, sizes.encoder, bidirectional=True)
        self.decoder = nn.LSTM(sizes.point + context, sizes.decoder)
        # --8<-- [end:lstm]
        self.posterior = nn.Linear(2 * sizes.encoder, 2 * sizes.latent)
        self.start = nn.Linear(context, 2 * sizes.decoder)
        self.next = nn.Linear(sizes.decoder, 2 * sizes.point)

    def forward(self, points: Tensor, lengths: Tensor, classes: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """The decoder's and the encoder's normal distributions, as means and logarithms.

        Args:
            points: ``[T, B, P]``, padded.
            lengths: ``[B]``, of the drawings.
            classes: ``[B]``, what the drawings show.
            noise: ``[B, Z]``, standard normal, of which z is made.

        Returns:
            Of each point its mean and the logarithm of its deviation, ``[T, B, P]``; of z its mean and the logarithm of
            its variance, ``[B, Z]``.
        """
        condition = self.condition(classes)
        mean, log_variance = self.posterior(self.encode(points, lengths, condition)).chunk(2, -1)
        z = mean + noise * (log_variance / 2).exp()
        before = F.pad(points[:-1], (0, 0, 0, 0, 1, 0))
        hidden = self.decode(before, lengths, torch.cat([z, condition], dim=-1))
        return (*self.next(hidden).chunk(2, -1), mean, log_variance)

    def loss(self, points: Tensor, lengths: Tensor, classes: Tensor, noise: Tensor) -> Tensor:
        """The negative evidence lower bound, in nats for a point, without the constant of the normal distribution."""
        predicted, log_deviation, mean, log_variance = self(points, lengths, classes, noise)
        errors = ((points - predicted) * (-log_deviation).exp()).square() / 2 + log_deviation
        there = torch.arange(len(points)).unsqueeze(1) < lengths
        divergence = (mean.square() + log_variance.exp() - log_variance - 1).sum() / 2
        return (errors.sum(-1)[there].sum() + divergence) / lengths.sum()

    def first_state(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """``(h_0, c_0)`` of the decoder, each ``[1, B, H]``."""
        h, c = self.start(context).tanh().unsqueeze(0).chunk(2, -1)
        return h.contiguous(), c.contiguous()

    # --8<-- [start:before]
    def encode(self, points: Tensor, lengths: Tensor, condition: Tensor) -> Tensor:
        """The last states of both directions, ``[B, 2 * encoder]``."""
        repeated = condition.expand(len(points), -1, -1)
        read = pack_padded_sequence(torch.cat([points, repeated], dim=-1), lengths, enforce_sorted=False)
        _, (h, _) = self.encoder(read)
        return torch.cat([h[0], h[1]], dim=-1)

    def decode(self, before: Tensor, lengths: Tensor, context: Tensor) -> Tensor:
        """The hidden states ``[T, B, decoder]`` from the points before, and a context of z and the condition."""
        repeated = context.expand(len(before), -1, -1)
        read = pack_padded_sequence(torch.cat([before, repeated], dim=-1), lengths, enforce_sorted=False)
        output, _ = self.decoder(read, self.first_state(context))
        return pad_packed_sequence(output, total_length=len(before))[0]

    @torch.no_grad()
    def generate(self, context: Tensor, steps: int) -> Tensor:
        """The mean of each point, given those before it, ``[steps, B, P]``."""
        point, drawing = context.new_zeros(len(context), self.next.out_features // 2), []
        state = self.first_state(context)
        for _ in range(steps):
            read = torch.cat([point, context], dim=-1)
            output, state = self.decoder(read.unsqueeze(0), state)
            point = self.next(output[0]).chunk(2, -1)[0]
            drawing.append(point)
        return torch.stack(drawing)

    # --8<-- [end:before]


class ContextSequenceVAE(SequenceVAE):
    """The same, with the same parameters."""

    # --8<-- [start:after]
    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        context = sizes.latent + sizes.condition
        self.encoder = ContextLSTM(sizes.condition, sizes.encoder, input_size=sizes.point, bidirectional=True)
        self.decoder = ContextLSTM(context, sizes.decoder, input_size=sizes.point)

    def encode(self, points: Tensor, lengths: Tensor, condition: Tensor) -> Tensor:
        """The last states of both directions, ``[B, 2 * encoder]``."""
        _, (h, _) = self.encoder(condition, input=points, lengths=lengths)
        return torch.cat([h[0], h[1]], dim=-1)

    def decode(self, before: Tensor, lengths: Tensor, context: Tensor) -> Tensor:
        """The hidden states ``[T, B, decoder]`` from the points before, and a context of z and the condition."""
        return self.decoder(context, input=before, hx=self.first_state(context), lengths=lengths)[0]

    @torch.no_grad()
    def generate(self, context: Tensor, steps: int) -> Tensor:
        """The mean of each point, given those before it, ``[steps, B, P]``."""
        point, drawing = context.new_zeros(len(context), self.next.out_features // 2), []
        h, c = self.first_state(context)
        cell = self.decoder.cell()
        gates, state = cell.context_gates(context), (h[0], c[0])
        for _ in range(steps):
            state = cell(gates, point, state)
            point = self.next(state[0]).chunk(2, -1)[0]
            drawing.append(point)
        return torch.stack(drawing)

    # --8<-- [end:after]


def draw(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch for the model: closed curves, whose class says how fast they turn, of any size."""
    classes = torch.randint(sizes.classes, (sizes.batch,), generator=generator)
    lengths = torch.randint(sizes.steps // 2, sizes.steps + 1, (sizes.batch,), generator=generator)
    size, turn = torch.rand(2, sizes.batch, generator=generator)
    angle = 2 * torch.pi / (classes + 3) * torch.arange(sizes.steps).unsqueeze(1) + 2 * torch.pi * turn
    waves = [((i + 1) * angle).sin() * (size + 0.5) for i in range(sizes.point)]
    noise = torch.randn(sizes.batch, sizes.latent, generator=generator)
    return torch.stack(waves, -1), lengths, classes, noise
