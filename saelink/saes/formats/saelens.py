"""SAELens: `cfg.json` and `sae_weights.safetensors`, as any version of it wrote them; its transcoders too."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelink.saes.formats.base import UnreadableError, with_unit_decoder, without_b_dec
from saelink.saes.sae import INPUT_NORMS, SAE

if TYPE_CHECKING:
    import torch


CONFIG_FILE = "cfg.json"

WEIGHTS_FILE = "sae_weights.safetensors"

FOLDERS = [(CONFIG_FILE, WEIGHTS_FILE)]

SCALE_FILE = "activation_scaler.json"
"""What a checkpoint from the middle of a training has beside it: the number that its inputs are multiplied by."""

BESIDE = (SCALE_FILE,)

UNREAD = (
    "sparsity.safetensors", "runner_cfg.json", "trainer_state.pt", "activations_store_state.safetensors",
    "log_feature_sparsity.safetensors",
)  # fmt: skip
"""What may lie beside it too: counts, the run's settings, the optimiser. Encoding depends on none of it."""

DESCRIPTIVE = ("metadata", "dtype", "device", "sae_lens_version", "sae_lens_training_version")

ABOUT = (
    "hook_name", "hook_name_out", "hook_head_index", "neuronpedia_id", "prepend_bos", "context_size", "dataset_path",
    "model_name", "model_from_pretrained_kwargs", "norm_scaling_factor",
)  # fmt: skip

OLD_NAMES = {
    "hook_point": "hook_name",
    "activation_fn_str": "activation_fn",
    "hook_point_head_index": "hook_head_index",
}


def read(folder: Path) -> SAE:
    from safetensors.torch import load_file

    config = json.loads((folder / CONFIG_FILE).read_bytes())
    return from_state(config, load_file(folder / WEIGHTS_FILE), _saved_scale(folder))


def beside(folder: Path) -> list[float]:
    """What its identity has beside configuration and weights. Raises UnreadableError without a scale it needs."""
    config = modern(json.loads((folder / CONFIG_FILE).read_bytes()))
    saved = _saved_scale(folder)
    _scale(config, saved)
    return [] if saved is None else [saved]


def _saved_scale(folder: Path) -> float | None:
    """The number in SCALE_FILE: None without the file, and in a finished SAE's, whose weights hold it."""
    path = folder / SCALE_FILE
    if not path.is_file():
        return None
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict) or "scaling_factor" not in found:
        raise UnreadableError(f"has a {SCALE_FILE} without a scaling_factor")
    if found.get("has_whitening"):
        raise UnreadableError(
            "was saved while its inputs were whitened (activation_whitening.safetensors); a scale works"
        )
    scale = found["scaling_factor"]
    if scale is not None and (
        isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf
    ):
        raise UnreadableError(f"has scaling_factor={scale!r} in {SCALE_FILE}, which is no number above 0")
    return None if scale is None else float(scale)


def _scale(config: dict[str, Any], saved: float | None) -> float | None:
    """What inputs are to be multiplied by, of a `modern` configuration; None for an SAE that reads them as they are.

    Raises UnreadableError where that is not known.
    """
    named = config["metadata"].get("norm_scaling_factor")
    if config.get("normalize_activations") != "expected_average_only_in":
        if saved is not None:
            raise UnreadableError(
                f"has {SCALE_FILE} with {saved:g}, but normalize_activations={config.get('normalize_activations')}"
            )
        return None
    if named is None and saved is None:
        raise UnreadableError(
            "has normalize_activations=expected_average_only_in and no factor: what its inputs are multiplied by is to "
            f"stand in {SCALE_FILE} (scaling_factor) or in {CONFIG_FILE} (metadata.norm_scaling_factor); where the "
            "weights hold it already, normalize_activations is none"
        )
    if named is not None and saved is not None and not math.isclose(named, saved, rel_tol=1e-6):
        raise UnreadableError(f"has two factors, {named:g} in {CONFIG_FILE} and {saved:g} in {SCALE_FILE}")
    return named if saved is None else saved


