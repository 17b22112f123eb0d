"""Ports compared with the libraries they come from, layer by layer, on random or given weights.

  ./launch.sh parity --all
  ./launch.sh parity --arch=resnet50 --source=timm
  ./launch.sh parity --arch=efficientnet_lite0 --weights=FILE --against=timm:tf_efficientnet_lite0

The library makes the network, which is filled with seeded weights, saved in the library's own
format and read by `tl.load`; the library computes in float64. An error is the largest difference in
units of the largest value. If a port diverges, common causes are tried on tl's side until one of
them, or a pair, removes the error of the first layer that differs.

Expected: the largest error of all pairs is 1.9e-6; the tolerance is 1e-5 (`parity` in RESULTS.md).
Cost: 16 minutes on two CPU cores for --all.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.benchmarks import sources
from tl import backbones, cli, models, pages, paths, pixels, reporting
from tl.evaluation import divergence
from tl.evaluation.divergence import Case, normalized
from tl.models import Classifier
from tl.pages import parity as page
from tl.types import Variables
from tl.weights import tables

FLAGS = flags.FLAGS
BATCH = 2
# With more pairs the page has no table per layer; metrics.jsonl has all errors.
LAYERS_SHOWN = 4


def define_flags() -> None:
    flags.DEFINE_list("arch", "", "Architectures, by timm's name.")
    flags.DEFINE_bool("all", False, "Every architecture.")
    flags.DEFINE_list("source", ",".join(sources.LIBRARIES), "Libraries to compare with.")
    flags.DEFINE_string("weights", "", "Weights file to compare on. Default: seeded weights.")
    flags.DEFINE_string(
        "against", "", "LIBRARY:CALL, another network to compare one architecture with."
    )
    flags.DEFINE_list("size", "224,193x161", "Sizes of the images: side or HEIGHTxWIDTH.")


# ---- the networks' outputs ----


def images(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """f32[2 h w 3] in [0, 1]."""
    return np.random.RandomState(seed).uniform(size=(BATCH, *size, 3)).astype(np.float32)


def case(network: sources.Network, clf: Classifier, images01: np.ndarray) -> Case:
    """A library's output for a batch, normalized in float64 there and in float32 here."""
    source = tables.sources(clf.spec)[network.source]
    ends = source.endpoints(clf.spec.module)
    ends = {end: ends[end] for end in divergence.in_forward_order(clf.spec, ends)}
    result = sources.run(network, normalized(images01, clf.pixels), ends, source.pooled)
    want = dict(result.endpoints) | {"features": result.features}
    if result.logits is not None:
        want["logits"] = result.logits
    return Case(np.asarray(pixels.normalize(clf.pixels, jnp.asarray(images01))), want)


# ---- pairs of a network and a source ----


Sizes = Sequence[tuple[int, int]]
Row = dict[str, Any]
Comparison = tuple[Row, dict[str, float]]
"""A row of `result.json`, and the error of every endpoint."""


class Pair(NamedTuple):
    """An architecture, and the network of a library that it should equal."""

    arch: str
    source: str
    call: str


def check(pair: Pair, form: str, sizes: Sizes, seed: int = 0) -> Comparison:
    """Compares a pair on seeded weights, which tl reads from a file that the library wrote."""
    network = sources.fill(sources.make(pair.source, pair.call), seed)
    with tempfile.TemporaryDirectory() as folder:
        path = sources.save(network, Path(folder) / "weights", form)
        clf, variables = models.load(pair.arch, weights=path)
    return _compared({**pair._asdict(), "form": form}, network, clf, variables, sizes, seed)


def check_file(pair: Pair, path: Path, sizes: Sizes, seed: int = 0) -> Comparison:
    """Compares a pair on the weights of a file, which both sides read."""
    clf, variables = models.load(pair.arch, weights=path)
    if clf.arch != pair.arch:
        raise ValueError(f"{path} holds another form of {pair.arch}; use --arch={clf.arch}")
    classes = len(clf.classes.entries) if clf.classes else models.IMAGENET_CLASSES
    network = sources.load(sources.make(pair.source, pair.call, classes), path)
    return _compared({**pair._asdict(), "form": path.name}, network, clf, variables, sizes, seed)


def _compared(
    row: Row,
    network: sources.Network,
    clf: Classifier,
    variables: Variables,
    sizes: Sizes,
    seed: int,
) -> Comparison:
    cases = [case(network, clf, images(size, seed)) for size in sizes]
    variables = jax.device_put(variables)
    errors = divergence.compare(clf, variables, cases)
    first = divergence.first_divergence(errors)
    cause = divergence.diagnose(clf, variables, cases, first) if first else None
    largest = {"max_rel_error": max(errors.values()), "first_divergence": first, "cause": cause}
    return {**row, **largest}, errors


