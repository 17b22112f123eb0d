"""The published ImageNet weights of the zoo: data, no logic.

The first row of an architecture that the hub has is the default of `weights="hub"`.

Sources of the values, read in November 2026:

timm: preprocessing, hub repository and license are from `default_cfgs` of timm 1.0.28. Top-1 is
from results/results-imagenet.csv of huggingface/pytorch-image-models at commit 7479d451, at the
size and crop of the row's `pixels`. That is the training size; many tags gain 0.6 to 1.7 points at
the larger size of their model card. Only `tv2` tags have their test size, 224, with which
torchvision publishes them; timm's default for them is 176.

torchvision: top-1, URL and preprocessing are from the weight enums of torchvision 0.28; the license
is the project's. The eight hexadecimal digits in a file's name are the beginning of its SHA-256.

Keras: the URL is from keras/src/applications of Keras 3.15.1, the license from
docs/templates/applications.md of keras-team/keras (2019). Top-1 is 100 minus the error in README.md
of keras-team/keras-applications at commit df0e26c; keras.io/api/applications shows it rounded.
MobileNetV3 is in neither: its top-1 is Google's, from Keras' docstring; license, crop and filter
are those that timm gives for the same authors' weights.

A tag is the publisher's name for the weights: timm's tag or torchvision's enum member; `keras_in1k`
is Keras' "imagenet". Architectures of timm without published weights (`untrained` tags) have no
row.
"""

from __future__ import annotations

from tl.pixels import CAFFE, INCEPTION, TORCHVISION, PixelSpec
from tl.weights.spec import WeightsSpec

# timm's default: resize 256, crop 224, ImageNet's mean and standard deviation.
BICUBIC = PixelSpec(interpolation="bicubic")
# Recipes A1 and A1h of Wightman et al. 2021, arXiv:2110.00476.
A1 = BICUBIC.replace(crop=0.95)
# IMAGENET1K_V2: resize 232, crop 224.
TORCHVISION_V2 = TORCHVISION.replace(crop=0.965)
TF_BILINEAR = INCEPTION.replace(interpolation="bilinear")


def _timm(
    arch: str,
    tag: str,
    top1: float,
    pixels: PixelSpec = BICUBIC,
    origin: str = "timm",
    licence: str = "Apache-2.0",
) -> WeightsSpec:
    """Weights in timm's layout, in its repository on the hub."""
    return WeightsSpec(
        arch,
        tag,
        "timm",
        "imagenet",
        pixels,
        origin=origin,
        licence=licence,
        top1=top1,
        hub=f"timm/{arch}.{tag}",
    )


def _timm_tv(arch: str, top1: float, *, version: int = 1) -> WeightsSpec:
    """torchvision's weights, in timm's layout."""
    tag, pixels = ("tv_in1k", TORCHVISION) if version == 1 else ("tv2_in1k", TORCHVISION_V2)
    return _timm(
        arch, tag, top1, pixels, origin="torchvision, through timm", licence="BSD-3-Clause"
    )


def _timm_tf(arch: str, top1: float, pixels: PixelSpec) -> WeightsSpec:
    """TensorFlow's weights, in timm's layout."""
    return _timm(arch, "in1k", top1, pixels, origin="TensorFlow authors, through timm")


def _torchvision(arch: str, file: str, top1: float, *, version: int = 1) -> WeightsSpec:
    """A state_dict at download.pytorch.org."""
    return WeightsSpec(
        arch,
        f"IMAGENET1K_V{version}",
        "torchvision",
        "imagenet",
        TORCHVISION if version == 1 else TORCHVISION_V2,
        origin="torchvision",
        licence="BSD-3-Clause",
        top1=top1,
        url=f"https://download.pytorch.org/models/{file}.pth",
    )


