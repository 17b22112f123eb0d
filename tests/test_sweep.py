"""Sweeps: the grid, the folders of cells, running, resuming, tables, the page, SLURM."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tl import hosts, pages, reporting
from tl.evaluation import paired
from tl.hosts.state import STATE
from tl.pages import sweep as sweep_pages
from tl.scale import sweep

ROOT = Path(__file__).resolve().parents[1]

# An experiment that takes milliseconds. Image i is classified correctly if i < 10 lr + seed.
TOY = '''
"""A toy."""
import csv, json, pathlib, sys
from absl import app, flags
flags.DEFINE_float("lr", 1.0, "", lower_bound=0)
flags.DEFINE_integer("seed", 0, "")
flags.DEFINE_enum("tune", "probe", ["probe", "all"], "")
flags.DEFINE_string("augment", "", "")
flags.DEFINE_string("workdir", None, "", required=True)
flags.DEFINE_string("data", None, "", required=True)
flags.DEFINE_bool("resume", False, "")
F = flags.FLAGS
def main(_):
    folder = pathlib.Path(F.workdir)
    with open("log", "a") as file: print(*sys.argv[1:], file=file)
    if pathlib.Path("broken").exists() and F.tune == "all": sys.exit("toy: the disk is full")
    folder.mkdir(parents=True, exist_ok=True)
    n = min(20, int(10 * F.lr) + F.seed)
    with open(folder / "predictions.csv", "w") as file:
        writer = csv.writer(file)
        writer.writerow("seed sha256 path label predicted probability correct seen".split())
        for i in range(20):
            writer.writerow([F.seed, f"h{i}", f"{i}.png", "a", "b", 0.5, int(i < n), ""])
    (folder / "config.json").write_text(json.dumps({"name": "toy", "git_commit": "c"}))
    result = {"test": {"top1": n / 20, "top1_ci95": [n / 25, 1.0], "nll": 1 / F.lr}, "seconds": 2}
    (folder / "result.json").write_text(json.dumps(result))
app.run(main)
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_sweep(folder: Path, *words: str, **settings: Any) -> tuple[dict[str, Any], reporting.Run]:
    run = reporting.start("sweep", folder / "s", {})
    lines: list[str] = []
    result = sweep.sweep(run, [*words, "toy.py", "--data=x"], say=lines.append, **settings)
    pages.finish(run, result)
    return json.loads((folder / "s/result.json").read_text()), run


def calls(folder: Path) -> list[str]:
    path = folder / "log"
    return path.read_text().splitlines() if path.exists() else []


# ---- the grid ----


@pytest.mark.parametrize(
    "words, grid",
    [
        (["lr=1,2"], {"lr": ["1", "2"]}),
        (['augment="flip,color",none'], {"augment": ["flip,color", "none"]}),
        (["augment=flip\\,color,none"], {"augment": ["flip,color", "none"]}),
        (["seeds=3", "tta=true,false"], {"seeds": ["3"], "tta": ["true", "false"]}),
        (["rules="], {"rules": [""]}),
        (["rules=.*=frozen,head/.*=head"], {"rules": [".*=frozen", "head/.*=head"]}),
    ],
)
def test_the_values_of_a_grid(words: list[str], grid: dict[str, list[str]]) -> None:
    assert sweep.parse([*words, "transfer", "--data=a=b,c"]) == (
        grid,
        "transfer",
        ["--data=a=b,c"],
    )


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "no grid"),
        (["transfer", "--data=x"], "no grid"),
        (["lr=1,2"], "no experiment"),
        (["lr=1,2", "--data=x"], "no experiment"),
        (["lr=1", "lr=2", "transfer"], "lr is given twice"),
        (["lr=1,2", "transfer", "--lr=3"], "lr is given twice"),
        (["lr=1,1", "transfer"], "value of lr is given twice"),
        (["workdir=a,b", "transfer"], "workdir"),
        (["lr=1,2", "transfer", "--workdir=a"], "workdir"),
    ],
)
def test_a_wrong_grid_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep.parse(words)


def test_the_folder_of_a_cell_depends_on_its_flags_and_not_on_their_order(tmp_path: Path) -> None:
    one = sweep.cells({"a": ["1", "2"], "b": ["3"]}, "transfer", ["--c=4", "--d"], tmp_path)
    other = sweep.cells({"c": ["4"], "a": ["2", "1"]}, "transfer", ["--d", "--b=3"], tmp_path)
    assert {cell.folder for cell in one} == {cell.folder for cell in other}
    assert len({cell.folder for cell in one}) == 2
    for changed in (
        sweep.cells({"a": ["1"], "b": ["3"]}, "evaluate", ["--c=4", "--d"], tmp_path),
        sweep.cells({"a": ["1"], "b": ["3"]}, "transfer", ["--c=4"], tmp_path),
        sweep.cells({"a": ["1"], "b": ["5"]}, "transfer", ["--c=4", "--d"], tmp_path),
    ):
        assert changed[0].folder not in {cell.folder for cell in one}
    assert one[0].words == ("--c=4", "--d", "--a=1", "--b=3", f"--workdir={one[0].folder}")


def test_an_experiment_is_a_command_or_a_script(tmp_path: Path) -> None:
    assert sweep.command("transfer")[1:] == ["-P", "-m", "experiments.transfer"]
    assert sweep.command("bench")[-1] == "experiments.benchmarks.bench"
    (tmp_path / "my.py").touch()
    assert sweep.command(str(tmp_path / "my.py")) == [sys.executable, str(tmp_path / "my.py")]
    with pytest.raises(ValueError, match="no experiment 'transfr'; nearest: 'transfer'"):
        sweep.command("transfr")
    with pytest.raises(ValueError, match="no script"):
        sweep.command("my.py")


# ---- running ----


def test_every_cell_runs_once_with_its_flags(toy: Path) -> None:
    result, run = run_sweep(toy, "lr=0.5,1", 'augment="a,b",it\'s $x')
    assert len(calls(toy)) == 4
    assert calls(toy)[0].startswith("--data=x --lr=0.5 --augment=a,b --workdir=")
    assert "--augment=it's $x" in calls(toy)[1]
    assert [row["flags"]["lr"] for row in result["rows"]] == ["1", "1", "0.5", "0.5"]
    assert result["metric"] == "test.top1" and not run.failures
    assert [row["mean"] for row in result["rows"]] == [0.5, 0.5, 0.25, 0.25]
    assert result["rows"][0]["ci95"] == [10 / 25, 1.0]


def test_a_repeated_call_runs_what_is_missing(toy: Path) -> None:
    run_sweep(toy, "lr=0.5,1")
    run_sweep(toy, "lr=0.5,1")
    assert len(calls(toy)) == 2
    result, _ = run_sweep(toy, "lr=1,0.5,0.1")
    assert len(calls(toy)) == 3 and len(result["rows"]) == 3


def test_an_unfinished_cell_with_checkpoints_is_resumed(toy: Path) -> None:
    (cell, _) = sweep.cells({"lr": ["0.5", "1"]}, "toy.py", ["--data=x"], toy / "s")
    (cell.folder / "checkpoints/0/phase0").mkdir(parents=True)
    run_sweep(toy, "lr=0.5,1")
    assert [line.endswith("--resume") for line in calls(toy)] == [True, False]


def test_a_failed_cell_does_not_stop_the_others(toy: Path) -> None:
    (toy / "broken").touch()
    result, run = run_sweep(toy, "tune=all,probe")
    assert len(calls(toy)) == 2
    assert result["rows"][1]["error"] == "toy: the disk is full"
    assert run.failure_message().startswith("cells failed (1 of 2")
    (toy / "broken").unlink()
    result, run = run_sweep(toy, "tune=all,probe")
    assert len(calls(toy)) == 3 and not run.failures
    assert not any("error" in row for row in result["rows"])


def test_sigterm_is_passed_on_and_ends_the_sweep(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (toy / "toy.py").write_text(
        TOY.replace("def main(_):", "def main(_):\n    import time; time.sleep(60)")
    )
    monkeypatch.setattr(STATE, "signalled", 1.0)
    cells = sweep.cells({"lr": ["0.5", "1"]}, "toy.py", ["--data=x"], toy / "s")
    with pytest.raises(hosts.Preempted):
        sweep.run_cells(cells, "toy.py", say=lambda _: None)
    assert not calls(toy) and not cells[1].folder.exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["lrr=1,2"], "toy.py refuses its flags: .*lrr"),
        (["lr=1,fast"], "fast"),
        (["lr=1,-2"], "-2"),
        (["tune=probe,al"], "al"),
    ],
)
def test_wrong_flags_are_found_before_the_first_cell(
    toy: Path, words: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_sweep(toy, *words)
    assert not calls(toy)


def test_a_missing_flag_is_found_before_the_first_cell(toy: Path) -> None:
    run = reporting.start("sweep", toy / "s", {})
    with pytest.raises(ValueError, match="--data must have a value"):
        sweep.sweep(run, ["lr=1,2", "toy.py"])


@pytest.mark.full
def test_cells_are_divided_among_hosts(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for ssh runs the command here, in another folder; each host notes its cells."""
    script = 'host=$4; echo "$host" >>hosts; cd / && eval "$5"'
    (toy / "bin").mkdir()
    (toy / "bin/ssh").write_text(f"#!/bin/bash\n{script}\n")
    (toy / "bin/ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{toy / 'bin'}{os.pathsep}{os.environ['PATH']}")
    result, run = run_sweep(toy, "lr=0.1,0.5,1,2", "augment=it's $x", on="alpha,beta")
    assert not run.failures and all(row["n"] == 1 for row in result["rows"])
    assert sorted(set((toy / "hosts").read_text().split())) == ["alpha", "beta"]
    assert len(calls(toy)) == 4 and "--augment=it's $x" in calls(toy)[0]


