"""A captioning decoder that sees the image at each word, as LRCN (Donahue et al., 2015)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagrank import ContextLSTM

PAD, START, END = range(3)


class Sizes(NamedTuple):
    """How large the model and its data are; the features are those of a ResNet-50, the words those of Flickr8k."""

    words: int = 3000
    image: int = 2048
    embedding: int = 256
    hidden: int = 512
    batch: int = 32
    steps: int = 20


class Captioner(nn.Module):
    """The next word of a caption from the word before it and the image, and whole captions, word by word."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.words, sizes.embedding, padding_idx=PAD)
        # --8<-- [start:lstm]
        self.lstm = nn.LSTM(sizes.embedding + sizes.image, sizes.hidden)
        # --8<-- [end:lstm]
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(sizes.hidden, sizes.words)

    def forward(self, image: Tensor, captions: Tensor) -> Tensor:
        """Logits ``[T, B, V]`` of the words after each of ``captions`` ``[T, B]``, for images ``[B, C]``."""
        return self.classifier(self.dropout(self.hidden(image, self.embedding(captions))))

    def loss(self, image: Tensor, captions: Tensor) -> Tensor:
        """The cross-entropy of the words of captions ``[T + 1, B]``, of which START is the first."""
        logits = self(image, captions[:-1])
        return F.cross_entropy(logits.flatten(0, 1), captions[1:].flatten(), ignore_index=PAD)

    # --8<-- [start:before]
    def hidden(self, image: Tensor, words: Tensor) -> Tensor:
        """The hidden states ``[T, B, H]`` after words ``[T, B, E]``."""
        repeated = image.expand(len(words), -1, -1)
        output, _ = self.lstm(torch.cat([words, repeated], dim=-1))
        return output

    @torch.no_grad()
    def generate(self, image: Tensor, steps: int) -> Tensor:
        """The most likely word at each step, ``[steps, B]``."""
        word = torch.full((len(image),), START)
        state, caption = None, []
        for _ in range(steps):
            read = torch.cat([self.embedding(word), image], dim=-1)
            output, state = self.lstm(read.unsqueeze(0), state)
            word = self.classifier(output[0]).argmax(-1)
            caption.append(word)
        return torch.stack(caption)

    # --8<-- [end:before]


class ContextCaptioner(Captioner):
    """The same, with the same parameters: the image's share of the gates is computed once for a caption."""

    # --8<-- [start:after]
    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.lstm = ContextLSTM(context_size=sizes.image, hidden_size=sizes.hidden, input_size=sizes.embedding)

    def hidden(self, image: Tensor, words: Tensor) -> Tensor:
        """The hidden states ``[T, B, H]`` after words ``[T, B, E]``."""
        output, _ = self.lstm(image, input=words)
        return output

    @torch.no_grad()
    def generate(self, image: Tensor, steps: int) -> Tensor:
        """The most likely word at each step, ``[steps, B]``."""
        word = torch.full((len(image),), START)
        state, caption = None, []
        cell = self.lstm.cell()
        gates = cell.context_gates(image)
        for _ in range(steps):
            state = cell(gates, self.embedding(word), state)
            word = self.classifier(state[0]).argmax(-1)
            caption.append(word)
        return torch.stack(caption)

    # --8<-- [end:after]


def draw(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch of image features ``[B, C]`` and captions ``[T + 1, B]`` of 8 kinds of images.

    A kind has its features and its words; captions are of different lengths.
    """
    fixed = torch.Generator().manual_seed(0)
    looks = torch.randn(8, sizes.image, generator=fixed)
    says = torch.randint(END + 1, sizes.words, (sizes.steps + 1, 8), generator=fixed)
    kinds = torch.randint(8, (sizes.batch,), generator=generator)
    lengths = torch.randint(sizes.steps // 2, sizes.steps, (sizes.batch,), generator=generator)
    captions = says[:, kinds]
    captions[0] = START
    captions[lengths, torch.arange(sizes.batch)] = END
    captions[torch.arange(sizes.steps + 1).unsqueeze(1) > lengths] = PAD
    return looks[kinds] + 0.5 * torch.randn(sizes.batch, sizes.image, generator=generator), captions
