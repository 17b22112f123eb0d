"""The networks of `tl` against torchvision's and timm's, by files that torch itself wrote: `pytest -m parity`.

torch computes in float64, so that what is measured is the error of our float32 alone. An error is the largest
difference in units of the largest value. Without torch these tests are left out; test_backbones.py keeps the golden files.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from golden.make_golden import MORE_REFERENCES, REFERENCES, Reference, fill, import_torchvision, normalised, run

from tl import pixels
from tl.classifier import load
from tl.data.decode import decode
from tl.data.packaged import photographs
from tl.paths import flatten
from tl.pixels import PixelSpec
from tl.weights import readers, store

pytestmark = pytest.mark.parity

CASES = {
    "vgg16": ("vgg16", REFERENCES["vgg16"], "zip"),
    "resnet18": ("resnet18", REFERENCES["resnet18"], "stream"),
    "resnet50": ("resnet50", REFERENCES["resnet50"], "safetensors"),
    "mobilenet_v2": ("mobilenetv2_100", REFERENCES["mobilenetv2_100"], "zip"),
    "timm mobilenetv2_100": ("mobilenetv2_100", MORE_REFERENCES["mobilenetv2_100"], "zip"),
    "timm tf_efficientnet_lite0": ("efficientnet_lite0", REFERENCES["efficientnet_lite0"], "zip"),
}
SIZES = [(224, 224), (193, 161), (150, 202)]  # at 2^n + 1 "same" and "torch" padding agree, so two sizes that are not


@pytest.fixture(scope="session")
def torch() -> Any:
    import_torchvision()
    import torch

    return torch


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """(reference, torch model, tl classifier, its variables, jitted apply), through a file that torch wrote."""
    arch, reference, form = CASES[request.param]
    model = reference.make(1000)
    fill(model)
    file = tmp_path_factory.mktemp("weights") / "weights.bin"
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(model.state_dict(), file)
    else:
        torch.save(model.state_dict(), file, _use_new_zipfile_serialization=form == "zip")
    clf, variables = load(arch, weights=str(file))
    file.unlink()  # VGG's is half a gigabyte
    yield reference, model, clf, variables, jax.jit(clf.apply)


def error(got: Any, want: np.ndarray) -> float:
    got = np.asarray(got, np.float64)
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


def errors(
    reference: Reference, model: Any, apply: Any, variables: Any, images: np.ndarray, inputs: np.ndarray
) -> dict:
    """What differs by how much, for everything the network gives."""
    want, got = run(reference, model, inputs), apply(variables, images)
    assert set(got.endpoints) == set(want.endpoints)
    found = {"features": error(got.features, want.features)}
    if got.logits is not None:
        found["logits"] = error(got.logits, want.logits)
    return found | {name: error(got.endpoints[name], want.endpoints[name]) for name in want.endpoints}


def assert_small(found: dict[str, float]) -> None:
    print({name: f"{value:.1e}" for name, value in found.items()})
    for name, value in found.items():
        # Behind a ReLU6 the largest value is 6, whatever went in: at MobileNetV2's `top` torch's own float32 errs by 1.2e-5.
        assert value <= (1e-5 if name in ("logits", "features") else 1.5e-5), name


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logits_features_and_endpoints(pair: tuple, size: tuple[int, int]):
    reference, model, clf, variables, apply = pair
    images = np.random.RandomState(size[0]).uniform(size=(2, *size, 3)).astype(np.float32)
    assert clf.pixels.mean == PixelSpec().mean, "these sources come with ImageNet's mean and std"
    found = errors(reference, model, apply, variables, images, normalised(images))
    assert_small(found)


def test_the_loaded_file_holds_as_many_numbers_as_the_model(pair: tuple):
    _, model, _, variables, _ = pair
    assert sum(leaf.size for leaf in flatten(variables["params"]).values()) == sum(
        p.numel() for p in model.parameters()
    )


# --- the packaged weights, put into torch's networks by their order in the file --------------------------------------


def packaged(arch: str) -> Any:
    try:
        return load(arch)
    except ValueError as error:
        if "pip install" not in str(error):
            raise
        pytest.skip(str(error))


def by_order(torch: Any, model: Any, arrays: dict[str, np.ndarray], prefix: str = "") -> Any:
    """The model with a file's tensors, matched by their order alone: no table of ours takes part."""
    own = [name for name in model.state_dict() if name.startswith(prefix) and not name.endswith("num_batches_tracked")]
    given = [array for name, array in arrays.items() if not name.endswith("num_batches_tracked")]
    state = {name: torch.from_numpy(np.array(array)) for name, array in zip(own, given, strict=True)}
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert all(name.endswith("num_batches_tracked") or not name.startswith(prefix) for name in left.missing_keys)
    return model


