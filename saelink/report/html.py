"""Small pieces of HTML for a notebook's output: every text is escaped, nothing is fetched, no style leaks out."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

LEFT = "text-align:left;padding:1px 14px 1px 0;vertical-align:top"

RIGHT = "text-align:right;padding:1px 14px 1px 0;vertical-align:top;font-variant-numeric:tabular-nums"


def box(title: str, *parts: str) -> str:
    """A titled block of pieces that are HTML already."""
    head = f'<div style="font-weight:600;margin-bottom:2px">{escape(title)}</div>'
    return f'<div style="margin:4px 0 8px 0">{head}{"".join(parts)}</div>'


def facts_table(rows: Iterable[tuple[str, str]]) -> str:
    """Names with their texts, a line each."""
    lines = (
        f'<tr><td style="{LEFT};opacity:.65">{escape(name)}</td><td style="{LEFT}">{escape(text)}</td></tr>'
        for name, text in rows
    )
    return f'<table style="margin:0;border:0;font-size:inherit">{"".join(lines)}</table>'


def grid(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table with a heading; the first `texts` columns are words, the others numbers."""
    sides = [LEFT if column < texts else RIGHT for column in range(len(head))]
    top = "".join(
        f'<th style="{side};font-weight:400;opacity:.65">{escape(name)}</th>'
        for name, side in zip(head, sides, strict=True)
    )
    lines = (
        "<tr>"
        + "".join(f'<td style="{side}">{escape(cell)}</td>' for cell, side in zip(row, sides, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<table style="margin:0;border:0;font-size:inherit"><tr>{top}</tr>{"".join(lines)}</table>'


def note(text: str) -> str:
    """A line in a fainter colour."""
    return f'<div style="opacity:.65">{escape(text)}</div>'


def lines_of_text(lines: Iterable[str]) -> str:
    """Lines in a fixed width, long ones broken."""
    return f'<pre style="white-space:pre-wrap;margin:4px 0 0 0;line-height:1.35">{escape(chr(10).join(lines))}</pre>'


def picture(png: bytes, text: str, width: int) -> str:
    """A picture inside the page, `width` pixels wide, and what it shows for those who don't see it."""
    data = base64.b64encode(png).decode()
    return f'<img style="max-width:100%" width="{width}" alt="{escape(text)}" src="data:image/png;base64,{data}">'


def shares_bar(shares: Iterable[tuple[str, float, str]]) -> str:
    """A bar of parts: name, share of the whole, colour; its legend below."""
    shares = list(shares)
    parts = "".join(
        f'<div title="{escape(name)} {share:.0%}" style="width:{100 * share:.2f}%;background:{colour}"></div>'
        for name, share, colour in shares
    )
    legend = " ".join(
        f'<span style="margin-right:12px;white-space:nowrap"><span style="color:{colour}">&#9632;</span> '
        f"{escape(name)} {share:.0%}</span>"
        for name, share, colour in shares
    )
    bar = f'<div style="display:flex;height:12px;max-width:560px;margin:4px 0">{parts}</div>'
    return f"<div>{bar}{legend}</div>"


def link(address: str, text: str) -> str:
    """A link that opens beside the notebook."""
    return f'<a href="{escape(address)}" target="_blank" rel="noopener">{escape(text)}</a>'
