"""Explanations of images as the result and the files of a run; the page is `tl.pages.explain`."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import (
    attacks,
    devices,
    hosts,
    inference,
    metrics,
    models,
    pixels,
    reporting,
    storage,
)
from tl.attacks import goals, norms
from tl.data import WithWhite
from tl.explain import checks, drawing, pointing, statistics, targets
from tl.explain.base import Explanation, Method, make
from tl.explain.methods import get
from tl.inference import LoadedImages
from tl.models import Classifier
from tl.types import Variables
from tl.visualize.objectives import Objective

ATTACKED = "attacked"
# Side of a top patch as a share of the image, and their number; chosen, not tuned.
PATCH, PATCHES = 0.25, 3


class ExplainSettings(NamedTuple):
    """How images are explained.

    Attributes:
      method: rows of `tl.explain.METHODS`.
      target: words of `targets.parse`, all classes or all objectives; () explains the predicted
        class.
      photograph: a file that objectives such as similarity read.
      endpoint: of the methods that read one; "" is the last stage.
      nodes, baseline: of integrated gradients; expected gradients use the baseline, too.
      draws, noise: of SmoothGrad and VarGrad; expected gradients use the draws, too.
      lowpass: standard deviation of the filter of gradients, in pixels; 0 is none.
      masks, grid: of RISE and KernelSHAP.
      superpixels: number of superpixels of KernelSHAP instead of the cells of the grid; 0 is none.
      patch, stride: of occlusion, in pixels; 0 is the default of the method.
      relu: whether Grad-CAM sets negative values to 0.
      slots: passes that a device computes together; 0 is the default of the device.
      steps: steps of insertion and deletion.
      randomized: number of images of the tests that compute maps again.
      tests: tests of belief that are computed, keys of `checks.CHECKS`; () is all.
      mosaics, marks: numbers of mosaics and of marked images of the tests with a known answer.
      map_eps: radius of an attack on the maps, in [0, 1] pixel units; 0 omits it.
      beside: what is explained next to the images: "attacked", the same images after an attack
        within `eps`, or the name or folder of a second network; "" for nothing.
      eps: radius of that attack in Linf, in [0, 1] pixel units.
      limit: largest number of images; 0 is all.
      seed: of noise, masks and random weights.
    """

    method: tuple[str, ...] = ("ig", "gradcam", "rise")
    target: tuple[str, ...] = ()
    photograph: str = ""
    endpoint: str = ""
    nodes: int = 50
    baseline: str = "black"
    draws: int = 25
    noise: float = 0.15
    lowpass: float = 0.0
    masks: int = 1000
    grid: int = 7
    superpixels: int = 0
    patch: int = 0
    stride: int = 0
    relu: bool = True
    slots: int = 0
    steps: int = 28
    randomized: int = 4
    tests: tuple[str, ...] = ()
    mosaics: int = 0
    marks: int = 0
    map_eps: float = 0.0
    beside: str = ""
    eps: float = 2 / 255
    limit: int = 0
    seed: int = 0


def methods(settings: ExplainSettings) -> dict[str, Method]:
    """The methods of the settings, each with the settings that are its arguments.

    Raises:
      ValueError: no method, a method twice, an unknown one, or an argument out of range.
    """
    names = settings.method
    if not names or len(set(names)) < len(names):
        raise ValueError(f"`method` must name different methods: got {','.join(names)!r}")
    checks.check_keys(settings.tests)
    for radius in ("eps", "map_eps"):
        if not 0 <= (value := getattr(settings, radius)) <= 1:
            raise ValueError(f"`{radius}` must be in [0, 1]: got {value}{norms.level_hint(value)}")
    chosen = {}
    for name in names:
        options = inspect.signature(get(name)).parameters.keys() & set(settings._fields)
        chosen[name] = get(name)(**{option: getattr(settings, option) for option in options})
    return chosen


def second_network(settings: ExplainSettings) -> tuple[Classifier, Variables] | None:
    """The network of `settings.beside`; None if it names none.

    Raises:
      ValueError: an unknown network.
    """
    if settings.beside in ("", ATTACKED):
        return None
    clf, variables = models.load(settings.beside)
    return clf.with_dtype("float32"), variables


def explain_images(
    run: reporting.Run,
    clf: Classifier,
    variables: Variables,
    images: LoadedImages,
    settings: ExplainSettings,
    labels: np.ndarray | None = None,
) -> dict[str, Any]:
    """Explains images, tests the explanations, and writes the maps into the run's folder.

    Args:
      run: the run.
      clf, variables: the network.
      images: the images, in the preprocessing of the network.
      settings: the methods and their arguments; each target is explained in each image.
      labels: i[n], the classes of the images; only those that are classified correctly are
        explained. None explains all.

    Returns:
      The content of `result.json`: `images`, one row per image and target, `tests`, one row per
      method and control, `score`, which deletion, insertion and ROAD read, "probability" or
      "objective", and `mark_found`, as `pointing.found_by_any`. With `settings.beside`,
      `beside` has the same of the attacked images or of the second network, `correlation`, for each
      method, of its maps with the first ones, and `difference`, as `checks.differences`.

    Raises:
      ValueError: as `methods`, `targets.parse`, `second_network`, `make` and `Explanation`, or
        mosaics or marks with an objective as target.
    """
    chosen = methods(settings) | {"edges": get("edges")()}  # the control of the tests
    clf = clf.with_dtype("float32")
    white = max((path.white for path in images.paths if isinstance(path, WithWhite)), default=0)
    first, other = _network(clf, variables, settings, chosen, white), second_network(settings)
    second = _network(*other, settings, chosen, white) if other else None
    logits = inference.predict_logits(clf, variables, images.images)
    explained = (
        np.arange(len(logits)) if labels is None else np.flatnonzero(logits.argmax(1) == labels)
    )
    if not len(explained):
        raise ValueError(
            f"{clf.arch} classifies none of the {len(logits)} images as `labels` says; check the "
            "names of their folders"
        )
    explained = explained[: settings.limit or len(explained)]
    images = images._replace(
        paths=[images.paths[i] for i in explained], images=images.images[explained]
    )
    classes = logits[explained].argmax(axis=1)
    pointing.check(classes, mosaics=settings.mosaics, marks=settings.marks)
    result, maps = _explain(run, first, images, logits[explained], settings)
    result |= {"skipped": images.skipped, "settings": settings._asdict()}
    if not settings.beside:
        return result

    def beside() -> dict[str, Any]:
        if second is None:
            attacked = attacked_images(clf, variables, images.images, classes, settings.eps)
            others, network = images._replace(images=attacked), first
        else:
            files = [str(path) for path in images.paths]
            others, network = inference.read_images(second.clf, files, white=white), second
        logits = inference.predict_logits(network.clf, network.variables, others.images)
        other, other_maps = _explain(run, network, others, logits, settings)
        groups = np.repeat(np.arange(len(classes)), len(settings.target or ("",)))
        correlation = {
            name: statistics.bootstrap(
                statistics.by_image(statistics.spearman(values, other_maps[name]), groups)
            )
            for name, values in maps.items()
            if values.shape == other_maps[name].shape
        }
        difference = checks.differences(result["tests"], other["tests"])
        return {
            "what": settings.beside,
            **other,
            "correlation": correlation,
            "difference": difference,
        }

    return result | {"beside": run.attempt("beside", beside, {})}


def attacked_images(
    clf: Classifier, variables: Variables, images: np.ndarray, classes: np.ndarray, eps: float
) -> np.ndarray:
    """The images uint8[n s s c] after an untargeted PGD attack within `eps` in Linf.

    Args:
      clf, variables: the network.
      images: uint8[n s s c].
      classes: i[n], the classes that the attack leaves.
      eps: radius in [0, 1] pixel units.
    """
    search = attacks.get("pgd")()
    attack = attacks.make(search, clf.logits, norm=norms.LINF, goal=goals.UNTARGETED)
    mask = goals.class_mask([[int(i)] for i in classes], len(inference.class_table(clf)))
    on_device, images01 = jax.device_put(variables), pixels.to_images01(images)
    return pixels.to_uint8(attack(on_device, jax.random.key(0), images01, mask, eps=eps).images)


class _Network(NamedTuple):
    """A network, and what is explained of it.

    Attributes:
      clf, variables: the network, on the device.
      explanations: name -> method.
      objective: as `Explanation.objective`.
      targets: of `objective`, one row per word of the settings; None for the predicted class.
    """

    clf: Classifier
    variables: Variables
    explanations: dict[str, Explanation]
    objective: Callable[[Any], Objective] | None
    targets: Any


def _network(
    clf: Classifier,
    variables: Variables,
    settings: ExplainSettings,
    chosen: Mapping[str, Method],
    white: int,
) -> _Network:
    photograph, slots = None, settings.slots or devices.images_at_once()
    if settings.photograph:
        read = inference.read_images(clf, settings.photograph, white=white)
        photograph = pixels.to_images01(read.images)[0]
    objective, rows = targets.parse(clf, variables, settings.target, photograph)
    if objective and (settings.mosaics or settings.marks):
        raise ValueError(
            f"`mosaics` and `marks` explain classes: got `target` {settings.target[0]}, expected a "
            "class; leave them out"
        )
    explanations = {
        name: make(method, clf, objective=objective, slots=slots) for name, method in chosen.items()
    }
    return _Network(clf, jax.device_put(variables), explanations, objective, rows)


def _explain(
    run: reporting.Run,
    network: _Network,
    images: LoadedImages,
    logits: np.ndarray,
    settings: ExplainSettings,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The rows of the images and the tests, and name -> maps f32[b h w], of one network."""
    clf, on_device, explanations, objective, target_rows = network
    words, slots = settings.target or ("",), settings.slots or devices.images_at_once()
    rows = [i for i in range(len(logits)) for _ in words]
    if settings.target:
        target_rows = jax.tree.map(lambda leaf: np.concatenate([leaf] * len(logits)), target_rows)
    else:
        target_rows = targets.predicted(logits)
    images01, key = pixels.to_images01(images.images[rows]), jax.random.key(settings.seed)
    keys, share = norms.per_image_keys(key, len(rows)), -(-len(rows) // jax.device_count())
    maps = {}
    for name in reporting.progress(list(explanations), label="methods"):

        def explain(i: np.ndarray, explanation: Explanation = explanations[name]) -> jax.Array:
            of_images = jax.tree.map(lambda leaf: leaf[i], target_rows)
            return explanation(on_device, keys[i], images01[i], of_images)

        maps[name] = inference.in_batches(explain, np.arange(len(rows)), batch_size=share)
    files = zip(images.paths, images.images, strict=True)
    figures = [run.relative(run.figure(path.name, image)) for path, image in files]
    result_rows = []
    for row, i in enumerate(rows):
        image, name = images.images[i], images.paths[i].name
        predicted = inference.topk(clf, metrics.softmax(logits[i : i + 1])[0], 3)
        target = words[row % len(words)] or predicted[0]["name"]
        drawn = {
            method: save_map(
                run, f"{name} {target} {method}", image, values[row], explanations[method].method
            )
            for method, values in maps.items()
        }
        result_rows.append(
            {
                "path": str(images.paths[i]),
                "target": target,
                "image": figures[i],
                "predicted": predicted,
                "maps": drawn,
            }
        )
    tests = lambda: checks.evaluate(
        checks.Subject(clf, on_device, key, images01, target_rows),
        explanations,
        maps,
        steps=settings.steps,
        slots=slots,
        randomized=settings.randomized,
        groups=np.array(rows),
        mosaics=settings.mosaics,
        marks=settings.marks,
        eps=settings.map_eps,
        keys=settings.tests,
    )
    tested = run.attempt("tests", tests, {name: {} for name in maps})
    result = {"arch": clf.arch, "n": len(logits), "images": result_rows, "tests": tested}
    result["score"] = "objective" if objective else "probability"
    return result | {"mark_found": pointing.found_by_any(tested)}, maps


def save_map(
    run: reporting.Run, name: str, image: np.ndarray, values: np.ndarray, method: Method
) -> dict[str, Any]:
    """Writes a map in colors, over its image, and as numbers.

    Args:
      run: the run.
      name: name of the figures.
      image: uint8[h w 3].
      values: f32[h w].
      method: the method of the map.

    Returns:
      `png`, `overlay` and `npy` (paths of the run), `signed` (whether colors show a sign), `zero`
      (whether the map is 0 everywhere), `sum`, and `patches`, the upper left corners of the squares
      with the largest sums.
    """
    # RISE of a difference of two classes has a sign, too.
    signed = method.signed or bool((values < 0).any())
    png = run.figure(name, drawing.colors(values, signed=signed))
    over = run.figure(f"{name} overlay", drawing.overlay(image, values, signed=signed))
    npy = png.with_suffix(".npy")
    if hosts.first():
        file = io.BytesIO()
        np.save(file, values)
        storage.write_whole(npy, file.getvalue())
    side = max(round(PATCH * min(values.shape)), 1)
    return {
        **{
            key: run.relative(path) for key, path in (("png", png), ("overlay", over), ("npy", npy))
        },
        "signed": signed,
        "zero": not values.any(),
        "sum": float(values.sum(dtype=np.float64)),
        "patches": drawing.top_patches(values, PATCHES, side),
        "side": side,
    }
