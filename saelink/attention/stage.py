"""Moved latents as a source like any other: the stage `moved`, and the two sides of a link that has them.

A column is a pair of head and latent (`ov`), in which a target's pre-activation is linear, or a latent summed over
heads (`ov_summed`), in which it is not: heads read it by different weights, so that form is an approximation.
"""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any, NotRequired, cast

import torch

from saelink import memory
from saelink.activations.cache import shards_of
from saelink.activations.tokens import SPLITS, TokensFacts, TokensStage
from saelink.attention.heads import Attention, load_attention
from saelink.attention.moved import PARTS, Amounts, Moves, rows_of
from saelink.config.schema import Config, LatentScale
from saelink.config.size import gigabytes
from saelink.errors import SaelinkError
from saelink.latents.encode import EncodeFacts, EncodeStage, stored_units
from saelink.latents.link import Sides, link_of, moved_forms, pull_sides
from saelink.latents.rows import Rows, pack, unpack
from saelink.latents.shards import encode_rows, side_of
from saelink.latents.split import scale_of
from saelink.model.describe import model_info
from saelink.model.dimensions import size_of
from saelink.runtime import device_of
from saelink.saes.choice import sae_choice
from saelink.saes.load import pull_sae
from saelink.saes.sae import Units, active_entries
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Need, Stage
from saelink.store.store import Store

TARGETS = ("hook_attn_out", "hook_resid_mid", "hook_resid_post")
"""Targets whose pre-activation is linear in what heads write."""

MEASURED = 8192
"""Test tokens on which it is measured what the kept pairs hold."""


class MovedFacts(EncodeFacts):
    """What is known of moved latents beside what is known of any: `d_sae` counts columns, fvu is the source SAE's."""

    heads: NotRequired[int]
    """Heads, each with every latent, the first head's columns first; absent where they are summed."""
    per_token: float
    """Pairs of head and latent that reach a token before any is cut, on average,"""
    kept: int
    """and how many are kept at most."""
    held: float
    """Share of the variance of the latents' part of all pre-activations that the kept pairs make."""
    parts: dict[str, float]
    """Share of the pre-activations' variance that each of moved.PARTS makes; they sum to 1."""
    off: float
    """How far all parts together are from the pre-activations, as a share of their norm; the largest of a sequence."""
    measured: int
    """Test tokens that held, parts and off are of."""


