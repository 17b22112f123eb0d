"""Objectives as users write them, such as `channel:stage3:12`, and a program for a batch of them.

`KINDS` has one row per objective. To add an objective: a function in `tl/visualize/objectives.py`
and a row in `KINDS`. The row says how the word is parsed and which array the function receives, by
one of the targets of this module (`CLASSES`, `CHANNEL`, `NEURON`, `VECTOR`, `PHOTOGRAPH`, `LAYER`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import inference
from tl.attacks import goals
from tl.models import Classifier
from tl.paths import nearest
from tl.types import Output, Variables
from tl.visualize import objectives
from tl.visualize.objectives import Objective

Shapes = Mapping[str, tuple[int, ...]]
"""Endpoint -> (h, w, c)."""


class ObjectiveSpec(NamedTuple):
    """One objective of a user's list.

    Attributes:
      kind: a row of `KINDS`.
      word: the name that is displayed: the class's word, or the objective as typed.
      endpoint: the endpoint that the objective reads; "" for a class.
      classes: the indices of a class or group.
      index: a channel; None for objectives without one.
      place: row and column of a neuron; -1 is the middle.
      mixture: (channel, weight) of a direction.
    """

    kind: str
    word: str
    endpoint: str = ""
    classes: tuple[int, ...] = ()
    index: int | None = None
    place: tuple[int, int] = (-1, -1)
    mixture: tuple[tuple[int, float], ...] = ()


class Context(NamedTuple):
    """What a target's array is computed from.

    Attributes:
      clf: the network.
      shapes: the network's endpoints.
      photo_maps: endpoint -> f32[h w c], the activations of a photograph.
    """

    clf: Classifier
    shapes: Shapes
    photo_maps: Mapping[str, Any]


class Target(NamedTuple):
    """The argument of an objective: how it is written, and the array that the objective receives.

    Attributes:
      form: what follows the kind in a user's word, "ENDPOINT:INDEX".
      parse: `(clf, shapes, text) -> fields of ObjectiveSpec`. Raises `MalformedError` for a word in
        another form.
      array: `(spec, context) -> array or tuple of arrays`, without a batch axis.
      ensemble: whether the objective is the mean over all networks of an ensemble, or reads the
        first network only.
      photograph: whether `array` reads `Context.photo_maps`.
    """

    form: str
    parse: Callable[[Classifier, Shapes, str], dict[str, Any]]
    array: Callable[[ObjectiveSpec, Context], Any]
    ensemble: bool = False
    photograph: bool = False


class MalformedError(Exception):
    """A word that does not have its objective's form."""


# ---- targets ----


def _parse_classes(clf: Classifier, shapes: Shapes, text: str) -> dict[str, Any]:
    if not text:
        raise MalformedError
    return {"word": text, "classes": inference.class_table(clf).find(text)}


def _parse_layer(clf: Classifier, shapes: Shapes, text: str) -> dict[str, Any]:
    endpoint, _, _ = _split(clf, shapes, text, lengths=(0,))
    return {"endpoint": endpoint}


def _parse_channel(clf: Classifier, shapes: Shapes, text: str) -> dict[str, Any]:
    endpoint, (index,), (_, _, c) = _split(clf, shapes, text, lengths=(1,))
    return {"endpoint": endpoint, "index": _index(index, c, f"channel of {endpoint}")}


def _parse_neuron(clf: Classifier, shapes: Shapes, text: str) -> dict[str, Any]:
    endpoint, (index, *place), (h, w, c) = _split(clf, shapes, text, lengths=(1, 3))
    row, column = place or (f"{h // 2}", f"{w // 2}")
    place = _index(row, h, f"row of {endpoint}"), _index(column, w, f"column of {endpoint}")
    index = _index(index, c, f"channel of {endpoint}")
    return {"endpoint": endpoint, "index": index, "place": place}


def _parse_vector(clf: Classifier, shapes: Shapes, text: str) -> dict[str, Any]:
    endpoint, (mixture,), (_, _, c) = _split(clf, shapes, text, lengths=(1,))
    pairs = [pair.split("=") for pair in mixture.split(";")]
    try:
        weights = [float(weight) for _, weight in pairs]
    except ValueError:
        raise MalformedError from None
    indices = [_index(index, c, f"channel of {endpoint}") for index, _ in pairs]
    return {"endpoint": endpoint, "mixture": tuple(zip(indices, weights, strict=True))}


def _split(
    clf: Classifier, shapes: Shapes, text: str, *, lengths: Sequence[int]
) -> tuple[str, list[str], tuple[int, ...]]:
    """Splits "ENDPOINT:A:B" into the endpoint, the parts after it, and the endpoint's shape."""
    endpoint, *parts = (part.strip() for part in text.split(":"))
    if not endpoint:
        raise MalformedError
    check_endpoint(clf, shapes, endpoint)
    if len(parts) not in lengths:
        raise MalformedError
    return endpoint, parts, shapes[endpoint]


