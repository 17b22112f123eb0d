"""What is known of one published weights file: data, no logic."""

from __future__ import annotations

import dataclasses

from tl.pixels import PixelSpec


@dataclasses.dataclass(frozen=True)
class WeightsSpec:
    """One published weights file: in an installed package, in a hub repository, or only at a page to fetch it from.

    Attributes:
      arch, tag: `arch.tag` names these weights.
      source: the rename table, a key of `tl.weights.tables.sources`.
      classes: class table of its classifier, or None where the file holds features only.
      pixels: the preprocessing that these weights were trained with.
      origin, licence: whose weights they are.
      top1: published ImageNet top-1 accuracy at `pixels`, in percent; None where none was published.
      package, file: the Python distribution that carries the file, and the file's path inside it; "" where none does.
      sha256: of the file; anything else is refused. "" where only the hub says it.
      hub: a repository of the Hugging Face hub in timm's layout; "" where there is none.
      url: the page or file where they were published.
      ignore: endings of tensor names that are in the file and not needed.
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
