"""Weights from the Hugging Face hub in timm's layout: `config.json` and a weights file.

This is the only network code of `tl`, and its client, huggingface-hub, makes all requests. The
client's settings apply: cache (HF_HOME, HF_HUB_CACHE), server (HF_ENDPOINT), token (HF_TOKEN) and
offline mode (HF_HUB_OFFLINE). The client locks the cache, so two processes can fetch at the same
time, and resumes by a Range request if the connection breaks. After a killed download, version 2.4
of the client starts again, whereas earlier versions resume.

Every weights file is hashed, both after a download and when the cache has it. The hash is compared
with the file's SHA-256 on the hub, by which the cache names the file. This takes 0.14 s for 100 MB.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tl.paths import nearest
from tl.pixels import PixelSpec
from tl.weights import store
from tl.weights.manifest import PUBLISHED

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class HubFiles(NamedTuple):
    """The verified weights file of a repository, in the client's cache, and the parsed config."""

    weights: Path
    config: dict[str, Any]


def fetch(repo: str, *, revision: str | None = None) -> HubFiles:
    """Config and weights of a repository, from the cache or the network.

    Args:
      repo: `owner/name`, such as `timm/resnet50.a1_in1k`.
      revision: branch, tag or commit; default: the main branch.

    Raises:
      ValueError: the repository, revision or file does not exist; the network fails and the cache
        lacks the files; permission is missing; the download was interrupted; or the file has the
        wrong hash and was removed.
    """
    try:
        import huggingface_hub as client
    except ImportError:
        raise ValueError(
            f"{repo} is on the hub, which needs huggingface-hub; "
            'install it with: pip install "tl[hub]"'
        ) from None
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    unreachable: Exception | None = None
    try:
        # One request without the client's retries shows at once whether the hub can be reached.
        client.get_hf_file_metadata(client.hf_hub_url(repo, "config.json", revision=revision))
    except (EntryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(_sentence(error, repo, revision)) from error
    except Exception as error:  # no network, offline, no permission: the cache may have the file
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
    except LocalEntryNotFoundError as error:  # its message lacks the cause
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
        raise ValueError(f"config.json of {repo} is not a JSON object, expected timm's format")
    return config


def _verify(path: Path, repo: str) -> None:
    """Compares the SHA-256 of a file with the name of its blob; removes the file if they differ."""
    if not path.is_symlink():  # without symbolic links the client does not keep the blob's name
        return
    blob = path.parent / os.readlink(path)
    if not re.fullmatch("[0-9a-f]{64}", blob.name):  # the git hash of a small file
        return
    digest = store.sha256(path)
    if digest != blob.name:
        for damaged in (blob.resolve(), blob, path, blob.with_name(f"{blob.name}.incomplete")):
            damaged.unlink(missing_ok=True)
        raise ValueError(
            f"{path.name} of {repo} is damaged: got sha256 {digest[:12]}..., expected "
            f"{blob.name[:12]}...; the file was removed, run again"
        )


def _sentence(error: Exception, repo: str, revision: str | None) -> str:
    """The message for an error of the client: the cause, and what to do."""
    from huggingface_hub import constants, errors

    fetch_elsewhere = (
        f"or fetch it on a machine with a network (hf download {repo}) "
        f"and copy {constants.HF_HUB_CACHE}"
    )
    if isinstance(error, errors.HFValidationError):
        return f"invalid repository: got {repo!r}, expected owner/name as in timm/resnet50.a1_in1k"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated; accept its terms at {constants.ENDPOINT}/{repo} and set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        close = nearest(repo, [row.hub for row in PUBLISHED if row.hub])
        return (
            f"no repository {repo} on the hub at {constants.ENDPOINT}; "
            f"nearest in tl's manifest: {close}; check the name, or set HF_TOKEN if it is private"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} on the hub has no revision {revision!r}; give a branch, tag or commit"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"{repo} is not in the cache and HF_HUB_OFFLINE is set; "
            f"unset it if there is a network, {fetch_elsewhere}"
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(
        error, errors.LocalEntryNotFoundError
    ):
        return (
            f"{repo} on the hub lacks config.json or {' and '.join(WEIGHTS)}; "
            "expected a repository in timm's layout"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return (
            f"the hub at {constants.ENDPOINT} denies access to {repo} (HTTP {status}); "
            "set HF_TOKEN to a token that can read it"
        )
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    reason = f"HTTP {status}" if status else reason
    return (
        f"cannot fetch {repo} from the hub at {constants.ENDPOINT} ({reason}); "
        f"run again when the network works, {fetch_elsewhere}"
    )


def _field(
    config: Mapping[str, Any], name: str, kind: type | tuple[type, ...], expected: str
) -> Any:
    """A field of `pretrained_cfg`, or of the whole config in older files, which are flat."""
    part = config.get("pretrained_cfg", config)
    value = part.get(name) if isinstance(part, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _misfit(name, value, expected)
    return value


def _misfit(name: str, value: Any, expected: str) -> ValueError:
    """The error for a field of a config."""
    return ValueError(f"wrong {name} in config.json: got {value!r}, expected {expected}")


def _numbers(config: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    values = _field(config, name, list, "three numbers")
    if len(values) != 3 or not all(
        isinstance(x, (int, float)) and not isinstance(x, bool) for x in values
    ):
        raise _misfit(name, values, "three numbers")
    return values[0], values[1], values[2]


def architecture_of(config: Mapping[str, Any]) -> str:
    """timm's name of the architecture in a `config.json`.

    Raises:
      ValueError: the config has none.
    """
    name = config.get("architecture")
    if not isinstance(name, str):
        raise _misfit("architecture", name, "the name of a network")
    return name


def licence_of(config: Mapping[str, Any]) -> str:
    """The license of the weights; "see the model card" if the config has none, as is usual."""
    part = config.get("pretrained_cfg", config)
    return str((isinstance(part, Mapping) and part.get("license")) or "see the model card")


def pixels_of(config: Mapping[str, Any]) -> PixelSpec:
    """The preprocessing in a `config.json`, as in the evaluation transform of timm.

    As in `timm.data.create_transform`, size and crop are `input_size` and `crop_pct`. Configs of
    weights that were also tested with larger images have `test_input_size` and `test_crop_pct`; to
    use those, call for example `clf.with_pixels(size=288, crop=1.0)`. The interpolation "random" of
    training is bilinear in timm's evaluation and here.

    Raises:
      ValueError: a field is missing or has another type, or `PixelSpec` cannot represent it.
    """
    size = _field(config, "input_size", list, "[3, size, size]")
    if len(size) != 3 or size[0] != 3 or size[1] != size[2] or not isinstance(size[1], int):
        raise _misfit("input_size", size, "[3, size, size], a square RGB image")
    crop = float(_field(config, "crop_pct", (int, float), "a fraction in (0, 1]"))
    # Files before timm 0.9 have no crop_mode.
    mode = config.get("pretrained_cfg", config).get("crop_mode") or "center"
    if mode != "center" and not (mode == "squash" and crop == 1):
        raise _misfit("crop_mode", mode, f"center, or squash with crop_pct 1 (it is {crop:g})")
    interpolation = _field(config, "interpolation", str, "the name of a filter")
    return PixelSpec(
        size=size[1],
        crop=crop,
        resize="squash" if mode == "squash" else "shorter",
        interpolation="bilinear" if interpolation == "random" else interpolation,
        mean=_numbers(config, "mean"),
        std=_numbers(config, "std"),
    )
