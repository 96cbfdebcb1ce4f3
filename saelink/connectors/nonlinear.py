"""The nonlinear connector: y = relu(x W (+ b)). Its rows are as independent as the linear one's."""

from __future__ import annotations

from dataclasses import dataclass

from saelink.config.schema import ConnectorConfig
from saelink.connectors.linear import LinearConnector


@dataclass
class NonlinearSettings(ConnectorConfig):
    """Settings of connector=nonlinear."""


class NonlinearConnector(LinearConnector):
    """y = relu(x W (+ b)); W [d_source, d_target], b [d_target]. An edge is an entry of W."""

    Settings = NonlinearSettings
    relu_output = True
    default_solver = "adam"
