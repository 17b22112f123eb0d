"""Networks for other numbers of input channels than three: the first kernel and the pixel spec."""

from __future__ import annotations

import dataclasses

import numpy as np

from tl.models.classifier import Classifier
from tl.paths import flatten, unflatten
from tl.pixels import PixelSpec
from tl.types import Variables


def averaged(spec: PixelSpec, channels: int) -> PixelSpec:
    """The spec for another number of input channels, each with the average of the three."""
    if channels == len(spec.mean):
        return spec
    mean, std = (float(np.mean(v)) for v in (spec.mean, spec.std))
    return spec.replace(mean=(mean,) * channels, std=(std,) * channels, channels="rgb")


def with_channels(
    clf: Classifier, variables: Variables, channels: int | None
) -> tuple[Classifier, Variables]:
    """The network for another number of input channels; only its first kernel changes.

    Args:
      clf: a network with three input channels, or with `channels`.
      variables: of `clf`.
      channels: number of input channels; default: that of `clf`.

    Raises:
      ValueError: the network has neither three nor `channels` input channels.
    """
    old = len(clf.pixels.mean)
    if channels in (None, old):
        return clf, variables
    if old != 3:
        raise ValueError(
            f"`in_channels` must be {old}, as in these weights: got {channels}, which is possible "
            "only for weights with 3 channels"
        )
    clf = dataclasses.replace(clf, pixels=averaged(clf.pixels, channels))
    shapes, leaves = flatten(clf.shapes()), flatten(variables)
    adapted = {
        name: leaf if leaf.shape == shapes[name].shape else adapt_channels(leaf, channels)
        for name, leaf in leaves.items()
    }
    return clf, {"batch_stats": {}, **unflatten(adapted)}


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A first kernel for images with another number of channels, by the rule of timm's `in_chans`.

    For one channel, the three are summed, so that a gray image gives the activations that its three
    equal channels gave. For more, the three are repeated in turn and multiplied by 3 / channels,
    which keeps the scale of the sum.

    Args:
      kernel: f32[kh kw 3 o].
      channels: number of input channels, at least 1.

    Returns:
      f32[kh kw channels o].
    """
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = np.concatenate([kernel] * -(-channels // kernel.shape[2]), axis=2)[:, :, :channels]
    return repeated * np.float32(kernel.shape[2] / channels)
