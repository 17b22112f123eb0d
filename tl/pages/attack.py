"""The page of an attack: rates at each eps, sanity checks, and images next to their originals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tl import reporting
from tl.pages.common import Page, figure, share_with_interval
from tl.reporting import Html

OF_CORRECT = "robust_accuracy_of_correct"
MEASURES = ("linf", "l2", "l1", "psnr", "ssim", "lpips")
# Titles for keys of `result["checks"]`; other keys are their own titles.
CHECK_TITLES = {
    "share of zero gradients": "share of images with a zero gradient",
    "logits depend on the picture": "logits depend on the image",
    "any change at all (Linf, eps = 1) reaches all": "success rate at eps = 1 in Linf",
    "any change at all (L2, black to white) reaches all": "success rate at the largest eps in L2",
    "noise of the same norm does less": "random noise of the same norm succeeds less often",
    "doubled steps change little": "twice the steps change the success rate little",
    "success rate agrees with the run's": "success rate of the checked attack is the run's",
    "default steps and step size add little": "the default steps and step size add little success",
    "black-box no better than white-box": "share of images that only a black-box attack solves",
    "every picture lies within eps": "all images lie within eps",
    "two calls of this run agree": "two calls of the network on saved images agree",
    "files hold what was made, to the bit": "files hold the attack's images exactly",
}


def page(result: Mapping[str, Any], folder: Path) -> Page:
    """The page of an attack.

    Args:
      result: as `tl.evaluation.attacked.AttackEvaluation.json` returns it, in JSON types.
      folder: the run's, with `figures/`.
    """
    goal = f" as {result['target']}" if result.get("target") else ""
    eps = max(result["eps"], key=result["eps"].get) if "eps" in result else [*result["steps"]][-1]
    lead = (
        f"{result.get('arch', 'the network')} {'' if goal else 'mis'}classifies "
        f"{reporting.percent(result['success_rate'][eps])} of {result['clean_correct']} images"
        f"{goal} after a perturbation within eps = {eps}."
    )
    if result.get("of", "file") != "file":
        saved = reporting.percent(result["files"]["success_rate"][eps])
        lead += f" These are float images; of the saved PNG files it is {saved}."
    sections = [
        _rates(result),
        *_curve(result),
        *_sanity_checks(result),
        _postprocessing(result),
        _images(result, folder),
        _skipped(result),
    ]
    return Page("Adversarial examples", lead, sections)


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Success rate and accuracy under attack at each eps as text for the terminal."""
    for eps in result["eps"]:
        for of, rates in {result["of"]: result, "file": result["files"]}.items():
            yield (
                f"eps {eps}, {of}s: {reporting.percent(rates['success_rate'][eps])} of "
                f"{result['clean_correct']} succeed "
                f"({' to '.join(map(reporting.percent, rates['success_ci95'][eps]))}), accuracy "
                f"under attack {reporting.percent(rates['robust_accuracy'][eps])} of all "
                f"{result['n']}, {reporting.percent(rates[OF_CORRECT][eps])} of those classified "
                "correctly"
            )


def _rates(result: Mapping[str, Any]) -> Html:
    """Success rate and accuracy at each eps, with intervals."""
    intervals, rows, distances = [], [], []
    of = result.get("of", "file")
    rates_of = {of: result}
    if of != "file":
        rates_of["file"] = result["files"]
    for name, rates in rates_of.items():
        for eps, rate in rates["success_rate"].items():
            low, high = rates["success_ci95"][eps]
            label = f"success rate at eps {eps}, {name}s"
            intervals.append(reporting.Interval(label, rate, low, high))
            accuracy = reporting.percent(rates["robust_accuracy"][eps])
            bounds = " to ".join(map(reporting.percent, rates["robust_ci95"][eps]))
            medians = [
                f"{np.median(values):.4g}" for values in _distances(result, eps, name).values()
            ]
            steps = result["steps"][eps] / result["clean_correct"]
            row = {key: rates.get(key, {}).get(eps) for key in (OF_CORRECT, f"{OF_CORRECT}_ci95")}
            of_correct = "" if row[OF_CORRECT] is None else share_with_interval(row, OF_CORRECT)
            rows.append([eps, name, f"{accuracy} ({bounds})", of_correct, f"{steps:.1f}"])
            distances.append([eps, name, *medians])
    accuracies = ["accuracy under attack", "of those classified correctly"]
    header = ["eps", "evaluated", *accuracies, "steps per image"]
    measures = ["eps", "evaluated", *_distances(result, next(iter(result["steps"])), of)]
    goal = result.get("target") or "anything but the true class"
    text = (
        f"The network classifies {result['clean_correct']} of {result['n']} images correctly "
        f"without an attack. An attack succeeds if one of these is classified as {goal}. Accuracy "
        f"under attack is a share of all {result['n']} images, and the next column a share of the "
        f"{result['clean_correct']}. Distances to the original are in [0, 1] pixel units."
    )
    if of != "file":
        text += (
            " The attack was not restricted to 8-bit images. Its float images and the PNG files, "
            "which round them, are evaluated separately. Rounding may return a file to the "
            "original, or move it beyond eps."
        )
    return reporting.section(
        "Success rate and accuracy under attack",
        reporting.intervals(intervals),
        reporting.table(rows, header),
        reporting.table(
            distances,
            measures,
            caption="Median over all attacked images, also those on which the attack fails",
        ),
        text=text,
    )


