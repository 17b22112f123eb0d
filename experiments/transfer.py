"""Learns a classifier for your pictures from a pretrained backbone, tests it and saves it.

  ./launch.sh transfer --data=folder:DIR                         a probe on frozen features: seconds
  ./launch.sh transfer --data=folder:DIR --tune=last:1           head and last stage, by gradient steps
  ./launch.sh transfer --data=elpv --tune=all --augment=dihedral --seeds=5
  ./launch.sh transfer --data=folder:DIR --tune=all --workdir=W --resume     goes on where a killed run stopped
  ./launch.sh transfer --data=folder:DIR --tune=lp_ft --adversarial=pgd --adversarial_eps=2/255     robust to small changes

What trains is told before the first step, and after the last one every frozen leaf is compared bit by bit in the saved file.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from tl import attacks, cli, data, inference, labels, metrics, models, optim, paths, reporting
from tl.data import DataSpec, augment
from tl.evaluation import robust, sets
from tl.evaluation.sets import accuracy, mean_of, predict_set
from tl.models import Classifier, heads
from tl.pages import common, evaluation
from tl.pages.training import rate_section, training_sections
from tl.reporting import Html
from tl.training import adversarial, fit, probe, rate_finder, rules
from tl.training.fit import frozen_digest
from tl.training.recipe import Recipe, pixels_for
from tl.types import Variables

FLAGS = flags.FLAGS
DEFAULT = Recipe()


def define_flags() -> None:
    text, number, real, one_of = (
        flags.DEFINE_string,
        flags.DEFINE_integer,
        flags.DEFINE_float,
        flags.DEFINE_enum,
    )
    text("data", None, f"{', '.join(data.names())}.", required=True)
    text(
        "test_data",
        "",
        "Another set to test on. Default: the set's own test part, or a held-out part of --data.",
    )
    real(
        "test_fraction",
        0.25,
        "Share of --data that is held out, where it has no test part of its own.",
    )
    real(
        "validation_fraction",
        -1.0,
        "Of the rest, to choose on. Default: 0.15; 0 for a probe, which cross-validates.",
    )
    number(
        "folds",
        0,
        "Test on each of so many parts in turn, in place of --test_fraction; 0 for none.",
        lower_bound=0,
    )
    number(
        "seeds",
        1,
        "Runs with other splits (elpv) and starts; mean and spread are reported.",
        lower_bound=1,
    )
    text("tune", "probe", f"What trains: {', '.join(rules.TUNE)}.")
    flags.DEFINE_multi_string(
        "rules",
        [],
        "In place of --tune: REGEX=LABEL, once a rule; the first that fits a name wins.",
    )
    one_of("bn", DEFAULT.bn, rules.BN, "BatchNorm in the blocks that train.")
    one_of("head", "linear", list(heads.KINDS), "What turns features into logits.")
    one_of("method", DEFAULT.method, list(probe.METHODS), "Of a probe.")
    number(
        "image_size", 0, "Side of the input, in pixels. Default: the weights' own.", lower_bound=0
    )
    one_of(
        "crop",
        "",
        ["", "weights", "none"],
        "weights: their own rule. none: whole pictures, squashed. Default: the set's.",
    )
    number("epochs", DEFAULT.epochs, "Passes over the pictures.", lower_bound=1)
    number("batch_size", DEFAULT.batch_size, "Pictures a step.", lower_bound=1)
    text(
        "lr",
        "0",
        "Peak learning rate of the head; 0: by --tune; find: sought before the first step.",
    )
    real("backbone_lr", DEFAULT.backbone_lr, "Factor on it for the backbone.", lower_bound=0.0)
    real(
        "layer_decay",
        DEFAULT.layer_decay,
        "Further factor for each stage away from the head.",
        lower_bound=0.0,
    )
    one_of("optimizer", DEFAULT.optimizer, list(optim.OPTIMIZERS), "Of gradient steps.")
    one_of("schedule", DEFAULT.schedule, list(optim.SCHEDULES), "Of the learning rate.")
    real("weight_decay", DEFAULT.weight_decay, "Of kernels.", lower_bound=0.0)
    real("clip", DEFAULT.clip, "Largest norm of the gradient; 0 for none.", lower_bound=0.0)
    number(
        "microbatches",
        DEFAULT.microbatches,
        "Parts of a batch whose gradients are summed.",
        lower_bound=1,
    )
    real("smoothing", DEFAULT.smoothing, "Of labels.", lower_bound=0.0, upper_bound=0.99)
    flags.DEFINE_bool(
        "soft_labels",
        DEFAULT.soft_labels,
        "Labels count as much as the set says they are sure (elpv).",
    )
    real(
        "ema",
        DEFAULT.ema,
        "Decay of averaged parameters; 0 for none.",
        lower_bound=0.0,
        upper_bound=0.99999,
    )
    number(
        "patience",
        DEFAULT.patience,
        "Epochs without a better validation loss before it stops; 0: never.",
        lower_bound=0,
    )
    text(
        "augment",
        DEFAULT.augment,
        f"{', '.join(augment.PRESETS)}, or words of {', '.join(augment.AUGMENTATIONS)}.",
    )
    one_of(
        "balance",
        DEFAULT.balance,
        ["none", "weights", "sampler"],
        "Rare classes: weighted in the loss, or drawn more often.",
    )
    number(
        "workers",
        DEFAULT.workers,
        "Processes that decode; 0: threads, -1: by the machine.",
        lower_bound=-1,
    )
    real(
        "bank_gib",
        DEFAULT.bank_gib,
        "Memory for what a frozen prefix makes of the pictures.",
        lower_bound=0.0,
    )
    number(
        "save_every",
        DEFAULT.save_every,
        "Steps between checkpoints; 0: at each epoch's end.",
        lower_bound=0,
    )
    one_of(
        "adversarial",
        DEFAULT.adversarial,
        ["none", *adversarial.METHODS],
        "Trains on pictures that are moved, within a ball in Linf, to where the network does worst.",
    )
    text("adversarial_eps", "2/255", "Radius of the ball in [0, 1] pixel units.")
    number(
        "adversarial_steps",
        DEFAULT.adversarial_steps,
        "Of the inner climb (pgd, trades).",
        lower_bound=1,
    )
    real(
        "adversarial_beta",
        DEFAULT.adversarial_beta,
        "Weight of the divergence (trades).",
        lower_bound=0.0,
    )
    number(
        "adversarial_replays",
        DEFAULT.adversarial_replays,
        "Steps that a batch makes (free).",
        lower_bound=1,
    )
    real(
        "adversarial_warmup",
        DEFAULT.adversarial_warmup,
        "Share of the steps over which the radius grows from 0.",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    text(
        "robust_eps",
        "",
        "Tests under attack at this radius too, before and after; 0: not. Default: --adversarial_eps where there is one.",
    )
    one_of(
        "robust_attack",
        "pgd",
        list(attacks.ATTACKS),
        "The attack of that test; pgd is a quick one of 20 steps.",
    )
    flags.DEFINE_bool(
        "tta", False, "Test on the mean over all views of --augment (flip, dihedral) too."
    )
    flags.DEFINE_bool("resume", False, "Go on with the run that --workdir holds.")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a run beside its data and its network; the fields are the flags'."""

    recipe: Recipe = dataclasses.field(default_factory=lambda: Recipe(tune="probe"))
    head: str = "linear"
    seeds: int = 1
    first_seed: int = 0
    folds: int = 0
    test_fraction: float = 0.25
    validation_fraction: float = -1.0
    find_lr: bool = False
    tta: bool = False
    robust_eps: float = 0.0
    robust_attack: str = "pgd"


