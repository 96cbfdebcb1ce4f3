"""The stage `model`, the first of all: weights identified by content, a GGUF unpacked, hooks found and compared.

It writes down what later stages ask without loading the model: layers, width, context, hooks. A GGUF file is unpacked
once into an ordinary folder, because reading one takes ten times as long as the model itself. A model whose numbers are
not all from its files, or of which the TransformerBridge says something else than Hugging Face's own, is refused.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from saelink import memory
from saelink.config.schema import Config, DType, ModelConfig
from saelink.errors import SaelinkError
from saelink.model.agreement import DisagreementError, Hooks, check_answers, check_attention, compare
from saelink.model.completeness import check_finite
from saelink.model.dimensions import dimensions_of
from saelink.model.identity import check_identity, model_files, model_identity
from saelink.model.info import ModelInfo
from saelink.model.load import boot_bridge, load_hf, readable
from saelink.model.parts import joined
from saelink.model.probe import Inside, Place, context_of, look_inside, n_tokens
from saelink.model.remarks import remarks
from saelink.store.draft import Draft
from saelink.store.recipe import Plan
from saelink.store.stage import Need, promised
from saelink.store.store import Store

VERSION = 3

_infos: dict[tuple[str, str], ModelInfo] = {}


def model_plan(cfg: Config) -> Plan:
    """What names the `model` artifact; the weights are identified, and nothing more is read of them."""
    recipe = dict(model_identity(cfg.model))
    if cfg.model.random_mlp is not None:
        recipe["random_mlp"] = cfg.model.random_mlp
    if cfg.model.center_writing_weights:
        recipe["center_writing_weights"] = True
    return Plan("model", VERSION, recipe, {}, cfg.model.label)


def model_info(cfg: Config, store: Store) -> ModelInfo:
    """Pull the `model` stage: identify the weights, unpack a GGUF, note what is known of the model."""
    plan = model_plan(cfg)
    known = _infos.get((str(store.root), plan.key))
    if known is not None and known.artifact.path.exists():
        return known
    artifact = store.find(plan)
    if artifact is None:
        promised(store, f"model: {cfg.model.label}", _need(cfg.model))
        artifact = store.build(plan, lambda draft: _describe(cfg.model, draft, store))
    facts = artifact.facts
    info = ModelInfo(
        artifact=artifact,
        n_layers=facts["n_layers"],
        d_model=facts["d_model"],
        context_size=facts["context_size"],
        parallel=facts["parallel"],
        hooks=frozenset(artifact.json("hooks.json")),
        places={name: Place(*place) for name, place in artifact.json("places.json").items()},
        refused=artifact.json("refused.json"),
        vocabulary=facts["vocabulary"],
    )
    _infos[str(store.root), plan.key] = info
    return info


def _need(cfg: ModelConfig) -> Need | None:
    """What describing it takes, where its size is known beforehand."""
    if cfg.file is not None and cfg.dimensions.get("of") != cfg.path:  # reading its config takes as long as all of it
        parameters = _file_bytes(cfg) * 7 // 4
        return Need(memory.LIBRARIES + 12.0 * parameters, "use a smaller model")
    try:
        return Need(memory.model(dimensions_of(cfg).size), "use a smaller model")
    except SaelinkError:  # what is wrong with it gets its own line when it is loaded
        return None


def _describe(cfg: ModelConfig, draft: Draft, store: Store) -> dict[str, Any]:
    if cfg.file is not None:
        size = _file_bytes(cfg)
        store.observer.say(f"model {draft.plan.key}: unpacking {cfg.file} once (about {size * 7 / 1e9:.1f} GB)")
        store.need_space(f"model: unpacking {cfg.file}", size * 8 if cfg.parts else size * 7)
    cfg = replace(cfg, dtype=DType.float32)  # one key for all types: unpack without rounding, compare without rounding
    with _in_one_piece(cfg, draft) as at, remarks() as lines:
        tokenizer, hf_model, unused = load_hf(cfg, at=at)
        check_identity(cfg, draft.plan.recipe)
        check_finite(f"model.path={cfg.path}", hf_model)
        if cfg.file is not None:
            _unpack(hf_model, tokenizer, draft)
        facts, hooks = _tried(cfg, tokenizer, hf_model, at)
    for line in [*([] if unused is None else [unused]), *(f"remark of a library: {line}" for line in lines)]:
        store.observer.say(f"model {draft.plan.key}: {line}")
    draft.save_json("hooks.json", hooks.names)
    draft.save_json("places.json", hooks.places)
    draft.save_json("refused.json", hooks.refused)
    return facts


def _file_bytes(cfg: ModelConfig) -> int:
    """How large model.file is, in one piece or in parts."""
    return sum(path.stat().st_size for path in model_files(cfg))


def _in_one_piece(cfg: ModelConfig, draft: Draft) -> AbstractContextManager[Path | None]:
    """The folder, inside the draft, that a file in parts is joined in for as long as it is read; None for others."""
    if cfg.file is None or not cfg.parts:
        return nullcontext()
    return joined(model_files(cfg), draft.folder / "joined", cfg.file, draft.plan.recipe["file"])


def _unpack(hf_model: Any, tokenizer: Any, draft: Draft) -> None:
    """Into a folder. What was read is plain float32; the model calls itself quantised and would refuse to be saved."""
    hf_model.hf_quantizer = None
    hf_model.is_quantized = False
    del hf_model.config.quantization_config
    hf_model.save_pretrained(draft.folder)
    tokenizer.save_pretrained(draft.folder)
    for path in sorted(path for path in draft.folder.iterdir() if path.is_file()):
        draft.adopt(path.name)


def _tried(cfg: ModelConfig, tokenizer: Any, hf_model: Any, at: Path | None) -> tuple[dict[str, Any], Hooks]:
    """What a few tokens show of the model: its facts, and the hooks where the bridge agrees with it.

    Its attention is transformers' own choice. Where the bridge agrees only with `eager`, it is that in all stages, if
    the model says the same by both.
    """
    where = f"model.path={cfg.path}"
    attention = hf_model.config._attn_implementation  # noqa: SLF001 (there is no other word for it)
    inside = _looked_at(cfg, hf_model)
    check_answers(where, inside)
    facts = {"vocabulary": n_tokens(hf_model), "context_size": context_of(hf_model)}
    try:
        bridge, hooks = _bridged(cfg, tokenizer, hf_model, inside)
    except DisagreementError as disagreement:
        if attention == "eager":
            raise
        hf_model = load_hf(cfg, attention="eager", at=at).hf_model
        eager = _looked_at(cfg, hf_model)
        check_attention(where, attention, inside, eager)
        try:
            bridge, hooks = _bridged(cfg, tokenizer, hf_model, eager)
        except SaelinkError:
            raise disagreement from None
        attention = "eager"
    return facts | {
        "n_layers": bridge.cfg.n_layers,
        "d_model": bridge.cfg.d_model,
        "parallel": bool(bridge.cfg.parallel_attn_mlp),
        "architecture": hf_model.config.architectures[0],
        "attention": attention,
    }, hooks


def _looked_at(cfg: ModelConfig, hf_model: Any) -> Inside:
    with readable(cfg, "a forward pass fails"):
        return look_inside(hf_model)


def _bridged(cfg: ModelConfig, tokenizer: Any, hf_model: Any, inside: Inside) -> tuple[Any, Hooks]:
    """The bridge around the model, which it rebuilds, and its hooks that agree with what was seen before."""
    bridge = boot_bridge(cfg, tokenizer, hf_model)
    with readable(cfg, f"TransformerLens does not run {bridge.cfg.architecture}"):
        return bridge, compare(f"model.path={cfg.path}", bridge, inside)
