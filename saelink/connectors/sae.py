"""The sae connector: an mlp whose hidden activations are penalised too, so that few hidden units fire per token."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from saelink.connectors.mlp import MLPConnector, MLPSettings


class HiddenL1(Enum):
    """Units of the hidden penalty."""

    as_is = "as_is"
    sqrt_c = "sqrt_c"


@dataclass
class SAEConnectorSettings(MLPSettings):
    """Settings of connector=sae."""

    hidden_bias: bool = False
    """Add a constant to every hidden unit (`bias` does that too)."""
    hidden_l1: HiddenL1 = HiddenL1.as_is
    """as_is, or sqrt_c: the hidden penalty divided by sqrt(c), the units in which the error is measured."""


class SAEConnector(MLPConnector):
    """y = relu(x W1 (+ b1)) W2 (+ b2), with l1_alpha times the mean l1 norm of the hidden activations added."""

    Settings = SAEConnectorSettings

    @property
    def _hidden_bias(self) -> bool:
        return self.config.bias or self.config.hidden_bias

    def hidden_penalty(self, c: float) -> float:
        return c**-0.5 if self.config.hidden_l1 is HiddenL1.sqrt_c else 1.0
