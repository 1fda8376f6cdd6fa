import base64
import errno
import io
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tagrank.decode import RankedTag
from tagrank.errors import InputError
from tagrank.evaluation.report_html import MISSING, OrderMistake, ReportExample, write_report

VOID = {"meta", "link", "img", "br"}
ROWS: list[dict[str, float | str]] = [
    {"name": "ours", "nll": 9.41, "ndcg@10": 0.725, "ndcg@5": 0.6731, "first_tag": 0.531},
    {"name": "prior", "ndcg@10": 0.427, "ndcg@5": 0.363, "first_tag": 0.219},
    {"name": "classifier", "ndcg@10": 0.7251, "ndcg@5": 0.664, "first_tag": math.nan, "nll": 9.93},
]
HISTORY = [
    {"epoch": 1, "train_loss": 9.0, "val_loss": 8.5, "val_ndcg@5": 0.3},
    {"epoch": 2, "train_loss": 6.0, "val_loss": 7.0, "val_ndcg@5": 0.52},
    {"epoch": 3, "train_loss": 4.0, "val_loss": 7.5, "val_ndcg@5": 0.5},
]


@dataclass
class Element:
    name: str
    attributes: dict[str, str]
    children: "list[Element | str]" = field(default_factory=list)

    def all(self, name: str, class_: str | None = None) -> "Iterator[Element]":
        """The elements with a name and a class below this element, in document order."""
        for child in self.children:
            if isinstance(child, Element):
                if child.name == name and (class_ is None or class_ in child.attributes.get("class", "").split()):
                    yield child
                yield from child.all(name, class_)

    def one(self, name: str, class_: str | None = None) -> "Element":
        (element,) = self.all(name, class_)
        return element

    @property
    def text(self) -> str:
        return " ".join("".join(c if isinstance(c, str) else f"{c.text} " for c in self.children).split())


