"""Exports a classifier as one StableHLO program that contains its preprocessing and weights.

The program runs with jax alone, without `tl` (`tl.models.run_exported`). To keep a classifier for
more training, use `tl.models.save`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from tl import pixels, storage
from tl.models import run_exported
from tl.models.classifier import Classifier
from tl.types import Variables

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, CLASSES, SCRIPT = "model.stablehlo", "classes.json", "run.py"


def program(
    clf: Classifier, variables: Variables, *, platforms: Sequence[str] = PLATFORMS
) -> export.Exported:
    """The function from decoded images to class probabilities, lowered for several platforms.

    Args:
      clf: a network with a head.
      variables: its variables. BatchNorm is folded, so logits agree with those of `predict` to
        float32 rounding.
      platforms: platforms to lower for, a subset of `PLATFORMS`; each gets its own form of the
        convolutions.

    Returns:
      `uint8[b h w 3] -> {"logits": f32[b k], "probabilities": f32[b k]}` with symbolic b, h and w.
      Its `serialize()` gives bytes that `jax.export.deserialize` reads. Images are resized and
      cropped by `pixels.prepare_on_device`.

    Raises:
      ValueError: the network has no head, or its input channels cannot be made from an RGB image.
    """
    folded = jax.tree.map(jnp.asarray, clf.fold_batch_norm(variables))

    def classify(images: jax.Array) -> dict[str, jax.Array]:
        logits = clf.logits(folded, pixels.prepare_on_device(clf.pixels, images))
        return {"logits": logits, "probabilities": jax.nn.softmax(logits)}

    b, h, w = export.symbolic_shape("b, h, w")
    return export.export(jax.jit(classify), platforms=tuple(platforms))(
        jax.ShapeDtypeStruct((b, h, w, 3), np.uint8)
    )


def write(folder: Path, clf: Classifier, variables: Variables) -> int:
    """Writes the program, the class names and the script that runs it.

    Args:
      folder: directory to write; created if missing. It receives `model.stablehlo`, `classes.json`
        and `run.py`.
      clf: a network with a head.
      variables: its variables.

    Returns:
      Size of the program in bytes.

    Raises:
      ValueError: the network has no head, or the folder cannot be written.
    """
    if clf.classes is None:
        raise ValueError(clf.no_head_message())
    names = [clf.classes.display(i) for i in range(len(clf.classes.entries))]
    try:
        storage.make_folder(folder)
        words = json.dumps(names, indent=1, ensure_ascii=False)
        storage.write_whole(folder / CLASSES, words.encode("utf-8"))
        storage.write_whole(folder / SCRIPT, Path(run_exported.__file__).read_bytes())
        serialized = program(clf, variables).serialize()
        storage.write_whole(folder / PROGRAM, bytes(serialized))
    except OSError as error:
        raise ValueError(
            f"cannot write into {str(folder)!r} ({error.strerror}); give another `out`"
        ) from error
    return len(serialized)
