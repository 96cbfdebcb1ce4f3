"""Several layers replaced at once, and maps of blocks put behind one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.evidence.evaluate import EvaluateStage
from saelink.experiments import EXPERIMENTS
from saelink.experiments.composed import WAYS
from saelink.experiments.fits import link_named
from saelink.experiments.tables import rows_of
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions.cross_entropy import BaselinesStage
from saelink.interventions.layers import SeveralLayers
from saelink.job import Job
from saelink.latents.link import link_of, load_split, pull_sides
from saelink.model.describe import model_info
from saelink.model.load import load_bridge
from saelink.saes.load import pull_sae
from saelink.store.store import Store

Compose = Callable[..., Config]

SMALL = ["eval.ce_tokens=256", "eval.bootstrap=50", "l1_alpha=1e-3", "solver=exact"]


def test_one_layer_is_what_evaluate_splices(config: Compose, store: Store) -> None:
    cfg = config(*SMALL, "eval.ce=true")
    connector = fitted_connector(TrainStage(Job(cfg, store)).pull())
    expected = EvaluateStage(Job(cfg, store)).pull().json("ce.json")
    baselines = BaselinesStage(Job(cfg, store)).pull().tensors("losses.safetensors")
    with SeveralLayers([Job(cfg, store)], 256, 5) as model, torch.inference_mode():
        link = model.links[0]
        assert torch.allclose(model.losses(), baselines["clean"], atol=1e-5)
        assert torch.allclose(model.losses([link.nothing]), baselines["zero"], atol=1e-5)
        for name, how in (("mean", link.averaged), ("sae", link.rebuilt), ("connector", link.predicted(connector))):
            # latents on disk come from activations in bfloat16, these from the running model's
            assert model.losses([how]).mean().item() == pytest.approx(expected[name]["ce"], abs=5e-3), name


def test_a_later_layer_reads_what_earlier_ones_were_replaced_by(config: Compose, store: Store) -> None:
    first, second = config(*SMALL, "layer=0"), config(*SMALL, "layer=1")
    connector = fitted_connector(TrainStage(Job(second, store)).pull())
    with SeveralLayers([Job(first, store), Job(second, store)], 128, 2) as model, torch.inference_mode():
        found = model.losses([model.links[0].nothing, model.links[1].predicted(connector)])
        alone = model.losses([model.links[0].nothing, lambda sources, target: target])
        test, link = model.test, model.links[1]
    bridge = load_bridge(second, model_info(second, store), "cpu")
    sae_in, sae_out = pull_sae(second, store, link.sources[0]), pull_sae(second, store, link.target)

    def without_first(acts: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.where(test.counts[..., None], 0.0, acts)

    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., torch.Tensor]:
        def hook(acts: torch.Tensor, **_: object) -> torch.Tensor:
            seen[name] = acts.clone()
            return acts

        return hook

    zeroed = (link_of(first, store).target, without_first)
    with torch.inference_mode():
        bridge.run_with_hooks(
            test.ids, fwd_hooks=[zeroed, (link.sources[0], keep("in")), (link.target, keep("out"))]
        )  # fmt: skip
        latents = sae_in.encode(seen["in"].flatten(0, 1)) / link.scales[0]
        row, latent = latents.nonzero(as_tuple=True)
        W = connector.output_weight()
        mine = sae_out.encode(seen["out"].flatten(0, 1))
        mine[:, connector.target_ids] = (latents @ W) * link.scales[1]
        new = sae_out.decode(mine).view(seen["out"].shape)
        assert len(row) == len(latent) > 0

        def put(acts: torch.Tensor, **_: object) -> torch.Tensor:
            return torch.where(test.counts[..., None], new, acts)

        logits = bridge.run_with_hooks(test.ids, fwd_hooks=[zeroed, (link.target, put)])
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), test.ids[:, 1:].flatten(), reduction="none"
    )
    assert torch.allclose(found.flatten(), expected, atol=1e-4)
    assert not torch.allclose(found, alone, atol=1e-3)


def test_the_table_of_several_layers(config: Compose, store: Store) -> None:
    settings = [
        "experiment.kept_edges=[1,100000]",
        "experiment.kept_tokens=256",
        "experiment.several_layers.layers=[0,1]",
    ]
    cfg = config("eval.ce_tokens=256", "eval.bootstrap=50", "solver.tokens=2048", *settings)
    artifact = EXPERIMENTS["several_layers"].run(Job(cfg, store))
    rows = {(row["edges of"], row["k each"]): row for row in rows_of(artifact)}
    assert {label for label, _ in rows} == {"lasso at 8e-4", "causal", "causal nonlinear", "measured effects"}
    assert rows["causal", 1]["n_edges"] == 2, "one in each layer"
    again = EXPERIMENTS["several_layers"].run(Job(cfg, store))
    assert again.key == artifact.key


def test_composed_maps_are_matrices_put_behind_one_another(config: Compose, store: Store) -> None:
    cfg = config("experiment.composed.layers=[0,2]", "solver.tokens=2048")
    with pytest.raises(SaelinkError, match=r"layers=\[0, 2\]: give at least two layers that follow"):
        EXPERIMENTS["composed"].run(Job(cfg, store))
    cfg = config(
        "experiment.composed.layers=[0,1]", "solver.tokens=2048", "sae=train", "sae.d_sae=24", "sae.epochs=0.2"
    )
    artifact = EXPERIMENTS["composed"].run(Job(cfg, store))
    rows = {(row["way"], row["to"]): row["fvu"] for row in rows_of(artifact)}
    assert len(rows) == len(WAYS) * 2
    fits = EXPERIMENTS["composed"].fits(Job(EXPERIMENTS["composed"].configured(cfg), store))
    for layer, fit in enumerate(fits.values()):
        assert rows["one block", layer] == pytest.approx(
            EvaluateStage(Job(fit, store)).pull().json("metrics.json")["fvu"], rel=1e-4
        )
    assert rows["composed", 0] == pytest.approx(rows["one block", 0], rel=1e-6)
    parts: list[list[torch.Tensor]] = []
    truth = torch.zeros(0)
    matrices, ids = [], torch.zeros(0)
    for layer, fit in enumerate(fits.values()):
        here = replace(cfg, link=link_named("block"), layer=layer)
        test = load_split(here, pull_sides(here, store), "test")
        parts.append(list(test.source.dense().split(48, 1)))
        connector = fitted_connector(TrainStage(Job(fit, store)).pull())
        whole = torch.zeros(144, 48)
        whole[:, connector.target_ids] = connector.output_weight()
        matrices.append(whole.split(48))
        truth, ids = test.target.dense()[:, connector.target_ids], connector.target_ids
    first = sum(x @ w for x, w in zip(parts[0], matrices[0], strict=True))
    second = first @ matrices[1][0] + parts[1][1] @ matrices[1][1] + parts[1][2] @ matrices[1][2]
    passed = parts[0][0] @ matrices[0][0] @ matrices[1][0]
    spread = (truth - truth.mean(0)).square().sum()
    for way, predicted in (("composed", second), ("pass-through alone", passed)):
        assert rows[way, 1] == pytest.approx(((predicted[:, ids] - truth).square().sum() / spread).item(), rel=1e-3)