class Tree(HTMLParser):
    """Builds the document, and fails if elements are not closed in the reverse order of their opening."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(html)
        self.close()
        assert [element.name for element in self.open] == [""], "elements left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice on {tag}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def example(name: str = "dog.jpg", **changes: Any) -> ReportExample:
    values: dict[str, Any] = {
        "name": name,
        "image": Image.new("RGB", (48, 32), "teal"),
        "predicted": [RankedTag("dog", 1, 0.97), RankedTag("cat", 2, 0.25), RankedTag("ball", 3, 0.004)],
        "reference": ["ball", "dog", "grass"],
        "lists": [["ball", "dog"], ["dog", "grass"]],
        "ndcg": 0.8146,
    }
    return ReportExample(**(values | changes))


def write(path: Path, **changes: Any) -> Element:
    """Write a report and read it back."""
    values: dict[str, Any] = {
        "title": "A report",
        "summary": {"Model": "every step", "Seed": "3"},
        "rows": ROWS,
        "history": HISTORY,
        "examples": [example()],
    }
    write_report(path, **(values | changes))
    return Tree(path.read_text(encoding="utf-8")).root


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "report.html"


def picture(card: Element) -> Image.Image:
    uri = card.one("img").attributes["src"]
    prefix = "data:image/jpeg;base64,"
    assert uri.startswith(prefix)
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(prefix), validate=True)))


def test_nothing_points_outside(path: Path) -> None:
    root = write(path)
    links = [
        value
        for name in ("a", "img", "link", "use", "script", "iframe", "image", "source", "object")
        for element in root.all(name)
        for key, value in element.attributes.items()
        if key in ("src", "href", "srcset", "data", "xlink:href")
    ]
    ids = set(re.findall(r'\bid="([^"]+)"', path.read_text()))
    assert links
    assert all(link.startswith("data:") or link.removeprefix("#") in ids for link in links)
    assert not re.search(r"url\(|@import|https?:|//[a-z]", root.one("style").text)
    assert not list(root.all("script"))
    policy = next(meta for meta in root.all("meta") if meta.attributes.get("http-equiv"))
    assert policy.attributes["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_ids_are_distinct_and_labels_name_them(path: Path) -> None:
    write(path)
    html = path.read_text()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'aria-labelledby="([^"]+)"', html)) <= set(ids)


def test_captions_belong_to_their_figures(path: Path) -> None:
    figures = list(write(path).all("figure"))
    assert len(figures) == 3
    assert all([getattr(c, "name", "") for c in figure.children].count("figcaption") == 1 for figure in figures)


def test_header(path: Path) -> None:
    root = write(path, title="Tags & <b>things</b>")
    assert root.one("html").attributes["lang"] == "en"
    assert root.one("title").text == root.one("h1").text == "Tags & <b>things</b>"
    assert root.one("p", "lead").text == (
        "NDCG@5 is 0.673 ; the best baseline, classifier, has 0.664. "
        "The first tag is the tag that people put first in 53% of the images."
    )
    assert [element.text for element in root.one("dl", "summary").all("div")] == ["Model every step", "Seed 3"]


def test_header_says_only_what_the_rows_say(path: Path) -> None:
    assert write(path, rows=[{"name": "ours", "ndcg@5": 0.5}]).one("p", "lead").text == "NDCG@5 is 0.500 ."
    assert not list(write(path, rows=[{"name": "ours"}, ROWS[1]]).all("p", "lead"))


def test_table(path: Path) -> None:
    table = write(path).one("table")
    rows = list(table.one("tbody").all("tr"))
    assert [th.text for th in table.one("thead").all("th")] == ["Model", "NDCG@5", "NDCG@10", "First tag", "NLL"]
    assert [row.one("th").text for row in rows] == ["ours", "prior", "classifier"]
    assert [row.attributes.get("class") for row in rows] == ["ours", None, None]
    assert [[td.children[0].text for td in row.all("td")] for row in rows] == [  # type: ignore[union-attr]
        ["0.673", "0.725", "0.531", "9.41"],
        ["0.363", "0.427", "0.219", MISSING],
        ["0.664", "0.725", MISSING, "9.93"],
    ]
    # The lowest NLL is the best. Numbers that are equal as shown are marked alike. NaN is not compared.
    assert [[td.text.endswith("(best)") for td in row.all("td")] for row in rows] == [
        [True, True, True, True],
        [False, False, False, False],
        [False, True, False, False],
    ]
    assert [td.text for td in table.all("td", "best")] == [
        f"{n} (best)" for n in ("0.673", "0.725", "0.531", "9.41", "0.725")
    ]


def test_best_is_marked_only_among_several_and_if_the_direction_is_known(path: Path) -> None:
    rows: list[dict[str, float | str]] = [
        {"name": "ours", "nll": 9.0, "seconds": 3.0, "ndcg@5": 0.5, "decoder": "<greedy>"},
        {"name": "other", "nll": math.nan, "seconds": 2.0, "ndcg@5": 0.6, "decoder": "-"},
    ]
    root = write(path, rows=rows)
    assert [th.text for th in root.one("thead").all("th")] == ["Model", "NDCG@5", "NLL", "seconds", "decoder"]
    ours, other = root.one("tbody").all("tr")
    assert [td.text for td in ours.all("td")] == ["0.500", "9.00", "3.000", "<greedy>"]
    assert [td.text for td in other.all("td")] == ["0.600 (best)", MISSING, "2.000", "-"]


def test_each_column_is_explained(path: Path) -> None:
    root = write(path, rows=[{"name": "ours", "ndcg@5": 0.5, "ndcg@10": 0.5, "recall@5": 0.4}])
    titles = [abbr.attributes["title"] for abbr in root.one("table").all("abbr")]
    assert [re.findall("first (.*?) tags", title) for title in titles] == [["5"], ["10"], ["5"]]
    legend = [dt.text for dt in root.one("dl", "legend").all("dt")]
    assert legend == ["NDCG@k", "Recall@k", "Bold, underlined"]


def test_bars_have_the_length_of_their_value(path: Path) -> None:
    bars = list(write(path).one("ol", "bars").all("li"))
    assert [bar.text for bar in bars] == ["ours 0.673", "prior 0.363", "classifier 0.664"]
    assert [bar.one("span", "fill").attributes["style"] for bar in bars] == [
        "width: 67.3%",
        "width: 36.3%",
        "width: 66.4%",
    ]


def curve_points(chart: Element) -> list[list[list[tuple[float, float]]]]:
    """The unbroken runs of points of each curve."""
    curves = []
    for curve in chart.all("path", "curve"):
        runs = curve.attributes["d"].split("M")[1:]
        curves.append([[tuple(map(float, p.split())) for p in run.replace("h0", "").split("L")] for run in runs])
    return curves  # type: ignore[return-value]


def axis(chart: Element, coordinate: str) -> tuple[float, float]:
    """Slope and offset that convert the chart's units to the numbers at the ticks."""
    anchor = "end" if coordinate == "y" else "middle"
    ticks = [
        (float(text.attributes[coordinate]), float(text.text))
        for text in chart.all("text")
        if text.attributes.get("text-anchor") == anchor and "class" not in text.attributes
    ]
    units, numbers = zip(*ticks, strict=True)
    slope, offset = np.polyfit(units, numbers, 1)
    np.testing.assert_allclose(slope * np.array(units) + offset, numbers, atol=0.01)
    return float(slope), float(offset)


