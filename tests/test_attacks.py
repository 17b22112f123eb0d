"""Every attack under every norm and goal: the ball, the 8-bit grid, and what the saved file is called."""

from __future__ import annotations

import collections
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

from tl import attacks, classifier, data, pixels, report
from tl.attacks import apgd, goals, gradient, norms

SIZE, CLASSES, COUNT = 6, 5, 4
GOALS = {"targeted": goals.TARGETED, "untargeted": goals.UNTARGETED}
NAMES = ["fgsm", "bim", "pgd", "mi_fgsm", "di_fgsm", "apgd_ce", "apgd_dlr", "apgd_t", "noise", "blur"]
CASES = [  # every attack under every norm, every other time towards a class; PGD and APGD-T both ways
    (name, norm, goal)
    for (i, name), (j, norm), (k, goal) in itertools.product(*map(enumerate, (NAMES, norms.NORMS, GOALS)))
    if name in ("pgd", "apgd_t") or (i + j + k) % 2
]
ALONE = {"fgsm", "bim", "mi_fgsm", "blur"}  # nothing random, so no restarts
BASELINES = {"noise", "blur"}
KEY = jax.random.key(3)
WANTED = goals.members([[1], [2, 3], [0, 4], [3]], CLASSES)
N = 3 * SIZE * SIZE
LEVEL = {"linf": 1 / 255, "l2": N**0.5 / 255, "l1": N / 255}  # eps at which every channel may move by one level


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
TRACED: collections.Counter[tuple] = collections.Counter()


@functools.cache
def attack(name: str = "pgd", norm: str = "linf", goal: str = "targeted", **changes: Any) -> attacks.Attack:
    """One jitted attack on the network for all tests that want it; it counts its traces by case and batch."""

    def spied(variables: Any, images01: jax.Array) -> jax.Array:
        TRACED[name, norm, goal, len(images01)] += 1
        return network(variables, images01)

    kept = {"steps": 1 if name == "fgsm" else 4, "restarts": 1 if name in ALONE else 2}
    return attacks.get(name)(spied, norm=norms.get(norm), goal=GOALS[goal], **kept | changes)


def called(images8: np.ndarray) -> np.ndarray:
    return np.argmax(network(NET, jnp.asarray(pixels.to_images01(images8))), axis=1)


radii = st.sampled_from([0.0, 0.9, 1.0, 2.5, 4.0, 8.0, 127.5, 255.0]) | st.floats(0, 255)  # in levels of every channel


# ------------------------------------------------------------------------------------------------- every attack, table


@pytest.mark.parametrize(("name", "norm", "goal"), CASES)
@settings(max_examples=15)
@given(levels=radii, share=st.none() | st.sampled_from([0.25, 1.0, 3.0]), seed=st.integers(0, 99))
def test_results_are_8_bit_pictures_in_the_ball_and_never_worse(
    name: str, norm: str, goal: str, levels: float, share: float | None, seed: int
) -> None:
    eps = levels * LEVEL[norm]
    step = None if share is None else share * eps
    result = attack(name, norm, goal)(NET, jax.random.key(seed), IMAGES01, WANTED, eps=eps, step_size=step)
    images = np.asarray(result.images)
    assert images.shape == IMAGES01.shape and images.dtype == np.float32
    assert images.min() >= 0 and images.max() <= 1
    np.testing.assert_array_equal(pixels.to_images01(pixels.to_uint8(images)), images)
    assert (norms.get(norm).distance(images, IMAGES01) <= eps * (1 + 1e-5) + 1e-5).all()
    if norm == "linf":
        assert np.abs(pixels.to_uint8(images).astype(int) - pictures()).max() <= np.floor(eps * 255 + 1e-3)
    logits = network(NET, jnp.asarray(IMAGES01))
    clean, done = GOALS[goal].score(logits, jnp.asarray(WANTED)), GOALS[goal].success(logits, jnp.asarray(WANTED))
    assert ((result.score >= clean - 1e-5) | result.success).all()
    unmoved = (images == IMAGES01).all(axis=(1, 2, 3))
    assert (unmoved | ~np.asarray(done)).all()  # what is solved already stays
    assert eps > 0 or unmoved.all()


@pytest.mark.parametrize(("name", "norm", "goal"), CASES)
def test_success_is_what_the_saved_file_is_called(name: str, norm: str, goal: str, tmp_path: Path) -> None:
    for levels in (0.0, 2.0, 12.0):
        result = attack(name, norm, goal)(NET, KEY, IMAGES01, WANTED, eps=levels * LEVEL[norm])
        for i, image in enumerate(result.images):
            report.save_png(tmp_path / f"{i}.png", np.asarray(image))
        read = np.stack([data.decode(tmp_path / f"{i}.png") for i in range(COUNT)])
        np.testing.assert_array_equal(read, pixels.to_uint8(result.images))
        inside = WANTED[np.arange(COUNT), called(read)]
        np.testing.assert_array_equal(result.success, inside if goal == "targeted" else ~inside)
        logits = network(NET, jnp.asarray(pixels.to_images01(read)))
        np.testing.assert_allclose(result.score, GOALS[goal].score(logits, jnp.asarray(WANTED)), rtol=1e-4, atol=1e-5)
    assert result.success.all() or name in BASELINES | {"fgsm"} or norm == "l1"  # 12 levels are plenty here


