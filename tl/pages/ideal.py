"""The page of ideal images."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tl import reporting
from tl.pages import common
from tl.pages.common import Page
from tl.reporting import Html
from tl.visualize.specs import KINDS


def page(result: Mapping[str, Any], folder: Path) -> Page:
    """The page of `result.json` of `ideal`.

    Args:
      result: as `tl.visualize.ideal.save` returns it.
      folder: the run's folder, which holds `figures/` and `config.json`.
    """
    words = dict.fromkeys(row["target"] for row in result["images"])
    arch = result["judged_by"]["network"]
    lead = f"Images optimized for {' or '.join(words)} under {arch}."
    sections = [
        images_section(result, folder),
        numbers_section(result),
        settings_section(result, folder),
    ]
    return Page("Ideal images", lead, sections)


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The figures of each image as text for the terminal."""
    for row in result["images"]:
        value = f"value {row['value']:.4g}"
        if row["probability"] is not None:
            value = f"probability {row['probability']:.3f}"
        if row["judges"]:
            value += f", under held-out networks {np.mean(list(row['judges'].values())):.3f}"
        weight = f"total variation {row['tv']:.4f} at weight {row['tv_weight']:g}"
        yield f"{row['target']}: {value}, {weight}"
        if not result["settings"]["steps"] and row["called"]:
            called = (f"{top['name']} {top['probability']:.4f}" for top in row["called"])
            yield "  " + ", ".join(called)
    if (mean := result["judged_by"]["mean"]) is not None:
        yield f"mean probability under held-out networks: {mean:.3f}"


def images_section(result: Mapping[str, Any], folder: Path) -> Html:
    """Each image with its animation, held-out probabilities and top-activating real images."""
    settings = result["settings"]
    strips = []
    for row in result["images"]:
        title = row["target"]
        title += f", total variation weight {row['tv_weight']:g}" if len(settings["tv"]) > 1 else ""
        title += f", noise {row['replicate']}" if settings["count"] > 1 else ""
        strips.append(reporting.strip(_cards(row, result, folder), title=title))
    transforms = " and ".join(settings["transforms"]) or "no transform"
    source = "No generative model is used."
    if "photograph" not in result:
        source = "No photograph and no generative model is used."
    text = (
        f"Each image maximizes an objective of {result['judged_by']['network']}: "
        f"{settings['steps']} steps of {settings['optimizer']} in the "
        f"{settings['parameterization']} parameterization, under the random transforms "
        f"{transforms}. {source} Probabilities are of the saved PNG."
    )
    return reporting.section("Ideal images", *strips, text=text)


def _cards(row: Mapping[str, Any], result: Mapping[str, Any], folder: Path) -> list[Html]:
    """The cards of one image."""
    steps = result["settings"]["steps"]
    slope = row["spectral_slope"]
    caption = [f"total variation {row['tv']:.3f} (weight {row['tv_weight']:g})"]
    caption += [] if slope is None else [f"spectral slope {slope:.2f}"]
    if row["probability"] is None:
        caption.insert(0, f"value {row['value']:.4g}" + (", a dead unit" if row["dead"] else ""))
    cards = [
        reporting.card(
            common.figure(folder, row["png"]),
            title="ideal" if steps else "the start of the optimization",
            caption="; ".join(caption),
            bars=common.bars(row["called"], row["classes"]),
            alt=f"the ideal image of {row['target']}",
        )
    ]
    if row["film"]:
        animation = reporting.saved_animation(
            common.figure_path(folder, row["film"]), alt="the optimization path, from the start on"
        )
        cards.append(reporting.card(animation, title="optimization", caption=f"{steps} steps"))
    if "photograph" in result:
        reads = KINDS[row["objective"]].target.photograph
        use = "whose activations are the target" if reads else "the start of the optimization"
        photograph = common.figure(folder, result["photograph"]["png"])
        cards.append(reporting.card(photograph, title="photograph", caption=use))
    if row["judges"]:
        note = reporting.note(
            f"Probability of {row['target']} under networks that took no part in the optimization"
        )
        bars = reporting.bars([reporting.Bar(arch, p) for arch, p in row["judges"].items()])
        heading = reporting.tag("figcaption", "title", "held-out networks")
        cards.append(reporting.tag("figure", "card", heading, note, bars))
    if "top_activating" in row:
        sheet = common.figure(folder, row["top_activating"]["png"])
        caption = (
            f"the {len(row['top_activating']['images'])} real images with the highest activation"
        )
        cards.append(reporting.card(sheet, title="top-activating images", caption=caption))
    return cards


def numbers_section(result: Mapping[str, Any]) -> Html:
    """Mean probabilities, the statistics of photographs, and diversity."""
    rows, mean, photos = result["images"], result["judged_by"]["mean"], result["photographs"]
    numbers: dict[str, object] = {"images": len(rows)}
    probabilities = [row["probability"] for row in rows if row["probability"] is not None]
    percent = reporting.percent
    numbers |= {"mean probability": percent(float(np.mean(probabilities)))} if probabilities else {}
    numbers |= {"under held-out networks": percent(mean)} if mean is not None else {}
    parts = [reporting.numbers(numbers)]
    if photos:
        tv, slope = photos["tv"], photos["spectral_slope"]
        parts.append(
            reporting.note(
                f"{photos['n']} photographs of this size have a total variation of "
                f"{tv['mean']:.3f} ({tv['low']:.3f} to {tv['high']:.3f}) and a spectral slope of "
                f"{slope['mean']:.2f} ({slope['low']:.2f} to {slope['high']:.2f})."
            )
        )
    if diversity := result.get("diversity"):
        cells = [(row["target"], row["tv_weight"], row["diversity"]) for row in diversity]
        header = ["target", "total variation weight", "diversity"]
        caption = (
            f"One minus the mean cosine similarity of the features of {diversity[0]['by']}; 0 for "
            "equal images"
        )
        parts.append(reporting.table(cells, header, caption=caption))
    return reporting.section("Summary", *parts)


def settings_section(result: Mapping[str, Any], folder: Path) -> Html:
    """The command and the settings that reproduce the images."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    command = re.sub(r"^.*-m experiments\.", "./launch.sh ", config["command"])
    code = reporting.tag("p", "", reporting.tag("code", "", command))
    rows = [(name, _displayed(value)) for name, value in result["settings"].items()]
    text = (
        "The same seed reproduces the images bit by bit on the same machine with the same versions."
    )
    return reporting.section(
        "Reproduce", code, reporting.table(rows, ["setting", "value"]), text=text
    )


def _displayed(value: Any) -> str:
    """A setting as displayed."""
    if value is None:
        return "the objective's default"
    return ", ".join(map(_displayed, value)) or "none" if isinstance(value, list) else f"{value}"
