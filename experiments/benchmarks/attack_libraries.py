"""Attacks of foolbox and torchattacks on the same weights, with one signature for all libraries.

torch, foolbox and torchattacks are imported inside the functions. `peers` measures the attacks.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import sources
from tl import attacks, backbones, inference, models
from tl.attacks import goals, minimum_norm, norms
from tl.evaluation.timing import spent
from tl.models import Classifier
from tl.pixels import PixelSpec
from tl.types import Variables
from tl.weights import readers, store

LIBRARIES = ("foolbox", "torchattacks")
ON_JAX = "foolbox on JAX"
# torchattacks' names of the norms.
NORMS = {"linf": "Linf", "l2": "L2"}
# Number of target classes of APGD-T and FAB-T, in tl as in AutoAttack (arXiv:2003.01690,
# section 6).
TARGETS = 9
# Publisher of the packaged files with a head whose tensors are in the order of timm's.
IN_ORDER = "lukemelas"
# Largest difference of the logits, in units of the largest logit: float32 through fifty layers.
AGREE = 1e-4


class Twin(NamedTuple):
    """One network in both libraries.

    Attributes:
      clf, variables: tl's network with BatchNorm folded; variables are on the device.
      module: torch's network, frozen, in eval mode: f32[b 3 h w] in [0, 1] -> logits.
      weights: "packaged", or "random" where no package has weights.
      library: "torchvision" or "timm", the origin of torch's network.
    """

    clf: Classifier
    variables: Variables
    module: Any
    weights: str
    library: str = ""


class Budget(NamedTuple):
    """Steps of PGD, steps of APGD and FAB, and queries of Square, equal for every library."""

    steps: int = 40
    apgd_steps: int = 50
    queries: int = 1000
    seed: int = 0


Run = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`(images01 f32[n h w 3], labels i[n]) -> adversarial examples f32[n h w 3]`, on the host."""


# ---- the network in both libraries ----


def twin(
    arch: str, *, weights: Literal["package", "random"] = "package", size: int | None = None
) -> Twin:
    """The network in both libraries.

    Args:
      arch: timm's name; torchvision or timm must have it too.
      weights: "package" for the torch file of an installed package, or seeded weights if there is
        none; "random" for seeded weights.
      size: side of the images; default: the weights' own.

    Raises:
      ValueError: unknown name, torch is not installed, or neither library has the network.
    """
    row = store.packaged_row([form.name for form in backbones.forms(arch)], "")
    usable = row is not None and row.source == IN_ORDER and store.installed(row)
    row = row if usable and weights == "package" else None
    name = row.arch if row else backbones.get(arch).name
    calls = backbones.get(name).sources
    library = next((library for library in ("torchvision", "timm") if calls.get(library)), "")
    if not library:
        raise ValueError(f"neither torchvision nor timm has {name}; choose another `arch`")
    network = sources.make(library, calls[library])
    if row:
        sources.fill_in_order(network, readers.read(store.verified(row)))
        clf, variables = models.load(name, weights="package")
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = sources.save(sources.fill(network), Path(folder) / f"{name}.pth", "zip")
            clf, variables = models.load(name, weights=path)
    clf = clf if size is None else clf.with_pixels(size=size)
    variables = jax.device_put(clf.fold_batch_norm(variables))
    module = as_module(network.model, clf.pixels)
    return Twin(clf, variables, module, "packaged" if row else "random", library)


def torch_device() -> str:
    """Torch's device: the GPU if JAX and torch both have it, else the CPU."""
    import torch

    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def precision(word: Literal["float32", "tf32"]) -> Iterator[None]:
    """Sets the precision of products and convolutions on a GPU in both libraries.

    TF32 has 10 bits of fraction; CPUs do not have it. By default both libraries use TF32 for
    convolutions, and torch uses float32 for products.
    """
    with sources.imported("torchvision"):
        import torch
    switches: Any = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    names = {"float32": "float32", "tf32": "tensorfloat32"}
    try:
        for switch in switches:
            switch.allow_tf32 = word == "tf32"
        on_gpu = jax.default_backend() == "gpu"
        with jax.default_matmul_precision(names[word] if on_gpu else None):
            yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed


