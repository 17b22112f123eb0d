"""The page of transferred adversarial examples: matrix of error rates, ensemble, and images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tl import reporting
from tl.pages.common import Page, figure
from tl.reporting import Html, percent

Cell = Mapping[str, Any] | None
"""`{"error", "ci95"}`, or None where the result has no such number."""
ENSEMBLE = "ensemble of all"
ADAPTIVE = "ensemble of all, attacked itself"


def page(result: Mapping[str, Any], folder: Path) -> Page:
    """The page of an evaluation of transferability.

    Args:
      result: as `tl.evaluation.attack_transfer.TransferEvaluation.json` returns it, in JSON types.
      folder: the run's, with `figures/`.
    """
    lead = (
        f"{result['n']} images, perturbed to fool one of {len(result['networks'])} networks and "
        "then classified by the others."
    )
    sections = [_matrix(result), _defense(result), *_clean(result), *_images(result, folder)]
    title = "Transferability of adversarial examples"
    return Page(title, lead, [*sections, reporting.skipped(result["skipped"])])


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The matrix of error rates, and the accuracy of the ensemble, as text for the terminal."""
    rows = result["matrix"] | {
        result["ensemble"]["of"]: result["ensemble"]["error"],
        "random noise": result["noise"],
    }
    cells = [
        [name, *(f"{100 * cell['error']:.0f} %" for cell in row.values())]
        for name, row in rows.items()
    ]
    yield reporting.columns(["made on", *result["networks"]], cells)
    defense = result["defence"]
    worst = min(cell["accuracy"] for cell in defense["one_member"].values())
    adaptive = defense["adaptive"]["accuracy"]
    best = defense["best_member_attacked_itself"]["accuracy"]
    yield (
        f"accuracy of the ensemble: {percent(worst)} on images made on one member (the worst), "
        f"{percent(adaptive)} on images made on the ensemble; "
        f"best member, attacked itself: {percent(best)}"
    )


def _rows(result: Mapping[str, Any]) -> list[tuple[str, list[Cell]]]:
    """Rows of the matrix: source of the images -> error of every network and of the ensemble."""
    defense = result["defence"]
    rows = [
        (f"made on {name}", [*cells.values(), _as_error(defense["one_member"][name])])
        for name, cells in result["matrix"].items()
    ]
    return [
        *rows,
        ("made on all the others", [*result["ensemble"]["error"].values(), None]),
        (
            f"made on the {ENSEMBLE}",
            [*defense["members_of_adaptive"].values(), _as_error(defense["adaptive"])],
        ),
        ("random noise", [*result["noise"].values(), _as_error(defense["noise"])]),
        ("no change", [*result["clean"].values(), result.get("clean_ensemble")]),
    ]


def _as_error(cell: Mapping[str, Any]) -> Cell:
    low, high = cell["ci95"]
    return {"error": 1.0 - cell["accuracy"], "ci95": [1.0 - high, 1.0 - low]}


def _matrix(result: Mapping[str, Any]) -> Html:
    names, rows = result["networks"], _rows(result)
    columns = [*names, ENSEMBLE]
    shares = [[float("nan") if c is None else c["error"] for c in cells] for _, cells in rows]
    texts = [["" if c is None else _format(c) for c in cells] for _, cells in rows]
    white_box = np.eye(len(rows), len(columns), dtype=bool)
    white_box[len(names), -1], white_box[len(names) + 1, -1] = False, True
    levels = f"{result['eps'] * 255:g}/255"
    other = result.get("norm", "linf") != "linf"
    numbers = {
        "images": result["n"],
        "eps": f"{result['eps']:.4g} ({result['norm']})" if other else levels,
        "pixels per side": result["size"],
    }
    if "steps" in result:
        numbers["steps"] = result["steps"]
    errors = [cell for _, cells in rows for cell in cells if cell]
    bounds = [(cell["error"], bound) for cell in errors for bound in cell["ci95"]]
    widest = max(abs(bound - error) for error, bound in bounds)
    text = (
        f"Error rates (%) on the same {result['n']} images, which all networks classify correctly "
        f"without an attack. The 95 % intervals extend at most {100 * widest:.0f} points to either "
        "side. White-box cells, whose images were made on the network that classifies them, are "
        "marked. In the row of all the others each network classifies images made on the other "
        "networks together."
    )
    labels = [label for label, _ in rows]
    heat_map = reporting.heat_map(
        shares, labels, columns, corner="error (%)", hover=texts, marked=white_box
    )
    table = reporting.table(
        [(label, *cells) for label, cells in zip(labels, texts, strict=True)], ["", *columns]
    )
    return reporting.section(
        "Error rate by source and target network",
        reporting.numbers(numbers),
        heat_map,
        table,
        text=text,
    )


def _format(cell: Mapping[str, Any], name: str = "error") -> str:
    low, high = (100 * bound for bound in cell["ci95"])
    text = f"{reporting.percent(cell[name])} ({low:.0f} to {high:.0f})"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _defense(result: Mapping[str, Any]) -> Html:
    """Accuracy of the ensemble if the attacker knows one member, and if they know all."""
    defense = result["defence"]
    rows = [
        ("best member alone, attacked itself", defense["best_member_attacked_itself"]),
        *(
            (f"{ENSEMBLE}, images made on {name}", cell)
            for name, cell in defense["one_member"].items()
        ),
        (ADAPTIVE, defense["adaptive"]),
        (f"{ENSEMBLE}, random noise", defense["noise"]),
    ]
    bars = reporting.bars([(label, cell["accuracy"], label == ADAPTIVE) for label, cell in rows])
    outcome = {True: "is", False: "is not"}
    weak, strong = (outcome[defense["protects"][key]] for key in ("one_member", "adaptive"))
    text = (
        "The ensemble averages the logits of all networks. It counts as more robust if its "
        "accuracy is above that of its best member, attacked itself, with p below 0.05 in the "
        f"exact paired test. It {weak} more robust against an attacker who knows one member, and "
        f"it {strong} more robust "
        "against one who knows all members and attacks their mean."
    )
    table = reporting.table(
        [(label, _format(cell, "accuracy")) for label, cell in rows], ["", "accuracy"]
    )
    return reporting.section("Accuracy of the ensemble under attack", bars, table, text=text)


def _clean(result: Mapping[str, Any]) -> list[Html]:
    """Errors on all images that were read, where their labels are known."""
    if not result["clean_of_all_looked_at"]:
        return []
    rows = [(name, _format(cell)) for name, cell in result["clean_of_all_looked_at"].items()]
    text = (
        f"Error rates without an attack on all {result['looked_at']} images that were read, at "
        f"{result['size']} pixels per side."
    )
    table = reporting.table(rows, ["network", "error"])
    return [reporting.section("Error rate before the selection", table, text=text)]


def _images(result: Mapping[str, Any], folder: Path) -> list[Html]:
    if not result.get("shown"):
        return []
    strips = [_strip(row, folder) for row in result["shown"]]
    text = "At true pixels, with the prediction of each network. The difference is amplified."
    return [reporting.section("Images", *strips, text=text)]


def _strip(row: Mapping[str, Any], folder: Path) -> Html:
    cards = [
        reporting.card(
            figure(folder, image["png"]),
            title=image["title"],
            below=reporting.table(list(image["predictions"].items()), ["network", "prediction"]),
        )
        for image in row["images"]
    ]
    caption = f"{row['images'][1]['title']}, amplified {row['amplified']} times"
    difference = figure(folder, row["difference"])
    cards.insert(1, reporting.card(difference, title="difference", caption=caption))
    return reporting.strip(cards, title=f"{row['label']}, {Path(row['path']).name}")
