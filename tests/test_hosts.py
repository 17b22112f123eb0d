"""`tl.hosts`: several processes of one command, on one machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tl import hosts
from tl.hosts import joining
from tl.hosts.state import STATE
from tl.reporting import save_png
from tl.scale.local import free_port

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("--arch=mobilenetv1_025_keras", "--weights=random")
TRAIN = (*SMALL, "--image_size=32", "--batch_size=16", "--bank_gib=0")
FEW = ("--limit=4", "--tests=sparseness")


def address() -> str:
    """An address on this machine that nothing uses."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs that one run compiled serve the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


def start(
    experiment: str,
    flags: Sequence[str],
    *,
    index: int = 0,
    count: int = 1,
    at: str = "",
    devices: int = 1,
    cache: Path,
    **variables: str,
) -> subprocess.Popen[str]:
    """Process `index` of `count` of an experiment."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TL_CACHE": str(cache),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",
        **variables,
    }
    if count > 1:
        environment |= {
            "JAX_COORDINATOR_ADDRESS": at,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{experiment}", *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outputs(children: Sequence[subprocess.Popen[str]]) -> list[str]:
    """What each process printed, after all of them have ended."""
    texts = [""] * len(children)

    def read(i: int) -> None:
        texts[i] = children[i].communicate()[0]

    threads = [threading.Thread(target=read, args=(i,)) for i in range(len(children))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(400)
    for child in children:
        child.kill()
    return texts


def run(
    experiment: str,
    flags: Sequence[str],
    *,
    count: int,
    cache: Path,
    devices: int = 1,
    statuses: set[int] = {0},  # noqa: B006 (constant)
) -> list[str]:
    """Runs all processes of an experiment and returns what they printed."""
    at = address()
    children = [
        start(experiment, flags, index=i, count=count, at=at, devices=devices, cache=cache)
        for i in range(count)
    ]
    texts = outputs(children)
    assert {child.returncode for child in children} <= statuses, "\n".join(texts)[-3000:]
    return texts


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two classes of 19 and 20 images."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, level, n in (("dark", 60, 19), ("light", 180, 20)):
        (folder / name).mkdir()
        for i in range(n):
            noise = rng.normal(level, 40, (40, 40, 3))
            save_png(folder / name / f"{i}.png", np.clip(noise, 0, 255).astype(np.uint8))
    return folder


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    (file,) = (workdir / "model").glob("*.safetensors")
    return load_file(file)


def result(workdir: Path) -> dict:
    return json.loads((workdir / "result.json").read_text())


# ---- one process -------------------------------------------------------------------------------


def test_one_process_is_the_first_and_exchanges_nothing() -> None:
    assert (hosts.count(), hosts.index(), hosts.first()) == (1, 0, True)
    value = object()
    assert hosts.gather(value) == [value]
    assert hosts.on_first(lambda: value) is value
    assert list(hosts.shares(3, lambda i: 10 * i)) == [(0, True), (10, True), (20, True)]


@pytest.fixture
def signalled() -> Iterator[Callable[[], None]]:
    """A function with the effect of SIGTERM; it is undone afterwards."""
    yield lambda: setattr(STATE, "signalled", time.monotonic())
    STATE.signalled = None


def test_divided_work_ends_after_a_signal_with_the_items_that_it_has(
    signalled: Callable[[], None],
) -> None:
    def compute(i: int) -> int:
        if i == 1:
            signalled()
        return i

    seen = []
    with pytest.raises(hosts.Preempted), hosts.deferred():
        for value, _ in hosts.shares(5, compute):
            seen.append(value)
    assert seen == [0, 1]


def test_work_without_anything_to_save_is_not_stopped_between_items(
    signalled: Callable[[], None],
) -> None:
    signalled()  # the main thread ends the process
    assert [value for value, _ in hosts.shares(3, lambda i: i)] == [0, 1, 2]


# ---- joining -----------------------------------------------------------------------------------


def test_processes_that_did_not_start_are_named() -> None:
    at, failures = address(), {}

    def meet(rank: int) -> None:
        try:
            joining._meet(at, 5, rank, 1.5)
        except ValueError as error:
            failures[rank] = str(error)

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in (0, 2):
        assert f"process {rank} of 5 waits for processes 1, 3, 4, which" in failures[rank]


def test_a_missing_first_process_is_named() -> None:
    with pytest.raises(ValueError, match="process 1 of 2 waits for process 0, which did not start"):
        joining._meet(address(), 2, 1, 0.5)


def test_a_port_in_use_is_an_error() -> None:
    with socket.create_server(("", 0)) as taken:
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match="cannot listen at .*; give another port"):
            joining._meet(at, 2, 0, 0.5)


@pytest.mark.full
def test_a_process_that_stops_before_it_is_connected_stops_the_other(tmp_path: Path) -> None:
    at = address()
    flags = (*SMALL, "--images=.", f"--workdir={tmp_path / 'run'}")
    first = start("predict", flags, count=2, at=at, cache=tmp_path / "cache", TL_JOIN_SECONDS="20")
    joining._meet(at, 2, 1, 60)  # this process is there, and gone
    met = time.monotonic()
    (text,) = outputs([first])
    assert first.returncode == 1 and time.monotonic() - met < 50
    assert "process 0 of 2 stops, because JAX has lost the connection" in text.splitlines()[-1]


@pytest.mark.full
def test_processes_with_other_flags_or_devices_are_an_error(images: Path, tmp_path: Path) -> None:
    for seeds, devices, what in ((("1", "2"), (1, 1), "--seed"), (("1", "1"), (1, 2), "devices")):
        at = address()
        children = [
            start(
                "predict",
                (*SMALL, f"--images={images}", f"--seed={seeds[i]}", f"--workdir={tmp_path / 'w'}"),
                index=i,
                count=2,
                at=at,
                devices=devices[i],
                cache=tmp_path,
            )
            for i in range(2)
        ]
        texts = outputs(children)
        assert {child.returncode for child in children} == {1}
        assert all("differ in" in text and what in text for text in texts), texts


# ---- the same result ---------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize(
    "flags",
    [
        ("--tune=last:2", "--bn=update", "--epochs=2"),
        ("--tune=lp_ft", "--augment=flip", "--epochs=2", "--ema=0.9", "--bank_gib=1"),
    ],
    ids=lambda flags: flags[0],
)
def test_training_gives_the_same_parameters_on_as_many_devices(
    flags: tuple[str, ...], images: Path, tmp_path: Path
) -> None:
    """Two processes with one device, and one process with two."""
    flags = (*TRAIN, f"--data=folder:{images}", *flags)
    for count, devices in ((1, 2), (2, 1)):
        workdir, cache = f"--workdir={tmp_path / str(count)}", tmp_path / f"cache{count}"
        run("transfer", (*flags, workdir), count=count, devices=devices, cache=cache)
    one, two = (parameters(tmp_path / name) for name in "12")
    assert one.keys() == two.keys()
    for name, leaf in one.items():
        np.testing.assert_allclose(two[name], leaf, rtol=1e-5, atol=1e-5 * np.abs(leaf).max())
    tests = [result(tmp_path / name)["test"] for name in "12"]
    assert tests[0]["n"] == tests[1]["n"] and tests[0]["top1"] == tests[1]["top1"]


@pytest.mark.full
def test_images_are_divided_and_counted_once(images: Path, tmp_path: Path) -> None:
    count = 3
    commands = {
        "predict": (f"--images={images}",),
        "features": (f"--data=folder:{images}", "--batch_size=4"),
        "attack": (f"--images={images}/dark", "--attack=fgsm", "--limit=8", "--nopanel"),
        "ideal": ("--target=1,2,3", "--steps=4", "--size=32", "--judges="),
        "explain": (f"--images={images}/dark", "--method=smoothgrad", "--draws=2", *FEW),
    }
    for name, flags in commands.items():
        for processes in (1, count):
            cache, workdir = tmp_path / f"cache{processes}", tmp_path / f"{name}{processes}"
            flags_of = (*SMALL, *flags, f"--workdir={workdir}")
            run(name, flags_of, count=processes, cache=cache)
        one, several = (result(tmp_path / f"{name}{n}") for n in (1, count))
        for key in ("n", "images", "success_rate", "robust_accuracy", "banks"):
            assert without_paths(one.get(key)) == without_paths(several.get(key)), (name, key)


def without_paths(value: object) -> object:
    """A result without the names of folders, which differ between runs."""
    if isinstance(value, dict):
        return {k: without_paths(v) for k, v in value.items() if k not in ("png", "bank", "film")}
    return [without_paths(v) for v in value] if isinstance(value, list) else value
