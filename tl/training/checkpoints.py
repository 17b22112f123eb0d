"""Checkpoints of a run that may be killed at any moment: any pytree of arrays, and the position that belongs to it.

    folder/step_00000120/   one checkpoint, whole or absent: Orbax writes beside its place and renames
      tree/                 the leaves by name, `opt_state/0/mu/head/kernel`; typed keys as their words
      meta/metadata         JSON: shape and dtype of every leaf, and `position` (epoch, place in the data, history)
      metrics/metrics       JSON, where there are any

A save returns once the leaves are copied to the host, after which a train step may donate them; a thread writes. What
that thread meets is raised by the next `save`, `wait`, `latest`, `best`, `restore` or `close`, never lost. Kept are the
newest checkpoints and the best one.

The resume rule. A run goes on only in a workdir that was started with the same flags (`same_flags`, asked *before*
`tl.reporting.run.start` writes the new ones), from `latest()`. It then takes everything that moves from the checkpoint:
parameters, statistics, optimizer, averages, step and keys from the tree, the loader's place from `position`; nothing is
drawn anew. Steps since that checkpoint are computed again, and on a CPU end in the same bits.

It does not decide when to save, and its folders are not for keeping: what others load is an artefact of safetensors and
JSON (`classifier.save`). This is the only module that imports Orbax, and it does so when a folder is opened.

Example:
  with contextlib.closing(checkpoints.open(run.workdir / "checkpoints")) as kept:
    if kept.latest() is not None:
      train_state, position, _ = kept.restore(kept.latest(), like=train_state)
    kept.save(step, train_state, position={"loader": stream.state()}, metrics={"loss": loss})
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import re
import shutil
import sys
import threading
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from tl import reporting
from tl.paths import nearest

PREFIX, DIGITS = "step", 8  # step_00000120, so that names sort as numbers


class Checkpoints:
    """The checkpoints in one folder. Made by `open`; call `close` when done, so that the last save is on disk."""

    def __init__(self, folder: Path, keep: int, best: Literal["min", "max"]):
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

        self.folder = folder
        self._ocp = ocp
        self._sign = 1.0 if best == "max" else -1.0
        self._writing: int | None = None
        rules = [
            policy.LatestN(keep),
            policy.BestN(get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False),
        ]
        options = ocp.CheckpointManagerOptions(
            step_prefix=PREFIX,
            step_format_fixed_length=DIGITS,
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
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
    ) -> None:
        """Copies the tree to the host and has a thread write it; waits first where the save before is not done.

        Args:
          step: larger than that of every checkpoint here.
          tree: any pytree whose leaves are JAX or NumPy arrays, typed keys included.
          position: what JSON can hold: the place in the data, the epoch, whatever else the run needs to go on.
          metrics: name -> number; the first decides which checkpoint is the best. NaN is never the best.

        Raises:
          ValueError: the save before failed or this one cannot begin (disk full, folder gone); a step that is not new;
            leaves that are no arrays; a position that JSON cannot hold.
        """
        self.wait()
        newest = max(self._manager.all_steps(), default=None)
        if newest is not None and step <= newest:
            raise ValueError(
                f"step {step} does not come after {newest}, the newest checkpoint in {str(self.folder)!r}"
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
        stored = {
            name: leaf for name, leaf in stored.items() if leaf.size
        }  # Orbax refuses arrays without entries
        ocp = self._ocp
        items = {"meta": ocp.args.JsonSave(meta)} | (
            {"tree": ocp.args.PyTreeSave(stored)} if stored else {}
        )
        self._writing = step
        numbers = None if metrics is None else reporting.jsonable(metrics, where="metrics")
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=numbers, force=True)
        except OSError as error:
            raise self._failed(error) from error

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        self.wait()
        return max(self._manager.all_steps(), default=None)

    def best(self) -> int | None:
        """The step of the checkpoint with the best metric, of equals the newest; None where none has a finite one."""
        self.wait()
        metrics = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
        scores = {step: self._score(each) for step, each in metrics.items() if each}
        finite = [(score, step) for step, score in scores.items() if score > -math.inf]
        return max(finite)[1] if finite else None

    def restore(
        self, step: int, like: Any
    ) -> tuple[Any, dict[str, Any], dict[str, float | None] | None]:
        """What was saved at a step, bit for bit.

        Args:
          step: of `latest()` or `best()`.
          like: a pytree of the structure that was saved; leaves are arrays or `jax.ShapeDtypeStruct`. A leaf comes back
            as NumPy where `like` has NumPy, with the sharding of `like` where that has a committed one, and otherwise
            as an uncommitted array, as if it had just been computed.

        Returns:
          `(tree, position, metrics)`.

        Raises:
          ValueError: no such step; names, shapes, dtypes or shardings that do not fit, all in one message; a damaged
            checkpoint.
        """
        self.wait()
        steps = sorted(self._manager.all_steps())
        if step not in steps:
            raise ValueError(
                f"{str(self.folder)!r} has no checkpoint of step {step}; it has those of {steps}"
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
                found = (
                    self._manager.restore(step, args=ocp.args.Composite(tree=item))["tree"]
                    if arguments
                    else {}
                )
        except (OSError, KeyError, ValueError) as error:
            path = self.folder / f"{PREFIX}_{step:0{DIGITS}}"
            why = str(error).strip().split("\n")[0][:200]
            raise ValueError(
                f"checkpoint {str(path)!r} is damaged ({why}); delete it to go on from the one before"
            ) from error
        if problems:
            more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise ValueError(
                f"checkpoint of step {step} does not fit: {'; '.join(problems[:8])}{more}"
            )
        leaves = []
        for name, leaf in targets.items():
            value: Any = found[name] if name in found else np.zeros(leaf.shape, leaf.dtype)
            if not isinstance(leaf, np.ndarray):
                value = jnp.asarray(value)
            leaves.append(
                jax.random.wrap_key_data(value, impl=meta["keys"][name]) if _is_key(leaf) else value
            )
        tree = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return tree, meta["position"], self._manager.metrics(step)

    def _argument(self, leaf: Any) -> Any:
        """How Orbax is to read one leaf: onto the devices of a committed sharding, else to the host."""
        sharding = _sharding(leaf)
        if sharding is None:
            return self._ocp.RestoreArgs(restore_type=np.ndarray)
        return self._ocp.ArrayRestoreArgs(sharding=sharding)

    def wait(self) -> None:
        """Returns once nothing is being written; raises ValueError where the last save failed, once."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # of a thread that ran tensorstore and the file system: any kind
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> ValueError:
        why = str(error).strip().split("\n")[0][:200]
        where = str(self.folder)
        return ValueError(
            f"the checkpoint of step {self._writing} could not be written to {where!r} ({why}); make room there"
        )

    def close(self) -> None:
        """Waits for the last save and ends the threads; raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._manager.close()


def open(
    folder: str | os.PathLike[str], *, keep: int = 2, best: Literal["min", "max"] = "min"
) -> Checkpoints:
    """The checkpoints in a folder, made where it is missing; what a killed save left half-written is removed.

    Args:
      folder: holds the checkpoints of one run; other files and folders in it are left alone.
      keep: how many of the newest stay; the best one stays beside them.
      best: whether the metric that decides is good when it is small ("min": a loss) or large ("max": an accuracy).

    Raises:
      ValueError: a file, a folder of other things, `keep` below 1, another word for `best`.
    """
    if keep < 1 or best not in ("min", "max"):
        raise ValueError(
            f"keep={keep!r}, best={best!r}; wanted keep of at least 1, and best as 'min' or 'max'"
        )
    path = Path(os.path.abspath(os.path.expanduser(folder)))
    if path.exists() and not path.is_dir():
        raise ValueError(f"{str(path)!r} is a file; wanted a folder for checkpoints")
    names = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    if names and not any(re.match(rf"{PREFIX}_\d", name) for name in names):
        raise ValueError(
            f"{str(path)!r} holds other things ({names[0]!r}) and no checkpoint; give an empty or a new folder"
        )
    if jax.process_index() == 0:
        for (
            name
        ) in names:  # Orbax would do it in a thread, and might not be done before the process ends
            if re.match(rf"{PREFIX}_\d{{{DIGITS}}}\.orbax-checkpoint-tmp", name):
                shutil.rmtree(path / name)
    # Orbax tells every step of its work, and a failure that is raised here as a traceback too.
    log = logging.getLogger("absl")
    if _not_of_orbax not in log.filters:
        log.addFilter(_not_of_orbax)
    return Checkpoints(path, keep, best)


def same_flags(
    workdir: str | os.PathLike[str], flags: Mapping[str, Any], *, ignore: Iterable[str] = ()
) -> None:
    """Refuses to resume in a workdir that was started with other flags; one without a `config.json` is new, and fine.

    Args:
      workdir: where `runlog.start` wrote `config.json`.
      flags: name -> value, as they will be given to `runlog.start`.
      ignore: names that may differ, beside `resume` and `workdir`.

    Raises:
      ValueError: naming every flag that differs, with what it was and what it is; or `config.json` cannot be read.
    """
    path = Path(workdir).expanduser() / "config.json"
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["flags"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"cannot read the flags of the run before from {str(path)!r} ({error}); use a new workdir"
        ) from error
    now = reporting.jsonable(flags)
    passed = {"resume", "workdir", *ignore}
    differ = [
        f"--{name} was {before.get(name, 'not given')!r}, is {now.get(name, 'not given')!r}"
        for name in sorted(before.keys() | now.keys())
        if name not in passed and (name in before, before.get(name)) != (name in now, now.get(name))
    ]
    if differ:
        raise ValueError(
            f"cannot resume in {str(workdir)!r}: {'; '.join(differ)}; give the flags it began with"
        )


@functools.cache
def _open_managers() -> weakref.WeakSet[Any]:
    """Those of this process, each of which may end its save before Python stops the thread pools that write it.

    Without this a process that did not call `close` would never end: Orbax waits for the stopped threads. `atexit` itself
    comes too late; this hook is the one that `concurrent.futures` uses.
    """
    managers: weakref.WeakSet[Any] = weakref.WeakSet()

    def finish() -> None:
        for manager in list(managers):
            try:
                manager.wait_until_finished()
            except Exception as error:  # as in `Checkpoints.wait`; nobody is left to raise to
                print(f"the last checkpoint could not be written: {error}", file=sys.stderr)

    threading._register_atexit(finish)  # type: ignore[attr-defined]
    return managers


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname.replace(os.sep, "/")


def _named(tree: Any) -> dict[str, Any]:
    """The leaves by name, in the tree's own order; `None` is no leaf to JAX, so holes need no name."""
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
            f"leaf {wrong[0]!r} is a {kind} ({len(wrong)} such); a checkpoint holds arrays: use jnp.asarray"
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
    """Where `like` insists that a leaf lies; None for the host and for wherever JAX puts things."""
    if isinstance(leaf, jax.Array):
        return (
            (jax.random.key_data(leaf) if _is_key(leaf) else leaf).sharding
            if leaf.committed
            else None
        )
    return getattr(leaf, "sharding", None)


def _misfits(saved: Mapping[str, str], targets: Mapping[str, Any]) -> list[str]:
    """Why leaves that were saved cannot take the places of `targets`; empty where they can."""
    problems = [
        f"it has no {name!r}; nearest: {nearest(name, saved, 1)}"
        for name in targets
        if name not in saved
    ]
    problems += [f"{name!r} is not wanted" for name in saved if name not in targets]
    for name in targets.keys() & saved.keys():
        leaf = targets[name]
        if saved[name] != _described(leaf):
            problems.append(f"{name!r} is {saved[name]}, wanted {_described(leaf)}")
        elif (sharding := _sharding(leaf)) is not None:
            try:
                sharding.shard_shape(leaf.shape)
            except ValueError:
                problems.append(f"{name!r} of {saved[name]} cannot be divided as {sharding} asks")
    return sorted(problems)
