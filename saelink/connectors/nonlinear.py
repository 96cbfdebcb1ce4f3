"""The nonlinear connector: y = relu(x W (+ b)). Its rows are as independent as the linear one's."""

from __future__ import annotations

from dataclasses import dataclass

from saelink.config import ConnectorConfig
from saelink.connectors import linear


@dataclass
class Config(ConnectorConfig):
    """Settings of connector=nonlinear."""


class Connector(linear.Connector):
    """y = relu(x W (+ b)); W [d_source, d_target], b [d_target]. An edge is an entry of W."""

    Config = Config
    relu_output = True
    default_solver = "adam"
