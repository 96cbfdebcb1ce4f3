"""Files that register themselves by being in a folder: connectors, solvers, experiments."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection
from types import ModuleType
from typing import Any


def registered(package: ModuleType, base: type, but: Collection[str]) -> dict[str, Any]:
    """By file name the subclass of `base` that each file of a package defines, which is exactly one.

    `but` names the files that define none.
    """
    found: dict[str, Any] = {}
    for entry in pkgutil.iter_modules(package.__path__):
        if entry.name in but:
            continue
        module = importlib.import_module(f"{package.__name__}.{entry.name}")
        classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
        classes = [c for c in classes if issubclass(c, base)]
        assert len(classes) == 1, (
            f"{module.__name__} defines {len(classes)} classes of {base.__name__}; one is expected"
        )
        found[entry.name] = classes[0]
    return found
