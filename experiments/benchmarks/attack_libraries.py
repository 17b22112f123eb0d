"""Other people's attacks on `tl`'s networks: the same weights in torch, and foolbox and torchattacks behind one signature.

torch, foolbox and torchattacks are imported inside the functions. Nothing is measured here; `peers` does that.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import sources
from tl import attacks, backbones, inference, models
from tl.attacks import goals, minimum_norm, norms
from tl.models import Classifier
from tl.pixels import PixelSpec
from tl.types import Variables
from tl.weights import readers, store

INSTALL = {"foolbox": "pip install foolbox", "torchattacks": "pip install --no-deps torchattacks"}
LIBRARIES = tuple(INSTALL)
NORMS = {"linf": "Linf", "l2": "L2"}  # torchattacks' names of the norms
TARGETS = 9  # classes that APGD-T and FAB-T go for: AutoAttack's own number (arXiv:2003.01690, section 6), and tl's
IN_ORDER = "lukemelas"  # the packaged files with a head whose tensors stand in the order of timm's
AGREE = (
    1e-4  # of the largest logit, by which the two networks may differ: float32 through fifty layers
)


class Twin(NamedTuple):
    """One network twice.

    Attributes:
      clf, variables: ours, BatchNorm folded away, on the device.
      module: torch's, frozen, in evaluation mode: f32[b 3 h w] in [0, 1] -> logits; normalises inside.
      weights: "packaged", or "random" where no package has any.
    """

    clf: Classifier
    variables: Variables
    module: Any
    weights: str


class Budget(NamedTuple):
    """What an attack may spend, the same for every library: steps of PGD, of APGD and FAB, queries of Square."""

    steps: int = 40
    apgd_steps: int = 50
    queries: int = 1000
    seed: int = 0


Run = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`(images01 f32[n h w 3], labels i[n]) -> adversarial pictures f32[n h w 3]`, done when it returns."""


# --- libraries ---------------------------------------------------------------------------------------------------------


def installed(library: str) -> str:
    """Its name and version, or "" where it is not there, which is told in one sentence."""
    if library not in LIBRARIES:
        raise ValueError(f"unknown peer {library!r}; wanted some of {', '.join(LIBRARIES)}")
    try:
        with imported(library) as found:
            return f"{library} {found.__version__}"
    except ValueError as error:
        print(f"without {library}: {error}", flush=True)
        return ""


