"""The adversarial dog as the course lesson made it, without bounds and at another scale; beside it, within eps and on the file.

The lesson (Microsoft's AI for Beginners, 8: transfer learning, "Adversarial Cat") shows Keras' VGG-16 the pixels 0-255 of a
photograph as they are, and it says Italian greyhound. Those weights were trained on blue-green-red less its mean: so that has
the right contrast, with the mean left in and red and blue exchanged. Then it takes `x = img / 255.0` and follows the gradient
for 100 steps. To the same weights that is the photograph at 1/255 of its contrast, less than one level: nearly the same number
everywhere. Whether it is still called a dog is not looked at; what becomes a cat is all but an empty picture.

What a network takes is a matter of its `PixelSpec` here, so the mistakes are translated, not copied. `fed` is the lesson's
preprocessing in the units of any weights: their scale, no mean taken off, the channels exchanged. x begins as 1/255 of that and
goes into the first layer as it is, in whose units the rate is 1. (Copied, a division by 255 would be nearly right for weights
that want numbers from -1 to 1, and 0-255 would be what is wrong.) The picture that x is of is `fed` turned back, of 255 x: at
the start exactly the photograph. With Keras' weights that is x itself.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl import attacks, data, inference, metrics, pixels, reporting
from tl.ascent import ascend
from tl.attacks import goals, norms
from tl.losses import group_log_probability
from tl.models import Classifier
from tl.reporting import Html
from tl.types import Array, Variables

STEPS, ETA, SCALE = 100, 1.0, 255.0  # the lesson's
TARGET = 284  # the lesson's, a Siamese cat
REPORTED = {
    "classified": 0.928,
    "tensor": 0.865,
}  # an Italian greyhound and a Siamese cat, of one photograph
EPS = 2 / 255  # of the right way
SHOWN = 4  # pictures; the lesson has one


def fed(own: pixels.PixelSpec) -> pixels.PixelSpec:
    """How the lesson's preprocessing reads in the units of these weights; for Keras' VGG-16, the pixels 0-255 as they are.

    Example:
      >>> fed(pixels.CAFFE).channels, [round(1 / s) for s in fed(pixels.CAFFE).std]
      ('rgb', [255, 255, 255])
    """
    other = "bgr" if own.channels == "rgb" else "rgb"
    return own.replace(mean=(0.0,) * len(own.mean), std=own.std[::-1], channels=other)


def as_written(
    run: reporting.Run,
    clf: Classifier,
    variables: Variables,
    pictures: inference.LoadedImages,
    target: Sequence[int] = (TARGET,),
    *,
    only: Sequence[int] = (),
    seed: int = 0,
    steps: int = STEPS,
    eps: float = EPS,
) -> tuple[list[dict[str, Any]], Html]:
    """The result's rows, one a picture of the first `SHOWN`, and the page's section.

    Args:
      pictures: uint8[n s s 3] as `common.read_images` returns them.
      target: the classes to get to, as one.
      only: the classes that a start should still be among ("any dog"); () is the one that its photograph is called.
      seed: of the right way's random start.
      steps: of both ways.
      eps: of the right way, in Linf and [0, 1] pixel units.

    Raises:
      ValueError: there is no picture.
    """
    if not pictures.paths:
        raise ValueError("--as_in_lesson wants a photograph to begin with; none is left")
    paths, originals = pictures.paths[:SHOWN], pictures.images[:SHOWN]
    print(
        f"the lesson's way: {steps} steps of plain gradient descent on {len(paths)} pictures",
        flush=True,
    )
    table, lesson = inference.class_table(clf), fed(clf.pixels)
    class_mask = goals.class_mask([target] * len(paths), len(table))
    photographs = pixels.to_images01(originals)
    classified = pixels.normalize(lesson, jnp.asarray(photographs))

    logits = jax.jit(functools.partial(_logits, clf))  # of what the first layer takes
    x = _climb(clf, variables, jnp.asarray(class_mask), classified / SCALE, steps)
    as_picture = np.asarray(pixels.denormalize(lesson, x * SCALE))
    low, high = (op(as_picture, axis=(1, 2, 3), keepdims=True) for op in (np.min, np.max))
    stretched = (as_picture - low) / np.maximum(high - low, 1e-6)
    search = attacks.get("pgd")(steps=steps, early_stop=False)
    attack = attacks.make(search, clf.logits, norm=norms.LINF, goal=goals.TARGETED, eight_bit=True)
    right = attack(variables, jax.random.key(seed), photographs, class_mask, eps=eps)

    files, saved = {}, {}
    for way, images in (
        ("shown", stretched),
        ("clipped", np.clip(as_picture, 0, 1)),
        ("right", np.asarray(right.images)),
    ):
        files[way] = [
            run.figure(f"lesson-{path.stem}-{way}", image)
            for path, image in zip(paths, images, strict=True)
        ]
        saved[way] = np.stack([data.decode(file) for file in files[way]])
    said = {
        "photograph": metrics.softmax(inference.predict_logits(clf, variables, originals)),
        "classified": metrics.softmax(np.asarray(logits(variables, classified))),
        "start": metrics.softmax(np.asarray(logits(variables, classified / SCALE))),
        "tensor": metrics.softmax(np.asarray(logits(variables, x))),
        **{
            way: metrics.softmax(inference.predict_logits(clf, variables, images))
            for way, images in saved.items()
        },
    }

    rows, strips = [], []
    for i, path in enumerate(paths):
        called = {way: int(p[i].argmax()) for way, p in said.items()}
        kind = tuple(only) or (called["photograph"],)
        answers = {
            way: {
                "called": table.display(called[way]),
                "probability": float(p[i, called[way]]),
                "target": float(p[i, list(target)].sum()),
                "still": called[way] in kind,
            }
            for way, p in said.items()
        }
        row = {
            "path": str(path),
            "target": ", ".join(table.display(j) for j in target),
            "steps": steps,
            "lesson": REPORTED,
            **answers,
            "start_is_called_the_same": called["start"] in kind,
            "change": _change(as_picture[i], photographs[i]),
            "change_clipped": _change(pixels.to_images01(saved["clipped"][i]), photographs[i]),
            "right_eps": eps,
            "change_right": _change(pixels.to_images01(saved["right"][i]), photographs[i]),
            "png": {way: str(own[i]) for way, own in files.items()},
        }
        rows.append(row)
        strips.append(_strip(row, originals[i], {way: images[i] for way, images in saved.items()}))
    same = sum(row["start_is_called_the_same"] for row in rows)
    text = (
        f"The lesson's way, under {clf.arch}: {steps} steps of plain gradient descent with a rate of {ETA:g} on the "
        "cross-entropy, from the photograph at 1/255 of the contrast at which it was classified; no bounds, no 8 bit. There "
        f"VGG-16 said {reporting.percent(REPORTED['classified'])} Italian greyhound before and "
        f"{reporting.percent(REPORTED['tensor'])} Siamese cat after. What it shows is x stretched from its least to its "
        f"largest value.\n\nAt the scale that is attacked, {same} of {len(rows)} starts are called what the photograph shows; "
        f"{paths[0].name} is called {rows[0]['start']['called']}, with {reporting.percent(rows[0]['start']['probability'])}. "
        "The right way, below, is PGD with as many steps within "
        f"{eps * 255:g}/255 of the photograph, on the 8-bit grid."
    )
    return rows, reporting.section("As in the lesson", *strips, text=text)


def _logits(clf: Classifier, variables: Variables, inputs: jax.Array) -> jax.Array:
    return clf.logits(variables, pixels.denormalize(clf.pixels, inputs))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _climb(
    clf: Classifier, variables: Variables, class_mask: jax.Array, x: jax.Array, steps: int
) -> jax.Array:
    """x after that many steps, f32[b s s 3] in the units of the first layer."""
    path = ascend.ascend(
        lambda x, _: group_log_probability(_logits(clf, variables, x), class_mask),
        x,
        jax.random.key(0),  # no score here is random
        steps=steps,
        optimizer=ascend.OPTIMIZERS["sgd"](),
        step_size=ETA,
    )
    return path.last


def _change(image01: Array, photograph: Array) -> dict[str, float]:
    """How far a picture f32[s s 3] is from the photograph, in [0, 1] pixel units, and its share of values outside of it."""
    a, b = jnp.asarray(image01)[None], jnp.asarray(photograph)[None]
    return {
        "linf": float(norms.linf_distance(a, b)[0]),
        "l2": float(norms.l2_distance(a, b)[0]),
        "outside": float(np.mean((np.asarray(image01) < 0) | (np.asarray(image01) > 1))),
    }


def _strip(row: dict[str, Any], photograph: np.ndarray, saved: dict[str, np.ndarray]) -> Html:
    said = lambda way: f"{row[way]['called']}, {reporting.percent(row[way]['probability'])}"
    far = lambda name: (
        f"largest change {255 * row[name]['linf']:.0f} levels, L2 {row[name]['l2']:.3g} of [0, 1]"
    )
    cards = [
        reporting.card(photograph, title="photograph", caption=said("photograph")),
        reporting.card(
            saved["shown"],
            title="the lesson's, as it is shown",
            caption=f"this file: {said('shown')}",
        ),
        reporting.card(
            saved["clipped"], title="the same, clipped", caption=f"this file: {said('clipped')}"
        ),
        reporting.card(
            saved["right"],
            title=f"within {row['right_eps'] * 255:g}/255",
            caption=f"this file: {said('right')}",
        ),
    ]
    outside = f"; {reporting.percent(row['change']['outside'])} of it outside of [0, 1]"
    lines = [
        ("the photograph, prepared rightly", "photograph", ""),
        ("the photograph, as the lesson feeds it", "classified", ""),
        ("the start, at 1/255 of that", "start", ""),
        ("the lesson's x, a tensor", "tensor", far("change") + outside),
        ("x as it is shown, a PNG read back", "shown", ""),
        ("x clipped to [0, 1], a PNG read back", "clipped", far("change_clipped")),
        ("the right way, a PNG read back", "right", far("change_right")),
    ]
    cells = [
        (
            words,
            row[way]["called"],
            reporting.percent(row[way]["probability"]),
            reporting.percent(row[way]["target"]),
            more,
        )
        for words, way, more in lines
    ]
    header = [
        "what the network sees",
        "called",
        "probability",
        row["target"],
        "from the photograph",
    ]
    return reporting.strip(
        [*cards, reporting.table(cells, header)], title=row["path"].rsplit("/", 1)[-1]
    )
