"""A decoder of speech for many speakers, as Mellotron (Valle et al., 2020): Tacotron 2 with a speaker embedding."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagrank import ContextLSTMCell


class Sizes(NamedTuple):
    """How large the model and its data are."""

    symbols: int = 70
    text: int = 256
    speakers: int = 100
    speaker: int = 256
    frame: int = 80
    prenet: int = 128
    hidden: int = 512
    batch: int = 16
    length: int = 12
    steps: int = 50


class SpeakerDecoder(nn.Module):
    """The frames of a spectrogram from a text and a speaker.

    Two cells, one on the other, read the speaker and the part of the text that the decoder looks at.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.symbol = nn.Embedding(sizes.symbols, sizes.text)
        self.encoder = nn.LSTM(sizes.text, sizes.text // 2, bidirectional=True)
        self.speaker = nn.Embedding(sizes.speakers, sizes.speaker)
        self.prenet = nn.Sequential(nn.Linear(sizes.frame, sizes.prenet), nn.ReLU(), nn.Dropout(0.5))
        # --8<-- [start:lstm]
        self.first = nn.LSTMCell(sizes.prenet + sizes.text + sizes.speaker, sizes.hidden)
        self.second = nn.LSTMCell(sizes.hidden + sizes.text + sizes.speaker, sizes.hidden)
        # --8<-- [end:lstm]
        self.query = nn.Linear(sizes.hidden, sizes.text)
        self.to_frame = nn.Linear(sizes.hidden, sizes.frame)

    def forward(self, symbols: Tensor, speakers: Tensor, frames: Tensor) -> Tensor:
        """Frames ``[T, B, F]`` from symbols ``[L, B]``, speakers ``[B]`` and the right frames before."""
        before = self.prenet(F.pad(frames[:-1], (0, 0, 0, 0, 1, 0)))
        return self.decode(self.encode(symbols), self.speaker(speakers), len(frames), before)

    def loss(self, symbols: Tensor, speakers: Tensor, frames: Tensor) -> Tensor:
        """The mean squared error of the frames."""
        return F.mse_loss(self(symbols, speakers, frames), frames)

    @torch.no_grad()
    def generate(self, symbols: Tensor, speakers: Tensor, steps: int) -> Tensor:
        """Frames ``[steps, B, F]``, each from the one before."""
        return self.decode(self.encode(symbols), self.speaker(speakers), steps, None)

    def encode(self, symbols: Tensor) -> Tensor:
        """What the decoder looks at, ``[B, L, E]``."""
        return self.encoder(self.symbol(symbols))[0].transpose(0, 1)

    def attend(self, memory: Tensor, hidden: Tensor) -> Tensor:
        """The part of the text ``[B, E]`` that goes with hidden states ``[B, H]``."""
        query = self.query(hidden).unsqueeze(1)
        return F.scaled_dot_product_attention(query, memory, memory).squeeze(1)

    # --8<-- [start:before]
    def decode(self, memory: Tensor, speaker: Tensor, steps: int, before: Tensor | None) -> Tensor:
        """Frames from what the prenet makes of those before; if ``before`` is ``None``, these are the decoder's own."""
        frame, text = speaker.new_zeros(len(speaker), self.sizes.frame), memory[:, 0]
        first = second = None
        frames = []
        for step in range(steps):
            last = self.prenet(frame) if before is None else before[step]
            first = self.first(torch.cat([last, text, speaker], dim=-1), first)
            text = self.attend(memory, first[0])
            second = self.second(torch.cat([first[0], text, speaker], dim=-1), second)
            frame = self.to_frame(second[0])
            frames.append(frame)
        return torch.stack(frames)

    # --8<-- [end:before]


class ContextSpeakerDecoder(SpeakerDecoder):
    """The same, with the same parameters: the speaker's share of the gates is computed once for an utterance."""

    # --8<-- [start:after]
    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.first = ContextLSTMCell(sizes.speaker, sizes.hidden, input_size=sizes.prenet + sizes.text)
        self.second = ContextLSTMCell(sizes.speaker, sizes.hidden, input_size=sizes.hidden + sizes.text)

    def decode(self, memory: Tensor, speaker: Tensor, steps: int, before: Tensor | None) -> Tensor:
        """Frames from what the prenet makes of those before; if ``before`` is ``None``, these are the decoder's own."""
        frame, text = speaker.new_zeros(len(speaker), self.sizes.frame), memory[:, 0]
        first = second = None
        first_gates, second_gates = self.first.context_gates(speaker), self.second.context_gates(speaker)
        frames = []
        for step in range(steps):
            last = self.prenet(frame) if before is None else before[step]
            first = self.first(first_gates, torch.cat([last, text], dim=-1), first)
            text = self.attend(memory, first[0])
            second = self.second(second_gates, torch.cat([first[0], text], dim=-1), second)
            frame = self.to_frame(second[0])
            frames.append(frame)
        return torch.stack(frames)

    # --8<-- [end:after]


def draw(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Symbols ``[L, B]``, speakers ``[B]``, and frames ``[T, B, F]``, in which all symbols sound for as long.

    A symbol and a speaker have a spectrum each. A frame is the sum of two, with some noise.
    """
    fixed = torch.Generator().manual_seed(0)
    of_symbols = torch.randn(sizes.symbols, sizes.frame, generator=fixed)
    of_speakers = torch.randn(sizes.speakers, sizes.frame, generator=fixed)
    symbols = torch.randint(sizes.symbols, (sizes.length, sizes.batch), generator=generator)
    speakers = torch.randint(sizes.speakers, (sizes.batch,), generator=generator)
    sounding = symbols[torch.arange(sizes.steps) * sizes.length // sizes.steps]
    noise = 0.1 * torch.randn(sizes.steps, sizes.batch, sizes.frame, generator=generator)
    return symbols, speakers, of_symbols[sounding] + of_speakers[speakers] + noise