class Round(NamedTuple):
    """One division of the data, and the seed of the training."""

    name: str
    seed: int
    parts: data.Parts


def settings_of_flags() -> Settings:
    """The flags as values."""
    same: dict[str, Any] = {
        field.name: FLAGS[field.name].value
        for field in dataclasses.fields(Recipe)
        if field.name in FLAGS
    }
    rate = 0.0 if FLAGS.lr == "find" else cli.fraction(FLAGS.lr, "lr")
    eps = cli.fraction(FLAGS.adversarial_eps, "adversarial_eps")
    recipe = Recipe(
        **{**same, "lr": rate, "rules": rules.parse_rules(FLAGS.rules), "adversarial_eps": eps}
    )
    radius = cli.fraction(FLAGS.robust_eps, "robust_eps") if FLAGS.robust_eps else 0.0
    if recipe.adversary() and not FLAGS.robust_eps:
        radius = eps
    robust.check_robust(radius, FLAGS.robust_attack)
    other: dict[str, Any] = {
        field.name: FLAGS[field.name].value
        for field in dataclasses.fields(Settings)
        if field.name in FLAGS
    }
    other["robust_eps"] = radius
    return Settings(recipe, **other, first_seed=FLAGS.seed, find_lr=FLAGS.lr == "find")


# --- the data ----------------------------------------------------------------------------------------------------------


