"""Two sets of weights of one network compared by stages, by filters, and by ideal images.

`compare` returns a value; `save` writes its images and returns what `result.json` holds. The page
is `tl.pages.compare`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import metrics, models, paths, pixels, reporting
from tl.data import DataSpec, Source
from tl.inference import features
from tl.models import Classifier
from tl.training import inputs
from tl.types import Params, Variables
from tl.visualize import filters, grid, objectives, specs
from tl.visualize.filters import FilterChange
from tl.visualize.specs import ObjectiveSpec, Shapes

# Number of filters in `result.json`: those that changed most (chosen, not tuned).
LISTED = 1000
# Stages whose channels are shown by default: the last ones that changed (chosen, not tuned).
STAGES = 2
# lucid's number of first steps in which gradients pass dead units.
REDIRECT = 16
WHEN = ("before", "after")


class Weights(NamedTuple):
    """A network without its head, and one of its two sets of weights."""

    clf: Classifier
    variables: Variables

    @property
    def params(self) -> Params:
        """The backbone's parameters."""
        return self.variables["params"]["backbone"]

    def shapes(self) -> Shapes:
        """The shapes of the endpoints."""
        return specs.endpoint_shapes(self.clf, self.variables, self.clf.pixels.size)


class Comparison(NamedTuple):
    """A comparison of two sets of weights.

    Attributes:
      result: JSON-ready: `cka`, `same_bits`, `moved`, `layers`, `unmoved_layers`, `first_layer`,
        `channels`, `n`, `skipped`, `widths`, `arch`.
      channels: "before" and "after" -> ideal images uint8[b s s 3], one per row of
        `result["channels"]`.
      first_layer: "before" and "after" -> the first layer's filters as a contact sheet; empty if
        they did not change.
    """

    result: dict[str, Any]
    channels: dict[str, np.ndarray]
    first_layer: dict[str, np.ndarray]


# ---- the two sets of weights ----


def load_pair(model: str, before: str = "") -> tuple[Classifier, Classifier, Weights, Weights]:
    """Loads a fine-tuned classifier and the weights that it is compared with.

    Args:
      model: the folder of a classifier that `transfer` saved.
      before: NAME, NAME.TAG, folder or file of the other weights. Default: the pretrained weights
        that training began with.

    Returns:
      The fine-tuned classifier, the other one, and the weights before and after, with the same
      image geometry.

    Raises:
      ValueError: if `model` holds no classifier, `before` is of another architecture, or its
        default cannot be found.
    """
    if not (Path(model) / models.ARTIFACT).is_file():
        raise ValueError(
            f"`model={model}` holds no saved classifier; give a folder that the transfer "
            "experiment wrote"
        )
    clf, variables = models.load(model)
    name, weights = (before, "") if before else models.pretrained_source(clf)
    if Path(name).is_file():
        name, weights = clf.arch, name
    old, old_variables = models.load(
        name, weights=weights or None, in_channels=len(clf.pixels.mean)
    )
    if old.arch != clf.arch:
        raise ValueError(
            f"`before={before}` is {old.arch} and `model={model}` is {clf.arch}: expected weights "
            "of one architecture"
        )
    return clf, old, *pair(clf, variables, old, old_variables)


def pair(
    clf: Classifier, variables: Variables, old: Classifier, old_variables: Variables
) -> tuple[Weights, Weights]:
    """Both sets of weights without heads: geometry of `clf`, and their own normalization."""
    geometry = {
        name: getattr(clf.pixels, name) for name in ("size", "crop", "resize", "interpolation")
    }
    bare = dataclasses.replace(clf, head=None, classes=None)
    old_bare = dataclasses.replace(bare, pixels=old.pixels.replace(**geometry))
    if old_bare.pixels == bare.pixels:
        old_bare = bare  # one network, so that it compiles once
    parts = [
        {name: {"backbone": tree.get("backbone", {})} for name, tree in both.items()}
        for both in (old_variables, variables)
    ]
    return Weights(old_bare, parts[0]), Weights(bare, parts[1])


# ---- all of it ----


