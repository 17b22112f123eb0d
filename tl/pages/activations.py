"""What a network sees in one picture: the pages' parts that `features --show` is made of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl import data, pixels, reporting
from tl.data import ImageError
from tl.models import Classifier
from tl.paths import nearest
from tl.reporting import Html
from tl.types import Array, Variables
from tl.visualize import exemplars, filters, maps

tag = reporting.tag
TILE = 84  # pixels a side, at least, of a channel's picture on the page (chosen, not tuned)
THUMB = 84  # of a real picture, three by three of them beside a channel
TALL = 1024  # positions; the flat picture of a larger map is a file and not on the page
DRIVEN = 6  # channels whose real pictures are looked for


def endpoints(clf: Classifier, variables: Variables, asked: Sequence[str]) -> list[str]:
    """The endpoints asked for, by default every stage, each once; "features" is the mean of the last stage's map.

    Raises:
      ValueError: an endpoint that the network has not; gives the nearest.
    """
    side = max(clf.pixels.size, clf.spec.min_size)
    blank = jax.ShapeDtypeStruct((1, side, side, len(clf.pixels.mean)), np.float32)
    known = [*jax.eval_shape(clf.apply, variables, blank).endpoints, "features"]
    for name in asked:
        if name not in known:
            raise ValueError(
                f"{clf.arch} has no endpoint {name!r}; nearest: {nearest(name, known)}"
            )
    return list(dict.fromkeys(asked or clf.spec.endpoints))


@functools.cache
def forward(
    clf: Classifier, names: tuple[str, ...]
) -> Callable[[Variables, Array], dict[str, jax.Array]]:
    """The maps f32[h w c] of one picture f32[1 s s c] at the named endpoints, in one compiled pass."""

    @jax.jit
    def seen(variables: Variables, images01: jax.Array) -> dict[str, jax.Array]:
        found = clf.apply(variables, images01).endpoints
        last = clf.spec.endpoints[-1]
        return {
            name: found[last if name == "features" else name][0].astype(jnp.float32)
            for name in names
        }

    return seen


def enlarged(tile: np.ndarray, side: int = TILE) -> np.ndarray:
    """A small picture with each pixel drawn as a square, `side` pixels or a little more."""
    factor = max(1, -(-side // tile.shape[0]))
    return np.repeat(np.repeat(tile, factor, axis=0), factor, axis=1)


def grid(pictures: Iterable[Any], words: Iterable[str]) -> Html:
    """Small pictures side by side with a word or two under each; cards would be wider than most of them."""
    cells = (
        tag(
            "figure",
            "",
            reporting.img(enlarged(p), alt=w),
            tag("p", "caption", w, style="margin-top:.25rem"),
        )
        for p, w in zip(pictures, words, strict=True)
    )
    return tag("div", "gallery", *cells, style="gap:.9rem .75rem")


def shown(
    run: reporting.Run,
    clf: Classifier,
    endpoint: str,
    found: np.ndarray,
    *,
    name: str,
    topk: int,
    beside: Sequence[Html] = (),
) -> tuple[Html, dict[str, Any]]:
    """A section on one endpoint's map of one picture, and what result.json says of it.

    Args:
      run: keeps the sheet of channels and the flat picture in `figures/`.
      found: the map, f32[h w c].
      name: of the picture.
      topk: channels on the sheet, the most active first.
      beside: what comes below the sheet, such as `driven`.
    """
    height, width, c = found.shape
    order = maps.strongest(found, topk)
    means = found.mean(axis=(0, 1))[order]
    pictures, flat = maps.tiles(found, order), maps.flat(found)
    sheet = run.figure(
        f"{endpoint}-{name}", reporting.contact_sheet(map(enlarged, pictures), columns=8)
    )
    file = run.figure(f"{endpoint}-{name}-flat", flat)
    words = [f"{channel}: {mean:.3g}" for channel, mean in zip(order, means, strict=True)]
    text = (
        f"A map of shape ({height}, {width}, {c}). Its {len(order)} strongest channels, each with its index and its mean over "
        "the map, and stretched to its own range: black is the channel's smallest value, white its largest."
    )
    parts = [grid(pictures, words), *beside]
    if len(flat) <= TALL:
        rows, columns = max(1, 196 // len(flat)), max(1, 768 // c)  # 49 rows are too thin to see
        drawn = np.repeat(np.repeat(flat, rows, axis=0), columns, axis=1)
        says = f"The whole map on one scale: {height * width} positions down, row by row, and {c} channels across."
        parts.append(reporting.card(drawn, caption=says, alt=says))
    else:
        parts.append(
            reporting.note(
                f"The whole map, {height * width} positions by {c} channels: figures/{file.name}"
            )
        )
    title = f"{endpoint} ({clf.spec.endpoints[-1]})" if endpoint == "features" else endpoint
    row = {
        "picture": name,
        "endpoint": endpoint,
        "shape": [height, width, c],
        "strongest": [
            {"channel": int(i), "mean": float(m)} for i, m in zip(order, means, strict=True)
        ],
        "png": f"figures/{sheet.name}",
        "flat": f"figures/{file.name}",
    }
    return reporting.section(title, *parts, text=text), row


def driven(
    run: reporting.Run,
    clf: Classifier,
    endpoint: str,
    found: np.ndarray,
    tops: Sequence[exemplars.Top],
    *,
    name: str,
) -> tuple[list[Html], list[dict[str, Any]]]:
    """For the strongest channels of a map the real pictures that activate them most, and the same for result.json."""
    order = maps.strongest(found, len(tops))
    cards, rows = [], []
    for channel, tile, top in zip(order, maps.tiles(found, order), tops, strict=True):
        thumbs = [thumb for source, _ in top if (thumb := thumbnail(clf, source)) is not None]
        row = {
            "channel": int(channel),
            "pictures": [{"picture": str(source), "mean": mean} for source, mean in top],
        }
        if thumbs:
            sheet = reporting.contact_sheet(thumbs, columns=3)
            row["png"] = f"figures/{run.figure(f'{endpoint}-{name}-channel-{channel}', sheet).name}"
            pair = [
                reporting.img(enlarged(tile)),
                reporting.img(sheet, alt=f"pictures that drive channel {channel}"),
            ]
            words = f"mean {found[..., channel].mean():.3g} here, {top[0][1]:.3g} to {top[-1][1]:.3g} in these"
            frame = tag(
                "div",
                "frame",
                tag("div", "", *pair, style="display:flex;gap:.75rem;align-items:flex-start"),
            )
            cards.append(
                tag(
                    "figure",
                    "card",
                    tag("p", "title", f"channel {channel}"),
                    frame,
                    tag("p", "caption", words),
                )
            )
        rows.append(row)
    said = (
        f"The channels that this picture drives most, and the {len(tops[0]) if tops else 0} pictures of the set that drive "
        "each most, by the mean over the map, the strongest first."
    )
    return [reporting.strip(cards, title="Real pictures", caption=said)], rows


def thumbnail(clf: Classifier, source: data.Source) -> np.ndarray | None:
    """What the network sees of a picture, smaller; None where the file has gone since the bank was filled."""
    try:
        return pixels.prepare(clf.pixels.replace(size=THUMB), data.decode(source))
    except ImageError:
        return None


def first_layer(
    run: reporting.Run, clf: Classifier, variables: Variables
) -> tuple[list[Html], dict[str, Any]]:
    """A section on the first convolution's filters, and what result.json says; nothing where it does not read colours."""
    known = filters.kernels(variables["params"]["backbone"])
    first = next(
        (name for name, kernel in known.items() if kernel.shape[2] == 3 == len(clf.pixels.mean)),
        None,
    )
    if first is None:
        return [], {}
    kernel = filters.rgb_kernel(known[first], clf.pixels)
    tiles = filters.tiles(kernel)
    sheet = run.figure("filters", reporting.contact_sheet(map(enlarged, tiles), columns=8))
    text = (
        f"The {len(tiles)} filters of {first}, shape {kernel.shape}, in colour and in order: mid-grey is a weight of 0, and "
        "each is stretched by its own largest weight."
    )
    part = reporting.section(
        "The first convolution", grid(tiles, map(str, range(len(tiles)))), text=text
    )
    return [part], {
        "filters": {"kernel": first, "shape": list(kernel.shape), "png": f"figures/{sheet.name}"}
    }
