"""Checkpoints of a run that may be killed at any moment: a pytree of arrays and a position.

  folder/step_00000120/  one checkpoint
    tree/                the leaves by name, such as `opt_state/0/mu/head/kernel`
    meta/metadata        JSON: shape and dtype of every leaf; `position` (epoch, place in the data)
    metrics/metrics      JSON, if there are metrics

A checkpoint is complete or absent, because Orbax writes to a temporary folder and renames it. Typed
keys are stored as integers.

A save returns as soon as the leaves are copied to the host, so a train step may donate them
afterwards; a thread writes. An error in that thread is raised by the next `save`, `wait`, `latest`,
`best`, `restore` or `close`. The newest checkpoints and the best one are kept.

Resuming: a run continues from `latest()`, if `resume` finds that it is the same run. Everything
that changes is read from the checkpoint: parameters, statistics, optimizer, averages, step and keys
from the tree, and the place in the data from `position`. No state is initialized again. Steps after
that checkpoint are computed again, and on a CPU they give the same bits.

This module does not decide when to save. Its folders are not for distribution: `tl.models.save`
writes artifacts of safetensors and JSON. It is the only module that imports Orbax, and does so when
a folder is opened.

Example:
  with contextlib.closing(checkpoints.open(run.workdir / "checkpoints")) as store:
    if store.latest() is not None:
      train_state, position, _ = store.restore(store.latest(), like=train_state)
    store.save(step, train_state, position={"loader": stream.state()}, metrics={"loss": loss})
"""

from __future__ import annotations

import errno
import functools
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from tl import hosts, reporting
from tl.paths import expanded, is_url, nearest, printable, shortened

# Folders are named step_00000120, so that their names sort as numbers.
PREFIX, DIGITS = "step", 8
# Seconds that a process waits until the others have written their parts. Chosen, not tuned.
WAIT = 300


