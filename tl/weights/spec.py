"""`WeightsSpec`, the row of a published weights file in the manifest: data, no logic."""

from __future__ import annotations

import dataclasses

from tl.pixels import PixelSpec


@dataclasses.dataclass(frozen=True)
class WeightsSpec:
    """One published weights file: in a Python package, in a hub repository, or at a URL.

    Attributes:
      arch: the architecture.
      tag: the publisher's name for the weights; `ARCH.TAG` identifies them.
      source: the rename table, a key of `tl.weights.tables.sources`.
      classes: class table of the classifier, or None if the file holds features only.
      pixels: preprocessing that the weights were trained with.
      origin: publisher of the weights.
      licence: license of the weights.
      top1: published ImageNet top-1 accuracy at `pixels`, in percent; None if none was published.
      package: the Python distribution that contains the file, or "".
      file: path of the file inside the distribution, or "".
      sha256: SHA-256 of the packaged file, which is checked; "" for other files.
      hub: repository of the Hugging Face hub in timm's layout, or "".
      url: page or file where the weights were published.
      ignore: suffixes of the names of tensors in the file that are not needed.
    """

    arch: str
    tag: str
    source: str
    classes: str | None
    pixels: PixelSpec
    origin: str
    licence: str
    top1: float | None = None
    package: str = ""
    file: str = ""
    sha256: str = ""
    hub: str = ""
    url: str = ""
    ignore: tuple[str, ...] = ("num_batches_tracked",)
