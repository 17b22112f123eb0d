"""`tl.devices`: eight simulated devices, two processes, and batches that fit into memory."""

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

from tl import devices, hosts

ROOT = Path(__file__).resolve().parents[1]


def run(code: str, *words: str, count: int, **variables: str) -> subprocess.Popen[str]:
    """A process with `count` simulated devices, as strict as the tests."""
    flags = f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *words],
        cwd=ROOT,
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def report(child: subprocess.Popen[str]) -> dict:
    """The last line that the process printed, as JSON."""
    with child:
        try:
            out, err = child.communicate(timeout=240)
        finally:
            child.kill()
    assert child.returncode == 0, err[-3000:]
    return json.loads(out.strip().splitlines()[-1])


# --- eight devices ----------------------------------------------------------------------------

EIGHT = """
import contextlib, json, re, sys
import jax, jax.numpy as jnp, numpy as np
from tl import backbones, devices, ops
from tl.backbones.run import run
from tl.training import checkpoints
from tl.types import Mode

mesh = devices.mesh()
report = {"devices": mesh.size, "errors": {}, "operations": {}}


def difference(actual, expected):
    # Relative to the largest entry of the tree, because some gradients and means before a BatchNorm
    # are zero up to rounding.
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    return float(np.abs(flat(actual) - flat(expected)).max() / np.abs(flat(expected)).max())


# The first stages of two real networks, which have every kind of convolution and the pool.
resnet, mobilenet = (backbones.get(name).module for name in ("resnet18", "mobilenetv2_035"))
networks = {
    "resnet": resnet.clone(depths=(1,)),
    "mobilenet": mobilenet.clone(stages=mobilenet.stages[:2], top=16),
}
inputs = np.random.default_rng(0).normal(size=(16, 32, 32, 3)).astype(np.float32)
inputs[:8] *= 3  # the statistics of one device differ from those of the batch
# Padding, on one device alone and on another in part, has no effect on either side.
valid = ~np.isin(np.arange(16), [2, 3, 9])
for name, network in networks.items():
    variables = jax.jit(lambda x: network.init(jax.random.key(0), x, Mode.EVAL))(inputs[:1])

    def loss(params, stats, inputs, valid):
        variables = {"params": params, "batch_stats": stats}
        features, _, stats = run(network, variables, inputs, Mode.TRAIN, valid=valid)
        used = jnp.ones(len(inputs)) if valid is None else valid.astype(jnp.float32)
        return used @ jnp.mean(jnp.sin(3 * features), 1) / used.sum(), stats

    def product(params, stats, inputs, valid):  # of the Hessian with a vector
        gradient = jax.grad(lambda params: loss(params, stats, inputs, valid)[0])
        return jax.jvp(gradient, (params,), (params,))[1]

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 2), has_aux=True))
    params, stats = variables["params"], variables["batch_stats"]
    (loss1, stats1), gradient1 = step(params, stats, inputs[valid], None)
    sharded = devices.shard((inputs, valid), mesh)
    replicated = devices.replicate(params, mesh), devices.replicate(stats, mesh)
    with ops.batch_sharded(mesh):
        program = step.lower(*replicated, *sharded).compile()
    (loss8, stats8), (gradient8, of_inputs) = program(*replicated, *sharded)
    report["operations"][name] = sorted(set(re.findall(r" ([a-z-]+)\\(", program.as_text())))
    gradient8 = gradient8, np.asarray(of_inputs)[valid]
    report["errors"][name] = {
        "loss": difference(loss8, loss1),
        "gradient": difference(gradient8, gradient1),
        "statistics": difference(stats8, stats1),
    }
    if name == "mobilenet":
        product1 = jax.jit(product)(params, stats, inputs[valid], None)
        with ops.batch_sharded(mesh):
            product8 = jax.jit(product)(*replicated, *sharded)
        report["errors"][name]["product"] = difference(product8, product1)
    report["shards"] = len({str(s.index) for s in sharded[0].addressable_shards})
    report["change"] = difference(stats, stats1)

with contextlib.closing(checkpoints.open(sys.argv[1])) as folder:
    rows = devices.shard(np.arange(16.0, dtype=np.float32), mesh)
    tree = {"rows": rows, "all": devices.replicate(np.ones(3), mesh)}
    folder.save(1, tree, position={})
    restored = folder.restore(1, like=tree)[0]
    same = lambda a, b: bool((a == b).all() and a.sharding == b.sharding)
    report["restored"] = [same(restored[k], tree[k]) for k in tree]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    report["unsharded"] = len(folder.restore(1, like=shapes)[0]["rows"].devices())
    try:
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
        wrong = jax.ShapeDtypeStruct((3,), jnp.float32, sharding=sharding)
        folder.restore(1, like={**tree, "all": wrong})
    except ValueError as error:
        report["error"] = str(error)
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The report of a process with eight simulated devices."""
    return report(run(EIGHT, str(tmp_path_factory.mktemp("checkpoints")), count=8))


