"""Where a layer's heads look, and which pairs of latents decide it: the stage `qk`.

The latents are those of the SAE that reads the residual stream in front of the layer's attention, the pairs are chosen
on one half of some test sequences and judged on the other; see `pairs` for what is computed of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch

from saelink import memory
from saelink.activations.tokens import TokensStage
from saelink.attention.heads import load_attention
from saelink.config.schema import DType, LinkConfig
from saelink.errors import SaelinkError
from saelink.job import Job, JobStage
from saelink.latents.shards import side_of
from saelink.looks.causal import Deleted, TargetsChanged, deletions, places_of, targets_changed
from saelink.looks.kinds import Looks, kinds, looks, repeated_ids
from saelink.looks.layer import ScoredLayer, load_scored_layer
from saelink.looks.pairs import LEAST, ScoredPairs, Together, chosen, measure, remove
from saelink.looks.scores import Form
from saelink.looks.text import GROUPS, MODES, Text
from saelink.model.forward import load_forward
from saelink.progress import Progress
from saelink.saes.choice import sae_choice
from saelink.saes.load import pull_sae
from saelink.saes.sae import SAE
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Need

HEADS_FILE, TARGETS_FILE = "heads.json", "targets.json"

NULLS = ("permuted decoders", "shuffled positions", "another head")
"""Pairs that are chosen with one thing wrong, and judged as the head's own: by decoder directions that are another
latent's, with each token's keys at another place of its sequence, and for the next head."""

OWN, LESS = "own", "less text"
"""The head's own pairs, and those chosen on no more text than the nulls'."""

STRONGEST = "strongest"
"""Pairs that move the pattern, without sinks, most at the queries where they are; not how often they are."""

NULL_SHARE = 4
"""Of the sequences on which a head's pairs are chosen one in so many is used for nulls,"""


class Group(TypedDict):
    """What taking the leading pairs out at once does to the pattern, over all queries that count."""

    pairs: int
    rows: int
    """Queries at which one of them has a term."""
    variation: float
    """Mean total variation of a row,"""
    control: float
    """with as many others' terms taken out at the same positions,"""
    nulls: dict[str, float]
    """and for as many pairs chosen by a null."""
    less_text: NotRequired[float]
    """As `variation`, for pairs chosen on as little text as the nulls'."""


class PairFacts(TypedDict):
    """A pair of latents, judged on the second half of the sequences."""

    query: int
    key: int
    rows: int
    """Queries at which it has a term."""
    variation: float
    """Mean total variation of the pattern's row at these when it goes,"""
    control: float
    """and when another latent's part of the query at the same tokens goes, with others' parts of the keys."""
    more_than_control: bool
    """Whether it moves the pattern more, beyond two standard errors."""
    attention: float
    """Mean attention that its keys have by it, at these queries; below 0: that it keeps from them."""
    offsets: list[float]
    """Shares of the changes at its keys by q - k, bins as in pairs.OFFSETS."""
    examples: list[Example]


class Example(TypedDict):
    """A place where the pair moves the pattern most."""

    sequence: int
    query: int
    key: int
    variation: float


class HeadFacts(TypedDict):
    """One head."""

    head: int
    looks: Looks
    kinds: list[str]
    shares: dict[str, list[list[float]]]
    """By mode [GROUPS at the query, GROUPS at the key]: shares of the centred score's square, which sum to 1."""
    pairs: dict[str, list[PairFacts]]
    """By mode, those first that move the pattern most over all the text on which they were chosen; and STRONGEST."""
    leading: dict[str, list[list[int]]]
    """By mode the pairs (query, key) that were taken out at once, the first of them first."""
    together: dict[str, list[Group]]
    deleted: Deleted


class QKFacts(TypedDict):
    hook_name: str
    heads: list[int]
    sequences: int
    n_tokens: int
    """Queries that count on the half where pairs are judged."""


