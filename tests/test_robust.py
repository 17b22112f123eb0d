"""Adversarial training on toys: perturbations, equal steps, robustness, validation, errors."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import toys
from tests.toys import toy_zoo  # noqa: F401 (a fixture)
from tl import data, losses, models, reporting
from tl.attacks import norms
from tl.evaluation.transfer import TransferSettings, transfer
from tl.pages import training as page
from tl.paths import TRAINABLE, digest, partition
from tl.training import adversarial, fit, loop, step
from tl.training.adversarial import Adversary
from tl.training.recipe import Recipe
from tl.training.step import Examples, Step, TrainState

SIDE, B = 4, 32
N = SIDE * SIDE * 3
EPS = 0.05
SGD = optax.sgd(0.5)


def forward(
    params: Any, stats: Any, images01: jax.Array, valid: jax.Array | None = None
) -> tuple[jax.Array, Any]:
    """Two layers, with statistics that count images."""
    del valid
    x = jnp.tanh((images01.reshape(len(images01), N) - 0.5) @ params["body"])
    return x @ params["head"], {"seen": stats["seen"] + len(images01)}


def begin(optimizer: Any = SGD) -> step.TrainState:
    rng = np.random.default_rng(0)
    params = {
        "body": jnp.asarray(rng.normal(size=(N, 8)) / 4, jnp.float32),
        "head": jnp.asarray(rng.normal(size=(8, 2)) / 4, jnp.float32),
    }
    return step.init(
        params,
        partition(params, ((".*", TRAINABLE),)),
        optimizer,
        stats={"seen": jnp.zeros(())},
        key=jax.random.key(5),
    )


def batch(seed: int, n: int = B, valid: int | None = None) -> step.Examples:
    """The first value predicts the class of 90 % of the images, with a wide margin.

    The other values predict the class of all images, with a narrow margin.

    Reference: Tsipras et al. 2019, arXiv:1805.12152, section 2.1.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    sign = (2.0 * labels - 1.0)[:, None]
    x = 0.5 + 0.02 * sign + 0.02 * rng.normal(size=(n, N))
    x[:, :1] = 0.5 + 0.4 * sign * np.where(rng.random((n, 1)) < 0.9, 1.0, -1.0)
    images01 = np.clip(x, 0, 1).astype(np.float32).reshape(n, SIDE, SIDE, 3)
    is_valid = np.arange(n) < (n if valid is None else valid)
    return step.Examples(images01, labels.astype(np.int32), is_valid)


@functools.cache
def make_step(method: str = "none", microbatches: int = 1, **options: Any) -> step.Step:
    hooks = (
        adversarial.Hooks()
        if method == "none"
        else adversarial.hooks(Adversary(method, **options), forward)
    )
    return step.make_train_step(
        forward, SGD, loss=hooks.loss, replay=hooks.replay, microbatches=microbatches
    )


def trained(step: Step, examples: Examples, steps: int = 3) -> tuple[TrainState, dict[str, Any]]:
    state, metrics = begin(), {}
    for _ in range(steps):
        state, metrics = step(state, examples)
    return state, metrics


# ---- perturbations -------------------------------------------------------------------------------


def test_perturbed_images_stay_in_the_ball_and_in_range_and_have_a_larger_loss() -> None:
    state, examples = begin(), batch(0)
    images01 = jnp.asarray(examples.inputs).at[:, 0].set(0.01).at[:, 1].set(0.99)  # near 0 and 1
    targets, keys = (
        losses.smooth_labels(jnp.asarray(examples.labels), 2),
        norms.per_image_keys(jax.random.key(1), B),
    )
    for steps, reach in ((4, 2.5), (1, 1.25)):
        perturb = jax.jit(adversarial.make_perturb(forward, steps=steps, reach=reach))
        perturbed = perturb(state.params, state.stats, keys, images01, targets, jnp.float32(EPS))
        distance = np.abs(perturbed - images01).max(axis=(1, 2, 3))
        assert distance.max() <= EPS + 1e-6 and distance.min() > 0.9 * EPS
        assert perturbed.min() >= 0 and perturbed.max() <= 1
        loss = lambda x: losses.soft_cross_entropy(
            forward(state.params, state.stats, x)[0], targets
        )
        assert (loss(perturbed) > loss(images01)).mean() > 0.95
        alone = perturb(
            state.params, state.stats, keys[3:4], images01[3:4], targets[3:4], jnp.float32(EPS)
        )
        np.testing.assert_allclose(alone[0], perturbed[3], atol=1e-6)


