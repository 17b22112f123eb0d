"""Images a second of a forward pass and of an attack step, beside torch where it is installed, as ratios of one run.

  ./launch.sh bench
  ./launch.sh bench --what=attack --arch=resnet50,vgg16 --batch_size=16

Weights are random: speed does not depend on them. The two frameworks take turns, and each figure is the median of rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import _common as common
from tl import backbones, classifier, losses, report, runlog

FLAGS = flags.FLAGS
WHAT = {"forward": "forward pass", "attack": "attack step: forward, gradient on the input, sign, clip"}
TORCH = {  # how the peer is made: torchvision's function, or timm's name
    "vgg16": ("torchvision", "vgg16"),
    "resnet18": ("torchvision", "resnet18"),
    "resnet50": ("torchvision", "resnet50"),
    "mobilenetv2_100": ("torchvision", "mobilenet_v2"),
    "efficientnet_lite0": ("timm", "tf_efficientnet_lite0"),
}


def define_flags() -> None:
    flags.DEFINE_list("arch", ",".join(backbones.names()), "Architectures.")
    flags.DEFINE_multi_enum("what", list(WHAT), list(WHAT), "What is timed.")
    flags.DEFINE_integer("batch_size", 16, "Images a call.", lower_bound=1)
    flags.DEFINE_integer("size", 224, "Side, in pixels.", lower_bound=32)
    flags.DEFINE_integer("rounds", 5, "Timed rounds; the median counts.", lower_bound=1)
    flags.DEFINE_list("peers", "torch", "Frameworks to compare with, where installed; empty for none.")


def ours(arch: str, what: str, images01: np.ndarray) -> Callable[[], Any]:
    """A call that does the work once and waits for it."""
    clf, variables = classifier.load(arch, weights="random")
    variables, x = jax.device_put(variables), jnp.asarray(images01)
    labels = jnp.zeros(len(images01), jnp.int32)

    def step(variables: Any, x: jax.Array) -> jax.Array:
        if what == "forward":
            return clf.logits(variables, x)
        gradient = jax.grad(lambda x: jnp.sum(losses.cross_entropy(clf.logits(variables, x), labels)))(x)
        return jnp.clip(x + jnp.sign(gradient) / 255, 0.0, 1.0)

    compiled = jax.jit(step).lower(variables, x).compile()
    return lambda: jax.block_until_ready(compiled(variables, x))


def torch_model(arch: str) -> Any:
    """The same architecture in torch, evaluation mode; on a torch without vision operators torchvision still imports."""
    import torch

    try:
        import torchvision
    except RuntimeError:  # a CPU build of torch lacks the two operators that torchvision looks for
        stub = torch.library.Library("torchvision", "DEF")
        for signature in (
            "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        ):
            stub.define(signature)
        import torchvision
    library, name = TORCH[arch]
    if library == "torchvision":
        return getattr(torchvision.models, name)(weights=None).eval()
    import timm

    return timm.create_model(name, pretrained=False).eval()


def theirs(arch: str, what: str, images01: np.ndarray) -> list[Callable[[], Any]]:
    """The same work in torch, once for each memory format; the faster one counts."""
    import torch

    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    labels = torch.zeros(len(images01), dtype=torch.long)
    calls = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = torch_model(arch).to(memory_format=memory_format)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        x = torch.tensor(images01.transpose(0, 3, 1, 2).copy()).contiguous(memory_format=memory_format)

        def call(model: Any = model, x: Any = x) -> Any:
            if what == "forward":
                with torch.inference_mode():
                    return model((x - mean) / std)
            x = x.detach().requires_grad_(True)
            loss = torch.nn.functional.cross_entropy(model((x - mean) / std), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
            return torch.clamp(x.detach() + gradient.sign() / 255, 0, 1)

        calls.append(call)
    return calls


def seconds(calls: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each call in each round; calls take turns, so that a noisy neighbour meets them all."""
    for call in calls:
        call()
        call()
    spent: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, times in zip(calls, spent, strict=True):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    return spent


def main(run: runlog.Run) -> None:
    names = [backbones.get(arch).name for arch in FLAGS.arch]
    peers = []
    if "torch" in FLAGS.peers:
        try:
            import torch

            peers = [f"torch {torch.__version__}"]
        except ImportError:
            print("torch is not installed: no peer (pip install 'tl[parity]')")
    shape = (FLAGS.batch_size, FLAGS.size, FLAGS.size, 3)
    images01 = np.random.default_rng(FLAGS.seed).random(shape, np.float32)
    rows = []
    for arch in names:
        for what in dict.fromkeys(FLAGS.what):
            calls = [ours(arch, what, images01), *(theirs(arch, what, images01) if peers else [])]
            spent = seconds(calls, FLAGS.rounds)
            medians = [float(np.median(times)) for times in spent]
            row: dict[str, Any] = {
                "what": what,
                "arch": arch,
                "ours": len(images01) / medians[0],
                "peer": None,
                "peer_value": None,
                "ratio": None,
            }
            row["spread"] = [len(images01) / max(spent[0]), len(images01) / min(spent[0])]
            if peers:
                best = min(medians[1:])
                row |= {"peer": peers[0], "peer_value": len(images01) / best, "ratio": best / medians[0]}
            rows.append(row)
            run.log(row)
            beside = f"   {row['peer']} {row['peer_value']:.1f}   ratio {row['ratio']:.2f}" if peers else ""
            print(f"{arch:20s} {what:8s} {row['ours']:7.1f} images/s{beside}", flush=True)
    header = ("what", "architecture", "images/s", "slowest to fastest round", "peer", "images/s of the peer", "ratio")
    cells = [
        (
            WHAT[row["what"]],
            row["arch"],
            f"{row['ours']:.1f}",
            f"{row['spread'][0]:.1f} to {row['spread'][1]:.1f}",
            row["peer"] or "-",
            f"{row['peer_value']:.1f}" if peers else "-",
            f"{row['ratio']:.2f}" if peers else "-",
        )
        for row in rows
    ]
    table = report.table(cells, header)
    device = jax.devices()[0].device_kind
    lead = f"Batch {FLAGS.batch_size} at {FLAGS.size} pixels, float32, on {device}. A ratio above 1 means that tl is faster."
    run.finish(
        {"rows": rows}, report.page("Speed", lead, [report.section("Images a second", table)], facts=run.facts())
    )
    print(f"{run.workdir / 'report.html'}")


if __name__ == "__main__":
    common.launch("bench", main, define_flags)