class QKStage(JobStage[QKFacts]):
    """One layer's heads, or one of them. File `heads.json`: a list of HeadFacts.

    Raises SaelinkError for a head that the layer lacks, and for attention whose scores are no sum over pairs.
    """

    name = "qk"
    version = 1

    def __init__(self, job: Job, head: int | None = None):
        super().__init__(job)
        self.head = head
        self.hook = job.model.hook("hook_resid_pre", job.cfg.layer)

    def recipe(self) -> dict[str, Any]:
        cfg = self.job.cfg
        asked = {name: getattr(cfg.qk, name) for name in ("tokens", "pairs", "latents", "together", "nulls")}
        return asked | {
            "layer": cfg.layer,
            "head": self.head,
            "drop_positions": cfg.data.drop_positions,
        }

    def inputs(self) -> dict[str, str]:
        cfg, store = self.job.cfg, self.store
        return {
            "model": self.job.model.artifact.key,
            "tokens": TokensStage(cfg, store).key,
            "sae": sae_choice(cfg, store, self.hook).key,
        }

    def about(self) -> str:
        which = "all heads" if self.head is None else f"head {self.head}"
        return f"{self.job.cfg.model.label} layer {self.job.cfg.layer}, {which}"

    def need(self) -> Need:
        side = side_of(pull_sae(self.job.cfg, self.store, self.hook))
        return Need(qk_bytes(self.job, side), "use fewer tokens (qk.tokens) or fewer latents (qk.latents)")

    def make(self, draft: Draft) -> QKFacts:
        job = self.job
        sae = pull_sae(job.cfg, self.store, self.hook).to(self.device, torch.float32)
        opened = open_layer(job, self.hook, sae)
        heads = range(opened.form.n_heads) if self.head is None else [self.head]
        if max(heads) >= opened.form.n_heads:
            raise SaelinkError(_no_head(max(heads), job.cfg.layer, opened.form.n_heads))
        found: list[HeadFacts] = []
        with job.observer.progress("qk", len(heads) * STEPS, "steps") as bar, torch.inference_mode():
            for head in heads:
                found.append(head_facts(job, opened, head, bar))
        draft.save_json(HEADS_FILE, found)
        return {
            "hook_name": self.hook,
            "heads": list(heads),
            "sequences": len(opened.first) + len(opened.second),
            "n_tokens": int(opened.second.counted.sum()),
        }


def qk_bytes(job: Job, side: memory.Side) -> float:
    """Memory that opening a layer's attention on qk.tokens takes, and looking at the latents of one SAE there."""
    cfg = job.cfg
    return memory.qk(
        job.size, side, cfg.qk.tokens, cfg.data.context_size, cfg.qk.latents, cfg.runtime.forward_tokens
    )  # fmt: skip


def before_attention(job: Job) -> Job:
    """The job with the link from the stream in front of attention to what attention adds to it."""
    link = LinkConfig(name="attn", sources=["hook_resid_pre"], target="hook_attn_out")
    return job.at(replace(job.cfg, link=link))


