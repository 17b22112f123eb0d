"""Which stage to tune: the one with the largest gradient, relative to its parameters or its noise.

The gradient is that of the training images, without augmentation, at the head of a probe. It costs
one backward pass per image. `fit` calls `choose` for `tune=surgical`, where the norm relative to
the parameters decides, and for `tune=surgical:snr`, where the signal-to-noise ratio does.

Reference:
  Lee et al. 2022, arXiv:2210.11466, section 5: relative gradient norm ("Auto-RGN") and
  signal-to-noise ratio ("Auto-SNR"). There they set the learning rate of each layer; here one of
  them chooses a stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl import devices, hosts, losses, ops, paths, reporting
from tl.data import augment
from tl.paths import Partition
from tl.training import inputs, resume, rules
from tl.training.program import FitContext, make_forward
from tl.types import Mode, Params


def stage_gradients(context: FitContext, params: Params, stats: Params) -> list[dict[str, Any]]:
    """The gradient of each stage, in the order of the network.

    Returns:
      Rows of `stage`; `relative_norm`, the norm of the mean gradient divided by that of the
      parameters; and `signal_to_noise`, the squared norm of the mean of the gradients of batches
      divided by the sum of their variances, None for a single batch. (The paper has the mean over
      parameters of such ratios, which the smallest variances decide.)
    """
    clf, mesh = context.clf, devices.mesh()
    forward = make_forward(clf, "", Mode.EVAL, frozenset())

    @jax.jit
    def gradient(backbone: Any, head: Any, stats: Any, batch: Any) -> Any:
        def loss(backbone: Any) -> jax.Array:
            logits, _ = forward({"backbone": backbone, "head": head}, stats, batch.inputs)
            valid = batch.valid.astype(jnp.float32)
            values = losses.cross_entropy(logits, batch.labels) * valid
            return jnp.sum(values) / jnp.maximum(jnp.sum(valid), 1.0)

        return jax.grad(loss)(backbone)

    plain = augment.make_augment("none", size=clf.pixels.size)
    images = inputs.ImageInputs(clf, context.train_set, plain)
    variables = jax.device_put((params["backbone"], params["head"], stats))
    sums: dict[str, np.ndarray] = {}
    squares: dict[str, np.ndarray] = {}
    count = 0
    for batch, _ in images.evaluation(context.recipe.batch_size):
        hosts.advance()
        with ops.batch_sharded(mesh):
            leaves = paths.flatten(devices.fetch(gradient(*variables, devices.shard(batch, mesh))))
        count += 1
        for name, leaf in leaves.items():
            sums[name] = sums.get(name, 0.0) + leaf.astype(np.float64)
            squares[name] = squares.get(name, 0.0) + np.square(leaf, dtype=np.float64)
    rows = []
    for stage in dict.fromkeys(name.split("/")[0] for name in clf.spec.endpoints):
        names = [name for name in sums if name.split("/")[0] == stage]
        means = {name: sums[name] / count for name in names}
        noise = sum(np.sum(squares[name] / count - means[name] ** 2) for name in names)
        weights = paths.flatten(params["backbone"])
        signal, length = _norm(means), _norm({name: weights[name] for name in names})
        row: dict[str, Any] = {"stage": stage, "relative_norm": signal / max(length, 1e-30)}
        row["signal_to_noise"] = signal**2 / max(float(noise), 1e-30) if count > 1 else None
        rows.append(row)
    return rows


def _norm(leaves: Mapping[str, np.ndarray]) -> float:
    return float(
        np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in leaves.values()))
    )


def choose(context: FitContext, params: Params, stats: Params) -> tuple[rules.Phase, Partition]:
    """The phase that tunes the head and the chosen stage, with its partition.

    A resumed run reads the gradients from the folder of the checkpoints.

    Args:
      context: the arguments of `fit`; `tune` of its recipe, in `rules.SURGICAL`, decides how.
      params, stats: the network with the head of a probe.
    """
    find = lambda: stage_gradients(context, params, stats)
    rows = resume.saved_value(context.folder, "stages.json", find, what="the gradients of stages")
    criterion = rules.SURGICAL[context.recipe.tune]
    best = max(rows, key=lambda row: row[criterion])["stage"]
    cells = [
        [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()]
        for row in rows
    ]
    context.say(reporting.columns(list(rows[0]), cells))
    compared = "parameters" if criterion == "relative_norm" else "noise"
    context.say(f"surgical: {best}, which has the largest gradient relative to its {compared}")
    phase = rules.phases(f"surgical:{best}", context.clf.spec.endpoints)[-1]
    return phase, paths.partition(params, phase.rules)
