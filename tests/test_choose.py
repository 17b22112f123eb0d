"""Scores that predict which network suits a data set, and the ranking of networks by them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import toys

from tl import pages, reporting
from tl.evaluation import choose
from tl.evaluation import transferability as scores
from tl.evaluation.before import TransferSettings
from tl.evaluation.transferability import SCORES, Evidence, PerImage
from tl.training import probe
from tl.training.recipe import Recipe


def example(seed: int, n: int, d: int, k: int, z: int, signal: float = 0.7) -> Evidence:
    """Nonnegative features, as after a ReLU, that depend on the class, and source probabilities."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % k
    means = rng.normal(size=(n, d)), rng.normal(size=(k, d))
    features = np.maximum(means[0] + signal * means[1][labels], 0).astype(np.float32)
    logits = rng.normal(size=(n, z)) + 2 * signal / 0.7 * rng.normal(size=(k, z))[labels]
    source = np.exp(logits)
    return Evidence(features, labels, k, source / source.sum(axis=1, keepdims=True))


CASES = {
    "tall": example(0, 120, 24, 3, 10),
    "wide": example(1, 40, 64, 4, 6),
    "two": example(2, 60, 60, 2, 5),
    "many": example(3, 500, 200, 37, 50),
}
# LogME.py, LEEP.py and NCE.py of thuml/LogME; hscore.py of thuml/Transfer-Learning-Library, and the
# same with scikit-learn's LedoitWolf as Ibrahim et al. define it.
PUBLISHED = {
    "tall": {
        "logme": -0.370516269154765,
        "leep": -0.42628321599152474,
        "nce": -0.21531909241001285,
        "plain": 1.4361984300515735,
        "h_score": 1.0712329545625816,
    },
    "wide": {
        "logme": 1.3741415958167127,
        "leep": -0.6696813122567981,
        "nce": -0.4500980407306361,
        "plain": 3.0,
        "h_score": 1.8269846506831615,
    },
    "two": {
        "logme": 0.001942497404953395,
        "leep": -0.5373015878589382,
        "nce": -0.5511396491116052,
        "plain": 1.0,
        "h_score": 0.9422723649447686,
    },
    "many": {
        "logme": 0.6671866376364014,
        "leep": -1.8795005970187566,
        "nce": -1.0869569535585983,
        "plain": 27.920371715753117,
        "h_score": 17.137343146903763,
    },
}


def value(name: str, evidence: Evidence) -> float:
    result = SCORES[name].function(evidence)
    return float(result.correct.mean()) if isinstance(result, PerImage) else result


@pytest.mark.parametrize("case", CASES)
def test_scores_equal_the_code_of_their_authors(case: str) -> None:
    e, expected = CASES[case], PUBLISHED[case]
    plain = scores.h_score(e.features, e.labels, e.classes, regularized=False)
    assert plain == pytest.approx(expected["plain"], abs=1e-9)
    for name in ("logme", "leep", "nce", "h_score"):
        assert value(name, e) == pytest.approx(expected[name], abs=1e-9), name


@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_larger_for_informative_features_and_ignores_the_order(name: str) -> None:
    for case in ("tall", "wide"):
        e = CASES[case]
        shuffled = np.random.default_rng(0).permutation(len(e.labels))
        noise = example(5, len(e.labels), e.features.shape[1], e.classes, 10, signal=0.0)
        assert value(name, e) > value(name, noise)
        again = Evidence(
            e.features[shuffled],
            e.labels[shuffled],
            e.classes,
            None if e.source is None else e.source[shuffled],
        )
        # Folds and the pairs of PARC are drawn by position.
        atol = 0.1 if name in ("logistic", "parc") else 1e-9
        assert value(name, again) == pytest.approx(value(name, e), abs=atol)