def as_module(model: Any, spec: PixelSpec) -> Any:
    """A frozen torch network on images in [0, 1], in the faster of torch's two memory formats."""
    import torch

    class Normalized(torch.nn.Module):
        def __init__(self, memory_format: Any) -> None:
            super().__init__()
            self.model, self.memory_format = model, memory_format
            for name in ("mean", "std"):
                values = torch.tensor(getattr(spec, name), dtype=torch.float32)
                self.register_buffer(name, values.view(1, -1, 1, 1))

        def forward(self, x: Any) -> Any:
            x = contiguous_gradient(x)
            x = x.flip(1) if spec.channels == "bgr" else x
            x = (x - self.mean) / self.std
            return self.model(x.contiguous(memory_format=self.memory_format))

    def placed(memory_format: Any) -> Any:
        module = Normalized(memory_format).eval().requires_grad_(False)
        return module.to(device=torch_device()).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]

    def gradient_seconds(module: Any) -> float:
        x = torch.full((4, 3, spec.size, spec.size), 0.5, device=torch_device(), requires_grad=True)
        return spent(lambda: torch.autograd.grad(module(x).sum(), x)[0].cpu())[0]

    formats = (torch.contiguous_format, torch.channels_last)
    times = [min(gradient_seconds(module) for _ in range(3)) for module in map(placed, formats)]
    return placed(formats[int(np.argmin(times))])


def contiguous_gradient(x: Any) -> Any:
    """x; its gradient is made contiguous, because torchattacks calls `view` on it."""
    x = x.view_as(x)
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient.contiguous())
    return x


