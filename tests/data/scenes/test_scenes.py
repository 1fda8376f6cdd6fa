import hashlib
import os
import signal
import subprocess
import sys
from itertools import pairwise
from math import erf
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from other_processes import until
from PIL import Image

from tagrank.data.manifest import merge_lists, read_manifest
from tagrank.data.scenes import scene_files
from tagrank.data.scenes.backdrops import DRY, WET, Backdrop
from tagrank.data.scenes.composition import (
    ANNOTATORS,
    GOES_WITH,
    KINDS,
    LIMIT_NOISE,
    MIN_AREA,
    NEGLIGIBLE,
    NOISE,
    PULL,
    SEEN_SIZE,
    Scene,
    _importance,
    _Thing,
    annotate,
    draw_scene,
    make_scenes,
)
from tagrank.data.scenes.pen import Canvas
from tagrank.data.scenes.scene_files import write_scenes
from tagrank.metrics import evaluate_rankings, summarise

NUMBER = {kind: i for i, kind in enumerate(KINDS)}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return make_scenes(1200, seed=5)


def digest(scene: Scene) -> str:
    return hashlib.sha256(
        scene.image.tobytes() + repr((scene.lists, scene.tags, scene.importance)).encode()
    ).hexdigest()


def ndcg5(rankings: list[list[int]], scenes: list[Scene]) -> float:
    references = [[NUMBER[tag] for tag in scene.tags] for scene in scenes]
    return summarise(evaluate_rankings(rankings, references))["ndcg@5"]


@pytest.mark.exhaustive
def test_a_tagger_without_the_picture_cannot_do_well(scenes: list[Scene]) -> None:
    train, test = scenes[:600], scenes[600:]
    weights = np.zeros(len(KINDS))
    for scene in train:
        for ranked in scene.lists:
            for position, tag in enumerate(ranked, start=1):
                weights[NUMBER[tag]] += 1 / np.log2(1 + position)
    assert 0.3 < ndcg5([np.argsort(-weights).tolist()] * len(test), test) < 0.45


def test_an_oracle_does_well_and_knowing_the_kinds_is_not_enough(scenes: list[Scene]) -> None:
    oracle = [[NUMBER[k] for k, value in scene.importance.items() if value >= NEGLIGIBLE] for scene in scenes]
    assert ndcg5(oracle, scenes) > 0.93
    rng = np.random.default_rng(0)
    shuffled = [[NUMBER[k] for k in rng.permutation(list(scene.importance))] for scene in scenes]
    assert ndcg5(shuffled, scenes) < 0.85


def test_kinds_are_drawn_uniformly_and_each_may_come_first_or_go_unnamed(scenes: list[Scene]) -> None:
    for kind in KINDS:
        there = [scene for scene in scenes if kind in scene.importance]
        assert 0.3 < len(there) / len(scenes) < 0.45, kind
        assert 0.5 < np.mean([kind in scene.tags for scene in there]) < 0.95, kind
        assert np.mean([scene.tags[0] == kind for scene in there]) > 0.05, kind


def test_lists_are_noisy_but_agree_and_tags_merge_them(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert len(scene.lists) == ANNOTATORS
        assert all(ranked and len(set(ranked)) == len(ranked) for ranked in scene.lists)
        assert scene.tags == merge_lists(scene.lists)
        assert list(scene.importance.values()) == sorted(scene.importance.values(), reverse=True)
    assert 0.5 < np.mean([len(set(scene.lists)) > 1 for scene in scenes]) < 0.95
    assert np.mean([scene.lists[0][0] == scene.lists[1][0] for scene in scenes]) > 0.6
    lengths = [len(scene.tags) for scene in scenes]
    assert min(lengths) == 1
    assert max(lengths) >= 6
    assert 2.5 < np.mean(lengths) < 4.5


def test_the_negligible_is_left_out(scenes: list[Scene]) -> None:
    faint = [value for scene in scenes for kind, value in scene.importance.items() if kind not in scene.tags]
    named = [scene.importance[kind] for scene in scenes for kind in scene.tags]
    # Importance and limit are both noisy. Allow five standard deviations of their difference.
    reach = np.exp(5 * np.hypot(NOISE, LIMIT_NOISE))
    assert min(named) > NEGLIGIBLE / reach
    assert max(faint) < NEGLIGIBLE * reach
    assert len(faint) > 0.15 * (len(faint) + len(named))
    assert np.median(faint) < NEGLIGIBLE < np.quantile(named, 0.15)


def test_people_and_animals_are_named_before_things_of_the_same_look() -> None:
    owners = np.zeros((64, 64), dtype=np.uint8)
    owners[20:40, 10:20], owners[20:40, 44:54], owners[20:40, 27:37] = 1, 2, 3
    empty, picture = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 64, np.uint8)
    things = [thing("car"), thing("person"), thing("dog")]
    values = _importance(things, empty, picture, owners)
    assert list(values) == ["person", "dog", "car"]


