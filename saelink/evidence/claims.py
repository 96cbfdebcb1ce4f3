"""What a connector claims: how much each target loses on average, by its own prediction, when a source goes."""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import NamedTuple

import torch

from saelink import memory
from saelink.config.evidence import AblationValue
from saelink.connectors import CONNECTORS
from saelink.connectors.base import Connector
from saelink.connectors.linear import LinearConnector
from saelink.interventions.measure import choose_ablations
from saelink.interventions.pairs import Effects
from saelink.interventions.replaced import replaced_by
from saelink.job import Job
from saelink.latents.rows import Rows
from saelink.latents.split import Tokens
from saelink.progress import Observer
from saelink.runtime import need_memory

STEP = 2048
"""Ablations whose predictions are in memory at a time, fewer where these take memory.STEP_ENTRIES."""

CLAIM_BYTES = 100
"""Memory for a claim with what is compared and sorted of it."""

SOURCES = 256
"""Sources whose claims are in memory densely."""


class Claims(NamedTuple):
    """What is claimed of some pairs of a source and a target, in the order of sources, then targets."""

    source: torch.Tensor
    """[n] int64"""
    column: torch.Tensor
    """[n] int64: the place of the target among those that the connector explains."""
    value: torch.Tensor
    """[n] what the target loses; never 0."""

    @staticmethod
    def of_dense(claim: torch.Tensor, first: int = 0) -> Claims:
        """What is not zero in a matrix [sources, targets], whose first source is `first`."""
        source, column = claim.nonzero(as_tuple=True)
        return Claims(source + first, column, claim[source, column])

    @staticmethod
    def stack(parts: list[Claims]) -> Claims:
        """One after another."""
        return Claims(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def renamed(self, order: torch.Tensor) -> Claims:
        """What is claimed of source j claimed of order[j]."""
        source = order[self.source]
        by = torch.argsort(source, stable=True)
        return Claims(source[by], self.column[by], self.value[by])


def weights_of(connector: Connector) -> Claims:
    """The non-zero weights of a connector without hidden units."""
    by_source = connector.edges_by_target().transposed()
    return Claims(by_source.row_of, by_source.indices, by_source.values)


WAY_OUT = "use connector=linear or targets.subset, or eval.verify=false for an evaluation without verdicts"


def claims_bytes(job: Job) -> float:
    """Memory for the claims of the job's connector beside its edges: of one with hidden units on all pairs."""
    kind, sides = CONNECTORS[job.cfg.connector.name], job.sides
    linear = issubclass(kind, LinearConnector)
    if linear and not kind.relu_output:
        return 0.0
    predicted = 4 * 4.0 * min(STEP * sides.d_target, memory.STEP_ENTRIES)
    return predicted + (0.0 if linear else CLAIM_BYTES * sides.d_source * sides.d_target)


def need_claims(job: Job) -> None:
    """Raise SaelinkError where the claims of the job's connector don't fit into memory: one that claims all pairs."""
    name, sides = job.cfg.connector.name, job.sides
    if issubclass(CONNECTORS[name], LinearConnector):
        return
    need_memory(
        f"verify: the claims of connector={name} on all pairs of {sides.d_source:,} source and {sides.d_target:,} "
        "target latents",
        claims_bytes(job),
        WAY_OUT,
    )


def claims(
    connector: Connector, measured: Effects, test: Tokens, most: int, device: str, observer: Observer,
    ablation: AblationValue = AblationValue.zero,
) -> Claims:  # fmt: skip
    """What the predictions of a connector lose on average without each source, or with what comes for it."""
    if len(connector.penalised()) == 1 and not connector.relu_output:
        weights = weights_of(connector)
        value = weights.value * measured.source_mean[weights.source]
        some = value != 0
        return Claims(weights.source[some], weights.column[some], value[some])
    active = test.source.transposed()
    fold = torch.zeros(len(test), dtype=torch.int64)
    connector, step = connector.to(device), max(min(STEP, memory.STEP_ENTRIES // connector.d_target), 1)
    parts = [Claims(fold[:0], fold[:0], torch.zeros(0))]
    with observer.progress("claims", test.source.d, "sources") as bar, torch.inference_mode():
        for first in range(0, test.source.d, SOURCES):
            sources = torch.arange(first, min(first + SOURCES, test.source.d))
            chosen = choose_ablations(active, fold, most, sources)
            sums = torch.zeros(len(sources), connector.d_target)
            for low in range(0, len(chosen.token), step):
                token, source = chosen.token[low : low + step], chosen.source[low : low + step]
                comes = replaced_by(ablation, active, token, source)
                sums.index_add_(0, source - first, _lost(connector, test.source.select(token), source, comes, device))
            n = torch.bincount(chosen.source - first, minlength=len(sources)).clamp(min=1)
            parts.append(Claims.of_dense(sums / n[:, None], first))
            bar.advance(len(sources))
    return Claims.stack(parts)


def _lost(
    connector: Connector, rows: Rows, source: torch.Tensor, comes: torch.Tensor, device: str
) -> torch.Tensor:  # fmt: skip
    """[n, d_target] what the predictions lose with comes[r] for source[r] in row r, which is active there."""
    row = rows.row_of
    without = Rows(
        rows.offsets, rows.indices, torch.where(rows.indices == source[row], comes[row], rows.values), rows.d
    )
    return (connector(rows.to(device)) - connector(without.to(device))).cpu()
