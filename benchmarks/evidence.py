"""Evidence on a layer's edges beyond single ablations: what docs/results/evidence.md shows.

    python -m benchmarks.evidence LAYER [PIECE ...]     # writes benchmarks/evidence.json

Pieces: `ranks`, rank agreement with effects for several ways to draw edges; `causal`, the same of solver=causal;
`outputs`, effectiveness and helpfulness of every edge; `removed`, 200 edges taken out of the running model; `pruned`,
prune curves; `transfer`, the same connector on other text, Python's standard library, a document a module;
`transfer_effects`, the verdicts there; `splice`, cross-entropy, KL and top-1. Without a piece all are made. Artifacts
are taken from the folder `outputs` where they are there.
"""

from __future__ import annotations

import json
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.edges import _correlation as correlation
from benchmarks.edges import _random as random_weights
from benchmarks.edges import _ridge as ridge
from benchmarks.figures import configured
from saelink.compose import register
from saelink.evidence.claims import Claims, claims
from saelink.evidence.edge_removals import REMOVALS_FILE, EdgeRemovalsStage
from saelink.evidence.effectiveness import OUTPUTS_FILE, EffectivenessStage
from saelink.evidence.evaluate import EvaluateStage
from saelink.evidence.pruned import PRUNED_FILE, PrunedStage
from saelink.evidence.rank_agreement import FIGURES
from saelink.evidence.verdicts import judged
from saelink.evidence.verify import VerdictsStage
from saelink.fit.products.dense import GramStage, load_gram
from saelink.fit.train import TrainStage, fitted_connector
from saelink.interventions.effects import EffectsStage, load_effects
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.progress import Observer
from saelink.store.store import Store

FILE = Path(__file__).with_name("evidence.json")

FITS = {
    "exact linear, l1_alpha 1e-2": ["l1_alpha=1e-2"],
    "exact linear, 3e-3": ["l1_alpha=3e-3"],
    "exact linear, 8e-4": [],
    "exact linear, 0 (least squares)": ["l1_alpha=0"],
}

CAUSAL = {"causal linear, effects 2, 2e-3": ["solver=causal", "l1_alpha=2e-3"]}

ASKED = ["verify.edges_checked=200", "verify.check_tokens=256", "verify.pruned_tokens=1024"]

OTHER_TOKENS = 100_000
"""Of the other text."""

MODULES, SMALLEST, LARGEST = 400, 1000, 12_000
"""Files of Python's standard library, and how many bytes they have."""


def job_of(layer: str, *words: str) -> Job:
    return Job(configured([f"layer={layer}", "wandb.mode=disabled", *words]), Store("outputs"))


def ranks(layer: str) -> dict[str, Any]:
    """Rank agreement by way to draw edges; correlation, ridge and random keep as many edges as the lasso at 8e-4."""
    base = job_of(layer)
    measured, found = load_effects(EffectsStage(base).pull()), ranks_of(layer, FITS)
    lasso = fitted_connector(TrainStage(base).pull())
    ids, weight = lasso.target_ids, lasso.output_weight().detach()
    tokens = load_split(base.cfg, base.sides, "train", ids)
    products = load_gram(GramStage(base).pull()).explain(ids)
    more = {"ridge": ridge(products), "correlation": correlation(tokens).float(), "random": random_weights(weight)}
    for name, matrix in more.items():
        claim = matrix * (measured.source_mean[:, None] if name == "ridge" else 1)
        kept = claim.abs().flatten().sort(descending=True).indices[: int((weight != 0).sum())]
        sparse = torch.zeros(claim.numel()).index_copy_(0, kept, claim.flatten()[kept])
        found[name] = figures(Claims.of_dense(sparse.view_as(claim)), measured, ids)
        print(name, found[name]["spearman"], found[name]["auroc"], flush=True)
    return found


def ranks_of(layer: str, fits: dict[str, list[str]]) -> dict[str, Any]:
    """Rank agreement of fitted connectors."""
    measured = load_effects(EffectsStage(job_of(layer)).pull())
    found: dict[str, Any] = {}
    for name, words in fits.items():
        job = job_of(layer, *words)
        connector = fitted_connector(TrainStage(job).pull())
        test = load_split(job.cfg, job.sides, "test", connector.target_ids)
        claimed = claims(connector, measured, test, job.cfg.verify.tokens_per_source, "cpu", Observer())
        found[name] = figures(claimed, measured, connector.target_ids)
        print(name, found[name]["spearman"], found[name]["auroc"], flush=True)
    return found


def causal(layer: str) -> dict[str, Any]:
    """Rank agreement of solver=causal, which needs effects on training documents."""
    return ranks_of(layer, CAUSAL)


def figures(claimed: Claims, measured: Any, ids: torch.Tensor) -> dict[str, Any]:
    whole = judged(claimed, measured, ids, 0.1)[0]
    return {"edges": whole["edges"]} | {f"{name}{end}": whole[f"{name}{end}"] for name in FIGURES for end in ENDS}


