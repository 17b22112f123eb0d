"""Which preprocessing do these weights want, and which one does your array follow?

  ./launch.sh audit --images=FOLDER --labels=folder
  ./launch.sh audit --images=a.jpg,b.jpg --array=MINE.npy

The pictures go through the eight usual conventions and the weights' own. With labels the accuracy decides; without, how much
a prediction tells about the picture. `--array` takes what your own code feeds a network: compared with the same pictures in
the same order, else judged by its numbers alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from tl import cli, data, inference, metrics, pixels, reporting
from tl.inference import folder_labels
from tl.models import Classifier
from tl.pages import common
from tl.pages.common import in_words
from tl.pixels import CAFFE, IMAGENET_MEAN, IMAGENET_STD, INCEPTION, LITE, TORCHVISION, PixelSpec
from tl.reporting import Html
from tl.types import Variables

FLAGS = flags.FLAGS
OWN = "their own"
SOME = 32  # pictures that an array is compared by; more would say the same
ANOTHER_RESIZE = 12  # mean levels that another library's resize is away at most (chosen, not tuned)
UNIT = PixelSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # 0 to 1, as it is
EIGHT_BIT = UNIT.replace(std=(1 / 255, 1 / 255, 1 / 255))  # 0 to 255


def define_flags() -> None:
    flags.DEFINE_string("images", "", "Files, folders and globs, separated by commas.")
    flags.DEFINE_enum(
        "labels",
        "none",
        ["none", "folder"],
        "folder: a picture's folder is its class (index, id or name).",
    )
    flags.DEFINE_string(
        "array", "", "A .npy file of preprocessed pictures: [b h w 3], [h w 3], or channels first."
    )


def values(spec: PixelSpec) -> dict[str, Any]:
    """What a spec does to a pixel's value, without the geometry."""
    return {"mean": spec.mean, "std": spec.std, "channels": spec.channels}


def conventions(own: PixelSpec) -> dict[str, PixelSpec]:
    """The eight usual conventions at the weights' own size, crop and interpolation; and their own, where it is none of them."""
    crop, squash = own.replace(resize="shorter"), own.replace(resize="squash")
    usual = {
        "torch": crop.replace(**values(TORCHVISION)),
        "torch, BGR": crop.replace(**values(TORCHVISION) | {"channels": "bgr"}),  # as OpenCV reads
        "torch, squashed": squash.replace(**values(TORCHVISION)),
        "0 to 1": crop.replace(**values(UNIT)),
        "0 to 255": crop.replace(**values(EIGHT_BIT)),
        "-1 to 1": crop.replace(**values(INCEPTION)),
        "-1 to 1, squashed": squash.replace(
            **values(INCEPTION)
        ),  # Keras' MobileNet behind load_img
        "caffe": crop.replace(**values(CAFFE)),
    }
    return usual if own in usual.values() else {OWN: own, **usual}


# --- the pictures under every convention ------------------------------------------------------------------------------


def logits_under(
    clf: Classifier, variables: Variables, spec: PixelSpec, images: np.ndarray
) -> np.ndarray:
    """Logits f32[n k] of pictures uint8[n s s 3] normalised by `spec`, through one compiled network for all conventions."""
    network = inference.forward(clf)  # its own normalisation is the identity
    rows = []
    for start in range(0, len(images), 16):
        batch = np.resize(images[start : start + 16], (16, *images.shape[1:]))
        inputs = pixels.normalize(spec, jnp.asarray(pixels.to_images01(batch)))
        rows.append(np.asarray(network(variables, inputs)))
    return np.concatenate(rows)[: len(images)]


def measured(logits: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
    """How well pictures are named, and how sure the network is: entropies in nats."""
    p = metrics.softmax(logits)
    entropy = lambda p: -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1)
    row: dict[str, Any] = {
        "n": len(p),
        "confidence": float(p.max(axis=1).mean()),
        "entropy": float(entropy(p).mean()),
        "information": float(entropy(p.mean(axis=0)) - entropy(p).mean()),
    }
    if labels is not None:
        right = metrics.topk_correct(logits, labels, 1)
        row |= {
            "top1": float(right.mean()),
            "top1_ci95": list(metrics.wilson(int(right.sum()), len(right))),
        }
    return row


