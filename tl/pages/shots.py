"""The page of `shots`: learning curves, their extrapolation, and suspicious labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tl import reporting
from tl.labels.names import counted
from tl.pages import common
from tl.reporting import Html, percent

# Exponents below this are a curve that hardly falls: tenfold the images reduce the error by less
# than 11 %. Chosen, not tuned.
FLAT = 0.05


def page(result: Mapping[str, Any], folder: Path) -> common.Page:
    """The page of `shots`.

    Args:
      result: as `tl.evaluation.shots.shots` returns it.
      folder: the run's folder.
    """
    sections = [_curves(result), _differences(result), _extrapolation(result)]
    if result["label_noise"]:
        sections.append(_noise(result["label_noise"], folder))
    sections.append(reporting.skipped(result["skipped"]))
    lead = (
        f"Accuracy on {result['n']} test images of {result['data']} after a fit to few images of "
        f"each of {len(result['classes'])} classes; features of {result['arch']}, "
        f"{counted(len(result['seeds']), 'draw')}. {_best(result)}"
    )
    return common.Page("How many labels?", lead, [part for part in sections if part])


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The accuracies per method, the extrapolation and the label noise as sentences."""
    for method, rows in _by_method(result).items():
        yield f"{method}: " + ", ".join(f"{row['shots']}: {_mean(row)} %" for row in rows)
    yield from map(extrapolation_sentence, result["extrapolation"])
    if result["label_noise"]:
        yield noise_sentence(result["label_noise"])


def extrapolation_sentence(row: Mapping[str, Any]) -> str:
    """What the power law of a method says, and where it cannot tell."""
    name, goal = row["method"], percent(row["accuracy"])
    low, high = row["ci95"] or (None, None)
    interval = f" (95 % interval {_count(low or 0)} to {_count(high or 0)})" if row["ci95"] else ""
    number = counted(_count(row["shots"] or 0), "image")
    if row["accuracy"] == 1.0:
        return f"{name}: no test error is left to halve."
    if row["shots"] is not None and (high is not None or not row["ci95"]):
        return f"{name}: about {number} per class for {goal}{interval}."
    if row["shots"] is not None:
        return (
            f"{name}: about {number} per class for {goal}, but the fit gives "
            f"no upper bound (95 % interval from {_count(low or 0)})."
        )
    reason = "the curve reaches it only far outside the measured range"
    if row["c"] >= 1.0 - row["accuracy"]:
        reason = f"its error levels off at {percent(row['c'])}"
    elif row["b"] < FLAT:
        reason = f"its error hardly falls with more images (exponent {row['b']:.2f})"
    bound = f"; the interval begins at {_count(low)}" if low is not None else ""
    return (
        f"{name}: the fit cannot tell how many images per class give {goal}, because "
        f"{reason}{bound}."
    )


def noise_sentence(noise: Mapping[str, Any]) -> str:
    """The label noise in a sentence."""
    return (
        f"Label noise: about {common.share_with_interval(noise, 'share')} of {noise['n']} labels "
        f"contradict a cross-validated probe; {len(noise['images'])} images are suspicious."
    )


def _count(value: float) -> int:
    """A number of images per class with two digits, rounded up; at least 1."""
    return max(1, math.ceil(float(f"{value:.2g}")))


