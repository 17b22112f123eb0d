"""Charts as SVG: curves, intervals, calibration, confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tl.reporting.html import Html, _share, note, percent, table, tag


def confusion(matrix: Any, classes: Sequence[str]) -> Html:
    """Which class is taken for which: a row a true class, a column a predicted one.

    Args:
      matrix: int[k k] counts; a cell is shaded by its share of the row, so that rare classes show as well.
      classes: k names. Beyond 60 classes a map cannot be read, and the twenty most frequent confusions are listed.
    """
    counts = np.asarray(matrix)
    k = len(classes)
    if counts.shape != (k, k) or counts.dtype.kind not in "iu":
        raise ValueError(
            f"a confusion matrix of {k} classes is int[{k} {k}]; got {counts.dtype}{list(counts.shape)}"
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
        return table(
            pairs, ["true", "taken for", "times", "of"], caption="The most frequent confusions"
        )
    body = []
    for i, name in enumerate(classes):
        cells = [tag("th", "", name, scope="row")]
        for j, other in enumerate(classes):
            n, share = int(counts[i, j]), int(counts[i, j]) / max(1, int(totals[i]))
            hover = f"{name} taken for {other}: {n} of {int(totals[i])}, {percent(share)}"
            shade = (
                f"--share:{8 + 92 * share:.0f}%" if n else ""
            )  # 8: a single mistake shows, chosen, not tuned
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
        raise ValueError(
            f"a map of {len(rows)} rows and {len(columns)} columns; got shares of {list(values.shape)}"
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
            cells.append(
                tag(
                    "td",
                    mark,
                    f"{100 * _share(share):.0f}",
                    title=words,
                    style=f"--share:{100 * share:.0f}%",
                )
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


class Interval(NamedTuple):
    """A row of `intervals`: its name, and an accuracy and its bounds, shares in [0, 1]."""

    label: str
    value: float
    low: float
    high: float


def interval(
    value: float,
    low: float,
    high: float,
    *,
    label: str = "this run",
    confidence: str = "95 %",
    references: Sequence[tuple[str, float]] = (),
) -> Html:
    """An accuracy with its confidence interval on one axis with the values to compare it with.

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
) -> Html:
    """Several accuracies with their confidence intervals on one axis.

    Args:
      rows: one or more, each with `low <= value <= high`.
      confidence: level of all intervals, as text.
      references: as for `interval`.
    """
    for row in rows:
        if not _share(row.low) <= _share(row.value) <= _share(row.high):
            raise ValueError(
                f"an interval holds its value: low <= value <= high; got {row.low:g}, "
                f"{row.value:g}, {row.high:g}"
            )
    ends = [end for row in rows for end in (row.low, row.high)]
    ends += [_share(mark) for _, mark in references]
    spread = max(ends) - min(ends)
    # chosen, not tuned: with more than half of the axis in use, all of it costs little
    margin = 1.0 if spread > 0.5 else 0.1 * spread + 0.01
    ticks = _ticks(max(0.0, min(ends) - margin), min(1.0, max(ends) + margin))

    def at(share: float) -> str:
        return f"{100 * (share - ticks[0]) / (ticks[-1] - ticks[0]):.2f}%"

    grid = [tag("s", "", style=f"left:{at(t)}") for t in ticks]

    def line(css_class: str, name: str, share: float, small: Html, *marks: Html) -> Html:
        words = tag("span", "", name), tag("span", "value", percent(share)), small
        return tag("li", css_class, *words, tag("div", "lane", *grid, *marks))

    lines = []
    for row in rows:
        span = f"{percent(row.low)} to {percent(row.high)}, {confidence} interval"
        style = f"left:{at(row.low)};right:calc(100% - {at(row.high)})"
        whisker = tag("i", "", style=style, title=span)
        dot = tag("u", "full", style=f"left:{at(row.value)}")
        lines.append(line("on", row.label, row.value, tag("small", "", span), whisker, dot))
    lines += [
        line("", name, mark, Html(""), tag("u", "", style=f"left:{at(mark)}"))
        for name, mark in references
    ]
    figures = (tag("span", "", _number(100 * t), style=f"left:{at(t)}") for t in ticks)
    return tag("ul", "interval", *lines, tag("li", "axis", tag("div", "lane", *figures)))


