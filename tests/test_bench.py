"""`bench`: calls that take turns, measured processes, the page, explanations next to Captum's."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.benchmarks import attack_libraries, explanations
from experiments.benchmarks import bench as bench_script
from tests import toys
from tl import reporting
from tl.evaluation import bank_memory, speed, timing
from tl.pages import bench


def test_calls_take_turns_after_the_untimed_ones() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    rates = timing.rates(calls, 2, 10, warm_up=2)
    assert order == ["a", "b"] * 4
    assert [values.shape for values in rates.values()] == [(2,), (2,)]


def test_rates_are_per_second_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "take_turns", lambda *_, **__: {"tl": [2.0, 4.0]})
    np.testing.assert_array_equal(timing.rates({}, 2, 16)["tl"], [8.0, 4.0])


def test_a_measured_process_returns_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "seven.py").write_text("VALUE = 7")
    code = "import json, sys, seven; print('words'); print(json.dumps([seven.VALUE, sys.argv[1]]))"
    assert timing.run_child(code, Path("a"), folder=tmp_path) == [7, "a"]


def test_a_measured_process_that_fails_is_an_error() -> None:
    with pytest.raises(ValueError, match="the measured process failed: .*out of memory"):
        timing.run_child("raise SystemExit('out of memory')")


def test_the_interval_of_a_ratio_ignores_load_that_slows_both() -> None:
    load = np.array([1.0, 0.5, 0.8, 0.9, 0.3])
    row = timing.rate_row("forward", "toy", 30 * load)
    same = timing.compared(row, "torch", 20 * load)
    assert same["ratio"] == pytest.approx(1.5)
    np.testing.assert_allclose(same["ratio_ci95"], [1.5, 1.5])
    assert bench.ratio_text(same) == "1.500 (1.500 to 1.500)"
    noisy = timing.compared(row, "torch", 20 * load * np.array([0.9, 1.1, 1.0, 1.2, 0.8]))
    low, high = noisy["ratio_ci95"]
    assert low < 1.5 < high
    for values in ([20.0], [], [20.0] * 4):  # one round, no peer, other rounds
        assert "ratio_ci95" not in timing.compared(row, "torch", values)
    assert bench.ratio_text(timing.compared(row, None, [])) == ""


def memory_row(nodes: int, peer: str, value: float | None) -> dict[str, Any]:
    row = {"what": f"peak memory, {nodes} nodes", "arch": "toy", "unit": "MB", "ours": 500.0}
    row |= {"nodes": nodes, "program_mb": 90.5}
    return timing.compared(row, peer, [] if value is None else [value])


def test_the_page_draws_memory_over_nodes_and_leaves_out_what_does_not_fit() -> None:
    rows = [
        memory_row(n, peer, v)
        for n, peer, v in (
            (8, "all", 600.0),
            (16, "all", None),
            (8, "10", 550.0),
            (16, "10", 551.0),
        )
    ]
    rows = json.loads(json.dumps(rows))
    (section,) = bench.memory_sections(rows)
    for words in ("90.5", "all, the process", "10, the process", "551"):
        assert words in section
    assert bench.memory_sections([{"what": "forward", "arch": "toy", "ours": 1.0}]) == []
    result = {"rows": rows, "batch_size": 1, "size": 32, "dtype": "float32", "device": "cpu"}
    page = bench.page({**result, "rounds": 1}, Path())
    assert len(page.sections) == 2


def speed_row(
    arch: str, what: str, ratio: float, peer: str = "torch 2", **more: Any
) -> dict[str, Any]:
    rates = np.array([9.0, 10.0, 11.0])
    return timing.compared(timing.rate_row(what, arch, rates, **more), peer, rates / ratio)


def test_the_page_draws_ratios_with_their_intervals() -> None:
    rows = [speed_row("resnet18", "forward", 1.2), speed_row("vgg16", "forward", 0.9)]
    (figure,) = bench.ratio_sections(json.loads(json.dumps(rows)))
    for words in ("Ratio to torch 2", "resnet18, forward", "1.20", "0.90", "equal speed"):
        assert words in figure
    assert 'class="axis ratios"' in figure, "the style sheet ends other axes with a percent sign"
    (figure,) = bench.ratio_sections([*rows, speed_row("vgg16", "forward", 2.5, "keras 3")])
    assert "vgg16, forward, keras 3" in figure and "2.50" in figure
    without = [
        timing.rate_row("forward", "toy", [1.0]),
        speed_row("toy", "x", 1.0, **{"pass": "x"}),
    ]
    assert bench.ratio_sections(without) == []
    for low in (0.0, -1.0):
        with pytest.raises(ValueError, match="a ratio must be positive and finite"):
            reporting.intervals([reporting.Interval("toy", 1.0, low, 2.0)], ratios=True)


def test_the_page_draws_the_time_per_image_over_one_size_with_the_other_fixed() -> None:
    rows = [
        speed_row("toy", "x", 2.0, **{"pass": name, "batch_size": n, "size": size})
        for name in ("forward", "input_gradient")
        for n, size in ((1, 224), (16, 224), (16, 320))
    ]
    (section,) = bench.growth_sections(json.loads(json.dumps(rows)), 16, 224)
    assert section.count("<figure") == 4  # two passes over two sizes
    assert "over batch size" in section and "torch 2 <b" in section
    assert "200" in section  # milliseconds per image of the peer
    assert bench.growth_sections([speed_row("toy", "forward", 1.0)], 16, 224) == []


def test_the_page_draws_the_memory_of_banks_and_states_what_was_read() -> None:
    row = {"what": "bank memory", "arch": "toy", "images": 10, "unit": "MB", "ours": 3.0}
    row |= {"read_mb": 12.4, "bank_mb": 51.2}
    (section,) = bench.bank_sections([row, row | {"images": 100}, row | {"images": None}])
    assert "growth of private memory" in section and section.count("<figure") == 1
    assert bench.value_text(row, "ours") == "3 MB, 12 MB read, bank of 51 MB"


def test_a_row_states_how_far_the_maps_differ() -> None:
    row = {"what": "ig", "arch": "toy", "ours": 2.0, "map_error": 0.00012}
    assert bench.value_text(row, "ours") == "2 images/s, maps differ by 1e-04"


# ---- explanations: need torch and Captum ----


@pytest.fixture(scope="module")
def net() -> attack_libraries.Twin:
    pytest.importorskip("captum")
    return attack_libraries.twin("squeezenet1_1", weights="random", size=64)


@pytest.mark.parity
@pytest.mark.parametrize("name", explanations.METHODS)
def test_both_libraries_explain_the_same(net: attack_libraries.Twin, name: str) -> None:
    rows, x = explanations.problem(net, 2 if name == "gradcam" else 1)
    options = {"masks": 600} if name == "rise" else {}
    ours = np.asarray(
        explanations.explain.make(explanations.method(name, **options), net.clf)(
            net.variables, *rows
        )
    )
    theirs = explanations.METHODS[name].theirs(net, x, 10, **options).detach().numpy()
    if name == "rise":  # other random masks: the means agree up to their standard error
        error = np.abs(ours.mean() - theirs.mean()) / theirs.mean()
        assert error < 0.05 and ours.std() < 0.1 * ours.mean()
    else:
        assert explanations.error(ours, theirs) < 1e-3


@pytest.mark.parity
def test_the_rows_have_ratios_and_goals(net: attack_libraries.Twin) -> None:
    (row,) = explanations.speed("squeezenet1_1", ["gradcam"], 64, 10, 1)
    assert row["ratio"] == pytest.approx(row["ours"] / row["peer_value"])
    assert row["peer"].startswith("captum ") and row["map_error"] < 1e-3
    assert row["met"] == (row["ratio"] >= 1.5) and math.isfinite(row["ours"])


@pytest.mark.parity
def test_memory_is_measured_for_each_number_of_nodes(
    net: attack_libraries.Twin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(explanations, "NODES", (4, 8))
    explanations.print_peaks("squeezenet1_1", "32", "10 nodes at a time")
    peaks = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(peaks) == 3 and peaks == sorted(peaks) and peaks[0] > 100
    monkeypatch.setattr(explanations.devices, "memory_limit", lambda: -1)
    explanations.print_peaks("squeezenet1_1", "32", "all nodes at once")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])[1:] == [None, None]
    children = {"tl": [50.0, 60.0, 60.0], "all nodes at once": [50.0, 70.0, None]}
    children["10 nodes at a time"] = [50.0, 55.0, 56.0]
    monkeypatch.setattr(timing, "run_child", lambda code, arch, size, way, folder: children[way])
    rows = list(explanations.memory("squeezenet1_1", 32))
    assert [row["nodes"] for row in rows] == [4, 4, 8, 8]
    assert [row["peer_value"] for row in rows] == [70.0, 55.0, None, 56.0]
    assert rows[0]["program_mb"] == pytest.approx(rows[-1]["program_mb"], rel=1e-2)
    assert rows[0]["program_mb"] > 0 and all(row["met"] for row in rows)


# ---- memory of feature banks ----

linux = pytest.mark.skipif(sys.platform != "linux", reason="private memory is that of Linux")


@linux
def test_private_memory_grows_with_arrays_and_not_with_mapped_files(tmp_path: Path) -> None:
    code = """
