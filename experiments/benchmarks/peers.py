"""Attacks beside foolbox's and torchattacks': the same weights, pictures and budget; what is found, how near, and how fast.

  ./launch.sh peers --what=attack_strength --data=DATA/imagenet_samples
  ./launch.sh peers --what=attack_strength --attacks=autoattack --l2= --linf=0.5 --data=DATA/imagenet_samples
  ./launch.sh peers --what=attack_distance --data=DATA/imagenet_samples --cw_pictures=16
  ./launch.sh peers --what=attack --arch=efficientnet_lite0,resnet50 --data=DATA/imagenet_samples
  ./launch.sh peers --what=attack_sweep
  ./launch.sh peers --what=autoattack --apgd_steps=100 --queries=5000 --data=DATA/imagenet_samples

  attack_strength  robust accuracy at each radius, of --limit pictures that both networks call right; each library's pictures
                   judged by the network that it attacked. Ours shall be no more than one point above theirs
  attack_distance  median distance of DeepFool's and Carlini-Wagner's pictures, infinity where none was found. Ours shall be
                   at most 1.02 times theirs
  attack           pictures a second of PGD, stopping early and walking all steps, which is all that the others can
  attack_sweep     seconds of eight radii beside one. At most 8.2 times
  autoattack       pictures a second of AutoAttack at --autoattack_eps. At least 1.5 times torchattacks'

torch, torchvision and timm make the networks (the `parity` extra); foolbox comes with it, and torchattacks without its
dependencies, which want an old requests: `pip install --no-deps torchattacks`. A library that is missing is left out. Without
--data the pictures are the twenty labelled ones of the `offline` extra. On a GPU torch computes there too, if it can, both in
float32 or both, as either does when left alone, with --precision=tf32.

Times are from the call to pictures on the host; the libraries take turns. Compiling is told apart: the first call less the
second. Where no package has a network's weights they are random, and what it calls a picture counts as right.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments.benchmarks import attack_libraries, bench
from experiments.benchmarks.attack_libraries import Budget, Run, Twin
from tl import attacks, backbones, cli, data, metrics, pixels, reporting
from tl.inference import folder_labels

os.environ.setdefault(
    "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
)  # torch wants some of a GPU's memory

FLAGS = flags.FLAGS
SWEEP = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # levels
INSIDE, TINY = 1e-4, 1e-6  # of eps, and beside it, by which float32 may leave the ball

Row = dict[str, Any]


def define_flags() -> None:
    flags.DEFINE_list("what", "attack_strength", f"What is compared: {', '.join(WORKS)}.")
    flags.DEFINE_list("arch", "efficientnet_lite0", "Architectures.")
    flags.DEFINE_string(
        "data", "", "Folder of pictures, each in one named after its class. Default: packaged ones."
    )
    flags.DEFINE_list(
        "peers", ",".join(attack_libraries.LIBRARIES), "Libraries to compare with; empty for none."
    )
    flags.DEFINE_list(
        "attacks",
        "pgd,apgd_ce,apgd_t,fab,square,autoattack",
        "For attack_strength: which, by our names.",
    )
    flags.DEFINE_list(
        "linf",
        "0.25,0.5,1",
        "For attack_strength: radii in 8-bit levels, of which black to white is 255.",
    )
    flags.DEFINE_list("l2", "0.25", "For attack_strength: L2 radii, in [0, 1] pixel units.")
    flags.DEFINE_string("eps", "1/255", "For attack: the Linf radius.")
    flags.DEFINE_string("autoattack_eps", "1/510", "For autoattack: the Linf radius; half a level.")
    flags.DEFINE_integer(
        "limit", 100, "For attack_strength and attack_distance: pictures.", lower_bound=1
    )
    flags.DEFINE_integer(
        "cw_pictures",
        32,
        "For attack_distance: how many of them Carlini-Wagner gets.",
        lower_bound=1,
    )
    flags.DEFINE_integer("batch_size", 32, "Pictures a call.", lower_bound=1)
    flags.DEFINE_integer("steps", 40, "Of PGD.", lower_bound=1)
    flags.DEFINE_integer(
        "apgd_steps", 50, "Of APGD, APGD-T and FAB, alone and in AutoAttack.", lower_bound=1
    )
    flags.DEFINE_integer("queries", 1000, "Of Square, alone and in AutoAttack.", lower_bound=1)
    flags.DEFINE_integer("deepfool_steps", 50, "Of DeepFool.", lower_bound=1)
    flags.DEFINE_integer(
        "cw_steps", 200, "Of each of Carlini-Wagner's nine searches.", lower_bound=1
    )
    flags.DEFINE_enum(
        "precision",
        "float32",
        ["float32", "tf32"],
        "Of both libraries' convolutions and products, on a GPU.",
    )
    flags.DEFINE_integer("rounds", 3, "Timed rounds; the median counts.", lower_bound=1)
    flags.DEFINE_integer(
        "slots",
        0,
        "For attack: pictures that ours steps side by side; 0: tl's own choice.",
        lower_bound=0,
    )
    flags.DEFINE_integer(
        "size", 0, "Side of the pictures. Default: the weights' own.", lower_bound=0
    )


def budget() -> Budget:
    return Budget(FLAGS.steps, FLAGS.apgd_steps, FLAGS.queries, FLAGS.seed)


# --- pictures ----------------------------------------------------------------------------------------------------------


class Pictures(NamedTuple):
    """Pictures f32[n s s 3] and their classes i[n], by which both networks call them; `error` is theirs, of the logits."""

    images01: np.ndarray
    labels: np.ndarray
    error: float


def read(net: Twin, limit: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(pictures, classes), batch after batch in random order; of packaged ones and from --data."""
    if FLAGS.data:
        paths = list(data.find_images(FLAGS.data)[0])
        classes = folder_labels(net.clf, paths)
    else:
        known = [photo for photo in data.photographs() if photo.index is not None]
        paths, classes = [photo.path for photo in known], np.array([photo.index for photo in known])
    order = np.random.default_rng(FLAGS.seed).permutation(len(paths))
    for rows in np.split(order, range(limit, len(order), limit)):
        for batch in data.load([paths[i] for i in rows], net.clf.prepare, batch_size=len(rows)):
            yield (
                pixels.to_images01(batch.images[batch.valid]),
                classes[rows[batch.index[batch.valid]]],
            )


