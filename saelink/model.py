"""The language model: where its weights come from, what is known of it, and its hooks.

The stage `model` is the first of the pull. It identifies the weights by content (sha256, or a hub commit) and
writes down what later stages ask without loading them: layers, width, context, hooks. A GGUF file is also
unpacked once into an ordinary folder, because reading one takes ten times as long as the model itself.
"""

from __future__ import annotations

import gc
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from saelink.config import Config, Device, DType, ModelConfig, ModelSource
from saelink.store import Artifact, Draft, Plan, SaelinkError, Store, file_sha256

if TYPE_CHECKING:
    import torch

VERSION = 2

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".json", ".model", ".txt")


# --------------------------------------------------------------------------- numerics


def device_of(cfg: Config) -> str:
    """`cpu` or `cuda`; also sets threads and float32 products that are float32 (no TF32, no bfloat16 passes).

    Raises SaelinkError for CUDA that isn't there.
    """
    import torch

    torch.set_float32_matmul_precision("highest")
    if cfg.runtime.threads is not None:
        torch.set_num_threads(cfg.runtime.threads)
    if cfg.runtime.device is Device.auto:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if cfg.runtime.device is Device.cuda and not torch.cuda.is_available():
        raise SaelinkError("runtime.device=cuda: torch finds no CUDA device; use runtime.device=cpu or auto")
    return cfg.runtime.device.name


def torch_dtype(dtype: DType) -> torch.dtype:
    import torch

    return {DType.float32: torch.float32, DType.bfloat16: torch.bfloat16}[dtype]


# --------------------------------------------------------------------------- where it is


def wheel_folder(package: str, install: str | None, field: str) -> Path:
    """Folder of an installed package, found without importing it."""
    import importlib.util

    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        how = f": install it with `{install}`" if install else ""
        raise SaelinkError(f"{field}={package}: this Python package is not installed{how}")
    return Path(spec.submodule_search_locations[0])


@contextmanager
def hub_errors(field: str, repository: str, pinned: str | None = None) -> Iterator[None]:
    """Turn the many ways in which a hub can't be reached, or lacks something, into one line.

    `pinned` is how one names a commit there, unless it is by the group's own `revision`.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        yield
    except RepositoryNotFoundError:
        raise SaelinkError(
            f"{field}={repository}: the hub has no such repository, or it needs a login (HF_TOKEN)"
        ) from None
    except Exception as error:
        if not of_the_network(error):
            raise
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        pinned = pinned or f"{field.split('.')[0]}.revision=<40 digits>"
        raise SaelinkError(
            f"{field}={repository}: {endpoint} can't be reached or refuses this repository; check the network, or name "
            f"a commit that was fetched before ({pinned}), a local copy or the offline default"
        ) from None


def of_the_network(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, comes from the hub's client or the HTTP library under it.

    By the name of its package, because which HTTP library that is has changed from version to version.
    """
    if error is None:
        return False
    package = type(error).__module__.split(".")[0]
    network = package in ("huggingface_hub", "httpx", "httpx2", "httpcore", "requests", "urllib3")
    return network or isinstance(error, ConnectionError) or of_the_network(error.__cause__ or error.__context__)


_fingerprints: dict[str, dict[str, Any]] = {}


def _fingerprint(cfg: ModelConfig) -> dict[str, Any]:
    """What identifies the weights: contents, never names or times. Taken once per process."""
    where = repr((cfg.source, cfg.path, cfg.file, cfg.revision))
    if where not in _fingerprints:
        _fingerprints[where] = _take_fingerprint(cfg)
    return _fingerprints[where]


