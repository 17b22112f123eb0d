"""Tests that compute maps again, for another network or another input.

Maps must change with the weights and the labels of the network, and must not change where the
network does not. A test is a function `(evidence, name) -> row`, or None where it does not apply.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl import paths
from tl.attacks.norms import per_image_keys
from tl.explain.base import make
from tl.explain.evidence import MANY_PASSES, Evidence
from tl.explain.statistics import spearman
from tl.models import Classifier
from tl.types import Variables

# Largest rank correlation with the map of a network with random weights or permuted labels. Chosen,
# not tuned: Adebayo et al. 2018, figure 3, have gradients below and guided backpropagation above.
RANDOMIZED = 0.5
# Noisy images of the smooth test, with the noise of SmoothGrad; permutations of the labels. Chosen,
# not tuned.
DRAWS, NOISE, PERMUTATIONS = 8, 0.15, 4
# A constant that moves the baselines "black" and "gray" to values in [0, 1], too.
SHIFT = -0.5
# Largest difference of a map after an input shift, over its largest value. Chosen, not tuned: above
# the rounding of float32, below a visible change.
SHIFTED = 0.01


# ------------------------------------------------------------------- random weights and labels


def cascade(
    clf: Classifier, variables: Variables, key: jax.Array
) -> Iterator[tuple[str, Variables]]:
    """Variables with more and more newly initialized parts, from the head to the first stage.

    Kernels that are initialized with zeros, such as those of a linear head, receive normal values
    with the standard deviation of the trained kernel: zeros would explain nothing.

    Args:
      clf: the network.
      variables: as for `clf.apply`.
      key: random key of the new parameters.

    Yields:
      The name of the last part that was initialized, "head" or a stage, and the variables.

    Reference: Adebayo et al. 2018, arXiv:1810.03292, section 3.1.
    """
    flat, new = paths.flatten(variables), paths.flatten(jax.jit(clf.init)(key))
    new = {name: np.asarray(leaf) for name, leaf in new.items()}
    rng = _generator(key)
    for name, leaf in new.items():
        if leaf.ndim > 1 and not leaf.any():
            spread = np.std(np.asarray(flat[name]))
            new[name] = (spread * rng.standard_normal(leaf.shape)).astype(np.float32)
    for stage in ("head", *reversed(clf.spec.endpoints)):
        part = "head/" if stage == "head" else f"backbone/{stage}/"
        is_in = lambda name, part=part: name.partition("/")[2].startswith(part)
        flat = {n: new[n] if is_in(n) else leaf for n, leaf in flat.items()}
        yield stage, {"batch_stats": {}, **paths.unflatten(flat)}


def _generator(key: jax.Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


def _networks(evidence: Evidence) -> list[tuple[str, Variables]]:
    clf, variables, key, *_ = evidence.subject
    return list(cascade(clf, variables, jax.random.fold_in(key, 1)))


def randomization(evidence: Evidence, name: str) -> dict[str, Any]:
    """Rank correlation of the absolute values of a map with those of randomized networks.

    Returns:
      `{"value", "stages", "passed"}`: the mean over images with all weights randomized, that after
      each stage of the cascade, and whether the first is at most `RANDOMIZED`. Methods with more
      than `MANY_PASSES` passes have the last stage only. If all maps with random weights are
      constant, such as those of a saturated probability, nothing is tested and "passed" is None.
    """
    return _randomization(evidence, name, [evidence.rows(evidence.few).images01])


def smooth_randomization(evidence: Evidence, name: str) -> dict[str, Any] | None:
    """`randomization` of maps that are averaged over noisy images: smooth MPRT.

    A map of one image is noisy, and noise alone lowers a correlation. The average over `DRAWS`
    images with normal noise shows the correlation without it. The paper averages over more draws.

    Returns:
      As `randomization`, whose limit is used; None for more than `MANY_PASSES` passes.

    Reference: Hedstroem et al. 2024, arXiv:2401.06465, smooth MPRT.
    """
    if evidence.passes(name) > MANY_PASSES:
        return None
    images01 = np.asarray(evidence.rows(evidence.few).images01)
    sigma = NOISE * np.ptp(images01, axis=(1, 2, 3), keepdims=True)
    rng = _generator(jax.random.fold_in(evidence.subject.key, 2))
    noise = rng.standard_normal((DRAWS, *images01.shape)).astype(np.float32)
    return _randomization(evidence, name, list(jnp.asarray(images01 + sigma * noise)))


def _randomization(evidence: Evidence, name: str, inputs: list[jax.Array]) -> dict[str, Any]:
    """`randomization` of the mean map over several versions f32[few h w c] of the images."""

    def mean_maps(variables: Variables) -> np.ndarray:
        return np.mean([evidence.again(name, variables, images01=x) for x in inputs], axis=0)

    networks = evidence.shared(_networks)
    if evidence.passes(name) * len(inputs) > MANY_PASSES:
        networks = networks[-1:]
    maps = evidence.few_maps(name) if len(inputs) == 1 else mean_maps(evidence.subject.variables)
    means, constant = {}, False
    for stage, randomized in networks:
        randomized_maps = mean_maps(randomized)
        constant = not np.ptp(randomized_maps, axis=(1, 2)).any()
        means[stage] = float(spearman(maps, randomized_maps).mean())
    value = list(means.values())[-1]
    return {"value": value, "stages": means, "passed": None if constant else value <= RANDOMIZED}


def random_labels(evidence: Evidence, name: str) -> dict[str, Any] | None:
    """Rank correlation of the absolute values of a map with those of a head with permuted classes.

    The columns of the trained head are permuted at random, so that each class is read out with the
    weights of another one; features stay as they are. For the score of a class this equals the
    "random logit" of Sixt et al., and it is computed so: the targets are permuted. Adebayo et al.
    train a new network on permuted labels instead, which a report has neither the data nor the time
    for.

    Returns:
      `{"value", "passed"}`: the mean over images and `PERMUTATIONS` permutations (one if they would
      need more than `MANY_PASSES` passes), and whether it is at most `RANDOMIZED`. None for another
      objective than classes, and with fewer than three classes, where the logits are often
      negatives of each other. "passed" is None if all maps with permuted labels are constant.

    Reference: Adebayo et al. 2018, arXiv:1810.03292, section 3.2; Sixt et al. 2020,
      arXiv:1912.09818, random logit test.
    """
    targets = evidence.rows(evidence.few).targets
    if evidence.objective or (k := targets.shape[1]) < 3:
        return None
    rng = _generator(jax.random.fold_in(evidence.subject.key, 3))
    maps, values, constant = evidence.few_maps(name), [], True
    many = evidence.passes(name) * PERMUTATIONS > MANY_PASSES
    for _ in range(1 if many else PERMUTATIONS):
        permuted = evidence.again(name, targets=targets[:, derangement(rng, k)])
        constant &= not np.ptp(permuted, axis=(1, 2)).any()
        values.append(spearman(maps, permuted).mean())
    value = float(np.mean(values))
    return {"value": value, "passed": None if constant else value <= RANDOMIZED}


def derangement(rng: np.random.Generator, k: int) -> np.ndarray:
    """A random permutation i[k] that keeps nothing in its place: one cycle."""
    cycle = rng.permutation(k)
    columns = np.empty_like(cycle)
    columns[cycle] = np.roll(cycle, 1)
    return columns


# ------------------------------------------------------------------------- same network, same map


def constant_image(evidence: Evidence, name: str) -> dict[str, Any]:
    """How much the map of a constant image depends on the position.

    The images are replaced by their mean colors. Padding lets a network know the position, so a
    true map may depend on it, too, and no method fails.

    Returns:
      `{"value"}`: the standard deviation over the pixels divided by the root mean square, averaged
      over images: 0 for a uniform map and a map of zeros, 1 for a map whose mean is 0.
    """
    images01 = evidence.rows(evidence.few).images01
    mean = jnp.mean(images01, axis=(1, 2), keepdims=True)
    maps = evidence.again(name, images01=jnp.broadcast_to(mean, images01.shape)).astype(np.float64)
    strength = np.sqrt(np.square(maps).mean(axis=(1, 2)))
    spread = maps.std(axis=(1, 2)) / np.maximum(strength, np.finfo(np.float32).tiny)
    return {"value": float(spread.mean())}


def input_shift(evidence: Evidence, name: str) -> dict[str, Any]:
    """How much a map changes if a constant is added to the image and removed by the network.

    The second network subtracts `SHIFT` more during normalization, so its activations are the same
    for the shifted image, up to rounding. A map that differs depends on the encoding of the pixels
    instead of the network: such as the product of gradient and pixel, or one with a fixed baseline.

    Returns:
      `{"value", "passed"}`: the largest difference over that of the absolute values of the map, the
      mean over images, and whether it is at most `SHIFTED`. Images with a map of zeros count as 0
      if it stays so, and as 1 otherwise.

    Reference: Kindermans et al. 2017, arXiv:1711.00867; the bias of the first layer takes the
      constant away there, which is not exact with padding.
    """
    clf, variables, *_ = evidence.subject
    shifted = evidence.explanations[name]
    if evidence.passes(name):  # without the network, the second program would be the first
        network = clf.with_pixels(mean=tuple(m + SHIFT for m in clf.pixels.mean))
        objective = evidence.objective
        shifted = make(shifted.method, network, objective=objective, slots=evidence.slots)
    rows = evidence.rows(evidence.few)
    maps = evidence.few_maps(name)
    after = np.asarray(shifted.program(variables, rows._replace(images01=rows.images01 + SHIFT)))
    difference, largest = (np.abs(m).max(axis=(1, 2)) for m in (after - maps, maps))
    ratio = np.where(largest > 0, difference / np.where(largest > 0, largest, 1), difference > 0)
    value = float(ratio.mean())
    return {"value": value, "passed": value <= SHIFTED}


def seeds(evidence: Evidence, name: str) -> dict[str, Any]:
    """Rank correlation of the absolute values of a map with those of another random key.

    Returns:
      `{"value"}`, the mean over images; 1 for a method that draws no random numbers. A map that is
      constant has the value 0.
    """
    keys = per_image_keys(jax.random.fold_in(evidence.subject.key, 4), evidence.few)
    again = evidence.again(name, keys=keys)
    return {"value": float(spearman(evidence.few_maps(name), again).mean())}
