"""The attack command: what counts is the file; what it reports; what it says to wrong input."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments import attack
from tl import cli, data, inference, models, reporting
from tl.evaluation import attacked as attacked_module
from tl.evaluation.attacked import Settings
from tl.evaluation.attacked import attack_batches as climb

SIZE, COUNT = 32, 5
SHORT = functools.partial(Settings, steps=6)


@functools.cache
def network() -> tuple[models.Classifier, Any]:
    clf, variables = models.load("squeezenet1_1", weights="random")
    return clf.with_pixels(size=SIZE), variables


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> inference.Pictures:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(COUNT):
        reporting.save_png(folder / f"{i}.png", rng.random((40, 40, 3)).astype(np.float32))
    return inference.read_images(network()[0], str(folder))


@functools.cache
def called(images: bytes) -> np.ndarray:
    clf, variables = network()
    return inference.predict_logits(
        clf, variables, np.frombuffer(images, np.uint8).reshape(-1, SIZE, SIZE, 3)
    ).argmax(axis=1)


@pytest.fixture()
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> reporting.Run:
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    return reporting.start("test", tmp_path / "run", {"seed": 0})


def attacked(
    run: reporting.Run,
    pictures: inference.Pictures,
    how: Settings,
    variables: Any = None,
    **asked: Any,
) -> dict:
    clf, own = network()
    result, sections = attack.attack(
        run,
        clf,
        own if variables is None else variables,
        pictures,
        **{"target": "", "how": how} | asked,
    )
    run.finish(result, reporting.page("title", "lead", sections, facts=run.facts()))
    return json.loads((run.workdir / "result.json").read_text())


def test_what_counts_is_the_file(run: reporting.Run, pictures: inference.Pictures) -> None:
    result = attacked(run, pictures, SHORT(eps=(0.0, 16 / 255, 1.0)), limit=3)
    clf, variables = network()
    variables = jax.device_put(clf.fold_batch_norm(variables))
    assert result["n"] == 3 and list(result["success_rate"]) == ["0/255", "16/255", "255/255"]
    assert (
        result["success_rate"]["0/255"] == 0 and result["success_rate"]["255/255"] == 1
    )  # eps 0 and eps 1
    assert len(result["images"]) == 9
    for row in result["images"]:
        levels = {"0/255": 0, "16/255": 16, "255/255": 255}[row["eps"]]
        saved = data.decode(row["png"]).astype(int)
        original = pictures.images[[str(p) for p in pictures.paths].index(row["path"])].astype(int)
        assert np.abs(saved - original).max() <= levels
        assert row["linf"] * 255 == pytest.approx(np.abs(saved - original).max(), abs=1e-3)
        name = inference.class_table(clf).display(
            int(inference.predict_logits(clf, variables, saved.astype(np.uint8)[None]).argmax())
        )
        assert row["to"] == name and row["survives_png"] == (name != row["from"])
        assert row["ssim"] == pytest.approx(1.0) if levels == 0 else row["ssim"] < 1
    assert len(result["checks"]) == 3 and all(
        check["passed"] for check in result["checks"].values()
    )
    assert result["wrong_before"] == [] and result["success_ci95"]["0/255"][0] == 0.0
    assert result["after"]["16/255"]["as they are"]["success"] == result["success_rate"]["16/255"]


def test_wrong_from_the_start_is_no_success(
    run: reporting.Run, pictures: inference.Pictures
) -> None:
    truth = called(pictures.images.tobytes()).copy()
    truth[[1, 3]] = (truth[[1, 3]] + 1) % 1000
    result = attacked(run, pictures, SHORT(eps=(0.0,)), truth=truth)
    assert (result["n"], result["clean_correct"]) == (COUNT, COUNT - 2)
    assert result["wrong_before"] == [str(pictures.paths[i]) for i in (1, 3)]
    assert (
        result["success_rate"]["0/255"] == 0
        and result["robust_accuracy"]["0/255"] == (COUNT - 2) / COUNT
    )
    with pytest.raises(ValueError, match="names none of the 5 pictures rightly"):
        attacked(run, pictures, SHORT(), truth=(called(pictures.images.tobytes()) + 1) % 1000)


def test_batches_do_not_matter(
    run: reporting.Run, pictures: inference.Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three in batches of two: the last is filled up, the filling is left out."""
    how, read = (
        SHORT(eps=(2 / 255,), early_stop=False),
        lambda rows: [data.decode(row["png"]) for row in rows["images"]],
    )
    three = inference.Pictures(pictures.paths[:3], pictures.images[:3], [])
    whole = read(attacked(run, three, how))
    monkeypatch.setattr(attacked_module, "BATCH", 2)
    again = reporting.start("test", run.workdir.parent / "again", {"seed": 0})
    ragged = read(attacked(again, three, how))
    assert len(ragged) == 3 and np.abs(np.asarray(ragged, int) - np.asarray(whole, int)).max() <= 4
    assert (
        np.mean(np.asarray(ragged) == np.asarray(whole)) > 0.9
    )  # sums of another batch may round otherwise


