"""Which SAE a hook has: in a folder, on the hub, in a release, or one that is trained."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from saelink.config.files import PACKAGE
from saelink.config.schema import Config, SAEConfig
from saelink.errors import SaelinkError
from saelink.fetch import ON_HUB, hub_address, hub_commit, hub_errors
from saelink.saes.formats import FOLDERS, identity, known_folders
from saelink.saes.formats.saelens import modern
from saelink.saes.hub import HubPlace, hub_file
from saelink.saes.training import SAEStage
from saelink.store.store import Store

READING = 2
"""Raised when other numbers are read from the same folder of a hub: 2 since what lies beside the weights is read."""


class SAEChoice(NamedTuple):
    """The SAE of a hook, before it is loaded or even trained."""

    key: str
    """Key of the `sae` artifact, or where it comes from and what identifies its contents there."""
    about: str
    path: Path | None = None
    """Its folder or file, if it is on disk."""
    hub: HubPlace | None = None
    """Where it is on the hub."""
    release: tuple[str, str] | None = None
    """Its release and id in sae-lens' directory."""

    @property
    def exists(self) -> bool:
        """Whether it need not be trained."""
        return self.path is not None or self.hub is not None or self.release is not None

    @property
    def where(self) -> str:
        """For a message: where it is."""
        if self.release is not None:
            return f"sae.release={self.release[0]} sae.id={self.release[1]}"
        if self.hub is not None:
            return f"{ON_HUB}{self.hub.repository}/{self.hub.path}"
        return f"sae.path={self.path}"


def sae_choice(cfg: Config, store: Store, hook_name: str) -> SAEChoice:
    """Which SAE reads `hook_name`: what sae.release, sae.files, sae.hub or sae.path have for it, else a trained one.

    Raises SaelinkError when there is none and `sae.train_missing` is false.
    """
    settings = cfg.sae
    if settings.release is not None:
        chosen = _release_of(cfg, hook_name)
        if chosen is not None:
            return chosen
    tried = ""
    named = entry_of_hook(settings.files, hook_name)
    if named is not None:
        found = _located(cfg, at_layer(named[0], named[1], published(cfg, hook_name).get("l0")))
        assert found is not None
        return found
    if settings.files and not settings.train_missing:
        raise SaelinkError(f"sae.files: no file for {hook_name}; it has files for {', '.join(sorted(settings.files))}")
    own = settings.path if not settings.belongs or cfg.model.path in settings.belongs else None
    if not settings.files and (own is not None or settings.hub is not None):
        for name in hook_names(hook_name):
            found = _located(cfg, name, must=False)
            if found is not None:
                return found
        place = f"sae.hub={settings.hub}" if settings.hub is not None else f"sae.path={settings.path}"
        tried = f"{place}: no SAE for {hook_name}; its folder {hook_name} would hold {known_folders()}"
    if not settings.train_missing:
        raise SaelinkError((tried or f"sae.release: none is for {hook_name}") + "; sae.train_missing=true trains one")
    return SAEChoice(SAEStage(cfg, store, hook_name).key, "trained")


def trained_saes(cfg: Config, store: Store, hook_names: list[str]) -> SAEConfig:
    """The settings of the same SAEs for other text, those that were trained named by their folders; none is trained."""
    choices = {hook: sae_choice(cfg, store, hook) for hook in hook_names}
    if all(choice.exists for choice in choices.values()):
        return replace(cfg.sae, check=False)  # they were compared with what is published on the fit's text
    found: dict[str, str] = {}
    for hook, choice in choices.items():
        path = choice.path if choice.exists else SAEStage(cfg, store, hook).pull().path
        if path is not None:
            found[hook] = str(path.resolve())
        elif choice.hub is not None:
            found[hook] = f"{ON_HUB}{choice.hub.repository}@{choice.hub.commit}/{choice.hub.path}"
    return replace(cfg.sae, check=False, train_missing=False, files={**cfg.sae.files, **found})


def at_layer(text: str, layer: int, l0: float | None = None) -> str:
    """A place in a folder or release: {layer} stands for the layer, or LAYER, which needs no quotes in a shell.

    {l0} stands for the published l0, which some folders are named by.
    """
    text = text.replace("{layer}", str(layer)).replace("LAYER", str(layer))
    return text if l0 is None else text.replace("{l0}", f"{l0:g}")


def entry_of_hook(table: Mapping[str, Any], hook_name: str) -> tuple[Any, int] | None:
    """What a table by hook has for this one, and its layer there: by its full name first, then by that in any block."""
    for hook, layer in _places(hook_name):
        for key in (f"blocks.{layer}.{hook}", hook):
            if key in table:
                return table[key], layer
    return None


def _places(hook_name: str) -> list[tuple[str, int]]:
    """The hook's name inside its block and the block, in both ways of naming a residual stream."""
    parts = [name.split(".", 2) for name in hook_names(hook_name)]
    return [(name, int(layer)) for _, layer, name in parts]


