"""Tokenizer and model, as Hugging Face's own and as a TransformerBridge."""

from __future__ import annotations

import gc
import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

from saelink.config.schema import Config, ModelConfig, ModelSource
from saelink.errors import SaelinkError
from saelink.fetch import hub_errors
from saelink.model.identity import model_folder, model_identity
from saelink.model.info import ModelInfo
from saelink.model.weights import center_writing_weights, permute_weights
from saelink.runtime import torch_dtype
from saelink.store.artifact import Artifact


def _quiet() -> None:
    """Hugging Face's own progress bars and advice would run across ours."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def load_tokenizer(cfg: ModelConfig, info: Artifact | None = None) -> Any:
    """The model's tokenizer; `info` is the `model` artifact, which holds it where the weights were a GGUF."""
    from transformers import AutoTokenizer

    _quiet()
    path, options = _location(cfg, info)
    with _readable(cfg, "tokenizer"):
        return AutoTokenizer.from_pretrained(path, **options)


@contextmanager
def _readable(cfg: ModelConfig, what: str) -> Iterator[None]:
    """One line for a model that the libraries can't read: no tokenizer, no weights, unknown architecture."""
    try:
        with hub_errors("model.path", cfg.path):
            yield
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, SaelinkError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SaelinkError(f"model.path={cfg.path}: its {what} can't be read ({reason})") from None


def load_bridge(cfg: Config, info: ModelInfo, device: str) -> Any:
    """The model as a TransformerBridge on `device`: raw Hugging Face weights, nothing folded."""
    tokenizer, hf_model = load_hf(cfg.model, info.artifact)
    return boot_bridge(cfg.model, tokenizer, hf_model.to(device))


def _location(cfg: ModelConfig, info: Artifact | None) -> tuple[str, dict[str, Any]]:
    if cfg.source is ModelSource.hub:
        return cfg.path, {"revision": model_identity(cfg)["commit"]}
    if cfg.file is not None and info is not None:
        for name in info.files:
            info.file(name)  # compare what was unpacked with the manifest before using it
        return str(info.path), {}
    return str(model_folder(cfg)), {"gguf_file": cfg.file} if cfg.file else {}


def load_hf(cfg: ModelConfig, info: Artifact | None = None, attention: str | None = "eager") -> tuple[Any, Any]:
    """Tokenizer and Hugging Face model; the bridge needs eager attention, None is the model's own choice."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(cfg, info)
    path, options = _location(cfg, info)
    # The GGUF reader draws a progress bar of its own, and makes millions of objects that all stay: collecting
    # garbage meanwhile takes a third of its time and finds none.
    with _readable(cfg, "weights"), redirect_stderr(io.StringIO()), _no_garbage_collection():
        hf_model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch_dtype(cfg.dtype), attn_implementation=attention, **options
        )
    if not hf_model.config.architectures:  # a GGUF does not say
        hf_model.config.architectures = [type(hf_model).__name__]
    unpacked = cfg.file is not None and info is not None  # from the artifact, whose weights are changed already
    if cfg.center_writing_weights and not unpacked:
        center_writing_weights(hf_model)
    if cfg.random_mlp is not None and not unpacked:
        mlps = [module for name, module in hf_model.named_modules() if name.endswith(f".{cfg.random_mlp}.mlp")]
        if len(mlps) != 1:
            raise SaelinkError(f"model.random_mlp={cfg.random_mlp}: {cfg.path} has no MLP in such a block")
        permute_weights(mlps[0])
    return tokenizer, hf_model.requires_grad_(False).eval()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def boot_bridge(cfg: ModelConfig, tokenizer: Any, hf_model: Any) -> Any:
    """The TransformerBridge around a Hugging Face model, which it rebuilds: save the model before."""
    from transformer_lens.model_bridge import TransformerBridge

    with _readable(cfg, "architecture"):
        return TransformerBridge.boot_transformers(
            cfg.path, hf_model=hf_model, tokenizer=tokenizer, dtype=torch_dtype(cfg.dtype)
        )
