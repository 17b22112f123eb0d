"""Objectives as words: parsing, the batched program, default transforms, and a new row."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from tl import labels
from tl.types import Output
from tl.visualize import grid, objectives, specs
from tl.visualize.objectives import Objective
from tl.visualize.specs import ObjectiveSpec

SIZE = 32


@functools.cache
def network() -> grid.Network:
    """A toy with ImageNet's classes."""
    clf, variables = toys.classifier("toy_vgg", 1000)
    return grid.network(dataclasses.replace(clf, classes=labels.imagenet()), variables)


@functools.cache
def shapes() -> dict[str, tuple[int, ...]]:
    return specs.endpoint_shapes(network().clf, network().variables, SIZE)


def parse(word: str) -> ObjectiveSpec:
    return specs.parse_objective(network().clf, shapes(), word)


@functools.cache
def output() -> tuple[np.ndarray, Output]:
    """An image f32[1 s s 3] and the network's output for it."""
    image = toys.noise(1, SIZE, SIZE, 3).astype(np.float32) / 255
    return image, jax.jit(network().clf.apply)(network().variables, image)


# ---- words ----

WORDS = {
    "logit": "logit:any cat",
    "probability": "probability:zebra",
    "channel": "channel:stage2:7",
    "neuron": "neuron:stage2:7:0:1",
    "direction": "direction:stage2:7=1;2=-0.5",
    "cosine": "cosine:stage2:3=2",
    "layer": "layer:stage3",
    "inversion": "inversion:stage1",
    "caricature": "caricature:stage1",
    "similarity": "similarity:features",
}


def test_every_objective_has_a_word() -> None:
    assert set(WORDS) == set(specs.KINDS)
    assert [parse(word).kind for word in WORDS.values()] == list(WORDS)


def test_a_class_word_is_a_group_of_indices() -> None:
    spec = parse(WORDS["logit"])
    assert spec.classes == (281, 282, 283, 284, 285) and spec.word == "any cat"


def test_a_channel_word_has_an_endpoint_and_an_index() -> None:
    spec = parse(WORDS["channel"])
    assert (spec.endpoint, spec.index) == ("stage2", 7)
    assert parse("channel:features:7").index == 7
    assert parse("channel:logits:999").index == 999


