"""A latent's card: what it fires on and what it is wired to, as plain data and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from saelink.activations.cache import shards_of
from saelink.activations.tokens import SPLITS, pull_tokens
from saelink.config.schema import Config
from saelink.connectors.base import Connector
from saelink.errors import SaelinkError
from saelink.evidence.edges import HIDDEN_FILE, HIDDEN_TENSORS_FILE, TARGETS_FILE, EdgeTable, edges, load_edge_table
from saelink.evidence.evaluate import evaluate
from saelink.evidence.hidden_units import hidden, hidden_stream, load_hidden
from saelink.evidence.stability import Stability, repeated
from saelink.evidence.verdicts import Verdicts
from saelink.evidence.verify import verified
from saelink.fit.train import fitted_connector, train
from saelink.latents.examples import (
    OCTAVES,
    WIDTH,
    WINDOW,
    Examples,
    Stream,
    examples,
    load_examples,
    stream_of,
    text_of,
    tokens_around,
)
from saelink.latents.link import Sides, pull_sides
from saelink.latents.rows import Rows, unpack
from saelink.model.describe import model_info
from saelink.model.load import load_tokenizer
from saelink.runtime import device_of
from saelink.saes.neuronpedia import neuronpedia_page
from saelink.store.artifact import Artifact
from saelink.store.store import Store

EXAMPLES_SHOWN = {"top": 8, "random": 4}
"""Examples of a card, besides one of every size."""

EDGES_SHOWN = 12
"""Edges of a card."""

FAINT_PREDICTION = 0.05
"""Predictions nearer to zero than this, in units, are shown as zero: a linear map is never silent."""

BESIDE = 5
"""Sources whose activations stand under a target's examples."""

Card = dict[str, Any]


class _Looked(NamedTuple):
    """A set of latents as the stage `examples` saw them, and where its shown places are."""

    found: Examples
    facts: dict[str, Any]
    places: np.ndarray[Any, Any]
    """[d, n] every place kept."""
    around: np.ndarray[Any, Any]
    """[d, n, WIDTH] in units."""
    kinds: list[str]
    """[n] why it was kept: top, size, random."""

    @staticmethod
    def of(found: Examples, facts: dict[str, Any]) -> _Looked:
        top, size, some = found.top_place.shape[1], found.size_place[0].numel(), found.any_place.shape[1]
        kinds = ["top"] * top + ["size"] * size + ["random"] * some
        return _Looked(found, facts, found.places().numpy(), found.around.float().numpy() / facts["unit"], kinds)

    def shown(self, latent: int) -> list[int]:
        """Columns of the latent's shown places: the strongest, one of every size, some at random; none twice."""
        per_size = self.found.size_place.shape[2]
        first_size = self.kinds.count("top")
        first_random = first_size + self.kinds.count("size")
        columns = [
            *range(min(EXAMPLES_SHOWN["top"], first_size)),
            *range(first_random - per_size, first_size - 1, -per_size),  # the largest size first
            *range(first_random, min(first_random + EXAMPLES_SHOWN["random"], len(self.kinds))),
        ]
        seen: set[int] = {-1}
        chosen = []
        for column in columns:
            place = int(self.places[latent, column])
            if place not in seen:
                seen.add(place)
                chosen.append(column)
        return chosen


