"""A connector for others: a folder that loads without Hydra, its edges as tables and graphs: the stage `export`."""

from __future__ import annotations

import html
import io
import json
import math
import re
from functools import cached_property
from typing import Any, TypedDict

import torch

from saelink import memory
from saelink.config.schema import Config
from saelink.connectors.exported import CONFIG_FILE, WEIGHTS_FILE, exported_config
from saelink.evidence.edges import HIDDEN_TENSORS_FILE, EdgesStage, EdgeTable, load_edge_table
from saelink.evidence.effectiveness import EffectivenessStage, Outputs, has_outputs
from saelink.evidence.evaluate import EvaluateFacts, EvaluateStage
from saelink.evidence.labels import load_labels
from saelink.evidence.logic_trials import found_trials
from saelink.evidence.moved_cards import MovedCardsFacts, load_moved_cards, moved_cards_of
from saelink.evidence.names import Names, names_inputs, pages_of
from saelink.fit.train import TrainFacts, TrainStage, fitted_connector
from saelink.job import Job, JobStage
from saelink.share.heads import ABOUT_HEADS, write_heads
from saelink.share.logic import LOGIC_COLUMNS, logic_rows
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.files import csv_bytes, file_sha256
from saelink.store.stage import Need


class ExportFacts(TypedDict):
    edges: int


class ExportStage(JobStage[ExportFacts]):
    """A connector as others read it.

    Files: `connector.safetensors` and `cfg.json`, all that `load_connector` needs; `README.md`, its card with the test
    figures; `edges.csv` and `edges.parquet`, a row an edge: target, source, weight, the rise of the target's FVU on
    test tokens without it, test tokens on which both are active, the top token of both, their pages on Neuronpedia;
    after `saelink verify` also what the model's output owes to the edge, effectiveness and helpfulness;
    `graph.graphml` and `graph.json` (node-link), the same as a graph; `logic.csv`, a row for each target that the
    counts give a word, and after `saelink verify` whether it holds in the model. For a connector with hidden units the
    edges into hidden units are in a file of their own. For link=ov `heads.csv` and `heads.json` have the computed
    edges by head, with the distances that they reach over (see share/heads.py).
    """

    name = "export"
    version = 4

    def __init__(self, job: Job):
        super().__init__(job)
        self._train, self._evaluate, self._edges = TrainStage(job), EvaluateStage(job), EdgesStage(job)
        outputs = EffectivenessStage(job) if has_outputs(job.cfg) else None
        self._outputs = outputs if outputs is not None and outputs.find() is not None else None

    @cached_property
    def _heads(self) -> Artifact[MovedCardsFacts] | None:
        return moved_cards_of(self.job)

    @property
    def device(self) -> str:
        return "cpu"

    def recipe(self) -> dict[str, Any]:
        cfg = self.job.cfg
        said = {"model": cfg.model.name, "data": cfg.data.name, "layer": cfg.layer, "link": cfg.link.name}
        labels = load_labels(cfg.report.labels)
        own = {} if labels is None else {"labels": labels.sha256}
        return {**said, "pages": pages_of(self.job), **own}  # the card and the tables have them

    def inputs(self) -> dict[str, str]:
        found = {"connector": self._train.key, "evaluation": self._evaluate.key, "edges": self._edges.key}
        if self._outputs is not None:
            found["outputs"] = self._outputs.key
        if self._heads is not None:
            found["heads"] = self._heads.key
        trials = found_trials(self.job)
        tested = {} if trials is None else {"trials": trials.key}
        return {**found, **tested, **names_inputs(self.job)}

    def about(self) -> str:
        return self._evaluate.about()

    def need(self) -> Need:
        needed = memory.exported(self._train.pull().facts["n_edges"])
        needed += 0.0 if self._heads is None else memory.moved_page(self._heads.size)
        return Need(needed, "use a larger l1_alpha, which keeps fewer edges")

    def make(self, draft: Draft) -> ExportFacts:
        job = self.job
        connector, evaluation, table = self._train.pull(), self._evaluate.pull(), self._edges.pull()
        draft.save_tensors(WEIGHTS_FILE, connector.tensors(WEIGHTS_FILE))
        config = connector.json(CONFIG_FILE) | {"model": job.cfg.model.name}
        draft.save_json(CONFIG_FILE, exported_config(config, file_sha256(draft.folder / WEIGHTS_FILE)))
        names = Names(job)
        labels = _labels_of(job)
        fitted = fitted_connector(connector)
        outputs = self._outputs.pull() if self._outputs is not None else None
        owed = None if outputs is None else Outputs(outputs)
        count = _write_edges(draft, "edges", load_edge_table(table), names, "target", fitted.direct, labels, owed)
        if fitted.n_hidden:
            inner = load_edge_table(table, HIDDEN_TENSORS_FILE)
            count += _write_edges(draft, "hidden_edges", inner, names, "hidden", fitted.d_source, labels)
        draft.save_bytes("logic.csv", csv_bytes(LOGIC_COLUMNS, logic_rows(job, names)))
        if self._heads is not None:
            write_heads(draft, load_moved_cards(self._heads), names)
        card = _card(job.cfg, connector, evaluation) + (ABOUT_HEADS if self._heads is not None else "")
        draft.save_bytes("README.md", card.encode())
        return {"edges": count}


