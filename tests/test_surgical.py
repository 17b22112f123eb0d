"""The stage that `tune=surgical` chooses: its gradients, the training of it alone, resuming."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from tl import data, paths
from tl.paths import flatten
from tl.training import fit, inputs, rules, surgical
from tl.training.program import FitContext
from tl.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("shared_cache")

SIZE = 16
RECIPE = Recipe(tune="surgical", epochs=1, batch_size=8, lr=1e-2, backbone_lr=1.0, workers=0)


def network() -> tuple[Any, Any]:
    """With a nonzero head, without which no gradient reaches the backbone."""
    return toys.classifier("toy_mobilenet", ("blue", "red"), size=SIZE, resize="squash")


def context(parts: data.Parts, **more: Any) -> FitContext:
    quiet = lambda row: None
    clf, recipe = network()[0], dataclasses.replace(RECIPE, **more)
    return FitContext(clf, parts.train, parts.validation, recipe, 0, None, quiet, quiet)


def test_the_figures_of_a_stage_are_those_of_the_gradient_of_the_mean_loss(
    parts: data.Parts,
) -> None:
    """The relative norm by one gradient over all images, of which the batches have equal parts."""
    clf, variables = network()
    n = len(parts.train.examples)
    assert n % 2 == 0
    rows = surgical.stage_gradients(
        context(parts, batch_size=n // 2), variables["params"], variables["batch_stats"]
    )
    assert [row["stage"] for row in rows] == list(clf.spec.endpoints)
    images = np.stack([clf.prepare(data.decode(e.path)) for e in parts.train.examples])
    images01, labels = images / np.float32(255), inputs.labels(parts.train)

    @jax.jit
    def gradient(backbone: Any, images01: jax.Array, labels: jax.Array) -> Any:
        def loss(backbone: Any) -> jax.Array:
            params = {**variables["params"], "backbone": backbone}
            log_p = jax.nn.log_softmax(clf.apply({**variables, "params": params}, images01).logits)
            return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1))

        return jax.grad(loss)(backbone)

    halves = [slice(0, n // 2), slice(n // 2, n)]
    each = [
        flatten(gradient(variables["params"]["backbone"], images01[h], labels[h])) for h in halves
    ]
    weights = flatten(variables["params"]["backbone"])
    square = lambda tree: sum(float(np.sum(np.square(leaf))) for leaf in tree)
    for row in rows:
        names = [name for name in weights if name.split("/")[0] == row["stage"]]
        mean = {m: (np.asarray(each[0][m]) + np.asarray(each[1][m])) / 2 for m in names}
        relative = np.sqrt(square(mean.values()) / square(weights[m] for m in names))
        assert row["relative_norm"] == pytest.approx(relative, rel=1e-3)
        noise = sum(float(np.sum(np.var([np.asarray(g[m]) for g in each], axis=0))) for m in names)
        assert row["signal_to_noise"] == pytest.approx(square(mean.values()) / noise, rel=1e-2)
    (single, *_) = surgical.stage_gradients(
        context(parts, batch_size=n), variables["params"], variables["batch_stats"]
    )
    assert single["signal_to_noise"] is None
    assert single["relative_norm"] == pytest.approx(rows[0]["relative_norm"], rel=1e-3)


@pytest.mark.parametrize(
    ("tune", "criterion", "compared"),
    [
        ("surgical", "relative_norm", "parameters"),
        ("surgical:snr", "signal_to_noise", "noise"),
    ],
)
def test_only_the_chosen_stage_and_the_head_train(
    parts: data.Parts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tune: str,
    criterion: str,
    compared: str,
) -> None:
    clf, before = network()
    lines: list[str] = []
    recipe = dataclasses.replace(RECIPE, tune=tune)
    run = lambda **more: fit.fit(
        clf, before, parts.train, parts.validation, recipe, folder=tmp_path, **more
    )
    result = run(say=lines.append)
    rows = json.loads((tmp_path / "stages.json").read_text())
    best = max(rows, key=lambda row: row[criterion])["stage"]
    line = f"surgical: {best}, which has the largest gradient relative to its {compared}"
    assert line in "".join(lines)
    assert [phase.name for phase in result.phases] == ["probe", f"surgical:{best}"]
    after = flatten(result.variables["params"])
    for name, leaf in flatten(before["params"]).items():
        if not name.startswith(("head/", f"backbone/{best}/")):
            assert np.array_equal(after[name], leaf), name
    assert {name.split("/")[1] for name in result.trained if name.startswith("back")} == {best}
    monkeypatch.setattr(surgical, "stage_gradients", None)  # a resumed run reads the file
    assert paths.digest(run().variables) == paths.digest(result.variables)


def test_each_criterion_chooses_its_own_stage(
    parts: data.Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, variables = network()
    rows = [
        {"stage": "stage1", "relative_norm": 2.0, "signal_to_noise": 0.1},
        {"stage": "stage2", "relative_norm": 1.0, "signal_to_noise": 0.2},
    ]
    monkeypatch.setattr(surgical, "stage_gradients", lambda *arguments: rows)
    arguments = variables["params"], variables["batch_stats"]
    phase, _ = surgical.choose(context(parts), *arguments)
    assert phase.name == "surgical:stage1"
    phase, _ = surgical.choose(context(parts, tune="surgical:snr"), *arguments)
    assert phase.name == "surgical:stage2"
    clf, recipe = network()[0], dataclasses.replace(RECIPE, tune="surgical:snr", batch_size=99)
    with pytest.raises(ValueError, match="`tune=surgical:snr` compares .* got one batch of"):
        fit.fit(clf, variables, parts.train, parts.validation, recipe)


@pytest.mark.parametrize("tune", ["surgical:stage9", "surgical:"])
def test_an_unknown_stage_is_an_error(tune: str) -> None:
    with pytest.raises(
        ValueError, match=f"`tune={tune}` names no stage: got '.*', expected one of"
    ):
        rules.phases(tune, network()[0].spec.endpoints)
