"""What every experiment does around its own work: the common flags, one sentence for an error, and the compile cache."""

from __future__ import annotations

import math
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app, flags, logging

from tl import backbones, devices, models, paths, reporting
from tl.models import Classifier
from tl.training import checkpoints
from tl.types import Variables

FLAGS = flags.FLAGS


def define_model_flags() -> None:
    flags.DEFINE_string("arch", "efficientnet_lite0", "Architecture, by timm's name or NAME.TAG.")
    flags.DEFINE_string(
        "model", "", "Folder of a classifier saved by transfer; takes the place of --arch."
    )
    flags.DEFINE_string(
        "weights",
        "",
        "package, hub, hub:OWNER/REPO, random, or the path of a weights file. Default: the package where it is installed, "
        "else the hub.",
    )
    flags.DEFINE_bool(
        "cast",
        False,
        "Convert weights that are in another number type than float32, instead of refusing.",
    )
    flags.DEFINE_enum(
        "dtype",
        "auto",
        ["auto", "float32", "bfloat16"],
        "In which the backbone computes; auto: bfloat16 on a GPU or TPU, float32 on a CPU.",
    )


def define_run_flags() -> None:
    flags.DEFINE_string("workdir", "", "Where results go. Default: runs/NAME/<time>.")
    flags.DEFINE_integer("seed", 0, "Of everything random.", lower_bound=0)


def launch(
    name: str,
    main: Callable[[reporting.Run], None],
    *define: Callable[[], None],
    argument: str = "",
) -> None:
    """Parses the flags, opens the run's folder and runs `main`; a user's error is one sentence.

    Args:
      name: the experiment, `predict`.
      main: the experiment, called with its run.
      define: functions that define the experiment's flags, next to those of `define_run_flags`.
      argument: the flag that one argument without dashes sets, `name` for `rerun NAME`.
    """
    own = _define(define_run_flags, *define)

    def work(arguments: list[str]) -> None:
        if argument and arguments:
            FLAGS[argument].value = arguments.pop(0)
        if arguments:
            raise ValueError(
                f"unexpected argument {arguments[0]!r}; every argument is a flag, such as --seed=1"
            )
        use_compile_cache()
        values = {flag: FLAGS[flag].value for flag in own}
        resume = bool(values.get("resume"))
        if resume:
            if not FLAGS.workdir:
                raise ValueError("`resume` needs the `workdir` of the run to continue; add it")
            checkpoints.same_flags(FLAGS.workdir, values)
        elif "resume" in values and FLAGS.workdir and Path(FLAGS.workdir, "checkpoints").is_dir():
            raise ValueError(
                f"{FLAGS.workdir!r} holds the checkpoints of a run; add --resume to continue it, "
                "or give another --workdir"
            )
        interruptible(lambda: main(reporting.start(name, FLAGS.workdir, values, resume=resume)))

    _run(name, work)


def launch_on_folder(name: str, main: Callable[[Path], None], *define: Callable[[], None]) -> None:
    """Runs a command on the folder of a finished run, its one argument; no new run is started.

    Args:
      name: the command, `report`.
      main: the command, called with the folder.
      define: functions that define the command's flags.
    """
    _define(*define)

    def work(arguments: list[str]) -> None:
        if len(arguments) != 1:
            raise ValueError(
                f"{name} works on one run: got {len(arguments)} arguments, expected the folder of "
                f"a run; write {name} DIR"
            )
        interruptible(lambda: main(Path(arguments[0]).expanduser()))

    _run(name, work)


def _define(*define: Callable[[], None]) -> list[str]:
    """Defines flags, shows them under --help of the main module, and returns their names."""
    others = set(FLAGS)
    for part in define:
        part()
    own = [flag for flag in FLAGS if flag not in others]
    for flag in own:
        FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[flag])
    return own


def _run(name: str, work: Callable[[list[str]], None]) -> None:
    """Runs `work` on the arguments that are not flags; a ValueError becomes one sentence."""

    def guarded(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)
        try:
            work(argv[1:])
        except ValueError as error:
            sys.exit(f"{name}: {with_dashes(str(error))}")
        except KeyboardInterrupt:
            print(
                f"\n{name}: interrupted before it was done; no half-written result is left",
                file=sys.stderr,
                flush=True,
            )
            os._exit(130)  # the worker may be minutes deep in compiled code

    app.run(guarded)


def with_dashes(message: str) -> str:
    """A message of the library in the words of the command line: a parameter in backticks becomes its flag.

    Example:
      >>> with_dashes("`workdir` is missing")
      '`workdir` is missing'
    """
    return re.sub(
        r"`(\w+)(=[^`]*)?`",
        lambda match: f"--{match[1]}{match[2] or ''}" if match[1] in FLAGS else match[0],
        message,
    )


def interruptible(work: Callable[[], None]) -> None:
    """Runs `work` in a thread, so that Ctrl-C is heard while compiled code runs; results are written in one piece anyway."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # handed to the main thread, which knows what to do
            failures.append(error)

    worker = threading.Thread(target=guarded, daemon=True)
    worker.start()
    while worker.is_alive():
        worker.join(0.1)
    if failures:
        raise failures[0]


def use_compile_cache() -> None:
    """Keeps XLA's compiled programs on disk, so that a second run starts at once."""
    jax.config.update("jax_compilation_cache_dir", str(paths.cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def load_model() -> tuple[Classifier, Variables]:
    """The network that --arch, --model and --weights name, its variables on the host."""
    key = jax.random.key(FLAGS.seed)
    name = FLAGS.model or FLAGS.arch
    clf, variables = models.load(name, weights=FLAGS.weights or None, key=key, cast=FLAGS.cast)
    asked = name.partition(".")[0]
    if not FLAGS.model and clf.arch != backbones.get(asked).name:
        print(
            f"these weights are of {clf.arch}, the form of {asked} that they belong to", flush=True
        )
    return clf.with_dtype(compute_dtype()), variables


def compute_dtype() -> str:
    """What --dtype means here."""
    return devices.default_dtype() if FLAGS.dtype == "auto" else FLAGS.dtype


def fraction(word: str, flag: str) -> float:
    """A number as users write radii: `4/255`, `0.25/255`, `0.01`."""
    try:
        above, _, below = word.partition("/")
        value = float(above) / float(below or 1)
        if math.isfinite(value):
            return value
    except (ValueError, ZeroDivisionError):
        pass
    raise ValueError(f"--{flag}={word!r} is not a number; write it as 4/255 or 0.0157")


def radii(words: str, norm: str) -> list[float]:
    """The flag --eps as numbers; in Linf a share of the pixel range."""
    eps = [fraction(word, "eps") for word in words.split(",")]
    for radius, word in zip(eps, words.split(","), strict=True):
        if radius < 0 or (norm == "linf" and radius > 1):
            raise ValueError(
                f"--eps={word} is outside [0, 1]; pixel units are shares of the range, such as 4/255"
            )
    return eps
