"""Two runs compared on the same images: paired test, difference of accuracy, and the images.

`transfer`, `evaluate` and `predict` save `predictions.csv` with one row per image and seed. Images
are matched by the SHA-256 of their files, so their names and folders may differ between the runs.
Nothing here draws a page: `tl.pages.versus` does.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl import data, hosts, inference, metrics, reporting, storage
from tl.data.spec import file_of
from tl.evaluation import seen
from tl.inference import Predictions
from tl.models import Classifier
from tl.paths import expanded, printable

FILE = "predictions.csv"
COLUMNS = ("seed", "sha256", "path", "label", "predicted", "probability", "correct", "seen")
# Images on the page for each of the two runs, and their longer side; chosen, not tuned.
PAGE_IMAGES, SIDE = 24, 224


class Row(NamedTuple):
    """The prediction of one run for one image.

    Attributes:
      path: the file, when the run read it.
      label, predicted: names of classes.
      probability: of the predicted class.
      correct: whether the prediction is correct; a tie is not.
      seen: as `seen.Seen.part`.
    """

    path: str
    label: str
    predicted: str
    probability: float
    correct: bool
    seen: str = ""


class Pair(NamedTuple):
    """The predictions of both runs for one image, with their seeds."""

    image: str
    seeds: tuple[int, int]
    a: Row
    b: Row


# ---- statistics ----


def exact_p(differences: np.ndarray) -> float:
    """Exact two-sided p-value of the hypothesis that two classifiers are equally accurate.

    Under this hypothesis the results of the two classifiers may be exchanged for each image. The
    test enumerates all exchanges. With one test per image it is McNemar's exact test. With several
    tests per image, such as seeds, the results for an image are exchanged together, so that every
    image counts once.

    Args:
      differences: i[n], how often the first classifier is correct on an image minus how often the
        second is.

    Returns:
      The probability of a sum as far from 0 as the observed one, or farther.

    Reference: McNemar 1947, Psychometrika 12, 153-157; Fisher 1935, The Design of Experiments,
      section 21 (exchange of signs).

    Example:
      >>> exact_p(np.array([1] * 7 + [-1] + [0] * 13))  # 2 (1 + 8) / 2^8
      0.0703...
    """
    from scipy import special  # a dependency of JAX, imported here to keep `import tl` light

    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    # The distribution of the sum of the differences that are positive after a random exchange.
    distribution = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        k = np.arange(count + 1)
        logs = special.gammaln([count + 1]) - special.gammaln(k + 1)
        of_size = np.zeros(size * count + 1)
        of_size[::size] = np.exp(logs - special.gammaln(count - k + 1) - count * np.log(2.0))
        distribution = np.convolve(distribution, of_size)
    total = len(distribution) - 1
    tail = (total - abs(int(differences.sum()))) // 2
    return min(1.0, 2.0 * float(distribution[: tail + 1].sum()))


def difference_interval(
    differences: np.ndarray, tests: np.ndarray, *, z: float = 1.959964
) -> tuple[float, float]:
    """The interval of a difference of two accuracies on the same images, at 95 % by default.

    It is Wald's after one image is added on which only the first classifier is correct, and one on
    which only the second is. Images, and not tests, are the units that vary.

    Args:
      differences: i[n], how often the first classifier is correct on an image minus how often the
        second is.
      tests: i[n], how often each image was tested; 1, or the number of seeds.
      z: quantile of the standard normal distribution.

    Returns:
      `(low, high)` in [-1, 1].

    Reference: Bonett & Price 2012, Journal of Educational and Behavioral Statistics 37, 479-488;
      recommended by Fagerland, Lydersen & Laake 2014, Statistics in Medicine 33, 2850-2875.
    """
    added = float(np.mean(tests))
    d = np.concatenate([differences, [added, -added]])
    m = np.concatenate([tests, [added, added]])
    center = d.sum() / m.sum()
    half = z * np.sqrt(np.square(d - center * m).sum()) / m.sum()
    observed = differences.sum() / tests.sum()
    # Rounding must not move a bound past the observed difference.
    low, high = min(center - half, observed), max(center + half, observed)
    return max(-1.0, float(low)), min(1.0, float(high))


# ---- predictions of a run ----


def save_predictions(
    run: reporting.Run,
    clf: Classifier,
    predictions: Mapping[int, Predictions],
    seen_images: seen.Seen = seen.Seen(),  # noqa: B008 (constant)
) -> None:
    """Writes `predictions.csv` into the folder of a run.

    Args:
      run: the run.
      clf: the network, whose class names are used.
      predictions: seed -> predictions for image files; labels of -1 are unknown. A file that
        cannot be read any more has no SHA-256.
      seen_images: the images that the network was trained on.
    """
    if not hosts.first():
        return
    display = inference.class_table(clf).display
    with io.StringIO(newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for seed, predicted in predictions.items():
            labeled, labels = predicted.labels >= 0, np.maximum(predicted.labels, 0)
            top = np.where(
                labeled,
                metrics.predicted_classes(predicted.logits, labels),
                predicted.logits.argmax(axis=1),
            )
            probability = predicted.probabilities[np.arange(len(top)), top]
            for i, path in enumerate(map(file_of, predicted.paths)):
                content = content_hash(path)
                writer.writerow(
                    (
                        seed,
                        content,
                        printable(str(path.absolute() if isinstance(path, Path) else path)),
                        display(int(labels[i])) if labeled[i] else "",
                        display(int(top[i])),
                        f"{probability[i]:.6g}",
                        int(labeled[i] and top[i] == labels[i]),
                        seen_images.part(content),
                    )
                )
        reporting.write_whole(run.workdir / FILE, file.getvalue())


def content_hash(path: data.Source | str) -> str:
    """The SHA-256 of an image file; "" for a file that cannot be read any more."""
    try:
        return data.content_hash(path)
    except OSError:
        return ""


def read_predictions(folder: Path) -> dict[int, dict[str, Row]]:
    """Seed -> SHA-256 -> prediction, for the labeled images of a finished run.

    Equal files count once.

    Raises:
      ValueError: the run saved no predictions, the file is damaged, or its images have no labels.
    """
    try:
        text = storage.read_range(folder / FILE).decode("utf-8")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except OSError as error:
        raise ValueError(
            f"{str(folder)!r} has no {FILE} ({error.strerror}), expected a run of transfer, "
            "evaluate or predict; a run of an older version must be repeated"
        ) from None
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{str(folder / FILE)!r} is not a table in UTF-8: {error}") from error
    by_seed: dict[int, dict[str, Row]] = {}
    for number, row in enumerate(rows, 2):
        try:
            if row["label"] and row["sha256"]:
                by_seed.setdefault(int(row["seed"]), {})[row["sha256"]] = Row(
                    row["path"],
                    row["label"],
                    row["predicted"],
                    float(row["probability"]),
                    row["correct"] == "1",
                    row.get("seen") or "",
                )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"line {number} of {str(folder / FILE)!r} is not a prediction ({error!r}), "
                f"expected the columns {', '.join(COLUMNS)}; repeat the run"
            ) from error
    if not by_seed:
        raise ValueError(
            f"the {len(rows)} images of {str(folder)!r} have no labels, expected ground truth; run "
            "predict with `labels=folder`"
        )
    return by_seed


def match(a: Mapping[int, Mapping[str, Row]], b: Mapping[int, Mapping[str, Row]]) -> list[Pair]:
    """The images that both runs tested, once per pair of seeds.

    If both runs have several seeds, equal seeds are paired. Otherwise the only seed of one run is
    paired with every seed of the other.

    Args:
      a, b: as `read_predictions` returns them.

    Raises:
      ValueError: the runs have no seed or no image in common, or an image has two labels.
    """
    several = len(a) > 1 and len(b) > 1
    seeds = [(s, t) for s in a for t in b if s == t or not several]
    pairs = [
        Pair(image, (s, t), row, b[t][image])
        for s, t in seeds
        for image, row in a[s].items()
        if image in b[t]
    ]
    if not pairs:
        n, m = (len(set().union(*run.values())) for run in (a, b))
        raise ValueError(
            f"the two runs have no test image in common: got {n} images of seeds {sorted(a)} and "
            f"{m} of seeds {sorted(b)}, expected files with equal content for the same seed; pass "
            "runs on the same data"
        )
    for pair in pairs:
        if pair.a.label.casefold() != pair.b.label.casefold():
            raise ValueError(
                f"{pair.a.path} has the label {pair.a.label!r} in one run and {pair.b.label!r} in "
                "the other, expected the same ground truth; pass runs with the same classes"
            )
    return pairs


# ---- the comparison ----


def accuracy_difference(
    a: Mapping[int, Mapping[str, Row]], b: Mapping[int, Mapping[str, Row]]
) -> dict[str, Any]:
    """The accuracy of A minus that of B on the images that both tested.

    Args:
      a, b: as `read_predictions` returns them.

    Returns:
      "difference", "difference_ci95" and "p", as in `compare`.

    Raises:
      ValueError: those of `match`.
    """
    return difference(*_sums(_by_image(match(a, b))))


def _by_image(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    by_image: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_image.setdefault(pair.image, []).append(pair)
    return by_image


def _sums(by_image: Mapping[str, Sequence[Pair]]) -> tuple[np.ndarray, np.ndarray]:
    """For each image, how often A is correct minus how often B is, and the number of tests."""
    tests = np.array([len(group) for group in by_image.values()])
    differences = np.array(
        [sum(pair.a.correct - pair.b.correct for pair in group) for group in by_image.values()]
    )
    return differences, tests


def difference(differences: np.ndarray, tests: np.ndarray | None = None) -> dict[str, Any]:
    """The difference of two accuracies on the same images.

    Args:
      differences: i[n], how often the first classifier is correct on an image minus how often the
        second is.
      tests: i[n], how often each image was tested; None for once.

    Returns:
      "difference", "difference_ci95" (`difference_interval`) and "p" (`exact_p`).
    """
    tests = np.ones(len(differences), int) if tests is None else tests
    return {
        "difference": float(differences.sum() / tests.sum()),
        "difference_ci95": list(difference_interval(differences, tests)),
        "p": exact_p(differences),
    }


def compare(run: reporting.Run, run_a: str, run_b: str) -> dict[str, Any]:
    """The paired comparison of two finished runs of `transfer`, `evaluate` or `predict`.

    Args:
      run: receives the images on which the two differ as figures.
      run_a, run_b: folders of the runs.

    Returns:
      The content of `result.json`: "n" (images), "tests" (pairs of predictions; more than "n" with
      several seeds), "a" and "b" (each with "run", "experiment", "arch", "data", "top1",
      "top1_ci95", "unpaired", the number of images that the other run lacks, and "trained_on", as
      `seen.report` returns it), "difference" (the accuracy of A minus that of B),
      "difference_ci95", "p", "counts" of tests, and "differ", one row per image on which one of the
      two is correct more often. With several seeds, "seeds": the "difference" of each and its
      `metrics.spread`.

    Raises:
      ValueError: a folder is missing or holds no predictions, or those of `match`.
    """
    read = []
    for name, folder in (("run_a", run_a), ("run_b", run_b)):
        if not folder:
            raise ValueError(f"`{name}` must have a value: the folder of a finished run")
        path = expanded(folder)
        read.append((*reporting.read_run(path), read_predictions(path)))
    pairs = match(read[0][2], read[1][2])
    by_image = _by_image(pairs)
    by_seeds: dict[tuple[int, int], list[int]] = {}
    counts: dict[str, int] = dict.fromkeys(("both", "only_a", "only_b", "neither"), 0)
    for pair in pairs:
        by_seeds.setdefault(pair.seeds, []).append(pair.a.correct - pair.b.correct)
        counts[list(counts)[2 * (not pair.a.correct) + (not pair.b.correct)]] += 1
    differences, tests = _sums(by_image)
    result: dict[str, Any] = {"n": len(by_image), "tests": len(pairs)}
    for key, (finished, old, by_seed) in zip("ab", read, strict=True):
        top1 = (counts["both"] + counts[f"only_{key}"]) / len(pairs)
        result[key] = {
            "run": str(finished.workdir),
            "experiment": finished.name,
            "arch": old.get("arch", ""),
            "data": old.get("data", ""),
            "top1": top1,
            "top1_ci95": list(metrics.wilson(round(top1 * len(by_image)), len(by_image))),
            "unpaired": len(set().union(*by_seed.values()) - set(by_image)),
            "trained_on": seen.report(
                run, (getattr(group[0], key).seen for group in by_image.values()), key.upper()
            ),
        }
    result |= {
        **difference(differences, tests),
        "counts": counts,
        "differ": _save_images(run, [list(by_image.values())[i] for i in _order(differences)]),
    }
    if len(by_seeds) > 1:
        of_seed = [float(np.mean(values)) for values in by_seeds.values()]
        result["seeds"] = {"difference": of_seed, **metrics.spread(of_seed)}
    return result


def _order(differences: np.ndarray) -> list[int]:
    """The images on which the runs differ, the largest differences first."""
    order = np.argsort(-np.abs(differences), kind="stable")
    return [int(i) for i in order if differences[i]]


def _save_images(run: reporting.Run, groups: Sequence[Sequence[Pair]]) -> list[dict[str, Any]]:
    """One row per image; the first of each run have a "figure", if their file is unchanged."""
    rows, figures = [], {"a": 0, "b": 0}
    for group in groups:
        correct = {"a": sum(p.a.correct for p in group), "b": sum(p.b.correct for p in group)}
        better = max(correct, key=lambda key: correct[key])
        pair = next(p for p in group if p.a.correct - p.b.correct == (1 if better == "a" else -1))
        row: dict[str, Any] = {
            "sha256": pair.image,
            "path": pair.a.path,
            "label": pair.a.label,
            "tests": len(group),
            "better": better,
        }
        for key, one in (("a", pair.a), ("b", pair.b)):
            row[key] = {
                "predicted": one.predicted,
                "probability": one.probability,
                "correct": correct[key],
            }
        if figures[better] < PAGE_IMAGES and (image := _thumbnail(pair)) is not None:
            figures[better] += 1
            row["figure"] = run.relative(run.figure(Path(pair.a.path).stem, image))
        rows.append(row)
    return rows


def _thumbnail(pair: Pair) -> np.ndarray | None:
    """The image, uint8[h w 3]; None if neither path leads to the file that was tested."""
    for path in (pair.a.path, pair.b.path):
        try:
            if content_hash(path) == pair.image:
                return data.thumbnail(path, SIDE)
        except data.ImageError:
            continue
    return None
