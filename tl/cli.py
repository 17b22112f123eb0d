"""The command line of every experiment: common flags, launch, one-sentence errors.

The only module of `tl` that defines flags. It holds no logic of an experiment.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from tl import data, devices, hosts, models, reporting
from tl.attacks.radii import fraction as fraction  # numbers in flags
from tl.attacks.radii import radii as radii
from tl.models import Classifier
from tl.paths import expanded, shortened
from tl.reporting import track
from tl.training.resume import same_flags
from tl.types import CacheWarning, Variables

FLAGS = flags.FLAGS


def define_model_flags() -> None:
    """Defines the flags that `load_model` reads."""
    flags.DEFINE_string(
        "arch",
        "efficientnet_lite0",
        "Architecture: timm's NAME, or NAME.TAG for one of its weights. Used without --model.",
    )
    flags.DEFINE_string(
        "model", "", "Folder of a classifier saved by transfer. Default: load --arch instead."
    )
    flags.DEFINE_string(
        "weights",
        "",
        "Source of the weights of --arch: package, hub, hub:OWNER/REPO, random, or the path of a "
        "weights file or of a folder with one. Default: the package if it is installed, else the "
        "hub. Without --arch, a file is loaded as the network that it states or fits.",
    )
    define_which_flag()
    flags.DEFINE_bool(
        "headless",
        False,
        "Leave out the head of the weights. Default: only a head that is not the network's own.",
    )
    flags.DEFINE_bool(
        "cast",
        False,
        "Convert weights of another number type to float32. Default: such weights are an error.",
    )
    flags.DEFINE_enum(
        "dtype",
        "auto",
        ["auto", "float32", "bfloat16"],
        "Number type in which the backbone computes. auto: bfloat16 on a GPU or TPU, float32 on a "
        "CPU.",
    )


def define_image_flags(*, required: bool = True, labels: str = "") -> None:
    """Defines --images, and --labels, the classes of those images.

    Args:
      required: whether a command cannot work without images.
      labels: the classes without --labels=folder; "" if there are none then.
    """
    help = "Image files, folders and globs, separated by commas."
    flags.DEFINE_string("images", None if required else "", help, required=required)
    help = (
        "folder: the folder of an image names its class, by name or WordNet id. If all folders are "
        "numbers and no class is, they are indices."
    )
    help = f"Ground truth. {help} none: {labels}." if labels else help
    flags.DEFINE_enum("labels", "none", ["none", "folder"], help)
    define_white_flag()


def define_white_flag() -> None:
    """Defines the flag that says where white is in images of 16 bits."""
    flags.DEFINE_integer(
        "white",
        0,
        "Value of white in images of 16 bits per channel, such as 4095 for 12 bits in 16. Default: "
        "that of the classifier of --model, then that of the file, then 65535.",
        lower_bound=0,
        upper_bound=65535,
    )


def define_which_flag() -> None:
    """Defines the flag that selects the weights in a file."""
    flags.DEFINE_string(
        "which",
        "",
        "Weights to use of a file that holds several: ema, raw, or a key such as state_dict. "
        "Default: EMA weights if there are any, as in timm.",
    )


class _BoolOrParser(flags.BooleanParser):
    """Parses a bool, or one other word."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word

    def parse(self, argument: str | int | bool) -> bool | str:  # pyright: ignore
        if argument == self.word:
            return self.word
        try:
            return super().parse(argument)
        except ValueError:
            raise ValueError(f"expected true, false or {self.word}") from None


def define_bool_or(name: str, word: str, default: bool, help: str) -> None:
    """Defines a flag that is used as `--name`, `--noname` or `--name=word`."""
    flags.DEFINE(_BoolOrParser(word), name, default, help, serializer=flags.ArgumentSerializer())
    flags.FLAGS[name].boolean = True


def define_run_flags() -> None:
    """Defines the flags that every experiment has."""
    flags.DEFINE_string(
        "workdir", "", "Folder to write the results to. Default: runs/NAME/TIME, a new one."
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "Random seed of splits, initialization and augmentation.",
        lower_bound=0,
        upper_bound=2**32 - 1,  # JAX ignores higher bits
    )
    flags.DEFINE_list(
        "track",
        [],
        f"Services that show the numbers of the run: {', '.join(track.TRACKERS)}. Default: none.",
    )


