"""The climb that joins objective, picture, views and costs, on a toy network whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl.ascent import transforms
from tl.backbones.layers import relu, relu6
from tl.types import Output, Variables
from tl.visualize import images, objectives, render
from tl.visualize.objectives import Objective

SIZE = 12
KEYS = jax.random.split(jax.random.key(7), 4)
RED, GREEN, BLUE = 0, 1, 2
TARGETS = np.array([RED, BLUE, RED, GREEN], np.int32)
TOY: Variables = {"params": {"gain": jnp.full((1, 3), 30.0, jnp.float32)}}
WAVES = jnp.arange(SIZE * SIZE * 3, dtype=jnp.float32).reshape(1, SIZE, SIZE, 3)
PLAIN: Callable[[jax.Array, jax.Array], jax.Array] = lambda key, image: image


def colors(variables: Variables, images01: jax.Array) -> Output:
    """Three classes, red, green and blue: how much of the channel stands beside the mean of all."""
    maps = images01 - jnp.mean(images01, axis=3, keepdims=True)
    features = jnp.mean(maps, axis=(1, 2))
    return Output(variables["params"]["gain"] * features, features, {"maps": maps}, {})


def share(key: jax.Array) -> jax.Array:
    """A number in [0, 1] from a key, many times quicker to compile than `jax.random`."""
    return jax.random.key_data(key)[..., -1].astype(jnp.float32) / 2.0**32


def turned(key: jax.Array, image: jax.Array) -> jax.Array:
    """A random view that changes no mean."""
    return jnp.where(share(key) < 0.5, image[:, ::-1], image)


def clipped(theta: jax.Array) -> jax.Array:
    return jnp.clip(theta, 0.0, 1.0)


RAW = images.Image(
    lambda keys: 0.5 + 0.1 * jnp.sin(1e3 * share(keys)[:, None, None, None] * WAVES),
    clipped,
    clipped,
    clipped,
)
"""A box of pixels whose start is quick to compile; a key each, as all."""


def color(index: jax.Array) -> Objective:
    return objectives.channel("logits", index)


def make(
    image: images.Image = RAW,
    *,
    apply: Callable = colors,
    objective: Callable = color,
    **kwargs: Any,
) -> render.Render:
    return render.make(
        apply, image, objective, **{"transform": turned, "steps": 8, "optimizer": "sgd", **kwargs}
    )


@pytest.fixture(scope="module")
def one_by_one() -> render.Render:
    """A climb in which each image is alone, with frames: most tests share its programs."""
    return make(images.fourier(SIZE), together=1, frames=3)


def wanted(images01: jax.Array, targets: np.ndarray = TARGETS) -> np.ndarray:
    return np.asarray(colors(TOY, images01).logits)[np.arange(len(targets)), targets]


# ------------------------------------------------------------------------------------------------------------ the climb


@pytest.mark.parametrize(
    ("name", "optimizer", "step_size"), [("pyramid", "sign", 0.05), ("maco", "adam", 0.1)]
)
def test_what_is_wanted_rises(name: str, optimizer: str, step_size: float) -> None:
    image = images.PARAMETERIZATIONS[name](SIZE)
    found = make(image, optimizer=optimizer, transform=transforms.roll(2))(
        TOY, KEYS, TARGETS, step_size=step_size
    )
    before, after = wanted(found.start), wanted(found.images)
    assert (after > before + 0.1).all()
    assert found.scores.shape == (9, 4)
    np.testing.assert_allclose(found.scores[0], before, atol=1e-4)  # the views change no mean
    np.testing.assert_allclose(found.scores[-1], after, atol=1e-4)
    assert found.images.shape == (4, SIZE, SIZE, 3) and found.frames.shape == (0, 4, SIZE, SIZE, 3)
    assert found.images.min() >= 0 and found.images.max() <= 1


@pytest.mark.optimized
def test_the_same_key_is_the_same_image_to_the_bit(one_by_one: render.Render) -> None:
    again = [
        one_by_one(TOY, keys, TARGETS, tv=1.0, step_size=1.0) for keys in (KEYS, KEYS, KEYS[::-1])
    ]
    for a, b, c in zip(*again, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (np.asarray(a) != np.asarray(c)).any()


@pytest.mark.optimized
def test_an_image_alone_is_the_same_to_the_bit_in_any_grid(one_by_one: render.Render) -> None:
    tv = np.array([0.0, 3.0, 10.0, 30.0], np.float32)
    grid = one_by_one(TOY, KEYS, TARGETS, tv=tv, step_size=1.0)
    for i in range(4):
        alone = one_by_one(
            TOY, KEYS[i : i + 1], TARGETS[i : i + 1], tv=tv[i : i + 1], step_size=1.0
        )
        for name in ("images", "start"):
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(grid, name)[i])
        for name in ("scores", "frames"):
            np.testing.assert_array_equal(getattr(alone, name)[:, 0], getattr(grid, name)[:, i])


def test_groups_change_nothing_but_the_rounding(one_by_one: render.Render) -> None:
    """Four at once, two by two or one by one: the same keys, the same views, and each result in its own place."""
    tv = np.array([0.0, 3.0, 10.0, 30.0], np.float32)
    apart = one_by_one(TOY, KEYS, TARGETS, tv=tv, step_size=1.0)
    for together in (0, 2):
        climb = make(images.fourier(SIZE), together=together, frames=3)
        found = climb(TOY, KEYS, TARGETS, tv=tv, step_size=1.0)
        for a, b in zip(found, apart, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_frames_are_the_way_and_the_last_is_the_image(one_by_one: render.Render) -> None:
    found = one_by_one(TOY, KEYS, TARGETS, step_size=1.0)
    assert found.frames.shape == (3, 4, SIZE, SIZE, 3)
    np.testing.assert_allclose(found.frames[-1], found.images, atol=1e-6)
    values = np.stack([wanted(x) for x in (found.start, *found.frames)])
    assert (np.diff(values, axis=0) > 0).all()
    np.testing.assert_allclose(values[1:], found.scores[np.array([3, 6, 8])], atol=1e-4)


@pytest.mark.parametrize("variation", objectives.VARIATIONS)
def test_no_step_shows_the_start_and_its_score(variation: str) -> None:
    """The objective less the weighted costs, of whichever variation."""
    climb = make(steps=0, frames=5, redirect=3, variation=variation)
    found = climb(
        TOY, KEYS, TARGETS, tv=np.array([2.0, 5.0, 0.0, 1.0]), l2=3.0, blur=7.0, step_size=1.0
    )
    np.testing.assert_array_equal(found.images, found.start)
    assert found.frames.shape == (0, 4, SIZE, SIZE, 3)
    score = (
        wanted(found.start)
        - 3.0 * objectives.energy(found.start)
        - 7.0 * objectives.roughness(found.start)
    )
    score -= np.array([2.0, 5.0, 0.0, 1.0], np.float32) * objectives.VARIATIONS[variation](
        found.start
    )
    np.testing.assert_allclose(found.scores, score[None], rtol=1e-4, atol=1e-5)


def test_a_photograph_may_be_the_start() -> None:
    photographs = jnp.asarray(
        np.random.default_rng(0).uniform(0.1, 0.9, (4, SIZE, SIZE, 3)), jnp.float32
    )
    found = make(images.fourier(SIZE), optimizer="adam")(
        TOY, KEYS, TARGETS, step_size=0.01, start=photographs
    )
    np.testing.assert_allclose(found.start, photographs, atol=1e-4)
    assert (wanted(found.images) > wanted(photographs)).all()
    assert np.abs(found.images - photographs).mean() < 0.2


def test_the_step_size_falls_to_its_last_share() -> None:
    """On a slope that is the same everywhere the sign's steps are the step sizes: 1, 0.8, 0.6, 0.4 of the first to 0.2."""
    climb = make(steps=4, frames=4, optimizer="sign", transform=PLAIN, last_step_size=0.2)
    found = climb(TOY, KEYS[:1], TARGETS[:1], step_size=0.1)
    red = np.stack([found.start, *found.frames])[:, 0, :, :, RED]
    np.testing.assert_allclose(np.diff(red.mean(axis=(1, 2))), [0.1, 0.08, 0.06, 0.04], atol=1e-6)


