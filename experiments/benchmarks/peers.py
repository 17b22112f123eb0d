"""Attacks compared with those of foolbox and torchattacks: same weights, images and budget.

  ./launch.sh peers --what=attack_strength --data=DATA/imagenet_samples
  ./launch.sh peers --attacks=autoattack --l2= --linf=0.5 --data=DATA/imagenet_samples
  ./launch.sh peers --what=attack_distance --data=DATA/imagenet_samples --cw_pictures=16
  ./launch.sh peers --what=attack --arch=efficientnet_lite0,resnet50 --data=DATA/imagenet_samples
  ./launch.sh peers --what=attack_sweep
  ./launch.sh peers --what=autoattack --apgd_steps=100 --queries=5000 --data=DATA/imagenet_samples

  attack_strength  robust accuracy at each radius, of --limit images that both networks classify
                   correctly; each library's examples are evaluated by the network that it attacked.
                   Goal: at most one point above the other library's
  attack_distance  median distance of DeepFool's and Carlini-Wagner's examples, infinity where none
                   was found. Goal: at most 1.02 times the other library's
  attack           images per second of PGD with early stopping and with all steps; the other
                   libraries always take all steps
  attack_sweep     seconds of eight radii compared with one. Goal: at most 8.2 times
  autoattack       images per second of AutoAttack at --autoattack_eps. Goal: at least 1.5 times
                   torchattacks'

torch, torchvision and timm make the networks (the `parity` extra), which includes foolbox;
torchattacks is installed without its dependencies, which require an old requests:
`pip install --no-deps torchattacks`. A missing library is left out. Without --data the images are
the twenty labeled photographs of the `offline` extra. On a GPU torch uses it too, if it can, both
libraries in float32 or, with --precision=tf32, in TF32.

Times are from the call to examples on the host; the libraries take turns. Compilation is reported
separately: the first call minus the second. If no package has a network's weights, they are random,
and the network's own predictions are the labels.

Expected on two CPU cores: PGD-40 on EfficientNet-Lite0 has 5.58 images/s (5.58 to 5.59), 6.7 times
foolbox's rate (`speed_pgd40` in RESULTS.md); the median distance of DeepFool in L2 is 0.999 times
foolbox's (`distance_cpu`). Cost: minutes, or up to an hour for attack_strength.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments.benchmarks import attack_libraries, sources
from experiments.benchmarks.attack_libraries import ON_JAX, Budget, Run, Twin
from tl import attacks, backbones, cli, data, inference, metrics, pages, pixels, reporting
from tl.evaluation import timing
from tl.evaluation.timing import Row, goal, spent

# torch needs part of a GPU's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

FLAGS = flags.FLAGS
# Radii of the sweep, in levels of 255.
SWEEP = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
# Tolerance of float32 for the ball: as a share of eps, and absolute.
INSIDE, TINY = 1e-4, 1e-6
ATTACKS = "pgd,apgd_ce,apgd_t,fab,square,autoattack"


def define_flags() -> None:
    flags.DEFINE_list("what", "attack_strength", f"What is compared: {', '.join(WORKS)}.")
    flags.DEFINE_list("arch", "efficientnet_lite0", "Architectures.")
    flags.DEFINE_string(
        "data", "", "Folder of images in folders named after their classes. Default: packaged."
    )
    flags.DEFINE_list(
        "peers", ",".join(attack_libraries.LIBRARIES), "Libraries to compare with; empty for none."
    )
    flags.DEFINE_list("attacks", ATTACKS, "For attack_strength: attacks, by tl's names.")
    flags.DEFINE_list("linf", "0.25,0.5,1", "For attack_strength: Linf radii, in levels of 255.")
    flags.DEFINE_list("l2", "0.25", "For attack_strength: L2 radii, in [0, 1] pixel units.")
    flags.DEFINE_string("eps", "1/255", "For attack: the Linf radius.")
    flags.DEFINE_string("autoattack_eps", "1/510", "For autoattack: the Linf radius; half a level.")
    for name, default, words in (
        ("limit", 100, "For attack_strength and attack_distance: number of images."),
        ("cw_pictures", 32, "For attack_distance: number of images for Carlini-Wagner."),
        ("batch_size", 32, "Images per call."),
        ("steps", 40, "Steps of PGD."),
        ("apgd_steps", 50, "Steps of APGD, APGD-T and FAB, alone and in AutoAttack."),
        ("queries", 1000, "Queries of Square, alone and in AutoAttack."),
        ("deepfool_steps", 50, "Steps of DeepFool."),
        ("cw_steps", 200, "Steps of each of Carlini-Wagner's nine searches."),
        ("rounds", 3, "Timed rounds, of which the median counts."),
    ):
        flags.DEFINE_integer(name, default, words, lower_bound=1)
    flags.DEFINE_enum(
        "precision", "float32", ["float32", "tf32"], "Precision of both libraries on a GPU."
    )
    flags.DEFINE_integer(
        "slots", 0, "For attack: images that tl attacks at a time; 0: automatic.", lower_bound=0
    )
    flags.DEFINE_integer("size", 0, "Side of the images; 0: the weights' own.", lower_bound=0)


def budget() -> Budget:
    return Budget(FLAGS.steps, FLAGS.apgd_steps, FLAGS.queries, FLAGS.seed)


# ---- images ----


class Images(NamedTuple):
    """Images that both networks classify correctly.

    Attributes:
      images01: f32[n s s 3].
      labels: i[n].
      error: largest difference of the networks' logits, in units of the largest.
    """

    images01: np.ndarray
    labels: np.ndarray
    error: float

    def take(self, rows: Any) -> Images:
        return self._replace(images01=self.images01[rows], labels=self.labels[rows])


def read(net: Twin, limit: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images01, labels) of --data or of the packaged photographs, in batches in random order."""
    if FLAGS.data:
        paths = list(data.find_images(FLAGS.data)[0])
        classes = inference.folder_labels(net.clf, paths)
    else:
        examples = data.labeled_photographs().examples
        paths, classes = [e.path for e in examples], np.array([e.label for e in examples])
    order = np.random.default_rng(FLAGS.seed).permutation(len(paths))
    for rows in np.split(order, range(limit, len(order), limit)):
        for batch in data.load([paths[i] for i in rows], net.clf.prepare, batch_size=len(rows)):
            images01 = pixels.to_images01(batch.images[batch.valid])
            yield images01, classes[rows[batch.index[batch.valid]]]


