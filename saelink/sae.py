"""Sparse autoencoders: reading a SAELens folder, encoding and decoding, and the stage `sae` that trains one.

Reading needs nothing but the two files; training goes through sae-lens (the extra `saelens`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from saelink.cache import cache, cache_plan, shuffled_rows
from saelink.config import Config
from saelink.learned_dict import read_learned_dict
from saelink.model import device_of, hub_errors
from saelink.progress import Progress
from saelink.store import Artifact, Draft, Plan, SaelinkError, Store, file_sha256

if TYPE_CHECKING:
    import torch

VERSION = 1

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"


# --------------------------------------------------------------------------- the autoencoder


@dataclass
class SAE:
    """One SAE: latents = activation(x @ W_enc + b_enc), reconstruction = latents @ W_dec + b_dec.

    b_enc already holds what subtracting b_dec from the input would do (`apply_b_dec_to_input`).
    """

    W_enc: torch.Tensor
    """[d_in, d_sae]"""
    b_enc: torch.Tensor
    """[d_sae]"""
    W_dec: torch.Tensor
    """[d_sae, d_in]"""
    b_dec: torch.Tensor
    """[d_in]"""
    k: int | None
    """TopK: active latents per token; None otherwise."""
    threshold: torch.Tensor | None
    """JumpReLU: a latent is active above this, [d_sae]; None otherwise."""

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    def to(self, device: str, dtype: torch.dtype) -> SAE:
        threshold = None if self.threshold is None else self.threshold.to(device, dtype)
        moved = {name: getattr(self, name).to(device, dtype) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        return replace(self, threshold=threshold, **moved)

    def pre_acts(self, acts: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """[n, d_in] -> [n, d_sae], before the nonlinearity; into `out` [>= n, d_sae] where it is given."""
        import torch

        into = None if out is None else out[: len(acts)]
        return torch.addmm(self.b_enc, acts.to(self.W_enc.dtype), self.W_enc, out=into)

    def encode_sparse(
        self, acts: torch.Tensor, out: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[n, d_in] -> row, latent and value of every active latent, in the order of rows, then latents.

        `out` [>= n, d_sae] is room for the pre_acts: using the same again and again saves the memory's page faults.
        """
        import torch

        pre = self.pre_acts(acts, out)
        if pre.device.type == "cpu" and pre.dtype is torch.float32:
            return active_entries(pre, self.k, self.threshold)
        if self.k is None:
            active = pre > (0 if self.threshold is None else self.threshold.clamp(min=0))
            row, latent = active.nonzero(as_tuple=True)
            return row, latent, pre[row, latent]
        latents = torch.topk(pre, self.k, dim=1, sorted=False).indices.sort(dim=1).values
        values = pre.gather(1, latents)
        row, place = (values > 0).nonzero(as_tuple=True)
        return row, latents[row, place], values[row, place]

    def encode(self, acts: torch.Tensor) -> torch.Tensor:
        """[n, d_in] -> latents [n, d_sae], dense."""
        row, latent, value = self.encode_sparse(acts)
        dense = value.new_zeros(len(acts), self.d_sae)
        dense[row, latent] = value
        return dense

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """[n, d_sae] -> reconstruction [n, d_in]."""
        return latents @ self.W_dec + self.b_dec


