"""Several searches as one attack (AutoAttack), and several networks as one."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from tl import attacks, pixels
from tl.attacks import apgd, baselines, ensemble, fab, goals, gradient, norms
from tl.attacks.base import Best, Search, Task, update_best
from tl.attacks.slots import expand

SIZE, CLASSES, COUNT = 4, 5, 12
N = 3 * SIZE * SIZE
KEY = jax.random.key(3)
IMAGES01 = pixels.to_images01(
    np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3)).astype(np.uint8)
)


def weights(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"in": draw(N, 8) / 3, "out": draw(8, CLASSES)}


NET = weights(0)


# ---- searches in sequence, on stand-ins with known results ----


def brightness(variables: Any, images01: jax.Array) -> jax.Array:
    """The larger logit is that of class 0 for dark images, of class 1 for bright ones."""
    mean = jnp.mean(images01, axis=(1, 2, 3))
    return jnp.stack([0.5 - mean, mean - 0.5], axis=1)


class Step(NamedTuple):
    k: jax.Array
    best: Best
    finished: jax.Array


@functools.cache
def brighten(amount: float | None, *, steps: int = 1) -> Search:
    """Adds `amount` everywhere in `steps` steps; None draws it with the image's key."""

    def init(task: Task, best: Best) -> Step:
        return Step(jnp.zeros_like(best.solved, jnp.int32), best, jnp.zeros_like(best.solved))

    def step(task: Task, state: Step) -> Step:
        drawn = jax.vmap(lambda key: jax.random.uniform(key, (), maxval=0.2))(task.keys)
        amounts = drawn if amount is None else jnp.full_like(drawn, amount)
        x = task.project(task.center + expand(amounts, task.center))
        best = update_best(state.best, x, *task.judge(task.logits(x)))
        return Step(state.k + 1, best, state.k + 1 == steps)

    return Search(init, step)


DARK = np.float32([0.6, 0.45, 0.1, 0.35, 0.3, 0.48, 0.2])  # the first is bright
GRAY = np.broadcast_to(DARK[:, None, None, None], (7, 2, 2, 3)).copy()
BRIGHT = goals.class_mask([[1]] * 7, 2)


def chain(*amounts: float | None, steps: tuple[int, ...] = (1, 10, 100)) -> attacks.Attack:
    """Searches of 1, 10 and 100 steps, so that the number of steps shows which of them ran."""
    searches = [brighten(amount, steps=n) for amount, n in zip(amounts, steps, strict=False)]
    return attacks.make(
        searches, brightness, norm=norms.LINF, goal=goals.TARGETED, eight_bit=False, slots=2
    )


def added(result: attacks.AttackResult) -> list[float]:
    return (np.asarray(result.images) - GRAY)[:, 0, 0, 0].round(4).tolist()


def test_each_search_gets_the_unsolved_images_and_the_best_is_kept() -> None:
    result = chain(0.1, 0.25, 0.05)(None, KEY, GRAY, BRIGHT, eps=0.5)
    assert result.solved_by.tolist() == [-1, 0, -1, 1, 1, 0, -1]
    assert result.success.tolist() == [True, True, False, True, True, True, False]
    assert result.steps.tolist() == [0, 1, 111, 11, 11, 1, 111]
    np.testing.assert_allclose(added(result), [0, 0.1, 0.25, 0.25, 0.25, 0.1, 0.25], atol=1e-4)
    score = goals.TARGETED.score(brightness(None, result.images), BRIGHT)
    np.testing.assert_allclose(result.score, score, rtol=1e-5)


def test_each_image_has_its_own_eps() -> None:
    eps = np.float32([0.5, 0.04, 0, 0.5, 0.5, 0.5, 0.2])
    result = chain(0.1, 0.25, 0.05)(None, KEY, GRAY, BRIGHT, eps=eps)
    assert result.solved_by.tolist() == [-1, -1, -1, 1, 1, 0, -1]
    np.testing.assert_allclose(added(result), [0, 0.04, 0, 0.25, 0.25, 0.1, 0.2], atol=1e-4)


