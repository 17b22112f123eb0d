"""The result, the files and the page of `explain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import toys
from toys import toy_zoo  # noqa: F401  # a fixture

from tl import data, inference, models, pages, pixels, reporting
from tl.explain import checks, drawing, report

SIDE = 16


def test_colors_have_the_sign_and_the_scale_of_the_map():
    values = np.array([[-1.0, 0.0], [0.5, 1.0]], np.float32)
    drawn = drawing.colors(values, signed=True).astype(int)
    (blue, white), (pale, red) = drawn
    assert blue[2] > blue[0] + 100 and red[0] > red[2] + 100
    assert white.min() > 240 and pale[0] > pale[2] and pale.min() > red.min()
    luminance = drawing.colors(np.linspace(0, 1, 50)[None], signed=False) @ [0.2, 0.7, 0.1]
    assert (np.diff(luminance[0]) > 0).all()
    np.testing.assert_array_equal(
        drawing.colors(values, signed=True), drawing.colors(7 * values, signed=True)
    )


def test_a_map_of_zeros_is_drawn_without_color():
    image = toys.smooth(8, 8)
    drawn = drawing.overlay(image, np.zeros((8, 8), np.float32), signed=True)
    assert (np.ptp(drawn.astype(int), axis=-1) == 0).all()


def test_top_patches_do_not_overlap_and_have_the_largest_sums():
    values = np.zeros((12, 12), np.float32)
    values[2:5, 3:6], values[8:11, 0:3], values[6, 9] = 2.0, 1.0, -5.0
    assert drawing.top_patches(values, 3, 3) == [(2, 3), (8, 0)]
    assert drawing.top_patches(-np.abs(values), 3, 3) == []


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no method": ({"method": ()}, "`method` must name different methods"),
    "twice": ({"method": ("ig", "ig")}, "`method` must name different methods: got 'ig,ig'"),
    "unknown": ({"method": ("gradcm",)}, "unknown method 'gradcm'; nearest: 'gradcam'"),
    "test": ({"tests": ("deletio",)}, "an unknown test 'deletio'; nearest: 'deletion'"),
    "radius": ({"map_eps": 8.0}, r"`map_eps` must be in \[0, 1\]: got 8.0; write 8/255"),
    "one node": ({"nodes": 1}, "`nodes` must be at least 2: got 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_that_cannot_be_computed_are_one_sentence(case: str):
    changes, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        report.methods(report.ExplainSettings(**changes))


def test_each_method_receives_its_own_settings():
    chosen = report.methods(report.ExplainSettings(("ig", "gradcam"), nodes=7, endpoint="stage2"))
    assert (chosen["ig"].passes, chosen["gradcam"].endpoint) == (7, "stage2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run of two images and two targets; Grad-CAM is zero for one of the targets."""
    folder = tmp_path_factory.mktemp("explain")
    files = []
    for seed in range(2):
        files.append(folder / f"{seed}.png")
        reporting.save_png(files[-1], toys.smooth(SIDE, SIDE, seed=seed))
    clf, variables = toys.classifier("toy_vgg", 2, size=SIDE)
    head = dict(variables["params"]["head"])
    head["kernel"] = np.stack([-np.ones(8), np.ones(8)], axis=1).astype(np.float32)
    variables = {**variables, "params": {**variables["params"], "head": head}}
    settings = report.ExplainSettings(
        ("gradient_x_input", "gradcam"), ("class 0", "class 1 vs class 0"), steps=4, slots=4
    )
    images = inference.read_images(clf, [str(file) for file in files])
    run = reporting.start("explain", str(folder / "run"), {"seed": 0})
    result = report.explain_images(run, clf, variables, images, settings)
    pages.finish(run, result)
    return folder / "run", json.loads((folder / "run" / "result.json").read_text())


