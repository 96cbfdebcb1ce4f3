"""The page's ES modules as one script, in plain Python: whoever makes a report needs no Node.

Understood is what these modules use: imports of names from files beside them, and `export` before a `const` or a
function, each at the start of a line. Anything else that imports or exports is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

IMPORT = re.compile(r'^import \{([\w\s,]+)\} from "\./(\w+)\.js";\n', re.MULTILINE)

EXPORT = re.compile(r"^export (?=(?:const|function|async function) (\w+))", re.MULTILINE)

DECLARED = re.compile(r"^(?:const|let|class|function|async function) (\w+)", re.MULTILINE)

REFUSED = re.compile(r"^\s*(?:import|export)\b.*|\bimport\s*[.(].*|</script.*|<!--.*", re.MULTILINE | re.IGNORECASE)
"""What must not be left: another kind of import or export, and what would end the script or hide a part of it."""


@dataclass(frozen=True)
class Module:
    name: str
    imports: list[tuple[str, list[str]]]
    """Modules and the names that are imported from them, in the order of the file."""
    exports: list[str]
    body: str
    """The text without imports and without the word `export`."""

    def scoped(self) -> str:
        """The module as a function of its own that returns its exports, so that no other name leaves it."""
        taken = [f"const {{ {', '.join(names)} }} = ${other};" for other, names in self.imports]
        inside = "\n".join([*taken, self.body.strip(), f"return {{ {', '.join(self.exports)} }};"])
        return f"const ${self.name} = (() => {{\n{inside}\n}})();\n"


def parse(name: str, text: str) -> Module:
    """One module from its text; ValueError where it holds anything that can't be joined."""
    imports = [(other, re.findall(r"\w+", names)) for names, other in IMPORT.findall(text)]
    body = IMPORT.sub("", text)
    exports = EXPORT.findall(body)
    body = EXPORT.sub("", body)
    if refused := REFUSED.search(body):
        raise ValueError(f"{name}.js: can't be joined: {refused[0].strip()}")
    if renamed := [names for _, names in imports if "as" in names]:
        raise ValueError(f"{name}.js: imports under another name: {', '.join(renamed[0])}")
    names = [name for _, imported in imports for name in imported] + DECLARED.findall(body)
    if repeated := sorted({each for each in names if names.count(each) > 1}):
        raise ValueError(f"{name}.js: defined or imported twice: {', '.join(repeated)}")
    return Module(name, imports, exports, body)


def in_order(folder: Path, name: str) -> list[Module]:
    """A module and all it needs, each after what it imports, as a browser would run them."""
    ordered: dict[str, Module] = {}

    def add(name: str, path: tuple[str, ...]) -> Module:
        if name in path:
            raise ValueError(f"{' -> '.join((*path, name))}: modules import each other in a circle")
        if name not in ordered:
            module = parse(name, (folder / f"{name}.js").read_text("utf-8"))
            for other, names in module.imports:
                if not (folder / f"{other}.js").is_file():
                    raise ValueError(f"{name}.js: imports from {other}.js, which does not exist")
                exports = add(other, (*path, name)).exports
                if missing := [each for each in names if each not in exports]:
                    raise ValueError(f"{name}.js: {other}.js does not export {', '.join(missing)}")
            ordered[name] = module
        return ordered[name]

    add(name, ())
    return list(ordered.values())


def joined(folder: Path, name: str) -> str:
    """The module `name` of a folder and all it imports, as one classic script that leaves no name behind."""
    modules = "".join(module.scoped() for module in in_order(folder, name))
    return f'"use strict";\n(() => {{\n{modules}}})();\n'
