"""Charts as SVG and tables: curves, intervals, reliability diagram, confusion matrix, heat map."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tl.reporting.html import Html, _share, note, percent, table, tag


def confusion(matrix: Any, classes: Sequence[str]) -> Html:
    """The confusion matrix: one row per true class, one column per predicted class.

    Args:
      matrix: int[k k] counts; a cell is shaded by its share of the row, so that mistakes on rare
        classes are visible.
      classes: k names. With more than 60 classes the twenty most frequent confusions are listed
        instead.

    Raises:
      ValueError: `matrix` has another shape or is not of integers.
    """
    counts = np.asarray(matrix)
    k = len(classes)
    if counts.shape != (k, k) or counts.dtype.kind not in "iu":
        raise ValueError(
            f"`matrix` has a wrong type: got {counts.dtype}{list(counts.shape)}, expected "
            f"int[{k} {k}] for {k} classes; pass counts of images"
        )
    totals = counts.sum(axis=1)
    if k > 60:
        wrong = counts * (1 - np.eye(k, dtype=counts.dtype))
        worst = [divmod(int(i), k) for i in np.argsort(-wrong, axis=None, kind="stable")[:20]]
        pairs = [
            (classes[i], classes[j], int(wrong[i, j]), int(totals[i]))
            for i, j in worst
            if wrong[i, j]
        ]
        header = ["true class", "predicted class", "images", "of"]
        return table(pairs, header, caption="Most frequent confusions")
    body = []
    for i, name in enumerate(classes):
        cells = [tag("th", "", name, scope="row")]
        for j, other in enumerate(classes):
            n, share = int(counts[i, j]), int(counts[i, j]) / max(1, int(totals[i]))
            hover = f"{name} classified as {other}: {n} of {int(totals[i])}, {percent(share)}"
            # From 8 %, so that a single mistake is visible. Chosen, not tuned.
            shade = f"--share:{8 + 92 * share:.0f}%" if n else ""
            mark = " ".join(["hot"] * (share > 0.7) + ["right"] * (i == j))
            cells.append(tag("td", mark, str(n) if n else "", title=hover, style=shade))
        body.append(tag("tr", "", *cells))
    heads = (tag("th", "", tag("span", "", name), scope="col") for name in classes)
    corner = tag("td", "corner", "true \N{DOWNWARDS ARROW} predicted \N{RIGHTWARDS ARROW}")
    rows = tag("thead", "", tag("tr", "", corner, *heads)), tag("tbody", "", *body)
    return tag("div", "scroll", tag("table", "confusion dense" if k > 12 else "confusion", *rows))


def heat_map(
    shares: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    corner: str = "",
    hover: Any = None,
    marked: Any = None,
) -> Html:
    """A table of shares, each cell shaded by its value and labeled in percent.

    `confusion` is for counts.

    Args:
      shares: f[r c] in [0, 1]; NaN leaves a cell empty.
      rows, columns: r and c names.
      corner: names of the two axes.
      hover: [r c] texts, the tooltips of the cells; by default row, column and value.
      marked: bool[r c], cells that are shaded in the second color.

    Raises:
      ValueError: `shares` has another shape or holds a value outside [0, 1].

    Example:
      >>> "62" in heat_map([[0.62, float("nan")]], ["source a"], ["target a", "target b"])
      True
    """
    values = np.asarray(shares, np.float64)
    if values.shape != (len(rows), len(columns)):
        raise ValueError(
            f"`shares` has a wrong shape: got {list(values.shape)}, expected one value for each of "
            f"{len(rows)} rows and {len(columns)} columns"
        )
    body = []
    for i, row in enumerate(rows):
        cells = [tag("th", "", row, scope="row")]
        for j, column in enumerate(columns):
            share = float(values[i, j])
            if math.isnan(share):
                cells.append(tag("td", ""))
                continue
            words = hover[i][j] if hover is not None else f"{row}, {column}: {percent(share)}"
            mark = " ".join(
                ["hot"] * (share > 0.7) + ["right"] * (marked is not None and bool(marked[i][j]))
            )
            figure, style = f"{100 * _share(share):.0f}", f"--share:{100 * share:.0f}%"
            cells.append(tag("td", mark, figure, title=words, style=style))
        body.append(tag("tr", "", *cells))
    heads = (tag("th", "", tag("span", "", name), scope="col") for name in columns)
    top = tag("thead", "", tag("tr", "", tag("td", "corner", corner), *heads))
    return tag("div", "scroll", tag("table", "confusion", top, tag("tbody", "", *body)))


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, from at most `low` to at least `high`."""
    # A range that the labels could not resolve counts as constant.
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        high = low + (abs(low) or 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def _number(tick: float) -> str:
    return f"{tick:.10g}"


class Interval(NamedTuple):
    """A row of `intervals`: a name, an accuracy in [0, 1] or a ratio, and its interval."""

    label: str
    value: float
    low: float
    high: float


def _ratio(value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"a ratio must be positive and finite: got {value:g}")
    return float(value)


def interval(
    value: float,
    low: float,
    high: float,
    *,
    label: str = "this run",
    confidence: str = "95 %",
    references: Sequence[tuple[str, float]] = (),
) -> Html:
    """An accuracy with its confidence interval, on one axis with reference values.

    Args:
      value, low, high: shares in [0, 1], `low <= value <= high`.
      label: name of the row.
      confidence: level of the interval, as text.
      references: (name, share in [0, 1]), such as `("majority class", 0.687)`; one row each.
    """
    row = Interval(label, value, low, high)
    return intervals([row], confidence=confidence, references=references)


def intervals(
    rows: Sequence[Interval],
    *,
    confidence: str = "95 %",
    references: Sequence[tuple[str, float]] = (),
    ratios: bool = False,
) -> Html:
    """Several accuracies, or ratios, with their confidence intervals on one axis.

    Args:
      rows: one or more, each with `low <= value <= high`.
      confidence: level of all intervals, as text.
      references: as for `interval`.
      ratios: whether the values are positive ratios instead of shares.

    Raises:
      ValueError: an interval does not contain its value, or a value is outside [0, 1] or, for
        ratios, not positive and finite.
    """
    check, words, unit = (_ratio, "{:.2f}".format, 1) if ratios else (_share, percent, 100)
    for row in rows:
        if not check(row.low) <= check(row.value) <= check(row.high):
            raise ValueError(
                f"the interval of {row.label!r} does not contain its value: got {row.low:g}, "
                f"{row.value:g}, {row.high:g}, expected low <= value <= high"
            )
    ends = [end for row in rows for end in (row.low, row.high)]
    ends += [check(mark) for _, mark in references]
    spread = max(ends) - min(ends)
    # Above a spread of 0.5 the whole axis of shares is shown. Chosen, not tuned.
    margin = 1.0 if spread > 0.5 and not ratios else 0.1 * spread + 0.01
    most = math.inf if ratios else 1.0
    ticks = _ticks(max(0.0, min(ends) - margin), min(most, max(ends) + margin))

    def at(share: float) -> str:
        return f"{100 * (share - ticks[0]) / (ticks[-1] - ticks[0]):.2f}%"

    grid = [tag("s", "", style=f"left:{at(t)}") for t in ticks]

    def line(css_class: str, name: str, share: float, small: Html, *marks: Html) -> Html:
        parts = tag("span", "", name), tag("span", "value", words(share)), small
        return tag("li", css_class, *parts, tag("div", "lane", *grid, *marks))

    lines = []
    for row in rows:
        span = f"{words(row.low)} to {words(row.high)}, {confidence} interval"
        style = f"left:{at(row.low)};right:calc(100% - {at(row.high)})"
        whisker = tag("i", "", style=style, title=span)
        dot = tag("u", "full", style=f"left:{at(row.value)}")
        lines.append(line("on", row.label, row.value, tag("small", "", span), whisker, dot))
    lines += [
        line("", name, mark, Html(""), tag("u", "", style=f"left:{at(mark)}"))
        for name, mark in references
    ]
    figures = (tag("span", "", _number(unit * t), style=f"left:{at(t)}") for t in ticks)
    axis = tag("li", "axis ratios" if ratios else "axis", tag("div", "lane", *figures))
    return tag("ul", "interval", *lines, axis)


def curves(
    series: Mapping[str, Iterable[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
    log_x: bool = False,
) -> Html:
    """Lines over steps or epochs, distinguished by dashes as well as by color.

    Args:
      series: name -> points (x, y). Points that are not finite leave a gap. The legend shows the
        last value of each.
      x_label, y_label: quantities of the axes, with their units.
      title: above the figure.
      bands: name in `series` -> finite (x, low, high), such as intervals; shaded in its color.
      log_x: whether the x axis is logarithmic, with a mark at each x; all x must be positive.
    """
    lines = {name: [(float(x), float(y)) for x, y in points] for name, points in series.items()}
    finite = [
        (x, y)
        for points in lines.values()
        for x, y in points
        if math.isfinite(x) and math.isfinite(y)
    ]
    bands = bands or {}
    finite += [(float(x), float(y)) for band in bands.values() for x, *ys in band for y in ys]
    if not finite:
        return note(f"No finite points to draw for {y_label}.")
    (x_low, y_low), (x_high, y_high) = (
        np.min(finite, axis=0).tolist(),
        np.max(finite, axis=0).tolist(),
    )
    y_ticks = _ticks(y_low, y_high)
    x_ticks = [t for t in _ticks(x_low, x_high) if x_low <= t <= x_high]
    if all(x.is_integer() for x, _ in finite):  # epochs and steps are whole numbers
        x_ticks = [t for t in x_ticks if t.is_integer()]
    if log_x:
        x_ticks = sorted({x for x, _ in finite})

    def to_x(x: float) -> float:
        if log_x and x_high > x_low:
            return round(100 * math.log(x / x_low) / math.log(x_high / x_low), 3)
        return round(100 * (x - x_low) / (x_high - x_low), 3) if x_high > x_low else 50.0

    def to_y(y: float) -> float:
        return round(100 * (y_ticks[-1] - y) / (y_ticks[-1] - y_ticks[0]), 3)

    drawn = [tag("path", "grid", d=f"M0 {to_y(t)}H100") for t in y_ticks]
    legend = []
    for i, (name, points) in enumerate(lines.items()):
        if band := bands.get(name):
            edge = [(x, high) for x, _, high in band] + [(x, low) for x, low, _ in reversed(band)]
            outline = "L".join(f"{to_x(x)} {to_y(y)}" for x, y in edge)
            drawn.append(tag("path", f"band c{i % 5}", d=f"M{outline}Z"))
        path, pen_up = "", True
        for x, y in points:
            if math.isfinite(x) and math.isfinite(y):
                path += f"{'M' if pen_up else 'L'}{to_x(x)} {to_y(y)}" + ("h0" if pen_up else "")
            pen_up = not (math.isfinite(x) and math.isfinite(y))
        drawn.append(tag("path", f"line c{i % 5}", tag("title", "", name), d=path))
        if len(points) <= 30:
            dots = "".join(
                f"M{to_x(x)} {to_y(y)}h0"
                for x, y in points
                if math.isfinite(x) and math.isfinite(y)
            )
            drawn.append(tag("path", f"dots c{i % 5}", d=dots))
        last = tag("b", "", f"{points[-1][1]:.4g}") if points else ""
        legend.append(tag("li", "", _key(f"line c{i % 5}", "M0 5H28"), " ", name, " ", last))
    words = f"{title or y_label} over {x_label}: {', '.join(lines)}"
    svg = _plot(drawn, words)
    marks = [tag("span", "y", _number(t), style=f"top:{to_y(t)}%") for t in y_ticks]
    marks += [tag("span", "x", _number(t), style=f"left:{to_x(t)}%") for t in x_ticks]
    head = tag("figcaption", "title", title) if title else ""
    axes = (
        tag("p", "y-label", y_label),
        tag("div", "plot", svg, *marks),
        tag("p", "x-label", x_label),
    )
    return tag("figure", "curves", head, *axes, tag("ul", "legend", *legend))


def reliability(series: Mapping[str, Sequence[Mapping[str, float]]]) -> Html:
    """Reliability diagram: accuracy over confidence; the diagonal is perfect calibration.

    Args:
      series: name -> rows of `tl.metrics.reliability` ("low", "high", "confidence", "accuracy",
        "n"), all of the same images; the shares of images per bin of the last one are drawn as bars
        on the same axis.
    """
    drawn = [tag("path", "grid", d=f"M0 {y}H100") for y in (0, 25, 50, 75, 100)]
    last = list(series.values())[-1] if series else []
    total = sum(int(row["n"]) for row in last)
    if not total:
        return note("No images to draw a reliability diagram of.")
    for row in last:
        left, share = 100 * row["low"], 100 * row["n"] / total
        words = (
            f"confidence {percent(row['low'])} to {percent(row['high'])}: {row['n']} images, "
            f"accuracy {percent(row['accuracy'])}"
        )
        width = 100 * (row["high"] - row["low"])
        box = f"M{left:.3f} 100v{-share:.3f}h{width:.3f}V100Z"
        drawn.append(tag("path", "share", tag("title", "", words), d=box))
    drawn.append(tag("path", "line ideal", d="M0 100L100 0"))
    legend = []
    for i, (name, rows) in enumerate(series.items()):
        for row in rows:  # the area of a dot is proportional to the number of images in its bin
            width = f"stroke-width:{4 + 10 * math.sqrt(row['n'] / total):.1f}"
            at = f"M{100 * row['confidence']:.3f} {100 - 100 * row['accuracy']:.3f}h0"
            hover = tag("title", "", f"{name}: {row['n']} images")
            drawn.append(tag("path", f"dots c{i % 5}", hover, d=at, style=width))
        legend.append((f"dots c{i % 5}", "M14 5h0", name))
    legend += [
        ("line ideal", "M0 5H28", "perfect calibration"),
        ("share", "M2 0H26V10H2Z", "share of images"),
    ]
    keys = [tag("li", "", _key(css, d), " ", name) for css, d, name in legend]
    words = f"Accuracy over confidence: {', '.join(series)}"
    svg = _plot(drawn, words)
    marks = [tag("span", "y", _number(t), style=f"top:{100 - t}%") for t in (0, 25, 50, 75, 100)]
    marks += [tag("span", "x", _number(t), style=f"left:{t}%") for t in (0, 25, 50, 75, 100)]
    axes = (
        tag("p", "y-label", "accuracy, share of images (%)"),
        tag("div", "plot", svg, *marks),
        tag("p", "x-label", "confidence (%)"),
    )
    return tag("figure", "curves square", *axes, tag("ul", "legend", *keys))


def _plot(paths: Sequence[Html], words: str) -> Html:
    """Paths in coordinates from 0 to 100; `words` is the description for screen readers."""
    box = {"viewBox": "0 0 100 100", "preserveAspectRatio": "none"}
    return tag("svg", "", *paths, **box, role="img", aria_label=words)


def _key(css_class: str, d: str) -> Html:
    """The sample of a line or a dot in a legend."""
    path = tag("path", css_class, d=d)
    return tag("svg", "key", path, viewBox="0 0 28 10", aria_hidden="true")


def per_class(rows: Sequence[Mapping[str, Any]]) -> Html:
    """Recall and precision of each class with their 95 % intervals.

    Args:
      rows: of `tl.metrics.per_class`.
    """

    def share(row: Mapping[str, Any], name: str) -> str:
        if row[name] is None:
            return "\N{EN DASH}"
        low, high = (100 * bound for bound in row[f"{name}_ci95"])
        return f"{percent(row[name])} ({low:.0f} to {high:.0f})".replace(" ", "\N{NO-BREAK SPACE}")

    cells = [
        (row["class"], row["n"], share(row, "recall"), row["called"], share(row, "precision"))
        for row in rows
    ]
    return table(cells, ["class", "images", "recall (95 %)", "predicted", "precision (95 %)"])
