"""The training loader: plans are pure, streams exact whatever decodes them, waiting is measured, nothing outlives its owner."""

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tl import pixels
from tl.data.feed import auto_workers, cores, prefetch
from tl.data.loader import Batch, stream
from tl.data.plan import Plan, balanced, class_weights

SQUARE = functools.partial(pixels.prepare, pixels.PixelSpec(size=4, resize="squash"))  # picklable


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eleven pictures, picture i of level 20 i; the fourth is broken."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{i}.png" for i in range(11)]
    for i, path in enumerate(paths):
        Image.new("RGB", (5 + i, 7), (20 * i,) * 3).save(path)
    paths[3].write_bytes(b"no picture")
    return paths


def until(happened: Callable[[], bool]) -> None:
    """Waits for what must happen; a minute is for ever."""
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def same(one: Batch, other: Batch) -> bool:
    return (
        all(np.array_equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
        and one.skipped == other.skipped
    )


# ----------------------------------------------------------------------------------------------------------------- plan


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 3), st.integers(0, 3))
def test_an_epoch_holds_every_example_once(n: int, batch_size: int, epochs: int, seed: int) -> None:
    plan = Plan(n, batch_size, epochs, seed)
    assert len(plan) == epochs * plan.steps_per_epoch
    steps = np.stack([plan.rows(step) for step in range(len(plan))])
    assert steps.dtype == np.int32 and steps.shape == (len(plan), batch_size)
    for epoch in steps.reshape(epochs, -1):
        assert sorted(epoch[epoch >= 0]) == list(range(n))
        assert (epoch[n:] == -1).all() and (
            epoch[:n] >= 0
        ).all()  # padding stands at the end of the last batch
    again = Plan(n, batch_size, epochs + 1, seed)
    assert all(np.array_equal(again.rows(step), steps[step]) for step in reversed(range(len(plan))))


def test_each_epoch_and_seed_has_its_own_order() -> None:
    orders = {tuple(Plan(50, 50, 3, seed).rows(step)) for seed in range(3) for step in range(3)}
    assert len(orders) == 9


