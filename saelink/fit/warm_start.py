"""Where a fit starts: weights of another connector, from the store, a folder or the hub."""

from __future__ import annotations

from pathlib import Path

import torch

from saelink.connectors.exported import WEIGHTS_FILE, ExportedConnector, load_connector
from saelink.errors import SaelinkError
from saelink.fetch import ON_HUB
from saelink.job import Job
from saelink.store.recipe import is_key

STARTS = ("random", "zero")


def warm_start(job: Job, target_ids: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """The weights that connector.init names, as a connector's file has them (see `packed_state`).

    Raises SaelinkError for another stage's key or other latents.
    """
    key = job.cfg.connector.init
    if key in STARTS:
        return None
    if names_exported(key):
        return _exported_start(job, target_ids)
    try:
        artifact = job.store.get(key)
    except SaelinkError as error:
        raise SaelinkError(f"connector.init={key}: {error}; otherwise {' or '.join(STARTS)}") from None
    sides = job.sides
    inputs = {f"source{i}": source.key for i, source in enumerate(sides.sources)} | {"target": sides.target.key}
    if artifact.stage != "train" or any(artifact.manifest["inputs"].get(role) != key for role, key in inputs.items()):
        raise SaelinkError(f"connector.init={key}: that is no connector between the same latents")
    tensors = artifact.tensors(WEIGHTS_FILE)
    if not torch.equal(tensors["target_ids"], target_ids):
        raise SaelinkError(f"connector.init={key}: that connector explains other target latents")
    return tensors


def names_exported(init: str) -> bool:
    """Whether connector.init names an exported connector."""
    if init in STARTS or is_key(init):
        return False
    return init.startswith(ON_HUB) or "/" in init or Path(init).is_dir()


_from_hubs: dict[str, ExportedConnector] = {}


def exported(place: str) -> ExportedConnector:
    """An exported connector; a hub is asked once per process: a branch that moves changes nothing midway."""
    if not place.startswith(ON_HUB):
        return load_connector(place)
    if place not in _from_hubs:
        _from_hubs[place] = load_connector(place)
    return _from_hubs[place]


def _exported_start(job: Job, target_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weights of an exported connector in the units of these latents. Raises SaelinkError for other hooks."""
    place, link, sides = job.cfg.connector.init, job.link, job.sides
    start = exported(place)
    theirs = [(side["hook_name"], side["d"]) for side in [*start.config["sources"], start.config["target"]]]
    ours = [
        (hook, side.facts["d_sae"])
        for hook, side in zip([*link.sources, link.target], [*sides.sources, sides.target], strict=True)
    ]
    if theirs != ours:
        said, wanted = (", ".join(f"{hook} ({d:,} latents)" for hook, d in side) for side in (theirs, ours))
        raise SaelinkError(f"connector.init={place}: that connector is of {said}; here it is {wanted}")
    if not torch.equal(start.target_ids, target_ids):
        raise SaelinkError(f"connector.init={place}: that connector explains other target latents")
    scales = [
        torch.full((side.facts["d_sae"],), scale) for side, scale in zip(sides.sources, sides.scales, strict=False)
    ]
    return start.in_units(torch.cat(scales), sides.scales[-1])
