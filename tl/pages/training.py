"""Sections of a page about a training run."""

from __future__ import annotations

from typing import Any

import numpy as np

from tl import reporting
from tl.reporting import Html
from tl.training import fit, rate_finder


def rate_section(rates: rate_finder.Rates | None) -> list[Html]:
    """The learning-rate finder's plot."""
    if rates is None:
        return []
    points = {"smoothed": [(float(np.log10(rate)), loss) for rate, loss in rates.curve]}
    drawn = reporting.curves(points, x_label="log10 of the learning rate", y_label="loss, nats")
    text = f"Taken: {rates.rate:.2g}, a tenth of the rate at which the loss is least."
    return [reporting.section("Finding a learning rate", drawn, text=text)]


def training_sections(fitted: fit.FitResult, result: dict[str, Any]) -> list[Html]:
    """Curves of loss, accuracy and rate, over the epochs of all phases."""
    if not fitted.history:
        return []
    at = [float(number) for number in range(1, len(fitted.history) + 1)]

    def drawn(y_label: str, **named: str) -> Html:
        lines = {
            name.replace("_", " "): [
                (x, row[key]) for x, row in zip(at, fitted.history, strict=True)
            ]
            for name, key in named.items()
            if key in fitted.history[0]
        }
        return reporting.curves(lines, x_label="epoch", y_label=y_label)

    parts = [
        drawn(
            "loss, nats",
            training="loss",
            validation="val_nll",
            validation_attacked="val_robust_nll",
        ),
        drawn(
            "accuracy",
            training="accuracy",
            validation="val_top1",
            validation_attacked="val_robust_top1",
        ),
        drawn("learning rate of the head", rate="lr"),
    ]
    figures = {
        "trained parameters": f"{result['trainable_params']:,}",
        "steps": fitted.steps,
        "read from": fitted.source,
    }
    if fitted.seconds:
        figures["pictures a second"] = f"{result['images_per_second']:.1f}"
        figures["time spent waiting for pictures"] = reporting.percent(
            min(result["waiting_share"], 1.0)
        )
    groups = reporting.table([list(row.values()) for row in fitted.groups], list(fitted.groups[0]))
    return [reporting.section("Training", reporting.numbers(figures), groups, *parts)]
