"""Published measurements as data: one JSON file per claim, and the tables that documents show.

A claim says which command gave which value, at which commit, on which machine, with which
interval. The functions here read, check and format claims, and read the same value from the
`result.json` of a new run. They run no command: `experiments/rerun.py` does.

Reference: the layout follows timm's `results/` and RobustBench's `model_info/`, which keep
numbers as files next to a generator.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tl import paths

Claim = dict[str, Any]
"""The content of one file. Its keys are those of `REQUIRED` and `OPTIONAL`."""

REQUIRED: Mapping[str, type | tuple[type, ...]] = {
    "name": str,
    "group": str,
    "claim": str,
    "command": str,
    "commit": str,
    "date": str,
    "machine": str,
    "n": int,
    "value": (int, float),
    "unit": str,
}
"""Keys that every claim has. `n` counts the images, or the runs of a time; `group` is the heading
in RESULTS.md."""

OPTIONAL: Mapping[str, type | tuple[type, ...]] = {
    "interval": list,
    "spread": (int, float),
    "published": dict,
    "path": list,
    "scale": (int, float),
    "readme": int,
    "also": list,
    "notes": str,
}
"""Keys that a claim may have. `path` leads to the value in `result.json`, which is multiplied by
`scale` (100 for "%", else 1); `readme` is the row in the table of README.md; `also` lists further
measurements of the same command."""

ALSO: Mapping[str, type | tuple[type, ...]] = {
    "what": str,
    **{key: REQUIRED[key] for key in ("n", "value", "unit")},
    **{key: OPTIONAL[key] for key in ("interval", "spread", "published", "path", "scale")},
}
"""Keys of one item of `also`; `unit` and `n` are those of the claim where they are missing."""

INTERVALS: Mapping[str, str] = {
    "ours": "spread",
    "error": "ci95",
    "mean": "ci95",
    "robust_accuracy": "robust_ci95",
    "success_rate": "success_ci95",
}
"""Key of `result.json` -> the key of its interval, where that is not the key with `_ci95`."""


def load(folder: str | Path) -> dict[str, Claim]:
    """Claims by name, in the order of their names.

    Args:
      folder: contains `NAME.json` files; an empty folder gives no claims.

    Raises:
      ValueError: if a file is not a claim; all problems are listed.
    """
    files = sorted(Path(folder).glob("*.json"))
    claims = {file.stem: _read(file) for file in files}
    wrong = [f"{name}.json: {problem}" for name, c in claims.items() for problem in check(name, c)]
    if wrong:
        raise ValueError("claims with errors:\n" + "\n".join(wrong))
    return claims


def _read(file: Path) -> Claim:
    try:
        claim = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is not a claim in JSON: {error}") from error
    if not isinstance(claim, dict):
        raise ValueError(f"{str(file)!r} is not a claim: got {type(claim).__name__}, expected dict")
    return claim


def check(name: str, claim: Claim) -> list[str]:
    """The problems of a claim as text; empty if there are none.

    Example:
      >>> check("fast", {"name": "fast", "value": 2})
      ['missing keys: group, claim, command, commit, date, machine, n, unit']
    """
    missing = [key for key in REQUIRED if key not in claim]
    wrong = [f"missing keys: {', '.join(missing)}"] if missing else []
    wrong += _check_types("", claim, {**REQUIRED, **OPTIONAL})
    for item in claim.get("also", ()):
        what = item.get("what", "an item of also")
        wrong += _check_types(f"{what}: ", item, ALSO)
        wrong += [f"{what}: missing key {key}" for key in ("what", "value") if key not in item]
    if wrong:
        return wrong
    if claim["name"] != name:
        wrong.append(f"name is {claim['name']!r}, expected the name of the file")
    if not re.fullmatch(r"[0-9a-f]{7,40}", claim["commit"]):
        wrong.append(f"commit is {claim['commit']!r}, expected 7 to 40 hexadecimal digits")
    try:
        datetime.date.fromisoformat(claim["date"])
    except ValueError:
        wrong.append(f"date is {claim['date']!r}, expected YYYY-MM-DD")
    if not claim["command"].startswith("./launch.sh "):
        wrong.append(f"command is {claim['command']!r}, expected ./launch.sh ...")
    return wrong + [problem for item in measurements(claim) for problem in _check_values(item)]


def _check_types(prefix: str, item: Claim, types: Mapping[str, Any]) -> Iterator[str]:
    for key, value in item.items():
        if key not in types:
            yield f"{prefix}unknown key {key!r}; nearest: {paths.nearest(key, types)}"
        elif not isinstance(value, types[key]) or isinstance(value, bool):
            kinds = types[key] if isinstance(types[key], tuple) else (types[key],)
            names = " or ".join(kind.__name__ for kind in kinds)
            yield f"{prefix}{key} has a wrong type: got {value!r}, expected {names}"


def _check_values(item: Claim) -> Iterator[str]:
    """Problems of one measurement: its value, its interval, and the source it is compared with."""
    what, value, interval = item["what"], item["value"], item.get("interval")
    if not math.isfinite(value):
        yield f"{what}: value is not finite"
    if interval is not None and not (len(interval) == 2 and interval[0] <= value <= interval[1]):
        yield f"{what}: interval is {interval}, expected [low, high] around {value}"
    published = item.get("published")
    if published is not None and set(published) != {"value", "source"}:
        yield f"{what}: published has {sorted(published)}, expected value and source"


def measurements(claim: Claim) -> list[Claim]:
    """All measurements of a claim, each with `what`, `n` and `unit`: its own value, then `also`."""
    first = {key: value for key, value in claim.items() if key in ALSO}
    rest = ({"n": claim["n"], "unit": claim["unit"], **item} for item in claim.get("also", ()))
    return [{"what": claim["claim"], **first}, *rest]


def find(claims: Mapping[str, Claim], name: str) -> Claim:
    """The claim of that name.

    Raises:
      ValueError: if there is none; lists the nearest names.
    """
    if name not in claims:
        raise ValueError(
            f"{name!r} is not the name of a result; nearest: "
            f"{paths.nearest(name, claims) or 'none'}"
        )
    return claims[name]


def dumps(claim: Claim) -> str:
    """A claim as its file holds it: one key per line, and one measurement of `also` per line."""
    lines = []
    for key, value in claim.items():
        if key == "also":
            items = ",\n".join(f"    {json.dumps(item, ensure_ascii=False)}" for item in value)
            lines.append(f'  "also": [\n{items}\n  ]')
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def arguments(claim: Claim, values: Mapping[str, str]) -> list[str]:
    """The arguments of a claim's command after `./launch.sh`, with each placeholder replaced.

    Args:
      claim: as `load` returns it.
      values: placeholder (`DATA`, `DIR`, ...) -> its replacement.

    Raises:
      ValueError: if a placeholder has no value.
    """
    names = r"\b(?:[A-Z]{4,}|DIR|RUN_[AB])\b"
    command = re.sub(names, lambda m: values.get(m[0], m[0]), claim["command"])
    missing = placeholders(command) - set(values)
    if missing:
        raise ValueError(
            f"the command of {claim['name']} needs a value for {', '.join(sorted(missing))}: "
            f"{command}"
        )
    return shlex.split(command)[1:]


def placeholders(command: str) -> set[str]:
    """The placeholders for the user's paths: some of DATA, DIR, FILE, TEST, RUN_A and RUN_B."""
    return set(re.findall(r"(?<![\w/.])(?:DATA|DIR|FILE|TEST|RUN_[AB])(?![\w.])", command))


