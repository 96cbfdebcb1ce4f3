"""The two_nonlinear connector: y = relu(relu(x W1 (+ b1)) W2 (+ b2)).

From a random start with the squared error many of its outputs die: where z < 0 on all tokens no gradient comes
back. Start it from a fitted mlp (connector.init=KEY) or use solver.loss=matching; `evaluate` counts dead outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from saelink.connectors.mlp import MLPConnector, MLPSettings


@dataclass
class TwoNonlinearSettings(MLPSettings):
    """Settings of connector=two_nonlinear."""


class TwoNonlinearConnector(MLPConnector):
    """The mlp connector with a relu on its output; weights, penalty and edges are the mlp's."""

    Settings = TwoNonlinearSettings
    relu_output = True
