"""Feature maps of single images and feature banks of a data set, as the files of a run.

The functions write images into `figures/` and return rows of `result.json`; the page is
`tl.pages.activations`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl import data, inference, pixels, reporting
from tl.data import DataSpec, ImageError, Source
from tl.inference import features
from tl.models import Classifier
from tl.training import inputs
from tl.types import Array, Variables
from tl.visualize import exemplars, filters, maps

# Pixels per side, at least, of a channel's map in a sheet (chosen, not tuned).
TILE = 84
# Side of a top-activating image in a sheet, in pixels (chosen, not tuned).
THUMB = 84
# Channels per row of a sheet (chosen, not tuned).
COLUMNS = 8
# Channels whose top-activating images are searched (chosen, not tuned).
SEARCHED = 6


def endpoints(clf: Classifier, variables: Variables, names: Sequence[str]) -> list[str]:
    """The named endpoints, each once; every stage by default.

    "features" is allowed and stands for the map of the last stage.

    Raises:
      ValueError: if the network has no such endpoint. Names the nearest.
    """
    return list(features.widths(clf, variables, *(names or clf.spec.endpoints)))


@functools.cache
def forward(
    clf: Classifier, names: tuple[str, ...]
) -> Callable[[Variables, Array], dict[str, jax.Array]]:
    """A jitted function from one image f32[1 s s c] to the maps f32[h w c] of named endpoints."""

    @jax.jit
    def activations(variables: Variables, images01: jax.Array) -> dict[str, jax.Array]:
        outputs = clf.apply(variables, images01).endpoints
        outputs = {**outputs, "features": outputs[clf.spec.endpoints[-1]]}
        return {name: outputs[name][0].astype(jnp.float32) for name in names}

    return activations


def fill_banks(
    clf: Classifier,
    variables: Variables,
    data_set: DataSpec,
    names: Sequence[str],
    *,
    batch_size: int = 16,
) -> dict[str, Any]:
    """Fills the feature bank of every endpoint, or reuses it.

    Args:
      clf, variables: the network.
      data_set: the images.
      names: endpoints, or "features".
      batch_size: images per forward pass.

    Returns:
      `banks`, one row per endpoint, the `n`, `dim`, `bank` and `reused` of the last, and `skipped`.
    """
    rows, skipped = [], []
    for name in names:
        bank = features.extract(
            clf,
            variables,
            inputs.sources(data_set),
            endpoint=name,
            batch_size=batch_size,
            progress=lambda batches, total: reporting.progress(batches, total, "batches"),
        )
        n, dim = int(bank.valid.sum()), bank.values.shape[1]
        rows.append(
            {"endpoint": name, "n": n, "dim": dim, "bank": str(bank.bank), "reused": bank.reused}
        )
        skipped = bank.skipped  # every bank skips the same
    last = {key: rows[-1][key] for key in ("n", "dim", "bank", "reused")}
    return {
        **last,
        "banks": rows,
        "skipped": [skip._asdict() for skip in (*data_set.skipped, *skipped)],
    }


def show(
    run: reporting.Run,
    clf: Classifier,
    variables: Variables,
    images: inference.LoadedImages,
    names: Sequence[str],
    *,
    topk: int,
    data_set: DataSpec | None = None,
    batch_size: int = 16,
) -> dict[str, Any]:
    """Writes the maps of each image at each endpoint.

    Args:
      run: the run, whose `figures/` holds the maps.
      clf, variables: the network.
      images: the images.
      names: endpoints, or "features".
      topk: channels per endpoint, those with the highest mean activation.
      data_set: real images, of which those that activate the strongest channels most are shown.
      batch_size: images per forward pass over the data set.

    Returns:
      `shown`, one row per image and endpoint; `inputs`, the images as the network reads them; and
      `filters`, where a named endpoint belongs to the first stage.
    """
    rows, read, on_device = [], [], jax.device_put(variables)
    for path, image in zip(images.paths, images.images, strict=True):
        figure = run.figure(f"{path.stem}-input", image)
        read.append({"picture": str(path), "png": run.relative(figure)})
        outputs = forward(clf, tuple(names))(on_device, pixels.to_images01(image[None]))
        for name in names:
            values = np.asarray(outputs[name])
            row = save_maps(run, clf, name, values, image=path.stem, topk=topk)
            row["picture"] = str(path)
            if data_set is not None:
                top = exemplars.top_channels(
                    clf,
                    variables,
                    inputs.sources(data_set),
                    name,
                    maps.strongest(values, SEARCHED).tolist(),
                    batch_size=batch_size,
                )
                row["driven"] = save_exemplars(run, clf, name, values, top, image=path.stem)
            rows.append(row)
    first = any(name.partition("/")[0] == clf.spec.endpoints[0] for name in names)
    about = save_first_layer(run, clf, variables) if first else {}
    return {"shown": rows, "inputs": read, **about}


def save_maps(
    run: reporting.Run, clf: Classifier, endpoint: str, values: np.ndarray, *, image: str, topk: int
) -> dict[str, Any]:
    """Writes the strongest channels of one image's map as a sheet, and the whole map as one image.

    Args:
      run: the run.
      clf: the network.
      endpoint: the endpoint.
      values: its map, f32[h w c].
      image: the image's name.
      topk: channels in the sheet, those with the highest mean activation.

    Returns:
      The row of `result.json`.
    """
    order = maps.strongest(values, topk)
    means = values.mean(axis=(0, 1))[order]
    tiles = map(enlarge, maps.tiles(values, order))
    sheet = run.figure(f"{endpoint}-{image}", reporting.contact_sheet(tiles, columns=COLUMNS))
    flat = run.figure(f"{endpoint}-{image}-flat", maps.flat(values))
    return {
        "picture": image,
        "endpoint": endpoint,
        "stage": clf.spec.endpoints[-1] if endpoint == "features" else endpoint,
        "shape": list(values.shape),
        "strongest": [
            {"channel": int(i), "mean": float(m)} for i, m in zip(order, means, strict=True)
        ],
        "png": run.relative(sheet),
        "flat": run.relative(flat),
    }


def save_exemplars(
    run: reporting.Run,
    clf: Classifier,
    endpoint: str,
    values: np.ndarray,
    top: Sequence[exemplars.Top],
    *,
    image: str,
) -> list[dict[str, Any]]:
    """Writes the top-activating images of the strongest channels of a map.

    Args:
      run, clf, endpoint, values, image: as for `save_maps`.
      top: for each channel the images of `exemplars.top_channels`.

    Returns:
      One row of `result.json` per channel.
    """
    order, rows = maps.strongest(values, len(top)), []
    for channel, tile, images in zip(order, maps.tiles(values, order), top, strict=True):
        name = f"{endpoint}-{image}-channel-{channel}"
        row = {
            "channel": int(channel),
            "mean": float(values[..., channel].mean()),
            "pictures": [{"picture": str(source), "mean": mean} for source, mean in images],
        }
        thumbs = [thumb for source, _ in images if (thumb := thumbnail(clf, source)) is not None]
        if thumbs:
            sheet = reporting.contact_sheet(thumbs, columns=3)
            row["png"] = run.relative(run.figure(name, sheet))
            row["map_png"] = run.relative(run.figure(f"{name}-map", enlarge(tile)))
        rows.append(row)
    return rows


def save_first_layer(run: reporting.Run, clf: Classifier, variables: Variables) -> dict[str, Any]:
    """Writes the first convolution's filters as color tiles; {} if it reads no color images."""
    kernels = filters.kernels(variables["params"]["backbone"])
    color = [name for name, kernel in kernels.items() if kernel.shape[2] == 3]
    if not color or len(clf.pixels.mean) != 3:
        return {}
    kernel = kernels[color[0]]
    tiles = map(enlarge, filters.tiles(filters.rgb_kernel(kernel, clf.pixels)))
    sheet = run.figure("filters", reporting.contact_sheet(tiles, columns=COLUMNS))
    shape = list(kernel.shape)
    return {"filters": {"kernel": color[0], "shape": shape, "png": run.relative(sheet)}}


def enlarge(tile: np.ndarray, side: int = TILE) -> np.ndarray:
    """A small image with each pixel drawn as a square, at least `side` pixels high."""
    factor = max(1, -(-side // tile.shape[0]))
    return np.repeat(np.repeat(tile, factor, axis=0), factor, axis=1)


def thumbnail(clf: Classifier, source: Source) -> np.ndarray | None:
    """The image as the network reads it, smaller; None if the file no longer exists."""
    try:
        return pixels.prepare(clf.pixels.replace(size=THUMB), data.decode(source))
    except ImageError:
        return None
