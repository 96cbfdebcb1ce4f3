"""Measure a connector on test documents and read its circuits: the stage `evaluate`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NotRequired, TypedDict, cast

import torch

from saelink import memory
from saelink.connectors.base import Connector
from saelink.evidence.circuits import circuit_text, circuits_of
from saelink.evidence.measured import measured
from saelink.evidence.names import names_inputs
from saelink.fit.train import TrainStage, fitted_connector, shape_of
from saelink.interventions.cross_entropy import BaselinesStage, baseline_predictions, compared_figures
from saelink.interventions.predictions import Replaced, compared
from saelink.interventions.splice import Splice, losses_need, spliced_tokens
from saelink.job import Job, JobStage
from saelink.latents.link import load_split
from saelink.latents.metrics import ErrorSums, in_steps
from saelink.latents.rows import sparse_linear
from saelink.latents.split import Tokens
from saelink.progress import Observer
from saelink.store.draft import Draft
from saelink.store.recipe import recipe_of
from saelink.store.stage import Need

PREDICTED = 0.5
"""A target latent counts as predicted when its FVU is below this."""


class EvaluateFacts(TypedDict):
    """What `metrics.json` holds too: figures on the test split, over all tokens that count."""

    n_tokens: int
    n_tokens_typical: int
    mse: float
    fvu: float
    fvu_typical: float
    """Without tokens of massive activations."""
    fvu_median_latent: float
    fraction_predicted: float
    l1: float
    n_edges: int
    n_targets: int
    n_targets_active: int
    d_target: int
    other_text: NotRequired[str]
    """What it was measured on (eval.data), where that is not the text of the fit."""
    ce_loss_recovered: NotRequired[float]
    """With eval.ce; beside it ce_clean, ce_connector and the like,"""
    ce_kl: NotRequired[float]
    """the divergence of the prediction from the clean one in nats,"""
    ce_top1: NotRequired[float]
    """and how often the likeliest next token is the same."""
    hidden_l0: NotRequired[float]
    dead_outputs: NotRequired[int]


class EvaluateStage(JobStage[EvaluateFacts]):
    """A connector's evaluation on the test split.

    Files: `metrics.json`; `latents.safetensors` with, for every latent of the target SAE, `fvu`, `mse`, `variance`
    (nan where it is not explained; fvu also where it never varies) and `active` (test tokens), for a connector with a
    linear part beside hidden units also `linear`, see linear_shares; `circuits.json` and
    `circuits.txt`; with eval.ce also `ce.json`, what cross_entropy.compared_figures says of each splice.
    """

    name = "evaluate"
    version = 5

    def __init__(self, job: Job):
        super().__init__(job.measured)
        self._train = TrainStage(self.job)

    def recipe(self) -> dict[str, Any]:
        settings = recipe_of(self.job.cfg.eval)
        del settings["verify"]  # what comes after
        del settings["data"]  # the latents say which
        if not self.job.cfg.eval.ce:
            settings = {name: value for name, value in settings.items() if name not in ("ce_tokens", "bootstrap")}
        return {"eval": settings}

    def inputs(self) -> dict[str, str]:
        ce = {"ce": BaselinesStage(self.job).key} if self.job.cfg.eval.ce else {}
        other = {} if self.job.fitted is None else self.latents_inputs()
        return {"connector": self._train.key, **names_inputs(self.job), **ce, **other}

    def about(self) -> str:
        return self._train.about() + ("" if self.job.fitted is None else f", on {self.job.cfg.data.label}")

    def need(self) -> Need:
        needed, way_out = measuring_bytes(self.job), "use SAEs with fewer latents, or less text (data.max_tokens)"
        return (
            losses_need(self.job, f"{way_out}, or eval.ce=false", needed)
            if self.job.cfg.eval.ce
            else Need(needed, way_out)
        )

    def make(self, draft: Draft) -> EvaluateFacts:
        job, sides = self.job, self.job.sides
        artifact = self._train.pull()
        connector = fitted_connector(artifact, job.device)
        ids = connector.target_ids.cpu()
        test = load_split(job.cfg, sides, "test", ids)
        sums, extra = measured(measure_connector, job, artifact, connector, test, draft)
        shares = linear_shares(connector, test, sums["all"], job.device)
        figures = _figures(job, connector, sums, shares, sides.d_target) | extra
        if job.cfg.normalise.name != "none":
            figures["normalised_mse"] = figures["mse"] / artifact.facts["c"]
        if job.cfg.eval.ce:
            losses = _ce(job, connector, draft)
            names = ("clean", "sae", "connector", "oracle", "mean", "zero")
            figures |= {f"ce_{name}": losses[name]["ce"] for name in names}
            figures["ce_loss_recovered"] = losses["connector"]["recovered"]
            figures["ce_kl"], figures["ce_top1"] = losses["connector"]["kl"], losses["connector"]["top1"]
            figures["ce_tokens"] = spliced_tokens(job, job.cfg.eval.ce_tokens).ids.numel()
        if job.fitted is not None:
            figures["other_text"] = job.cfg.data.label
        draft.save_json("metrics.json", figures)
        _save_latents(draft, sums["all"], shares, ids, sides.d_target)
        by_latent, active = sums["all"].fvu_by_latent(), sums["all"].active
        circuits = circuits_of(job, connector, by_latent, active, shares)
        draft.save_json("circuits.json", circuits)
        draft.save_bytes("circuits.txt", ("\n".join(map(circuit_text, circuits)) + "\n").encode())
        return cast("EvaluateFacts", figures)


def measuring_bytes(job: Job) -> float:
    """Memory that a connector and its predictions for the test split take."""
    return memory.evaluate(shape_of(job), job.sides.split_bytes("test"))


def _figures(
    job: Job, connector: Connector, sums: dict[str, ErrorSums], shares: torch.Tensor | None, d_target: int
) -> dict[str, Any]:
    """What errors, edges and shares come to."""
    everything = sums["all"]
    by_latent = everything.fvu_by_latent()
    varying = ~by_latent.isnan()
    figures: dict[str, Any] = {
        "n_tokens": everything.n,
        "n_tokens_typical": sums["typical"].n,
        "mse": everything.mse(),
        "fvu": everything.fvu(),
        "fvu_typical": sums["typical"].fvu(),
        "l1": connector.l1(),
        "n_edges": connector.n_edges(),
        **{f"n_edges_above_{threshold:g}": connector.n_edges(threshold) for threshold in job.cfg.eval.edge_thresholds},
        "fvu_median_latent": by_latent[varying].median().item(),
        "fraction_predicted": (by_latent[varying] < PREDICTED).double().mean().item(),
        "n_targets": connector.d_target,
        "n_targets_active": int(varying.sum()),
        "d_target": d_target,
    }
    if shares is not None:
        known = shares[~shares.isnan()]
        figures["linear_share_median"] = known.median().item() if len(known) else None
        figures["n_targets_linear"] = int((connector.output_weight()[connector.direct :] == 0).all(0).sum())
    return figures


def _save_latents(draft: Draft, sums: ErrorSums, shares: torch.Tensor | None, ids: torch.Tensor, d_target: int) -> None:
    """The figures of every latent of the target SAE, explained or not."""

    def everywhere(values: torch.Tensor, elsewhere: float) -> torch.Tensor:
        return torch.full((d_target,), elsewhere, dtype=values.dtype).scatter(0, ids, values)

    draft.save_tensors(
        "latents.safetensors",
        {
            "fvu": everywhere(sums.fvu_by_latent(), torch.nan),
            "mse": everywhere(sums.squared_error / sums.n, torch.nan),
            "variance": everywhere(sums.variation() / sums.n, torch.nan),
            "active": everywhere(sums.active, 0),
            **({} if shares is None else {"linear": everywhere(shares, torch.nan)}),
        },
    )


def measure_connector(
    connector: Connector, test: Tokens, device: str, observer: Observer
) -> tuple[dict[str, ErrorSums], dict[str, float]]:
    """Sums over `all` tokens that count and over the `typical` ones among them; figures of some connectors only.

    Those are hidden_l0 and hidden_l1, the mean number and the mean l1 norm of active hidden units per token, and
    dead_outputs, the target latents that a connector with relu outputs never predicts above zero.
    """
    parts = {
        name: test.subset(rows) for name, rows in (("typical", test.typical), ("massive", ~test.typical)) if rows.any()
    }
    sums = {"typical": ErrorSums(test.target.d), "massive": ErrorSums(test.target.d)}
    hidden_l0, hidden_l1, hidden_units = 0, 0.0, False
    predicted_once = torch.zeros(test.target.d, dtype=torch.bool, device=device)
    with observer.progress("evaluate", len(test)) as bar, torch.inference_mode():
        for name, part in parts.items():
            for source, target in in_steps(part.source, part.target):
                bar.advance(len(source))
                sparse = connector.sparse_prediction(source)
                if sparse is not None:
                    sums[name].add_sparse(*sparse, target)
                    continue
                z, hidden = connector.maps(source.to(device))
                if connector.relu_output:
                    z = torch.relu(z)
                    predicted_once |= (z > 0).any(0)
                if hidden is not None:
                    hidden_units = True
                    hidden_l0 += int((hidden > 0).sum())
                    hidden_l1 += hidden.double().sum().item()
                sums[name].add(z.cpu(), target)
    extra: dict[str, float] = {}
    if hidden_units:
        extra |= {"hidden_l0": hidden_l0 / len(test), "hidden_l1": hidden_l1 / len(test)}
    if connector.relu_output:
        extra["dead_outputs"] = int((~predicted_once).sum())
    return {"all": sums["typical"] + sums["massive"], "typical": sums["typical"]}, extra


def linear_shares(
    connector: Connector, test: Tokens, together: ErrorSums, device: str
) -> torch.Tensor | None:  # fmt: skip
    """[d_target] of what a connector with a linear part and hidden units explains, the share that is linear.

    (1 - FVU of the linear part beside the hidden part's mean) / (1 - FVU), between 0 and 1; nan where nothing is
    explained. `together` are the connector's own sums on these tokens. None for a connector without either part.
    """
    if not (connector.direct and connector.n_hidden):
        return None
    linear, through = connector.output_weight().split([connector.direct, connector.n_hidden])
    bias = dict(connector.named_parameters()).get("b2")
    hidden = torch.zeros(connector.n_hidden, dtype=torch.float64)
    with torch.inference_mode():
        for (source,) in in_steps(test.source):
            found = connector.maps(source.to(device))[1]
            assert found is not None
            hidden += found.double().sum(0).cpu()
        constant = (hidden / len(test)) @ through.double().cpu()
        constant += 0 if bias is None else bias.detach().double().cpu()
        sums = ErrorSums(test.target.d)
        for source, target in in_steps(test.source, test.target):
            sums.add(sparse_linear(source.to(device), linear).cpu() + constant.float(), target)
    explained = 1 - together.fvu_by_latent()
    share = ((1 - sums.fvu_by_latent()) / explained).clamp(0, 1)
    return torch.where(explained > 0, share, torch.nan)


def _ce(job: Job, connector: Connector, draft: Draft) -> dict[str, dict[str, float]]:
    """Cross-entropy, divergence and top-1 with the connector's prediction at the target, with and without SAE error.

    Target latents that the connector does not explain keep their true value.
    """
    sides = job.sides
    found = baseline_predictions(BaselinesStage(job).pull())
    test = spliced_tokens(job, job.cfg.eval.ce_tokens)
    device = job.device
    ids = connector.target_ids.cpu()
    with Splice(job, test, 3) as splice:
        counted = load_split(job.cfg, sides, "test", ids)
        counted = counted.subset(counted.row < test.ids.numel())
        moved = splice.decode_changes(ids, prediction_changes(connector, counted, sides.scales[-1], device))
        replaced = Replaced(splice.decode(splice.true_latents()) + moved)
        found |= compared(splice, {"connector": replaced, "connector_with_error": Replaced(moved, added=True)})
    figures = compared_figures(found, test.document, job.cfg.eval.bootstrap)
    draft.save_json("ce.json", figures)
    return figures


def prediction_changes(
    connector: Connector, counted: Tokens, scale: float, device: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A few tokens at a time their positions, and prediction minus truth [n, d_target], times the targets' `scale`."""
    first = 0
    with torch.inference_mode():
        for source, target in in_steps(counted.source, counted.target):
            difference = connector(source.to(device)).cpu() - target.dense()
            yield counted.row[first : first + len(source)], difference.mul_(scale)
            first += len(source)
