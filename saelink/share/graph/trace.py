"""What is measured on a prompt: every link of its graph, before anything is pruned."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from saelink import memory
from saelink.activations.tokens import separator_id
from saelink.connectors.base import Connector
from saelink.errors import SaelinkError
from saelink.job import Job
from saelink.latents.rows import Rows
from saelink.model.load import load_bridge, load_tokenizer
from saelink.saes.load import pull_sae
from saelink.saes.sae import SAE

EMBEDDING = "hook_embed"

BATCH = 4096
"""Tokens that the connector predicts at once, each with one source taken away; fewer where these take
memory.STEP_ENTRIES."""


class Node(NamedTuple):
    """A node: token, source, source_error, target, target_error or logit; its latent or token; its position."""

    kind: str
    number: int
    position: int


class Trace(NamedTuple):
    """Everything measured on a prompt, before anything is pruned."""

    ids: list[int]
    probabilities: dict[int, float]
    """Of the next tokens that are looked at."""
    activations: dict[Node, float]
    """Of the latents, raw."""
    links: dict[Node, dict[Node, float]]
    """By target node the weights of what leads into it; tokens lead into source latents only after `embed`."""


def prompt_ids(job: Job) -> list[int]:
    """The prompt's tokens behind the one that begins every sequence. Raises SaelinkError when they are too many."""
    info = job.model
    tokenizer = load_tokenizer(job.cfg.model, info.artifact)
    prompt = tokenizer(job.cfg.graph.prompt, add_special_tokens=False)["input_ids"]
    first = tokenizer.bos_token_id if job.cfg.data.prepend_bos else separator_id(tokenizer, job.cfg.model.separator)
    most = min(job.cfg.data.context_size, info.context_size or job.cfg.data.context_size)
    if len(prompt) + 1 > most:
        raise SaelinkError(
            f"graph.prompt has {len(prompt)} tokens; with the one in front at most data.context_size={most} fit"
        )
    info.check_ids([first, *prompt], f"model.path={job.cfg.model.path}")
    return [first, *prompt]


