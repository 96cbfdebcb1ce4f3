"""Fit a connector: the stage `train`."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any, NotRequired, TypedDict, cast

import torch

from saelink import memory
from saelink.activations.norms import NormsStage
from saelink.config.schema import Normalise
from saelink.config.size import gigabytes
from saelink.connectors import CONNECTORS
from saelink.connectors.base import Connector
from saelink.connectors.exported import CONFIG_FILE, WEIGHTS_FILE, connector_of, packed_state, unpacked_state
from saelink.connectors.linear import LinearConnector
from saelink.connectors.wide_linear import WIDE_WEIGHTS, WideLinearConnector
from saelink.errors import SaelinkError
from saelink.fit.lasso.blocks import TargetBlocks
from saelink.fit.lasso.coordinate import LASSO_VERSION
from saelink.fit.products.dense import GRAM_VERSION, Gram, GramStage, load_gram
from saelink.fit.products.matrix import SparseGram
from saelink.fit.products.sparse import ProductsStage, is_wide, load_products
from saelink.fit.solvers import SOLVERS
from saelink.fit.solvers.base import Problem, validation_point
from saelink.fit.warm_start import STARTS, exported, names_exported, warm_start
from saelink.interventions.effects import EffectsStage, check_measurable, load_changes, load_effects
from saelink.interventions.measure import Changes
from saelink.job import Job, JobStage
from saelink.latents.link import counted_split, moved_forms
from saelink.latents.split import Split
from saelink.latents.targets import normaliser, subset_of, targets_of
from saelink.runtime import need_memory
from saelink.saes.widths import widths_ahead
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.recipe import is_key, recipe_of
from saelink.store.stage import Need

HISTORY_FILE = "history.json"


class Described(TypedDict):
    """What people compare connectors by; names are of the settings it was made with, and no part of any key."""

    model: str
    layer: int
    link: str
    data: str
    sources: list[str]
    """Hooks,"""
    target: str
    sae: str
    sae_width: list[int]
    """and the latents of their SAEs, the target's last,"""
    sae_l0: list[float]
    """with how many of them are active per token: k of a TopK SAE."""


class TrainFacts(TypedDict):
    """What a fit came to, on the whole validation split whatever the solver; solvers add figures of their own."""

    described: Described
    n_tokens: int
    n_targets: int
    c: float
    scales: list[float]
    tokens: int
    """Training tokens seen,"""
    train_mse: float
    """and the error over the last of them."""
    validation_mse: float
    validation_fvu: float
    l1: float
    objective: float
    zero_objective: float
    n_edges: int
    relative_gap: NotRequired[float]
    """Of solvers with a certificate: the duality gap as a share of the objective."""
    relative_gradient: NotRequired[float]
    readout_gap: NotRequired[float]