def curves(
    series: Mapping[str, Iterable[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
) -> Html:
    """Lines over steps or epochs; told apart by dashes as well as by colour, the last value in figures.

    Args:
      series: name -> points (x, y). Points that are not finite leave a gap.
      x_label, y_label: what the axes count, with the unit.
    """
    lines = {name: [(float(x), float(y)) for x, y in points] for name, points in series.items()}
    finite = [
        (x, y)
        for points in lines.values()
        for x, y in points
        if math.isfinite(x) and math.isfinite(y)
    ]
    if not finite:
        return note(f"No finite points to draw for {y_label}.")
    (x_low, y_low), (x_high, y_high) = (
        np.min(finite, axis=0).tolist(),
        np.max(finite, axis=0).tolist(),
    )
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
            dots = "".join(
                f"M{to_x(x)} {to_y(y)}h0"
                for x, y in points
                if math.isfinite(x) and math.isfinite(y)
            )
            drawn.append(tag("path", f"dots c{i % 5}", d=dots))
        key = tag(
            "svg",
            "key",
            tag("path", f"line c{i % 5}", d="M0 5H28"),
            viewBox="0 0 28 10",
            aria_hidden="true",
        )
        last = tag("b", "", f"{points[-1][1]:.4g}") if points else ""
        legend.append(tag("li", "", key, " ", name, " ", last))
    words = f"{title or y_label} over {x_label}: {', '.join(lines)}"
    svg = tag(
        "svg",
        "",
        *drawn,
        viewBox="0 0 100 100",
        preserveAspectRatio="none",
        role="img",
        aria_label=words,
    )
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
                tag(
                    "path",
                    f"dots c{i % 5}",
                    tag("title", "", f"{name}: {row['n']} pictures"),
                    d=at,
                    style=wide,
                )
            )
        legend.append((f"dots c{i % 5}", "M14 5h0", name))
    legend += [
        ("line ideal", "M0 5H28", "as sure as right"),
        ("share", "M2 0H26V10H2Z", "share of pictures"),
    ]
    keys = [
        tag(
            "li",
            "",
            tag("svg", "key", tag("path", css, d=d), viewBox="0 0 28 10", aria_hidden="true"),
            " ",
            name,
        )
        for css, d, name in legend
    ]
    words = f"Accuracy over confidence: {', '.join(series)}"
    svg = tag(
        "svg",
        "",
        *drawn,
        viewBox="0 0 100 100",
        preserveAspectRatio="none",
        role="img",
        aria_label=words,
    )
    marks = [tag("span", "y", _number(t), style=f"top:{100 - t}%") for t in (0, 25, 50, 75, 100)]
    marks += [tag("span", "x", _number(t), style=f"left:{t}%") for t in (0, 25, 50, 75, 100)]
    axes = (
        tag("p", "y-label", "right, %"),
        tag("div", "plot", svg, *marks),
        tag("p", "x-label", "sure, %"),
    )
    return tag("figure", "curves square", *axes, tag("ul", "legend", *keys))


def per_class(rows: Sequence[Mapping[str, Any]]) -> Html:
    """A class a line: how many of its pictures were found, how many called so are; rows of `tl.metrics.per_class`."""

    def share(row: Mapping[str, Any], name: str) -> str:
        if row[name] is None:
            return "\N{EN DASH}"
        low, high = (100 * bound for bound in row[f"{name}_ci95"])
        return f"{percent(row[name])} ({low:.0f} to {high:.0f})".replace(" ", "\N{NO-BREAK SPACE}")

    cells = [
        (row["class"], row["n"], share(row, "recall"), row["called"], share(row, "precision"))
        for row in rows
    ]
    return table(cells, ["class", "pictures", "of them called so", "called so", "of them rightly"])
