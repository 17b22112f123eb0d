"""Speed compared with torch and Keras on JAX where they are installed, as ratios of one run.

  ./launch.sh bench
  ./launch.sh bench --what=forward,input_gradient --arch=resnet50,vgg16 --batch_size=16
  ./launch.sh bench --what=forward --arch=mobilenetv2_100 --peers=torch,keras
  ./launch.sh bench --what=loader --data=folder:images --batch_size=32
  ./launch.sh bench --what=ideal --arch=efficientnet_lite0 --peers=lucent --steps=512 --rounds=1
  ./launch.sh bench --what=explain --arch=efficientnet_lite0,resnet18 --rounds=3
  ./launch.sh bench --what=convolutions --arch=squeezenet1_1
  ./launch.sh bench --what=growth --arch=resnet18 --rounds=3
  ./launch.sh bench --what=bank_memory --arch=mobilenetv2_100
  ./launch.sh bench --what=frozen_fit --arch=mobilenetv2_100 --peers=keras --data=folder:images

  forward         logits; BatchNorm folded into the convolutions, as for every frozen network
  input_gradient  of the summed cross-entropy with respect to the image; folded too
  param_gradient  of the mean cross-entropy with respect to all parameters, BatchNorm in eval mode
  start           seconds until a new process has its first logits, with an empty and with a filled
                  compilation cache
  bfloat16        forward in bfloat16 compared with float32, and the error of the logits, on
                  photographs and real weights
  loader          images of --data read, decoded, resized to 256 and cropped to 224 (bilinear), in
                  threads and in processes, compared with torchvision's DataLoader with as many
                  processes
  step            training steps of `transfer` (AdamW, clipping, metrics): --tune=all compared with
                  the bare gradient of all parameters, --tune=last:1 compared with --tune=all, from
                  images and from the bank of the frozen prefix
  frozen_fit      first and second epoch of --tune=head on images of --data, compared with Keras'
                  `fit` of a frozen backbone; the first epoch compiles and fills the feature bank,
                  and Keras receives decoded images
  ideal           optimization steps per second of --batch_size ideal images (all defaults of
                  `ideal`), --steps each, compared with as many bare gradients; and with lucid's
                  transforms compared with lucent's render_vis on the same network in torch
                  (pip install --no-deps torch-lucent kornia==0.4.1; ipython)
  explain         images per second of --methods, compared with Captum's on the same weights; RISE,
                  which Captum lacks, with plain torch, in a time proportional to --masks
  explain_memory  peak memory of integrated gradients over the number of nodes, compared with Captum
  probe           seconds of a probe on 1,000 images, 1,280 features, 37 classes and 20 strengths,
                  selected on 250 more images
  convolutions    the three passes of each different convolution alone, in 10^9 operations per
                  second of the definition (two for each multiplication and addition), and the time
                  of all of them
  growth          the three passes at batch sizes 1, 4, 16 and 64, and at 128, 224 and 320 pixels;
                  the page draws the time per image
  bank_memory     private memory of a process that reads an epoch from feature banks of 1,000,
                  10,000 and 100,000 images

Weights are random except in `bfloat16`, because speed does not depend on them. The libraries take
turns, and each number is the median of the rounds. torch runs in both memory formats, of which the
faster one counts.

Expected on two CPU cores: the forward pass of EfficientNet-Lite0 has 144.9 images/s (143.4 to
144.9), 1.17 times torch's rate (`speed_efficientnet_lite0_forward` in RESULTS.md). Cost: for each
row and library two calls more than `rounds`, which take seconds to minutes.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

from experiments.benchmarks import explanations, loading, sources
from tl import backbones, cli, data, inference, losses, models, pages, pixels
from tl.evaluation import bank_memory, speed, timing
from tl.evaluation.speed import PASSES, Workload
from tl.evaluation.timing import Row, collect, compared, empty_caches, rate_row, rates
from tl.models import summary
from tl.reporting import Run
from tl.training import fit, inputs
from tl.training.recipe import Recipe
from tl.visualize import grid, specs

FLAGS = flags.FLAGS
KINDS = (*PASSES, "growth", "start", "bfloat16", "loader", "step", "frozen_fit", "ideal", "probe")
KINDS += ("explain", "explain_memory", "bank_memory", "convolutions")
# Batch sizes and sizes of images of growth.
BATCHES, SIZES = (1, 4, 16, 64), (128, 224, 320)
PEERS = ("torch", "keras", "lucent")
ARCHS = "resnet50,vgg16,mobilenetv2_100,efficientnet_lite0"


def define_flags() -> None:
    flags.DEFINE_list("arch", ARCHS, "Architectures.")
    flags.DEFINE_list("what", ",".join(PASSES), f"What is timed: {', '.join(KINDS)}.")
    flags.DEFINE_integer("batch_size", 16, "Images per call.", lower_bound=1)
    flags.DEFINE_string(
        "data",
        "",
        "For loader and frozen_fit: a data set of files. Default: the packaged photographs, "
        "repeated; 128 images of noise.",
    )
    flags.DEFINE_integer("size", 224, "Side of the images, in pixels.", lower_bound=32)
    flags.DEFINE_integer(
        "rounds", 5, "Timed rounds, of which the median is reported.", lower_bound=1
    )
    flags.DEFINE_list(
        "peers",
        "torch",
        f"Libraries to compare with, if installed: {', '.join(PEERS)}; empty for none.",
    )
    flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16"], "Number type of all computations."
    )
    flags.DEFINE_list("methods", list(explanations.METHODS), "Methods of explain.")
    flags.DEFINE_integer("masks", 200, "Masks of RISE in explain.", lower_bound=1)
    flags.DEFINE_integer("steps", 32, "Optimization steps per ideal image.", lower_bound=1)


# ---- the same work in each library ----


def torch_calls(arch: str, kind: str, images01: np.ndarray) -> list[Callable[[], Any]]:
    """The same work in torch, once for each memory format."""
    library, call = backbones.constructor(arch, "torchvision", "timm")
    if not call:
        return []
    sources.make(library, call)  # an error where the library is missing
    import torch

    dtype = getattr(torch, FLAGS.dtype)
    labels, spec = torch.zeros(len(images01), dtype=torch.long), pixels.PixelSpec()
    mean, std = (torch.tensor(v, dtype=dtype).view(1, 3, 1, 1) for v in (spec.mean, spec.std))

    def in_format(memory_format: Any) -> Callable[[], Any]:
        model = sources.make(library, call).model.eval()
        model = model.to(memory_format=memory_format, dtype=dtype)
        parameters = list(model.parameters())
        for parameter in parameters:
            parameter.requires_grad_(kind == "param_gradient")
        x = torch.tensor(images01.transpose(0, 3, 1, 2).copy(), dtype=dtype)
        x = x.contiguous(memory_format=memory_format)

        def work() -> Any:
            if kind == "forward":
                with torch.inference_mode():
                    return model((x - mean) / std)
            by_input = kind == "input_gradient"
            inputs = x.detach().requires_grad_(True) if by_input else x
            logits, reduction = model((inputs - mean) / std).float(), "sum" if by_input else "mean"
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction=reduction)
            return torch.autograd.grad(loss, [inputs] if by_input else parameters)

        return work

    return [in_format(form) for form in (torch.contiguous_format, torch.channels_last)]


def keras_calls(arch: str, kind: str, images01: np.ndarray) -> list[Callable[[], Any]]:
    """The same work in Keras on JAX, jitted."""
    _, call = backbones.constructor(arch, "keras")
    if not call or FLAGS.dtype != "float32":
        return []
    model = sources.make("keras", call).model
    groups = model.trainable_variables, model.non_trainable_variables
    train, rest = ([v.value for v in group] for group in groups)
    x, labels = jnp.asarray(images01), jnp.zeros(len(images01), jnp.int32)

    def logits(train: Any, x: jax.Array) -> jax.Array:
        return model.stateless_call(train, rest, (x - 0.5) / 0.5, training=False)[0]

    def loss(train: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(losses.cross_entropy(logits(train, x), labels))

    gradients = {"input_gradient": 1, "param_gradient": 0}
    work = jax.jit(logits if kind == "forward" else jax.grad(loss, argnums=gradients[kind]))
    return [lambda: jax.block_until_ready(work(train, x))]


def installed(peer: str) -> str:
    """Name and version of the peer, or "" if it is not installed or Keras does not run on JAX."""
    if peer != "keras":
        return sources.installed(peer, PEERS)
    os.environ["KERAS_BACKEND"] = "jax"  # read when Keras is first imported
    version = sources.installed(peer, PEERS)
    if version and (backend := importlib.import_module("keras").backend.backend()) != "jax":
        print(f"without keras: it runs on {backend}, expected jax; set KERAS_BACKEND=jax")
        return ""
    return version and f"{version} on JAX"


def passes(arch: str, kind: str, peers: dict[str, str], work: Workload) -> list[Row]:
    """One row per peer, or one row without: images per second and the ratio to the peer's rate."""
    images01 = work.images01()
    makers = {"torch": torch_calls, "keras": keras_calls}
    calls = {"tl": speed.pass_call(arch, kind, images01, work.dtype)}
    for peer in peers:
        timed = makers[peer](arch, kind, images01) if peer in makers else []
        calls |= {f"{peer} {i}": call for i, call in enumerate(timed)}
    measured = rates(calls, work.rounds, work.batch_size)
    row, rows = rate_row(kind, arch, measured["tl"]), []
    for peer, version in peers.items():
        if variants := [r for name, r in measured.items() if name.startswith(f"{peer} ")]:
            rows.append(compared(row, version, max(variants, key=np.median)))
    return rows or [compared(row, None, ())]