def rounds(spec: DataSpec, test_spec: DataSpec | None, settings: Settings) -> Iterator[Round]:
    """The divisions that a run learns and tests on."""
    share = settings.validation_fraction
    if share < 0:
        share = 0.0 if settings.recipe.tune == "probe" and not settings.recipe.rules else 0.15
    for seed in range(settings.first_seed, settings.first_seed + settings.seeds):
        if test_spec is not None:
            yield Round(
                f"seed{seed}",
                seed,
                data.Parts(
                    *data.split_validation(spec, share, seed),
                    data.remap_test_labels(test_spec, spec),
                ),
            )
        elif settings.folds:
            for number, (train, test) in enumerate(data.folds(spec, settings.folds, seed=seed)):
                yield Round(
                    f"seed{seed}-fold{number}",
                    seed,
                    data.Parts(*data.split_validation(train, share, seed), test),
                )
        else:
            parts = data.divide(
                spec, test_fraction=settings.test_fraction, validation_fraction=share, seed=seed
            )
            yield Round(f"seed{seed}", seed, parts)


def robustness(
    clf: Classifier, variables: Variables, each: Round, fitted: fit.FitResult, settings: Settings
) -> dict[str, dict[str, Any]]:
    """Accuracy under attack of what was learned ("after") and of a probe on the pretrained features ("before").

    A probe itself is attacked once ("now").
    """
    how = {"eps": settings.robust_eps, "method": settings.robust_attack, "seed": each.seed}
    probe = settings.recipe.tune == "probe"
    found = {
        "now" if probe else "after": robust.robust(clf, fitted.variables, each.parts.test, **how)
    }
    if settings.head == "linear" and not probe:
        plain = fit.fit(
            clf,
            variables,
            each.parts.train,
            each.parts.validation,
            Recipe(tune="probe"),
            seed=each.seed,
        )
        found["before"] = robust.robust(clf, plain.variables, each.parts.test, **how)
    return found


class RoundResult(NamedTuple):
    """One round, done."""

    round: Round
    variables: Variables
    fitted: fit.FitResult
    tested: inference.Predictions
    learned: dict[str, Any]
    by_views: inference.Predictions | None
    rates: rate_finder.Rates | None
    temperature: float


def run_round(
    run: reporting.Run,
    clf: Classifier,
    variables: Variables,
    each: Round,
    settings: Settings,
    *,
    told: bool,
) -> RoundResult:
    """Fits a fresh head, and what else trains, to one round's pictures, and asks it about the others."""
    parts, recipe = each.parts, settings.recipe
    if len(parts.train.examples) < 2 or not parts.test.examples:
        n, m = len(parts.train.examples), len(parts.test.examples)
        raise ValueError(
            f"too few pictures: {n} to learn from and {m} to test on; wanted at least 2 and 1"
        )
    head = jax.tree.map(np.asarray, clf.init_head(jax.random.key(each.seed)))
    fresh = {**variables, "params": {"backbone": variables["params"]["backbone"], "head": head}}
    found = None
    if settings.find_lr:
        found = rate_finder.find_rate(clf, fresh, parts.train, recipe, seed=each.seed)
        recipe = dataclasses.replace(recipe, lr=found.rate)
        print(f"learning rate {found.rate:.3g}: a tenth of where the loss is least", flush=True)
        for rate, loss in found.curve:
            run.log({"round": each.name, "find_lr": rate, "loss": loss})
    fitted = fit.fit(
        clf,
        fresh,
        parts.train,
        parts.validation,
        recipe,
        seed=each.seed,
        folder=run.workdir / "checkpoints" / each.name,
        log=lambda row: run.log({"round": each.name, **row}),
        say=(lambda line: print(line, flush=True)) if told else (lambda line: None),
    )
    frozen = all(name.startswith("head/") for name in fitted.trained)
    tested, chosen = (
        predict_set(clf, fitted.variables, part, frozen=frozen)
        for part in (parts.test, parts.validation)
    )
    if frozen:
        known = predict_set(clf, fitted.variables, parts.train, frozen=True)
        learned = metrics.summarize(known.logits, known.labels)
    else:  # what the best epoch measured as it learned: asking again would cost a whole pass
        row = fitted.best or {}
        learned = {
            "n": len(parts.train.examples),
            "top1": row.get("accuracy"),
            "nll": row.get("loss"),
        }
    if not len(tested.labels):
        raise ValueError(
            f"none of the {len(parts.test.examples)} test pictures can be read; look with doctor"
        )
    temperature = 1.0
    if (
        recipe.tune == "probe" and fitted.probe
    ):  # whose last fit may have seen the pictures of validation
        temperature = fitted.probe.temperature
    elif len(chosen.labels):
        temperature = metrics.temperature(chosen.logits, chosen.labels)
    by_views = None
    if settings.tta:
        views = augment.make_augment(recipe.augment, size=clf.pixels.size).views
        by_views = inference.predict(
            clf, fitted.variables, parts.test, views=views or (), progress=sets.progress
        )
    return RoundResult(each, fresh, fitted, tested, learned, by_views, found, temperature)