def test_the_result_has_one_row_per_image_and_target_and_one_per_method(finished: Any):
    folder, result = finished
    targets = [(Path(row["path"]).name, row["target"]) for row in result["images"]]
    both = ("class 0", "class 1 vs class 0")
    assert targets == [(file, target) for file in ("0.png", "1.png") for target in both]
    assert list(result["tests"]) == ["gradient_x_input", "gradcam", "edges", "random"]
    assert set(result["tests"]["gradcam"]) == set(checks.CHECKS) - {
        "completeness",
        "random_labels",
        "fragility",
        "mosaic",
        "watermark",
    }
    for row in result["images"]:
        for name, drawn in row["maps"].items():
            values = np.load(folder / drawn["npy"])
            assert (values.dtype, values.shape) == (np.float32, (SIDE, SIDE))
            np.testing.assert_allclose(drawn["sum"], values.sum(), rtol=1e-4, atol=1e-6)
            colors = drawing.colors(values, signed=drawn["signed"])
            np.testing.assert_array_equal(data.decode(folder / drawn["png"]), colors)
            assert drawn["signed"] == (name == "gradient_x_input")
    zero = [[name for name, d in row["maps"].items() if d["zero"]] for row in result["images"]]
    assert zero == [["gradcam"], [], ["gradcam"], []]


def test_the_page_names_failed_tests_and_zero_maps_and_is_drawn_again(finished: Any):
    folder, result = finished
    html = (folder / "report.html").read_text()
    assert "The map is zero everywhere: nothing raises the score." in html
    assert "edges (control)" in html and "random (control)" in html
    for name in ("gradient_x_input", "gradcam"):
        assert pages.explain.title(name, result["tests"][name], most=2) in html
    for name in ("gradient_x_input", "gradcam"):  # two images decide nothing
        assert result["tests"][name]["deletion"]["passed"] is None
    assert result["tests"]["random"]["deletion"]["passed"] is False
    lines = list(pages.explain.lines(result))
    assert len(lines) == 6 and "0.png: the map of gradcam is zero everywhere" in lines
    html = pages.redraw(folder).read_text()
    assert all(text in html for text in ("Deletion area", "ROAD", "Correlation of the maps"))


def test_a_title_names_the_failed_tests_or_counts_them():
    failing = {"value": 0.0, "passed": False}
    row = {"deletion": failing, "road": failing, "seeds": {"value": 1.0}}
    assert pages.explain.title("ig", row, most=2) == "ig (fails deletion, road)"
    row |= {"insertion": failing, "random_labels": {"value": 0.0, "passed": True}}
    assert pages.explain.title("ig", row, most=2) == "ig (fails 3 of 4 tests)"
    expected = "edges (control; fails deletion, insertion, road)"
    assert pages.explain.title("edges", row) == expected


def test_results_with_fewer_tests_are_drawn(finished: Any):
    folder, result = finished
    old = ("completeness", "randomization", "deletion", "insertion", "sparseness")
    fewer = {n: {k: r for k, r in row.items() if k in old} for n, row in result["tests"].items()}
    sections = "".join(pages.explain.page(result | {"tests": fewer}, folder).sections)
    assert "Deletion area" in sections and "ROAD" not in sections


def test_the_page_says_how_far_an_attack_moves_the_maps(finished: Any):
    folder, result = finished
    assert "Maps under attack" not in "".join(pages.explain.page(result, folder).sections)
    moved = {"value": 0.25, "ci95": [0.2, 0.3], "top": 0.125, "noise": 0.75, "kept": 0.5}
    tests = result["tests"] | {"gradcam": result["tests"]["gradcam"] | {"fragility": moved}}
    sections = "".join(pages.explain.page(result | {"tests": tests}, folder).sections)
    cells = ("Maps under attack", "0.250 (0.200 to 0.300)", "0.750", "12.5%", "50.0%")
    assert all(cell in sections for cell in cells)
    assert "Verdicts" in sections
    tests = {"gradcam": {"fragility": moved}, "edges": {}}  # without a limit, and not tested
    alone = result | {"tests": tests, "images": []}
    assert "Verdicts" not in "".join(pages.explain.page(alone, folder).sections)
    assert list(pages.explain.lines(alone)) == ["gradcam: fragility 0.250"]


