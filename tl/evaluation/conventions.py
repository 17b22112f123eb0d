"""The preprocessing that weights expect, and the preprocessing that an array has gone through.

`compare_conventions` classifies images under the usual conventions and ranks them. `match_array`
finds the convention that explains an array of preprocessed images, such as the input that other
code feeds to a network. Only affine conventions are considered, in either order of the channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl import inference, metrics, pixels
from tl.evaluation import paired
from tl.inference import LoadedImages
from tl.models import Classifier
from tl.pixels import CAFFE, IMAGENET_MEAN, IMAGENET_STD, INCEPTION, LITE, TORCHVISION, PixelSpec
from tl.types import Variables

PUBLISHED = "the weights' own"
"""Name of the convention that weights come with, if it is not one of the usual ones."""

# Images with which an array is compared (chosen, not tuned; more do not change the result).
COMPARED = 32
# Largest mean difference, in 8-bit levels, explained by another library's resize (chosen, not
# tuned).
RESIZE_DIFFERENCE = 12
# Values from 0 to 1, unchanged.
UNIT = PixelSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
# Values from 0 to 255.
EIGHT_BIT = UNIT.replace(std=(1 / 255, 1 / 255, 1 / 255))
# ImageNet's mean and standard deviation over all channels, for values in [0, 1].
PHOTO_MEAN, PHOTO_STD = 0.45, 0.26


def values(spec: PixelSpec) -> dict[str, Any]:
    """The fields of a spec that act on a pixel's value; the geometry is left out."""
    return {"mean": spec.mean, "std": spec.std, "channels": spec.channels}


def conventions(expected: PixelSpec) -> dict[str, PixelSpec]:
    """The eight usual conventions by name, with the size, crop and interpolation of `expected`.

    `expected` itself comes first, under the name `PUBLISHED`, unless it is one of the eight.
    """
    crop, squash = expected.replace(resize="shorter"), expected.replace(resize="squash")
    usual = {
        "torch": crop.replace(**values(TORCHVISION)),
        # OpenCV reads BGR.
        "torch, BGR": crop.replace(**values(TORCHVISION) | {"channels": "bgr"}),
        "torch, squashed": squash.replace(**values(TORCHVISION)),
        "0 to 1": crop.replace(**values(UNIT)),
        "0 to 255": crop.replace(**values(EIGHT_BIT)),
        "-1 to 1": crop.replace(**values(INCEPTION)),
        # Keras' MobileNet after load_img.
        "-1 to 1, squashed": squash.replace(**values(INCEPTION)),
        "caffe": crop.replace(**values(CAFFE)),
    }
    return usual if expected in usual.values() else {PUBLISHED: expected, **usual}


# ---- images under every convention ----


def compare_conventions(
    clf: Classifier,
    variables: Variables,
    images: Mapping[str, LoadedImages],
    labels: np.ndarray | None,
) -> dict[str, Any]:
    """The accuracy or information of a network under every convention, best first.

    Without labels the conventions are ranked by the mutual information of image and prediction, the
    logarithm of the Inception score. Confidence alone would favor a network that predicts one class
    for every image.

    Args:
      clf, variables: the network, with the preprocessing that it came with.
      images: the same n images under each resize rule, "shorter" and "squash".
      labels: i[n], or None.

    Returns:
      "conventions", one row per convention; "ranked_by", "top1" or "information"; "best", a name;
      "cannot_be_told_apart", the names whose accuracy does not differ from the best one's in an
      exact paired test at 5 %. The rows hold its "p".

    Reference: Salimans et al. 2016, arXiv:1606.03498, section 4 (Inception score).
    """
    plain = clf.with_pixels(**values(UNIT))
    variables = jax.device_put(clf.fold_batch_norm(variables))
    rows, correct = [], {}
    for name, spec in conventions(clf.pixels).items():
        logits = _normalized_logits(plain, variables, spec, images[spec.resize].images)
        row = {"name": name, "own": spec == clf.pixels, "pixels": spec.as_dict()}
        rows.append(row | _figures(logits, labels))
        if labels is not None:
            correct[name] = metrics.topk_correct(logits, labels, 1).astype(int)
    ranked_by = "information" if labels is None else "top1"
    rows.sort(key=lambda row: (row[ranked_by], row["own"]), reverse=True)
    best, *others = rows
    for row in others if correct else []:
        row["p"] = paired.exact_p(correct[best["name"]] - correct[row["name"]])
    return {
        "conventions": rows,
        "ranked_by": ranked_by,
        "best": best["name"],
        "cannot_be_told_apart": [row["name"] for row in others if row.get("p", 0.0) >= 0.05],
    }


