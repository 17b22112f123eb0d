"""The feature bank: reuse, keys, unreadable files, interruptions, damage and concurrent runs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL
import pytest
from safetensors.numpy import save_file

from tests import toys
from tl import data, paths, pixels, reporting
from tl.data import Batch, shards
from tl.inference import features
from tl.models import Classifier, Provenance
from tl.paths import flatten, unflatten
from tl.types import CacheWarning, Variables

Net = tuple[Classifier, Variables]
Extract = Callable[..., features.Features]
BATCH = 4


@pytest.fixture(scope="session")
def net() -> Net:
    """A small MobileNet without a head; NumPy draws the weights, because `init` compiles slowly."""
    spec, rng = toys.TOYS["toy_mobilenet"], np.random.default_rng(0)
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
    """Ten different images; tests that change one copy it first."""
    folder = tmp_path_factory.mktemp("album")
    for i in range(10):
        reporting.save_png(folder / f"{i}.png", toys.smooth(40, 48, seed=i))
    return tuple(sorted(folder.iterdir()))


@pytest.fixture
def extract(net: Net, tmp_path: Path) -> Extract:
    """`features.extract` with a new bank."""

    def run(paths: Iterable[Path], *, of: Net = net, **kwargs: Any) -> features.Features:
        return features.extract(
            *of, list(paths), **{"cache": tmp_path / "cache", "batch_size": BATCH, **kwargs}
        )

    return run


def computed(counts: list[int]) -> Callable[[Iterable[Batch], int], Iterator[Batch]]:
    """A `progress` that appends the number of images of each batch to `counts`."""

    def progress(batches: Iterable[Batch], total: int) -> Iterator[Batch]:
        for batch in batches:
            counts.append(len(batch.index))
            yield batch

    return progress


# ---- values ----


@pytest.fixture(scope="session")
def expected(net: Net, album: tuple[Path, ...]) -> dict[str, np.ndarray]:
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


def test_features_are_those_of_a_direct_pass_in_the_order_of_the_paths(
    expected: Any, album: Any, extract: Extract
) -> None:
    result = extract(album[::-1])
    values = expected["features"][::-1]
    assert result.values.dtype == np.float32 and result.values.shape == (10, 16)
    np.testing.assert_allclose(result.values, values, atol=1e-4 * values.max())
    assert result.valid.all() and not result.skipped and result.reused == 0
    gaps = np.abs(values[:, None] - values[None]).max(axis=-1) / values.max() + np.eye(10)
    assert gaps.min() > 1e-2  # the images differ
    assert result.bank.parent.name == "banks" and result.bank.name.startswith("toy_mobilenet-")


def test_features_of_an_endpoint_are_the_mean_of_its_map(
    expected: Any, album: Any, extract: Extract
) -> None:
    result = extract(album, endpoint="stage1")
    np.testing.assert_allclose(
        result.values, expected["stage1"], atol=1e-4 * np.abs(expected["stage1"]).max()
    )


def test_an_unknown_endpoint_is_an_error_before_anything_is_read(
    album: Any, extract: Extract, tmp_path: Path
) -> None:
    message = "toy_mobilenet has no endpoint 'stage99'; nearest: 'stage"
    for images in ([], album[:1], [tmp_path / "no such file.png"]):
        with pytest.raises(ValueError, match=message):
            extract(images, endpoint="stage99")
    assert not (tmp_path / "cache").exists()


def test_no_paths_give_no_features(extract: Extract) -> None:
    result = extract([])
    assert result.values.shape == (0, 16) and result.valid.shape == (0,) and result.reused == 0


# ---- reuse ----


def test_a_second_run_computes_nothing_and_returns_the_same_bits(
    album: Any, extract: Extract
) -> None:
    counts: list[int] = []
    first = extract(album, progress=computed(counts))
    assert counts == [4, 4, 2]
    again = extract(album[::-1], progress=computed(counts))
    assert counts == [4, 4, 2]
    assert (first.reused, again.reused) == (0, 10)
    np.testing.assert_array_equal(again.values, first.values[::-1])
    assert again.bank == first.bank


def test_a_renamed_image_is_reused_and_changed_and_new_ones_are_computed(
    album: Any, extract: Extract, tmp_path: Path
) -> None:
    first = extract(album[:6])
    renamed = tmp_path / "other" / "another name.jpeg"
    renamed.parent.mkdir()
    shutil.copy(album[2], renamed)
    changed = tmp_path / "other" / album[3].name
    shutil.copy(album[9], changed)
    counts: list[int] = []
    result = extract([renamed, changed, *album[4:8]], progress=computed(counts))
    assert counts == [3]  # changed, 6, 7
    assert result.reused == 3
    np.testing.assert_array_equal(result.values[0], first.values[2])
    np.testing.assert_array_equal(result.values[2:4], first.values[4:6])
    assert (result.values[1] != first.values[3]).any()


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


def test_copies_of_an_image_are_computed_once(album: Any, extract: Extract, tmp_path: Path) -> None:
    shutil.copy(album[0], tmp_path / "copy.png")
    counts: list[int] = []
    result = extract(
        [album[0], tmp_path / "copy.png", album[1], album[0]], progress=computed(counts)
    )
    assert sum(counts) == 2
    np.testing.assert_array_equal(result.values[[1, 3]], result.values[[0, 0]])
    assert extract([album[0], album[0]]).reused == 2


# ---- keys ----


def test_everything_that_decides_the_features_changes_the_key(net: Net) -> None:
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


def test_device_precision_and_versions_change_the_key(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the default precision is TF32, so its features differ by 1e-3."""
    keys = [features.bank_key(*net)]
    with jax.default_matmul_precision("highest"):
        keys.append(features.bank_key(*net))
    for module in (jax, PIL):
        with monkeypatch.context() as patch:
            patch.setattr(module, "__version__", "0.0.1")
            keys.append(features.bank_key(*net))
    assert len(set(keys)) == len(keys)
    assert features._hardware(net[1]) == ["cpu cpu"]
    for kind in ("gpu NVIDIA H200", "gpu NVIDIA A100-SXM4-40GB"):
        monkeypatch.setattr(features, "_hardware", lambda variables, kind=kind: [kind])
        keys.append(features.bank_key(*net))
    assert len(set(keys)) == len(keys)


