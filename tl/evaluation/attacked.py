"""Evaluates an attack on images: success rate and accuracy at each eps, and sanity checks.

Adversarial images are saved as 8-bit PNG files and read back, and every number is computed on the
files. This module draws no page; `tl.pages.attack` does, from the result and the saved figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import attacks, data, inference, metrics, pixels, reporting
from tl.attacks import baselines, goals, gradient, norms, sanity_checks
from tl.evaluation import perceptual
from tl.evaluation.attack_settings import (
    LEAST_LIKELY,
    AttackSettings,
    attack_batches,
    check_settings,
    format_eps,
    make_search,
)
from tl.evaluation.postprocessing import POSTPROCESSING
from tl.evaluation.robust import of_correct
from tl.models import Classifier
from tl.types import Variables

# Images that the sanity checks use, and queries of their black-box attack; chosen, not tuned.
CHECKED_IMAGES, QUERIES = 8, 500
# Images whose original and difference are saved for the page; all adversarial images are saved.
PAGE_IMAGES = 12


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


class EpsEvaluation(NamedTuple):
    """Adversarial images at one eps, as the network classifies what was read back.

    Attributes:
      name: eps as `format_eps` writes it.
      eps: radius in [0, 1] pixel units.
      files: the saved images.
      images: f32[m s s 3] in [0, 1], as evaluated; with `eight_bit`, the content of the files.
      logits: f32[m k], of `images`.
      success: bool[m], whether the prediction meets the goal.
      steps: i32[m], steps that the attack took.
      success_rate: share of m, with its 95 % Wilson interval `success_ci95`.
      robust_accuracy: share of n, with its 95 % Wilson interval `robust_ci95`.
      distance: name -> f64[m], distance from the clean image.
      after: postprocessing -> success rate and accuracy of the m images after it, and intervals.
      equal_calls: whether two calls of the network gave equal logits.
      equal_files: whether the files hold exactly the attack's images.
    """

    name: str
    eps: float
    files: list[Path]
    images: np.ndarray
    logits: np.ndarray
    success: np.ndarray
    steps: np.ndarray
    success_rate: float
    success_ci95: list[float]
    robust_accuracy: float
    robust_ci95: list[float]
    distance: dict[str, np.ndarray]
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
        rows = [row for e in self.by_eps for row in _image_rows(self.clf, self.selection, e)]
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
            "success_rate": of_each("success_rate"),
            "success_ci95": of_each("success_ci95"),
            "robust_accuracy": of_each("robust_accuracy"),
            "robust_ci95": of_each("robust_ci95"),
            **of_correct(of_each("robust_accuracy"), self.selection.n, len(self.selection.paths)),
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
    variables = jax.device_put(clf.fold_batch_norm(variables))
    selection = select_images(
        clf, variables, images, target=target, labels=labels, only=only, limit=limit
    )
    attack = attacks.make(
        make_search(settings, target),
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
        rates = {"success_rate": row.success_rate, "robust_accuracy": row.robust_accuracy}
        run.log({"eps": row.name, **rates})
    checks = []
    if settings.sanity_checks and max(settings.eps) > 0:
        panel = lambda: run_sanity_checks(clf, variables, selection, settings, target)
        checks = run.attempt("panel", panel, [])
    checks += check_images(list(by_eps.values()), settings)
    last = by_eps[max(by_eps)]
    figures = run.attempt("figures", lambda: _save_figures(run, clf, selection, last), [])
    return AttackEvaluation(
        clf, settings, target, selection, list(by_eps.values()), checks, figures
    )


# ---- the images ----


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

    Arguments as for `evaluate_attack`, with BatchNorm folded into `variables`.
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

    Without `eight_bit` a file cannot hold the image, so the image itself is evaluated.
    """
    name = format_eps(eps, settings.norm)
    files = [
        run.figure(f"eps{name.removesuffix('/255')}-{i:03d}-{path.stem}", image)
        for i, (path, image) in enumerate(zip(selection.paths, adversarial, strict=True))
    ]
    saved = np.stack([data.decode(file) for file in files])
    images = pixels.to_images01(saved) if settings.eight_bit else adversarial
    succeeds = lambda logits: np.asarray(selection.goal.success(logits, selection.class_mask))
    logits = inference.predict_logits(clf, variables, images)
    success, correct = succeeds(logits), logits.argmax(axis=1) == selection.labels
    after = {}
    for process_name, process in POSTPROCESSING.items():
        processed = inference.predict_logits(clf, variables, pixels.to_images01(process(saved)))
        after[process_name] = {
            **metrics.share("success", succeeds(processed)),
            **metrics.share("accuracy", processed.argmax(axis=1) == selection.labels),
        }
    m, originals = len(files), pixels.to_images01(selection.images)
    return EpsEvaluation(
        name=name,
        eps=eps,
        files=files,
        images=images,
        logits=logits,
        success=success,
        steps=steps,
        success_rate=int(success.sum()) / m,
        success_ci95=list(metrics.wilson(int(success.sum()), m)),
        robust_accuracy=int(correct.sum()) / selection.n,
        robust_ci95=list(metrics.wilson(int(correct.sum()), selection.n)),
        distance=run.attempt(
            "lpips",
            lambda: perceptual.distances(originals, images, lpips=lpips),
            otherwise=None,
        )
        or perceptual.distances(originals, images),
        after=after,
        equal_calls=bool(
            (
                inference.predict_logits(clf, variables, images[: inference.BATCH_SIZE])
                == logits[: inference.BATCH_SIZE]
            ).all()
        ),
        equal_files=bool((pixels.to_images01(saved) == adversarial).all()),
    )


