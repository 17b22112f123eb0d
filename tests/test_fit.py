"""Fine-tuning end to end on a small network: what is frozen, what it costs, resuming after a kill, and wrong input."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tl import data, devices, labels, metrics, models, paths, reporting
from tl.data import augment
from tl.models import heads
from tl.paths import FROZEN, flatten
from tl.training import checkpoints, fit, inputs, rate_finder, rules
from tl.training import recipe as recipe_module
from tl.training.phase import FitContext, Phase, prepare
from tl.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
SIZE = 32
SMALL = Recipe(epochs=1, batch_size=8, workers=0)


@functools.cache
def network(arch: str = "vgg11_bn") -> tuple[models.Classifier, Any]:
    clf, variables = models.load(arch, weights="random")
    clf = clf.with_pixels(size=SIZE, resize="squash").with_head(
        heads.Linear(2), labels.from_names(["red", "blue"], name="colours")
    )
    head = jax.tree.map(np.asarray, clf.init_head(jax.random.key(0)))
    return clf, {**variables, "params": {**variables["params"], "head": head}}


def colors(folder: Path, n: int = 12) -> data.DataSpec:
    """Two classes that colour tells apart."""
    rng = np.random.default_rng(0)
    for label, color in (("red", (0.9, 0.3, 0.1)), ("blue", (0.1, 0.4, 0.9))):
        (folder / label).mkdir(parents=True)
        for i in range(n):
            noise = 0.2 * rng.standard_normal((40, 40, 3))
            reporting.save_png(
                folder / label / f"{i}.png",
                np.clip(np.array(color) + noise, 0, 1).astype(np.float32),
            )
    return data.folder(folder)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> data.Parts:
    return data.divide(colors(tmp_path_factory.mktemp("colours")), validation_fraction=0.25, seed=0)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def run(parts: data.Parts, recipe: Recipe, **more: Any) -> fit.FitResult:
    return fit.fit(*network(), parts.train, parts.validation, recipe, seed=0, **more)


# -------------------------------------------------------------------------------------------------------------- frozen


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(tune="head"),
        Recipe(tune="last:1", augment="flip"),
        Recipe(tune="last:1", augment="color", bn="update"),
        Recipe(tune="last:2", bn="affine", bank_gib=0.0),
        Recipe(tune="last:1", bn="reestimate"),
        Recipe(
            rules=(
                ("head/kernel", "head"),
                ("backbone/stage5/conv1/.*", "slow*0.5"),
                (".*", FROZEN),
            ),
            bn="update",
        ),
    ],
    ids=lambda recipe: f"{recipe.tune if not recipe.rules else 'rules'}-{recipe.bn}",
)
def test_what_is_frozen_keeps_every_bit_and_the_rest_moves(
    parts: data.Parts, recipe: Recipe
) -> None:
    recipe = dataclasses.replace(recipe, epochs=2, batch_size=8, lr=1e-2)
    _, before = network()
    after = run(parts, recipe).variables
    labels_of = paths.label(before["params"], recipe.phases(network()[0].spec.endpoints)[-1].rules)
    train_norms = rules.trainable_norm_layers(labels_of, before["batch_stats"])
    assert any(what == FROZEN for what in labels_of.values())
    for name, leaf in flatten(before["params"]).items():
        same = np.array_equal(leaf, flatten(after["params"])[name])
        assert same == (labels_of[name] == FROZEN), (name, labels_of[name])
    for name, leaf in flatten(before["batch_stats"]).items():
        layer = name.removeprefix("backbone/").rpartition("/")[0].removesuffix("/norm")
        moves = recipe.bn in ("update", "reestimate") and layer in train_norms
        assert np.array_equal(leaf, flatten(after["batch_stats"])[name]) != moves, name


def prepared(parts: data.Parts, recipe: Recipe) -> Phase:
    clf, variables = network()
    job = FitContext(
        clf, parts.train, parts.validation, recipe, 0, None, lambda row: None, lambda line: None
    )
    phase = recipe.phases(clf.spec.endpoints)[0]
    return prepare(job, 0, phase, variables["params"], variables["batch_stats"], None)


def test_the_backward_pass_stops_at_the_lowest_stage_that_trains_and_the_optimizer_knows_no_other(
    parts: data.Parts,
) -> None:
    flops, kept, sizes = {}, {}, {}
    for name, recipe in {
        "all": dataclasses.replace(SMALL, tune="all"),
        "pictures": dataclasses.replace(SMALL, tune="last:1", bank_gib=0.0),
        "bank": dataclasses.replace(SMALL, tune="last:1"),
    }.items():
        phase = prepared(parts, recipe)
        flops[name] = phase.step.cost_analysis()["flops"]  # type: ignore[attr-defined]
        moments = [leaf.nbytes for leaf in jax.tree.leaves(phase.state.opt_state) if leaf.ndim]
        kept[name], sizes[name] = (
            sum(moments),
            sum(leaf.nbytes for leaf in jax.tree.leaves(phase.state.trainable)),
        )
    assert all(kept[name] == 2 * sizes[name] for name in kept)
    assert kept["bank"] == kept["pictures"] < 0.8 * kept["all"]  # half of VGG-11 is its last stage
    assert flops["bank"] < 0.75 * flops["pictures"] < 0.75 * 0.65 * flops["all"]


def test_a_bank_of_the_prefix_gives_what_the_pictures_give(parts: data.Parts) -> None:
    recipe = Recipe(tune="last:1", augment="dihedral", epochs=2, batch_size=8)
    looked, read = run(parts, recipe), run(parts, dataclasses.replace(recipe, bank_gib=0.0))
    assert (looked.feed, read.feed) == ("bank of stage4", "pictures")
    for one, other in zip(looked.history, read.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["val_nll"] == pytest.approx(other["val_nll"], rel=1e-3)


def test_gradual_unfreezes_from_the_top_and_lp_ft_begins_with_a_probe(
    parts: data.Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rules.phases
    monkeypatch.setattr(
        recipe_module, "phases", lambda *args, **kwargs: whole(*args, **kwargs)[:2]
    )  # time
    fitted = run(parts, Recipe(tune="gradual", epochs=12, batch_size=8))
    assert [(row["phase"], row["epoch"]) for row in fitted.history] == [
        ("head", 1), ("head", 2), ("last:1", 1), ("last:1", 2)
    ]  # fmt: skip
    assert fitted.history[2]["loss"] < fitted.history[0]["loss"]
    fitted = run(parts, Recipe(tune="lp_ft", epochs=1, batch_size=8, lr=1e-4))
    assert (
        fitted.closed_form is not None and fitted.history[0]["loss"] < 0.2
    )  # ln 2 without the probe
    assert {name.split("/")[0] for name in fitted.trained} == {"backbone", "head"}


# -------------------------------------------------------------------------------------------------------------- resume


CHILD = """
import json, sys
from pathlib import Path
import numpy as np
from tests.test_fit import network
from tl import data, paths
from tl.training import fit
folder, spec = Path(sys.argv[1]), data.folder(sys.argv[2])
parts = data.divide(spec, validation_fraction=0.25, seed=0)
recipe = fit.Recipe(tune="last:1", bn="update", augment="color,flip", epochs=4, batch_size=4, save_every=2, ema=0.9)
clf, variables = network()
fitted = fit.fit(clf, variables, parts.train, parts.validation, recipe, seed=0, folder=folder / "checkpoints",
                 log=lambda row: print(json.dumps(row), flush=True))