@pytest.mark.parametrize(("chart", "keys"), [(0, ["train_loss", "val_loss"]), (1, ["val_ndcg@5"])])
def test_curves_pass_through_the_numbers_on_their_axes(path: Path, chart: int, keys: list[str]) -> None:
    figure = list(write(path).all("figure", "chart"))[chart]
    (x_slope, x_offset), (y_slope, y_offset) = axis(figure, "x"), axis(figure, "y")
    assert x_slope > 0
    assert y_slope < 0, "the vertical axis of SVG points down"
    for key, (run,) in zip(keys, curve_points(figure), strict=True):
        epochs, values = np.array(run).T
        np.testing.assert_allclose(epochs * x_slope + x_offset, [1, 2, 3], atol=0.01)
        np.testing.assert_allclose(values * y_slope + y_offset, [row[key] for row in HISTORY], atol=0.02)
    # All texts lie within the picture.
    assert all(0 <= float(text.attributes["y"]) <= 232 for text in figure.all("text"))


def test_curves_are_named_at_their_ends(path: Path) -> None:
    loss, ndcg = write(path).all("figure", "chart")
    assert (loss.one("figcaption").text, ndcg.one("figcaption").text) == ("Loss, in nats", "Validation NDCG@5")
    assert {label.text for label in loss.all("text", "label")} == {"training 4.00", "validation 7.50"}
    assert {label.text for label in ndcg.all("text", "label")} == {"0.500", "best 0.520, epoch 2"}
    assert "validation at the end: 7.50" in loss.one("svg").attributes["aria-label"]


def test_labels_of_close_curves_keep_apart(path: Path) -> None:
    history = [{"epoch": e, "train_loss": 10.0 / e, "val_loss": 10.0 / e + 0.01} for e in (1, 2, 3)]
    (chart,) = write(path, history=history).all("figure", "chart")
    one, other = (float(label.attributes["y"]) for label in chart.all("text", "label"))
    assert abs(one - other) == pytest.approx(15)


def test_nan_in_the_history_leaves_a_gap(path: Path) -> None:
    history = [{"epoch": e, "train_loss": 5.0 - e, "val_loss": math.nan if e in (2, 5) else 4.0} for e in range(1, 6)]
    (loss,) = write(path, history=history).all("figure", "chart")
    training, validation = curve_points(loss)
    assert [len(run) for run in training] == [5]
    assert [len(run) for run in validation] == [1, 2]
    assert "nan" not in loss.text.lower()


def test_one_row_is_not_compared(path: Path) -> None:
    root = write(path, rows=ROWS[:1])
    assert next(root.all("h2")).text == "Scores"


@pytest.mark.parametrize("history", [[], [{"epoch": 1}], [{"epoch": 1, "train_loss": math.nan, "val_loss": math.inf}]])
def test_no_learning_curves_without_numbers(path: Path, history: list[dict[str, float]]) -> None:
    root = write(path, history=history)
    assert [h2.text for h2 in root.all("h2")] == ["Against the baselines", "Images and their tags"]
    assert not list(root.all("figure", "chart"))


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [0.0, 0.0], [1e-9, 3e9], [-2.0, 5.0]])
def test_any_history_can_be_drawn(path: Path, values: list[float]) -> None:
    history = [{"epoch": e, "train_loss": v} for e, v in enumerate(values, 1)]
    (chart,) = write(path, history=history).all("figure", "chart")
    ((run,),) = curve_points(chart)
    assert len(run) == len(values)
    assert all(0 <= x <= 400 and 26 <= y <= 200 for x, y in run)


