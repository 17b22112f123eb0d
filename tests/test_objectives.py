"""Every objective: its value by hand, its sign, and a finite gradient for uniform images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.types import Output
from tl.visualize import images, objectives, render
from tl.visualize.objectives import Objective

SIZE = 8
WEIGHTS = np.random.default_rng(5).normal(size=(4, 3)).astype(np.float32)


def noise(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).random(shape), jnp.float32)


def net(variables: Any, images01: jax.Array) -> Output:
    """Three maps, the colors minus gray; their means; and four classes that mix them."""
    maps = images01 - 0.5
    features = jnp.mean(maps, axis=(1, 2))
    return Output(features @ jnp.asarray(WEIGHTS.T), features, {"maps": maps}, {})


class Row(NamedTuple):
    """An objective for two images.

    Attributes:
      make: returns the objective for the targets.
      targets: one per image.
      value: the objective in NumPy: maps [b h w c], logits [b k], images01 [b h w 3] -> [b].
    """

    make: Callable[[Any], Objective]
    targets: Any
    value: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def mean(maps: np.ndarray) -> np.ndarray:
    return maps.mean(axis=(1, 2))


def flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sum(x * y, axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)


def grams(maps: np.ndarray) -> np.ndarray:
    return np.stack([(one.reshape(-1, 3).T @ one.reshape(-1, 3)).ravel() for one in maps])


def variation(x: np.ndarray) -> np.ndarray:
    return np.abs(np.diff(x, axis=1)).mean(axis=(1, 2, 3)) + np.abs(np.diff(x, axis=2)).mean(
        axis=(1, 2, 3)
    )


def isotropic(x: np.ndarray) -> np.ndarray:
    down = np.diff(x, axis=1, append=x[:, -1:])
    across = np.diff(x, axis=2, append=x[:, :, -1:])
    return np.hypot(down, across).mean(axis=(1, 2, 3))


def blurred(x: np.ndarray) -> np.ndarray:
    wide = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    h, w = x.shape[1:3]
    kernel = np.array([1, 2, 1]) / 4
    return sum(
        kernel[i] * kernel[j] * wide[:, i : i + h, j : j + w] for i in range(3) for j in range(3)
    )


MEMBERS = np.array([[False, True, False, True], [True, False, False, False]])
INDEX = np.array([2, 0], np.int32)
PLACE = np.array([[1, 3], [-1, -1]], np.int32)
VECTOR = np.array([[1.0, -2.0, 0.5], [0.3, 0.1, -1.0]], np.float32)
PHOTO = np.asarray(noise(2, SIZE, SIZE, 3, seed=3)) - 0.5
TWO = np.arange(2)

ROWS: dict[str, Row] = {
    "logit": Row(
        objectives.class_logit,
        MEMBERS,
        lambda m, k, x: np.array([(k[0, 1] + k[0, 3]) / 2, k[1, 0]]),
    ),
    "log probability": Row(
        objectives.class_log_probability,
        MEMBERS,
        lambda m, k, x: np.log((softmax(k) * MEMBERS).sum(axis=1)),
    ),
    "channel": Row(
        lambda t: objectives.channel("maps", t), INDEX, lambda m, k, x: mean(m)[TWO, INDEX]
    ),
    "channel of features": Row(
        lambda t: objectives.channel("features", t), INDEX, lambda m, k, x: mean(m)[TWO, INDEX]
    ),
    "channel of logits": Row(
        lambda t: objectives.channel("logits", t), INDEX, lambda m, k, x: k[TWO, INDEX]
    ),
    "neuron": Row(
        lambda t: objectives.neuron("maps", t),
        INDEX,
        lambda m, k, x: m[TWO, SIZE // 2, SIZE // 2, INDEX],
    ),
    "neuron at": Row(
        lambda t: objectives.neuron("maps", *t),
        (INDEX, PLACE),
        lambda m, k, x: np.array([m[0, 1, 3, 2], m[1, 4, 4, 0]]),
    ),
    "direction": Row(
        lambda t: objectives.direction("maps", t),
        VECTOR,
        lambda m, k, x: (mean(m) * VECTOR).sum(axis=1),
    ),
    "cosine": Row(
        lambda t: objectives.cosine("maps", t, 3.0),
        VECTOR,
        lambda m, k, x: (
            (mean(m) * VECTOR).sum(axis=1) * np.maximum(cosines(mean(m), VECTOR), 0.1) ** 3
        ),
    ),
    "layer": Row(
        lambda t: objectives.layer("maps"), INDEX, lambda m, k, x: (flat(m) ** 2).mean(axis=1)
    ),
    "diversity": Row(
        lambda t: objectives.diversity("maps"),
        INDEX,
        lambda m, k, x: -cosines(grams(m), grams(m)[::-1]),
    ),
    "likeness": Row(
        lambda t: objectives.likeness("maps", t),
        PHOTO,
        lambda m, k, x: -(flat(m - PHOTO) ** 2).sum(axis=1) / (flat(PHOTO) ** 2).sum(axis=1),
    ),
    "caricature": Row(
        lambda t: objectives.caricature("maps", t, 2.0),
        PHOTO,
        lambda m, k, x: (
            (flat(m) * flat(PHOTO)).sum(axis=1)
            / (flat(PHOTO) ** 2).sum(axis=1)
            * np.maximum(cosines(flat(m), flat(PHOTO)), 0.1) ** 2
        ),
    ),
    "similarity": Row(
        lambda t: objectives.similarity("maps", t),
        PHOTO,
        lambda m, k, x: cosines(flat(m), flat(PHOTO)),
    ),
    "total variation": Row(
        lambda t: objectives.costs(objectives.total_variation), INDEX, lambda m, k, x: -variation(x)
    ),
    "isotropic variation": Row(
        lambda t: objectives.costs(objectives.isotropic_variation),
        INDEX,
        lambda m, k, x: -isotropic(x),
    ),
    "energy": Row(
        lambda t: objectives.costs(objectives.energy),
        INDEX,
        lambda m, k, x: -((2 * flat(x) - 1) ** 2).mean(axis=1),
    ),
    "roughness": Row(
        lambda t: objectives.costs(objectives.roughness),
        INDEX,
        lambda m, k, x: -((x - blurred(x)) ** 2).mean(axis=(1, 2, 3)),
    ),
    "either": Row(
        lambda t: objectives.either(
            [objectives.channel("maps", t[0]), objectives.layer("maps")], t[1]
        ),
        (INDEX, np.array([1, 0], np.int32)),
        lambda m, k, x: np.array([(m[0] ** 2).mean(), m[1, :, :, 0].mean()]),
    ),
    "a sum": Row(
        lambda t: 2.0 * objectives.direction("maps", t[0]) - objectives.layer("maps") * t[1],
        (VECTOR, np.array([0.5, 3.0], np.float32)),
        lambda m, k, x: (
            2 * (mean(m) * VECTOR).sum(axis=1) - np.array([0.5, 3.0]) * (flat(m) ** 2).mean(axis=1)
        ),
    ),
}


TARGETS = {name: row.targets for name, row in ROWS.items()}


@jax.jit
def values_and_gradients(
    targets: dict[str, Any], images01: jax.Array
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The values f32[2] of every objective, and the gradient of their sum."""

    def one(name: str) -> tuple[jax.Array, jax.Array]:
        value, pull = jax.vjp(lambda x: ROWS[name].make(targets[name])(net({}, x), x), images01)
        return value, pull(jnp.ones_like(value))[0]

    return {name: one(name) for name in ROWS}