def modern(config: dict[str, Any]) -> dict[str, Any]:
    """A version 6 configuration from one of any version: flat ones become nested, TopK gets a name of its own."""
    config = {OLD_NAMES.get(name, name): value for name, value in config.items()}
    metadata = dict(config.get("metadata") or {})
    flat = {name: config[name] for name in ABOUT if config.get(name) is not None and name not in metadata}
    config["metadata"] = metadata | flat
    arguments = config.get("activation_fn_kwargs") or {}
    if config.get("architecture", "standard") == "standard" and config.get("activation_fn") == "topk":
        config |= {"architecture": "topk", "k": arguments.get("k", config.get("k"))}
    if isinstance(config.get("normalize_activations"), bool):
        config["normalize_activations"] = "expected_average_only_in" if config["normalize_activations"] else "none"
    return config


def from_state(config: dict[str, Any], tensors: dict[str, torch.Tensor], saved_scale: float | None = None) -> SAE:
    """An SAE from its configuration and weights, in float32; `saved_scale` is what SCALE_FILE says.

    Raises UnreadableError for what is not supported.
    """
    import torch

    config = modern(config)
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    architecture = config.get("architecture", "standard")
    parts = architecture.replace("_transcoder", "").replace("transcoder", "standard")
    transcodes = "transcoder" in architecture
    parts = {"skip": "standard", "jumprelu_skip": "jumprelu"}.get(parts, parts)
    if parts not in ("standard", "topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "gated"):
        raise UnreadableError(
            f"has architecture {architecture}; standard, topk, batchtopk, matryoshka_batchtopk, jumprelu, gated and "
            "their transcoders work"
        )
    activation = config.get("activation_fn") or "relu"
    if activation not in ("relu", "topk"):
        raise UnreadableError(f"has activation {activation}; relu and topk work")
    W_enc, W_dec, b_dec = tensors["W_enc"], tensors["W_dec"], tensors["b_dec"]
    norm = config.get("normalize_activations") or "none"
    scale = _scale(config, saved_scale)
    if scale is not None:  # training multiplied its inputs by one number, which goes into the weights
        norm = "none"
        W_enc, W_dec, b_dec = W_enc * scale, W_dec / scale, b_dec / scale
    if norm not in INPUT_NORMS:
        raise UnreadableError(
            f"has normalize_activations={norm}; {', '.join(INPUT_NORMS)} and expected_average_only_in work"
        )
    threshold = None
    if parts == "gated":
        # gate = x W + b_gate > 0 and magnitude = e^r (x W) + b_mag: with e^r > 0 the gate says magnitude > threshold.
        r = tensors["r_mag"].exp()
        shift = -without_b_dec(W_enc, torch.zeros_like(r), b_dec) if config.get("apply_b_dec_to_input", True) else 0.0
        gate, b_enc = tensors["b_gate"] - shift, tensors["b_mag"] - shift * r
        W_enc, threshold = W_enc * r, b_enc - gate * r
    else:
        b_enc = tensors["b_enc"]
        if config.get("apply_b_dec_to_input", True) and not transcodes:
            b_enc = without_b_dec(W_enc, b_enc, b_dec)
    if config.get("rescale_acts_by_decoder_norm"):
        W_enc, b_enc, W_dec = with_unit_decoder(W_enc, b_enc, W_dec)
    if parts == "jumprelu":
        # Saved while it was trained it is a logarithm.
        threshold = tensors["threshold"] if "threshold" in tensors else tensors["log_threshold"].exp()
    elif parts in ("batchtopk", "matryoshka_batchtopk"):  # saved while it was trained
        threshold = tensors["topk_threshold"].reshape(1).expand_as(b_enc).contiguous()
    W_dec = _finetuned(W_dec, config, tensors)
    k = int(config["k"]) if parts == "topk" else None
    skip = tensors["W_skip"].T.contiguous() if "skip" in architecture else None
    about = {name: value for name, value in config["metadata"].items() if name in ABOUT and value is not None}
    if transcodes:
        about.setdefault("hook_name_out", "")
    return SAE(W_enc, b_enc, W_dec, b_dec, k, threshold, norm, skip, about)


def _finetuned(W_dec: torch.Tensor, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The decoder with the scaling of finetuning in it: latents are read before it, the decoder sees them after."""
    factor = tensors.get("scaling_factor", tensors.get("finetuning_scaling_factor"))
    if factor is None:
        return W_dec
    if not config.get("finetuning_scaling_factor") and not bool((factor == 1).all()):
        raise UnreadableError("has a scaling_factor that its cfg.json does not speak of (finetuning_scaling_factor)")
    return W_dec * factor[:, None]
