"""How many edges does the model need? Cross-entropy with the k strongest edges of a graph alone, for k over decades.

Edges are ranked by what they claim: weight times the source's mean activation, as a share of the target's mean active
value. Weights are not refitted after the rest is taken out. `measured effects` is no fit: its weights are the effects
of ablating sources on training documents, divided by the sources' mean activation.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from saelink import memory
from saelink.config.schema import Config
from saelink.connectors.base import Connector
from saelink.connectors.linear import LinearConnector, LinearSettings
from saelink.connectors.wide_linear import WideLinearConnector
from saelink.errors import SaelinkError
from saelink.evidence.evaluate import prediction_changes
from saelink.experiments.base import Done, Experiment, Result
from saelink.experiments.fits import fit
from saelink.experiments.tables import Row, paragraph
from saelink.fit.products.sparse import is_wide
from saelink.fit.train import fitted_connector, shape_of
from saelink.interventions.cross_entropy import BaselinesStage, ce_figures
from saelink.interventions.effects import EffectsStage, changes_of_a_source, load_effects
from saelink.interventions.pairs import Effects
from saelink.interventions.splice import Splice, losses_need, spliced_tokens
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.store.artifact import Artifact

MEASURED = "measured effects"


class EdgesKeptExperiment(Experiment):
    title = "Cross-entropy against the number of edges kept"
    settings = ("kept_edges", "kept_tokens")
    by_evaluation = False

    def fits(self, job: Job) -> dict[str, Config]:
        check_sizes(job.cfg)
        return {
            "lasso at 8e-4": fit(job.cfg, "linear", "exact", l1_alpha=8e-4),
            "lasso at 3e-3": fit(job.cfg, "linear", "exact", l1_alpha=3e-3),
            "causal": fit(job.cfg, "linear", "causal", l1_alpha=2e-3),
            "causal nonlinear": fit(job.cfg, "nonlinear", "causal", l1_alpha=2e-3, bias=True),
        }

    def needs(self, job: Job) -> dict[str, str]:
        return {"ce": BaselinesStage(job).key, "effects": EffectsStage(job, "train").key}

    def recipe(self, cfg: Config) -> dict[str, Any]:
        return {"bootstrap": cfg.eval.bootstrap}

    def memory(self, job: Job) -> float:
        """All graphs at once, and the model run with what is left of one."""
        return ranked_bytes(job, list(self.fits(job).values())) + losses_need(job, "").bytes

    def make(self, job: Job, done: dict[str, Done]) -> Result:
        sizes = sorted(set(job.cfg.experiment.kept_edges))
        sides = job.sides
        baselines = BaselinesStage(job).pull().tensors("losses.safetensors")
        test = spliced_tokens(job, min(job.cfg.experiment.kept_tokens, job.cfg.eval.ce_tokens))
        losses = {name: baselines[name][: len(test.ids)] for name in ("clean", "sae", "oracle", "mean", "zero")}
        graphs = ranked(job, {label: result.connector for label, result in done.items()})
        ids = graphs["causal"].connector.target_ids
        counted = load_split(job.cfg, sides, "test", ids)
        counted = counted.subset(counted.row < test.ids.numel())
        kept: dict[tuple[str, int], int] = {}
        with Splice(job, test, len(graphs) * len(sizes)) as splice:
            true = splice.decode(splice.true_latents())
            for label, graph in graphs.items():
                for size in sizes:
                    kept[label, size] = graph.keep(size)
                    changes = prediction_changes(graph.connector, counted, sides.scales[-1], "cpu")
                    losses[f"{label} {size}"] = splice.losses(true + splice.decode_changes(ids, changes))
        figures = ce_figures(losses, test.document, job.cfg.eval.bootstrap)
        rows: list[Row] = []
        areas: dict[str, float] = {}
        for label in graphs:
            curve = [figures[f"{label} {size}"]["recovered"] for size in sizes]
            areas[label] = area(sizes, curve)
            for size in sizes:
                entry = figures[f"{label} {size}"]
                rows.append(
                    {
                        "layer": job.cfg.layer,
                        "edges of": label,
                        "k": size,
                        "n_edges": kept[label, size],
                        **ce_columns(entry),
                    }
                )
        said = ", ".join(f"{label} {value:.3f}" for label, value in areas.items())
        clean, sae, zero = (figures[name]["ce"] for name in ("clean", "sae", "zero"))
        text = paragraph(
            f"{test.ids.numel():,} test tokens. CE clean {clean:.3f}, SAE {sae:.3f}, zero ablation {zero:.3f}. "
            f"recovered is (zero - CE) / (zero - clean); the SAE has {figures['sae']['recovered']:.3f}, the oracle "
            f"{figures['oracle']['recovered']:.3f}. Mean of recovered over log k: {said}."
        )

        def draw(figure: Any) -> None:
            axes = figure.subplots()
            for label in graphs:
                axes.plot(sizes, [figures[f"{label} {size}"]["recovered"] for size in sizes], "o-", label=label)
            for name, style in (("sae", "--"), ("oracle", ":")):
                axes.axhline(figures[name]["recovered"], color="black", lw=1, ls=style, label=name)
            axes.set(xscale="log", xlabel="edges kept", ylabel="cross-entropy recovered")
            axes.set_title(f"The strongest edges alone, layer {job.cfg.layer}", fontsize=10)
            axes.legend(fontsize=8)

        return Result(rows, draw=draw, text=text, facts={"areas": areas})


class Ranked:
    """A graph whose edges are ranked by what they claim, and of which only the strongest are left."""

    def __init__(self, connector: Connector, source: torch.Tensor, target: torch.Tensor):
        """An edge claims its weight times source [d_source] times target [d_target]."""
        self.connector = connector
        self._weight = connector.penalised()[-1][0]
        self._whole = self._weight.detach().clone()
        if isinstance(connector, WideLinearConnector):
            rows = connector.W.rows()
            claims = source[rows.row_of] * target[rows.indices]
        else:
            claims = source[:, None] * target
        self._order = (self._whole.abs() * claims).flatten().sort(descending=True).indices

    @property
    def n_edges(self) -> int:
        """Of the whole graph."""
        return int((self._whole != 0).sum())

    def keep(self, size: int) -> int:
        """Leave the `size` strongest edges in the connector; how many that are."""
        return self._leave(self._order[:size])

    def drop(self, size: int) -> int:
        """Leave all but the `size` strongest edges in the connector; how many that are."""
        return self._leave(self._order[size:])

    def _leave(self, chosen: torch.Tensor) -> int:
        device = self._weight.device
        with torch.no_grad():
            self._weight.zero_().view(-1)[chosen.to(device)] = self._whole.flatten()[chosen].to(device)
        return int((self._weight != 0).sum())


def ranked_bytes(job: Job, fits: list[Config]) -> float:
    """Memory for the graphs of fits and of the measured effects (see Ranked): of each its weights, twice, and their
    order, of one more what it is sorted by; of one that is kept by its edges the edges'."""
    sides, shapes = job.sides, [shape_of(job.at(cfg)) for cfg in fits]
    dense = [shape.weights for shape in shapes if shape.weights >= shape.d_source * shape.d_target]
    by_edges = 2 * memory.EDGES_OF_TARGET * sides.d_target * (len(shapes) - len(dense))
    pairs = sides.d_source * sides.d_target
    if is_wide(sides.d_source, sides.d_target):
        pairs = min(pairs, int(sides.d_source * changes_of_a_source(job, "train", job.cfg.verify.tokens_per_source)))
        return memory.COMPILED + 16.0 * (sum(dense) + 2 * max(dense, default=0)) + by_edges + 100.0 * pairs
    return memory.COMPILED + 16.0 * (sum(dense) + 3 * pairs) + by_edges


