"""A pruned graph in the format that circuit-tracer's front end and Neuronpedia read."""

from __future__ import annotations

import hashlib
from typing import Any

from saelink import __version__
from saelink.config.schema import Config
from saelink.evidence.names import Names, Unit, pages_of
from saelink.job import Job
from saelink.share.graph.trace import Node, Trace, Tracer

INDEX_FILE = "graph-metadata.json"
"""What circuit-tracer's server lists a folder of graphs by."""

TYPES = {
    "token": "embedding", "logit": "logit", "source": "cross layer transcoder", "target": "cross layer transcoder",
    "source_error": "mlp reconstruction error", "target_error": "mlp reconstruction error",
}  # fmt: skip


def slug_of(cfg: Config) -> str:
    """The graph's name: the prompt's first words and a hash of all that names it."""
    words = "".join(c if c.isalnum() and c.isascii() else "-" for c in cfg.graph.prompt or "").lower()
    whole = f"{cfg.model.label} {cfg.layer} {cfg.link.name} {cfg.graph.prompt}"
    return f"{'-'.join(filter(None, words.split('-')))[:40]}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"


class GraphWriter:
    """The nodes as the format wants them."""

    def __init__(
        self, job: Job, connector: str, tracer: Tracer, trace: Trace, nodes: list[Node], so_far: dict[Node, float]
    ):
        """`connector` is the key of its artifact."""
        self._job, self._connector, self._tracer, self._trace, self._nodes = job, connector, tracer, trace, nodes
        self._names = Names(job)
        self._so_far = so_far
        layer, above = str(job.cfg.layer), str(job.cfg.layer + 1)
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
        return unit.short + (f' "{unit.token}"' if unit.token else "")

    def metadata(self) -> dict[str, Any]:
        cfg, pages, link = self._job.cfg, pages_of(self._job), self._job.link
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
                "connector": self._connector,
                "link": {"sources": link.sources, "target": link.target},
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