def test_a_neuron_word_has_a_place_and_the_center_by_default() -> None:
    assert parse(WORDS["neuron"]).place == (0, 1)
    h, w, _ = shapes()["stage2"]
    assert parse("neuron:stage2:7").place == (h // 2, w // 2)


def test_a_direction_word_is_a_mixture_of_channels() -> None:
    assert parse(WORDS["direction"]).mixture == ((7, 1.0), (2, -0.5))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("chanel:stage2:7", "unknown objective 'chanel'.*nearest: 'channel'"),
        ("channel:stage9:7", "no endpoint 'stage9'; nearest: 'stage"),
        ("channel:stage2:8", "no channel of stage2 number 8: there are 8, from 0 to 7"),
        ("channel:stage2:-1", "there are 8"),
        ("neuron:stage2:7:99:0", "no row of stage2 number 99: there are"),
        ("neuron:stage2:7:0:99", "no column of stage2"),
        ("direction:stage2:8=1", "there are 8"),
        ("direction:stage2:1", "malformed.*; write it as direction:ENDPOINT:INDEX=WEIGHT"),
        ("channel:stage2", "write it as channel:ENDPOINT:INDEX"),
        ("channel:stage2:x", "write it as channel:ENDPOINT:INDEX"),
        ("layer:", "write it as layer:ENDPOINT"),
        ("logit:", "write it as logit:CLASS"),
        ("logit:zebrra", "unknown ImageNet class 'zebrra'; nearest: 'zebra'"),
        ("probability:1000", "no class 1000; indices go from 0 to 999"),
    ],
)
def test_a_wrong_word_is_an_error_with_the_form_or_the_nearest(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(word)


# ---- the program ----


def test_each_image_of_a_batch_gets_its_own_objective() -> None:
    """All objectives in one batch have the values that each has alone."""
    image, out = output()
    clf, variables, _ = network()
    photo = clf.apply(variables, 1 - image).endpoints["stage2"]
    words = [
        "logit:zebra",
        "channel:stage2:7",
        "neuron:stage2:7",
        "direction:stage2:7=1;2=-0.5",
        "cosine:stage2:3=2",
        "layer:stage3",
        "inversion:stage2",
        "caricature:stage2",
    ]
    chosen = [parse(word) for word in words]
    make, targets = specs.program([clf], chosen, shapes(), {"stage2": np.asarray(photo[0])})
    assert out.logits is not None
    many = out._replace(
        logits=jnp.repeat(out.logits, len(words), 0),
        endpoints={name: jnp.repeat(end, len(words), 0) for name, end in out.endpoints.items()},
    )
    images01 = jnp.repeat(image, len(words), 0)
    values = jax.jit(lambda t, out: make(t)((out,), images01))(targets, many)  # pyright: ignore[reportArgumentType]
    maps, target = np.asarray(out.endpoints["stage2"][0]), np.asarray(photo[0])
    h, w, _ = maps.shape
    mean = maps.mean(axis=(0, 1))
    expected = [
        out.logits[0, 340],
        mean[7],
        maps[h // 2, w // 2, 7],
        mean[7] - 0.5 * mean[2],
        2 * mean[3] * max(mean[3] / np.linalg.norm(mean), 0.1) ** 2,
        np.mean(np.asarray(out.endpoints["stage3"]) ** 2),
        -np.sum((maps - target) ** 2) / np.sum(target**2),
        objectives.caricature("stage2", photo)(out, image)[0],
    ]
    assert min(np.abs(expected)) > 1e-4
    np.testing.assert_allclose(values, np.asarray(expected, np.float32), rtol=1e-4, atol=1e-6)


def test_an_ensemble_is_the_mean_of_its_logits() -> None:
    image, one = output()
    clf = network().clf
    assert one.logits is not None
    two = one._replace(logits=3.0 * one.logits)
    make, targets = specs.program([clf, clf], [parse("logit:zebra")], shapes(), {})
    value = make(targets)((one, two), image)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(value, 2.0 * one.logits[:, 340], rtol=1e-5)


# ---- default transforms ----


def test_transforms_are_the_defaults_of_the_objectives() -> None:
    zebra, unit = parse("logit:zebra"), parse("channel:stage2:7")
    photo = [parse("inversion:stage1"), parse("caricature:stage2")]
    assert grid.transform_names(grid.IdealSettings(), [zebra, unit]) == ("zoom", "noise")
    assert grid.transform_names(grid.IdealSettings(), photo) == ()
    named = grid.IdealSettings(transforms=("roll",))
    assert grid.transform_names(named, [zebra, *photo]) == ("roll",)


def test_different_default_transforms_are_an_error() -> None:
    chosen = [parse("logit:zebra"), parse("inversion:stage1")]
    message = r"transforms: logit \(zoom noise\), inversion \(none\); set `transforms`"
    with pytest.raises(ValueError, match=message):
        grid.transform_names(grid.IdealSettings(), chosen)


# ---- a new objective: one function and one row ----


def contrast(endpoint: str, index: jax.Array) -> Objective:
    """The standard deviation of a channel over its map: an objective that `tl` does not have."""
    mean = objectives.channel(endpoint, index)

    def value(out: Output, images01: jax.Array) -> jax.Array:
        square = out._replace(endpoints={endpoint: out.endpoints[endpoint] ** 2})
        variance = mean(square, images01) - mean(out, images01) ** 2
        return jnp.sqrt(jnp.maximum(variance, 0.0) + 1e-6)

    return Objective(value)


def test_a_new_objective_is_one_function_and_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = specs.Kind(contrast, specs.CHANNEL, tv=1.0, l2=0.0, transforms=())
    monkeypatch.setitem(specs.KINDS, "contrast", row)
    assert specs.form("contrast") == "contrast:ENDPOINT:INDEX"
    with pytest.raises(ValueError, match="write it as contrast:ENDPOINT:INDEX"):
        parse("contrast:stage1")

    spec, settings = parse("contrast:stage1:1"), grid.IdealSettings(steps=4, frames=0)
    (cell,) = cells = grid.make_cells([spec], settings)
    assert cell.tv == 1.0 and grid.transform_names(settings, [spec]) == ()
    ideal = grid.make_ascent([network()], cells, settings)()
    assert ideal.scores[-1, 0] > ideal.scores[0, 0]
