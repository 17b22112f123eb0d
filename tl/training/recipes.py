"""Recipes by name: published settings of `Recipe`, as functions of a few facts.

`settings("bit", facts)` gives the fields that a name sets; all others keep their values. A row sets
fields only: whatever a recipe needs of the training itself is a field of `Recipe`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tl import data
from tl.data import DataSpec
from tl.paths import nearest
from tl.training import regularizers
from tl.training.recipe import Recipe

OF_PIXELS = ("crop", "image_size")
"""The settings that are not fields of `Recipe`, but arguments of `recipe.pixels_for`."""

# Images of which the size is read; chosen, not tuned.
SAMPLE = 16


class Facts(NamedTuple):
    """What a recipe may depend on.

    Attributes:
      n: number of images, without those of an official test part.
      classes: number of classes.
      side: typical side of the images in pixels, the root of the area; 0 if it is unknown.
      size: side of the input that the weights were trained with, in pixels.
      batch_size: images per step; 0 if the recipe decides.
    """

    n: int = 1000
    classes: int = 2
    side: float = 0.0
    size: int = 224
    batch_size: int = 0


ANY = Facts()


def facts_of(spec: DataSpec, size: int) -> Facts:
    """The facts about a data set.

    Args:
      spec: the data set; a few of its images are decoded.
      size: as in `Facts`.
    """
    used = [example for example in spec.examples if example.part != "test"]
    sides = []
    for example in used[:: max(len(used) // SAMPLE, 1)][:SAMPLE]:
        with contextlib.suppress(data.ImageError):
            height, width = data.decode(example.path).shape[:2]
            sides.append(math.sqrt(height * width))
    side = float(np.median(sides)) if sides else 0.0
    return Facts(len(used), len(spec.classes), side, size)


class Row(NamedTuple):
    """A recipe.

    Attributes:
      fields: `(facts, argument) -> {field: value}`, of `Recipe` and `OF_PIXELS`; the argument is ""
        if none is given.
      help: what it does, in a few words.
      reference: author, year, arXiv.
      argument: its argument, such as "[:R]", where brackets mean a default; "" if it has none.
      defines: the fields without which it would be another recipe: a flag must not change them.
    """

    fields: Callable[[Facts, str], dict[str, Any]]
    help: str
    reference: str
    argument: str = ""
    defines: tuple[str, ...] = ("tune",)


# A head that starts at 0, and few other parameters, which need the same rate; in the range of
# Ben Zaken et al. 2021 (1e-4 to 1e-3) and Hu et al. 2021.
_FEW = {"lr": 1e-3, "backbone_lr": 1.0}


def _bit(facts: Facts, argument: str) -> dict[str, Any]:
    """BiT-HyperRule.

    It differs from the authors' code as follows. Steps are rounded up to whole epochs, with a rate
    of 0 beyond the last. With fewer than 512 images, a batch has each image once. The rate is
    proportional to a given batch size. Images are shifted by up to a sixteenth, with mirrored
    borders, instead of cropped from images that are a sixteenth larger. Mixup has alpha 0.2 instead
    of 0.1.

    Reference: google-research/big_transfer, bit_hyperrule.py.
    """
    mixup = ",mixup" if facts.n >= 20_000 else ""
    return {
        "tune": "all",
        "steps": 500 if facts.n < 20_000 else 10_000 if facts.n < 500_000 else 20_000,
        "schedule": "bit",
        "optimizer": "momentum",
        "batch_size": min(512, facts.n),
        "lr": 0.003 * (facts.batch_size or 512) / 512,
        "backbone_lr": 1.0,
        "weight_decay": 0.0,
        "clip": 0.0,
        "augment": f"shift,flip{mixup}",
        "crop": "none",
        "image_size": 128 if 0 < facts.side < 96 else 480,
    }


def _fixres(facts: Facts, argument: str) -> dict[str, Any]:
    """A head and the last BatchNorm for a larger input; 384 for weights of 224, as in the paper."""
    size = 32 * round(facts.size * 12 / 7 / 32)
    return {"tune": "bn_only:1", "bn": "update", "image_size": size, **_FEW}


# Plain fine-tuning as in the comparison of thuml/Transfer-Learning-Library (task adaptation, image
# classification), which the recipes with a penalty share, so that they differ in it alone. Its
# schedule falls to a tenth after 12 of 20 epochs; ours is a cosine. It updates the statistics of
# BatchNorm and does not clip; ours are fixed, and then some runs diverge without clipping. The
# limit was chosen on cats and dogs and 37 breeds: at 1, a head of many classes learns too slowly,
# and at 10 penalties with large gradients do harm.
_PLAIN = {
    "tune": "all",
    "optimizer": "sgd",
    "lr": 0.01,
    "backbone_lr": 0.1,
    "weight_decay": 5e-4,
    "clip": 3.0,
    "augment": "flip",
}


def _l2_sp(facts: Facts, argument: str) -> dict[str, Any]:
    """Plain fine-tuning with the paper's beta; alpha is chosen, not tuned."""
    return {**_PLAIN, "weight_decay": 0.01, "l2_sp": _number("l2_sp", argument, 0.1)}