def _normalized_logits(
    plain: Classifier, variables: Variables, spec: PixelSpec, images: np.ndarray
) -> np.ndarray:
    """Logits f32[n k] of images uint8[n s s 3] normalized by `spec`.

    `plain` is the network with the identity as its own normalization, so that it compiles once for
    all conventions.
    """
    forward = inference.forward(plain)
    normalize = lambda rows: pixels.normalize(spec, jnp.asarray(pixels.to_images01(rows)))
    return inference.in_batches(lambda rows: forward(variables, normalize(rows)), images)


def _figures(logits: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
    """Mean confidence, entropy and information in nats, and accuracy where labels are known."""
    p = metrics.softmax(logits)
    entropy = lambda p: -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1)
    row: dict[str, Any] = {
        "n": len(p),
        "confidence": float(p.max(axis=1).mean()),
        "entropy": float(entropy(p).mean()),
        "information": float(entropy(p.mean(axis=0)) - entropy(p).mean()),
    }
    if labels is not None:
        row |= metrics.share("top1", metrics.topk_correct(logits, labels, 1))
    return row


def verdict(result: Mapping[str, Any]) -> str:
    """The outcome of `compare_conventions` as a sentence."""
    best = result["conventions"][0]
    if best["name"] == PUBLISHED:
        text = "These weights expect the convention they came with"
    elif best["own"]:
        text = f"These weights expect {best['name']} (their own)"
    else:
        text = f"These weights expect {best['name']}, which is not the convention they came with"
    if result["ranked_by"] == "information":
        return f"{text}; ranked without labels, by the information of the predictions."
    if undecided := result["cannot_be_told_apart"]:
        text += f"; a paired test cannot tell it from {' and '.join(undecided)}"
    return f"{text}."


# ---- arrays of preprocessed images ----


def candidates(expected: PixelSpec) -> dict[str, PixelSpec]:
    """The conventions and common mistakes that an array may have gone through, by name."""
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    affine = lambda m, s: UNIT.replace(mean=tuple(map(float, m)), std=tuple(map(float, s)))
    specs = {
        "0 to 255": EIGHT_BIT,
        "0 to 1": UNIT,
        "-1 to 1": INCEPTION,
        "torch": TORCHVISION,
        "caffe": CAFFE,
        "caffe's means on RGB": CAFFE.replace(channels="rgb", mean=CAFFE.mean[::-1]),
        "EfficientNet-Lite": LITE,
        "torch, normalized twice": affine(mean + mean * std, std * std),
        "torch on 0 to 255 (not divided by 255)": affine(mean / 255, std / 255),
        "torch after -1 to 1": affine((mean + 1) / 2, std / 2),
        "-1 to 1, normalized twice": affine([0.75] * 3, [0.25] * 3),
        "divided by 255 twice": affine([0.0] * 3, [255.0] * 3),
    }
    if not any(values(spec) == values(expected) for spec in specs.values()):
        specs = {PUBLISHED: expected, **specs}
    swapped = {
        f"{name}, channels swapped": spec.replace(
            channels="rgb" if spec.channels == "bgr" else "bgr"
        )
        for name, spec in specs.items()
    }
    return specs | swapped