def test_a_replay_moves_along_the_gradient_within_the_ball() -> None:
    replay = adversarial.hooks(Adversary("free", EPS), forward).replay
    assert replay is not None and replay.times == 4
    center, step = jnp.asarray(batch(0).inputs), jnp.int32(0)
    x = replay.start(norms.per_image_keys(jax.random.key(0), B), step, center)
    assert 0 < jnp.abs(x - center).max() <= EPS + 1e-6
    gradient = jax.random.normal(jax.random.key(1), x.shape)
    after = replay.move(gradient, step, x, center)
    assert jnp.abs(after - center).max() <= EPS + 1e-6 and after.min() >= 0 and after.max() <= 1
    assert ((after - x) * gradient >= 0).all() and (after != x).mean() > 0.9


def test_the_radius_grows_during_the_warmup() -> None:
    warm = Adversary("pgd", 0.1, warmup=4)
    np.testing.assert_allclose(
        [warm.radius(jnp.int32(i)) for i in (0, 1, 3, 9)], [0.025, 0.05, 0.1, 0.1], rtol=1e-6
    )
    assert Adversary("pgd", 0.1).radius(jnp.int32(0)) == jnp.float32(0.1)


# ---- equal steps ---------------------------------------------------------------------------------


def test_at_radius_zero_every_method_takes_plain_steps() -> None:
    plain, plain_metrics = trained(make_step(), batch(0))
    for adversarial_step in (
        make_step("pgd", eps=0.0),
        make_step("fast", eps=0.0),
        make_step("free", eps=0.0, replays=1),
    ):
        state, metrics = trained(adversarial_step, batch(0))
        assert digest(state.params) == digest(plain.params) and digest(state.stats) == digest(
            plain.stats
        )
        assert all(metrics[name] == plain_metrics[name] for name in plain_metrics)
    # TRADES too at beta = 0, where only the accuracy is that of adversarial examples.
    state, metrics = trained(make_step("trades", eps=EPS, beta=0.0), batch(0))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        state.params,
        plain.params,
    )
    np.testing.assert_allclose(metrics["loss"], plain_metrics["loss"], rtol=1e-6)
    state, metrics = trained(make_step("pgd", eps=EPS), batch(0))
    assert digest(state.params) != digest(plain.params) and metrics["loss"] > plain_metrics["loss"]


def test_each_replay_is_an_optimizer_step() -> None:
    thrice, _ = trained(make_step("free", eps=0.0, replays=3), batch(0), steps=1)
    plain, _ = trained(make_step(), batch(0), steps=3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        thrice.params,
        plain.params,
    )
    assert thrice.step == 1 and plain.step == 3


@pytest.mark.parametrize("method", ["pgd", "free"])
def test_microbatches_and_padding_have_no_effect(method: str) -> None:
    whole, plain_metrics = trained(make_step(method, eps=EPS), batch(0, valid=24))
    nonsense = batch(0, valid=24)
    nonsense.inputs[24:], nonsense.labels[24:] = 0.7, -1
    for adversarial_step, examples in (
        (make_step(method, eps=EPS, microbatches=4), batch(0, valid=24)),
        (make_step(method, eps=EPS), nonsense),
    ):
        state, metrics = trained(adversarial_step, examples)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            state.params,
            whole.params,
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), metrics, plain_metrics
        )


