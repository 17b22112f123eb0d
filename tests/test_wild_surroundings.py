"""Paths, caches, environments and terminals as people have them; see `tests/wild.py`."""

from __future__ import annotations

import ast
import errno
import importlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from tests import toys, wild
from tests.test_scripts import ROOT, run_jobs
from tests.toys import toy_zoo  # noqa: F401 (a fixture)
from tl import cli, data, devices, hosts, inference, models, pages, paths, reporting
from tl.attacks import norms
from tl.attacks.run import check_call
from tl.data import duplicates, shards
from tl.evaluation import attack_transfer, attacked, robust, sets, shared_images
from tl.evaluation.attack_settings import AttackSettings
from tl.evaluation.transfer import TransferSettings, transfer
from tl.pages import evaluation, training
from tl.reporting import results
from tl.training import checkpoints, rate_finder, resume
from tl.training.adversarial import Adversary
from tl.training.recipe import Recipe
from tl.types import CacheWarning
from tl.weights import hub

NAMES = [situation.name for situation in wild.SURROUNDINGS]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str, str]]:
    """Name of a situation -> its folder, stdout and stderr, all from one process."""
    root = tmp_path_factory.mktemp("surroundings")
    jobs: list[dict[str, Any]] = []
    for number, situation in enumerate(wild.SURROUNDINGS):
        folder = root / str(number)
        (folder / "describe").mkdir(parents=True)
        made = situation.make(folder)
        argv = [f"{made.script}.py", *made.argv]
        if made.script != "report" and not any("--workdir" in word for word in argv):
            argv.append(f"--workdir={folder / 'run'}")
        jobs.append(
            {
                "folder": str(folder / "describe"),
                "module": f"experiments.{made.script}",
                "argv": argv,
                "output": str(folder / "output"),
                "env": {"TL_CACHE": str(folder / "cache"), **made.env},
                "before": made.before,
            }
        )
    done = run_jobs(jobs, ROOT)
    return {name: (root / str(number), *done[number]) for number, name in enumerate(NAMES)}


@pytest.mark.parametrize("situation", wild.SURROUNDINGS, ids=NAMES)
def test_a_command_goes_on_or_says_one_sentence(
    situation: wild.Situation, outputs: dict[str, tuple[Path, str, str]]
) -> None:
    folder, out, err = outputs[situation.name]
    assert "Traceback" not in out + err, err
    *lines, code = err.strip().splitlines()
    assert code == f"exit code {situation.right.get('code', 1 if situation.refused else 0)}", err
    assert all(len(line) <= reporting.MAX_MESSAGE for line in (out + err).splitlines())
    if situation.refused:
        message = [line for line in lines if line.strip()][-1]
        assert re.search(situation.refused, message), message
        assert message == reporting.one_line(message)
    if whole := situation.right.get("whole"):
        file = re.search(r"the whole message is in '(.*)'", err)
        assert file and whole in Path(file[1]).read_text(encoding="utf-8")
    if situation.remark:
        assert len([x for x in out.splitlines() if re.search(situation.remark, x)]) == 1, out
    if file := situation.right.get("file"):
        assert (folder / file).exists()


# ---- messages ------------------------------------------------------------------------------------


def full_message(message: str) -> str:
    """The content of the file that a message names."""
    file = re.search(r"; the whole message is in '(.*)'$", message)
    assert file, message
    return Path(file[1]).read_text(encoding="utf-8")


@pytest.mark.parametrize("n", [60, 599, 600, 601, 650, 6_000, 40_000])
def test_a_message_is_cut_at_a_word_and_written_in_full(tmp_path: Path, n: int) -> None:
    text = ("transfer: " + "word " * n)[:n].strip().ljust(n, "!")
    message = reporting.error_message(text, folder=tmp_path)
    assert len(message) <= 600
    if n <= 600:
        assert message == text and not list(tmp_path.iterdir())
        return
    assert re.match(r"transfer: (word )+\.\.\.; the whole message is in ", message)
    assert full_message(message) == text + "\n"


@pytest.mark.parametrize("where", ["file", "long", "missing", "none"])
def test_without_a_folder_that_can_be_written_the_file_is_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (tmp_path / "file").write_text("")
    folders = {"file": tmp_path / "file", "long": tmp_path / ("x" * 250) / ("y" * 250)}
    folder = folders.get(where, None if where == "none" else tmp_path / "missing")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    message = reporting.error_message("x " * 500, folder=folder)
    assert (
        str(tmp_path / "temporary") in message and full_message(message).strip() == "x " * 499 + "x"
    )
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no temporary"))
    message = reporting.error_message("x " * 500, folder=folder)
    assert len(message) <= 600 and message.endswith("x ...")


