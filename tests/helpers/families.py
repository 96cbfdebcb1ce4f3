"""Tiny random models of many families, their norms' gains and biases not trivial, and where their blocks' parts are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from helpers.world import D_MODEL, WORDS, write_tokenizer

VOCABULARY = len(WORDS) + 2

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": D_MODEL, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.3, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
GROUPED = SHAPE | {"num_key_value_heads": 2}
HEADED = GROUPED | {"head_dim": 8}
SLIDING = HEADED | {"sliding_window": 20}
MIXED = SLIDING | {"layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = GROUPED | {"num_experts_per_tok": 2}
GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_embd": D_MODEL, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
FALCON = {name: SHAPE[name] for name in SHAPE if name not in ("intermediate_size", "max_position_embeddings")}
OPT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": D_MODEL, "ffn_dim": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "init_std": 0.3, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 1, "word_embed_proj_dim": D_MODEL,
}  # fmt: skip
NEO: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": D_MODEL, "num_layers": 2, "num_heads": 4, "window_size": 6,
    "max_position_embeddings": 64, "attention_types": [[["global", "local"], 1]], "initializer_range": 0.3,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
LATENT = SHAPE | {
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One family: its configuration, and where in transformers' own model a block's parts are."""

    config: str
    """Class in transformers."""
    settings: dict[str, Any] = field(default_factory=lambda: GROUPED)
    layers: str = "model.layers"
    attn: str | None = "self_attn"
    """What gives what attention adds to the stream, inside the layer; None where the blocks are not opened."""
    mlp: str | None = "mlp"
    scale: float = 1.0
    """What they give is multiplied by before it is added."""
    parallel: bool = False
    chained: bool = True
    """Whether the MLP is a chain of modules, so that effects through it can be measured."""
    attention: str = "sdpa"
    """Its attention in all stages."""
    refused: str | None = None
    """What is said of it, if it can't be used."""