def test_views_are_judged_and_costs_are_of_the_image_itself() -> None:
    """The view is black: the network sees nothing of the picture, its cost is the picture's own."""
    climb = make(steps=1, transform=lambda key, image: 0.0 * image)
    found = climb(TOY, KEYS, TARGETS, tv=2.0, step_size=1.0)
    np.testing.assert_allclose(
        found.scores[0], -2.0 * objectives.total_variation(found.start), rtol=1e-5
    )


# ------------------------------------------------------------------------------------------------------ costs and sweeps


def test_costs_do_what_they_say_and_one_trace_serves_a_sweep() -> None:
    traced: list[tuple[int, ...]] = []

    def spy(variables: Variables, images01: jax.Array) -> Output:
        traced.append(images01.shape)
        return colors(variables, images01)

    climb = make(apply=spy)
    free = climb(TOY, KEYS, TARGETS, step_size=1.0).images
    once = len(traced)
    smooth, smoother, mixed = (
        climb(TOY, KEYS, TARGETS, tv=tv, step_size=1.0).images
        for tv in (2.0, 20.0, np.array([0.0, 20.0, 2.0, 0.0]))
    )
    calm = climb(TOY, KEYS, TARGETS, l2=30.0, step_size=1.0).images
    blurred = climb(TOY, KEYS, TARGETS, blur=100.0, step_size=1.0).images
    climb(
        {"params": {"gain": jnp.ones((1, 3), jnp.float32)}},
        KEYS[::-1],
        TARGETS[::-1],
        tv=3.0,
        step_size=0.3,
    )
    assert len(traced) == once > 0

    rest, more, most = (np.asarray(objectives.total_variation(x)) for x in (free, smooth, smoother))
    assert (more < rest).all() and (most < 0.9 * rest).all()
    assert (objectives.energy(calm) < 0.9 * objectives.energy(free)).all()
    assert (objectives.roughness(blurred) < 0.9 * objectives.roughness(free)).all()
    for i, x in enumerate((free, smoother, smooth, free)):  # each image has its own weight
        np.testing.assert_allclose(mixed[i], x[i], atol=1e-6)


