"""Planted circuits at the width and sparsity of real latents: power and false positives of logic, trials and verdicts.

    python -m benchmarks.planted [noise ...]     # some minutes on 2 cores; writes benchmarks/planted.json

2,304 source latents, 32 active on a token, rates spread over two orders of magnitude, in random directions of 576
dimensions: reading one picks up the others. An MLP behind an RMSNorm computes each planted target from what it reads.
`noise` is how badly the source SAE sees: the share of a latent's activations that it misses, as many false ones, the
relative error of its values, and a dense part of the stream that no latent explains. The lasso is fitted on half of the
tokens; words, trials and verdicts are of the other half. Nothing in the package was chosen on these figures but what
docs/results/logic.md says was.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from saelink.evidence.claims import Claims
from saelink.evidence.edges import _Matrix, _read
from saelink.evidence.logic import wilson
from saelink.evidence.logic_trials import WORDS, claims_of, outcome_of, tried
from saelink.evidence.verdicts import VERDICTS, judged
from saelink.fit.lasso.coordinate import Lasso
from saelink.fit.products.dense import gram_of
from saelink.interventions.block import FOLDS, Block
from saelink.interventions.joint import Joint
from saelink.interventions.measure import measure_effects, open_measurement
from saelink.latents.rows import Rows, sparse_linear
from saelink.latents.split import Tokens
from saelink.model.block import Chain, Steps
from saelink.progress import Observer, Progress
from saelink.saes.sae import SAE

D_SOURCE, D_MODEL, L0, TOKENS = 2304, 576, 32, 24_000
"""As the default model's SAEs have them; of the tokens half are fitted to."""

NOISES = (0.0, 0.1, 0.2, 0.4)

COPIES = 10
"""Targets of each kind."""

L1_ALPHA = 8e-4

CONSTANT = 40.0
"""Norm of the part of the stream that is the same on every token, as a model's has one."""

SEED = 0


class Kind(NamedTuple):
    """What is planted: three latents A, B, C, how they go together, and what the target makes of them."""

    rule: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    together: float
    """Share of A's tokens on which B is active."""
    c_with: str
    """Which of a and b C goes with, on nine tenths of its tokens, or nothing."""
    words: tuple[str, ...]
    """Words that are right; none: the target is to be unclear."""
    sources: tuple[int, ...]
    """The sources that they name, 0 to 2,"""
    true: tuple[int, ...]
    """and those that the target is made from."""


def _above(x: torch.Tensor) -> torch.Tensor:
    """What an MLP makes of a reading: nothing of what other latents in other directions add to it by chance."""
    return 1.5 * torch.relu(x - 0.7)


KINDS: dict[str, Kind] = {
    "copy": Kind(lambda a, b, c: _above(a), 0.1, "", ("copy",), (0,), (0,)),
    "or": Kind(lambda a, b, c: (_above(a) + _above(b)).clamp(max=1), 0.1, "", ("or",), (0, 1), (0, 1)),
    "and": Kind(lambda a, b, c: 2 * torch.relu(a + b - 2.1), 0.4, "", ("and",), (0, 1), (0, 1)),
    "and not": Kind(lambda a, b, c: _above(a - 2 * _above(b)), 0.3, "", ("and not",), (0, 1), (0, 1)),
    "threshold": Kind(lambda a, b, c: 2 * _above(a - 0.4), 0.1, "", ("copy",), (0,), (0,)),
    "confounded pair": Kind(lambda a, b, c: _above(a), 0.1, "a", ("copy",), (0,), (0,)),
    "confounded and not": Kind(lambda a, b, c: _above(a - 2 * _above(c)), 0.3, "b", ("and not",), (0, 2), (0, 2)),
    "chain": Kind(lambda a, b, c: _above(b), 0.9, "", ("copy",), (1,), (1,)),
    "faint": Kind(lambda a, b, c: _above(a), 0.3, "", ("copy",), (0,), (0,)),
    "unseen": Kind(lambda a, b, c: 0 * a, 0.1, "", (), (), ()),
}
"""`faint`: A is fainter, below what the target needs, where B is active: counts look like A AND NOT B. `unseen`: no
latent holds what the target is made from."""


class PlantedBlock(Block):
    """A block whose source SAE sees what it is told."""

    def active(self) -> Rows:
        return SEEN[id(self.x[0])]


