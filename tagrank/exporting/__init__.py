"""A trained model as one file: ONNX, which runs without tagrank, or a program of torch.export, which needs its library.

``preprocessing`` says in data what happens to a photograph before the network, ``card`` what the file says of itself,
``export_file`` makes a file, and ``running`` annotates photographs with one, by onnxruntime.
"""

from tagrank.exporting.export_file import export_model
from tagrank.exporting.running import load_annotator, load_exported

__all__ = ["export_model", "load_annotator", "load_exported"]
