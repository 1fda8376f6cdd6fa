"""From file to feature: how many photographs each backbone takes a second, and what it gives for them.

Backbones whose weights a machine cannot get are measured with random weights, which are as fast; they are loaded from
files like any others. The backbones run in turn. A backbone's ratio is the processor time of the first backbone over
its own, round by round, and the table has the median: other work on the machine takes the same share of both.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.annotate import photographs
from benchmarks.machine import describe, write
from benchmarks.timing import turns
from tagrank.errors import InputError
from tagrank.features.backbones import Backbone, load_backbone
from tagrank.features.backbones.backbone import without_our_kernels
from tagrank.features.extraction import extract_features

CLIP_32 = "openai/clip-vit-base-patch32"
SIGLIP = "google/siglip-base-patch16-224"
DINOV2 = "facebook/dinov2-{}"
COMPILED = ", compiled"
VIT = "google/vit-base-patch16-224"


@dataclass(frozen=True)
class Candidate:
    """A backbone to measure.

    Attributes:
        name: as for ``load_backbone``.
        licence: of its weights, as their authors state it.
        make: writes random weights for it into a folder, and returns what to give as ``weights``; None if a package has
            the weights.
    """

    name: str
    licence: str
    make: Callable[[str, Path], Path] | None = None


def save(name: str, network: nn.Module, folder: Path) -> Path:
    path = folder / "weights.pt"
    torch.save(network.state_dict(), path)
    return path


def of_torchvision(name: str, folder: Path) -> Path:
    from torchvision import models

    return save(name, models.get_model(name), folder)


def of_timm(name: str, folder: Path) -> Path:
    import timm

    return save(name, timm.create_model(name.partition(":")[2]), folder)


def of_open_clip(name: str, folder: Path) -> Path:
    with without_our_kernels():
        import open_clip
    return save(name, open_clip.create_model(name.partition(":")[2].partition("/")[0]), folder)


def of_transformers(kind: str, settings: dict[str, Any], processor: dict[str, Any], name: str, folder: Path) -> Path:
    """A model by its kind (``"CLIP"``), with settings that are not the defaults of that kind."""
    with without_our_kernels():
        import transformers

        model = {"CLIP": "CLIPModel", "Siglip": "SiglipModel", "Dinov2": "Dinov2Model", "ViT": "ViTModel"}[kind]
        preprocessing = {"Dinov2": "BitImageProcessor"}.get(kind, f"{kind}ImageProcessor")
        config = getattr(transformers, f"{kind}Config")(**settings)
        for part in (getattr(transformers, model)(config), getattr(transformers, preprocessing)(**processor)):
            part.save_pretrained(folder)
    return folder


def dinov2(heads: int) -> Callable[[str, Path], Path]:
    settings = {"hidden_size": 64 * heads, "num_attention_heads": heads, "patch_size": 14, "image_size": 518}
    crop = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
    return partial(of_transformers, "Dinov2", settings, crop)


CANDIDATES = (
    Candidate("efficientnet_lite0", "Apache-2.0"),
    Candidate("efficientnet_lite1", "Apache-2.0"),
    Candidate("efficientnet_lite2", "Apache-2.0"),
    Candidate("mobilenet_v3_large", "not stated", of_torchvision),
    Candidate("resnet50", "not stated", of_torchvision),
    Candidate("vgg16", "not stated", of_torchvision),
    Candidate("timm:mobilenetv4_conv_medium.e500_r256_in1k", "Apache-2.0", of_timm),
    Candidate("timm:convnext_tiny.in12k_ft_in1k", "Apache-2.0", of_timm),
    Candidate("timm:vit_small_patch14_dinov2.lvd142m", "Apache-2.0", of_timm),
    Candidate("open_clip:ViT-B-32/laion2b_s34b_b79k", "MIT", of_open_clip),
    Candidate("open_clip:ViT-B-16-SigLIP/webli", "Apache-2.0", of_open_clip),
    Candidate(f"hf:{CLIP_32}", "MIT", partial(of_transformers, "CLIP", {}, {})),
    Candidate(f"hf:{SIGLIP}", "Apache-2.0", partial(of_transformers, "Siglip", {}, {})),
    Candidate(f"hf:{DINOV2.format('small')}", "Apache-2.0", dinov2(6)),
    Candidate(f"hf:{DINOV2.format('base')}", "Apache-2.0", dinov2(12)),
    Candidate(f"hf:{VIT}", "Apache-2.0", partial(of_transformers, "ViT", {}, {})),
)


def prepared(candidate: Candidate) -> tuple[Backbone, bool]:
    """A candidate, and whether its weights are random."""
    if candidate.make is None:
        return load_backbone(candidate.name), False
    with tempfile.TemporaryDirectory() as folder:
        return load_backbone(candidate.name, candidate.make(candidate.name, Path(folder))), True


def measure(args: argparse.Namespace) -> dict[str, Any]:
    known = {candidate.name: candidate for candidate in CANDIDATES}
    unknown = sorted(set(args.only) - set(known))
    if unknown:
        raise InputError(f"--only: expected names of {', '.join(known)}; got {', '.join(unknown)}")
    chosen = [CANDIDATES[0], *(known[name] for name in args.only or known if name != CANDIDATES[0].name)]
    backbones: dict[str, tuple[Backbone, bool]] = {}
    for candidate in chosen:
        backbones[candidate.name] = prepared(candidate)
        if args.compiled:
            compiled = deepcopy(backbones[candidate.name])
            compiled[0].compile_network()
            backbones[candidate.name + COMPILED] = compiled
        print(f"{candidate.name}: ready", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        paths = photographs(args.images, Path(scratch), "small", args.count)
        rows = timed(backbones, paths, args.seconds)
    for row in rows:
        row["licence"] = known[row["name"].removesuffix(COMPILED)].licence
        print(line(row), flush=True)
    return {"photographs": args.count, "rows": rows}


def timed(backbones: dict[str, tuple[Backbone, bool]], paths: Sequence[Path], seconds: float) -> list[dict[str, Any]]:
    """A row for each backbone."""
    wall: dict[str, list[float]] = {name: [] for name in backbones}
    processor: dict[str, list[float]] = {name: [] for name in backbones}
    runs = {name: partial(extract, backbone, paths) for name, (backbone, _) in backbones.items()}
    for name, run in turns(runs, seconds):
        start = time.perf_counter(), time.process_time()
        run()
        wall[name].append(time.perf_counter() - start[0])
        processor[name].append(time.process_time() - start[1])
    first = next(iter(backbones))
    rows = []
    for name, (backbone, random) in backbones.items():
        pixels = extract_size(backbone)
        ratios = [mine / own for mine, own in zip(processor[first], processor[name], strict=True)]
        rows.append(
            {
                "name": name,
                "feature_size": backbone.feature_size,
                "input_size": pixels,
                "per_second": round(len(paths) / statistics.median(wall[name]), 2),
                "per_processor_second": round(len(paths) / statistics.median(processor[name]), 2),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
                "rounds": len(ratios),
                "random_weights": random,
            }
        )
    return rows


def extract(backbone: Backbone, paths: Sequence[Path]) -> None:
    for _ in extract_features(backbone, paths, batch_size=16):
        pass


def extract_size(backbone: Backbone) -> list[int]:
    """Height and width of the network's input."""
    from PIL import Image

    return list(backbone.transform(Image.new("RGB", (64, 64))).shape[1:])


def line(row: dict[str, Any]) -> str:
    """A row of ``docs/backbones.md``."""
    height, width = row["input_size"]
    cells = [f"`{row['name']}`", row["feature_size"], f"{height} x {width}", f"{row['ratio']:.2f}", row["licence"]]
    return "| " + " | ".join(map(str, cells)) + f" | {row['per_second']:.1f}/s, {row['per_processor_second']:.1f}/cpu s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photographs (default: drawn scenes, as JPEG files)")
    parser.add_argument("--count", type=int, default=16, help="photographs a round (default: %(default)s)")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only this one, beside the first")
    parser.add_argument("--compiled", action="store_true", help="measure each compiled, too")
    parser.add_argument("--seconds", type=float, default=60.0, help="in all (default: %(default)g; at least 5 rounds)")
    parser.add_argument("--json", type=Path, help="write machine, versions, commit and rows to this file")
    args = parser.parse_args()
    try:
        result = describe() | measure(args)
        if args.json:
            write(args.json, result)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
