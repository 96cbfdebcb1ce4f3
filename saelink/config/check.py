"""Values that are out of range whatever model and data they meet."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from dataclasses import replace
from typing import Any, cast

from saelink.config.other_text import other_text
from saelink.config.process import EngineKind, RuntimeConfig
from saelink.config.schema import Config, ExperimentConfig, ModelConfig, ModelSource, SAEConfig
from saelink.config.size import bytes_of
from saelink.errors import SaelinkError


def l1_alphas(value: Any) -> list[float]:
    """The penalty weights of a job: `value` is a number or a list of numbers.

    Raises SaelinkError when one is not a finite number >= 0, or none is given.
    """
    alphas: list[float] = []
    for item in _listed(value):
        if not is_penalty(item):
            raise SaelinkError(f"l1_alpha={value}: {item!r} is not a number >= 0, such as 1e-3")
        alphas.append(float(item))
    if not alphas:
        raise SaelinkError("l1_alpha=[] has no value: give a number or a list such as [1e-3,1e-2]")
    return alphas


def layer_numbers(value: Any) -> list[int] | None:
    """The layers of a job, ascending: `value` is a list of numbers, one number, a range such as 0-3, or all.

    None for all of them. Raises SaelinkError for anything else.
    """
    wrong = SaelinkError(f"layers={value}: give layers from 0 on, such as [0,1,2,3], 0-3 or all")
    if value == "all":
        return None
    span = re.fullmatch(r"(\d+)-(\d+)", value) if isinstance(value, str) else None
    numbers = list(range(int(span[1]), int(span[2]) + 1)) if span else _listed(value)
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
        raise wrong
    return sorted(set(numbers))


def single(cfg: Config) -> Config:
    """The job with its one penalty as a number. Raises SaelinkError for several."""
    alphas = l1_alphas(cfg.l1_alpha)
    if len(alphas) != 1:
        raise SaelinkError(
            f"l1_alpha={cfg.l1_alpha} has {len(alphas)} penalties: this takes one, such as l1_alpha=1e-3"
        )
    return replace(cfg, l1_alpha=alphas[0])


def _listed(value: Any) -> list[Any]:
    """A list as it is, anything else in one."""
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _at_least(minimum: float, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value >= minimum:
            raise SaelinkError(f"{name.replace('__', '.')}={value} must be at least {minimum:g}")


LARGEST = 2**63 - 1
"""What an integer of a tensor, of a random generator and of a file can hold."""


MOST_THREADS = 4096
"""More are a mistake, and what torch starts them with overflows."""


def check(cfg: Config) -> None:
    """Raise SaelinkError for a value that is out of range whatever model and data it meets; ~/ becomes a folder."""
    _check_values(cfg, "")
    _at_home(cfg)
    if not cfg.runtime.outputs.strip():
        raise SaelinkError("runtime.outputs= has no name: give a folder for the artifacts, such as outputs")
    l1_alphas(cfg.l1_alpha)
    _at_least(0, layer=cfg.layer, data__drop_positions=cfg.data.drop_positions, seed=cfg.seed, sae__seed=cfg.sae.seed)
    _at_least(2, data__context_size=cfg.data.context_size)
    _at_least(1, data__max_tokens=cfg.data.max_tokens, data__max_norm_ratio=cfg.data.max_norm_ratio)
    _at_least(1, sae__d_sae=cfg.sae.d_sae, sae__k=cfg.sae.k, sae__batch_tokens=cfg.sae.batch_tokens)
    if (cfg.runtime.threads or 1) > MOST_THREADS:
        raise SaelinkError(f"runtime.threads={cfg.runtime.threads} must be at most {MOST_THREADS}")
    _at_least(1, runtime__forward_tokens=cfg.runtime.forward_tokens, runtime__threads=cfg.runtime.threads)
    _check_workers(cfg.runtime)
    bytes_of("runtime.memory", cfg.runtime.memory)
    _at_least(0, eval__circuits=cfg.eval.circuits, eval__edges=cfg.eval.edges, eval__min_active=cfg.eval.min_active)
    _at_least(1, report__top=cfg.report.top, report__per_size=cfg.report.per_size, report__random=cfg.report.random)
    _at_least(0, verify__consequences=cfg.verify.consequences, verify__output_tokens=cfg.verify.output_tokens)
    _at_least(0, verify__edges_checked=cfg.verify.edges_checked, verify__pruned_tokens=cfg.verify.pruned_tokens)
    _at_least(1, verify__draws=cfg.verify.draws, verify__check_tokens=cfg.verify.check_tokens)
    _at_least(1, blind__pairs=cfg.blind.pairs, blind__sentences=cfg.blind.sentences)
    _check_graphs(cfg)
    _at_least(0, head=cfg.head)
    _at_least(1, qk__tokens=cfg.qk.tokens, qk__pairs=cfg.qk.pairs, qk__latents=cfg.qk.latents)
    if not cfg.qk.together or any(n < 1 for n in cfg.qk.together):
        raise SaelinkError(f"qk.together={cfg.qk.together}: give numbers of pairs from 1 on, such as [1,10,100]")
    other_text(cfg)
    _at_least(1, eval__ce_tokens=cfg.eval.ce_tokens, eval__bootstrap=cfg.eval.bootstrap)
    if not 0 <= cfg.targets.min_rate < 1:
        raise SaelinkError(f"targets.min_rate={cfg.targets.min_rate} must be at least 0 and below 1")
    _check_experiment(cfg.experiment)
    if set(cfg.outliers.shares) != {"first_positions", "first_delimiter", "massive"}:
        raise SaelinkError(
            f"outliers.shares={cfg.outliers.shares}: the shares are first_positions, first_delimiter and massive"
        )
    _check_model(cfg.model)
    _check_sae(cfg.sae)
    if cfg.data.drop_positions >= cfg.data.context_size:
        raise SaelinkError(
            f"data.drop_positions={cfg.data.drop_positions} leaves nothing of data.context_size={cfg.data.context_size}"
        )
    _at_least(1, link__kept=cfg.link.kept)
    if not cfg.link.sources:
        raise SaelinkError("link.sources=[] names no source hook: give at least one, such as [mlp_in]")


def _check_workers(runtime: RuntimeConfig) -> None:
    _at_least(1, runtime__workers=runtime.workers)
    engine = runtime.engine.name
    if runtime.workers > MOST_THREADS:
        raise SaelinkError(f"runtime.workers={runtime.workers} must be at most {MOST_THREADS}")
    if runtime.engine is not EngineKind.processes and runtime.workers == 1:
        raise SaelinkError(f"runtime.engine={engine}: say how many tasks it does at once, such as runtime.workers=8")
    if runtime.address is not None and runtime.engine is not EngineKind.ray:
        raise SaelinkError(f"runtime.address={runtime.address} is of runtime.engine=ray, not of {engine}")
    if runtime.slurm and runtime.engine not in (EngineKind.slurm, EngineKind.slurm_local):
        raise SaelinkError(f"runtime.slurm={runtime.slurm} is of runtime.engine=slurm, not of {engine}")
    if runtime.shared and runtime.workers > 1:
        raise SaelinkError("runtime.shared=true is for commands without an engine: leave it out, or runtime.workers")


def at_home(place: str) -> str:
    """What begins with ~/ as a folder in the user's home, as a shell has it for what stands alone."""
    return os.path.expanduser(place)  # noqa: PTH111 (patterns and hub ids are no paths)