@pytest.mark.parametrize(("name", "norm", "goal"), CASES)
def test_a_sweep_compiles_once(name: str, norm: str, goal: str) -> None:
    run = attack(name, norm, goal)
    run(NET, KEY, IMAGES01, WANTED, eps=1 / 255)
    once = TRACED[name, norm, goal, COUNT]
    for seed, eps in enumerate((0.0, 0.3, 1.0)):
        images01 = pixels.to_images01(pictures(seed))
        run(weights(seed), jax.random.key(seed), images01, WANTED[::-1], eps=eps, step_size=0.01)
    assert TRACED[name, norm, goal, COUNT] == once > 0


@pytest.mark.parametrize(("name", "norm", "goal"), CASES)
def test_images_are_attacked_apart_and_keys_repeat(name: str, norm: str, goal: str) -> None:
    run = functools.partial(attack(name, norm, goal), eps=4 * LEVEL[norm])
    together = run(NET, KEY, IMAGES01, WANTED)
    np.testing.assert_array_equal(together.images, run(NET, KEY, IMAGES01, WANTED).images)
    neighbours = IMAGES01.copy()
    neighbours[1:] = 1 - neighbours[1:]
    np.testing.assert_array_equal(run(NET, KEY, neighbours, WANTED).images[0], together.images[0])


@pytest.mark.parametrize(("name", "norm"), [*zip(NAMES, itertools.cycle(norms.NORMS), strict=False)])
def test_a_picture_alone_is_that_picture_in_a_batch(name: str, norm: str) -> None:
    goal = next(goal for case, ball, goal in CASES if (case, ball) == (name, norm))
    run = functools.partial(attack(name, norm, goal), eps=4 * LEVEL[norm])
    together = run(NET, KEY, IMAGES01, WANTED)
    for i, own in enumerate(norms.own_keys(KEY, COUNT)):
        alone = run(NET, own[None], IMAGES01[i : i + 1], WANTED[i : i + 1])
        np.testing.assert_array_equal(alone.images[0], together.images[i])
        assert alone.success[0] == together.success[i]
    np.testing.assert_array_equal(run(NET, KEY, IMAGES01[:1], WANTED[:1]).images[0], together.images[0])


@pytest.mark.parametrize(("name", "norm", "goal"), [case for case in CASES if case[0] not in BASELINES])
def test_gradients_beat_noise(name: str, norm: str, goal: str) -> None:
    """The control: as many random pictures of the same norm as the attack has looked at, or more."""
    hits, control = 0, 0
    for seed in range(8):
        images8 = pictures(seed)
        top = called(images8)
        aim = (top + 1) % CLASSES if goal == "targeted" else top
        members = goals.members(aim[:, None].tolist(), CLASSES)
        here = functools.partial(dict, images01=pixels.to_images01(images8), members=members, eps=4 * LEVEL[norm])
        hits += int(attack(name, norm, goal)(NET, KEY, **here()).success.sum())
        control += int(attack("noise", norm, goal)(NET, KEY, **here()).success.sum())
    print(name, norm, goal, hits, control)
    assert hits >= (5 if name == "fgsm" else 8)
    assert hits > 1.5 * control


@pytest.mark.parametrize(("norm", "goal"), list(itertools.product(norms.NORMS, GOALS)))
def test_more_steps_and_more_starts_are_never_worse(norm: str, goal: str) -> None:
    """The steps are long enough to overshoot: an attack that kept its last point instead of its best would fail."""

    def score(**steps: int) -> np.ndarray:
        run = attack("pgd", norm, goal, early_stop=False, **steps)
        return np.asarray(run(NET, KEY, IMAGES01, WANTED, eps=24 * LEVEL[norm], step_size=24 * LEVEL[norm]).score)

    chain = [score(steps=s, restarts=r) for s, r in ((1, 1), (4, 1), (4, 2))]
    for fewer, more in itertools.pairwise(chain):
        assert (more >= fewer - 1e-6).all()
    assert (chain[1] > chain[0]).any()
    assert (chain[2] > chain[1]).any()