def thing(kind: str) -> _Thing:
    return _Thing(kind, 0.5, 0.9, 0.3, False, 0.0, 0)


def test_importance_computed_by_hand() -> None:
    owners = np.zeros((4, 4), dtype=np.uint8)
    owners[0, 0], owners[1, 1], owners[2, 2] = 1, 3, 2
    empty = np.full((4, 4, 3), 100, np.uint8)
    picture = empty.copy()
    picture[0, 0], picture[1, 1], picture[2, 2] = (164, 100, 36), (0, 0, 0), (255, 255, 255)
    values = _importance([thing("tree"), thing("ball"), thing("tree")], empty, picture, owners)
    # Pixel centres are 1/8 and 3/8 of a side off the centre, a corner is 1/2 off: the ratios are 1/4 and 3/4.
    contrast_a, contrast_b = (64 + 0 + 64) / 3 / 128, 100 / 128
    tree = np.sqrt(2 / 16) * (0.4 + 0.6 * (1 - (0.75 + 0.25) / 2)) * (0.4 + 0.6 * (contrast_a + contrast_b) / 2)
    ball = np.sqrt(1 / 16) * (0.4 + 0.6 * 0.75) * (0.4 + 0.6 * 1.0)
    assert values == pytest.approx({"tree": tree, "ball": ball})


def test_too_small_or_covered_has_no_importance() -> None:
    owners = np.zeros((64, 64), dtype=np.uint8)
    owners.flat[: int(MIN_AREA * 64 * 64)] = 1
    picture = np.full((64, 64, 3), 200, np.uint8)
    values = _importance([thing("person"), thing("car")], np.zeros_like(picture), picture, owners)
    assert values == {"car": 0.0, "person": 0.0}


def test_an_annotator_names_at_least_one_and_nothing_invisible() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert annotate({"dog": 0.02, "car": 0.0}, rng) == ("dog",)
        assert annotate({"dog": 4.0, "car": 0.3, "sun": 0.0}, rng) in (("dog", "car"), ("dog",))


def test_the_noise_orders_like_a_gaussian_difference() -> None:
    rng = np.random.default_rng(0)
    ratio = 1.2
    swapped = np.mean([annotate({"car": ratio, "sun": 1.0}, rng)[0] == "sun" for _ in range(4000)])
    expected = 0.5 * (1 - erf(np.log(ratio) / (NOISE * 2)))
    assert swapped == pytest.approx(expected, abs=0.025)


def test_what_goes_with_the_last_kind_is_named_earlier() -> None:
    """Two kinds that are equally important follow a third: the one that goes with it is ahead by ``PULL``."""
    assert all(pair <= KINDS.keys() and len(pair) == 2 for pair in GOES_WITH)
    assert {"dog", "ball"} in GOES_WITH
    assert {"dog", "car"} not in GOES_WITH
    rng = np.random.default_rng(0)
    importance = {"dog": 30.0, "ball": 1.0, "car": 1.0}
    for pull in (0.0, PULL):
        lists = [annotate(importance, rng, pull) for _ in range(4000)]
        assert {ranked[0] for ranked in lists} == {"dog"}
        after = np.mean([ranked[1] == "ball" for ranked in lists])
        assert after == pytest.approx(0.5 * (1 + erf(pull / (NOISE * 2))), abs=0.025)


def test_the_pull_changes_the_order_and_not_the_number() -> None:
    importance = {"dog": 1.0, "car": 0.5, "ball": 0.3, "sun": 0.1}
    for seed in range(200):
        without, with_pull = (annotate(importance, np.random.default_rng(seed), pull) for pull in (0.0, 100.0))
        assert len(without) == len(with_pull)
        assert without[0] == with_pull[0]
        if with_pull[0] == "dog" and len(with_pull) > 1:
            assert with_pull[1] == "ball"


def test_scenes_do_not_depend_on_the_count_or_on_each_other() -> None:
    many = [digest(scene) for scene in make_scenes(12, seed=3)]
    assert [digest(scene) for scene in make_scenes(4, seed=3)] == many[:4]
    assert digest(draw_scene(9, seed=3)) == many[9]
    assert len({*many, *(digest(scene) for scene in make_scenes(12, seed=4))}) == 24


def test_another_process_draws_the_same() -> None:
    code = (
        "import hashlib; from tagrank.data.scenes import draw_scene\n"
        "for i in range(6):\n"
        "    s = draw_scene(i, seed=3)\n"
        "    print(hashlib.sha256(s.image.tobytes() + repr((s.lists, s.tags, s.importance)).encode()).hexdigest())"
    )
    # Another hash seed orders sets differently. The scenes must not depend on that order.
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [digest(scene) for scene in make_scenes(6, seed=3)]


def test_the_size_changes_nothing_but_the_size() -> None:
    for index in range(8):
        small, large = draw_scene(index, 1), draw_scene(index, 1, size=256)
        assert (small.lists, small.tags, small.importance) == (large.lists, large.tags, large.importance)
        assert small.image.size == (SEEN_SIZE, SEEN_SIZE)
        assert large.image.size == (256, 256)
        difference = np.asarray(large.image.reduce(4)).astype(int) - np.asarray(small.image)
        assert np.abs(difference).mean() < 6


