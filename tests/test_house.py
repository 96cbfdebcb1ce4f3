"""The house: imports point one way, no leaf knows a stage, heavy libraries wait until they are used."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import saelink

PACKAGE = Path(saelink.__file__).parent

LAYERS = [
    "_version", "errors", "progress", "declared", "registry", "kernels", "config", "runtime", "memory", "store",
    "engine", "fetch", "model", "activations", "saes", "latents", "attention", "job", "connectors", "interventions",
    "looks", "fit", "evidence", "share", "circuits", "experiments", "plan", "terminal", "compose", "mistakes",
    "tracking", "report", "api", "cli", "__main__",
]  # fmt: skip
"""A package or file imports only from itself and from what stands before it here; inside functions too."""

LINES, CLASS_LINES, FUNCTION_LINES = 450, 250, 80

LAZY = {
    "transformers",
    "transformer_lens",
    "sae_lens",
    "datasets",
    "wandb",
    "matplotlib",
    "huggingface_hub",
    "scipy",
    "sklearn",
    "plotly",
    "networkx",
    "numba",
    "joblib",
    "ray",
    "submitit",
}


def modules() -> dict[str, Path]:
    """By dotted name every file of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("saelink", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return names


def imported_files() -> dict[str, set[str]]:
    """By file the files of the package that it imports anywhere in it."""
    known = modules()
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name in known}
            elif isinstance(node, ast.ImportFrom) and node.module in known:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= {full if full in known else node.module for full in whole}
    return {name: others - {name, "saelink"} for name, others in found.items()}


def test_every_file_has_its_layer() -> None:
    tops = {name.split(".")[1] for name in modules() if "." in name}
    assert tops == set(LAYERS) & tops, f"not in LAYERS: {tops - set(LAYERS)}"


def test_imports_point_one_way() -> None:
    for name, others in imported_files().items():
        if "." not in name:
            continue  # the package's own face, which hands names on when they are asked for
        for other in others:
            mine, theirs = (LAYERS.index(each.split(".")[1]) for each in (name, other))
            assert theirs <= mine, f"{name} imports {other}, which stands above it"


def test_no_circle_between_files() -> None:
    graph = imported_files()
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert len(order) >= len(graph)


def test_no_room_is_too_large() -> None:
    for path in modules().values():
        text = path.read_text()
        assert len(text.splitlines()) <= LINES, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                most = CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES
                # a compiled loop can't be cut without passing dozens of arrays on
                assert lines <= most or path.parent.name == "kernels", f"{path}: {node.name} has {lines} lines"


def test_only_the_terminal_prints() -> None:
    for name, path in modules().items():
        if name.split(".")[1:2] in (["terminal"], ["cli"]):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            prints = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not prints, f"{name} prints; terminal/ and cli/ do that"


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    for path in modules().values():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                allowed = {"numba"} if path.parent.name == "kernels" else set()  # itself imported where it is used
                heavy = {name.split(".")[0] for name in imports(node)} & (LAZY - allowed)
                assert not heavy, f"{path} imports {heavy} at its top"


def test_nothing_of_ours_runs_what_it_loads() -> None:
    for path in modules().values():
        text = path.read_text()
        found = re.search(r"import pickle|pickle\.load|trust_remote_code=True|(?<!\.)\b(eval|exec)\(", text)
        loads = re.findall(r"torch\.load\([^)]*\)", text)
        assert all("weights_only=True" in load for load in loads), path
        assert found is None, f"{path}: {found}"


def test_hydra_is_used_by_what_it_offers() -> None:
    for path in modules().values():
        assert "hydra._internal" not in path.read_text(), path


def test_no_two_test_files_share_a_name() -> None:
    """Pytest imports them by their last name alone: the second one of a name stops the run."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert len(names) > 30 and sorted(names) == sorted(set(names))