def compare(
    clf: Classifier,
    variables: Variables,
    pictures: Mapping[str, inference.LoadedImages],
    labels: np.ndarray | None,
) -> dict[str, Any]:
    """Every convention's figures, and the one that the weights want.

    Args:
      pictures: by resize rule, "shorter" and "squash".
      labels: i[n], or None; without them the conventions are ranked by the mutual information of picture and prediction
        (the logarithm of the Inception score: Salimans et al. 2016, arXiv:1606.03498, section 4), for a network that is sure of
        one class whatever it sees is confident, too.
    """
    plain, variables = (
        clf.with_pixels(**values(UNIT)),
        jax.device_put(clf.fold_batch_norm(variables)),
    )
    rows = []
    for name, spec in conventions(clf.pixels).items():
        logits = logits_under(plain, variables, spec, pictures[spec.resize].images)
        about = {"name": name, "own": spec == clf.pixels, "pixels": spec.as_dict()}
        rows.append(about | measured(logits, labels))
    by = "information" if labels is None else "top1"
    rows.sort(key=lambda row: (row[by], row["own"]), reverse=True)
    best, *others = rows
    close = [
        row["name"]
        for row in others
        if labels is not None and row["top1_ci95"][1] >= best["top1_ci95"][0]
    ]
    return {
        "conventions": rows,
        "ranked_by": by,
        "best": best["name"],
        "cannot_be_told_apart": close,
    }


def verdict(result: Mapping[str, Any]) -> str:
    """What the comparison says, in a sentence."""
    best, *_ = result["conventions"]
    own = (
        ""
        if best["name"] == OWN
        else " (their own)"
        if best["own"]
        else ", which is not what they came with"
    )
    words = f"These weights want {best['name']}{own}"
    if result["ranked_by"] == "information":
        return (
            f"{words}; judged without labels, by how much the predictions tell the pictures apart."
        )
    close = result["cannot_be_told_apart"]
    return words + (
        f"; not to be told apart, by overlapping intervals, from {' and '.join(close)}."
        if close
        else "."
    )


# --- an array of the user's -------------------------------------------------------------------------------------------


def candidates(own: PixelSpec) -> dict[str, PixelSpec]:
    """What an array may have gone through: the usual conventions and the usual mistakes, all of them affine."""
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    affine = lambda m, s: UNIT.replace(mean=tuple(map(float, m)), std=tuple(map(float, s)))
    right = {
        "0 to 255": EIGHT_BIT,
        "0 to 1": UNIT,
        "-1 to 1": INCEPTION,
        "torch": TORCHVISION,
        "caffe": CAFFE,
        "caffe's means on RGB": CAFFE.replace(channels="rgb", mean=CAFFE.mean[::-1]),
        "EfficientNet-Lite": LITE,
    }
    wrong = {
        "torch, normalised twice": affine(mean + mean * std, std * std),
        "torch on 0 to 255 (not divided by 255)": affine(mean / 255, std / 255),
        "torch after -1 to 1": affine((mean + 1) / 2, std / 2),
        "-1 to 1, normalised twice": affine([0.75] * 3, [0.25] * 3),
        "divided by 255 twice": affine([0.0] * 3, [255.0] * 3),
    }
    known = {**right, **wrong}
    if not any(values(spec) == values(own) for spec in known.values()):
        known = {OWN: own, **known}
    swapped = {
        f"{name}, channels swapped": s.replace(channels="rgb" if s.channels == "bgr" else "bgr")
        for name, s in known.items()
    }
    return known | swapped


def read_array(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The array as f32[b h w 3], and what it looked like.

    Raises:
      ValueError: no .npy file, not numbers, no axis of three channels, or nothing finite in it.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"--array={str(path)!r} is no .npy file of numbers ({error}); write one with numpy.save"
        ) from None
    if (
        not isinstance(array, np.ndarray)
        or array.dtype.kind not in "uif"
        or array.ndim not in (3, 4)
        or not array.size
    ):
        found = (
            f"{array.dtype}{list(array.shape)}"
            if isinstance(array, np.ndarray)
            else "several arrays"
        )
        raise ValueError(
            f"--array holds {found}; wanted numbers [b h w 3], [h w 3], [b 3 h w] or [3 h w]"
        )
    batch = array if array.ndim == 4 else array[None]
    if batch.shape[-1] != 3 and batch.shape[1] != 3:
        raise ValueError(
            f"--array has the shape {list(array.shape)} and no axis of 3 channels at either end; drop alpha"
        )
    last = batch.shape[-1] == 3
    nhwc = (batch if last else batch.transpose(0, 2, 3, 1)).astype(np.float32)
    finite = np.isfinite(nhwc)
    if not finite.any():
        raise ValueError("--array holds no finite number")
    about = {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "layout": "channels last" if last else "channels first",
        "not_finite": int((~finite).sum()),
        "min": float(nhwc[finite].min()),
        "max": float(nhwc[finite].max()),
        "mean": [float(np.mean(c[np.isfinite(c)])) for c in np.moveaxis(nhwc, 3, 0)],
        "std": [float(np.std(c[np.isfinite(c)])) for c in np.moveaxis(nhwc, 3, 0)],
    }
    return nhwc, about


