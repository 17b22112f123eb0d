"""How a classifier is trained: the recipe, checked before anything is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tl.data import DataSpec
from tl.models import Classifier
from tl.paths import Rules
from tl.training import inputs
from tl.training.adversarial import Adversary
from tl.training.rules import Phase, phases


def pixels_for(clf: Classifier, spec: DataSpec, crop: str, image_size: int) -> Classifier:
    """The network's preprocessing for this data set: its own rule, unless the set or the user wants whole pictures."""
    changes: dict[str, Any] = {"size": image_size} if image_size else {}
    if crop == "none" or (not crop and spec.whole):
        changes["resize"] = "squash"
    return clf.with_pixels(**changes)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides how a classifier is trained, beside its data, its network and the seed.

    Attributes:
      tune: a short form of `optim.TUNE`.
      rules: in place of `tune`: `((regex, label), ...)`.
      bn: a word of `optim.BN`.
      method: of a probe, a name of `probe.METHODS`.
      epochs, batch_size: of all phases together, and of every step.
      lr: peak learning rate of the head; 0 takes 1e-3 where the head alone trains and 5e-3 elsewhere (chosen on ELPV).
      backbone_lr: factor on it for everything else.
      layer_decay: further factor for each stage away from the head.
      optimizer, schedule: words of `optim.OPTIMIZERS` and `optim.SCHEDULES`.
      weight_decay, clip, smoothing, ema: as in `optim` and `train`; 0 leaves each out.
      soft_labels: a label of a set that tells how sure it is (`Example.confidence`) counts as that much; probes take it whole.
      microbatches: parts of a batch whose gradients are summed.
      patience: epochs without a better validation loss after which a phase ends; 0 never ends it.
      augment: words for `augment.make_augment`.
      balance: "none", "weights" (in the loss) or "sampler" (classes drawn equally often).
      workers: processes that decode; -1 lets `loader.auto_workers` decide.
      bank_gib: memory that the maps of a frozen prefix may take, in GiB; 0 always reads pictures.
      save_every: steps between two checkpoints, beside those at each epoch's end; 0 for those alone.
      adversarial: "none", or a row of `robust.METHODS`; the best epoch is then that of the least error under attack.
      adversarial_eps, adversarial_steps, adversarial_beta, adversarial_replays: as in `robust.Adversary`.
      adversarial_warmup: share of a phase over which the radius grows from 0, in [0, 1].
    """

    tune: str = "head"
    rules: Rules = ()
    bn: str = "eval"
    method: str = "logistic"
    epochs: int = 30
    batch_size: int = 32
    lr: float = 0.0
    backbone_lr: float = 0.1
    layer_decay: float = 1.0
    optimizer: str = "adamw"
    schedule: str = "cosine"
    weight_decay: float = 1e-2
    clip: float = 1.0
    smoothing: float = 0.0
    soft_labels: bool = False
    ema: float = 0.0
    microbatches: int = 1
    patience: int = 0
    augment: str = "none"
    balance: str = "none"
    workers: int = -1
    bank_gib: float = 3.0
    save_every: int = 0
    adversarial: str = "none"
    adversarial_eps: float = 2 / 255
    adversarial_steps: int = 3
    adversarial_beta: float = 6.0
    adversarial_replays: int = 4
    adversarial_warmup: float = 0.0

    def phases(self, stages: Sequence[str]) -> tuple[Phase, ...]:
        """The phases of this recipe on a network with these stages."""
        return (
            (Phase("rules", self.rules),) if self.rules else phases(self.tune, stages, bn=self.bn)
        )

    def adversary(self, steps: int = 0) -> Adversary | None:
        """Against whom a phase of so many batches trains; None where that is nobody. Raises the errors of its fields."""
        if self.adversarial == "none":
            return None
        return Adversary(
            self.adversarial,
            self.adversarial_eps,
            self.adversarial_steps,
            self.adversarial_beta,
            self.adversarial_replays,
            round(self.adversarial_warmup * steps),
        )


def apply_label_confidence(train_set: DataSpec, recipe: Recipe) -> DataSpec:
    """The set with its labels as sure as the recipe takes them."""
    certain = inputs.confidence(train_set) is None
    if recipe.soft_labels and certain:
        raise ValueError(
            f"--soft_labels wants labels that say how sure they are; those of {train_set.name} are all certain: take elpv, or a "
            "CSV with a column confidence"
        )
    if recipe.soft_labels or certain:
        return train_set
    examples = tuple(dataclasses.replace(example, confidence=1.0) for example in train_set.examples)
    return dataclasses.replace(train_set, examples=examples)


def check_adversary(recipe: Recipe, stages: Sequence[str]) -> None:
    """ValueError where the adversary of a recipe is none that can be trained against."""
    if recipe.adversary() is None:
        return
    what = f"--adversarial={recipe.adversarial}"
    if not 0 <= recipe.adversarial_warmup <= 1:
        raise ValueError(
            f"--adversarial_warmup is a share of the steps in [0, 1]; got {recipe.adversarial_warmup:g}"
        )
    if all(phase.name == "probe" for phase in recipe.phases(stages)):
        raise ValueError(
            f"{what} wants gradient steps, and --tune={recipe.tune} has none; take --tune=lp_ft or all"
        )
