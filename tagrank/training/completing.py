"""The training of a completer: a ranker with feedback beside the model, for lists that people began."""

import math
from dataclasses import replace

import torch

from tagrank.data.vocabulary import Vocabulary
from tagrank.features.labelled import LabelledImages
from tagrank.progress import track
from tagrank.ranker.presets import Preset
from tagrank.ranker.tag_ranker import TagRanker
from tagrank.training.optimizers import make_optimizer, make_schedules


def fit_completer(
    images: LabelledImages,
    vocabulary: Vocabulary,
    preset: Preset,
    seed: int = 0,
    *,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> TagRanker:
    """Train a single ranker with feedback by teacher forcing: it reads the tags of a person's list, one at a step.

    The last epoch is kept. Without validation, for which lists would have to be drawn, and without checkpoints this is
    a small part of the whole training; a run that was interrupted does it again.

    Args:
        images: the images to train on, with features.
        vocabulary: the tags.
        preset: hyper-parameters. ``patience`` and ``members`` are ignored.
        seed: of all random draws.
        device: where to train; ``None``: on a GPU if there is one.
        progress: show a progress bar on stderr.

    Returns:
        The ranker, in evaluation mode, on the CPU.
    """
    from tagrank.training.batches import ListDataset, epoch_order, mix
    from tagrank.training.fit import initial_ranker

    lists = images.lists(vocabulary)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ranker = initial_ranker(images, lists, vocabulary, replace(preset, feedback=True), None)
        assert isinstance(ranker, TagRanker)
        ranker.to(where).train()
        data = ListDataset(images.inputs, lists, vocabulary.end, ranker.steps)
        data.to(where)
        optimizer = make_optimizer(ranker, preset)
        schedules = make_schedules(optimizer, preset, preset.epochs * math.ceil(len(data) / preset.batch_size))
        step = 0
        for epoch in track(range(preset.epochs), "learning to complete lists", progress):
            for batch, _ in data.batches(epoch_order(len(data), seed, epoch), preset.batch_size):
                torch.manual_seed(mix(seed, step))
                optimizer.zero_grad()
                ranker.loss(batch.inputs, batch.lists().present()).backward()
                optimizer.step()
                for schedule in schedules:
                    schedule.step()
                step += 1
    return ranker.cpu().eval()
