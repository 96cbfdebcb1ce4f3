"""Connectors: maps from source latents to target latents. One file each, registered by being here.

A connector file has one subclass of `base.Connector`, whose `Settings` is the dataclass of its settings; the file's
name is what `connector=` takes.
"""

from __future__ import annotations

import sys

from saelink.connectors.base import Connector
from saelink.registry import registered

CONNECTORS: dict[str, type[Connector]] = registered(
    sys.modules[__name__], Connector, but=("base", "exported", "wide_linear")
)
