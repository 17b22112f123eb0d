"""The page of `explain`: images with their maps, the tests of belief, insertion and deletion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.explain import checks
from tl.explain.curves import SHARES
from tl.pages import common
from tl.reporting import Html


def page(result: Mapping[str, Any], folder: Path) -> common.Page:
    """The page of `explain`.

    Args:
      result: as `tl.explain.report.explain_images` returns it.
      folder: the run's folder.
    """
    sections = [
        _tests(result["tests"]),
        *(_image(row, result["tests"], folder) for row in result["images"]),
        *_curves(result["tests"], result.get("score", "probability")),
        *_beside(result.get("beside", {}), result["tests"], folder),
        reporting.skipped(result["skipped"]),
    ]
    methods = ", ".join(result["settings"]["method"])
    images = "1 image" if result["n"] == 1 else f"{result['n']} images"
    lead = f"Why {result['arch']} classifies {images} as it does: {methods}."
    if result.get("score") == "objective":
        lead = f"Which pixels of {images} raise or lower objectives of {result['arch']}: {methods}."
    return common.Page("Explanations", lead, sections)


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """One sentence per tested method, one per method and second network, and one per zero map."""
    for name, row in result["tests"].items():
        values = ", ".join(f"{key} {_value(key, test)}" for key, test in row.items())
        if row:
            yield f"{title(name, row)}: {values}"
    if marks := result.get("mark_found"):
        yield (
            f"at least one of {', '.join(marks['methods'])} points at the mark in "
            f"{marks['value']:.1%} of {marks['n']} photographs "
            f"({marks['ci95'][0]:.1%} to {marks['ci95'][1]:.1%})"
        )
    beside = result.get("beside", {})
    for name, row in beside.get("difference", {}).items():
        values = ", ".join(f"{key} {_interval(key, test)}" for key, test in row.items())
        yield f"{name}, {beside['what']} minus the first: {values}"
    for row in result["images"]:
        zero = [name for name, drawn in row["maps"].items() if drawn["zero"]]
        if zero:
            yield f"{Path(row['path']).name}: the map of {', '.join(zero)} is zero everywhere"


def title(name: str, row: Mapping[str, Any], most: int | None = None) -> str:
    """The name of a method and the tests that it fails, or their number if there are more."""
    failed = checks.failed(row)
    words = ["control"] if name in checks.CONTROLS else []
    if most is not None and len(failed) > most:
        decided = sum(test.get("passed") is not None for test in row.values())
        words.append(f"fails {len(failed)} of {decided} tests")
    elif failed:
        words.append(f"fails {', '.join(failed)}")
    return f"{name} ({'; '.join(words)})" if words else name


def _label(name: str) -> str:
    return f"{name} (control)" if name in checks.CONTROLS else name


def _value(key: str, test: Mapping[str, Any]) -> str:
    return _number(key, test["value"]) + (f" of {test['n']}" if "n" in test else "")


def _interval(key: str, test: Mapping[str, Any]) -> str:
    """The value of a test and its interval, if there is one."""
    words = _value(key, test)
    if ends := test.get("ci95"):
        words += f" ({_number(key, ends[0])} to {_number(key, ends[1])})"
    return words


def _number(key: str, value: float) -> str:
    return f"{value:.2%}" if checks.CHECKS[key].percent else f"{value:.3f}"


def _tests(tests: Mapping[str, Any]) -> Html:
    """One table per question, with one row per method and one column per test."""

    def cell(row: Mapping[str, Any], key: str) -> str:
        if key not in row:
            return "-"
        words = _interval(key, row[key])
        verdict = {True: "passes", False: "fails", None: ""}[row[key].get("passed")]
        return f"{words} {verdict}".strip()

    tables = []
    for question in dict.fromkeys(check.question for check in checks.CHECKS.values()):
        keys = [
            key
            for key, check in checks.CHECKS.items()
            if check.question == question and any(key in row for row in tests.values())
        ]
        columns = [checks.CHECKS[key] for key in keys]
        header = [f"{c.title} ({c.limit})" if c.limit else c.title for c in columns]
        rows = [(_label(name), *(cell(row, key) for key in keys)) for name, row in tests.items()]
        if keys:
            tables.append(reporting.table(rows, ["method", *header], caption=question))
    tables += [*_fragility(tests), *_agreement(tests)]
    if any("passed" in test for row in tests.values() for test in row.values()):
        failed = [(_label(n), ", ".join(checks.failed(row)) or "-") for n, row in tests.items()]
        tables.insert(0, reporting.table(failed, ["method", "fails"], caption="Verdicts"))
    text = (
        "A dash is a test that does not apply, or needs too many passes. Intervals are 95 %, "
        f"bootstrapped over images; with fewer than {checks.FEWEST} images, the tests that compare "
        "methods with controls decide nothing. The controls read no network, or no image, and must "
        "fail."
    )
    return reporting.section("Tests of belief", *tables, text=text)


def _fragility(tests: Mapping[str, Any]) -> list[Html]:
    """How far an attack moves the maps of each method, next to noise."""
    header = (
        "method",
        "correlation after the attack",
        "after noise of the same size",
        "highest pixels that stay",
        "images that keep their class",
    )
    rows = [
        (
            _label(name),
            _interval("fragility", row["fragility"]),
            f"{row['fragility']['noise']:.3f}",
            f"{row['fragility']['top']:.1%}",
            f"{row['fragility']['kept']:.1%}",
        )
        for name, row in tests.items()
        if "fragility" in row
    ]
    return [reporting.table(rows, header, caption="Maps under attack")] if rows else []


def _agreement(tests: Mapping[str, Any]) -> list[Html]:
    """The correlation of each method's maps with those of each other one."""
    pairs = {name: row["agreement"]["with"] for name, row in tests.items() if "agreement" in row}
    names = [name for name in tests if any(name in row for row in pairs.values())]
    rows = [
        (_label(name), *(f"{row[other]:.3f}" if other in row else "" for other in names))
        for name, row in pairs.items()
    ]
    header = ["method", *map(_label, names)]
    return [reporting.table(rows, header, caption="Correlation of the maps")] if rows else []


