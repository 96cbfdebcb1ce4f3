"""The stages as functions for scripts and notebooks; `saelink.<name>` is where to call them from.

Each takes the configuration of one job and pulls its artifact from cfg.runtime.outputs: what exists is found, what is
missing is made. `say` takes the one-line messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from saelink.compose import register
from saelink.config.check import check, single
from saelink.config.files import conf_dir
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.store.artifact import Artifact
from saelink.store.store import Store

Say = Callable[[str], None]


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


def cache_acts(cfg: Config, say: Say = print) -> dict[str, Artifact]:
    """By hook of the link the model's activations: shards of [sequences, context_size, d_model] in bfloat16."""
    from saelink.activations.cache import cache
    from saelink.latents.link import link_of

    store = _store(cfg, say)
    link = link_of(cfg, store)
    return cache(cfg, store, [*link.sources, link.target])


def encode_latents(cfg: Config, say: Say = print) -> dict[str, Artifact]:
    """By hook of the link its SAE's latents on all tokens, in sparse rows."""
    from saelink.latents.encode import encode_all
    from saelink.latents.link import link_of

    store = _store(cfg, say)
    link = link_of(cfg, store)
    return encode_all(cfg, store, [*link.sources, link.target])


def fit_connector(cfg: Config, say: Say = print) -> Artifact:
    """A fitted connector; its facts have the figures on validation documents. cfg.l1_alpha is one number."""
    from saelink.fit.train import train

    return train(single(cfg), _store(cfg, say))


def evaluate_connector(cfg: Config, say: Say = print) -> Artifact:
    """The connector's figures on test documents: `metrics.json`, `latents.safetensors`, `circuits.txt`."""
    from saelink.evidence.evaluate import evaluate

    return evaluate(single(cfg), _store(cfg, say))


def verify_edges(cfg: Config, say: Say = print) -> Artifact:
    """The verdict of ablating every source latent in the model on each of the connector's edges."""
    from saelink.evidence.verify import verify

    return verify(single(cfg), _store(cfg, say))


def make_report(cfg: Config, say: Say = print) -> Artifact:
    """The HTML page of the connectors at all penalties of cfg.l1_alpha; its file is report.html."""
    from saelink.report.stage import report

    return report(cfg, _store(cfg, say), "saelink.make_report(...)")


def export_connector(cfg: Config, say: Say = print) -> Artifact:
    """The connector's folder for others: what `load_connector` reads, its card, its edges as tables and graphs."""
    from saelink.share.export import export

    return export(single(cfg), _store(cfg, say))


def prompt_graph(cfg: Config, prompt: str, say: Say = print) -> Artifact:
    """A prompt's attribution graph, the file `<facts["slug"]>.json`."""
    from saelink.share.graph.stage import graph

    return graph(replace(single(cfg), graph=replace(cfg.graph, prompt=prompt)), _store(cfg, say))


def _store(cfg: Config, say: Say) -> Store:
    return Store(cfg.runtime.outputs, say=say)
