"""A link: which hooks explain which, their latents on both sides, and the targets that are explained."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch

from saelink import memory
from saelink.config.schema import Config, LatentScale
from saelink.errors import SaelinkError
from saelink.latents.encode import TYPICAL_NORM_RATIO, EncodeFacts, encode_hooks
from saelink.latents.split import Split, Tokens, open_split, scale_of
from saelink.model.describe import model_info
from saelink.store.artifact import Artifact
from saelink.store.store import Store

MOVED = ("ov", "ov_summed")
"""Sources that are no hook: latents of hook_resid_pre as heads move them, by head and latent or summed over heads."""


class Link(NamedTuple):
    """A link's hooks at one layer, by full name; of moved latents the hook in front of the block."""

    sources: list[str]
    target: str


def link_of(cfg: Config, store: Store, layer: int | None = None) -> Link:
    """The hooks of the configured link. Raises SaelinkError for a layer or hook that the model lacks."""
    info = model_info(cfg, store)
    layer = cfg.layer if layer is None else layer
    return Link([info.hook(name, layer) for name in hooks_of_sources(cfg)], info.hook(cfg.link.target, layer))


def hooks_of_sources(cfg: Config) -> list[str]:
    """For each source of the link the hook, inside its block, whose SAE has its latents."""
    return ["hook_resid_pre" if name in MOVED else name for name in cfg.link.sources]


def moved_forms(cfg: Config) -> list[str]:
    """For each source of the link the one of MOVED that it is; empty for a hook's own latents."""
    return [name if name in MOVED else "" for name in cfg.link.sources]


def check_same_token(cfg: Config, what: str) -> None:
    """Raise SaelinkError, of what needs its sources at the target's own token, for a link from moved latents."""
    if any(moved_forms(cfg)):
        raise SaelinkError(
            f"link={cfg.link.name}: {what} reads sources at the target's own token, where latents that heads move are "
            "not; take another link, such as link=attn or link=block"
        )


