"""Does a prompt's graph say what ablation does? Its path sums against the model, for three kinds of edges inside MLPs.

    python -m benchmarks.graphs [prompts] [overrides]

On the beginnings of test documents single latents are drawn, each at one position where it is active, and taken out of
the running model there. What every latent behind it, at that position and later ones, loses is compared with what the
graph says: the sum over all paths through all layers. A null pairs each prediction with another ablation's effects.
Then what the graph holds is let go, one thing after another (saelink.circuits.unheld), so that it shows what the graph
loses by what. Each prompt's figures lie under graphs/ in the outputs folder, and a prompt that has its own there is not
measured again. Writes benchmarks/graphs.json and the tables where docs/results/circuits.md has `<!-- graphs -->`. Each
kind of edges takes a penalty of its own: causal 2e-3, lasso 8e-4.
"""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import saelink
from benchmarks.graph_figures import KINDS, STRONG, Pairs, of_sizes, resampled, rows_of, spearman, split_rows, text_of
from saelink.circuits.ancestors import HOOKS
from saelink.circuits.changes import sae_of, taken_out, true_changes, units_of
from saelink.circuits.direct import latent_spans
from saelink.circuits.explained import Explained, first_of_run, likeliest
from saelink.circuits.influence import influence_of
from saelink.circuits.layers import LayerJobs
from saelink.circuits.nodes import Latent, Node, node_of
from saelink.circuits.opened import Acts
from saelink.circuits.predicted import predicted
from saelink.circuits.prompt import Prompt
from saelink.circuits.unheld import EVERYTHING, Free, unheld
from saelink.config.circuit import InnerEdges
from saelink.job import Job
from saelink.store.store import Store
from saelink.terminal.progress import TerminalObserver

ROOT = Path(__file__).parent.parent

RESULT, PAGE = ROOT / "benchmarks" / "graphs.json", ROOT / "docs" / "results" / "circuits.md"

PENALTIES = {"causal": 2e-3, "lasso": 8e-4, "gradient": 8e-4}

PROMPTS, CONTEXT, ABLATIONS, PAIRS, ROWS = 8, 40, 24, 40, 8
"""Prompts, their tokens, ablations on each, pairs of each ablation, and ablations of one run."""

STEPS = {
    "errors of MLPs' inputs": Free(mlp_in=True),
    "and of MLPs' outputs": Free(mlp_in=True, mlp=True),
    "and of attention's outputs": Free(mlp_in=True, mlp=True, attn=True),
    "and attention's norms": Free(mlp_in=True, mlp=True, attn=True, norms=True),
    "and patterns: everything": EVERYTHING,
    "norms and patterns alone": Free(norms=True, patterns=True),
}
"""What is let go after what; the last by itself."""

SHOWN = ["causal", "gradient", "and of attention's outputs", "and patterns: everything"]
"""Kinds that pairs are split for."""


def drawn(prompt: Prompt, generator: torch.Generator) -> list[tuple[int, Node]]:
    """Latents that are ablated, each at one position, not in the last layer."""
    latents = (prompt.activation > 0).nonzero().flatten()
    some = latents[torch.randperm(len(latents), generator=generator)].tolist()
    nodes = [(index, node_of(prompt, index)) for index in some[: 4 * ABLATIONS]]
    return [(index, node) for index, node in nodes if node.layer < prompt.layers[-1]][:ABLATIONS]


