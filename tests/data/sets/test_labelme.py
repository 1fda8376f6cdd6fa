"""LabelMe files, as the web tool of LabelMe and the program labelme write them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tagrank.data.manifest import read_manifest

Write = Callable[..., Path]
Prepare = Callable[..., Result]


def thing(number: int, name: str, deleted: str = "0", polygon: bool = True) -> str:
    outline = "<pt><x>1078</x><y>858</y></pt><pt><x>1123</x><y>854</y></pt>" if polygon else ""
    return (
        f"<object><name>{name}</name><deleted>{deleted}</deleted><verified>0</verified><occluded>no</occluded>"
        "<attributes/><parts><hasparts/><ispartof>3</ispartof></parts><date>25-Jul-2014 08:40:31</date>"
        f"<id>{number}</id><polygon><username>admin</username>{outline}</polygon></object>"
    )


def annotation(file: str, *things: str) -> str:
    size = "<imagesize><nrows>1920</nrows><ncols>2560</ncols></imagesize>"
    source = "<source><sourceAnnotation>LabelMe Webtool</sourceAnnotation></source>"
    return f"<annotation><filename>{file}</filename><folder>street</folder>{source}{size}{''.join(things)}</annotation>"


@pytest.fixture
def root(write: Write, tmp_path: Path) -> Path:
    trees = {
        "street/a": annotation("\na.jpg\n", thing(2, "\nCars\n"), thing(0, "car"), thing(1, "Traffic  Lights")),
        "street/b": annotation("b.jpg", thing(0, "sky", deleted="1"), thing(1, ""), thing(2, "people", polygon=False)),
        "street/c": annotation("c.jpg", thing(0, "tree", deleted="1\n")),
        "users/ana/static_ñ/é": annotation("é.jpg", thing(0, "árbol"), thing(1, "building"), thing(2, "Men")),
        "users/ana/d": "<annotation><folder>x</folder>" + thing(0, "car") + thing(1, "building") + "</annotation>",
    }
    for name, text in trees.items():
        write(f"Annotations/{name}.xml", text)
        write(f"Images/{name}.jpg")
    write("Annotations/street/.DS_Store", "no annotation")
    return tmp_path


def test_order_of_drawing(root: Path, prepare: Prepare) -> None:
    out = root / "labelme.jsonl"
    result = prepare("labelme", root, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"{out}: 5 images read, 4 written with 6 different tags",
        "left out: 1, no objects",
    ]
    manifest = read_manifest(out)
    assert [(e.image, e.tags, e.split) for e in manifest.examples] == [
        ("Images/street/a.jpg", ("car", "traffic light"), None),
        ("Images/street/b.jpg", ("person",), None),
        ("Images/users/ana/d.jpg", ("car", "building"), None),
        ("Images/users/ana/static_ñ/é.jpg", ("árbol", "building", "man"), None),
    ]
    assert all(manifest.image_path(example).is_file() for example in manifest.examples)


def test_synonyms_plurals_and_rare_names(root: Path, write: Write, prepare: Prepare) -> None:
    synonyms = write("synonyms.txt", "person: man\nvehicle: cars, car\n")
    out = root / "labelme.jsonl"
    assert prepare("labelme", root, "--synonyms", synonyms, "--min-count", 2, "--out", out).exit_code == 0
    assert [e.tags for e in read_manifest(out).examples] == [
        ("vehicle",),
        ("person",),
        ("vehicle", "building"),
        ("building", "person"),
    ]
    result = prepare("labelme", root, "--no-plurals", "--min-count", 2, "--out", out, "--overwrite")
    assert [e.tags for e in read_manifest(out).examples] == [("car",), ("car", "building"), ("building",)]
    assert "left out: 1, no tag that 2 images have" in result.stdout
    nothing = prepare("labelme", root, "--min-count", 9, "--out", out, "--overwrite")
    assert nothing.exit_code == 2
    assert nothing.stderr == (
        f"tagrank: {out}: none of the 5 images is left to write; left out: 4 no tag that 9 images have, 1 no objects\n"
    )
    assert len(read_manifest(out)) == 3, "the old manifest is unchanged"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "annotation empty"),
        (annotation("a.jpg", thing(0, "a & b")), "damaged XML"),
        (annotation("a.jpg", thing(0, "ñ")).encode("latin-1"), "damaged XML"),
        (annotation("../a.jpg", thing(0, "car")), "file name with a folder"),
        (annotation("none.jpg", thing(0, "car")), "image missing"),
        (annotation("a.jpg\x85".replace("\x85", "&#133;b"), thing(0, "car")), "image missing"),
        (annotation("é.jpg", thing(0, "a&#155;b")), "not fit for a manifest"),
        (annotation("d.jpg", thing(0, "car")), "image there twice"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation/>', "XML with a document type definition"),
    ],
)
def test_damaged_annotations(root: Path, write: Write, prepare: Prepare, text: str | bytes, kind: str) -> None:
    write("Images/users/ana/é.jpg")
    path = write("Annotations/users/ana/e.xml", text)
    failed = prepare("labelme", root, "--out", root / "l.jsonl")
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert not (root / "l.jsonl").exists()
    skipped = prepare("labelme", root, "--out", root / "l.jsonl", "--on-error", "skip")
    assert skipped.exit_code == 1
    assert f"left out: 1, {kind}\n" in skipped.stdout
    assert skipped.stderr == failed.stderr
    assert len(read_manifest(root / "l.jsonl")) == 4
    if kind.startswith(("annotation", "damaged", "XML", "file")):
        assert failed.stderr.startswith(f"tagrank: {path}: {kind}")
    elif kind != "image missing":
        assert failed.stderr.startswith(f"tagrank: {path}: ")


def test_missing_folders(root: Path, write: Write, prepare: Prepare, tmp_path: Path) -> None:
    def fails(*arguments: object) -> str:
        result = prepare("labelme", *arguments)
        assert result.exit_code == 2
        return result.stderr

    assert "street: expected the folder of the images" in fails(root / "street", "--out", root / "street" / "l.jsonl")
    write("empty/Images/a.jpg")
    assert "Annotations: no such file or directory" in fails(root / "empty", "--out", root / "empty" / "l.jsonl")
    write("empty/Annotations/a.txt", "")
    assert "Annotations: expected XML or JSON files in this folder, got none" in fails(
        root / "empty", "--out", root / "empty" / "l.jsonl"
    )
    assert "no such file" in fails(root, "--synonyms", root / "none.txt", "--out", root / "l.jsonl")


def test_the_images_may_be_a_link(root: Path, tmp_path: Path, prepare: Prepare) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "Images").symlink_to(root / "Images")
    (tmp_path / "mine" / "Annotations").symlink_to(root / "Annotations")
    out = tmp_path / "mine" / "l.jsonl"
    assert prepare("labelme", tmp_path / "mine", "--out", out).exit_code == 0
    manifest = read_manifest(out)
    assert manifest.examples[0].image == "Images/street/a.jpg"
    assert manifest.image_path(manifest.examples[0]).is_file()


def test_names_that_are_not_utf8(root: Path, prepare: Prepare) -> None:
    folder = root / "Annotations" / "street"
    (folder / "b.xml").rename(bytes(folder).decode() + "/b\udce9.xml")
    (folder / "a.xml").write_bytes(annotation("", thing(0, "car")).encode())
    (Path(bytes(folder).decode() + "/b\udce9.xml")).write_text(annotation("", thing(0, "car")))
    Path(f"{root}/Images/street/b\udce9.jpg").write_bytes(b"\xff")
    result = prepare("labelme", root, "--out", root / "l.jsonl", "--on-error", "skip")
    assert "left out: 1, not fit for a manifest" in result.stdout
    assert read_manifest(root / "l.jsonl").examples[0].image == "Images/street/a.jpg"


def test_a_link_to_a_folder_above_is_not_followed(root: Path, prepare: Prepare) -> None:
    assert prepare("labelme", root, "--out", root / "before.jsonl").exit_code == 0
    (root / "Annotations" / "round").symlink_to(root / "Annotations", target_is_directory=True)
    assert prepare("labelme", root, "--out", root / "after.jsonl").exit_code == 0
    assert (root / "after.jsonl").read_bytes() == (root / "before.jsonl").read_bytes()


def shapes(image: Any, *labels: Any) -> str:
    """A file of labelme 5.4."""
    points = [[1.5, 2.0], [5.0, 2.0], [5.0, 9.0]]
    common = {"points": points, "group_id": None, "description": "", "shape_type": "polygon", "flags": {}, "mask": None}
    record = {
        "version": "5.4.1",
        "flags": {},
        "shapes": [{"label": label, **common} for label in labels],
        "imagePath": image,
        "imageData": "iVBORw0KGgo=",
        "imageHeight": 64,
        "imageWidth": 64,
    }
    return json.dumps(record, ensure_ascii=False, indent=2)


def test_json_beside_the_images(write: Write, prepare: Prepare, tmp_path: Path) -> None:
    for name, text in {
        "a": shapes("a.jpg", "Dogs", "ball", "dog"),
        "b": shapes("b.jpg"),
        "c/d": shapes("d.jpg", "sky"),
        "c/e": shapes("..\\photos\\é.jpg", "árbol"),
        "c/f": shapes("../photos/f.jpg", "people"),
    }.items():
        write(f"{name}.json", text)
    for name in ("a", "b", "c/d", "photos/é", "photos/f"):
        write(f"{name}.jpg")
    out = tmp_path / "l.jsonl"
    result = prepare("labelme", tmp_path, "--out", out)
    assert result.exit_code == 0, result.output
    assert "left out: 1, no objects" in result.stdout
    assert [(e.image, e.tags) for e in read_manifest(out).examples] == [
        ("a.jpg", ("dog", "ball")),
        ("c/d.jpg", ("sky",)),
        ("photos/é.jpg", ("árbol",)),
        ("photos/f.jpg", ("person",)),
    ]
    (tmp_path / "a.jpg").unlink()
    assert "a.jpg: image missing" in prepare("labelme", tmp_path, "--out", out, "--overwrite").stderr
    assert prepare("labelme", tmp_path, "--out", out, "--overwrite", "--no-check-images").exit_code == 0
    assert read_manifest(out).examples[0].image == "a.jpg"


def test_json_apart_from_the_images(root: Path, write: Write, prepare: Prepare) -> None:
    (root / "Annotations" / "street" / "c.xml").unlink()
    write("Annotations/street/b2.json", shapes("c.jpg", "lamp"))
    write("Annotations/users/x.json", shapes("../../Images/street/x.jpg", "lamp"))
    write("Images/street/x.jpg")
    assert prepare("labelme", root, "--out", root / "l.jsonl").exit_code == 0
    tags = {e.image: e.tags for e in read_manifest(root / "l.jsonl").examples}
    assert tags["Images/street/c.jpg"] == tags["Images/street/x.jpg"] == ("lamp",)
    assert len(tags) == 6


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "damaged JSON: not valid JSON"),
        (shapes("a.jpg", "dog")[:-9], "damaged JSON: not valid JSON"),
        (shapes("a.jpg", "ñ").encode("latin-1"), "damaged JSON: not UTF-8"),
        ("[]", "not an annotation: expected an object with imagePath and shapes"),
        ('{"images": [], "annotations": []}', "not an annotation"),
        ('{"imagePath": "a.jpg", "shapes": {"label": "dog"}}', "not an annotation: expected shapes with labels"),
        (shapes("a.jpg", None), "not an annotation: expected shapes with labels"),
        (shapes(None, "dog"), "no image named"),
        (shapes("../a.jpg", "dog"), "image outside of its folder"),
        (shapes("/somewhere/a.jpg", "dog"), "image outside of its folder"),
        (shapes("b.jpg", "dog"), "image missing"),
    ],
)
def test_damaged_json(write: Write, prepare: Prepare, tmp_path: Path, text: str | bytes, kind: str) -> None:
    write("p/a.json", text)
    write("p/c.json", shapes("c.jpg", "dog"))
    for name in ("a", "p/a", "p/c"):
        write(f"{name}.jpg")
    arguments = ("labelme", tmp_path / "p", "--out", tmp_path / "p" / "l.jsonl")
    failed = prepare(*arguments)
    assert failed.exit_code == 2
    assert kind in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert prepare(*arguments, "--on-error", "skip").exit_code == 1
    assert [e.image for e in read_manifest(tmp_path / "p" / "l.jsonl").examples] == ["c.jpg"]


def test_a_folder_that_cannot_be_read(root: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("street"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    arguments = ("labelme", root, "--out", root / "l.jsonl")
    assert "Annotations/street: folder that cannot be read: permission denied" in prepare(*arguments).stderr
    result = prepare(*arguments, "--on-error", "skip")
    assert result.exit_code == 1
    assert "left out: 1, folder that cannot be read" in result.stdout
    assert len(read_manifest(root / "l.jsonl")) == 2
