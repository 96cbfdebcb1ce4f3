"""What pairs of an ablated latent and one behind it say of graphs: rank agreement, intervals, tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

STRONG = 0.1
"""An effect is strong from this share of its hook's mean activation on."""

RESAMPLES = 200

Figure = Callable[[torch.Tensor, torch.Tensor], float]
"""Of what is said [pairs] and the effects [pairs]."""

KINDS = ("attn", "source", "mlp")

NAMED = {"attn": "attention's output", "source": "the MLP's input", "mlp": "the MLP's output"}


@dataclass
class Pairs:
    """Pairs drawn at random, by column [pairs]."""

    effect: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    """In units of the mean activation of the latent's hook, like all that is said."""
    selected: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    """The same where what is in the TopK is chosen anew after the ablation."""
    says: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    about: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    """What pairs can be split by: prompt, distance, from, to, shift (of position), error (of the target's input)."""

    def add(self, other: Pairs) -> None:
        self.effect = torch.cat([self.effect, other.effect])
        self.selected = torch.cat([self.selected, other.selected])
        for mine, theirs in ((self.says, other.says), (self.about, other.about)):
            for name, column in theirs.items():
                mine[name] = torch.cat([mine[name], column]) if name in mine else column

    def figure(self, kind: str, function: Figure, which: torch.Tensor | None = None) -> list[float]:
        """The figure and the middle 95% over resampled prompts."""
        which = torch.ones(len(self.effect), dtype=torch.bool) if which is None else which
        says, effect, prompt = self.says[kind][which], self.effect[which], self.about["prompt"][which]
        return resampled(says, effect, prompt, function)


def resampled(says: torch.Tensor, effect: torch.Tensor, prompt: torch.Tensor, function: Figure) -> list[float]:
    """A figure and the middle 95% of it over resampled prompts."""
    by_prompt = [(prompt == number).nonzero().flatten() for number in prompt.unique().tolist()]
    generator, values = torch.Generator().manual_seed(0), list[float]()
    for _ in range(RESAMPLES):
        drawn = torch.randint(len(by_prompt), (len(by_prompt),), generator=generator).tolist()
        rows = torch.cat([by_prompt[i] for i in drawn])
        values.append(function(says[rows], effect[rows]))
    ends = torch.tensor(values, dtype=torch.float64).nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return [function(says, effect), *ends.tolist()]


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks, equal values sharing theirs."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() - 1) / 2)[place]


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1].item()


def of_sizes(a: torch.Tensor, b: torch.Tensor) -> float:
    return spearman(a.abs(), b.abs())


def auroc(says: torch.Tensor, effects: torch.Tensor) -> float:
    """How often a strong effect is said to be larger than one that is not."""
    strong = effects.abs() >= STRONG
    n, m = int(strong.sum()), int((~strong).sum())
    if not n or not m:
        return float("nan")
    return ((ranks(says.abs())[strong].sum() - n * (n + 1) / 2) / (n * m)).item()


FIGURES: dict[str, Figure] = {"Spearman": spearman, "Spearman of sizes": of_sizes, "AUROC": auroc}


def splits(pairs: Pairs) -> dict[str, torch.Tensor]:
    """[pairs] bool by name: parts of all pairs."""
    about = pairs.about
    found = {"all": torch.ones(len(pairs.effect), dtype=torch.bool)}
    found["same token"] = about["shift"] == 0
    found["a later token"] = about["shift"] > 0
    for distance in sorted(about["distance"].unique().tolist()):
        found["same layer" if distance == 0 else f"{distance:.0f} layers on"] = about["distance"] == distance
    for number, kind in enumerate(KINDS):
        found[f"from {NAMED[kind]}"] = about["from"] == number
    for number, kind in enumerate(KINDS):
        found[f"to {NAMED[kind]}"] = about["to"] == number
    middle = about["error"].median()
    found["target's input: less error"] = about["error"] <= middle
    found["target's input: more error"] = about["error"] > middle
    found["strong effects"] = pairs.effect.abs() >= STRONG
    return {name.replace("1 layers", "1 layer"): which for name, which in found.items()}


def rows_of(pairs: Pairs, kinds: list[str]) -> dict[str, dict[str, list[float]]]:
    """By kind its figures, each with its interval."""
    return {kind: {name: pairs.figure(kind, each) for name, each in FIGURES.items()} for kind in kinds}


def split_rows(pairs: Pairs, kinds: list[str]) -> dict[str, dict[str, Any]]:
    """By part of the pairs how many, the median effect, and by kind Spearman of sizes and with signs."""
    found: dict[str, dict[str, Any]] = {}
    for name, which in splits(pairs).items():
        if int(which.sum()) < 20:
            continue
        row: dict[str, Any] = {"pairs": int(which.sum()), "median": pairs.effect[which].abs().median().item()}
        for kind in kinds:
            row[kind] = [pairs.figure(kind, each, which) for each in (of_sizes, spearman)]
        found[name] = row
    return found


def _cell(figure: list[float]) -> str:
    return f"{figure[0]:.2f} [{figure[1]:.2f}, {figure[2]:.2f}]"


def _grid(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def text_of(found: dict[str, Any]) -> str:
    """All tables."""
    distances = sorted(int(d) for d in found["cosines"]["gradient"])
    ahead = ["same layer", *(f"{d} layer{'s' * (d > 1)} on" for d in distances[1:])]

    def cosines(kind: str) -> list[str]:
        by = {int(d): value for d, value in found["cosines"][kind].items()}
        return [f"{by[d]:.2f}" for d in distances]

    def main(kinds: list[str]) -> list[list[str]]:
        return [[k, *(_cell(found["rows"][k][name]) for name in FIGURES), *cosines(k)] for k in kinds]

    head = [*FIGURES, *(f"cosine, {each}" for each in ahead)]
    lines = [
        f"{found['pairs']:,} pairs of {found['ablations']} ablations on {found['prompts']} prompts of "
        f"{found['tokens']} tokens, layers {', '.join(map(str, found['layers']))}; {found['strong']} effects are "
        f"strong, the median one is {found['median']:.1e}. In brackets 95% intervals, prompts resampled.",
        "",
        *_grid(["edges inside MLPs", *head], main(found["kinds"])),
        "",
        "What moves, beginning with the graph of gradient edges:",
        "",
        *_grid(["moves too", *head], main(found["steps"])),
        "",
        f"With what is in the TopK chosen anew behind the ablation, {found['fell']:.1%} of the pairs' targets fall out "
        f"of it; gradient edges: Spearman {found['selected'][1]:.2f}, of sizes {found['selected'][0]:.2f}.",
        "",
        "By part of the pairs, Spearman of sizes (with signs):",
        "",
    ]
    shown = found["shown"]
    rows = []
    for name, row in found["splits"].items():
        cells = [f"{_cell(row[kind][0])} ({row[kind][1][0]:.2f})" for kind in shown]
        rows.append([name, f"{row['pairs']:,}", f"{row['median']:.1e}", *cells])
    lines += _grid(["pairs", "number", "median effect", *shown], rows)
    lines += ["", "Influence on the next tokens against what ablating does to them (KL):", ""]
    influence = [[kind, _cell(found["influence"][kind])] for kind in found["influence"]]
    return "\n".join([*lines, *_grid(["edges inside MLPs", "Spearman"], influence)])
