"""Searches in a row: each on what is left, the worst case kept, each picture with keys of its own; and networks as one."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl import attacks, pixels
from tl.attacks import apgd, baselines, ensemble, fab, goals, gradient, norms
from tl.attacks.base import Best, Search, Task, update_best
from tl.attacks.slots import rows

SIZE, CLASSES, COUNT = 4, 5, 12
N = 3 * SIZE * SIZE
KEY = jax.random.key(3)
IMAGES01 = pixels.to_images01(
    np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3)).astype(np.uint8)
)


def network(variables: Any, images01: jax.Array) -> jax.Array:
    x = images01.reshape(images01.shape[0], -1) - 0.5
    return jnp.tanh(x @ variables["in"]) @ variables["out"]


def weights(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"in": draw(N, 8) / 3, "out": draw(8, CLASSES)}


NET = weights(0)
TOP = np.asarray(network(NET, jnp.asarray(IMAGES01))).argmax(axis=1)
RIGHT = goals.class_mask(TOP[:, None].tolist(), CLASSES)


# ----------------------------------------------------------------------------------------------------- stand-ins, by hand


def brightness(variables: Any, images01: jax.Array) -> jax.Array:
    """Class 0 for dark pictures, class 1 for bright ones."""
    mean = jnp.mean(images01, axis=(1, 2, 3))
    return jnp.stack([0.5 - mean, mean - 0.5], axis=1)


class Step(NamedTuple):
    k: jax.Array
    best: Best
    done: jax.Array


def brighter(amount: float | None, *, steps: int = 1) -> Search:
    """Adds `amount` everywhere, None draws it by the image's key; takes so many steps with each image."""

    def init(task: Task, best: Best) -> Step:
        return Step(jnp.zeros_like(best.solved, jnp.int32), best, jnp.zeros_like(best.solved))

    def step(task: Task, at: Step) -> Step:
        drawn = jax.vmap(lambda key: jax.random.uniform(key, (), maxval=0.2))(task.keys)
        own = drawn if amount is None else jnp.full_like(drawn, amount)
        x = task.project(task.center + rows(own, task.center))
        return Step(
            at.k + 1, update_best(at.best, x, *task.judge(task.logits(x))), at.k + 1 == steps
        )

    return Search(init, step)


DARK = np.float32([0.6, 0.45, 0.1, 0.35, 0.3, 0.48, 0.2])  # one is bright as it is
GREY = np.broadcast_to(DARK[:, None, None, None], (7, 2, 2, 3)).copy()
AIM = goals.class_mask([[1]] * 7, 2)


stand_in = functools.cache(brighter)  # the same search compiles once, wherever it stands


def chain(*amounts: float | None, steps: tuple[int, ...] = (1, 10, 100)) -> attacks.Attack:
    """The steps that an image takes, 1 in the first search, 10 in the second, tell which searches it was given to."""
    searches = [stand_in(amount, steps=own) for amount, own in zip(amounts, steps, strict=False)]
    return attacks.make(
        searches, brightness, norm=norms.LINF, goal=goals.TARGETED, eight_bit=False, slots=2
    )


def added(found: attacks.AttackResult) -> list[float]:
    return (np.asarray(found.images) - GREY)[:, 0, 0, 0].round(4).tolist()


def test_each_search_gets_what_is_left_and_the_worst_case_is_kept() -> None:
    found = chain(0.1, 0.25, 0.05)(None, KEY, GREY, AIM, eps=0.5)
    assert found.solved_by.tolist() == [-1, 0, -1, 1, 1, 0, -1]
    assert found.success.tolist() == [True, True, False, True, True, True, False]
    assert found.steps.tolist() == [0, 1, 111, 11, 11, 1, 111]
    np.testing.assert_allclose(added(found), [0, 0.1, 0.25, 0.25, 0.25, 0.1, 0.25], atol=1e-4)
    np.testing.assert_allclose(
        found.score, goals.TARGETED.score(brightness(None, found.images), AIM), rtol=1e-5
    )

    less = chain(0.1, 0.25, 0.05)(
        None, KEY, GREY, AIM, eps=np.float32([0.5, 0.04, 0, 0.5, 0.5, 0.5, 0.2])
    )
    assert less.solved_by.tolist() == [-1, -1, -1, 1, 1, 0, -1]
    np.testing.assert_allclose(added(less), [0, 0.04, 0, 0.25, 0.25, 0.1, 0.2], atol=1e-4)
    apart = np.arange(7) == 3
    left = chain(0.1, 0.25, 0.05)(None, KEY, GREY, AIM, eps=0.5, skip=apart)
    assert left.steps.tolist() == [0, 1, 111, 0, 11, 1, 111] and not left.success[3]
    np.testing.assert_allclose(added(left), [0, 0.1, 0.25, 0, 0.25, 0.1, 0.25], atol=1e-4)