def check_endpoint(clf: Classifier, shapes: Shapes, endpoint: str) -> str:
    """Returns `endpoint`.

    Raises:
      ValueError: if the network has no such endpoint. Names the nearest.
    """
    if endpoint not in shapes:
        raise ValueError(
            f"{clf.arch} has no endpoint {endpoint!r}; nearest: {nearest(endpoint, shapes)}"
        )
    return endpoint


def _index(text: str, count: int, noun: str) -> int:
    try:
        index = int(text)
    except ValueError:
        raise MalformedError from None
    if not 0 <= index < count:
        raise ValueError(
            f"there is no {noun} number {index}: there are {count}, from 0 to {count - 1}"
        )
    return index


def _vector(spec: ObjectiveSpec, context: Context) -> np.ndarray:
    vector = np.zeros(context.shapes[spec.endpoint][-1], np.float32)
    for index, weight in spec.mixture:
        vector[index] = weight
    return vector


CLASSES = Target(
    "CLASS",
    _parse_classes,
    lambda spec, context: goals.class_mask([spec.classes], len(inference.class_table(context.clf)))[
        0
    ],
    ensemble=True,
)
"""bool[k], the mask of a class or group."""

CHANNEL = Target("ENDPOINT:INDEX", _parse_channel, lambda spec, context: np.int32(spec.index))
"""i32[], the index of a channel."""

NEURON = Target(
    "ENDPOINT:INDEX[:ROW:COLUMN]",
    _parse_neuron,
    lambda spec, context: (np.int32(spec.index), np.array(spec.place, np.int32)),
)
"""The index of a channel i32[] and its place i32[2]."""

VECTOR = Target("ENDPOINT:INDEX=WEIGHT;...", _parse_vector, _vector)
"""f32[c], a direction in activation space."""

PHOTOGRAPH = Target(
    "ENDPOINT",
    _parse_layer,
    lambda spec, context: context.photo_maps[spec.endpoint],
    photograph=True,
)
"""f32[h w c], the activations of a photograph."""

LAYER = Target("ENDPOINT", _parse_layer, lambda spec, context: None)
"""None: the objective has no argument but its endpoint."""


# ---- the table of objectives ----


class Kind(NamedTuple):
    """A row of `KINDS`.

    Attributes:
      make: `(endpoint, targets) -> Objective`; `targets` are the target's arrays with a batch axis
        in front.
      target: the objective's argument: how it is parsed, and its array.
      tv, l2: default weights of variation and energy, in the objective's own units (chosen by eye).
      transforms: default transforms, names of `grid.TRANSFORMS`. Objectives that compare positions
        have none.
    """

    make: Callable[[str, Any], Objective]
    target: Target
    tv: float
    l2: float
    transforms: tuple[str, ...] = ("zoom", "noise")


KINDS: dict[str, Kind] = {
    "logit": Kind(lambda _, mask: objectives.class_logit(mask), CLASSES, 300.0, 5.0),
    "probability": Kind(
        lambda _, mask: objectives.class_log_probability(mask), CLASSES, 150.0, 2.5
    ),
    "channel": Kind(objectives.channel, CHANNEL, 10.0, 2.0),
    "neuron": Kind(lambda end, at: objectives.neuron(end, *at), NEURON, 10.0, 2.0),
    "direction": Kind(objectives.direction, VECTOR, 10.0, 2.0),
    "cosine": Kind(objectives.cosine, VECTOR, 5.0, 1.0),
    "layer": Kind(lambda end, _: objectives.layer(end), LAYER, 10.0, 2.0),
    "inversion": Kind(objectives.likeness, PHOTOGRAPH, 0.5, 0.0, ()),
    "caricature": Kind(objectives.caricature, PHOTOGRAPH, 5.0, 1.0, ()),
    "similarity": Kind(objectives.similarity, PHOTOGRAPH, 0.5, 0.0, ()),
}


def form(kind: str) -> str:
    """How a user writes an objective.

    Example:
      >>> form("channel")
      'channel:ENDPOINT:INDEX'
    """
    return f"{kind}:{KINDS[kind].target.form}"


def photograph_endpoints(specs: Sequence[ObjectiveSpec]) -> list[str]:
    """The endpoints at which the objectives read a photograph's activations, sorted."""
    return sorted({spec.endpoint for spec in specs if KINDS[spec.kind].target.photograph})


def default_transforms(specs: Sequence[ObjectiveSpec]) -> tuple[str, ...]:
    """The transforms that these objectives share.

    Raises:
      ValueError: if their default transforms differ.
    """
    by_kind = {spec.kind: KINDS[spec.kind].transforms for spec in specs}
    if len(set(by_kind.values())) > 1:
        listed = ", ".join(
            f"{kind} ({' '.join(names) or 'none'})" for kind, names in by_kind.items()
        )
        raise ValueError(
            f"these objectives have different default transforms: {listed}; set `transforms`, or "
            "optimize them in separate runs"
        )
    return next(iter(by_kind.values()))


# ---- from words to specs ----