@pytest.fixture(scope="module")
def optimized() -> dict[str, np.ndarray]:
    """The scores f32[steps + 1] of each objective, optimized in one grid by one program."""
    # `diversity` depends on the other images of the grid; test_render has a test of it.
    names = [name for name in ROWS if name != "diversity"]
    n = len(names)
    row_each = jax.tree.map(lambda leaf: np.broadcast_to(leaf[:1], (n, *leaf.shape[1:])), TARGETS)

    def objective(targets: dict[str, Any]) -> Objective:
        return objectives.either([ROWS[name].make(targets[0][name]) for name in names], targets[1])

    plain = lambda key, image: image
    image = images.box(SIZE, spread=0.1)
    optimize = render.make(net, image, objective, transform=plain, steps=8, optimizer="sign")
    keys = jax.random.split(jax.random.key(0), n)
    scores = optimize({}, keys, (row_each, np.arange(n, dtype=np.int32)), step_size=0.03).scores
    return dict(zip(names, np.asarray(scores).T, strict=True))


def test_every_objective_of_the_module_is_in_the_table() -> None:
    names = {
        name
        for name, f in vars(objectives).items()
        if callable(f) and f.__module__ == objectives.__name__
    }
    rows = {row.make.__name__ for row in ROWS.values()} | {name.replace(" ", "_") for name in ROWS}
    assert {name for name in names if name.islower() and not name.startswith("_")} <= rows | {
        "costs",
        "activations",
    }


