"""Files of a run: values in JSON's types, and files that are whole or absent."""

from __future__ import annotations

import dataclasses
import enum
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tl import storage
from tl.paths import printable


def jsonable(value: Any, *, where: str = "", holes: list[str] | None = None) -> Any:
    """The same value in JSON's types, with text as `tl.paths.printable` writes it.

    NumPy and JAX scalars and arrays become numbers and lists; NaN and infinity become None.

    Args:
      value: mappings (keys become text), sequences, arrays, numbers, text, paths, enums,
        dataclasses, None.
      where: name of the value, for the error.
      holes: collects the names of entries that were not finite.

    Raises:
      ValueError: a value has another type; the error names the value.

    Example:
      >>> jsonable({"top1": np.float32(0.5), "sizes": np.arange(3), 1: float("nan")})
      {'top1': 0.5, 'sizes': [0, 1, 2], '1': None}
    """
    if isinstance(value, enum.Enum):
        value = value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()  # type: ignore[attr-defined]  # a NamedTuple
    elif hasattr(value, "__array__") and not isinstance(value, np.generic):
        value = np.asarray(value)
    if isinstance(value, np.ndarray | np.generic):
        is_bfloat16 = value.dtype.kind == "V"
        value = (value.astype(np.float32) if is_bfloat16 else value).tolist()
    if isinstance(value, float):
        if not math.isfinite(value) and holes is not None:
            holes.append(where)
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return printable(value)
    if value is None or isinstance(value, int):
        return value
    inside = lambda key: f"{where}/{key}".lstrip("/")
    if isinstance(value, Mapping):
        items = value.items()
        return {_key(k): jsonable(v, where=inside(k), holes=holes) for k, v in items}
    if isinstance(value, list | tuple):
        return [jsonable(v, where=inside(i), holes=holes) for i, v in enumerate(value)]
    raise ValueError(
        f"{where or 'value'}: JSON cannot hold a value of type {type(value).__name__}; pass "
        "numbers, text, lists or dicts"
    )


def _key(key: Any) -> str:
    return printable(str(key.value if isinstance(key, enum.Enum) else key))


def write_whole(path: pathlib.Path, content: str) -> None:
    """Writes a file that is whole or absent after any interruption: a temporary file is renamed."""
    storage.write_whole(path, content.encode("utf-8"))
