"""Transferability on linear networks of the mean color, for which every error is known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl import labels, models, pages, pixels, reporting
from tl.evaluation import attack_transfer, shared_images
from tl.evaluation.attack_transfer import TransferSettings
from tl.evaluation.shared_images import Network, SharedImages

pytestmark = pytest.mark.full

SIDE = 8
EPS = 8 / 255


@dataclasses.dataclass(frozen=True, eq=False)
class MeanColor:
    """Two classes: the mean of the normalized image, weighted by color, is above zero or not."""

    pixels: pixels.PixelSpec
    arch: str = "mean_color"
    classes: labels.ClassTable = labels.from_names(["dark", "bright"], name="brightness")

    def logits(self, variables: Any, images01: jax.Array) -> jax.Array:
        assert images01.shape[1:3] == (self.pixels.size, self.pixels.size)
        mean = jnp.mean(pixels.normalize(self.pixels, images01), axis=(1, 2)) @ variables
        return jnp.stack([jnp.zeros_like(mean), mean], axis=1)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return pixels.prepare(self.pixels, image)


def network(name: str, size: int, weights: tuple[float, float, float]) -> Network:
    spec = pixels.PixelSpec(size=size, crop=1.0, mean=(128 / 255,) * 3, std=(1 / 255,) * 3)
    return Network(name, MeanColor(spec), jnp.asarray(weights, jnp.float32))  # type: ignore[arg-type]


RED = network("red", SIDE, (1, 0, 0))
LARGE = network("large", 12, (1, 0, 0))
BLUE = network("blue", SIDE, (0, 0, 1))
NETWORKS = [RED, LARGE, BLUE]


def flat(red: int, green: int, blue: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), (red, green, blue), np.uint8)


def errors(cells: dict[str, Any]) -> list[float]:
    return [cell["error"] for cell in cells.values()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run on three bright images: its folder and `result.json`."""
    folder = tmp_path_factory.mktemp("transfer") / "run"
    run = reporting.start("attack_transfer", folder, {"seed": 0})
    rng = np.random.default_rng(0)
    bright = flat(131, 9, 131) + rng.integers(0, 2, (3, SIDE, SIDE, 3)).astype(np.uint8)
    paths = [Path(f"{i}.png") for i in range(3)]
    for path, image in zip(paths, bright, strict=True):
        reporting.save_png(folder / path, image)
    images = SharedImages(paths, bright, np.array([1, 1, 1]), 5, np.array([0, 1, 2]), [])
    settings = TransferSettings(eps=EPS, steps=2)
    evaluation = attack_transfer.evaluate_transfer(run, NETWORKS, images, settings)
    pages.finish(run, evaluation.json())
    return folder, json.loads((folder / "result.json").read_text())


def test_images_made_on_a_network_fool_those_that_use_the_same_color(finished: tuple) -> None:
    """`red` and `large` use one color at different sizes, `blue` another."""
    _, result = finished
    assert (result["n"], result["size"], result["networks"]) == (3, SIDE, ["red", "large", "blue"])
    assert {source: errors(cells) for source, cells in result["matrix"].items()} == {
        "red": [1, 1, 0],
        "large": [1, 1, 0],
        "blue": [0, 0, 1],
    }
    low, high = result["matrix"]["red"]["blue"]["ci95"]
    assert low == 0 and 0.5 < high < 0.6  # Wilson, 0 of 3


def test_the_ensemble_against_a_network_leaves_that_network_out(finished: tuple) -> None:
    """`blue` is not fooled, because no network of the ensemble against it uses blue."""
    _, result = finished
    assert errors(result["ensemble"]["error"]) == [1, 1, 0]


def test_the_controls_have_no_errors(finished: tuple) -> None:
    _, result = finished
    assert errors(result["clean"]) == errors(result["noise"]) == [0, 0, 0]
    assert result["clean_ensemble"]["error"] == 0
    assert errors(result["clean_of_all_looked_at"]) == [0, 0.2, 0.4]


