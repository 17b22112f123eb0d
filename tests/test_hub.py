"""`tl.weights.hub`: the real huggingface-hub client with a local server, and timm's config.json.

The client reads its environment when it is imported. Tests of the environment therefore fetch in
another process; the others set the client's constants.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants, file_download
from safetensors.numpy import save

from tl.pixels import PixelSpec
from tl.weights import description, hub

COMMIT = "b9c5426c0e0d0e5b2d2ff0e6ae2b8a9b2f3c1d10"
REPO = "timm/resnet18.a1_in1k"
# The config of resnet18.a1_in1k, written by timm.
CONFIG: dict[str, Any] = {
    "architecture": "resnet18",
    "num_classes": 1000,
    "num_features": 512,
    "pretrained_cfg": {
        "tag": "a1_in1k",
        "custom_load": False,
        "input_size": [3, 224, 224],
        "test_input_size": [3, 288, 288],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "test_crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "num_classes": 1000,
        "pool_size": [7, 7],
        "first_conv": "conv1",
        "classifier": "fc",
        "origin_url": "https://github.com/huggingface/pytorch-image-models",
        "paper_ids": "arXiv:2110.00476",
    },
}
NOBODY = "http://127.0.0.1:9"  # the discard port, which has no server
TENSORS = save({"w": np.arange(100_000, dtype=np.float32)})


class Hub(ThreadingHTTPServer):
    """A repository in the hub's layout: `files`, and the faults of the server."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": TENSORS}
        self.sent: dict[str, bytes] = {}  # bytes that differ from the ETag
        self.break_after: list[int] = []  # bytes after which the next downloads end
        self.status: tuple[int, str] | None = None  # HTTP status and error code of every response
        self.together: threading.Barrier | None = None  # responses to HEAD wait for it
        self.log: list[tuple[str, str, str | None]] = []  # method, file, Range

    def bodies(self, file: str) -> list[str | None]:
        return [ranged for method, name, ranged in self.log if method == "GET" and name == file]


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def log_message(self, *_: Any) -> None:
        pass

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if code == "EntryNotFound":
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self) -> None:
        route = re.fullmatch(rf"/{re.escape(REPO)}/resolve/([^/]+)/(.+)", self.path)
        file = route[2] if route else ""
        self.server.log.append((self.command, file, self.headers["Range"]))
        if self.server.together and self.command == "HEAD":
            self.server.together.wait(timeout=60)
        if self.server.status:
            return self.refuse(*self.server.status)
        if not route:
            return self.refuse(404, "RepoNotFound")
        if route[1] not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if file not in self.server.files:
            return self.refuse(404, "EntryNotFound")
        content = self.server.files[file]
        body = self.server.sent.get(file, content)
        large = file != "config.json"  # large files are named by SHA-256, others by git's hash
        git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        found = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = int(found[1]) if found else 0
        self.send_response(206 if self.headers["Range"] else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{git}"')
        if large:
            self.send_header("X-Linked-ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        if self.headers["Range"]:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if large and self.server.break_after:
            self.wfile.write(body[start : start + self.server.break_after.pop(0)])
            self.close_connection = True
            return None
        self.wfile.write(body[start:])
        return None


@pytest.fixture
def server() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


# Imports `tl` once, and then forks a process per line of input: the settings of its environment.
# The client is imported in that process, so it reads them. The answer is one line in a file.
FETCH = """
import json, os, sys
from tl.weights import description, hub

def fetch(repo):
    try:
        files = hub.fetch(repo)
        return f"PATH {files.weights} {description.architecture_of(files.config)}"
    except ValueError as error:
        return f"ERROR {error}"

assert "huggingface_hub" not in sys.modules
for line in sys.stdin:
    job = json.loads(line)
    if os.fork():
        continue
    os.environ |= job["environ"]
    with open(job["answer"] + ".part", "w") as file:
        file.write(fetch(job["repo"]))
    os.rename(job["answer"] + ".part", job["answer"])
    os._exit(0)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""


@pytest.fixture
def here(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sets the client of this process to the server and to an empty cache."""
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", url)
    for module in (constants, file_download):  # the client's 0.x copies it
        monkeypatch.setattr(
            module,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            url + "/{repo_id}/resolve/{revision}/{filename}",
            raising=False,
        )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    return tmp_path


@pytest.fixture(scope="module")
def fetcher() -> Iterator[subprocess.Popen]:
    """The process of `FETCH`, without the hub settings of this machine."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH],
        env=inherited,
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        text=True,
    )
    yield process
    assert process.stdin
    process.stdin.close()
    assert process.wait(timeout=120) == 0


@pytest.fixture
def start(server: Hub, tmp_path: Path, fetcher: subprocess.Popen) -> Callable[..., Path]:
    """Starts a fetch in another process with these settings; returns the file of the answer."""
    answers = itertools.count()

    def run(**environ: str) -> Path:
        settings = {
            "HF_HOME": str(tmp_path),
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "NO_PROXY": "127.0.0.1",
        }
        answer = tmp_path / f"answer{next(answers)}"
        job = {"repo": REPO, "environ": settings | environ, "answer": str(answer)}
        assert fetcher.stdin
        fetcher.stdin.write(json.dumps(job) + "\n")
        fetcher.stdin.flush()
        return answer

    return run


def outcome(answer: Path) -> str:
    end = time.monotonic() + 120
    while not answer.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    return answer.read_text()


def path_of(answer: Path) -> Path:
    word, path, arch = outcome(answer).split(" ")
    assert word == "PATH" and arch == "resnet18"
    assert Path(path).read_bytes() == TENSORS
    return Path(path)


def error_of(answer: Path) -> str:
    out = outcome(answer)
    assert out.startswith("ERROR ") and "\n" not in out and len(out) < 600, out
    return out.removeprefix("ERROR ")


def error_here(repo: str = REPO, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        hub.fetch(repo, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600, message
    return message


def entries(cache: Path) -> list[str]:
    """Names of the cache's files of weights, complete or partial."""
    sha256 = hashlib.sha256(TENSORS).hexdigest()
    return [
        p.name
        for p in cache.rglob("*")
        if p.name.startswith((sha256, "model.", "pytorch")) and p.suffix != ".lock"
    ]


# --- the client's environment, in other processes ---------------------------------------------


def test_a_file_is_fetched_once_and_then_read_from_the_cache_without_the_server(
    server: Hub, tmp_path: Path, start: Callable[..., Path]
):
    path = path_of(start())
    assert path.name == "model.safetensors" and path.is_relative_to(tmp_path / "hub")
    assert server.bodies("model.safetensors") == [None] and server.bodies("config.json") == [None]
    assert path_of(start()) == path
    assert len(server.bodies("model.safetensors")) == 1, "the cache was not used"
    requests = len(server.log)
    assert path_of(start(HF_HUB_OFFLINE="1")) == path
    assert path_of(start(HF_ENDPOINT=NOBODY)) == path
    assert len(server.log) == requests


def test_without_network_and_cache_the_error_says_what_to_do(
    server: Hub, tmp_path: Path, start: Callable[..., Path]
):
    message = error_of(start(HF_HUB_OFFLINE="1"))
    assert f"{REPO} is not in the cache and HF_HUB_OFFLINE is set; unset it" in message
    assert message.endswith(f"(hf download {REPO}) and copy {tmp_path / 'hub'}") and not server.log
    message = error_of(start(HF_ENDPOINT=NOBODY, HF_HUB_CACHE=str(tmp_path / "mine")))
    assert message.startswith(f"cannot fetch {REPO} from the hub at {NOBODY} (")
    assert message.endswith(f"and copy {tmp_path / 'mine'}")


def test_two_processes_can_fetch_at_the_same_time(
    server: Hub, tmp_path: Path, start: Callable[..., Path]
):
    server.together = threading.Barrier(2)
    both = [start(), start()]
    assert path_of(both[0]) == path_of(both[1])
    assert sorted(set(entries(tmp_path))) == [
        hashlib.sha256(TENSORS).hexdigest(),
        "model.safetensors",
    ]


# --- faults of the server, in this process ----------------------------------------------------


def test_a_cached_file_is_used_when_the_hub_is_down(server: Hub, here: Path):
    path, config = hub.fetch(REPO)
    assert path.read_bytes() == TENSORS and config == CONFIG
    assert hub.fetch(REPO, revision=COMMIT).weights == path
    server.status = (503, "")
    assert hub.fetch(REPO).weights == path


def test_an_interrupted_download_resumes(server: Hub, here: Path):
    size = constants.DOWNLOAD_CHUNK_SIZE  # the client writes complete chunks only
    server.files["model.safetensors"] = body = np.random.RandomState(0).bytes(size + 1000)
    server.break_after = [size + 500]
    # The client's 0.x resumes in the next call, later versions within the first.
    with contextlib.suppress(ValueError):
        hub.fetch(REPO)
    assert hub.fetch(REPO).weights.read_bytes() == body
    first, second = server.bodies("model.safetensors")
    assert (
        first is None
        and second is not None
        and 0 < int(second.removeprefix("bytes=")[:-1]) <= size + 500
    )


@pytest.mark.parametrize("wrong", ["one bit", "shorter"])
def test_a_download_with_the_wrong_hash_is_an_error_and_is_removed(
    server: Hub, here: Path, wrong: str
):
    server.sent["model.safetensors"] = sent = TENSORS[:-1] + (b"\1" if wrong == "one bit" else b"")
    bad, good = hashlib.sha256(sent).hexdigest(), hashlib.sha256(TENSORS).hexdigest()
    assert error_here() == (
        f"model.safetensors of {REPO} is damaged: got sha256 {bad[:12]}..., expected "
        f"{good[:12]}...; the file was removed, run again"
    )
    assert not entries(here)
    server.sent.clear()
    assert hub.fetch(REPO).weights.read_bytes() == TENSORS


def test_a_file_damaged_in_the_cache_is_an_error_and_is_fetched_again(server: Hub, here: Path):
    hub.fetch(REPO).weights.resolve().write_bytes(TENSORS[:-1] + b"\1")
    assert f"model.safetensors of {REPO} is damaged" in error_here()
    assert not entries(here)
    assert hub.fetch(REPO).weights.read_bytes() == TENSORS


def test_pytorch_model_bin_is_used_without_safetensors(server: Hub, here: Path):
    server.files["pytorch_model.bin"] = server.files.pop("model.safetensors")
    path = hub.fetch(REPO).weights
    assert path.name == "pytorch_model.bin" and path.read_bytes() == TENSORS
    server.status = (503, "")
    assert hub.fetch(REPO).weights == path


def test_a_missing_repository_revision_or_file_is_named_in_the_error(server: Hub, here: Path):
    message = error_here("timm/resnet18.a1_in")
    assert message.startswith(
        f"no repository timm/resnet18.a1_in on the hub at {constants.ENDPOINT}; "
        "nearest in tl's manifest: "
    )
    assert f"{REPO!r}, " in message and message.endswith(
        "; check the name, or set HF_TOKEN if it is private"
    )
    assert f"{REPO} on the hub has no revision 'v9'" in error_here(revision="v9")
    assert "invalid repository: got 'a/b/c', expected owner/name" in error_here("a/b/c")
    del server.files["model.safetensors"]
    lacks = f"{REPO} on the hub lacks config.json or model.safetensors and pytorch_model.bin"
    assert lacks in error_here()
    del server.files["config.json"]
    assert lacks in error_here()


def test_a_named_file_needs_no_config(server: Hub, here: Path):
    server.files["resnet18_l2_eps3.ckpt"] = TENSORS
    files = hub.fetch(REPO, "resnet18_l2_eps3.ckpt")
    assert files.weights.read_bytes() == TENSORS and files.config == CONFIG
    del server.files["config.json"]
    shutil.rmtree(here / "hub")
    files = hub.fetch(REPO, "resnet18_l2_eps3.ckpt")
    assert files.weights.name == "resnet18_l2_eps3.ckpt" and files.config == {}
    with pytest.raises(ValueError, match=f"{REPO} on the hub has no file other.ckpt; check"):
        hub.fetch(REPO, "other.ckpt")


@pytest.mark.parametrize(
    "status, code, expected",
    [
        (403, "GatedRepo", "is gated; accept its terms at "),
        (401, "", "denies access to timm/resnet18.a1_in1k (HTTP 401); set HF_TOKEN"),
        (503, "", "(HTTP 503); run again when the network works"),
    ],
)
def test_denied_access_is_one_request_and_an_error_that_says_what_to_do(
    server: Hub, here: Path, status: int, code: str, expected: str
):
    server.status = (status, code)
    assert expected in error_here()
    # huggingface-hub 2.0 requests the repository too.
    files = [path for _, path, _ in server.log if path]
    assert files == ["config.json"], "the client must not retry"


@pytest.mark.parametrize("config", [b"[]", b"{", b"\xff"])
def test_a_config_that_is_not_a_json_object_is_an_error(server: Hub, here: Path, config: bytes):
    server.files["config.json"] = config
    assert f"config.json of {REPO} is not a JSON object" in error_here()


def test_without_the_client_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert error_here().endswith('pip install "tl[hub]"')


# --- config.json ------------------------------------------------------------------------------


def without(name: str) -> dict[str, Any]:
    part = {key: value for key, value in CONFIG["pretrained_cfg"].items() if key != name}
    return {**CONFIG, "pretrained_cfg": part}


def changed(**fields: Any) -> dict[str, Any]:
    return {**CONFIG, "pretrained_cfg": {**CONFIG["pretrained_cfg"], **fields}}


FLAT = {**CONFIG["pretrained_cfg"], "architecture": "resnet18"}  # the format of timm before 0.8


@pytest.mark.parametrize(
    "config", [CONFIG, FLAT, without("crop_mode")], ids=["timm's", "flat", "no crop_mode"]
)
def test_a_config_gives_the_preprocessing(config: dict[str, Any]):
    fields, missing = description.pixels_of(config)
    assert PixelSpec(**fields) == PixelSpec(size=224, crop=0.95, interpolation="bicubic")
    assert not missing
    assert description.architecture_of(config) == "resnet18"
    assert description.licence_of(config) == "see the model card"


def test_a_config_can_have_other_values():
    lite = changed(
        input_size=[3, 240, 240], mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5], crop_pct=0.882
    )
    fields, _ = description.pixels_of(lite)
    assert PixelSpec(**fields) == PixelSpec(
        size=240, crop=0.882, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    fields, _ = description.pixels_of(changed(interpolation="random"))
    assert fields["interpolation"] == "bilinear"
    fields, _ = description.pixels_of(changed(crop_mode="squash", crop_pct=1))
    assert fields["resize"] == "squash" and fields["crop"] == 1.0
    assert description.licence_of(changed(license="apache-2.0")) == "apache-2.0"


@pytest.mark.parametrize(
    "name, field",
    [("input_size", "size"), ("interpolation", "interpolation"), ("crop_pct", "crop")],
)
def test_missing_fields_are_named(name: str, field: str):
    whole, _ = description.pixels_of(CONFIG)
    fields, missing = description.pixels_of(without(name))
    assert fields == {key: value for key, value in whole.items() if key != field}
    assert missing == [name]
    (remark,) = description.of_config(without(name), "a/b").remarks
    assert remark == f"config.json does not state {name}: the network's default is used"


@pytest.mark.parametrize(
    "config, expected",
    [
        (without("mean"), "wrong mean and std in config.json: got [None, (0.229, 0.224, 0.225)]"),
        (without("std"), "wrong mean and std in config.json: got [(0.485, 0.456, 0.406), None]"),
        (changed(input_size=[0, 28, 28]), "input_size in config.json: got [0, 28, 28]"),
        (changed(input_size=[3, 224, 192]), "input_size in config.json: got [3, 224, 192]"),
        (changed(input_size=224), "input_size in config.json: got 224"),
        (changed(crop_pct="all"), "crop_pct in config.json: got 'all'"),
        (changed(mean=[0.5, 0.5]), "mean in config.json: got [0.5, 0.5]"),
        (changed(mean=[0.5, "x", 0.5]), "mean in config.json: got [0.5, 'x', 0.5]"),
        (changed(interpolation="box"), "unknown interpolation 'box'"),
        (changed(crop_mode="border"), "crop_mode in config.json: got 'border'"),
        (
            changed(crop_mode="squash"),
            "got 'squash', expected center, or squash with crop_pct 1 (it is 0.95)",
        ),
        ({"architecture": "x", "pretrained_cfg": "a1"}, "pretrained_cfg in config.json: got 'a1'"),
    ],
)
def test_wrong_fields_are_an_error(config: dict[str, Any], expected: str):
    with pytest.raises(ValueError) as caught:
        description.pixels_of(config)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [{}, {"architecture": 18}])
def test_a_config_without_an_architecture_is_an_error(config: dict[str, Any]):
    with pytest.raises(
        ValueError,
        match="wrong architecture in config.json: got .*, expected the name of a network",
    ):
        description.architecture_of(config)
