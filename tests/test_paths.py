"""Operations on leaves by name: flatten, partition, split, merge, digest, nearest."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.paths import (
    FROZEN,
    TRAINABLE,
    digest,
    flatten,
    merge,
    nearest,
    partition,
    split,
    unflatten,
)

keys = st.text("abcdw01_.", min_size=1, max_size=4)
trees = st.dictionaries(
    keys,
    st.recursive(st.integers(), lambda node: st.dictionaries(keys, node, min_size=1, max_size=3)),
    max_size=4,
)
NET = {
    "backbone": {
        "stem": {"kernel": np.zeros((3, 2), np.float32)},
        "stage1": {"scale": np.ones(2, np.float32)},
    },
    "head": {"kernel": np.zeros((2, 2), np.float32), "bias": np.zeros(2, np.float32)},
}


def pairs(tree: Any, prefix: str = "") -> set[tuple[str, Any]]:
    """`(name, leaf)` of a nested dict, computed independently of `flatten`."""
    if not isinstance(tree, dict):
        return {(prefix, tree)}
    return {
        pair for key, node in tree.items() for pair in pairs(node, f"{prefix}/{key}".lstrip("/"))
    }


# ---- flatten, unflatten --------------------------------------------------------------------------


@given(trees)
def test_flatten_names_every_leaf_and_unflatten_is_its_inverse(tree: dict[str, Any]) -> None:
    flat = flatten(tree)
    assert set(flat.items()) == pairs(tree)
    assert list(flat) == sorted(flat)
    assert unflatten(flat) == tree
    assert flatten(unflatten(flat)) == flat


def test_holes_are_leaves_of_flatten() -> None:
    assert flatten({"a": {"b": None}, "c": 1}) == {"a/b": None, "c": 1}


# ---- split, merge --------------------------------------------------------------------------------


@given(trees, st.data())
def test_merge_undoes_split_and_every_leaf_is_on_one_side(
    tree: dict[str, Any], data: st.DataObject
) -> None:
    flat = flatten(tree)
    labels = {name: data.draw(st.sampled_from(["slow", "fast", FROZEN])) for name in flat}
    for keep in ("slow", FROZEN):
        inside, rest = split(tree, labels, keep)
        assert merge(inside, rest) == merge(rest, inside) == tree
        assert flatten(inside) == {
            name: leaf if labels[name] == keep else None for name, leaf in flat.items()
        }
        # `jax.tree.leaves` has no holes.
        assert sorted(jax.tree.leaves(inside)) == sorted(
            flat[name] for name in flat if labels[name] == keep
        )
        assert len(jax.tree.leaves(inside)) + len(jax.tree.leaves(rest)) == len(flat)


# ---- partition -----------------------------------------------------------------------------------


def test_the_first_rule_that_matches_the_whole_name_gives_the_label() -> None:
    rules = (("head/bias", "slow"), ("head/.*", TRAINABLE), ("backbone/.*", FROZEN))
    assert partition(NET, rules).labels == {
        "backbone/stage1/scale": FROZEN,
        "backbone/stem/kernel": FROZEN,
        "head/bias": "slow",
        "head/kernel": TRAINABLE,
    }


REST = (".*", FROZEN)


@pytest.mark.parametrize(
    ("rules", "parts"),
    [
        (
            [("head/.*", TRAINABLE)],
            ["no rule covers 'backbone/stem/kernel'", "no rule covers 'backbone/stage1/scale'"],
        ),
        (
            [("head", TRAINABLE), REST],
            ["rule 'head' decides no leaf; nearest names: 'head/bias', 'head/kernel'"],
        ),
        (
            [("haed/kernel", TRAINABLE), REST],
            ["rule 'haed/kernel' decides no leaf; nearest names: 'head/kernel'"],
        ),
        ([(".*", TRAINABLE), ("head/.*", FROZEN)], ["rule 'head/.*' decides no leaf"]),  # shadowed
        ([REST], ["every leaf is frozen, so there is nothing to train"]),
        *(
            ([("head/.*", TRAINABLE), (".*", word)], [f"label '{word}' of rule '.*' would train"])
            for word in ("Frozen", "forzen", "freeze", "frozen*0.5", "frozen_body", "fixed", "0")
        ),
        ([], ["no rule covers 'head/bias'"]),
        (  # all at once
            [("head/kernel", TRAINABLE), ("stem/.*", FROZEN)],
            [
                "no rule covers 'head/bias'",
                "no rule covers 'backbone/stage1/scale'",
                "rule 'stem/.*' decides no leaf",
            ],
        ),
    ],
)
def test_rules_that_do_not_fit_are_one_error(
    rules: list[tuple[str, str]], parts: list[str]
) -> None:
    with pytest.raises(ValueError, match="do not fit this tree") as caught:
        partition(NET, rules)
    assert all(part in str(caught.value) for part in parts)
    assert "\n" not in str(caught.value)


def test_a_rule_that_is_not_a_regular_expression_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"rule 'head/\(' is not a regular expression: missing \)"):
        partition(NET, [("head/(", TRAINABLE), REST])


def test_correct_rules_are_not_reported() -> None:
    with pytest.raises(ValueError) as caught:
        partition(NET, (("head/kernel", TRAINABLE), ("backbone/.*", FROZEN), ("tail", FROZEN)))
    message = str(caught.value).split("tree: ")[1]
    assert message.startswith("no rule covers 'head/bias'; rule 'tail' decides no leaf")
    assert "'backbone/.*'" not in message
    assert "frozen, so" not in message


# ---- digest --------------------------------------------------------------------------------------


def test_digest_depends_on_every_bit_name_dtype_and_shape_but_not_on_the_order_of_keys() -> None:
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    same = digest({"a": weights, "b": {"c": np.zeros(2, np.float32)}})
    assert digest({"b": {"c": jnp.zeros(2)}, "a": jnp.asarray(weights)}) == same
    assert digest({"b": {"c": np.zeros(2, np.float32)}, "a": np.asfortranarray(weights)}) == same
    flipped = weights.copy()
    flipped.view(np.uint32)[1, 2] ^= 1
    others = [
        {"a": flipped, "b": {"c": np.zeros(2, np.float32)}},
        {"a": weights, "b": {"c": -np.zeros(2, np.float32)}},
        {"a": weights, "b": {"c": np.zeros(2, np.int32)}},
        {"a": weights.reshape(3, 2), "b": {"c": np.zeros(2, np.float32)}},
        {"a": weights, "b": {"d": np.zeros(2, np.float32)}},
        {"a": weights, "b": {}},
    ]
    assert len({digest(tree) for tree in others} | {same}) == len(others) + 1


def test_digest_distinguishes_a_scalar_from_an_array_of_one() -> None:
    assert digest({"a": np.float32(1)}) != digest({"a": np.ones(1, np.float32)})


def test_digest_ignores_holes_and_is_sha256() -> None:
    assert digest({"a": None, "b": np.int32(1)}) == digest({"b": np.int32(1)})
    expected = hashlib.sha256(b"b|int32|()|" + b"\x01\x00\x00\x00").hexdigest()
    assert digest({"b": np.int32(1)}) == expected


# ---- nearest -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "names", "n", "expected"),
    [
        ("resnet5", ["vgg16", "resnet50", "resnet18"], 1, "'resnet50'"),
        ("RESNET50", ["vgg16", "resnet50"], 1, "'resnet50'"),
        ("vgg", ["Vgg16", "a"], 3, "'Vgg16'"),
        # Contained, not similar.
        ("cat", ["a long name with a cat in it", "dog"], 3, "'a long name with a cat in it'"),
        ("zzzz", ["b", "a", "c", "d"], 2, "'a', 'b'"),  # nothing is near: the first names
        ("", ["b", "a"], 3, "'a', 'b'"),
        ("x", [], 3, ""),
        ("tabby", ["tabby", "tabby"], 3, "'tabby'"),
    ],
)
def test_nearest_finds_similar_and_containing_names(
    name: str, names: list[str], n: int, expected: str
) -> None:
    assert nearest(name, names, n) == expected


@given(st.text(max_size=6), st.lists(st.text(max_size=6), max_size=6), st.integers(1, 4))
def test_nearest_quotes_at_most_n_known_names_once_each(
    name: str, names: list[str], n: int
) -> None:
    listed = nearest(name, names, n)
    pieces = [repr(k) for k in set(names)]
    assert (listed == "") == (not names)
    count, rest = 0, listed
    while rest:
        piece = max((p for p in pieces if rest.startswith(p)), key=len)
        pieces.remove(piece)
        count, rest = count + 1, rest[len(piece) :].removeprefix(", ")
    assert count <= n


# ---- Partition -----------------------------------------------------------------------------------


def test_a_partition_has_groups_in_the_order_of_the_rules_and_frozen_last() -> None:
    parts = partition(NET, (("backbone/stem/.*", FROZEN), ("head/.*", "head"), (".*", "from_top")))
    assert parts.groups == ("head", "from_top", FROZEN)
    assert parts.trained == {"head/kernel", "head/bias", "backbone/stage1/scale"}
    trainable, frozen = parts.split(NET)
    assert {name for name, leaf in flatten(trainable).items() if leaf is not None} == parts.trained
    assert merge(trainable, frozen).keys() == NET.keys()
    assert flatten(parts.label_tree)["backbone/stem/kernel"] is None
