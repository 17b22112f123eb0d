"""A classifier: backbone, head, preprocessing and class table in one value, and its variables in another.

`load` brings one from pretrained weights, wherever they are, or from a folder that `save` wrote. Everything is pure:
variables are arguments, images are RGB in [0, 1], and the preprocessing happens inside. Training is `tl.train`; reading
files `tl.data`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import backbones, heads, labels, pixels
from tl.backbones.fold import fold
from tl.backbones.run import run
from tl.backbones.spec import BackboneSpec, Module
from tl.labels import ClassTable
from tl.paths import flatten, nearest, unflatten
from tl.pixels import PixelSpec
from tl.types import Mode, Output, Params, Variables
from tl.weights import hub, port, readers, store, tables

ARTEFACT, VARIABLES = "classifier.json", "variables.safetensors"
IMAGENET_CLASSES = 1000
_HUB = "hub repository "  # how an origin begins that is one


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
      pixels: what the weights want done to a photograph; its mean has one number for each input channel.
      classes: names of the logits, or None where the head has none.
      weights: where the backbone's weights come from.
      dtype: in which the backbone computes; parameters, sums, statistics, features and logits are float32 in either.
    """

    arch: str
    spec: BackboneSpec
    head: Module | None
    pixels: PixelSpec
    classes: ClassTable | None
    weights: Provenance
    dtype: str = "float32"

    def init(self, key: jax.Array) -> Variables:
        """Fresh variables: `{"params": {"backbone": ..., "head": ...}, "batch_stats": {"backbone": ...}}`, float32."""
        side = max(self.pixels.size, self.spec.min_size)
        inputs = jnp.zeros((1, side, side, len(self.pixels.mean)), jnp.float32)
        key_backbone, key_head = jax.random.split(key)
        traced: Any = self.spec.module.init_with_output(key_backbone, inputs, Mode.EVAL)
        (features, ends), variables = traced
        out = {name: {"backbone": tree} for name, tree in variables.items()}
        out.setdefault("batch_stats", {})
        if self.head is not None:
            out["params"]["head"] = self.head.init(key_head, features, ends)["params"]
        return out

    def init_head(self, key: jax.Array) -> Params:
        """Fresh parameters of the head alone, without a pass through the backbone.

        Raises:
          ValueError: this network has no head.
        """
        if self.head is None:
            raise ValueError(self.headless())
        side = max(self.pixels.size, self.spec.min_size)
        inputs = jax.ShapeDtypeStruct((1, side, side, len(self.pixels.mean)), jnp.float32)
        order: list[str] = []  # of the forward pass, which a head may count on; JAX's trees sort by name

        def begin(x: jax.Array) -> Any:
            traced: Any = self.spec.module.init_with_output(jax.random.key(0), x, Mode.EVAL)
            order.extend(traced[0][1])
            return traced[0]

        features, ends = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(begin, inputs))
        return self.head.init(key, features, {name: ends[name] for name in order})["params"]

    def apply(
        self,
        variables: Variables,
        images01: jax.Array,
        mode: Mode = Mode.EVAL,
        *,
        live: Collection[str] | None = None,
    ) -> Output:
        """One forward pass.

        Args:
          variables: as `init` or `load` return them.
          images01: f32[b h w 3] in [0, 1], RGB, not normalised; any h and w from `spec.min_size` up. (As many channels as
            `pixels.mean` has.)
          mode: whose statistics BatchNorm uses.
          live: paths of the backbone's layers (`optim.live_norms`) whose BatchNorm follows `mode`, while all others stay in
            `Mode.EVAL`: a frozen block normalises as it does at test time. Default: all of them.

        Returns:
          Output; `logits` is None for a network without a head.

        Raises:
          ValueError: `images01` has another dtype or rank, leaves [0, 1], holds NaN, or is too small.
        """
        pixels.check(images01, ndim=4, channels=len(self.pixels.mean))
        if min(images01.shape[1:3]) < self.spec.min_size:
            raise ValueError(
                f"{self.arch} wants images of at least {self.spec.min_size} pixels a side; got {images01.shape}"
            )
        inputs = pixels.normalise(self.pixels, images01).astype(self.dtype)
        return self._run(variables, inputs, mode, "", live)

    def apply_from(
        self,
        variables: Variables,
        maps: jax.Array,
        start: str,
        mode: Mode = Mode.EVAL,
        *,
        live: Collection[str] | None = None,
    ) -> Output:
        """The rest of a forward pass: from what a frozen prefix has computed once, to the logits.

        Args:
          variables: as for `apply`; those of the prefix are not read.
          maps: f32 or bf16[b h w c], the map of the endpoint `start`; f32[b d] where `start` is "features".
          start: a stage of `spec.endpoints`, or "features": then the head alone is left.
          mode, live: as for `apply`.

        Returns:
          Output; its endpoints are those after `start`.

        Raises:
          ValueError: `start` is no stage; gives the nearest.
        """
        if start == "features":
            return Output(self.apply_head(variables, maps), maps, {}, variables.get("batch_stats", {}))
        if start not in self.spec.endpoints:
            raise ValueError(f"{self.arch} has no stage {start!r}; nearest: {nearest(start, self.spec.endpoints)}")
        return self._run(variables, maps, mode, start, live)

    def _run(self, variables: Variables, x: jax.Array, mode: Mode, start: str, live: Collection[str] | None) -> Output:
        parts = {name: tree["backbone"] for name, tree in variables.items() if "backbone" in tree}
        stats = variables.get("batch_stats", {})
        features, ends, moved = run(self.spec.module, parts, x, mode, start=start, live=live)
        stats = stats if moved is None else {**stats, "backbone": moved}
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

    def with_dtype(self, dtype: str) -> Classifier:
        """The same network, computing in another type; `variables` stay as they are.

        Raises:
          ValueError: neither float32 nor bfloat16.
        """
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"a network computes in float32 or bfloat16; got {dtype!r}")
        return dataclasses.replace(self, dtype=dtype)

    def fold_batch_norm(self, variables: Variables) -> Variables:
        """Variables of an equivalent network without BatchNorm, for use where the backbone is frozen.

        Each BatchNorm's statistics, scale and bias go into the kernel before it and a bias; where no convolution comes
        before, an affine map is left. `apply` takes the result in place of `variables`; every mode is then the evaluation
        mode, since there are no statistics to move. Logits agree to the rounding of float32.

        Returns:
          `{"params": ..., "batch_stats": {}}`, float32.
        """
        params, stats = variables["params"], variables.get("batch_stats", {})
        backbone = fold(self.spec.module, params["backbone"], stats.get("backbone", {}), len(self.pixels.mean))
        return {"params": {**params, "backbone": backbone}, "batch_stats": {}}

    def with_pixels(self, **changes: Any) -> Classifier:
        """The same network at another size, crop or resize rule."""
        return dataclasses.replace(self, pixels=self.pixels.replace(**changes))


