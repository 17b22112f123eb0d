"""Imports follow the map of tl/README.md, each library has its packages, `import tl` is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def read_layout(page: str) -> list[str]:
    """The files of `tl` in the order of the map: lines of `folder/ file file ...`."""
    block = page.partition("```text\n")[2].partition("```")[0]
    layout, folder = [], ""
    for word in block.split():
        if word.endswith("/"):
            folder = "" if word == "tl/" else word
        else:
            layout.append(folder + word)
    return layout


# A file may import the files before it. To add a file: give it a place in the map of tl/README.md.
LAYOUT = read_layout((ROOT / "tl" / "README.md").read_text(encoding="utf-8"))

# Library -> the packages and modules of tl that may import it. All may import other libraries.
HOMES: dict[str, set[str]] = {
    "flax": {"backbones", "models"},
    "optax": {"optim", "training", "ascent"},
    "orbax": {"training"},
    "absl": {"cli", "data"},  # `data` parses a flag of Grain; only `cli` defines flags
    "tensorflow": set(),
    "torch": set(),
    "torchvision": set(),
    "timm": set(),
    "keras": set(),
    "matplotlib": set(),
    "sklearn": set(),
    "jinja2": set(),
}

SOURCES = sorted(path.relative_to(ROOT) for path in (ROOT / "tl").rglob("*.py"))


def imported(path: Path, source: str) -> Iterator[tuple[str, int]]:
    """The full name of every module that a file imports, lazily or not, with the line."""
    package = path.with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*up, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def unit(path: Path) -> str:
    """The name of a file in the layout: `tl/weights/store.py` -> "weights/store"."""
    return path.with_suffix("").as_posix().removeprefix("tl/")


def home_of(module: str) -> str:
    """The file of a module or name, as in the map: `tl.weights.store.Row` -> "weights/store"."""
    parts = module.split(".")[1:]
    for n in range(len(parts), 0, -1):
        for file in ("/".join(parts[:n]), "/".join([*parts[:n], "__init__"])):
            if file in LAYOUT:
                return file
    return "__init__"


def problems(path: Path, source: str) -> list[str]:
    """The imports of a file of tl that break a rule, one message each."""
    file, wrong = unit(path), []
    package = file.partition("/")[0]
    before = LAYOUT[: LAYOUT.index(file)] if file in LAYOUT else LAYOUT
    for module, line in imported(path, source):
        top = module.partition(".")[0]
        if top == "tl" and home_of(module) not in before:
            wrong.append(f"line {line}: {module} is not before tl/{file} in the layout")
        if package not in HOMES.get(top, {package}):
            wrong.append(
                f"line {line}: {top} belongs to {sorted(HOMES[top]) or 'no module of tl'}, "
                f"not to tl/{package}"
            )
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_a_file_imports_only_files_before_it_and_libraries_of_its_package(path: Path):
    assert not problems(path, (ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "path, source, allowed",
    [
        ("tl/paths.py", "from tl import types", True),
        ("tl/paths.py", "from tl import pixels", False),
        ("tl/paths.py", "def f():\n  import tl.attacks.norms", False),
        ("tl/weights/store.py", "from . import readers\nfrom ..paths import nearest", True),
        ("tl/weights/store.py", "from .. import classifier", False),
        ("tl/training/step.py", "from tl import load", False),
        ("tl/training/step.py", "import optax, jax", True),
        ("tl/losses.py", "import optax", False),
        ("tl/models/heads.py", "from flax import linen", True),
        ("tl/training/step.py", "from flax import linen", False),
        ("tl/weights/readers.py", "def f():\n  import torch", False),
        ("tl/__init__.py", "from tl.models.classifier import load", True),
    ],
)
def test_problems_reports_forbidden_imports_only(path: str, source: str, allowed: bool):
    assert (not problems(Path(path), source)) == allowed


def test_every_module_has_its_place_in_the_layout():
    assert {unit(path) for path in SOURCES} == set(LAYOUT)


def test_import_tl_loads_no_heavy_library_and_starts_no_backend():
    heavy = "matplotlib tensorflow torch huggingface_hub grain orbax tensorflow_datasets requests"
    heavy += " fsspec gcsfs"
    code = f"""
import socket, sys
def refuse(*_): raise SystemExit("import tl opened a connection")
socket.socket.connect = socket.socket.connect_ex = refuse
import tl
loaded = sorted(set({heavy.split()!r}) & set(sys.modules))
assert not loaded, f"import tl loads {{loaded}}"
import jax
assert not jax._src.xla_bridge._backends, "import tl starts a JAX backend"
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