def to_torch(images01: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
    """Contiguous tensors f32[n 3 h w] and i64[n] on torch's device."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(images01.transpose(0, 3, 1, 2)))
    return x.to(torch_device()), torch.from_numpy(np.asarray(labels, np.int64)).to(torch_device())


def from_torch(x: Any) -> np.ndarray:
    return np.ascontiguousarray(x.detach().cpu().numpy().transpose(0, 2, 3, 1))


def torch_logits(net: Twin, images01: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
    """Logits f32[n k] of torch's network."""
    import torch

    def logits(images01: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return net.module(to_torch(images01, np.zeros(0))[0]).cpu().numpy()

    size = min(batch_size, len(images01))
    return inference.in_batches(logits, images01, batch_size=size)


def tl_logits(net: Twin, images01: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
    """Logits f32[n k] of tl's network, from another program than the attack's."""
    size = min(batch_size, len(images01))
    return inference.predict_logits(net.clf, net.variables, images01, batch_size=size)


def disagreement(net: Twin, images01: np.ndarray) -> float:
    """Largest difference of the two networks' logits in float32, in units of the largest logit.

    Raises:
      ValueError: it is above `AGREE`: the two networks are not the same.
    """
    with precision("float32"):
        ours, theirs = tl_logits(net, images01), torch_logits(net, images01)
    error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not error <= AGREE:
        raise ValueError(
            f"the logits of torch and tl differ: got {error:.1e} of the largest, expected at most "
            f"{AGREE:.0e}"
        )
    return error


# ---- attacks within a ball ----


def tl_attack(
    name: str, net: Twin, norm: str, budget: Budget, *, slots: int = 0, **options: Any
) -> Callable[[float], Run]:
    """tl's attack for any eps, without rounding to 8 bits; all radii share one program."""
    if name == "autoattack":
        options |= {"steps": budget.apgd_steps, "queries": budget.queries}
    else:
        steps = {"pgd": budget.steps, "square": budget.queries}
        options["steps"] = steps.get(name, budget.apgd_steps)
    ball: dict[str, Any] = {"norm": norms.get(norm), "goal": goals.UNTARGETED, "eight_bit": False}
    search = attacks.get(name)(**options)
    attack = attacks.make(search, net.clf.logits, slots=slots or None, **ball)

    def at(eps: float) -> Run:
        def run(images01: np.ndarray, labels: np.ndarray) -> np.ndarray:
            mask, key = label_mask(net, labels), jax.random.key(budget.seed)
            return np.asarray(attack(net.variables, key, images01, mask, eps=eps).images)

        return run

    return at


def label_mask(net: Twin, labels: np.ndarray) -> Any:
    """The class mask of one label per image."""
    classes = len(inference.class_table(net.clf))
    return goals.class_mask([(int(label),) for label in labels], classes)


def peer_attack(
    library: str, name: str, net: Twin, norm: str, eps: float, budget: Budget
) -> Run | None:
    """The same attack of another library; None if the library does not have it.

    PGD has tl's step size, 2.5 eps / steps. torchattacks' AutoAttack gets the steps and queries of
    the budget instead of its own (10 steps; the paper has 100).
    """
    make = _torchattacks if library == "torchattacks" else _foolbox
    return make(library, name, net, norm, eps, budget)


def jax_model(foolbox: Any, net: Twin) -> Any:
    """tl's network, jitted, as a foolbox model."""
    forward = jax.jit(net.clf.logits)
    return foolbox.JAXModel(lambda x: forward(net.variables, x), bounds=(0, 1))


def _foolbox(
    library: str, name: str, net: Twin, norm: str, eps: float, budget: Budget
) -> Run | None:
    kinds = {("pgd", "linf"): "LinfPGD", ("pgd", "l2"): "L2PGD"}
    if (name, norm) not in kinds:
        return None
    with sources.imported("foolbox") as foolbox:
        attack = getattr(foolbox.attacks, kinds[name, norm])(
            rel_stepsize=2.5 / budget.steps, steps=budget.steps, random_start=True
        )
        if library == ON_JAX:
            model = jax_model(foolbox, net)
        else:
            model = foolbox.PyTorchModel(net.module, bounds=(0, 1), device=torch_device())

    def on_jax(images01: np.ndarray, labels: np.ndarray) -> np.ndarray:
        with sources.imported("foolbox"):
            result = attack(model, jnp.asarray(images01), jnp.asarray(labels), epsilons=eps)
            return np.asarray(result[1])

    def on_torch(images01: np.ndarray, labels: np.ndarray) -> np.ndarray:
        import torch

        torch.manual_seed(budget.seed)
        return from_torch(attack(model, *to_torch(images01, labels), epsilons=eps)[1])

    return on_jax if library == ON_JAX else on_torch


def _torchattacks(
    library: str, name: str, net: Twin, norm: str, eps: float, budget: Budget
) -> Run | None:
    import torch

    shared: dict[str, Any] = {"norm": NORMS[norm], "eps": eps, "seed": budget.seed}
    # `n_classes` is only used as the number of targets plus one.
    multi: dict[str, Any] = {"steps": budget.apgd_steps, "n_classes": TARGETS + 1, **shared}
    pgd = {"eps": eps, "alpha": 2.5 * eps / budget.steps, "steps": budget.steps}
    table: dict[str, tuple[str, dict[str, Any]]] = {
        "pgd": ("PGD" if norm == "linf" else "PGDL2", pgd),
        "apgd_ce": ("APGD", {"steps": budget.apgd_steps, "loss": "ce", **shared}),
        "apgd_dlr": ("APGD", {"steps": budget.apgd_steps, "loss": "dlr", **shared}),
        "apgd_t": ("APGDT", multi),
        "fab": ("FAB", {"multi_targeted": True, **multi}),
        "square": ("Square", {"n_queries": budget.queries, **shared}),
        "autoattack": ("AutoAttack", {"n_classes": TARGETS + 1, **shared}),
    }
    if name not in table:
        return None
    kind, options = table[name]
    with sources.imported(library) as torchattacks:
        attack = getattr(torchattacks, kind)(net.module, **options)
    for part in attack._autoattack.attacks if name == "autoattack" else ():
        if hasattr(part, "steps"):
            part.steps = budget.apgd_steps
        else:
            part.n_queries = budget.queries

    def run(images01: np.ndarray, labels: np.ndarray) -> np.ndarray:
        torch.manual_seed(budget.seed)
        return from_torch(attack(*to_torch(images01, labels)))

    return run


# ---- nearest adversarial examples ----

SEARCHES = {
    ("deepfool", "l2"): "L2DeepFoolAttack",
    ("deepfool", "linf"): "LinfDeepFoolAttack",
    ("cw", "l2"): "L2CarliniWagnerAttack",
}
"""(tl's name, norm) -> foolbox's name."""


def tl_search(name: str, net: Twin, norm: str, steps: int, *, seed: int = 0) -> Run:
    """tl's DeepFool or Carlini-Wagner: nearest examples, or the original if none was found."""
    search = {"deepfool": minimum_norm.deepfool, "cw": minimum_norm.cw}[name](steps=steps)
    find = attacks.find(search, net.clf.logits, norm=norms.get(norm), goal=goals.UNTARGETED)
    return lambda images01, labels: np.asarray(
        find(net.variables, jax.random.key(seed), images01, label_mask(net, labels)).images
    )


def peer_search(name: str, net: Twin, norm: str, steps: int) -> Run:
    """foolbox's search on torch, with foolbox's defaults, which are also tl's.

    DeepFool: 10 candidates, overshoot 0.02. Carlini-Wagner: 9 searches, learning rate 0.01.
    """
    with sources.imported("foolbox") as foolbox:
        attack = getattr(foolbox.attacks, SEARCHES[name, norm])(steps=steps)
        model = foolbox.PyTorchModel(net.module, bounds=(0, 1), device=torch_device())
    return lambda images01, labels: from_torch(
        attack(model, *to_torch(images01, labels), epsilons=None)[0]
    )
