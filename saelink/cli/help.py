"""What `--help` and `--help-all` of a stage command print: what it does, its settings, the choices of groups."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from saelink.cli.pages import PAGES, Page
from saelink.compose import choices_of, composing, declared_options
from saelink.config.grammar import sweeps
from saelink.config.texts import docstrings, shown
from saelink.mistakes import checked

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

FLAGS = {
    "-m": "every combination of comma-separated values: -m connector=linear,mlp",
    "--cfg job": "print the settings and stop",
    "--info": "where each setting comes from",
    "--config-dir FOLDER": "config files of your own",
    "--help-all": "all settings with their values",
}

COLUMN = 32
"""Where the text of a setting begins."""


class FlowLists(yaml.SafeDumper):
    """YAML with each list on one line."""


FlowLists.add_representer(list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, True))


def print_help(command: str, overrides: list[str], everything: bool) -> None:
    """A command's help with the values that these overrides give; `everything` is --help-all."""
    from hydra import compose

    overrides = [each for each in checked(overrides).overrides if not sweeps(each)]
    width = min(shutil.get_terminal_size().columns, 100)
    with composing(declared_options()) as loader:
        choices = choices_of(loader, overrides)
        root = compose("config", overrides, return_hydra_config=True)
    parts = [head(command, PAGES[command], width)]
    if not everything:
        parts += _examples(PAGES[command]), _settings(PAGES[command], root, width)
    parts.append(wrapped("Groups of settings, group=choice; * is what this command takes", width))
    parts.append(listed(choices, root.hydra.runtime.choices, width))
    parts.append(_all_settings(root) if everything else _flags(width))
    print("\n\n".join(parts))


def wrapped(text: str, width: int, indent: str = "") -> str:
    """Text in lines that are not longer than the terminal is wide, and no word of it cut."""
    lines = textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
    return "\n".join(lines)


def head(command: str, page: Page, width: int) -> str:
    """How the command is called and what it does."""
    arguments = f"{page.arguments} [KEY=VALUE]...".strip()
    return f"Usage: saelink {command} {arguments}\n\n{wrapped(page.about, width)}"


def two_columns(name: str, text: str, column: int, width: int) -> str:
    """A name and, from `column` on, its text; below the name where that is too long."""
    lines = textwrap.wrap(text, width - column, break_on_hyphens=False, break_long_words=False)
    if len(name) + 4 > column:
        lines = ["", *lines]
    first, *rest = lines or [""]
    return "\n".join([f"  {name}".ljust(column) + first, *(" " * column + line for line in rest)]).rstrip()


def first_sentence(text: str) -> str:
    """A docstring up to the end of its first sentence, without its full stop."""
    return re.split(r"\.(?= [A-Z])|\.$", text)[0]


def _examples(page: Page) -> str:
    return "\n".join(["Examples", *(f"  {example}" for example in page.examples)])


def _settings(page: Page, root: DictConfig, width: int) -> str:
    """The page's settings by heading, with the values that this command would use."""
    values: Any = OmegaConf.to_container(root, resolve=False, enum_to_str=True)
    parts = [wrapped("Settings that matter here, key=value; the value is what this command takes", width)]
    for heading, names in page.settings.items():
        lines = [f"\n{heading}"]
        for name in _existing(names.split(), values):
            above, _, last = name.rpartition(".")
            node = OmegaConf.select(root, above) if above else root
            text = first_sentence(docstrings(OmegaConf.get_type(node)).get(last, ""))
            value = (values[above] if above else values)[last]
            lines.append(two_columns(f"{name}={shown(value)}", text, COLUMN, width))
        parts += lines
    return "\n".join(parts)


def _existing(names: Sequence[str], values: Mapping[str, Any]) -> Iterator[str]:
    """The settings' names, `connector.*` spelled out."""
    for name in names:
        group, _, last = name.partition(".")
        if last == "*":
            yield from (f"{group}.{each}" for each in values[group] if each != "name")
        else:
            yield name


def listed(choices: Mapping[str, Sequence[str]], chosen: Mapping[str, Any], width: int) -> str:
    """Each group with its meaning and, below it, its choices; what is chosen has a star."""
    names = [*(name for name in GROUPS if name in choices), *sorted(set(choices) - set(GROUPS))]
    column = 4 + max(map(len, names))
    lines = []
    for name in names:
        starred = [f"{choice}*" if choice == chosen.get(name) else choice for choice in choices[name]]
        texts = [
            line
            for text in (GROUPS.get(name, ""), ", ".join(starred))
            for line in textwrap.wrap(text, width - column, break_on_hyphens=False, break_long_words=False)
        ]
        lines += [f"  {name}".ljust(column) + texts[0], *(" " * column + text for text in texts[1:])]
    return "\n".join(lines)


def _all_settings(root: DictConfig) -> str:
    """All settings with the values that this command would use."""
    settings = OmegaConf.to_container(root, resolve=False, enum_to_str=True)
    assert isinstance(settings, dict)
    settings.pop("hydra")
    text = yaml.dump(settings, Dumper=FlowLists, sort_keys=False, allow_unicode=True, width=72)
    return f"Settings with their values, key=value; docs/reference/settings.md explains each:\n\n{text.rstrip()}"


def _flags(width: int) -> str:
    column = 4 + max(map(len, FLAGS))
    return "\n".join(["Flags", *(two_columns(flag, text, column, width) for flag, text in FLAGS.items())])
