"""Numbers in flags, such as the radius 4/255."""

from __future__ import annotations

import math

from tl.attacks import norms


def fraction(text: str, flag: str) -> float:
    """The value of a number that is written as `4/255`, `0.25/255` or `0.01`.

    Args:
      text: the value of the flag.
      flag: name of the flag in the error message.

    Raises:
      ValueError: `text` is not a finite number.

    Example:
      >>> fraction("51/255", "eps")
      0.2
    """
    try:
        numerator, _, denominator = text.partition("/")
        value = float(numerator) / float(denominator or 1)
        if math.isfinite(value):
            return value
    except (ValueError, ZeroDivisionError):
        pass
    raise ValueError(f"--{flag}={text!r} is not a number; write it as 4/255 or 0.0157")


def radii(text: str, norm: str) -> list[float]:
    """The values of --eps, separated by commas.

    Args:
      text: the value of the flag.
      norm: "linf" bounds the radii by 1, the pixel range.

    Raises:
      ValueError: a radius is not a number, is negative, or exceeds the pixel range.

    Example:
      >>> radii("51/255,0.5", "linf")
      [0.2, 0.5]
    """
    eps = [fraction(word, "eps") for word in text.split(",")]
    for radius, word in zip(eps, text.split(","), strict=True):
        if radius < 0 or (norm == "linf" and radius > 1):
            valid = "in [0, 1]" if norm == "linf" else "of at least 0"
            raise ValueError(
                f"--eps={word} is out of range, expected a radius {valid}; pixel units are "
                f"fractions of the range, such as 4/255{norms.level_hint(radius)}"
            )
    return eps
