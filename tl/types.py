"""Types of the values that modules of `tl` exchange.

This module contains no logic and imports no other module of `tl`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array | np.ndarray
"""An array on a device or on the host, for parameters that accept both."""

Params = Mapping[str, Any]
"""Nested dict of arrays. A leaf is named by its path: `backbone/stage1/block0/conv1/kernel`."""

Variables = Mapping[str, Params]
"""`{"params": ..., "batch_stats": ...}`: parameters, and running statistics of BatchNorm."""


class DetailedError(ValueError):
    """A short message, and the full list that it summarizes.

    Attributes:
      details: one sentence per problem, in full.
    """

    def __init__(self, message: str, details: Iterable[str]):
        super().__init__(message)
        self.details = tuple(details)


class CacheWarning(UserWarning):
    """A cache cannot be read or written, so values are computed again."""


class Mode(enum.Enum):
    """The behavior of BatchNorm: the statistics it uses, and whether the running ones change."""

    EVAL = "eval"
    """Running statistics normalize and stay unchanged; images are independent."""

    TRAIN = "train"
    """The statistics of the batch normalize, and the running statistics move toward them."""


class Output(NamedTuple):
    """The result of one forward pass.

    Attributes:
      logits: f32[b k], or None for a network without a classifier.
      features: f32[b d], the pooled activations that are the input of the head.
      endpoints: name -> f32[b h w c], activations of each stage and block; `jit` removes unused
        ones.
      stats: the `batch_stats` after this pass: updated in `Mode.TRAIN`, unchanged in `Mode.EVAL`.
    """

    logits: jax.Array | None
    features: jax.Array
    endpoints: dict[str, jax.Array]
    stats: Params
