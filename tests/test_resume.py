"""Resumed runs: the same inputs as at the start, no repeated rows, and no skipped validation."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import toys
from tests.test_cli import launch
from tests.test_fit import network, run
from tests.toys import toy_zoo  # noqa: F401 (a fixture)
from tl import data, paths, reporting
from tl.evaluation.transfer import TransferSettings, transfer
from tl.training import fit, loop, rate_finder
from tl.training.phase import Phase
from tl.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("shared_cache")

RECIPE = Recipe(tune="head", epochs=3, batch_size=4, workers=0)
transfer_module = importlib.import_module("tl.evaluation.transfer")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> data.DataSpec:
    return toys.color_folder(tmp_path_factory.mktemp("colors") / "set", 8, side=24)


@pytest.fixture(scope="module")
def parts(spec: data.DataSpec) -> data.Parts:
    return data.divide(spec, validation_fraction=0.25, seed=0)


def interrupt_after(rows: int, logged: list[dict[str, Any]]) -> Any:
    """A `log` that interrupts a run after some rows."""

    def log(row: dict[str, Any]) -> None:
        logged.append(row)
        if len(logged) == rows:
            raise KeyboardInterrupt

    return log


# ---- the same inputs -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(parts: data.Parts, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """The checkpoints of a run that was interrupted in its second epoch."""
    folder = tmp_path_factory.mktemp("interrupted") / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        run(parts, RECIPE, folder=folder, log=interrupt_after(5, []))
    assert list(folder.glob("phase0/step_*"))
    return folder, RECIPE


def change_part(parts: data.Parts, part: str, change: str) -> data.Parts:
    spec = getattr(parts, part)
    examples = list(spec.examples)
    if change == "fewer":
        examples = examples[:-1]
    if change == "order":
        examples = examples[::-1]
    if change == "label":
        examples[0] = dataclasses.replace(examples[0], label=1 - examples[0].label)
    return parts._replace(**{part: dataclasses.replace(spec, examples=tuple(examples))})


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize("change", ["fewer", "order", "label"])
def test_other_images_are_refused(
    parts: data.Parts, interrupted: tuple[Path, Recipe], part: str, change: str
) -> None:
    folder, recipe = interrupted
    word = {"train": "training"}.get(part, part)
    message = f"cannot resume in .*the inputs differ.*: the {word} images was .*; restore them"
    with pytest.raises(ValueError, match=message):
        run(change_part(parts, part, change), recipe, folder=folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": dataclasses.replace(RECIPE, lr=0.1)}, r"`lr` was 0\.0, is 0\.1"),
        ({"recipe": dataclasses.replace(RECIPE, epochs=9)}, "`epochs` was 3, is 9"),
        ({"seed": 1}, "`seed` was 0, is 1"),
        ({"bias": 1.0}, "the weights was 'toy_vgg_bn, sha256"),
        ({"size": 12}, "the preprocessing was"),
        ({"names": ("sky", "red")}, r"the classes was \['blue', 'red'\], is \['sky', 'red'\]"),
    ],
)
def test_other_settings_weights_and_classes_are_refused(
    parts: data.Parts, interrupted: tuple[Path, Recipe], change: dict[str, Any], message: str
) -> None:
    clf, variables = network()
    clf = clf.with_pixels(size=change.get("size", clf.pixels.size))
    flat = paths.flatten(variables["params"])
    flat["head/bias"] = flat["head/bias"] + np.float32(change.get("bias", 0.0))
    variables = {**variables, "params": paths.unflatten(flat)}
    names = change.get("names", parts.train.classes)
    rename = lambda part: dataclasses.replace(part, classes=names)
    recipe, seed = change.get("recipe", RECIPE), change.get("seed", 0)
    with pytest.raises(ValueError, match=message):
        train, validation = rename(parts.train), rename(parts.validation)
        fit.fit(clf, variables, train, validation, recipe, seed=seed, folder=interrupted[0])


def test_a_checkpoint_of_an_older_version_is_compared_by_its_plan(
    parts: data.Parts, interrupted: tuple[Path, Recipe], tmp_path: Path
) -> None:
    """Older versions have recorded no inputs."""
    folder = shutil.copytree(interrupted[0], tmp_path / "checkpoints")
    (folder / "inputs.json").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"another order of images: `n` was \d+, is \d+;"):
        run(change_part(parts, "train", "fewer"), RECIPE, folder=folder)


def test_a_deleted_test_image_is_refused_by_transfer(
    toy_zoo: None,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It moves an image that was learned into the test part."""
    spec = toys.color_folder(tmp_path / "set", 8, side=24)
    settings = TransferSettings(RECIPE)

    def attempt(resume: bool) -> Any:
        opened = reporting.start("transfer", tmp_path / "run", {"seed": 0}, resume=resume)
        return transfer(opened, *network(), data.folder(tmp_path / "set"), None, settings)

    with monkeypatch.context() as patch:
        patch.setattr(reporting.Run, "log", lambda self, row: interrupt(row))

        def interrupt(row: dict[str, Any]) -> None:
            if row.get("step") == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            attempt(resume=False)
    test = data.divide(spec, validation_fraction=0.15, seed=0).test
    Path(str(test.examples[0].path)).unlink()
    before = sorted((tmp_path / "run" / "checkpoints").glob("*/phase*/step_*"))
    with pytest.raises(ValueError, match="the test images of seed0 was '4 images, sha256"):
        attempt(resume=True)
    assert sorted((tmp_path / "run" / "checkpoints").glob("*/phase*/step_*")) == before


FLAGS = """
from absl import flags
from tl import cli

def define():
    flags.DEFINE_bool("resume", False, "")
    flags.DEFINE_float("robust_eps", 0.0, "")
    flags.DEFINE_float("lr", 0.0, "")

cli.launch("toy", lambda run: run.finish({}, ""), define, may_change=("robust_eps",))
"""


