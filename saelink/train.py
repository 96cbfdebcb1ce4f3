"""Fit a connector: the stage `train`."""

from __future__ import annotations

from typing import Any, NamedTuple

from saelink.cache import cache, cache_plan
from saelink.config import Config, LatentScale, Normalise
from saelink.connectors import CONNECTORS, Connector
from saelink.encode import TYPICAL_NORM_RATIO, encode, encode_plan
from saelink.latents import Tokens, load_tokens, scale_of
from saelink.model import device_of, model_info
from saelink.progress import Progress
from saelink.solvers import SOLVERS
from saelink.solvers.base import Problem
from saelink.store import Artifact, Draft, Plan, SaelinkError, Store, gigabytes, recipe_of

VERSION = 1

WEIGHTS_FILE = "connector.safetensors"
CONFIG_FILE = "cfg.json"
HISTORY_FILE = "history.json"


class Link(NamedTuple):
    """A link's hooks at one layer, by full name."""

    sources: list[str]
    target: str


def link_of(cfg: Config, store: Store, layer: int | None = None) -> Link:
    """The hooks of the configured link. Raises SaelinkError for a layer or hook that the model lacks."""
    info = model_info(cfg, store)
    layer = cfg.layer if layer is None else layer
    return Link([info.hook(name, layer) for name in cfg.link.sources], info.hook(cfg.link.target, layer))


def train_plan(cfg: Config, store: Store) -> Plan:
    """Plan of the connector that `cfg` describes; cfg.l1_alpha is a single number here."""
    link = link_of(cfg, store)
    recipe = {
        "connector": recipe_of(cfg.connector),
        "solver": recipe_of(cfg.solver),
        "l1_alpha": float(cfg.l1_alpha),
        "latent_scale": cfg.latent_scale.name,
        "normalise": cfg.normalise.name,
        "drop_positions": cfg.data.drop_positions,
        "max_norm_ratio": cfg.data.max_norm_ratio,
        "seed": cfg.seed,
    }
    inputs = {f"source{i}": encode_plan(cfg, store, hook).key for i, hook in enumerate(link.sources)}
    inputs["target"] = encode_plan(cfg, store, link.target).key
    if cfg.normalise is Normalise.post:
        for layer in sorted(set(cfg.normalise_layers) | {cfg.layer}):
            recipe["normalise_layers"] = sorted(set(cfg.normalise_layers))
            inputs[f"norm{layer}"] = cache_plan(cfg, store, link_of(cfg, store, layer).target).key
    about = f"{cfg.model.label} layer {cfg.layer} {cfg.link.name}, {cfg.connector.name}, l1_alpha {cfg.l1_alpha:g}"
    return Plan("train", VERSION, recipe, inputs, about)


class Sides(NamedTuple):
    """The encode artifacts of a link and the scalars their latents are divided by."""

    sources: list[Artifact]
    target: Artifact
    scales: list[float]
    """One for each source, then the target's."""


def pull_sides(cfg: Config, store: Store) -> Sides:
    """Pull the latents on both sides of the link; one forward pass caches what is missing for all of them."""
    link = link_of(cfg, store)
    hooks = [*link.sources, link.target]
    missing = [hook for hook in hooks if store.find(encode_plan(cfg, store, hook)) is None]
    if missing:
        cache(cfg, store, missing)
    sources = [encode(cfg, store, hook) for hook in link.sources]
    target = encode(cfg, store, link.target)
    if cfg.latent_scale is LatentScale.none:
        return Sides(sources, target, [1.0] * len(hooks))
    return Sides(sources, target, [scale_of(side, cfg.data.drop_positions) for side in (*sources, target)])