def test_keys_belong_to_pictures_and_differ_between_the_searches() -> None:
    """Whoever else is there, wherever the picture stands, and whatever was solved before: the same draw."""
    run, other = chain(None, -0.1, steps=(2, 1)), chain(-0.1, None, steps=(1, 2))
    first, second = (added(search(None, KEY, GREY, AIM, eps=0.5)) for search in (run, other))
    assert len({*first[1:], *second[1:]}) == 12 and min(first[1:] + second[1:]) > 0
    company = np.where(np.arange(7)[:, None, None, None] == 2, GREY, np.float32(0.9))
    moved = other(None, KEY, company, AIM, eps=0.5)
    assert added(moved)[2] == second[2] and moved.steps.tolist() == [0, 0, 3, 0, 0, 0, 0]
    order = np.array([3, 2, 6, 5, 1, 0, 4])  # and by the keys that are the pictures' own
    places = run(None, norms.per_image_keys(KEY, 7)[order], GREY[order], AIM, eps=0.5)
    np.testing.assert_allclose(
        (places.images - GREY[order])[:, 0, 0, 0], np.asarray(first)[order], atol=1e-4
    )


def test_nothing_left_and_nothing_at_all() -> None:
    run = chain(0.1, 0.25, 0.05)
    solved = run(None, KEY, GREY, ~AIM, eps=0.5)
    assert solved.success.tolist() == [False, *[True] * 6] and solved.steps.tolist() == [
        111,
        *[0] * 6,
    ]
    none = run(None, KEY, GREY[:0], AIM[:0], eps=0.5)
    assert none.images.shape == (0, 2, 2, 3) and none.steps.shape == none.solved_by.shape == (0,)


def test_no_search_is_no_attack_and_each_wants_its_norm_and_every_eps_is_looked_at() -> None:
    with pytest.raises(ValueError, match="eps is a share of the pixel range .*; got 8"):
        chain(0.1, 0.25, 0.05)(None, KEY, GREY[:2], AIM[:2], eps=np.float32([0.1, 8]))
    make = functools.partial(attacks.make, logits=brightness, goal=goals.TARGETED)
    with pytest.raises(ValueError, match="at least one search; got none"):
        make([], norm=norms.LINF)
    with pytest.raises(ValueError, match="works in the norms l2; got 'linf'"):
        make([gradient.fgsm(), attacks.get("cw")()], norm=norms.LINF)  # pyright: ignore


# ---------------------------------------------------------------------------------------------------------- AutoAttack


EPS = 8 / 255


def test_in_a_row_they_solve_what_each_solves_alone() -> None:
    """With the keys that the row gives them: the first that solves a picture alone gives the very same in the row."""
    searches = [baselines.noise(steps=4), fab.fab(steps=1, targets=1), gradient.bim(steps=10)]
    make = functools.partial(
        attacks.make, logits=network, norm=norms.LINF, goal=goals.UNTARGETED, slots=3
    )
    found = make(searches)(NET, KEY, IMAGES01, RIGHT, eps=EPS)
    solved, best = np.zeros(COUNT, bool), np.full(COUNT, -np.inf, np.float32)
    for place, search in enumerate(searches):
        keys = jax.vmap(jax.random.fold_in, (0, None))(norms.per_image_keys(KEY, COUNT), place)
        alone = make(search)(NET, keys, IMAGES01, RIGHT, eps=EPS)
        first = np.asarray(alone.success) & ~solved
        np.testing.assert_array_equal(np.asarray(found.solved_by) == place, first)
        np.testing.assert_array_equal(found.images[first], alone.images[first])
        solved, best = solved | first, np.maximum(best, alone.score)
        print(place, first.sum())
        assert first.any()
    np.testing.assert_array_equal(found.success, solved)
    assert not solved.all()
    np.testing.assert_allclose(found.score[~solved], best[~solved], rtol=1e-5)


