"""A latent's card: what it fires on and what it is wired to, as plain data and for the terminal."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from saelink.cache import shards_of
from saelink.config import Config
from saelink.connectors import Connector
from saelink.data import SPLITS
from saelink.data import tokens as pull_tokens
from saelink.evaluate import evaluate
from saelink.examples import OCTAVES, Examples, examples, load_examples
from saelink.latents import Tokens, unpack
from saelink.link import Sides, load_split, pull_sides
from saelink.logic import read_logic
from saelink.model import load_tokenizer, model_info
from saelink.store import Artifact, SaelinkError, Store
from saelink.train import load_connector, train

if TYPE_CHECKING:
    from rich.console import Console

WINDOW = 10
"""Tokens of an example on either side of the one it is about."""

EDGES = 12
"""Edges of a card."""


class Cards:
    """The cards of one connector's latents; what they need is pulled when it is first asked for."""

    def __init__(self, cfg: Config, store: Store):
        self.cfg, self.store = cfg, store
        self.artifact = train(cfg, store)
        self.connector: Connector = load_connector(self.artifact)
        self.evaluation = evaluate(cfg, store)
        self.sides: Sides = pull_sides(cfg, store)
        self.tokens = pull_tokens(cfg, store)
        self._tokenizer = load_tokenizer(cfg.model, model_info(cfg, store).artifact)
        self._examples: dict[str, Examples] = {}
        self._texts = {split: self.tokens.tensors(f"{split}.safetensors")["ids"] for split in SPLITS}
        self._fvu = self.evaluation.tensors("latents.safetensors")["fvu"]

    # ----------------------------------------------------------------------- names

    def side_of(self, source: int) -> tuple[int, int]:
        """Which source hook a connector's source latent belongs to, and its number there."""
        for place, side in enumerate(self.sides.sources):
            if source < side.facts["d_sae"]:
                return place, source
            source -= side.facts["d_sae"]
        raise AssertionError(source)

    def source_name(self, source: int) -> str:
        """IF17, or with several source hooks IF0.17."""
        place, number = self.side_of(source)
        return f"IF{number}" if len(self.sides.sources) == 1 else f"IF{place}.{number}"

    def source_number(self, text: str) -> int:
        """The connector's source latent of `17` or `0.17`. Raises SaelinkError when there is none."""
        place, _, number = text.rpartition(".")
        sizes = [side.facts["d_sae"] for side in self.sides.sources]
        if not number.isdigit() or (place and not place.isdigit()) or (len(sizes) > 1 and not place):
            form = "a number such as 17" if len(sizes) == 1 else "hook and number such as 0.17"
            raise SaelinkError(f"show source {text}: give {form}")
        if int(place or 0) >= len(sizes) or int(number) >= sizes[int(place or 0)]:
            raise SaelinkError(
                f"show source {text}: there are {', '.join(f'{n:,}' for n in sizes)} source latents, from 0"
            )
        return sum(sizes[: int(place or 0)]) + int(number)

    def token(self, token_id: int) -> str:
        """A token as text, its blank in front kept."""
        return self._tokenizer.decode([token_id])

    def _top_token(self, side: Artifact, latent: int) -> str | None:
        top = int(self._of(side).token[latent, 0])
        return self.token(top) if top >= 0 else None

    def _of(self, side: Artifact) -> Examples:
        if side.key not in self._examples:
            self._examples[side.key] = load_examples(examples(self.cfg, self.store, side, self.tokens))
        return self._examples[side.key]

    # ----------------------------------------------------------------------- cards

    def target(self, latent: int) -> dict[str, Any]:
        """The card of a target latent. Raises SaelinkError when the SAE or the connector has no such latent."""
        if not 0 <= latent < self.sides.d_target:
            raise SaelinkError(f"show target {latent}: the target SAE has latents 0 to {self.sides.d_target - 1:,}")
        card = {"name": f"OF{latent}", **self._latent(self.sides.target, latent)}
        explained = bool((self.connector.target_ids == latent).any())
        card["explained"] = explained
        if explained:
            fvu = self._fvu[latent].item()
            edges = self.connector.edges(latent, EDGES)
            hidden = [self.connector.hidden_edges(unit, EDGES) for unit in edges.ids]
            card["fvu"] = fvu if fvu == fvu else None
            if any(inner is not None for inner in hidden):
                card["edges"] = [
                    {"name": f"H{unit}", "weight": weight, "edges": self._terms(inner.ids, inner.weights)}
                    for unit, weight, inner in zip(edges.ids, edges.weights, hidden, strict=True)
                    if inner is not None
                ]
            else:
                card["edges"] = self._terms(edges.ids, edges.weights)
                card["logic"] = self._logic(latent)
        return card

    @cached_property
    def _test(self) -> Tokens:
        return load_split(self.cfg, self.sides, "test", self.connector.target_ids)

    def _logic(self, latent: int) -> dict[str, Any]:
        """What the sources' activity on test tokens says the target computes; see logic.read_logic."""
        column = self.connector.column(latent)
        weights = self.connector.output_weight()[:, column]
        source, target = self._test.source, self._test.target
        fired = torch.zeros(len(self._test), dtype=torch.bool)
        fired[target.row_of[target.indices == column]] = True
        there = fired[source.row_of]
        added = torch.zeros(source.d).index_add_(
            0, source.indices, (source.values * weights[source.indices]).abs() * there
        )
        # What takes away where it does not fire can say AND NOT.
        taken = torch.zeros(source.d).index_add_(
            0, source.indices, (source.values * weights[source.indices]).clamp(max=0)
        )
        ids = torch.cat([added.topk(min(48, source.d)).indices, taken.neg().topk(min(16, source.d)).indices]).unique()
        ids = ids[weights[ids] != 0]
        found = read_logic(fired, source.columns(ids).dense(), weights[ids])
        names = [self.source_name(int(i)) for i in ids]
        return {
            "word": found.word,
            "sources": [names[i] for i in found.sources],
            "covered": found.covered,
            "fired": int(fired.sum()),
            "evidence": [
                {
                    "on": [names[i] for i in condition.on],
                    "off": [names[i] for i in condition.off],
                    "tokens": condition.tokens,
                    "fired": condition.fired,
                }
                for condition in found.evidence
            ],
        }

    def source(self, latent: int) -> dict[str, Any]:
        """The card of a source latent, by the connector's numbering, with the targets it feeds most."""
        place, number = self.side_of(latent)
        card = {"name": self.source_name(latent), **self._latent(self.sides.sources[place], number)}
        weights, _ = self.connector.penalised()[0]
        if len(self.connector.penalised()) == 1:
            row = weights.detach()[latent]
            order = row.abs().sort(descending=True, stable=True).indices[:EDGES]
            targets = [int(self.connector.target_ids[column]) for column in order if row[column] != 0]
            card["feeds"] = [
                {
                    "name": f"OF{target}",
                    "weight": row[self.connector.column(target)].item(),
                    "token": self._top_token(self.sides.target, target),
                }
                for target in targets
            ]
        return card

    def _terms(self, ids: list[int], weights: list[float]) -> list[dict[str, Any]]:
        found = []
        for source, weight in zip(ids, weights, strict=True):
            place, number = self.side_of(source)
            token = self._top_token(self.sides.sources[place], number)
            found.append({"name": self.source_name(source), "weight": weight, "token": token})
        return found

    def _latent(self, side: Artifact, latent: int) -> dict[str, Any]:
        found = self._of(side)
        facts = examples(self.cfg, self.store, side, self.tokens).facts
        count = int(found.histogram[latent].sum())
        total = found.token_weight[latent].sum().item()
        everything = max(total, 1e-30)
        tokens = [
            {
                "token": self.token(int(token)),
                "share": weight.item() / everything,
                "fires": int(fires),
                "occurs": int(occurs),
            }
            for token, weight, fires, occurs in zip(
                found.token[latent], found.token_weight[latent], found.token_count[latent], found.token_total[latent],
                strict=True,
            )
            if token >= 0 and weight > 0
        ]  # fmt: skip
        return {
            "hook": side.facts["hook_name"],
            "latent": latent,
            "token": self._top_token(side, latent),
            "active": count,
            "tokens_seen": facts["n_tokens"],
            "unit": facts["unit"],
            "histogram": found.histogram[latent].tolist(),
            "quantiles": {f"{q:g}": _quantile(found.histogram[latent], q) for q in (0.5, 0.9, 0.99)},
            "tokens": tokens[:8],
            "top": self._examples_at(side, latent, found.top_place[latent], found.top_value[latent]),
            "random": self._examples_at(side, latent, found.any_place[latent], found.any_value[latent]),
        }

    def _examples_at(
        self, side: Artifact, latent: int, places: torch.Tensor, values: torch.Tensor
    ) -> list[dict[str, Any]]:
        """The text around these places, and how much the latent fires on each of its tokens, in units of the card."""
        context, sequences = side.facts["context_size"], side.facts["sequences"]
        unit = examples(self.cfg, self.store, side, self.tokens).facts["unit"]
        shards = shards_of(sequences, context)
        found = []
        for place, value in zip(places.tolist(), values.tolist(), strict=True):
            if place < 0:
                continue
            sequence, position = divmod(place, context)
            split = SPLITS[0]
            for split in SPLITS:
                if sequence < sequences[split]:
                    break
                sequence -= sequences[split]
            first, last = max(position - WINDOW, 0), min(position + WINDOW + 1, context)
            shard = next(s for s in shards if s.split == split and s.first <= sequence < s.last)
            rows = self._rows(side, shard.name)
            begin = (sequence - shard.first) * context
            part = rows.select(torch.arange(begin + first, begin + last))
            mine = part.indices == latent
            around = torch.zeros(last - first).index_add_(0, part.row_of[mine], part.values[mine]) / unit
            ids = self._texts[split][sequence, first:last].tolist()
            found.append(
                {
                    "split": split,
                    "sequence": sequence,
                    "position": position,
                    "value": value / unit,
                    "at": position - first,
                    "tokens": [self.token(i) for i in ids],
                    "values": [round(v, 3) for v in around.tolist()],
                }
            )
        return found

    def _rows(self, side: Artifact, name: str) -> Any:
        """A shard of latents; the last few stay in memory."""
        if not hasattr(self, "_shards"):
            self._shards: dict[tuple[str, str], Any] = {}
        if (side.key, name) not in self._shards:
            while len(self._shards) >= 64:
                self._shards.pop(next(iter(self._shards)))
            self._shards[side.key, name] = unpack(side.tensors(name), side.facts["d_sae"])
        return self._shards[side.key, name]


