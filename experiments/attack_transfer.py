"""Do pictures made against one network fool another, and is an ensemble a protection? Every network against every other.

  ./launch.sh attack_transfer --images=DIR --labels=folder --eps=8/255 --limit=100
  ./launch.sh attack_transfer --images=DIR --networks=squeezenet1_1,MODELDIR --attack=di_fgsm --eps=4/255

One picture for all: a square of `--size` pixels, in which eps is measured. Whoever looks at it, to attack or to judge, resizes
the whole of it to its own side by its own rule (an attack with a gradient, `pixels.resize_on_device`), and what is judged has
been an 8-bit PNG in between. The side is by default that of the smallest network, so that none averages a change away.

Only pictures are used that all networks name rightly: every error is the attack's. Beside each network as the source stand the
others together, without the one that is judged (Liu et al. 2017, arXiv:1611.02770, section 5), and, as a control, random noise
of the same size. As a defender, all networks together are attacked with pictures made on one of them, and as what they are.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from tl import attacks, cli, data, devices, inference, metrics, models, pixels, reporting
from tl.attacks import ensemble, goals, norms
from tl.attacks.base import Logits
from tl.inference import folder_labels
from tl.models import Classifier
from tl.pages import common
from tl.reporting import Html
from tl.types import Variables

FLAGS = flags.FLAGS
PACKAGED = [
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "squeezenet1_1",
]  # with 1000 classes
GOING_ON = [
    name
    for name, make in attacks.ATTACKS.items()
    if "early_stop" in inspect.signature(make).parameters
]
LOSS = "margin"  # ce is flat in float32 where the source is surely wrong, which is where a transfer begins
TOGETHER, OTHERS = "all together", "all the others"
WHOLE = f"{TOGETHER}, attacked as what they are"
READ = 16  # pictures at once, until there are enough
GROUP = 20  # pictures a compiled call, or as many as a device steps side by side
SHOWN = 2  # photographs on the page


def define_flags() -> None:
    flags.DEFINE_string(
        "images", None, "Files, folders and globs, separated by commas.", required=True
    )
    flags.DEFINE_list(
        "networks", PACKAGED, "Names, or folders saved by transfer, with the same classes."
    )
    flags.DEFINE_enum(
        "labels",
        "none",
        ["none", "folder"],
        "folder: a picture's folder is its class. none: what all call it.",
    )
    flags.DEFINE_integer(
        "limit", 100, "At most so many pictures, drawn at random; 0 for all.", lower_bound=0
    )
    flags.DEFINE_enum(
        "attack", "mi_fgsm", GOING_ON, "How; each goes on where the source is fooled already."
    )
    flags.DEFINE_enum("norm", "linf", list(norms.NORMS), "How far is measured.")
    flags.DEFINE_string("eps", "8/255", "Radius in [0, 1] pixel units.")
    flags.DEFINE_integer(
        "steps",
        10,
        "Of each attack; 10 is MI-FGSM's (arXiv:1710.06081, section 4.1).",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "size",
        0,
        "Side of the picture that all see. Default: the smallest network's.",
        lower_bound=0,
    )


class Settings(NamedTuple):
    """How pictures are made."""

    attack: str = "mi_fgsm"
    norm: str = "linf"
    eps: float = 8 / 255
    steps: int = 10
    seed: int = 0


class Network(NamedTuple):
    """A network that sees pictures whole, and its variables with BatchNorm folded away, on the device."""

    name: str
    clf: Classifier
    variables: Variables


class Chosen(NamedTuple):
    """Pictures that all networks name rightly, and how many were looked at for them.

    `images` uint8[n s s 3] of the `paths`, `truth` i[n]; of `seen` pictures each network named `wrong` i[m] wrongly.
    """

    paths: list[Path]
    images: np.ndarray
    truth: np.ndarray
    seen: int
    wrong: np.ndarray
    skipped: list[dict[str, str]]


def network(name: str, clf: Classifier, variables: Variables) -> Network:
    return Network(name, clf.with_pixels(crop=1.0), jax.device_put(clf.fold_batch_norm(variables)))


def load(names: Sequence[str]) -> tuple[list[Network], pixels.PixelSpec]:
    """The networks, and the first one's rule for photographs.

    Raises:
      ValueError: fewer than two, one of them twice, one without classes, or with other classes than the first.
    """
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"--networks={','.join(names)}: wanted at least two networks, all different"
        )
    loaded = [models.load(name) for name in names]
    for name, (clf, _) in zip(names, loaded, strict=True):
        if (
            inference.class_table(clf).display_names
            != inference.class_table(loaded[0][0]).display_names
        ):
            raise ValueError(
                f"{name} has other classes than {names[0]}; a picture can only be carried to the same ones"
            )
    found = [
        network(n, clf.with_dtype(devices.default_dtype()), own)
        for n, (clf, own) in zip(names, loaded, strict=True)
    ]
    return found, loaded[0][0].pixels


def sees(each: Network) -> Logits:
    """`(variables, images01 f32[b s s 3]) -> f32[b k]` of pictures of any size, with a gradient: the side is the network's."""
    return lambda variables, images01: each.clf.logits(
        variables, pixels.resize_on_device(each.clf.pixels, images01)
    )


