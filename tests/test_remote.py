"""`launch.sh tpu` and `launch.sh slurm` with stand-ins for gcloud and SLURM.

The stand-in for gcloud keeps a slice in a file, and its two workers are folders: scripts that
launch.sh sends to them run there, so the copied commit is unpacked, installed and run.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_launch import BASH, FAKE, launch, project, stops, tool

pytestmark = pytest.mark.skipif(
    BASH is None or not shutil.which("git") or sys.platform != "linux",
    reason="needs bash, git, and the tools of a Linux worker",
)
__all__ = ["project"]  # the fixture

# What the workers and launch.sh need in addition to the tools of test_launch.
TOOLS = "mkdir cp date git tar gzip wc sort seq setsid nohup tail mktemp ls touch"

# The stand-in. `state` holds one line per slice: name, state, type. `log` has one line per call. A
# file `next` lists events, one for each creation or report: `capacity`, `quota`, `lost`, `gone`.
GCLOUD = r"""
import os, pathlib, shutil, subprocess, sys
cloud = pathlib.Path(os.environ["CLOUD"])
words = sys.argv[1:]
values = dict(w[2:].split("=", 1) for w in words if w.startswith("--") and "=" in w)
names = [w for w in words if not w.startswith("--")]
def read(name): return (cloud / name).read_text().splitlines() if (cloud / name).exists() else []
def write(name, lines): (cloud / name).write_text("".join(l + "\n" for l in lines))
def event(*kinds):
    events = read("next")
    if events and events[0] in kinds:
        write("next", events[1:])
        return events[0]
def stop(text, code=1): print(text, file=sys.stderr); sys.exit(code)
short = " ".join(names[2:4] if names[0] == "compute" else names[:2])
script = values.get("command", "")
kinds = ("install", "setsid", "tail -n +", "kill -TERM", "ls tl-")
kind = next((k for k in kinds if k in script), "")
with open(cloud / "log", "a") as file:
    file.write(f"{short} {values.get('worker', '')} {kind}".strip() + "\n")
slices = read("state")
if names[3:4] != ["list"]:
    asked = [word.split(":")[0] for word in names]
    slices = [line for line in slices if line.split()[0] in asked]
workers = {"all": (0, 1)}.get(values.get("worker", "0"), (0,))
homes = [cloud / f"worker{i}" for i in workers]
if names[0] == "storage":
    bucket = cloud / "bucket"
    if names[1] == "ls":
        sys.exit(0 if any(bucket.glob("checkpoints/*")) and not print("x") else 1)
    ignore = shutil.ignore_patterns("checkpoints")
    shutil.copytree(bucket, names[3], dirs_exist_ok=True, ignore=ignore)
    sys.exit()
group, verb, name = names[2], names[3], (names + [""])[4]
if verb == "list":
    if group == "queued-resources":
        queue = read("queue")
        print(*queue, sep="\n")
        if queue and queue[0].endswith("WAITING_FOR_RESOURCES"):
            write("queue", [f"{queue[0].split()[0]} ACTIVE"])
            write("state", [f"{queue[0].split()[0]} READY {read('type')[0]}"])
    else:
        print(*slices, sep="\n")
elif verb == "create":
    if slices: stop("ALREADY_EXISTS")
    if event("capacity"): stop("There is no more capacity in the zone")
    if event("quota"): stop("RESOURCE_EXHAUSTED: Quota limit exceeded")
    for i in (0, 1):
        shutil.rmtree(cloud / f"worker{i}", ignore_errors=True)
        (cloud / f"worker{i}").mkdir()
    if group == "queued-resources":
        write("type", [values["accelerator-type"]])
        write("queue", [f"{name} WAITING_FOR_RESOURCES"])
    else:
        write("state", [f"{name} READY {values['accelerator-type']}"])
elif verb == "delete":
    if group == "tpu-vm" and not slices: stop("NOT_FOUND")
    write("state", []), write("queue", [])
elif not slices or " READY " not in slices[0]:
    stop("cannot connect", 255)
elif verb == "scp":
    if names[4].startswith("/"):
        for home in homes: shutil.copy(names[4], home)
    else:
        source = names[4].split(":")[1].removesuffix("/.")
        shutil.copytree(homes[0] / source, names[5], dirs_exist_ok=True)
elif verb == "ssh":
    if "echo status" in script:
        if event("gone"):
            write("state", [slices[0].replace("READY", "PREEMPTED")])
            stop("connection closed", 255)
        if event("lost"): stop("connection closed", 255)
    codes = []
    for i, home in zip(workers, homes):
        environment = os.environ | {"HOME": str(home), "WORKER": str(i)}
        codes.append(subprocess.run(["bash", "-c", script], cwd=home, env=environment).returncode)
    sys.exit(max(codes))
