"""Pictures carried from network to network, on networks of one line whose answers can be told; and the lesson's attack."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import attack_transfer
from experiments.lesson import attack
from tl import data, inference, labels, models, pixels, reporting

SIDE = 8
EPS = 8 / 255


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


def network(name: str, size: int, weights: tuple[float, float, float]) -> attack_transfer.Network:
    spec = pixels.PixelSpec(size=size, crop=1.0, mean=(128 / 255,) * 3, std=(1 / 255,) * 3)
    return attack_transfer.Network(name, Colour(spec), jnp.asarray(weights, jnp.float32))  # type: ignore[arg-type]


RED, LARGE, BLUE = (
    network("red", SIDE, (1, 0, 0)),
    network("large", 12, (1, 0, 0)),
    network("blue", SIDE, (0, 0, 1)),
)
NETWORKS = [RED, LARGE, BLUE]


@pytest.fixture()
def run(tmp_path: Path) -> reporting.Run:
    return reporting.start("test", tmp_path / "run", {"seed": 0})


def finish(run: reporting.Run, result: Any, sections: list) -> dict[str, Any]:
    run.finish(result, reporting.page("title", "lead", sections, facts=run.facts()))
    return json.loads((run.workdir / "result.json").read_text())


def flat(red: int, green: int, blue: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), (red, green, blue), np.uint8)


def test_the_matrix_the_control_and_the_claim(run: reporting.Run) -> None:
    """Red and large look at one thing, blue at another: what is made on red fools large at its own size, and never blue."""
    rng = np.random.default_rng(0)
    bright = np.stack([flat(131, 9, 131) for _ in range(3)]) + rng.integers(
        0, 2, (3, SIDE, SIDE, 3)
    ).astype(np.uint8)
    chosen = attack_transfer.Chosen(
        [Path(f"{i}.png") for i in range(3)],
        bright,
        np.array([1, 1, 1]),
        5,
        np.array([0, 1, 2]),
        [],
    )
    how = attack_transfer.Settings(eps=EPS, steps=2)
    result = finish(run, *attack_transfer.transfer(run, NETWORKS, chosen, how))
    errors = lambda cells: [cell["error"] for cell in cells.values()]
    assert (result["n"], result["size"], result["networks"]) == (3, SIDE, ["red", "large", "blue"])
    assert {source: errors(cells) for source, cells in result["matrix"].items()} == {
        "red": [1, 1, 0],
        "large": [1, 1, 0],
        "blue": [0, 0, 1],
    }
    assert errors(result["clean"]) == errors(result["noise"]) == [0, 0, 0]
    assert errors(result["ensemble"]["error"]) == [1, 1, 0]  # of blue's others none looks at blue
    assert errors(result["clean_of_all_looked_at"]) == [0, 0.2, 0.4]
    defence = result["defence"]
    assert {name: cell["accuracy"] for name, cell in defence["one_member"].items()} == {
        "red": 0,
        "large": 0,
        "blue": 1,
    }
    assert (defence["adaptive"]["accuracy"], defence["noise"]["accuracy"]) == (0, 1)
    assert defence["protects"] == {"one_member": False, "adaptive": False}
    low, high = result["matrix"]["red"]["blue"]["ci95"]
    assert low == 0 and 0.5 < high < 0.6  # Wilson, 0 of 3


def test_noise_is_as_large_as_the_attack_and_the_same_for_all() -> None:
    images = np.stack([flat(128, 2, 128), flat(60, 90, 253)])
    changed = attack_transfer.noisy(images, attack_transfer.Settings(eps=EPS)).astype(int)
    far = np.abs(changed - images)
    inside = (images >= 8) & (images <= 247)
    assert (
        (far[inside] == 8).all() and far.max() == 8 and changed.min() == 0 and changed.max() == 255
    )


def test_only_what_all_name_rightly_is_used(tmp_path: Path) -> None:
    for folder in ("bright", "dark"):
        (tmp_path / folder).mkdir()
    pictures = {
        "bright/a": flat(140, 0, 140),
        "dark/b": flat(100, 0, 100),
        "bright/c": flat(140, 0, 100),  # blue says dark
        "dark/d": flat(140, 0, 140),  # all are wrong, and agree
    }
    for name, image in pictures.items():
        reporting.save_png(tmp_path / f"{name}.png", image)
    (tmp_path / "bright" / "broken.png").write_bytes(b"no picture")
    spec = RED.clf.pixels
    choose = lambda **how: attack_transfer.choose(NETWORKS, spec, str(tmp_path), seed=0, **how)
    found = choose(labelled=True, limit=0)
    assert {path.stem: int(t) for path, t in zip(found.paths, found.truth, strict=True)} == {
        "a": 1,
        "b": 0,
    }
    assert (found.seen, found.wrong.tolist(), len(found.skipped)) == (4, [1, 1, 2], 1)
    assert sorted(path.stem for path in choose(labelled=False, limit=0).paths) == ["a", "b", "d"]
    assert len(choose(labelled=False, limit=2).paths) == 2
    with pytest.raises(ValueError, match="none of 1 pictures is named rightly by all 3 networks"):
        attack_transfer.choose(
            NETWORKS, spec, str(tmp_path / "bright" / "c.png"), labelled=True, limit=0, seed=0
        )


def test_networks_that_cannot_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least two networks, all different"):
        attack_transfer.load(["a", "a"])
    others = dataclasses.replace(RED.clf, classes=labels.from_names(["a", "b"], name="others"))
    monkeypatch.setattr(models, "load", lambda name: (others if name == "b" else RED.clf, None))
    with pytest.raises(ValueError, match="b has other classes than a"):
        attack_transfer.load(["a", "b"])


# ---------------------------------------------------------------------------------------------------------- the lesson


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
