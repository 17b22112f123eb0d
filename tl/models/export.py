"""A classifier as one StableHLO program, preprocessing and weights inside: to run it takes `jax` and nothing of `tl`."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from tl import pixels
from tl.models.classifier import Classifier
from tl.types import Variables

PLATFORMS = ("cpu", "cuda", "tpu")


def program(
    clf: Classifier, variables: Variables, *, platforms: Sequence[str] = PLATFORMS
) -> export.Exported:
    """Photographs in, probabilities out, for any number of pictures of any one size.

    Args:
      clf, variables: a network with a head. BatchNorm is folded away, so logits are `predict`'s to float32 rounding.
      platforms: that the program is lowered for, each with its own convolutions.

    Returns:
      The exported function `uint8[b h w 3] -> {"logits": f32[b k], "probabilities": f32[b k]}`, b, h and w symbolic;
      `serialize()` makes bytes of it, `jax.export.deserialize` reads them. The picture is resized and cropped as
      `pixels.prepare_on_device` says.

    Raises:
      ValueError: a network without a head, or one that no photograph can feed.
    """
    folded = jax.tree.map(jnp.asarray, clf.fold_batch_norm(variables))

    def classify(images: jax.Array) -> dict[str, jax.Array]:
        logits = clf.logits(folded, pixels.prepare_on_device(clf.pixels, images))
        return {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    b, h, w = export.symbolic_shape("b, h, w")
    return export.export(jax.jit(classify), platforms=tuple(platforms))(
        jax.ShapeDtypeStruct((b, h, w, 3), np.uint8)
    )
