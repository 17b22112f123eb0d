"""The `Classifier`: backbone, head, preprocessing and class table in one value.

Methods are pure: variables are arguments, images are RGB in [0, 1], and normalization happens
inside `apply`. `tl.models.load` and `save` read and write classifiers, `tl.training` trains them,
and `tl.data` reads image files.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl import pixels
from tl.backbones.fold import fold
from tl.backbones.run import run
from tl.backbones.spec import BackboneSpec, Module
from tl.labels import ClassTable, from_names, known_groups
from tl.models import heads
from tl.paths import nearest
from tl.pixels import PixelSpec
from tl.types import Array, Mode, Output, Params, Variables

IMAGENET_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where weights come from.

    Attributes:
      name: `ARCH.TAG` for published weights, `ARCH:FILE` for a file.
      sha256: SHA-256 of the weights file, in hexadecimal.
      origin: publisher or repository.
      licence: license of the weights, an SPDX identifier where one is known.
    """

    name: str
    sha256: str
    origin: str = "unknown"
    licence: str = "unknown"


@functools.lru_cache(maxsize=16)
def _traced(module: Module, side: int, channels: int) -> tuple[Any, dict[str, Any], Any]:
    """Shapes of features, endpoints in forward order, and variables of a backbone.

    Cached because a trace of the network takes a large part of the start of a command.
    """
    inputs = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    order: list[str] = []  # JAX sorts the keys of a dict

    def trace(x: jax.Array) -> Any:
        traced: Any = module.init_with_output(jax.random.key(0), x, Mode.EVAL)
        order.extend(traced[0][1])
        return traced

    (features, ends), variables = jax.eval_shape(trace, inputs)
    return features, {name: ends[name] for name in order}, variables


