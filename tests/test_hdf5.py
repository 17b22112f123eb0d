"""`tl.weights.hdf5`: the layouts of Keras give the same names, and no other file is read.

The tests write files with h5py as Keras writes them, so that Keras is not needed. With the `parity`
extra they also read files that Keras wrote.
"""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import ml_dtypes
import numpy as np
import pytest

from tl.weights.readers import read


class Layer(NamedTuple):
    """A layer: Keras' class, name, group name in Keras 3, weights in Keras' order, and config."""

    kind: str
    name: str
    group: str
    weights: dict[str, tuple[int, ...]]
    config: dict[str, Any] = {}


NORM = {"gamma": (4,), "beta": (4,), "moving_mean": (4,), "moving_variance": (4,)}
LAYERS = (
    Layer("InputLayer", "input", "input_layer", {}),
    Layer("Conv2D", "stem", "conv2d", {"kernel": (3, 3, 3, 4)}),
    Layer(
        "BatchNormalization",
        "stem_bn",
        "batch_normalization",
        NORM,
        {"center": True, "scale": True},
    ),
    Layer("ReLU", "relu", "re_lu", {}),
    Layer("DepthwiseConv2D", "dw", "depthwise_conv2d", {"depthwise_kernel": (3, 3, 4, 1)}),
    Layer(
        "BatchNormalization",
        "dw_bn",
        "batch_normalization_1",
        NORM,
        {"center": True, "scale": True},
    ),
    Layer("Conv2D", "project", "conv2d_1", {"kernel": (1, 1, 4, 2), "bias": (2,)}),
    Layer("Dropout", "drop", "dropout", {}),
    Layer("Dense", "top", "dense", {"kernel": (2, 5), "bias": (5,)}),
)


def values(layer: Layer) -> dict[str, np.ndarray]:
    """Numbers that differ for every weight of every layer."""
    rng = np.random.RandomState(sum(layer.name.encode()))
    return {
        name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in layer.weights.items()
    }


def expected(layers: tuple[Layer, ...] = LAYERS) -> dict[str, np.ndarray]:
    """The arrays of `read`, in the model's order."""
    return {
        f"{layer.name}/{name.removeprefix('depthwise_')}": array
        for layer in layers
        for name, array in values(layer).items()
    }


def legacy_group(root: Any, layers: tuple[Layer, ...], weight: str) -> None:
    root.attrs["layer_names"] = [layer.name.encode() for layer in layers]
    for layer in sorted(layers, key=lambda layer: layer.name):
        group = root.create_group(layer.name)
        names = {
            weight.format(layer=layer.name, name=name): array
            for name, array in values(layer).items()
        }
        group.attrs["weight_names"] = [name.encode() for name in names]
        for name, array in names.items():
            group.create_dataset(name, data=array)
    root.create_group("top_level_model_weights").attrs["weight_names"] = []


def legacy(
    path: Path, layers: tuple[Layer, ...] = LAYERS, *, weight: str = "{layer}/{name}:0"
) -> Path:
    with h5py.File(path, "w") as root:
        legacy_group(root, layers, weight)
    return path


def whole(path: Path, layers: tuple[Layer, ...] = LAYERS) -> Path:
    with h5py.File(path, "w") as root:
        root.attrs["model_config"] = json.dumps({"class_name": "Functional"})
        legacy_group(root.create_group("model_weights"), layers, "model/{layer}/{name}")
        root.create_dataset("optimizer_weights/adam/iteration", data=np.int64(7))
        root["optimizer_weights"].attrs["weight_names"] = [b"adam/iteration"]
    return path


def numbered_group(root: Any, layers: tuple[Layer, ...], container: str, names: bool) -> None:
    for layer in layers:
        group = root.create_group(f"{container}/{layer.group}/vars")
        if names:
            group.attrs["name"] = layer.name
        for number, array in enumerate(values(layer).values()):
            group[str(number)] = array
        if layer.kind == "Dropout":
            root[f"{container}/{layer.group}/seed_generator/vars/0"] = np.uint32([1, 2])
    root.create_dataset("optimizer/vars/0", data=np.int32(7))
    root.create_group("vars").attrs["name"] = "model"


