"""What the functions of `saelink` return: artifacts that show themselves, as text on a terminal and as a table in a
notebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from saelink.activations.cache import CacheStage
from saelink.circuits.ancestors import CircuitStage
from saelink.circuits.intervene import InterventionStage
from saelink.circuits.stage import LayersGraphStage
from saelink.connectors.exported import ExportedConnector, connector_folder
from saelink.errors import SaelinkError
from saelink.evidence.compared import differing, series_of
from saelink.evidence.evaluate import EvaluateStage
from saelink.evidence.verdicts import FIGURES_FILE, NULLS_FILE, TOPS, VERDICTS, Verdicts
from saelink.evidence.verify import VerifyStage
from saelink.fit.train import TrainStage
from saelink.latents.encode import EncodeStage
from saelink.looks.stage import HEADS_FILE, QKStage
from saelink.looks.text import MODES
from saelink.report.drawing import draw_graph
from saelink.report.html import box, facts_table, grid, lines_of_text, link, note, picture, shares_bar
from saelink.report.render import PAGE_FILE
from saelink.report.stage import ReportStage
from saelink.share.export import ExportStage
from saelink.share.graph.stage import GraphStage
from saelink.store.artifact import Artifact, Facts
from saelink.store.store import Store
from saelink.terminal.circuits import circuit_lines, intervention_lines
from saelink.terminal.evaluation import evaluation_rows
from saelink.terminal.fit import fit_rows, map_rows
from saelink.terminal.lines import Lines
from saelink.terminal.sweep import print_pareto
from saelink.tracking.charts import picture as pareto_picture
from saelink.tracking.sweep import gathered, sweep_folder

Row = tuple[str, str]

CIRCUITS = 10
"""Circuits that an evaluation shows; its circuits.txt has all."""

VERDICT_COLOURS = dict(zip(VERDICTS, ("#2a9d5c", "#93cfaa", "#c9a13b", "#c0504d", "#8d8d9a", "#c8c8d0"), strict=True))


class Shown(Artifact[Facts]):
    """An artifact that shows itself."""

    def __init__(self, artifact: Artifact[Facts]):
        super().__init__(artifact.path)

    @property
    def title(self) -> str:
        """Its stage, key, and what it is in a few words."""
        return f"{self.stage} {self.key}: {self.manifest['about']}"

    def rows(self) -> list[Row]:
        """What there is to say of it: names and texts."""
        try:
            return [*ROWS.get(self.stage, _rows_of_any)(self), ("folder", str(self.path))]
        except SaelinkError as error:  # a damaged file: showing it must not fail
            return [("damaged", str(error))]

    def lines(self) -> list[str]:
        """Text below the rows."""
        try:
            return LINES[self.stage](self) if self.stage in LINES else []
        except SaelinkError:  # the rows say it
            return []

    def __repr__(self) -> str:
        below = self.lines()
        return "\n".join([self.title, *_columns(self.rows()), *([""] if below else []), *below])

    def _repr_html_(self) -> str:
        below = self.lines()
        return box(self.title, facts_table(self.rows()), self._more(), lines_of_text(below) if below else "")

    def _more(self) -> str:
        """HTML between rows and lines."""
        if self.stage == ReportStage.name:
            return link((self.path / PAGE_FILE).as_posix(), "open the page")
        if self.stage == GraphStage.name:
            try:
                facts = cast("Mapping[str, Any]", self.facts)
                return draw_graph(self.json(f"{facts['slug']}.json"))
            except SaelinkError:  # the rows say it
                return ""
        return ""


class EdgeVerdict(NamedTuple):
    """What a connector claims of an edge and what the model does, in units of the target's mean active value."""

    claim: float
    """What the connector's prediction of the target loses on average where the source is active."""
    effect: float
    """What the target itself loses when the source is ablated in the model."""
    verdict: str
    """confirmed, weaker, no effect, opposite, unclear or faint."""


class VerifiedEdges(Shown[Facts]):
    """The verdicts on a connector's edges; `edge` and `missed` look up single ones."""

    def edge(self, source: int, target: int) -> EdgeVerdict | None:
        """Claim, effect and verdict of the edge between two latents, by the SAEs' numbers; None where there is none."""
        found = Verdicts(self).of(source, target)
        return None if found is None else EdgeVerdict(*found)

    def missed(self, target: int) -> list[tuple[int, float]]:
        """Sources with a strong effect on a target that no edge claims, with the effect; the strongest first."""
        return Verdicts(self).missed(target)

    def _more(self) -> str:
        try:
            figures, nulls = self.json(FIGURES_FILE), self.json(NULLS_FILE)
        except SaelinkError:  # the rows say it
            return ""
        n = max(figures["edges"], 1)
        bar = shares_bar(
            (word, figures[f"edges_{word.replace(' ', '_')}"] / n, colour) for word, colour in VERDICT_COLOURS.items()
        )
        against = {"these effects": figures, **nulls}
        sources = max(null["sources_ablated"] for null in nulls.values())
        cells = [
            [
                _of_sample(name, each, sources),
                *(
                    _number(each.get(key))
                    for key in ("precision_1x", "recall_10x", "sign_1x", "slope_1x", "spearman", "auroc")
                ),
            ]
            for name, each in against.items()
        ]
        head = ["strongest claims against", "precision 1x", "recall 10x", "same sign", "slope", "Spearman", "AUROC"]
        return bar + grid(head, cells)


