"""One prompt as a graph: which tokens, source latents and target latents lead to the next token: the stage `graph`.

Nodes are the prompt's tokens, the source and target latents active on it, what neither SAE nor connector explains, and
the likeliest next tokens. A link's weight is what its source node adds to its target node:

- source latent -> target latent, at the same token: what the connector's prediction loses without the source, in units
  of the latent's activation; an error node in front of the target holds the rest (the connector's error, its bias, what
  sources do only together), so that a target's links sum to its activation.
- target latent -> next token: gradient x activation, the gradient that of the logit less the mean logit, through
  everything behind the hook; an error node holds what the SAE does not rebuild, so that the links of a position sum to
  what its activations add to first order.
- token -> source latent, token -> next token (past the target hook): gradient x embedding.

Influence and pruning are those of E. Ameisen et al., "Circuit Tracing: Revealing Computational Graphs in Language
Models" (2025): each node's incoming weights as shares of their absolute sum, followed back from the next tokens'
probabilities. Unlike theirs these gradients go through attention patterns and norms instead of holding them.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple, TypeVar

import torch

from saelink import __version__
from saelink.autoencoder import SAE
from saelink.config import Config
from saelink.data import separator_id
from saelink.latents import Rows
from saelink.link import link_of, pull_sides
from saelink.model import device_of, load_bridge, load_tokenizer, model_info
from saelink.names import Names, Unit, pages_of
from saelink.sae import pull_sae
from saelink.store import Artifact, Draft, Plan, SaelinkError, Store
from saelink.train import load_connector, train

VERSION = 2

EMBEDDING = "hook_embed"

INDEX_FILE = "graph-metadata.json"
"""What circuit-tracer's server lists a folder of graphs by."""

BATCH = 4096
"""Tokens that the connector predicts at once, each with one source taken away."""


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


def graph_plan(cfg: Config, store: Store) -> Plan:
    """Plan of a prompt's graph."""
    settings = cfg.graph
    recipe = {
        "prompt": settings.prompt,
        "model": cfg.model.label,
        "logits": settings.logits,
        "shares": [settings.logit_share, settings.node_share, settings.edge_share],
        "prepend_bos": cfg.data.prepend_bos,
        "drop_positions": cfg.data.drop_positions,
        "model_dtype": cfg.model.dtype.name,
        "pages": pages_of(cfg, store),
    }
    inputs = {"connector": train(cfg, store).key}
    return Plan("graph", VERSION, recipe, inputs, f"{cfg.model.label} layer {cfg.layer} {settings.prompt!r}")


def graph(cfg: Config, store: Store) -> Artifact:
    """Pull the graph of cfg.graph.prompt in the format that circuit-tracer's front end and Neuronpedia read.

    Files: `<slug>.json` with metadata, nodes and links; `graph-metadata.json`, the list that circuit-tracer's server
    wants beside it. The source latents are at `layer`, the target latents one above. Raises SaelinkError without a
    prompt, or with one that is too long.
    """
    if not (cfg.graph.prompt or "").strip():
        raise SaelinkError('graph.prompt is missing: saelink graph "The old king sat on"')
    prompt_ids(cfg, store)  # too long a prompt is said before anything is fitted
    plan = graph_plan(cfg, store)
    found = store.up_to_date(plan)
    return found or store.build(plan, lambda draft: _graph(cfg, store, draft), device_of(cfg))


def slug_of(cfg: Config) -> str:
    """The graph's name: the prompt's first words and a hash of all that names it."""
    words = "".join(c if c.isalnum() and c.isascii() else "-" for c in cfg.graph.prompt or "").lower()
    whole = f"{cfg.model.label} {cfg.layer} {cfg.link.name} {cfg.graph.prompt}"
    return f"{'-'.join(filter(None, words.split('-')))[:40]}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"


