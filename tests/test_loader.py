"""The training loader: plans, streams in threads and processes, prefetch, and shutdown."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tl import pixels
from tl.data import feed
from tl.data.feed import auto_workers, cores, prefetch
from tl.data.loader import Batch, stream
from tl.data.plan import Plan, balanced, class_weights

# Picklable, for other processes.
SQUARE = functools.partial(pixels.prepare, pixels.PixelSpec(size=4, resize="squash"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eleven images, image i of value 20 i; the fourth cannot be decoded."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{i}.png" for i in range(11)]
    for i, path in enumerate(paths):
        Image.new("RGB", (5 + i, 7), (20 * i,) * 3).save(path)
    paths[3].write_bytes(b"no image")
    return paths


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for a condition; fails after a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def same(one: Batch, other: Batch) -> bool:
    return (
        all(np.array_equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
        and one.skipped == other.skipped
    )


# ---- plan ----


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 3), st.integers(0, 3))
def test_an_epoch_contains_every_example_once(
    n: int, batch_size: int, epochs: int, seed: int
) -> None:
    plan = Plan(n, batch_size, epochs, seed)
    assert len(plan) == epochs * plan.steps_per_epoch
    steps = np.stack([plan.rows(step) for step in range(len(plan))])
    assert steps.dtype == np.int32 and steps.shape == (len(plan), batch_size)
    for epoch in steps.reshape(epochs, -1):
        assert sorted(epoch[epoch >= 0]) == list(range(n))
        # Padding is at the end of the last batch.
        assert (epoch[n:] == -1).all() and (epoch[:n] >= 0).all()


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 3), st.integers(0, 3))
def test_a_plan_with_more_epochs_begins_with_the_same_steps(
    n: int, batch_size: int, epochs: int, seed: int
) -> None:
    plan = Plan(n, batch_size, epochs, seed)
    steps = [plan.rows(step) for step in range(len(plan))]
    again = Plan(n, batch_size, epochs + 1, seed)
    assert all(np.array_equal(again.rows(step), steps[step]) for step in reversed(range(len(plan))))


def test_each_epoch_and_seed_has_a_different_order() -> None:
    orders = {tuple(Plan(50, 50, 3, seed).rows(step)) for seed in range(3) for step in range(3)}
    assert len(orders) == 9


def test_balanced_weights_give_classes_the_same_total() -> None:
    labels = np.array([0] * 90 + [1] * 9 + [2])
    weights = balanced(labels)
    assert weights.sum() == pytest.approx(1.0)
    assert np.bincount(labels, weights) == pytest.approx([1 / 3] * 3)


def test_a_plan_draws_in_proportion_to_its_weights() -> None:
    labels = np.array([0] * 90 + [1] * 9 + [2])
    plan = Plan(100, 10, 30, 0, 7.0 * balanced(labels))  # the scale of the weights is arbitrary
    rows = np.concatenate([plan.rows(step) for step in range(len(plan))])
    drawn = np.bincount(labels[rows], minlength=3)
    assert drawn.sum() == 3000
    assert abs(drawn - 1000).max() < 130  # five standard deviations
    single = Plan(3, 2, 1, 0, np.array([0.0, 1.0, 0.0]))
    assert [single.rows(step).tolist() for step in (0, 1)] == [[1, 1], [1, -1]]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_class_weights_give_present_classes_the_same_total(labels: list[int]) -> None:
    weights = class_weights(np.array(labels), 6)
    assert weights.dtype == np.float32 and weights.shape == (6,)
    assert weights[np.array(labels)].mean() == pytest.approx(1.0, rel=1e-5)
    totals = np.bincount(labels, minlength=6) * weights
    present = np.unique(labels)
    assert totals[present] == pytest.approx(
        np.full(len(present), len(labels) / len(present)), rel=1e-5
    )
    assert not np.delete(weights, present).any()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n": 0}, "`n` must be at least 1: got 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1: got 0"),
        ({"epochs": 0}, "`epochs` must be at least 1: got 0"),
        ({"seed": -1}, "`seed` must be at least 0: got -1"),
        ({"weights": np.ones(3)}, "must be 4 finite numbers"),
        ({"weights": np.zeros(4)}, "not all 0"),
        ({"weights": np.array([1, 1, 1, -1.0])}, "of at least 0"),
        ({"weights": np.array([1, 1, 1, np.nan])}, "finite"),
    ],
)
def test_a_plan_with_invalid_values_is_an_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(**{"n": 4, "batch_size": 2, "epochs": 1, "seed": 0, **change})


# ---- stream ----


@pytest.mark.parametrize("threads", [1, 3])
def test_a_stream_follows_its_plan(images: list[Path], threads: int) -> None:
    plan = Plan(len(images), 4, 2, 5)
    with stream(images, SQUARE, plan, threads=threads) as batches:
        streamed = list(batches)
    assert len(streamed) == len(plan) == 6
    for step, batch in enumerate(streamed):
        rows = plan.rows(step)
        assert (batch.images.shape, batch.images.dtype) == ((4, 4, 4, 3), np.uint8)
        assert np.array_equal(batch.index, rows)
        assert np.array_equal(batch.valid, (rows >= 0) & (rows != 3))
        assert np.array_equal(batch.images[:, 0, 0, 0], np.where(batch.valid, 20 * rows, 0))
        assert [Path(skip.path).name for skip in batch.skipped] == ["3.png"] * int(
            (rows == 3).sum()
        )


@pytest.mark.parametrize("stop", [0, 1, 2, 5, 6])
def test_a_restored_stream_continues_at_the_saved_step(images: list[Path], stop: int) -> None:
    plan = Plan(len(images), 4, 2, 5)
    with stream(images, SQUARE, plan) as batches:
        whole = list(batches)
    with stream(images, SQUARE, plan) as first:
        for _ in range(stop):
            next(first)
        state = json.loads(json.dumps(first.state()))
    longer = Plan(len(images), 4, 3, 5)
    with stream(images, SQUARE, longer, start=2) as second:
        next(second)
        second.restore(state)
        assert second.state() == state
        rest = [next(second) for _ in whole[stop:]]
        assert all(same(*pair) for pair in zip(rest, whole[stop:], strict=True))
        assert second.state()["step"] == 6


@pytest.mark.parametrize(
    "plan, message",
    [
        (Plan(11, 4, 1, 1), "seed was 0, is 1"),
        (Plan(11, 5, 1, 0), "batch_size was 4, is 5"),
        (Plan(11, 4, 1, 0, np.ones(11)), "weights was ''"),
    ],
)
def test_the_position_of_another_plan_is_an_error(
    images: list[Path], plan: Plan, message: str
) -> None:
    state = stream(images, SQUARE, Plan(11, 4, 1, 0)).state()
    with pytest.raises(ValueError, match=message):
        stream(images, SQUARE, plan).restore(state)


def test_a_stream_that_does_not_fit_its_plan_is_an_error(images: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"`start` must be in \[0, 3\].*: got 4"):
        stream(images, SQUARE, Plan(11, 4, 1, 0), start=4)
    with pytest.raises(ValueError, match="`plan` is for 2 images, expected 11"):
        stream(images, SQUARE, Plan(2, 4, 1, 0))


def test_a_closed_stream_is_an_error(images: list[Path]) -> None:
    closed = stream(images, SQUARE, Plan(11, 4, 1, 0))
    closed.close()
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        next(closed)


def test_a_transform_to_several_shapes_is_an_error(images: list[Path]) -> None:
    with (
        pytest.raises(ValueError, match="expected one shape and dtype"),
        stream(images, lambda image: image, Plan(11, 4, 1, 0)) as batches,
    ):
        list(batches)


# A pipe holds about 64 KiB. This is less than one batch of size 200, so a worker is killed in the
# middle of it, and less than all batches of size 4, so no worker ends before it is killed.
@pytest.mark.parametrize("size", [4, 200])
def test_processes_give_the_batches_of_threads_until_they_are_killed(
    images: list[Path], size: int
) -> None:
    plan = Plan(len(images), 4, 1000, 5)
    square = functools.partial(pixels.prepare, pixels.PixelSpec(size=size, resize="squash"))
    with (
        stream(images, square, plan) as threaded,
        stream(images, square, plan, start=3, workers=2) as spawned,
    ):
        assert spawned.state()["step"] == 3
        threaded.restore(spawned.state())
        for _ in range(5):
            assert same(next(threaded), next(spawned))
        assert spawned.state() == threaded.state()
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGKILL)
        with pytest.raises(ValueError, match="was killed at step .*set `workers` below 2"):
            list(spawned)
        with pytest.raises(ValueError, match="closed"):
            next(spawned)
    assert not multiprocessing.active_children()


def test_an_error_in_a_process_is_raised_in_the_parent(images: list[Path]) -> None:
    with (
        stream(images, np.negative, Plan(len(images), 4, 1, 0), workers=1) as batches,
        pytest.raises(ValueError, match="expected one shape and dtype") as caught,
    ):
        list(batches)
    assert "at step 0" in caught.value.__notes__[0]
    assert not multiprocessing.active_children()


SCRIPT = """
import functools, multiprocessing, pathlib, sys, threading
from absl import app
from tl import pixels
from tl.data.loader import stream
from tl.data.plan import Plan