class TrainStage(JobStage[TrainFacts]):
    """The connector that the job describes; cfg.l1_alpha is a single number here.

    Files: `connector.safetensors` (weights in scaled units, `target_ids`), `cfg.json` (what it maps, scales,
    settings), `history.json` (the validation curve by tokens seen). Raises SaelinkError for settings that don't go
    together.
    """

    name = "train"
    version = 6

    def __init__(self, job: Job):
        super().__init__(job.fit)
        self._solver = SOLVERS[job.cfg.solver.name](job.cfg.solver)
        if self._solver.uses_effects:
            check_measurable(job.cfg)

    def recipe(self) -> dict[str, Any]:
        cfg = self.job.cfg
        recipe: dict[str, Any] = {
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
            recipe["connector"] = {**recipe["connector"], "init": "exported"}  # what it holds counts, not its place
        if self._solver.seeded:
            recipe["seed"] = cfg.seed
        if self._solver.uses_gram:
            recipe |= {"gram": GRAM_VERSION, "lasso": LASSO_VERSION}
        if cfg.normalise is Normalise.post:
            recipe["normalise_layers"] = sorted(set(cfg.normalise_layers))
        if cfg.targets.subset is not None:
            recipe["part"] = cfg.targets.part.name
        return recipe

    @cached_property
    def wide(self) -> bool:
        """Whether it is fitted from sparse products: there are too many latents for dense ones."""
        sides = self.job.sides
        return self._solver.goes_wide and float(self.job.cfg.l1_alpha) > 0 and is_wide(sides.d_source, sides.d_target)

    def inputs(self) -> dict[str, str]:
        job = self.job
        inputs = self.latents_inputs()
        if self._solver.uses_effects:
            inputs["effects"] = EffectsStage(job, "train").key
        if job.cfg.normalise is Normalise.post:
            inputs["norms"] = NormsStage(job.cfg, job.store).key
        if job.cfg.targets.subset is not None:
            inputs["subset"] = job.cfg.targets.subset
        return inputs

    def about(self) -> str:
        return f"{self.job.about}, {self.job.cfg.connector.name}, l1_alpha {self.job.cfg.l1_alpha:g}"

    @property
    def resumable(self) -> bool:
        return self.wide

    def check_settings(self) -> None:
        """Raise SaelinkError for settings of connector and solver that don't go together."""
        cfg = self.job.cfg
        connector = CONNECTORS[cfg.connector.name]
        connector.check(cfg.connector)
        self._solver.check(connector, cfg.connector)

    def check(self) -> None:
        self.check_settings()
        cfg, init = self.job.cfg, self.job.cfg.connector.init
        if not (init in STARTS or is_key(init) or names_exported(init)):
            raise SaelinkError(
                f"connector.init={init}: give random, zero, the 12 digits of a train artifact's key, an exported "
                "connector's folder or hf://owner/repository"
            )
        subset_of(cfg, self.store)

    def need_ahead(self) -> None:
        """Raise SaelinkError before any latents are made where the widths of their SAEs are known, and too large."""
        job, cfg = self.job, self.job.cfg
        try:
            model = job.dimensions
        except SaelinkError:  # its config is not at hand any more
            return
        known = None if any(moved_forms(cfg)) else widths_ahead(cfg, model, [*job.link.sources, job.link.target])
        if known is None:
            return
        d_source, d_target = sum(known[:-1]), known[-1]
        if self._solver.goes_wide and float(cfg.l1_alpha) > 0 and is_wide(d_source, d_target):
            return  # that follows from the pairs that meet
        shape = CONNECTORS[cfg.connector.name].shape(cfg.connector, d_source, d_target)
        need_memory(f"{self.name}: {self.about()} would", self._solver.memory(shape), self._way_out)

    @property
    def _way_out(self) -> str:
        way_out = "use a link or SAEs with fewer latents, or less text (data.max_tokens)"
        linear = self.job.cfg.connector.name == "linear"
        if linear and self._solver.uses_effects:
            return f"{way_out}; solver=exact keeps only its edges in memory (of graphs circuit.edges=lasso)"
        return way_out if linear else f"{way_out}; connector=linear keeps only its edges in memory"

    def need(self) -> Need | None:
        self.need_ahead()
        sides, cfg = self.job.sides, self.job.cfg
        split = sides.split_bytes("train") + sides.split_bytes("validation")
        if self.wide:
            pairs = ProductsStage(self.job).pull().facts["pairs"]
            return Need(split + memory.wide_exact(pairs, sides.d_target), "use SAEs with fewer latents, or less text")
        shape = CONNECTORS[cfg.connector.name].shape(cfg.connector, sides.d_source, sides.d_target)
        return Need(split + self._solver.memory(shape), self._way_out)

    def make(self, draft: Draft) -> TrainFacts:
        job, cfg, sides, solver = self.job, self.job.cfg, self.job.sides, self._solver
        everything = counted_split(cfg, sides, "train")
        target_ids = targets_of(cfg, job.store, everything)
        problem = self._problem(draft, everything, target_ids)
        connector = self._unfitted(target_ids)
        size = sum(parameter.numel() * 4 for parameter in connector.parameters())
        n_tokens = len(problem.train)
        total, unit = solver.work(n_tokens, connector.d_target)
        what = f"train: {cfg.connector.name} {connector.d_source:,} -> {connector.d_target:,} latents"
        what += f" by {cfg.solver.name}"
        length = f"{total:,} tokens ({total / n_tokens:.1f} passes)" if unit == "tokens" else f"{n_tokens:,} tokens"
        job.observer.say(f"{what}, {length}, {gigabytes(size)} to write")
        job.store.need_space(what, size)
        with job.observer.progress("train", total, unit) as bar:
            fit = solver.solve(connector, problem, bar)
        seen, train_mse = int(fit.final["tokens"]), fit.final["train_mse"]
        last = validation_point(connector, problem, problem.validation, seen, train_mse)
        draft.save_tensors(WEIGHTS_FILE, packed_state(connector.state_dict()))
        draft.save_json(CONFIG_FILE, self._config(problem.c))
        draft.save_json(HISTORY_FILE, fit.history)
        facts = {"described": self.described(), "n_tokens": n_tokens, "n_targets": connector.d_target}
        facts |= {"c": problem.c, "scales": sides.scales}
        return cast("TrainFacts", {**facts, **fit.final, **last})

    def _unfitted(self, target_ids: torch.Tensor) -> Connector:
        """The connector where its fit starts; one that is kept by its edges has none, and its solver needs no start."""
        cfg, d_source = self.job.cfg, self.job.sides.d_source
        start = warm_start(self.job, target_ids)
        if self.wide:
            return WideLinearConnector(cast("Any", cfg.connector), d_source, target_ids)
        connector = CONNECTORS[cfg.connector.name](cfg.connector, d_source, target_ids)
        warm = None if start is None else unpacked_state(start)
        connector.initialise(torch.Generator().manual_seed(cfg.seed), warm)
        return connector

    def described(self) -> Described:
        """What the connector is of; the latents on both sides are made first where they are missing."""
        cfg, link, sides = self.job.cfg, self.job.link, self.job.sides
        both = [*sides.sources, sides.target]
        return {
            "model": cfg.model.label,
            "layer": cfg.layer,
            "link": cfg.link.name,
            "data": cfg.data.label,
            "sources": link.sources,
            "target": link.target,
            "sae": cfg.sae.name.rstrip("/").split("/")[-1],
            "sae_width": [side.facts["d_sae"] for side in both],
            "sae_l0": [side.facts["l0"] for side in both],
        }

    def _problem(self, draft: Draft, everything: Split, target_ids: torch.Tensor) -> Problem:
        """What the solver is given: tokens, penalty, and products and effects where it asks for them."""
        job, cfg = self.job, self.job.cfg
        tokens = everything.explain(target_ids)

        def products() -> Gram:
            return load_gram(GramStage(job, everything).pull()).explain(target_ids)

        def sparse() -> SparseGram:
            return load_products(ProductsStage(job, everything).pull()).explain(target_ids)

        def blocks() -> TargetBlocks:
            return TargetBlocks(job.engine, draft, ProductsStage(job, everything).pull(), target_ids)

        def changes() -> Changes:
            found = load_changes(EffectsStage(job, "train").pull())
            return found._replace(rows=found.rows.columns(target_ids))

        targets = hashlib.sha256(target_ids.numpy().tobytes()).hexdigest()
        return Problem(
            train=tokens,
            validation=counted_split(cfg, job.sides, "validation").explain(target_ids),
            l1_alpha=float(cfg.l1_alpha),
            c=normaliser(cfg, job.store, tokens),
            seed=cfg.seed,
            device=job.device,
            gram=products,
            gram_name=f"{GramStage(job).key} {targets}",
            effects=lambda: load_effects(EffectsStage(job, "train").pull()).explain(target_ids),
            changes=changes,
            sparse_gram=sparse if self.wide else None,
            blocks=blocks if self.wide else None,
            effects_name=EffectsStage(job, "train").key if self._solver.uses_effects else "",
            memory=job.memory,
        )

    def _config(self, c: float) -> dict[str, Any]:
        """What the connector maps, in which units, and how it was fitted."""
        job, cfg, sides = self.job, self.job.cfg, self.job.sides
        return {
            "connector": recipe_of(job.cfg.connector),
            "solver": recipe_of(job.cfg.solver),
            "l1_alpha": float(job.cfg.l1_alpha),
            "sources": [
                {"hook_name": hook, "d": side.facts["d_sae"], "scale": scale} | ({"moved": form} if form else {})
                for hook, side, scale, form in zip(
                    job.link.sources, sides.sources, sides.scales[:-1], moved_forms(cfg), strict=True
                )
            ],
            "target": {"hook_name": job.link.target, "d": sides.target.facts["d_sae"], "scale": sides.scales[-1]},
            "c": c,
        }


def fitted_connector(artifact: Artifact[TrainFacts], device: str = "cpu") -> Connector:
    """The fitted connector of a train artifact, weights in scaled units."""
    return connector_of(artifact.json(CONFIG_FILE), artifact.tensors(WEIGHTS_FILE)).to(device)


def shape_of(job: Job) -> memory.Shape:
    """The sizes of the job's connector as it is in memory; one that is kept by its edges has no weights there."""
    stage, sides, settings = TrainStage(job), job.sides, job.cfg.connector
    kind = CONNECTORS[settings.name]
    by_edges = stage.wide
    if kind is LinearConnector and not by_edges and sides.d_source * sides.d_target > WIDE_WEIGHTS:
        fitted = stage.find()  # most of a large matrix is zero: its file holds the rest
        by_edges = fitted is not None and fitted.facts["n_edges"] < sides.d_source * sides.d_target // 4
    return (WideLinearConnector if by_edges else kind).shape(settings, sides.d_source, sides.d_target)
