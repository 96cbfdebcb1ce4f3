"""Does a prompt's graph say what ablation does? Its path sums against the model, for three kinds of edges inside MLPs.

    python -m benchmarks.graphs [prompts] [overrides]

On the beginnings of test documents single latents are drawn, each at one position where it is active, and taken out of
the running model there. What every latent behind it, at that position and later ones, loses is compared with what the
graph says: the sum over all paths through all layers. A null pairs each prediction with another ablation's effects.
Writes benchmarks/graphs.json and the table where docs/results/circuits.md has `<!-- graphs -->`. Each kind of edges
takes a penalty of its own: causal 2e-3, lasso 8e-4.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import saelink
from saelink.circuits.ancestors import HOOKS
from saelink.circuits.changes import sae_of, taken_out, true_changes, units_of
from saelink.circuits.explained import Explained, first_of_run
from saelink.circuits.layers import LayerJobs
from saelink.circuits.nodes import Latent, Node, node_of
from saelink.circuits.predicted import predicted
from saelink.circuits.prompt import Prompt
from saelink.config.circuit import InnerEdges
from saelink.job import Job
from saelink.store.store import Store
from saelink.terminal.progress import TerminalObserver

ROOT = Path(__file__).parent.parent

RESULT, PAGE = ROOT / "benchmarks" / "graphs.json", ROOT / "docs" / "results" / "circuits.md"

PENALTIES = {"causal": 2e-3, "lasso": 8e-4, "gradient": 8e-4}

PROMPTS, CONTEXT, ABLATIONS, PAIRS, ROWS = 8, 40, 24, 6, 8
"""Prompts, their tokens, ablations on each, pairs of each ablation, and ablations of one run."""

STRONG = 0.1
"""An effect is strong from this share of its hook's mean activation on."""


class Pair(NamedTuple):
    """An ablated latent and one behind it."""

    prompt: int
    ablation: int
    distance: int
    """Layers between."""
    effect: float
    """In units of the mean activation of the latent's hook."""
    says: dict[str, float]


def drawn(prompt: Prompt, generator: torch.Generator) -> list[tuple[int, Node]]:
    """Latents that are ablated, each at one position, not in the last layer."""
    latents = (prompt.activation > 0).nonzero().flatten()
    some = latents[torch.randperm(len(latents), generator=generator)].tolist()
    nodes = [(index, node_of(prompt, index)) for index in some[: 4 * ABLATIONS]]
    return [(index, node) for index, node in nodes if node.layer < prompt.layers[-1]][:ABLATIONS]


def effects_on(prompt: Prompt, chosen: list[tuple[int, Node]]) -> torch.Tensor:
    """[ablations, size] what each ablation takes from every latent, in the model."""
    found = torch.zeros(len(chosen), prompt.size)
    by_hook: dict[tuple[int, str], list[int]] = {}
    for i, (_, node) in enumerate(chosen):
        by_hook.setdefault((node.layer, node.kind), []).append(i)
    for (layer, kind), mine in by_hook.items():
        for first in range(0, len(mine), ROWS):
            part = mine[first : first + ROWS]
            nodes = [chosen[i][1] for i in part]
            sae = sae_of(prompt.parts, Latent(kind, layer, nodes[0].number))
            change = taken_out(sae, [(node.number, torch.tensor([node.position])) for node in nodes])
            ids, depth = prompt.ids.expand(len(part), -1), max(prompt.parts) + 1
            run = prompt.model.run(ids, depth, {f"blocks.{layer}.{HOOKS[kind]}": change}, to_logits=False)
            for row, i in enumerate(part):
                found[i] = -true_changes(prompt, first_of_run(run, row))
    return found


def behind(prompt: Prompt, index: int, node: Node, layer_of: torch.Tensor) -> torch.Tensor:
    """[size] bool: latents that an ablation can reach."""
    later = (prompt.position >= node.position) & (prompt.activation > 0) & (layer_of >= node.layer)
    order = {"attn": 0, "source": 1, "mlp": 2}
    for (layer, part), first in prompt.writers.begin.items():
        if layer == node.layer and order[part] <= order[node.kind]:
            span = prompt.writers.latents_of((layer, part))
            later[first : span.stop] = False
    begin = prompt.source_begin[node.layer]
    if order[node.kind] >= 1 or prompt.model.parallel:
        later[begin : begin + len(prompt.sources[node.layer].values)] = False
    if node.kind == "source":  # the MLP alone reads its change
        later &= (prompt.position == node.position) | (layer_of > node.layer)
    later[index] = False
    return later


def layers_of(prompt: Prompt) -> torch.Tensor:
    """[size] the layer of every latent; -1 of other nodes."""
    found = torch.full((prompt.size,), -1)
    for (layer, part), first in prompt.writers.begin.items():
        found[first : prompt.writers.latents_of((layer, part)).stop] = layer
    for layer, first in prompt.source_begin.items():
        found[first : first + len(prompt.sources[layer].values)] = layer
    return found