def numbered(
    path: Path | io.BytesIO,
    layers: tuple[Layer, ...] = LAYERS,
    *,
    container: str = "layers",
    names: bool = True,
) -> Any:
    with h5py.File(path, "w") as root:
        numbered_group(root, layers, container, names)
    return path


def archive(
    path: Path,
    layers: tuple[Layer, ...] = LAYERS,
    *,
    compress: int = zipfile.ZIP_STORED,
    file: str = "model.weights.h5",
    **options: Any,
) -> Path:
    config = [
        {"class_name": layer.kind, "config": {"name": layer.name, **layer.config}}
        for layer in layers
    ]
    with zipfile.ZipFile(path, "w", compress) as zipped:
        zipped.writestr("metadata.json", "{}")
        zipped.writestr(
            "config.json", json.dumps({"class_name": "Functional", "config": {"layers": config}})
        )
        zipped.writestr(file, numbered(io.BytesIO(), layers, **options).getvalue())
    return path


WRITERS: dict[str, Callable[..., Path]] = {
    "legacy": legacy,
    "whole": whole,
    "numbered": numbered,
    "archive": archive,
}
each_form = pytest.mark.parametrize("form", WRITERS)


def assert_equal(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(actual) == set(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def error_of(path: Path) -> str:
    """The error message for a file, without the part that names the file."""
    with pytest.raises(ValueError) as caught:
        read(path)
    message = str(caught.value)
    assert (
        message.startswith(f"cannot read weights from {path}: ")
        and "\n" not in message
        and len(message) < 700
    )
    return message.removeprefix(f"cannot read weights from {path}: ")


# --- files that are read ----------------------------------------------------------------------


@each_form
@pytest.mark.parametrize("ending", [".h5", ".keras", ".pth", ""])
def test_all_layouts_have_the_same_names_with_any_ending(tmp_path: Path, form: str, ending: str):
    arrays = read(WRITERS[form](tmp_path / f"weights{ending}"))
    assert_equal(arrays, expected())
    if form != "numbered":
        assert list(arrays) == list(expected()), "the model's order"


def test_a_weights_file_without_a_config_keeps_the_order_of_each_kind(tmp_path: Path):
    layers = tuple(
        Layer("Conv2D", f"c{i}", f"conv2d_{i}" if i else "conv2d", {"kernel": (1, 1, 1, 1)})
        for i in range(12)
    )
    assert list(read(numbered(tmp_path / "w", (LAYERS[8], *layers)))) == [
        # By number, not conv2d_1, conv2d_10, conv2d_11, conv2d_2.
        *(f"c{i}/kernel" for i in range(12)),
        "top/kernel",
        "top/bias",
    ]


def test_files_before_keras_3_without_layer_names_are_read(tmp_path: Path):
    older = {"container": "_layer_checkpoint_dependencies", "names": False}
    assert_equal(read(archive(tmp_path / "w.keras", **older)), expected())
    assert list(read(numbered(tmp_path / "w.h5", LAYERS[:6], **older))) == [
        *(f"batch_normalization/{name}" for name in NORM),
        *(f"batch_normalization_1/{name}" for name in NORM),
        "conv2d/kernel",
        "depthwise_conv2d/kernel",
    ]


@pytest.mark.parametrize(
    "weight", ["{layer}/{name}:0", "{layer}/{name}", "model/{layer}/{name}:0", "{layer}_1/{name}:0"]
)
def test_legacy_names_are_read_in_every_scope(tmp_path: Path, weight: str):
    assert_equal(read(legacy(tmp_path / "w", weight=weight)), expected())


def test_legacy_layer_names_can_have_a_slash(tmp_path: Path):
    """The official files of MobileNetV3 have such names."""
    layers = (
        Layer("Conv2D", "expanded_conv", "", {"kernel": (1, 1, 3, 4)}),
        Layer("DepthwiseConv2D", "expanded_conv/depthwise", "", {"depthwise_kernel": (3, 3, 4, 1)}),
    )
    arrays = read(legacy(tmp_path / "w", layers))
    assert list(arrays) == ["expanded_conv/kernel", "expanded_conv/depthwise/kernel"]


@pytest.mark.parametrize("ending", ["_1:0", ":0", ""])
def test_the_names_of_keras_1_are_converted(tmp_path: Path, ending: str):
    """The official VGG and ResNet files of 2016 have such names."""
    older = {
        "kernel": "W",
        "bias": "b",
        "moving_mean": "running_mean",
        "moving_variance": "running_std",
    }
    layers = (
        Layer("Conv2D", "block1_conv1", "", {"kernel": (3, 3, 3, 4), "bias": (4,)}),
        Layer("BatchNormalization", "bn2a_branch2a", "", NORM),
    )
    with h5py.File(tmp_path / "w", "w") as root:
        root.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        for layer in layers:
            group = root.create_group(layer.name)
            names = {
                f"{layer.name}_{older.get(name, name)}{ending}": array
                for name, array in values(layer).items()
            }
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, array in names.items():
                group[name] = array
    arrays = read(tmp_path / "w")
    assert_equal(arrays, expected(layers))
    assert list(arrays) == list(expected(layers))


def test_a_list_of_names_can_be_split_into_attributes(tmp_path: Path):
    legacy(tmp_path / "w")
    with h5py.File(tmp_path / "w", "r+") as root:
        names = list(root.attrs["layer_names"])
        del root.attrs["layer_names"]
        root.attrs["layer_names0"], root.attrs["layer_names1"] = names[:5], names[5:]
    arrays = read(tmp_path / "w")
    assert_equal(arrays, expected())
    assert list(arrays) == list(expected())


@pytest.mark.parametrize(
    "scale, center", [(False, True), (True, False), (False, False), (True, True)]
)
def test_a_batch_norm_without_gamma_or_beta_is_read_if_the_config_tells_which(
    tmp_path: Path, scale: bool, center: bool
):
    omitted = {name for name, used in (("gamma", scale), ("beta", center)) if not used}
    weights = {name: shape for name, shape in NORM.items() if name not in omitted}
    layers = (
        Layer(
            "BatchNormalization",
            "bn",
            "batch_normalization",
            weights,
            {"scale": scale, "center": center},
        ),
    )
    for write in (legacy, whole, archive):
        assert_equal(read(write(tmp_path / "w", layers)), expected(layers))
    if len(omitted) == 1:
        assert (
            "its layer 'bn' lacks gamma or beta, and a .weights.h5 does not say which"
            in error_of(numbered(tmp_path / "w", layers))
        )
    else:
        assert_equal(read(numbered(tmp_path / "w", layers)), expected(layers))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@each_form
def test_every_number_type_is_read_bit_for_bit(
    tmp_path: Path, form: str, dtype: Any, monkeypatch: pytest.MonkeyPatch
):
    as_float32 = values
    monkeypatch.setattr(
        sys.modules[__name__],
        "values",
        lambda layer: {name: a.astype(dtype) for name, a in as_float32(layer).items()},
    )
    assert_equal(read(WRITERS[form](tmp_path / "w")), expected())


def test_bfloat16_is_read_as_keras_marks_it(tmp_path: Path):
    array = np.array([[0, 1, -2.5]], ml_dtypes.bfloat16)
    with h5py.File(tmp_path / "w", "w") as root:
        group = root.create_group("layers/dense/vars")
        group.attrs["name"] = "top"
        group.create_dataset("0", data=array.view("V2")).attrs["dtype"] = "bfloat16"
    arrays = read(tmp_path / "w")["top/kernel"]
    assert arrays.dtype == ml_dtypes.bfloat16 and arrays.tobytes() == array.tobytes()
    with h5py.File(tmp_path / "w", "r+") as root:
        del root["layers/dense/vars/0"].attrs["dtype"]
    assert "wrong type of /layers/dense/vars/0: got |V2" in error_of(tmp_path / "w")


def test_other_kinds_of_layer_keep_the_names_of_the_file(tmp_path: Path):
    layers = (
        Layer("PReLU", "act", "p_re_lu", {"alpha": (4,)}),
        Layer("Lambda", "code", "lambda", {}, {"function": "4wEA"}),
    )
    assert list(read(legacy(tmp_path / "w", layers))) == ["act/alpha"]
    assert list(read(archive(tmp_path / "w", layers))) == ["act/0"]


# --- files that are errors --------------------------------------------------------------------


@each_form
def test_a_model_in_a_model_has_its_name_before_its_layers(tmp_path: Path, form: str):
    WRITERS[form](tmp_path / "w", (LAYERS[8],))
    inner = io.BytesIO()
    if form in ("legacy", "whole"):
        with h5py.File(tmp_path / "w", "r+") as root:
            at = root["model_weights"] if form == "whole" else root
            at.attrs["layer_names"] = [b"mobilenet", b"top"]
            group = at.create_group("mobilenet")
            group.attrs["weight_names"] = [b"conv1/kernel:0", b"conv1_bn/gamma:0"]
            group["conv1/kernel:0"] = group["conv1_bn/gamma:0"] = np.ones(2, np.float32)
    else:
        with h5py.File(inner, "w") as root:
            numbered_group(root, (LAYERS[8],), "layers", True)
            numbered_group(root.create_group("layers/functional"), (LAYERS[1],), "layers", True)
            root["layers/functional/vars"].attrs["name"] = "mobilenet"
        (tmp_path / "w").write_bytes(inner.getvalue())
    if form == "archive":
        config = [{"class_name": "Functional", "config": {"name": "mobilenet", "layers": []}}]
        with zipfile.ZipFile(tmp_path / "w", "w") as zipped:
            zipped.writestr("config.json", json.dumps({"config": {"layers": config}}))
            zipped.writestr("model.weights.h5", inner.getvalue())
    names = list(read(tmp_path / "w"))
    if form in ("legacy", "whole"):
        assert names == [
            "mobilenet/conv1/kernel",
            "mobilenet/conv1_bn/gamma",
            *expected((LAYERS[8],)),
        ]
    else:
        inner_names = [f"mobilenet/{name}" for name in expected((LAYERS[1],))]
        assert sorted(names) == sorted([*inner_names, *expected((LAYERS[8],))])


@pytest.mark.parametrize(
    "at", ["layers", "layers/dense", "layers/dense/vars", "layers/dense/vars/0"]
)
@pytest.mark.parametrize("link", ["soft", "external"])
def test_links_are_an_error(tmp_path: Path, at: str, link: str):
    numbered(tmp_path / "other", (LAYERS[8],))
    numbered(tmp_path / "w", (LAYERS[8],))
    with h5py.File(tmp_path / "w", "r+") as root:
        root.move(at, "elsewhere")
        root[at] = (
            h5py.SoftLink("/elsewhere")
            if link == "soft"
            else h5py.ExternalLink(tmp_path / "other", f"/{at}")
        )
        assert at in root, "the link itself does not work"
    assert "is a link to another place, which is not followed" in error_of(tmp_path / "w")


@pytest.mark.parametrize("where", ["external", "virtual"])
@pytest.mark.parametrize("form", ["legacy", "numbered"])
def test_data_sets_in_another_file_are_an_error(tmp_path: Path, where: str, form: str):
    WRITERS[form](tmp_path / "w", (LAYERS[8],))
    at = "top/top/kernel:0" if form == "legacy" else "layers/dense/vars/0"
    with h5py.File(tmp_path / "w", "r+") as root:
        del root[at]
        if where == "external":
            (tmp_path / "secret").write_bytes(bytes(range(40)))
            root.create_dataset(at, (2, 5), np.float32, external=[(tmp_path / "secret", 0, 40)])
        else:
            numbered(tmp_path / "secret", (LAYERS[8],))
            layout = h5py.VirtualLayout((2, 5), np.float32)
            layout[:] = h5py.VirtualSource(tmp_path / "secret", "layers/dense/vars/0", (2, 5))
            root.create_virtual_dataset(at, layout)
        assert root[at][()].any(), "the other file itself does not work"
    assert (
        error_of(tmp_path / "w")
        == f"/{at} is in another file, which is not read; save the model again as one file"
    )


@pytest.mark.parametrize("data", [np.bytes_(b"x"), np.complex64([1]), np.array([True])], ids=str)
def test_data_sets_of_other_types_are_an_error(tmp_path: Path, data: Any):
    with h5py.File(numbered(tmp_path / "w", (LAYERS[8],)), "r+") as root:
        del root["layers/dense/vars/0"]
        root["layers/dense/vars/0"] = data
    message = error_of(tmp_path / "w")
    assert "wrong type of /layers/dense/vars/0: got " in message and "number type" in message


def test_data_sets_larger_than_their_file_are_an_error_and_use_no_memory(tmp_path: Path):
    with h5py.File(numbered(tmp_path / "w", (LAYERS[8],)), "r+") as root:
        del root["layers/dense/vars/0"]
        root.create_dataset(
            "layers/dense/vars/0", (2**20, 2**20), np.float32, chunks=(64, 64), compression="gzip"
        )
    assert "exceed the file, but Keras does not compress them" in error_of(tmp_path / "w")


def test_one_data_set_under_many_names_is_an_error(tmp_path: Path):
    with h5py.File(
        legacy(tmp_path / "w", (Layer("Dense", "top", "dense", {"kernel": (100, 100)}),)), "r+"
    ) as root:
        names = [f"top/k{i}" for i in range(100)]
        for name in names:
            root["top"][name] = root["top/top/kernel:0"]
        root["top"].attrs["weight_names"] = names
    assert "exceed the file, but Keras does not compress them" in error_of(tmp_path / "w")


def replace(root: Any, at: str, value: Any) -> None:
    del root[at]
    root[at] = value


DAMAGE: dict[str, tuple[Callable[[Any], None], str]] = {
    "a variable too many": (
        lambda r: r.__setitem__("layers/dense/vars/2", np.float32([1])),
        "a dense, has 3 variables",
    ),
    "a variable by another name": (
        lambda r: r.move("layers/dense/vars/1", "layers/dense/vars/x"),
        "has no '1'",
    ),
    "a group for a data set": (
        lambda r: (r.move("layers/dense/vars/1", "y"), r.create_group("layers/dense/vars/1"))[0],
        "not a data set",
    ),
    "a data set for a group": (lambda r: replace(r, "layers/dense/vars", np.float32([1])), ""),
    "a data set for all layers": (lambda r: replace(r, "layers", np.float32([1])), ""),
    "no layers": (
        lambda r: r.__delitem__("layers"),
        "without the layers of a sequential or functional Keras model",
    ),
    "a null data set": (
        lambda r: replace(r, "layers/dense/vars/1", h5py.Empty("f4")),
        "not a data set with numbers",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_structures_that_keras_does_not_write_are_an_error(tmp_path: Path, name: str):
    change, message = DAMAGE[name]
    with h5py.File(numbered(tmp_path / "w", (LAYERS[8],)), "r+") as root:
        change(root)
    assert message in error_of(tmp_path / "w")


def test_names_of_missing_layers_are_an_error(tmp_path: Path):
    with h5py.File(legacy(tmp_path / "w", (LAYERS[8],)), "r+") as root:
        root.attrs["layer_names"] = [b"top", b"gone"]
    assert error_of(tmp_path / "w") == "/ has no 'gone', which its names list"
    with h5py.File(legacy(tmp_path / "w", (LAYERS[8],)), "r+") as root:
        root.attrs["layer_names"] = [b"top", b"top"]
    assert error_of(tmp_path / "w") == "it has top/kernel twice"


def test_archives_that_keras_does_not_write_are_an_error(tmp_path: Path):
    assert "compressed zip" in error_of(archive(tmp_path / "w", compress=zipfile.ZIP_DEFLATED))
    assert "without model.weights.h5" in error_of(archive(tmp_path / "w", file="model.weights.npz"))
    with zipfile.ZipFile(tmp_path / "w", "w") as zipped:
        zipped.writestr("config.json", "{")
        zipped.writestr("model.weights.h5", b"")
    error_of(tmp_path / "w")


@each_form
def test_a_file_truncated_anywhere_is_an_error(tmp_path: Path, form: str):
    data = WRITERS[form](tmp_path / "whole").read_bytes()
    for cut in {
        8,
        9,
        100,
        len(data) // 2,
        len(data) - 1000,
        len(data) - 1,
        *range(16, len(data), len(data) // 40),
    }:
        (tmp_path / "cut").write_bytes(data[:cut])
        error_of(tmp_path / "cut")


def test_without_h5py_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    legacy(tmp_path / "w")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert error_of(tmp_path / "w").endswith('pip install "tl[keras]"')


# --- files that Keras wrote -------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras")


def save_in_every_form(keras: Any, model: Any, folder: Path) -> list[Path]:
    from keras.src.legacy.saving import legacy_h5_format

    model.save(folder / "m.keras")
    model.save(folder / "m.h5")
    model.save_weights(folder / "m.weights.h5")
    with h5py.File(folder / "weights_only.h5", "w") as root:
        legacy_h5_format.save_weights_to_hdf5_group(root, model)
    return [folder / name for name in ("m.keras", "m.h5", "weights_only.h5", "m.weights.h5")]


# A warning of Keras about its own torch backend.
keras_warns = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parity
@keras_warns
@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV3Small", "VGG16", "ResNet50V2"])
def test_files_that_keras_wrote_are_read(tmp_path: Path, keras: Any, name: str):
    model = getattr(keras.applications, name)(
        weights=None, include_top=False, input_shape=(64, 64, 3)
    )
    rng = np.random.RandomState(0)
    model.set_weights(
        [rng.uniform(0.5, 1.5, array.shape).astype(np.float32) for array in model.get_weights()]
    )
    expected = {
        v.path.replace("depthwise_kernel", "kernel"): keras.ops.convert_to_numpy(v)
        for v in model.weights
    }
    for path in save_in_every_form(keras, model, tmp_path):
        arrays = read(path)
        assert_equal(arrays, expected)
        assert path.name == "m.weights.h5" or list(arrays) == list(expected)


@pytest.mark.parity
@keras_warns
def test_a_trained_nested_model_that_keras_wrote_is_read(tmp_path: Path, keras: Any):
    layers = keras.layers
    inner = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(2, 3), layers.BatchNormalization()], name="inner"
    )
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), inner, layers.Flatten(), layers.Dropout(0.5), layers.Dense(1)]
    )
    model.compile("adam", "mse")
    model.fit(np.zeros((2, 8, 8, 3)), np.zeros((2, 1)), verbose=0)
    for path in save_in_every_form(keras, model, tmp_path):
        names = list(read(path))
        assert len(names) == 8 and sum(name.startswith("inner/") for name in names) == 6
    for path in save_in_every_form(keras, inner, tmp_path):
        assert len(read(path)) == 6
