"""What attacks want, by hand: losses of single classes and of groups, what counts as success, who is aimed at."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.attacks import goals

KINDS, LOSSES = sorted(goals.SUCCESSES), sorted(goals.LOSSES)


def test_goals_by_hand() -> None:
    logits = jnp.log(jnp.asarray([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]))
    class_mask = jnp.asarray(goals.class_mask([[0, 1], [0]], 3))
    np.testing.assert_allclose(
        goals.TARGETED.score(logits, class_mask), np.log([0.3, 0.5]), rtol=1e-5
    )
    np.testing.assert_allclose(
        goals.UNTARGETED.score(logits, class_mask), np.log([0.7, 0.5]), rtol=1e-5
    )
    assert goals.TARGETED.success(logits, class_mask).tolist() == [False, True]
    assert goals.UNTARGETED.success(logits, class_mask).tolist() == [True, False]
    np.testing.assert_array_equal(goals.success_mask(goals.TARGETED, class_mask), class_mask)
    np.testing.assert_array_equal(goals.success_mask(goals.UNTARGETED, class_mask), ~class_mask)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_that_are_no_numbers_are_no_success(kind: str) -> None:
    """`argmax` takes a NaN for the largest: a network that breaks would be fooled by its own breaking."""
    logits = jnp.asarray([[0.0, jnp.nan, 1.0], [jnp.nan] * 3, [0.0, -jnp.inf, 1.0]])
    class_mask = jnp.asarray(goals.class_mask([[1] if kind == "targeted" else [0]] * 2 + [[2]], 3))
    assert goals.get(kind).success(logits, class_mask).tolist() == [
        False,
        False,
        kind == "targeted",
    ]


LOGITS = jnp.asarray([[6.0, 5.0, 4.0, 1.0, 0.0]])


def losses(groups: list[int]) -> dict[str, tuple]:
    class_mask = jnp.asarray(goals.class_mask([groups], 5))
    return {
        n: tuple(float(score(LOGITS, class_mask)[0]) for score in row)
        for n, row in goals.LOSSES.items()
    }


def test_losses_of_one_class_by_hand() -> None:
    """Class 0 is on top: 1 above the next; the first less the third is 2. Equation 6: -(6 - 5) / (6 - 4)."""
    found = losses([0])
    assert found["margin"] == (1.0, -1.0)
    assert found["dlr"][1] == pytest.approx(-0.5)
    found = losses([2])  # equation 7 for target 2: -(6 - 4) / (6 - (4 + 1) / 2)
    assert found["margin"] == (-2.0, 2.0)
    assert found["dlr"] == (pytest.approx(-2 / 3.5), pytest.approx(2 / 2))


def test_losses_of_a_group_count_it_once() -> None:
    found = losses([0, 1])  # ranks 6, 4, 1, 0: the 5 counts no more
    assert found["margin"] == (2.0, -2.0)
    assert found["dlr"][1] == pytest.approx(-(6 - 4) / (6 - 1))
    found = losses([2, 3])  # ranks 6, 5, 4, 0
    assert found["dlr"][0] == pytest.approx(-(6 - 4) / (6 - (4 + 0) / 2))
    two = (
        jnp.asarray(goals.class_mask([[1, 2]], 5)),
        jnp.asarray(goals.class_mask([[0, 3]], 5)),
    )  # ranks 6, 5, 0, and 0 again
    assert float(goals.targeted_dlr(LOGITS, *two)[0]) == pytest.approx(-(6 - 5) / (6 - 0.0))


@pytest.mark.parametrize("kind", KINDS)
@given(shift=st.floats(-5, 5), scale=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_dlr_knows_no_scale_and_no_shift(kind: str, shift: float, scale: float, seed: int) -> None:
    logits = jax.random.normal(jax.random.key(seed), (8, 6))
    class_mask = jnp.asarray(
        goals.class_mask([[i % 6, (i + 2) % 6][: 1 + i % 2] for i in range(8)], 6)
    )
    goal = goals.get(kind, "dlr")
    np.testing.assert_allclose(
        goal.score(scale * logits + shift, class_mask),
        goal.score(logits, class_mask),
        rtol=1e-3,
        atol=1e-3,
    )
    right = ~goals.UNTARGETED.success(logits, class_mask)
    found = goals.dlr(logits, class_mask)
    assert (found[right] >= -1).all() and (found[right] <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 99))
def test_margin_and_dlr_change_their_sign_where_the_goal_is_met(kind: str, seed: int) -> None:
    logits = jax.random.normal(jax.random.key(seed), (8, 6))
    class_mask = jnp.asarray(
        goals.class_mask([[i % 6, (i + 2) % 6][: 1 + i % 2] for i in range(8)], 6)
    )
    for loss in ("margin", "dlr"):
        goal = goals.get(kind, loss)
        np.testing.assert_array_equal(
            goal.score(logits, class_mask) > 0, goal.success(logits, class_mask)
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_have_gradients_and_survive_equal_logits(kind: str, loss: str) -> None:
    class_mask = jnp.asarray(goals.class_mask([[0], [1, 2]], 5))
    slope = jax.grad(lambda logits: jnp.sum(goals.get(kind, loss).score(logits, class_mask)))
    assert np.isfinite(slope(jnp.zeros((2, 5)))).all()
    sure = jnp.asarray(
        [[40.0, 1.0, 2.0, 3.0, 4.0], [1.0, 40.0, 2.0, 3.0, 4.0]]
    )  # of the members, or of the fourth
    sure = slope(sure if kind == "untargeted" else jnp.roll(sure, 3, axis=1))
    assert (np.abs(sure).max(axis=1) > 1e-3).all()


def test_cross_entropy_climbs_as_the_usual_one_does() -> None:
    """Of one class, log(1 - p) has the gradient of -log p times p / (1 - p)."""
    logits = jax.random.normal(jax.random.key(0), (1, 5))
    class_mask = jnp.asarray(goals.class_mask([[2]], 5))
    ours = jax.grad(lambda z: goals.UNTARGETED.score(z, class_mask)[0])(logits)
    usual = jax.grad(lambda z: -jax.nn.log_softmax(z)[0, 2])(logits)
    np.testing.assert_allclose(
        ours / jnp.linalg.norm(ours), usual / jnp.linalg.norm(usual), rtol=1e-4
    )


def test_who_is_aimed_at() -> None:
    logits = jnp.asarray([[3.0, 1.0, 2.0, 0.0]])
    among = jnp.asarray([[False, True, True, True]])
    order = [int(jnp.argmax(goals.likeliest(logits, among, i))) for i in range(5)]
    assert order == [2, 1, 3, 2, 1]
    assert goals.least_likely(logits).tolist() == [[False, False, False, True]]


def test_goals_refuse() -> None:
    with pytest.raises(ValueError, match="unknown goal 'untargetted'; nearest: 'untargeted'"):
        goals.get("untargetted")
    with pytest.raises(ValueError, match="unknown loss 'drl'; nearest: 'dlr'"):
        goals.get("targeted", "drl")
    with pytest.raises(ValueError, match="wants at least 4 classes; the logits have 3"):
        goals.targeted_dlr(jnp.zeros((1, 3)), jnp.asarray([[True, False, False]]))
