"""One self-contained HTML page a run, composed from plain functions that return fragments of it.

A fragment is an `Html` string. A plain `str` is text, and is escaped wherever it meets a fragment, so that a file
called `<script>` stays a name. Pictures are embedded at their true pixels as PNG, films as WebP; nothing is fetched and
nothing is executed: the page opens from a mail, works on a phone, in the dark and on paper. A leaf: NumPy, Pillow and
the standard library. It computes nothing (`tl.metrics` does), resizes nothing (`tl.pixels` does) and, pictures by
`save_png` and films by `save_film` apart, writes nothing (`tl.runlog` does).

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
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

WEBP_QUALITY = 80  # of 100 (chosen, not tuned)
LAST_FRAME = 1.5  # seconds that a film rests on its last frame, the one that matters (chosen, not tuned)
SHORTEST_FRAME = 0.02  # seconds; browsers slow a film down whose frames are shorter


class Html(str):
    """A finished piece of a page: it is not escaped again. Made by the functions of this module only."""

    __slots__ = ()


class Bar(NamedTuple):
    """A line of a bar chart: label, probability in [0, 1], and whether to set it off (the true class, the target)."""

    label: str
    probability: float
    highlight: bool = False


# ---------------------------------------------------------------------------------------------------------- pictures


def as_uint8(image: Any) -> np.ndarray:
    """The pixels that a PNG of this picture holds.

    Args:
      image: uint8 or float[h w 3] (or [h w], [h w 1]: grey); floats in [0, 1]; a NumPy or JAX array, or a PIL image
        (converted to RGB, dropping transparency).

    Returns:
      uint8[h w 3], floats rounded to the nearest of the 256 levels.

    Raises:
      ValueError: another shape or dtype, a float outside [0, 1], or NaN. Nothing is clipped silently.

    Example:
      >>> as_uint8(np.array([[0.0, 0.5, 1.0]], np.float32))[0, :, 0].tolist()
      [0, 128, 255]
    """
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise ValueError(f"a PIL image of mode {image.mode!r} has no fixed range; pass a float array in [0, 1]")
        image = image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(f"a picture is [h w 3], [h w 1] or [h w]; got {list(np.shape(image))}; index the batch first")
    if pixels.dtype.kind == "f":
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(f"float pixels are in [0, 1]; got {pixels.min():g} to {pixels.max():g}; rescale it")
        pixels = np.rint(pixels * np.asarray(255, pixels.dtype)).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"a picture is uint8, or float in [0, 1]; got {pixels.dtype}; convert it first")
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def save_png(path: str | os.PathLike[str] | IO[bytes], image: Any) -> None:
    """Writes a picture at its true pixels, to a path or an open file: read back, it is exactly `as_uint8(image)`."""
    Image.fromarray(as_uint8(image)).save(path, format="PNG")


def save_film(path: str | os.PathLike[str] | IO[bytes], frames: Iterable[Any], *, seconds: float) -> None:
    """Writes pictures as one animated WebP that loops for ever, to a path or an open file.

    Lossy, unlike `save_png`: it shows how something came about, and the pixels that count are saved as PNG. Equal frames
    that follow each other are stored as one that is held longer.

    Args:
      frames: pictures as `as_uint8` takes them, all of one size.
      seconds: from the first frame to the last, spread evenly; the last is held `LAST_FRAME` longer.

    Raises:
      ValueError: no frame, frames of several sizes, or less than `SHORTEST_FRAME` for each.
    """
    images = [as_uint8(frame) for frame in frames]
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) != 1:
        found = "none" if not sizes else "frames of (h w) " + ", ".join(map(str, sizes))
        raise ValueError(f"a film wants frames, all of one size; got {found}")
    if not SHORTEST_FRAME * len(images) <= seconds < math.inf:
        raise ValueError(
            f"a film of {len(images)} frames wants {SHORTEST_FRAME * len(images):g} seconds or more, {SHORTEST_FRAME:g} a "
            f"frame; got {seconds:g}: take fewer frames"
        )
    starts = np.rint(np.linspace(0, 1000 * seconds, len(images) + 1)).astype(int)
    held = np.diff(starts).tolist()  # milliseconds
    held[-1] += round(1000 * LAST_FRAME)
    first, *rest = map(Image.fromarray, images)
    how = {"quality": WEBP_QUALITY, "method": 4, "loop": 0}
    first.save(path, format="WEBP", save_all=True, append_images=rest, duration=held, **how)


def contact_sheet(images: Iterable[Any], *, columns: int, gap: int = 4, background: int = 255) -> np.ndarray:
    """Many pictures as one, row by row from the top left, none of them resized.

    Args:
      images: pictures as `as_uint8` takes them; smaller ones are centred in a cell of the largest height and width.
      columns: pictures in a row.
      gap: pixels between two cells.
      background: grey level in [0, 255] of gaps and empty cells.

    Returns:
      uint8[h w 3].

    Example:
      >>> contact_sheet(np.zeros([5, 8, 8, 3], np.uint8), columns=3, gap=2).shape
      (18, 28, 3)
    """
    pictures = [as_uint8(image) for image in images]
    if not pictures or columns < 1 or gap < 0:
        raise ValueError(f"a sheet needs pictures, columns >= 1, gap >= 0; got {len(pictures)}, {columns}, {gap}")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    height, width = (max(p.shape[axis] for p in pictures) for axis in (0, 1))
    sheet = np.full([rows * (height + gap) - gap, columns * (width + gap) - gap, 3], background, np.uint8)
    for i, p in enumerate(pictures):
        top = i // columns * (height + gap) + (height - p.shape[0]) // 2
        left = i % columns * (width + gap) + (width - p.shape[1]) // 2
        sheet[top : top + p.shape[0], left : left + p.shape[1]] = p
    return sheet


def amplify(difference: Any, factor: float) -> np.ndarray:
    """A signed difference as a picture: mid-grey where nothing changed.

    Args:
      difference: f32[h w c] in [-1, 1], adversarial minus original.
      factor: how much to enlarge it; `0.5 / eps` spends the whole range on an L-infinity radius. Say it in the caption.

    Returns:
      f32[h w c] in [0, 1]: `0.5 + factor * difference`; what goes past black or white saturates.

    Example:
      >>> amplify(np.array([[[-0.125, 0.0, 0.5]]]), 2).tolist()
      [[[0.25, 0.5, 1.0]]]
    """
    change = np.asarray(difference)
    if change.dtype.kind != "f" or not np.abs(change).max() <= 1:
        raise ValueError(f"a difference of pictures is float in [-1, 1]; got {change.dtype}; subtract as float32 first")
    return np.clip(np.float32(0.5) + np.float32(factor) * change.astype(np.float32), 0, 1)


# ------------------------------------------------------------------------------------------------------- small parts


def text(value: object) -> Html:
    """Text made safe to stand in a page or in an attribute; `Html` passes as it is."""
    if isinstance(value, Html):
        return value
    readable = str(value).encode("utf-8", "backslashreplace").decode()  # names of files need not be UTF-8
    return Html(html.escape(readable))


def tag(name: str, css_class: str, *children: object, **attributes: object) -> Html:
    """An HTML or SVG element; what is not `Html` is escaped, attributes in any case; `_` in their names becomes `-`."""
    pairs = {"class": css_class, **{key.replace("_", "-"): value for key, value in attributes.items()}}
    start = name + "".join(f' {key}="{text(str(value))}"' for key, value in pairs.items() if value != "")
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
    return "< 0.1 %" if share < 0.0005 else "> 99.9 %" if share >= 0.9995 else f"{100 * share:.1f} %"


def _share(value: float) -> float:
    if not 0 <= (share := float(value)) <= 1:
        raise ValueError(f"a probability or accuracy is in [0, 1]; got {share:g}; divide percentages by 100")
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
        lines.append(tag("li", "on" if highlight else "", tag("span", "", label), value, tag("div", "track", fill)))
    return tag("ul", "bars", *lines) if lines else Html("")


def before_after(rows: Iterable[tuple[str, float, float]]) -> Html:
    """How probabilities moved: `(label, before, after)`, a hollow dot for before and a full one for after."""
    lines = []
    for label, before, after in rows:
        a, b = 100 * _share(before), 100 * _share(after)
        value = tag("span", "value", f"{percent(before)} \N{RIGHTWARDS ARROW} {percent(after)}")
        line = tag("i", "", style=f"left:{min(a, b):.2f}%;width:{abs(a - b):.2f}%")
        dots = tag("u", "", style=f"left:{a:.2f}%"), tag("u", "full", style=f"left:{b:.2f}%")
        lines.append(tag("li", "", tag("span", "", label), value, tag("div", "track moved", line, *dots)))
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
    words = alt or ", ".join(part for part in (title, caption) if part and not isinstance(part, Html))
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
    return tag("div", "strip", heading, tag("div", "gallery", *cards), note(caption) if caption else "")


def numbers(items: Mapping[str, object]) -> Html:
    """The few numbers that matter, set large: `{"top-1": percent(0.831), "photographs": 1018}`."""
    return tag("dl", "numbers", *(tag("div", "", tag("dt", "", k), tag("dd", "", _cell(v))) for k, v in items.items()))


def note(words: str) -> Html:
    """A remark in small print."""
    return tag("p", "note", words)


def table(rows: Iterable[Sequence[object]], header: Sequence[str], *, caption: str = "") -> Html:
    """A table; numbers stand right in figures of equal width, floats with four digits; cells may be `Html`."""
    rows = [list(row) for row in rows]
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"a row has a cell a column, {len(header)}; got rows of {sorted({len(r) for r in rows})}")
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]

    def line(name: str, cells: Sequence[object]) -> Html:
        return tag("tr", "", *(tag(name, "n" if r else "", _cell(c)) for c, r in zip(cells, right, strict=True)))

    title = tag("caption", "", caption) if caption else ""
    body = tag("tbody", "", *(line("td", row) for row in rows))
    return tag("div", "scroll", tag("table", "plain", title, tag("thead", "", line("th", header)), body))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _cell(value: object) -> object:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if abs(int(value)) > 9999 else str(value)
    return f"{float(value):.4g}" if isinstance(value, float | np.floating) else value


def skipped(files: Sequence[Mapping[str, str]]) -> Html:
    """The files that could not be used and why, `{"path", "why"}` each; nothing at all where there are none."""
    if not files:
        return Html("")
    label = f"{len(files)} file{'s' * (len(files) > 1)} skipped"
    inner = table([(tag("code", "", f["path"]), f["why"]) for f in files], ["file", "why"])
    return tag("details", "", tag("summary", "", label), inner, open="open" if len(files) <= 10 else "")


def confusion(matrix: Any, classes: Sequence[str]) -> Html:
    """Which class is taken for which: a row a true class, a column a predicted one.

    Args:
      matrix: int[k k] counts; a cell is shaded by its share of the row, so that rare classes show as well.
      classes: k names. Beyond 60 classes a map cannot be read, and the twenty most frequent confusions are listed.
    """
    counts = np.asarray(matrix)
    k = len(classes)
    if counts.shape != (k, k) or counts.dtype.kind not in "iu":
        raise ValueError(f"a confusion matrix of {k} classes is int[{k} {k}]; got {counts.dtype}{list(counts.shape)}")
    totals = counts.sum(axis=1)
    if k > 60:
        wrong = counts * (1 - np.eye(k, dtype=counts.dtype))
        worst = [divmod(int(i), k) for i in np.argsort(-wrong, axis=None, kind="stable")[:20]]
        pairs = [(classes[i], classes[j], int(wrong[i, j]), int(totals[i])) for i, j in worst if wrong[i, j]]
        return table(pairs, ["true", "taken for", "times", "of"], caption="The most frequent confusions")
    body = []
    for i, name in enumerate(classes):
        cells = [tag("th", "", name, scope="row")]
        for j, other in enumerate(classes):
            n, share = int(counts[i, j]), int(counts[i, j]) / max(1, int(totals[i]))
            hover = f"{name} taken for {other}: {n} of {int(totals[i])}, {percent(share)}"
            shade = f"--share:{8 + 92 * share:.0f}%" if n else ""  # 8: a single mistake shows, chosen, not tuned
            mark = " ".join(["hot"] * (share > 0.7) + ["right"] * (i == j))
            cells.append(tag("td", mark, str(n) if n else "", title=hover, style=shade))
        body.append(tag("tr", "", *cells))
    heads = (tag("th", "", tag("span", "", name), scope="col") for name in classes)
    corner = tag("td", "corner", "true \N{DOWNWARDS ARROW} predicted \N{RIGHTWARDS ARROW}")
    rows = tag("thead", "", tag("tr", "", corner, *heads)), tag("tbody", "", *body)
    return tag("div", "scroll", tag("table", "confusion dense" if k > 12 else "confusion", *rows))


def heat_map(
    shares: Any, rows: Sequence[str], columns: Sequence[str], *, corner: str = "", hover: Any = None, marked: Any = None
) -> Html:
    """A table of shares, each cell shaded by its own and with its percentage in figures; `confusion` is for counts.

    Args:
      shares: f[r c] in [0, 1]; NaN leaves a cell empty.
      rows, columns: r and c names.
      corner: what rows and columns are.
      hover: [r c] texts that a cell shows when it is pointed at, such as its interval; by default its names.
      marked: bool[r c], cells to be shaded in the second colour.

    Example:
      >>> "62" in heat_map([[0.62, float("nan")]], ["made on a"], ["seen by a", "seen by b"])
      True
    """
    values = np.asarray(shares, np.float64)
    if values.shape != (len(rows), len(columns)):
        raise ValueError(f"a map of {len(rows)} rows and {len(columns)} columns; got shares of {list(values.shape)}")
    body = []
    for i, row in enumerate(rows):
        cells = [tag("th", "", row, scope="row")]
        for j, column in enumerate(columns):
            share = float(values[i, j])
            if math.isnan(share):
                cells.append(tag("td", ""))
                continue
            words = hover[i][j] if hover is not None else f"{row}, {column}: {percent(share)}"
            mark = " ".join(["hot"] * (share > 0.7) + ["right"] * (marked is not None and bool(marked[i][j])))
            cells.append(
                tag("td", mark, f"{100 * _share(share):.0f}", title=words, style=f"--share:{100 * share:.0f}%")
            )
        body.append(tag("tr", "", *cells))
    heads = (tag("th", "", tag("span", "", name), scope="col") for name in columns)
    top = tag("thead", "", tag("tr", "", tag("td", "corner", corner), *heads))
    return tag("div", "scroll", tag("table", "confusion", top, tag("tbody", "", *body)))


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at or below `low` to at or above `high`."""
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # a constant, up to what a label can tell
        high = low + (abs(low) or 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def _number(tick: float) -> str:
    return f"{tick:.10g}"


def interval(
    value: float,
    low: float,
    high: float,
    *,
    label: str = "this run",
    confidence: str = "95 %",
    references: Sequence[tuple[str, float]] = (),
) -> Html:
    """An accuracy with its confidence interval, on one axis with what it should be compared to.

    Args:
      value, low, high: shares in [0, 1], `low <= value <= high`.
      label, confidence: the row's name, and the level of the interval in words.
      references: (name, share in [0, 1]), such as `("majority class", 0.687)`; one mark a row.
    """
    if not _share(low) <= _share(value) <= _share(high):
        raise ValueError(f"an interval holds its value: low <= value <= high; got {low:g}, {value:g}, {high:g}")
    ends = [low, high, *(_share(mark) for _, mark in references)]
    spread = max(ends) - min(ends)
    margin = 1.0 if spread > 0.5 else 0.1 * spread + 0.01  # chosen, not tuned: past a half the whole axis costs little
    ticks = _ticks(max(0.0, min(ends) - margin), min(1.0, max(ends) + margin))

    def at(share: float) -> str:
        return f"{100 * (share - ticks[0]) / (ticks[-1] - ticks[0]):.2f}%"

    grid = [tag("s", "", style=f"left:{at(t)}") for t in ticks]
    span = f"{percent(low)} to {percent(high)}, {confidence} interval"
    whisker = tag("i", "", style=f"left:{at(low)};right:calc(100% - {at(high)})", title=span)
    dot = tag("u", "full", style=f"left:{at(value)}")

    def line(css_class: str, name: str, share: float, small: Html, *marks: Html) -> Html:
        words = tag("span", "", name), tag("span", "value", percent(share)), small
        return tag("li", css_class, *words, tag("div", "lane", *grid, *marks))

    lines = [line("on", label, value, tag("small", "", span), whisker, dot)]
    lines += [line("", name, mark, Html(""), tag("u", "", style=f"left:{at(mark)}")) for name, mark in references]
    figures = (tag("span", "", _number(100 * t), style=f"left:{at(t)}") for t in ticks)
    return tag("ul", "interval", *lines, tag("li", "axis", tag("div", "lane", *figures)))


def curves(series: Mapping[str, Iterable[tuple[float, float]]], *, x_label: str, y_label: str, title: str = "") -> Html:
    """Lines over steps or epochs; told apart by dashes as well as by colour, the last value in figures.

    Args:
      series: name -> points (x, y). Points that are not finite leave a gap.
      x_label, y_label: what the axes count, with the unit.
    """
    lines = {name: [(float(x), float(y)) for x, y in points] for name, points in series.items()}
    finite = [(x, y) for points in lines.values() for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return note(f"No finite points to draw for {y_label}.")
    (x_low, y_low), (x_high, y_high) = np.min(finite, axis=0).tolist(), np.max(finite, axis=0).tolist()
    y_ticks = _ticks(y_low, y_high)
    x_ticks = [t for t in _ticks(x_low, x_high) if x_low <= t <= x_high]

    def to_x(x: float) -> float:
        return round(100 * (x - x_low) / (x_high - x_low), 3) if x_high > x_low else 50.0

    def to_y(y: float) -> float:
        return round(100 * (y_ticks[-1] - y) / (y_ticks[-1] - y_ticks[0]), 3)

    drawn = [tag("path", "grid", d=f"M0 {to_y(t)}H100") for t in y_ticks]
    legend = []
    for i, (name, points) in enumerate(lines.items()):
        path, pen_up = "", True
        for x, y in points:
            if math.isfinite(x) and math.isfinite(y):
                path += f"{'M' if pen_up else 'L'}{to_x(x)} {to_y(y)}" + ("h0" if pen_up else "")
            pen_up = not (math.isfinite(x) and math.isfinite(y))
        drawn.append(tag("path", f"line c{i % 5}", tag("title", "", name), d=path))
        if len(points) <= 30:
            dots = "".join(f"M{to_x(x)} {to_y(y)}h0" for x, y in points if math.isfinite(x) and math.isfinite(y))
            drawn.append(tag("path", f"dots c{i % 5}", d=dots))
        key = tag("svg", "key", tag("path", f"line c{i % 5}", d="M0 5H28"), viewBox="0 0 28 10", aria_hidden="true")
        last = tag("b", "", f"{points[-1][1]:.4g}") if points else ""
        legend.append(tag("li", "", key, " ", name, " ", last))
    words = f"{title or y_label} over {x_label}: {', '.join(lines)}"
    svg = tag("svg", "", *drawn, viewBox="0 0 100 100", preserveAspectRatio="none", role="img", aria_label=words)
    marks = [tag("span", "y", _number(t), style=f"top:{to_y(t)}%") for t in y_ticks]
    marks += [tag("span", "x", _number(t), style=f"left:{to_x(t)}%") for t in x_ticks]
    head = tag("figcaption", "title", title) if title else ""
    axes = tag("p", "y-label", y_label), tag("div", "plot", svg, *marks), tag("p", "x-label", x_label)
    return tag("figure", "curves", head, *axes, tag("ul", "legend", *legend))


def reliability(series: Mapping[str, Sequence[Mapping[str, float]]]) -> Html:
    """How often a classifier is right against how sure it says it is; on the diagonal it keeps its word.

    Args:
      series: name -> rows of `tl.metrics.reliability` ("low", "high", "confidence", "accuracy", "n"), of the same pictures;
        the shares of the last one are drawn as bars on the same axis.
    """
    drawn = [tag("path", "grid", d=f"M0 {y}H100") for y in (0, 25, 50, 75, 100)]
    last = list(series.values())[-1] if series else []
    total = sum(int(row["n"]) for row in last)
    if not total:
        return note("No pictures to draw the reliability of.")
    for row in last:
        left, share = 100 * row["low"], 100 * row["n"] / total
        words = f"{percent(row['low'])} to {percent(row['high'])} sure: {row['n']} pictures, {percent(row['accuracy'])} right"
        width = 100 * (row["high"] - row["low"])
        box = f"M{left:.3f} 100v{-share:.3f}h{width:.3f}V100Z"
        drawn.append(tag("path", "share", tag("title", "", words), d=box))
    drawn.append(tag("path", "line ideal", d="M0 100L100 0"))
    legend = []
    for i, (name, rows) in enumerate(series.items()):
        for row in rows:  # a bin of few pictures says little, and is a small dot
            wide = f"stroke-width:{4 + 10 * math.sqrt(row['n'] / total):.1f}"
            at = f"M{100 * row['confidence']:.3f} {100 - 100 * row['accuracy']:.3f}h0"
            drawn.append(
                tag("path", f"dots c{i % 5}", tag("title", "", f"{name}: {row['n']} pictures"), d=at, style=wide)
            )
        legend.append((f"dots c{i % 5}", "M14 5h0", name))
    legend += [("line ideal", "M0 5H28", "as sure as right"), ("share", "M2 0H26V10H2Z", "share of pictures")]
    keys = [
        tag("li", "", tag("svg", "key", tag("path", css, d=d), viewBox="0 0 28 10", aria_hidden="true"), " ", name)
        for css, d, name in legend
    ]
    words = f"Accuracy over confidence: {', '.join(series)}"
    svg = tag("svg", "", *drawn, viewBox="0 0 100 100", preserveAspectRatio="none", role="img", aria_label=words)
    marks = [tag("span", "y", _number(t), style=f"top:{100 - t}%") for t in (0, 25, 50, 75, 100)]
    marks += [tag("span", "x", _number(t), style=f"left:{t}%") for t in (0, 25, 50, 75, 100)]
    axes = tag("p", "y-label", "right, %"), tag("div", "plot", svg, *marks), tag("p", "x-label", "sure, %")
    return tag("figure", "curves square", *axes, tag("ul", "legend", *keys))


def per_class(rows: Sequence[Mapping[str, Any]]) -> Html:
    """A class a line: how many of its pictures were found, how many called so are; rows of `tl.metrics.per_class`."""

    def share(row: Mapping[str, Any], name: str) -> str:
        if row[name] is None:
            return "\N{EN DASH}"
        low, high = (100 * bound for bound in row[f"{name}_ci95"])
        return f"{percent(row[name])} ({low:.0f} to {high:.0f})".replace(" ", "\N{NO-BREAK SPACE}")

    cells = [(row["class"], row["n"], share(row, "recall"), row["called"], share(row, "precision")) for row in rows]
    return table(cells, ["class", "pictures", "of them called so", "called so", "of them rightly"])


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
    rows = (tag("div", "", tag("dt", "", key), tag("dd", "", value)) for key, value in facts.items())
    foot = tag("footer", "", tag("dl", "", *rows)) if facts else ""
    return _SHELL.format(title=text(title), css=_css(), body=tag("main", "", head, *sections, foot))


# ----------------------------------------------------------------------------------------------------------- setting


def _css() -> str:
    return resources.files("tl").joinpath("report.css").read_text(encoding="utf-8")


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
