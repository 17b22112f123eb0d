"""Eight simulated devices compute what one does; two processes compute as one; batches that fit."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl import devices

ROOT = Path(__file__).resolve().parents[1]


def run(code: str, *words: str, count: int, **variables: str) -> subprocess.Popen[str]:
    """A process with so many simulated devices, strict as the tests are."""
    environment = (
        os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0",  # compiles soon
            "JAX_NUMPY_DTYPE_PROMOTION": "strict",
            "JAX_NUMPY_RANK_PROMOTION": "raise",
        }
    )
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *words],
        cwd=ROOT,
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(child: subprocess.Popen[str]) -> dict:
    """What it printed last."""
    with child:
        try:
            out, err = child.communicate(timeout=240)
        finally:
            child.kill()
    assert child.returncode == 0, err[-3000:]
    return json.loads(out.strip().splitlines()[-1])


# -------------------------------------------------------------------------------------------------------- eight devices

EIGHT = """
import contextlib, json, sys
import jax, jax.numpy as jnp, numpy as np
from tl import backbones, devices
from tl.training import checkpoints
from tl.types import Mode

mesh = devices.mesh()
report = {"banner": devices.banner(), "devices": mesh.size, "errors": {}}


def difference(ours, theirs):
    # Relative to the largest entry of the tree: before a BatchNorm some gradients and means are zero but for rounding.
    ours, theirs = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (ours, theirs))
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# The first stages of two real networks, with convolutions of every kind and the pool, at a size that compiles soon.
resnet, mobilenet = (backbones.get(name).module for name in ("resnet18", "mobilenetv2_035"))
networks = {"resnet": resnet.clone(depths=(1,)), "mobilenet": mobilenet.clone(stages=mobilenet.stages[:2], top=16)}
inputs = np.random.default_rng(0).normal(size=(16, 32, 32, 3)).astype(np.float32)
inputs[:8] *= 3  # what one device sees is not what all see
for name, network in networks.items():
    variables = jax.jit(lambda x: network.init(jax.random.key(0), x, Mode.EVAL))(inputs[:1])

    def loss(params, stats, inputs):
        given = {"params": params, "batch_stats": stats}
        (features, _), moved = network.apply(given, inputs, Mode.TRAIN, mutable=["batch_stats"])
        return jnp.mean(jnp.sin(3 * features)), moved["batch_stats"]

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 2), has_aux=True))
    params, stats = variables["params"], variables["batch_stats"]
    (one, moved), slopes = step(params, stats, inputs)
    shared = devices.shard(inputs, mesh)
    (eight, moved8), slopes8 = step(devices.replicate(params, mesh), devices.replicate(stats, mesh), shared)
    report["errors"][name] = {
        "loss": difference(eight, one), "gradient": difference(slopes8, slopes), "statistics": difference(moved8, moved)
    }
    report["divided"] = len({str(s.index) for s in shared.addressable_shards})
    report["moved"] = difference(stats, moved)

with contextlib.closing(checkpoints.open(sys.argv[1])) as kept:
    tree = {"rows": devices.shard(np.arange(16.0, dtype=np.float32), mesh), "all": devices.replicate(np.ones(3), mesh)}
    kept.save(1, tree, position={})
    again = kept.restore(1, like=tree)[0]
    report["restored"] = [bool((again[k] == tree[k]).all() and again[k].sharding == tree[k].sharding) for k in tree]
    whole = kept.restore(1, like=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree))[0]
    report["elsewhere"] = len(whole["rows"].devices())
    try:
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
        kept.restore(1, like={**tree, "all": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=sharding)})
    except ValueError as error:
        report["refused"] = str(error)
print(json.dumps(report))
"""


def test_gradient_and_statistics_of_eight_devices_are_those_of_one(tmp_path):
    found = answer(run(EIGHT, str(tmp_path), count=8))
    assert found["devices"] == found["divided"] == 8 and found["banner"].startswith("8 x cpu (cpu)")
    assert set(found["errors"]) == {"resnet", "mobilenet"}
    assert all(error < 1e-5 for errors in found["errors"].values() for error in errors.values()), (
        found["errors"]
    )
    assert found["moved"] > 1e-3  # BatchNorm did follow the batch
    assert found["restored"] == [True, True] and found["elsewhere"] == 1
    assert "'all' of float32[3] cannot be divided" in found["refused"]


TWO = """
import json, sys
import jax, numpy as np
from tl import devices