def active_entries(
    pre: torch.Tensor, k: int | None, threshold: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row, latent and value of what is active among pre_acts [n, d_sae] in float32 on the CPU."""
    import torch

    from saelink.kernels import in_parts
    from saelink.kernels.active import above, top_k

    n, d = pre.shape
    counts = torch.empty(n, dtype=torch.int64)
    if k is not None:
        latents, values = torch.empty(n, k, dtype=torch.int64), torch.empty(n, k)
        arrays = [tensor.numpy() for tensor in (latents, values, counts)]
        in_parts(n, 256, lambda first, last: top_k(first, last, pre.numpy(), k, *arrays))
    else:
        least = torch.zeros(d) if threshold is None else threshold.clamp(min=0)
        latents, values = torch.empty(n, d, dtype=torch.int32), torch.empty(n, d)
        arrays = [tensor.numpy() for tensor in (least, latents, values, counts)]
        in_parts(n, 256, lambda first, last: above(first, last, pre.numpy(), *arrays))
    row = torch.repeat_interleave(torch.arange(n), counts)
    if n and int(counts.min()) == latents.shape[1]:
        return row, latents.view(-1).long(), values.view(-1)
    starts = torch.cumsum(counts, 0) - counts
    place = row * latents.shape[1] + torch.arange(len(row)) - starts[row]
    return row, latents.view(-1)[place].long(), values.view(-1)[place]


def load_sae(folder: Path, field: str = "sae.path") -> SAE:
    """Read a SAELens folder (`cfg.json` and `sae_weights.safetensors`) in float32.

    Architectures standard (ReLU), topk and jumprelu, which is also what sae-lens saves a BatchTopK SAE as.
    Raises SaelinkError, naming `field`, for a missing or broken file and for what is not supported.
    """
    import safetensors
    from safetensors.torch import load_file

    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_bytes())
        tensors = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
        W_enc, b_enc = tensors["W_enc"], tensors["b_enc"]
        W_dec, b_dec = tensors["W_dec"], tensors["b_dec"]
        architecture = config.get("architecture", "standard")
        k = int(config["k"]) if architecture == "topk" else None
        threshold = tensors["threshold"] if architecture == "jumprelu" else None
    except FileNotFoundError as error:
        raise SaelinkError(f"{field}: {error.filename or folder} is missing; an SAE folder holds it") from None
    except (json.JSONDecodeError, UnicodeDecodeError, safetensors.SafetensorError, KeyError, TypeError) as error:
        raise SaelinkError(f"{field}: the SAE in {folder} can't be read ({error!r})") from None
    for name in ("normalize_activations", "reshape_activations"):
        if config.get(name) not in ("none", None, False):
            raise SaelinkError(f"{field}: the SAE in {folder} has {name}={config[name]}, which saelink does not read")
    # Before version 6 sae-lens kept TopK and the like as a "standard" SAE with another activation function.
    activation = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    if (architecture == "standard" and activation != "relu") or config.get("finetuning_scaling_factor"):
        raise SaelinkError(
            f"{field}: the SAE in {folder} is in an older SAELens format (activation {activation}), which saelink "
            "does not read; load and save it once with sae-lens 6"
        )
    if architecture not in ("standard", "topk", "jumprelu"):
        raise SaelinkError(
            f"{field}: the SAE in {folder} has architecture {architecture}; standard, topk, jumprelu work"
        )
    d_in, d_sae = W_enc.shape
    if W_dec.shape != (d_sae, d_in) or b_enc.shape != (d_sae,) or b_dec.shape != (d_in,):
        raise SaelinkError(f"{field}: the shapes of the weights in {folder / WEIGHTS_FILE} do not fit together")
    if config.get("apply_b_dec_to_input", True):
        b_enc = b_enc - b_dec @ W_enc
    if config.get("rescale_acts_by_decoder_norm"):
        norm = W_dec.norm(dim=1)
        W_enc, b_enc, W_dec = W_enc * norm, b_enc * norm, W_dec / norm[:, None]
    return SAE(W_enc, b_enc, W_dec, b_dec, k, threshold)


# --------------------------------------------------------------------------- which SAE a hook has


class SAEChoice(NamedTuple):
    """The SAE of a hook, before it is loaded or even trained."""

    key: str
    """Key of the `sae` artifact, or `folder:` and a hash of the files."""
    folder: Path | None
    """Where an existing one lies on disk; None for one that the `sae` stage makes, or that is on a hub."""
    about: str
    file: str | None = None
    """Its name in the hub repository, where it lies there."""

    @property
    def exists(self) -> bool:
        """Whether it need not be trained."""
        return self.folder is not None or self.file is not None


def sae_choice(cfg: Config, store: Store, hook_name: str) -> SAEChoice:
    """Which SAE reads `hook_name`: the folder of that name under `sae.path`, else one that saelink trains.

    Raises SaelinkError when the folder has none and `sae.train_missing` is false.
    """
    if cfg.sae.files:
        return _file_choice(cfg, hook_name)
    if cfg.sae.path is not None:
        inside = cfg.sae.path.startswith("package:")
        parent = Path(__file__).parent / cfg.sae.path.removeprefix("package:") if inside else Path(cfg.sae.path)
        folder = next((parent / name for name in _names(hook_name) if (parent / name).is_dir()), parent / hook_name)
        if (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file():
            return SAEChoice("folder:" + _folder_hash(folder), folder, cfg.sae.name)
        if not cfg.sae.train_missing:
            raise SaelinkError(
                f"sae.path={cfg.sae.path}: no {CONFIG_FILE} and {WEIGHTS_FILE} in {folder} for {hook_name}; "
                "sae.train_missing=true trains one"
            )
    return SAEChoice(sae_plan(cfg, store, hook_name).key, None, "trained")


def _file_choice(cfg: Config, hook_name: str) -> SAEChoice:
    """The file that `sae.files` names for a hook. Raises SaelinkError when it names none."""
    for name in _names(hook_name):
        _, layer, hook = name.split(".", 2)
        if hook in cfg.sae.files:
            file = cfg.sae.files[hook].replace("{layer}", layer)
            if cfg.sae.hub is None:
                path = Path(cfg.sae.path or ".") / file
                if not path.is_file():
                    raise SaelinkError(f"sae.path={cfg.sae.path}: there is no file {path} for {hook_name}")
                return SAEChoice("file:" + file_sha256(path)[:12], path, cfg.sae.name)
            return SAEChoice(f"hub:{cfg.sae.hub}@{hub_commit(cfg)}/{file}", None, cfg.sae.name, file)
    raise SaelinkError(
        f"sae.files: no file for {hook_name}; it has files for {', '.join(sorted(cfg.sae.files)) or 'no hook'}"
    )


_commits: dict[tuple[str, str | None], str] = {}


def hub_commit(cfg: Config) -> str:
    """The commit of sae.hub, looked up once per process."""
    repository, revision = cfg.sae.hub, cfg.sae.revision
    assert repository is not None
    if revision is not None and len(revision) == 40:
        return revision
    if (repository, revision) not in _commits:
        from huggingface_hub import HfApi

        with hub_errors("sae.hub", repository):
            _commits[repository, revision] = str(HfApi().model_info(repository, revision=revision).sha)
    return _commits[repository, revision]


def _names(hook_name: str) -> list[str]:
    """The hook's name, and for a resid_post the name the same tensor has in the next layer."""
    block, layer, name = hook_name.split(".", 2)
    return [hook_name, f"{block}.{int(layer) + 1}.hook_resid_pre"] if name == "hook_resid_post" else [hook_name]


def _folder_hash(folder: Path) -> str:
    """Short hash of what encoding depends on: the weights and the fields that say how they are used."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SaelinkError(f"sae.path: {folder / CONFIG_FILE} can't be read ({error})") from None
    fields = ("architecture", "k", "apply_b_dec_to_input", "rescale_acts_by_decoder_norm")
    used = json.dumps([config.get(name) for name in fields])
    return hashlib.sha256((used + file_sha256(folder / WEIGHTS_FILE)).encode()).hexdigest()[:12]


def pull_sae(cfg: Config, store: Store, hook_name: str) -> SAE:
    """Load the SAE of a hook, training it first when it has none. d_in is compared with the model's width."""
    choice = sae_choice(cfg, store, hook_name)
    acts = cache(cfg, store, [hook_name])[hook_name]
    if cfg.sae.files:
        where = f"sae.hub={cfg.sae.hub}" if choice.file is not None else f"sae.path={cfg.sae.path}"
        path = choice.folder if choice.file is None else _download(cfg, choice.file)
        assert path is not None
        sae = SAE(**read_learned_dict(path, where), k=None, threshold=None)
    elif choice.folder is not None:
        sae, where = load_sae(choice.folder), f"sae.path={cfg.sae.path}"
    else:
        artifact = train_sae(cfg, store, hook_name)
        for name in artifact.files:
            artifact.file(name)  # compared with the manifest before it is read
        sae, where = load_sae(artifact.path, "sae"), f"sae {artifact.key}"
    if sae.d_in != acts.facts["d_model"]:
        raise SaelinkError(
            f"{where}: the SAE for {hook_name} has d_in {sae.d_in}, the activations have {acts.facts['d_model']}; "
            "it belongs to another model (sae=train trains one for this model)"
        )
    return sae


def _download(cfg: Config, file: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    assert cfg.sae.hub is not None
    with hub_errors("sae.hub", cfg.sae.hub):
        try:
            return Path(hf_hub_download(cfg.sae.hub, file, revision=hub_commit(cfg)))
        except EntryNotFoundError:
            pass
    raise SaelinkError(f"sae.hub={cfg.sae.hub}: the repository has no file {file}")


# --------------------------------------------------------------------------- the stage


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
    d_model = acts.facts["d_model"]
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
