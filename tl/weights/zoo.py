"""Markdown tables of all networks and of the weights that are published for them."""

from __future__ import annotations

from tl import backbones
from tl.reporting import documents
from tl.weights import store
from tl.weights.spec import WeightsSpec

COLUMNS = ("network", "aliases", "features", "the same network in", "published weights")


def table() -> str:
    """A Markdown table with one row per network, in the order of `tl.names()`.

    The weights are tags for `tl.load("NETWORK.TAG")`, each with the published ImageNet top-1
    accuracy in percent. Tags in bold are in a package of the `offline` extra.
    """
    specs = [backbones.get(name) for name in backbones.names()]
    rows = [
        [
            f"`{spec.name}`",
            ", ".join(f"`{alias}`" for alias in spec.aliases),
            str(spec.features),
            ", ".join(spec.sources),
            ", ".join(_tag(row) for row in store.MANIFEST if row.arch == spec.name),
        ]
        for spec in specs
    ]
    return f"{len(rows)} networks.\n\n{documents.table(COLUMNS, rows)}"


def packages() -> str:
    """A Markdown table with one row per packaged weights file."""
    rows = [
        [
            f"`{row.arch}`",
            "classifier" if row.classes else "features",
            row.licence,
            f"`{row.package}`",
        ]
        for row in store.MANIFEST
        if row.package
    ]
    return documents.table(("network", "content", "license", "package"), rows)


def blocks() -> dict[str, str]:
    """The generated blocks of the READMEs: name -> Markdown."""
    return {"zoo": table(), "packages": packages(), "count": f"{len(backbones.names())} networks"}


def _tag(row: WeightsSpec) -> str:
    name = f"**{row.tag}**" if row.package else row.tag
    return name if row.top1 is None else f"{name} {row.top1:.1f}"
