"""Names for the values that pass between `tl`'s modules. A leaf: it imports nothing of `tl` and holds no logic."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray
"""What public functions take where a device array and a host array are equally good."""

Params = Mapping[str, Any]
"""Nested dict of arrays; a leaf's name is its path, `backbone/stage1/block0/conv1/kernel`."""

Variables = Mapping[str, Params]
"""`{"params": ..., "batch_stats": ...}`: what is learned by gradients, and what is counted by BatchNorm."""


class Mode(enum.Enum):
    """How BatchNorm behaves: whose statistics normalise, and whether the running ones move."""

    EVAL = "eval"
    """Running statistics normalise and stay as they are; every image is treated alone."""

    TRAIN = "train"
    """The batch's own statistics normalise, and the running ones move towards them."""


class Output(NamedTuple):
    """What one forward pass yields.

    Attributes:
      logits: f32[b k], or None for a network without a classifier.
      features: f32[b d], the pooled activations that a head sees.
      endpoints: name -> f32[b h w c], every stage and block; unused ones cost nothing under `jit`.
      stats: the `batch_stats` after this pass: moved in `Mode.TRAIN`, unchanged in `Mode.EVAL`.
    """

    logits: jax.Array | None
    features: jax.Array
    endpoints: dict[str, jax.Array]
    stats: Params
