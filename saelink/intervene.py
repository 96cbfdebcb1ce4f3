"""Put something else in the place of a hook's activations and let the model run on: the stages `oracle` and `ce`.

Everything happens on the test split, at the positions that count there; all others keep the model's own activations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from saelink import metrics
from saelink.autoencoder import SAE, Units
from saelink.cache import act_shards, cache, shards_of
from saelink.config import Config
from saelink.connectors import Connector
from saelink.data import tokens as pull_tokens
from saelink.encode import encode_plan, encode_rows, stored_units
from saelink.latents import Rows, pack, sparse_linear, unpack
from saelink.link import Sides, link_of, load_split, pull_sides
from saelink.model import device_of, load_bridge, model_info, torch_dtype
from saelink.progress import Progress
from saelink.sae import pull_sae
from saelink.store import Artifact, Draft, Plan, Store

VERSION = 1

LOGITS_TOKENS = 2048
"""Tokens of one pass to the logits, which are as wide as the vocabulary."""

BASELINES = ("clean", "sae", "oracle", "mean", "zero", "oracle_with_error")

Hook = tuple[str, Callable[..., torch.Tensor]]


def _inputs(cfg: Config, store: Store) -> dict[str, str]:
    link = link_of(cfg, store)
    inputs = {f"source{i}": encode_plan(cfg, store, hook).key for i, hook in enumerate(link.sources)}
    inputs["target"] = encode_plan(cfg, store, link.target).key
    return inputs | {"model": model_info(cfg, store).artifact.key}


def _about(cfg: Config) -> str:
    return f"{cfg.model.label} layer {cfg.layer} {cfg.link.name}"


def _recipe(cfg: Config) -> dict[str, Any]:
    return {
        "drop_positions": cfg.data.drop_positions,
        "max_norm_ratio": cfg.data.max_norm_ratio,
        "latent_scale": cfg.latent_scale.name,
        "model_dtype": cfg.model.dtype.name,
    }


class SplicedTokens(NamedTuple):
    """The first sequences of the test split."""

    ids: torch.Tensor
    """[sequences, context_size] int64: tokens."""
    document: torch.Tensor
    """[sequences, context_size] int64: the document each token belongs to."""
    counts: torch.Tensor
    """[sequences, context_size] bool: where latents are explained."""


def spliced_tokens(cfg: Config, store: Store, sides: Sides, limit: int | None = None) -> SplicedTokens:
    """At most `limit` tokens of the test split, in whole sequences, at least one."""
    tensors = pull_tokens(cfg, store).tensors("test.safetensors")
    ids, document = tensors["ids"].long(), tensors["document"].long()
    counts = torch.zeros(ids.numel(), dtype=torch.bool)
    counts[load_split(cfg, sides, "test").row] = True
    n = len(ids) if limit is None else min(max(limit // ids.shape[1], 1), len(ids))
    return SplicedTokens(ids[:n], document[:n], counts.view(ids.shape)[:n])


def _latents(side: Artifact, n_sequences: int) -> Rows:
    """All positions of the first test sequences, as the SAE gave them."""
    context = side.facts["context_size"]
    parts = [
        unpack(side.tensors(shard.name), side.facts["d_sae"])
        for shard in shards_of(side.facts["sequences"], context, ["test"])
    ]
    return Rows.stack(parts).select(torch.arange(n_sequences * context))


def _units(side: Artifact, n_sequences: int) -> Units | None:
    """The units of all positions of the first test sequences, for an SAE that normalises what it reads."""
    context = side.facts["context_size"]
    parts = [stored_units(side.tensors(shard.name)) for shard in shards_of(side.facts["sequences"], context, ["test"])]
    known = [part for part in parts if part is not None]
    if not known:
        return None
    return Units(*(torch.cat(column) for column in zip(*known, strict=True))).select(slice(n_sequences * context))


def _decoded(sae: SAE, rows: Rows, units: Units | None, shape: torch.Size) -> torch.Tensor:
    """[sequences, context_size, d_in]"""
    return sae.output(sparse_linear(rows, sae.W_dec), units).view(*shape, sae.d_in)


def put(replacement: torch.Tensor, where: torch.Tensor) -> Callable[..., torch.Tensor]:
    """A hook that puts `replacement` [rows, context, d_in] where `where` [rows, context] is true."""

    def hook(acts: torch.Tensor, hook: Any = None) -> torch.Tensor:
        flat = acts.flatten(2)  # heads side by side
        return torch.where(where[..., None], replacement.to(acts.dtype), flat).view(acts.shape)

    return hook


def add(change: torch.Tensor, where: torch.Tensor) -> Callable[..., torch.Tensor]:
    """A hook that adds `change` where `where` is true."""

    def hook(acts: torch.Tensor, hook: Any = None) -> torch.Tensor:
        flat = acts.flatten(2)
        return (flat + torch.where(where[..., None], change.to(acts.dtype), 0.0)).view(acts.shape)

    return hook


def next_token_losses(bridge: Any, ids: torch.Tensor, hooks: Callable[[slice], list[Hook]], bar: Progress) -> Any:
    """Cross-entropy in nats of every actual next token, [sequences, context_size - 1], float32.

    `hooks` gives what is spliced in for a slice of the sequences.
    """
    rows = max(LOGITS_TOKENS // ids.shape[1], 1)
    losses = []
    device = next(bridge.parameters()).device
    with torch.inference_mode():
        for first in range(0, len(ids), rows):
            part = slice(first, first + rows)
            batch = ids[part].to(device)
            logits = bridge.run_with_hooks(batch, fwd_hooks=hooks(part))
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="none"
            )
            losses.append(loss.view(len(batch), -1).cpu())
            bar.advance(batch.numel())
    return torch.cat(losses)


# --------------------------------------------------------------------------- the oracle


def oracle_plan(cfg: Config, store: Store) -> Plan:
    """Plan of the oracle's latents."""
    return Plan("oracle", VERSION, _recipe(cfg), _inputs(cfg, store), _about(cfg))


