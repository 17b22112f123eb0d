"""Explanations compared with Captum's on the same weights: speed, and peak memory.

`bench` measures them. torch and Captum are imported inside the functions.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import attack_libraries, sources
from experiments.benchmarks.attack_libraries import Twin
from tl import devices, explain, inference
from tl.evaluation import timing
from tl.evaluation.divergence import error
from tl.evaluation.timing import Row
from tl.explain import base
from tl.weights import tables

# The class whose logit is explained: any, because it does not change the work.
CLASS = 0
# Nodes of integrated gradients in the measurement of memory.
NODES = (8, 16, 32, 64, 128, 256)
# Captum's `internal_batch_size` there.
WAYS = {"all nodes at once": None, "10 nodes at a time": 10}


# ---- the methods in torch, with the settings of `tl` ----


def captum_ig(net: Twin, x: Any, batch_size: int | None, nodes: int = 50) -> Any:
    """Integrated gradients of f32[1 3 h w], f32[1 h w]."""
    from captum import attr

    options: dict[str, Any] = {"n_steps": nodes, "method": "gausslegendre", "baselines": 0.0}
    method: Any = attr.IntegratedGradients(net.module)
    return method.attribute(x, target=CLASS, internal_batch_size=batch_size, **options).sum(1)


def captum_gradcam(net: Twin, x: Any, batch_size: int) -> Any:
    """Grad-CAM of the last stage without ReLU for f32[b 3 h w], f32[b h w]; all images at once."""
    from captum import attr

    spec = net.clf.spec
    ends = tables.sources(spec)[net.library].endpoints(spec.module)
    layer = dict(net.module.model.named_modules())[ends[spec.endpoints[-1]]]
    maps: Any = attr.LayerGradCam(net.module, layer).attribute(x, target=CLASS)
    return attr.LayerAttribution.interpolate(maps, x.shape[2:], "bilinear")[:, 0]


def captum_occlusion(net: Twin, x: Any, batch_size: int) -> Any:
    """Occlusion of f32[1 3 h w], f32[1 h w]."""
    from captum import attr

    side = x.shape[-1] // 8
    window, strides = (3, side, side), (3, side // 2, side // 2)
    options: dict[str, Any] = {"baselines": 0.5, "perturbations_per_eval": batch_size}
    method = attr.Occlusion(net.module)
    return method.attribute(x, window, strides=strides, target=CLASS, **options)[:, 0]


def torch_rise(net: Twin, x: Any, batch_size: int, masks: int, grid: int = 7) -> Any:
    """RISE of f32[1 3 h w], f32[1 h w], as in the paper's code; Captum does not have it."""
    import torch

    h, w = x.shape[2:]
    cell = -(-h // grid), -(-w // grid)
    size = [(grid + 1) * n for n in cell]
    total = torch.zeros(h, w, device=x.device)
    with torch.inference_mode():
        for first in range(0, masks, batch_size):
            n = min(batch_size, masks - first)
            cells = (torch.rand(n, 1, grid, grid, device=x.device) < 0.5).float()
            large = torch.nn.functional.interpolate(cells, size=size, mode="bilinear")
            corners = zip(*(torch.randint(c, (n,)).tolist() for c in cell), strict=True)
            shifted = [m[:, i : i + h, j : j + w] for m, (i, j) in zip(large, corners, strict=True)]
            drawn = torch.stack(shifted)
            shares = net.module(0.5 + drawn * (x - 0.5)).softmax(1)[:, CLASS]
            total += torch.einsum("n,nhw->hw", shares, drawn[:, 0])
    return total[None] / (0.5 * masks)


class Comparison(NamedTuple):
    """A method in both libraries.

    Attributes:
      words: the name of the method in the table.
      theirs: `(net, images f32[b 3 h w], batch size, **options) -> maps f32[b h w]` in torch.
      sizes: batch sizes in torch, of which the fastest counts.
      faster: how many times as fast tl should be.
      images: number of images.
    """

    words: str
    theirs: Callable[..., Any]
    sizes: Sequence[int]
    faster: float
    images: int = 1


METHODS = {
    "ig": Comparison("integrated gradients, 50 nodes", captum_ig, (10, 25, 50), 1.5),
    "gradcam": Comparison("Grad-CAM", captum_gradcam, (16,), 1.5, images=16),
    "occlusion": Comparison("occlusion", captum_occlusion, (8, 16, 32), 2.0),
    "rise": Comparison("RISE", torch_rise, (8, 16, 32), 2.0),
}


def method(name: str, **options: Any) -> base.Method:
    """The method of `tl`; Grad-CAM without ReLU, because a map of zeros compares nothing."""
    return explain.get(name)(**options, **({"relu": False} if name == "gradcam" else {}))


# ---- speed ----


def captum() -> str:
    """Name and version of Captum; raises ValueError if it is not installed."""
    with sources.imported("captum") as library:
        return f"captum {library.__version__}"


def problem(net: Twin, n: int) -> tuple[base.Rows, Any]:
    """n images of noise with the class that is explained, and the same images for torch."""
    side = net.clf.pixels.size
    images01 = np.random.default_rng(0).random((n, side, side, 3), np.float32)
    targets = np.zeros((n, len(inference.class_table(net.clf))), np.float32)
    targets[:, CLASS] = 1.0
    rows = base.Rows(jax.random.split(jax.random.key(0), n), jnp.asarray(images01), targets)
    return rows, attack_libraries.to_torch(images01, np.zeros(0))[0]


def speed(arch: str, methods: Sequence[str], size: int, masks: int, rounds: int) -> Iterator[Row]:
    """Explained images per second: one row per method. The libraries take turns."""
    version, net = captum(), attack_libraries.twin(arch, size=size)
    for name in methods:
        words, theirs, sizes, faster, n = METHODS[name]
        rows, x = problem(net, n)
        options = {"masks": masks} if name == "rise" else {}
        program = explain.make(method(name, **options), net.clf)
        ours = functools.partial(program, net.variables, *rows)
        calls: dict[str, Any] = {
            f"{version}, {batch} at a time": functools.partial(theirs, net, x, batch, **options)
            for batch in sizes
        }
        both = {"tl": lambda ours=ours: np.asarray(ours()), **calls}
        rates = timing.rates(both, rounds, n, warm_up=1)
        best = max(calls, key=lambda name: np.median(rates[name]))
        row = timing.rate_row(words, net.clf.arch, rates["tl"], weights=net.weights)
        row = timing.compared(row, best, rates[best])
        if name == "rise":  # its masks are random
            row["what"] += f", {masks} masks"
        else:
            row["map_error"] = error(ours(), calls[best]().detach().cpu().numpy())
        yield row | timing.goal(f"at least {faster:g} times", row["ratio"] >= faster)


# ---- memory ----

CHILD = """
import sys
from experiments.benchmarks import explanations
explanations.print_peaks(*sys.argv[1:])
"""


def print_peaks(arch: str, size: str, way: str) -> None:
    """Prints `timing.peak_mb` before and after integrated gradients with each of `NODES`.

    A number of nodes that would not fit into the free memory is null; `way` is a key of `WAYS` or
    "tl".
    """
    net = attack_libraries.twin(arch, size=int(size))
    rows, x = problem(net, 1)
    peaks: list[float | None] = [timing.peak_mb()]
    growth = 0.0
    for nodes in NODES:
        if 2e6 * 1.5 * growth > (devices.memory_limit() or np.inf):  # twice the nodes, a reserve
            peaks.append(None)
            continue
        before = timing.peak_mb()
        if way == "tl":
            np.asarray(explain.make(explain.get("ig")(nodes=nodes), net.clf)(net.variables, *rows))
        else:
            captum_ig(net, x, WAYS[way], nodes)
        peaks.append(timing.peak_mb())
        growth = timing.peak_mb() - before
    print(json.dumps(peaks))


def memory(arch: str, size: int) -> Iterator[Row]:
    """Peak memory of integrated gradients: one row per number of nodes and way of Captum.

    `ours` and `peer_value` are the peak resident memory of a process, with everything that it
    loaded and compiled; `program_mb` is the memory of the compiled program.
    """
    version, folder = captum(), Path(__file__).parents[2]
    child = functools.partial(timing.run_child, CHILD, arch, size, folder=folder)
    peaks = {way: child(way) for way in ("tl", *WAYS)}
    net = attack_libraries.twin(arch, size=size)
    rows, first = problem(net, 1)[0], 0.0
    for i, nodes in enumerate(NODES, start=1):
        program: Any = explain.make(explain.get("ig")(nodes=nodes), net.clf).program
        needed = devices.memory_needed(program.lower(net.variables, rows)) / 1e6
        row: Row = {"what": f"peak memory, {nodes} nodes", "arch": net.clf.arch, "nodes": nodes}
        row |= {"unit": "MB", "ours": peaks["tl"][i], "program_mb": needed}
        first = first or needed
        row |= timing.goal(f"program at most 1.05 x {first:.0f} MB", needed <= 1.05 * first)
        for way in WAYS:
            values = [value for value in peaks[way][i : i + 1] if value]
            yield timing.compared(row, f"{version}, {way}", values)
