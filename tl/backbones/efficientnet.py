"""EfficientNet-Lite: EfficientNet without squeeze-and-excitation, ReLU6 for swish, stem and top not scaled.

This is the TensorFlow form, timm's `tf_efficientnet_lite0`: SAME padding and eps 1e-3. timm's plain `efficientnet_lite0`
has the same tensor names with torch's padding and eps 1e-5, and is another network.
"""

from __future__ import annotations

from tl.backbones.mobilenet import STAGES, InvertedResidualNet, Row
from tl.backbones.spec import BackboneSpec

# Tan & Le 2019, arXiv:1905.11946, table 1 (B0), with the changes of Liu 2020, "Higher accuracy on vision models with
# EfficientNet-Lite" (TensorFlow blog): t, c, n, s, k
LITE0 = tuple(
    Row(*row)
    for row in (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )
)

VARIANTS = (
    BackboneSpec(
        name="efficientnet_lite0",
        module=InvertedResidualNet(LITE0, eps=1e-3, padding="same"),  # TensorFlow's eps and SAME padding
        features=1280,
        endpoints=STAGES,
        reference="Tan & Le 2019, EfficientNet, arXiv:1905.11946; Lite: TensorFlow blog, March 2020",
        aliases=("efficientnet_lite", "efficientnetlite0", "tf_efficientnet_lite0"),
    ),
)
