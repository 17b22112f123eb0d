"""Which parameters train: phases and learning-rate factors, from short forms of `tune` or rules.

Rules become a `tl.paths.Partition` once per phase; the functions here derive everything else from
it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from tl.paths import FROZEN, TRAINABLE, Partition, Rules, flatten, nearest, partition

__all__ = [
    "BN",
    "HEAD",
    "SURGICAL",
    "Partition",
    "Phase",
    "TUNE",
    "frozen_prefix",
    "norm_layer_name",
    "norm_layers",
    "parse_rules",
    "parse_phase",
    "partition",
    "phases",
    "rate_factors",
    "table",
    "trainable_norm_layers",
]

HEAD: Rules = (("head/.*", "head"), (".*", FROZEN))
TUNE = (
    *("probe", "head", "last:N", "all", "gradual", "lp_ft", "lp_ft:N"),
    *("bn_only", "bn_only:N", "bias_only", "lora:R", "surgical", "surgical:snr", "surgical:STAGE"),
)
"""The short forms of `tune`.

"probe" fits the head to its optimum (`training.probe`); all others take gradient steps. "gradual"
unfreezes one more stage at a time from the top (Howard & Ruder 2018, arXiv:1801.06146, section
3.3). "lp_ft" trains everything, or the last N stages, starting from a probe (Kumar et al. 2022,
arXiv:2202.10054). "surgical" trains the head and one stage, starting from a probe; without the name
of a stage, `training.surgical` chooses it by a criterion of `SURGICAL`. The other four train the
head and a small part of the backbone: the scales and biases of BatchNorm (Frankle et al. 2021,
arXiv:2003.00152), those of the last N stages, all biases (BitFit; Ben Zaken et al. 2021,
arXiv:2106.10199), or updates of rank R (`training.low_rank`).
"""

SURGICAL = {"surgical": "relative_norm", "surgical:snr": "signal_to_noise"}
"""The forms of `tune` that choose a stage -> the row of `surgical.stage_gradients` that decides."""

BN = ("eval", "update", "affine", "reestimate")
"""What BatchNorm does in the layers that train; in a frozen layer it is always "eval".

