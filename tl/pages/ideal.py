"""Sections of a page about ideal images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tl import data, reporting
from tl.models import Classifier
from tl.pages import common
from tl.reporting import Html
from tl.visualize import exemplars, render
from tl.visualize.grid import Cell, Settings, names_of
from tl.visualize.specs import OF_A_PHOTOGRAPH, ObjectiveSpec


def page(
    run: reporting.Run,
    clf: Classifier,
    cells: Sequence[Cell],
    how: Settings,
    found: render.Ideal,
    saved: np.ndarray,
    result: dict[str, Any],
    pictures: dict[ObjectiveSpec, exemplars.Top],
    photograph: np.ndarray | None,
) -> list[Html]:
    """The sections: each image large, how it came to be, what is said of it, and the way to make it again."""
    strips = []
    for i, (cell, row) in enumerate(zip(cells, result["images"], strict=True)):
        words = [
            f"total variation {row['tv']:.3f} (weight {cell.tv:g})",
            f"spectral slope {row['spectral_slope']:.2f}",
        ]
        if row["probability"] is None:
            words.insert(0, f"value {row['value']:.4g}" + (", a dead unit" if row["dead"] else ""))
        classes = cell.objective_spec.classes
        cards = [
            reporting.card(
                saved[i],
                title="ideal" if how.steps else "where a climb would begin",
                caption="; ".join(words),
                bars=common.bars(row["called"], classes),
                alt=f"the ideal image of {cell.objective_spec.word}",
            )
        ]
        if len(found.frames):
            film = reporting.animation(
                [found.start[i], *found.frames[:, i]], seconds=3.0, alt="the climb, from noise on"
            )
            cards.append(
                reporting.card(
                    film,
                    title="the climb",
                    caption=f"{how.steps} steps, {len(found.frames)} of them shown",
                )
            )
        if photograph is not None:
            about = (
                "whose activations are wanted"
                if cell.objective_spec.kind in OF_A_PHOTOGRAPH
                else "where the climb began"
            )
            cards.append(reporting.card(photograph, title="the photograph", caption=about))
        if row["judges"]:
            opinion = [reporting.Bar(arch, p) for arch, p in row["judges"].items()]
            text = reporting.note(
                f"How probable {cell.objective_spec.word} is to networks that took no part"
            )
            cards.append(
                reporting.tag(
                    "figure",
                    "card",
                    reporting.tag("figcaption", "title", "judges"),
                    text,
                    reporting.bars(opinion),
                )
            )
        if cell.objective_spec in pictures:
            real = reporting.contact_sheet(
                [_small(clf, path) for path, _ in pictures[cell.objective_spec]], columns=3
            )
            cards.append(
                reporting.card(
                    real, title="nine photographs", caption="that activate the same unit most"
                )
            )
        title = cell.objective_spec.word + (f", variation {cell.tv:g}" if len(how.tv) > 1 else "")
        strips.append(
            reporting.strip(
                cards, title=title + (f", noise {cell.replicate}" if how.count > 1 else "")
            )
        )
    names = names_of(how, [cell.objective_spec for cell in cells])
    seen = " and ".join(names) or "no transform"
    lead = (
        f"{clf.arch} climbed its own objective for {how.steps} steps in {how.parameterization} form with {how.optimizer}, seen "
        f"through {seen}. What it looks like comes from the network alone. Probabilities are of the saved PNG."
    )
    sections = [reporting.section("Ideal images", *strips, text=lead)]
    mean, photos = result["judged_by"]["mean"], result["photographs"]
    figures: dict[str, object] = {"images": len(cells)}
    own = [row["probability"] for row in result["images"] if row["probability"] is not None]
    figures |= {"own network, mean": reporting.percent(float(np.mean(own)))} if own else {}
    figures |= {"other networks, mean": reporting.percent(mean)} if mean is not None else {}
    parts = [reporting.numbers(figures)]
    if photos:
        tv, slope = photos["tv"], photos["spectral_slope"]
        parts.append(
            reporting.note(
                f"{photos['n']} photographs at this size have a total variation of {tv['mean']:.3f} ({tv['low']:.3f} to "
                f"{tv['high']:.3f}) and a spectral slope of {slope['mean']:.2f} ({slope['low']:.2f} to {slope['high']:.2f})."
            )
        )
    if "diversity" in result:
        rows = [
            (each["target"], each["tv_weight"], each["diversity"]) for each in result["diversity"]
        ]
        caption = f"One less the mean cosine of features of {result['diversity'][0]['by']}: 0 where images are alike"
        parts.append(
            reporting.table(
                rows, ["target", "weight of variation", "diversity over noises"], caption=caption
            )
        )
    sections.append(reporting.section("In numbers", *parts))
    command = re.sub(r"^.*-m experiments\.", "./launch.sh ", str(run.config["command"]))
    again = reporting.tag("p", "", reporting.tag("code", "", command))
    weights = {"tv": sorted({cell.tv for cell in cells}), "size": saved.shape[1], "names": names}
    chosen = [(name, _told(value)) for name, value in {**how._asdict(), **weights}.items()]
    text = "The same seed gives the same image, to the last bit."
    sections.append(
        reporting.section(
            "Make it again", again, reporting.table(chosen, ["setting", "value"]), text=text
        )
    )
    return sections


def _told(value: Any) -> str:
    """A setting as a reader takes it."""
    if value is None:
        return "the objective's own"
    return ", ".join(map(_told, value)) or "none" if isinstance(value, list | tuple) else f"{value}"


def _small(clf: Classifier, path: data.Source) -> np.ndarray:
    return clf.with_pixels(size=96, crop=1.0).prepare(data.decode(path))
