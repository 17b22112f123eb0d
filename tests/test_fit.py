"""`fit` on a small network: frozen parameters, cached inputs, resuming, the best epoch, errors."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from tl import data, devices, inference, metrics, models, paths, pixels
from tl.data import augment, plan
from tl.models import heads
from tl.paths import FROZEN, flatten
from tl.training import checkpoints, fit, inputs, loop, probe, rate_finder, rules
from tl.training import recipe as recipe_module
from tl.training.phase import Phase, prepare
from tl.training.program import FitContext, dropout_loss
from tl.training.recipe import Recipe
from tl.types import Output

pytestmark = pytest.mark.usefixtures("shared_cache")

ROOT = Path(__file__).resolve().parents[1]
SIZE = 16
SMALL = Recipe(epochs=1, batch_size=8, workers=0)


@functools.cache
def network(arch: str = "toy_vgg_bn") -> tuple[models.Classifier, Any]:
    """Three stages with BatchNorm under a zero head for two classes."""
    clf, variables = toys.classifier(arch, ("red", "blue"), size=SIZE, resize="squash")
    return clf, clf.reset_head(variables, key=jax.random.key(0))


def run(parts: data.Parts, recipe: Recipe, *, seed: int = 0, **more: Any) -> fit.FitResult:
    return fit.fit(*network(), parts.train, parts.validation, recipe, seed=seed, **more)


def prepared(parts: data.Parts, recipe: Recipe) -> Phase:
    """The first phase of a run, before its first step."""
    clf, variables = network()
    context = FitContext(
        clf, parts.train, parts.validation, recipe, 0, None, lambda row: None, lambda line: None
    )
    phase = recipe.phases(clf.spec.endpoints)[0]
    partition = paths.partition(variables["params"], phase.rules)
    return prepare(context, 0, phase, partition, variables["params"], variables["batch_stats"])


# ---- frozen parameters ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(tune="head"),
        Recipe(tune="last:1", augment="flip"),
        Recipe(tune="last:1", augment="color", bn="update"),
        Recipe(tune="last:2", bn="affine", bank_gib=0.0),
        Recipe(tune="last:1", bn="reestimate"),
        Recipe(tune="bn_only:1", bn="update"),
        Recipe(
            rules=(
                ("head/kernel", "head"),
                ("backbone/stage3/conv0/.*", "slow*0.5"),
                (".*", FROZEN),
            ),
            bn="update",
        ),
    ],
    ids=lambda recipe: f"{recipe.tune if not recipe.rules else 'rules'}-{recipe.bn}",
)
def test_frozen_leaves_keep_every_bit_and_all_others_change(
    parts: data.Parts, recipe: Recipe
) -> None:
    recipe = dataclasses.replace(recipe, epochs=2, batch_size=8, lr=1e-2, workers=0)
    clf, before = network()
    after = run(parts, recipe).variables
    phase = recipe.phases(clf.spec.endpoints)[-1]
    partition = paths.partition(before["params"], phase.rules)
    train_norms = rules.trainable_norm_layers(partition.trained, before["batch_stats"])
    assert FROZEN in partition.groups
    for name, leaf in flatten(before["params"]).items():
        same = np.array_equal(leaf, flatten(after["params"])[name])
        assert same == (name not in partition.trained), name
    for name, leaf in flatten(before["batch_stats"]).items():
        layer = name.removeprefix("backbone/").rpartition("/")[0].removesuffix("/norm")
        updated = recipe.bn in ("update", "reestimate") and layer in train_norms
        assert np.array_equal(leaf, flatten(after["batch_stats"])[name]) != updated, name


def test_the_backward_pass_stops_at_the_lowest_stage_that_trains(parts: data.Parts) -> None:
    flops, moments, sizes = {}, {}, {}
    for name, recipe in {
        "all": dataclasses.replace(SMALL, tune="all"),
        "images": dataclasses.replace(SMALL, tune="last:1", bank_gib=0.0),
        "cached": dataclasses.replace(SMALL, tune="last:1"),
    }.items():
        phase = prepared(parts, recipe)
        flops[name] = phase.step.program.cost_analysis()["flops"]
        assert phase.step.padded_program is None, "without batch statistics one program suffices"
        leaves = jax.tree.leaves(phase.state.opt_state)
        moments[name] = sum(leaf.nbytes for leaf in leaves if leaf.ndim)
        sizes[name] = sum(leaf.nbytes for leaf in jax.tree.leaves(phase.state.trainable))
    assert all(moments[name] == 2 * sizes[name] for name in moments)
    assert moments["cached"] == moments["images"] < 0.8 * moments["all"]
    assert flops["cached"] < 0.75 * flops["images"] < 0.75 * 0.65 * flops["all"]


def test_cached_inputs_give_the_same_losses_as_images(parts: data.Parts) -> None:
    recipe = Recipe(tune="last:1", augment="dihedral", epochs=2, batch_size=8, workers=0)
    cached, images = run(parts, recipe), run(parts, dataclasses.replace(recipe, bank_gib=0.0))
    assert (cached.source, images.source) == ("cached stage2", "images")
    for one, other in zip(cached.history, images.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["val_nll"] == pytest.approx(other["val_nll"], rel=1e-3)


def test_an_evaluation_reads_images_without_augmentation(parts: data.Parts) -> None:
    clf, spec = network()[0], parts.validation
    images = inputs.ImageInputs(clf, spec, augment.make_augment("standard", size=SIZE))
    batches = [examples for examples, _ in images.evaluation(4)]
    read = np.concatenate([batch.inputs[batch.valid] for batch in batches])
    labels = np.concatenate([batch.labels[batch.valid] for batch in batches])
    expected = [clf.prepare(data.decode(example.path)) for example in spec.examples]
    np.testing.assert_array_equal(read, np.stack(expected))
    assert labels.tolist() == [example.label for example in spec.examples]


@pytest.mark.full
def test_gradual_unfreezes_one_stage_per_phase_from_the_top(
    parts: data.Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rules.phases
    # The first two phases only, to save time.
    monkeypatch.setattr(recipe_module, "phases", lambda *args, **more: whole(*args, **more)[:2])
    result = run(parts, Recipe(tune="gradual", epochs=8, batch_size=8, lr=2e-2))
    assert [(row["phase"], row["epoch"]) for row in result.history] == [
        ("head", 1), ("head", 2), ("last:1", 1), ("last:1", 2)
    ]  # fmt: skip
    assert result.history[2]["loss"] < result.history[0]["loss"]


def test_lp_ft_starts_from_a_probe(parts: data.Parts) -> None:
    result = run(parts, dataclasses.replace(SMALL, tune="lp_ft", lr=1e-4))
    assert result.probe is not None
    assert result.history[0]["loss"] < 0.2  # ln 2 without the probe
    assert {name.split("/")[0] for name in result.trained} == {"backbone", "head"}


def test_the_moments_of_a_head_on_standardized_features_are_not_carried_further(
    parts: data.Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradients of the head on raw features are in other units, by a factor per feature."""
    begun: list[Any] = []

    def recorded(context: FitContext, number: int, phase: Phase) -> Any:
        begun.append(jax.tree.map(np.array, phase.state.opt_state))
        return loop.train_phase(context, number, phase)

    monkeypatch.setattr(fit, "train_phase", recorded)
    whole = rules.phases
    monkeypatch.setattr(recipe_module, "phases", lambda *args, **more: whole(*args, **more)[:2])
    run(parts, dataclasses.replace(SMALL, tune="gradual", epochs=2))
    assert len(begun) == 2 and not any(leaf.any() for leaf in jax.tree.leaves(begun))


