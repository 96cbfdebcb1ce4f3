"""The causal effect of every source latent on every target latent: the stage `effects`.

    M_ij = mean over tokens where j is active of  f_i(x) - f_i(x - a_j d_j)

with x the model's own activation at the source hook (the SAE's error stays in), a_j and d_j the latent's activation and
decoder direction, and f the model's computation up to the target hook, norms recomputed, read by the target SAE. What
other tokens and other source hooks hold stays as it is (see block). A
TopK SAE is read with a threshold held at the token's own k-th value: taking the top k anew would add what one latent's
going does to its competitors. Effects don't add up to the target's activation.

`verify` judges by those on test documents. solver=causal fits to those on training documents, of which the change at
every single ablation is kept too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from saelink.autoencoder import SAE
from saelink.block import Attended, Chain, load_attended, load_module
from saelink.config import Config, DType
from saelink.data import tokens as pull_tokens
from saelink.encode import encode_plan
from saelink.kernels import in_parts
from saelink.latents import Rows, pack, unpack
from saelink.link import Sides, link_of, load_split, pull_sides
from saelink.model import FOUND, device_of, load_forward, model_info
from saelink.progress import Progress
from saelink.sae import pull_sae
from saelink.store import Artifact, Draft, Plan, SaelinkError, Store

VERSION = 2

TENSORS_FILE = "effects.safetensors"
CHANGES_FILE = "changes.safetensors"

FOLDS = 10
"""Groups of documents whose effects are kept apart, for intervals and for the two halves."""

STEP = 4096
"""Ablations of one pass."""

NULLS = ("permuted decoders", "random weights")
"""Effects that no graph should find: along another latent's decoder direction, with the same activation; and of an MLP
(or block) whose weights are in a random order, read by the same SAEs."""

NULL_TOKENS = 64
"""Tokens per source that these are measured on."""


class Effects(NamedTuple):
    """Effects in units of the latents' scales."""

    mean: torch.Tensor
    """[d_source, d_target] M."""
    folds: torch.Tensor
    """[FOLDS, d_source, d_target] float16: the sum over each fold's tokens, M being their sum over all tokens."""
    tokens: torch.Tensor
    """[FOLDS, d_source] on how many tokens each source was ablated."""
    source_mean: torch.Tensor
    """[d_source] mean activation of the source on those tokens."""
    source_rate: torch.Tensor
    """[d_source] share of the tokens looked at on which the source is active."""
    target_mean: torch.Tensor
    """[d_target] mean active value of the target on all tokens looked at."""

    def explain(self, target_ids: torch.Tensor) -> Effects:
        """Only these target latents, in this order."""
        kept = {"mean": self.mean[:, target_ids], "target_mean": self.target_mean[target_ids]}
        return self._replace(**kept, folds=self.folds[:, :, target_ids])

    def consistent(self) -> torch.Tensor:
        """[d_source, d_target] whether the effect has one sign in both halves of the documents."""
        halves = self.folds[::2].float().sum(0), self.folds[1::2].float().sum(0)
        return (halves[0] * halves[1]) > 0


class Changes(NamedTuple):
    """What every single ablation changed, in units of the latents' scales."""

    rows: Rows
    """[n, d_target] f(x) - f(x - a d)."""
    token: torch.Tensor
    """[n] the token, by its place among the split's tokens that count."""
    source: torch.Tensor
    """[n] the source that was ablated."""
    value: torch.Tensor
    """[n] its activation there."""


def measurable(cfg: Config) -> bool:
    """Whether the effects of single edges can be measured: between hooks that are modules' own inputs and outputs."""
    return {*cfg.link.sources, cfg.link.target} <= {"mlp_in", *FOUND}


def check_measurable(cfg: Config) -> None:
    """Raise SaelinkError for a link between whose hooks effects can't be measured."""
    if not measurable(cfg):
        unknown = sorted({*cfg.link.sources, cfg.link.target} - {"mlp_in", *FOUND})
        raise SaelinkError(
            f"link={cfg.link.name}: effects of single edges are measured between {', '.join(FOUND)}; not for "
            f"{', '.join(unknown)}"
        )


