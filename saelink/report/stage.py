"""One page that shows what a connector found: the stage `report`.

`data.zip` holds everything the page shows, as compressed JSON in pieces; `report.html` is a template, a style sheet, a
script and those pieces, which the browser unpacks when they are asked for. Nothing in it is fetched from anywhere.
"""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from saelink.activations.tokens import pull_tokens
from saelink.config.check import l1_alphas
from saelink.config.schema import Config
from saelink.connectors import CONNECTORS
from saelink.evidence.baselines import mean_predictor
from saelink.evidence.consequences import CONSEQUENCES_FILE, consequences_of
from saelink.evidence.edges import edges
from saelink.evidence.evaluate import evaluate
from saelink.evidence.frontier import kneedle
from saelink.evidence.hidden_units import CLASSES, hidden, load_hidden
from saelink.evidence.stability import repeated, solved
from saelink.evidence.token_ablation import ABLATIONS_FILE, ablations
from saelink.evidence.transcoder import TRANSCODER_FILE, transcoder
from saelink.evidence.verify import verified
from saelink.experiments.tables import PICTURE_FILE, TEXT_FILE, shown_rows
from saelink.fit.train import HISTORY_FILE, fitted_connector, train
from saelink.interventions.effects import measurable
from saelink.interventions.oracle import oracle
from saelink.latents.examples import examples
from saelink.latents.link import counted_split, link_of, pull_sides
from saelink.latents.outliers import flagged
from saelink.model.describe import model_info
from saelink.model.load import load_tokenizer
from saelink.progress import Progress
from saelink.report.cards import Card, Cards
from saelink.report.render import DATA_FILE, PAGE_FILE, packed, render
from saelink.saes.neuronpedia import neuronpedia_page
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.files import write_durably
from saelink.store.recipe import Plan
from saelink.store.store import Store

VERSION = 4

PIECE = 64
"""Latents of one piece."""

TERMS = 4
"""Terms of a formula in the list of circuits."""

HIGHLIGHTS = 6
"""Latents named on the first screen for each kind of circuit."""

COMPARED = ("latent_scale", "drop_positions", "max_norm_ratio")
"""Connectors whose recipes agree in these are measured on the same tokens in the same units."""


def included(cfg: Config, store: Store) -> list[Config]:
    """The connectors whose circuits the page shows, first the one it is about.

    These are the penalties asked for and, where they are solved exactly and so cost little, those of report.l1_alphas.
    """
    asked = l1_alphas(cfg.l1_alpha)
    cheap = solved(cfg) and not CONNECTORS[cfg.connector.name].relu_output
    more = cfg.report.l1_alphas if cheap and asked[0] else []
    return [replace(cfg, l1_alpha=float(alpha)) for alpha in dict.fromkeys([*asked, *more])]


def report(cfg: Config, store: Store, command: str | None = None) -> Artifact:
    """Pull the page about the configured connector; `command` is what it says makes it, when it is made anew.

    Files: `report.html`, `data.zip`. It is made anew when something it shows has changed: an evaluation of another
    connector between the same latents, say, or an experiment on them.
    """
    jobs = included(cfg, store)
    made = []
    for number, job in enumerate(jobs, 1):
        if len(jobs) > 1:
            store.say(f"report: connector {number} of {len(jobs)}, l1_alpha {job.l1_alpha:g}")
        made.append((train(job, store), evaluate(job, store), edges(job, store)))
    sides, tokens = pull_sides(jobs[0], store), pull_tokens(jobs[0], store)
    looked = [examples(cfg, store, side, tokens) for side in [*sides.sources, sides.target]]
    others = _others(store, made[0][0], {connector.key for connector, _, _ in made})
    done = _experiments(jobs[0], store, sides.target.key)
    inputs = {f"examples{i}": artifact.key for i, artifact in enumerate(looked)}
    inputs["oracle"] = oracle(jobs[0], store).key
    if cfg.transcoder.path is not None:
        inputs["transcoder"] = transcoder(jobs[0], store).key
    for i, (connector, evaluation, wired) in enumerate(made):
        inputs |= {f"connector{i}": connector.key, f"evaluation{i}": evaluation.key, f"edges{i}": wired.key}
    judged = [verified(job, store) for job in jobs]
    again = [repeated(job, store) for job in jobs]
    for name, artifacts in (("verify", judged), ("stability", again)):
        inputs |= {f"{name}{i}": artifact.key for i, artifact in enumerate(artifacts) if artifact is not None}
    first = next((artifact for artifact in judged if artifact is not None), None)
    lost = None if first is None else consequences_of(store, first)
    if lost is not None:
        inputs["consequences"] = lost.key
    inputs |= {f"other{i}": evaluation.key for i, (_, evaluation) in enumerate(others)}
    inputs |= {f"experiment {result.facts['name']}": result.key for result in done}
    if fitted_connector(made[0][0]).n_hidden:
        inputs["hidden"] = hidden(jobs[0], store).key
    recipe = {
        "cards": cfg.report.cards,
        "ablated": cfg.report.ablated,
        "ablated_examples": cfg.report.ablated_examples,
        "outlier_shares": dict(sorted(cfg.experiment.outlier_shares.items())),
    }
    pages = [neuronpedia_page(cfg, store, side.facts["hook_name"]) for side in [*sides.sources, sides.target]]
    if any(pages):
        recipe["pages"] = pages
    plan = Plan("report", VERSION, recipe, inputs, made[0][0].manifest["about"])
    artifact = store.up_to_date(plan)
    if artifact is None:
        pages = _Pages(jobs, store, others, done, command)
        artifact = store.build(plan, pages.write)
    if cfg.report.path is not None:
        path = Path(cfg.report.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, artifact.file(PAGE_FILE).read_bytes())
    return artifact


