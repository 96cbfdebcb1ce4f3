"""How faithful are the strongest edges of a graph alone, and all others? CPR and CMD over the share of edges kept.

Edges are ranked by what they claim, as in `edges_kept`. The complement of a share is the prediction of all other
edges; a graph whose strongest edges are what the model uses has a low one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from saelink.config.schema import Config
from saelink.evidence.evaluate import prediction_changes
from saelink.evidence.faithfulness import SHARES, areas, faithfulness
from saelink.experiments.base import Done, Experiment, Result
from saelink.experiments.edges_kept import ranked, ranked_bytes
from saelink.experiments.fits import fit
from saelink.experiments.tables import Row, paragraph
from saelink.interventions.cross_entropy import BaselinesStage
from saelink.interventions.effects import EffectsStage
from saelink.interventions.splice import Splice, losses_need, spliced_tokens
from saelink.job import Job
from saelink.latents.link import load_split


@dataclass
class FaithfulnessSettings:
    """Settings of the experiment faithfulness."""

    shares: list[float] = field(default_factory=lambda: list(SHARES))
    """Of each graph's edges, at which it is measured; above 0 and at most 1."""
    tokens: int = 2048
    """Test tokens it is measured on."""


class FaithfulnessExperiment(Experiment):
    title = "Faithfulness against the share of edges kept"
    Settings = FaithfulnessSettings
    settings = ("shares", "tokens")
    by_evaluation = False

    def check(self, settings: FaithfulnessSettings) -> None:
        if not settings.shares or not all(0 < share <= 1 for share in settings.shares):
            raise self.mistake(settings, "shares", "give shares above 0 and at most 1, such as [.01,1]")
        if settings.tokens < 1:
            raise self.mistake(settings, "tokens", "must be at least 1")

    def fits(self, job: Job) -> dict[str, Config]:
        return {
            "lasso at 8e-4": fit(job.cfg, "linear", "exact", l1_alpha=8e-4),
            "causal": fit(job.cfg, "linear", "causal", l1_alpha=2e-3),
        }

    def needs(self, job: Job) -> dict[str, str]:
        return {"ce": BaselinesStage(job).key, "effects": EffectsStage(job, "train").key}

    def recipe(self, cfg: Config) -> dict[str, Any]:
        return {"bootstrap": cfg.eval.bootstrap}

    def memory(self, job: Job) -> float:
        """All graphs at once, and the model run with what is left of one."""
        return ranked_bytes(job, list(self.fits(job).values())) + losses_need(job, "").bytes

    def make(self, job: Job, done: dict[str, Done]) -> Result:
        settings, sides = self.own(job.cfg), job.sides
        shares = sorted(set(settings.shares))
        baselines = BaselinesStage(job).pull().tensors("losses.safetensors")
        test = spliced_tokens(job, min(settings.tokens, job.cfg.eval.ce_tokens))
        losses = {name: baselines[name][: len(test.ids)] for name in ("clean", "sae", "zero")}
        graphs = ranked(job, {label: result.connector for label, result in done.items()})
        ids = graphs["causal"].connector.target_ids
        counted = load_split(job.cfg, sides, "test", ids)
        counted = counted.subset(counted.row < test.ids.numel())
        kept: dict[tuple[str, float], int] = {}
        with Splice(job, test, 2 * len(graphs) * len(shares)) as splice:
            true = splice.decode(splice.true_latents())
            for label, graph in graphs.items():
                whole = graph.n_edges
                for share in shares:
                    size = max(round(share * whole), 1)
                    for part, left in (("kept", graph.keep), ("others", graph.drop)):
                        left(size)
                        changes = prediction_changes(graph.connector, counted, sides.scales[-1], "cpu")
                        losses[f"{label} {part} {share}"] = splice.losses(true + splice.decode_changes(ids, changes))
                    kept[label, share] = size
        rows: list[Row] = []
        found: dict[str, dict[str, float]] = {}
        for label in graphs:
            curves = {
                part: faithfulness(
                    losses, [f"{label} {part} {share}" for share in shares], test.document, job.cfg.eval.bootstrap
                )
                for part in ("kept", "others")
            }
            found[label] = areas(shares, *curves["kept"])
            found[label] |= {f"complement_{name}": value for name, value in areas(shares, *curves["others"]).items()}
            for number, share in enumerate(shares):
                row: Row = {"layer": job.cfg.layer, "edges of": label, "share": share, "n_edges": kept[label, share]}
                for name, (f, again) in (("f", curves["kept"]), ("complement", curves["others"])):
                    ends = again[:, number].quantile(again.new_tensor([0.025, 0.975])).tolist()
                    row |= {name: f[number].item(), f"{name}_low": ends[0], f"{name}_high": ends[1]}
                rows.append(row)
        sae = faithfulness(losses, ["sae"], test.document, 1)[0].item()
        said = "; ".join(
            f"{label} CPR {each['cpr']:.3f}, CMD {each['cmd']:.3f}, over log share {each['cpr_log']:.3f} and "
            f"{each['cmd_log']:.3f}"
            for label, each in found.items()
        )
        text = paragraph(f"{test.ids.numel():,} test tokens; the SAE alone has f {sae:.3f}. {said}.")

        def draw(figure: Any) -> None:
            axes = figure.subplots()
            for number, label in enumerate(graphs):
                mine = [row for row in rows if row["edges of"] == label]
                for name, style in (("f", "o-"), ("complement", "x:")):
                    axes.plot(shares, [row[name] for row in mine], style, color=f"C{number}", label=f"{label}, {name}")
            axes.axhline(sae, color="black", lw=1, ls="--", label="sae")
            axes.set(xscale="log", xlabel="share of edges kept (complement: taken away)", ylabel="faithfulness")
            axes.set_title(f"The strongest edges alone and the others alone, layer {job.cfg.layer}", fontsize=10)
            axes.legend(fontsize=8)

        return Result(rows, draw=draw, text=text, facts={"faithfulness": found})
