"""How processes find each other."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import signal
import socket
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax

from tl.hosts.state import FAILED, JOIN, PREEMPTED, SILENCE, STATE, name, signalled


def several(environment: Mapping[str, str]) -> bool:
    """Whether environment variables show that this process is one of several.

    Example:
      >>> several({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"})
      True
      >>> several({"SLURM_JOB_ID": "3"})
      False
    """
    lists = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")  # TPU pods
    counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # srun, mpirun
    addresses = ("JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS")
    return (
        any("," in environment.get(name, "") for name in lists)
        or any(environment.get(name, "1") not in ("", "0", "1") for name in counts)
        or any(environment.get(name) for name in addresses)
    )


def join(facts: Mapping[str, str] = MappingProxyType({})) -> bool:
    """Joins the other processes if the environment names any, before JAX's devices are used.

    JAX finds the processes of TPU pods, Slurm and Open MPI. Elsewhere, set for each process
    `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`. On
    a TPU pod without `TPU_WORKER_HOSTNAMES`, which looks like a single machine, set
    `TL_DISTRIBUTED=1`. `TL_DISTRIBUTED=0` keeps a process alone in any case.

    Args:
      facts: name -> value of what all processes must have in common, such as their flags, in
        addition to JAX's version and the number of devices.

    Returns:
      Whether there are other processes. A second call changes nothing.

    Raises:
      ValueError: `TL_DISTRIBUTED` is neither 0 nor 1; only one of `JAX_NUM_PROCESSES` and
        `JAX_PROCESS_ID` is set, or one is not a number; a process did not start within `JOIN`
        seconds, or `TL_JOIN_SECONDS`; the processes differ in one of the facts.
    """
    setting = os.environ.get("TL_DISTRIBUTED", "")
    if setting == "0" or not (setting or several(os.environ)):
        return False
    if not jax.distributed.is_initialized():
        if setting not in ("", "1"):
            raise ValueError(f"wrong environment: got TL_DISTRIBUTED={setting!r}, expected 0 or 1")
        address, number, rank, local = _addresses()
        timeout = max(JOIN, 60)
        if address and number is not None and rank is not None:
            STATE.index, STATE.count = rank, number
            _meet(address, number, rank, JOIN)
            _say_before_abort()  # one of them may stop before JAX has connected them
            timeout = max(JOIN / 2, 15)
        if jax.config.jax_cpu_collectives_implementation in (None, "none"):  # type: ignore[attr-defined]
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        # The supervisor handles SIGTERM.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            address,
            number,
            rank,
            local_device_ids=local,
            initialization_timeout=int(timeout),
            heartbeat_timeout_seconds=int(max(2 * SILENCE, 20)),
        )
    if STATE.client is not None:
        return STATE.count > 1
    from jax._src import distributed

    STATE.client = distributed.global_state.client
    STATE.index, STATE.count = jax.process_index(), jax.process_count()
    _say_before_abort()
    if STATE.count > 1:
        _check_equal(facts)
    return STATE.count > 1


def _check_equal(facts: Mapping[str, str]) -> None:
    """Checks what the processes must have in common before they exchange arrays."""
    facts = {
        **facts,
        "the number of devices": str(jax.local_device_count()),
        "the kind of devices": jax.local_devices()[0].device_kind,
        "the version of JAX": jax.__version__,
    }
    STATE.client.key_value_set(f"tl/facts/{STATE.index}", json.dumps(facts))
    for i in range(STATE.count):
        text = STATE.client.blocking_key_value_get(f"tl/facts/{i}", int(JOIN * 1000))
        for what, value in json.loads(text).items():
            if value != facts.get(what):
                raise ValueError(
                    f"processes {STATE.index} and {i} differ in {what}: got {facts.get(what)} and "
                    f"{value}; start all with one command, the same software and as many devices"
                )


def _addresses() -> tuple[str | None, int | None, int | None, Any]:
    """Address of process 0, number of processes, number of this one, its devices; None: unknown."""
    values = {
        name: os.environ.get(f"JAX_{name.upper()}") for name in ("num_processes", "process_id")
    }
    wrong = [
        f"JAX_{name.upper()}={value!r}"
        for name, value in values.items()
        if value and not value.isdigit()
    ]
    if wrong or len({value is None for value in values.values()}) > 1:
        raise ValueError(
            f"wrong environment: got {', '.join(wrong) or values}, expected JAX_NUM_PROCESSES "
            "and JAX_PROCESS_ID, both as numbers, or neither"
        )
    number, rank = (int(value) if value else None for value in values.values())
    address = os.environ.get("JAX_COORDINATOR_ADDRESS") or None
    if address and number is not None:
        return address, number, rank, None
    try:
        from jax._src.clusters import ClusterEnv

        return ClusterEnv.auto_detect_unset_distributed_params(
            address, number, rank, None, None, int(JOIN)
        )
    except Exception:  # not of JAX's public interface: it then detects them itself
        return address, number, rank, None


def _meet(address: str, number: int, rank: int, seconds: float) -> None:
    """Waits until all processes have started, at the port that JAX's service uses afterwards.

    JAX itself waits without a word and ends the process.

    Raises:
      ValueError: one did not start; names it.
    """
    host, _, port = address.rpartition(":")
    until = time.monotonic() + seconds
    waits = lambda missing: ValueError(
        f"process {rank} of {number} waits for process{'es' * (len(missing) > 1)} "
        f"{', '.join(map(str, missing))}, which did not start within {seconds:.0f} s; start the "
        "command on every machine"
    )
    if rank == 0:
        present: dict[int, socket.socket] = {}
        try:
            listener = socket.create_server(("", int(port)))
        except OSError as error:
            raise ValueError(
                f"process 0 cannot listen at {address} ({error.strerror}); give another port in "
                "JAX_COORDINATOR_ADDRESS"
            ) from error
        with listener, contextlib.ExitStack() as stack:
            while len(present) < number - 1 and (left := until - time.monotonic()) > 0:
                listener.settimeout(left)
                with contextlib.suppress(OSError, ValueError):
                    connection = stack.enter_context(listener.accept()[0])
                    connection.settimeout(5)
                    present[int(connection.makefile().readline())] = connection
            missing = [i for i in range(1, number) if i not in present]
            for connection in present.values():
                with contextlib.suppress(OSError):
                    connection.sendall(f"{json.dumps(missing)}\n".encode())
        if missing:
            raise waits(missing)
        return
    answer = ""
    while not answer and (left := until - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, int(port)), timeout=min(left, 5)) as connection:
                connection.sendall(f"{rank}\n".encode())
                connection.settimeout(seconds + 5)  # process 0 decides
                answer = connection.makefile().readline()
        except OSError:
            time.sleep(0.2)
    missing = json.loads(answer) if answer else [0]
    if missing:
        raise waits(missing)


@functools.cache
def _say_before_abort() -> None:
    """Ends this process with a sentence where JAX's runtime would abort it without one.

    It does so when process 0, which runs its service, is gone.
    """
    other = "process 0" if STATE.index else "the other processes"
    text = f"{name()} stops, because JAX has lost the connection to {other}\n".encode()

    def end(number: int) -> None:
        os.write(2, text)
        os._exit(PREEMPTED if signalled() else FAILED)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    _say_before_abort.handler = handler  # type: ignore[attr-defined]  # keeps it alive
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)
