"""Explanations on the same weights as Captum's.

Where a unit is within rounding of the kink of a ReLU or of a tie of a max-pool, two programs may
take different sides, and the gradients behind the unit differ: in VGG-16, Captum in float32 differs
from Captum in float64 by up to 6 % of the largest value. Therefore Captum computes in float64, the
images are noise (in smooth ones many neighbors nearly tie), and half of the images have to agree at
every pixel. A wrong rule would change all of them.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import attack_libraries, sources
from tests import toys
from tl import explain, paths, pixels
from tl.attacks.norms import per_image_keys

pytestmark = [
    pytest.mark.parity,
    # Captum warns that it sets hooks on ReLUs.
    pytest.mark.filterwarnings("ignore:Setting backward hooks:UserWarning"),
]

SIZE, IMAGES, CLASSES, NODES = 64, 4, 10, 4
# Network -> the torch module of its last endpoint.
NETWORKS = {
    "resnet18": "model.layer4",
    "efficientnet_lite0": "model.bn2",
    "vgg16": "model.features",
}


# VGG-16 whose inputs are not negative, without biases.
POSITIVE = "vgg16 of positive inputs"


@pytest.fixture(autouse=True)
def captum() -> None:
    if not sources.installed("captum", ("captum",)):
        pytest.skip("captum is not installed")
    import torch

    # Next to JAX's threads, more threads take many times longer.
    torch.set_num_threads(1)


@functools.cache
def net(arch: str) -> attack_libraries.Twin:
    """ResNet-18 with random weights, EfficientNet-Lite0 with those of a package, or `vgg`."""
    if arch == "vgg16":
        return vgg(0.05)
    if arch == POSITIVE:
        return vgg(0.0, mean=(0.0,) * 3, std=(0.25,) * 3)
    packaged = arch == "efficientnet_lite0"
    twin = attack_libraries.twin(arch, weights="package" if packaged else "random", size=SIZE)
    if packaged and twin.weights == "random":
        pytest.skip("the weights of EfficientNet-Lite0 are not installed")
    return twin


def vgg(bias: float, **options: Any) -> attack_libraries.Twin:
    """VGG-16's convolutions with a linear head and random weights.

    Args:
      bias: standard deviation of the biases.
      options: fields of `PixelSpec`.
    """
    with sources.imported("torchvision"):
        import torch
        from torchvision.models import vgg as zoo

    clf, variables = toys.classifier("vgg16", CLASSES, size=SIZE, **options)
    rng = np.random.default_rng(1)
    params = {
        name: rng.normal(0, bias, leaf.shape).astype(np.float32) if name.endswith("bias") else leaf
        for name, leaf in paths.flatten(variables["params"]).items()
    }

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = zoo.make_layers(zoo.cfgs["D"], batch_norm=False)
            self.pool = torch.nn.AdaptiveAvgPool2d(1)
            self.head = torch.nn.Linear(512, CLASSES)

        def forward(self, x: Any) -> Any:
            return self.head(self.pool(self.features(x)).flatten(1))

    model = Module()
    layers = [layer for layer in model.modules() if hasattr(layer, "weight")]
    names = sorted(name.removesuffix("/kernel") for name in params if name.endswith("/kernel"))
    for layer, name in zip(layers, names, strict=True):
        kernel = torch.tensor(params[f"{name}/kernel"])
        order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
        layer.weight.data = kernel.permute(order).contiguous()
        layer.bias.data = torch.tensor(params[f"{name}/bias"])
    variables = jax.device_put({**variables, "params": paths.unflatten(params)})
    module = attack_libraries.as_module(model, clf.pixels)
    return attack_libraries.Twin(clf, variables, module, "random")


@functools.cache
def images01() -> np.ndarray:
    """Noise f32[4 h w 3]."""
    return np.random.default_rng(0).uniform(0, 1, (IMAGES, SIZE, SIZE, 3)).astype(np.float32)


@functools.cache
def labels(arch: str) -> np.ndarray:
    return attack_libraries.tl_logits(net(arch), images01()).argmax(axis=1)


def ours(arch: str, method: str, images: np.ndarray | None = None, **options: Any) -> np.ndarray:
    """The maps f32[n h w] of the images, by default of `images01`."""
    twin, images = net(arch), images01() if images is None else images
    k = attack_libraries.tl_logits(twin, images01()).shape[1]
    targets = np.eye(k, dtype=np.float32)[labels(arch)]
    maps = explain.make(explain.get(method)(**options), twin.clf, slots=10)
    return np.asarray(maps(twin.variables, jax.random.key(0), images, targets))


def theirs(arch: str, attribution: Any, images: np.ndarray, **options: Any) -> np.ndarray:
    """Captum's attributions f64[n h w c]."""
    import torch

    x = torch.tensor(images).double().permute(0, 3, 1, 2).contiguous().requires_grad_()
    values = attribution.attribute(x, target=torch.tensor(labels(arch)), **options)
    return values.detach().permute(0, 2, 3, 1).numpy()


