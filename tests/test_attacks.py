"""Every attack, one table: the ball, the box, the 8-bit grid, the saved file, keys, company, traces; then each one's own."""

from __future__ import annotations

import collections
import functools
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl import attacks, data, models, pixels, reporting
from tl.attacks import apgd, goals, gradient, norms
from tl.attacks.slots import work

SIZE, CLASSES, COUNT = 6, 5, 4
GOALS = {"targeted": goals.TARGETED, "untargeted": goals.UNTARGETED}
CASES = [  # every attack, every norm that it works in; both goals for each attack or family
    ("fgsm", "linf", "untargeted"),
    ("bim", "l2", "untargeted"),
    ("pgd", "linf", "untargeted"),
    ("pgd", "l2", "targeted"),
    ("pgd", "l1", "untargeted"),
    ("mi_fgsm", "linf", "targeted"),
    ("di_fgsm", "l2", "targeted"),
    ("apgd_ce", "linf", "targeted"),
    ("apgd_ce", "l1", "untargeted"),
    ("apgd_dlr", "l2", "targeted"),
    ("apgd_t", "linf", "untargeted"),
    ("apgd_t", "l2", "targeted"),
    ("deepfool", "linf", "untargeted"),
    ("deepfool", "l2", "targeted"),
    ("cw", "l2", "untargeted"),
    ("fab", "linf", "targeted"),
    ("fab", "l2", "untargeted"),
    ("square", "linf", "untargeted"),
    ("square", "l2", "untargeted"),
    ("autoattack", "linf", "untargeted"),
    ("noise", "linf", "untargeted"),
    ("blur", "l2", "untargeted"),
]
HOW: dict[str, dict[str, int]] = {
    "fgsm": {},
    "bim": {"steps": 4},
    "mi_fgsm": {"steps": 10},
    "blur": {"steps": 4},
    "cw": {"steps": 60, "searches": 4},
    "deepfool": {"steps": 8},
    "di_fgsm": {"steps": 10},
    "fab": {"steps": 12},
    "square": {"steps": 250},
    "autoattack": {"steps": 4, "queries": 20},
}
ALONE = {"fgsm", "bim", "mi_fgsm", "blur"}  # nothing random, so no restarts
WEAK = {"noise", "blur", "fgsm"}
KEY = jax.random.key(3)
WANTED = goals.class_mask([[1], [2, 3], [0, 4], [3]], CLASSES)
N = 3 * SIZE * SIZE
LEVEL = {
    "linf": 1 / 255,
    "l2": N**0.5 / 255,
    "l1": N / 255,
}  # eps at which every channel may move by one level


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
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"in": draw(3 * SIZE * SIZE, 16), "out": draw(16, CLASSES)}


NET = weights()
TRACED: collections.Counter[tuple] = collections.Counter()


def make(
    name: str,
    norm: str,
    goal: str,
    network: Any = network,
    *,
    eight_bit: bool = True,
    slots: int = 0,
    **how: Any,
):
    search = attacks.get(name)(
        **({"steps": 4, "restarts": 2} if name not in HOW else HOW[name]) | how
    )
    return attacks.make(
        search,
        network,
        norm=norms.get(norm),
        goal=GOALS[goal],
        eight_bit=eight_bit,
        slots=slots or None,
    )


@functools.cache
def attack(
    name: str = "pgd", norm: str = "linf", goal: str = "targeted", **changes: Any
) -> attacks.Attack:
    """One jitted attack on the network for all tests that want it; it counts its traces by case and batch.

    Two slots for four pictures: all of them wait in the queue.
    """

    def spied(variables: Any, images01: jax.Array) -> jax.Array:
        TRACED[name, norm, goal, len(images01)] += 1
        return network(variables, images01)

    return make(name, norm, goal, spied, slots=2, **changes)


def called(images8: np.ndarray) -> np.ndarray:
    return np.argmax(network(NET, jnp.asarray(pixels.to_images01(images8))), axis=1)


# ------------------------------------------------------------------------------------------------- every attack, table


def test_the_table_has_every_attack_and_every_norm() -> None:
    assert {name for name, _, _ in CASES} == set(attacks.ATTACKS)
    assert {norm for _, norm, _ in CASES} == set(norms.NORMS)