def test_a_grid_of_weights_targets_and_keys_is_one_trace() -> None:
    """4 x 4 x 4 images, twice: the second time with other numbers everywhere."""
    traced = []

    def spy(variables: Variables, images01: jax.Array) -> Output:
        traced.append(images01.shape)
        return colors(variables, images01)

    climb = make(apply=spy, together=1, steps=2)
    tv, target, key = (
        x.ravel()
        for x in np.meshgrid([0.0, 1.0, 10.0, 100.0], TARGETS, np.arange(4), indexing="ij")
    )
    found = climb(TOY, KEYS[key], target, tv=tv, step_size=1.0)
    once = len(traced)
    other = climb(TOY, KEYS[key[::-1]], target[::-1], tv=2.0 * tv, step_size=0.5)
    assert len(traced) == once > 0 and set(traced) == {(1, SIZE, SIZE, 3)}
    assert found.images.shape == other.images.shape == (64, SIZE, SIZE, 3)
    np.testing.assert_array_equal(
        found.start[:16], found.start[16:32]
    )  # the key alone, whatever the weight
    np.testing.assert_array_equal(found.start, other.start[::-1])
    assert len({x.tobytes() for x in np.asarray(found.images)}) == 4 * 3 * 4  # red is there twice


# --------------------------------------------------------------------------------------------- several nets, whole grids


def test_several_networks_at_once() -> None:
    """What both want: the first red, the second, with half the gain, green."""

    def both(variables: Any, images01: jax.Array) -> tuple[Output, Output]:
        return colors(variables[0], images01), colors(variables[1], images01)

    def sum_of(index: jax.Array) -> Objective:
        one, two = objectives.channel("logits", index), objectives.channel("logits", index + 1)
        return Objective(lambda outputs, x: one(outputs[0], x) + two(outputs[1], x))

    half = {"params": {"gain": TOY["params"]["gain"] / 2}}
    climb = make(apply=both, objective=sum_of, optimizer="lbfgs")
    found = climb((TOY, half), KEYS[:2], np.array([RED, GREEN], np.int32), step_size=0.5)
    logits = np.asarray(colors(TOY, found.images).logits)
    scores = logits[[0, 1], [RED, GREEN]] + logits[[0, 1], [GREEN, BLUE]] / 2
    np.testing.assert_allclose(found.scores[-1], scores, atol=1e-4)
    assert (found.scores[-1] > found.scores[0] + 0.1).all()


def test_diversity_makes_the_images_of_a_grid_less_alike() -> None:
    def varied(weight: jax.Array) -> Objective:
        return objectives.layer("maps") * 100.0 + objectives.diversity("maps") * weight

    climb = make(objective=varied, optimizer="adam", transform=PLAIN)
    diversity = lambda x: np.asarray(objectives.diversity("maps")(colors(TOY, x), x))
    without, with_it = (
        climb(TOY, KEYS, np.full(4, weight, np.float32), step_size=0.1).images
        for weight in (0.0, 30.0)
    )
    assert (diversity(with_it) > diversity(without) + 0.05).all()


