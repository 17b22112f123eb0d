"""Fills or reuses a feature bank, and shows what an endpoint makes of one photograph.

./launch.sh features --data=folder:DIR
./launch.sh features --data=folder:DIR --endpoint=stage4 --show=IMAGE
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import _common as common
from tl import data, features, feeds, pixels, report, runlog
from tl.classifier import Classifier
from tl.paths import nearest
from tl.types import Variables

FLAGS = flags.FLAGS
SHOWN = 64  # channels on the page, the most active first


def define_flags() -> None:
    flags.DEFINE_string("data", None, "folder:DIR, csv:FILE, tfds:NAME or elpv.", required=True)
    flags.DEFINE_string(
        "endpoint", "features", "features (pooled, what heads see) or an endpoint, averaged over its map."
    )
    flags.DEFINE_string("show", "", "A picture whose map at the endpoint is shown channel by channel.")
    flags.DEFINE_integer("batch_size", 16, "Pictures a forward pass.", lower_bound=1)


def channels(
    clf: Classifier, variables: Variables, endpoint: str, image: np.ndarray
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The strongest channels of one picture's map as one grey sheet, each stretched to its own range; and the map's shape."""
    if endpoint == "features":
        endpoint = clf.spec.endpoints[-1]
    ends = jax.eval_shape(clf.apply, variables, pixels.to_images01(image[None])).endpoints
    if endpoint not in ends:
        raise ValueError(f"{clf.arch} has no endpoint {endpoint!r}; nearest: {nearest(endpoint, ends)}")
    maps = np.asarray(
        jax.jit(lambda v, x: clf.apply(v, x).endpoints[endpoint][0])(variables, pixels.to_images01(image[None]))
    )
    strongest = np.argsort(-maps.mean(axis=(0, 1)), kind="stable")[:SHOWN]
    scale = max(1, round(96 / maps.shape[0]))
    tiles = []
    for channel in strongest:
        tile = maps[..., channel] - maps[..., channel].min()
        tiles.append(
            np.kron(tile / max(float(tile.max()), 1e-12), np.ones((scale, scale), np.float32)).astype(np.float32)
        )
    return report.contact_sheet(tiles, columns=8), maps.shape


def main(run: runlog.Run) -> None:
    clf, variables = common.load_model()
    spec = data.get(FLAGS.data)
    progress = lambda batches, total: runlog.progress(batches, total, "batches")  # noqa: E731
    bank = features.extract(
        clf, variables, feeds.sources(spec), endpoint=FLAGS.endpoint, batch_size=FLAGS.batch_size, progress=progress
    )
    skips = [skip._asdict() for skip in (*spec.skipped, *bank.skipped)]
    values = bank.values[bank.valid]
    result: dict[str, Any] = {
        "n": len(values),
        "dim": values.shape[1],
        "bank": str(bank.bank),
        "reused": bank.reused,
        "skipped": skips,
    }
    figures = {"pictures": len(values), "features each": values.shape[1], "already known": bank.reused}
    sections = [report.section("The bank", report.numbers(figures), report.note(str(bank.bank)))]
    if FLAGS.show:
        picture = common.read_pictures(clf, FLAGS.show)
        sheet, shape = channels(clf, variables, FLAGS.endpoint, picture.images[0])
        run.figure("channels", sheet)
        result["map"] = list(shape)
        text = (
            f"The {min(SHOWN, shape[2])} most active of {shape[2]} channels of a {shape[0]} x {shape[1]} map, "
            "each stretched to its own range."
        )
        cards = [report.card(picture.images[0], title=picture.paths[0].name), report.card(sheet, title=FLAGS.endpoint)]
        sections.append(report.section("What the network makes of it", report.gallery(cards), text=text))
    sections.append(report.skipped(skips))
    lead = f"{len(values)} pictures of {spec.name} through {clf.arch}, {bank.reused} of them already known."
    run.finish(result, report.page("Feature bank", lead, sections, facts=run.facts() | common.weights_facts(clf)))
    print(f"{len(values)} x {values.shape[1]} features, {bank.reused} reused, {len(skips)} skipped: {bank.bank}")
    print(f"{run.workdir / 'report.html'}")


if __name__ == "__main__":
    common.launch("features", main, common.define_model_flags, define_flags)
