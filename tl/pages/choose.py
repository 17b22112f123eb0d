"""The page of `choose`: networks ranked for a data set, with their scores and their speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages import common
from tl.reporting import Html

ACCURACIES = ("logistic", "ridge", "knn")


def page(result: Mapping[str, Any], folder: Path) -> common.Page:
    """The page of `choose`.

    Args:
      result: as `tl.evaluation.choose.choose` returns it.
      folder: the run's folder.
    """
    rows = result["rows"]
    lead = " ".join(lines(result))
    sections = [_accuracies(rows), _table(result), _front(rows), *_truth(result)]
    return common.Page("Choose a network", lead, [*sections, reporting.skipped(result["skipped"])])


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The recommendation as sentences."""
    rows = {row["name"]: row for row in result["rows"]}
    recommended, best = rows[result["recommended"]], rows[result["best"]]
    low, high = recommended["rank_ci95"]
    accuracy = common.share_with_interval(recommended, "logistic")
    yield (
        f"Recommended for {result['data']} ({result['n']} images, {result['classes']} classes): "
        f"{recommended['name']}, with {accuracy} of held-out images correct; rank {low} to {high} "
        f"of {len(rows)} (95 % interval)."
    )
    if recommended is not best:
        ratio = recommended["images_per_second"] / best["images_per_second"]
        yield (
            f"It is within one standard error of the best, {best['name']}, and {ratio:.1f} times "
            "as fast."
        )
    if others := result["indistinguishable"]:
        yield f"These images do not distinguish {best['name']} from {', '.join(others)}."
    else:
        yield f"{best['name']} is better than every other candidate beyond the 95 % interval."
    if result.get("tau"):
        name, tau = max(result["tau"].items(), key=lambda item: item[1]["value"])
        low, high = tau["ci95"]
        yield (
            f"After training with tune={result['tune']}, the score that agrees most with the test "
            f"accuracies is {result['scores'][name]}: tau {tau['value']:.2f} ({low:.2f} to "
            f"{high:.2f})."
        )


def _accuracies(rows: Sequence[Mapping[str, Any]]) -> Html:
    chart = reporting.intervals(
        [reporting.Interval(row["name"], row["logistic"], *row["logistic_ci95"]) for row in rows]
    )
    text = (
        "Held-out accuracy of a logistic probe on frozen features, by cross-validation, with "
        "Wilson's interval. The order is that of the log-likelihood of the same predictions, "
        "which distinguishes networks of equal accuracy. All networks see the same images, so "
        "intervals that overlap do not mean that two networks are equal: see “behind the "
        "best” below."
    )
    return reporting.section("Held-out accuracy", chart, text=text)


def _table(result: Mapping[str, Any]) -> Html:
    ranking, scores = [], []
    for row in result["rows"]:
        between = "{:.3f} to {:.3f}".format(*row["behind_ci95"]) if row["rank"] > 1 else ""
        ranking.append(
            [
                row["name"],
                "{} to {}".format(*row["rank_ci95"]),
                f"{row['log_likelihood']:.3f}",
                between,
                f"{row['images_per_second']:.1f}",
                f"{row['seconds']:.1f}",
            ]
        )
        scores.append([row["name"], *(_value(row, name) for name in result["scores"])])
    text = (
        "rank: 95 % bootstrap interval over images. behind the best: interval of the difference "
        "of the mean log-likelihood. LEEP and NCE need the network's own head. Larger is better "
        "for every score; compare the values of different networks, not of different data sets."
    )
    header = ["network", "rank", "log-likelihood (nats)", "behind the best", "images/s"]
    return reporting.section(
        "All scores",
        reporting.table(ranking, [*header, "seconds for its scores"]),
        reporting.table(scores, ["network", *result["scores"].values()]),
        text=text,
    )


def _value(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return ""
    return reporting.percent(row[name]) if name in ACCURACIES else f"{row[name]:.3f}"


def _front(rows: Sequence[Mapping[str, Any]]) -> Html:
    points = {row["name"]: [(row["images_per_second"], 100 * row["logistic"])] for row in rows}
    fastest_first = sorted(rows, key=lambda row: -row["images_per_second"])
    front: list[tuple[float, float]] = []
    for row in fastest_first:
        if not front or 100 * row["logistic"] > front[-1][1]:
            front.append((row["images_per_second"], 100 * row["logistic"]))
    chart = reporting.curves(
        {"front": front, **points}, x_label="images per second", y_label="held-out accuracy (%)"
    )
    text = (
        "The front joins the networks that no other one exceeds in both. Speed is that of the "
        "forward pass in batches on this machine, without reading files."
    )
    return reporting.section("Accuracy and speed", chart, text=text)


def _truth(result: Mapping[str, Any]) -> list[Html]:
    if "tau" not in result:
        return []
    rows = [
        [row["name"], common.share_with_interval(row, "truth"), str(row["rank"])]
        for row in sorted(result["rows"], key=lambda row: -row["truth"])
    ]
    taus = [
        [
            result["scores"][name],
            f"{tau['value']:.2f}",
            " to ".join(f"{e:.2f}" for e in tau["ci95"]),
        ]
        for name, tau in sorted(result["tau"].items(), key=lambda item: -item[1]["value"])
    ]
    text = (
        f"Each network was trained with tune={result['tune']} and tested on {result['n_test']} "
        "images that no score used. tau is the weighted rank correlation of a score with these "
        "accuracies; its interval describes other test images. With few networks it is coarse."
    )
    parts = (
        reporting.table(rows, ["network", "test accuracy", "rank by score"]),
        reporting.table(taus, ["score", "tau", "95 % interval"]),
    )
    return [reporting.section("Agreement with trained networks", *parts, text=text)]