def launch(
    name: str,
    main: Callable[[reporting.Run], None],
    *define: Callable[[], None],
    arguments: Sequence[str] = (),
    rest: str = "",
    may_change: Sequence[str] = (),
) -> None:
    """Parses the flags, opens the run's folder and runs `main`; reports user errors in a sentence.

    A run of which an optional part failed (`Run.attempt`) ends with a sentence and status 1, too.

    Args:
      name: name of the experiment, such as "predict".
      main: the experiment, called with its run.
      *define: functions that define the experiment's flags, in addition to `define_run_flags`.
      arguments: the flags that arguments without dashes set, in their order, such as "name" for
        `rerun NAME`.
      rest: the flag of a list that receives all other arguments; "" for an error about them.
      may_change: flags that a resumed run may change, because they do not affect its training.
    """
    defined = _define(define_run_flags, *define)

    def work(words: list[str]) -> None:
        for flag, word in zip(arguments, words, strict=False):
            FLAGS[flag].value = word
        if rest and len(words) > len(arguments):
            FLAGS[rest].value = words[len(arguments) :]
        elif unexpected := words[len(arguments) :]:
            raise ValueError(
                f"unexpected argument {unexpected[0]!r}; every argument is a flag, such as --seed=1"
            )
        values = {flag: FLAGS[flag].value for flag in defined}
        track.check(FLAGS.track)
        resume = bool(values.get("resume"))
        if resume and not FLAGS.workdir:
            raise ValueError("`resume` is set without `workdir`; give the folder of the run")
        if resume:
            same_flags(FLAGS.workdir, values, ignore=(*may_change, "track"), name=name)
        elif "resume" in values and _has_checkpoints(FLAGS.workdir):
            raise ValueError(
                f"{FLAGS.workdir!r} holds the checkpoints of a run; add --resume to continue it, "
                "or give another --workdir"
            )
        work = lambda: start_and_finish(values, resume)
        hosts.supervise(work, lambda: runs[0].workdir if runs else None, lambda: _ended(name, runs))

    def start_and_finish(values: dict[str, Any], resume: bool) -> None:
        flags_of_all = {f"`{flag}`": repr(value) for flag, value in values.items()}
        if hosts.join({"the command": name, **flags_of_all}) and not hosts.first():
            sys.stdout = open(os.devnull, "w")
        run = reporting.start(name, FLAGS.workdir, values, resume=resume)
        runs.append(run)
        run.track(FLAGS.track)
        devices.use_compile_cache()
        main(run)
        if message := run.failure_message():
            raise ValueError(message)

    runs: list[reporting.Run] = []
    _run(name, work, runs)


def _has_checkpoints(workdir: str) -> bool:
    return bool(workdir) and any(expanded(workdir).glob("checkpoints/*/phase*"))


def launch_on_folder(name: str, main: Callable[[Path], None], *define: Callable[[], None]) -> None:
    """Runs a command on the folder of a finished run, its only argument, without starting a run.

    Args:
      name: name of the command, such as "report".
      main: the command, called with the folder.
      *define: functions that define the command's flags.
    """
    _define(*define)

    def work(arguments: list[str]) -> None:
        if len(arguments) != 1:
            raise ValueError(
                f"{name} works on one run: got {len(arguments)} arguments, expected the folder of "
                f"a run; write {name} DIR"
            )
        hosts.supervise(lambda: main(expanded(arguments[0])))

    _run(name, work, [])


def _ended(name: str, runs: Sequence[reporting.Run]) -> str:
    folder = runs[0].workdir if runs else None
    return f"{name}: {reporting.interrupted(folder, resumable='resume' in FLAGS)}"


def _define(*define: Callable[[], None]) -> list[str]:
    """Defines flags, shows them under --help of the main module, and returns their names."""
    before = set(FLAGS)
    for define_flags in define:
        define_flags()
    defined = [flag for flag in FLAGS if flag not in before]
    for flag in defined:
        FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[flag])
    return defined


def _run(name: str, work: Callable[[list[str]], None], runs: list[reporting.Run]) -> None:
    """Runs `work` on the arguments that are not flags.

    Errors of the user and of the file system, and too little memory, end the process with a message
    and status 1, Ctrl-C with status 130. Warnings are one sentence each; those of caches become
    remarks of the run.

    Args:
      name: name of the command.
      work: the command, called with the arguments.
      runs: receives the run as soon as its folder is open.
    """

    def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if "persistent compilation cache" in text:  # JAX warns again for each program
            text = devices.compile_cache_remark("reading" in text)
            category = CacheWarning
        if runs and issubclass(category, CacheWarning):
            runs[0].remark(text)
        else:
            text = reporting.one_line(f"{name}: {with_dashes(text)}")
            print(shortened(text, reporting.MAX_MESSAGE), file=sys.stderr)

    def guarded(argv: list[str]) -> None:
        gc.set_threshold(20_000, 20, 50)  # tracing makes many small objects that all live on
        logging.set_verbosity(logging.WARNING)
        warnings.showwarning = show_warning  # type: ignore[assignment]
        try:
            work(argv[1:])
        except hosts.Preempted:
            hosts.leave(hosts.PREEMPTED, _ended(name, runs))
        except Exception as error:
            if hosts.count() > 1 and hosts.signalled():  # another process may be gone already
                hosts.leave(hosts.PREEMPTED, _ended(name, runs))
            if isinstance(error, jax.errors.JaxRuntimeError):
                hosts.wait_for_reason()
            of_user = isinstance(error, ValueError | OSError | MemoryError)
            if not (of_user or "EXHAUSTED" in str(error)):
                if hosts.count() > 1:  # the end of Python would wait for the others
                    traceback.print_exc()
                    hosts.leave(hosts.FAILED, f"{name}: {type(error).__name__}: {error}")
                raise
            text = with_dashes(reporting.sentence(error))
            details = map(with_dashes, getattr(error, "details", ()))
            folder = runs[0].workdir if runs else None
            message = reporting.error_message(f"{name}: {text}", details, folder)
            if hosts.count() > 1:
                hosts.leave(hosts.FAILED, message)
            sys.exit(message)
        except KeyboardInterrupt:
            # Compiled code in the worker thread may run for minutes.
            hosts.leave(130, f"\n{_ended(name, runs)}")

    reporting.make_output_safe()
    app.run(guarded)


