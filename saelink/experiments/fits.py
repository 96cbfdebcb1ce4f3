"""Describing the fits that an experiment compares."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from omegaconf import OmegaConf

from saelink.config.files import conf_dir
from saelink.config.schema import Config, LinkConfig, Normalise, TargetsConfig
from saelink.connectors import CONNECTORS
from saelink.fit.solvers import SOLVERS


def link_named(name: str) -> LinkConfig:
    """The link of conf/link/<name>.yaml."""
    loaded = OmegaConf.merge(OmegaConf.structured(LinkConfig), OmegaConf.load(conf_dir() / "link" / f"{name}.yaml"))
    link = OmegaConf.to_object(loaded)
    assert isinstance(link, LinkConfig)
    return link


def fit(
    cfg: Config,
    connector: str,
    solver: str = "adam",
    *,
    l1_alpha: float = 0.0,
    seed: int = 0,
    tokens: int | None = None,
    subset: TargetsConfig | None = None,
    ce: bool = False,
    debias: bool = False,
    **settings: Any,
) -> Config:
    """A job's configuration with another connector and solver; the solver keeps what the job says of it.

    Without a penalty c only rescales the loss, so such a fit is the same, and keyed the same, for every `normalise`.
    """
    kind = CONNECTORS[connector].Settings
    names = {entry.name for entry in fields(kind)}
    if "d_hidden" in names:
        settings.setdefault("d_hidden", cfg.experiment.d_hidden)
    solver_kind = SOLVERS[solver].Settings
    chosen: dict[str, Any] = {"name": solver}
    base = SOLVERS["adam"].Settings
    for entry in fields(solver_kind):
        mine = getattr(cfg.solver, entry.name, None)
        default = base.__dataclass_fields__[entry.name].default if entry.name in base.__dataclass_fields__ else None
        # lr_decay and the like: what the job leaves at Adam's default keeps this solver's own.
        if entry.name != "name" and mine is not None and (isinstance(cfg.solver, solver_kind) or mine != default):
            chosen[entry.name] = mine
    known = {entry.name for entry in fields(solver_kind)}
    if "debias" in known:
        chosen["debias"] = debias
    if tokens is not None and "tokens" in known:
        chosen["tokens"] = tokens
    if "validate_every" in known:
        total = chosen.get("tokens", solver_kind(name=solver).tokens)
        chosen["validate_every"] = min(chosen.get("validate_every", total), max(total // 10, 1))
    return replace(
        cfg,
        connector=kind(name=connector, **settings),
        solver=solver_kind(**chosen),
        l1_alpha=float(l1_alpha),
        normalise=cfg.normalise if l1_alpha else Normalise.none,
        seed=seed,
        targets=subset or cfg.targets,
        eval=replace(cfg.eval, ce=ce),
    )


def with_ce(cfg: Config) -> Config:
    """The same fit, evaluated with its cross-entropy."""
    return replace(cfg, eval=replace(cfg.eval, ce=True))