def read(result: Any, path: Sequence[Any]) -> Any:
    """The value at a path of `result.json`.

    Args:
      result: the content of `result.json`.
      path: keys and indices. A dict selects the first item of a list that has these entries; "max"
        and "mean" combine the values at the rest of the path over all items of a list.

    Raises:
      ValueError: if `result` has no value at the path.

    Example:
      >>> rows = {"rows": [{"what": "a", "ours": 1}, {"what": "b", "ours": 2}]}
      >>> read(rows, ["rows", {"what": "b"}, "ours"])
      2
    """
    value = result
    for i, step in enumerate(path):
        try:
            if step in ("max", "mean") and isinstance(value, list):
                values = [read(row, path[i + 1 :]) for row in value]
                return max(values) if step == "max" else sum(values) / len(values)
            if isinstance(step, dict):
                value = next(row for row in value if step.items() <= row.items())
            else:
                value = value[step]
        except (KeyError, IndexError, TypeError, StopIteration):
            raise ValueError(f"result.json has no {step!r} of the path {path}") from None
    return value


def scale_of(item: Claim) -> float:
    """The factor from the value in `result.json` to the unit of a measurement."""
    return item.get("scale", 100 if item["unit"] == "%" else 1)


def remeasure(item: Claim, result: Any) -> Claim | None:
    """The new value of a measurement, its interval and its spread if the run has them.

    None for a measurement without a path.

    Args:
      item: one of `measurements`.
      result: the `result.json` of the new run.
    """
    if "path" not in item:
        return None
    scale, (*before, last) = scale_of(item), item["path"]
    new: Claim = {"value": _round(read(result, item["path"]) * scale)}
    first = INTERVALS.get(str(item["path"][0]), item["path"][0])
    for path in ([*before, INTERVALS.get(last, f"{last}_ci95")], [first, *item["path"][1:]]):
        try:
            interval = read(result, path)
        except ValueError:
            continue
        if isinstance(interval, list):
            new["interval"] = [_round(bound * scale) for bound in interval]
            break
    if last == "mean":  # of `tl.metrics.spread`; other means have no "std"
        with contextlib.suppress(ValueError):
            new["spread"] = _round(read(result, [*before, "std"]) * scale)
    return new