def test_cards_are_in_order_and_compare_both_lists(path: Path) -> None:
    names = ["z.jpg", "a.jpg", "m.jpg"]
    root = write(path, examples=[example(name) for name in names])
    cards = list(root.one("div", "images").all("figure"))
    assert [card.one("div", "head").text for card in cards] == [f"{name} NDCG@5 0.81" for name in names]
    predicted, people = cards[0].all("ol", "tags")
    assert [item.text for item in predicted.all("li")] == [
        "1 dog, on people’s list, 97%",
        "2 cat, not on people’s list, 25%",
        "3 ball, on people’s list, <1%",
    ]
    assert [item.text for item in people.all("li")] == [
        "1 ball, predicted",
        "2 dog, predicted",
        "3 grass, not predicted",
    ]
    icons = [[use.attributes["href"] for use in side.all("use")] for side in (predicted, people)]
    assert icons == [["#hit", "#miss", "#hit"], ["#hit", "#hit", "#miss"]]
    bars = [fill.attributes["style"] for fill in predicted.all("span", "fill")]
    assert bars == ["width: 97.0%", "width: 25.0%", "width: 0.4%"]
    details = cards[0].one("details")
    assert details.one("summary").text == "2 single lists"
    assert [item.text for item in details.all("li")] == ["ball, dog", "dog, grass"]
    assert cards[0].one("img").attributes["alt"] == "z.jpg; people see: ball, dog, grass"


def test_tags_beyond_the_list_are_set_off(path: Path) -> None:
    root = write(path, examples=[example(beyond=["ball"])])
    predicted = next(root.all("ol", "tags"))
    assert [item.attributes["class"].split() for item in predicted.all("li")] == [["hit"], [], ["hit", "beyond"]]
    assert [item.text for item in predicted.all("li")][
        2
    ] == "3 ball, on people’s list, beyond the model’s own list, <1%"
    assert "it leaves out the tags in italics" in root.text
    assert "in italics" not in write(path).one("main").text


def test_a_list_that_is_the_merged_one_is_not_repeated(path: Path) -> None:
    root = write(path, examples=[example(lists=[["ball", "dog", "grass"]])])
    assert not list(root.all("details"))
    assert "merges" not in root.text


def test_what_comes_from_outside_is_escaped(path: Path) -> None:
    evil, both = "<script>alert(1)</script>", "a&b\"'>"
    root = write(
        path,
        title=evil,
        summary={evil: both},
        rows=[{"name": evil, "ndcg@5": 0.5, evil: 0.1}, {"name": both, "ndcg@5": 0.4}],
        examples=[
            example(evil, predicted=[RankedTag(evil, 1, 0.5), RankedTag(both, 2, 0.4)], reference=[both, evil]),
            example(both, reference=[both], lists=[[evil, both]]),
        ],
    )
    assert not list(root.all("script"))
    assert "<script" not in path.read_text()
    first, second = root.one("div", "images").all("figure")
    assert first.one("img").attributes["alt"] == f"{evil}; people see: {both}, {evil}"
    assert [tag.children[0] for tag in first.all("span", "tag")] == [evil, both, both, evil]
    assert next(second.one("div", "head").all("span")).text == both
    assert second.one("details").one("li").text == f"{evil}, {both}"
    assert [row.one("th").text for row in root.one("tbody").all("tr")] == [evil, both]


def test_numbers_of_a_card_are_not_broken_into_digits(path: Path) -> None:
    """The page breaks words anywhere, which would make 1 and 0 of the rank 10, and 10 and % of a percentage."""
    style = write(path).one("style").text
    assert "overflow-wrap: anywhere" in style
    unbroken = re.findall(r"([^{}]+)\{[^{}]*white-space: nowrap", style)
    selectors = {selector.strip() for rule in unbroken for selector in rule.split(",")}
    assert {".tags .rank", ".tags .share", ".bars .value", ".head .score", ".by"} <= selectors


def test_what_the_order_is_by_and_what_the_percentage_is(path: Path) -> None:
    root = write(path)
    card = next(root.one("div", "images").all("figure"))
    assert [line.text for line in card.all("p", "by")] == ["by importance on a list", "by importance"]
    for worst in ([], [example()]):
        page = write(path, worst=worst)
        assert page.one("main").text.count("Predicted tags are in the order of their importance") == 1
        assert page.one("main").text.count("So it need not fall.") == 1


