"""The page of `lesson`: each step as the course wrote it and corrected, and the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tl import reporting
from tl.pages.common import Page, figure
from tl.reporting import Html, percent

# The two versions of a step, as `result["rows"]` names them.
LESSON, RIGHT = "as in the lesson", "as it should be"
NOTE = (
    "Accuracies are in percent, with Wilson's 95 % interval. Points are the corrected version's "
    "accuracy minus the lesson's; if the two intervals overlap, the difference may be due to "
    "chance. Seconds are of training and testing, without features that were cached on disk."
)
HEADER = (
    *("step", "version", "setting", "training images", "test images", "top-1 (95 %)", "top-3"),
    *("NLL", "seconds", "reported by the lesson", "result"),
)


class Row(NamedTuple):
    """One version of one step.

    Attributes:
      step, way, setting: the step, `LESSON` or `RIGHT`, and a description.
      learned, n: number of training images and of test images.
      top1, top1_ci95, top3, nll: test metrics; accuracies are shares.
      seconds: of training and testing.
      lesson: the lesson's own numbers.
      found: another result, as text.
    """

    step: str
    way: str
    setting: str
    learned: int | None = None
    n: int | None = None
    top1: float | None = None
    top1_ci95: tuple[float, float] | None = None
    top3: float | None = None
    nll: float | None = None
    seconds: float | None = None
    lesson: str = ""
    found: str = ""


def costs(rows: Sequence[Row]) -> tuple[float, bool] | None:
    """The difference between a step's last two versions.

    Returns:
      Points of accuracy that the corrected version gains, and whether the intervals overlap; None
      if one of the versions has no accuracy.
    """
    last: dict[str, Any] = {row.way: row for row in rows if row.top1_ci95 is not None}
    if len(last) < 2:
        return None
    before, after = last[LESSON], last[RIGHT]
    (low, high), (low_after, high_after) = before.top1_ci95, after.top1_ci95
    return 100 * (after.top1 - before.top1), high >= low_after and high_after >= low


def page(result: Mapping[str, Any], folder: Path) -> Page:
    """The page of `lesson`.

    Args:
      result: `arch` and `rows`; optional: `sample`, and the rows of `ideal` and `attack`.
      folder: the run's folder, with `figures/`.
    """
    lead = (
        "Each step of the lesson as it was written and corrected, on the same images, and the "
        "difference between the two."
    )
    table = reporting.table([cells(row) for row in result["rows"]], HEADER)
    # The table is too wide for a section.
    sections = [reporting.chapter("Steps"), reporting.note(NOTE), table]
    for name, part in (("sample", _sample), ("ideal", _ideal), ("attack", _attack)):
        sections += part(result["arch"], result[name], folder) if name in result else []
    return Page("Lesson, as written and corrected", lead, sections)


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One row of the table; the difference is shown in the row of the corrected version."""
    share = lambda value: "" if value is None else f"{100 * value:.1f}"
    number = lambda value, form: "" if value is None else format(value, form)
    top1 = ""
    if row["top1"] is not None:
        top1 = "{} ({} to {})".format(*map(share, (row["top1"], *row["top1_ci95"])))
    difference = ""
    if row["points"] is not None and row["way"] == RIGHT:
        difference = f"{row['points']:+.1f} points" + (
            ", intervals overlap" if row["overlap"] else ""
        )
    return (
        *(row["step"], row["way"], row["setting"]),
        *(number(row[name], "d") for name in ("learned", "n")),
        *(top1, share(row["top3"]), number(row["nll"], ".3f"), number(row["seconds"], ".1f")),
        *(row["lesson"], row["found"] or difference),
    )


