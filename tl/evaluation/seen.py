"""Which test images a saved classifier was trained on, by the content of their files.

`transfer` stores hashes of the training and validation images with the classifier; `evaluate` and
`predict` compare them with the images that they read. Near-duplicates are not compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tl import data, reporting
from tl.data.duplicates import content_hashes

PARTS = {"train": "training", "validation": "validation"}
"""Part whose images a classifier has seen -> the word in a sentence."""

KEY = "images"
"""The key of the hashes in the metadata of a classifier."""

# Hex digits of SHA-256 per image: with a million images, two have the same with probability 1e-7.
_DIGITS = 16


def describe(parts: data.Parts) -> dict[str, str]:
    """The images that a classifier sees in training, for its metadata.

    Returns:
      Part -> 16 hex digits per different image, sorted, in one string.

    Raises:
      ValueError: a file cannot be read.
    """
    hashes = {name: content_hashes(getattr(parts, name)) for name in PARTS}
    return {name: "".join(sorted({h[:_DIGITS] for h in rows})) for name, rows in hashes.items()}


class Seen:
    """The images that a classifier has seen.

    Args:
      metadata: that of the classifier. `known` is False if it names no images, as for pretrained
        networks and classifiers of older versions.
    """

    def __init__(self, metadata: Mapping[str, Any] = {}):
        self.known = KEY in metadata
        self._part_of: dict[str, str] = {}
        for name in reversed(PARTS):
            digits = metadata[KEY].get(name, "") if self.known else ""
            starts = range(0, len(digits), _DIGITS)
            self._part_of |= {digits[i : i + _DIGITS]: name for i in starts}

    def part(self, sha256: str) -> str:
        """ "train", "validation", "no" for another image, or "" if it is not known."""
        if not self.known or not sha256:
            return ""
        return self._part_of.get(sha256[:_DIGITS], "no")


def report(
    run: reporting.Run, parts: Iterable[str], classifier: str = "this classifier"
) -> dict[str, int] | None:
    """Counts the images that were seen, and adds a remark to the run if there are any.

    Args:
      run: the run.
      parts: `Seen.part` of each tested image.
      classifier: its name in the remark.

    Returns:
      The number of images by part, for `result.json`; None if it is not known.
    """
    rows = list(parts)
    if not any(rows):
        return None
    counts = {name: rows.count(name) for name in PARTS}
    if any(counts.values()):
        words = " and ".join(f"{counts[n]} {word} images" for n, word in PARTS.items() if counts[n])
        run.remark(
            f"{words} of {classifier} are among the {len(rows)} tested images; the accuracy on new "
            "images may be lower"
        )
    return counts
