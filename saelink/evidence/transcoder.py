"""A transcoder beside a connector, on the same test tokens: the stage `transcoder`.

A transcoder is a connector that somebody has fitted already, from source activations through latents of its own to
target activations; it knows nothing of the SAEs on either side. So both are compared where they can be: at the target's
activations, at the latents that the target SAE reads from them, and by what the model says when it goes on from there.
"""

from __future__ import annotations

from typing import Any

import torch

from saelink.activations.cache import run_model, shards_of
from saelink.activations.tokens import pull_tokens
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.evidence.evaluate import evaluate
from saelink.fit.train import fitted_connector, train
from saelink.interventions.cross_entropy import ce_baselines, ce_figures
from saelink.interventions.splice import Splice, spliced_tokens
from saelink.latents.link import Sides, counted_split, link_of, pull_sides
from saelink.latents.metrics import ErrorSums
from saelink.model.describe import model_info
from saelink.progress import Progress
from saelink.runtime import device_of
from saelink.saes.choice import SAEChoice, located
from saelink.saes.load import load_choice, pull_sae
from saelink.saes.sae import SAE
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.recipe import Plan
from saelink.store.store import Store

VERSION = 1

TRANSCODER_FILE = "transcoder.json"

ROWS = ("transcoder", "connector", "sae")
"""What stands side by side: the transcoder, the connector decoded by the target SAE, that SAE's own reconstruction."""


def _choice(cfg: Config) -> SAEChoice:
    assert cfg.transcoder.path is not None
    found = located(cfg.transcoder.path.replace("LAYER", str(cfg.layer)), "transcoder.path")
    assert found is not None
    return found


def _hook(cfg: Config, store: Store) -> str:
    """The hook the transcoder reads. Raises SaelinkError where the model lacks it or the link leaves it open."""
    info, link = model_info(cfg, store), link_of(cfg, store)
    if cfg.transcoder.hook is not None:
        full = f"blocks.{cfg.layer}.{cfg.transcoder.hook}"
        if full not in info.hooks:
            return info.hook(cfg.transcoder.hook, cfg.layer)
        return full
    if len(link.sources) != 1:
        raise SaelinkError(
            f"transcoder.hook=null: link={cfg.link.name} has {len(link.sources)} sources; name the hook it reads"
        )
    return link.sources[0]


def transcoder_plan(cfg: Config, store: Store) -> Plan:
    """Plan of a comparison. Raises SaelinkError without transcoder.path."""
    if cfg.transcoder.path is None:
        raise SaelinkError("transcoder.path=null: give the folder of a transcoder, or hf://owner/repository/folder")
    evaluation = evaluate(cfg, store)
    choice, hook = _choice(cfg), _hook(cfg, store)
    recipe = {"hook": hook, "ce": cfg.eval.ce, "sae_dtype": cfg.sae.dtype.name}
    inputs = {"connector": train(cfg, store).key, "evaluation": evaluation.key, "transcoder": choice.key}
    return Plan("transcoder", VERSION, recipe, inputs, f"{choice.about} beside {evaluation.manifest['about']}")


def transcoder(cfg: Config, store: Store) -> Artifact:
    """Pull the comparison of transcoder.path with the connector, on all test tokens that count.

    File `transcoder.json`: for each of ROWS `fvu_acts` (of the target's activations), `fvu_latents` (of the target
    latents that the connector explains, as the target SAE reads them from those activations; for the connector its own
    prediction), `l0` (active latents per token: the transcoder's own, the connector's sources, the target SAE's),
    and with eval.ce `ce` and `recovered` with its interval.
    """
    plan = transcoder_plan(cfg, store)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    return store.build(plan, lambda draft: _compare(cfg, store, draft), device_of(cfg))


def _load(cfg: Config, store: Store, width: int) -> SAE:
    sae = load_choice(cfg, _choice(cfg))
    if sae.d_out != width:
        raise SaelinkError(
            f"transcoder.path={cfg.transcoder.path}: it writes activations of {sae.d_out}, the target hook has {width}"
        )
    return sae


class _Acts:
    """Squared errors and variance of the target's activations, summed over tokens."""

    def __init__(self, width: int):
        self.n, self.total, self.energy = 0, torch.zeros(width, dtype=torch.float64), 0.0
        self.errors: dict[str, float] = dict.fromkeys(ROWS, 0.0)

    def add(self, true: torch.Tensor, made: dict[str, torch.Tensor]) -> None:
        self.n += len(true)
        self.total += true.double().sum(0)
        self.energy += true.double().square().sum().item()
        for name, acts in made.items():
            self.errors[name] += (true - acts).double().square().sum().item()

    def fvu(self, name: str) -> float:
        return self.errors[name] / (self.energy - self.total.square().sum().item() / self.n)


