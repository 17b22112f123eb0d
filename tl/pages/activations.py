"""The page of feature maps and feature banks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tl import reporting
from tl.pages import common
from tl.pages.common import Page
from tl.reporting import Html, tag
from tl.visualize.activations import COLUMNS

# Largest number of positions of a map that is drawn flat; of a larger one the page gives the file.
# Chosen, not tuned.
TALL = 1024


def page(result: Mapping[str, Any], folder: Path) -> Page:
    """The page of `result.json` of `features`.

    Args:
      result: keys of `tl.visualize.activations.fill_banks` and `show`, and `arch`, `endpoints` and
        `data`.
      folder: the run's folder, which holds `figures/`.
    """
    lead, sections = [], []
    if images := result.get("inputs"):
        names = _and([Path(row["picture"]).name for row in images])
        lead.append(f"Activations of {result['arch']} for {names} at {_and(result['endpoints'])}.")
    if "banks" in result:
        lead.append(
            f"Features of {result['n']} images of {result['data']} from {result['arch']}, "
            f"{result['reused']} of them cached."
        )
        sections.append(bank_section(result["banks"]))
    for image in images or []:
        sections += image_sections(image, result, folder, chapter=len(images or []) > 1)
    if "filters" in result:
        sections.append(first_layer_section(result["filters"], folder))
    sections.append(reporting.skipped(result["skipped"]))
    return Page("Feature maps" if images else "Feature bank", " ".join(lead), sections)


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """One sentence per bank and per map."""
    for row in result.get("banks", []):
        size = f"{row['n']} x {row['dim']} features, {row['reused']} reused"
        yield f"{row['endpoint']}: {size}, {len(result['skipped'])} skipped: {row['bank']}"
    for row in result.get("shown", []):
        channel, shape = row["strongest"][0]["channel"], tuple(row["shape"])
        yield f"{row['picture']}: {row['endpoint']} is {shape}; strongest channel {channel}"


def bank_section(banks: Sequence[Mapping[str, Any]]) -> Html:
    """The size of each bank and where it is stored."""
    rows = [[row["endpoint"], row["n"], row["dim"], row["reused"]] for row in banks]
    table = reporting.table(
        rows, ["endpoint", "images", "features per image", "images from the cache"]
    )
    title = "Feature banks" if len(banks) > 1 else "Feature bank"
    return reporting.section(title, table, *(reporting.note(row["bank"]) for row in banks))


def image_sections(
    image: Mapping[str, Any], result: Mapping[str, Any], folder: Path, *, chapter: bool
) -> list[Html]:
    """The image as the network reads it, and its maps at each endpoint."""
    path = image["picture"]
    card = reporting.card(
        common.figure(folder, image["png"]), caption=f"{path}, as {result['arch']} reads it"
    )
    sections = [reporting.chapter(Path(path).name)] if chapter else []
    sections.append(reporting.section("Image", card))
    rows = [row for row in result["shown"] if row["picture"] == path]
    return [*sections, *(map_section(row, folder) for row in rows)]


def map_section(row: Mapping[str, Any], folder: Path) -> Html:
    """The strongest channels of one map, their top-activating images, and the whole map."""
    height, width, c = row["shape"]
    strongest = row["strongest"]
    words = [f"{entry['channel']}: {entry['mean']:.3g}" for entry in strongest]
    parts = [_gallery(_cut(common.figure(folder, row["png"]), len(words)), words)]
    if "driven" in row:
        parts.append(exemplars_strip(row["driven"], folder))
    if height * width <= TALL:
        flat = common.figure(folder, row["flat"])
        # 49 rows are too thin to see.
        down, across = max(1, 196 // len(flat)), max(1, 768 // c)
        drawn = np.repeat(np.repeat(flat, down, axis=0), across, axis=1)
        caption = f"The whole map on one scale: {height * width} positions (rows) by {c} channels."
        parts.append(reporting.card(drawn, caption=caption, alt=caption))
    else:
        words = f"The whole map, {height * width} positions by {c} channels: {row['flat']}"
        parts.append(reporting.note(words))
    text = (
        f"A map of shape ({height}, {width}, {c}). The {len(strongest)} channels with the highest "
        "mean activation, each with its index and mean, and scaled to its own range: black is "
        "the channel's smallest value, white its largest."
    )
    named = row["endpoint"] == row["stage"]
    title = row["endpoint"] if named else f"{row['endpoint']} ({row['stage']})"
    return reporting.section(title, *parts, text=text)


def exemplars_strip(rows: Sequence[Mapping[str, Any]], folder: Path) -> Html:
    """Each channel's map of this image next to the real images that activate it most."""
    cards = []
    for row in rows:
        if "png" not in row:
            continue
        channel, means = row["channel"], [image["mean"] for image in row["pictures"]]
        alt = f"images that activate channel {channel} most"
        pair = [
            reporting.img(common.figure(folder, row["map_png"])),
            reporting.img(common.figure(folder, row["png"]), alt=alt),
        ]
        side_by_side = tag("div", "", *pair, style="display:flex;gap:.75rem;align-items:flex-start")
        caption = f"mean {row['mean']:.3g} here, {means[0]:.3g} to {means[-1]:.3g} in these"
        parts = [tag("p", "title", f"channel {channel}"), tag("div", "frame", side_by_side)]
        cards.append(tag("figure", "card", *parts, tag("p", "caption", caption)))
    n = len(rows[0]["pictures"]) if rows else 0
    caption = f"The {n} images of the data set with the highest mean activation, for each channel."
    return reporting.strip(cards, title="Top-activating images", caption=caption)


def first_layer_section(about: Mapping[str, Any], folder: Path) -> Html:
    """The first convolution's filters as color tiles."""
    n = about["shape"][3]
    text = (
        f"The {n} filters of {about['kernel']}, shape {tuple(about['shape'])}, in color and in "
        "order. Mid-gray is a weight of 0; each filter is scaled by its own largest weight."
    )
    tiles = _cut(common.figure(folder, about["png"]), n)
    return reporting.section("First convolution", _gallery(tiles, map(str, range(n))), text=text)


def _cut(sheet: np.ndarray, n: int, *, gap: int = 4) -> list[np.ndarray]:
    """The `n` equal tiles of a contact sheet."""
    columns = min(COLUMNS, n)
    height = (sheet.shape[0] + gap) // -(-n // columns)
    width = (sheet.shape[1] + gap) // columns
    corners = [(i // columns * height, i % columns * width) for i in range(n)]
    return [
        sheet[row : row + height - gap, column : column + width - gap] for row, column in corners
    ]


def _gallery(tiles: Iterable[np.ndarray], words: Iterable[str]) -> Html:
    """Small images in rows, each with a caption; a card would be wider than most of them."""
    cells = (
        tag(
            "figure",
            "",
            reporting.img(tile, alt=caption),
            tag("p", "caption", caption, style="margin-top:.25rem"),
        )
        for tile, caption in zip(tiles, words, strict=True)
    )
    return tag("div", "gallery", *cells, style="gap:.9rem .75rem")


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