@pytest.mark.parametrize(("name", "norm"), list(itertools.product(["bim", "pgd", "apgd_ce", "noise"], norms.NORMS)))
def test_off_the_grid_eps_below_a_level_moves(name: str, norm: str) -> None:
    run = attack(name, norm, "targeted", on_grid=False)
    eps = 0.3 / 255
    found = run(NET, KEY, IMAGES01, WANTED, eps=eps)
    distance = np.asarray(norms.get(norm).distance(np.asarray(found.images), IMAGES01))
    assert (distance <= eps * (1 + 1e-4)).all() and found.images.min() >= 0 and found.images.max() <= 1
    moved = np.asarray(found.score > GOALS["targeted"].score(network(NET, jnp.asarray(IMAGES01)), jnp.asarray(WANTED)))
    assert moved.sum() >= 3 or name == "noise"
    assert (distance[moved] > 0.9 * eps).all()


@pytest.mark.parametrize("norm", norms.NORMS)
def test_every_point_that_is_scored_is_on_the_grid(norm: str) -> None:
    """Straight-through rounding: the network never sees a picture that an 8-bit file cannot hold."""
    seen: list[np.ndarray] = []

    def spy(variables: Any, images01: jax.Array) -> jax.Array:
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), images01)
        return network(variables, images01)

    eps = 2 * LEVEL[norm]
    for make in (gradient.make_pgd, apgd.make_apgd):
        run = make(spy, norm=norms.get(norm), goal=goals.TARGETED, steps=3)
        jax.block_until_ready(run(NET, KEY, IMAGES01, WANTED, eps=eps, step_size=0.3 / 255))
        jax.effects_barrier()
    assert len(seen) >= 10
    for images in seen:
        np.testing.assert_array_equal(pixels.to_images01(np.rint(images * 255).astype(np.uint8)), images)
        assert (norms.get(norm).distance(images, IMAGES01) <= eps * (1 + 1e-5)).all()
    assert len({images.tobytes() for images in seen}) >= 3  # and moves, though each step is below half a level


@pytest.mark.parametrize("name", ["pgd", "bim", "apgd_ce", "apgd_t", "noise", "blur"])
def test_no_more_looks_once_all_are_solved(name: str) -> None:
    """The climb ends, and so do the restarts: by counting how often the network is asked."""
    looks = []

    def spy(variables: Any, images01: jax.Array) -> jax.Array:
        jax.debug.callback(lambda _: looks.append(1), images01[0, 0, 0, 0])
        return network(variables, images01)

    run = attacks.get(name)(spy, norm=norms.LINF, goal=goals.UNTARGETED, steps=50)
    counts = []
    for members in (~WANTED[:1] & False | (np.arange(CLASSES) == called(pictures())[0]), WANTED[:1] & False):
        looks.clear()
        jax.block_until_ready(run(NET, KEY, IMAGES01[:1], members, eps=0.3))
        jax.effects_barrier()
        counts.append(len(looks))
    assert counts[1] <= 4  # nobody is in an empty group: solved before the first step
    assert counts[0] < 40


def test_one_step_of_each_by_hand() -> None:
    """From the picture itself, on a linear network, whose gradient is the same everywhere; off the grid."""
    middle = np.full((1, SIZE, SIZE, 3), norms.GRID[128])
    members, eps = goals.members([[0]], 2), 3 / 255
    way = (LINE[:, 1] - LINE[:, 0]).reshape(middle.shape)
    signs = np.sign(way)
    top = np.abs(way) >= np.sort(np.abs(way).ravel())[-1]  # a hundredth of 108 is one
    steps = {"linf": signs, "l2": way / np.linalg.norm(way), "l1": signs * top}
    for norm, step in steps.items():
        shared = {"norm": norms.get(norm), "goal": goals.UNTARGETED, "steps": 1, "on_grid": False}
        stopless = shared | {"early_stop": False}
        for run in (
            gradient.make_fgsm(line, **shared),
            gradient.make_bim(line, **stopless),
            gradient.make_mi_fgsm(line, **stopless),
            gradient.make_di_fgsm(line, **stopless, probability=0.0),
        ):
            found = run(jnp.asarray(LINE), KEY, middle, members, eps=eps)
            np.testing.assert_allclose(found.images, middle + eps * step, atol=1e-6)


# ------------------------------------------------------------------------------------------------------- against FGSM


LINE = np.random.default_rng(5).normal(size=(SIZE * SIZE * 3, 2)).astype(np.float32)


def line(variables: Any, images01: jax.Array) -> jax.Array:
    return images01.reshape(images01.shape[0], -1) @ variables


@pytest.mark.parametrize(("goal", "index"), [("targeted", 1), ("untargeted", 0)])
def test_one_long_step_on_a_linear_network_is_fgsm(goal: str, index: int) -> None:
    """A step of 2 eps from anywhere in the ball ends at x + eps sign(gradient), Goodfellow et al. 2015, section 4."""
    images8 = np.clip(pictures(1), 6, 249)
    run = gradient.make_pgd(line, norm=norms.LINF, goal=GOALS[goal], steps=1, early_stop=False)
    members = goals.members([[index]] * COUNT, 2)
    found = run(jnp.asarray(LINE), KEY, pixels.to_images01(images8), members, eps=6 / 255, step_size=12 / 255)
    uphill = np.sign(LINE[:, 1] - LINE[:, 0]).reshape(SIZE, SIZE, 3).astype(int)
    np.testing.assert_array_equal(pixels.to_uint8(found.images), images8 + 6 * uphill)