def test_rows_of_another_device_are_not_reused(
    album: Any, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = extract(album[:2])
    monkeypatch.setattr(features, "_hardware", lambda variables: ["gpu NVIDIA H200"])
    other = extract(album[:2])
    assert other.reused == 0 and other.bank != one.bank


def test_layers_after_the_endpoint_do_not_change_the_key(
    net: Net, album: Any, extract: Extract
) -> None:
    clf, variables = net
    backbone = dict(variables["params"]["backbone"])
    backbone["stage2"] = jax.tree.map(lambda leaf: leaf + 1, backbone["stage2"])
    other = {**variables, "params": {**variables["params"], "backbone": backbone}}
    for endpoint, same in (("stem", True), ("stage1", True), ("stage2", False), ("top", False)):
        keys = {features.bank_key(clf, v, endpoint) for v in (variables, other)}
        assert len(keys) == (1 if same else 2), endpoint
    one = extract(album[:2], endpoint="stage1")
    other_bank = {"of": (clf, other), "cache": album[0].parent.parent / "another bank"}
    again = extract(album[:2], endpoint="stage1", **other_bank)
    np.testing.assert_array_equal(one.values, again.values)
    assert again.reused == 0


def test_the_head_does_not_change_the_key(net: Net) -> None:
    clf, variables = net
    other = {
        **variables,
        "params": {**variables["params"], "head": {"kernel": np.ones((16, 2), np.float32)}},
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


# ---- unreadable images ----


def test_unreadable_images_are_skipped_with_a_reason_and_zero_features(
    album: Any, extract: Extract, tmp_path: Path
) -> None:
    empty, text, gone = tmp_path / "empty.png", tmp_path / "text.png", tmp_path / "gone.png"
    empty.write_bytes(b"")
    text.write_text("no image")
    cut = tmp_path / "cut.png"
    cut.write_bytes(album[5].read_bytes()[:-200])
    paths = [album[0], empty, album[1], text, cut, gone, tmp_path, empty]
    for reused in (0, 2):  # each run tries unreadable images again
        result = extract(paths)
        assert result.valid.tolist() == [True, False, True, False, False, False, False, False]
        assert result.reused == reused
        np.testing.assert_array_equal(result.values[~result.valid], np.zeros((6, 16)))
        assert [Path(skip.path) for skip in result.skipped] == [p for p in paths if p not in album]
        reasons = (
            "is empty",
            "is not a readable image",
            "damaged or truncated",
            "No such file",
            "is a folder",
            "is empty",
        )
        for skip, reason in zip(result.skipped, reasons, strict=True):
            assert reason in skip.why
    np.testing.assert_array_equal(result.values[result.valid], extract(album[:2]).values)


def test_a_list_of_unreadable_images_writes_nothing(extract: Extract, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("x")
    result = extract([tmp_path / "x.png"])
    assert result.values.shape == (1, 16) and not result.valid.any() and len(result.skipped) == 1
    assert not result.bank.exists()


# ---- interruptions, damage and concurrent runs ----


def test_an_interrupted_run_keeps_its_shards_and_continues(
    album: Any, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "SHARD", BATCH)
    whole = extract(album, cache=album[0].parent.parent / "whole").values

    def interrupted(batches: Iterable[Batch], total: int) -> Iterator[Batch]:
        assert total == 3
        for i, batch in enumerate(batches):
            if i == 2:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        extract(album, progress=interrupted)
    counts: list[int] = []
    result = extract(album, progress=computed(counts))
    assert result.reused == 8 and counts == [2]
    np.testing.assert_array_equal(result.values, whole)
    assert sorted(p.suffix for p in result.bank.iterdir()) == [".safetensors"] * 3


def test_a_failed_write_leaves_no_shard(
    album: Any, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.warns(CacheWarning, match="No space"):
        patch.setattr(os, "fsync", disk_full)  # after the bytes are written
        uncached = extract(album[:2])
    assert uncached.valid.all() and not list(uncached.bank.iterdir())
    result = extract(album[:2])
    assert result.reused == 0 and result.valid.all()
    assert len(list(result.bank.glob("*.safetensors"))) == 1


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
    result = extract(album[:3])
    assert result.reused == 0 and result.valid.all()
    np.testing.assert_array_equal(result.values, first.values)
    assert extract(album[:3]).reused == 3


@pytest.mark.optimized
def test_concurrent_runs_fill_one_bank(
    album: Any, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "SHARD", 1)  # a write per image
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(extract, paths) for paths in (album, album[::-1], album[3:])]
        one, other, part = (run.result() for run in runs)
    np.testing.assert_array_equal(one.values, other.values[::-1])
    np.testing.assert_array_equal(one.values[3:], part.values)
    after = extract(album)
    assert after.reused == 10
    np.testing.assert_array_equal(after.values, one.values)


# ---- memory ----


def test_only_shards_with_wanted_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {f"{i:064x}": np.full(3, i, np.float32) for i in range(6)}
    for first in (0, 2, 4):
        shards.write(tmp_path, "features", dict(list(rows.items())[first : first + 2]))
    loaded: list[bytes] = []
    load = shards.load
    monkeypatch.setattr(shards, "load", lambda data: load(loaded.append(data) or data))
    name = f"{3:064x}"
    ((key, row),) = shards.read(tmp_path, "features", 3, {name, "of another bank"})
    assert key == name and row.tolist() == [3, 3, 3] and len(loaded) == 1
    monkeypatch.setattr(shards, "_AHEAD", 2)  # fewer than the shards
    assert sorted(dict(shards.read(tmp_path, "features", 3))) == sorted(rows)


def test_many_features_are_mapped_from_a_file(
    album: Any, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = extract(album)
    monkeypatch.setattr(features, "MAPPED", 1)

    def disk_full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for is_full in (False, True):
        with monkeypatch.context() as patch:
            if is_full:
                patch.setattr(os, "posix_fallocate", disk_full, raising=False)
            result = extract(album)
        np.testing.assert_array_equal(result.values, in_memory.values)
        mapped = isinstance(result.values.base, np.memmap)
        assert mapped == (sys.platform == "linux" and not is_full)
        assert {path.suffix for path in result.bank.iterdir()} == {".safetensors"}