"""

# The experiment on a worker: logs its call, writes a result, and ends with the next status.
EXPERIMENT = r"""
case $* in
  *sys.exit*) exit 0 ;;
  *version_info*) echo 3.12; exit ;;
  *experiments.*) ;;
  *) exit 0 ;;
esac
echo "$WORKER $TL_DISTRIBUTED ${TL_COMMIT:0:7} $*" >>"$CLOUD/runs"
echo "line 1 of worker $WORKER"
for word; do case $word in --workdir=*) workdir=${word#*=} ;; esac; done
case $workdir in gs://*) workdir=$CLOUD/bucket ;; esac
mkdir -p "$workdir/checkpoints/0/phase0"
echo "{}" >"$workdir/result.json"
if [ -e "$CLOUD/wait" ]; then
  trap 'echo "saved by worker $WORKER"; exit 75' TERM
  touch "$CLOUD/ready$WORKER"
  while :; do sleep 1; done
fi
run=$(grep -c "^$WORKER" "$CLOUD/runs")
status=$(sed -n "${run}p" "$CLOUD/statuses$WORKER" 2>/dev/null)
[ "${status:-0}" = 0 ] || echo "error: worker $WORKER has ${status}"
exit "${status:-0}"
"""

UV = r"""
case $* in
  "python find"*) echo "$CLOUD/bin/python3" ;;
  venv*)
    for folder; do :; done
    mkdir -p "$folder/bin" && cp "$CLOUD/bin/python3" "$folder/bin/python"
    ;;
esac
"""


class Cloud:
    """The project, the stand-ins, and their files."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "cloud"
        self.folder.mkdir()
        (self.folder / "bin").mkdir()
        python = self.folder / "bin/python3"
        python.write_text(f"#!{BASH}\n{EXPERIMENT}")
        python.chmod(0o755)

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return launch(self.root, *words, CLOUD=str(self.folder), **environment)

    def write(self, name: str, *lines: str) -> None:
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines))

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def calls(self) -> list[str]:
        """The calls that change or use the slice, without listings."""
        return [line for line in self.lines("log") if not line.split()[1].startswith("list")]

    def runs(self) -> list[str]:
        """The command lines of the experiment, of worker 0."""
        return [line.split(" -m ")[1] for line in self.lines("runs") if line[0] == "0"]


