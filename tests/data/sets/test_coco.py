"""COCO's JSON files, sound and damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tagrank.data.manifest import read_manifest

Write = Callable[..., Path]
Prepare = Callable[..., Result]


def image(number: Any, name: str, width: Any = 640, height: Any = 480) -> dict[str, Any]:
    urls = {"license": 3, "coco_url": f"http://images.cocodataset.org/{name}", "date_captured": "2013-11-14 17:02:52"}
    return {"id": number, "file_name": name, "width": width, "height": height, **urls}


def instance(number: int, of: Any, category: Any, box: Any, area: Any, crowd: int = 0) -> dict[str, Any]:
    outline = {"counts": [272, 2, 4], "size": [480, 640]} if crowd else [[239.97, 260.24, 222.04, 270.49]]
    return {
        "segmentation": outline,
        "area": area,
        "iscrowd": crowd,
        "image_id": of,
        "bbox": box,
        "category_id": category,
        "id": number,
    }


def instances() -> dict[str, Any]:
    return {
        "info": {"description": "COCO 2017 Dataset", "year": 2017},
        "licenses": [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"}],
        "images": [image(9, "000000000009.jpg"), image(25, "é.jpg"), image(30, "000000000030.jpg")],
        "annotations": [
            instance(1, 25, 18, [0, 0, 100, 100], 7000.5),
            instance(2, 9, 1, [270, 190, 100, 100], 9000.0),
            instance(3, 9, 18, [0, 0.0, 120, 90], 10000.25),
            instance(4, 25, 90, [10, 10, 30, 0.0], 0.0),
            instance(5, 25, 1, [20, 20, 600, 400], 60000, crowd=1),
        ],
        "categories": [
            {"supercategory": "person", "id": 1, "name": "person"},
            {"supercategory": "animal", "id": 18, "name": "dog"},
            {"supercategory": "indoor", "id": 90, "name": "toothbrush"},
        ],
    }


def captions() -> dict[str, Any]:
    texts = {
        9: ["A dog next to a man.", "People with dogs \n", "Something blue."],
        25: ["Two hot dogs on a table"],
        30: ["The sky."],
    }
    annotations = [
        {"image_id": number, "id": 10 * number + place, "caption": text}
        for number, here in texts.items()
        for place, text in enumerate(here)
    ]
    return {"info": {}, "licenses": [], "images": instances()["images"], "annotations": annotations[::-1]}


@pytest.fixture
def root(write: Write, tmp_path: Path) -> Path:
    for part in ("train2017", "val2017"):
        write(f"annotations/instances_{part}.json", json.dumps(instances()))
        write(f"annotations/captions_{part}.json", json.dumps(captions(), ensure_ascii=False))
        for name in ("000000000009", "é", "000000000030"):
            write(f"{part}/{name}.jpg")
    write("annotations/person_keypoints_train2017.json", "{")
    return tmp_path


def test_importance(root: Path, prepare: Prepare) -> None:
    out = root / "coco.jsonl"
    result = prepare("coco", root, "--order", "importance", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"{out}: 6 images read, 4 written with 3 different tags",
        "left out: 2, nothing to list",
    ]
    manifest = read_manifest(out)
    # The dog is larger than the person, but in a corner.
    assert [(e.image, e.tags, e.split) for e in manifest.examples] == [
        (f"{part}/{name}", tags, part[:-4])
        for part in ("train2017", "val2017")
        for name, tags in (("000000000009.jpg", ("person", "dog")), ("é.jpg", ("person", "dog", "toothbrush")))
    ]
    assert all(manifest.image_path(example).is_file() for example in manifest.examples)


def test_captions(root: Path, write: Write, prepare: Prepare) -> None:
    out = root / "coco.jsonl"
    arguments = ("coco", root, "--order", "captions", "--part", "val2017", "--out", out)
    result = prepare(*arguments)
    assert result.exit_code == 0, result.output
    examples = read_manifest(out).examples
    assert [(e.image, e.tags, e.split) for e in examples] == [
        ("val2017/000000000009.jpg", ("dog", "person"), "val"),
        ("val2017/é.jpg", ("hot dog", "dining table"), "val"),
    ]
    # The lists are in the order of the captions in the file, which is reversed here.
    assert examples[0].lists == (("person", "dog"), ("dog", "person"))
    words = write("words.txt", "sky\nblue thing: something blue\n")
    assert prepare(*arguments, "--words", words, "--overwrite").exit_code == 0
    assert [e.tags for e in read_manifest(out).examples] == [("blue thing",), ("sky",)]


def test_parts_below_a_folder_images(root: Path, prepare: Prepare) -> None:
    (root / "images").mkdir()
    (root / "train2017").rename(root / "images" / "train2017")
    assert prepare("coco", root, "--order", "importance", "--out", root / "c.jsonl").exit_code == 0
    assert [e.image for e in read_manifest(root / "c.jsonl").examples][::2] == [
        "images/train2017/000000000009.jpg",
        "val2017/000000000009.jpg",
    ]


def test_spellings_of_a_category(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    record = instances()
    for entry, name in zip(record["categories"], ("Dog ", "dog", "cafe\u0301"), strict=True):
        entry["name"] = name
    write("coco/annotations/instances_train2017.json", json.dumps(record))
    for one in record["images"]:
        write(f"coco/train2017/{one['file_name']}")
    arguments = ("coco", tmp_path / "coco", "--order", "importance", "--out", tmp_path / "m.jsonl")
    assert prepare(*arguments).exit_code == 0
    tags = {e.image.rpartition("/")[2]: e.tags for e in read_manifest(tmp_path / "m.jsonl").examples}
    assert tags == {"000000000009.jpg": ("Dog", "dog"), "\u00e9.jpg": ("Dog", "dog", "caf\u00e9")}
    assert prepare(*arguments, "--lower-case", "--overwrite").exit_code == 0
    tags = {e.image.rpartition("/")[2]: e.tags for e in read_manifest(tmp_path / "m.jsonl").examples}
    assert tags == {"000000000009.jpg": ("dog",), "\u00e9.jpg": ("dog", "caf\u00e9")}


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda r: r["annotations"][0].update(bbox=[]), "object without a box"),
        (lambda r: r["annotations"][0].update(bbox=[1, 2, -3, 4]), "object without a box"),
        (lambda r: r["annotations"][0].update(bbox=[1, 2, True, 4]), "object without a box"),
        (lambda r: r["annotations"][0].update(area="large"), "object without an area"),
        (lambda r: r["annotations"][0].update(category_id=7), "object of an unknown category"),
        (lambda r: r["annotations"][0].pop("category_id"), "category_id missing or of the wrong type"),
        (lambda r: r["images"][1].update(height=0), "image without a size"),
        (lambda r: r["images"][1].update(width=None), "image without a size"),
        (lambda r: r["images"][1].update(file_name="none.jpg"), "image missing"),
        (lambda r: r["images"].append(image(31, "../train2017/é.jpg")), "image outside of its folder"),
        (lambda r: r["annotations"][0].update(area=10**400), "object without an area"),
        (lambda r: r["images"][1].update(height=10**400), "image without a size"),
        (lambda r: r["images"].append(r["images"][1]), "id of two images"),
        (lambda r: r["images"].append(image("25", "é.jpg")), "id of two images"),
        (lambda r: r["annotations"][0].update(category_id=True), "category_id missing or of the wrong type"),
        (lambda r: r["annotations"].append(instance(6, 77, 1, [1, 1, 1, 1], 1)), "annotations of an image that is not"),
        (
            lambda r: r["annotations"].append(instance(6, 9.5, 1, [1, 1, 1, 1], 1)),
            "image_id missing or of the wrong type",
        ),
    ],
)
def test_damaged_records(
    root: Path, write: Write, prepare: Prepare, damage: Callable[[dict[str, Any]], None], kind: str
) -> None:
    record = instances()
    damage(record)
    write("annotations/instances_val2017.json", json.dumps(record))
    arguments = ("coco", root, "--order", "importance", "--part", "val2017", "--out", root / "c.jsonl")
    failed = prepare(*arguments)
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert kind in failed.stderr
    assert not (root / "c.jsonl").exists()
    skipped = prepare(*arguments, "--on-error", "skip")
    assert skipped.exit_code == 1
    assert f"left out: 1, {kind}" in skipped.stdout
    assert f" {len(record['images'])} images read, " in skipped.stdout
    assert skipped.stderr == failed.stderr


def test_damaged_files(root: Path, write: Write, prepare: Prepare) -> None:
    def fails(content: str | bytes, order: str = "importance") -> str:
        kind = "instances" if order == "importance" else order
        path = write(f"annotations/{kind}_val2017.json", content)
        arguments = ("--order", order, "--part", "val2017", "--on-error", "skip", "--out", root / "c.jsonl")
        result = prepare("coco", root, *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"tagrank: {path}: ")
        assert not (root / "c.jsonl").exists()
        return result.stderr

    text = json.dumps(instances())
    assert "not valid JSON" in fails(text[: len(text) // 2])
    assert "not valid JSON" in fails("")
    assert "the key 'area' appears twice in one object" in fails(text.replace('"iscrowd"', '"area"', 1))
    assert "NaN is not a JSON number" in fails(text.replace("7000.5", "NaN"))
    assert "expected an object with images, annotations, categories" in fails("[]")
    assert "categories: expected a list of objects, got None" in fails(json.dumps(captions()))
    assert "annotations: expected a list of objects" in fails('{"images": [], "annotations": [1], "categories": []}')
    assert "not UTF-8" in fails(json.dumps(captions(), ensure_ascii=False).encode("latin-1"), "captions")
    assert "id missing or of the wrong type" in fails(
        '{"images": [], "annotations": [], "categories": [{"name": "a"}]}'
    )


def test_options(root: Path, prepare: Prepare) -> None:
    def fails(*arguments: object) -> str:
        result = prepare("coco", *arguments, "--out", root / "c.jsonl")
        assert result.exit_code == 2
        return result.stderr

    assert "--words needs --order captions" in fails(root, "--order", "importance", "--words", root / "w.txt")
    assert "no instances_val2018.json; parts in this folder: train2017, val2017" in fails(
        root, "--order", "importance", "--part", "val2018"
    )
    assert "expected files annotations/captions_PART.json, got none" in fails(root / "val2017", "--order", "captions")
    assert "Missing option" in fails(root)
    importance = ("--order", "importance")
    assert "PART/_annotations.coco.json or result.json, got none" in fails(root / "val2017", *importance)
    assert "expected ROOT, or --annotations instead" in fails(*importance)
    assert "expected ROOT, or --annotations instead" in fails(root, "--annotations", "x.json", *importance)
    assert "--images goes with --annotations" in fails(root, "--images", root, *importance)
    assert "--part goes with ROOT" in fails("--annotations", "x.json", "--part", "train", *importance)
    assert "x.json: no such file" in fails("--annotations", "x.json", "--images", root, *importance)


def small(*names: str) -> dict[str, Any]:
    """Two images with a dog; the second one with a larger ball."""
    return {
        "images": [image(number, name, 64, 64) for number, name in enumerate(names)],
        "annotations": [
            instance(0, 0, 1, [1, 1, 20, 20], 400),
            instance(1, 1, 1, [1, 1, 20, 20], 400),
            instance(2, 1, 2, [1, 1, 60, 60], 3600),
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "ball"}],
    }


TAGS = [("dog",), ("ball", "dog")]


@pytest.mark.parametrize(
    ("file", "names", "images", "splits"),
    [
        ("valid/_annotations.coco.json", ("a.jpg", "b.jpg"), "valid", ["val", "val"]),
        ("result.json", ("a.jpg", "b.jpg"), "images", [None, None]),
        ("result.json", ("images/a.jpg", "images/b.jpg"), "images", [None, None]),
        ("result.json", ("images\\a.jpg", "images\\b.jpg"), "images", [None, None]),
        ("annotations/instances_default.json", ("a.jpg", "b.jpg"), "images", [None, None]),
        ("annotations/instances_default.json", ("a.jpg", "b.jpg"), "images/default", [None, None]),
        ("annotations/instances_test.json", ("deep/a.jpg", "deep/b.jpg"), "images/test/deep", ["test", "test"]),
        ("annotations/instances_train.json", ("p/a.jpg", "p/b.jpg"), "p", ["train", "train"]),
    ],
)
def test_layouts_of_tools(
    write: Write,
    prepare: Prepare,
    tmp_path: Path,
    file: str,
    names: tuple[str, ...],
    images: str,
    splits: list[str | None],
) -> None:
    """Roboflow, Label Studio, CVAT and Datumaro."""
    path = write(file, json.dumps(small(*names)))
    for name in ("a.jpg", "b.jpg"):
        write(f"{images}/{name}")
    expected = [(f"{images}/{name}", tags) for name, tags in zip(("a.jpg", "b.jpg"), TAGS, strict=True)]
    out = tmp_path / "m.jsonl"
    for given in ((tmp_path,), ("--annotations", path, "--images", tmp_path / images.removesuffix("/deep"))):
        result = prepare("coco", *given, "--order", "importance", "--out", out, "--overwrite")
        assert result.exit_code == 0, result.output
        assert [(e.image, e.tags) for e in read_manifest(out).examples] == expected
        assert [e.split for e in read_manifest(out).examples] == splits


@pytest.mark.parametrize("as_id", [int, float, str, lambda number: f" {number} "])
def test_ids_as_tools_write_them(
    write: Write, prepare: Prepare, tmp_path: Path, as_id: Callable[[int], int | float | str]
) -> None:
    """And areas that are missing, and sizes in floating point."""
    record = small("a.jpg", "b.jpg")
    for entry in record["annotations"]:
        entry.update(image_id=as_id(entry["image_id"]), category_id=as_id(entry["category_id"]), area=None)
        if entry["id"] == 1:
            del entry["area"]
    for entry in record["images"]:
        entry.update(width=64.0, height=64.0)
        write(entry["file_name"])
    path = write("coco.json", json.dumps(record))
    result = prepare("coco", "--annotations", path, "--order", "importance", "--out", tmp_path / "m.jsonl")
    assert result.exit_code == 0, result.output
    assert [e.tags for e in read_manifest(tmp_path / "m.jsonl").examples] == TAGS


def test_images_elsewhere(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    """Annotations need not be near the images. Absolute paths below the folder of the images are fine."""
    photos = tmp_path / "photos"
    path = write("elsewhere/x.json", json.dumps(small("a.jpg", f"{photos}/b.jpg")))
    write("photos/a.jpg")
    write("photos/b.jpg")
    out = photos / "m.jsonl"
    arguments = ("coco", "--annotations", path, "--images", photos, "--order", "importance", "--out", out)
    assert prepare(*arguments).exit_code == 0
    assert [e.image for e in read_manifest(out).examples] == ["a.jpg", "b.jpg"]
    (photos / "b.jpg").unlink()
    assert "b.jpg: image missing" in prepare(*arguments, "--overwrite").stderr
