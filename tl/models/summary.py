"""The cost of a network per stage: shapes, parameters, multiply-adds, bytes, and the parameters
that rules train.

Nothing is computed or compiled: the forward pass is traced on shapes, and the convolutions and
matrix products in its jaxpr are counted. The module path that Flax records in each operation gives
its stage. Time is not estimated; for that, see `experiments/benchmarks/bench.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from tl.models.classifier import Classifier
from tl.paths import FROZEN, Rules, flatten, label

# Size of a float32.
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


def stages(clf: Classifier, *, size: int | None = None, rules: Rules | None = None) -> list[Stage]:
    """The stages of a network in the order of the forward pass, with the head last.

    Args:
      clf: the network; its weights are not needed.
      size: side of the image in pixels; default: that of `clf.pixels`.
      rules: `((regex, label), ...)` over names such as `backbone/stage5/conv0/kernel`
        (`tl.paths.label`).

    Returns:
      One row per stage. Each parameter belongs to exactly one of them.

    Raises:
      ValueError: the rules do not fit the network, or `size` is too small for it.

    Example:
      >>> from tl import backbones
      >>> from tl.models.classifier import Provenance
      >>> from tl.pixels import PixelSpec
      >>> none = Provenance("none", "")
      >>> vgg = Classifier("vgg16", backbones.get("vgg16"), None, PixelSpec(), None, none)
      >>> [(s.name, s.shape, s.params) for s in stages(vgg)][-1], total(stages(vgg)).params
      (('stage5', (7, 7, 512), 7079424), 14714688)
    """
    clf = clf.with_pixels(size=size or clf.pixels.size)
    images01 = jax.ShapeDtypeStruct(
        (1, clf.pixels.size, clf.pixels.size, len(clf.pixels.mean)), jnp.float32
    )
    variables = jax.eval_shape(lambda: clf.init(jax.random.key(0)))
    jaxpr, output = jax.make_jaxpr(clf.apply, return_shape=True)(variables, images01)
    labels = label(variables["params"], rules) if rules else {}
    names = [*clf.spec.endpoints, *(["head"] if clf.head else [])]
    params, trainable, multiply_adds = (dict.fromkeys(names, 0) for _ in range(3))
    for name, leaf in flatten(variables["params"]).items():
        part, child, *_ = name.split("/")
        stage = child if part == "backbone" else part
        params[stage] += leaf.size
        trainable[stage] += leaf.size * (labels.get(name, FROZEN) != FROZEN)
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


def _multiply_adds(jaxpr: core.Jaxpr, outer: str) -> Iterator[tuple[str, int]]:
    """`(module path, multiply-adds)` of every convolution and matrix product, inner jaxprs included."""
    for eqn in jaxpr.eqns:
        path = "/".join(filter(None, (outer, str(eqn.source_info.name_stack))))
        shapes: list[Any] = [
            getattr(var.aval, "shape", ()) for var in (*eqn.invars[:2], *eqn.outvars[:1])
        ]
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            yield path, math.prod(shapes[2]) * math.prod(shapes[0][axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            # The kernel's input channels are those of one group.
            outputs = eqn.params["dimension_numbers"].rhs_spec[0]
            yield path, math.prod(shapes[2]) * math.prod(shapes[1]) // shapes[1][outputs]
        else:
            for inner in _inner(eqn.params):
                yield from _multiply_adds(inner, path)


def _inner(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The jaxprs in an operation's parameters.

    Of the branches of a choice between platforms (`tl.ops`) only the last, the plain form.
    """
    for name, value in params.items():
        values = value if isinstance(value, tuple | list) else (value,)
        for item in values[-1:] if name == "branches" else values:
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