def test_the_ensemble_does_not_protect_against_an_attack_on_itself(finished: tuple) -> None:
    _, result = finished
    defense = result["defence"]
    accuracies = {name: cell["accuracy"] for name, cell in defense["one_member"].items()}
    assert accuracies == {"red": 0, "large": 0, "blue": 1}
    assert (defense["adaptive"]["accuracy"], defense["noise"]["accuracy"]) == (0, 1)
    assert defense["protects"] == {"one_member": False, "adaptive": False}


def test_the_page_is_a_function_of_the_result_and_the_figures(finished: tuple) -> None:
    folder, result = finished
    html = (folder / "report.html").read_text()
    page = pages.PAGES["attack_transfer"](result, folder)
    assert all(section in html for section in page.sections) and page.lead in html
    assert html.count("difference</figcaption>") == attack_transfer.PAGE_IMAGES
    assert "intervals extend at most 56 points to either side" in html  # 0 of 3: 0 to 56 %
    # Results of older versions lack these keys.
    newer = ("norm", "steps", "clean_ensemble", "shown")
    old = {k: v for k, v in result.items() if k not in newer}
    assert pages.PAGES["attack_transfer"](old, folder).sections


def test_noise_has_length_eps_except_at_the_bounds() -> None:
    images = np.stack([flat(128, 2, 128), flat(60, 90, 253)])
    noisy = attack_transfer.add_noise(images, TransferSettings(eps=EPS)).astype(int)
    change = np.abs(noisy - images)
    inside = (images >= 8) & (images <= 247)
    assert (change[inside] == 8).all() and change.max() == 8
    assert noisy.min() == 0 and noisy.max() == 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of two images, one of which all networks classify correctly; a broken file."""
    folder = tmp_path_factory.mktemp("folder")
    for name, image in {
        "bright/a": flat(140, 0, 140),
        "dark/b": flat(100, 0, 100),
        "bright/c": flat(140, 0, 100),  # dark for `blue`
        "dark/d": flat(140, 0, 140),  # bright for all networks
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        reporting.save_png(folder / f"{name}.png", image)
    (folder / "bright" / "broken.png").write_bytes(b"no image")
    return folder


def select(images: Path, **arguments: Any) -> SharedImages:
    spec = RED.clf.pixels
    return shared_images.select_images(NETWORKS, spec, str(images), seed=0, **arguments)


def test_only_images_that_all_networks_classify_correctly_are_selected(folder: Path) -> None:
    selected = select(folder, labeled=True, limit=0)
    by_name = zip(selected.paths, selected.labels.tolist(), strict=True)
    assert {path.stem: label for path, label in by_name} == {"a": 1, "b": 0}
    assert (selected.n_read, selected.n_wrong.tolist()) == (4, [1, 1, 2])
    assert len(selected.skipped) == 1


def test_without_labels_the_networks_must_agree(folder: Path) -> None:
    names = sorted(path.stem for path in select(folder, labeled=False, limit=0).paths)
    assert names == ["a", "b", "d"]
    assert len(select(folder, labeled=False, limit=2).paths) == 2


def test_a_selection_without_images_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="none of 1 images is classified correctly by all 3"):
        select(folder / "bright" / "c.png", labeled=True, limit=0)


def test_networks_that_cannot_be_compared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least two different networks"):
        shared_images.load_networks(["a", "a"])
    others = dataclasses.replace(RED.clf, classes=labels.from_names(["a", "b"], name="others"))
    monkeypatch.setattr(models, "load", lambda name: (others if name == "b" else RED.clf, None))
    with pytest.raises(ValueError, match="b has other classes than a"):
        shared_images.load_networks(["a", "b"])


def test_eps_beyond_white_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 1.5, expected a number in \(0, 1\]"):
        shared_images.check_eps(1.5, "linf", SIDE)