def test_averaged_weights_are_evaluated_with_averaged_statistics(parts: data.Parts) -> None:
    recipe = dataclasses.replace(SMALL, tune="last:1", bn="update", ema=0.9, bank_gib=0.0)
    phase = prepared(parts, recipe)
    state, expected = phase.state, jax.tree.map(np.array, phase.state.stats)
    with phase.train_inputs.training(phase.plan, 0, phase.key) as batches:
        for count, batch in enumerate(batches):
            state, _ = phase.step(state, devices.shard(batch.examples, devices.mesh()))
            decay = min(0.9, (1 + count) / (10 + count))
            average = lambda old, new, d=decay: d * old + (1 - d) * np.asarray(new)
            expected = jax.tree.map(average, expected, state.stats)
    assert count >= 1
    for name, leaf in flatten(phase.host(state)[1]).items():
        np.testing.assert_allclose(leaf, flatten(expected)[name], rtol=1e-6, atol=1e-7)
        layer, before = rules.norm_layer_name(name), flatten(network()[1]["batch_stats"])[name]
        assert np.array_equal(leaf, before) == (layer not in phase.train_norms), name
    validated = []
    record = lambda params, stats, batch: validated.append(stats) or np.zeros((8, 2))
    loop.validation_logits(phase, state, record)
    assert paths.digest(validated[0]) == paths.digest(phase.host(state)[1])


