"""The table of methods. To add one: a function that returns a `base.Method`, and a row."""

from __future__ import annotations

from collections.abc import Callable

from tl.explain import cams, gradients, lrp, masks
from tl.explain.base import Method
from tl.paths import nearest

METHODS: dict[str, Callable[..., Method]] = {
    "gradient": gradients.gradient,
    "gradient_x_input": gradients.gradient_x_input,
    "ig": gradients.ig,
    "expected_gradients": gradients.expected_gradients,
    "smoothgrad": gradients.smoothgrad,
    "smoothgrad_sq": gradients.smoothgrad_sq,
    "vargrad": gradients.vargrad,
    "guided": gradients.guided,
    "lrp_epsilon": lrp.lrp_epsilon,
    "lrp_gamma": lrp.lrp_gamma,
    "lrp_alpha_beta": lrp.lrp_alpha_beta,
    "edges": gradients.edges,
    "gradcam": cams.gradcam,
    "gradcam_plus_plus": cams.gradcam_plus_plus,
    "layercam": cams.layercam,
    "scorecam": cams.scorecam,
    "occlusion": masks.occlusion,
    "rise": masks.rise,
    "kernel_shap": masks.kernel_shap,
}
"""Name -> `(**options) -> Method`. "smoothgrad" is the largest absolute value over the channels of
the mean of noisy gradients, "smoothgrad_sq" the sum over the channels of their mean square (Hooker
et al. 2019, arXiv:1806.10758), "vargrad" that of their variance (Adebayo et al. 2018,
arXiv:1810.03292).
"""


def get(name: str) -> Callable[..., Method]:
    """The function that makes the method with a name.

    Raises:
      ValueError: the name is not in `METHODS`; the message has the nearest names.

    Example:
      >>> get("ig")(nodes=20).signed
      True
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; nearest: {nearest(name, METHODS)}")
    return METHODS[name]
