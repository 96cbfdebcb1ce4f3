"""Recipes and keys: equal recipes have one key, however they are written down; other recipes have another."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from saelink.store.files import json_bytes
from saelink.store.recipe import Plan, is_key, recipe_of


class Shade(Enum):
    light = 1
    dark = "of another type"


class Count(IntEnum):
    one = 1
    two = 2


class Word(StrEnum):
    hello = "another word"


@dataclasses.dataclass
class Inner:
    x: Any
    shade: Shade = Shade.light


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    items: Any


TEXT = st.text(max_size=6)

SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | TEXT | st.floats(allow_nan=False, allow_infinity=False)
)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Lists and dicts of leaves, of each other."""
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
    )


PLAIN = nested(SCALARS)
"""What JSON can hold: what a recipe consists of."""

SETTINGS = st.recursive(
    SCALARS | st.sampled_from([*Shade, *Count, *Word]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(TEXT, inner, max_size=3)
        | st.dictionaries(TEXT, inner, max_size=2).map(MappingProxyType)
        | st.builds(Inner, inner, st.sampled_from(Shade))
        | st.builds(Outer, st.builds(Inner, inner), inner)
    ),
    max_leaves=8,
)
"""What a stage puts into a recipe."""

KEYS = st.text("0123456789abcdef", min_size=12, max_size=12)

INPUTS = st.dictionaries(TEXT, KEYS, max_size=3)


def plan(recipe: Any, stage: str = "stage", version: int = 1, inputs: dict[str, str] | None = None) -> Plan:
    return Plan(stage, version, {"value": recipe}, inputs or {}, "")


def typed(value: Any) -> Any:
    """The value such that == also tells 1 from 1.0 and True, and 0.0 from -0.0; a dict's order doesn't count."""
    if isinstance(value, dict):
        return {name: typed(item) for name, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return type(value).__name__, value, isinstance(value, float) and math.copysign(1, value) < 0


def reordered(value: Any, order: random.Random) -> Any:
    """The same value, its dicts filled in another order."""
    if isinstance(value, dict):
        return {name: reordered(value[name], order) for name in order.sample(list(value), len(value))}
    return [reordered(item, order) for item in value] if isinstance(value, list) else value


def plainly(value: Any) -> Any:
    """What `recipe_of` is to give, written down again."""
    match value:
        case Enum():
            return value.name
        case Inner():
            return {"x": plainly(value.x), "shade": value.shade.name}
        case Outer():
            return {"inner": plainly(value.inner), "items": plainly(value.items)}
        case dict() | MappingProxyType():
            return {name: plainly(item) for name, item in value.items()}
        case list() | tuple():
            return [plainly(item) for item in value]
    return value


@given(SETTINGS)
def test_a_recipe_is_plain_data(value: Any) -> None:
    recipe = recipe_of(value)
    assert typed(recipe) == typed(plainly(value))
    assert typed(recipe_of(recipe)) == typed(recipe)


@given(SETTINGS, INPUTS)
def test_a_manifest_has_the_key_of_its_artifact(value: Any, inputs: dict[str, str]) -> None:
    """A recipe comes back from JSON as it went in, so that the key can be computed again from the manifest."""
    made = plan(recipe_of(value), inputs=inputs)
    assert is_key(made.key)
    again = json.loads(json_bytes({"recipe": made.recipe, "inputs": made.inputs}))
    assert Plan("stage", 1, again["recipe"], again["inputs"], "other words").key == made.key


@given(PLAIN, INPUTS, st.randoms(use_true_random=False))
def test_the_order_of_entries_does_not_count(value: Any, inputs: dict[str, str], order: random.Random) -> None:
    one = plan(recipe_of(value), inputs=inputs)
    assert plan(recipe_of(reordered(value, order)), inputs=reordered(inputs, order)).key == one.key


@given(st.decimals(allow_nan=False, allow_infinity=False, places=None).filter(lambda d: abs(d.adjusted()) < 300))
@example(Decimal("1e-3"))
@example(Decimal("1e22"))
def test_a_number_has_one_key_however_it_is_written(number: Decimal) -> None:
    """1e-3, 0.001, 1.0E-03, ..."""
    spellings = [f"{number:e}", f"{number:f}", f"{number:E}", repr(float(number)), f"{float(number):.17g}"]
    assert len({plan(recipe_of(float(spelling))).key for spelling in spellings}) == 1


@given(PLAIN, PLAIN)
def test_other_values_have_other_keys(one: Any, two: Any) -> None:
    assume(typed(one) != typed(two))
    assert plan(one).key != plan(two).key


@given(PLAIN, st.data())
def test_a_changed_leaf_changes_the_key(value: Any, data: st.DataObject) -> None:
    def changed(value: Any) -> Any:
        """`value` with one leaf, or one empty list or dict, made another."""
        if isinstance(value, dict) and value:
            name = data.draw(st.sampled_from(sorted(value)))
            return value | {name: changed(value[name])}
        if isinstance(value, list) and value:
            place = data.draw(st.integers(0, len(value) - 1))
            return [*value[:place], changed(value[place]), *value[place + 1 :]]
        return data.draw(SCALARS.filter(lambda other: typed(other) != typed(value)))

    assert plan(value).key != plan(changed(value)).key


@given(PLAIN, INPUTS, TEXT, st.integers(0, 9))
def test_stage_version_and_inputs_count_too(value: Any, inputs: dict[str, str], stage: str, version: int) -> None:
    base = Plan(stage, version, {"value": value}, inputs, "")
    others = [
        Plan(stage + "x", version, base.recipe, inputs, ""),
        Plan(stage, version + 1, base.recipe, inputs, ""),
        Plan(stage, version, base.recipe, inputs | {"one more role": "0" * 12}, ""),
        Plan(stage, version, base.recipe | {"one more entry": None}, inputs, ""),
        Plan(stage, version, inputs, base.recipe, ""),
    ]
    assert len({base.key, *(other.key for other in others)}) == len(others) + 1
    assert Plan(stage, version, base.recipe, inputs, "other words").key == base.key


@given(PLAIN, st.sampled_from([math.nan, math.inf, -math.inf]))
def test_what_is_no_number_has_no_key(value: Any, wrong: float) -> None:
    for recipe in (wrong, [value, wrong], {"a": value, "b": [{"c": wrong}]}):
        with pytest.raises(ValueError, match="JSON"):
            _ = plan(recipe_of(recipe)).key


OBJECTS = st.sampled_from(
    [
        {1, 2}, frozenset(), b"bytes", bytearray(), Path("a"), 1j, Decimal(1), object(), range(3), iter([1]), len,
        {1: "of", "1": "one key"}, {object(): 1}, {None: 1}, {("a", "b"): 1}, Inner, Shade,
        np.float32(1), np.int64(1), np.bool_(True), np.zeros(2), torch.tensor(1.0), torch.float32,
    ]
)  # fmt: skip


@given(nested(SCALARS | OBJECTS), OBJECTS, st.booleans())
def test_what_is_no_plain_data_is_refused(value: Any, culprit: Any, in_dict: bool) -> None:
    """However deep it stands; its repr, which may hold an address, enters no key."""
    for wrong in (culprit, [value, culprit], {"a": value, "b": culprit}, Inner(culprit), Outer(Inner(1), (culprit,))):
        with pytest.raises(AssertionError, match="can't be part of a recipe"):
            recipe_of({"x": wrong} if in_dict else wrong)
