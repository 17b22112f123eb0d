"""Beside other people's attacks: foolbox takes our networks as they are, and `experiments.benchmarks.peers` counts fairly."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import attack_libraries, peers
from tl import models, pixels

pytestmark = pytest.mark.parity

SIZE, COUNT, CLASSES = 6, 8, 10
BUDGET = attack_libraries.Budget(steps=5, apgd_steps=5, queries=20)


def noise(size: int, count: int = COUNT) -> np.ndarray:
    return pixels.to_images01(
        np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    )


def dense(variables: Any, images01: jax.Array) -> jax.Array:
    x = images01.reshape(images01.shape[0], -1) - 0.5
    return jnp.tanh(x @ variables["in"]) @ variables["out"]


class Dense(NamedTuple):
    """As much of a classifier as `peers` looks at."""

    logits: Any = dense
    classes: tuple[int, ...] = tuple(range(CLASSES))


@functools.cache
def net() -> attack_libraries.Twin:
    """Two dense layers, in both libraries."""
    import torch

    rng = np.random.default_rng(1)
    shapes = {"in": (3 * SIZE * SIZE, 16), "out": (16, CLASSES)}
    variables = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in variables.items():
                self.register_parameter(
                    name, torch.nn.Parameter(torch.tensor(value), requires_grad=False)
                )

        def forward(self, x: Any) -> Any:
            x = attack_libraries.contiguous_gradient(x).permute(0, 2, 3, 1).flatten(1) - 0.5
            return torch.tanh(x @ self.get_parameter("in")) @ self.get_parameter("out")

    clf: Any = Dense()
    return attack_libraries.Twin(clf, variables, Module().eval(), "random")


@functools.cache
def pictures() -> peers.Pictures:
    return peers.Pictures(
        noise(SIZE), attack_libraries.our_logits(net(), noise(SIZE)).argmax(axis=1), 0.0
    )


def test_foolbox_takes_a_classifier_as_it_is() -> None:
    """LinfPGD, DeepFool and Carlini-Wagner find pictures on a JAXModel around `apply`, and tl confirms them."""
    clf, variables = models.load("squeezenet1_1", weights="random")
    images01 = noise(32, 2)
    logits = jax.jit(lambda variables, x: clf.apply(variables, x).logits)
    label = np.asarray(logits(variables, images01)).argmax(axis=1)
    with attack_libraries.imported("foolbox") as foolbox:
        model = foolbox.JAXModel(lambda x: logits(variables, x), bounds=(0, 1))
        for attack, eps, norm in (
            (foolbox.attacks.LinfPGD(rel_stepsize=0.2, steps=5), 8 / 255, "linf"),
            (foolbox.attacks.L2DeepFoolAttack(steps=5, candidates=3), 1.0, "l2"),
            (
                foolbox.attacks.L2CarliniWagnerAttack(2, steps=5, stepsize=0.1, initial_const=10.0),
                4.0,
                "l2",
            ),
        ):
            _, found, success = attack(
                model, jnp.asarray(images01), jnp.asarray(label), epsilons=eps
            )
            found = np.asarray(found)
            assert np.asarray(success).all(), attack
            assert (np.asarray(logits(variables, found)).argmax(axis=1) != label).all(), attack
            assert (peers.distances(norm, found, images01) <= eps * (1 + peers.INSIDE)).all(), (
                attack
            )
            assert found.min() >= 0 and found.max() <= 1


def test_a_twin_is_one_network_in_two_libraries_or_refused() -> None:
    both = attack_libraries.twin("squeezenet1_1", weights="random", size=32)
    assert attack_libraries.disagreement(both, noise(32, 2)) < attack_libraries.AGREE
    next(p for p in reversed(list(both.module.parameters()))).add_(1.0)
    with pytest.raises(ValueError, match="logits of torch and tl differ by"):
        attack_libraries.disagreement(both, noise(32, 2))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_attack_is_judged_by_its_own_network_in_the_ball(norm: str) -> None:
    """Within a radius all are fooled, by each attack of each library; outside of the one that is claimed, nobody."""
    if not attack_libraries.installed("torchattacks"):
        pytest.skip("torchattacks is not installed")
    cases = [
        ("tl", "pgd"),
        ("foolbox", "pgd"),
        *([("foolbox on JAX", "pgd")] if norm == "linf" else []),
    ]
    cases += [
        ("torchattacks", name)
        for name in ("pgd", "apgd_ce", "apgd_dlr", "apgd_t", "fab", "square", "autoattack")
    ]
    eps = {"linf": 0.2, "l2": 2.0}[norm]
    for library, name in cases:
        if library == "tl":
            run = attack_libraries.ours(name, net(), norm, BUDGET)(eps)
        else:
            run = attack_libraries.theirs(library, name, net(), norm, eps, BUDGET)
        assert run is not None
        attempt = functools.partial(run, *pictures()[:2])
        own = library in ("tl", "foolbox on JAX")
        judged = functools.partial(peers.robust, net(), attempt, pictures(), norm, ours=own)
        assert judged(eps).right.sum() <= 2, (library, name)
        assert judged(0.0).right.all(), (library, name)


def test_an_attack_or_library_that_is_not_there() -> None:
    assert attack_libraries.theirs("foolbox", "apgd_t", net(), "linf", 0.1, BUDGET) is None
    with pytest.raises(ValueError, match="wanted some of foolbox, torchattacks"):
        attack_libraries.installed("foolbax")


def test_medians_and_intervals_count_failures() -> None:
    assert peers.median(np.array([3.0, np.inf, 1.0, np.inf])) == 3.0
    assert peers.median(np.array([3.0, np.inf, np.inf])) == np.inf
    assert peers.percent(np.array([True, False])) == 50.0
    assert peers.interval(np.zeros(0, bool)) == [0.0, 100.0]