def test_details_that_a_message_leaves_out_are_written(tmp_path: Path) -> None:
    assert reporting.error_message("a: b; c", ["b", "c"], tmp_path) == "a: b; c"
    message = reporting.error_message("a: b and 2 more", ["b", "c", "d"], tmp_path)
    assert message == f"a: b and 2 more; the whole message is in {str(tmp_path / 'error.txt')!r}"
    assert full_message(message) == "a: b and 2 more\nb\nc\nd\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb", "a b"),
        ("a\r\n  b\n", "a b"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\tb\0", "a\\tb\\x00"),
        ("caf\udce9", "caf\\xe9"),
        ("\u202eabc", "\\u202eabc"),
        ("猫 é", "猫 é"),
    ],
)
def test_a_message_is_one_line_without_control_characters(text: str, line: str) -> None:
    assert reporting.one_line(text) == line


def test_a_long_remark_is_cut_on_the_terminal_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = reporting.start("x", tmp_path, {})
    run.remark("word " * 1000)
    run.finish({"names": [float("nan")] * 1000}, None)
    out, err = capsys.readouterr()
    assert len(out.strip()) <= 600 and out.strip().endswith("word ...; see result.json")
    assert len(err.strip()) <= 600 and err.strip().endswith("...")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["remarks"] == ["word " * 1000]


def test_a_full_disk_shows_no_traceback_and_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = reporting.start("transfer", tmp_path, {})
    failing = OSError(28, "No space left on device")

    def fail(*args: Any, **more: Any) -> None:
        raise failing

    monkeypatch.setattr("tl.reporting.images.save_png", fail)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        run.attempt("model", lambda: models.save(tmp_path / "model", *toys.classifier()), None)
    assert not list((tmp_path / "model").iterdir())
    run.attempt("figure", lambda: run.figure("x", np.zeros((2, 2, 3), np.uint8)), None)
    run.finish({"top1": 1.0}, None)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["top1"] == 1.0 and set(result["failed"]) == {"model", "figure"}
    assert "cannot write a classifier into" in result["failed"]["model"]
    assert "Traceback" not in capsys.readouterr().err


def test_a_file_that_a_full_disk_cut_off_is_named_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as `write` raises it

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="result.json") as caught:
        reporting.write_whole(tmp_path / "result.json", "{}")
    message = reporting.sentence(caught.value)
    assert re.search(r"result.json' .No space left on device.; check this path, its perm", message)
    assert not list(tmp_path.iterdir())


# ---- files of other versions, and broken ones ----------------------------------------------------


