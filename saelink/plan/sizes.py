"""The sizes that a job's costs follow from, known without reading a model or an SAE."""

from __future__ import annotations

from dataclasses import dataclass
from glob import glob
from pathlib import Path

from saelink.activations.tokens import SPLITS
from saelink.config.data import DataSource
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.fetch import wheel_folder
from saelink.latents.link import hooks_of_sources, moved_forms
from saelink.latents.shards import TYPICAL_L0
from saelink.memory import Side
from saelink.model.dimensions import Dimensions, dimensions_of
from saelink.model.info import full_name
from saelink.saes.widths import sae_widths
from saelink.store.artifact import Artifact

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
"""Of the documents, see tokens.split_by_hash."""

BYTES_PER_TOKEN = 4.4
"""Of English text, for a text whose tokens are not counted yet."""

UNKNOWN_TOKENS, UNKNOWN_LATENTS = 1_000_000, 16_384
"""What is reckoned with where nothing says."""


@dataclass(frozen=True)
class Sizes:
    """Of one job. A split's tokens count all positions."""

    tokens: dict[str, float]
    context: int
    forward_tokens: int
    model: Dimensions
    model_bytes: int
    """Of one number of the model in the forward pass."""
    hooks: list[str]
    """Full names, the sources' first, the target's last, each once."""
    sides: list[Side]
    """As many: their SAEs."""
    trained: list[bool]
    """By hook whether its SAE is trained first."""
    reads: list[tuple[int, str]]
    """Of each source of the link which hook its latents are of, and the form in which heads move them, else nothing."""
    kept: int
    """Of moved latents for a token."""
    described: bool
    """Whether the model's artifact is there already."""
    unpacked: bool
    """Whether the model comes from a GGUF, which is unpacked into the store."""

    @property
    def n(self) -> float:
        """All tokens."""
        return sum(self.tokens.values())

    @property
    def sources(self) -> list[Side]:
        """As a connector reads them: of latents that heads move the columns, by head unless they are summed."""
        return [self._read(self.sides[place], form) for place, form in self.reads]

    def _read(self, side: Side, form: str) -> Side:
        if not form:
            return side
        heads = self.model.n_heads if form == "ov" else 1
        return Side(side.width, heads * side.d_sae, min(self.kept, heads * side.d_sae))

    @property
    def moved(self) -> list[tuple[Side, str]]:
        """The SAE of every source that heads move, and the form."""
        return [(self.sides[place], form) for place, form in self.reads if form]

    @property
    def target(self) -> Side:
        return self.sides[-1]

    @property
    def d_source(self) -> int:
        return sum(side.d_sae for side in self.sources)

    @property
    def d_target(self) -> int:
        return self.target.d_sae

    @property
    def l0_source(self) -> float:
        return sum(side.l0 for side in self.sources)

    @property
    def blocks(self) -> int:
        """Blocks that a pass runs through."""
        return max(int(hook.split(".")[1]) for hook in self.hooks) + 1


def sizes_of(
    cfg: Config, described: Artifact | None, tokens: dict[str, int] | None, remarks: list[str], fetch: bool
) -> Sizes:
    """The job's sizes; of the `model` artifact and of the counted tokens what is there already.

    Without `fetch` the hub is not asked how wide an SAE is. What had to be guessed is added to `remarks`, a line each.
    Raises SaelinkError for a model that nothing is known of, and for a layer that it lacks.
    """
    model = dimensions_of(cfg.model, described)
    if cfg.layer >= model.n_layers:
        raise SaelinkError(f"layer={cfg.layer}: the model has layers 0 to {model.n_layers - 1}")
    read = [full_name(name, cfg.layer, model.parallel) for name in hooks_of_sources(cfg)]
    target = full_name(cfg.link.target, cfg.layer, model.parallel)
    hooks = [*dict.fromkeys(hook for hook in read if hook != target), target]
    reads = [(hooks.index(hook), form) for hook, form in zip(read, moved_forms(cfg), strict=True)]
    sides, trained = sides_of(cfg, model, hooks, remarks, fetch)
    if tokens is None:
        n = _tokens_ahead(cfg, remarks)
        counted = {split: n * SHARES[split] for split in SPLITS}
    else:
        counted = {split: float(tokens[split]) for split in SPLITS}
    size = 2 if cfg.model.dtype.name == "bfloat16" else 4
    return Sizes(
        counted, cfg.data.context_size, cfg.runtime.forward_tokens, model, size, hooks, sides, trained,
        reads, cfg.link.kept, described is not None, cfg.model.file is not None,
    )  # fmt: skip


def sides_of(
    cfg: Config, model: Dimensions, hooks: list[str], remarks: list[str], fetch: bool
) -> tuple[list[Side], list[bool]]:  # fmt: skip
    """By hook its SAE's sizes, and whether it is trained first; see sizes_of."""
    sides: list[Side] = []
    trained: list[bool] = []
    for hook in hooks:
        width = model.width(hook.split(".", 2)[2])
        known = sae_widths(cfg, hook, width, fetch)
        if known.d_sae is None:
            remarks.append(f"{hook}: how many latents its SAE has is not known, reckoned with {UNKNOWN_LATENTS:,}")
        if known.l0 is None:
            remarks.append(f"{hook}: how many latents are active is not known, reckoned with {TYPICAL_L0} a token")
        sides.append(Side(width, known.d_sae or UNKNOWN_LATENTS, known.l0 or TYPICAL_L0))
        trained.append(known.trained)
    return sides, trained


def _tokens_ahead(cfg: Config, remarks: list[str]) -> float:
    """About how many tokens will be read."""
    size = _text_bytes(cfg)
    whole = None if size is None else size / BYTES_PER_TOKEN
    limit = cfg.data.max_tokens
    if limit is not None:
        return limit if whole is None or cfg.data.source is DataSource.wheel else min(limit, whole)
    if whole is None:
        remarks.append(
            f"data.max_tokens=null: how long the text is isn't known, reckoned with {UNKNOWN_TOKENS:,} tokens"
        )
        return UNKNOWN_TOKENS
    return whole


def _text_bytes(cfg: Config) -> int | None:
    """The size of a text on disk, None where it is not there or compressed."""
    data = cfg.data
    if data.source is DataSource.wheel:
        path = wheel_folder(data.path, data.install, "data.path") / (data.file or "")
        return path.stat().st_size if path.is_file() else None
    if data.source is DataSource.hub:
        return None
    here = Path(data.path)
    if here.exists():
        paths = [here] if here.is_file() else [path for path in here.rglob("*") if path.is_file()]
    else:
        paths = [Path(each) for each in glob(data.path, recursive=True)]  # noqa: PTH207 (a pattern as text)
    plain = [path for path in paths if path.suffix in (".txt", ".json", ".jsonl", ".csv", ".tsv")]
    return sum(path.stat().st_size for path in plain) if plain and len(plain) == len(paths) else None
