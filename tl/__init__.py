"""Transfer learning with pretrained CNNs in JAX: backbones, freezing, ideal images, attacks.

Importing `tl` makes no network request and initializes no accelerator. On Linux it sets the memory
allocator of the process (`tl.cpu.keep_memory`). With the extra `onednn` it makes JAX wait for
computations on CPUs (`tl.cpu.wait_for_results`).
"""

from tl import (
    ascent,
    attacks,
    backbones,
    cpu,
    data,
    inference,
    labels,
    losses,
    metrics,
    models,
    optim,
    paths,
    pixels,
    reporting,
    visualize,
    weights,
)
from tl.backbones import names
from tl.evaluation import perceptual
from tl.inference import Predictions, extract, predict
from tl.models import Classifier, load, save, summary
from tl.pixels import PixelSpec
from tl.training.fit import fit
from tl.training.probe import logistic
from tl.training.recipe import Recipe
from tl.types import Mode, Output, Variables

__version__ = "0.1.0"

cpu.keep_memory()
cpu.wait_for_results()

__all__ = [
    "Classifier",
    "Mode",
    "Output",
    "PixelSpec",
    "Predictions",
    "Recipe",
    "Variables",
    "ascent",
    "attacks",
    "backbones",
    "data",
    "extract",
    "fit",
    "inference",
    "labels",
    "load",
    "logistic",
    "losses",
    "metrics",
    "models",
    "names",
    "optim",
    "paths",
    "perceptual",
    "pixels",
    "predict",
    "reporting",
    "save",
    "summary",
    "visualize",
    "weights",
]