@pytest.mark.parametrize(("name", "norm", "goal"), CASES)
def test_every_attack_keeps_its_promises(name: str, norm: str, goal: str, tmp_path: Path) -> None:
    run, aim = attack(name, norm, goal), GOALS[goal]
    logits = network(NET, jnp.asarray(IMAGES01))
    clean, done = (
        aim.score(logits, jnp.asarray(WANTED)),
        np.asarray(aim.success(logits, jnp.asarray(WANTED))),
    )
    found = {}
    for seed, levels in enumerate((0.0, 0.9, 4.0, 12.0, 255.0, [1.0, 2.0, 30.0, 8.0])):
        eps = np.float32(levels) * LEVEL[norm]
        result = found[seed] = run(NET, jax.random.key(seed), IMAGES01, WANTED, eps=eps)
        images = np.asarray(result.images)
        assert images.shape == IMAGES01.shape and images.dtype == np.float32
        assert images.min() >= 0 and images.max() <= 1
        np.testing.assert_array_equal(
            pixels.to_images01(pixels.to_uint8(images)), images
        )  # on the grid
        assert (
            norms.get(norm).distance(images, IMAGES01) <= eps * (1 + 1e-5) + 1e-5
        ).all()  # in the ball
        if norm == "linf":
            whole = np.abs(pixels.to_uint8(images).astype(int) - pictures()).max(axis=(1, 2, 3))
            assert (whole <= np.floor(np.float64(eps) * 255 + 1e-3)).all()
        assert ((result.score >= clean - 1e-5) | result.success).all()  # never below the clean loss
        unmoved = (images == IMAGES01).all(axis=(1, 2, 3))
        assert (
            unmoved[done].all() and not np.asarray(result.steps)[done].any()
        )  # what is solved already stays
        assert (np.asarray(result.solved_by) >= 0).tolist() == (
            np.asarray(result.success) & ~done
        ).tolist()
        assert np.any(eps > 0) or unmoved.all()  # eps 0 is the identity
        answer = network(NET, result.images)  # success is tested again, and so is the score
        np.testing.assert_array_equal(result.success, aim.success(answer, jnp.asarray(WANTED)))
        np.testing.assert_allclose(
            result.score, aim.score(answer, jnp.asarray(WANTED)), rtol=1e-4, atol=1e-4
        )
    assert found[3].success.all() or name in WEAK or norm == "l1"  # 12 levels are plenty here

    for i, image in enumerate(found[2].images):  # and it is what the saved file is called
        reporting.save_png(tmp_path / f"{i}.png", np.asarray(image))
    read = np.stack([data.decode(tmp_path / f"{i}.png") for i in range(COUNT)])
    np.testing.assert_array_equal(read, pixels.to_uint8(found[2].images))

    once = dict(
        TRACED
    )  # a sweep over eps, step size, key, pictures, classes and weights compiles once
    again = run(NET, jax.random.key(2), IMAGES01, WANTED, eps=4 * LEVEL[norm])
    run(weights(1), KEY, pixels.to_images01(pictures(1)), WANTED[::-1], eps=0.3, step_size=0.01)
    assert dict(TRACED) == once and once[name, norm, goal, 2] > 0
    np.testing.assert_array_equal(again.images, found[2].images)  # same key, same pictures

    neighbours = IMAGES01.copy()  # other company changes nothing, nor does its absence
    neighbours[1:] = 1 - neighbours[1:]
    beside = run(NET, jax.random.key(2), neighbours, WANTED, eps=4 * LEVEL[norm])
    np.testing.assert_array_equal(beside.images[0], found[2].images[0])
    skip = np.arange(COUNT) != 1
    only = run(NET, jax.random.key(2), IMAGES01, WANTED, eps=4 * LEVEL[norm], skip=skip)
    np.testing.assert_array_equal(
        only.images, np.where(skip[:, None, None, None], IMAGES01, found[2].images)
    )
    assert not np.asarray(only.steps)[skip].any()

    hits, control = 0, 0  # it beats noise: eight random pictures of the same norm for each
    for seed in range(8 * (name not in {"noise", "blur"})):
        top = called(pictures(seed))
        aims = (top + 1) % CLASSES if goal == "targeted" else top
        here = {
            "images01": pixels.to_images01(pictures(seed)),
            "class_mask": goals.class_mask(aims[:, None].tolist(), CLASSES),
        }
        hits += int(run(NET, KEY, **here, eps=6 * LEVEL[norm]).success.sum())
        control += int(
            attack("noise", norm, goal)(NET, KEY, **here, eps=6 * LEVEL[norm]).success.sum()
        )
    print(name, norm, goal, hits, control)
    assert name in {"noise", "blur"} or hits >= max(1.5 * control, 5 if name == "fgsm" else 8)


