"""Applies the known faults of `mutations.txt`, each of which a test or check must notice.

A fault changes a text of `tl`, as a mistake would. Its detectors are tests of the suite, among them
tests that run the sanity checks of `attack`, `audit` or `doctor`. Each detector must fail under the
fault, by an assertion or a ValueError; a crash such as `TypeError` does not count. Without a fault
all detectors must pass. A fault that survives is a missing test.

As a script, this file reads jobs from stdin and runs each in a forked process that loads the
changed source, so that no cache of Python or `functools` outlives a fault. JAX's cache on disk is
shared, because its key is the whole program.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]
# The faults that are tested without --full.
QUICK = {
    "no projection into the ball",
    "BGR instead of RGB",
    "test images are in the training part",
}
# Number of processes for the rest, so that pytest-xdist can divide them. Rows with the same
# detectors are in one part, because the processes share no compiled programs.
PARTS = 4
# Options of pytest without what takes time and does not decide an outcome.
OPTIONS = (
    "--assert=plain",
    "--tb=native",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:unraisableexception",
)


class Mutation(NamedTuple):
    """A fault.

    Attributes:
      name: the fault, in words.
      file: the file of `tl` that is changed.
      old: text that occurs once in the file.
      new: its replacement.
      detectors: node ids in `tests`, each of which must notice the fault.
    """

    name: str
    file: str
    old: str
    new: str
    detectors: tuple[str, ...]


def read_mutations() -> Iterator[Mutation]:
    """The rows of `mutations.txt`; paragraphs of fewer lines are comments."""
    for paragraph in (ROOT / "tests" / "mutations.txt").read_text().split("\n\n"):
        name, *lines = paragraph.strip().splitlines()
        if len(lines) > 3:
            file, old, new, *detectors = lines
            assert old.startswith("- ") and new.startswith("+ "), name
            yield Mutation(name, file, old[2:], new[2:], tuple(detectors))


MUTATIONS = tuple(read_mutations())
NOTHING = Mutation(
    "no fault: the same numbers, written differently",
    "metrics.py",
    "np.bincount(labels * k + predicted, minlength=k * k)",
    "np.bincount(predicted + k * labels, minlength=k * k)",
    ("test_metrics.py::test_per_class_equals_values_by_hand",),
)


# ---- the tests -----------------------------------------------------------------------------------


def test_every_row_changes_one_place() -> None:
    rows = [*MUTATIONS, NOTHING]
    names = Counter(row.name for row in rows)
    assert len(MUTATIONS) >= 25 and set(names.values()) == {1} and QUICK <= set(names)
    for row in rows:
        count = (ROOT / "tl" / row.file).read_text().count(row.old)
        assert count == 1, f"{row.name}: {count} places of tl/{row.file} have {row.old!r}"
        assert row.new != row.old and row.detectors, row.name


def test_a_few_faults_are_noticed() -> None:
    check([row for row in MUTATIONS if row.name in QUICK])


@pytest.mark.full
@pytest.mark.parametrize("part", range(PARTS))
def test_every_fault_is_noticed(part: int) -> None:
    rows = sorted((row for row in MUTATIONS if row.name not in QUICK), key=lambda r: r.detectors)
    check(rows[part * len(rows) // PARTS : (part + 1) * len(rows) // PARTS])


def check(rows: Sequence[Mutation]) -> None:
    """Asserts that the detectors pass without a fault and notice their own.

    The run without a fault loads the files of all faults through the same hook, with an empty line
    more, and one file with `NOTHING`.
    """
    files = {row.file for row in rows} - {NOTHING.file}
    detectors = dict.fromkeys(d for row in (NOTHING, *rows) for d in row.detectors)
    jobs = [([NOTHING[1:4], *((file, "", "") for file in sorted(files))], list(detectors))]
    jobs += [([row[1:4]], list(row.detectors)) for row in rows]
    clean, *reports = run(jobs)
    failed = {test: counts for test, counts in clean.items() if set(counts) != {"passed"}}
    assert not failed, f"without a fault these do not pass: {failed}"
    survivors = [
        f"{row.name}: {detector} has {counts}"
        for row, report in zip(rows, reports, strict=True)
        for detector, counts in report.items()
        if not any(outcome.startswith("noticed") for outcome in counts)
    ]
    assert not survivors, "\n".join(survivors)


# ---- the process that runs them ------------------------------------------------------------------

Job = tuple[Sequence[tuple[str, ...]], Sequence[str]]
"""Changes `(file, old, new)` of `tl`, and the tests to run; no text means an empty line more."""

Report = dict[str, dict[str, int]]
"""Test -> outcome -> number of its cases; outcomes are as in `Recorder`."""


def run(jobs: Sequence[Job]) -> list[Report]:
    """The reports of jobs, in their order; they share the programs that a fault does not change."""
    with tempfile.TemporaryDirectory() as programs:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": programs,
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": str(ROOT),
        }
        process = subprocess.run(
            [sys.executable, "-W", "ignore", __file__],
            input=json.dumps(jobs),
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
        )
    assert process.returncode == 0, process.stdout[-4000:] + process.stderr[-8000:]
    return json.loads(process.stdout.splitlines()[-1])


class Recorder:
    """A plugin of pytest that counts the outcomes of each test.

    An outcome is "passed", "skipped", "noticed: ERROR" or "crashed: ERROR".
    """

    def __init__(self, tests: Sequence[str]):
        self.report: Report = {test: defaultdict(int) for test in tests}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        if report.failed or report.skipped or report.when == "call":
            outcome = report.outcome
            if report.failed and call.excinfo:
                errors = (AssertionError, ValueError, pytest.fail.Exception)
                verb = "noticed" if isinstance(call.excinfo.value, errors) else "crashed"
                outcome = f"{verb}: {call.excinfo.typename}"
            name = item.nodeid.removeprefix("tests/")
            for test, counts in self.report.items():
                counts[outcome] += name == test or name.startswith(f"{test}[")
        return report


@functools.cache
def compiled() -> dict[str, CodeType]:
    """The code of every file of `tl` and of the tests; bytecode may not be on disk."""
    files = [path for folder in ("tl", "tests") for path in (ROOT / folder).rglob("*.py")]
    return {str(path): compile(path.read_text(), path, "exec") for path in files}


def change(edits: Sequence[tuple[str, ...]]) -> None:
    """Loads files of `tl` with changes from now on."""
    codes = compiled()
    for file, old, new in edits:
        path = ROOT / "tl" / file
        text = path.read_text()
        changed = text.replace(old, new) if old else f"{text}\n"
        codes[str(path)] = compile(changed, path, "exec")
    load = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, fullname: str) -> Any:
        return codes.get(self.path) or load(self, fullname)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def work(job: Job) -> Report:
    """Runs a job in this process, which must not have imported `tl`."""
    assert not any(name.partition(".")[0] == "tl" for name in sys.modules)
    edits, tests = job
    change(edits)
    # The first counterexample is enough.
    hypothesis.settings.register_profile(
        "one failure",
        hypothesis.settings.get_profile("tl"),
        phases=[hypothesis.Phase.generate],
        report_multiple_bugs=False,
    )
    hypothesis.settings.load_profile("one failure")
    recorder = Recorder(tests)
    # A bank of features of a faulty network must not stay in the cache of the user.
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TL_CACHE"] = folder
        ids = [f"tests/{test}" for test in tests]
        pytest.main([*OPTIONS, *ids], [recorder])
    return {
        test: {outcome: count for outcome, count in counts.items() if count}
        for test, counts in recorder.report.items()
    }


def main() -> None:
    """Runs the jobs of stdin in forked processes and prints their reports as one line of JSON."""
    # What all jobs import. A fork is safe, because nothing here starts a backend or a thread.
    import conftest
    import flax.linen  # noqa: F401
    import grain  # noqa: F401
    import optax  # noqa: F401
    import scipy.stats  # noqa: F401

    conftest.use_plain_fusions()
    compiled()
    reports = []
    for job in json.load(sys.stdin):
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as answer:
            pid = os.fork()
            if not pid:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                try:
                    json.dump(work(job), answer)
                    answer.flush()
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(0)
            os.waitpid(pid, 0)
            answer.seek(0)
            output.seek(0)
            text = answer.read()
            if not text or not all(json.loads(text).values()):  # a test that did not run
                sys.exit(f"{job}: {text}\n{output.read()[-6000:]}")
            reports.append(json.loads(text))
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
