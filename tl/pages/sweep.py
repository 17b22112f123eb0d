"""The page of `sweep`: the results of a grid of runs, with links to the runs; and its tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages import common
from tl.reporting import Html, documents

# The accuracies among the numbers of result.json, which are shown in percent.
_SHARES = ("top1", "top3", "top5", "balanced", "robust_accuracy", "success_rate")


def page(result: Mapping[str, Any], folder: Path) -> common.Page:
    """The page of `sweep`.

    Args:
      result: as `tl.scale.sweep.collect` returns it.
      folder: the run's folder, which holds the folders of the cells.
    """
    sections = [_chart(result), _table(result), *_errors(result)]
    return common.Page(f"Sweep of {result['experiment']}", " ".join(lines(result)), sections)


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The sweep as sentences."""
    rows = result["rows"]
    grid = ", ".join(f"{flag} ({len(values)})" for flag, values in result["grid"].items())
    cells = sum(len(row["folders"]) for row in rows)
    yield f"{cells} runs of {result['experiment']} over {grid}."
    if rows and rows[0]["n"]:
        flags = " ".join(f"{flag}={value}" for flag, value in rows[0]["flags"].items())
        value = format_value(rows[0]["mean"], result["metric"])
        yield f"Best {result['metric']}: {value}{f' with {flags}' if flags else ''}."
    incomplete = sum("error" in row for row in rows)
    if incomplete:
        yield f"{incomplete} of {len(rows)} rows are not complete; repeat the command to continue."


def _name(row: Mapping[str, Any]) -> str:
    return " ".join(f"{flag}={value}" for flag, value in row["flags"].items()) or "all seeds"


def _chart(result: Mapping[str, Any]) -> Html:
    """The means on one axis, if all of them are shares."""
    rows = [
        reporting.Interval(
            _name(row),
            row["mean"],
            *(min(max(end, 0.0), 1.0) for end in row.get("ci95") or (row["mean"], row["mean"])),
        )
        for row in result["rows"]
        if row["n"] and 0 <= row["mean"] <= 1
    ]
    if not rows or len(rows) < sum(bool(row["n"]) for row in result["rows"]):
        return Html("")
    text = (
        "The interval of a row with several seeds is Student's t interval of their mean; that of a "
        "row with one seed describes other test images."
    )
    return reporting.section(result["metric"], reporting.intervals(rows), text=text)


def _table(result: Mapping[str, Any]) -> Html:
    rows = []
    for row, words in zip(result["rows"], text_rows(result), strict=True):
        links = [
            reporting.tag("a", "", name, href=f"{name}/report.html") for name in row["folders"]
        ]
        rows.append([*words, reporting.tag("span", "", *links)])
    text = (
        "The difference from the best row, in points of accuracy, is paired: only images count on "
        "which one of the two is correct. Its interval and its exact p-value describe other images "
        "of this kind. They are not corrected for the choice of the best row."
    )
    table = reporting.table(rows, [*header(result), "runs"])
    return reporting.section("Results", table, text=text)


def _errors(result: Mapping[str, Any]) -> list[Html]:
    rows = [(_name(row), row["error"]) for row in result["rows"] if "error" in row]
    table = reporting.table(rows, ["flags", "reason"])
    return [reporting.section("Incomplete rows", table)] if rows else []


# ---- tables ----


def format_value(value: float | None, metric: str) -> str:
    """A value of a metric as text, in percent for accuracies."""
    if value is None:
        return ""
    share = any(key in _SHARES for key in metric.split(".")) and 0 <= value <= 1
    return f"{100 * value:.1f} %" if share else f"{value:.4g}"


def header(result: Mapping[str, Any]) -> list[str]:
    """The columns of `text_rows`."""
    flags = [flag for flag in result["grid"] if flag != "seed"]
    return [*flags, result["metric"] or "metric", "std", "n", "95 % interval", "from the best", "p"]


def text_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """The rows of a result as text; `header` names the columns."""
    metric = result["metric"]
    between = lambda bounds, of: " to ".join(of(b) for b in bounds) if bounds else ""
    points = lambda share: f"{100 * share:+.1f}"
    lines = []
    for row in result["rows"]:
        difference = row.get("difference")
        lines.append(
            [
                *row["flags"].values(),
                format_value(row["mean"], metric) or row.get("error", ""),
                format_value(row["std"], metric) if row["n"] > 1 else "",
                str(row["n"]),
                between(row.get("ci95"), lambda b: format_value(b, metric)),
                ""
                if difference is None
                else f"{points(difference)} ({between(row['difference_ci95'], points)})",
                f"{row['p']:.2g}" if "p" in row else "",
            ]
        )
    return lines


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """The results as files: name -> content, in CSV (numbers), Markdown and LaTeX (booktabs)."""
    rows, columns = text_rows(result), header(result)
    keys = ("mean", "std", "n", "difference", "p", "seconds", "error")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    flags = [flag for flag in result["grid"] if flag != "seed"]
    bounds = lambda row, key: row.get(key) or ["", ""]
    writer.writerow([*flags, *keys, "low", "high", "difference_low", "difference_high", "folders"])
    for row in result["rows"]:
        values = ["" if row.get(key) is None else row[key] for key in keys]
        ends = [*bounds(row, "ci95"), *bounds(row, "difference_ci95")]
        writer.writerow([*row["flags"].values(), *values, *ends, " ".join(row["folders"])])
    latex = [
        rf"\begin{{tabular}}{{{'l' * len(flags)}{'r' * (len(columns) - len(flags))}}}",
        r"\toprule",
        *(" & ".join(map(_latex, row)) + r" \\" for row in [columns, *rows]),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    latex.insert(3, r"\midrule")
    return {
        "sweep.csv": file.getvalue(),
        "sweep.md": documents.table(columns, rows) + "\n",
        "sweep.tex": "\n".join(latex) + "\n",
    }


def _latex(text: str) -> str:
    """Text with the special characters of LaTeX escaped.

    Example:
      >>> _latex("lp_ft 5 %")
      'lp\\\\_ft 5 \\\\%'
    """
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(named.get(c) or (f"\\{c}" if c in "&%$#_{}" else c) for c in text)