def _by_method(result: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        rows.setdefault(row["method"], []).append(row)
    return rows


def _mean(row: Mapping[str, Any]) -> str:
    """Mean and deviation over the draws, in percent: "90.1 ± 1.2"."""
    deviation = f" \N{PLUS-MINUS SIGN} {100 * row['std']:.1f}" if row["ci95"] else ""
    return f"{100 * row['mean']:.1f}{deviation}".replace(" ", "\N{NO-BREAK SPACE}")


def _points(row: Mapping[str, Any] | None) -> str:
    """A difference in points with its interval."""
    if row is None:
        return "\N{EN DASH}"
    value = f"{100 * row['mean']:+z.1f}"
    if row["ci95"] is None:
        return value
    low, high = (100 * bound for bound in row["ci95"])
    return f"{value} ({low:+z.1f} to {high:+z.1f})"


def _best(result: Mapping[str, Any]) -> str:
    most = max(row["shots"] for row in result["rows"])
    row = max((r for r in result["rows"] if r["shots"] == most), key=lambda r: r["mean"])
    laws = [
        extrapolation_sentence(r) for r in result["extrapolation"] if r["method"] == row["method"]
    ]
    return " ".join([f"Best mean with {most} per class: {row['method']}, {_mean(row)} %.", *laws])


def _grid(rows: Mapping[str, Sequence[Mapping[str, Any]]], cell: Any, caption: str) -> Html:
    """One row per number of images per class, one column per method."""
    per_number = zip(*rows.values(), strict=True)
    cells = [[of_number[0]["shots"], *map(cell, of_number)] for of_number in per_number]
    return reporting.table(cells, ["per class", *rows], caption=caption)


def _curves(result: Mapping[str, Any]) -> Html:
    rows = _by_method(result)
    clip = lambda share: 100 * min(max(share, 0.0), 1.0)
    chart = reporting.curves(
        {m: [(row["shots"], 100 * row["mean"]) for row in of] for m, of in rows.items()},
        bands={
            m: [(row["shots"], clip(row["ci95"][0]), clip(row["ci95"][1])) for row in of]
            for m, of in rows.items()
            if of[0]["ci95"]
        },
        x_label="training images per class",
        y_label="test accuracy (%)",
        log_x=True,
    )
    seconds = [[m, max(row["seconds"] for row in of)] for m, of in rows.items()]
    text = (
        "Bands are the 95 % interval of the mean, Student's t over the draws. They do not cover "
        "the choice of the test images, which are the same for all draws."
    )
    caption = "Test accuracy (%): mean and standard deviation over the draws"
    return reporting.section(
        "Learning curves",
        chart,
        _grid(rows, _mean, caption),
        reporting.table(
            seconds, ["method", "seconds"], caption="Time of one fit to the most images"
        ),
        text=text,
    )


def _differences(result: Mapping[str, Any]) -> Html:
    """The paired differences to the reference; empty without it."""
    others = {m: of for m, of in _by_method(result).items() if of[0]["difference"]}
    if not others:
        return Html("")
    text = "Each draw is compared with the probe on the same images; an interval without 0 decides."
    caption = "Accuracy minus that of the probe, in points (95 % t interval)"
    return reporting.section(
        "Compared with the probe",
        _grid(others, lambda r: _points(r["difference"]), caption),
        text=text,
    )


def _extrapolation(result: Mapping[str, Any]) -> Html:
    """The power laws in words and numbers; empty without any."""
    rows = result["extrapolation"]
    if not rows:
        return Html("")
    law = lambda r: f"{r['c']:.3f} + " * (r["c"] > 0) + f"{r['a']:.3f} k^-{r['b']:.2f}"
    exponent = lambda r: "{:.2f} to {:.2f}".format(*r["b_ci95"]) if r["b_ci95"] else "\N{EN DASH}"
    check = lambda r: (
        f"{percent(_share(r['check']['predicted']))} / {percent(r['check']['measured'])}"
        if r["check"]
        else "\N{EN DASH}"
    )
    table = reporting.table(
        [[r["method"], law(r), exponent(r), check(r)] for r in rows],
        ["method", "error at k per class", "exponent (95 %)", "largest k predicted / measured"],
        caption="Power laws",
    )
    finest = percent(1 / result["n"])
    text = "\n\n".join(
        [
            *map(extrapolation_sentence, rows),
            "Intervals are of a bootstrap over the draws and the test images. The last column "
            "predicts the accuracy at the largest number of images from the smaller ones, which "
            f"says how far to trust the fit. One test image is {finest} of accuracy.",
        ]
    )
    return reporting.section("How many for more?", _laws(result), table, text=text)


def _laws(result: Mapping[str, Any]) -> Html:
    """The fitted curves up to four times the largest measured number."""
    sizes = sorted({row["shots"] for row in result["rows"]})
    sizes += [2 * sizes[-1], 4 * sizes[-1]]
    accuracy = lambda row, k: 100 * _share(1 - row["c"] - row["a"] * k ** -row["b"])
    return reporting.curves(
        {row["method"]: [(k, accuracy(row, k)) for k in sizes] for row in result["extrapolation"]},
        x_label="training images per class",
        y_label="accuracy of the fits (%)",
        log_x=True,
    )


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _noise(noise: Mapping[str, Any], folder: Path) -> Html:
    cards = [
        reporting.card(
            common.figure(folder, row["image"]),
            title=f"{row['label']}, or {row['other']}?",
            caption=f"{row['other']} {percent(row['probability'])}, {row['label']} "
            f"{percent(row['of_label'])}; {Path(row['path']).name}",
        )
        for row in noise["images"]
        if "image" in row
    ]
    text = (
        f"{noise_sentence(noise)} Each image was held out of the fit that judges it. A suspicious "
        "image has a wrong label, or is hard for these features: look before you change a label."
    )
    return reporting.section("Suspicious labels", reporting.gallery(cards), text=text)
