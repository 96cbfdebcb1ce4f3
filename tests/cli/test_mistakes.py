"""Misspelt commands, flags, settings and choices: one line that says what was probably meant, and nothing runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelink.config.grammar import quoted
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
    "train bdget=x": "bdget=x: there is no such setting; did you mean budget=x?",
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
    "train +lr=3 ++sae.dsae=7": "+lr=3: there is no such setting; did you mean sae.lr?",
    "train ++sae.dsae=7": "++sae.dsae=7: there is no such setting; did you mean sae.d_sae?",
    "train +sae={dsae:7}": "+sae={dsae:7}: there is no such setting; did you mean sae.d_sae?",
    "train eval={circuits:1,edgs:2}": "eval={circuits:1,edgs:2}: there is no such setting; did you mean eval.edges?",
    "train connector={d_hidden:7}": "connector={d_hidden:7}: connector=linear has no such setting; mlp, sae, skip and "
    "two_nonlinear have it",
    "train +model/x=3": "+model/x=3: there is no group model/x; there are budget, connector, data, experiment, link, "
    "model, sae, solver",
    "train sae@x=folder": "sae@x=folder: @ is for files of settings; choose by the group's own name, sae=...",
    "train ++hydra.run.dirr=3": "++hydra.run.dirr=3: Hydra has no such setting; `saelink train --cfg hydra` shows "
    "those it has",
    "train +sae.published.hook_mlp_out={fuv:1}": "sae.published.hook_mlp_out={'fuv': 1}: give fvu, l0 and d_sae, each "
    "a number or a list by layer",
    "train layer=0,1": "layer=0,1: several values are jobs of a sweep, which need -m",
    "train layer=range(0,2)": "layer=range(0,2): several values are jobs of a sweep, which need -m",
    "train l1_alpha=1,2": "l1_alpha=1,2: several values are jobs of a sweep, which need -m; one list is l1_alpha=[1,2]",
    "train data.path=a,b": "data.path=a,b: several values are jobs of a sweep, which need -m; a text with a comma "
    "stands in quotes: 'data.path=\"a,b\"'",
    "train data.path=a=b": "data.path=a=b: there are signs in it that need quotes: 'data.path=\"a=b\"'",
    "train layer=[1": "layer=[1: the value can't be read; a list is [1,2], a table {a: 1}, and a text with other "
    "signs than letters, digits and /-+.$%*@?|_ stands in quotes: 'layer=\"a, b\"'",
    "train layer=" + "[" * 3000: "layer=" + "[" * 114 + "...: brackets stand in brackets more than 20 deep",
    "train layer=three": "layer=three: Value 'three' of type 'str' could not be converted to Integer",
    "train -m runtime.outputs=": "runtime.outputs=: there is no name; give a folder for the artifacts, such as outputs",
    "train hydra.searchpath.x=a": "hydra.searchpath.x=a: Hydra has no such setting; `saelink train --cfg hydra` shows "
    "those it has",
    "train eval.edge_thresholds.x=3": "eval.edge_thresholds.x=3: there is no such setting; `saelink train --help-all` "
    "lists all",
    "train ~link.sources.0": "~link.sources.0: an entry of a list can't be taken away; give the list without it, "
    "link.sources=[...]",
    "train hydra.launcher=3 -m": "hydra.launcher=3: hydra.launcher is a group of settings; choose one by "
    "hydra/launcher=..., such as basic",
    "train ~hydra.sweeper -m": "~hydra.sweeper: hydra.sweeper is a group of settings; choose one by "
    "hydra/sweeper=..., such as basic",
    "train hydra.launcher={_target_:os.getcwd} -m": "hydra.launcher={_target_:os.getcwd}: hydra.launcher is a group of "
    "settings; choose one by hydra/launcher=..., such as basic",
    "train hydra.sweeper._target_=os.getcwd -m": "hydra.sweeper._target_=os.getcwd: hydra.sweeper is a group of "
    "settings; choose one by hydra/sweeper=..., such as basic",
    "train hydra/launcher=3": "hydra/launcher=3: hydra/launcher takes the name of one of its choices, such as basic",
    "train hydra/launcher=[basic,7]": "hydra/launcher=[basic,7]: hydra/launcher takes the name of one of its choices, "
    "such as basic",
    "train ~budget=[quick]": "~budget=[quick]: to take a choice away give ~budget, or ~budget=NAME with the name it "
    "has",
    "train ~hydra/launcher=5": "~hydra/launcher=5: to take a choice away give ~hydra/launcher, or "
    "~hydra/launcher=NAME with the name it has",
    "train --resolve": "train: --resolve goes with --cfg job, which prints the settings and runs nothing",
    "train --cfg nope": "train: --cfg nope: say which: job, hydra, all",
    "train --cfg": "train: --cfg: say which: job, hydra, all",
    "train --config-dir -m": "train: --config-dir needs a value behind it",
    "train --experimental-rerun x.pickle": "train: there is no flag --experimental-rerun; saelink train --help lists "
    "them",
    "cache data=[] ~experiment.dense": "data=[]: choose one of files, hub, openwebtext-10k, wiki",
    "train --config-dir nope --cfg job": "train: --config-dir nope: there is no such folder; give one with YAML files",
    "train hydra/help=x --cfg job": "hydra/help=x: there are default",
    "report budget=hf://a/b@c/d --info defaults": "budget=hf://a/b@c/d: there are full, quick",
    "train --config-name x\udcff --cfg job": "Cannot find primary config 'x\\udcff'. Check that it's in your config "
    "search path.",
    "train -x": "train: there is no flag -x; saelink train --help lists them",
    "run experiment=pareto experiment.pareto.l1_alphs=[1]": "experiment.pareto.l1_alphs=[1]: there is no such "
    "setting; did you mean experiment.pareto.l1_alphas?",
}


@pytest.mark.parametrize("words", LINES)
def test_one_line_says_what_was_probably_meant(saelink: Run, tmp_path: Path, words: str) -> None:
    code, out, err = saelink(*words.split(), bare=True)
    assert (code, out, err) == (1, "", f"saelink: {LINES[words]}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", ["rm", "rm a b", "ls --nope", "wandb nope", "push a", "pareto"])
def test_a_wrong_flag_or_argument_is_one_line(saelink: Run, tmp_path: Path, words: str) -> None:
    code, out, err = saelink(*words.split(), bare=True)
    assert (code, out) == (1, "") and len(err.strip().splitlines()) == 1 and err.startswith("saelink: ")
    assert f"`saelink {words.split()[0]} --help` has more" in err and list(tmp_path.iterdir()) == []


QUOTED = ["a=b", "a,b", "x[1]", "a(1)#{}", "it's", 'say "x"', "1e3", "true", "é ü", "back\\slash", "a b"]


@pytest.mark.parametrize("name", QUOTED)
def test_a_name_that_exists_needs_no_quotes(tmp_path: Path, name: str) -> None:
    from saelink import configure

    (tmp_path / name).touch()
    for place in (name, str(tmp_path / name)):
        with contextlib.chdir(tmp_path):
            assert configure("data=files", f"data.path={place}").data.path == place


@given(st.text(st.characters(exclude_characters="\0$"), min_size=1, max_size=12))
def test_quotes_keep_any_text(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    value = OverridesParser.create().parse_override(f"data.path={quoted(text)}").value()
    assert value == text


def test_what_a_message_advises_works() -> None:
    """Every way out that a line about quotes and lists shows, taken."""
    from saelink import SaelinkError, configure

    asked = ["data.path=a=b", "data.path=it's", "data.path=a,b", "model.separator=<eot>", "eval.edge_thresholds=1,2"]
    for override in asked:
        with pytest.raises(SaelinkError) as refused:
            configure("data=files", "data.path=x", override)
        (advised,) = shlex.split(str(refused.value).rpartition(" is ")[2].rpartition(": ")[2])
        cfg = configure("data=files", "data.path=x", advised)
        key, _, value = override.partition("=")
        group, name = key.split(".")
        assert getattr(getattr(cfg, group), name) in (value, [1.0, 2.0])


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_a_declared_table_is_free_to_have_any_entries(sign: str) -> None:
    from saelink import configure

    cfg = configure(f"{sign}sae.files={{hook_mlp_out: a}}", f"{sign}sae.files.hook_resid_mid=b")
    assert cfg.sae.files == {"hook_mlp_out": "a", "hook_resid_mid": "b"}


def test_a_home_folder_is_no_folder_called_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saelink import configure

    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = configure("runtime.outputs=~/x", "data=files", "data.path=~/*.jsonl", 'model.path="~/m"', "sae.files.a=~/s")
    assert cfg.runtime.outputs == f"{tmp_path}/x" and cfg.data.path == f"{tmp_path}/*.jsonl"
    assert cfg.model.path == f"{tmp_path}/m" and cfg.sae.files == {"a": f"{tmp_path}/s"}


@pytest.mark.parametrize(
    ("words", "prompt"),
    [(["x=1"], ["x=1"]), (["the king=", "layer=1"], ["the king="]), (["the king", "laier=1"], ["the king"])],
)
def test_a_text_that_looks_like_a_setting_is_a_prompt(
    saelink: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], prompt: list[str]
) -> None:
    seen: list[tuple[list[str], list[str]]] = []
    monkeypatch.setattr("saelink.cli.named.graph", lambda asked: asked)
    monkeypatch.setattr("saelink.cli.app.launch", lambda name, overrides, command: seen.append((overrides, command)))
    assert saelink("graph", *words, bare=True)[0] == 0
    assert seen == [([word for word in words if word not in prompt], prompt)]


def test_an_integer_that_no_float_can_hold(saelink: Run, tmp_path: Path) -> None:
    """On the command line, in a multirun, in a file, in Python; of a connector's or a solver's settings too."""
    from saelink import SaelinkError, configure

    (tmp_path / "mine/budget").mkdir(parents=True)
    (tmp_path / "mine/budget/huge.yaml").write_text(f"# @package _global_\nsae:\n  lr: {'9' * 400}\n")
    for name in ("sae.lr", "solver.tolerance", "data.max_norm_ratio", "eval.edge_thresholds.0"):
        with pytest.raises(SaelinkError, match=rf"{name.rpartition('.')[0]}.*: give a number below 2\^63"):
            configure(f"{name}=-{'9' * 400}")
    for words in ([f"sae.lr={'9' * 400}"], [f"sae.lr=1,{'9' * 400}", "-m"]):
        code, _, err = saelink("train", *words, "layer=99", bare=True)
        assert code == 1 and err.splitlines()[-1] == "saelink: sae.lr: give a number below 2^63", err
    code, _, err = saelink("train", "budget=huge", "--config-dir", str(tmp_path / "mine"), bare=True)
    assert (code, err) == (1, "saelink: a number in a file of settings: give a number below 2^63\n")


@pytest.mark.parametrize(
    "text",
    ["layer: [", "layer: \x07", "%YAML 9.9\n---\nlayer: 1", "a\n--- b\n", "layer: !!python/name:os.system", "- 1",
     "layer: " + "[" * 5000],
)  # fmt: skip
def test_a_file_of_settings_that_is_none(saelink: Run, tmp_path: Path, text: str) -> None:
    from saelink import SaelinkError, configure

    (tmp_path / "mine/budget").mkdir(parents=True)
    (tmp_path / "mine/budget/broken.yaml").write_text(text)
    for words in ([], ["-m"], ["--cfg", "job"], ["--help"], ["connector=mlp"]):
        code, _, err = saelink("train", "budget=broken", "--config-dir", str(tmp_path / "mine"), *words, bare=True)
        assert code == 1 and len(err.splitlines()) == 1 and err.startswith("saelink: "), err
    with pytest.raises(SaelinkError):
        configure(f"hydra.searchpath=[{(tmp_path / 'mine').as_uri()}]", "budget=broken")


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
    overrides = ["connector=skip", "solver.unpenalised=0.2", "+sae.files.c=d", "hydra.verbose=true", "~wandb.entity"]
    overrides += ["hydra.run.dir=x", "+hydra.job.env_set.A=b", "hydra/launcher=basic", "eval.edge_thresholds.0=3"]
    assert checked(overrides) == (overrides, [])


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