@pytest.mark.usefixtures("toy_zoo")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "has another format: got 3, expected 1 or 2"),
        ({"format": "2"}, "has another format: got '2'"),
        ({"classes": []}, "not a stored class table"),
        ({"head": "newer"}, "unknown head 'newer'"),
        ({"arch": "newer"}, "unknown architecture 'newer'"),
        ({"pixels": {"size": -1}}, "PixelSpec|`size`"),
        ({"weights": {"x": 1}}, "unexpected keyword argument 'x'"),
        ({"record": {"temperature": "warm"}}, "the temperature"),
        ({"record": {"images": 3}}, "int"),
        ({"record": {"images": {"train": 5}}}, "hashes of images"),
        ({"record": [1]}, "TypeError"),
    ],
)
def test_a_model_that_another_version_wrote_is_one_sentence(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    models.save(tmp_path, *toys.classifier())
    file = tmp_path / models.ARTIFACT
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    expected = f"classifier.json is not a classifier that this version of tl wrote: .*({message})"
    with pytest.raises(ValueError, match=expected):
        models.load(str(tmp_path))


@pytest.mark.usefixtures("toy_zoo")
@pytest.mark.parametrize("record", [None, {}, {"temperature": 1, "newer": [1]}])
def test_a_record_of_another_version_is_read(tmp_path: Path, record: Any) -> None:
    models.save(tmp_path, *toys.classifier())
    file = tmp_path / models.ARTIFACT
    file.write_text(json.dumps(json.loads(file.read_text()) | {"record": record}))
    models.load(str(tmp_path))
    assert models.metadata(tmp_path) == (record or {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "have no labels"),
        (b"a,b\n1,2\n", r"line 2 of .* is not a prediction .KeyError.'label'"),
        (b"seed,sha256,path,label\n1,2,3,4\n", r"line 2 of .* expected the columns seed, sha256"),
        (b"seed,sha256,path,label,predicted,probability\n0,a,b,c,d,1\n", "KeyError.'correct'"),
        (
            b"seed,sha256,path,label,predicted,probability,correct\nx,a,b,c,d,1,1\n",
            "invalid literal",
        ),
        (b"\xff\xfe\0", "is not a table in UTF-8"),
        (b"seed,sha256,path,label,predicted,probability,correct\n0,a,b,c", "NoneType"),
    ],
)
def test_broken_predictions_are_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "predictions.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        sets.paired.read_predictions(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "3", "[1]", '{"x": 1}', '"a"'])
def test_broken_records_of_a_resumed_run_are_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "phase1").mkdir()
    for name in ("rates.json", "parts.json"):
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="does not hold the learning rates of the run .*`workdir`"):
        rate_finder.saved_rates(tmp_path, lambda: rate_finder.Rates(0.1, []))
    with pytest.raises(ValueError, match="`workdir`"):
        resume.same_inputs(tmp_path / "parts.json", {"a": 1})


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"name": ""}', "null"])
def test_a_claim_that_is_not_one_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "fast.json").write_text(text)
    with pytest.raises(ValueError, match="fast.json"):
        results.load(tmp_path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.ENOTDIR, errno.EROFS])
def test_a_cache_of_the_hub_that_cannot_be_written_is_named(number: int) -> None:
    pytest.importorskip("huggingface_hub")
    message = hub._sentence(OSError(number, os.strerror(number), "/c"), "timm/x", None)
    assert message.startswith("cannot write timm/x into the cache of the hub, /")
    assert message.endswith(f" ({os.strerror(number)}); set HF_HOME to another folder")


def test_after_ctrl_c_the_parts_that_are_kept_are_named(tmp_path: Path) -> None:
    message = reporting.interrupted
    nothing = "interrupted before it was done; no result.json was written"
    assert message(None) == "interrupted before it began"
    assert message(tmp_path) == message(tmp_path, resumable=True) == nothing
    (tmp_path / "metrics.jsonl").touch()
    rows = f"{nothing}; {str(tmp_path)!r} has metrics.jsonl; add --resume to continue"
    assert message(tmp_path) == nothing and message(tmp_path, resumable=True) == rows
    (tmp_path / "model").mkdir()
    assert message(tmp_path, resumable=True) == f"{nothing}; {str(tmp_path)!r} has model"
    (tmp_path / "checkpoints").mkdir()
    both = f"{nothing}; {str(tmp_path)!r} has model and checkpoints"
    assert message(tmp_path) == both
    assert message(tmp_path, resumable=True) == f"{both}; add --resume to continue"
    (tmp_path / "result.json").touch()
    assert message(tmp_path) == f"interrupted; the result is in {str(tmp_path)!r}"


# ---- caches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ({"TL_CACHE": "/c"}, "/c"),
        ({"TL_CACHE": "relative"}, "relative"),
        ({"TL_CACHE": "~/c"}, "/home/me/c"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/tl"),
        ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/tl"),
        ({"XDG_CACHE_HOME": "x"}, "/home/me/.cache/tl"),
        ({"XDG_CACHE_HOME": "~/x"}, "/home/me/.cache/tl"),
        ({"HOME": ""}, "/.cache/tl"),
    ],
)
def test_the_folder_of_the_cache(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], folder: str
) -> None:
    for name in ("TL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/me"} | env).items():
        monkeypatch.setenv(name, value)
    assert str(paths.cache_dir()) == folder