@contextlib.contextmanager
def imported(library: str) -> Iterator[Any]:
    """foolbox or torchattacks, their own warnings silenced, and JAX as permissive as it is out of the box, while they run."""
    with (
        warnings.catch_warnings(),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        warnings.simplefilter("ignore")
        try:
            if library == "foolbox":
                import foolbox as found
            else:
                sources.import_torchvision()
                import torchattacks as found
        except ImportError as error:
            raise ValueError(
                f"{library} is not installed ({error}); bring it with: {INSTALL[library]}"
            ) from None
        yield found


# --- the network, twice ------------------------------------------------------------------------------------------------


def twin(
    arch: str, *, weights: Literal["package", "random"] = "package", size: int | None = None
) -> Twin:
    """The network in both libraries.

    Args:
      arch: by timm's name; torchvision or timm must have it too.
      weights: "package" is an installed package's torch file, or seeded ones where there is none; "random" always seeded.
      size: of the pictures; default: the weights' own.

    Raises:
      ValueError: unknown name, torch's libraries are not there, or neither has the network.
    """
    row = store.packaged_row([form.name for form in backbones.forms(arch)], "")
    if row is not None and not (
        weights == "package" and row.source == IN_ORDER and store.installed(row)
    ):
        row = None
    name = row.arch if row else backbones.get(arch).name
    calls = backbones.get(name).sources
    library = next((library for library in ("torchvision", "timm") if calls.get(library)), "")
    if not library:
        raise ValueError(
            f"neither torchvision nor timm has {name}, so there is no torch network to attack beside it"
        )
    network = sources.make(library, calls[library])
    if row:
        sources.fill_in_order(network, readers.read(store.verified(row)))
        clf, variables = models.load(name, weights="package")
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = sources.save(sources.fill(network), Path(folder) / f"{name}.pth", "zip")
            clf, variables = models.load(name, weights=path)
    clf = clf if size is None else clf.with_pixels(size=size)
    module = as_module(network.model, clf.pixels)
    return Twin(
        clf, jax.device_put(clf.fold_batch_norm(variables)), module, "packaged" if row else "random"
    )


def torch_device() -> str:
    """Where torch computes: beside JAX on a GPU, if it can, else on the CPU."""
    import torch

    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def precision(word: Literal["float32", "tf32"]) -> Iterator[None]:
    """Both libraries' products and convolutions on a GPU in float32, or with TF32's 10 bits of fraction; a CPU knows no TF32.

    Left alone, either takes TF32 for convolutions, and torch float32 for products.
    """
    with sources.imported("torchvision"):
        import torch
    switches: Any = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    name = (
        {"float32": "float32", "tf32": "tensorfloat32"}[word]
        if jax.default_backend() == "gpu"
        else None
    )
    try:
        for switch in switches:
            switch.allow_tf32 = word == "tf32"
        with jax.default_matmul_precision(name):
            yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed


def as_module(model: Any, spec: PixelSpec) -> Any:
    """A torch network that takes [0, 1] pictures, frozen, in the faster of torch's two memory formats."""
    import torch

    class Normalised(torch.nn.Module):
        def __init__(self, memory_format: Any) -> None:
            super().__init__()
            self.model, self.memory_format = model, memory_format
            for name in ("mean", "std"):
                self.register_buffer(
                    name, torch.tensor(getattr(spec, name), dtype=torch.float32).view(1, -1, 1, 1)
                )

        def forward(self, x: Any) -> Any:
            x = contiguous_gradient(x)
            x = x.flip(1) if spec.channels == "bgr" else x
            return self.model(
                ((x - self.mean) / self.std).contiguous(memory_format=self.memory_format)
            )

    def placed(memory_format: Any) -> Any:
        module = Normalised(memory_format).eval().requires_grad_(False)
        return module.to(device=torch_device()).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]

    def gradient(module: Any) -> float:
        """Seconds of one."""
        x = torch.full((4, 3, spec.size, spec.size), 0.5, device=torch_device(), requires_grad=True)
        began = time.perf_counter()
        torch.autograd.grad(module(x).sum(), x)[0].cpu()
        return time.perf_counter() - began

    formats = (torch.contiguous_format, torch.channels_last)
    spent = [min(gradient(module) for _ in range(3)) for module in map(placed, formats)]
    return placed(formats[int(np.argmin(spent))])


