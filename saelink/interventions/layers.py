"""Several layers' target hooks replaced at once in the running model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from saelink.connectors.base import Connector
from saelink.interventions.splice import Hook, mean_acts, next_token_losses, spliced_tokens
from saelink.job import Job
from saelink.latents.link import check_same_token
from saelink.latents.rows import Rows
from saelink.latents.shards import encode_rows
from saelink.model.load import load_bridge
from saelink.saes.load import pull_sae
from saelink.saes.sae import SAE

Replacement = Callable[[list[torch.Tensor], torch.Tensor], torch.Tensor]
"""What stands in a target hook's place, from what source hooks and target hook hold there, [n, width] each."""


class LinkAt(NamedTuple):
    """A link at one layer, its SAEs on a device."""

    sources: list[str]
    target: str
    source_saes: list[SAE]
    target_sae: SAE
    scales: list[float]
    mean: torch.Tensor
    """[width] of the target hook's acts over the training tokens."""
    counts: torch.Tensor
    """[sequences, context_size] bool: where latents are explained."""

    def predicted(self, connector: Connector) -> Replacement:
        """The SAE's decoding of what a connector makes of the sources; what it does not explain keeps its value."""
        sae, ids = self.target_sae, connector.target_ids

        def replace(sources: list[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
            rows = [
                encode_rows(sae, acts).scaled(1 / scale)
                for sae, acts, scale in zip(self.source_saes, sources, self.scales, strict=False)
            ]
            latents = sae.encode(target)
            latents[:, ids] = connector(Rows.beside(rows)) * self.scales[-1]
            return sae.decode(latents, sae.units(target))

        return replace

    def rebuilt(self, _: list[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """The SAE's reconstruction."""
        return self.target_sae.decode(self.target_sae.encode(target), self.target_sae.units(target))

    def averaged(self, _: list[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """The mean over the training tokens."""
        return self.mean.to(target).expand_as(target)

    def nothing(self, _: list[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """Zero."""
        return torch.zeros_like(target)


class SeveralLayers:
    """Runs the model with something else at the target hooks of several layers at once.

    What a later layer's sources are is read in the running model, after all that was replaced before them. A context
    manager; `passes` is for the progress bar.
    """

    def __init__(self, jobs: list[Job], tokens: int, passes: int):
        """`jobs` are the same at several layers; `tokens` test tokens are run."""
        first = jobs[0]
        check_same_token(first.cfg, "what is put into several layers")
        self.device = first.device
        self.links: list[LinkAt] = []
        for job in jobs:
            sides, link = job.sides, job.link
            self.test = spliced_tokens(job, tokens)
            hooks = [*link.sources, link.target]
            saes = [pull_sae(job.cfg, job.store, hook).to(self.device, torch.float32) for hook in hooks]
            mean = mean_acts(job, link.target)
            self.links.append(
                LinkAt(link.sources, link.target, saes[:-1], saes[-1], sides.scales, mean, self.test.counts)
            )
        self._bridge = load_bridge(first.cfg, first.model, self.device)
        self._bar = first.observer.progress("ce", passes * self.test.ids.numel())

    def __enter__(self) -> SeveralLayers:
        self._bar.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._bar.__exit__(*problem)

    def losses(self, replacements: list[Replacement] | None = None) -> torch.Tensor:
        """Losses with each layer's replacement at the counted positions, or untouched."""

        def hooks(part: slice) -> list[Hook]:
            found: list[Hook] = []
            for link, replacement in zip(self.links, replacements or [], strict=replacements is not None):
                where = link.counts[part].to(self.device)
                held: dict[str, torch.Tensor] = {}
                found += [(name, _holder(held, name, where)) for name in link.sources]
                found.append((link.target, _replacer(replacement, held, link.sources, where)))
            return found

        return next_token_losses(self._bridge, self.test.ids, hooks, self._bar)


def _holder(held: dict[str, torch.Tensor], name: str, where: torch.Tensor) -> Callable[..., torch.Tensor]:
    def hook(acts: torch.Tensor, **_: object) -> torch.Tensor:
        held[name] = acts.flatten(2)[where].float()
        return acts

    return hook


def _replacer(
    replacement: Replacement, held: dict[str, torch.Tensor], sources: list[str], where: torch.Tensor
) -> Callable[..., torch.Tensor]:  # fmt: skip
    def hook(acts: torch.Tensor, **_: object) -> torch.Tensor:
        flat = acts.flatten(2).clone()
        flat[where] = replacement([held[name] for name in sources], flat[where].float()).to(acts.dtype)
        return flat.view(acts.shape)

    return hook
