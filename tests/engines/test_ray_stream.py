"""Jobs on a Ray cluster of two machines with a core each: one result for each image, whatever dies."""

import json
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from tagrank import Annotator, TagRanker
from tagrank.cli import app
from tagrank.data.vocabulary import Vocabulary
from tagrank.engines.ray_cluster import Workers, connected, find_workers
from tagrank.engines.ray_stream import ATTEMPTS, PART, run_on_cluster
from tagrank.errors import InputError
from tagrank.features.backbones import load_backbone
from tagrank.features.store import FeatureWriter, open_features

pytest.importorskip("ray")
IMAGES = 2 * PART["cpu"] + 8


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Ray, connected to a cluster of two machines. Both are this one, but Ray does not know."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        with connected(cluster.address) as ray:
            yield ray
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs in three parts, one of them damaged, and a model."""
    folder = tmp_path_factory.mktemp("engine")
    (folder / "photos").mkdir()
    for i in range(IMAGES):
        Image.effect_noise((40 + i, 60), 80).convert("RGB").save(folder / "photos" / f"{i:03d}.png")
    (folder / "photos" / "040.png").write_bytes(b"no image")
    backbone = load_backbone("small_cnn")
    ranker = TagRanker(backbone.feature_size, 3, max_length=3, embedding_size=4, hidden_size=4)
    Annotator(ranker, Vocabulary(["dog", "ball", "cat"]), backbone.spec, backbone=backbone).save(folder / "model")
    torch.save(backbone.network.state_dict(), folder / "cnn.pth")
    return folder


def tagrank(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def sleepy(mode: str, marker: Path) -> Any:
    """A job that takes a while for each number, given as bytes; at 40 its process is killed once, or each time."""

    class Job:  # local classes are pickled as they are, and need not be found by the workers
        def to(self, device: str) -> object:
            return self

        def run(self, images: Iterable[bytes], workers: int | None = None) -> Iterator[tuple[bytes, int | InputError]]:
            for image in images:
                time.sleep(0.005)
                if int(image) == 40 and (mode == "always" or (mode == "once" and not marker.exists())):
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                if int(image) == 40 and mode == "error":
                    raise InputError("not enough memory")
                yield image, InputError(f"odd {int(image)}") if int(image) % 10 == 7 else os.getpid()

    return Job()


NUMBERS = [str(i).encode() for i in range(200)]


def test_the_workers_of_a_cluster(ray: Any) -> None:
    assert find_workers(ray) == find_workers(ray, "cpu") == Workers(2, "cpu", 1)
    assert str(find_workers(ray)) == "up to 2 cores"
    with pytest.raises(InputError, match="device: cuda: the Ray cluster has no GPUs"):
        find_workers(ray, "cuda")
    with pytest.raises(InputError, match="device: with the engine ray, expected auto, cpu or cuda, got 'cuda:1'"):
        find_workers(ray, "cuda:1")


@pytest.mark.exhaustive
def test_a_killed_worker_loses_and_doubles_nothing(ray: Any, tmp_path: Path) -> None:
    marker = tmp_path / "killed"
    results = list(run_on_cluster(ray, sleepy("once", marker), NUMBERS, find_workers(ray)))
    assert marker.exists()
    assert [image for image, _ in results] == NUMBERS
    for image, result in results:
        assert (str(result) == f"odd {int(image)}") if int(image) % 10 == 7 else isinstance(result, int)
    assert len({result for _, result in results if isinstance(result, int)}) > 1


@pytest.mark.exhaustive
def test_images_that_kill_each_worker_end_the_run(ray: Any, tmp_path: Path) -> None:
    stream = run_on_cluster(ray, sleepy("always", tmp_path / "killed"), NUMBERS, find_workers(ray))
    with pytest.raises(InputError, match=rf"{ATTEMPTS} workers died over the same images.*b'32' and the next 31"):
        list(stream)


@pytest.mark.exhaustive
def test_an_error_of_the_whole_job_ends_the_run(ray: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^not enough memory$"):
        list(run_on_cluster(ray, sleepy("error", tmp_path / "no"), NUMBERS, find_workers(ray)))
    assert list(run_on_cluster(ray, sleepy("error", tmp_path / "no"), [], find_workers(ray))) == []


@pytest.mark.exhaustive
@pytest.mark.usefixtures("ray")
def test_the_store_is_that_of_one_process(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    command = ("features", "photos", "--backbone", "small_cnn", "--weights", "cnn.pth", "--device", "cpu", "--out")
    one, two = tagrank(*command, tmp_path / "one"), tagrank(*command, tmp_path / "two", "--engine", "ray")
    assert one.exit_code == two.exit_code == 1
    assert one.stdout == f"{tmp_path / 'one'}: {IMAGES - 1} images added, 0 were there, 1 failed\n"
    assert two.stdout == one.stdout.replace("/one:", "/two:")
    assert one.stderr.startswith("tagrank: photos/040.png: not a JPEG")
    assert two.stderr.splitlines() == ["tagrank: computing on up to 2 cores of a Ray cluster", *one.stderr.splitlines()]
    stores = open_features(tmp_path / "one"), open_features(tmp_path / "two")
    assert stores[0].names == stores[1].names
    assert stores[0].spec == stores[1].spec
    # The batches behind the damaged image have other images than in one process.
    torch.testing.assert_close(stores[1].rows(stores[1].names), stores[0].rows(stores[0].names), rtol=1e-3, atol=1e-5)
    for name in ("index.json", "features-00000.safetensors"):
        before = (tmp_path / "two" / name).read_bytes()
        assert tagrank(*command, tmp_path / "two", "--engine", "ray").exit_code == 1
        assert (tmp_path / "two" / name).read_bytes() == before, "nothing is computed or written again"


@pytest.mark.exhaustive
@pytest.mark.usefixtures("ray")
def test_an_interrupted_store_is_continued(folder: Path, tmp_path: Path) -> None:
    sound = tmp_path / "photos"
    sound.mkdir()
    for path in (folder / "photos").glob("*.png"):
        if path.name != "040.png":
            (sound / path.name).symlink_to(path)
    command = ("features", sound, "--backbone", "small_cnn", "--weights", folder / "cnn.pth", "--device", "cpu")
    assert tagrank(*command, "--out", tmp_path / "one").exit_code == 0
    one = open_features(tmp_path / "one")
    with FeatureWriter(tmp_path / "two", one.spec or {}, one.dimension) as writer:
        writer.add(one.names[:5], one.rows(one.names[:5]))
    done = tagrank(*command, "--out", tmp_path / "two", "--engine", "ray")
    assert done.stdout.endswith(f"{IMAGES - 6} images added, 5 were there, 0 failed\n")
    assert open_features(tmp_path / "two").names == one.names
    assert tagrank(*command, "--out", tmp_path / "three", "--engine", "ray").exit_code == 0
    for name in ("index.json", "features-00000.safetensors"):
        assert (tmp_path / "three" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.exhaustive
@pytest.mark.parametrize("more", [[], ["--given", "dog"]])
@pytest.mark.usefixtures("ray")
def test_lists_are_those_of_one_process(folder: Path, more: list[str]) -> None:
    command = ("annotate", folder / "model", folder / "photos", "--device", "cpu", "--format", "jsonl", *more)
    one, two = tagrank(*command), tagrank(*command, "--engine", "ray")
    assert one.exit_code == two.exit_code == 1
    assert [line for line in two.stderr.splitlines() if "Ray cluster" not in line] == one.stderr.splitlines()
    records = [[json.loads(line) for line in done.stdout.splitlines()] for done in (one, two)]
    assert len(records[0]) == IMAGES - 1
    assert [record["image"] for record in records[1]] == [record["image"] for record in records[0]]
    for a, b in zip(*records, strict=True):
        assert [tag["tag"] for tag in a["tags"]] == [tag["tag"] for tag in b["tags"]]
        assert [tag["score"] for tag in a["tags"]] == pytest.approx([tag["score"] for tag in b["tags"]], abs=2e-6)