class MovedStage(Stage[MovedFacts]):
    """What the heads of the layer move of a link's source `place`, of all splits.

    Files as of EncodeStage, without units: `indices` are columns, head * d_source + latent (or the latent), and `norm`
    that of the query's token at the source hook. Raises SaelinkError for a target that does not read attention's output
    linearly, and where the model's attention can't be split, see heads.load_attention.
    """

    name = "moved"
    version = 1

    def __init__(self, cfg: Config, store: Store, place: int):
        self.cfg, self.store = cfg, store
        link = link_of(cfg, store)
        self._hook, self._target, self._form = link.sources[place], link.target, moved_forms(cfg)[place]
        if cfg.link.target not in TARGETS:
            raise SaelinkError(
                f"link.target={cfg.link.target}: what heads move ({self._form}) adds up in {', '.join(TARGETS)} alone"
            )

    @property
    def device(self) -> str:
        return device_of(self.cfg)

    def recipe(self) -> dict[str, Any]:
        return {
            "layer": self.cfg.layer,
            "form": self._form,
            "kept": self.cfg.link.kept,
            "drop_positions": self.cfg.data.drop_positions,
            "target": self._target,
        }

    def inputs(self) -> dict[str, str]:
        return {
            "latents": EncodeStage(self.cfg, self.store, self._hook).key,
            "target_sae": sae_choice(self.cfg, self.store, self._target).key,
            "model": model_info(self.cfg, self.store).artifact.key,
        }

    def about(self) -> str:
        return f"{self.cfg.model.label} {self._hook}, {self._form} of layer {self.cfg.layer}"

    def need(self) -> Need:
        cfg, store = self.cfg, self.store
        source, target = (side_of(pull_sae(cfg, store, hook)) for hook in (self._hook, self._target))
        step, size = cfg.runtime.forward_tokens, size_of(cfg.model, model_info(cfg, store).artifact)
        needed = memory.moved(size, source, target, cfg.link.kept, step, cfg.data.context_size)
        return Need(needed, "use SAEs with fewer latents, or a smaller data.context_size")

    def pull(self) -> Artifact[MovedFacts]:
        """The moved latents, shard by shard where an earlier try left off."""
        found = self.store.up_to_date(self.plan)
        if found is not None:
            return found
        self.promise()
        with self.store.drafts([self.plan], resumable=True) as drafts:
            for draft in drafts:
                self.store.commit(draft, self.make(draft), self.device)
        found = self.find()
        assert found is not None
        return found

    def make(self, draft: Draft) -> MovedFacts:
        cfg, store, device = self.cfg, self.store, self.device
        latents, tokens = EncodeStage(cfg, store, self._hook).pull(), TokensStage(cfg, store).pull()
        facts = latents.facts
        context, sequences = facts["context_size"], facts["sequences"]
        attention = load_attention(cfg, model_info(cfg, store), cfg.layer, device)
        moves = open_moves(cfg, store, attention, self._hook, self._target)
        work = _Moving(moves, attention, self._form == "ov_summed", cfg.link.kept)
        total = sum(sequences.values()) * context
        what = f"moved: {work.d:,} columns of {total:,} tokens, at most {cfg.link.kept} a token"
        size = total * cfg.link.kept * (4 if work.d <= 2**16 else 6)
        store.observer.say(f"{what}, at most {gigabytes(size)} to write")
        store.need_space(what, size)
        step = max(cfg.runtime.forward_tokens // context, 1)
        with store.observer.progress("moved", total) as bar, torch.inference_mode():
            for shard in shards_of(sequences, context, SPLITS):
                if shard.name not in draft:
                    ids = tokens.tensors(f"{shard.split}.safetensors")["ids"][shard.first : shard.last].long()
                    tensors = latents.tensors(shard.name)
                    rows, units = unpack(tensors, facts["d_sae"]), stored_units(tensors)
                    moved = work.shard(ids.to(device), rows.to(device), units, step)
                    draft.save_tensors(shard.name, pack(moved) | {"norm": tensors["norm"]})
                bar.advance((shard.last - shard.first) * context)
            found = _facts(cfg, draft, facts, work, tokens)
        shares = ", ".join(f"{name} {share:.0%}" for name, share in found["parts"].items() if abs(share) >= 0.005)
        store.observer.say(
            f"moved: the pre-activations' variance is {shares}; {cfg.link.kept} of {found['per_token']:,.0f} pairs a "
            f"token hold {found['held']:.1%} of the latents' part"
        )
        return found


def open_moves(cfg: Config, store: Store, attention: Attention, source: str, target: str) -> Moves:
    """The heads between the SAEs of two hooks. Raises SaelinkError for a target SAE that normalises what it reads."""
    device = str(attention.heads.W_V.device)
    source_sae, target_sae = (pull_sae(cfg, store, hook).to(device, torch.float32) for hook in (source, target))
    if target_sae.input_norm != "none":
        raise SaelinkError(
            f"sae: the SAE of {target} normalises what it reads ({target_sae.input_norm}), so its pre-activation is "
            "not linear in what heads move"
        )
    return Moves(attention.heads, source_sae, target_sae, cfg.data.drop_positions)


class _Moving:
    """Chooses the pairs that are kept."""

    def __init__(self, moves: Moves, attention: Attention, summed: bool, most: int):
        self.moves, self.attention, self.summed, self.most = moves, attention, summed, most
        self.reach = moves.reach()
        d_source = moves.source.d_sae
        self.d = d_source if summed else moves.heads.n_heads * d_source
        """Columns."""
        self._columns = torch.arange(moves.heads.n_heads, device=self.reach.device)[:, None] * d_source

    def shard(self, ids: torch.Tensor, rows: Rows, units: Units | None, step: int) -> Rows:
        """[tokens, columns] of sequences [n, context] with their latents."""
        context = ids.shape[1]
        parts: list[Rows] = []
        for first in range(0, len(ids), step):
            seen = self.attention.look(ids[first : first + step])
            for sequence in range(len(seen.x)):
                here = first + sequence
                mine = None if units is None else units.select(slice(here * context, (here + 1) * context))
                sizes = self.moves.sizes(rows_of(rows, context, here), seen.x[sequence], mine)
                parts.extend(self.kept(pairs)[0] for pairs in self.moves.pieces(seen, sequence, sizes))
        return Rows.stack(parts)

    def kept(self, pairs: Amounts) -> tuple[Rows, torch.Tensor]:
        """[q, columns] the pairs that are kept, and [q, n_heads or 1, u] whether each is."""
        amount, reach = pairs.amount, self.reach[:, pairs.latents]
        columns = self._columns + pairs.latents
        if self.summed:
            weighed = (amount * reach).sum(1, keepdim=True)
            amount, columns = amount.sum(1, keepdim=True), pairs.latents[None]
        else:
            weighed = amount * reach
        row, place = _largest(weighed.flatten(1), self.most)
        kept = torch.zeros_like(weighed, dtype=torch.bool).flatten(1)
        kept[row, place] = True
        found = Rows.from_pairs(
            row, columns.flatten()[place], amount.flatten(1)[row, place], n=len(amount), d=self.d
        ).to("cpu")
        return found, kept.view(weighed.shape)


def _largest(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and place of the k largest of each row above 0, in the order of rows, then places."""
    k = min(k, values.shape[1])
    if values.device.type == "cpu":
        row, place, _ = active_entries(values.contiguous(), k, None)
        return row, place
    top = torch.topk(values, k, dim=1, sorted=False).indices.sort(dim=1).values
    row, at = (values.gather(1, top) > 0).nonzero(as_tuple=True)
    return row, top[row, at]


def _facts(
    cfg: Config, draft: Draft, facts: EncodeFacts, work: _Moving, tokens: Artifact[TokensFacts]
) -> MovedFacts:  # fmt: skip
    """What the manifest says."""
    context = facts["context_size"]
    sums, counts = (torch.zeros(context, dtype=torch.float64) for _ in range(2))
    fired = torch.zeros(work.d, dtype=torch.int64)
    n = 0
    for shard in shards_of(facts["sequences"], context, ["train"]):
        rows = unpack(draft.tensors(shard.name), work.d)
        position = rows.row_of % context
        sums += torch.bincount(position, rows.values.double(), minlength=context)
        counts += torch.bincount(position, minlength=context)
        fired += torch.bincount(rows.indices, minlength=work.d)
        n += len(rows)
    found = dict(facts) | {
        "d_sae": work.d,
        "active_sum": sums.tolist(),
        "active_count": counts.tolist(),
        "dead": int((fired == 0).sum()),
        "l0": counts.sum().item() / n,
        "kept": work.most,
        **_measured(cfg, work, tokens.tensors("test.safetensors")["ids"].long()),
    }
    return cast("MovedFacts", found if work.summed else found | {"heads": work.moves.heads.n_heads})


def _measured(cfg: Config, work: _Moving, ids: torch.Tensor) -> dict[str, Any]:
    """What the kept pairs hold, and what all parts sum to, on test tokens, from activations that are not rounded."""
    context, moves = ids.shape[1], work.moves
    ids = ids[: max(MEASURED // context, 1)].to(work.reach.device)
    cut, whole = _Spread(), _Spread()
    together = torch.zeros(len(PARTS), dtype=torch.float64)
    off, pairs_seen, queries = 0.0, 0, 0
    for batch in ids.split(max(cfg.runtime.forward_tokens // context, 1)):
        seen = work.attention.look(batch)
        latents = encode_rows(moves.source, seen.x.flatten(0, 1))
        for sequence in range(len(batch)):
            x, rows = seen.x[sequence], rows_of(latents, context, sequence)
            units = moves.source.units(x)
            parts = moves.parts(seen, sequence, rows, units)
            total, true = torch.stack(list(parts.values())).sum(0), moves.target.pre_acts(seen.out[sequence])
            off = max(off, (torch.linalg.vector_norm(total - true) / torch.linalg.vector_norm(true)).item())
            counts = slice(moves.drop, None)
            centred = (total[counts] - total[counts].mean(0)).double()
            together += torch.stack([(part[counts].double() * centred).sum().cpu() for part in parts.values()])
            held: list[torch.Tensor] = []
            for pairs in moves.pieces(seen, sequence, moves.sizes(rows, x, units)):
                kept = work.kept(pairs)[1]
                pairs_seen += int((pairs.amount > 0).sum())
                held.append(moves.of_pairs(pairs._replace(amount=pairs.amount * kept)))
            cut.add((parts["latents"] - torch.cat(held))[counts])
            whole.add(parts["latents"][counts])
            queries += context
    shares = (together / together.sum()).tolist()
    return {
        "per_token": pairs_seen / queries,
        "held": 1 - cut.variation() / whole.variation(),
        "parts": dict(zip(PARTS, shares, strict=True)),
        "off": off,
        "measured": queries,
    }


class _Spread:
    """Squares around the mean, summed over targets."""

    def __init__(self) -> None:
        self._n, self._sum, self._squares = 0, torch.zeros(1, dtype=torch.float64), 0.0

    def add(self, values: torch.Tensor) -> None:
        """Count [n, d_target]."""
        self._n += len(values)
        self._sum = self._sum + values.double().sum(0).cpu()
        self._squares += values.double().square().sum().item()

    def variation(self) -> float:
        return self._squares - (self._sum.square().sum() / self._n).item()


def pull_linked(cfg: Config, store: Store) -> Sides:
    """The latents on both sides of the link, moved ones among them, made where they are missing."""
    encoded, forms = pull_sides(cfg, store), moved_forms(cfg)
    if not any(forms):
        return encoded
    sources = [
        MovedStage(cfg, store, place).pull() if form else side
        for place, (form, side) in enumerate(zip(forms, encoded.sources, strict=True))
    ]
    if cfg.latent_scale is LatentScale.none:
        return Sides(cast("Any", sources), encoded.target, encoded.scales)
    scales = [
        scale_of(cast("Any", side), cfg.data.drop_positions) if form else scale
        for form, side, scale in zip(forms, sources, encoded.scales, strict=False)
    ]
    return Sides(cast("Any", sources), encoded.target, [*scales, encoded.scales[-1]])
