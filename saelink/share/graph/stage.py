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

from typing import Any, TypedDict

from saelink import memory
from saelink.errors import SaelinkError
from saelink.evidence.names import names_inputs, pages_of
from saelink.fit.train import TrainStage, fitted_connector, shape_of
from saelink.job import Job, JobStage
from saelink.latents.link import check_same_token
from saelink.share.graph.prune import influences, largest_share, without_logits
from saelink.share.graph.trace import Node, Trace, Tracer, prompt_ids
from saelink.share.graph.write import INDEX_FILE, GraphWriter
from saelink.store.draft import Draft
from saelink.store.stage import Need


class GraphFacts(TypedDict):
    slug: str
    """The graph's name, and its file's."""
    nodes: int
    links: int
    next: list[tuple[str, float]]
    """The likeliest next tokens and their probabilities."""
    lines: list[str]
    """The strongest target latents and what each is made of, as text."""


class GraphStage(JobStage[GraphFacts]):
    """The graph of cfg.graph.prompt in the format that circuit-tracer's front end and Neuronpedia read.

    Files: `<slug>.json` with metadata, nodes and links; `graph-metadata.json`, the list that circuit-tracer's server
    wants beside it. The source latents are at `layer`, the target latents one above. Raises SaelinkError without a
    prompt, or with one that is too long.
    """

    name = "graph"
    version = 3

    def __init__(self, job: Job):
        super().__init__(job)
        check_same_token(job.cfg, "a prompt's graph")
        if not (job.cfg.graph.prompt or "").strip():
            raise SaelinkError('graph.prompt is missing: saelink graph "The old king sat on"')
        self._train = TrainStage(job)

    def recipe(self) -> dict[str, Any]:
        cfg, settings = self.job.cfg, self.job.cfg.graph
        return {
            "prompt": settings.prompt,
            "model": cfg.model.label,
            "logits": settings.logits,
            "shares": [settings.logit_share, settings.node_share, settings.edge_share],
            "prepend_bos": cfg.data.prepend_bos,
            "drop_positions": cfg.data.drop_positions,
            "model_dtype": cfg.model.dtype.name,
            "pages": pages_of(self.job),
        }

    def inputs(self) -> dict[str, str]:
        return {"connector": self._train.key, **names_inputs(self.job)}

    def about(self) -> str:
        return f"{self.job.cfg.model.label} layer {self.job.cfg.layer} {self.job.cfg.graph.prompt!r}"

    def check(self) -> None:
        prompt_ids(self.job)  # too long a prompt is said before anything is fitted

    def need(self) -> Need:
        job, n_tokens = self.job, len(prompt_ids(self.job))
        self._train.pull()
        needed = memory.traced(job.size, job.model.n_layers, *job.sides.sizes, shape_of(job), n_tokens)
        return Need(needed, "use a shorter prompt or SAEs with fewer latents")

    def make(self, draft: Draft) -> GraphFacts:
        tracer = Tracer(self.job, fitted_connector(self._train.pull()))
        trace = tracer.trace()
        nodes, links, shares = self._pruned(tracer, trace)
        writer = GraphWriter(self.job, self._train.key, tracer, trace, nodes, shares)
        metadata = writer.metadata()
        document = {
            "metadata": metadata,
            "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
            "nodes": [writer.node(node) for node in nodes],
            "links": [
                {"source": writer.ids[source], "target": writer.ids[target], "weight": trace.links[target][source]}
                for source, target in links
            ],
        }
        draft.save_json(f"{metadata['slug']}.json", document)
        draft.save_json(INDEX_FILE, {"graphs": [metadata]})
        return {
            "slug": metadata["slug"],
            "nodes": len(nodes),
            "links": len(links),
            "next": [(tracer.text(token), round(p, 4)) for token, p in trace.probabilities.items()],
            "lines": writer.lines(),
        }

    def _pruned(self, tracer: Tracer, trace: Trace) -> tuple[list[Node], list[tuple[Node, Node]], dict[Node, float]]:
        """The nodes and links that are kept, and by node the share of all influence up to it."""
        settings = self.job.cfg.graph
        influence, _ = influences(trace)
        so_far = largest_share(without_logits(influence), 2.0)
        kept = largest_share(without_logits(influence), settings.node_share)
        led = {source for target in kept if target.kind == "target" for source in trace.links[target]}
        kept = {
            node: share for node, share in kept.items() if node.kind not in ("source", "source_error") or node in led
        }
        tracer.embed(trace, [node for node in kept if node.kind == "source"])
        influence, shares = influences(trace)
        nodes = [node for node in influence if node in kept or node.kind in ("token", "logit")]
        edges = {
            (source, target): share * influence[target]
            for target in nodes
            for source, share in shares.get(target, {}).items()
            if source in kept or source.kind == "token"
        }
        edges_kept = largest_share(edges, settings.edge_share)
        leading = {source for source, _ in edges_kept}
        links = [edge for edge in edges_kept if edge[1].kind != "source" or edge[1] in leading]
        joined = {node for edge in links for node in edge}
        nodes = [node for node in nodes if node in joined or node.kind in ("token", "logit")]
        # front ends hide what is above node_threshold: the shares written are those that chose the nodes, before the
        # links from tokens to sources raised the tokens' own
        so_far |= {node: min(share, settings.node_share) for node, share in kept.items()}
        return nodes, links, so_far