@pytest.mark.parametrize("name", [name for name, score in SCORES.items() if score.rotations])
def test_a_rotation_of_the_features_changes_nothing(name: str) -> None:
    e = CASES["tall"]
    q = np.linalg.qr(np.random.default_rng(1).normal(size=(24, 24)))[0]
    rotated = Evidence(e.features.astype(np.float64) @ q, e.labels, e.classes, e.source)
    assert value(name, rotated) == pytest.approx(value(name, e), abs=1e-6)


@pytest.mark.parametrize("name", SCORES)
def test_a_constant_feature_and_an_image_of_zeros_are_no_problem(name: str) -> None:
    e = CASES["tall"]
    features = e.features.copy()
    features[:, 3], features[7] = 0.0, 0.0
    features = np.concatenate([features, np.full((len(features), 1), 2.5, np.float32)], axis=1)
    assert np.isfinite(value(name, Evidence(features, e.labels, e.classes, e.source)))


def test_parc_is_a_rank_correlation_of_all_pairs() -> None:
    from scipy import stats

    e = CASES["tall"]
    x = (e.features - e.features.mean(0)) / e.features.std(0)
    pairs = np.triu_indices(len(x), 1)
    expected = stats.spearmanr(
        1 - np.corrcoef(x)[pairs], e.labels[pairs[0]] != e.labels[pairs[1]]
    ).statistic
    assert scores.parc(e.features, e.labels) == pytest.approx(expected, abs=1e-6)


def test_neighbors_are_other_images_and_copies_do_not_vote() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(20, 8)).astype(np.float32)
    labels = np.arange(20) % 2
    twice = Evidence(np.concatenate([noise, noise]), np.concatenate([labels, labels]), 2)
    assert scores.neighbors(twice, k=1).correct.all()  # each copy predicts the other
    groups = np.concatenate([np.arange(20), np.arange(20)])
    apart = Evidence(twice.features, twice.labels, 2, groups=groups)
    alone = scores.neighbors(Evidence(noise, labels, 2), k=1).correct
    np.testing.assert_array_equal(scores.neighbors(apart, k=2).correct[:20], alone)
    # More neighbors than there are other images: all of them vote.
    assert scores.neighbors(Evidence(noise, labels, 2), k=50).correct.shape == (20,)


def test_the_held_out_results_of_a_probe_are_those_of_its_scores() -> None:
    e = CASES["tall"]
    for method in probe.METHODS:
        fitted = probe.fit(e.features, e.labels, e.classes, method=method)
        assert fitted.held_out.correct.mean() == pytest.approx(fitted.scores[fitted.strength])
        assert (fitted.held_out.log_likelihood < 0).all()


def test_leave_one_out_is_a_fit_without_each_example() -> None:
    e = CASES["wide"]
    n = len(e.labels)
    everywhere = probe.fit(e.features, e.labels, 4, method="ridge", fold_count=n)
    bank = probe.factorize(e.features, np.ones(n))
    held_out = lambda fold: next(
        probe._ridge_held_out(bank, e.labels, np.ones(n), 4, fold, (everywhere.strength,))
    )
    together = held_out(np.arange(n))
    for i in (0, 5):  # the other rows have no meaning
        alone = held_out(np.where(np.arange(n) == i, 0, -1))
        np.testing.assert_allclose(together[i], alone[i], atol=1e-12)
    correct = together.argmax(axis=1) == e.labels
    np.testing.assert_array_equal(everywhere.held_out.correct, correct)


# ---- ranking -------------------------------------------------------------------------------------


