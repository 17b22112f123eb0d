"""One self-contained HTML page a run, composed from plain functions that return fragments of it.

A fragment is an `Html` string. A plain `str` is text, and is escaped wherever it meets a fragment, so that a file
called `<script>` stays a name. Pictures are embedded at their true pixels as PNG, films as WebP; nothing is fetched and
nothing is executed: the page opens from a mail, works on a phone, in the dark and on paper. A leaf: NumPy, Pillow and
the standard library. It computes nothing (`tl.metrics` does), resizes nothing (`tl.pixels` does) and, pictures by
`save_png` and films by `save_film` apart, writes nothing (`tl.reporting.run` does).

Example:
  >>> fluffy = card(np.zeros([224, 224, 3], np.uint8), title="a <cat>", bars=[("tabby", 0.93, True), ("lynx", 0.05)])
  >>> html_text = page("Predictions", "What a ResNet-50 sees.", [section("Photographs", gallery([fluffy]))], facts={})
  >>> "a &lt;cat&gt;" in html_text, "93.0 %" in html_text
  (True, True)
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from tl.reporting.images import as_uint8, save_film, save_png


class Html(str):
    """A finished piece of a page: it is not escaped again. Made by the functions of this module only."""

    __slots__ = ()


class Bar(NamedTuple):
    """A line of a bar chart: label, probability in [0, 1], and whether to set it off (the true class, the target)."""

    label: str
    probability: float
    highlight: bool = False


# ------------------------------------------------------------------------------------------------------- small parts


def text(value: object) -> Html:
    """Text made safe to stand in a page or in an attribute; `Html` passes as it is."""
    if isinstance(value, Html):
        return value
    readable = (
        str(value).encode("utf-8", "backslashreplace").decode()
    )  # names of files need not be UTF-8
    return Html(html.escape(readable))


def tag(name: str, css_class: str, *children: object, **attributes: object) -> Html:
    """An HTML or SVG element; what is not `Html` is escaped, attributes in any case; `_` in their names becomes `-`."""
    pairs = {
        "class": css_class,
        **{key.replace("_", "-"): value for key, value in attributes.items()},
    }
    start = name + "".join(
        f' {key}="{text(str(value))}"' for key, value in pairs.items() if value != ""
    )
    inner = "".join(map(text, children))
    return Html(f"<{start}>" if name == "img" else f"<{start}>{inner}</{name}>")


def percent(share: float) -> str:
    """A share in [0, 1] as text that never claims certainty it does not have.

    Example:
      >>> percent(0.687), percent(0.99996), percent(0.00001), percent(1)
      ('68.7 %', '> 99.9 %', '< 0.1 %', '100 %')
    """
    share = _share(share)
    if share in (0.0, 1.0):
        return f"{100 * share:.0f} %"
    return (
        "< 0.1 %" if share < 0.0005 else "> 99.9 %" if share >= 0.9995 else f"{100 * share:.1f} %"
    )


def _share(value: float) -> float:
    if not 0 <= (share := float(value)) <= 1:
        raise ValueError(
            f"a probability or accuracy is in [0, 1]; got {share:g}; divide percentages by 100"
        )
    return share


def picture(image: Any, *, alt: str = "", scale: int = 1) -> Html:
    """A picture at its true pixels, or with each pixel drawn as a sharp square of `scale` by `scale`.

    Args:
      image: as `as_uint8` takes it. What `picture` or `film` returned already passes as it is.
      alt: what a reader who cannot see it should know; by default its size.
      scale: integer enlargement, done by the browser; the embedded PNG keeps the true pixels.
    """
    if isinstance(image, Html):
        return image
    if scale != int(scale) or scale < 1:
        raise ValueError(f"scale is a whole number from 1, so that pixels stay square; got {scale}")
    pixels = as_uint8(image)
    file = io.BytesIO()
    save_png(file, pixels)
    height, width = pixels.shape[:2]
    alt = alt or f"picture, {width} by {height} pixels"
    size = {"width": width * scale, "height": height * scale}
    return tag("img", "" if scale == 1 else "sharp", src=_embedded("png", file), **size, alt=alt)


def film(frames: Sequence[Any], *, seconds: float = 4.0, alt: str = "") -> Html:
    """Pictures one after another, for ever, in the place of one: `card(film(frames))`.

    Args:
      frames, seconds: as for `save_film`.
      alt: what a reader who cannot see it should know; by default its size.
    """
    file = io.BytesIO()
    save_film(file, frames, seconds=seconds)
    height, width = as_uint8(frames[0]).shape[:2]
    alt = alt or f"film of {len(frames)} frames, {width} by {height} pixels"
    return tag("img", "", src=_embedded("webp", file), width=width, height=height, alt=alt)


def _embedded(kind: str, file: io.BytesIO) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()


def bars(rows: Iterable[tuple[Any, ...]]) -> Html:
    """Probabilities as bars with their values in figures, from `Bar`s or plain `(label, probability[, highlight])`.

    A highlighted row is bold and marked, not only coloured.
    """
    lines = []
    for label, probability, highlight in (Bar(*row) for row in rows):
        fill = tag("i", "", style=f"width:{100 * _share(probability):.2f}%")
        value = tag("span", "value", percent(probability))
        lines.append(
            tag(
                "li",
                "on" if highlight else "",
                tag("span", "", label),
                value,
                tag("div", "track", fill),
            )
        )
    return tag("ul", "bars", *lines) if lines else Html("")


def before_after(rows: Iterable[tuple[str, float, float]]) -> Html:
    """How probabilities moved: `(label, before, after)`, a hollow dot for before and a full one for after."""
    lines = []
    for label, before, after in rows:
        a, b = 100 * _share(before), 100 * _share(after)
        value = tag("span", "value", f"{percent(before)} \N{RIGHTWARDS ARROW} {percent(after)}")
        line = tag("i", "", style=f"left:{min(a, b):.2f}%;width:{abs(a - b):.2f}%")
        dots = tag("u", "", style=f"left:{a:.2f}%"), tag("u", "full", style=f"left:{b:.2f}%")
        lines.append(
            tag("li", "", tag("span", "", label), value, tag("div", "track moved", line, *dots))
        )
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
    """A picture with what is said about it.

    Args:
      image: as `picture` takes it.
      title: above the picture.
      caption: below it, in small print.
      bars: rows for `bars`, below the caption.
      below: any fragment after that, such as `before_after(...)`.
      scale, alt: as for `picture`; `alt` is by default title and caption.
    """
    heading = tag("figcaption", "title", title) if title else ""
    words = alt or ", ".join(
        part for part in (title, caption) if part and not isinstance(part, Html)
    )
    small = tag("p", "caption", caption) if caption else ""
    frame = tag("div", "frame", picture(image, alt=words, scale=scale))
    return tag("figure", "card", heading, frame, small, _bars(bars or ()), below)


_bars = bars  # `card` has an argument of that name


# ----------------------------------------------------------------------------------------------------- larger parts


def gallery(cards: Iterable[Html]) -> Html:
    """Cards side by side, flowing into as many rows as the screen needs."""
    return tag("div", "gallery", *cards)


def strip(cards: Iterable[Html], *, title: str = "", caption: str = "") -> Html:
    """Cards that are to be compared, under one title: original, adversarial, amplified difference."""
    heading = tag("h3", "", title) if title else ""
    return tag(
        "div", "strip", heading, tag("div", "gallery", *cards), note(caption) if caption else ""
    )


def numbers(items: Mapping[str, object]) -> Html:
    """The few numbers that matter, set large: `{"top-1": percent(0.831), "photographs": 1018}`."""
    return tag(
        "dl",
        "numbers",
        *(tag("div", "", tag("dt", "", k), tag("dd", "", _cell(v))) for k, v in items.items()),
    )


def note(words: str) -> Html:
    """A remark in small print."""
    return tag("p", "note", words)


def table(rows: Iterable[Sequence[object]], header: Sequence[str], *, caption: str = "") -> Html:
    """A table; numbers stand right in figures of equal width, floats with four digits; cells may be `Html`."""
    rows = [list(row) for row in rows]
    if any(len(row) != len(header) for row in rows):
        raise ValueError(
            f"a row has a cell a column, {len(header)}; got rows of {sorted({len(r) for r in rows})}"
        )
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]

    def line(name: str, cells: Sequence[object]) -> Html:
        return tag(
            "tr",
            "",
            *(tag(name, "n" if r else "", _cell(c)) for c, r in zip(cells, right, strict=True)),
        )

    title = tag("caption", "", caption) if caption else ""
    body = tag("tbody", "", *(line("td", row) for row in rows))
    return tag(
        "div", "scroll", tag("table", "plain", title, tag("thead", "", line("th", header)), body)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _cell(value: object) -> object:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return (
            f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
            if abs(int(value)) > 9999
            else str(value)
        )
    return f"{float(value):.4g}" if isinstance(value, float | np.floating) else value


def skipped(files: Sequence[Mapping[str, str]]) -> Html:
    """The files that could not be used and why, `{"path", "why"}` each; nothing at all where there are none."""
    if not files:
        return Html("")
    label = f"{len(files)} file{'s' * (len(files) > 1)} skipped"
    inner = table([(tag("code", "", f["path"]), f["why"]) for f in files], ["file", "why"])
    return tag(
        "details", "", tag("summary", "", label), inner, open="open" if len(files) <= 10 else ""
    )


def section(title: str, *parts: Html, text: str = "") -> Html:
    """A titled part of the page; `text` is one paragraph of prose, or several with an empty line between."""
    prose = [tag("p", "", paragraph) for paragraph in text.split("\n\n") if paragraph]
    return tag("section", "", tag("h2", "", title), tag("div", "body", *prose, *parts))


def chapter(title: str) -> Html:
    """A large heading over the sections that follow, for a page that tells of several things."""
    return tag("div", "chapter", tag("h2", "", title))


def page(title: str, lead: str, sections: Iterable[Html], *, facts: Mapping[str, object]) -> str:
    """A whole page, ready to be written as UTF-8.

    Args:
      title: what was done.
      lead: what came out, in a sentence or two.
      sections: fragments, mostly from `section`.
      facts: small print at the foot: command line, versions, date, device, seconds.
    """
    head = tag("header", "", tag("h1", "", title), tag("p", "lead", lead))
    rows = (
        tag("div", "", tag("dt", "", key), tag("dd", "", value)) for key, value in facts.items()
    )
    foot = tag("footer", "", tag("dl", "", *rows)) if facts else ""
    return _SHELL.format(title=text(title), css=_css(), body=tag("main", "", head, *sections, foot))


# ----------------------------------------------------------------------------------------------------------- setting


def _css() -> str:
    return resources.files("tl.reporting").joinpath("report.css").read_text(encoding="utf-8")


_SHELL = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
{body}
</body>
</html>
"""