def load(
    name: str,
    *,
    weights: str | Path | None = None,
    key: jax.Array | None = None,
    in_channels: int = 3,
    cast: bool = False,
) -> tuple[Classifier, Variables]:
    """A pretrained network and its variables.

    Args:
      name: an architecture (`"efficientnet_lite0"`, an alias, or `"arch.tag"`), or a folder written by `save`.
      weights: where from. "package": the file that an installed package carries. "hub": timm's repository
        `timm/ARCH.TAG`, from the cache or the network ("hub:OWNER/REPO" for another in timm's layout). A path to a file of
        torch, Keras, safetensors or pickled numpy, or to a folder that `save` wrote. "random". Default: the package where it
        is installed, else the hub.
      key: `jax.random.key` for "random"; default key 0.
      in_channels: of the input. Other than 3, the first kernel is summed over its channels (1) or repeated and rescaled
        (`adapt_channels`), and mean and std are the average of the three.
      cast: accept a file in another number type than float32, and convert it.

    Returns:
      `(classifier, variables)`; variables are numpy arrays in float32, so nothing has touched a device yet. Where the file
      holds another form of the network that was asked for (Keras' or TensorFlow's), `classifier.arch` names that form.

    Raises:
      ValueError: unknown name, weights that cannot be found (says what brings them), a file that is not the one its hash
        names, or tensors that do not fit.
    """
    if (Path(name) / ARTEFACT).is_file():
        return _load_artefact(Path(name))
    if "/" in name or Path(name).is_dir():
        raise ValueError(f"no saved classifier in {name}: it has no {ARTEFACT}; give a folder that `transfer` wrote")
    if in_channels < 1:
        raise ValueError(f"in_channels must be at least 1; got {in_channels}")
    arch, _, tag = name.partition(".")
    spec = backbones.get(arch)
    words = str(weights or "")
    if words == "random":
        origin = Provenance(f"{spec.name}.random", "random", "random numbers", "none")
        clf = _with_own_head(spec, _averaged(PixelSpec(), in_channels), origin)
        random_key = jax.random.key(0) if key is None else key
        return clf, jax.tree.map(np.asarray, jax.jit(clf.init)(random_key))
    found = _find(spec, tag, words)
    return _ported(spec, found, in_channels=in_channels, cast=cast)