def _sample(arch: str, sample: Mapping[str, Any], folder: Path) -> list[Html]:
    """Some training images, and the features of the first as the lesson shows them."""
    cards = [
        reporting.card(figure(folder, row["png"]), caption=row["class"]) for row in sample["images"]
    ]
    words = (
        f"{sample['layer']} of {arch}: shape {tuple(sample['shape'])}; drawn as positions by "
        "channels, and as the 16 most active channels."
    )
    flat, channels = (figure(folder, sample[name]) for name in ("features", "channels"))
    images = reporting.img(flat, scale=max(1024 // flat.shape[1], 1)), reporting.img(channels)
    return [
        reporting.section("Training images", reporting.gallery(cards)),
        reporting.section("Features of the first image", *images, text=words),
    ]


def _ideal(arch: str, rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Html]:
    """The lesson's two descents from noise for each class."""
    strips = []
    for target in dict.fromkeys(row["target"] for row in rows):
        cards = []
        for row in (row for row in rows if row["target"] == target):
            rescaled = (
                f"rescaled to be displayed: tensor {percent(row['probability'])}, this file "
                f"{percent(row['probability_of_png_as_shown'])}; the lesson: {row['lesson']}"
            )
            clipped = f"this file: {percent(row['probability_of_png_as_it_is'])}"
            for key, title, caption in (
                ("png", row["way"], rescaled),
                ("png_as_it_is", "clipped to [0, 1]", clipped),
            ):
                cards.append(reporting.card(figure(folder, row[key]), title=title, caption=caption))
        strips.append(reporting.strip(cards, title=target))
    steps, rate = rows[0]["steps"], rows[0]["learning_rate"]
    text = (
        f"{arch}, x of N(0, 1) noise as the input of the first layer, plain gradient descent with "
        f"learning rate {rate:g}, {steps} steps; then {steps} more with the variation loss. The "
        "lesson displays x rescaled from its minimum to its maximum."
    )
    return [reporting.section("Ideal images as in the lesson", *strips, text=text)]


def _attack(arch: str, rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Html]:
    """The lesson's attack on photographs, and PGD within a radius if it ran."""
    same, first = sum(row["start_is_called_the_same"] for row in rows), rows[0]
    text = (
        f"{arch}, {first['steps']} steps of plain gradient descent on the cross-entropy, learning "
        f"rate {first['learning_rate']:g}, from the photograph at 1/255 of the contrast at which "
        "it was classified; no bounds, no 8-bit rounding. The lesson reports "
        f"{percent(first['lesson']['classified'])} Italian greyhound before and "
        f"{percent(first['lesson']['tensor'])} Siamese cat after (VGG-16). It displays x rescaled "
        f"from its minimum to its maximum.\n\nAt the scale that is attacked, {same} of {len(rows)} "
        f"starts have the class of the photograph; {Path(first['path']).name} is classified as "
        f"{first['start']['called']} with {percent(first['start']['probability'])}."
    )
    if "right" in first:
        text += (
            " For comparison: PGD with the same number of steps, at most "
            f"{first['right_eps'] * 255:g}/255 from the photograph, on the 8-bit grid."
        )
    parts = [part for row in rows for part in _attacked(row, folder)]
    return [reporting.section("Adversarial example as in the lesson", *parts, text=text)]


def _attacked(row: Mapping[str, Any], folder: Path) -> list[Html]:
    """The images of one photograph in a row, and a table of the predictions."""
    titles = {
        "prepared": ("Photograph", "photograph"),
        "shown": ("Lesson, rescaled to be displayed", "shown"),
        "clipped": ("Lesson, clipped", "clipped"),
        "right": (f"PGD within {row.get('right_eps', 0) * 255:g}/255", "right"),
    }
    cards = []
    for way, file in row["png"].items():
        title, answer = titles[way]
        caption = f"{row[answer]['called']}, {percent(row[answer]['probability'])}"
        cards.append(reporting.card(figure(folder, file), title=title, caption=caption))
    distance = lambda name: (
        f"Linf {255 * row[name]['linf']:.0f} levels, L2 {row[name]['l2']:.3g} of [0, 1]"
    )
    outside = f"; {percent(row['change']['outside'])} of the values outside of [0, 1]"
    lines = [
        ("photograph, preprocessing of the weights", "photograph", ""),
        ("photograph, preprocessing of the lesson", "classified", ""),
        ("photograph at 1/255 of that contrast: the start", "start", ""),
        ("result of the lesson, as a tensor", "tensor", distance("change") + outside),
        ("its file as displayed", "shown", ""),
        ("its file, clipped", "clipped", distance("change_clipped")),
    ]
    if "right" in row:
        lines.append(("result of PGD, its file", "right", distance("change_right")))
    answers = [
        (words, row[way]["called"], percent(row[way]["probability"]))
        + (percent(row[way]["target"]), change)
        for words, way, change in lines
    ]
    header = ["input", "prediction", "confidence", row["target"], "change"]
    return [reporting.strip(cards, title=Path(row["path"]).name), reporting.table(answers, header)]
