"""The section "How to add" of the README: exactly the files that it names are enough.

A copy of the project gets one backbone variant, one data set inside a tar file, one attack and one
objective, by insertions into the files that the README names. The copy then uses each of them, and
runs the tests that its tables have.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Insertion(NamedTuple):
    """Lines that are added after the line that matches a regular expression; "" is a new file."""

    after: str
    lines: str


TAR = '''
"""Labeled images in a tar file: `CLASS/IMAGE`."""

import dataclasses
import tarfile
from pathlib import PurePosixPath

from tl.data.spec import DataSpec, Example


@dataclasses.dataclass(frozen=True)
class Member:
    file: str
    member: str

    @property
    def name(self):
        return PurePosixPath(self.member).name

    @property
    def suffix(self):
        return PurePosixPath(self.member).suffix

    def read_bytes(self):
        with tarfile.open(self.file) as file:
            return file.extractfile(self.member).read()

    def __str__(self):
        return f"{self.file}/{self.member}"


def tar(file):
    with tarfile.open(file) as archive:
        names = sorted(archive.getnames())
    classes = tuple(sorted({name.split("/")[0] for name in names}))
    examples = tuple(Example(Member(file, n), classes.index(n.split("/")[0])) for n in names)
    return DataSpec(f"tar:{file}", examples, classes, file, "unknown")
'''

ADDITIONS: dict[str, Mapping[str, Insertion | list[Insertion]]] = {
    "backbone variant": {
        "tl/backbones/resnet.py": Insertion(
            r"VARIANTS = \(",
            """
    BackboneSpec(
        name="resnet14",
        module=ResNet((1, 1, 1, 1), Bottleneck),
        features=2048,
        endpoints=STAGES,
        sources={"timm": "resnet14"},
        reference="He et al. 2016, arXiv:1512.03385",
    ),""",
        ),
        "tl/weights/manifest.py": Insertion(
            r"PUBLISHED\b.* = \(", '    _timm("resnet14", "bt_in1k", 60.0),'
        ),
        "tl/weights/README.md": Insertion("tables", ""),
    },
    "data set": {
        "tl/data/NAME.py": Insertion("", TAR),
        "tl/data/__init__.py": [
            Insertion(r"from tl\.data\.find import find_images", "from tl.data.archive import tar"),
            Insertion(r"SETS\b.* = \{", '    "tar": (tar, "FILE"),'),
        ],
        "tl/README.md": Insertion(r"data/ .*", "                archive"),
        "tl/data/README.md": Insertion(r"\| `elpv` \|.*", "| `tar:FILE` | images in a tar file |"),
    },
    "attack": {
        "tl/attacks/gradient.py": Insertion(
            "from __future__ import annotations",
            '''

def long_pgd(*, steps: int = 80, restarts: int = 1) -> Search:
    """PGD with twice as many steps."""
    return pgd(steps=steps, restarts=restarts)

''',
        ),
        "tl/attacks/__init__.py": Insertion(
            r"ATTACKS\b.* = \{", '    "long_pgd": gradient.long_pgd,'
        ),
        "tests/test_attacks.py": Insertion(
            r"CASES\b.*= \[.*", '    ("long_pgd", "linf", "untargeted"),'
        ),
        "tl/attacks/README.md": Insertion(
            r"\| attack \|.*\n\|.*",
            "| `long_pgd` | Linf, L2, L1 | `steps` gradients | no | patience |",
        ),
    },
    "objective": {
        "tl/visualize/objectives.py": Insertion(
            "from __future__ import annotations",
            '''

def feature_sum(index: jax.Array) -> Objective:
    """The sum of all pooled features."""
    return Objective(lambda output, _: jnp.sum(output.features, axis=1))

''',
        ),
        "tl/visualize/specs.py": Insertion(
            r"KINDS\b.* = \{",
            '    "feature_sum": Kind(\n        lambda _, index: objectives.feature_sum(index),'
            " CHANNEL, 10.0, 2.0\n    ),",
        ),
        "tests/test_objectives.py": Insertion(
            r"ROWS\b.* = \{",
            '    "feature_sum": Row(\n        objectives.feature_sum, INDEX,'
            " lambda m, k, x: m.mean(axis=(1, 2)).sum(axis=1)\n    ),",
        ),
        "tl/visualize/README.md": Insertion(
            r"\| --objective \|.*\n\|.*", "| `feature_sum:ENDPOINT:INDEX` | all features |"
        ),
    },
}

USE = {
    "backbone variant": """
