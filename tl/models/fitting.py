"""Which form of a network, which names and which prefix fit the tensors of a weights file.

Files differ in the names of their tensors: by library (the rename tables of `tl.weights.tables`),
by the modules around the network (a prefix), and by their head. `best_fit` chooses among the forms
of one network, and `holding` searches the zoo. `tl.models.loading` makes a classifier from a `Fit`.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl import backbones
from tl.backbones.spec import BackboneSpec
from tl.labels.names import counted
from tl.models import heads
from tl.models.classifier import IMAGENET_CLASSES, Classifier, Provenance
from tl.paths import ending, flatten, shortened
from tl.pixels import PixelSpec
from tl.types import DetailedError
from tl.weights import port, readers, tables

Arrays = Mapping[str, np.ndarray]
Pair = tuple[BackboneSpec, str | None]

# Longest error message about a file, and of a path in it, in characters.
MAX_MESSAGE, _PATH = 600, 120
# The children of torchvision's ResNet.
_CHILDREN = "conv1 bn1 relu maxpool layer1 layer2 layer3 layer4 avgpool fc".split()
# Endings of tensors that no network needs: counters of BatchNorm and of averaged models.
IGNORED = ("num_batches_tracked", "n_averaged")
# Parts of a prefix, so that long names need little memory; real files have at most six.
_MOST_PARTS = 16
# Losses, metrics and queues that a training script keeps next to the network.
_HARMLESS = re.compile(
    r"(?<![^./_])(\w*loss\w*|criterion|\w*metrics?|\w*acc(uracy)?|queue\w*)(?![^./_])", re.I
)
# In a prefix: averages of the weights, which timm prefers, and copies for another purpose.
_AVERAGED = re.compile(r"ema|averaged|swa|teacher", re.I)
_COPY = re.compile(r"attacker|encoder_k|momentum|target", re.I)


class Fit(NamedTuple):
    """The reading of a weights file as one network. Names are those of the file without `prefix`.

    Attributes:
      spec: the form of the network.
      source: the rename table; None for a file with `tl`'s own names.
      backbone, head: the rows of the table.
      prefix: the beginning of the names of all tensors of the network.
      arrays: the tensors whose names begin with the prefix, without copies.
      outside: whole names of the other tensors.
      copies: prefixes under which the file holds the same network again.
    """

    spec: BackboneSpec
    source: str | None
    backbone: port.Table
    head: port.Table
    prefix: str
    arrays: Arrays
    outside: Arrays
    copies: tuple[str, ...]

    def extra(self) -> list[str]:
        """Names under the prefix that no table has, apart from counters."""
        known = {*self.backbone, *self.head}
        return [n for n in self.arrays if n not in known and not n.endswith(IGNORED)]

    def foreign(self) -> list[str]:
        """Extra names like the backbone's own: those of a larger or another network."""
        kinds = {_kind(name) for name in self.backbone}
        return [name for name in self.extra() if _kind(name) in kinds]

    def unknown(self) -> list[str]:
        """Whole names of the tensors that could belong to a head of the file's own."""
        foreign = set(self.foreign())
        inside = [self.prefix + name for name in self.extra() if name not in foreign]
        outside = [n for n in self.outside if not n.startswith(self.copies or ("\0",))]
        return [
            name
            for name in (*inside, *outside)
            if not _HARMLESS.search(name) and not name.endswith(IGNORED)
        ]

    def remarks(self, headless: bool) -> list[str]:
        """What a user should know about this reading, one sentence each."""
        remarks = []
        if self.prefix:
            remarks.append(
                f"the prefix {self.prefix!r} was removed from the names of "
                f"{counted(len(self.arrays), 'tensor')}"
            )
        if copies := [c for c in self.copies if not _COPY.search(c)]:
            remarks.append(
                f"the network is in the file {len(copies) + 1} times: {self.prefix!r} is used; for "
                f"{listed(map(repr, copies), 1)}, give `which`"
            )
        if headless and (names := self.head_names()):
            n = counted(len(names), "tensor")
            remarks.append(f"the head was left out: {n} ({listed(names, 2)})")
        known = set(self.head_names())
        rest = [name for name in self.unused(self.backbone) if name not in known]
        if rest := [name for name in rest if not name.startswith(self.copies or "\0")]:
            verb = "is" if len(rest) == 1 else "are"
            n = counted(len(rest), "other tensor")
            remarks.append(f"{n} {verb} not used ({listed(rest, 2)})")
        return remarks

    def unused(self, table: port.Table) -> list[str]:
        """Whole names of all tensors that are not in a table, apart from counters."""
        inside = [self.prefix + name for name in self.arrays if name not in table]
        return [name for name in (*inside, *self.outside) if not name.endswith(IGNORED)]

    def channels(self) -> int:
        """Number of input channels of the first kernel; 3 if the file lacks it."""
        for name, (path, layout) in self.backbone.items():
            if path.endswith("/kernel"):
                array = self.arrays.get(name)
                if array is None or array.ndim != 4 or port.LAYOUTS[layout].rank == 2:
                    return 3
                return port.LAYOUTS[layout].ours(array).shape[2]
        return 3

    def shapes(self, classes: int | None = None) -> Mapping[str, Any]:
        """Path -> shape of each variable; with `classes`, also of the paper's head."""
        return _shapes(self.spec, self.channels(), classes)

    def classes(self) -> int | None:
        """Number of classes, if the file has exactly the head of the network's paper."""
        if not self.head or not set(self.head) <= set(self.arrays) or self.unknown():
            return None
        last = next(
            p
            for p, leaf in self.shapes(IMAGENET_CLASSES).items()
            if p.startswith("params/head/") and leaf.shape == (IMAGENET_CLASSES,)
        )
        bias = next(self.arrays[name] for name, target in self.head.items() if target.path == last)
        if bias.ndim != 1 or not len(bias):
            return None
        return len(bias) if fits(self.head, self.shapes(len(bias)), self.arrays) else None

    def head_names(self) -> list[str]:
        """Whole names of the head's tensors in the file."""
        return [self.prefix + n for n in self.head if n in self.arrays] + self.unknown()