def test_images_that_the_model_has_seen_stand_in_the_page(path: Path) -> None:
    assert not list(write(path, judged=40).all("p", "warning"))
    warning = write(path, judged=40, seen=12).one("p", "warning").text
    assert "The model was trained or validated on 12 of the 40 images that it is judged by." in warning
    assert "trained or validated on 3 images that it" in write(path, seen=3).one("p", "warning").text


def test_of_how_many_images_the_worst_are_the_worst(path: Path) -> None:
    page = write(path, judged=40, worst=[example(image=None)])
    worst, images = (section.one("p", "note").text for section in list(page.all("section"))[-2:])
    assert worst.startswith("The image with the lowest NDCG@5 of all 40.")
    assert images == "1 of the 40 images, evenly spaced among those whose photographs are here."
    assert page.one("p", "lost").text == "The photograph is not here."


def test_nan_and_nothing_in_an_example(path: Path) -> None:
    examples = [
        example(predicted=[RankedTag("dog", 1, math.nan)], ndcg=math.nan),
        example(predicted=[], reference=[], lists=[]),
    ]
    root = write(path, examples=examples)
    first, second = root.one("div", "images").all("figure")
    assert first.one("div", "head").text == f"dog.jpg NDCG@5 {MISSING}"
    assert first.one("span", "share").text == MISSING
    assert first.one("span", "fill").attributes["style"] == "width: 0.0%"
    assert [ol.text for ol in second.all("ol", "tags")] == [MISSING, MISSING]
    assert not re.search(r"\b(nan|None|Undefined)\b", root.one("main").text)


def test_a_name_that_has_no_encoding(path: Path) -> None:
    root = write(path, examples=[example("caf\udce9.jpg")])
    assert next(root.one("div", "head").all("span")).text == "caf?.jpg"


def test_thumbnails_are_small_upright_and_without_metadata(path: Path, tmp_path: Path) -> None:
    pixels = np.zeros((400, 800, 3), np.uint8)
    pixels[:, :400, 0] = 250
    photo = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter: the left of the file is the top of the picture
    exif[0x010F] = "a maker"
    photo.save(tmp_path / "turned.jpg", exif=exif, comment=b"private")
    in_memory = Image.open(tmp_path / "turned.jpg")
    root = write(path, examples=[example(image=tmp_path / "turned.jpg"), example(image=in_memory)])
    for card in root.one("div", "images").all("figure"):
        thumbnail = picture(card)
        assert thumbnail.size == (160, 320)
        assert (card.one("img").attributes["width"], card.one("img").attributes["height"]) == ("160", "320")
        top, bottom = thumbnail.getpixel((80, 20)), thumbnail.getpixel((80, 300))
        assert (top[0] > 230, bottom[0] < 20) == (True, True)  # type: ignore[index]
        assert not thumbnail.getexif()
        assert "comment" not in thumbnail.info
    assert in_memory.size == (800, 400), "the caller's image is left as it was"


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_any_mode_of_image(path: Path, mode: str) -> None:
    thumbnail = picture(write(path, examples=[example(image=Image.new(mode, (7, 5)))]).one("div", "images"))
    assert (thumbnail.mode, thumbnail.size) == ("RGB", (7, 5))


@pytest.mark.exhaustive
def test_sixty_photographs_stay_under_three_megabytes(path: Path) -> None:
    rng = np.random.default_rng(0)
    examples = []
    for n in range(60):
        # Detail at each scale with the 1/f spectrum of photographs.
        sizes = (4, 8, 16, 32, 64, 128, 256, 512)
        layers = [Image.fromarray(rng.integers(0, 256, (s, s, 3), np.uint8)).resize((640, 480)) for s in sizes]
        mean = sum(np.asarray(layer, np.float64) for layer in layers) / len(layers)
        image = Image.fromarray(np.clip(3 * (mean - 128) + 128, 0, 255).astype(np.uint8))
        tags = [RankedTag(f"tag {n} {i}", i, 0.5) for i in range(1, 11)]
        lists = [[f"tag {n} {i}" for i in range(8)] for _ in range(5)]
        examples.append(example(f"photograph-{n}.jpg", image=image, predicted=tags, reference=lists[0], lists=lists))
    root = write(path, examples=examples)
    assert len(list(root.one("div", "images").all("img"))) == 60
    assert 500_000 < path.stat().st_size < 3_000_000


def test_a_thumbnail_of_noise_is_bounded_too(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (320, 320, 3), np.uint8)
    root = write(path, examples=[example(image=Image.fromarray(noise))])
    assert len(root.one("img").attributes["src"]) < 50_000