def test_weights_draw_classes_alike() -> None:
    labels = np.array([0] * 90 + [1] * 9 + [2])
    weights = balanced(labels)
    assert weights.sum() == pytest.approx(1.0)
    assert np.bincount(labels, weights) == pytest.approx([1 / 3] * 3)
    plan = Plan(100, 10, 30, 0, 7.0 * weights)  # in any unit
    rows = np.concatenate([plan.rows(step) for step in range(len(plan))])
    drawn = np.bincount(labels[rows], minlength=3)
    assert drawn.sum() == 3000
    assert abs(drawn - 1000).max() < 130  # five standard deviations
    lone = Plan(3, 2, 1, 0, np.array([0.0, 1.0, 0.0]))
    assert [lone.rows(step).tolist() for step in (0, 1)] == [[1, 1], [1, -1]]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_class_weights_make_present_classes_count_alike(labels: list[int]) -> None:
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
        ({"n": 0}, "n is 0, wanted at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"seed": -1}, "seed is -1, wanted at least 0"),
        ({"weights": np.ones(3)}, "wanted 4 finite numbers"),
        ({"weights": np.zeros(4)}, "one above"),
        ({"weights": np.array([1, 1, 1, -1.0])}, "none below 0"),
        ({"weights": np.array([1, 1, 1, np.nan])}, "finite"),
    ],
)
def test_a_plan_refuses_what_cannot_be_planned(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(**{"n": 4, "batch_size": 2, "epochs": 1, "seed": 0, **change})


# --------------------------------------------------------------------------------------------------------------- stream


@pytest.mark.parametrize("threads", [1, 3])
def test_a_stream_follows_its_plan(pictures: list[Path], threads: int) -> None:
    plan = Plan(len(pictures), 4, 2, 5)
    with stream(pictures, SQUARE, plan, threads=threads) as batches:
        seen = list(batches)
    assert len(seen) == len(plan) == 6
    for step, batch in enumerate(seen):
        rows = plan.rows(step)
        assert (batch.images.shape, batch.images.dtype) == ((4, 4, 4, 3), np.uint8)
        assert np.array_equal(batch.index, rows)
        assert np.array_equal(batch.valid, (rows >= 0) & (rows != 3))
        assert np.array_equal(batch.images[:, 0, 0, 0], np.where(batch.valid, 20 * rows, 0))
        assert [Path(skip.path).name for skip in batch.skipped] == ["3.png"] * int(
            (rows == 3).sum()
        )


@pytest.mark.parametrize("stop", [0, 1, 2, 5, 6])
def test_a_restored_stream_goes_on_where_it_was(pictures: list[Path], stop: int) -> None:
    plan = Plan(len(pictures), 4, 2, 5)
    with stream(pictures, SQUARE, plan) as batches:
        whole = list(batches)
    with stream(pictures, SQUARE, plan) as first:
        for _ in range(stop):
            next(first)
        state = json.loads(json.dumps(first.state()))
    with stream(
        pictures, SQUARE, Plan(len(pictures), 4, 3, 5), start=2
    ) as second:  # of more epochs, begun elsewhere
        next(second)
        second.restore(state)
        assert second.state() == state
        rest = [next(second) for _ in whole[stop:]]
        assert all(same(*pair) for pair in zip(rest, whole[stop:], strict=True))
        assert second.state()["step"] == 6


def test_a_position_of_other_batches_is_refused(pictures: list[Path]) -> None:
    n = len(pictures)
    state = stream(pictures, SQUARE, Plan(n, 4, 1, 0)).state()
    for plan, message in [
        (Plan(n, 4, 1, 1), "seed was 0, is 1"),
        (Plan(n, 5, 1, 0), "batch_size was 4, is 5"),
        (Plan(n, 4, 1, 0, np.ones(n)), "weights was ''"),
    ]:
        with pytest.raises(ValueError, match=message):
            stream(pictures, SQUARE, plan).restore(state)
    with pytest.raises(ValueError, match="start at step 4, wanted at most 3"):
        stream(pictures, SQUARE, Plan(n, 4, 1, 0), start=4)
    with pytest.raises(ValueError, match="plan is for 2 pictures and there are 11"):
        stream(pictures, SQUARE, Plan(2, 4, 1, 0))
    closed = stream(pictures, SQUARE, Plan(n, 4, 1, 0))
    closed.close()
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        next(closed)


def test_a_transform_without_one_shape_is_refused(pictures: list[Path]) -> None:
    with (
        pytest.raises(ValueError, match="wanted one shape for all"),
        stream(pictures, lambda image: image, Plan(11, 4, 1, 0)) as batches,
    ):
        list(batches)


@pytest.mark.parametrize(
    "size", [4, 200]
)  # a batch of the second is more than a pipe holds: it is killed in the middle of one
def test_processes_give_the_same_batches_and_their_death_is_told(
    pictures: list[Path], size: int
) -> None:
    plan, square = (
        Plan(len(pictures), 4, 40, 5),
        functools.partial(pixels.prepare, pixels.PixelSpec(size=size, resize="squash")),
    )
    with (
        stream(pictures, square, plan) as threaded,
        stream(pictures, square, plan, start=3, workers=2) as spawned,
    ):
        assert spawned.state()["step"] == 3
        threaded.restore(spawned.state())
        for _ in range(5):
            assert same(next(threaded), next(spawned))
        assert spawned.state() == threaded.state()
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGKILL)
        with pytest.raises(ValueError, match="was killed at step .*fewer than 2 workers"):
            list(spawned)
        with pytest.raises(ValueError, match="closed"):
            next(spawned)
    assert not multiprocessing.active_children()


def test_what_fails_in_a_process_is_raised_here(pictures: list[Path]) -> None:
    with (
        stream(pictures, np.negative, Plan(len(pictures), 4, 1, 0), workers=1) as batches,
        pytest.raises(ValueError, match="wanted one shape for all") as found,
    ):
        list(batches)
    assert "at step 0" in found.value.__notes__[0]
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
    print(int(next(batches).valid.sum()), *(p.pid for p in multiprocessing.active_children()), flush=True)
    threading.Event().wait()