def compare(
    before: Weights,
    after: Weights,
    data_set: DataSpec,
    *,
    endpoints: Sequence[str] = (),
    channel: Sequence[str] = (),
    channels: int = 4,
    steps: int = grid.STEPS,
    limit: int = 500,
    seed: int = 0,
    attempt: reporting.Attempt = reporting.required,
) -> Comparison:
    """Compares two sets of weights. All arguments are checked before anything is computed.

    Args:
      before, after: the two sets of weights.
      data_set: the images on which stages are compared.
      endpoints: the endpoints to compare. Default: every stage.
      channel: "ENDPOINT:INDEX" of channels whose ideal images are made. Default: those whose
        filters changed most.
      channels: number of channels if `channel` is empty.
      steps: optimization steps of an ideal image.
      limit: images drawn from the data set, at most.
      seed: seed of the draw and of the ideal images.
      attempt: runs the optimization of the ideal images, which the comparison does not need.

    Raises:
      ValueError: if an endpoint or channel is unknown, or fewer than two images can be read.
    """
    clf, shapes = after.clf, after.shapes()
    stages = [specs.check_endpoint(clf, shapes, name.strip()) for name in endpoints]
    stages = stages or list(clf.spec.endpoints)
    chosen = [specs.parse_objective(clf, shapes, f"channel:{word.strip()}") for word in channel]
    sources = sample(data_set, limit, seed)
    rows = filters.changes(before.params, after.params)
    unchanged = unchanged_layers(before, after)
    same = [name for name in stages if same_bits(before, after, unchanged, name)]
    cka, n, skipped = stage_similarity(before, after, sources, stages, same)
    chosen = chosen or most_changed_channels(rows, after, channels)
    optimize = lambda: ideal_images(before, after, chosen, steps=steps, seed=seed)
    ideal = attempt("channels", optimize, {}) if chosen else {}
    chosen = chosen if ideal else []
    first, sheets = first_layer(before, after)
    result = {
        "arch": clf.arch,
        "cka": cka,
        "same_bits": same,
        "widths": {name: shapes[name][-1] for name in stages},
        "n": n,
        "moved": [
            {
                "layer": row.name.removesuffix("/kernel"),
                "filter": row.index,
                "relative": row.relative,
            }
            for row in rows[:LISTED]
            if row.relative > 0
        ],
        "layers": mean_by_layer(rows, clf.spec.endpoints),
        "unmoved_layers": unchanged,
        "first_layer": first,
        "channels": _channel_rows(before, after, chosen, ideal, rows),
        "skipped": [*(skip._asdict() for skip in data_set.skipped), *skipped],
    }
    return Comparison(result, ideal, sheets)


def save(run: reporting.Run, comparison: Comparison) -> dict[str, Any]:
    """Writes the images into the folder of a run, and returns what `result.json` holds."""
    result = dict(comparison.result)
    result["channels"] = [dict(row) for row in result["channels"]]
    for when, images in comparison.channels.items():
        for row, image in zip(result["channels"], images, strict=True):
            name = f"{row['endpoint']}-{row['channel']}-{when}"
            row[f"{when}_png"] = str(run.figure(name, image))
    if result["first_layer"]:
        result["first_layer"] = dict(result["first_layer"])
    for when, sheet in comparison.first_layer.items():
        path = run.figure(f"first-layer-{when}", sheet)
        result["first_layer"][f"{when}_png"] = run.relative(path)
    return result


# ---- stages ----


def sample(data_set: DataSpec, limit: int, seed: int) -> list[Source]:
    """At most `limit` images of a data set, drawn at random, in the order of the set.

    Raises:
      ValueError: if the set has fewer than two images.
    """
    sources = inputs.sources(data_set)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(sources))[:limit])
    if len(drawn) < 2:
        raise ValueError(
            f"{data_set.name} holds {len(drawn)} images; expected at least 2 to compare stages on"
        )
    return [sources[i] for i in drawn]


def same_bits(before: Weights, after: Weights, unchanged: Sequence[str], endpoint: str) -> bool:
    """Whether no layer up to an endpoint's stage changed, so that its activations are equal."""
    stages = after.clf.spec.endpoints
    stage = endpoint.split("/")[0]
    below = stages[: stages.index(stage) + 1] if stage in stages else stages
    changed = {layer.split("/")[0] for layer in layers(after.variables) if layer not in unchanged}
    return before.clf is after.clf and not changed & set(below)