def _quantile(histogram: torch.Tensor, share: float) -> float | None:
    """In units: the upper end of the quarter octave in which this share of the activations is reached."""
    total = int(histogram.sum())
    if not total:
        return None
    place = int((histogram.cumsum(0) >= share * total).nonzero()[0])
    return 2.0 ** ((place + 1 - 2 * OCTAVES) / 4)


# --------------------------------------------------------------------------- for the terminal


def as_json(card: dict[str, Any]) -> str:
    return json.dumps(card, ensure_ascii=False, indent=1)


def print_card(card: dict[str, Any], console: Console) -> None:
    """A card in colour, in 80 columns."""
    from rich.markup import escape
    from rich.text import Text

    console.print(f"[bold]{card['name']}[/] {escape(_quoted(card['token']))}   [dim]{card['hook']}[/]")
    rate = card["active"] / max(card["tokens_seen"], 1)
    console.print(f"fires on {card['active']:,} of {card['tokens_seen']:,} tokens ({rate:.2%})")
    if not card["active"]:
        return
    if card.get("edges"):
        fvu = "" if card["fvu"] is None else f"   [dim]FVU {card['fvu']:.3f} on test documents[/]"
        console.print(f"\n[bold]is predicted by[/]{fvu}")
        for edge in card["edges"]:
            console.print(_edge(edge))
            for inner in edge.get("edges", [])[:4]:
                console.print("  " + _edge(inner))
        if "logic" in card:
            _print_logic(card["logic"], console)
    elif "explained" in card:
        why = "no edge leads to it" if card["explained"] else "the connector does not explain it (targets.*)"
        console.print(f"\n[dim]{why}[/]")
    if card.get("feeds"):
        console.print("\n[bold]predicts[/]")
        for edge in card["feeds"]:
            console.print(_edge(edge))
    console.print("\n[bold]tokens[/] [dim](share of its activation; fires on how many of the token's places)[/]")
    for token in card["tokens"]:
        name = escape(_quoted(token["token"]))
        console.print(f"  {token['share']:5.0%}  {name:24} {token['fires']:,} of {token['occurs']:,}")
    half, most = card["quantiles"]["0.5"], card["quantiles"]["0.99"]
    about = f"half below {half:.2g}, 99% below {most:.2g}; 1 is the SAE's mean"
    console.print(f"\n[bold]sizes[/] {_bars(card['histogram'])} [dim]{about}[/]")
    for title, chosen in (("strongest", card["top"][:6]), ("at random", card["random"][:4])):
        console.print(f"\n[bold]{title}[/]")
        for example in chosen:
            line = Text(f"  {example['value']:5.1f}  ", style="dim")
            line.append_text(_shaded(example, console.width - 9))
            console.print(line, no_wrap=True, overflow="ellipsis")