# -------------------------------------------------------------------------------------------------------------- redirect


def dead(variables: Any, images01: jax.Array) -> Output:
    """A relu that is off and a relu6 that is full for every colour of the start, which is near grey."""
    off, full = relu(4.0 * images01 - 3.0), relu6(20.0 * images01)
    return Output(None, jnp.mean(off, axis=(1, 2)), {"off": off, "full": full}, {})


@pytest.mark.optimized
@pytest.mark.parametrize(("endpoint", "sign"), [("off", 1.0), ("full", -1.0)])
def test_a_redirect_wakes_a_unit(endpoint: str, sign: float) -> None:
    """Without it the picture stays as it was to the bit; with it the unit wakes, and the plain climb takes over."""
    wants = lambda t: objectives.channel(endpoint, t) * sign
    plain, woken = (
        make(
            apply=dead,
            objective=wants,
            optimizer="sign",
            transform=PLAIN,
            redirect=redirect,
            steps=12,
        )
        for redirect in (0, 8)
    )
    asleep, awake = (climb({}, KEYS[:2], TARGETS[:2], step_size=0.06) for climb in (plain, woken))
    np.testing.assert_array_equal(asleep.images, asleep.start)
    np.testing.assert_array_equal(
        asleep.scores[0], sign * np.float32([0, 0] if endpoint == "off" else [6, 6])
    )
    np.testing.assert_array_equal(awake.scores[0], asleep.scores[0])  # values are the same
    assert (awake.scores[8] > awake.scores[0] + 0.01).all()
    assert (awake.scores[-1] > awake.scores[8] + 0.01).all()


# ------------------------------------------------------------------------------------------------------- what is refused


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown optimizer 'adma'; nearest: 'adam'"):
        make(optimizer="adma")
    with pytest.raises(ValueError, match="unknown variation 'isotropc'; nearest: 'isotropic'"):
        make(variation="isotropc")


def test_weights_and_groups_are_checked(one_by_one: render.Render) -> None:
    for weights, message in (
        ({"tv": -1.0}, "tv is a weight of at least 0, or one for each of 4 images; got -1.0"),
        ({"tv": np.ones(3)}, "tv is a weight of at least 0, or one for each of 4 images"),
        ({"l2": np.array([1.0, -1.0, 0.0, 0.0])}, "l2 is a weight"),
        ({"blur": float("nan")}, "blur is a weight"),
    ):
        with pytest.raises(ValueError, match=message):
            one_by_one(TOY, KEYS, TARGETS, step_size=1.0, **weights)
    with pytest.raises(
        ValueError, match="groups of 3; got 4 images, which is no whole number of groups"
    ):
        make(together=3)(TOY, KEYS, TARGETS, step_size=1.0)


def test_a_climb_that_breaks_names_image_and_step() -> None:
    """Of two images only the second, whose colour is red, goes over the edge; three steps of 0.1 are too far."""

    def cliff(index: jax.Array) -> Objective:
        value = color(index)
        edge = lambda x: jnp.where(
            (index == RED) & (jnp.mean(x, axis=(1, 2))[:, RED] > 0.75), jnp.nan, 0.0
        )
        return Objective(lambda output, x: value(output, x) + edge(x))

    climb = make(objective=cliff, optimizer="sign", transform=PLAIN, last_step_size=1.0)
    with pytest.raises(
        ValueError, match="image 1 became nan at step 3; take a smaller step size than 0.1"
    ):
        climb(TOY, KEYS[:2], np.array([BLUE, RED], np.int32), step_size=0.1)
    climb(TOY, KEYS[:2], np.array([BLUE, RED], np.int32), step_size=0.01)


def test_a_climb_may_be_part_of_a_larger_program() -> None:
    climb = make(steps=2)
    inside = jax.jit(lambda keys, tv: climb(TOY, keys, TARGETS, tv=tv, step_size=1.0).images)
    outside = climb(TOY, KEYS, TARGETS, tv=3.0, step_size=1.0).images
    np.testing.assert_allclose(inside(KEYS, jnp.float32(3.0)), outside, atol=1e-6)