# ---- resuming ------------------------------------------------------------------------------------


# Arguments: the folder of the run, the images, and the row of the log at which the process kills
# itself (0: never). From the second row on it first waits for a complete checkpoint, so that the
# moment of the kill does not depend on the speed of the machine.
CHILD = """
import json, os, signal, sys
from pathlib import Path
from tests.test_fit import network
from tl import data, paths
from tl.training import fit
from tl.training.recipe import Recipe

folder, spec, last = Path(sys.argv[1]), data.folder(sys.argv[2]), int(sys.argv[3])
rows = []

def log(row):
    rows.append(row)
    print(json.dumps(row), flush=True)
    names = [path.name for path in folder.glob("checkpoints/*/step_*")]
    is_saved = any(name.removeprefix("step_").isdigit() for name in names)
    if 0 < last <= len(rows) and (last == 1 or is_saved):
        os.kill(os.getpid(), signal.SIGKILL)

parts = data.divide(spec, validation_fraction=0.25, seed=0)
recipe = Recipe(tune="last:1", bn="update", augment="color,flip", epochs=4, batch_size=4,
                save_every=2, ema=0.9, workers=0)
result = fit.fit(*network(), parts.train, parts.validation, recipe, seed=0,
                 folder=folder / "checkpoints", log=log)
outcome = {"digest": paths.digest(result.variables), "history": result.history}
(folder / "done.json").write_text(json.dumps(outcome))
"""


def run_process(folder: Path, images: Path, last: int = 0) -> list[dict[str, Any]]:
    """The rows that a run in a separate process logs, until it ends or kills itself."""
    folder.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "TL_CACHE": str(folder.parent / "cache"),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "xla"),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-c", CHILD, str(folder), str(images), str(last)]
    process = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=300
    )
    assert process.returncode == (-signal.SIGKILL if last else 0)
    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.mark.full
def test_a_run_that_was_killed_three_times_ends_in_the_same_bits(
    parts: data.Parts, tmp_path: Path
) -> None:
    """SIGKILL before the first checkpoint, after it, and again in the run that resumed."""
    images = Path(str(parts.train.examples[0].path)).parents[1]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_process(whole, images)
    first_steps = [run_process(killed, images, last)[0]["step"] for last in (1, 3, 4)]
    assert first_steps[:2] == [0, 0] and first_steps[2] > 0  # the third run resumed
    assert not (killed / "done.json").exists()
    run_process(killed, images)
    assert (killed / "done.json").read_text() == (whole / "done.json").read_text()


def test_an_interrupted_run_ends_in_the_same_bits(parts: data.Parts, tmp_path: Path) -> None:
    """In one process: an exception between two checkpoints, then the same call again."""
    recipe = dataclasses.replace(SMALL, tune="last:1", bn="update", augment="color,flip", ema=0.9)
    recipe = dataclasses.replace(recipe, epochs=3, batch_size=4, save_every=2)
    whole = run(parts, recipe)
    steps: list[int] = []

    def interrupt(row: dict[str, Any]) -> None:
        steps.append(row.get("step", -1))
        if len(steps) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(parts, recipe, folder=tmp_path / "checkpoints", log=interrupt)
    resumed_steps: list[int] = []
    log = lambda row: resumed_steps.append(row.get("step", -1))
    resumed = run(parts, recipe, folder=tmp_path / "checkpoints", log=log)
    assert resumed_steps[0] > 0
    assert paths.digest(resumed.variables) == paths.digest(whole.variables)
    assert resumed.history == whole.history


# ---- errors --------------------------------------------------------------------------------------

DIVERGING = dataclasses.replace(SMALL, lr=3e38, clip=0.0, optimizer="sgd", schedule="constant")


def test_a_loss_that_is_not_finite_is_an_error_with_step_and_images(
    parts: data.Parts, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(DIVERGING, tune="head", epochs=9)
    message = (
        r"step \d+ of head: got loss .* expected finite numbers; lower `lr`.*\.png.*"
        "the last finite state is in"
    )
    with pytest.raises(ValueError, match=message):
        run(parts, recipe, folder=tmp_path / "checkpoints")
    store = checkpoints.open(tmp_path / "checkpoints" / "phase0")
    like = prepared(parts, recipe).state._replace(frozen={})
    state, _, _ = store.restore(store.latest() or 0, like=like)
    store.close()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.trainable))


