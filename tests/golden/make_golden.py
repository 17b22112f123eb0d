"""Writes tests/golden/<arch>.npz: what torch computes, for tests that run without torch.

By hand, in an environment with torch, torchvision and timm (the `parity` extra), for one architecture or for all:

    python tests/golden/make_golden.py [ARCH ...]

To add an architecture: a row in `REFERENCES`, then the command. The weights are not in the files: both sides draw them
from the name of each source tensor (`seeded`), so a golden file is some kilobytes of results, in torch's float64:
  eval/logits, eval/features, eval/<endpoint>   in evaluation mode; of an endpoint, its shape and SAMPLES values
  train/logits, train/stats                     in training mode, without dropout; the running statistics afterwards
The half above the line needs numpy alone and is what test_backbones.py imports; test_parity.py uses both.
"""

from __future__ import annotations

import sys
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
CLASSES = 16  # a head narrow enough to draw quickly; VGG's hidden layers have the same width here
SHAPE = (
    2,
    74,
    92,
    3,
)  # oblong, odd and even in turn as it is halved: 2^n + 1 would not tell "same" from "torch" padding
SAMPLES = 48

# numpy's RandomState is frozen: unlike `default_rng`, its streams are the same in every version.


def golden_images() -> np.ndarray:
    """The f32[2 74 92 3] batch in [0, 1] that the golden files were computed on."""
    return np.random.RandomState(0).uniform(size=SHAPE).astype(np.float32)