def _penalized(name: str) -> Callable[[Facts, str], dict[str, Any]]:
    """Plain fine-tuning with a penalty; its argument is that of the penalty."""

    def fields(facts: Facts, argument: str) -> dict[str, Any]:
        word = f"{name}:{argument}" if argument else name
        regularizers.parse(word)
        return {**_PLAIN, "penalty": word}

    return fields


def _lora(facts: Facts, argument: str) -> dict[str, Any]:
    rank = argument or "4"
    if not rank.isdecimal():
        raise ValueError(
            f"`recipe=lora:{argument}` has no rank: got {argument!r}, expected a number of at "
            "least 0, such as lora:4"
        )
    return {"tune": f"lora:{int(rank)}", **_FEW}


def _lp_ft(facts: Facts, argument: str) -> dict[str, Any]:
    """A small rate, because the head starts at its optimum; it is chosen, not tuned."""
    return {"tune": f"lp_ft:{argument}" if argument else "lp_ft", "lr": 1e-4, "backbone_lr": 0.1}


def _number(name: str, argument: str, default: float) -> float:
    try:
        value = float(argument or default)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(
            f"`recipe={name}:{argument}` has no strength: got {argument!r}, expected a number of "
            f"at least 0, such as {name}:{default:g}"
        )
    return value


RECIPES: Mapping[str, Row] = {
    "auto": Row(
        lambda facts, argument: {"tune": "probe"},
        "a probe, or RECIPE (lp_ft) if it is significantly better in cross-validation",
        "McNemar 1947, Psychometrika 12 (the test)",
        "[:RECIPE]",
    ),
    "probe": Row(
        lambda facts, argument: {"tune": "probe"},
        "a head at its optimum on frozen features",
        "Kornblith et al. 2019, arXiv:1805.08974",
    ),
    "plain": Row(
        lambda facts, argument: dict(_PLAIN),
        "all parameters, by SGD: what the recipes with a penalty are compared with",
        "Jiang et al. 2022, arXiv:2201.05867",
        defines=(),
    ),
    "lp_ft": Row(
        _lp_ft,
        "a probe, then everything or the last N stages from it",
        "Kumar et al. 2022, arXiv:2202.10054",
        "[:N]",
    ),
    "bit": Row(
        _bit,
        "all parameters for 500 to 20,000 steps, by a rule of the number and size of images",
        "Kolesnikov et al. 2020, arXiv:1912.11370",
        defines=("tune", "schedule"),
    ),
    "l2_sp": Row(
        _l2_sp,
        "all parameters, with decay of strength A toward the starting weights",
        "Li et al. 2018, arXiv:1802.01483",
        "[:A]",
        defines=(),
    ),
    "bss": Row(
        _penalized("bss"),
        "plain, and a penalty of strength A on the smallest singular value of the features",
        "Chen et al. 2019, NeurIPS",
        "[:A]",
        defines=(),
    ),
    "delta": Row(
        _penalized("delta"),
        "plain, and a penalty of strength A on the change of the feature maps",
        "Li et al. 2019, arXiv:1901.09229",
        "[:A]",
        defines=(),
    ),
    "co_tuning": Row(
        _penalized("co_tuning"),
        "plain, and the pretrained head on related classes, at strength A",
        "You et al. 2020, NeurIPS",
        "[:A]",
        defines=(),
    ),
    "bi_tuning": Row(
        _penalized("bi_tuning"),
        "plain, and contrastive losses of strength A between images of a batch",
        "Zhong et al. 2020, arXiv:2011.06182",
        "[:A]",
        defines=(),
    ),
    "distill": Row(
        _penalized("distill"),
        "plain, and the logits and similarities of a teacher",
        "Hinton et al. 2015, arXiv:1503.02531",
        ":TEACHER",
        defines=(),
    ),
    "surgical": Row(
        lambda facts, argument: {
            "tune": f"surgical:{argument}" if argument else "surgical",
            "lr": 1e-4,
            "backbone_lr": 1.0,
        },
        "a probe, then the stage with the largest relative gradient, or STAGE, from it; snr: the "
        "stage with the largest signal-to-noise ratio of the gradient",
        "Lee et al. 2022, arXiv:2210.11466",
        "[:STAGE]",
    ),
    "bn_only": Row(
        lambda facts, argument: {"tune": "bn_only", **_FEW},
        "scale and bias of every BatchNorm, and the head",
        "Frankle et al. 2021, arXiv:2003.00152",
    ),
    "bias_only": Row(
        lambda facts, argument: {"tune": "bias_only", **_FEW},
        "every bias, and the head",
        "Ben Zaken et al. 2021, arXiv:2106.10199",
    ),
    "lora": Row(
        _lora,
        "updates of rank R of 1x1 and dense kernels, and the head",
        "Hu et al. 2021, arXiv:2106.09685",
        "[:R]",
    ),
    "fixres": Row(
        _fixres,
        "BatchNorm of the last stage and the head, at a larger image size",
        "Touvron et al. 2019, arXiv:1906.06423",
    ),
}
"""Name -> row."""