def test_a_batch_is_sharded_over_eight_devices(eight: dict):
    assert eight["devices"] == eight["shards"] == 8


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_loss_gradient_and_statistics_of_eight_devices_equal_those_of_one(eight: dict, name: str):
    """On eight devices the batch has padding; on one it holds the valid images alone."""
    assert all(error < 1e-5 for error in eight["errors"][name].values()), eight["errors"]
    assert eight["change"] > 1e-3, "BatchNorm did not follow the batch"


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_each_device_computes_its_own_images_and_sends_sums_alone(eight: dict, name: str):
    """A form for CPUs of a depthwise convolution, a loop, would otherwise move images."""
    operations = set(eight["operations"][name])
    moves = {"all-gather", "all-to-all", "collective-permute", "reduce-scatter"}
    assert "all-reduce" in operations and not operations & moves
    assert name != "mobilenet" or ("while" in operations and "convolution" not in operations)


def test_a_checkpoint_restores_with_or_without_shards(eight: dict):
    assert eight["restored"] == [True, True] and eight["unsharded"] == 1
    assert "'all' of float32[3] cannot be sharded" in eight["error"]


TWO = """
import json, sys
import jax, numpy as np
from tl import devices, hosts

joined = hosts.join(), hosts.join()
mesh = devices.mesh()
rows = np.arange(4, dtype=np.float32) + 4 * jax.process_index()  # 0..7 over both
batch = devices.shard({"rows": rows}, mesh)
weight = devices.replicate(np.float32(2), mesh)
total = jax.jit(lambda w, b: w * b["rows"].sum())(weight, batch)
shape = batch["rows"].shape
result = {"joined": joined, "total": float(total), "shape": shape, "hosts": hosts.count()}
result["devices"] = mesh.size
print(json.dumps(result))
"""


def test_two_processes_compute_as_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    children = [run(TWO, count=2, JAX_PROCESS_ID=str(rank), **variables) for rank in range(2)]
    for result in [report(child) for child in children]:
        assert result["joined"] == [True, True]
        assert result["total"] == 56 and result["shape"] == [8]
        assert (result["hosts"], result["devices"]) == (2, 4)


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
def test_environment_variables_show_several_hosts(variables, several):
    assert hosts.several(variables) is several


@pytest.mark.parametrize(
    "variables", [{"JAX_NUM_PROCESSES": "2"}, {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "x"}]
)
def test_an_incomplete_environment_is_an_error(monkeypatch, variables):
    for name, value in {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="both as numbers, or neither"):
        hosts.join()
    monkeypatch.setenv("TL_DISTRIBUTED", "0")
    assert hosts.join() is False


# --- batches ----------------------------------------------------------------------------------


class Eight:
    """The attribute of a mesh that the checks read."""

    local_devices = range(8)


def test_a_batch_that_cannot_be_sharded_is_an_error_with_the_nearest_sizes():
    message = "got 30 rows, expected a multiple of 8, .*; give a batch size of 24 or 32"
    with pytest.raises(ValueError, match=message):
        devices.shard({"images": np.zeros((30, 2))}, Eight())
    with pytest.raises(ValueError, match="give a batch size of 8$"):
        devices.shard(np.zeros(3), Eight())


def test_arrays_of_different_batch_sizes_are_an_error():
    with pytest.raises(ValueError, match=r"differ along axis 0: got sizes \[8, 16\]"):
        devices.shard((np.zeros(8), np.zeros(16)), Eight())
    with pytest.raises(ValueError, match=r"got sizes \[0, 8\]"):
        devices.shard((np.zeros(8), np.float32(1)), Eight())


def test_a_batch_on_one_device_keeps_its_values_and_types():
    mesh = devices.mesh()
    batch = (
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        jax.random.split(jax.random.key(0), 2),
        None,
    )
    if mesh.size > 1:
        pytest.skip("this machine has several devices")
    images, keys, none = devices.shard(batch, mesh)
    assert images.dtype == np.uint8 and (images == batch[0]).all() and none is None
    assert (jax.random.key_data(keys) == jax.random.key_data(batch[1])).all()


# --- memory -----------------------------------------------------------------------------------


def test_the_memory_of_a_program_counts_donated_arguments_once():
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    plain = jax.jit(lambda x: x * 2).lower(x)
    donated = jax.jit(lambda x: x * 2, donate_argnums=0).lower(x)
    assert (
        devices.memory_needed(plain)
        == 2 * 4 * 256**2
        == 2 * devices.memory_needed(donated.compile())
    )


def test_a_batch_that_exceeds_the_memory_is_made_smaller(monkeypatch):
    def program(side: int) -> jax.stages.Lowered:
        return jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((side, 1 << 20), jnp.float32))

    room = 3 * devices.memory_needed(program(8))
    monkeypatch.setattr(devices, "memory_limit", lambda: room)
    assert devices.largest_batch(lambda b: devices.memory_needed(program(b)), 64) == 16


@hypothesis.given(batch=st.integers(1, 3000), room=st.integers(1, 3000))
def test_the_largest_batch_is_the_first_halving_with_room(batch, room):
    tried = []
    largest = devices.largest_batch(lambda b: tried.append(b) or b, batch, room=room)
    assert largest <= room and largest in {batch >> i for i in range(12)}
    assert tried[-1] == largest and all(size > room for size in tried[:-1])


def test_an_image_that_exceeds_the_memory_is_an_error():
    with pytest.raises(ValueError, match="one image does not fit into memory: it needs 2 GB"):
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
