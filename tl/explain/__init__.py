"""Explanations: which pixels of an image raise or lower a score of the network.

  method = explain.get("ig")(nodes=50)
  weights = explain.targets.weights(clf.classes, ["tabby", "tabby vs tiger cat"])
  maps = explain.make(method, clf)(variables, jax.random.key(0), images01, weights)

`maps` is f32[b h w]. To add a method: a function that returns a `base.Method`, a row in
`methods.METHODS`, and a row in the table of `tests/test_explain.py`. `tl/explain/README.md` says
how to read a map.
"""

from tl.explain import baselines, checks, targets
from tl.explain.base import Explanation, Method, make
from tl.explain.methods import METHODS, get

__all__ = ["METHODS", "Explanation", "Method", "baselines", "checks", "get", "make", "targets"]