@pytest.mark.parity
def test_pgd_on_a_linear_network_ends_where_foolbox_ends() -> None:
    foolbox = pytest.importorskip("foolbox")
    images01, eps = pixels.to_images01(np.clip(pictures(1), 6, 249)), 6 / 255
    ours = gradient.make_pgd(line, norm=norms.LINF, goal=goals.UNTARGETED, steps=20, early_stop=False)(
        jnp.asarray(LINE), KEY, images01, goals.members([[0]] * COUNT, 2), eps=eps, step_size=1.5 / 255
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = foolbox.JAXModel(lambda x: line(jnp.asarray(LINE), x), bounds=(0, 1))
        theirs = foolbox.attacks.LinfPGD(steps=20, abs_stepsize=1.5 / 255)
        _, clipped, success = theirs(model, jnp.asarray(images01), jnp.zeros(COUNT, jnp.int32), epsilons=eps)
    np.testing.assert_allclose(ours.images, clipped, atol=1e-6)
    np.testing.assert_array_equal(ours.success, success)


# ---------------------------------------------------------------------------------------------------------------- APGD


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_is_at_least_as_strong_as_pgd(norm: str) -> None:
    """128 pictures, as many looks for each, and for the sum of APGD-CE and APGD-T, as an evaluation has it, more."""
    images01 = np.concatenate([pixels.to_images01(pictures(seed)) for seed in range(32)])
    top = np.argmax(network(NET, jnp.asarray(images01)), axis=1)
    members = goals.members(top[:, None].tolist(), CLASSES)
    for levels in (0.5, 1.0):
        rate = {}
        for name in ("pgd", "apgd_ce", "apgd_t"):
            run = attack(name, norm, "untargeted", steps=20, restarts=1, on_grid=False)
            rate[name] = np.asarray(run(NET, KEY, images01, members, eps=levels * LEVEL[norm]).success)
        print(norm, levels, {name: won.mean() for name, won in rate.items()})
        assert 0.05 < rate["pgd"].mean() < 0.95  # else nothing is told apart
        assert rate["apgd_ce"].sum() >= rate["pgd"].sum() - 1
        assert rate["apgd_t"].sum() >= rate["pgd"].sum()


def test_apgd_halves_its_step_and_goes_back() -> None:
    """On a ridge far from the middle: steps of 2 eps jump over it for ever, those of PGD too; halved ones come to its top."""
    top = 0.3

    def ridge(variables: Any, images01: jax.Array) -> jax.Array:
        rise = -jnp.abs(jnp.mean(images01, axis=(1, 2, 3)) - 0.5 - top * variables)
        return jnp.stack([jnp.zeros_like(rise), rise, rise - 1, rise - 2], axis=1)  # class 0 wins for ever

    middle, eps = np.full((1, SIZE, SIZE, 3), norms.GRID[128]), 0.2
    run = apgd.make_apgd(ridge, norm=norms.LINF, goal=goals.UNTARGETED, steps=30, on_grid=False, loss="margin")
    found = run(jnp.float32(0.2), KEY, middle, goals.members([[0]], 4), eps=eps)
    assert abs(float(np.mean(found.images)) - 0.56) < 0.005


def test_checkpoints_are_those_of_the_paper() -> None:
    assert apgd.checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]  # section 3.3
    for steps in (1, 2, 3, 10, 40):
        places = apgd.checkpoints(steps)
        assert places[0] == 0 and places[-1] <= steps and len(set(places)) == len(places)


# --------------------------------------------------------------------------------------------------------------- goals


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


def test_what_is_not_random_has_no_restarts_and_fgsm_one_step() -> None:
    for name in ALONE:
        with pytest.raises(ValueError, match="restarts must be 1, not 2"):
            attack(name, restarts=2)
    with pytest.raises(ValueError, match="fgsm is one step; got steps=40; take 'bim'"):
        attack("fgsm", steps=40)


def test_eps_reaches_from_black_to_white_in_every_norm() -> None:
    attack("noise", "l2")(NET, KEY, IMAGES01, WANTED, eps=N**0.5)
    with pytest.raises(ValueError, match="eps is a distance in .0, 10.39., black to white"):
        attack("noise", "l2")(NET, KEY, IMAGES01, WANTED, eps=10.5)


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown attack 'pdg'; nearest: 'pgd'"):
        attacks.get("pdg")


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