def _of_sample(name: str, figures: Mapping[str, Any], sources: int) -> str:
    """What a row of figures is called, with how many sources it is measured on if these are not all."""
    n = figures.get("sources_ablated", sources)
    return name if n == sources else f"{name} ({n:,} of {sources:,} sources)"


class ByHook(dict[str, Shown[Any]]):
    """Artifacts by the hook they are about."""

    def _table(self) -> list[list[str]]:
        return [[hook, artifact.stage, artifact.key, *_sizes(artifact)] for hook, artifact in self.items()]

    def __repr__(self) -> str:
        return "\n".join(_aligned([["hook", "stage", "key", "tokens", "width", "about"], *self._table()]))

    def _repr_html_(self) -> str:
        head = ["hook", "stage", "key", "tokens", "width", ""]
        return grid(head, self._table(), texts=3)


class LoadedConnector(ExportedConnector):
    """An exported connector that shows itself."""

    def __init__(self, place: str | Path):
        super().__init__(connector_folder(place))
        self.place = str(place)

    def rows(self) -> list[Row]:
        """What there is to say of it: names and texts."""
        weight, config = self.weight, self.config
        return [
            *map_rows(config),
            ("edges", f"{self.connector.n_edges():,} non-zero"),
            ("L1", f"{self.connector.l1():.3f}"),
            ("weight", f"[{weight.shape[0]:,}, {weight.shape[1]:,}] in units of the latents' scales"),
            ("call", f"connector(latents [tokens, {len(self.scales):,}]) -> [tokens, {len(self.target_ids):,}]"),
        ]

    def __repr__(self) -> str:
        return "\n".join([f"connector {self.place}", *_columns(self.rows())])

    def _repr_html_(self) -> str:
        return box(f"connector {self.place}", facts_table(self.rows()))


class Sweep:
    """The connectors of a sweep, error against sparsity: figures on validation documents."""

    def __init__(self, store: Store, sweep_id: str):
        self.id = sweep_id
        self.folder = sweep_folder(store, sweep_id)
        found = gathered(store, sweep_id)
        self.points: list[dict[str, Any]] = found.rows
        """By connector `train` (its key), what it is of and its settings (`model`, `layer`, `link`, `connector`,
        `solver`, `l1_alpha`, ...), `mse`, `l1`, `fvu`, `n_edges`, `n_edges_above_0.01` and `pareto`: whether it is
        below FVU 1 and no other of the same latents has both less error and less L1."""
        self._bounds = found.bounds
        self._store = store

    @property
    def connectors(self) -> list[Shown[Any]]:
        """The connectors, in the order of `points`."""
        return [Shown(self._store.get(row["train"])) for row in self.points]

    def __len__(self) -> int:
        return len(self.points)

    def __repr__(self) -> str:
        lines = Lines()
        print_pareto(lines, self.id, self.points, self.folder)
        return "\n".join(lines.said).strip("\n")

    def _repr_html_(self) -> str:
        head = ["fit", "train", "l1_alpha", "MSE", "FVU", "L1", "edges", "edges > .01", "Pareto"]
        names = differing(self.points)
        cells = [
            [
                series_of(row, names), row["train"], f"{row['l1_alpha']:g}",
                f"{row['mse']:.3g}", f"{row['fvu']:.3f}", f"{row['l1']:.3g}", f"{row['n_edges']:,}",
                f"{row['n_edges_above_0.01']:,}", "★" if row["pareto"] else "",
            ]
            for row in self.points
        ]  # fmt: skip
        shown = picture(pareto_picture(self.points, self._bounds, dpi=110), "error and edges against L1", width=900)
        title = f"{self.id}: {len(self)} connectors, figures on validation documents"
        mark = note("★ below FVU 1, and no other connector of the same latents has both a lower MSE and a lower L1")
        return box(title, grid(head, cells, texts=2), mark, shown, note(str(self.folder)))


def _rows_of_evaluation(artifact: Artifact[Any]) -> list[Row]:
    folder = artifact.path.parents[1] / TrainStage.name / artifact.manifest["inputs"]["connector"]
    if not folder.exists():  # its connector was removed
        return _rows_of_any(artifact)
    rows = evaluation_rows(Artifact(folder), artifact)
    if "ce_loss_recovered" in artifact.facts:
        rows.append(("recovered", f"{artifact.facts['ce_loss_recovered']:.3f} of the gap in cross-entropy"))
    return rows


