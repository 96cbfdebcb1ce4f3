"""Writes docs/reference/settings.md: every setting with its default and its docstring, from the dataclasses themselves.

python scripts/settings_reference.py
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from saelink.compose import registered_options
from saelink.config import schema
from saelink.config.texts import docstrings, shown
from saelink.connectors import CONNECTORS
from saelink.experiments import EXPERIMENTS
from saelink.fit.solvers import SOLVERS

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "settings.md"

HEAD = """# Settings

Every setting is `key=value` on the command line. This page is made from the docstrings of `saelink/config/schema.py`
and of the connectors', solvers' and experiments' files, by `python scripts/settings_reference.py`.

The defaults here are those of the code. A chosen group sets others (`data=wiki` sets `data.max_tokens`, for instance):
`saelink train --cfg job` prints what a command would use. `null` is no value. A setting that must be set has its value
from the group's file. What changes the numbers is part of an [artifact's key](../design/artifacts.md); `runtime` and
`wandb` never are.
"""


def default_of(entry: dataclasses.Field[Any]) -> str:
    """The default in code quotes."""
    value = entry.default_factory() if entry.default_factory is not dataclasses.MISSING else entry.default
    return "must be set" if value in (MISSING, dataclasses.MISSING) else f"`{shown(value)}`"


def rows(kind: type[Any], prefix: str, names: Iterable[str] | None = None) -> list[str]:
    """A table of a dataclass's fields, of those named or of all that are no dataclasses themselves."""
    texts = docstrings(kind)
    lines = ["| setting | default | |", "|---|---|---|"]
    for entry in dataclasses.fields(kind):
        nested = dataclasses.is_dataclass(entry.default_factory)
        if nested or (names is not None and entry.name not in names):
            continue
        assert entry.name in texts, f"{kind.__name__}.{entry.name} has no docstring"
        text = texts[entry.name].replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| `{prefix}{entry.name}` | {default_of(entry)} | {text} |")
    return lines if len(lines) > 2 else ["It has no settings of its own."]


def about(kind: type[Any]) -> str:
    """The docstring of a class as one paragraph each."""
    text = inspect.cleandoc(kind.__doc__ or "")
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def own_fields(kind: type[Any], base: type[Any]) -> list[str]:
    """What it adds to the base or gives another default."""
    common = {entry.name: default_of(entry) for entry in dataclasses.fields(base)}
    return [e.name for e in dataclasses.fields(kind) if e.name != "name" and common.get(e.name) != default_of(e)]


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## A job", about(schema.Config), *rows(schema.Config, "")]
    for entry in dataclasses.fields(schema.Config):
        kind: Any = entry.default_factory
        if not dataclasses.is_dataclass(kind) or entry.name == "experiment":
            continue
        assert isinstance(kind, type)
        parts += ["", f"## {entry.name}", about(kind), "", *rows(kind, f"{entry.name}.")]
        group: dict[str, Any] = {"connector": CONNECTORS, "solver": SOLVERS}.get(entry.name, {})
        for name, owner in group.items():
            table = rows(owner.Settings, f"{entry.name}.", own_fields(owner.Settings, kind))
            parts += ["", f"### {entry.name}={name}", about(owner), "", *table]
    parts += ["", "## Experiments", about(schema.ExperimentConfig), "", *rows(schema.ExperimentConfig, "experiment.")]
    for name, settings in registered_options().owners.items():
        if dataclasses.fields(settings):
            title = EXPERIMENTS[name].title
            parts += ["", f"### experiment.{name}", f"{title}.", "", *rows(settings, f"experiment.{name}.")]
    text = "\n".join(parts)
    return re.sub(r"\n(#+ .*)\n(?!\n)", r"\n\1\n\n", re.sub(r"(?<!\n)\n\| setting", "\n\n| setting", text)) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
