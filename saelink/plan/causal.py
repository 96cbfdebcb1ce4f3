"""What the tests cost that run the model without some latents or edges; see costs.

logic_trials   ASKED of the tokens that a target fires on, each with the MLP (or block) run once
joint          of each target its pairs, the strongest together, and each of their sources alone, on as many tokens
edge_removals  the whole model for each edge and token; of an order and share of edges in `pruned` for each token
consequences   three passes of the whole model for each token that something is taken out at
"""

from __future__ import annotations

from saelink import memory
from saelink.evidence import consequences, edge_removals, joint_effects, pruned
from saelink.interventions.splice import LOGITS_TOKENS
from saelink.plan.costs import ABLATE, EDGES, FORWARD, PROGRAM, Cost, Costs

ASKED = 1 / 6
"""Of the tokens on which a target fires so many are asked about; a sixth where it was counted (the default)."""


class CausalCosts:
    """The costs of the tests of one job's edges."""

    def __init__(self, costs: Costs):
        self._costs, self._sizes = costs, costs.sizes
        self._edges = EDGES * self._sizes.d_target

    def _seconds(self, runs: float, n_tokens: float) -> float:
        """Of opening what lies between the SAEs on some tokens, and running it so often."""
        costs = self._costs
        work = n_tokens * costs.of_pass / FORWARD + runs * 2.0 * costs.inside / ABLATE
        return costs.load + work / costs.rates.gemm

    def _whole(self, n_tokens: float) -> float:
        """Seconds of the whole model on so many tokens."""
        return self._costs.load + n_tokens * self._costs.of_whole / (FORWARD * self._costs.rates.gemm)

    def logic_trials(self) -> Cost:
        """The logic of targets, tested."""
        opened = self._costs.opened
        size = memory.joint(*opened) + memory.asked(self._sizes.target, opened.n_tokens)
        asked = ASKED * opened.n_tokens * self._sizes.target.l0
        return Cost(
            opened.n_tokens, 120.0 * self._sizes.d_target, PROGRAM + size, self._seconds(asked, opened.n_tokens)
        )

    def joint(self) -> Cost:
        """Sources taken out together."""
        opened, targets = self._costs.opened, self._costs.cfg.verify.joint
        several = joint_effects.PAIRED * (joint_effects.PAIRED - 1) / 2
        runs = targets * joint_effects.MOST_TOKENS * (3 * several + sum(each + 1 for each in joint_effects.TOGETHER))
        size = memory.joint(*opened) + memory.together(self._costs.shape, self._costs.changed_pairs)
        sets = targets * (several + len(joint_effects.TOGETHER))
        return Cost(opened.n_tokens, 28 * sets, PROGRAM + size, self._seconds(runs, opened.n_tokens))

    def consequences(self) -> Cost:
        """What the next token loses."""
        settings, opened = self._costs.cfg.verify, self._costs.opened
        items = 3 * settings.consequences + 2 * len(settings.chosen)
        passes = 3.0 * items * consequences.TOKENS * self._sizes.context
        run = memory.without_edges(opened.size, opened.target, consequences.SEQUENCES, opened.context)
        size = PROGRAM + memory.block(*opened) + run + memory.vocabulary(opened.size)
        return Cost(opened.n_tokens, 500.0 * items, size, self._seconds(0, opened.n_tokens) + self._whole(passes))

    def edge_removals(self) -> Cost:
        """The model without single edges."""
        settings, model = self._costs.cfg.verify, self._sizes.model
        n = min(settings.check_tokens, self._sizes.tokens["test"])
        size = memory.without_edges(model.size, self._sizes.target, edge_removals.ROWS, self._sizes.context)
        size = max(PROGRAM + size, self._costs.outputs().memory)
        return Cost(n, 24.0 * settings.edges_checked, size, self._whole((settings.edges_checked + 1.0) * n))

    def pruned(self) -> Cost:
        """The model without the least of the edges."""
        sizes, tokens = self._sizes, self._costs.cfg.verify.pruned_tokens
        n = min(tokens, sizes.tokens["test"])
        runs = len(pruned.ORDERS) * (len(pruned.SHARES) + 1)
        step = max(LOGITS_TOKENS, sizes.context)
        size = memory.losses(sizes.model.size, sizes.target, n, step, sizes.context)
        size += memory.pruned(
            sizes.target, self._edges, self._costs.changed_pairs, sizes.d_source, int(n), len(pruned.SHARES)
        )
        return Cost(n, 20_000.0, PROGRAM + size + 8.0 * self._costs.shape.weights, self._whole(runs * n))
