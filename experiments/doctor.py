"""Decodes a whole data set and says what is wrong with it; nothing is deleted.

./launch.sh doctor --data=folder:DIR
./launch.sh doctor --data=tfds:oxford_iiit_pet
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from tl import cli, data, reporting
from tl.data.doctor import Remark, Report, examine
from tl.reporting import Html

FLAGS = flags.FLAGS
SHOWN = 12  # groups of pictures on the page
SIDE = 160  # of their thumbnails, in pixels
KINDS = {  # field of the report -> its title on the page
    "broken": "Cannot be decoded",
    "misnamed": "Another format than the name promises",
    "odd": "Not plain RGB",
    "turned": "Turned by EXIF",
    "known": "Known from the published set",
}
GROUPS = {  # field of the report -> title and what it means
    "leaks": ("In more than one official part", "A model that saw the one is tested on the other."),
    "two_labels": (
        "The same picture under two labels",
        "One of the labels is wrong, or the classes overlap.",
    ),
    "duplicates": ("Equal files", "A split of ours keeps them on one side."),
    "near_duplicates": (
        "Near-duplicates",
        "Re-saved or resized, by their looks; a split of ours keeps them on one side.",
    ),
}


def define_flags() -> None:
    flags.DEFINE_string("data", None, "folder:DIR, csv:FILE, tfds:NAME or elpv.", required=True)


def as_result(found: Report, skipped: Sequence[data.Skipped]) -> dict[str, Any]:
    """The report as result.json has it."""
    rows = lambda remarks: [{"path": str(source), "why": why} for source, why in remarks]
    groups = lambda sets: (
        None if sets is None else [[str(source) for source in group] for group in sets]
    )
    return {
        "n": found.n,
        "bad": rows(found.broken),
        **{kind: rows(getattr(found, kind)) for kind in KINDS if kind != "broken"},
        **{kind: groups(getattr(found, kind)) for kind in GROUPS},
        "classes": found.classes,
        "parts": found.parts,
        "skipped": [skip._asdict() for skip in skipped],
    }


def thumbnail(source: data.Source) -> np.ndarray:
    """A small copy for the page; grey where the picture is broken."""
    try:
        image = Image.fromarray(data.decode(source))
    except data.ImageError:
        return np.full((SIDE, SIDE, 3), 128, np.uint8)
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image)


def remarks(title: str, found: Sequence[Remark]) -> Html:
    """What is said about pictures, the commonest first, each with the files it is said of."""
    said = Counter(why for _, why in found).most_common()
    by_why = {
        why: [str(source) for source, other in found if other == why] for why, _ in said[:SHOWN]
    }
    rows = [
        (why, len(paths), ", ".join(paths[:3]) + (", ..." if paths[3:] else ""))
        for why, paths in by_why.items()
    ]
    return reporting.section(title, reporting.table(rows, ("what", "pictures", "files")))


def pictures(
    title: str, text: str, groups: Sequence[Sequence[data.Source]], labels: dict[data.Source, str]
) -> Html:
    """The first groups, a strip each."""
    strips: Iterable[Html] = (
        reporting.strip(
            [reporting.card(thumbnail(s), title=labels[s], caption=str(s)) for s in group[:6]]
        )
        for group in groups[:SHOWN]
    )
    more = (
        [reporting.note(f"and {len(groups) - SHOWN} more groups, in result.json")]
        if groups[SHOWN:]
        else []
    )
    return reporting.section(title, *strips, *more, text=text)


def main(run: reporting.Run) -> None:
    spec = data.get(FLAGS.data)
    found = examine(
        spec, progress=lambda items, total: reporting.progress(items, total, "pictures")
    )
    result = as_result(found, spec.skipped)
    groups = {kind: getattr(found, kind) or () for kind in GROUPS}
    counts = {
        "pictures": found.n,
        **{title: len(getattr(found, kind)) for kind, title in KINDS.items()},
    }
    counts |= {title: len(groups[kind]) for kind, (title, _) in GROUPS.items()}
    sections = [reporting.section("What was found", reporting.numbers(counts))]
    sections += [
        remarks(title, getattr(found, kind))
        for kind, title in KINDS.items()
        if getattr(found, kind)
    ]
    labels = {e.path: f"{spec.classes[e.label]}{e.part and ', ' + e.part}" for e in spec.examples}
    sections += [
        pictures(*words, groups[kind], labels) for kind, words in GROUPS.items() if groups[kind]
    ]
    if found.near_duplicates is None:
        text = "All pictures of this set are alike, so that likeness does not tell a copy from another picture."
        sections.append(reporting.section("Near-duplicates were not looked for", text=text))
    sections.append(
        reporting.section(
            "Classes", reporting.table(list(found.classes.items()), ("class", "pictures"))
        )
    )
    sections.append(reporting.skipped(result["skipped"]))
    lead = f"{found.n} pictures of {spec.name} decoded: {len(found.broken)} broken. Nothing was deleted or changed."
    facts = run.facts() | {"pictures": spec.source, "licence of the pictures": spec.licence}
    run.finish(
        result, reporting.page("What is wrong with these pictures", lead, sections, facts=facts)
    )
    print(reporting.columns(("what", "count"), list(counts.items())))
    for source, why in found.broken[:SHOWN]:
        print(f"broken: {source}: {why}")
    print(f"{run.workdir / 'report.html'}")


if __name__ == "__main__":
    cli.launch("doctor", main, define_flags)
