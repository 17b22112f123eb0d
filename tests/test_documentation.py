"""The documents agree with the data and the code: numbers, links, commands, examples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tl.pages import remeasured
from tl.reporting import documents, results
from tl.weights import zoo

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"
CLAIMS = results.load(RESULTS)


def claim(**changes: Any) -> results.Claim:
    """A small claim that is correct."""
    return {
        "name": "fast",
        "group": "Speed",
        "claim": "It is fast.",
        "command": "./launch.sh bench --arch=vgg16",
        "commit": "abcdef1",
        "date": "2026-11-28",
        "machine": "1 CPU core",
        "n": 10,
        "value": 50.0,
        "unit": "%",
        "interval": [40, 60],
        "path": ["test", "top1"],
        **changes,
    }


# ---- numbers are data ----


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_is_complete_and_its_file_is_formatted(name: str) -> None:
    file = RESULTS / f"{name}.json"

    assert not results.check(name, CLAIMS[name])
    assert file.read_text(encoding="utf-8") == results.dumps(CLAIMS[name])


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"interval": [60, 70]}, "interval"),
        ({"value": float("nan")}, "finite"),
        ({"value": "50"}, "wrong type"),
        ({"commit": "main"}, "commit"),
        ({"date": "28 November"}, "date"),
        ({"name": "slow"}, "name"),
        ({"command": "make bench"}, "command"),
        ({"published": {"value": 1.0}}, "source"),
        ({"comment": "reached"}, "unknown key"),
        ({"also": [{"value": 1.0}]}, "missing key what"),
    ],
)
def test_a_wrong_claim_is_reported(changes: dict[str, Any], problem: str) -> None:
    assert problem in " ".join(results.check("fast", claim(**changes)))


def test_the_generated_documents_agree_with_the_data() -> None:
    for file, text in documents.generate(ROOT, CLAIMS, zoo.blocks()).items():
        current = file.read_text(encoding="utf-8")
        assert current == text, f"{file.name} is out of date; run ./launch.sh rerun --tables"


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match="'predict_imagenet'"):
        results.find(CLAIMS, "predict_imagenets")


def test_a_new_run_is_compared_with_the_claim_and_updates_it() -> None:
    old = claim(also=[{"what": "loss", "value": 0.5, "unit": "nats", "path": ["test", "nll"]}])
    new_run = {"test": {"top1": 0.625, "top1_ci95": [0.5, 0.75], "nll": 0.25}}
    new_origin = {"commit": "1234567", "date": "2026-12-01", "machine": "1 TPU"}

    comparison = results.compare(old, new_run, new_origin)
    updated = results.updated(old, new_run, new_origin)

    assert [v["value"] for v in comparison["before"]["values"]] == [50.0, 0.5]
    assert [v["value"] for v in comparison["after"]["values"]] == [62.5, 0.25]
    assert "50.0 % (40 to 60), now 62.5 % (50.0 to 75.0)" in results.lines(comparison)[1]
    assert updated["interval"] == [50.0, 75.0] and updated["also"][0]["value"] == 0.25
    assert updated["commit"] == "1234567" and not results.check("fast", updated)
    assert remeasured.page(json.loads(json.dumps(comparison)), ROOT).sections


def test_a_missing_path_in_a_new_run_is_an_error() -> None:
    with pytest.raises(ValueError, match="top1"):
        results.compare(claim(), {"test": {}}, {"commit": "", "date": "", "machine": ""})


def test_placeholders_of_a_command_must_have_values() -> None:
    data = claim(command="./launch.sh predict --images=DATA/dogs --model=DIR")

    assert results.arguments(data, {"DATA": "/d", "DIR": "m"})[1:] == [
        "--images=/d/dogs",
        "--model=m",
    ]
    with pytest.raises(ValueError, match="DIR"):
        results.arguments(data, {"DATA": "/d"})


def test_the_readme_has_ten_results() -> None:
    assert sorted(c["readme"] for c in CLAIMS.values() if "readme" in c) == list(range(1, 11))
    assert all("path" in c for c in CLAIMS.values() if "readme" in c)


LAUNCHER = """#!/bin/sh
for word; do case $word in --workdir=*) folder=${word#--workdir=} ;; esac; done
mkdir -p "$folder"
echo '{"test": {"top1": 0.55, "top1_ci95": [0.5, 0.6]}}' > "$folder/result.json"
echo '{"device": {"platform": "cpu"}, "versions": {"python": "3.11", "jax": "0.10"},
  "host": {"cpus": 2}, "git_commit": "0123456789", "started": "2026-12-01T10:00"}' \
  > "$folder/config.json"
"""


def test_rerun_measures_a_number_and_writes_it(tmp_path: Path) -> None:
    folder = tmp_path / "experiments" / "results"
    folder.mkdir(parents=True)
    (folder / "fast.json").write_text(results.dumps(claim()))
    (tmp_path / "launch.sh").write_text(LAUNCHER)
    (tmp_path / "launch.sh").chmod(0o755)
    script = ROOT / "experiments" / "rerun.py"
    words = [f"--results={folder}", f"--workdir={tmp_path / 'run'}", "--write", "fast"]

    done = subprocess.run(
        [sys.executable, "-P", str(script), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert "before 50.0 % (40 to 60), now 55.0 % (50.0 to 60.0)" in done.stdout
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["after"]["values"][0]["value"] == 55.0 and saved["before"]["commit"] == "abcdef1"
    assert results.load(folder)["fast"]["commit"] == "0123456"