def test_ranks_have_intervals_and_equal_networks_are_not_distinguished() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(size=400)
    values = np.stack([common, common + 0.01 * rng.normal(size=400), common - 1.0])
    rows = choose.ranks(values)
    assert sorted(row["rank"] for row in rows) == [1, 2, 3]
    assert rows[2]["rank_ci95"] == [3, 3]
    assert rows[2]["behind"] == pytest.approx(1.0, abs=0.01)
    assert rows[2]["behind_ci95"][0] > 0.9
    best, close = sorted(rows[:2], key=lambda row: row["rank"])
    assert best["behind"] == 0.0 and close["behind_ci95"][0] <= 0 <= close["behind_ci95"][1]
    speeds = {"a": 10.0, "b": 30.0, "c": 90.0}
    named = [
        row | {"name": n, "images_per_second": speeds[n]}
        for row, n in zip(rows, "abc", strict=True)
    ]
    named.sort(key=lambda row: row["rank"])
    advice = choose.recommend(named)
    assert advice["best"] == named[0]["name"] and "c" not in advice["indistinguishable"]
    near = named[1]["behind"] <= named[1]["behind_se"]
    assert advice["recommended"] == ("b" if near else named[0]["name"])
    assert choose.recommend([named[0], named[2]])["recommended"] == named[0]["name"]


def test_agreement_is_one_for_the_same_order_and_minus_one_for_the_reverse() -> None:
    correct = np.arange(100)[None] < np.array([20, 40, 60, 80])[:, None]
    accuracy = correct.mean(axis=1)
    assert choose.agreement(accuracy, correct)["value"] == pytest.approx(1.0)
    reverse = choose.agreement(-accuracy, correct)
    assert reverse["value"] == pytest.approx(-1.0) and reverse["ci95"][1] < 0
    assert choose.agreement(np.zeros(4), correct)["value"] == 0.0


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory):
    """Two toy networks on two colors, with the truth: result, run folder."""
    folder = tmp_path_factory.mktemp("choose")
    spec = toys.color_folder(folder / "data", 12, side=16)
    networks = [
        choose.Candidate(name, endpoint, *toys.classifier(name, 3, size=16))
        for name, endpoint in (("toy_mobilenet", "features"), ("toy_vgg", "features"))
    ]
    headless = networks[1].clf.with_head(None, None)
    networks[1] = networks[1]._replace(clf=headless)
    run = reporting.start("choose", str(folder / "run"), {})
    settings = TransferSettings(Recipe(tune="probe"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TL_CACHE", str(folder / "cache"))
        result = choose.choose(run, networks, spec, settings=settings, truth=True)
        pages.finish(run, result)
    return result, run.workdir


def test_choose_ranks_networks_and_compares_with_the_truth(chosen) -> None:
    result, folder = chosen
    assert result["n"] == 18 and len(result["rows"]) == 2
    for row in result["rows"]:
        assert set(SCORES) <= set(row)
        assert row["images_per_second"] > 0 and 0 <= row["truth"] <= 1
        assert row["logistic_ci95"][0] <= row["logistic"] <= row["logistic_ci95"][1]
    assert [row["rank"] for row in result["rows"]] == [1, 2]
    assert result["best"] == result["rows"][0]["name"]
    assert result["recommended"] in [row["name"] for row in result["rows"]]
    assert set(result["tau"]) <= set(SCORES) and "logme" in result["tau"]
    saved = json.loads((folder / "result.json").read_text())
    assert saved["recommended"] == result["recommended"]
    page = pages.PAGES["choose"](saved, folder)
    assert len(page.sections) == 5 and "Agreement" in "".join(page.sections)
    assert result["recommended"] in page.lead


@pytest.mark.parametrize(
    ("names", "endpoints", "message"),
    [
        (["toy_vgg"], ["features"], "at least two candidates"),
        (["toy_vgg", "toy_vgg"], ["features"], "each once"),
        (["toy_vgg"], ["features", "stage9"], "no endpoint 'stage9'; nearest: .*'stage"),
        (["toy_vgg", "toy_wgg"], ["features"], "toy_wgg"),
    ],
)
def test_wrong_candidates_are_refused(
    names: list[str],
    endpoints: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = toys.color_folder(tmp_path / "data", 2, side=8)
    load = choose.models.load
    either = lambda name: toys.classifier(name) if name in toys.TOYS else load(name)
    monkeypatch.setattr(choose.models, "load", either)
    with pytest.raises(ValueError, match=message):
        choose.candidates(names, endpoints, spec)
