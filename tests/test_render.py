"""The compiled optimization of images, on a network whose logits are mean colors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from tl.ascent import transforms
from tl.backbones.gradients import relu, relu6
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
    """Three classes, red, green and blue: the excess of a channel over the mean of all."""
    maps = images01 - jnp.mean(images01, axis=3, keepdims=True)
    features = jnp.mean(maps, axis=(1, 2))
    return Output(variables["params"]["gain"] * features, features, {"maps": maps}, {})


def flipped(key: jax.Array, image: jax.Array) -> jax.Array:
    """A random transform that changes no mean."""
    return jnp.where(toys.uniform(key) < 0.5, image[:, ::-1], image)


def clipped(theta: jax.Array) -> jax.Array:
    return jnp.clip(theta, 0.0, 1.0)


RAW = images.Image(
    lambda keys: 0.5 + 0.1 * jnp.sin(1e3 * toys.uniform(keys)[:, None, None, None] * WAVES),
    clipped,
    clipped,
    clipped,
)
"""Pixels in a box, with a start that compiles fast."""


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
        apply, image, objective, **{"transform": flipped, "steps": 8, "optimizer": "sgd", **kwargs}
    )


@pytest.fixture(scope="module")
def one_by_one() -> render.Render:
    """A render of one image per group, with frames; most tests share its programs."""
    return make(images.fourier(SIZE), together=1, frames=3)


def logits_of(images01: jax.Array, targets: np.ndarray = TARGETS) -> np.ndarray:
    return np.asarray(colors(TOY, images01).logits)[np.arange(len(targets)), targets]


# ---- the optimization ----


@pytest.mark.parametrize(
    ("name", "optimizer", "step_size"),
    [
        ("pyramid", "sign", 0.05),
        pytest.param("maco", "adam", 0.1, marks=pytest.mark.full),
    ],
)
def test_the_objective_rises(name: str, optimizer: str, step_size: float) -> None:
    image = images.PARAMETERIZATIONS[name](SIZE)
    ideal = make(image, optimizer=optimizer, transform=transforms.roll(2))(
        TOY, KEYS, TARGETS, step_size=step_size
    )
    before, after = logits_of(ideal.start), logits_of(ideal.images)
    assert (after > before + 0.1).all()
    assert ideal.scores.shape == (9, 4)
    np.testing.assert_allclose(ideal.scores[0], before, atol=1e-4)  # the transforms change no mean
    np.testing.assert_allclose(ideal.scores[-1], after, atol=1e-4)
    assert ideal.images.shape == (4, SIZE, SIZE, 3) and ideal.frames.shape == (0, 4, SIZE, SIZE, 3)
    assert ideal.images.min() >= 0 and ideal.images.max() <= 1


@pytest.mark.optimized
def test_the_same_keys_give_the_same_bits(one_by_one: render.Render) -> None:
    again = [
        one_by_one(TOY, keys, TARGETS, tv=1.0, step_size=1.0) for keys in (KEYS, KEYS, KEYS[::-1])
    ]
    for a, b, c in zip(*again, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (np.asarray(a) != np.asarray(c)).any()


@pytest.mark.optimized
def test_an_image_has_the_same_bits_alone_and_in_any_grid(one_by_one: render.Render) -> None:
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


@pytest.mark.parametrize("together", [2, pytest.param(0, marks=pytest.mark.full)])
def test_the_group_size_changes_rounding_only(one_by_one: render.Render, together: int) -> None:
    """Groups of four, two or one have the same keys and transforms, and their rows in order."""
    tv = np.array([0.0, 3.0, 10.0, 30.0], np.float32)
    single = one_by_one(TOY, KEYS, TARGETS, tv=tv, step_size=1.0)
    optimize = make(images.fourier(SIZE), together=together, frames=3)
    ideal = optimize(TOY, KEYS, TARGETS, tv=tv, step_size=1.0)
    for a, b in zip(ideal, single, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_frames_are_the_path_and_the_last_is_the_image(one_by_one: render.Render) -> None:
    ideal = one_by_one(TOY, KEYS, TARGETS, step_size=1.0)
    assert ideal.frames.shape == (3, 4, SIZE, SIZE, 3)
    np.testing.assert_allclose(ideal.frames[-1], ideal.images, atol=1e-6)
    values = np.stack([logits_of(x) for x in (ideal.start, *ideal.frames)])
    assert (np.diff(values, axis=0) > 0).all()
    np.testing.assert_allclose(values[1:], ideal.scores[np.array([3, 6, 8])], atol=1e-4)


@pytest.mark.parametrize("variation", objectives.VARIATIONS)
def test_zero_steps_return_the_start_and_its_score(variation: str) -> None:
    """The score is the objective minus the weighted costs."""
    optimize = make(steps=0, frames=5, redirect=3, variation=variation)
    ideal = optimize(
        TOY, KEYS, TARGETS, tv=np.array([2.0, 5.0, 0.0, 1.0]), l2=3.0, blur=7.0, step_size=1.0
    )
    np.testing.assert_array_equal(ideal.images, ideal.start)
    assert ideal.frames.shape == (0, 4, SIZE, SIZE, 3)
    score = (
        logits_of(ideal.start)
        - 3.0 * objectives.energy(ideal.start)
        - 7.0 * objectives.roughness(ideal.start)
    )
    score -= np.array([2.0, 5.0, 0.0, 1.0], np.float32) * objectives.VARIATIONS[variation](
        ideal.start
    )
    np.testing.assert_allclose(ideal.scores, score[None], rtol=1e-4, atol=1e-5)


def test_a_photograph_may_be_the_start() -> None:
    photographs = jnp.asarray(
        np.random.default_rng(0).uniform(0.1, 0.9, (4, SIZE, SIZE, 3)), jnp.float32
    )
    ideal = make(images.fourier(SIZE), optimizer="adam")(
        TOY, KEYS, TARGETS, step_size=0.01, start=photographs
    )
    np.testing.assert_allclose(ideal.start, photographs, atol=1e-4)
    assert (logits_of(ideal.images) > logits_of(photographs)).all()
    assert np.abs(ideal.images - photographs).mean() < 0.2


def test_the_step_size_falls_to_its_last_share() -> None:
    """With a constant gradient, sign steps equal the step sizes: 1, 0.8, 0.6, 0.4 of the first."""
    optimize = make(steps=4, frames=4, optimizer="sign", transform=PLAIN, last_step_size=0.2)
    ideal = optimize(TOY, KEYS[:1], TARGETS[:1], step_size=0.1)
    red = np.stack([ideal.start, *ideal.frames])[:, 0, :, :, RED]
    np.testing.assert_allclose(np.diff(red.mean(axis=(1, 2))), [0.1, 0.08, 0.06, 0.04], atol=1e-6)


def test_the_objective_is_of_the_transformed_image_and_costs_are_of_the_image() -> None:
    """The transform is black, so the objective is 0 and the score is the cost."""
    optimize = make(steps=1, transform=lambda key, image: 0.0 * image)
    ideal = optimize(TOY, KEYS, TARGETS, tv=2.0, step_size=1.0)
    np.testing.assert_allclose(
        ideal.scores[0], -2.0 * objectives.total_variation(ideal.start), rtol=1e-5
    )


def test_each_image_and_step_has_its_own_transform() -> None:
    """The transform fills an image with one random level, which is the score."""
    mean = lambda variables, x: colors(variables, x)._replace(logits=jnp.mean(x, axis=(1, 2)))
    level = lambda key, image: jnp.full_like(image, toys.uniform(key))
    scores = make(apply=mean, transform=level)(TOY, KEYS, TARGETS, step_size=1.0).scores
    assert len(np.unique(scores)) == scores.size


# ---- costs and sweeps ----


def test_weights_lower_their_costs_in_one_trace() -> None:
    traced: list[tuple[int, ...]] = []

    def spy(variables: Variables, images01: jax.Array) -> Output:
        traced.append(images01.shape)
        return colors(variables, images01)

    optimize = make(apply=spy)
    free = optimize(TOY, KEYS, TARGETS, step_size=1.0).images
    once = len(traced)
    smooth, smoother, mixed = (
        optimize(TOY, KEYS, TARGETS, tv=tv, step_size=1.0).images
        for tv in (2.0, 20.0, np.array([0.0, 20.0, 2.0, 0.0]))
    )
    calm = optimize(TOY, KEYS, TARGETS, l2=30.0, step_size=1.0).images
    blurred = optimize(TOY, KEYS, TARGETS, blur=100.0, step_size=1.0).images
    optimize(
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
    """4 x 4 x 4 images, twice: the second time with other values everywhere."""
    traced = []

    def spy(variables: Variables, images01: jax.Array) -> Output:
        traced.append(images01.shape)
        return colors(variables, images01)

    optimize = make(apply=spy, together=1, steps=2)
    tv, target, key = (
        x.ravel()
        for x in np.meshgrid([0.0, 1.0, 10.0, 100.0], TARGETS, np.arange(4), indexing="ij")
    )
    ideal = optimize(TOY, KEYS[key], target, tv=tv, step_size=1.0)
    once = len(traced)
    other = optimize(TOY, KEYS[key[::-1]], target[::-1], tv=2.0 * tv, step_size=0.5)
    assert len(traced) == once > 0 and set(traced) == {(1, SIZE, SIZE, 3)}
    assert ideal.images.shape == other.images.shape == (64, SIZE, SIZE, 3)
    # The start depends on the key only.
    np.testing.assert_array_equal(ideal.start[:16], ideal.start[16:32])
    np.testing.assert_array_equal(ideal.start, other.start[::-1])
    assert len({x.tobytes() for x in np.asarray(ideal.images)}) == 4 * 3 * 4  # red is there twice


# ---- several networks, whole grids ----


def test_an_objective_may_read_several_networks() -> None:
    """The sum of a logit of one network and the next logit of another with half its gain."""

    def both(variables: Any, images01: jax.Array) -> tuple[Output, Output]:
        return colors(variables[0], images01), colors(variables[1], images01)

    def sum_of(index: jax.Array) -> Objective:
        one, two = objectives.channel("logits", index), objectives.channel("logits", index + 1)
        return Objective(lambda outputs, x: one(outputs[0], x) + two(outputs[1], x))

    half = {"params": {"gain": TOY["params"]["gain"] / 2}}
    optimize = make(apply=both, objective=sum_of, optimizer="lbfgs")
    ideal = optimize((TOY, half), KEYS[:2], np.array([RED, GREEN], np.int32), step_size=0.5)
    logits = np.asarray(colors(TOY, ideal.images).logits)
    scores = logits[[0, 1], [RED, GREEN]] + logits[[0, 1], [GREEN, BLUE]] / 2
    np.testing.assert_allclose(ideal.scores[-1], scores, atol=1e-4)
    assert (ideal.scores[-1] > ideal.scores[0] + 0.1).all()


def test_diversity_lowers_the_similarity_of_a_grid() -> None:
    def varied(weight: jax.Array) -> Objective:
        return objectives.layer("maps") * 100.0 + objectives.diversity("maps") * weight

    optimize = make(objective=varied, optimizer="adam", transform=PLAIN)
    diversity = lambda x: np.asarray(objectives.diversity("maps")(colors(TOY, x), x))
    without, with_it = (
        optimize(TOY, KEYS, np.full(4, weight, np.float32), step_size=0.1).images
        for weight in (0.0, 30.0)
    )
    assert (diversity(with_it) > diversity(without) + 0.05).all()


# ---- redirected gradients ----


def dead(variables: Any, images01: jax.Array) -> Output:
    """A ReLU below 0 and a ReLU6 above 6 for every color of the start, which is near gray."""
    off, full = relu(4.0 * images01 - 3.0), relu6(20.0 * images01)
    return Output(None, jnp.mean(off, axis=(1, 2)), {"off": off, "full": full}, {})


@pytest.mark.optimized
@pytest.mark.parametrize(
    ("endpoint", "sign"),
    [("off", 1.0), pytest.param("full", -1.0, marks=pytest.mark.full)],
)
def test_a_redirect_moves_a_dead_unit(endpoint: str, sign: float) -> None:
    """Without it the image keeps its bits; with it the unit becomes active."""
    objective = lambda t: objectives.channel(endpoint, t) * sign
    plain, redirected = (
        make(
            apply=dead,
            objective=objective,
            optimizer="sign",
            transform=PLAIN,
            redirect=redirect,
            steps=12,
        )
        for redirect in (0, 8)
    )
    dead_path, live_path = (
        optimize({}, KEYS[:2], TARGETS[:2], step_size=0.06) for optimize in (plain, redirected)
    )
    np.testing.assert_array_equal(dead_path.images, dead_path.start)
    np.testing.assert_array_equal(
        dead_path.scores[0], sign * np.float32([0, 0] if endpoint == "off" else [6, 6])
    )
    np.testing.assert_array_equal(live_path.scores[0], dead_path.scores[0])  # values are the same
    assert (live_path.scores[8] > live_path.scores[0] + 0.01).all()
    assert (live_path.scores[-1] > live_path.scores[8] + 0.01).all()


# ---- wrong input ----


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown optimizer 'adma'; nearest: 'adam'"):
        make(optimizer="adma")
    with pytest.raises(ValueError, match="unknown variation 'isotropc'; nearest: 'isotropic'"):
        make(variation="isotropc")


def test_weights_and_groups_are_checked(one_by_one: render.Render) -> None:
    for weights, message in (
        ({"tv": -1.0}, r"`tv` must be a weight of at least 0, or one per image \(4\): got -1.0"),
        ({"tv": np.ones(3)}, r"`tv` must be a weight of at least 0, or one per image \(4\)"),
        ({"l2": np.array([1.0, -1.0, 0.0, 0.0])}, "`l2` must be a weight"),
        ({"blur": float("nan")}, "`blur` must be a weight"),
    ):
        with pytest.raises(ValueError, match=message):
            one_by_one(TOY, KEYS, TARGETS, step_size=1.0, **weights)
    with pytest.raises(ValueError, match="got 4 images, expected a multiple of 3"):
        make(together=3)(TOY, KEYS, TARGETS, step_size=1.0)


def test_nan_names_the_image_and_the_step() -> None:
    """Only the second image, which is to be red, reaches NaN, after three steps of 0.1."""

    def cliff(index: jax.Array) -> Objective:
        value = color(index)
        edge = lambda x: jnp.where(
            (index == RED) & (jnp.mean(x, axis=(1, 2))[:, RED] > 0.75), jnp.nan, 0.0
        )
        return Objective(lambda output, x: value(output, x) + edge(x))

    optimize = make(objective=cliff, optimizer="sign", transform=PLAIN, last_step_size=1.0)
    with pytest.raises(ValueError, match="image 1 became nan at step 3; set `step_size` below 0.1"):
        optimize(TOY, KEYS[:2], np.array([BLUE, RED], np.int32), step_size=0.1)
    optimize(TOY, KEYS[:2], np.array([BLUE, RED], np.int32), step_size=0.01)


def test_a_render_may_be_traced() -> None:
    optimize = make(steps=2)
    inside = jax.jit(lambda keys, tv: optimize(TOY, keys, TARGETS, tv=tv, step_size=1.0).images)
    outside = optimize(TOY, KEYS, TARGETS, tv=3.0, step_size=1.0).images
    np.testing.assert_allclose(inside(KEYS, jnp.float32(3.0)), outside, atol=1e-6)
