"""Before and after fine-tuning: how alike the stages are, which filters moved, and the same channels under both weights.

  ./launch.sh compare --model=DIR --data=folder:PICTURES
  ./launch.sh compare --model=DIR --data=folder:PICTURES --before=NAME --channel=stage7:12,top:881

`--before` is by default the published weights that `transfer` began from. Frozen layers are compared bit by bit. On 500 cats
and dogs, EfficientNet-Lite0 before and after one epoch of `--tune=last:1`: CKA of `stage7` 0.959, of `top` 0.861; the 45 layers
below are the same bits.
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
from absl import flags

from tl import cli, data, inference, metrics, models, paths, pixels, reporting
from tl.data import DataSpec, Source
from tl.inference import features
from tl.models import Classifier
from tl.pages import common
from tl.reporting import Html, tag
from tl.training import inputs
from tl.types import Variables
from tl.visualize import filters, grid, images, objectives, render, specs
from tl.visualize.filters import Moved
from tl.visualize.specs import KINDS, ObjectiveSpec

FLAGS = flags.FLAGS
SHOWN, KEPT = 20, 1000  # of the filters that moved most, in the table and in result.json
STAGES = 2  # of the last that moved, whose channels are shown where none are named
REDIRECT = 16  # first steps in which gradients pass dead units, as lucid: what moved most may be off in noise
WHEN = ("before", "after")


class Weights(NamedTuple):
    """A network without its head, and one of its two sets of weights."""

    clf: Classifier
    variables: Variables

    @property
    def params(self) -> Any:
        return self.variables["params"]["backbone"]


Ends = Mapping[str, tuple[int, ...]]
"""Endpoint -> (h, w, c)."""


def ends_of(weights: Weights) -> Ends:
    """The endpoints' shapes, without computing anything."""
    return specs.shapes(weights.clf, weights.variables, weights.clf.pixels.size)


def define_flags() -> None:
    flags.DEFINE_string("model", None, "Folder of a classifier saved by transfer.", required=True)
    flags.DEFINE_string("data", None, f"{', '.join(data.names())}.", required=True)
    flags.DEFINE_string(
        "before",
        "",
        "NAME, NAME.TAG, FOLDER or FILE of the weights before. Default: what --model was learned from.",
    )
    flags.DEFINE_list("endpoints", [], "Whose pooled maps are compared. Default: every stage.")
    flags.DEFINE_integer(
        "channels", 4, "Channels shown under both weights; 0 for none.", lower_bound=0
    )
    flags.DEFINE_list(
        "channel",
        [],
        "ENDPOINT:INDEX of channels to show. Default: those whose filters moved most.",
    )
    flags.DEFINE_integer(
        "steps", grid.STEPS, "Of the climb to a channel's ideal image.", lower_bound=0
    )
    flags.DEFINE_integer(
        "limit", 500, "Pictures of --data at most, drawn at random.", lower_bound=2
    )


# --- what is compared --------------------------------------------------------------------------------------------------


def load_pair(model: str, before: str) -> tuple[Classifier, Classifier, Weights, Weights]:
    """The fine-tuned and the pretrained classifier, and the two sets of weights on the same pictures: before, after."""
    if not (Path(model) / models.ARTIFACT).is_file():
        raise ValueError(
            f"--model={model}: no saved classifier there; give a folder that `transfer` wrote"
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
            f"--model={model} is {clf.arch}, and --before={before} is {old.arch}; wanted the same network"
        )
    return clf, old, *pair(clf, variables, old, old_variables)


def pair(
    clf: Classifier, variables: Variables, old: Classifier, old_variables: Variables
) -> tuple[Weights, Weights]:
    """Before and after without heads, on the same pictures: `clf`'s crop, each in its own weights' normalisation."""
    seen = {name: getattr(clf.pixels, name) for name in ("size", "crop", "resize", "interpolation")}
    bare = dataclasses.replace(clf, head=None, classes=None)
    old_bare = dataclasses.replace(bare, pixels=old.pixels.replace(**seen))
    if old_bare.pixels == bare.pixels:
        old_bare = bare  # one network, so that it compiles once
    parts = [
        {name: {"backbone": tree.get("backbone", {})} for name, tree in both.items()}
        for both in (old_variables, variables)
    ]
    return Weights(old_bare, parts[0]), Weights(bare, parts[1])


