"""Values that processes exchange, and work that they divide."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from tl import ledger
from tl.hosts.state import advance, count, first, index, signalled, stop_together

Value = TypeVar("Value")


def gather(value: Value) -> list[Value]:
    """The values of all processes, in their order; every process must call it.

    Args:
      value: anything that `pickle` can write.
    """
    if count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    advance()
    data = np.frombuffer(pickle.dumps(value, protocol=5), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(data)], np.int32))[:, 0]
    # A power of two, so that few sizes are compiled.
    padded = np.zeros(1 << int(sizes.max() - 1).bit_length(), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def on_first(work: Callable[[], Value]) -> Value:
    """The result of `work` in process 0; every process must call it.

    An `Exception` in process 0 is raised there, and in the others a `ValueError` with its message.
    """
    if count() == 1:
        return work()
    result, failure = None, None
    if first():
        try:
            result = work()
        except Exception as error:  # raised below, in every process
            failure = error
    result, message = gather((result, None if failure is None else str(failure)))[0]
    if message is not None:
        raise failure or ValueError(message)
    return result  # type: ignore[return-value]


def shares(n: int, compute: Callable[[int], Value]) -> Iterator[tuple[Value, bool]]:
    """The results of n independent items of work, which the processes divide between them.

    Args:
      n: number of items.
      compute: number of an item -> its result; called in this process for every `count()`-th item.

    Yields:
      For each item, in order: its result, and whether this process computed it.

    Raises:
      Preempted: after SIGTERM to any process, in a `deferred` block, after the items that were
        computed.
    """
    size, own = count(), index()
    for start in range(0, n, size):
        advance()
        with ledger.spent("work"):
            mine = compute(start + own) if start + own < n else None
        rows: list[Any] = gather((mine, signalled()))
        for i, (value, _) in enumerate(rows[: n - start]):
            yield value, i == own
        if any(stop for _, stop in rows):
            stop_together()


class Agreement:
    """Requests of any process that all of them obey after the same step."""

    def __init__(self, mesh: jax.sharding.Mesh):
        self._mesh = mesh
        several = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._sharding = several
        self._largest = jax.jit(lambda x: x.max(), out_shardings=whole)

    def ask(self, request: int) -> jax.Array | int:
        """The largest request of all processes, each a number of at least 0.

        It is computed on the devices, so a loop that reads it a step later does not wait for it.
        """
        if count() == 1:
            return request
        row = np.array([request], np.int32)
        return self._largest(
            jax.make_array_from_callback((self._mesh.size,), self._sharding, lambda _: row)
        )
