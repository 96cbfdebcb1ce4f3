"""Measure a connector on test documents and read its circuits: the stage `evaluate`."""

from __future__ import annotations

from typing import Any

import torch

from saelink.config.schema import Config
from saelink.connectors.base import Connector
from saelink.evidence.circuits import circuit_text, circuits_of
from saelink.fit.train import fitted_connector, train, train_plan
from saelink.interventions.cross_entropy import ce_baselines, ce_figures, ce_plan
from saelink.interventions.splice import Splice, spliced_tokens
from saelink.latents.link import Sides, load_split, pull_sides
from saelink.latents.metrics import ErrorSums, in_steps
from saelink.latents.rows import sparse_linear
from saelink.latents.split import Tokens
from saelink.progress import Progress
from saelink.runtime import device_of
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.recipe import Plan, recipe_of
from saelink.store.store import Store

VERSION = 2

PREDICTED = 0.5
"""A target latent counts as predicted when its FVU is below this."""


def evaluate_plan(cfg: Config, store: Store) -> Plan:
    """Plan of a connector's evaluation."""
    plan = train_plan(cfg, store)
    settings = recipe_of(cfg.eval)
    del settings["verify"]  # what comes after
    if not cfg.eval.ce:
        settings = {name: value for name, value in settings.items() if name not in ("ce_tokens", "bootstrap")}
    inputs = {"connector": plan.key, **({"ce": ce_plan(cfg, store).key} if cfg.eval.ce else {})}
    return Plan("evaluate", VERSION, {"eval": settings}, inputs, plan.about)


def evaluate(cfg: Config, store: Store) -> Artifact:
    """Pull a connector's evaluation on the test split.

    Files: `metrics.json`; `latents.safetensors` with, for every latent of the target SAE, `fvu`, `mse`, `variance`
    (nan where it is not explained; fvu also where it never varies) and `active` (test tokens), for a connector with a
    linear part beside hidden units also `linear`, see linear_shares; `circuits.json` and
    `circuits.txt`; with eval.ce also `ce.json`, the cross-entropies of intervene.ce_figures.
    """
    plan = evaluate_plan(cfg, store)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    connector = train(cfg, store)
    return store.build(plan, lambda draft: _evaluate(cfg, store, connector, draft), device_of(cfg))


def _evaluate(cfg: Config, store: Store, artifact: Artifact, draft: Draft) -> dict[str, Any]:
    device = device_of(cfg)
    sides = pull_sides(cfg, store)
    connector = fitted_connector(artifact, device)
    ids = connector.target_ids.cpu()
    test = load_split(cfg, sides, "test", ids)
    sums, extra = measure_connector(connector, test, device)
    figures = {
        "n_tokens": sums["all"].n,
        "n_tokens_typical": sums["typical"].n,
        "mse": sums["all"].mse(),
        "fvu": sums["all"].fvu(),
        "fvu_typical": sums["typical"].fvu(),
        "l1": connector.l1(),
        "n_edges": connector.n_edges(),
        **{f"n_edges_above_{threshold:g}": connector.n_edges(threshold) for threshold in cfg.eval.edge_thresholds},
        **extra,
    }
    by_latent = sums["all"].fvu_by_latent()
    varying = ~by_latent.isnan()
    shares = linear_shares(connector, test, sums["all"], device)
    if shares is not None:
        known = shares[~shares.isnan()]
        figures["linear_share_median"] = known.median().item() if len(known) else None
        figures["n_targets_linear"] = int((connector.output_weight()[connector.direct :] == 0).all(0).sum())
    figures |= {
        "fvu_median_latent": by_latent[varying].median().item(),
        "fraction_predicted": (by_latent[varying] < PREDICTED).double().mean().item(),
        "n_targets": len(ids),
        "n_targets_active": int(varying.sum()),
        "d_target": sides.d_target,
    }
    if cfg.normalise.name != "none":
        figures["normalised_mse"] = figures["mse"] / artifact.facts["c"]
    if cfg.eval.ce:
        losses = _ce(cfg, store, sides, connector, draft)
        figures |= {
            f"ce_{name}": losses[name]["ce"] for name in ("clean", "sae", "connector", "oracle", "mean", "zero")
        }
        figures["ce_loss_recovered"] = losses["connector"]["recovered"]
        figures["ce_tokens"] = spliced_tokens(cfg, store, sides, cfg.eval.ce_tokens).ids.numel()
    draft.save_json("metrics.json", figures)
    n = sums["all"].n

    def everywhere(values: torch.Tensor, elsewhere: float) -> torch.Tensor:
        return torch.full((sides.d_target,), elsewhere, dtype=values.dtype).scatter(0, ids, values)

    draft.save_tensors(
        "latents.safetensors",
        {
            "fvu": everywhere(by_latent, torch.nan),
            "mse": everywhere(sums["all"].squared_error / n, torch.nan),
            "variance": everywhere(sums["all"].variation() / n, torch.nan),
            "active": everywhere(sums["all"].active, 0),
            **({} if shares is None else {"linear": everywhere(shares, torch.nan)}),
        },
    )
    circuits = circuits_of(cfg, store, sides, connector, test, by_latent, sums["all"].active, shares)
    draft.save_json("circuits.json", circuits)
    draft.save_bytes("circuits.txt", ("\n".join(map(circuit_text, circuits)) + "\n").encode())
    return figures