@pytest.mark.parametrize(("size", "tiny"), [(64, True), (400, False)])
def test_small_drawings_stay_sharp(path: Path, size: int, tiny: bool) -> None:
    image = Image.new("RGB", (size, size), "white")
    image.paste("red", (0, 0, size // 2, size))
    root = write(path, examples=[example(image=image)])
    assert ("tiny" in root.one("img").attributes["class"].split()) == tiny
    if tiny:
        pixels = np.asarray(picture(root), int)
        np.testing.assert_allclose(pixels, np.asarray(image, int), atol=24)


def test_folders_are_made(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "report.html")
    assert os.listdir(tmp_path / "a" / "b") == ["report.html"]


def test_an_error_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"report\.html: cannot write the report: no space left on device"):
        write(path)
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["report.html"]


def test_an_image_that_cannot_be_read_leaves_the_old_file(path: Path, tmp_path: Path) -> None:
    path.write_text("old")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken\.jpg: "):
        write(path, examples=[example(image=tmp_path / "broken.jpg")])
    assert path.read_text() == "old"
    errors: dict[Path, InputError] = {}
    examples = [example("broken.jpg", image=tmp_path / "broken.jpg"), example()]
    broken, whole = write(path, examples=examples, on_error=errors.__setitem__).one("div", "images").all("figure")
    assert list(errors) == [tmp_path / "broken.jpg"]
    assert not list(broken.all("img"))
    assert broken.one("p", "lost").text == "The photograph cannot be read."
    assert [len(list(card.one("figcaption").all("li"))) for card in (broken, whole)] == [8, 8]
    assert picture(whole).size == (48, 32)


def test_a_place_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the report: this is a folder"):
        write(tmp_path)
    with pytest.raises(InputError, match=r"file/report\.html: cannot write the report: "):
        write(tmp_path / "file" / "report.html")


@pytest.mark.parametrize("rows", [[], [{"ndcg@5": 0.5}]])
def test_rows_need_names(path: Path, rows: list[dict[str, float | str]]) -> None:
    with pytest.raises(ValueError, match="rows: expected"):
        write(path, rows=rows)
    assert not path.exists()


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_contrast_in_light_dark_and_print(path: Path) -> None:
    """WCAG 2.2 AA: 4.5 for text, 3 for lines and bars."""
    palettes = re.findall(r":root \{(.*?)\}", write(path).one("style").text, re.DOTALL)
    assert len(palettes) == 3
    for palette in palettes:
        colours = {
            name: "#" + "".join(c * (2 if len(value) == 3 else 1) for c in value)
            for name, value in re.findall(r"--(\w+): #(\w+);", palette)
        }

        def contrast(one: str, other: str, colours: dict[str, str] = colours) -> float:
            low, high = sorted((luminance(colours[one]), luminance(colours[other])))
            return (high + 0.05) / (low + 0.05)

        for ground in ("page", "card", "tint"):
            assert min(contrast(text, ground) for text in ("ink", "quiet", "mark", "other")) >= 4.5
        assert min(contrast(bar, ground) for bar in ("mark", "bar") for ground in ("page", "card")) >= 3


def test_mistakes_have_sections_of_their_own(path: Path) -> None:
    plain = write(path)
    assert not {"order", "worst"} & {h2.attributes["id"] for h2 in plain.all("h2")}
    page = write(
        path,
        worst=[example("bad.jpg", ndcg=0.01), example("poor.jpg", ndcg=0.2)],
        confusions=[OrderMistake("dog", "<ball>", 3, 4), OrderMistake("man", "hat", 1, 8)],
    )
    assert [h2.attributes["id"] for h2 in page.all("h2")] == ["baselines", "curves", "order", "worst", "images"]
    order, worst, images = list(page.all("section"))[-3:]
    rows = [[cell.text for cell in row.children if isinstance(cell, Element)] for row in order.one("tbody").all("tr")]
    assert rows == [["dog", "<ball>", "3 of 4", "75%"], ["man", "hat", "1 of 8", "12%"]]
    assert [figure.one("div", "head").text for figure in worst.all("figure")] == [
        "bad.jpg NDCG@5 0.01",
        "poor.jpg NDCG@5 0.20",
    ]
    assert [figure.one("div", "head").text for figure in images.all("figure")] == ["dog.jpg NDCG@5 0.81"]
