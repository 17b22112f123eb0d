"""Explanations: which pixels of an image raise or lower a score of the network.

  method = explain.get("ig")(nodes=50)
  weights = explain.targets.weights(clf.classes, ["tabby", "tabby vs tiger cat"])
  maps = explain.make(method, clf)(variables, jax.random.key(0), images01, weights)

`maps` is f32[b h w]. To add a method: a function that returns a `base.Method`, a row in `METHODS`,
and a row in the table of `tests/test_explain.py`. `tl/explain/README.md` says how to read a map.
"""

from __future__ import annotations

from collections.abc import Callable

from tl.explain import baselines, cams, checks, gradients, masks, targets
from tl.explain.base import Explanation, Method, make
from tl.paths import nearest

__all__ = ["METHODS", "Explanation", "Method", "baselines", "checks", "get", "make", "targets"]

METHODS: dict[str, Callable[..., Method]] = {
    "gradient": gradients.gradient,
    "gradient_x_input": gradients.gradient_x_input,
    "ig": gradients.ig,
    "smoothgrad": gradients.smoothgrad,
    "smoothgrad_sq": gradients.smoothgrad_sq,
    "vargrad": gradients.vargrad,
    "guided": gradients.guided,
    "edges": gradients.edges,
    "gradcam": cams.gradcam,
    "gradcam_plus_plus": cams.gradcam_plus_plus,
    "layercam": cams.layercam,
    "occlusion": masks.occlusion,
    "rise": masks.rise,
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