def seeded(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The f32 tensor that belongs to a source's name: torch layout, BatchNorm statistics that are not trivial."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif name.endswith(("bias", "running_mean")):
        values = 0.2 * rng.standard_normal(shape)
    elif len(shape) == 1:  # BatchNorm's weight
        values = rng.uniform(0.5, 1.2, shape)
    else:
        values = rng.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    return np.asarray(values, np.float32)


def sampled(array: np.ndarray, count: int = SAMPLES) -> np.ndarray:
    """`count` values of an array, evenly spread over it from the first to the last."""
    return np.asarray(array).reshape(-1)[np.linspace(0, np.size(array) - 1, count).astype(int)]


def normalised(images01: np.ndarray) -> np.ndarray:
    """What torchvision's `ToTensor` and `Normalize` make of RGB in [0, 1], in float64, still NHWC."""
    return (images01.astype(np.float64) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


# --- from here on with torch -----------------------------------------------------------------------------------------


class Reference(NamedTuple):
    """An architecture as another library has it.

    Attributes:
      source: name of the rename table for its state_dict.
      make: classes -> torch module; VGG's hidden layers as wide as `classes` where that is not 1000.
      endpoints: our name of an endpoint -> the torch submodule whose output it is.
      pooled: the torch submodule whose input are the pooled features, or "" where there is none (VGG).
    """

    source: str
    make: Callable[[int], Any]
    endpoints: Mapping[str, str]
    pooled: str


def import_torchvision() -> Any:
    """torchvision; beside a torch without its compiled operators, the two that its import needs are declared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's deprecations
        import torch

        try:
            import torchvision
        except RuntimeError:  # operator torchvision::nms does not exist
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
            library = torch.library.Library("torchvision", "DEF")
            for op in ("nms", "qnms"):
                library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            import torchvision

            torchvision.library_of_missing_operators = library  # they live as long as it does
    return torchvision


def _torchvision(name: str) -> Callable[[int], Any]:
    return lambda classes: getattr(import_torchvision().models, name)(num_classes=classes)


def _torchvision_vgg(name: str) -> Callable[[int], Any]:
    def make(classes: int) -> Any:
        from torch import nn

        models = import_torchvision().models
        if classes == 1000:
            return getattr(models, name)()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = getattr(models, name)(init_weights=False)
        flat, relu, drop, hidden, _, _, last = model.classifier
        flat, hidden, last = (
            nn.Linear(flat.in_features, classes),
            nn.Linear(classes, classes),
            nn.Linear(classes, classes),
        )
        model.classifier = nn.Sequential(flat, relu, drop, hidden, relu, drop, last)
        return model

    return make


def _timm(name: str) -> Callable[[int], Any]:
    def make(classes: int) -> Any:
        import_torchvision()  # timm imports it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import timm

            return timm.create_model(name, num_classes=classes)

    return make


def _vgg_endpoints(*depths: int) -> dict[str, str]:
    ends, place = {}, 0
    for s, depth in enumerate(depths, start=1):
        for c in range(depth):
            ends[f"stage{s}/conv{c}"] = f"features.{place + 1}"  # convolution, ReLU
            place += 2
        ends[f"stage{s}"] = f"features.{place}"  # the pool
        place += 1
    return ends


def _resnet_endpoints(*depths: int) -> dict[str, str]:
    ends = {"stem": "relu"}
    for s, depth in enumerate(depths, start=1):
        ends |= {f"stage{s}/block{b}": f"layer{s}.{b}" for b in range(depth)} | {f"stage{s}": f"layer{s}"}
    return ends


def _chain_endpoints(*depths: int, place: Callable[[int, int, int], str], stem: str, top: str) -> dict[str, str]:
    ends, n = {"stem": stem, "top": top}, 0
    for s, depth in enumerate(depths, start=1):
        for b in range(depth):
            ends[f"stage{s}/block{b}"] = ends[f"stage{s}"] = place(s, b, n)
            n += 1
    return ends


def _timm_chain(name: str, *depths: int) -> Reference:
    ends = _chain_endpoints(*depths, place=lambda s, b, _: f"blocks.{s - 1}.{b}", stem="bn1", top="bn2")
    return Reference("timm", _timm(name), ends, "classifier")


REFERENCES = {
    "vgg16": Reference("torchvision", _torchvision_vgg("vgg16"), _vgg_endpoints(2, 2, 3, 3, 3), ""),
    "resnet18": Reference("torchvision", _torchvision("resnet18"), _resnet_endpoints(2, 2, 2, 2), "fc"),
    "resnet50": Reference("torchvision", _torchvision("resnet50"), _resnet_endpoints(3, 4, 6, 3), "fc"),
    "mobilenetv2_100": Reference(
        "torchvision",
        _torchvision("mobilenet_v2"),
        _chain_endpoints(
            1, 2, 3, 4, 3, 3, 1, place=lambda s, b, n: f"features.{n + 1}", stem="features.0", top="features.18"
        ),
        "classifier",
    ),
    "efficientnet_lite0": _timm_chain("tf_efficientnet_lite0", 1, 2, 2, 3, 3, 4, 1),
}
MORE_REFERENCES = {"mobilenetv2_100": _timm_chain("mobilenetv2_100", 1, 2, 3, 4, 3, 3, 1)}  # for test_parity.py


class Result(NamedTuple):
    """What a torch model computed, float64, NHWC: logits [b k], pooled features [b d], endpoints by our names."""

    logits: np.ndarray
    features: np.ndarray
    endpoints: dict[str, np.ndarray]


def fill(model: Any) -> dict[str, np.ndarray]:
    """Puts the seeded tensors into a torch model, and returns them."""
    import torch

    arrays = {
        name: seeded(name, tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    left = model.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()}, strict=False)
    assert not left.unexpected_keys and all(name.endswith("num_batches_tracked") for name in left.missing_keys)
    return arrays


def run(reference: Reference, model: Any, inputs: np.ndarray, *, training: bool = False) -> Result:
    """A forward pass in torch's float64; `inputs` f64[b h w 3] are normalised already."""
    import torch

    torch.set_num_threads(
        1
    )  # two threads in torch's float64 depthwise convolution, beside JAX's own, take 100 times longer
    maps: dict[str, np.ndarray] = {}
    model.double().train(training)
    for module in model.modules():
        if "dropout" in type(module).__name__.lower():
            module.eval()

    def keep(name: str) -> Callable:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            maps[name] = output.detach().permute(0, 2, 3, 1).numpy().copy()

        return hook

    def keep_pooled(_module: Any, args: Any) -> None:
        maps[""] = args[0].detach().numpy().reshape(len(inputs), -1).copy()

    places = dict(model.named_modules())
    hooks = [places[place].register_forward_hook(keep(name)) for name, place in reference.endpoints.items()]
    if reference.pooled:
        hooks.append(places[reference.pooled].register_forward_pre_hook(keep_pooled))
    with torch.no_grad():
        logits = model(torch.from_numpy(inputs.transpose(0, 3, 1, 2).copy())).numpy()
    for hook in hooks:
        hook.remove()
    last = list(reference.endpoints)[-1]
    pooled = maps.pop("") if reference.pooled else maps[last].mean((1, 2))
    return Result(logits, pooled, maps)


def make(arch: str) -> Path:
    """Writes the golden file of one architecture."""
    reference = REFERENCES[arch]
    model = reference.make(CLASSES)
    arrays = fill(model)
    inputs = normalised(golden_images())
    result = run(reference, model, inputs)
    out: dict[str, Any] = {"source": reference.source, "parameters": sum(p.numel() for p in model.parameters())}
    out |= {"eval/logits": result.logits, "eval/features": result.features}
    for name, ends in result.endpoints.items():
        out |= {f"eval/{name}": sampled(ends), f"shape/{name}": np.array(ends.shape)}
    out["train/logits"] = run(reference, model, inputs, training=True).logits
    moved = model.state_dict()
    stats = [moved[name].numpy().reshape(-1) for name in sorted(arrays) if "running_" in name]
    out["train/stats"] = np.concatenate(stats) if stats else np.zeros(0)
    out = {k: v.astype(np.float32) if getattr(v, "dtype", None) == np.float64 else v for k, v in out.items()}
    if stats:
        out["train/stats"] = sampled(out["train/stats"], 1000)
    path = HERE / f"{arch}.npz"
    np.savez_compressed(path, **out)
    return path


if __name__ == "__main__":
    for arch in sys.argv[1:] or REFERENCES:
        written = make(arch)
        print(f"{written.name}: {written.stat().st_size} bytes")
