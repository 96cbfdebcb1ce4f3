"""What leads to a latent over the data set, and where it leads, tested by ablation across layers: the stage `circuit`.

On test sequences in which the latent is most active the links of their graphs (see prompt) are averaged over the places
where a latent is active: what each latent in front adds to it there, co-activation and attention patterns included. The
largest are kept, and so on from those. Then every ancestor is taken out of the running model wherever it is active, and
the latent's loss is compared with what the graph, all paths through all layers, says of it. Ablating the latent itself
does the same for its descendants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypedDict

import torch

from saelink.circuits.changes import sae_of, taken_out, true_changes
from saelink.circuits.direct import Sums, direct_links, sums_into
from saelink.circuits.explained import Explained, explained_inputs, first_of_run
from saelink.circuits.layers import LayerJobs, edges_recipe
from saelink.circuits.nodes import Latent, LayerNames, latent_named, nodes_of
from saelink.circuits.predicted import predicted
from saelink.circuits.prompt import Prompt
from saelink.circuits.size import over_text
from saelink.circuits.stage import sizes_over
from saelink.errors import SaelinkError
from saelink.interventions.splice import first_latents
from saelink.job import Job, JobStage
from saelink.latents.encode import EncodeStage
from saelink.store.draft import Draft
from saelink.store.stage import Need

HOOKS = {"attn": "hook_attn_out", "mlp": "hook_mlp_out", "source": "mlp_in"}

RESAMPLES = 1000
"""Of the sequences, for an interval."""

ROWS = 16
"""Ablations of one run of the model."""


class Relative(TypedDict):
    """An ancestor or a descendant."""

    name: str
    label: str
    step: int
    """How many links away it was found."""
    by: str
    """The latent it was found at, one step nearer,"""
    share: float
    """and the link's part: of an ancestor what it adds to that latent as a share of its activation, over all places
    where that is active; of a descendant what that latent adds to it, as a share of its activation where it does."""
    effect: float
    """What ablation takes from the latent, or of a descendant the latent's ablation from it, as a share of its
    activation where it is active,"""
    low: float
    high: float
    """with its interval (95%, sequences resampled),"""
    predicted: float
    """and the same by the graph."""


class CircuitFacts(TypedDict):
    latent: str
    label: str
    sequences: int
    places: int
    """Where it is active in them."""
    activation: float
    """Its mean there."""
    tokens: float
    """The part of its activation that comes straight from tokens,"""
    error: float
    """and that which is error; both of what leads into it."""
    ancestors: list[Relative]
    descendants: list[Relative]


class CircuitStage(JobStage[CircuitFacts]):
    """The ancestors and descendants of a latent, such as OF1262@L3; without @L one of cfg.layer.

    Without files beside its facts. Raises SaelinkError for a latent that is not there or never active.
    """

    name = "circuit"
    version = 1

    def __init__(self, job: Job, latent: str):
        super().__init__(job)
        self.jobs = LayerJobs(job)
        layer = job.cfg.layer if job.cfg.layer in self.jobs.layers else self.jobs.layers[-1]
        self.latent = latent_named(latent, self.jobs, f"circuit: {latent}", layer)
        self._names = LayerNames(self.jobs)

    @property
    def device(self) -> str:
        return "cpu"

    def recipe(self) -> dict[str, Any]:
        cfg, circuit = self.job.cfg, self.job.cfg.circuit
        return {
            "latent": self.latent.name,
            "layers": self.jobs.layers,
            "edges": edges_recipe(cfg),
            "attention": circuit.attention,
            "inputs": circuit.inputs,
            "steps": circuit.steps,
            "sequences": circuit.sequences,
            "drop_positions": cfg.data.drop_positions,
        }

    def inputs(self) -> dict[str, str]:
        tokens = {"tokens": self.job.tokens.key}
        return {**explained_inputs(self.jobs), **LayerNames.inputs(self.jobs), **tokens}

    def about(self) -> str:
        return f"{self.job.cfg.model.label} layers {self.jobs.layers} {self.latent.name}"

    def need(self) -> Need:
        self.jobs.encode()
        job = self.job
        sizes = sizes_over(self.jobs, job.cfg.data.context_size)
        size = over_text(job.size, job.model.n_layers, sizes, ROWS)
        return Need(size, "use fewer layers, or a shorter data.context_size")

    def make(self, draft: Draft) -> CircuitFacts:
        self.jobs.encode()
        ids, circuit = self._sequences(), self.job.cfg.circuit
        explained = Explained(self.jobs)
        passes = 2 * circuit.steps + 1

        with self.job.observer.progress("circuit", passes * len(ids), "sequences") as bar:

            def prompts() -> Iterator[Prompt]:
                for sequence in ids:
                    yield explained.prompt(sequence)
                    bar.advance(1)

            back, own = self._searched(prompts, self._backward)
            forth, _ = self._searched(prompts, self._forward)
            measured = _Effects(self.latent, list(back), list(forth))
            for prompt in prompts():
                measured.add(prompt)
        assert own is not None
        return {
            "latent": self.latent.name,
            "label": self._names.label(self.latent),
            "sequences": len(ids),
            "places": own.places,
            "activation": own.activation / own.places,
            "tokens": own.tokens / own.absolute,
            "error": own.error / own.absolute,
            "ancestors": [self._relative(each, back[each], measured, True) for each in back],
            "descendants": [self._relative(each, forth[each], measured, False) for each in forth],
        }

    def _sequences(self) -> torch.Tensor:
        """[sequences, context] the test sequences in which the latent is most active."""
        hook = self._names.hook(self.latent.kind, self.latent.layer)
        side = EncodeStage(self.job.cfg, self.job.store, hook).pull()
        if self.latent.number >= side.facts["d_sae"]:
            raise SaelinkError(f"circuit: {self.latent.name}: there are {side.facts['d_sae']:,} latents, from 0")
        context, n = side.facts["context_size"], side.facts["sequences"]["test"]
        rows = first_latents(side, n)
        mine = rows.indices == self.latent.number
        where = rows.row_of[mine]
        counts = where % context >= self.job.cfg.data.drop_positions
        sums = torch.bincount(where[counts] // context, rows.values[mine][counts], minlength=n)
        order = sums.argsort(descending=True, stable=True)[: self.job.cfg.circuit.sequences]
        order = order[sums[order] > 0]
        if not len(order):
            raise SaelinkError(f"circuit: {self.latent.name} is active on none of {n * context:,} test tokens")
        return self.job.tokens.tensors("test.safetensors")["ids"].long()[order]

    def _searched(
        self, prompts: Callable[[], Iterator[Prompt]], step: Callable[..., dict[Latent, list[tuple[Latent, float]]]]
    ) -> tuple[dict[Latent, tuple[int, Latent, float]], Sums | None]:
        """By relative its step, whom it was found at, and the link's share; the nearest first."""
        found: dict[Latent, tuple[int, Latent, float]] = {}
        frontier, own = [self.latent], None
        for number in range(1, self.job.cfg.circuit.steps + 1):
            if not frontier:
                break
            sums: dict[Latent, Sums] = {}
            links = step(prompts, frontier, sums)
            own = own or sums.get(self.latent)
            new: list[Latent] = []
            for nearer, others in links.items():
                for other, share in others:
                    if other not in found and other != self.latent:
                        found[other] = (number, nearer, share)
                        new.append(other)
            frontier = new
        return found, own

    def _backward(
        self, prompts: Callable[[], Iterator[Prompt]], frontier: list[Latent], sums: dict[Latent, Sums]
    ) -> dict[Latent, list[tuple[Latent, float]]]:
        for prompt in prompts():
            for latent in frontier:
                sums_into(prompt, latent, sums.setdefault(latent, Sums()))
        return {latent: each.strongest(self.job.cfg.circuit.inputs) for latent, each in sums.items()}

    def _forward(
        self, prompts: Callable[[], Iterator[Prompt]], frontier: list[Latent], sums: dict[Latent, Sums]
    ) -> dict[Latent, list[tuple[Latent, float]]]:
        found: dict[Latent, dict[Latent, tuple[float, float]]] = {latent: {} for latent in frontier}
        for prompt in prompts():
            for latent in frontier:
                direct_links(prompt, latent, found[latent])
        most = self.job.cfg.circuit.inputs
        kept: dict[Latent, list[tuple[Latent, float]]] = {}
        for latent, others in found.items():
            strongest = sorted(others, key=lambda each, o=others: -abs(o[each][0]))[:most]
            kept[latent] = [(each, others[each][0] / max(others[each][1], 1e-30)) for each in strongest]
        return kept

    def _relative(
        self, latent: Latent, where: tuple[int, Latent, float], measured: _Effects, ancestor: bool
    ) -> Relative:
        effect, low, high, says = measured.of(latent, ancestor)
        return {
            "name": latent.name,
            "label": self._names.label(latent),
            "step": where[0],
            "by": where[1].name,
            "share": where[2],
            "effect": effect,
            "low": low,
            "high": high,
            "predicted": says,
        }


