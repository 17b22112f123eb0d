"""Padded slots of a batch have no effect, also where BatchNorm uses the statistics of the batch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import toys
from tl import backbones, data, devices, models, paths
from tl.backbones.layers import ConvNorm, Norm
from tl.backbones.run import run
from tl.training import adversarial, fit, inputs, phase, program, rate_finder, rules, step
from tl.training.adversarial import Adversary
from tl.training.recipe import Recipe
from tl.training.step import Examples
from tl.types import Mode

SIZE, B = 16, 8
pytestmark = pytest.mark.usefixtures("shared_cache")

EXACT = 1e-6
NUMBERS = np.random.default_rng(0)
FILLS: dict[str, Callable[[tuple], np.ndarray]] = {
    "black": np.zeros,
    "white": np.ones,
    "noise": lambda shape: np.random.default_rng(9).random(shape),
}


def difference(actual: Any, expected: Any) -> float:
    """The largest difference of two trees, relative to the largest entry.

    Some gradients before a BatchNorm are zero up to rounding.
    """
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    return float(np.abs(flat(actual) - flat(expected)).max() / np.abs(flat(expected)).max())


def padded_with(fill: str, inputs: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The inputs, with padding where they are not valid."""
    keep = valid.reshape(-1, *[1] * (inputs.ndim - 1))
    return np.where(keep, inputs, FILLS[fill](inputs.shape)).astype(np.float32)


# ---- layers and networks -------------------------------------------------------------------------

LAYERS = {
    "ConvNorm": ConvNorm(3, 3, bias=True, activation=jax.nn.relu),
    "Norm": Norm(4),
}


def stage_of(name: str) -> Any:
    """The first stages of a network of the zoo."""
    module: Any = backbones.get(name).module
    if hasattr(module, "depths"):
        return module.clone(depths=(1,))
    return module.clone(stages=module.stages[:2], top=16)


@pytest.mark.parametrize(
    "name",
    [
        *LAYERS,
        *(
            pytest.param(name, marks=pytest.mark.full)
            for name in ("resnet18", "resnetv2_50_keras", "mobilenetv2_035", "efficientnet_lite0")
        ),
    ],
)
def test_outputs_gradients_and_statistics_are_those_of_the_valid_images_alone(name: str) -> None:
    side = 8 if name in LAYERS else 32
    x = NUMBERS.normal(1.0, 1.0, (6, side, side, 4 if name in LAYERS else 3)).astype(np.float32)
    valid = np.array([True, False, True, True, False, True])
    module = LAYERS[name] if name in LAYERS else stage_of(name)
    variables = jax.jit(lambda x: module.init(jax.random.key(0), x, Mode.EVAL))(x[:1])

    @jax.jit
    def gradients(variables: Any, x: jax.Array, valid: jax.Array) -> Any:
        def loss(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            changed = {**variables, "params": params}
            if name in LAYERS:
                y, new = module.apply(changed, x, Mode.TRAIN, valid=valid, mutable=["batch_stats"])
                y, stats = jnp.mean(y, (1, 2)), new["batch_stats"]
            else:
                y, _, stats = run(module, changed, x, Mode.TRAIN, valid=valid)
            weights = valid.astype(jnp.float32)[:, None] / jnp.sum(valid.astype(jnp.float32))
            return jnp.sum(weights * jnp.sin(y)), (y, stats)

        (value, (y, stats)), slopes = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            variables["params"], x
        )
        return value, y, stats, slopes

    alone = gradients(variables, x[valid], np.ones(4, bool))
    results = [gradients(variables, padded_with(fill, x, valid), valid) for fill in FILLS]
    for value, y, stats, (slopes, slopes_x) in results:
        actual = value, y[valid], stats, slopes, slopes_x[valid]
        for part, reference in zip(actual, (*alone[:3], *alone[3]), strict=True):
            # Programs for 6 and for 4 images round differently, layer after layer.
            assert difference(part, reference) <= (EXACT if name in LAYERS else 10 * EXACT)
        assert not slopes_x[~valid].any() and np.isfinite(y).all()
    digests = {paths.digest({"stats": r[2], "grad": r[3][0]}) for r in results}
    assert len(digests) == 1

    _, y, stats, slopes = gradients(variables, 1e6 * x, np.zeros(6, bool))
    assert paths.digest(stats) == paths.digest(variables["batch_stats"])
    assert np.isfinite(y).all() and all((leaf == 0).all() for leaf in jax.tree.leaves(slopes))


# ---- the train step ------------------------------------------------------------------------------


def network(name: str = "toy_vgg_bn") -> tuple[models.Classifier, Any]:
    return toys.classifier(name, ("red", "blue"), size=SIZE, resize="squash")


