"""Absl scripts that use `tl`, one command each: copy one to start a paper."""

from pathlib import Path

# `python -m experiments.bench` finds the scripts in benchmarks/, as ./launch.sh does.
__path__ += [str(Path(__file__).parent / "benchmarks")]