(folder / "done.json").write_text(json.dumps({"digest": paths.digest(fitted.variables), "history": fitted.history}))
"""


def start(folder: Path, pictures: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    words = [sys.executable, "-c", CHILD, str(folder), str(pictures)]
    environment = {**os.environ, "TL_CACHE": str(folder.parent / "cache"), "JAX_PLATFORMS": "cpu"}
    environment |= {
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "xla"),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
    }
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_run_killed_at_any_moment_ends_in_the_same_bits(
    parts: data.Parts, tmp_path: Path
) -> None:
    """SIGKILL while compiling, between checkpoints, while one is being written, and again after going on."""
    pictures = Path(str(parts.train.examples[0].path)).parents[1]
    whole = start(tmp_path / "whole", pictures)
    whole.communicate(timeout=300)
    assert whole.returncode == 0
    killed = tmp_path / "killed"
    seen: list[dict[str, Any]] = []
    for lines in (0, 3, 4):  # steps told before the kill
        child = start(killed, pictures)
        assert child.stdout is not None
        for _ in range(lines):
            seen.append(json.loads(child.stdout.readline()))
        time.sleep(0.5 if not lines else 0.0)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert not (killed / "done.json").exists()
    last = start(killed, pictures)
    last.communicate(timeout=300)
    assert last.returncode == 0
    one, other = (
        json.loads((folder / "done.json").read_text()) for folder in (tmp_path / "whole", killed)
    )
    assert one == other
    assert seen[3]["step"] > 0  # the second life went on, and did not begin again


# ---------------------------------------------------------------------------------------------------------- wrong input


def test_a_loss_that_is_not_finite_stops_and_names_step_and_pictures(
    parts: data.Parts, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(
        SMALL, tune="head", lr=3e38, clip=0.0, epochs=9, optimizer="sgd", schedule="constant"
    )
    with pytest.raises(
        ValueError, match=r"step \d+ of head: loss .* wanted finite.*\.png.*last good state is kept"
    ) as found:
        run(parts, recipe, folder=tmp_path / "checkpoints")
    assert "--lr" in str(found.value)
    kept = checkpoints.open(tmp_path / "checkpoints" / "phase0")
    state, _, _ = kept.restore(
        kept.latest() or 0, like=prepared(parts, recipe).state._replace(frozen={})
    )
    kept.close()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.trainable))


def test_a_run_whose_last_step_was_not_finite_goes_on_to_its_end(
    parts: data.Parts, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(
        SMALL, tune="last:1", lr=3e38, clip=0.0, optimizer="sgd", schedule="constant"
    )
    last = len(prepared(parts, recipe).plan) - 1
    with pytest.raises(ValueError, match=f"step {last} of last:1: loss .* wanted finite"):
        run(parts, recipe, folder=tmp_path / "checkpoints")
    fitted = run(parts, recipe, folder=tmp_path / "checkpoints")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fitted.variables["params"]))


def test_rules_that_match_nothing_or_freeze_everything(parts: data.Parts) -> None:
    with pytest.raises(ValueError, match="rule 'haed/.*' decides no leaf; nearest names: 'head"):
        run(parts, dataclasses.replace(SMALL, rules=(("haed/.*", "head"), (".*", FROZEN))))
    with pytest.raises(ValueError, match="every leaf is frozen"):
        run(parts, dataclasses.replace(SMALL, rules=((".*", FROZEN),)))


def test_a_batch_too_large_for_memory_says_one_that_fits(
    parts: data.Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf, variables = network()
    phase = prepared(parts, dataclasses.replace(SMALL, tune="head", batch_size=4))
    room = devices.needs(phase.step)
    monkeypatch.setattr(devices, "limit", lambda: room)
    with pytest.raises(
        ValueError,
        match=r"--batch_size=64 needs .* GB are free; --batch_size=\d+ fits, or --microbatches=",
    ):
        run(parts, dataclasses.replace(SMALL, tune="head", batch_size=64))


# --------------------------------------------------------------------------------------------------------------- choice


@pytest.mark.parametrize("augmentation", ["flip", "crop"])  # from the bank, and from pictures
def test_labels_count_as_much_as_they_are_sure(parts: data.Parts, augmentation: str) -> None:
    """Against targets of a half and a half no loss is below ln 2; the same labels taken as certain are learned."""
    recipe = dataclasses.replace(
        SMALL, tune="last:1", epochs=4, augment=augmentation, soft_labels=True
    )
    tossed = tuple(dataclasses.replace(example, confidence=0.5) for example in parts.train.examples)
    soft = parts._replace(train=dataclasses.replace(parts.train, examples=tossed))
    losses = [
        run(soft, how).history[-1]["loss"]
        for how in (recipe, dataclasses.replace(recipe, soft_labels=False))
    ]
    assert losses[1] < np.log(2) - 1e-6 <= losses[0]


def test_soft_labels_want_a_set_that_has_them(parts: data.Parts) -> None:
    with pytest.raises(
        ValueError,
        match="--soft_labels wants labels that say how sure they are; those of .* are all certain",
    ):
        run(parts, dataclasses.replace(SMALL, soft_labels=True))


def test_training_stops_early_and_keeps_the_best_epoch(parts: data.Parts) -> None:
    lines: list[str] = []
    recipe = Recipe(tune="head", epochs=30, batch_size=8, lr=0.05, schedule="constant", patience=2)
    fitted = run(parts, recipe, say=lines.append)
    losses = [row["val_nll"] for row in fitted.history]
    assert len(losses) < 30 and losses.index(min(losses)) == len(losses) - 3
    assert fitted.best is not None and fitted.best["val_nll"] == min(losses)
    assert "no better validation loss for 2 epochs" in lines[-1]
    once = augment.make_augment("none", size=SIZE)
    clf, _ = network()
    bank = inputs.bank(clf, fitted.variables, parts.validation, "features", once, gib=1.0)
    assert bank is not None
    logits = np.asarray(clf.apply_head(fitted.variables, bank.maps[:, 0]))
    assert metrics.summarize(logits, bank.labels)["nll"] == pytest.approx(
        min(losses), abs=1e-4
    )  # the variables are that epoch's


def test_the_same_seed_gives_the_same_bits_and_another_does_not(parts: data.Parts) -> None:
    recipe = dataclasses.replace(SMALL, tune="head", augment="flip")
    one, again = run(parts, recipe), run(parts, recipe)
    clf, variables = network()
    other = fit.fit(clf, variables, parts.train, parts.validation, recipe, seed=1)
    assert (
        paths.digest(one.variables)
        == paths.digest(again.variables)
        != paths.digest(other.variables)
    )


def test_the_rate_finder_finds_a_rate_that_learns(parts: data.Parts) -> None:
    clf, variables = network()
    recipe = dataclasses.replace(SMALL, tune="head")
    found = rate_finder.find_rate(clf, variables, parts.train, recipe, seed=0, steps=60)
    rates = [rate for rate, _ in found.curve]
    assert rates == sorted(rates) and rates[0] == pytest.approx(1e-6, rel=1e-3)
    assert 1e-6 < found.rate <= 0.1
    taught = run(parts, dataclasses.replace(recipe, lr=found.rate, epochs=10))
    assert taught.history[-1]["loss"] < found.curve[0][1] / 2


def test_bfloat16_computes_in_half_and_keeps_parameters_and_statistics_whole(
    parts: data.Parts,
) -> None:
    clf, variables = network()
    recipe = Recipe(
        tune="last:1", epochs=1, batch_size=8, lr=1e-5
    )  # two steps that hardly move: the gradient is compared
    half = fit.fit(
        clf.with_dtype("bfloat16"), variables, parts.train, parts.validation, recipe, seed=0
    )
    whole = run(parts, recipe)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.variables)} == {np.dtype(np.float32)}
    assert half.history[0]["grad_norm"] == pytest.approx(whole.history[0]["grad_norm"], rel=0.05)
    assert half.history[0]["grad_norm"] != whole.history[0]["grad_norm"]