def test_with_labels_only_correct_images_are_explained(tmp_path: Path):
    clf, variables = toys.classifier("toy_vgg", 2, size=SIDE)
    images = np.stack([toys.smooth(SIDE, SIDE, seed=seed) for seed in range(4)])
    loaded = inference.LoadedImages([tmp_path / f"{i}.png" for i in range(4)], images, [])
    labels = inference.predict_logits(clf, variables, images).argmax(axis=1)
    labels[1] = 1 - labels[1]
    run = reporting.start("explain", str(tmp_path / "run"), {"seed": 0})
    settings = report.ExplainSettings(
        ("edges",), steps=2, slots=4, limit=2, tests=("sparseness", "deletion")
    )
    result = report.explain_images(run, clf, variables, loaded, settings, labels)
    assert [Path(row["path"]).name for row in result["images"]] == ["0.png", "2.png"]
    assert result["n"] == 2
    assert [set(row) for row in result["tests"].values()] == [{"sparseness", "deletion"}] * 2
    with pytest.raises(ValueError, match="classifies none of the 4 images as `labels` says"):
        labels = 1 - inference.predict_logits(clf, variables, images).argmax(axis=1)
        report.explain_images(run, clf, variables, loaded, settings, labels)


@pytest.mark.full
def test_the_predicted_class_is_the_default_target(tmp_path: Path):
    clf, variables = toys.classifier("toy_vgg", 2, size=SIDE)
    image = toys.smooth(SIDE, SIDE)[None]
    images = inference.LoadedImages([tmp_path / "a.png"], image, [])
    run = reporting.start("explain", str(tmp_path / "run"), {"seed": 0})
    settings = report.ExplainSettings(("gradient_x_input",), steps=4, slots=4)
    (row,) = report.explain_images(run, clf, variables, images, settings)["images"]
    logits = np.asarray(clf.logits(variables, jnp.asarray(pixels.to_images01(image))))
    assert row["target"] == f"class {logits[0].argmax()}" == row["predicted"][0]["name"]


def test_an_objective_is_explained_and_read_by_the_tests(tmp_path: Path):
    clf, variables = toys.classifier("toy_vgg", 2, size=SIDE)
    images = np.stack([toys.smooth(SIDE, SIDE, seed=seed) for seed in range(2)])
    loaded = inference.LoadedImages([tmp_path / f"{i}.png" for i in range(2)], images, [])
    photograph = tmp_path / "photograph.png"
    reporting.save_png(photograph, toys.smooth(SIDE, SIDE, seed=9))
    settings = report.ExplainSettings(
        ("gradient", "kernel_shap"),
        ("channel:stage2:1", "similarity:features"),
        str(photograph),
        masks=14,
        grid=2,
        steps=2,
        slots=4,
    )
    run = reporting.start("explain", str(tmp_path / "run"), {"seed": 0})
    result = report.explain_images(run, clf, variables, loaded, settings)
    assert [row["target"] for row in result["images"]] == [*settings.target] * 2
    assert (run.failures, result["score"]) == ({}, "objective")

    other = inference.read_images(clf, [str(photograph)]).images
    rows = pixels.to_images01(np.concatenate([images, other]))
    output = clf.with_dtype("float32").apply(variables, jnp.asarray(rows))
    *features, compared = np.asarray(output.features)
    channel = np.asarray(output.endpoints["stage2"])[:2, :, :, 1].mean()
    cosines = [x @ compared / np.sqrt((x @ x) * (compared @ compared)) for x in features]
    expected = np.mean([channel, np.mean(cosines)])
    tests = result["tests"]
    np.testing.assert_allclose(tests["gradient"]["deletion"]["curve"][0], expected, rtol=1e-4)
    np.testing.assert_allclose(tests["gradient"]["insertion"]["curve"][-1], expected, rtol=1e-4)
    assert tests["kernel_shap"]["completeness"]["value"] < 1e-3
    assert "random_labels" not in tests["gradient"]
    assert {"road", "mu_fidelity", "input_shift", "randomization"} <= set(tests["gradient"])
    page = Path(pages.finish(run, result)).read_text()
    assert "Which pixels of 2 images raise or lower objectives of toy_vgg" in page
    assert "Why similarity:features?" in page
    with pytest.raises(ValueError, match="`mosaics` and `marks` explain classes: got `target` ch"):
        report.explain_images(run, clf, variables, loaded, settings._replace(mosaics=1))


