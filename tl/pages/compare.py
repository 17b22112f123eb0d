"""The page that compares two sets of weights of one network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages import common
from tl.pages.common import Page
from tl.reporting import Html, tag
from tl.visualize import compare, filters

# Filters in the table of the page, those that changed most (chosen, not tuned).
LISTED = 20


def page(result: Mapping[str, Any], folder: Path) -> Page:
    """The page of `result.json` of `compare`.

    Args:
      result: as `tl.visualize.compare.save` returns it.
      folder: the run's folder, which holds `figures/`.
    """
    changed = [layer for layer, mean in result["layers"].items() if mean > 0]
    lead = (
        f"{result['arch']} before and after fine-tuning: the filters of {len(changed)} layers "
        f"changed, {len(result['unmoved_layers'])} layers are bitwise identical."
    )
    sections = [stages_section(result), filters_section(result, folder)]
    sections += [channels_section(result, folder)] if result["channels"] else []
    sections.append(reporting.skipped(result["skipped"]))
    return Page("Before and after fine-tuning", lead, sections)


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The similarities, the three filters that changed most, and the number of layers."""
    for stage, cka in result["cka"].items():
        yield f"{stage}: CKA {compare.cka_in_words(cka, stage in result['same_bits'])}"
    for row in result["moved"][:3]:
        yield f"{row['layer']}, filter {row['filter']}: changed by {100 * row['relative']:.2f} %"
    changed = sum(mean > 0 for mean in result["layers"].values())
    unchanged, skipped = len(result["unmoved_layers"]), len(result["skipped"])
    yield f"{changed} layers changed, {unchanged} unchanged; skipped {skipped}"


def stages_section(result: Mapping[str, Any]) -> Html:
    """The CKA of each stage."""
    cka, n = result["cka"], result["n"]
    words = {
        name: compare.cka_in_words(value, name in result["same_bits"])
        for name, value in cka.items()
    }
    rows = [(name, value or 0.0, words[name]) for name, value in cka.items()]
    text = (
        f"Linear CKA between the pooled activations before and after, on {n} images. A value of 1 "
        "means the same representation up to a rotation and a scale of the channels."
    )
    wide = [name for name in cka if result["widths"][name] >= n]
    warning = f"CKA is biased upward with fewer images than channels, here at {', '.join(wide)}."
    parts = [_bars(rows), reporting.note(warning)] if wide else [_bars(rows)]
    return reporting.section("Similarity of stages (CKA)", *parts, text=text)


def filters_section(result: Mapping[str, Any], folder: Path) -> Html:
    """The mean change of each layer, the filters that changed most, and the first layer."""
    means = {layer: mean for layer, mean in result["layers"].items() if mean > 0}
    parts: list[Html] = []
    if means:
        largest = max(means.values())
        rows = [(layer, mean / largest, f"{100 * mean:.2f} %") for layer, mean in means.items()]
        table = [
            (row["layer"], row["filter"], f"{100 * row['relative']:.2f} %")
            for row in result["moved"][:LISTED]
        ]
        parts += [tag("h3", "", "Mean change per layer"), _bars(rows)]
        parts += [tag("h3", "", "Filters with the largest change")]
        parts += [reporting.table(table, ["layer", "filter", "change"])]
        parts += _first_layer(result["first_layer"], folder)
    if unchanged := result["unmoved_layers"]:
        summary = tag("summary", "", f"{len(unchanged)} layers are bitwise identical")
        parts.append(tag("details", "", summary, tag("p", "note", ", ".join(unchanged))))
    text = (
        "Relative change of a filter, ||after - before|| / ||before||. Filters that were nearly "
        f"dead before (below {100 * filters.DEAD:.0f} % of their layer's median norm) are left "
        "out; biases and BatchNorm are not filters."
    )
    return reporting.section(
        "Change of filters", *parts, text=text if means else "No filter changed."
    )


def _first_layer(first: Mapping[str, Any] | None, folder: Path) -> list[Html]:
    """The first layer's filters before and after, if they changed."""
    if first is None:
        return []
    scale = max(1, 28 // first["side"])
    cards = [
        reporting.card(common.figure(folder, first[f"{when}_png"]), title=when, scale=scale)
        for when in compare.WHEN
    ]
    caption = f"{first['kernel']}: each filter scaled by its own largest weight; mid-gray is 0."
    return [reporting.strip(cards, title="Filters of the first layer", caption=caption)]


def channels_section(result: Mapping[str, Any], folder: Path) -> Html:
    """The ideal images of channels under both weights, and the activations on them."""
    strips = []
    for row in result["channels"]:
        cards = []
        for drawn, other in (compare.WHEN, compare.WHEN[::-1]):
            values = {drawn: row[f"activation_{drawn}"], other: row[f"{drawn}_png_{other}"]}
            caption = f"activation {values['before']:.3g} before, {values['after']:.3g} after"
            image = common.figure(folder, row[f"{drawn}_png"])
            cards.append(reporting.card(image, title=f"ideal {drawn}", caption=caption))
        change = row["relative"]
        caption = "" if change is None else f"Relative change of its filter: {100 * change:.2f} %."
        title = f"{row['endpoint']}, channel {row['channel']}"
        strips.append(reporting.strip(cards, title=title, caption=caption))
    text = (
        "The image that maximizes a channel, optimized from the same noise under the weights "
        "before and after; below it the channel's mean activation under both. The optimization "
        "is sensitive: where two images differ and their activations do not, the channel hardly "
        "changed."
    )
    return reporting.section("Channels before and after", *strips, text=text)


def _bars(rows: Iterable[tuple[str, float, str]]) -> Html:
    """Bars with a text instead of a percentage; rows of label, length in [0, 1], and text."""
    items = []
    for label, length, words in rows:
        bar = tag("div", "track", tag("i", "", style=f"width:{100 * length:.2f}%"))
        items.append(tag("li", "", tag("span", "", label), tag("span", "value", words), bar))
    return tag("ul", "bars", *items, style="max-width:34rem")
