"""The page of `runs`: an index over runs, with a search box; one self-contained file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tl import data, reporting
from tl.reporting import Html, tag

MAIN = (
    *("seeds.mean", "folds.mean", "test.top1", "top1", "robust_accuracy", "success_rate"),
    *("difference", "test.balanced", "test.nll", "n", "images_per_second", "seconds"),
)
"""Paths of the numbers of `result.json` that the index shows, the most important first."""
# The accuracies among them.
_SHARES = ("seeds", "folds", "test.top1", "test.balanced", "top1", "robust_accuracy")
_SHARES += ("success_rate",)
# Longer side of an image in pixels, and size of a curve.
_SIDE, _WIDTH, _HEIGHT = 64, 120, 32
HEADER = ("images", "run", "experiment", "started", "status", "main number", "numbers", "loss")


def draw(rows: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """The page as HTML.

    Args:
      rows: as `tl.scale.runs.read` yields them.
      folder: the folder of all runs; the page links to their reports by relative paths.
    """
    counts = Counter(row["status"] for row in rows)
    lead = ", ".join(f"{n} {status}" for status, n in counts.most_common())
    head = tag("thead", "", tag("tr", "", *(tag("th", "", name) for name in HEADER)))
    body = tag("tbody", "", *(_line(row) for row in rows))
    search = tag(
        "input",
        "",
        id="search",
        type="search",
        placeholder="words, such as: transfer died lr=0.001",
        aria_label="search",
        size=48,
    )
    count = tag("span", "note", f"{len(rows)} runs", id="count")
    text = "All words must occur in the name, the flags, the status or the numbers of a run. "
    text += "Click on a title to sort."
    table = tag("div", "scroll", tag("table", "plain", head, body, id="runs"))
    script = resources.files("tl.pages").joinpath("runs.js").read_text(encoding="utf-8")
    parts = [tag("p", "", search, " ", count), reporting.note(text), table]
    title = f"Runs in {folder.name or folder.absolute().name}"
    return reporting.page(title, f"{len(rows)} runs: {lead}.", parts, facts={}, script=script)


def _line(row: Mapping[str, Any]) -> Html:
    numbers = row["numbers"]
    main = next(iter(numbers.items()), None)
    link = f"{row['path']}/report.html" if row["page"] else row["path"]
    flags = [f"{flag}={value}" for flag, value in row["flags"].items()]
    details = tag("details", "", tag("summary", "", "flags"), tag("code", "", " ".join(flags)))
    words = ", ".join(f"{name} {number(name, value)}" for name, value in numbers.items())
    reason = tag("div", "note", row["reason"]) if row["reason"] else ""
    cells = [
        ("", tag("div", "", *_thumbnails(row["images"]), style="display:flex;gap:4px")),
        (row["path"], tag("span", "", tag("a", "", row["path"], href=link), details)),
        (row["name"], row["name"]),
        (row["started"], row["started"].replace("T", " ")[:16]),
        (row["status"], tag("span", "", row["status"], reason)),
        (main[1] if main else "", number(*main) if main else ""),
        ("", words),
        ("", _curve(row["curve"])),
    ]
    return tag("tr", "", *(tag("td", "", cell, data_key=key) for key, cell in cells))


def number(name: str, value: float) -> str:
    """A number as text, in percent if its name is that of a share.

    Example:
      >>> number("test.top1", 0.973), number("test.nll", 0.0812)
      ('97.3 %', '0.0812')
    """
    share = name.startswith(_SHARES) and 0 <= value <= 1
    return f"{100 * value:.1f} %" if share else f"{value:.4g}"


def _thumbnails(files: Sequence[Path]) -> list[Html]:
    images = []
    for file in files:
        try:
            images.append(reporting.img(data.thumbnail(file, _SIDE), alt=file.stem))
        except (data.ImageError, OSError):  # of another program, or damaged
            continue
    return images


def _curve(values: Sequence[float]) -> Html:
    """A line through the values, without axes."""
    if len(values) < 2:
        return tag("span", "")
    low, high = min(values), max(values)
    scale = (_HEIGHT - 4) / ((high - low) or 1.0)
    points = " ".join(
        f"{i * _WIDTH / (len(values) - 1):.1f},{2 + (high - value) * scale:.1f}"
        for i, value in enumerate(values)
    )
    title = tag("title", "", f"{values[0]:.4g} to {values[-1]:.4g}")
    style = "fill:none;stroke:var(--accent);stroke-width:1.5"
    line = tag("polyline", "", points=points, style=style)
    return tag("svg", "", title, line, width=_WIDTH, height=_HEIGHT, role="img")
