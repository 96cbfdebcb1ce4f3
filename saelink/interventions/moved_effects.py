"""The causal effect of every source latent on every target latent through attention: the stage `moved_effects`.

    M_ij = mean over queries q that j is moved to of  f_i(q) - f_i(q; a_j d_j taken out at every key q sees)

j counts as moved to q where it is among the latents of which all targets together read most there, as many of them as
the source SAE has active on a token (its L0): so a source has about as many queries as it has tokens. At most
verify.tokens_per_source queries of each, evenly spread. f is attention, from the residual stream in front of the
block to its output, read by the target SAE with its thresholds held, as in effects.py; two readings of it, see
moved_ablation: `free` is what the model does, `frozen` holds pattern and norms. An edge's claim about the same is the
mean, over the same queries, of what its prediction loses.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any, NamedTuple, TypedDict

import torch

from saelink import memory
from saelink.attention.heads import Seen, load_attention
from saelink.attention.moved import Moves, moved_most, only_moved
from saelink.attention.stage import open_moves
from saelink.config.evidence import AblationValue
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.interventions.block import FOLDS, encoded_with_floor, most_tokens
from saelink.interventions.measure import Ablations, changed, choose_ablations
from saelink.interventions.moved_ablation import Ablation
from saelink.interventions.pairs import Effects, Pairs, pairs_of_folds
from saelink.job import Job, JobStage
from saelink.latents.link import load_split
from saelink.latents.rows import Rows
from saelink.latents.shards import encode_rows
from saelink.latents.split import Tokens
from saelink.model.weights import permute_weights
from saelink.runtime import need_memory
from saelink.saes.widths import widths_ahead
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Need

READINGS = ("free", "frozen")

MEANS_FILE = "means.safetensors"

BY_LATENT = ("tokens", "source_mean", "source_rate", "target_mean")
"""Fields of `Effects` that are stored beside its pairs."""

NULLS = ("permuted decoders", "random heads", "shuffled positions")
"""Effects that no graph should find: along another latent's decoder direction, with the same activation; of attention
whose weights are in a random order; of the latent's vector taken out at as many other keys of the sequence."""

LINEAR = "linear"
"""No null: a hundredth of each latent is taken out, a hundred times the change of what the target's pre-activation is
where it is active: gradient times activation."""

FIRST = "first token too"
"""No null either: sources are also taken out at the positions that don't count, such as the first token, a sink."""

SHARE = 0.01

NULL_QUERIES = 64
"""Queries per source that all but the two readings are measured on."""


WAY_OUT = "effects through attention are dense in sources and targets: use SAEs with fewer latents"


class MovedEffectsFacts(TypedDict):
    n_tokens: int
    """Tokens that were looked at."""
    ablations: int
    strong: int
    """Strong effects in the free reading,"""
    strong_frozen: int
    """and in the frozen one."""


class Means(NamedTuple):
    """What claims are multiplied by: means over the queries that a source was ablated for, in units of the scales."""

    same: torch.Tensor
    """[d_source] its activation at the query's own token."""
    kept: torch.Tensor
    """[d_source * n_heads] its kept columns, as a connector is given them, in the order of columns."""
    queries: torch.Tensor
    """[d_source] queries."""


