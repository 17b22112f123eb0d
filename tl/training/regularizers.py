"""Penalties on the outputs of the network that trains, for `step.make_train_step(loss=...)`.

There is one row of `PENALTIES` each. Most compare with a reference network that does not train: the
pretrained one, or a teacher. Its variables, and whatever else a penalty needs, are the subtree
"reference" of the frozen parameters; parameters of its own that train are the subtree "source".
Both are absent from checkpoints of frozen parameters and from the network that is returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import losses, metrics, pixels
from tl.data import DataSpec
from tl.inference import features
from tl.models import Classifier
from tl.paths import FROZEN, Partition, flatten, nearest
from tl.training.step import Loss
from tl.types import Output, Params, Variables

REFERENCE, SOURCE = "reference", "source"

Network = Callable[..., Output]
"""`(params, stats, inputs, valid=None) -> Output`, as `program.make_network` returns it."""


class Comparison(NamedTuple):
    """What a penalty looks at.

    Attributes:
      output: the network that trains.
      reference: the outputs of the reference network; None for a penalty without one.
      params: all parameters, the subtrees of the penalty included.
      targets: f32[b k].
      valid: bool[b]; None if no slot is padded.
    """

    output: Output
    reference: Output | None
    params: Mapping[str, Any]
    targets: jax.Array
    valid: jax.Array | None


class Row(NamedTuple):
    """A penalty.

    Attributes:
      value: `Comparison -> f32[b]`, or f32[] for the batch; added to the loss times the strength.
      strength: default factor.
      reference: the network that it compares with: "" (none), "start" (the pretrained network),
        "head" (the pretrained network with its own head), or "teacher".
      projection: width of a linear map of the features, random at first, that trains along in the
        subtree "source"; 0 for none.
    """

    value: Callable[[Comparison], jax.Array]
    strength: float
    reference: str = ""
    projection: int = 0


# ---- penalties -----------------------------------------------------------------------------------


def bss(case: Comparison) -> jax.Array:
    """The square of the smallest singular value of the features of a batch, f32[].

    The features are f32[m d] of the m valid images. The singular vectors are constants, which gives
    the gradient of a singular value that differs from the others.

    Reference:
      Chen et al. 2019, NeurIPS, "Catastrophic forgetting meets negative transfer", equation 4 with
      k = 1; the strength, 0.001, is that of section 4.
    """
    rows = case.output.features
    b, d = rows.shape
    number = jnp.int32(b) if case.valid is None else jnp.sum(case.valid.astype(jnp.int32))
    if case.valid is not None:
        rows = jnp.where(case.valid[:, None], rows, 0.0)
    matrix = rows if b <= d else rows.T
    _, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(matrix @ matrix.T))
    # Padded slots are rows of zeros, so that the first eigenvalues, in rising order, are zeros too.
    first = jnp.clip(min(b, d) - number, 0, min(b, d) - 1)
    return jnp.sum((jnp.take(vectors, first, axis=1) @ matrix) ** 2)


def delta(case: Comparison) -> jax.Array:
    """Half the squared distance of the feature maps to those of the start, f32[b].

    It is the sum over stages of the squared distance divided by the squared length of the maps of
    the start, because the scale of feature maps differs between networks and stages. The paper
    weights each channel by the loss without it instead; here all channels count.

    Reference:
      Li et al. 2019, arXiv:1901.09229, equations 4 and 5.
    """
    assert case.reference is not None
    total = jnp.zeros(case.targets.shape[0])
    for name, maps in case.reference.endpoints.items():
        if "/" not in name:  # a stage, not a block
            before = maps.astype(jnp.float32)
            change = case.output.endpoints[name].astype(jnp.float32) - before
            length = jnp.sum(before**2, axis=(1, 2, 3))
            total = total + 0.5 * jnp.sum(change**2, axis=(1, 2, 3)) / jnp.maximum(length, 1e-12)
    return total


def co_tuning(case: Comparison) -> jax.Array:
    """Cross-entropy of the pretrained head on the features, f32[b].

    Its targets are the probabilities of the pretrained classes given the class of an image: the
    mean prediction of the pretrained network for the training images of that class (the direct
    approach of the paper; its other approach inverts a classifier, and calibrates).

    Reference:
      You et al. 2020, NeurIPS, "Co-Tuning for transfer learning", sections 3.1 and 3.2; strength
      2.3 as in the authors' code.
    """
    source = case.params[SOURCE]
    logits = case.output.features @ source["kernel"] + source["bias"][None]
    relation = case.params[REFERENCE]["relation"]
    return losses.soft_cross_entropy(logits, case.targets @ relation)


# The temperature of the logits; chosen, not tuned, in the range of Hinton et al.
TEMPERATURE = 4.0


def distill(case: Comparison) -> jax.Array:
    """Divergence from the logits of a teacher, and of the similarities of images, f32[b].

    The first term is T^2 KL(teacher || student) of logits divided by T = 4. The second compares the
    rows of the matrices of cosine similarities between the features of the images of a batch, which
    need not have the same length in both networks.

    Reference:
      Hinton et al. 2015, arXiv:1503.02531, section 2; Tung & Mori 2019, arXiv:1907.09682, equations
      2 to 4 (which normalize rows instead of features).
    """
    assert case.reference is not None and case.reference.logits is not None
    assert case.output.logits is not None
    t = TEMPERATURE
    divergence = t**2 * losses.kl_divergence(case.output.logits / t, case.reference.logits / t)
    b = case.targets.shape[0]
    mask = jnp.ones(b) if case.valid is None else case.valid.astype(jnp.float32)
    ours, theirs = (_similarity(output.features) for output in (case.output, case.reference))
    squares = (ours - theirs) ** 2 * mask[None]
    return divergence + jnp.sum(squares, axis=1) / jnp.maximum(jnp.sum(mask), 1.0)


def _similarity(features: jax.Array) -> jax.Array:
    unit = _unit(features)
    return unit @ unit.T


def _unit(rows: jax.Array) -> jax.Array:
    return rows * jax.lax.rsqrt(jnp.sum(rows**2, axis=1, keepdims=True) + 1e-12)


# The temperature of cosine similarities, as in the authors' code.
CONTRAST = 0.07


def bi_tuning(case: Comparison) -> jax.Array:
    """Contrastive cross-entropy of the head plus contrastive loss of projected features, f32[b].

    The first term contrasts the features of an image and of the images of its class with those of
    the others, by their cosine similarity to the class's row of the head, which is a constant. The
    second contrasts the projected features of an image with those of the images of its class.

    The authors compare with 40 images per class from a queue, whose features come from a running
    average of the network and receive no gradient. Here they are the images of the batch: an image
    whose class occurs once has no second term, so that a batch needs several images per class.

    Reference:
      Zhong et al. 2020, arXiv:2011.06182, section 3 (contrastive cross-entropy and categorical
      contrastive learning loss, both with weight 1).
    """
    head, source, features = case.params["head"], case.params[SOURCE], case.output.features
    b = features.shape[0]
    key = jnp.ones((1, b)) if case.valid is None else case.valid.astype(jnp.float32)[None]
    same = (case.targets @ case.targets.T) * key
    rows = jax.lax.stop_gradient(jnp.concatenate([head["kernel"].T, head["bias"][:, None]], axis=1))
    of_head = _unit(jnp.concatenate([features, jnp.ones((b, 1))], axis=1)) @ _unit(rows).T
    first = _contrast(case.targets @ of_head.T, same, key)
    others = 1.0 - jnp.eye(b)
    projected = _similarity(features @ source["kernel"] + source["bias"][None])
    return first + _contrast(projected, same * others, key * others)


def _contrast(similarity: jax.Array, same: jax.Array, key: jax.Array) -> jax.Array:
    """Cross-entropy of the keys of each image toward those of its class; 0 without any, f32[b]."""
    log_p = jax.nn.log_softmax(jnp.where(key > 0, similarity / CONTRAST, -1e9))
    return -jnp.sum(same * log_p, axis=1) / jnp.maximum(jnp.sum(same, axis=1), 1e-12)


PENALTIES: Mapping[str, Row] = {
    "bss": Row(bss, 0.001),
    "delta": Row(delta, 1.0, "start"),  # chosen, not tuned
    "co_tuning": Row(co_tuning, 2.3, "head"),
    "bi_tuning": Row(bi_tuning, 1.0, projection=128),
    "distill": Row(distill, 1.0, "teacher"),
}
"""Name -> row."""


# ---- a penalty in training -----------------------------------------------------------------------


class Penalty(NamedTuple):
    """A penalty that is written `NAME` or `NAME:ARGUMENT`.

    Attributes:
      name: a name of `PENALTIES`.
      strength: its factor.
      teacher: the argument of "distill": a network, or the folder of a saved classifier.
    """

    name: str
    strength: float
    teacher: str = ""

    @property
    def row(self) -> Row:
        """The row of `PENALTIES`."""
        return PENALTIES[self.name]


def parse(word: str) -> Penalty | None:
    """Parses a penalty; None for "".

    Raises:
      ValueError: an unknown name, a strength that is not a number of at least 0, or no teacher.

    Example:
      >>> parse("delta:0.1")
      Penalty(name='delta', strength=0.1, teacher='')
    """
    if not word:
        return None
    name, _, argument = word.partition(":")
    if name not in PENALTIES:
        raise ValueError(
            f"unknown `penalty`: got {word!r}, expected one of {', '.join(PENALTIES)}; nearest: "
            f"{nearest(name, PENALTIES)}"
        )
    row = PENALTIES[name]
    if row.reference == "teacher":
        if not argument:
            raise ValueError(
                f"`penalty={word}` names no teacher: expected a network or the folder of a "
                "classifier, such as distill:vgg16"
            )
        return Penalty(name, row.strength, argument)
    try:
        strength = float(argument or row.strength)
    except ValueError:
        strength = math.nan
    if not 0 <= strength < math.inf:
        raise ValueError(
            f"`penalty={word}` has no strength: got {argument!r}, expected a number of at least 0, "
            f"such as {name}:{row.strength:g}"
        )
    return Penalty(name, strength)


class Prepared(NamedTuple):
    """A penalty with its reference network.

    Attributes:
      penalty: the penalty.
      clf: the reference network; None without one.
      extras: the subtrees "reference" and "source" of the parameters.
    """

    penalty: Penalty
    clf: Classifier | None
    extras: Params


def prepare(
    penalty: Penalty, reference: tuple[Classifier, Variables], train_set: DataSpec, seed: int = 0
) -> Prepared:
    """Computes what a penalty needs before the first step.

    Args:
      penalty: the penalty.
      reference: the network that `penalty.row.reference` names.
      train_set: the images of which "co_tuning" needs predictions.
      seed: of a projection.

    Raises:
      ValueError: the pretrained network has no linear head, for "co_tuning", or the new head is not
        linear, for "bi_tuning".
    """
    clf, variables = reference
    head, width = variables["params"].get("head", {}), penalty.row.projection
    if width:
        if {"kernel", "bias"} != head.keys():
            raise ValueError(
                f"`penalty={penalty.name}` compares features with the classes of a linear head: "
                "got another head; use `head=linear`"
            )
        d = head["kernel"].shape[0]
        kernel = np.random.default_rng(seed).standard_normal((d, width)) / math.sqrt(d)
        projection = {"kernel": kernel.astype(np.float32), "bias": np.zeros(width, np.float32)}
        return Prepared(penalty, None, {SOURCE: projection})
    if penalty.row.reference == "":
        return Prepared(penalty, None, {})
    if penalty.row.reference == "head":
        if not {"kernel", "bias"} == head.keys():
            raise ValueError(
                f"`penalty={penalty.name}` needs the linear head of the pretrained network: "
                f"{clf.weights.name} has none; use `penalty=delta`, or other weights"
            )
        relation = {"relation": class_relation(clf, variables, train_set)}
        return Prepared(penalty, None, {SOURCE: head, REFERENCE: relation})
    folded = clf.fold_batch_norm(variables)["params"]
    kept = ("backbone", "head") if penalty.row.reference == "teacher" else ("backbone",)
    return Prepared(penalty, clf, {REFERENCE: {name: folded[name] for name in kept}})


def class_relation(clf: Classifier, variables: Variables, train_set: DataSpec) -> np.ndarray:
    """Probabilities of the pretrained classes given a class, f32[k pretrained].

    A class without a readable image has the mean over all images.
    """
    extracted = features.extract(clf, variables, [e.path for e in train_set.examples])
    head = variables["params"]["head"]
    probabilities = metrics.softmax(extracted.values @ head["kernel"] + head["bias"])
    labels = np.where(extracted.valid, [e.label for e in train_set.examples], -1)
    of_class = [probabilities[labels == label] for label in range(len(train_set.classes))]
    of_any = probabilities[extracted.valid]
    rows = [(rows if len(rows) else of_any).mean(axis=0) for rows in of_class]
    return np.stack(rows).astype(np.float32)


def names(prepared: Prepared | None) -> frozenset[str]:
    """Names of the parameters of a penalty, which are not parameters of the network."""
    return frozenset(flatten(prepared.extras) if prepared else ())


def add_labels(partition: Partition, extras: Params) -> Partition:
    """The partition of the parameters with the subtrees of a penalty: "source" trains."""
    if not extras:
        return partition
    added = {name: SOURCE if name.startswith(f"{SOURCE}/") else FROZEN for name in flatten(extras)}
    groups = [group for group in partition.groups if group != FROZEN]
    groups += [SOURCE, FROZEN] if SOURCE in extras else [FROZEN]
    return Partition({**partition.labels, **added}, tuple(groups))


def without_extras(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the network alone."""
    return {name: tree for name, tree in params.items() if name not in (REFERENCE, SOURCE)}