def hook_names(hook_name: str) -> list[str]:
    """The hook's name, and for a resid_post the name the same tensor has in the next layer."""
    block, layer, name = hook_name.split(".", 2)
    return [hook_name, f"{block}.{int(layer) + 1}.hook_resid_pre"] if name == "hook_resid_post" else [hook_name]


def same_stream(hook_name: str) -> list[str]:
    """The names of one tensor: a block's resid_post is the next one's resid_pre."""
    block, layer, name = hook_name.split(".", 2)
    if name == "hook_resid_pre" and int(layer) > 0:
        return [hook_name, f"{block}.{int(layer) - 1}.hook_resid_post"]
    return hook_names(hook_name)


def _located(cfg: Config, place: str, must: bool = True) -> SAEChoice | None:
    """The SAE at a place in sae.hub or sae.path, or at an hf:// address; None where none is and none need be."""
    settings = cfg.sae
    if settings.hub is not None and not place.startswith(ON_HUB):
        return _on_hub(settings.hub, settings.revision, place, settings.name, must)
    if place.startswith(ON_HUB):
        return located(place, "sae.files", settings.name, must)
    parent = Path(settings.path or ".")
    if (settings.path or "").startswith("package:"):
        parent = PACKAGE / (settings.path or "").removeprefix("package:")
    return located(str(parent / place), "sae.path", settings.name, must)


def located(place: str, field: str, about: str | None = None, must: bool = True) -> SAEChoice | None:
    """The SAE at hf://owner/repository[@revision]/path or in a folder or file.

    None where nothing is there and it need not be; otherwise SaelinkError, naming `field`.
    """
    address = hub_address(place, field)
    if address is not None:
        if not address.path:
            raise SaelinkError(f"{field}: {place} is not of the form {ON_HUB}owner/repository[@revision]/folder")
        return _on_hub(address.repository, address.revision, address.path, about or place, must, field)
    path = Path(place)
    if not path.exists():
        if not must:
            return None
        raise SaelinkError(f"{field}: there is no {path}")
    key = ("file:" if path.is_file() else "folder:") + identity(path, field)
    return SAEChoice(key, about or path.name, path)


def _on_hub(
    repository: str, revision: str | None, path: str, about: str, must: bool, field: str = "sae.hub"
) -> SAEChoice | None:
    commit = hub_commit(field, repository, revision)
    if not must and not any(hub_file(repository, commit, f"{path}/{files[0]}") for files in FOLDERS):
        return None
    return SAEChoice(f"hub:{repository}@{commit}/{path} read {READING}", about, hub=HubPlace(repository, commit, path))


def _release_of(cfg: Config, hook_name: str) -> SAEChoice | None:
    """What sae.release and sae.id have for a hook; given as one text each, they are for the hook that they name."""
    release, sae_id = cfg.sae.release, cfg.sae.id
    try:
        from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface
        from sae_lens.loading.pretrained_saes_directory import get_norm_scaling_factor, get_repo_id_and_folder_name
    except ModuleNotFoundError:
        raise SaelinkError(
            f"sae.release={release}: the directory of releases is sae-lens': `pip install 'saelink[saelens]'`"
        ) from None
    for hook, layer in _places(hook_name):
        names = [value.get(hook) if isinstance(value, Mapping) else value for value in (release, sae_id)]
        if None in names:
            continue
        name, entry = (at_layer(str(value), layer) for value in names)
        _check_release(name, entry)
        with hub_errors("sae.release", name):
            if not isinstance(release, Mapping) and not isinstance(sae_id, Mapping):
                config = modern(load_sae_config_from_huggingface(name, entry))
                if config["metadata"].get("hook_name") != f"blocks.{layer}.{hook}":
                    continue
            repository, path = get_repo_id_and_folder_name(name, entry)
        commit = hub_commit("sae.release", repository, None)
        factor = get_norm_scaling_factor(name, entry)  # which sae-lens puts into the weights as it loads them
        key = f"release:{repository}@{commit}/{path}" + ("" if factor is None else f" x {factor}")
        return SAEChoice(key, f"{name} {entry}", release=(name, entry))
    return None


def _check_release(release: str, sae_id: str) -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    if release not in known:
        close = difflib.get_close_matches(release, known, n=3, cutoff=0.3)
        raise SaelinkError(f"sae.release={release}: sae-lens knows no such release; near it are {', '.join(close)}")
    if sae_id not in known[release].saes_map:
        close = difflib.get_close_matches(sae_id, known[release].saes_map, n=3, cutoff=0.0)
        raise SaelinkError(f"sae.id={sae_id}: {release} has no such SAE; near it are {', '.join(close)}")


def published(cfg: Config, hook_name: str) -> dict[str, float]:
    """What sae.published says of a hook's SAE at its layer: fvu, l0, or nothing."""
    found = entry_of_hook(cfg.sae.published, hook_name)
    if found is None:
        return {}
    figures, layer = found
    values = {name: v[layer : layer + 1] if isinstance(v, list) else [v] for name, v in figures.items()}
    return {name: float(value[0]) for name, value in values.items() if value}