def module(arch: str) -> Any:
    """The torch network in float64, so that only tl rounds.

    Captum's hooks need ReLUs that do not write into their input.
    """
    import torch

    made = net(arch).module
    for part in made.modules():
        if isinstance(part, torch.nn.ReLU):
            part.inplace = False
    return made.double()


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Within 1e-4 of the largest absolute value at all pixels of half of the images."""
    largest = np.abs(expected).max(axis=(1, 2))
    assert (largest > 0).all()
    errors = np.abs(actual - expected).max(axis=(1, 2)) / largest
    assert np.sum(errors < 1e-4) >= len(errors) / 2, errors
    pairs = zip(actual, expected, strict=True)
    assert all(np.corrcoef(a.ravel(), e.ravel())[0, 1] > 0.99 for a, e in pairs)


@pytest.mark.parametrize("arch", NETWORKS)
def test_gradient(arch: str) -> None:
    from captum.attr import Saliency

    expected = theirs(arch, Saliency(module(arch)), images01(), abs=True).max(axis=-1)
    assert_close(ours(arch, "gradient"), expected)


def test_gradient_x_input() -> None:
    from captum.attr import InputXGradient

    arch = "resnet18"
    expected = theirs(arch, InputXGradient(module(arch)), images01()).sum(axis=-1)
    assert_close(ours(arch, "gradient_x_input"), expected)


@pytest.mark.parametrize("arch", NETWORKS)
def test_integrated_gradients(arch: str) -> None:
    """From noise, and not from a uniform or blurred image, in which neighbors tie.

    Each node may meet a kink, so the images are smaller than those of the other tests.
    """
    import torch
    from captum.attr import IntegratedGradients

    images = images01()[:, : SIZE // 2, : SIZE // 2]
    keys = per_image_keys(jax.random.key(0), len(images))
    (starts,) = np.asarray(explain.baselines.get("random")(keys, images)).swapaxes(0, 1)
    expected = theirs(
        arch,
        IntegratedGradients(module(arch)),
        images,
        baselines=torch.tensor(starts).permute(0, 3, 1, 2).double(),
        n_steps=NODES,
        method="gausslegendre",
    )
    actual = ours(arch, "ig", images, nodes=NODES, baseline="random")
    assert_close(actual, expected.sum(axis=-1))


@pytest.mark.parametrize("arch", ["resnet18", "vgg16"])
def test_guided_backpropagation(arch: str) -> None:
    """Captum replaces the gradient of ReLU alone, and not that of EfficientNet's ReLU6."""
    from captum.attr import GuidedBackprop

    expected = np.abs(theirs(arch, GuidedBackprop(module(arch)), images01())).max(axis=-1)
    assert_close(ours(arch, "guided"), expected)


@pytest.mark.parametrize("arch, relu", [*((arch, False) for arch in NETWORKS), ("resnet18", True)])
def test_grad_cam(arch: str, relu: bool) -> None:
    import torch
    from captum.attr import LayerGradCam

    layer = module(arch).get_submodule(NETWORKS[arch])
    maps = theirs(arch, LayerGradCam(module(arch), layer), images01(), relu_attributions=relu)
    resized = torch.nn.functional.interpolate(
        torch.tensor(maps).permute(0, 3, 1, 2), (SIZE, SIZE), mode="bilinear"
    )
    assert_close(ours(arch, "gradcam", relu=relu), resized[:, 0].numpy())


