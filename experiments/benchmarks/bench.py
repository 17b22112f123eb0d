"""Images a second beside torch and Keras on JAX, where they are installed, as ratios of one run; and how fast a run starts.

  ./launch.sh bench
  ./launch.sh bench --what=forward,input_gradient --arch=resnet50,vgg16 --batch_size=16
  ./launch.sh bench --what=forward --arch=mobilenetv2_100 --peers=torch,keras
  ./launch.sh bench --what=start --arch=resnet50
  ./launch.sh bench --what=bfloat16 --arch=efficientnet_lite0
  ./launch.sh bench --what=loader --data=folder:pictures --batch_size=32
  ./launch.sh bench --what=step --arch=resnet50
  ./launch.sh bench --what=ideal --arch=efficientnet_lite0 --peers=lucent --steps=512 --rounds=1
  ./launch.sh bench --what=frozen_fit --arch=mobilenetv2_100 --peers=keras --data=folder:pictures --batch_size=32

  forward         logits; BatchNorm folded away, as for every frozen network
  input_gradient  of the summed cross-entropy, with respect to the picture; folded too
  param_gradient  of the mean cross-entropy, with respect to every parameter, BatchNorm in evaluation mode
  start           seconds until a new process has its first logits, with an empty and with a filled compilation cache
  bfloat16        forward in bfloat16 beside float32, and what it costs in logits, on photographs and real weights
  loader          pictures of --data read, decoded, resized to 256 and cropped to 224 (bilinear): in threads and in
                  processes, beside torchvision's DataLoader with as many processes
  step            whole training steps of `transfer` (AdamW, clipping, metrics): --tune=all beside the bare gradient on
                  all parameters, --tune=last:1 beside --tune=all, from pictures and from the bank of the frozen prefix
  frozen_fit      the first and the second epoch of --tune=head on pictures of --data, beside Keras' `fit` with a frozen
                  backbone; the first compiles and fills the feature bank, and Keras gets its pictures decoded
  ideal           steps a second of --batch_size ideal images (Fourier form, views, variation, all that `ideal` does by
                  default), --steps each, beside as many bare gradients on the picture; and with lucid's views beside lucent's
                  render_vis on the same network in torch (pip install --no-deps torch-lucent kornia==0.4.1; ipython)
  probe           seconds of a probe of 1,000 pictures, 1,280 features, 37 classes and 20 strengths, chosen on 250 more

Weights are random except in `bfloat16`: speed does not depend on them. The libraries take turns, and each figure is the
median of rounds; torch runs in both of its memory formats, of which the faster counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from experiments.benchmarks import sources
from tl import (
    backbones,
    cli,
    data,
    inference,
    labels,
    losses,
    models,
    optim,
    paths,
    pixels,
    reporting,
)
from tl.data.feed import cores
from tl.data.loader import stream
from tl.data.plan import Plan
from tl.models import heads
from tl.training import fit, inputs, probe
from tl.training.recipe import Recipe
from tl.training.rules import frozen_prefix, phases
from tl.training.step import Examples, Forward, init, make_train_step
from tl.visualize import grid, specs

FLAGS = flags.FLAGS
SPEED = ("forward", "input_gradient", "param_gradient")
WHAT = (*SPEED, "start", "bfloat16", "loader", "step", "frozen_fit", "ideal", "probe")
PEERS = ("torch", "keras", "lucent")
ARCHS = "resnet50,vgg16,mobilenetv2_100,efficientnet_lite0"


def define_flags() -> None:
    flags.DEFINE_list("arch", ARCHS, "Architectures.")
    flags.DEFINE_list("what", ",".join(SPEED), f"What is timed: {', '.join(WHAT)}.")
    flags.DEFINE_integer("batch_size", 16, "Images a call.", lower_bound=1)
    flags.DEFINE_string(
        "data",
        "",
        "For loader and frozen_fit: a set of files. Default: the packaged photographs, over and over; 128 of noise.",
    )
    flags.DEFINE_integer("size", 224, "Side, in pixels.", lower_bound=32)
    flags.DEFINE_integer("rounds", 5, "Timed rounds; the median counts.", lower_bound=1)
    flags.DEFINE_list(
        "peers",
        "torch",
        f"Libraries to compare with, where installed: {', '.join(PEERS)}; empty for none.",
    )
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "In which all of them compute.")
    flags.DEFINE_integer("steps", 32, "Of ideal images.", lower_bound=1)


# --- the same work, by each library ------------------------------------------------------------------------------------


def ours(arch: str, what: str, images01: np.ndarray) -> Callable[[], Any]:
    """A call that does the work once and waits for it."""
    clf, variables = models.load(arch, weights="random")
    clf, frozen = clf.with_dtype(FLAGS.dtype), jax.device_put(clf.fold_batch_norm(variables))
    variables, x = jax.device_put(variables), jnp.asarray(images01)
    labels = jnp.zeros(len(images01), jnp.int32)

    def loss(variables: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(losses.cross_entropy(clf.logits(variables, x), labels))

    if what == "param_gradient":

        def work(params: Any, x: jax.Array) -> Any:
            return jax.grad(lambda p: loss({**variables, "params": p}, x) / len(labels))(params)

        program, arguments = jax.jit(work), (variables["params"], x)
    else:
        program, arguments = (
            jax.jit(clf.logits if what == "forward" else jax.grad(loss, argnums=1)),
            (frozen, x),
        )
    compiled = program.lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))


def call_of(arch: str, *libraries: str) -> tuple[str, str]:
    """(library, call) that makes an architecture elsewhere: its own form, or the nearest one that the library has."""
    for spec in backbones.forms(arch):
        for library in libraries:
            if spec.sources.get(library):
                return library, spec.sources[library]
    return "", ""


def with_torch(arch: str, what: str, images01: np.ndarray) -> list[Callable[[], Any]]:
    """The same work in torch, once for each memory format."""
    library, call = call_of(arch, "torchvision", "timm")
    if not call:
        return []
    network = sources.make(library, call).model.eval()
    import torch

    dtype = getattr(torch, FLAGS.dtype)
    labels, calls = torch.zeros(len(images01), dtype=torch.long), []
    spec = pixels.PixelSpec()
    mean, std = (torch.tensor(v, dtype=dtype).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = (
            network
            if memory_format is torch.contiguous_format
            else sources.make(library, call).model.eval()
        )
        model = model.to(memory_format=memory_format, dtype=dtype)
        parameters = list(model.parameters())
        for parameter in parameters:
            parameter.requires_grad_(what == "param_gradient")
        x = torch.tensor(images01.transpose(0, 3, 1, 2).copy(), dtype=dtype).contiguous(
            memory_format=memory_format
        )

        def work(model: Any = model, parameters: list = parameters, x: Any = x) -> Any:
            if what == "forward":
                with torch.inference_mode():
                    return model((x - mean) / std)
            if what == "input_gradient":
                x = x.detach().requires_grad_(True)
            reduction = "sum" if what == "input_gradient" else "mean"
            loss = torch.nn.functional.cross_entropy(
                model((x - mean) / std).float(), labels, reduction=reduction
            )
            return torch.autograd.grad(loss, [x] if what == "input_gradient" else parameters)

        calls.append(work)
    return calls


def with_keras(arch: str, what: str, images01: np.ndarray) -> list[Callable[[], Any]]:
    """The same work in Keras on JAX, jitted."""
    _, call = call_of(arch, "keras")
    if not call or FLAGS.dtype != "float32":
        return []
    model = sources.make("keras", call).model
    train, rest = (
        [v.value for v in group]
        for group in (model.trainable_variables, model.non_trainable_variables)
    )
    x, labels = jnp.asarray(images01), jnp.zeros(len(images01), jnp.int32)

    def logits(train: Any, x: jax.Array) -> jax.Array:
        return model.stateless_call(train, rest, (x - 0.5) / 0.5, training=False)[0]

    def loss(train: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(losses.cross_entropy(logits(train, x), labels))

    work = {
        "forward": logits,
        "input_gradient": jax.grad(loss, argnums=1),
        "param_gradient": jax.grad(loss),
    }[what]
    compiled = jax.jit(work)
    return [lambda: jax.block_until_ready(compiled(train, x))]


def installed(peer: str) -> str:
    """The peer's name and version, or "" where it is not there."""
    if peer not in PEERS:
        raise ValueError(f"unknown peer {peer!r}; wanted some of {', '.join(PEERS)}")
    if peer == "keras":
        os.environ["KERAS_BACKEND"] = "jax"  # read when Keras is first imported
    try:
        with sources.imported("torchvision" if peer == "torch" else peer) as library:
            if peer == "lucent":
                return f"lucent {metadata.version('torch-lucent')}"
            if peer == "torch":
                import torch as library
            elif library.backend.backend() != "jax":
                raise ValueError(
                    f"Keras runs on {library.backend.backend()} here; wanted jax: set KERAS_BACKEND=jax"
                )
            return f"{peer} {library.__version__}" + (" on JAX" if peer == "keras" else "")
    except ValueError as error:
        print(f"without {peer}: {error}", flush=True)
        return ""