def work(paths):
    square = functools.partial(pixels.prepare, pixels.PixelSpec(size=4))
    batches = stream(paths, square, Plan(len(paths), 4, 10_000, 0), workers=1)
    valid = int(next(batches).valid.sum())
    print(valid, *(process.pid for process in multiprocessing.active_children()), flush=True)
    threading.Event().wait()

def main(argv):
    paths = sorted(pathlib.Path(argv[1]).glob("1*.png"))
    worker = threading.Thread(target=work, args=[paths], daemon=True)
    worker.start()
    worker.join()

if __name__ == "__main__":
    app.run(main)
"""


def test_processes_end_with_a_killed_parent(images: list[Path], tmp_path: Path) -> None:
    """The stream runs in a thread of an absl app, as in the experiments."""
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, str(tmp_path / "script.py"), str(images[0].parent)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        printed = parent.stdout.readline().split()
        parent.kill()
        assert printed, parent.stderr.read().decode()
    valid, child = map(int, printed)
    assert valid == 2  # 1.png and 10.png

    def has_ended() -> bool:
        try:  # state Z: dead and not yet collected
            return "\nState:\tZ" in Path(f"/proc/{child}/status").read_text()
        except OSError:
            return True

    wait_until(has_ended)


@pytest.mark.parametrize("available, workers", [(1, 0), (3, 0), (4, 3), (9, 8), (200, 8)])
def test_auto_workers_leaves_a_core_free(
    monkeypatch: pytest.MonkeyPatch, available: int, workers: int
) -> None:
    assert cores() >= 1
    monkeypatch.setattr("tl.data.feed.cores", lambda: available)
    assert auto_workers() == workers


# ---- prefetch ----


def test_prefetch_keeps_the_order_and_the_position_of_the_consumer(images: list[Path]) -> None:
    plan = Plan(len(images), 4, 2, 5)
    began = threading.active_count()
    with stream(images, SQUARE, plan) as batches:
        whole = list(batches)
    with prefetch(
        stream(images, SQUARE, plan), lambda batch: batch._replace(images=batch.images + 1), 3
    ) as ahead:
        for step, batch in enumerate(whole):
            assert ahead.state()["step"] == step
            assert same(next(ahead), batch._replace(images=batch.images + 1))
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(ahead)
        assert ahead.state()["step"] == len(plan)
    wait_until(lambda: threading.active_count() <= began)  # Grain's threads take a moment


@pytest.mark.parametrize("depth", [1, 2])
def test_prefetch_runs_ahead_by_its_depth_and_passes_errors_on(depth: int) -> None:
    produced: list[int] = []

    def produce() -> Iterator[int]:
        for i in range(8):
            produced.append(i)
            if i == 5:
                raise KeyError("the sixth")
            yield i

    with prefetch(produce(), lambda i: 10 * i, depth) as ahead:
        assert next(ahead) == 0
        # One was returned, `depth` are in the queue, and the thread holds one.
        wait_until(lambda: len(produced) == depth + 2)
        assert [next(ahead) for _ in range(4)] == [10, 20, 30, 40]
        for _ in range(2):
            with pytest.raises(KeyError, match="the sixth"):
                next(ahead)
    assert ahead.state() == {}


def test_closed_prefetch_and_depth_zero_are_errors() -> None:
    with prefetch(iter([]), id) as ahead:
        pass
    with pytest.raises(ValueError, match="closed"):
        next(ahead)
    with pytest.raises(ValueError, match="`depth` must be at least 1: got 0"):
        prefetch(iter([]), id, 0)


def test_closing_early_ends_the_thread() -> None:
    ahead = prefetch(iter(range(100)), lambda i: i, 2)
    assert next(ahead) == 0
    ahead.close()
    ahead.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_seconds_waiting_is_the_time_that_the_consumer_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a clock that the source advances by 5 while the consumer waits, and by 5 later."""
    now, is_waiting, has_returned = [0.0], threading.Event(), threading.Event()

    def clock() -> float:
        is_waiting.set()
        return now[0]

    def produce() -> Iterator[int]:
        for i, event in enumerate((is_waiting, has_returned)):
            event.wait(timeout=60)
            now[0] += 5.0
            yield i
        yield 2

    monkeypatch.setattr(feed, "time", types.SimpleNamespace(perf_counter=clock))
    with prefetch(produce(), lambda i: i) as ahead:
        assert next(ahead) == 0
        has_returned.set()
        wait_until(lambda: len(ahead._ready.queue) == 2)  # the other items are ready
        assert [next(ahead), next(ahead)] == [1, 2]
        assert (now[0], ahead.seconds_waiting) == (10.0, 5.0)
