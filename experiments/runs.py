"""Makes one index page over all runs below a folder, with a search box.

  ./launch.sh runs runs

Writes index.html into the folder: experiment, flags, status, numbers, loss and images of each run.
The page needs no server. A run without a result is shown as running if it changed in the last 15
minutes, otherwise as died. Cost: seconds for hundreds of runs.
"""

from __future__ import annotations

from pathlib import Path

from tl import cli
from tl.scale import runs


def main(folder: Path) -> None:
    print(runs.write_index(folder))


if __name__ == "__main__":
    cli.launch_on_folder("runs", main)
