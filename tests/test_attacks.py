"""Every attack under every norm and goal: the ball, the 8-bit grid, and what the saved file is called."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl import classifier, data, pixels, report
from tl.attacks import goals, gradient, norms

SIZE, CLASSES, COUNT = 6, 5, 4
GOALS = {"targeted": goals.TARGETED, "untargeted": goals.UNTARGETED}
CASES = list(itertools.product(sorted(gradient.ATTACKS), sorted(norms.NORMS), sorted(GOALS)))
KEY = jax.random.key(3)
WANTED = goals.members([[1], [2, 3], [0, 4], [3]], CLASSES)


def pictures(seed: int = 0) -> np.ndarray:
    """uint8[b h w 3]: noise, with a black and a white stripe at the ends of the range."""
    images = np.random.default_rng(seed).integers(0, 256, (COUNT, SIZE, SIZE, 3)).astype(np.uint8)
    images[:, 0], images[:, 1] = 0, 255
    return images


IMAGES01 = pixels.to_images01(pictures())


def network(variables: Any, images01: jax.Array) -> jax.Array:
    """Two dense layers, curved enough for starts to matter."""
    x = images01.reshape(images01.shape[0], -1) - 0.5
    return jnp.tanh(x @ variables["in"]) @ variables["out"]


def weights(seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {"in": draw(3 * SIZE * SIZE, 16), "out": draw(16, CLASSES)}


NET = weights()


@functools.cache
def attack(name: str = "pgd", norm: str = "linf", goal: str = "targeted", **steps: int) -> gradient.Attack:
    """One jitted attack on the network for all tests that want it."""
    return gradient.get(name)(network, norm=norms.get(norm), goal=GOALS[goal], **{"steps": 4, "restarts": 2, **steps})


def called(images8: np.ndarray) -> np.ndarray:
    return np.argmax(network(NET, jnp.asarray(pixels.to_images01(images8))), axis=1)


radii = st.sampled_from([0.0, 0.9 / 255, 1 / 255, 0.01, 4 / 255, 8 / 255, 0.5, 1.0]) | st.floats(0, 1)


# ------------------------------------------------------------------------------------------------- every attack, table


@pytest.mark.parametrize(("name", "norm", "goal"), CASES)
@settings(max_examples=25)
@given(eps=radii, share=st.sampled_from([0.25, 1.0, 3.0]), seed=st.integers(0, 99))
def test_results_are_8_bit_pictures_in_the_ball(
    name: str, norm: str, goal: str, eps: float, share: float, seed: int
) -> None:
    result = attack(name, norm, goal)(NET, jax.random.key(seed), IMAGES01, WANTED, eps=eps, step_size=share * eps)
    images = np.asarray(result.images)
    assert images.shape == IMAGES01.shape and images.dtype == np.float32
    assert images.min() >= 0 and images.max() <= 1
    np.testing.assert_array_equal(pixels.to_images01(pixels.to_uint8(images)), images)
    assert (norms.get(norm).distance(images, IMAGES01) <= eps + 1e-5).all()
    if norm == "linf":
        levels = np.abs(pixels.to_uint8(images).astype(int) - pictures())
        assert levels.max() <= np.floor(eps * 255 + 1e-3)
    if eps == 0:
        np.testing.assert_array_equal(images, IMAGES01)


@pytest.mark.parametrize(("name", "norm", "goal"), CASES)
def test_success_is_what_the_saved_file_is_called(name: str, norm: str, goal: str, tmp_path: Path) -> None:
    for eps in (0.0, 2 / 255, 12 / 255):
        result = attack(name, norm, goal)(NET, KEY, IMAGES01, WANTED, eps=eps, step_size=eps / 2)
        for i, image in enumerate(result.images):
            report.save_png(tmp_path / f"{i}.png", np.asarray(image))
        read = np.stack([data.decode(tmp_path / f"{i}.png") for i in range(COUNT)])
        np.testing.assert_array_equal(read, pixels.to_uint8(result.images))
        inside = WANTED[np.arange(COUNT), called(read)]
        np.testing.assert_array_equal(result.success, inside if goal == "targeted" else ~inside)
        logits = network(NET, jnp.asarray(pixels.to_images01(read)))
        np.testing.assert_allclose(result.score, GOALS[goal].score(logits, jnp.asarray(WANTED)), rtol=1e-4, atol=1e-5)
    assert result.success.all()  # 12 levels are plenty here


@pytest.mark.parametrize(("name", "norm", "goal"), CASES)
def test_more_steps_and_more_starts_are_never_worse(name: str, norm: str, goal: str) -> None:
    """The steps are long enough to overshoot: an attack that kept its last point instead of its best would fail."""

    def score(**steps: int) -> np.ndarray:
        found = attack(name, norm, goal, **steps)(NET, KEY, IMAGES01, WANTED, eps=24 / 255, step_size=24 / 255)
        return np.asarray(found.score)

    chain = [score(steps=s, restarts=r) for s, r in ((1, 1), (4, 1), (4, 2))]
    for fewer, more in itertools.pairwise(chain):
        assert (more >= fewer - 1e-6).all()
    assert (chain[1] > chain[0]).any()
    assert (chain[2] > chain[1]).any()


@pytest.mark.parametrize(("name", "norm", "goal"), CASES)
def test_a_sweep_compiles_once(name: str, norm: str, goal: str) -> None:
    traced = []

    def spy(variables: Any, images01: jax.Array) -> jax.Array:
        traced.append(images01.shape)
        return network(variables, images01)

    run = gradient.get(name)(spy, norm=norms.get(norm), goal=GOALS[goal], steps=2)
    run(NET, KEY, IMAGES01, WANTED, eps=1 / 255, step_size=1 / 255)
    once = len(traced)
    for seed, eps in enumerate((0.0, 0.3, 1.0)):
        images01 = pixels.to_images01(pictures(seed))
        run(weights(seed), jax.random.key(seed), images01, WANTED[::-1], eps=eps, step_size=0.01)
    assert len(traced) == once > 0


@pytest.mark.parametrize(("name", "norm", "goal"), CASES)
def test_images_are_attacked_apart_and_keys_repeat(name: str, norm: str, goal: str) -> None:
    run = functools.partial(attack(name, norm, goal), eps=4 / 255, step_size=2 / 255)
    together = run(NET, KEY, IMAGES01, WANTED)
    np.testing.assert_array_equal(together.images, run(NET, KEY, IMAGES01, WANTED).images)
    assert (np.asarray(together.images) != np.asarray(run(NET, jax.random.key(9), IMAGES01, WANTED).images)).any()
    neighbours = IMAGES01.copy()
    neighbours[1:] = 1 - neighbours[1:]
    np.testing.assert_array_equal(run(NET, KEY, neighbours, WANTED).images[0], together.images[0])


@pytest.mark.parametrize(("name", "norm", "goal"), CASES)
def test_gradients_beat_noise(name: str, norm: str, goal: str) -> None:
    """The control: as many random pictures of the same norm as the attack has looked at."""
    rng = np.random.default_rng(0)
    hits, control = 0, 0
    for seed in range(8):
        images8 = pictures(seed)
        top = called(images8)
        aim = (top + 1) % CLASSES if goal == "targeted" else top
        members = goals.members(aim[:, None].tolist(), CLASSES)
        images01 = pixels.to_images01(images8)
        found = attack(name, norm, goal)(NET, KEY, images01, members, eps=8 / 255, step_size=4 / 255)
        hits += int(found.success.sum())
        for _ in range(10):
            noisy = np.clip(images8 + rng.choice([-8, 8], images8.shape), 0, 255).astype(np.uint8)
            inside = members[np.arange(COUNT), called(noisy)]
            control += int((inside if goal == "targeted" else ~inside).sum())
    print(hits, control)
    assert hits >= 8
    assert hits > 3 * control / 10


def test_every_point_that_is_scored_is_on_the_grid() -> None:
    """Straight-through rounding: the network never sees a picture that an 8-bit file cannot hold."""
    seen: list[np.ndarray] = []

    def spy(variables: Any, images01: jax.Array) -> jax.Array:
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), images01)
        return network(variables, images01)

    eps = 5 / 255
    run = gradient.make_pgd(spy, norm=norms.LINF, goal=goals.TARGETED, steps=3)
    jax.block_until_ready(run(NET, KEY, IMAGES01, WANTED, eps=eps, step_size=0.3 / 255))
    jax.effects_barrier()
    assert len(seen) >= 5
    for images in seen:
        np.testing.assert_array_equal(pixels.to_images01(np.rint(images * 255).astype(np.uint8)), images)
        assert np.abs(images - IMAGES01).max() <= eps + 1e-6
    assert len({images.tobytes() for images in seen}) >= 3  # and moves, though each step is below half a level


# ------------------------------------------------------------------------------------------------------- against FGSM


LINE = np.random.default_rng(5).normal(size=(SIZE * SIZE * 3, 2)).astype(np.float32)


def line(variables: Any, images01: jax.Array) -> jax.Array:
    return images01.reshape(images01.shape[0], -1) @ variables


@pytest.mark.parametrize(("goal", "index"), [("targeted", 1), ("untargeted", 0)])
def test_one_long_step_on_a_linear_network_is_fgsm(goal: str, index: int) -> None:
    """A step of 2 eps from anywhere in the ball ends at x + eps sign(gradient), Goodfellow et al. 2015, section 4."""
    images8 = np.clip(pictures(1), 6, 249)
    run = gradient.make_pgd(line, norm=norms.LINF, goal=GOALS[goal], steps=1)
    members = goals.members([[index]] * COUNT, 2)
    found = run(jnp.asarray(LINE), KEY, pixels.to_images01(images8), members, eps=6 / 255, step_size=12 / 255)
    uphill = np.sign(LINE[:, 1] - LINE[:, 0]).reshape(SIZE, SIZE, 3).astype(int)
    np.testing.assert_array_equal(pixels.to_uint8(found.images), images8 + 6 * uphill)


@pytest.mark.parity
def test_pgd_on_a_linear_network_ends_where_foolbox_ends() -> None:
    foolbox = pytest.importorskip("foolbox")
    images01, eps = pixels.to_images01(np.clip(pictures(1), 6, 249)), 6 / 255
    ours = gradient.make_pgd(line, norm=norms.LINF, goal=goals.UNTARGETED, steps=20)(
        jnp.asarray(LINE), KEY, images01, goals.members([[0]] * COUNT, 2), eps=eps, step_size=1.5 / 255
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = foolbox.JAXModel(lambda x: line(jnp.asarray(LINE), x), bounds=(0, 1))
        theirs = foolbox.attacks.LinfPGD(steps=20, abs_stepsize=1.5 / 255)
        _, clipped, success = theirs(model, jnp.asarray(images01), jnp.zeros(COUNT, jnp.int32), epsilons=eps)
    np.testing.assert_allclose(ours.images, clipped, atol=1e-6)
    np.testing.assert_array_equal(ours.success, success)


# --------------------------------------------------------------------------------------------------------------- goals


def test_goals_by_hand() -> None:
    logits = jnp.log(jnp.asarray([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]))
    members = jnp.asarray(goals.members([[0, 1], [0]], 3))
    np.testing.assert_allclose(goals.TARGETED.score(logits, members), np.log([0.3, 0.5]), rtol=1e-5)
    np.testing.assert_allclose(goals.UNTARGETED.score(logits, members), np.log([0.7, 0.5]), rtol=1e-5)
    assert goals.TARGETED.success(logits, members).tolist() == [False, True]
    assert goals.UNTARGETED.success(logits, members).tolist() == [True, False]


def test_a_group_is_reached_by_any_of_its_classes() -> None:
    """Alone, one class of a group may be out of reach; together they are called by the one that is near."""
    top = called(pictures())
    others = [[c for c in range(CLASSES) if c != t] for t in top]
    small = functools.partial(attack(), NET, KEY, IMAGES01, eps=6 / 255, step_size=3 / 255)
    together = np.asarray(small(goals.members(others, CLASSES)).success)
    alone = np.stack([small(goals.members([[o[j]] for o in others], CLASSES)).success for j in range(CLASSES - 1)])
    assert (together >= alone.any(axis=0)).all()
    print(together, alone)
    assert together.any()
    assert not alone.all()


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("images01", "eps", "says"),
    [
        (pictures(), 4 / 255, "images01 must be float32 in .0, 1.; got uint8.*tl.pixels.to_images01"),
        (IMAGES01 * 255, 4 / 255, "must lie in .0, 1. .*in .0, 255."),
        (np.where(IMAGES01 > 0.5, np.float32("nan"), IMAGES01), 4 / 255, "hold no NaN"),
        (IMAGES01[0], 4 / 255, r"must be f32\[b h w 3\]"),
        (IMAGES01[..., :1], 4 / 255, r"must be f32\[b h w 3\]"),
        (IMAGES01, 4, "eps is a share of the pixel range .0, 1., such as 4/255; got 4"),
        (IMAGES01, -0.01, "eps is a share"),
        (IMAGES01, float("nan"), "eps is a share"),
    ],
)
def test_an_attack_refuses(images01: np.ndarray, eps: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        attack()(NET, KEY, images01, WANTED, eps=eps, step_size=0.01)


@pytest.mark.parametrize("steps", [{"steps": 0}, {"steps": 1, "restarts": 0}])
def test_no_steps_or_no_starts_are_no_attack(steps: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="steps and restarts must be at least 1"):
        gradient.make_pgd(network, norm=norms.LINF, goal=goals.TARGETED, **steps)


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown norm 'lnif'; nearest: 'linf'"):
        norms.get("lnif")
    with pytest.raises(ValueError, match="unknown attack 'pdg'; nearest: 'pgd'"):
        gradient.get("pdg")


# --------------------------------------------------------------------------------------------------------------- norms


@pytest.mark.parametrize("name", sorted(norms.NORMS))
@settings(max_examples=10)
@given(eps=radii, seed=st.integers(0, 99))
def test_a_norm_starts_and_projects_into_its_ball_and_the_box(name: str, eps: float, seed: int) -> None:
    norm, radius = norms.get(name), jnp.float32(eps)
    center = jnp.asarray(IMAGES01)
    far = center + jax.random.normal(jax.random.key(seed), center.shape)
    for x in (norm.start(jax.random.key(seed), center, radius), norm.project(far, center, radius)):
        assert (norm.distance(x, center) <= eps * (1 + 1e-5) + 1e-6).all()
        assert x.min() >= 0 and x.max() <= 1
        np.testing.assert_allclose(norm.project(x, center, radius), x, atol=1e-6)  # what is inside stays
    direction = norm.direction(far - center)
    assert (jnp.sum(direction * (far - center), axis=(1, 2, 3)) > 0).all()
    if eps > 0.01:
        spread = jnp.std(norm.start(jax.random.key(seed), jnp.full_like(center, 0.5), radius))
        assert spread > 0.1 * eps  # a random start, not the center


def test_distances_by_hand() -> None:
    x = jnp.zeros((2, 1, 2, 3)).at[0, 0, 0, 0].set(3.0).at[0, 0, 1, 2].set(-4.0)
    assert norms.linf_distance(x, jnp.zeros_like(x)).tolist() == [4.0, 0.0]
    assert norms.l2_distance(x, jnp.zeros_like(x)).tolist() == [5.0, 0.0]


# -------------------------------------------------------------------------------------------------------- real weights


def test_a_dalmatian_becomes_any_cat(tmp_path: Path) -> None:
    """EfficientNet-Lite0, 8/255: judged as anybody would who was sent the file; as much noise does nothing."""
    try:
        clf, variables = classifier.load("efficientnet_lite0")
        photograph = next(p for p in data.photographs() if p.index == 251)
    except ValueError as error:
        pytest.skip(str(error))
    image8 = clf.prepare(data.decode(photograph.path))
    logits = jax.jit(clf.logits)
    members = goals.members([clf.classes.find("any cat")], 1000)  # pyright: ignore
    run = gradient.make_pgd(clf.logits, norm=norms.LINF, goal=goals.TARGETED, steps=15)
    found = run(variables, KEY, pixels.to_images01(image8)[None], members, eps=8 / 255, step_size=2 / 255)
    report.save_png(tmp_path / "cat.png", np.asarray(found.images[0]))
    read = data.decode(tmp_path / "cat.png")
    assert np.abs(read.astype(int) - image8).max() <= 8
    noisy = np.clip(image8 + np.random.default_rng(0).choice([-8, 8], image8.shape), 0, 255).astype(np.uint8)
    tops = [int(np.argmax(logits(variables, pixels.to_images01(x[None])))) for x in (image8, noisy, read)]
    assert tops[:2] == [251, 251]
    assert members[0, tops[2]]
    assert found.success[0]
