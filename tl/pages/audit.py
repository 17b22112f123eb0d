"""The page of `audit`: preprocessing conventions, ranked, and the one that an array follows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.evaluation.conventions import PUBLISHED, verdict
from tl.pages import common
from tl.pixels import PixelSpec

COLUMNS = {
    "largest_difference": "largest difference (levels of 255)",
    "mean_difference": "mean difference (levels of 255)",
    "resize": "resize",
    "interpolation": "interpolation",
    "outside": "share outside [0, 255]",
    "whole": "share of integers",
    "unlike": "distance from photographs",
}


def page(result: Mapping[str, Any], folder: Path) -> common.Page:
    """The page of `audit`.

    Args:
      result: "arch" and "weights" (names); the keys of
        `tl.evaluation.conventions.compare_conventions` if images were given; under "array" those
        of `match_array` if an array was given; "skipped" is optional.
      folder: not used; the page has no images.
    """
    del folder
    sections = []
    if "conventions" in result:
        bars = [
            reporting.Bar(_name(row), row["top1"], row["name"] == result["best"])
            for row in result["conventions"]
            if "top1" in row
        ]
        header, rows = _conventions(result)
        parts = reporting.bars(bars), reporting.table(rows, header)
        sections.append(reporting.section("Conventions", *parts, text=verdict(result)))
    if "array" in result:
        header, rows = _candidates(result["array"])
        table = reporting.table(rows, header)
        sections.append(reporting.section("Array", table, text=sentence(result["array"])))
    sections.append(reporting.skipped(result.get("skipped", [])))
    lead = f"{result['arch']} with the weights {result['weights']}."
    return common.Page("Preprocessing", lead, sections)


def lines(result: Mapping[str, Any]) -> list[str]:
    """The same tables and sentences as text for the terminal."""
    text = []
    if "conventions" in result:
        text += [reporting.columns(*_conventions(result)), "", verdict(result)]
    if "array" in result:
        table = reporting.columns(*_candidates(result["array"]))
        text += ["", table, "", sentence(result["array"])]
    return text


def sentence(array: Mapping[str, Any]) -> str:
    """The outcome of `match_array` as sentences."""
    expected = "as" if array["as_the_weights_want"] else "which is not what"
    text = (
        f"The array follows {array['follows']}, {expected} the weights expect."
        if array["follows"]
        else "The array follows none of the known conventions."
    )
    return text + "".join(f" {note[0].upper()}{note[1:]}." for note in array["notes"])


def _name(row: Mapping[str, Any]) -> str:
    return row["name"] + (" (their own)" if row["own"] and row["name"] != PUBLISHED else "")


def _conventions(result: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of the table of conventions."""
    labeled = result["ranked_by"] == "top1"
    accuracy = ["top-1 (%)", "95 % CI, lower", "95 % CI, upper"] if labeled else []
    header = ["convention", *accuracy, "confidence (%)", "information (nats)", "preprocessing"]
    rows = []
    for row in result["conventions"]:
        shares = [row["top1"], *row["top1_ci95"]] if labeled else []
        numbers = [round(100 * share, 1) for share in (*shares, row["confidence"])]
        spec = common.pixels_in_words(PixelSpec.from_dict(row["pixels"]))
        rows.append([_name(row), *numbers, round(row["information"], 2), spec])
    return header, rows


def _candidates(array: Mapping[str, Any], n: int = 8) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of the table of the `n` best candidates for an array."""
    keys = [key for key in array["candidates"][0] if key != "name"]
    rounded = lambda cell: round(cell, 3) if isinstance(cell, float) else cell
    rows = [[row["name"], *(rounded(row[key]) for key in keys)] for row in array["candidates"][:n]]
    return ["convention", *(COLUMNS[key] for key in keys)], rows
