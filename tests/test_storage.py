"""Files in buckets: a bucket in memory, read and written through epath and fsspec."""

from __future__ import annotations

import importlib.util
import json
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import tl
import tl.data
from tests import toys
from tests.test_sources import encoded
from tests.test_tfrecord import example, framed, image, prepare_tfrecord
from tests.test_tfrecord import rows as tfrecords
from tests.toys import toy_zoo  # noqa: F401  # a fixture
from tl import paths, reporting, storage
from tl.data import DataSpec, content_hash, decode, divide, find_images, get, shards
from tl.data.duplicates import hash_remote
from tl.models import artifact
from tl.storage import Remote
from tl.training import resume


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "_CACHE", storage._Cache())
    monkeypatch.setattr("tl.data.duplicates._remote_hashes", {})


class Requests(Counter[str]):
    """The numbers of calls of a file system that would be requests to a bucket."""


@pytest.fixture
def requests(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Requests]:
    counts = Requests()
    for name in ("ls", "find", "info", "cat_file", "_open", "exists", "isdir"):
        original = getattr(MemoryFileSystem, name)

        def counting(self, *args, _name=name, _original=original, **kwargs):
            counts[_name] += 1
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(MemoryFileSystem, name, counting)
    yield counts


def put(files: Mapping[str, bytes]) -> None:
    for url, content in files.items():
        MemoryFileSystem().pipe_file(url, content)


def pets(folder: str, n: int = 8) -> dict[str, bytes]:
    """Images of two classes."""
    return {f"{folder}/{('cat', 'dog')[i % 2]}/{i}.png": encoded(20 * i) for i in range(n)}


def described(spec: DataSpec) -> list[tuple[str, int, str, str]]:
    return [(e.path.name, e.label, e.part, content_hash(e.path)) for e in spec.examples]


# ---- paths ----


def test_addresses_and_local_paths_are_told_apart(bucket: str) -> None:
    path = paths.expanded(f"{bucket}/a/b.txt")
    assert paths.is_url(path) and not isinstance(path, Path)
    assert (str(path), path.name, str(path.parent)) == (f"{bucket}/a/b.txt", "b.txt", f"{bucket}/a")
    assert paths.absolute(path) == path
    assert not fsspec.filesystem("memory").dircache.use_listings_cache
    # A folder /gs exists on some clusters (etils#734).
    for word in ("/gs/a", "gs", "x", "~/x", "gs:/x", "http://x/y", "hub:timm/x"):
        assert not paths.is_url(word) and isinstance(paths.expanded(word), Path)


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    hidden = lambda name, *rest: None if name in ("gcsfs", "s3fs") else find_spec(name, *rest)
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    message = "'gs://bucket/x' needs the package gcsfs, which is missing; pip install 'tl.gcs.'"
    for work in (
        lambda: paths.expanded("gs://bucket/x"),
        lambda: get("folder:gs://bucket/x"),
        lambda: get("csv:gs://bucket/x"),
        lambda: get("tfrecord:gs://bucket/x"),
        lambda: get("tfds:pets@gs://bucket/x"),
        lambda: find_images("gs://bucket/x"),
        lambda: tl.load("gs://bucket/x"),
    ):
        with pytest.raises(ValueError, match=message):
            work()
    with pytest.raises(ValueError, match="needs the package s3fs.* pip install s3fs$"):
        paths.expanded("s3://bucket/x")
    monkeypatch.setenv("TL_CACHE", "gs://bucket/cache")
    with pytest.raises(ValueError, match="needs the package gcsfs"):
        paths.cache_dir()


