"""What latents are wired to, as cards show it: edges, logic, verdicts, what a source feeds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, cast

import torch

from saelink.connectors.base import Connector
from saelink.evidence.edges import (
    HIDDEN_FILE,
    HIDDEN_TENSORS_FILE,
    TARGETS_FILE,
    EdgesStage,
    EdgeTable,
    load_edge_table,
)
from saelink.evidence.effectiveness import outputs_found
from saelink.evidence.evaluate import EvaluateStage
from saelink.evidence.logic_trials import TriedLogic, logic_trials
from saelink.evidence.stability import Stability, repeated
from saelink.evidence.verdicts import Verdicts
from saelink.evidence.verify import verdicts_of
from saelink.fit.train import TrainStage, fitted_connector
from saelink.job import Job
from saelink.latents.encode import EncodeFacts
from saelink.latents.rows import offsets_of
from saelink.report.cards.firing import Firing, short
from saelink.report.structure import Circuit, Edge, Wired
from saelink.store.artifact import Artifact

EDGES_SHOWN = 12
"""Edges of a card."""

Name = Callable[[int], str]


class Wiring:
    """The edges of one connector, and what was found out about them."""

    def __init__(self, job: Job, firing: Firing):
        self._job, self._firing, self.sides = job, firing, job.sides
        self.artifact = TrainStage(job).pull()
        self.connector: Connector = fitted_connector(self.artifact)
        self.has_hidden, self.direct = self.connector.n_hidden > 0, self.connector.direct
        self.evaluation = EvaluateStage(job).pull()
        self._figures = {name: t.tolist() for name, t in self.evaluation.tensors("latents.safetensors").items()}
        self.columns_of = {latent: column for column, latent in enumerate(self.connector.target_ids.tolist())}
        self.verify = verdicts_of(job)
        self.verdicts = None if self.verify is None else Verdicts(self.verify)
        self.outputs = outputs_found(job)
        self.repeated = repeated(job)
        self._known: dict[tuple[int, int], dict[str, Any]] = {}
        self._trials = logic_trials(job)
        self.stability = None if self.repeated is None else Stability(self.repeated)

    def input_name(self, number: int) -> str:
        """The name of what the connector's output matrix reads."""
        return self.sides.source_name(number) if number < self.direct else f"H{number - self.direct}"

    def target_token(self, latent: int) -> str | None:
        return self._firing.names.unit("target", latent).token

    def source_token(self, number: int) -> str | None:
        return self._firing.names.unit("source", number).token

    def hidden_token(self, unit: int) -> str | None:
        return self._firing.hidden_token(self._job, unit)

    def _input_token(self, number: int) -> str | None:
        return self.source_token(number) if number < self.direct else self.hidden_token(number - self.direct)

    @cached_property
    def _stage(self) -> Any:
        return EdgesStage(self._job).pull()

    @cached_property
    def tables(self) -> list[EdgeTable]:
        """The edges of the output layer, then of the hidden layer if there is one."""
        names = ["edges.safetensors", *([HIDDEN_TENSORS_FILE] if self.has_hidden else [])]
        return [load_edge_table(self._stage, name) for name in names]

    @cached_property
    def _lines(self) -> list[list[bytes]]:
        """What the stage `edges` finds that each target, and each hidden unit, computes: JSON, read when asked for."""
        names = [TARGETS_FILE, *([HIDDEN_FILE] if self.has_hidden else [])]
        return [self._stage.file(name).read_bytes().splitlines() for name in names]

    def _computed(self, layer: int, column: int) -> dict[str, Any]:
        """What a target (layer 0) or a hidden unit (layer 1) computes."""
        if (layer, column) not in self._known:
            self._known[layer, column] = json.loads(self._lines[layer][column])
        return self._known[layer, column]

    def circuit(self, latent: int) -> Circuit:
        """What predicts an explained target, and the logic that data shows."""
        column = self.columns_of[latent]
        fvu = self._figures["fvu"][latent]
        card: dict[str, Any] = {
            "fvu": short(fvu) if not math.isnan(fvu) else None,
            **self._linear(latent),
            **self.terms(latent),
            **self._words(self._computed(0, column), self.input_name),
        }
        card["logic"] |= _tested(self._trials, latent, self.input_name)
        if self.verdicts is not None:
            card["missed"] = [
                {"name": self.sides.source_name(source), "input": source, "effect": short(effect),
                 "token": self.source_token(source)}
                for source, effect in self.verdicts.missed(latent)[:EDGES_SHOWN]
            ]  # fmt: skip
        return cast("Circuit", card)

    def terms(self, latent: int) -> dict[str, Any]:
        """The strongest edges into an explained target, those of hidden units with what leads into them."""
        found = self._terms(self.tables[0], self.columns_of[latent], self.input_name)
        for edge in [each for each in found["edges"] if each["input"] >= self.direct]:
            inner = self._terms(self.tables[1], edge["input"] - self.direct, self.sides.source_name)["edges"][:4]
            edge["edges"] = [{name: term[name] for name in ("name", "weight", "token")} for term in inner]
        return found

    def hidden_circuit(self, unit: int) -> Wired:
        """What leads into a hidden unit, and what it computes from it."""
        terms = self._terms(self.tables[1], unit, self.sides.source_name)
        return cast("Wired", {**terms, **self._words(self._computed(1, unit), self.sides.source_name)})

    def fed(self, d_source: int) -> list[int]:
        """By source latent how many edges lead from it: into targets, hidden units, or both."""
        layers = [*([self.tables[0]] if self.direct else []), *self.tables[1:]]
        sources = [layer.source[layer.source < d_source].long() for layer in layers]
        return torch.bincount(torch.cat(sources), minlength=d_source).tolist()

    def source_feeds(self, latent: int) -> list[Edge]:
        """What a source latent feeds most: targets, hidden units, or both."""
        layers = [*([self.tables[0]] if self.direct else []), *self.tables[1:]]
        return [fed for layer in layers for fed in self.feeds(layer, latent)]

    def _linear(self, latent: int) -> dict[str, float]:
        """Of a target that hidden units help to predict, the share of what is explained that is linear."""
        share = self._figures["linear"][latent] if "linear" in self._figures else float("nan")
        return {"linear": short(share)} if not math.isnan(share) else {}

    def verdict(self, number: int, latent: int) -> dict[str, Any]:
        """What ablating a source in the model, and fits on other documents, say of its edge, where these were made."""
        found = None if self.verdicts is None or number >= self.direct else self.verdicts.of(number, latent)
        said = {} if found is None else {"claim": short(found[0]), "effect": short(found[1]), "verdict": found[2]}
        chosen = None if self.stability is None else self.stability.of(number, latent)
        said = said if chosen is None else {**said, "chosen": short(chosen)}
        owed = None if self.outputs is None or number >= self.direct else self.outputs.of(number, latent)
        return said if owed is None else {**said, **{name: short(value) for name, value in owed._asdict().items()}}

    def figures(self, name: str) -> list[float]:
        """By target latent a figure of the evaluation: fvu, mse, variance, active."""
        return self._figures[name]

    def word(self, number: int, layer: int = 0) -> str | None:
        """The word for a target's logic, or with layer 1 for a hidden unit's; None for what is not explained."""
        column = self.columns_of.get(number) if layer == 0 else number
        return None if column is None else self._computed(layer, column)["logic"]["word"]

    def fired(self, number: int) -> int:
        """Test tokens on which an explained target is above its noise."""
        return self._computed(0, self.columns_of[number])["fired"]

    @cached_property
    def input_totals(self) -> torch.Tensor:
        """[inputs] what each input of the output matrix comes to over the text, in the units of the weights."""
        totals = (
            [
                _by_column(self._firing, side) / scale
                for side, scale in zip(self.sides.sources, self.sides.scales, strict=False)
            ]
            if self.direct
            else []
        )
        if self.has_hidden:
            totals.append(self._firing.hidden(self._job).tops.total.double())
        return torch.cat(totals)

    def confirmed(self, number: int) -> bool | None:
        """Whether every edge that a target's logic names is confirmed; None without verdicts or names."""
        column = self.columns_of.get(number)
        return None if column is None else self._computed(0, column)["logic"]["confirmed"]

    def strongest(self, found: EdgeTable, column: int) -> tuple[slice, list[int]]:
        mine = slice(int(found.offsets[column]), int(found.offsets[column + 1]))
        order = found.weight[mine].abs().sort(descending=True, stable=True).indices[:EDGES_SHOWN]
        return mine, order.tolist()

    def _terms(self, found: EdgeTable, column: int, name: Name) -> dict[str, Any]:
        """The strongest edges into a column, by magnitude."""
        mine, order = self.strongest(found, column)
        inner = name == self.input_name
        terms = []
        for i in order:
            source, rise = int(found.source[mine][i]), found.rise[mine][i].item()
            term = {
                "name": name(source),
                "input": source,
                "weight": short(found.weight[mine][i].item()),
                "rise": short(rise) if not math.isnan(rise) else None,
                "both": int(found.both[mine][i]),
                "token": self._input_token(source) if inner else self.source_token(source),
            }
            if found is self.tables[0]:
                term |= self.verdict(source, int(found.target_ids[column]))
            terms.append(term)
        return {"edges": terms, "n_edges": mine.stop - mine.start}

    def _words(self, said: dict[str, Any], name: Name) -> dict[str, Any]:
        """What the stage `edges` says of a target, its inputs named."""

        def named(numbers: list[int]) -> list[str]:
            return [name(number) for number in numbers]

        logic = said["logic"]
        card: dict[str, Any] = {
            "fired": said["fired"],
            "logic": {
                "word": logic["word"],
                "confirmed": logic["confirmed"],
                "inputs": named(logic["inputs"]),
                "covered": logic["covered"],
                "evidence": [
                    {
                        "on": named(e["on"]),
                        "off": named(e["off"]),
                        "tokens": e["tokens"],
                        "fired": e["fired"],
                        "texts": [self._firing.quote(row) for row in e["rows"]],
                    }
                    for e in logic["evidence"]
                ],
            },
        }
        if said["silent"]:
            silent = said["silent"]
            inputs = [{**entry, "name": name(entry["input"])} for entry in silent["inputs"]]
            card["silent"] = {**silent, "leader": name(silent["leader"]), "inputs": inputs}
        if "scatter" in said:
            card["scatter"] = {**said["scatter"], "inputs": named(said["scatter"]["inputs"])}
        if said.get("clusters"):
            clusters = [
                {
                    "tokens": cluster["tokens"],
                    "inputs": [[name(number), weight] for number, weight in cluster["inputs"]],
                    "texts": [self._firing.quote(row) for row in cluster["rows"]],
                }
                for cluster in said["clusters"]["clusters"]
            ]
            card["clusters"] = {**said["clusters"], "clusters": clusters}
        return card

    @cached_property
    def _by_source(self) -> dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """For each layer's edges: in the order of their source, their columns, and where each source's begin."""
        found = {}
        for layer in self.tables:
            column_of = torch.repeat_interleave(torch.arange(len(layer.offsets) - 1), layer.offsets.diff())
            order = torch.sort(layer.source, stable=True).indices
            begins = offsets_of(torch.bincount(layer.source.long()))
            found[id(layer)] = (order, column_of, begins)
        return found

    def feeds(self, layer: EdgeTable, number: int) -> list[Edge]:
        """The strongest edges out of an input: into targets, or from a source latent into hidden units."""
        order, column_of, begins = self._by_source[id(layer)]
        if number + 1 >= len(begins):
            return []
        mine = order[begins[number] : begins[number + 1]]
        mine = mine[layer.weight[mine].abs().sort(descending=True, stable=True).indices[:EDGES_SHOWN]]
        outer = layer is self.tables[0]
        fed = []
        for edge in mine.tolist():
            latent = int(layer.target_ids[column_of[edge]])
            rise = layer.rise[edge].item()
            fed.append(
                {
                    "name": self.sides.target_name(latent) if outer else f"H{latent}",
                    "weight": short(layer.weight[edge].item()),
                    "rise": short(rise) if not math.isnan(rise) else None,
                    "token": self.target_token(latent) if outer else self.hidden_token(latent),
                    **(self.verdict(number, latent) if outer else {}),
                }
            )
        return cast("list[Edge]", fed)


def _tested(found: Mapping[str, TriedLogic] | None, latent: int, name: Name) -> dict[str, Any]:
    """How a target's logic stood up to interventions, where `saelink verify` tested it."""
    tried = None if found is None else found.get(str(latent))
    if tried is None:
        return {}
    trials = [
        {**trial, **{role: [name(number) for number in trial[role]] for role in ("on", "off", "gone")}}
        for trial in tried["trials"]
    ]
    return {"tested": {"outcome": tried["outcome"], "trials": trials}}


def _by_column(firing: Firing, side: Artifact[EncodeFacts]) -> torch.Tensor:
    """What each column of a side comes to; one of moved latents has every latent once for each head."""
    total = firing.looked(side).tops.total.double()
    return total.repeat(side.facts["d_sae"] // len(total))
