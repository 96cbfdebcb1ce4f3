"""The stages as functions for scripts and notebooks; `saelink.<name>` is where to call them from.

Each takes the configuration of one job and gives its artifact in cfg.runtime.outputs: what exists is found, what is
missing is made. `observer` is told how it goes; without one it is printed, `saelink.Observer()` keeps quiet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from saelink.compose import register
from saelink.config.check import check, single
from saelink.config.files import conf_dir
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.job import Job
from saelink.progress import Observer
from saelink.store.artifact import Artifact
from saelink.store.store import Store
from saelink.terminal.progress import TerminalObserver


def configure(*overrides: str) -> Config:
    """The configuration of one job, as the command line makes it: configure("layer=3", "connector=mlp").

    Raises SaelinkError for a setting that does not exist or is out of range.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register()
    running = GlobalHydra.instance()
    outer = running.hydra  # of a caller that is a Hydra application itself
    running.clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = OmegaConf.to_object(compose("config", list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        reason = (
            f" ({error.__cause__})" if error.__cause__ is not None and str(error.__cause__) not in str(error) else ""
        )
        raise SaelinkError(" ".join(f"{error}{reason}".split())) from None
    finally:
        running.hydra = outer
    assert isinstance(cfg, Config)
    check(cfg)
    return cfg


def cache_acts(cfg: Config, observer: Observer | None = None) -> dict[str, Artifact[Any]]:
    """By hook of the link the model's activations: shards of [sequences, context_size, d_model] in bfloat16."""
    from saelink.activations.cache import cache_hooks

    job = _job(cfg, observer)
    return {**cache_hooks(job.cfg, job.store, [*job.link.sources, job.link.target])}


def encode_latents(cfg: Config, observer: Observer | None = None) -> dict[str, Artifact[Any]]:
    """By hook of the link its SAE's latents on all tokens, in sparse rows."""
    from saelink.latents.encode import encode_hooks

    job = _job(cfg, observer)
    return {**encode_hooks(job.cfg, job.store, [*job.link.sources, job.link.target])}


def fit_connector(cfg: Config, observer: Observer | None = None) -> Artifact[Any]:
    """A fitted connector; its facts have the figures on validation documents. cfg.l1_alpha is one number."""
    from saelink.fit.train import TrainStage

    return TrainStage(_job(single(cfg), observer)).pull()


def evaluate_connector(cfg: Config, observer: Observer | None = None) -> Artifact[Any]:
    """The connector's figures on test documents: `metrics.json`, `latents.safetensors`, `circuits.txt`."""
    from saelink.evidence.evaluate import EvaluateStage

    return EvaluateStage(_job(single(cfg), observer)).pull()


def verify_edges(cfg: Config, observer: Observer | None = None) -> Artifact[Any]:
    """The verdict of ablating every source latent in the model on each of the connector's edges."""
    from saelink.evidence.verify import VerifyStage

    return VerifyStage(_job(single(cfg), observer)).pull()


def make_report(cfg: Config, observer: Observer | None = None) -> Artifact[Any]:
    """The HTML page of the connectors at all penalties of cfg.l1_alpha; its file is report.html."""
    from saelink.report.stage import ReportStage

    return ReportStage(_job(cfg, observer), "saelink.make_report(...)").pull()


def export_connector(cfg: Config, observer: Observer | None = None) -> Artifact[Any]:
    """The connector's folder for others: what `load_connector` reads, its card, its edges as tables and graphs."""
    from saelink.share.export import ExportStage

    return ExportStage(_job(single(cfg), observer)).pull()


def prompt_graph(cfg: Config, prompt: str, observer: Observer | None = None) -> Artifact[Any]:
    """A prompt's attribution graph, the file `<facts["slug"]>.json`."""
    from saelink.share.graph.stage import GraphStage

    asked = replace(single(cfg), graph=replace(cfg.graph, prompt=prompt))
    return GraphStage(_job(asked, observer)).pull()


def _job(cfg: Config, observer: Observer | None) -> Job:
    return Job(cfg, Store(cfg.runtime.outputs, observer or TerminalObserver()))
