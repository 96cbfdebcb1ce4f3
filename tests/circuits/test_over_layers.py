"""One configuration for several layers."""

from __future__ import annotations

import pytest

from saelink.config.check import layer_numbers
from saelink.errors import SaelinkError
from saelink.store.store import Store

from helpers.world import Run


@pytest.mark.parametrize(
    ("value", "layers"), [([2, 0, 2], [0, 2]), (3, [3]), ("0-3", [0, 1, 2, 3]), ("5-5", [5]), ("all", None)]
)
def test_layers_are_numbers_a_range_or_all(value: object, layers: list[int] | None) -> None:
    assert layer_numbers(value) == layers


@pytest.mark.parametrize("value", [[], "3-1", [-1], "x", [1.5], [True], ["1"], -1])
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(SaelinkError, match=r"layers=.*: give layers from 0 on, such as"):
        layer_numbers(value)


def stages(name: str) -> list[int]:
    return sorted(found.facts["described"]["layer"] for found in Store("outputs").artifacts() if found.stage == name)


def test_train_fits_every_layer(saelink: Run) -> None:
    code, out, err = saelink("train", "layers=all", "solver=exact", "l1_alpha=[1e-3,1e-2]")
    assert code == 0, err
    assert stages("train") == [0, 0, 1, 1]
    assert out.count("\nlayer 0") == out.count("\nlayer 1") == 1
    code, out, err = saelink("train", "layers=0-1", "solver=exact", "l1_alpha=1e-3")
    assert code == 0 and out.count("up to date") >= 2, err


def test_encode_takes_attention_along(saelink: Run) -> None:
    code, _, err = saelink("encode", "layers=[0,1]")
    assert code == 0, err
    hooks = sorted(found.facts["hook_name"] for found in Store("outputs").artifacts() if found.stage == "encode")
    wanted = sorted(f"blocks.{n}.hook_{name}" for n in (0, 1) for name in ("resid_mid", "mlp_out", "attn_out"))
    assert hooks == wanted


def test_mistakes_get_one_line(saelink: Run) -> None:
    for words, said in (
        (["train", "layers=0-7"], "layers=0-7: the model has layers 0 to 1"),
        (["train", "layers=some"], "layers=some: give layers from 0 on"),
        (["report", "layers=0-1"], "layers=0-1: saelink report takes one layer, such as layer=1"),
        (["show", "target", "3", "layers=all"], "saelink show takes one layer"),
    ):
        code, _, err = saelink(*words)
        assert code == 1 and said in err and len(err.strip().splitlines()) == 1, err