def _compare(cfg: Config, store: Store, draft: Draft) -> dict[str, Any]:
    sides, link, device = pull_sides(cfg, store), link_of(cfg, store), device_of(cfg)
    hook = _hook(cfg, store)
    token_ids = pull_tokens(cfg, store)
    context = token_ids.facts["context_size"]
    ours = fitted_connector(train(cfg, store), device)
    ids = ours.target_ids.cpu()
    target_sae = pull_sae(cfg, store, link.target).to(device, torch.float32)
    theirs = _load(cfg, store, target_sae.d_in).to(device, torch.float32)
    acts = _Acts(target_sae.d_in)
    latents = {name: ErrorSums(len(ids)) for name in ROWS}
    active, tokens = 0, 0
    scale = sides.scales[-1]
    pieces = iter(counted_split(cfg, sides, "test").explain(ids))
    waiting = next(pieces, None)
    shards = shards_of(token_ids.facts["sequences"], context, ["test"])
    with Progress("transcoder", token_ids.facts["tokens"]["test"]) as bar, torch.inference_mode():
        for shard, seen in run_model(cfg, store, token_ids, [hook, link.target], shards, bar):
            low, high = shard.first * context, shard.last * context
            while waiting is not None:
                here = ((waiting.row >= low) & (waiting.row < high)).nonzero().squeeze(1)
                for start in range(0, len(here), cfg.runtime.forward_tokens):
                    part = waiting.select(here[start : start + cfg.runtime.forward_tokens])
                    place = part.row - low
                    x = seen[hook].flatten(0, 1)[place].float().to(device)
                    true = seen[link.target].flatten(0, 1)[place].float().to(device)
                    if theirs.d_in != x.shape[1]:
                        raise SaelinkError(
                            f"transcoder.path={cfg.transcoder.path}: it reads activations of {theirs.d_in}, {hook} has "
                            f"{x.shape[1]}; transcoder.hook names another"
                        )
                    units = target_sae.units(true)
                    codes, own = target_sae.encode(true), theirs.encode(x)
                    predicted = ours(part.source.to(device))
                    mixed = codes.clone()  # latents that are not explained keep their value, as in cross-entropy
                    mixed[:, ids.to(device)] = predicted * scale
                    made = {
                        "transcoder": theirs.transcode(x),
                        "connector": target_sae.decode(mixed, units),
                        "sae": target_sae.decode(codes, units),
                    }
                    acts.add(true.cpu(), {name: tensor.cpu() for name, tensor in made.items()})
                    read = {name: target_sae.encode(made[name])[:, ids.to(device)] / scale for name in ROWS[::2]}
                    read["connector"] = predicted
                    for name, tensor in read.items():
                        latents[name].add(tensor.cpu(), part.target)
                    active += int((own > 0).sum())
                    tokens += len(part)
                if waiting.row[-1] >= high:
                    break
                waiting = next(pieces, None)
    l0 = {
        "transcoder": active / tokens,
        "connector": sum(side.facts["l0"] for side in sides.sources),
        "sae": sides.target.facts["l0"],
    }
    table: dict[str, dict[str, float]] = {
        name: {"fvu_acts": acts.fvu(name), "fvu_latents": latents[name].fvu(), "l0": l0[name]} for name in ROWS
    }
    if cfg.eval.ce:
        for name, figures in _ce(cfg, store, sides, theirs, hook).items():
            table[name] |= figures
    draft.save_json(TRANSCODER_FILE, table)
    return {"tokens": tokens, **{f"{name}_fvu_acts": row["fvu_acts"] for name, row in table.items()}}


def _ce(cfg: Config, store: Store, sides: Sides, theirs: SAE, hook: str) -> dict[str, dict[str, float]]:
    """Cross-entropy and its share recovered, of the transcoder's output in place of the target's activations."""
    losses = ce_baselines(cfg, store).tensors("losses.safetensors")
    test = spliced_tokens(cfg, store, sides, cfg.eval.ce_tokens)
    token_ids = pull_tokens(cfg, store)
    shards = shards_of(token_ids.facts["sequences"], test.ids.shape[1], ["test"])
    needed = [shard for shard in shards if shard.first < len(test.ids)]
    out = []
    with Progress("transcoder", test.ids.numel()) as bar:
        for _, seen in run_model(cfg, store, token_ids, [hook], needed, bar):
            rows = seen[hook].flatten(0, 1).float().to(theirs.W_enc.device)
            made = [theirs.transcode(part).cpu() for part in rows.split(cfg.runtime.forward_tokens)]
            out.append(torch.cat(made).view(*seen[hook].shape[:2], theirs.d_out))
    with Splice(cfg, store, sides, test, 1) as splice:
        losses["transcoder"] = splice.losses(torch.cat(out)[: len(test.ids)])
    figures = ce_figures(losses, test.document, cfg.eval.bootstrap)
    figures["connector"] = evaluate(cfg, store).json("ce.json")["connector"]
    shown = ("ce", "recovered", "recovered_low", "recovered_high")
    return {name: {key: figures[name][key] for key in shown} for name in ROWS}
