"""`plan`: chips, collectives, estimates, and the programs of all commands without their images."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests import toys
from tl import devices, pages, reporting
from tl.evaluation.attack_settings import AttackSettings
from tl.evaluation.before import TransferSettings
from tl.scale import estimate, plan, programs, topology
from tl.scale.compiled import (
    Collective,
    OutOfMemory,
    collectives,
    compile_and_measure,
    exhausted,
    layout,
    products,
)
from tl.training import fit, phase
from tl.training.recipe import Recipe
from tl.visualize.grid import IdealSettings

SPEC = programs.synthetic_set(3, 32)  # the networks have four classes

# Lines of the train step of ResNet-50 for v5e:2x2, as the TPU compiler writes them.
REDUCE = (
    "  %all-reduce.335 = (f32[256]{0:T(256)S(1)}, bf16[3,3,4]{2,1,0:T(4,128)(2,1)}) all-reduce("
    "%get-tuple-element.1495, %fusion.3), channel_id=9, replica_groups=mesh['axis_0'=4] {'axis_0'}"
)
START = (
    "  %ag = (f32[2,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%p), dimensions={0}\n"
    "  %done = f32[8,8]{1,0} all-gather-done(%ag)"
)
OTHER = (
    "  %convolution.341 = bf16[256,112,112,64]{0,3,2,1:T(8,128)(2,1)} convolution(%a, %b), "
    'window={size=7x7}, metadata={op_name="jit(step)/all-reduce("}\n'
    "  ROOT %copy.1244 = u8[2,4,4,3]{0,2,3,1:T(8,128)(4,1)} copy(%input)\n"
    "  %t = pred[8]{0} transpose(%x), dimensions={0}\n"
    '  %c = f32[] custom-call(%x), custom_call_target="xla_python_cpu_callback"\n'
    '  %d = f32[] custom-call(%x), custom_call_target="ConcatBitcast"'
)


def program_of(
    command: str, among: Any = None, name: str = "toy_mobilenet", **options: Any
) -> programs.Program:
    """The program of a command for a small network of four classes.

    Args:
      command: a row of `programs.PROGRAMS`.
      among: devices; default: those of this process.
      name: a toy network.
      options: fields of the command's settings, or of its recipe.
    """
    clf, variables = toys.classifier(name, 4)
    clf = clf.with_dtype(devices.default_dtype())
    others: dict[str, dict[str, Any]] = {
        "transfer": {"spec": SPEC},
        "ideal": {"words": "class 1"},
        "features": {"batch_size": 2, "endpoint": "features"},
    }
    settings: dict[str, Any] = {}
    if command == "transfer":
        recipe = Recipe(**{"batch_size": 16, "bank_gib": 0.0, **options})
        settings = {"settings": TransferSettings(recipe)}
    elif command in ("attack", "ideal"):
        kind = AttackSettings if command == "attack" else IdealSettings
        settings = {"settings": kind(**{"steps": 2, **options})}
    among = jax.devices() if among is None else among
    program = programs.PROGRAMS[command]
    return program(clf, variables, among=among, **settings, **others.get(command, {}))


def here() -> topology.Topology:
    """This process as a slice."""
    return topology.Topology("here", topology.CHIPS["v5e"], 1, tuple(jax.devices()[:1]))


# ---- chips ----


def test_every_chip_has_all_figures_and_its_source():
    for chip in topology.CHIPS.values():
        assert all(value > 0 for value in chip[:5]) and chip.axes in topology.SHAPES
        assert chip.platform == ("gpu" if chip.axes == 1 else "tpu")
        assert chip.source.startswith(("docs.cloud.google.com/", "NVIDIA's data sheet"))
        # A chip that computes 10 operations per byte is bound by memory.
        assert 10 * chip.bandwidth < chip.flops and chip.interconnect < chip.bandwidth


def test_every_topology_that_is_offered_is_accepted():
    chips = [topology.chip_of(name)[1] for name in topology.names()]
    assert min(chips) == 1 and max(chips) == 256


@pytest.mark.parametrize(
    "name",
    [
        *("v5f:2x2", "v5e:3x3", "v5e:4", "v5e:2x2x2", "v5e:0x0", "v5p:2x2x0", "", "v5e"),
        *("h100:0", "h100:16", "h100:2x2"),
    ],
)
def test_an_unknown_topology_names_the_nearest(name: str):
    with pytest.raises(ValueError, match=rf"unknown `topology`: got '{name}', .*nearest: '\w+:\d"):
        topology.chip_of(name)


@pytest.mark.parametrize("name, extra", [("v5e:2x2", "tpu"), ("h100:8", "cuda")])
def test_without_the_compiler_the_pip_command_is_named(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf'install it with: pip install "tl\[{extra}\]"'):
        topology.describe(name)


# ---- compiled programs ----


def test_collectives_are_counted_with_their_bytes():
    assert collectives("\n".join((REDUCE, REDUCE, START, OTHER))) == [
        Collective("all-reduce", 2, 2 * (1024 + 72), 1024 + 72),
        Collective("all-gather", 1, 256, 256),
    ]


def test_the_layout_counts_number_types_copies_and_callbacks():
    properties = layout("\n".join((REDUCE, OTHER)))
    assert properties.convolutions == {"bf16": 1} and properties.host == 1
    assert (properties.copies, properties.copied) == (2, 2 * 4 * 4 * 3 + 8)


def test_a_callback_of_a_real_program_is_found():
    show = lambda x: jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct((), "float32"), x)
    assert layout(jax.jit(show).lower(1.0).compile().as_text()).host == 1


def test_convolutions_of_cudnn_are_counted():
    line = (
        "  %c = (bf16[8,32,32,64]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), window={size=3x3}, "
        'custom_call_target="__cudnn$convForward"'
    )
    assert layout(line).convolutions == {"bf16": 1}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 4])
def test_products_are_those_that_xla_counts(stride: int, groups: int):
    """XLA leaves out the products with padding, which are few in a large image."""

    def loss(x: jax.Array, kernel: jax.Array, head: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        return jnp.sum(jnp.square(jnp.mean(y, (1, 2)) @ head))

    shapes = (2, 64, 64, 8), (3, 3, 8 // groups, 16), (16, 10)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arrays)
    counted = lowered.cost_analysis()["flops"]
    assert products(lowered.as_text()) == pytest.approx(counted, rel=0.1)


def test_a_message_without_sizes_has_none():
    assert exhausted("RESOURCE_EXHAUSTED: too large") == (0, 0)


# ---- estimates ----

WORK = estimate.Work(64, 1e12, 1e10, 1e9, 1e7, [Collective("all-reduce", 100, 10**8, 10**7)])


@pytest.mark.parametrize("chip", topology.CHIPS.values(), ids=topology.CHIPS)
def test_more_chips_compute_faster_and_communicate_longer(chip: topology.Chip):
    rows = estimate.estimate(WORK, chip, 256)
    for before, after in zip(rows["same_batch"], rows["same_batch"][1:], strict=False):
        assert after["chips"] == 2 * before["chips"] and after["batch"] == 256
        assert after["compute"] < before["compute"] and after["memory"] < before["memory"]
        assert after["communication"] > before["communication"]
        assert after["bytes"] < before["bytes"]
    for before, after in zip(rows["same_share"], rows["same_share"][1:], strict=False):
        assert after["step"] >= before["step"] and after["bytes"] == before["bytes"]
        assert after["images_per_second"] > before["images_per_second"]
    assert rows["same_batch"][0]["communication"] == 0


def test_a_batch_that_is_too_large_for_a_chip_does_not_fit():
    chip = topology.CHIPS["v5e"]
    fits = [row["fits"] for row in estimate.estimate(WORK, chip, 4096)["same_batch"]]
    assert fits == sorted(fits) and set(fits) == {False, True}


@pytest.mark.parametrize("compiles", [0, 1, 2, 5])
def test_the_largest_batch_fits(compiles: int):
    need = lambda batch: 10 + 3 * batch + batch**2 / 100
    largest = estimate.largest_batch(need, {0: 10, 8: need(8)}, 200, 4, compiles)
    assert len(largest["tried"]) <= compiles
    assert (largest["method"], largest["batch"] % 4) == ("compiled" if compiles else "linear", 0)
    if compiles:
        assert need(largest["batch"]) <= 200
    if compiles == 5:
        assert need(largest["batch"] + 4) > 200


def test_no_batch_fits_if_the_smallest_one_does_not():
    largest = estimate.largest_batch(lambda batch: 50.0, {0: 10, 4: 50}, 20, 4, 3)
    assert largest["batch"] == 0


# ---- programs ----


@pytest.mark.parametrize("command", programs.PROGRAMS)
def test_a_command_has_a_program_without_images(command: str):
    program = program_of(command)
    assert program.batch % program.unit == 0
    lowered = program.lower(program.unit)
    assert lowered.cost_analysis()["flops"] > 0 and "callback" not in lowered.as_text()


def test_a_penalty_cannot_be_planned():
    clf, variables = toys.classifier("toy_vgg", 4)
    settings = TransferSettings(Recipe(tune="all", penalty="delta"))
    with pytest.raises(ValueError, match="does not include .* of a penalty: got `penalty=delta`"):
        programs.transfer(clf, variables, settings, jax.devices(), SPEC)


def test_an_unknown_command_names_the_nearest():
    with pytest.raises(ValueError, match="unexpected argument 'transfr'.*nearest: 'transfer'"):
        programs.check_command("transfr")


@pytest.mark.parametrize(
    "options, description",
    [
        ({"tune": "head"}, "phase head (from images)"),
        ({"tune": "head", "bank_gib": 1.0}, "phase head (from the cached output of features)"),
        ({"tune": "head", "bank_gib": 1e-9}, "phase head (from images)"),
        ({"tune": "last:1", "bank_gib": 1.0}, "(from the cached output of stage1)"),
        ({"tune": "lp_ft"}, "phase all (from images)"),
        ({"tune": "probe"}, "forward pass to features"),
    ],
)
def test_the_program_of_transfer_follows_its_recipe(options: dict, description: str):
    assert description in program_of("transfer", **options).description


def test_the_step_is_that_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The program of `fit`, with the same recipe and the same number of images, has equal text."""
    spec = toys.color_folder(tmp_path, 4)
    clf, variables = toys.classifier("toy_vgg_bn", spec.classes)
    recipe = Recipe(tune="last:1", batch_size=4, epochs=1, bank_gib=0.0, bn="update")
    texts: list[str] = []

    class Lowered:
        """A step whose programs are read instead of compiled."""

        def __init__(self, step: Any) -> None:
            self.step = step

        def lower(self, *arguments: Any) -> Any:
            texts.append(self.step.lower(*arguments).as_text())
            raise InterruptedError

    compile_step = phase.compile_step
    read = lambda make_step, *others, **options: compile_step(
        lambda parts: Lowered(make_step(parts)), *others, **options
    )
    monkeypatch.setattr(phase, "compile_step", read)
    with pytest.raises(InterruptedError):
        fit.fit(clf, clf.reset_head(variables, key=jax.random.key(0)), spec, None, recipe)
    program = programs.transfer(clf, variables, TransferSettings(recipe), jax.devices(), spec)
    assert program.lower(4).as_text() == texts[0]


