"""Repeats the command of a published number; `tl.reporting.results` compares the values."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.reporting import results


def measure(
    claim: results.Claim, values: Mapping[str, str], folder: Path, root: Path
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Runs the command of a claim: the content of `config.json` and of `result.json`.

    Args:
      claim: the claim.
      values: placeholder of the command -> its value, such as "DATA" -> a folder.
      folder: the folder of the new run.
      root: the checkout, which contains `launch.sh`.

    Raises:
      ValueError: the claim has no path into `result.json`, a placeholder has no value, or the
        command failed.
    """
    if "path" not in claim:
        raise ValueError(
            f"{claim['name']} cannot be read from a result.json; run its command and compare: "
            f"{claim['command']}"
        )
    words = results.arguments(claim, values)
    print(f"rerun: {claim['command']}", flush=True)
    process = subprocess.run([root / "launch.sh", *words, f"--workdir={folder}"], check=False)
    if process.returncode:
        raise ValueError(
            f"the command of {claim['name']} failed with exit status {process.returncode}; its "
            "message is above"
        )
    run, result = reporting.read_run(folder)
    return run.config, result