clf, variables = tl.load("resnet14", weights="random")
assert clf.arch == "resnet14" and clf.spec.features == 2048""",
    "data set": """
with tarfile.open("pets.tar", "w") as file:
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        content = io.BytesIO()
        Image.new("RGB", (32, 32), "red").save(content, "png")
        info = tarfile.TarInfo(name)
        info.size = content.tell()
        content.seek(0)
        file.addfile(info, content)
spec = tl.data.get("tar:pets.tar")
prepare = tl.models.load("squeezenet1_1", weights="random")[0].with_pixels(size=32).prepare
batch = next(iter(tl.data.load([e.path for e in spec.examples], prepare, batch_size=3)))
assert spec.classes == ("cat", "dog") and batch.valid.all()""",
    "attack": """
assert tl.attacks.get("long_pgd")().steps == 80""",
    "objective": """
from tl.visualize import specs
assert specs.form("feature_sum") == "feature_sum:ENDPOINT:INDEX" """,
}

# File -> the keywords of its tests that depend on an added row.
TESTS = {
    "test_manifest.py": "manifest",
    "test_architecture.py": "layout",
    "test_attacks.py": "long_pgd or cover",
    "test_objectives.py": "(feature_sum and value) or table",
    "test_documentation.py": "matrix or matrices or tables or generated",
}


def named_files(kind: str) -> set[str]:
    """The files that the README names in the paragraph about one kind of addition."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    paragraph = re.findall(rf"^- An? \*\*{kind}\*\*.*?(?=^- |^\w)", text, flags=re.M | re.S)[0]
    return set(re.findall(r"`((?:tl|tests|experiments)/[\w/]+\.(?:py|md))`", paragraph))


@pytest.mark.parametrize("kind", ADDITIONS)
def test_the_readme_names_exactly_the_files_that_change(kind: str) -> None:
    assert named_files(kind) == set(ADDITIONS[kind])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with all additions."""
    copy = tmp_path_factory.mktemp("project")
    ignore = shutil.ignore_patterns("__pycache__", "*.npz", "*.jpg")
    for folder in ("tl", "tests", "experiments"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    for file in ("README.md", "pyproject.toml", "launch.sh"):
        shutil.copy(ROOT / file, copy)
    for insertions in ADDITIONS.values():
        for name, some in insertions.items():
            for insertion in [some] if isinstance(some, Insertion) else some:
                insert(copy / name.replace("NAME", "archive"), insertion)
    return copy


def insert(file: Path, insertion: Insertion) -> None:
    """Changes a file, which must have the place exactly once."""
    if not insertion.after:
        file.write_text(insertion.lines.lstrip(), encoding="utf-8")
    elif insertion.lines:
        text = file.read_text(encoding="utf-8")
        new, count = re.subn(
            rf"^({insertion.after}\n)", lambda m: f"{m[1]}{insertion.lines}\n", text, flags=re.M
        )
        assert count == 1, (file, insertion.after, count)
        file.write_text(new, encoding="utf-8")


def run(project: Path, *words: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(project), "JAX_PLATFORMS": "cpu"}
    process = subprocess.run(
        [sys.executable, *words],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.full
def test_additions_work_and_pass_the_tests_of_their_tables(project: Path) -> None:
    run(project, "-m", "experiments.rerun", "--tables")
    lines = ["import io, tarfile", "import tl, tl.visualize.specs", "from PIL import Image"]
    run(project, "-c", "\n".join([*lines, *USE.values()]))
    files, keywords = [f"tests/{name}" for name in TESTS], " or ".join(TESTS.values())
    options = ["-q", "-p", "no:cacheprovider", "-m", "not parity", "-k", keywords]
    run(project, "-m", "pytest", *options, *files)