class MovedEffectsStage(JobStage[MovedEffectsFacts]):
    """The effects through attention of a link whose one source is moved latents, on test or train documents.

    Files `free.safetensors` and `frozen.safetensors`: see `Effects`, sources by latent, whatever heads move them;
    `means.safetensors`: see `Means`. For a null, LINEAR or FIRST only the first. Raises SaelinkError for another link.
    """

    name = "moved_effects"
    version = 3

    def __init__(self, job: Job, split: str = "test", null: str | None = None):
        super().__init__(job)
        check_moved(job)
        self.split, self.null = split, null

    @property
    def _per_source(self) -> int:
        most = self.job.cfg.verify.tokens_per_source
        return most if self.null is None else min(most, NULL_QUERIES)

    def recipe(self) -> dict[str, Any]:
        cfg = self.job.cfg
        return {
            "split": self.split,
            "null": self.null,
            "queries_per_source": self._per_source,
            "tokens": most_tokens(cfg, self.split),
            "drop_positions": cfg.data.drop_positions,
            "max_norm_ratio": cfg.data.max_norm_ratio,
            "latent_scale": cfg.latent_scale.name,
        }

    def inputs(self) -> dict[str, str]:
        return {**self.latents_inputs(), "model": self.job.model.artifact.key}

    def about(self) -> str:
        return f"{self.job.about}, {self.null or self.split}"

    @property
    def _readings(self) -> tuple[str, ...]:
        return READINGS if self.null is None else READINGS[:1]

    def need_ahead(self) -> None:
        """Raise SaelinkError before anything is made where the widths of the SAEs are known, and too large."""
        job = self.job
        try:
            known = widths_ahead(job.cfg, job.dimensions, [job.link.sources[0], job.link.target])
        except SaelinkError:  # the model's config is not at hand any more
            return
        if known is not None:
            source, target = (memory.Side(0, width, 0.0) for width in known)
            need_memory(
                f"{self.name}: {self.about()}, the effects of {known[0]:,} latents on {known[1]:,} through attention",
                memory.moved_effects(source, target, FOLDS, len(self._readings)),
                WAY_OUT,
            )

    def need(self) -> Need:
        self.need_ahead()
        job, cfg = self.job, self.job.cfg
        (source,), target = job.encoded.sizes
        step, context = cfg.runtime.forward_tokens, cfg.data.context_size
        opened = memory.moved(job.size, source, target, cfg.link.kept, step, context)
        needed = opened + memory.moved_effects(source, target, FOLDS, len(self._readings))
        return Need(needed, WAY_OUT)

    def make(self, draft: Draft) -> MovedEffectsFacts:
        job, readings = self.job, self._readings
        encoded = job.encoded
        size = 4 * FOLDS * encoded.d_source * encoded.d_target
        job.store.need_space("moved_effects", size * len(readings))
        with torch.inference_mode():
            found, means = Measuring(job, self.split, self.null, self._per_source).run()
        strong: list[int] = []
        for name, effects in zip(readings, found, strict=False):
            (pairs,) = effects.pairs()
            by_latent = {name: getattr(effects, name) for name in BY_LATENT}
            draft.save_tensors(f"{name}.safetensors", pairs._asdict() | by_latent)
            unit = effects.target_mean[pairs.target.long()]
            is_strong = (pairs.mean.abs() >= job.cfg.verify.strong * unit) & (unit > 0) & pairs.consistent()
            strong.append(int(is_strong.sum()))
        draft.save_tensors(MEANS_FILE, means._asdict())
        return {
            "n_tokens": int(most_tokens(job.cfg, self.split)),
            "ablations": int(means.queries.sum()),
            "strong": strong[0],
            "strong_frozen": strong[-1],
        }


def moved_link(cfg: Config) -> bool:
    """Whether a link's effects are those through attention: from moved latents alone to attention's output."""
    return cfg.link.sources in (["ov"], ["ov_summed"]) and cfg.link.target == "hook_attn_out"


def check_moved(job: Job) -> None:
    """Raise SaelinkError for a link whose effects through attention can't be measured."""
    if not moved_link(job.cfg):
        raise SaelinkError(
            f"link={job.cfg.link.name}: effects through attention are measured from moved latents alone (ov or "
            "ov_summed) to hook_attn_out"
        )
    if job.cfg.verify.ablation is not AblationValue.zero:
        raise SaelinkError(
            f"verify.ablation={job.cfg.verify.ablation.name} link={job.cfg.link.name}: moved latents are ablated to "
            "zero alone; leave verify.ablation out"
        )


def load_moved_effects(artifact: Artifact[MovedEffectsFacts], reading: str = "free") -> Effects:
    tensors = artifact.tensors(f"{reading}.safetensors")
    pairs = Pairs(*(tensors[name] for name in Pairs._fields))
    return Effects([lambda: pairs], **{name: tensors[name] for name in BY_LATENT})


def load_means(artifact: Artifact[MovedEffectsFacts]) -> Means:
    return Means(**artifact.tensors(MEANS_FILE))


class Looked(NamedTuple):
    """A sequence with the ablations that are made in it."""

    seen: Seen
    sequence: int
    """Its place among those looked at."""
    latents: Rows
    """[tokens looked at, d_source]"""
    before: Rows
    """[tokens looked at, d_target] the target latents, nothing taken out,"""
    floor: torch.Tensor
    """[tokens looked at] and what a latent must be above to be active there."""
    source: torch.Tensor
    """[m] what is taken out"""
    fold: torch.Tensor
    """[m]"""
    row: torch.Tensor
    """[m] and for which of the tokens looked at."""

    @property
    def query(self) -> torch.Tensor:
        """[m] positions in the sequence."""
        return (self.row % self.seen.x.shape[1]).to(self.seen.x.device)


