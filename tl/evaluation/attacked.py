"""Evaluates an attack on images: success rate and accuracy at each eps, and sanity checks.

Adversarial images are saved as 8-bit PNG files and read back, and the files are evaluated. A search
without `eight_bit` finds float images that a file cannot hold. Then both are evaluated, and every
number says of which it is. This module draws no page; `tl.pages.attack` does, from the result and
the saved figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import attacks, data, devices, hosts, inference, metrics, pixels, reporting
from tl.attacks import norms, sanity_checks
from tl.evaluation import perceptual
from tl.evaluation.attack_settings import (
    BATCH,
    AttackSettings,
    Selection,
    attack_batches,
    check_settings,
    format_eps,
    make_searches,
    select_images,
)
from tl.evaluation.postprocessing import POSTPROCESSING
from tl.evaluation.robust import of_correct
from tl.models import Classifier
from tl.types import Variables

# Images that the sanity checks use, and queries of their black-box attack, with "full" as many as
# in AutoAttack; chosen, not tuned.
CHECKED_IMAGES, QUERIES, FULL_QUERIES = 8, 500, 5000
# Images whose original and difference are saved for the page; all adversarial images are saved.
PAGE_IMAGES = 12


class Judgment(NamedTuple):
    """The network's outputs for m adversarial images, and rates.

    Attributes:
      images: f32[m s s 3] in [0, 1].
      logits: f32[m k].
      success: bool[m], whether the prediction meets the goal.
      success_rate: share of m, with its 95 % Wilson interval `success_ci95`.
      robust_accuracy: share of n, with its 95 % Wilson interval `robust_ci95`.
      distance: name -> f64[m], distance from the clean image.
    """

    images: np.ndarray
    logits: np.ndarray
    success: np.ndarray
    success_rate: float
    success_ci95: list[float]
    robust_accuracy: float
    robust_ci95: list[float]
    distance: dict[str, np.ndarray]


class EpsEvaluation(NamedTuple):
    """Adversarial images at one eps.

    Attributes:
      name: eps as `format_eps` writes it.
      eps: radius in [0, 1] pixel units.
      files: the saved images.
      judgment: of the attack's images; with `eight_bit` these are the content of the files.
      file_judgment: of the files, as they were read back.
      steps: i32[m], steps that the attack took.
      after: postprocessing -> success rate and accuracy of the m files after it, and intervals.
      equal_calls: whether two calls of the network gave equal logits.
      equal_files: whether the files hold exactly the attack's images.
    """

    name: str
    eps: float
    files: list[Path]
    judgment: Judgment
    file_judgment: Judgment
    steps: np.ndarray
    after: dict[str, dict[str, Any]]
    equal_calls: bool
    equal_files: bool


class AttackEvaluation(NamedTuple):
    """The evaluation of an attack on a set of images at one or more eps.

    Attributes:
      clf, settings, target: arguments of `evaluate_attack`.
      selection: the images that were attacked.
      by_eps: one evaluation per eps.
      checks: the sanity checks.
      figures: descriptions of the saved originals and differences at the largest eps.
    """

    clf: Classifier
    settings: AttackSettings
    target: str
    selection: Selection
    by_eps: list[EpsEvaluation]
    checks: list[sanity_checks.Check]
    figures: list[dict[str, Any]]

    def json(self) -> dict[str, Any]:
        """The JSON-ready result: the content of `result.json`."""
        of_each = lambda field: {e.name: getattr(e, field) for e in self.by_eps}

        def rates(part: str) -> dict[str, dict[str, Any]]:
            names = ("success_rate", "success_ci95", "robust_accuracy", "robust_ci95")
            by_name = {
                name: {e.name: getattr(getattr(e, part), name) for e in self.by_eps}
                for name in names
            }
            n, m = self.selection.n, len(self.selection.paths)
            return by_name | of_correct(by_name["robust_accuracy"], n, m)

        of = "file" if self.settings.eight_bit else "float image"
        rows = [row for e in self.by_eps for row in _image_rows(self.clf, self.selection, e, of)]
        largest = max(self.by_eps, key=lambda e: e.eps).name
        at_largest = [row for row in rows if row["eps"] == largest]
        for row, figure in zip(at_largest, self.figures, strict=False):
            row |= figure
        return {
            "arch": self.clf.arch,
            "n": self.selection.n,
            "clean_correct": len(self.selection.paths),
            "clean_ci95": list(metrics.wilson(len(self.selection.paths), self.selection.n)),
            "wrong_before": self.selection.misclassified,
            "attack": self.settings.attack,
            "norm": self.settings.norm,
            "target": self.target,
            "eps": of_each("eps"),
            "of": of,
            **rates("judgment"),
            "files": rates("file_judgment"),
            "after": of_each("after"),
            "steps": {e.name: int(e.steps.sum()) for e in self.by_eps},
            "images": rows,
            "checks": {check.name: check.json() for check in self.checks},
            "skipped": self.selection.skipped,
        }


def evaluate_attack(
    run: reporting.Run,
    clf: Classifier,
    variables: Variables,
    images: inference.LoadedImages,
    settings: AttackSettings,
    *,
    target: str = "",
    labels: np.ndarray | None = None,
    only: str = "",
    limit: int = 0,
) -> AttackEvaluation:
    """Attacks images at each eps and evaluates the saved files.

    Args:
      run: receives the adversarial images as figures and a line of metrics per eps.
      clf, variables: the network.
      images: uint8[n s s 3] images as `inference.read_images` returns them.
      settings: the attack and its parameters.
      target: a class, a group of classes, or `LEAST_LIKELY`; "" is an untargeted attack.
      labels: i[n], ground truth; None takes the network's clean predictions.
      only: attack only images that the network assigns to this class or group; "" is all.
      limit: at most this many images; 0 is all.

    Raises:
      ValueError: no image is left to attack, or `settings` do not fit together.
    """
    check_settings(clf, settings, target)
    searches = make_searches(settings, target)
    variables = devices.put_local(clf.fold_batch_norm(variables))
    run.remark(*norms.radius_remarks(settings.norm, settings.eps))
    selection = select_images(
        clf, variables, images, target=target, labels=labels, only=only, limit=limit
    )
    attack = attacks.make(
        searches,
        clf.logits,
        norm=norms.get(settings.norm),
        goal=selection.goal,
        eight_bit=settings.eight_bit,
    )
    lpips = perceptual.jitted_lpips() if settings.lpips else None
    by_eps: dict[float, EpsEvaluation] = {}
    for eps in settings.eps:
        outputs = attack_batches(
            attack, variables, selection.images, selection.class_mask, eps, settings
        )
        row = _evaluate(run, clf, variables, selection, settings, eps, *outputs, lpips=lpips)
        by_eps[eps] = row
        judgment = row.judgment
        rates = {"success_rate": judgment.success_rate, "robust_accuracy": judgment.robust_accuracy}
        run.log({"eps": row.name, **rates})
    checks = []
    if settings.sanity_checks and max(settings.eps) > 0:
        row = by_eps[max(by_eps)]
        panel = lambda: run_sanity_checks(
            clf, variables, selection, settings, target, searches, row
        )
        checks = run.attempt("panel", panel, [])
    checks += check_images(list(by_eps.values()), settings)
    last = by_eps[max(by_eps)]
    figures = run.attempt("figures", lambda: _save_figures(run, clf, selection, last), [])
    return AttackEvaluation(
        clf, settings, target, selection, list(by_eps.values()), checks, figures
    )


# ---- the evaluation ----


def _evaluate(
    run: reporting.Run,
    clf: Classifier,
    variables: Variables,
    selection: Selection,
    settings: AttackSettings,
    eps: float,
    adversarial: np.ndarray,
    steps: np.ndarray,
    *,
    lpips: perceptual.PairDistance | None,
) -> EpsEvaluation:
    """Saves adversarial images f32[m s s 3], reads them back and evaluates the files.

    Without `eight_bit` a file cannot hold the image, so both are evaluated.
    """
    name = format_eps(eps, settings.norm)
    files = [
        run.figure(f"eps{name.removesuffix('/255')}-{i:03d}-{path.stem}", image)
        for i, (path, image) in enumerate(zip(selection.paths, adversarial, strict=True))
    ]
    saved = hosts.on_first(lambda: np.stack([data.decode(file) for file in files]))
    images = pixels.to_images01(saved)
    succeeds = lambda logits: np.asarray(selection.goal.success(logits, selection.class_mask))
    file_judgment = judgment = _judge(run, clf, variables, selection, images, lpips)
    if not settings.eight_bit:
        judgment = _judge(run, clf, variables, selection, adversarial, lpips)
    after = {}
    for process_name, process in POSTPROCESSING.items():
        processed = inference.predict_logits(clf, variables, pixels.to_images01(process(saved)))
        after[process_name] = {
            **metrics.share("success", succeeds(processed)),
            **metrics.share("accuracy", processed.argmax(axis=1) == selection.labels),
        }
    first = slice(inference.BATCH_SIZE)
    again = inference.predict_logits(clf, variables, images[first])
    return EpsEvaluation(
        name=name,
        eps=eps,
        files=files,
        judgment=judgment,
        file_judgment=file_judgment,
        steps=steps,
        after=after,
        equal_calls=bool((again == file_judgment.logits[first]).all()),
        equal_files=bool((images == adversarial).all()),
    )


def _judge(
    run: reporting.Run,
    clf: Classifier,
    variables: Variables,
    selection: Selection,
    images: np.ndarray,
    lpips: perceptual.PairDistance | None,
) -> Judgment:
    """Evaluates adversarial images f32[m s s 3]."""
    m, originals = len(images), pixels.to_images01(selection.images)
    logits = inference.predict_logits(clf, variables, images)
    success = np.asarray(selection.goal.success(logits, selection.class_mask))
    correct = int((logits.argmax(axis=1) == selection.labels).sum())
    return Judgment(
        images=images,
        logits=logits,
        success=success,
        success_rate=int(success.sum()) / m,
        success_ci95=list(metrics.wilson(int(success.sum()), m)),
        robust_accuracy=correct / selection.n,
        robust_ci95=list(metrics.wilson(correct, selection.n)),
        distance=run.attempt(
            "lpips",
            lambda: perceptual.distances(originals, images, lpips=lpips),
            otherwise=None,
        )
        or perceptual.distances(originals, images),
    )


def _image_rows(
    clf: Classifier, selection: Selection, row: EpsEvaluation, of: str
) -> list[dict[str, Any]]:
    """The rows of `result["images"]`, one per image.

    `to`, `probability` and distances are those of `of`, "file" or "float image"; the same numbers
    of the file are in `file`.
    """
    table = inference.class_table(clf)

    def numbers(judgment: Judgment, i: int) -> dict[str, Any]:
        probabilities = metrics.softmax(judgment.logits[i : i + 1])[0]
        top = int(probabilities.argmax())
        return {
            "to": table.display(top),
            **{name: float(values[i]) for name, values in judgment.distance.items()},
            "probability": float(probabilities[top]),
            "success": bool(judgment.success[i]),
        }

    return [
        {
            "path": str(path),
            "png": str(row.files[i]),
            "eps": row.name,
            "from": table.display(int(selection.logits[i].argmax())),
            "of": of,
            **numbers(row.judgment, i),
            "steps": int(row.steps[i]),
            "survives_png": bool(row.file_judgment.success[i]),
            "file": numbers(row.file_judgment, i),
        }
        for i, path in enumerate(selection.paths)
    ]


def _save_figures(
    run: reporting.Run, clf: Classifier, selection: Selection, row: EpsEvaluation
) -> list[dict[str, Any]]:
    """Saves originals and amplified differences of the first images, and lists top classes."""
    table = inference.class_table(clf)
    before, after = metrics.softmax(selection.logits), metrics.softmax(row.judgment.logits)
    rows = []
    for i, path in enumerate(selection.paths[:PAGE_IMAGES]):
        change = row.judgment.images[i] - pixels.to_images01(selection.images[i])
        # The largest change uses the whole range; changes below one level are enlarged as one level
        # is.
        factor = max(1, int(127 / max(float(np.abs(change).max()) * 255, 1.0)))
        images = {"original": selection.images[i], "difference": reporting.amplify(change, factor)}
        files = {k: run.figure(f"{k}-{i:03d}-{path.stem}", v) for k, v in images.items()}
        tops = [
            int(before[i].argmax()),
            int(after[i].argmax()),
            *np.argsort(-after[i])[:2].tolist(),
        ]
        classes = [
            {"name": table.display(j), "before": float(before[i, j]), "after": float(after[i, j])}
            for j in dict.fromkeys(tops)
        ]
        paths = {k: f"figures/{file.name}" for k, file in files.items()}
        rows.append({**paths, "amplified": factor, "classes": classes})
    return rows


# ---- sanity checks ----


def check_images(
    by_eps: Sequence[EpsEvaluation], settings: AttackSettings
) -> list[sanity_checks.Check]:
    """Checks of the evaluated images that hold for every attack."""
    excess = max(float((row.judgment.distance[settings.norm] - row.eps).max()) for row in by_eps)
    tolerance = 1e-5 * (1 + max(settings.eps))
    equal = float(np.mean([row.equal_calls for row in by_eps]))
    Check = sanity_checks.Check
    checks = [
        Check("every picture lies within eps", excess <= tolerance, excess, "at most 0, rounded"),
        Check("two calls of this run agree", equal == 1, equal, "1"),
    ]
    if settings.eight_bit:
        equal = float(np.mean([row.equal_files for row in by_eps]))
        checks.append(Check("files hold what was made, to the bit", equal == 1, equal, "1"))
    return checks


def run_sanity_checks(
    clf: Classifier,
    variables: Variables,
    selection: Selection,
    settings: AttackSettings,
    target: str,
    searches: Sequence[attacks.Search],
    row: EpsEvaluation,
) -> list[sanity_checks.Check]:
    """All checks of `sanity_checks.check_attack`, on the first batch of the run.

    Args:
      clf, variables, selection, settings, target: of the run.
      searches: the searches of the run, whose programs are compiled.
      row: the run at the largest eps.
    """
    size = min(BATCH, len(selection.images))
    full = settings.sanity_checks == "full"
    n = size if full else _checked_images(size)
    print(f"sanity checks of the attack, on {n} images", flush=True)
    defaults = make_searches(settings._replace(steps=None), target)
    return sanity_checks.check_attack(
        clf.logits,
        variables,
        jax.random.key(settings.seed),
        pixels.to_images01(selection.images[:size]),
        selection.class_mask[:size],
        searches=searches,
        default_steps=[search.steps for search in defaults],
        norm=norms.get(settings.norm),
        goal=selection.goal,
        eps=row.eps,
        step_size=settings.step_size,
        eight_bit=settings.eight_bit,
        success=row.judgment.success[:n],
        queries=FULL_QUERIES if full else QUERIES,
    )


def _checked_images(size: int) -> int:
    """The number of images of a batch to check, with the run's number of images at once."""
    at_once = lambda n: devices.images_at_once(-(-n // jax.local_device_count()))
    first = min(CHECKED_IMAGES, size)
    return next(n for n in range(first, size + 1) if at_once(n) == at_once(size))
