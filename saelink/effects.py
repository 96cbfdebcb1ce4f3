"""The causal effect of every source latent on every target latent: the stage `effects`.

    M_ij = mean over test tokens where j is active of  f_i(x) - f_i(x - a_j d_j)

with x the model's own activation at the source hook (the SAE's error stays in), a_j and d_j the latent's activation and
decoder direction, and f the model's computation up to the target hook, norms recomputed, read by the target SAE. A
TopK SAE is read with a threshold held at the token's own k-th value: taking the top k anew would add what one latent's
going does to its competitors. Effects don't add up to the target's activation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from saelink.config import Config
from saelink.data import tokens as pull_tokens
from saelink.encode import encode_plan
from saelink.kernels import in_parts
from saelink.latents import Rows
from saelink.link import Sides, link_of, load_split, pull_sides
from saelink.model import device_of, load_computation, load_forward, model_info
from saelink.progress import Progress
from saelink.sae import SAE, pull_sae
from saelink.store import Artifact, Draft, Plan, SaelinkError, Store

VERSION = 1

TENSORS_FILE = "effects.safetensors"

FOLDS = 10
"""Groups of documents whose effects are kept apart, for intervals and for the two halves."""

STEP = 4096
"""Ablations of one pass."""


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
    target_mean: torch.Tensor
    """[d_target] mean active value of the target on all tokens looked at."""

    def consistent(self) -> torch.Tensor:
        """[d_source, d_target] whether the effect has one sign in both halves of the documents."""
        halves = self.folds[::2].float().sum(0), self.folds[1::2].float().sum(0)
        return (halves[0] * halves[1]) > 0


def effects_plan(cfg: Config, store: Store) -> Plan:
    """Plan of a link's effects."""
    link = link_of(cfg, store)
    recipe = {
        "tokens_per_source": cfg.verify.tokens_per_source,
        "tokens": cfg.verify.tokens,
        "drop_positions": cfg.data.drop_positions,
        "max_norm_ratio": cfg.data.max_norm_ratio,
        "latent_scale": cfg.latent_scale.name,
        "model_dtype": cfg.model.dtype.name,
    }
    inputs = {f"source{i}": encode_plan(cfg, store, hook).key for i, hook in enumerate(link.sources)}
    inputs |= {"target": encode_plan(cfg, store, link.target).key, "model": model_info(cfg, store).artifact.key}
    return Plan("effects", VERSION, recipe, inputs, f"{cfg.model.label} layer {cfg.layer} {cfg.link.name}")


def effects(cfg: Config, store: Store) -> Artifact:
    """Pull the effect of every source latent on every target latent. File `effects.safetensors`: see `Effects`.

    Raises SaelinkError for a link whose target does not follow from the source token by token.
    """
    for name in ("tokens_per_source", "tokens"):
        if getattr(cfg.verify, name) < 1:
            raise SaelinkError(f"verify.{name}={getattr(cfg.verify, name)} must be at least 1")
    plan = effects_plan(cfg, store)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    if len(cfg.link.sources) != 1:
        raise SaelinkError(f"link={cfg.link.name}: effects of single edges are measured for link=mlp only")
    sides = pull_sides(cfg, store)
    return store.build(plan, lambda draft: _effects(cfg, store, sides, draft), device_of(cfg))


def load_effects(artifact: Artifact) -> Effects:
    return Effects(**artifact.tensors(TENSORS_FILE))


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