# Compared by identity (`eq=False`), so that a classifier can be a static argument of `jit`.
@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A network from `images01` to logits.

    Attributes:
      arch: name of the architecture in the zoo.
      spec: the backbone's row in the zoo.
      head: Linen module `(features, endpoints) -> logits`, or None if the network has no
        classifier.
      pixels: preprocessing that the weights were trained with; its mean has one value per input
        channel.
      classes: class of each logit, or None without a head.
      weights: where the backbone's weights come from.
      dtype: number type in which the backbone computes, "float32" or "bfloat16". Parameters, sums,
        statistics, features and logits are float32 in both.
      remarks: what a user should know about the way `load` read the weights, such as tensors that
        were left out; one sentence each. Not saved.
      head_left_out: names of the tensors of a head that `load` left out, on request or because it
        is not the architecture's own. Not saved.
    """

    arch: str
    spec: BackboneSpec
    head: Module | None
    pixels: PixelSpec
    classes: ClassTable | None
    weights: Provenance
    dtype: str = "float32"
    remarks: tuple[str, ...] = ()
    head_left_out: tuple[str, ...] = ()

    def init(self, key: jax.Array) -> Variables:
        """Newly initialized variables.

        Args:
          key: from `jax.random.key`; the backbone and the head receive different keys.

        Returns:
          `{"params": {"backbone": ..., "head": ...}, "batch_stats": {"backbone": ...}}`, float32.
          There is no "head" if the network has none, and "batch_stats" is empty without BatchNorm.
        """
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
        """Newly initialized parameters of the head, without a forward pass of the backbone.

        Args:
          key: from `jax.random.key`.

        Returns:
          The subtree `params/head`, float32.

        Raises:
          ValueError: the network has no head.
        """
        if self.head is None:
            raise ValueError(self.no_head_message())
        features, ends, _ = self._traced()
        zeros = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)
        maps = {name: zeros(leaf) for name, leaf in ends.items()}
        return self.head.init(key, zeros(features), maps)["params"]

    def shapes(self) -> Variables:
        """Shapes and dtypes of the variables that `init` returns."""
        features, ends, variables = self._traced()
        out: dict[str, Any] = {name: {"backbone": tree} for name, tree in variables.items()}
        out.setdefault("batch_stats", {})
        if self.head is not None:
            init = lambda key, features, *maps: self.head.init(  # type: ignore[union-attr]
                key, features, dict(zip(ends, maps, strict=True))
            )
            head = jax.eval_shape(init, jax.random.key(0), features, *ends.values())
            out["params"] = {**out["params"], "head": head["params"]}
        return out

    def _traced(self) -> tuple[Any, dict[str, Any], Any]:
        side = max(self.pixels.size, self.spec.min_size)
        return _traced(self.spec.module, side, len(self.pixels.mean))

    def apply(
        self,
        variables: Variables,
        images01: jax.Array,
        mode: Mode = Mode.EVAL,
        *,
        train_norms: Collection[str] | None = None,
        valid: Array | None = None,
    ) -> Output:
        """One forward pass.

        Without `jit`, results agree with those of `tl.predict` up to float32 rounding only.

        Args:
          variables: as `init` or `load` return them.
          images01: f32[b h w 3] in [0, 1], RGB, not normalized; h and w at least `spec.min_size`.
            The number of channels is the length of `pixels.mean`.
          mode: which statistics BatchNorm uses, and whether it updates the running ones.
          train_norms: paths of the backbone's layers whose BatchNorm follows `mode`
            (`training.rules.trainable_norm_layers`); all others stay in `Mode.EVAL`, so that a
            frozen block normalizes as it does at test time. Default: all layers follow `mode`.
          valid: bool[b]; False for padded slots, which do not count in the statistics of the batch
            and receive no meaningful output in `Mode.TRAIN`. Default: no slot is padded.

        Returns:
          Logits, features, endpoints and statistics; `logits` is None for a network without a head.

        Raises:
          ValueError: `images01` has another dtype or rank, has values outside [0, 1] or NaN, or is
            too small; `valid` is not bool[b].
        """
        pixels.check(images01, ndim=4, channels=len(self.pixels.mean))
        if min(images01.shape[1:3]) < self.spec.min_size:
            raise ValueError(
                f"images are too small for {self.arch}: got {images01.shape}, "
                f"expected at least {self.spec.min_size} pixels per side"
            )
        inputs = pixels.normalize(self.pixels, images01).astype(self.dtype)
        return self._run(variables, inputs, mode, "", train_norms, valid)

    def apply_from(
        self,
        variables: Variables,
        maps: jax.Array,
        start: str,
        mode: Mode = Mode.EVAL,
        *,
        train_norms: Collection[str] | None = None,
        valid: Array | None = None,
    ) -> Output:
        """The rest of a forward pass, from the output of an earlier stage to the logits.

        A frozen prefix is computed once and its output cached; training then runs this part only.

        Args:
          variables: as for `apply`; those of the stages up to `start` are not read.
          maps: f32 or bf16[b h w c], the endpoint `start`; f32[b d] if `start` is "features".
          start: a stage of `spec.endpoints`, or "features" to apply the head only.
          mode: as for `apply`.
          train_norms, valid: as for `apply`.

        Returns:
          As from `apply`; the endpoints are `start` and those after it, or none for "features".

        Raises:
          ValueError: unknown stage; the message lists the nearest names. `valid` is not bool[b].
        """
        if start == "features":
            return Output(
                self.apply_head(variables, maps), maps, {}, variables.get("batch_stats", {})
            )
        if start not in self.spec.endpoints:
            raise ValueError(
                f"{self.arch} has no stage {start!r}; "
                f"nearest: {nearest(start, self.spec.endpoints)}"
            )
        return self._run(variables, maps, mode, start, train_norms, valid)

    def _run(
        self,
        variables: Variables,
        x: jax.Array,
        mode: Mode,
        start: str,
        train_norms: Collection[str] | None,
        valid: Array | None,
    ) -> Output:
        if valid is not None and (valid.dtype != bool or valid.shape != x.shape[:1]):
            raise ValueError(
                f"`valid` must be bool[{x.shape[0]}], one value per slot of the batch: got "
                f"{valid.dtype}{list(valid.shape)}"
            )
        backbone = {
            name: tree["backbone"] for name, tree in variables.items() if "backbone" in tree
        }
        stats = variables.get("batch_stats", {})
        features, ends, new_stats = run(
            self.spec.module,
            backbone,
            x,
            mode,
            start=start,
            train_norms=train_norms,
            valid=None if valid is None else jnp.asarray(valid),
        )
        stats = stats if new_stats is None else {**stats, "backbone": new_stats}
        return Output(self.apply_head(variables, features, ends), features, ends, stats)

    def apply_head(
        self,
        variables: Variables,
        features: jax.Array,
        endpoints: Mapping[str, jax.Array] | None = None,
    ) -> jax.Array | None:
        """Logits of the head.

        Args:
          variables: as for `apply`; only `params/head` is read.
          features: f32[b d], the pooled features.
          endpoints: name -> f32[b h w c]; needed by heads that read feature maps (VGG's classifier,
            "flat", "concat").

        Returns:
          f32[b k], or None for a network without a head.
        """
        if self.head is None:
            return None
        logits: Any = self.head.apply(
            {"params": variables["params"]["head"]}, features, endpoints or {}
        )
        return logits

    def logits(self, variables: Variables, images01: jax.Array) -> jax.Array:
        """Logits in `Mode.EVAL`.

        Args:
          variables: as for `apply`.
          images01: as for `apply`.

        Returns:
          f32[b k].

        Raises:
          ValueError: the network has no head; the message says how to get one.
        """
        logits = self.apply(variables, images01).logits
        if logits is None:
            raise ValueError(self.no_head_message())
        return logits

    def no_head_message(self) -> str:
        """The error message where a network without a head would have to predict classes."""
        if self.head_left_out:
            names = ", ".join(name[-60:] for name in self.head_left_out[:4])
            more = len(self.head_left_out) - 4
            names += f" and {more} more" if more > 0 else ""
            return (
                f"the head of the weights {self.weights.name} was left out, by `headless` or "
                f"because it is not {self.arch}'s own: {names}; transfer, features and ideal "
                "images of features need none (`headless`); to predict, train a head with "
                "transfer and give `model=DIR`"
            )
        return (
            f"the weights {self.weights.name} hold {self.arch}'s features and no classifier; "
            "use `arch=efficientnet_lite0`, train a head with transfer and give `model=DIR`, "
            "or give `weights=FILE` of a network with a classifier"
        )

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Resizes and crops a decoded image uint8[h w 3] to the square input uint8[s s c]."""
        return pixels.prepare(self.pixels, image)

    def with_head(self, head: Module, classes: ClassTable) -> Classifier:
        """The same backbone with another head, which needs new parameters (`init_head`)."""
        return dataclasses.replace(self, head=head, classes=classes, head_left_out=())

    def replace_head(
        self,
        variables: Variables,
        classes: Sequence[str] | ClassTable,
        *,
        key: jax.Array,
        head: str = "linear",
    ) -> tuple[Classifier, Variables]:
        """The same backbone with a new head for other classes.

        Args:
          variables: the variables of this network; the parameters of its head, if any, are dropped.
          classes: names of the new classes in the order of the logits, or a class table.
          key: random key of the new head's initial parameters.
          head: a name of `heads.KINDS`, or "own".

        Returns:
          `(clf, variables)`. The new variables share the arrays of the backbone.

        Raises:
          ValueError: an unknown kind of head, no class, or a class name that is used twice.
        """
        if not isinstance(classes, ClassTable):
            classes = from_names(classes, groups=known_groups(classes))
        clf = self.with_head(heads.maker(head, self.spec)(len(classes)), classes)
        return clf, clf.reset_head(variables, key=key)

    def reset_head(self, variables: Variables, *, key: jax.Array) -> Variables:
        """The variables with newly initialized parameters of the head.

        Args:
          variables: as for `apply`, with or without a head.
          key: random key of the initial parameters.

        Raises:
          ValueError: the network has no head.
        """
        head = jax.tree.map(np.asarray, self.init_head(key))
        return {**variables, "params": {**variables["params"], "head": head}}

    def with_dtype(self, dtype: str) -> Classifier:
        """The same network with another compute type; the variables stay valid.

        Raises:
          ValueError: `dtype` is neither "float32" nor "bfloat16".
        """
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"unknown `dtype`: got {dtype!r}, expected float32 or bfloat16")
        return dataclasses.replace(self, dtype=dtype)

    def fold_batch_norm(self, variables: Variables) -> Variables:
        """Variables of an equivalent network without BatchNorm, for use with a frozen backbone.

        Each BatchNorm is merged into the kernel and the bias of the convolution before it. Without
        such a convolution, it becomes an affine map. `apply` accepts the result as `variables`;
        every mode then acts as `Mode.EVAL`, because no statistics are left. Logits agree up to
        float32 rounding, within 2e-6 of the largest.

        Args:
          variables: as for `apply`.

        Returns:
          `{"params": ..., "batch_stats": {}}`, float32.
        """
        params, stats = variables["params"], variables.get("batch_stats", {})
        backbone = fold(
            self.spec.module, params["backbone"], stats.get("backbone", {}), len(self.pixels.mean)
        )
        return {"params": {**params, "backbone": backbone}, "batch_stats": {}}

    def with_pixels(self, **changes: Any) -> Classifier:
        """The same network with other fields of `pixels`, such as `size`, `crop` or `resize`."""
        return dataclasses.replace(self, pixels=self.pixels.replace(**changes))