import json, sys
import numpy as np
from tl.evaluation.timing import private_mb
before = private_mb()
mapped = np.memmap(sys.argv[1], np.uint8, "w+", shape=80_000_000)
mapped[:] = 1
of_file = private_mb() - before
array = np.ones(80_000_000, np.uint8)
print(json.dumps([of_file, private_mb() - before - of_file]))
"""
    of_file, of_array = timing.run_child(code, tmp_path / "file")
    assert of_file < 10 and 75 < of_array < 90


def test_private_memory_needs_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "Name: python")
    with pytest.raises(ValueError, match="RssAnon"):
        timing.private_mb()


@linux
def test_banks_of_several_sizes_are_read_in_processes_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def child(code: str, cache: Path, saved: Path, n: int) -> Any:
        assert code == bank_memory.CHILD
        monkeypatch.setenv("TL_CACHE", str(cache))
        bank_memory.print_memory(str(saved), str(n))
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    monkeypatch.setattr(timing, "run_child", child)
    clf, variables = toys.classifier("toy_mobilenet")
    monkeypatch.setattr(bank_memory.models, "load", lambda name, **_: (clf, variables))
    monkeypatch.setattr(bank_memory.models, "save", lambda path, *_: path)
    rows = list(bank_memory.bank_memory("toy_mobilenet", (40, 2000)))
    assert [row["images"] for row in rows] == [40, 2000, None]
    assert rows[-1]["what"] == "bank memory, 40 of 2,000 images"
    small, large, part = (row["read_mb"] for row in rows)
    assert 0 < small < part < 2 * large / 3  # headers, and one shard of four


def test_every_convolution_of_a_network_is_timed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed.models, "load", lambda *_, **__: toys.classifier("toy_mobilenet"))
    ticks = iter(range(10**6))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(ticks)))
    work = speed.Workload(batch_size=2, size=16, dtype="float32", rounds=2, seed=0)
    convolutions = speed.convolutions("toy_mobilenet", work)
    *rows, forward, _, _ = bench_script.convolutions("toy_mobilenet", {}, work)
    assert len(rows) == 3 * len(convolutions)
    assert forward["what"] == "forward, all convolutions"
    # Each call takes one tick of the clock.
    assert forward["ours"] == pytest.approx(1 / sum(convolutions.values()))
    for conv, row in zip(convolutions, rows[::3], strict=True):
        assert row["ours"] == pytest.approx(2e-9 * conv.multiply_adds)
        assert row["count"] == convolutions[conv] and row["ratio"] is None
        assert f", {row['count']} in the network" in bench.line(row)


@linux
@pytest.mark.full
def test_private_memory_does_not_grow_with_a_bank() -> None:
    small, large, part = bank_memory.bank_memory("squeezenet1_1", (1000, 60_000))
    assert large["bank_mb"] > 120 and large["ours"] < small["ours"] + 40
    assert part["read_mb"] < large["read_mb"] / 5
