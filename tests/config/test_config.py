"""The schema, the YAML files and the command line around Hydra."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from saelink.cli.completion import complete
from saelink.cli.words import hydra_arguments
from saelink.config import schema
from saelink.config.check import check
from saelink.config.files import conf_dir
from saelink.config.schema import Config
from saelink.connectors import CONNECTORS
from saelink.fit.solvers import SOLVERS

from helpers.world import Run, composed

CHOICES = [
    f"{file.parent.name}={file.stem}" for file in sorted(conf_dir().glob("*/*.yaml")) if file.parent.name != "hydra"
]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_config_file_composes(choice: str) -> None:
    group = choice.split("=")[0]
    needed = {
        "model=hub": ["model.path=x"],
        "model=folder": ["model.path=x"],
        "data=hub": ["data.path=x"],
        "data=files": ["data.path=x"],
        "sae=folder": ["sae.path=x"],
        "sae=hub": ["sae.hub=x"],
        "sae=release": ["sae.release=x", "sae.id=y"],
        "experiment=post": [],
    }
    cfg = composed([choice, *needed.get(choice, [])])
    check(cfg)
    assert group == "budget" or cfg.experiment.names if group in ("experiment", "budget") else getattr(cfg, group).name


@pytest.mark.parametrize(
    "choice", [f"connector={name}" for name in CONNECTORS] + [f"solver={name}" for name in SOLVERS]
)
def test_every_registered_connector_and_solver_composes(choice: str) -> None:
    group, name = choice.split("=")
    assert getattr(composed([choice]), group).name == name


@pytest.mark.parametrize("name", CONNECTORS)
def test_each_connector_has_its_solver_unless_another_is_chosen(name: str) -> None:
    assert composed([f"connector={name}"]).solver.name == {"linear": "exact", "skip": "readout"}.get(name, "adam")
    assert composed([f"connector={name}", "solver=proximal", "solver.lr=0.1"]).solver.name == "proximal"


@pytest.mark.parametrize("budget", ["quick", "full"])
@pytest.mark.parametrize("name", [path.stem for path in sorted((conf_dir() / "experiment").glob("*.yaml"))])
def test_every_experiment_composes_with_every_budget(name: str, budget: str) -> None:
    cfg = composed([f"experiment={name}", f"budget={budget}"])
    check(cfg)
    assert cfg.experiment.names and cfg.experiment.seeds == ([0] if budget == "quick" else [0, 1, 2])


def test_every_field_says_what_it_is() -> None:
    """A string stands under every field of every settings class."""
    files = [*Path(schema.__file__).parent.glob("*.py")]
    files += [Path(inspect.getfile(kind)) for kind in (*CONNECTORS.values(), *SOLVERS.values())]
    fields = 0
    for file in files:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                for field, below in zip(node.body, [*node.body[1:], None], strict=True):
                    if isinstance(field, ast.AnnAssign) and not ast.unparse(field.annotation).endswith("Config"):
                        fields += 1
                        said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                        assert said, f"{file.name}: {ast.unparse(field)}"
    assert fields > 50


def test_every_setting_is_a_plain_value() -> None:
    def leaves(value: object) -> list[object]:
        if dataclasses.is_dataclass(value):
            return [leaf for field in dataclasses.fields(value) for leaf in leaves(getattr(value, field.name))]
        return [value]

    assert len(leaves(composed([]))) > 60


def test_overrides_go_before_flags() -> None:
    assert hydra_arguments(["-m", "layer=1,3", "--cfg", "job", "+a.b=1"]) == [
        "layer=1,3",
        "+a.b=1",
        "-m",
        "--cfg",
        "job",
    ]
    assert hydra_arguments(["~wandb.entity", "--info"]) == ["~wandb.entity", "--info"]


def test_help_comes_within_a_blink() -> None:
    """Not a timed test of the machine: the imports that make it slow must not happen."""
    code = "import sys; sys.argv = ['saelink', '--help']\nfrom saelink.cli.app import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print(*sorted(set(m.split('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: saelink" in done.stdout and "..." not in done.stdout.split("Commands:")[1], "a line is cut"
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "hydra", "omegaconf", "transformers", "wandb", "datasets", "rich", "numpy"}


def test_cfg_job_prints_and_does_nothing(saelink: Run, tmp_path: Path) -> None:
    code, out, _ = saelink("train", "--cfg", "job", "layer=3", bare=True)
    assert code == 0 and out.startswith("layer: 3")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("incomplete", "expected"),
    [
        ("conn", "connector"),
        ("connector=", "connector=mlp"),
        ("model=py", "model=pythia-70m-deduped"),
        ("l1", "l1_alpha="),
        ("data.max_t", "data.max_tokens="),
        ("data.max_tokens=", "data.max_tokens=400000"),
        ("runtime.device=", "runtime.device=auto"),
        ("sae.train_missing=", "sae.train_missing=true"),
        ("eval", "eval."),
        ("link.sources.", "link.sources.0="),
        ("hydra/launcher=", "hydra/launcher=basic"),
        ("+exp", "+experiment="),
        ("~sol", "~solver"),
    ],
)
def test_completion_knows_groups_options_and_keys(incomplete: str, expected: str) -> None:
    assert any(found.startswith(expected) for found in complete(incomplete))


def test_completion_knows_files(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").touch()
    assert complete(f"data.path={tmp_path}/mi") == [f"data.path={tmp_path}/mine.jsonl"]


def test_ls_rm_and_gc(saelink: Run, tmp_path: Path) -> None:
    assert saelink("cache")[0] == 0
    code, out, _ = saelink("ls", bare=True)
    stages = ["stage", "model", "tokens", "cache", "cache", "4"]
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == stages
    key = out.splitlines()[-2].split()[1]
    assert saelink("rm", key[:5], bare=True)[0] == 0
    (tmp_path / "outputs/cache/0123456789ab.partial").mkdir()
    code, out, _ = saelink("gc", bare=True)
    assert code == 0 and "0123456789ab.partial" in out
    assert len(saelink("ls", bare=True)[1].splitlines()) == 3 + 2


def test_nothing_is_left_in_the_users_folder(saelink: Run, tmp_path: Path) -> None:
    started = time.time()
    assert saelink("train")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    assert started <= (tmp_path / "outputs").stat().st_mtime + 1


def test_completion_behind_an_equals_sign_in_bash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_WORDS", "saelink train connector = ml")
    assert complete("ml") == ["mlp"]


def test_an_entry_of_every_list_and_table_has_its_type() -> None:
    """OmegaConf takes lists and tables in the place of a text or number inside of others."""
    from saelink import SaelinkError, configure

    def within(kind: Any, name: str) -> Iterator[tuple[str, Any]]:
        for entry in dataclasses.fields(kind):
            value = getattr(kind(), entry.name)
            if dataclasses.is_dataclass(value):
                yield from within(type(value), f"{name}{entry.name}.")
            elif re.match(r"(list|dict)\[(str, )?(str|int|float)\]", str(entry.type)):
                yield f"{name}{entry.name}", "{{{}}}" if str(entry.type).startswith("dict") else "[{}]"

    tried = list(within(Config, ""))
    assert {"link.sources", "sae.files", "eval.edge_thresholds", "experiment.seeds"} <= {name for name, _ in tried}
    for name, form in tried:
        for entry in ("[1]", "{a: 1}", "[]", "[a,[b]]"):
            value = form.format(f"x: {entry}" if form.startswith("{{") else entry)
            with pytest.raises(SaelinkError) as refused:
                configure(f"{name}={value}")
            assert "\n" not in str(refused.value) and name.rpartition(".")[0] in str(refused.value)
