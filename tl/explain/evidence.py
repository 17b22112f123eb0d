"""What the tests of belief read: the maps of all methods, and the network that they explain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from tl.attacks.norms import per_image_keys
from tl.attacks.run import batched_logits
from tl.explain.base import Explanation, Rows
from tl.models import Classifier
from tl.types import Array, Variables
from tl.visualize.objectives import Objective

# The controls of every report: the edge map and a random order of the pixels.
CONTROLS = ("edges", "random")
# Tests of methods with more passes per image use one network or permutation instead of several.
MANY_PASSES = 100

T = TypeVar("T")


class Subject(NamedTuple):
    """What is explained.

    Attributes:
      clf: the network.
      variables: its variables.
      key: from `jax.random.key`, as for the explanation.
      images01: f32[b h w c] in [0, 1].
      targets: f32[b k], from `targets.weights`, or the arguments of another objective.
    """

    clf: Classifier
    variables: Variables
    key: jax.Array
    images01: Array
    targets: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """The maps of all methods, and what tests compute from them together.

    Attributes:
      subject: the network and b images.
      explanations: name -> method; "edges" is one of them.
      maps: name -> f32[b h w]; those of "random" are zero, whose order is random.
      steps: number of steps of insertion and deletion.
      slots: passes that a device computes together.
      few: number of rows of tests that compute maps again, the first ones.
      groups: i[b], the image of each row.
      mosaics, marks: numbers of images of the tests with a known answer; 0 omits them.
      eps: radius of the attack on the maps, in [0, 1] pixel units; 0 omits it.
    """

    subject: Subject
    explanations: Mapping[str, Explanation]
    maps: Mapping[str, np.ndarray]
    steps: int
    slots: int
    few: int
    groups: np.ndarray
    mosaics: int = 0
    marks: int = 0
    eps: float = 0.0
    _shared: dict[Callable[..., Any], Any] = dataclasses.field(default_factory=dict)

    def shared(self, compute: Callable[[Evidence], T]) -> T:
        """`compute(self)`, computed once for all tests and methods."""
        if compute not in self._shared:
            self._shared[compute] = compute(self)
        return self._shared[compute]

    @property
    def objective(self) -> Callable[[Any], Objective] | None:
        """The objective that all methods explain; None for classes."""
        return next(iter(self.explanations.values())).objective

    def firsts(self) -> np.ndarray:
        """The first row of each image, i[n]."""
        return np.unique(self.groups, return_index=True)[1]

    def logits(self, images01: Array) -> np.ndarray:
        """The logits f32[n k] of images f32[n h w c], computed in float32."""
        clf, variables = self.subject.clf.with_dtype("float32"), self.subject.variables
        return np.asarray(batched_logits(clf.logits, self.slots)(variables, jnp.asarray(images01)))

    def rows(self, n: int | None = None) -> Rows:
        """The first n images, by default all, with the keys of the explanation."""
        _, _, key, images01, targets = self.subject
        n = len(images01) if n is None else n
        first = lambda leaf: jnp.asarray(leaf[:n])
        return Rows(per_image_keys(key, n), first(images01), jax.tree.map(first, targets))

    def few_maps(self, name: str) -> np.ndarray:
        """The maps f32[few h w] of the first images."""
        return self.maps[name][: self.few]

    def again(self, name: str, variables: Variables | None = None, **changes: Any) -> np.ndarray:
        """The maps f32[few h w] of the first images with other variables or fields of `Rows`."""
        rows = self.rows(self.few)._replace(**changes)
        variables = self.subject.variables if variables is None else variables
        return np.asarray(self.explanations[name].program(variables, rows))

    def passes(self, name: str) -> int:
        """Passes of a method per image."""
        return self.explanations[name].passes(*self.subject.images01.shape[1:3])
