"""Every network of the zoo against the library it comes from, layer by layer, on random or on given weights.

  ./launch.sh parity --all
  ./launch.sh parity --arch=resnet50 --source=timm
  ./launch.sh parity --arch=efficientnet_lite0 --weights=FILE --against=timm:tf_efficientnet_lite0

The library makes the network, it is filled with seeded weights, saved in the library's own format and read by `tl.load`; the
library computes in float64. An error is the largest difference in units of the largest value. Where a port diverges, the
usual suspects are tried on our side until one mends the first layer that differs.
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
from tl import backbones, cli, models, pixels, reporting
from tl.backbones import fold
from tl.models import Classifier
from tl.paths import flatten, unflatten
from tl.reporting import Html
from tl.types import Mode, Variables
from tl.weights import tables

FLAGS = flags.FLAGS
TOLERANCE = 1e-5
BATCH = 2
LAYERS_SHOWN = 4  # of more pairs the page has no table for each; metrics.jsonl has them all


def define_flags() -> None:
    flags.DEFINE_list("arch", "", "Architectures, by timm's name.")
    flags.DEFINE_bool("all", False, "Every architecture.")
    flags.DEFINE_list("source", ",".join(sources.LIBRARIES), "Libraries to compare with.")
    flags.DEFINE_string(
        "weights", "", "A weights file to compare on, in place of seeded random weights."
    )
    flags.DEFINE_string(
        "against",
        "",
        "LIBRARY:CALL, the network to compare one architecture with, where it is another's.",
    )
    flags.DEFINE_list("size", "224,193x161", "Sizes of the pictures: side or HEIGHTxWIDTH.")


# --- comparing ---------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """One batch, and what the library makes of it.

    Attributes:
      inputs: f32[b h w c], normalised.
      want: the library's endpoints, `features` and `logits`, float64, in the order of the forward pass.
    """

    inputs: np.ndarray
    want: dict[str, np.ndarray]


def images(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """f32[2 h w 3] in [0, 1]."""
    return np.random.RandomState(seed).uniform(size=(BATCH, *size, 3)).astype(np.float32)


def case(network: sources.Network, clf: Classifier, images01: np.ndarray) -> Case:
    """A library's answer to a batch, which is normalised in float64 there and in float32 here."""
    source = tables.sources(clf.spec)[network.source]
    ends = source.endpoints(clf.spec.module)

    def place(end: str) -> tuple[int, float]:
        stage, _, block = end.partition("/")
        return clf.spec.endpoints.index(stage), int(
            re.sub(r"\D", "", block)
        ) if block else np.inf  # a stage is its last block

    ends = {end: ends[end] for end in sorted(ends, key=place)}
    result = sources.run(network, sources.normalized(images01, clf.pixels), ends, source.pooled)
    want = dict(result.endpoints) | {"features": result.features}
    if result.logits is not None:
        want["logits"] = result.logits
    return Case(np.asarray(pixels.normalize(clf.pixels, jax.numpy.asarray(images01))), want)


def apply(clf: Classifier, mode: Mode, variables: Variables, inputs: Any) -> dict[str, jax.Array]:
    """Our endpoints, `features` and `logits`, on inputs that are normalised already."""
    channels = inputs.shape[-1]
    clf = clf.with_pixels(mean=(0.0,) * channels, std=(1.0,) * channels, channels="rgb")
    out = clf.apply(variables, inputs, mode)
    return (
        dict(out.endpoints)
        | {"features": out.features}
        | ({} if out.logits is None else {"logits": out.logits})
    )


@functools.lru_cache(
    maxsize=1
)  # an architecture's sources come one after another, and share a compiled program
def _compiled(
    arch: str, module: Any, head: Any
) -> Callable[[Variables, np.ndarray], dict[str, jax.Array]]:
    spec = dataclasses.replace(backbones.get(arch), module=module)
    clf = Classifier(arch, spec, head, pixels.PixelSpec(), None, models.Provenance("", ""))
    return jax.jit(functools.partial(apply, clf, Mode.EVAL))