def correct_images(net: Twin, limit: int) -> Images:
    """At most `limit` images that both networks classify correctly.

    With random weights the common prediction counts as correct.

    Raises:
      ValueError: the networks differ, or there is no such image.
    """
    images, labels, error = [], [], 0.0
    for images01, classes in read(net, limit):
        error = max(error, attack_libraries.disagreement(net, images01))
        ours = attack_libraries.tl_logits(net, images01).argmax(axis=1)
        theirs = attack_libraries.torch_logits(net, images01).argmax(axis=1)
        right = (ours == theirs) & ((ours == classes) | (net.weights == "random"))
        images.append(images01[right])
        labels.append(ours[right])
        if sum(map(len, images)) >= limit:
            break
    if not sum(map(len, images)):
        raise ValueError(
            f"no image of {FLAGS.data or 'the packages'} is classified correctly; give other "
            "images by `data`"
        )
    return Images(np.concatenate(images)[:limit], np.concatenate(labels)[:limit], error)


def one_batch(net: Twin) -> Images:
    """--batch_size images that are classified correctly, repeated if there are fewer."""
    images = correct_images(net, FLAGS.batch_size)
    return images.take(np.resize(np.arange(len(images.labels)), FLAGS.batch_size))


def run_in_batches(run: Run, images: Images, *, ours: bool) -> np.ndarray:
    """Adversarial examples for all images; tl's batches have one shape and share a program."""
    n, size = len(images.labels), FLAGS.batch_size
    if ours:
        return inference.in_batches(run, *images[:2], batch_size=min(size, n))
    rows = [slice(start, start + size) for start in range(0, n, size)]
    return np.concatenate([run(*images.take(some)[:2]) for some in rows])


def predictions(net: Twin, images01: np.ndarray, *, ours: bool) -> np.ndarray:
    """Classes i[n], by tl's network or by torch's."""
    logits = attack_libraries.tl_logits if ours else attack_libraries.torch_logits
    return logits(net, images01).argmax(axis=1)


