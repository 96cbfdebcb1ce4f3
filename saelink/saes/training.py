"""The stage `sae`: a TopK SAE on a hook's training activations, by sae-lens (the extra `saelens`)."""

from __future__ import annotations

import json
from typing import Any, TypedDict

import torch

from saelink import memory
from saelink.activations.cache import CacheFacts, CacheStage, shuffled_rows
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.progress import Observer
from saelink.runtime import device_of
from saelink.saes.checkpoint import Checkpoints
from saelink.saes.formats.saelens import CONFIG_FILE, WEIGHTS_FILE
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Need, Stage
from saelink.store.store import Store

DIVERGED = 10.0
"""A training whose loss is so many times that of an SAE that predicts nothing has diverged."""


class SAEFacts(TypedDict):
    hook_name: str
    training_tokens: int
    steps: int


class SAEStage(Stage[SAEFacts]):
    """The TopK SAE that saelink trains for a hook: a SAELens folder in bfloat16.

    Raises SaelinkError without sae-lens, and for text that gives fewer than 20 steps.
    """

    name = "sae"
    version = 1

    def __init__(self, cfg: Config, store: Store, hook_name: str):
        self.cfg, self.store, self.hook_name = cfg, store, hook_name

    @property
    def device(self) -> str:
        return device_of(self.cfg)

    @property
    def resumable(self) -> bool:
        return True

    def recipe(self) -> dict[str, Any]:
        sae = self.cfg.sae
        return {
            "architecture": "topk",
            "d_sae": sae.d_sae,
            "k": sae.k,
            "epochs": float(sae.epochs),
            "batch_tokens": sae.batch_tokens,
            "lr": sae.lr,
            "aux_loss_coefficient": sae.aux_loss_coefficient,
            "dead_after_steps": sae.dead_after_steps,
            "seed": sae.seed,
            "drop_positions": self.cfg.data.drop_positions,
            "max_norm_ratio": self.cfg.data.max_norm_ratio,
        }

    def inputs(self) -> dict[str, str]:
        return {"acts": CacheStage(self.cfg, self.store, self.hook_name).key}

    def about(self) -> str:
        sae = self.cfg.sae
        return f"{self.cfg.model.label} {self.hook_name} {sae.d_sae} latents, k {sae.k}"

    def need(self) -> Need:
        acts = CacheStage(self.cfg, self.store, self.hook_name).pull()
        settings, facts = self.cfg.sae, acts.facts
        side = memory.Side(facts["width"], settings.d_sae, settings.k)
        rows = facts["sequences"]["train"] * facts["context_size"]
        size = memory.sae_training(side, settings.batch_tokens, rows)
        return Need(
            size, "use fewer latents (sae.d_sae), smaller steps (sae.batch_tokens) or less text (data.max_tokens)"
        )

    def make(self, draft: Draft) -> SAEFacts:
        acts = CacheStage(self.cfg, self.store, self.hook_name).pull()
        return _train(self.cfg, self.store.observer, acts, self.hook_name, draft)


