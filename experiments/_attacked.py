"""Adversarial pictures once they are made: saved, read back, judged, measured, and shown."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import _common as common
from tl import data, metrics, perceptual, pixels, report, runlog
from tl.attacks import checks, goals, norms
from tl.attacks.treatments import TREATMENTS
from tl.classifier import Classifier
from tl.report import Html
from tl.types import Variables

SHOWN = 12  # pictures on the page; all are in result.json
AT_ONCE = 8  # pairs whose perceptual distance is computed together

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`(images01, images01) f32[b h w 3] -> f32[b]`."""


class Job(NamedTuple):
    """What is attacked: pictures that the network names rightly, uint8[m s s 3], and what it says of them.

    `of` is how many there were with those that it names wrongly, which count against its accuracy.
    """

    run: runlog.Run
    clf: Classifier
    variables: Variables
    goal: goals.Goal
    members: np.ndarray
    paths: list[Path]
    originals: np.ndarray
    clean: np.ndarray
    right: np.ndarray
    of: int


class Judged(NamedTuple):
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
        {"ssim": perceptual.ssim, "psnr": perceptual.psnr, **{n: norms.get(n).distance for n in norms.NORMS}}[name]
    )


def in_parts(distance: Distance, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """f64[m], of pairs a few at a time, in batches of one shape."""
    size, rows = min(AT_ONCE, len(x)), []
    for start in range(0, len(x), size):
        part = np.resize(np.arange(start, min(start + size, len(x))), size)
        rows.append(np.asarray(distance(x[part], y[part]), np.float64)[: len(x) - start])
    return np.concatenate(rows)


def judge(job: Job, word: str, found: np.ndarray, steps: np.ndarray, *, grid: bool, lpips: Distance | None) -> Judged:
    """Saves the pictures and reads them back; from here on only the files count.

    Without `grid`, where a file cannot hold the picture, the picture itself is judged, and files are for looking only.
    """
    names = [f"eps{word.removesuffix('/255')}-{i:03d}-{path.stem}" for i, path in enumerate(job.paths)]
    files = [job.run.figure(name, image) for name, image in zip(names, found, strict=True)]
    saved = np.stack([data.decode(file) for file in files])
    images = pixels.to_images01(saved) if grid else found
    logits = _logits(job, images)
    success = np.asarray(job.goal.success(logits, job.members))
    right = logits.argmax(axis=1) == job.right
    originals = pixels.to_images01(job.originals)
    named = ["linf", "l2", "l1", "psnr", *(["ssim"] if min(images.shape[1:3]) >= perceptual.WINDOW else [])]
    distance = {name: in_parts(_measured(name), originals, images) for name in named}
    if lpips is not None:
        distance["lpips"] = in_parts(lpips, originals, images)
    after = {}
    for name, treat in TREATMENTS.items():
        said = _logits(job, pixels.to_images01(treat(saved)))
        after[name] = {
            "success": float(np.mean(np.asarray(job.goal.success(said, job.members)))),
            "accuracy": float(np.mean(said.argmax(axis=1) == job.right)),
        }
    wins, kept, m = int(success.sum()), int(right.sum()), len(success)
    return Judged(
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


def _logits(job: Job, images01: np.ndarray, *, at_once: int = 16) -> np.ndarray:
    """Logits f32[m k] of pictures f32[m s s 3], in batches of one shape."""
    rows = []
    for start in range(0, len(images01), at_once):
        part = np.resize(np.arange(start, min(start + at_once, len(images01))), at_once)
        rows.append(np.asarray(common.forward(job.clf)(job.variables, images01[part]))[: len(images01) - start])
    return np.concatenate(rows)


def own_checks(
    job: Job, lines: Sequence[Judged], norm: norms.Norm, eps: Sequence[float], *, grid: bool
) -> list[checks.Check]:
    """What holds of these pictures, whatever the attack: lines of the panel."""
    over = [float((line.distance[norms.name(norm)] - radius).max()) for line, radius in zip(lines, eps, strict=True)]
    allowed = 1e-5 * (1 + max(eps))
    same = float(np.mean([line.equal_calls for line in lines]))
    found = [
        checks.Check(
            "every picture lies within eps", max(over) <= allowed, max(over, default=0.0), "at most 0, rounded"
        ),
        checks.Check("two calls of this run agree", same == 1, same, "1"),
    ]
    if grid:
        held = float(np.mean([line.equal_files for line in lines]))
        found.append(checks.Check("files hold what was made, to the bit", held == 1, held, "1"))
    return found


# ----------------------------------------------------------------------------------------------------------------- pages


def image_rows(job: Job, judged: Judged) -> list[dict[str, Any]]:
    """A row of result.json for each picture."""
    table, after = common.class_table(job.clf), common.softmax(judged.logits)
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


def sections(job: Job, curve: Sequence[tuple[float, Judged]], norm: str, target: str) -> list[Html]:
    """Rates at each eps, with intervals, and the curve where there are several."""
    parts = []
    for _, judged in curve:
        low, high = judged.success_ci95
        parts.append(report.interval(judged.success_rate, low, high, label=f"success at eps {judged.word}"))
    rows = [
        [
            judged.word,
            f"{report.percent(judged.robust_accuracy)} ({' to '.join(map(report.percent, judged.robust_ci95))})",
            *(f"{np.median(values):.4g}" for values in judged.distance.values()),
            f"{judged.steps.mean():.1f}",
        ]
        for _, judged in curve
    ]
    measures = [f"median {name}" for name in curve[0][1].distance]
    parts.append(report.table(rows, ["eps", "accuracy under attack", *measures, "steps a picture"]))
    text = (
        f"Of {job.of} photographs the network names {len(job.paths)} rightly; success is to have one of those called "
        f"{target}. Accuracy counts all {job.of}. Distances in {norm.capitalize()} and others from the photograph, in [0, 1] "
        "pixels."
    )
    found = [report.section("Success and accuracy under attack", *parts, text=text)]
    if len(curve) > 1:
        scale = 255 if norm == "linf" else 1
        ordered = sorted(curve, key=lambda pair: pair[0])
        series = {"robust accuracy": lambda j: j.robust_accuracy}
        series |= {"95 %, from": lambda j: j.robust_ci95[0], "to": lambda j: j.robust_ci95[1]}
        begin = len(job.paths) / job.of
        drawn = {
            name: [*([(0.0, begin)] if name == "robust accuracy" else []), *((r * scale, value(j)) for r, j in ordered)]
            for name, value in series.items()
        }
        label = f"eps ({norm}{', levels of 255' if scale == 255 else ''})"
        found.append(report.section("The curve", report.curves(drawn, x_label=label, y_label="accuracy under attack")))
    return found


def panel_section(lines: Sequence[checks.Check]) -> Html:
    """The honesty panel."""
    rows = [["pass" if line.passed else "FAIL", line.name, f"{line.found:.4g}", line.wanted] for line in lines]
    text = "Is an attack's failure the network's strength, or the attack's weakness?"
    return report.section("Honesty panel", report.table(rows, ["", "what should hold", "found", "wanted"]), text=text)


def treatments_section(curve: Sequence[tuple[float, Judged]]) -> Html:
    """What is left of the success once pictures were compressed, resized, cropped."""
    words = [judged.word for _, judged in curve]
    rows = [
        [name, *(report.percent(judged.after[name]["success"]) for _, judged in curve)] for name in curve[0][1].after
    ]
    text = "Share of pictures that still succeed after going through real files and filters."
    return report.section(
        "After JPEG, resizing, cropping", report.table(rows, ["", *(f"eps {w}" for w in words)]), text=text
    )


def strips(job: Job, judged: Judged) -> list[Html]:
    """The first pictures: photograph, adversarial picture and amplified difference side by side."""
    table, before, after = common.class_table(job.clf), common.softmax(job.clean), common.softmax(judged.logits)
    shown = []
    for i, path in enumerate(job.paths[:SHOWN]):
        was, now = int(before[i].argmax()), int(after[i].argmax())
        change = judged.images[i] - pixels.to_images01(job.originals[i])
        levels = float(np.abs(change).max()) * 255
        factor = max(1, int(127 / max(levels, 1.0)))
        classes = dict.fromkeys([was, now, *np.argsort(-after[i])[:2].tolist()])
        moves = report.before_after([(table.display(j), float(before[i, j]), float(after[i, j])) for j in classes])
        named = lambda j, p: f"{table.display(j)}, {report.percent(float(p[j]))}"  # noqa: E731
        difference = f"amplified {factor} times; largest change {levels:.3g} of 255 levels"
        cards = [
            report.card(job.originals[i], title="photograph", caption=named(was, before[i])),
            report.card(judged.images[i], title="adversarial", caption=named(now, after[i]), below=moves),
            report.card(report.amplify(change, factor), title="difference", caption=difference),
        ]
        shown.append(report.strip(cards, title=path.name))
    return shown
