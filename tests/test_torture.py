"""`torture`: runs that are killed at random moments end in the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tl.pages.torture import lines
from tl.scale import torture


@pytest.mark.full
def test_killed_runs_end_in_the_same_bits(tmp_path: Path) -> None:
    result = torture.torture(tmp_path, kills=3, seed=2, processes=[1], cases=["images"])
    assert (result["n"], result["lost"], result["hangs"], result["different"]) == (3, 0, 0, 0), (
        result["failures"]
    )
    # A checkpoint is written during the next interval; one that is not complete is lost too.
    assert result["repeated_intervals"] <= 2
    for row in result["kills"]:
        expected = (-9,) if row["signal"] == "SIGKILL" else (75, -15)  # before the command began
        assert row["statuses"][0] in expected
    # A run that ends before its kill is followed by another one.
    text = f"3 kills of {result['runs']} runs: 0 lost, 0 hung, 0 with other bits"
    assert lines(result)[0].startswith(text)


def test_an_unknown_case_is_an_error_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown case 'probes'; nearest: .*probe"):
        torture.torture(tmp_path, kills=1, seed=0, cases=["probes"])


def test_steps_that_are_in_no_checkpoint_are_counted(tmp_path: Path) -> None:
    rows = [{"round": "seed0", "phase": "all", "step": i} for i in range(4)]
    rows += [{"round": "seed0", "phase": "all", "epoch": 1}]
    rows += [{"round": "seed0", "phase": "all", "step": i} for i in range(4, 7)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text + '{"cut')
    (tmp_path / "checkpoints" / "seed0" / "phase0" / "step_00000004").mkdir(parents=True)
    assert torture._repeated(tmp_path) == (3, 4)
    (tmp_path / "checkpoints" / "seed0" / "phase0" / "step_00000006").mkdir()
    assert torture._repeated(tmp_path)[0] == 1