@pytest.mark.parametrize("name", DRY + WET)
def test_backdrops_differ_and_have_room(name: str) -> None:
    pictures: list[NDArray[np.int64]] = []
    rng = np.random.default_rng(0)
    while len(pictures) < 5:
        backdrop = Backdrop.choose(rng, needs_water=name in WET)
        if backdrop.name != name:
            continue
        assert (backdrop.water is not None) == (name in WET)
        assert backdrop.horizon < backdrop.ground[0] < backdrop.ground[1] - 0.1 <= 1
        canvas = Canvas(64)
        backdrop.draw(canvas)
        picture = np.asarray(canvas.reduced()).astype(int)
        # A pixel on which nothing was drawn is black.
        assert picture.sum(axis=2).min() > 60
        pictures.append(picture)
    assert all(np.abs(a - b).mean() > 3 for a, b in pairwise(pictures))


def test_boats_float() -> None:
    rng = np.random.default_rng(0)
    assert {Backdrop.choose(rng, needs_water=True).name for _ in range(40)} == set(WET)
    assert {Backdrop.choose(rng, needs_water=False).name for _ in range(80)} == set(DRY + WET)


def test_written_scenes_read_back(tmp_path: Path) -> None:
    path = write_scenes(tmp_path / "scenes", 10, seed=2, splits={"train": 0.7, "val": 0.3})
    manifest = read_manifest(path)
    assert path == tmp_path / "scenes" / "manifest.jsonl"
    assert [example.split for example in manifest.examples] == ["train"] * 7 + ["val"] * 3
    for example, scene in zip(manifest.examples, make_scenes(10, seed=2), strict=True):
        assert (example.tags, example.lists) == (scene.tags, scene.lists)
        with Image.open(manifest.image_path(example)) as image:
            assert image.format == "PNG"
            assert image.convert("RGB").tobytes() == scene.image.tobytes()


def test_written_scenes_have_the_given_size_and_splits(tmp_path: Path) -> None:
    manifest = read_manifest(write_scenes(tmp_path, 10, size=32))
    assert [len(manifest.select(split)) for split in ("train", "val", "test")] == [8, 1, 1]
    with Image.open(manifest.image_path(manifest.examples[9])) as image:
        assert image.size == (32, 32)


def test_processes_write_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for few in (0, 120):
        monkeypatch.setattr(scene_files, "FEW", few)
        write_scenes(tmp_path / str(few), 120, seed=1)
    files = [sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("0", "120")]
    assert len(files[0]) == 121
    for first, second in zip(*files, strict=True):
        assert first.relative_to(tmp_path / "0") == second.relative_to(tmp_path / "120")
        assert first.read_bytes() == second.read_bytes()


def test_ctrl_c_while_processes_draw(tmp_path: Path) -> None:
    """All processes of a terminal's command get it. They end at once, and only one says so."""
    code = f"from tagrank.data.scenes import write_scenes; write_scenes({str(tmp_path)!r}, 100_000)"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True)
    until(lambda: process.poll() is not None or len(list(tmp_path.glob("images/*.png"))) >= 10, 60)
    os.killpg(process.pid, signal.SIGINT)
    # The others have the same stderr: this waits for them.
    _, complaints = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert complaints.count("Traceback") == 1
    assert complaints.endswith("KeyboardInterrupt\n")
    assert not (tmp_path / "manifest.jsonl").exists()


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    code = f"from tagrank.data.scenes import write_scenes; write_scenes({str(tmp_path)!r}, 100_000)"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    until(lambda: process.poll() is not None or len(list(tmp_path.glob("images/*.png"))) >= 10, 60)
    process.kill()
    assert process.communicate(timeout=20)[1] == ""


def test_what_stops_a_process_stops_the_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_files, "FEW", 0)
    (tmp_path / "images" / "000001.png").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=r"000001\.png"):
        write_scenes(tmp_path, 120)
    assert not (tmp_path / "manifest.jsonl").exists()
    with pytest.raises(ValueError, match="size: expected at least 8 pixels, got 4"):
        write_scenes(tmp_path, 120, size=4)


def test_bad_arguments_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size: expected at least 8 pixels, got 4"):
        draw_scene(0, size=4)
    with pytest.raises(ValueError, match="index, seed: expected numbers >= 0, got -1, 0"):
        draw_scene(-1)
    with pytest.raises(ValueError, match="count: expected at least 1 scene, got 0"):
        write_scenes(tmp_path / "a", 0)
    for splits in ({"train": 0.5}, {"train": 1.5, "val": -0.5}, {}):
        with pytest.raises(ValueError, match="splits: expected shares >= 0 that add up to 1"):
            write_scenes(tmp_path / "a", 3, splits=splits)
    assert not (tmp_path / "a").exists()