class Measuring:
    """All effects of one split: `ids` [sequences, context] are the tokens, `chosen` for which queries a source goes."""

    def __init__(self, job: Job, split: str, null: str | None, per_source: int):
        self.job, self.split, self.null = job, split, null
        info, device = job.model, job.device
        self.attention = load_attention(job.cfg, info, job.cfg.layer, device)
        self.moves: Moves = open_moves(job.cfg, job.store, self.attention, job.link.sources[0], job.link.target)
        self.d_source, self.d_target = self.moves.source.d_sae, self.moves.target.d_sae
        text = job.tokens.tensors(f"{split}.safetensors")
        self.context = text["ids"].shape[1]
        n = max(min(most_tokens(job.cfg, split) // self.context, len(text["ids"])), 1)
        tokens = load_split(job.cfg, job.sides, split)
        self.tokens = tokens.subset(tokens.row < n * self.context)
        self.ids = text["ids"][:n].long()
        document = text["document"].flatten().long()[self.tokens.row]
        self.fold = document.unique(return_inverse=True)[1] % FOLDS
        most = round(job.encoded.sources[0].facts["l0"])
        self.moved = moved_most(self.tokens.source, self.moves.reach().cpu(), most)
        chosen = choose_ablations(self.moved.transposed(), self.fold, per_source)
        by = torch.argsort(self.tokens.row[chosen.token] // self.context, stable=True)
        self.chosen = Ablations(*(column[by] for column in chosen))

    def rows_of(self, source: int) -> list[int]:
        """The queries that a source is taken out for: sequence * context + position."""
        return self.tokens.row[self.chosen.token[self.chosen.source == source]].tolist()

    def run(self) -> tuple[list[Effects], Means]:
        """The effects by reading, and the means."""
        n_readings = 1 if self.null is not None else 2
        sums = [torch.zeros(FOLDS * self.d_source, self.d_target) for _ in range(n_readings)]
        same = torch.zeros(self.d_source, dtype=torch.float64)
        fired, total = (torch.zeros(self.d_target, dtype=torch.float64) for _ in range(2))
        ablation = self.ablation()
        for looked in self.walk(fired, total):
            source = looked.source.to(self.job.device)
            same.index_add_(0, looked.source, looked.latents.to("cpu").at(looked.row, looked.source).double())
            placed = self._placed(looked.latents, looked.sequence)
            taken = ablation.taken(looked.seen, looked.sequence, placed, source)
            acts = ablation.without(looked.seen, looked.sequence, taken, source, looked.query)
            slots = looked.fold * self.d_source + looked.source
            self._add(acts, slots, looked.row, looked.before, looked.floor, sums)
        return self._found(sums, same, total, fired)

    def walk(self, fired: torch.Tensor | None = None, total: torch.Tensor | None = None) -> Iterator[Looked]:
        """The sequences in which anything is taken out, in order; the targets' activity is added to fired, total."""
        chosen, device = self.chosen, self.job.device
        position = self.tokens.row[chosen.token]
        cuts = torch.searchsorted(position // self.context, torch.arange(len(self.ids) + 1)).tolist()
        counted = torch.zeros(len(self.ids) * self.context, dtype=torch.bool)
        counted[self.tokens.row] = True
        step = max(self.job.cfg.runtime.forward_tokens // self.context, 1)
        with self.job.observer.progress("moved_effects", len(chosen.token), "ablations") as bar:
            for first in range(0, len(self.ids), step):
                last = min(first + step, len(self.ids))
                if fired is None and cuts[first] == cuts[last]:
                    continue
                seen = self.attention.look(self.ids[first:last].to(device))
                latents = encode_rows(self.moves.source, seen.x.flatten(0, 1))
                before, floor = encoded_with_floor(self.moves.target, seen.out.flatten(0, 1))
                if fired is not None and total is not None:
                    kept = before.select(counted[first * self.context :][: len(before)].nonzero().squeeze(1))
                    fired += torch.bincount(kept.indices, minlength=self.d_target)
                    total += torch.bincount(kept.indices, kept.values.double(), minlength=self.d_target)
                for sequence in range(len(seen.x)):
                    part = slice(cuts[first + sequence], cuts[first + sequence + 1])
                    source, fold = chosen.source[part], chosen.fold[part]
                    if len(source):
                        row = position[part] - first * self.context
                        yield Looked(seen, sequence, latents, before, floor, source, fold, row)
                        bar.advance(len(source))

    def only(self, sources: torch.Tensor) -> Measuring:
        """The same of some sources alone."""
        kept = torch.isin(self.chosen.source, sources)
        few = copy(self)
        few.chosen = Ablations(*(column[kept] for column in self.chosen))
        return few

    def ablation(self) -> Ablation:
        """What takes latents out, as the null says."""
        directions: torch.Tensor | None = None
        if self.null == "permuted decoders":
            order = torch.randperm(self.d_source, generator=torch.Generator().manual_seed(0))
            directions = self.moves.source.W_dec[order.to(self.moves.source.W_dec.device)]
        elif self.null == "random heads":
            self.attention.opened.permute(permute_weights)
        share, drop = SHARE if self.null == LINEAR else 1.0, 0 if self.null == FIRST else None
        return Ablation(self.moves, self.attention.opened, directions, share, drop)

    def _placed(self, latents: Rows, sequence: int) -> Rows:
        """The latents; for shuffled positions this sequence's rows in another order."""
        if self.null != "shuffled positions":
            return latents
        generator = torch.Generator().manual_seed(sequence)
        order = torch.arange(len(latents), device=latents.offsets.device)
        here = slice(sequence * self.context + self.moves.drop, (sequence + 1) * self.context)
        shuffled = order[here]
        order[here] = shuffled[torch.randperm(len(shuffled), generator=generator).to(order.device)]
        return latents.select(order)

    def _add(
        self, acts: tuple[torch.Tensor, ...], slots: torch.Tensor, row: torch.Tensor, before: Rows, floor: torch.Tensor,
        sums: list[torch.Tensor],
    ) -> None:  # fmt: skip
        """Count what the targets lose, acts [m, d] by reading; equal slots are put in a row."""
        target = self.moves.target
        by_latent = torch.zeros(self.d_target)
        if target.threshold is not None:
            by_latent = target.threshold.cpu().clamp(min=0)
        by = torch.argsort(slots, stable=True)
        slots, row = slots[by], row[by]
        for reading, out in zip(acts, sums, strict=False):
            pre = target.pre_acts(reading[by.to(reading.device)])
            if self.null == LINEAR:
                rows = before.select(row)
                lost = (rows.values - pre.cpu()[rows.row_of, rows.indices]) / SHARE
                out.view(-1).index_add_(0, slots[rows.row_of] * self.d_target + rows.indices, lost)
            else:
                changes = changed(pre, row, before, floor[row], by_latent)
                at = slots[changes.row_of] * self.d_target + changes.indices
                out.view(-1).index_add_(0, at, changes.values)

    def _found(
        self, sums: list[torch.Tensor], same: torch.Tensor, total: torch.Tensor, fired: torch.Tensor
    ) -> tuple[list[Effects], Means]:
        chosen, d, encoded = self.chosen, self.d_source, self.job.encoded
        unit = encoded.scales[-1]
        counts = torch.bincount(chosen.fold * d + chosen.source, minlength=FOLDS * d).view(FOLDS, -1)
        queries = counts.sum(0)
        n = queries.clamp(min=1)
        source_sum = torch.zeros(d, dtype=torch.float64).index_add_(0, chosen.source, chosen.value.double())
        rate = torch.bincount(self.moved.indices, minlength=d) / max(len(self.moved), 1)
        found: list[Effects] = []
        for each in sums:
            pairs = pairs_of_folds(each.view(FOLDS, d, self.d_target) / unit, queries)
            target_mean = (total / fired.clamp(min=1) / unit).float()
            read = [lambda pairs=pairs: pairs]
            found.append(Effects(read, counts, (source_sum / n).float(), rate.float(), target_mean))
        return found, Means((same / n / encoded.scales[0]).float(), column_means(self.tokens, chosen, n), queries)


def measured_queries(job: Job, split: str = "test", per_source: int | None = None) -> Measuring:
    """What the effects of a split are measured on, at most `per_source` queries of each source if that is fewer."""
    most = job.cfg.verify.tokens_per_source
    return Measuring(job, split, None, most if per_source is None else min(most, per_source))


def column_means(tokens: Tokens, chosen: Ablations, n: torch.Tensor) -> torch.Tensor:
    """[columns] means of each column over the queries that its latent was ablated for."""
    d, width = len(n), tokens.source.d
    by = torch.argsort(chosen.token * d + chosen.source)
    asked = Rows.from_pairs(chosen.token[by], chosen.source[by], chosen.value[by], n=len(tokens), d=d)
    kept = only_moved(tokens.source, asked)
    total = torch.bincount(kept.indices, kept.values.double(), minlength=width)
    return (total / n.repeat(width // d)).float()