@pytest.mark.parametrize("name", ROWS)
def test_every_objective_has_its_value_by_hand(name: str) -> None:
    images01 = noise(2, SIZE, SIZE, 3, seed=1)
    output = net({}, images01)
    value, gradient = values_and_gradients(TARGETS, images01)[name]
    assert value.shape == (2,) and value.dtype == jnp.float32
    arrays = (
        np.asarray(x, np.float64) for x in (output.endpoints["maps"], output.logits, images01)
    )
    np.testing.assert_allclose(value, ROWS[name].value(*arrays), rtol=2e-4, atol=1e-6)
    assert (np.abs(gradient).max(axis=(1, 2, 3)) > 1e-4).all()


@pytest.mark.parametrize("name", [name for name in ROWS if name != "diversity"])
def test_every_objective_rises(name: str, optimized: dict[str, np.ndarray]) -> None:
    assert optimized[name].shape == (9,)
    assert optimized[name][-1] > optimized[name][0] + 1e-4


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("nothing", [False, True], ids=["target", "zero target"])
def test_gradients_of_uniform_images_are_finite(level: float, nothing: bool) -> None:
    """At gray all activations are 0; a target may be zero as well."""
    targets = TARGETS | {
        name: 0 * TARGETS[name]
        for name in ("direction", "cosine", "likeness", "caricature", "similarity")
        if nothing
    }
    for name, (value, slope) in values_and_gradients(
        targets, jnp.full((2, SIZE, SIZE, 3), level)
    ).items():
        assert np.isfinite(value).all() and np.isfinite(slope).all(), name


def at(objective: Objective, maps: jax.Array) -> np.ndarray:
    """The objective of an Output that has this map only."""

    @jax.jit
    def value(maps: jax.Array) -> jax.Array:
        return objective(Output(None, maps[:, 0, 0], {"maps": maps}, {}), maps)

    return np.asarray(value(maps))


# ---- classes and activations ----


def test_an_unknown_endpoint_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="no endpoint 'map'; nearest: 'maps'"):
        at(objectives.layer("map"), noise(1, 2, 2, 3))
    for objective in (objectives.class_logit(jnp.ones((1, 3), bool)), objectives.layer("logits")):
        with pytest.raises(
            ValueError, match="reads class logits, and the network has no classifier"
        ):
            at(objective, noise(1, 2, 2, 3))


