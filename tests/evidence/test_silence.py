"""What silences a target is found where it was planted, one cause at a time."""

from __future__ import annotations

import pytest
import torch

from saelink.evidence.silence import PARTS, silence_of
from saelink.interventions.joint import Joint

from helpers.planted import RULES, Rule, planted_block, sources


def biggest(joint: Joint) -> tuple[str, dict[str, float], dict[str, float]]:
    found = silence_of(joint, 0, 0, 1)
    assert found is not None and found.parts is not None
    assert sum(found.parts.values()) == pytest.approx(found.fall, rel=1e-3, abs=1e-4), "the parts add up"
    return max(PARTS, key=lambda name: found.parts[name] if found.parts else 0.0), found.parts, found.on


def joint_of(a: torch.Tensor, rule: Rule, rest: torch.Tensor | None = None, **more: object) -> Joint:
    rest = torch.full((len(a), 1), 20.0) if rest is None else rest
    norm = torch.nn.RMSNorm(a.shape[1] + rest.shape[1], eps=1e-6)
    gain = 20.0 / (a.shape[1] + rest.shape[1]) ** 0.5
    return Joint(planted_block(a, [rule], rest, norm, gain=gain, **more), [1.0, 1.0])  # type: ignore[arg-type]


def test_the_suppressor_itself() -> None:
    name, _, on = biggest(joint_of(sources(), lambda s: torch.relu(s[:, 0] - 1.5 * s[:, 1]) - 1.5 * s[:, 1]))
    assert name == "B" and on["B"] > 0.95 and on["B, norm held"] > 0.95 and on["the 1 that suppress most"] > 0.95


def test_a_gate_is_the_mlps() -> None:
    """B shuts off what A adds: that is B's, since taking it out gives it back; shut off by C, it is the MLP's."""
    a = sources()
    name, parts, on = biggest(joint_of(a, RULES["and not"]))
    assert name == "B" and on["B"] > 0.95 and abs(parts["MLP"]) < 0.1 * parts["B"] > abs(parts["others"])
    with_b = torch.where(a[:, 1:2] > 0, 1.0, 0.0)
    a = torch.cat([a[:, :-1], with_b], 1)
    joint = joint_of(a, lambda s: torch.relu(s[:, 0] - 3 * s[:, -1]))
    found = silence_of(joint, 0, 0, 1)
    assert found is not None and found.parts is not None
    assert max(found.parts, key=lambda part: found.parts[part] if found.parts else 0.0) == "MLP" and found.on["B"] == 0


def test_others_that_go_with_b() -> None:
    a = sources()
    for j in (2, 3, 4):
        a[:, j] = torch.where(a[:, 1] > 0, 0.5, 0.0)
    name, _, on = biggest(joint_of(a, lambda s: s[:, 0] - s[:, 2] - s[:, 3] - s[:, 4]))
    assert name == "others" and on["B"] == 0 and on["everything but A"] == 1
    assert on["the 1 that suppress most"] < 0.3 and on["the 3 that suppress most"] > 0.9


def test_a_fainter_a() -> None:
    a = sources()
    a[:, 0] = torch.where((a[:, 0] > 0) & (a[:, 1] > 0), 0.35, a[:, 0])
    name, _, on = biggest(joint_of(a, lambda s: s[:, 0] - 0.5))
    assert name == "dose" and on["B"] == 0 and on["everything but A"] == 0


def test_a_larger_norm() -> None:
    """The stream's constant is ten times as large where B is on: all that is read there is ten times smaller."""
    a = sources()
    rest = torch.where(a[:, 1:2] > 0, 200.0, 20.0)
    name, _, on = biggest(joint_of(a, lambda s: s[:, 0] - 0.3, rest))
    assert name == "norm" and on["B"] == 0


def test_the_targets_own_competitors() -> None:
    """Of a TopK SAE with k = 1, where another latent that B drives is larger."""
    a = sources()
    rest = torch.full((len(a), 1), 20.0)
    norm = torch.nn.RMSNorm(a.shape[1] + 1, eps=1e-6)
    rules: list[Rule] = [lambda s: s[:, 0], lambda s: 3 * s[:, 1]]
    joint = Joint(planted_block(a, rules, rest, norm, k=1, gain=20.0 / (a.shape[1] + 1) ** 0.5), [1.0, 1.0])
    assert biggest(joint)[0] == "threshold"


def test_nothing_to_explain() -> None:
    a = sources()
    assert silence_of(joint_of(a, RULES["copy"]), 0, 0, 1) is None