def by_pictures(
    array: np.ndarray, own: PixelSpec, photographs: list[np.ndarray]
) -> list[dict[str, Any]]:
    """Every candidate with its distance from the array, in levels of 255, under the resize rule that fits best; nearest first.

    Args:
      array: f32[n s s 3].
      photographs: the n pictures as decoded, uint8[h w 3].
    """
    kept = np.flatnonzero(np.isfinite(array).all(axis=(1, 2, 3)))[:SOME]
    if not len(kept):
        raise ValueError("every picture of --array holds a NaN or infinity; mend that first")
    inputs, photographs = jnp.asarray(array[kept]), [photographs[i] for i in kept]
    base = PixelSpec(size=inputs.shape[1], crop=own.crop)
    rules = [
        base.replace(resize=r, interpolation=i)
        for r in ("shorter", "squash")
        for i in pixels.INTERPOLATIONS
    ]
    prepared = [
        jnp.asarray(np.stack([pixels.prepare(rule, p) for p in photographs]), jnp.float32)
        for rule in rules
    ]
    rows = []
    for name, spec in candidates(own).items():
        undone = 255 * pixels.denormalize(spec, inputs)
        mean, largest, rule = min(
            (float(jnp.abs(undone - p).mean()), float(jnp.abs(undone - p).max()), i)
            for i, p in enumerate(prepared)
        )
        how = {"resize": rules[rule].resize, "interpolation": rules[rule].interpolation}
        rows.append({"name": name, "largest_difference": largest, "mean_difference": mean, **how})
    return sorted(rows, key=lambda row: row["mean_difference"])


def by_numbers(array: np.ndarray, own: PixelSpec) -> list[dict[str, Any]]:
    """Every candidate with the evidence of the numbers alone, the likeliest first; channel orders cannot be told apart.

    Undone, the right one gives 8-bit levels: inside 0 to 255, whole where the picture was resized as 8 bit, and with about
    ImageNet's mean (0.45) and spread (0.26).
    """
    rows = []
    for name, spec in candidates(own).items():
        if name.endswith("swapped"):
            continue
        levels = 255 * np.asarray(pixels.denormalize(spec, jnp.asarray(array)))
        levels = levels[np.isfinite(levels)]
        outside = float(np.mean((levels < -1) | (levels > 256)))
        whole = float(np.mean(np.abs(levels - np.rint(levels)) < 0.06))
        unlike = abs(levels.mean() / 255 - 0.45) / 0.2 + abs(
            np.log2(max(levels.std(), 1e-6) / 255 / 0.26)
        )
        rows.append({"name": name, "outside": outside, "whole": whole, "unlike": float(unlike)})
    certain = lambda row: row["whole"] > 0.95 and row["outside"] == 0
    return sorted(rows, key=lambda row: (not certain(row), 20 * row["outside"] + row["unlike"]))


def follows(
    array: np.ndarray,
    about: Mapping[str, Any],
    own: PixelSpec,
    photographs: list[np.ndarray] | None,
) -> dict[str, Any]:
    """Which convention an array follows, and what the weights would make of it."""
    n, h, w, _ = array.shape
    if photographs is not None and n != len(photographs):
        raise ValueError(
            f"--array holds {n} pictures and --images {len(photographs)}; give the same, in the same order"
        )
    known, notes = candidates(own), []
    if about["dtype"].startswith(("uint", "int")):
        notes.append(f"it holds whole numbers ({about['dtype']}), which are not normalised")
    if about["layout"] == "channels first":
        notes.append("channels come first (torch's NCHW), where tl wants them last")
    if about["not_finite"]:
        notes.append(f"{about['not_finite']} values are NaN or infinite")
    if photographs is not None and h == w:
        rows = by_pictures(array, own, photographs)
        best = rows[0]
        exact, sure = best["largest_difference"] < 0.6, best["mean_difference"] < ANOTHER_RESIZE
        how = f"{best['name']}, {best['resize']} {best['interpolation']}"
        if exact:
            notes.append(
                f"made from these pictures by {how}, to {best['largest_difference']:.2f} of 255 levels"
            )
        else:
            notes.append(
                f"nearest to these pictures by {how}, {best['mean_difference']:.1f} of 255 levels apart on average"
            )
        suits = not exact or (best["resize"], best["interpolation"]) == (
            own.resize,
            own.interpolation,
        )
        if not suits:
            notes.append(f"the weights want {own.resize} {own.interpolation}")
    else:
        rows, exact = by_numbers(array, own), False
        best = rows[0]
        sure = best["outside"] < 0.02 and best["unlike"] < 3
        red, _, blue = np.nanmean(
            np.asarray(pixels.denormalize(known[best["name"]], jnp.asarray(array))), axis=(0, 1, 2)
        )
        suits = blue <= red + 0.02
        if not suits:
            notes.append(
                "bluer than photographs are on average, as if the channels were swapped: pictures can tell"
            )
    spec = known[best["name"]]
    near = np.allclose([spec.mean, spec.std], [own.mean, own.std], atol=0.01, rtol=0.01)
    return {
        **about,
        "follows": best["name"] if sure else None,
        "evidence": "numbers" if "outside" in best else "pictures",
        "exact": exact,
        "as_the_weights_want": bool(sure and near and suits and spec.channels == own.channels),
        "notes": notes,
        "candidates": rows,
    }