# ---- the run ----


def parse_size(word: str) -> tuple[int, int]:
    """(height, width) of `224` or `193x161`."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", word)
    if match is None:
        raise ValueError(f"`size` is not a size: got {word!r}, expected 224 or 193x161")
    return int(match[1]), int(match[2] or match[1])


def pairs_of_flags() -> list[Pair]:
    """The pairs that the flags name."""
    if bool(FLAGS.arch) == FLAGS.all:
        raise ValueError("no networks to compare; give --arch=NAME[,NAME] or --all")
    for library in FLAGS.source:
        if library not in sources.LIBRARIES:
            raise ValueError(
                f"unknown `source`: got {library!r}, expected {', '.join(sources.LIBRARIES)}"
            )
    archs = [backbones.get(arch).name for arch in FLAGS.arch]
    archs = list(backbones.names()) if FLAGS.all else archs
    if (FLAGS.weights or FLAGS.against) and len(archs) > 1:
        raise ValueError(
            f"`weights` and `against` compare one network: got {len(archs)}; give one --arch"
        )
    if FLAGS.against:
        source, _, call = FLAGS.against.partition(":")
        libraries = [name for name, made_by in backbones.get(archs[0]).sources.items() if made_by]
        if source not in libraries:
            raise ValueError(
                f"`against` is not a library that {archs[0]} is compared with: got {source!r}, "
                f"expected {', '.join(libraries)}"
            )
        return [Pair(archs[0], source, call)]
    result = [
        Pair(arch, source, call)
        for arch in archs
        for source, call in backbones.get(arch).sources.items()
        if call and source in FLAGS.source
    ]
    if not result:
        raise ValueError(f"none of {', '.join(FLAGS.source)} has {', '.join(archs)}")
    return result


def compare_pairs(
    run: reporting.Run, todo: Sequence[Pair], sizes: Sizes, weights: Path | None
) -> list[Comparison]:
    """The row and the errors of each pair, logged and printed one by one.

    With a weights file, the pairs whose library does not read it are left out.
    """
    results: list[Comparison] = []
    turns: Counter[str] = Counter()
    for pair in todo:
        forms = sources.FORMS[pair.source]
        form = forms[turns[pair.source] % len(forms)]  # each format of each library in turn
        turns[pair.source] += 1
        try:
            if weights:
                row, errors = check_file(pair, weights, sizes, FLAGS.seed)
            else:
                row, errors = check(pair, form, sizes, FLAGS.seed)
        except ValueError as problem:
            failed = {"max_rel_error": None, "first_divergence": None, "cause": str(problem)}
            row, errors = {**pair._asdict(), "form": form, **failed}, {}
        results.append((row, errors))
        run.log(row | {"errors": errors})
        if len(todo) == 1 or weights:
            print("\n".join(f"  {end:24s} {value:.1e}" for end, value in errors.items()))
        print(f"[{len(results)}/{len(todo)}] {page.line(row)}", flush=True)
    read = [result for result in results if result[1]]
    return read if weights and read else results


def main(run: reporting.Run) -> None:
    todo, sizes = pairs_of_flags(), [parse_size(word) for word in FLAGS.size]
    weights = paths.expanded(FLAGS.weights) if FLAGS.weights else None
    if weights and not weights.is_file():
        raise ValueError(
            f"`weights` is not a file: got {weights}, expected a weights file of {todo[0].arch}"
        )
    for library in dict.fromkeys(pair.source for pair in todo):
        with sources.imported(library):  # a missing library is an error before the work
            pass
    results = compare_pairs(run, todo, sizes, weights)
    rows = [row for row, _ in results]
    few = results if len(rows) <= LAYERS_SHOWN else []
    result = {"rows": rows, "errors": [errors for _, errors in few], "sizes": sizes}
    report = pages.finish(run, {**result, "batch_size": BATCH, "tolerance": divergence.TOLERANCE})
    header, *lines = page.summary(rows)
    print(reporting.columns(header, lines))
    print(f"{page.count(rows)}, {page.largest(rows)}, {run.seconds:.0f} s\n{report}")
    if wrong := page.failures(rows):
        raise ValueError(
            f"{len(wrong)} of {page.count(rows)} diverge or cannot be compared; the first: "
            f"{page.line(wrong[0])}"
        )


if __name__ == "__main__":
    cli.launch("parity", main, define_flags)
