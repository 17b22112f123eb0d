"""The tree's promises: imports only go up, heavy libraries stay where they belong, and `import tl` is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the leaves down: a module may import those before it.
LAYOUT: Sequence[str] = """
types paths pixels ops report
backbones weights labels heads classifier summary export
losses metrics optim train data features probe perceptual devices
jpeg transforms
ascend attacks robust visualize explain
runlog checkpoints feeds fit
""".split()

HOMES: dict[str, set[str]] = {  # library -> the modules of tl that may import it; what is not listed, all may
    "flax": {"backbones", "heads"},
    "optax": {"optim", "train", "ascend"},
    "orbax": {"checkpoints"},
    "absl": {"data"},  # Grain reads a flag of its own; no module of tl defines one
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
    """Every module a file imports, lazily or not, in full, with the line."""
    package = path.with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*up, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def unit(path: Path) -> str:
    """The layout's word for a file: `tl/weights/store.py` -> "weights"; `tl/__init__.py` -> ""."""
    parts = path.with_suffix("").parts[1:]
    return "" if parts == ("__init__",) else parts[0]


def problems(path: Path, source: str) -> list[str]:
    """What a file of tl imports and should not."""
    own, wrong = unit(path), []
    above = LAYOUT[: LAYOUT.index(own)] if own in LAYOUT else LAYOUT
    for module, line in imported(path, source):
        top, _, rest = module.partition(".")
        if top == "tl" and own and rest.split(".")[0] not in (own, *above):
            wrong.append(f"line {line}: {module} is not above tl.{own} in the layout")
        if own not in HOMES.get(top, {own}):
            wrong.append(f"line {line}: {top} belongs to {sorted(HOMES[top]) or 'no module of tl'}, not to tl.{own}")
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_only_go_up_and_libraries_stay_at_home(path: Path):
    assert not problems(path, (ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "path, source, allowed",
    [
        ("tl/paths.py", "from tl import types", True),
        ("tl/paths.py", "from tl import pixels", False),
        ("tl/paths.py", "def f():\n  import tl.attacks.norms", False),
        ("tl/weights/store.py", "from . import readers\nfrom ..paths import nearest", True),
        ("tl/weights/store.py", "from .. import classifier", False),
        ("tl/train.py", "from tl import load", False),
        ("tl/train.py", "import optax, jax", True),
        ("tl/losses.py", "import optax", False),
        ("tl/heads.py", "from flax import linen", True),
        ("tl/train.py", "from flax import linen", False),
        ("tl/weights/readers.py", "def f():\n  import torch", False),
        ("tl/__init__.py", "from tl.classifier import load", True),
    ],
)
def test_the_check_itself(path: str, source: str, allowed: bool):
    assert (not problems(Path(path), source)) == allowed


def test_every_module_has_its_place_in_the_layout():
    assert {unit(path) for path in SOURCES} - {""} <= set(LAYOUT)


def test_importing_tl_is_light():
    heavy = "matplotlib tensorflow torch huggingface_hub grain orbax tensorflow_datasets requests"
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
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