def stage_similarity(
    before: Weights,
    after: Weights,
    sources: Sequence[Source],
    endpoints: Sequence[str],
    same: Collection[str],
) -> tuple[dict[str, float | None], int, list[dict[str, str]]]:
    """Linear CKA of each endpoint's pooled activations under both weights.

    Args:
      before, after: the two sets of weights.
      sources: the images.
      endpoints: the endpoints.
      same: endpoints whose activations are equal bit by bit: their CKA is 1, and they are computed
        once.

    Returns:
      Endpoint -> CKA in [0, 1], None where the activations are the same for all images; the number
      of images that could be read; and those that could not.
    """
    cka: dict[str, float | None] = {}
    valid, skipped = np.zeros(0, bool), ()
    for endpoint in reporting.progress(endpoints, len(endpoints), "stages"):
        old = features.extract(*before, sources, endpoint=endpoint)
        new = old if endpoint in same else features.extract(*after, sources, endpoint=endpoint)
        valid, skipped = old.valid & new.valid, new.skipped
        if valid.sum() < 2:
            raise ValueError(
                f"{valid.sum()} of {len(sources)} images can be read; expected at least 2: run "
                "doctor on the data set"
            )
        x, y = old.values[valid], new.values[valid]
        constant = (x == x[0]).all() or (y == y[0]).all()
        cka[endpoint] = None if constant else 1.0 if endpoint in same else metrics.cka(x, y)
    return cka, int(valid.sum()), [skip._asdict() for skip in skipped]


# ---- filters ----


def layers(variables: Variables) -> dict[str, dict[str, Any]]:
    """The backbone's leaves by layer: a convolution, its bias, its BatchNorm and statistics."""
    by_layer: dict[str, dict[str, Any]] = {}
    for name, leaf in paths.flatten(variables).items():
        layer = name.partition("/backbone/")[2].rpartition("/")[0].removesuffix("/norm")
        by_layer.setdefault(layer, {})[name.replace("/", " ")] = leaf
    return by_layer


def unchanged_layers(before: Weights, after: Weights) -> list[str]:
    """The layers of which every leaf is equal bit by bit."""
    old, new = layers(before.variables), layers(after.variables)
    return [layer for layer in old if paths.digest(old[layer]) == paths.digest(new[layer])]


def mean_by_layer(rows: Iterable[FilterChange], stages: Sequence[str]) -> dict[str, float]:
    """The mean relative change of each layer's filters, in the order of the forward pass."""
    by_layer: dict[str, list[float]] = {}
    for row in rows:
        by_layer.setdefault(row.name.removesuffix("/kernel"), []).append(row.relative)
    order = lambda layer: (stages.index(layer.split("/")[0]), filters.natural_order(layer))
    return {layer: float(np.mean(by_layer[layer])) for layer in sorted(by_layer, key=order)}


def first_layer(
    before: Weights, after: Weights
) -> tuple[dict[str, Any] | None, dict[str, np.ndarray]]:
    """The first layer's filters under both weights as sheets of color tiles, if they changed.

    Returns:
      `{"kernel", "side"}` and "before" and "after" -> sheet uint8[h w 3]; None and {} if no filter
      changed.
    """
    new = filters.kernels(after.params)
    name = next((name for name, kernel in new.items() if kernel.shape[2] == 3), None)
    if name is None or np.array_equal(filters.kernels(before.params)[name], new[name]):
        return None, {}
    sheets = {}
    for when, weights in zip(WHEN, (before, after), strict=True):
        kernel = filters.rgb_kernel(filters.kernels(weights.params)[name], weights.clf.pixels)
        sheets[when] = reporting.contact_sheet(filters.tiles(kernel), columns=8, gap=1)
    return {"kernel": name, "side": new[name].shape[0]}, sheets


# ---- channels ----


