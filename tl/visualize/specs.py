"""What a user may want an image to be ideal for, as words: `channel:stage3:12`, `zebra`.

To add one: a function in `tl/visualize/objectives.py` and a row in `KINDS`.
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

Targets = Mapping[str, Any]


class Kind(NamedTuple):
    """A row of `KINDS`.

    Attributes:
      form: how a user writes it.
      make: `(endpoint, targets) -> Objective`.
      tv, l2: default weights of variation and energy, in the objective's own units: chosen by eye.
      views: default transforms, names of `ideal.TRANSFORMS`.
    """

    form: str
    make: Callable[[str, Targets], Objective]
    tv: float
    l2: float
    views: tuple[str, ...] = ("zoom", "noise")


KINDS: dict[str, Kind] = {
    "logit": Kind("logit:CLASS", lambda _, t: objectives.class_logit(t["members"]), 300.0, 5.0),
    "probability": Kind(
        "probability:CLASS", lambda _, t: objectives.class_log_probability(t["members"]), 150.0, 2.5
    ),
    "channel": Kind(
        "channel:ENDPOINT:INDEX", lambda e, t: objectives.channel(e, t["index"]), 10.0, 2.0
    ),
    "neuron": Kind(
        "neuron:ENDPOINT:INDEX[:ROW:COLUMN]",
        lambda e, t: objectives.neuron(e, t["index"], t["place"]),
        10.0,
        2.0,
    ),
    "direction": Kind(
        "direction:ENDPOINT:INDEX=WEIGHT;...",
        lambda e, t: objectives.direction(e, t[f"vector {e}"]),
        10.0,
        2.0,
    ),
    "cosine": Kind(
        "cosine:ENDPOINT:INDEX=WEIGHT;...",
        lambda e, t: objectives.cosine(e, t[f"vector {e}"]),
        5.0,
        1.0,
    ),
    "layer": Kind("layer:ENDPOINT", lambda e, t: objectives.layer(e), 10.0, 2.0),
    "inversion": Kind(
        "inversion:ENDPOINT", lambda e, t: objectives.likeness(e, t[f"wanted {e}"]), 0.5, 0.0, ()
    ),
    "caricature": Kind(
        "caricature:ENDPOINT", lambda e, t: objectives.caricature(e, t[f"wanted {e}"]), 5.0, 1.0, ()
    ),
}
CLASSES, OF_A_PHOTOGRAPH = ("logit", "probability"), ("inversion", "caricature")


def default_views(objective_specs: Sequence[ObjectiveSpec]) -> tuple[str, ...]:
    """The transforms that all of these want.

    Raises:
      ValueError: some want others; a place in a photograph is not kept where a view moves it.
    """
    wanted = {KINDS[objective_spec.kind].views for objective_spec in objective_specs}
    if len(wanted) > 1:
        raise ValueError(
            "inversion and caricature keep places and want no transforms, the other objectives do; say --transforms=, or climb "
            "them apart"
        )
    return wanted.pop()


class ObjectiveSpec(NamedTuple):
    """One objective of a user's list.

    Attributes:
      kind: a row of `KINDS`.
      word: as shown: the class's word, or the objective as typed.
      endpoint: of a unit; "" for a class.
      classes: the indices of a class or group.
      index: a channel.
      place: row and column of a neuron, -1 for the middle.
      mixture: (channel, weight) of a direction.
    """

    kind: str
    word: str
    endpoint: str = ""
    classes: tuple[int, ...] = ()
    index: int = 0
    place: tuple[int, int] = (-1, -1)
    mixture: tuple[tuple[int, float], ...] = ()


def shapes(clf: Classifier, variables: Variables, size: int) -> dict[str, tuple[int, ...]]:
    """Name -> (h, w, c) of every endpoint, without computing anything."""
    image = jax.ShapeDtypeStruct((1, size, size, len(clf.pixels.mean)), jnp.float32)
    output = jax.eval_shape(clf.apply, variables, image)
    flat = {"features": (1, 1, output.features.shape[1])}
    flat |= {} if output.logits is None else {"logits": (1, 1, output.logits.shape[1])}
    return {**{name: tuple(end.shape[1:]) for name, end in output.endpoints.items()}, **flat}


def class_objectives(clf: Classifier, words: str, kind: str = "logit") -> list[ObjectiveSpec]:
    """The wishes of `--target`: a class, or a group, each."""
    return [
        ObjectiveSpec(kind, target.word, classes=target.indices)
        for target in inference.class_table(clf).targets(words)
    ]


def parse_objective(
    clf: Classifier, ends: Mapping[str, tuple[int, ...]], word: str
) -> ObjectiveSpec:
    """What `--objective=WORD` means for a network with the endpoints `ends`.

    Raises:
      ValueError: an unknown kind, class or endpoint (gives the nearest), a channel or place beyond the map (says how many there
        are), or a word in another form.
    """
    kind, _, rest = (part.strip() for part in word.partition(":"))
    if kind not in KINDS:
        raise ValueError(f"unknown objective {kind!r} in {word!r}; nearest: {nearest(kind, KINDS)}")
    malformed = ValueError(f"{word!r} is no objective; write it as {KINDS[kind].form}")
    if kind in CLASSES:
        if not rest:
            raise malformed
        return ObjectiveSpec(kind, rest, classes=inference.class_table(clf).find(rest))
    endpoint, *parts = (part.strip() for part in rest.split(":"))
    if not endpoint:
        raise malformed
    if endpoint not in ends:
        raise ValueError(
            f"{clf.arch} has no endpoint {endpoint!r}; nearest: {nearest(endpoint, ends)}"
        )
    h, w, c = ends[endpoint]
    made = ObjectiveSpec(kind, word, endpoint)
    try:
        if kind in ("layer", *OF_A_PHOTOGRAPH) and not parts:
            return made
        if kind == "channel" and len(parts) == 1:
            return made._replace(index=_below(c, int(parts[0]), f"channel of {endpoint}"))
        if kind == "neuron" and len(parts) in (1, 3):
            row, column = (int(part) for part in parts[1:]) if parts[1:] else (h // 2, w // 2)
            place = _below(h, row, f"row of {endpoint}"), _below(w, column, f"column of {endpoint}")
            return made._replace(
                index=_below(c, int(parts[0]), f"channel of {endpoint}"), place=place
            )
        if kind in ("direction", "cosine") and len(parts) == 1:
            pairs = [pair.split("=") for pair in parts[0].split(";")]
            mixture = tuple(
                (_below(c, int(i), f"channel of {endpoint}"), float(weight)) for i, weight in pairs
            )
            return made._replace(mixture=mixture)
    except _Beyond:
        raise
    except ValueError:
        raise malformed from None
    raise malformed


class _Beyond(ValueError):
    """An index that is not there: told as it is, where other ValueErrors mean a word in the wrong form."""


def _below(count: int, index: int, what: str) -> int:
    if not 0 <= index < count:
        raise _Beyond(
            f"there is no {what} number {index}: there are {count}, from 0 to {count - 1}"
        )
    return index


def wanted_maps(
    clf: Classifier, variables: Variables, photograph: np.ndarray, ends: Sequence[str]
) -> dict[str, Any]:
    """Endpoint -> f32[h w c], the maps of a photograph f32[s s 3]."""
    seen = lambda variables, image: {
        end: objectives.activations(clf.apply(variables, image), end)[0] for end in ends
    }
    return jax.tree.map(np.asarray, jax.jit(seen)(variables, photograph[None])) if ends else {}


def program(
    networks: Sequence[Classifier],
    objective_specs: Sequence[ObjectiveSpec],
    ends: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, Any],
    *,
    diversity: float = 0.0,
) -> tuple[Callable[[Targets], Objective], dict[str, np.ndarray]]:
    """One objective for a whole grid, over a tuple of Outputs, and its targets: a row for each wish.

    Args:
      networks: the first is the one whose units are meant; a class is climbed under all of them.
      objective_specs: one for each image.
      ends: endpoint -> shape, of the first network.
      wanted: endpoint -> map, of the photograph that inversions and caricatures are about.
      diversity: weight of `objectives.diversity` at the wish's endpoint, for a class at the last stage.
    """
    rows = list(dict.fromkeys((each.kind, each.endpoint) for each in objective_specs))
    targets: dict[str, np.ndarray] = {
        "which": np.array(
            [rows.index((each.kind, each.endpoint)) for each in objective_specs], np.int32
        ),
        "index": np.array([each.index for each in objective_specs], np.int32),
        "place": np.array([each.place for each in objective_specs], np.int32),
    }
    for i, clf in enumerate(networks):
        if any(each.classes for each in objective_specs):
            table = inference.class_table(clf)
            groups = [
                (table.find(each.word) if i else each.classes) if each.classes else (0,)
                for each in objective_specs
            ]
            targets[f"members {i}"] = goals.class_mask(groups, len(table))
    for kind, endpoint in rows:
        if kind in ("direction", "cosine"):
            vectors = np.zeros((len(objective_specs), ends[endpoint][-1]), np.float32)
            for row, each in zip(vectors, objective_specs, strict=True):
                for index, weight in each.mixture if each.endpoint == endpoint else ():
                    row[index] = weight
            targets[f"vector {endpoint}"] = vectors
        if kind in OF_A_PHOTOGRAPH:
            targets[f"wanted {endpoint}"] = np.stack([wanted[endpoint]] * len(objective_specs))

    last = networks[0].spec.endpoints[-1]

    def objective(t: Targets) -> Objective:
        def of(kind: str, endpoint: str) -> Objective:
            parts = [
                _on(i, KINDS[kind].make(endpoint, {**t, "members": t.get(f"members {i}")}))
                for i in range(len(networks) if kind in CLASSES else 1)
            ]
            total = sum(parts[1:], start=parts[0]) * (1.0 / len(parts))
            return (
                total + _on(0, objectives.diversity(endpoint or last)) * diversity
                if diversity
                else total
            )

        return objectives.either([of(*row) for row in rows], t["which"])

    return objective, targets


def _on(network: int, objective: Objective) -> Objective:
    """The objective, of one of several networks."""

    def of(outputs: Any, images01: jax.Array) -> jax.Array:
        seen: Sequence[Output] = outputs
        return objective(seen[network], images01)

    return Objective(of)
