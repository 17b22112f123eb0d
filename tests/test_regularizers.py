"""Penalties on outputs: their values and gradients, padding, the reference network, training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from tl import data, optim, paths
from tl.evaluation import teachers
from tl.paths import flatten
from tl.training import fit, regularizers, step
from tl.training.program import make_forward, make_network
from tl.training.recipe import Recipe
from tl.training.regularizers import Comparison
from tl.types import Mode, Output

pytestmark = pytest.mark.usefixtures("shared_cache")

SIZE = 16
RECIPE = Recipe(tune="all", epochs=1, batch_size=8, lr=1e-2, backbone_lr=1.0, workers=0)


def pretrained(arch: str = "toy_mobilenet") -> tuple[Any, Any]:
    """A network with a head for other classes than those of the data."""
    return toys.classifier(arch, ("ant", "bee", "cow"), size=SIZE, resize="squash")


def network() -> tuple[Any, Any]:
    clf, variables = pretrained()
    return clf.replace_head(variables, ("blue", "red"), key=jax.random.key(0))


def run(parts: data.Parts, recipe: Recipe, **more: Any) -> fit.FitResult:
    more = {"reference": pretrained()} | more
    return fit.fit(*network(), parts.train, parts.validation, recipe, seed=0, **more)


def draw(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def output(b: int, d: int, seed: int = 0) -> Output:
    """Random outputs of two stages, with a block whose maps must not count."""
    maps = {"stage1": draw(b, 4, 4, 3, seed=seed + 1), "stage1/block0": draw(b, 4, 4, 3, seed=9)}
    maps["stage2"] = draw(b, 2, 2, 5, seed=seed + 2)
    return Output(draw(b, 2, seed=seed + 3), draw(b, d, seed=seed), maps, {})


def compared(b: int = 6, d: int = 4, valid: Any = None, **changes: Any) -> Comparison:
    head = {"kernel": draw(d, 3, seed=5), "bias": draw(3, seed=6)}
    relation = jax.nn.softmax(draw(2, 3, seed=7))
    new_head = {"kernel": draw(d, 2, seed=10), "bias": draw(2, seed=11)}
    params = {"source": head, "reference": {"relation": relation}, "head": new_head}
    targets = jnp.eye(2)[jnp.arange(b) % 2]
    case = Comparison(output(b, d), output(b, d, seed=20), params, targets, valid)
    return case._replace(**changes)


def by_hand_bss(case: Comparison) -> np.ndarray:
    values = np.linalg.svd(np.asarray(case.output.features), compute_uv=False)
    return values[-1] ** 2


def by_hand_delta(case: Comparison) -> np.ndarray:
    assert case.reference is not None
    total = np.zeros(6)
    for name in ("stage1", "stage2"):
        before = np.asarray(case.reference.endpoints[name])
        change = np.asarray(case.output.endpoints[name]) - before
        total += 0.5 * (change**2).sum(axis=(1, 2, 3)) / (before**2).sum(axis=(1, 2, 3))
    return total


def by_hand_co_tuning(case: Comparison) -> np.ndarray:
    head = case.params["source"]
    logits = np.asarray(case.output.features) @ np.asarray(head["kernel"]) + np.asarray(
        head["bias"]
    )
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    relation = np.asarray(case.params["reference"]["relation"])
    return -(relation[np.arange(6) % 2] * log_p).sum(axis=1)


def by_hand_distill(case: Comparison) -> np.ndarray:
    assert case.reference is not None
    ours, theirs = (np.asarray(o.logits) / 4 for o in (case.output, case.reference))
    log = lambda x: x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    kl = (np.exp(log(theirs)) * (log(theirs) - log(ours))).sum(axis=1)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    a, b = (unit(np.asarray(o.features)) for o in (case.output, case.reference))
    return 16 * kl + ((a @ a.T - b @ b.T) ** 2).mean(axis=1)


def by_hand_bi_tuning(case: Comparison) -> np.ndarray:
    """Image by image; the classes alternate, and the projection has 3 dimensions."""
    features = np.asarray(case.output.features, np.float64)
    head, source = ({n: np.asarray(v) for n, v in case.params[m].items()} for m in TREES)
    unit = lambda v: v / np.linalg.norm(v)
    ends = [unit(np.append(row, 1.0)) for row in features]
    projected = [unit(row @ source["kernel"] + source["bias"]) for row in features]
    result = []
    for i in range(6):
        row = unit(np.append(head["kernel"][:, i % 2], head["bias"][i % 2]))
        total = 0.0
        for query, keys, first in ((row, ends, []), (projected[i], projected, [i])):
            p = {j: np.exp(query @ keys[j] / 0.07) for j in range(6) if j not in first}
            total -= np.mean([np.log(p[j] / sum(p.values())) for j in p if j % 2 == i % 2])
        result.append(total)
    return np.array(result)


TREES = ("head", "source")


# Name -> the value for `compared()`, computed with NumPy.
TABLE = {
    "bss": by_hand_bss,
    "delta": by_hand_delta,
    "co_tuning": by_hand_co_tuning,
    "bi_tuning": by_hand_bi_tuning,
    "distill": by_hand_distill,
}


def test_every_penalty_has_a_value_by_hand() -> None:
    assert TABLE.keys() == regularizers.PENALTIES.keys()


@pytest.mark.parametrize("name", TABLE)
def test_a_penalty_equals_its_value_by_hand(name: str) -> None:
    value = regularizers.PENALTIES[name].value(compared())
    np.testing.assert_allclose(value, TABLE[name](compared()), rtol=2e-5)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("d", [4, 16])
def test_padded_slots_have_no_effect_on_a_penalty(name: str, d: int) -> None:
    valid = jnp.arange(8) < 6
    padded = compared(8, d, valid)
    alone = jax.tree.map(lambda x: x[:6], padded._replace(params={}))._replace(
        params=padded.params, valid=None
    )
    nonsense = lambda x: x.at[6:].set(77.0)
    padded = padded._replace(
        output=jax.tree.map(nonsense, padded.output),
        reference=jax.tree.map(nonsense, padded.reference),
    )
    value, expected = (regularizers.PENALTIES[name].value(g) for g in (padded, alone))
    np.testing.assert_allclose(value[:6] if value.ndim else value, expected, rtol=2e-5)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_the_gradient_of_the_smallest_singular_value(shape: tuple[int, int]) -> None:
    def value(rows: jax.Array) -> jax.Array:
        case = compared(*shape)
        return regularizers.bss(case._replace(output=case.output._replace(features=rows)))

    rows = draw(*shape)
    u, s, v = np.linalg.svd(np.asarray(rows), full_matrices=False)
    np.testing.assert_allclose(jax.grad(value)(rows), 2 * s[-1] * np.outer(u[:, -1], v[-1]), 1e-3)


def test_bi_tuning_draws_images_of_a_class_together() -> None:
    """Features in two groups have a smaller value than the same features with other classes."""
    grouped = jnp.eye(2, 4)[jnp.arange(6) % 2] + 0.01 * draw(6, 4)
    case = compared()
    case = case._replace(output=case.output._replace(features=grouped))
    mixed = case._replace(targets=jnp.eye(2)[jnp.arange(6) // 3])
    assert (regularizers.bi_tuning(case) < regularizers.bi_tuning(mixed)).all()
    alone = case._replace(targets=jnp.eye(6), params={**case.params, "head": wide_head()})
    projected = regularizers._contrast(jnp.eye(6), jnp.zeros((6, 6)), 1 - jnp.eye(6))
    np.testing.assert_array_equal(projected, np.zeros(6))  # no other image of the class
    assert np.isfinite(regularizers.bi_tuning(alone)).all()


def wide_head() -> dict[str, jax.Array]:
    return {"kernel": draw(4, 6, seed=12), "bias": draw(6, seed=13)}


@pytest.mark.parametrize("name", ["delta", "distill"])
def test_a_network_that_equals_its_reference_has_no_penalty(name: str) -> None:
    same = compared(reference=output(6, 4))
    value = regularizers.PENALTIES[name].value(same)
    np.testing.assert_allclose(value, np.zeros(6), atol=1e-6)


# ---- the step ------------------------------------------------------------------------------------


def test_the_reference_is_an_argument_of_the_step_and_receives_no_gradient(
    parts: data.Parts,
) -> None:
    """Another reference in the state changes the loss of the same compiled step."""
    clf, variables = network()
    prepared = regularizers.prepare(
        regularizers.Penalty("delta", 1.0), (clf, variables), parts.train
    )
    params = {**variables["params"], **prepared.extras}
    (_, partition), *_ = fit.check_recipe(clf, variables["params"], RECIPE)
    partition = regularizers.add_labels(partition, prepared.extras)
    optimizer = optim.partitioned(partition, optim.sgd(), lambda _: 0.1)
    net = make_network(clf, "", Mode.EVAL, frozenset())
    train_step = step.make_train_step(
        make_forward(clf, "", Mode.EVAL, frozenset()),
        optimizer,
        loss=regularizers.make_loss(prepared, net, ""),
    )
    images = toys.noise(4, SIZE, SIZE, 3)
    batch = step.Examples(images, np.arange(4, dtype=np.int32) % 2, np.ones(4, bool))
    begin = lambda params: step.init(
        params, partition, optimizer, stats=variables["batch_stats"], key=jax.random.key(0)
    )
    state, metrics = train_step(begin(params), batch)
    np.testing.assert_allclose(metrics["loss"], np.log(2), rtol=1e-5)  # the reference is the start
    frozen = paths.digest({"reference": state.frozen["reference"]})
    assert frozen == paths.digest(prepared.extras)
    other = {**params, "reference": jax.tree.map(lambda x: 1.1 * x, prepared.extras["reference"])}
    _, moved = train_step(begin(other), batch)
    assert moved["loss"] > metrics["loss"] + 1e-3
    assert train_step._cache_size() == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", TABLE)
def test_a_penalty_trains_and_leaves_no_trace_in_the_network(
    parts: data.Parts, name: str, tmp_path: Path
) -> None:
    word = "distill:teacher" if name == "distill" else name
    recipe = dataclasses.replace(RECIPE, tune="last:1", penalty=word, epochs=2)
    before, folder = network()[1], tmp_path / "checkpoints"
    result = run(
        parts, recipe, folder=folder, **({"reference": teacher()} if name == "distill" else {})
    )
    assert jax.tree.structure(result.variables) == jax.tree.structure(before)
    after = flatten(result.variables["params"])
    for leaf, value in flatten(before["params"]).items():
        assert np.array_equal(after[leaf], value) == (leaf not in result.trained), leaf
    assert result.source == ("images" if name == "distill" else "cached stage1")
    own = {"co_tuning": 16 * 3 + 3, "bi_tuning": 16 * 128 + 128}.get(name, 0)
    sizes = sum(after[leaf].size for leaf in result.trained)
    assert result.trainable_params == sizes + own
    assert ("source" in [group["group"] for group in result.groups]) == bool(own)
    again = run(
        parts, recipe, folder=folder, **({"reference": teacher()} if name == "distill" else {})
    )
    assert paths.digest(again.variables) == paths.digest(result.variables)


def teacher() -> tuple[Any, Any]:
    """Another architecture, at another size, for the classes of the data."""
    return toys.classifier("toy_vgg", ("blue", "red"), size=24, resize="squash")


def test_delta_keeps_the_feature_maps_near_those_of_the_start(parts: data.Parts) -> None:
    clf, before = network()
    images = np.stack([clf.prepare(data.decode(e.path)) for e in parts.test.examples])
    images01 = (images / np.float32(255)).astype(np.float32)
    apply = jax.jit(clf.apply)

    def moved(penalty: str) -> float:
        recipe = dataclasses.replace(RECIPE, tune="last:1", epochs=4, penalty=penalty)
        after = run(parts, recipe).variables
        maps = [apply(tree, images01).endpoints["top"] for tree in (before, after)]
        return float(np.sum((maps[0] - maps[1]) ** 2))

    assert 0 < moved("delta:30") < 0.5 * moved("")


def test_the_relation_is_the_mean_prediction_for_each_class(parts: data.Parts) -> None:
    clf, variables = pretrained()
    spec = dataclasses.replace(parts.train, classes=("red", "blue", "nothing"))
    relation = regularizers.class_relation(clf, variables, spec)
    images = np.stack([clf.prepare(data.decode(e.path)) for e in spec.examples])
    logits = jax.jit(clf.logits)(variables, (images / np.float32(255)).astype(np.float32))
    probabilities = np.asarray(jax.nn.softmax(logits))
    labels = np.array([e.label for e in spec.examples])
    expected = [probabilities[labels == label].mean(axis=0) for label in (0, 1)]
    np.testing.assert_allclose(relation[:2], expected, atol=1e-5)
    np.testing.assert_allclose(relation[2], probabilities.mean(axis=0), atol=1e-5)


def test_a_teacher_of_other_classes_learns_a_probe(
    parts: data.Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(RECIPE, penalty="distill:bees")
    monkeypatch.setattr(teachers.models, "load", lambda name: pretrained("toy_vgg_bn"))
    loaded = teachers.load(*pretrained(), recipe)
    assert loaded is not None
    taught, trained = teachers.taught(loaded, recipe, parts, 0)
    assert taught.classes is not None
    assert taught.classes.display_names == parts.train.classes == ("blue", "red")
    images = np.stack([taught.prepare(data.decode(e.path)) for e in parts.test.examples])
    logits = jax.jit(taught.logits)(trained, (images / np.float32(255)).astype(np.float32))
    labels = np.array([e.label for e in parts.test.examples])
    assert (np.asarray(logits).argmax(axis=1) == labels).all()
    known = teacher()
    assert teachers.taught(known, recipe, parts, 0) is known
    for penalty, expected in (("", None), ("co_tuning", known)):
        other = dataclasses.replace(recipe, penalty=penalty)
        assert teachers.load(*known, other) == expected
        if expected:
            assert teachers.taught(pretrained(), other, parts, 0)[0] is pretrained()[0]


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"penalty": "dleta"}, "unknown `penalty`: got 'dleta', expected one of bss.*'delta'"),
        ({"penalty": "bss:-1"}, "`penalty=bss:-1` has no strength: got '-1', expected a number of"),
        ({"penalty": "bss:x"}, "`penalty=bss:x` has no strength: got 'x'"),
        ({"penalty": "distill"}, "`penalty=distill` names no teacher: expected a network or the"),
        (
            {"penalty": "bss", "tune": "probe"},
            "`penalty=bss` needs gradient steps: got `tune=probe`",
        ),
        (
            {"penalty": "bss", "tune": "head"},
            "`penalty=bss` acts on the backbone: got `tune=head`, which trains the head alone",
        ),
        (
            {"penalty": "bss", "adversarial": "pgd"},
            "adversarial training has a loss of its own: got `adversarial=pgd` and `penalty=bss`",
        ),
    ],
)
def test_a_penalty_that_cannot_act_is_an_error(changes: dict[str, Any], message: str) -> None:
    clf, variables = network()
    with pytest.raises(ValueError, match=message):
        fit.check_recipe(clf, variables["params"], dataclasses.replace(RECIPE, **changes))


def test_a_missing_or_changed_reference_is_an_error(parts: data.Parts, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, tune="last:1", penalty="co_tuning")
    with pytest.raises(ValueError, match="`penalty=co_tuning` compares with another network"):
        run(parts, recipe, reference=None)
    clf, variables = pretrained()
    headless = {**variables, "params": {"backbone": variables["params"]["backbone"]}}
    with pytest.raises(ValueError, match="`penalty=co_tuning` needs the linear head of the pre"):
        run(parts, recipe, reference=(clf, headless))
    with pytest.raises(ValueError, match="`penalty=bi_tuning` compares features with the classes"):
        regularizers.prepare(regularizers.Penalty("bi_tuning", 1.0), (clf, headless), parts.train)
    run(parts, recipe, folder=tmp_path)
    head = {**variables["params"]["head"], "bias": np.ones(3, np.float32)}
    other = {**variables, "params": {**variables["params"], "head": head}}
    with pytest.raises(ValueError, match="the reference network was .*, is "):
        run(parts, recipe, folder=tmp_path, reference=(clf, other))
