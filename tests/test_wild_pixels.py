"""Image files as people have them: bits per channel, formats, and whole sets that are misread."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from PIL import Image, features

from tests import toys, wild
from tests.toys import toy_zoo  # noqa: F401  # a fixture
from tl import cli, data, inference, models, reporting
from tl.data import duplicates, formats, pixel_checks
from tl.data.decode import header
from tl.evaluation.before import TransferSettings
from tl.evaluation.transfer import transfer
from tl.inference import features as feature_banks
from tl.paths import printable
from tl.training import resume
from tl.training.recipe import Recipe


@pytest.mark.parametrize("situation", wild.PICTURES, ids=lambda situation: situation.name)
def test_a_file_is_decoded_or_refused_in_one_sentence(
    situation: wild.Situation, tmp_path: Path
) -> None:
    path, right = situation.make(tmp_path), situation.right
    source = data.with_white(path, right.get("white", 0))
    if situation.refused:
        if "HEIC" in situation.refused and formats.HEIF:
            pytest.skip("pillow-heif is installed")
        with pytest.raises(data.ImageError) as caught:
            data.decode(source)
        why = caught.value.why
        assert re.search(situation.refused, why) and str(caught.value) == f"{path}: {why}"
        assert len(why) < 200 and why == printable(why)
        assert not pixel_checks.check_pixels([source])
        return
    if not features.check(right.get("read_by", "jpg")):
        pytest.skip(f"Pillow lacks {right['read_by']}")
    decoded, halves = data.decode(source), right["halves"]
    expected = wild.halves(halves[0], halves[1], np.int64)
    differences = np.abs(decoded - expected)[:, [0, 1, -2, -1]]  # lossy codecs blur the edge
    assert decoded.shape == (6, 8, 3) and differences.max() <= right.get("within", 0), decoded[0]
    assert header(source).format in formats.FORMATS


@pytest.mark.parametrize("situation", wild.SETS, ids=lambda situation: situation.name)
def test_a_set_is_remarked_before_training_and_by_doctor(
    situation: wild.Situation, tmp_path: Path
) -> None:
    spec = data.get(situation.make(tmp_path), white=situation.right.get("white", 0))
    remarks = data.check_pixels([example.path for example in spec.examples])
    assert len(remarks) == bool(situation.remark), remarks
    assert all(re.search(situation.remark, remark) for remark in remarks), remarks
    assert all(len(remark) <= 200 for remark in remarks)
    assert data.examine(spec).remarks == remarks
    if white := re.search("`white=(.*)`", "".join(remarks)):
        # The value of the advice corrects it.
        spec = data.get(f"folder:{tmp_path}", white=int(white[1]))
        assert not data.check_pixels([example.path for example in spec.examples])


def test_there_are_many_situations_with_different_names() -> None:
    assert max(Counter(situation.name for situation in wild.PIXELS).values()) == 1
    assert len(wild.PIXELS) > 90 and len(wild.SETS) > 25


# ---- the shared cases ----


def case(shared_data: Path, name: str) -> Path:
    path = shared_data / "cases" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


LEFT, RIGHT = (64, 64, 64), (230, 120, 20)


@pytest.mark.parametrize(
    ("name", "white", "left", "right", "within"),
    [
        ("rgb.png", 0, LEFT, RIGHT, 0),
        ("u16_full.tif", 0, LEFT, (192,) * 3, 0),
        ("u8_minwhite.tif", 0, LEFT, (192,) * 3, 0),
        ("u16_minwhite.tif", 0, LEFT, (192,) * 3, 1),
        ("u16_12bit.tif", 0, (4,) * 3, (12,) * 3, 0),
        ("u16_12bit.png", 0, (4,) * 3, (12,) * 3, 0),
        ("u16_12bit.tif", 4095, LEFT, (192,) * 3, 1),
        ("u16_12bit.png", 4095, LEFT, (192,) * 3, 1),
        ("scene.avif", 0, LEFT, RIGHT, 12),
        ("avif_named.jpg", 0, LEFT, RIGHT, 12),
        ("alpha_all_zero.png", 0, (255,) * 3, (255,) * 3, 0),
        ("zstack.tif", 0, (0,) * 3, (0,) * 3, 0),
    ],
)
def test_shared_pictures_are_read(
    shared_data: Path,
    name: str,
    white: int,
    left: tuple[int, ...],
    right: tuple[int, ...],
    within: int,
) -> None:
    path = case(shared_data, f"pictures/{name}")
    if "avif" in name and not features.check("avif"):
        with pytest.raises(data.ImageError, match="AVIF"):
            data.decode(path)
        return
    decoded = data.decode(data.with_white(path, white)).astype(int)
    assert decoded.shape == (40, 60, 3)
    assert np.abs(decoded[:, 2:28] - left).max() <= within
    assert np.abs(decoded[:, 32:58] - right).max() <= within


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("bands5.tif", "is a TIFF of 5 bands, expected gray, RGB or CMYK; save one band"),
        ("f32_01.tif", "is a TIFF of 32-bit floats, whose white is undefined, expected"),
        ("big_100mp.png", "is 10000 x 10000 pixels, expected at most 89,478,485; shrink it"),
    ],
)
def test_shared_pictures_are_refused(shared_data: Path, name: str, refused: str) -> None:
    with pytest.raises(data.ImageError, match=refused) as caught:
        data.decode(case(shared_data, f"pictures/{name}"))
    assert len(caught.value.why) < 200


@pytest.mark.parametrize(
    ("name", "n", "remark"),
    [
        ("alpha_all_zero", 12, "12 of 12 images are transparent everywhere, read as white"),
        (
            "twelve_bit",
            12,
            "12 of 12 images are nearly black: no level exceeds 13 of 255; if they hold fewer than "
            "16 bits, state the value of white: `white=4095`",
        ),
        ("pages", 12, "12 of 12 images have more pages or frames than the one that is read"),
        ("avif", 8, ""),
    ],
)
def test_shared_sets_are_remarked(
    shared_data: Path, tmp_path: Path, name: str, n: int, remark: str
) -> None:
    if name == "avif" and not features.check("avif"):
        with pytest.raises(ValueError, match="AVIF"):
            data.get(f"folder:{case(shared_data, name)}")
        return
    run = reporting.start("transfer", tmp_path, {"seed": 0})
    spec = cli.load_data(run, f"folder:{case(shared_data, name)}")
    assert len(spec.examples) == n
    assert len(run.remarks) == bool(remark)
    assert all(sentence.startswith(remark) for sentence in run.remarks), run.remarks
    run.finish({}, None)
    stored = json.loads((tmp_path / "result.json").read_text()).get("remarks", [])
    assert stored == run.remarks


# ---- the sample ----


def test_a_sample_of_a_large_set_is_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [toys.gray_png(tmp_path / f"{i}.png", i % 200, size=(2, 2)) for i in range(500)]
    read: list[Path] = []
    examine = pixel_checks._examine
    monkeypatch.setattr(
        pixel_checks, "_examine", lambda path: (read.append(path), examine(path))[1]
    )
    assert data.check_pixels(paths * 100) == (
        "200 of 200 images of a sample have one color; check the export",
    )
    assert len(read) == 200 and len(set(read)) >= 2
    monkeypatch.setattr(pixel_checks, "SAMPLE_PIXELS", 4 * 30)
    assert data.check_pixels(paths)[0].startswith("30 of 30 images of a sample have")
    monkeypatch.setattr(pixel_checks, "SAMPLE_PIXELS", 1)
    assert data.check_pixels(paths)[0].startswith("20 of 20 images of a sample have")
    assert data.check_pixels([]) == data.check_pixels([tmp_path / "none.png"] * 9) == ()


# ---- classes that cannot be read ----


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        (wild.ISOBMFF % (b"heic", b"mif1"), "is a .*HEIC file"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "is a JPEG XL file; convert it to JPEG or PNG"),
        (wild.tiff(wild.halves([1] * 5, [2] * 5, np.uint8)), "is a TIFF of 5 bands, expected"),
        (wild.tiff(wild.halves(0.2, 0.5, np.float32)), "is a TIFF of 32-bit floats, whose"),
        (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS file; `git lfs pull`"),
        (b"", "is empty"),
        (b"<html></html>", "is an HTML file; download the image again"),
    ],
)
def test_a_class_without_a_readable_image_is_refused(
    content: bytes, refused: str, tmp_path: Path
) -> None:
    names = *wild.two("cat"), *(f"dog/{i}.jpg" for i in range(3))
    word = wild.tree(*names, content={".jpg": content})(tmp_path / "set")
    run = reporting.start("transfer", tmp_path / "run", {"seed": 0})
    start = "no image of 'dog' can be read, expected at least one of each class: '0.jpg' "
    with pytest.raises(ValueError, match=f"^{start}{refused}") as caught:
        cli.load_data(run, word)
    assert len(str(caught.value)) < 400
    # One readable image is enough; the loader skips the others and lists them.
    toys.gray_png(tmp_path / "set" / "dog" / "9.png")
    assert len(cli.load_data(run, word).examples) == 6


def test_heic_is_read_by_the_extra(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    colors = wild.halves((64, 128, 192), (192, 64, 0), np.uint8).repeat(8, 0).repeat(8, 1)
    heif.from_pillow(Image.fromarray(colors)).save(tmp_path / "x.heic", quality=95)
    for name in ("x.heic", "x.jpg", "x"):
        (tmp_path / name).write_bytes((tmp_path / "x.heic").read_bytes())
        decoded = data.decode(tmp_path / name).astype(int)
        assert np.abs(decoded - colors)[:, [0, -1]].max() <= 12
        assert header(tmp_path / name).format == "HEIF"
    assert len(data.find_images(str(tmp_path))[0]) == 3


# ---- white ----


@pytest.mark.parametrize("white", [-1, 65536, 70000])
def test_white_is_at_most_65535(white: int, tmp_path: Path) -> None:
    for name in wild.two():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        path = toys.gray_png(tmp_path / name)
    for use in (
        lambda: data.with_white(path, white),
        lambda: data.find_images(str(path), white=white),
        lambda: data.get(f"folder:{tmp_path}", white=white),
    ):
        with pytest.raises(ValueError, match=f"^`white` must be in .1, 65535., .*: got {white}$"):
            use()


def test_two_values_of_white_share_no_cache(tmp_path: Path) -> None:
    """Content hashes, and so splits, are those of the file; features and fingerprints are not."""
    path = tmp_path / "x.png"
    path.write_bytes(wild.png(wild._wide(12), 16, 0))
    sources = [data.with_white(path, white) for white in (0, 1023, 4095, 65535)]
    assert sources[0] == path and data.with_white(sources[1], 0) == path
    assert len({data.content_hash(source) for source in sources}) == 1
    assert len({feature_banks.identity(source) for source in sources}) == 4
    h = data.content_hash(path)
    rows = [duplicates.fingerprints({h: source}, cache=tmp_path)[h] for source in sources]
    again = [duplicates.fingerprints({h: source}, cache=tmp_path)[h] for source in sources]
    assert all(np.array_equal(a, b) for a, b in zip(rows, again, strict=True))
    assert not np.array_equal(rows[1], rows[2])
    assert [str(source) for source in sources] == [str(path)] * 4
    paths, _ = data.find_images(str(path), white=4095)
    assert (paths[0].name, paths[0].stem, paths[0].suffix) == ("x.png", "x", ".png")


def test_a_run_is_not_resumed_with_another_white(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        (tmp_path / "ab"[i % 2] / f"{i}.png").write_bytes(wild.png(wild._wide(12, i), 16, 0))
    described = {
        resume.describe_part(data.get(f"folder:{tmp_path}", white=white))
        for white in (0, 1023, 4095)
    }
    assert len(described) == 3


@pytest.mark.usefixtures("toy_zoo")
def test_a_classifier_keeps_the_value_of_white(tmp_path: Path) -> None:
    set_folder = tmp_path / "set"
    for i in range(24):
        side = set_folder / ("dim", "lit")[i % 2]
        side.mkdir(parents=True, exist_ok=True)
        pixels = 100 + 10 * i + toys.noise(32, 32, seed=i).astype(np.uint16) + 3000 * (i % 2)
        (side / f"{i}.png").write_bytes(wild.png(pixels, 16, 0))
    clf, variables = toys.classifier("toy_mobilenet", ("dim", "lit"))
    spec = data.get(f"folder:{set_folder}", white=4095)
    run = reporting.start("transfer", tmp_path / "run", {"seed": 0})
    settings = TransferSettings(Recipe(tune="probe"))
    result = transfer(run, clf, variables, spec, None, settings, say=lambda line: None)
    assert result["white"] == 4095
    assert models.metadata(tmp_path / "run" / "model")["white"] == 4095
    clf, variables = models.load(str(tmp_path / "run" / "model"))
    logits = [
        inference.predict(clf, variables, str(set_folder), white=white).logits
        for white in (0, 4095)
    ]
    by_spec = inference.predict(clf, variables, spec).logits
    np.testing.assert_array_equal(logits[1], by_spec)
    assert np.abs(logits[0] - by_spec).max() > 1e-3


@pytest.mark.parametrize(
    ("given", "stored", "value", "remark"),
    [
        (0, None, 0, ""),
        (0, {}, 0, ""),
        (4095, None, 4095, "images of 16 bits are read with 4095 as white"),
        (4095, {"white": 4095}, 4095, "images of 16 bits are read with 4095 as white"),
        (
            0,
            {"white": 4095},
            4095,
            "images of 16 bits are read with 4095 as white, as in the training of this classifier; "
            "--white=65535 reads their full range",
        ),
        (
            1023,
            {"white": 4095},
            1023,
            "images of 16 bits are read with 1023 as white, but 4095 was white in training",
        ),
        (
            4095,
            {"white": 0},
            4095,
            "images of 16 bits are read with 4095 as white, but the value of the file was white in "
            "training",
        ),
    ],
)
def test_the_white_of_a_command_is_remarked(
    given: int,
    stored: dict[str, int] | None,
    value: int,
    remark: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = flags.FlagValues()
    flags.DEFINE_integer("white", given, "", flag_values=values)
    values.mark_as_parsed()
    monkeypatch.setattr(cli, "FLAGS", values)
    monkeypatch.setattr(cli, "metadata", lambda: stored or {})
    run = reporting.start("predict", tmp_path, {"seed": 0})
    assert cli.white(run) == value
    assert run.remarks == [remark] * bool(remark)


def test_images_of_a_command_are_remarked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(wild.png(wild._wide(12), 16, 0))
    for white, remarks in (
        (0, ["1 of 1 images is nearly black: no level exceeds 16 of 255; if they hold fewer than"]),
        (4095, ["images of 16 bits are read with 4095 as white"]),
    ):
        values = flags.FlagValues()
        flags.DEFINE_integer("white", white, "", flag_values=values)
        flags.DEFINE_string("images", str(tmp_path / "x.png"), "", flag_values=values)
        values.mark_as_parsed()
        monkeypatch.setattr(cli, "FLAGS", values)
        run = reporting.start("predict", tmp_path / f"run{white}", {"seed": 0})
        assert cli.white(run) == white
        assert [a[: len(b)] for a, b in zip(run.remarks, remarks, strict=True)] == remarks
        assert white or run.remarks[0].endswith("state the value of white: --white=4095")


@pytest.mark.parametrize(
    "name",
    [
        *("transfer", "shots", "evaluate", "predict", "features", "doctor", "attack"),
        *("attack_transfer", "audit", "ideal", "compare"),
    ],
)
def test_every_command_that_reads_images_has_the_flag(name: str) -> None:
    text = (Path(__file__).parents[1] / "experiments" / f"{name}.py").read_text()
    assert re.search(r"define_(white|image)_flags?\(", text)
    assert re.search(r"cli\.(white|load_data)\(", text)
