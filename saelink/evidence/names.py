"""What latents and hidden units are called where others read of them: hook and number, top token, page."""

from __future__ import annotations

from typing import NamedTuple

import torch

from saelink.job import Job
from saelink.latents.link import load_split
from saelink.latents.rows import Rows
from saelink.model.load import load_tokenizer
from saelink.saes.neuronpedia import neuronpedia_page


def pages_of(job: Job) -> dict[str, str | None]:
    """By hook of the link where Neuronpedia shows its latents, if it does."""
    link = job.link
    return {hook: neuronpedia_page(job.cfg, job.store, hook) for hook in (*link.sources, link.target)}


class Unit(NamedTuple):
    """What one end of an edge is called."""

    kind: str
    """target, source or hidden."""
    latent: int
    """Its number in its own SAE, or among the hidden units."""
    hook: str
    token: str | None
    page: str | None

    @property
    def name(self) -> str:
        return f"{self.hook}/{self.latent}" if self.hook else f"hidden/{self.latent}"


class Names:
    """The units of both sides: number, hook, top token on test documents, page."""

    def __init__(self, job: Job):
        self._pages, self._sides = pages_of(job), job.sides
        test = load_split(job.cfg, self._sides, "test")
        ids = job.tokens.tensors("test.safetensors")["ids"].flatten().long()[test.row]
        self._tokens = {"source": top_tokens(test.source, ids), "target": top_tokens(test.target, ids)}
        self._tokenizer = load_tokenizer(job.cfg.model, job.model.artifact)

    def unit(self, kind: str, number: int) -> Unit:
        """`number` counts through the sources' latents, or is a target SAE's or a hidden unit's own."""
        if kind == "hidden":
            return Unit(kind, number, "", None, None)
        latent, side = number, self._sides.target
        if kind == "source":
            for side in self._sides.sources:
                if latent < side.facts["d_sae"]:
                    break
                latent -= side.facts["d_sae"]
        token = self._tokens[kind].get(number)
        page = self._pages[side.facts["hook_name"]]
        return Unit(
            kind,
            latent,
            side.facts["hook_name"],
            None if token is None else self._tokenizer.decode([token]),
            None if page is None else f"{page}/{latent}",
        )


def top_tokens(rows: Rows, ids: torch.Tensor) -> dict[int, int]:
    """For each latent the token id that carries most of its activation; `ids` [n] are the rows' tokens."""
    n_ids = int(ids.max()) + 1
    pair = rows.indices * n_ids + ids[rows.row_of]
    pairs, place = pair.unique(return_inverse=True)
    total = torch.zeros(len(pairs), dtype=torch.float64).index_add_(0, place, rows.values.double())
    order = total.argsort(descending=True, stable=True)
    best: dict[int, int] = {}
    for latent, token in zip((pairs[order] // n_ids).tolist(), (pairs[order] % n_ids).tolist(), strict=True):
        best.setdefault(latent, token)
    return best
