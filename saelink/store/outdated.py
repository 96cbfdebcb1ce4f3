"""Artifacts that today's code finds no more: of earlier versions of their stages, and what was made of those."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from saelink.store.artifact import Artifact
from saelink.store.files import folder_bytes
from saelink.store.locks import delete_unless_held
from saelink.store.recipe import is_key
from saelink.store.store import Store


class Outdated(NamedTuple):
    """An artifact that no command of today makes or finds."""

    path: Path
    about: str
    why: str
    """`version 2, now 3`, or what it was made from."""
    bytes: int

    @property
    def stage(self) -> str:
        return self.path.parent.name

    @property
    def key(self) -> str:
        return self.path.name


def outdated(store: Store, why_old: Callable[[Artifact[Any]], str | None]) -> list[Outdated]:
    """What is outdated in a store, those that nothing else here was made from first.

    `why_old` says of an artifact by itself why it is of an earlier version, None where it is not. Damaged artifacts,
    and those behind a linked folder, are left out.
    """
    whole = {a.key: a for a in store.listing()[0] if not (a.path.is_symlink() or a.path.parent.is_symlink())}
    why = {key: reason for key, artifact in whole.items() if (reason := why_old(artifact)) is not None}
    waiting = list(why)
    made_from = {key: _inputs(artifact) for key, artifact in whole.items()}
    while waiting:
        old = waiting.pop()
        for key, inputs in made_from.items():
            if old in inputs and key not in why:
                why[key] = f"made from {whole[old].stage} {old}"
                waiting.append(key)
    order: list[str] = []

    def after_its_users(key: str) -> None:
        if key not in order:
            for user, inputs in made_from.items():
                if key in inputs and user in why:
                    after_its_users(user)
            order.append(key)

    for key in why:
        after_its_users(key)
    return [Outdated(whole[k].path, whole[k].manifest["about"], why[k], folder_bytes(whole[k].path)) for k in order]


def _inputs(artifact: Artifact[Any]) -> set[str]:
    """The keys of what an artifact was computed from, the weights it started from among them."""
    connector = artifact.recipe.get("connector")
    start = cast("dict[str, Any]", connector).get("init") if isinstance(connector, dict) else None
    return {*artifact.manifest["inputs"].values(), *([start] if isinstance(start, str) and is_key(start) else [])}


def remove_outdated(found: list[Outdated]) -> Iterator[tuple[Outdated, bool]]:
    """Delete them in this order; each with whether it is gone. What another process makes or removes now stays."""
    for each in found:
        yield each, delete_unless_held(each.path, each.key)