def convolutions(arch: str, peers: dict[str, str], work: Workload) -> Iterator[Row]:
    """The rows of the passes of each convolution, and of the time of all of them."""
    totals: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in PASSES}
    for conv, count in speed.convolutions(arch, work).items():
        ours = speed.convolution_calls(conv, work)
        for kind in PASSES:
            calls = {"tl": ours[kind]}
            if "torch" in peers:
                calls |= {f"torch {i}": c for i, c in enumerate(torch_convolutions(conv, kind))}
            times = {k: np.array(v) for k, v in timing.take_turns(calls, work.rounds).items()}
            tl, *others = times.values()
            best = min(others, key=np.median) if others else tl
            for name, seconds in (("ours", tl), ("peer", best)):
                totals[kind][name] = totals[kind].get(name, 0) + count * seconds
            flops = 2e-9 * conv.multiply_adds
            row = rate_row(f"{kind}, {conv.label}", arch, flops / tl, unit="GFLOP/s", count=count)
            yield compared(row, peers.get("torch"), flops / best if others else ())
    for kind, seconds in totals.items():
        row = rate_row(f"{kind}, all convolutions", arch, 1 / seconds["ours"], unit="passes/s")
        yield compared(row, peers.get("torch"), 1 / seconds["peer"] if "torch" in peers else ())


