"""What the model's output owes to each edge of a graph, for all edges at once, by sampled gradients.

An edge from source j to target i writes  w_ij a_j(t) d_i  into the target hook at token t: its weight, the source's
activation, the target's decoder direction, in the model's units. Without it the hook holds that much less. Draw next
tokens y from the model's own predictions, one at each position; one pass backwards gives g_t, the gradient of log p(y)
at the hook at t.
The expectation of g g' is the Fisher matrix of the predictions at all positions, whose halves are the second order of
the divergence KL(model || model without the edge):

    everywhere in a sequence    1/2 E_y[ (sum_t w_ij a_j(t) d_i . g_t)^2 ]
    at one token at a time      1/2 sum_t E_y[ (w_ij a_j(t) d_i . g_t)^2 ]

After Anthropic 2026 (interference weights), where effectiveness is defined so. With the actual next tokens in the place
of y the first order of the rise of the loss is  sum_t w_ij a_j(t) d_i . g_t, the edge's helpfulness.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from saelink import memory
from saelink.connectors.base import Connector
from saelink.interventions.splice import SplicedTokens, first_units
from saelink.job import Job
from saelink.latents.link import load_split
from saelink.latents.rows import Rows, offsets_of
from saelink.saes.load import pull_sae


class Gradients(NamedTuple):
    """At the target hook of some sequences."""

    sampled: torch.Tensor
    """[draws, n, context_size, width] of the log-probability of drawn next tokens,"""
    true: torch.Tensor
    """[n, context_size, width] and of the actual ones."""


def gradients_at(bridge: Any, hook: str, ids: torch.Tensor, noise: torch.Tensor) -> Gradients:
    """The gradients for sequences ids [n, context_size]; noise [draws, n, context_size - 1] draws the tokens."""
    held: list[torch.Tensor] = []

    def hold(acts: torch.Tensor, **_: object) -> torch.Tensor:
        held.append(acts.detach().requires_grad_())
        return held[0]

    with torch.enable_grad():
        logits = bridge.run_with_hooks(ids, fwd_hooks=[(hook, hold)])[:, :-1]
        logp = logits if logits.dtype == torch.float64 else logits.float()
        logp = logp.log_softmax(-1)
        below = [each.detach().double().exp().cumsum(-1) for each in logp]  # one sequence's at a time is wide enough
        found = []
        for draw in noise:
            chosen = torch.stack([_drawn(each, u.to(each.device)) for each, u in zip(below, draw, strict=True)])
            found.append(_gradient(logp, chosen, held[0], more=True))
        return Gradients(torch.stack(found), _gradient(logp, ids[:, 1:], held[0], more=False))


def _drawn(below: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """[positions] the token at which cumulative probabilities [positions, vocabulary] pass u [positions]."""
    return torch.searchsorted(below, (u * below[:, -1])[:, None]).squeeze(1).clamp(max=below.shape[1] - 1)


def _gradient(logp: torch.Tensor, tokens: torch.Tensor, acts: torch.Tensor, more: bool) -> torch.Tensor:
    score = logp.gather(-1, tokens[..., None]).sum()
    (gradient,) = torch.autograd.grad(score, acts, retain_graph=more)
    return gradient.detach().flatten(2)


class GraphEdges(NamedTuple):
    """The edges from source latents of a connector whose predictions are sums over them, by source."""

    offsets: torch.Tensor
    """[d_source + 1] int64: where the edges of each source begin."""
    column: torch.Tensor
    """[n] int64: the target's place among those that are explained."""
    weight: torch.Tensor
    """[n] float32, in units of the latents' scales."""
    target_ids: torch.Tensor
    """[d_target]"""

    @property
    def source(self) -> torch.Tensor:
        """[n] int64"""
        return torch.repeat_interleave(torch.arange(len(self.offsets) - 1), self.offsets.diff())

    @property
    def target(self) -> torch.Tensor:
        """[n] int64, as the SAE numbers it."""
        return self.target_ids[self.column]


def graph_edges(connector: Connector) -> GraphEdges:
    """The edges of a connector without hidden units."""
    assert not connector.n_hidden
    by_source = connector.edges_by_target().transposed()
    return GraphEdges(by_source.offsets, by_source.indices, by_source.values.float(), connector.target_ids.cpu())


