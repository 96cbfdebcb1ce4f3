"""A suite of SAEs: every chosen layer, hook and width, trained where it is missing, in one table with a card each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from saelink.activations.cache import cache_hooks
from saelink.config.schema import Config, LinkConfig
from saelink.errors import SaelinkError
from saelink.experiments.base import Done, Experiment, Result
from saelink.experiments.tables import Row, paragraph
from saelink.interventions.cross_entropy import ce_figures
from saelink.interventions.sae_losses import SAELossesStage
from saelink.interventions.splice import spliced_tokens
from saelink.job import Job
from saelink.saes.choice import sae_choice
from saelink.saes.training import SAEStage


@dataclass
class SuiteSettings:
    """Settings of the experiment suite."""

    layers: list[int] = field(default_factory=list[int])
    """The blocks; [] is four depths: the first, a quarter of the way, the middle and the last."""
    hooks: list[str] = field(default_factory=lambda: ["mlp_in", "hook_mlp_out"])
    """Hooks of each block, as a link names them."""
    widths: list[int] = field(default_factory=list[int])
    """Numbers of latents; [] is sae.d_sae alone."""


def depths(n_layers: int) -> list[int]:
    """The first block, one a quarter of the way, the middle one and the last, each once."""
    return sorted({0, n_layers // 4, n_layers // 2, n_layers - 1})


class SuiteExperiment(Experiment):
    Settings = SuiteSettings
    title = "SAEs by layer, hook and width: error, active and dead latents, what they cost the model"
    settings = ("layers", "hooks", "widths")
    by_layer = False

    def check(self, settings: SuiteSettings) -> None:
        if any(layer < 0 for layer in settings.layers):
            raise self.mistake(settings, "layers", "give numbers of blocks, counted from 0")
        if not settings.hooks:
            raise self.mistake(settings, "hooks", "give at least one hook, such as [hook_mlp_out]")
        if any(width < 1 for width in settings.widths):
            raise self.mistake(settings, "widths", "give numbers of latents above 0")

    def jobs(self, cfg: Config) -> list[Config]:
        """One for each SAE: its hook is the target, and the source, of a link of its own."""
        settings = self.own(cfg)
        return [
            replace(
                cfg,
                layer=layer,
                link=LinkConfig(name=hook, sources=[hook], target=hook),
                sae=replace(cfg.sae, d_sae=width),
            )
            for layer in settings.layers or self._depths(cfg)
            for hook in settings.hooks
            for width in settings.widths or [cfg.sae.d_sae]
        ]

    def _depths(self, cfg: Config) -> list[int]:
        known = cfg.model.dimensions
        if known.get("of") != cfg.model.path:
            raise SaelinkError("experiment.suite.layers=[]: give the layers of this model, such as [0,5]")
        return depths(known["n_layers"])

    def fits(self, job: Job) -> dict[str, Config]:
        return {}

    def needs(self, job: Job) -> dict[str, str]:
        stages = [(each, SAELossesStage(job.at(each))) for each in self.jobs(job.cfg)]
        return {f"losses {each.layer} {each.link.name} {each.sae.d_sae}": stage.key for each, stage in stages}

    def recipe(self, cfg: Config) -> dict[str, Any]:
        return {"bootstrap": cfg.eval.bootstrap}

    def make(self, job: Job, done: dict[str, Done]) -> Result:
        jobs = [job.at(each) for each in self.jobs(job.cfg)]
        cache_hooks(job.cfg, job.store, [each.link.target for each in jobs])  # one pass of the model for all of them
        rows: list[Row] = []
        for number, each in enumerate(jobs, 1):
            job.observer.say(f"suite: SAE {number} of {len(jobs)}, {each.link.target}, {each.cfg.sae.d_sae:,} latents")
            rows.append(_row(each))
        trained = [row["minutes"] for row in rows if row["minutes"] is not None]
        text = (
            f"{len(rows)} SAEs, {len(trained)} of them trained here in {sum(trained):.1f} minutes of wall time, "
            "encoding and cross-entropies not counted. fvu and l0 on test documents, dead on the training split. "
            f"recovered: (zero - CE) / (zero - clean) on {rows[0]['ce tokens']:,} test tokens. Each SAE is a folder in "
            "SAELens' format, sae/<key> in the outputs; its card is a file of this result, card-*.md."
        )
        pages = {f"card-{row['hook']}-{row['latents']}.md": _card(job, row) for row in rows}
        shown = ["hook", "latents", "k", "fvu", "l0", "dead", "recovered", "minutes", "key"]

        def draw(figure: Any) -> None:
            axes = figure.subplots()
            for name in dict.fromkeys((row["hook"].split(".", 2)[2], row["latents"]) for row in rows):
                chosen = [row for row in rows if (row["hook"].split(".", 2)[2], row["latents"]) == name]
                layers = [row["layer"] for row in chosen]
                axes.plot(layers, [row["fvu"] for row in chosen], "o-", label=f"{name[0]}, {name[1]:,} latents")
            axes.set(xlabel="layer", ylabel="FVU, test documents", title="SAEs by layer")
            axes.legend(fontsize=8)

        return Result(rows, shown, draw, paragraph(text), pages=pages)


def _row(job: Job) -> Row:
    hook = job.link.target
    choice = sae_choice(job.cfg, job.store, hook)
    trained = None if choice.exists else SAEStage(job.cfg, job.store, hook).pull()
    facts = job.sides.target.facts
    stage = SAELossesStage(job)
    losses = stage.pull().tensors("losses.safetensors")
    test = spliced_tokens(job, job.cfg.eval.ce_tokens)
    figures = ce_figures(losses, test.document, job.cfg.eval.bootstrap)
    found = figures["sae"]
    return {
        "layer": job.cfg.layer,
        "hook": hook,
        "latents": facts["d_sae"],
        "k": None if trained is None else job.cfg.sae.k,
        "fvu": facts["fvu"],
        "fvu_typical": facts["fvu_typical"],
        "l0": facts["l0"],
        "dead": facts["dead"],
        "ce tokens": test.ids.numel(),
        "clean": figures["clean"]["ce"],
        "ce": found["ce"],
        "zero": figures["zero"]["ce"],
        "recovered": found["recovered"],
        "recovered_low": found["recovered_low"],
        "recovered_high": found["recovered_high"],
        "training tokens": None if trained is None else trained.facts["training_tokens"],
        "minutes": None if trained is None else trained.manifest["provenance"]["seconds"] / 60,
        "key": choice.key,
    }


def _card(job: Job, row: Row) -> str:
    """What to know of one SAE, in Markdown."""
    cfg, trained = job.cfg, row["minutes"] is not None
    how = (
        f"TopK {row['k']}, trained on {row['training tokens']:,} tokens ({cfg.sae.epochs:g} passes, "
        f"{cfg.sae.batch_tokens:,} a step, learning rate {cfg.sae.lr:g}) in {row['minutes']:.1f} minutes"
        if trained
        else f"not trained here: {row['key']}"
    )
    begin = "each begins with the begin-of-text token" if cfg.data.prepend_bos else "no begin-of-text token is added"
    dropped = f"the first {cfg.data.drop_positions} positions are left out"
    return f"""# SAE of {cfg.model.label}, {row["hook"]}, {row["latents"]:,} latents

- Model: {cfg.model.label} ({cfg.model.path}), {cfg.model.dtype.name}. Text: {cfg.data.name}.
- Sequences of {cfg.data.context_size} tokens; {begin}; {dropped}.
- {how}.

| on documents that it was not trained on | |
|---|---|
| error, FVU | {row["fvu"]:.4f} |
| FVU without rows of massive activations | {row["fvu_typical"]:.4f} |
| active latents a token | {row["l0"]:.2f} |
| dead latents (on the training split) | {row["dead"]:,} of {row["latents"]:,} |
| cross-entropy: model, with the SAE, with zeros | {row["clean"]:.4f}, {row["ce"]:.4f}, {row["zero"]:.4f} |
| cross-entropy recovered | {row["recovered"]:.4f} ({row["recovered_low"]:.4f} to {row["recovered_high"]:.4f}) |
"""
