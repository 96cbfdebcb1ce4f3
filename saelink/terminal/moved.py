"""What heads move to a target, with the arrow from key to query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saelink.evidence.moved_edges import HEAD, Example, MovedEdge
from saelink.evidence.moved_heads import ALIKE, HeadCard

if TYPE_CHECKING:
    from rich.console import Console


def print_moved(name: str, edges: list[MovedEdge], console: Console | None = None) -> None:
    """The edges of a target through attention, the strongest first."""
    from rich.console import Console
    from rich.markup import escape

    console = console or Console(highlight=False)
    console.print(f"\n[bold]heads move to it[/] [dim]what {name} loses without it, of its mean activation[/]")
    if not edges:
        console.print("  [dim]nothing: it is never active where a source is moved to[/]")
    for edge in edges:
        console.print(f"  {escape(moved_line(name, edge))}")
        for token, share in edge.tokens:
            console.print(f"    [dim]{share:4.0%} from {escape(repr(_plain(token)))}[/]")
        for example in edge.examples:
            for line in arrow_lines(example, console.width - 4):
                console.print(f"    {escape(line)}", no_wrap=True, overflow="ellipsis")


BINS = (0, 1, 2, 4, 8, 16, 32, 64)
"""Where the bars of distances begin, in tokens; the last is open."""

BAR = 40


def print_head_card(card: HeadCard, console: Console | None = None) -> None:
    """What a head moves, from how far, with sentences of the edges that it makes most of."""
    from rich.console import Console
    from rich.markup import escape

    console = console or Console(highlight=False)
    console.print(f"\n[bold]head {card.head}[/] [dim]makes {card.share:.0%} of the strongest computed edges' size[/]")
    others = [head for head in card.group if head != card.head]
    cosines = ", ".join(f"head {head} {card.cosines[head]:+.2f}" for head in others)
    alike = f"moves the same as {cosines}" if others else "moves what no other head does"
    console.print(f"  {alike} [dim](parts of edges: a cosine of {ALIKE:g} or more)[/]")
    console.print(f"  most of it from {between(card.near, card.far)}")
    for line in distance_lines(card.distances):
        console.print(f"    [dim]{line}[/]")
    named = ", ".join(f"{name}{_quoted(token)} {share:.0%}" for name, token, share in card.sources)
    console.print(f"  moves {escape(named)}")
    for edge in card.edges:
        name = f"{edge.source}{_quoted(edge.source_token)} to {edge.target}{_quoted(edge.target_token)}"
        console.print(f"  {escape(name)}, {edge.share:.0%} of the edge")
        for example in edge.examples:
            for line in arrow_lines(example, console.width - 4):
                console.print(f"    {escape(line)}", no_wrap=True, overflow="ellipsis")


def binned(distances: list[float], context: int) -> list[tuple[str, float]]:
    """What each bin of distances is called, 4-7, and its share; bins that a text of `context` tokens has."""
    found: list[tuple[str, float]] = []
    for place, first in enumerate(BINS):
        last = min(BINS[place + 1] if place + 1 < len(BINS) else context, context)
        if first < context:
            found.append((str(first) if last == first + 1 else f"{first}-{last - 1}", sum(distances[first:last])))
    return found


def distance_lines(distances: list[float]) -> list[str]:
    """A bar for each bin of distances."""
    bins = binned(distances, len(distances))
    return [f"{name:>7} {share:4.0%} {'█' * round(share * BAR)}".rstrip() for name, share in bins]


def _quoted(token: str | None) -> str:
    return "" if token is None else f' "{_plain(token).strip()}"'


def moved_line(name: str, edge: MovedEdge) -> str:
    """OF12 = head 3 (72%, alone +24%): IF7 "king" from 1 to 4 tokens before, computed +40%, measured +31%

    72% of the computed 40%; alone: the target loses 24% of its mean activation where only head 3 reads without IF7.
    """
    named = [(head, share) for head, share in edge.heads.items() if share >= HEAD]
    alone = edge.alone or {}
    measured = {head: f", alone {alone[head]:+.0%}" for head, _ in named if head in alone}
    heads = ", ".join(f"head {h} ({share:.0%}{measured.get(h, '')})" for h, share in named) or "many heads"
    token = "" if edge.token is None else f' "{_plain(edge.token).strip()}"'
    where = between(edge.near, edge.far)
    in_all = "" if edge.effect is None else f", measured {edge.effect:+.0%}"
    return f"{name} = {heads}: {edge.name}{token} from {where}, computed {edge.claim:+.0%}{in_all}"


def between(near: int, far: int) -> str:
    """1 to 4 tokens before."""
    if far == 0:
        return "the token itself"
    return f"{near} to {far} tokens before" if near != far else f"{near} token{'s' * (near != 1)} before"


def arrow_lines(example: Example, width: int) -> list[str]:
    """The tokens in a line, and under it the arrow from the key to the query; what doesn't fit between is left out."""
    texts = [_plain(token) for token in example.tokens]
    key, query = example.key, example.query
    while sum(map(len, texts)) > width and query - key > 2:
        at = (key + query) // 2  # from the middle, where a sign stands for what is left out
        if texts[at] == "…":
            at = at - 1 if at - 1 > key else at + 1
        near = next((place for place in (at - 1, at + 1) if texts[place] == "…"), None)
        if near is None:
            texts[at] = "…"
        else:
            del texts[at]
            query -= 1
    start, end = (sum(map(len, texts[:at])) + len(texts[at]) // 2 for at in (key, query))
    arrow = "↺" if start == end else "└" + "─" * (end - start - 1) + "▲"
    return ["".join(texts), " " * start + f"{arrow} head {example.head}, {example.part:+.0%}"]


def _plain(text: Any) -> str:
    """Text that can't move the cursor or break a line."""
    text = str(text).replace("\n", "⏎").replace("\xa0", " ")
    return "".join(c if c.isprintable() else "·" for c in text)
