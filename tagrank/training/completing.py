"""The training of a completer: a ranker with feedback beside the model, for lists that people began."""

import math
from dataclasses import replace

import torch

from tagrank.data.vocabulary import Vocabulary
from tagrank.features.labelled import LabelledImages
from tagrank.progress import track
from tagrank.ranker.presets import Preset
from tagrank.ranker.tag_ranker import TagRanker
from tagrank.training.optimizers import make_optimizer


def fit_completer(
    images: LabelledImages,
    vocabulary: Vocabulary,
    preset: Preset,
    seed: int = 0,
    *,
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
        progress: show a progress bar on stderr.

    Returns:
        The ranker, in evaluation mode, on the CPU.
    """
    from tagrank.training.batches import EpochSampler, ListDataset, mix
    from tagrank.training.fit import initial_ranker

    lists = images.lists(vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ranker = initial_ranker(images, lists, vocabulary, replace(preset, feedback=True), None)
        assert isinstance(ranker, TagRanker)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        ranker.to(device).train()
        data = ListDataset(images.inputs, lists, vocabulary.end, ranker.steps)
        order = EpochSampler(data, seed)
        optimizer = make_optimizer(ranker, preset)
        steps = preset.epochs * math.ceil(len(data) / preset.batch_size)
        schedule = None
        if preset.schedule == "one_cycle":
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, preset.learning_rate, total_steps=steps)
        step = 0
        for epoch in track(range(preset.epochs), "learning to complete lists", progress):
            order.set_epoch(epoch)
            for numbers in torch.tensor([*order]).split(preset.batch_size):
                batch = data.collate(numbers.tolist())
                torch.manual_seed(mix(seed, step))
                loss = ranker.loss(batch.inputs.to(device), batch.lists.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if schedule is not None:
                    schedule.step()
                step += 1
    return ranker.cpu().eval()