def error(got: Any, want: np.ndarray) -> float:
    """Largest difference in units of the largest value; infinite where shapes differ or a number is none."""
    got = np.asarray(got, np.float64)
    if got.shape != want.shape:
        return float("inf")
    value = float(np.abs(got - want).max() / (np.abs(want).max() or 1.0))
    return value if np.isfinite(value) else float("inf")


def compare(clf: Classifier, variables: Variables, cases: Sequence[Case]) -> dict[str, float]:
    """The error of every endpoint, of `features` and of `logits`, over all cases, in the order of the forward pass.

    Raises:
      ValueError: an endpoint that only one of the two has.
    """
    errors: dict[str, float] = {}
    for inputs, want in cases:
        got = _compiled(clf.arch, clf.spec.module, clf.head)(variables, inputs)
        if lone := (set(got) ^ set(want)) - {"logits"}:
            raise ValueError(
                f"{', '.join(sorted(lone))}: not an endpoint of both; complete the table of `endpoints`"
            )
        for end in (end for end in want if end in got):
            errors[end] = max(errors.get(end, 0.0), error(got[end], want[end]))
    return errors


def first_divergence(errors: Mapping[str, float]) -> str | None:
    """The first endpoint whose error is above the tolerance."""
    return next((end for end, value in errors.items() if value > TOLERANCE), None)


# --- the usual suspects ------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """Our side as it would be if a suspect were guilty."""

    module: Any
    variables: Variables
    inputs: np.ndarray
    mode: Mode = Mode.EVAL


class Suspect(NamedTuple):
    """What may be wrong with a port, in words, and the change that would mend it; those of one kind exclude each other."""

    kind: str
    words: str
    change: Callable[[State], State]


def suspects(clf: Classifier, variables: Variables) -> list[Suspect]:
    """What can be wrong with this network."""
    module, names = clf.spec.module, set(flatten(variables))
    found = [
        Suspect(
            "channels",
            "channel order of the input (RGB, BGR)",
            lambda s: s._replace(inputs=s.inputs[..., ::-1]),
        )
    ]
    if hasattr(module, "padding"):
        for padding in (p for p in ("same", "torch", "after") if p != module.padding):
            words = f"padding ({padding!r} there, {module.padding!r} here)"
            found.append(Suspect("padding", words, _module(padding=padding)))
    if "stride_in" in inspect.signature(getattr(module, "block", lambda: None)).parameters:
        for place in ("1x1", "3x3"):
            change = _module(block=functools.partial(module.block, stride_in=place))
            found.append(Suspect("stride", f"place of the stride (in the {place} there)", change))
    stats = {end for end in names if end.startswith("batch_stats/")}
    if stats:
        tree = variables["batch_stats"]["backbone"], variables["params"]["backbone"]
        here = next(iter(fold.norms(module, tree[1], tree[0]).values())).eps
        for eps in (
            e for e in (1e-5, 1.001e-5, 1e-3) if e != here
        ):  # torch, Keras' ResNet, TensorFlow
            words = f"eps of BatchNorm ({eps:g} there, {here:g} here)"
            found.append(
                Suspect(
                    "eps",
                    words,
                    _leaves(r"batch_stats/.*/var", lambda a, e=eps: a + np.float32(e - here)),
                )
            )
        unset = (
            _leaves(r"batch_stats/.*", lambda a: a * 0),
            _leaves(r"batch_stats/.*/var", lambda a: a + 1),
        )
        found += [
            Suspect(
                "statistics",
                "BatchNorm by the batch there (training mode)",
                lambda s: s._replace(mode=Mode.TRAIN),
            ),
            Suspect(
                "statistics",
                "BatchNorm's statistics (0 and 1 there)",
                lambda s: unset[1](unset[0](s)),
            ),
        ]
    if "params/head/fc6/kernel" in names:
        fc6 = "params/head/fc6/kernel"
        from_chw, to_chw = (
            _leaves(fc6, lambda a: _reorder(a, (512, 7, 7), (1, 2, 0))),
            _leaves(fc6, _to_chw),
        )
        found += [
            Suspect(
                "flatten", "flatten order of the first dense layer (channels first there)", from_chw
            ),
            Suspect(
                "flatten", "flatten order of the first dense layer (channels last there)", to_chw
            ),
        ]
    swap_hw, swap_io = (
        _leaves(r"params/.*kernel", f) for f in (_swap_height_and_width, _swap_in_and_out)
    )
    found += [
        Suspect("kernel", "kernels transposed (height and width)", swap_hw),
        Suspect("kernel", "kernels transposed (in and out, where they are as many)", swap_io),
    ]
    return found