def test_a_neurons_place_is_clipped_and_the_center_by_default() -> None:
    maps = noise(4, 5, 6, 3)
    index = jnp.asarray([0, 1, 2, 9])
    values = at(
        objectives.neuron("maps", index, jnp.asarray([[0, 5], [9, 9], [-1, 2], [-1, -1]])), maps
    )
    np.testing.assert_array_equal(
        values, [maps[0, 0, 5, 0], maps[1, 4, 5, 1], maps[2, 2, 2, 2], maps[3, 2, 3, 2]]
    )
    np.testing.assert_array_equal(
        at(objectives.neuron("maps", index), maps)[:2], [maps[0, 2, 3, 0], maps[1, 2, 3, 1]]
    )


def test_cosine_penalizes_other_channels() -> None:
    """Power 0 is the direction. At power 2 an angle of 60 degrees has a quarter of it."""
    maps = jnp.asarray([[4.0, 0.0], [2.0, np.sqrt(12.0)], [-3.0, 0.0]])[:, None, None]
    vector = jnp.asarray([[1.0, 0.0]] * 3)
    np.testing.assert_allclose(
        at(objectives.cosine("maps", vector, 0.0), maps), [4, 2, -3], rtol=1e-6
    )
    np.testing.assert_allclose(
        at(objectives.direction("maps", vector), maps), [4, 2, -3], rtol=1e-6
    )
    np.testing.assert_allclose(
        at(objectives.cosine("maps", vector), maps), [4, 2 / 4, -3 / 100], rtol=1e-5
    )


def test_likeness_and_caricature_are_relative_to_the_photograph() -> None:
    """0 and 1 at the photograph, -1 and 0 at zero, -1 and 2 at twice its activations."""
    photo = noise(3, 4, 5, 6) - 0.5
    maps = photo * jnp.asarray([1.0, 0.0, 2.0])[:, None, None, None]
    np.testing.assert_allclose(at(objectives.likeness("maps", photo), maps), [0, -1, -1], atol=1e-5)
    np.testing.assert_allclose(at(objectives.caricature("maps", photo), maps), [1, 0, 2], atol=1e-5)


@pytest.mark.parametrize("make", [objectives.likeness, objectives.caricature])
def test_a_photographs_map_may_have_another_size_but_not_other_channels(
    make: Callable[..., Objective],
) -> None:
    levels = jnp.arange(1.0, 4.0)[None, None, None]
    large, small = (jnp.broadcast_to(levels, (1, side, side, 3)) for side in (6, 4))
    assert at(make("maps", small), large) == pytest.approx(
        0.0 if make is objectives.likeness else 1.0, abs=1e-5
    )
    with pytest.raises(ValueError, match="does not fit maps: got 2 channels, expected 3"):
        at(make("maps", small[..., :2]), large)


