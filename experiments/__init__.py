"""Absl scripts over `tl`, one command each: copy one to start a paper."""

from pathlib import Path

__path__ += [
    str(Path(__file__).parent / "benchmarks")
]  # `python -m experiments.bench` finds its room, as ./launch.sh does
