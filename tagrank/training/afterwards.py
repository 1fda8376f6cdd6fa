"""What a model gets after its last epoch, from its validation images: the calibration of scores, and what it knows."""

import numpy as np
import torch
from torch import Tensor

from tagrank.annotator import Annotator
from tagrank.features.backbones import Backbone
from tagrank.features.familiarity import Familiarity
from tagrank.features.labelled import LabelledImages, share_of_lists
from tagrank.metrics import Calibration

IMAGES, TAGS = 1000, 100
"""At most so many validation images, and of each so many tags, calibrate the scores."""
BATCH = 256


def complete(annotator: Annotator, images: LabelledImages, val_images: LabelledImages) -> None:
    """Give a trained model its calibration and its familiarity.

    Args:
        annotator: the model.
        images: the images that it was trained on, with features.
        val_images: the images by which the best epoch was chosen, with features.
    """
    features = val_images.inputs
    annotator.familiarity = Familiarity.fit(images.inputs, features)
    chosen = np.unique(np.linspace(0, len(features) - 1, IMAGES).astype(int)).tolist()
    annotator.calibration = Calibration()
    rankings = annotator.rank(features[chosen], top_k=TAGS)
    scores, truth = [], []
    for row, ranking in zip(chosen, rankings, strict=True):
        lists = val_images.examples[row].lists
        scores += ranking.scores
        truth += [share_of_lists(annotator.vocabulary.tag(tag), lists) for tag in ranking.tags]
    annotator.calibration = Calibration.fit(scores, truth)


@torch.no_grad()
def features_of(inputs: Tensor, backbone: Backbone) -> Tensor:
    """The features that a backbone computes from the pixels of images."""
    weight = next(backbone.parameters())
    return torch.cat([backbone(batch.to(weight)).cpu() for batch in inputs.split(BATCH)])
