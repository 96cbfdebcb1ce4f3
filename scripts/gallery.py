"""Writes docs/results/gallery.md: ten circuits across layers, found by rule on test documents, each tested by ablation.

    python scripts/gallery.py [prompts] [overrides]

The rule. On the beginnings of test documents (40 tokens) a prompt's graph over layers 0 to 3 is drawn, with gradient
edges. Each latent of the last MLP's output is followed back: to the latent that adds most to it, to the one that adds
most to that, until a token's own latents are reached that no latent adds to. A chain that touches at least three layers
counts; its strength is the product of its links' shares of the absolute sum of all that leads into their targets. The
ten strongest are taken, each last latent once, at most three of a document and none that has more than half of its
latents in common with one taken before.

The test. Each member is taken out of the running model, alone, at its token, and the last latent's loss there stands
beside what the graph says. Beside it the mean loss, by size, for five other latents of the same hook that are active at
the same token, drawn at random.
"""

from __future__ import annotations

import html
import itertools
import re
import sys
from pathlib import Path
from typing import NamedTuple

import torch

import saelink
from saelink.circuits.ancestors import HOOKS
from saelink.circuits.changes import sae_of, taken_out, true_changes
from saelink.circuits.direct import latent_spans
from saelink.circuits.explained import Explained, first_of_run
from saelink.circuits.layers import LayerJobs
from saelink.circuits.nodes import Latent, LayerNames, Node, node_of
from saelink.circuits.predicted import predicted
from saelink.circuits.prompt import Prompt
from saelink.interventions.splice import first_latents
from saelink.job import Job
from saelink.latents.encode import EncodeStage
from saelink.store.store import Store
from saelink.terminal.progress import TerminalObserver

ROOT = Path(__file__).parent.parent

PAGE, FOLDER = ROOT / "docs" / "results" / "gallery.md", ROOT / "docs" / "results" / "gallery"

PROMPTS, CONTEXT, CIRCUITS, OF_ONE, OTHERS, SENTENCES = 6, 40, 10, 3, 5, 3


class Chain(NamedTuple):
    """A circuit: nodes from the first to the last, and the links between."""

    prompt: int
    nodes: list[int]
    shares: list[float]
    """Of each link, of the absolute sum of all that leads into its target."""

    @property
    def strength(self) -> float:
        return float(torch.tensor(self.shares).prod())


def strongest_links(prompt: Prompt) -> dict[int, tuple[int, float]]:
    """By latent's node the latent that adds most to it, and its share of the absolute sum; where one adds."""
    found: dict[int, tuple[int, float]] = {}
    for layer in prompt.layers:
        rows = [prompt.into_mlp(layer), prompt.into_sources(layer), prompt.into_attention(layer)]
        for links in itertools.chain.from_iterable(rows):
            weights = torch.where(prompt.activation[links.sources] > 0, links.weights, 0.0)
            if not weights.shape[1]:
                continue
            most, best = weights.max(1)
            rest = 0.0 if links.rest is None else links.rest.abs()
            shares = most / (links.weights.abs().sum(1) + rest)
            for target, source, share in zip(links.targets.tolist(), best.tolist(), shares.tolist(), strict=True):
                if share > 0:
                    found[target] = int(links.sources[source]), share
    return found


def chains_of(prompt: Prompt, number: int) -> list[Chain]:
    """Of every latent of the last MLP's output its chain back, where it touches three layers."""
    found, back = list[Chain](), strongest_links(prompt)
    for last in prompt.writers.latents_of((prompt.layers[-1], "mlp")):
        nodes, shares = [last], list[float]()
        while nodes[0] in back:
            source, share = back[nodes[0]]
            nodes.insert(0, source)
            shares.insert(0, share)
        if len({node_of(prompt, index).layer for index in nodes}) >= 3:
            found.append(Chain(number, nodes, shares))
    return found


def losses(prompt: Prompt, nodes: list[int], last: int) -> list[float]:
    """What ablating each node, alone, takes from the last one in the model, as a share of its activation."""
    found: list[float] = []
    for index in nodes:
        node = node_of(prompt, index)
        sae = sae_of(prompt.parts, Latent(node.kind, node.layer, node.number))
        change = {
            f"blocks.{node.layer}.{HOOKS[node.kind]}": taken_out(sae, [(node.number, torch.tensor([node.position]))])
        }
        run = prompt.model.run(prompt.ids[None], max(prompt.parts) + 1, change, to_logits=False)
        found.append(-float(true_changes(prompt, first_of_run(run))[last] / prompt.activation[last]))
    return found


