"""The stages as functions for scripts and notebooks; `saelink.<name>` is where to call them from.

Each takes the configuration of one job and gives its artifact in cfg.runtime.outputs: what exists is found, what is
missing is made. `observer` is told how it goes; without one it is printed, `saelink.Observer()` keeps quiet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from saelink.compose import composing
from saelink.config.check import check, single
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.job import Job, Memory
from saelink.mistakes import checked, hydra_line, of_settings
from saelink.progress import Observer
from saelink.store.artifact import Artifact
from saelink.store.store import Store
from saelink.terminal.progress import TerminalObserver

if TYPE_CHECKING:
    from saelink.report.shown import ByHook, Shown, Sweep, VerifiedEdges


def configure(*overrides: str) -> Config:
    """The configuration of one job, as the command line makes it: configure("layer=3", "connector=mlp").

    Without overrides it is the default: offline model, text and SAEs, the MLP of layer 1, the exact linear connector.
    Raises SaelinkError for a setting that does not exist or is out of range.
    """
    from hydra import compose
    from omegaconf import OmegaConf

    given = checked(overrides, many=False).overrides
    try:
        with composing():
            cfg = OmegaConf.to_object(compose("config", given))
    except Exception as error:  # Hydra's, and those of what it reads files of settings with
        if not of_settings(error):
            raise
        raise SaelinkError(hydra_line(error)) from None
    assert isinstance(cfg, Config)
    check(cfg)
    return cfg


def cache_acts(cfg: Config, observer: Observer | None = None) -> ByHook:
    """By hook of the link the model's activations: shards of [sequences, context_size, d_model] in bfloat16.

    Raises SaelinkError for a model, text or hook that is not there, and where the disk is too small.
    """
    from saelink.activations.cache import cache_hooks

    job = _job(cfg, observer)
    return _by_hook(cache_hooks(job.cfg, job.store, [*job.link.sources, job.link.target]))


def encode_latents(cfg: Config, observer: Observer | None = None) -> ByHook:
    """By hook of the link its SAE's latents on all tokens: sparse rows [tokens, d_sae], in the SAE's own units.

    An SAE that is missing is trained, unless sae.train_missing is false. Raises SaelinkError for an SAE that can't be
    read or does not belong to the model, and for one that has to be trained where sae-lens is not installed.
    """
    from saelink.latents.encode import encode_hooks

    job = _job(cfg, observer)
    return _by_hook(encode_hooks(job.cfg, job.store, [*job.link.sources, job.link.target]))


def fit_connector(cfg: Config, observer: Observer | None = None) -> Shown[Any]:
    """A fitted connector: weights [d_source, d_target] in units of the latents' scales.

    Its facts have figures on validation documents: `validation_fvu` (0 is perfect, 1 predicts the mean),
    `validation_mse` in squared units of the target's scale, `n_edges`, `l1` (the mean over targets of the sum of
    |weights|). cfg.l1_alpha is one number here, see `sweep_connectors` for several. Raises SaelinkError for settings
    of connector and solver that don't go together.
    """
    from saelink.fit.train import TrainStage
    from saelink.report.shown import Shown

    return Shown(TrainStage(_job(single(cfg), observer)).pull())


def sweep_connectors(*cfgs: Config, observer: Observer | None = None) -> Sweep:
    """A connector for every penalty in each configuration's l1_alpha, a number or a list: error against sparsity.

    `points` has a row a connector, figures on validation documents; table and picture are in the sweep's folder too.
    Raises SaelinkError without a configuration, and for configurations with different runtime.outputs.
    """
    from saelink.fit.penalties import penalties
    from saelink.fit.train import TrainStage
    from saelink.report.shown import Sweep
    from saelink.tracking.sweep import begin, record, sweep_of, write_pareto

    if len({cfg.runtime.outputs for cfg in cfgs}) != 1:
        raise SaelinkError("sweep_connectors: give one configuration or more, all with the same runtime.outputs")
    memory = Memory()  # shared: the path of a lasso goes on from one penalty to the next
    connectors = [
        TrainStage(job).pull() for cfg in cfgs for job in penalties(replace(_job(cfg, observer), memory=memory))
    ]
    store = Store(cfgs[0].runtime.outputs, observer or TerminalObserver())
    sweep_id = sweep_of([connector.key for connector in connectors])
    begin(store, sweep_id)
    for connector in connectors:
        record(store, sweep_id, connector, connector.manifest["about"])
    write_pareto(store, sweep_id)
    return Sweep(store, sweep_id)


def evaluate_connector(cfg: Config, observer: Observer | None = None) -> Shown[Any]:
    """The connector's figures on test documents, and its circuits.

    Files: `metrics.json` (what its facts have too), `latents.safetensors` (by latent of the target SAE, [d_sae]:
    `fvu`, `mse`, `variance`, `active`), `circuits.json` and `circuits.txt`. Raises SaelinkError as `fit_connector`.
    """
    from saelink.evidence.evaluate import EvaluateStage
    from saelink.report.shown import Shown

    return Shown(EvaluateStage(_job(single(cfg), observer)).pull())


def verify_edges(cfg: Config, observer: Observer | None = None) -> VerifiedEdges[Any]:
    """The verdict of ablating every source latent in the model on each of the connector's edges.

    `edge(source, target)` is the claim, the effect, both in units of the target's mean active value, and the verdict;
    `missed(target)` lists strong effects without an edge. Raises SaelinkError for a link whose effects can't be
    measured.
    """
    from saelink.evidence.verify import VerifyStage
    from saelink.report.shown import VerifiedEdges

    return VerifiedEdges(VerifyStage(_job(single(cfg), observer)).pull())


def test(cfg: Config, *circuits: str, observer: Observer | None = None) -> Shown[Any]:  # noqa: PT028
    """Tests of whether circuits are what computes their targets: test(job, "OF138", "OF1297").

    File `tests.json`: a list with, for each, its sources and tokens, equivalence, independence and by edge minimality,
    each with `p` and `p_corrected` (Holm, over all that are asked). Raises SaelinkError for a name that means no target
    latent and for a target without edges.
    """
    from saelink.evidence.protocol import CircuitTestsStage, numbers_of
    from saelink.report.shown import Shown

    if not circuits:
        raise SaelinkError('test: name at least one target latent, such as saelink.test(job, "OF138")')
    job = _job(single(cfg), observer)
    return Shown(CircuitTestsStage(job, numbers_of(job, circuits)).pull())


def make_report(cfg: Config, observer: Observer | None = None) -> Shown[Any]:
    """The HTML page of the connectors at all penalties of cfg.l1_alpha; its file is report.html.

    `open` shows its cards one by one. Raises SaelinkError as `fit_connector`.
    """
    from saelink.report.shown import Shown
    from saelink.report.stage import ReportStage

    return Shown(ReportStage(_job(cfg, observer), "saelink.make_report(...)").pull())


def export_connector(cfg: Config, observer: Observer | None = None) -> Shown[Any]:
    """The connector's folder for others: what `load_connector` reads, its card, its edges as tables and graphs.

    Its `path` is that folder. Raises SaelinkError as `fit_connector`.
    """
    from saelink.report.shown import Shown
    from saelink.share.export import ExportStage

    return Shown(ExportStage(_job(single(cfg), observer)).pull())


def prompt_graph(cfg: Config, prompt: str, observer: Observer | None = None) -> Shown[Any]:
    """A prompt's attribution graph, the file `<facts["slug"]>.json`; `facts["lines"]` says it in words.

    With cfg.layers it is over all of them. Raises SaelinkError for an empty prompt and for one longer than the graph's
    limit.
    """
    from saelink.circuits.stage import LayersGraphStage
    from saelink.report.shown import Shown
    from saelink.share.graph.stage import GraphStage

    asked = replace(single(cfg), graph=replace(cfg.graph, prompt=prompt))
    if asked.layers is not None:
        return Shown(LayersGraphStage(_job(asked, observer)).pull())
    return Shown(GraphStage(_job(asked, observer)).pull())


def intervene(cfg: Config, prompt: str, *changes: str, observer: Observer | None = None) -> Shown[Any]:
    """What changing latents does to a prompt, in the model and by its graph over cfg.layers.

    `changes` are such as "OF12@L3=0", "IF7@L1*2" or "AF5@L2:4=0" (at position 4). In `facts`: `next`, the next tokens'
    probabilities before, after and as predicted; `latents`, those that changed most; `cosine` by layer.

    Raises SaelinkError for a change that can't be made.
    """
    from saelink.circuits.intervene import InterventionStage
    from saelink.report.shown import Shown

    asked = replace(single(cfg), graph=replace(cfg.graph, prompt=prompt))
    return Shown(InterventionStage(_job(asked, observer), list(changes)).pull())


def circuit(cfg: Config, latent: str, observer: Observer | None = None) -> Shown[Any]:
    """What leads to a latent such as "OF1262@L3" over cfg.layers and the data set, and where it leads.

    `facts["ancestors"]` and `facts["descendants"]` have for each latent its link, what ablation does in the model with
    its interval (shares of activations), and what the graph says of that. Raises SaelinkError for a latent that is not
    there or never active.
    """
    from saelink.circuits.ancestors import CircuitStage
    from saelink.report.shown import Shown

    return Shown(CircuitStage(_job(single(cfg), observer), latent).pull())


def qk(cfg: Config, observer: Observer | None = None) -> Shown[Any]:
    """Which pairs of latents decide where the heads of cfg.layer look, or the one cfg.head.

    File `heads.json`: a list with, for each head, where it looks, its kinds, the shares of its scores, its leading
    pairs and what taking them out does beside controls and nulls. Raises SaelinkError for a head that is not there,
    and for attention whose scores are no sum over pairs.
    """
    from saelink.looks.stage import before_attention, found_or_made
    from saelink.report.shown import Shown

    return Shown(found_or_made(before_attention(_job(cfg, observer))))


def _by_hook(artifacts: Mapping[str, Artifact[Any]]) -> ByHook:
    from saelink.report.shown import ByHook, Shown

    return ByHook({hook: Shown(artifact) for hook, artifact in artifacts.items()})


def _job(cfg: Config, observer: Observer | None) -> Job:
    return Job(cfg, Store(cfg.runtime.outputs, observer or TerminalObserver()))