def measured(most: int, overrides: list[str]) -> Iterator[dict[str, Any]]:
    """Pairs and cosines by distance, over the prompts so far; after each one."""
    cfg = saelink.configure("layers=0-3", "wandb.mode=disabled", *overrides)
    job = Job(cfg, Store(cfg.runtime.outputs, TerminalObserver()))
    opened: dict[str, Explained] = {}
    for kind, alpha in PENALTIES.items():
        circuit = replace(cfg.circuit, edges=InnerEdges[kind])
        jobs = LayerJobs(job.at(replace(cfg, circuit=circuit, l1_alpha=alpha)))
        jobs.encode()
        opened[kind] = Explained(jobs)
    texts = job.tokens.tensors("test.safetensors")["ids"].long()
    texts = texts[torch.linspace(0, len(texts) - 1, most).long(), :CONTEXT]
    generator = torch.Generator().manual_seed(0)
    pairs: list[Pair] = []
    cosines: dict[str, dict[int, list[tuple[int, float]]]] = {kind: {} for kind in [*opened, "null"]}
    began = time.perf_counter()
    for number, ids in enumerate(texts):
        prompts = {kind: each.prompt(ids) for kind, each in opened.items()}
        prompt = prompts["causal"]
        chosen, layer_of, unit = drawn(prompt, generator), layers_of(prompt), units_of(prompt)
        effects = effects_on(prompt, chosen) / unit
        says = {
            kind: torch.stack(
                [-predicted(each, {i: -float(each.activation[i])}, clamped=False).change for i, _ in chosen]
            )
            / unit
            for kind, each in prompts.items()
        }
        says["null"] = says["causal"].roll(1, 0)
        for row, (index, node) in enumerate(chosen):
            reached = behind(prompt, index, node, layer_of)
            candidates = reached.nonzero().flatten()
            if not len(candidates):
                continue
            for target in candidates[torch.randint(len(candidates), (PAIRS,), generator=generator)].tolist():
                said = {kind: float(each[row, target]) for kind, each in says.items()}
                distance = int(layer_of[target]) - node.layer
                pairs.append(Pair(number, row, distance, float(effects[row, target]), said))
            for distance in range(len(prompt.layers)):
                mine = reached & (layer_of == node.layer + distance)
                if not bool(effects[row, mine].any()):
                    continue
                for kind, each in says.items():
                    cosine = torch.nn.functional.cosine_similarity(each[row, mine], effects[row, mine], dim=0).item()
                    cosines[kind].setdefault(distance, []).append((number, cosine))
        rows = {kind: _row(pairs, kind, cosines[kind]) for kind in cosines}
        yield {
            "prompts": number + 1,
            "tokens": CONTEXT,
            "ablations": len({(p.prompt, p.ablation) for p in pairs}),
            "pairs": len(pairs),
            "strong": sum(abs(p.effect) >= STRONG for p in pairs),
            "layers": opened["causal"].jobs.layers,
            "seconds": round(time.perf_counter() - began),
            "rows": rows,
        }


def _row(pairs: list[Pair], kind: str, cosines: dict[int, list[tuple[int, float]]]) -> dict[str, Any]:
    def of(function: Callable[[torch.Tensor, torch.Tensor], float], some: list[Pair]) -> float:
        says, effects = ([p.says[kind] for p in some], [p.effect for p in some])
        return function(torch.tensor(says), torch.tensor(effects))

    found: dict[str, Any] = {}
    for name, function in (("spearman", spearman), ("spearman of sizes", of_sizes), ("auroc", auroc)):
        found[name] = of(function, pairs)
        found[f"{name} interval"] = resampled(pairs, lambda some, f=function: of(f, some))
    found["by distance"] = {}
    for distance, values in sorted(cosines.items()):
        some = [p for p in pairs if p.distance == distance]
        found["by distance"][distance] = {
            "cosine": sum(value for _, value in values) / len(values),
            "ablations": len(values),
            "spearman": of(spearman, some) if len(some) > 2 else None,
            "pairs": len(some),
        }
    return found


def resampled(pairs: list[Pair], figure: Callable[[list[Pair]], float], times: int = 200) -> list[float]:
    """The middle 95% over resampled prompts."""
    by_prompt: dict[int, list[Pair]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.prompt, []).append(pair)
    every, generator = list(by_prompt.values()), torch.Generator().manual_seed(0)
    values = []
    for _ in range(times):
        chosen = torch.randint(len(every), (len(every),), generator=generator).tolist()
        values.append(figure([pair for i in chosen for pair in every[i]]))
    ends = torch.tensor(values).nanquantile(torch.tensor([0.025, 0.975]))
    return ends.tolist()


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


def table(found: dict[str, Any]) -> str:
    """Figures by kind of edges, then cosines by distance."""
    lines = [
        f"{found['pairs']:,} pairs of {found['ablations']} ablations on {found['prompts']} prompts of "
        f"{found['tokens']} tokens, layers {', '.join(map(str, found['layers']))}; {found['strong']} effects are "
        f"strong; in {found['seconds']} s. In brackets 95% intervals, prompts resampled.",
        "",
        "| edges inside MLPs | Spearman | Spearman of sizes | AUROC |",
        "|---|---|---|---|",
    ]
    for kind, row in found["rows"].items():
        cells = [
            f"{row[name]:.2f} [{row[f'{name} interval'][0]:.2f}, {row[f'{name} interval'][1]:.2f}]"
            for name in ("spearman", "spearman of sizes", "auroc")
        ]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    distances = sorted(int(d) for d in found["rows"]["causal"]["by distance"])
    heads = [f"{d} layers on" if d != 1 else "1 layer on" for d in distances]
    lines += ["", f"| cosine | {' | '.join(heads)} |", "|---" * (len(distances) + 1) + "|"]
    for kind, row in found["rows"].items():
        by = {int(d): each for d, each in row["by distance"].items()}
        lines.append(f"| {kind} | " + " | ".join(f"{by[d]['cosine']:.2f}" for d in distances) + " |")
    return "\n".join(lines)


def main() -> None:
    words = sys.argv[1:]
    most = int(words.pop(0)) if words and words[0].isdigit() else PROMPTS
    for found in measured(most, words):
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
        text = table(found)
        print(text, flush=True)
        mark, page = "<!-- graphs -->", PAGE.read_text()
        whole = f"{mark}\n{text}\n<!-- end -->"
        PAGE.write_text(re.sub(f"{mark}.*?<!-- end -->", lambda _, w=whole: w, page, flags=re.DOTALL))


if __name__ == "__main__":
    main()
