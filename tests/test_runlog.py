"""The folder of a run: whole or absent results, JSON types, stale files, and progress lines."""

from __future__ import annotations

import dataclasses
import enum
import io
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tl import ledger, pages, reporting
from tl.reporting.software import git_state


def read(path: pathlib.Path):
    """Strict JSON: `NaN` and `Infinity`, which Python would accept, are errors."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def read_numbers(path: pathlib.Path):
    """The content of a result without its ledger."""
    numbers = read(path)
    del numbers["ledger"]
    return numbers


def test_the_config_has_flags_versions_device_and_commit(tmp_path):
    run = reporting.start(
        "predict", tmp_path / "a" / "b", {"seed": 3, "images": ["x.jpg"], "eps": 8 / 255}
    )
    config = read(run.workdir / "config.json")
    assert (
        config["flags"] == {"seed": 3, "images": ["x.jpg"], "eps": 8 / 255} and config["seed"] == 3
    )
    packages = {"tl", "jax", "jaxlib", "flax", "optax", "numpy", "Pillow", "onednn-cpu-gomp"}
    assert packages | {"python"} == set(config["versions"])
    assert config["versions"]["numpy"] == np.__version__
    assert config["device"]["platform"] in ("cpu", "gpu", "tpu") and config["device"]["count"] >= 1
    assert set(config) >= {"command", "git_commit", "git_changed", "started"}
    assert not (run.workdir / "result.json").exists()
    assert {"command", "device", "versions", "seconds"} <= set(run.facts())


def test_logged_rows_have_seconds_and_null_for_nan(tmp_path):
    run = reporting.start("predict", tmp_path, {})
    run.log({"step": 1, "loss": np.float32(0.5)})
    run.log({"step": 2, "loss": jnp.float32(float("nan")), "seconds": 7})
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (2, None)]
    assert 0 <= lines[0]["seconds"] < 600 and lines[1]["seconds"] == 7


def test_a_figure_is_saved_as_png(tmp_path):
    run = reporting.start("predict", tmp_path, {})
    image = np.random.default_rng(0).random([5, 7, 3], dtype=np.float32)
    path = run.figure("tabby", image)
    assert path == run.workdir / "figures" / "tabby.png"
    np.testing.assert_array_equal(
        np.asarray(Image.open(path)), np.rint(image * 255).astype(np.uint8)
    )


def test_a_finished_run_has_its_files_and_no_others(tmp_path):
    run = reporting.start("predict", tmp_path, {})
    run.log({"step": 1})
    run.figure("tabby", np.zeros([5, 7, 3], np.float32))
    assert run.finish({"top1": np.float64(0.5)}, "<p>é</p>") == run.workdir / "report.html"
    assert read_numbers(run.workdir / "result.json") == {"top1": 0.5}
    assert (run.workdir / "report.html").read_text(encoding="utf-8") == "<p>é</p>"
    assert sorted(p.name for p in run.workdir.iterdir()) == [
        "config.json", "figures", "metrics.jsonl", "report.html", "result.json"
    ]  # fmt: skip


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupted_finish_leaves_no_result(tmp_path, monkeypatch, error, step):
    run = reporting.start("x", tmp_path, {})
    real = getattr(os, step)
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:  # the first call is the page's
            raise error
        return real(*arguments)

    monkeypatch.setattr(os, step, interrupted)
    with pytest.raises(error):
        run.finish({"top1": 1.0}, "<p></p>")
    assert len(calls) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "report.html"]


def test_the_result_comes_last(tmp_path, monkeypatch):
    run = reporting.start("x", tmp_path, {})
    order = []
    real = os.replace
    monkeypatch.setattr(
        os, "replace", lambda a, b: (order.append(pathlib.Path(b).name), real(a, b))[1]
    )
    run.finish({}, "")
    assert order == ["report.html", "result.json"]


def test_a_result_that_json_cannot_hold_writes_neither_file(tmp_path):
    run = reporting.start("x", tmp_path, {})
    with pytest.raises(ValueError, match="test/model: .*object"):
        run.finish({"test": {"model": object()}}, "<p></p>")
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_reused_folder_keeps_no_stale_result(tmp_path):
    first = reporting.start("x", tmp_path, {})
    first.log({"step": 1})
    first.finish({"top1": 1.0}, "<p></p>")
    second = reporting.start("x", tmp_path, {}, resume=True)
    # A resumed run that is refused must not cost the numbers.
    assert read_numbers(tmp_path / "result.before.json") == {"top1": 1.0}
    names = ["config.json", "metrics.jsonl", "result.before.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    second.log({"step": 2})
    second.finish({"top1": 1.0}, "<p></p>")
    assert not (tmp_path / "result.before.json").exists()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    reporting.start("x", tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_default_folders_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {reporting.start("predict", workdir, {}).workdir for workdir in (None, "", None)}
    assert len(folders) == 3 and {folder.parent for folder in folders} == {
        pathlib.Path("runs/predict")
    }


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="give another `workdir`"):
            reporting.start("x", folder, {})


def test_a_finished_run_is_read_back(tmp_path):
    run = reporting.start("x", tmp_path, {"seed": 3})
    run.finish({"top1": 0.5}, "")
    again, result = reporting.read_run(tmp_path)
    assert result["top1"] == 0.5 and (again.name, again.workdir) == ("x", tmp_path)
    assert again.facts() == {k: v for k, v in run.facts().items() if k != "seconds"}


@pytest.mark.parametrize("missing", ["config.json", "result.json"])
def test_an_unfinished_run_cannot_be_read(tmp_path, missing):
    reporting.start("x", tmp_path, {}).finish({}, "")
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match="is not the folder of a finished run"):
        reporting.read_run(tmp_path)


def test_figures_do_not_overwrite_each_other(tmp_path):
    run = reporting.start("x", tmp_path, {})
    names = [
        "1",
        "1",
        "../../etc/passwd",
        "tabby, tabby cat",
        "Tabby, tabby cat",
        "",
        "..",
        "虎斑猫",
        "x" * 300,
    ]
    paths = [run.figure(name, np.full([1, 1, 3], i, np.uint8)) for i, name in enumerate(names)]
    assert {path.parent for path in paths} == {tmp_path / "figures"}
    assert [path.name for path in paths[:5]] == [
        "1.png", "1-2.png", "etc_passwd.png", "tabby_tabby_cat.png", "Tabby_tabby_cat-2.png"
    ]  # fmt: skip
    assert paths[7].name == "虎斑猫.png" and len({path.name.casefold() for path in paths}) == len(
        paths
    )
    assert [np.asarray(Image.open(path))[0, 0, 0] for path in paths] == list(range(len(names)))


def test_animations_are_numbered_like_figures_and_separately(tmp_path):
    run = reporting.start("x", tmp_path, {})
    frames = [np.full([4, 4, 3], level, np.uint8) for level in (0, 120, 255)]
    paths = [run.animation(name, frames, seconds=1) for name in ("tabby cat", "Tabby cat", "")]
    assert [path.name for path in paths] == ["tabby_cat.webp", "Tabby_cat-2.webp", "figure.webp"]
    assert run.figure("tabby cat", frames[0]).name == "tabby_cat.png"
    with Image.open(paths[0]) as image:
        assert image.format == "WEBP" and image.n_frames == 3 and image.info["loop"] == 0  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="got none"):
        run.animation("lynx", [], seconds=1)
    # An animation that was not written uses no name.
    assert run.animation("lynx", frames, seconds=1).name == "lynx.webp"


class Norm(enum.Enum):
    LINF = "linf"


class Row(NamedTuple):
    path: pathlib.Path
    n: np.int64


@dataclasses.dataclass
class Spec:
    size: int
    mean: tuple[float, ...]


def test_arrays_records_and_enums_become_json_and_other_types_are_errors():
    value = {
        "scalars": [
            np.float32(0.25),
            np.int64(3),
            np.bool_(True),
            jnp.int32(4),
            np.array(2.5),
            True,
            None,
            "é",
        ],
        "arrays": [
            np.zeros([2, 1], np.float32),
            jnp.arange(2),
            jnp.ones([1], jnp.bfloat16),
            np.array(["a"]),
        ],
        "holes": [float("nan"), np.float32("inf"), np.array([1.0, -np.inf])],
        "structures": [Row(pathlib.Path("a/b"), np.int64(1)), Spec(2, (0.5,)), Norm.LINF, ()],
        0.25: {Norm.LINF: 1, np.int32(7): 2},
    }
    holes: list[str] = []
    assert reporting.jsonable(value, holes=holes) == {
        "scalars": [0.25, 3, True, 4, 2.5, True, None, "é"],
        "arrays": [[[0.0], [0.0]], [0, 1], [1.0], ["a"]],
        "holes": [None, None, [1.0, None]],
        "structures": [{"path": "a/b", "n": 1}, {"size": 2, "mean": [0.5]}, "linf", []],
        "0.25": {"linf": 1, "7": 2},
    }
    assert holes == ["holes/0", "holes/1", "holes/2/1"]
    for wrong in ({1, 2}, object(), Spec, b"bytes", 1j):
        with pytest.raises(ValueError, match="JSON cannot hold"):
            reporting.jsonable({"x": wrong})


def test_holes_of_a_result_are_named(tmp_path, capsys):
    reporting.start("x", tmp_path, {}).finish({"test": {"nll": float("nan"), "top1": 1.0}}, "")
    assert read_numbers(tmp_path / "result.json") == {"test": {"nll": None, "top1": 1.0}}
    assert "test/nll" in capsys.readouterr().err


def test_remarks_are_printed_once_and_kept_in_the_result_and_on_the_page(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(pages.PAGES, "toy", lambda *_: pages.Page("title", "lead", []))
    run = reporting.start("toy", tmp_path, {})
    run.remark("one", "two", "one")
    run.remark("two")
    pages.finish(run, {})
    assert capsys.readouterr().out.split() == ["one", "two"]
    assert read_numbers(tmp_path / "result.json") == {"remarks": ["one", "two"]}
    assert "Remarks on the inputs" in (tmp_path / "report.html").read_text()


def test_git_reports_a_commit_only_at_the_top_of_its_checkout(tmp_path, monkeypatch):
    # These are set if a git hook runs the tests.
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)

    def git(*words):
        identity = [
            "-c",
            "user.name=x",
            "-c",
            "user.email=x@example.com",
            "-c",
            "init.defaultBranch=main",
        ]
        subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True
        )

    nothing = {"git_commit": None, "git_changed": None}
    assert git_state(tmp_path) == nothing
    try:
        git("init")
    except OSError:
        pytest.skip("git is not installed")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    clean = git_state(tmp_path)
    assert len(clean["git_commit"]) == 40 and clean["git_changed"] is False
    with monkeypatch.context() as hook:
        hook.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
        assert git_state(tmp_path) == clean
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == {**clean, "git_changed": True}
    (tmp_path / "site-packages").mkdir()
    assert git_state(tmp_path / "site-packages") == nothing
    monkeypatch.setenv("TL_COMMIT", "abc")  # a copy of a commit on a TPU slice
    assert git_state(tmp_path / "site-packages") == {"git_commit": "abc", "git_changed": False}
    assert git_state(tmp_path)["git_commit"] == clean["git_commit"]


@hypothesis.given(st.integers(0, 3000), st.booleans())
def test_progress_in_a_log_is_few_lines_and_passes_everything(n, sized):
    log = io.StringIO()
    items = list(range(n))
    assert (
        list(reporting.progress(items if sized else iter(items), label="predict", stream=log))
        == items
    )
    lines = log.getvalue().splitlines()
    assert len(lines) <= 11 and "\r" not in log.getvalue() and "\x1b" not in log.getvalue()
    assert bool(lines) == (n > 0) and all(line.startswith("predict") for line in lines)
    if sized and n:
        assert f" {n}/{n} " in lines[-1]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_is_one_complete_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    screen = Terminal()
    assert list(reporting.progress(range(50), label="x" * 100, stream=screen)) == list(range(50))
    assert screen.getvalue().endswith("\n") and screen.getvalue().count("\n") == 1
    assert max(len(part) for part in screen.getvalue().replace("\x1b[K", "").split("\r")) <= 60
    screen = Terminal()
    with pytest.raises(KeyboardInterrupt):
        for i in reporting.progress(range(50), label="x", stream=screen):
            if i == 20:
                raise KeyboardInterrupt
    # The closed generator ends its line, so that the prompt starts on a new one.
    assert screen.getvalue().endswith("\n") and "/50" in screen.getvalue()


def test_progress_yields_everything_with_a_wrong_total():
    for total in (0, 3, 1000):
        log = io.StringIO()
        assert len(list(reporting.progress(iter(range(40)), total, "x", stream=log))) == 40
        assert len(log.getvalue().splitlines()) <= 12


# ---- ledger ------------------------------------------------------------------------------------


def test_the_parts_of_a_ledger_do_not_overlap(tmp_path: pathlib.Path) -> None:
    run = reporting.start("x", tmp_path, {})
    with ledger.spent("work"):
        with ledger.spent("checkpoint"):
            time.sleep(0.05)
            with ledger.spent("work"):  # belongs to the checkpoint
                time.sleep(0.05)
        jax.jit(lambda x: jnp.sin(x) * 3.25)(jnp.ones(3)).block_until_ready()
    run.finish({}, None)
    row = read(tmp_path / "result.json")["ledger"]
    assert row["checkpoint"] >= 0.1 and row["compiles"] >= 1 and row["compile"] > 0
    parts = sum(row[part] for part in ledger.PARTS) + row["lost"]
    assert parts <= row["seconds"] + 1e-6 and row["lost"] == 0
    assert row["productive"] == pytest.approx(row["work"] / row["seconds"])
    assert row["peak_bytes"] > 1e7


TWICE = """
import json, sys
import jax, jax.numpy as jnp
from tl import ledger
ledger.begin()
x = jnp.ones(3)
for scale in (2.0, 2.0, 3.0):
    jax.jit(lambda x: jnp.sin(x) * scale)(x)
