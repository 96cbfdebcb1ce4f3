"""What the files of a package declare, read from their source: settings without the libraries that the code needs.

`--help`, `--cfg`, completion and a misspelt setting need every connector's, solver's and experiment's settings, and
nothing of torch. Of a file only the settings class runs, with the classes and constants that it uses. What is
declared equals what the registries hold, which a test compares; jobs use the registries.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Collection, Mapping
from functools import cache
from importlib.abc import InspectLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

PACKAGE = Path(__file__).parent

REAL = "saelink.config."
"""Modules that are imported as they are, as everything outside the package is."""


class Found(NamedTuple):
    """Where something that a class has is written."""

    file: str
    """Dotted name of the file."""
    node: ast.stmt


class Declared(NamedTuple):
    """The class that a file registers."""

    file: str
    name: str
    base: str
    """Dotted name of the base class's file."""

    @property
    def settings(self) -> type[Any]:
        """Its settings class."""
        found = attribute(self.file, self.name, "Settings")
        value = getattr(found.node, "value", None)
        assert isinstance(value, ast.Name), f"{found.file}: Settings is not the name of a class"
        return named(found.file, value.id)

    def constant(self, name: str) -> Any:
        """The value of a class attribute that is written as a constant."""
        return ast.literal_eval(  # constants alone; it calls nothing
            getattr(attribute(self.file, self.name, name).node, "value", None) or ast.Constant(None)
        )

    def overrides(self, name: str) -> bool:
        """Whether it, or a class between it and the base, defines the attribute anew."""
        return attribute(self.file, self.name, name).file != self.base


def declared(package: str, base: str, but: Collection[str]) -> dict[str, Declared]:
    """By file name the subclass of `package`.base.`base` that each file of a package declares; `but` declare none."""
    top = f"{package}.base"
    found: dict[str, Declared] = {}
    for path in sorted(_path(package).glob("*.py")):
        if path.stem not in ("__init__", *but):
            file = f"{package}.{path.stem}"
            (name,) = (name for name in _classes(file) if (top, base) in _ancestors(file, name))
            found[path.stem] = Declared(file, name, top)
    return found


def attribute(file: str, name: str, wanted: str) -> Found:
    """Where a class, or the nearest one that it inherits from, defines an attribute. Raises KeyError for none."""
    for where, each in [(file, name), *_ancestors(file, name)]:
        for node in _classes(where)[each].body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            if wanted in (*names, getattr(node, "name", None)):
                return Found(where, node)
    raise KeyError(f"{file}: {name} has no {wanted}")


@cache
def named(file: str, name: str) -> Any:
    """A settings class, an enum or a constant of a file, or what the file imports under this name."""
    node, module = _definitions(file).get(name), _module(file)
    if node is None:
        source, original = _imports(file)[name]
        if source.split(".")[0] == "saelink" and original and not f"{source}.".startswith(REAL):
            return named(source, original)
        imported = importlib.import_module(source)
        return getattr(imported, original) if original else imported
    for each in ast.walk(node):
        if isinstance(each, ast.Name) and each.id != name and each.id in {*_definitions(file), *_imports(file)}:
            setattr(module, each.id, named(file, each.id))
    _Part(file, node).exec_module(module)
    return getattr(module, name)


class _Part(InspectLoader):
    """Loads one definition of a file."""

    def __init__(self, file: str, node: ast.stmt):
        self._file, self._node = file, node

    def get_source(self, fullname: str) -> str:
        return _path(self._file).read_text("utf-8")

    def get_code(self, fullname: str) -> CodeType:
        future = ast.parse("from __future__ import annotations").body
        return compile(ast.Module([*future, self._node], []), str(_path(self._file)), "exec", dont_inherit=True)


@cache
def _module(file: str) -> ModuleType:
    """Where the classes of a file are put: types are looked up in the module that a class says it is from."""
    name = f"{file}:settings"
    spec = spec_from_loader(name, loader=None)
    assert spec is not None
    module = module_from_spec(spec)
    module.__file__ = str(_path(file))
    sys.modules[name] = module
    return module


def _path(file: str) -> Path:
    folder = PACKAGE.joinpath(*file.split(".")[1:])
    return folder if folder.is_dir() else folder.with_suffix(".py")


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse(_path(file).read_text("utf-8"))


@cache
def _classes(file: str) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in _tree(file).body if isinstance(node, ast.ClassDef)}


@cache
def _definitions(file: str) -> Mapping[str, ast.stmt]:
    """The classes and constants of a file by their names."""
    found: dict[str, ast.stmt] = dict(_classes(file))
    for node in _tree(file).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
    return found


@cache
def _imports(file: str) -> dict[str, tuple[str, str]]:
    """By name in the file: the module it is imported from, and its name there; empty for the module itself."""
    found: dict[str, tuple[str, str]] = {}
    for node in _tree(file).body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.asname: (alias.name, "") for alias in node.names if alias.asname}
            tops = [alias.name.split(".")[0] for alias in node.names if not alias.asname]
            found |= {top: (top, "") for top in tops}
    return found


def _ancestors(file: str, name: str) -> list[tuple[str, str]]:
    """File and name of the classes of this package that a class inherits from, the nearest first."""
    found: list[tuple[str, str]] = []
    for base in _classes(file)[name].bases:
        if not isinstance(base, ast.Name):
            continue
        if base.id in _classes(file):
            where = (file, base.id)
        elif _imports(file).get(base.id, ("", ""))[0].startswith("saelink."):
            where = _imports(file)[base.id]
        else:
            continue
        found += [where, *_ancestors(*where)]
    return found
