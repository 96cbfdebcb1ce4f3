"""Misspelt commands, flags, settings and choices: one line that says what was probably meant, and nothing runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from saelink.config.schema import Config
from saelink.errors import closest
from saelink.mistakes import checked, has, settings_by_choice, settings_of
from saelink.store.store import Store

from helpers.world import Run

LINES = {
    "trian": "there is no command trian; did you mean saelink train?",
    "frobnicate": "there is no command frobnicate; saelink --help lists them",
    "train --hlep": "train: there is no flag --hlep; did you mean --help?",
    "train layer 3": "train: layer: settings are key=value, such as layer=3",
    "train l1_alhpa=1": "l1_alhpa=1: there is no such setting; did you mean l1_alpha?",
    "train conector=mlp": "conector=mlp: there is no such setting; did you mean connector=mlp?",
    "train solver.tolerence=1": "solver.tolerence=1: there is no such setting; did you mean solver.tolerance?",
    "train max_tokens=9": "max_tokens=9: there is no such setting; did you mean data.max_tokens?",
    "train zzz=1": "zzz=1: there is no such setting; `saelink train --help-all` lists all",
    "train connector=mpl": "connector=mpl: did you mean connector=mlp? There are linear, mlp, nonlinear, sae, skip, "
    "two_nonlinear",
    "train connector=mlp solver.tolerance=3": "solver.tolerance=3: solver=adam has no such setting; causal, exact and "
    "readout have it",
    "train connector=mlp solver.tolerence=1": "solver.tolerence=1: there is no such setting; did you mean "
    "solver.tolerance? solver=adam has no such setting; causal, exact and readout have it",
    "train connector.d_hidden=3": "connector.d_hidden=3: connector=linear has no such setting; mlp, sae, skip and "
    "two_nonlinear have it",
    "train +connector.foo=3": "+connector.foo=3: there is no such setting; `saelink train --help-all` lists all",
    "train ++foo=3 --cfg job": "++foo=3: there is no such setting; `saelink train --help-all` lists all",
    "train -m connector=linear,nonlinear solver.effects=3": "solver.effects=3: solver=exact and solver=adam have no "
    "such setting; causal has it",
    "train -m connector=linear,mpl": "connector=mpl: did you mean connector=mlp? There are linear, mlp, nonlinear, "
    "sae, skip, two_nonlinear",
    "run experiment=pareto experiment.pareto.l1_alphs=[1]": "experiment.pareto.l1_alphs=[1]: there is no such "
    "setting; did you mean experiment.pareto.l1_alphas?",
}


@pytest.mark.parametrize("words", LINES)
def test_one_line_says_what_was_probably_meant(saelink: Run, tmp_path: Path, words: str) -> None:
    code, out, err = saelink(*words.split(), bare=True)
    assert (code, out, err) == (1, "", f"saelink: {LINES[words]}\n")
    assert list(tmp_path.iterdir()) == []


def test_python_gets_the_same_line() -> None:
    from saelink import SaelinkError, configure

    with pytest.raises(SaelinkError, match=r"l1_alhpa=1: there is no such setting; did you mean l1_alpha\?"):
        configure("l1_alhpa=1")
    with pytest.raises(SaelinkError, match=r"\+connector.foo=3: there is no such setting"):
        configure("+connector.foo=3")


def test_in_a_multirun_a_setting_of_some_jobs_is_ignored_by_the_others(saelink: Run, tmp_path: Path) -> None:
    words = ["l1_alpha=1e-2", "solver.tokens=4096", "connector.init=random"]
    given = ["-m", "connector=linear,nonlinear", "solver=exact,adam", *words]
    code, out, err = saelink("train", "-m", "solver=exact,adam", *words)
    assert code == 0, out + err
    note = "solver.tokens: ignored by the jobs with solver=exact, which have no such setting"
    assert out.count(note) == 1 and out.count("no such setting") == 1
    fits = [artifact for artifact in Store(tmp_path / "outputs").artifacts() if artifact.stage == "train"]
    assert {fit.recipe["solver"]["name"] for fit in fits} == {"exact", "adam"}
    adam = next(fit for fit in fits if fit.recipe["solver"]["name"] == "adam")
    assert adam.recipe["solver"]["tokens"] == 4096 and "tokens" not in json.dumps(
        next(fit.recipe["solver"] for fit in fits if fit is not adam)
    )
    code, out, _ = saelink("train", "solver=exact", "l1_alpha=1e-2", "connector.init=random")
    assert code == 0 and out.count("up to date") == 1 and "train" in out  # the same key as alone
    assert checked([word for word in given if word != "-m"]).overrides[-2:] == [
        "++solver.tokens=4096",
        "connector.init=random",
    ]


def test_what_exists_is_left_as_it_is() -> None:
    fixed = [name for name, entries in settings_of(Config).items() if not entries]
    assert {"layer", "l1_alpha", "data.max_tokens", "eval"} <= {*fixed, "l1_alpha"}
    overrides = ["connector=skip", "solver.unpenalised=0.2", "sae.files={a: b}", "+sae.files.c=d", "hydra.verbose=true"]
    assert checked(overrides) == (overrides, [])
    assert checked(["layer=[", "zzz=1"]) == (["layer=[", "zzz=1"], [])  # Hydra says what is wrong with the first


def test_every_setting_of_every_choice_is_known() -> None:
    for group, kinds in settings_by_choice().items():
        for kind in kinds.values():
            for field in dataclasses.fields(kind):
                assert has(settings_of(kind, f"{group}."), f"{group}.{field.name}")


@pytest.mark.parametrize(
    ("word", "meant"),
    [("eval.circuit", "eval.circuits"), ("circuits", "eval.circuits"), ("evl.ce", "eval.ce"), ("abc.xyz", None)],
)
def test_closest(word: str, meant: str | None) -> None:
    assert closest(word, ["layer", "eval", "eval.circuits", "eval.ce", "report.path"]) == meant