def say(networks: Sequence[Network], images: np.ndarray) -> np.ndarray:
    """Logits f32[m n k] of each network about pictures uint8[n s s 3], resized by its own `prepare`."""
    return np.stack(
        [
            inference.predict_logits(
                each.clf, each.variables, np.stack([each.clf.prepare(image) for image in images])
            )
            for each in networks
        ]
    )


def read_back(images: np.ndarray) -> np.ndarray:
    """uint8[n s s 3] as an 8-bit PNG gives them back."""
    found = []
    for image in images:
        file = io.BytesIO()
        reporting.save_png(file, image)
        found.append(data.decode(file.getvalue()))
    return np.stack(found)


def choose(
    networks: Sequence[Network],
    photograph: pixels.PixelSpec,
    images: Any,
    *,
    labelled: bool,
    limit: int,
    seed: int,
) -> Chosen:
    """Pictures drawn at random until `limit` of them (0: all) are named rightly by all networks.

    Args:
      photograph: how a photograph becomes the square that all see.
      labelled: a picture's folder is its class; else its class is what all networks call it.

    Raises:
      ValueError: there is no such picture.
    """
    paths, left_out = data.find_images(images)
    paths = [paths[i] for i in np.random.default_rng(seed).permutation(len(paths))]
    skips = [skip._asdict() for skip in left_out]
    kept, squares, truths, seen, wrong = [], [], [], 0, np.zeros(len(networks), np.int64)
    for batch in data.load(paths, lambda image: pixels.prepare(photograph, image), batch_size=READ):
        skips += [skip._asdict() for skip in batch.skipped]
        if not batch.valid.any():
            continue
        own, shown = [paths[i] for i in batch.index[batch.valid]], batch.images[batch.valid]
        called = say(networks, shown).argmax(axis=2)
        truth = folder_labels(networks[0].clf, own) if labelled else called[0]
        right = (called == truth).all(axis=0)
        seen, wrong = seen + len(own), wrong + (called != truth).sum(axis=1)
        kept += [path for path, good in zip(own, right, strict=True) if good]
        squares, truths = [*squares, shown[right]], [*truths, truth[right]]
        print(
            f"{len(kept)} of {seen} pictures are named rightly by all {len(networks)} networks",
            flush=True,
        )
        if limit and len(kept) >= limit:
            break
    if not kept:
        raise ValueError(
            f"none of {seen} pictures is named rightly by all {len(networks)} networks; take others, or fewer --networks"
        )
    n = limit or len(kept)
    return Chosen(
        kept[:n], np.concatenate(squares)[:n], np.concatenate(truths)[:n], seen, wrong, skips
    )


def made(
    logits: Logits, variables: Any, chosen: Chosen, k: int, how: Settings, label: str
) -> np.ndarray:
    """Adversarial pictures uint8[n s s 3] of one network, or of several as one, as read back; k classes."""
    search = attacks.get(how.attack)(steps=how.steps, early_stop=False)
    goal = goals.get("untargeted", LOSS)
    run = attacks.make(search, logits, norm=norms.get(how.norm), goal=goal, eight_bit=True)
    n, found = len(chosen.images), np.zeros_like(chosen.images)
    class_mask, keys = (
        goals.class_mask(chosen.truth[:, None].tolist(), k),
        norms.per_image_keys(jax.random.key(how.seed), n),
    )
    group = max(GROUP, devices.side_by_side())
    size, starts = min(group, n), range(0, n, group)
    for start in reporting.progress(starts, len(starts), f"on {label}, groups of {size}"):
        rows = np.resize(np.arange(start, min(start + size, n)), size)
        images01 = pixels.to_images01(chosen.images[rows])
        found[rows] = pixels.to_uint8(
            run(variables, keys[rows], images01, class_mask[rows], eps=how.eps).images
        )
    return read_back(found)