class _Found(NamedTuple):
    """A weights file, and what is known of it before it is read."""

    path: Path
    weights: Provenance
    arch: str | None = None
    source: str | None = None
    pixels: PixelSpec | None = None
    classes: ClassTable | None = None
    ignore: tuple[str, ...] = ("num_batches_tracked",)


def _find(spec: BackboneSpec, tag: str, words: str) -> _Found:
    """The file that `weights=words` means for an architecture and a tag."""
    if words in ("", "package"):
        row = store.packaged_row([form.name for form in backbones.forms(spec.name)], tag)
        if row is not None and (words == "package" or store.installed(row)):
            known_as = Provenance(f"{row.arch}.{row.tag}", row.sha256, row.origin, row.licence)
            return _Found(store.verified(row), known_as, row.arch, row.source, row.pixels, None, row.ignore)
        if words == "package":
            raise ValueError(store.no_package(spec.name, tag))
    if words in ("", "hub") or words.startswith("hub:"):
        return _fetched(spec, tag, words.partition(":")[2])
    path = Path(words).expanduser()
    if (path / ARTEFACT).is_file():
        path = path / VARIABLES
    if not path.is_file():
        raise ValueError(
            f"no weights file at {path}; give package, hub, random, or a path to a safetensors, torch or Keras file"
        )
    store.check_named_hash(path)
    return _Found(path, Provenance(f"{spec.name}:{path.name}", store.sha256(path)))


def _fetched(spec: BackboneSpec, tag: str, repo: str) -> _Found:
    """The hub's files for an architecture and tag, or of a repository."""
    if not repo:
        row = store.hub_row([form.name for form in backbones.forms(spec.name)], spec.name, tag)
        repo = row.hub if row else f"timm/{spec.name}.{tag}" if tag else ""
        if not repo:
            raise ValueError(store.nowhere(spec.name))
    files = hub.fetch(repo)
    held = hub.architecture_of(files.config)
    if held not in [form.name for form in backbones.forms(spec.name)]:
        raise ValueError(
            f"{repo} on the hub holds {held}; wanted {spec.name}: take --arch={held}, or a tag of {spec.name}"
        )
    names = files.config.get("label_names")
    classes = labels.from_names(list(names), name=repo) if names and len(names) != IMAGENET_CLASSES else None
    known_as = Provenance(
        repo.removeprefix("timm/"), store.sha256(files.weights), f"{_HUB}{repo}", hub.licence_of(files.config)
    )
    return _Found(files.weights, known_as, held, "timm", hub.pixels_of(files.config), classes)


def _with_own_head(spec: BackboneSpec, pixel_spec: PixelSpec, weights: Provenance) -> Classifier:
    """The architecture under its paper's 1000-way head."""
    return Classifier(spec.name, spec, heads.own(spec)(IMAGENET_CLASSES), pixel_spec, labels.imagenet(), weights)


def _ported(spec: BackboneSpec, found: _Found, *, in_channels: int, cast: bool) -> tuple[Classifier, Variables]:
    """Variables from a file, through the rename table whose names fit it best."""
    arrays = readers.read(found.path)
    spec, source = _best_fit(spec, found, arrays)
    if source is None:  # tl's own names
        same = flatten(jax.eval_shape(_with_own_head(spec, PixelSpec(), found.weights).init, jax.random.key(0)))
        whole = {name: port.Target(name) for name in same}
        pixel_spec = found.pixels or PixelSpec()
    else:
        form = tables.sources(spec)[source]
        whole = form.table(spec.module, head=True)
        pixel_spec = found.pixels or store.pixels_for(spec.name, source) or form.pixels
    bare = {name: target for name, target in whole.items() if not target.path.startswith("params/head/")}
    clf = _with_own_head(spec, pixel_spec, found.weights)
    has_head = bool((set(whole) - set(bare)) & set(arrays))
    if not has_head:
        clf = dataclasses.replace(clf, head=None, classes=None)
    shapes = jax.eval_shape(clf.init, jax.random.key(0))
    if has_head:
        clf, shapes = _sized_head(clf, shapes, arrays, whole, found.classes)
    try:
        variables = port.port(arrays, whole if has_head else bare, shapes, ignore=found.ignore, cast=cast)
    except ValueError as error:
        raise ValueError(_misfit(spec, found.path, arrays, str(error))) from None
    return _with_channels(clf, {"batch_stats": {}, **variables}, in_channels)