def _at_home(cfg: Config) -> None:
    """The same for every setting that may name a file or folder, in place."""
    for group, names in PLACES.items():
        for name in names:
            place = getattr(getattr(cfg, group), name)
            if isinstance(place, str):
                setattr(getattr(cfg, group), name, at_home(place))
    cfg.sae.files = {hook: at_home(place) for hook, place in cfg.sae.files.items()}


PLACES = {
    "model": ["path"], "data": ["path"], "sae": ["path"], "connector": ["init"], "transcoder": ["path"],
    "report": ["path"], "runtime": ["outputs"],
}  # fmt: skip
"""Settings that may name a file or folder."""


def _check_graphs(cfg: Config) -> None:
    """Graphs of prompts and circuits over layers."""
    _at_least(1, graph__logits=cfg.graph.logits)
    if cfg.layers is not None:
        layer_numbers(cfg.layers)
    circuit = cfg.circuit
    _at_least(1, circuit__nodes=circuit.nodes, circuit__inputs=circuit.inputs, circuit__sequences=circuit.sequences)
    _at_least(0, circuit__steps=circuit.steps)
    for name in ("logit_share", "node_share", "edge_share"):
        if not 0 < getattr(cfg.graph, name) <= 1:
            raise SaelinkError(f"graph.{name}={getattr(cfg.graph, name)} must be above 0 and at most 1")
    if not 0 < circuit.alike <= 1:
        raise SaelinkError(f"circuit.alike={circuit.alike} must be above 0 and at most 1")


def _check_model(model: ModelConfig) -> None:
    """What a model's files may be, and its sizes."""
    if model.source is ModelSource.hub and model.file is not None:
        raise SaelinkError(f"model.file={model.file}: only a wheel's or folder's GGUF is read, not one on the hub")
    if model.parts and (model.source is not ModelSource.wheel or model.file is None):
        raise SaelinkError(
            f"model.parts={model.parts}: parts are of a wheel's file; give model.file a name, or parts=[]"
        )
    _check_dimensions(model.dimensions)


