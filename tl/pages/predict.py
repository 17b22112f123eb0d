"""The page of `predict`: accuracy if labels are known, and images with their top classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages import common
from tl.reporting import percent


def page(result: Mapping[str, Any], folder: Path) -> common.Page:
    """The page of `predict`, from the result of `tl.evaluation.sets.predictions_result`."""
    sections = []
    if "top1" in result:
        figures = {"labeled images": result["labelled"], "top-1": percent(result["top1"])}
        if result["classes"] > 5:
            figures |= common.share_figure(result, "top5", "top-5")
        accuracy = reporting.interval(result["top1"], *result["top1_ci95"], label="top-1 accuracy")
        sections.append(reporting.section("Accuracy", reporting.numbers(figures), accuracy))
    cards = []
    for example in result["shown"]:
        row = result["predictions"][example["row"]]
        label = row.get("label")
        cards.append(
            reporting.card(
                common.figure(folder, example["figure"]),
                title=Path(row["path"]).name,
                caption=f"label: {label['name']}" if label else "",
                bars=common.bars(row["topk"], [label["index"]] if label else []),
            )
        )
    title = "Images, lowest probability of the label first" if "top1" in result else "Images"
    text = (
        f"As the network receives them: {result['size']} x {result['size']} pixels, resized and "
        "cropped as its weights expect."
    )
    if len(cards) < result["n"]:
        text += f" The first {len(cards)} of {result['n']}."
    sections += [
        reporting.section(title, reporting.gallery(cards), text=text),
        reporting.skipped(result["skipped"]),
    ]
    lead = f"{result['n']} images, classified by {result['arch']}."
    return common.Page("Predictions", lead, sections)


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The number of images, and the accuracy if labels are known."""
    accuracy = ""
    if "top1" in result:
        accuracy = f"; top-1 {common.share_with_interval(result, 'top1')}"
        if result["classes"] > 5:
            accuracy += f", top-5 {common.share_with_interval(result, 'top5')}"
    yield f"classified {result['n']} images, skipped {len(result['skipped'])}{accuracy}"