class Opened:
    """A layer's attention with the text it is looked at on."""

    def __init__(self, attention: ScoredLayer, form: Form, sae: SAE, first: Text, second: Text, repeated: Text):
        self.attention, self.form, self.sae = attention, form, sae
        self.first, self.second, self.repeated = first, second, repeated
        part = max(len(first) // NULL_SHARE, 1)
        self.small = Text(form, sae, first.stream[:part], first.ids[:part], first.seen, first.drop)
        """What nulls are chosen on."""


def open_layer(job: Job, hook: str, sae: SAE) -> Opened:
    """The layer's attention, and the stream in front of it on the first test sequences, from the model run anew."""
    cfg = replace(job.cfg, model=replace(job.cfg.model, dtype=DType.float32))
    ids = job.tokens.tensors("test.safetensors")["ids"].long()
    context = ids.shape[1]
    n = min(max(cfg.qk.tokens // context, 2), len(ids))
    if n < 2:
        raise SaelinkError(
            "qk: pairs are chosen on one half of the test sequences and judged on the other, and there is one "
            "sequence; use more text, or a smaller data.context_size"
        )
    ids = torch.cat([ids[:n], repeated_ids(job.model.vocabulary, context)])
    attention = load_scored_layer(cfg, job.model, cfg.layer, ids[:1], job.device)
    form = attention.form()
    forward = load_forward(cfg, job.model, [hook], job.device)
    rows = max(cfg.runtime.forward_tokens // context, 1)
    parts = []
    with torch.inference_mode(), job.observer.progress("qk: the stream", ids.numel()) as bar:
        for part in ids.split(rows):
            parts.append(forward(part.to(job.device))[hook].float())
            bar.advance(part.numel())
    stream = torch.cat(parts)
    drop, seen, half = cfg.data.drop_positions, attention.seen, n // 2
    first = Text(form, sae, stream[:half], ids[:half], seen, drop)
    second = Text(form, sae, stream[half:n], ids[half:n], seen, drop, first=half)
    return Opened(attention, form, sae, first, second, Text(form, sae, stream[n:], ids[n:], seen, drop))


class HeadTargets(TypedDict):
    """What taking a head's leading pairs out at once (of all keys) changes of the latents behind attention."""

    head: int
    together: list[TargetsChanged]


class QKTargetsFacts(TypedDict):
    hook_name: str
    heads: list[int]


class QKTargetsStage(JobStage[QKTargetsFacts]):
    """What the latents of hook_attn_out lose with the leading pairs of `qk`. File `targets.json`: HeadTargets."""

    name = "qk_targets"
    version = 1

    def __init__(self, job: Job, qk: Artifact[QKFacts]):
        super().__init__(job)
        self._qk = qk
        self.hook = job.model.hook("hook_attn_out", job.cfg.layer)

    def recipe(self) -> dict[str, Any]:
        return {}

    def inputs(self) -> dict[str, str]:
        return {"qk": self._qk.key, "sae": sae_choice(self.job.cfg, self.store, self.hook).key}

    def about(self) -> str:
        return self._qk.manifest["about"]

    def need(self) -> Need:
        hooks = self._qk.facts["hook_name"], self.hook
        source, target = (side_of(pull_sae(self.job.cfg, self.store, hook)) for hook in hooks)
        dense = 5 * 4.0 * self.job.cfg.data.context_size * target.d_sae
        needed = qk_bytes(self.job, source) + 2 * target.weights + dense
        return Need(needed, "use fewer tokens (qk.tokens), or leave them out (qk.targets=false)")

    def make(self, draft: Draft) -> QKTargetsFacts:
        job, source = self.job, self._qk.facts["hook_name"]
        source_sae, target_sae = (pull_sae(job.cfg, self.store, hook) for hook in (source, self.hook))
        opened = open_layer(job, source, source_sae.to(self.device, torch.float32))
        target = target_sae.to(self.device, torch.float32)
        read = load_attention(job.cfg, job.model, job.cfg.layer, self.device).heads
        heads: list[HeadFacts] = self._qk.json(HEADS_FILE)
        found: list[HeadTargets] = []
        with job.observer.progress("qk_targets", len(heads), "heads") as bar:
            for head in heads:
                pairs = np.array(head["leading"][MODES[0]], dtype=np.int64).reshape(-1, 2)
                sets = [pairs[: group["pairs"]].T for group in head["together"][MODES[0]]]
                changed = targets_changed(opened.attention, read, opened.second, target, head["head"], sets)
                found.append({"head": head["head"], "together": changed})
                bar.advance(1)
        draft.save_json(TARGETS_FILE, found)
        return {"hook_name": self.hook, "heads": [head["head"] for head in heads]}


def found_or_made(job: Job) -> Artifact[QKFacts]:
    """The layer's heads, or the one that the job names; that of all heads where it is there already.

    Raises SaelinkError for a head that the layer lacks.
    """
    every, asked = QKStage(job), job.cfg.head
    found = every.find()
    if asked is None or found is None:
        return (every if asked is None else QKStage(job, asked)).pull()
    if asked not in found.facts["heads"]:
        raise SaelinkError(_no_head(asked, job.cfg.layer, len(found.facts["heads"])))
    return every.pull()


def _no_head(head: int, layer: int, n: int) -> str:
    return f"head={head}: layer {layer} has heads 0 to {n - 1}"


STEPS = 4
"""Of a head's work, for the bar."""


def head_facts(job: Job, opened: Opened, head: int, bar: Progress) -> HeadFacts:
    """Everything about one head."""
    settings, second = job.cfg.qk, opened.second
    seen = looks(second, opened.repeated, head)
    shares = shares_of(second, head)
    bar.advance(1)
    ranked = chosen(opened.first, head, settings.latents)
    bar.advance(1)
    pairs: dict[str, list[PairFacts]] = {}
    leading: dict[str, list[list[int]]] = {}
    for mode, name in enumerate(MODES):
        best = first_of_all(ranked, mode)
        n = max(settings.together)
        leading[name] = np.stack([best.query[:n], best.key[:n]], 1).tolist()
        shown = best.select(np.arange(min(settings.pairs, len(best.query))))
        judged = measure(second, head, second.directions(head), shown.query, shown.key)
        pairs[name] = pair_facts(judged, mode)
    strongest = strongest_of_all(ranked)
    shown = strongest.select(np.arange(min(settings.pairs, len(strongest.query))))
    pairs[STRONGEST] = pair_facts(measure(second, head, second.directions(head), shown.query, shown.key), 1)
    bar.advance(1)
    nulls = nulls_of(opened, head, settings.latents) if settings.nulls else {}
    together = groups_of(opened, head, settings.together, {OWN: ranked} | nulls)
    best = first_of_all(ranked, 1)
    deleted = deletions(opened.attention, second, head, places_of(second, best, head, settings.pairs))
    bar.advance(1)
    return {
        "head": head,
        "looks": seen,
        "kinds": kinds(seen),
        "shares": shares,
        "pairs": pairs,
        "leading": leading,
        "together": together,
        "deleted": deleted,
    }


def first_of_all(pairs: ScoredPairs, mode: int) -> ScoredPairs:
    """Those first that move the pattern most in sum; without those that don't at all."""
    order = np.argsort(-pairs.variation[:, mode], kind="stable")
    return pairs.select(order[pairs.variation[order, mode] > 0])


def strongest_of_all(pairs: ScoredPairs) -> ScoredPairs:
    """Those first that move the pattern, without sinks, most where they are; with at least LEAST queries."""
    mean = pairs.variation[:, 1] / np.maximum(pairs.rows[:, 1], 1)
    order = np.argsort(-mean, kind="stable")
    return pairs.select(order[pairs.rows[order, 1] >= LEAST])


def nulls_of(opened: Opened, head: int, most: int) -> dict[str, ScoredPairs]:
    """By null, and for the head itself as LESS, the pairs chosen on a part of the text."""
    small = opened.small
    order = torch.randperm(opened.sae.d_sae, generator=torch.Generator().manual_seed(head)).to(small.device)
    return {
        LESS: chosen(small, head, most),
        NULLS[0]: chosen(small, head, most, order=order),
        NULLS[1]: chosen(small, head, most, shuffled=True),
        NULLS[2]: chosen(small, (head + 1) % opened.form.n_heads, most),
    }


def groups_of(opened: Opened, head: int, sizes: list[int], by: dict[str, ScoredPairs]) -> dict[str, list[Group]]:
    """By mode the leading pairs taken out at once, as many as each of `sizes`, beside those of each null in `by`."""
    sets: dict[tuple[str, int, int], Together] = {}
    for name, pairs in by.items():
        for mode in range(len(MODES)):
            best = first_of_all(pairs, mode)
            sets |= {(name, n, mode): Together(best.query[:n], best.key[:n], mode) for n in sizes}
    removed = dict(zip(sets, remove(opened.second, head, list(sets.values())), strict=True))
    found: dict[str, list[Group]] = {}
    for mode, name in enumerate(MODES):
        found[name] = []
        for n in sizes:
            own = removed[OWN, n, mode]
            group: Group = {
                "pairs": len(sets[OWN, n, mode].query),
                "rows": own.rows,
                "variation": own.variation,
                "control": own.control,
                "nulls": {null: removed[null, n, mode].variation for null in NULLS if null in by},
            }
            if LESS in by:
                group["less_text"] = removed[LESS, n, mode].variation
            found[name].append(group)
    return found


def pair_facts(pairs: ScoredPairs, mode: int) -> list[PairFacts]:
    """Pairs in their order, as the file has them."""
    more, found = pairs.more_than_control(), []
    for c in range(len(pairs.query)):
        rows = max(float(pairs.rows[c, mode]), 1.0)
        total = max(float(pairs.offsets[c, mode].sum()), 1e-30)
        places = [
            Example(sequence=int(s), query=int(q), key=int(k), variation=float(value))
            for (s, q, k), value in zip(pairs.places[c, mode], pairs.best[c, mode], strict=True)
            if value > 0
        ]
        found.append(
            PairFacts(
                query=int(pairs.query[c]),
                key=int(pairs.key[c]),
                rows=int(pairs.rows[c, mode]),
                variation=float(pairs.variation[c, mode]) / rows,
                control=float(pairs.control[c, mode]) / rows,
                more_than_control=bool(more[c, mode]),
                attention=float(pairs.lost[c, mode]) / rows,
                offsets=(pairs.offsets[c, mode] / total).tolist(),
                examples=places,
            )
        )
    return found


def shares_of(text: Text, head: int) -> dict[str, list[list[float]]]:
    """By mode which share of the centred score's square each group at the query with each at the key has.

    Shares are those of a sum's parts in its variance: the covariance with the whole, over the whole's variance; keys
    weigh by the pattern, so that what a head does not see does not count. They sum to 1, one may be below 0.
    """
    read, size = text.directions(head), len(GROUPS)
    sums, whole = torch.zeros(len(MODES), size, size, dtype=torch.float64), torch.zeros(len(MODES), dtype=torch.float64)
    for number in range(len(text)):
        vectors = text.vectors(number, head, read)
        patterns = text.patterns(number, (vectors.whole_queries, vectors.whole_keys))
        queries, keys = text.groups(number, head, vectors)
        parts = torch.einsum("aqe,bke->abqk", queries, keys)
        total = parts.sum((0, 1))
        for mode, pattern in enumerate(patterns):
            centred = total - (pattern * total).sum(-1, keepdim=True)
            weighed = pattern * centred
            sums[mode] += (parts * weighed).sum((-2, -1)).double().cpu()
            whole[mode] += (total * weighed).sum().double().cpu()
    return {name: (sums[mode] / whole[mode].clamp(min=1e-30)).tolist() for mode, name in enumerate(MODES)}
