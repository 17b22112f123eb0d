"""Recipes by name: their settings, what they train, flags that win or contradict, errors."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests import toys
from tl import data, paths
from tl.paths import flatten
from tl.training import fit, recipes
from tl.training.recipe import Recipe
from tl.training.recipes import Facts

ROOT = Path(__file__).resolve().parents[1]
SIZE = 16
FEW = {"lr": 1e-3, "backbone_lr": 1.0}
ALL = r"backbone/.*|head/.*"
BIT = {
    "tune": "all",
    "steps": 500,
    "schedule": "bit",
    "optimizer": "momentum",
    "batch_size": 512,
    "lr": 0.003,
    "backbone_lr": 1.0,
    "weight_decay": 0.0,
    "clip": 0.0,
    "augment": "shift,flip",
    "crop": "none",
    "image_size": 480,
}
PLAIN = {
    "tune": "all",
    "optimizer": "sgd",
    "lr": 0.01,
    "backbone_lr": 0.1,
    "weight_decay": 5e-4,
    "clip": 3.0,
    "augment": "flip",
}
# Name -> the settings without an argument, and a pattern of the parameters that train.
TABLE: dict[str, tuple[dict[str, Any], str]] = {
    "auto": ({"tune": "probe"}, r"head/.*"),
    "probe": ({"tune": "probe"}, r"head/.*"),
    "plain": (PLAIN, ALL),
    "lp_ft": ({"tune": "lp_ft", "lr": 1e-4, "backbone_lr": 0.1}, ALL),
    "bit": (BIT, ALL),
    "l2_sp": ({**PLAIN, "weight_decay": 0.01, "l2_sp": 0.1}, ALL),
    "bss": ({**PLAIN, "penalty": "bss"}, ALL),
    "delta": ({**PLAIN, "penalty": "delta"}, ALL),
    "co_tuning": ({**PLAIN, "penalty": "co_tuning"}, ALL),
    "bi_tuning": ({**PLAIN, "penalty": "bi_tuning"}, ALL),
    "distill:vgg16": ({**PLAIN, "penalty": "distill:vgg16"}, ALL),
    "surgical:stage1": (
        {"tune": "surgical:stage1", "lr": 1e-4, "backbone_lr": 1.0},
        r"backbone/stage1/.*|head/.*",
    ),
    "bn_only": ({"tune": "bn_only", **FEW}, r"backbone/.*/norm/.*|backbone/top/norm/.*|head/.*"),
    "bias_only": ({"tune": "bias_only", **FEW}, r".*/bias|head/.*"),
    "lora": ({"tune": "lora:4", **FEW}, r"lora/.*|head/.*"),
    "fixres": (
        {"tune": "bn_only:1", "bn": "update", "image_size": 384, **FEW},
        r"backbone/(stage2/.*|top)/norm/.*|head/.*",
    ),
}


def network(arch: str = "toy_mobilenet") -> tuple[Any, Any]:
    clf, variables = toys.classifier(arch, ("red", "blue"), size=SIZE, resize="squash")
    return clf, clf.reset_head(variables, key=jax.random.key(0))


def of_recipe(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in recipes.OF_PIXELS}


# ---- the table -----------------------------------------------------------------------------------


def test_every_recipe_has_a_row_of_this_table_and_a_reference() -> None:
    assert [word.partition(":")[0] for word in TABLE] == list(recipes.RECIPES)
    for row in recipes.RECIPES.values():
        assert any(c.isdigit() for c in row.reference) and row.help


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_sets_fields_and_decides_what_trains(name: str) -> None:
    expected, pattern = TABLE[name]
    fields = recipes.settings(name)
    assert fields == expected
    assert set(recipes.RECIPES[name.partition(":")[0]].defines) <= set(fields)
    clf, variables = network()
    phase, partition = fit.check_recipe(clf, variables["params"], Recipe(**of_recipe(fields)))[-1]
    names = {leaf for leaf in partition.labels if re.fullmatch(pattern, leaf)}
    assert partition.trained == names
    line = recipes.describe(name, Recipe(**of_recipe(fields)), 224)
    assert f"recipe {name}: tune={fields['tune']}, " in line and "images of 224 pixels" in line


def test_arguments_set_a_rank_a_strength_and_a_number_of_stages() -> None:
    assert recipes.settings("lora:8")["tune"] == "lora:8"
    assert recipes.settings("lora:0")["tune"] == "lora:0"
    assert recipes.settings("l2_sp:0.5")["l2_sp"] == 0.5
    assert recipes.settings("lp_ft:2")["tune"] == "lp_ft:2"
    assert recipes.settings("") == {}


@pytest.mark.parametrize(
    ("facts", "changes"),
    [
        (Facts(n=100), {"batch_size": 100}),
        (Facts(n=19_999, side=96.0), {}),
        (Facts(n=1000, side=95.9), {"image_size": 128}),
        (Facts(n=20_000), {"steps": 10_000, "augment": "shift,flip,mixup"}),
        (Facts(n=499_999), {"steps": 10_000, "augment": "shift,flip,mixup"}),
        (Facts(n=500_000), {"steps": 20_000, "augment": "shift,flip,mixup"}),
        (Facts(batch_size=128), {"lr": 0.00075}),
    ],
)
def test_bit_follows_the_number_and_the_size_of_the_images(
    facts: Facts, changes: dict[str, Any]
) -> None:
    """Kolesnikov et al. 2020, section 3.3."""
    assert {**recipes.settings("bit", facts), "batch_size": 512} | changes == BIT | changes


def test_fixres_takes_a_larger_size_than_the_weights() -> None:
    sizes = [recipes.settings("fixres", Facts(size=size))["image_size"] for size in (128, 224, 299)]
    assert sizes == [224, 384, 512]


def test_facts_are_read_from_the_data(tmp_path: Path) -> None:
    spec = toys.color_folder(tmp_path / "set", 20, side=24)
    (tmp_path / "set" / "red" / "0.png").write_bytes(b"no image")
    assert recipes.facts_of(spec, 224) == Facts(40, 2, 24.0, 224)
    official = [dataclasses.replace(e, part="test") for e in spec.examples[:10]]
    spec = dataclasses.replace(spec, examples=(*official, *spec.examples[10:]))
    assert recipes.facts_of(spec, 299) == Facts(30, 2, 24.0, 299)


# ---- flags ---------------------------------------------------------------------------------------


def test_auto_has_the_alternative_that_its_argument_names() -> None:
    lp_ft = recipes.settings("lp_ft")
    assert recipes.alternative("auto") == recipes.alternative("auto:lp_ft") == lp_ft
    assert (recipes.alternative("auto:lora:8") or {})["tune"] == "lora:8"
    assert "lr" not in (recipes.alternative("auto", given={"lr": 1.0}) or {})
    assert recipes.alternative("") is recipes.alternative("bit") is None
    for name in ("auto:bit", "auto:fixres", "auto:auto"):
        with pytest.raises(ValueError, match="compares a probe with another recipe on images of"):
            recipes.alternative(name)
    with pytest.raises(ValueError, match="unknown `recipe`: got 'lpft'"):
        recipes.alternative("auto:lpft")


def test_given_settings_win_and_epochs_replace_steps() -> None:
    given = {"lr": 0.5, "batch_size": 128, "image_size": 64, "epochs": 3, "seed": 1}
    fields = recipes.settings("bit", Facts(), given)
    assert not fields.keys() & {"lr", "batch_size", "image_size", "epochs", "steps"}
    assert fields["schedule"] == "bit" and fields["clip"] == 0.0
    assert recipes.settings("bit", Facts(), {"batch_size": 256})["lr"] == 0.0015
    assert recipes.settings("lp_ft", given={"tune": "lp_ft"}) == {"lr": 1e-4, "backbone_lr": 0.1}


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("lorra", {}, "unknown `recipe`: got 'lorra', expected auto.*nearest: 'lora'"),
        ("bit:2", {}, "`recipe=bit:2` has an argument, but bit takes none; use `recipe=bit`"),
        ("lora:-1", {}, "`recipe=lora:-1` has no rank: got '-1', expected a number of at least 0"),
        ("lora:x", {}, "`recipe=lora:x` has no rank: got 'x'"),
        ("l2_sp:-1", {}, "`recipe=l2_sp:-1` has no strength: got '-1', expected a number of at"),
        ("l2_sp:nan", {}, "`recipe=l2_sp:nan` has no strength"),
        ("delta:x", {}, "`penalty=delta:x` has no strength: got 'x'"),
        ("distill", {}, "`penalty=distill` names no teacher"),
        (
            "bit",
            {"tune": "probe"},
            "`recipe=bit` sets tune=all: got `tune=probe`, which makes it another recipe; leave "
            "out `tune` or `recipe`",
        ),
        ("bit", {"schedule": "cosine"}, "`recipe=bit` sets schedule=bit: got `schedule=cosine`"),
        ("bn_only", {"rules": [".*=all"]}, "sets tune=bn_only: got `rules=.*leave out `rules` or"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_an_error(
    name: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        recipes.settings(name, given=given)


COMMAND = """
import dataclasses, json, sys
from absl import flags
from experiments import transfer
from tl import cli
cli.define_run_flags()
transfer.define_flags()
rows = []
for words in json.loads(sys.argv[1]):
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    flags.FLAGS(["transfer", "--data=folder:x", *words])
    try:
        rows.append(dataclasses.asdict(transfer.settings_of_flags()))
    except ValueError as error:
        rows.append(cli.with_dashes(str(error)))
