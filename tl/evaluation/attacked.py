"""Adversarial pictures once they are made: saved, read back, judged, measured, and shown."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import attacks, data, inference, metrics, pixels, reporting
from tl.ascent import transforms
from tl.attacks import baselines, goals, gradient, norms, sanity_checks
from tl.evaluation import perceptual
from tl.evaluation.postprocessing import POSTPROCESSING
from tl.models import Classifier
from tl.paths import nearest
from tl.types import Variables

AT_ONCE = 8  # pairs whose perceptual distance is computed together

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`(images01, images01) f32[b h w 3] -> f32[b]`."""


class AttackContext(NamedTuple):
    """What is attacked: pictures that the network names rightly, uint8[m s s 3], and what it says of them.

    `of` is how many there were with those that it names wrongly, which count against its accuracy.
    """

    run: reporting.Run
    clf: Classifier
    variables: Variables
    goal: goals.Goal
    class_mask: np.ndarray
    paths: list[Path]
    originals: np.ndarray
    clean: np.ndarray
    right: np.ndarray
    of: int


class AttackEvaluation(NamedTuple):
    """Pictures at one eps, by the network on what was read back; with `grid` that are the files.

    Attributes:
      word: eps.
      files, images: f32[m s s 3] in [0, 1], as judged, and the files.
      logits: f32[m k]. success: bool[m]. right: bool[m], still named rightly. steps: i32[m], the search's.
      success_rate, robust_accuracy: shares of the m, and of all pictures; with their Wilson intervals.
      distance: name -> f64[m].
      after: treatment -> share of success, and of pictures named rightly, then.
      equal_calls, equal_files: whether logits came out the same twice, and files hold what was made.
    """

    word: str
    files: list[Path]
    images: np.ndarray
    logits: np.ndarray
    success: np.ndarray
    right: np.ndarray
    steps: np.ndarray
    success_rate: float
    success_ci95: list[float]
    robust_accuracy: float
    robust_ci95: list[float]
    distance: dict[str, np.ndarray]
    after: dict[str, dict[str, float]]
    equal_calls: bool
    equal_files: bool


def lpips() -> Distance | None:
    """The perceptual distance, or None, told, where its weights are not installed."""
    try:
        distance, weights = perceptual.load_lpips()
    except ValueError as error:
        print(f"no LPIPS: {error}", flush=True)
        return None
    weights, jitted = jax.device_put(weights), jax.jit(distance)
    return lambda x, y: np.asarray(jitted(weights, x, y))


@functools.cache
def _measured(name: str) -> Distance:
    return jax.jit(
        {
            "ssim": perceptual.ssim,
            "psnr": perceptual.psnr,
            **{n: norms.get(n).distance for n in norms.NORMS},
        }[name]
    )