def torch_convolutions(conv: summary.Convolution, kind: str) -> list[Callable[[], Any]]:
    """A pass of one convolution in torch, once for each memory format."""
    with sources.imported("torch"):
        import torch
    dtype = getattr(torch, FLAGS.dtype)
    # Torch's own padding is the same on both sides.
    before, after = zip(*conv.padding, strict=True)
    padding, rows, cols = (before, 0, 0) if before == after else ((0, 0), *map(sum, conv.padding))
    options = [conv.stride] * 2, padding, [1, 1], False, [0, 0], conv.groups

    def in_format(memory_format: Any) -> Callable[[], Any]:
        tensor = lambda *shape: torch.rand(shape, dtype=dtype).to(memory_format=memory_format)
        b, h, w, c = conv.image
        kh, kw, i, o = conv.kernel
        x = tensor(b, c, h + rows, w + cols)
        k = tensor(o, i, kh, kw)
        g = torch.convolution(x, k, None, *options)
        gradients = [kind == "input_gradient", kind == "param_gradient", False]

        def work() -> Any:
            with torch.inference_mode():
                if kind == "forward":
                    return torch.convolution(x, k, None, *options)
                return torch.ops.aten.convolution_backward(g, x, k, None, *options, gradients)

        return work

    return [in_format(form) for form in (torch.contiguous_format, torch.channels_last)]


def growth(arch: str, peers: dict[str, str], work: Workload) -> Iterator[Row]:
    """The rows of all passes for several batch sizes, and for several sizes of the images."""
    shapes = [(n, work.size) for n in BATCHES] + [(work.batch_size, size) for size in SIZES]
    for kind in PASSES:
        for n, size in dict.fromkeys(shapes):
            what = {"what": f"{kind}, {n} x {size} px", "pass": kind, "batch_size": n, "size": size}
            for row in passes(arch, kind, peers, work._replace(batch_size=n, size=size)):
                yield row | what


