"""The documents that are generated from claims: RESULTS.md and the tables in READMEs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tl.reporting.results import Claim, format_published, format_value, measurements


def generate(root: Path, claims: Mapping[str, Claim], blocks: Mapping[str, str]) -> dict[Path, str]:
    """The generated documents: RESULTS.md, and every README with its generated blocks.

    Args:
      root: the checkout.
      claims: as `results.load` returns them.
      blocks: name of a further block -> its content, for READMEs with `<!-- NAME -->`.

    Returns:
      Path -> text. Nothing is written.
    """
    blocks = {"results": readme_rows(claims), **blocks}
    texts = {root / "experiments" / "RESULTS.md": document(claims)}
    for file in [root / "README.md", *sorted((root / "tl").rglob("README.md"))]:
        if not file.exists():
            continue
        text = file.read_text(encoding="utf-8")
        for name, content in blocks.items():
            if f"<!-- {name} -->" in text:
                text = replace_block(text, name, content)
        texts[file] = text
    return texts


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in r)} |" for r in lines
    )


def document(claims: Mapping[str, Claim]) -> str:
    """RESULTS.md: all claims, one table per group and one row per measurement."""
    columns = ["claim", "value", "compared with", "n", "name and command", "measured"]
    parts = [HEADER]
    groups = {claim["group"]: None for claim in claims.values()}
    for group in sorted(groups, key=lambda g: (GROUPS.index(g) if g in GROUPS else len(GROUPS), g)):
        rows = []
        for claim in (c for c in claims.values() if c["group"] == group):
            first, *rest = measurements(claim)
            command = f"`{claim['name']}`: `{claim['command']}`"
            measured = f"{claim['machine']}; {claim['commit']}, {claim['date']}"
            text = " ".join(filter(None, [claim["claim"], claim.get("notes")]))
            rows.append([text, *_cells(first), command, measured])
            rows += [[f"– {item['what']}", *_cells(item), "", ""] for item in rest]
        parts += [f"## {group}\n", table(columns, rows), ""]
    return "\n".join(parts)


def _cells(item: Claim) -> list[str]:
    return [format_value(item), format_published(item), f"{item['n']:,}"]


def _compared(item: Claim) -> str:
    return f"; compared with {format_published(item)}" if "published" in item else ""


def readme_rows(claims: Mapping[str, Claim]) -> str:
    """The table of README.md: the claims with a `readme` number, in that order."""
    chosen = sorted((c for c in claims.values() if "readme" in c), key=lambda c: c["readme"])
    rows = [
        [
            claim["claim"],
            format_value(claim) + _compared(claim),
            claim["machine"].partition(",")[0],
            f"`{claim['name']}`",
        ]
        for claim in chosen
    ]
    return table(["claim", "value", "machine", "`./launch.sh rerun`"], rows)


def replace_block(text: str, name: str, content: str) -> str:
    """A document with the text between `<!-- NAME -->` and `<!-- end NAME -->` replaced.

    Raises:
      ValueError: the document does not have each of the two marks once.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(
            f"got {text.count(begin)} marks {begin} and {text.count(end)} marks {end}, expected "
            "one of each"
        )
    head, rest = text.split(begin)
    return f"{head}{begin}\n{content}\n{end}{rest.split(end)[1]}"


GROUPS = (
    "Classification",
    "Transfer learning",
    "Ideal images",
    "Attacks",
    "Robust training",
    "Attacks compared with other libraries",
    "Transfer of adversarial examples",
    "Speed of attacks",
    "Speed of the networks",
    "Speed of training",
    "Several processes",
    "Plans for TPU slices",
    "The lesson",
    "The lesson: ideal cat",
    "Parity",
    "Project",
)
"""The order of the headings in RESULTS.md; other groups follow."""

HEADER = """# Results

Generated from `results/*.json` by `./launch.sh rerun --tables`. `./launch.sh rerun NAME` measures
one number again.

`DATA` is a folder with the named data sets, which their publishers provide. `DIR` is the `model`
folder of a run of `transfer`. The interval of a share is Wilson's at 95 %, and that of a difference
of two runs (`versus`) is paired. The number after ± is the standard deviation over splits, and its
interval is Student's t, of the mean. The interval of a speed or a time is the slowest and the
fastest round. Other intervals are the smallest and the largest value. `n` counts images, or the
runs of a time. The commit is the one that published the value.
"""
