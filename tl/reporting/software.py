"""The versions of packages and the git commit that a run records."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import subprocess
from typing import Any

from tl import cpu

# The packages whose versions a run records.
PACKAGES = ("tl", "jax", "jaxlib", "flax", "optax", "numpy", "Pillow")


def versions() -> dict[str, str | None]:
    """Package -> its version; None if it is not installed. oneDNN has one only if it is used."""
    packages = (*PACKAGES, cpu.ONEDNN) if cpu.onednn_path() else PACKAGES
    return {cpu.ONEDNN: None} | {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state(root: pathlib.Path) -> dict[str, Any]:
    """Commit of the checkout at `root` and whether files differ from it; None outside git.

    A copy of a commit that is not a checkout is named by the variable `TL_COMMIT` (launch.sh tpu).
    """
    # A git hook sets GIT_DIR to its own repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}

    def git(*words: str) -> str | None:
        try:
            process = subprocess.run(
                ["git", "-C", str(root), *words],
                check=False,
                capture_output=True,
                text=True,
                timeout=10,
                env=environment,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return process.stdout.strip() if process.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    # An installed copy may lie inside the repository of another project.
    if top is None or pathlib.Path(top).resolve() != root:
        commit = os.environ.get("TL_COMMIT")
        return {"git_commit": commit, "git_changed": False if commit else None}
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_changed": bool(git("status", "--porcelain")),
    }