def examples(fill: str, valid: np.ndarray, *, rows: Any = slice(None)) -> Examples:
    rng = np.random.default_rng(3)
    inputs = rng.random((len(valid), SIZE, SIZE, 3)).astype(np.float32)
    labels = rng.integers(0, 2, len(valid)).astype(np.int32)
    return Examples(padded_with(fill, inputs, valid)[rows], labels[rows], valid[rows])


def one_step(batch: Examples, make: step.Step, optimizer: Any, name: str) -> Any:
    _, variables = network(name)
    partition = paths.partition(variables["params"], ((".*", paths.TRAINABLE),))
    stats = variables["batch_stats"]
    state = step.init(variables["params"], partition, optimizer, stats=stats)
    state, metrics = make(state, batch)
    return {"params": state.params, "stats": state.stats}, metrics


@pytest.mark.parametrize(
    ("name", "method", "microbatches"),
    [
        ("toy_vgg_bn", "pgd", 2),  # a padded part, and a part of padding alone
        pytest.param("toy_vgg_bn", "none", 2, marks=pytest.mark.full),
        pytest.param("toy_vgg_bn", "pgd", 1, marks=pytest.mark.full),
        pytest.param("toy_vgg_bn", "none", 1, marks=pytest.mark.full),
        pytest.param("toy_mobilenet", "none", 1, marks=pytest.mark.full),
        pytest.param("toy_vgg_bn", "trades", 1, marks=pytest.mark.full),
        pytest.param("toy_vgg_bn", "free", 2, marks=pytest.mark.full),
        pytest.param("toy_mobilenet", "pgd", 2, marks=pytest.mark.full),
    ],
)
def test_a_train_step_depends_on_the_valid_images_alone(
    name: str, method: str, microbatches: int
) -> None:
    clf, variables = network(name)
    norms = rules.norm_layers(variables["batch_stats"])
    forward = program.make_forward(clf, "", Mode.TRAIN, norms)
    hooks = adversarial.Hooks()
    if method != "none":
        hooks = adversarial.hooks(Adversary(method, 1 / 255, steps=2, replays=2), forward)
    sgd = optax.sgd(0.1)
    make = functools.partial(
        step.make_train_step, forward, sgd, loss=hooks.loss, replay=hooks.replay
    )
    valid = np.arange(B) < (3 if microbatches > 1 else 5)
    padded = make(microbatches=microbatches)
    results = [one_step(examples(fill, valid), padded, sgd, name) for fill in FILLS]
    assert len({paths.digest(variables) for variables, _ in results}) == 1
    assert len({tuple(float(value) for value in row.values()) for _, row in results}) == 1
    alone, metrics = one_step(examples("black", valid, rows=valid), make(), sgd, name)
    for part in ("params", "stats"):
        assert difference(results[0][0][part], alone[part]) <= EXACT, part
    for key in ("loss", "grad_norm"):
        assert float(results[0][1][key]) == pytest.approx(float(metrics[key]), rel=EXACT), key


# ---- training ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> data.DataSpec:
    """Twelve images of two colors, of which one cannot be read."""
    folder = tmp_path_factory.mktemp("colors") / "set"
    spec = toys.color_folder(folder, n=6, side=24)
    Path(str(spec.examples[3].path)).write_bytes(b"not an image")
    return spec


UPDATE = Recipe(tune="all", bn="update", epochs=1, batch_size=8, workers=0)


def train(spec: data.DataSpec, recipe: Recipe) -> Any:
    result = fit.fit(*network(), spec, None, recipe, seed=0)
    return paths.digest(result.variables), result.history


def find_rate(spec: data.DataSpec, recipe: Recipe) -> Any:
    return rate_finder.find_rate(*network(), spec, recipe, seed=0, steps=2)