def _module(**fields: Any) -> Callable[[State], State]:
    return lambda state: state._replace(module=state.module.clone(**fields))


def _leaves(pattern: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[State], State]:
    def changed(state: State) -> State:
        leaves = {
            n: change(np.asarray(a)) if re.fullmatch(pattern, n) else a
            for n, a in flatten(state.variables).items()
        }
        return state._replace(variables={"batch_stats": {}, **unflatten(leaves)})

    return changed


def _reorder(kernel: np.ndarray, was: tuple[int, ...], order: tuple[int, ...]) -> np.ndarray:
    """The rows of a dense kernel, that run over three axes `was`, with those axes in another order."""
    return kernel.reshape(*was, -1).transpose(*order, 3).reshape(kernel.shape)


def _to_chw(kernel: np.ndarray) -> np.ndarray:
    return _reorder(kernel, (7, 7, 512), (2, 0, 1))


def _swap_height_and_width(kernel: np.ndarray) -> np.ndarray:
    return kernel.swapaxes(0, 1) if kernel.ndim == 4 else kernel


def _swap_in_and_out(kernel: np.ndarray) -> np.ndarray:
    return kernel.swapaxes(-1, -2) if kernel.shape[-1] == kernel.shape[-2] else kernel


def diagnose(clf: Classifier, variables: Variables, cases: Sequence[Case], end: str) -> str:
    """The likely cause where a port first diverges: the suspect, or two of them, that bring this endpoint within tolerance."""

    @functools.cache
    def compiled(module: Any, mode: Mode) -> Callable[[Variables, np.ndarray], jax.Array]:
        changed = dataclasses.replace(clf, spec=dataclasses.replace(clf.spec, module=module))
        return jax.jit(lambda variables, inputs: apply(changed, mode, variables, inputs)[end])

    def left(*some: Suspect) -> float:
        if len({suspect.kind for suspect in some}) < len(some):
            return float("inf")
        errors = []
        for inputs, want in cases:
            state = functools.reduce(
                lambda s, suspect: suspect.change(s),
                some,
                State(clf.spec.module, variables, inputs),
            )
            if end in want:
                try:
                    got = compiled(state.module, state.mode)(state.variables, state.inputs)
                except (TypeError, ValueError):  # the change makes no network of these sizes
                    return float("inf")
                errors.append(error(got, want[end]))
        return max(errors)

    usual = suspects(clf, variables)
    best: tuple[float, tuple[Suspect, ...]] = (left(), ())
    nothing = best[0]
    for some in (itertools.combinations(usual, 1), itertools.combinations(usual, 2)):
        best = min(
            [best, *((left(*suspects), suspects) for suspects in some)], key=lambda pair: pair[0]
        )
        if best[0] <= TOLERANCE:
            return " and ".join(suspect.words for suspect in best[1])
    if best[0] < nothing / 10:
        return "not only, but also: " + " and ".join(suspect.words for suspect in best[1])
    return "none of the usual suspects; look at this layer's rows in the rename table and at its module"


# --- pairs of a network and a source -----------------------------------------------------------------------------------


class Pair(NamedTuple):
    """An architecture, and the network of a library that it is to equal."""

    arch: str
    source: str
    call: str


def pairs(archs: Sequence[str], libraries: Sequence[str]) -> list[Pair]:
    """Every pair of these architectures and libraries that there is."""
    return [
        Pair(arch, source, call)
        for arch in archs
        for source, call in backbones.get(arch).sources.items()
        if call and source in libraries
    ]