def seconds(calls: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each call in each round; calls take turns, so that a noisy neighbour meets them all."""
    for call in calls:
        call()
        call()
    spent: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, times in zip(calls, spent, strict=True):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    return spent


def speed(arch: str, what: str, peers: dict[str, str]) -> list[dict[str, Any]]:
    """One row a peer (or one without): images a second, and the ratio to the peer's; above 1 tl is faster."""
    n = FLAGS.batch_size
    images01 = np.random.default_rng(FLAGS.seed).random((n, FLAGS.size, FLAGS.size, 3), np.float32)
    makers = {"torch": with_torch, "keras": with_keras}
    peers = {peer: version for peer, version in peers.items() if peer in makers}
    theirs = {peer: makers[peer](arch, what, images01) for peer in peers}
    owners = ["tl", *(peer for peer, calls in theirs.items() for _ in calls)]
    spent = seconds(
        [ours(arch, what, images01), *(call for calls in theirs.values() for call in calls)],
        FLAGS.rounds,
    )
    row = {
        "what": what,
        "arch": arch,
        "ours": n / float(np.median(spent[0])),
        "spread": [n / max(spent[0]), n / min(spent[0])],
    }
    rows = []
    for peer, version in peers.items():
        medians = [
            float(np.median(times))
            for owner, times in zip(owners, spent, strict=True)
            if owner == peer
        ]
        if medians:
            value = n / min(medians)
            rows.append({**row, "peer": version, "peer_value": value, "ratio": row["ours"] / value})
    return rows or [{**row, "peer": None, "peer_value": None, "ratio": None}]


# --- ideal images ------------------------------------------------------------------------------------------------------


def ideal_images(arch: str, peers: dict[str, str]) -> list[dict[str, Any]]:
    """Steps a second of whole climbs, beside bare gradients on the picture, and beside lucent's with lucid's views."""
    n, steps = FLAGS.batch_size, FLAGS.steps
    clf, variables = models.load(arch, weights="random")
    network = grid.network(clf.with_dtype(FLAGS.dtype), variables)
    chosen = specs.class_objectives(clf, ",".join(str(i) for i in range(n)))
    how = grid.IdealSettings(steps=steps, size=FLAGS.size, frames=0, seed=FLAGS.seed)

    def climb(how: grid.IdealSettings) -> Callable[[], Any]:
        call = grid.make_ascent([network], grid.make_cells(chosen, how), how)
        return lambda: jax.block_until_ready(call())

    members = jnp.arange(n)[:, None] == jnp.arange(len(inference.class_table(clf)))[None]

    def logit(x: jax.Array, variables: Any, members: jax.Array) -> jax.Array:
        return jnp.sum(network.clf.logits(variables, x), where=members)

    def bare(size: int) -> Callable[[], Any]:
        """As many gradients as a climb takes, `size` images at once."""
        x, gradient = jnp.full((size, FLAGS.size, FLAGS.size, 3), 0.5), jax.jit(jax.grad(logit))

        def work() -> None:
            for _ in range(steps * n // size):
                jax.block_until_ready(gradient(x, network.variables, members[:size]))

        return work

    sizes = [size for size in (1, 8) if n % size == 0]
    calls = [climb(how), *map(bare, sizes)]
    torch_calls = with_lucent(arch, n, steps) if "lucent" in peers else None
    if torch_calls:
        calls += [climb(how._replace(names=("lucid",))), torch_calls]
    spent = [n * steps / np.array(times) for times in seconds(calls, FLAGS.rounds)]
    medians = [float(np.median(rates)) for rates in spent]

    def row(what: str, mine: int, peer: str, value: float) -> dict[str, Any]:
        spread = [float(spent[mine].min()), float(spent[mine].max())]
        rate = {"ours": medians[mine], "spread": spread, "unit": "steps/s"}
        return {
            "what": what,
            "arch": arch,
            **rate,
            "peer": peer,
            "peer_value": value,
            "ratio": medians[mine] / value,
        }

    rows = [row("ideal", 0, "the bare gradient", max(medians[1 : 1 + len(sizes)]))]
    if torch_calls:
        rows.append(row("ideal, lucid's views", len(calls) - 2, peers["lucent"], medians[-1]))
    return rows


def with_lucent(arch: str, n: int, steps: int) -> Callable[[], Any] | None:
    """The same number of images by lucent's defaults: Fourier form, decorrelated, its standard views, Adam."""
    library, call = call_of(arch, "torchvision", "timm")
    if not call:
        return None
    model = sources.make(library, call).model.eval()
    with sources.imported("lucent"):
        from lucent.optvis import objectives as theirs
        from lucent.optvis import param, render

    wanted = sum(
        (theirs.channel("labels", i, batch=i) for i in range(1, n)),
        start=theirs.channel("labels", 0, batch=0),
    )
    quiet = {"progress": False, "show_image": False}
    return lambda: render.render_vis(
        model, wanted, lambda: param.image(FLAGS.size, batch=n), thresholds=(steps,), **quiet
    )


# --- starting, and bfloat16 --------------------------------------------------------------------------------------------

CHILD = """
import json, sys, time
began = time.perf_counter()
import jax, numpy as np
jax.config.update("jax_compilation_cache_dir", sys.argv[2])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
import tl
clf, variables = tl.load(sys.argv[1])
variables = jax.device_put(clf.fold_batch_norm(variables))
x = np.zeros((int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[4]), 3), np.float32)
loaded = time.perf_counter()
forward = jax.jit(clf.logits)
lowered = forward.lower(variables, x)
traced = time.perf_counter()
compiled = lowered.compile()
ready = time.perf_counter()
jax.block_until_ready(compiled(variables, x))
print(json.dumps({"import and load": loaded - began, "trace": traced - loaded, "compile": ready - traced}))
"""


def start(arch: str) -> list[dict[str, Any]]:
    """Seconds from the start of a process to its first logits: once with an empty compilation cache, once with a full one."""
    with tempfile.TemporaryDirectory() as folder:
        clf, variables = models.load(arch, weights="random")
        saved = models.save(Path(folder) / "saved", clf, variables)
        rows = []
        for which in ("first", "second"):
            words = [
                str(saved),
                str(Path(folder) / "cache"),
                str(FLAGS.batch_size),
                str(FLAGS.size),
            ]
            began = time.perf_counter()
            child = subprocess.run(
                [sys.executable, "-c", CHILD, *words], capture_output=True, text=True, check=False
            )
            total = time.perf_counter() - began
            if child.returncode:
                raise ValueError(
                    f"the process that was to be timed failed: {child.stderr.strip()[-300:]}"
                )
            parts = json.loads(child.stdout.strip().splitlines()[-1])
            rows.append(
                {
                    "what": f"start, {which} process",
                    "arch": arch,
                    "ours": total,
                    "unit": "s",
                    "parts": parts,
                }
            )
        return rows


def bfloat16(arch: str) -> list[dict[str, Any]]:
    """Forward in bfloat16 beside float32: speed, and what it does to the logits of the packaged photographs."""
    clf, variables = models.load(arch)
    half, variables = clf.with_dtype("bfloat16"), jax.device_put(clf.fold_batch_norm(variables))
    paths = [photo.path for photo in data.photographs()]
    images = np.concatenate(
        [b.images[b.valid] for b in data.load(paths, clf.prepare, batch_size=16)]
    )
    full, rounded = (inference.predict_logits(net, variables, images) for net in (clf, half))
    x = jnp.asarray(np.resize(pixels.to_images01(images), (FLAGS.batch_size, *images.shape[1:])))
    nets = [inference.forward(half), inference.forward(clf)]
    spent = seconds(
        [lambda net=net: jax.block_until_ready(net(variables, x)) for net in nets], FLAGS.rounds
    )
    rate, plain = (len(x) / float(np.median(times)) for times in spent)
    row = {
        "what": "bfloat16",
        "arch": clf.arch,
        "ours": rate,
        "peer": "float32",
        "peer_value": plain,
        "ratio": rate / plain,
    }
    row["n"] = len(images)
    row["logit_error"] = float(np.abs(rounded - full).max() / np.abs(full).max())
    row["same_top1"] = float((rounded.argmax(axis=1) == full.argmax(axis=1)).mean())
    return [row]


# --- the loader --------------------------------------------------------------------------------------------------------

PASSES = """
import sys, time
from experiments.benchmarks import sources
sources.import_torchvision()
import torch
from torchvision import transforms
from torchvision.datasets.folder import default_loader

prepare = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])

class Files(torch.utils.data.Dataset):  # what ImageFolder does for each of its files
    def __init__(self, paths):
        self.paths = paths
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, index):
        return prepare(default_loader(self.paths[index])), 0

paths = open(sys.argv[1]).read().splitlines()
loader = torch.utils.data.DataLoader(Files(paths), int(sys.argv[2]), num_workers=int(sys.argv[3]))
for _ in sys.stdin:
    batches = iter(loader)
    first = len(next(batches)[0])
    began = time.perf_counter()
    for batch in batches:
        pass
    print((len(paths) - first) / (time.perf_counter() - began), flush=True)
"""


def loader(peers: dict[str, str]) -> list[dict[str, Any]]:
    """Pictures a second once the first batch is there, from threads and from processes; passes take turns."""
    if FLAGS.data:
        files = [
            example.path
            for example in data.get(FLAGS.data).examples
            if isinstance(example.path, Path)
        ]
    else:
        files = [photo.path for photo in data.photographs()] * 16
    b, workers = FLAGS.batch_size, cores()
    if len(files) < 4 * b:
        raise ValueError(
            f"--what=loader wants at least {4 * b} files, four batches; --data={FLAGS.data} has {len(files)}"
        )
    transform = functools.partial(pixels.prepare, pixels.TORCHVISION)
    plan = Plan(len(files), b, 1, FLAGS.seed)

    def ours_with(workers: int) -> float:
        with stream(files, transform, plan, workers=workers) as batches:
            next(batches)
            began = time.perf_counter()
            read = sum(int(batch.valid.sum()) for batch in batches)
            return read / (time.perf_counter() - began)

    rates: dict[str, list[float]] = {"threads": [], f"{workers} processes": []}
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        child = None
        if "torch" in peers:
            listed = Path(folder) / "files.txt"
            order = np.concatenate([plan.rows(step) for step in range(len(plan))])
            listed.write_text("\n".join(str(files[row].absolute()) for row in order[order >= 0]))
            words = [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                PASSES,
                str(listed),
                str(b),
                str(workers),
            ]
            pipe = subprocess.PIPE
            child = subprocess.Popen(
                words, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parents[2]
            )
            stack.enter_context(child)
        for i in range(
            FLAGS.rounds + 1
        ):  # the first fills the system's cache of files and does not count
            passes = [
                (rates[name], ours_with(n)) for name, n in zip(rates, (0, workers), strict=True)
            ]
            if child is not None:
                assert child.stdin is not None and child.stdout is not None
                child.stdin.write("\n")
                child.stdin.flush()
                if not (said := child.stdout.readline()):
                    raise ValueError("torchvision's loader failed; its message is above")
                passes.append((theirs, float(said)))
            for kept, rate in passes if i else []:
                kept.append(rate)
    peer = float(np.median(theirs)) if theirs else None
    version = f"torchvision's DataLoader, {workers} processes" if theirs else None
    return [
        {
            "what": f"loader, {name}",
            "arch": "-",
            "ours": float(np.median(found)),
            "spread": [min(found), max(found)],
            "peer": version,
            "peer_value": peer,
            "ratio": float(np.median(found)) / peer if peer else None,
        }
        for name, found in rates.items()
    ]


# --- training ----------------------------------------------------------------------------------------------------------


def step(arch: str) -> list[dict[str, Any]]:
    """Images a second of whole training steps, beside what they are made of."""
    clf, variables = models.load(arch, weights="random")
    clf, n = clf.with_dtype(FLAGS.dtype), FLAGS.batch_size
    params, stats, stages = (
        variables["params"],
        variables.get("batch_stats", {}),
        clf.spec.endpoints,
    )
    images = np.random.default_rng(FLAGS.seed).integers(
        0, 256, (n, FLAGS.size, FLAGS.size, 3), np.uint8
    )
    of = lambda inputs: Examples(jnp.asarray(inputs), jnp.zeros(n, jnp.int32), jnp.ones(n, bool))

    def pictures(params: Any, stats: Any, inputs: jax.Array) -> tuple[Any, Any]:
        output = clf.apply({"params": params, "batch_stats": stats}, pixels.to_images01(inputs))
        return output.logits, output.stats

    def stepping(tune: str, forward: Forward, examples: Examples) -> Callable[[], Any]:
        """A call that does one step, each from the state that the step before left."""
        rules = phases(tune, stages)[-1].rules
        schedule = optim.SCHEDULES["cosine"](1e-3, 1000)
        partition = paths.partition(params, rules)
        optimizer = optim.partitioned(
            partition, optim.OPTIMIZERS["adamw"](1e-2), schedule, clip=1.0
        )
        begun = init(params, partition, optimizer, stats=stats)
        program = make_train_step(forward, optimizer).lower(begun, examples).compile()  # type: ignore[attr-defined]
        held = [begun]

        def work() -> None:
            held[0], measured = program(held[0], examples)
            jax.block_until_ready((held[0], measured))

        return work

    def loss(params: Any, stats: Any, examples: Examples) -> jax.Array:
        inputs, wanted = jnp.asarray(examples.inputs), jnp.asarray(examples.labels)
        return jnp.mean(losses.cross_entropy(pictures(params, stats, inputs)[0], wanted))

    bare = jax.jit(jax.value_and_grad(loss)).lower(params, stats, of(images)).compile()
    on_device = jax.device_put((params, stats, of(images)))
    prefix = frozen_prefix(
        paths.partition(params, phases("last:1", stages)[-1].rules).trained, stages
    )
    ends = jax.eval_shape(lambda x: clf.apply(variables, pixels.to_images01(x)).endpoints, images)

    def from_bank(params: Any, stats: Any, maps: jax.Array) -> tuple[Any, Any]:
        output = clf.apply_from({"params": params, "batch_stats": stats}, maps, prefix)
        return output.logits, output.stats

    calls = {
        "the bare gradient": lambda: jax.block_until_ready(bare(*on_device)),
        "step, all": stepping("all", pictures, of(images)),
        "step, last:1": stepping("last:1", pictures, of(images)),
        "step, last:1, bank": stepping(
            "last:1", from_bank, of(jnp.zeros(ends[prefix].shape, ends[prefix].dtype))
        ),
    }
    spent = dict(zip(calls, seconds(list(calls.values()), FLAGS.rounds), strict=True))
    rate = {name: n / float(np.median(times)) for name, times in spent.items()}
    return [
        {
            "what": name,
            "arch": arch,
            "ours": rate[name],
            "spread": [n / max(spent[name]), n / min(spent[name])],
            "peer": peer,
            "peer_value": rate[peer],
            "ratio": rate[name] / rate[peer],
        }
        for name, peer in zip(
            list(calls)[1:], ("the bare gradient", "step, all", "step, all"), strict=True
        )
    ]


def probes() -> list[dict[str, Any]]:
    """Seconds of the two probes, on features of 37 overlapping clusters."""
    rng, (n, d, k) = np.random.default_rng(FLAGS.seed), (1250, 1280, 37)
    known = rng.integers(0, k, n)
    values = (rng.normal(size=(k, d))[known] * 0.15 + rng.normal(size=(n, d))).astype(np.float32)
    spent: dict[str, list[float]] = {method: [] for method in probe.METHODS}
    for _ in range(FLAGS.rounds):
        for method, times in spent.items():
            began = time.perf_counter()
            probe.fit(
                values[:1000],
                known[:1000],
                k,
                method=method,
                validation=(values[1000:], known[1000:]),
            )
            times.append(time.perf_counter() - began)
    return [
        {
            "what": f"probe, {method}",
            "arch": f"{d} features",
            "ours": float(np.median(times)),
            "spread": [max(times), min(times)],
            "unit": "s",
        }
        for method, times in spent.items()
    ]


def frozen_fit(arch: str, peers: dict[str, str]) -> list[dict[str, Any]]:
    """Pictures a second of the first and of the second epoch in which a head alone is trained."""
    clf, variables = models.load(arch, weights="random")
    with tempfile.TemporaryDirectory() as folder:
        spec = data.get(FLAGS.data or f"folder:{noise(Path(folder) / 'noise', clf.pixels.size)}")
        k, n = len(spec.classes), len(spec.examples)
        clf = clf.with_dtype(FLAGS.dtype).with_head(
            heads.maker("linear", clf.spec)(k), labels.from_names(spec.classes)
        )
        head = clf.init_head(jax.random.key(FLAGS.seed))
        variables = {**variables, "params": {**variables["params"], "head": head}}
        none = dataclasses.replace(spec, examples=())
        recipe = Recipe(tune="head", epochs=2, batch_size=FLAGS.batch_size)

        def ours() -> list[float]:
            ends = [time.perf_counter()]
            log = lambda row: ends.append(time.perf_counter()) if "epoch" in row else None
            fit.fit(clf, variables, spec, none, recipe, seed=FLAGS.seed, log=log)
            return ends

        makers = {"tl": ours, **({"keras": keras_fit(arch, clf, spec)} if "keras" in peers else {})}
        makers = {owner: call for owner, call in makers.items() if call is not None}
        spent: dict[str, list[np.ndarray]] = {owner: [] for owner in makers}
        for i in range(FLAGS.rounds):
            for owner, call in makers.items():
                with nothing_known(Path(folder) / f"{owner}{i}"):
                    spent[owner].append(np.diff(call()))
    rates = {owner: n / np.array(times) for owner, times in spent.items()}
    rows = []
    for epoch, name in enumerate(("first epoch", "second epoch")):
        found = rates["tl"][:, epoch]
        row = {"what": f"frozen fit, {name}", "arch": arch, "ours": float(np.median(found)), "n": n}
        row |= {
            "spread": [float(found.min()), float(found.max())],
            "peer": None,
            "peer_value": None,
            "ratio": None,
        }
        if "keras" in rates:
            theirs = float(np.median(rates["keras"][:, epoch]))
            row |= {"peer": peers["keras"], "peer_value": theirs, "ratio": row["ours"] / theirs}
        rows.append(row)
    return rows


def noise(folder: Path, side: int) -> Path:
    """128 pictures of noise in two classes."""
    rng = np.random.default_rng(FLAGS.seed)
    for i in range(128):
        path = folder / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(path)
    return folder


@contextlib.contextmanager
def nothing_known(folder: Path) -> Iterator[None]:
    """No feature bank and no compiled program from before."""
    cache = os.environ.get("TL_CACHE")
    os.environ["TL_CACHE"] = str(folder)
    cli.use_compile_cache()
    compilation_cache.reset_cache()
    jax.clear_caches()
    try:
        yield
    finally:
        del os.environ["TL_CACHE"]
        if cache is not None:
            os.environ["TL_CACHE"] = cache
        cli.use_compile_cache()
        compilation_cache.reset_cache()


def keras_fit(
    arch: str, clf: models.Classifier, spec: data.DataSpec
) -> Callable[[], list[float]] | None:
    """A call that trains a new dense layer on Keras' frozen backbone for two epochs, and says when each ended."""
    _, call = call_of(arch, "keras")
    if not call or FLAGS.dtype != "float32" or clf.pixels.size != 224:
        return None
    import keras

    batches = data.load(inputs.sources(spec), clf.prepare, batch_size=FLAGS.batch_size)
    x = (
        np.concatenate([batch.images for batch in batches])[: len(spec.examples)].astype(np.float32)
        / 127.5
        - 1.0
    )
    y = inputs.labels(spec)

    def work() -> list[float]:
        network = sources.make("keras", call).model
        network.trainable = False
        pooled = [
            layer
            for layer in network.layers
            if isinstance(layer, keras.layers.GlobalAveragePooling2D)
        ]
        features = pooled[-1].output if pooled else network.layers[-2].output  # VGG has none
        top = keras.layers.Dense(len(spec.classes))(keras.layers.Flatten()(features))
        model = keras.Model(network.input, top)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss, metrics=["accuracy"])
        ends = [time.perf_counter()]
        told = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter())
        )
        model.fit(x, y, batch_size=FLAGS.batch_size, epochs=2, verbose=0, callbacks=[told])  # type: ignore[arg-type]
        return ends

    return work


