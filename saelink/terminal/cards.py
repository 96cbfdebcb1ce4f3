"""A latent's card in colour, in 80 columns."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from saelink.latents.examples import OCTAVES
from saelink.terminal.logic import trial_text

if TYPE_CHECKING:
    from rich.console import Console


def print_card_json(card: dict[str, Any]) -> None:
    """The card as JSON on standard output."""
    print(json.dumps(card, ensure_ascii=False, indent=1))


def print_new_card(card: dict[str, Any]) -> None:
    """The card on standard output, in colour where it is a terminal."""
    from rich.console import Console

    print_card(card, Console(highlight=False))


def print_card(card: dict[str, Any], console: Console) -> None:
    """A card in colour, in 80 columns."""
    from rich.markup import escape
    from rich.text import Text

    console.print(f"[bold]{card['name']}[/] {escape(_quoted(card['token']))}   [dim]{card['hook']}[/]")
    if "page" in card:
        console.print(f"[dim]{card['page']}[/]", soft_wrap=True)
    rate = card["active"] / max(card["tokens_seen"], 1)
    console.print(f"fires on {card['active']:,} of {card['tokens_seen']:,} tokens ({rate:.2%})")
    if not card["active"]:
        return
    if card.get("edges"):
        _print_inputs(card, console)
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
    for title, kind, most in (("strongest", "top", 6), ("at random", "random", 4)):
        console.print(f"\n[bold]{title}[/]")
        for example in [example for example in card["examples"] if example["kind"] == kind][:most]:
            line = Text(f"  {example['value']:5.1f}  ", style="dim")
            line.append_text(_shaded(example, console.width - 9))
            console.print(line, no_wrap=True, overflow="ellipsis")


def _print_inputs(card: dict[str, Any], console: Console) -> None:
    """What a target is predicted by, and the logic of it."""
    from rich.markup import escape

    linear = f", {card['linear']:.0%} linear" if "linear" in card else ""
    fvu = (
        ""
        if card.get("fvu") is None
        else f"   [dim]FVU {card['fvu']:.3f} on test documents{linear}; + how much without it[/]"
    )
    console.print(f"\n[bold]is predicted by[/]{fvu}")
    for edge in card["edges"]:
        console.print(_edge(edge))
        for inner in edge.get("edges", [])[:4]:
            console.print("  " + _edge(inner))
    for missed in card.get("missed", [])[:4]:
        name = f"{missed['name']} {escape(_quoted(missed['token']))}"
        console.print(f"  [dim]no edge[/]  {name}   [dim]in the model {missed['effect']:+.0%}[/]")
    if any("verdict" in edge for edge in card["edges"]):
        console.print("  [dim]%: what the latent loses where the source is ablated, of its mean activation[/]")
    if any("effectiveness" in edge for edge in card["edges"]):
        console.print("  [dim]KL, helps: divergence and rise of the loss without the edge, nats a token[/]")
    _print_logic(card["logic"], card["fired"], console)
    if "silent" in card:
        _print_silent(card["silent"], console)


def _print_logic(logic: dict[str, Any], fired: int, console: Console) -> None:
    sources = f" of {', '.join(logic['inputs'])}" if logic["inputs"] else ""
    covered = f"[dim], on {logic['covered']:.0%} of the {fired:,} test tokens where it fires[/]"
    standing = {True: " (confirmed)", False: " (not confirmed)", None: " (unverified)"}[logic["confirmed"]]
    said = f"{logic['word']}{sources}{standing}{covered}" if logic["inputs"] else logic["word"]
    console.print(f"\n[bold]logic[/] {said}")
    for condition in logic["evidence"]:
        text = " and ".join(condition["on"]) + "".join(f" without {name}" for name in condition["off"])
        console.print(f"  [dim]{text}: fires on {condition['fired']:,} of {condition['tokens']:,}[/]")
    if "tested" in logic:
        console.print(f"  tested by interventions: {logic['tested']['outcome']}")
        for trial in logic["tested"]["trials"]:
            console.print(f"  [dim]{trial_text(trial)}[/]")


def _print_silent(silent: dict[str, Any], console: Console) -> None:
    console.print(f"  [dim]where {silent['leader']} is active, its silence goes with[/]")
    for entry in silent["inputs"]:
        quiet, fires = f"{entry['silent']:,} of {silent['silent']:,}", f"{entry['fires']:,} of {silent['fires']:,}"
        console.print(f"  [dim]  {entry['name']} on {quiet} tokens, where it fires on {fires}[/]")


def _edge(edge: dict[str, Any]) -> str:
    from rich.markup import escape

    colour = "green" if edge["weight"] > 0 else "red"
    rise = edge.get("rise")
    rises = "" if rise is None or abs(rise) < 5e-4 else f"   [dim]{rise:+.3f}[/]"
    verdict = f"   [dim]{edge['verdict']}, {edge['effect']:+.0%}[/]" if "verdict" in edge else ""
    if "effectiveness" in edge:
        verdict += f"   [dim]KL {edge['effectiveness']:.1e}, helps {edge['helpfulness']:+.1e}[/]"
    return f"  [{colour}]{edge['weight']:+.3f}[/]  {edge['name']} {escape(_quoted(edge.get('token')))}{rises}{verdict}"


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