def test_skipped_images_go_through_no_search() -> None:
    result = chain(0.1, 0.25, 0.05)(None, KEY, GRAY, BRIGHT, eps=0.5, skip=np.arange(7) == 3)
    assert result.steps.tolist() == [0, 1, 111, 0, 11, 1, 111] and not result.success[3]
    np.testing.assert_allclose(added(result), [0, 0.1, 0.25, 0, 0.25, 0.1, 0.25], atol=1e-4)


def test_random_numbers_depend_on_the_image_and_the_search_only() -> None:
    """Not on the rest of the batch, the position in it, or what was solved before."""
    run, other = chain(None, -0.1, steps=(2, 1)), chain(-0.1, None, steps=(1, 2))
    first, second = (added(attack(None, KEY, GRAY, BRIGHT, eps=0.5)) for attack in (run, other))
    assert len({*first[1:], *second[1:]}) == 12 and min(first[1:] + second[1:]) > 0
    others = np.where(np.arange(7)[:, None, None, None] == 2, GRAY, np.float32(0.9))
    result = other(None, KEY, others, BRIGHT, eps=0.5)
    assert added(result)[2] == second[2] and result.steps.tolist() == [0, 0, 3, 0, 0, 0, 0]
    order = np.array([3, 2, 6, 5, 1, 0, 4])
    permuted = run(None, norms.per_image_keys(KEY, 7)[order], GRAY[order], BRIGHT, eps=0.5)
    change = (permuted.images - GRAY[order])[:, 0, 0, 0]
    np.testing.assert_allclose(change, np.asarray(first)[order], atol=1e-4)


def test_solved_and_empty_batches_take_no_steps() -> None:
    run = chain(0.1, 0.25, 0.05)
    solved = run(None, KEY, GRAY, ~BRIGHT, eps=0.5)
    assert solved.success.tolist() == [False, *[True] * 6]
    assert solved.steps.tolist() == [111, *[0] * 6]
    empty = run(None, KEY, GRAY[:0], BRIGHT[:0], eps=0.5)
    assert empty.images.shape == (0, 2, 2, 3)
    assert empty.steps.shape == empty.solved_by.shape == (0,)


def test_every_eps_is_checked() -> None:
    with pytest.raises(ValueError, match="`eps` is out of range: got 8"):
        chain(0.1, 0.25, 0.05)(None, KEY, GRAY[:2], BRIGHT[:2], eps=np.float32([0.1, 8]))


def test_no_search_and_unsupported_norms_are_refused() -> None:
    make = functools.partial(attacks.make, logits=brightness, goal=goals.TARGETED)
    with pytest.raises(ValueError, match="at least one search: got none"):
        make([], norm=norms.LINF)
    with pytest.raises(ValueError, match="got 'linf', expected one of l2"):
        make([gradient.fgsm(), attacks.get("cw")()], norm=norms.LINF)  # pyright: ignore


# ---- AutoAttack ----

EPS = 8 / 255


@functools.cache
def true_classes() -> np.ndarray:
    top = np.asarray(jax.jit(toys.mlp)(NET, jnp.asarray(IMAGES01))).argmax(axis=1)
    return goals.class_mask(top[:, None].tolist(), CLASSES)


@pytest.mark.full
def test_a_sequence_gives_the_result_of_the_first_search_that_solves_an_image() -> None:
    """Alone, with the keys of its place, a search gives the same images to the bit."""
    searches = [baselines.noise(steps=4), fab.fab(steps=1, targets=1), gradient.bim(steps=10)]
    make = functools.partial(
        attacks.make, logits=toys.mlp, norm=norms.LINF, goal=goals.UNTARGETED, slots=3
    )
    result = make(searches)(NET, KEY, IMAGES01, true_classes(), eps=EPS)
    solved, best = np.zeros(COUNT, bool), np.full(COUNT, -np.inf, np.float32)
    for index, search in enumerate(searches):
        keys = jax.vmap(jax.random.fold_in, (0, None))(norms.per_image_keys(KEY, COUNT), index)
        alone = make(search)(NET, keys, IMAGES01, true_classes(), eps=EPS)
        first = np.asarray(alone.success) & ~solved
        np.testing.assert_array_equal(np.asarray(result.solved_by) == index, first)
        np.testing.assert_array_equal(result.images[first], alone.images[first])
        solved, best = solved | first, np.maximum(best, alone.score)
        assert first.any()
    np.testing.assert_array_equal(result.success, solved)
    assert not solved.all()
    np.testing.assert_allclose(result.score[~solved], best[~solved], rtol=1e-5)


