"""Initializers of networks that are trained from scratch.

`Recipe.init` names a row of `INITIALIZERS`; `fit` then starts from these parameters instead of the
pretrained ones. The head is not drawn: `models.heads` decides how it starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tl import paths
from tl.types import Variables

INITIALIZERS: Mapping[str, Callable[[int, int], float]] = {
    "he": lambda fan_in, fan_out: math.sqrt(2.0 / fan_in),
    "glorot": lambda fan_in, fan_out: math.sqrt(2.0 / (fan_in + fan_out)),
    "lecun": lambda fan_in, fan_out: math.sqrt(1.0 / fan_in),
    "normal": lambda fan_in, fan_out: 0.01,
}
"""Name -> `(fan_in, fan_out) -> standard deviation` of the kernels, which are normal.

Reference:
  He et al. 2015, arXiv:1502.01852, equation 10 (the networks of `tl.backbones` start with equation
  14, of fan_out, as in torchvision); Glorot & Bengio 2010, AISTATS, equation 12; LeCun et al. 1998,
  "Efficient BackProp", equation 16; Krizhevsky et al. 2012, section 5.
"""

# The other leaves, as before the first step of a network.
_CONSTANTS = {"bias": 0.0, "scale": 1.0, "mean": 0.0, "var": 1.0}


def redraw(variables: Variables, name: str, seed: int) -> Variables:
    """The variables with another backbone: kernels are drawn, and all other leaves are constants.

    Biases and means are 0, scales and variances 1.

    Args:
      variables: as `load` returns them.
      name: a name of `INITIALIZERS`; "" returns `variables`.
      seed: of the kernels.
    """
    if not name:
        return variables
    rng = np.random.default_rng(seed)

    def leaf(path: str, value: Any) -> np.ndarray:
        kind, shape = path.rpartition("/")[2], value.shape
        if kind != "kernel":
            return np.full(shape, _CONSTANTS[kind], np.float32)
        fan_in, positions = math.prod(shape[:-1]), math.prod(shape[:-2])
        std = INITIALIZERS[name](fan_in, positions * shape[-1])
        return (std * rng.standard_normal(shape)).astype(np.float32)

    def drawn(tree: Mapping[str, Any]) -> Mapping[str, Any]:
        if "backbone" not in tree:
            return tree
        leaves = paths.flatten(tree["backbone"])
        return {**tree, "backbone": paths.unflatten({n: leaf(n, v) for n, v in leaves.items()})}

    return {kind: drawn(tree) for kind, tree in variables.items()}
