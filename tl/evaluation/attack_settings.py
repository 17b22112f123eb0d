"""The parameters of an attack, the search that they describe, and its run in batches."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import attacks, inference, pixels, reporting
from tl.ascent import transforms
from tl.attacks import goals, gradient, norms
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
      sanity_checks: run the sanity checks.
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
    sanity_checks: bool = False
    lpips: bool = False
    seed: int = 0


def check_settings(clf: Classifier, settings: AttackSettings, target: str) -> None:
    """Checks, before any image is read, that the network can be attacked with these settings.

    Args:
      clf: the network.
      settings, target: as for `attacked.evaluate_attack`.

    Raises:
      ValueError: those of `make_search` and `attacks.check`.
    """
    attacks.check(
        make_search(settings, target),
        norm=norms.get(settings.norm),
        goal=goals.TARGETED if target else goals.UNTARGETED,
        classes=len(inference.class_table(clf)),
        eps=max(settings.eps),
        size=clf.pixels.size,
    )


def make_search(settings: AttackSettings, target: str, *, doubled: bool = False) -> Any:
    """The search that the settings describe, as `attacks.make` takes it.

    Args:
      settings: the attack and its parameters.
      target: as for `attacked.evaluate_attack`.
      doubled: twice the number of steps, for the sanity check of convergence.

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
    if settings.attack in OPTIONAL_STOP:
        default = not (target or settings.views)
        arguments["early_stop"] = default if settings.early_stop is None else settings.early_stop
    elif settings.early_stop is False:
        raise ValueError(
            f"`early_stop` can be switched off for {', '.join(OPTIONAL_STOP)} only: got "
            f"`attack={settings.attack}`"
        )
    if doubled:
        if settings.attack == "fgsm":
            return gradient.bim(steps=2)
        arguments["steps"] = 2 * (settings.steps or attacks.steps(settings.attack))
    return attacks.get(settings.attack)(**arguments)


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
    for start in reporting.progress(starts, len(starts), label):
        rows = np.resize(np.arange(start, min(start + size, n)), size)
        padding = np.arange(size) >= n - start
        result = attack(
            variables,
            keys[rows],
            pixels.to_images01(images[rows]),
            class_mask[rows],
            eps=eps,
            step_size=settings.step_size,
            skip=padding,
        )
        adversarial[rows[~padding]] = np.asarray(result.images)[~padding]
        steps[rows[~padding]] = np.asarray(result.steps)[~padding]
    return adversarial, steps


def format_eps(eps: float, norm: str) -> str:
    """The key of a radius in result.json: in levels of 255 in Linf, else the plain number."""
    return f"{eps * 255:g}/255" if norm == "linf" else f"{eps:g}"
