"""What `--help` of a stage command lists: the groups with their choices, and all settings."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

GROUPS = {
    "model": "the language model",
    "data": "the text that it reads",
    "link": "which activations explain which",
    "sae": "the sparse autoencoders whose latents are connected",
    "connector": "the map that is fitted from source to target latents",
    "solver": "how it is fitted; unless you choose one, the connector does",
    "experiment": "many fits, a table and a picture; for saelink run",
    "budget": "how much text and how many fits an experiment takes",
}
"""Every group of conf/ in the order of its listing, and what its choices are."""


class FlowLists(yaml.SafeDumper):
    """YAML with each list on one line."""


FlowLists.add_representer(list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, True))


def register() -> None:
    """Offer the listings to the help template in conf/config.yaml, as interpolations."""
    OmegaConf.register_new_resolver("saelink.groups", _groups, replace=True)
    OmegaConf.register_new_resolver("saelink.settings", _settings, replace=True)


def listed(choices: Mapping[str, Sequence[str]], chosen: Mapping[str, Any], width: int) -> str:
    """Each group with its meaning and, below it, its choices; what is chosen has a star."""
    names = [*(name for name in GROUPS if name in choices), *sorted(set(choices) - set(GROUPS))]
    column = 4 + max(map(len, names))
    lines = []
    for name in names:
        starred = [f"{choice}*" if choice == chosen.get(name) else choice for choice in choices[name]]
        below = textwrap.wrap(", ".join(starred), width - column, break_on_hyphens=False, break_long_words=False)
        texts = [GROUPS[name], *below] if name in GROUPS else below
        lines += [f"  {name}".ljust(column) + texts[0], *(" " * column + text for text in texts[1:])]
    return "\n".join(lines)


def _groups(*, _root_: DictConfig) -> str:
    """The groups of this command's search path, folders of the user's own among them."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.object_type import ObjectType

    loader = GlobalHydra.instance().config_loader()
    names = [name for name in loader.list_groups("") if name != "hydra"]
    choices = {name: sorted(loader.get_group_options(name, ObjectType.CONFIG)) for name in names}
    width = min(shutil.get_terminal_size().columns, 100)
    return listed({name: each for name, each in choices.items() if each}, _root_.hydra.runtime.choices, width)


def _settings(*, _root_: DictConfig) -> str:
    """All settings with the values that this command would use."""
    settings = OmegaConf.to_container(_root_, resolve=False, enum_to_str=True)
    assert isinstance(settings, dict)
    settings.pop("hydra")
    text = yaml.dump(settings, Dumper=FlowLists, sort_keys=False, allow_unicode=True, width=72)
    return text.replace("$", "$$")  # the template's own sign