def test_autoattack_is_the_standard_four() -> None:
    four = ensemble.autoattack(steps=2, queries=5)
    assert len(four) == len(ensemble.STANDARD)
    assert [search.nearest for search in four] == [False, False, True, False]
    assert [set(search.norms) for search in four] == [set(), set(), {"linf", "l2"}, {"linf", "l2"}]
    # APGD's first step is 2 eps.
    assert [float(search.default_step(jnp.float32(3), 100)) for search in four[:2]] == [6, 6]
    with pytest.raises(ValueError, match="got 'l1', expected one of linf, l2"):
        attacks.make(four, toys.mlp, norm=norms.L1, goal=goals.UNTARGETED)


def test_apgd_t_works_with_two_classes() -> None:
    """The targeted DLR loss needs four."""
    run = attacks.make(apgd.apgd_t(steps=4), brightness, norm=norms.LINF, goal=goals.TARGETED)
    result = run(None, KEY, pixels.to_images01(pixels.to_uint8(GRAY)), BRIGHT, eps=0.3)
    assert result.success.tolist() == (DARK > 0.21).tolist()


def test_apgd_t_targets_every_class_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five classes are four targets, fewer than its nine, three times each."""
    ranks: list[int] = []
    likeliest = goals.likeliest

    def recorded(logits: jax.Array, among: jax.Array, rank: jax.Array) -> jax.Array:
        jax.debug.callback(lambda rank: ranks.extend(rank.tolist()), rank)
        return likeliest(logits, among, rank)

    monkeypatch.setattr(goals, "likeliest", recorded)
    constant = lambda variables, x: jnp.mean(x, (1, 2, 3))[:, None] - jnp.arange(5.0)[None]
    search = apgd.apgd_t(steps=1, restarts=3)
    run = attacks.make(search, constant, norm=norms.LINF, goal=goals.UNTARGETED)
    result = run(None, KEY, GRAY[:1], goals.class_mask([[0]], 5), eps=0.1)
    jax.effects_barrier()
    assert result.steps.tolist() == [24] and not result.success[0]
    assert [ranks.count(rank) for rank in range(5)] == [6, 6, 6, 6, 0]


# ---- networks as one ----


def test_an_ensemble_of_networks_gives_the_mean() -> None:
    nets = (NET, weights(1), {"in": weights(2)["in"], "out": 9 * weights(2)["out"]})
    images01 = jnp.asarray(IMAGES01)
    parts = [toys.mlp(net, images01) for net in nets]
    logits = ensemble.ensemble([toys.mlp] * 3)(nets, images01)
    np.testing.assert_allclose(logits, np.mean(parts, axis=0), rtol=1e-5, atol=1e-5)
    log_probabilities = ensemble.ensemble([toys.mlp] * 3, mean="log_probability")(nets, images01)
    expected = np.mean([jax.nn.log_softmax(z) for z in parts], axis=0)
    np.testing.assert_allclose(log_probabilities, expected, rtol=1e-5, atol=1e-5)
    single = ensemble.ensemble([toys.mlp])((NET,), images01)
    np.testing.assert_allclose(single, parts[0], rtol=1e-6)


def test_ensembles_that_cannot_work_are_refused() -> None:
    images01 = jnp.asarray(IMAGES01)
    with pytest.raises(ValueError, match="at least one network"):
        ensemble.ensemble([])
    with pytest.raises(ValueError, match="unknown mean 'logit'; nearest: 'logits'"):
        ensemble.ensemble([toys.mlp], mean="logit")
    with pytest.raises(ValueError, match="needs a tuple of as many variables: got 1"):
        ensemble.ensemble([toys.mlp] * 2)((NET,), images01)
    with pytest.raises(ValueError, match="share their classes: got .5, 2."):
        ensemble.ensemble([toys.mlp, brightness])((NET, NET), images01)
