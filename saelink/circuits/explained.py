"""The layers of a job opened for prompts: model, SAEs and edges inside the MLPs, pulled once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from saelink.circuits.inside import ByConnector, ByGradient, Inside
from saelink.circuits.layers import LayerJobs
from saelink.circuits.opened import Acts, OpenModel, Run
from saelink.circuits.prompt import LayerParts, Prompt
from saelink.config.circuit import InnerEdges
from saelink.fit.train import TrainStage, fitted_connector
from saelink.latents.link import check_same_token
from saelink.saes.choice import sae_choice
from saelink.saes.load import pull_sae


def connectors_of(jobs: LayerJobs) -> dict[int, TrainStage]:
    """By layer the connector inside its MLP; none where edges are gradients."""
    if jobs.job.cfg.circuit.edges is InnerEdges.gradient:
        return {}
    return {layer: TrainStage(job) for layer, job in jobs.mlp.items()}


def explained_inputs(jobs: LayerJobs) -> dict[str, str]:
    """The keys of everything that a graph over layers is computed from, by role; an SAE's is where it comes from."""
    cfg, store = jobs.job.cfg, jobs.job.store
    found = {"model": jobs.job.model.artifact.key}
    found |= {f"connector{layer}": stage.key for layer, stage in connectors_of(jobs).items()}
    return found | {f"sae {hook}": sae_choice(cfg, store, hook).key for hook in jobs.hooks}


class Explained:
    """What prompts are looked at with."""

    def __init__(self, jobs: LayerJobs):
        """Raises SaelinkError for a model that can't be opened, and as the stages that are pulled."""
        job = jobs.job
        check_same_token(job.cfg, "a graph over several layers")
        stages = connectors_of(jobs)
        fitted = {layer: stage.pull() for layer, stage in stages.items()}
        self.jobs, self.drop = jobs, job.cfg.data.drop_positions
        self.model = OpenModel(job)
        self.parts: dict[int, LayerParts] = {}
        for layer, each in jobs.mlp.items():
            link, attn = each.link, jobs.attention.get(layer)
            hooks = [link.sources[0], link.target, *([attn] if attn else [])]
            saes = [pull_sae(job.cfg, job.store, hook).to(self.model.device, torch.float32) for hook in hooks]
            inside: Inside
            if layer in fitted:
                inside = ByConnector(fitted_connector(fitted[layer], self.model.device), fitted[layer].facts["scales"])
            else:
                inside = ByGradient(self.model.mlp(layer), saes[0], saes[1])
            self.parts[layer] = LayerParts(saes[0], saes[1], saes[2] if attn else None, inside)

    @property
    def depth(self) -> int:
        """So many first blocks are looked into."""
        return max(self.parts) + 1

    def prompt(self, ids: torch.Tensor, tokens: Callable[[torch.Tensor], list[int]] | None = None) -> Prompt:
        """One prompt [context]; `tokens` chooses, from their probabilities, the next tokens that are nodes."""
        run = self.model.run(ids[None], self.depth, to_logits=False)
        self.model.check_sum(run)
        gradients = None if tokens is None else self.model.gradients(ids, self.depth - 1, tokens)
        return Prompt(self.model, self.parts, ids.to(self.model.device), first_of_run(run), self.drop, gradients)


def likeliest(most: int, share: float) -> Callable[[torch.Tensor], list[int]]:
    """Chooses at most so many of the likeliest next tokens, or as many as have `share` of the probability together."""

    def choose(chances: torch.Tensor) -> list[int]:
        order = chances.argsort(descending=True)[:most]
        enough = int((chances[order].cumsum(0) < share).sum()) + 1
        return order[:enough].tolist()

    return choose


def first_of_run(run: Run, row: int = 0) -> dict[int, Acts]:
    """The activations of one of a run's sequences."""
    return {layer: Acts(*(part[row] for part in acts)) for layer, acts in run.acts.items()}