def named_children(contents: readers.Contents) -> readers.Contents:
    """The contents with torchvision's names for the children of a ResNet in an `nn.Sequential`.

    `nn.Sequential(*list(resnet.children())[:-1])` numbers the layers: 0 is the first convolution.
    """
    for name in contents.arrays:
        if match := re.fullmatch(r"((?:.*?[./])?)4\.0\.conv1\.weight", name):
            break
    else:
        return contents
    start, children, arrays = match[1], dict(enumerate(_CHILDREN)), {}
    for name, array in contents.arrays.items():
        first, _, rest = name.removeprefix(start).partition(".")
        child = children.get(int(first)) if first.isdecimal() else None
        renamed = child and name.startswith(start) and rest
        arrays[f"{start}{child}.{rest}" if renamed else name] = array
    if len(arrays) < len(contents.arrays):
        return contents
    remark = "the numbered layers are read as those of a ResNet: 0 as conv1, 4 as layer1"
    return contents._replace(arrays=arrays, remarks=(*contents.remarks, remark))


@functools.lru_cache(maxsize=8)
def _shapes(spec: BackboneSpec, channels: int, classes: int | None) -> Mapping[str, Any]:
    """`Fit.shapes`, cached because tracing a network takes most of the time of `load`."""
    head = heads.own(spec)(classes) if classes else None
    values = (0.5,) * channels  # any; they have the number of channels
    pixels = PixelSpec(mean=values, std=values)
    clf = Classifier(spec.name, spec, head, pixels, None, Provenance("", ""))
    return flatten(clf.shapes())


def fits(table: port.Table, shapes: Mapping[str, Any], arrays: Arrays) -> bool:
    """Whether a file has all tensors of a table, in its shapes."""
    return all(
        name in arrays and arrays[name].shape == port.LAYOUTS[layout].theirs(shapes[path].shape)
        for name, (path, layout) in table.items()
    )


def _kind(name: str) -> str:
    """The first part of a name, without numbers: "layer4.0.conv1.weight" -> "layer#"."""
    return re.sub(r"\d+", "#", re.split(r"[./]", name, maxsplit=1)[0])


def _tables(spec: BackboneSpec, source: str | None) -> tuple[port.Table, port.Table]:
    """The rows of the backbone and those of the head."""
    if source is None:
        whole = {name: port.Target(name) for name in _shapes(spec, 3, 2)}
    else:
        whole = tables.sources(spec)[source].table(spec.module, head=True)
    head = {name: row for name, row in whole.items() if row.path.startswith("params/head/")}
    return {name: row for name, row in whole.items() if name not in head}, head


class _Names:
    """The names in a file by prefix: prefix -> rest of the name -> tensor."""

    def __init__(self, arrays: Arrays):
        self.arrays = arrays
        self.rests: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
        for name, array in arrays.items():
            self.rests[""][name] = array
            for match in itertools.islice(re.finditer(r"[./]", name), _MOST_PARTS):
                self.rests[name[: match.end()]][name[match.end() :]] = array

    def count(self, prefix: str, table: Collection[str]) -> int:
        rests = self.rests[prefix]
        return (
            sum(name in rests for name in table)
            if len(rests) < len(table)
            else sum(name in table for name in rests)
        )

    def best(self, table: Collection[str]) -> tuple[int, list[str]]:
        """The largest number of names of a table under one prefix, and all such prefixes."""
        most, prefixes = 0, [""]
        for prefix, rests in self.rests.items():
            if len(rests) >= max(most, 1) and (n := self.count(prefix, table)) >= most:
                prefixes = [*prefixes, prefix] if n == most and most else [prefix]
                most = n
        return most, prefixes