def read_array(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """An array of preprocessed images from a .npy file.

    Args:
      path: holds numbers [b h w 3], [h w 3], [b 3 h w] or [3 h w].

    Returns:
      The array as f32[b h w 3], and its description: shape, dtype, layout, range, mean and standard
      deviation per channel, and the number of values that are not finite.

    Raises:
      ValueError: the file is not a .npy file of numbers, no axis has three channels, or no value is
        finite.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"`array` must be a .npy file of numbers: got {str(path)!r} ({error}); write one with "
            "numpy.save"
        ) from None
    is_array = isinstance(array, np.ndarray)
    if not is_array or array.dtype.kind not in "uif" or array.ndim not in (3, 4) or not array.size:
        got = f"{array.dtype}{list(array.shape)}" if is_array else "several arrays"
        raise ValueError(
            f"`array` has the wrong type: got {got}, expected numbers [b h w 3], [h w 3], "
            "[b 3 h w] or [3 h w]"
        )
    batch = array if array.ndim == 4 else array[None]
    if batch.shape[-1] != 3 and batch.shape[1] != 3:
        raise ValueError(
            f"`array` has no axis of 3 channels: got the shape {list(array.shape)}, expected 3 "
            "channels first or last; remove the alpha channel"
        )
    channels_last = batch.shape[-1] == 3
    nhwc = (batch if channels_last else batch.transpose(0, 2, 3, 1)).astype(np.float32)
    finite = np.isfinite(nhwc)
    if not finite.any():
        raise ValueError("`array` has no finite value: expected numbers")
    by_channel = [channel[np.isfinite(channel)] for channel in np.moveaxis(nhwc, 3, 0)]
    description = {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "layout": "channels last" if channels_last else "channels first",
        "not_finite": int((~finite).sum()),
        "min": float(nhwc[finite].min()),
        "max": float(nhwc[finite].max()),
        "mean": [float(np.mean(channel)) for channel in by_channel],
        "std": [float(np.std(channel)) for channel in by_channel],
    }
    return nhwc, description


def match_array(
    array: np.ndarray,
    description: Mapping[str, Any],
    expected: PixelSpec,
    photographs: Sequence[np.ndarray] | None,
) -> dict[str, Any]:
    """The convention that an array follows, and whether the weights expect it.

    Args:
      array, description: as `read_array` returns them.
      expected: the preprocessing that the weights expect.
      photographs: the same images as decoded, uint8[h w 3], in the same order. Without them, or if
        the array is not square, the values of the array decide alone.

    Returns:
      `description` and "follows", the name of a candidate or None; "evidence", "pictures" or
      "numbers"; "exact", whether the images are reproduced to within rounding;
      "as_the_weights_want", a bool; "notes", sentences; "candidates", best first.

    Raises:
      ValueError: the number of images differs, or every image has a value that is not finite.
    """
    n, h, w, _ = array.shape
    if photographs is not None and n != len(photographs):
        raise ValueError(
            f"`array` and `images` differ in length: got {n} and {len(photographs)} images, "
            "expected the same images in the same order"
        )
    specs, notes = candidates(expected), []
    if description["dtype"].startswith(("uint", "int")):
        notes.append(f"its values are integers ({description['dtype']}), so not normalized")
    if description["layout"] == "channels first":
        notes.append("channels come first (PyTorch's NCHW), but tl expects them last")
    if description["not_finite"]:
        notes.append(f"{description['not_finite']} values are NaN or infinite")
    if photographs is not None and h == w:
        rows = rank_by_images(array, expected, photographs)
        best = rows[0]
        exact = best["largest_difference"] < 0.6
        plausible = best["mean_difference"] < RESIZE_DIFFERENCE
        geometry = (best["resize"], best["interpolation"])
        method = f"{best['name']}, {best['resize']} {best['interpolation']}"
        if exact:
            notes.append(
                f"reproduced from these images by {method}, to within "
                f"{best['largest_difference']:.2f} of 255 levels"
            )
        else:
            notes.append(
                f"closest to these images by {method}, with a mean difference of "
                f"{best['mean_difference']:.1f} of 255 levels"
            )
        suitable = not exact or geometry == (expected.resize, expected.interpolation)
        if not suitable:
            notes.append(f"the weights expect {expected.resize} {expected.interpolation}")
    else:
        rows, exact = rank_by_values(array, expected), False
        best = rows[0]
        plausible = best["outside"] < 0.02 and best["unlike"] < 3
        levels = np.asarray(pixels.denormalize(specs[best["name"]], jnp.asarray(array)))
        red, _, blue = np.nanmean(levels, axis=(0, 1, 2))
        suitable = blue <= red + 0.02
        if not suitable:
            notes.append(
                "bluer than photographs are on average, as after a swap of red and blue: pass the "
                "images to be certain"
            )
    spec = specs[best["name"]]
    close = np.allclose([spec.mean, spec.std], [expected.mean, expected.std], atol=0.01, rtol=0.01)
    return {
        **description,
        "follows": best["name"] if plausible else None,
        "evidence": "numbers" if "outside" in best else "pictures",
        "exact": exact,
        "as_the_weights_want": bool(
            plausible and close and suitable and spec.channels == expected.channels
        ),
        "notes": notes,
        "candidates": rows,
    }


def rank_by_images(
    array: np.ndarray, expected: PixelSpec, photographs: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    """Every candidate with its distance from the array under its best resize rule, nearest first.

    Args:
      array: f32[n s s 3].
      expected: the preprocessing that the weights expect.
      photographs: the n images as decoded, uint8[h w 3].

    Returns:
      Rows `{"name", "largest_difference", "mean_difference", "resize", "interpolation"}`;
      differences in 8-bit levels.

    Raises:
      ValueError: every image of the array has a value that is not finite.
    """
    usable = np.flatnonzero(np.isfinite(array).all(axis=(1, 2, 3)))[:COMPARED]
    if not len(usable):
        raise ValueError("`array` has a NaN or infinity in every image: expected a finite image")
    normalized = jnp.asarray(array[usable])
    base = PixelSpec(size=normalized.shape[1], crop=expected.crop)
    rules = [
        base.replace(resize=resize, interpolation=interpolation)
        for resize in ("shorter", "squash")
        for interpolation in pixels.INTERPOLATIONS
    ]
    prepared = [
        jnp.asarray(np.stack([pixels.prepare(rule, photographs[i]) for i in usable]), jnp.float32)
        for rule in rules
    ]
    rows = []
    for name, spec in candidates(expected).items():
        levels = 255 * pixels.denormalize(spec, normalized)
        mean, largest, best = min(
            (float(jnp.abs(levels - p).mean()), float(jnp.abs(levels - p).max()), i)
            for i, p in enumerate(prepared)
        )
        rows.append(
            {
                "name": name,
                "largest_difference": largest,
                "mean_difference": mean,
                "resize": rules[best].resize,
                "interpolation": rules[best].interpolation,
            }
        )
    return sorted(rows, key=lambda row: row["mean_difference"])


def rank_by_values(array: np.ndarray, expected: PixelSpec) -> list[dict[str, Any]]:
    """Every candidate with the evidence of the values alone, most likely first.

    The inverse of the right convention gives 8-bit levels: within 0 to 255, integers if the image
    was resized in 8 bits, and with about ImageNet's mean and standard deviation. The order of the
    channels cannot be determined.

    Returns:
      Rows `{"name", "outside", "whole", "unlike"}`: the share of values outside of 0 to 255, the
      share of integers, and the distance from ImageNet's mean and standard deviation.
    """
    rows = []
    for name, spec in candidates(expected).items():
        if name.endswith("swapped"):
            continue
        levels = 255 * np.asarray(pixels.denormalize(spec, jnp.asarray(array)))
        levels = levels[np.isfinite(levels)]
        outside = float(np.mean((levels < -1) | (levels > 256)))
        whole = float(np.mean(np.abs(levels - np.rint(levels)) < 0.06))
        unlike = abs(levels.mean() / 255 - PHOTO_MEAN) / 0.2
        unlike += abs(np.log2(max(levels.std(), 1e-6) / 255 / PHOTO_STD))
        rows.append({"name": name, "outside": outside, "whole": whole, "unlike": float(unlike)})
    certain = lambda row: row["whole"] > 0.95 and row["outside"] == 0
    return sorted(rows, key=lambda row: (not certain(row), 20 * row["outside"] + row["unlike"]))
