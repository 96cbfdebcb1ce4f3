"""A latent's card: what it fires on and what it is wired to, as plain data."""

from __future__ import annotations

from typing import Any

from saelink.errors import SaelinkError
from saelink.evidence.hidden_units import HiddenUnitsStage, load_hidden
from saelink.job import Job
from saelink.report.cards.beside import Beside
from saelink.report.cards.firing import Firing
from saelink.report.cards.wiring import Wiring

Card = dict[str, Any]
"""A structure.LatentCard with what it is wired to."""


class Cards:
    """The cards of one connector's latents; what they need is pulled when it is first asked for."""

    def __init__(self, job: Job, firing: Firing | None = None):
        """`firing` of another connector between the same latents saves reading their examples again."""
        self.job, self.sides = job, job.sides
        self.firing = firing or Firing(job)
        self.wiring = Wiring(job, self.firing)
        self.beside = Beside(job, self.firing, self.wiring)

    def target(self, latent: int) -> Card:
        """The card of a target latent. Raises SaelinkError when the SAE has no such latent."""
        if not 0 <= latent < self.sides.d_target:
            raise SaelinkError(f"show target {latent}: the target SAE has latents 0 to {self.sides.d_target - 1:,}")
        card = self.target_firing(latent)
        if latent not in self.wiring.columns_of:
            return {**card, "explained": False}
        under = self.beside.under([latent])[latent]
        return {**card, "explained": True, **self.wiring.circuit(latent), "beside": under}

    def source(self, latent: int) -> Card:
        """The card of a source latent, by the connector's numbering, with what it feeds most."""
        return {**self.source_firing(latent), "feeds": self.wiring.source_feeds(latent)}

    def source_number(self, text: str) -> int:
        """The connector's source latent of `17` or `0.17`. Raises SaelinkError when there is none."""
        return self.sides.source_number(text, f"show source {text}")

    def hidden_unit(self, unit: int) -> Card:
        """The card of a hidden unit: its inputs, what they say of it, and the targets it feeds most."""
        wiring = self.wiring
        card: Card = {**self.firing.card(f"H{unit}", self.firing.hidden(self.job), unit)}
        classed = {found.unit: found for found in load_hidden(HiddenUnitsStage(self.job).pull())[2]}
        if unit in classed:
            card["classed"] = classed[unit].__dict__
        feeds = wiring.feeds(wiring.tables[0], wiring.direct + unit)
        return {**card, **wiring.hidden_circuit(unit), "feeds": feeds}

    def target_firing(self, latent: int, with_examples: bool = True) -> Card:
        """What a target latent fires on."""
        looked = self.firing.looked(self.sides.target)
        return {**self.firing.card(self.sides.target_name(latent), looked, latent, with_examples)}

    def source_firing(self, latent: int, with_examples: bool = True) -> Card:
        """What a source latent fires on, by the connector's numbering."""
        place, number = self.sides.side_of(latent)
        looked = self.firing.looked(self.sides.sources[place])
        return {**self.firing.card(self.sides.source_name(latent), looked, number, with_examples)}