def contiguous_gradient(x: Any) -> Any:
    """x, whose gradient lies in memory as x does: torchattacks takes `view`s of it."""
    import torch

    class Same(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            return gradient.contiguous()

    return Same.apply(x)


def to_torch(images01: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
    """Tensors f32[n 3 h w], contiguous as the libraries' `view` wants them, and i64[n], on torch's device."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(images01.transpose(0, 3, 1, 2))).to(torch_device())
    return x, torch.from_numpy(np.asarray(labels, np.int64)).to(torch_device())


def from_torch(x: Any) -> np.ndarray:
    return np.ascontiguousarray(x.detach().cpu().numpy().transpose(0, 2, 3, 1))


def torch_logits(net: Twin, images01: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
    """Logits f32[n k] of torch's network."""
    import torch

    found = []
    for start in range(0, len(images01), batch_size):
        x, _ = to_torch(images01[start : start + batch_size], np.zeros(0))
        with torch.inference_mode():
            found.append(net.module(x).cpu().numpy())
    return np.concatenate(found)


def our_logits(net: Twin, images01: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
    """Logits f32[n k] of our network, from a program of its own: what an attack says of its pictures plays no part."""
    return inference.predict_logits(
        net.clf, net.variables, images01, batch_size=min(batch_size, len(images01))
    )


def batches(n: int, size: int) -> list[np.ndarray]:
    """Row numbers in batches of one shape, the last filled up with its own; `[:n]` of what comes of them is everything."""
    size = min(size, n)
    return [np.resize(np.arange(start, min(start + size, n)), size) for start in range(0, n, size)]


def disagreement(net: Twin, images01: np.ndarray) -> float:
    """Largest difference of the two networks' logits in float32, as a share of the largest logit.

    Raises:
      ValueError: it is above `AGREE`: two networks were attacked, not one.
    """
    with precision("float32"):
        ours, theirs = our_logits(net, images01), torch_logits(net, images01)
    error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not error <= AGREE:
        raise ValueError(
            f"the logits of torch and tl differ by {error:.1e} of the largest; wanted at most {AGREE:.0e}"
        )
    return error


# --- attacks within a ball ---------------------------------------------------------------------------------------------


def ours(
    name: str, net: Twin, norm: str, budget: Budget, *, slots: int = 0, **options: Any
) -> Callable[[float], Run]:
    """Our attack for any eps, anywhere in the ball and not on the 8-bit grid; one compile for all radii."""
    if name == "autoattack":
        options |= {"steps": budget.apgd_steps, "queries": budget.queries}
    else:
        options["steps"] = {"pgd": budget.steps, "square": budget.queries}.get(
            name, budget.apgd_steps
        )
    search = attacks.get(name)(**options)
    attack = attacks.make(
        search,
        net.clf.logits,
        norm=norms.get(norm),
        goal=goals.UNTARGETED,
        eight_bit=False,
        slots=slots or None,
    )
    k = len(inference.class_table(net.clf))

    def at(eps: float) -> Run:
        def run(images01: np.ndarray, labels: np.ndarray) -> np.ndarray:
            class_mask = goals.class_mask([(int(label),) for label in labels], k)
            return np.asarray(
                attack(
                    net.variables, jax.random.key(budget.seed), images01, class_mask, eps=eps
                ).images
            )

        return run

    return at


def theirs(library: str, name: str, net: Twin, norm: str, eps: float, budget: Budget) -> Run | None:
    """The same attack of another library; None where it has none.

    PGD's step is ours, 2.5 eps / steps; torchattacks' AutoAttack gets our steps and queries in place of its own (10 steps,
    where the paper has 100).
    """
    make = {"foolbox": _foolbox, "foolbox on JAX": _foolbox_on_jax, "torchattacks": _torchattacks}[
        library
    ]
    return make(name, net, norm, eps, budget)


def _foolbox_attack(found: Any, name: str, norm: str, budget: Budget) -> Any:
    kinds = {("pgd", "linf"): "LinfPGD", ("pgd", "l2"): "L2PGD"}
    if (name, norm) not in kinds:
        return None
    kind = getattr(found.attacks, kinds[name, norm])
    return kind(rel_stepsize=2.5 / budget.steps, steps=budget.steps, random_start=True)


def _foolbox(name: str, net: Twin, norm: str, eps: float, budget: Budget) -> Run | None:
    import torch

    with imported("foolbox") as found:
        attack = _foolbox_attack(found, name, norm, budget)
        model = found.PyTorchModel(net.module, bounds=(0, 1), device=torch_device())

    def run(images01: np.ndarray, labels: np.ndarray) -> np.ndarray:
        torch.manual_seed(budget.seed)
        return from_torch(attack(model, *to_torch(images01, labels), epsilons=eps)[1])

    return run if attack else None


def jax_model(found: Any, net: Twin) -> Any:
    """Our network, jitted, as foolbox takes it."""
    return found.JAXModel(lambda x: inference.forward(net.clf)(net.variables, x), bounds=(0, 1))


def _foolbox_on_jax(name: str, net: Twin, norm: str, eps: float, budget: Budget) -> Run | None:
    with imported("foolbox") as found:
        attack, model = _foolbox_attack(found, name, norm, budget), jax_model(found, net)

    def run(images01: np.ndarray, labels: np.ndarray) -> np.ndarray:
        with imported("foolbox"):
            return np.asarray(
                attack(model, jnp.asarray(images01), jnp.asarray(labels), epsilons=eps)[1]
            )

    return run if attack else None


def _torchattacks(name: str, net: Twin, norm: str, eps: float, budget: Budget) -> Run | None:
    import torch

    shared = {"norm": NORMS[norm], "eps": eps, "seed": budget.seed}
    steps, classes = (
        budget.apgd_steps,
        TARGETS + 1,
    )  # its n_classes is only the number of targets and one

    def pgd(found: Any) -> Any:
        kind = found.PGD if norm == "linf" else found.PGDL2
        return kind(net.module, eps=eps, alpha=2.5 * eps / budget.steps, steps=budget.steps)

    def autoattack(found: Any) -> Any:
        attack = found.AutoAttack(net.module, n_classes=classes, **shared)
        for part in attack._autoattack.attacks:
            if hasattr(part, "steps"):
                part.steps = steps
            else:
                part.n_queries = budget.queries
        return attack

    makers: dict[str, Callable[[Any], Any]] = {
        "pgd": pgd,
        "apgd_ce": lambda found: found.APGD(net.module, steps=steps, loss="ce", **shared),
        "apgd_dlr": lambda found: found.APGD(net.module, steps=steps, loss="dlr", **shared),
        "apgd_t": lambda found: found.APGDT(net.module, steps=steps, n_classes=classes, **shared),
        "fab": lambda found: found.FAB(
            net.module, steps=steps, multi_targeted=True, n_classes=classes, **shared
        ),
        "square": lambda found: found.Square(net.module, n_queries=budget.queries, **shared),
        "autoattack": autoattack,
    }
    if name not in makers:
        return None
    with imported("torchattacks") as found:
        attack = makers[name](found)

    def run(images01: np.ndarray, labels: np.ndarray) -> np.ndarray:
        torch.manual_seed(budget.seed)
        return from_torch(attack(*to_torch(images01, labels)))

    return run


# --- nearest adversarial pictures --------------------------------------------------------------------------------------

SEARCHES = {("deepfool", "l2"): "L2DeepFoolAttack", ("deepfool", "linf"): "LinfDeepFoolAttack"}
SEARCHES |= {("cw", "l2"): "L2CarliniWagnerAttack"}
"""Ours, and foolbox's name of it."""


def our_search(name: str, net: Twin, norm: str, steps: int, *, seed: int = 0) -> Run:
    """The nearest picture by DeepFool or Carlini-Wagner; the clean picture where nothing was found."""
    search = {"deepfool": minimum_norm.deepfool, "cw": minimum_norm.cw}[name](steps=steps)
    find = attacks.find(search, net.clf.logits, norm=norms.get(norm), goal=goals.UNTARGETED)
    k = len(inference.class_table(net.clf))

    def run(images01: np.ndarray, labels: np.ndarray) -> np.ndarray:
        class_mask = goals.class_mask([(int(label),) for label in labels], k)
        return np.asarray(find(net.variables, jax.random.key(seed), images01, class_mask).images)

    return run


def their_search(name: str, net: Twin, norm: str, steps: int) -> Run:
    """foolbox's, on torch, with its own numbers, which are ours: 10 candidates, overshoot 0.02; 9 searches, rate 0.01."""
    with imported("foolbox") as found:
        attack = getattr(found.attacks, SEARCHES[name, norm])(steps=steps)
        model = found.PyTorchModel(net.module, bounds=(0, 1), device=torch_device())
    return lambda images01, labels: from_torch(
        attack(model, *to_torch(images01, labels), epsilons=None)[0]
    )