# --- the run -----------------------------------------------------------------------------------------------------------


def line(row: dict[str, Any]) -> str:
    """One row as the terminal shows it."""
    unit = row.get("unit", "images/s")
    said = f"{row['arch']:22s} {row['what']:16s} {row['ours']:7.1f} {unit}"
    if row.get("ratio"):
        said += f"   {row['peer']} {row['peer_value']:.1f}   ratio {row['ratio']:.2f}"
    if "parts" in row:
        said += "   " + ", ".join(f"{name} {value:.1f} s" for name, value in row["parts"].items())
    if "logit_error" in row:
        said += f"   logits differ by {row['logit_error']:.1%} of the largest,"
        said += f" the same top-1 for {row['same_top1']:.1%} of {row['n']} pictures"
    return said


def main(run: reporting.Run) -> None:
    archs = [backbones.get(arch).name for arch in FLAGS.arch]
    for what in FLAGS.what:
        if what not in WHAT:
            raise ValueError(f"unknown --what={what}; wanted some of {', '.join(WHAT)}")
    peers = {peer: version for peer in FLAGS.peers if (version := installed(peer))}
    rows: list[dict[str, Any]] = []
    works = list(dict.fromkeys(FLAGS.what))
    jobs: list[Callable[[], list[dict[str, Any]]]] = (
        [lambda: loader(peers)] if "loader" in works else []
    )
    jobs += [probes] if "probe" in works else []
    for arch in archs:
        one = {
            "start": start,
            "bfloat16": bfloat16,
            "step": step,
            "frozen_fit": functools.partial(frozen_fit, peers=peers),
            "ideal": functools.partial(ideal_images, peers=peers),
        }
        jobs += [functools.partial(one[what], arch) for what in works if what in one]
        jobs += [functools.partial(speed, arch, what, peers) for what in works if what in SPEED]
    for job in jobs:
        new = job()
        for row in new:
            run.log(row)
            print(line(row), flush=True)
        rows += new
    header = (
        "what",
        "architecture",
        "tl",
        "slowest to fastest round",
        "peer",
        "the peer's",
        "ratio",
    )
    cells = [
        (
            row["what"],
            row["arch"],
            f"{row['ours']:.1f} {row.get('unit', 'images/s')}",
            f"{row['spread'][0]:.1f} to {row['spread'][1]:.1f}" if "spread" in row else "-",
            row.get("peer") or "-",
            f"{row['peer_value']:.1f}" if row.get("peer_value") else "-",
            f"{row['ratio']:.2f}" if row.get("ratio") else "-",
        )
        for row in rows
    ]
    device = jax.devices()[0].device_kind
    lead = (
        f"Batch {FLAGS.batch_size} at {FLAGS.size} pixels, {FLAGS.dtype}, on {device}, median of {FLAGS.rounds} rounds. "
        "A ratio above 1 means that tl is faster."
    )
    page = reporting.page(
        "Speed",
        lead,
        [reporting.section("Images a second", reporting.table(cells, header))],
        facts=run.facts(),
    )
    run.finish({"rows": rows}, page)
    print(f"{run.workdir / 'report.html'}")


if __name__ == "__main__":
    cli.launch("bench", main, define_flags)
