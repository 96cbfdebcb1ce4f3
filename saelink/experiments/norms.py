"""How large activations are by layer and hook."""

from __future__ import annotations

from typing import Any

from saelink.activations.norms import NormsStage
from saelink.config.schema import Config
from saelink.experiments.base import Done, Experiment, Result
from saelink.job import Job


class NormsExperiment(Experiment):
    title = "Norms of the activations by layer and hook"
    by_layer = False

    def jobs(self, cfg: Config) -> list[Config]:
        return []  # activations alone

    def fits(self, job: Job) -> dict[str, Config]:
        return {}

    def needs(self, job: Job) -> dict[str, str]:
        return {"norms": NormsStage(job.cfg, job.store).key}

    def make(self, job: Job, done: dict[str, Done]) -> Result:
        table = NormsStage(job.cfg, job.store).pull().json("norms.json")
        hooks = list(dict.fromkeys(row["hook"] for row in table))
        rows = []
        for layer in dict.fromkeys(row["layer"] for row in table):
            here = {row["hook"]: row for row in table if row["layer"] == layer}
            rows.append(
                {"layer": layer}
                | {f"mean {hook.removeprefix('hook_')}": here[hook]["mean_norm"] for hook in hooks if hook in here}
                | {f"median {hook.removeprefix('hook_')}": here[hook]["median_norm"] for hook in hooks if hook in here}
            )

        def draw(figure: Any) -> None:
            axes = figure.subplots()
            for hook in hooks:
                chosen = [row for row in table if row["hook"] == hook]
                (line,) = axes.semilogy([row["layer"] for row in chosen], [row["mean_norm"] for row in chosen], "o-")
                line.set_label(hook)
            axes.set(xlabel="layer", ylabel="mean l2 norm", title="Norms of the activations")
            axes.legend(fontsize=8)

        shown = [name for name in rows[0] if not name.startswith("median")]
        text = "  Mean l2 norms over training tokens, dropped positions left out; the CSV has medians too."
        return Result(rows, shown, draw, text)
