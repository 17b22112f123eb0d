"""Checkpoints: round trips, killed saves, reported errors, and resuming with other flags."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tl import optim, reporting
from tl.paths import FROZEN, TRAINABLE, partition
from tl.training import checkpoints, resume, step


@pytest.fixture
def store(tmp_path):
    with contextlib.closing(checkpoints.open(tmp_path / "run" / "checkpoints")) as opened:
        yield opened


def assert_same(a: Any, b: Any) -> None:
    """The same structure with the same types of containers, and the same bits in the leaves."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert isinstance(x, np.ndarray) == isinstance(y, np.ndarray)
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        x, y = (
            jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v
            for v in (x, y)
        )
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def steps_in(folder: pathlib.Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in folder.glob("step_*"))


# ---- round trip ----------------------------------------------------------------------------------


def test_a_train_state_is_restored_with_every_bit_and_type(store):
    params = {
        "head": {"kernel": jnp.linspace(-1, 1, 6).reshape(2, 3)},
        "body": {"kernel": jnp.ones((3, 3))},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optim.adamw(lambda _: 1e-3))
    rules = (("head/.*", TRAINABLE), (".*", FROZEN))
    state = {
        # NamedTuples, empty states, and None where a leaf is frozen.
        "train": step.init(params, partition(params, rules), optimizer),
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), 4),
        "half": jnp.array([1.0, jnp.inf, jnp.nan, 1e-40], jnp.bfloat16),
        "flags": jnp.array([True, False]),
        "bits": np.array([np.nan, -0.0, 5e-324]),
        "empty": jnp.zeros((0, 3)),
        "hole": None,
        "host": np.arange(3, dtype=np.int16),
    }
    position = {"epoch": 3, "loader": {"step": 12, "text": 'ä"'}, "history": [0.1, 0.2]}
    store.save(5, state, position=position, metrics={"loss": 0.25, "top1": np.float32(0.5)})
    tree, restored, metrics = store.restore(5, like=state)
    assert_same(tree, state)
    assert isinstance(tree["train"], step.TrainState) and not tree["key"].committed
    assert restored == position and metrics == {"loss": 0.25, "top1": 0.5}
    assert jax.random.bits(tree["key"]) == jax.random.bits(state["key"])

    abstract_tree, _, _ = store.restore(
        5, like=abstract(state) | {"host": state["host"], "bits": state["bits"]}
    )
    assert_same(abstract_tree, state)


DTYPES = ["float32", "bfloat16", "float16", "int32", "uint8", "bool"]


@hypothesis.given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
    names=st.lists(
        st.text("ab./ [']0é", min_size=1, max_size=5), unique=True, min_size=4, max_size=4
    ),
    seed=st.integers(0, 99),
)
@hypothesis.settings(max_examples=8)
def test_any_shape_dtype_and_name_is_restored(tmp_path_factory, shapes, dtype, names, seed):
    rng = np.random.default_rng(seed)
    leaves = [np.asarray(rng.integers(0, 2, shape)).astype(jnp.dtype(dtype)) for shape in shapes]
    tree = dict(zip(names, leaves, strict=False))
    with contextlib.closing(checkpoints.open(tmp_path_factory.mktemp("any"))) as store:
        store.save(0, tree, position={})
        assert_same(store.restore(0, like=tree)[0], tree)


def test_changes_of_the_tree_after_a_save_do_not_reach_the_checkpoint(store):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree, host = {"w": jnp.zeros((256, 1024))}, np.zeros((256, 1024), np.float32)
    for i in range(2):
        store.save(i, {"host": host, **tree}, position={})
        host += 1
        tree = jax.block_until_ready(step(tree))
    for i in range(2):
        restored = store.restore(i, like={"host": host, **tree})[0]
        assert (restored["w"] == i).all() and (restored["host"] == i).all()


# ---- retention -----------------------------------------------------------------------------------


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path):
    folder, tree, best = tmp_path / "run", {"w": jnp.ones(3)}, []
    with contextlib.closing(checkpoints.open(folder, keep=2, best="max")) as store:
        assert (store.latest(), store.best()) == (None, None)
        for step, top1 in enumerate([0.5, 0.9, 0.9, float("nan"), 0.1, None, 0.2]):
            store.save(
                step,
                tree,
                position={},
                metrics=None if top1 is None else {"top1": top1, "loss": -step},
            )
            best.append(store.best())
    assert best == [0, 1, 1, 1, 1, 1, 1]
    assert steps_in(folder) == [1, 5, 6]  # 1 and 2 are equally good: the first one is kept
    (folder / "notes").mkdir()
    (folder / "99").mkdir()
    (folder / "README").write_text("mine")
    with contextlib.closing(checkpoints.open(folder, best="max")) as store:
        assert (store.latest(), store.best()) == (6, 1)
        assert store.restore(5, like=tree)[2] is None
        store.save(10, tree, position={})
    assert steps_in(folder) == [1, 6, 10] and {"notes", "99", "README"} <= {
        path.name for path in folder.iterdir()
    }
    with contextlib.closing(checkpoints.open(folder, best="min")) as store:
        assert store.best() == 6


