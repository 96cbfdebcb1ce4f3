"""What sources do to a target together, beside the sum of what each does alone: the stage `joint`.

Effects of single ablations don't add up. Of some targets the sources with the strongest effects are taken out in pairs,
where both are active, and the strongest k together, where the target fires. On the same tokens each goes alone:

    joint effect   f(x) - f(x - sum of the set)
    sum            of f(x) - f(x - one of the set)
    interaction    joint effect - sum
    claim          what the connector's prediction loses with the whole set

all as means over tokens, in units of the target's mean active value.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict

import torch

from saelink import memory
from saelink.connectors.base import Connector
from saelink.errors import SaelinkError
from saelink.evidence.verdicts import MIN_ABLATED
from saelink.fit.train import TrainStage, fitted_connector, shape_of
from saelink.interventions.block import most_tokens, open_block, opened_sizes
from saelink.interventions.effects import EffectsStage, ablation_recipe, check_measurable, load_effects
from saelink.interventions.joint import Gone, Joint, evenly
from saelink.interventions.pairs import Effects
from saelink.job import Job, JobStage
from saelink.latents.rows import Rows
from saelink.store.draft import Draft
from saelink.store.stage import Need

JOINT_FILE = "joint.json"

SETS_FILE = "sets.safetensors"

PAIRED = 5
"""Sources of a target that are paired, those with the strongest effects,"""

TOGETHER = (2, 5, 10, 20)
"""and how many of the strongest go together."""

MOST_TOKENS, FEWEST_TOKENS = 48, 10
"""Tokens of a set, evenly spread over those that it is about."""

STEP = 2048
"""Tokens whose predictions are in memory at a time, fewer where these take memory.STEP_ENTRIES."""

RESAMPLES = 1000

NOTABLE = 0.1
"""An interaction counts from this share of the target's mean active value on."""


class Sets(NamedTuple):
    """Sets of sources that go together, of some targets."""

    target: list[int]
    size: list[int]
    """0 for a pair, else one of TOGETHER."""
    token: list[torch.Tensor]
    """by set the tokens [m],"""
    gone: list[Gone]
    """and what goes there."""

    def add(self, target: int, size: int, token: torch.Tensor, gone: Gone) -> None:
        self.target.append(target)
        self.size.append(size)
        self.token.append(token)
        self.gone.append(gone)


def strongest_sources(measured: Effects, most: int, strong: float, targets: int) -> dict[int, list[int]]:
    """By target its sources with the largest effects, `most` of them, for targets with two strong ones at least.

    Of more than `targets` such targets so many, evenly spread. Sources ablated on few tokens don't count.
    """
    enough = measured.tokens.sum(0) >= MIN_ABLATED
    source, target, size = [], [], []
    for part in measured.pairs():
        of, to = part.source_of, part.target.long()
        unit = measured.target_mean[to]
        kept = enough[of] & (unit > 0) & (part.mean.abs() >= 0.1 * strong * unit)
        source.append(of[kept])
        target.append(to[kept])
        size.append((part.mean / unit.clamp(min=1e-30)).abs()[kept])
    sources, ids, sizes = torch.cat(source), torch.cat(target), torch.cat(size)
    strong_ones = torch.bincount(ids[sizes >= strong], minlength=measured.d_target)
    chosen = evenly((strong_ones >= 2).nonzero().flatten(), targets)
    found = {}
    for each in chosen.tolist():
        mine = (ids == each).nonzero().flatten()
        found[each] = sources[mine[sizes[mine].sort(descending=True, stable=True).indices[:most]]].tolist()
    return found


def sets_of(joint: Joint, sources: dict[int, list[int]]) -> Sets:
    """The pairs and the strongest together, of each target."""
    sets = Sets([], [], [], [])
    for target, mine in sources.items():
        active = {source: _active(joint, source) for source in mine}
        for i, one in enumerate(mine[:PAIRED]):
            for other in mine[i + 1 : PAIRED]:
                token = evenly((active[one] & active[other]).nonzero().flatten(), MOST_TOKENS)
                if len(token) >= FEWEST_TOKENS:
                    row = torch.arange(len(token)).repeat_interleave(2)
                    sets.add(target, 0, token, Gone(row, torch.tensor([one, other]).repeat(len(token))))
        fires = evenly(_fires(joint, target), MOST_TOKENS)
        for most in TOGETHER:
            numbers = torch.tensor(mine[:most])
            there = torch.stack([active[source][fires] for source in mine[:most]], 1)
            token, some = fires[there.any(1)], there[there.any(1)]
            if len(token) >= FEWEST_TOKENS and len(mine) >= most:
                row, place = some.nonzero(as_tuple=True)
                sets.add(target, most, token, Gone(row, numbers[place]))
    return sets


def _active(joint: Joint, source: int) -> torch.Tensor:
    mask = torch.zeros(len(joint), dtype=torch.bool)
    mask[joint.by_source.indices[joint.by_source.offsets[source] : joint.by_source.offsets[source + 1]]] = True
    return mask