def test_the_loss_of_trades_is_its_formula() -> None:
    state, examples = begin(), batch(0)
    hooks = adversarial.hooks(Adversary("trades", 0.0, beta=3.0), forward)
    keys, targets = (
        norms.per_image_keys(jax.random.key(0), B),
        losses.smooth_labels(jnp.asarray(examples.labels), 2),
    )
    assert hooks.loss is not None
    values, logits, _ = hooks.loss(
        state.params, state.stats, keys, jnp.int32(0), examples.inputs, targets, None
    )
    # At eps = 0 the images do not move.
    np.testing.assert_allclose(values, losses.soft_cross_entropy(logits, targets), rtol=1e-5)
    one, other = jnp.float32([[2.0, 0.0], [90.0, -90.0]]), jnp.float32([[0.0, 1.0], [-90.0, 90.0]])
    p, q = jax.nn.softmax(other[:1]), jax.nn.softmax(one[:1])
    np.testing.assert_allclose(
        losses.kl_divergence(one, other)[0], jnp.sum(p * jnp.log(p / q)), rtol=1e-6
    )
    assert (
        losses.kl_divergence(one, other)[1] == 180.0 and (losses.kl_divergence(one, one) == 0).all()
    )
    slopes = jax.grad(lambda a, b: jnp.sum(losses.kl_divergence(a, b)), argnums=(0, 1))(one, other)
    assert all(np.isfinite(slope).all() for slope in slopes)


# ---- robustness ----------------------------------------------------------------------------------


def test_adversarial_training_is_robust_and_plain_training_is_not() -> None:
    """A perturbation of 0.05 can reverse all weakly predictive values, but not the strong one."""
    test = batch(99, n=256)
    perturb = jax.jit(adversarial.make_perturb(forward, steps=10))
    targets, keys = (
        losses.smooth_labels(jnp.asarray(test.labels), 2),
        norms.per_image_keys(jax.random.key(1), 256),
    )
    clean, robust = {}, {}
    for method, steps in {"none": 300, "pgd": 300, "trades": 300, "fast": 300, "free": 75}.items():
        state = begin()
        for i in range(steps):
            state, _ = (make_step() if method == "none" else make_step(method, eps=EPS))(
                state, batch(i % 40)
            )
        perturbed = perturb(state.params, state.stats, keys, test.inputs, targets, jnp.float32(EPS))
        correct = [
            forward(state.params, state.stats, x)[0].argmax(axis=1) == test.labels
            for x in (test.inputs, perturbed)
        ]
        clean[method], robust[method] = (float(values.mean()) for values in correct)
    assert clean["none"] > 0.98 and robust["none"] < 0.1
    assert all(
        robust[method] > 0.75 and clean[method] > 0.85 for method in robust if method != "none"
    ), (clean, robust)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> data.DataSpec:
    return toys.color_folder(tmp_path_factory.mktemp("robust") / "set")


