"""Errors of a ported network, layer by layer, and the likely cause of a divergence.

The outputs of the original network are arrays, so the library that computed them is not needed.
`compare` returns the error of every endpoint. `diagnose` tries changes of the port, such as another
padding, until one of them, or a pair, removes the error.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import models, pixels
from tl.backbones import fold
from tl.backbones.spec import BackboneSpec
from tl.models import Classifier
from tl.paths import flatten, unflatten
from tl.types import Mode, Variables

# Largest error of a correct port in float32. Chosen: the largest of all ports is 1.9e-6.
TOLERANCE = 1e-5
# Every 8th channel of a seeded BatchNorm has a variance as small as eps.
QUIET = 8
# Leaves of the names of BatchNorm's statistics, in torch and in Keras.
STATISTICS = ("running_mean", "running_var", "moving_mean", "moving_variance")


class Case(NamedTuple):
    """One batch and the original network's outputs.

    Attributes:
      inputs: f32[b h w c], normalized.
      want: the endpoints, `features` and `logits`, f64[b ...] each, in the order of the forward
        pass; without `logits` these are not compared.
    """

    inputs: np.ndarray
    want: dict[str, np.ndarray]


def _outputs(
    clf: Classifier, mode: Mode, variables: Variables, inputs: Any
) -> dict[str, jax.Array]:
    """The port's endpoints, `features` and `logits`, for normalized inputs."""
    channels = inputs.shape[-1]
    clf = clf.with_pixels(mean=(0.0,) * channels, std=(1.0,) * channels, channels="rgb")
    out = clf.apply(variables, inputs, mode)
    logits = {} if out.logits is None else {"logits": out.logits}
    return {**out.endpoints, "features": out.features, **logits}


@functools.lru_cache(maxsize=1)  # consecutive files of one architecture share a program
def _compiled(
    spec: BackboneSpec, head: Any
) -> Callable[[Variables, np.ndarray], dict[str, jax.Array]]:
    clf = Classifier(spec.name, spec, head, pixels.PixelSpec(), None, models.Provenance("", ""))
    return jax.jit(functools.partial(_outputs, clf, Mode.EVAL))


def error(got: Any, want: np.ndarray) -> float:
    """Largest difference in units of the largest value; infinite for another shape or NaN."""
    got = np.asarray(got, np.float64)
    if got.shape != want.shape:
        return float("inf")
    value = float(np.abs(got - want).max() / (np.abs(want).max() or 1.0))
    return value if np.isfinite(value) else float("inf")


def compare(clf: Classifier, variables: Variables, cases: Sequence[Case]) -> dict[str, float]:
    """The largest errors of the endpoints, `features` and `logits` over all cases.

    Args:
      clf, variables: the port.
      cases: at least one batch and the outputs of the original network.

    Returns:
      Name -> error as in `error`, in the order of the forward pass.

    Raises:
      ValueError: only one of the two networks has an endpoint.
    """
    errors: dict[str, float] = {}
    for inputs, want in cases:
        got = _compiled(clf.spec, clf.head)(variables, inputs)
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


# ---- weights and inputs of a comparison ----


def seeded(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """The tensor f32[shape] that belongs to the name of a weight, without a file.

    Kernels have variance 1 / fan-in. BatchNorm's tensors look like those of a trained network: no
    mean is 0 and no variance is 1, so that activations stay near 1 through 152 layers. Every 8th
    channel has a variance near 1e-5, where eps matters. The streams of RandomState are the same in
    every version of NumPy, unlike those of `default_rng`.

    Args:
      name: as `tl.weights.readers` returns it; "." or "/" separates its parts.
      shape: in the layout of the source.
      seed: another one draws other values.
    """
    rng = np.random.RandomState(zlib.crc32(f"{seed or ''}{name}".encode()))
    leaf = name.replace("/", ".").rpartition(".")[2]
    quiet = np.arange(shape[0]) % QUIET == QUIET - 1
    if leaf in ("running_var", "moving_variance"):
        values = rng.uniform(0.5, 2.0, shape) * np.where(quiet, 1e-5, 1.0)
    elif leaf in ("bias", "beta", "running_mean", "moving_mean"):
        values = 0.3 * rng.standard_normal(shape)
    elif len(shape) == 1:  # BatchNorm's weight, or gamma
        values = rng.uniform(0.5, 1.5, shape) * np.where(quiet, 3e-3, 1.0)
    else:
        # torch has OIHW and OI; Keras ("kernel") HWIO and IO, depthwise HWC1.
        keras = shape[:2] if len(shape) == 4 and shape[3] == 1 else shape[:-1]
        fan_in = int(np.prod(keras if leaf == "kernel" else shape[1:]))
        values = rng.uniform(-1.0, 1.0, shape) * np.sqrt(3.0 / fan_in)
    return np.asarray(values, np.float32)


def normalized(images01: np.ndarray, spec: pixels.PixelSpec) -> np.ndarray:
    """`tl.pixels.normalize` in float64: f[b h w 3] in [0, 1] -> f64[b h w 3]."""
    wide = images01.astype(np.float64)
    return ((wide[..., ::-1] if spec.channels == "bgr" else wide) - spec.mean) / spec.std


def in_forward_order(spec: BackboneSpec, ends: Iterable[str]) -> list[str]:
    """Names of endpoints in the order of the forward pass; a stage is at its last block.

    Args:
      spec: the backbone.
      ends: names such as "stage1" and "stage1/block0".
    """

    def place(end: str) -> tuple[int, float]:
        stage, _, block = end.partition("/")
        return spec.endpoints.index(stage), int(re.sub(r"\D", "", block)) if block else np.inf

    return sorted(ends, key=place)


# ---- causes of a divergence ----


class State(NamedTuple):
    """The port under the assumption of a cause."""

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
    """The possible causes of a divergence of this network."""
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
    """The likely cause of a divergence, as text: one or two suspects without which it vanishes.

    Args:
      clf, variables, cases: as for `compare`.
      end: the first endpoint that diverges, from `first_divergence`.

    Returns:
      The changes that bring `end` within `TOLERANCE`; if there are none, those that reduce its
      error tenfold, after "in part: ", or a sentence that none does. Each compiles a program.
    """

    @functools.cache
    def compiled(module: Any, mode: Mode) -> Callable[[Variables, np.ndarray], jax.Array]:
        changed = dataclasses.replace(clf, spec=dataclasses.replace(clf.spec, module=module))
        return jax.jit(lambda variables, inputs: _outputs(changed, mode, variables, inputs)[end])

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
