"""A train step, compiled for the batches of a phase."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from tl import devices, hosts, ops
from tl.data import DataSpec
from tl.training.inputs import CachedInputs, ImageInputs, confidence
from tl.training.recipe import Recipe
from tl.training.step import Examples, Step, TrainState


class CompiledStep(NamedTuple):
    """A train step as compiled programs.

    Attributes:
      program: for every batch, or for full batches if `padded_program` is set.
      padded_program: returns the program for batches with padding; None if `program` serves both.
      memory: bytes that the larger of them needs on one device, `devices.memory_needed`.
      microbatches: number of parts of a batch whose gradients are summed.
    """

    program: Any
    padded_program: Callable[[], Any] | None = None
    memory: int = 0
    microbatches: int = 1

    def __call__(
        self, state: TrainState, examples: Examples
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        if self.padded_program is None or bool(np.all(examples.valid)):
            return self.program(state, examples)
        return self.padded_program()(state, examples)


def compile_step(
    make_step: Callable[[int], Step],
    state: TrainState,
    train_inputs: ImageInputs | CachedInputs,
    train_set: DataSpec,
    recipe: Recipe,
    *,
    masked: bool,
) -> CompiledStep:
    """Compiles the step for the batches of these inputs.

    Args:
      make_step: number of microbatches -> step, from `make_train_step`.
      state: the state before the first step.
      train_inputs, train_set: the inputs of the batches, and the set that they are from.
      recipe: its batch size and microbatches; 0 of them is the smallest number that fits.
      masked: whether BatchNorm needs to know the padded slots. Full batches then have a program
        without masks, and the other is compiled when it is needed: now if every epoch ends with a
        padded batch, otherwise at the first image that cannot be read.

    Raises:
      ValueError: the step does not fit into the device's memory; names a batch size that does.
    """
    mesh, b, parts = devices.mesh(), recipe.batch_size, recipe.microbatches or 1
    step = make_step(parts)
    example = train_inputs.example_input()
    # A step donates the buffers of `state`, and a program may be compiled after the first one.
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )

    if hosts.count() > 1:  # whether a batch is full depends on the slots of all processes
        masked = False

    def compiled(size: int, padded: bool = not masked) -> Any:
        devices.check_batch(size, mesh.size, "a training batch")
        sharding = NamedSharding(mesh, PartitionSpec(devices.AXIS))

        def rows(dtype: Any, *shape: int) -> Any:
            return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)

        certain = confidence(train_set) is None
        batch = Examples(
            rows(example.dtype, *example.shape[1:]),
            rows(np.int32),
            rows(bool),
            None if certain else rows(np.float32),
        )
        if mesh.size == 1:
            return step.lower(state, batch, padded).compile()  # type: ignore[attr-defined]
        # The state keeps its shardings: XLA may otherwise choose others.
        whole = NamedSharding(mesh, PartitionSpec())
        same = lambda state, batch: step(state, batch, padded)
        with ops.batch_sharded(mesh):
            metrics = jax.eval_shape(same, state, batch)[1]
            shardings = jax.tree.map(lambda x: x.sharding, state), dict.fromkeys(metrics, whole)
            program = jax.jit(same, donate_argnums=0, out_shardings=shardings)
            return program.lower(state, batch).compile()

    padded_program = functools.cache(lambda: compiled(b, padded=True)) if masked else None
    programs = [compiled(b)]
    if padded_program is not None and len(train_set.examples) % b:
        programs.append(padded_program())
    needed, memory = max(map(devices.memory_needed, programs)), devices.memory_limit()
    if memory is not None and needed > memory:
        unit = math.lcm(parts, mesh.size)  # the smallest batch
        need = lambda units: devices.memory_needed(compiled(units * unit))
        size = unit * devices.largest_batch(need, max(b // (2 * unit), 1), room=memory)
        part = max(size // parts, 1)
        microbatches = next(n for n in range(2, b + 1) if b % n == 0 and b // n <= part)
        if not recipe.microbatches:
            recipe = dataclasses.replace(recipe, microbatches=microbatches)
            return compile_step(make_step, state, train_inputs, train_set, recipe, masked=masked)
        raise ValueError(
            f"a step of `batch_size={b}` needs {needed / 1e9:.1f} GB, but {memory / 1e9:.1f} GB "
            f"are free; use `batch_size={size}` or `microbatches={microbatches}`"
        )
    return CompiledStep(programs[0], padded_program, needed, parts)
