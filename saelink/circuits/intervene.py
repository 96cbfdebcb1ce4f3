"""Latents changed on a prompt, in the model and by its graph: the stage `intervention`."""

from __future__ import annotations

from typing import Any, TypedDict

import torch

from saelink.circuits.changes import changed_nodes, model_changes, sae_of, true_changes, units_of, wanted_of
from saelink.circuits.explained import Explained, explained_inputs, first_of_run
from saelink.circuits.layers import LayerJobs, edges_recipe
from saelink.circuits.nodes import Latent, LayerNames, node_of, nodes_of
from saelink.circuits.predicted import predicted
from saelink.circuits.prompt import Prompt
from saelink.circuits.stage import estimate, prompt_tensor, shortened
from saelink.errors import SaelinkError
from saelink.job import Job, JobStage
from saelink.share.graph.trace import prompt_ids
from saelink.store.draft import Draft
from saelink.store.stage import Need

SHOWN = 12
"""Latents whose change is listed."""


class TokenChange(TypedDict):
    """A next token."""

    token: str
    before: float
    """Its probability,"""
    after: float
    """in the model as it was changed,"""
    predicted: float
    """and as the graph has it."""
    logit: float
    """What its logit gained over the mean logit, in the model,"""
    predicted_logit: float
    """and by the graph."""


class LatentChange(TypedDict):
    """A latent at one position."""

    name: str
    token: str
    """Of the prompt, where it is."""
    position: int
    activation: float
    change: float
    """In the model,"""
    predicted: float
    """and by the graph."""


class InterventionFacts(TypedDict):
    changes: list[str]
    at: list[str]
    """By change the tokens of the prompt at which it was made."""
    next: list[TokenChange]
    latents: list[LatentChange]
    """Those that changed most, as shares of their activation or of their hook's mean, where that is larger."""
    cosine: dict[str, float]
    """By layer the cosine between the changes of its latents in the model and by the graph, in units of their hook's
    mean activation."""


