"""What the rename tables share: torch's layers, and what a source form is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tl.pixels import PixelSpec
from tl.weights.port import Target

Table = dict[str, Target]


class Source(NamedTuple):
    """One source's way to name a family's tensors.

    Attributes:
      table: `(module, *, head) -> source name -> Target`; with `head`, the classifier's rows too.
      pixels: the preprocessing that goes with this source's weights where nothing else is known.
    """

    table: Callable[..., Table]
    pixels: PixelSpec


TORCHVISION_PIXELS = PixelSpec(interpolation="bilinear")  # torchvision's reference: resize 256, crop 224, bilinear


def torch_norm(source: str, path: str) -> Table:
    """A torch BatchNorm's four tensors, under our `path`'s `norm`."""
    params, stats = f"params/backbone/{path}/norm", f"batch_stats/backbone/{path}/norm"
    return {
        f"{source}.weight": Target(f"{params}/scale"),
        f"{source}.bias": Target(f"{params}/bias"),
        f"{source}.running_mean": Target(f"{stats}/mean"),
        f"{source}.running_var": Target(f"{stats}/var"),
    }


def torch_conv_norm(conv: str, norm: str, path: str) -> Table:
    """A torch convolution without bias and the BatchNorm after it, as our `ConvNorm` at `path`."""
    return {f"{conv}.weight": Target(f"params/backbone/{path}/kernel", "oihw"), **torch_norm(norm, path)}


def torch_dense(source: str, path: str, layout: str = "oi") -> Table:
    """A torch linear layer, as our dense layer at `path` (from the top: `params/` is put before it)."""
    return {
        f"{source}.weight": Target(f"params/{path}/kernel", layout),
        f"{source}.bias": Target(f"params/{path}/bias"),
    }
