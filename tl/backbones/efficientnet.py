"""EfficientNet-Lite 0 to 4: no squeeze-and-excitation, ReLU6 instead of swish, fixed stem and top.

There are two forms, whose files have the same tensor names. timm's `tf_efficientnet_lite*` is the
form of TensorFlow (SAME padding, eps 1e-3), in which the weights were published. timm's
`efficientnet_lite*` has torch's padding and eps 1e-5.
"""

from __future__ import annotations

from tl.backbones.mobilenet import TF, InvertedResidualNet, Row, scaled, stage_names
from tl.backbones.spec import BackboneSpec

# Tan & Le 2019, arXiv:1905.11946, table 1 (B0), with the changes of Liu 2020, "Higher accuracy on
# vision models with EfficientNet-Lite" (TensorFlow blog): t, c, n, s, k
LITE0 = tuple(
    (Row(*row),)
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
# Width and depth of Lite0 to Lite4: TensorFlow's tpu repository, models/official/efficientnet/lite
SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8))


def _variant(n: int, tensorflow: bool) -> BackboneSpec:
    base = f"efficientnet_lite{n}"
    name = f"tf_{base}" if tensorflow else base
    aliases = (f"efficientnetlite{n}", *(("efficientnet_lite",) if n == 0 else ()))
    return BackboneSpec(
        name=name,
        module=InvertedResidualNet(
            scaled(LITE0, *SCALES[n], fix_ends=True),
            **({"norm": TF, "padding": "same"} if tensorflow else {}),
        ),
        features=1280,
        endpoints=stage_names(7),
        sources={"timm": name, **({"lukemelas": ""} if tensorflow else {})},
        reference="Tan & Le 2019, EfficientNet, arXiv:1905.11946; "
        "Lite: TensorFlow blog, March 2020",
        aliases=() if tensorflow else aliases,
        base=base,
    )


VARIANTS = tuple(
    _variant(n, tensorflow) for tensorflow in (False, True) for n in range(len(SCALES))
)