COLUMNS: list[str] = [
    "target", "source", "weight", "fvu_rise", "both_active", "target_hook", "source_hook", "target_token",
    "source_token", "target_page", "source_page",
]  # fmt: skip


LABELS = ["target_label", "source_label"]
"""Further columns where report.labels names a file: the user's own labels."""

OWED = ["effectiveness", "helpfulness", "helpfulness_error"]
"""Further columns where `saelink verify` measured them: what the model's output owes to the edge, nats a token."""

OwnLabels = dict[tuple[str, int], str]
"""By hook and latent."""


def _labels_of(job: Job) -> OwnLabels | None:
    """The user's own labels of the link's latents; None without a file of them."""
    labels = load_labels(job.cfg.report.labels)
    if labels is None:
        return None
    return {
        (side.facts["hook_name"], latent): label
        for side in (*job.sides.sources, job.sides.target)
        for latent, label in labels.of(side.manifest["inputs"].get("sae", "")).items()
    }


def _write_edges(
    draft: Draft, name: str, found: EdgeTable, names: Names, target: str, direct: int, labels: OwnLabels | None,
    edge_outputs: Outputs | None = None,
) -> int:  # fmt: skip
    """Write the edges into units of kind `target`. Inputs below `direct` are source latents, others hidden units."""
    import datasets
    import networkx

    datasets.disable_progress_bars()
    inputs = {
        n: names.unit("source", n) if n < direct else names.unit("hidden", n - direct)
        for n in found.source.unique().tolist()
    }
    outputs = {n: names.unit(target, n) for n in found.target_ids.tolist()}
    of_edge = torch.repeat_interleave(found.target_ids, found.offsets.diff())
    rows: list[dict[str, Any]] = []
    graph = networkx.DiGraph()
    columns = (of_edge, found.source, found.weight, found.rise, found.both)
    for i, j, weight, rise, both in zip(*(column.tolist() for column in columns), strict=True):
        to, of = outputs[i], inputs[j]
        values = (
            to.latent, of.latent, weight, None if math.isnan(rise) else rise, both, to.hook or None, of.hook or None,
            to.token, of.token, to.page, of.page,
        )  # fmt: skip
        row = dict(zip(COLUMNS, values, strict=True))
        if labels is not None:
            row |= dict(zip(LABELS, (labels.get((end.hook, end.latent)) for end in (to, of)), strict=True))
        owed = None if edge_outputs is None or j >= direct else edge_outputs.of(j, i)
        if edge_outputs is not None:
            row |= dict.fromkeys(OWED) if owed is None else {name: getattr(owed, name) for name in OWED}
        rows.append(row)
        for unit in (to, of):
            about = {"kind": unit.kind, "latent": unit.latent, "hook": unit.hook, "token": _plain(unit.token or "")}
            if labels is not None and (unit.hook, unit.latent) in labels:
                about["label"] = _plain(labels[unit.hook, unit.latent])
            graph.add_node(unit.name, **about | ({"page": unit.page} if unit.page else {}))
        graph.add_edge(
            of.name, to.name, weight=weight, both_active=both, **({} if math.isnan(rise) else {"fvu_rise": rise})
        )
    columns_shown = [*COLUMNS, *([] if labels is None else LABELS), *([] if edge_outputs is None else OWED)]
    draft.save_bytes(f"{name}.csv", csv_bytes(columns_shown, rows))
    kinds = {"weight": "float64", "fvu_rise": "float64", "target": "int64", "source": "int64", "both_active": "int64"}
    kinds |= dict.fromkeys(OWED, "float64")
    features = datasets.Features({column: datasets.Value(kinds.get(column, "string")) for column in columns_shown})
    data = io.BytesIO()
    table = {column: [row[column] for row in rows] for column in columns_shown}
    datasets.Dataset.from_dict(table, features=features).to_parquet(data)
    draft.save_bytes(f"{name}.parquet", data.getvalue())
    graph_name = "graph" if name == "edges" else f"{name}_graph"
    draft.save_bytes(f"{graph_name}.graphml", "\n".join(networkx.generate_graphml(graph)).encode())
    draft.save_bytes(f"{graph_name}.json", json.dumps(networkx.node_link_data(graph, edges="links")).encode())
    return len(rows)


