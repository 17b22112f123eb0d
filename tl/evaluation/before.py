"""The settings of `transfer`, and its checks before the first step, so that no hours are lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from tl import data, inference, reporting
from tl.data import DataSpec, duplicates
from tl.data.augment import make_augment
from tl.evaluation.robust import check_robust
from tl.models import Classifier
from tl.training import resume
from tl.training.fit import check_recipe
from tl.training.recipe import Recipe
from tl.types import Variables

# Share of the training set that is held out to choose the epoch; a probe is cross-validated
# instead.
VALIDATION_FRACTION = 0.15


@dataclasses.dataclass(frozen=True)
class TransferSettings:
    """Everything that decides a run of `transfer`, except its data and its network.

    Attributes:
      recipe: how to train.
      alternative: a recipe that replaces `recipe`, a probe, in each round in which it is better in
        cross-validation (`automatic.choose`); None for no choice.
      head: a name of `heads.KINDS`.
      crop, image_size: as for `recipe.pixels_for`, which the caller applies to the network.
      seeds: number of seeds, starting at `first_seed`.
      first_seed: the first seed of splits and training.
      folds: number of cross-validation folds; 0 for one split.
      test_fraction: share of the test part of a data set without its own, in (0, 1).
      validation_fraction: share of the rest, in [0, 1); negative means 0 for a probe and 0.15
        otherwise.
      find_lr: whether to search the learning rate before the first step.
      tta: whether to also test on the mean over all views of the augmentation.
      robust_eps: radius of a test under attack, in [0, 1] pixel units; 0 for none.
      robust_attack: a name of `attacks.ATTACKS`.
    """

    recipe: Recipe = dataclasses.field(default_factory=lambda: Recipe(tune="probe"))
    alternative: Recipe | None = None
    head: str = "linear"
    crop: str = ""
    image_size: int = 0
    seeds: int = 1
    first_seed: int = 0
    folds: int = 0
    test_fraction: float = 0.25
    validation_fraction: float = -1.0
    find_lr: bool = False
    tta: bool = False
    robust_eps: float = 0.0
    robust_attack: str = "pgd"


def check_settings(clf: Classifier, variables: Variables, settings: TransferSettings) -> None:
    """Checks what can be checked before any image is read.

    Args:
      clf: the network, with its new head.
      variables: pretrained; their head is not used.
      settings: how to train and test.

    Raises:
      ValueError: a probe under a head that is not linear; `tta` with an augmentation that does not
        have several views; those of `fit.check_recipe` and `robust.check_robust`.
    """
    recipe = settings.recipe
    if settings.alternative and settings.alternative.penalty:
        penalty = settings.alternative.penalty
        raise ValueError(
            f"`recipe=auto` compares recipes without a penalty: got `penalty={penalty}`, expected "
            f"none; use `recipe=auto` alone, or `recipe={penalty}` to train with it"
        )
    phases = recipe.phases(clf.spec.endpoints)
    if settings.head != "linear" and any(phase.name == "probe" for phase in phases):
        raise ValueError(
            f"`tune={recipe.tune}` fits a linear head: got `head={settings.head}`; use "
            f"`head=linear`, or `tune=head` for {settings.head}"
        )
    if settings.tta and len(make_augment(recipe.augment, size=clf.pixels.size).views or ()) < 2:
        raise ValueError(
            "`tta` needs an augmentation with a finite number of views (at least 2), such as flip "
            f"or dihedral: got `augment={recipe.augment}`"
        )
    params = clf.reset_head(variables, key=jax.random.key(0))["params"]
    check_recipe(clf, params, recipe)
    if settings.alternative:
        if settings.find_lr:
            raise ValueError(
                "a probe, with which the recipe is compared, has no learning rate: got `lr=find`; "
                "leave out `lr`, or set another `recipe`"
            )
        check_recipe(clf, params, settings.alternative)
    classes = len(inference.class_table(clf))
    check_robust(settings.robust_eps, settings.robust_attack, classes=classes)


def remark_augment(run: reporting.Run, settings: TransferSettings) -> None:
    """A remark if the settings name an augmentation that has no effect."""
    recipe = settings.recipe
    probe = recipe.tune == "probe" and not (recipe.rules or settings.alternative)
    if probe and recipe.augment != "none" and not settings.tta:
        run.remark(
            f"augment={recipe.augment} has no effect: a probe is fitted on images without "
            "augmentation; use tune=head to train a head with it"
        )


def check_parts(
    run: reporting.Run, variables: Variables, spec: DataSpec, rounds: Mapping[str, data.Parts]
) -> None:
    """Checks the data of all rounds, and the disk.

    Args:
      run: receives the model, the figures and the checkpoints; and a remark if near-duplicates of
        images in one part may be in another.
      variables: the network.
      spec: the data set that was divided.
      rounds: name of a round -> its parts.

    Raises:
      ValueError: those of `check_sizes`; the model cannot be written; or a resumed run has other
        classes or images than at its start.
    """
    for parts in rounds.values():
        check_sizes(parts)
    run.check_folder("model", sum(leaf.nbytes for leaf in jax.tree.leaves(variables)))
    run.check_folder("figures", 0)
    remark_similar(run, spec)
    inputs: dict[str, Any] = {
        f"the {part} images of {name}": resume.describe_part(spec)
        for name, parts in rounds.items()
        for part, spec in parts._asdict().items()
    }
    inputs["the classes"] = next(iter(rounds.values())).train.classes
    resume.same_inputs(run.workdir / "checkpoints" / "parts.json", inputs, folder=run.workdir)


def remark_similar(run: reporting.Run, spec: DataSpec) -> None:
    """A remark if near-duplicates of images in one part may be in another."""
    if duplicates.all_similar(spec):
        run.remark(
            f"near-duplicates are not recognized, because the images of {spec.name} resemble each "
            "other; copies that are not equal files may be in several parts"
        )


def check_sizes(parts: data.Parts) -> None:
    """Checks that a round can be trained and tested.

    Raises:
      ValueError: too few images to train or test, or no readable test image.
    """
    train, test = parts.train.examples, parts.test.examples
    if len(train) < 2 or not test:
        raise ValueError(
            f"too few images: got {len(train)} to train on and {len(test)} to test on, expected at "
            "least 2 and 1"
        )
    if not any(map(_readable, test)):
        raise ValueError(
            f"none of the {len(test)} test images can be read; run doctor on {parts.test.name}"
        )


def _readable(example: data.Example) -> bool:
    try:
        data.decode(example.path)
    except data.ImageError:
        return False
    return True


def drop_repeated(run: reporting.Run, name: str, phase: str, first: int) -> None:
    """Removes the rows of a phase that a resumed run logs again.

    Args:
      run: the run.
      name: name of the round.
      phase: name of the phase.
      first: the first step that is computed; rows of the steps before are kept.
    """
    reached = first == 0

    def repeated(row: Mapping[str, Any]) -> bool:
        nonlocal reached
        if (row.get("round"), row.get("phase")) != (name, phase):
            return False
        reached = reached or row.get("step", -1) >= first
        return reached

    run.drop_rows(repeated)