def others_of(prompt: Prompt, node: Node, generator: torch.Generator) -> list[int]:
    """Other latents of a node's hook that are active at its token."""
    for kind, layer, first, rows in latent_spans(prompt):
        if (kind, layer) == (node.kind, node.layer):
            here = ((rows.row_of == node.position) & (rows.indices != node.number)).nonzero().flatten()
            return (here[torch.randperm(len(here), generator=generator)][:OTHERS] + first).tolist()
    return []


def sentences_of(jobs: LayerJobs, names: LayerNames, node: Node) -> list[str]:
    """Where a latent is most active on test documents, the token in bold; one of a sequence."""
    side = EncodeStage(jobs.job.cfg, jobs.job.store, names.hook(node.kind, node.layer)).pull()
    n, context = side.facts["sequences"]["test"], side.facts["context_size"]
    rows = first_latents(side, n)
    mine = (rows.indices == node.number).nonzero().flatten()
    ids = jobs.job.tokens.tensors("test.safetensors")["ids"].long()
    found: dict[int, str] = {}
    for each in mine[rows.values[mine].argsort(descending=True)].tolist():
        sequence, at = divmod(int(rows.row_of[each]), context)
        if sequence not in found and at:
            found[sequence] = marked(jobs, ids[sequence], at)
        if len(found) == SENTENCES:
            break
    return list(found.values())


def marked(jobs: LayerJobs, ids: torch.Tensor, at: int, before: int = 14, after: int = 5) -> str:
    """The text around a token, which is bold."""
    words = jobs.job.vocabulary
    first = max(1, at - before)
    parts = [re.sub(r"\s+", " ", words[int(token)]) for token in ids[first : at + after]]
    safe = [re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", part) for part in parts]
    token = safe[at - first]
    safe[at - first] = f"{' ' * token.startswith(' ')}**{token.strip() or '·'}**"
    return "".join(safe).strip()


def plain(text: str) -> str:
    """Without what would end a table's cell."""
    return text.replace("|", "").replace("`", "'")


def picture(labels: list[str], tokens: list[str], shares: list[float]) -> str:
    """The chain as SVG, from left to right."""
    wide, high, gap = 150, 58, 62
    whole = len(labels) * (wide + gap) - gap + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} 86" width="{whole}" height="86" role="img" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#2a7d4f"/></marker></defs>'
    ]
    for place, (label, token) in enumerate(zip(labels, tokens, strict=True)):
        x = 4 + place * (wide + gap)
        name, _, top = label.partition(" ")
        parts.append(f'<rect x="{x}" y="14" width="{wide}" height="{high}" rx="6" fill="#eef3fa" stroke="#5b7ca8"/>')
        for line, text in enumerate((name, f"fires on {top}" if top else "", f"at {token!r}")):
            short = text if len(text) < 24 else text[:22] + "…"
            parts.append(f'<text x="{x + 8}" y="{32 + 16 * line}">{html.escape(short)}</text>')
        if place < len(shares):
            x += wide
            parts.append(
                f'<path d="M{x + 2} 43H{x + gap - 2}" stroke="#2a7d4f" stroke-width="2" marker-end="url(#head)"/>'
                f'<text x="{x + gap / 2}" y="36" text-anchor="middle" fill="#2a7d4f">{shares[place]:+.0%}</text>'
            )
    return "".join([*parts, "</svg>\n"])


