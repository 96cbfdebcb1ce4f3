"""A pruned graph over layers in the format that circuit-tracer's front end and Neuronpedia read.

Those draw a row for each `layer`: here three of them for each layer of the model, attention's latents, what the MLP
reads, what it gives. What a node is really of stands in its `saelink`.
"""

from __future__ import annotations

import hashlib
from typing import Any

from saelink import __version__
from saelink.circuits.influence import Influence, Kept
from saelink.circuits.layers import LayerJobs
from saelink.circuits.nodes import LayerNames, Node, node_of
from saelink.circuits.prompt import Prompt
from saelink.circuits.supernodes import supernodes_of
from saelink.share.graph.write import cantor

ROWS = {"attn": 0, "attn_error": 0, "source": 1, "source_error": 1, "mlp": 2, "mlp_error": 2}

LATENTS = ("attn", "source", "mlp")

WRONG = {
    "attn_error": "attention, not rebuilt by its SAE",
    "mlp_error": "the MLP, not rebuilt by its SAE",
    "source_error": "the MLP's targets, not from its edges",
}


def slug_of(jobs: LayerJobs, prompt: str) -> str:
    """The graph's name: the prompt's first words and a hash of all that names it."""
    cfg = jobs.job.cfg
    words = "".join(c if c.isalnum() and c.isascii() else "-" for c in prompt).lower()
    whole = f"{cfg.model.label} {jobs.layers} {cfg.circuit} {prompt}"
    return f"{'-'.join(filter(None, words.split('-')))[:40]}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"


class LayeredWriter:
    """The nodes as the format wants them."""

    def __init__(self, jobs: LayerJobs, names: LayerNames, prompt: Prompt, influence: Influence, kept: Kept):
        self._jobs, self._names, self._prompt, self._influence, self._kept = jobs, names, prompt, influence, kept
        self._tokens = jobs.job.vocabulary
        self.nodes = {int(index): node_of(prompt, int(index)) for index in kept.nodes}
        self.ids = {index: self._id(node) for index, node in self.nodes.items()}
        self.groups = supernodes_of(self.nodes, kept, influence, jobs.job.cfg.circuit.alike)

    def _row(self, node: Node) -> str:
        if node.kind == "token":
            return "E"
        if node.kind == "logit":
            return str(3 * self._jobs.job.model.n_layers + 1)
        return str(3 * node.layer + ROWS[node.kind])

    def _id(self, node: Node) -> str:
        return f"{self._row(node)}_{node.number}_{node.position}"

    def text(self, token: int) -> str:
        """A token as text, its blank in front kept."""
        return self._tokens[token] if token < len(self._tokens) else f"<{token}>"

    def label(self, index: int) -> str:
        node = self.nodes[index]
        if node.kind == "logit":
            return f'Output "{self.text(node.number)}" (p={self._probability(index):.3f})'
        if node.kind == "token":
            return f'"{self.text(node.number)}"'
        if node.kind in WRONG:
            explained = node.layer in self._jobs.layers and (node.kind != "attn_error" or self._jobs.attention)
            return f"L{node.layer} " + (WRONG[node.kind] if explained else f"{node.kind[:4].strip('_')}, not explained")
        return self._names.label(node)

    def _probability(self, index: int) -> float:
        gradients = self._prompt.gradients
        assert gradients is not None
        return gradients.probabilities[index - self._prompt.logit_begin]

    def node(self, index: int) -> dict[str, Any]:
        node, row = self.nodes[index], self._row(self.nodes[index])
        kind = {"token": "embedding", "logit": "logit"}.get(node.kind)
        if kind is None:
            kind = "cross layer transcoder" if node.kind in LATENTS else "mlp reconstruction error"
        found: dict[str, Any] = {
            "node_id": self.ids[index],
            "feature": node.number,
            "layer": row,
            "ctx_idx": node.position,
            "feature_type": kind,
            "token_prob": 0.0,
            "is_target_logit": False,
            "run_idx": 0,
            "reverse_ctx_idx": 0,
            "jsNodeId": f"{row}_{node.number}-{node.position}",
            "clerp": self.label(index),
            "influence": self._kept.so_far.get(index),
            "activation": self._prompt.activation[index].item() or None,
            "saelink": {
                "kind": node.kind,
                "layer": node.layer,
                "number": node.number,
                "influence": self._influence.value[index].item(),
                "error": self._influence.error[index].item() if bool(self._influence.whole[index] > 0) else None,
            },
        }
        if node.kind in LATENTS:
            found["feature"] = cantor(int(row), node.number)
            found["jsNodeId"] = f"{row}_{node.number}-0"
            if page := self._names.page(node):
                found["vis_link"] = page
        if node.kind == "token":
            found["feature"] = node.position
        if node.kind == "logit":
            found["token_prob"] = self._probability(index)
            found["is_target_logit"] = index == self._prompt.logit_begin
            found["jsNodeId"] = f"L_{node.number}-{node.position}"
        return found

    def document(self, text: str, node_threshold: float, connectors: dict[str, str]) -> dict[str, Any]:
        """The whole file."""
        jobs, kept, scores = self._jobs, self._kept, self._influence.scores
        known = {page.split("/")[-2] for page in self._names.pages.values() if page}
        metadata = {
            "slug": slug_of(jobs, text),
            "scan": known.pop() if len(known) == 1 else jobs.job.cfg.model.label,
            "transcoder_list": [],
            "prompt_tokens": [self.text(int(token)) for token in self._prompt.ids],
            "prompt": text,
            "node_threshold": node_threshold,
            "schema_version": 1,
            "info": {"generator": {"name": "saelink", "version": __version__}},
            "saelink": {
                "layers": jobs.layers,
                "edges": jobs.job.cfg.circuit.edges.name,
                "connectors": connectors,
                "scores": scores._asdict(),
                "kept": kept.share,
                "pages": {
                    self.ids[index]: page
                    for index, node in self.nodes.items()
                    if node.kind in LATENTS and (page := self._names.page(node))
                },
            },
        }
        return {
            "metadata": metadata,
            "qParams": {
                "pinnedIds": [],
                "supernodes": [
                    [f"{self.label(group[0])} and {len(group) - 1} more", *(self.ids[index] for index in group)]
                    for group in self.groups
                ],
                "linkType": "both",
                "clickedId": "",
                "sg_pos": "",
            },
            "nodes": [self.node(index) for index in self.nodes],
            "links": [
                {"source": self.ids[s], "target": self.ids[t], "weight": w}
                for s, t, w in zip(kept.source.tolist(), kept.target.tolist(), kept.weight.tolist(), strict=True)
            ],
        }

    def lines(self) -> list[str]:
        """The most influential latents, and what each is made of, for people."""
        value = self._influence.value
        latents = [index for index, node in self.nodes.items() if node.kind in LATENTS]
        lines: list[str] = []
        for index in sorted(latents, key=lambda i: -float(value[i]))[:8]:
            at = self.text(int(self._prompt.ids[self.nodes[index].position]))
            lines.append(f'{float(value[index]):4.0%} {self.label(index)} at "{at}"')
            mine = (self._kept.target == index).nonzero().flatten()
            mine = mine[self._kept.weight[mine].abs().argsort(descending=True)][:3]
            whole = float(self._influence.whole[index])
            for link in mine.tolist():
                source = int(self._kept.source[link])
                here = self.nodes[source].position == self.nodes[index].position
                where = "" if here else f' at "{self.text(int(self._prompt.ids[self.nodes[source].position]))}"'
                lines.append(f"         {float(self._kept.weight[link]) / whole:+.0%} {self.label(source)}{where}")
        return ["".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in line) for line in lines]