def _fires(joint: Joint, target: int) -> torch.Tensor:
    return joint.by_target.indices[joint.by_target.offsets[target] : joint.by_target.offsets[target + 1]]


class Measured(NamedTuple):
    """By set, in units of the targets' scale."""

    joint: torch.Tensor
    """[sets]"""
    summed: torch.Tensor
    claim: torch.Tensor


class _Together(NamedTuple):
    """All sets' tokens one after another."""

    set_of: torch.Tensor
    """[m] the set of each token,"""
    token: torch.Tensor
    target: torch.Tensor
    gone: Gone
    lengths: torch.Tensor
    """[sets]"""

    @staticmethod
    def of(sets: Sets) -> _Together:
        lengths = torch.tensor([len(token) for token in sets.token])
        set_of = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        first = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        row = torch.cat([gone.row + start for gone, start in zip(sets.gone, first.tolist(), strict=False)])
        gone = Gone(row, torch.cat([gone.source for gone in sets.gone]))
        return _Together(set_of, torch.cat(sets.token), torch.tensor(sets.target)[set_of], gone, lengths)

    def mean(self, values: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        """[sets] the sum of values over the tokens of each set, over how many these are."""
        total = torch.zeros(len(self.lengths), dtype=torch.float64).index_add_(0, of, values.double())
        return (total / self.lengths).float()


def measure_sets(joint: Joint, sets: Sets) -> tuple[torch.Tensor, torch.Tensor]:
    """[sets] what each set does together, and the sum of what each of its sources does alone."""
    every = _Together.of(sets)
    token, target, gone = every.token, every.target, every.gone
    with torch.inference_mode():
        own = joint.value(joint.own(token, target), token, target)
        together = own - joint.value(joint.without(token, gone, target), token, target)
        of, to = token[gone.row], target[gone.row]
        alone = joint.without(of, Gone(torch.arange(len(of)), gone.source), to)
        single = own[gone.row] - joint.value(alone, of, to)
    return every.mean(together, every.set_of), every.mean(single, every.set_of[gone.row])


def claims_on_sets(joint: Joint, sets: Sets, connector: Connector, unit: torch.Tensor) -> torch.Tensor:
    """[sets] what a connector's prediction loses with each set; `unit` [d_source] of its sources."""
    every = _Together.of(sets)
    with torch.inference_mode():
        claim = _claimed(joint, connector, every.token, every.gone, every.target, unit)
    return every.mean(claim, every.set_of)


def _claimed(
    joint: Joint, connector: Connector, token: torch.Tensor, gone: Gone, target: torch.Tensor, unit: torch.Tensor
) -> torch.Tensor:
    """[m] what the connector's prediction of target[m] loses at each token when the sources go that go there."""
    column = torch.full((int(max(connector.target_ids.max(), target.max())) + 1,), -1)
    column[connector.target_ids] = torch.arange(len(connector.target_ids))
    lost, step = torch.zeros(len(token)), max(min(STEP, memory.STEP_ENTRIES // connector.d_target), 1)
    for low in range(0, len(token), step):
        at = token[low : low + step]
        here = slice(*torch.searchsorted(gone.row, torch.tensor([low, low + len(at)])).tolist())
        rows = joint.active.select(at)
        rows = Rows(rows.offsets, rows.indices, rows.values / unit[rows.indices], rows.d)
        key = rows.row_of * rows.d + rows.indices
        source = gone.source[here]
        gone_key = (gone.row[here] - low) * rows.d + source
        of = at[gone.row[here] - low]
        comes = (joint.active.at(of, source) - joint.amount(of, source)) / unit[source]
        place = torch.searchsorted(key, gone_key).clamp(max=len(key) - 1)
        values = rows.values.clone()
        there = key[place] == gone_key
        values[place[there]] = comes[there]
        change = connector(rows) - connector(Rows(rows.offsets, rows.indices, values, rows.d))
        places = column[target[low : low + step]]
        found = change.gather(1, places.clamp(min=0)[:, None]).squeeze(1)
        lost[low : low + len(at)] = torch.where(places >= 0, found, 0.0).cpu()
    return lost


def agreement(said: torch.Tensor, measured: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    """Correlation, rank correlation and slope of measured on said [n], with 95% intervals from resampled targets."""
    groups = target.unique(return_inverse=True)[1]
    n = int(groups.max()) + 1 if len(groups) else 0
    said, measured = said.double(), measured.double()
    ranks = [values.argsort().argsort().double() for values in (said, measured)]

    def figures(weight: torch.Tensor) -> tuple[float, float, float]:
        return (
            _correlation(said, measured, weight),
            _correlation(ranks[0], ranks[1], weight),
            ((weight * said * measured).sum() / (weight * said.square()).sum().clamp(min=1e-30)).item(),
        )

    names = ("r", "rank_r", "slope")
    if len(said) < 3:
        return {}
    values = figures(torch.ones(len(said), dtype=torch.float64))
    drawn = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(0))
    again = torch.tensor([figures(torch.bincount(draw, minlength=n).double()[groups]) for draw in drawn])
    low, high = again.nan_to_num().double().quantile(torch.tensor([0.025, 0.975]).double(), 0).tolist()
    found: dict[str, float] = {}
    for i, name in enumerate(names):
        found |= {name: values[i], f"{name}_low": low[i], f"{name}_high": high[i]}
    return found


def _correlation(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> float:
    total = weight.sum()
    x, y = x - (weight * x).sum() / total, y - (weight * y).sum() / total
    spread = ((weight * x.square()).sum() * (weight * y.square()).sum()).sqrt()
    return ((weight * x * y).sum() / spread.clamp(min=1e-30)).item()


class JointFacts(TypedDict):
    targets: int
    sets: int


class JointStage(JobStage[JointFacts]):
    """Joint effects of sources on verify.joint targets, on test documents, and how well the connector predicts them.

    Files: `joint.json`, by kind of set (`pairs`, `top 2`, ...) `sets`; `notable`, the share of interactions of at least
    a tenth of the target's mean active value, and of these `less`, the share whose sources together do less than their
    sum; `interaction`, its median size over the sum's; `claim` and `sum`, how the connector's claims and the sum of
    single effects agree with joint effects (`r`, `rank_r`, `slope`, 95% intervals over targets); `sets.safetensors`,
    by set `target`, `size` (0 for a pair), `joint`, `sum`, `claim`. Raises SaelinkError for a link whose effects can't
    be measured.
    """

    name = "joint"
    version = 1

    def __init__(self, job: Job):
        super().__init__(job)
        check_measurable(job.cfg)

    def check(self) -> None:
        if self.job.cfg.verify.joint < 0:
            raise SaelinkError(f"verify.joint={self.job.cfg.verify.joint} must be at least 0")

    def recipe(self) -> dict[str, Any]:
        cfg = self.job.cfg
        tokens = {"tokens": most_tokens(cfg, "test"), "drop_positions": cfg.data.drop_positions}
        return {"targets": cfg.verify.joint, "strong": cfg.verify.strong, **tokens, **ablation_recipe(cfg)}

    def inputs(self) -> dict[str, str]:
        keys = {"connector": TrainStage(self.job).key, "effects": EffectsStage(self.job).key}
        return {**keys, "model": self.job.model.artifact.key}

    def about(self) -> str:
        return TrainStage(self.job).about()

    def need(self) -> Need:
        pairs = EffectsStage(self.job).pull().facts["pairs"]
        needed = memory.joint(*opened_sizes(self.job)) + memory.together(shape_of(self.job), pairs)
        return Need(needed, "use fewer tokens (verify.tokens), or leave it out (verify.joint=0)")

    def make(self, draft: Draft) -> JointFacts:
        job = self.job
        measured = load_effects(EffectsStage(job).pull())
        connector = fitted_connector(TrainStage(job).pull())
        sources = strongest_sources(measured, max(TOGETHER), job.cfg.verify.strong, job.cfg.verify.joint)
        joint = Joint(open_block(job, "test"), job.sides.scales, job.cfg.verify.ablation)
        sets = sets_of(joint, sources)
        unit = torch.tensor(job.sides.scales[:-1])[joint.block.side]
        figures: dict[str, Any] = {}
        if sets.target:
            found = Measured(*measure_sets(joint, sets), claims_on_sets(joint, sets, connector, unit))
            target, size = torch.tensor(sets.target), torch.tensor(sets.size)
            found = Measured(*(values / measured.target_mean[target] for values in found))
            figures = figures_of(target, size, found)
            columns = {"joint": found.joint, "sum": found.summed, "claim": found.claim}
            draft.save_tensors(SETS_FILE, {"target": target, "size": size, **columns})
        draft.save_json(JOINT_FILE, figures)
        return {"targets": len(sources), "sets": len(sets.target)}


def figures_of(target: torch.Tensor, size: torch.Tensor, found: Measured) -> dict[str, Any]:
    """By kind of set what its joint effects are beside sums and claims; see JointStage."""
    figures: dict[str, Any] = {}
    for kind in (0, *TOGETHER):
        mine = size == kind
        if not bool(mine.any()):
            continue
        joint, summed, claim = (values[mine] for values in found)
        interaction = joint - summed
        notable = interaction.abs() >= NOTABLE
        less = interaction * summed < 0
        figures["pairs" if kind == 0 else f"top {kind}"] = {
            "sets": int(mine.sum()),
            "notable": notable.double().mean().item(),
            "less": (less & notable).sum().item() / max(int(notable.sum()), 1),
            "interaction": (interaction.abs() / summed.abs().clamp(min=1e-6)).median().item(),
            "claim": agreement(claim, joint, target[mine]),
            "sum": agreement(summed, joint, target[mine]),
        }
    return figures