def page_path(cfg: Config, artifact: Artifact) -> Path:
    """Where the page of a report is."""
    return Path(cfg.report.path) if cfg.report.path is not None else artifact.path / PAGE_FILE


def _others(store: Store, like: Artifact, but: set[str]) -> list[tuple[Artifact, Artifact]]:
    """Every evaluated connector in the store between the same latents on the same tokens, and its evaluation."""

    def sides(connector: Artifact) -> dict[str, str]:
        named = connector.manifest["inputs"].items()
        return {role: key for role, key in named if role == "target" or role.startswith("source")}

    found: dict[str, tuple[Artifact, Artifact]] = {}
    for evaluation in store.artifacts():
        key = evaluation.manifest["inputs"].get("connector", "") if evaluation.stage == "evaluate" else ""
        path = store.root / "train" / key
        if not key or key in but or not path.exists():
            continue
        connector = Artifact(path)
        same = all(connector.recipe[name] == like.recipe[name] for name in COMPARED) and sides(connector) == sides(like)
        if same and (key not in found or "ce.json" in evaluation.files):
            found[key] = (connector, evaluation)
    return [found[key] for key in sorted(found)]


def _experiments(cfg: Config, store: Store, target: str) -> list[Artifact]:
    """The newest result of each experiment about these target latents."""
    found: dict[str, Artifact] = {}
    for result in store.artifacts():
        if result.stage == "experiment" and target in result.manifest["inputs"].values():
            found[result.facts["name"]] = result
    return [found[name] for name in sorted(found)]