print(json.dumps(ledger.summary(1.0, 0.0)))
"""


def test_a_program_that_is_compiled_twice_is_counted(tmp_path: pathlib.Path) -> None:
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    run = subprocess.run(
        [sys.executable, "-c", TWICE], env=os.environ | settings, capture_output=True, check=True
    )
    row = json.loads(run.stdout)
    assert row["cached"] == 1 and row["compiles"] >= 3


def test_a_resumed_run_counts_the_work_that_was_in_no_checkpoint(tmp_path: pathlib.Path) -> None:
    reporting.start("x", tmp_path, {}).log({"step": 1})
    begun = (tmp_path / "config.json").stat().st_mtime
    (tmp_path / "checkpoints" / "seed0" / "phase0" / "step_00000001").mkdir(parents=True)
    os.utime(tmp_path / "checkpoints" / "seed0" / "phase0" / "step_00000001", (0, begun + 5))
    os.utime(tmp_path / "metrics.jsonl", (0, begun + 7))
    run = reporting.start("x", tmp_path, {}, resume=True)
    assert run.config["lost_seconds"] == pytest.approx(2, abs=0.01)
    os.utime(tmp_path / "metrics.jsonl", (0, (tmp_path / "config.json").stat().st_mtime - 1))
    run = reporting.start("x", tmp_path, {}, resume=True)
    assert run.config["lost_seconds"] == pytest.approx(2, abs=0.01)  # nothing was lost since