def _rows_of_verdicts(artifact: Artifact[Any]) -> list[Row]:
    f = artifact.json(FIGURES_FILE)
    words = [f"{f['edges_' + word.replace(' ', '_')] / max(f['edges'], 1):.0%} {word}" for word in VERDICTS]
    rows = [
        ("edges", f"{f['edges']:,} claimed: {', '.join(words)}"),
        ("in the model", f"{f['strong']:,} strong effects, {f['strong_suppressive']:,} of them suppressive"),
        ("missed", f"{f['missed']:,} strong effects without edge, {f['missed_suppressive']:,} suppressive"),
    ]
    for name in ("precision", "recall"):
        values = ", ".join(f"{_number(f.get(f'{name}_{times}x'))} at {times}x" for times in TOPS)
        rows.append((name, f"{values} (strongest claims, in multiples of the sources)"))
    return rows


def _rows_of_report(artifact: Artifact[Any]) -> list[Row]:
    return [
        ("page", f"{artifact.path / PAGE_FILE} ({artifact.facts['bytes'] / 1e6:.1f} MB)"),
        ("connectors", ", ".join(artifact.facts["connectors"])),
        ("cards", f"saelink.open({artifact.key!r}).target(0)"),
    ]


def _rows_of_export(artifact: Artifact[Any]) -> list[Row]:
    return [
        ("edges", f"{artifact.facts['edges']:,}"),
        ("files", ", ".join(artifact.files)),
        ("load", f"saelink.load_connector({str(artifact.path)!r})"),
    ]


def _rows_of_graph(artifact: Artifact[Any]) -> list[Row]:
    facts = artifact.facts
    return [
        ("graph", f"{facts['nodes']:,} nodes, {facts['links']:,} links, in {facts['slug']}.json"),
        ("next", ", ".join(f"{token!r} {share:.0%}" for token, share in facts["next"])),
    ]


def _rows_of_heads(artifact: Artifact[Any]) -> list[Row]:
    rows = []
    for head in artifact.json(HEADS_FILE):
        moved = [
            f"{each['pairs']}: {each['variation']:.1%} ({each['control']:.1%})" for each in head["together"][MODES[1]]
        ]
        free = _number(head["deleted"]["free_r"])
        kinds = ", ".join(head["kinds"]) or "no kind by rule"
        rows.append((f"head {head['head']}", f"{kinds}; pairs out: moved (control) {', '.join(moved)}; free r {free}"))
    return rows


def _rows_of_any(artifact: Artifact[Any]) -> list[Row]:
    return [(name, f"{value}") for name, value in artifact.facts.items() if isinstance(value, int | float | str)]


def _circuits(artifact: Artifact[Any]) -> list[str]:
    return artifact.file("circuits.txt").read_text().splitlines()[:CIRCUITS]


ROWS: dict[str, Callable[[Artifact[Any]], list[Row]]] = {
    TrainStage.name: fit_rows,
    EvaluateStage.name: _rows_of_evaluation,
    VerifyStage.name: _rows_of_verdicts,
    ReportStage.name: _rows_of_report,
    ExportStage.name: _rows_of_export,
    GraphStage.name: _rows_of_graph,
    LayersGraphStage.name: _rows_of_graph,
    InterventionStage.name: lambda artifact: [("changes", " ".join(artifact.facts["changes"]))],
    QKStage.name: _rows_of_heads,
}
"""By stage what its artifact says of itself."""

LINES: dict[str, Callable[[Artifact[Any]], list[str]]] = {
    EvaluateStage.name: _circuits,
    GraphStage.name: lambda artifact: artifact.facts["lines"],
    LayersGraphStage.name: lambda artifact: artifact.facts["lines"],
    InterventionStage.name: lambda artifact: intervention_lines(cast("Any", artifact.facts)),
    CircuitStage.name: lambda artifact: circuit_lines(cast("Any", artifact.facts)),
}


def _sizes(artifact: Artifact[Any]) -> list[str]:
    """Tokens, width, and what else matters of activations or latents."""
    facts = artifact.facts
    tokens = sum(facts["sequences"].values()) * facts["context_size"]
    if artifact.stage == CacheStage.name:
        return [f"{tokens:,}", f"{facts['width']:,}", f"median norm {facts['median_norm']:.3g}"]
    assert artifact.stage == EncodeStage.name
    seen = max(facts["sequences"]["train"] * facts["context_size"], 1)
    about = f"{sum(facts['active_count']) / seen:.1f} active per token, {facts['dead']:,} dead"
    return [f"{tokens:,}", f"{facts['d_sae']:,}", about]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}".replace("-0.00", "0.00")


def _columns(rows: list[Row]) -> list[str]:
    return [f"  {name:12} {text}" for name, text in rows]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