def endpoint_shapes(clf: Classifier, variables: Variables, size: int) -> dict[str, tuple[int, ...]]:
    """Name -> (h, w, c) of every endpoint, "features" and "logits" included, for images of a side.

    Nothing is computed.
    """
    image = jax.ShapeDtypeStruct((1, size, size, len(clf.pixels.mean)), jnp.float32)
    output = jax.eval_shape(clf.apply, variables, image)
    flat = {"features": (1, 1, output.features.shape[1])}
    flat |= {} if output.logits is None else {"logits": (1, 1, output.logits.shape[1])}
    return {**{name: tuple(end.shape[1:]) for name, end in output.endpoints.items()}, **flat}


def class_objectives(clf: Classifier, words: str, kind: str = "logit") -> list[ObjectiveSpec]:
    """One objective for each class or group in a list of words, separated by commas."""
    return [
        ObjectiveSpec(kind, target.word, classes=target.indices)
        for target in inference.class_table(clf).targets(words)
    ]


def parse_objective(clf: Classifier, shapes: Shapes, word: str) -> ObjectiveSpec:
    """The objective that a word such as "channel:stage3:12" names.

    Args:
      clf: the network.
      shapes: its endpoints, from `endpoint_shapes`.
      word: a kind and its argument, in the form that `form` returns.

    Raises:
      ValueError: if the kind, class or endpoint is unknown (names the nearest), if a channel or
        place lies outside the map (gives the range), or if the word has another form.
    """
    kind, _, text = (part.strip() for part in word.partition(":"))
    if kind not in KINDS:
        raise ValueError(f"unknown objective {kind!r} in {word!r}; nearest: {nearest(kind, KINDS)}")
    try:
        fields = KINDS[kind].target.parse(clf, shapes, text)
    except MalformedError:
        raise ValueError(f"malformed objective {word!r}; write it as {form(kind)}") from None
    return ObjectiveSpec(kind, word)._replace(**fields)


# ---- from specs to one program ----


def photograph_maps(
    clf: Classifier, variables: Variables, photograph: np.ndarray, endpoints: Sequence[str]
) -> dict[str, Any]:
    """Endpoint -> f32[h w c], the activations of a photograph f32[s s 3]."""
    maps = lambda variables, image: {
        end: objectives.activations(clf.apply(variables, image), end)[0] for end in endpoints
    }
    forward = jax.jit(maps)
    return jax.tree.map(np.asarray, forward(variables, photograph[None])) if endpoints else {}


def program(
    networks: Sequence[Classifier],
    specs: Sequence[ObjectiveSpec],
    shapes: Shapes,
    photo_maps: Mapping[str, Any],
    *,
    diversity: float = 0.0,
) -> tuple[Callable[[Any], Objective], dict[str, Any]]:
    """One objective for a whole batch of images, over a tuple of Outputs, and its targets.

    Args:
      networks: an ensemble. Objectives of classes are the mean over all of them, others read the
        first.
      specs: one for each image.
      shapes: the endpoints of the first network.
      photo_maps: endpoint -> f32[h w c], read by objectives of a photograph.
      diversity: weight of `objectives.diversity` at the objective's endpoint, for a class at the
        last stage.

    Returns:
      A function from targets to the objective, and the targets; each leaf has one row per image.
    """
    rows = list(dict.fromkeys((spec.kind, spec.endpoint) for spec in specs))
    numbers = [rows.index((spec.kind, spec.endpoint)) for spec in specs]
    targets: dict[str, Any] = {"which": np.array(numbers, np.int32)}
    for number, (kind, _) in enumerate(rows):
        target, first = KINDS[kind].target, specs[numbers.index(number)]
        # An image with another objective gets this row's first target, whose value is discarded.
        filled = [spec if numbers[i] == number else first for i, spec in enumerate(specs)]
        targets[f"{number}"] = tuple(
            _stack([target.array(_translate(spec, clf, i), context) for spec in filled])
            for i, clf in enumerate(networks if target.ensemble else networks[:1])
            for context in [Context(clf, shapes, photo_maps)]
        )
    last = networks[0].spec.endpoints[-1]

    def objective(targets: Any) -> Objective:
        def make(number: int) -> Objective:
            kind, endpoint = rows[number]
            parts = [
                _of_network(i, KINDS[kind].make(endpoint, target))
                for i, target in enumerate(targets[f"{number}"])
            ]
            total = sum(parts[1:], start=parts[0]) * (1.0 / len(parts))
            if not diversity:
                return total
            return total + _of_network(0, objectives.diversity(endpoint or last)) * diversity

        return objectives.either([make(number) for number in range(len(rows))], targets["which"])

    return objective, targets


def _stack(arrays: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *arrays)


def _translate(spec: ObjectiveSpec, clf: Classifier, network: int) -> ObjectiveSpec:
    """The spec with the indices that its class has in another network of the ensemble."""
    if not network:
        return spec
    return spec._replace(classes=inference.class_table(clf).find(spec.word))


def _of_network(network: int, objective: Objective) -> Objective:
    """The objective, of one of several networks."""

    def value(outputs: Any, images01: jax.Array) -> jax.Array:
        every: Sequence[Output] = outputs
        return objective(every[network], images01)

    return Objective(value)