def test_a_cell_on_a_host_runs_the_command_of_the_checkout(tmp_path: Path) -> None:
    cell = sweep.Cell({}, ("--a=b c", "--workdir=w"), tmp_path)
    words = sweep._words(cell, "transfer", "alpha")
    assert words[:5] == ["ssh", "-tt", "-o", "BatchMode=yes", "alpha"]
    assert words[5].endswith(f"exec {ROOT}/launch.sh transfer '--a=b c' --workdir=w")


# ---- results ----


def test_runs_that_differ_in_the_seed_are_one_row(toy: Path) -> None:
    result, _ = run_sweep(toy, "seed=0,2", "lr=0.5,1")
    assert [row["flags"] for row in result["rows"]] == [{"lr": "1"}, {"lr": "0.5"}]
    best, other = result["rows"]
    assert best["values"] == [0.5, 0.6] and best["n"] == 2 and len(best["folders"]) == 2
    assert best["mean"] == pytest.approx(0.55) and best["std"] == pytest.approx(0.0707, abs=1e-4)
    assert other["mean"] == pytest.approx(0.3) and other["seconds"] == 4


def test_rows_are_compared_with_the_best_on_the_same_images(toy: Path) -> None:
    result, _ = run_sweep(toy, "lr=0.5,1")
    best, other = result["rows"]
    a, b = (paired.read_predictions(toy / "s" / row["folders"][0]) for row in (other, best))
    assert "difference" not in best
    assert {key: other[key] for key in ("difference", "difference_ci95", "p")} == (
        paired.accuracy_difference(a, b)
    )
    assert other["difference"] == -0.25 and other["p"] == 2 / 2**5


