"""How a classifier is trained: the recipe, checked before anything is computed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from tl import losses, optim
from tl.data import DataSpec
from tl.models import Classifier
from tl.paths import Rules, nearest
from tl.training import initializers, inputs, regularizers, schedules
from tl.training.adversarial import Adversary
from tl.training.rules import Phase, phases


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides how a classifier is trained, except data, network and seed.

    Attributes:
      tune: which parameters train, one of `rules.TUNE`.
      rules: `((regex, label), ...)` instead of `tune`.
      init: how the kernels of the backbone are drawn, to train it from scratch, one of
        `initializers.INITIALIZERS`; "" keeps its weights.
      bn: one of `rules.BN`.
      method: how a probe is fitted, one of `probe.METHODS`.
      epochs: passes over the training set, of all phases together; every phase that takes gradient
        steps has at least one.
      steps: number of gradient steps of all phases together, instead of `epochs`; every phase is
        rounded up to whole epochs, and the schedule ends at this number. 0 for `epochs`.
      batch_size: images per step.
      lr: peak learning rate of the head; 0 means 1e-3 if only a head on pooled features trains, and
        5e-3 otherwise (chosen on ELPV).
      backbone_lr: factor on `lr` for everything except the head.
      layer_decay: further factor per stage away from the head.
      optimizer, schedule: one of `optim.OPTIMIZERS` and `schedules.SCHEDULES`.
      wrapper: one of `optim.WRAPPERS`, around the optimizer.
      centralize: whether the gradient of each kernel loses its mean per output channel.
      loss: one of `losses.LOSSES`.
      dropout: probability in [0, 1) that a feature is 0 in a training step, for heads on pooled
        features; the others are divided by one minus it.
      small_loss: share of the examples of a batch, those with the largest losses, that do not
        count in its gradient, in [0, 1). It grows from 0 over the first half of a phase.
      weight_decay: weight decay of kernels; 0 for none.
      l2_sp: decay of the backbone toward its starting weights, `optim.decay_to_start`, instead of
        `weight_decay`, which then holds for the head alone; 0 for none.
      clip: limit of the global norm of the gradient; 0 does not clip.
      smoothing: label smoothing in [0, 1).
      soft_labels: whether labels are weighted by `Example.confidence`; a probe ignores it.
      ema: decay of the running average of the parameters, in [0, 1); 0 for none.
      swa: share of the last steps of a phase over which the parameters are averaged with equal
        weights, in [0, 1); 0 for none. With `bn=update`, the statistics are averaged too.
      microbatches: number of parts of a batch whose gradients are summed; 0 is the smallest number
        that fits into memory.
      patience: epochs without a better `selection_metric` after which a phase stops; 0 never stops
        it.
      augment: words of `augment.make_augment`, such as "flip,color"; a probe ignores it.
      balance: "none", "weights" (in the loss) or "sampler" (all classes are drawn equally often).
      workers: processes that decode images; 0 uses threads, -1 lets `loader.auto_workers` decide.
      bank_gib: memory for the cached outputs of frozen prefixes, in GiB, over all phases and seeds
        of a process; 0 always reads images.
      save_every: steps between checkpoints, in addition to one at the end of each epoch; 0 for
        none.
      save_minutes: minutes between checkpoints, in addition to these; 0 for none.
      fsdp: whether parameters and optimizer state are divided over the devices (`devices.FSDP`)
        instead of copied to each.
      penalty: `NAME` or `NAME:ARGUMENT`, a penalty on the outputs of the network, one of
        `regularizers.PENALTIES`; "" for none.
      adversarial: "none", or one of `adversarial.METHODS`; the best epoch then has the smallest
        error under attack.
      adversarial_eps, adversarial_steps, adversarial_beta, adversarial_replays: the fields of
        `adversarial.Adversary`.
      adversarial_warmup: share of a phase over which the radius grows from 0, in [0, 1].
    """

    tune: str = "head"
    rules: Rules = ()
    init: str = ""
    bn: str = "eval"
    method: str = "logistic"
    epochs: int = 30
    steps: int = 0
    batch_size: int = 32
    lr: float = 0.0
    backbone_lr: float = 0.1
    layer_decay: float = 1.0
    optimizer: str = "adamw"
    schedule: str = "cosine"
    wrapper: str = "none"
    centralize: bool = False
    loss: str = "cross_entropy"
    dropout: float = 0.0
    small_loss: float = 0.0
    weight_decay: float = 1e-2
    l2_sp: float = 0.0
    clip: float = 1.0
    smoothing: float = 0.0
    soft_labels: bool = False
    ema: float = 0.0
    swa: float = 0.0
    microbatches: int = 1
    patience: int = 0
    augment: str = "none"
    balance: str = "none"
    workers: int = -1
    bank_gib: float = 3.0
    save_every: int = 0
    save_minutes: float = 10.0
    fsdp: bool = False
    penalty: str = ""
    adversarial: str = "none"
    adversarial_eps: float = 2 / 255
    adversarial_steps: int = 3
    adversarial_beta: float = 6.0
    adversarial_replays: int = 4
    adversarial_warmup: float = 0.0

    def phases(self, stages: Sequence[str]) -> tuple[Phase, ...]:
        """The phases of this recipe on a network with these stages."""
        if self.rules:
            return (Phase("rules", self.rules),)
        return phases(self.tune, stages, bn=self.bn)

    @property
    def reads_outputs(self) -> bool:
        """Whether a phase may read the cached outputs of a frozen prefix instead of images."""
        return not (self.adversary() or self.penalty.startswith("distill"))

    def adversary(self, steps: int = 0) -> Adversary | None:
        """The adversary of a phase with this many batches; None without adversarial training.

        Raises:
          ValueError: those of `Adversary`.
        """
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


