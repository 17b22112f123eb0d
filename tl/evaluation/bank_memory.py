"""Memory of a process that reads features from a bank: one new process per number of images."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from tl import models
from tl.data import DataSpec, augment, shards
from tl.data.plan import Plan
from tl.data.spec import Example
from tl.evaluation import timing
from tl.evaluation.timing import Row
from tl.inference import features
from tl.training import inputs

# Numbers of images; at 1,280 features the banks have 5, 51 and 512 MB.
IMAGES = (1_000, 10_000, 100_000)

CHILD = """
import os, sys
os.environ["TL_CACHE"] = sys.argv[1]
from tl.evaluation import bank_memory
bank_memory.print_memory(*sys.argv[2:])
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """An image of which only the features exist, a `tl.data.spec.Stored`."""

    sha256: str
    suffix: str = ".png"

    @property
    def name(self) -> str:
        return self.sha256 + self.suffix

    def read_bytes(self) -> bytes:
        raise OSError("only the features of this image exist")

    def __str__(self) -> str:
        return self.name


def hashes(n: int) -> list[str]:
    """The names of the first n images of a bank."""
    return [f"{i:064x}" for i in range(n)]


def write_bank(folder: Path, n: int, width: int) -> None:
    """Writes a bank of n images with random features."""
    block = np.random.default_rng(0).standard_normal((features.SHARD, width), np.float32)
    names = hashes(n)
    for first in range(0, n, features.SHARD):
        some = names[first : first + features.SHARD]
        shards.write(folder, "features", dict(zip(some, block, strict=False)))


def print_memory(saved: str, n: str) -> None:
    """Prints the growth of private memory and the bytes read during one epoch, in MB.

    The sources of the images and their hashes are in memory before, because they do not depend on
    the bank.

    Args:
      saved: folder of a classifier.
      n: number of images, the first ones of the bank in `TL_CACHE`.
    """
    clf, variables = models.load(saved)
    examples = tuple(Example(Known(name), 0) for name in hashes(int(n)))
    spec = DataSpec("known", examples, ("all",), "random numbers", "none")
    plain = augment.make_augment("none", size=clf.pixels.size)
    jax.block_until_ready(jax.device_put(variables))
    for example in examples:
        features.identity(example.path)
    before, read_before = timing.private_mb(), _read_mb()
    caches = inputs.compute_caches(clf, variables, [(spec, plain)], "features", gib=1024)
    assert caches and caches[0].valid.all()
    for _ in caches[0].training(Plan(len(examples), 32, 1, 0), 0, jax.random.key(0)):
        pass
    print(json.dumps([timing.private_mb() - before, _read_mb() - read_before]))


def _read_mb() -> float:
    """Bytes that this process has read from files so far, in MB, without those of mapped files."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"]) / 1e6


def bank_memory(arch: str, images: Sequence[int] = IMAGES) -> Iterator[Row]:
    """Growth of private memory while an epoch is read from banks of several sizes.

    The last row reads the first images of the largest bank, next to which there is another bank of
    the same cache.

    Raises:
      ValueError: the system does not report private memory.
    """
    timing.private_mb()
    clf, variables = models.load(arch, weights="random")
    with tempfile.TemporaryDirectory() as folder:
        saved = models.save(Path(folder) / "saved", clf, variables)
        banks = Path(folder) / "cache" / "banks"
        bank = banks / f"{clf.arch}-{features.bank_key(*models.load(str(saved)))}"

        def row(what: str, n: int) -> Row:
            size = sum(file.stat().st_size for file in bank.iterdir()) / 1e6
            private, read = timing.run_child(CHILD, banks.parent, saved, n)
            return {"what": f"bank memory, {what} images", "arch": arch, "images": n} | {
                "unit": "MB",
                "ours": private,
                "read_mb": read,
                "bank_mb": size,
            }

        for n in images:
            shutil.rmtree(bank, ignore_errors=True)
            write_bank(bank, n, clf.spec.features)
            yield row(f"{n:,}", n)
        os.symlink(bank, banks / "other")
        yield row(f"{images[0]:,} of {images[-1]:,}", images[0]) | {"images": None}