class Sides(NamedTuple):
    """The encode artifacts of a link and the scalars their latents are divided by."""

    sources: list[Artifact[EncodeFacts]]
    target: Artifact[EncodeFacts]
    scales: list[float]
    """One for each source, then the target's."""

    @property
    def d_source(self) -> int:
        """Latents of all sources together."""
        return sum(source.facts["d_sae"] for source in self.sources)

    @property
    def d_target(self) -> int:
        """Latents of the target SAE, explained or not."""
        return self.target.facts["d_sae"]

    @property
    def sizes(self) -> tuple[list[memory.Side], memory.Side]:
        """Those of the sources and of the target."""
        *sources, target = (
            memory.Side(side.facts["width"], side.facts["d_sae"], side.facts["l0"])
            for side in [*self.sources, self.target]
        )
        return sources, target

    @property
    def active(self) -> float:
        """Latents active on a token, of all hooks together."""
        return sum(side.facts["l0"] for side in [*self.sources, self.target])

    def split_bytes(self, split: str) -> float:
        """Memory that the latents of a split take while they are read."""
        facts = self.target.facts
        return memory.split(*self.sizes, facts["sequences"][split] * facts["context_size"])

    def side_of(self, source: int) -> tuple[int, int]:
        """Which source hook a connector's source latent belongs to, and its number in that hook's SAE."""
        place, column = self._column(source)
        return place, column % (self.sources[place].facts["d_sae"] // self.heads_of(place))

    def head_of(self, source: int) -> int | None:
        """The head that moves a connector's source latent; None for a latent of a hook, or one summed over heads."""
        place, column = self._column(source)
        heads = self.heads_of(place)
        return None if heads == 1 else column // (self.sources[place].facts["d_sae"] // heads)

    def heads_of(self, place: int) -> int:
        """Heads whose moved latents stand side by side in one of the sources; else 1."""
        return int(cast("dict[str, Any]", self.sources[place].facts).get("heads", 1))

    def _column(self, source: int) -> tuple[int, int]:
        for place, side in enumerate(self.sources):
            if source < side.facts["d_sae"]:
                return place, source
            source -= side.facts["d_sae"]
        raise AssertionError(source)

    def target_name(self, target: int) -> str:
        """OF12, of the target SAE's latent 12."""
        return f"OF{target}"

    def source_name(self, source: int) -> str:
        """IF17, or with several source hooks IF0.17; h3.IF17 as head 3 moves it."""
        place, number = self.side_of(source)
        head = self.head_of(source)
        name = f"IF{number}" if len(self.sources) == 1 else f"IF{place}.{number}"
        return name if head is None else f"h{head}.{name}"

    def source_number(self, text: str, what: str) -> int:
        """The connector's source latent of `17` or `0.17`, of a moved one `h3.17` or `h3.0.17`.

        Raises SaelinkError, which begins with `what`, if none.
        """
        head, dot, rest = text.partition(".") if text.startswith("h") else ("h0", ".", text)
        place, _, number = rest.rpartition(".")
        heads = [self.heads_of(place) for place in range(len(self.sources))]
        columns = [side.facts["d_sae"] for side in self.sources]
        sizes = [n // among for n, among in zip(columns, heads, strict=True)]
        wrong = not number.isdigit() or bool(place and not place.isdigit()) or (len(sizes) > 1 and not place)
        moved = not wrong and int(place or 0) < len(sizes) and heads[int(place or 0)] > 1
        if wrong or not head[1:].isdigit() or not dot or moved != text.startswith("h"):
            form = "a number such as 17" if len(sizes) == 1 else "hook and number such as 0.17"
            if max(heads) > 1:
                form = "head and number such as h3.17" if len(sizes) == 1 else f"{form}, and of a moved one h3.0.17"
            raise SaelinkError(f"{what}: give {form}")
        if int(place or 0) >= len(sizes) or int(number) >= sizes[int(place or 0)]:
            raise SaelinkError(f"{what}: there are {', '.join(f'{n:,}' for n in sizes)} source latents, from 0")
        at = int(place or 0)
        if int(head[1:]) >= heads[at]:
            raise SaelinkError(f"{what}: there are {heads[at]} heads, from 0")
        return sum(columns[:at]) + int(head[1:]) * sizes[at] + int(number)


def pull_sides(cfg: Config, store: Store) -> Sides:
    """Pull the latents on both sides of the link; one forward pass gives what is missing for all of them."""
    link = link_of(cfg, store)
    hooks = [*link.sources, link.target]
    found = encode_hooks(cfg, store, hooks)
    sources, target = [found[hook] for hook in link.sources], found[link.target]
    if cfg.latent_scale is LatentScale.none:
        return Sides(sources, target, [1.0] * len(hooks))
    return Sides(sources, target, [scale_of(side, cfg.data.drop_positions) for side in (*sources, target)])


def counted_split(cfg: Config, sides: Sides, split: str) -> Split:
    """One split's tokens, as the recipe says which count and in which units. Raises SaelinkError for a silent one."""
    tokens = open_split(
        sides.sources,
        sides.target,
        split,
        scales=sides.scales,
        drop_positions=cfg.data.drop_positions,
        max_norm_ratio=cfg.data.max_norm_ratio,
        typical_norm_ratio=TYPICAL_NORM_RATIO,
    )
    if not tokens.counts.fired.any():
        raise SaelinkError(
            f"data: no target latent is active on the {len(tokens):,} {split} tokens that count; use more text, or "
            "check data.drop_positions and data.max_norm_ratio"
        )
    return tokens


def load_split(cfg: Config, sides: Sides, split: str, target_ids: torch.Tensor | None = None) -> Tokens:
    """The tokens of `split_of` in memory; all target latents, or the given."""
    tokens = counted_split(cfg, sides, split)
    return (tokens if target_ids is None else tokens.explain(target_ids)).whole()