def _image(row: Mapping[str, Any], tests: Mapping[str, Any], folder: Path) -> Html:
    """An image and the maps of all methods."""
    cards = [
        reporting.card(
            common.figure(folder, row["image"]),
            title=Path(row["path"]).name,
            bars=common.bars(row["predicted"]),
        )
    ]
    for name, drawn in row["maps"].items():
        corners = ", ".join(f"({left}, {top})" for top, left in drawn["patches"])
        caption = "blue lowers and red raises the score" if drawn["signed"] else ""
        if corners:
            caption += f"{'; ' * bool(caption)}top patches at x, y = {corners}"
        if drawn["zero"]:
            caption = "The map is zero everywhere: nothing raises the score."
        figure = common.figure(folder, drawn["overlay"])
        heading = title(name, tests[name], most=2)
        cards.append(reporting.card(figure, title=heading, caption=caption))
    return reporting.section(f"Why {row['target']}?", reporting.gallery(cards))


def _beside(result: Mapping[str, Any], first: Mapping[str, Any], folder: Path) -> list[Html]:
    """The attacked images or the second network, compared with the tests of the first maps."""
    if not result:
        return []
    rows = [
        (_label(name), _interval("agreement", row)) for name, row in result["correlation"].items()
    ]
    caption = "Rank correlation of absolute values with the maps above"
    tables = [reporting.table(rows, ["method", caption])]
    heading = "After the attack" if result["what"] == "attacked" else result["what"]
    tests = result["tests"]
    differences = [
        (
            _label(name),
            checks.CHECKS[key].title,
            _interval(key, first[name][key]),
            _interval(key, tests[name][key]),
            _interval(key, row),
        )
        for name, keys in result.get("difference", {}).items()
        for key, row in keys.items()
    ]
    if differences:
        header = ["method", "test", "above", heading, "difference"]
        tables.append(reporting.table(differences, header, caption="Difference of the tests"))
    return [
        reporting.chapter(heading),
        reporting.section("Compared with the maps above", *tables),
        _tests(tests),
        *(_image(row, tests, folder) for row in result["images"]),
    ]


def _curves(tests: Mapping[str, Any], score: str) -> list[Html]:
    """Deletion, insertion and ROAD of a score, and the correlations over random weights."""
    charts = []
    evenly = lambda n: [i / (n - 1) for i in range(n)]
    for key, words, places in (
        ("deletion", "gray pixels", evenly),
        ("insertion", "sharp pixels", evenly),
        ("road", "imputed pixels", lambda n: SHARES),
    ):
        curves = {name: row[key]["curve"] for name, row in tests.items() if key in row}
        series = {
            name: [(100 * x, p) for x, p in zip(places(len(curve)), curve, strict=True)]
            for name, curve in curves.items()
        }
        if not series:
            continue
        title, x_label = checks.CHECKS[key].title, f"{words} (%)"
        charts.append(reporting.curves(series, title=title, x_label=x_label, y_label=score))
    for key in ("randomization", "smooth_randomization"):
        stages = {name: row[key]["stages"] for name, row in tests.items() if key in row}
        longest = max(map(list, stages.values()), key=len, default=[])
        series = {
            name: [(longest.index(stage) + 1, value) for stage, value in values.items()]
            for name, values in stages.items()
        }
        title, x_label = checks.CHECKS[key].title, f"randomized parts: {', '.join(longest)}"
        if series:
            charts.append(
                reporting.curves(series, title=title, x_label=x_label, y_label="correlation")
            )
    return [reporting.section("Hidden pixels and random weights", *charts)]
