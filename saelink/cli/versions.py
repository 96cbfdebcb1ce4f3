"""Which version every stage has now, and why an artifact is of an earlier one."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import saelink
from saelink.experiments import EXPERIMENTS
from saelink.fit.lasso.coordinate import LASSO_VERSION
from saelink.fit.products.dense import GRAM_VERSION
from saelink.model.describe import VERSION as MODEL_VERSION
from saelink.saes.choice import READING
from saelink.store.artifact import Artifact
from saelink.store.stage import Stage

PARTS = {"gram": GRAM_VERSION, "lasso": LASSO_VERSION}
"""Versions of what several stages share, which their recipes name."""

AWAY = ("saelink.kernels", "saelink.cli", "saelink.__main__")
"""Modules that define no stage and take long to import, or begin something."""


def stage_versions() -> dict[str, int]:
    """By its name the version of every stage that there is: of every class in the package."""
    for module in pkgutil.walk_packages(saelink.__path__, "saelink."):
        if not module.name.startswith(AWAY):
            importlib.import_module(module.name)
    own = [kind for kind in _below(Stage) if kind.__module__.startswith("saelink.") and "version" in vars(kind)]
    return {"model": MODEL_VERSION} | {kind.name: kind.version for kind in own}


def _below(kind: type[Any]) -> Iterator[type[Any]]:
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)


def why_old(artifact: Artifact[Any], versions: dict[str, int]) -> str | None:
    """Why an artifact by itself is of an earlier version, such as `version 2, now 3`; None where it is not.

    A stage that this program does not know, and one of a later version, are somebody else's.
    """
    recipe = artifact.recipe
    then, now = artifact.manifest["version"], versions.get(artifact.stage)
    if now is None:
        return None
    if then < now:
        return f"version {then}, now {now}"
    for part, version in PARTS.items():
        if isinstance(recipe.get(part), int) and recipe[part] < version:
            return f"{part} of version {recipe[part]}, now {version}"
    if artifact.stage == "experiment" and recipe.get("name") in EXPERIMENTS:
        then, now = recipe.get("version"), EXPERIMENTS[recipe["name"]].version
        if isinstance(then, int) and then < now:
            return f"{recipe['name']} of version {then}, now {now}"
    read = re.fullmatch(r"hub:.* read (\d+)", artifact.manifest["inputs"].get("sae", ""))
    if read is not None and int(read[1]) < READING:
        return f"SAE files read by version {read[1]}, now {READING}"
    return None