def oracle(cfg: Config, store: Store) -> Artifact:
    """Pull the oracle: the true computation between the SAEs, on all test tokens.

    The model runs with its source hooks replaced by what the source SAEs make of them, and the target SAE encodes
    what arrives at the target hook. Files: `latents.safetensors` (packed rows, all positions), `errors.safetensors`
    (by target latent, in scaled units: `mse`, and `mse_typical` without massive tokens). Facts: mse, fvu over all.
    """
    plan = oracle_plan(cfg, store)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    sides = pull_sides(cfg, store)
    return store.build(plan, lambda draft: _oracle(cfg, store, sides, draft), device_of(cfg))


def _oracle(cfg: Config, store: Store, sides: Sides, draft: Draft) -> dict[str, Any]:
    device = device_of(cfg)
    info, link = model_info(cfg, store), link_of(cfg, store)
    bridge = load_bridge(cfg, info, device)
    test = spliced_tokens(cfg, store, sides)
    saes = [pull_sae(cfg, store, hook) for hook in link.sources]
    target_sae = pull_sae(cfg, store, link.target).to(device, torch_dtype(cfg.sae.dtype))
    n = len(test.ids)
    rebuilt = [
        _decoded(sae.to("cpu", torch.float32), _latents(side, n), _units(side, n), test.ids.shape)
        for sae, side in zip(saes, sides.sources, strict=True)
    ]
    rows = max(cfg.runtime.forward_tokens // test.ids.shape[1], 1)
    stop = max(int(hook.split(".")[1]) for hook in [*link.sources, link.target]) + 1
    parts: list[Rows] = []

    def keep(acts: torch.Tensor, hook: Any = None) -> torch.Tensor:
        row, latent, value = target_sae.encode_sparse(acts.reshape(-1, target_sae.d_in))  # heads side by side
        lengths = torch.bincount(row, minlength=acts.shape[0] * acts.shape[1])
        offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        parts.append(Rows(offsets, latent, value.float(), target_sae.d_sae).to("cpu"))
        return acts

    with Progress("oracle", test.ids.numel()) as bar, torch.inference_mode():
        for first in range(0, len(test.ids), rows):
            part = slice(first, first + rows)
            where = test.counts[part].to(device)
            hooks = [(hook, put(new[part].to(device), where)) for hook, new in zip(link.sources, rebuilt, strict=True)]
            bridge.run_with_hooks(
                test.ids[part].to(device), fwd_hooks=[*hooks, (link.target, keep)], stop_at_layer=stop
            )
            bar.advance(test.ids[part].numel())
    latents = Rows.stack(parts)
    draft.save_tensors("latents.safetensors", pack(latents))
    counted = load_split(cfg, sides, "test")
    ours = latents.select(counted.row).scaled(1 / sides.scales[-1])
    sums = {True: metrics.Sums(sides.d_target), False: metrics.Sums(sides.d_target)}
    for typical, part in sums.items():
        rows_here = (counted.typical == typical).nonzero().squeeze(1)
        predicted, true = ours.select(rows_here), counted.target.select(rows_here)
        for mine, theirs in zip(metrics.in_steps(predicted), metrics.in_steps(true), strict=True):
            part.add(mine.dense(), theirs)
    both = sums[True] + sums[False]
    errors = {"mse": both.squared_error / both.n, "mse_typical": sums[True].squared_error / max(sums[True].n, 1)}
    draft.save_tensors("errors.safetensors", errors)
    return {"n_tokens": both.n, "mse": both.mse(), "fvu": both.fvu()}


# --------------------------------------------------------------------------- cross-entropy


def ce_plan(cfg: Config, store: Store) -> Plan:
    """Plan of the losses that a connector's are compared with, on eval.ce_tokens test tokens."""
    inputs = {**_inputs(cfg, store), "oracle": oracle_plan(cfg, store).key}
    return Plan("ce", VERSION, {**_recipe(cfg), "tokens": cfg.eval.ce_tokens}, inputs, _about(cfg) + ", baselines")


def ce_baselines(cfg: Config, store: Store) -> Artifact:
    """Pull the next-token losses of everything a connector is compared with, on eval.ce_tokens test tokens.

    File `losses.safetensors`, each [sequences, context_size - 1] in nats: `clean`; at the target hook `sae` (its
    reconstruction), `oracle`, `mean` (the training mean of the acts) and `zero`; `oracle_with_error` has the SAE's
    own error added back.
    """
    plan = ce_plan(cfg, store)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    sides = pull_sides(cfg, store)
    made = oracle(cfg, store)

    def make(draft: Draft) -> dict[str, Any]:
        test = spliced_tokens(cfg, store, sides, cfg.eval.ce_tokens)
        with Splice(cfg, store, sides, test, len(BASELINES)) as splice:
            true = _latents(sides.target, len(test.ids))
            d_sae = sides.d_target
            oracle_rows = unpack(made.tensors("latents.safetensors"), d_sae).select(torch.arange(test.ids.numel()))
            zero = torch.zeros(*test.ids.shape, splice.sae.d_in)
            losses = {
                "clean": splice.losses(),
                "sae": splice.losses(splice.decode(true)),
                "oracle": splice.losses(splice.decode(oracle_rows)),
                "mean": splice.losses(zero + _mean_acts(cfg, store, splice.hook)),
                "zero": splice.losses(zero),
                "oracle_with_error": splice.losses_of_change(splice.decode(oracle_rows) - splice.decode(true)),
            }
        assert set(losses) == set(BASELINES)
        draft.save_tensors("losses.safetensors", losses)
        return {"tokens": test.ids.numel(), **{name: loss.double().mean().item() for name, loss in losses.items()}}

    return store.build(plan, make, device_of(cfg))


def _mean_acts(cfg: Config, store: Store, hook: str) -> torch.Tensor:
    """[width] mean of a hook's acts over the training tokens, without the dropped positions."""
    total, n = torch.zeros(()), 0
    for _, acts in act_shards(cache(cfg, store, [hook])[hook], ["train"]):
        kept = acts[:, cfg.data.drop_positions :].flatten(0, 1).double()
        total, n = total + kept.sum(0), n + len(kept)
    return (total / n).float()


class Splice:
    """Runs the model with something else at the target hook. A context manager; `passes` is for the progress bar."""

    def __init__(self, cfg: Config, store: Store, sides: Sides, test: SplicedTokens, passes: int):
        self.hook = link_of(cfg, store).target
        self.device = device_of(cfg)
        self.test = test
        self.sae = pull_sae(cfg, store, self.hook).to("cpu", torch.float32)
        self.units = _units(sides.target, len(test.ids))
        self.sides = sides
        self._bridge = load_bridge(cfg, model_info(cfg, store), self.device)
        self._bar = Progress("ce", passes * test.ids.numel())

    def __enter__(self) -> Splice:
        self._bar.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._bar.__exit__(*problem)

    def losses(self, replacement: torch.Tensor | None = None) -> torch.Tensor:
        """Losses with `replacement` [sequences, context_size, d_in] at the counted positions, or untouched."""
        return self._run(put, replacement)

    def losses_of_change(self, change: torch.Tensor) -> torch.Tensor:
        """Losses with `change` added to the model's own activations at the counted positions."""
        return self._run(add, change)

    def _run(self, how: Callable[..., Any], tensor: torch.Tensor | None) -> torch.Tensor:
        def hooks(part: slice) -> list[Hook]:
            if tensor is None:
                return []
            return [(self.hook, how(tensor[part].to(self.device), self.test.counts[part].to(self.device)))]

        return next_token_losses(self._bridge, self.test.ids, hooks, self._bar)

    def decode(self, rows: Rows) -> torch.Tensor:
        """The target SAE's reconstruction from latents of all positions: [sequences, context_size, d_in].

        An SAE that normalises what it reads decodes in the units of the model's own activations.
        """
        return _decoded(self.sae, rows, self.units, self.test.ids.shape)

    def decode_change(self, change: torch.Tensor) -> torch.Tensor:
        """What a change of latents [tokens, d_sae], one row per position, adds to the reconstruction."""
        moved = change @ self.sae.W_dec
        return (moved if self.units is None else moved * self.units.scale).view(*self.test.ids.shape, self.sae.d_in)

    def true_latents(self) -> Rows:
        """The target latents of all positions, as the SAE gives them."""
        return _latents(self.sides.target, len(self.test.ids))


Replacement = Callable[[list[torch.Tensor], torch.Tensor], torch.Tensor]
"""What stands in a target hook's place, from what source hooks and target hook hold there, [n, width] each."""


class LinkAt(NamedTuple):
    """A link at one layer, its SAEs on a device."""

    sources: list[str]
    target: str
    source_saes: list[SAE]
    target_sae: SAE
    scales: list[float]
    mean: torch.Tensor
    """[width] of the target hook's acts over the training tokens."""
    counts: torch.Tensor
    """[sequences, context_size] bool: where latents are explained."""

    def predicted(self, connector: Connector) -> Replacement:
        """The SAE's decoding of what a connector makes of the sources; what it does not explain keeps its value."""
        sae, ids = self.target_sae, connector.target_ids

        def replace(sources: list[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
            rows = [
                encode_rows(sae, acts).scaled(1 / scale)
                for sae, acts, scale in zip(self.source_saes, sources, self.scales, strict=False)
            ]
            latents = sae.encode(target)
            latents[:, ids] = connector(Rows.beside(rows)) * self.scales[-1]
            return sae.decode(latents, sae.units(target))

        return replace

    def rebuilt(self, _: list[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """The SAE's reconstruction."""
        return self.target_sae.decode(self.target_sae.encode(target), self.target_sae.units(target))

    def averaged(self, _: list[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """The mean over the training tokens."""
        return self.mean.to(target).expand_as(target)

    def nothing(self, _: list[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """Zero."""
        return torch.zeros_like(target)


class SeveralLayers:
    """Runs the model with something else at the target hooks of several layers at once.

    What a later layer's sources are is read in the running model, after all that was replaced before them. A context
    manager; `passes` is for the progress bar.
    """

    def __init__(self, cfgs: list[Config], store: Store, tokens: int, passes: int):
        """`cfgs` are the same job at several layers; `tokens` test tokens are run."""
        self.device = device_of(cfgs[0])
        self.links: list[LinkAt] = []
        for cfg in cfgs:
            sides, link = pull_sides(cfg, store), link_of(cfg, store)
            self.test = spliced_tokens(cfg, store, sides, tokens)
            saes = [pull_sae(cfg, store, hook).to(self.device, torch.float32) for hook in [*link.sources, link.target]]
            mean = _mean_acts(cfg, store, link.target)
            self.links.append(
                LinkAt(link.sources, link.target, saes[:-1], saes[-1], sides.scales, mean, self.test.counts)
            )
        self._bridge = load_bridge(cfgs[0], model_info(cfgs[0], store), self.device)
        self._bar = Progress("ce", passes * self.test.ids.numel())

    def __enter__(self) -> SeveralLayers:
        self._bar.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._bar.__exit__(*problem)

    def losses(self, replacements: list[Replacement] | None = None) -> torch.Tensor:
        """Losses with each layer's replacement at the counted positions, or untouched."""

        def hooks(part: slice) -> list[Hook]:
            found: list[Hook] = []
            for link, replacement in zip(self.links, replacements or [], strict=replacements is not None):
                where = link.counts[part].to(self.device)
                held: dict[str, torch.Tensor] = {}
                found += [(name, _holder(held, name, where)) for name in link.sources]
                found.append((link.target, _replacer(replacement, held, link.sources, where)))
            return found

        return next_token_losses(self._bridge, self.test.ids, hooks, self._bar)


def _holder(held: dict[str, torch.Tensor], name: str, where: torch.Tensor) -> Callable[..., torch.Tensor]:
    def hook(acts: torch.Tensor, hook: Any = None) -> torch.Tensor:
        held[name] = acts.flatten(2)[where].float()
        return acts

    return hook


def _replacer(
    replacement: Replacement, held: dict[str, torch.Tensor], sources: list[str], where: torch.Tensor
) -> Callable[..., torch.Tensor]:  # fmt: skip
    def hook(acts: torch.Tensor, hook: Any = None) -> torch.Tensor:
        flat = acts.flatten(2).clone()
        flat[where] = replacement([held[name] for name in sources], flat[where].float()).to(acts.dtype)
        return flat.view(acts.shape)

    return hook


def ce_figures(losses: dict[str, torch.Tensor], document: torch.Tensor, resamples: int) -> dict[str, dict[str, float]]:
    """Mean loss and ce_loss_recovered of every entry, with 95% intervals.

    recovered = (CE_zero - CE) / (CE_zero - CE_clean), recovered_mean the same from mean ablation. The intervals are
    from a paired bootstrap over documents: one resample of the documents is used for all entries. `losses` has at
    least clean, mean and zero, each [sequences, context_size - 1]; `document` is [sequences, context_size].
    """
    owner = document[:, 1:].flatten().unique(return_inverse=True)[1]
    n = int(owner.max()) + 1
    by_document = {
        name: torch.zeros(n, dtype=torch.float64).index_add_(0, owner, loss.flatten().double())
        for name, loss in losses.items()
    }
    size = torch.bincount(owner, minlength=n).double()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(n, (resamples, n), generator=generator)
    weights = torch.stack([torch.bincount(row, minlength=n) for row in drawn]).double()

    def resampled(name: str) -> torch.Tensor:
        return (weights @ by_document[name]) / (weights @ size)

    figures = {}
    for name, loss in losses.items():
        entry = {"ce": loss.double().mean().item()}
        for key, ablated in (("recovered", "zero"), ("recovered_mean", "mean")):
            gap = losses[ablated].double().mean() - losses["clean"].double().mean()
            entry[key] = ((losses[ablated].double().mean() - loss.double().mean()) / gap).item()
            draws = (resampled(ablated) - resampled(name)) / (resampled(ablated) - resampled("clean"))
            entry[f"{key}_low"], entry[f"{key}_high"] = draws.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        cost = resampled(name) - resampled("clean")
        entry["cost"] = entry["ce"] - losses["clean"].double().mean().item()
        entry["cost_low"], entry["cost_high"] = cost.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        figures[name] = entry
    return figures