def noisy(images: np.ndarray, how: Settings) -> np.ndarray:
    """The control: one draw of noise at distance eps, where noise does most (in Linf plus or minus eps), as read back.

    The attack called noise keeps the best of several draws for a network; this is the same draw for all.
    """
    norm, center = norms.get(how.norm), jnp.asarray(pixels.to_images01(images))
    draw = jax.random.normal(jax.random.key(how.seed), (center.size,)).reshape(center.shape)
    x = norm.project(center + how.eps * norm.direction(draw), center, jnp.float32(how.eps))
    return read_back(pixels.to_uint8(norm.quantize(x, center, jnp.float32(how.eps))))


def share(hits: np.ndarray, name: str = "error") -> dict[str, Any]:
    """A share of pictures, bool[n], with its interval."""
    low, high = metrics.wilson(int(hits.sum()), len(hits))
    return {name: float(hits.mean()), "ci95": [low, high]}


def protects(defended: dict[str, Any], alone: dict[str, Any]) -> bool:
    """Whether an accuracy lies above another by more than chance: their intervals do not touch."""
    return defended["ci95"][0] > alone["ci95"][1]


# ----------------------------------------------------------------------------------------------------------------- work


def transfer(
    run: reporting.Run,
    networks: Sequence[Network],
    chosen: Chosen,
    how: Settings,
    *,
    labelled: bool = True,
) -> tuple[dict[str, Any], list[Html]]:
    """The result and the page's sections."""
    names, truth = [each.name for each in networks], chosen.truth
    k = len(inference.class_table(networks[0].clf))
    logits, variables = (
        [sees(each) for each in networks],
        tuple(each.variables for each in networks),
    )
    everyone = range(len(networks))

    def told(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Who is wrong, bool[m n], and whether all together are, bool[n]."""
        said = say(networks, images)
        return said.argmax(axis=2) != truth, said.mean(axis=0).argmax(axis=1) != truth

    def row(images: np.ndarray, label: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        each, together = told(images)
        run.log(
            {
                "made_on": label,
                **{name: float(e.mean()) for name, e in zip(names, each, strict=True)},
            }
        )
        return [share(e) for e in each], share(together)

    def joined(which: Sequence[int], mean: str, label: str) -> np.ndarray:
        several = ensemble.ensemble([logits[i] for i in which], mean=mean)
        return made(several, tuple(variables[i] for i in which), chosen, k, how, label)

    before, before_together = row(read_back(chosen.images), "nothing")
    noise, noise_together = row(noisy(chosen.images, how), "noise")
    pictures = [made(logits[i], variables[i], chosen, k, how, names[i]) for i in everyone]
    single = [row(images, name) for images, name in zip(pictures, names, strict=True)]
    others = []
    for i in everyone:  # what is made on the others is judged by the one that took no part
        rest = [j for j in everyone if j != i]
        images = joined(rest, "log_probability", f"all but {names[i]}")
        others.append(row(images, f"all but {names[i]}")[0][i])
    adaptive, adaptive_together = row(joined(list(everyone), "logits", TOGETHER), TOGETHER)

    named = lambda cells: dict(zip(names, cells, strict=True))
    result = {
        "n": len(truth),
        "networks": names,
        "size": chosen.images.shape[1],
        "eps": how.eps,
        "attack": how.attack,
        "looked_at": chosen.seen,
        "clean": named(before),
        "clean_of_all_looked_at": named([_of(int(w), chosen.seen) for w in chosen.wrong])
        if labelled
        else None,
        "matrix": {name: named(cells) for name, (cells, _) in zip(names, single, strict=True)},
        "noise": named(noise),
        "ensemble": {"mean": "log_probability", "of": OTHERS, "error": named(others)},
        "defence": _defence(
            names,
            [c[i] for i, (c, _) in enumerate(single)],
            [t for _, t in single],
            adaptive_together,
        )
        | {"noise": _accuracy(noise_together), "members_of_adaptive": named(adaptive)},
        "skipped": chosen.skipped,
    }
    lines = [
        *(
            (f"made on {name}", [*cells, together])
            for name, (cells, together) in zip(names, single, strict=True)
        ),
        (f"made on {OTHERS}", [*others, None]),
        (f"made on {TOGETHER}", [*adaptive, adaptive_together]),
        ("random noise", [*noise, noise_together]),
        ("as it was", [*before, before_together]),
    ]
    return result, page(networks, chosen, how, result, lines, pictures)


def _of(wrong: int, n: int) -> dict[str, Any]:
    return share(np.arange(n) < wrong) | {"n": n}


def _accuracy(error: dict[str, Any]) -> dict[str, Any]:
    low, high = error["ci95"]
    return {"accuracy": 1.0 - error["error"], "ci95": [1.0 - high, 1.0 - low]}


def _defence(
    names: Sequence[str],
    alone: Sequence[dict[str, Any]],
    one: Sequence[dict[str, Any]],
    adaptive: dict[str, Any],
) -> dict[str, Any]:
    """The claim that an ensemble protects: its accuracy against the best member's, each network attacked as what it is.

    Args:
      names: the members.
      alone: errors of each on the pictures made on it.
      one: errors of the ensemble on the pictures made on each.
      adaptive: error of the ensemble on the pictures made on it.
    """
    best = max((_accuracy(cell) for cell in alone), key=lambda cell: cell["accuracy"])
    class_mask = [_accuracy(cell) for cell in one]
    worst, whole = min(class_mask, key=lambda cell: cell["accuracy"]), _accuracy(adaptive)
    return {
        "mean": "logits",
        "best_member_attacked_itself": best,
        "one_member": dict(zip(names, class_mask, strict=True)),
        "adaptive": whole,
        "protects": {"one_member": protects(worst, best), "adaptive": protects(whole, best)},
    }


# ----------------------------------------------------------------------------------------------------------------- page


def page(
    networks: Sequence[Network],
    chosen: Chosen,
    how: Settings,
    result: dict[str, Any],
    lines: Sequence[tuple[str, Sequence[dict[str, Any] | None]]],
    pictures: Sequence[np.ndarray],
) -> list[Html]:
    names, n = result["networks"], result["n"]
    columns = [*names, TOGETHER]
    shares = [
        [float("nan") if cell is None else cell["error"] for cell in cells] for _, cells in lines
    ]
    hover = [["" if cell is None else _words(cell) for cell in cells] for _, cells in lines]
    own = np.eye(len(lines), len(columns), dtype=bool)
    own[len(names), -1], own[len(names) + 1, -1] = False, True
    figures = {
        "pictures": n,
        "eps": f"{how.eps * 255:g}/255" if how.norm == "linf" else f"{how.eps:.4g} ({how.norm})",
        "pixels a side": result["size"],
        "steps": how.steps,
    }
    text = (
        f"Errors in % on the same {n} pictures, which all networks name rightly before; half an interval is at most "
        f"{50 * max(c['ci95'][1] - c['ci95'][0] for _, cells in lines for c in cells if c):.0f} points. Marked: a network "
        f"judges what was made on itself. In the row of {OTHERS} a network judges what was made on the rest."
    )
    maps = reporting.heat_map(
        shares, [line for line, _ in lines], columns, corner="% wrong", hover=hover, marked=own
    )
    table = reporting.table(
        [
            (line, *("" if cell is None else _words(cell) for cell in cells))
            for line, cells in lines
        ],
        ["", *columns],
    )
    sections = [
        reporting.section(
            "Who is fooled by whose pictures", reporting.numbers(figures), maps, table, text=text
        )
    ]
    sections.append(_claim(result))
    if result["clean_of_all_looked_at"]:
        rows = [(name, _words(cell)) for name, cell in result["clean_of_all_looked_at"].items()]
        text = f"Errors on all {result['looked_at']} photographs that were looked at, at {result['size']} pixels, untouched."
        sections.append(
            reporting.section(
                "Before the choice", reporting.table(rows, ["network", "wrong"]), text=text
            )
        )
    text = (
        "At true pixels. Below each stands what every network calls it; the difference is to the photograph on the left, "
        "amplified."
    )
    strips = [_strip(networks, chosen, pictures, i) for i in range(min(SHOWN, n))]
    return [
        *sections,
        reporting.section("The pictures", *strips, text=text),
        reporting.skipped(chosen.skipped),
    ]


def _words(cell: dict[str, Any], name: str = "error") -> str:
    low, high = (100 * bound for bound in cell["ci95"])
    return f"{reporting.percent(cell[name])} ({low:.0f} to {high:.0f})".replace(
        " ", "\N{NO-BREAK SPACE}"
    )


def _claim(result: dict[str, Any]) -> Html:
    """An ensemble as a protection: the two attackers, and a verdict."""
    defence, verdict = result["defence"], {True: "stands", False: "falls"}
    best = defence["best_member_attacked_itself"]
    rows = [
        ("the best member alone, attacked itself", best),
        *(
            (f"all together, pictures made on {name}", cell)
            for name, cell in defence["one_member"].items()
        ),
        (WHOLE, defence["adaptive"]),
        ("all together, noise", defence["noise"]),
    ]
    bars = reporting.bars([(label, cell["accuracy"], label == WHOLE) for label, cell in rows])
    weak, strong = (verdict[defence["protects"][which]] for which in ("one_member", "adaptive"))
    text = (
        "The lesson's claim: use an ensemble as protection. Here the logits of all networks are averaged. Against an attacker "
        f"who knows one member only it {weak}; against one who knows them all and attacks their mean it {strong}. It stands "
        "where the ensemble's accuracy is above that of its best member, attacked itself, and the intervals do not touch."
    )
    table = reporting.table(
        [(label, _words(cell, "accuracy")) for label, cell in rows], ["", "right"]
    )
    return reporting.section("Is an ensemble a protection?", bars, table, text=text)


def _strip(
    networks: Sequence[Network], chosen: Chosen, pictures: Sequence[np.ndarray], i: int
) -> Html:
    table, photograph = inference.class_table(networks[0].clf), chosen.images[i]
    shown = np.stack([photograph, *(images[i] for images in pictures)])
    called = say(networks, shown).argmax(axis=2).T
    cards = []
    for image, answers, title in zip(
        shown, called, ["photograph", *(f"made on {each.name}" for each in networks)], strict=True
    ):
        lines = [
            (each.name, table.display(answer))
            for each, answer in zip(networks, answers, strict=True)
        ]
        cards.append(
            reporting.card(
                image, title=title, below=reporting.table(lines, ["network", "calls it"])
            )
        )
    change = pixels.to_images01(shown[1]) - pixels.to_images01(photograph)
    factor = max(1, int(0.5 / max(float(np.abs(change).max()), 1 / 255)))
    caption = f"of what was made on {networks[0].name}, amplified {factor} times"
    cards.insert(
        1, reporting.card(reporting.amplify(change, factor), title="difference", caption=caption)
    )
    return reporting.strip(cards, title=f"{table.display(chosen.truth[i])}, {chosen.paths[i].name}")


# ----------------------------------------------------------------------------------------------------------------- main


def main(run: reporting.Run) -> None:
    eps = cli.fraction(FLAGS.eps, "eps")
    names = [name for name in FLAGS.networks if name]
    networks, photograph = load(names)
    side = FLAGS.size or min(each.clf.pixels.size for each in networks)
    white = jnp.ones((1, side, side, 3))
    largest = float(norms.get(FLAGS.norm).distance(white, jnp.zeros_like(white))[0])
    if not 0 < eps <= largest:
        raise ValueError(
            f"--eps={FLAGS.eps} is outside (0, {largest:.4g}], from black to white in {FLAGS.norm}; try 8/255"
        )
    labelled = FLAGS.labels == "folder"
    how = Settings(FLAGS.attack, FLAGS.norm, eps, FLAGS.steps, FLAGS.seed)
    chosen = choose(
        networks,
        photograph.replace(size=side),
        FLAGS.images,
        labelled=labelled,
        limit=FLAGS.limit,
        seed=FLAGS.seed,
    )
    result, sections = transfer(run, networks, chosen, how, labelled=labelled)
    lead = f"{result['n']} photographs, changed until one of {len(names)} networks is wrong, and shown to the others."
    weights = {
        f"weights of {each.name}": common.weights_facts(each.clf)["weights"] for each in networks
    }
    run.finish(
        result,
        reporting.page(
            "Adversarial pictures, carried over", lead, sections, facts=run.facts() | weights
        ),
    )
    head, cell = ["made on", *names], lambda c: f"{100 * c['error']:.0f} %"
    rows = [[name, *map(cell, cells.values())] for name, cells in result["matrix"].items()]
    rows += [
        [line, *map(cell, cells.values())]
        for line, cells in (
            (OTHERS, result["ensemble"]["error"]),
            ("random noise", result["noise"]),
        )
    ]
    print(reporting.columns(head, rows))
    defence = result["defence"]
    worst = min(cell["accuracy"] for cell in defence["one_member"].values())
    print(
        f"all together: right on {reporting.percent(worst)} of the pictures made on one member (the worst), on "
        f"{reporting.percent(defence['adaptive']['accuracy'])} of those made on all; the best member attacked itself: "
        f"{reporting.percent(defence['best_member_attacked_itself']['accuracy'])}"
    )
    print(f"{run.workdir / 'report.html'}")


if __name__ == "__main__":
    cli.launch("attack_transfer", main, define_flags)
