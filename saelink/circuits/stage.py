"""A prompt as a graph over several layers: the stage `layers_graph`."""

from __future__ import annotations

from typing import Any, TypedDict

import torch

from saelink import memory
from saelink.circuits.explained import Explained, connectors_of, explained_inputs, likeliest
from saelink.circuits.influence import Influence, influence_of, kept_of
from saelink.circuits.layers import LayerJobs, edges_recipe
from saelink.circuits.nodes import LayerNames
from saelink.circuits.prompt import Prompt
from saelink.circuits.size import LayersSize, over_layers
from saelink.circuits.write import LayeredWriter
from saelink.config.circuit import InnerEdges
from saelink.errors import SaelinkError
from saelink.fit.train import shape_of
from saelink.job import Job, JobStage
from saelink.latents.encode import EncodeStage
from saelink.share.graph.trace import prompt_ids
from saelink.share.graph.write import INDEX_FILE
from saelink.store.draft import Draft
from saelink.store.stage import Need

RATE = 3e10
"""Products of numbers a second that are reckoned with; measured on one core of a laptop."""


class LayersGraphFacts(TypedDict):
    slug: str
    """The graph's name, and its file's."""
    nodes: int
    links: int
    groups: int
    """Supernodes of latents with the same links."""
    next: list[tuple[str, float]]
    """The likeliest next tokens and their probabilities."""
    replacement: float
    """Influence of tokens among that of tokens and errors."""
    completeness: float
    """The share of nodes' inputs that is no error, weighed by influence."""
    kept: float
    """The share of all influence that the nodes of the graph have."""
    errors: dict[str, float]
    """By kind of node the share of its input that is error, weighed by influence."""
    lines: list[str]
    """The most influential latents and what each is made of, as text."""


class LayersGraphStage(JobStage[LayersGraphFacts]):
    """The graph of cfg.graph.prompt over cfg.layers, in the format that circuit-tracer and Neuronpedia read.

    Files: `<slug>.json` with metadata, nodes and links; `graph-metadata.json`, the list that circuit-tracer's server
    wants beside it. Raises SaelinkError without a prompt, with one that is too long, and for a model that can't be
    opened.
    """

    name = "layers_graph"
    version = 2

    def __init__(self, job: Job):
        super().__init__(job)
        if not (job.cfg.graph.prompt or "").strip():
            raise SaelinkError('graph.prompt is missing: saelink graph "The old king sat on" layers=0-3')
        self.jobs = LayerJobs(job)

    @property
    def device(self) -> str:
        return "cpu"

    def recipe(self) -> dict[str, Any]:
        cfg, settings = self.job.cfg, self.job.cfg.graph
        return {
            "prompt": settings.prompt,
            "model": cfg.model.label,
            "layers": self.jobs.layers,
            "edges": edges_recipe(cfg),
            "attention": cfg.circuit.attention,
            "nodes": cfg.circuit.nodes,
            "alike": cfg.circuit.alike,
            "logits": settings.logits,
            "shares": [settings.logit_share, settings.node_share, settings.edge_share],
            "prepend_bos": cfg.data.prepend_bos,
            "drop_positions": cfg.data.drop_positions,
            "pages": LayerNames(self.jobs).pages,
        }

    def inputs(self) -> dict[str, str]:
        return {**explained_inputs(self.jobs), **LayerNames.inputs(self.jobs)}

    def about(self) -> str:
        return f"{self.job.cfg.model.label} layers {self.jobs.layers} {shortened(self.job.cfg.graph.prompt or '')!r}"

    def check(self) -> None:
        prompt_ids(self.job)  # too long a prompt is said before anything is fitted

    def need(self) -> Need:
        self.jobs.encode()
        for stage in connectors_of(self.jobs).values():
            stage.pull()
        size, seconds = estimate(self.jobs, len(prompt_ids(self.job)))
        self.job.observer.say(
            f"graph: {len(prompt_ids(self.job))} tokens, {len(self.jobs.layers)} layers, about {seconds:.0f} s"
        )
        return Need(size, "use fewer layers, a shorter prompt, or circuit.attention=false")

    def make(self, draft: Draft) -> LayersGraphFacts:
        self.jobs.encode()
        settings, circuit = self.job.cfg.graph, self.job.cfg.circuit
        explained = Explained(self.jobs)
        prompt = explained.prompt(prompt_tensor(self.job), likeliest(settings.logits, settings.logit_share))
        influence = influence_of(prompt)
        kept = kept_of(prompt, influence, settings.node_share, settings.edge_share, circuit.nodes)
        writer = LayeredWriter(self.jobs, LayerNames(self.jobs), prompt, influence, kept)
        keys = {str(layer): stage.key for layer, stage in connectors_of(self.jobs).items()}
        document = writer.document(settings.prompt or "", settings.node_share, keys)
        slug = document["metadata"]["slug"]
        draft.save_json(f"{slug}.json", document)
        draft.save_json(INDEX_FILE, {"graphs": [document["metadata"]]})
        gradients = prompt.gradients
        assert gradients is not None
        return {
            "slug": slug,
            "nodes": len(document["nodes"]),
            "links": len(document["links"]),
            "groups": len(writer.groups),
            "next": [
                (writer.text(token), round(p, 4))
                for token, p in zip(gradients.tokens, gradients.probabilities, strict=True)
            ],
            "replacement": influence.scores.replacement,
            "completeness": influence.scores.completeness,
            "kept": kept.share,
            "errors": errors_by_kind(prompt, influence),
            "lines": writer.lines(),
        }


