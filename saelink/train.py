"""Fit a connector: the stage `train`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from saelink.config import Config, Normalise, l1_alphas
from saelink.connectors import CONNECTORS, Connector
from saelink.effects import Changes, check_measurable, effects, effects_plan, load_changes, load_effects
from saelink.encode import encode_plan
from saelink.gram import VERSION as GRAM_VERSION
from saelink.gram import Gram, gram, gram_plan, load_gram
from saelink.lasso import VERSION as LASSO_VERSION
from saelink.link import Sides, link_of, normaliser, pull_sides, split_of, subset_of, targets_of
from saelink.loaded import CONFIG_FILE, ON_HUB, WEIGHTS_FILE, Loaded, connector_of
from saelink.loaded import load_connector as load_exported
from saelink.model import device_of
from saelink.norms import norms_plan
from saelink.progress import Progress
from saelink.solvers import SOLVERS
from saelink.solvers.base import Problem, measured
from saelink.store import Artifact, Draft, Plan, SaelinkError, Store, gigabytes, is_key, recipe_of

VERSION = 5

HISTORY_FILE = "history.json"

STARTS = ("random", "zero")


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
    if _is_place(cfg.connector.init):
        recipe["start"] = _exported(cfg.connector.init).sha256
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


def penalties(cfg: Config, store: Store) -> Iterator[Config]:
    """The job of each penalty in cfg.l1_alpha, a number or a list.

    With solver.path_tokens they are one path upwards: each but the smallest starts at the weights of the one before and
    trains for path_tokens, unless at the new penalty these are worse than no weights at all; then it is fitted as
    always. Ask for the next only when the one before is trained.
    """
    alphas = l1_alphas(cfg.l1_alpha)
    path_tokens = getattr(cfg.solver, "path_tokens", 0)
    if not path_tokens:
        yield from (replace(cfg, l1_alpha=alpha) for alpha in alphas)
        return
    SOLVERS[cfg.solver.name](cfg.solver).check(CONNECTORS[cfg.connector.name], cfg.connector)
    if len(alphas) < 2:
        raise SaelinkError(
            f"solver.path_tokens={path_tokens} needs several penalties in one job: l1_alpha=[1e-5,1e-3,.1] without -m"
        )
    alone = replace(cfg, solver=replace(cfg.solver, path_tokens=0))
    step = replace(alone, solver=replace(alone.solver, tokens=path_tokens))
    before: Artifact | None = None
    for alpha in sorted(set(alphas)):
        job = replace(alone, l1_alpha=alpha)
        if before is not None and worth_starting_at(before.facts, alpha):
            job = replace(step, l1_alpha=alpha, connector=replace(cfg.connector, init=before.key))
        yield job
        before = store.find(train_plan(job, store))
        assert before is not None, "the next penalty was asked for before this one was trained"


def worth_starting_at(facts: dict[str, Any], l1_alpha: float) -> bool:
    """Whether a fit's weights do better at this penalty than none. (A hidden penalty is not counted.)"""
    return facts["validation_mse"] / facts["c"] + l1_alpha * facts["l1"] <= facts["zero_objective"]


def train(cfg: Config, store: Store) -> Artifact:
    """Pull a fitted connector.

    Files: `connector.safetensors` (weights in scaled units, `target_ids`), `cfg.json` (what it maps, scales,
    settings), `history.json` (the validation curve by tokens seen). Facts: c, scales, and what the curve shows,
    measured at the end on the whole validation split whatever the solver.
    """
    connector = CONNECTORS[cfg.connector.name]
    connector.check(cfg.connector)
    SOLVERS[cfg.solver.name](cfg.solver).check(connector, cfg.connector)
    if not (cfg.connector.init in STARTS or is_key(cfg.connector.init) or _is_place(cfg.connector.init)):
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


def _warm_start(cfg: Config, store: Store, sides: Sides, target_ids: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """The weights that connector.init names. Raises SaelinkError for another stage's key or other latents."""
    key = cfg.connector.init
    if key in STARTS:
        return None
    if _is_place(key):
        return _exported_start(cfg, store, sides, target_ids)
    try:
        artifact = store.get(key)
    except SaelinkError as error:
        raise SaelinkError(f"connector.init={key}: {error}; otherwise {' or '.join(STARTS)}") from None
    inputs = {f"source{i}": source.key for i, source in enumerate(sides.sources)} | {"target": sides.target.key}
    if artifact.stage != "train" or any(artifact.manifest["inputs"].get(role) != key for role, key in inputs.items()):
        raise SaelinkError(f"connector.init={key}: that is no connector between the same latents")
    tensors = artifact.tensors(WEIGHTS_FILE)
    if not torch.equal(tensors["target_ids"], target_ids):
        raise SaelinkError(f"connector.init={key}: that connector explains other target latents")
    return tensors


def _is_place(init: str) -> bool:
    """Whether connector.init names an exported connector."""
    if init in STARTS or is_key(init):
        return False
    return init.startswith(ON_HUB) or "/" in init or Path(init).is_dir()


_from_hubs: dict[str, Loaded] = {}


def _exported(place: str) -> Loaded:
    """An exported connector; a hub is asked once per process: a branch that moves changes nothing midway."""
    if not place.startswith(ON_HUB):
        return load_exported(place)
    if place not in _from_hubs:
        _from_hubs[place] = load_exported(place)
    return _from_hubs[place]


def _exported_start(cfg: Config, store: Store, sides: Sides, target_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weights of an exported connector in the units of these latents. Raises SaelinkError for other hooks."""
    place, link = cfg.connector.init, link_of(cfg, store)
    start = _exported(place)
    theirs = [(side["hook_name"], side["d"]) for side in [*start.config["sources"], start.config["target"]]]
    ours = [
        (hook, side.facts["d_sae"])
        for hook, side in zip([*link.sources, link.target], [*sides.sources, sides.target], strict=True)
    ]
    if theirs != ours:
        said, wanted = (", ".join(f"{hook} ({d:,} latents)" for hook, d in side) for side in (theirs, ours))
        raise SaelinkError(f"connector.init={place}: that connector is of {said}; here it is {wanted}")
    if not torch.equal(start.target_ids, target_ids):
        raise SaelinkError(f"connector.init={place}: that connector explains other target latents")
    scales = [
        torch.full((side.facts["d_sae"],), scale) for side, scale in zip(sides.sources, sides.scales, strict=False)
    ]
    return start.in_units(torch.cat(scales), sides.scales[-1])


def _train(cfg: Config, store: Store, sides: Sides, draft: Draft) -> dict[str, Any]:
    device = device_of(cfg)
    everything = split_of(cfg, sides, "train")
    target_ids = targets_of(cfg, store, everything)
    tokens = everything.explain(target_ids)
    validation = split_of(cfg, sides, "validation").explain(target_ids)
    connector = CONNECTORS[cfg.connector.name](cfg.connector, sides.d_source, target_ids)
    connector.initialise(torch.Generator().manual_seed(cfg.seed), _warm_start(cfg, store, sides, target_ids))
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
    last = measured(connector, problem, validation, int(fit.final["tokens"]), fit.final["train_mse"])
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


def load_connector(artifact: Artifact, device: str = "cpu") -> Connector:
    """The fitted connector of a train artifact, weights in scaled units."""
    return connector_of(artifact.json(CONFIG_FILE), artifact.tensors(WEIGHTS_FILE)).to(device)
