"""Which target latents are explained, and what their squared error is divided by."""

from __future__ import annotations

from typing import Any

import torch

from saelink.activations.norms import c_post
from saelink.config.schema import Config, Normalise
from saelink.errors import SaelinkError
from saelink.latents.link import link_of
from saelink.latents.split import Split
from saelink.store.artifact import Artifact
from saelink.store.recipe import is_key
from saelink.store.store import Store


def subset_of(cfg: Config, store: Store) -> Artifact[Any] | None:
    """The percent_linear result that `targets.subset` names. Raises SaelinkError when there is none."""
    if cfg.targets.subset is None:
        return None
    if not is_key(cfg.targets.subset):
        raise SaelinkError(f"targets.subset={cfg.targets.subset}: give all 12 digits of a percent_linear result's key")
    try:
        artifact = store.get(cfg.targets.subset)
    except SaelinkError as error:
        raise SaelinkError(f"targets.subset={cfg.targets.subset}: {error}") from None
    if "linear.safetensors" not in artifact.files:
        raise SaelinkError(f"targets.subset={cfg.targets.subset}: that is no percent_linear result")
    return artifact


def targets_of(cfg: Config, store: Store, training: Split) -> torch.Tensor:
    """Numbers [d_target] of the target latents that are explained, ascending.

    Those whose firing rate on the training tokens is above targets.min_rate, in the chosen part of a percent_linear
    result if there is one. Raises SaelinkError when none is left.
    """
    fired = training.counts.fired
    chosen = fired > cfg.targets.min_rate * len(training)
    subset = subset_of(cfg, store)
    if subset is not None:
        tensors = subset.tensors("linear.safetensors")
        if len(tensors["linear"]) != len(chosen):
            raise SaelinkError(
                f"targets.subset={cfg.targets.subset}: it is about {len(tensors['linear']):,} target latents, here "
                f"are {len(chosen):,}"
            )
        chosen &= tensors[cfg.targets.part.name].bool()
        if not chosen.any():
            raise SaelinkError(f"targets.part={cfg.targets.part.name}: {subset.key} has no such target latents alive")
    if not chosen.any():
        raise SaelinkError(
            f"targets.min_rate={cfg.targets.min_rate}: no target latent is left; the highest rate is "
            f"{fired.max().item() / len(training):.2g}"
        )
    return chosen.nonzero().squeeze(1)


def normaliser(cfg: Config, store: Store, training: Split) -> float:
    """c of the objective.

    none: 1. post: (mean l2 norm of the target acts at this layer / the smallest over normalise_layers)^2.
    energy: mean over training tokens of the sum of y^2 over the target latents that are explained.
    """
    if cfg.normalise is Normalise.none:
        return 1.0
    if cfg.normalise is Normalise.post:
        return c_post(cfg, store, link_of(cfg, store).target)
    return training.counts.energy.sum().item() / len(training)
