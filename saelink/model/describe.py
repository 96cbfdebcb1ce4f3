"""The stage `model`, the first of all: weights identified by content, a GGUF unpacked, hooks found.

It writes down what later stages ask without loading the model: layers, width, context, hooks. A GGUF file is unpacked
once into an ordinary folder, because reading one takes ten times as long as the model itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from saelink.config.schema import Config, DType, ModelConfig
from saelink.model.identity import model_folder, model_identity
from saelink.model.info import ModelInfo
from saelink.model.load import boot_bridge, load_hf
from saelink.model.probe import Place, places_of_hooks, tensors_inside
from saelink.store.draft import Draft
from saelink.store.recipe import Plan
from saelink.store.store import Store

VERSION = 2

_infos: dict[tuple[str, str], ModelInfo] = {}


def model_info(cfg: Config, store: Store) -> ModelInfo:
    """Pull the `model` stage: identify the weights, unpack a GGUF, note what is known of the model."""
    recipe = dict(model_identity(cfg.model))
    if cfg.model.random_mlp is not None:
        recipe["random_mlp"] = cfg.model.random_mlp
    if cfg.model.center_writing_weights:
        recipe["center_writing_weights"] = True
    plan = Plan("model", VERSION, recipe, {}, cfg.model.label)
    known = _infos.get((str(store.root), plan.key))
    if known is not None and known.artifact.path.exists():
        return known
    artifact = store.find(plan) or store.build(plan, lambda draft: _describe(cfg.model, draft, store))
    facts = artifact.facts
    info = ModelInfo(
        artifact=artifact,
        n_layers=facts["n_layers"],
        d_model=facts["d_model"],
        context_size=facts["context_size"],
        parallel=facts["parallel"],
        hooks=frozenset(artifact.json("hooks.json")),
        places={name: Place(*place) for name, place in artifact.json("places.json").items()},
    )
    _infos[str(store.root), plan.key] = info
    return info


def _describe(cfg: ModelConfig, draft: Draft, store: Store) -> dict[str, Any]:
    if cfg.file is not None:
        size = (model_folder(cfg) / cfg.file).stat().st_size
        store.observer.say(f"model {draft.plan.key}: unpacking {cfg.file} once (about {size * 7 / 1e9:.1f} GB)")
        store.need_space(f"model: unpacking {cfg.file}", size * 7)
    tokenizer, hf_model = load_hf(replace(cfg, dtype=DType.float32))  # one key for all types: unpack without rounding
    if cfg.file is not None:
        # What was read is plain float32 now; the model still calls itself quantised and would refuse to be saved.
        hf_model.hf_quantizer = None
        hf_model.is_quantized = False
        del hf_model.config.quantization_config
        hf_model.save_pretrained(draft.folder)
        tokenizer.save_pretrained(draft.folder)
        for path in sorted(draft.folder.iterdir()):
            draft.adopt(path.name)
    inside = tensors_inside(hf_model)  # before the bridge rebuilds the model
    bridge = boot_bridge(cfg, tokenizer, hf_model)
    draft.save_json("hooks.json", sorted(bridge.hook_dict))
    draft.save_json("places.json", places_of_hooks(bridge, inside))
    context = getattr(hf_model.config, "max_position_embeddings", None) or getattr(hf_model.config, "n_positions", None)
    return {
        "n_layers": bridge.cfg.n_layers,
        "d_model": bridge.cfg.d_model,
        "context_size": context,
        "parallel": bool(bridge.cfg.parallel_attn_mlp),
        "architecture": hf_model.config.architectures[0],
    }
