"""Connectors: maps from source latents to target latents. One file each, registered by being here.

A connector file has a class `Connector` (a subclass of `base.Connector`) with the dataclass of its settings as
`Connector.Config`; the file's name is what `connector=` takes.
"""

from __future__ import annotations

import importlib
import pkgutil

from saelink.connectors.base import Connector

CONNECTORS: dict[str, type[Connector]] = {
    module.name: importlib.import_module(f"{__name__}.{module.name}").Connector
    for module in pkgutil.iter_modules(__path__)
    if module.name != "base"
}