def main(argv):
    worker = threading.Thread(target=work, args=[sorted(pathlib.Path(argv[1]).glob("1*.png"))], daemon=True)
    worker.start()
    worker.join()

if __name__ == "__main__":
    app.run(main)
"""


def test_processes_end_with_a_killed_parent(pictures: list[Path], tmp_path: Path) -> None:
    """Begun in a thread of an absl app, as experiments do; its parent is killed without a chance to say so."""
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, str(tmp_path / "script.py"), str(pictures[0].parent)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        said = parent.stdout.readline().split()
        parent.kill()
        assert said, parent.stderr.read().decode()
    valid, child = map(int, said)
    assert valid == 2  # 1.png and 10.png

    def gone() -> bool:
        try:
            return (
                "\nState:\tZ" in Path(f"/proc/{child}/status").read_text()
            )  # dead and not yet collected
        except OSError:
            return True

    until(gone)


def test_workers_suit_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores() >= 1
    for here, wanted in [(1, 0), (3, 0), (4, 3), (9, 8), (200, 8)]:
        monkeypatch.setattr("tl.data.feed.cores", lambda here=here: here)
        assert auto_workers() == wanted


# ------------------------------------------------------------------------------------------------------------- prefetch


def test_prefetch_keeps_the_order_and_the_consumers_position(pictures: list[Path]) -> None:
    plan = Plan(len(pictures), 4, 2, 5)
    began = threading.active_count()
    with stream(pictures, SQUARE, plan) as batches:
        whole = list(batches)
    with prefetch(
        stream(pictures, SQUARE, plan), lambda batch: batch._replace(images=batch.images + 1), 3
    ) as ahead:
        for step, batch in enumerate(whole):
            assert ahead.state()["step"] == step
            assert same(next(ahead), batch._replace(images=batch.images + 1))
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(ahead)
        assert ahead.state()["step"] == len(plan)
    until(lambda: threading.active_count() <= began)  # Grain's threads take a moment


@pytest.mark.parametrize("depth", [1, 2])
def test_prefetch_runs_ahead_by_its_depth_and_passes_errors_on(depth: int) -> None:
    taken: list[int] = []

    def feed() -> Iterator[int]:
        for i in range(8):
            taken.append(i)
            if i == 5:
                raise KeyError("the sixth")
            yield i

    with prefetch(feed(), lambda i: 10 * i, depth) as ahead:
        assert next(ahead) == 0
        until(
            lambda: len(taken) == depth + 2
        )  # one handed out, `depth` waiting, one in the thread's hand
        assert [next(ahead) for _ in range(4)] == [10, 20, 30, 40]
        for _ in range(2):
            with pytest.raises(KeyError, match="the sixth"):
                next(ahead)
    assert ahead.state() == {}
    with pytest.raises(ValueError, match="closed"):
        next(ahead)
    with pytest.raises(ValueError, match="depth is 0"):
        prefetch(iter([]), id, 0)


def test_closing_early_ends_the_thread() -> None:
    ahead = prefetch(iter(range(100)), lambda i: i, 2)
    assert next(ahead) == 0
    ahead.close()
    ahead.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_waiting_is_what_the_consumer_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of our own, which the feed moves on once the consumer has begun to wait."""
    now, asked = [0.0], threading.Event()

    def clock() -> float:
        asked.set()
        return now[0]

    def slow() -> Iterator[int]:
        for i in range(3):
            if i < 2:
                asked.wait()
                now[0] += 5.0
            yield i

    monkeypatch.setattr("tl.data.feed.time.perf_counter", clock)
    with prefetch(slow(), lambda i: i) as ahead:
        assert next(ahead) == 0
        until(lambda: len(ahead._ready.queue) == 2)  # the rest is there: nothing more is waited for
        waited = ahead.seconds_waiting
        assert waited in (5.0, 10.0)  # the feed may have gone on before the consumer looked again
        assert [next(ahead), next(ahead)] == [1, 2]
        assert ahead.seconds_waiting == waited