@pytest.fixture()
def network(
    toy_zoo: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> tuple[models.Classifier, Any]:
    """Three convolutions without BatchNorm under a zero head for two classes."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    clf, variables = toys.classifier("toy_vgg", ("red", "blue"), size=16, resize="squash")
    return clf, clf.reset_head(variables, key=jax.random.key(0))


FREE = Recipe(
    tune="lp_ft",
    epochs=2,
    batch_size=8,
    lr=1e-3,
    workers=0,
    adversarial="free",
    adversarial_eps=8 / 255,
    adversarial_replays=2,
)


@pytest.mark.full
def test_transfer_trains_selects_and_tests_under_attack(
    images: data.DataSpec, network: tuple[models.Classifier, Any], tmp_path: Path
) -> None:
    run = reporting.start("transfer", tmp_path / "run", {"seed": 0})
    settings = TransferSettings(FREE, robust_eps=4 / 255)
    result = reporting.jsonable(transfer(run, *network, images, None, settings))
    for row in result["history"]:
        assert row["val_robust_nll"] > row["val_nll"] and row["val_robust_top1"] <= row["val_top1"]
    # The schedule ends with the last replay.
    assert result["history"][-1]["lr"] == pytest.approx(0.0, abs=2e-4)
    best = max(result["history"], key=lambda row: (row["val_robust_top1"], -row["val_robust_nll"]))
    assert result["best_epoch"] == best
    assert set(result["robust"]) == {"before", "after"}
    for row in result["robust"].values():
        low, high = row["top1_ci95"]
        assert row["n"] == result["test"]["n"] == 6
        assert row["eps"] == 4 / 255 and low <= row["top1"] <= high
        assert row["top1"] <= row["clean"] and "PGD-20" in row["attack"]
    assert result["robust"]["after"]["clean"] == pytest.approx(result["test"]["top1"])
    sections = page.sections(result, run.workdir)
    assert any("Accuracy under attack" in str(section) for section in sections)


@pytest.mark.parametrize(
    ("recipe", "rows"),
    [
        (Recipe(tune="probe"), {"now"}),
        # The default `tune=probe` of the command line does not count where there are rules.
        (
            Recipe(tune="probe", rules=(("head/.*", "head"), (".*", "frozen")), epochs=1),
            {"before", "after"},
        ),
    ],
)
def test_a_probe_is_compared_with_no_other_classifier_under_attack(
    images: data.DataSpec,
    network: tuple[models.Classifier, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: Recipe,
    rows: set[str],
) -> None:
    module = importlib.import_module("tl.evaluation.robust")
    monkeypatch.setattr(module, "robust", lambda *args, **options: options)
    run = reporting.start("transfer", tmp_path / "run", {"seed": 0})
    settings = TransferSettings(recipe, robust_eps=4 / 255)
    result = transfer(run, *network, images, None, settings)
    row = {"eps": 4 / 255, "method": "pgd", "seed": 0}
    assert result["robust"] == dict.fromkeys(rows, row)


def test_the_epoch_with_the_smallest_error_under_attack_is_selected() -> None:
    rows = [
        {"val_robust_top1": top1, "val_robust_nll": nll, "val_nll": 0.0}
        for top1, nll in ((0.6, 9), (0.5, 1), (0.6, 8))
    ]
    assert min(rows, key=loop.selection_metric) is rows[2]
    assert loop.selection_metric({"val_nll": 0.3}) == 0.3


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "pdg"}, "unknown `adversarial` method: got 'pdg'; nearest: .*'pgd'"),
        ({"eps": 2.0}, r"`adversarial_eps` must be in \[0, 1\], such as 2/255: got 2"),
        ({"steps": 0}, "`adversarial_steps` and `adversarial_replays` must be at least 1"),
        ({"beta": -1.0}, "`adversarial_beta` and `adversarial_warmup` at least 0"),
    ],
)
def test_an_adversary_out_of_range_is_an_error(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adversary(**wrong)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            Recipe(tune="probe"),
            "`adversarial=pgd` needs gradient steps: got `tune=probe`, which has none",
        ),
        (
            Recipe(tune="head"),
            "changes pixels, but head trains on the output of the frozen features.*`bank_gib=0`",
        ),
        (
            Recipe(tune="last:1"),
            "changes pixels, but last:1 trains on the output of the frozen stage2",
        ),
        (
            Recipe(tune="all", adversarial_warmup=2.0),
            r"`adversarial_warmup` must be a share of the steps in \[0, 1\]: got 2",
        ),
    ],
)
def test_a_recipe_that_cannot_train_against_an_adversary_is_an_error(
    images: data.DataSpec,
    network: tuple[models.Classifier, Any],
    recipe: Recipe,
    message: str,
) -> None:
    recipe = dataclasses.replace(recipe, adversarial="pgd")
    with pytest.raises(ValueError, match=message):
        fit.fit(*network, images, None, recipe)
