"""Transferability of adversarial examples, and accuracy of an ensemble under attack.

All networks see the same square image, in which eps is measured. Each network, as source or as
judge, resizes the whole image to its own input size by its own rule; images are judged after an
8-bit PNG. Only images that all networks classify correctly are used, so every error is due to the
attack.

This module draws no page; `tl.pages.attack_transfer` does, from the result and the saved figures.

Reference: Liu et al. 2017, arXiv:1611.02770, section 5 (attacks on an ensemble transfer better).
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import attacks, data, devices, inference, metrics, pixels, reporting
from tl.attacks import ensemble, goals, norms
from tl.attacks.base import Logits
from tl.evaluation import paired
from tl.evaluation.attack_settings import OPTIONAL_STOP
from tl.evaluation.shared_images import Network, SharedImages, predict_all, resizing_logits

# Not the cross-entropy, which is flat in float32 where the source network is confidently wrong, and
# transfer needs steps beyond that point.
LOSS = "margin"
# Keys and labels of the result: all networks as an ensemble, and all but the one that judges.
TOGETHER, OTHERS = "all together", "all the others"
# Images per call of an attack, unless a device steps more at a time; chosen, not tuned.
BATCH = 20
# Images whose adversarial versions are saved for the page.
PAGE_IMAGES = 2
ATTACKS = OPTIONAL_STOP
"""Attacks that can continue after the source network is fooled, which transfer needs."""


class TransferSettings(NamedTuple):
    """How adversarial images are made.

    Attributes:
      attack: one of `ATTACKS`.
      norm: row of `norms.NORMS`.
      eps: radius in [0, 1] pixel units.
      steps: steps of the attack.
      seed: seed of the attack's random numbers.
    """

    attack: str = "mi_fgsm"
    norm: str = "linf"
    eps: float = 8 / 255
    steps: int = 10
    seed: int = 0


class Errors(NamedTuple):
    """Errors on one set of n images; True marks an image that is misclassified.

    Attributes:
      networks: bool[m n], of each network.
      ensemble: bool[n], of the mean of all networks' logits.
    """

    networks: np.ndarray
    ensemble: np.ndarray


class TransferEvaluation(NamedTuple):
    """Errors of every network on the images made on every other.

    Attributes:
      names: names of the m networks.
      settings, images: the attack, and the images that it started from.
      clean, noise: errors on the unchanged images, and on images with random noise of length eps.
      single: errors on the images made on each network.
      others: bool[m n], errors of each network on the images made on all others.
      adaptive: errors on the images made on the ensemble of all networks.
      labeled: whether the labels are ground truth; otherwise they are the common prediction of all
        networks.
      shown: descriptions of the saved figures.
    """

    names: list[str]
    settings: TransferSettings
    images: SharedImages
    clean: Errors
    noise: Errors
    single: list[Errors]
    others: np.ndarray
    adaptive: Errors
    labeled: bool
    shown: list[dict[str, Any]]

    def json(self) -> dict[str, Any]:
        """The JSON-ready result: the content of `result.json`."""
        by_network = lambda errors: dict(zip(self.names, map(error_rate, errors), strict=True))
        of_all = None
        if self.labeled:
            n = self.images.n_read
            rate = lambda wrong: error_rate(np.arange(n) < wrong) | {"n": n}
            of_all = dict(zip(self.names, map(rate, self.images.n_wrong), strict=True))
        return {
            "n": len(self.images.labels),
            "networks": self.names,
            "size": self.images.images.shape[1],
            "eps": self.settings.eps,
            "attack": self.settings.attack,
            "norm": self.settings.norm,
            "steps": self.settings.steps,
            "looked_at": self.images.n_read,
            "clean": by_network(self.clean.networks),
            "clean_ensemble": error_rate(self.clean.ensemble),
            "clean_of_all_looked_at": of_all,
            "matrix": {
                name: by_network(errors.networks)
                for name, errors in zip(self.names, self.single, strict=True)
            },
            "noise": by_network(self.noise.networks),
            "ensemble": {
                "mean": "log_probability",
                "of": OTHERS,
                "error": by_network(self.others),
            },
            "defence": self._defense()
            | {"members_of_adaptive": by_network(self.adaptive.networks)},
            "shown": self.shown,
            "skipped": self.images.skipped,
        }

    def _defense(self) -> dict[str, Any]:
        """Accuracy of the ensemble compared with its best member, each attacked as what it is.

        Without adaptive attacks an ensemble seems to protect (Tramer et al. 2020,
        arXiv:2002.08347).
        """
        alone = [errors.networks[i] for i, errors in enumerate(self.single)]
        best = min(alone, key=np.mean)
        one_member = [errors.ensemble for errors in self.single]
        worst = max(one_member, key=np.mean)
        adaptive = self.adaptive.ensemble
        return {
            "mean": "logits",
            "best_member_attacked_itself": accuracy(best),
            "one_member": dict(zip(self.names, map(accuracy, one_member), strict=True)),
            "adaptive": accuracy(adaptive),
            "protects": {
                "one_member": is_higher(worst, best),
                "adaptive": is_higher(adaptive, best),
            },
            "noise": accuracy(self.noise.ensemble),
        }


def error_rate(wrong: np.ndarray) -> dict[str, Any]:
    """Error rate of bool[n] with its 95 % Wilson interval."""
    return {
        "error": float(wrong.mean()),
        "ci95": list(metrics.wilson(int(wrong.sum()), len(wrong))),
    }


def accuracy(wrong: np.ndarray) -> dict[str, Any]:
    """Accuracy of bool[n] errors with its 95 % Wilson interval."""
    rate = error_rate(wrong)
    low, high = rate["ci95"]
    return {"accuracy": 1.0 - rate["error"], "ci95": [1.0 - high, 1.0 - low]}


def is_higher(wrong_a: np.ndarray, wrong_b: np.ndarray) -> bool:
    """Whether A has fewer errors bool[n] than B on the same images, by more than chance.

    The exact paired test decides, at 5 %; intervals that overlap do not exclude a difference.
    """
    differences = wrong_b.astype(int) - wrong_a.astype(int)
    return bool(differences.sum() > 0) and paired.exact_p(differences) < 0.05


# ---- adversarial images ----


def make_images(
    logits: Logits,
    variables: Any,
    images: SharedImages,
    k: int,
    settings: TransferSettings,
    label: str,
) -> np.ndarray:
    """Adversarial images uint8[n s s 3] for a network of k classes, after an 8-bit PNG."""
    search = attacks.get(settings.attack)(steps=settings.steps, early_stop=False)
    goal, norm = goals.get("untargeted", LOSS), norms.get(settings.norm)
    attack = attacks.make(search, logits, norm=norm, goal=goal, eight_bit=True)
    n = len(images.images)
    class_mask = goals.class_mask(images.labels[:, None].tolist(), k)
    keys = norms.per_image_keys(jax.random.key(settings.seed), n)
    batch = max(BATCH, devices.images_at_once())
    size = min(batch, n)

    def attack_batch(images: np.ndarray, class_mask: np.ndarray, keys: jax.Array) -> np.ndarray:
        images01 = pixels.to_images01(images)
        result = attack(variables, keys, images01, class_mask, eps=settings.eps)
        return pixels.to_uint8(result.images)

    adversarial = inference.in_batches(
        attack_batch,
        images.images,
        class_mask,
        keys,
        batch_size=size,
        progress=functools.partial(
            reporting.progress, label=f"attacking {label}, batches of {size}"
        ),
    )
    return read_back(adversarial)


def add_noise(images: np.ndarray, settings: TransferSettings) -> np.ndarray:
    """The control: uint8[n s s 3] with one draw of noise of length eps, after an 8-bit PNG.

    In Linf every value changes by plus or minus eps. The attack "noise" keeps the best of several
    draws for one network; this is one draw for all networks.
    """
    norm, center = norms.get(settings.norm), jnp.asarray(pixels.to_images01(images))
    eps = jnp.float32(settings.eps)
    draw = jax.random.normal(jax.random.key(settings.seed), (center.size,)).reshape(center.shape)
    x = norm.project(center + settings.eps * norm.direction(draw), center, eps)
    return read_back(pixels.to_uint8(norm.quantize(x, center, eps)))


def read_back(images: np.ndarray) -> np.ndarray:
    """uint8[n s s 3] after writing and reading an 8-bit PNG."""
    decoded = []
    for image in images:
        file = io.BytesIO()
        reporting.save_png(file, image)
        decoded.append(data.decode(file.getvalue()))
    return np.stack(decoded)


# ---- the evaluation ----


def evaluate_transfer(
    run: reporting.Run,
    networks: Sequence[Network],
    images: SharedImages,
    settings: TransferSettings,
    *,
    labeled: bool = True,
) -> TransferEvaluation:
    """Attacks each network, all but one, and all together; evaluates all networks on all results.

    Args:
      run: receives a line of metrics per set of images, and the figures of the first images.
      networks: at least two, with the same classes.
      images: as `select_images` returns them.
      settings: the attack.
      labeled: whether `images.labels` are ground truth.
    """
    run.remark(*norms.radius_remarks(settings.norm, [settings.eps]))
    names, everyone = [network.name for network in networks], range(len(networks))
    k = len(inference.class_table(networks[0].clf))
    goal, norm = goals.get("untargeted", LOSS), norms.get(settings.norm)
    search = attacks.get(settings.attack)(steps=settings.steps, early_stop=False)
    attacks.check(search, norm=norm, goal=goal, classes=k)
    logits = [resizing_logits(network) for network in networks]
    variables = tuple(network.variables for network in networks)

    def errors(adversarial: np.ndarray, label: str) -> Errors:
        outputs = predict_all(networks, adversarial)
        wrong = outputs.argmax(axis=2) != images.labels
        run.log({"made_on": label, **dict(zip(names, wrong.mean(axis=1).tolist(), strict=True))})
        return Errors(wrong, outputs.mean(axis=0).argmax(axis=1) != images.labels)

    def make_joint(which: Sequence[int], mean: str, label: str) -> np.ndarray:
        joint = ensemble.ensemble([logits[i] for i in which], mean=mean)
        return make_images(joint, tuple(variables[i] for i in which), images, k, settings, label)

    clean = errors(read_back(images.images), "nothing")
    noise = errors(add_noise(images.images, settings), "noise")
    adversarial = [
        make_images(logits[i], variables[i], images, k, settings, names[i]) for i in everyone
    ]
    single = [
        errors(made_images, name) for made_images, name in zip(adversarial, names, strict=True)
    ]
    others = []
    for i in everyone:
        label = f"all but {names[i]}"
        joint = make_joint([j for j in everyone if j != i], "log_probability", label)
        others.append(errors(joint, label).networks[i])
    adaptive = errors(make_joint(list(everyone), "logits", TOGETHER), TOGETHER)

    def save_figures() -> list[Any]:
        rows = range(len(images.paths))[:PAGE_IMAGES]
        return [_save_figures(run, networks, images, adversarial, i) for i in rows]

    return TransferEvaluation(
        names,
        settings,
        images,
        clean,
        noise,
        single,
        np.stack(others),
        adaptive,
        labeled,
        run.attempt("figures", save_figures, []),
    )


def _save_figures(
    run: reporting.Run,
    networks: Sequence[Network],
    images: SharedImages,
    adversarial: Sequence[np.ndarray],
    i: int,
) -> dict[str, Any]:
    """Saves image i, its adversarial versions and a difference as figures; returns a row."""
    table = inference.class_table(networks[0].clf)
    original, path = images.images[i], images.paths[i]
    save = lambda name, image: f"figures/{run.figure(f'{name}-{i:03d}-{path.stem}', image).name}"
    versions = np.stack([original, *(images[i] for images in adversarial)])
    predicted = predict_all(networks, versions).argmax(axis=2).T
    change = pixels.to_images01(versions[1]) - pixels.to_images01(original)
    factor = max(1, int(0.5 / max(float(np.abs(change).max()), 1 / 255)))
    titles = ["original", *(f"made on {network.name}" for network in networks)]
    return {
        "path": str(path),
        "label": table.display(int(images.labels[i])),
        "difference": save("difference", reporting.amplify(change, factor)),
        "amplified": factor,
        "images": [
            {
                "title": title,
                "png": save("original" if j == 0 else f"made-on-{j}", image),
                "predictions": {
                    network.name: table.display(int(top))
                    for network, top in zip(networks, row, strict=True)
                },
            }
            for j, (title, image, row) in enumerate(zip(titles, versions, predicted, strict=True))
        ],
    }
