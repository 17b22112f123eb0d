"""Several processes: how they find each other, exchange values, fail and are preempted.

Every process runs the same program with the same flags. They divide images between them, exchange
the results (`gather`), and process 0 alone writes files (`first`, `on_first`). JAX's distributed
runtime connects them; on one process every function here is the identity.

`supervise` runs the work of a command in a thread. Its main thread handles Ctrl-C and SIGTERM,
reports a failure to the other processes and reads theirs, and writes the stacks of all threads to
a file if there is no progress for ten minutes. Its exit statuses are `PREEMPTED` and `FAILED`.

Preemption: SIGTERM ends a process at once if there is nothing to save. In a `with deferred():`
block it is the work that asks, with `Agreement`, so that all processes save the same step.

This module does not shard arrays over devices: `tl.devices` does.
"""

from __future__ import annotations

from tl.hosts.exchange import Agreement, gather, on_first, shares
from tl.hosts.joining import join, several
from tl.hosts.state import (
    FAILED,
    PREEMPTED,
    Preempted,
    advance,
    count,
    deferred,
    first,
    index,
    name,
    signalled,
    stop_together,
)
from tl.hosts.supervisor import announce, leave, supervise, wait_for_reason

__all__ = [
    "FAILED",
    "PREEMPTED",
    "Agreement",
    "Preempted",
    "advance",
    "announce",
    "count",
    "deferred",
    "first",
    "gather",
    "index",
    "join",
    "leave",
    "name",
    "on_first",
    "several",
    "shares",
    "signalled",
    "stop_together",
    "supervise",
    "wait_for_reason",
]
