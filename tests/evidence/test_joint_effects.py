"""Joint effects on planted circuits, where what sources do together is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from saelink.config.evidence import AblationValue
from saelink.config.schema import Config
from saelink.evidence.claims import claims
from saelink.evidence.joint_effects import (
    JOINT_FILE,
    JointStage,
    Measured,
    agreement,
    claims_on_sets,
    figures_of,
    measure_sets,
    sets_of,
    strongest_sources,
)
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions.effects import EffectsStage, load_effects
from saelink.interventions.joint import Gone, Joint
from saelink.interventions.measure import choose_ablations, measure_effects, open_measurement
from saelink.interventions.replaced import replaced_by
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.progress import Observer
from saelink.store.store import Store

from helpers.planted import RULES, planted_block, sources
from helpers.world import Run


@pytest.mark.parametrize(("word", "sign"), [("or", 1), ("and", -1)])
def test_interactions_have_the_sign_of_what_is_planted(word: str, sign: int) -> None:
    """Of an OR each alone does nothing where both are on; of an AND each alone does all."""
    a = sources()
    block = planted_block(a, [RULES[word]])
    joint = Joint(block, [1.0, 1.0])
    measured = measure_effects(open_measurement(block, 10_000), Observer())
    assert strongest_sources(measured, 20, 0.1, 10).keys() == {0}
    sets = sets_of(joint, {0: [0, 1]})
    together, summed = measure_sets(joint, sets)
    pair, top = sets.size.index(0), sets.size.index(2)
    interaction = together - summed
    assert interaction[pair] * sign > 0.3 and interaction[top] * sign > 0
    both = (a[:, 0] > 0) & (a[:, 1] > 0)
    token = sets.token[pair]
    assert bool(both[token].all())
    rule = RULES[word]
    truth = rule(a[token]) - rule(a[token] * 0)
    assert together[pair].item() == pytest.approx(truth.mean().item(), abs=1e-5)


def test_what_adds_up_has_no_interaction() -> None:
    a = sources()
    joint = Joint(planted_block(a, [lambda s: s[:, 0] + 2 * s[:, 1] + s[:, 2]]), [1.0, 1.0])
    together, summed = measure_sets(joint, sets_of(joint, {0: [1, 0, 2]}))
    assert torch.allclose(together, summed, atol=1e-5) and bool((together > 0.5).all())


def test_agreement_of_what_agrees() -> None:
    generator = torch.Generator().manual_seed(0)
    said = torch.randn(200, generator=generator)
    target = torch.arange(200) // 5
    same = agreement(said, 2 * said, target)
    assert same["r"] == pytest.approx(1) and same["slope"] == pytest.approx(2) and same["rank_r_low"] > 0.99
    noise = agreement(said, torch.randn(200, generator=generator), target)
    assert noise["r_low"] < 0 < noise["r_high"] and agreement(said[:2], said[:2], target[:2]) == {}
    half = agreement(said, said + torch.randn(200, generator=generator), target)
    assert half["r_low"] < 0.7071 < half["r_high"]
    figures = figures_of(target, torch.zeros(200).long(), Measured(said, 2 * said, said))
    assert figures["pairs"]["claim"]["r"] == pytest.approx(1) and figures["pairs"]["sets"] == 200


def test_a_linear_connectors_claims_are_its_weights(config: Callable[..., Config], store: Store) -> None:
    job = Job(config("solver=exact", "l1_alpha=1e-4", "verify.strong=0.01"), store)
    connector = fitted_connector(TrainStage(job).pull())
    from saelink.interventions.block import open_block

    joint = Joint(open_block(job, "test"), job.sides.scales)
    sets = sets_of(joint, {int(connector.target_ids[0]): list(range(6)), int(connector.target_ids[3]): [7, 3, 9]})
    unit = torch.tensor(job.sides.scales[:-1])[joint.block.side]
    found = claims_on_sets(joint, sets, connector, unit)
    weight = connector.output_weight()
    column = {int(latent): i for i, latent in enumerate(connector.target_ids)}
    for number, (target, token, gone) in enumerate(zip(sets.target, sets.token, sets.gone, strict=True)):
        amount = joint.active.at(token[gone.row], gone.source) / unit[gone.source]
        expected = (amount * weight[gone.source, column[target]]).sum() / len(token)
        assert found[number].item() == pytest.approx(expected.item(), abs=1e-5)
    assert sets.target
    artifact = JointStage(job).pull()
    figures = artifact.json(JOINT_FILE)
    assert artifact.facts["sets"] == sum(row["sets"] for row in figures.values()) > 0


# --------------------------------------------------------------------------- resampling


def test_what_is_drawn_is_the_sources_own() -> None:
    """Values drawn for a source are spread as the source is, and depend on token and source alone."""
    a = sources(n=20_000, d=4, density=0.3)
    by_source = Joint(planted_block(a, [RULES["copy"]]), [1.0, 1.0]).by_source
    token = torch.arange(20_000)
    for source in range(4):
        drawn = replaced_by(AblationValue.resample, by_source, token, torch.full_like(token, source))
        assert (drawn > 0).float().mean().item() == pytest.approx((a[:, source] > 0).float().mean().item(), abs=0.02)
        assert drawn.mean().item() == pytest.approx(a[:, source].mean().item(), abs=0.02)
        assert abs(torch.corrcoef(torch.stack([drawn, a[:, source]]))[0, 1].item()) < 0.03
        part = token[5000:5100]
        again = replaced_by(AblationValue.resample, by_source, part, torch.full_like(part, source))
        assert torch.equal(again, drawn[5000:5100])
    assert not replaced_by(AblationValue.zero, by_source, token, token * 0).any()


def test_resampled_effects_of_a_sum_are_what_goes() -> None:
    """Of a linear target the effect is its weight times the mean of what goes less what comes."""
    a = sources(density=0.4)
    block = planted_block(a, [lambda s: s[:, 0] + 5 * (s[:, 0] > -1) + 0 * s[:, 1]])
    given = open_measurement(block, 10_000, ablation=AblationValue.resample)
    found = measure_effects(given, Observer())
    chosen = choose_ablations(given.active, block.fold, 10_000, torch.tensor([0]))
    comes = replaced_by(AblationValue.resample, given.active, chosen.token, chosen.source)
    expected = (chosen.value - comes).mean().item()
    assert 0 < expected < chosen.value.mean().item() * 0.8
    assert found.dense()[0, 0].item() == pytest.approx(expected, abs=1e-4)
    assert found.source_mean[0].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("connector", ["linear", "nonlinear"])
def test_resampled_claims(config: Callable[..., Config], store: Store, connector: str) -> None:
    """By one ablation after the other of the connector's own predictions."""
    more = [] if connector == "linear" else ["solver.tokens=4096"]
    solver = "solver=exact" if connector == "linear" else "solver=proximal"
    job = Job(config(f"connector={connector}", solver, "verify.ablation=resample", *more), store)
    zero = job.at(replace(job.cfg, verify=replace(job.cfg.verify, ablation=AblationValue.zero)))
    assert EffectsStage(job).key != EffectsStage(zero).key
    measured = load_effects(EffectsStage(job).pull())
    fitted = fitted_connector(TrainStage(job).pull())
    test = load_split(job.cfg, job.sides, "test", fitted.target_ids)
    found = claims(fitted, measured, test, 256, "cpu", Observer(), AblationValue.resample)
    without = claims(fitted, measured, test, 256, "cpu", Observer())
    assert len(found.value) and found.value.isfinite().all()
    assert (connector == "linear") == torch.equal(found.value, without.value)  # a linear one reads measured.source_mean


def test_resampling_on_the_command_line(saelink: Run) -> None:
    code, out, err = saelink("verify", "solver=exact", "verify.ablation=resample", "verify.stability=false")
    assert code == 0, err
    assert "Logic, tested" in out and "Sources taken out together" in out
    code, _, err = saelink("verify", "solver=exact", "verify.joint=-1")
    assert code == 1 and "verify.joint=-1 must be at least 0" in err and len(err.strip().splitlines()) == 1


def test_no_set_is_no_mistake() -> None:
    joint = Joint(planted_block(sources(), [RULES["copy"]]), [1.0, 1.0])
    nothing = torch.zeros(0, dtype=torch.int64)
    assert sets_of(joint, {}).target == [] and len(joint.without(nothing, Gone(nothing, nothing), nothing)) == 0
