"""Weights files as people have them (`wild.WEIGHTS`): what is read, remarked and refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import wild
from tests.wild import Situation
from tl import backbones, models
from tl.weights import readers
from tl.weights.readers import Contents


def best(contents: Contents, arrays: dict[str, Any]) -> Contents:
    """The candidate that has most of the names, as `tl.models.loading` chooses it."""
    return max(readers.candidates(contents), key=lambda c: len(c.arrays.keys() & arrays.keys()))


def assert_arrays(actual: Any, expected: Any) -> None:
    assert sorted(actual) == sorted(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


@pytest.mark.parametrize("row", wild.READ, ids=lambda row: row.name)
def test_the_network_of_a_file_is_read(tmp_path: Path, row: Situation):
    path = row.make(tmp_path)
    contents = best(readers.open_weights(path), row.right["arrays"])
    assert_arrays(contents.arrays, row.right["arrays"])
    json.dumps(contents.metadata, allow_nan=False)
    assert contents.chosen == row.right.get("chosen", contents.chosen)
    assert contents.prefix == row.right.get("prefix", contents.prefix)
    assert set(row.right.get("left_out", ())) <= set(contents.left_out)
    for key, value in row.right.get("metadata", {}).items():
        assert contents.metadata[key] == value
    assert all(len(remark) <= 200 for remark in contents.remarks)
    if row.remark:
        assert [r for r in contents.remarks if re.search(row.remark, r)], contents.remarks
    else:
        assert contents.remarks == ()
    if raw := row.right.get("raw"):
        for which in ("raw", raw):
            other = best(readers.open_weights(path, which), wild.NETWORK)
            assert_arrays(other.arrays, wild.NETWORK)
            assert other.chosen == raw and not any("EMA" in r for r in other.remarks)
        assert_arrays(readers.open_weights(path, "ema").arrays, row.right["arrays"])


@pytest.mark.parametrize("row", wild.REFUSED, ids=lambda row: row.name)
def test_a_file_that_is_not_read_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Situation
):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    path = row.make(tmp_path / "folder")
    with pytest.raises(ValueError, match=row.refused) as caught:
        readers.open_weights(path)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)
    assert not Path("canary").exists() and os.listdir(tmp_path) == ["folder"]


# --- loading: files next to the weights, metadata, heads, channels ---------------------------


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backbones._SPECS, "wild_net", wild.NET)


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize("row", wild.LOADED, ids=lambda row: row.name)
def test_a_weights_file_is_loaded_as_its_publisher_means_it(tmp_path: Path, row: Situation):
    word = row.make(tmp_path)
    arch = row.right.get("arch", "wild_net")
    if row.refused:
        with pytest.raises(ValueError, match=row.refused) as caught:
            models.load(arch, weights=word)
        message = str(caught.value)
        assert len(message) <= 600 and "\n" not in message
        return
    clf, variables = models.load(arch, weights=word)
    assert clf.arch == arch
    assert any(re.search(row.remark, remark) for remark in clf.remarks) or not row.remark
    assert bool(row.remark) == bool(clf.remarks), clf.remarks
    assert all(len(remark) <= 200 for remark in clf.remarks), clf.remarks
    if "pixels" in row.right:
        assert clf.pixels == row.right["pixels"]
    if "classes" in row.right:
        classes = row.right["classes"]
        assert classes == (clf.classes.display_names if clf.classes is not None else None)
        assert ("head" in variables["params"]) == bool(classes)
    if "license" in row.right:
        assert clf.weights.licence == row.right["license"]
    if "first" in row.right:
        scale = variables["params"]["backbone"]["stem"]["norm"]["scale"]
        np.testing.assert_array_equal(scale, row.right["first"])
    assert len(clf.head_left_out) == row.right.get("head", 0)