@pytest.fixture
def cloud(project: Path) -> Cloud:
    shutil.copytree(Path(__file__).resolve().parents[1] / "launch.d", project / "launch.d")
    for name in TOOLS.split():
        (project / "bin" / name).symlink_to(shutil.which(name) or name)
    script = project / "gcloud.py"
    script.write_text(GCLOUD)
    tool(project, "gcloud", f'exec "{sys.executable}" -IS "{script}" "$@"')
    tool(project, "uv", UV)
    tool(project, "sleep", f"exec {shutil.which('sleep')} 0.02")
    (project / ".gitignore").write_text("bin\ncloud\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(project)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "A"], check=True)
    return Cloud(project)


TPU = ("tpu", "pod", "europe-west4-b")
ONE_RUN = [
    "tpu-vm scp all",
    "tpu-vm ssh all install",
    "tpu-vm ssh all setsid",
    "tpu-vm ssh 0 tail -n +",
    "tpu-vm ssh all",
]


def calls_of(*groups: list[str]) -> list[str]:
    return [call for group in groups for call in group]


# ---- tpu ----


def test_tpu_runs_on_all_workers_and_brings_the_results_of_the_slice_back(cloud: Cloud) -> None:
    run = cloud.run(*TPU, "attack", "--target=any cat", "--eps=$(x) 'y'", "--workdir=runs/attack/w")
    assert run.returncode == 0, run.stderr
    copied = ["tpu-vm scp 0"]
    assert cloud.calls() == calls_of(["tpu-vm create"], ONE_RUN, copied)
    flags = "--target=any cat --eps=$(x) 'y' --workdir=runs/attack/w"
    assert [line.split()[0] for line in sorted(cloud.lines("runs"))] == ["0", "1"]
    commit = subprocess.run(
        ["git", "-C", str(cloud.root), "rev-parse", "--short=7", "HEAD"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    for i, line in enumerate(sorted(cloud.lines("runs"))):
        assert line == f"{i} 1 {commit} -P -m experiments.attack {flags}"
    assert run.stdout.count("line 1 of worker 0") == 1 and "worker 1" not in run.stdout
    assert (cloud.root.parent / "runs/attack/w/result.json").exists()
    assert "still runs and costs money" in run.stderr and "--delete" in run.stderr
    assert "disk of the slice" in run.stderr


def test_tpu_uses_a_slice_that_is_there(cloud: Cloud) -> None:
    (cloud.folder / "worker0").mkdir(), (cloud.folder / "worker1").mkdir()
    cloud.write("state", "pod2 PREEMPTED v6e-8", "pod READY v5litepod-8")
    assert cloud.run(*TPU, "attack").returncode == 0
    assert not [c for c in cloud.calls() if "create" in c or "delete" in c]


def test_tpu_refuses_a_slice_of_another_type(cloud: Cloud) -> None:
    cloud.write("state", "pod READY v6e-8")
    run = cloud.run(*TPU, "attack")
    assert run.returncode == 1 and "pod is a v6e-8, expected a v5litepod-8" in run.stderr


@pytest.mark.full
def test_tpu_creates_a_preempted_slice_again_and_resumes(cloud: Cloud) -> None:
    cloud.write("next", "gone")
    run = cloud.run(*TPU, "--spot", "attack", "--workdir=gs://b/w")
    assert run.returncode == 0, run.stderr
    slice_calls = [c for c in cloud.calls() if "create" in c or "delete" in c]
    assert slice_calls == ["tpu-vm create", "tpu-vm delete", "tpu-vm create"]
    assert cloud.runs() == [
        "experiments.attack --workdir=gs://b/w",
        "experiments.attack --workdir=gs://b/w --resume",
    ]
    assert "preempted; restart 1 of 100 with --resume" in run.stderr
    here = cloud.root.parent / "runs/attack/w"
    assert [path.name for path in here.iterdir()] == ["result.json"]


@pytest.mark.full
def test_tpu_restarts_a_preempted_run_on_the_same_slice(cloud: Cloud) -> None:
    cloud.write("statuses1", "75", "0")  # one worker is enough
    run = cloud.run(*TPU, "attack")
    assert run.returncode == 0, run.stderr
    assert [c for c in cloud.calls() if "create" in c or "install" in c] == [
        "tpu-vm create",
        "tpu-vm ssh all install",
    ]
    assert [line.endswith(" --resume") for line in cloud.runs()] == [False, True]


@pytest.mark.full
def test_tpu_does_not_restart_after_an_error(cloud: Cloud) -> None:
    cloud.write("statuses1", "1")
    run = cloud.run(*TPU, "attack", "--workdir=runs/attack/w")
    assert run.returncode == 1
    assert len(cloud.runs()) == 1
    assert "error: worker 1 has 1" in run.stderr
    assert (cloud.root.parent / "runs/attack/w/result.json").exists()


@pytest.mark.full
def test_tpu_restarts_end(cloud: Cloud) -> None:
    cloud.write("statuses0", "75", "75", "75")
    run = cloud.run(*TPU, "--retries=1", "attack")
    assert run.returncode == 75 and len(cloud.runs()) == 2
    assert "preempted 2 times, more than --retries=1" in run.stderr


@pytest.mark.full
def test_tpu_connects_again_without_repeating_lines(cloud: Cloud) -> None:
    cloud.write("next", "lost")
    run = cloud.run(*TPU, "attack")
    assert run.returncode == 0, run.stderr
    assert "connection to pod was lost" in run.stderr
    assert run.stdout.count("line 1 of worker 0") == 1 and len(cloud.runs()) == 1


@pytest.mark.full
@pytest.mark.parametrize("status", ["0", "3"])
def test_tpu_deletes_the_slice_if_asked(cloud: Cloud, status: str) -> None:
    cloud.write("statuses0", status)
    run = cloud.run(*TPU, "--delete", "attack")
    assert run.returncode == int(status)
    assert cloud.calls()[-1] == "tpu-vm delete" and not cloud.lines("state")
    assert "costs money" not in run.stderr


def test_tpu_deletes_without_running(cloud: Cloud) -> None:
    cloud.write("state", "pod READY v5litepod-8")
    assert cloud.run(*TPU, "--delete").returncode == 0
    assert cloud.calls() == ["tpu-vm delete"]
    run = cloud.run(*TPU, "--delete")
    assert run.returncode == 0 and "no slice pod" in run.stderr


@pytest.mark.full
def test_tpu_waits_for_capacity_but_not_for_quota(cloud: Cloud) -> None:
    cloud.write("next", "capacity", "capacity")
    run = cloud.run(*TPU, "attack")
    assert run.returncode == 0 and run.stderr.count("trying again in 60 s") == 2
    cloud.write("state"), cloud.write("next", "quota")
    run = cloud.run(*TPU, "attack")
    assert run.returncode == 1 and "Quota limit exceeded" in run.stderr


@pytest.mark.full
def test_tpu_waits_in_the_queue(cloud: Cloud) -> None:
    run = cloud.run(*TPU, "--queued", "--spot", "--delete", "attack")
    assert run.returncode == 0, run.stderr
    slice_calls = [c for c in cloud.calls() if "create" in c or "delete" in c]
    assert slice_calls == ["queued-resources create", "queued-resources delete"]


@pytest.mark.full
def test_tpu_stops_the_run_on_sigterm(cloud: Cloud) -> None:
    cloud.write("wait")
    env = {"PATH": str(cloud.root / "bin"), "HOME": "/", "CLOUD": str(cloud.folder)}
    command = [str(BASH), str(cloud.root / "launch.sh"), *TPU, "--delete", "attack"]
    process = subprocess.Popen(
        command,
        cwd=cloud.root.parent,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    ready = [cloud.folder / f"ready{i}" for i in (0, 1)]
    for _ in range(1500):
        if all(path.exists() for path in ready) or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "tpu-vm ssh all kill -TERM" in cloud.calls()
    assert cloud.calls()[-1] == "tpu-vm delete"
    assert "saved by worker 0" in next(cloud.folder.glob("worker0/tl-*/run.log")).read_text()


@pytest.mark.full
def test_the_printed_commands_of_tpu_are_those_that_it_runs(cloud: Cloud) -> None:
    words = [*TPU, "--spot", "--delete", "--dry_run", "attack", "--eps=$x", "--workdir=gs://b/w"]
    run = cloud.run(*words)
    assert run.returncode == 0 and not cloud.lines("log"), run.stderr
    first = [shlex.split(line)[0] for line in run.stdout.splitlines()]
    assert set(first) == {"gcloud", "git", "mkdir"}
    env = {"PATH": str(cloud.root / "bin"), "HOME": "/", "CLOUD": str(cloud.folder)}
    subprocess.run([str(BASH), "-ec", run.stdout], cwd=cloud.root.parent, env=env, check=True)
    assert cloud.runs() == ["experiments.attack --eps=$x --workdir=gs://b/w"]
    pasted = cloud.calls()
    cloud.write("log")
    cloud.run(*[word for word in words if word != "--dry_run"])
    assert pasted == cloud.calls()


@pytest.mark.parametrize(
    "words, parts",
    [
        (["tpu"], ["name and the zone"]),
        (["tpu", "pod", "--spot"], ["name and the zone"]),
        ([*TPU, "--sopt", "attack"], ["--sopt", "--spot"]),
        ([*TPU, "--type=v5e", "attack"], ["--type=v5e"]),
        ([*TPU, "atack"], ["no experiment 'atack'"]),
        ([*TPU], ["no experiment ''"]),
        ([*TPU, "--type=v5litepod-16", "attack"], ["several hosts", "--workdir=gs://"]),
    ],
)
def test_a_wrong_call_of_tpu_is_one_sentence(
    cloud: Cloud, words: list[str], parts: list[str]
) -> None:
    stops(cloud.run(*words), *parts)
    assert not cloud.lines("log")


def test_tpu_without_gcloud_says_so(cloud: Cloud) -> None:
    (cloud.root / "bin/gcloud").unlink()
    stops(cloud.run(*TPU, "attack"), "gcloud is not installed")


# ---- slurm ----


@pytest.fixture
def slurm(cloud: Cloud) -> Callable[..., list[str]]:
    """Submits with stand-ins that run the job here, and returns the calls of srun and scontrol."""
    tool(cloud.root, "sbatch", f'cat >"$CLOUD/job"; exec "{BASH}" "$CLOUD/job"')
    tool(
        cloud.root,
        "srun",
        'echo "srun $*" >>"$CLOUD/calls"; case $* in *nvidia-smi*) '
        'for i in 1 2 3 4; do echo "GPU $i: H"; echo "  MIG"; done ;; '
        '*) exit "${STATUS:-0}" ;; esac',
    )
    tool(cloud.root, "scontrol", 'echo "scontrol $*" >>"$CLOUD/calls"')
    tool(cloud.root, "python3", FAKE)

    def submit(*words: str, status: int = 0, **environment: str) -> list[str]:
        cloud.write("calls")
        (cloud.root / "bin/uv").unlink(missing_ok=True)
        run = cloud.run(
            "slurm",
            *words,
            SLURM_JOB_ID="7",
            STATUS=str(status),
            LOG=str(cloud.folder / "log"),
            JAX_PLATFORMS="cpu",
            **environment,
        )
        assert run.returncode == status, run.stderr
        return cloud.lines("calls")

    return submit


def test_slurm_runs_one_task_per_gpu(cloud: Cloud, slurm: Callable[..., list[str]]) -> None:
    calls = slurm("--nodes=2", "--gpus=2", "--partition=gpu", "attack", "--target=any cat")
    launch_sh = cloud.root / "launch.sh"
    assert calls == [
        "srun --ntasks=2 --ntasks-per-node=1 nvidia-smi -L",
        f"srun {launch_sh} attack --target=any cat --workdir=runs/attack/slurm-7",
    ]
    job = (cloud.folder / "job").read_text()
    options = [line.split()[1] for line in job.splitlines() if line.startswith("#SBATCH")]
    assert {
        *("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--signal=TERM@300"),
        *("--time=24:00:00", "--partition=gpu"),
    } <= set(options)
    assert "--requeue" not in options and not any("gpus-per-task" in word for word in options)


def test_slurm_compares_the_gpus_with_those_asked_for(slurm: Callable[..., list[str]]) -> None:
    calls = slurm("--gpus=8", "attack", status=1)
    assert calls == ["srun --ntasks=1 --ntasks-per-node=1 nvidia-smi -L"]


def test_slurm_runs_on_cpus(cloud: Cloud, slurm: Callable[..., list[str]]) -> None:
    assert len(slurm("--gpus=0", "attack")) == 1
    assert "--gpus-per-node" not in (cloud.folder / "job").read_text()


def test_slurm_requeues_a_preempted_run_and_resumes(
    cloud: Cloud, slurm: Callable[..., list[str]]
) -> None:
    words = ("--gpus=0", "--requeue", "attack", "--workdir=my runs/w")
    assert slurm(*words, status=75)[1:] == ["scontrol requeue 7"]
    (cloud.root.parent / "my runs/w/checkpoints/0/phase0").mkdir(parents=True)
    assert slurm(*words, status=75, SLURM_RESTART_COUNT="1")[0].endswith("w --resume")
    assert len(slurm(*words, status=75, SLURM_RESTART_COUNT="100")) == 1
    assert len(slurm(*words, status=1)) == 1
    assert len(slurm("--gpus=0", "attack", "--workdir=x", status=75)) == 1


def test_the_printed_job_of_slurm_is_the_one_that_it_submits(
    cloud: Cloud, slurm: Callable[..., list[str]]
) -> None:
    words = ["--gpus=0", "attack", "--eps=$(x)"]
    calls = slurm(*words)
    job = (cloud.folder / "job").read_text()
    cloud.write("job"), cloud.write("calls")
    printed = cloud.run("slurm", "--dry_run", *words).stdout
    assert not cloud.lines("calls")
    env = {"PATH": str(cloud.root / "bin"), "HOME": "/", "CLOUD": str(cloud.folder)}
    env |= {"SLURM_JOB_ID": "7", "LOG": "/dev/null", "JAX_PLATFORMS": "cpu"}
    subprocess.run([str(BASH), "-ec", printed], cwd=cloud.root.parent, env=env, check=True)
    assert cloud.lines("calls") == calls and (cloud.folder / "job").read_text() == job


@pytest.mark.parametrize(
    "words, parts",
    [
        (["slurm", "--nodes", "2", "attack"], ["--nodes", "--name=value"]),
        (["slurm", "--nodes=0", "attack"], ["--nodes=0"]),
        (["slurm", "atack"], ["no experiment 'atack'"]),
        (["slurm", "attack"], ["sbatch is not installed"]),
    ],
)
def test_a_wrong_call_of_slurm_is_one_sentence(
    cloud: Cloud, words: list[str], parts: list[str]
) -> None:
    stops(cloud.run(*words), *parts)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_the_job_of_slurm_is_clean(cloud: Cloud) -> None:
    printed = cloud.run("slurm", "--nodes=2", "--requeue", "--dry_run", "attack").stdout
    job = printed.split("JOB'\n")[1].removesuffix("JOB\n")
    run = subprocess.run(
        ["shellcheck", "-s", "bash", "-"], input=job, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout
