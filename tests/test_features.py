"""The feature bank: what is reused and what is not, over interruptions, broken files and company."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tl import backbones, data, paths, pixels
from tl.data import Batch, shards
from tl.inference import features
from tl.models import Classifier, Provenance
from tl.paths import flatten, unflatten
from tl.types import Variables

Net = tuple[Classifier, Variables]
Extract = Callable[..., features.Features]
BATCH = 4


@pytest.fixture(scope="session")
def net() -> Net:
    """A MobileNetV2 without a head, at 32 pixels, its random weights drawn by numpy: compiling `init` takes longer."""
    spec, rng = backbones.get("mobilenetv2_100"), np.random.default_rng(0)
    clf = Classifier(
        spec.name, spec, None, pixels.PixelSpec(size=32), None, Provenance("random", "random")
    )

    def draw(name: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if name.endswith("kernel"):
            return (rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))).astype(
                np.float32
            )
        return np.full(leaf.shape, name.endswith(("scale", "var")), np.float32)

    shapes = flatten(jax.eval_shape(clf.init, jax.random.key(0)))
    return clf, unflatten({name: draw(name, leaf) for name, leaf in shapes.items()})


@pytest.fixture(scope="session")
def album(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Ten different pictures; tests that change one copy it first."""
    folder, rng = tmp_path_factory.mktemp("album"), np.random.default_rng(0)
    for i in range(10):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3)).astype(np.uint8))
        coarse.resize((48, 40), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return tuple(sorted(folder.iterdir()))


@pytest.fixture
def extract(net: Net, tmp_path: Path) -> Extract:
    """`features.extract` with a bank of its own."""

    def run(paths: Iterable[Path], *, of: Net = net, **kwargs: Any) -> features.Features:
        return features.extract(
            *of, list(paths), **{"cache": tmp_path / "cache", "batch_size": BATCH, **kwargs}
        )

    return run


def computed(seen: list[int]) -> Callable[[Iterable[Batch], int], Iterator[Batch]]:
    """A `progress` that notes how many pictures each batch computes."""

    def progress(batches: Iterable[Batch], total: int) -> Iterator[Batch]:
        for batch in batches:
            seen.append(int(batch.valid.sum()))
            yield batch

    return progress


# -------------------------------------------------------------------------------------------------------------- values


@pytest.fixture(scope="session")
def wanted(net: Net, album: tuple[Path, ...]) -> dict[str, np.ndarray]:
    """Features and the mean of stage 1, by one direct pass."""
    clf, variables = net

    @jax.jit
    def forward(variables: Variables, images01: jax.Array) -> dict[str, jax.Array]:
        output = clf.apply(variables, images01)
        return {
            "features": output.features,
            "stage1": jnp.mean(output.endpoints["stage1"], axis=(1, 2)),
        }

    images = np.stack([clf.prepare(data.decode(path)) for path in album])
    return jax.tree.map(np.asarray, forward(variables, jnp.asarray(pixels.to_images01(images))))


def test_features_are_the_networks_own_in_the_order_of_the_paths(
    wanted: Any, album: Any, extract: Extract
) -> None:
    found = extract(album[::-1])
    values = wanted["features"][::-1]
    assert found.values.dtype == np.float32 and found.values.shape == (10, 1280)
    np.testing.assert_allclose(found.values, values, atol=1e-4 * values.max())
    assert found.valid.all() and not found.skipped and found.reused == 0
    gaps = np.abs(values[:, None] - values[None]).max(axis=-1) / values.max() + np.eye(10)
    assert gaps.min() > 1e-2  # these pictures can be told apart
    assert found.bank.parent.name == "banks" and found.bank.name.startswith("mobilenetv2_100-")


def test_an_endpoint_is_the_mean_of_its_map(wanted: Any, album: Any, extract: Extract) -> None:
    found = extract(album, endpoint="stage1")
    np.testing.assert_allclose(
        found.values, wanted["stage1"], atol=1e-4 * np.abs(wanted["stage1"]).max()
    )
    with pytest.raises(
        ValueError, match="mobilenetv2_100 has no endpoint 'stage99'; nearest: 'stage"
    ):
        extract(album[:1], endpoint="stage99")


def test_no_picture_at_all(extract: Extract) -> None:
    found = extract([])
    assert found.values.shape == (0, 1280) and found.valid.shape == (0,) and found.reused == 0


# --------------------------------------------------------------------------------------------------------------- reuse


def test_a_second_run_computes_nothing_and_finds_every_bit(album: Any, extract: Extract) -> None:
    seen: list[int] = []
    first = extract(album, progress=computed(seen))
    assert seen == [4, 4, 2]
    again = extract(album[::-1], progress=computed(seen))
    assert seen == [4, 4, 2]
    assert (first.reused, again.reused) == (0, 10)
    np.testing.assert_array_equal(again.values, first.values[::-1])
    assert again.bank == first.bank


def test_renamed_is_found_changed_is_not_and_a_new_picture_computes_itself_alone(
    album: Any, extract: Extract, tmp_path: Path
) -> None:
    first = extract(album[:6])
    moved = tmp_path / "elsewhere" / "another name.jpeg"
    moved.parent.mkdir()
    shutil.copy(album[2], moved)
    changed = tmp_path / "elsewhere" / album[3].name
    shutil.copy(album[9], changed)
    seen: list[int] = []
    found = extract([moved, changed, *album[4:8]], progress=computed(seen))
    assert seen == [3]  # changed, 6, 7
    assert found.reused == 3
    np.testing.assert_array_equal(found.values[0], first.values[2])
    np.testing.assert_array_equal(found.values[2:4], first.values[4:6])
    assert (found.values[1] != first.values[3]).any()


def test_a_file_that_changes_under_its_name_is_computed_again(
    album: Any, extract: Extract, tmp_path: Path
) -> None:
    path = tmp_path / "x.png"
    shutil.copy(album[0], path)
    one = extract([path])
    shutil.copy(album[1], path)
    other = extract([path])
    assert other.reused == 0
    np.testing.assert_array_equal(other.values, extract([album[1]]).values)
    assert (other.values != one.values).any()


def test_copies_are_computed_once(album: Any, extract: Extract, tmp_path: Path) -> None:
    shutil.copy(album[0], tmp_path / "copy.png")
    seen: list[int] = []
    found = extract([album[0], tmp_path / "copy.png", album[1], album[0]], progress=computed(seen))
    assert sum(seen) == 2
    np.testing.assert_array_equal(found.values[[1, 3]], found.values[[0, 0]])
    assert extract([album[0], album[0]]).reused == 2


# ---------------------------------------------------------------------------------------------------------------- keys


def test_whatever_decides_the_numbers_has_its_own_bank(net: Net) -> None:
    clf, variables = net
    one = jax.tree.map(np.copy, variables)
    one["params"]["backbone"]["stem"]["kernel"].view(np.uint32)[0, 0, 0, 0] ^= 1
    stats = jax.tree.map(np.copy, variables)
    jax.tree.leaves(stats["batch_stats"]["backbone"])[0][0] += 1
    keys = [
        features.bank_key(clf, variables),
        features.bank_key(clf.with_pixels(crop=0.9), variables),
        features.bank_key(clf.with_pixels(size=64), variables),
        features.bank_key(clf.with_pixels(interpolation="bilinear"), variables),
        features.bank_key(clf.with_pixels(mean=(0.5, 0.5, 0.5)), variables),
        features.bank_key(clf, variables, "stage1"),
        features.bank_key(clf, one),
        features.bank_key(clf, stats),
    ]
    assert len(set(keys)) == len(keys)


def test_the_head_decides_nothing_and_the_key_repeats(net: Net) -> None:
    clf, variables = net
    other = {
        **variables,
        "params": {**variables["params"], "head": {"kernel": np.ones((1280, 2), np.float32)}},
    }
    key = features.bank_key(clf, variables)
    assert features.bank_key(clf, other) == key
    assert features.bank_key(clf, jax.tree.map(jnp.asarray, variables)) == key
    assert features.bank_key(clf.with_pixels(), dict(reversed(variables.items()))) == key


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE", "/a")
    assert paths.cache_dir() == Path("/a")
    monkeypatch.setenv("TL_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert paths.cache_dir() == Path("/b/tl")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert paths.cache_dir() == Path.home() / ".cache" / "tl"


# ------------------------------------------------------------------------------------------------------ broken pictures


def test_broken_pictures_are_skipped_with_a_reason_and_zero(
    album: Any, extract: Extract, tmp_path: Path
) -> None:
    empty, text, gone = tmp_path / "empty.png", tmp_path / "text.png", tmp_path / "gone.png"
    empty.write_bytes(b"")
    text.write_text("no picture")
    cut = tmp_path / "cut.png"
    cut.write_bytes(album[5].read_bytes()[:-200])
    paths = [album[0], empty, album[1], text, cut, gone, tmp_path, empty]
    for reused in (0, 2):  # broken pictures are not kept: each run tries them again
        found = extract(paths)
        assert found.valid.tolist() == [True, False, True, False, False, False, False, False]
        assert found.reused == reused
        np.testing.assert_array_equal(found.values[~found.valid], np.zeros((6, 1280)))
        assert [Path(skip.path) for skip in found.skipped] == [p for p in paths if p not in album]
        reasons = (
            "is empty",
            "is not a readable image",
            "damaged or truncated",
            "No such file",
            "is a folder",
            "is empty",
        )
        for skip, why in zip(found.skipped, reasons, strict=True):
            assert why in skip.why
    np.testing.assert_array_equal(found.values[found.valid], extract(album[:2]).values)


def test_nothing_but_broken_pictures(extract: Extract, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("x")
    found = extract([tmp_path / "x.png"])
    assert found.values.shape == (1, 1280) and not found.valid.any() and len(found.skipped) == 1
    assert list(found.bank.iterdir()) == []


# -------------------------------------------------------------------------------- interruptions, damage and company


def test_an_interrupted_run_keeps_its_shards_and_goes_on(
    album: Any, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "SHARD", BATCH)
    whole = extract(album, cache=album[0].parent.parent / "whole").values

    def pulled(batches: Iterable[Batch], total: int) -> Iterator[Batch]:
        assert total == 3
        for i, batch in enumerate(batches):
            if i == 2:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        extract(album, progress=pulled)
    seen: list[int] = []
    found = extract(album, progress=computed(seen))
    assert found.reused == 8 and seen == [2]
    np.testing.assert_array_equal(found.values, whole)
    assert sorted(p.suffix for p in found.bank.iterdir()) == [".safetensors"] * 3


def test_a_write_that_fails_leaves_no_shard(
    album: Any, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(shards, "save_file", full)
        extract(album[:2])
    found = extract(album[:2])
    assert found.reused == 0 and found.valid.all()
    assert len(list(found.bank.glob("*.safetensors"))) == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "no hashes", "other hashes"])
def test_a_corrupt_shard_is_computed_again(damage: str, album: Any, extract: Extract) -> None:
    first = extract(album[:3])
    (shard,) = first.bank.glob("*.safetensors")
    match damage:
        case "cut":
            shard.write_bytes(shard.read_bytes()[:-1000])
        case "empty":
            shard.write_bytes(b"")
        case "garbage":
            shard.write_bytes(b"\xff" * 5000)
        case "no hashes":
            save_file({"features": first.values}, shard)
        case "other hashes":
            save_file({"features": first.values}, shard, {"hashes": '{"not": "a list"}'})
    found = extract(album[:3])
    assert found.reused == 0 and found.valid.all()
    np.testing.assert_array_equal(found.values, first.values)
    assert extract(album[:3]).reused == 3


@pytest.mark.optimized
def test_two_at_once_fill_one_bank(
    album: Any, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "SHARD", 1)  # as many writes as there can be
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(extract, paths) for paths in (album, album[::-1], album[3:])]
        one, other, part = (run.result() for run in runs)
    np.testing.assert_array_equal(one.values, other.values[::-1])
    np.testing.assert_array_equal(one.values[3:], part.values)
    after = extract(album)
    assert after.reused == 10
    np.testing.assert_array_equal(after.values, one.values)