def test_diversity_is_between_minus_one_and_zero() -> None:
    """-1 for the same texture, shifted or brighter; 0 for disjoint channels, and for one image."""
    diversity = objectives.diversity("maps")
    one = noise(1, 4, 4, 3)
    np.testing.assert_allclose(at(diversity, one), [0.0])
    same = jnp.concatenate([one, 2.0 * one, jnp.roll(one, 2, 1)])
    np.testing.assert_allclose(at(diversity, same), [-1, -1, -1], rtol=1e-5)
    disjoint = jnp.eye(3)[:, None, None]
    np.testing.assert_allclose(at(diversity, disjoint), [0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(
        at(diversity, disjoint[jnp.asarray([0, 0, 1])]), [-0.5, -0.5, 0], atol=1e-6
    )
    some = at(diversity, noise(6, 4, 4, 5) - 0.5)
    assert (-1 <= some).all() and (some <= 0).all()


# ---- costs of the image itself ----


def test_total_variation_equals_values_by_hand() -> None:
    image = np.zeros((1, 2, 3, 1), np.float32)
    image[0, :, :, 0] = [[0.0, 0.5, 0.25], [1.0, 0.5, 0.75]]
    across, down = (0.5 + 0.25 + 0.5 + 0.25) / 4, (1.0 + 0.0 + 0.5) / 3
    np.testing.assert_allclose(
        objectives.total_variation(jnp.asarray(image)), [across + down], rtol=1e-6
    )
    # The last row has no neighbor below.
    both = np.hypot([0.5, 0.25, 0.0], [1.0, 0.0, 0.5]).sum() + 0.5 + 0.25
    np.testing.assert_allclose(
        objectives.isotropic_variation(jnp.asarray(image)), [both / 6], rtol=1e-5
    )


def test_variations_of_noise_stripes_and_uniform_images_are_known() -> None:
    """White noise has 1/3 per direction at any size, stripes of one pixel 1, uniform images 0."""
    assert list(objectives.VARIATIONS) == ["anisotropic", "isotropic"]
    anisotropic, isotropic = (jax.jit(cost) for cost in objectives.VARIATIONS.values())
    for size in (16, 64):
        white = noise(8, size, size, 3)
        assert anisotropic(white).mean() == pytest.approx(2 / 3, abs=0.01)
        assert (isotropic(white) < anisotropic(white)).all()
    stripes = jnp.broadcast_to(
        jnp.arange(64, dtype=jnp.float32)[None, :, None, None] % 2, (1, 64, 64, 3)
    )
    flat = jnp.full((1, 64, 64, 3), 0.3)
    for variation in (anisotropic, isotropic):
        np.testing.assert_allclose(variation(stripes), [1.0], rtol=0.02)  # isotropic: 63 of 64 rows
        np.testing.assert_allclose(variation(flat), [0.0], atol=2e-6)


def test_energy_is_the_squared_distance_from_gray() -> None:
    levels = jnp.asarray([0.0, 0.25, 0.5, 1.0])[:, None, None, None] * jnp.ones((4, 2, 2, 3))
    np.testing.assert_allclose(objectives.energy(levels), [1, 0.25, 0, 1])


def test_a_step_down_the_roughness_is_the_blurred_image() -> None:
    """0 for a uniform image. No gradient flows through the blurred image."""
    images01 = noise(2, 6, 7, 3)
    np.testing.assert_allclose(objectives.roughness(jnp.full((1, 4, 4, 3), 0.3)), [0.0], atol=1e-12)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(objectives.roughness(x))))(images01)
    expected = blurred(np.asarray(images01))
    np.testing.assert_allclose(images01 - slope * (6 * 7 * 3 / 2), expected, atol=1e-5)


# ---- algebra ----


@given(st.floats(-3, 3, width=32), st.floats(-3, 3, width=32))
def test_objectives_add_scale_and_subtract(a: float, b: float) -> None:
    one, two = Objective(lambda output, x: x), Objective(lambda output, x: x * x)
    x = np.array([0.5, -2.0])
    both = a * one + two * b - one
    np.testing.assert_allclose(both(None, x), a * x + b * x * x - x, rtol=1e-6, atol=1e-9)  # pyright: ignore


@pytest.mark.parametrize("array", [jnp.asarray, np.asarray])
def test_a_weight_per_image_multiplies_from_either_side(array: Callable) -> None:
    one = Objective(lambda output, x: x)
    x, weights = jnp.asarray([0.5, -2.0]), array([3.0, 10.0], dtype="float32")
    for weighted in (weights * one, one * weights):
        assert isinstance(weighted, Objective)
        np.testing.assert_allclose(weighted(None, x), [1.5, -20.0])  # pyright: ignore
    np.testing.assert_allclose((weights[0] * one)(None, x), [1.5, -6.0])


def test_either_selects_one_objective_per_image() -> None:
    """An index out of range of another objective has no effect."""
    maps = noise(3, 2, 2, 4)
    index = jnp.asarray([3, 700, 1])
    both = [objectives.channel("maps", index), objectives.layer("maps")]
    values = at(objectives.either(both, jnp.asarray([0, 1, 0])), maps)
    expected = [maps[0, :, :, 3].mean(), jnp.mean(maps[1] ** 2), maps[2, :, :, 1].mean()]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert objectives.either(both[:1], jnp.zeros(3, jnp.int32)) is both[0]