def check(
    pair: Pair, form: str, sizes: Sequence[tuple[int, int]], seed: int = 0
) -> tuple[dict[str, Any], dict[str, float]]:
    """Compares one pair on seeded weights, through a file of the library's: (its row of `result.json`, every error)."""
    network = sources.fill(sources.make(pair.source, pair.call), seed)
    with tempfile.TemporaryDirectory() as folder:
        path = sources.save(network, Path(folder) / "weights", form)
        clf, variables = models.load(pair.arch, weights=path)
    return _row(pair, form, network, clf, variables, sizes, seed)


def check_file(
    pair: Pair, path: Path, sizes: Sequence[tuple[int, int]], seed: int = 0
) -> tuple[dict, dict[str, float]]:
    """Compares one pair on the weights of a file, which both sides read."""
    clf, variables = models.load(pair.arch, weights=path)
    if clf.arch != pair.arch:
        raise ValueError(f"{path} holds another form of {pair.arch}; take --arch={clf.arch}")
    classes = len(clf.classes.entries) if clf.classes else models.IMAGENET_CLASSES
    network = sources.load(sources.make(pair.source, pair.call, classes), path)
    return _row(pair, path.name, network, clf, variables, sizes, seed)


def _row(
    pair: Pair,
    form: str,
    network: sources.Network,
    clf: Classifier,
    variables: Variables,
    sizes: Sequence[tuple[int, int]],
    seed: int,
) -> tuple[dict[str, Any], dict[str, float]]:
    cases = [case(network, clf, images(size, seed)) for size in sizes]
    variables = jax.device_put(variables)
    errors = compare(clf, variables, cases)
    first = first_divergence(errors)
    row = {
        **pair._asdict(),
        "form": form,
        "max_rel_error": max(errors.values()),
        "first_divergence": first,
        "cause": diagnose(clf, variables, cases, first) if first else None,
    }
    return row, errors