@pytest.mark.parametrize("arch", ["efficientnet_lite0", "mobilenetv2_100", "vgg16"])
def test_packaged_weights_on_photographs(torch: Any, arch: str):
    clf, variables = packaged(arch)
    row = store.manifest_row(arch)
    arrays = readers.read(store.verified(row))
    if arch == "vgg16":  # HWIO, and the kernel's name after the bias's
        names = [f"VGG16_0/Conv_{n}/{leaf}" for n in range(13) for leaf in ("kernel", "bias")]
        arrays = {
            name: arrays[name].transpose(3, 2, 0, 1) if arrays[name].ndim == 4 else arrays[name] for name in names
        }
    reference = REFERENCES[arch]
    model = by_order(torch, reference.make(1000), arrays, "" if clf.head else "features.")
    images = pixels.to_images01(np.stack([clf.prepare(decode(photo.path)) for photo in some_photographs()]))
    mean, std = np.array(clf.pixels.mean), np.array(clf.pixels.std)
    found = errors(reference, model, jax.jit(clf.apply), variables, images, (images.astype(np.float64) - mean) / std)
    assert_small(found)


def test_plain_efficientnet_lite0_of_timm_is_another_network(torch: Any):
    """Same names, but torch's padding and eps 1e-5: ours is `tf_efficientnet_lite0`, and only its weights belong here."""
    import timm

    plain, tensorflow = (timm.create_model(name) for name in ("efficientnet_lite0", "tf_efficientnet_lite0"))
    assert set(plain.state_dict()) == set(tensorflow.state_dict())
    for model in (plain, tensorflow):
        fill(model)
        model.eval()
    assert (plain.bn1.eps, tensorflow.bn1.eps) == (1e-5, 1e-3)
    with torch.no_grad():
        images = torch.from_numpy(np.random.RandomState(0).uniform(size=(1, 3, 64, 64)).astype(np.float32))
        assert (plain(images) - tensorflow(images)).abs().max() > 0.05


# --- files and pixels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_torchs_own_files_in_every_number_type(torch: Any, tmp_path: Path, form: str):
    base = torch.arange(24).reshape(4, 6)
    state = {str(dtype): base.to(dtype) for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}
    state |= {str(dtype): base.to(dtype) for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)}
    state |= {
        "bool": base > 5,
        "transposed": base.float().T,
        "row": base[2],
        "column": base[:, 1],
        "scalar": torch.tensor(3.5),
    }
    state |= {"empty": torch.zeros(0, 3), "parameter": torch.nn.Parameter(base.float()), "tied": base}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "w", _use_new_zipfile_serialization=form == "zip")
    found = readers.read(tmp_path / "w")
    assert set(found) == set(state)
    for name, tensor in state.items():
        tensor = tensor.detach()
        assert found[name].shape == tuple(tensor.shape), name
        want = tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
        np.testing.assert_array_equal(found[name].astype(want.dtype), want, err_msg=name)
        assert str(found[name].dtype) == str(tensor.dtype).removeprefix("torch."), name


@functools.cache
def some_photographs(count: int = 4) -> tuple:
    try:
        return photographs()[:count]
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
@pytest.mark.parametrize("size, crop", [(224, 0.875), (288, 1.0), (192, 0.9)])
def test_prepare_is_torchvisions_resize_and_crop_pixel_for_pixel(
    torch: Any, interpolation: str, size: int, crop: float
):
    from PIL import Image
    from torchvision import transforms

    spec = PixelSpec(size=size, crop=crop, interpolation=interpolation)
    how = transforms.InterpolationMode[interpolation.upper()]
    theirs = transforms.Compose([transforms.Resize(int(size / crop), how), transforms.CenterCrop(size)])
    largest = 0
    for photo in some_photographs(21):
        image = decode(photo.path)
        for view in (image, image[:-1], image[:, :-3], image[: len(image) // 3 + 1]):  # odd sides, and a strip
            want = np.asarray(theirs(Image.fromarray(view)), np.int16)
            largest = max(largest, int(np.abs(pixels.prepare(spec, view).astype(np.int16) - want).max()))
    assert largest == 0


def test_normalise_is_totensor_and_normalize(torch: Any):
    from torchvision import transforms

    spec = PixelSpec(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)])
    for photo in some_photographs():
        square = pixels.prepare(spec, decode(photo.path))
        got = pixels.normalise(spec, jax.numpy.asarray(pixels.to_images01(square)))
        np.testing.assert_allclose(got, theirs(square.copy()).numpy().transpose(1, 2, 0), rtol=1e-6, atol=1e-6)
