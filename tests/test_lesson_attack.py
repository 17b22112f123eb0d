"""The course lesson's attack, on a linear network of the mean color, for which every number is known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lesson import attack
from tl import data, inference, labels, pixels, reporting

SIDE = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Colour:
    """Two classes: whether the mean of what the first layer sees, weighted by colour, is above zero."""

    pixels: pixels.PixelSpec
    arch: str = "colour"
    classes: labels.ClassTable = labels.from_names(["dark", "bright"], name="colours")

    def logits(self, variables: Any, images01: jax.Array) -> jax.Array:
        assert images01.shape[1:3] == (self.pixels.size, self.pixels.size)
        seen = jnp.mean(pixels.normalize(self.pixels, images01), axis=(1, 2)) @ variables
        return jnp.stack([jnp.zeros_like(seen), seen], axis=1)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return pixels.prepare(self.pixels, image)


@pytest.fixture()
def run(tmp_path: Path) -> reporting.Run:
    return reporting.start("test", tmp_path / "run", {"seed": 0})


def finish(run: reporting.Run, result: Any, sections: list) -> dict[str, Any]:
    run.finish(result, reporting.page("title", "lead", sections, facts=run.facts()))
    return json.loads((run.workdir / "result.json").read_text())


def flat(red: int, green: int, blue: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), (red, green, blue), np.uint8)


def test_the_lessons_preprocessing_in_other_units() -> None:
    x = jnp.asarray(np.random.default_rng(0).random((1, 2, 2, 3), np.float32))
    np.testing.assert_allclose(
        pixels.normalize(attack.fed(pixels.CAFFE), x), 255 * x, rtol=1e-6
    )  # raw pixels, RGB
    np.testing.assert_allclose(
        pixels.normalize(attack.fed(pixels.LITE), x), 255 / 128 * x[..., ::-1], rtol=1e-6
    )


def test_the_lessons_attack_beside_the_right_one(run: reporting.Run) -> None:
    clf = Colour(pixels.PixelSpec(size=SIDE, crop=1.0, mean=(128 / 255,) * 3, std=(1 / 255,) * 3))
    weights = np.float32([0.5, 0.0, 0.25])
    photograph = flat(
        124, 7, 130
    )  # prepared rightly 0.5 * -4 + 0.25 * 2 = -1.5: dark; fed as in the lesson, bright
    pictures = inference.LoadedImages([Path("a.png")], photograph[None], [])
    rows, section = attack.as_written(
        run, clf, jnp.asarray(weights), pictures, (1,), steps=1, eps=4 / 255
    )  # type: ignore[arg-type]
    (row,) = finish(run, {"rows": rows}, [section])["rows"]
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    assert (row["photograph"]["called"], row["classified"]["called"]) == ("dark", "bright")
    assert row["photograph"]["target"] == pytest.approx(sigmoid(-1.5), abs=1e-5)
    begin = (0.5 * 130 + 0.25 * 124) / 255  # red and blue exchanged, no mean, 1/255
    assert row["start"]["target"] == pytest.approx(sigmoid(begin), abs=1e-5)
    assert row["start_is_called_the_same"] is False and row["start"]["called"] == "bright"
    step = (
        (1 - sigmoid(begin)) * weights / SIDE**2
    )  # of each pixel, in the first layer's units: levels
    assert row["tensor"]["target"] == pytest.approx(
        sigmoid(begin + float(step @ weights)), abs=1e-5
    )
    assert row["change"]["linf"] == pytest.approx(
        step.max(), rel=1e-3
    )  # 255 of these levels are the lesson's 1
    assert row["change"]["l2"] == pytest.approx(SIDE * np.linalg.norm(step), rel=1e-3)
    assert row["change"]["outside"] == 0.0 and row["change_clipped"]["linf"] == pytest.approx(
        1 / 255, abs=1e-6
    )
    assert row["right"]["called"] == "bright" and row["change_right"]["linf"] == pytest.approx(
        4 / 255, abs=1e-6
    )
    saved = data.decode(row["png"]["right"]).astype(int)
    assert np.abs(saved - photograph).max() == 4
    with pytest.raises(ValueError, match="wants a photograph"):
        attack.as_written(
            run, clf, jnp.asarray(weights), inference.LoadedImages([], photograph[:0], [])
        )  # type: ignore[arg-type]