@pytest.mark.usefixtures("toy_zoo")
def test_attacked_images_and_a_second_network_are_explained_beside(tmp_path: Path):
    clf, variables = toys.classifier("toy_vgg", 2, size=SIDE)
    images = np.stack([toys.smooth(SIDE, SIDE, seed=seed) for seed in range(2)])
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, image in zip(files, images, strict=True):
        reporting.save_png(file, image)
    loaded = inference.read_images(clf, [str(file) for file in files])
    compared = ("insertion", "sparseness", "edge_alignment")
    run = reporting.start("explain", str(tmp_path / "attacked"), {"seed": 0})
    settings = report.ExplainSettings(
        ("gradient",), steps=2, slots=4, tests=compared, beside="attacked", eps=0.1
    )
    result = report.explain_images(run, clf, variables, loaded, settings)
    other = result["beside"]
    assert set(other["correlation"]) == {"gradient", "edges"} and other["what"] == "attacked"
    attacked = np.stack([data.decode(run.workdir / row["image"]) for row in other["images"]])
    assert 0 < np.abs(attacked.astype(int) - loaded.images).max() <= 25
    assert other["correlation"]["edges"]["value"] < 1
    before, after = result["tests"]["gradient"], other["tests"]["gradient"]
    for key in compared:
        row = other["difference"]["gradient"][key]
        assert row["value"] == pytest.approx(after[key]["value"] - before[key]["value"])
        assert row["ci95"][0] <= row["value"] <= row["ci95"][1]
    page = Path(pages.finish(run, result)).read_text()
    assert "After the attack" in page and "Difference of the tests" in page
    (line,) = [x for x in pages.explain.lines(result) if x.startswith("gradient, attacked minus")]
    assert all(key in line for key in compared)

    folder = models.save(tmp_path / "model", clf, variables)
    run = reporting.start("explain", str(tmp_path / "second"), {"seed": 0})
    words = {"target": ("similarity:features",), "photograph": str(tmp_path / "other.png")}
    reporting.save_png(tmp_path / "other.png", toys.smooth(SIDE, SIDE, seed=9))
    settings = settings._replace(beside=str(folder), **words)
    correlation = report.explain_images(run, clf, variables, loaded, settings)["beside"][
        "correlation"
    ]
    assert correlation["gradient"]["value"] == pytest.approx(1)
    with pytest.raises(ValueError, match="unknown architecture 'efficientnet_lite99'; nearest"):
        report.second_network(settings._replace(beside="efficientnet_lite99"))


def test_a_failed_test_of_belief_leaves_the_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no curve today")

    clf, variables = toys.classifier("toy_vgg", 2, size=SIDE)
    images = inference.LoadedImages([tmp_path / "a.png"], toys.smooth(SIDE, SIDE)[None], [])
    monkeypatch.setattr(checks, "evaluate", fail)
    run = reporting.start("explain", str(tmp_path / "run"), {"seed": 0})
    settings = report.ExplainSettings(("gradient",), steps=2, slots=4)
    result = report.explain_images(run, clf, variables, images, settings)
    assert run.failures == {"tests": "no curve today"}
    assert (run.workdir / result["images"][0]["maps"]["gradient"]["npy"]).is_file()
    pages.finish(run, result)