@pytest.mark.full
def test_only_flags_of_the_test_may_change(tmp_path: Path) -> None:
    assert launch(tmp_path, code=FLAGS).returncode == 0
    process = launch(tmp_path, code=FLAGS, words=("--resume", "--robust_eps=0.1"))
    assert process.returncode == 0, process.stderr
    process = launch(tmp_path, code=FLAGS, words=("--resume", "--lr=0.1"))
    assert process.returncode == 1 and "--lr was 0.0, is 0.1" in process.stderr


# ---- rows of metrics.jsonl -----------------------------------------------------------------------


def test_no_row_of_a_resumed_run_is_repeated(
    toy_zoo: None,  # noqa: F811
    spec: data.DataSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = TransferSettings(dataclasses.replace(RECIPE, save_every=2))
    log, count = reporting.Run.log, 0

    def interrupt(self: reporting.Run, row: dict[str, Any]) -> None:
        nonlocal count
        log(self, row)
        count += 1
        if count in (8, 14):  # after two and more steps, and in the resumed run
            raise KeyboardInterrupt

    monkeypatch.setattr(reporting.Run, "log", interrupt)
    for resume in (False, True, True):
        opened = reporting.start("transfer", tmp_path, {"seed": 0}, resume=resume)
        try:
            transfer(opened, *network(), spec, None, settings)
        except KeyboardInterrupt:
            with open(tmp_path / "metrics.jsonl", "a") as file:
                file.write('{"round": "se')  # an interrupted write
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    keys = [tuple(row.get(key) for key in ("round", "phase", "step", "epoch")) for row in rows]
    assert count > 14 and len(keys) == len(set(keys))
    assert [row["step"] for row in rows if "step" in row] == list(range(9))
    assert [row["epoch"] for row in rows if "epoch" in row] == [1, 2, 3]
    assert sum("n" in row for row in rows) == 1


@pytest.mark.full
def test_a_resumed_run_does_not_search_the_rate_again(
    toy_zoo: None,  # noqa: F811
    spec: data.DataSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU a second search may find another rate."""
    found = iter((1e-3, 2e-3))
    search = lambda *args, **more: rate_finder.Rates(next(found), [(1e-3, 0.5)])
    monkeypatch.setattr(rate_finder, "find_rate", search)
    settings = TransferSettings(RECIPE, find_lr=True)
    for resume in (False, True):
        opened = reporting.start("transfer", tmp_path, {"seed": 0}, resume=resume)
        result = transfer(opened, *network(), spec, None, settings)
        assert result["rates"]["rate"] == 1e-3


# ---- the end of an epoch, the best epoch ---------------------------------------------------------


# The last step of the first epoch, and the one before.
@pytest.mark.parametrize("offset", [pytest.param(1, marks=pytest.mark.full), 2])
def test_a_step_that_is_not_finite_does_not_skip_the_validation_of_its_epoch(
    parts: data.Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    prepare = fit.prepare

    def failing(*args: Any, **more: Any) -> Phase:
        phase = prepare(*args, **more)
        wrong, count = phase.plan.steps_per_epoch - offset, iter(range(99))

        def step(state: Any, examples: Any) -> Any:
            state, values = phase.step(state, examples)
            return state, {**values, "finite": np.array(next(count) != wrong)}

        return phase._replace(step=step)

    whole, steps = run(parts, RECIPE), -(-len(parts.train.examples) // RECIPE.batch_size)
    with monkeypatch.context() as patch:
        patch.setattr(fit, "prepare", failing)
        with pytest.raises(ValueError, match=f"step {steps - offset} of head: got loss"):
            run(parts, RECIPE, folder=tmp_path)
    resumed = run(parts, RECIPE, folder=tmp_path)
    assert [row["epoch"] for row in resumed.history] == [1, 2, 3]
    for row, expected in zip(resumed.history, whole.history, strict=True):
        assert row["val_nll"] == expected["val_nll"] and row["val_top1"] == expected["val_top1"]
    assert [row["loss"] for row in resumed.history[1:]] == [r["loss"] for r in whole.history[1:]]
    # The mean of the first epoch is over its finite steps.
    assert abs(resumed.history[0]["loss"] / whole.history[0]["loss"] - 1) < 0.3


@pytest.mark.full
def test_a_resumed_run_reports_all_steps_and_all_skipped_images(
    parts: data.Parts, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    broken = dataclasses.replace(parts.train.examples[0], path=tmp_path / "broken.png")
    train = dataclasses.replace(parts.train, examples=(*parts.train.examples, broken))
    parts, recipe = parts._replace(train=train), dataclasses.replace(RECIPE, bank_gib=0.0)
    whole = run(parts, recipe, folder=tmp_path / "checkpoints")
    resumed = run(parts, recipe, folder=tmp_path / "checkpoints")
    assert len(whole.skipped) == 1 and whole.steps == 9
    assert (resumed.steps, resumed.skipped) == (whole.steps, whole.skipped)


def test_of_equally_good_epochs_the_first_is_the_best_after_a_resume_too(
    parts: data.Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "validate", lambda *_: {"val_nll": 0.5, "val_top1": 0.5})
    recipe = dataclasses.replace(RECIPE, epochs=5)
    whole = run(parts, recipe)
    with pytest.raises(KeyboardInterrupt):
        run(parts, recipe, folder=tmp_path, log=interrupt_after(14, []))
    resumed = run(parts, recipe, folder=tmp_path)
    assert whole.best is not None and resumed.best == whole.best and whole.best["epoch"] == 1
    assert paths.digest(resumed.variables) == paths.digest(whole.variables)