class _Pages:
    """Everything the page shows, piece by piece."""

    def __init__(
        self, jobs: list[Config], store: Store, others: list[tuple[Artifact, Artifact]], experiments: list[Artifact],
        command: str | None,
    ):  # fmt: skip
        self.cfg, self.store, self.others, self.experiments = jobs[0], store, others, experiments
        self.command = command
        self.fits = [Cards(job, store) for job in jobs]
        self.cards = self.fits[0]
        for fit in self.fits[1:]:  # what the latents fire on is the same
            fit._looked = self.cards._looked
        self.ids = self.cards.connector.target_ids
        self.outliers = self._outliers()
        self.kept_targets, self.kept_sources = self._kept()

    def _kept(self) -> tuple[set[int], set[int]]:
        """The targets and sources whose examples are on the page: report.cards of each."""
        most, sides = self.cfg.report.cards, self.cards.sides
        fvu = self.cards.figures("fvu")
        shown = [latent for latents in self._highlights().values() for latent in latents]
        ranked = sorted(range(sides.d_target), key=lambda i: (fvu[i] != fvu[i], fvu[i]))
        targets = list(dict.fromkeys([*shown, *ranked]))[:most]
        if sides.d_source <= most or not self.cards.direct:
            return set(targets), set(range(min(sides.d_source, most)))
        explained = set(self.ids.tolist())
        fed = [edge["input"] for latent in targets if latent in explained for edge in self._direct_edges(latent)]
        return set(targets), set(list(dict.fromkeys([*fed, *range(sides.d_source)]))[:most])

    def _direct_edges(self, latent: int) -> list[dict[str, Any]]:
        """The strongest edges of an explained target that come from source latents themselves."""
        return [edge for edge in self.cards.circuit(latent)["edges"] if edge["input"] < self.cards.direct]

    def write(self, draft: Draft) -> dict[str, Any]:
        pieces: dict[str, bytes] = {}
        total = self.cards.sides.d_target * (1 + len(self.fits)) + self.cards.sides.d_source
        with Progress("report", total, "cards") as bar:
            for name, piece in self._pieces(bar):
                pieces[name] = packed(piece)
        head = self._head()
        pieces |= {"head": packed(head), "index": packed(self._index())}
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(pieces):  # a fixed date: equal contents have equal bytes
                archive.writestr(zipfile.ZipInfo(f"{name}.json.gz", (1980, 1, 1, 0, 0, 0)), pieces[name])
        draft.save_bytes(DATA_FILE, data.getvalue())
        page = render(head, pieces)
        draft.save_bytes(PAGE_FILE, page)
        return {"bytes": len(page), "connectors": [fit.artifact.key for fit in self.fits]}

    # ----------------------------------------------------------------------- pieces

    def _pieces(self, bar: Progress) -> Iterator[tuple[str, Any]]:
        sides = self.cards.sides
        yield from self._cards("target", sides.d_target, self._target_card, bar)
        yield from self._cards("source", sides.d_source, self._source_card, bar)
        for number, fit in enumerate(self.fits):
            yield from self._circuits(number, fit, bar)
        if self.cards.has_hidden:
            yield from self._cards("hidden", self.cards.connector.n_hidden, self._hidden_card, bar)
        for result in self.experiments:
            picture = None
            if PICTURE_FILE in result.files:
                picture = base64.b64encode(result.file(PICTURE_FILE).read_bytes()).decode()
            yield (
                f"experiment/{result.facts['name']}",
                {
                    "rows": shown_rows(result),
                    "text": result.file(TEXT_FILE).read_text(),
                    "picture": picture,
                },
            )
        for side, latents in self._ablated().items():
            yield f"ablations/{side}", latents

    def _cards(self, side: str, d: int, card: Any, bar: Progress) -> Iterator[tuple[str, Any]]:
        for first in range(0, d, PIECE):
            ids = range(first, min(first + PIECE, d))
            yield f"{side}/{first // PIECE}", {str(latent): card(latent) for latent in ids}
            bar.advance(len(ids))

    def _target_card(self, latent: int) -> Card:
        return self.cards.latent(f"OF{latent}", self.cards.sides.target, latent, latent in self.kept_targets)

    def _source_card(self, latent: int) -> Card:
        place, number = self.cards.side_of(latent)
        side, kept = self.cards.sides.sources[place], latent in self.kept_sources
        return self.cards.latent(self.cards.source_name(latent), side, number, kept)

    def _hidden_card(self, unit: int) -> Card:
        return self.cards.hidden_unit(unit)

    def _circuits(self, number: int, fit: Cards, bar: Progress) -> Iterator[tuple[str, Any]]:
        """By target its circuit; by source what it feeds. Inputs together and beside the examples: the first's only."""
        explained = set(fit.connector.target_ids.tolist())
        beside = fit.beside(sorted(explained & self.kept_targets)) if number == 0 else {}
        d = fit.sides.d_target
        for first in range(0, d, PIECE):
            ids = range(first, min(first + PIECE, d))
            piece: dict[str, Card] = {}
            for latent in explained.intersection(ids):
                circuit = fit.circuit(latent)
                if latent in beside:
                    circuit["beside"] = beside[latent]
                if number > 0:  # most of the bytes
                    circuit.pop("scatter", None)
                    circuit.pop("clusters", None)
                piece[str(latent)] = circuit
            yield f"circuit{number}/{first // PIECE}", piece
            bar.advance(len(ids))
        for first in range(0, fit.sides.d_source, PIECE):
            ids = range(first, min(first + PIECE, fit.sides.d_source))
            yield f"feeds{number}/{first // PIECE}", {str(i): fit.source_feeds(i) for i in ids}

    # ----------------------------------------------------------------------- outliers, ablations

    def _outliers(self) -> list[dict[str, Any]]:
        """Target latents of whose activation on test documents such a share falls on outlier places; most first."""
        side = self.cards.sides.target
        ids = self.cards.tokens.tensors("test.safetensors")["ids"].long()
        tokenizer = load_tokenizer(self.cfg.model, model_info(self.cfg, self.store).artifact)
        outliers = flagged(side, ids, tokenizer, self.cfg.experiment.outlier_shares)
        found = []
        for latent in outliers.latents:
            entry: dict[str, Any] = {name: round(share[latent].item(), 4) for name, share in outliers.shares.items()}
            fires = int(outliers.fired[latent])
            entry |= {"latent": latent, "fires": fires, "token": self.cards.top_token(side, latent)}
            entry["mean"] = float(f"{outliers.sums[latent].item() / fires / self.cards.sides.scales[-1]:.4g}")
            found.append(entry)
        if self.cards.has_hidden:
            weights, limit = self._hidden_weights(), self.cfg.experiment.weight_threshold
            columns = {latent: column for column, latent in enumerate(self.ids.tolist())}
            for entry in found:
                column = columns.get(entry["latent"])
                if column is not None:
                    entry["w2_above"] = int((weights[:, column] > limit).sum())
                    entry["w2_below"] = int((weights[:, column] < -limit).sum())
        return found

    def _hidden_weights(self) -> torch.Tensor:
        """[n_hidden, d_target] what leads from hidden units into targets."""
        return self.cards.connector.output_weight()[self.cards.direct :]

    def _w2_median(self) -> dict[str, float] | None:
        """Large W2 weights of the median target, beside which those of outliers stand."""
        if not self.cards.has_hidden:
            return None
        weights, limit = self._hidden_weights(), self.cfg.experiment.weight_threshold
        above, below = (weights > limit).sum(0).double(), (weights < -limit).sum(0).double()
        return {"limit": limit, "above": above.median().item(), "below": below.median().item()}

    def _ablated(self) -> dict[str, dict[str, Any]]:
        """Ablations of the highlighted targets and their first sources, by side and number."""
        most = self.cfg.report.ablated
        if not most:
            return {}
        shown = self._highlights()
        order = ["or", "and not", "and", "copy"]
        chosen: list[int] = []
        for place in range(HIGHLIGHTS):
            chosen += [shown[word][place] for word in order if place < len(shown[word])]
        fvu = self.cards.figures("fvu")
        ranked = sorted(self.ids.tolist(), key=lambda i: (fvu[i] != fvu[i], fvu[i]))
        chosen = list(dict.fromkeys([*chosen[: most - 1], *shown["outlier"][:1], *chosen, *ranked]))[:most]
        sides = self.cards.sides
        found = {"target": ablations(self.cfg, self.store, sides.target, chosen).json(ABLATIONS_FILE)} if chosen else {}
        if self.cards.direct:
            sources: dict[int, list[int]] = {}
            for latent in chosen:
                if latent in set(self.ids.tolist()):
                    for edge in self._direct_edges(latent)[:1]:
                        place, number = self.cards.side_of(edge["input"])
                        sources.setdefault(place, []).append(number)
            found["source"] = {}
            shift = 0
            for place, side in enumerate(sides.sources):
                if place in sources:
                    here = ablations(self.cfg, self.store, side, sorted(set(sources[place]))).json(ABLATIONS_FILE)
                    found["source"] |= {str(int(latent) + shift): value for latent, value in here.items()}
                shift += side.facts["d_sae"]
        return found

    def _highlights(self) -> dict[str, list[int]]:
        """A few targets of each kind, the best predicted first among those that fire often enough."""
        fvu, active = self.cards.figures("fvu"), self.cards.figures("active")
        found: dict[str, list[int]] = {word: [] for word in ("or", "and", "and not", "copy")}
        for latent in sorted(self.ids.tolist(), key=lambda latent: (fvu[latent] != fvu[latent], fvu[latent])):
            word = self.cards.word(latent)
            if word in found and active[latent] >= self.cfg.eval.min_active and len(found[word]) < HIGHLIGHTS:
                found[word].append(latent)
        found["outlier"] = [entry["latent"] for entry in self.outliers[:HIGHLIGHTS]]
        return found

    # ----------------------------------------------------------------------- what stands on the first screen

    def _head(self) -> dict[str, Any]:
        cfg, sides = self.cfg, self.cards.sides
        link = link_of(cfg, self.store)
        facts = self.cards.tokens.facts
        saes = [
            {"hook": side.facts["hook_name"], "d_sae": side.facts["d_sae"], "fvu": side.facts["fvu"],
             "l0": side.facts["l0"], "dead": side.facts["dead"], "scale": scale, "key": side.key}
            for side, scale in zip([*sides.sources, sides.target], sides.scales, strict=True)
        ]  # fmt: skip
        highlights = self._highlights()
        named = {
            kind: [{"latent": i, "token": self.cards.top_token(sides.target, i)} for i in latents]
            for kind, latents in highlights.items()
        }
        table, frontier, curves = self._compared()
        return {
            "title": f"{cfg.model.label}, layer {cfg.layer}, {cfg.link.name}",
            "connector": cfg.connector.name,
            "model": cfg.model.label,
            "data": cfg.data.label,
            "layer": cfg.layer,
            "link": {"name": cfg.link.name, "sources": link.sources, "target": link.target},
            "tokens": facts["tokens"],
            "documents": facts["documents"],
            "context": facts["context_size"],
            "saes": saes,
            "command": self.command,
            "fits": [
                {
                    "key": fit.artifact.key,
                    "evaluation": fit.evaluation.key,
                    "l1_alpha": fit.cfg.l1_alpha,
                    "metrics": fit.evaluation.json("metrics.json"),
                }
                for fit in self.fits
            ],
            "verified": self._verified(),
            "verify": f"saelink verify layer={cfg.layer}" if measurable(cfg) else None,
            "has_hidden": self.cards.has_hidden,
            "direct": self.cards.direct,
            "d": {
                "target": sides.d_target,
                "source": sides.d_source,
                "hidden": self.cards.connector.n_hidden,
            },
            "piece": PIECE,
            "cards": cfg.report.cards,
            "highlights": named,
            "outliers": self.outliers,
            "w2_median": self._w2_median(),
            "hidden_units": self._hidden_units(),
            "table": table,
            "frontier": frontier,
            "curves": curves,
            "experiments": [
                {"name": result.facts["name"], "title": result.facts["title"], "key": result.key}
                for result in self.experiments
            ],
        }

    def _verified(self) -> list[dict[str, Any]]:
        """By connector that was verified, what its edges' verdicts come to; the nulls of the first."""
        found: list[dict[str, Any]] = []
        for number, fit in enumerate(self.fits):
            if fit.verdicts is not None:
                assert fit.verify is not None
                entry = {"fit": number, "key": fit.verify.key, "figures": _rounded(fit.verdicts.figures)}
                if fit.stability is not None:
                    facts = fit.stability.facts
                    entry["stable"] = round(facts["stable"] / max(facts["n_edges"], 1), 4)
                lost = None if found else consequences_of(self.store, fit.verify)
                if lost is not None:
                    entry["consequences"] = [_rounded(row) for row in lost.json(CONSEQUENCES_FILE)]
                if not found:
                    entry["nulls"] = {name: _rounded(null) for name, null in fit.verdicts.nulls.items()}
                found.append(entry)
        return found

    def _index(self) -> dict[str, Any]:
        """By target, in columns: what the list of circuits shows, searches and sorts by."""
        sides = self.cards.sides
        looked = self.cards.looked(sides.target)
        d = sides.d_target
        flagged = {entry["latent"] for entry in self.outliers}
        fits = []
        for fit in self.fits:
            fvu = fit.figures("fvu")
            fits.append(
                {
                    "fvu": [None if value != value else float(f"{value:.3g}") for value in fvu],
                    **fit.columns(TERMS),
                }
            )
        gains = []
        mine = torch.tensor(self.cards.figures("fvu"))
        for connector, evaluation in self.others:
            if connector.recipe["connector"]["name"] == "linear":
                continue
            theirs = evaluation.tensors("latents.safetensors")["fvu"]
            gains.append(
                {
                    "name": _label(connector),
                    "gain": [None if v != v else float(f"{v:.3g}") for v in (mine - theirs).tolist()],
                }
            )
        sources = [self._source_token(i) for i in range(sides.d_source)]
        return {
            "token": [self.cards.top_token(sides.target, i) for i in range(d)],
            "active": looked.found.histogram.sum(1).tolist(),
            "outlier": [int(i in flagged) for i in range(d)],
            "fits": fits,
            "gains": gains[:4],
            "source_token": sources,
            "source_name": [self.cards.source_name(i) for i in range(sides.d_source)],
        }

    def _source_token(self, number: int) -> str | None:
        place, latent = self.cards.side_of(number)
        return self.cards.top_token(self.cards.sides.sources[place], latent)

    def _hidden_units(self) -> dict[str, Any] | None:
        if not self.cards.has_hidden:
            return None
        units = load_hidden(hidden(self.cfg, self.store))[1]
        listed = [
            {**unit.__dict__, "token": self.cards.top_token(None, unit.unit), "word": self.cards.word(unit.unit, 1)}
            for unit in units
        ]
        return {"counts": {kind: sum(unit.kind == kind for unit in units) for kind in CLASSES}, "units": listed}

    def _compared(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
        """The table of connectors, the points of the frontier, the loss curves; test documents."""
        mine = [(fit.artifact, fit.evaluation) for fit in self.fits]
        table: list[dict[str, Any]] = []
        frontier: list[dict[str, Any]] = []
        curves: list[dict[str, Any]] = []
        n_targets = mine[0][1].json("metrics.json")["n_targets"]
        for number, (connector, evaluation) in enumerate([*mine, *self.others]):
            figures = evaluation.json("metrics.json")
            if figures["n_targets"] != n_targets:  # measured on other targets: not to be compared
                continue
            row = {
                "name": _label(connector),
                "l1_alpha": connector.recipe["l1_alpha"],
                "key": connector.key,
                "fit": number if number < len(mine) else None,
                **{name: figures.get(name) for name in (
                    "mse", "fvu", "fvu_typical", "fvu_median_latent", "fraction_predicted", "l1", "n_edges",
                    "ce_loss_recovered", "dead_outputs",
                )},
            }  # fmt: skip
            table.append(row)
            if row["l1"] and row["l1_alpha"]:
                point = {name: row[name] for name in ("name", "l1_alpha", "key", "fit", "mse", "fvu", "l1", "n_edges")}
                frontier.append({**point, "validation": connector.facts["validation_mse"], "elbow": False})
            history = connector.json(HISTORY_FILE)
            if len(history) > 2:
                curves.append(
                    {
                        "name": f"{_label(connector)}, l1_alpha {row['l1_alpha']:g}",
                        "tokens": [entry["tokens"] for entry in history],
                        "mse": [float(f"{entry['validation_mse']:.4g}") for entry in history],
                    }
                )
        for name in {point["name"] for point in frontier}:
            series = [point for point in frontier if point["name"] == name]
            elbow = kneedle([point["l1"] for point in series], [point["validation"] for point in series])
            if elbow is not None:
                series[elbow]["elbow"] = True
        table.sort(key=lambda row: (row["fit"] is None, row["name"], row["l1_alpha"]))
        return [*table, *self._baselines()], sorted(frontier, key=lambda p: (p["name"], p["l1"])), curves

    def _baselines(self) -> list[dict[str, Any]]:
        """The mean predictor and the oracle on the same targets and tokens."""
        latents = self.cards.evaluation.tensors("latents.safetensors")
        variance = latents["variance"][self.ids]
        training = counted_split(self.cfg, self.cards.sides, "train").explain(self.ids)
        test = counted_split(self.cfg, self.cards.sides, "test").explain(self.ids).whole()
        rows = []
        for name, mse in (
            ("mean predictor", mean_predictor(training, test)),
            ("oracle", oracle(self.cfg, self.store).tensors("errors.safetensors")["mse"][self.ids]),
        ):
            fvu = torch.where(variance > 0, mse / variance, torch.nan)
            kept = fvu[~fvu.isnan()]
            rows.append(
                {
                    "name": name,
                    "mse": mse.mean().item(),
                    "fvu": (mse.sum() / variance.sum()).item(),
                    "fvu_median_latent": kept.median().item(),
                    "fraction_predicted": (kept < 0.5).double().mean().item(),
                }
            )
        if self.cfg.transcoder.path is not None:
            found = transcoder(self.cfg, self.store).json(TRANSCODER_FILE)["transcoder"]
            rows.append({"name": "transcoder, read by the target SAE", "fvu": found["fvu_latents"]})
        return rows


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{v:.4g}") if isinstance(v, float) else v for name, v in figures.items()}


def _label(connector: Artifact) -> str:
    recipe = connector.recipe
    name, solver = recipe["connector"]["name"], recipe["solver"]["name"]
    size = f" {recipe['connector']['d_hidden']}" if "d_hidden" in recipe["connector"] else ""
    bias = ", bias" if recipe["connector"]["bias"] else ""
    debias = ", refitted" if recipe["solver"].get("debias") else ""
    effects = f", effects {recipe['solver']['effects']:g}" if "effects" in recipe["solver"] else ""
    return f"{name}{size} by {solver}{effects}{bias}{debias}"