class Tracer:
    """A prompt's forward pass, kept for gradients."""

    def __init__(self, job: Job, connector: Connector):
        self.cfg = job.cfg
        info = job.model
        self._tokenizer = load_tokenizer(job.cfg.model, info.artifact)
        self.sides, link = job.sides, job.link
        self.device = job.device
        self.n_layers = info.n_layers
        self.connector = connector
        self._scale = torch.cat(
            [
                torch.full((side.facts["d_sae"],), scale)
                for side, scale in zip(self.sides.sources, self.sides.scales, strict=False)
            ]
        )
        self.saes = [pull_sae(job.cfg, job.store, hook).to("cpu", torch.float32) for hook in link.sources]
        self.target_sae = pull_sae(job.cfg, job.store, link.target).to("cpu", torch.float32)
        self.ids = prompt_ids(job)
        self._run(load_bridge(job.cfg, info, self.device), link.sources, link.target)

    def text(self, token: int) -> str:
        """A token as text, its blank in front kept."""
        return str(self._tokenizer.decode([token]))

    def _run(self, bridge: Any, sources: list[str], target: str) -> None:
        """Keep the acts at all hooks; the embedding and the target hook's acts as leaves of their own."""
        seen: dict[str, torch.Tensor] = {}

        def leaf(name: str) -> Any:
            def hook(acts: torch.Tensor, **_: object) -> torch.Tensor:
                seen[name] = acts.detach().requires_grad_()
                return seen[name]

            return hook

        def look(name: str) -> Any:
            def hook(acts: torch.Tensor, **_: object) -> torch.Tensor:
                seen[name] = acts.clone()  # it may be changed in place behind the hook
                return acts

            return hook

        hooks = [(EMBEDDING, leaf(EMBEDDING)), *((hook, look(hook)) for hook in sources), (target, leaf(target))]
        ids = torch.tensor([self.ids], device=self.device)
        with torch.enable_grad():
            self.logits = bridge.run_with_hooks(ids, fwd_hooks=hooks)[0, -1].float()
        self.embedding, self.target_acts = seen[EMBEDDING], seen[target]
        self.source_acts = [seen[hook] for hook in sources]

    def trace(self) -> Trace:
        """Measure all links but those from tokens to source latents."""
        chances = self.logits.detach().softmax(0).cpu()
        order = chances.argsort(descending=True)[: self.cfg.graph.logits]
        enough = int((chances[order].cumsum(0) < self.cfg.graph.logit_share).sum()) + 1
        probabilities = {int(token): chances[token].item() for token in order[:enough]}
        trace = Trace(self.ids, probabilities, {}, {})
        self._add_logits(trace)
        self._add_connector(trace)
        return trace

    def _latents(self, sae: SAE, acts: torch.Tensor) -> Rows:
        """What is active on every token; nothing on the first positions, which no connector was fitted on."""
        x = acts.detach()[0].flatten(1).float().cpu()
        row, latent, value = sae.encode_sparse(x)
        counts = row >= self.cfg.data.drop_positions
        return Rows.from_pairs(row[counts], latent[counts], value[counts], n=len(x), d=sae.d_sae)

    def _add_logits(self, trace: Trace) -> None:
        sae, last = self.target_sae, len(self.ids) - 1
        acts = self.target_acts.detach()[0].flatten(1).float().cpu()
        latents, units = self._latents(sae, self.target_acts), sae.units(acts)
        factor = torch.ones(len(acts)) if units is None else units.scale.flatten()
        for token in trace.probabilities:
            wanted = self.logits[token] - self.logits.mean()
            leaves = [self.target_acts, self.embedding]
            to_acts, to_tokens = torch.autograd.grad(
                wanted, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
            )  # nothing goes past a target hook that all of the residual stream goes through
            gradient = to_acts[0].flatten(1).float().cpu()
            past = (to_tokens * self.embedding).detach()[0].sum(1).tolist()
            whole = (gradient * acts).sum(1)
            row, latent = latents.row_of, latents.indices
            adds = (gradient[row] * sae.W_dec[latent]).sum(1) * factor[row] * latents.values
            rest = whole.index_add(0, row, adds, alpha=-1).tolist()
            into = {Node("token", self.ids[p], p): weight for p, weight in enumerate(past)}
            into |= {Node("target_error", -1, p): weight for p, weight in enumerate(rest)}
            for p, i, weight in zip(row.tolist(), latent.tolist(), adds.tolist(), strict=True):
                into[Node("target", i, p)] = weight
            trace.links[Node("logit", token, last)] = into
        for p, i, value in zip(latents.row_of.tolist(), latents.indices.tolist(), latents.values.tolist(), strict=True):
            trace.activations[Node("target", i, p)] = value

    def _add_connector(self, trace: Trace) -> None:
        """What each source adds to each target's prediction: the difference that leaving it out makes."""
        parts = [self._latents(sae, acts) for sae, acts in zip(self.saes, self.source_acts, strict=True)]
        raw = Rows.beside(parts)
        rows = Rows(raw.offsets, raw.indices, raw.values / self._scale[raw.indices], raw.d)
        unit = self.sides.scales[-1]
        column = {latent: i for i, latent in enumerate(self.connector.target_ids.tolist())}
        with torch.no_grad():
            whole = self.connector(rows) * unit
        for p, j, value in zip(raw.row_of.tolist(), raw.indices.tolist(), raw.values.tolist(), strict=True):
            trace.activations[Node("source", j, p)] = value
        wanted: dict[int, list[int]] = {}
        for node in [node for node in trace.activations if node.kind == "target"]:
            trace.links[node] = {}
            if node.number in column:
                wanted.setdefault(node.position, []).append(node.number)
        for p, targets in wanted.items():
            first, last = int(rows.offsets[p]), int(rows.offsets[p + 1])
            columns = [column[i] for i in targets]
            batch = max(min(BATCH, memory.STEP_ENTRIES // self.connector.d_target), 1)
            for begin in range(first, last, batch):
                entries = range(begin, min(begin + batch, last))
                with torch.no_grad():
                    without = self.connector(_each_without(rows, first, last, entries)) * unit
                adds = (whole[p] - without)[:, columns]
                for entry, weights in zip(entries, adds.tolist(), strict=True):
                    source = Node("source", int(rows.indices[entry]), p)
                    for i, weight in zip(targets, weights, strict=True):
                        if weight:
                            trace.links[Node("target", i, p)][source] = weight
        for node, into in trace.links.items():
            if node.kind == "target":
                rest = trace.activations[node] - sum(into.values())
                into[Node("source_error", -1, node.position)] = rest

    def embed(self, trace: Trace, sources: list[Node]) -> None:
        """Add the links from tokens to these source latents: gradient of the activation x embedding."""
        sizes = [sae.d_sae for sae in self.saes]
        for node in sources:
            latent, place = node.number, 0
            while latent >= sizes[place]:
                latent, place = latent - sizes[place], place + 1
            sae, acts = self.saes[place], self.source_acts[place][0].flatten(1)
            if not acts.requires_grad:  # nothing stands between: the hook is the embedding itself
                continue
            with torch.enable_grad():
                value = sae.pre_acts(acts[node.position : node.position + 1].float().cpu())[0, latent]
            (gradient,) = torch.autograd.grad(value, self.embedding, retain_graph=True)
            weights = (gradient * self.embedding).detach()[0].sum(1).tolist()
            trace.links[node] = {
                Node("token", self.ids[p], p): weight
                for p, weight in enumerate(weights)
                if p <= node.position and weight
            }


def _each_without(rows: Rows, first: int, last: int, entries: range) -> Rows:
    """One row for each of `entries` among a row's entries [first, last): the row without that entry."""
    n, every = len(entries), torch.arange(first, last)
    kept = every[None, :] != torch.tensor(list(entries))[:, None]
    chosen = every.expand(n, -1)[kept]
    return Rows(torch.arange(n + 1) * (last - first - 1), rows.indices[chosen], rows.values[chosen], rows.d)