def test_without_a_finite_metric_there_is_no_best_checkpoint(store):
    store.save(1, {"w": jnp.ones(1)}, position={}, metrics={"loss": float("nan")})
    assert store.latest() == 1 and store.best() is None


# ---- errors --------------------------------------------------------------------------------------


def test_a_tree_that_does_not_fit_is_an_error_with_every_difference(store):
    tree = {
        "a": jnp.zeros((2, 3)),
        "b": jnp.zeros(2, jnp.bfloat16),
        "kernel": jnp.zeros(1),
        "key": jax.random.key(0),
    }
    store.save(1, tree, position={})
    like = {
        "a": jnp.zeros((3, 2)),
        "b": jnp.zeros(2),
        "kernels": jnp.zeros(1),
        "key": jax.random.key(0, impl="rbg"),
    }
    with pytest.raises(ValueError) as error:
        store.restore(1, like=like)
    for part in (
        "'a' is float32[2,3], expected float32[3,2]",
        "'b' is bfloat16[2], expected float32[2]",
        "it has no 'kernels'; nearest: 'kernel'",
        "'kernel' is not expected",
        "'key' is key<fry>[], expected key<rbg>[]",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"no checkpoint of step 2; it has those of steps \[1\]"):
        store.restore(2, like=tree)


def test_an_old_step_and_a_tree_that_cannot_be_saved_are_errors(store):
    store.save(4, {"w": jnp.ones(1)}, position={})
    with pytest.raises(
        ValueError, match="`step` must be larger than 4, the newest checkpoint in .*: got 4"
    ):
        store.save(4, {"w": jnp.ones(1)}, position={})
    with pytest.raises(
        ValueError, match="a checkpoint holds arrays: leaf 'opt/lr' is a float .*jnp.asarray"
    ):
        store.save(5, {"opt": {"lr": 0.1}}, position={})
    with pytest.raises(ValueError, match="position/loader: JSON cannot hold .* type object"):
        store.save(5, {"w": jnp.ones(1)}, position={"loader": object()})
    with pytest.raises(ValueError, match="same name"):
        store.save(5, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, position={})
    assert store.latest() == 4


def test_a_folder_of_other_files_is_an_error(tmp_path):
    (tmp_path / "cat.jpg").write_text("")
    with pytest.raises(ValueError, match=r"holds other files \('cat.jpg'\) and no checkpoint"):
        checkpoints.open(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        checkpoints.open(tmp_path / "cat.jpg")
    with pytest.raises(ValueError, match="keep=0"):
        checkpoints.open(tmp_path / "new", keep=0)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("victim", ["meta", "tree"])
def test_a_damaged_checkpoint_is_an_error_with_its_name(store, victim):
    tree = {"w": jnp.arange(1000.0)}
    store.save(1, tree, position={})
    store.wait()
    for path in (store.folder / "step_00000001" / victim).rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:1])
    with pytest.raises(ValueError, match="step_00000001' is damaged"):
        store.restore(1, like=tree)


