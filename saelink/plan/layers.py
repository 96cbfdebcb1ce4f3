"""What graphs and circuits over several layers take: `saelink plan layers=...`.

The model runs once for all hooks; then each layer's connector is fitted, where edges are not gradients, and the graph
of a prompt, the intervention on it and the circuit of a latent are reckoned with at the longest prompt there is,
data.context_size tokens.
"""

from __future__ import annotations

from dataclasses import replace

from saelink import memory
from saelink.circuits.ancestors import ROWS
from saelink.circuits.layers import fit_of, layers_within
from saelink.circuits.size import LayersSize, over_layers, over_text
from saelink.circuits.stage import graph_seconds
from saelink.config.check import l1_alphas
from saelink.config.circuit import InnerEdges
from saelink.config.schema import Config
from saelink.job import Job
from saelink.model.dimensions import Dimensions, dimensions_of
from saelink.model.info import full_name
from saelink.plan.costs import ENCODE, FORWARD, PROGRAM, Cost, Costs
from saelink.plan.rates import REFERENCE, Rates
from saelink.plan.sizes import Sizes, sides_of, sizes_of
from saelink.plan.steps import Found, Planned, Steps, counted, encoded, fitted, left_out, warn

NODE, NODES_LINKS = 450.0, 20 * 120.0
"""Bytes of a node in a graph's file, and of its links."""

RELATIVES = 2
"""Latents that a step of a circuit finds anew for each that is kept of a latent's inputs."""

HANDED_ON = 0.15
"""Seconds until a graph has handed a change on, on the reference machine."""


def planned_over(job: Job, rates: Rates, look: bool = True) -> Planned:
    """What `saelink graph`, `intervene` and `circuit` of a job over several layers take; nothing is made or fetched.

    With `look` what is made already is done; without, nothing is asked of the hub or this machine. Raises SaelinkError
    for a model that nothing is known of, for layers that it lacks and for another link than an MLP's.
    """
    cfg, remarks = replace(job.cfg, l1_alpha=l1_alphas(job.cfg.l1_alpha)[0]), list[str]()
    job = Job(cfg, Found(job.store.root))
    described, tokens = counted(job, remarks) if look else (None, None)
    model = dimensions_of(cfg.model, described)
    numbers, fetch = layers_within(cfg, model.n_layers), look and not remarks
    layers = {n: replace(fit_of(cfg), layer=n, layers=None) for n in numbers}
    n_tokens = None if tokens is None else tokens.facts["tokens"]
    sizes = {n: sizes_of(each, described, n_tokens, remarks, fetch) for n, each in layers.items()}
    whole, attention = _together(cfg, model, list(sizes.values()), numbers, remarks, fetch)
    costs = Costs(cfg, whole, rates)
    steps = Steps(job, described, remarks)
    steps.add("model", cfg.model.label, costs.model(), lambda: described, "graph")
    steps.add("tokens", cfg.data.label, costs.tokens(), lambda: tokens, "graph")
    there = encoded(steps, job, costs, "graph")
    if not all(there[: sum(len(each.hooks) for each in sizes.values())]):  # attention's latents are no fit's
        steps.close()
    fits = {n: Costs(each, sizes[n], rates) for n, each in layers.items()}
    gradient = cfg.circuit.edges is InnerEdges.gradient
    for n, each in fits.items():
        if not gradient:
            fitted(steps, job.at(layers[n]), each, "graph", f"{n}: ")
    mlp = [side for each in sizes.values() for side in each.sides]
    shapes = [] if gradient else [each.shape for each in fits.values()]
    graph = LayersSize(mlp, attention, shapes, numbers[-1] + 1, cfg.data.context_size)
    prompt = _graph(costs, graph)
    words = f"{graph.context} tokens"
    steps.add("layers_graph", words, prompt, lambda: None, "graph")
    page = Cost(0, prompt.disk, PROGRAM + memory.graph_page(prompt.disk), 2.0)
    steps.add("graph_page", "", page, lambda: None, "graph")
    steps.add("intervention", words, prompt._replace(disk=2e4), lambda: None, "intervene")
    steps.add("circuit", f"{cfg.circuit.sequences} sequences", _circuit(costs, graph), lambda: None, "circuit")
    found = Planned(steps.steps, rates, remarks)
    said = f"a prompt of data.context_size={graph.context} tokens is reckoned with, shorter ones take less"
    found.remarks[:] = [*dict.fromkeys(remarks), said, *left_out(cfg)]
    if look:
        warn(job, found, costs)
    return found


def _together(
    cfg: Config, model: Dimensions, sizes: list[Sizes], layers: list[int], remarks: list[str], fetch: bool
) -> tuple[Sizes, list[memory.Side]]:  # fmt: skip
    """The sizes with the hooks of all layers, as one pass of the model has them, and the SAEs of attention's output."""
    hooks = [full_name("hook_attn_out", n, model.parallel) for n in layers if cfg.circuit.attention]
    sides, trained = sides_of(cfg, model, hooks, remarks, fetch)
    everything = replace(
        sizes[0],
        hooks=[*(hook for each in sizes for hook in each.hooks), *hooks],
        sides=[*(side for each in sizes for side in each.sides), *sides],
        trained=[*(there for each in sizes for there in each.trained), *trained],
    )
    return everything, sides


def _graph(costs: Costs, graph: LayersSize) -> Cost:
    """One prompt."""
    model = costs.sizes.model
    size = over_layers(model.size, model.n_layers, graph)
    seconds = graph_seconds(model.d_model, graph) * REFERENCE.gemm / costs.rates.gemm
    passes = 3 * graph.context * costs.of_whole / (FORWARD * costs.rates.gemm)
    nodes = min(costs.cfg.circuit.nodes, graph.written)
    return Cost(graph.context, nodes * (NODE + NODES_LINKS), PROGRAM + size, costs.load + seconds + passes)


def _circuit(costs: Costs, graph: LayersSize) -> Cost:
    """Sequences in which a latent is active: the graph of each is opened for every step back and forward and once
    more; then the model runs without each ancestor, and the graph says what that does."""
    model, circuit = costs.sizes.model, costs.cfg.circuit
    relatives = RELATIVES * circuit.inputs * circuit.steps
    opened = (2 * circuit.steps + 1 + relatives) * graph.context
    encoding = sum(2.0 * side.width * side.d_sae for side in (*graph.mlp, *graph.attention))
    work = opened * (costs.of_pass / FORWARD + encoding / ENCODE) / costs.rates.gemm
    work += relatives * HANDED_ON * REFERENCE.gemm / costs.rates.gemm
    size = over_text(model.size, model.n_layers, graph, ROWS)
    n = circuit.sequences
    return Cost(n * graph.context, 400.0 * relatives, PROGRAM + size, costs.load + n * work)