def called_right(net: Twin, limit: int) -> Pictures:
    """At most `limit` pictures that both networks call right; with random weights, what both of them call a picture.

    Raises:
      ValueError: the networks disagree, or there is no such picture.
    """
    found, labels, error = [], [], 0.0
    for images01, classes in read(net, limit):
        error = max(error, attack_libraries.disagreement(net, images01))
        ours = attack_libraries.our_logits(net, images01).argmax(axis=1)
        theirs = attack_libraries.torch_logits(net, images01).argmax(axis=1)
        right = (ours == theirs) & ((ours == classes) | (net.weights == "random"))
        found.append(images01[right])
        labels.append(ours[right])
        if sum(map(len, found)) >= limit:
            break
    if not sum(map(len, found)):
        raise ValueError(
            f"none of the pictures of {FLAGS.data or 'the packages'} is called by its class"
        )
    return Pictures(np.concatenate(found)[:limit], np.concatenate(labels)[:limit], error)


def in_batches(run: Run, pictures: Pictures, *, ours: bool) -> np.ndarray:
    """All of an attack's pictures; ours in batches of one shape, of which there is one program."""
    n, size = len(pictures.labels), FLAGS.batch_size
    rows = (
        attack_libraries.batches(n, size) if ours else np.split(np.arange(n), range(size, n, size))
    )
    return np.concatenate([run(pictures.images01[i], pictures.labels[i]) for i in rows])[:n]


# --- how strong --------------------------------------------------------------------------------------------------------


class Robust(NamedTuple):
    """How many pictures are left: bool[n] right still, by the attacked network; the same by the other; seconds."""

    right: np.ndarray
    elsewhere: np.ndarray
    seconds: float


