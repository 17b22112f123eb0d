"""Weights from the Hugging Face hub, in timm's layout: `config.json` beside `model.safetensors` or `pytorch_model.bin`.

The only network code of `tl`, and all of it is huggingface-hub's: where its cache lies (HF_HOME, HF_HUB_CACHE), the server
(HF_ENDPOINT), the token (HF_TOKEN) and working offline (HF_HUB_OFFLINE) are the client's own settings. It locks the cache,
so that two processes may fetch at once, and goes on by a Range request where a connection breaks. After a download that was
stopped from outside, 2.4 of the client starts again, where earlier versions went on.

Every weights file is hashed when it is fetched and when it is found in the cache, and compared with the SHA-256 that the
hub names it by: 0.14 s for 100 MB.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tl.paths import nearest
from tl.pixels import PixelSpec
from tl.weights.manifest import PUBLISHED

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class HubFiles(NamedTuple):
    """What a repository holds: its weights file, in the client's cache and verified, and its parsed `config.json`."""

    weights: Path
    config: dict[str, Any]


def fetch(repo: str, *, revision: str | None = None) -> HubFiles:
    """A repository's config and weights, from the cache or the network.

    Args:
      repo: `owner/name`, as `timm/resnet50.a1_in1k`.
      revision: branch, tag or commit; default the main branch.

    Raises:
      ValueError: no such repository, revision or file, no network and not cached, no permission, an interrupted download,
        or a file other than the one that the hub names (it is removed first). One sentence that says what to do.
    """
    try:
        import huggingface_hub as client
    except ImportError:
        raise ValueError(
            f'{repo} is on the hub, which huggingface-hub reads; bring it with: pip install "tl[hub]"'
        ) from None
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    unreachable: Exception | None = None
    try:
        # One question without the client's many retries: it answers at once whether the network is there.
        client.get_hf_file_metadata(client.hf_hub_url(repo, "config.json", revision=revision))
    except (EntryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(_sentence(error, repo, revision)) from error
    except (
        Exception
    ) as error:  # no network, offline, no permission: then the cache may still have it
        unreachable = error

    def download(file: str) -> Path:
        return Path(
            client.hf_hub_download(
                repo, file, revision=revision, local_files_only=unreachable is not None
            )
        )

    try:
        config = download("config.json")
        try:
            weights = download(WEIGHTS[0])
        except EntryNotFoundError:
            weights = download(WEIGHTS[1])
    except LocalEntryNotFoundError as error:  # says only that it is not in the cache
        raise ValueError(_sentence(unreachable or error, repo, revision)) from (
            unreachable or error
        )
    except Exception as error:
        raise ValueError(_sentence(error, repo, revision)) from error
    _verify(weights, repo)
    return HubFiles(weights, _config(config, repo))


def _config(path: Path, repo: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"config.json of {repo} is no JSON object; wanted one that timm wrote")
    return config


def _verify(path: Path, repo: str) -> None:
    """Compares a file with the name of its blob: of files in large storage, their SHA-256. Removes one that differs."""
    if not path.is_symlink():  # the client keeps no names where there are no symbolic links
        return
    blob = path.parent / os.readlink(path)
    if not re.fullmatch("[0-9a-f]{64}", blob.name):  # a small file's git hash
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != blob.name:
        for each in (blob.resolve(), blob, path, blob.with_name(f"{blob.name}.incomplete")):
            each.unlink(missing_ok=True)
        raise ValueError(
            f"{path.name} of {repo} is not the file that the hub names: sha256 {found[:12]}..., wanted {blob.name[:12]}...; "
            "it was removed, run again"
        )


def _sentence(error: Exception, repo: str, revision: str | None) -> str:
    """What went wrong with the client, and what to do."""
    from huggingface_hub import constants, errors

    fetch_elsewhere = (
        f"or fetch it where there is one (hf download {repo}) and copy {constants.HF_HUB_CACHE}"
    )
    if isinstance(error, errors.HFValidationError):
        return f"{repo!r} is no repository's name; wanted owner/name, as timm/resnet50.a1_in1k"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated; accept its terms at {constants.ENDPOINT}/{repo} and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        close = nearest(repo, [row.hub for row in PUBLISHED if row.hub])
        return (
            f"no repository {repo} on the hub at {constants.ENDPOINT}; nearest that tl knows: {close}; "
            "check the name, or set HF_TOKEN if it is private"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} on the hub has no revision {revision!r}; take a branch, a tag or a commit of it"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{repo} is not in the cache and HF_HUB_OFFLINE is set; unset it where there is a network, {fetch_elsewhere}"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(
        error, errors.LocalEntryNotFoundError
    ):
        return f"{repo} on the hub lacks config.json or {' and '.join(WEIGHTS)}; wanted a repository in timm's layout"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub at {constants.ENDPOINT} refuses {repo} (HTTP {status}); set HF_TOKEN to a token that may read it"
    why = f"HTTP {status}" if status else " ".join(str(error).split())[:200] or type(error).__name__
    return (
        f"cannot fetch {repo} from the hub at {constants.ENDPOINT} ({why}); run again once the network is there, "
        f"{fetch_elsewhere}"
    )


def _field(config: Mapping[str, Any], name: str, kind: type | tuple[type, ...], wanted: str) -> Any:
    """A field of the pretrained part; older files are flat, without `pretrained_cfg`."""
    part = config.get("pretrained_cfg", config)
    found = part.get(name) if isinstance(part, Mapping) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        raise ValueError(f"config.json has {name} {found!r}; wanted {wanted}, as timm writes it")
    return found


def _numbers(config: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    found = _field(config, name, list, "three numbers")
    if len(found) != 3 or not all(
        isinstance(x, (int, float)) and not isinstance(x, bool) for x in found
    ):
        raise ValueError(
            f"config.json has {name} {found!r}; wanted three numbers, as timm writes it"
        )
    return found[0], found[1], found[2]


def architecture_of(config: Mapping[str, Any]) -> str:
    """timm's name of the network that a `config.json` describes.

    Raises:
      ValueError: it names none.
    """
    found = config.get("architecture")
    if not isinstance(found, str):
        raise ValueError(
            f"config.json has architecture {found!r}; wanted a network's name, as timm writes it"
        )
    return found


def tag_of(config: Mapping[str, Any]) -> str:
    """The tag of the weights ("a1_in1k"), "" where the config has none, as of weights that somebody trained on."""
    part = config.get("pretrained_cfg", config)
    return str(part.get("tag") or "") if isinstance(part, Mapping) else ""


def classes_of(config: Mapping[str, Any]) -> int:
    """How many classes the classifier has; the network's own number goes before that of the weights it started from.

    Raises:
      ValueError: the config says none.
    """
    found = config.get("num_classes")
    return (
        found
        if isinstance(found, int)
        else _field(config, "num_classes", int, "a number of classes")
    )


def licence_of(config: Mapping[str, Any]) -> str:
    """The weights' licence by the config; most leave it to the model card, and then this says so."""
    part = config.get("pretrained_cfg", config)
    return str((isinstance(part, Mapping) and part.get("license")) or "see the model card")


def pixels_of(config: Mapping[str, Any]) -> PixelSpec:
    """The preprocessing that a `config.json` describes, as `timm.data.create_transform` makes it for evaluation.

    It is that of `input_size` and `crop_pct`, timm's default. Weights that are shown larger pictures in tests say so in
    `test_input_size` and `test_crop_pct`: `clf.with_pixels(size=288, crop=1.0)` takes them. "random" interpolation (of
    training) is bilinear in timm's evaluation, and here.

    Raises:
      ValueError: a field is missing or of another kind, or asks for what `PixelSpec` does not do.
    """
    size = _field(config, "input_size", list, "[3, size, size]")
    if len(size) != 3 or size[0] != 3 or size[1] != size[2] or not isinstance(size[1], int):
        raise ValueError(
            f"config.json has input_size {size!r}; wanted [3, size, size]: tl shows networks square RGB"
        )
    crop = float(_field(config, "crop_pct", (int, float), "a share in (0, 1]"))
    mode = (
        config.get("pretrained_cfg", config).get("crop_mode") or "center"
    )  # not in files before timm 0.9
    if mode != "center" and not (mode == "squash" and crop == 1):
        raise ValueError(
            f"config.json has crop_mode {mode!r} with crop_pct {crop:g}; tl knows center, and squash with 1"
        )
    interpolation = _field(config, "interpolation", str, "a filter's name")
    return PixelSpec(
        size=size[1],
        crop=crop,
        resize="squash" if mode == "squash" else "shorter",
        interpolation="bilinear" if interpolation == "random" else interpolation,
        mean=_numbers(config, "mean"),
        std=_numbers(config, "std"),
    )
