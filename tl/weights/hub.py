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

import errno
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from tl.paths import nearest
from tl.weights import store
from tl.weights.manifest import PUBLISHED

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Errors of the file system; those of the network have none of these numbers.
_NOT_WRITTEN = {
    *(errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT),
    *(errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS),
}


class HubFiles(NamedTuple):
    """The verified weights file of a repository, in the client's cache, and the parsed config."""

    weights: Path
    config: dict[str, Any]


def fetch(repo: str, file: str = "", *, revision: str | None = None) -> HubFiles:
    """Config and weights of a repository, from the cache or the network.

    Args:
      repo: `owner/name`, such as `timm/resnet50.a1_in1k`.
      file: the weights file; the config is then {} if the repository has none. Default: the one of
        timm's layout.
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
        client.get_hf_file_metadata(
            client.hf_hub_url(repo, file or "config.json", revision=revision)
        )
    except (EntryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(_sentence(error, repo, revision, file)) from error
    except Exception as error:  # no network, offline, no permission: the cache may have the file
        unreachable = error

    def download(name: str) -> Path:
        return Path(
            client.hf_hub_download(
                repo, name, revision=revision, local_files_only=unreachable is not None
            )
        )

    def download_config() -> Path | None:
        try:
            return download("config.json")
        except EntryNotFoundError:
            if not file:
                raise
            return None

    try:
        config = download_config()
        try:
            weights = download(file or WEIGHTS[0])
        except EntryNotFoundError:
            weights = download(file or WEIGHTS[1])
    except LocalEntryNotFoundError as error:  # its message lacks the cause
        raise ValueError(_sentence(unreachable or error, repo, revision)) from (
            unreachable or error
        )
    except Exception as error:
        raise ValueError(_sentence(error, repo, revision)) from error
    _verify(weights, repo)
    return HubFiles(weights, {} if config is None else _config(config, repo))


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


def _sentence(error: Exception, repo: str, revision: str | None, file: str = "") -> str:
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
        if file:
            return f"{repo} on the hub has no file {file}; check its name on the repository's page"
        return (
            f"{repo} on the hub lacks config.json or {' and '.join(WEIGHTS)}; "
            "expected a repository in timm's layout"
        )
    if isinstance(error, OSError) and error.errno in _NOT_WRITTEN:
        return (
            f"cannot write {repo} into the cache of the hub, {constants.HF_HUB_CACHE} "
            f"({error.strerror}); set HF_HOME to another folder"
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