def most_changed_channels(
    rows: Sequence[FilterChange], after: Weights, n: int
) -> list[ObjectiveSpec]:
    """The `n` channels whose filters changed most, of the last two stages that changed."""
    shapes, groups = after.shapes(), []
    for stage in reversed(after.clf.spec.endpoints):
        if ranked := channel_changes(rows, after.params, stage, shapes):
            groups.append(ranked)
    groups = groups[:STAGES]
    shares = [n - n // 2, n // 2] if len(groups) == STAGES else [n]
    return [
        ObjectiveSpec("channel", f"{stage}:{index}", stage, index=index)
        for group, share in zip(groups, shares, strict=False)
        for stage, index in list(group)[:share]
    ]


def channel_changes(
    rows: Sequence[FilterChange], params: Params, endpoint: str, shapes: Shapes
) -> dict[tuple[str, int], float]:
    """(endpoint, channel) -> relative change of its filter, without 0, the largest first."""
    changed = {(row.name, row.index): row.relative for row in rows if row.relative > 0}
    writers = filters.writers(params, endpoint, shapes[endpoint][-1])
    by_channel = {(endpoint, i): changed[w] for i, w in enumerate(writers) if w in changed}
    return dict(sorted(by_channel.items(), key=lambda item: -item[1]))


def ideal_images(
    before: Weights, after: Weights, chosen: Sequence[ObjectiveSpec], *, steps: int, seed: int
) -> dict[str, np.ndarray]:
    """Ideal images uint8[b s s 3] of channels under both weights, from the noise of `ideal`."""
    settings = grid.IdealSettings(steps=steps, redirect=min(REDIRECT, steps), frames=0, seed=seed)
    cells, images, ascents = grid.make_cells(chosen, settings), {}, {}
    for when, weights in zip(WHEN, (before, after), strict=True):
        network = grid.network(*weights)
        if weights.clf not in ascents:
            ascents[weights.clf] = grid.make_ascent([network], cells, settings)
        path = ascents[weights.clf]((network.variables,))
        images[when] = np.stack([reporting.as_uint8(image) for image in np.asarray(path.images)])
    return images


def activations(
    weights: Weights, chosen: Sequence[ObjectiveSpec], images: np.ndarray
) -> list[float]:
    """The mean activation of each objective's channel on its image, uint8[b h w 3]."""
    endpoints = tuple(dict.fromkeys(spec.endpoint for spec in chosen))
    means = _pooled(weights.clf, endpoints)(weights.variables, pixels.to_images01(images))
    return [float(means[spec.endpoint][i, spec.index]) for i, spec in enumerate(chosen)]


@functools.cache
def _pooled(clf: Classifier, endpoints: tuple[str, ...]) -> Any:
    """Endpoint -> f32[b c], the mean over its map, compiled once for both sets of weights."""

    def means(variables: Variables, images01: jax.Array) -> dict[str, jax.Array]:
        output = clf.apply(variables, images01)
        maps = {end: objectives.activations(output, end) for end in endpoints}
        return {end: jnp.mean(values, axis=(1, 2)) for end, values in maps.items()}

    return jax.jit(means)


def _channel_rows(
    before: Weights,
    after: Weights,
    chosen: Sequence[ObjectiveSpec],
    ideal: Mapping[str, np.ndarray],
    rows: Sequence[FilterChange],
) -> list[dict[str, Any]]:
    """The result's rows: the change of each channel's filter, and its activations."""
    shapes, changed = after.shapes(), {}
    for endpoint in {spec.endpoint for spec in chosen}:
        changed |= channel_changes(rows, after.params, endpoint, shapes)
    table: list[dict[str, Any]] = [
        {
            "endpoint": spec.endpoint,
            "channel": spec.index,
            "relative": changed.get((spec.endpoint, spec.index or 0)),
        }
        for spec in chosen
    ]
    for drawn, images in ideal.items():
        for when, weights in zip(WHEN, (before, after), strict=True):
            key = f"activation_{drawn}" if drawn == when else f"{drawn}_png_{when}"
            for row, value in zip(table, activations(weights, chosen, images), strict=True):
                row[key] = value
    return table


def cka_in_words(cka: float | None, same: bool) -> str:
    """A CKA as displayed, in which equal bits and nearly equal activations stay distinct."""
    if cka is None:
        return "the same for all images"
    return "1, the same bits" if same else f"{cka:.4f}"
