"""The chain: what is solved leaves, what is left closes up, each picture alone; and networks that answer together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl import pixels
from tl.attacks import ensemble, goals, norms
from tl.attacks.frame import Attack, AttackResult

SIZE, CLASSES, COUNT = 4, 5, 7
N = 3 * SIZE * SIZE
KEY = jax.random.key(3)
IMAGES01 = pixels.to_images01(np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3)).astype(np.uint8))


def network(variables: Any, images01: jax.Array) -> jax.Array:
    x = images01.reshape(images01.shape[0], -1) - 0.5
    return jnp.tanh(x @ variables["in"]) @ variables["out"]


def weights(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {"in": draw(N, 8) / 3, "out": draw(8, CLASSES)}


NET = weights(0)
TOP = np.asarray(network(NET, jnp.asarray(IMAGES01))).argmax(axis=1)
RIGHT = goals.members(TOP[:, None].tolist(), CLASSES)


# ----------------------------------------------------------------------------------------------------------- the chain


def brightness(variables: Any, images01: jax.Array) -> jax.Array:
    """Class 0 for dark pictures, class 1 for bright ones."""
    mean = jnp.mean(images01, axis=(1, 2, 3))
    return jnp.stack([0.5 - mean, mean - 0.5], axis=1)


def brighter_by(amount: float, calls: list[tuple[Any, ...]]) -> Attack:
    """A stand-in that adds `amount` everywhere and writes down what it was given."""

    def attack(variables, key, images01, members, *, eps, step_size=None):
        calls.append((np.asarray(jax.random.key_data(key)), np.asarray(images01)))
        images = jnp.clip(jnp.asarray(images01) + min(amount, eps), 0, 1)
        none = jnp.zeros(len(images), bool)
        return AttackResult(images, none, none.astype(jnp.float32))  # says nothing: the chain judges by itself

    return attack


DARK = np.float32([0.6, 0.45, 0.1, 0.35, 0.3, 0.48, 0.2])  # one is bright as it is
GREY = np.broadcast_to(DARK[:, None, None, None], (7, 2, 2, 3)).copy()
AIM = goals.members([[1]] * 7, 2)


def chain(*amounts: float, batch: int = 2) -> tuple[Callable[..., ensemble.Chained], list[list[tuple[Any, ...]]]]:
    calls: list[list[tuple[Any, ...]]] = [[] for _ in amounts]
    attacks = [brighter_by(amount, own) for amount, own in zip(amounts, calls, strict=True)]
    return ensemble.make_chain(attacks, brightness, norm=norms.LINF, goal=goals.TARGETED, batch=batch), calls


def test_each_attack_gets_what_is_left_in_batches_of_one_shape() -> None:
    run, calls = chain(0.1, 0.25, 0.05)
    found = run(None, KEY, GREY, AIM, eps=0.5)
    assert found.solved_by.tolist() == [-1, 0, 3, 1, 1, 0, 3]
    assert found.success.tolist() == [True, True, False, True, True, True, False]
    assert found.tried.tolist() == [6, 4, 2]
    assert [[images.shape for _, images in own] for own in calls] == [[(2, 2, 2, 3)] * n for n in (3, 2, 1)]
    assert [images[:, 0, 0, 0].tolist() for _, images in calls[1]] == [DARK[[2, 3]].tolist(), DARK[[4, 6]].tolist()]
    np.testing.assert_allclose(found.images[[0, 1, 3], 0, 0, 0], [0.6, 0.55, 0.6], rtol=1e-6)
    np.testing.assert_allclose(found.images[[2, 6], 0, 0, 0], [0.35, 0.45], rtol=1e-6)  # the worst case of the three
    np.testing.assert_allclose(found.score, goals.TARGETED.score(brightness(None, jnp.asarray(found.images)), AIM))


def test_a_ragged_batch_is_filled_up_and_the_filling_is_left_out() -> None:
    run, calls = chain(0.1, batch=4)
    found = run(None, KEY, GREY, AIM, eps=0.5)
    assert [len(images) for _, images in calls[0]] == [4, 4]
    assert calls[0][1][1][:, 0, 0, 0].tolist() == DARK[[5, 6, 5, 6]].tolist()
    assert found.tried.tolist() == [6] and found.success.sum() == 3


def test_keys_belong_to_pictures_not_to_places() -> None:
    """Other company, another batch size or an earlier success of others: the same key, which differs between attacks."""
    (one, first), (two, second) = chain(0.1, 0.2, batch=2), chain(0.1, 0.2, batch=5)
    one(None, KEY, GREY, AIM, eps=0.5), two(None, KEY, np.where(GREY > 0.4, 0.9, GREY).astype(np.float32), AIM, eps=0.5)

    def by_picture(calls: list[tuple[Any, ...]]) -> dict[float, list[int]]:
        return {float(x[0, 0, 0]): k.tolist() for keys, images in calls for k, x in zip(keys, images, strict=True)}

    for own, other in zip(first, second, strict=True):
        own, other = by_picture(own), by_picture(other)
        assert len(own.keys() & other.keys()) >= 3
        assert all(own[x] == other[x] for x in own.keys() & other.keys())
    dark = float(DARK[2])
    assert by_picture(first[0])[dark] != by_picture(first[1])[dark]
    assert len({tuple(k) for k in by_picture(first[0]).values()}) == 6


def test_nothing_left_and_nothing_at_all() -> None:
    run, calls = chain(0.1)
    assert run(None, KEY, GREY[:1], AIM[:1], eps=0.5).success.all() and not calls[0]
    assert run(None, KEY, GREY[:0], AIM[:0], eps=0.5).images.shape == (0, 2, 2, 3)
    same = run(None, KEY, GREY, AIM, eps=0.0)
    np.testing.assert_array_equal(same.images, GREY)


def test_chunks_go_where_they_are_put() -> None:
    put: list[int] = []
    run = ensemble.make_chain(
        [brighter_by(0.1, [])],
        brightness,
        norm=norms.LINF,
        goal=goals.TARGETED,
        batch=3,
        put=lambda tree: put.append(len(tree)) or jax.tree.map(jax.device_put, tree),
    )
    assert run(None, KEY, GREY, AIM, eps=0.5).success.sum() == 3
    assert put == [2, 2, 2, 3, 3]  # pictures and members to be judged, then keys too


@pytest.mark.parametrize(
    ("attacks", "batch", "says"), [([], 4, "at least one attack .* got 0 and 4"), ([1], 0, "got 1 and 0")]
)
def test_no_attack_or_no_batch_is_no_chain(attacks: list[Any], batch: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ensemble.make_chain(attacks, brightness, norm=norms.LINF, goal=goals.TARGETED, batch=batch)


# ---------------------------------------------------------------------------------------------------------- AutoAttack


def test_autoattack_is_no_weaker_than_its_four_and_their_results_hold() -> None:
    eps, counts = 12 / 255, {"steps": 10, "queries": 50}
    four = ensemble.standard(network, norm=norms.LINF, goal=goals.UNTARGETED, **counts)
    assert list(four) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    run = ensemble.make_chain(list(four.values()), network, norm=norms.LINF, goal=goals.UNTARGETED, batch=4)
    found = run(NET, KEY, IMAGES01, RIGHT, eps=eps)
    print(found.solved_by, found.tried)
    apart = []
    for attack in four.values():  # compiled already, for 4
        own = attack(NET, KEY, IMAGES01[:4], RIGHT[:4], eps=eps)
        np.testing.assert_array_equal(own.success, goals.UNTARGETED.success(network(NET, own.images), RIGHT[:4]))
        apart.append(np.asarray(own.success))
    assert (found.success[:4] >= np.any(apart, axis=0)).all()
    assert np.abs(found.images - IMAGES01).max() <= eps + 1e-6
    np.testing.assert_array_equal(pixels.to_images01(pixels.to_uint8(found.images)), found.images)
    np.testing.assert_array_equal(
        found.success, goals.UNTARGETED.success(network(NET, jnp.asarray(found.images)), RIGHT)
    )
    assert 0 < found.success.sum()

    again = ensemble.make_chain(list(four.values()), network, norm=norms.LINF, goal=goals.UNTARGETED, batch=4)
    alone = again(NET, KEY, IMAGES01[:4], RIGHT[:4], eps=eps)
    np.testing.assert_array_equal(alone.success, found.success[:4])
    np.testing.assert_array_equal(alone.images, found.images[:4])


def test_autoattack_is_an_attack() -> None:
    run = ensemble.make_autoattack(network, norm=norms.LINF, goal=goals.UNTARGETED, steps=2, queries=5)
    result = run(NET, KEY, IMAGES01, ~RIGHT, eps=8 / 255)  # met as it is: nothing is compiled
    assert result.success.all() and isinstance(result, AttackResult)
    np.testing.assert_array_equal(result.images, IMAGES01)
    with pytest.raises(ValueError, match="eps is a share"):
        run(NET, KEY, IMAGES01, ~RIGHT, eps=8)
    with pytest.raises(ValueError, match="works in the norms"):
        ensemble.make_autoattack(network, norm=norms.L1, goal=goals.UNTARGETED)


def test_two_classes_are_enough_for_autoattack() -> None:
    """The targeted DLR wants four."""
    four = ensemble.standard(brightness, norm=norms.LINF, goal=goals.TARGETED, steps=4)
    images01 = pixels.to_images01(pixels.to_uint8(GREY))
    assert four["apgd-t"](None, KEY, images01, AIM, eps=0.3).success.tolist() == (DARK > 0.21).tolist()


# ------------------------------------------------------------------------------------------------- networks as one


def test_an_ensemble_answers_with_the_mean() -> None:
    nets = (NET, weights(1), {"in": weights(2)["in"], "out": 9 * weights(2)["out"]})
    each = [network(net, jnp.asarray(IMAGES01)) for net in nets]
    plain = ensemble.ensemble([network] * 3)(nets, jnp.asarray(IMAGES01))
    np.testing.assert_allclose(plain, np.mean(each, axis=0), rtol=1e-5, atol=1e-5)
    fair = ensemble.ensemble([network] * 3, mean="log_probability")(nets, jnp.asarray(IMAGES01))
    np.testing.assert_allclose(fair, np.mean([jax.nn.log_softmax(z) for z in each], axis=0), rtol=1e-5, atol=1e-5)
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
