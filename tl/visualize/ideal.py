"""Ideal images with everything that is measured of them, and the files of a run.

`ideal` returns a value; `save` writes its images and returns what `result.json` holds. The page is
`tl.pages.ideal`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import data, inference, metrics, models, pixels, reporting
from tl.data import DataSpec
from tl.models import Classifier
from tl.visualize import exemplars, judge, objectives, render, specs
from tl.visualize.grid import (
    Cell,
    IdealSettings,
    Network,
    make_ascent,
    make_cells,
    network,
    transform_names,
)
from tl.visualize.specs import ObjectiveSpec

# Packaged networks with a classifier, which evaluate images that were optimized under another
# network.
HELD_OUT = ("efficientnet_lite1", "efficientnet_lite2", "squeezenet1_1", "efficientnet_lite0")
# Real images shown next to an ideal one, and their side in pixels (chosen, not tuned).
TOP, TOP_SIZE = 9, 96
# Seconds of the animation (chosen, not tuned).
SECONDS = 3.0

total_variation = jax.jit(objectives.total_variation)


class IdealResult(NamedTuple):
    """A grid of ideal images.

    Attributes:
      cells: what each image is optimized for.
      images: uint8[b s s 3], as a PNG holds them. All measurements are of these.
      render: start, path and scores of the optimization, NumPy arrays.
      result: JSON-ready: `images` (one row per cell), `judged_by`, `photographs`, `settings`, and
        `diversity` where a cell has replicates.
      top: objective -> the real images that activate it most.
      photograph: the photograph of the objectives or of the start, f32[s s 3] in [0, 1].
    """

    cells: list[Cell]
    images: np.ndarray
    render: render.Ideal
    result: dict[str, Any]
    top: Mapping[ObjectiveSpec, exemplars.Top] = {}
    photograph: np.ndarray | None = None


def ideal(
    networks: Sequence[Network],
    chosen: Sequence[ObjectiveSpec],
    settings: IdealSettings,
    *,
    held_out: Sequence[Network] = (),
    photograph: np.ndarray | None = None,
    data_set: DataSpec | None = None,
    attempt: reporting.Attempt = reporting.required,
) -> IdealResult:
    """Optimizes a grid of images by one compiled program and measures them.

    Args:
      networks: an ensemble. Objectives of classes are the mean over all of them, others read the
        first.
      chosen: the objectives.
      settings: the grid and how it is optimized.
      held_out: networks that take no part in the optimization and evaluate the images.
      photograph: f32[s s 3] in [0, 1], the start, or what inversions and caricatures read.
      data_set: real images, of which those that activate each objective most are found.
      attempt: runs the measurements that are not needed to show the images.

    Returns:
      The images and their measurements.

    Raises:
      ValueError: if all images are of units that stayed at 0, or if the objective became NaN.
    """
    clf, variables, _ = networks[0]
    cells = make_cells(chosen, settings)
    path = jax.tree.map(np.asarray, make_ascent(networks, cells, settings, photograph)())
    images = np.stack([reporting.as_uint8(image) for image in path.images])
    images01 = pixels.to_images01(images)
    values = objective_values(networks, cells, images, photograph)
    logits = inference.predict_logits(clf, variables, images) if clf.classes else None
    probabilities = None if logits is None else metrics.softmax(logits)
    judged = lambda: held_out_probabilities(held_out, cells, images)
    others = attempt("judges", judged, [{} for _ in cells])
    tv = np.asarray(total_variation(images01))
    small = images.shape[1] < judge.SMALLEST
    slopes = np.full(len(cells), np.nan) if small else judge.spectral_slope(images01)

    rows: list[dict[str, Any]] = []
    for i, (spec, weight, replicate) in enumerate(cells):
        p = None if probabilities is None else probabilities[i]
        unit = spec.index is not None
        rows.append(
            {
                "target": spec.word,
                "objective": spec.kind,
                "classes": list(spec.classes),
                "probability": None
                if p is None or not spec.classes
                else float(p[list(spec.classes)].sum()),
                "value": float(values[i]),
                "loss": -float(path.scores[-1, i]),
                "tv": float(tv[i]),
                "tv_weight": weight,
                "replicate": replicate,
                "spectral_slope": float(slopes[i]),
                "judges": others[i],
                "dead": unit and settings.steps > 0 and float(values[i]) == 0.0,
                "called": [] if p is None else inference.topk(clf, p, 3),
            }
        )
    if all(row["dead"] for row in rows):
        raise ValueError(dead_message(rows, settings))
    result: dict[str, Any] = {
        "images": rows,
        "judged_by": _judged_by(rows, networks),
        "photographs": attempt("photographs", lambda: photo_statistics(clf, images.shape[1]), {}),
        "settings": {
            **settings._asdict(),
            "tv": sorted({cell.tv for cell in cells}),
            "size": images.shape[1],
            "transforms": list(transform_names(settings, chosen)),
        },
    }
    if settings.count > 1:
        diversity = lambda: _diversities(networks[0], held_out, cells, images)
        result["diversity"] = attempt("diversity", diversity, [])
    top: dict[ObjectiveSpec, exemplars.Top] = {}
    if data_set is not None:
        real = data_set
        top = attempt("top_activating", lambda: top_activating(networks[0], chosen, real), {})
    return IdealResult(cells, images, path, result, top, photograph)


def dead_message(rows: Sequence[Mapping[str, Any]], settings: IdealSettings) -> str:
    """A message about the units that stayed at 0; "" if there are none."""
    dead = dict.fromkeys(row["target"] for row in rows if row["dead"])
    if not dead:
        return ""
    return (
        f"{', '.join(dead)} stayed at 0 for all {settings.steps} steps: the unit is dead for this "
        "start and has no gradient; pass it with `redirect=16`, or set another `seed` or "
        "`photograph`"
    )


def save(run: reporting.Run, ideal: IdealResult) -> dict[str, Any]:
    """Writes images, animations and scores of a run, and returns the content of `result.json`."""
    cells, result = ideal.cells, dict(ideal.result)
    settings, scores = result["settings"], ideal.render.scores
    for i in range(0, len(scores), max((len(scores) - 1) // 20, 1)):
        run.log({"step": i, "score": scores[i].tolist()})
    rows = []
    for i, cell in enumerate(cells):
        name = _name(cell, weights=len(settings["tv"]), count=settings["count"])
        film, frames = None, ideal.render.frames[:, i]
        if len(frames):
            film = _save_film(run, name, [ideal.render.start[i], *frames])
        rows.append(
            {"png": str(run.figure(name, ideal.images[i])), "film": film, **result["images"][i]}
        )
        if top := ideal.top.get(cell.spec):
            sheet = run.attempt("top_activating", functools.partial(_save_top, run, name, top), {})
            rows[-1] |= {"top_activating": sheet} if sheet else {}
    result["images"] = rows
    if ideal.photograph is not None:
        path = run.figure("photograph", ideal.photograph)
        result["photograph"] = {"png": run.relative(path)}
    columns = settings["count"] if settings["count"] > 1 else min(4, len(cells))
    sheet = lambda: run.figure("sheet", reporting.contact_sheet(ideal.images, columns=columns))
    run.attempt("sheet", sheet, None)
    return result


def _name(cell: Cell, *, weights: int, count: int) -> str:
    parts = [cell.spec.word.replace(":", "-")]
    parts += [f"tv{cell.tv:g}"] if weights > 1 else []
    parts += [f"{cell.replicate}"] if count > 1 else []
    return "-".join(parts)


def _save_film(run: reporting.Run, name: str, frames: Sequence[Any]) -> str | None:
    save = lambda: str(run.animation(name, frames, seconds=SECONDS))
    return run.attempt("film", save, None)


def _save_top(run: reporting.Run, name: str, top: exemplars.Top) -> dict[str, Any]:
    geometry = pixels.PixelSpec(size=TOP_SIZE, crop=1.0)
    thumbs = [pixels.prepare(geometry, data.decode(source)) for source, _ in top]
    path = run.figure(f"{name}-top-activating", reporting.contact_sheet(thumbs, columns=3))
    listed = [{"path": str(source), "activation": value} for source, value in top]
    return {"png": run.relative(path), "images": listed}


# ---- measurements ----


def objective_values(
    networks: Sequence[Network],
    cells: Sequence[Cell],
    images: np.ndarray,
    photograph: np.ndarray | None,
) -> np.ndarray:
    """The objective of each image, without costs and transforms.

    Args:
      networks, cells, photograph: as for `ideal`.
      images: uint8[b s s 3].

    Returns:
      f32[b].
    """
    chosen, first = [cell.spec for cell in cells], networks[0]
    shapes = specs.endpoint_shapes(first.clf, first.variables, images.shape[1])
    endpoints = specs.photograph_endpoints(chosen)
    photo_maps: dict[str, Any] = {}
    if photograph is not None:
        photo_maps = specs.photograph_maps(first.clf, first.variables, photograph, endpoints)
    objective, targets = specs.program([net.clf for net in networks], chosen, shapes, photo_maps)

    @jax.jit
    def measure(variables: Any, targets: Any, images01: jax.Array) -> jax.Array:
        def one(row: Any) -> jax.Array:
            target, image = jax.tree.map(lambda leaf: leaf[None], row)
            outputs: Any = tuple(
                net.clf.apply(own_variables, image)
                for net, own_variables in zip(networks, variables, strict=True)
            )
            return objective(target)(outputs, image)[0]

        return jax.lax.map(one, (targets, images01))

    variables = tuple(net.variables for net in networks)
    return np.asarray(measure(variables, targets, pixels.to_images01(images)))


def held_out_networks(networks: Sequence[Network], names: Sequence[str]) -> list[Network]:
    """Networks that take no part in the optimization.

    Args:
      networks: those that take part.
      names: as `tl.load` takes them; ["auto"] is each of `HELD_OUT` whose weights are available.

    Raises:
      ValueError: if a name is unknown or takes part.
    """
    auto, held_out = list(names) == ["auto"], []
    optimized = {net.clf.arch for net in networks}
    for name in HELD_OUT if auto else names:
        try:
            clf, variables = models.load(name)
        except ValueError:
            if auto:
                continue
            raise
        if clf.arch in optimized:
            if auto:
                continue
            raise ValueError(
                f"{name} takes part in the optimization: got it among the held-out networks, "
                "expected a network that does not"
            )
        held_out.append(network(clf.with_dtype(networks[0].clf.dtype), variables))
    return held_out


def held_out_probabilities(
    held_out: Sequence[Network], cells: Sequence[Cell], images: np.ndarray
) -> list[dict[str, float]]:
    """The probability of each image's class under held-out networks.

    Returns:
      One dict per image: architecture -> probability. A network without the class is left out.
    """
    rows: list[dict[str, float]] = [{} for _ in cells]
    for net in held_out:
        # A held-out network reads the image to its edges, at its own size.
        whole, probabilities = net.clf.with_pixels(crop=1.0), None
        for i, cell in enumerate(cells):
            if not cell.spec.classes:
                continue
            try:
                classes = list(inference.class_table(net.clf).find(cell.spec.word))
            except ValueError:
                continue
            if probabilities is None:
                resized = np.stack([whole.prepare(image) for image in images])
                logits = inference.predict_logits(net.clf, net.variables, resized)
                probabilities = metrics.softmax(logits)
            rows[i][net.clf.arch] = float(probabilities[i, classes].sum())
    return rows


def top_activating(
    first: Network, chosen: Sequence[ObjectiveSpec], data_set: DataSpec
) -> dict[ObjectiveSpec, exemplars.Top]:
    """The nine images of a data set that activate each class, channel or neuron most.

    A neuron's images are those of its channel; objectives without a class or channel are left out.
    """
    paths = [example.path for example in data_set.examples]
    top: dict[ObjectiveSpec, exemplars.Top] = {}
    for spec in dict.fromkeys(chosen):
        if spec.classes:
            mask = np.isin(np.arange(len(inference.class_table(first.clf))), spec.classes)[None]
            (top[spec],) = exemplars.top_classes(first.clf, first.loaded, paths, mask, TOP)
        elif spec.index is not None:
            (top[spec],) = exemplars.top_channels(
                first.clf, first.loaded, paths, spec.endpoint, [spec.index], TOP
            )
    return top


def photo_statistics(clf: Classifier, size: int) -> dict[str, Any]:
    """Total variation and spectral slope of the packaged photographs: n, and mean and range.

    Empty if the photographs are not installed, or if a side has fewer than 32 pixels.
    """
    if size < judge.SMALLEST:
        return {}
    try:
        data.photographs()
    except ValueError:
        return {}
    tv, slopes = _photo_measures(clf.pixels.replace(size=size))
    summary = lambda v: {"mean": float(v.mean()), "low": float(v.min()), "high": float(v.max())}
    return {"n": len(tv), "spectral_slope": summary(slopes), "tv": summary(tv)}


@functools.cache
def _photo_measures(spec: pixels.PixelSpec) -> tuple[np.ndarray, np.ndarray]:
    """Total variation f32[n] and spectral slope f64[n] of the packaged photographs."""
    images = [pixels.prepare(spec, data.decode(photo.path)) for photo in data.photographs()]
    images01 = pixels.to_images01(np.stack(images))
    return np.asarray(total_variation(images01)), judge.spectral_slope(images01)


def _judged_by(rows: Sequence[dict[str, Any]], networks: Sequence[Network]) -> dict[str, Any]:
    """Which networks the probabilities are of, and their means."""
    archs = list(dict.fromkeys(arch for row in rows for arch in row["judges"]))
    mean = lambda numbers: float(np.mean(numbers)) if len(numbers) else None
    return {
        "network": networks[0].clf.arch,
        "climbed_under": [net.clf.arch for net in networks],
        "on": "the PNG as read back, without transforms",
        "networks": {
            arch: mean([row["judges"][arch] for row in rows if arch in row["judges"]])
            for arch in archs
        },
        "mean": mean([p for row in rows for p in row["judges"].values()]),
        "note": "networks that took no part",
    }


def _diversities(
    first: Network, held_out: Sequence[Network], cells: Sequence[Cell], images: np.ndarray
) -> list[dict[str, Any]]:
    """The diversity of the images of each objective and weight.

    Features are those of the first held-out network, if there is one, or of the network itself.
    """
    net = held_out[0] if held_out else first
    whole = net.clf.with_pixels(crop=1.0)
    resized = pixels.to_images01(np.stack([whole.prepare(image) for image in images]))
    forward = jax.jit(lambda variables, x: net.clf.apply(variables, x).features)
    features = np.concatenate([np.asarray(forward(net.variables, x[None])) for x in resized])
    groups: dict[tuple[str, float], list[int]] = {}
    for i, cell in enumerate(cells):
        groups.setdefault((cell.spec.word, cell.tv), []).append(i)
    return [
        {
            "target": word,
            "tv_weight": tv,
            "diversity": judge.diversity(features[rows]),
            "by": net.clf.arch,
        }
        for (word, tv), rows in groups.items()
    ]