def size(word: str) -> tuple[int, int]:
    """`224` or `193x161`."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", word)
    if match is None:
        raise ValueError(f"--size={word!r} is no size; write it as 224 or 193x161")
    return int(match[1]), int(match[2] or match[1])


def asked() -> list[Pair]:
    """The pairs that the flags name."""
    if bool(FLAGS.arch) == FLAGS.all:
        raise ValueError("say which networks to compare: --arch=NAME[,NAME] or --all")
    unknown = [library for library in FLAGS.source if library not in sources.LIBRARIES]
    if unknown:
        raise ValueError(
            f"--source={unknown[0]} is no library to compare with; take of {', '.join(sources.LIBRARIES)}"
        )
    archs = (
        list(backbones.names()) if FLAGS.all else [backbones.get(arch).name for arch in FLAGS.arch]
    )
    if (FLAGS.weights or FLAGS.against) and len(archs) > 1:
        raise ValueError("--weights and --against compare one network: give one --arch")
    if FLAGS.against:
        source, _, call = FLAGS.against.partition(":")
        known = [library for library, made in backbones.get(archs[0]).sources.items() if made]
        if source not in known:
            raise ValueError(
                f"--against={FLAGS.against}: {archs[0]} is compared with {', '.join(known)}, not {source!r}"
            )
        return [Pair(archs[0], source, call)]
    found = pairs(archs, FLAGS.source)
    if not found:
        raise ValueError(f"none of {', '.join(FLAGS.source)} has {', '.join(archs)}")
    return found


def main(run: reporting.Run) -> None:
    todo, sizes = asked(), [size(word) for word in FLAGS.size]
    weights = Path(FLAGS.weights).expanduser()
    if FLAGS.weights and not weights.is_file():
        raise ValueError(f"no weights file at {weights}; give the path of a file of {todo[0].arch}")
    for library in dict.fromkeys(
        pair.source for pair in todo
    ):  # what is not installed is told before the work
        with sources.imported(library):
            pass
    rows, layers = [], []
    turns: Counter[str] = Counter()
    for pair in todo:
        forms = sources.FORMS[pair.source]
        form = forms[turns[pair.source] % len(forms)]  # over the run, every form of every library
        turns[pair.source] += 1
        try:
            if FLAGS.weights:
                row, errors = check_file(pair, weights, sizes, FLAGS.seed)
            else:
                row, errors = check(pair, form, sizes, FLAGS.seed)
        except ValueError as problem:
            row = {
                **pair._asdict(),
                "form": form,
                "max_rel_error": None,
                "first_divergence": None,
                "cause": str(problem),
            }
            errors = {}
        rows.append(row)
        layers.append(errors)
        run.log(row | {"errors": errors})
        if len(todo) == 1 or FLAGS.weights:
            print("\n".join(f"  {end:24s} {value:.1e}" for end, value in errors.items()))
        print(f"[{len(rows)}/{len(todo)}] {_line(row)}", flush=True)
    if FLAGS.weights and any(
        layers
    ):  # of the libraries that have this network, one may not take the file
        rows, layers = zip(
            *((row, errors) for row, errors in zip(rows, layers, strict=True) if errors),
            strict=True,
        )
    compared = [row["max_rel_error"] for row in rows if row["max_rel_error"] is not None]
    wrong = [row for row in rows if row["max_rel_error"] is None or row["first_divergence"]]
    table = summary(rows)
    shapes = ", ".join(f"{h} x {w}" for h, w in sizes)
    count = f"{len(rows)} pair{'s' * (len(rows) != 1)}"
    largest = f"largest error {max(compared):.1e}" if compared else "none could be compared"
    lead = (
        f"{count} of a network and its source, batch {BATCH} at {shapes} pixels, float32 here and float64 there. "
        "An error is the largest difference in units of the largest value, over logits, pooled features and every endpoint; "
        f"a pair agrees where it is at most {TOLERANCE:g}. {largest.capitalize()}."
    )
    sections = [reporting.section("Architecture x source", reporting.table(table[1:], table[0]))]
    if wrong:
        cells = [
            (row["arch"], row["source"], row["first_divergence"] or "not compared", row["cause"])
            for row in wrong
        ]
        header = ("architecture", "source", "first divergence", "likely cause")
        sections.insert(0, reporting.section("Where they part", reporting.table(cells, header)))
    if len(rows) <= LAYERS_SHOWN:
        sections += [_layers(row, errors) for row, errors in zip(rows, layers, strict=True)]
    run.finish(
        {"rows": list(rows)},
        reporting.page("Ports against their sources", lead, sections, facts=run.facts()),
    )
    print(reporting.columns(table[0], table[1:]))
    print(f"{count}, {largest}, {run.seconds:.0f} s")
    print(f"{run.workdir / 'report.html'}")
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {count} diverge or cannot be compared; the first: {_line(wrong[0])}"
        )


def _line(row: Mapping[str, Any]) -> str:
    pair = f"{row['arch']} against {row['source']}'s {row['call']}"
    if row["max_rel_error"] is None:
        return f"{pair}, not compared: {row['cause']}"
    where = (
        f", first at {row['first_divergence']}; likely cause: {row['cause']}"
        if row["first_divergence"]
        else ""
    )
    return f"{pair} ({row['form']}): {row['max_rel_error']:.1e}{where}"


def summary(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The table of architectures and sources, its header first: the largest error of each pair, "-" where there is none."""
    libraries = [
        library for library in sources.LIBRARIES if any(row["source"] == library for row in rows)
    ]
    found = {(row["arch"], row["source"]): row for row in rows}

    def cell(arch: str, library: str) -> str:
        row = found.get((arch, library))
        return (
            "-"
            if row is None
            else "failed"
            if row["max_rel_error"] is None
            else f"{row['max_rel_error']:.1e}"
        )

    archs = dict.fromkeys(row["arch"] for row in rows)
    return [
        ("architecture", *libraries),
        *((arch, *(cell(arch, library) for library in libraries)) for arch in archs),
    ]


def _layers(row: Mapping[str, Any], errors: Mapping[str, float]) -> Html:
    cells = [(end, f"{value:.1e}") for end, value in errors.items()]
    return reporting.section(
        f"{row['arch']} against {row['source']}", reporting.table(cells, ("endpoint", "error"))
    )


if __name__ == "__main__":
    cli.launch("parity", main, define_flags)