def with_dashes(message: str) -> str:
    """Replaces each parameter in backticks that is a flag by the flag.

    Args:
      message: text of a `ValueError` of the library, such as "`seed` must be at least 0: got -1".

    Returns:
      "--seed must be at least 0: got -1"; "`tune=probe`" becomes "--tune=probe". Names in backticks
      that are not flags stay as they are.

    Example:
      >>> with_dashes("`verbosity` must be a number, and `not_a_flag` too")
      '--verbosity must be a number, and `not_a_flag` too'
    """
    return re.sub(
        r"`(\w+)(=[^`]*)?`",
        lambda match: f"--{match[1]}{match[2] or ''}" if match[1] in FLAGS else match[0],
        message,
    )


def load_data(
    run: reporting.Run, name: str, *, min_classes: int = 2, check: bool = True
) -> data.DataSpec:
    """The data set `name` of `tl.data.get`; its remarks are printed and added to `run`.

    Args:
      run: the run.
      name: name of the data set.
      min_classes: as in `tl.data.get`.
      check: whether to examine a sample of its images (`data.check_readable`, `check_pixels`).

    Raises:
      ValueError: the data set cannot be read, or a class has no readable image.
    """
    spec = data.get(name, min_classes=min_classes, white=white(run))
    run.remark(*spec.remarks)
    if check:
        data.check_readable(spec)
        sources = [example.path for example in spec.examples]
        run.remark(*map(with_dashes, data.check_pixels(sources)))
    return spec


def white(run: reporting.Run) -> int:
    """The value of --white, or that of the classifier of --model; 0 for none.

    Remarks on it, and on a sample of the pixels of --images (`data.check_pixels`), are added to
    `run`.

    Raises:
      ValueError: --images names no image.
    """
    flag, stored = FLAGS.white if "white" in FLAGS else 0, metadata()
    of_training = stored.get("white", 0)
    if value := flag or of_training:
        end = ""
        if not flag:
            end = ", as in the training of this classifier; --white=65535 reads their full range"
        elif stored and flag != (of_training or 65535):
            end = f", but {of_training or 'the value of the file'} was white in training"
        run.remark(f"images of 16 bits are read with {value} as white{end}")
    if "images" in FLAGS and FLAGS.images:
        sources = data.find_images(FLAGS.images, white=value)[0]
        run.remark(*map(with_dashes, data.check_pixels(sources)))
    return value


def load_model(run: reporting.Run) -> tuple[Classifier, Variables]:
    """The network of --arch or --model in the number type of --dtype; variables on the host.

    Remarks on the weights are printed and added to `run`.
    """
    key = jax.random.key(FLAGS.seed)
    of_file = FLAGS.weights not in ("", "package", "hub", "random")
    stated = of_file and FLAGS["arch"].using_default_value and not FLAGS.model
    name = "" if stated else FLAGS.model or FLAGS.arch
    clf, variables = models.load(
        name,
        weights=FLAGS.weights or None,
        which=FLAGS.which,
        headless=FLAGS.headless,
        key=key,
        cast=FLAGS.cast,
    )
    run.remark(*map(with_dashes, clf.remarks))
    return clf.with_dtype(compute_dtype()), variables


def metadata() -> dict[str, Any]:
    """What was stored with the classifier of --model; `{}` for a network of --arch."""
    return models.metadata(FLAGS.model) if "model" in FLAGS and FLAGS.model else {}


def compute_dtype() -> str:
    """The number type of --dtype: "float32" or "bfloat16"."""
    return devices.default_dtype() if FLAGS.dtype == "auto" else FLAGS.dtype


def given_flags() -> dict[str, Any]:
    """Name -> value of the flags that the user gave."""
    return {name: FLAGS[name].value for name in FLAGS if not FLAGS[name].using_default_value}


def count(text: str, flag: str) -> int:
    """The value of a flag that is a positive number, or 0 for "auto".

    Raises:
      ValueError: `text` is neither.
    """
    if text == "auto":
        return 0
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"`{flag}` must be a positive number or auto: got {text!r}")
    return int(text)


def fields_of_flags(kind: type) -> dict[str, Any]:
    """Field -> value, of the fields of a dataclass or NamedTuple that are names of flags."""
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    else:
        names = kind._fields  # type: ignore[attr-defined]
    return {name: FLAGS[name].value for name in names if name in FLAGS}
