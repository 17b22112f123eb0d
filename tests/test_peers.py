"""Other libraries' attacks on the same network, and how `experiments.benchmarks.peers` counts."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import attack_libraries, peers, sources
from tests import toys
from tl import models, pixels

pytestmark = pytest.mark.parity

SIZE, COUNT, CLASSES = 6, 8, 10
BUDGET = attack_libraries.Budget(steps=5, apgd_steps=5, queries=20)


def noise(size: int, count: int = COUNT) -> np.ndarray:
    return pixels.to_images01(
        np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    )


class Dense(NamedTuple):
    """The part of a classifier that `peers` uses."""

    logits: Any = toys.mlp
    classes: tuple[int, ...] = tuple(range(CLASSES))


@functools.cache
def net() -> attack_libraries.Twin:
    """`toys.mlp` in both libraries."""
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
def images() -> peers.Images:
    return peers.Images(
        noise(SIZE), attack_libraries.tl_logits(net(), noise(SIZE)).argmax(axis=1), 0.0
    )


def test_foolbox_accepts_a_classifier() -> None:
    """Three attacks find adversarial examples on a JAXModel of `apply`, and tl confirms them."""
    clf, variables = models.load("squeezenet1_1", weights="random")
    images01 = noise(32, 2)
    logits = jax.jit(lambda variables, x: clf.apply(variables, x).logits)
    label = np.asarray(logits(variables, images01)).argmax(axis=1)
    with sources.imported("foolbox") as foolbox:
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
            _, examples, success = attack(
                model, jnp.asarray(images01), jnp.asarray(label), epsilons=eps
            )
            examples = np.asarray(examples)
            assert np.asarray(success).all(), attack
            assert (np.asarray(logits(variables, examples)).argmax(axis=1) != label).all(), attack
            assert (peers.distances(norm, examples, images01) <= eps * (1 + peers.INSIDE)).all(), (
                attack
            )
            assert examples.min() >= 0 and examples.max() <= 1


def test_a_twin_with_different_weights_is_an_error() -> None:
    both = attack_libraries.twin("squeezenet1_1", weights="random", size=32)
    assert attack_libraries.disagreement(both, noise(32, 2)) < attack_libraries.AGREE
    next(p for p in reversed(list(both.module.parameters()))).add_(1.0)
    with pytest.raises(ValueError, match="logits of torch and tl differ: got"):
        attack_libraries.disagreement(both, noise(32, 2))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_succeeds_only_within_the_claimed_radius(norm: str) -> None:
    """Every attack of every library succeeds at a radius, and never at a claimed radius of 0."""
    if not sources.installed("torchattacks", attack_libraries.LIBRARIES):
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
            run = attack_libraries.tl_attack(name, net(), norm, BUDGET)(eps)
        else:
            run = attack_libraries.peer_attack(library, name, net(), norm, eps, BUDGET)
        assert run is not None
        attempt = functools.partial(run, *images()[:2])
        ours = library in ("tl", "foolbox on JAX")
        evaluate = functools.partial(peers.robust, net(), attempt, images(), norm, ours=ours)
        assert evaluate(eps).right.sum() <= 2, (library, name)
        assert evaluate(0.0).right.all(), (library, name)


def test_an_unknown_attack_is_none_and_an_unknown_library_an_error() -> None:
    assert attack_libraries.peer_attack("foolbox", "apgd_t", net(), "linf", 0.1, BUDGET) is None
    with pytest.raises(ValueError, match="expected some of foolbox, torchattacks"):
        sources.installed("foolbax", attack_libraries.LIBRARIES)


def test_medians_count_failures_as_infinite() -> None:
    assert peers.median(np.array([3.0, np.inf, 1.0, np.inf])) == 3.0
    assert peers.median(np.array([3.0, np.inf, np.inf])) == np.inf
    assert peers.percent(np.array([True, False])) == 50.0
    assert peers.interval(np.zeros(0, bool)) == [0.0, 100.0]