def test_the_rate_finder_takes_no_step_on_padding_alone(
    colors: data.DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step receives the padded slots of all other batches as such."""
    masks, received = np.array([[True, True], [False, False], [True, False]]), []
    batches = [(Examples(np.ones((2, 1)), np.zeros(2, int), mask), None) for mask in masks]

    def take_step(state: None, batch: Examples) -> tuple[None, dict[str, float]]:
        received.append(np.array(batch.valid))
        return state, {"loss": 1.0}

    source = SimpleNamespace(training=lambda *_: contextlib.nullcontext(batches))
    prepared = SimpleNamespace(
        step=take_step, state=None, plan=None, key=None, schedule=float, train_inputs=source
    )
    monkeypatch.setattr(rate_finder, "prepare", lambda *_, **__: prepared)
    curve = find_rate(colors, UPDATE).curve
    np.testing.assert_array_equal(received, masks[[0, 2]])
    np.testing.assert_allclose(curve, [(0, 1), (1, 1)], rtol=1e-12)


@pytest.mark.full
@pytest.mark.parametrize(
    ("function", "batch_size"),
    [
        (find_rate, 8),  # the last batch of the epoch is padded
        (train, 8),
        (train, 4),  # the only padding is the slot of the image that cannot be read
    ],
)
def test_what_fills_a_slot_does_not_matter_in_training(
    colors: data.DataSpec,
    monkeypatch: pytest.MonkeyPatch,
    function: Callable[..., Any],
    batch_size: int,
) -> None:
    shard, filled = devices.shard, []

    def fill(value: int) -> Callable[..., Any]:
        def replacement(batch: Any, mesh: Any) -> Any:
            if isinstance(batch, Examples):
                inputs = np.array(batch.inputs)
                inputs[~batch.valid] = value
                # The program is compiled for a batch of padding alone, which does not count.
                filled.append(0 < batch.valid.sum() < len(batch.valid))
                batch = batch._replace(inputs=inputs)
            return shard(batch, mesh)

        return replacement

    recipe = dataclasses.replace(UPDATE, batch_size=batch_size)
    results = []
    for value in (0, 255):
        monkeypatch.setattr(devices, "shard", fill(value))
        results.append(function(colors, recipe))
    assert results[0] == results[1] and any(filled)


def test_only_batches_with_padding_use_the_program_with_masks(colors: data.DataSpec) -> None:
    """Three full batches per epoch: the other program is compiled when an image is missing."""
    clf, variables = network()
    recipe = dataclasses.replace(UPDATE, batch_size=4)
    context = program.FitContext(clf, colors, colors, recipe, 0, None, print, print)
    (only,) = recipe.phases(clf.spec.endpoints)
    partition = paths.partition(variables["params"], only.rules)
    made = phase.prepare(context, 0, only, partition, variables["params"], variables["batch_stats"])

    def step_on(fill: str, valid: list[bool]) -> str:
        batch = examples(fill, np.array(valid))
        batch = batch._replace(inputs=(255 * batch.inputs).astype(np.uint8))
        state, metrics = made.step(jax.tree.map(jnp.array, made.state), batch)
        return paths.digest({"params": state.params, "stats": state.stats, "metrics": metrics})

    masked: Any = made.step.padded_program
    step_on("black", [True] * 4)
    assert masked.cache_info().currsize == 0
    assert len({step_on(fill, [True, False, True, True]) for fill in FILLS}) == 1
    assert masked.cache_info().currsize == 1


def test_reestimated_statistics_are_those_of_all_readable_images(colors: data.DataSpec) -> None:
    """Eleven readable images in batches of 8: no batch is full, and none is left out."""
    clf, variables = network()
    before = variables["batch_stats"]
    recipe = dataclasses.replace(UPDATE, bn="reestimate")
    context = program.FitContext(clf, colors, colors, recipe, 0, None, print, print)
    new = fit.reestimate(context, variables["params"], before, rules.norm_layers(before))
    zero = {**variables, "batch_stats": jax.tree.map(np.zeros_like, before)}
    order = np.random.default_rng(0).permutation(len(colors.examples))
    shuffled = dataclasses.replace(colors, examples=tuple(colors.examples[i] for i in order))
    sums = []
    for batch, _ in inputs.ImageInputs(clf, shuffled, context.augment).evaluation(8):
        images01 = np.asarray(batch.inputs)[batch.valid] / np.float32(255)
        stats = jax.jit(clf.apply, static_argnums=2)(zero, images01, Mode.TRAIN).stats
        share = batch.valid.sum() / 11
        sums.append(jax.tree.map(lambda leaf, share=share: share * np.asarray(leaf), stats))
    momentum = 0.1
    expected = jax.tree.map(lambda *leaves: sum(leaves) / momentum, *sums)
    assert difference(new, expected) <= EXACT


def test_reestimated_statistics_are_not_those_of_batches_of_one_class(
    colors: data.DataSpec,
) -> None:
    """A folder is sorted by class, and the variance in a batch of one class is too small."""
    clf, variables = network()
    before = variables["batch_stats"]

    def variance_in_first_layer(batch_size: int) -> np.ndarray:
        recipe = dataclasses.replace(UPDATE, bn="reestimate", batch_size=batch_size)
        context = program.FitContext(clf, colors, colors, recipe, 0, None, print, print)
        new = fit.reestimate(context, variables["params"], before, rules.norm_layers(before))
        return new["backbone"]["stage1"]["conv0"]["norm"]["var"]

    of_all, of_halves = variance_in_first_layer(12), variance_in_first_layer(6)
    np.testing.assert_allclose(of_halves, of_all, rtol=0.25)
