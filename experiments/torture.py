"""Kills small runs at random moments and checks that nothing is lost.

  ./launch.sh torture --kills=20 --seed=1
  ./launch.sh torture --kills=200 --processes=1,2 --cases=cached,images

SIGTERM and SIGKILL end one process of a run of `transfer`, `attack` or `ideal` after a random time;
the command starts again and must end with the same bits. Cost: about 8 s per kill on two cores.
"""

from __future__ import annotations

from absl import flags

from tl import cli, pages, reporting
from tl.pages.torture import lines
from tl.scale import torture

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_integer("kills", 20, "Number of kills.", lower_bound=1)
    flags.DEFINE_list("processes", ["1", "2"], "Numbers of processes of a run.")
    flags.DEFINE_list("cases", list(torture.CASES), f"Runs: {', '.join(torture.CASES)}.")


def main(run: reporting.Run) -> None:
    processes = [int(n) for n in FLAGS.processes]
    settings = {"kills": FLAGS.kills, "seed": FLAGS.seed, "processes": processes}
    result = torture.torture(run.workdir / "runs", cases=FLAGS.cases, log=run.log, **settings)
    page = pages.finish(run, result)
    print(*lines(result), page, sep="\n")


if __name__ == "__main__":
    cli.launch("torture", main, define_flags)