class Contributions:
    """What edges write into the target hook on some test sequences."""

    def __init__(self, job: Job, edges: GraphEdges, test: SplicedTokens, first: int = 0):
        """`test` are the sequences of the split from `first` on."""
        self.edges, self.test, self.context = edges, test, test.ids.shape[1]
        sae = pull_sae(job.cfg, job.store, job.link.target).to("cpu", torch.float32)
        self.directions = sae.W_dec[edges.target_ids]
        """[d_target, width]"""
        split = load_split(job.cfg, job.sides, "test", edges.target_ids[:1])
        row = split.row - first * self.context
        here = ((row >= 0) & (row < test.ids.numel())).nonzero().squeeze(1)
        self.row, self.active = row[here], split.source.select(here)
        units = first_units(job.sides.target, first + len(test.ids))
        size = torch.ones(len(self.row)) if units is None else units.scale.flatten()[split.row[here]]
        self.size = size * job.sides.scales[-1]
        """[tokens] what a unit of a target's latent is in the model's units."""

    def of_sequence(self, number: int) -> tuple[torch.Tensor, Rows, torch.Tensor]:
        """Positions [n] that count in a sequence, the sources active there, and the size of a unit there."""
        here = (self.row // self.context == number).nonzero().squeeze(1)
        return self.row[here] % self.context, self.active.select(here), self.size[here]

    def along(self, gradient: torch.Tensor, number: int) -> torch.Tensor:
        """[d_target, n] what a gradient [context_size, width] says of a unit of each target at these positions."""
        position, _, size = self.of_sequence(number)
        return (self.directions.to(gradient) @ gradient[position].T).cpu() * size

    def written(self, weight: torch.Tensor) -> torch.Tensor:
        """[sequences, context_size, width] what edges of these weights [n] write together; others have weight 0."""
        from saelink.kernels import in_parts
        from saelink.kernels.edge_gradients import edges_added

        some = weight != 0
        offsets = offsets_of(torch.bincount(self.edges.source[some], minlength=self.active.d)).numpy()
        columns, weights = self.edges.column[some].numpy(), weight[some].float().numpy()
        out = torch.zeros(self.test.ids.numel(), self.directions.shape[1])
        step = max(min(2048, memory.STEP_ENTRIES // max(len(self.directions), 1)), 1)
        for low in range(0, len(self.row), step):
            part = torch.arange(low, min(low + step, len(self.row)))
            rows, made = self.active.select(part), torch.zeros(len(part), len(self.directions))
            arrays = rows.offsets.numpy(), rows.indices.numpy(), rows.values.numpy(), offsets, columns, weights
            into = made.numpy()

            def add(a: int, b: int, arrays: tuple[Any, ...] = arrays, into: Any = into) -> None:
                edges_added(a, b, *arrays, into)

            in_parts(len(part), 128, add)
            out[self.row[part]] = (made * self.size[part, None]) @ self.directions
        return out.view(*self.test.ids.shape, -1)


class EdgeSums:
    """Sums over sequences of what gradients say of every edge, in float64 and without the edges' weights."""

    def __init__(self, edges: GraphEdges):
        self.n = 0
        """Sequences,"""
        self.draws = 0
        """and draws over all of them."""
        self._edges = edges
        self.square, self.fourth, self.single, self.first, self.second = torch.zeros(
            5, len(edges.weight), dtype=torch.float64
        )
        """[edges] each, see kernels.edge_gradients."""
        self.of_targets = torch.zeros(2, len(edges.target_ids), dtype=torch.float64)
        """[2, d_target] of the edges into each target together, weights counted, what `first` is; and its squares."""

    def add(self, given: Contributions, number: int, gradients: Gradients, at: int) -> None:
        """Count sequence `number`, which is the `at`-th of the gradients."""
        from saelink.kernels.edge_gradients import edge_sums, edge_totals

        _, active, _ = given.of_sequence(number)
        by_source = active.transposed()
        arrays = [t.numpy() for t in (by_source.offsets, by_source.indices, by_source.values.double())]
        arrays += [self._edges.offsets.numpy(), self._edges.column.numpy()]
        for draw in gradients.sampled[:, at]:
            along = given.along(draw, number).double().contiguous().numpy()
            edge_sums(*arrays, along, self.square.numpy(), self.fourth.numpy(), self.single.numpy())
        along = given.along(gradients.true[at], number).double().contiguous().numpy()
        before = self.first.clone()
        edge_totals(*arrays, along, self.first.numpy(), self.second.numpy())
        mine = torch.zeros(len(self._edges.target_ids), dtype=torch.float64)
        mine.index_add_(0, self._edges.column, self._edges.weight.double() * (self.first - before))
        self.of_targets += torch.stack([mine, mine.square()])
        self.n += 1
        self.draws += len(gradients.sampled)


class EdgeOutputs(NamedTuple):
    """What the output owes to each edge, [n] float64 in nats a token."""

    effectiveness: torch.Tensor
    """Divergence without the edge everywhere in a sequence, summed over its predictions, over their number,"""
    effectiveness_error: torch.Tensor
    """and its standard error over draws;"""
    single: torch.Tensor
    """of the edge taken out at one token, summed over all later predictions, a mean over tokens that count."""
    helpfulness: torch.Tensor
    """Rise of the loss without the edge everywhere in a sequence, a mean over its predictions,"""
    helpfulness_error: torch.Tensor
    """and its standard error over sequences."""


class TargetOutputs(NamedTuple):
    """What the output owes to the edges of each explained target together, [d_target] float64 in nats a token."""

    effectiveness: torch.Tensor
    """Sum over its edges; what edges do to each other's effect, which second order has too, is not in it."""
    helpfulness: torch.Tensor
    """Sum over its edges, which is that of all together: it is of first order;"""
    helpfulness_error: torch.Tensor
    """and its standard error over sequences."""


def targets_of(sums: EdgeSums, edges: GraphEdges, found: EdgeOutputs, predictions: int) -> TargetOutputs:
    """The same sums by target."""
    total, squares = sums.of_targets
    effective = torch.zeros_like(total).index_add_(0, edges.column, found.effectiveness)
    return TargetOutputs(effective, total / max(predictions, 1), _spread(total, squares, sums.n) / max(predictions, 1))


def _spread(total: torch.Tensor, squares: torch.Tensor, n: int) -> torch.Tensor:
    """Standard error of a sum over n sequences."""
    return ((squares / n - (total / n).square()).clamp(min=0) * n).sqrt()


def outputs_of(sums: EdgeSums, weight: torch.Tensor, predictions: int, tokens: int) -> EdgeOutputs:
    """From sums over sequences with so many next-token predictions, and tokens that count, in all."""
    w, per = weight.double(), max(predictions, 1)
    share = sums.n / max(sums.draws, 1)
    mean, spread = sums.square / sums.draws, sums.fourth / sums.draws
    error = ((spread - mean.square()).clamp(min=0) / sums.draws).sqrt() * sums.n
    helped = _spread(sums.first, sums.second, sums.n)
    return EdgeOutputs(
        w.square() * sums.square * share / 2 / per,
        w.square() * error / 2 / per,
        w.square() * sums.single * share / 2 / max(tokens, 1),
        w * sums.first / per,
        w.abs() * helped / per,
    )