def transfer(
    run: reporting.Run,
    clf: Classifier,
    variables: Variables,
    spec: DataSpec,
    test_spec: DataSpec | None,
    settings: Settings,
) -> tuple[dict[str, Any], list[Html]]:
    """Fits, tests and saves; the result and the page's sections. The model of the first round is the one that is kept."""
    began, recipe, classes = time.monotonic(), settings.recipe, spec.classes
    if settings.head != "linear" and any(
        phase.name == "probe" for phase in recipe.phases(clf.spec.endpoints)
    ):
        raise ValueError(
            f"--tune={recipe.tune} fits a linear head; take --head=linear, or --tune=head for {settings.head}"
        )
    if settings.tta and augment.make_augment(recipe.augment, size=clf.pixels.size).views is None:
        raise ValueError(
            f"--tta wants an augmentation whose views can be counted; got --augment={recipe.augment}"
        )
    table = labels.from_names(classes, name=spec.name, groups=labels.known_groups(classes))
    clf = clf.with_head(heads.maker(settings.head, clf.spec)(len(classes)), table)
    done: list[RoundResult] = []
    for each in rounds(spec, test_spec, settings):
        done.append(run_round(run, clf, variables, each, settings, told=not done))
        top1 = accuracy(done[-1].tested)
        run.log({"round": each.name, "top1": top1, "n": len(done[-1].tested.labels)})
        if settings.folds or settings.seeds > 1:
            print(
                f"{each.name}: {reporting.percent(top1)} of {len(done[-1].tested.labels)}",
                flush=True,
            )
    seconds, first = time.monotonic() - began, done[0]

    if settings.folds:  # every picture was tested on once a seed: one list
        tested = sets.joined([each.tested for each in done])
        test = sets.summary(tested.logits, tested.labels, classes, first.temperature)
    else:
        tested = first.tested
        rows = [
            sets.summary(d.tested.logits, d.tested.labels, classes, d.temperature) for d in done
        ]
        test = {**rows[0], **mean_of(rows)}
    fitted = first.fitted
    leaves = paths.flatten(first.variables["params"])
    result: dict[str, Any] = {
        "test": {name: value for name, value in test.items() if name not in sets.DETAILS},
        "train": mean_of([d.learned for d in done]) if "ece" in first.learned else first.learned,
        **{name: test[name] for name in sets.DETAILS if name in test},
        "classes": list(classes),
        "trainable_params": sum(leaves[name].size for name in fitted.trained),
        "temperature": first.temperature,
        "groups": fitted.groups,
        "feed": fitted.source,
        "history": fitted.history,
        "best_epoch": fitted.best,
        "steps": fitted.steps,
        "waiting_share": fitted.seconds_waiting / fitted.seconds if fitted.seconds else None,
        "images_per_second": fitted.images / fitted.seconds if fitted.seconds else None,
        "sizes": {name: len(part.examples) for name, part in first.round.parts._asdict().items()},
        "skipped": [
            skip._asdict()
            for skip in dict.fromkeys(skip for d in done for skip in skipped_of(spec, d))
        ],
        "seconds": seconds,
        "model": str(run.workdir / "model"),
    }
    if fitted.probe:
        result["strength"] = fitted.probe.strength
    if settings.tta:
        result["test_tta"] = mean_of(
            [metrics.summarize(d.by_views.logits, d.by_views.labels) for d in done if d.by_views]
        )
        result["test_tta"]["top1_seeds"] = [accuracy(d.by_views) for d in done if d.by_views]
    if len(done) > 1:
        tops = [accuracy(d.tested) for d in done]
        result["seeds"] = {"top1": tops, **metrics.spread(tops)}
    record = {
        "data": {"name": spec.name, "source": spec.source, "licence": spec.licence},
        "split": {
            name: data.split_digest(part) for name, part in first.round.parts._asdict().items()
        },
        "recipe": dataclasses.asdict(recipe),
        "rules": [phase._asdict() for phase in recipe.phases(clf.spec.endpoints)],
        "test": result["test"],
        "temperature": first.temperature,
    }
    models.save(run.workdir / "model", clf, fitted.variables, metadata=record)
    _, saved = models.load(result["model"])  # what counts is the file
    result["frozen_unchanged"] = frozen_digest(saved, fitted) == frozen_digest(
        first.variables, fitted
    )
    robust_sections = []
    if settings.robust_eps:  # an hour, perhaps, in which the saved model is safe
        result["robust"] = robustness(clf, first.variables, first.round, fitted, settings)
        robust_sections = [evaluation.robust_section(result["robust"])]
    result["mistakes"] = sets.save_hardest_images(run, clf, tested)
    result["references"] = spec.references
    sections = evaluation.sections({**result, **test}, run.workdir)
    return result, [
        *rate_section(first.rates),
        *training_sections(fitted, result),
        *robust_sections,
        *sections,
    ]