print(json.dumps(rows))
"""


def test_the_command_line_sets_fields_of_a_recipe() -> None:
    words = [
        ["--recipe=bit", "--lr=0.1", "--image_size=64"],
        ["--recipe=lora:8", "--epochs=2"],
        ["--recipe=l2_sp", "--l2_sp=0.5", "--tune=last:1"],
        ["--recipe=bit", "--tune=probe"],
        ["--recipe=auto:lora:2", "--epochs=3"],
        ["--epochs=30"],
    ]
    run = subprocess.run(
        [sys.executable, "-c", COMMAND, json.dumps(words)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    bit, lora, l2_sp, wrong, auto, plain = json.loads(run.stdout)
    assert bit["image_size"] == 64 and bit["crop"] == "none"
    assert bit["recipe"]["lr"] == 0.1 and bit["recipe"]["steps"] == 500
    assert (lora["recipe"]["tune"], lora["recipe"]["epochs"]) == ("lora:8", 2)
    assert (l2_sp["recipe"]["tune"], l2_sp["recipe"]["l2_sp"]) == ("last:1", 0.5)
    assert wrong.startswith("--recipe=bit sets tune=all: got --tune=probe")
    assert (auto["recipe"]["tune"], auto["alternative"]["tune"]) == ("probe", "lora:2")
    assert auto["alternative"]["epochs"] == 3 and plain["alternative"] is None
    assert plain["recipe"] == json.loads(json.dumps(dataclasses.asdict(Recipe(tune="probe"))))


# ---- fields of Recipe that only recipes set ------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": "probe", "l2_sp": 0.1}, "`l2_sp=0.1` needs gradient steps: got `tune=probe`"),
        ({"tune": "probe", "steps": 10}, "`steps=10` needs gradient steps: got `tune=probe`"),
        ({"l2_sp": -1.0}, "`l2_sp` must be a finite number of at least 0: got -1"),
        ({"l2_sp": float("nan")}, "`l2_sp` must be a finite number"),
        ({"tune": "bn_only:9"}, "`tune=bn_only:9`: this network has 3 stages; use bn_only:1 to"),
    ],
)
def test_a_setting_that_cannot_act_is_an_error(changes: dict[str, Any], message: str) -> None:
    clf, variables = network()
    with pytest.raises(ValueError, match=message):
        fit.check_recipe(clf, variables["params"], Recipe(**changes))


def test_bn_only_needs_batch_norm() -> None:
    clf, variables = network("toy_vgg")
    with pytest.raises(ValueError, match="decides no leaf"):
        fit.check_recipe(clf, variables["params"], Recipe(tune="bn_only"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> data.Parts:
    spec = toys.color_folder(tmp_path_factory.mktemp("colors") / "set", side=24)
    return data.divide(spec, validation_fraction=0.25, seed=0)


def run(parts: data.Parts, recipe: Recipe, **more: Any) -> fit.FitResult:
    return fit.fit(*network("toy_vgg_bn"), parts.train, parts.validation, recipe, **more)


def test_l2_sp_keeps_the_backbone_near_its_start(parts: data.Parts, tmp_path: Path) -> None:
    """At rate 1 and strength 1 each step returns to the start before it adds the gradient."""
    before = flatten(network("toy_vgg_bn")[1]["params"])
    recipe = Recipe(tune="last:1", steps=7, batch_size=8, lr=0.05, backbone_lr=1.0, workers=0)

    def moved(l2_sp: float) -> float:
        result = run(parts, dataclasses.replace(recipe, l2_sp=l2_sp), folder=tmp_path / f"{l2_sp}")
        assert result.steps == 8 and [row["epoch"] for row in result.history] == [1, 2, 3, 4]
        assert result.history[-1]["lr"] == 0  # step 8 of 7
        after = flatten(result.variables["params"])
        assert all(
            np.array_equal(after[name], leaf) == (name not in result.trained)
            for name, leaf in before.items()
        )
        names = [name for name in result.trained if name.startswith("backbone/")]
        return sum(float(np.sum((after[name] - before[name]) ** 2)) for name in names)

    assert 0 < moved(10.0) < 0.5 * moved(0.0)
    with pytest.raises(ValueError, match="`l2_sp` was 10.0, is 5.0"):
        run(parts, dataclasses.replace(recipe, l2_sp=5.0), folder=tmp_path / "10.0")
    again = run(parts, dataclasses.replace(recipe, l2_sp=10.0), folder=tmp_path / "10.0")
    assert again.steps == 8 and paths.digest(again.variables)
