"""The stage `sae`: a TopK SAE on a hook's training activations, by sae-lens (the extra `saelens`)."""

from __future__ import annotations

import json
from typing import Any

from saelink.activations.cache import cache, cache_plan, shuffled_rows
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.progress import Progress
from saelink.runtime import device_of
from saelink.saes.formats.saelens import CONFIG_FILE, WEIGHTS_FILE
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.recipe import Plan
from saelink.store.store import Store

VERSION = 1


def sae_plan(cfg: Config, store: Store, hook_name: str) -> Plan:
    """Plan of the SAE that saelink trains for a hook."""
    sae = cfg.sae
    recipe = {
        "architecture": "topk",
        "d_sae": sae.d_sae,
        "k": sae.k,
        "epochs": float(sae.epochs),
        "batch_tokens": sae.batch_tokens,
        "lr": sae.lr,
        "aux_loss_coefficient": sae.aux_loss_coefficient,
        "dead_after_steps": sae.dead_after_steps,
        "seed": sae.seed,
        "drop_positions": cfg.data.drop_positions,
        "max_norm_ratio": cfg.data.max_norm_ratio,
    }
    inputs = {"acts": cache_plan(cfg, store, hook_name).key}
    return Plan("sae", VERSION, recipe, inputs, f"{cfg.model.label} {hook_name} {sae.d_sae} latents, k {sae.k}")


def train_sae(cfg: Config, store: Store, hook_name: str) -> Artifact:
    """Pull a TopK SAE on a hook's training activations: a SAELens folder in bfloat16."""
    plan = sae_plan(cfg, store, hook_name)
    found = store.up_to_date(plan)
    if found is not None:
        return found
    acts = cache(cfg, store, [hook_name])[hook_name]
    return store.build(plan, lambda draft: _train_sae(cfg, store, acts, hook_name, draft), device_of(cfg))


def _train_sae(cfg: Config, store: Store, acts: Artifact, hook_name: str, draft: Draft) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    try:
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer
    except ModuleNotFoundError:
        raise SaelinkError(
            f"sae.name={cfg.sae.name}: {hook_name} has no SAE yet and training one needs sae-lens: "
            "install it with `pip install 'saelink[saelens]'`, or give sae.path a folder that has one"
        ) from None
    settings = cfg.sae
    device = device_of(cfg)
    d_model = acts.facts["width"]
    rows = acts.facts["sequences"]["train"] * (acts.facts["context_size"] - cfg.data.drop_positions)
    steps = int(settings.epochs * rows) // settings.batch_tokens
    if steps < 20:
        raise SaelinkError(
            f"sae.epochs={settings.epochs}: {rows:,} training tokens give {steps} steps of "
            f"sae.batch_tokens={settings.batch_tokens}; at least 20 are needed (more text, more epochs, smaller steps)"
        )
    total = steps * settings.batch_tokens
    store.say(f"sae: {hook_name}, {settings.d_sae} latents, {settings.epochs:g} passes over {rows:,} tokens")
    ratio = cfg.data.max_norm_ratio

    torch.manual_seed(settings.seed)
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=d_model,
            d_sae=settings.d_sae,
            k=settings.k,
            device=device,
            decoder_init_norm=0.1,
            aux_loss_coefficient=settings.aux_loss_coefficient,
            normalize_activations="expected_average_only_in",
        )
    )
    batches = shuffled_rows(
        acts,
        batch=settings.batch_tokens,
        total=total,
        drop_positions=cfg.data.drop_positions,
        max_norm=None if ratio is None else ratio * acts.facts["median_norm"],
        seed=settings.seed,
    )
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=total,
            train_batch_size_samples=settings.batch_tokens,
            lr=settings.lr,
            lr_end=settings.lr / 100,
            lr_warm_up_steps=max(steps // 20, 1),
            lr_decay_steps=steps // 2,
            device=device,
            dead_feature_window=settings.dead_after_steps,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        batches,
    )
    # While it trains, the inputs are scaled to a mean norm of sqrt(d_in); the weights take the scalar at the end.
    mean_norm = acts.facts["mean_norm"][cfg.data.drop_positions :]
    scale = d_model**0.5 / (sum(mean_norm) / len(mean_norm))
    trainer.activation_scaler.scaling_factor = scale
    with Progress(f"sae {hook_name}", total) as bar:
        for step, batch in enumerate(batches):
            output = trainer.step(batch)
            trainer.n_training_steps += 1
            bar.advance(len(batch), note=f"loss {output.loss.item():.3g}" if step % 20 == 0 else "")
    sae.fold_activation_norm_scaling_factor(scale)
    sae.cfg.metadata.hook_name = hook_name
    sae.cfg.metadata.context_size = acts.facts["context_size"]
    sae.cfg.metadata.training_tokens = total
    sae.to("cpu")
    sae.save_inference_model(draft.folder)
    config = json.loads((draft.folder / CONFIG_FILE).read_bytes())
    weights = load_file(draft.folder / WEIGHTS_FILE)
    draft.save_json(CONFIG_FILE, config | {"dtype": "bfloat16", "device": "cpu"})
    draft.save_tensors(WEIGHTS_FILE, {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()})
    return {"hook_name": hook_name, "training_tokens": total, "steps": steps}
