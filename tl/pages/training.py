"""The page of `transfer`, and its sections about training.

Every function takes the JSON-ready result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages import common, evaluation
from tl.pages.common import Page
from tl.reporting import Html, percent

# Column titles for keys of `tl.training.rules.table`; other keys are their own titles.
GROUP_TITLES = {
    "leaves": "arrays",
    "params": "parameters",
    "lr": "learning rate",
    "decay": "weight decay",
    "bn": "BatchNorm",
    "bytes": "memory (bytes)",
}


def page(result: Mapping[str, Any], folder: Path) -> Page:
    """The page of `transfer`.

    Args:
      result: as `tl.evaluation.transfer.transfer` returns it; "tune" and "recipe" are optional.
      folder: the run's folder.
    """
    test = result["test"]
    tune = result.get("recipe") or result.get("tune")
    tune = f" ({tune})" if tune else ""
    lead = (
        f"{result['arch']}{tune}, trained on {len(result['classes'])} classes of {result['data']}, "
        f"classifies {percent(test['top1'])} of {test['n']} test images correctly."
    )
    if parts := result.get("parts"):
        lead += f" {parts[0].upper()}{parts[1:]}."
    return Page("Transfer learning", lead, sections(result, folder))


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The figures of `transfer` as text for the terminal."""
    test = result["test"]
    low, high = map(percent, test["top1_ci95"])
    top3 = common.share_with_interval(test, "top3")
    top3 = f", top-3 {top3}" if common.shows_top3(result["classes"]) else ""
    majority = f", majority class {percent(result['majority'])}" if result["majority"] else ""
    yield (
        f"test top-1 {percent(test['top1'])} (95 % interval {low} to {high}, n = {test['n']})"
        f"{top3}{majority}"
    )
    yield from evaluation.spread_lines(result)
    if "choice" in result:
        yield f"recipe: {result['choice']['why']}"
    yield (
        f"frozen leaves unchanged: {result['frozen_unchanged']}; skipped {len(result['skipped'])}; "
        f"model in {result['model']}"
    )
    yield from evaluation.robust_lines(result.get("robust", {}))
    if "test_tta" in result:
        yield f"over the views: top-1 {common.share_with_interval(result['test_tta'], 'top1')}"
        yield from evaluation.spread_lines(result["test_tta"])


def sections(result: Mapping[str, Any], folder: Path) -> list[Html]:
    """Sections on learning rate, training and attack, and all sections of `pages.evaluation`."""
    return [
        *choice_section(result),
        *rate_section(result),
        *training_section(result),
        *([evaluation.robust_section(result["robust"])] if "robust" in result else []),
        *evaluation.sections({**result, **result["test"]}, folder),
    ]


def choice_section(result: Mapping[str, Any]) -> list[Html]:
    """The recipes in cross-validation; empty without a choice."""
    rows = result.get("choice", {}).get("rows", [])
    if not rows:
        return []
    drawn = [
        [
            row["name"],
            percent(row["top1"]),
            f"{100 * row['difference']:+.1f} points" if "p" in row else "",
            f"{row['p']:.2g}" if "p" in row else "",
            row.get("against", ""),
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    header = ["recipe", "accuracy", "difference", "p", "compared with", "seconds"]
    text = f"Chosen: {result['choice']['why']}."
    return [reporting.section("Choice of the recipe", reporting.table(drawn, header), text=text)]


def rate_section(result: Mapping[str, Any]) -> list[Html]:
    """The curve of the learning-rate finder; empty if it did not run."""
    if "rates" not in result:
        return []
    rate, curve = result["rates"]["rate"], result["rates"]["curve"]
    points = {"smoothed": [(math.log10(x), loss) for x, loss in curve]}
    drawn = reporting.curves(points, x_label="log10 of the learning rate", y_label="loss (nats)")
    text = f"Chosen: {rate:.2g}, a tenth of the rate with the smallest smoothed loss."
    return [reporting.section("Learning-rate search", drawn, text=text)]


def training_section(result: Mapping[str, Any]) -> list[Html]:
    """Trained groups, and loss, accuracy and learning rate per epoch; empty for a probe."""
    history = result["history"]
    if not history:
        return []

    def drawn(y_label: str, **lines: str) -> Html:
        points = {
            name.replace("_", " "): [
                (float(x), math.nan if row.get(key) is None else row[key])
                for x, row in enumerate(history, 1)
            ]
            for name, key in lines.items()
            if key in history[0]
        }
        return reporting.curves(points, x_label="epoch", y_label=y_label)

    curves = [
        drawn(
            "loss (nats)",
            training="loss",
            validation="val_nll",
            validation_under_attack="val_robust_nll",
        ),
        drawn(
            "accuracy",
            training="accuracy",
            validation="val_top1",
            validation_under_attack="val_robust_top1",
        ),
        drawn("learning rate of the head", rate="lr"),
    ]
    figures = {
        "trained parameters": f"{result['trainable_params']:,}",
        "steps": result["steps"],
        "inputs": result["feed"],
    }
    if result["images_per_second"]:
        figures["images per second"] = f"{result['images_per_second']:.1f}"
        figures["time waiting for images"] = percent(min(result["waiting_share"], 1.0))
    groups = result["groups"]
    header = [GROUP_TITLES.get(key, str(key)) for key in groups[0]]
    table = reporting.table([list(row.values()) for row in groups], header)
    return [reporting.section("Training curves", reporting.numbers(figures), table, *curves)]
