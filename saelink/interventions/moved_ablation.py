"""What attention gives at a query when a source latent is taken out at every key where it is active.

Only what changes is computed: queries, keys and values of the tokens without the latent, by the model's own modules;
the scores of the query with these keys (with all keys where the latent is active at the query itself); the softmax, the
sum of values and what the module makes of it. Two readings:

- free: norms and scores are recomputed. What the model does.
- frozen: the pattern and the norms' scales stay; what is left is the latent's own part, m_j^h V_ij^h.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from saelink.attention.heads import Seen
from saelink.attention.moved import Moves, rows_of
from saelink.attention.opened import OpenAttention
from saelink.latents.rows import Rows


class Taken(NamedTuple):
    """Tokens without one of their latents, of one sequence, in the order of latents, then tokens."""

    latent: torch.Tensor
    """[p]"""
    token: torch.Tensor
    """[p] position."""
    size: torch.Tensor
    """[p] what its direction is multiplied by: the latent's activation, in the SAE's units."""


class Ablation:
    """One layer's attention with single latents taken out."""

    def __init__(
        self, moves: Moves, opened: OpenAttention, directions: torch.Tensor | None = None, share: float = 1.0,
        drop: int | None = None,
    ):  # fmt: skip
        """`directions` [d_source, d_model] are taken out instead of the decoder's; of each only `share`.

        Nothing is taken out at the first `drop` positions, those that the moves leave out unless it is given.
        """
        self.moves, self.opened, self.share = moves, opened, share
        self.drop = moves.drop if drop is None else drop
        self.directions = moves.source.W_dec if directions is None else directions
        self._values = moves.values if directions is None else moves.heads.values(directions)

    def taken(self, seen: Seen, sequence: int, latents: Rows, sources: torch.Tensor) -> Taken:
        """Where the given sources [n] are active in a sequence, among the tokens that count as keys."""
        context = seen.x.shape[1]
        rows = rows_of(latents, context, sequence)
        units = self.moves.source.units(seen.x[sequence])
        row = rows.row_of
        size = rows.values if units is None else rows.values * units.scale[row, 0]
        wanted = torch.zeros(rows.d, dtype=torch.bool, device=row.device)
        wanted[sources] = True
        kept = (wanted[rows.indices] & (row >= self.drop)).nonzero().squeeze(1)
        order = kept[torch.argsort(rows.indices[kept] * context + row[kept])]
        return Taken(rows.indices[order], row[order], size[order] * self.share)

    def without(
        self, seen: Seen, sequence: int, taken: Taken, source: torch.Tensor, query: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[n, d] at attn_out, free and frozen, at queries [n] without sources [n] at every key that they see."""
        sample, pair = _seen_by(seen, taken, source, query)
        free = self.opened.out(self._mixed(seen, sequence, taken, query, sample, pair).transpose(0, 1).contiguous())
        return free, self._frozen(seen, sequence, taken, query, sample, pair)

    def through_heads(
        self, seen: Seen, sequence: int, taken: Taken, source: torch.Tensor, query: torch.Tensor
    ) -> torch.Tensor:
        """[n_heads, n, d] at attn_out where one head alone reads the stream without sources [n], all others with them.

        The free reading: the head's pattern and the norms of what it reads are recomputed.
        """
        mixed = self._mixed(seen, sequence, taken, query, *_seen_by(seen, taken, source, query))
        value = seen.given.value[sequence][self.moves.heads.kv_of]
        own = (seen.pattern[sequence][:, query] @ value).transpose(0, 1)  # [n, n_heads, d_head]
        found: list[torch.Tensor] = []
        for head in range(len(mixed)):
            z = own.clone()
            z[:, head] = mixed[head]
            found.append(self.opened.out(z))
        return torch.stack(found)

    def _mixed(
        self, seen: Seen, sequence: int, taken: Taken, query: torch.Tensor, sample: torch.Tensor, pair: torch.Tensor
    ) -> torch.Tensor:
        """[n_heads, n, d_head] the heads' sums of values, free; sample, pair [l]: see _seen_by."""
        given, kv_of = seen.given, self.moves.heads.kv_of
        x = seen.x[sequence, taken.token] - taken.size[:, None] * self.directions[taken.latent]
        changed = self.opened.project(self.opened.normed(x), taken.token)
        key, value = (each[sequence][kv_of] for each in (given.key, given.value))  # [n_heads, context, d_head]
        queries = given.query[sequence][:, query].clone()  # [n_heads, n, d_head]
        token = taken.token[pair]
        own = token == query[sample]
        queries[:, sample[own]] = changed.query[pair[own]].transpose(0, 1)
        scores = queries @ key.transpose(1, 2)
        new_key = changed.key[pair][:, kv_of].transpose(0, 1)  # [n_heads, l, d_head]
        scores[:, sample, token] = (queries[:, sample] * new_key).sum(2)
        mask = given.mask if given.mask.dim() == 2 else given.mask[min(sequence, len(given.mask) - 1), 0]
        pattern = torch.softmax(given.capped(scores) + mask[query], 2)
        z = pattern @ value
        new_value = changed.value[pair][:, kv_of].transpose(0, 1) - value[:, token]
        z.index_add_(1, sample, pattern[:, sample, token][:, :, None] * new_value)
        return z

    def _frozen(
        self, seen: Seen, sequence: int, taken: Taken, query: torch.Tensor, sample: torch.Tensor, pair: torch.Tensor
    ) -> torch.Tensor:
        heads = self.moves.heads
        token, latent = taken.token[pair], taken.latent[pair]
        size = taken.size[pair] / heads.scale(seen.x[sequence, token])[:, 0]
        moved = seen.pattern[sequence][:, query[sample], token] * size  # [n_heads, l]
        part = moved.T[:, :, None] * self._values[latent][:, heads.kv_of]
        z = part.new_zeros(len(query), *part.shape[1:]).index_add_(0, sample, part)
        change = torch.einsum("qhe,hed->qd", z, heads.W_O)
        if heads.post is not None:
            change = heads.post.centre(change) * heads.post.gain / self.moves.after(seen, sequence)[query, None]
        return seen.out[sequence, query] - change


def _seen_by(seen: Seen, taken: Taken, source: torch.Tensor, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sample, pair [l]: for each of the samples (source, query) [n] the places in `taken` that its query sees."""
    context = seen.x.shape[1]
    place = taken.latent * context + taken.token
    first, last = torch.searchsorted(place, source * context), torch.searchsorted(place, source * context + query + 1)
    length = last - first
    sample = torch.repeat_interleave(torch.arange(len(source), device=place.device), length)
    starts = length.cumsum(0) - length
    pair = torch.arange(len(sample), device=place.device) - (starts - first)[sample]
    return sample, pair