def shortened(prompt: str) -> str:
    """A prompt's beginning, for a line."""
    return prompt if len(prompt) <= 60 else prompt[:59] + "\N{HORIZONTAL ELLIPSIS}"


def prompt_tensor(job: Job) -> torch.Tensor:
    """[context] the prompt's tokens."""
    return torch.tensor(prompt_ids(job))


def errors_by_kind(prompt: Prompt, influence: Influence) -> dict[str, float]:
    """By kind of node the share of its input that is error, weighed by influence; over all nodes of the kind."""
    spans: dict[str, list[range]] = {"attn": [], "source": [], "mlp": []}
    for layer in prompt.layers:
        spans["mlp"].append(prompt.writers.latents_of((layer, "mlp")))
        spans["attn"].append(prompt.writers.latents_of((layer, "attn")))
        first = prompt.source_begin[layer]
        spans["source"].append(range(first, first + len(prompt.sources[layer].values)))
    spans["logit"] = [range(prompt.logit_begin, prompt.size)]
    found: dict[str, float] = {}
    for kind, ranges in spans.items():
        value = sum(float(influence.value[r.start : r.stop].sum()) for r in ranges)
        wrong = sum(float((influence.value * influence.error)[r.start : r.stop].sum()) for r in ranges)
        if value > 0:
            found[kind] = wrong / value
    return found


def estimate(jobs: LayerJobs, context: int) -> tuple[float, float]:
    """Bytes, the model's weights among them, and seconds that the graph of a prompt of so many tokens takes."""
    job, graph = jobs.job, sizes_over(jobs, context)
    return over_layers(job.size, job.model.n_layers, graph), graph_seconds(job.model.d_model, graph)


def sizes_over(jobs: LayerJobs, context: int) -> LayersSize:
    """The sizes of the graph of so many tokens; latents are made where they are missing."""
    job = jobs.job
    sides = [each.sides.sizes for each in jobs.mlp.values()]
    mlp = [side for sources, target in sides for side in (*sources, target)]
    facts = [EncodeStage(job.cfg, job.store, hook).pull().facts for hook in jobs.attention.values()]
    attention = [memory.Side(each["width"], each["d_sae"], each["l0"]) for each in facts]
    gradient = job.cfg.circuit.edges is InnerEdges.gradient
    shapes = [] if gradient else [shape_of(each) for each in jobs.mlp.values()]
    return LayersSize(mlp, attention, shapes, max(jobs.layers) + 1, context)


def graph_seconds(width: int, graph: LayersSize) -> float:
    """What the links of a prompt's graph take, with loading; the model's stream is so wide."""
    products, n = 4 * graph.written * width * graph.context, len(graph.attention)
    for place, side in enumerate(graph.attention, 1):
        below = graph.context * (2 * graph.depth + graph.l0 * place / n)
        products += below * width * graph.context * max(side.l0, 1.0) / 2
    return products / RATE + 3 * graph.depth