def _plain(text: str) -> str:
    """Without the characters that XML does not know."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _shown(name: str) -> str:
    """A name as Markdown shows it: one line, no markup and no HTML in it."""
    line = html.escape(_plain(" ".join(name.split())), quote=False)
    return re.sub(r"([\\`\[\]!|])", r"\\\1", line)


def _card(cfg: Config, connector: Artifact[TrainFacts], evaluation: Artifact[EvaluateFacts]) -> str:
    """The model card: what it maps, how well on held-out documents, how to use it."""
    config, figures = connector.json(CONFIG_FILE), evaluation.json("metrics.json")
    sources = ", ".join(f"`{side['hook_name']}` ({side['d']:,} latents)" for side in config["sources"])
    target, model, data = config["target"], _shown(cfg.model.name), _shown(cfg.data.name)
    numbers = {
        "FVU on test documents": f"{figures['fvu']:.4f}",
        "FVU of the median target latent": f"{figures['fvu_median_latent']:.4f}",
        "MSE per target latent": f"{figures['mse']:.4g}",
        "edges": f"{figures['n_edges']:,}",
        "L1": f"{figures['l1']:.4g}",
        "target latents explained": f"{figures['n_targets']:,} of {figures['d_target']:,}",
        "test tokens": f"{figures['n_tokens']:,}",
    }
    if "relative_gap" in connector.facts:
        numbers["duality gap, share of the objective"] = f"{connector.facts['relative_gap']:.1e}"
    if "ce_loss_recovered" in figures:
        numbers["cross-entropy recovered"] = f"{figures['ce_loss_recovered']:.4f}"
    table = "\n".join(f"| {name} | {value} |" for name, value in numbers.items())
    return f"""---
library_name: saelink
tags: [sparse-autoencoder, interpretability, saelink]
---

# {config["connector"]["name"]} connector, {_shown(cfg.model.label)}, layer {cfg.layer}, link {_shown(cfg.link.name)}

Predicts the SAE latents of `{target["hook_name"]}` ({target["d"]:,}) from those of {sources} in {model}.
Solver {config["solver"]["name"]}, l1_alpha {config["l1_alpha"]:g}, on {data}.

| on held-out documents | |
|---|---|
{table}

```python
import saelink
connector = saelink.load_connector("this/folder")
predicted = connector(source_latents)   # [tokens, {sum(side["d"] for side in config["sources"]):,}] raw latents
connector.target_ids                    # which target latents the columns are
connector.weight                        # what the output reads, scaled units
```

`edges.csv` and `edges.parquet` hold every edge (in the CSV a token that a spreadsheet would run as a formula begins
with an apostrophe), `graph.graphml` and `graph.json` the same as a graph.
"""