def _distances(result: Mapping[str, Any], eps: str, of: str) -> dict[str, list[float]]:
    """Distance name -> values over the images at this eps; JSON's null is an infinite PSNR.

    Args:
      result: of the attack.
      eps: a key of `result["eps"]`.
      of: "file" or "float image".
    """
    rows = [_numbers(row, of) for row in result["images"] if row["eps"] == eps]
    finite = lambda value: float("inf") if value is None else value
    return {name: [finite(row[name]) for row in rows] for name in MEASURES if name in rows[0]}


def _numbers(row: Mapping[str, Any], of: str) -> Mapping[str, Any]:
    """`to`, `probability` and distances of an image, of its "file" or "float image"."""
    return row["file"] if of == "file" and "file" in row else row


def _curve(result: Mapping[str, Any]) -> list[Html]:
    """Accuracy over eps; empty for a single eps."""
    if len(result["robust_accuracy"]) < 2 or "eps" not in result:
        return []
    scale = 255 if result["norm"] == "linf" else 1
    ordered = sorted(result["eps"], key=result["eps"].get)
    point = lambda eps, value: (result["eps"][eps] * scale, value)
    clean = (0.0, result["clean_correct"] / result["n"])
    accuracy = [point(eps, result["robust_accuracy"][eps]) for eps in ordered]
    series = {"accuracy under attack": [clean, *accuracy]}
    for i, name in enumerate(("95 % interval, lower bound", "95 % interval, upper bound")):
        series[name] = [point(eps, result["robust_ci95"][eps][i]) for eps in ordered]
    label = f"eps ({result['norm']}{', levels of 255' if scale == 255 else ''})"
    of = f"accuracy under attack, {result.get('of', 'file')}s"
    chart = reporting.curves(series, x_label=label, y_label=of)
    return [reporting.section("Accuracy over eps", chart)]


def _sanity_checks(result: Mapping[str, Any]) -> list[Html]:
    rows = [
        [
            "pass" if check["passed"] else "FAIL",
            CHECK_TITLES.get(name, name),
            "not finite" if check["found"] is None else f"{check['found']:.4g}",
            check["wanted"],
        ]
        for name, check in result["checks"].items()
    ]
    text = (
        "A failed check means that the attack may be too weak to measure robustness (Carlini "
        "et al. 2019, arXiv:1902.06705)."
    )
    table = reporting.table(rows, ["result", "check", "value", "expected"])
    return [reporting.section("Sanity checks of the attack", table, text=text)]


def _postprocessing(result: Mapping[str, Any]) -> Html:
    """Success rate after compression, resizing and cropping."""
    names = next(iter(result["after"].values()))
    rows = [
        [name, *(reporting.percent(after[name]["success"]) for after in result["after"].values())]
        for name in names
    ]
    header = ["postprocessing", *(f"eps {eps}" for eps in result["after"])]
    return reporting.section(
        "Success rate after JPEG, resizing and cropping",
        reporting.table(rows, header),
        text="Share of the saved PNG files that still succeed after postprocessing.",
    )


def _images(result: Mapping[str, Any], folder: Path) -> Html:
    """Original, adversarial image and amplified difference, where their figures were saved."""
    strips = [_strip(row, folder) for row in result["images"] if "original" in row]
    eps = max(result["eps"], key=result["eps"].get) if "eps" in result else ""
    text = f"Within eps = {eps} ({result['norm']}) of the original. Images are at true pixels."
    if result.get("of", "file") != "file":
        text += " Differences and bars are of the float images, which the adversarial PNGs round."
    return reporting.section("Images", *strips, text=text)


def _strip(row: Mapping[str, Any], folder: Path) -> Html:
    classes = [(c["name"], c["before"], c["after"]) for c in row["classes"]]
    caption = lambda name, probability: f"{name}, {reporting.percent(probability)}"
    file = _numbers(row, "file")
    adversarial = caption(file["to"], file["probability"])
    if row.get("of", "file") != "file":
        adversarial = f"file: {adversarial}; {row['of']}: {caption(row['to'], row['probability'])}"
    change = (
        f"amplified {row['amplified']} times; largest change {row['linf'] * 255:.3g} of 255 levels"
    )
    cards = [
        reporting.card(
            figure(folder, row["original"]),
            title="original",
            caption=caption(row["from"], row["classes"][0]["before"]),
        ),
        reporting.card(
            figure(folder, row["png"]),
            title="adversarial",
            caption=adversarial,
            below=reporting.before_after(classes),
        ),
        reporting.card(figure(folder, row["difference"]), title="difference", caption=change),
    ]
    return reporting.strip(cards, title=Path(row["path"]).name)


def _skipped(result: Mapping[str, Any]) -> Html:
    reason = "the network misclassifies it without an attack"
    wrong = [{"path": path, "why": reason} for path in result["wrong_before"]]
    return reporting.skipped([*result["skipped"], *wrong])