@pytest.mark.parametrize(
    "damage", ["cut", "folder", "denied", "other width", "other version", "no folder", "a file"]
)
def test_a_cache_that_cannot_be_read_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    sources = {
        name: toys.gray_png(tmp_path / f"{name}.png", i) for i, name in enumerate(("a", "b"))
    }
    before = duplicates.fingerprints(sources, cache=tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    (shard,) = folder.iterdir()
    match damage:
        case "cut":
            shard.write_bytes(shard.read_bytes()[:-10])
        case "folder":
            shard.unlink()
            shard.mkdir()
        case "denied":
            monkeypatch.setattr(shards, "load", denied)
        case "other width" | "other version":
            shard.unlink()
            dtype = np.uint8 if damage == "other width" else np.float32
            shards.write(folder, "fingerprints", {"a": np.zeros(5, dtype)})
        case "no folder":
            shutil.rmtree(folder)
        case "a file":
            shutil.rmtree(folder)
            folder.write_text("")
    with warnings.catch_warnings():
        warnings.simplefilter("error" if damage != "a file" else "ignore")
        after = duplicates.fingerprints(sources, cache=tmp_path / "cache")
    assert all((after[name] == before[name]).all() for name in sources) and len(after) == 2


def denied(*args: Any) -> None:
    raise PermissionError(13, "Permission denied")


def test_programs_that_jax_cannot_cache_are_one_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JAX warns once for each program."""
    run = reporting.start("x", tmp_path, {})
    config = SimpleNamespace(jax_compilation_cache_dir="/c/xla")

    def work(words: list[str]) -> None:
        for name in ("f", "g"):
            text = f"Error writing persistent compilation cache entry for '{name}': OSError: full"
            warnings.warn(text, stacklevel=1)
            warnings.warn(text.replace("writing", "reading"), stacklevel=1)
        warnings.warn("another " * 200, stacklevel=1)
        warnings.warn("the cache is full", CacheWarning, stacklevel=1)

    monkeypatch.setattr(cli.app, "run", lambda main: main(["x"]))
    monkeypatch.setattr(devices.jax, "config", config)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli._run("x", work, [run])
    end = "so it is compiled in each run; delete the folder, or set TL_CACHE to another one"
    assert run.remarks == [
        f"a program in the cache '/c/xla' cannot be written, {end}",
        f"a program in the cache '/c/xla' cannot be read, {end}",
        "the cache is full",
    ]


# ---- environment ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["no", "yes", "true", "2", " "])
def test_tl_distributed_is_0_or_1(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TL_DISTRIBUTED", value)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    with pytest.raises(ValueError, match=f"got TL_DISTRIBUTED='{value}', expected 0 or 1"):
        hosts.join()


@pytest.mark.parametrize("error", [RuntimeError("Unknown backend qpu"), AssertionError()])
def test_jax_without_a_device_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", "qpu")
    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(ValueError, match="JAX_PLATFORMS='qpu', expected cpu, cuda, tpu or no val"):
        devices.available()


def test_checkpoints_in_a_folder_that_is_not_utf8_are_refused_before_training(
    tmp_path: Path,
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(ValueError, match=r"caf\\\\xe9/c' is not UTF-8, .*; give another `workdir`"):
        checkpoints.open(folder / "c")
    assert not folder.exists()
    run, spec = reporting.start("transfer", folder, {}), toys.color_folder(tmp_path / "set", 2)
    with pytest.raises(ValueError, match="is not UTF-8"):
        transfer(run, *toys.classifier("toy_vgg"), spec, None, TransferSettings(Recipe("head")))


# ---- images of one class -------------------------------------------------------------------------


def test_a_set_of_one_class_is_read_for_a_test_only(tmp_path: Path) -> None:
    word = wild.tree("cat/0.png", "cat/1.png")(tmp_path / "set")
    (tmp_path / "set.csv").write_text("path,label\nset/cat/0.png,cat\n")
    for name, n in ((word, 2), (f"csv:{tmp_path / 'set.csv'}", 1)):
        with pytest.raises(ValueError, match="expected .*at least two classes"):
            data.get(name)
        spec = data.get(name, min_classes=1)
        assert (spec.classes, len(spec.examples)) == (("cat",), n)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected a sub-folder for each of at least one class"):
        data.get(f"folder:{tmp_path / 'empty'}", min_classes=1)


ONE = {"balanced", "majority", "precision"}


@pytest.mark.parametrize("k", [2, 4])
def test_measures_that_compare_classes_are_null_with_a_reason(k: int) -> None:
    logits = np.eye(k, dtype=np.float32)[[1, 1, 0]]
    names = tuple("abcd"[:k])
    result = sets.summary(logits, np.array([1, 1, 1]), names, 2.0)
    assert reporting.jsonable(result, holes=(holes := [])) and not holes
    assert result["top1"] == 2 / 3 and result["top1_ci95"][0] < 2 / 3 < result["top1_ci95"][1]
    assert result["balanced"] is None and result["majority"] is None
    assert {row["precision"] for row in result["per_class"]} == {None}
    assert [row["recall"] for row in result["per_class"]][:2] == [None, 2 / 3]
    assert result["confusion"][1][:2] == [1, 2] and result["nll"] > 0 and result["ece"] > 0
    assert result["undefined"] == dict.fromkeys(ONE, "all 3 images are of the class 'b'")
    assert "undefined" not in sets.summary(logits, np.array([1, 1, 0]), names)


def test_one_class_is_evaluated_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result, its page, the lines of evaluate and transfer, and the comparison of two runs."""
    word = wild.tree("class 1/0.png", "class 1/1.png", "class 1/2.png")(tmp_path / "set")
    spec = data.get(word, min_classes=1)
    clf, variables = toys.classifier()
    logits = np.array([[0, 1], [0, 1], [1, 0]], np.float32)
    files = tuple(example.path for example in spec.examples)
    predicted = inference.Predictions(logits, np.ones(3, int), files)
    monkeypatch.setattr(inference, "predict", lambda *args, **more: predicted)
    run = reporting.start("evaluate", tmp_path / "run", {"seed": 0})
    result = sets.evaluation_result(run, clf, variables, spec, 1.0)
    pages.finish(run, result)
    stored = json.loads((run.workdir / "result.json").read_text())
    assert "failed" not in stored and stored["balanced"] is None and stored["top1"] == 2 / 3
    reason = "all 3 images are of the class 'class 1'"
    assert stored["remarks"] == [
        f"{reason}, so there is no balanced accuracy, majority class or precision"
    ]
    (line, _) = evaluation.lines(result)
    assert line == "top-1 66.7 % (95 % interval 20.8 % to 93.9 %, n = 3), one class; skipped 0"
    passes = [sets.Pass(seed, predicted, np.ones(3), None) for seed in (0, 1)]
    of_seeds = sets.summarize_passes(passes, ["class 0", "class 1"])
    assert of_seeds["test"]["balanced"] is None and of_seeds["majority"] is None
    assert of_seeds["undefined"]["majority"] == reason and of_seeds["test"]["top1"] == 2 / 3
    shown = {"skipped": [], "model": "", "frozen_unchanged": True, "classes": ["a", "b"]}
    assert "majority" not in next(training.lines(of_seeds | shown))
    other = sets.paired.compare(
        reporting.start("versus", tmp_path / "versus", {}), str(run.workdir), str(run.workdir)
    )
    assert (other["n"], other["difference"], other["p"]) == (3, 0.0, 1.0)


# ---- radii ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "eps", "remark"),
    [
        ("l2", 8 / 255, "a radius of 8/255 is usual in Linf; in L2, .* 0.5 to 3 is usual"),
        ("l2", 16 / 255, "a radius of 16/255 is usual in Linf; in L2, "),
        ("l2", 0.25 / 255, "a radius of 0.25/255 is usual"),
        ("l1", 8 / 255, "a radius of 8/255 is usual in Linf; in L1, .* 10 to 100 is usual"),
        ("l1", 0.5, "a radius of 127.5/255 is usual in Linf; in L1"),
        ("linf", 1.0, "a radius of 1 in Linf allows every image.*; write 1/255 for 1 of 255 lev"),
        ("linf", 8 / 255, ""),
        ("linf", 0.0, ""),
        ("l2", 36 / 255, ""),
        ("l2", 0.5, ""),
        ("l2", 3.0, ""),
        ("l1", 12.0, ""),
    ],
)
def test_a_radius_of_another_norm_is_a_remark(norm: str, eps: float, remark: str) -> None:
    remarks = norms.radius_remarks(norm, [eps])
    assert len(remarks) == bool(remark) and all(re.match(remark, line) for line in remarks)
    assert all(len(line) <= 200 for line in remarks)