@pytest.mark.parametrize("arch", NETWORKS)
def test_occlusion(arch: str) -> None:
    """The map of Captum is the mean over the patches of a pixel, as ours."""
    from captum.attr import Occlusion

    options = {"sliding_window_shapes": (3, 16, 16), "strides": (3, 16, 16), "baselines": 0.5}
    expected = theirs(arch, Occlusion(module(arch)), images01(), **options).mean(axis=-1)
    assert_close(ours(arch, "occlusion", patch=16, stride=16, fill="gray"), expected)


def lrp(arch: str, conv: Any, dense: Any) -> np.ndarray:
    """Captum's relevance of the normalized images, with a rule per kind of layer."""
    import torch
    from captum.attr import LRP

    network = module(arch).model
    for part in network.modules():
        if isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
            part.rule = conv() if isinstance(part, torch.nn.Conv2d) else dense()
    inputs = np.asarray(pixels.normalize(net(arch).clf.pixels, jnp.asarray(images01())))
    return theirs(arch, LRP(network), inputs).sum(axis=-1)


def test_lrp_epsilon() -> None:
    """With biases and inputs of both signs."""
    from captum.attr._utils.lrp_rules import EpsilonRule

    rule = functools.partial(EpsilonRule, 0.01)
    assert_close(ours("vgg16", "lrp_epsilon", epsilon=0.01), lrp("vgg16", rule, rule))


@pytest.mark.parametrize("name", ["lrp_gamma", "lrp_alpha_beta"])
def test_lrp_with_weighted_contributions(name: str) -> None:
    """Captum weights a contribution by the sign of the kernel alone and leaves the bias as it is.

    Both agree where inputs are positive and biases are zero.
    """
    from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule

    rule = {"lrp_gamma": GammaRule, "lrp_alpha_beta": Alpha1_Beta0_Rule}[name]
    assert_close(ours(POSITIVE, name), lrp(POSITIVE, rule, EpsilonRule))


def test_smoothgrad_has_the_same_mean() -> None:
    """Two estimates from independent draws, each with its own error, are compared."""
    from captum.attr import NoiseTunnel, Saliency

    arch, draws, noise = "resnet18", 40, 0.15
    images = images01()[:, : SIZE // 2, : SIZE // 2]
    sigma = noise * float(np.mean(np.ptp(images, axis=(1, 2, 3))))
    options = {"nt_type": "smoothgrad", "nt_samples": draws, "nt_samples_batch_size": 10}
    attribution = NoiseTunnel(Saliency(module(arch)))
    expected = theirs(arch, attribution, images, stdevs=sigma, abs=False, **options)
    expected = np.abs(expected).max(axis=-1)
    actual = ours(arch, "smoothgrad", images, draws=draws, noise=noise)
    assert np.corrcoef(actual.ravel(), expected.ravel())[0, 1] > 0.9
    assert abs(actual.mean() / expected.mean() - 1) < 0.05


def test_rise_has_the_same_mean() -> None:
    """As a loop in torch with masks of its own, in units of the standard error of the difference.

    Captum has no RISE. The loop follows equation 6 and section 3.2 of Petsiuk et al. 2018: a grid
    of zeros and ones, resized to (grid + 1) cells, and cropped at a random place of the first cell.
    """
    import torch

    arch, count, grid, p = "efficientnet_lite0", 400, 7, 0.5
    network = module(arch)
    rng, cell = np.random.default_rng(0), -(-SIZE // grid)
    image = torch.tensor(images01()).double().permute(0, 3, 1, 2)
    weighted = []
    for _ in range(count):
        cells = torch.tensor((rng.random((1, 1, grid, grid)) < p).astype(np.float32))
        large = torch.nn.functional.interpolate(cells, ((grid + 1) * cell,) * 2, mode="bilinear")
        row, column = rng.integers(cell, size=2)
        mask = large.double()[:, :, row : row + SIZE, column : column + SIZE]
        with torch.inference_mode():
            shown = network(0.5 + mask * (image - 0.5)).softmax(1).numpy()
        score = shown[np.arange(IMAGES), labels(arch)]
        weighted.append(score[:, None, None] * mask[0].numpy() / p)
    draws = np.stack(weighted)
    actual = ours(arch, "rise", masks=count, grid=grid, probability=p, fill="gray")
    error = np.sqrt(2 * draws.var(axis=0, ddof=1) / count)
    assert np.mean(((actual - draws.mean(axis=0)) / error) ** 2) < 2