class Checkpoints:
    """The checkpoints in one folder, made by `open`.

    `close` makes sure that the last save is on disk.
    """

    def __init__(self, folder: Path, keep: int, best: Literal["min", "max"]):
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

        self.folder = folder
        self._ocp = ocp
        self._sign = 1.0 if best == "max" else -1.0
        self._writing: int | None = None

        class FirstBest(policy.BestN):
            """Of equals `BestN` keeps the last of its input."""

            def should_preserve(self, checkpoints: Any, *, context: Any) -> Any:
                return super().should_preserve(checkpoints[::-1], context=context)[::-1]

        rules = [
            policy.LatestN(keep),
            FirstBest(get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False),
        ]
        options = ocp.CheckpointManagerOptions(
            step_prefix=PREFIX,
            step_format_fixed_length=DIGITS,
            async_options=ocp.AsyncOptions(
                create_directories_asynchronously=False, timeout_secs=WAIT
            ),
            best_fn=self._score,  # without it Orbax writes no metrics
            preservation_policy=policy.AnyPreservationPolicy(rules),
        )
        self._manager = ocp.CheckpointManager(folder, options=options)
        _open_managers().add(self._manager)

    def _score(self, metrics: Mapping[str, float | None]) -> float:
        value = next(iter(metrics.values()), None)
        return -math.inf if value is None else self._sign * value  # None: NaN or infinite

    def save(
        self,
        step: int,
        tree: Any,
        *,
        position: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        replace: bool = False,
    ) -> None:
        """Copies the tree to the host and writes it in a thread; first waits for the save before.

        Every process must call it with the same arguments.

        Args:
          step: larger than that of every checkpoint in the folder.
          tree: a pytree of JAX or NumPy arrays, typed keys included.
          position: JSON-ready: the place in the data, the epoch, and everything else that the run
            needs to continue.
          metrics: name -> number; the first decides which checkpoint is the best. NaN is never the
            best.
          replace: whether `step` may be the newest checkpoint, which is then removed first.

        Raises:
          ValueError: the save before failed or this one cannot begin (disk full, folder missing); a
            step that is not new; leaves that are not arrays; a position that JSON cannot hold.
        """
        self.wait()
        newest = max(self._manager.all_steps(), default=None)
        if replace and step == newest:
            self._manager.delete(step)
        elif newest is not None and step <= newest:
            raise ValueError(
                f"`step` must be larger than {newest}, the newest checkpoint in "
                f"{str(self.folder)!r}: got {step}"
            )
        leaves = _named(tree)
        meta = {
            "leaves": {name: _described(leaf) for name, leaf in leaves.items()},
            "keys": {
                name: str(jax.random.key_impl(leaf))
                for name, leaf in leaves.items()
                if _is_key(leaf)
            },
            "position": reporting.jsonable(position, where="position"),
        }
        stored = {
            name: jax.random.key_data(leaf) if _is_key(leaf) else leaf
            for name, leaf in leaves.items()
        }
        # Orbax does not save empty arrays.
        stored = {name: leaf for name, leaf in stored.items() if leaf.size}
        ocp = self._ocp
        items = {"meta": ocp.args.JsonSave(meta)} | (
            {"tree": ocp.args.PyTreeSave(stored)} if stored else {}
        )
        self._writing = step
        numbers = None if metrics is None else reporting.jsonable(metrics, where="metrics")
        if hosts.count() > 1:  # where one process alone fails to write, Orbax waits for minutes
            nbytes = sum(leaf.nbytes for leaf in stored.values())
            hosts.on_first(lambda: self._check_folder(nbytes))
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=numbers, force=True)
        except OSError as error:
            raise self._failed(error) from error

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        self.wait()
        return max(self._manager.all_steps(), default=None)

    def best(self) -> int | None:
        """The step of the best checkpoint, the first of equals; None without a finite metric."""
        self.wait()
        metrics = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
        scores = {step: self._score(values) for step, values in metrics.items() if values}
        finite = [(score, -step) for step, score in scores.items() if score > -math.inf]
        return -max(finite)[1] if finite else None

    def restore(
        self, step: int, like: Any
    ) -> tuple[Any, dict[str, Any], dict[str, float | None] | None]:
        """Reads a checkpoint; the tree has the bits that were saved.

        Args:
          step: such as `latest()` or `best()`.
          like: a pytree of the saved structure, with arrays or `jax.ShapeDtypeStruct` as leaves. A
            leaf is returned as a NumPy array if `like` has one there; otherwise as a JAX array,
            with the sharding of `like` if that is committed.

        Returns:
          `(tree, position, metrics)`.

        Raises:
          ValueError: no such step; names, shapes, dtypes or shardings that do not fit, all in one
            message; a damaged checkpoint.
        """
        self.wait()
        steps = sorted(self._manager.all_steps())
        if step not in steps:
            raise ValueError(
                f"{str(self.folder)!r} has no checkpoint of step {step}; it has those of "
                f"steps {steps}"
            )
        ocp, targets = self._ocp, _named(like)
        try:
            meta = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            )["meta"]
            problems = _misfits(meta["leaves"], targets)
            if not problems:
                arguments = {
                    name: self._argument(leaf)
                    for name, leaf in targets.items()
                    if math.prod(leaf.shape)
                }
                item = ocp.args.PyTreeRestore(dict.fromkeys(arguments, 0), restore_args=arguments)
                arrays = (
                    self._manager.restore(step, args=ocp.args.Composite(tree=item))["tree"]
                    if arguments
                    else {}
                )
        except (OSError, KeyError, ValueError) as error:
            path = self.folder / f"{PREFIX}_{step:0{DIGITS}}"
            reason = str(error).strip().split("\n")[0][:200]
            raise ValueError(
                f"checkpoint {str(path)!r} is damaged ({reason}); delete it to continue from the "
                "one before"
            ) from error
        if problems:
            more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise ValueError(
                f"checkpoint of step {step} does not fit: {'; '.join(problems[:8])}{more}"
            )
        leaves = []
        for name, leaf in targets.items():
            value: Any = arrays[name] if name in arrays else np.zeros(leaf.shape, leaf.dtype)
            if not isinstance(leaf, np.ndarray):
                value = jnp.asarray(value)
            leaves.append(
                jax.random.wrap_key_data(value, impl=meta["keys"][name]) if _is_key(leaf) else value
            )
        tree = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return tree, meta["position"], self._manager.metrics(step)

    def _argument(self, leaf: Any) -> Any:
        """Where Orbax reads a leaf to: the devices of a committed sharding, otherwise the host."""
        sharding = _sharding(leaf)
        if sharding is None:
            return self._ocp.RestoreArgs(restore_type=np.ndarray)
        return self._ocp.ArrayRestoreArgs(sharding=sharding)

    def wait(self) -> None:
        """Waits for the last save.

        Raises:
          ValueError: the save failed; raised once.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # of a thread that ran tensorstore and the file system: any kind
            raise self._failed(error) from error

    def _check_folder(self, nbytes: int) -> None:
        """Raises ValueError if `nbytes` cannot be written into the folder."""
        if is_url(self.folder):
            return
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder.parent):
                pass
            if shutil.disk_usage(self.folder).free < nbytes + 2**20:
                raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> ValueError:
        reason = str(error).strip().split("\n")[0][:200]
        return ValueError(
            f"the checkpoint of step {self._writing} could not be written to {str(self.folder)!r} "
            f"({reason}); check that the folder exists and has free disk space"
        )

    def close(self) -> None:
        """Waits for the last save and ends the threads; raises the errors of `wait`."""
        try:
            self.wait()
        finally:
            self._manager.close()


def open(
    folder: str | os.PathLike[str], *, keep: int = 2, best: Literal["min", "max"] = "min"
) -> Checkpoints:
    """Opens a folder of checkpoints; creates a missing folder and removes incomplete checkpoints.

    Args:
      folder: holds the checkpoints of one run; other files and folders in it are not touched.
      keep: number of newest checkpoints that are kept, in addition to the best one.
      best: whether a small ("min", a loss) or a large metric ("max", an accuracy) is better.

    Raises:
      ValueError: `folder` is a file, holds something else or has a name that is not UTF-8, `keep`
        is below 1, or `best` is another word.
    """
    if keep < 1 or best not in ("min", "max"):
        raise ValueError(
            f"`keep` must be at least 1 and `best` 'min' or 'max': got keep={keep!r}, best={best!r}"
        )
    path = expanded(folder)
    path = path if is_url(path) else Path(os.path.abspath(path))
    check_name(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{str(path)!r} is a file; expected a folder for checkpoints")
    names = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    if names and not any(re.match(rf"{PREFIX}_\d", name) for name in names):
        raise ValueError(
            f"{str(path)!r} holds other files ({names[0]!r}) and no checkpoint; use an empty or a "
            "new folder"
        )

    def clean() -> None:
        # Orbax does this in a thread, which may not finish before the process ends.
        for name in names:
            if re.match(rf"{PREFIX}_\d{{{DIGITS}}}\.orbax-checkpoint-tmp", name):
                (path / name).rmtree() if is_url(path) else shutil.rmtree(path / name)  # type: ignore

    hosts.on_first(clean)
    # Orbax logs every step of its work, and errors that are raised here a second time with a
    # traceback.
    log = logging.getLogger("absl")
    if _not_of_orbax not in log.filters:
        log.addFilter(_not_of_orbax)
    return Checkpoints(path, keep, best)


def check_name(folder: Path) -> None:
    """Raises ValueError if the name of a folder is not UTF-8, which Orbax cannot open."""
    if printable(str(folder)) != str(folder):
        raise ValueError(
            f"the name of {shortened(printable(str(folder)), 200)!r} is not UTF-8, expected UTF-8 "
            "for checkpoints; give another `workdir`"
        )


@functools.cache
def _open_managers() -> weakref.WeakSet[Any]:
    """The open managers of this process; they finish before Python stops its thread pools.

    Otherwise a process that did not call `close` would hang, because Orbax waits for the stopped
    threads. `atexit` runs too late; this is the hook that `concurrent.futures` uses.
    """
    managers: weakref.WeakSet[Any] = weakref.WeakSet()

    def finish() -> None:
        for manager in list(managers):
            try:
                manager.wait_until_finished()
            # Any kind of error, as in `Checkpoints.wait`; there is no caller to raise it to.
            except Exception as error:
                print(f"the last checkpoint could not be written: {error}", file=sys.stderr)

    threading._register_atexit(finish)  # type: ignore[attr-defined]
    return managers


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname.replace(os.sep, "/")


def _named(tree: Any) -> dict[str, Any]:
    """The leaves by name, in the order of the tree; JAX does not count `None` as a leaf."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
    wrong = [
        name
        for name, leaf in leaves.items()
        if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
    ]
    if wrong:
        kind = type(leaves[wrong[0]]).__name__
        raise ValueError(
            f"a checkpoint holds arrays: leaf {wrong[0]!r} is a {kind} ({len(wrong)} such leaves); "
            "use jnp.asarray"
        )
    if len(leaves) < len(pairs):
        raise ValueError("two leaves have the same name; a checkpoint needs keys without '/'")
    return leaves


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _described(leaf: Any) -> str:
    """`float32[3,4]`, `key<fry>[]`."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _sharding(leaf: Any) -> jax.sharding.Sharding | None:
    """The sharding that a leaf of `like` requires; None for the host and for JAX's default."""
    if isinstance(leaf, jax.Array):
        return (
            (jax.random.key_data(leaf) if _is_key(leaf) else leaf).sharding
            if leaf.committed
            else None
        )
    return getattr(leaf, "sharding", None)


def _misfits(saved: Mapping[str, str], targets: Mapping[str, Any]) -> list[str]:
    """The differences between saved leaves and `targets`; empty if the leaves fit."""
    problems = [
        f"it has no {name!r}; nearest: {nearest(name, saved, 1)}"
        for name in targets
        if name not in saved
    ]
    problems += [f"{name!r} is not expected" for name in saved if name not in targets]
    for name in targets.keys() & saved.keys():
        leaf = targets[name]
        if saved[name] != _described(leaf):
            problems.append(f"{name!r} is {saved[name]}, expected {_described(leaf)}")
        elif (sharding := _sharding(leaf)) is not None:
            try:
                sharding.shard_shape(leaf.shape)
            except ValueError:
                problems.append(f"{name!r} of {saved[name]} cannot be sharded as {sharding}")
    return sorted(problems)