def test_8_for_8_255_is_refused_with_the_way_to_write_it() -> None:
    image = np.zeros((1, 2, 2, 3), np.float32)
    for check in (
        lambda: cli.radii("8", "linf"),
        lambda: robust.check_robust(8.0, "pgd"),
        lambda: Adversary("pgd", 8.0),
        lambda: shared_images.check_eps(8.0, "linf", 8),
        lambda: check_call(norms.LINF, image, np.float32(8.0)),
    ):
        with pytest.raises(ValueError, match="8.*; write 8/255 for 8 of 255 levels"):
            check()


class Stopped(Exception):
    """Ends a function before its work."""


def test_every_evaluation_under_attack_checks_its_radius(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any, **more: Any) -> None:
        raise Stopped

    module = importlib.import_module("tl.evaluation.transfer")
    monkeypatch.setattr(attacked, "select_images", stop)
    monkeypatch.setattr(attack_transfer, "resizing_logits", stop)
    monkeypatch.setattr(module, "rounds", stop)
    clf, variables = toys.classifier()
    spec = toys.color_folder(tmp_path / "set", 2)
    empty: Any = None
    network = shared_images.Network("toy", clf, variables)
    of_transfer = attack_transfer.TransferSettings("mi_fgsm", "l2", 8 / 255, 1, 0)
    calls = {
        "attack": lambda run: attacked.evaluate_attack(
            run, clf, variables, empty, AttackSettings("pgd", "l2", (8 / 255, 0.5))
        ),
        "attack_transfer": lambda run: attack_transfer.evaluate_transfer(
            run, [network], empty, of_transfer
        ),
        "transfer": lambda run: transfer(
            run, clf, variables, spec, None, TransferSettings(Recipe("probe"), robust_eps=1.0)
        ),
    }
    for name, call in calls.items():
        run = reporting.start(name, tmp_path / name, {})
        with pytest.raises(Stopped):
            call(run)
        assert [remark[:14] for remark in run.remarks] == [
            "a radius of 8/" if "attack" in name else "a radius of 1 "
        ]


