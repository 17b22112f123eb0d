"""Draws the page of a finished run again, from its numbers and figures; nothing is computed.

  ./launch.sh report runs/transfer/20261128-120000

Reads result.json, config.json and figures/ of the folder and writes report.html. The page is the
same as that of the run, without the number of seconds. Cost: seconds.
"""

from __future__ import annotations

from pathlib import Path

from tl import cli, pages


def main(folder: Path) -> None:
    print(pages.redraw(folder))


if __name__ == "__main__":
    cli.launch_on_folder("report", main)