# ---- ideal images ----


def ideal_images(arch: str, peers: dict[str, str]) -> list[Row]:
    """Optimization steps per second, compared with bare gradients and with lucent."""
    n, steps = FLAGS.batch_size, FLAGS.steps
    clf, variables = models.load(arch, weights="random")
    network = grid.network(clf.with_dtype(FLAGS.dtype), variables)
    chosen = specs.class_objectives(clf, ",".join(str(i) for i in range(n)))
    settings = grid.IdealSettings(steps=steps, size=FLAGS.size, frames=0, seed=FLAGS.seed)
    members = jnp.arange(n)[:, None] == jnp.arange(len(inference.class_table(clf)))[None]

    def optimize(settings: grid.IdealSettings) -> Callable[[], Any]:
        call = grid.make_ascent([network], grid.make_cells(chosen, settings), settings)
        return lambda: jax.block_until_ready(call())

    def logit(x: jax.Array, variables: Any, members: jax.Array) -> jax.Array:
        return jnp.sum(network.clf.logits(variables, x), where=members)

    def gradients(size: int) -> Callable[[], Any]:
        """As many gradients as the optimization takes, for `size` images at once."""
        x, gradient = jnp.full((size, FLAGS.size, FLAGS.size, 3), 0.5), jax.jit(jax.grad(logit))

        def work() -> None:
            for _ in range(steps * n // size):
                jax.block_until_ready(gradient(x, network.variables, members[:size]))

        return work

    calls = {"ideal": optimize(settings)}
    calls |= {f"gradients {size}": gradients(size) for size in (1, 8) if n % size == 0}
    lucent = lucent_call(arch, n, steps) if "lucent" in peers else None
    lucid = "ideal, lucid's views"
    if lucent:
        calls |= {lucid: optimize(settings._replace(transforms=("lucid",))), "lucent": lucent}
    measured = rates(calls, FLAGS.rounds, n * steps)
    best = max((r for name, r in measured.items() if name.startswith("gradients")), key=np.median)
    row = lambda name: rate_row(name, arch, measured[name], unit="steps/s")
    rows = [compared(row("ideal"), "the bare gradient", best)]
    return rows + ([compared(row(lucid), peers["lucent"], measured["lucent"])] if lucent else [])


def lucent_call(arch: str, n: int, steps: int) -> Callable[[], Any] | None:
    """The same number of images by lucent's defaults: Fourier, decorrelated, transforms, Adam."""
    library, call = backbones.constructor(arch, "torchvision", "timm")
    if not call:
        return None
    model = sources.make(library, call).model.eval()
    with sources.imported("lucent"):
        from lucent.optvis import objectives, param, render
    first, *rest = (objectives.channel("labels", i, batch=i) for i in range(n))
    objective = sum(rest, start=first)
    quiet = {"progress": False, "show_image": False}
    return lambda: render.render_vis(
        model, objective, lambda: param.image(FLAGS.size, batch=n), thresholds=(steps,), **quiet
    )


# ---- training ----


def frozen_fit(arch: str, peers: dict[str, str]) -> list[Row]:
    """Images per second of the first and the second epoch in which only a head is trained."""
    clf, variables = models.load(arch, weights="random")
    with tempfile.TemporaryDirectory() as folder:
        noise_folder = Path(folder) / "noise"
        spec = data.get(FLAGS.data or f"folder:{noise(noise_folder, clf.pixels.size)}")
        n, key = len(spec.examples), jax.random.key(FLAGS.seed)
        clf, variables = clf.with_dtype(FLAGS.dtype).replace_head(variables, spec.classes, key=key)
        validation = dataclasses.replace(spec, examples=())
        recipe = Recipe(tune="head", epochs=2, batch_size=FLAGS.batch_size)

        def tl_fit() -> list[float]:
            ends = [time.perf_counter()]
            log = lambda row: ends.append(time.perf_counter()) if "epoch" in row else None
            fit.fit(clf, variables, spec, validation, recipe, seed=FLAGS.seed, log=log)
            return ends

        calls = {"tl": tl_fit, "keras": keras_fit(arch, clf, spec) if "keras" in peers else None}
        epochs: dict[str, list[Any]] = {name: [] for name, call in calls.items() if call}
        for i in range(FLAGS.rounds):
            for name in epochs:
                with empty_caches(Path(folder) / f"{name}{i}"):
                    epochs[name].append(n / np.diff(calls[name]()))  # type: ignore[misc]
    rows = []
    for epoch, name in enumerate(("first epoch", "second epoch")):
        row = rate_row(f"frozen fit, {name}", arch, [r[epoch] for r in epochs["tl"]], n=n)
        theirs = [r[epoch] for r in epochs.get("keras", ())]
        rows.append(compared(row, peers["keras"] if theirs else None, theirs))
    return rows


def noise(folder: Path, side: int) -> Path:
    """128 images of noise in two classes."""
    rng = np.random.default_rng(FLAGS.seed)
    for i in range(128):
        path = folder / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(path)
    return folder


def keras_fit(
    arch: str, clf: models.Classifier, spec: data.DataSpec
) -> Callable[[], list[float]] | None:
    """A call that trains a dense layer on Keras' frozen backbone; returns when each epoch ended."""
    _, call = backbones.constructor(arch, "keras")
    if not call or FLAGS.dtype != "float32" or clf.pixels.size != 224:
        return None
    import keras

    batches = data.load(inputs.sources(spec), clf.prepare, batch_size=FLAGS.batch_size)
    images = np.concatenate([batch.images for batch in batches])[: len(spec.examples)]
    x, y = images.astype(np.float32) / 127.5 - 1.0, inputs.labels(spec)

    def work() -> list[float]:
        network = sources.make("keras", call).model
        network.trainable = False
        kind = keras.layers.GlobalAveragePooling2D
        pooled = [layer for layer in network.layers if isinstance(layer, kind)]
        features = pooled[-1].output if pooled else network.layers[-2].output  # VGG has none
        top = keras.layers.Dense(len(spec.classes))(keras.layers.Flatten()(features))
        model = keras.Model(network.input, top)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss, metrics=["accuracy"])
        ends = [time.perf_counter()]
        clock = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter())
        )
        model.fit(x, y, batch_size=FLAGS.batch_size, epochs=2, verbose=0, callbacks=[clock])  # type: ignore[arg-type]
        return ends

    return work


