"""Shows what a network makes of a photograph, stage by stage, and fills or reuses a feature bank.

./launch.sh features --show=IMAGE --arch=vgg16
./launch.sh features --data=folder:DIR
./launch.sh features --data=folder:DIR --endpoint=stage3,stage4 --show=IMAGE

With `--show` alone no set is read: the page has, for each endpoint, the strongest channels of the picture's map and the map
as a whole (VGG-16's last stage: (7, 7, 512)). With `--data` too, it has beside a channel the pictures of the set that drive
it most; that takes a pass over the set for each endpoint the first time. `result.json` gives n, dim, bank and reused of the
last endpoint, and of each under "banks".
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from absl import flags

from tl import cli, data, inference, pixels, reporting
from tl.inference import features
from tl.models import Classifier
from tl.pages import activations, common
from tl.training import inputs
from tl.types import Variables
from tl.visualize import exemplars, maps

FLAGS = flags.FLAGS
MOST = 16  # pictures a page, to which each adds 2 to 3 MB with every stage of VGG-16 (chosen, not tuned)


def define_flags() -> None:
    flags.DEFINE_string(
        "data", "", "folder:DIR, csv:FILE, tfds:NAME or elpv: the set whose bank is filled."
    )
    flags.DEFINE_list(
        "endpoint",
        [],
        "features (pooled, what heads see) or endpoints, in a bank averaged over their maps. Default: features; with --show "
        "every stage.",
    )
    flags.DEFINE_string(
        "show", "", "Pictures whose maps are shown channel by channel: files, separated by commas."
    )
    flags.DEFINE_integer(
        "topk", 48, "Channels shown of each map, the most active first.", lower_bound=1
    )
    flags.DEFINE_integer("batch_size", 16, "Pictures a forward pass.", lower_bound=1)


def progress(batches: Any, total: int) -> Any:
    return reporting.progress(batches, total, "batches")


def _and(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def banked(
    clf: Classifier, variables: Variables, spec: data.DataSpec, names: list[str]
) -> tuple[dict[str, Any], list[reporting.Html]]:
    """Fills the bank of every endpoint; what result.json and the page say of it."""
    rows, skips = [], [skip._asdict() for skip in spec.skipped]
    for name in names:
        bank = features.extract(
            clf,
            variables,
            inputs.sources(spec),
            endpoint=name,
            batch_size=FLAGS.batch_size,
            progress=progress,
        )
        n, dim = int(bank.valid.sum()), bank.values.shape[1]
        rows.append(
            {"endpoint": name, "n": n, "dim": dim, "bank": str(bank.bank), "reused": bank.reused}
        )
        print(
            f"{name}: {n} x {dim} features, {bank.reused} reused, {len(bank.skipped)} skipped: {bank.bank}",
            flush=True,
        )
        if name == names[-1]:  # each bank skips the same
            skips += [skip._asdict() for skip in bank.skipped]
    last = {key: rows[-1][key] for key in ("n", "dim", "bank", "reused")}
    cells = [[r["endpoint"], r["n"], r["dim"], r["reused"]] for r in rows]
    table = reporting.table(cells, ["endpoint", "pictures", "features each", "already known"])
    return {**last, "banks": rows, "skipped": skips}, [
        reporting.section(
            "The bank" + "s" * (len(rows) > 1), table, *(reporting.note(r["bank"]) for r in rows)
        )
    ]


def looked_at(
    run: reporting.Run,
    clf: Classifier,
    variables: Variables,
    pictures: inference.LoadedImages,
    names: list[str],
    spec: data.DataSpec | None,
) -> tuple[dict[str, Any], list[reporting.Html]]:
    """The maps of each picture at each endpoint; what result.json and the page say of them."""
    rows, sections, on_device = [], [], jax.device_put(variables)
    for path, image in zip(pictures.paths, pictures.images, strict=True):
        found = activations.forward(clf, tuple(names))(on_device, pixels.to_images01(image[None]))
        sections += [reporting.chapter(path.name)] * (len(pictures.paths) > 1)
        sections.append(
            reporting.section(
                "The picture", reporting.card(image, caption=f"As {clf.arch} sees {path}")
            )
        )
        for name in names:
            here, beside, more = np.asarray(found[name]), [], {}
            if spec:
                order, size = maps.strongest(here, activations.DRIVEN).tolist(), FLAGS.batch_size
                tops = exemplars.top_pictures(
                    clf, variables, inputs.sources(spec), name, order, batch_size=size
                )
                beside, driven = activations.driven(run, clf, name, here, tops, name=path.stem)
                more = {"driven": driven}
            section, row = activations.shown(
                run, clf, name, here, name=path.stem, topk=FLAGS.topk, beside=beside
            )
            sections.append(section)
            rows.append({**row, "picture": str(path), **more})
            print(
                f"{path.name}: {name} is {tuple(row['shape'])}; strongest channel {row['strongest'][0]['channel']}"
            )
    about: dict[str, Any] = {}
    if any(name.partition("/")[0] == clf.spec.endpoints[0] for name in names):
        part, about = activations.first_layer(run, clf, variables)
        sections += part
    return {"shown": rows, **about}, sections


def main(run: reporting.Run) -> None:
    if not (FLAGS.data or FLAGS.show):
        raise ValueError(
            "give --show=IMAGE to see what a network makes of it, --data=folder:DIR to fill a bank, or both"
        )
    clf, variables = cli.load_model()
    names = activations.endpoints(
        clf, variables, FLAGS.endpoint or ([] if FLAGS.show else ["features"])
    )
    if FLAGS.show and (asked := len(data.find_images(FLAGS.show)[0])) > MOST:
        raise ValueError(
            f"--show names {asked} pictures, wanted {MOST} at most, so that the page can be read"
        )
    pictures = inference.read_images(clf, FLAGS.show) if FLAGS.show else None
    spec = data.get(FLAGS.data) if FLAGS.data else None
    result, sections, lead = {"skipped": []}, [], []
    if spec:
        result, sections = banked(clf, variables, spec, names)
        known = f"{result['reused']} of them already known"
        lead.append(f"{result['n']} pictures of {spec.name} through {clf.arch}, {known}.")
    if pictures:
        about, parts = looked_at(run, clf, variables, pictures, names, spec)
        result, sections = (
            {**result, **about, "skipped": result["skipped"] + pictures.skipped},
            sections + parts,
        )
        lead.insert(
            0,
            f"What {clf.arch} makes of {_and([p.name for p in pictures.paths])} at {_and(names)}.",
        )
    sections.append(reporting.skipped(result["skipped"]))
    title = "What a network sees" if pictures else "Feature bank"
    facts = run.facts() | common.weights_facts(clf)
    run.finish(result, reporting.page(title, " ".join(lead), sections, facts=facts))
    print(f"{run.workdir / 'report.html'}")


if __name__ == "__main__":
    cli.launch("features", main, cli.define_model_flags, define_flags)