def best_fit(pairs: Sequence[Pair], arrays: Arrays, which: str = "") -> Fit:
    """The form and the source whose names cover most of a file's tensors, and their prefix.

    Args:
      pairs: forms of one network with the names of their sources; the first wins a tie.
      arrays: the tensors of the file.
      which: part of the prefix to use if the file holds the network several times. Default: an
        average of the weights, as in timm, else the shortest prefix.
    """
    names = _Names(arrays)
    rows = [(spec, source, *_tables(spec, source)) for spec, source in pairs]
    best = max(rows, key=lambda row: names.best({*row[2], *row[3]})[0])
    return _fit(*best, names, which)


def _fit(
    spec: BackboneSpec,
    source: str | None,
    backbone: port.Table,
    head: port.Table,
    names: _Names,
    which: str,
) -> Fit:
    most, prefixes = names.best(set(backbone))
    if not most:
        prefixes = [""]

    def order(prefix: str) -> tuple:
        averaged = bool(_AVERAGED.search(prefix))
        if which in ("ema", "raw"):
            return averaged != (which == "ema"), bool(_COPY.search(prefix)), len(prefix)
        named = bool(which) and which in prefix
        return not named, bool(_COPY.search(prefix)), not averaged, len(prefix)

    prefix, *copies = sorted(prefixes, key=order)
    inside = {
        rest: array
        for rest, array in names.rests[prefix].items()
        if not (prefix + rest).startswith(tuple(c for c in copies if len(c) > len(prefix)) or "\0")
    }
    whole = {prefix + rest for rest in inside}
    outside = {name: array for name, array in names.arrays.items() if name not in whole}
    return Fit(spec, source, backbone, head, prefix, inside, outside, tuple(copies))


def holding(arrays: Arrays, which: str = "", but: str = "") -> list[Fit]:
    """The networks of the zoo whose backbone is in a file, by name and shape; larger ones first.

    Args:
      arrays: the tensors of the file.
      which: as for `best_fit`.
      but: a network that is not searched.
    """
    names, out = _Names(arrays), []
    for arch in backbones.names():
        spec = backbones.get(arch)
        for source in spec.sources if arch != but else ():
            backbone, head = _tables(spec, source)
            if names.best(set(backbone))[0] == len(backbone):
                fit = _fit(spec, source, backbone, head, names, which)
                if not fit.foreign() and fits(backbone, fit.shapes(), fit.arrays):
                    out.append(fit)
                    break
    return sorted(out, key=lambda fit: -len(fit.backbone))


def misfit(
    fit: Fit, contents: readers.Contents, path: Path, writer: str, error: ValueError
) -> ValueError:
    """The error for a file that does not fit: its architecture, or else the first mismatches.

    Args:
      fit: the best reading as the requested network.
      contents: the content of the file.
      path: the file.
      writer: `Description.writer`.
      error: from `port`.
    """
    expected, details = fit.spec.name, getattr(error, "details", ())
    complete = not fit.foreign() and fits(fit.backbone, fit.shapes(), fit.arrays)
    others = [] if complete else [f.spec.name for f in holding(contents.arrays, but=expected)]
    if others:
        return DetailedError(
            f"{ending(path, _PATH)} holds another architecture: got {others[0]}, expected "
            f"{expected}; use `arch={others[0]}`, or a file of {expected}",
            details,
        )
    names = {*fit.backbone, *fit.head} & set(fit.arrays)
    if not names:
        return unknown(contents, path, writer, expected)
    tail = ""
    if "do not fit" in str(error):  # else all tensors are there, in another number type
        source = f" under the names of {fit.source}" if fit.source else ""
        tail = f"; expected the tensors of {expected}{source}; use a file of this network"
    return DetailedError(_joined(f"{ending(path, _PATH)}: ", str(error), tail), details)


def unknown(
    contents: readers.Contents, path: Path, writer: str = "", expected: str = ""
) -> DetailedError:
    """The error for a file in which no network is recognized.

    Args:
      contents: the content of the file.
      path: the file.
      writer: `Description.writer`.
      expected: the requested network, or "".
    """
    by = f", written by {writer}," if writer else ""
    sources = ", ".join(backbones.get(expected).sources) if expected else "timm, torchvision, Keras"
    network = expected or "a network of tl.names()"
    names = [f"{name} {array.shape}" for name, array in contents.arrays.items()]
    return DetailedError(
        f"{ending(path, _PATH)}{by} holds {counted(len(names), 'tensor')} with names of another "
        f"network: got {listed(names)}; expected the tensors of {network} under the names of "
        f"{sources}; use a file of this network",
        names,
    )


def _joined(start: str, middle: str, end: str) -> str:
    """One message of at most `MAX_MESSAGE` characters; the middle is shortened."""
    return start + shortened(middle, MAX_MESSAGE - len(start) - len(end)) + end


def listed(names: Iterable[str], count: int = 3) -> str:
    """The first names of a list, and how many there are besides."""
    names = [ending(name, 60) for name in names]
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