def robust(
    net: Twin,
    attempt: Callable[[], np.ndarray],
    pictures: Pictures,
    norm: str,
    eps: float,
    *,
    ours: bool,
) -> Robust:
    """Attacks and judges. What lies outside of the ball or the box fools nobody."""
    seconds, found = spent(attempt)
    far = distances(norm, found, pictures.images01) > eps * (1 + INSIDE) + TINY
    outside = far | (found.min(axis=(1, 2, 3)) < 0) | (found.max(axis=(1, 2, 3)) > 1)
    judges = (attack_libraries.our_logits, attack_libraries.torch_logits)[:: 1 if ours else -1]
    own, other = (
        (judge(net, found).argmax(axis=1) == pictures.labels) | outside for judge in judges
    )
    return Robust(own, other, seconds)


def distances(norm: str, found: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """f64[n], not by what an attack says of itself."""
    change = np.abs(found.astype(np.float64) - clean).reshape(len(clean), -1)
    return change.max(axis=1) if norm == "linf" else np.sqrt((change**2).sum(axis=1))


def attack_strength(arch: str, libraries: dict[str, str]) -> Iterator[Row]:
    """A row an attack, radius and library: per cent of the pictures that are called right still."""
    net = attack_libraries.twin(arch, size=FLAGS.size or None)
    pictures = called_right(net, FLAGS.limit)
    radii = [
        ("linf", cli.fraction(word, "linf") / 255, f"linf {word}/255")
        for word in FLAGS.linf
        if word
    ]
    radii += [("l2", cli.fraction(word, "l2"), f"l2 {word}") for word in FLAGS.l2 if word]
    for name in FLAGS.attacks:
        made = {
            norm: attack_libraries.ours(name, net, norm, budget())
            for norm in {norm: 0 for norm, _, _ in radii}
        }
        for norm, eps, where in radii:
            run = made[norm](eps)
            attempt = functools.partial(in_batches, run, pictures, ours=True)
            if (
                name == "autoattack"
            ):  # which makes batches of its own, of the pictures that are left
                attempt = functools.partial(run, *pictures[:2])
            mine = robust(net, attempt, pictures, norm, eps, ours=True)
            row: Row = {
                "what": f"robust accuracy, {where}, {name}",
                "arch": net.clf.arch,
                "unit": "%",
            }
            row |= {
                "ours": percent(mine.right),
                "interval": interval(mine.right),
                "n": len(mine.right),
            }
            row |= {"ours_elsewhere": percent(mine.elsewhere), "ours_seconds": mine.seconds}
            row["logit_error"] = pictures.error
            beside: list[Row] = [{}]
            for library, version in libraries.items():
                run = attack_libraries.theirs(library, name, net, norm, eps, budget())
                if run is not None:
                    attempt = functools.partial(in_batches, run, pictures, ours=False)
                    beside.append(
                        compared(
                            row, version, robust(net, attempt, pictures, norm, eps, ours=False)
                        )
                    )
            yield from [row | other for other in beside[1:] or beside]


def compared(row: Row, version: str, other: Robust) -> Row:
    """What a library adds to a row."""
    value = percent(other.right)
    found: Row = {"peer": version, "peer_value": value, "peer_interval": interval(other.right)}
    found |= {"peer_elsewhere": percent(other.elsewhere), "peer_seconds": other.seconds}
    found |= {"ratio": row["ours"] / value if value else None, "difference": row["ours"] - value}
    return found | goal("at most 1 point above", row["ours"] - value <= 1 + TINY)


def percent(right: np.ndarray) -> float:
    return 100 * float(right.mean())


def interval(right: np.ndarray) -> list[float]:
    """Wilson's, at 95 %, in per cent."""
    return [100 * end for end in metrics.wilson(int(right.sum()), len(right))]


def goal(words: str, met: bool) -> Row:
    return {"goal": words, "met": bool(met)}


# --- how near ----------------------------------------------------------------------------------------------------------


def attack_distance(arch: str, libraries: dict[str, str]) -> Iterator[Row]:
    """A row a search: the median distance; infinity where its pictures are called right still by the attacked network."""
    net = attack_libraries.twin(arch, size=FLAGS.size or None)
    everything = called_right(net, FLAGS.limit)
    for name, norm in attack_libraries.SEARCHES:
        pictures, steps = everything, FLAGS.deepfool_steps
        if name == "cw":
            rows = slice(FLAGS.cw_pictures)
            pictures = everything._replace(
                images01=everything.images01[rows], labels=everything.labels[rows]
            )
            steps = FLAGS.cw_steps
        mine, seconds = reach(
            net,
            attack_libraries.our_search(name, net, norm, steps, seed=FLAGS.seed),
            pictures,
            norm,
            ours=True,
        )
        row: Row = {
            "what": f"median distance, {name}, {norm}",
            "arch": net.clf.arch,
            "unit": norm,
            "n": len(mine),
        }
        row |= {
            "ours": median(mine),
            "not_found": int(np.isinf(mine).sum()),
            "ours_seconds": seconds,
        }
        if "foolbox" in libraries:
            run = attack_libraries.their_search(name, net, norm, steps)
            other, seconds = reach(net, run, pictures, norm, ours=False)
            ratio = median(mine) / median(other)  # not a number where neither has a median
            row |= {"peer": libraries["foolbox"], "peer_value": median(other), "ratio": ratio}
            row |= {"peer_not_found": int(np.isinf(other).sum()), "peer_seconds": seconds}
            row |= {"nearer": percent(mine < other)} | goal("at most 1.02 times", ratio <= 1.02)
        yield row


def reach(
    net: Twin, run: Run, pictures: Pictures, norm: str, *, ours: bool
) -> tuple[np.ndarray, float]:
    """Distances f64[n] and seconds."""
    seconds, found = spent(functools.partial(in_batches, run, pictures, ours=ours))
    judge = attack_libraries.our_logits if ours else attack_libraries.torch_logits
    fooled = judge(net, found).argmax(axis=1) != pictures.labels
    return np.where(fooled, distances(norm, found, pictures.images01), np.inf), seconds


def median(values: np.ndarray) -> float:
    """The lower of the middle two, so that half failures are not infinity less infinity."""
    return float(np.sort(values)[(len(values) - 1) // 2])


# --- how fast ----------------------------------------------------------------------------------------------------------


def spent(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what it returned."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def timed(
    calls: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each one's calls, a first and `rounds` more in which they take turns; and what the last returned."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    results = {}
    for _ in range(1 + rounds):
        for name, call in calls.items():
            seconds, results[name] = spent(call)
            times[name].append(seconds)
    return times, results


def speed_rows(
    row: Row, own: str, peers: dict[str, str], n: int, times: dict[str, list[float]]
) -> list[Row]:
    """Pictures a second of ours, called `own`, beside each of `peers`; the first of the times is with compiling."""

    def rate(name: str) -> tuple[float, list[float], float]:
        first, *rest = times[name]
        return n / float(np.median(rest)), [n / max(rest), n / min(rest)], max(first - rest[0], 0.0)

    row = (
        row
        | dict(zip(("ours", "spread", "compile_seconds"), rate(own), strict=True))
        | {"unit": "images/s", "n": n}
    )
    rows = []
    for name, version in peers.items():
        other = dict(
            zip(("peer_value", "peer_spread", "peer_compile_seconds"), rate(name), strict=True)
        )
        rows.append(row | {"peer": version} | other | {"ratio": row["ours"] / other["peer_value"]})
    return rows or [row]


def solved(net: Twin, found: np.ndarray, pictures: Pictures, *, ours: bool) -> float:
    """Per cent of the pictures that the attacked network does not call right any more."""
    judge = attack_libraries.our_logits if ours else attack_libraries.torch_logits
    return percent(judge(net, found).argmax(axis=1) != pictures.labels)


def attack(arch: str, libraries: dict[str, str]) -> Iterator[Row]:
    """PGD's pictures a second, at one radius, from a random start: two rows a library."""
    net = attack_libraries.twin(arch, size=FLAGS.size or None)
    eps, pictures = cli.fraction(FLAGS.eps, "eps"), a_batch(net)
    runs = {
        kind: attack_libraries.ours(
            "pgd", net, "linf", budget(), slots=FLAGS.slots, early_stop=kind == "early stopping"
        )(eps)
        for kind in ("early stopping", "all steps")
    }
    peers = {}
    for library in [*libraries, *(["foolbox on JAX"] if "foolbox" in libraries else [])]:
        made = attack_libraries.theirs(library, "pgd", net, "linf", eps, budget())
        assert made is not None
        runs[library], peers[library] = made, named(library, libraries)
    times, found = timed(
        {name: functools.partial(run, *pictures[:2]) for name, run in runs.items()}, FLAGS.rounds
    )
    for kind in ("early stopping", "all steps"):
        row: Row = {
            "what": f"PGD-{FLAGS.steps}, linf {FLAGS.eps}, {kind}",
            "arch": net.clf.arch,
            "weights": net.weights,
        }
        row["solved"] = solved(net, found[kind], pictures, ours=True)
        for done, library in zip(
            speed_rows(row, kind, peers, len(pictures.labels), times), peers or [""], strict=True
        ):
            if library:
                done["peer_solved"] = solved(
                    net, found[library], pictures, ours=library == "foolbox on JAX"
                )
            yield done


def a_batch(net: Twin) -> Pictures:
    """--batch_size pictures that are called right, over and over where there are fewer."""
    pictures = called_right(net, FLAGS.batch_size)
    rows = np.resize(np.arange(len(pictures.labels)), FLAGS.batch_size)
    return pictures._replace(images01=pictures.images01[rows], labels=pictures.labels[rows])


def named(library: str, libraries: dict[str, str]) -> str:
    """A library, its version, and where it computes."""
    if library == "foolbox on JAX":
        return f"{libraries['foolbox']} on our network in JAX"
    return f"{libraries[library]} on torch, {attack_libraries.torch_device()}"


def attack_sweep(arch: str, libraries: dict[str, str]) -> Iterator[Row]:
    """Seconds of PGD at eight radii, all steps walked, beside those of one: eps is traced, nothing compiles again."""
    del libraries
    net = attack_libraries.twin(arch, size=FLAGS.size or None)
    pictures, at = (
        a_batch(net),
        attack_libraries.ours("pgd", net, "linf", budget(), early_stop=False),
    )

    def over(radii: Sequence[float]) -> None:
        for levels in radii:
            at(levels / 255)(*pictures[:2])

    over(SWEEP[:1])  # compiles
    times, _ = timed(
        {"one": lambda: over([2.5]), "all": lambda: over(SWEEP)}, max(FLAGS.rounds - 1, 0)
    )
    one, all_ = (float(np.median(times[name])) for name in ("one", "all"))
    row: Row = {
        "what": f"PGD-{FLAGS.steps}, a sweep of {len(SWEEP)} eps",
        "arch": net.clf.arch,
        "ours": all_,
        "unit": "s",
    }
    row |= {
        "spread": [max(times["all"]), min(times["all"])],
        "peer": "one eps",
        "peer_value": one,
        "ratio": all_ / one,
    }
    yield row | goal("at most 8.2 times", all_ / one <= 8.2)


def autoattack(arch: str, libraries: dict[str, str]) -> Iterator[Row]:
    """AutoAttack's pictures a second; one round, of minutes, after a first call that compiles."""
    net = attack_libraries.twin(arch, size=FLAGS.size or None)
    eps, pictures = cli.fraction(FLAGS.autoattack_eps, "autoattack_eps"), a_batch(net)
    runs, peers = {"tl": attack_libraries.ours("autoattack", net, "linf", budget())(eps)}, {}
    if "torchattacks" in libraries:
        made = attack_libraries.theirs("torchattacks", "autoattack", net, "linf", eps, budget())
        assert made is not None
        runs["torchattacks"], peers["torchattacks"] = made, named("torchattacks", libraries)
    times, found = timed(
        {name: functools.partial(run, *pictures[:2]) for name, run in runs.items()}, 1
    )
    row: Row = {
        "what": f"AutoAttack, linf {FLAGS.autoattack_eps}",
        "arch": net.clf.arch,
        "weights": net.weights,
    }
    row |= {"apgd_steps": FLAGS.apgd_steps, "queries": FLAGS.queries}
    row["solved"] = solved(net, found["tl"], pictures, ours=True)
    for done in speed_rows(row, "tl", peers, len(pictures.labels), times):
        if peers:
            done["peer_solved"] = solved(net, found["torchattacks"], pictures, ours=False)
            done |= goal("at least 1.5 times", done["ratio"] >= 1.5)
        yield done


# --- the run -----------------------------------------------------------------------------------------------------------


def line(row: Row) -> str:
    """One row as the terminal shows it."""
    said = f"{row['arch']:22s} {row['what']:40s} {shown(row, 'ours')}"
    if row.get("peer"):
        said += f"   {row['peer']} {shown(row, 'peer_value')}"
    if row.get("ratio") is not None:
        said += f"   ratio {row['ratio']:.3f}"
    if "goal" in row:
        said += f"   {row['goal']}: {'yes' if row['met'] else 'NO'}"
    return said


def shown(row: Row, key: str) -> str:
    """A value with what belongs to it: its interval, its slowest and fastest round."""
    side = "peer_" if key == "peer_value" else ""
    said = f"{row[key]:.4g} {row['unit']}"
    for name in ("interval", "spread"):
        if f"{side}{name}" in row:
            said += " ({:.4g} to {:.4g})".format(*row[f"{side}{name}"])
    for name, word in (
        ("compile_seconds", "compiling {:.0f} s"),
        ("solved", "{:.0f} % solved"),
        ("not_found", "{} missed"),
    ):
        if f"{side}{name}" in row:
            said += ", " + word.format(row[f"{side}{name}"])
    return said


WORKS: dict[str, Callable[[str, dict[str, str]], Iterator[Row]]] = {
    "attack_strength": attack_strength,
    "attack_distance": attack_distance,
    "attack": attack,
    "attack_sweep": attack_sweep,
    "autoattack": autoattack,
}


def main(run: reporting.Run) -> None:
    archs = [backbones.get(arch).name for arch in FLAGS.arch]
    for what in FLAGS.what:
        if what not in WORKS:
            raise ValueError(f"unknown --what={what}; wanted some of {', '.join(WORKS)}")
    for name in FLAGS.attacks if "attack_strength" in FLAGS.what else []:
        attacks.get(name)  # an unknown one is told before an hour is spent
    libraries = {
        library: version
        for library in FLAGS.peers
        if (version := attack_libraries.installed(library))
    }
    rows: list[Row] = []
    for what in dict.fromkeys(FLAGS.what):
        for arch in archs:
            folder = tempfile.TemporaryDirectory()
            with (
                folder as path,
                bench.nothing_known(Path(path)),
                attack_libraries.precision(FLAGS.precision),
            ):
                for row in WORKS[what](arch, libraries):
                    run.log(row)
                    print(line(row), flush=True)
                    rows.append(row)
    header = ("what", "architecture", "tl", "peer", "the peer's", "ratio", "goal")
    cells = [
        (row["what"], row["arch"], shown(row, "ours"), row.get("peer") or "-")
        + (
            shown(row, "peer_value") if row.get("peer") else "-",
            f"{row['ratio']:.3f}" if row.get("ratio") else "-",
        )
        + (f"{row['goal']}: {'yes' if row['met'] else 'no'}" if "goal" in row else "-",)
        for row in rows
    ]
    missed = [row["what"] for row in rows if not row.get("met", True)]
    lead = f"The same weights, pictures and budget, on {jax.devices()[0].device_kind}. Intervals are Wilson's, at 95 %."
    table = reporting.section("Beside other libraries", reporting.table(cells, header))
    run.finish(
        {"rows": rows, "missed": missed},
        reporting.page("Attacks beside others'", lead, [table], facts=run.facts()),
    )
    print(
        f"{sum('met' in row for row in rows)} goals, {len(missed)} missed\n{run.workdir / 'report.html'}"
    )


if __name__ == "__main__":
    cli.launch("peers", main, define_flags)