def _graph(cfg: Config, store: Store, draft: Draft) -> dict[str, Any]:
    tracer = Tracer(cfg, store)
    trace = tracer.trace()
    influence, _ = influences(trace)
    so_far = _first(_but_logits(influence), 2.0)
    kept = _first(_but_logits(influence), cfg.graph.node_share)
    led = {source for target in kept if target.kind == "target" for source in trace.links[target]}
    kept = {node: share for node, share in kept.items() if node.kind not in ("source", "source_error") or node in led}
    tracer.embed(trace, [node for node in kept if node.kind == "source"])
    influence, shares = influences(trace)
    nodes = [node for node in influence if node in kept or node.kind in ("token", "logit")]
    edges = {
        (source, target): share * influence[target]
        for target in nodes
        for source, share in shares.get(target, {}).items()
        if source in kept or source.kind == "token"
    }
    edges_kept = _first(edges, cfg.graph.edge_share)
    leading = {source for source, _ in edges_kept}
    edges_kept = [edge for edge in edges_kept if edge[1].kind != "source" or edge[1] in leading]
    joined = {node for edge in edges_kept for node in edge}
    nodes = [node for node in nodes if node in joined or node.kind in ("token", "logit")]
    # front ends hide what is above node_threshold: the shares written are those that chose the nodes, before the links
    # from tokens to sources raised the tokens' own
    so_far |= {node: min(share, cfg.graph.node_share) for node, share in kept.items()}
    found = _Written(cfg, store, tracer, trace, nodes, so_far)
    links = [
        {"source": found.ids[source], "target": found.ids[target], "weight": trace.links[target][source]}
        for source, target in edges_kept
    ]
    metadata = found.metadata()
    document = {
        "metadata": metadata,
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [found.node(node) for node in nodes],
        "links": links,
    }
    draft.save_json(f"{metadata['slug']}.json", document)
    draft.save_json(INDEX_FILE, {"graphs": [metadata]})
    return {
        "slug": metadata["slug"],
        "nodes": len(nodes),
        "links": len(links),
        "next": [[tracer.text(token), round(p, 4)] for token, p in trace.probabilities.items()],
        "lines": found.lines(),
    }


# --------------------------------------------------------------------------- measuring


def prompt_ids(cfg: Config, store: Store) -> list[int]:
    """The prompt's tokens behind the one that begins every sequence. Raises SaelinkError when they are too many."""
    info = model_info(cfg, store)
    tokenizer = load_tokenizer(cfg.model, info.artifact)
    prompt = tokenizer(cfg.graph.prompt, add_special_tokens=False)["input_ids"]
    first = tokenizer.bos_token_id if cfg.data.prepend_bos else separator_id(tokenizer, cfg.model.separator)
    most = min(cfg.data.context_size, info.context_size or cfg.data.context_size)
    if len(prompt) + 1 > most:
        raise SaelinkError(
            f"graph.prompt has {len(prompt)} tokens; with the one in front at most data.context_size={most} fit"
        )
    return [first, *prompt]


class Tracer:
    """A prompt's forward pass, kept for gradients."""

    def __init__(self, cfg: Config, store: Store):
        self.cfg = cfg
        info = model_info(cfg, store)
        self._tokenizer = load_tokenizer(cfg.model, info.artifact)
        self.sides, link = pull_sides(cfg, store), link_of(cfg, store)
        self.device = device_of(cfg)
        self.n_layers = info.n_layers
        self.connector = load_connector(train(cfg, store))
        self._scale = torch.cat(
            [
                torch.full((side.facts["d_sae"],), scale)
                for side, scale in zip(self.sides.sources, self.sides.scales, strict=False)
            ]
        )
        self._saes = [pull_sae(cfg, store, hook).to("cpu", torch.float32) for hook in link.sources]
        self._target_sae = pull_sae(cfg, store, link.target).to("cpu", torch.float32)
        self.ids = prompt_ids(cfg, store)
        self._run(load_bridge(cfg, info, self.device), link.sources, link.target)

    def text(self, token: int) -> str:
        """A token as text, its blank in front kept."""
        return str(self._tokenizer.decode([token]))

    def _run(self, bridge: Any, sources: list[str], target: str) -> None:
        """Keep the acts at all hooks; the embedding and the target hook's acts as leaves of their own."""
        seen: dict[str, torch.Tensor] = {}

        def leaf(name: str) -> Any:
            def hook(acts: torch.Tensor, hook: Any = None) -> torch.Tensor:
                seen[name] = acts.detach().requires_grad_()
                return seen[name]

            return hook

        def look(name: str) -> Any:
            def hook(acts: torch.Tensor, hook: Any = None) -> torch.Tensor:
                seen[name] = acts
                return acts

            return hook

        hooks = [(EMBEDDING, leaf(EMBEDDING)), *((hook, look(hook)) for hook in sources), (target, leaf(target))]
        ids = torch.tensor([self.ids], device=self.device)
        with torch.enable_grad():
            self._logits = bridge.run_with_hooks(ids, fwd_hooks=hooks)[0, -1].float()
        self.embedding, self.target_acts = seen[EMBEDDING], seen[target]
        self.source_acts = [seen[hook] for hook in sources]

    def trace(self) -> Trace:
        """Measure all links but those from tokens to source latents."""
        chances = self._logits.detach().softmax(0).cpu()
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
        row, latent, value = row[counts], latent[counts], value[counts]
        offsets = torch.nn.functional.pad(torch.bincount(row, minlength=len(x)).cumsum(0), (1, 0))
        return Rows(offsets, latent, value, sae.d_sae)

    def _add_logits(self, trace: Trace) -> None:
        sae, last = self._target_sae, len(self.ids) - 1
        acts = self.target_acts.detach()[0].flatten(1).float().cpu()
        latents, units = self._latents(sae, self.target_acts), sae.units(acts)
        factor = torch.ones(len(acts)) if units is None else units.scale.flatten()
        for token in trace.probabilities:
            wanted = self._logits[token] - self._logits.mean()
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
        parts = [self._latents(sae, acts) for sae, acts in zip(self._saes, self.source_acts, strict=True)]
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
            for begin in range(first, last, BATCH):
                entries = range(begin, min(begin + BATCH, last))
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
        sizes = [sae.d_sae for sae in self._saes]
        for node in sources:
            latent, place = node.number, 0
            while latent >= sizes[place]:
                latent, place = latent - sizes[place], place + 1
            sae, acts = self._saes[place], self.source_acts[place][0].flatten(1)
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