def load_split(cfg: Config, sides: Sides, split: str) -> Tokens:
    """One split's tokens, as the recipe says which count and in which units."""
    tokens = load_tokens(
        sides.sources,
        sides.target,
        split,
        scales=sides.scales,
        drop_positions=cfg.data.drop_positions,
        max_norm_ratio=cfg.data.max_norm_ratio,
        typical_norm_ratio=TYPICAL_NORM_RATIO,
    )
    if not len(tokens.target.values):
        raise SaelinkError(
            f"data: no target latent is active on the {len(tokens):,} {split} tokens that count; use more text, or "
            "check data.drop_positions and data.max_norm_ratio"
        )
    return tokens


def normaliser(cfg: Config, store: Store, train_tokens: Tokens) -> float:
    """c of the objective.

    none: 1. post: (mean l2 norm of the target acts at this layer / the smallest over normalise_layers)^2.
    energy: mean over training tokens of the sum over target latents of y^2.
    """
    if cfg.normalise is Normalise.none:
        return 1.0
    if cfg.normalise is Normalise.energy:
        return (train_tokens.target.values.double().square().sum() / len(train_tokens)).item()
    hooks = {layer: link_of(cfg, store, layer).target for layer in {*cfg.normalise_layers, cfg.layer}}
    acts = cache(cfg, store, hooks.values())
    drop = cfg.data.drop_positions

    def norm(layer: int) -> float:
        kept = acts[hooks[layer]].facts["mean_norm"][drop:]
        return sum(kept) / len(kept)

    return (norm(cfg.layer) / min(norm(layer) for layer in cfg.normalise_layers)) ** 2


def train(cfg: Config, store: Store) -> Artifact:
    """Pull a fitted connector.

    Files: `connector.safetensors` (weights in scaled units), `cfg.json` (what it maps, scales, settings),
    `history.json` (the validation curve by tokens seen). Facts: the last point of the curve, c, the scales.
    """
    if cfg.normalise is Normalise.post and not cfg.normalise_layers:
        raise SaelinkError("normalise_layers=[] with normalise=post: name the layers to compare, such as [1,3]")
    SOLVERS[cfg.solver.name](cfg.solver).check()
    CONNECTORS[cfg.connector.name].check(cfg.connector)
    plan = train_plan(cfg, store)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    sides = pull_sides(cfg, store)
    return store.build(plan, lambda draft: _train(cfg, store, sides, draft), device_of(cfg))


def _train(cfg: Config, store: Store, sides: Sides, draft: Draft) -> dict[str, Any]:
    device = device_of(cfg)
    tokens = load_split(cfg, sides, "train")
    validation = load_split(cfg, sides, "validation")
    connector = CONNECTORS[cfg.connector.name](cfg.connector, tokens.source.d, tokens.target.d)
    size = sum(parameter.numel() * 4 for parameter in connector.parameters())
    solver = SOLVERS[cfg.solver.name](cfg.solver)
    total = solver.tokens(len(tokens))
    what = f"train: {cfg.connector.name} {connector.d_source:,} -> {connector.d_target:,} latents by {cfg.solver.name}"
    store.say(f"{what}, {total:,} tokens ({total / len(tokens):.1f} passes), {gigabytes(size)} to write")
    store.need_space(what, size)
    problem = Problem(
        source=tokens.source,
        target=tokens.target,
        source_validation=validation.source,
        target_validation=validation.target,
        l1_alpha=float(cfg.l1_alpha),
        c=normaliser(cfg, store, tokens),
        seed=cfg.seed,
        device=device,
    )
    with Progress("train", total) as bar:
        fit = solver.solve(connector, problem, bar.advance)
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
    return {"n_tokens": len(tokens), "c": problem.c, "scales": sides.scales, **fit.final}


def load_connector(artifact: Artifact, device: str = "cpu") -> Connector:
    """The fitted connector of a train artifact, weights in scaled units."""
    config = artifact.json(CONFIG_FILE)
    kind = CONNECTORS[config["connector"]["name"]]
    d_source = sum(source["d"] for source in config["sources"])
    connector = kind(kind.Config(**config["connector"]), d_source, config["target"]["d"])
    connector.load_state_dict(artifact.tensors(WEIGHTS_FILE))
    return connector.to(device).eval()
