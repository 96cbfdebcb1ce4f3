"""Shell completion of overrides: groups with their choices, settings with their values, files."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader


def complete(incomplete: str) -> list[str]:
    """What `incomplete` may become: groups, their choices, settings, or files behind the sign `=`."""
    from hydra.plugins.completion_plugin import CompletionPlugin

    from saelink.compose import composing, declared_options

    key = _key_before(incomplete)
    word = key + incomplete
    name, equals, value = word.partition("=")
    if equals and value.startswith((".", "/")):
        found = {f"{name}={path}" for path in CompletionPlugin.complete_files(value)}
    else:
        with contextlib.redirect_stderr(io.StringIO()), composing(declared_options()) as loader:
            choices = set(_choices(loader, word))
            found = choices if choices and equals else choices | set(_settings(loader, word))
    return sorted(choice.removeprefix(key) for choice in found)


def _choices(loader: ConfigLoader, word: str) -> Iterator[str]:
    """Groups that begin with `word`, or the choices of the group before its sign `=`; + and ~ may stand before it."""
    from hydra.core.object_type import ObjectType

    sign = word[:1] if word[:1] in ("+", "~") else ""
    group, equals, value = word.removeprefix(sign).partition("=")
    if equals:
        yield from (
            f"{sign}{group}={choice}"
            for choice in loader.get_group_options(group, ObjectType.CONFIG)
            if choice.startswith(value)
        )
        return
    above = group.rpartition("/")[0]
    for last in loader.get_group_options(above, ObjectType.GROUP):
        name = f"{above}/{last}" if above else last
        if name.startswith(group):
            files = bool(loader.get_group_options(name, ObjectType.CONFIG))
            folders = bool(loader.get_group_options(name, ObjectType.GROUP))
            end = "=" if files and not folders and sign != "~" else "/" if folders and not files else ""
            yield f"{sign}{name}{end}"


def _settings(loader: ConfigLoader, word: str) -> Iterator[str]:
    """Settings that begin with `word`, those in others with a dot behind them; behind the sign `=` the value."""
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    cfg = loader.load_configuration("config", [], RunMode.RUN)
    settings: Any = OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)
    name, equals, _ = word.partition("=")
    above, _, last = name.rpartition(".")
    for part in filter(None, above.split(".")):
        settings = settings.get(part) if isinstance(settings, dict) else None
        if isinstance(settings, list):
            settings = {str(number): entry for number, entry in enumerate(settings)}
    if not isinstance(settings, dict):
        return
    if word.endswith("="):
        value = settings.get(last)
        if value is not None and not isinstance(value, dict | list):
            yield word + (str(value).lower() if isinstance(value, bool) else str(value))
    elif not equals:
        prefix = f"{above}." if above else ""
        for key, value in settings.items():
            if key.startswith(last):
                yield f"{prefix}{key}{'.' if isinstance(value, dict | list) else '='}"


def _key_before(incomplete: str) -> str:
    """`connector=` when bash, which breaks words at `=`, asks for what follows it; otherwise nothing."""
    words = os.environ.get("COMP_WORDS", "").split()
    if len(words) > 2 and words[-2:] == ["=", incomplete]:
        return words[-3] + "="
    return ""
