"""How large a model is, from its config alone: nothing of its weights is read or fetched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelink.config.schema import ModelConfig, ModelSource
from saelink.errors import SaelinkError
from saelink.memory import ModelSize
from saelink.model.completeness import check_sizes
from saelink.model.identity import model_folder
from saelink.store.artifact import Artifact

MOST_MODULES = 10**5
"""Blocks, times the experts of each: a model that is only counted takes memory for each of them."""


@dataclass(frozen=True)
class Dimensions:
    """The sizes that memory, disk and time follow from."""

    n_layers: int
    d_model: int
    d_mlp: int
    n_heads: int
    d_heads: int
    """All heads' outputs side by side."""
    vocabulary: int
    parameters: int
    block_parameters: int
    """Of one block."""
    parallel: bool = False
    """Whether attention and MLP read the same stream, side by side."""

    @property
    def size(self) -> ModelSize:
        """What its memory follows from."""
        return ModelSize(self.parameters, self.d_model, self.d_mlp, self.n_heads, self.vocabulary)

    @property
    def mlp_parameters(self) -> int:
        """Of one block's MLP, at most: what is not the attention's four matrices."""
        return max(self.block_parameters - 2 * self.d_model * self.d_heads, 1)

    def width(self, hook: str) -> int:
        """The width of a hook by its name inside the block."""
        if hook.startswith("attn.hook_"):
            return self.d_heads
        return self.d_mlp if hook.startswith("mlp.hook_") else self.d_model


def dimensions_of(cfg: ModelConfig, described: Artifact[Any] | None = None) -> Dimensions:
    """A model's dimensions: from the folder that its `model` artifact unpacked, its own or the hub's config.json.

    What model.dimensions says is taken where it is of this model.path: then nothing need be fetched. Raises
    SaelinkError where nothing says.
    """
    if described is not None and (described.path / "config.json").exists():
        return _read(str(described.path), {})
    if cfg.dimensions.get("of") == cfg.path:
        return _declared(cfg.dimensions)
    if cfg.source is ModelSource.hub:
        return _read(cfg.path, {"revision": cfg.revision})
    folder = model_folder(cfg)
    if cfg.parts:
        raise SaelinkError(f"model.dimensions: give the sizes of {cfg.path}, whose file comes in parts")
    return _read(str(folder), {"gguf_file": cfg.file} if cfg.file else {})


def _declared(facts: Mapping[str, Any]) -> Dimensions:
    d, heads = facts["d_model"], facts["n_heads"] * facts["d_head"]
    attention = 2 * d * heads + 2 * d * facts["n_kv_heads"] * facts["d_head"]
    block = attention + (3 if facts["gated"] else 2) * d * facts["d_mlp"]
    embedding = facts["vocabulary"] * d * (1 if facts["tied"] else 2)
    n = facts["n_layers"]
    return Dimensions(
        n, d, facts["d_mlp"], facts["n_heads"], heads, facts["vocabulary"], embedding + n * block, block,
        bool(facts["parallel"]),
    )  # fmt: skip


_known: dict[str, Dimensions] = {}


def _read(path: str, options: dict[str, Any]) -> Dimensions:
    """From a config: the model is made without any numbers in it, and its parameters are counted."""
    name = f"{path} {options}"
    if name not in _known:
        _known[name] = _counted(path, options)
    return _known[name]


def _counted(path: str, options: dict[str, Any]) -> Dimensions:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config: Any = AutoConfig.from_pretrained(path, trust_remote_code=False, **options)
        _check_modules(config.get_text_config())
        if Path(path).is_dir():
            check_sizes(f"model.path={path}", config, Path(path))
        with torch.device("meta"):
            empty: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # configs and the libraries that read them fail in every way
        raise SaelinkError(f"model.path={path}: its config can't be read or fetched ({_first_line(error)})") from None
    text = config.get_text_config()
    d, n_layers = int(text.hidden_size), int(text.num_hidden_layers)
    ends = {id(m.weight): m.weight.numel() for m in (empty.get_input_embeddings(), empty.get_output_embeddings()) if m}
    parameters = sum(parameter.numel() for parameter in empty.parameters())
    heads = int(getattr(text, "num_attention_heads", 0) or 1)
    d_head = int(getattr(text, "head_dim", 0) or d // heads)
    d_mlp = 4 * d
    for entry in ("intermediate_size", "ffn_dim", "n_inner"):
        with suppress(TypeError, ValueError):
            d_mlp = int(getattr(text, entry, None) or d_mlp)
    block = (parameters - sum(ends.values())) // n_layers
    beside = any(bool(getattr(text, entry, False)) for entry in ("use_parallel_residual", "parallel_attn"))
    return Dimensions(n_layers, d, d_mlp, heads, heads * d_head, int(text.vocab_size), parameters, block, beside)


def _check_modules(text: Any) -> None:
    """Raise ValueError for a config of more blocks, or experts in all of them, than it takes to be no model."""
    counts = [getattr(text, entry, None) or 1 for entry in ("num_hidden_layers", "num_experts", "num_local_experts")]
    modules = math.prod(count for count in counts if isinstance(count, int))
    if modules > MOST_MODULES:
        raise ValueError(f"it asks for {modules:,} blocks and experts")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def size_of(cfg: ModelConfig, described: Artifact[Any]) -> ModelSize:
    """What a described model takes. Where its config is not at hand any more, by its width and depth."""
    try:
        return dimensions_of(cfg, described).size
    except SaelinkError:
        facts = described.facts
        d, vocabulary = facts["d_model"], facts["vocabulary"]
        return ModelSize(facts["n_layers"] * 16 * d * d + 2 * vocabulary * d, d, 4 * d, max(d // 64, 1), vocabulary)