def effects_on(prompt: Prompt, chosen: list[tuple[int, Node]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What each ablation takes from every latent, in the model.

    [ablations, size] with the active ones held, the same with the TopK chosen anew, and [ablations] the KL between the
    next tokens' chances before and after.
    """
    found, selected = (torch.zeros(len(chosen), prompt.size) for _ in range(2))
    kl = torch.zeros(len(chosen))
    depth = max(prompt.parts) + 1
    before = prompt.model.run(prompt.ids[None], depth).logits[0].log_softmax(0)
    by_hook: dict[tuple[int, str], list[int]] = {}
    for i, (_, node) in enumerate(chosen):
        by_hook.setdefault((node.layer, node.kind), []).append(i)
    for (layer, kind), mine in by_hook.items():
        for first in range(0, len(mine), ROWS):
            part = mine[first : first + ROWS]
            nodes = [chosen[i][1] for i in part]
            sae = sae_of(prompt.parts, Latent(kind, layer, nodes[0].number))
            change = taken_out(sae, [(node.number, torch.tensor([node.position])) for node in nodes])
            run = prompt.model.run(prompt.ids.expand(len(part), -1), depth, {f"blocks.{layer}.{HOOKS[kind]}": change})
            for row, i in enumerate(part):
                acts = first_of_run(run, row)
                found[i], selected[i] = -true_changes(prompt, acts), -changes_anew(prompt, acts)
                kl[i] = (before.exp() * (before - run.logits[row].log_softmax(0))).sum()
    return found, selected, kl


def changes_anew(prompt: Prompt, acts: dict[int, Acts]) -> torch.Tensor:
    """[size] what latents gain where an SAE's own choice of which are active is made anew."""
    found = torch.zeros(prompt.size)
    for kind, layer, first, rows in latent_spans(prompt):
        here, held = prompt.parts[layer], acts[layer]
        sae = sae_of(prompt.parts, Latent(kind, layer, 0)) if kind != "attn" else here.attn
        if sae is None:
            continue
        x = {"attn": held.attn_out, "mlp": held.mlp_out, "source": held.mlp_in(prompt.model.parallel)}[kind]
        found[first : first + len(rows.values)] = sae.encode(x)[rows.row_of, rows.indices] - rows.values
    return found


def behind(prompt: Prompt, node: Node, about: dict[str, torch.Tensor]) -> torch.Tensor:
    """[size] bool: latents that an ablation can reach. Within its layer that is its own token alone."""
    kind, layer = about["to"], about["layer"]
    active = prompt.activation > 0
    own = KINDS.index(node.kind)
    here = (layer == node.layer) & (prompt.position == node.position) & (kind > own)
    if prompt.model.parallel and node.kind == "attn":
        here[:] = False
    later = (layer > node.layer) & (prompt.position >= node.position)
    return active & (here | later)


def about_nodes(prompt: Prompt) -> dict[str, torch.Tensor]:
    """[size] of every latent its layer and its kind; -1 of other nodes."""
    layer, kind = (torch.full((prompt.size,), -1) for _ in range(2))
    for name, number, first, rows in latent_spans(prompt):
        layer[first : first + len(rows.values)] = number
        kind[first : first + len(rows.values)] = KINDS.index(name)
    return {"layer": layer, "to": kind}


class Measured:
    """Everything that is found on one prompt."""

    def __init__(self, number: int, prompts: dict[str, Prompt]):
        prompt, generator = prompts["gradient"], torch.Generator().manual_seed(number)
        chosen, about, unit = drawn(prompt, generator), about_nodes(prompt), units_of(prompt)
        effects, selected, self.kl = effects_on(prompt, chosen)
        effects, selected = effects / unit, selected / unit
        says = _said(prompts, chosen)
        says = {kind: each / unit for kind, each in says.items()}
        self.pairs, self.ablations, self.fell = Pairs(), 0, list[float]()
        self.cosines: dict[str, dict[int, list[float]]] = {}
        influence = {kind: influence_of(each) for kind, each in prompts.items()}
        nodes = [index for index, _ in chosen]
        self.influence = {kind: each.value[nodes].float() for kind, each in influence.items()}
        error = influence["gradient"].error.float()
        for row, (_, node) in enumerate(chosen):
            reached = behind(prompt, node, about)
            self._cosines(node, reached, about["layer"], effects[row], {k: each[row] for k, each in says.items()})
            candidates = reached.nonzero().flatten()
            if not len(candidates):
                continue
            self.ablations += 1
            target = candidates[torch.randint(len(candidates), (PAIRS,), generator=generator)]
            columns = {
                "prompt": torch.full((PAIRS,), number),
                "distance": about["layer"][target] - node.layer,
                "from": torch.full((PAIRS,), KINDS.index(node.kind)),
                "to": about["to"][target],
                "shift": prompt.position[target] - node.position,
                "error": error[target],
            }
            said = {kind: each[row, target] for kind, each in says.items()}
            self.pairs.add(Pairs(effects[row, target], selected[row, target], said, columns))
            whole = (prompt.activation / unit)[target]
            self.fell.append(((selected[row, target] - whole).abs() < 1e-6).float().mean().item())

    def _cosines(
        self, node: Node, reached: torch.Tensor, layer: torch.Tensor, effects: torch.Tensor,
        says: dict[str, torch.Tensor],
    ) -> None:  # fmt: skip
        for distance in range(int(layer.max()) - node.layer + 1):
            mine = reached & (layer == node.layer + distance)
            if not bool(effects[mine].any()):
                continue
            for kind, each in says.items():
                cosine = torch.nn.functional.cosine_similarity(each[mine], effects[mine], dim=0).item()
                self.cosines.setdefault(kind, {}).setdefault(distance, []).append(cosine)


def _said(prompts: dict[str, Prompt], chosen: list[tuple[int, Node]]) -> dict[str, torch.Tensor]:
    """[ablations, size] by kind what each ablation takes from every latent, as it is predicted."""
    prompt = prompts["gradient"]
    gone = [{index: -float(prompt.activation[index])} for index, _ in chosen]
    says = {
        kind: torch.stack([-predicted(each, one, clamped=False).change for one in gone])
        for kind, each in prompts.items()
    }
    says["null"] = says["causal"].roll(1, 0)
    return says | {step: torch.stack([-unheld(prompt, one, free) for one in gone]) for step, free in STEPS.items()}


def found_in(prompts: list[Measured]) -> dict[str, Any]:
    """The figures over all prompts."""
    pairs, kl = Pairs(), torch.cat([each.kl for each in prompts])
    for each in prompts:
        pairs.add(each.pairs)
    kinds, number = list(pairs.says), torch.cat([torch.full((len(each.kl),), i) for i, each in enumerate(prompts)])
    distances = sorted({distance for each in prompts for distance in each.cosines["gradient"]})
    cosines: dict[str, dict[int, float]] = {}
    for kind in kinds:
        for distance in distances:
            values = [value for each in prompts for value in each.cosines[kind].get(distance, [])]
            cosines.setdefault(kind, {})[distance] = sum(values) / len(values)
    fell = [share for each in prompts for share in each.fell]
    influence = {kind: torch.cat([each.influence[kind] for each in prompts]) for kind in PENALTIES}
    return {
        "prompts": len(prompts),
        "tokens": CONTEXT,
        "ablations": sum(each.ablations for each in prompts),
        "pairs": len(pairs.effect),
        "strong": int((pairs.effect.abs() >= STRONG).sum()),
        "median": pairs.effect.abs().median().item(),
        "kinds": [*PENALTIES, "null"],
        "steps": ["gradient", *STEPS],
        "shown": SHOWN,
        "rows": rows_of(pairs, kinds),
        "cosines": cosines,
        "splits": split_rows(pairs, SHOWN),
        "fell": sum(fell) / len(fell),
        "selected": [each(pairs.says["gradient"], pairs.selected) for each in (of_sizes, spearman)],
        "influence": {kind: resampled(values, kl, number, spearman) for kind, values in influence.items()},
    }


def measured(most: int, overrides: list[str]) -> tuple[list[Measured], list[int]]:
    """Every prompt, those measured before read; and the layers."""
    cfg = saelink.configure("layers=0-3", "wandb.mode=disabled", *overrides)
    job = Job(cfg, Store(cfg.runtime.outputs, TerminalObserver()))
    opened: dict[str, Explained] = {}
    for kind, alpha in PENALTIES.items():
        circuit = replace(cfg.circuit, edges=InnerEdges[kind])
        jobs = LayerJobs(job.at(replace(cfg, circuit=circuit, l1_alpha=alpha)))
        jobs.encode()
        opened[kind] = Explained(jobs)
    texts = job.tokens.tensors("test.safetensors")["ids"].long()
    texts = texts[torch.linspace(0, len(texts) - 1, PROMPTS).long(), :CONTEXT][:most]
    folder = Path(cfg.runtime.outputs) / "graphs"
    folder.mkdir(exist_ok=True)
    found: list[Measured] = []
    for number, ids in enumerate(texts):
        file, began = folder / f"{number}.pt", time.perf_counter()
        if not file.exists():
            choose = likeliest(cfg.graph.logits, cfg.graph.logit_share)
            torch.save(Measured(number, {kind: each.prompt(ids, choose) for kind, each in opened.items()}), file)
            print(f"prompt {number}: {time.perf_counter() - began:.0f} s", flush=True)
        found.append(torch.load(file, weights_only=False))  # our own, of a moment ago
    return found, opened["causal"].jobs.layers


def main() -> None:
    words = sys.argv[1:]
    most = int(words.pop(0)) if words and words[0].isdigit() else PROMPTS
    prompts, layers = measured(most, words)
    found = {"layers": layers, **found_in(prompts)}
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    text = text_of(found)
    mark, page = "<!-- graphs -->", PAGE.read_text()
    whole = f"{mark}\n{text}\n<!-- end -->"
    PAGE.write_text(re.sub(f"{mark}.*?<!-- end -->", lambda _: whole, page, flags=re.DOTALL))
    print(text)


if __name__ == "__main__":
    main()
