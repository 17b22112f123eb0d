"""Report pages, parsed as a browser does, with their embedded images decoded."""

from __future__ import annotations

import base64
import html.parser
import io
import math
import re
import subprocess
import sys
from pathlib import Path

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import toys
from tl import pages, reporting
from tl.pages import quickstart
from tl.pages.common import Page
from tl.reporting import charts

ROOT = Path(__file__).resolve().parents[1]
# The last character is a byte of a file name that is not UTF-8.
HOSTILE = "<script>alert(1)</script>\"' onerror='x' & \udcff"
VOID = {"meta", "img"}


class Parsed(html.parser.HTMLParser):
    """Elements in order, visible text, and a check that elements are closed in the right order."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len(dict(attrs)), f"an attribute twice: {attrs}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def pixels_of(source: str | None) -> np.ndarray:
    assert source is not None and source.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def whole_page(name: str = "tabby") -> str:
    """A page with one of everything, every text of which is `name`."""
    image = np.full([5, 7, 3], 9, np.uint8)
    card = reporting.card(image, title=name, caption=name, bars=[(name, 0.9, True), (name, 0.1)])
    second = reporting.card(image, below=reporting.before_after([(name, 0.9, 0.1)]), alt=name)
    parts = [
        reporting.gallery([card]),
        reporting.strip([card, second], title=name, caption=name),
        reporting.numbers({name: name, "photographs": 12345}),
        reporting.interval(0.8, 0.7, 0.9, label=name, references=[(name, 0.6)]),
        reporting.curves(
            {name: [(0, 1.0), (1, float("nan")), (2, 0.5)]}, x_label=name, y_label=name, title=name
        ),
        reporting.table([[name, 1, 0.5, True]], [name, "n", "x", "yes"], caption=name),
        reporting.confusion(np.array([[3, 1], [0, 4]]), [name, name]),
        reporting.heat_map([[0.5]], [name], [name], corner=name, hover=[[name]]),
        reporting.skipped([{"path": name, "why": name}]),
        reporting.note(name),
    ]
    return reporting.page(
        name, name, [reporting.section(name, *parts, text=name)], facts={name: name}
    )


def test_the_page_is_balanced_and_fetches_and_executes_nothing():
    page = whole_page()
    parsed = Parsed(page)
    assert "script" not in {tag for tag, _ in parsed.elements} and not re.search(
        r"https?:|@import|url\(", page
    )
    for tag, attributes in parsed.elements:
        assert not {
            key for key in attributes if key.startswith("on") or key in ("href", "action", "srcset")
        }, tag
        assert str(attributes.get("src", "data:")).startswith("data:"), tag
    assert [meta["content"] for meta in parsed.all("meta") if "http-equiv" in meta][0].startswith(
        "default-src 'none'"
    )


def test_names_with_markup_stay_text():
    plain, hostile = Parsed(whole_page()), Parsed(whole_page(HOSTILE))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in plain.elements]
    assert [set(a) for _, a in hostile.elements] == [set(a) for _, a in plain.elements]
    visible = HOSTILE.replace("\udcff", r"\xff")
    assert hostile.text.count(visible) == plain.text.count("tabby") > 20
    assert visible in [image["alt"] for image in hostile.all("img")]
    whole_page(HOSTILE).encode("utf-8")


def test_html_is_escaped_once_and_attributes_always():
    inner = reporting.tag("b", "", "a < b")
    assert inner == "<b>a &lt; b</b>" and reporting.tag("p", "", inner) == "<p><b>a &lt; b</b></p>"
    assert Parsed(reporting.tag("p", "", title=reporting.Html('"><script>'))).all("p") == [
        {"title": '"><script>'}
    ]


@hypothesis.given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))),
    st.integers(1, 4),
)
def test_images_are_embedded_at_their_true_pixels(image, scale):
    for given_image in (
        image,
        Image.fromarray(image),
        jnp.asarray(image),
        image.astype(np.float32) / np.float32(255),
    ):
        (element,) = Parsed(reporting.img(given_image, scale=scale)).all("img")
        np.testing.assert_array_equal(pixels_of(element["src"]), image)
        assert (int(element["width"] or 0), int(element["height"] or 0)) == (
            image.shape[1] * scale,
            image.shape[0] * scale,
        )
        assert (element.get("class") == "sharp") == (scale > 1) and element["alt"]


def test_floats_round_to_the_nearest_level():
    levels = np.linspace(0, 1, 1001, dtype=np.float32).reshape(1, -1)
    rounded = np.floor(levels.astype(np.float64) * 255 + 0.5)
    assert np.abs(reporting.as_uint8(levels)[..., 0] - levels * np.float32(255)).max() <= 0.5 + 1e-4
    # Halves go to the even level.
    assert np.mean(reporting.as_uint8(levels)[..., 0] == rounded) > 0.99


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full([2, 2, 3], 1.001, np.float32), "1.001"),
        (np.full([2, 2, 3], -1e-3, np.float32), "-0.001"),
        (np.full([2, 2, 3], np.nan, np.float32), "nan"),
        (np.full([2, 2, 3], 200.0, np.float64), "200"),
        (np.zeros([2, 2, 3], np.int32), "int32"),
        (jnp.zeros([2, 2, 3], jnp.bfloat16), "bfloat16"),
        (np.zeros([2, 2, 4], np.uint8), r"\[2, 2, 4\]"),
        (np.zeros([1, 2, 2, 3], np.uint8), "index the batch"),
        (np.zeros([0, 2, 3], np.uint8), r"\[0, 2, 3\]"),
        (Image.new("F", (2, 2)), "'F'"),
        (Image.new("I;16", (2, 2)), "'I;16'"),
    ],
)
def test_other_values_than_images_are_errors(image, message, tmp_path):
    for use in (reporting.img, reporting.card, lambda x: reporting.save_png(tmp_path / "x.png", x)):
        with pytest.raises(ValueError, match=message):
            use(image)
    assert not list(tmp_path.iterdir())


def test_gray_and_rgba_images_become_rgb():
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for image in (
        gray,
        gray[..., None],
        Image.fromarray(gray),
        Image.fromarray(gray).convert("RGBA"),
    ):
        np.testing.assert_array_equal(
            reporting.as_uint8(image), np.repeat(gray[..., None], 3, axis=-1)
        )


def test_a_png_is_read_back_bit_for_bit(tmp_path):
    image = toys.noise(33, 17, 3)
    reporting.save_png(tmp_path / "a.png", image)
    reporting.save_png(tmp_path / "b.png", (image / np.float32(255)).astype(np.float32))
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as read:
            assert read.format == "PNG" and read.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(read), image)


def test_a_contact_sheet_resizes_nothing():
    small, large = np.full([2, 2, 3], 10, np.uint8), np.full([4, 6, 3], 20, np.uint8)
    sheet = reporting.contact_sheet([large, small, large], columns=2, gap=1, background=0)
    assert sheet.shape == (4 + 1 + 4, 6 + 1 + 6, 3) and sheet.dtype == np.uint8
    np.testing.assert_array_equal(sheet[:4, :6], large)
    np.testing.assert_array_equal(sheet[1:3, 9:11], small)
    np.testing.assert_array_equal(sheet[5:, :6], large)
    assert sheet.sum() == small.sum() + 2 * large.sum()
    with pytest.raises(ValueError, match="needs images"):
        reporting.contact_sheet([], columns=2)


def test_an_amplified_difference_is_gray_where_nothing_changed():
    difference = np.array([[[-1.0, -1 / 255, 0.0, 1 / 255, 1.0]]], np.float32)
    image = reporting.amplify(difference, 16)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[0, 0], [0, 0.5 - 16 / 255, 0.5, 0.5 + 16 / 255, 1], atol=1e-6)
    for wrong in (
        np.array([[[255]]], np.uint8),
        np.array([[[1.5]]], np.float32),
        np.array([[[np.nan]]], np.float32),
    ):
        with pytest.raises(ValueError, match="difference"):
            reporting.amplify(wrong, 2)


def test_bars_show_their_values_as_text():
    page = reporting.bars([("tabby", 0.5, True), reporting.Bar("lynx", 0.25)])
    parsed = Parsed(page)
    assert parsed.text == "tabby 50.0 % lynx 25.0 %"
    assert [fill["style"] for fill in parsed.all("i")] == ["width:50.00%", "width:25.00%"]
    assert [line.get("class") for line in parsed.all("li")] == ["on", None]
    assert reporting.bars([]) == ""
    for wrong in (1.1, -0.1, float("nan"), 83.1):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            reporting.bars([("tabby", wrong)])


def test_before_and_after_draws_both_values():
    parsed = Parsed(reporting.before_after([("tabby", 0.75, 0.25)]))
    assert parsed.text == "tabby 75.0 % → 25.0 %"
    assert [dot["style"] for dot in parsed.all("u")] == ["left:75.00%", "left:25.00%"]
    assert parsed.all("i")[0]["style"] == "left:25.00%;width:50.00%"


@hypothesis.given(
    st.lists(st.floats(0, 1), min_size=3, max_size=3), st.lists(st.floats(0, 1), max_size=3)
)
def test_an_interval_is_drawn_in_the_units_of_its_axis(shares, marks):
    low, value, high = sorted(shares)
    parsed = Parsed(
        reporting.interval(value, low, high, references=[(f"r{i}", m) for i, m in enumerate(marks)])
    )
    axis = [(float(style[5:-1]), float(word)) for style, word in _axis(parsed)]
    (left, first), (right, last) = axis[0], axis[-1]
    assert (left, right) == (0.0, 100.0) and 0 <= first < last <= 100
    dots = [
        first + float(str(dot["style"])[5:-1]) / 100 * (last - first) for dot in parsed.all("u")
    ]
    np.testing.assert_allclose(dots, [100 * share for share in (value, *marks)], atol=0.01)
    assert reporting.percent(value) in parsed.text and all(
        reporting.percent(mark) in parsed.text for mark in marks
    )


def _axis(parsed: Parsed) -> list[tuple[str, str]]:
    styles = [str(span["style"]) for span in parsed.all("span") if "style" in span]
    return list(zip(styles, parsed.words[-len(styles) :], strict=True))


def test_an_interval_outside_of_zero_to_one_is_an_error():
    for value, low, high in ((0.5, 0.6, 0.7), (83.1, 80.0, 85.0), (0.5, float("nan"), 0.6)):
        with pytest.raises(ValueError, match=r"interval|\[0, 1\]"):
            reporting.interval(value, low, high)


@hypothesis.given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_ticks_are_few_distinct_and_enclose_the_data(a, b):
    ticks = charts._ticks(min(a, b), max(a, b))
    assert 2 <= len(ticks) <= 8 and ticks == sorted(set(ticks))
    slack = 1e-6 * max(abs(a), abs(b))
    assert ticks[0] <= min(a, b) + slack and max(a, b) - slack <= ticks[-1]
    assert len({charts._number(t) for t in ticks}) == len(ticks)


def test_epochs_have_whole_numbers_as_ticks():
    series = {"training": [(1.0, 3.0), (2.0, 1.0)]}
    parsed = Parsed(reporting.curves(series, x_label="epoch", y_label="loss"))
    assert [tick["style"] for tick in parsed.all("span") if tick["class"] == "x"] == [
        "left:0.0%",
        "left:100.0%",
    ]


def test_curves_draw_each_point_and_leave_gaps_at_nan():
    series = {
        "a": [(0.0, 0.0), (1.0, 1.0), (2.0, float("nan")), (3.0, 0.5), (4.0, 0.25)],
        "b": [(2.0, 0.5)],
    }
    parsed = Parsed(reporting.curves(series, x_label="epoch", y_label="loss"))
    lines = [
        str(path["d"])
        for path in parsed.all("path")
        if str(path["class"]).startswith("line") and path["d"] != "M0 5H28"
    ]
    assert lines == ["M0.0 100.0h0L25.0 0.0M75.0 50.0h0L100.0 75.0", "M50.0 50.0h0"]
    assert len({path["class"] for path in parsed.all("path")} & {"line c0", "line c1"}) == 2
    assert "a 0.25 b 0.5" in parsed.text and "epoch" in parsed.text and "loss" in parsed.text
    for nothing in ({}, {"a": []}, {"a": [(0.0, float("inf"))]}):
        assert "No finite points" in reporting.curves(nothing, x_label="step", y_label="loss")


def test_a_band_is_drawn_around_its_line_and_an_axis_can_be_logarithmic():
    chart = reporting.curves(
        {"a": [(1, 50.0), (10, 60.0), (100, 80.0)], "b": [(1, 40.0)]},
        bands={"a": [(1, 40.0, 70.0), (100, 75.0, 90.0)]},
        x_label="images",
        y_label="accuracy",
        log_x=True,
    )
    parsed = Parsed(chart)
    (band,) = (path for path in parsed.all("path") if str(path["class"]).startswith("band"))
    assert (band["class"], band["d"]) == (
        "band c0",
        "M0.0 40.0L100.0 0.0L100.0 30.0L0.0 100.0Z",
    )
    marks = {str(t["style"]) for t in parsed.all("span") if t["class"] == "x"}
    assert marks == {"left:0.0%", "left:50.0%", "left:100.0%"}


def test_reliability_draws_bins_at_their_confidence_and_accuracy():
    rows = [
        {"low": 0.5, "high": 0.75, "confidence": 0.6, "accuracy": 0.25, "n": 1},
        {"low": 0.75, "high": 1.0, "confidence": 0.9, "accuracy": 1.0, "n": 3},
    ]
    parsed = Parsed(reporting.reliability({"as trained": rows[:1], "at temperature 2": rows}))
    drawn = [path for path in parsed.all("path") if path["d"] != "M0 5H28"]
    dots = [
        (path["class"], path["d"])
        for path in drawn
        if "h0" in str(path["d"]) and path["d"] != "M14 5h0"
    ]
    first, second = ("dots c1", "M60.000 75.000h0"), ("dots c1", "M90.000 0.000h0")
    assert dots == [("dots c0", "M60.000 75.000h0"), first, second]
    shares = [str(path["d"]) for path in drawn if path["class"] == "share"][:2]
    assert shares == ["M50.000 100v-25.000h25.000V100Z", "M75.000 100v-75.000h25.000V100Z"]
    assert "confidence 50.0 % to 75.0 %: 1 images, accuracy 25.0 %" in parsed.text
    assert "confidence (%)" in parsed.text and "perfect calibration" in parsed.text
    for nothing in ({}, {"as trained": []}):
        assert "No images" in reporting.reliability(nothing)


def test_per_class_shows_undefined_precision_as_a_dash():
    row = {
        "class": "<ape>",
        "n": 4,
        "recall": 0.5,
        "recall_ci95": [0.15, 0.85],
        "called": 0,
        "precision": None,
    }
    parsed = Parsed(reporting.per_class([{**row, "precision_ci95": [0.0, 1.0]}]))
    assert parsed.text.endswith("<ape> 4 50.0 % (15 to 85) 0 \N{EN DASH}")


def test_confusion_shades_by_row_and_shows_the_counts():
    cells = Parsed(reporting.confusion(np.array([[8, 0], [1, 1]]), ["cat", "dog"])).all("td")[1:]
    assert [cell["title"] for cell in cells] == [
        "cat classified as cat: 8 of 8, 100 %",
        "cat classified as dog: 0 of 8, 0 %",
        "dog classified as cat: 1 of 2, 50.0 %",
        "dog classified as dog: 1 of 2, 50.0 %",
    ]
    assert [cell.get("style") for cell in cells] == [
        "--share:100%",
        None,
        "--share:54%",
        "--share:54%",
    ]
    assert [cell.get("class") for cell in cells] == ["hot right", None, None, "right"]
    with pytest.raises(ValueError, match=r"int\[3 3\]"):
        reporting.confusion(np.zeros([2, 2], int), ["a", "b", "c"])
    with pytest.raises(ValueError, match="float"):
        reporting.confusion(np.zeros([2, 2]), ["a", "b"])


def test_a_heat_map_shades_shares_and_leaves_nan_empty():
    shares = [[0.9, 0.25], [float("nan"), 0.0]]
    diagonal = np.eye(2, dtype=bool)
    cells = Parsed(reporting.heat_map(shares, ["on a", "on b"], ["a", "b"], marked=diagonal)).all(
        "td"
    )[1:]
    assert [cell.get("title") for cell in cells] == [
        "on a, a: 90.0 %",
        "on a, b: 25.0 %",
        None,
        "on b, b: 0 %",
    ]
    assert [cell.get("style") for cell in cells] == [
        "--share:90%",
        "--share:25%",
        None,
        "--share:0%",
    ]
    assert [cell.get("class") for cell in cells] == ["hot right", None, None, "right"]
    with pytest.raises(ValueError, match="2 rows and 1 columns"):
        reporting.heat_map(shares, ["a", "b"], ["a"])
    with pytest.raises(ValueError, match="divide percentages by 100"):
        reporting.heat_map([[90.0]], ["a"], ["a"])


def test_confusion_of_many_classes_lists_the_most_frequent():
    names = [f"class {i}" for i in range(100)]
    breeds = Parsed(reporting.confusion(np.eye(37, dtype=np.int64), names[:37]))
    assert (
        len(breeds.all("td")) == 37 * 37 + 1
        and breeds.all("table")[0]["class"] == "confusion dense"
    )
    counts = 5 * np.eye(100, dtype=np.int64)
    counts[3, 7], counts[9, 2] = 4, 2
    parsed = Parsed(reporting.confusion(counts, names))
    assert parsed.text.endswith("class 3 class 7 4 9 class 9 class 2 2 7")


def test_a_table_aligns_numbers_and_the_page_shows_its_facts():
    parsed = Parsed(
        reporting.table([["head", 75813, np.float32(0.5), True]], ["tune", "n", "top-1", "frozen"])
    )
    # There is a narrow space between the thousands.
    assert parsed.text.split()[-5:] == ["head", "75", "813", "0.5", "yes"]
    assert [cell.get("class") for cell in parsed.all("td")] == [None, "n", "n", None]
    with pytest.raises(ValueError, match="2"):
        reporting.table([[1, 2, 3]], ["a", "b"])
    assert "20261121" in Parsed(reporting.page("t", "l", [], facts={"seed": 20261121})).text


def test_skipped_is_empty_without_files():
    assert reporting.skipped([]) == ""
    assert "1 file skipped" in reporting.skipped([{"path": "a", "why": "b"}])


# ---- animations ----


def grown(n: int) -> list[np.ndarray]:
    """Frames f32[20 30 3], each brighter than the last by more than the loss of the compression."""
    return [np.full([20, 30, 3], (i + 0.5) / n, np.float32) for i in range(n)]


def frames_of(file) -> tuple[list[np.ndarray], list[int], int]:
    """Frames, milliseconds each, and the number of loops (0: forever), as Pillow reads them."""
    with Image.open(file) as image:
        frames, durations = [], []
        for i in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(i)
            image.load()
            durations.append(image.info["duration"])
            frames.append(np.asarray(image.convert("RGB")))
        return frames, durations, image.info["loop"]


def test_an_animation_is_read_back_and_holds_its_last_frame(tmp_path):
    frames = grown(7)
    reporting.save_animation(tmp_path / "a.webp", frames, seconds=2)
    decoded, durations, loop = frames_of(tmp_path / "a.webp")
    assert len(decoded) == 7 and loop == 0
    assert sum(durations) - 1000 * reporting.LAST_FRAME == 2000
    assert max(durations[:-1]) - min(durations[:-1]) <= 1
    for frame, back in zip(frames, decoded, strict=True):
        assert np.abs(back.astype(int) - reporting.as_uint8(frame)).max() <= 4


def test_a_card_takes_an_animation():
    (image,) = Parsed(reporting.card(reporting.animation(grown(3), seconds=1, alt="<grown>"))).all(
        "img"
    )
    source = str(image["src"])
    assert source.startswith("data:image/webp;base64,") and image["alt"] == "<grown>"
    assert (image["width"], image["height"]) == ("30", "20")
    assert len(frames_of(io.BytesIO(base64.b64decode(source.partition(",")[2])))[0]) == 3
    assert "animation of 1 frames, 30 by 20 pixels" in reporting.animation(grown(1), seconds=1)


@pytest.mark.parametrize(
    ("frames", "seconds", "message"),
    [
        ([], 1, "got none"),
        ([*grown(2), np.zeros([20, 31, 3], np.uint8)], 1, r"\(20, 30\), \(20, 31\)"),
        (grown(10), 0.1, "10 frames: got 0.1, expected at least 0.2"),
        (grown(2), float("nan"), "got nan"),
        ([np.zeros([2, 2, 4], np.uint8)], 1, r"\[2, 2, 4\]"),
    ],
)
def test_other_values_than_animations_are_errors(frames, seconds, message, tmp_path):
    for use in (
        reporting.animation,
        lambda f, seconds: reporting.save_animation(tmp_path / "a.webp", f, seconds=seconds),
    ):
        with pytest.raises(ValueError, match=message):
            use(frames, seconds=seconds)
    assert not list(tmp_path.iterdir())


# ---- pages of finished runs ----


def text_page(result, folder):
    """A page with one number of the result and one figure of the folder."""
    image = reporting.img(Image.open(folder / "figures" / "cat.png"))
    return Page("Title", f"top-1 {result['top1']}", [image])


def finished(folder) -> reporting.Run:
    run = reporting.start("x", folder, {"seed": 0})
    run.figure("cat", np.full([4, 4, 3], 7, np.uint8))
    pages.finish(run, {"top1": np.float32(0.5), "facts": {"license": "MIT"}})
    return run


def test_a_page_is_drawn_again_from_the_files_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setitem(pages.PAGES, "x", text_page)
    finished(tmp_path)
    first = (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / "report.html").unlink()
    assert pages.redraw(tmp_path) == tmp_path / "report.html"
    again = (tmp_path / "report.html").read_text(encoding="utf-8")
    without_seconds = re.sub(r"<div><dt>seconds</dt><dd>[\d.]+</dd></div>", "", first)
    assert again == without_seconds and "top-1 0.5" in again and "MIT" in again


def test_a_run_without_a_page_is_an_error_with_the_names_of_those_that_have_one(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(pages.PAGES, "x", text_page)
    finished(tmp_path)
    monkeypatch.delitem(pages.PAGES, "x")
    monkeypatch.setitem(pages.PAGES, "y", text_page)
    with pytest.raises(ValueError, match="x has no page that can be drawn again; .* y"):
        pages.redraw(tmp_path)


def test_the_page_of_quickstart_has_the_sections_of_its_parts(tmp_path, monkeypatch):
    keys = [key for key, _, _ in quickstart.CHAPTERS]
    assert keys == ["predict", "transfer", "ideal", "attack"]
    part = lambda result, folder: Page("", "", [reporting.note(f"{result['value']} in {folder}")])
    monkeypatch.setattr(
        quickstart, "CHAPTERS", tuple((key, f"Chapter {key}", part) for key in keys)
    )
    result = {key: {"value": key.upper(), "arch": "resnet50"} for key in keys}
    page = pages.PAGES["quickstart"](result, tmp_path)
    text = Parsed("".join(page.sections)).text
    assert text == " ".join(f"Chapter {key} {key.upper()} in {tmp_path}" for key in keys)
    assert "resnet50" in page.lead


def test_a_result_of_an_older_version_is_one_sentence(tmp_path):
    run = reporting.start("bench", tmp_path, {})
    run.finish({"rows": []}, "")
    with pytest.raises(ValueError, match="result.json has no 'batch_size'.*run bench again"):
        pages.redraw(tmp_path)


def test_the_page_of_bench_shows_an_infinite_median_distance(tmp_path):
    row = {"what": "distance", "arch": "a", "unit": "l2", "n": 2, "ours": 0.25, "not_found": 0}
    row |= {"peer": "foolbox", "peer_value": math.inf, "peer_not_found": 2, "ratio": 0.0}
    page = pages.PAGES["peers"](reporting.jsonable({"device": "cpu", "rows": [row]}), tmp_path)
    text = Parsed("".join(page.sections)).text
    assert "0.25 l2, 0 not found" in text and "inf l2, 2 not found" in text


def test_the_page_of_parity_tells_infinite_errors_from_failures(tmp_path):
    def row(arch, error, first, cause):
        largest = {"max_rel_error": error, "first_divergence": first, "cause": cause}
        return {"arch": arch, "source": "timm", "call": arch, "form": "zip", **largest}

    rows = [row("a", math.inf, "stem", "padding"), row("b", None, None, "no file")]
    settings = {"sizes": [(224, 224)], "batch_size": 2, "tolerance": 1e-5}
    result = {"rows": [*rows, row("c", 1e-7, None, None)], "errors": [{"stem": math.inf}]}
    page = pages.PAGES["parity"](reporting.jsonable(result | settings), tmp_path)
    text = Parsed("".join(page.sections)).text
    assert page.lead.endswith("Largest error inf.") and "224 x 224 pixels" in page.lead
    assert "a timm stem padding b timm not compared no file" in text
    assert "a inf b failed c 1.0e-07" in text and "stem inf" in text


@pytest.mark.parametrize("name", sorted(pages.PAGES))
def test_each_row_is_the_page_of_a_script(name):
    folder = ROOT / "experiments"
    path = next(path for g in ("", "*/") for path in folder.glob(f"{g}{name}.py"))
    script = path.read_text(encoding="utf-8")
    assert "pages.finish(run" in script and f'cli.launch("{name}"' in script


@pytest.mark.parametrize("arguments", [(), ("a", "b")])
def test_the_command_takes_one_folder(arguments):
    run = subprocess.run(
        [sys.executable, "-m", "experiments.report", *arguments], capture_output=True, text=True
    )
    assert run.returncode == 1 and f"got {len(arguments)} arguments" in run.stderr
    assert "report DIR" in run.stderr and "Traceback" not in run.stderr