def nulls_of(cfg: Config) -> tuple[str, ...]:
    """Those of NULLS that mean something for the link: where the target is the sources' sum there are no weights."""
    adds_up = {"hook_attn_out", "hook_mlp_out"} <= set(cfg.link.sources)
    return NULLS[:1] if adds_up else NULLS


def effects_plan(cfg: Config, store: Store, split: str = "test", null: str | None = None) -> Plan:
    """Plan of a link's effects on a split's documents, or of one of NULLS. Raises SaelinkError for another link."""
    check_measurable(cfg)
    link = link_of(cfg, store)
    recipe = {
        "split": split,
        "null": null,
        "tokens_per_source": _per_source(cfg, null),
        "tokens": _tokens(cfg, split),
        "drop_positions": cfg.data.drop_positions,
        "max_norm_ratio": cfg.data.max_norm_ratio,
        "latent_scale": cfg.latent_scale.name,
        "model_dtype": cfg.model.dtype.name,
    }
    inputs = {f"source{i}": encode_plan(cfg, store, hook).key for i, hook in enumerate(link.sources)}
    inputs |= {"target": encode_plan(cfg, store, link.target).key, "model": model_info(cfg, store).artifact.key}
    about = f"{cfg.model.label} layer {cfg.layer} {cfg.link.name}, {null or split}"
    return Plan("effects", VERSION, recipe, inputs, about)


def _per_source(cfg: Config, null: str | None) -> int:
    return cfg.verify.tokens_per_source if null is None else min(cfg.verify.tokens_per_source, NULL_TOKENS)


def _tokens(cfg: Config, split: str) -> int:
    return cfg.verify.tokens if split == "test" else cfg.verify.fit_tokens


def effects(cfg: Config, store: Store, split: str = "test", null: str | None = None) -> Artifact:
    """Pull the effect of every source latent on every target latent, on test or train documents; or one of NULLS.

    File `effects.safetensors`: see `Effects`; for train also `changes.safetensors`: see `Changes`. Raises SaelinkError
    for a link whose hooks are not modules' own inputs and outputs.
    """
    for name in ("tokens_per_source", "tokens", "fit_tokens"):
        if getattr(cfg.verify, name) < 1:
            raise SaelinkError(f"verify.{name}={getattr(cfg.verify, name)} must be at least 1")
    plan = effects_plan(cfg, store, split, null)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    sides = pull_sides(cfg, store)
    return store.build(plan, lambda draft: _effects(cfg, store, sides, split, null, draft), device_of(cfg))


def load_effects(artifact: Artifact) -> Effects:
    return Effects(**artifact.tensors(TENSORS_FILE))


def load_changes(artifact: Artifact) -> Changes:
    """The changes of every single ablation; only effects on training documents have them."""
    tensors = artifact.tensors(CHANGES_FILE)
    d_target = len(artifact.tensors(TENSORS_FILE)["target_mean"])
    return Changes(unpack(tensors, d_target), tensors["token"].long(), tensors["source"].long(), tensors["value"])


class Ablated(NamedTuple):
    """Which source is ablated on which token, in the order of sources and folds."""

    token: torch.Tensor
    source: torch.Tensor
    fold: torch.Tensor
    value: torch.Tensor
    """The source's activation there."""


def choose(rows: Rows, fold: torch.Tensor, most: int) -> Ablated:
    """At most `most` tokens of each source, evenly spread over those where it is active."""
    order = torch.sort(rows.indices, stable=True).indices
    source = rows.indices[order]
    counts = torch.bincount(source, minlength=rows.d)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(source)) - starts[source]
    n = counts[source]
    # The first of each of `most` equal parts: floor(p * most / n) changes there.
    step = torch.div(place * most, n, rounding_mode="floor")
    before = torch.div((place - 1) * most, n, rounding_mode="floor")
    kept = (n <= most) | (place == 0) | (step != before)
    token = rows.row_of[order][kept]
    source, value = source[kept], rows.values[order][kept]
    by = torch.argsort(source * FOLDS + fold[token], stable=True)
    return Ablated(token[by], source[by], fold[token][by], value[by])