SEEN: dict[int, Rows] = {}
"""By activations what the SAE sees of them."""


class Planted(torch.nn.Module):
    """Every target, from what is read of its latents along their directions."""

    def __init__(self, rules: list[Kind], read: torch.Tensor, write: torch.Tensor, unseen: torch.Tensor, gain: float):
        """read [targets, 3, d] directions, write [targets, d], unseen [targets, d] what unseen targets read."""
        super().__init__()
        self._rules, self._read, self._write, self._unseen, self._gain = rules, read, write, unseen, gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.einsum("xd,tkd->xtk", x, self._read) * self._gain
        hidden = _above(x @ self._unseen.T * self._gain)
        values = [
            kind.rule(*found[:, i].unbind(1)) if kind.true else hidden[:, i] for i, kind in enumerate(self._rules)
        ]
        return torch.stack(values, 1) @ self._write


class PlantedWorld(NamedTuple):
    """All that is known."""

    block: Block
    seen: Rows
    """[n, D_SOURCE] what the source SAE sees."""
    target: Rows
    kinds: list[str]
    latents: torch.Tensor
    """[targets, 3] A, B and C of each."""


def planted_world(noise: float, seed: int) -> PlantedWorld:
    """One world."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*size: int) -> torch.Tensor:
        return torch.rand(*size, generator=generator)

    kinds = [name for name in KINDS for _ in range(COPIES)]
    targets = len(kinds)
    latents = torch.arange(3 * targets).view(targets, 3)
    rate = torch.exp(torch.randn(D_SOURCE, generator=generator) * 1.2)
    rate = (rate * (L0 / D_SOURCE / rate.mean())).clamp(2e-4, 0.3)
    rate[: 3 * targets] = 0.004 * 8 ** uniform(3 * targets)  # rarer or more common than the mean, never too rare to see
    on = uniform(TOKENS, D_SOURCE) < rate
    value = (0.7 + 0.6 * uniform(TOKENS, D_SOURCE)) * on
    value[:, : 3 * targets] += 0.3 * on[:, : 3 * targets]  # 1 to 1.6: what is read stands out from what others add
    for kind, (a, b, c) in zip(kinds, latents.tolist(), strict=True):
        with_a = on[:, a] & (uniform(TOKENS) < KINDS[kind].together)
        value[:, b] = torch.where(with_a & ~on[:, b], 1 + 0.6 * uniform(TOKENS), value[:, b])
        if kind == "faint":
            value[:, a] = torch.where(value[:, b] > 0, value[:, a] * 0.5, value[:, a])
        if KINDS[kind].c_with:
            leader = value[:, a if KINDS[kind].c_with == "a" else b] > 0
            value[:, c] = torch.where(leader & (uniform(TOKENS) < 0.9), 1 + 0.6 * uniform(TOKENS), 0.0)
    directions = torch.nn.functional.normalize(torch.randn(D_SOURCE, D_MODEL, generator=generator), dim=1)
    write = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=generator))[0]
    unseen = torch.nn.functional.normalize(torch.randn(targets, D_MODEL, generator=generator), dim=1)
    true = Rows.from_dense(value)
    x = sparse_linear(true, directions) + noise * torch.randn(TOKENS, D_MODEL, generator=generator) / 8
    hidden = torch.tensor([not KINDS[kind].true for kind in kinds])
    fires = (uniform(TOKENS, targets) < 0.01) * hidden
    x = x + (fires * (1 + 0.6 * uniform(TOKENS, targets))) @ unseen
    x = x + CONSTANT * write[:, -1]  # orthogonal to all that targets write
    norm = torch.nn.RMSNorm(D_MODEL, eps=1e-6)
    gain = (x.square().mean(1) + 1e-6).sqrt().mean().item()
    # What is constant is no latent's business: directions are read without it.
    apart = directions - (directions @ write[:, -1])[:, None] * write[:, -1]
    away = unseen - (unseen @ write[:, -1])[:, None] * write[:, -1]
    rules = [KINDS[kind] for kind in kinds]
    norm.requires_grad_(False)
    module = Steps([norm, Planted(rules, apart[latents], write[:, :targets].T.contiguous(), away, gain)], True)
    source = SAE(directions.T.contiguous(), torch.zeros(D_SOURCE), directions, torch.zeros(D_MODEL))
    threshold = torch.full((targets,), 0.3)
    columns = write[:, :targets]
    target = SAE(
        columns.contiguous(), torch.zeros(targets), columns.T.contiguous(), torch.zeros(D_MODEL), None, threshold
    )
    half = TOKENS // 2
    seen = seen_of(true, noise, rate, generator)
    block = PlantedBlock(
        Chain(module, x[half:]), [source], target, [x[half:].contiguous()], torch.arange(half) // 100 % FOLDS
    )
    with torch.inference_mode():
        outputs = [module(part) for part in x.split(4096)]
        encoded = [Rows.from_pairs(*target.encode_sparse(part), n=len(part), d=targets) for part in outputs]
    return PlantedWorld(block, seen, Rows.stack(encoded), kinds, latents)


def seen_of(true: Rows, noise: float, rate: torch.Tensor, generator: torch.Generator) -> Rows:
    """What an SAE sees: some missed, as many that are not there, values with an error."""
    kept = torch.rand(len(true.values), generator=generator) >= noise
    size = true.values * (1 + 0.5 * noise * torch.randn(len(true.values), generator=generator)).clamp(min=0.1)
    n = len(true)
    false = int(noise * len(true.values))
    row = torch.randint(n, (false,), generator=generator)
    latent = torch.multinomial(rate, false, replacement=True, generator=generator) if false else row
    value = 0.3 + 0.7 * torch.rand(false, generator=generator)
    rows, ids = torch.cat([true.row_of[kept], row]), torch.cat([true.indices[kept], latent])
    key, first = (rows * true.d + ids).unique(return_inverse=True)
    values = torch.zeros(len(key)).index_add_(0, first, torch.cat([size[kept], value]))
    return Rows.from_pairs(key // true.d, key % true.d, values, n=n, d=true.d)


def main() -> None:
    path = Path(__file__).with_name("planted.json")
    for noise in [float(word) for word in sys.argv[1:]] or NOISES:
        row = measured(noise, SEED)
        print(noise, json.dumps(row, indent=1), flush=True)
        result = json.loads(path.read_text()) if path.exists() else {}
        result[f"{noise:g}"] = row
        path.write_text(json.dumps(dict(sorted(result.items())), indent=1) + "\n")


def measured(noise: float, seed: int) -> dict[str, Any]:
    """What is found of one world, by kind."""
    world = planted_world(noise, seed)
    half = TOKENS // 2
    every = torch.ones(TOKENS, dtype=torch.bool)
    tokens = Tokens(world.seen, world.target, torch.arange(TOKENS), every)
    fit, test = tokens.select(torch.arange(half)), tokens.select(torch.arange(half, TOKENS))
    gram = gram_of([fit])
    weight = Lasso(gram.xx, gram.xy, gram.yy).solve(L1_ALPHA / 2, 1e-4, 20_000)[0].float()
    SEEN[id(world.block.x[0])] = test.source
    verdicts = verdicts_of(world, weight)
    counts, checked = (logic_of(weight, test, known) for known in (None, verdicts))
    joint = Joint(world.block, [1.0, 1.0])
    document = torch.arange(half) // 100
    rows: dict[str, Any] = {}
    for name, kind in KINDS.items():
        mine = [i for i, each in enumerate(world.kinds) if each == name]
        rows[name] = {
            "counts": labels_of(counts, world, mine, kind),
            "without refuted edges": labels_of(checked, world, mine, kind),
            "tested": trials_of(joint, counts, world, mine, kind, document),
            "edges": edges_of(verdicts, world, mine, kind),
        }
    rows["all"] = {
        "counts": summed([rows[name]["counts"] for name in KINDS]),
        "without refuted edges": summed([rows[name]["without refuted edges"] for name in KINDS]),
        "tested": summed([rows[name]["tested"] for name in KINDS]),
        "edges": summed([rows[name]["edges"] for name in KINDS]),
    }
    return rows


def verdicts_of(world: PlantedWorld, weight: torch.Tensor) -> list[dict[int, str]]:
    """By target the verdict on each of its edges, by ablation of every source."""
    with torch.inference_mode():
        given = open_measurement(world.block, 256)
        effects = measure_effects(given, Observer())
    claimed = Claims.of_dense(weight * effects.source_mean[:, None])
    _, tensors = judged(claimed, effects, torch.arange(weight.shape[1]), 0.1)
    found: list[dict[int, str]] = [{} for _ in range(weight.shape[1])]
    columns = (tensors[name].tolist() for name in ("target", "source", "verdict"))
    for target, source, verdict in zip(*columns, strict=True):
        found[target][source] = VERDICTS[verdict]
    return found


def logic_of(weight: torch.Tensor, test: Tokens, verdicts: list[dict[int, str]] | None) -> list[dict[str, Any]]:
    """By target the logic that counts show, as the stage `edges` reads it."""

    class Known:
        """Verdicts by target."""

        def into(self, target: int) -> dict[int, str]:
            assert verdicts is not None
            return verdicts[target]

    known: Any = None if verdicts is None else Known()
    with Progress() as bar:
        ids = torch.arange(weight.shape[1])
        said = _read(_Matrix(Rows.from_dense(weight.T), None, False), ids, test.source, test.target, test, bar, known)[
            1
        ]
    return [each["logic"] for each in said]


def labels_of(said: list[dict[str, Any]], world: PlantedWorld, mine: list[int], kind: Kind) -> dict[str, int]:
    """How many targets get a right word of the right sources, a wrong one, none."""
    found = {"targets": len(mine), "right": 0, "wrong": 0, "none": 0}
    for i in mine:
        logic = said[i]
        named = logic["word"] in WORDS
        right = is_right(logic, world, i, kind)
        found["right" if right else "wrong" if named else "none"] += 1
    return found


def is_right(logic: dict[str, Any], world: PlantedWorld, target: int, kind: Kind) -> bool:
    wanted = [int(world.latents[target, place]) for place in kind.sources]
    same = logic["inputs"] == wanted if logic["word"] == "and not" else sorted(logic["inputs"]) == sorted(wanted)
    return logic["word"] in kind.words and same


def trials_of(
    joint: Joint, said: list[dict[str, Any]], world: PlantedWorld, mine: list[int], kind: Kind, document: torch.Tensor
) -> dict[str, int]:
    """Of the named targets, by whether the word is right, how many hold, fail and are undecided."""
    found = {f"{right} {outcome}": 0 for right in ("right", "wrong") for outcome in ("holds", "fails", "undecided")}
    for i in mine:
        logic = said[i]
        if logic["word"] in WORDS:
            asked = [(i, claim) for claim in claims_of(joint, logic["word"], i, logic["inputs"])]
            outcome = outcome_of(tried(joint, asked, document))
            found[f"{'right' if is_right(logic, world, i, kind) else 'wrong'} {outcome}"] += 1
    return found


def edges_of(verdicts: list[dict[int, str]], world: PlantedWorld, mine: list[int], kind: Kind) -> dict[str, int]:
    """Of the true edges how many are claimed, and confirmed; of the claimed false ones how many are."""
    found = {"true": 0, "claimed": 0, "confirmed": 0, "false": 0, "false judged": 0, "false confirmed": 0}
    for i in mine:
        true = {int(world.latents[i, place]) for place in kind.true}
        found["true"] += len(true)
        for source, verdict in verdicts[i].items():
            if source in true:
                found["claimed"] += verdict != "faint"
                found["confirmed"] += verdict == "confirmed"
            else:
                found["false"] += 1
                found["false judged"] += verdict != "faint"
                found["false confirmed"] += verdict == "confirmed"
    return found


def summed(rows: list[dict[str, int]]) -> dict[str, Any]:
    """The sums, and 95% intervals of the shares that matter."""
    total: dict[str, Any] = {name: sum(row[name] for row in rows) for name in rows[0]}
    shares = {"right": "targets", "wrong": "targets", "confirmed": "true", "false confirmed": "false judged"}
    for name, of in shares.items():
        if name in total and of in total:
            total[f"{name}, 95%"] = wilson(total[name], total[of])
    for right in ("right", "wrong"):
        n = sum(total.get(f"{right} {outcome}", 0) for outcome in ("holds", "fails", "undecided"))
        if n:
            total[f"{right} holds, 95%"] = wilson(total[f"{right} holds"], n)
    return total


if __name__ == "__main__":
    main()