def sample(spec: DataSpec, limit: int, seed: int) -> list[Source]:
    """At most `limit` pictures of a set, drawn at random, in their order."""
    sources = inputs.sources(spec)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(sources))[:limit])
    if len(drawn) < 2:
        raise ValueError(
            f"{spec.name} holds {len(drawn)} pictures; wanted at least 2 to compare what is made of them"
        )
    return [sources[i] for i in drawn]


def known(clf: Classifier, endpoint: str, ends: Ends) -> str:
    """The endpoint's name, if it is one."""
    if endpoint not in ends:
        raise ValueError(
            f"{clf.arch} has no endpoint {endpoint!r}; nearest: {paths.nearest(endpoint, ends)}"
        )
    return endpoint


def farthest(
    rows: Sequence[Moved], params: Any, stages: Sequence[str], ends: Ends, n: int
) -> list[ObjectiveSpec]:
    """Of the last stages whose channels' filters moved, the `n` channels whose filters moved most, the last stage first."""
    groups = [
        ranked for stage in reversed(stages) if (ranked := by_move(rows, params, stage, ends))
    ][:STAGES]
    shares = [n - n // 2, n // 2] if len(groups) == STAGES else [n]
    return [
        ObjectiveSpec("channel", f"{stage}:{index}", stage, index=index)
        for group, share in zip(groups, shares, strict=False)
        for (stage, index) in list(group)[:share]
    ]


def by_move(
    rows: Sequence[Moved], params: Any, endpoint: str, ends: Ends
) -> dict[tuple[str, int], float]:
    """How far the filter that writes each channel of an endpoint moved, the farthest first; those that moved alone."""
    far = {(row.name, row.index): row.relative for row in rows if row.relative > 0}
    writers = filters.writers(params, endpoint, ends[endpoint][-1])
    moved = {(endpoint, i): far[writer] for i, writer in enumerate(writers) if writer in far}
    return dict(sorted(moved.items(), key=lambda item: -item[1]))


# --- a: stages ---------------------------------------------------------------------------------------------------------


def same_bits(before: Weights, after: Weights, still: Sequence[str], endpoint: str) -> bool:
    """Whether nothing up to an endpoint's stage moved, so that it makes the same bits of every picture."""
    stages = after.clf.spec.endpoints
    stage = endpoint.split("/")[0]
    below = stages[: stages.index(stage) + 1] if stage in stages else stages
    moved = {layer.split("/")[0] for layer in layers(after.variables) if layer not in still}
    return before.clf is after.clf and not moved & set(below)


def alike(
    before: Weights,
    after: Weights,
    sources: Sequence[Source],
    endpoints: Sequence[str],
    same: Collection[str],
) -> tuple[dict[str, float | None], int, list[dict[str, str]]]:
    """The CKA of each endpoint's pooled map, None where it is the same for all pictures; how many were seen, and what not.

    Endpoints of the `same` bits, whose CKA is 1, are computed under one set of weights.
    """
    values: dict[str, float | None] = {}
    valid, skips = np.zeros(0, bool), ()
    for endpoint in reporting.progress(endpoints, len(endpoints), "stages"):
        old = features.extract(*before, sources, endpoint=endpoint)
        new = old if endpoint in same else features.extract(*after, sources, endpoint=endpoint)
        valid, skips = old.valid & new.valid, new.skipped
        if valid.sum() < 2:
            raise ValueError(
                f"{valid.sum()} of {len(sources)} pictures can be read; wanted at least 2: look with doctor"
            )
        x, y = old.values[valid], new.values[valid]
        constant = (x == x[0]).all() or (y == y[0]).all()
        values[endpoint] = None if constant else 1.0 if endpoint in same else metrics.cka(x, y)
    return values, int(valid.sum()), [skip._asdict() for skip in skips]


def lines(rows: Iterable[tuple[str, float, str]]) -> Html:
    """Bars with words in place of a percentage: label, length in [0, 1], words."""
    made = []
    for label, length, words in rows:
        bar = tag("div", "track", tag("i", "", style=f"width:{100 * length:.2f}%"))
        made.append(tag("li", "", tag("span", "", label), tag("span", "value", words), bar))
    return tag("ul", "bars", *made, style="max-width:34rem")


def in_words(value: float | None, same: bool) -> str:
    """A CKA, in which the same bits and nearly the same stay apart."""
    return (
        "the same for all pictures"
        if value is None
        else "1, the same bits"
        if same
        else f"{value:.4f}"
    )


def stages_section(
    values: dict[str, float | None], same: Collection[str], ends: Ends, n: int
) -> Html:
    """The page's part on the stages."""
    rows = [(name, value or 0.0, in_words(value, name in same)) for name, value in values.items()]
    text = (
        f"Linear CKA of each stage's map, averaged over its places, on {n} pictures: 1 where the two networks tell these "
        "pictures apart in the same way, up to a rotation and a scale of the channels."
    )
    wide = [name for name in values if ends[name][-1] >= n]
    warning = (
        f"With fewer pictures than channels CKA is too high; here: {', '.join(wide)}."
        if wide
        else ""
    )
    return reporting.section(
        "How alike the stages are",
        lines(rows),
        reporting.note(warning) if wide else Html(""),
        text=text,
    )


# --- b: filters --------------------------------------------------------------------------------------------------------


def layers(variables: Variables) -> dict[str, dict[str, Any]]:
    """The backbone's leaves by layer: a convolution with its bias and BatchNorm, statistics included."""
    found: dict[str, dict[str, Any]] = {}
    for name, leaf in paths.flatten(variables).items():
        layer = name.partition("/backbone/")[2].rpartition("/")[0].removesuffix("/norm")
        found.setdefault(layer, {})[name.replace("/", " ")] = leaf
    return found


def unmoved(before: Weights, after: Weights) -> list[str]:
    """The layers all of whose leaves are equal bit by bit."""
    old, new = layers(before.variables), layers(after.variables)
    return [layer for layer in old if paths.digest(old[layer]) == paths.digest(new[layer])]


def mean_by_layer(rows: Iterable[Moved], stages: Sequence[str]) -> dict[str, float]:
    """The mean relative move of each layer's filters, by stage and block in the order of the forward pass."""
    by_layer: dict[str, list[float]] = {}
    for row in rows:
        by_layer.setdefault(row.name.removesuffix("/kernel"), []).append(row.relative)
    in_order = sorted(
        by_layer, key=lambda layer: (stages.index(layer.split("/")[0]), filters.in_order(layer))
    )
    return {layer: float(np.mean(by_layer[layer])) for layer in in_order}


def first_layer(run: reporting.Run, before: Weights, after: Weights) -> list[Html]:
    """The first layer's filters under both weights as colour tiles, if they moved."""
    new = filters.kernels(after.params)
    first = next(
        (name for name, kernel in new.items() if kernel.shape[2] == 3), None
    )  # what sees the colours
    if first is None or np.array_equal(filters.kernels(before.params)[first], new[first]):
        return []
    cards = []
    for when, weights in zip(WHEN, (before, after), strict=True):
        kernel = filters.kernels(weights.params)[first]
        rgb = kernel[:, :, ::-1] if weights.clf.pixels.channels == "bgr" else kernel
        sheet = reporting.contact_sheet(filters.tiles(rgb), columns=8, gap=1)
        run.figure(f"first-layer-{when}", sheet)
        cards.append(reporting.card(sheet, title=when, scale=max(1, 28 // kernel.shape[0])))
    caption = f"{first}: each filter stretched by its own largest weight; mid-grey is no weight."
    return [reporting.strip(cards, title="The first layer's filters", caption=caption)]


def filters_section(
    run: reporting.Run, before: Weights, after: Weights, rows: Sequence[Moved], still: Sequence[str]
) -> Html:
    """The page's part on the filters."""
    far = {
        layer: mean
        for layer, mean in mean_by_layer(rows, after.clf.spec.endpoints).items()
        if mean > 0
    }
    largest = max(far.values(), default=1.0)
    parts: list[Html] = []
    if far:
        title = "Mean move of a layer's filters"
        bars = lines((layer, mean / largest, f"{100 * mean:.2f} %") for layer, mean in far.items())
        top = [row for row in rows[:SHOWN] if row.relative > 0]
        table = [
            (row.name.removesuffix("/kernel"), row.index, f"{100 * row.relative:.2f} %")
            for row in top
        ]
        parts += [tag("h3", "", title), bars, tag("h3", "", "The filters that moved most")]
        parts += [
            reporting.table(table, ["layer", "filter", "moved by"]),
            *first_layer(run, before, after),
        ]
    if still:
        summary = tag("summary", "", f"{len(still)} layers are unmoved, every bit")
        parts.append(tag("details", "", summary, tag("p", "note", ", ".join(still))))
    text = (
        "How far a filter went, ||after - before|| / ||before||. Filters that were nearly dead before "
        f"(below {100 * filters.DEAD:.0f} % of their layer's median) are left out; biases and BatchNorm are not filters."
    )
    return reporting.section(
        "Which filters moved", *parts, text=text if far else "No filter moved."
    )


# --- c: channels -------------------------------------------------------------------------------------------------------


def ideals(
    before: Weights,
    after: Weights,
    objective_specs: Sequence[ObjectiveSpec],
    *,
    steps: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The ideal images f32[b h w 3] under both weights, all from the same key, that of `ideal --seed`."""
    size, kind = after.clf.pixels.size, KINDS["channel"]
    key = jax.random.fold_in(jax.random.key(seed), 0)
    made, climbs = [], {}
    for weights in (before, after):
        objective, targets = specs.program([weights.clf], objective_specs, ends_of(weights), {})
        if weights.clf not in climbs:
            climbs[weights.clf] = render.make(
                lambda variables, images01, clf=weights.clf: (clf.apply(variables, images01),),
                images.PARAMETERIZATIONS["fourier"](size),
                objective,
                transform=grid.views(KINDS["channel"].views, size),
                steps=steps,
                redirect=min(REDIRECT, steps),
                together=1 if jax.default_backend() == "cpu" else 0,
            )
        variables = jax.device_put(weights.clf.fold_batch_norm(weights.variables))
        keys = jnp.broadcast_to(key, (len(objective_specs),))
        found = climbs[weights.clf](
            variables, keys, targets, tv=kind.tv, l2=kind.l2, step_size=grid.STEP
        )
        made.append(np.asarray(found.images))
    return made[0], made[1]


def activations(
    weights: Weights, objective_specs: Sequence[ObjectiveSpec], saved: np.ndarray
) -> list[float]:
    """The mean activation of the channel that each picture, uint8[b h w 3], is for."""
    ends = list(dict.fromkeys(objective_spec.endpoint for objective_spec in objective_specs))
    maps = seen(weights.clf, tuple(ends))(weights.variables, pixels.to_images01(saved))
    return [
        float(maps[objective_spec.endpoint][i, objective_spec.index])
        for i, objective_spec in enumerate(objective_specs)
    ]


@functools.cache
def seen(clf: Classifier, ends: tuple[str, ...]) -> Any:
    """The mean over each endpoint's map, endpoint -> f32[b c], compiled once for both weights."""

    def means(variables: Variables, images01: jax.Array) -> dict[str, jax.Array]:
        output = clf.apply(variables, images01)
        return {end: jnp.mean(objectives.activations(output, end), axis=(1, 2)) for end in ends}

    return jax.jit(means)


def channels_section(
    run: reporting.Run,
    before: Weights,
    after: Weights,
    objective_specs: Sequence[ObjectiveSpec],
    far: Mapping[tuple[str, int], float],
    *,
    steps: int,
    seed: int,
) -> tuple[list[dict[str, Any]], list[Html]]:
    """The channels' rows of the result, and the page's part on them."""
    if not objective_specs:
        return [], []
    print(
        f"climbing {len(objective_specs)} channels for {steps} steps under both weights", flush=True
    )
    made = dict(
        zip(WHEN, ideals(before, after, objective_specs, steps=steps, seed=seed), strict=True)
    )
    rows = [
        {"endpoint": w.endpoint, "channel": w.index, "relative": far.get((w.endpoint, w.index))}
        for w in objective_specs
    ]
    saved, answers = {}, {}
    for drawn in WHEN:
        files = [
            run.figure(f"{w.endpoint}-{w.index}-{drawn}", image)
            for w, image in zip(objective_specs, made[drawn], strict=True)
        ]
        saved[drawn] = np.stack(
            [data.decode(file) for file in files]
        )  # judged as saved, not as computed
        for under, weights in zip(WHEN, (before, after), strict=True):
            answers[drawn, under] = activations(weights, objective_specs, saved[drawn])
        for i, row in enumerate(rows):
            row[f"{drawn}_png"] = str(files[i])
            row[f"activation_{drawn}"] = answers[drawn, drawn][i]
    strips = []
    for i, row in enumerate(rows):
        for drawn, under in (WHEN, WHEN[::-1]):
            row[f"{drawn}_png_{under}"] = answers[drawn, under][i]
        cards = [
            reporting.card(
                saved[drawn][i],
                title=f"ideal {drawn}",
                caption=f"answered {answers[drawn, 'before'][i]:.3g} before, {answers[drawn, 'after'][i]:.3g} after",
            )
            for drawn in WHEN
        ]
        how = (
            "" if row["relative"] is None else f"Its filter moved by {100 * row['relative']:.2f} %."
        )
        strips.append(
            reporting.strip(
                cards, title=f"{row['endpoint']}, channel {row['channel']}", caption=how
            )
        )
    text = (
        "The picture that a channel answers most, climbed from the same noise under the weights before and after. Below each "
        "saved picture: the channel's mean activation on it, under both weights. A climb is sensitive: two pictures may look "
        "unlike where the channel hardly changed, and then the activations tell."
    )
    return rows, [reporting.section("The same channels, before and after", *strips, text=text)]


# --- all of it ---------------------------------------------------------------------------------------------------------


def compare(
    run: reporting.Run,
    before: Weights,
    after: Weights,
    spec: DataSpec,
    *,
    endpoints: Sequence[str] = (),
    channel: Sequence[str] = (),
    channels: int = 4,
    steps: int = grid.STEPS,
    limit: int = 500,
    seed: int = 0,
) -> tuple[dict[str, Any], list[Html]]:
    """The result and the page's sections; what is asked is checked before anything is computed."""
    clf = after.clf
    ends = ends_of(after)
    stages = [known(clf, name.strip(), ends) for name in endpoints] or list(clf.spec.endpoints)
    asked = [specs.parse_objective(clf, ends, f"channel:{word.strip()}") for word in channel]
    sources = sample(spec, limit, seed)
    rows = filters.moved(before.params, after.params)
    still = unmoved(before, after)
    same = [name for name in stages if same_bits(before, after, still, name)]
    values, n, skips = alike(before, after, sources, stages, same)
    objective_specs = asked or farthest(rows, after.params, clf.spec.endpoints, ends, channels)
    far = {
        k: v
        for end in {objective_spec.endpoint for objective_spec in objective_specs}
        for k, v in by_move(rows, after.params, end, ends).items()
    }
    shown, parts = channels_section(
        run, before, after, objective_specs, far, steps=steps, seed=seed
    )
    skips = [*(skip._asdict() for skip in spec.skipped), *skips]
    result = {
        "cka": values,
        "same_bits": same,
        "n": n,
        "moved": [
            {
                "layer": row.name.removesuffix("/kernel"),
                "filter": row.index,
                "relative": row.relative,
            }
            for row in rows[:KEPT]
            if row.relative > 0
        ],
        "layers": mean_by_layer(rows, clf.spec.endpoints),
        "unmoved_layers": still,
        "channels": shown,
        "skipped": skips,
    }
    sections = [
        stages_section(values, same, ends, n),
        filters_section(run, before, after, rows, still),
        *parts,
        reporting.skipped(skips),
    ]
    return result, sections


def main(run: reporting.Run) -> None:
    clf, old, before, after = load_pair(FLAGS.model, FLAGS.before)
    spec = data.get(FLAGS.data)
    result, sections = compare(
        run,
        before,
        after,
        spec,
        endpoints=FLAGS.endpoints,
        channel=FLAGS.channel,
        channels=FLAGS.channels,
        steps=FLAGS.steps,
        limit=FLAGS.limit,
        seed=FLAGS.seed,
    )
    moved, still = (
        [layer for layer, mean in result["layers"].items() if mean > 0],
        result["unmoved_layers"],
    )
    lead = (
        f"{clf.arch} as it was and as it learned {len(inference.class_table(clf))} classes: {len(moved)} layers of filters "
        f"moved, {len(still)} layers are the same bits."
    )
    facts = run.facts() | common.weights_facts(clf)
    facts |= {"weights before": f"{old.weights.name} (sha256 {old.weights.sha256[:12]})"}
    facts |= {"pictures": spec.source, "licence of the pictures": spec.licence}
    run.finish(result, reporting.page("Before and after fine-tuning", lead, sections, facts=facts))
    for stage, value in result["cka"].items():
        print(f"{stage}: CKA {in_words(value, stage in result['same_bits'])}")
    for row in result["moved"][:3]:
        print(f"{row['layer']}, filter {row['filter']}: moved by {100 * row['relative']:.2f} %")
    print(
        f"{len(moved)} layers of filters moved, {len(still)} layers unmoved; skipped {len(result['skipped'])}"
    )
    print(f"{run.workdir / 'report.html'}")


if __name__ == "__main__":
    cli.launch("compare", main, define_flags)