POST_NORMS: dict[str, Any] = {"attn": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
GPT_PARTS: dict[str, Any] = {"layers": "transformer.h", "attn": "attn", "mlp": "mlp"}
FALCON_PARTS: dict[str, Any] = {"layers": "transformer.h", "attn": "self_attention", "mlp": "mlp"}
ELSE = "computes something else"
BIASED = FALCON | {"parallel_attn": False, "multi_query": False, "bias": True}

FAMILIES = {
    "gpt2": Family("GPT2Config", GPT, **GPT_PARTS),
    "neox": Family("GPTNeoXConfig", SHAPE, "gpt_neox.layers", "attention", parallel=True),
    "neox sequential": Family(
        "GPTNeoXConfig", SHAPE | {"use_parallel_residual": False}, "gpt_neox.layers", "attention"
    ),
    "llama": Family("LlamaConfig"),
    "mistral": Family("MistralConfig", GROUPED | {"sliding_window": 20}),
    "qwen2": Family("Qwen2Config"),
    "qwen3": Family("Qwen3Config", HEADED),
    "gemma": Family("GemmaConfig", HEADED),
    "gemma2": Family("Gemma2Config", SLIDING, **POST_NORMS, attention="eager"),
    "gemma3": Family("Gemma3TextConfig", MIXED, **POST_NORMS),
    "falcon": Family("FalconConfig", FALCON | {"multi_query": True}, **FALCON_PARTS, parallel=True),
    "falcon sequential": Family("FalconConfig", BIASED, **FALCON_PARTS),
    "falcon alibi": Family("FalconConfig", BIASED | {"alibi": True}, refused="two different models by its two ways"),
    "falcon new": Family(
        "FalconConfig", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}, refused="does not run Falcon"
    ),
    "cohere": Family("CohereConfig", refused=ELSE),
    "cohere2": Family("Cohere2Config", refused=ELSE),
    "hunyuan": Family("HunYuanDenseV1Config", HEADED, refused=ELSE),
    "opt": Family("OPTConfig", OPT, "model.decoder.layers", mlp="fc2"),
    "opt post-norm": Family("OPTConfig", OPT | {"do_layer_norm_before": False}, refused="does not run OPTForCausalLM"),
    "bloom": Family(
        "BloomConfig",
        {name: GPT[name] for name in GPT if name not in ("n_embd", "n_positions")} | {"hidden_size": D_MODEL},
        "transformer.h", "self_attention.dense", "mlp.dense_4h_to_h", attention="eager",
    ),
    "phi": Family("PhiConfig", SHAPE, parallel=True),
    "phi3": Family("Phi3Config"),
    "stablelm": Family("StableLmConfig"),
    "stablelm parallel": Family("StableLmConfig", GROUPED | {"use_parallel_residual": True}, parallel=True),
    "olmo": Family("OlmoConfig"),
    "olmo2": Family("Olmo2Config", **POST_NORMS),
    "olmoe": Family("OlmoeConfig", EXPERTS | {"num_experts": 4}),
    "mixtral": Family("MixtralConfig", EXPERTS | {"num_local_experts": 4}),
    "gptj": Family("GPTJConfig", GPT | {"rotary_dim": 4}, **GPT_PARTS, parallel=True),
    "gptneo": Family("GPTNeoConfig", NEO, **GPT_PARTS, attention="eager"),
    "codegen": Family("CodeGenConfig", GPT | {"rotary_dim": 4}, refused="does not run CodeGenForCausalLM"),
    "bert": Family("BertConfig", SHAPE | {"is_decoder": True}, refused="is not hook_resid_mid"),
    "bert both ways": Family("BertConfig", SHAPE, refused="no causal language model"),
    "granite": Family("GraniteConfig", GROUPED | {"residual_multiplier": 0.5}, scale=0.5, chained=False),
    "qwen3 experts": Family("Qwen3MoeConfig", HEADED | EXPERTS | {"num_experts": 4, "moe_intermediate_size": 32}),
    "smollm3": Family("SmolLM3Config"),
    "glm4": Family("Glm4Config", HEADED, attn="post_self_attn_layernorm", mlp="post_mlp_layernorm"),
    "mpt": Family(
        "MptConfig",
        {"vocab_size": VOCABULARY, "d_model": D_MODEL, "n_layers": 2, "n_heads": 4, "max_seq_len": 64,
         "expansion_ratio": 2, "initializer_range": 0.3},
        "transformer.blocks", "attn", "ffn.down_proj", attention="eager",
    ),
    "bigcode": Family("GPTBigCodeConfig", GPT, **GPT_PARTS),
    "starcoder2": Family("Starcoder2Config"),
    "openai gpt": Family(
        "OpenAIGPTConfig", {name: GPT[name] for name in GPT if "token_id" not in name}, refused="shows no hook_resid"
    ),
    "exaone4": Family("Exaone4Config", HEADED, **POST_NORMS),
    "nemotron": Family("NemotronConfig"),
    "gpt oss": Family("GptOssConfig", MIXED | EXPERTS | {"num_local_experts": 4}, attention="eager"),
    "deepseek3": Family("DeepseekV3Config", LATENT, attention="eager"),
    "mamba": Family(
        "MambaConfig",
        {name: SHAPE[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "initializer_range")}
        | {"state_size": 8, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
        "backbone.layers", None, None, attention="eager",
    ),
    "recurrent gemma": Family(
        "RecurrentGemmaConfig",
        HEADED | {"lru_width": D_MODEL, "attention_window_size": 6, "block_types": ["recurrent", "attention"]},
        attn=None, mlp=None,
    ),
}  # fmt: skip


def write_family(family: Family, folder: Path, seed: int = 0) -> Path:
    """A model folder of the family, with the small world's tokenizer."""
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, family.config)(**family.settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # gains and biases, which begin as 1 and 0
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder
