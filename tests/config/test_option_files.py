"""The files of connectors and solvers say what the code says, and are what Hydra composes."""

from __future__ import annotations

import dataclasses
import re
import shutil
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from saelink import SaelinkError, compose, configure
from saelink.cli.completion import complete
from saelink.cli.help import GROUPS, listed
from saelink.config.files import conf_dir
from saelink.connectors import CONNECTORS
from saelink.fit.solvers import SOLVERS

from helpers.world import Run, composed

OPTIONS = [("connector", name) for name in CONNECTORS] + [("solver", name) for name in SOLVERS]


def shown(group: str, name: str) -> dict[str, Any]:
    loaded = OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{name}.yaml"))
    assert isinstance(loaded, dict)
    return {str(key): value for key, value in loaded.items()}


def in_code(group: str, name: str) -> dict[str, Any]:
    """Defaults of the dataclass, as YAML has them."""
    settings = {"connector": CONNECTORS, "solver": SOLVERS}[group][name].Settings(name=name)
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    return {key: value.name if isinstance(value, Enum) else value for key, value in values.items()}


def test_there_is_a_file_for_each_and_no_other() -> None:
    for group in ("connector", "solver"):
        files = {path.stem for path in (conf_dir() / group).iterdir()}
        assert files == {name for of, name in OPTIONS if of == group}


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_a_file_shows_every_setting_with_its_default(group: str, name: str) -> None:
    values = shown(group, name)
    values.pop("defaults")
    defaults = in_code(group, name)
    assert list(values.items()) == list(defaults.items())
    for key, value in values.items():
        assert type(value) is type(defaults[key]), key


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_each_setting_has_a_comment(group: str, name: str) -> None:
    first, *lines = (conf_dir() / group / f"{name}.yaml").read_text().splitlines()
    assert re.fullmatch(r"# \w.*", first)
    settings = [line for line in lines if re.match(r"\w+:", line) and line != "defaults:"]
    assert len(settings) == len(in_code(group, name))
    for line in settings:
        assert re.fullmatch(r"\w+: \S+ +# \w.{8,}", line), line
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_a_file_starts_from_the_types_and_a_connectors_chooses_its_solver(group: str, name: str) -> None:
    expected: list[Any] = [f"/schema_{group}_{name}@_here_"]
    if group == "connector":
        expected.append({"override /solver@_global_.solver": CONNECTORS[name].default_solver})
    assert shown(group, name)["defaults"] == expected


@pytest.fixture
def other_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ in the place of the real one; what is registered for it is forgotten afterwards."""
    folder = shutil.copytree(conf_dir(), tmp_path / "conf")
    monkeypatch.setattr("saelink.compose.conf_dir", lambda: folder)
    monkeypatch.setattr(ConfigStore.instance(), "repo", dict(ConfigStore.instance().repo))
    return folder


def test_what_a_file_says_is_what_is_composed(other_conf: Path) -> None:
    for name, line, other in (
        ("connector/mlp", "d_hidden: 512", "d_hidden: 7"),
        ("solver/adam", "lr: 1e-3", "lr: 0.5"),
    ):
        path = other_conf / f"{name}.yaml"
        assert line in path.read_text()
        path.write_text(path.read_text().replace(line, other))
    cfg: Any = configure("connector=mlp")
    assert (cfg.connector.d_hidden, cfg.solver.lr) == (7, 0.5)


@pytest.mark.parametrize(
    ("line", "other", "said"), [("d_hidden: 512", "d_hidden: x", "Integer"), ("bias:", "bia:", "bia")]
)
def test_the_types_check_what_a_file_says(other_conf: Path, line: str, other: str, said: str) -> None:
    path = other_conf / "connector/mlp.yaml"
    path.write_text(path.read_text().replace(line, other))
    with pytest.raises(SaelinkError, match=said):
        configure("connector=mlp")


@pytest.mark.parametrize("name", CONNECTORS)
def test_a_connector_without_a_file_is_an_option_all_the_same(other_conf: Path, name: str) -> None:
    expected = composed([f"connector={name}"])
    (other_conf / f"connector/{name}.yaml").unlink()
    with pytest.raises(SaelinkError, match=f"connector={name}: "):
        raise_without_registering(name)
    assert configure(f"connector={name}") == expected
    cfg: Any = configure(f"connector={name}", "solver=proximal", "connector.bias=true")
    assert cfg.solver.name == "proximal" and cfg.connector.bias


def raise_without_registering(name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saelink.compose.register", lambda options=None: None)
        configure(f"connector={name}")


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_without_a_file_is_an_option_all_the_same(other_conf: Path, name: str) -> None:
    expected = composed([f"solver={name}"])
    (other_conf / f"solver/{name}.yaml").unlink()
    assert configure(f"solver={name}") == expected


def test_a_budget_chooses_the_solver_before_the_connector_does() -> None:
    for name in CONNECTORS:
        assert composed([f"connector={name}", "budget=quick"]).solver.name == "adam"
        assert composed([f"connector={name}", "budget=quick", "solver=proximal"]).solver.name == "proximal"


def test_a_file_of_ones_own_builds_on_one_of_these(saelink: Run, tmp_path: Path) -> None:
    (tmp_path / "mine/connector").mkdir(parents=True)
    (tmp_path / "mine/connector/large.yaml").write_text("defaults: [skip]\nd_hidden: 77\n")
    words = ["connector=large", "--config-dir", str(tmp_path / "mine")]
    code, out, err = saelink("train", "--cfg", "job", *words, bare=True)
    assert code == 0, err
    assert "connector:\n  name: skip\n" in out and "d_hidden: 77" in out and "solver:\n  name: readout\n" in out
    code, out, _ = saelink("train", "--help", *words, bare=True)
    assert code == 0 and "large*, linear, mlp" in out and "readout*" in out


HIDDEN = ("for_", "schema", "sweep")


def test_help_lists_the_groups_and_nothing_else(saelink: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = saelink("train", "--help", "model=hub", "model.path=a/b", bare=True)
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    code, everything, _ = saelink("train", "--help-all", "model=hub", "model.path=a/b", bare=True)
    assert code == 0 and "${model.path}" in everything  # a value with the sign of Hydra's template
    groups = out.split("Groups of settings")[1].split("Flags")[0]
    assert re.findall(r"^  (\w+) ", groups, re.MULTILINE) == list(GROUPS)
    assert {path.name for path in conf_dir().iterdir() if path.is_dir()} == {*GROUPS, "hydra"}
    for group in GROUPS:
        for path in (conf_dir() / group).glob("*.yaml"):
            assert re.search(rf"\b{path.stem}\b", groups), path
    assert not [word for word in HIDDEN if word in groups]
    for chosen in ("hub*", "linear*", "exact*"):
        assert chosen in groups


def test_a_group_of_the_users_own_is_listed_after_the_others() -> None:
    text = listed({"mine": ["a", "b"], "model": ["x"]}, {"mine": "b"}, 40)
    assert text.splitlines() == ["  model  the language model", "         x", "  mine   a, b*"]


@pytest.mark.parametrize("incomplete", ["", "s", "solver=", "solver=f", "+", "connector="])
def test_completion_offers_only_what_one_can_choose(incomplete: str) -> None:
    found = complete(incomplete)
    assert found or incomplete == "solver=f"
    assert not [each for each in found if any(word in each for word in HIDDEN)]


@pytest.mark.parametrize(("choice", "options"), [("connector=cubic", CONNECTORS), ("solver=cubic", SOLVERS)])
def test_a_choice_that_does_not_exist_is_told_those_that_do(saelink: Run, choice: str, options: dict[str, Any]) -> None:
    code, _, err = saelink("train", choice, bare=True)
    assert code == 1 and len(err.strip().splitlines()) == 1
    assert err.strip() == f"saelink: {choice}: There are {', '.join(sorted(options))}"


def test_every_schema_is_out_of_sight() -> None:
    compose.register()
    groups = [name for name, node in ConfigStore.instance().repo.items() if isinstance(node, dict)]
    assert not [name for name in groups if name.startswith("schema")]