def test_a_run_whose_last_step_was_not_finite_can_be_resumed_to_its_end(
    parts: data.Parts, tmp_path: Path
) -> None:
    # The first step leaves finite parameters; the gradient norm of the second one overflows.
    recipe = dataclasses.replace(DIVERGING, tune="last:1", lr=1e30)
    last = len(prepared(parts, recipe).plan) - 1
    with pytest.raises(ValueError, match=f"step {last} of last:1: got loss .* expected finite"):
        run(parts, recipe, folder=tmp_path / "checkpoints")
    result = run(parts, recipe, folder=tmp_path / "checkpoints")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.variables["params"]))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            (("haed/.*", "head"), (".*", FROZEN)),
            "rule 'haed/.*' decides no leaf; nearest names: 'head",
        ),
        (((".*", FROZEN),), "every leaf is frozen"),
        (
            (("head/.*", "head"), (".*", "Frozen")),
            r"label 'Frozen' of rule '\.\*' would train; write 'frozen' to freeze",
        ),
    ],
)
def test_rules_that_do_not_fit_are_an_error(
    parts: data.Parts, written: tuple, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(parts, dataclasses.replace(SMALL, rules=written))


@pytest.mark.parametrize(
    ("fits", "batch_size", "parts_of_batch", "message"),
    [
        (
            4,
            64,
            1,
            r"`batch_size=64` needs .* GB are free; use `batch_size=\d+` or `microbatches=\d+`",
        ),
        (4, 11, 1, r"use `batch_size=[25]` or `microbatches=11`"),  # a divisor of the batch
        (4, 24, 4, r"use `batch_size=(4|12)` or `microbatches=\d+`"),
        (0, 1, 1, "one image does not fit into memory"),
    ],
)
def test_a_batch_too_large_for_memory_is_an_error_with_a_size_that_fits(
    parts: data.Parts,
    monkeypatch: pytest.MonkeyPatch,
    fits: int,
    batch_size: int,
    parts_of_batch: int,
    message: str,
) -> None:
    recipe = dataclasses.replace(SMALL, tune="head", microbatches=parts_of_batch)
    memory = 0
    if fits:
        phase = prepared(parts, dataclasses.replace(recipe, batch_size=fits))
        memory = devices.memory_needed(phase.step.program)
    monkeypatch.setattr(devices, "memory_limit", lambda: memory)
    with pytest.raises(ValueError, match=message):
        run(parts, dataclasses.replace(recipe, batch_size=batch_size))


def test_a_batch_too_large_for_memory_is_divided_into_as_few_parts_as_fit(
    parts: data.Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(SMALL, tune="last:1", batch_size=16, microbatches=0)
    whole = prepared(parts, recipe).step
    assert whole.microbatches == 1
    monkeypatch.setattr(devices, "memory_limit", lambda: whole.memory - 1)
    divided = prepared(parts, recipe).step
    assert divided.microbatches in (2, 4, 8, 16) and divided.memory < whole.memory
    for halves in (n for n in (2, 4, 8) if n < divided.microbatches):
        with pytest.raises(ValueError, match="are free"):
            prepared(parts, dataclasses.replace(recipe, microbatches=halves))


def test_the_memory_of_a_fit_is_that_of_its_largest_train_step(parts: data.Parts) -> None:
    recipe = dataclasses.replace(SMALL, tune="last:1")
    needed = prepared(parts, recipe).step.memory
    assert run(parts, recipe).memory == needed > 0
    assert run(parts, dataclasses.replace(recipe, ema=0.9)).memory > needed
    assert run(parts, Recipe(tune="probe")).memory == 0


# ---- dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.2, 0.8])
def test_dropout_removes_features_and_keeps_their_mean(rate: float) -> None:
    """The head copies two of the features, which are 1, to the logits."""
    clf, n = network()[0], 2000
    head = {"kernel": np.eye(8, 2, dtype=np.float32), "bias": np.zeros(2, np.float32)}
    ones = Output(None, jnp.ones((n, 8)), {}, {"kept": 1})
    loss = dropout_loss(clf, lambda *arguments: ones, rate, lambda logits, targets: logits[:, 0])
    keys = jax.random.split(jax.random.key(0), n)
    values, logits, stats = loss({"head": head}, {}, keys, 0, None, None, None)
    assert stats == {"kept": 1} and logits.shape == (n, 2)
    np.testing.assert_allclose(np.unique(logits), [0, 1 / (1 - rate)], rtol=1e-6)
    assert abs(float((logits == 0).mean()) - rate) < 0.04
    assert 0.1 < float((logits[:, 0] == logits[:, 1]).mean()) < 0.9  # each feature on its own
    np.testing.assert_array_equal(values, logits[:, 0])


def test_dropout_trains_and_needs_a_head_on_pooled_features(parts: data.Parts) -> None:
    recipe = dataclasses.replace(SMALL, tune="last:1")
    plain, dropped = run(parts, recipe), run(parts, dataclasses.replace(recipe, dropout=0.5))
    assert paths.digest(plain.variables) != paths.digest(dropped.variables)
    clf, variables = network()
    clf = clf.with_head(heads.Flat(2), clf.classes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`dropout=0.5` acts on pooled features: got a head that"):
        fit.check_recipe(clf, variables["params"], dataclasses.replace(recipe, dropout=0.5))


# ---- the probe -----------------------------------------------------------------------------------


def test_cross_validation_of_a_probe_keeps_copies_of_an_image_in_one_fold(tmp_path: Path) -> None:
    """Labels without a pattern, so that only copies in the other folds can predict them."""
    for i, name in enumerate(np.random.default_rng(0).permutation(["red", "blue"] * 8)):
        (tmp_path / name).mkdir(exist_ok=True)
        for quality in (60, 80, 95):
            toys.photograph(i).save(tmp_path / name / f"{i}-{quality}.jpg", quality=quality)
    clf, variables = network("toy_mobilenet")
    fitted = fit.fit(clf, variables, data.folder(tmp_path), None, Recipe(tune="probe")).probe
    assert fitted is not None
    assert max(fitted.scores.values()) < 0.75 and fitted.strength < 0.1


def test_a_probe_of_few_images_moderates_the_variances(parts: data.Parts) -> None:
    few = dataclasses.replace(parts.train, examples=parts.train.examples[::4])
    clf, variables = network()
    fitted = fit.fit(clf, variables, few, None, Recipe(tune="probe")).variables["params"]["head"]
    values = inference.extract(clf, variables, [e.path for e in few.examples]).values
    labels = np.array([example.label for example in few.examples])
    expected = probe.fit(values, labels, 2, prior=probe.PRIOR).params
    np.testing.assert_allclose(fitted["kernel"], expected["kernel"], rtol=1e-4, atol=1e-6)
    raw = probe.fit(values, labels, 2).params
    assert not np.allclose(fitted["kernel"], raw["kernel"], rtol=1e-2)


# ---- the figures of an epoch ---------------------------------------------------------------------


@pytest.mark.parametrize("balance", ["none", "weights"])
def test_loss_and_accuracy_of_an_epoch_are_means_over_its_images(
    parts: data.Parts, tmp_path: Path, balance: str
) -> None:
    """13 images in batches of 8, one of them unreadable, and a learning rate that changes nothing.

    A resumed run has the same means, from a checkpoint in the middle of the epoch.
    """
    (tmp_path / "broken.png").write_bytes(b"not an image")
    readable = parts.train.examples[:12]
    broken = dataclasses.replace(readable[0], path=tmp_path / "broken.png")
    train = dataclasses.replace(parts.train, examples=(*readable, broken))
    clf, variables = toys.classifier("toy_vgg_bn", ("red", "blue"), size=SIZE, resize="squash")
    recipe = dataclasses.replace(SMALL, tune="head", lr=1e-30, balance=balance, save_every=1)

    def interrupt(row: dict[str, Any]) -> None:
        if row.get("step") == 1:
            raise KeyboardInterrupt

    fit_train = functools.partial(
        fit.fit, clf, variables, train, None, recipe, folder=tmp_path / "checkpoints"
    )
    with pytest.raises(KeyboardInterrupt):
        fit_train(log=interrupt)
    (row,) = fit_train().history
    images = np.stack([clf.prepare(data.decode(example.path)) for example in readable])
    labels = np.array([example.label for example in readable])
    logits = np.asarray(jax.jit(clf.logits)(variables, pixels.to_images01(images)))
    weights = np.ones(2)
    if balance == "weights":
        weights = plan.class_weights(np.array([e.label for e in train.examples]), 2)
    losses = -metrics.log_softmax(logits)[np.arange(12), labels]
    assert len(set(np.round(losses, 3).tolist())) > 6
    expected = np.average(losses, weights=weights[labels])
    assert row["loss"] == pytest.approx(expected, rel=1e-5)
    assert row["accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean(), rel=1e-6)


def test_an_epoch_continues_from_the_sums_of_an_older_checkpoint() -> None:
    for older in ({"loss": 3.0, "grad_norm": 4.0, "steps": 2.0}, {"loss": 3.0, "grad_norm": 4.0}):
        epoch = loop._from_older(older, 2, batch_size=8)
        assert loop._means(epoch) == {"loss": 1.5, "grad_norm": 2.0}
        loop._add(epoch, {"loss": 9.0, "grad_norm": 5.0}, weight=4.0, images=4.0)
        assert loop._means(epoch) == {"loss": 3.0, "grad_norm": 3.0}


# ---- labels, the best epoch, rates, number types -------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("augmentation", ["flip", "crop"])  # cached inputs, and images
def test_soft_labels_weight_labels_by_their_confidence(
    parts: data.Parts, augmentation: str
) -> None:
    """With confidence 1/2 in two classes no loss is below ln 2; certain labels are learned."""
    recipe = dataclasses.replace(
        SMALL, tune="last:1", epochs=4, lr=2e-2, augment=augmentation, soft_labels=True
    )
    examples = [dataclasses.replace(example, confidence=0.5) for example in parts.train.examples]
    soft = parts._replace(train=dataclasses.replace(parts.train, examples=tuple(examples)))
    certain = dataclasses.replace(recipe, soft_labels=False)
    losses = [run(soft, one).history[-1]["loss"] for one in (recipe, certain)]
    assert losses[1] < np.log(2) - 1e-6 <= losses[0]


def test_soft_labels_need_label_confidences(parts: data.Parts) -> None:
    with pytest.raises(ValueError, match="`soft_labels` needs label confidences: got .* all are 1"):
        run(parts, dataclasses.replace(SMALL, soft_labels=True))


def test_training_stops_early_and_returns_the_best_epoch(parts: data.Parts) -> None:
    lines: list[str] = []
    recipe = Recipe(tune="head", epochs=30, batch_size=8, lr=0.5, schedule="constant", patience=2)
    result = run(parts, recipe, say=lines.append)
    losses = [row["val_nll"] for row in result.history]
    assert len(losses) < 30 and losses.index(min(losses)) == len(losses) - 3
    assert result.best is not None and result.best["val_nll"] == min(losses)
    assert "the last 2 epochs were not better on the validation set" in lines[-1]
    clf, plain = network()[0], augment.make_augment("none", size=SIZE)
    sets = [(parts.validation, plain)]
    (cache,) = inputs.compute_caches(clf, result.variables, sets, "features", gib=1.0) or []
    logits = np.asarray(clf.apply_head(result.variables, np.concatenate(cache.outputs)))
    assert metrics.summarize(logits, cache.labels)["nll"] == pytest.approx(min(losses), abs=1e-4)


def test_the_seed_decides_every_bit(parts: data.Parts) -> None:
    recipe = dataclasses.replace(SMALL, tune="head", augment="flip")
    one, again, other = (run(parts, recipe, seed=seed) for seed in (0, 0, 1))
    digests = [paths.digest(result.variables) for result in (one, again, other)]
    assert digests[0] == digests[1] != digests[2]


def test_the_rate_finder_suggests_a_rate_that_learns(parts: data.Parts) -> None:
    clf, variables = network()
    recipe = dataclasses.replace(SMALL, tune="head")
    suggested = rate_finder.find_rate(clf, variables, parts.train, recipe, seed=0, steps=60)
    rates = [rate for rate, _ in suggested.curve]
    assert rates == sorted(rates) and rates[0] == pytest.approx(1e-6, rel=1e-3)
    assert 1e-6 < suggested.rate <= 0.1
    result = run(parts, dataclasses.replace(recipe, lr=suggested.rate, epochs=10))
    assert result.history[-1]["loss"] < suggested.curve[0][1] / 2


def test_bfloat16_computes_in_half_and_keeps_float32_variables(parts: data.Parts) -> None:
    clf, variables = network()
    # A small rate, because the gradient of the second step is compared too.
    recipe = dataclasses.replace(SMALL, tune="last:1", lr=1e-5)
    half = fit.fit(clf.with_dtype("bfloat16"), variables, parts.train, parts.validation, recipe)
    single = run(parts, recipe)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.variables)} == {np.dtype(np.float32)}
    assert half.history[0]["grad_norm"] == pytest.approx(single.history[0]["grad_norm"], rel=0.05)
    assert half.history[0]["grad_norm"] != single.history[0]["grad_norm"]
