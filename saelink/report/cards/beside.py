"""Under the examples of a target: what was predicted there, and what its first inputs are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from saelink.activations.cache import Shard, shards_of
from saelink.activations.tokens import SPLITS
from saelink.evidence.hidden_units import HiddenUnitsStage, hidden_stream
from saelink.job import Job
from saelink.latents.examples import tokens_around
from saelink.latents.rows import Rows, unpack
from saelink.latents.stream import WIDTH, WINDOW, Stream, stream_of
from saelink.report.cards.firing import Firing, rounded
from saelink.report.cards.wiring import Wiring

FAINT_PREDICTION = 0.05
"""Predictions nearer to zero than this, in units, are shown as zero: a linear map is never silent."""

BESIDE = 5
"""Sources whose activations stand under a target's examples."""


class Beside:
    """Predictions and inputs of one connector on the tokens of examples."""

    def __init__(self, job: Job, firing: Firing, wiring: Wiring):
        self._job, self._firing, self._wiring, self._sides = job, firing, wiring, job.sides

    def under(self, targets: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
        """Under each example of these targets: what was predicted there, and what its first inputs are.

        By target a list as long as the card's examples, of `predicted` and `inputs` (names and values), in units.
        """
        looked = self._firing.looked(self._sides.target)
        context = looked.facts["context_size"]
        asked: list[tuple[int, int]] = [
            (latent, int(looked.places[latent, column])) for latent in targets for column in looked.shown(latent)
        ]
        inputs = {
            latent: [int(self._wiring.tables[0].source[mine][i]) for i in order[:BESIDE]]
            for latent in targets
            for mine, order in [self._wiring.strongest(self._wiring.tables[0], self._wiring.columns_of[latent])]
        }
        places = np.array([place for _, place in asked], np.int64)
        predicted = self._predicted(places, np.array([self._wiring.columns_of[latent] for latent, _ in asked]))
        pairs = [(r, number) for r, (latent, _) in enumerate(asked) for number in inputs[latent]]
        windows = self._input_windows(
            places[[r for r, _ in pairs]], np.array([number for _, number in pairs], np.int64)
        )
        shown = tokens_around(self._firing.text, places, context) >= 0 if len(places) else np.zeros((0, WIDTH), bool)
        found: dict[int, list[dict[str, Any]]] = {latent: [] for latent in targets}
        by_request: dict[int, list[int]] = {}
        for p, (r, _) in enumerate(pairs):
            by_request.setdefault(r, []).append(p)
        for r, (latent, _) in enumerate(asked):
            found[latent].append(
                {
                    "predicted": rounded(np.where(np.abs(predicted[r]) < FAINT_PREDICTION, 0, predicted[r])[shown[r]]),
                    "inputs": [
                        {"name": self._wiring.input_name(pairs[p][1]), "values": rounded(windows[p][shown[r]])}
                        for p in by_request.get(r, [])
                    ],
                }
            )
        return found

    def _source_rows(self, shard: Shard) -> Rows:
        """The scaled source latents of a shard, all positions."""
        parts = [
            unpack(side.tensors(shard.name), side.facts["d_sae"]).scaled(1 / scale)
            for side, scale in zip(self._sides.sources, self._sides.scales, strict=False)
        ]
        return Rows.beside(parts)

    def _predicted(self, places: np.ndarray[Any, Any], columns: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[m, WIDTH] predictions of columns[r] on the tokens around places[r]."""
        facts = self._sides.target.facts
        context = facts["context_size"]
        rows = places[:, None] + np.arange(-WINDOW, WINDOW + 1)
        inside = rows // context == places[:, None] // context
        wanted, column = rows[inside], np.broadcast_to(columns[:, None], rows.shape)[inside]
        order = np.argsort(wanted, kind="stable")
        ranked = wanted[order]
        values = np.zeros(len(wanted), np.float32)
        device = self._job.device
        connector = self._wiring.connector.to(device)
        stream = stream_of(self._sides.target, self._job.cfg.data.drop_positions)
        with torch.inference_mode():
            for shard in shards_of(facts["sequences"], context):
                start = stream.begins[shard.split] + shard.first * context
                stop = start + (shard.last - shard.first) * context
                here = order[slice(*np.searchsorted(ranked, [start, stop]))]
                if not len(here):
                    continue
                sources = self._source_rows(shard)
                unique, place = np.unique(wanted[here] - start, return_inverse=True)
                for first in range(0, len(unique), 1024):
                    chosen = (place >= first) & (place < first + 1024)
                    part = sources.select(torch.from_numpy(unique[first : first + 1024]))
                    z = connector(part.to(device)).cpu().numpy()
                    values[here[chosen]] = z[place[chosen] - first, column[here[chosen]]]
        connector.to("cpu")
        out = np.zeros(rows.shape, np.float32)
        out[inside] = values * (self._sides.scales[-1] / stream.unit)
        return out

    def _input_windows(self, places: np.ndarray[Any, Any], numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[m, WIDTH] what input numbers[r] is on the tokens around places[r], in its units."""
        out = np.zeros((len(places), WIDTH), np.float32)
        units = (numbers >= self._wiring.direct).nonzero()[0]
        if len(units):
            stream = self._hidden_stream
            out[units] = stream.windows(places[units], numbers[units] - self._wiring.direct) / stream.unit
        first = 0
        for side in self._sides.sources if self._wiring.direct else ():
            mine = ((numbers >= first) & (numbers < first + side.facts["d_sae"])).nonzero()[0]
            stream = stream_of(side, self._job.cfg.data.drop_positions)
            out[mine] = stream.windows(places[mine], numbers[mine] - first) / stream.unit
            first += side.facts["d_sae"]
        return out

    @property
    def _hidden_stream(self) -> Stream:
        unit = HiddenUnitsStage(self._job).pull().facts["unit"]
        return hidden_stream(self._wiring.connector, self._sides, unit, SPLITS)
