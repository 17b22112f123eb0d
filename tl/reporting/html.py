"""One self-contained HTML page per run, composed from functions that return fragments.

A fragment is an `Html` string. A plain `str` is text and is escaped wherever it meets a fragment,
so a file called `<script>` stays a name. Images are embedded at their true pixels as PNG,
animations as WebP. The page loads no other file, and no script runs unless `page` gets one, so it
can be sent by e-mail; it also works on a phone, in dark mode and in print. This module depends on
NumPy, Pillow and the standard library. It computes nothing (`tl.metrics` does), resizes nothing
(`tl.pixels` does) and writes no files (`tl.reporting.run` does).

Example:
  >>> image = np.zeros([224, 224, 3], np.uint8)
  >>> cat = card(image, title="a <cat>", bars=[("tabby", 0.93, True), ("lynx", 0.05)])
  >>> html_text = page("Predictions", "Top-5.", [section("Images", gallery([cat]))], facts={})
  >>> "a &lt;cat&gt;" in html_text, "93.0 %" in html_text
  (True, True)
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tl.paths import printable
from tl.reporting.images import as_uint8, save_animation, save_png


class Html(str):
    """A finished fragment of a page, which is not escaped again. Only this module makes one."""

    __slots__ = ()


class Bar(NamedTuple):
    """One line of a bar chart.

    Attributes:
      label: text next to the bar.
      probability: in [0, 1].
      highlight: whether to emphasize the line, such as for the true class or the target.
    """

    label: str
    probability: float
    highlight: bool = False


# ---- small parts ----


def text(value: object) -> Html:
    """Text escaped for a page or an attribute; `Html` is returned unchanged."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(printable(str(value))))  # file names need not be UTF-8


def tag(name: str, css_class: str, *children: object, **attributes: object) -> Html:
    """An HTML or SVG element.

    Args:
      name: of the element, such as `"p"`.
      css_class: its class; "" for none.
      *children: its content; everything that is not `Html` is escaped.
      **attributes: always escaped; `_` in a name becomes `-`, and "" leaves the attribute out.
    """
    pairs = {"class": css_class, **{k.replace("_", "-"): v for k, v in attributes.items()}}
    start = name + "".join(f' {k}="{text(str(v))}"' for k, v in pairs.items() if v != "")
    inner = "".join(map(text, children))
    return Html(f"<{start}>" if name in ("img", "input") else f"<{start}>{inner}</{name}>")


def percent(share: float) -> str:
    """A share in [0, 1] as text; only exactly 0 and 1 become "0 %" and "100 %".

    Raises:
      ValueError: `share` is outside [0, 1] or NaN.

    Example:
      >>> percent(0.687), percent(0.99996), percent(0.00001), percent(1)
      ('68.7 %', '> 99.9 %', '< 0.1 %', '100 %')
    """
    share = _share(share)
    if share in (0.0, 1.0):
        return f"{100 * share:.0f} %"
    if share < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if share >= 0.9995 else f"{100 * share:.1f} %"


def _share(value: float) -> float:
    if not 0 <= (share := float(value)) <= 1:
        raise ValueError(f"a share is outside [0, 1]: got {share:g}; divide percentages by 100")
    return share


def img(image: Any, *, alt: str = "", scale: int = 1) -> Html:
    """An image at its true pixels, or with each pixel drawn as a square of `scale` by `scale`.

    Args:
      image: as for `as_uint8`. The result of `img` or `animation` is returned unchanged.
      alt: description for a reader who cannot see the image; by default its size.
      scale: integer enlargement by the browser; the embedded PNG keeps the true pixels.

    Raises:
      ValueError: `scale` is not a positive integer, or `image` is not an image.
    """
    if isinstance(image, Html):
        return image
    if scale != int(scale) or scale < 1:
        raise ValueError(f"`scale` must be an integer of at least 1: got {scale}")
    pixels = as_uint8(image)
    file = io.BytesIO()
    save_png(file, pixels)
    height, width = pixels.shape[:2]
    alt = alt or f"image, {width} by {height} pixels"
    size = {"width": width * scale, "height": height * scale}
    return tag("img", "" if scale == 1 else "sharp", src=_embedded("png", file), **size, alt=alt)


