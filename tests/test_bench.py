"""`bench`: calls that take turns, measured processes, the page, explanations next to Captum's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.benchmarks import attack_libraries, explanations
from tl.evaluation import timing
from tl.pages import bench


def test_calls_take_turns_after_the_untimed_ones() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    rates = timing.rates(calls, 2, 10, warm_up=1)
    assert order == ["a", "b", "a", "b", "a", "b"]
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
