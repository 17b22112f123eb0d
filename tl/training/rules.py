"""Which parameters train: short forms and rules to phases, labels and learning-rate factors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from tl.paths import FROZEN, TRAINABLE, Rules, flatten, label, nearest

# ---------------------------------------------------------------------------------------------------------------- rules

HEAD: Rules = (("head/.*", "head"), (".*", FROZEN))
TUNE = ("probe", "head", "last:N", "all", "gradual", "lp_ft", "lp_ft:N")
"""The short forms of `--tune`. "probe" fits the head to its optimum (`probe`), all others take gradient steps; "gradual"
unfreezes a stage at a time from the top (Howard & Ruder 2018, arXiv:1801.06146, section 3.3); "lp_ft" trains everything, or
the last N stages, from a probe on (Kumar et al. 2022, arXiv:2202.10054)."""

BN = ("eval", "update", "affine", "reestimate")
"""What BatchNorm does in the blocks that train; in a frozen block it is always "eval".

eval: running statistics normalise and stay; scale and bias train. update: the batch's own statistics normalise, and the
running ones move. affine: as eval, and of the chosen stages scale and bias alone train. reestimate: as eval, and after
training the statistics are counted anew over the training pictures."""


class Phase(NamedTuple):
    """A stretch of training under one set of rules: a name, the rules, and its share of the epochs."""

    name: str
    rules: Rules
    share: float = 1.0


def phases(tune: str, stages: Sequence[str], *, bn: str = "eval") -> tuple[Phase, ...]:
    """The phases that a short form stands for.

    Args:
      tune: a word of `TUNE`; in "last:N", N is a number of stages. What comes after the last stage (`top`) belongs to it.
      stages: the backbone's endpoints, `BackboneSpec.endpoints`.
      bn: a word of `BN`.

    Raises:
      ValueError: an unknown form (gives the nearest), or more stages than there are.

    Example:
      >>> phases("last:1", ("stem", "stage1", "stage2", "top"))[0].rules
      (('head/.*', 'head'), ('backbone/top/.*', 'top'), ('backbone/stage2/.*', 'stage2'), ('.*', 'frozen'))
    """
    groups = [[name] for name in stages if name != "top"]
    groups[-1] += [name for name in stages if name == "top"]

    def last(n: int) -> Rules:
        chosen = [name for group in groups[len(groups) - n :] for name in group][::-1]
        if bn == "affine":
            norms = "backbone/(?:(?:{})/(?:.*/)?(?:norm|preact)|top)/(?:scale|bias)".format(
                "|".join(chosen)
            )
            return (("head/.*", "head"), (norms, "norms"), (".*", FROZEN))
        rest: Rules = ((".*", FROZEN),) if n < len(groups) else ()
        return (("head/.*", "head"), *((f"backbone/{name}/.*", name) for name in chosen), *rest)

    form, _, number = tune.partition(":")
    if form in ("last", "lp_ft") and number.isdigit():
        if not 1 <= int(number) <= len(groups):
            raise ValueError(
                f"--tune={tune}: this network has {len(groups)} stages; take {form}:1 to {form}:{len(groups)}"
            )
        tuned = Phase(f"last:{number}", last(int(number)))
        return (tuned,) if form == "last" else (Phase("probe", HEAD, 0.0), tuned)
    if tune in ("probe", "head"):
        return (Phase(tune, HEAD),)
    if tune == "all":
        return (Phase(tune, last(len(groups))),)
    if tune == "lp_ft":
        return (Phase("probe", HEAD, 0.0), Phase("all", last(len(groups))))
    if tune == "gradual":
        steps = [
            Phase("head", HEAD),
            *(Phase(f"last:{n}", last(n)) for n in range(1, len(groups) + 1)),
        ]
        return tuple(phase._replace(share=1 / len(steps)) for phase in steps)
    raise ValueError(
        f"unknown --tune {tune!r}; wanted {', '.join(TUNE)}; nearest: {nearest(form, TUNE)}"
    )


def parse_rules(words: Sequence[str]) -> Rules:
    """`REGEX=LABEL` each, as rules: a label is "frozen", or a group's name with an optional rate factor, "slow*0.1".

    Raises:
      ValueError: a word that is no rule.

    Example:
      >>> parse_rules(["head/.*=head", ".*=body*0.1"])
      (('head/.*', 'head'), ('.*', 'body*0.1'))
    """
    rules = tuple((pattern, what) for pattern, _, what in (word.rpartition("=") for word in words))
    wrong = [
        word
        for word, (pattern, what) in zip(words, rules, strict=True)
        if not (pattern and LABEL.fullmatch(what))
    ]
    if wrong:
        raise ValueError(
            f"--rules={wrong[0]!r} is no rule; write REGEX=LABEL, such as --rules='head/.*=trainable', "
            "--rules='.*/stage4/.*=slow*0.1' or --rules='.*=frozen'"
        )
    return rules


LABEL = re.compile(r"(\w+)(?:\*(\d+\.?\d*(?:e-?\d+)?))?")


def rate_factors(
    rules: Rules, stages: Sequence[str], *, backbone: float = 1.0, layer_decay: float = 1.0
) -> dict[str, float]:
    """The factor on the learning rate of every label that trains.

    Args:
      rules: whose labels; one that brings its own factor ("slow*0.1") keeps it.
      stages: the backbone's endpoints, in their order.
      backbone: of every group but the head (discriminative rates; Howard & Ruder 2018, arXiv:1801.06146, section 3.2).
      layer_decay: per stage away from the head (Clark et al. 2020, arXiv:2003.10555, appendix A, for layers).

    Example:
      >>> rules = [("a", "head"), ("b", "stage2"), ("c", "stage1"), ("d", "frozen")]
      >>> rate_factors(rules, ("stage1", "stage2"), layer_decay=0.5)
      {'head': 1.0, 'stage2': 0.5, 'stage1': 0.25}
    """
    factors = {}
    for what in dict.fromkeys(what for _, what in rules if what != FROZEN):
        match = LABEL.fullmatch(what)
        if match and match[2]:
            factors[what] = float(match[2])
        elif what in stages:
            factors[what] = backbone * layer_decay ** (len(stages) - stages.index(what))
        else:
            factors[what] = 1.0 if what in ("head", TRAINABLE) else backbone
    return factors


def frozen_prefix(labels: Mapping[str, str], stages: Sequence[str]) -> str:
    """The last stage before anything trains: gradients stop there, and its map can be computed once for good.

    Args:
      labels: name -> label, of `paths.label`.
      stages: the backbone's endpoints, in their order.

    Returns:
      A stage; "features" where the head alone trains, "" where the first stage does.
    """
    trained = {
        name.split("/")[1]
        for name, what in labels.items()
        if what != FROZEN and name.startswith("backbone/")
    }
    before = ""
    for stage in stages:
        if stage in trained:
            return before
        before = stage
    return "features"


def norm_layer_name(statistic: str) -> str:
    """The layer to which a leaf of `batch_stats` belongs, as `Classifier.apply(train_norms=...)` names it.

    Example:
      >>> norm_layer_name("backbone/stage4/block0/conv1/norm/mean"), norm_layer_name("backbone/top/var")
      ('stage4/block0/conv1', 'top')
    """
    return statistic.removeprefix("backbone/").rpartition("/")[0].removesuffix("/norm")


def trainable_norm_layers(labels: Mapping[str, str], stats: Mapping[str, Any]) -> frozenset[str]:
    """The layers whose BatchNorm is not frozen, since a leaf of theirs trains: paths for `Classifier.apply(train_norms=...)`."""
    trained = {name for name, what in labels.items() if what != FROZEN}
    layers = {norm_layer_name(name) for name in flatten(stats)}
    return frozenset(
        layer for layer in layers if any(name.startswith(f"backbone/{layer}/") for name in trained)
    )


def table(
    params: Mapping[str, Any],
    tune_rules: Rules,
    *,
    lr: float = 0.0,
    factors: Mapping[str, float] | None = None,
    weight_decay: float = 0.0,
    bn: str = "eval",
    norms: Collection[str] = (),
    moments: int = 2,
) -> list[dict[str, Any]]:
    """What a set of rules trains, a row a group in the order of the rules, frozen last.

    Args:
      params: the whole tree.
      tune_rules: `((regex, label), ...)`.
      lr, factors, weight_decay: of the optimizer; a group's rate is `lr` times its factor.
      bn: the policy; a group without BatchNorm has "-", the frozen one "eval".
      norms: layers that have a BatchNorm (`trainable_norm_layers` under rules that train everything).
      moments: floats that the optimizer keeps for a parameter (2 for Adam, 1 for momentum).

    Returns:
      Rows of `group`, `leaves`, `params`, `lr`, `decay`, `bn`, `bytes` (parameters, gradient and optimizer state).
    """
    labels, leaves = label(params, tune_rules), flatten(params)
    rows, used = [], set(labels.values())
    ordered = dict.fromkeys(what for _, what in tune_rules if what in used)
    for what in sorted(ordered, key=lambda name: name == FROZEN):
        chosen = {name: leaf for name, leaf in leaves.items() if labels[name] == what}
        count, frozen = sum(leaf.size for leaf in chosen.values()), what == FROZEN
        has_norm = any(name.startswith(f"backbone/{layer}/") for layer in norms for name in chosen)
        rows.append(
            {
                "group": what,
                "leaves": len(chosen),
                "params": count,
                "lr": 0.0 if frozen else lr * (factors or {}).get(what, 1.0),
                "decay": 0.0 if frozen else weight_decay,
                "bn": "-" if not has_norm else "eval" if frozen else bn,
                "bytes": sum(leaf.nbytes for leaf in chosen.values())
                * (1 if frozen else 2 + moments),
            }
        )
    return rows