def test_seeds_of_one_run_are_the_values_of_its_row() -> None:
    result = {"seeds": {"top1": [0.5, 0.75]}, "test": {"top1": 0.6, "nll": 1.0}}
    assert sweep.numbers(result, "seeds.top1") == [0.5, 0.75]
    for metric in ("test", "test.acc", "seeds"):
        with pytest.raises(ValueError, match=f"metric={metric}"):
            sweep.numbers(result, metric)


def test_another_metric_can_be_compared_and_minimized(toy: Path) -> None:
    result, _ = run_sweep(toy, "lr=0.5,1,2", metric="test.nll", lowest=True)
    assert [row["mean"] for row in result["rows"]] == [0.5, 1, 2]
    with pytest.raises(ValueError, match="metric=test.loss"):
        run_sweep(toy, "lr=0.5,1,2", metric="test.loss")


def test_the_tables_and_the_page(toy: Path) -> None:
    (toy / "broken").touch()
    result, run = run_sweep(toy, "lr=0.5,1", "tune=probe,all", "augment=a_b|c")
    with open(toy / "s/sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["lr"] for row in rows] == ["1", "0.5", "0.5", "1"]
    assert float(rows[0]["mean"]) == 0.5 and rows[2]["error"] == "toy: the disk is full"
    markdown = (toy / "s/sweep.md").read_text().splitlines()
    assert len(markdown) == 6 and "50.0 %" in markdown[2] and "a_b\\|c" in markdown[2]
    latex = (toy / "s/sweep.tex").read_text()
    assert "\\toprule" in latex and "a\\_b|c" in latex and "50.0 \\%" in latex
    assert latex.count("\\\\\n") == 5
    html = (run.workdir / "report.html").read_text()
    assert f'href="{result["rows"][0]["folders"][0]}/report.html"' in html
    assert "toy: the disk is full" in html and "2 of 4 rows are not complete" in html
    assert pages.redraw(run.workdir) == run.workdir / "report.html"


def test_the_page_of_an_empty_result_can_be_drawn(tmp_path: Path) -> None:
    row = {"flags": {}, "folders": ["a"], "values": [], "mean": None, "std": None, "n": 0}
    result = {"experiment": "x", "grid": {"seed": ["0"]}, "metric": "", "rows": [row]}
    result["rows"][0]["error"] = "1 of 1 cells are not finished"
    assert sweep_pages.page(result, tmp_path).sections
    assert set(sweep_pages.tables(result)) == {"sweep.csv", "sweep.md", "sweep.tex"}


def test_cells_of_several_commits_are_remarked_on(toy: Path) -> None:
    result, _ = run_sweep(toy, "lr=0.5,1")
    config = toy / "s" / result["rows"][0]["folders"][0] / "config.json"
    config.write_text(config.read_text().replace('"c"', '"d"'))
    _, run = run_sweep(toy, "lr=0.5,1")
    assert "2 commits" in run.remarks[0]


# ---- slurm ----


@pytest.fixture
def cluster(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for sbatch, which keeps the job, and squeue, which lists `queue`."""
    for name, script in {
        "sbatch": 'cat >job; echo "Submitted batch job 77"',
        "squeue": '[ -e queue ] && cat queue || { echo "invalid job id" >&2; exit 1; }',
    }.items():
        path = toy / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{toy / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sweep, "command", lambda _: [sys.executable, "toy.py"])
    return toy


def submitted(folder: Path, *, options: str = "--gpus=0 --mem=4G") -> tuple[list[str], str]:
    run = reporting.start("sweep", folder / "s", {})
    lines: list[str] = []
    words = ["lr=0.5,1", "augment=it's", "transfer", "--data=x"]
    sweep.sweep(run, words, on="slurm", options=options, say=lines.append)
    job = (folder / "job").read_text() if (folder / "job").exists() else ""
    return lines, job


def test_unfinished_cells_are_one_array_of_slurm(cluster: Path) -> None:
    lines, job = submitted(cluster)
    assert "Submitted batch job 77" in lines[-1]
    assert "#SBATCH --array=1-2\n" in job and "#SBATCH --mem=4G\n" in job
    # The job selects its command by the number of the task.
    (cluster / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@" >"task"\n')
    (cluster / "srun").rename(cluster / "bin/srun")
    (cluster / "bin/srun").chmod(0o755)
    script = job.replace('"$launch" install', "true")
    for number, lr in ((1, "0.5"), (2, "1")):
        subprocess.run(
            ["bash", "-c", script], env=os.environ | {"SLURM_ARRAY_TASK_ID": str(number)}
        )
        task = (cluster / "task").read_text().splitlines()
        assert task[1:5] == ["transfer", "--data=x", f"--lr={lr}", "--augment=it's"]
        assert task[5].startswith(f"--workdir={cluster}/s/") and len(task) == 6
    # With a checkpoint it continues.
    folder = Path(task[5].partition("=")[2])
    (folder / "checkpoints/0/phase0").mkdir(parents=True)
    subprocess.run(["bash", "-c", script], env=os.environ | {"SLURM_ARRAY_TASK_ID": "2"})
    assert (cluster / "task").read_text().splitlines()[-1] == "--resume"


def test_an_array_is_not_submitted_twice(cluster: Path) -> None:
    submitted(cluster)
    (cluster / "job").unlink()
    (cluster / "queue").write_text("77 R transfer\n")
    lines, job = submitted(cluster)
    assert "still in the queue" in lines[-1] and not job
    (cluster / "queue").unlink()
    assert submitted(cluster)[1]


def test_finished_cells_are_not_submitted(cluster: Path) -> None:
    for cell in sweep.cells(
        {"lr": ["0.5", "1"], "augment": ["it's"]}, "transfer", ["--data=x"], cluster / "s"
    ):
        subprocess.run([sys.executable, "toy.py", *cell.words], check=True)
    lines, job = submitted(cluster)
    assert not job and "2 are finished" in lines[0]


def test_a_refusal_of_slurm_is_one_sentence(cluster: Path) -> None:
    (cluster / "bin/sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2; exit 1\n")
    with pytest.raises(ValueError, match="invalid partition"):
        submitted(cluster)


# ---- the command ----


@pytest.mark.full
def test_the_command_takes_its_grid_as_arguments(toy: Path) -> None:
    words = ["lr=0.5,1", "--workdir=out", "--", "toy.py", "--data=x", "--tune=all"]
    process = subprocess.run(
        [sys.executable, "-m", "experiments.sweep", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    assert "Best test.top1: 50.0 % with lr=1." in process.stdout
    assert json.loads((toy / "out/config.json").read_text())["flags"]["grid"] == [
        "lr=0.5,1",
        *words[3:],
    ]
    assert all("--tune=all" in line for line in calls(toy))