# ---- flags in messages ---------------------------------------------------------------------------

# Flags of other programs, and absl's own.
OTHER_FLAGS = {"help", "verbosity", "show-toplevel", "porcelain", "no-deps", "force-reinstall"}
# Of absl, of the launchers in launch.d/, and of sbatch.
OTHER_FLAGS |= {"only_check_args", "cells", "processes", "restart", "gpus", "requeue", "noheader"}
OTHER_FLAGS |= {"jobs", "data", "pdeathsig", "xla_backend_optimization_level"}
# Functions of the scripts that define flags, besides those of absl.
DEFINING = {"define_bool_or", "number", "real", "text", "one_of", "count"}


def strings(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The text and line of each string; CSS variables are left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"--[\w-]+:|var\(--[\w-]+\)", "", node.value), node.lineno


def defined_flags(tree: ast.AST) -> set[str]:
    """First arguments of the functions that define flags, and the rows of a table of them."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            function = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if function.startswith("DEFINE") or function in DEFINING:
                names |= {x.value for x in node.args[:1] if isinstance(x, ast.Constant)}
        if isinstance(node, ast.For):  # of benchmarks/peers.py: (name, default, help)
            rows = [row for row in ast.walk(node.iter) if isinstance(row, ast.Tuple) and row.elts]
            names |= {r.elts[0].value for r in rows if isinstance(r.elts[0], ast.Constant)}
    return names


def test_every_flag_in_a_message_is_defined() -> None:
    files = [*ROOT.glob("tl/**/*.py"), *ROOT.glob("experiments/**/*.py")]
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    flags = {file: defined_flags(tree) for file, tree in trees.items()}
    every, common = set().union(*flags.values()), flags[ROOT / "tl/cli.py"]
    assert {"workdir", "seed", "eps", "tune", "tv", "cw_pictures"} <= every
    wrong = []
    for file, tree in trees.items():
        docstring = ast.get_docstring(tree, clean=False) or ""
        library = file.is_relative_to(ROOT / "tl")
        for text, line in strings(tree):
            # The docstring of a script and words on other commands name flags of other scripts.
            elsewhere = library or text == docstring or re.search(r"launch\.sh|transfer's", text)
            known = OTHER_FLAGS | (every if elsewhere else common | flags[file])
            for name in re.findall(r"(?<![\w-])--([a-z][\w-]*)", text):
                if not {name, name.removeprefix("no")} & known:
                    wrong.append(f"{file.relative_to(ROOT)}:{line} --{name}")
    assert not wrong


def test_a_parameter_that_is_no_flag_of_the_program_stays_a_parameter() -> None:
    assert cli.with_dashes("give `weights_of_nobody=x`") == "give `weights_of_nobody=x`"