def written(number: int, prompt: Prompt, chain: Chain, jobs: LayerJobs, names: LayerNames) -> tuple[str, list[bool]]:
    """A circuit's part of the page, and by member whether its ablation takes more than that of others beside it."""
    words, generator = jobs.job.vocabulary, torch.Generator().manual_seed(number)
    nodes, last = [node_of(prompt, index) for index in chain.nodes], chain.nodes[-1]
    labels = [names.label(node) for node in nodes]
    tokens = [words[int(prompt.ids[node.position])] for node in nodes]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{number}.svg").write_text(picture(labels, tokens, chain.shares))
    real = losses(prompt, chain.nodes[:-1], last)
    rows, holds = list[str](), list[bool]()
    for node, index, label, token, lost in zip(nodes, chain.nodes, labels, tokens, real, strict=False):
        gone = {index: -float(prompt.activation[index])}
        says = -float(predicted(prompt, gone, clamped=False).change[last] / prompt.activation[last])
        others = [abs(each) for each in losses(prompt, others_of(prompt, node, generator), last)]
        usual = sum(others) / max(len(others), 1)
        holds.append(lost > usual)
        rows.append(f"| `{plain(label)}` | `{plain(token)}` | {lost:+.1%} | {says:+.1%} | {usual:.1%} |")
    title = f"{nodes[0].name} to {nodes[-1].name}: " + (names.token(nodes[-1]) or "").strip()
    lines = [
        f"## {number}. {title}",
        "",
        f"![{' leads to '.join(map(plain, labels))}](gallery/{number}.svg)".replace('"', "'"),
        "",
        f"Found in: {marked(jobs, prompt.ids, nodes[-1].position, CONTEXT, CONTEXT)}",
        "",
        f"`{nodes[-1].name}` is most active in:",
        "",
        *(f"- {text}" for text in sentences_of(jobs, names, nodes[-1])),
        "",
        f"| taken out | at | `{nodes[-1].name}` loses | the graph says | others there, by size |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]
    return "\n".join(lines), holds


def main() -> None:
    words = sys.argv[1:]
    most = int(words.pop(0)) if words and words[0].isdigit() else PROMPTS
    cfg = saelink.configure("layers=0-3", "circuit.edges=gradient", "wandb.mode=disabled", *words)
    jobs = LayerJobs(Job(cfg, Store(cfg.runtime.outputs, TerminalObserver())))
    jobs.encode()
    explained, names = Explained(jobs), LayerNames(jobs)
    texts = jobs.job.tokens.tensors("test.safetensors")["ids"].long()
    texts = texts[torch.linspace(0, len(texts) - 1, most).long(), :CONTEXT]
    prompts = [explained.prompt(ids) for ids in texts]
    chains = sorted(
        (chain for number, prompt in enumerate(prompts) for chain in chains_of(prompt, number)),
        key=lambda chain: -chain.strength,
    )
    considered, chosen, taken = len(chains), list[Chain](), list[list[tuple[str, int, int]]]()
    for chain in chains:
        latents = [node_of(prompts[chain.prompt], index)[:3] for index in chain.nodes]
        mine = sum(each.prompt == chain.prompt for each in chosen)
        new = all(latents[-1] != other[-1] and 2 * len({*latents} & {*other}) <= len(latents) for other in taken)
        if new and mine < OF_ONE and len(chosen) < CIRCUITS:
            chosen.append(chain)
            taken.append(latents)
    parts = [written(i, prompts[chain.prompt], chain, jobs, names) for i, chain in enumerate(chosen, 1)]
    errors = []
    for hook in jobs.hooks:
        facts = EncodeStage(cfg, jobs.job.store, hook).pull().facts
        errors.append(f"| `{hook}` | {facts['d_sae']:,} | {facts['l0']:.0f} | {facts['fvu']:.2f} |")
    text = "\n".join(
        [
            f"{len(chosen)} of {considered:,} chains on {most} documents. Of {sum(len(holds) for _, holds in parts)} "
            f"members {sum(sum(holds) for _, holds in parts)} take more from the last latent, taken out, than others "
            f"of their hook and token do by size; in {sum(all(holds) for _, holds in parts)} of the circuits all do.",
            "",
            *(part for part, _ in parts),
            "## The SAEs",
            "",
            "| hook | latents | L0 | FVU |",
            "|---|---|---|---|",
            *errors,
        ]
    )
    page = PAGE.read_text()
    whole = f"<!-- gallery -->\n{text}\n<!-- end -->"
    PAGE.write_text(re.sub("<!-- gallery -->.*?<!-- end -->", lambda _: whole, page, flags=re.DOTALL))
    print(text)


if __name__ == "__main__":
    main()