def _take_fingerprint(cfg: ModelConfig) -> dict[str, Any]:
    if cfg.source is ModelSource.hub:
        from huggingface_hub import HfApi

        if cfg.revision and len(cfg.revision) == 40:
            return {"hub": cfg.path, "commit": cfg.revision}
        with hub_errors("model.path", cfg.path):
            return {"hub": cfg.path, "commit": HfApi().model_info(cfg.path, revision=cfg.revision).sha}
    folder = folder_of(cfg)
    if cfg.file is not None:
        return {"file": file_sha256(folder / cfg.file)}
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in WEIGHT_SUFFIXES and path.is_file():
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return {"folder": digest.hexdigest()}


def folder_of(cfg: ModelConfig) -> Path:
    """Folder of a model from a wheel or from disk. Raises SaelinkError when it, or its file, is missing."""
    if cfg.source is ModelSource.wheel:
        folder = wheel_folder(cfg.path, cfg.install, "model.path")
    else:
        folder = Path(cfg.path)
        if not folder.is_dir():
            raise SaelinkError(f"model.path={cfg.path}: there is no such folder")
    wanted = cfg.file or "config.json"
    if not (folder / wanted).is_file():
        field = f"model.file={cfg.file}" if cfg.file else f"model.path={cfg.path}"
        raise SaelinkError(f"{field}: {folder} has no {wanted}")
    return folder


# --------------------------------------------------------------------------- the stage


class Place(NamedTuple):
    """A tensor in the Hugging Face model: what a module is given, or what it gives."""

    module: str
    """Its name, `*` for the layer."""
    side: str
    """`input` or `output`."""


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without loading it."""

    artifact: Artifact
    n_layers: int
    d_model: int
    context_size: int | None
    """Longest context the model takes, in tokens; None when its config doesn't say."""
    parallel: bool
    """Whether attention and MLP read the same residual stream, side by side."""
    hooks: frozenset[str]
    places: dict[str, Place]
    """Where in the Hugging Face model a block's hooks are, by the hook's name inside the block."""

    def place(self, hook_name: str) -> Place | None:
        """Where in the Hugging Face model `blocks.<layer>.<name>` is; None where only the bridge knows."""
        _, layer, name = hook_name.split(".", 2)
        place = self.places.get(name)
        return None if place is None else place._replace(module=place.module.replace("*", layer))

    def hook(self, name: str, layer: int) -> str:
        """Full name of a link's hook at `layer`; `mlp_in` is resid_pre in parallel blocks, else resid_mid.

        resid_pre goes by the name of the same tensor in the layer before, resid_post, so that both share artifacts.

        Raises SaelinkError when the layer or the hook does not exist.
        """
        if not layer < self.n_layers:
            raise SaelinkError(f"layer={layer}: the model has layers 0 to {self.n_layers - 1}")
        if name == "mlp_in":
            name = "hook_resid_pre" if self.parallel else "hook_resid_mid"
        if name == "hook_resid_pre" and layer > 0:
            name, layer = "hook_resid_post", layer - 1
        full = f"blocks.{layer}.{name}"
        if full not in self.hooks:
            known = sorted(hook.split(".", 2)[2] for hook in self.hooks if hook.startswith(f"blocks.{layer}.hook_"))
            raise SaelinkError(f"link: the model has no hook {full}; block hooks here: {', '.join(known)}, mlp_in")
        return full


_infos: dict[tuple[str, str], ModelInfo] = {}


def model_info(cfg: Config, store: Store) -> ModelInfo:
    """Pull the `model` stage: identify the weights, unpack a GGUF, note what is known of the model."""
    recipe = dict(_fingerprint(cfg.model))
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
        size = (folder_of(cfg) / cfg.file).stat().st_size
        store.say(f"model {draft.plan.key}: unpacking {cfg.file} once (about {size * 7 / 1e9:.1f} GB)")
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
    inside = _inside(hf_model)  # before the bridge rebuilds the model
    bridge = _boot(cfg, tokenizer, hf_model)
    draft.save_json("hooks.json", sorted(bridge.hook_dict))
    draft.save_json("places.json", _places(bridge, inside))
    context = getattr(hf_model.config, "max_position_embeddings", None) or getattr(hf_model.config, "n_positions", None)
    return {
        "n_layers": bridge.cfg.n_layers,
        "d_model": bridge.cfg.d_model,
        "context_size": context,
        "parallel": bool(bridge.cfg.parallel_attn_mlp),
        "architecture": hf_model.config.architectures[0],
    }


