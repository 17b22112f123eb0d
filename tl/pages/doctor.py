"""The page of `doctor`: findings on the images of a data set, or on a weights file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tl import reporting
from tl.data.spec import PARTS
from tl.pages import common
from tl.pages.common import Page
from tl.paths import first_few, printable
from tl.reporting import Html

# Groups of each kind, and images of each group, on the page; chosen, not tuned.
MAX_GROUPS = 12
MAX_IMAGES = 6
# Images that cannot be decoded and are listed in the terminal; chosen, not tuned.
MAX_LINES = 12
# Names in a list, and letters of a value, on the page of a weights file; chosen, not tuned.
MAX_NAMES = 50
MAX_LETTERS = 300
# Key of the result -> heading.
FINDINGS = {
    "bad": "Images that cannot be decoded",
    "misnamed": "Images whose file format differs from the suffix",
    "odd": "Images other than 8-bit RGB",
    "extreme": "Images of one color, nearly black or nearly white",
    "turned": "Images with an EXIF orientation",
    "known": "Known defects of the published data set",
}
# Key of the result -> heading and explanation.
GROUPS = {
    "leaks": (
        "Duplicates in more than one official part",
        "A model that is trained on one of the images is tested on the other.",
    ),
    "two_labels": (
        "Duplicates with different labels",
        "One of the labels is wrong, or the classes overlap.",
    ),
    "duplicates": ("Identical files", "Splits by tl keep them in one part."),
    "near_duplicates": (
        "Near-duplicates",
        "Images that were saved again or resized. Splits by tl keep them in one part.",
    ),
}


def paths_with_thumbnail(result: Mapping[str, Any]) -> list[str]:
    """The paths of the images in the groups on the page, each once: those that need a thumbnail."""
    groups = [g for kind in GROUPS for g in (result[kind] or [])[:MAX_GROUPS]]
    return list(dict.fromkeys(path for group in groups for path in group[:MAX_IMAGES]))


def counts(result: Mapping[str, Any]) -> dict[str, int]:
    """Heading -> number of images or groups, as on the page and in the terminal."""
    return {
        "Images": result["n"],
        **{title: len(result.get(kind, ())) for kind, title in FINDINGS.items()},
        **{title: len(result[kind] or ()) for kind, (title, _) in GROUPS.items()},
    }


def weights_findings(result: Mapping[str, Any]) -> dict[str, str]:
    """Heading -> finding on a weights file, as on the page and in the terminal.

    Args:
      result: the keys of `tl.models.WeightsReport.as_dict`.
    """
    pixels = result["pixels"]
    numbers = lambda values: ", ".join(f"{value:.4g}" for value in values)
    head = "no head" if not result["head_left_out"] else "a head of its own, which is left out"
    names = result["class_names"] or []
    unnamed = names == [f"class {i}" for i in range(len(names))]
    classes = "without names" if unnamed else _first(names)
    stated = result.get("pixels_stated", ())
    others = result["architectures"][1:]
    return {
        "Format": result["format"],
        "Network": result["arch"] + (f" (also fits {', '.join(others)})" if others else ""),
        "Tensor names of": result["source"],
        "Classes": head if result["classes"] is None else f"{result['classes']}, {classes}",
        "Preprocessing": f"stated: {', '.join(stated)}"
        if stated
        else "not stated, that of the network is used",
        "Size": f"{pixels['size']}, crop {pixels['crop']:.4g}, {pixels['interpolation']}",
        "Mean": f"{numbers(pixels['mean'])} ({pixels['channels']})",
        "Standard deviation": numbers(pixels["std"]),
        "Number types": ", ".join(f"{n} x {name}" for name, n in result["dtypes"].items()),
        "Weights chosen": result["chosen"] or "all",
        "Prefix": result["prefix"] or "none",
        "Tensors used": f"{len(result['used'])}, {result['parameters']:,} numbers",
        "Left out": f"{len(result['left_out'])}, {_first(result['left_out'])}"
        if result["left_out"]
        else "nothing",
    }


def _first(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list, each cut at 30 characters."""
    return first_few([name[:30] for name in names], most)


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The findings for the terminal."""
    if "format" in result:
        findings = list(weights_findings(result).items())
        yield reporting.columns(("finding", "value"), findings)
        return
    yield reporting.columns(("finding", "count"), list(counts(result).items()))
    yield from map(printable, set_lines(result))
    for row in result["bad"][:MAX_LINES]:
        yield f"cannot be decoded: {row['path']}: {row['why']}"


def set_lines(result: Mapping[str, Any]) -> list[str]:
    """Sentences on the classes and parts of a data set, for the terminal.

    Args:
      result: "classes" (name -> number of images), "parts" (name -> number of images, "" without
        parts) and "skipped".
    """
    rows = sorted(result["classes"].items(), key=lambda row: -row[1])
    listed = _first([f"{name[:20]} {n}" for name, n in rows], 10)
    lines = [f"{len(rows)} classes: {listed}"]
    parts = {part: n for part, n in result["parts"].items() if part}
    if parts:
        missing = [p for p in dict.fromkeys(PARTS.values()) if p not in parts]
        end = f"; transfer draws {' and '.join(missing)} from train" if missing else ""
        lines.append(f"parts: {', '.join(f'{part} {n}' for part, n in parts.items())}{end}")
    if skipped := result["skipped"]:
        first = skipped[0]
        lines.append(f"left out: {len(skipped)}, such as {first['path']}: {first['why']}")
    return lines


def page(result: Mapping[str, Any], folder: Path) -> Page:
    """The page of a run of `doctor`.

    Args:
      result: the keys of `tl.data.doctor.Report.as_dict`, "data" (the name), "skipped", "labels"
        (path -> class and part) and "thumbnails" (path -> figure), the last two for
        `paths_with_thumbnail`; or those of `tl.models.WeightsReport.as_dict`.
      folder: the run's folder.
    """
    if "prefix" in result:
        return _weights_page(result)
    sections = [reporting.section("Summary", reporting.numbers(counts(result)))]
    sections += [
        _findings_section(title, result[kind])
        for kind, title in FINDINGS.items()
        if result.get(kind)
    ]
    sections += [
        _groups_section(title, text, result[kind], result, folder)
        for kind, (title, text) in GROUPS.items()
        if result[kind]
    ]
    if result["near_duplicates"] is None:
        text = (
            "All images of this data set resemble each other, so similarity does not distinguish a "
            "copy from a different image."
        )
        sections.append(reporting.section("Near-duplicates were not searched", text=text))
    classes = reporting.table(list(result["classes"].items()), ("class", "images"))
    sections.append(reporting.section("Classes", classes))
    sections.append(reporting.skipped(result["skipped"]))
    lead = (
        f"{result['n']} images of {result['data']} examined: {len(result['bad'])} cannot be "
        "decoded. No file was deleted or changed."
    )
    return Page("Data set check", lead, sections)


def _weights_page(result: Mapping[str, Any]) -> Page:
    """The page on a weights file."""
    rows = list(weights_findings(result).items())
    sections = [reporting.section("Reading", reporting.table(rows, ("finding", "value")))]
    if metadata := result["metadata"]:
        about = [(key, str(value)[:MAX_LETTERS]) for key, value in metadata.items()]
        sections.append(
            reporting.section("Metadata in the file", reporting.table(about, ("key", "value")))
        )
    if names := result["class_names"]:
        listed = first_few(names, MAX_NAMES)
        sections.append(reporting.section("Classes", text=listed))
    if left_out := result["left_out"]:
        table = reporting.table([[name] for name in left_out[:MAX_NAMES]], ["tensor or entry"])
        more = len(left_out) - MAX_NAMES
        note = [reporting.note(f"and {more} more in result.json")] if more > 0 else []
        sections.append(reporting.section("Left out", table, *note))
    lead = (
        f"{result['path']} is read as {result['arch']} in the names of {result['source']}. Nothing "
        "in the file was executed."
    )
    return Page("Weights check", lead, sections)


def _findings_section(title: str, findings: Sequence[Mapping[str, str]]) -> Html:
    """Findings by frequency, each with its first files."""
    rows = []
    for reason, count in Counter(row["why"] for row in findings).most_common(MAX_GROUPS):
        paths = [row["path"] for row in findings if row["why"] == reason]
        rows.append((reason, count, first_few(paths, 3)))
    return reporting.section(title, reporting.table(rows, ("finding", "images", "files")))


def _groups_section(
    title: str, text: str, groups: Sequence[Sequence[str]], result: Mapping[str, Any], folder: Path
) -> Html:
    """The first groups, one strip per group."""
    strips = [
        reporting.strip(
            reporting.card(
                common.figure(folder, result["thumbnails"][path]),
                title=result["labels"][path],
                caption=path,
            )
            for path in group[:MAX_IMAGES]
        )
        for group in groups[:MAX_GROUPS]
    ]
    if groups[MAX_GROUPS:]:
        strips.append(reporting.note(f"and {len(groups) - MAX_GROUPS} more groups in result.json"))
    return reporting.section(title, *strips, text=text)
