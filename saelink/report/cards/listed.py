"""What the list of circuits shows, filters and sorts by; and all edges of a target."""

from __future__ import annotations

import math
from typing import Any, cast

import torch

from saelink.evidence.logic import MIN_TOKENS, READ
from saelink.evidence.verdicts import REFUTED, VERDICTS, VERDICTS_FILE
from saelink.report.cards.wiring import Wiring
from saelink.report.structure import FitColumns

RARE = 2 * MIN_TOKENS
"""Test tokens that a target must fire on before its logic can be believed."""

POOR = 0.5
"""FVU from which on a target is badly predicted."""


REFUTED_SHARE = 0.5
"""Of what all its sources add, the share above which refuted edges are a reason."""


class Listed:
    """The targets of one connector as the list of circuits has them."""

    def __init__(self, wiring: Wiring, oracle: torch.Tensor):
        """`oracle` [d_target]: the FVU that the true computation between the SAEs reaches; nan where it is unknown."""
        self._wiring, self._oracle = wiring, oracle
        self._judged: dict[str, torch.Tensor] | None = None
        if wiring.verify is not None:
            self._judged = wiring.verify.tensors(VERDICTS_FILE)

    def columns(self, terms: int) -> FitColumns:
        """By latent of the target SAE: edges, word, first terms (input, weight, verdict if any), verdicts, reasons.

        Terms are in the order of their weights, confirmed ones first.
        """
        wiring, d = self._wiring, self._wiring.sides.d_target
        table = wiring.tables[0]
        n_edges: list[int | None] = [None] * d
        words: list[str | None] = [None] * d
        sure: list[bool | None] = [None] * d
        formula: list[list[Any] | None] = [None] * d
        why: list[str | None] = [None] * d
        for latent, column in wiring.columns_of.items():
            mine, order = wiring.strongest(table, column)
            n_edges[latent] = mine.stop - mine.start
            words[latent], sure[latent] = wiring.word(latent), wiring.confirmed(latent)
            sources, weights = table.source[mine], table.weight[mine]
            terms_of: list[Any] = []
            for i in order:
                source = int(sources[i])
                verdict = wiring.verdict(source, latent).get("verdict")
                terms_of.append([source, float(f"{weights[i].item():.3g}"), *([verdict] if verdict else [])])
            formula[latent] = sorted(terms_of, key=lambda term: "confirmed" not in term)[:terms]
            if words[latent] == "unclear":
                why[latent] = self._why(latent, sources, weights)
        counts, effects = self._verdicts()
        found: FitColumns = {
            "n_edges": n_edges, "word": words, "confirmed": sure, "formula": formula, "why": why, "verdicts": counts,
            "effect": effects,
        }  # fmt: skip
        return cast("FitColumns", found | self._outputs())

    def _outputs(self) -> dict[str, list[float | None]]:
        """By target what the model's output owes to its edges, where that was measured."""
        wiring = self._wiring
        if wiring.outputs is None:
            return {}
        found = wiring.outputs.of_targets()
        columns: dict[str, list[float | None]] = {
            name: [None] * wiring.sides.d_target for name in found if name != "target"
        }
        for name, column in columns.items():
            for latent, value in zip(found["target"].tolist(), found[name].tolist(), strict=True):
                column[latent] = float(f"{value:.3g}")
        return columns

    def _verdicts(self) -> tuple[list[list[int] | None], list[float | None]]:
        """By target how many of its edges have which verdict, and the largest effect of a confirmed one."""
        d = self._wiring.sides.d_target
        if self._judged is None:
            return [None] * d, [None] * d
        target, verdict = self._judged["target"].long(), self._judged["verdict"].long()
        counts = torch.bincount(target * len(VERDICTS) + verdict, minlength=d * len(VERDICTS)).view(d, -1)
        sure = verdict == VERDICTS.index("confirmed")
        effects = torch.zeros(d).scatter_reduce(0, target[sure], self._judged["effect"][sure].float().abs(), "amax")
        explained = set(self._wiring.columns_of)
        return (
            [row if latent in explained else None for latent, row in enumerate(counts.tolist())],
            [float(f"{value:.3g}") if value else None for value in effects.tolist()],
        )

    def _why(self, latent: int, sources: torch.Tensor, weights: torch.Tensor) -> str:
        """Why a target's logic is unclear: codes with blanks between, see page/why.js."""
        if not len(sources):
            return "none"
        wiring = self._wiring
        reasons = []
        if wiring.fired(latent) < RARE:
            reasons.append("rare")
        oracle, fvu = self._oracle[latent].item(), wiring.figures("fvu")[latent]
        if oracle > POOR:
            reasons.append("oracle")
        elif fvu > POOR:
            reasons.append("poor")
        adds = weights.abs().double() * wiring.input_totals[sources.long()]
        if self._judged is not None:
            said = [wiring.verdict(number, latent).get("verdict") for number in sources.tolist()]
            gone = torch.tensor([verdict in REFUTED for verdict in said])
            if adds[gone].sum() > REFUTED_SHARE * adds.sum():
                reasons.append("refuted")
        if adds.sum() ** 2 > READ * adds.square().sum():
            reasons.append("many")
        return " ".join(reasons) or "apart"

    def edges(self, latent: int) -> list[dict[str, Any]]:
        """Every edge into an explained target, the largest weight first: `number` of its input, and what is known."""
        wiring = self._wiring
        table, column = wiring.tables[0], wiring.columns_of[latent]
        mine = slice(int(table.offsets[column]), int(table.offsets[column + 1]))
        order = table.weight[mine].abs().sort(descending=True, stable=True).indices
        source, weight, rise = (t[mine][order].tolist() for t in (table.source, table.weight, table.rise))
        rows: list[dict[str, Any]] = [
            {"number": number, "weight": value, "rise": None if math.isnan(without) else without}
            for number, value, without in zip(source, weight, rise, strict=True)
        ]
        if self._judged is not None:
            for row in rows:
                row |= wiring.verdict(row["number"], latent)
        return rows