def ranked(job: Job, connectors: dict[str, Artifact]) -> dict[str, Ranked]:
    """The connectors' graphs by label, and beside them that of the measured effects."""
    sides, measured = job.sides, load_effects(EffectsStage(job, "train").pull())
    graphs: dict[str, Connector] = {label: fitted_connector(artifact) for label, artifact in connectors.items()}
    ids = next(iter(graphs.values())).target_ids
    graphs[MEASURED] = graph_of(measured.explain(ids), ids, is_wide(sides.d_source, sides.d_target))
    unit = measured.target_mean[ids]
    unit = torch.where(unit > 0, unit, torch.inf)  # what never fires there is no reason to keep an edge
    return {label: Ranked(graph, measured.source_mean, 1 / unit) for label, graph in graphs.items()}


def graph_of(measured: Effects, ids: torch.Tensor, wide: bool) -> Connector:
    """A linear connector whose weights are effects on the targets `ids`, by unit of the source; `wide` by its edges."""
    settings, unit = LinearSettings(name="linear"), measured.source_mean.clamp(min=1e-9)
    if wide:
        graph = WideLinearConnector(settings, measured.d_source, ids)
        parts = [(pairs.source_of, pairs.target.long(), pairs.mean) for pairs in measured.pairs()]
        source, target, mean = (torch.cat(column) for column in zip(*parts, strict=True))
        graph.set_edges(source, target, mean / unit[source])
        return graph
    graph = LinearConnector(settings, measured.d_source, ids)
    with torch.no_grad():
        graph.W.copy_(measured.dense() / unit[:, None])
    return graph


def check_sizes(cfg: Config) -> None:
    """Raise SaelinkError for numbers of edges that are none."""
    if min(cfg.experiment.kept_edges, default=0) < 1:
        raise SaelinkError(f"experiment.kept_edges={cfg.experiment.kept_edges}: give numbers of edges above 0")


def ce_columns(entry: dict[str, float]) -> Row:
    """What a row says of a cross-entropy."""
    return {name: entry[name] for name in ("ce", "recovered", "recovered_low", "recovered_high")}


def area(sizes: list[int], values: list[float]) -> float:
    """Mean of the values over log size, by trapezoids; the only value if there is one."""
    if len(sizes) == 1:
        return values[0]
    logs = [math.log(size) for size in sizes]
    steps = zip(logs, logs[1:], values, values[1:], strict=False)
    return sum((b - a) * (u + v) / 2 for a, b, u, v in steps) / (logs[-1] - logs[0])
