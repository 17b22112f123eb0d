"""The reference network of a recipe with a penalty, `training.regularizers`: pretrained, or taught.

A teacher for other classes than those of the data, such as a network of ImageNet, receives a probe
on the training images of a round.
"""

from __future__ import annotations

import jax

from tl import data, models
from tl.models import Classifier
from tl.training import regularizers
from tl.training.fit import fit
from tl.training.recipe import Recipe
from tl.types import Variables

Network = tuple[Classifier, Variables]


def load(clf: Classifier, variables: Variables, recipe: Recipe) -> Network | None:
    """The reference network before any training; None if the recipe needs none but the start.

    Args:
      clf, variables: the pretrained network with its own head.
      recipe: how to train.

    Raises:
      ValueError: the teacher cannot be loaded.
    """
    penalty = regularizers.parse(recipe.penalty)
    if penalty is None or penalty.row.reference != "teacher":
        return (clf, variables) if penalty else None
    teacher, weights = models.load(penalty.teacher)
    whole = {"resize": clf.pixels.resize, "crop": clf.pixels.crop}
    return teacher.with_pixels(**whole).with_dtype(clf.dtype), weights


def taught(reference: Network, recipe: Recipe, parts: data.Parts, seed: int) -> Network:
    """The reference network of a round: a teacher for other classes has learned a probe.

    Args:
      reference: from `load`.
      recipe: how to train.
      parts: the parts of the round; the test images are not read.
      seed: of the probe.
    """
    clf, variables = reference
    penalty, classes = regularizers.parse(recipe.penalty), parts.train.classes
    known = clf.classes is not None and clf.classes.display_names == tuple(classes)
    if known or penalty is None or penalty.row.reference != "teacher":
        return reference
    clf, start = clf.replace_head(variables, classes, key=jax.random.key(seed))
    result = fit(clf, start, parts.train, parts.validation, Recipe(tune="probe"), seed=seed)
    return clf, result.variables
