"""Parts that the pages of several experiments share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl import data, reporting
from tl.models import Classifier
from tl.pixels import PixelSpec


class Page(NamedTuple):
    """A report page: what was done, the outcome in a sentence or two, and fragments of HTML."""

    title: str
    lead: str
    sections: list[reporting.Html]


def failed_section(failed: Mapping[str, str]) -> list[reporting.Html]:
    """The parts of a result that are missing, and why; empty without any."""
    if not failed:
        return []
    table = reporting.table(list(failed.items()), ["part", "reason"])
    text = "These parts of the result could not be computed. All others are complete."
    return [reporting.section("Missing parts", table, text=text)]


def remarks_section(remarks: Sequence[str]) -> list[reporting.Html]:
    """What a user should know about the inputs of a run; empty without any."""
    if not remarks:
        return []
    table = reporting.table([[line] for line in remarks], ["remark"])
    return [reporting.section("Remarks on the inputs", table)]


def figure_path(folder: Path, path: str) -> Path:
    """The file of a figure in a run's folder, wherever that folder is now.

    Args:
      folder: the run's folder.
      path: as `Run.relative` returns it; of an absolute path the last part is used.
    """
    return folder / "figures" / Path(path).name


def figure(folder: Path, path: str) -> np.ndarray:
    """An image that a run saved, uint8[h w 3]; arguments as for `figure_path`."""
    return data.decode(figure_path(folder, path))


def bars(top: Sequence[Mapping[str, Any]], highlight: Collection[int] = ()) -> list[reporting.Bar]:
    """Bars of the rows of `tl.inference.topk`; class indices in `highlight` are set off."""
    return [
        reporting.Bar(row["name"], row["probability"], row["index"] in highlight) for row in top
    ]


def shows_top3(classes: Sequence[str]) -> bool:
    """Whether top-3 accuracy is informative: it is 100 % with three classes or fewer."""
    return len(classes) > 3


def share_with_interval(row: Mapping[str, Any], name: str) -> str:
    """A share with its 95 % interval, such as "90.0 % (82.6 % to 94.5 %)".

    Args:
      row: holds `name`, and `name` with "_ci95" unless an older version wrote it.
      name: key of the share.
    """
    words, bounds = reporting.percent(row[name]), row.get(f"{name}_ci95")
    return words if bounds is None else f"{words} ({' to '.join(map(reporting.percent, bounds))})"


def share_figure(row: Mapping[str, Any], name: str, label: str) -> dict[str, str]:
    """A share for `reporting.numbers`, with its 95 % interval below the label.

    Args:
      row, name: as for `share_with_interval`.
      label: the name that is shown.

    Example:
      >>> share_figure({"top3": 0.9, "top3_ci95": [0.826, 0.945]}, "top3", "top-3")
      {'top-3\\n82.6 to 94.5 %': '90.0 %'}
    """
    if bounds := row.get(f"{name}_ci95"):
        low, high = (100 * bound for bound in bounds)
        label += f"\n{low:.1f} to {high:.1f} %"
    return {label: reporting.percent(row[name])}


def weights_facts(clf: Classifier) -> dict[str, str]:
    """Name, digest, origin and license of the weights, shown in the footer of a page."""
    about = clf.weights
    return {
        "weights": f"{about.name} (sha256 {about.sha256[:12]}), {about.origin}",
        "license of the weights": about.licence,
    }


def pixels_in_words(spec: PixelSpec) -> str:
    """A `PixelSpec` in one line."""
    geometry = f"of {int(spec.size / spec.crop)}" if spec.resize == "shorter" else "squashed"
    levels = set(spec.std) == {1 / 255}
    short = lambda values, unit: " ".join(
        f"{unit * v:.6g}" if unit > 1 else f"{v:.4g}" for v in dict.fromkeys(values)
    )
    if levels:
        scale = "0 to 255" + (f" minus {short(spec.mean, 255)}" if any(spec.mean) else "")
    else:
        scale = f"mean {short(spec.mean, 1)}, std {short(spec.std, 1)}"
    return f"{spec.size} {geometry}, {spec.interpolation}, {spec.channels.upper()}, {scale}"