def animation(frames: Sequence[Any], *, seconds: float = 4.0, alt: str = "") -> Html:
    """A looping animation, which can be used as an image: `card(animation(frames))`.

    Args:
      frames, seconds: as for `save_animation`.
      alt: description for a reader who cannot see it; by default its size.
    """
    file = io.BytesIO()
    save_animation(file, frames, seconds=seconds)
    height, width = as_uint8(frames[0]).shape[:2]
    alt = alt or f"animation of {len(frames)} frames, {width} by {height} pixels"
    return tag("img", "", src=_embedded("webp", file), width=width, height=height, alt=alt)


def saved_animation(path: Path, *, alt: str = "") -> Html:
    """An animation that a run has saved, embedded as it is: `card(saved_animation(path))`.

    Args:
      path: a WebP file, as `Run.animation` writes it.
      alt: description for a reader who cannot see it; by default its size.
    """
    data = io.BytesIO(path.read_bytes())
    with Image.open(data) as file:
        width, height = file.size
    alt = alt or f"animation, {width} by {height} pixels"
    return tag("img", "", src=_embedded("webp", data), width=width, height=height, alt=alt)


def _embedded(kind: str, file: io.BytesIO) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()


def bars(rows: Iterable[tuple[Any, ...]]) -> Html:
    """A bar chart of probabilities with their values.

    Args:
      rows: `Bar`s or tuples `(label, probability[, highlight])`. A highlighted row is bold and
        marked as well as colored.
    """
    lines = []
    for label, probability, highlight in (Bar(*row) for row in rows):
        fill = tag("i", "", style=f"width:{100 * _share(probability):.2f}%")
        words = tag("span", "", label), tag("span", "value", percent(probability))
        lines.append(tag("li", "on" if highlight else "", *words, tag("div", "track", fill)))
    return tag("ul", "bars", *lines) if lines else Html("")


def before_after(rows: Iterable[tuple[str, float, float]]) -> Html:
    """Changes of probabilities: an empty dot for the first value and a full one for the second.

    Args:
      rows: tuples `(label, before, after)`, both in [0, 1].
    """
    lines = []
    for label, before, after in rows:
        a, b = 100 * _share(before), 100 * _share(after)
        change = tag("span", "value", f"{percent(before)} \N{RIGHTWARDS ARROW} {percent(after)}")
        line = tag("i", "", style=f"left:{min(a, b):.2f}%;width:{abs(a - b):.2f}%")
        dots = tag("u", "", style=f"left:{a:.2f}%"), tag("u", "full", style=f"left:{b:.2f}%")
        track = tag("div", "track moved", line, *dots)
        lines.append(tag("li", "", tag("span", "", label), change, track))
    return tag("ul", "bars", *lines) if lines else Html("")


def card(
    image: Any,
    *,
    title: str = "",
    caption: str = "",
    bars: Iterable[tuple[Any, ...]] | None = None,
    below: Html = Html(""),  # noqa: B008  # a constant
    scale: int = 1,
    alt: str = "",
) -> Html:
    """An image with its title, caption and bars.

    Args:
      image: as for `img`.
      title: above the image.
      caption: below the image, in small print.
      bars: rows for `bars`, below the caption.
      below: any fragment after that, such as `before_after(...)`.
      scale, alt: as for `img`; `alt` is by default title and caption.
    """
    heading = tag("figcaption", "title", title) if title else ""
    words = alt or ", ".join(p for p in (title, caption) if p and not isinstance(p, Html))
    small = tag("p", "caption", caption) if caption else ""
    frame = tag("div", "frame", img(image, alt=words, scale=scale))
    return tag("figure", "card", heading, frame, small, _bars(bars or ()), below)


_bars = bars  # `card` has an argument of that name


# ---- larger parts ----


def gallery(cards: Iterable[Html]) -> Html:
    """Cards next to each other, in as many rows as the screen needs."""
    return tag("div", "gallery", *cards)


def strip(cards: Iterable[Html], *, title: str = "", caption: str = "") -> Html:
    """Cards to compare, in one row under one title; a row that is wider than the screen scrolls.

    Args:
      cards: such as the original, the adversarial example and the amplified perturbation.
      title: above the cards.
      caption: below the cards, in small print.
    """
    heading = tag("h3", "", title) if title else ""
    row = tag("div", "gallery row", *cards)
    return tag("div", "strip", heading, row, note(caption) if caption else "")