def _effects(
    cfg: Config, store: Store, sides: Sides, split: str, null: str | None, draft: Draft
) -> dict[str, Any]:  # fmt: skip
    device = device_of(cfg)
    link, size = link_of(cfg, store), FOLDS * sides.d_source * sides.d_target
    most = max(_tokens(cfg, split), 1)
    what = f"effects: {' + '.join(link.sources)} -> {link.target} on at most {most:,} {split} tokens"
    store.say(f"{what}, {6 * size / 1e9:.1f} GB of memory")
    store.need_space("effects", 2 * size + 4 * size // FOLDS)
    block = open_block(cfg, store, sides, split, device)
    directions: torch.Tensor | None = None
    if null == "permuted decoders":
        generator = torch.Generator().manual_seed(0)
        directions = torch.cat([s.W_dec[torch.randperm(s.d_sae, generator=generator)] for s in block.source_saes])
    elif null == "random weights":
        block.computation.permute()
    with torch.inference_mode():
        found, changes = measure(block, _per_source(cfg, null), sides.scales, directions, split == "train")
    draft.save_tensors(TENSORS_FILE, found._asdict())
    if changes is not None:
        ablations = {"token": changes.token.int(), "source": changes.source.int(), "value": changes.value}
        draft.save_tensors(CHANGES_FILE, pack(changes.rows) | ablations)
    strong = found.mean.abs() >= cfg.verify.strong * found.target_mean
    strong &= (found.target_mean > 0) & found.consistent()
    return {
        "n_tokens": len(block.fold),
        "ablations": int(found.tokens.sum()),
        "strong": int(strong.sum()),
        "strong_negative": int((strong & (found.mean < 0)).sum()),
    }


class Block(NamedTuple):
    """What lies between a link's SAEs, and activations it starts from."""

    computation: Chain | Attended
    source_saes: list[SAE]
    target_sae: SAE
    x: list[torch.Tensor]
    """For each source hook [n, d_in], the model's own activations on the tokens that count."""
    fold: torch.Tensor
    """[n] the group of documents each token belongs to."""

    @property
    def side(self) -> torch.Tensor:
        """[d_source] the source hook of each source latent, by its place."""
        sizes = torch.tensor([sae.d_sae for sae in self.source_saes])
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes)

    def active(self) -> Rows:
        """[n, d_source] the source latents, those of several hooks side by side."""
        return Rows.beside([encoded(sae, x)[0] for sae, x in zip(self.source_saes, self.x, strict=True)])

    def taken(
        self, token: torch.Tensor, source: torch.Tensor, value: torch.Tensor, directions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[m, d_in] what a source latent [m] of size value [m] writes at each token [m], or in other directions."""
        device = self.x[0].device
        if directions is None:
            directions = self.directions()
        out = directions[source.to(device)] * value[:, None].to(device)
        units = [sae.units(x[token.to(device)]) for sae, x in zip(self.source_saes, self.x, strict=True)]
        if any(unit is not None for unit in units):
            scale = torch.stack([out.new_ones(len(out), 1) if unit is None else unit.scale for unit in units])
            out = out * scale[self.side[source].to(device), torch.arange(len(out), device=device)]
        return out

    def directions(self) -> torch.Tensor:
        """[d_source, d_in] decoder directions."""
        return torch.cat([sae.W_dec for sae in self.source_saes])

    def without(self, token: torch.Tensor, source: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        """[m, d_out] at the target hook where `taken` [m, d_in] goes from a source [m]'s hook at each token [m]."""
        return self.computation.without(token, self.side[source], taken)


def open_block(cfg: Config, store: Store, sides: Sides, split: str, device: str) -> Block:
    """A link's computation with the activations of a split's first documents, from the model run anew."""
    info, link = model_info(cfg, store), link_of(cfg, store)
    source_saes = [pull_sae(cfg, store, hook).to(device, torch.float32) for hook in link.sources]
    target_sae = pull_sae(cfg, store, link.target).to(device, torch.float32)
    text = pull_tokens(cfg, store).tensors(f"{split}.safetensors")
    context = text["ids"].shape[1]
    counted = load_split(cfg, sides, split).row
    n = max(min(_tokens(cfg, split) // context, len(text["ids"])), 1)
    counted = counted[counted < n * context]
    ids = text["ids"][:n].long()
    chained = cfg.link.sources in (["mlp_in"], ["hook_resid_mid"]) and cfg.link.target == "hook_mlp_out"
    module = load_module(cfg, info, link.sources[0], link.target, device).float() if chained else None
    hooks: list[str] = [*link.sources, *([] if chained else [link.target])]
    # Copies are run in float32; what they are compared with has to be, too.
    exact = cfg if chained else replace(cfg, model=replace(cfg.model, dtype=DType.float32))
    forward = load_forward(exact, info, hooks, device)
    with torch.inference_mode():
        rows = max(cfg.runtime.forward_tokens // context, 1)
        parts = [forward(ids[i : i + rows].to(device)) for i in range(0, n, rows)]
        place = counted.to(device)
        acts = {hook: torch.cat([part[hook].float().flatten(0, 1) for part in parts])[place] for hook in hooks}
    x = [acts[hook] for hook in link.sources]
    if module is not None:
        computation: Chain | Attended = Chain(module, x[0])
    else:
        computation = load_attended(cfg, info, link.sources, link.target, ids, counted, x, acts[link.target], device)
    document = text["document"].flatten().long()[counted]
    return Block(computation, source_saes, target_sae, x, document.unique(return_inverse=True)[1] % FOLDS)


def measure(
    block: Block, most: int, scales: list[float] | None = None, directions: torch.Tensor | None = None,
    keep: bool = False,
) -> tuple[Effects, Changes | None]:  # fmt: skip
    """The effects of every source latent on every target latent of a block.

    At most `most` tokens a source; `directions` [d_source, d_in] are taken out instead of the source SAEs' decoder
    directions; `scales` are the units of the sources and, last, of the target; with `keep` every single change comes
    back too.
    """
    target_sae = block.target_sae
    scales = [1.0] * (len(block.source_saes) + 1) if scales is None else scales
    unit = torch.tensor(scales[:-1])[block.side]
    before, floor = encoded(target_sae, block.computation.outputs())
    active = block.active()
    d_source = active.d
    chosen = choose(active, block.fold, most)
    if block.computation.groups is not None:
        by = torch.argsort(block.computation.groups[chosen.token], stable=True)
        chosen = Ablated(*(column[by] for column in chosen))
    kept: list[Rows] | None = [] if keep else None
    sums = _ablate(block, directions, before, floor, chosen, kept)
    counts = torch.bincount(chosen.fold * d_source + chosen.source, minlength=FOLDS * d_source).view(FOLDS, -1)
    total = counts.sum(0).clamp(min=1)
    folds = sums.view(FOLDS, d_source, target_sae.d_sae) / scales[-1]
    source_sum = torch.zeros(d_source, dtype=torch.float64).index_add_(0, chosen.source, chosen.value.double())
    active_on = torch.bincount(active.indices, minlength=active.d)
    fired = torch.bincount(before.indices, minlength=before.d)
    target_sum = torch.bincount(before.indices, before.values.double(), minlength=before.d)
    found = Effects(
        folds.sum(0) / total[:, None],
        folds.half(),
        counts,
        (source_sum / total / unit).float(),
        (active_on / len(before)).float(),
        (target_sum / fired.clamp(min=1) / scales[-1]).float(),
    )
    if kept is None:
        return found, None
    rows = Rows.stack(kept).scaled(1 / scales[-1])
    return found, Changes(rows, chosen.token, chosen.source, chosen.value / unit[chosen.source])


def encoded(sae: SAE, x: torch.Tensor) -> tuple[Rows, torch.Tensor]:
    """What the SAE makes of activations x, and what a value must reach to count at each token; on the CPU.

    For a TopK SAE that is the middle between its k-th and its next value, so that rounding moves nothing across it.
    """
    parts, floors = [], []
    for first in range(0, len(x), STEP):
        acts = x[first : first + STEP]
        row, latent, value = sae.encode_sparse(acts)
        offsets = torch.nn.functional.pad(torch.bincount(row, minlength=len(acts)).cumsum(0), (1, 0))
        parts.append(Rows(offsets, latent, value, sae.d_sae).to("cpu"))
        floor = torch.zeros(len(acts), device=acts.device)
        if sae.k is not None and sae.k < sae.d_sae:
            top = sae.pre_acts(acts).topk(sae.k + 1, dim=1).values[:, -2:].clamp(min=0)
            floor = torch.where(top[:, 0] > 0, top.mean(1), floor)
        floors.append(floor.cpu())
    return Rows.stack(parts), torch.cat(floors)


def _ablate(
    block: Block, directions: torch.Tensor | None, before: Rows, floor: torch.Tensor, chosen: Ablated,
    kept: list[Rows] | None,
) -> torch.Tensor:  # fmt: skip
    """[FOLDS * d_source, d_target] sums of f(x) - f(x - a d), raw units; each of them is added to `kept` if given."""
    target_sae, device = block.target_sae, block.x[0].device
    d_source = sum(sae.d_sae for sae in block.source_saes)
    directions = block.directions() if directions is None else directions
    by_latent = torch.zeros(target_sae.d_sae)
    if target_sae.threshold is not None:
        by_latent = target_sae.threshold.cpu().clamp(min=0)
    sums = torch.zeros(FOLDS * d_source, target_sae.d_sae)
    room = torch.empty(STEP, target_sae.d_sae, device=device)
    slot_of = chosen.fold * d_source + chosen.source
    with Progress("effects", len(chosen.token), "ablations") as bar:
        for first in range(0, len(chosen.token), STEP):
            part = slice(first, first + STEP)
            token, source, slots = chosen.token[part], chosen.source[part], slot_of[part]
            acts = block.without(token, source, block.taken(token, source, chosen.value[part], directions))
            if kept is not None:
                pre = target_sae.pre_acts(acts, room)
                change = before.select(token).dense() - read(pre, floor[token], by_latent).cpu()
                place = change.nonzero()
                ends = torch.bincount(place[:, 0], minlength=len(token)).cumsum(0)
                offsets = torch.nn.functional.pad(ends, (1, 0))
                kept.append(Rows(offsets, place[:, 1].contiguous(), change[place[:, 0], place[:, 1]], before.d))
            if block.computation.groups is not None:  # equal slots in a row, whatever the order of the tokens
                by = torch.argsort(slots, stable=True)
                acts, token, slots = acts[by.to(device)], token[by], slots[by]
            add_differences(target_sae.pre_acts(acts, room), slots, token, before, floor[token], by_latent, sums)
            bar.advance(len(token))
    return sums


def read(pre: torch.Tensor, by_token: torch.Tensor, by_latent: torch.Tensor) -> torch.Tensor:
    """What counts of pre-activations, the thresholds held: at least the token's and above the latent's."""
    enough = (pre >= by_token.to(pre.device)[:, None]) & (pre > by_latent.to(pre.device))
    return torch.where(enough, pre, 0.0)


def add_differences(
    pre: torch.Tensor, slots: torch.Tensor, token: torch.Tensor, before: Rows, by_token: torch.Tensor,
    by_latent: torch.Tensor, sums: torch.Tensor,
) -> None:  # fmt: skip
    """sums[slots[r]] += what the target SAE gave at token[r] less what pre[r] leaves; equal slots stand in a row."""
    if pre.device.type == "cpu":
        from saelink.kernels import effects as kernel

        unique, lengths = slots.unique_consecutive(return_counts=True)
        cuts = np.concatenate([[0], lengths.cumsum(0).numpy()])
        arguments = (
            cuts, unique.numpy(), token.numpy(), before.offsets.numpy(), before.indices.numpy(), before.values.numpy(),
            pre.numpy(), by_token.numpy(), by_latent.numpy(), sums.numpy(),
        )  # fmt: skip
        in_parts(len(unique), 2, lambda low, high: kernel.add_differences(low, high, *arguments))
        return
    kept = read(pre, by_token, by_latent)
    unique, place = slots.unique_consecutive(return_inverse=True)
    after = torch.zeros(len(unique), pre.shape[1], device=pre.device).index_add_(0, place.to(pre.device), kept)
    sums[unique] -= after.cpu()
    rows = before.select(token)
    sums.view(-1).index_add_(0, slots[rows.row_of] * before.d + rows.indices, rows.values)
