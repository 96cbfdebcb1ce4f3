"""Fit a connector: the stage `train`."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from saelink.activations.norms import norms_plan
from saelink.config.schema import Config, Normalise
from saelink.connectors import CONNECTORS
from saelink.connectors.base import Connector
from saelink.connectors.exported import CONFIG_FILE, WEIGHTS_FILE, connector_of
from saelink.errors import SaelinkError
from saelink.fit.gram import GRAM_VERSION, Gram, gram, gram_plan, load_gram
from saelink.fit.lasso.coordinate import LASSO_VERSION
from saelink.fit.solvers import SOLVERS
from saelink.fit.solvers.base import Problem, validation_point
from saelink.fit.warm_start import STARTS, exported, names_exported, warm_start
from saelink.interventions.effects import check_measurable, effects, effects_plan, load_changes, load_effects
from saelink.interventions.measure import Changes
from saelink.latents.encode import encode_plan
from saelink.latents.link import Sides, counted_split, link_of, pull_sides
from saelink.latents.targets import normaliser, subset_of, targets_of
from saelink.progress import Progress
from saelink.runtime import device_of
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.files import gigabytes
from saelink.store.recipe import Plan, is_key, recipe_of
from saelink.store.store import Store

VERSION = 5

HISTORY_FILE = "history.json"


def train_plan(cfg: Config, store: Store) -> Plan:
    """Plan of the connector that `cfg` describes; cfg.l1_alpha is a single number here."""
    if SOLVERS[cfg.solver.name].uses_effects:
        check_measurable(cfg)
    link = link_of(cfg, store)
    recipe = {
        "connector": recipe_of(cfg.connector),
        "solver": recipe_of(cfg.solver),
        "l1_alpha": float(cfg.l1_alpha),
        "latent_scale": cfg.latent_scale.name,
        "normalise": cfg.normalise.name,
        "min_rate": cfg.targets.min_rate,
        "drop_positions": cfg.data.drop_positions,
        "max_norm_ratio": cfg.data.max_norm_ratio,
    }
    if names_exported(cfg.connector.init):
        recipe["start"] = exported(cfg.connector.init).sha256
        recipe["connector"] = {**recipe["connector"], "init": "exported"}  # what it holds counts, not where it lies
    if SOLVERS[cfg.solver.name].seeded:
        recipe["seed"] = cfg.seed
    if SOLVERS[cfg.solver.name].uses_gram:
        recipe |= {"gram": GRAM_VERSION, "lasso": LASSO_VERSION}
    inputs = {f"source{i}": encode_plan(cfg, store, hook).key for i, hook in enumerate(link.sources)}
    inputs["target"] = encode_plan(cfg, store, link.target).key
    if SOLVERS[cfg.solver.name].uses_effects:
        inputs["effects"] = effects_plan(cfg, store, "train").key
    if cfg.normalise is Normalise.post:
        recipe["normalise_layers"] = sorted(set(cfg.normalise_layers))
        inputs["norms"] = norms_plan(cfg, store).key
    if cfg.targets.subset is not None:
        recipe["part"] = cfg.targets.part.name
        inputs["subset"] = cfg.targets.subset
    about = f"{cfg.model.label} layer {cfg.layer} {cfg.link.name}, {cfg.connector.name}, l1_alpha {cfg.l1_alpha:g}"
    return Plan("train", VERSION, recipe, inputs, about)


def train(cfg: Config, store: Store) -> Artifact:
    """Pull a fitted connector.

    Files: `connector.safetensors` (weights in scaled units, `target_ids`), `cfg.json` (what it maps, scales,
    settings), `history.json` (the validation curve by tokens seen). Facts: c, scales, and what the curve shows,
    measured at the end on the whole validation split whatever the solver.
    """
    connector = CONNECTORS[cfg.connector.name]
    connector.check(cfg.connector)
    SOLVERS[cfg.solver.name](cfg.solver).check(connector, cfg.connector)
    if not (cfg.connector.init in STARTS or is_key(cfg.connector.init) or names_exported(cfg.connector.init)):
        raise SaelinkError(
            f"connector.init={cfg.connector.init}: give random, zero, the 12 digits of a train artifact's key, an "
            "exported connector's folder or hf://owner/repository"
        )
    subset_of(cfg, store)
    plan = train_plan(cfg, store)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    sides = pull_sides(cfg, store)
    return store.build(plan, lambda draft: _train(cfg, store, sides, draft), device_of(cfg))


def _train(cfg: Config, store: Store, sides: Sides, draft: Draft) -> dict[str, Any]:
    device = device_of(cfg)
    everything = counted_split(cfg, sides, "train")
    target_ids = targets_of(cfg, store, everything)
    tokens = everything.explain(target_ids)
    validation = counted_split(cfg, sides, "validation").explain(target_ids)
    connector = CONNECTORS[cfg.connector.name](cfg.connector, sides.d_source, target_ids)
    connector.initialise(torch.Generator().manual_seed(cfg.seed), warm_start(cfg, store, sides, target_ids))
    size = sum(parameter.numel() * 4 for parameter in connector.parameters())
    solver = SOLVERS[cfg.solver.name](cfg.solver)
    total = solver.tokens(len(tokens))
    what = f"train: {cfg.connector.name} {connector.d_source:,} -> {connector.d_target:,} latents by {cfg.solver.name}"
    store.say(f"{what}, {total:,} tokens ({total / len(tokens):.1f} passes), {gigabytes(size)} to write")
    store.need_space(what, size)

    def products() -> Gram:
        return load_gram(gram(cfg, store, everything)).explain(target_ids)

    def changes() -> Changes:
        found = load_changes(effects(cfg, store, "train"))
        return found._replace(rows=found.rows.columns(target_ids))

    problem = Problem(
        train=tokens,
        validation=validation,
        l1_alpha=float(cfg.l1_alpha),
        c=normaliser(cfg, store, tokens),
        seed=cfg.seed,
        device=device,
        gram=products,
        gram_name=f"{gram_plan(cfg, sides).key} {hashlib.sha256(target_ids.numpy().tobytes()).hexdigest()}",
        effects=lambda: load_effects(effects(cfg, store, "train")).explain(target_ids),
        changes=changes,
        effects_name=effects_plan(cfg, store, "train").key if solver.uses_effects else "",
    )
    with Progress("train", total) as bar:
        fit = solver.solve(connector, problem, bar.advance)
    last = validation_point(connector, problem, validation, int(fit.final["tokens"]), fit.final["train_mse"])
    draft.save_tensors(WEIGHTS_FILE, connector.state_dict())
    link = link_of(cfg, store)
    config = {
        "connector": recipe_of(cfg.connector),
        "solver": recipe_of(cfg.solver),
        "l1_alpha": float(cfg.l1_alpha),
        "sources": [
            {"hook_name": hook, "d": side.facts["d_sae"], "scale": scale}
            for hook, side, scale in zip(link.sources, sides.sources, sides.scales, strict=False)
        ],
        "target": {"hook_name": link.target, "d": sides.target.facts["d_sae"], "scale": sides.scales[-1]},
        "c": problem.c,
    }
    draft.save_json(CONFIG_FILE, config)
    draft.save_json(HISTORY_FILE, fit.history)
    return {
        "n_tokens": len(tokens),
        "n_targets": connector.d_target,
        "c": problem.c,
        "scales": sides.scales,
        **fit.final,
        **last,
    }


def fitted_connector(artifact: Artifact, device: str = "cpu") -> Connector:
    """The fitted connector of a train artifact, weights in scaled units."""
    return connector_of(artifact.json(CONFIG_FILE), artifact.tensors(WEIGHTS_FILE)).to(device)