def numbers(items: Mapping[str, object]) -> Html:
    """The main results in large type: `{"top-1": percent(0.831), "images": 1018}`.

    A name may have several lines, such as one for an interval.
    """
    pairs = ((tag("dt", "", name), tag("dd", "", _cell(v))) for name, v in items.items())
    return tag("dl", "numbers", *(tag("div", "", *pair) for pair in pairs))


def note(words: str) -> Html:
    """A remark in small print."""
    return tag("p", "note", words)


def table(rows: Iterable[Sequence[object]], header: Sequence[str], *, caption: str = "") -> Html:
    """A table; columns of numbers are aligned right, floats have four digits.

    Args:
      rows: one cell per column of `header`: text, numbers, booleans, or `Html`.
      header: names of the columns.
      caption: title of the table.

    Raises:
      ValueError: a row has a different number of cells than `header`.
    """
    rows = [list(row) for row in rows]
    if any(len(row) != len(header) for row in rows):
        raise ValueError(
            f"a row has a wrong number of cells: got {sorted({len(r) for r in rows})}, expected "
            f"{len(header)}, one per column of `header`"
        )
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]

    def line(name: str, cells: Sequence[object]) -> Html:
        columns = zip(cells, right, strict=True)
        return tag("tr", "", *(tag(name, "n" if r else "", _cell(c)) for c, r in columns))

    title = tag("caption", "", caption) if caption else ""
    head = tag("thead", "", line("th", header))
    body = tag("tbody", "", *(line("td", row) for row in rows))
    return tag("div", "scroll", tag("table", "plain", title, head, body))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _cell(value: object) -> object:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        separated = f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
        return separated if abs(int(value)) > 9999 else str(value)
    return f"{float(value):.4g}" if isinstance(value, float | np.floating) else value


def skipped(files: Sequence[Mapping[str, str]]) -> Html:
    """The files that could not be used and the reasons; empty if there are none.

    Args:
      files: rows `{"path", "why"}`.
    """
    if not files:
        return Html("")
    label = f"{len(files)} file{'s' * (len(files) > 1)} skipped"
    rows = table([(tag("code", "", f["path"]), f["why"]) for f in files], ["file", "reason"])
    shown = "open" if len(files) <= 10 else ""
    return tag("details", "", tag("summary", "", label), rows, open=shown)


def section(title: str, *parts: Html, text: str = "") -> Html:
    """A titled part of the page.

    Args:
      title: the heading.
      *parts: fragments.
      text: paragraphs above the parts, with an empty line between two.
    """
    prose = [tag("p", "", paragraph) for paragraph in text.split("\n\n") if paragraph]
    return tag("section", "", tag("h2", "", title), tag("div", "body", *prose, *parts))


def chapter(title: str) -> Html:
    """A large heading above the following sections, on a page with several subjects."""
    return tag("div", "chapter", tag("h2", "", title))


def page(
    title: str,
    lead: str,
    sections: Iterable[Html],
    *,
    facts: Mapping[str, object],
    script: str = "",
) -> str:
    """A whole page, to be written as UTF-8.

    Args:
      title: the heading.
      lead: the outcome in one or two sentences.
      sections: fragments, mostly from `section`.
      facts: small print at the foot: command line, versions, date, device, seconds.
      script: JavaScript of the page; the page allows no other.
    """
    head = tag("header", "", tag("h1", "", title), tag("p", "lead", lead))
    rows = (tag("div", "", tag("dt", "", k), tag("dd", "", v)) for k, v in facts.items())
    foot = tag("footer", "", tag("dl", "", *rows)) if facts else ""
    body = tag("main", "", head, *sections, foot)
    allowed = ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        allowed = f"; script-src 'sha256-{digest}'"
        body = Html(f"{body}\n<script>{script}</script>")
    return _SHELL.format(title=text(title), css=_css(), body=body, allowed=allowed)


# ---- document and style sheet ----


def _css() -> str:
    return resources.files("tl.reporting").joinpath("report.css").read_text(encoding="utf-8")


_SHELL = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'{allowed}">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
{body}
</body>
</html>
"""
