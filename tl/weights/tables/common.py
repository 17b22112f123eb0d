"""Building blocks of the rename tables: `Source`, and the layers of torch and Keras.

In the docstrings, `path` is the path of a layer in `tl`'s backbone, without `params/backbone/`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tl.pixels import PixelSpec
from tl.weights.port import Target

Table = dict[str, Target]


class Source(NamedTuple):
    """The names of a family's tensors and layers in one source.

    Attributes:
      table: `(module, *, head) -> Table`; the table includes the classifier if `head` is True.
      pixels: preprocessing of the source's weights if the manifest has no row for them.
      endpoints: `module -> {endpoint: layer of the source with the same output}`, used for
        comparisons.
      pooled: layer of the source whose flattened output is the pooled features; "<NAME" for the
        input of a layer (torch); "" if the pooled features are the mean of the last endpoint.
    """

    table: Callable[..., Table]
    pixels: PixelSpec
    endpoints: Callable[..., dict[str, str]] = lambda module: {}
    pooled: str = ""


def torch_norm(source: str, norm: str) -> Table:
    """A torch BatchNorm -> the `Norm` at the path `norm`."""
    params, stats = f"params/backbone/{norm}", f"batch_stats/backbone/{norm}"
    return {
        f"{source}.weight": Target(f"{params}/scale"),
        f"{source}.bias": Target(f"{params}/bias"),
        f"{source}.running_mean": Target(f"{stats}/mean"),
        f"{source}.running_var": Target(f"{stats}/var"),
    }


def torch_conv(source: str, path: str) -> Table:
    """A torch convolution with bias -> the `Conv` at `path`."""
    leaf = f"params/backbone/{path}"
    return {
        f"{source}.weight": Target(f"{leaf}/kernel", "oihw"),
        f"{source}.bias": Target(f"{leaf}/bias"),
    }


def torch_conv_norm(conv: str, norm: str, path: str, *, bias: bool = False) -> Table:
    """A torch convolution and the BatchNorm after it -> the `ConvNorm` at `path`."""
    table = torch_conv(conv, path) | torch_norm(norm, f"{path}/norm")
    if not bias:
        del table[f"{conv}.bias"]
    return table


def torch_dense(source: str, path: str, layout: str = "oi") -> Table:
    """A torch linear layer -> the dense layer at `params/` plus `path`."""
    return {
        f"{source}.weight": Target(f"params/{path}/kernel", layout),
        f"{source}.bias": Target(f"params/{path}/bias"),
    }


def keras_norm(source: str, norm: str) -> Table:
    """A Keras BatchNormalization -> the `Norm` at the path `norm`."""
    params, stats = f"params/backbone/{norm}", f"batch_stats/backbone/{norm}"
    return {
        f"{source}/gamma": Target(f"{params}/scale"),
        f"{source}/beta": Target(f"{params}/bias"),
        f"{source}/moving_mean": Target(f"{stats}/mean"),
        f"{source}/moving_variance": Target(f"{stats}/var"),
    }


def keras_conv(source: str, path: str) -> Table:
    """A Keras Conv2D with bias -> the `Conv` at `path`."""
    leaf = f"params/backbone/{path}"
    return {f"{source}/kernel": Target(f"{leaf}/kernel"), f"{source}/bias": Target(f"{leaf}/bias")}


def keras_conv_norm(
    conv: str, norm: str, path: str, *, bias: bool = False, layout: str = "same"
) -> Table:
    """A Keras convolution and the BatchNormalization after it -> the `ConvNorm` at `path`.

    A depthwise convolution has the layout "hwcm".
    """
    table = {f"{conv}/kernel": Target(f"params/backbone/{path}/kernel", layout)} | keras_norm(
        norm, f"{path}/norm"
    )
    return table | ({f"{conv}/bias": Target(f"params/backbone/{path}/bias")} if bias else {})


def keras_dense(source: str, path: str, layout: str = "same") -> Table:
    """A Keras Dense layer -> the dense layer at `params/` plus `path`.

    A 1x1 convolution has the layout "11io".
    """
    return {
        f"{source}/kernel": Target(f"params/{path}/kernel", layout),
        f"{source}/bias": Target(f"params/{path}/bias"),
    }
