"""What the rename tables share: the layers of torch and Keras, and what a source form is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tl.pixels import PixelSpec
from tl.weights.port import Target

Table = dict[str, Target]


class Source(NamedTuple):
    """One source's way to name a family's tensors and layers.

    Attributes:
      table: `(module, *, head) -> source name -> Target`; with `head`, the classifier's rows too.
      pixels: the preprocessing that goes with this source's weights where nothing else is known.
      endpoints: `module -> {our endpoint: the source's layer whose output it is}`, every endpoint, for comparisons.
      pooled: the source's layer whose output, flattened, are the pooled features (torch: its input, with "<" before the
        name); "" where the pooled features are the mean of the last endpoint.
    """

    table: Callable[..., Table]
    pixels: PixelSpec
    endpoints: Callable[..., dict[str, str]] = lambda module: {}
    pooled: str = ""


def torch_norm(source: str, norm: str) -> Table:
    """A torch BatchNorm's four tensors, as our `Norm` at the path `norm`."""
    params, stats = f"params/backbone/{norm}", f"batch_stats/backbone/{norm}"
    return {
        f"{source}.weight": Target(f"{params}/scale"),
        f"{source}.bias": Target(f"{params}/bias"),
        f"{source}.running_mean": Target(f"{stats}/mean"),
        f"{source}.running_var": Target(f"{stats}/var"),
    }


def torch_conv(source: str, path: str) -> Table:
    """A torch convolution with bias, as our `Conv` at `path`."""
    at = f"params/backbone/{path}"
    return {
        f"{source}.weight": Target(f"{at}/kernel", "oihw"),
        f"{source}.bias": Target(f"{at}/bias"),
    }


def torch_conv_norm(conv: str, norm: str, path: str, *, bias: bool = False) -> Table:
    """A torch convolution and the BatchNorm after it, as our `ConvNorm` at `path`."""
    table = torch_conv(conv, path) | torch_norm(norm, f"{path}/norm")
    if not bias:
        del table[f"{conv}.bias"]
    return table


def torch_dense(source: str, path: str, layout: str = "oi") -> Table:
    """A torch linear layer, as our dense layer at `path` (from the top: `params/` is put before it)."""
    return {
        f"{source}.weight": Target(f"params/{path}/kernel", layout),
        f"{source}.bias": Target(f"params/{path}/bias"),
    }


def keras_norm(source: str, norm: str) -> Table:
    """A Keras BatchNormalization, as our `Norm` at the path `norm`."""
    params, stats = f"params/backbone/{norm}", f"batch_stats/backbone/{norm}"
    return {
        f"{source}/gamma": Target(f"{params}/scale"),
        f"{source}/beta": Target(f"{params}/bias"),
        f"{source}/moving_mean": Target(f"{stats}/mean"),
        f"{source}/moving_variance": Target(f"{stats}/var"),
    }


def keras_conv(source: str, path: str) -> Table:
    """A Keras Conv2D with bias, as our `Conv` at `path`."""
    at = f"params/backbone/{path}"
    return {f"{source}/kernel": Target(f"{at}/kernel"), f"{source}/bias": Target(f"{at}/bias")}


def keras_conv_norm(
    conv: str, norm: str, path: str, *, bias: bool = False, layout: str = "same"
) -> Table:
    """A Keras convolution and the BatchNormalization after it, as our `ConvNorm` at `path`; "hwcm" for a depthwise one."""
    table = {f"{conv}/kernel": Target(f"params/backbone/{path}/kernel", layout)} | keras_norm(
        norm, f"{path}/norm"
    )
    return table | ({f"{conv}/bias": Target(f"params/backbone/{path}/bias")} if bias else {})


def keras_dense(source: str, path: str, layout: str = "same") -> Table:
    """A Keras Dense layer, as our dense layer at `path` (from the top); "11io" where it is a 1x1 convolution."""
    return {
        f"{source}/kernel": Target(f"params/{path}/kernel", layout),
        f"{source}/bias": Target(f"params/{path}/bias"),
    }
