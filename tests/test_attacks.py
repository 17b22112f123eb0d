"""Attacks: properties of every attack, slots and devices, and properties of single attacks."""

from __future__ import annotations

import collections
import functools
import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from tl import attacks, data, models, pixels, reporting
from tl.attacks import apgd, goals, gradient, norms
from tl.attacks.slots import run_slots

SIZE, CLASSES, COUNT = 6, 5, 4
N = 3 * SIZE * SIZE
GOALS = {"targeted": goals.TARGETED, "untargeted": goals.UNTARGETED}
# Every attack in every norm that it supports; rows that repeat a program of another row are slow.
CASES = [
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
SLOW = {
    ("pgd", "l2", "targeted"),
    ("apgd_ce", "l1", "untargeted"),
    ("apgd_t", "l2", "targeted"),
    ("deepfool", "linf", "untargeted"),
    ("fab", "l2", "untargeted"),
    ("square", "l2", "untargeted"),
}
ARGUMENTS: dict[str, dict[str, int]] = {
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
DETERMINISTIC = {"fgsm", "bim", "mi_fgsm", "blur"}
WEAK = {"noise", "blur", "fgsm"}
KEY = jax.random.key(3)
CLASS_MASK = goals.class_mask([[1], [2, 3], [0, 4], [3]], CLASSES)
# eps at which every value may change by one level of 255.
LEVEL = {"linf": 1 / 255, "l2": N**0.5 / 255, "l1": N / 255}


def images8(seed: int = 0) -> np.ndarray:
    """uint8[b h w 3]: noise with a black and a white stripe, at the ends of the range."""
    images = np.random.default_rng(seed).integers(0, 256, (COUNT, SIZE, SIZE, 3)).astype(np.uint8)
    images[:, 0], images[:, 1] = 0, 255
    return images


IMAGES01 = pixels.to_images01(images8())


def weights(seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"in": draw(N, 16), "out": draw(16, CLASSES)}


NET = weights()
TRACES: collections.Counter[tuple] = collections.Counter()
logits_of = jax.jit(toys.mlp)


def make(
    name: str,
    norm: str,
    goal: str,
    network: Any = toys.mlp,
    *,
    eight_bit: bool = True,
    slots: int = 0,
    **arguments: Any,
) -> attacks.Attack:
    defaults = ARGUMENTS.get(name, {"steps": 4, "restarts": 2})
    return attacks.make(
        attacks.get(name)(**defaults | arguments),
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
    """One jitted attack for all tests, with two slots for four images.

    Counts traces by case and batch size.
    """

    def counted(variables: Any, images01: jax.Array) -> jax.Array:
        TRACES[name, norm, goal, len(images01)] += 1
        return toys.mlp(variables, images01)

    return make(name, norm, goal, counted, slots=2, **changes)


# ---- properties of every attack ----


class Case(NamedTuple):
    """An attack, and its results at several eps in levels: (eps, result) pairs."""

    name: str
    norm: str
    goal: str
    results: list[tuple[np.ndarray, attacks.AttackResult]]

    def run(self, levels: Any = 4.0, **arguments: Any) -> attacks.AttackResult:
        call = {"key": jax.random.key(2), "images01": IMAGES01, "class_mask": CLASS_MASK}
        eps = np.float32(levels) * LEVEL[self.norm]
        return attack(self.name, self.norm, self.goal)(NET, **call | arguments, eps=eps)


@pytest.fixture(
    scope="module",
    params=[pytest.param(c, marks=[pytest.mark.full] * (c in SLOW), id="-".join(c)) for c in CASES],
)
def case(request: pytest.FixtureRequest) -> Case:
    """Each row of `CASES`; the result with index i has key i."""
    case = Case(*request.param, [])
    for seed, levels in enumerate((0.0, 0.9, 4.0, 12.0, 255.0, [1.0, 2.0, 30.0, 8.0])):
        eps = np.float32(levels) * LEVEL[case.norm]
        case.results.append((eps, case.run(levels, key=jax.random.key(seed))))
    return case


def test_the_cases_cover_every_attack_and_every_norm() -> None:
    assert {name for name, _, _ in CASES} == set(attacks.ATTACKS)
    assert {name for name, _, _ in set(CASES) - SLOW} == set(attacks.ATTACKS)
    assert {norm for _, norm, _ in set(CASES) - SLOW} == set(norms.NORMS)


def test_images_are_in_the_ball_and_8_bit(case: Case) -> None:
    for eps, result in case.results:
        images = np.asarray(result.images)
        assert images.shape == IMAGES01.shape and images.dtype == np.float32
        assert images.min() >= 0 and images.max() <= 1
        np.testing.assert_array_equal(pixels.to_images01(pixels.to_uint8(images)), images)
        distance = norms.get(case.norm).distance(images, IMAGES01)
        assert (distance <= eps * (1 + 1e-5) + 1e-5).all()
        if case.norm == "linf":
            change = np.abs(pixels.to_uint8(images).astype(int) - images8()).max(axis=(1, 2, 3))
            assert (change <= np.floor(np.float64(eps) * 255 + 1e-3)).all()


def test_success_and_score_are_those_of_the_returned_images(case: Case) -> None:
    goal, mask = GOALS[case.goal], jnp.asarray(CLASS_MASK)
    for _, result in case.results:
        logits = logits_of(NET, result.images)
        np.testing.assert_array_equal(result.success, goal.success(logits, mask))
        np.testing.assert_allclose(result.score, goal.score(logits, mask), rtol=1e-4, atol=1e-4)


def test_the_score_is_never_below_that_of_the_clean_image(case: Case) -> None:
    clean = GOALS[case.goal].score(logits_of(NET, IMAGES01), jnp.asarray(CLASS_MASK))
    for _, result in case.results:
        assert ((result.score >= clean - 1e-5) | result.success).all()


def test_images_stay_where_eps_is_0_or_the_goal_is_met(case: Case) -> None:
    logits = logits_of(NET, IMAGES01)
    met = np.asarray(GOALS[case.goal].success(logits, jnp.asarray(CLASS_MASK)))
    for eps, result in case.results:
        unchanged = (np.asarray(result.images) == IMAGES01).all(axis=(1, 2, 3))
        assert unchanged[met].all() and not np.asarray(result.steps)[met].any()
        assert np.any(eps > 0) or unchanged.all()
        solved = np.asarray(result.success) & ~met
        assert (np.asarray(result.solved_by) >= 0).tolist() == solved.tolist()


def test_twelve_levels_are_enough_for_a_strong_attack(case: Case) -> None:
    assert case.results[3][1].success.all() or case.name in WEAK or case.norm == "l1"


def test_a_saved_file_holds_the_images_exactly(case: Case, tmp_path: Path) -> None:
    images = np.asarray(case.results[2][1].images)
    for i, image in enumerate(images):
        reporting.save_png(tmp_path / f"{i}.png", image)
    read = np.stack([data.decode(tmp_path / f"{i}.png") for i in range(COUNT)])
    np.testing.assert_array_equal(read, pixels.to_uint8(images))


def test_other_arguments_of_the_same_shape_do_not_compile_again(case: Case) -> None:
    traces = dict(TRACES)
    others = {"images01": pixels.to_images01(images8(1)), "class_mask": CLASS_MASK[::-1]}
    run = attack(case.name, case.norm, case.goal)
    run(weights(1), key=KEY, **others, eps=0.3, step_size=0.01)
    assert dict(TRACES) == traces and traces[case.name, case.norm, case.goal, 2] > 0


def test_equal_keys_give_equal_images(case: Case) -> None:
    np.testing.assert_array_equal(case.run().images, case.results[2][1].images)


def test_an_image_does_not_depend_on_the_rest_of_the_batch(case: Case) -> None:
    images01 = IMAGES01.copy()
    images01[1:] = 1 - images01[1:]
    np.testing.assert_array_equal(
        case.run(images01=images01).images[0], case.results[2][1].images[0]
    )


def test_skipped_images_are_not_attacked(case: Case) -> None:
    skip = np.arange(COUNT) != 1
    result = case.run(skip=skip)
    expected = np.where(skip[:, None, None, None], IMAGES01, case.results[2][1].images)
    np.testing.assert_array_equal(result.images, expected)
    assert not np.asarray(result.steps)[skip].any()


def test_an_attack_succeeds_more_often_than_noise(case: Case) -> None:
    """On eight sets of random images, compared with noise in the same norm."""
    if case.name in {"noise", "blur"}:
        pytest.skip("a baseline")
    noise = attack("noise", case.norm, case.goal)
    successes = noise_successes = 0
    for seed in range(8):
        images01 = pixels.to_images01(images8(seed))
        top = np.argmax(logits_of(NET, images01), axis=1)
        classes = (top + 1) % CLASSES if case.goal == "targeted" else top
        mask = goals.class_mask(classes[:, None].tolist(), CLASSES)
        result = case.run(6.0, key=KEY, images01=images01, class_mask=mask)
        control = noise(NET, KEY, images01, mask, eps=6 * LEVEL[case.norm])
        successes += int(result.success.sum())
        noise_successes += int(control.success.sum())
    fewest = max(1.5 * noise_successes, 5 if case.name == "fgsm" else 8)
    assert successes >= fewest, (case[:3], successes, noise_successes)


@pytest.mark.parametrize(
    ("name", "norm"),
    [("pgd", "linf"), pytest.param("fab", "l2", marks=pytest.mark.full)],
)
def test_an_image_alone_gives_the_same_as_in_a_batch(name: str, norm: str) -> None:
    run = functools.partial(make(name, norm, "untargeted", slots=1), eps=4 * LEVEL[norm])
    together = run(NET, KEY, IMAGES01, CLASS_MASK)
    for i in (0, 2):
        key = norms.per_image_keys(KEY, COUNT)[i : i + 1]
        alone = run(NET, key, IMAGES01[i : i + 1], CLASS_MASK[i : i + 1])
        np.testing.assert_array_equal(alone.images[0], together.images[i])
        assert (alone.success[0], alone.steps[0]) == (together.success[i], together.steps[i])
    wide = make(name, norm, "untargeted", slots=4)
    result = wide(NET, KEY, IMAGES01, CLASS_MASK, eps=4 * LEVEL[norm])
    # A network this small rounds nearly equally in every batch, so no level of 255 changes.
    np.testing.assert_allclose(result.images, together.images, atol=1e-5)


# ---- slots and devices ----


class Count(collections.namedtuple("Count", "best finished")):
    """The state of a search that takes a given number of steps."""


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 20])
def test_each_image_takes_its_own_steps_and_slots_never_idle(slots: int) -> None:
    need = jnp.asarray([3, 0, 5, 1, 1, 9, 2])
    todo = jnp.asarray([True, True, True, False, True, True, True])
    calls: list[int] = []

    def step(need: jax.Array, state: Count) -> Count:
        jax.debug.callback(lambda: calls.append(1))
        return Count(state.best + 1, state.best + 1 == need)

    def init(need: jax.Array, best: jax.Array) -> Count:
        return Count(best, best == need)

    zeros = jnp.zeros(7, jnp.int32)
    best, steps = jax.jit(lambda: run_slots(init, step, need, zeros, todo, slots=slots))()
    jax.effects_barrier()
    expected = jnp.where(todo, need, 0)
    np.testing.assert_array_equal(best, expected)
    np.testing.assert_array_equal(steps, expected)
    fewest = max(9, -(-int(expected.sum()) // slots))
    assert fewest <= len(calls) <= fewest + 9 * (slots > 1)
    assert slots < 20 or len(calls) == 9


@pytest.mark.full
def test_four_devices_give_the_same_as_one() -> None:
    code = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, numpy as np
from tests import test_attacks as t
assert jax.local_device_count() == 4
result = t.attack_six_images()
print(*np.asarray(jax.numpy.rint(result.images * 255), int).ravel())
"""
    root = Path(__file__).resolve().parents[1]
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    images = attack_six_images().images
    on_four = np.array(process.stdout.split(), int).reshape(images.shape)
    np.testing.assert_array_equal(on_four, pixels.to_uint8(images))


def attack_six_images() -> attacks.AttackResult:
    rows = [0, 1, 2, 3, 1, 2]
    run = make("pgd", "linf", "untargeted", slots=1)
    return run(NET, KEY, IMAGES01[rows], CLASS_MASK[rows], eps=4 / 255)


# ---- first-order attacks ----


def test_more_steps_and_more_restarts_are_never_worse() -> None:
    """The steps overshoot, so an attack that kept its last point instead of its best would fail."""

    def score(**steps: int) -> np.ndarray:
        run = attack("pgd", "linf", "targeted", early_stop=False, **steps)
        return np.asarray(
            run(NET, KEY, IMAGES01, CLASS_MASK, eps=24 / 255, step_size=24 / 255).score
        )

    scores = [score(steps=s, restarts=r) for s, r in ((1, 1), (4, 1), (4, 2))]
    for fewer, more in itertools.pairwise(scores):
        assert (more >= fewer - 1e-6).all()
    assert (scores[1] > scores[0]).any()
    assert (scores[2] > scores[1]).any()


@pytest.mark.parametrize(
    ("name", "norm"), [("bim", "linf"), pytest.param("apgd_ce", "l2", marks=pytest.mark.full)]
)
def test_without_rounding_an_eps_below_a_level_changes_images(name: str, norm: str) -> None:
    run = attack(name, norm, "targeted", eight_bit=False)
    eps = 0.3 / 255
    result = run(NET, KEY, IMAGES01, CLASS_MASK, eps=eps)
    distance = np.asarray(norms.get(norm).distance(np.asarray(result.images), IMAGES01))
    assert (distance <= eps * (1 + 1e-4)).all()
    assert result.images.min() >= 0 and result.images.max() <= 1
    logits, mask = logits_of(NET, IMAGES01), jnp.asarray(CLASS_MASK)
    improved = np.asarray(result.score > goals.TARGETED.score(logits, mask))
    assert (improved | goals.TARGETED.success(logits, mask)).all() and improved.any()
    assert ((distance > 0.85 * eps) | np.asarray(result.success))[improved].all()


@pytest.mark.parametrize(
    ("name", "norm"), [("pgd", "linf"), pytest.param("apgd_ce", "l2", marks=pytest.mark.full)]
)
def test_the_network_sees_8_bit_images_of_the_ball_only(name: str, norm: str) -> None:
    """Rounding is straight-through, so that steps below half a level add up."""
    batches: list[np.ndarray] = []

    def recorded(variables: Any, images01: jax.Array) -> jax.Array:
        jax.debug.callback(lambda x: batches.append(np.asarray(x)), images01)
        return toys.mlp(variables, images01)

    eps = 2 * LEVEL[norm]
    run = make(name, norm, "targeted", recorded, steps=4, restarts=1)
    jax.block_until_ready(run(NET, KEY, IMAGES01, CLASS_MASK, eps=eps, step_size=0.3 / 255))
    jax.effects_barrier()
    assert len(batches) >= 6
    for images in batches:
        rounded = pixels.to_images01(np.rint(images * 255).astype(np.uint8))
        np.testing.assert_array_equal(rounded, images)
        # Slots have an order of their own, so each image may belong to any of the originals.
        for image in images:
            distances = norms.get(norm).distance(jnp.asarray(image[None]), jnp.asarray(IMAGES01))
            assert distances.min() <= eps * (1 + 1e-5)
    assert len({images.tobytes() for images in batches}) >= 3


LINE = np.random.default_rng(5).normal(size=(N, 2)).astype(np.float32)


def line(variables: Any, images01: jax.Array) -> jax.Array:
    """A linear network, whose gradient is the same everywhere."""
    return images01.reshape(images01.shape[0], -1) @ variables


@pytest.mark.parametrize("norm", norms.NORMS)
def test_one_step_of_fgsm_is_eps_along_the_direction_of_the_norm(norm: str) -> None:
    assert_one_step(norm, gradient.fgsm())


@pytest.mark.parametrize(
    "search",
    [
        gradient.bim(steps=1, early_stop=False),
        gradient.mi_fgsm(steps=1, early_stop=False),
        gradient.di_fgsm(steps=1, early_stop=False, probability=0.0),
    ],
    ids=["bim", "mi_fgsm", "di_fgsm"],
)
def test_one_step_of_its_variants_equals_fgsm(search: attacks.Search) -> None:
    assert_one_step("linf", search)


def assert_one_step(norm: str, search: Any) -> None:
    gray, eps = np.full((1, SIZE, SIZE, 3), norms.GRID[128]), 3 / 255
    gradient_ = (LINE[:, 1] - LINE[:, 0]).reshape(gray.shape)
    # One percent of 108 values is one.
    largest = np.abs(gradient_) >= np.abs(gradient_).max()
    steps = {
        "linf": np.sign(gradient_),
        "l2": gradient_ / np.linalg.norm(gradient_),
        "l1": np.sign(gradient_) * largest,
    }
    run = attacks.make(search, line, norm=norms.get(norm), goal=goals.UNTARGETED, eight_bit=False)
    result = run(jnp.asarray(LINE), KEY, gray, goals.class_mask([[0]], 2), eps=eps)
    np.testing.assert_allclose(result.images, gray + eps * steps[norm], atol=1e-6)


@pytest.mark.parametrize(("goal", "index"), [("targeted", 1), ("untargeted", 0)])
def test_one_long_step_on_a_linear_network_is_fgsm(goal: str, index: int) -> None:
    """A step of 2 eps from any point of the ball ends at x + eps sign(gradient).

    Reference: Goodfellow et al. 2015, arXiv:1412.6572, section 4.
    """
    images = np.clip(images8(1), 6, 249)
    run = make("pgd", "linf", goal, line, steps=1, restarts=1, early_stop=False)
    mask = goals.class_mask([[index]] * COUNT, 2)
    images01 = pixels.to_images01(images)
    result = run(jnp.asarray(LINE), KEY, images01, mask, eps=6 / 255, step_size=12 / 255)
    uphill = np.sign(LINE[:, 1] - LINE[:, 0]).reshape(SIZE, SIZE, 3).astype(int)
    np.testing.assert_array_equal(pixels.to_uint8(result.images), images + 6 * uphill)


@pytest.mark.parity
def test_pgd_on_a_linear_network_equals_foolbox() -> None:
    foolbox = pytest.importorskip("foolbox")
    images01, eps = pixels.to_images01(np.clip(images8(1), 6, 249)), 6 / 255
    run = make("pgd", "linf", "untargeted", line, steps=20, restarts=1, early_stop=False)
    mask = goals.class_mask([[0]] * COUNT, 2)
    ours = run(jnp.asarray(LINE), KEY, images01, mask, eps=eps, step_size=1.5 / 255)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = foolbox.JAXModel(lambda x: line(jnp.asarray(LINE), x), bounds=(0, 1))
        theirs = foolbox.attacks.LinfPGD(steps=20, abs_stepsize=1.5 / 255)
        labels = jnp.zeros(COUNT, jnp.int32)
        _, clipped, success = theirs(model, jnp.asarray(images01), labels, epsilons=eps)
    np.testing.assert_allclose(ours.images, clipped, atol=1e-6)
    np.testing.assert_array_equal(ours.success, success)


# ---- APGD ----


@pytest.mark.full
def test_apgd_is_at_least_as_strong_as_pgd() -> None:
    """On 128 images; APGD-CE takes as many forward passes as PGD, APGD-T more."""
    images01 = np.concatenate([pixels.to_images01(images8(seed)) for seed in range(32)])
    top = np.argmax(logits_of(NET, images01), axis=1)
    mask = goals.class_mask(top[:, None].tolist(), CLASSES)
    for levels in (0.5, 1.0):
        success = {}
        for name in ("pgd", "apgd_ce", "apgd_t"):
            run = attack(name, "linf", "untargeted", steps=20, restarts=1, eight_bit=False)
            success[name] = np.asarray(run(NET, KEY, images01, mask, eps=levels / 255).success)
        # Otherwise the attacks cannot differ.
        assert 0.05 < success["pgd"].mean() < 0.95
        assert success["apgd_ce"].sum() >= success["pgd"].sum() - 1
        assert success["apgd_t"].sum() >= success["pgd"].sum()


def test_apgd_halves_its_step_and_returns_to_the_best_point() -> None:
    """Steps of 2 eps jump over a narrow ridge forever; halved ones reach its top."""

    def ridge(variables: Any, images01: jax.Array) -> jax.Array:
        rise = -jnp.abs(jnp.mean(images01, axis=(1, 2, 3)) - 0.5 - 0.3 * variables)
        # Class 0 always wins.
        return jnp.stack([jnp.zeros_like(rise), rise, rise - 1, rise - 2], axis=1)

    gray = np.full((1, SIZE, SIZE, 3), norms.GRID[128])
    run = attacks.make(
        apgd.apgd(steps=30, loss="margin"),
        ridge,
        norm=norms.LINF,
        goal=goals.UNTARGETED,
        eight_bit=False,
    )
    result = run(jnp.float32(0.2), KEY, gray, goals.class_mask([[0]], 4), eps=0.2)
    assert abs(float(np.mean(result.images)) - 0.56) < 0.005


def test_checkpoints_are_those_of_the_paper() -> None:
    lengths = apgd.interval_length(jnp.arange(101), jnp.full(101, 100))
    assert np.flatnonzero(lengths).tolist() == [22, 41, 57, 70, 80, 87, 93, 99]  # section 3.3
    for steps in (1, 2, 3, 10, 40, 100):
        # Equation 5: p of 0 and 1, and the next p.
        shares = [0.0, 0.22]
        while shares[-1] < 1:
            shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
        places = {math.ceil(round(share * steps, 6)) for share in shares if share <= 1}
        expected = np.zeros(steps + 1, int)
        expected[sorted(places)[1:]] = np.diff(sorted(places))
        lengths = apgd.interval_length(jnp.arange(steps + 1), jnp.full(steps + 1, steps))
        np.testing.assert_array_equal(lengths, expected)


@pytest.mark.parametrize(
    "name", ["square", *(pytest.param(name, marks=pytest.mark.full) for name in ("pgd", "apgd_ce"))]
)
def test_searches_that_differ_in_steps_share_a_program(name: str) -> None:
    traces: list[int] = []

    def counted(variables: Any, images01: jax.Array) -> jax.Array:
        traces.append(len(images01))
        return toys.mlp(variables, images01)

    search = attacks.get(name)(steps=3)
    assert isinstance(search, attacks.Search)
    make_one = functools.partial(
        attacks.make, logits=counted, norm=norms.LINF, goal=goals.UNTARGETED, slots=2
    )
    attack_3, attack_6 = (make_one(search._replace(steps=steps)) for steps in (3, 6))
    count = lambda run: int(run(NET, KEY, IMAGES01, CLASS_MASK, eps=0.0).steps.max())
    steps = count(attack_3)
    traces_of_one = len(traces)
    assert count(attack_6) == steps + 3 and len(traces) == traces_of_one


# ---- expectation over transformation ----


@pytest.mark.parametrize("expected", [False, True])
def test_an_attack_over_views_succeeds_on_all_views(expected: bool) -> None:
    """A view shows the left or the right half: both halves have to be bright, not only one."""

    def half(key: jax.Array, image: jax.Array) -> jax.Array:
        left = jnp.arange(SIZE)[None, :, None] < SIZE // 2
        return jnp.where(left == jax.random.bernoulli(key), image, 0.5)

    def brighter_half(variables: Any, images01: jax.Array) -> jax.Array:
        """Class 1 if the brighter half is bright."""
        parts = (images01[:, :, :3], images01[:, :, 3:])
        means = jnp.stack([jnp.mean(part, axis=(1, 2, 3)) for part in parts])
        largest = jax.nn.logsumexp(200 * means, axis=0) / 200
        return jnp.stack([jnp.full_like(largest, 0.52), largest], axis=1)

    gray = np.full((1, SIZE, SIZE, 3), norms.GRID[127])
    mask = goals.class_mask([[1]], 2)
    search = gradient.pgd(steps=12, early_stop=True, view=half if expected else None, draws=6)
    run = attacks.make(search, brighter_half, norm=norms.LINF, goal=goals.TARGETED)
    result = run(None, KEY, gray, mask, eps=8 / 255, step_size=1 / 255)
    assert result.success[0]
    views = jax.vmap(half, (0, None))(jax.random.split(KEY, 20), result.images[0])
    success = goals.TARGETED.success(brighter_half(None, views), np.repeat(mask, 20, axis=0))
    assert bool(success.all()) == expected


# ---- groups of classes ----


def test_a_group_is_reached_where_any_of_its_classes_is() -> None:
    top = np.argmax(logits_of(NET, IMAGES01), axis=1)
    others = [[c for c in range(CLASSES) if c != t] for t in top]
    run = functools.partial(attack(), NET, KEY, IMAGES01, eps=6 / 255, step_size=3 / 255)
    group = np.asarray(run(goals.class_mask(others, CLASSES)).success)
    single = np.stack(
        [
            run(goals.class_mask([[row[j]] for row in others], CLASSES)).success
            for j in range(CLASSES - 1)
        ]
    )
    assert (group >= single.any(axis=0)).all()
    assert group.any()
    assert not single.all()


# ---- errors ----


@pytest.mark.parametrize(
    ("images01", "eps", "message"),
    [
        (
            images8(),
            4 / 255,
            "`images01` must be float32 in .0, 1.: got uint8.*tl.pixels.to_images01",
        ),
        (IMAGES01 * 255, 4 / 255, "must lie in .0, 1. .*in .0, 255."),
        (np.where(IMAGES01 > 0.5, np.float32("nan"), IMAGES01), 4 / 255, "hold no NaN"),
        (IMAGES01[0], 4 / 255, r"must be f32\[b h w 3\]"),
        (IMAGES01[..., :1], 4 / 255, r"must be f32\[b h w 3\]"),
        (IMAGES01, 4, "`eps` is out of range: got 4, expected a share of the pixel range .0, 1."),
        (IMAGES01, -0.01, "`eps` is out of range"),
        (IMAGES01, float("nan"), "`eps` is out of range"),
    ],
)
def test_images_or_eps_out_of_range_are_refused(
    images01: np.ndarray, eps: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        attack()(NET, KEY, images01, CLASS_MASK, eps=eps, step_size=0.01)


@pytest.mark.parametrize("counts", [{"steps": 0}, {"steps": 1, "restarts": 0}])
def test_no_steps_or_no_restarts_are_refused(counts: dict[str, int]) -> None:
    for name in set(attacks.ATTACKS) - {"fgsm"}:
        with pytest.raises(ValueError, match="must be at least 1: got "):
            attacks.get(name)(**{"steps": 1} | counts)


def test_deterministic_attacks_refuse_restarts_and_fgsm_more_steps() -> None:
    for name in DETERMINISTIC:
        message = f"{name} is deterministic.*got `restarts=2`, expected 1"
        with pytest.raises(ValueError, match=message):
            attacks.get(name)(steps=1, restarts=2)
    with pytest.raises(ValueError, match="fgsm takes one step: got `steps=40`.*use 'bim'"):
        attacks.get("fgsm")(steps=40)


def test_eps_reaches_from_black_to_white_in_every_norm() -> None:
    attack("noise", "l2")(NET, KEY, IMAGES01, CLASS_MASK, eps=N**0.5)
    with pytest.raises(ValueError, match="expected a distance in .0, 10.39., black to white"):
        attack("noise", "l2")(NET, KEY, IMAGES01, CLASS_MASK, eps=10.5)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown attack 'pdg'; nearest: 'pgd'"):
        attacks.get("pdg")


# ---- pretrained weights ----


@pytest.mark.full
def test_a_dalmatian_becomes_any_cat(tmp_path: Path) -> None:
    """EfficientNet-Lite0 at 8/255, on the saved file; noise of that size changes no prediction."""
    with toys.package_or_skip():
        clf, variables = models.load("efficientnet_lite0", weights="package")
        photograph = next(p for p in data.photographs() if p.index == 251)
    image = clf.prepare(data.decode(photograph.path))
    logits = jax.jit(clf.logits)
    mask = goals.class_mask([clf.classes.find("any cat")], 1000)  # pyright: ignore
    run = attacks.make(gradient.pgd(steps=15), clf.logits, norm=norms.LINF, goal=goals.TARGETED)
    images01 = pixels.to_images01(image)[None]
    result = run(variables, KEY, images01, mask, eps=8 / 255, step_size=2 / 255)
    reporting.save_png(tmp_path / "cat.png", np.asarray(result.images[0]))
    read = data.decode(tmp_path / "cat.png")
    assert np.abs(read.astype(int) - image).max() <= 8
    change = np.random.default_rng(0).choice([-8, 8], image.shape)
    noisy = np.clip(image + change, 0, 255).astype(np.uint8)
    tops = [
        int(np.argmax(logits(variables, pixels.to_images01(x[None])))) for x in (image, noisy, read)
    ]
    assert tops[:2] == [251, 251]
    assert mask[0, tops[2]]
    assert result.success[0]