def _keras(
    arch: str, file: str, top1: float, pixels: PixelSpec, origin: str, licence: str
) -> WeightsSpec:
    """A legacy HDF5 file of `keras.applications`.

    The published accuracies were measured with the shorter side resized to 256, cubic (OpenCV), and
    a center crop of 224 (keras-team/keras-applications, issue 88), as in `pixels`. Keras'
    `load_img(target_size=...)` differs: it resizes to a square with nearest-neighbor interpolation.
    """
    return WeightsSpec(
        arch,
        "keras_in1k",
        "keras",
        "imagenet",
        pixels,
        origin=f"{origin}, through Keras",
        licence=licence,
        top1=top1,
        url=f"https://storage.googleapis.com/tensorflow/keras-applications/{file}.h5",
    )


def _keras_vgg(arch: str, top1: float) -> WeightsSpec:
    file = f"{arch}/{arch}_weights_tf_dim_ordering_tf_kernels"
    return _keras(arch, file, top1, CAFFE, "VGG, Oxford", "CC-BY-4.0")


def _keras_resnet(arch: str, top1: float) -> WeightsSpec:
    file = f"resnet/{arch.removesuffix('_keras')}_weights_tf_dim_ordering_tf_kernels"
    return _keras(arch, file, top1, CAFFE, "Kaiming He", "MIT")


def _keras_resnetv2(depth: int, top1: float) -> WeightsSpec:
    file = f"resnet/resnet{depth}v2_weights_tf_dim_ordering_tf_kernels"
    return _keras(
        f"resnetv2_{depth}_keras",
        file,
        top1,
        INCEPTION,
        "Facebook's fb.resnet.torch",
        "BSD-3-Clause",
    )


def _keras_mobilenet(
    arch: str, file: str, top1: float, pixels: PixelSpec = INCEPTION
) -> WeightsSpec:
    return _keras(arch, file, top1, pixels, "TensorFlow authors", "Apache-2.0")


def _keras_mobilenetv1(width: str, alpha: str, top1: float) -> WeightsSpec:
    return _keras_mobilenet(
        f"mobilenetv1_{width}_keras", f"mobilenet/mobilenet_{alpha}_224_tf", top1
    )


def _keras_mobilenetv2(width: str, alpha: str, top1: float) -> WeightsSpec:
    file = f"mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_224"
    return _keras_mobilenet(f"mobilenetv2_{width}_keras", file, top1)


def _keras_mobilenetv3(arch: str, form: str, top1: float) -> WeightsSpec:
    """Keras' MobileNetV3. Keras scales 0-255 to [-1, 1] in the network; here `pixels` does.

    Crop and filter are those of timm.
    """
    file = f"mobilenet_v3/weights_mobilenet_v3_{form}_float"
    return _keras_mobilenet(arch, file, top1, TF_BILINEAR)


