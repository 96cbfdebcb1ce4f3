"""What the model's next token loses without an edge or a latent: the stage `consequences`.

A latent is taken out of the target hook's activations at one token, activation times decoder direction, and the model
runs on. Of an edge only what its source does to the target goes: the change of the target latent that ablating the
source makes at this token (see effects). Measured are the log-probability of the actual next token and the divergence
of the whole prediction, beside a step of the same length along another latent's direction.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict

import torch

from saelink import memory
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.evidence.names import Names, names_inputs
from saelink.evidence.verdicts import VERDICTS, VERDICTS_FILE
from saelink.evidence.verify import VerifyFacts, VerifyStage
from saelink.interventions.block import Block, encoded_with_floor, open_block, opened_sizes, read_held
from saelink.job import Job, JobStage
from saelink.latents.link import load_split
from saelink.latents.outliers import flagged
from saelink.model.load import load_bridge
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Need
from saelink.store.store import Store

CONSEQUENCES_FILE = "consequences.json"

TOKENS = 16
"""Test tokens of each edge and latent, evenly spread over those where it is active."""

SEQUENCES = 8
"""Sequences of one pass to the logits."""


class Item(NamedTuple):
    """An edge, or a latent alone."""

    kind: str
    """edge, target (of one of the edges) or outlier."""
    source: int | None
    target: int

    @property
    def text(self) -> str:
        """What it is, for a message."""
        return f"target latent {self.target}" if self.source is None else f"edge {self.source}-{self.target}"


class ConsequencesFacts(TypedDict):
    items: int
    silent: list[str]
    """Edges and latents that are never active on the tokens looked at, and so not among the items."""


class ConsequencesStage(JobStage[ConsequencesFacts]):
    """The consequences of the strongest confirmed edges, of their targets and of the outlier latents.

    File `consequences.json`: a list with `kind`, `source`, `source_name`, `target`, their top tokens, `tokens`; in nats
    `logp`, the mean change of the actual next token's log-probability, `logp_error`, its standard error; `kl`, the mean
    divergence of the prediction from the clean one, and `kl_null`, that of an equal step along another latent.
    Raises SaelinkError for a verify.chosen that is no edge between these latents.
    """

    name = "consequences"
    version = 3

    def __init__(self, job: Job):
        super().__init__(job.measured)
        self._verify = VerifyStage(job)

    def recipe(self) -> dict[str, Any]:
        cfg = self.job.cfg
        return {
            "most": cfg.verify.consequences,
            "chosen": cfg.verify.chosen,
            "outlier_shares": dict(sorted(cfg.outliers.shares.items())),
            "tokens": cfg.verify.tokens,
            "model_dtype": cfg.model.dtype.name,
        }

    def inputs(self) -> dict[str, str]:
        return {"verify": self._verify.key, **names_inputs(self.job)}

    def about(self) -> str:
        return self._verify.about()

    def check(self) -> None:
        chosen_edges(self.job)

    def need(self) -> Need:
        sizes = opened_sizes(self.job)
        run = memory.without_edges(sizes.size, sizes.target, SEQUENCES, sizes.context)
        names = self.job.sides.split_bytes("test") + memory.vocabulary(sizes.size)
        needed = memory.block(*sizes) + run + names
        return Need(needed, "use fewer tokens (verify.tokens), or leave it out (verify.consequences=0)")

    def make(self, draft: Draft) -> ConsequencesFacts:
        job = self.job
        items = [*chosen_edges(job), *_strongest(job.cfg, self._verify.pull()), *_outliers(job)]
        items += [Item("target", None, item.target) for item in items if item.kind == "edge"]
        items = list(dict.fromkeys(items))
        rows = _measured(job, items)
        draft.save_json(CONSEQUENCES_FILE, list(rows.values()))
        silent = [item.text for item in items if item not in rows]
        for text in silent:
            job.observer.say(f"consequences: {text} left out, never active on the tokens looked at (verify.tokens)")
        return {"items": len(rows), "silent": silent}


def consequences_of(store: Store, verdicts: Artifact[Any]) -> Artifact[ConsequencesFacts] | None:
    """The newest consequences that were measured beside these verdicts."""
    found = [
        a for a in store.artifacts() if a.stage == "consequences" and a.manifest["inputs"]["verify"] == verdicts.key
    ]
    return found[-1] if found else None


def chosen_edges(job: Job) -> list[Item]:
    """The edges of verify.chosen. Raises SaelinkError for one that is none between these latents."""
    sides = job.sides
    items = []
    for text in job.cfg.verify.chosen:
        source, dash, target = text.partition("-")
        if not dash or not target.isdigit() or int(target) >= sides.d_target:
            raise SaelinkError(
                f"verify.chosen={text}: give source-target, latents' numbers such as 353-1262 (of several source hooks "
                f"1.353-1262); there are {sides.d_target:,} target latents"
            )
        items.append(Item("edge", sides.source_number(source, f"verify.chosen={text}"), int(target)))
    return items


def _strongest(cfg: Config, judged: Artifact[VerifyFacts]) -> list[Item]:
    """The confirmed edges with the largest effects, one a target and one a source."""
    tensors = judged.tensors(VERDICTS_FILE)
    confirmed = (tensors["verdict"] == VERDICTS.index("confirmed")).nonzero().flatten()
    order = confirmed[tensors["effect"][confirmed].abs().sort(descending=True, stable=True).indices]
    items: list[Item] = []
    sources, targets = set[int](), set[int]()
    pairs = zip(tensors["source"][order].tolist(), tensors["target"][order].tolist(), strict=True)
    for source, target in pairs:
        if len(items) == cfg.verify.consequences:
            break
        if source not in sources and target not in targets:
            items.append(Item("edge", source, target))
            sources.add(source)
            targets.add(target)
    return items


def _outliers(job: Job) -> list[Item]:
    sides = job.sides
    ids = job.tokens.tensors("test.safetensors")["ids"].long()
    found = flagged(sides.target, ids, job.vocabulary, job.cfg.outliers.shares)
    return [Item("outlier", None, latent) for latent in found.latents[: job.cfg.verify.consequences]]


class _Step(NamedTuple):
    """What is taken out at one token."""

    item: int
    token: int
    """Among the tokens that count."""
    amount: float


def _measured(job: Job, items: list[Item]) -> dict[Item, dict[str, Any]]:
    """What each item does to the next token; nothing of those that are active nowhere."""
    block = open_block(job, "test")
    with torch.inference_mode():
        steps, factor = _steps(block, items)
    ids = job.tokens.tensors("test.safetensors")["ids"].long()
    test = load_split(job.cfg, job.sides, "test")
    places = test.row[: len(block.fold)].tolist()
    runs = _Runs(job, block, ids, items, places, factor)
    # The last token of a sequence has no next one here.
    steps = [step for step in steps if places[step.token] % runs.context < runs.context - 1]
    steps.sort(key=lambda step: (places[step.token] % runs.context, step.token))
    found: dict[int, list[tuple[float, float, float]]] = {}
    with job.observer.progress("consequences", len(steps), "ablations") as bar, torch.inference_mode():
        size_of_pass = max(min(SEQUENCES, job.cfg.runtime.forward_tokens // runs.context), 1)
        for first in range(0, len(steps), size_of_pass):
            part = steps[first : first + size_of_pass]
            for step, values in zip(part, runs.run(part), strict=True):
                found.setdefault(step.item, []).append(values)
            bar.advance(len(part))
    names = Names(job)
    return {item: _row(item, found[number], names) for number, item in enumerate(items) if number in found}


class _Runs:
    """The model run to its end, with something taken out at one token of each sequence."""

    def __init__(
        self, job: Job, block: Block, ids: torch.Tensor, items: list[Item], places: list[int], factor: list[float]
    ):
        self._job, self._ids, self._items, self._places, self._factor = job, ids, items, places, factor
        self._W_dec = block.target_sae.W_dec
        self._other = torch.randperm(len(self._W_dec), generator=torch.Generator().manual_seed(0)).tolist()
        self._bridge = load_bridge(job.cfg, job.model, job.device)
        self.context = ids.shape[1]

    def run(self, part: list[_Step]) -> list[tuple[float, float, float]]:
        """Of each step the change of the actual next token's log-probability, the divergence, and that of the null."""
        device, ids, context = self._job.device, self._ids, self.context
        places = [self._places[step.token] for step in part]
        at = torch.tensor([place % context for place in places], device=device)
        text = torch.stack([ids[place // context] for place in places])[:, : int(at.max()) + 1].to(device)
        nexts = torch.tensor([int(ids[place // context, place % context + 1]) for place in places], device=device)
        size = torch.tensor([step.amount * self._factor[step.token] for step in part], device=device)
        own = self._W_dec[[self._items[step.item].target for step in part]]
        away = self._W_dec[[self._other[self._items[step.item].target] for step in part]]
        away = away * (own.norm(dim=1) / away.norm(dim=1).clamp(min=1e-12))[:, None]
        clean = self._log_probabilities(text, at, None)
        ablated = self._log_probabilities(text, at, size[:, None] * own)
        null = self._log_probabilities(text, at, size[:, None] * away)
        change = (ablated - clean).gather(1, nexts[:, None]).squeeze(1)
        kl, kl_null = ((clean.exp() * (clean - others)).sum(1) for others in (ablated, null))
        return list(zip(change.tolist(), kl.tolist(), kl_null.tolist(), strict=True))

    def _log_probabilities(self, text: torch.Tensor, at: torch.Tensor, taken: torch.Tensor | None) -> torch.Tensor:
        """[n, vocabulary] of what follows position at[r] of each text, with `taken` [n, width] gone there."""

        def remove(acts: torch.Tensor, **_: object) -> torch.Tensor:
            assert taken is not None
            flat = acts.flatten(2).clone()
            flat[torch.arange(len(flat)), at] -= taken.to(flat.dtype)
            return flat.view(acts.shape)

        hooks = [] if taken is None else [(self._job.link.target, remove)]
        out = self._bridge.run_with_hooks(text, fwd_hooks=hooks)
        return out[torch.arange(len(text)), at].float().log_softmax(1)


def _row(item: Item, values: list[tuple[float, float, float]], names: Names) -> dict[str, Any]:
    logp, kl, kl_null = torch.tensor(values, dtype=torch.float64).T
    error = (logp.std() / len(logp) ** 0.5).item() if len(logp) > 1 else None
    source = None if item.source is None else names.unit("source", item.source)
    return {
        **item._asdict(),
        "source_name": None if source is None else source.short,
        "source_token": None if source is None else source.token,
        "target_token": names.unit("target", item.target).token,
        "tokens": len(values),
        "logp": logp.mean().item(),
        "logp_error": error,
        "kl": kl.mean().item(),
        "kl_null": kl_null.mean().item(),
    }


def _steps(block: Block, items: list[Item]) -> tuple[list[_Step], list[float]]:
    """What is taken out where, in raw units, and what a decoder direction is multiplied by at each token."""
    target_sae = block.target_sae
    y = block.computation.outputs()
    before, floor = encoded_with_floor(target_sae, y)
    active, units = block.active(), target_sae.units(y)
    by_latent = torch.zeros(target_sae.d_sae)
    if target_sae.threshold is not None:
        by_latent = target_sae.threshold.cpu().clamp(min=0)
    steps: list[_Step] = []
    for number, item in enumerate(items):
        rows = before if item.source is None else active
        latent = item.target if item.source is None else item.source
        mine = (rows.indices == latent).nonzero().flatten()
        mine = mine[torch.linspace(0, len(mine) - 1, min(TOKENS, len(mine))).round().long()]
        token, value = rows.row_of[mine], rows.values[mine]
        if item.source is not None and len(token):
            source = torch.full_like(token, item.source)
            acts = block.without(token, source, block.taken(token, source, value))
            after = read_held(target_sae.pre_acts(acts), floor[token], by_latent)[:, item.target]
            value = before.select(token).dense()[:, item.target] - after.cpu()
        steps += [_Step(number, t, v) for t, v in zip(token.tolist(), value.tolist(), strict=True)]
    factor = [1.0] * len(y) if units is None else units.scale.flatten().tolist()
    return steps, factor