def _print_logic(logic: dict[str, Any], console: Console) -> None:
    sources = f" of {', '.join(logic['sources'])}" if logic["sources"] else ""
    covered = f"[dim], on {logic['covered']:.0%} of the {logic['fired']:,} test tokens where it fires[/]"
    console.print(f"\n[bold]logic[/] {logic['word']}{sources}{covered if logic['sources'] else ''}")
    for condition in logic["evidence"]:
        text = " and ".join(condition["on"]) + "".join(f" without {name}" for name in condition["off"])
        console.print(f"  [dim]{text}: fires on {condition['fired']:,} of {condition['tokens']:,}[/]")


def _edge(edge: dict[str, Any]) -> str:
    from rich.markup import escape

    colour = "green" if edge["weight"] > 0 else "red"
    return f"  [{colour}]{edge['weight']:+.3f}[/]  {edge['name']} {escape(_quoted(edge.get('token')))}"


def _quoted(token: str | None) -> str:
    return "" if token is None else f'"{_printable(token)}"'


def _printable(text: str) -> str:
    """Text that can't move the cursor, change colours or break a line."""
    text = text.replace("\xa0", " ")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shaded(example: dict[str, Any], width: int) -> Any:
    """The tokens around an example, those that the latent fires on coloured, cut to `width` around its own."""
    from rich.cells import cell_len
    from rich.text import Text

    texts = [_printable(token.replace("\n", "⏎")) for token in example["tokens"]]
    first, last = example["at"], example["at"] + 1
    size = cell_len(texts[example["at"]])
    while True:
        before = first > 0 and size + cell_len(texts[first - 1]) <= width
        after = last < len(texts) and size + cell_len(texts[last]) <= width
        if not before and not after:
            break
        if before and (not after or example["at"] - first <= last - 1 - example["at"]):
            first -= 1
            size += cell_len(texts[first])
        else:
            size += cell_len(texts[last])
            last += 1
    line = Text()
    for i in range(first, last):
        style = "bold reverse" if i == example["at"] else ("bold yellow" if example["values"][i] > 0 else "")
        line.append(texts[i], style=style)
    return line


def _bars(histogram: list[int]) -> str:
    """A line of bars, an octave each."""
    octaves = [sum(histogram[4 * i : 4 * i + 4]) for i in range(OCTAVES)]
    most = max(*octaves, 1)
    return "".join(" ▁▂▃▄▅▆▇█"[-(-8 * count // most)] for count in octaves)
