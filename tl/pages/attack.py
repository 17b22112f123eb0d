"""Sections of a page about adversarial images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tl import inference, metrics, pixels, reporting
from tl.attacks import sanity_checks
from tl.evaluation.attacked import AttackContext, AttackEvaluation
from tl.reporting import Html

SHOWN = 12  # pictures on the page; all are in result.json


def sections(
    job: AttackContext, curve: Sequence[tuple[float, AttackEvaluation]], norm: str, target: str
) -> list[Html]:
    """Rates at each eps, with intervals, and the curve where there are several."""
    parts = []
    for _, judged in curve:
        low, high = judged.success_ci95
        parts.append(
            reporting.interval(
                judged.success_rate, low, high, label=f"success at eps {judged.word}"
            )
        )
    rows = [
        [
            judged.word,
            f"{reporting.percent(judged.robust_accuracy)} ({' to '.join(map(reporting.percent, judged.robust_ci95))})",
            *(f"{np.median(values):.4g}" for values in judged.distance.values()),
            f"{judged.steps.mean():.1f}",
        ]
        for _, judged in curve
    ]
    measures = [f"median {name}" for name in curve[0][1].distance]
    parts.append(
        reporting.table(rows, ["eps", "accuracy under attack", *measures, "steps a picture"])
    )
    text = (
        f"Of {job.of} photographs the network names {len(job.paths)} rightly; success is to have one of those called "
        f"{target}. Accuracy counts all {job.of}. Distances in {norm.capitalize()} and others from the photograph, in [0, 1] "
        "pixels."
    )
    found = [reporting.section("Success and accuracy under attack", *parts, text=text)]
    if len(curve) > 1:
        scale = 255 if norm == "linf" else 1
        ordered = sorted(curve, key=lambda pair: pair[0])
        series = {"robust accuracy": lambda j: j.robust_accuracy}
        series |= {"95 %, from": lambda j: j.robust_ci95[0], "to": lambda j: j.robust_ci95[1]}
        begin = len(job.paths) / job.of
        drawn = {
            name: [
                *([(0.0, begin)] if name == "robust accuracy" else []),
                *((r * scale, value(j)) for r, j in ordered),
            ]
            for name, value in series.items()
        }
        label = f"eps ({norm}{', levels of 255' if scale == 255 else ''})"
        found.append(
            reporting.section(
                "The curve", reporting.curves(drawn, x_label=label, y_label="accuracy under attack")
            )
        )
    return found


def panel_section(lines: Sequence[sanity_checks.Check]) -> Html:
    """The honesty panel."""
    rows = [
        ["pass" if line.passed else "FAIL", line.name, f"{line.found:.4g}", line.wanted]
        for line in lines
    ]
    text = "Is an attack's failure the network's strength, or the attack's weakness?"
    return reporting.section(
        "Honesty panel",
        reporting.table(rows, ["", "what should hold", "found", "wanted"]),
        text=text,
    )


def treatments_section(curve: Sequence[tuple[float, AttackEvaluation]]) -> Html:
    """What is left of the success once pictures were compressed, resized, cropped."""
    words = [judged.word for _, judged in curve]
    rows = [
        [name, *(reporting.percent(judged.after[name]["success"]) for _, judged in curve)]
        for name in curve[0][1].after
    ]
    text = "Share of pictures that still succeed after going through real files and filters."
    return reporting.section(
        "After JPEG, resizing, cropping",
        reporting.table(rows, ["", *(f"eps {w}" for w in words)]),
        text=text,
    )


def strips(job: AttackContext, judged: AttackEvaluation) -> list[Html]:
    """The first pictures: photograph, adversarial picture and amplified difference side by side."""
    table, before, after = (
        inference.class_table(job.clf),
        metrics.softmax(job.clean),
        metrics.softmax(judged.logits),
    )
    shown = []
    for i, path in enumerate(job.paths[:SHOWN]):
        was, now = int(before[i].argmax()), int(after[i].argmax())
        change = judged.images[i] - pixels.to_images01(job.originals[i])
        levels = float(np.abs(change).max()) * 255
        factor = max(1, int(127 / max(levels, 1.0)))
        classes = dict.fromkeys([was, now, *np.argsort(-after[i])[:2].tolist()])
        moves = reporting.before_after(
            [(table.display(j), float(before[i, j]), float(after[i, j])) for j in classes]
        )
        named = lambda j, p: f"{table.display(j)}, {reporting.percent(float(p[j]))}"
        difference = f"amplified {factor} times; largest change {levels:.3g} of 255 levels"
        cards = [
            reporting.card(job.originals[i], title="photograph", caption=named(was, before[i])),
            reporting.card(
                judged.images[i], title="adversarial", caption=named(now, after[i]), below=moves
            ),
            reporting.card(
                reporting.amplify(change, factor), title="difference", caption=difference
            ),
        ]
        shown.append(reporting.strip(cards, title=path.name))
    return shown
