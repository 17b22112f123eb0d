"""What a network costs, stage by stage: shapes, parameters, multiply-adds, bytes, and what a rule set would train.

Nothing is computed and nothing compiled: the forward pass is traced on shapes, and the convolutions and matrix products in
its jaxpr are counted. Which stage an operation belongs to is read from the module path that Flax leaves on it.
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

BYTES = 4  # of a float32


class Stage(NamedTuple):
    """One row: a stage of the backbone, the head, or the whole network.

    Attributes:
      name: the endpoint, "head" or "total".
      shape: of its output for one picture, (h, w, c) or (k,); the total's is the network's.
      params: how many parameters.
      multiply_adds: of the convolutions and matrix products in a forward pass of one picture; what papers, torchvision and
        timm publish as "FLOPs" or "GMACs".
      trainable: parameters that the rules train; 0 without rules.
    """

    name: str
    shape: tuple[int, ...]
    params: int
    multiply_adds: int
    trainable: int

    @property
    def flops(self) -> int:
        """Floating-point operations: a multiply-add is two. Normalisation, activations and pooling are left out."""
        return 2 * self.multiply_adds

    @property
    def bytes(self) -> int:
        """Of the parameters, in float32."""
        return BYTES * self.params

    @property
    def activation_bytes(self) -> int:
        """Of the output for one picture, in float32."""
        return BYTES * math.prod(self.shape)


def stages(clf: Classifier, *, size: int | None = None, rules: Rules | None = None) -> list[Stage]:
    """The rows of a network, in the order of its forward pass, the head last.

    Args:
      clf: the network; its weights are not needed.
      size: side of the picture, in pixels; by default the one of `clf.pixels`.
      rules: `((regex, label), ...)` over names such as `backbone/stage5/conv0/kernel` (`tl.paths.label`).

    Raises:
      ValueError: rules that do not fit the network, or a size that is too small for it.

    Example:
      >>> from tl import backbones
      >>> from tl.models.classifier import Provenance
      >>> from tl.pixels import PixelSpec
      >>> vgg = Classifier("vgg16", backbones.get("vgg16"), None, PixelSpec(), None, Provenance("none", ""))
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
    """The whole network."""
    rows = list(rows)
    return Stage(
        "total",
        rows[-1].shape,
        sum(row.params for row in rows),
        sum(row.multiply_adds for row in rows),
        sum(row.trainable for row in rows),
    )


def _multiply_adds(jaxpr: core.Jaxpr, outer: str) -> Iterator[tuple[str, int]]:
    """(module path, multiply-adds) of every convolution and matrix product, those of inner jaxprs too."""
    for eqn in jaxpr.eqns:
        path = "/".join(filter(None, (outer, str(eqn.source_info.name_stack))))
        shapes: list[Any] = [
            getattr(var.aval, "shape", ()) for var in (*eqn.invars[:2], *eqn.outvars[:1])
        ]
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            yield path, math.prod(shapes[2]) * math.prod(shapes[0][axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            outputs = eqn.params["dimension_numbers"].rhs_spec[
                0
            ]  # the kernel's input channels are those of one group
            yield path, math.prod(shapes[2]) * math.prod(shapes[1]) // shapes[1][outputs]
        else:
            for inner in _inner(eqn.params):
                yield from _multiply_adds(inner, path)


def _inner(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The jaxprs in an operation's parameters; of a choice between platforms (`tl.ops`) the plain form, the last, only."""
    for name, value in params.items():
        several = (
            value[-1:]
            if name == "branches"
            else value
            if isinstance(value, tuple | list)
            else (value,)
        )
        for one in several:
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one