def batched_distance(distance: Distance, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """f64[m], of pairs a few at a time, in batches of one shape."""
    size, rows = min(AT_ONCE, len(x)), []
    for start in range(0, len(x), size):
        part = np.resize(np.arange(start, min(start + size, len(x))), size)
        rows.append(np.asarray(distance(x[part], y[part]), np.float64)[: len(x) - start])
    return np.concatenate(rows)


def judge(
    job: AttackContext,
    word: str,
    found: np.ndarray,
    steps: np.ndarray,
    *,
    grid: bool,
    lpips: Distance | None,
) -> AttackEvaluation:
    """Saves the pictures and reads them back; from here on only the files count.

    Without `grid`, where a file cannot hold the picture, the picture itself is judged, and files are for looking only.
    """
    names = [
        f"eps{word.removesuffix('/255')}-{i:03d}-{path.stem}" for i, path in enumerate(job.paths)
    ]
    files = [job.run.figure(name, image) for name, image in zip(names, found, strict=True)]
    saved = np.stack([data.decode(file) for file in files])
    images = pixels.to_images01(saved) if grid else found
    logits = _logits(job, images)
    success = np.asarray(job.goal.success(logits, job.class_mask))
    right = logits.argmax(axis=1) == job.right
    originals = pixels.to_images01(job.originals)
    named = [
        "linf",
        "l2",
        "l1",
        "psnr",
        *(["ssim"] if min(images.shape[1:3]) >= perceptual.WINDOW else []),
    ]
    distance = {name: batched_distance(_measured(name), originals, images) for name in named}
    if lpips is not None:
        distance["lpips"] = batched_distance(lpips, originals, images)
    after = {}
    for name, treat in POSTPROCESSING.items():
        said = _logits(job, pixels.to_images01(treat(saved)))
        after[name] = {
            "success": float(np.mean(np.asarray(job.goal.success(said, job.class_mask)))),
            "accuracy": float(np.mean(said.argmax(axis=1) == job.right)),
        }
    wins, kept, m = int(success.sum()), int(right.sum()), len(success)
    return AttackEvaluation(
        word=word,
        files=files,
        images=images,
        logits=logits,
        success=success,
        right=right,
        steps=steps,
        success_rate=wins / m,
        success_ci95=list(metrics.wilson(wins, m)),
        robust_accuracy=kept / job.of,
        robust_ci95=list(metrics.wilson(kept, job.of)),
        distance=distance,
        after=after,
        equal_calls=bool((_logits(job, images[:AT_ONCE]) == logits[:AT_ONCE]).all()),
        equal_files=bool((pixels.to_images01(saved) == found).all()),
    )


def _logits(job: AttackContext, images01: np.ndarray, *, at_once: int = 16) -> np.ndarray:
    """Logits f32[m k] of pictures f32[m s s 3], in batches of one shape."""
    rows = []
    for start in range(0, len(images01), at_once):
        part = np.resize(np.arange(start, min(start + at_once, len(images01))), at_once)
        rows.append(
            np.asarray(inference.forward(job.clf)(job.variables, images01[part]))[
                : len(images01) - start
            ]
        )
    return np.concatenate(rows)


def own_checks(
    job: AttackContext,
    lines: Sequence[AttackEvaluation],
    norm: norms.Norm,
    eps: Sequence[float],
    *,
    grid: bool,
) -> list[sanity_checks.Check]:
    """What holds of these pictures, whatever the attack: lines of the panel."""
    over = [
        float((line.distance[norms.name(norm)] - radius).max())
        for line, radius in zip(lines, eps, strict=True)
    ]
    allowed = 1e-5 * (1 + max(eps))
    same = float(np.mean([line.equal_calls for line in lines]))
    found = [
        sanity_checks.Check(
            "every picture lies within eps",
            max(over) <= allowed,
            max(over, default=0.0),
            "at most 0, rounded",
        ),
        sanity_checks.Check("two calls of this run agree", same == 1, same, "1"),
    ]
    if grid:
        held = float(np.mean([line.equal_files for line in lines]))
        found.append(
            sanity_checks.Check("files hold what was made, to the bit", held == 1, held, "1")
        )
    return found


# ----------------------------------------------------------------------------------------------------------------- pages


def image_rows(job: AttackContext, judged: AttackEvaluation) -> list[dict[str, Any]]:
    """A row of result.json for each picture."""
    table, after = inference.class_table(job.clf), metrics.softmax(judged.logits)
    rows = []
    for i, path in enumerate(job.paths):
        now = int(after[i].argmax())
        rows.append(
            {
                "path": str(path),
                "png": str(judged.files[i]),
                "eps": judged.word,
                "from": table.display(int(job.clean[i].argmax())),
                "to": table.display(now),
                **{name: float(values[i]) for name, values in judged.distance.items()},
                "probability": float(after[i, now]),
                "steps": int(judged.steps[i]),
                "survives_png": bool(judged.success[i]),
            }
        )
    return rows


BATCH = 64  # pictures a call; of them a device has a few in work side by side
PANEL = 8  # pictures that the honesty panel looks at
QUERIES = 500  # of its black-box attack
VIEWS = {  # what --views names: a random one of each for every gradient
    "jpeg": transforms.jpeg(60, 95),
    "resized": transforms.resized(0.5, 1.0),
    "crop": transforms.crop(0.8, 1.0),
    "noise": transforms.noise(0.0, 0.05),
    "flip": transforms.flip(),
}
PLAIN = {"pgd", "bim", "mi_fgsm", "di_fgsm"}  # attacks that may go on after success


class Settings(NamedTuple):
    """How an attack goes; None is the attack's own. `panel` and `lpips` say what is looked at beside.

    `early_stop` None: pictures towards a target are climbed to the last step, for they are made to be kept; without a target
    it is accuracy that is asked for, and an image that is wrong is done.
    """

    method: str = "pgd"
    norm: str = "linf"
    eps: Sequence[float] = (8 / 255,)
    steps: int | None = None
    step_size: float | None = None
    restarts: int = 1
    grid: bool = True
    early_stop: bool | None = None
    views: Sequence[str] = ()
    draws: int = 4
    panel: bool = False
    lpips: bool = False
    seed: int = 0


def search(how: Settings, target: str, *, doubled: bool = False) -> Any:
    """The attack that the settings mean; or one with twice its steps."""
    own: dict[str, Any] = {"restarts": how.restarts}
    if how.steps is not None:
        own["steps"] = how.steps
    if how.views:
        for word in how.views:
            if word not in VIEWS:
                raise ValueError(f"unknown view {word!r}; nearest: {nearest(word, VIEWS)}")
        if how.method != "pgd":
            raise ValueError(
                f"--views are for pgd, whose gradient is a mean over them; got --attack={how.method}"
            )
        own |= {
            "view": transforms.compose(*(VIEWS[word] for word in how.views)),
            "draws": how.draws,
        }
    if how.method in PLAIN:
        own["early_stop"] = (
            how.early_stop if how.early_stop is not None else not (target or how.views)
        )
    elif how.early_stop is False:
        raise ValueError(
            f"--noearly_stop is for {', '.join(sorted(PLAIN))}; got --attack={how.method}"
        )
    if doubled:
        if how.method == "fgsm":
            return gradient.bim(steps=2)
        own["steps"] = 2 * (how.steps or attacks.steps(how.method))
    return attacks.get(how.method)(**own)


def attack_batches(
    climb: attacks.Attack,
    variables: Variables,
    originals: np.ndarray,
    class_mask: np.ndarray,
    radius: float,
    how: Settings,
) -> tuple[np.ndarray, np.ndarray]:
    """Adversarial pictures f32[n s s 3] and the steps that each took, i32[n], in batches of one shape."""
    n, found, steps = (
        len(originals),
        np.zeros(originals.shape, np.float32),
        np.zeros(len(originals), np.int32),
    )
    size, starts = min(BATCH, n), range(0, n, BATCH)
    keys = norms.per_image_keys(
        jax.random.key(how.seed), n
    )  # a picture's own, whatever the batches
    for start in reporting.progress(
        starts, len(starts), f"{how.method}, eps {format_eps(radius, how.norm)}"
    ):
        rows = np.resize(np.arange(start, min(start + size, n)), size)
        again = np.arange(size) >= n - start  # repeats that fill the batch up
        images01 = pixels.to_images01(originals[rows])
        made = climb(
            variables,
            keys[rows],
            images01,
            class_mask[rows],
            eps=radius,
            step_size=how.step_size,
            skip=again,
        )
        found[rows[~again]] = np.asarray(made.images)[~again]
        steps[rows[~again]] = np.asarray(made.steps)[~again]
    return found, steps


def format_eps(radius: float, norm: str) -> str:
    """A radius as result.json names it: in levels in Linf, else as it is."""
    return f"{radius * 255:g}/255" if norm == "linf" else f"{radius:g}"


def run_sanity_checks(
    clf: Classifier,
    variables: Variables,
    originals: np.ndarray,
    class_mask: np.ndarray,
    goal: goals.Goal,
    how: Settings,
    target: str,
) -> list[sanity_checks.Check]:
    """The honesty panel's lines, on the first pictures, at the largest eps."""
    print(f"the honesty panel, on {min(PANEL, len(originals))} pictures", flush=True)

    def make(search: Any, norm: str = how.norm) -> attacks.Attack:
        return attacks.make(search, clf.logits, norm=norms.get(norm), goal=goal, eight_bit=how.grid)

    tried = search(how, target)
    only_elsewhere = isinstance(tried, attacks.Search) and tried.norms and "linf" not in tried.norms
    return sanity_checks.panel(
        clf.logits,
        variables,
        jax.random.key(how.seed),
        pixels.to_images01(originals[:PANEL]),
        class_mask[:PANEL],
        norm=norms.get(how.norm),
        goal=goal,
        eps=max(how.eps),
        attack=make(tried),
        doubled=make(search(how, target, doubled=True)),
        black=make(attacks.get("noise" if how.norm == "l1" else "square")(steps=QUERIES)),
        noise=make(baselines.noise(steps=sanity_checks.DRAWS)),
        whole=make(gradient.pgd() if only_elsewhere else tried, "linf"),
    )