def test_a_bucket_that_cannot_be_read_is_one_sentence(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HttpError(Exception):
        """As of gcsfs, which is not an `OSError`."""

    def refuse(*_: object, **__: object) -> None:
        raise HttpError("Anonymous caller does not have\nstorage.objects.list access, 401")

    words = [
        f"folder:{bucket}/x",
        f"csv:{bucket}/x.csv",
        f"tfrecord:{bucket}/x",
        f"tfds:x@{bucket}",
    ]
    for word in words:
        with pytest.raises(ValueError, match="does not exist|is not prepared") as error:
            get(word)
        assert "\n" not in str(error.value) and bucket in str(error.value)
    for name in ("ls", "find", "info", "glob", "_open", "cat_file", "exists"):
        monkeypatch.setattr(MemoryFileSystem, name, refuse)
    calls = [*(lambda word=word: get(word) for word in words), lambda: find_images(f"{bucket}/x")]
    for work in (*calls, lambda: tl.load(f"{bucket}/x")):
        with pytest.raises(ValueError, match="cannot be read .HttpError: Anonymous caller.*401"):
            work()
    with pytest.raises(OSError, match="HttpError: Anonymous caller"):
        storage.read_range(paths.expanded(f"{bucket}/x"))


# ---- data sets ----


def test_a_folder_in_a_bucket_is_the_data_set_of_its_local_copy(
    bucket: str, tmp_path: Path
) -> None:
    files = {f"{part}/{name}": b for part in ("train", "test") for name, b in pets("x").items()}
    files |= {
        "train/x/cat/notes.txt": b"",
        "train/x/.hidden/1.png": b"",
        "train/x/cat/._1.png": b"",
    }
    files = {name.replace("x/", ""): content for name, content in files.items()}
    put({f"{bucket}/pets/{name}": content for name, content in files.items()})
    for name, content in files.items():
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(content)
    remote, here = get(f"folder:{bucket}/pets"), get(f"folder:{tmp_path}/pets")
    assert remote.source == f"{bucket}/pets" and remote.name == f"folder:{bucket}/pets"
    assert remote.classes == here.classes == ("cat", "dog")
    assert described(remote) == described(here) and len(remote.examples) == 16
    assert [s.path.rpartition("pets/")[2] for s in remote.skipped] == [
        s.path.rpartition("pets/")[2] for s in here.skipped
    ]
    one = remote.examples[3].path
    assert str(one) == f"{bucket}/pets/train/cat/6.png" and pickle.loads(pickle.dumps(one)) == one
    np.testing.assert_array_equal(decode(one), decode(here.examples[3].path))
    (batch,) = tl.data.load(
        [e.path for e in remote.examples[:4]], lambda x: x[:4, :4], batch_size=4
    )
    assert batch.valid.all()


def test_a_folder_is_listed_once_and_each_image_read_once(requests: Requests, bucket: str) -> None:
    put({f"{bucket}/{name}": content for name, content in pets("pets", 60).items()})
    requests.clear()
    spec = get(f"folder:{bucket}/pets")
    assert sum(requests.values()) <= 5 and requests["find"] == 1
    parts = divide(spec, seed=0)
    for part in parts:
        for one in part.examples:
            assert one.path.read_bytes() and content_hash(one.path)
    assert sum(requests.values()) <= 5 + 60


def test_hashes_are_kept_by_address_size_and_version(
    requests: Requests, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put({f"{bucket}/{name}": content for name, content in pets("pets").items()})
    before = described(get(f"folder:{bucket}/pets"))
    hash_remote(e.path for e in get(f"folder:{bucket}/pets").examples)
    monkeypatch.setattr("tl.data.duplicates._remote_hashes", {})
    monkeypatch.setattr(storage, "_CACHE", storage._Cache())
    requests.clear()
    spec = get(f"folder:{bucket}/pets")
    hash_remote(e.path for e in spec.examples)
    assert described(spec) == before and not requests["cat_file"]
    put({f"{bucket}/pets/cat/0.png": encoded(0)[:-1] + b"x"})  # of the same size
    changed = get(f"folder:{bucket}/pets")
    hash_remote(e.path for e in changed.examples)
    assert [a == b for a, b in zip(described(changed), before, strict=True)].count(False) == 1


def test_memory_for_images_is_bounded(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put({f"{bucket}/{i}.png": bytes(100) for i in range(5)})
    monkeypatch.setattr(storage, "_MOST_BYTES", 250)
    _, files = storage.find(f"{bucket}/*.png")
    assert [len(file.read_bytes()) for file in [*files, *files]] == [100] * 10
    assert len(storage._CACHE._content) == 2


def test_a_table_names_images_in_buckets(bucket: str, tmp_path: Path) -> None:
    put({f"{bucket}/{name}": content for name, content in pets("x").items()})
    lines = [f"{name[2:]},{name.split('/')[1]}" for name in pets("x")]
    text = "\n".join(["path,label", *lines])
    put({f"{bucket}/x/labels.csv": text.encode()})
    remote = get(f"csv:{bucket}/x/labels.csv")
    assert remote.classes == ("cat", "dog") and remote.source == f"{bucket}/x/labels.csv"
    assert [str(e.path) for e in remote.examples] == [f"{bucket}/{name}" for name in pets("x")]
    # As Vertex AI writes them.
    file = tmp_path / "labels.csv"
    file.write_text("path,label\n" + "\n".join(f"{bucket}/x/{line}" for line in lines))
    assert described(get(f"csv:{file}")) == described(remote)
    file.write_text(f"path,label\n{bucket}/x/cat/0.png,cat\n{bucket}/x/cat/7.png,dog\n")
    with pytest.raises(ValueError, match="no image at 'memory://bucket/x/cat/7.png' in line 3"):
        get(f"csv:{file}")
    put({f"{bucket}/x/bad.csv": b"path,label\ncat/0.png,cat\ncat/7.png,dog\n"})
    with pytest.raises(ValueError, match="no image at 'cat/7.png' in line 3"):
        get(f"csv:{bucket}/x/bad.csv")


def test_a_table_lists_each_folder_once(requests: Requests, bucket: str) -> None:
    files = pets("x", 40)
    put({f"{bucket}/{name}": content for name, content in files.items()})
    lines = "\n".join(f"{name[2:]},{name.split('/')[1]}" for name in files)
    put({f"{bucket}/x/labels.csv": f"path,label\n{lines}".encode()})
    requests.clear()
    get(f"csv:{bucket}/x/labels.csv")
    assert sum(requests.values()) <= 8


def test_tfrecord_files_in_a_bucket_are_read(requests: Requests, bucket: str) -> None:
    for part in ("train", "test"):
        data = b"".join(framed(example(row)) for row in tfrecords(6, 6 * (part == "test")))
        put({f"{bucket}/sets/pets-{part}.tfrecord-00000-of-00001": data})
    put({f"{bucket}/sets/labels.txt": b"cat\ndog\n"})
    spec = get(f"tfrecord:{bucket}/sets")
    assert spec.classes == ("cat", "dog") and spec.source == f"{bucket}/sets"
    assert {e.part for e in spec.examples} == {"train", "test"} and len(spec.examples) == 12
    assert get(f"tfrecord:{bucket}/sets/*train*").examples == tuple(
        e if not e.part else type(e)(e.path, e.label) for e in spec.examples if e.part == "train"
    )
    requests.clear()
    assert [e.path.read_bytes() for e in spec.examples] == [
        *(image(i) for i in range(6, 12)),
        *(image(i) for i in range(6)),
    ]
    assert requests["cat_file"] == 12
    with pytest.raises(ValueError, match="matches no file"):
        get(f"tfrecord:{bucket}/sets/*.record")
    put({f"{bucket}/short/a.tfrecord": data[:-3]})
    with pytest.raises(ValueError, match="memory://bucket/short/a.tfrecord is truncated"):
        get(f"tfrecord:{bucket}/short")


def test_a_set_that_tfds_prepared_in_a_bucket_is_read(bucket: str, tmp_path: Path) -> None:
    folder = prepare_tfrecord(tmp_path / "pets/1.0.0", {"train": [[0, 1], [2, 3, 4]]})
    put({f"{bucket}/tfds/pets/1.0.0/{p.name}": p.read_bytes() for p in folder.iterdir()})
    spec = get(f"tfds:pets@{bucket}/tfds")
    assert spec.classes == ("cat", "dog") and spec.source.startswith("pets/1.0.0, TensorFlow")
    np.testing.assert_array_equal(decode(spec.examples[4].path), decode(image(4)))
    assert described(spec) == described(get(f"tfds:pets@{tmp_path}"))
    about = json.loads((folder / "dataset_info.json").read_text()) | {"fileFormat": "array_record"}
    put({f"{bucket}/tfds/pets/1.0.0/dataset_info.json": json.dumps(about).encode()})
    with pytest.raises(ValueError, match="array_record, which cannot be read from a bucket; copy"):
        get(f"tfds:pets@{bucket}/tfds")


def test_images_are_found_in_buckets(bucket: str) -> None:
    put({f"{bucket}/{name}": content for name, content in pets("x").items()})
    put({f"{bucket}/x/cat/a.heic": b"", f"{bucket}/x/cat/a.txt": b""})
    names = lambda words: [path.name for path in find_images(words)[0]]
    assert names(f"{bucket}/x/cat/4.png") == ["4.png"]
    assert names(f"{bucket}/x/cat") == ["0.png", "2.png", "4.png", "6.png"]
    assert names(f"{bucket}/x/*/1.png,{bucket}/x/cat/0.png") == ["1.png", "0.png"]
    _, skipped = find_images(f"{bucket}/x")
    assert [Path(s.path).name for s in skipped] == ["a.heic", "a.txt"]
    with pytest.raises(ValueError, match="bucket/y' has no image .nothing., expected"):
        find_images(f"{bucket}/y")


def test_damaged_images_in_a_bucket_are_skipped(bucket: str) -> None:
    put({f"{bucket}/{name}": content for name, content in pets("x").items()})
    put({f"{bucket}/x/cat/0.png": b"no image"})
    spec = get(f"folder:{bucket}/x")
    gone = spec.examples[1].path
    MemoryFileSystem().rm(str(gone))
    (batch,) = tl.data.load([e.path for e in spec.examples], lambda x: x[:4, :4], batch_size=8)
    assert batch.valid.sum() == 6
    assert {skip.path for skip in batch.skipped} == {f"{bucket}/x/cat/0.png", str(gone)}
    assert any("no such file" in skip.why for skip in batch.skipped)


# ---- models and banks ----


@pytest.mark.usefixtures("toy_zoo")
def test_a_classifier_is_saved_in_a_bucket_and_loaded(bucket: str, tmp_path: Path) -> None:
    clf, variables = toys.classifier(classes=("cat", "dog"))
    folder = tl.save(f"{bucket}/run/model", clf, variables, metadata={"top1": 0.5})
    assert str(folder) == f"{bucket}/run/model"
    tl.save(tmp_path / "model", clf, variables, metadata={"top1": 0.5})
    for name in (artifact.ARTIFACT, artifact.VARIABLES):
        assert (folder / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    same, loaded = tl.load(str(folder))
    assert (same.arch, same.classes, same.pixels) == (clf.arch, clf.classes, clf.pixels)
    assert paths.digest(loaded) == paths.digest(tl.load(str(tmp_path / "model"))[1])
    artifact.replace_metadata(folder, {"top1": 1.0})
    assert artifact.metadata(folder) == {"top1": 1.0}
    with pytest.raises(ValueError, match="no saved classifier in memory://bucket/other"):
        tl.load(f"{bucket}/other")
    put({f"{bucket}/run/model/variables.safetensors": b"damaged"})
    with pytest.raises(ValueError):
        tl.load(str(folder))


def test_a_bank_is_kept_in_a_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE", f"{bucket}/cache")
    folder = paths.cache_dir() / "banks"
    assert list(shards.read(folder, "features", 3)) == []
    rows = {f"{i:064x}": np.arange(3, dtype=np.float32) + i for i in range(4)}
    shards.write(folder, "features", dict(list(rows.items())[:2]))
    shards.write(folder, "features", dict(list(rows.items())[2:]))
    put({f"{bucket}/cache/banks/broken.safetensors": b"damaged", f"{bucket}/cache/banks/x": b""})
    stored = dict(shards.read(folder, "features", 3))
    assert sorted(stored) == sorted(rows)
    for name, row in rows.items():
        np.testing.assert_array_equal(stored[name], row)
    assert list(shards.read(folder, "features", 4)) == []

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no access")

    monkeypatch.setattr(MemoryFileSystem, "_open", refuse)
    with pytest.warns(tl.types.CacheWarning, match="no access.*set TL_CACHE to another folder"):
        shards.write(folder, "features", rows)


def test_a_remote_file_has_the_attributes_of_a_path() -> None:
    one = Remote("gs://bucket/a/b.tar.png", 3, "7")
    path = Path("bucket/a/b.tar.png")
    assert (one.name, one.stem, one.suffix) == (path.name, path.stem, path.suffix)
    assert str(one) == "gs://bucket/a/b.tar.png" and one != Remote(one.url, 3, "8")


# ---- runs ----


def test_a_run_writes_into_a_bucket(bucket: str, tmp_path: Path) -> None:
    """The files are those of a run in a local folder."""

    def write(workdir: str) -> reporting.Run:
        run = reporting.start("predict", workdir, {"seed": 1})
        for step in range(3):
            run.log({"seconds": 0.0, "step": step})
        run.check_folder("model", 10)
        run.figure("a cat", np.full((4, 4, 3), 9, np.uint8))
        run.figure("a cat", np.full((4, 4, 3), 8, np.uint8))
        run.animation("film", [np.full((4, 4, 3), i, np.uint8) for i in (0, 99)], seconds=1.0)
        run.remark("a remark")
        run.finish({"top1": 1.0}, "<p>page</p>")
        return run

    here, remote = write(str(tmp_path / "run")), write(f"{bucket}/run")
    assert str(remote.workdir) == f"{bucket}/run"
    names = sorted(p.relative_to(here.workdir).as_posix() for p in here.workdir.rglob("*.*"))
    files = {str(f).removeprefix(f"{bucket}/run/"): f for f in storage.find(f"{bucket}/run")[1]}
    assert sorted(files) == names
    for name in names:
        if name not in ("config.json", "result.json"):  # which have times
            assert files[name].read_bytes() == (here.workdir / name).read_bytes(), name
    run, result = reporting.read_run(f"{bucket}/run")
    assert result.pop("ledger")
    assert (run.name, result) == ("predict", {"top1": 1.0, "remarks": ["a remark"]})
    with pytest.raises(ValueError, match="holds the result of predict, which ideal would remove"):
        reporting.start("ideal", f"{bucket}/run", {})
    assert remote.relative(remote.workdir / "figures" / "a_cat.png") == "figures/a_cat.png"


def test_lines_of_a_run_in_a_bucket_are_written_together(
    requests: Requests, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = reporting.start("predict", f"{bucket}/run", {})
    requests.clear()
    for step in range(100):
        run.log({"step": step})
    assert sum(requests.values()) <= 3
    monkeypatch.setattr(storage, "_SECONDS", 0)
    run.log({"step": 100})
    lines = lambda: [
        json.loads(x)["step"] for x in (run.workdir / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines() == list(range(101))
    resumed = reporting.start("predict", f"{bucket}/run", {}, resume=True)
    resumed.drop_rows(lambda row: row["step"] > 50)
    resumed.log({"step": 51})
    assert lines() == list(range(52))
    again = reporting.start("predict", f"{bucket}/run", {})
    again.log({"step": 0})
    assert lines() == [0]


def test_a_bucket_that_cannot_be_written_is_one_sentence(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("403 Forbidden")

    monkeypatch.setattr(MemoryFileSystem, "_open", refuse)
    with pytest.raises(ValueError, match="cannot write into 'memory://bucket/run' .*403 Forbidden"):
        reporting.start("predict", f"{bucket}/run", {})


def test_predictions_and_inputs_are_kept_in_a_bucket(bucket: str) -> None:
    folder = paths.expanded(f"{bucket}/run/checkpoints")
    resume.same_inputs(folder / "parts.json", {"train": "a"})
    resume.same_inputs(folder / "parts.json", {"train": "b"})  # no phase has begun
    put({f"{bucket}/run/checkpoints/round/phase1/step_00000001/x": b""})
    with pytest.raises(ValueError, match="train was 'b', is 'c'"):
        resume.same_inputs(folder / "parts.json", {"train": "c"})
    put(
        {f"{bucket}/run/config.json": json.dumps({"name": "transfer", "flags": {"lr": 1}}).encode()}
    )
    with pytest.raises(ValueError, match="`lr` was 1, is 2"):
        resume.same_flags(f"{bucket}/run", {"lr": 2})