def test_a_plan_has_all_keys_and_a_page(tmp_path: Path):
    program = program_of("transfer", tune="head")
    result = plan.plan(program, here(), compiles=0)
    keys = ("memory", "flops", "bytes", "collectives", "largest_batch", "estimate")
    assert set(keys) <= set(result)
    assert result["memory"]["total"] == sum(
        result["memory"][name] for name in ("arguments", "outputs", "temporary", "code")
    )
    run = reporting.start("plan", str(tmp_path / "run"), {})
    result |= {"experiment": "transfer", "arch": "toy", "dtype": "float32"}
    text = pages.finish(run, result).read_text()
    assert "Communication" in text and "16 images per step" in text


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch):
    program = program_of("predict")
    real = compile_and_measure

    def refuse(lowered: tuple[int, Any], devices: int) -> Any:
        if lowered[0] > 4:
            raise OutOfMemory("Used 20.00G of 15.75G hbm")
        return real(lowered[1])

    monkeypatch.setattr(plan, "compile_and_measure", refuse)
    lower = program.lower
    program = program._replace(lower=lambda batch: (batch, lower(batch)))
    result = plan.plan(program, here(), compiles=4)
    assert (result["batch"], result["compiled_batch"], result["memory"]["fits"]) == (16, 4, False)
    assert result["largest_batch"]["batch"] == 4