class Cards:
    """The cards of one connector's latents; what they need is pulled when it is first asked for."""

    def __init__(self, cfg: Config, store: Store):
        self.cfg, self.store = cfg, store
        self.artifact = train(cfg, store)
        self.connector: Connector = fitted_connector(self.artifact)
        self.has_hidden, self.direct = self.connector.n_hidden > 0, self.connector.direct
        self.evaluation = evaluate(cfg, store)
        self.sides: Sides = pull_sides(cfg, store)
        self.tokens = pull_tokens(cfg, store)
        self.text = text_of(self.tokens)
        self._tokenizer = load_tokenizer(cfg.model, model_info(cfg, store).artifact)
        self._known: dict[int, str] = {}
        self._looked: dict[str, _Looked] = {}
        splits = [self.tokens.tensors(f"{split}.safetensors")["document"].flatten() for split in SPLITS]
        self._document = torch.cat(splits).numpy()
        self._figures = {name: t.tolist() for name, t in self.evaluation.tensors("latents.safetensors").items()}
        self._columns = {latent: column for column, latent in enumerate(self.connector.target_ids.tolist())}
        self.verify = verified(cfg, store)
        self.verdicts = None if self.verify is None else Verdicts(self.verify)
        self.repeated = repeated(cfg, store)
        self.stability = None if self.repeated is None else Stability(self.repeated)
        hooks = [side.facts["hook_name"] for side in [*self.sides.sources, self.sides.target]]
        self._pages = {hook: neuronpedia_page(cfg, store, hook) for hook in hooks}

    # ----------------------------------------------------------------------- names

    def side_of(self, source: int) -> tuple[int, int]:
        """Which source hook a connector's source latent belongs to, and its number there."""
        return self.sides.side_of(source)

    def source_name(self, source: int) -> str:
        """IF17, or with several source hooks IF0.17."""
        return self.sides.source_name(source)

    def source_number(self, text: str) -> int:
        """The connector's source latent of `17` or `0.17`. Raises SaelinkError when there is none."""
        return self.sides.source_number(text, f"show source {text}")

    def input_name(self, number: int) -> str:
        """The name of what the connector's output matrix reads."""
        return self.source_name(number) if number < self.direct else f"H{number - self.direct}"

    def token(self, token_id: int) -> str:
        """A token as text, its blank in front kept."""
        if token_id not in self._known:
            self._known[token_id] = self._tokenizer.decode([token_id])
        return self._known[token_id]

    def top_token(self, side: Artifact | None, latent: int) -> str | None:
        """The token that carries most of a latent's activation; of a hidden unit when `side` is None."""
        top = int(self.looked(side).found.token[latent, 0])
        return self.token(top) if top >= 0 else None

    def _input_token(self, number: int) -> str | None:
        if number >= self.direct:
            return self.top_token(None, number - self.direct)
        place, latent = self.side_of(number)
        return self.top_token(self.sides.sources[place], latent)

    def looked(self, side: Artifact | None) -> _Looked:
        """What a hook's latents fire on; the hidden units for None."""
        key = side.key if side is not None else f"hidden {self.artifact.key}"
        if key not in self._looked:
            if side is None:
                artifact = hidden(self.cfg, self.store)
                self._looked[key] = _Looked.of(load_hidden(artifact)[0], artifact.facts)
            else:
                artifact = examples(self.cfg, self.store, side, self.tokens)
                self._looked[key] = _Looked.of(load_examples(artifact), artifact.facts)
        return self._looked[key]

    # ----------------------------------------------------------------------- whole cards

    def target(self, latent: int) -> Card:
        """The card of a target latent. Raises SaelinkError when the SAE has no such latent."""
        if not 0 <= latent < self.sides.d_target:
            raise SaelinkError(f"show target {latent}: the target SAE has latents 0 to {self.sides.d_target - 1:,}")
        card = self.latent(f"OF{latent}", self.sides.target, latent)
        if latent not in self._columns:
            return {**card, "explained": False}
        return {**card, "explained": True, **self.circuit(latent), "beside": self.beside([latent])[latent]}

    def source(self, latent: int) -> Card:
        """The card of a source latent, by the connector's numbering, with what it feeds most."""
        place, number = self.side_of(latent)
        card = self.latent(self.source_name(latent), self.sides.sources[place], number)
        return {**card, "feeds": self.source_feeds(latent)}

    def source_feeds(self, latent: int) -> list[dict[str, Any]]:
        """What a source latent feeds most: targets, hidden units, or both."""
        layers = [*([self._edges[0]] if self.direct else []), *self._edges[1:]]
        return [fed for layer in layers for fed in self.feeds(layer, latent)]

    def hidden_unit(self, unit: int) -> Card:
        """The card of a hidden unit: its inputs, what they say of it, and the targets it feeds most."""
        card = self.latent(f"H{unit}", None, unit)
        classed = {found.unit: found for found in load_hidden(hidden(self.cfg, self.store))[1]}
        if unit in classed:
            card["classed"] = classed[unit].__dict__
        said = self._said[1][unit]
        terms = self._terms(self._edges[1], unit, self.source_name)
        return {
            **card,
            **terms,
            **self._words(said, self.source_name),
            "feeds": self.feeds(self._edges[0], self.direct + unit),
        }

    # ----------------------------------------------------------------------- what it fires on

    def latent(self, name: str, side: Artifact | None, latent: int, with_examples: bool = True) -> Card:
        """What a latent of a hook (a hidden unit for None) fires on, whatever it is wired to."""
        looked = self.looked(side)
        found, facts = looked.found, looked.facts
        everything = max(found.total[latent].item(), 1e-30)
        tokens = [
            {"token": self.token(token), "share": _short(weight / everything), "fires": fires, "occurs": occurs}
            for token, weight, fires, occurs in zip(
                *(table[latent, :8].tolist() for table in found[found._fields.index("token") :]), strict=True
            )
            if token >= 0 and weight > 0
        ]
        histogram = found.histogram[latent]
        page = self._pages.get(facts["hook_name"])
        return {
            "name": name,
            "hook": facts["hook_name"],
            "latent": latent,
            **({"page": f"{page}/{latent}"} if page else {}),
            "token": tokens[0]["token"] if tokens else None,
            "active": int(histogram.sum()),
            "tokens_seen": facts["n_tokens"],
            "unit": _short(facts["unit"]),
            "histogram": histogram.tolist(),
            "quantiles": {f"{q:g}": _quantile(histogram, q) for q in (0.5, 0.9, 0.99)},
            "tokens": tokens,
            "examples": self._examples(looked, latent) if with_examples else [],
        }

    def _examples(self, looked: _Looked, latent: int) -> list[dict[str, Any]]:
        columns = looked.shown(latent)
        places = looked.places[latent, columns]
        return [
            self.example(int(place), values, looked.kinds[column], looked.facts)
            for place, values, column in zip(places, looked.around[latent, columns], columns, strict=True)
        ]

    def example(self, place: int, values: np.ndarray[Any, Any], kind: str, facts: dict[str, Any]) -> dict[str, Any]:
        """The text around a place and what a latent is there, in units."""
        context = facts["context_size"]
        ids = tokens_around(self.text, np.array(place), context)
        there = ids >= 0
        sequence, position = divmod(place, context)
        split = SPLITS[0]
        for split in SPLITS:
            if sequence < facts["sequences"][split]:
                break
            sequence -= facts["sequences"][split]
        return {
            "kind": kind,
            "split": split,
            "document": int(self._document[place]),
            "position": position,
            "value": _short(float(values[WINDOW])),
            "at": int(there[:WINDOW].sum()),
            "tokens": [self.token(token) for token in ids[there].tolist()],
            "values": _rounded(values[there]),
        }

    # ----------------------------------------------------------------------- what it is wired to

    @cached_property
    def _edge_artifact(self) -> Artifact:
        return edges(self.cfg, self.store)

    @cached_property
    def _edges(self) -> list[EdgeTable]:
        """Of the output layer, then of the hidden layer if there is one."""
        names = ["edges.safetensors", *([HIDDEN_TENSORS_FILE] if self.has_hidden else [])]
        return [load_edge_table(self._edge_artifact, name) for name in names]

    @cached_property
    def _said(self) -> list[list[dict[str, Any]]]:
        names = [TARGETS_FILE, *([HIDDEN_FILE] if self.has_hidden else [])]
        return [self._edge_artifact.json(name) for name in names]

    def circuit(self, latent: int) -> Card:
        """What predicts an explained target, and the logic that data shows."""
        column = self._columns[latent]
        fvu = self._figures["fvu"][latent]
        card = {
            "fvu": _short(fvu) if fvu == fvu else None,
            **self._linear(latent),
            **self._terms(self._edges[0], column, self.input_name),
            **self._words(self._said[0][column], self.input_name),
        }
        if self.has_hidden:
            for edge in card["edges"]:
                if edge["input"] < self.direct:
                    continue
                inner = self._terms(self._edges[1], edge["input"] - self.direct, self.source_name)["edges"][:4]
                edge["edges"] = [{name: term[name] for name in ("name", "weight", "token")} for term in inner]
        if self.verdicts is not None:
            card["missed"] = [
                {"name": self.source_name(source), "input": source, "effect": _short(effect),
                 "token": self._source_token(source)}
                for source, effect in self.verdicts.missed(latent)[:EDGES_SHOWN]
            ]  # fmt: skip
        return card

    def _linear(self, latent: int) -> dict[str, float]:
        """Of a target that hidden units help to predict, the share of what is explained that is linear."""
        share = self._figures["linear"][latent] if "linear" in self._figures else float("nan")
        return {"linear": _short(share)} if share == share else {}

    def _verdict(self, number: int, latent: int) -> dict[str, Any]:
        """What ablating a source in the model, and fits on other documents, say of its edge, where these were made."""
        found = None if self.verdicts is None or number >= self.direct else self.verdicts.of(number, latent)
        said = {} if found is None else {"claim": _short(found[0]), "effect": _short(found[1]), "verdict": found[2]}
        chosen = None if self.stability is None else self.stability.of(number, latent)
        return said if chosen is None else {**said, "chosen": _short(chosen)}

    def figures(self, name: str) -> list[float]:
        """By target latent a figure of the evaluation: fvu, mse, variance, active."""
        return self._figures[name]

    def word(self, number: int, layer: int = 0) -> str | None:
        """The word for a target's logic, or with layer 1 for a hidden unit's; None for what is not explained."""
        column = self._columns.get(number) if layer == 0 else number
        return None if column is None else self._said[layer][column]["logic"]["word"]

    def columns(self, terms: int) -> dict[str, list[Any]]:
        """By latent of the target SAE: number of edges, word, first terms: input, weight, verdict if any."""
        found = self._edges[0]
        n_edges: list[int | None] = [None] * self.sides.d_target
        words: list[str | None] = [None] * self.sides.d_target
        formula: list[list[Any] | None] = [None] * self.sides.d_target
        for latent, column in self._columns.items():
            mine, order = self._order(found, column)
            n_edges[latent] = mine.stop - mine.start
            words[latent] = self.word(latent)
            sources, weights = found.source[mine], found.weight[mine]
            terms_of: list[Any] = []
            for i in order[:terms]:
                source = int(sources[i])
                verdict = self._verdict(source, latent).get("verdict")
                terms_of.append([source, float(f"{weights[i].item():.3g}"), *([verdict] if verdict else [])])
            formula[latent] = terms_of
        return {"n_edges": n_edges, "word": words, "formula": formula}

    def _order(self, found: EdgeTable, column: int) -> tuple[slice, list[int]]:
        mine = slice(int(found.offsets[column]), int(found.offsets[column + 1]))
        order = found.weight[mine].abs().sort(descending=True, stable=True).indices[:EDGES_SHOWN]
        return mine, order.tolist()

    def _terms(self, found: EdgeTable, column: int, name: Any) -> dict[str, Any]:
        """The strongest edges into a column, by magnitude."""
        mine, order = self._order(found, column)
        inner = name == self.input_name
        terms = []
        for i in order:
            source, rise = int(found.source[mine][i]), found.rise[mine][i].item()
            term = {
                "name": name(source),
                "input": source,
                "weight": _short(found.weight[mine][i].item()),
                "rise": _short(rise) if rise == rise else None,
                "both": int(found.both[mine][i]),
                "token": self._input_token(source) if inner else self._source_token(source),
            }
            if found is self._edges[0]:
                term |= self._verdict(source, int(found.target_ids[column]))
            terms.append(term)
        return {"edges": terms, "n_edges": mine.stop - mine.start}

    def _source_token(self, number: int) -> str | None:
        place, latent = self.side_of(number)
        return self.top_token(self.sides.sources[place], latent)

    def _words(self, said: dict[str, Any], name: Any) -> dict[str, Any]:
        """What the stage `edges` says of a target, its inputs named."""

        def named(numbers: list[int]) -> list[str]:
            return [name(number) for number in numbers]

        logic = said["logic"]
        card: dict[str, Any] = {
            "fired": said["fired"],
            "logic": {
                "word": logic["word"],
                "inputs": named(logic["inputs"]),
                "covered": logic["covered"],
                "evidence": [
                    {
                        "on": named(e["on"]),
                        "off": named(e["off"]),
                        "tokens": e["tokens"],
                        "fired": e["fired"],
                        "texts": [self._text(row) for row in e["rows"]],
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
                    "texts": [self._text(row) for row in cluster["rows"]],
                }
                for cluster in said["clusters"]["clusters"]
            ]
            card["clusters"] = {**said["clusters"], "clusters": clusters}
        return card

    def _text(self, row: int) -> dict[str, Any]:
        """The text around a row of the test split."""
        facts = self.sides.target.facts
        place = sum(facts["sequences"][split] for split in SPLITS[:-1]) * facts["context_size"] + row
        ids = tokens_around(self.text, np.array(place), facts["context_size"])
        return {"at": int((ids[:WINDOW] >= 0).sum()), "tokens": [self.token(i) for i in ids[ids >= 0].tolist()]}

    @cached_property
    def _by_source(self) -> dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """For each layer's edges: in the order of their source, their columns, and where each source's begin."""
        found = {}
        for layer in self._edges:
            column_of = torch.repeat_interleave(torch.arange(len(layer.offsets) - 1), layer.offsets.diff())
            order = torch.sort(layer.source, stable=True).indices
            begins = torch.zeros(int(layer.source.max()) + 2 if len(order) else 1, dtype=torch.int64)
            torch.cumsum(torch.bincount(layer.source[order].long()), 0, out=begins[1:])
            found[id(layer)] = (order, column_of, begins)
        return found

    def feeds(self, layer: EdgeTable, number: int) -> list[dict[str, Any]]:
        """The strongest edges out of an input: into targets, or from a source latent into hidden units."""
        order, column_of, begins = self._by_source[id(layer)]
        if number + 1 >= len(begins):
            return []
        mine = order[begins[number] : begins[number + 1]]
        mine = mine[layer.weight[mine].abs().sort(descending=True, stable=True).indices[:EDGES_SHOWN]]
        outer = layer is self._edges[0]
        fed = []
        for edge in mine.tolist():
            latent = int(layer.target_ids[column_of[edge]])
            side = self.sides.target if outer else None
            rise = layer.rise[edge].item()
            fed.append(
                {
                    "name": f"OF{latent}" if outer else f"H{latent}",
                    "weight": _short(layer.weight[edge].item()),
                    "rise": _short(rise) if rise == rise else None,
                    "token": self.top_token(side, latent),
                    **(self._verdict(number, latent) if outer else {}),
                }
            )
        return fed

    # ----------------------------------------------------------------------- edges side by side

    def beside(self, targets: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
        """Under each example of these targets: what was predicted there, and what its first inputs are.

        By target a list as long as the card's examples, of `predicted` and `inputs` (names and values), in units.
        """
        looked = self.looked(self.sides.target)
        context = looked.facts["context_size"]
        asked: list[tuple[int, int]] = [
            (latent, int(looked.places[latent, column])) for latent in targets for column in looked.shown(latent)
        ]
        inputs = {
            latent: [int(self._edges[0].source[mine][i]) for i in order[:BESIDE]]
            for latent in targets
            for mine, order in [self._order(self._edges[0], self._columns[latent])]
        }
        places = np.array([place for _, place in asked], np.int64)
        predicted = self._predicted(places, np.array([self._columns[latent] for latent, _ in asked]))
        pairs = [(r, number) for r, (latent, _) in enumerate(asked) for number in inputs[latent]]
        windows = self._input_windows(
            places[[r for r, _ in pairs]], np.array([number for _, number in pairs], np.int64)
        )
        shown = tokens_around(self.text, places, context) >= 0 if len(places) else np.zeros((0, WIDTH), bool)
        found: dict[int, list[dict[str, Any]]] = {latent: [] for latent in targets}
        by_request: dict[int, list[int]] = {}
        for p, (r, _) in enumerate(pairs):
            by_request.setdefault(r, []).append(p)
        for r, (latent, _) in enumerate(asked):
            found[latent].append(
                {
                    "predicted": _rounded(np.where(np.abs(predicted[r]) < FAINT_PREDICTION, 0, predicted[r])[shown[r]]),
                    "inputs": [
                        {"name": self.input_name(pairs[p][1]), "values": _rounded(windows[p][shown[r]])}
                        for p in by_request.get(r, [])
                    ],
                }
            )
        return found

    def _source_rows(self, shard: Any) -> Rows:
        """The scaled source latents of a shard, all positions."""
        parts = [
            unpack(side.tensors(shard.name), side.facts["d_sae"]).scaled(1 / scale)
            for side, scale in zip(self.sides.sources, self.sides.scales, strict=False)
        ]
        return Rows.beside(parts)

    def _predicted(self, places: np.ndarray[Any, Any], columns: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[m, WIDTH] predictions of columns[r] on the tokens around places[r]."""
        facts = self.sides.target.facts
        context = facts["context_size"]
        rows = places[:, None] + np.arange(-WINDOW, WINDOW + 1)
        inside = rows // context == places[:, None] // context
        wanted, column = rows[inside], np.broadcast_to(columns[:, None], rows.shape)[inside]
        order = np.argsort(wanted, kind="stable")
        ranked = wanted[order]
        values = np.zeros(len(wanted), np.float32)
        device = device_of(self.cfg)
        connector = self.connector.to(device)
        stream = stream_of(self.sides.target, self.cfg.data.drop_positions)
        with torch.inference_mode():
            for shard in shards_of(facts["sequences"], context):
                start = stream.begins[shard.split] + shard.first * context
                stop = start + (shard.last - shard.first) * context
                here = order[slice(*np.searchsorted(ranked, [start, stop]))]
                if not len(here):
                    continue
                sources = self._source_rows(shard)
                unique, place = np.unique(wanted[here] - start, return_inverse=True)
                for first in range(0, len(unique), 1024):
                    chosen = (place >= first) & (place < first + 1024)
                    part = sources.select(torch.from_numpy(unique[first : first + 1024]))
                    z = connector(part.to(device)).cpu().numpy()
                    values[here[chosen]] = z[place[chosen] - first, column[here[chosen]]]
        connector.to("cpu")
        out = np.zeros(rows.shape, np.float32)
        out[inside] = values * (self.sides.scales[-1] / stream.unit)
        return out

    def _input_windows(self, places: np.ndarray[Any, Any], numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[m, WIDTH] what input numbers[r] is on the tokens around places[r], in its units."""
        out = np.zeros((len(places), WIDTH), np.float32)
        units = (numbers >= self.direct).nonzero()[0]
        if len(units):
            stream = self._hidden_stream
            out[units] = stream.windows(places[units], numbers[units] - self.direct) / stream.unit
        first = 0
        for side in self.sides.sources if self.direct else ():
            mine = ((numbers >= first) & (numbers < first + side.facts["d_sae"])).nonzero()[0]
            stream = stream_of(side, self.cfg.data.drop_positions)
            out[mine] = stream.windows(places[mine], numbers[mine] - first) / stream.unit
            first += side.facts["d_sae"]
        return out

    @property
    def _hidden_stream(self) -> Stream:
        unit = hidden(self.cfg, self.store).facts["unit"]
        return hidden_stream(self.connector, self.sides, unit, SPLITS)


def _short(value: float) -> float:
    """Four digits: what is shown."""
    return float(f"{value:.4g}")


def _rounded(values: Any) -> list[float]:
    """Two decimals, in units."""
    return np.round(values.astype(np.float64), 2).tolist()


def _quantile(histogram: torch.Tensor, share: float) -> float | None:
    """In units: the upper end of the quarter octave in which this share of the activations is reached."""
    total = int(histogram.sum())
    if not total:
        return None
    place = int((histogram.cumsum(0) >= share * total).nonzero()[0])
    return _short(2.0 ** ((place + 1 - 2 * OCTAVES) / 4))