def names() -> list[str]:
    """The names with their arguments, such as "lora[:R]"."""
    return [name + row.argument for name, row in RECIPES.items()]


def settings(
    recipe: str, facts: Facts = ANY, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The settings of a recipe that the user did not give.

    Args:
      recipe: `NAME` or `NAME:ARGUMENT`, of `RECIPES`; "" sets nothing.
      facts: about the data and the network.
      given: settings that the user gave: they win. `epochs` replaces `steps`.

    Returns:
      Field -> value, of `Recipe` and `OF_PIXELS`.

    Raises:
      ValueError: an unknown name (names the nearest), an argument that the recipe does not take or
        cannot read, or a given setting that contradicts the recipe.

    Example:
      >>> settings("lora:8", given={"lr": 0.01})
      {'tune': 'lora:8', 'backbone_lr': 1.0}
    """
    if not recipe:
        return {}
    name, colon, argument = recipe.partition(":")
    if name not in RECIPES:
        raise ValueError(
            f"unknown `recipe`: got {recipe!r}, expected {', '.join(names())}; nearest: "
            f"{nearest(name, RECIPES)}"
        )
    row, given = RECIPES[name], given or {}
    if colon and not row.argument:
        raise ValueError(
            f"`recipe={recipe}` has an argument, but {name} takes none; use `recipe={name}`"
        )
    facts = facts._replace(batch_size=given.get("batch_size", facts.batch_size))
    fields = row.fields(facts, argument)
    for field in row.defines:
        rules = field == "tune" and given.get("rules")
        if rules or given.get(field, fields[field]) != fields[field]:
            other = "rules" if rules else field
            raise ValueError(
                f"`recipe={recipe}` sets {field}={fields[field]}: got `{other}={given[other]}`, "
                f"which makes it another recipe; leave out `{other}` or `recipe`"
            )
    replaced = {*given, *(["steps"] if "epochs" in given else [])}
    return {field: value for field, value in fields.items() if field not in replaced}


def alternative(
    recipe: str, facts: Facts = ANY, given: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """The settings of the recipe that "auto" compares with a probe; None for other recipes.

    Args:
      recipe, facts, given: as for `settings`.

    Raises:
      ValueError: those of `settings`, or a recipe that cannot be compared: "auto" itself, or one
        with another image size.

    Example:
      >>> (alternative("auto") or {})["tune"], alternative("lora:8")
      ('lp_ft', None)
    """
    name, _, argument = recipe.partition(":")
    if name != "auto":
        return None
    argument = argument or "lp_ft"
    fields = settings(argument, facts, given)
    if argument.partition(":")[0] == "auto" or any(field in fields for field in OF_PIXELS):
        raise ValueError(
            f"`recipe={recipe}` compares a probe with another recipe on images of one size: got "
            f"{argument!r}, expected another one, such as auto:lp_ft"
        )
    return fields


def describe(name: str, recipe: Recipe, size: int) -> str:
    """A line that says what a recipe is, with all settings that differ from the defaults.

    Args:
      name: as for `settings`.
      recipe: the whole recipe.
      size: side of the network's input, in pixels.
    """
    defaults = dataclasses.asdict(Recipe())
    changed = [
        f"{field}={value:g}" if isinstance(value, float) else f"{field}={value}"
        for field, value in dataclasses.asdict(recipe).items()
        if value != defaults[field]
    ]
    return f"recipe {name}: {', '.join(changed)}, on images of {size} pixels"
