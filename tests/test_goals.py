"""Goals: losses of single classes and of groups, success, and target classes, on small numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.attacks import goals

KINDS, LOSSES = sorted(goals.SUCCESSES), sorted(goals.LOSSES)


def mask(*groups: list[int], k: int) -> jax.Array:
    return jnp.asarray(goals.class_mask(groups, k))


def groups_of_one_and_two() -> jax.Array:
    """Eight rows of six classes."""
    return mask(*([i % 6, (i + 2) % 6][: 1 + i % 2] for i in range(8)), k=6)


# ---- scores and success ----


def test_scores_are_log_probabilities_of_the_group_and_of_the_rest() -> None:
    logits = jnp.log(jnp.asarray([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]))
    class_mask = mask([0, 1], [0], k=3)
    targeted = goals.TARGETED.score(logits, class_mask)
    untargeted = goals.UNTARGETED.score(logits, class_mask)
    np.testing.assert_allclose(targeted, np.log([0.3, 0.5]), rtol=1e-5)
    np.testing.assert_allclose(untargeted, np.log([0.7, 0.5]), rtol=1e-5)


def test_success_is_decided_by_the_top_class() -> None:
    logits = jnp.asarray([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    class_mask = mask([0, 1], [0], k=3)
    assert goals.TARGETED.success(logits, class_mask).tolist() == [False, True]
    assert goals.UNTARGETED.success(logits, class_mask).tolist() == [True, False]
    np.testing.assert_array_equal(goals.success_mask(goals.TARGETED, class_mask), class_mask)
    np.testing.assert_array_equal(goals.success_mask(goals.UNTARGETED, class_mask), ~class_mask)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_with_nan_are_not_a_success(kind: str) -> None:
    """`argmax` treats NaN as the largest value, so a broken network would count as fooled."""
    logits = jnp.asarray([[0.0, jnp.nan, 1.0], [jnp.nan] * 3, [0.0, -jnp.inf, 1.0]])
    first = [1] if kind == "targeted" else [0]
    success = goals.get(kind).success(logits, mask(first, first, [2], k=3))
    assert success.tolist() == [False, False, kind == "targeted"]


# ---- losses ----

LOGITS = jnp.asarray([[6.0, 5.0, 4.0, 1.0, 0.0]])


def losses(group: list[int]) -> dict[str, tuple]:
    """loss -> (targeted, untargeted) for a group of `LOGITS`."""
    class_mask = mask(group, k=5)
    return {
        name: tuple(float(score(LOGITS, class_mask)[0]) for score in row)
        for name, row in goals.LOSSES.items()
    }


def test_losses_of_the_top_class_equal_the_formulas() -> None:
    """The margin is 1 and the first minus the third logit is 2. Equation 6: -(6 - 5) / (6 - 4)."""
    values = losses([0])
    assert values["margin"] == (1.0, -1.0)
    assert values["dlr"][1] == pytest.approx(-0.5)


def test_losses_of_another_class_equal_the_formulas() -> None:
    """Equation 7 for target 2: -(6 - 4) / (6 - (4 + 1) / 2)."""
    values = losses([2])
    assert values["margin"] == (-2.0, 2.0)
    assert values["dlr"] == (pytest.approx(-2 / 3.5), pytest.approx(2 / 2))


def test_losses_count_a_group_once() -> None:
    values = losses([0, 1])  # the top logits are 6, 4, 1, 0, without the 5
    assert values["margin"] == (2.0, -2.0)
    assert values["dlr"][1] == pytest.approx(-(6 - 4) / (6 - 1))
    values = losses([2, 3])  # the top logits are 6, 5, 4, 0
    assert values["dlr"][0] == pytest.approx(-(6 - 4) / (6 - (4 + 0) / 2))
    # The top logits are 6, 5, 0, and 0 for the missing fourth.
    two_groups = goals.targeted_dlr(LOGITS, mask([1, 2], k=5), mask([0, 3], k=5))
    assert float(two_groups[0]) == pytest.approx(-(6 - 5) / (6 - 0.0))


@pytest.mark.parametrize("kind", KINDS)
@given(shift=st.floats(-5, 5), scale=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_dlr_does_not_depend_on_scale_and_shift(
    kind: str, shift: float, scale: float, seed: int
) -> None:
    logits, class_mask = jax.random.normal(jax.random.key(seed), (8, 6)), groups_of_one_and_two()
    goal = goals.get(kind, "dlr")
    scaled, plain = (goal.score(z, class_mask) for z in (scale * logits + shift, logits))
    np.testing.assert_allclose(scaled, plain, rtol=1e-3, atol=1e-3)
    correct = ~goals.UNTARGETED.success(logits, class_mask)
    untargeted = goals.dlr(logits, class_mask)
    assert (untargeted[correct] >= -1).all() and (untargeted[correct] <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 99))
def test_margin_and_dlr_are_positive_exactly_where_the_goal_is_met(kind: str, seed: int) -> None:
    logits, class_mask = jax.random.normal(jax.random.key(seed), (8, 6)), groups_of_one_and_two()
    for loss in ("margin", "dlr"):
        goal = goals.get(kind, loss)
        success = goal.success(logits, class_mask)
        np.testing.assert_array_equal(goal.score(logits, class_mask) > 0, success)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_finite_at_equal_logits_and_large_at_confident_ones(
    kind: str, loss: str
) -> None:
    class_mask = mask([0], [1, 2], k=5)
    score = goals.get(kind, loss).score
    gradient = jax.jit(jax.grad(lambda logits: jnp.sum(score(logits, class_mask))))
    assert np.isfinite(gradient(jnp.zeros((2, 5)))).all()
    # Confident in the group, or in the class three places after it.
    confident = jnp.asarray([[40.0, 1.0, 2.0, 3.0, 4.0], [1.0, 40.0, 2.0, 3.0, 4.0]])
    confident = confident if kind == "untargeted" else jnp.roll(confident, 3, axis=1)
    assert (np.abs(gradient(confident)).max(axis=1) > 1e-3).all()


def test_cross_entropy_has_the_direction_of_the_usual_one() -> None:
    """For one class, log(1 - p) has the gradient of -log p times p / (1 - p)."""
    logits = jax.random.normal(jax.random.key(0), (1, 5))
    class_mask = mask([2], k=5)
    ours = jax.grad(lambda z: goals.UNTARGETED.score(z, class_mask)[0])(logits)
    usual = jax.grad(lambda z: -jax.nn.log_softmax(z)[0, 2])(logits)
    unit = lambda x: x / jnp.linalg.norm(x)
    np.testing.assert_allclose(unit(ours), unit(usual), rtol=1e-4)


# ---- target classes ----


def test_likeliest_ranks_classes_and_starts_again_after_the_last() -> None:
    logits = jnp.asarray([[3.0, 1.0, 2.0, 0.0]])
    among = jnp.asarray([[False, True, True, True]])
    order = [int(jnp.argmax(goals.likeliest(logits, among, i))) for i in range(5)]
    assert order == [2, 1, 3, 2, 1]


def test_least_likely_is_the_smallest_logit() -> None:
    logits = jnp.asarray([[3.0, 1.0, 2.0, 0.0]])
    assert goals.least_likely(logits).tolist() == [[False, False, False, True]]


# ---- errors ----


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown goal 'untargetted'; nearest: 'untargeted'"):
        goals.get("untargetted")
    with pytest.raises(ValueError, match="unknown loss 'drl'; nearest: 'dlr'"):
        goals.get("targeted", "drl")


def test_dlr_refuses_too_few_classes() -> None:
    with pytest.raises(ValueError, match="needs at least 4 classes: got logits of 3"):
        goals.targeted_dlr(jnp.zeros((1, 3)), jnp.asarray([[True, False, False]]))