class _Effects:
    """What ablations do, sequence by sequence."""

    def __init__(self, latent: Latent, ancestors: list[Latent], descendants: list[Latent]):
        self._latent, self._ancestors, self._descendants = latent, ancestors, descendants
        self._sums: dict[tuple[Latent, bool], list[tuple[float, float, float]]] = {}

    def add(self, prompt: Prompt) -> None:
        """Ablate each ancestor, and the latent itself, on one more sequence."""
        own = nodes_of(prompt, self._latent)
        by_hook: dict[tuple[int, str], list[Latent]] = {}
        for latent in [self._latent, *self._ancestors]:
            by_hook.setdefault((latent.layer, latent.kind), []).append(latent)
        for (layer, kind), latents in by_hook.items():
            here = [latent for latent in latents if len(nodes_of(prompt, latent))]
            for latent in latents:
                if latent not in here and latent != self._latent:
                    self._note(latent, True, prompt, own, None, None)
            for first in range(0, len(here), ROWS):
                part = here[first : first + ROWS]
                places = [(latent.number, prompt.position[nodes_of(prompt, latent)]) for latent in part]
                change = {f"blocks.{layer}.{HOOKS[kind]}": taken_out(sae_of(prompt.parts, part[0]), places)}
                depth = max(prompt.parts) + 1
                run = prompt.model.run(prompt.ids.expand(len(part), -1), depth, change, to_logits=False)
                for row, latent in enumerate(part):
                    nodes = nodes_of(prompt, latent)
                    gone = {int(node): -float(prompt.activation[node]) for node in nodes}
                    true, says = true_changes(prompt, first_of_run(run, row)), predicted(prompt, gone).change
                    if latent == self._latent:
                        for other in self._descendants:
                            self._note(other, False, prompt, nodes_of(prompt, other), true, says)
                    else:
                        self._note(latent, True, prompt, own, true, says)

    def _note(
        self, latent: Latent, ancestor: bool, prompt: Prompt, nodes: torch.Tensor, true: torch.Tensor | None,
        says: torch.Tensor | None,
    ) -> None:  # fmt: skip
        sums = [0.0 if change is None else -float(change[nodes].sum()) for change in (true, says)]
        whole = float(prompt.activation[nodes].sum())
        self._sums.setdefault((latent, ancestor), []).append((sums[0], sums[1], whole))

    def of(self, latent: Latent, ancestor: bool) -> tuple[float, float, float, float]:
        """Effect, the ends of its interval, and what the graph says."""
        sums = torch.tensor(self._sums[latent, ancestor], dtype=torch.float64)
        lost, says, whole = sums.sum(0).tolist()
        generator = torch.Generator().manual_seed(0)
        drawn = sums[torch.randint(len(sums), (RESAMPLES, len(sums)), generator=generator)].sum(1)
        effects = drawn[:, 0] / drawn[:, 2].clamp(min=1e-30)
        low, high = effects.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        unit = max(whole, 1e-30)
        return lost / unit, low, high, says / unit