def test_a_batch_must_divide_over_the_devices():
    program = program_of("transfer", microbatches=4)._replace(batch=6)
    with pytest.raises(ValueError, match="must be a multiple of 4"):
        plan.plan(program, here())


# ---- the TPU compiler ----

FAMILIES = ("resnet", "vgg", "vgg_bn", "mobilenet", "squeezenet", "efficientnet")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "forward": ("predict", {}),
    "head": ("transfer", {"tune": "head"}),
    "last": ("transfer", {"tune": "last:1"}),
    "all": ("transfer", {"tune": "all", "bn": "update", "augment": "flip"}),
    "attack": ("attack", {}),
    "ideal": ("ideal", {}),
}


@pytest.fixture(scope="module")
def slice_of_tpus() -> topology.Topology:
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip('the TPU compiler is not installed: pip install "tl[tpu]"')
    return topology.describe("v5e:2x2")


@pytest.mark.full
@pytest.mark.optimized
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_compiles_for_a_tpu(family: str, case: str, slice_of_tpus: topology.Topology):
    command, options = CASES[case]
    with devices.compile_for("tpu"):
        program = program_of(command, slice_of_tpus.devices, f"toy_{family}", **options)
        result = plan.plan(program, slice_of_tpus)
    assert result["memory"]["fits"] and result["flops"] > 0
    assert not result["layout"]["host"]
    products = result["layout"]["convolutions"]
    assert products["bf16"]
    # Ideal images are sums of waves in float32, and so are gates of squeeze-and-excitation.
    if command != "ideal" and family != "efficientnet":
        assert products.get("f32", 0) <= 3  # the head: its logits and two gradients
    assert bool(result["collectives"]) == program.communicates


@pytest.mark.full
@pytest.mark.optimized
@pytest.mark.parametrize("case", ["all", "attack"])
def test_a_step_compiles_for_gpus(case: str):
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        pytest.skip('the CUDA compiler is not installed: pip install "tl[cuda]"')
    if os.environ.get("JAX_PLATFORMS") != "cpu":
        pytest.skip("JAX looks for GPUs, and compiles without them with JAX_PLATFORMS=cpu only")
    gpus, (command, options) = topology.describe("h100:2"), CASES[case]
    with devices.compile_for("gpu"):
        program = program_of(command, gpus.devices, "toy_mobilenet", **options)
        result = plan.plan(program, gpus)
    assert result["memory"]["total"] > 0 and result["flops"] > 0 and not result["layout"]["host"]
    assert bool(result["collectives"]) == program.communicates
