"""Training tricks: single changes of a recipe, each measured by `tl.evaluation.tricks`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tl.training.program import LR
from tl.training.recipe import Recipe


class Trick(NamedTuple):
    """A row of `TRICKS`.

    Attributes:
      change: recipe -> the fields that change.
      help: what changes, in a few words.
      reference: author, year, arXiv; "" for common knowledge.
      scratch: whether it changes a baseline that is trained from scratch.
    """

    change: Callable[[Recipe], dict[str, Any]]
    help: str
    reference: str = ""
    scratch: bool = False


# A baseline without pretrained weights: a larger rate of the backbone, 1e-3 by default (chosen, not
# tuned), and statistics of the batch in BatchNorm, because there are no others.
SCRATCH: Mapping[str, Any] = {"init": "he", "bn": "update", "backbone_lr": 0.2}


def _sets(**fields: Any) -> Callable[[Recipe], dict[str, Any]]:
    return lambda recipe: fields


def _adds(word: str) -> Callable[[Recipe], dict[str, Any]]:
    """One more augmentation after those of the recipe."""
    return lambda recipe: {
        "augment": word if recipe.augment == "none" else f"{recipe.augment},{word}"
    }


def _rate(recipe: Recipe, factor: float) -> float:
    return (recipe.lr or LR) * factor


# Rates and decays of other optimizers, relative to those of AdamW: chosen, not tuned, within the
# ranges of the papers.
TRICKS: Mapping[str, Trick] = {
    # ---- optimizer and learning rate
    "sgd": Trick(
        lambda r: {"optimizer": "sgd", "lr": _rate(r, 2.0)},
        "SGD with Nesterov's momentum and twice the rate",
        "Sutskever et al. 2013",
    ),
    "momentum": Trick(
        lambda r: {"optimizer": "momentum", "lr": _rate(r, 2.0)},
        "SGD with the classical momentum and twice the rate",
        "Polyak 1964",
    ),
    # Momentum 0.9 multiplies a constant gradient by 10.
    "no_momentum": Trick(
        lambda r: {"optimizer": "plain_sgd", "lr": _rate(r, 20.0)},
        "SGD without momentum, and ten times the rate of SGD with it",
    ),
    "rms": Trick(_sets(optimizer="rms"), "no first moment, as in RMSProp", "Hinton 2012"),
    "lion": Trick(
        lambda r: {
            "optimizer": "lion",
            "lr": _rate(r, 0.2),
            "weight_decay": 5 * r.weight_decay,
        },
        "the sign of a momentum, a fifth of the rate, five times the decay",
        "Chen et al. 2023, arXiv:2302.06675",
    ),
    "schedule_free": Trick(
        _sets(optimizer="rms", wrapper="schedule_free", schedule="constant"),
        "an average instead of a falling rate",
        "Defazio et al. 2024, arXiv:2405.15682",
    ),
    "lookahead": Trick(
        _sets(wrapper="lookahead"),
        "half of the way back after every 5 steps",
        "Zhang et al. 2019, arXiv:1907.08610",
    ),
    "sam": Trick(
        _sets(wrapper="sam"),
        "the gradient of the worst point nearby",
        "Foret et al. 2021, arXiv:2010.01412",
    ),
    "weight_norm": Trick(
        _sets(wrapper="weight_norm"),
        "filters move as a norm and a direction",
        "Salimans & Kingma 2016, arXiv:1602.07868",
    ),
    "centralize": Trick(
        _sets(centralize=True),
        "gradients of kernels with mean 0",
        "Yong et al. 2020, arXiv:2004.01461",
    ),
    "no_clip": Trick(_sets(clip=0.0), "no gradient clipping", "Pascanu et al. 2013"),
    "clip_10": Trick(_sets(clip=10.0), "gradient clipping at norm 10 instead of 1"),
    "constant": Trick(_sets(schedule="constant"), "a constant learning rate"),
    "exponential": Trick(_sets(schedule="exponential"), "the same factor on the rate at each step"),
    "one_cycle": Trick(_sets(schedule="one_cycle"), "one cycle", "Smith & Topin 2018"),
    "layer_decay": Trick(
        _sets(layer_decay=0.7),
        "smaller rates in lower stages",
        "Howard & Ruder 2018, arXiv:1801.06146",
    ),
    # ---- regularization
    "no_decay": Trick(_sets(weight_decay=0.0), "no weight decay"),
    "swa": Trick(
        _sets(swa=0.5, schedule="constant"),
        "the mean of the weights of the second half, at a constant rate",
        "Izmailov et al. 2018, arXiv:1803.05407",
    ),
    "ema": Trick(_sets(ema=0.99), "a running average of the weights", "Polyak & Juditsky 1992"),
    "smoothing": Trick(
        _sets(smoothing=0.1), "label smoothing 0.1", "Szegedy et al. 2016, arXiv:1512.00567"
    ),
    **{
        f"dropout_{rate:.0%}".rstrip("%"): Trick(
            _sets(dropout=rate), f"dropout of {rate:.0%} of the features", "Srivastava et al. 2014"
        )
        for rate in (0.2, 0.5, 0.8)
    },
    "early_stopping": Trick(_sets(patience=2), "stop after 2 epochs without a better one"),
    "bn_update": Trick(_sets(bn="update"), "statistics of the batch in BatchNorm"),
    "bn_affine": Trick(_sets(bn="affine"), "of the backbone, only scale and bias of BatchNorm"),
    # ---- training from scratch
    "scratch": Trick(lambda r: dict(SCRATCH), "no pretrained weights"),
    "glorot": Trick(
        _sets(init="glorot"),
        "kernels of variance 2 / (inputs + outputs)",
        "Glorot & Bengio 2010",
        True,
    ),
    "lecun": Trick(
        _sets(init="lecun"), "kernels of variance 1 / inputs", "LeCun et al. 1998", True
    ),
    "normal": Trick(
        _sets(init="normal"), "kernels of standard deviation 0.01", "Krizhevsky et al. 2012", True
    ),
    "no_norm": Trick(_sets(bn="eval"), "no normalization: scale and bias only", "", True),
    # ---- loss
    "focal": Trick(_sets(loss="focal"), "focal loss", "Lin et al. 2017, arXiv:1708.02002"),
    "bce": Trick(
        _sets(loss="bce"), "a binary loss per class", "Beyer et al. 2020, arXiv:2006.07159"
    ),
    "bootstrapped": Trick(
        _sets(loss="bootstrapped"),
        "targets mixed with the predictions",
        "Reed et al. 2015, arXiv:1412.6596",
    ),
    "small_loss": Trick(
        _sets(small_loss=0.1),
        "without the tenth of each batch with the largest losses",
        "Han et al. 2018, arXiv:1804.06872",
    ),
    "class_weights": Trick(_sets(balance="weights"), "larger weights of rare classes"),
    "class_sampler": Trick(_sets(balance="sampler"), "all classes are drawn equally often"),
    # ---- augmentation
    "crop": Trick(_adds("crop"), "random crops", "Szegedy et al. 2015, arXiv:1409.4842"),
    "color": Trick(_adds("color"), "brightness, contrast and saturation"),
    "erasing": Trick(_adds("erasing"), "random erasing", "Zhong et al. 2020, arXiv:1708.04896"),
    "trivialaugment": Trick(
        _adds("trivialaugment"),
        "one random operation of random strength",
        "Mueller & Hutter 2021, arXiv:2103.10158",
    ),
    "randaugment": Trick(
        _adds("randaugment"),
        "two random operations of nearly full strength",
        "Cubuk et al. 2020, arXiv:1909.13719",
    ),
    "mixup": Trick(_adds("mixup"), "mixup", "Zhang et al. 2018, arXiv:1710.09412"),
    "cutmix": Trick(_adds("cutmix"), "CutMix", "Yun et al. 2019, arXiv:1905.04899"),
}
"""Name -> trick. To add one, add a row."""


def names(recipe: Recipe) -> list[str]:
    """The tricks that change a baseline; those of `Trick.scratch` only if it has no weights."""
    return [
        name
        for name, trick in TRICKS.items()
        if (recipe.init or not trick.scratch)
        and dataclasses.replace(recipe, **trick.change(recipe)) != recipe
    ]