PUBLISHED: tuple[WeightsSpec, ...] = (
    # VGG, Simonyan and Zisserman 2014
    _timm_tv("vgg11", 69.048),
    _torchvision("vgg11", "vgg11-8a719046", 69.020),
    _timm_tv("vgg11_bn", 70.384),
    _torchvision("vgg11_bn", "vgg11_bn-6002323d", 70.370),
    _timm_tv("vgg13", 69.940),
    _torchvision("vgg13", "vgg13-19584684", 69.928),
    _timm_tv("vgg13_bn", 71.556),
    _torchvision("vgg13_bn", "vgg13_bn-abd245e5", 71.586),
    _timm_tv("vgg16", 71.600),
    _torchvision("vgg16", "vgg16-397923af", 71.592),
    _keras_vgg("vgg16", 71.268),
    _timm_tv("vgg16_bn", 73.356),
    _torchvision("vgg16_bn", "vgg16_bn-6c64b313", 73.360),
    _timm_tv("vgg19", 72.400),
    _torchvision("vgg19", "vgg19-dcbb9e9d", 72.376),
    _keras_vgg("vgg19", 71.256),
    _timm_tv("vgg19_bn", 74.236),
    _torchvision("vgg19_bn", "vgg19_bn-c79401a0", 74.218),
    # ResNet, He et al. 2015
    _timm("resnet18", "a1_in1k", 71.488, A1),
    _timm_tv("resnet18", 69.752),
    _torchvision("resnet18", "resnet18-f37072fd", 69.758),
    _timm("resnet34", "a1_in1k", 76.414, A1),
    _timm_tv("resnet34", 73.298),
    _torchvision("resnet34", "resnet34-b627a593", 73.314),
    _timm("resnet50", "a1_in1k", 80.382, A1),
    _timm_tv("resnet50", 76.156),
    _timm_tv("resnet50", 80.844, version=2),
    _torchvision("resnet50", "resnet50-0676ba61", 76.130),
    _torchvision("resnet50", "resnet50-11ad3fa6", 80.858, version=2),
    _timm("resnet101", "a1h_in1k", 81.950, A1),
    _timm_tv("resnet101", 77.404),
    _timm_tv("resnet101", 81.906, version=2),
    _torchvision("resnet101", "resnet101-63fe2227", 77.374),
    _torchvision("resnet101", "resnet101-cd907fc2", 81.886, version=2),
    _timm("resnet152", "a1h_in1k", 82.818, A1),
    _timm_tv("resnet152", 78.330),
    _timm_tv("resnet152", 82.294, version=2),
    _torchvision("resnet152", "resnet152-394f9c45", 78.312),
    _torchvision("resnet152", "resnet152-f82ba261", 82.284, version=2),
    _keras_resnet("resnet50_keras", 74.928),
    _keras_resnet("resnet101_keras", 76.420),
    _keras_resnet("resnet152_keras", 76.604),
    # Wide ResNet, Zagoruyko and Komodakis 2016; ResNeXt, Xie et al. 2016
    _timm("wide_resnet50_2", "racm_in1k", 81.488),
    _timm_tv("wide_resnet50_2", 78.480),
    _timm_tv("wide_resnet50_2", 81.598, version=2),
    _torchvision("wide_resnet50_2", "wide_resnet50_2-95faca4d", 78.468),
    _torchvision("wide_resnet50_2", "wide_resnet50_2-9ba9bcbe", 81.602, version=2),
    _timm_tv("wide_resnet101_2", 78.848),
    _timm_tv("wide_resnet101_2", 82.516, version=2),
    _torchvision("wide_resnet101_2", "wide_resnet101_2-32ee1156", 78.848),
    _torchvision("wide_resnet101_2", "wide_resnet101_2-d733dc28", 82.510, version=2),
    _timm("resnext50_32x4d", "a1h_in1k", 81.140, A1),
    _timm_tv("resnext50_32x4d", 77.632),
    _timm_tv("resnext50_32x4d", 81.176, version=2),
    _torchvision("resnext50_32x4d", "resnext50_32x4d-7cdf4587", 77.618),
    _torchvision("resnext50_32x4d", "resnext50_32x4d-1a0047aa", 81.198, version=2),
    _timm_tv("resnext101_32x8d", 79.314),
    _timm_tv("resnext101_32x8d", 82.832, version=2),
    _torchvision("resnext101_32x8d", "resnext101_32x8d-8ba56ff5", 79.312),
    _torchvision("resnext101_32x8d", "resnext101_32x8d-110c445d", 82.834, version=2),
    # ResNet V2, He et al. 2016
    _keras_resnetv2(50, 75.960),
    _keras_resnetv2(101, 77.234),
    _keras_resnetv2(152, 78.032),
    # MobileNet, Howard et al. 2017
    _timm("mobilenetv1_100", "ra4_e3600_r224_in1k", 75.384, INCEPTION),
    _timm("mobilenetv1_125", "ra4_e3600_r224_in1k", 76.928, INCEPTION.replace(crop=0.9)),
    _keras_mobilenetv1("025", "2_5", 51.582),
    _keras_mobilenetv1("050", "5_0", 64.292),
    _keras_mobilenetv1("075", "7_5", 68.412),
    _keras_mobilenetv1("100", "1_0", 70.424),
    # MobileNetV2, Sandler et al. 2018
    _timm("mobilenetv2_050", "lamb_in1k", 65.930),
    _timm("mobilenetv2_100", "ra_in1k", 72.936),
    _torchvision("mobilenetv2_100", "mobilenet_v2-b0353104", 71.878),
    _torchvision("mobilenetv2_100", "mobilenet_v2-7ebf99e0", 72.154, version=2),
    _timm("mobilenetv2_110d", "ra_in1k", 75.054),
    _timm("mobilenetv2_120d", "ra_in1k", 77.298),
    _timm("mobilenetv2_140", "ra_in1k", 76.528),
    _keras_mobilenetv2("035", "0.35", 60.086),
    _keras_mobilenetv2("050", "0.5", 65.194),
    _keras_mobilenetv2("075", "0.75", 69.532),
    _keras_mobilenetv2("100", "1.0", 71.336),
    _keras_mobilenetv2("130", "1.3", 74.680),
    _keras_mobilenetv2("140", "1.4", 75.230),
    # MobileNetV3, Howard et al. 2019
    _timm("mobilenetv3_small_050", "lamb_in1k", 57.924),
    _timm("mobilenetv3_small_075", "lamb_in1k", 65.266),
    _timm("mobilenetv3_small_100", "lamb_in1k", 67.638),
    _timm("mobilenetv3_large_100", "ra_in1k", 75.786),
    _torchvision("mobilenet_v3_small", "mobilenet_v3_small-047dcff4", 67.668),
    _torchvision("mobilenet_v3_large", "mobilenet_v3_large-8738ca79", 74.042),
    _torchvision("mobilenet_v3_large", "mobilenet_v3_large-5c1a4163", 75.274, version=2),
    _timm_tf("tf_mobilenetv3_small_075", 65.732, TF_BILINEAR),
    _keras_mobilenetv3("tf_mobilenetv3_small_075", "small_224_0.75", 65.4),
    _timm_tf("tf_mobilenetv3_small_100", 67.932, TF_BILINEAR),
    _keras_mobilenetv3("tf_mobilenetv3_small_100", "small_224_1.0", 68.1),
    _timm_tf("tf_mobilenetv3_small_minimal_100", 62.894, TF_BILINEAR),
    _keras_mobilenetv3("tf_mobilenetv3_small_minimal_100", "small_minimalistic_224_1.0", 61.9),
    _timm_tf("tf_mobilenetv3_large_075", 73.448, TF_BILINEAR),
    _keras_mobilenetv3("tf_mobilenetv3_large_075", "large_224_0.75", 73.3),
    _timm_tf("tf_mobilenetv3_large_100", 75.514, TF_BILINEAR),
    _keras_mobilenetv3("tf_mobilenetv3_large_100", "large_224_1.0", 75.6),
    _timm_tf("tf_mobilenetv3_large_minimal_100", 72.270, TF_BILINEAR),
    _keras_mobilenetv3("tf_mobilenetv3_large_minimal_100", "large_minimalistic_224_1.0", 72.3),
    # EfficientNet-Lite, Liu 2020
    _timm("efficientnet_lite0", "ra_in1k", 75.490),
    _timm_tf("tf_efficientnet_lite0", 74.846, INCEPTION),
    _timm_tf("tf_efficientnet_lite1", 76.672, INCEPTION.replace(size=240, crop=0.882)),
    _timm_tf("tf_efficientnet_lite2", 77.472, INCEPTION.replace(size=260, crop=0.89)),
    _timm_tf("tf_efficientnet_lite3", 79.832, TF_BILINEAR.replace(size=300, crop=0.904)),
    _timm_tf("tf_efficientnet_lite4", 81.546, TF_BILINEAR.replace(size=380, crop=0.92)),
    # SqueezeNet, Iandola et al. 2016
    _torchvision("squeezenet1_1", "squeezenet1_1-b8a52dc0", 58.178),
)