def skipped_of(spec: DataSpec, each: RoundResult) -> list[data.Skipped]:
    """The files that a round could not use."""
    return [*spec.skipped, *each.fitted.skipped, *each.tested.skipped]


def main(run: reporting.Run) -> None:
    settings = settings_of_flags()
    clf, variables = cli.load_model()
    spec = data.get(FLAGS.data)
    test_spec = data.get(FLAGS.test_data) if FLAGS.test_data else None
    clf = pixels_for(clf, spec, FLAGS.crop, FLAGS.image_size)
    result, sections = transfer(run, clf, variables, spec, test_spec, settings)
    test, what = result["test"], FLAGS.tune if not FLAGS.rules else "rules"
    lead = (
        f"{len(spec.classes)} classes of {spec.name}, learned from {clf.arch} ({what}): "
        f"{reporting.percent(test['top1'])} of {test['n']} test pictures."
    )
    facts = (
        run.facts()
        | common.weights_facts(clf)
        | {"pictures": spec.source, "licence of the pictures": spec.licence}
    )
    run.finish(
        result, reporting.page("A classifier for these pictures", lead, sections, facts=facts)
    )
    low, high = (reporting.percent(p) for p in test["top1_ci95"])
    print(
        f"test top-1 {reporting.percent(test['top1'])} (95 % interval {low} to {high}, n = {test['n']}), "
        + (f"top-3 {reporting.percent(test['top3'])}, " if len(spec.classes) > 3 else "")
        + f"majority class {reporting.percent(result['majority'])}"
    )
    if "seeds" in result:
        over = result["seeds"]
        print(f"over {over['n']} rounds {100 * over['mean']:.1f} +- {100 * over['std']:.1f} %")
    print(
        f"frozen leaves unchanged: {result['frozen_unchanged']}; skipped {len(result['skipped'])}; model in {result['model']}"
    )
    for said in evaluation.robust_lines(result.get("robust", {})):
        print(said)
    if "test_tta" in result:
        spread = metrics.spread(result["test_tta"]["top1_seeds"])
        print(
            f"over the views of --augment {100 * spread['mean']:.1f} +- {100 * spread['std']:.1f} %"
        )
    print(f"{run.workdir / 'report.html'}")


if __name__ == "__main__":
    cli.launch("transfer", main, cli.define_model_flags, define_flags)
