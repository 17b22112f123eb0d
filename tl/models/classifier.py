"""A classifier: backbone, head, preprocessing and class table in one value, and its variables in another.

`load` brings one from pretrained weights, wherever they are, or from a folder that `save` wrote. Everything is pure:
variables are arguments, images are RGB in [0, 1], and the preprocessing happens inside. Training is `tl.training.step`; reading
files `tl.data`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl import pixels
from tl.backbones.fold import fold
from tl.backbones.run import run
from tl.backbones.spec import BackboneSpec, Module
from tl.labels import ClassTable
from tl.paths import nearest
from tl.pixels import PixelSpec
from tl.types import Mode, Output, Params, Variables

IMAGENET_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where weights come from: a name, the SHA-256 of the file, whose they are, and their licence."""

    name: str
    sha256: str
    origin: str = "unknown"
    licence: str = "unknown"


@dataclasses.dataclass(
    frozen=True, eq=False
)  # compared by identity, so that it can be a static argument of jit
class Classifier:
    """A network from `images01` to logits.

    Attributes:
      arch: timm's name.
      spec: the backbone's row in the zoo.
      head: Linen module `(features, endpoints) -> logits`, or None for a network of features only.
      pixels: what the weights want done to a photograph; its mean has one number for each input channel.
      classes: names of the logits, or None where the head has none.
      weights: where the backbone's weights come from.
      dtype: in which the backbone computes; parameters, sums, statistics, features and logits are float32 in either.
    """

    arch: str
    spec: BackboneSpec
    head: Module | None
    pixels: PixelSpec
    classes: ClassTable | None
    weights: Provenance
    dtype: str = "float32"

    def init(self, key: jax.Array) -> Variables:
        """Fresh variables: `{"params": {"backbone": ..., "head": ...}, "batch_stats": {"backbone": ...}}`, float32."""
        side = max(self.pixels.size, self.spec.min_size)
        inputs = jnp.zeros((1, side, side, len(self.pixels.mean)), jnp.float32)
        key_backbone, key_head = jax.random.split(key)
        traced: Any = self.spec.module.init_with_output(key_backbone, inputs, Mode.EVAL)
        (features, ends), variables = traced
        out = {name: {"backbone": tree} for name, tree in variables.items()}
        out.setdefault("batch_stats", {})
        if self.head is not None:
            out["params"]["head"] = self.head.init(key_head, features, ends)["params"]
        return out

    def init_head(self, key: jax.Array) -> Params:
        """Fresh parameters of the head alone, without a pass through the backbone.

        Raises:
          ValueError: this network has no head.
        """
        if self.head is None:
            raise ValueError(self.no_head_message())
        side = max(self.pixels.size, self.spec.min_size)
        inputs = jax.ShapeDtypeStruct((1, side, side, len(self.pixels.mean)), jnp.float32)
        order: list[
            str
        ] = []  # of the forward pass, which a head may count on; JAX's trees sort by name

        def begin(x: jax.Array) -> Any:
            traced: Any = self.spec.module.init_with_output(jax.random.key(0), x, Mode.EVAL)
            order.extend(traced[0][1])
            return traced[0]

        features, ends = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(begin, inputs)
        )
        return self.head.init(key, features, {name: ends[name] for name in order})["params"]

    def apply(
        self,
        variables: Variables,
        images01: jax.Array,
        mode: Mode = Mode.EVAL,
        *,
        train_norms: Collection[str] | None = None,
    ) -> Output:
        """One forward pass.

        Args:
          variables: as `init` or `load` return them.
          images01: f32[b h w 3] in [0, 1], RGB, not normalised; any h and w from `spec.min_size` up. (As many channels as
            `pixels.mean` has.)
          mode: whose statistics BatchNorm uses.
          train_norms: paths of the backbone's layers (`optim.trainable_norm_layers`) whose BatchNorm follows `mode`, while all others stay in
            `Mode.EVAL`: a frozen block normalises as it does at test time. Default: all of them.

        Returns:
          Output; `logits` is None for a network without a head.

        Raises:
          ValueError: `images01` has another dtype or rank, leaves [0, 1], holds NaN, or is too small.
        """
        pixels.check(images01, ndim=4, channels=len(self.pixels.mean))
        if min(images01.shape[1:3]) < self.spec.min_size:
            raise ValueError(
                f"{self.arch} wants images of at least {self.spec.min_size} pixels a side; got {images01.shape}"
            )
        inputs = pixels.normalize(self.pixels, images01).astype(self.dtype)
        return self._run(variables, inputs, mode, "", train_norms)

    def apply_from(
        self,
        variables: Variables,
        maps: jax.Array,
        start: str,
        mode: Mode = Mode.EVAL,
        *,
        train_norms: Collection[str] | None = None,
    ) -> Output:
        """The rest of a forward pass: from what a frozen prefix has computed once, to the logits.

        Args:
          variables: as for `apply`; those of the prefix are not read.
          maps: f32 or bf16[b h w c], the map of the endpoint `start`; f32[b d] where `start` is "features".
          start: a stage of `spec.endpoints`, or "features": then the head alone is left.
          mode, train_norms: as for `apply`.

        Returns:
          Output; its endpoints are those after `start`.

        Raises:
          ValueError: `start` is no stage; gives the nearest.
        """
        if start == "features":
            return Output(
                self.apply_head(variables, maps), maps, {}, variables.get("batch_stats", {})
            )
        if start not in self.spec.endpoints:
            raise ValueError(
                f"{self.arch} has no stage {start!r}; nearest: {nearest(start, self.spec.endpoints)}"
            )
        return self._run(variables, maps, mode, start, train_norms)

    def _run(
        self,
        variables: Variables,
        x: jax.Array,
        mode: Mode,
        start: str,
        train_norms: Collection[str] | None,
    ) -> Output:
        parts = {name: tree["backbone"] for name, tree in variables.items() if "backbone" in tree}
        stats = variables.get("batch_stats", {})
        features, ends, moved = run(
            self.spec.module, parts, x, mode, start=start, train_norms=train_norms
        )
        stats = stats if moved is None else {**stats, "backbone": moved}
        return Output(self.apply_head(variables, features, ends), features, ends, stats)

    def apply_head(
        self,
        variables: Variables,
        features: jax.Array,
        endpoints: Mapping[str, jax.Array] | None = None,
    ) -> jax.Array | None:
        """Logits f32[b k] from features f32[b d] (and, for VGG's own top, endpoints); None without a head."""
        if self.head is None:
            return None
        logits: Any = self.head.apply(
            {"params": variables["params"]["head"]}, features, endpoints or {}
        )
        return logits

    def logits(self, variables: Variables, images01: jax.Array) -> jax.Array:
        """Logits f32[b k] in `Mode.EVAL`.

        Raises:
          ValueError: this network has no head; says how to get one.
        """
        logits = self.apply(variables, images01).logits
        if logits is None:
            raise ValueError(self.no_head_message())
        return logits

    def no_head_message(self) -> str:
        """The sentence for a user who wants class probabilities of a network without a head."""
        return (
            f"the weights {self.weights.name} hold {self.arch}'s features and no classifier; take --arch=efficientnet_lite0, "
            "train a head with `transfer` and give --model=DIR, or give --weights=FILE of a whole network"
        )

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The uint8[s s 3] square that this network sees of a decoded photograph uint8[h w 3]."""
        return pixels.prepare(self.pixels, image)

    def with_head(self, head: Module, classes: ClassTable) -> Classifier:
        """The same backbone under another head."""
        return dataclasses.replace(self, head=head, classes=classes)

    def with_dtype(self, dtype: str) -> Classifier:
        """The same network, computing in another type; `variables` stay as they are.

        Raises:
          ValueError: neither float32 nor bfloat16.
        """
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"a network computes in float32 or bfloat16; got {dtype!r}")
        return dataclasses.replace(self, dtype=dtype)

    def fold_batch_norm(self, variables: Variables) -> Variables:
        """Variables of an equivalent network without BatchNorm, for use where the backbone is frozen.

        Each BatchNorm's statistics, scale and bias go into the kernel before it and a bias; where no convolution comes
        before, an affine map is left. `apply` takes the result in place of `variables`; every mode is then the evaluation
        mode, since there are no statistics to move. Logits agree to the rounding of float32.

        Returns:
          `{"params": ..., "batch_stats": {}}`, float32.
        """
        params, stats = variables["params"], variables.get("batch_stats", {})
        backbone = fold(
            self.spec.module, params["backbone"], stats.get("backbone", {}), len(self.pixels.mean)
        )
        return {"params": {**params, "backbone": backbone}, "batch_stats": {}}

    def with_pixels(self, **changes: Any) -> Classifier:
        """The same network at another size, crop or resize rule."""
        return dataclasses.replace(self, pixels=self.pixels.replace(**changes))