def _image_rows(clf: Classifier, selection: Selection, row: EpsEvaluation) -> list[dict[str, Any]]:
    """The rows of `result["images"]`, one per image."""
    table, probabilities = inference.class_table(clf), metrics.softmax(row.logits)
    rows = []
    for i, path in enumerate(selection.paths):
        top = int(probabilities[i].argmax())
        rows.append(
            {
                "path": str(path),
                "png": str(row.files[i]),
                "eps": row.name,
                "from": table.display(int(selection.logits[i].argmax())),
                "to": table.display(top),
                **{name: float(values[i]) for name, values in row.distance.items()},
                "probability": float(probabilities[i, top]),
                "steps": int(row.steps[i]),
                "survives_png": bool(row.success[i]),
            }
        )
    return rows


def _save_figures(
    run: reporting.Run, clf: Classifier, selection: Selection, row: EpsEvaluation
) -> list[dict[str, Any]]:
    """Saves originals and amplified differences of the first images, and lists top classes."""
    table = inference.class_table(clf)
    before, after = metrics.softmax(selection.logits), metrics.softmax(row.logits)
    rows = []
    for i, path in enumerate(selection.paths[:PAGE_IMAGES]):
        change = row.images[i] - pixels.to_images01(selection.images[i])
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
    excess = max(float((row.distance[settings.norm] - row.eps).max()) for row in by_eps)
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
) -> list[sanity_checks.Check]:
    """All checks of `sanity_checks.check_attack`, on the first images, at the largest eps."""
    n = min(CHECKED_IMAGES, len(selection.images))
    print(f"sanity checks of the attack, on {n} images", flush=True)

    def make(search: Any, norm: str = settings.norm) -> attacks.Attack:
        return attacks.make(
            search,
            clf.logits,
            norm=norms.get(norm),
            goal=selection.goal,
            eight_bit=settings.eight_bit,
        )

    search = make_search(settings, target)
    not_in_linf = isinstance(search, attacks.Search) and search.norms and "linf" not in search.norms
    return sanity_checks.check_attack(
        clf.logits,
        variables,
        jax.random.key(settings.seed),
        pixels.to_images01(selection.images[:n]),
        selection.class_mask[:n],
        norm=norms.get(settings.norm),
        goal=selection.goal,
        eps=max(settings.eps),
        attack=make(search),
        doubled=make(make_search(settings, target, doubled=True)),
        black_box=make(attacks.get("noise" if settings.norm == "l1" else "square")(steps=QUERIES)),
        noise=make(baselines.noise(steps=sanity_checks.DRAWS)),
        unbounded=make(gradient.pgd() if not_in_linf else search, "linf"),
    )
