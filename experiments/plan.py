"""Compiles the step of a command for a TPU slice, without a TPU: memory, communication, time.

  ./launch.sh plan transfer --arch=resnet50 --tune=all --batch_size=1024 --topology=v5e:4x4
  ./launch.sh plan attack --arch=resnet50 --steps=40 --topology=v5e:2x2
  ./launch.sh plan transfer --data=folder:DIR --tune=last:1 --topology=v6e:2x2 --compiles=0
  ./launch.sh plan transfer --arch=resnet50 --tune=all --topology=h100:8     GPUs of one host

The flags after the command are its own. The program is the one that the command would run, in the
number type and the forms of a TPU or GPU. No image is read: the classes and the number of images
are those of --data, or --classes and --examples. Weights are random unless --weights or --model is
given.

Expected: 10.3 GB per chip for ResNet-50 on v5e:2x2 (`plan_resnet50_v5e_2x2` in RESULTS.md). Cost:
minutes of one core per compilation. For GPUs, install the extra `cuda`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from typing import Any

from absl import flags

from tl import cli, devices, pages, reporting
from tl.scale import plan, programs, topology
from tl.training import recipes

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("experiment", "", "The command to plan; the first argument.")
    flags.DEFINE_string("topology", "v5e:2x2", "Chip and shape, such as v5e:4x4 or h100:8.")
    number = flags.DEFINE_integer
    number("compiles", 2, "Compilations to find the largest batch.", lower_bound=0)
    number("classes", 1000, "Classes of transfer, without --data.", lower_bound=1)
    number("examples", 50_000, "Training images of transfer, without --data.", lower_bound=1)
    define_command_flags()


def script(name: str) -> Any:
    """The script of a command; raises ValueError if it has no step, or is not there."""
    programs.check_command(name)
    if importlib.util.find_spec("experiments") is None:
        raise ValueError("plan needs the other scripts; run it as ./launch.sh plan")
    return importlib.import_module(f"experiments.{name}")


def define_command_flags() -> None:
    """Defines the flags of the command, none of which is required."""
    name = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    with contextlib.suppress(ValueError):  # reported by `main`
        script(name).define_flags()
    for flag in {"data", "images"} & set(FLAGS):
        FLAGS[flag].value = FLAGS[flag].value or ""


def arguments_of_flags(run: reporting.Run, size: int) -> dict[str, Any]:
    """The arguments of the command's program, in addition to the network and the devices.

    Args:
      run: the run.
      size: side of the network's input, in pixels.
    """
    name = FLAGS.experiment
    settings: Any = getattr(script(name), "settings_of_flags", dict)
    if name == "transfer":
        spec = programs.synthetic_set(FLAGS.classes, FLAGS.examples)
        spec = cli.load_data(run, FLAGS.data, check=False) if FLAGS.data else spec
        facts = recipes.facts_of(spec, size)
        return {"settings": settings(facts), "spec": spec}
    if name == "features":
        return {"batch_size": FLAGS.batch_size, "endpoint": (*FLAGS.endpoint, "features")[0]}
    words = {"attack": "target", "ideal": "words"}
    return {"settings": settings(), words[name]: FLAGS.target} if name in words else {}


def main(run: reporting.Run) -> None:
    script(FLAGS.experiment)
    described = topology.describe(FLAGS.topology)
    if not (FLAGS.weights or FLAGS.model):
        FLAGS.weights = "random"
    with devices.compile_for(described.chip.platform):
        clf, variables = cli.load_model(run)
        arguments = {"among": described.devices, **arguments_of_flags(run, clf.pixels.size)}
        program = programs.PROGRAMS[FLAGS.experiment](clf, variables, **arguments)
        say = lambda line: print(line, flush=True)
        result = plan.plan(program, described, compiles=FLAGS.compiles, say=say)
    result |= {"experiment": FLAGS.experiment, "arch": clf.arch, "dtype": clf.dtype}
    page = pages.finish(run, result)
    print(*pages.plan.lines(result), page, sep="\n")


if __name__ == "__main__":
    topology.stay_on_cpu()
    cli.launch("plan", main, cli.define_model_flags, define_flags, arguments=["experiment"])