def updated(claim: Claim, result: Any, origin: Mapping[str, str]) -> Claim:
    """A claim with the values of a new run; intervals that the run does not have are removed.

    Args:
      claim: the old claim.
      result: the `result.json` of the new run.
      origin: commit, date and machine of the new run.
    """

    def change(item: Claim, whole: Claim) -> Claim:
        new = remeasure(whole, result)
        old = {k: v for k, v in item.items() if new is None or k not in ("interval", "spread")}
        return {**old, **(new or {})}

    first, *rest = measurements(claim)
    claim = {**change(claim, first), **origin}
    if rest:
        claim["also"] = [change(a, b) for a, b in zip(claim["also"], rest, strict=True)]
    order = [*REQUIRED, *OPTIONAL]
    return dict(sorted(claim.items(), key=lambda entry: order.index(entry[0])))


def origin(config: Mapping[str, Any]) -> dict[str, str]:
    """Commit, date and machine of a run.

    Args:
      config: the content of the run's `config.json`.
    """
    device, versions = config["device"], config["versions"]
    count = config["host"]["cpus"] if device["platform"] == "cpu" else device["count"]
    kind = "CPU cores" if device["platform"] == "cpu" else device["kind"]
    return {
        "commit": (config["git_commit"] or "0000000")[:7],
        "date": config["started"][:10],
        "machine": f"{count} {kind}, Python {versions['python']}, JAX {versions['jax']}",
    }


def compare(claim: Claim, result: Any, new: Mapping[str, str]) -> dict[str, Any]:
    """Old and new values of a claim: `{"name", "before", "after"}`.

    Args:
      claim: the claim.
      result: the `result.json` of the new run.
      new: commit, date and machine of the new run.
    """
    old = {key: claim[key] for key in ("commit", "date", "machine")}
    pairs = [
        (item, measured)
        for item in measurements(claim)
        if (measured := remeasure(item, result)) is not None
    ]
    return {
        "name": claim["name"],
        "before": {**old, "values": [item for item, _ in pairs]},
        "after": {**new, "values": [measured for _, measured in pairs]},
    }


def lines(comparison: Mapping[str, Any]) -> list[str]:
    """A comparison in words, one line per measurement."""
    before, after = comparison["before"], comparison["after"]
    text = [f"{comparison['name']}: {before['commit']} ({before['machine']}) and now"]
    for old, new in zip(before["values"], after["values"], strict=True):
        now = format_value({"unit": old["unit"], **new})
        text.append(f"  {old['what']}\n    before {format_value(old)}, now {now}")
    return text


def format_value(item: Claim) -> str:
    """A measurement as text: its value, unit, spread and interval.

    Example:
      >>> format_value({"value": 88.0, "unit": "%", "interval": [84.9, 90.6]})
      '88.0 % (84.9 to 90.6)'
    """
    text = f"{_number(item['value'])} {UNITS.get(item['unit'], item['unit'])}".rstrip()
    if "spread" in item:
        text += f" ± {_number(item['spread'])}"
    if "interval" in item:
        text += f" ({_number(item['interval'][0])} to {_number(item['interval'][1])})"
    return text


def format_published(item: Claim) -> str:
    """The published value that a measurement is compared with, and its source; may be empty."""
    published = item.get("published")
    return f"{_number(published['value'])} ({published['source']})" if published else ""


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _number(value: float) -> str:
    return f"{value:,}" if abs(value) >= 1000 else str(value)


UNITS: Mapping[str, str] = {"ratio": "times", "probability": ""}
"""Unit of a claim -> its spelling in documents, where that differs."""