def _best_fit(spec: BackboneSpec, found: _Found, arrays: readers.Arrays) -> tuple[BackboneSpec, str | None]:
    """The form of a network and the source whose names cover most of a file's tensors; forms as asked for come first."""
    if found.arch and found.source:
        return backbones.get(found.arch), found.source
    if any(name.startswith("params/backbone/") for name in arrays):
        return spec, None
    known = [(form, source) for form in backbones.forms(spec.name) for source in form.sources]

    def fit(pair: tuple[BackboneSpec, str]) -> int:
        form, source = pair
        return len(set(tables.sources(form)[source].table(form.module, head=True)) & set(arrays))

    return max(known, key=fit)


def _misfit(spec: BackboneSpec, path: Path, arrays: readers.Arrays, mismatches: str) -> str:
    """What is wrong with a file: it is another architecture's, if one is known that fits it, or else every mismatch."""
    held = [name for name in backbones.names() if name != spec.name and _holds(backbones.get(name), arrays)]
    if held:
        return f"{path} holds the tensors of {held[0]}; wanted {spec.name}: take --arch={held[0]}, or a file of {spec.name}"
    if "do not fit" not in mismatches:  # the tensors are there, in another number type
        return f"{path}: {mismatches}"
    named = ", ".join(spec.sources)
    return f"{path}: {mismatches}; wanted the tensors of {spec.name} as {named} name them: take a file of this network"


def _holds(spec: BackboneSpec, arrays: readers.Arrays) -> bool:
    """Whether a file's backbone is this architecture's, by every name and shape."""
    for form in tables.sources(spec).values():
        table = form.table(spec.module, head=False)
        if set(table) <= set(arrays):
            clf = Classifier(spec.name, spec, None, PixelSpec(), None, Provenance("", ""))
            shapes = flatten(jax.eval_shape(clf.init, jax.random.key(0)))
            if all(
                arrays[name].shape == port.LAYOUTS[target.layout].theirs(shapes[target.path].shape)
                for name, target in table.items()
            ):
                return True
    return False


def _sized_head(
    clf: Classifier, shapes: Any, arrays: readers.Arrays, table: port.Table, classes: ClassTable | None
) -> tuple[Classifier, Any]:
    """The head as wide as the file's own: a file with k classes other than ImageNet's 1000 brings no names for them."""
    (last,) = (name for name, leaf in flatten(shapes["params"]["head"]).items() if leaf.shape == (IMAGENET_CLASSES,))
    found = next(
        (arrays[s].shape for s, target in table.items() if target.path == f"params/head/{last}" and s in arrays), None
    )
    if found is None or len(found) != 1 or found[0] == IMAGENET_CLASSES:
        return clf, shapes
    unnamed = labels.from_names([f"class {i}" for i in range(found[0])], name="unnamed")
    named = classes if classes is not None and len(classes.entries) == found[0] else unnamed
    clf = clf.with_head(heads.own(clf.spec)(found[0]), named)
    return clf, jax.eval_shape(clf.init, jax.random.key(0))


def _averaged(spec: PixelSpec, channels: int) -> PixelSpec:
    """The spec for another number of input channels: each has the average of the three."""
    if channels == 3:
        return spec
    mean, std = (float(np.mean(v)) for v in (spec.mean, spec.std))
    return spec.replace(mean=(mean,) * channels, std=(std,) * channels, channels="rgb")


