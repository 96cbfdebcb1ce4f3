"""What heads move to a target, with the arrow from key to query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saelink.evidence.moved_edges import HEAD, Example, MovedEdge

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


def moved_line(name: str, edge: MovedEdge) -> str:
    """OF12 = head 3 (72%): IF7 "king" from 1 to 4 tokens before, computed +40%, measured +31%"""
    named = [(head, share) for head, share in edge.heads.items() if share >= HEAD]
    heads = ", ".join(f"head {head} ({share:.0%})" for head, share in named) or "many heads"
    token = "" if edge.token is None else f' "{_plain(edge.token).strip()}"'
    near, far = edge.near, edge.far
    where = f"{near} to {far} tokens before" if near != far else f"{near} token{'s' * (near != 1)} before"
    if far == 0:
        where = "the token itself"
    measured = "" if edge.effect is None else f", measured {edge.effect:+.0%}"
    return f"{name} = {heads}: {edge.name}{token} from {where}, computed {edge.claim:+.0%}{measured}"


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
