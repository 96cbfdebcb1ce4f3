"""Which layers a job spans, and the job of each."""

from __future__ import annotations

from dataclasses import replace

from saelink.config.check import layer_numbers
from saelink.config.circuit import InnerEdges
from saelink.config.schema import Config
from saelink.connectors import CONNECTORS
from saelink.connectors.linear import LinearSettings
from saelink.errors import SaelinkError
from saelink.fit.solvers.causal import CausalSettings
from saelink.fit.solvers.exact import ExactSettings
from saelink.job import Job
from saelink.latents.encode import encode_hooks
from saelink.saes.choice import sae_choice
from saelink.saes.training import SAEStage


def layers_of(job: Job) -> list[int]:
    """The layers of cfg.layers, ascending, or the one of cfg.layer. Raises SaelinkError for one the model lacks."""
    return layers_within(job.cfg, job.model.n_layers)


def layers_within(cfg: Config, n_layers: int) -> list[int]:
    """The same of a model with so many layers."""
    if cfg.layers is None:
        return [cfg.layer]
    numbers = layer_numbers(cfg.layers)
    if numbers is None:
        return list(range(n_layers))
    if numbers[-1] >= n_layers:
        raise SaelinkError(f"layers={cfg.layers}: the model has layers 0 to {n_layers - 1}")
    return numbers


def each_layer(job: Job) -> list[Job]:
    """The same job at each of its layers."""
    return [job.at(replace(job.cfg, layer=layer, layers=None)) for layer in layers_of(job)]


def hooks_over(job: Job) -> list[str]:
    """The hooks of the job's link at all its layers; of several layers also attn_out's, which their graphs have."""
    if job.cfg.layers is None:
        return [*job.link.sources, job.link.target]
    found: list[str] = []
    for each in each_layer(job):
        found += [*each.link.sources, each.link.target]
        if job.cfg.circuit.attention:
            found.append(job.model.hook("hook_attn_out", each.cfg.layer))
    return list(dict.fromkeys(found))


def fit_of(cfg: Config) -> Config:
    """The job whose connector has the edges inside an MLP that circuit.edges asks for.

    Raises SaelinkError for a link that is not an MLP's.
    """
    if cfg.link.sources != ["mlp_in"] or cfg.link.target != "hook_mlp_out":
        raise SaelinkError(
            f"link={cfg.link.name}: with layers=... the MLP's own link is taken, link=mlp, and attention's beside it"
        )
    edges = cfg.circuit.edges
    if edges is InnerEdges.connector:
        return cfg
    settings = LinearSettings(name="linear", bias=False)
    solver = CausalSettings(name="causal") if edges is InnerEdges.causal else ExactSettings(name="exact")
    if cfg.solver.name == solver.name:  # its tolerance and the like as they were set
        solver = cfg.solver
    return replace(cfg, connector=settings, solver=solver)


def edges_recipe(cfg: Config) -> str:
    """What names the edges inside an MLP in a recipe. Those of a relu are what its prediction loses without a source;
    they once were its weights."""
    relu = cfg.circuit.edges is InnerEdges.connector and CONNECTORS[cfg.connector.name].relu_output
    return f"{cfg.circuit.edges.name}, through relu" if relu else cfg.circuit.edges.name


class LayerJobs:
    """The jobs of a graph over several layers: one for each layer's MLP, and the hooks of attention."""

    def __init__(self, job: Job):
        """Raises SaelinkError for layers that the model lacks, and for another link than an MLP's."""
        self.job = job
        self.layers = layers_of(job)
        cfg = fit_of(job.cfg)
        self.mlp = {layer: job.at(replace(cfg, layer=layer, layers=None)) for layer in self.layers}
        names = self.layers if job.cfg.circuit.attention else []
        self.attention = {layer: job.model.hook("hook_attn_out", layer) for layer in names}

    @property
    def hooks(self) -> list[str]:
        """All hooks that have an SAE in the graph."""
        found = [hook for each in self.mlp.values() for hook in (*each.link.sources, each.link.target)]
        return [*found, *self.attention.values()]

    def encode(self) -> None:
        """Make the latents that are missing, by one pass of the model for all layers."""
        cfg, store = self.job.cfg, self.job.store
        untrained = [
            hook
            for hook in self.hooks
            if not sae_choice(cfg, store, hook).exists and SAEStage(cfg, store, hook).find() is None
        ]
        if untrained:
            self.job.observer.say(
                f"layers: {len(untrained)} of {len(self.hooks)} hooks have no SAE yet and get one trained, minutes "
                f"each (sae.d_sae={cfg.sae.d_sae} sae.epochs={cfg.sae.epochs:g}); smaller ones are quicker"
            )
        encode_hooks(self.job.cfg, self.job.store, self.hooks)
