"""Runs an experiment for every combination of some flags, and compares the results in one table.

  ./launch.sh sweep 'lr=1e-4,1e-3' 'tune=probe,lp_ft' seeds=3 -- transfer --data=folder:DIR
  ./launch.sh sweep 'seed=0,1,2' --on=slurm --slurm='--gpus=4 --requeue' -- transfer --data=elpv

A value with a comma is quoted: 'augment="flip,color",none'. Each run has a folder below --workdir
that is named by the hash of its flags, so that the same command continues unfinished runs and skips
finished ones. Runs that differ only in --seed form one row. A run that fails does not stop the
others. The results are in report.html, sweep.csv, sweep.md and sweep.tex.

Cost: that of the runs, one after the other, or in parallel with --on=slurm or --on=HOST,HOST.
"""

from __future__ import annotations

import jax
from absl import flags

from tl import cli, pages, reporting
from tl.pages import sweep as sweep_page
from tl.scale import sweep

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_multi_string("grid", [], "The arguments: flag=value,value ... EXPERIMENT flags.")
    help = "Where to run: here, slurm, or hosts for ssh with this disk, separated by commas."
    flags.DEFINE_string("on", "here", help)
    flags.DEFINE_string("slurm", "", "Options of ./launch.sh slurm, separated by spaces.")
    flags.DEFINE_string("metric", "", "Number of result.json to compare. Default: test accuracy.")
    flags.DEFINE_bool("lowest", False, "Whether the lowest value of --metric is the best.")
    FLAGS.set_default("workdir", "runs/sweep")


def main(run: reporting.Run) -> None:
    result = sweep.sweep(
        run,
        FLAGS.grid,
        on=FLAGS.on,
        options=FLAGS.slurm,
        metric=FLAGS.metric,
        lowest=FLAGS.lowest,
        say=lambda line: print(line, flush=True),
    )
    page = pages.finish(run, result)
    print(*sweep_page.lines(result), page, sep="\n")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # accelerators are for the runs
    cli.launch("sweep", main, define_flags, rest="grid")