def test_a_network_with_constant_logits_is_told_by_the_panel(
    run: reporting.Run, pictures: inference.Pictures
) -> None:
    variables = jax.tree.map(np.zeros_like, network()[1])
    panel = attacked(run, pictures, SHORT(steps=2, eps=(8 / 255,), panel=True), variables, limit=2)[
        "checks"
    ]
    failed = {name for name, line in panel.items() if not line["passed"]}
    assert len(panel) == 12
    assert {
        "logits depend on the picture",
        "share of zero gradients",
        "any change at all (Linf, eps = 1) reaches all",
    } <= failed


def test_targets(
    run: reporting.Run, pictures: inference.Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf, variables = network()
    top = int(called(pictures.images.tobytes())[0])
    name = inference.class_table(clf).entries[top].wnid
    with pytest.raises(
        ValueError, match="none of the 1 pictures is left to attack"
    ):  # the target is the label
        attacked(
            run,
            inference.Pictures(pictures.paths[:1], pictures.images[:1], []),
            SHORT(),
            target=name,
        )
    aims = []

    def spied(
        attack: Any, variables: Any, originals: np.ndarray, class_mask: np.ndarray, *rest: Any
    ) -> Any:
        aims.append(np.argwhere(class_mask).tolist())
        return climb(attack, variables, originals, class_mask, *rest)

    monkeypatch.setattr(attack, "attack_batches", spied)
    attacked(run, pictures, SHORT(eps=(0.0,)), target=attack.LEAST, limit=2)
    clean = inference.predict_logits(
        clf, jax.device_put(clf.fold_batch_norm(variables)), pictures.images[:2]
    )
    assert aims == [[[i, int(row.argmin())] for i, row in enumerate(clean)]]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "pdg"}, "unknown attack 'pdg'; nearest: 'pgd'"),
        ({"norm": "l3"}, "unknown norm 'l3'; nearest: 'l"),
        ({"method": "cw"}, "works in the norms l2; got 'linf'"),
        ({"steps": 0}, "must be at least 1; got 0"),
        ({"views": ("jpg",)}, "unknown view 'jpg'; nearest: 'jpeg'"),
        ({"views": ("jpeg",), "method": "apgd_ce"}, "--views are for pgd"),
        (
            {"early_stop": False, "method": "square"},
            "--noearly_stop is for bim, di_fgsm, mi_fgsm, pgd",
        ),
        ({"method": "fgsm", "steps": 40}, "fgsm is one step; got steps=40"),
    ],
)
def test_wrong_settings_are_one_sentence(
    run: reporting.Run, pictures: inference.Pictures, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        attacked(run, pictures, Settings(**changes))


@pytest.mark.parametrize(
    "words", ["300/255", "-1/255", "8/255,2", "eight", "1/0", "nan", "8/", "0.25/255/2"]
)
def test_radii_out_of_range_are_one_sentence(words: str) -> None:
    with pytest.raises(ValueError, match="outside .0, 1.|is not a number; write it as 4/255"):
        cli.radii(words, "linf")
    assert cli.radii("0.25/255, 4/255,0.5", "linf") == [0.25 / 255, 4 / 255, 0.5]