class InterventionStage(JobStage[InterventionFacts]):
    """What `changes`, such as OF12@L3=0 and IF7@L1*2, do to cfg.graph.prompt, in the model and by its graph.

    A change is made wherever its latent is active on the prompt, or at one position of these. A changed input of an MLP
    is changed for that MLP alone. Without files beside its facts. Raises SaelinkError for changes that can't be made.
    """

    name = "intervention"
    version = 1

    def __init__(self, job: Job, changes: list[str]):
        super().__init__(job)
        if not (job.cfg.graph.prompt or "").strip():
            raise SaelinkError('graph.prompt is missing: saelink intervene "The old king sat on" OF12@L3=0 layers=0-3')
        if not changes:
            raise SaelinkError('intervene: name a change: saelink intervene "The old king" OF12@L3=0 layers=0-3')
        self.jobs = LayerJobs(job)
        self.wanted = [wanted_of(text, self.jobs) for text in changes]

    @property
    def device(self) -> str:
        return "cpu"

    def recipe(self) -> dict[str, Any]:
        cfg = self.job.cfg
        return {
            "prompt": cfg.graph.prompt,
            "changes": [each.text for each in self.wanted],
            "model": cfg.model.label,
            "layers": self.jobs.layers,
            "edges": edges_recipe(cfg),
            "attention": cfg.circuit.attention,
            "logits": cfg.graph.logits,
            "prepend_bos": cfg.data.prepend_bos,
            "drop_positions": cfg.data.drop_positions,
        }

    def inputs(self) -> dict[str, str]:
        return {**explained_inputs(self.jobs), **LayerNames.inputs(self.jobs)}

    def about(self) -> str:
        changes = " ".join(each.text for each in self.wanted)
        return f"{self.job.cfg.model.label} {changes} {shortened(self.job.cfg.graph.prompt or '')!r}"

    def check(self) -> None:
        n = len(prompt_ids(self.job))
        for each in self.wanted:
            if each.position is not None and each.position >= n:
                raise SaelinkError(f"intervene: {each.text}: the prompt has positions 0 to {n - 1}")

    def need(self) -> Need:
        self.jobs.encode()
        size, _ = estimate(self.jobs, len(prompt_ids(self.job)))
        return Need(size, "use fewer layers or a shorter prompt")

    def make(self, draft: Draft) -> InterventionFacts:
        self.jobs.encode()
        explained, ids, most = Explained(self.jobs), prompt_tensor(self.job), self.job.cfg.graph.logits
        quiet = explained.prompt(ids)
        for each in self.wanted:
            n = sae_of(explained.parts, each.latent).d_sae
            if each.latent.number >= n:
                raise SaelinkError(f"intervene: {each.text}: there are {n:,} latents, from 0")
        changes = changed_nodes(quiet, self.wanted)
        run = explained.model.run(ids[None], explained.depth, model_changes(quiet, self.wanted))
        after = run.logits[0].softmax(0)

        def choose(chances: torch.Tensor) -> list[int]:
            likely = [*chances.topk(most).indices.tolist(), *after.topk(most).indices.tolist()]
            return list(dict.fromkeys(likely))

        prompt = explained.prompt(ids, choose)
        says = predicted(prompt, changes)
        true = true_changes(prompt, first_of_run(run))
        return {
            "changes": [each.text for each in self.wanted],
            "at": [self._where(prompt, each.latent, each.position) for each in self.wanted],
            "next": self._next(prompt, run.logits[0], says.logits),
            "latents": self._latents(prompt, changes, true, says.change),
            "cosine": _cosines(prompt, changes, true, says.change),
        }

    def _where(self, prompt: Prompt, latent: Latent, position: int | None) -> str:
        places = prompt.position[nodes_of(prompt, latent)].tolist() if position is None else [position]
        return "".join(self._text(int(prompt.ids[p])) + " " for p in places).strip()

    def _text(self, token: int) -> str:
        words = self.job.vocabulary
        return words[token] if token < len(words) else f"<{token}>"

    def _next(self, prompt: Prompt, after: torch.Tensor, gained: torch.Tensor) -> list[TokenChange]:
        """Tokens that nothing is predicted of keep their logits' distance from the mean."""
        assert prompt.gradients is not None
        before, tokens = prompt.gradients.logits, prompt.gradients.tokens
        guess = before - before.mean()
        guess[tokens] += gained.to(guess)
        moved = (after - after.mean()) - (before - before.mean())
        chances = [each.softmax(0)[tokens].tolist() for each in (before, after, guess)]
        rows = zip(tokens, *chances, moved[tokens].tolist(), gained.tolist(), strict=True)
        return [
            {"token": self._text(t), "before": b, "after": a, "predicted": p, "logit": m, "predicted_logit": g}
            for t, b, a, p, m, g in rows
        ]

    def _latents(
        self, prompt: Prompt, changes: dict[int, float], true: torch.Tensor, says: torch.Tensor
    ) -> list[LatentChange]:
        names, unit = LayerNames(self.jobs), torch.maximum(prompt.activation, units_of(prompt))
        size = torch.where(prompt.activation > 0, torch.maximum(true.abs(), says.abs()) / unit, 0.0)
        size[list(changes)] = 0
        found: list[LatentChange] = []
        for index in size.argsort(descending=True)[:SHOWN].tolist():
            node = node_of(prompt, index)
            found.append(
                {
                    "name": names.label(node),
                    "token": self._text(int(prompt.ids[node.position])),
                    "position": node.position,
                    "activation": prompt.activation[index].item(),
                    "change": true[index].item(),
                    "predicted": says[index].item(),
                }
            )
        return found


def _cosines(prompt: Prompt, changes: dict[int, float], true: torch.Tensor, says: torch.Tensor) -> dict[str, float]:
    found: dict[str, float] = {}
    for layer in prompt.layers:
        rows, first = prompt.sources[layer], prompt.source_begin[layer]
        spans = [range(first, first + len(rows.values))]
        spans += [prompt.writers.latents_of((layer, part)) for part in ("attn", "mlp")]
        nodes = torch.tensor([node for span in spans for node in span if node not in changes], dtype=torch.int64)
        unit = units_of(prompt)[nodes]
        a, b = true[nodes] / unit, says[nodes] / unit
        if bool(b.any()) and bool(a.any()):
            found[str(layer)] = torch.nn.functional.cosine_similarity(a, b, dim=0).item()
    return found
