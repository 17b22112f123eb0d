"""The parameters of an attack, its searches, the images to attack, and its run in batches."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from tl import attacks, hosts, inference, pixels, reporting
from tl.ascent import transforms
from tl.attacks import goals, norms
from tl.models import Classifier
from tl.paths import nearest
from tl.types import Variables

LEAST_LIKELY = "least likely"
"""The `target` that means the least likely class of each clean image."""
# Images per call of an attack; a device steps fewer of them at a time. Chosen, not tuned.
BATCH = 64
VIEWS = {
    "jpeg": transforms.jpeg(60, 95),
    "resized": transforms.resized(0.5, 1.0),
    "crop": transforms.crop(0.8, 1.0),
    "noise": transforms.noise(0.0, 0.05),
    "flip": transforms.flip(),
}
"""Name -> random transform of the image for expectation over transformation.

Ranges are chosen, not tuned.
"""
OPTIONAL_STOP = tuple(
    name
    for name, make in attacks.ATTACKS.items()
    if "early_stop" in inspect.signature(make).parameters
)
"""Attacks that can continue after success."""


class AttackSettings(NamedTuple):
    """An attack and its parameters; None is the attack's default.

    Attributes:
      attack: row of `attacks.ATTACKS`.
      norm: row of `norms.NORMS`.
      eps: radii in [0, 1] pixel units; each is evaluated.
      steps, step_size, restarts: arguments of the attack; `step_size` in pixel units.
      eight_bit: restrict the search to images that an 8-bit file can hold.
      early_stop: stop each image at its first success. None: stop in untargeted attacks without
        `views`, which measure accuracy. A targeted attack, or one over `views`, runs all steps and
        raises the target's probability.
      views: rows of `VIEWS`; the gradient is a mean over random views (with pgd).
      draws: views per gradient.
      sanity_checks: run the sanity checks; "full" checks a whole batch, with more queries of the
        black-box attack.
      lpips: compute the perceptual distance LPIPS, where its weights are installed.
      seed: seed of the attack's random numbers.
    """

    attack: str = "pgd"
    norm: str = "linf"
    eps: Sequence[float] = (8 / 255,)
    steps: int | None = None
    step_size: float | None = None
    restarts: int = 1
    eight_bit: bool = True
    early_stop: bool | None = None
    views: Sequence[str] = ()
    draws: int = 4
    sanity_checks: bool | Literal["full"] = False
    lpips: bool = False
    seed: int = 0


def check_settings(clf: Classifier, settings: AttackSettings, target: str) -> None:
    """Checks, before any image is read, that the network can be attacked with these settings.

    Args:
      clf: the network.
      settings, target: as for `attacked.evaluate_attack`.

    Raises:
      ValueError: those of `make_searches` and `attacks.check`.
    """
    attacks.check(
        make_searches(settings, target),
        norm=norms.get(settings.norm),
        goal=goals.TARGETED if target else goals.UNTARGETED,
        classes=len(inference.class_table(clf)),
        eps=max(settings.eps),
        size=clf.pixels.size,
    )


def make_searches(settings: AttackSettings, target: str) -> tuple[attacks.Search, ...]:
    """The searches that the settings describe, as `attacks.make` takes them.

    Args:
      settings: the attack and its parameters.
      target: as for `attacked.evaluate_attack`.

    Raises:
      ValueError: an unknown name, or parameters that the attack does not have.
    """
    norms.get(settings.norm)
    arguments: dict[str, Any] = {"restarts": settings.restarts}
    if settings.steps is not None:
        arguments["steps"] = settings.steps
    if settings.views:
        for name in settings.views:
            if name not in VIEWS:
                raise ValueError(f"unknown view {name!r}; nearest: {nearest(name, VIEWS)}")
        if settings.attack != "pgd":
            raise ValueError(
                f"`views` needs an attack whose gradient is a mean over views: got "
                f"`attack={settings.attack}`, expected `attack=pgd`"
            )
        view = transforms.compose(*(VIEWS[name] for name in settings.views))
        arguments |= {"view": view, "draws": settings.draws}
    if settings.step_size is not None and settings.step_size <= 0:
        raise ValueError(
            f"`step_size` must be positive: got {settings.step_size:g}; omit it for the default"
        )
    if settings.attack in OPTIONAL_STOP:
        default = not (target or settings.views)
        arguments["early_stop"] = default if settings.early_stop is None else settings.early_stop
    elif settings.early_stop is False:
        raise ValueError(
            f"`early_stop` can be switched off for {', '.join(OPTIONAL_STOP)} only: got "
            f"`attack={settings.attack}`"
        )
    made = attacks.get(settings.attack)(**arguments)
    searches = (made,) if isinstance(made, attacks.Search) else tuple(made)
    no_step = attacks.Search._field_defaults["default_step"]
    if settings.step_size is not None and all(one.default_step is no_step for one in searches):
        raise ValueError(
            f"`step_size` has no effect on `attack={settings.attack}`: got {settings.step_size:g}, "
            "expected an attack along gradients, such as `attack=pgd`"
        )
    return searches


class Selection(NamedTuple):
    """The m images to attack: those of a set of n that the network classifies correctly.

    Attributes:
      paths: the files.
      images: uint8[m s s 3].
      logits: f32[m k], of the clean images.
      labels: i[m], ground truth.
      goal, class_mask: the goal, and bool[m k], the classes that it is about.
      n: size of the set. Accuracy is a share of n, success of m.
      misclassified: files of the n - m images that the network misclassifies without an attack.
      skipped: rows `{"path", "why"}` of files that are not in the set.
    """

    paths: list[Path]
    images: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    goal: goals.Goal
    class_mask: np.ndarray
    n: int
    misclassified: list[str]
    skipped: list[dict[str, str]]


def select_images(
    clf: Classifier,
    variables: Variables,
    images: inference.LoadedImages,
    *,
    target: str = "",
    labels: np.ndarray | None = None,
    only: str = "",
    limit: int = 0,
) -> Selection:
    """The images to attack.

    Arguments as for `attacked.evaluate_attack`, with BatchNorm folded into `variables`.
    """
    table = inference.class_table(clf)
    targets = table.find(target) if target and target != LEAST_LIKELY else ()
    clean = inference.predict_logits(clf, variables, images.images)
    predicted = clean.argmax(axis=1)
    true: np.ndarray = predicted if labels is None else labels
    candidates = np.isin(predicted, table.find(only)) if only else np.ones(len(predicted), bool)
    skipped, rows = list(images.skipped), []
    for i in np.flatnonzero(candidates):
        if not {int(true[i]), int(predicted[i])} & set(targets):
            rows.append(i)
            continue
        name = table.display(true[i] if true[i] in targets else predicted[i])
        skipped.append({"path": str(images.paths[i]), "why": f"it is called {name} already"})
    rows = np.array(rows[: limit or None], int)
    if not len(rows):
        raise ValueError(
            f"no image is left to attack: got {len(predicted)} images, `only`={only!r} and "
            f"`target`={target!r}; pass other images or another target"
        )
    correct = rows[predicted[rows] == true[rows]]
    if not len(correct):
        raise ValueError(
            f"the network classifies none of the {len(rows)} images correctly: expected at least "
            "one, because misclassified images are not attacked; check the labels"
        )
    if target == LEAST_LIKELY:
        class_mask = goals.least_likely(clean[correct])
    else:
        groups = [targets or (int(label),) for label in true[correct]]
        class_mask = goals.class_mask(groups, len(table))
    return Selection(
        paths=[images.paths[i] for i in correct],
        images=images.images[correct],
        logits=clean[correct],
        labels=true[correct],
        goal=goals.TARGETED if target else goals.UNTARGETED,
        class_mask=class_mask,
        n=len(rows),
        misclassified=[str(images.paths[i]) for i in rows if predicted[i] != true[i]],
        skipped=skipped,
    )


def attack_batches(
    attack: attacks.Attack,
    variables: Variables,
    images: np.ndarray,
    class_mask: np.ndarray,
    eps: float,
    settings: AttackSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Attacks uint8[n s s 3] images in batches of one shape.

    Returns:
      f32[n s s 3] adversarial images in [0, 1], and i32[n] steps taken.
    """
    n = len(images)
    adversarial, steps = np.zeros(images.shape, np.float32), np.zeros(n, np.int32)
    size, starts = min(BATCH, n), range(0, n, BATCH)
    # One key per image, so that results do not depend on the batch size.
    keys = norms.per_image_keys(jax.random.key(settings.seed), n)
    label = f"{settings.attack}, eps {format_eps(eps, settings.norm)}"

    def compute(i: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.resize(np.arange(starts[i], min(starts[i] + size, n)), size)
        padding = np.arange(size) >= n - starts[i]
        result = attack(
            variables,
            keys[rows],
            pixels.to_images01(images[rows]),
            class_mask[rows],
            eps=eps,
            step_size=settings.step_size,
            skip=padding,
        )
        return np.asarray(result.images)[~padding], np.asarray(result.steps)[~padding]

    parts = hosts.shares(len(starts), compute)
    for start, (part, _) in zip(starts, reporting.progress(parts, len(starts), label), strict=True):
        rows = slice(start, start + size)
        adversarial[rows], steps[rows] = part
    return adversarial, steps


def format_eps(eps: float, norm: str) -> str:
    """The key of a radius in result.json: in levels of 255 in Linf, else the plain number."""
    return f"{eps * 255:g}/255" if norm == "linf" else f"{eps:g}"
