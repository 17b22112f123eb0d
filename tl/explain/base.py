"""Runs a method as an explanation: argument checks, one program over many images, bounded memory.

A `Method` computes maps from a `Problem`, which has the network, the objective and the number of
slots. Methods with one pass per image run on `slots` images at a time. Methods with many passes
(nodes, draws, masks) take one image at a time and run `slots` of its passes at a time, so the
memory depends neither on the number of images nor on that of passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tl import devices, pixels
from tl.attacks.norms import per_image_keys
from tl.attacks.run import map_in_chunks
from tl.attacks.slots import expand
from tl.devices import shard_rows
from tl.models import Classifier, heads
from tl.types import Array, Output, Variables
from tl.visualize import objectives, specs
from tl.visualize.objectives import Objective


class Rows(NamedTuple):
    """What is explained, one row per image.

    Attributes:
      keys: key[b].
      images01: f32[b h w c] in [0, 1].
      targets: arguments of the objective; each leaf has one row per image.
    """

    keys: jax.Array
    images01: jax.Array
    targets: Any


class Problem(NamedTuple):
    """The functions that a method may call. Row i of a result depends on row i of the arguments.

    Attributes:
      score: `(images01, targets) -> f32[b]`, the value that is explained.
      activations: `images01 -> f32[b h w c]`, the endpoint of a method that reads one.
      score_from: `(activations, images01, targets) -> f32[b]`, the score from that endpoint on.
      slots: passes of one image that run together.
      mean_color: f32[1 1 1 c] in [0, 1], the color that is 0 in the input of the first layer.
    """

    score: Callable[[jax.Array, Any], jax.Array]
    activations: Callable[[jax.Array], jax.Array]
    score_from: Callable[[jax.Array, jax.Array, Any], jax.Array]
    slots: int
    mean_color: jax.Array


class Method(NamedTuple):
    """A way to explain a score.

    Attributes:
      maps: `(problem, rows) -> f32[b h w]`.
      signed: whether negative values have a meaning: pixels that lower the score.
      passes: forward or forward and backward passes per image, about, or a function of (h, w); 0
        for a method that reads no network.
      probability: whether the objective of classes is their probability instead of their logit.
      baselines: `(keys, images01) -> f32[b n h w c]`, the images at which the sum of the map counts
        from; None for a map without a meaningful sum.
      endpoint: endpoint that is explained, "" for the last stage; None if the method reads none.
      check: raises ValueError for images of a shape (h, w, c) that the method cannot explain.
      families: modules of the backbones that the method explains; () for all.
    """

    maps: Callable[[Problem, Rows], jax.Array]
    signed: bool
    passes: int | Callable[[int, int], int] = 1
    probability: bool = False
    baselines: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    endpoint: str | None = None
    check: Callable[[tuple[int, ...]], None] = lambda shape: None
    families: tuple[type, ...] = ()


def probability(weights: jax.Array) -> Objective:
    """The probability of the classes with a positive weight, minus that of those with a negative.

    Args:
      weights: f32[b k].
    """

    def value(output: Output, _: jax.Array) -> jax.Array:
        logits = objectives.activations(output, "logits")[:, 0, 0]
        return jnp.sum(jax.nn.softmax(logits) * jnp.sign(weights), axis=1)

    return Objective(value)


def logit(weights: jax.Array) -> Objective:
    """The sum of the logits with weights f32[b k]: a class, the mean of a group, a difference."""
    return objectives.direction("logits", weights)


class Explanation:
    """A jitted `(variables, key, images01, targets) -> f32[b h w]`, made by `make`.

    Attributes:
      method: the method.
      clf: the network, which computes in float32.
      objective: targets -> objective that is explained; None for classes.
      maps: the function of (variables, `Rows`), without checks; can be differentiated.
      together: number of images that a device computes together.
      program: `maps`, jitted, `together` images at a time.
    """

    def __init__(
        self,
        method: Method,
        clf: Classifier,
        objective: Callable[[Any], Objective] | None,
        slots: int,
    ):
        self.method, self.clf, self.objective = method, clf, objective
        self._checked: set[tuple[int, ...]] = set()  # shapes of images
        many = callable(method.passes) or method.passes > 1
        score = objective or (probability if method.probability else logit)

        def run(variables: Variables, rows: Rows) -> jax.Array:
            return method.maps(
                _problem(clf, variables, score, endpoint_of(method, clf), slots), rows
            )

        self.maps, self.together = run, 1 if many else slots
        self.program = shard_rows(map_in_chunks(run, self.together))

    def passes(self, h: int, w: int) -> int:
        """Passes per image of h x w pixels."""
        return self.method.passes(h, w) if callable(self.method.passes) else self.method.passes

    def __call__(
        self, variables: Variables, key: jax.Array, images01: Array, targets: Any
    ) -> jax.Array:
        """The maps of images.

        Args:
          variables: as for `clf.apply`.
          key: from `jax.random.key`, or one key per image; the map of an image depends on its own
            key only.
          images01: f32[b h w c] in [0, 1].
          targets: arguments of the objective, one row per image: f32[b k] from `targets.weights`,
            unless `make` received another objective.

        Returns:
          f32[b h w], in units of the score (per pixel) or of its gradient; see
          `tl/explain/README.md`.

        Raises:
          ValueError: images outside [0, 1] or smaller than the method needs, targets of another
            shape, a network without a head, an endpoint that does not exist, has no spatial extent
            or comes after that of the objective, or a map that is not finite.
        """
        clf, b = self.clf, len(images01)
        pixels.check(images01, ndim=4, channels=len(clf.pixels.mean))
        _check_targets(clf, targets, b, self.objective is None)
        self.method.check(images01.shape[1:])
        if self.method.endpoint is not None and images01.shape[1:] not in self._checked:
            check_endpoint(self.method, clf, variables, images01.shape)
            self._checked.add(images01.shape[1:])
        rows = Rows(
            per_image_keys(key, b), jnp.asarray(images01), jax.tree.map(jnp.asarray, targets)
        )
        maps = self.program(variables, rows)
        if not isinstance(maps, Tracer):
            finite = np.isfinite(np.asarray(maps)).all(axis=(1, 2))
            if not finite.all():
                raise ValueError(
                    f"the map of image {finite.argmin()} is not finite; check the weights and the "
                    "number type"
                )
        return maps


def make(
    method: Method,
    clf: Classifier,
    *,
    objective: Callable[[Any], Objective] | None = None,
    slots: int | None = None,
) -> Explanation:
    """A jitted explanation of a network, which computes in float32.

    Args:
      method: from `tl.explain.get`.
      clf: the network.
      objective: targets -> objective of `tl.visualize.objectives`. Default: the logits with the
        weights f32[b k] of `targets.weights`, or their probability where the method reads it.
      slots: passes that a device computes together; it bounds the memory. Default:
        `devices.images_at_once()`.

    Raises:
      ValueError: `slots` is less than 1, the method does not explain networks of this family, or it
        reads the probability of classes and `objective` is given.

    Example:
      >>> import tl
      >>> from tl import explain
      >>> clf, variables = tl.load("squeezenet1_1", weights="random")
      >>> clf = clf.with_pixels(size=32)
      >>> weights = explain.targets.weights(clf.classes, ["tabby vs tiger cat"])
      >>> saliency = make(explain.get("gradient")(), clf)
      >>> gray = np.full((1, 32, 32, 3), 0.5, np.float32)
      >>> saliency(variables, jax.random.key(0), gray, weights).shape
      (1, 32, 32)
    """
    slots = devices.images_at_once() if slots is None else slots
    if slots < 1:
        raise ValueError(f"`slots` must be at least 1: got {slots}")
    _check_family(method, clf)
    if objective and method.probability:
        raise ValueError(
            "the method (rise) reads the probability of a class: got another objective; choose "
            "another method, such as kernel_shap"
        )
    return Explanation(method, clf.with_dtype("float32"), objective, slots)


def _problem(
    clf: Classifier,
    variables: Variables,
    objective: Callable[[Any], Objective],
    endpoint: str,
    slots: int,
) -> Problem:
    def score(images01: jax.Array, targets: Any) -> jax.Array:
        return objective(targets)(clf.apply(variables, images01), images01)

    def activations(images01: jax.Array) -> jax.Array:
        return objectives.activations(clf.apply(variables, images01), endpoint)

    def score_from(maps: jax.Array, images01: jax.Array, targets: Any) -> jax.Array:
        rest = clf.apply_from(variables, maps, endpoint)
        try:
            return objective(targets)(rest, images01)
        except ValueError as error:
            raise ValueError(
                f"the method reads endpoint {endpoint!r}, after which the objective cannot be "
                f"computed: {error}; set `endpoint` to an earlier stage"
            ) from None

    zero = jnp.zeros((1, 1, 1, len(clf.pixels.mean)))
    return Problem(score, activations, score_from, slots, pixels.denormalize(clf.pixels, zero))


def _check_family(method: Method, clf: Classifier) -> None:
    names = " and ".join(family.__name__ for family in method.families)
    if names and not isinstance(clf.spec.module, method.families):
        raise ValueError(
            f"the method explains networks of the families {names} only: got {clf.arch}; choose "
            "one of these or another method"
        )
    if names and clf.head is not None and heads.kind(clf.head) == "cosine":
        raise ValueError(
            "the method explains heads of dense layers: got a cosine head; choose another method"
        )


def endpoint_of(method: Method, clf: Classifier) -> str:
    """The endpoint that a method reads, by default the last stage."""
    return method.endpoint or clf.spec.endpoints[-1]


def check_endpoint(
    method: Method, clf: Classifier, variables: Variables, shape: tuple[int, ...]
) -> None:
    """Checks the endpoint of a method for images of a shape [b h w c].

    Raises:
      ValueError: no stage has this name, or its map has one position only.
    """
    endpoint = endpoint_of(method, clf)
    specs.check_endpoint(clf, dict.fromkeys(clf.spec.endpoints, ()), endpoint)
    image = jax.ShapeDtypeStruct((1, *shape[1:]), jnp.float32)
    ends = jax.eval_shape(clf.apply, variables, image).endpoints
    sizes = {name: ends[name].shape[1:3] for name in clf.spec.endpoints}
    if sizes[endpoint] == (1, 1):
        wide = [name for name, size in sizes.items() if size != (1, 1)]
        hint = f"name an earlier one, such as {wide[-1]!r}" if wide else "give larger images"
        raise ValueError(
            f"endpoint {endpoint!r} has no spatial extent: got a map of 1 x 1, expected a larger "
            f"one; {hint}"
        )


def _check_targets(clf: Classifier, targets: Any, b: int, classes: bool) -> None:
    if classes and clf.head is None:
        raise ValueError(clf.no_head_message())
    rows = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(targets)}
    if rows != {(b,)}:
        got = ", ".join(sorted(str(*size) for size in rows)) or "no"
        raise ValueError(
            f"`targets` has the wrong length: got {got} rows, expected one per image ({b})"
        )
    k = None if clf.classes is None else len(clf.classes)
    if classes and k is not None:
        leaf = jax.tree.leaves(targets)[0]
        if np.shape(leaf) != (b, k) or leaf.dtype != np.float32:
            raise ValueError(
                f"`targets` must be f32[{b} {k}], the weights of the logits: got "
                f"{leaf.dtype}{list(np.shape(leaf))}"
            )


# ------------------------------------------------------------------------------ parts of methods


def sum_passes(value: Callable[[jax.Array], Any], count: int, slots: int) -> Any:
    """The sum of a function of i = 0 ... count - 1, at most `slots` of them at a time.

    Args:
      value: i32[s] -> pytree [s ...].
      count: static.
      slots: static.

    Returns:
      The pytree [...], summed in float32 in the order of i.
    """
    turns = -(-count // slots)
    size = -(-count // turns)  # turns of equal size have the fewest padded passes

    def add(total: Any, first: jax.Array) -> tuple[Any, None]:
        index = first + jnp.arange(size, dtype=jnp.int32)
        counted = index < count
        masked = lambda leaf: jnp.where(expand(counted, leaf), leaf, jnp.zeros_like(leaf))
        part = jax.tree.map(
            lambda leaf: jnp.sum(masked(leaf), axis=0), value(jnp.minimum(index, count - 1))
        )
        return jax.tree.map(jnp.add, total, part), None

    shapes = jax.eval_shape(value, jax.ShapeDtypeStruct((size,), jnp.int32))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, size * jnp.arange(turns, dtype=jnp.int32))[0]


def repeat(row: Any, s: int) -> Any:
    """The only row of a pytree [1 ...] as s equal rows."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (s, *leaf.shape[1:])), row)


def check_count(least: int, **counts: int) -> None:
    """Raises ValueError if a count is less than `least`."""
    for name, n in counts.items():
        if n < least:
            raise ValueError(f"`{name}` must be at least {least}: got {n}")