# ---- robust accuracy ----


class Robust(NamedTuple):
    """Result of an attack on a set of images.

    Attributes:
      right: bool[n], whether the attacked network classifies the example correctly.
      elsewhere: bool[n], whether the other library's network does.
      seconds: duration of the attack.
    """

    right: np.ndarray
    elsewhere: np.ndarray
    seconds: float


def robust(
    net: Twin,
    attempt: Callable[[], np.ndarray],
    images: Images,
    norm: str,
    eps: float,
    *,
    ours: bool,
) -> Robust:
    """Attacks and evaluates; an example outside of the ball or of [0, 1] counts as a failure."""
    seconds, examples = spent(attempt)
    far = distances(norm, examples, images.images01) > eps * (1 + INSIDE) + TINY
    outside = far | (examples.min(axis=(1, 2, 3)) < 0) | (examples.max(axis=(1, 2, 3)) > 1)
    attacked, other = (
        (predictions(net, examples, ours=side) == images.labels) | outside
        for side in (ours, not ours)
    )
    return Robust(attacked, other, seconds)


def distances(norm: str, examples: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """f64[n], measured on the images, not as the attack reports them."""
    change = np.abs(examples.astype(np.float64) - originals).reshape(len(originals), -1)
    return change.max(axis=1) if norm == "linf" else np.sqrt((change**2).sum(axis=1))


def attack_strength(net: Twin, libraries: dict[str, str]) -> Iterator[Row]:
    """One row per attack, radius and library: robust accuracy in percent."""
    images = correct_images(net, FLAGS.limit)
    linf, l2 = (filter(None, words) for words in (FLAGS.linf, FLAGS.l2))
    radii = [("linf", cli.fraction(word, "linf") / 255, f"linf {word}/255") for word in linf]
    radii += [("l2", cli.fraction(word, "l2"), f"l2 {word}") for word in l2]
    balls = dict.fromkeys(norm for norm, _, _ in radii)
    for name in FLAGS.attacks:
        at = {norm: attack_libraries.tl_attack(name, net, norm, budget()) for norm in balls}
        for norm, eps, where in radii:
            # AutoAttack makes its own batches, of the images that are left.
            attempt = functools.partial(at[norm](eps), *images[:2])
            if name != "autoattack":
                attempt = functools.partial(run_in_batches, at[norm](eps), images, ours=True)
            result = robust(net, attempt, images, norm, eps, ours=True)
            row: Row = {"what": f"robust accuracy, {where}, {name}", "arch": net.clf.arch}
            row |= {"unit": "%", "ours": percent(result.right), "interval": interval(result.right)}
            row |= {"n": len(result.right), "ours_elsewhere": percent(result.elsewhere)}
            row |= {"ours_seconds": result.seconds, "logit_error": images.error}
            rows = []
            for library, version in libraries.items():
                run = attack_libraries.peer_attack(library, name, net, norm, eps, budget())
                if run is not None:
                    attempt = functools.partial(run_in_batches, run, images, ours=False)
                    other = robust(net, attempt, images, norm, eps, ours=False)
                    rows.append(next_to(row, version, other))
            yield from rows or [row]


def next_to(row: Row, version: str, other: Robust) -> Row:
    """The row with the result of another library and the goal."""
    value = percent(other.right)
    difference = row["ours"] - value
    return {
        **timing.compared(row, version, [value]),
        "peer_interval": interval(other.right),
        "peer_elsewhere": percent(other.elsewhere),
        "peer_seconds": other.seconds,
        "difference": difference,
        **goal("at most 1 point above", difference <= 1 + TINY),
    }


def percent(right: np.ndarray) -> float:
    return 100 * float(right.mean())


def interval(right: np.ndarray) -> list[float]:
    """Wilson's 95 % interval, in percent."""
    return [100 * end for end in metrics.wilson(int(right.sum()), len(right))]


# ---- distance ----


def attack_distance(net: Twin, libraries: dict[str, str]) -> Iterator[Row]:
    """One row per search: the median distance, where an image without an example is at infinity."""
    all_images = correct_images(net, FLAGS.limit)
    for name, norm in attack_libraries.SEARCHES:
        cw = name == "cw"
        images = all_images.take(slice(FLAGS.cw_pictures)) if cw else all_images
        steps = FLAGS.cw_steps if cw else FLAGS.deepfool_steps
        run = attack_libraries.tl_search(name, net, norm, steps, seed=FLAGS.seed)
        ours, seconds = reach(net, run, images, norm, ours=True)
        row: Row = {"what": f"median distance, {name}, {norm}", "arch": net.clf.arch, "unit": norm}
        row |= {"n": len(ours), "ours": median(ours), "not_found": int(np.isinf(ours).sum())}
        row["ours_seconds"] = seconds
        if "foolbox" in libraries:
            run = attack_libraries.peer_search(name, net, norm, steps)
            other, seconds = reach(net, run, images, norm, ours=False)
            ratio = median(ours) / median(other)  # NaN where neither has a finite median
            row |= {"peer": libraries["foolbox"], "peer_value": median(other), "ratio": ratio}
            row |= {"peer_not_found": int(np.isinf(other).sum()), "peer_seconds": seconds}
            row |= {"nearer": percent(ours < other)} | goal("at most 1.02 times", ratio <= 1.02)
        yield row


def reach(
    net: Twin, run: Run, images: Images, norm: str, *, ours: bool
) -> tuple[np.ndarray, float]:
    """Distances f64[n], and seconds."""
    seconds, examples = spent(functools.partial(run_in_batches, run, images, ours=ours))
    fooled = predictions(net, examples, ours=ours) != images.labels
    return np.where(fooled, distances(norm, examples, images.images01), np.inf), seconds


def median(values: np.ndarray) -> float:
    """The lower of the two middle values, so that it is defined when half of them are infinite."""
    return float(np.sort(values)[(len(values) - 1) // 2])


# ---- speed ----


def timed_rows(
    net: Twin,
    title: Callable[[str], str],
    ours: dict[str, Run],
    theirs: dict[str, tuple[Run, str]],
    rounds: int,
    **more: Any,
) -> Iterator[Row]:
    """Images per second: one row per run of tl and per library; compilation is separate.

    Args:
      net: the attacked network.
      title: name of a run of tl -> `what` of its rows.
      ours: name -> run of tl.
      theirs: library -> its run, and its name for the row.
      rounds: timed rounds, after a first call that compiles.
      **more: further entries of the rows.
    """
    images = one_batch(net)
    runs = {**ours, **{library: run for library, (run, _) in theirs.items()}}
    examples: dict[str, np.ndarray] = {}

    def attack(name: str) -> None:
        examples[name] = runs[name](*images[:2])

    calls = {name: functools.partial(attack, name) for name in runs}
    times, n = timing.take_turns(calls, 1 + rounds, warm_up=0), len(images.labels)

    def values(name: str, prefix: str) -> Row:
        first, *rest = times[name]
        side = name not in theirs or name == ON_JAX
        solved = percent(predictions(net, examples[name], ours=side) != images.labels)
        return {
            f"{prefix}spread": [n / max(rest), n / min(rest)],
            f"{prefix}compile_seconds": max(first - rest[0], 0.0),
            f"{prefix}solved": solved,
        }

    rate = lambda name: n / float(np.median(times[name][1:]))
    for name in ours:
        row: Row = {"what": title(name), "arch": net.clf.arch, "weights": net.weights, **more}
        row |= {"ours": rate(name), "unit": "images/s", "n": n, **values(name, "")}
        for library, (_, version) in theirs.items():
            yield timing.compared(row, version, [rate(library)]) | values(library, "peer_")
        if not theirs:
            yield row


def peer_runs(
    net: Twin, name: str, eps: float, names: Sequence[str], libraries: dict[str, str]
) -> dict[str, tuple[Run, str]]:
    """Library -> its attack, and its version with the place where it computes."""
    runs = {}
    for library in names:
        run = attack_libraries.peer_attack(library, name, net, "linf", eps, budget())
        assert run is not None
        words = f"{libraries['foolbox']} on our network in JAX" if library == ON_JAX else ""
        words = words or f"{libraries[library]} on torch, {attack_libraries.torch_device()}"
        runs[library] = run, words
    return runs


def attack(net: Twin, libraries: dict[str, str]) -> Iterator[Row]:
    """PGD at one radius from a random start: two rows per library."""
    eps = cli.fraction(FLAGS.eps, "eps")
    ours = {
        kind: attack_libraries.tl_attack(
            "pgd", net, "linf", budget(), slots=FLAGS.slots, early_stop=stop
        )(eps)
        for kind, stop in (("early stopping", True), ("all steps", False))
    }
    names = [*libraries, *([ON_JAX] if "foolbox" in libraries else [])]
    theirs = peer_runs(net, "pgd", eps, names, libraries)
    title = lambda kind: f"PGD-{FLAGS.steps}, linf {FLAGS.eps}, {kind}"
    yield from timed_rows(net, title, ours, theirs, FLAGS.rounds)


def autoattack(net: Twin, libraries: dict[str, str]) -> Iterator[Row]:
    """AutoAttack: one round, which takes minutes, after a first call that compiles."""
    eps = cli.fraction(FLAGS.autoattack_eps, "autoattack_eps")
    ours = {"tl": attack_libraries.tl_attack("autoattack", net, "linf", budget())(eps)}
    names = [library for library in libraries if library == "torchattacks"]
    theirs = peer_runs(net, "autoattack", eps, names, libraries)
    title = lambda _: f"AutoAttack, linf {FLAGS.autoattack_eps}"
    more = {"apgd_steps": FLAGS.apgd_steps, "queries": FLAGS.queries}
    for row in timed_rows(net, title, ours, theirs, 1, **more):
        met = goal("at least 1.5 times", row["ratio"] >= 1.5) if "ratio" in row else {}
        yield row | met


def attack_sweep(net: Twin, libraries: dict[str, str]) -> Iterator[Row]:
    """Seconds of PGD with all steps at eight radii and at one: eps is traced, so one program."""
    del libraries
    images = one_batch(net)
    at = attack_libraries.tl_attack("pgd", net, "linf", budget(), early_stop=False)

    def over(radii: Sequence[float]) -> None:
        for levels in radii:
            at(levels / 255)(*images[:2])

    over(SWEEP[:1])  # compiles
    calls = {"one": lambda: over([2.5]), "all": lambda: over(SWEEP)}
    times = timing.take_turns(calls, FLAGS.rounds, warm_up=0)
    title = f"PGD-{FLAGS.steps}, a sweep of {len(SWEEP)} eps"
    row = timing.rate_row(title, net.clf.arch, times["all"], unit="s")
    row = timing.compared(row, "one eps", times["one"])
    yield row | goal("at most 8.2 times", row["ratio"] <= 8.2)


# ---- the run ----

WORKS: dict[str, Callable[[Twin, dict[str, str]], Iterator[Row]]] = {
    "attack_strength": attack_strength,
    "attack_distance": attack_distance,
    "attack": attack,
    "attack_sweep": attack_sweep,
    "autoattack": autoattack,
}


def rows(archs: Sequence[str], libraries: dict[str, str]) -> Iterator[Row]:
    """The rows of all comparisons that the flags name."""
    for kind in dict.fromkeys(FLAGS.what):
        for arch in archs:
            with (
                tempfile.TemporaryDirectory() as folder,
                timing.empty_caches(Path(folder)),
                attack_libraries.precision(FLAGS.precision),
            ):
                net = attack_libraries.twin(arch, size=FLAGS.size or None)
                yield from WORKS[kind](net, libraries)


def main(run: reporting.Run) -> None:
    archs = [backbones.get(arch).name for arch in FLAGS.arch]
    sources.check_words("what", FLAGS.what, WORKS)
    for name in FLAGS.attacks if "attack_strength" in FLAGS.what else []:
        attacks.get(name)  # an unknown name is an error before an hour of work
    versions = {name: sources.installed(name, attack_libraries.LIBRARIES) for name in FLAGS.peers}
    libraries = {name: version for name, version in versions.items() if version}
    result = timing.collect(run, rows(archs, libraries), pages.bench.line)
    missed = [row["what"] for row in result if not row.get("met", True)]
    device = jax.devices()[0].device_kind
    page = pages.finish(run, {"device": device, "rows": result, "missed": missed})
    print(f"{sum('met' in row for row in result)} goals, {len(missed)} missed")
    print(page)


if __name__ == "__main__":
    cli.launch("peers", main, define_flags)
