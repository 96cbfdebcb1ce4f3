"""What the settings classes say of their settings: the one source of the settings page and of `--help`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Mapping
from enum import Enum
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, cast


@cache
def docstrings(kind: type[Any]) -> dict[str, str]:
    """By field the string below it, in this class and those it inherits from."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(each) or each.__module__ == "saelink.compose":
            continue
        body = _classes(inspect.getfile(each))[each.__name__].body
        for line, below in pairwise(body):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(below, ast.Expr):
                text = ast.literal_eval(below.value)  # a constant of our own source; it calls nothing
                found[line.target.id] = " ".join(text.split())
    return found


@cache
def _classes(file: str) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in ast.parse(Path(file).read_text("utf-8")).body if isinstance(node, ast.ClassDef)}


def shown(value: Any) -> str:
    """A value as one writes it on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", lambda sign: "e" + sign[1].replace("+", ""), f"{value:g}")
    if isinstance(value, list):
        return f"[{', '.join(map(shown, cast('list[object]', value)))}]"
    if isinstance(value, Mapping):
        entries = cast("Mapping[str, object]", value)
        return "{" + ", ".join(f"{key}: {shown(each)}" for key, each in entries.items()) + "}"
    return str(value)
