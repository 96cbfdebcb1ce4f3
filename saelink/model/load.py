"""Tokenizer and model, as Hugging Face's own and as a TransformerBridge."""

from __future__ import annotations

import gc
import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

from saelink.config.schema import Config, ModelConfig, ModelSource
from saelink.errors import SaelinkError, reason_of
from saelink.fetch import hub_errors
from saelink.model.completeness import check_loaded, check_sizes, unused
from saelink.model.identity import check_identity, check_no_adapter, model_folder, model_identity
from saelink.model.info import ModelInfo
from saelink.model.probe import LONGEST_WINDOW, window_of
from saelink.model.remarks import quiet
from saelink.model.weights import center_writing_weights, permute_weights
from saelink.runtime import torch_dtype
from saelink.store.artifact import Artifact


def load_tokenizer(cfg: ModelConfig, info: Artifact | None = None, at: Path | None = None) -> Any:
    """The model's tokenizer; `info` is the `model` artifact, which holds it where the weights were a GGUF.

    `at` is the folder that a GGUF in parts was joined in.
    """
    from transformers import AutoTokenizer

    quiet()
    path, options = _location(cfg, info, at)
    with readable(cfg, "its tokenizer can't be read"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **options)
    if info is not None and path != str(info.path):
        check_identity(cfg, info.manifest["recipe"])
    return tokenizer


def uncompared_window(cfg: ModelConfig, info: Artifact) -> int | None:
    """The tokens that the model's attention sees back, where it was not compared with transformers past their end."""
    from transformers import AutoConfig

    path, options = _location(cfg, info)
    with readable(cfg, "its config can't be read"):
        window = window_of(AutoConfig.from_pretrained(path, trust_remote_code=False, **options))
    return window if window > LONGEST_WINDOW else None


@contextmanager
def readable(cfg: ModelConfig, problem: str) -> Iterator[None]:
    """One line that begins with `problem` for a model that the libraries can't read or run, whatever they raise."""
    where = f"model.path={cfg.path}: {problem}"
    try:
        with hub_errors("model.path", cfg.path) if cfg.source is ModelSource.hub else nullcontext():
            yield
    except Exception as error:  # configs, weights and the libraries that read them fail in every way; the line says why
        system = isinstance(error, OSError) and error.errno is not None  # a full disk, say: no fault of the model
        if isinstance(error, SaelinkError | MemoryError) or system:
            raise
        reason = reason_of(error)
        if "trust_remote_code" in str(error):
            reason = "it brings code of its own, which is never run; only architectures that transformers has are"
        elif isinstance(error, ImportError):
            reason = f"it needs a Python package that is not installed; {reason}"
        raise SaelinkError(f"{where} ({reason})") from None


def load_bridge(cfg: Config, info: ModelInfo, device: str) -> Any:
    """The model as a TransformerBridge on `device`: raw Hugging Face weights, nothing folded."""
    tokenizer, hf_model, _ = load_hf(cfg.model, info.artifact)
    return boot_bridge(cfg.model, tokenizer, hf_model.to(device))


def _location(cfg: ModelConfig, info: Artifact | None, at: Path | None = None) -> tuple[str, dict[str, Any]]:
    if cfg.source is ModelSource.hub:
        return cfg.path, {"revision": model_identity(cfg)["commit"]}
    if cfg.file is not None and info is not None:
        for name in info.files:
            info.file(name)  # compare what was unpacked with the manifest before using it
        return str(info.path), {}
    return str(at or model_folder(cfg)), {"gguf_file": cfg.file} if cfg.file else {}


class Loaded(NamedTuple):
    """What was read of a model."""

    tokenizer: Any
    hf_model: Any
    unused: str | None
    """What to say of tensors in its files that it has no place for."""


def load_hf(
    cfg: ModelConfig, info: Artifact | None = None, attention: str | None = None, at: Path | None = None
) -> Loaded:
    """Tokenizer and Hugging Face model, every tensor of it from its files.

    All stages use the attention implementation that the model was described with, which is noted in the `model`
    artifact `info`; without one it is `attention`, None for transformers' own choice. `at` is the folder that a GGUF in
    parts was joined in. Raises SaelinkError for a model that can't be read or lacks something.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    where = f"model.path={cfg.path}"
    tokenizer = load_tokenizer(cfg, info, at)
    path, options = _location(cfg, info, at)
    if cfg.source is ModelSource.hub and info is None:
        check_no_adapter(cfg, options["revision"])
    if cfg.source is not ModelSource.hub and "gguf_file" not in options:
        with readable(cfg, "its config can't be read"):
            check_sizes(where, AutoConfig.from_pretrained(path, trust_remote_code=False), Path(path))
    if info is not None:
        attention = info.facts["attention"]
    # The GGUF reader draws a progress bar of its own, and makes millions of objects that all stay: collecting
    # garbage meanwhile takes a third of its time and finds none.
    with readable(cfg, "its weights can't be read"), redirect_stderr(io.StringIO()), _no_garbage_collection():
        read: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch_dtype(cfg.dtype),
            attn_implementation=attention,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are named below
            output_loading_info=True,
            **options,
        )
    hf_model, loading = read
    if info is not None and path != str(info.path):
        check_identity(cfg, info.manifest["recipe"])
    check_loaded(where, hf_model, loading)
    return Loaded(tokenizer, _changed(cfg, info, hf_model).requires_grad_(False).eval(), unused(loading))


def _changed(cfg: ModelConfig, info: Artifact | None, hf_model: Any) -> Any:
    """With the weights that the settings ask for."""
    if not hf_model.config.architectures:  # a GGUF does not say
        hf_model.config.architectures = [type(hf_model).__name__]
    if cfg.file is not None and info is not None:  # from the artifact, whose weights are changed already
        return hf_model
    if cfg.center_writing_weights:
        center_writing_weights(hf_model)
    if cfg.random_mlp is not None:
        mlps = [module for name, module in hf_model.named_modules() if name.endswith(f".{cfg.random_mlp}.mlp")]
        if len(mlps) != 1:
            raise SaelinkError(f"model.random_mlp={cfg.random_mlp}: {cfg.path} has no MLP in such a block")
        permute_weights(mlps[0])
    return hf_model


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

    architecture = hf_model.config.architectures[0]
    if hf_model.config.get_text_config() is not hf_model.config and importlib.util.find_spec("torchvision") is None:
        raise SaelinkError(  # the bridge would install it
            f"model.path={cfg.path}: {architecture} reads more than text, for which torchvision is needed; install it, "
            "or take a model of text alone"
        )
    with readable(cfg, f"TransformerLens does not run {architecture}"):
        return TransformerBridge.boot_transformers(
            cfg.path, hf_model=hf_model, tokenizer=tokenizer, dtype=torch_dtype(cfg.dtype)
        )
