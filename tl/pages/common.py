"""Parts that the pages of several experiments share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from tl import reporting
from tl.models import Classifier
from tl.pixels import PixelSpec


class Page(NamedTuple):
    """A report page: what was done, the outcome in a sentence or two, and fragments of HTML."""

    title: str
    lead: str
    sections: list[reporting.Html]


def bars(top: Sequence[Mapping[str, Any]], highlight: Collection[int] = ()) -> list[reporting.Bar]:
    """The report's bars of a `topk`."""
    return [
        reporting.Bar(row["name"], row["probability"], row["index"] in highlight) for row in top
    ]


def weights_facts(clf: Classifier) -> dict[str, str]:
    """Whose weights these are, for the small print."""
    about = clf.weights
    return {
        "weights": f"{about.name} (sha256 {about.sha256[:12]}), {about.origin}",
        "licence of the weights": about.licence,
    }


def in_words(spec: PixelSpec) -> str:
    """A PixelSpec in a line."""
    how = f"of {int(spec.size / spec.crop)}" if spec.resize == "shorter" else "squashed"
    levels = set(spec.std) == {1 / 255}
    short = lambda values, unit: " ".join(
        f"{unit * v:.6g}" if unit > 1 else f"{v:.4g}" for v in dict.fromkeys(values)
    )
    if levels:
        scale = "0 to 255" + (f" minus {short(spec.mean, 255)}" if any(spec.mean) else "")
    else:
        scale = f"mean {short(spec.mean, 1)}, std {short(spec.std, 1)}"
    return f"{spec.size} {how}, {spec.interpolation}, {spec.channels.upper()}, {scale}"
