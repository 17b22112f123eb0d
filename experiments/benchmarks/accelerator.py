"""Training, attacks, ideal images and feature banks on a GPU or TPU, in one run of ten minutes.

  ./launch.sh accelerator
  ./launch.sh accelerator --what=train --arch=resnet50 --tune=all --batch_size=512 --peers=

  train   steps of `transfer` (AdamW, clipping, metrics; BatchNorm frozen) from uint8 images on the
          device, for each of --tune, compared with torch.compile in channels-last under autocast:
          images per second, the operations of its products as a share of the peak of --chip, and
          the memory that a step needs; on a CPU that of torch is what steps add to its process
  attack  images times steps of PGD per second, in float32, all steps
  ideal   optimization steps per second of 16 ideal images
  bank    images per second from JPEG files to features, decoded on all cores, and decoding alone

Weights are random, because speed does not depend on them. The libraries take turns; each number is
the median of the rounds. torch and torchvision come with the `parity` extra; without them there is
no comparison. No row starts after --minutes.

Expected: not measured yet. Cost: at most --minutes and the last row.
"""

from __future__ import annotations

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

from experiments.benchmarks import attack_libraries, sources
from tl import (
    attacks,
    backbones,
    cli,
    data,
    inference,
    models,
    pages,
    reporting,
)
from tl.attacks import goals, norms
from tl.evaluation import speed, timing
from tl.evaluation.timing import Row
from tl.models import summary
from tl.scale.topology import CHIPS
from tl.training.step import Examples
from tl.visualize import grid, specs
from tl.weights import tables

# torch needs part of a GPU's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

FLAGS = flags.FLAGS
KINDS = ("train", "attack", "ideal", "bank")
TUNES = ("head", "last:1", "all")
# Calls per timed round, so that starting a program does not count.
CALLS = 10


def define_flags() -> None:
    flags.DEFINE_list("what", list(KINDS), f"What is timed: {', '.join(KINDS)}.")
    flags.DEFINE_string("arch", "resnet50", "Architecture.")
    flags.DEFINE_list("tune", list(TUNES), f"What train trains: {', '.join(TUNES)}.")
    flags.DEFINE_integer("batch_size", 256, "Images per step of train.", lower_bound=1)
    flags.DEFINE_integer("size", 224, "Side of the images, in pixels.", lower_bound=32)
    flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Number type of train.")
    flags.DEFINE_integer("files", 2048, "JPEG files of bank.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Timed rounds.", lower_bound=1)
    flags.DEFINE_float("minutes", 8.0, "Time after which no row starts.", lower_bound=0.0)
    flags.DEFINE_list("peers", ["torch"], "Libraries to compare with: torch; empty for none.")
    flags.DEFINE_enum("chip", "h200", list(CHIPS), "The accelerator, whose peak is 100 %.")


# ---- training ----


def torch_train(clf: models.Classifier, tune: str) -> tuple[Callable[[], Any], Callable[[], int]]:
    """The same steps in torch, and a call that returns the largest memory since it was made."""
    library, call = backbones.constructor(clf.arch, "torchvision", "timm")
    network = sources.make(library, call)
    import torch

    device, n, size = attack_libraries.torch_device(), FLAGS.batch_size, FLAGS.size
    on_gpu = device == "cuda"
    model = network.model.eval().to(device=device, memory_format=torch.channels_last)
    ends = tables.sources(clf.spec)[library].endpoints(clf.spec.module)
    last, head = ends[clf.spec.endpoints[-1]], [name for name, _ in model.named_children()][-1]
    trained = {"head": (head,), "last:1": (last, head), "all": ("",)}[tune]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    parameters = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-2, fused=on_gpu)
    x = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(n, dtype=torch.long, device=device)
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        for values in (clf.pixels.mean, clf.pixels.std)
    )

    def loss() -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=FLAGS.dtype == "bfloat16"):
            logits = model((x / 255 - mean) / std)
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    compiled = torch.compile(loss) if on_gpu else loss  # a CPU would need a C++ compiler

    def work() -> None:
        for _ in range(CALLS):
            adamw.zero_grad(set_to_none=True)
            compiled().backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            adamw.step()
        if on_gpu:
            torch.cuda.synchronize()

    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        return work, torch.cuda.max_memory_allocated
    flags_of_child = [f"--{name}={FLAGS[name].value}" for name in ("batch_size", "size", "dtype")]
    return work, lambda: timing.run_child(CHILD, clf.arch, tune, *flags_of_child)


CHILD = """
import sys
from experiments.benchmarks import accelerator
accelerator.print_memory(*sys.argv[1:])
"""


def print_memory(arch: str, tune: str, *words: str) -> None:
    """Prints the bytes that steps in torch add on a CPU to this process, which has the network."""
    define_flags()
    FLAGS(["accelerator", *words])
    work, _ = torch_train(models.load(arch, weights="random")[0], tune)
    before = timing.private_mb()
    work()
    print(int(1e6 * (timing.peak_mb() - before)))


def products(clf: models.Classifier, tune: str) -> int:
    """Floating-point operations of the products in a step, per image.

    The forward pass, and for each trained stage the gradients of its input and of its kernels.
    """
    stages = summary.stages(clf)
    trained = {"head": 1, "last:1": 2, "all": len(stages)}[tune]
    return sum(s.flops for s in stages) + 2 * sum(s.flops for s in stages[-trained:])