jax.config.update("jax_cpu_collectives_implementation", "gloo")
joined = devices.init_distributed(), devices.init_distributed()
mesh = devices.mesh()
rows = np.arange(4, dtype=np.float32) + 4 * jax.process_index()  # 0..7 over both
batch = devices.shard({"rows": rows}, mesh)
weight = devices.replicate(np.float32(2), mesh)
total = jax.jit(lambda w, b: w * b["rows"].sum())(weight, batch)
print(json.dumps({"joined": joined, "total": float(total), "shape": batch["rows"].shape, "banner": devices.banner()}))
"""


def test_two_processes_compute_as_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    told = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    children = [run(TWO, count=2, JAX_PROCESS_ID=str(rank), **told) for rank in range(2)]
    for found in [answer(child) for child in children]:
        assert found["joined"] == [True, True]
        assert found["total"] == 56 and found["shape"] == [8]
        assert found["banner"].startswith("4 x cpu (cpu), 2 hosts")


@pytest.mark.parametrize(
    "variables, several",
    [
        ({}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, True),
    ],
)
def test_the_environment_says_whether_there_are_others(variables, several):
    assert devices.several_hosts(variables) is several


@pytest.mark.parametrize(
    "variables", [{"JAX_NUM_PROCESSES": "2"}, {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "x"}]
)
def test_half_an_environment_is_refused(monkeypatch, variables):
    for name, value in {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="both as numbers, or neither"):
        devices.init_distributed()
    monkeypatch.setenv("TL_DISTRIBUTED", "0")
    assert devices.init_distributed() is False


# ----------------------------------------------------------------------------------------------------------- the batch


class Eight:
    """As much of a mesh as the checks look at."""

    local_devices = range(8)


def test_a_batch_that_cannot_be_divided_is_told_what_can():
    with pytest.raises(
        ValueError,
        match="a batch of 30 cannot be divided over 8 devices; give a batch size of 24 or 32",
    ):
        devices.shard({"images": np.zeros((30, 2))}, Eight())
    with pytest.raises(ValueError, match="give a batch size of 8$"):
        devices.shard(np.zeros(3), Eight())
    with pytest.raises(
        ValueError, match=r"one size along axis 0 of all its arrays; found \[8, 16\]"
    ):
        devices.shard((np.zeros(8), np.zeros(16)), Eight())
    with pytest.raises(ValueError, match=r"found \[0, 8\]"):
        devices.shard((np.zeros(8), np.float32(1)), Eight())


def test_a_batch_on_one_device_keeps_its_values_and_types():
    mesh = devices.mesh()
    batch = (
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        jax.random.split(jax.random.key(0), 2),
        None,
    )
    if mesh.size == 1:
        images, keys, none = devices.shard(batch, mesh)
        assert images.dtype == np.uint8 and (images == batch[0]).all() and none is None
        assert (jax.random.key_data(keys) == jax.random.key_data(batch[1])).all()


# --------------------------------------------------------------------------------------------------------------- memory


def test_what_a_program_needs_counts_donated_arguments_once():
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    plain = jax.jit(lambda x: x * 2).lower(x)
    donated = jax.jit(lambda x: x * 2, donate_argnums=0).lower(x)
    assert devices.needs(plain) == 2 * 4 * 256**2 == 2 * devices.needs(donated.compile())


def test_a_program_that_is_larger_than_the_machine_is_made_smaller():
    def program(side: int) -> jax.stages.Lowered:
        return jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((side, 1 << 20), jnp.float32))

    assert (
        devices.limit() is None
        or 1 <= devices.largest_batch(lambda b: devices.needs(program(b)), 1 << 22) < 1 << 22
    )


@hypothesis.given(batch=st.integers(1, 3000), room=st.integers(1, 3000))
def test_the_largest_batch_is_the_first_halving_with_room(batch, room):
    asked = []
    found = devices.largest_batch(lambda b: asked.append(b) or b, batch, room=room)
    assert found <= room and found in {batch >> i for i in range(12)}
    assert asked[-1] == found and all(size > room for size in asked[:-1])


def test_one_picture_that_is_too_large():
    with pytest.raises(ValueError, match="one picture alone needs 2 GB and there are 1 GB"):
        devices.largest_batch(lambda b: b * 2 * 10**9, 8, room=10**9)


MEMINFO = "MemTotal: 8000 kB\nMemFree: 1 kB\nMemAvailable: 4000 kB\n"


@pytest.mark.parametrize(
    "files, free",
    [
        ({}, None),
        ({"proc/meminfo": MEMINFO}, 4_096_000),
        ({"proc/meminfo": MEMINFO, "v2/memory.max": "max\n", "v2/memory.current": "5"}, 4_096_000),
        ({"proc/meminfo": MEMINFO, "v2/memory.max": "900", "v2/memory.current": "500"}, 400),
        (
            {
                "v2/memory.max": "900",
                "v2/memory.current": "500",
                "v2/memory.stat": "anon 7\ninactive_file 50\n",
            },
            450,
        ),
        ({"v1/memory.limit_in_bytes": "900", "v1/memory.usage_in_bytes": "950"}, 0),
        (
            {
                "proc/meminfo": MEMINFO,
                "v1/memory.limit_in_bytes": str(2**63 - 4096),
                "v1/memory.usage_in_bytes": "5",
            },
            4_096_000,
        ),
    ],
)
def test_free_memory_is_that_of_the_machine_or_of_its_container(tmp_path, files, free):
    for name, text in files.items():
        name = name.replace("v2/", "sys/fs/cgroup/").replace("v1/", "sys/fs/cgroup/memory/")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert devices._free_ram(tmp_path) == free
