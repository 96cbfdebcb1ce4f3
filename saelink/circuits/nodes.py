"""What the nodes of a graph over layers are: kind, layer, latent, position; and what latents are called there."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

from saelink.circuits.layers import LayerJobs
from saelink.circuits.prompt import Prompt
from saelink.errors import SaelinkError
from saelink.evidence.names import names_inputs
from saelink.latents.top_tokens import TopTokens, TopTokensStage, load_top_tokens
from saelink.saes.neuronpedia import neuronpedia_page

SHORT = {"source": "IF", "mlp": "OF", "attn": "AF"}
"""How latents are called by the hook they are of: what an MLP reads, what it gives, what attention gives."""

NAMED = re.compile(r"(OF|IF|AF)(\d+)@L(\d+)")


class Node(NamedTuple):
    """A node: token, attn, source, mlp (latents), attn_error, mlp_error, source_error, or logit."""

    kind: str
    layer: int
    """-1 of a token, and of a next token."""
    number: int
    """The latent's or token's; -1 of an error."""
    position: int

    @property
    def name(self) -> str:
        """OF12@L3 of a latent."""
        return f"{SHORT[self.kind]}{self.number}@L{self.layer}"


class Latent(NamedTuple):
    """A latent wherever it is active."""

    kind: str
    layer: int
    number: int

    @property
    def name(self) -> str:
        return f"{SHORT[self.kind]}{self.number}@L{self.layer}"


def latent_named(text: str, jobs: LayerJobs, what: str, layer: int | None = None) -> Latent:
    """The latent that OF12@L3 names; without @L at `layer`. Raises SaelinkError, which begins with `what`, for none."""
    whole = text if "@" in text or layer is None else f"{text}@L{layer}"
    found = NAMED.fullmatch(whole)
    if found is None:
        raise SaelinkError(
            f"{what}: name a latent as OF12@L3 (of the MLP's output at layer 3), IF7@L1 (of its input) or AF5@L2 (of "
            "attention's output)"
        )
    kind = next(kind for kind, short in SHORT.items() if short == found[1])
    latent = Latent(kind, int(found[3]), int(found[2]))
    if latent.layer not in jobs.layers or (kind == "attn" and latent.layer not in jobs.attention):
        has = ", ".join(str(n) for n in (jobs.attention if kind == "attn" else jobs.layers)) or "none"
        raise SaelinkError(f"{what}: layers={jobs.job.cfg.layers} has no {found[1]} at layer {latent.layer}: {has}")
    return latent


def node_of(prompt: Prompt, index: int) -> Node:
    """The node of this number."""
    p = int(prompt.position[index])
    if index < prompt.writers.context:
        return Node("token", -1, int(prompt.ids[p]), p)
    if index < len(prompt.writers):
        layer, part = [place for place, first in prompt.writers.begin.items() if first <= index][-1]
        number = int(prompt.writers.number[index])
        return Node(part if number >= 0 else f"{part}_error", layer, number, p)
    if index >= prompt.logit_begin:
        assert prompt.gradients is not None
        return Node("logit", -1, prompt.gradients.tokens[index - prompt.logit_begin], p)
    first_rest = min(prompt.rest_begin.values())
    if index >= first_rest:
        return Node("source_error", prompt.layers[(index - first_rest) // len(prompt.ids)], -1, p)
    layer = [layer for layer, first in prompt.source_begin.items() if first <= index][-1]
    return Node("source", layer, int(prompt.sources[layer].indices[index - prompt.source_begin[layer]]), p)


def nodes_of(prompt: Prompt, latent: Latent) -> torch.Tensor:
    """The nodes that are this latent, at one position each."""
    if latent.kind == "source":
        rows, first = prompt.sources[latent.layer], prompt.source_begin[latent.layer]
    else:
        place = (latent.layer, latent.kind)
        rows, first = prompt.writers.pieces[place].latents, prompt.writers.begin[place]
    return (rows.indices == latent.number).nonzero().flatten() + first


class LayerNames:
    """What latents of all layers are called: their top token, their page on Neuronpedia."""

    def __init__(self, jobs: LayerJobs):
        self._jobs, self._found = jobs, dict[str, TopTokens]()
        cfg, store = jobs.job.cfg, jobs.job.store
        self.pages = {hook: neuronpedia_page(cfg, store, hook) for hook in jobs.hooks}

    @staticmethod
    def inputs(jobs: LayerJobs) -> dict[str, str]:
        """The keys that names are made from, by role."""
        cfg, store = jobs.job.cfg, jobs.job.store
        found = {
            f"{role}@{layer}": key for layer, job in jobs.mlp.items() for role, key in names_inputs(job).items()
        }  # fmt: skip
        return found | {f"top_tokens {hook}": TopTokensStage(cfg, store, hook).key for hook in jobs.attention.values()}

    def hook(self, kind: str, layer: int) -> str:
        """The hook that a kind of latent is of."""
        link = self._jobs.mlp[layer].link
        return {"source": link.sources[0], "mlp": link.target, "attn": self._jobs.attention.get(layer, "")}[kind]

    def token(self, latent: Latent | Node) -> str | None:
        """Its top token, a blank in front kept; None for one that never fires."""
        hook = self.hook(latent.kind, latent.layer)
        if hook not in self._found:
            job = self._jobs.job
            self._found[hook] = load_top_tokens(TopTokensStage(job.cfg, job.store, hook).pull())
        token = int(self._found[hook].token[latent.number, 0])
        return self._jobs.job.vocabulary[token] if token >= 0 else None

    def label(self, latent: Latent | Node) -> str:
        """OF12@L3 " king"."""
        token = self.token(latent)
        return latent.name + (f' "{token}"' if token else "")

    def page(self, latent: Latent | Node) -> str | None:
        """Where Neuronpedia shows it."""
        page = self.pages[self.hook(latent.kind, latent.layer)]
        return None if page is None else f"{page}/{latent.number}"