def _with_channels(clf: Classifier, variables: Variables, channels: int) -> tuple[Classifier, Variables]:
    """The network for pictures of another number of channels: its first kernel adapted, the rest as it is."""
    if channels == 3:
        return clf, variables
    clf = dataclasses.replace(clf, pixels=_averaged(clf.pixels, channels))
    wanted, leaves = flatten(jax.eval_shape(clf.init, jax.random.key(0))), flatten(variables)
    adapted = {
        name: leaf if leaf.shape == wanted[name].shape else adapt_channels(leaf, channels)
        for name, leaf in leaves.items()
    }
    return clf, {"batch_stats": {}, **unflatten(adapted)}


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A first kernel f32[kh kw 3 o] for pictures of another number of channels: f32[kh kw channels o].

    One channel: the sum over the three, so that a grey picture gives what its three equal channels gave. More: the three
    over and over, times 3 / channels, so that the sum keeps its size. The same rule as timm's `in_chans`.
    """
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = np.concatenate([kernel] * -(-channels // kernel.shape[2]), axis=2)[:, :, :channels]
    return repeated * np.float32(kernel.shape[2] / channels)


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
    save_file({name: np.ascontiguousarray(a) for name, a in flatten(variables).items()}, folder / VARIABLES)
    (folder / ARTEFACT).write_text(
        json.dumps(
            {
                "format": 2,
                "arch": clf.arch,
                "head": heads.kind(clf.head),
                "pixels": clf.pixels.as_dict(),
                "classes": clf.classes.as_dict(),
                "weights": dataclasses.asdict(clf.weights),
                "sha256": store.sha256(folder / VARIABLES),
                "record": dict(record or {}),
            },
            indent=1,
        )
    )
    return folder


def learned_from(clf: Classifier) -> tuple[str, str]:
    """What brings back the pretrained weights that a saved classifier began from: `load(name, weights=weights)`.

    A classifier that `transfer` learned from a folder of another began where that one did.

    Returns:
      `(name, weights)`: `("tf_efficientnet_lite0.lukemelas_in1k", "package")`, `("resnet50", "hub:timm/resnet50.a1_in1k")`.

    Raises:
      ValueError: they came from a file whose place is not kept, or were random numbers.
    """
    name, repo = clf.weights.name, clf.weights.origin.removeprefix(_HUB)
    arch, _, tag = name.partition(".")
    if repo != clf.weights.origin:
        return clf.arch, f"hub:{repo}"
    if (row := store.packaged_row([arch], tag)) is not None and tag == row.tag:
        return name, "package"
    drawn = clf.weights.origin == "random numbers"
    what = "random numbers" if drawn else f"a file that is known by its name alone, {name!r}"
    raise ValueError(
        f"the weights that this {clf.arch} began from cannot be found again, for they were {what}; say where they are: "
        "--before=FILE, FOLDER or NAME"
    )


def record(folder: str | Path) -> dict[str, Any]:
    """The facts that `save` was given to keep beside a classifier; `load` says what is wrong with a folder that has none."""
    return json.loads((Path(folder) / ARTEFACT).read_text()).get("record", {})


_FORMAT_1 = {"efficientnet_lite0": "tf_efficientnet_lite0"}  # format 1 had one form of it, and called it so


def _load_artefact(folder: Path) -> tuple[Classifier, Variables]:
    try:
        about = json.loads((folder / ARTEFACT).read_text())
        classes = labels.from_dict(about["classes"])
        pixel_spec = PixelSpec.from_dict(about["pixels"])
        weights = Provenance(**about["weights"])
        arch, wanted = about["arch"], about["sha256"]
        spec = backbones.get(str(_FORMAT_1.get(arch, arch) if about["format"] == 1 else arch))
        head = heads.maker("own" if about["head"] == "vgg" else about["head"], spec)(len(classes.entries))
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / ARTEFACT} is not a classifier that this version of tl wrote: {error!r}") from error
    file = folder / VARIABLES
    arrays = readers.read(file)
    if store.sha256(file) != wanted:
        raise ValueError(f"{file} is not the file that {ARTEFACT} names (its sha256 differs); train or copy it again")
    clf = Classifier(spec.name, spec, head, pixel_spec, classes, dataclasses.replace(weights, sha256=wanted))
    shapes = flatten(jax.eval_shape(clf.init, jax.random.key(0)))
    same = {name: port.Target(name) for name in shapes}
    return clf, {"batch_stats": {}, **port.port(arrays, same, unflatten(shapes))}