# ---- the run ----


def rows(kinds: list[str], archs: list[str], peers: dict[str, str]) -> Iterator[Row]:
    """The rows of all measurements that the flags name."""
    values: dict[str, Any] = {name: FLAGS[name].value for name in Workload._fields}
    work = Workload(**values)
    if "loader" in kinds:
        yield from loading.speed(FLAGS.data, peers, work)
    if "probe" in kinds:
        yield from speed.probes(work)
    works: dict[str, Callable[[str], Any]] = {
        "start": functools.partial(speed.start, work=work),
        "bfloat16": functools.partial(speed.bfloat16, work=work),
        "step": functools.partial(speed.step, work=work),
        "growth": functools.partial(growth, peers=peers, work=work),
        "convolutions": functools.partial(convolutions, peers=peers, work=work),
        "bank_memory": bank_memory.bank_memory,
        "frozen_fit": functools.partial(frozen_fit, peers=peers),
        "ideal": functools.partial(ideal_images, peers=peers),
        "explain": lambda arch: explanations.speed(
            arch, FLAGS.methods, FLAGS.size, FLAGS.masks, FLAGS.rounds
        ),
        "explain_memory": lambda arch: explanations.memory(arch, FLAGS.size),
        **{kind: functools.partial(passes, kind=kind, peers=peers, work=work) for kind in PASSES},
    }
    for arch in archs:
        for kind in sorted(kinds, key=lambda kind: kind in PASSES):
            yield from works[kind](arch) if kind in works else ()


def main(run: Run) -> None:
    archs = [backbones.get(arch).name for arch in FLAGS.arch]
    sources.check_words("what", FLAGS.what, KINDS)
    sources.check_words("methods", FLAGS.methods, explanations.METHODS)
    peers = {peer: version for peer in FLAGS.peers if (version := installed(peer))}
    result = {name: FLAGS[name].value for name in ("batch_size", "size", "dtype", "rounds")}
    result["device"] = jax.devices()[0].device_kind
    measured = rows(list(dict.fromkeys(FLAGS.what)), archs, peers)
    result["rows"] = collect(run, measured, pages.bench.line)
    print(pages.finish(run, result))


if __name__ == "__main__":
    cli.launch("bench", main, define_flags)