# --------------------------------------------------------------------------- pruning

ORDER = ("logit", "target", "target_error", "source", "source_error", "token")
"""Every link leads from a later kind to an earlier one."""


def influences(trace: Trace) -> tuple[dict[Node, float], dict[Node, dict[Node, float]]]:
    """By node its influence on the next token, and by node the shares of what leads into it.

    The next tokens' influence is their probability over all that are looked at; every node hands its own down to
    what leads into it, in proportion to the absolute weights.
    """
    shares: dict[Node, dict[Node, float]] = {}
    total = sum(trace.probabilities.values())
    influence = {node: trace.probabilities[node.number] / total for node in trace.links if node.kind == "logit"}
    for kind in ORDER:
        for node in [node for node in influence if node.kind == kind]:
            into = trace.links.get(node, {})
            whole = sum(abs(weight) for weight in into.values()) or 1.0
            shares[node] = {source: abs(weight) / whole for source, weight in into.items()}
            for source, share in shares[node].items():
                influence[source] = influence.get(source, 0.0) + influence[node] * share
    return influence, shares


def _but_logits(influence: dict[Node, float]) -> dict[Node, float]:
    """Of the nodes that can be left out or not."""
    return {node: value for node, value in influence.items() if node.kind != "logit"}


T = TypeVar("T")


def _first(scores: dict[T, float], share: float) -> dict[T, float]:
    """The largest scores that together make `share` of all, largest first, each with the share up to itself."""
    whole, so_far, kept = sum(scores.values()) or 1.0, 0.0, {}
    for item, score in sorted(scores.items(), key=lambda pair: -pair[1]):
        if so_far >= share:
            break
        so_far += score / whole
        kept[item] = so_far
    return kept


# --------------------------------------------------------------------------- writing

TYPES = {
    "token": "embedding", "logit": "logit", "source": "cross layer transcoder", "target": "cross layer transcoder",
    "source_error": "mlp reconstruction error", "target_error": "mlp reconstruction error",
}  # fmt: skip