ENDS = ("", "_low", "_high")


def outputs(layer: str) -> dict[str, Any]:
    """Facts of the three stages, the prune curve, and how other figures of an edge go with effectiveness."""
    from scipy.stats import spearmanr

    job = job_of(layer, *ASKED)
    artifact = EffectivenessStage(job).pull()
    tensors = artifact.tensors(OUTPUTS_FILE)
    beside = {
        name: float(spearmanr(tensors["effectiveness"], value)[0])  # pyright: ignore[reportArgumentType]
        for name, value in (("weight", tensors["weight"].abs()), ("helpfulness", tensors["helpfulness"]))
    }
    result: dict[str, Any] = {"facts": dict(artifact.facts), "spearman_with_effectiveness": beside}
    result["seconds"] = artifact.manifest["provenance"]["seconds"]
    return result


def removed(layer: str) -> dict[str, Any]:
    """Edges taken out of the running model beside the estimates; sums also without the edge that does most."""
    artifact = EdgeRemovalsStage(job_of(layer, *ASKED)).pull()
    return dict(artifact.facts) | without_largest(artifact.tensors(REMOVALS_FILE))


def without_largest(tensors: dict[str, torch.Tensor]) -> dict[str, float]:
    """What the edge with the largest divergence has of all, and how sums agree over the others."""
    kl = tensors["kl"].double()
    rest = torch.arange(len(kl)) != kl.argmax()
    x, y = tensors["helpfulness"].double()[rest], tensors["loss"].double()[rest]
    return {
        "largest_share": (kl.max() / kl.sum()).item(),
        "rest_ratio_effectiveness": (tensors["effectiveness"].double()[rest].sum() / kl[rest].sum()).item(),
        "rest_slope_helpfulness": ((x * y).sum() / x.square().sum()).item(),
    }


def pruned(layer: str) -> dict[str, Any]:
    """The prune curves."""
    artifact = PrunedStage(job_of(layer, *ASKED)).pull()
    return {"rows": artifact.json(PRUNED_FILE), **artifact.facts}


def elsewhere(layer: str, figures_of: Callable[[Job], dict[str, Any]]) -> dict[str, Any]:
    """Figures on the fit's own test documents and on those of other text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "python.jsonl"
        write_library(path)
        other = f"eval.data={{path: {path}, name: python, max_tokens: {OTHER_TOKENS}}}"
        texts: dict[str, list[str]] = {"wiki": [], "Python's standard library": [other]}
        return {name: figures_of(job_of(layer, *words)) for name, words in texts.items()}


def transfer(layer: str) -> dict[str, Any]:
    """What evaluate says on either text."""
    wanted = ("n_tokens", "fvu", "fvu_typical", "fvu_median_latent", "fraction_predicted", "n_targets_active")

    def of(job: Job) -> dict[str, Any]:
        metrics = EvaluateStage(job).pull().json("metrics.json")
        return {key: metrics[key] for key in wanted}

    return elsewhere(layer, of)


def transfer_effects(layer: str) -> dict[str, Any]:
    """What the verdicts come to on either text."""
    shown = ("precision_1x", "recall_10x", "sign_1x", "slope_1x", *FIGURES)

    def of(job: Job) -> dict[str, Any]:
        found = VerdictsStage(job).pull().json("figures.json")
        row = {f"{key}{end}": found[f"{key}{end}"] for key in shown for end in ENDS}
        return {"strong": found["strong"], "sources_judged": found["sources_judged"], **row}

    return elsewhere(layer, of)


def write_library(path: Path) -> None:
    """Modules of this Python's standard library, neither short nor long, a JSON line each."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in library.rglob("*.py") if not {"site-packages", "test", "tests"} & {*file.parts}]
    files = sorted(file for file in files if SMALLEST < file.stat().st_size < LARGEST)
    with path.open("w", encoding="utf-8") as out:
        for file in files[:MODULES]:
            text = file.read_text("utf-8", "replace")
            out.write(json.dumps({"text": text}) + "\n")


def splice(layer: str) -> dict[str, Any]:
    """What evaluate says of each splice."""
    return EvaluateStage(job_of(layer, "eval.ce=true", "eval.ce_tokens=4096")).pull().json("ce.json")


PIECES: dict[str, Callable[[str], dict[str, Any]]] = {
    "ranks": ranks, "causal": causal, "outputs": outputs, "removed": removed, "pruned": pruned, "transfer": transfer,
    "transfer_effects": transfer_effects, "splice": splice,
}  # fmt: skip


def main() -> None:
    register()
    layer, *pieces = sys.argv[1:]
    for piece in pieces or PIECES:
        found = PIECES[piece](layer)
        result = json.loads(FILE.read_text()) if FILE.exists() else {}
        result.setdefault(f"layer {layer}", {})[piece] = found
        FILE.write_text(json.dumps(result, indent=1) + "\n")
        print(piece, json.dumps(found)[:2000], flush=True)


if __name__ == "__main__":
    main()