def _run(clf: Classifier, variables: Variables, inputs: jax.Array, start: str) -> Output:
    """The reference network on the inputs of a step, resized to its own size."""
    if start:
        return clf.apply_from(variables, inputs, start)
    images01 = pixels.to_images01(inputs) if inputs.dtype == jnp.uint8 else inputs
    if images01.shape[1] != clf.pixels.size:
        b, *_, channels = images01.shape
        shape = (b, clf.pixels.size, clf.pixels.size, channels)
        images01 = jnp.clip(jax.image.resize(images01, shape, "linear"), 0.0, 1.0)
    return clf.apply(variables, images01)


def make_loss(prepared: Prepared, network: Network, start: str) -> Loss:
    """Cross-entropy plus the penalty times its strength.

    Args:
      prepared: the penalty.
      network: the network that trains.
      start: the stage whose outputs the inputs are; "" for images.
    """
    penalty, clf = prepared.penalty, prepared.clf

    def loss(
        params: Any,
        stats: Any,
        keys: jax.Array,
        step: jax.Array,
        inputs: jax.Array,
        targets: jax.Array,
        valid: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Any]:
        del keys, step
        output, reference = network(params, stats, inputs, valid), None
        assert output.logits is not None
        if clf is not None:
            frozen = {"params": {"head": params["head"], **params[REFERENCE]}, "batch_stats": {}}
            reference = jax.lax.stop_gradient(_run(clf, frozen, inputs, start))
        value = losses.soft_cross_entropy(output.logits, targets)
        compared = Comparison(output, reference, params, targets, valid)
        return value + penalty.strength * penalty.row.value(compared), output.logits, output.stats

    return loss