def _train(cfg: Config, observer: Observer, acts: Artifact[CacheFacts], hook_name: str, draft: Draft) -> SAEFacts:
    settings = cfg.sae
    rows = acts.facts["sequences"]["train"] * (acts.facts["context_size"] - cfg.data.drop_positions)
    steps = int(settings.epochs * rows) // settings.batch_tokens
    if steps < 20:
        raise SaelinkError(
            f"sae.epochs={settings.epochs}: {rows:,} training tokens give {steps} steps of "
            f"sae.batch_tokens={settings.batch_tokens}; at least 20 are needed (more text, more epochs, smaller steps)"
        )
    total = steps * settings.batch_tokens
    observer.say(f"sae: {hook_name}, {settings.d_sae} latents, {settings.epochs:g} passes over {rows:,} tokens")
    ratio = cfg.data.max_norm_ratio

    torch.manual_seed(settings.seed)
    sae = _untrained(cfg, hook_name, acts.facts["width"])
    trainer = _trainer(cfg, sae, total)
    # While it trains, the inputs are scaled to a mean norm of sqrt(d_in); the weights take the scalar at the end.
    mean_norm = acts.facts["mean_norm"][cfg.data.drop_positions :]
    scale = acts.facts["width"] ** 0.5 / (sum(mean_norm) / len(mean_norm))
    trainer.activation_scaler.scaling_factor = scale
    checkpoints = Checkpoints(draft, trainer)
    done = checkpoints.resume()
    if done:
        observer.say(f"sae: {hook_name}, goes on behind step {done:,} of {steps:,}")
    batches = shuffled_rows(
        acts,
        batch=settings.batch_tokens,
        total=total,
        drop_positions=cfg.data.drop_positions,
        max_norm=None if ratio is None else ratio * acts.facts["median_norm"],
        seed=settings.seed,
        first=done,
    )
    note = ""
    with observer.progress(f"sae {hook_name}", total, done=done * settings.batch_tokens) as bar:
        for step, batch in enumerate(batches, done):
            output = trainer.step(batch)
            trainer.n_training_steps += 1
            if step % 20 == 0 or step == steps - 1:
                loss, energy = output.loss.item(), (batch.float() * scale).square().sum(1).mean().item()
                if not loss <= DIVERGED * energy:  # also where it is no number
                    checkpoints.forget()
                    raise SaelinkError(
                        f"sae.lr={settings.lr:g}: the training of the SAE for {hook_name} diverged (loss {loss:.3g} at "
                        f"step {step}, where predicting nothing has {energy:.3g}); use a smaller sae.lr"
                    )
                note = f"loss {loss:.3g}"
            bar.advance(len(batch), note=note if step % 20 == 0 else "")
            checkpoints.keep(step + 1)
    checkpoints.forget()
    if not all(bool(tensor.isfinite().all()) for tensor in sae.state_dict().values()):
        raise SaelinkError(
            f"sae.lr={settings.lr:g}: the SAE for {hook_name} has weights that are not finite; use a smaller sae.lr"
        )
    sae.fold_activation_norm_scaling_factor(scale)
    sae.cfg.metadata.hook_name = hook_name
    sae.cfg.metadata.context_size = acts.facts["context_size"]
    sae.cfg.metadata.training_tokens = total
    _save(sae, draft)
    return {"hook_name": hook_name, "training_tokens": total, "steps": steps}


def _untrained(cfg: Config, hook_name: str, width: int) -> Any:
    """sae-lens' TopK SAE as it starts."""
    try:
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    except ModuleNotFoundError:
        raise SaelinkError(
            f"sae.name={cfg.sae.name}: {hook_name} has no SAE yet and training one needs sae-lens: "
            "install it with `pip install 'saelink[saelens]'`, or give sae.path a folder that has one"
        ) from None
    return TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=width,
            d_sae=cfg.sae.d_sae,
            k=cfg.sae.k,
            device=device_of(cfg),
            decoder_init_norm=0.1,
            aux_loss_coefficient=cfg.sae.aux_loss_coefficient,
            normalize_activations="expected_average_only_in",
        )
    )


def _trainer(cfg: Config, sae: Any, total: int) -> Any:
    """sae-lens' trainer: a linear warm-up over 5% of the steps, a linear decay over the last half."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    settings, steps = cfg.sae, total // cfg.sae.batch_tokens
    return SAETrainer(
        SAETrainerConfig(
            total_training_samples=total,
            train_batch_size_samples=settings.batch_tokens,
            lr=settings.lr,
            lr_end=settings.lr / 100,
            lr_warm_up_steps=max(steps // 20, 1),
            lr_decay_steps=steps // 2,
            device=device_of(cfg),
            dead_feature_window=settings.dead_after_steps,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        iter(()),  # it is given each batch
    )


def _save(sae: Any, draft: Draft) -> None:
    """The SAE's folder in SAELens' format, weights in bfloat16."""
    from safetensors.torch import load_file

    sae.to("cpu")
    sae.save_inference_model(draft.folder)
    config = json.loads((draft.folder / CONFIG_FILE).read_bytes())
    weights = load_file(draft.folder / WEIGHTS_FILE)
    draft.save_json(CONFIG_FILE, config | {"dtype": "bfloat16", "device": "cpu"})
    draft.save_tensors(WEIGHTS_FILE, {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()})