def _effects(cfg: Config, store: Store, sides: Sides, draft: Draft) -> dict[str, Any]:
    device = device_of(cfg)
    info, link = model_info(cfg, store), link_of(cfg, store)
    source_hook = link.sources[0]
    source_sae = pull_sae(cfg, store, source_hook).to(device, torch.float32)
    target_sae = pull_sae(cfg, store, link.target).to(device, torch.float32)
    text = pull_tokens(cfg, store).tensors("test.safetensors")
    context = text["ids"].shape[1]
    counted = load_split(cfg, sides, "test").row
    n = max(min(cfg.verify.tokens // context, len(text["ids"])), 1)
    counted = counted[counted < n * context]
    compute = load_computation(cfg, info, source_hook, link.target, device)
    forward = load_forward(cfg, info, [source_hook], device)
    document = text["document"].flatten().long()[counted]
    fold = document.unique(return_inverse=True)[1] % FOLDS
    size = FOLDS * source_sae.d_sae * target_sae.d_sae
    store.say(f"effects: {source_hook} -> {link.target} on {len(counted):,} tokens, {6 * size / 1e9:.1f} GB of memory")
    store.need_space("effects", 2 * size + 4 * size // FOLDS)
    with torch.inference_mode():
        rows = max(cfg.runtime.forward_tokens // context, 1)
        parts = [forward(text["ids"][i : i + rows].long().to(device))[source_hook].float() for i in range(0, n, rows)]
        x = torch.cat([part.flatten(0, 1) for part in parts])[counted.to(device)]
        del parts
        y = torch.cat([compute(x[i : i + STEP]) for i in range(0, len(x), STEP)])
        before, floor = _encoded(target_sae, y)
        active, _ = _encoded(source_sae, x)
        chosen = choose(active, fold, cfg.verify.tokens_per_source)
        sums = _ablate(compute, source_sae, target_sae, x, before, floor, chosen, device)
    counts = torch.bincount(chosen.fold * source_sae.d_sae + chosen.source, minlength=FOLDS * source_sae.d_sae)
    counts = counts.view(FOLDS, -1)
    total = counts.sum(0).clamp(min=1)
    scale_in, scale_out = sides.scales[0], sides.scales[-1]
    folds = sums.view(FOLDS, source_sae.d_sae, target_sae.d_sae) / scale_out
    source_sum = torch.zeros(source_sae.d_sae, dtype=torch.float64).index_add_(0, chosen.source, chosen.value.double())
    fired = torch.bincount(before.indices, minlength=before.d)
    target_sum = torch.bincount(before.indices, before.values.double(), minlength=before.d)
    found = Effects(
        folds.sum(0) / total[:, None],
        folds.half(),
        counts,
        (source_sum / total / scale_in).float(),
        (target_sum / fired.clamp(min=1) / scale_out).float(),
    )
    draft.save_tensors(TENSORS_FILE, found._asdict())
    strong = found.mean.abs() >= cfg.verify.strong * found.target_mean
    strong &= (found.target_mean > 0) & found.consistent()
    return {
        "n_tokens": len(counted),
        "ablations": len(chosen.token),
        "strong": int(strong.sum()),
        "strong_negative": int((strong & (found.mean < 0)).sum()),
    }


def _encoded(sae: SAE, x: torch.Tensor) -> tuple[Rows, torch.Tensor]:
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
    compute: Any, source_sae: SAE, target_sae: SAE, x: torch.Tensor, before: Rows, floor: torch.Tensor,
    chosen: Ablated, device: str,
) -> torch.Tensor:  # fmt: skip
    """[FOLDS * d_source, d_target] sums of f(x) - f(x - a d), raw units."""
    by_latent = torch.zeros(target_sae.d_sae)
    if target_sae.threshold is not None:
        by_latent = target_sae.threshold.cpu().clamp(min=0)
    sums = torch.zeros(FOLDS * source_sae.d_sae, target_sae.d_sae)
    room = torch.empty(STEP, target_sae.d_sae, device=device)
    slot_of = chosen.fold * source_sae.d_sae + chosen.source
    with Progress("effects", len(chosen.token), "ablations") as bar:
        for first in range(0, len(chosen.token), STEP):
            part = slice(first, first + STEP)
            token, source = chosen.token[part], chosen.source[part]
            direction = source_sae.W_dec[source.to(device)] * chosen.value[part, None].to(device)
            pre = target_sae.pre_acts(compute(x[token.to(device)] - direction), room)
            add_differences(pre, slot_of[part], token, before, floor[token], by_latent, sums)
            bar.advance(len(token))
    return sums


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
    kept = torch.where((pre >= by_token.to(pre.device)[:, None]) & (pre > by_latent.to(pre.device)), pre, 0.0)
    unique, place = slots.unique_consecutive(return_inverse=True)
    after = torch.zeros(len(unique), pre.shape[1], device=pre.device).index_add_(0, place.to(pre.device), kept)
    sums[unique] -= after.cpu()
    rows = before.select(token)
    sums.view(-1).index_add_(0, slots[rows.row_of] * before.d + rows.indices, rows.values)