eval: normalizes with the running statistics, which do not change; scale and bias train.
update: normalizes with the statistics of the batch, and updates the running statistics.
affine: as eval, and of the chosen stages only the scales and biases of BatchNorm train.
reestimate: as eval, and after training the statistics are computed again from the training images.
"""


class Phase(NamedTuple):
    """A part of training under one set of rules.

    Attributes:
      name: name of the phase, such as "last:1".
      rules: which parameters train.
      share: share of the epochs, in [0, 1].
      rank: rank of the updates of kernels that `training.low_rank.extend` adds to the parameters
        before the rules are applied; 0 for none.
    """

    name: str
    rules: Rules
    share: float = 1.0
    rank: int = 0


def phases(tune: str, stages: Sequence[str], *, bn: str = "eval") -> tuple[Phase, ...]:
    """The phases of a short form.

    Args:
      tune: one of `TUNE`; in "last:N", N is a number of stages. The layers after the last stage
        (`top`) belong to it. In "lora:R", R is a rank of at least 0; "lora:0" trains the head.
      stages: the backbone's endpoints, `BackboneSpec.endpoints`.
      bn: one of `BN`.

    Returns:
      One phase, or several for "gradual" and "lp_ft".

    Raises:
      ValueError: an unknown form (names the nearest), more stages than the network has, or a rank
        that is not a number of at least 0.

    Example:
      >>> phases("last:1", ("stem", "stage1", "stage2", "top"))[0].rules
      (('head/.*', 'head'), ('backbone/top/.*', 'top'), ('backbone/stage2/.*', 'stage2'), ('.*',
      'frozen'))
    """
    blocks = [[name] for name in stages if name != "top"]
    blocks[-1] += [name for name in stages if name == "top"]

    def last(n: int, norms_only: bool = bn == "affine") -> Rules:
        chosen = [name for block in blocks[len(blocks) - n :] for name in block][::-1]
        if norms_only:
            norms = "backbone/(?:(?:{})/(?:.*/)?(?:norm|preact)|top)/(?:scale|bias)".format(
                "|".join(chosen)
            )
            return (("head/.*", "head"), (norms, "norms"), (".*", FROZEN))
        rest: Rules = ((".*", FROZEN),) if n < len(blocks) else ()
        return (("head/.*", "head"), *((f"backbone/{name}/.*", name) for name in chosen), *rest)

    form, _, number = tune.partition(":")
    if form in ("last", "lp_ft", "bn_only") and number.isdigit():
        if not 1 <= int(number) <= len(blocks):
            raise ValueError(
                f"`tune={tune}`: this network has {len(blocks)} stages; "
                f"use {form}:1 to {form}:{len(blocks)}"
            )
        if form == "bn_only":
            return (Phase(tune, last(int(number), norms_only=True)),)
        tuned = Phase(f"last:{number}", last(int(number)))
        return (tuned,) if form == "last" else (Phase("probe", HEAD, 0.0), tuned)
    if tune in ("probe", "head"):
        return (Phase(tune, HEAD),)
    if tune == "all":
        return (Phase(tune, last(len(blocks))),)
    if tune == "bn_only":
        return (Phase(tune, last(len(blocks), norms_only=True)),)
    if tune == "bias_only":
        return (Phase(tune, (("head/.*", "head"), ("backbone/.*/bias", "biases"), (".*", FROZEN))),)
    if tune in SURGICAL:  # `fit` replaces the last phase by that of a stage
        return (Phase("probe", HEAD, 0.0), Phase(tune, last(len(blocks))))
    if form == "surgical":
        if number not in stages:
            raise ValueError(
                f"`tune={tune}` names no stage: got {number!r}, expected one of "
                f"{', '.join(stages)}, or snr for the one with the largest signal-to-noise ratio"
            )
        chosen: Rules = ((f"backbone/{number}/.*", number),)
        return (Phase("probe", HEAD, 0.0), Phase(tune, (HEAD[0], *chosen, HEAD[1])))
    if form == "lora":
        if not number.isdecimal():
            raise ValueError(
                f"`tune={tune}` has no rank: got {number!r}, expected a number of at least 0, such "
                "as lora:4"
            )
        low_rank: Rules = (("lora/.*", "lora"),) if int(number) else ()
        return (Phase(tune, (HEAD[0], *low_rank, HEAD[1]), rank=int(number)),)
    if tune == "lp_ft":
        return (Phase("probe", HEAD, 0.0), Phase("all", last(len(blocks))))
    if tune == "gradual":
        steps = [
            Phase("head", HEAD),
            *(Phase(f"last:{n}", last(n)) for n in range(1, len(blocks) + 1)),
        ]
        return tuple(phase._replace(share=1 / len(steps)) for phase in steps)
    raise ValueError(
        f"unknown `tune`: got {tune!r}, expected {', '.join(TUNE)}; nearest: {nearest(form, TUNE)}"
    )


_LABEL = re.compile(r"(\w+)(?:\*(\d+\.?\d*(?:e-?\d+)?))?")


def parse_rules(words: Sequence[str]) -> Rules:
    """Parses rules written as `REGEX=LABEL`.

    A label is "frozen", or the name of a group with an optional factor on the learning rate,
    "slow*0.1".

    Raises:
      ValueError: a word of another form.

    Example:
      >>> parse_rules(["head/.*=head", ".*=body*0.1"])
      (('head/.*', 'head'), ('.*', 'body*0.1'))
    """
    rules = tuple((pattern, label) for pattern, _, label in (w.rpartition("=") for w in words))
    wrong = [
        word
        for word, (pattern, label) in zip(words, rules, strict=True)
        if not (pattern and _LABEL.fullmatch(label))
    ]
    if wrong:
        raise ValueError(
            f"`rules` must have the form REGEX=LABEL: got {wrong[0]!r}; write for example "
            "'head/.*=trainable', '.*/stage4/.*=slow*0.1' or '.*=frozen'"
        )
    return rules


def parse_phase(words: Sequence[str], stages: Sequence[str]) -> Phase | None:
    """The phase of rules, one per line, or the last phase of one short form; None without any.

    Args:
      words: as for `parse_rules`; a word may have several lines. Or one form of `TUNE`.
      stages: the backbone's endpoints.

    Raises:
      ValueError: as `parse_rules` and `phases`.

    Example:
      >>> parse_phase(["lora:4"], ("stem", "stage1"))  # doctest: +NORMALIZE_WHITESPACE
      Phase(name='lora:4', rules=(('head/.*', 'head'), ('lora/.*', 'lora'), ('.*', 'frozen')),
            share=1.0, rank=4)
    """
    lines = [line.strip() for word in words for line in word.splitlines() if line.strip()]
    if len(lines) == 1 and "=" not in lines[0] and "/" not in lines[0]:
        return phases(lines[0], stages)[-1]
    return Phase("rules", parse_rules(lines)) if lines else None


def rate_factors(
    groups: Collection[str],
    stages: Sequence[str],
    *,
    backbone: float = 1.0,
    layer_decay: float = 1.0,
) -> dict[str, float]:
    """The factor on the learning rate of every label that trains.

    Args:
      groups: labels, `Partition.groups`; a label with a factor of its own ("slow*0.1") keeps it.
      stages: the backbone's endpoints, in their order.
      backbone: factor of every group except the head (discriminative rates; Howard & Ruder 2018,
        arXiv:1801.06146, section 3.2).
      layer_decay: further factor per stage away from the head (Clark et al. 2020, arXiv:2003.10555,
        appendix A, for layers).

    Raises:
      ValueError: a label with "*" and no number after it.

    Example:
      >>> groups, stages = ("head", "stage2", "stage1", "frozen"), ("stage1", "stage2")
      >>> rate_factors(groups, stages, layer_decay=0.5)
      {'head': 1.0, 'stage2': 0.5, 'stage1': 0.25}
    """
    factors = {}
    for group in groups:
        if group == FROZEN:
            continue
        match = _LABEL.fullmatch(group)
        if "*" in group and not match:
            raise ValueError(
                f"label {group!r} of `rules` has no factor that can be read: expected a name and a "
                "number of at least 0, such as 'slow*0.1'"
            )
        if match and match[2]:
            factors[group] = float(match[2])
        elif group in stages:
            factors[group] = backbone * layer_decay ** (len(stages) - stages.index(group))
        else:
            factors[group] = 1.0 if group in ("head", TRAINABLE) else backbone
    return factors


def frozen_prefix(trained: Collection[str], stages: Sequence[str]) -> str:
    """The last stage before the first trainable leaf.

    Gradients stop there, and its output can be computed once for all epochs.

    Args:
      trained: names of the trainable leaves, `Partition.trained`.
      stages: the backbone's endpoints, in their order.

    Returns:
      A stage; "features" if only the head trains, "" if the first stage trains.
    """
    updated = (name.removeprefix("lora/") for name in trained)
    tuned = {name.split("/")[1] for name in updated if name.startswith("backbone/")}
    before = ""
    for stage in stages:
        if stage in tuned:
            return before
        before = stage
    return "features"


def norm_layer_name(statistic: str) -> str:
    """The layer of a leaf of `batch_stats`, as `Classifier.apply(train_norms=...)` names it.

    Example:
      >>> norm_layer_name("backbone/stage4/block0/conv1/norm/mean")
      'stage4/block0/conv1'
      >>> norm_layer_name("backbone/top/var")
      'top'
    """
    return statistic.removeprefix("backbone/").rpartition("/")[0].removesuffix("/norm")


def norm_layers(stats: Mapping[str, Any]) -> frozenset[str]:
    """The layers with BatchNorm, by their names in `norm_layer_name`."""
    return frozenset(norm_layer_name(name) for name in flatten(stats))


def trainable_norm_layers(trained: Collection[str], stats: Mapping[str, Any]) -> frozenset[str]:
    """The layers with BatchNorm of which at least one parameter trains.

    Args:
      trained: names of the trainable leaves, `Partition.trained`.
      stats: `batch_stats`.

    Returns:
      Names for `Classifier.apply(train_norms=...)`.
    """
    return frozenset(
        layer
        for layer in norm_layers(stats)
        if any(name.startswith(f"backbone/{layer}/") for name in trained)
    )


def table(
    params: Mapping[str, Any],
    partition: Partition,
    *,
    lr: float = 0.0,
    factors: Mapping[str, float] | None = None,
    weight_decay: float = 0.0,
    bn: str = "eval",
    norms: Collection[str] = (),
    moments: int = 2,
) -> list[dict[str, Any]]:
    """The trainable groups: one row per group, in the order of the rules, frozen last.

    Args:
      params: the whole tree, or a part of it; a group without leaves in it has no row.
      partition: its labels.
      lr, factors, weight_decay: settings of the optimizer; the learning rate of a group is `lr`
        times its factor.
      bn: one of `BN`; a group without BatchNorm has "-", the frozen group "eval".
      norms: the layers with BatchNorm, `norm_layers`.
      moments: floats per parameter in the optimizer's state (2 for Adam, 1 for momentum).

    Returns:
      Rows of `group`, `leaves`, `params`, `lr`, `decay`, `bn`, `bytes` (parameters, gradient and
      optimizer state).
    """
    leaves, rows = flatten(params), []
    for group in partition.groups:
        members = {name: leaf for name, leaf in leaves.items() if partition.labels[name] == group}
        if not members:
            continue
        frozen = group == FROZEN
        has_norm = any(name.startswith(f"backbone/{layer}/") for layer in norms for name in members)
        rows.append(
            {
                "group": group,
                "leaves": len(members),
                "params": sum(leaf.size for leaf in members.values()),
                "lr": 0.0 if frozen else lr * (factors or {}).get(group, 1.0),
                "decay": 0.0 if frozen else weight_decay,
                "bn": "-" if not has_norm else "eval" if frozen else bn,
                "bytes": sum(leaf.nbytes for leaf in members.values())
                * (1 if frozen else 2 + moments),
            }
        )
    return rows
