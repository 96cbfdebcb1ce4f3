"""A link: which hooks explain which, their latents on both sides, and the targets that are explained."""

from __future__ import annotations

from typing import NamedTuple

import torch

from saelink.config import Config, LatentScale, Normalise
from saelink.encode import TYPICAL_NORM_RATIO, encode_all
from saelink.latents import Split, Tokens, open_split, scale_of
from saelink.model import model_info
from saelink.norms import c_post
from saelink.store import Artifact, SaelinkError, Store, is_key


class Link(NamedTuple):
    """A link's hooks at one layer, by full name."""

    sources: list[str]
    target: str


def link_of(cfg: Config, store: Store, layer: int | None = None) -> Link:
    """The hooks of the configured link. Raises SaelinkError for a layer or hook that the model lacks."""
    info = model_info(cfg, store)
    layer = cfg.layer if layer is None else layer
    return Link([info.hook(name, layer) for name in cfg.link.sources], info.hook(cfg.link.target, layer))


class Sides(NamedTuple):
    """The encode artifacts of a link and the scalars their latents are divided by."""

    sources: list[Artifact]
    target: Artifact
    scales: list[float]
    """One for each source, then the target's."""

    @property
    def d_source(self) -> int:
        """Latents of all sources together."""
        return sum(source.facts["d_sae"] for source in self.sources)

    @property
    def d_target(self) -> int:
        """Latents of the target SAE, explained or not."""
        return self.target.facts["d_sae"]

    def side_of(self, source: int) -> tuple[int, int]:
        """Which source hook a connector's source latent belongs to, and its number there."""
        for place, side in enumerate(self.sources):
            if source < side.facts["d_sae"]:
                return place, source
            source -= side.facts["d_sae"]
        raise AssertionError(source)

    def source_name(self, source: int) -> str:
        """IF17, or with several source hooks IF0.17."""
        place, number = self.side_of(source)
        return f"IF{number}" if len(self.sources) == 1 else f"IF{place}.{number}"

    def source_number(self, text: str, what: str) -> int:
        """The connector's source latent of `17` or `0.17`. Raises SaelinkError, which begins with `what`, if none."""
        place, _, number = text.rpartition(".")
        sizes = [side.facts["d_sae"] for side in self.sources]
        if not number.isdigit() or (place and not place.isdigit()) or (len(sizes) > 1 and not place):
            form = "a number such as 17" if len(sizes) == 1 else "hook and number such as 0.17"
            raise SaelinkError(f"{what}: give {form}")
        if int(place or 0) >= len(sizes) or int(number) >= sizes[int(place or 0)]:
            raise SaelinkError(f"{what}: there are {', '.join(f'{n:,}' for n in sizes)} source latents, from 0")
        return sum(sizes[: int(place or 0)]) + int(number)


def pull_sides(cfg: Config, store: Store) -> Sides:
    """Pull the latents on both sides of the link; one forward pass gives what is missing for all of them."""
    link = link_of(cfg, store)
    hooks = [*link.sources, link.target]
    found = encode_all(cfg, store, hooks)
    sources, target = [found[hook] for hook in link.sources], found[link.target]
    if cfg.latent_scale is LatentScale.none:
        return Sides(sources, target, [1.0] * len(hooks))
    return Sides(sources, target, [scale_of(side, cfg.data.drop_positions) for side in (*sources, target)])


def split_of(cfg: Config, sides: Sides, split: str) -> Split:
    """One split's tokens, as the recipe says which count and in which units. Raises SaelinkError for a silent one."""
    tokens = open_split(
        sides.sources,
        sides.target,
        split,
        scales=sides.scales,
        drop_positions=cfg.data.drop_positions,
        max_norm_ratio=cfg.data.max_norm_ratio,
        typical_norm_ratio=TYPICAL_NORM_RATIO,
    )
    if not tokens.counts.fired.any():
        raise SaelinkError(
            f"data: no target latent is active on the {len(tokens):,} {split} tokens that count; use more text, or "
            "check data.drop_positions and data.max_norm_ratio"
        )
    return tokens


def load_split(cfg: Config, sides: Sides, split: str, target_ids: torch.Tensor | None = None) -> Tokens:
    """The tokens of `split_of` in memory; all target latents, or the given."""
    tokens = split_of(cfg, sides, split)
    return (tokens if target_ids is None else tokens.explain(target_ids)).whole()


def subset_of(cfg: Config, store: Store) -> Artifact | None:
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
