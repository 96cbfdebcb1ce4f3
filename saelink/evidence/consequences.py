"""What the model's next token loses without an edge or a latent: the stage `consequences`.

A latent is taken out of the target hook's activations at one token, activation times decoder direction, and the model
runs on. Of an edge only what its source does to the target goes: the change of the target latent that ablating the
source makes at this token (see effects). Measured are the log-probability of the actual next token and the divergence
of the whole prediction, beside a step of the same length along another latent's direction.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from saelink.activations.tokens import pull_tokens
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.evidence.names import top_tokens
from saelink.evidence.verdicts import VERDICTS, VERDICTS_FILE
from saelink.evidence.verify import verify, verify_plan
from saelink.interventions.block import Block, encoded_with_floor, open_block, read_held
from saelink.latents.link import Sides, link_of, load_split, pull_sides
from saelink.latents.outliers import flagged
from saelink.model.describe import model_info
from saelink.model.load import load_bridge, load_tokenizer
from saelink.progress import Progress
from saelink.runtime import device_of
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.recipe import Plan
from saelink.store.store import Store

VERSION = 2

CONSEQUENCES_FILE = "consequences.json"

TOKENS = 16
"""Test tokens of each edge and latent, evenly spread over those where it is active."""

SEQUENCES = 8
"""Sequences of one pass to the logits."""


class Item(NamedTuple):
    """An edge, or a latent alone."""

    kind: str
    """edge, target (of one of the edges) or outlier."""
    source: int | None
    target: int


def consequences_plan(cfg: Config, store: Store) -> Plan:
    """Plan of what some edges and latents do to the next token."""
    plan = verify_plan(cfg, store)
    recipe = {
        "most": cfg.verify.consequences,
        "chosen": cfg.verify.chosen,
        "outlier_shares": dict(sorted(cfg.experiment.outlier_shares.items())),
        "tokens": cfg.verify.tokens,
        "model_dtype": cfg.model.dtype.name,
    }
    return Plan("consequences", VERSION, recipe, {"verify": plan.key}, plan.about)


def consequences(cfg: Config, store: Store) -> Artifact:
    """Pull the consequences of the strongest confirmed edges, of their targets and of the outlier latents.

    File `consequences.json`: a list with `kind`, `source`, `source_name`, `target`, their top tokens, `tokens`; in nats
    `logp`, the mean change of the actual next token's log-probability, `logp_error`, its standard error; `kl`, the mean
    divergence of the prediction from the clean one, and `kl_null`, that of an equal step along another latent.
    Raises SaelinkError for a verify.chosen that is no edge between these latents.
    """
    judged = verify(cfg, store)
    plan = consequences_plan(cfg, store)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    items = [*chosen_edges(cfg, store), *_strongest(cfg, judged), *_outliers(cfg, store)]
    items += [Item("target", None, item.target) for item in items if item.kind == "edge"]

    def make(draft: Draft) -> dict[str, Any]:
        rows = _measured(cfg, store, list(dict.fromkeys(items)))
        draft.save_json(CONSEQUENCES_FILE, rows)
        return {"items": len(rows)}

    return store.build(plan, make, device_of(cfg))


def consequences_of(store: Store, verdicts: Artifact) -> Artifact | None:
    """The newest consequences that were measured beside these verdicts."""
    found = [
        a for a in store.artifacts() if a.stage == "consequences" and a.manifest["inputs"]["verify"] == verdicts.key
    ]
    return found[-1] if found else None


def chosen_edges(cfg: Config, store: Store) -> list[Item]:
    """The edges of verify.chosen. Raises SaelinkError for one that is none between these latents."""
    sides = pull_sides(cfg, store)
    items = []
    for text in cfg.verify.chosen:
        source, dash, target = text.partition("-")
        if not dash or not target.isdigit() or int(target) >= sides.d_target:
            raise SaelinkError(
                f"verify.chosen={text}: give source-target, latents' numbers such as 353-1262 (of several source hooks "
                f"1.353-1262); there are {sides.d_target:,} target latents"
            )
        items.append(Item("edge", sides.source_number(source, f"verify.chosen={text}"), int(target)))
    return items


def _strongest(cfg: Config, judged: Artifact) -> list[Item]:
    """The confirmed edges with the largest effects, one a target and one a source."""
    tensors = judged.tensors(VERDICTS_FILE)
    confirmed = (tensors["verdict"] == VERDICTS.index("confirmed")).nonzero().flatten()
    order = confirmed[tensors["effect"][confirmed].abs().sort(descending=True, stable=True).indices]
    items: list[Item] = []
    sources, targets = set[int](), set[int]()
    pairs = zip(tensors["source"][order].tolist(), tensors["target"][order].tolist(), strict=True)
    for source, target in pairs:
        if len(items) == cfg.verify.consequences:
            break
        if source not in sources and target not in targets:
            items.append(Item("edge", source, target))
            sources.add(source)
            targets.add(target)
    return items


def _outliers(cfg: Config, store: Store) -> list[Item]:
    sides = pull_sides(cfg, store)
    ids = pull_tokens(cfg, store).tensors("test.safetensors")["ids"].long()
    tokenizer = load_tokenizer(cfg.model, model_info(cfg, store).artifact)
    found = flagged(sides.target, ids, tokenizer, cfg.experiment.outlier_shares)
    return [Item("outlier", None, latent) for latent in found.latents[: cfg.verify.consequences]]


class _Step(NamedTuple):
    """What is taken out at one token."""

    item: int
    token: int
    """Among the tokens that count."""
    amount: float


def _measured(cfg: Config, store: Store, items: list[Item]) -> list[dict[str, Any]]:
    sides, link, device = pull_sides(cfg, store), link_of(cfg, store), device_of(cfg)
    block = open_block(cfg, store, sides, "test", device)
    with torch.inference_mode():
        steps, factor = _steps(block, items)
    ids = pull_tokens(cfg, store).tensors("test.safetensors")["ids"].long()
    test = load_split(cfg, sides, "test")
    context = ids.shape[1]
    places = test.row[: len(block.fold)].tolist()
    # The last token of a sequence has no next one here.
    steps = [step for step in steps if places[step.token] % context < context - 1]
    steps.sort(key=lambda step: (places[step.token] % context, step.token))
    W_dec = block.target_sae.W_dec
    other = torch.randperm(len(W_dec), generator=torch.Generator().manual_seed(0)).tolist()
    bridge = load_bridge(cfg, model_info(cfg, store), device)
    found: dict[int, list[tuple[float, float, float]]] = {}
    with Progress("consequences", len(steps), "ablations") as bar, torch.inference_mode():
        size_of_pass = max(min(SEQUENCES, cfg.runtime.forward_tokens // context), 1)
        for first in range(0, len(steps), size_of_pass):
            part = steps[first : first + size_of_pass]
            at = torch.tensor([places[step.token] % context for step in part], device=device)
            text = torch.stack([ids[places[step.token] // context] for step in part])[:, : int(at.max()) + 1].to(device)
            nexts = torch.tensor([int(ids[p // context, p % context + 1]) for p in (places[s.token] for s in part)])
            size = torch.tensor([step.amount * factor[step.token] for step in part], device=device)
            own = W_dec[[items[step.item].target for step in part]]
            away = W_dec[[other[items[step.item].target] for step in part]]
            away = away * (own.norm(dim=1) / away.norm(dim=1).clamp(min=1e-12))[:, None]

            def logits(taken: torch.Tensor | None, at: torch.Tensor = at, text: torch.Tensor = text) -> torch.Tensor:
                def remove(acts: torch.Tensor, hook: Any = None) -> torch.Tensor:
                    assert taken is not None
                    flat = acts.flatten(2).clone()
                    flat[torch.arange(len(flat)), at] -= taken.to(flat.dtype)
                    return flat.view(acts.shape)

                hooks = [] if taken is None else [(link.target, remove)]
                out = bridge.run_with_hooks(text, fwd_hooks=hooks)
                return out[torch.arange(len(text)), at].float().log_softmax(1)

            clean, ablated, null = logits(None), logits(size[:, None] * own), logits(size[:, None] * away)
            change = (ablated - clean).gather(1, nexts.to(device)[:, None]).squeeze(1)
            kl, kl_null = ((clean.exp() * (clean - others)).sum(1) for others in (ablated, null))
            for step, *values in zip(part, change.tolist(), kl.tolist(), kl_null.tolist(), strict=True):
                found.setdefault(step.item, []).append((values[0], values[1], values[2]))
            bar.advance(len(part))
    for number, item in enumerate(items):
        if number not in found:
            what = f"edge {item.source}-{item.target}" if item.kind == "edge" else f"target latent {item.target}"
            store.say(f"consequences: {what} left out, never active on the tokens looked at (verify.tokens)")
    named = {"source": test.source, "target": test.target}
    tops = {side: top_tokens(rows, ids.flatten()[test.row]) for side, rows in named.items()}
    tokenizer = load_tokenizer(cfg.model, model_info(cfg, store).artifact)
    text_of = {side: {k: tokenizer.decode([v]) for k, v in top.items()} for side, top in tops.items()}
    return [_row(item, found[number], text_of, sides) for number, item in enumerate(items) if number in found]


def _row(
    item: Item, values: list[tuple[float, float, float]], text_of: dict[str, dict[int, str]], sides: Sides
) -> dict[str, Any]:  # fmt: skip
    logp, kl, kl_null = torch.tensor(values, dtype=torch.float64).T
    error = (logp.std() / len(logp) ** 0.5).item() if len(logp) > 1 else None
    return {
        **item._asdict(),
        "source_name": None if item.source is None else sides.source_name(item.source),
        "source_token": None if item.source is None else text_of["source"].get(item.source),
        "target_token": text_of["target"].get(item.target),
        "tokens": len(values),
        "logp": logp.mean().item(),
        "logp_error": error,
        "kl": kl.mean().item(),
        "kl_null": kl_null.mean().item(),
    }


def _steps(block: Block, items: list[Item]) -> tuple[list[_Step], list[float]]:
    """What is taken out where, in raw units, and what a decoder direction is multiplied by at each token."""
    target_sae = block.target_sae
    y = block.computation.outputs()
    before, floor = encoded_with_floor(target_sae, y)
    active, units = block.active(), target_sae.units(y)
    by_latent = torch.zeros(target_sae.d_sae)
    if target_sae.threshold is not None:
        by_latent = target_sae.threshold.cpu().clamp(min=0)
    steps: list[_Step] = []
    for number, item in enumerate(items):
        rows = before if item.source is None else active
        latent = item.target if item.source is None else item.source
        mine = (rows.indices == latent).nonzero().flatten()
        mine = mine[torch.linspace(0, len(mine) - 1, min(TOKENS, len(mine))).round().long()]
        token, value = rows.row_of[mine], rows.values[mine]
        if item.source is not None and len(token):
            source = torch.full_like(token, item.source)
            acts = block.without(token, source, block.taken(token, source, value))
            after = read_held(target_sae.pre_acts(acts), floor[token], by_latent)[:, item.target]
            value = before.select(token).dense()[:, item.target] - after.cpu()
        steps += [_Step(number, t, v) for t, v in zip(token.tolist(), value.tolist(), strict=True)]
    factor = [1.0] * len(y) if units is None else units.scale.flatten().tolist()
    return steps, factor
