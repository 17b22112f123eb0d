"""Trains a classifier for your images from a pretrained backbone, tests it and saves it.

  ./launch.sh transfer --data=folder:DIR                       a probe on frozen features
  ./launch.sh transfer --data=folder:DIR --tune=last:1         head and last stage, gradient steps
  ./launch.sh transfer --data=elpv --tune=all --augment=dihedral --seeds=5
  ./launch.sh transfer --data=folder:DIR --recipe=lora:4       settings by name
  ./launch.sh transfer --data=folder:DIR --tune=all --workdir=W --resume      continue a killed run
  ./launch.sh transfer --data=folder:DIR --tune=lp_ft --adversarial=pgd       adversarial training

The table of trainable parameters is printed before the first step. After training, every frozen
parameter is compared bit by bit with the saved file.

Expected: with EfficientNet-Lite0 on cats and dogs (749 training images, 251 test images) the first
command has a test accuracy of 99.2 % (97.1 to 99.8, `cats_vs_dogs_probe` in RESULTS.md); the recipe
of `elpv_fine_tuned` has 89.7 +- 1.3 % over five splits of ELPV. Cost: a probe takes one forward
pass per image and a convex fit; gradient steps take, per image and epoch, a forward and a backward
pass of the stages that train.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from absl import flags

from tl import attacks, cli, data, losses, optim, pages, reporting
from tl.data import augment
from tl.evaluation import robust
from tl.evaluation.transfer import TransferSettings, transfer
from tl.models import heads
from tl.pages import common, training
from tl.training import adversarial, initializers, probe, recipes, regularizers, rules, schedules
from tl.training.recipe import Recipe, pixels_for

FLAGS = flags.FLAGS
DEFAULT = Recipe()


def define_flags() -> None:
    cli.define_white_flag()
    text, one_of = flags.DEFINE_string, flags.DEFINE_enum
    number, real = flags.DEFINE_integer, flags.DEFINE_float
    # ---- data
    text("data", None, f"Data set: {', '.join(data.names())}.", required=True)
    text(
        "test_data",
        "",
        "Separate test set, in the form of --data. A test part of --data is then unused. Default: "
        "a part of --data.",
    )
    real(
        "test_fraction",
        0.25,
        "Share of --data that is held out for testing, in (0, 1), if it has no test part.",
    )
    real(
        "validation_fraction",
        -1.0,
        "Share of the rest that is held out for validation, in [0, 1). Default: 0.15, or 0 for a "
        "probe, which is cross-validated.",
    )
    number(
        "folds",
        0,
        "Number of cross-validation folds instead of --test_fraction; 0 for one split.",
        lower_bound=0,
    )
    number(
        "seeds",
        1,
        "Number of runs with different seeds; mean and spread are reported.",
        lower_bound=1,
    )
    number("image_size", 0, "Side of the input in pixels; 0: that of the weights.", lower_bound=0)
    one_of(
        "crop",
        "",
        ["", "weights", "none"],
        "Preprocessing. weights: their own rule. none: whole images, resized to a square. "
        "Default: the data set's.",
    )
    number(
        "workers",
        DEFAULT.workers,
        "Processes that decode images; 0: threads, -1: chosen for the machine.",
        lower_bound=-1,
    )
    # ---- trainable parameters
    text(
        "recipe",
        "",
        f"Settings by name: {', '.join(recipes.names())}. Flags that are given replace them.",
    )
    text("tune", "probe", f"Trainable parameters: {', '.join(rules.TUNE)}.")
    flags.DEFINE_multi_string(
        "rules",
        [],
        "Trainable parameters, instead of --tune: REGEX=LABEL. May be repeated; the first match "
        "wins.",
    )
    one_of(
        "bn",
        DEFAULT.bn,
        rules.BN,
        "BatchNorm in layers that train. eval: running statistics; update: those of the batch; "
        "affine: only its scales and biases train; reestimate: computed again after training.",
    )
    one_of("head", "linear", list(heads.KINDS), "Kind of the new head.")
    one_of("method", DEFAULT.method, list(probe.METHODS), "Method of a probe.")
    # ---- optimization
    text(
        "lr",
        "0",
        "Peak learning rate of the head. 0: 1e-3 if only the head trains, otherwise 5e-3; find: "
        "searched before the first step.",
    )
    one_of("optimizer", DEFAULT.optimizer, list(optim.OPTIMIZERS), "Optimizer.")
    one_of("schedule", DEFAULT.schedule, list(schedules.SCHEDULES), "Learning-rate schedule.")
    one_of(
        "wrapper",
        DEFAULT.wrapper,
        list(optim.WRAPPERS),
        "Method around the optimizer; schedule_free needs --optimizer=rms --schedule=constant.",
    )
    help = "Subtract from the gradient of each kernel its mean per output channel."
    flags.DEFINE_bool("centralize", DEFAULT.centralize, help)
    one_of("loss", DEFAULT.loss, list(losses.LOSSES), "Loss of an example.")
    inits = ["", *initializers.INITIALIZERS]
    one_of("init", DEFAULT.init, inits, "Initializer of a backbone that is trained from scratch.")
    flags.DEFINE_bool(
        "soft_labels",
        DEFAULT.soft_labels,
        "Weight labels by the confidences of the data set (elpv, or a column of a CSV file).",
    )
    text(
        "augment",
        DEFAULT.augment,
        f"Augmentation: {', '.join(augment.PRESETS)}, or several of "
        f"{', '.join(augment.AUGMENTATIONS)}, separated by commas.",
    )
    one_of(
        "balance",
        DEFAULT.balance,
        ["none", "weights", "sampler"],
        "Treatment of rare classes. weights: a larger weight in the loss; sampler: drawn as often "
        "as the other classes.",
    )
    flags.DEFINE_bool("fsdp", DEFAULT.fsdp, "Divide parameters over the devices.")
    flags.DEFINE_bool("resume", False, "Continue the run in --workdir.")
    text(
        "penalty",
        DEFAULT.penalty,
        f"Penalty on outputs, NAME or NAME:STRENGTH: {', '.join(regularizers.PENALTIES)}:TEACHER.",
    )
    # ---- adversarial training
    one_of(
        "adversarial",
        DEFAULT.adversarial,
        ["none", *adversarial.METHODS],
        "Adversarial training in an Linf ball.",
    )
    text("adversarial_eps", "2/255", "Radius of the ball in [0, 1] pixel units.")
    # ---- numbers of the recipe
    help = "Parts of a batch whose gradients are summed; auto: as few as fit into memory."
    text("microbatches", "1", help)
    for name, least, help in (
        ("epochs", 1, "Passes over the training images, in all phases together."),
        ("steps", 0, "Steps of all phases, up to whole epochs, instead of --epochs; 0: --epochs."),
        ("batch_size", 1, "Images per step."),
        ("adversarial_steps", 1, "Attack steps per training step (pgd, trades)."),
        ("adversarial_replays", 1, "Optimizer steps per batch (free)."),
        ("patience", 0, "Epochs without a smaller validation loss before a phase stops; 0: never."),
        (
            "save_every",
            0,
            "Steps between checkpoints, in addition to those of --save_minutes and of each epoch.",
        ),
    ):
        number(name, getattr(DEFAULT, name), help, lower_bound=least)
    for name, most, help in (
        ("backbone_lr", None, "Factor on the learning rate of the backbone."),
        (
            "layer_decay",
            None,
            "Further factor on the learning rate for each stage away from the head.",
        ),
        ("weight_decay", None, "Weight decay of kernels."),
        (
            "l2_sp",
            None,
            "Decay of the backbone toward its starting weights instead of 0 (L2-SP); 0: none.",
        ),
        ("clip", None, "Largest norm of the gradient; 0: no clipping."),
        ("smoothing", 0.99, "Label smoothing in [0, 1)."),
        ("dropout", 0.99, "Probability in [0, 1) that a feature is 0 in a training step."),
        ("small_loss", 0.99, "Share of a batch with the largest losses that does not count."),
        ("ema", 0.99999, "Decay of the running average of the parameters in [0, 1); 0: none."),
        ("swa", 0.999, "Share of the last steps whose parameters are averaged, in [0, 1)."),
        (
            "bank_gib",
            None,
            "Memory for cached outputs of a frozen prefix, in GiB, over all seeds; 0: none.",
        ),
        ("save_minutes", None, "Minutes between checkpoints; 0: none."),
        ("adversarial_beta", None, "Weight of the divergence (trades)."),
        (
            "adversarial_warmup",
            1.0,
            "Share of the steps in [0, 1] over which the radius grows from 0.",
        ),
    ):
        real(name, getattr(DEFAULT, name), help, lower_bound=0.0, upper_bound=most)
    # ---- tests
    text(
        "robust_eps",
        "",
        "Radius of a test under attack in [0, 1] pixel units; 0: no such test. Default: "
        "--adversarial_eps with adversarial training, otherwise 0.",
    )
    one_of(
        "robust_attack",
        "pgd",
        list(attacks.ATTACKS),
        "Attack of that test; pgd is fast, with 20 steps.",
    )
    flags.DEFINE_bool(
        "tta", False, "Also test on the mean over all views of --augment (flip, dihedral)."
    )


def settings_of_flags(facts: recipes.Facts = recipes.ANY) -> TransferSettings:
    """The flags as a value; --recipe depends on some facts about the data and the network."""
    chosen = recipes.settings(FLAGS.recipe, facts, cli.given_flags())
    alternative = recipes.alternative(FLAGS.recipe, facts, cli.given_flags())
    eps = cli.fraction(FLAGS.adversarial_eps, "adversarial_eps")
    recipe = Recipe(
        **cli.fields_of_flags(Recipe)
        | {
            "lr": 0.0 if FLAGS.lr == "find" else cli.fraction(FLAGS.lr, "lr"),
            "microbatches": cli.count(FLAGS.microbatches, "microbatches"),
            "rules": rules.parse_rules(FLAGS.rules),
            "adversarial_eps": eps,
        }
        | {name: value for name, value in chosen.items() if name not in recipes.OF_PIXELS}
    )
    radius = eps if recipe.adversary() else 0.0
    if FLAGS.robust_eps:
        radius = cli.fraction(FLAGS.robust_eps, "robust_eps")
    robust.check_robust(radius, FLAGS.robust_attack)
    others: dict[str, Any] = cli.fields_of_flags(TransferSettings) | {
        "recipe": recipe,
        "alternative": dataclasses.replace(recipe, **alternative) if alternative else None,
        "robust_eps": radius,
        "first_seed": FLAGS.seed,
        "find_lr": FLAGS.lr == "find",
    }
    others |= {name: chosen[name] for name in recipes.OF_PIXELS if name in chosen}
    return TransferSettings(**others)


def main(run: reporting.Run) -> None:
    settings_of_flags()  # errors in flags are reported before any work
    clf, variables = cli.load_model(run)
    spec = cli.load_data(run, FLAGS.data)
    settings = settings_of_flags(recipes.facts_of(spec, clf.pixels.size))
    test_spec = None
    if FLAGS.test_data:
        test_spec = cli.load_data(run, FLAGS.test_data, min_classes=1)
    clf = pixels_for(clf, spec, settings.crop, settings.image_size)
    say = lambda line: print(line, flush=True)
    if FLAGS.recipe:
        say(recipes.describe(FLAGS.recipe, settings.recipe, clf.pixels.size))
    result = transfer(run, clf, variables, spec, test_spec, settings, say=say)
    result["tune"] = "rules" if FLAGS.rules else settings.recipe.tune
    if "choice" in result:
        result["tune"] = result["choice"]["chosen"]
    result |= {"recipe": FLAGS.recipe} if FLAGS.recipe else {}
    result["facts"] = common.weights_facts(clf) | {
        "images": spec.source,
        "license of the images": spec.license,
    }
    page = pages.finish(run, result)
    print(*training.lines(result), page, sep="\n")


if __name__ == "__main__":
    # A resumed run may test otherwise, and read and save at another pace.
    may_change = ("robust_eps", "robust_attack", "tta", "workers", "save_every", "save_minutes")
    may_change += ("fsdp",)
    cli.launch("transfer", main, cli.define_model_flags, define_flags, may_change=may_change)