def _check_values(value: Any, name: str) -> None:
    """Raise SaelinkError for a number anywhere that is not finite, or too large an integer for any library.

    Also for what is no list or table where one belongs: ${...} may put anything there.
    """
    if dataclasses.is_dataclass(value):
        for entry in dataclasses.fields(value):
            inner, place = getattr(value, entry.name), f"{name}.{entry.name}".strip(".")
            for kind, written in ((list, "list"), (dict, "dict")):
                missing = inner is None and "None" in str(entry.type)
                if str(entry.type).startswith(written) and not missing and not isinstance(inner, kind):
                    raise SaelinkError(f"{place}={inner}: give a {'list' if kind is list else 'table'}")
            _check_entries(str(entry.type), inner, place)
            _check_values(inner, place)
    elif isinstance(value, dict):
        for key, item in cast("dict[Any, Any]", value).items():
            _check_values(item, f"{name}.{key}")
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            _check_values(item, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise SaelinkError(f"{name}={value}: give a finite number")
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise SaelinkError(f"{name}={value}: give a number below 2^63")


DIMENSIONS = (
    "n_layers", "d_model", "d_mlp", "n_heads", "d_head", "n_kv_heads", "vocabulary", "gated", "tied", "parallel",
)  # fmt: skip
"""What model.dimensions has beside `of`, where it has anything."""


def _check_dimensions(facts: dict[str, Any]) -> None:
    names = {"of", *DIMENSIONS}
    wrong = set(facts) ^ names or {name for name in DIMENSIONS if type(facts[name]) not in (int, bool)}
    if facts and wrong:
        raise SaelinkError(
            f"model.dimensions: {', '.join(sorted(wrong))}; give of (the model.path that they are of) and, as in its "
            f"config.json, {', '.join(DIMENSIONS)}"
        )


ENTRIES = {"str": (str, "a text"), "int": (int, "an integer"), "float": (int | float, "a number")}
"""What an entry of a list or table may be, by its declared type."""


def _check_entries(declared: str, value: Any, name: str) -> None:
    """Raise SaelinkError for an entry of a list or table of texts or numbers that is none: OmegaConf takes any."""
    kind = re.match(r"(?:list|dict)\[(?:str, )?(str|int|float)\]", declared)
    if kind is None or not isinstance(value, list | dict):
        return
    wanted, called = ENTRIES[kind[1]]
    table = cast("dict[Any, Any]", value) if isinstance(value, dict) else dict(enumerate(cast("list[Any]", value)))
    for key, item in table.items():
        if not isinstance(item, wanted):
            raise SaelinkError(f"{name}.{key}={item}: give {called}")


def _check_sae(settings: SAEConfig) -> None:
    if not settings.epochs > 0 or not settings.lr > 0:
        raise SaelinkError(f"sae.epochs={settings.epochs} and sae.lr={settings.lr} must be above 0")
    if settings.k > settings.d_sae:
        raise SaelinkError(f"sae.k={settings.k} is more than sae.d_sae={settings.d_sae}")
    if (settings.release is None) != (settings.id is None):
        raise SaelinkError(f"sae.release={settings.release} and sae.id={settings.id} go together: give both or neither")
    for hook, figures in settings.published.items():
        values = cast("dict[str, Any]", figures).values() if isinstance(figures, dict) else [None]
        numbers = [number for value in values for number in _listed(value)]
        known = isinstance(figures, dict) and {"fvu", "l0", "d_sae"} >= set(cast("dict[str, Any]", figures))
        if not known or not all(isinstance(number, int | float) for number in numbers):
            raise SaelinkError(
                f"sae.published.{hook}={figures}: give fvu, l0 and d_sae, each a number or a list by layer"
            )


def _check_experiment(settings: ExperimentConfig) -> None:
    def fail(name: str, way_out: str) -> None:
        raise SaelinkError(f"experiment.{name}={getattr(settings, name)}: {way_out}")

    if not settings.seeds:
        fail("seeds", "give at least one")
    if any(value < 0 for value in settings.l1_grid):
        fail("l1_grid", "penalties are numbers >= 0")
    for name in ("d_hidden", "tokens", "sweep_tokens"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            fail(name, "must be at least 1")
    if any(seed < 0 for seed in settings.seeds):
        fail("seeds", "must be at least 0")
    if settings.sparse_alpha != "elbow" and not is_penalty(settings.sparse_alpha):
        fail("sparse_alpha", "give a number >= 0, or elbow")


def is_penalty(value: Any) -> bool:
    """A finite number >= 0."""
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value) and value >= 0
