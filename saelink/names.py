"""What latents and hidden units are called where others read of them: hook and number, top token, page."""

from __future__ import annotations

from typing import NamedTuple

from saelink.config import Config
from saelink.data import tokens as pull_tokens
from saelink.evaluate import top_tokens
from saelink.link import link_of, load_split, pull_sides
from saelink.model import load_tokenizer, model_info
from saelink.sae import neuronpedia_page
from saelink.store import Store


def pages_of(cfg: Config, store: Store) -> dict[str, str | None]:
    """By hook of the link where Neuronpedia shows its latents, if it does."""
    link = link_of(cfg, store)
    return {hook: neuronpedia_page(cfg, store, hook) for hook in (*link.sources, link.target)}


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

    def __init__(self, cfg: Config, store: Store):
        self._pages, self._sides = pages_of(cfg, store), pull_sides(cfg, store)
        test = load_split(cfg, self._sides, "test")
        ids = pull_tokens(cfg, store).tensors("test.safetensors")["ids"].flatten().long()[test.row]
        self._tokens = {"source": top_tokens(test.source, ids), "target": top_tokens(test.target, ids)}
        self._tokenizer = load_tokenizer(cfg.model, model_info(cfg, store).artifact)

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