class _Written:
    """The nodes as the format wants them."""

    def __init__(
        self, cfg: Config, store: Store, tracer: Tracer, trace: Trace, nodes: list[Node], so_far: dict[Node, float]
    ):
        self._cfg, self._store, self._tracer, self._trace, self._nodes = cfg, store, tracer, trace, nodes
        self._names = Names(cfg, store)
        self._so_far = so_far
        self._sizes = [side.facts["d_sae"] for side in tracer.sides.sources]
        layer, above = str(cfg.layer), str(cfg.layer + 1)
        last = str(tracer.n_layers + 1)
        self._layer = {
            "token": "E", "source": layer, "source_error": layer, "target": above, "target_error": above, "logit": last,
        }  # fmt: skip
        self.ids = {node: f"{self._layer[node.kind]}_{node.number}_{node.position}" for node in nodes}

    def node(self, node: Node) -> dict[str, Any]:
        layer, number, position = self._layer[node.kind], node.number, node.position
        found: dict[str, Any] = {
            "node_id": self.ids[node],
            "feature": number,
            "layer": layer,
            "ctx_idx": position,
            "feature_type": TYPES[node.kind],
            "token_prob": 0.0,
            "is_target_logit": False,
            "run_idx": 0,
            "reverse_ctx_idx": 0,
            "jsNodeId": f"{layer}_{number}-{position}",
            "clerp": self.label(node),
            "influence": self._so_far.get(node),
            "activation": self._trace.activations.get(node),
        }
        if node.kind in ("source", "target"):
            found["feature"] = cantor(int(layer), number)
            found["jsNodeId"] = f"{layer}_{number}-0"
            if page := self._names.unit(node.kind, number).page:
                found["vis_link"] = page
        if node.kind == "token":
            found["feature"] = position
        if node.kind == "logit":
            found["token_prob"] = self._trace.probabilities[number]
            found["is_target_logit"] = number == next(iter(self._trace.probabilities))
            found["jsNodeId"] = f"L_{number}-{position}"
        return found

    def label(self, node: Node) -> str:
        if node.kind == "logit":
            return f'Output "{self._tracer.text(node.number)}" (p={self._trace.probabilities[node.number]:.3f})'
        if node.kind == "token":
            return f'"{self._tracer.text(node.number)}"'
        if node.kind == "source_error":
            return "not from single sources"
        if node.kind == "target_error":
            return "not rebuilt by the target SAE"
        unit = self._names.unit(node.kind, node.number)
        name = f"OF{node.number}"
        if node.kind == "source":
            place = sum(node.number >= sum(self._sizes[: n + 1]) for n in range(len(self._sizes)))
            name = f"IF{unit.latent}" if len(self._sizes) == 1 else f"IF{place}.{unit.latent}"
        return name + (f' "{unit.token}"' if unit.token else "")

    def metadata(self) -> dict[str, Any]:
        cfg, pages = self._cfg, pages_of(self._cfg, self._store)
        known = {page.split("/")[-2] for page in pages.values() if page}
        units: dict[str, Unit] = {
            self.ids[node]: self._names.unit(node.kind, node.number)
            for node in self._nodes
            if node.kind in ("source", "target")
        }
        return {
            "slug": slug_of(cfg),
            "scan": known.pop() if len(known) == 1 else cfg.model.label,
            "transcoder_list": [],
            "prompt_tokens": [self._tracer.text(token) for token in self._trace.ids],
            "prompt": cfg.graph.prompt,
            "node_threshold": cfg.graph.node_share,
            "schema_version": 1,
            "info": {"generator": {"name": "saelink", "version": __version__}},
            "saelink": {
                "connector": train(cfg, self._store).key,
                "link": {"sources": link_of(cfg, self._store).sources, "target": link_of(cfg, self._store).target},
                "pages": {name: unit.page for name, unit in units.items() if unit.page},
            },
        }

    def lines(self) -> list[str]:
        """The likeliest next token's strongest target latents, and what each is made of, for people."""
        best = next(iter(self._trace.probabilities))
        into = self._trace.links[Node("logit", best, len(self._trace.ids) - 1)]
        targets = [node for node in self._nodes if node.kind == "target"]
        lines = []
        for target in sorted(targets, key=lambda node: -abs(into.get(node, 0.0)))[:8]:
            at = self._tracer.text(self._trace.ids[target.position])
            lines.append(f'{self.label(target)} at "{at}" {into.get(target, 0.0):+.2f}')
            inside = sorted(self._trace.links[target].items(), key=lambda pair: -abs(pair[1]))
            value = self._trace.activations[target]
            for source, weight in inside[:3]:
                lines.append(f"    {weight / value:+.0%} {self.label(source)}")
        return ["".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in line) for line in lines]


def cantor(a: int, b: int) -> int:
    """Cantor's pairing of two numbers, as which the format gives a layer's feature."""
    return (a + b) * (a + b + 1) // 2 + b