# --- the page ---------------------------------------------------------------------------------------------------------


COLUMNS = {
    "largest_difference": "largest difference, of 255",
    "mean_difference": "mean",
    "resize": "resize",
    "interpolation": "interpolation",
    "outside": "share outside 0 to 255",
    "whole": "share whole",
    "unlike": "unlike photographs",
}


def tables(result: Mapping[str, Any]) -> tuple[list[Html], list[str]]:
    """The page's sections and the terminal's lines."""
    sections, lines = [], []
    if rows := result.get("conventions"):
        labelled = result["ranked_by"] == "top1"
        header = (
            "convention",
            *(("top-1, %", "from", "to") if labelled else ()),
            "confidence, %",
            "information, nats",
            "pixels",
        )
        cells, bars = [], []
        for row in rows:
            shares = (
                (row["top1"], *row["top1_ci95"], row["confidence"])
                if labelled
                else (row["confidence"],)
            )
            name = row["name"] + (" (their own)" if row["own"] and row["name"] != OWN else "")
            numbers = (*(round(100 * share, 1) for share in shares), round(row["information"], 2))
            cells.append((name, *numbers, in_words(PixelSpec.from_dict(row["pixels"]))))
            bars.append(reporting.Bar(name, shares[0], row["name"] == result["best"]))
        lines += [reporting.columns(header, cells), "", verdict(result)]
        sections.append(
            reporting.section(
                "Conventions",
                reporting.bars(bars if labelled else []),
                reporting.table(cells, header),
                text=verdict(result),
            )
        )
    if array := result.get("array"):
        fits = (
            "as the weights want" if array["as_the_weights_want"] else "not what the weights want"
        )
        words = (
            f"The array follows {array['follows']}, {fits}."
            if array["follows"]
            else "The array follows none that is known."
        )
        words += "".join(f" {note[0].upper()}{note[1:]}." for note in array["notes"])
        keys = [key for key in array["candidates"][0] if key != "name"]
        rounded = lambda cell: round(cell, 3) if isinstance(cell, float) else cell
        cells = [
            [row["name"], *(rounded(row[key]) for key in keys)] for row in array["candidates"][:8]
        ]
        header = ("convention, undone", *(COLUMNS[key] for key in keys))
        lines += ["", reporting.columns(header, cells), "", words]
        sections.append(reporting.section("The array", reporting.table(cells, header), text=words))
    return sections, lines


def main(run: reporting.Run) -> None:
    if not (FLAGS.images or FLAGS.array):
        raise ValueError("nothing to audit; give --images=PATHS, --array=FILE.npy, or both")
    array = read_array(Path(FLAGS.array).expanduser()) if FLAGS.array else None
    clf, variables = cli.load_model()
    result: dict[str, Any] = {"own": clf.pixels.as_dict()}
    photographs: list[np.ndarray] | None = None
    if FLAGS.images:
        inference.class_table(clf)
        pictures = {
            r: inference.read_images(clf.with_pixels(resize=r), FLAGS.images)
            for r in ("shorter", "squash")
        }
        paths, skipped = pictures["shorter"].paths, pictures["shorter"].skipped
        labels = folder_labels(clf, paths) if FLAGS.labels == "folder" else None
        result |= {"n": len(paths), **compare(clf, variables, pictures, labels), "skipped": skipped}
        photographs = [data.decode(path) for path in paths] if array else None
    if array:
        result["array"] = {"path": FLAGS.array, **follows(*array, clf.pixels, photographs)}
    sections, lines = tables(result)
    print("\n".join(lines))
    sections.append(reporting.skipped(result.get("skipped", [])))
    lead = f"{clf.arch} with the weights {clf.weights.name}."
    facts = run.facts() | common.weights_facts(clf)
    run.finish(result, reporting.page("Which preprocessing", lead, sections, facts=facts))
    print(f"\n{run.workdir / 'report.html'}")


if __name__ == "__main__":
    cli.launch("audit", main, cli.define_model_flags, define_flags)
