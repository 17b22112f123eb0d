"""The folder of a run that several processes share, or that a resumed run finds."""

from __future__ import annotations

import json
import pathlib
import time
import uuid
from collections.abc import Mapping
from typing import Any

from tl import hosts


def lost(folder: pathlib.Path) -> float:
    """Seconds of the earlier processes of a run that ended without a checkpoint of their work."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        before = float(config.get("lost_seconds", 0.0))
        begun = (folder / "config.json").stat().st_mtime
        saved = [path.stat().st_mtime for path in folder.glob("checkpoints/*/phase*/step_*")]
        return before + max((folder / "metrics.jsonl").stat().st_mtime - max([begun, *saved]), 0.0)
    except (OSError, ValueError, AttributeError):
        return 0.0


def check_versions(described: Mapping[str, Any]) -> None:
    """Raises ValueError in every process if they run different software."""
    of_all = hosts.gather({**described["versions"], "tl at commit": described["git_commit"]})
    for i, software in enumerate(of_all):
        for name, version in software.items():
            if version != of_all[0][name]:
                raise ValueError(
                    f"processes 0 and {i} run different software: got {name} {of_all[0][name]} and "
                    f"{version}, expected the same; install the same on all machines"
                )


def check_shared(folder: pathlib.Path) -> None:
    """Checks that every process sees the folder in which process 0 writes.

    Raises:
      ValueError: one does not; raised in all of them.
    """
    if hosts.count() == 1:
        return
    token, file = uuid.uuid4().hex, folder / ".token"
    token = hosts.on_first(lambda: token)
    hosts.on_first(lambda: file.write_text(token))

    def sees() -> bool:
        try:
            return file.read_text() == token
        except OSError:
            return False

    until = time.monotonic() + 10  # a network disk may need a few seconds
    while not sees() and time.monotonic() < until:
        time.sleep(0.2)
    blind = [str(i) for i, seen in enumerate(hosts.gather(sees())) if not seen]
    hosts.on_first(file.unlink)
    if blind:
        raise ValueError(
            f"process {', '.join(blind)} of {hosts.count()} does not see the folder "
            f"{str(folder)!r} of process 0, expected a folder that all processes share; give a "
            "`workdir` on a shared disk"
        )