# --------------------------------------------------------------------------- loading it


def _quiet() -> None:
    """Hugging Face's own progress bars and advice would run across ours."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()


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
    return _boot(cfg.model, tokenizer, hf_model.to(device))


def _location(cfg: ModelConfig, info: Artifact | None) -> tuple[str, dict[str, Any]]:
    if cfg.source is ModelSource.hub:
        return cfg.path, {"revision": _fingerprint(cfg)["commit"]}
    if cfg.file is not None and info is not None:
        for name in info.files:
            info.file(name)  # compare what was unpacked with the manifest before using it
        return str(info.path), {}
    return str(folder_of(cfg)), {"gguf_file": cfg.file} if cfg.file else {}


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


# --------------------------------------------------------------------------- its hooks


def load_forward(
    cfg: Config, info: ModelInfo, hook_names: Iterable[str], device: str
) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """A function from token ids [n, context] to the acts [n, context, d_model] at the hooks.

    It stops behind the last of them. Where Hugging Face's own modules hold them, these run alone, with the attention
    kernel of torch; otherwise the TransformerBridge, whose attention forms the whole matrix of scores.
    """

    wanted = {hook: info.place(hook) for hook in hook_names}
    if any(place is None for place in wanted.values()):
        bridge = load_bridge(cfg, info, device)
        stop_at_layer = max(int(hook.split(".")[1]) for hook in wanted) + 1

        def through_bridge(ids: torch.Tensor) -> dict[str, torch.Tensor]:
            _, seen = bridge.run_with_cache(ids, names_filter=list(wanted), stop_at_layer=stop_at_layer)
            return {hook: seen[hook] for hook in wanted}

        return through_bridge
    _, hf_model = load_hf(cfg.model, info.artifact, attention=None)
    hf_model.to(device)
    seen: dict[str, torch.Tensor] = {}
    modules = dict(hf_model.named_modules())
    for hook, place in wanted.items():
        assert place is not None

        def keep(tensor: torch.Tensor, hook: str = hook) -> None:
            seen[hook] = tensor
            if len(seen) == len(wanted):
                raise SeenError

        listen(modules[place.module], place.side, keep)

    def forward(ids: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.clear()
        with suppress(SeenError):
            hf_model(ids, use_cache=False)
        return dict(seen)

    return forward


class SeenError(Exception):
    """All hooks have been seen: the rest of the forward pass is not wanted."""


def listen(module: Any, side: str, keep: Callable[[Any], None]) -> Any:
    """Call `keep` with the first thing that the module is given, or that it gives; the handle that ends it."""

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(next(iter((*args, *kwargs.values())), None))

    def after(_: Any, args: Any, out: Any) -> None:
        keep(out[0] if isinstance(out, tuple) else out)

    if side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


PROBE_TOKENS = 8
"""Length of the sequence by which the hooks are found in the Hugging Face model."""

FOUND = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")
"""The hooks of a block that are looked for there."""


def _inside(hf_model: Any) -> dict[Place, dict[int, torch.Tensor]]:
    """What every layer's modules are given and give on a few tokens, where it is as wide as the residual stream."""
    import torch

    found: dict[Place, dict[int, torch.Tensor]] = {}
    shape = (1, PROBE_TOKENS, getattr(hf_model.config.get_text_config(), "hidden_size", None))

    def keep_at(place: Place, layer: int) -> Callable[[Any], None]:
        def keep(tensor: Any) -> None:
            if isinstance(tensor, torch.Tensor) and tensor.shape == shape:
                found.setdefault(place, {})[layer] = tensor.clone()

        return keep

    handles = []
    for name, module in hf_model.named_modules():
        inside = re.match(r"(.*?\.)(\d+)(\..*|$)", name)
        if inside is not None:
            module_name = f"{inside[1]}*{inside[3]}"
            for side in ("input", "output"):
                handles.append(listen(module, side, keep_at(Place(module_name, side), int(inside[2]))))
    with torch.inference_mode():
        hf_model(torch.arange(PROBE_TOKENS)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def _places(bridge: Any, inside: dict[Place, dict[int, torch.Tensor]]) -> dict[str, Place]:
    """The hooks of FOUND whose tensor is the same one in every layer's place in the Hugging Face model."""
    import torch

    names = [f"blocks.{layer}.{name}" for layer in range(bridge.cfg.n_layers) for name in FOUND]
    with torch.inference_mode():
        _, seen = bridge.run_with_cache(torch.arange(PROBE_TOKENS)[None], names_filter=names, return_cache_object=False)

    def same(layer: int, name: str, tensors: dict[int, torch.Tensor]) -> bool:
        hook, tensor = seen.get(f"blocks.{layer}.{name}"), tensors.get(layer)
        if hook is None or tensor is None or hook.shape != tensor.shape:
            return False
        return bool((hook - tensor).norm() <= 1e-4 * hook.norm())

    found = {}
    for name in FOUND:
        for place, tensors in inside.items():
            if all(same(layer, name, tensors) for layer in range(bridge.cfg.n_layers)):
                found[name] = place
                break
    return found


def permute_weights(module: torch.nn.Module, seed: int = 0) -> None:
    """Put the entries of every matrix into a random order: what it computes is lost, its sizes are not."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))


READERS = ("c_attn", "c_fc", "query_key_value", "dense_h_to_4h", "q_proj", "k_proj", "v_proj", "fc1", "fc_in")
"""Products that read the residual stream, by the names Hugging Face's LayerNorm models give them; all others write."""


def center_writing_weights(hf_model: Any) -> None:
    """Take the mean over the stream's width from all that writes into it; the LayerNorms behind take it away anyway.

    What writes is found by its size and name: the embeddings, and every product of a block whose output is as wide as
    the stream. An unembedding that shares its weights with the embedding keeps them as they were. Raises SaelinkError
    for a model without LayerNorm, which would then say something else.
    """
    import torch

    kinds = {type(module).__name__ for module in hf_model.modules() if "norm" in type(module).__name__.lower()}
    if kinds != {"LayerNorm"}:
        raise SaelinkError(
            f"model.center_writing_weights=true: the model normalises by {', '.join(sorted(kinds)) or 'nothing'}, which"
            " does not take the mean away; only models with LayerNorm stay the same"
        )
    width = hf_model.config.get_text_config().hidden_size
    unembedding = hf_model.get_output_embeddings()
    if unembedding is not None:
        unembedding.weight = torch.nn.Parameter(unembedding.weight.detach().clone())
        hf_model.config.tie_word_embeddings = False
    with torch.no_grad():
        for name, module in hf_model.named_modules():
            weight = getattr(module, "weight", None)
            if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or module is unembedding:
                continue
            across = 0 if isinstance(module, torch.nn.Linear) else 1  # [out, in]; Conv1D and embeddings are [in, out]
            if weight.shape[across] != width or name.rsplit(".", 1)[-1] in READERS:
                continue
            weight -= weight.mean(across, keepdim=True)
            bias = getattr(module, "bias", None)
            if isinstance(bias, torch.Tensor):
                bias -= bias.mean()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _boot(cfg: ModelConfig, tokenizer: Any, hf_model: Any) -> Any:
    """The TransformerBridge around a Hugging Face model, which it rebuilds: save the model before."""
    from transformer_lens.model_bridge import TransformerBridge

    with _readable(cfg, "architecture"):
        return TransformerBridge.boot_transformers(
            cfg.path, hf_model=hf_model, tokenizer=tokenizer, dtype=torch_dtype(cfg.dtype)
        )
