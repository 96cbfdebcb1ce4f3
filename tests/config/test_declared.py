"""What is read from the source of connectors, solvers and experiments equals what the registries hold."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose
from omegaconf import OmegaConf

from saelink.compose import composing, declared_options, registered_options
from saelink.config.texts import docstrings
from saelink.connectors import CONNECTORS
from saelink.declared import declared
from saelink.fit.solvers import SOLVERS

FIELDS = ("connectors", "solvers", "owners")


def described(kind: type[Any]) -> list[Any]:
    """Name, type, default and docstring of every field."""
    values = kind(**({"name": "x"} if any(field.name == "name" for field in dataclasses.fields(kind)) else {}))
    defaults = OmegaConf.to_container(OmegaConf.structured(values), enum_to_str=True)
    return [[(field.name, str(field.type)) for field in dataclasses.fields(kind)], defaults, docstrings(kind)]


@pytest.mark.parametrize("what", FIELDS)
def test_the_same_settings(what: str) -> None:
    from_source, real = getattr(declared_options(), what), getattr(registered_options(), what)
    assert list(from_source) == list(real)
    for name, kind in from_source.items():
        assert kind.__name__ == real[name].__name__ and described(kind) == described(real[name]), name


def test_the_same_default_solvers() -> None:
    assert declared_options().default_solvers == registered_options().default_solvers


@pytest.mark.parametrize(
    "choice",
    [f"connector={name}" for name in CONNECTORS] + [f"solver={name}" for name in SOLVERS] + ["experiment=post"],
)
def test_the_same_configuration(choice: str) -> None:
    composed = []
    for options in (declared_options(), registered_options()):
        with composing(options):
            composed.append(OmegaConf.to_yaml(compose("config", [choice])))
    assert composed[0] == composed[1]


@pytest.mark.parametrize(
    "words", ["train --help", "train --cfg job", "train l1_alhpa=1", "run --help-all", "train -m x"]
)
def test_torch_is_not_imported_where_no_job_runs(words: str, tmp_path: Path) -> None:
    code = f"import sys; sys.argv = ['saelink', *{words.split()!r}]\nfrom saelink.cli.app import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "hydra" in loaded or "-m" in words
    assert not loaded & {"torch", "numpy", "numba", "transformers", "wandb", "datasets", "matplotlib", "scipy"}


def write_package(folder: Path, **files: str) -> None:
    (folder / "things").mkdir()
    for name, text in files.items():
        (folder / "things" / f"{name}.py").write_text("from __future__ import annotations\n" + text)


def test_only_the_settings_of_a_file_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saelink.declared.PACKAGE", tmp_path)
    write_package(
        tmp_path,
        base="from dataclasses import dataclass\n@dataclass\nclass None_:\n    pass\n"
        "class Thing:\n    Settings = None_\n    colour = 'red'\n",
        first="import heavy\nimport math\nONE = 1\nfrom enum import Enum\nfrom dataclasses import dataclass, field\n"
        "from saelink.things.base import Thing\nheavy.work()\n"
        "class Kind(Enum):\n    a = 'a'\n@dataclass\nclass S:\n    kind: Kind = Kind.a\n"
        "    sizes: list[int] = field(default_factory=lambda: [ONE])\n    most: float = math.inf\n"
        "class Other:\n    x = heavy.y\nclass First(Thing):\n    Settings = S\n    colour = 'blue'\n",
        second="from dataclasses import dataclass\nfrom saelink.things.first import First, S\n"
        "@dataclass\nclass T(S):\n    more: float = 0.5\nclass Second(First):\n    Settings = T\n",
        third="from saelink.things.base import Thing\nclass Third(Thing):\n    def colour(self): ...\n",
    )
    things = declared("saelink.things", "Thing", but=("base",))
    assert list(things) == ["first", "second", "third"]
    second = things["second"].settings()
    assert (second.kind.name, second.sizes, second.most, second.more) == ("a", [1], float("inf"), 0.5)
    assert isinstance(second, things["first"].settings)
    assert OmegaConf.structured(second).kind.value == "a"
    assert [things[name].constant("colour") for name in ("first", "second")] == ["blue", "blue"]
    assert [thing.overrides("colour") for thing in things.values()] == [True, True, True]
    assert not things["third"].overrides("Settings") and dataclasses.fields(things["third"].settings) == ()