def pixels_for(clf: Classifier, spec: DataSpec, crop: str, image_size: int) -> Classifier:
    """The classifier with the preprocessing for a data set.

    Args:
      clf: a classifier with the preprocessing of its weights.
      spec: the data set; `spec.whole` asks for whole images.
      crop: "weights" (the weights' own rule), "none" (whole images, resized without keeping the
        aspect ratio), or "" (the rule of the data set).
      image_size: side of the input in pixels; 0 means the weights' own.
    """
    changes: dict[str, Any] = {"size": image_size} if image_size else {}
    if crop == "none" or (not crop and spec.whole):
        changes["resize"] = "squash"
    return clf.with_pixels(**changes)


def check_names(recipe: Recipe) -> None:
    """Checks the names of rows in a recipe.

    Raises:
      ValueError: an unknown name (names the nearest), two averages of the parameters, or another
        loss or dropout together with an adversary or a penalty.
    """
    for field, table in (
        ("optimizer", optim.OPTIMIZERS),
        ("schedule", schedules.SCHEDULES),
        ("wrapper", optim.WRAPPERS),
        ("loss", losses.LOSSES),
        ("init", ["", *initializers.INITIALIZERS]),
    ):
        name = getattr(recipe, field)
        if name not in table:
            choices = list(filter(None, table))
            raise ValueError(
                f"unknown `{field}`: got {name!r}, expected {', '.join(choices)}; nearest: "
                f"{nearest(name, choices)}"
            )
    if recipe.swa and (recipe.ema or not 0 < recipe.swa < 1):
        raise ValueError(
            f"`swa` must be a share in [0, 1), without `ema`: got {recipe.swa:g} and "
            f"`ema={recipe.ema:g}`"
        )
    if recipe.loss != "cross_entropy" and (recipe.penalty or recipe.adversarial != "none"):
        raise ValueError(
            f"`adversarial` and `penalty` are computed with the cross-entropy: got "
            f"`loss={recipe.loss}`; leave out one of them"
        )
    if recipe.dropout and (recipe.penalty or recipe.adversarial != "none"):
        raise ValueError(
            f"`adversarial` and `penalty` are computed without dropout: got "
            f"`dropout={recipe.dropout:g}`; leave out one of them"
        )


def empty_set(spec: DataSpec) -> DataSpec:
    """A data set with the classes of another and no images."""
    return dataclasses.replace(spec, examples=(), skipped=())


def apply_label_confidence(train_set: DataSpec, recipe: Recipe) -> DataSpec:
    """The training set with all confidences set to 1, unless the recipe uses soft labels.

    Raises:
      ValueError: `recipe.soft_labels` for a set whose labels are all certain.
    """
    certain = inputs.confidence(train_set) is None
    if recipe.soft_labels and certain:
        raise ValueError(
            f"`soft_labels` needs label confidences: got {train_set.name}, where all are 1; use "
            "elpv, or a CSV file with a column confidence"
        )
    if recipe.soft_labels or certain:
        return train_set
    examples = tuple(dataclasses.replace(example, confidence=1.0) for example in train_set.examples)
    return dataclasses.replace(train_set, examples=examples)


def check_steps(recipe: Recipe, stages: Sequence[str]) -> None:
    """Checks the fields that act on gradient steps.

    Raises:
      ValueError: a field out of range, or one that acts on gradient steps in a recipe without them.
    """
    if recipe.adversary() and not 0 <= recipe.adversarial_warmup <= 1:
        raise ValueError(
            "`adversarial_warmup` must be a share of the steps in [0, 1]: got "
            f"{recipe.adversarial_warmup:g}"
        )
    for name in ("steps", "l2_sp"):
        if not 0 <= getattr(recipe, name) < math.inf:
            raise ValueError(
                f"`{name}` must be a finite number of at least 0: got {getattr(recipe, name)}"
            )
    for name in ("small_loss", "dropout"):
        if not 0 <= getattr(recipe, name) < 1:
            raise ValueError(f"`{name}` must be in [0, 1): got {getattr(recipe, name):g}")
    if regularizers.parse(recipe.penalty) and recipe.adversary():
        raise ValueError(
            "adversarial training has a loss of its own: got "
            f"`adversarial={recipe.adversarial}` and `penalty={recipe.penalty}`; leave out one"
        )
    if any(phase.name != "probe" for phase in recipe.phases(stages)):
        return
    acting = {
        f"adversarial={recipe.adversarial}": recipe.adversary(),
        f"l2_sp={recipe.l2_sp:g}": recipe.l2_sp,
        f"small_loss={recipe.small_loss:g}": recipe.small_loss,
        f"dropout={recipe.dropout:g}": recipe.dropout,
        f"steps={recipe.steps}": recipe.steps,
        f"swa={recipe.swa:g}": recipe.swa,
        f"penalty={recipe.penalty}": recipe.penalty,
    }
    for setting in (name for name, acts in acting.items() if acts):
        raise ValueError(
            f"`{setting}` needs gradient steps: got `tune={recipe.tune}`, which has none; use "
            "`tune=lp_ft` or `tune=all`"
        )