def test_autoattack_is_the_standard_four() -> None:
    four = ensemble.autoattack(steps=2, queries=5)
    assert len(four) == len(ensemble.STANDARD)
    assert [search.nearest for search in four] == [False, False, True, False]
    assert [set(search.norms) for search in four] == [set(), set(), {"linf", "l2"}, {"linf", "l2"}]
    assert [float(search.default_step(jnp.float32(3))) for search in four[:2]] == [
        6,
        6,
    ]  # APGD's 2 eps
    with pytest.raises(ValueError, match="works in the norms linf, l2; got 'l1'"):
        attacks.make(four, network, norm=norms.L1, goal=goals.UNTARGETED)


def test_two_classes_are_enough_for_autoattack() -> None:
    """The targeted DLR wants four."""
    run = attacks.make(apgd.apgd_t(steps=4), brightness, norm=norms.LINF, goal=goals.TARGETED)
    found = run(None, KEY, pixels.to_images01(pixels.to_uint8(GREY)), AIM, eps=0.3)
    assert found.success.tolist() == (DARK > 0.21).tolist()


def test_apgd_t_aims_at_every_class_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five classes: four to aim at, fewer than its nine, three times each."""
    ranks: list[int] = []
    likeliest = goals.likeliest

    def spied(logits: jax.Array, among: jax.Array, rank: jax.Array) -> jax.Array:
        jax.debug.callback(lambda rank: ranks.extend(rank.tolist()), rank)
        return likeliest(logits, among, rank)

    monkeypatch.setattr(goals, "likeliest", spied)
    constant = lambda variables, x: jnp.mean(x, (1, 2, 3))[:, None] - jnp.arange(5.0)[None]
    run = attacks.make(
        apgd.apgd_t(steps=1, restarts=3), constant, norm=norms.LINF, goal=goals.UNTARGETED
    )
    found = run(None, KEY, GREY[:1], goals.class_mask([[0]], 5), eps=0.1)
    jax.effects_barrier()
    assert found.steps.tolist() == [24] and not found.success[0]
    assert [ranks.count(rank) for rank in range(5)] == [6, 6, 6, 6, 0]


# ------------------------------------------------------------------------------------------------- networks as one


def test_an_ensemble_answers_with_the_mean() -> None:
    nets = (NET, weights(1), {"in": weights(2)["in"], "out": 9 * weights(2)["out"]})
    each = [network(net, jnp.asarray(IMAGES01)) for net in nets]
    plain = ensemble.ensemble([network] * 3)(nets, jnp.asarray(IMAGES01))
    np.testing.assert_allclose(plain, np.mean(each, axis=0), rtol=1e-5, atol=1e-5)
    fair = ensemble.ensemble([network] * 3, mean="log_probability")(nets, jnp.asarray(IMAGES01))
    np.testing.assert_allclose(
        fair, np.mean([jax.nn.log_softmax(z) for z in each], axis=0), rtol=1e-5, atol=1e-5
    )
    one = ensemble.ensemble([network])((NET,), jnp.asarray(IMAGES01))
    np.testing.assert_allclose(one, each[0], rtol=1e-6)


def test_bad_ensembles_are_told() -> None:
    with pytest.raises(ValueError, match="at least one network"):
        ensemble.ensemble([])
    with pytest.raises(ValueError, match="unknown mean 'logit'; nearest: 'logits'"):
        ensemble.ensemble([network], mean="logit")
    with pytest.raises(ValueError, match="2 networks want as many variables, in a tuple; got 1"):
        ensemble.ensemble([network] * 2)((NET,), jnp.asarray(IMAGES01))
    with pytest.raises(ValueError, match="share their classes; got .5, 2."):
        ensemble.ensemble([network, brightness])((NET, NET), jnp.asarray(IMAGES01))