@pytest.mark.parametrize(
    ("name", "norm", "goal"), [("pgd", "linf", "untargeted"), ("fab", "l2", "untargeted")]
)
def test_a_picture_alone_is_that_picture_in_a_batch(name: str, norm: str, goal: str) -> None:
    run = functools.partial(make(name, norm, goal, slots=1), eps=4 * LEVEL[norm])
    together = run(NET, KEY, IMAGES01, WANTED)
    for i in (0, 2):
        own = norms.per_image_keys(KEY, COUNT)[i : i + 1]
        alone = run(NET, own, IMAGES01[i : i + 1], WANTED[i : i + 1])
        np.testing.assert_array_equal(alone.images[0], together.images[i])
        assert (alone.success[0], alone.steps[0]) == (together.success[i], together.steps[i])
    wide = make(name, norm, goal, slots=4)(NET, KEY, IMAGES01, WANTED, eps=4 * LEVEL[norm])
    np.testing.assert_allclose(
        wide.images, together.images, atol=1e-5
    )  # so small a network rounds alike


# ------------------------------------------------------------------------------------------------------------ the queue


class Count(collections.namedtuple("Count", "best done")):
    """A search that needs as many steps as its row says."""


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 20])
def test_each_row_takes_the_steps_that_it_needs_and_no_row_waits_for_another(slots: int) -> None:
    need = jnp.asarray([3, 0, 5, 1, 1, 9, 2])
    todo = jnp.asarray([True, True, True, False, True, True, True])
    turns: list[int] = []

    def step(need: jax.Array, state: Count) -> Count:
        jax.debug.callback(lambda: turns.append(1))
        return Count(state.best + 1, state.best + 1 == need)

    def init(need: jax.Array, best: jax.Array) -> Count:
        return Count(best, best == need)

    best, steps = jax.jit(
        lambda: work(init, step, need, jnp.zeros(7, jnp.int32), todo, slots=slots)
    )()
    jax.effects_barrier()
    wanted = jnp.where(todo, need, 0)
    np.testing.assert_array_equal(best, wanted)
    np.testing.assert_array_equal(steps, wanted)
    fewest = max(9, -(-int(wanted.sum()) // slots))
    assert fewest <= len(turns) <= fewest + 9 * (slots > 1)
    assert slots < 20 or len(turns) == 9


def test_four_devices_share_the_pictures_and_find_the_same() -> None:
    code = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, numpy as np
from tests import test_attacks as t
assert jax.local_device_count() == 4
images01, members = t.IMAGES01[[0, 1, 2, 3, 1, 2]], t.WANTED[[0, 1, 2, 3, 1, 2]]
found = t.make("pgd", "linf", "untargeted", slots=1)(t.NET, t.KEY, images01, members, eps=4 / 255)
print(*np.asarray(jax.numpy.rint(found.images * 255), int).ravel())
"""
    root = Path(__file__).resolve().parents[1]
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300
    )
    assert said.returncode == 0, said.stderr
    images01, class_mask = IMAGES01[[0, 1, 2, 3, 1, 2]], WANTED[[0, 1, 2, 3, 1, 2]]
    here = make("pgd", "linf", "untargeted", slots=1)(NET, KEY, images01, class_mask, eps=4 / 255)
    there = np.array(said.stdout.split(), int).reshape(images01.shape)
    np.testing.assert_array_equal(there, pixels.to_uint8(here.images))


# ---------------------------------------------------------------------------------------------- the family of gradients


@pytest.mark.parametrize(("norm", "goal"), [("linf", "targeted")])
def test_more_steps_and_more_starts_are_never_worse(norm: str, goal: str) -> None:
    """The steps are long enough to overshoot: an attack that kept its last point instead of its best would fail."""

    def score(**steps: int) -> np.ndarray:
        run = attack("pgd", norm, goal, early_stop=False, **steps)
        return np.asarray(
            run(NET, KEY, IMAGES01, WANTED, eps=24 * LEVEL[norm], step_size=24 * LEVEL[norm]).score
        )

    chain = [score(steps=s, restarts=r) for s, r in ((1, 1), (4, 1), (4, 2))]
    for fewer, more in itertools.pairwise(chain):
        assert (more >= fewer - 1e-6).all()
    assert (chain[1] > chain[0]).any()
    assert (chain[2] > chain[1]).any()


@pytest.mark.parametrize(("name", "norm"), [("bim", "linf"), ("apgd_ce", "l2")])
def test_off_the_grid_eps_below_a_level_moves(name: str, norm: str) -> None:
    run = attack(name, norm, "targeted", eight_bit=False)
    eps = 0.3 / 255
    found = run(NET, KEY, IMAGES01, WANTED, eps=eps)
    distance = np.asarray(norms.get(norm).distance(np.asarray(found.images), IMAGES01))
    assert (
        (distance <= eps * (1 + 1e-4)).all() and found.images.min() >= 0 and found.images.max() <= 1
    )
    logits = network(NET, jnp.asarray(IMAGES01))
    moved = np.asarray(found.score > goals.TARGETED.score(logits, jnp.asarray(WANTED)))
    assert (moved | goals.TARGETED.success(logits, jnp.asarray(WANTED))).all() and moved.any()
    assert ((distance > 0.85 * eps) | np.asarray(found.success))[moved].all()


@pytest.mark.parametrize(("name", "norm"), [("pgd", "linf"), ("apgd_ce", "l2")])
def test_every_point_that_is_scored_is_on_the_grid(name: str, norm: str) -> None:
    """Straight-through rounding: the network never sees a picture that an 8-bit file cannot hold."""
    seen: list[np.ndarray] = []

    def spy(variables: Any, images01: jax.Array) -> jax.Array:
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), images01)
        return network(variables, images01)

    eps = 2 * LEVEL[norm]
    run = make(name, norm, "targeted", spy, steps=4, restarts=1)
    jax.block_until_ready(run(NET, KEY, IMAGES01, WANTED, eps=eps, step_size=0.3 / 255))
    jax.effects_barrier()
    assert len(seen) >= 6
    for images in seen:
        np.testing.assert_array_equal(
            pixels.to_images01(np.rint(images * 255).astype(np.uint8)), images
        )
        for image in images:  # whichever picture it belongs to: the queue has an order of its own
            assert min(
                norms.get(norm).distance(image[None], center[None])[0] for center in IMAGES01
            ) <= eps * (1 + 1e-5)
    assert (
        len({images.tobytes() for images in seen}) >= 3
    )  # and moves, though each step is below half a level


def test_one_step_of_each_by_hand() -> None:
    """From the picture itself, on a linear network, whose gradient is the same everywhere; off the grid."""
    middle = np.full((1, SIZE, SIZE, 3), norms.GRID[128])
    class_mask, eps = goals.class_mask([[0]], 2), 3 / 255
    way = (LINE[:, 1] - LINE[:, 0]).reshape(middle.shape)
    signs = np.sign(way)
    top = np.abs(way) >= np.sort(np.abs(way).ravel())[-1]  # a hundredth of 108 is one
    steps = {"linf": signs, "l2": way / np.linalg.norm(way), "l1": signs * top}
    searches = {
        "l2": [gradient.fgsm()],
        "l1": [gradient.fgsm()],
        "linf": [
            gradient.bim(steps=1, early_stop=False),
            gradient.mi_fgsm(steps=1, early_stop=False),
            gradient.di_fgsm(steps=1, early_stop=False, probability=0.0),
        ],
    }
    for norm, several in searches.items():
        for search in several:
            run = attacks.make(
                search, line, norm=norms.get(norm), goal=goals.UNTARGETED, eight_bit=False
            )
            found = run(jnp.asarray(LINE), KEY, middle, class_mask, eps=eps)
            np.testing.assert_allclose(found.images, middle + eps * steps[norm], atol=1e-6)


# ------------------------------------------------------------------------------------------------------- against FGSM


LINE = np.random.default_rng(5).normal(size=(SIZE * SIZE * 3, 2)).astype(np.float32)


def line(variables: Any, images01: jax.Array) -> jax.Array:
    return images01.reshape(images01.shape[0], -1) @ variables


@pytest.mark.parametrize(("goal", "index"), [("targeted", 1), ("untargeted", 0)])
def test_one_long_step_on_a_linear_network_is_fgsm(goal: str, index: int) -> None:
    """A step of 2 eps from anywhere in the ball ends at x + eps sign(gradient), Goodfellow et al. 2015, section 4."""
    images8 = np.clip(pictures(1), 6, 249)
    run = make("pgd", "linf", goal, line, steps=1, restarts=1, early_stop=False)
    class_mask = goals.class_mask([[index]] * COUNT, 2)
    found = run(
        jnp.asarray(LINE),
        KEY,
        pixels.to_images01(images8),
        class_mask,
        eps=6 / 255,
        step_size=12 / 255,
    )
    uphill = np.sign(LINE[:, 1] - LINE[:, 0]).reshape(SIZE, SIZE, 3).astype(int)
    np.testing.assert_array_equal(pixels.to_uint8(found.images), images8 + 6 * uphill)


@pytest.mark.parity
def test_pgd_on_a_linear_network_ends_where_foolbox_ends() -> None:
    foolbox = pytest.importorskip("foolbox")
    images01, eps = pixels.to_images01(np.clip(pictures(1), 6, 249)), 6 / 255
    ours = make("pgd", "linf", "untargeted", line, steps=20, restarts=1, early_stop=False)(
        jnp.asarray(LINE),
        KEY,
        images01,
        goals.class_mask([[0]] * COUNT, 2),
        eps=eps,
        step_size=1.5 / 255,
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = foolbox.JAXModel(lambda x: line(jnp.asarray(LINE), x), bounds=(0, 1))
        theirs = foolbox.attacks.LinfPGD(steps=20, abs_stepsize=1.5 / 255)
        _, clipped, success = theirs(
            model, jnp.asarray(images01), jnp.zeros(COUNT, jnp.int32), epsilons=eps
        )
    np.testing.assert_allclose(ours.images, clipped, atol=1e-6)
    np.testing.assert_array_equal(ours.success, success)


# ---------------------------------------------------------------------------------------------------------------- APGD


@pytest.mark.parametrize("norm", ["linf"])
def test_apgd_is_at_least_as_strong_as_pgd(norm: str) -> None:
    """128 pictures, as many looks for each, and for the sum of APGD-CE and APGD-T, as an evaluation has it, more."""
    images01 = np.concatenate([pixels.to_images01(pictures(seed)) for seed in range(32)])
    top = np.argmax(network(NET, jnp.asarray(images01)), axis=1)
    class_mask = goals.class_mask(top[:, None].tolist(), CLASSES)
    for levels in (0.5, 1.0):
        rate = {}
        for name in ("pgd", "apgd_ce", "apgd_t"):
            run = attack(name, norm, "untargeted", steps=20, restarts=1, eight_bit=False)
            rate[name] = np.asarray(
                run(NET, KEY, images01, class_mask, eps=levels * LEVEL[norm]).success
            )
        print(norm, levels, {name: won.mean() for name, won in rate.items()})
        assert 0.05 < rate["pgd"].mean() < 0.95  # else nothing is told apart
        assert rate["apgd_ce"].sum() >= rate["pgd"].sum() - 1
        assert rate["apgd_t"].sum() >= rate["pgd"].sum()


def test_apgd_halves_its_step_and_goes_back() -> None:
    """On a ridge far from the middle: steps of 2 eps jump over it for ever, those of PGD too; halved ones come to its top."""
    top = 0.3

    def ridge(variables: Any, images01: jax.Array) -> jax.Array:
        rise = -jnp.abs(jnp.mean(images01, axis=(1, 2, 3)) - 0.5 - top * variables)
        return jnp.stack(
            [jnp.zeros_like(rise), rise, rise - 1, rise - 2], axis=1
        )  # class 0 wins for ever

    middle, eps = np.full((1, SIZE, SIZE, 3), norms.GRID[128]), 0.2
    run = attacks.make(
        apgd.apgd(steps=30, loss="margin"),
        ridge,
        norm=norms.LINF,
        goal=goals.UNTARGETED,
        eight_bit=False,
    )
    found = run(jnp.float32(0.2), KEY, middle, goals.class_mask([[0]], 4), eps=eps)
    assert abs(float(np.mean(found.images)) - 0.56) < 0.005


def test_checkpoints_are_those_of_the_paper() -> None:
    assert apgd.checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]  # section 3.3
    for steps in (1, 2, 3, 10, 40):
        places = apgd.checkpoints(steps)
        assert places[0] == 0 and places[-1] <= steps and len(set(places)) == len(places)


# ----------------------------------------------------------------------------------------------------------------- EOT


def test_the_expected_score_is_climbed_not_the_picture_s_own() -> None:
    """A view that shows one half of the picture or the other: a plain climb needs one half, the expected score both."""

    def half(key: jax.Array, image: jax.Array) -> jax.Array:
        left = jnp.arange(SIZE)[None, :, None] < SIZE // 2
        return jnp.where(left == jax.random.bernoulli(key), image, 0.5)

    def brightness(variables: Any, images01: jax.Array) -> jax.Array:
        """Whether the brighter half is bright."""
        halves = [
            jnp.mean(images01[:, :, part], axis=(1, 2, 3)) for part in (slice(0, 3), slice(3, 6))
        ]
        most = jax.nn.logsumexp(200 * jnp.stack(halves), axis=0) / 200
        return jnp.stack([jnp.full_like(most, 0.52), most], axis=1)

    gray = np.full((1, SIZE, SIZE, 3), norms.GRID[127])
    class_mask = goals.class_mask([[1]], 2)
    for view, sure in ((None, False), (half, True)):
        search = gradient.pgd(steps=12, early_stop=True, view=view, draws=6)
        run = attacks.make(search, brightness, norm=norms.LINF, goal=goals.TARGETED)
        found = run(None, KEY, gray, class_mask, eps=8 / 255, step_size=1 / 255)
        assert found.success[0]
        halves = jax.vmap(half, (0, None))(jax.random.split(KEY, 20), found.images[0])
        assert (
            bool(
                goals.TARGETED.success(
                    brightness(None, halves), np.repeat(class_mask, 20, axis=0)
                ).all()
            )
            == sure
        )


# --------------------------------------------------------------------------------------------------------------- goals


def test_a_group_is_reached_by_any_of_its_classes() -> None:
    """Alone, one class of a group may be out of reach; together they are called by the one that is near."""
    top = called(pictures())
    others = [[c for c in range(CLASSES) if c != t] for t in top]
    small = functools.partial(attack(), NET, KEY, IMAGES01, eps=6 / 255, step_size=3 / 255)
    together = np.asarray(small(goals.class_mask(others, CLASSES)).success)
    alone = np.stack(
        [
            small(goals.class_mask([[o[j]] for o in others], CLASSES)).success
            for j in range(CLASSES - 1)
        ]
    )
    assert (together >= alone.any(axis=0)).all()
    print(together, alone)
    assert together.any()
    assert not alone.all()


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("images01", "eps", "says"),
    [
        (
            pictures(),
            4 / 255,
            "`images01` must be float32 in .0, 1.: got uint8.*tl.pixels.to_images01",
        ),
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
    for name in set(attacks.ATTACKS) - {"fgsm"}:
        with pytest.raises(ValueError, match="must be at least 1; got "):
            attacks.get(name)(**{"steps": 1} | steps)


def test_what_is_not_random_has_no_restarts_and_fgsm_one_step() -> None:
    for name in ALONE:
        with pytest.raises(ValueError, match="restarts must be 1, not 2"):
            attacks.get(name)(steps=1, restarts=2)
    with pytest.raises(ValueError, match="fgsm is one step; got steps=40; take 'bim'"):
        attacks.get("fgsm")(steps=40)


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
        clf, variables = models.load("efficientnet_lite0")
        photograph = next(p for p in data.photographs() if p.index == 251)
    except ValueError as error:
        pytest.skip(str(error))
    image8 = clf.prepare(data.decode(photograph.path))
    logits = jax.jit(clf.logits)
    class_mask = goals.class_mask([clf.classes.find("any cat")], 1000)  # pyright: ignore
    run = attacks.make(gradient.pgd(steps=15), clf.logits, norm=norms.LINF, goal=goals.TARGETED)
    found = run(
        variables, KEY, pixels.to_images01(image8)[None], class_mask, eps=8 / 255, step_size=2 / 255
    )
    reporting.save_png(tmp_path / "cat.png", np.asarray(found.images[0]))
    read = data.decode(tmp_path / "cat.png")
    assert np.abs(read.astype(int) - image8).max() <= 8
    noisy = np.clip(image8 + np.random.default_rng(0).choice([-8, 8], image8.shape), 0, 255).astype(
        np.uint8
    )
    tops = [
        int(np.argmax(logits(variables, pixels.to_images01(x[None]))))
        for x in (image8, noisy, read)
    ]
    assert tops[:2] == [251, 251]
    assert class_mask[0, tops[2]]
    assert found.success[0]
