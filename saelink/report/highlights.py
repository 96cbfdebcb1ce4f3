"""What the first screen names: targets of each kind of circuit, outliers, and what is ablated of them."""

from __future__ import annotations

from typing import Any

import torch

from saelink.evidence.token_ablation import ABLATIONS_FILE, AblationsStage
from saelink.job import Job
from saelink.latents.outliers import flagged
from saelink.report.cards.cards import Cards

HIGHLIGHTS = 6
"""Latents named on the first screen for each kind of circuit."""


class Highlights:
    """The latents of one connector that the page puts first."""

    def __init__(self, job: Job, cards: Cards):
        self.job, self.wiring, self.sides = job, cards.wiring, job.sides
        self.ids = self.wiring.connector.target_ids
        self.outliers = self._outliers()

    def by_kind(self) -> dict[str, list[int]]:
        """A few targets of each kind, the best predicted first among those that fire often enough.

        Where edges have verdicts, only those whose word rests on confirmed edges alone.
        """
        fvu, active = self.wiring.figures("fvu"), self.wiring.figures("active")
        found: dict[str, list[int]] = {word: [] for word in ("or", "and", "and not", "copy")}
        for latent in sorted(self.ids.tolist(), key=lambda latent: (fvu[latent] != fvu[latent], fvu[latent])):
            word = self.wiring.word(latent)
            if self.wiring.verdicts is not None and not self.wiring.confirmed(latent):
                continue
            if word in found and active[latent] >= self.job.cfg.eval.min_active and len(found[word]) < HIGHLIGHTS:
                found[word].append(latent)
        found["outlier"] = [entry["latent"] for entry in self.outliers[:HIGHLIGHTS]]
        return found

    def kept(self) -> tuple[set[int], set[int]]:
        """The targets and sources whose examples are on the page: report.cards of each."""
        most, sides = self.job.cfg.report.cards, self.sides
        fvu = self.wiring.figures("fvu")
        shown = [latent for latents in self.by_kind().values() for latent in latents]
        ranked = sorted(range(sides.d_target), key=lambda i: (fvu[i] != fvu[i], fvu[i]))
        targets = list(dict.fromkeys([*shown, *ranked]))[:most]
        if sides.d_source <= most or not self.wiring.direct:
            return set(targets), set(range(min(sides.d_source, most)))
        explained = set(self.ids.tolist())
        fed = [number for latent in targets if latent in explained for number in self._direct_inputs(latent)]
        return set(targets), set(list(dict.fromkeys([*fed, *range(sides.d_source)]))[:most])

    def _direct_inputs(self, latent: int) -> list[int]:
        """The source latents of an explained target's strongest edges, by the connector's numbering."""
        inputs = [edge.get("input", self.wiring.direct) for edge in self.wiring.circuit(latent)["edges"]]
        return [number for number in inputs if number < self.wiring.direct]

    def _outliers(self) -> list[dict[str, Any]]:
        """Target latents of whose activation on test documents such a share falls on outlier places; most first."""
        side = self.sides.target
        ids = self.job.tokens.tensors("test.safetensors")["ids"].long()
        outliers = flagged(side, ids, self.job.vocabulary, self.job.cfg.outliers.shares)
        found = []
        for latent in outliers.latents:
            entry: dict[str, Any] = {name: round(share[latent].item(), 4) for name, share in outliers.shares.items()}
            fires = int(outliers.fired[latent])
            entry |= {"latent": latent, "fires": fires, "token": self.wiring.target_token(latent)}
            entry["mean"] = float(f"{outliers.sums[latent].item() / fires / self.sides.scales[-1]:.4g}")
            found.append(entry)
        if self.wiring.has_hidden:
            weights, limit = self._hidden_weights(), self.job.cfg.outliers.weight_threshold
            columns = {latent: column for column, latent in enumerate(self.ids.tolist())}
            for entry in found:
                column = columns.get(entry["latent"])
                if column is not None:
                    entry["w2_above"] = int((weights[:, column] > limit).sum())
                    entry["w2_below"] = int((weights[:, column] < -limit).sum())
        return found

    def _hidden_weights(self) -> torch.Tensor:
        """[n_hidden, d_target] what leads from hidden units into targets."""
        return self.wiring.connector.output_weight()[self.wiring.direct :]

    def w2_median(self) -> dict[str, float] | None:
        """Large W2 weights of the median target, beside which those of outliers stand."""
        if not self.wiring.has_hidden:
            return None
        weights, limit = self._hidden_weights(), self.job.cfg.outliers.weight_threshold
        above, below = (weights > limit).sum(0).double(), (weights < -limit).sum(0).double()
        return {"limit": limit, "above": above.median().item(), "below": below.median().item()}

    def ablated(self) -> dict[str, dict[str, Any]]:
        """Ablations of the highlighted targets and their first sources, by side and number."""
        most = self.job.cfg.report.ablated
        if not most:
            return {}
        shown = self.by_kind()
        order = ["or", "and not", "and", "copy"]
        chosen: list[int] = []
        for place in range(HIGHLIGHTS):
            chosen += [shown[word][place] for word in order if place < len(shown[word])]
        fvu = self.wiring.figures("fvu")
        ranked = sorted(self.ids.tolist(), key=lambda i: (fvu[i] != fvu[i], fvu[i]))
        chosen = list(dict.fromkeys([*chosen[: most - 1], *shown["outlier"][:1], *chosen, *ranked]))[:most]
        sides = self.sides
        found = {"target": AblationsStage(self.job, sides.target, chosen).pull().json(ABLATIONS_FILE)} if chosen else {}
        if self.wiring.direct:
            sources: dict[int, list[int]] = {}
            for latent in chosen:
                if latent in set(self.ids.tolist()):
                    for source in self._direct_inputs(latent)[:1]:
                        place, number = self.sides.side_of(source)
                        sources.setdefault(place, []).append(number)
            found["source"] = {}
            shift = 0
            for place, side in enumerate(sides.sources):
                if place in sources:
                    here = AblationsStage(self.job, side, sorted(set(sources[place]))).pull().json(ABLATIONS_FILE)
                    found["source"] |= {str(int(latent) + shift): value for latent, value in here.items()}
                shift += side.facts["d_sae"]
        return found