@pytest.mark.parametrize("call", ["save", "wait"])
def test_an_error_in_the_thread_of_a_save_is_raised_by_the_next_call(store, call, capfd):
    tree = {"w": jnp.asarray(np.random.default_rng(0).random(1 << 18, np.float32))}
    store.save(1, tree, position={"epoch": 1})
    store.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As on a full disk, larger files cannot be written; Python ignores the signal.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        store.save(2, tree, position={"epoch": 2})
        with pytest.raises(ValueError, match="the checkpoint of step 2 could not be written"):
            if call == "wait":
                store.wait()
            else:
                store.save(3, tree, position={"epoch": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.latest() == 1 and store.restore(1, like=tree)[1] == {"epoch": 1}
    store.save(3, tree, position={"epoch": 3})
    assert store.latest() == 3
    assert_same(store.restore(3, like=tree)[0], tree)
    assert capfd.readouterr() == ("", "")


def test_a_save_that_cannot_begin_is_an_error(store):
    store.folder.rmdir()
    store.folder.write_text("in the way")
    with pytest.raises(
        ValueError, match="the checkpoint of step 1 could not be written to .*Not a directory"
    ):
        store.save(1, {"w": jnp.ones(1)}, position={})
    store.folder.unlink()
    store.save(2, {"w": jnp.ones(1)}, position={})
    assert store.latest() == 2


def test_nothing_is_printed_and_no_thread_is_left(tmp_path, caplog, capfd):
    before = set(threading.enumerate())
    with (
        caplog.at_level(logging.DEBUG, "absl"),
        contextlib.closing(checkpoints.open(tmp_path)) as store,
    ):
        store.save(1, {"w": jnp.ones(1)}, position={})
        store.restore(1, like={"w": jnp.ones(1)})
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=60)  # it may still be ending
    assert set(threading.enumerate()) <= before
    assert caplog.records == [] and capfd.readouterr() == ("", "")


# ---- killed --------------------------------------------------------------------------------------

VICTIM = """
import sys, jax.numpy as jnp
from tl.training import checkpoints
store = checkpoints.open(sys.argv[1], keep=2)
step = store.latest() or 0
print(step, flush=True)
while True:
    step += 1
    tree = {"w": jnp.full(5000, step), "twice": jnp.full(3, 2 * step)}
    store.save(step, tree, position={"step": step})
    print(step, flush=True)
"""


@pytest.mark.parametrize(
    "kills",
    [
        # Saves that have begun before the kill, and seconds from the last of them to the kill. The
        # assertions depend on the number of saves only, because machines differ in speed.
        ((3, 0.01),),
        pytest.param(((0, 0.0), (1, 0.0), (3, 0.01), (4, 0.02)), marks=pytest.mark.full),
    ],
    ids=["once", "series"],
)
def test_after_a_kill_the_last_complete_checkpoint_is_restored(tmp_path, kills):
    """SIGKILL at several moments: during a save, between two saves, or during a deletion."""
    folder = tmp_path / "run"
    like = {"w": jnp.zeros(5000, jnp.int32), "twice": jnp.zeros(3, jnp.int32)}
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    reached = 0
    for saves, moment in kills:
        child = subprocess.Popen(
            [sys.executable, "-c", VICTIM, str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert child.stdout and int(child.stdout.readline()) == reached
        numbers = [int(child.stdout.readline()) for _ in range(saves)]
        time.sleep(moment)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        with contextlib.closing(checkpoints.open(folder)) as store:
            step = store.latest()
            # A save begins when the one before is complete.
            complete = max([reached, *(number - 1 for number in numbers)])
            assert (step or 0) >= complete
            reached = step or 0
            if step:
                tree, position, _ = store.restore(step, like=like)
                assert (tree["w"] == step).all() and (tree["twice"] == 2 * step).all()
                assert position == {"step": step}
        names = [path.name for path in folder.iterdir()]
        assert all(name.removeprefix("step_").isdigit() for name in names), names
    assert reached >= sum(max(saves - 1, 0) for saves, _ in kills)


def test_a_process_without_close_exits_and_its_save_is_complete(tmp_path):
    code = VICTIM.replace("while True:", "if True:")
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert (process.returncode, process.stderr) == (0, "")
    with contextlib.closing(checkpoints.open(tmp_path)) as store:
        assert store.latest() == 1


# ---- flags ---------------------------------------------------------------------------------------


def test_resuming_with_other_flags_is_an_error_with_each_difference(tmp_path):
    flags = {
        "lr": 0.001,
        "data": "elpv",
        "images": ("a", "b"),
        "seed": 3,
        "resume": False,
        "workdir": "",
        "old": None,
    }
    resume.same_flags(tmp_path, flags)  # nothing was started here
    reporting.start("transfer", tmp_path, flags)
    resume.same_flags(tmp_path, flags | {"resume": True, "workdir": str(tmp_path)})
    del flags["old"]
    now = flags | {"lr": 0.01, "data": "folder:x", "seed": 4, "mixup": 0.2, "epochs": None}
    with pytest.raises(ValueError) as error:
        resume.same_flags(tmp_path, now, ignore=["seed"])
    for part in (
        "`lr` was 0.001, is 0.01",
        "`data` was 'elpv', is 'folder:x'",
        "`mixup` was 'not set', is 0.2",
        "`old` was None, is 'not set'",
        "`epochs` was 'not set', is None",
    ):
        assert part in str(error.value)
    assert "seed" not in str(error.value) and "images" not in str(error.value)
    (tmp_path / "config.json").write_text(json.dumps([])[:1])
    with pytest.raises(ValueError, match="cannot read the flags"):
        resume.same_flags(tmp_path, flags)