def measure_connector(connector: Connector, test: Tokens, device: str) -> tuple[dict[str, ErrorSums], dict[str, float]]:
    """Sums over `all` tokens that count and over the `typical` ones among them; figures of some connectors only.

    Those are hidden_l0 and hidden_l1, the mean number and the mean l1 norm of active hidden units per token, and
    dead_outputs, the target latents that a connector with relu outputs never predicts above zero.
    """
    parts = {
        name: test.subset(rows) for name, rows in (("typical", test.typical), ("massive", ~test.typical)) if rows.any()
    }
    sums = {"typical": ErrorSums(test.target.d), "massive": ErrorSums(test.target.d)}
    hidden_l0, hidden_l1, hidden_units = 0, 0.0, False
    predicted_once = torch.zeros(test.target.d, dtype=torch.bool, device=device)
    with Progress("evaluate", len(test)) as bar, torch.inference_mode():
        for name, part in parts.items():
            for source, target in zip(in_steps(part.source), in_steps(part.target), strict=True):
                z, hidden = connector.maps(source.to(device))
                if connector.relu_output:
                    z = torch.relu(z)
                    predicted_once |= (z > 0).any(0)
                if hidden is not None:
                    hidden_units = True
                    hidden_l0 += int((hidden > 0).sum())
                    hidden_l1 += hidden.double().sum().item()
                sums[name].add(z.cpu(), target)
                bar.advance(len(source))
    extra: dict[str, float] = {}
    if hidden_units:
        extra |= {"hidden_l0": hidden_l0 / len(test), "hidden_l1": hidden_l1 / len(test)}
    if connector.relu_output:
        extra["dead_outputs"] = int((~predicted_once).sum())
    return {"all": sums["typical"] + sums["massive"], "typical": sums["typical"]}, extra


def linear_shares(
    connector: Connector, test: Tokens, together: ErrorSums, device: str
) -> torch.Tensor | None:  # fmt: skip
    """[d_target] of what a connector with a linear part and hidden units explains, the share that is linear.

    (1 - FVU of the linear part beside the hidden part's mean) / (1 - FVU), between 0 and 1; nan where nothing is
    explained. `together` are the connector's own sums on these tokens. None for a connector without either part.
    """
    if not (connector.direct and connector.n_hidden):
        return None
    linear, through = connector.output_weight().split([connector.direct, connector.n_hidden])
    bias = dict(connector.named_parameters()).get("b2")
    hidden = torch.zeros(connector.n_hidden, dtype=torch.float64)
    with torch.inference_mode():
        for source in in_steps(test.source):
            found = connector.maps(source.to(device))[1]
            assert found is not None
            hidden += found.double().sum(0).cpu()
        constant = (hidden / len(test)) @ through.double().cpu()
        constant += 0 if bias is None else bias.detach().double().cpu()
        sums = ErrorSums(test.target.d)
        for source, target in zip(in_steps(test.source), in_steps(test.target), strict=True):
            sums.add(sparse_linear(source.to(device), linear).cpu() + constant.float(), target)
    explained = 1 - together.fvu_by_latent()
    share = ((1 - sums.fvu_by_latent()) / explained).clamp(0, 1)
    return torch.where(explained > 0, share, torch.nan)


def _ce(cfg: Config, store: Store, sides: Sides, connector: Connector, draft: Draft) -> dict[str, dict[str, float]]:
    """Cross-entropy with the connector's prediction in place of the target acts, with and without the SAE's error.

    Target latents that the connector does not explain keep their true value.
    """
    baselines = ce_baselines(cfg, store)
    losses = baselines.tensors("losses.safetensors")
    test = spliced_tokens(cfg, store, sides, cfg.eval.ce_tokens)
    device = device_of(cfg)
    ids = connector.target_ids.cpu()
    with Splice(cfg, store, sides, test, 2) as splice:
        counted = load_split(cfg, sides, "test", ids)
        counted = counted.subset(counted.row < test.ids.numel())
        change = prediction_change(connector, counted, sides, test.ids.numel(), device)
        moved = splice.decode_change(change)
        losses["connector"] = splice.losses(splice.decode(splice.true_latents()) + moved)
        losses["connector_with_error"] = splice.losses_of_change(moved)
    figures = ce_figures(losses, test.document, cfg.eval.bootstrap)
    draft.save_json("ce.json", figures)
    return figures


def prediction_change(
    connector: Connector, counted: Tokens, sides: Sides, positions: int, device: str
) -> torch.Tensor:  # fmt: skip
    """[positions, d_sae] prediction minus truth in raw units; 0 where a latent or a position is not predicted."""
    change = torch.zeros(positions, sides.d_target)
    ids = connector.target_ids.cpu()
    with torch.inference_mode():
        for first in range(0, len(counted), 2048):
            chosen = torch.arange(first, min(first + 2048, len(counted)))
            difference = connector(counted.source.select(chosen).to(device)).cpu()
            difference -= counted.target.select(chosen).dense()
            change[counted.row[chosen][:, None], ids] = difference * sides.scales[-1]
    return change
