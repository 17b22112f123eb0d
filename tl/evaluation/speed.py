"""Speed of parts of `tl`: passes of a network, training steps, probes, the start of a process.

Nothing here imports another library to compare with; `bench` does.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import data, devices, inference, losses, models, ops, optim, paths, pixels
from tl.evaluation import timing
from tl.evaluation.timing import Row, compared, rate_row, rates
from tl.models import summary
from tl.training import probe
from tl.training.program import make_forward
from tl.training.rules import frozen_prefix, phases
from tl.training.schedules import warmup_cosine
from tl.training.step import Examples, init, make_train_step
from tl.types import Mode

PASSES = ("forward", "input_gradient", "param_gradient")


class Workload(NamedTuple):
    """The work that is timed.

    Attributes:
      batch_size: images per call.
      size: side of the images, in pixels.
      dtype: number type of all computations, "float32" or "bfloat16".
      rounds: timed rounds.
      seed: of the images.
    """

    batch_size: int
    size: int
    dtype: str
    rounds: int
    seed: int

    def images01(self) -> np.ndarray:
        """Images of noise, f32[b s s 3] in [0, 1)."""
        shape = (self.batch_size, self.size, self.size, 3)
        return np.random.default_rng(self.seed).random(shape, np.float32)


def pass_call(arch: str, kind: str, images01: np.ndarray, dtype: str) -> Callable[[], Any]:
    """A call that makes one pass through a network with random weights and waits for the result.

    Args:
      arch: the network.
      kind: one of `PASSES`: the logits; the gradient of the summed cross-entropy with respect to
        the image; that of the mean with respect to all parameters, with BatchNorm in eval mode. In
        the first two, BatchNorm is folded into the convolutions, as for every frozen network.
      images01: f32[b h w 3] in [0, 1].
      dtype: as for `Workload`.
    """
    clf, variables = models.load(arch, weights="random")
    clf, frozen = clf.with_dtype(dtype), jax.device_put(clf.fold_batch_norm(variables))
    variables, x = jax.device_put(variables), jnp.asarray(images01)
    labels = jnp.zeros(len(images01), jnp.int32)

    def loss(variables: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(losses.cross_entropy(clf.logits(variables, x), labels))

    def param_gradient(params: Any, x: jax.Array) -> Any:
        return jax.grad(lambda p: loss({**variables, "params": p}, x) / len(labels))(params)

    work: Any = {
        "forward": clf.logits,
        "input_gradient": jax.grad(loss, argnums=1),
        "param_gradient": param_gradient,
    }[kind]
    arguments = (variables["params"] if kind == "param_gradient" else frozen, x)
    return compiled_call(work, *arguments)


def compiled_call(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """A call of the compiled function that waits for the result."""
    compiled = jax.jit(function).lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))


def convolutions(arch: str, work: Workload) -> dict[summary.Convolution, int]:
    """The different convolutions of a network, and how often it has each."""
    clf, variables = models.load(arch, weights="random")
    program = jax.make_jaxpr(clf.logits)(variables, work.images01())
    return dict(Counter(summary.convolutions(program.jaxpr)))


def convolution_calls(conv: summary.Convolution, work: Workload) -> dict[str, Callable[[], Any]]:
    """Pass (`PASSES`) -> a call that computes it for noise, and waits for the result."""
    rng = np.random.default_rng(work.seed)
    options = {"stride": conv.stride, "padding": conv.padding, "groups": conv.groups}
    forward = lambda x, k: ops.conv2d(x, k, **options)
    input_gradient = lambda x, k, g: jax.vjp(lambda x: forward(x, k), x)[1](g)[0]
    param_gradient = lambda x, k, g: jax.vjp(lambda k: forward(x, k), k)[1](g)[0]
    x, k = (jnp.asarray(rng.random(shape), work.dtype) for shape in conv[:2])
    g = forward(x, k)

    return {
        "forward": compiled_call(forward, x, k),
        "input_gradient": compiled_call(input_gradient, x, k, g),
        "param_gradient": compiled_call(param_gradient, x, k, g),
    }


def start(arch: str, work: Workload) -> Iterator[Row]:
    """Seconds from the start of a process to its first logits: empty cache, then filled cache."""
    with tempfile.TemporaryDirectory() as folder:
        saved = models.save(Path(folder) / "saved", *models.load(arch, weights="random"))
        words = saved, Path(folder) / "cache", work.batch_size, work.size
        for which in ("first", "second"):
            seconds, parts = timing.first_logits(*words)
            row = {"what": f"start, {which} process", "arch": arch, "ours": seconds, "unit": "s"}
            yield row | {"parts": parts}


def bfloat16(arch: str, work: Workload) -> list[Row]:
    """Forward in bfloat16 compared with float32: speed, and logits of the packaged photographs."""
    clf, variables = models.load(arch)
    half, variables = clf.with_dtype("bfloat16"), jax.device_put(clf.fold_batch_norm(variables))
    images = inference.read_images(clf, [str(photo.path) for photo in data.photographs()]).images
    full, rounded = (inference.predict_logits(net, variables, images) for net in (clf, half))
    x = jnp.asarray(np.resize(pixels.to_images01(images), (work.batch_size, *images.shape[1:])))
    programs = {"bfloat16": jax.jit(half.logits), "float32": jax.jit(clf.logits)}
    forward = lambda program: lambda: jax.block_until_ready(program(variables, x))
    calls = {name: forward(program) for name, program in programs.items()}
    rate, plain = rates(calls, work.rounds, len(x)).values()
    row = {**rate_row("bfloat16", clf.arch, rate), "n": len(images)}
    row["logit_error"] = float(np.abs(rounded - full).max() / np.abs(full).max())
    row["same_top1"] = float((rounded.argmax(axis=1) == full.argmax(axis=1)).mean())
    return [compared(row, "float32", plain)]


def train_step(
    clf: models.Classifier,
    variables: Any,
    tune: str,
    batch: Examples,
    *,
    start: str = "",
    calls: int = 1,
) -> tuple[Callable[[], Any], int]:
    """Training steps of `transfer`: AdamW, clipping and metrics, with BatchNorm frozen.

    Args:
      clf, variables: the network.
      tune: as for `Recipe`; its last phase is timed.
      batch: on the device; outputs of the endpoint `start`, or images uint8[n s s 3].
      start: the endpoint that the batch holds; "" for images.
      calls: steps per call.

    Returns:
      A call that takes the steps from the state in which the previous call ended, and the bytes
      that a step needs.
    """
    params, stats = variables["params"], variables.get("batch_stats", {})
    partition = paths.partition(params, phases(tune, clf.spec.endpoints)[-1].rules)
    adamw, schedule = optim.OPTIMIZERS["adamw"](1e-2), warmup_cosine(1e-3, 1000)
    optimizer = optim.partitioned(partition, adamw, schedule, clip=1.0)
    step = make_train_step(make_forward(clf, start, Mode.EVAL, frozenset()), optimizer)
    state = [init(params, partition, optimizer, stats=stats)]
    program = step.lower(state[0], batch).compile()  # type: ignore[attr-defined]

    def call() -> None:
        for _ in range(calls):
            state[0], values = program(state[0], batch)
        jax.block_until_ready((state[0], values))

    return call, devices.memory_needed(program)


def step(arch: str, work: Workload) -> list[Row]:
    """Images per second of whole training steps, compared with their parts."""
    clf, variables = models.load(arch, weights="random")
    clf, n = clf.with_dtype(work.dtype), work.batch_size
    params, stats = variables["params"], variables.get("batch_stats", {})
    stages, shape = clf.spec.endpoints, (n, work.size, work.size, 3)
    images = np.random.default_rng(work.seed).integers(0, 256, shape, np.uint8)
    rest = jnp.zeros(n, jnp.int32), jnp.ones(n, bool)
    examples = lambda inputs: Examples(jnp.asarray(inputs), *rest)

    from_images = make_forward(clf, "", Mode.EVAL, frozenset())

    def loss(params: Any, stats: Any, batch: Examples) -> jax.Array:
        logits = from_images(params, stats, jnp.asarray(batch.inputs))[0]
        return jnp.mean(losses.cross_entropy(logits, jnp.asarray(batch.labels)))

    gradient = jax.jit(jax.value_and_grad(loss)).lower(params, stats, examples(images)).compile()
    on_device = jax.device_put((params, stats, examples(images)))
    trained = paths.partition(params, phases("last:1", stages)[-1].rules).trained
    prefix = frozen_prefix(trained, stages)
    ends = jax.eval_shape(lambda x: clf.apply(variables, pixels.to_images01(x)).endpoints, images)
    bank = examples(jnp.zeros(ends[prefix].shape, ends[prefix].dtype))
    calls = {
        "the bare gradient": lambda: jax.block_until_ready(gradient(*on_device)),
        "step, all": train_step(clf, variables, "all", examples(images))[0],
        "step, last:1": train_step(clf, variables, "last:1", examples(images))[0],
        "step, last:1, bank": train_step(clf, variables, "last:1", bank, start=prefix)[0],
    }
    measured = rates(calls, work.rounds, n)
    peers = {"step, all": "the bare gradient", "step, last:1": "step, all"}
    peers["step, last:1, bank"] = "step, all"
    return [
        compared(rate_row(name, arch, measured[name]), peer, measured[peer])
        for name, peer in peers.items()
    ]


def probes(work: Workload) -> list[Row]:
    """Seconds of each kind of probe, on features of 37 overlapping clusters."""
    rng, (n, d, k) = np.random.default_rng(work.seed), (1250, 1280, 37)
    labels = rng.integers(0, k, n)
    values = (rng.normal(size=(k, d))[labels] * 0.15 + rng.normal(size=(n, d))).astype(np.float32)
    held_out = values[1000:], labels[1000:]
    fitted = lambda method: (
        lambda: probe.fit(values[:1000], labels[:1000], k, method=method, validation=held_out)
    )
    calls = {method: fitted(method) for method in probe.METHODS}
    times = timing.take_turns(calls, work.rounds, warm_up=0)
    return [rate_row(f"probe, {m}", f"{d} features", t, unit="s") for m, t in times.items()]
