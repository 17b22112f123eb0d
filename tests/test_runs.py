"""The index over runs: status, numbers, images, damaged files, search in a browser."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tl import reporting
from tl.pages import runs as page
from tl.paths import expanded
from tl.scale import runs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
OLD = time.time() - 7200


def make_run(
    folder: Path, name: str = "transfer", *, result: Any = None, old: bool = False, **flags: Any
) -> Path:
    """The folder of a run; without a result it is unfinished."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"name": name, "flags": flags, "started": "2026-11-29T10:00:00+00:00"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(f'{{"loss": {1 / (i + 1)}}}\n' for i in range(9)))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "report.html").write_text("")
    if old:
        for file in folder.iterdir():
            os.utime(file, (OLD, OLD))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one run of each status."""
    make_run(tmp_path / "transfer/a", result={"test": {"top1": 0.9, "nll": 0.2}}, lr=0.001)
    (tmp_path / "transfer/a/figures").mkdir()
    image = np.full((90, 200, 3), 128, np.uint8)
    reporting.save_png(tmp_path / "transfer/a/figures/cat.png", image)
    failed = {"top1": 0.5, "failed": {"page": "a <reason>"}}
    make_run(tmp_path / "evaluate/b", "evaluate", result=failed)
    make_run(tmp_path / "transfer/c", old=True, lr=0.5)
    make_run(tmp_path / "attack/<d>", "attack")
    wrong = make_run(tmp_path / "ideal/e", "ideal", old=True)
    (wrong / "error.txt").write_text("ideal: --target is unknown\nmore\n")
    return tmp_path


def statuses(folder: Path) -> dict[str, str]:
    return {row["path"]: row["status"] for row in runs.read(folder)}


def test_every_run_has_a_status(folder: Path) -> None:
    assert statuses(folder) == {
        "attack/<d>": "running",
        "evaluate/b": "incomplete",
        "ideal/e": "failed",
        "transfer/a": "finished",
        "transfer/c": "died",
    }
    rows = {row["path"]: row for row in runs.read(folder)}
    assert rows["evaluate/b"]["reason"] == "page: a <reason>"
    assert rows["ideal/e"]["reason"] == "ideal: --target is unknown"
    assert rows["transfer/c"]["reason"].startswith("no result; last change ")
    assert rows["transfer/a"]["numbers"] == {"test.top1": 0.9, "test.nll": 0.2}
    assert rows["transfer/a"]["curve"][0] == 1.0 and len(rows["transfer/a"]["curve"]) == 9


def test_a_run_without_changes_has_died(folder: Path) -> None:
    late = {row["path"]: row["status"] for row in runs.read(folder, now=time.time() + 1000)}
    assert late["attack/<d>"] == "died" and late["transfer/a"] == "finished"


@pytest.mark.parametrize("name", ["config.json", "result.json", "metrics.jsonl", "figures/cat.png"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe{", b'{"a": [1', b"[1, 2]"])
def test_a_damaged_file_does_not_hide_other_runs(folder: Path, name: str, content: bytes) -> None:
    (folder / "transfer/a" / name).write_bytes(content)
    text = runs.write_index(folder).read_text(encoding="utf-8")
    assert text.count("<tr") == 6 and "evaluate/b" in text


def test_flags_and_numbers_of_odd_types_are_shown(tmp_path: Path) -> None:
    make_run(tmp_path / "a", result={"top1": None, "n": True, "robust_accuracy": {"1/255": 0.25}})
    (tmp_path / "b").mkdir()
    (tmp_path / "b/config.json").write_text('{"flags": 3, "name": null}')
    rows = {row["path"]: row for row in runs.read(tmp_path)}
    assert rows["a"]["numbers"] == {"robust_accuracy.1/255": 0.25}
    assert rows["b"]["name"] == "?" and rows["b"]["started"]
    assert "25.0 %" in runs.write_index(tmp_path).read_text(encoding="utf-8")


def test_the_page_is_self_contained_and_escaped(folder: Path) -> None:
    text = runs.write_index(folder).read_text(encoding="utf-8")
    assert "attack/&lt;d&gt;" in text and "<d>" not in text and "<reason>" not in text
    assert not re.search(r"""(?:src|href)=["'](?:https?:|//)""", text)
    assert text.count("<script>") == 1 and "script-src 'sha256-" in text
    assert 'href="transfer/a/report.html"' in text and 'href="transfer/c"' in text
    assert text.count("<img ") == 1 and 'width="64" height="29"' in text
    assert text.count("<polyline") == 5
    assert "5 runs: " in text and "1 died" in text


def test_figures_and_checkpoints_are_not_searched(folder: Path) -> None:
    make_run(folder / "transfer/a/checkpoints/0")
    make_run(folder / "transfer/a/cell")
    assert set(statuses(folder)) - {"transfer/a/cell"} == set(statuses(folder)) & {
        *("attack/<d>", "evaluate/b", "ideal/e", "transfer/a", "transfer/c")
    }


def test_hundreds_of_runs_are_one_page(tmp_path: Path) -> None:
    for i in range(300):
        make_run(tmp_path / str(i), result={"top1": i / 300}, lr=i)
    text = runs.write_index(tmp_path).read_text(encoding="utf-8")
    assert text.count("<tr") == 301 and len(text) < 1_000_000


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run below"):
        runs.write_index(tmp_path)
    with pytest.raises(ValueError, match="no folder"):
        runs.write_index(tmp_path / "x")


def test_a_folder_in_a_bucket_is_refused(bucket: str) -> None:
    with pytest.raises(ValueError, match="local folders: got 'memory://"):
        runs.write_index(expanded(f"{bucket}/runs"))


def test_a_number_is_a_share_by_its_name() -> None:
    assert page.number("success_rate.1/255", 1.0) == "100.0 %"
    assert page.number("seeds.mean", 0.5) == "50.0 %" and page.number("n", 1) == "1"


def in_browser(path: Path, search: str, profile: Path) -> str:
    """The page after its script has run."""
    assert CHROMIUM
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += [f"--user-data-dir={profile}", "--dump-dom", f"{path.absolute().as_uri()}#{search}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.full
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize(
    "search, expected",
    [
        ("", ["attack/<d>", "evaluate/b", "ideal/e", "transfer/a", "transfer/c"]),
        ("transfer", ["transfer/a", "transfer/c"]),
        ("TRANSFER%20died", ["transfer/c"]),
        ("lr=0.001", ["transfer/a"]),
        ("90.0", ["transfer/a"]),
        ("nothing", []),
    ],
)
def test_the_search_hides_other_runs(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, search: str, expected: list[str]
) -> None:
    dom = in_browser(runs.write_index(folder), search, tmp_path_factory.mktemp("profile"))
    body = dom.partition("<tbody>")[2].partition("</tbody>")[0]
    shown = [row for row in body.split("<tr")[1:] if not row.startswith(' hidden=""')]
    names = [html.unescape(re.findall(r"<a [^>]*>([^<]*)</a>", row)[0]) for row in shown]
    assert sorted(names) == expected
    count = f"{len(expected)} of 5 runs" if search else "5 runs"
    assert f'id="count">{count}<' in dom