def train(clf: models.Classifier, variables: Any, peers: dict[str, str]) -> Iterator[Row]:
    clf, n = clf.with_dtype(FLAGS.dtype), FLAGS.batch_size
    shape = (n, FLAGS.size, FLAGS.size, 3)
    images = np.random.default_rng(FLAGS.seed).integers(0, 256, shape, np.uint8)
    batch = jax.device_put(Examples(images, np.zeros(n, np.int32), np.ones(n, bool)))
    for tune in FLAGS.tune:
        work, memory = speed.train_step(clf, variables, tune, batch, calls=CALLS)
        calls, peak = {"tl": work}, lambda: 0
        if "torch" in peers:
            calls["torch"], peak = torch_train(clf, tune)
        measured = timing.rates(calls, FLAGS.rounds, n * CALLS)
        row = timing.rate_row(f"train, {tune}", clf.arch, measured["tl"])
        row["memory_gb"] = memory / 1e9
        row["peak_share"] = row["ours"] * products(clf, tune) / CHIPS[FLAGS.chip].flops
        if bytes_of_torch := peak():
            row["peer_memory_gb"] = bytes_of_torch / 1e9
        yield timing.compared(row, peers.get("torch"), measured.get("torch", ()))


# ---- the input ----


def attack(clf: models.Classifier, variables: Any) -> Iterator[Row]:
    n, rng = min(FLAGS.batch_size, 64), np.random.default_rng(FLAGS.seed)
    images01 = jnp.asarray(rng.random((n, FLAGS.size, FLAGS.size, 3), np.float32))
    search = attacks.get("pgd")(steps=CALLS, early_stop=False)
    program = attacks.make(search, clf.logits, norm=norms.LINF, goal=goals.UNTARGETED)
    mask = goals.class_mask([[0]] * n, len(inference.class_table(clf)))
    call = lambda: program(variables, jax.random.key(0), images01, mask, eps=1 / 255).images
    rates = timing.rates({"tl": lambda: jax.block_until_ready(call())}, FLAGS.rounds, n * CALLS)
    yield timing.rate_row("attack, PGD steps", clf.arch, rates["tl"], unit="image steps/s")


def ideal(clf: models.Classifier, variables: Any) -> Iterator[Row]:
    settings = grid.IdealSettings(steps=CALLS, size=FLAGS.size, frames=0, seed=FLAGS.seed)
    chosen = specs.class_objectives(clf, ",".join(map(str, range(16))))
    network = grid.network(clf, variables)
    call = grid.make_ascent([network], grid.make_cells(chosen, settings), settings)
    rates = timing.rates({"tl": lambda: jax.block_until_ready(call())}, FLAGS.rounds, 16 * CALLS)
    yield timing.rate_row("ideal, 16 images", clf.arch, rates["tl"], unit="steps/s")


def bank(clf: models.Classifier, variables: Any) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        files, rng = [], np.random.default_rng(FLAGS.seed)
        for i in range(FLAGS.files):  # smooth images of the size of a photograph
            small = rng.integers(0, 256, (12, 16, 3), np.uint8)
            files.append(Path(folder) / f"{i}.jpg")
            Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(files[-1])
        size = min(FLAGS.batch_size, len(files))

        def fill() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as cache:  # an empty bank
                inference.extract(clf, variables, files, cache=Path(cache), batch_size=size)

        def decode() -> None:
            for _ in data.load(files, clf.prepare, batch_size=size):
                pass

        calls = {"bank": fill, "decode": decode}
        rates = timing.rates(calls, min(FLAGS.rounds, 3), len(files), warm_up=1)
    row = timing.rate_row("bank, JPEG to features", clf.arch, rates["bank"])
    yield timing.compared(row, "decoding alone", rates["decode"])


# ---- the run ----


def rows(peers: dict[str, str]) -> Iterator[Row]:
    """The rows of all measurements that the flags name, until --minutes are over."""
    end = time.monotonic() + 60 * FLAGS.minutes
    clf, variables = models.load(FLAGS.arch, weights="random")
    clf, variables = clf.with_pixels(size=FLAGS.size), jax.device_put(variables)
    frozen = clf.fold_batch_norm(variables)
    works: dict[str, Callable[[], Iterator[Row]]] = {
        "train": lambda: train(clf, variables, peers),
        "attack": lambda: attack(clf, frozen),
        "ideal": lambda: ideal(clf, frozen),
        "bank": lambda: bank(clf, variables),
    }
    for kind in FLAGS.what:
        measured = works[kind]()
        while time.monotonic() < end and (row := next(measured, None)) is not None:
            yield row


def main(run: reporting.Run) -> None:
    sources.check_words("what", FLAGS.what, KINDS)
    sources.check_words("tune", FLAGS.tune, TUNES)
    backbones.get(FLAGS.arch)  # an unknown name is an error before the first row
    versions = {peer: sources.installed(peer, ("torch",)) for peer in FLAGS.peers}
    peers = {peer: version for peer, version in versions.items() if version}
    measured = timing.collect(run, rows(peers), pages.bench.line)
    result = {"device": jax.devices()[0].device_kind, "rows": measured, "rounds": FLAGS.rounds}
    result |= {name: FLAGS[name].value for name in ("batch_size", "size", "dtype", "chip")}
    print(pages.finish(run, result))


if __name__ == "__main__":
    cli.launch("accelerator", main, define_flags)
