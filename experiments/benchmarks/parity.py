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

import dataclasses
import functools
import inspect
import itertools
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments.benchmarks import sources
from tl import backbones, cli, models, pages, paths, pixels, reporting
from tl.backbones import fold
from tl.models import Classifier
from tl.pages import parity as page
from tl.paths import flatten, unflatten
from tl.types import Mode, Variables
from tl.weights import tables

FLAGS = flags.FLAGS
TOLERANCE = 1e-5
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


# ---- comparison ----


class Case(NamedTuple):
    """One batch and the library's output.

    Attributes:
      inputs: f32[b h w c], normalized.
      want: the library's endpoints, `features` and `logits`, float64, in the order of the forward
        pass.
    """

    inputs: np.ndarray
    want: dict[str, np.ndarray]


def images(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """f32[2 h w 3] in [0, 1]."""
    return np.random.RandomState(seed).uniform(size=(BATCH, *size, 3)).astype(np.float32)


def case(network: sources.Network, clf: Classifier, images01: np.ndarray) -> Case:
    """A library's output for a batch, normalized in float64 there and in float32 here."""
    source = tables.sources(clf.spec)[network.source]
    ends = source.endpoints(clf.spec.module)

    def place(end: str) -> tuple[int, float]:
        """Position in the forward pass; a stage is at its last block."""
        stage, _, block = end.partition("/")
        return clf.spec.endpoints.index(stage), int(re.sub(r"\D", "", block)) if block else np.inf

    ends = {end: ends[end] for end in sorted(ends, key=place)}
    result = sources.run(network, sources.normalized(images01, clf.pixels), ends, source.pooled)
    want = dict(result.endpoints) | {"features": result.features}
    if result.logits is not None:
        want["logits"] = result.logits
    return Case(np.asarray(pixels.normalize(clf.pixels, jax.numpy.asarray(images01))), want)


def apply(clf: Classifier, mode: Mode, variables: Variables, inputs: Any) -> dict[str, jax.Array]:
    """tl's endpoints, `features` and `logits`, for normalized inputs."""
    channels = inputs.shape[-1]
    clf = clf.with_pixels(mean=(0.0,) * channels, std=(1.0,) * channels, channels="rgb")
    out = clf.apply(variables, inputs, mode)
    logits = {} if out.logits is None else {"logits": out.logits}
    return {**out.endpoints, "features": out.features, **logits}


@functools.lru_cache(maxsize=1)  # consecutive sources of one architecture share a program
def _compiled(
    arch: str, module: Any, head: Any
) -> Callable[[Variables, np.ndarray], dict[str, jax.Array]]:
    spec = dataclasses.replace(backbones.get(arch), module=module)
    clf = Classifier(arch, spec, head, pixels.PixelSpec(), None, models.Provenance("", ""))
    return jax.jit(functools.partial(apply, clf, Mode.EVAL))


def error(got: Any, want: np.ndarray) -> float:
    """Largest difference in units of the largest value; infinite for another shape or NaN."""
    got = np.asarray(got, np.float64)
    if got.shape != want.shape:
        return float("inf")
    value = float(np.abs(got - want).max() / (np.abs(want).max() or 1.0))
    return value if np.isfinite(value) else float("inf")


def compare(clf: Classifier, variables: Variables, cases: Sequence[Case]) -> dict[str, float]:
    """Errors of the endpoints, `features` and `logits` over all cases, in order of computation.

    Raises:
      ValueError: an endpoint that only one of the two has.
    """
    errors: dict[str, float] = {}
    for inputs, want in cases:
        got = _compiled(clf.arch, clf.spec.module, clf.head)(variables, inputs)
        if lone := (set(got) ^ set(want)) - {"logits"}:
            raise ValueError(
                f"{', '.join(sorted(lone))}: endpoints of only one of the two networks; complete "
                "`endpoints`"
            )
        for end in (end for end in want if end in got):
            errors[end] = max(errors.get(end, 0.0), error(got[end], want[end]))
    return errors


def first_divergence(errors: Mapping[str, float]) -> str | None:
    """The first endpoint whose error is above the tolerance."""
    return next((end for end, value in errors.items() if value > TOLERANCE), None)


# ---- causes of a divergence ----


class State(NamedTuple):
    """tl's side of the comparison under the assumption of a cause."""

    module: Any
    variables: Variables
    inputs: np.ndarray
    mode: Mode = Mode.EVAL


class Suspect(NamedTuple):
    """A possible cause and the change that corrects it; at most one cause of a kind can apply."""

    kind: str
    words: str
    change: Callable[[State], State]


def suspects(clf: Classifier, variables: Variables) -> list[Suspect]:
    """Possible causes for this network."""
    module, names = clf.spec.module, set(flatten(variables))
    flip = lambda state: state._replace(inputs=state.inputs[..., ::-1])
    result = [Suspect("channels", "channel order of the input (RGB, BGR)", flip)]
    if hasattr(module, "padding"):
        for padding in (p for p in ("same", "torch", "after") if p != module.padding):
            words = f"padding ({padding!r} there, {module.padding!r} here)"
            result.append(Suspect("padding", words, _module(padding=padding)))
    if "stride_in" in inspect.signature(getattr(module, "block", lambda: None)).parameters:
        for place in ("1x1", "3x3"):
            change = _module(block=functools.partial(module.block, stride_in=place))
            result.append(Suspect("stride", f"place of the stride (in the {place} there)", change))
    if any(name.startswith("batch_stats/") for name in names):
        tree = variables["batch_stats"]["backbone"], variables["params"]["backbone"]
        here = next(iter(fold.norms(module, tree[1], tree[0]).values())).eps
        for eps in (e for e in (1e-5, 1.001e-5, 1e-3) if e != here):  # torch, Keras, TensorFlow
            words = f"eps of BatchNorm ({eps:g} there, {here:g} here)"
            change = _leaves(r"batch_stats/.*/var", lambda a, e=eps: a + np.float32(e - here))
            result.append(Suspect("eps", words, change))
        zeros = _leaves(r"batch_stats/.*", lambda a: a * 0)
        ones = _leaves(r"batch_stats/.*/var", lambda a: a + 1)
        training = lambda state: state._replace(mode=Mode.TRAIN)
        unset = lambda state: ones(zeros(state))
        words = "BatchNorm by the batch there (training mode)"
        result.append(Suspect("statistics", words, training))
        result.append(Suspect("statistics", "BatchNorm's statistics (0 and 1 there)", unset))
    fc6 = "params/head/fc6/kernel"
    if fc6 in names:
        from_chw = _leaves(fc6, lambda a: _reorder(a, (512, 7, 7), (1, 2, 0)))
        for order, change in (("first", from_chw), ("last", _leaves(fc6, _to_chw))):
            words = f"flatten order of the first dense layer (channels {order} there)"
            result.append(Suspect("flatten", words, change))
    for axes, swap in (
        ("height and width", _swap_height_and_width),
        ("in and out, where they are as many", _swap_in_and_out),
    ):
        change = _leaves(r"params/.*kernel", swap)
        result.append(Suspect("kernel", f"kernels transposed ({axes})", change))
    return result


def _module(**fields: Any) -> Callable[[State], State]:
    return lambda state: state._replace(module=state.module.clone(**fields))


def _leaves(pattern: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[State], State]:
    def changed(state: State) -> State:
        leaves = {
            name: change(np.asarray(a)) if re.fullmatch(pattern, name) else a
            for name, a in flatten(state.variables).items()
        }
        return state._replace(variables={"batch_stats": {}, **unflatten(leaves)})

    return changed


def _reorder(kernel: np.ndarray, shape: tuple[int, ...], order: tuple[int, ...]) -> np.ndarray:
    """A dense kernel whose rows run over three axes of `shape`, with these axes in `order`."""
    return kernel.reshape(*shape, -1).transpose(*order, 3).reshape(kernel.shape)


def _to_chw(kernel: np.ndarray) -> np.ndarray:
    return _reorder(kernel, (7, 7, 512), (2, 0, 1))


def _swap_height_and_width(kernel: np.ndarray) -> np.ndarray:
    return kernel.swapaxes(0, 1) if kernel.ndim == 4 else kernel


def _swap_in_and_out(kernel: np.ndarray) -> np.ndarray:
    return kernel.swapaxes(-1, -2) if kernel.shape[-1] == kernel.shape[-2] else kernel


def diagnose(clf: Classifier, variables: Variables, cases: Sequence[Case], end: str) -> str:
    """The likely cause of a divergence: one suspect, or two, that bring `end` within tolerance."""

    @functools.cache
    def compiled(module: Any, mode: Mode) -> Callable[[Variables, np.ndarray], jax.Array]:
        changed = dataclasses.replace(clf, spec=dataclasses.replace(clf.spec, module=module))
        return jax.jit(lambda variables, inputs: apply(changed, mode, variables, inputs)[end])

    def remaining(*some: Suspect) -> float:
        """The error of `end` after the changes of some suspects."""
        if len({suspect.kind for suspect in some}) < len(some):
            return float("inf")
        errors = []
        for inputs, want in cases:
            state = State(clf.spec.module, variables, inputs)
            for suspect in some:
                state = suspect.change(state)
            if end in want:
                try:
                    got = compiled(state.module, state.mode)(state.variables, state.inputs)
                except (TypeError, ValueError):  # the changed network does not fit its sizes
                    return float("inf")
                errors.append(error(got, want[end]))
        return max(errors)

    common, unchanged = suspects(clf, variables), remaining()
    best: tuple[float, tuple[Suspect, ...]] = (unchanged, ())
    for some in (itertools.combinations(common, 1), itertools.combinations(common, 2)):
        tried = [(remaining(*combination), combination) for combination in some]
        best = min([best, *tried], key=lambda pair: pair[0])
        if best[0] <= TOLERANCE:
            return " and ".join(suspect.words for suspect in best[1])
    if best[0] < unchanged / 10:
        return "in part: " + " and ".join(suspect.words for suspect in best[1])
    return "none of the common causes; check this layer's module and its rows in the rename table"


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
    cases = [case(network, clf, images(size, seed)) for size in sizes]
    return _compared({**pair._asdict(), "form": form}, clf, variables, cases)


def check_file(pair: Pair, path: Path, sizes: Sizes, seed: int = 0) -> Comparison:
    """Compares a pair on the weights of a file, which both sides read."""
    clf, variables = models.load(pair.arch, weights=path)
    if clf.arch != pair.arch:
        raise ValueError(f"{path} holds another form of {pair.arch}; use --arch={clf.arch}")
    classes = len(clf.classes.entries) if clf.classes else models.IMAGENET_CLASSES
    network = sources.load(sources.make(pair.source, pair.call, classes), path)
    cases = [case(network, clf, images(size, seed)) for size in sizes]
    return _compared({**pair._asdict(), "form": path.name}, clf, variables, cases)


def _compared(row: Row, clf: Classifier, variables: Variables, cases: Sequence[Case]) -> Comparison:
    variables = jax.device_put(variables)
    errors = compare(clf, variables, cases)
    first = first_divergence(errors)
    cause = diagnose(clf, variables, cases, first) if first else None
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
    report = pages.finish(run, {**result, "batch_size": BATCH, "tolerance": TOLERANCE})
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
