"""What links from latents that heads move cost beside what all links cost; see costs.

moved          the model up to its layer; of each query the sum over keys of every latent active in its sequence, by
               head, and a look at each of these amounts when the pairs that are kept are chosen
ov             kept pairs x targets on the tokens that are counted, and each head's weights
moved_cards    a look at each of the strongest edges of the targets that have a card
moved_effects  for each ablation 2 readings (of a null 1) of one query's attention over its keys, and of the target SAE
moved_verdicts claims beside effects, which are dense here
"""

from __future__ import annotations

from saelink import memory
from saelink.attention.ov import KEPT, TOKENS
from saelink.evidence.moved_edges import STRONGEST
from saelink.interventions.block import FOLDS
from saelink.interventions.moved_effects import NULL_QUERIES, NULLS, READINGS
from saelink.plan.costs import ABLATE, FORWARD, PROGRAM, Cost, Costs, met

PICKED = 2e-8
"""Seconds for each amount that is looked at when pairs are chosen; a default run of one thread took 163 s in all."""

LOOKED = 0.02
"""Seconds for an edge that is looked at."""


class MovedCosts:
    """The costs of one job's latents that heads move."""

    def __init__(self, costs: Costs):
        self._costs, self._sizes, self._cfg = costs, costs.sizes, costs.cfg
        self._model, self._target = costs.sizes.model, costs.sizes.target

    def _opened(self, place: int) -> float:
        sizes, (source, _) = self._sizes, self._sizes.moved[place]
        return memory.moved(self._model.size, source, self._target, sizes.kept, sizes.forward_tokens, sizes.context)

    def _pass(self, n_tokens: float) -> float:
        """Seconds of the model on so many tokens, up to the layer."""
        return self._costs.load + n_tokens * self._costs.of_pass / (FORWARD * self._costs.rates.gemm)

    def moved(self, place: int) -> Cost:
        """Of the link's sources that heads move, by place among them."""
        sizes, (source, form) = self._sizes, self._sizes.moved[place]
        amounts = self._model.n_heads * met(source.d_sae, sizes.context * source.l0)
        columns = source.d_sae * (1 if form == "ov_summed" else self._model.n_heads)
        disk = sizes.n * (sizes.kept * (4 if columns <= 2**16 else 6) + 8)
        seconds = self._pass(sizes.n) + sizes.n * 2.0 * sizes.context * amounts / (ABLATE * self._costs.rates.gemm)
        seconds += self._costs.slower * PICKED * sizes.n * amounts + disk / self._costs.rates.disk
        return Cost(sizes.n, disk, PROGRAM + self._opened(place), seconds)

    def ov(self) -> Cost:
        """The edges that are computed."""
        sizes, (source, _) = self._sizes, self._sizes.moved[0]
        n, pairs = min(TOKENS, sizes.tokens["train"]), float(source.d_sae) * self._target.d_sae
        size = memory.computed_edges(self._model.size, source, self._target, n, sizes.kept)
        work = n * sizes.kept * self._target.d_sae + 4.0 * pairs * self._model.d_heads
        disk = 8 * pairs + (8.0 + 4 * self._model.n_heads) * min(KEPT, source.d_sae) * self._target.d_sae
        seconds = 2 + self._costs.slower * work / 2e9 + disk / self._costs.rates.disk
        return Cost(n, disk, PROGRAM + size, seconds)

    def cards(self) -> Cost:
        """The edges on the page."""
        sizes, (source, _) = self._sizes, self._sizes.moved[0]
        looked = float(min(self._cfg.report.cards, self._target.d_sae) * STRONGEST)
        n = sizes.tokens["test"]
        size = self._opened(0) + memory.split([source], self._target, n)
        size += memory.moved_cards(self._model.size, source, self._target, looked, sizes.context)
        return Cost(n, 3000.0 * looked, PROGRAM + size, self._pass(n) + self._costs.slower * LOOKED * looked)

    def effects(self, null: bool = False) -> Cost:
        """Of all ablations."""
        sizes, (source, _) = self._sizes, self._sizes.moved[0]
        settings, readings = self._cfg.verify, 1 if null else len(READINGS)
        n = min(settings.tokens, sizes.tokens["test"])
        each = min(settings.tokens_per_source, NULL_QUERIES) if null else settings.tokens_per_source
        ablations = min(source.d_sae * each, n * source.l0)
        attended = 4.0 * (sizes.context + self._model.d_model) * self._model.d_heads
        encoded = 2.0 * self._target.width * self._target.d_sae
        work = ablations * readings * (attended + encoded) / (ABLATE * self._costs.rates.gemm)
        pairs = met(float(source.d_sae) * self._target.d_sae, ablations * 2 * self._target.l0)
        size = self._opened(0) + memory.moved_effects(source, self._target, FOLDS, readings)
        disk = 28 * pairs * readings
        return Cost(n, disk, PROGRAM + size, self._pass(n) + work + disk / self._costs.rates.disk)

    def verdicts(self) -> Cost:
        """Judged on effects, and on each null's."""
        (source, _), once = self._sizes.moved[0], self._costs.verdicts()
        pairs = float(source.d_sae) * self._target.d_sae
        size = memory.verdicts(self._costs.shape, once.disk / 48.0, pairs, memory.PART_SOURCES, 0)
        return once._replace(memory=PROGRAM + size, seconds=(len(READINGS) + len(NULLS)) * once.seconds)
